//! Timers for many short waits: set, moved and cancelled in O(1), without allocation once grown.
//!
//! ```text
//! tick (2.1 ms)   now      bucket = tick mod 4096, a linked list of keys
//!   …  [ ][ ][x][ ][k4 k9][ ][k2]…
//! ```
//!
//! One timer per key. A wait longer than the wheel's turn (8.6 s) fires early, at the end of the turn: whoever sets
//! one looks at the time when it fires.

use forebay_core::Instant;

const TICK_SHIFT: u32 = 21;
const BUCKETS: usize = 4096;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
    /// The tick at which it fires; `u64::MAX` when it is not set.
    tick: u64,
}

const UNSET: Link = Link { prev: NONE, next: NONE, tick: u64::MAX };

/// Timers keyed by small numbers.
#[derive(Debug)]
pub(crate) struct Wheel {
    heads: Box<[u32; BUCKETS]>,
    /// A bit per bucket: whether it holds anything.
    full: [u64; BUCKETS / 64],
    links: Vec<Link>,
    /// Every tick before this one has been looked at.
    cursor: u64,
    len: u32,
}

impl Wheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            heads: Box::new([NONE; BUCKETS]),
            full: [0; BUCKETS / 64],
            links: Vec::new(),
            cursor: now.as_nanos() >> TICK_SHIFT,
            len: 0,
        }
    }

    /// Sets the timer of `key`, whether it was set or not. It fires at `at` or up to a tick later.
    pub(crate) fn set(&mut self, key: u32, at: Instant) {
        self.cancel(key);
        if self.links.len() <= key as usize {
            self.links.resize(key as usize + 1, UNSET);
        }
        let tick = at.as_nanos().div_ceil(1 << TICK_SHIFT);
        let tick = tick.clamp(self.cursor, self.cursor + BUCKETS as u64 - 1);
        let bucket = tick as usize % BUCKETS;
        let head = self.heads[bucket];
        self.links[key as usize] = Link { prev: NONE, next: head, tick };
        if head != NONE {
            self.links[head as usize].prev = key;
        }
        self.heads[bucket] = key;
        self.full[bucket / 64] |= 1 << (bucket % 64);
        self.len += 1;
    }

    /// Stops the timer of `key`, if it is set.
    pub(crate) fn cancel(&mut self, key: u32) {
        let Some(&Link { prev, next, tick }) = self.links.get(key as usize) else { return };
        if tick == u64::MAX {
            return;
        }
        let bucket = tick as usize % BUCKETS;
        match prev {
            NONE => self.heads[bucket] = next,
            before => self.links[before as usize].next = next,
        }
        if next != NONE {
            self.links[next as usize].prev = prev;
        }
        if self.heads[bucket] == NONE {
            self.full[bucket / 64] &= !(1 << (bucket % 64));
        }
        self.links[key as usize] = UNSET;
        self.len -= 1;
    }

    /// Takes a key whose timer has fired.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<u32> {
        let now = now.as_nanos() >> TICK_SHIFT;
        loop {
            let Some(tick) = self.next_tick() else {
                self.cursor = self.cursor.max(now);
                return None;
            };
            if tick > now {
                self.cursor = self.cursor.max(now);
                return None;
            }
            self.cursor = tick;
            let key = self.heads[tick as usize % BUCKETS];
            if key != NONE {
                self.cancel(key);
                return Some(key);
            }
        }
    }

    /// Returns when the next timer fires.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.next_tick().map(|tick| Instant::from_nanos(tick << TICK_SHIFT))
    }

    /// The first tick from the cursor on whose bucket holds anything. All keys set are less than a turn away.
    fn next_tick(&self) -> Option<u64> {
        if self.len == 0 {
            return None;
        }
        let start = self.cursor as usize % BUCKETS;
        let words = self.full.len();
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mut bits = self.full[word];
            if step == 0 {
                bits &= u64::MAX << (start % 64);
            } else if step == words {
                bits &= !(u64::MAX << (start % 64));
            }
            if bits != 0 {
                let bucket = word * 64 + bits.trailing_zeros() as usize;
                let ahead = (bucket + BUCKETS - start) % BUCKETS;
                return Some(self.cursor + ahead as u64);
            }
        }
        None
    }
}

/// The precision of a timer: how much later than asked it may fire.
#[cfg(test)]
pub(crate) const PRECISION: std::time::Duration = std::time::Duration::from_nanos(1 << TICK_SHIFT);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_timer_fires_once_in_its_time(
            start in 0u64..10_000_000_000,
            steps in prop::collection::vec((0u8..4, 0u32..20, 0u64..9_000_000_000u64), 1..200),
        ) {
            let mut now = Instant::from_nanos(start);
            let mut wheel = Wheel::new(now);
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            for (what, key, span) in steps {
                match what {
                    0 | 1 => {
                        let at = now + Duration::from_nanos(span.min(8_000_000_000));
                        wheel.set(key, at);
                        model.insert(key, at);
                    }
                    2 => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    _ => {
                        now = now + Duration::from_nanos(span / 3);
                        while let Some(fired) = wheel.pop(now) {
                            let at = model.remove(&fired);
                            prop_assert!(at.is_some_and(|at| at <= now), "{fired} at {at:?}, now {now:?}");
                        }
                        for (key, at) in &model {
                            prop_assert!(*at + PRECISION > now, "{key} is late");
                        }
                    }
                }
                if let (Some(next), Some(first)) = (wheel.next(), model.values().min()) {
                    prop_assert!(next <= *first + PRECISION);
                }
                prop_assert_eq!(wheel.next().is_some(), !model.is_empty());
            }
        }
    }

    #[test]
    fn a_wait_longer_than_a_turn_fires_early_rather_than_never() {
        let mut wheel = Wheel::new(Instant::ZERO);
        wheel.set(3, Instant::ZERO + Duration::from_secs(100));
        assert!(wheel.next().is_some_and(|at| at < Instant::ZERO + Duration::from_secs(9)));
    }
}

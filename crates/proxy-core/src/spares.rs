//! How many connections to dial ahead.
//!
//! A spare that is taken is replaced at once, and the new one is there a dial's time later. So as many spares are wanted
//! as clients come in that time, and some more because they do not come evenly. A client that finds none says that it
//! was not enough: then one more is wanted, for a while. Without clients none are wanted: a spare that nobody takes only
//! grows old.

use std::time::Duration;

use forebay_core::Instant;

/// What the rate of clients is taken over.
const RATE_WINDOW: Duration = Duration::from_secs(1);

/// How many standard deviations above the mean are wanted: with Poisson arrivals fewer than one client in fifty comes in
/// vain.
const SPREAD: f64 = 2.5;

/// What a dial is thought to take before one was seen.
const DIAL_FIRST: Duration = Duration::from_millis(1);

/// How many spare connections to one backend are wanted.
#[derive(Clone, Debug)]
pub struct Target {
    max: u32,
    linger: Duration,
    last_arrival: Option<Instant>,
    /// Clients per second, as of `last_arrival`.
    rate: f64,
    dial_secs: f64,
    dial_deviation_secs: f64,
    has_dialled: bool,
    /// What misses added, as of `missed`.
    extra: f64,
    missed: Instant,
}

impl Target {
    /// Makes a target: never above `max`, and zero when no client has come for `linger`.
    pub const fn new(max: u32, linger: Duration) -> Self {
        Self {
            max,
            linger,
            last_arrival: None,
            rate: 0.0,
            dial_secs: DIAL_FIRST.as_secs_f64(),
            dial_deviation_secs: 0.0,
            has_dialled: false,
            extra: 0.0,
            missed: Instant::ZERO,
        }
    }

    /// Notes a client, and whether it found a spare.
    pub fn note_arrival(&mut self, now: Instant, found_spare: bool) {
        let window = RATE_WINDOW.as_secs_f64();
        self.rate = self.rate_at(now) + 1.0 / window;
        if !found_spare {
            // The first client of all misses what nobody could have foreseen.
            let is_first = self.last_arrival.is_none_or(|last| now >= last + self.linger);
            self.extra = if is_first { 0.0 } else { (self.extra_at(now) + 1.0).min(f64::from(self.max)) };
            self.missed = now;
        }
        self.last_arrival = Some(now);
    }

    /// Notes how long a dial took that succeeded.
    pub fn note_dialled(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        if !self.has_dialled {
            self.has_dialled = true;
            (self.dial_secs, self.dial_deviation_secs) = (took, took / 2.0);
            return;
        }
        let off = took - self.dial_secs;
        self.dial_secs += off / 8.0;
        self.dial_deviation_secs += (off.abs() - self.dial_deviation_secs) / 4.0;
    }

    /// Returns how many are wanted now.
    pub fn wanted(&self, now: Instant) -> u32 {
        let Some(last) = self.last_arrival else { return 0 };
        if now >= last + self.linger {
            return 0;
        }
        let dial = self.dial_secs + 2.0 * self.dial_deviation_secs;
        let coming = self.rate_at(now) * dial;
        let wanted = coming + SPREAD * coming.sqrt() + 1.0 + self.extra_at(now);
        // A float becomes a number of the same value or the nearest there is.
        (wanted as u32).min(self.max)
    }

    /// Returns when [`Target::wanted`] is to be asked next if no client comes; `None` if it stays zero.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let end = self.last_arrival? + self.linger;
        (now < end).then(|| end.min(now + self.linger / 10))
    }

    fn rate_at(&self, now: Instant) -> f64 {
        self.last_arrival.map_or(0.0, |last| {
            let age = now.saturating_duration_since(last);
            self.rate * (-age.as_secs_f64() / RATE_WINDOW.as_secs_f64()).exp()
        })
    }

    fn extra_at(&self, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.missed);
        self.extra * (-age.as_secs_f64() / self.linger.as_secs_f64().max(1e-9)).exp()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BinaryHeap;

    use std::cmp::Reverse;

    use forebay_core::Rng;

    use super::*;

    const LINGER: Duration = Duration::from_secs(10);

    /// A pool that keeps as many spares as are wanted.
    struct World {
        target: Target,
        dial: Duration,
        jitter: Duration,
        rng: Rng,
        spares: u32,
        dials: BinaryHeap<Reverse<(Instant, Duration)>>,
        hits: u32,
        misses: u32,
        peak: u32,
    }

    impl World {
        fn new(max: u32, dial: Duration, jitter: Duration) -> Self {
            Self {
                target: Target::new(max, LINGER),
                dial,
                jitter,
                rng: Rng::new(3),
                spares: 0,
                dials: BinaryHeap::new(),
                hits: 0,
                misses: 0,
                peak: 0,
            }
        }

        fn pass(&mut self, now: Instant) {
            while let Some(Reverse((end, took))) = self.dials.peek().copied().filter(|dial| dial.0.0 <= now) {
                self.dials.pop();
                self.target.note_dialled(took);
                self.spares += 1;
                self.refill(end);
            }
            self.refill(now);
        }

        fn refill(&mut self, now: Instant) {
            let wanted = self.target.wanted(now);
            self.peak = self.peak.max(wanted);
            self.spares = self.spares.min(wanted.max(self.spares.saturating_sub(1)));
            while self.spares + (self.dials.len() as u32) < wanted {
                let took = self.dial + self.rng.up_to(self.jitter);
                self.dials.push(Reverse((now + took, took)));
            }
        }

        fn client(&mut self, now: Instant) {
            self.pass(now);
            let found = self.spares > 0;
            self.target.note_arrival(now, found);
            if found {
                self.spares -= 1;
                self.hits += 1;
            } else {
                self.misses += 1;
                let took = self.dial + self.rng.up_to(self.jitter);
                self.target.note_dialled(took);
            }
            self.refill(now);
        }

        fn hit_percent(&self) -> u32 {
            self.hits * 100 / (self.hits + self.misses)
        }
    }

    fn at(secs: f64) -> Instant {
        Instant::ZERO + Duration::from_secs(3600) + Duration::from_secs_f64(secs)
    }

    /// Arrivals of a Poisson process.
    fn poisson(rate: f64, secs: f64, seed: u64) -> impl Iterator<Item = f64> {
        let mut rng = Rng::new(seed);
        let mut now = 0.0;
        std::iter::from_fn(move || {
            let uniform = (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
            now -= (1.0 - uniform).ln() / rate;
            (now < secs).then_some(now)
        })
    }

    #[test]
    fn of_clients_that_come_steadily_at_least_95_in_100_find_a_spare() {
        for (rate, dial_ms) in [(1000.0, 1), (100.0, 1), (1.0, 20), (10.0, 50), (2000.0, 10), (50.0, 200)] {
            for seed in 0..5 {
                let dial = Duration::from_millis(dial_ms);
                let mut world = World::new(256, dial, dial / 5);
                poisson(rate, 20.0_f64.max(200.0 / rate), seed).for_each(|secs| world.client(at(secs)));
                let needed = rate * dial.as_secs_f64();
                assert!(world.hit_percent() >= 95, "{rate}/s, {dial_ms} ms: {} %", world.hit_percent());
                let most = 4.0 + 2.0 * needed + 6.0 * needed.sqrt();
                let settled = f64::from(world.target.wanted(at(20.0)));
                assert!(settled <= most, "{rate}/s, {dial_ms} ms: {settled}");
            }
        }
    }

    #[test]
    fn silence_ends_all_spares_and_the_next_client_begins_anew() {
        let mut world = World::new(64, Duration::from_millis(1), Duration::ZERO);
        poisson(1000.0, 5.0, 1).for_each(|secs| world.client(at(secs)));
        let last = world.target.last_arrival.unwrap();
        assert!(world.target.wanted(last + LINGER - Duration::from_millis(1)) >= 1);
        assert_eq!(world.target.wanted(last + LINGER), 0);
        assert_eq!(world.target.next_look(last + LINGER), None);
        world.spares = 0;
        world.client(last + LINGER * 3);
        assert_eq!(world.target.wanted(last + LINGER * 3), 1, "one client is no crowd");
    }

    #[test]
    fn the_number_falls_bit_by_bit_when_clients_become_fewer() {
        let mut world = World::new(64, Duration::from_millis(10), Duration::ZERO);
        poisson(1000.0, 5.0, 1).for_each(|secs| world.client(at(secs)));
        let mut now = world.target.last_arrival.unwrap();
        let mut before = world.target.wanted(now);
        assert!(before >= 15, "{before}");
        while let Some(next) = world.target.next_look(now) {
            assert!(next > now);
            now = next;
            let wanted = world.target.wanted(now);
            assert!(wanted <= before);
            before = wanted;
        }
        assert_eq!(before, 0);
        assert!(now <= world.target.last_arrival.unwrap() + LINGER);
    }

    #[test]
    fn bursts_are_met_after_the_first_ones_by_what_misses_added() {
        let mut world = World::new(64, Duration::from_millis(5), Duration::ZERO);
        for burst in 0..20 {
            (world.hits, world.misses) = if burst == 5 { (0, 0) } else { (world.hits, world.misses) };
            (0..30).for_each(|_| world.client(at(f64::from(burst) * 2.0)));
            world.pass(at(f64::from(burst) * 2.0 + 1.0));
        }
        assert!(world.hit_percent() >= 75, "{} %", world.hit_percent());
    }

    #[test]
    fn there_are_never_more_than_the_bound() {
        for max in [0, 1, 7] {
            let mut world = World::new(max, Duration::from_millis(100), Duration::ZERO);
            poisson(1000.0, 3.0, 1).for_each(|secs| world.client(at(secs)));
            assert_eq!(world.peak, max);
        }
        let mut target = Target::new(u32::MAX, LINGER);
        target.note_dialled(Duration::MAX);
        (0..1000).for_each(|_| target.note_arrival(at(1.0), false));
        assert_eq!(target.wanted(at(1.0)), u32::MAX);
    }

    #[test]
    fn before_the_first_client_nothing_is_dialled() {
        let target = Target::new(64, LINGER);
        assert_eq!((target.wanted(at(0.0)), target.next_look(at(0.0))), (0, None));
    }
}

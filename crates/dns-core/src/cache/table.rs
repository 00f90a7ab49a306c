//! The index: from a question's hash to where its entry stands in the ring.

/// A slot without an entry. Zero, so that a new table is memory not yet touched; an entry's
/// position is kept one higher.
const EMPTY: u64 = 0;

/// The largest position that a slot can hold.
pub(super) const POSITION_MAX: u32 = u32::MAX - 1;

/// Bytes per slot.
pub(super) const SLOT_LEN: usize = size_of::<u64>();

/// Full at this share of its slots, in percent: linear probing gets slow beyond.
const LOAD_MAX_PERCENT: usize = 85;

/// An open-addressing table of fixed size: linear probing, no tombstones.
///
/// A slot holds 32 bits of hash and 32 bits of position. The upper bits of the hash choose the
/// slot, so that entries move without being looked at.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[u64]>,
    len: usize,
}

impl Table {
    /// A table with as many slots. Zero makes one that finds nothing.
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: vec![EMPTY; slots].into_boxed_slice(), len: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn slots(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= self.slots.len() * LOAD_MAX_PERCENT / 100
    }

    /// The slot and position of the entry with this tag for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, tag: u32, is_it: impl Fn(u32) -> bool) -> Option<(usize, u32)> {
        if self.slots.is_empty() {
            return None;
        }
        let mut index = self.home(tag);
        // One slot at least is empty, so that this ends.
        loop {
            let slot = self.slots[index];
            if slot == EMPTY {
                return None;
            }
            let position = (slot as u32).wrapping_sub(1);
            if (slot >> 32) as u32 == tag && is_it(position) {
                return Some((index, position));
            }
            index = self.next(index);
        }
    }

    /// Puts in an entry that is not there yet. The table must not be full.
    pub(super) fn insert(&mut self, tag: u32, position: u32) {
        debug_assert!(!self.is_full());
        let mut index = self.home(tag);
        while self.slots[index] != EMPTY {
            index = self.next(index);
        }
        self.slots[index] = pack(tag, position);
        self.len += 1;
    }

    /// Tells where an entry stands now.
    pub(super) fn relocate(&mut self, index: usize, tag: u32, position: u32) {
        self.slots[index] = pack(tag, position);
    }

    /// Empties a slot, and moves those behind it up so that none is cut off from its home.
    pub(super) fn remove(&mut self, index: usize) {
        let mut hole = index;
        let mut probe = index;
        loop {
            probe = self.next(probe);
            let slot = self.slots[probe];
            if slot == EMPTY {
                break;
            }
            let home = self.home((slot >> 32) as u32);
            if self.distance(home, probe) >= self.distance(hole, probe) {
                self.slots[hole] = slot;
                hole = probe;
            }
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(EMPTY);
        self.len = 0;
    }

    #[inline]
    fn home(&self, tag: u32) -> usize {
        ((u64::from(tag) * self.slots.len() as u64) >> 32) as usize
    }

    #[inline]
    fn next(&self, index: usize) -> usize {
        if index + 1 == self.slots.len() { 0 } else { index + 1 }
    }

    /// Steps from `from` on to `to`.
    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }
}

fn pack(tag: u32, position: u32) -> u64 {
    debug_assert!(position <= POSITION_MAX);
    u64::from(tag) << 32 | (u64::from(position) + 1)
}

//! The memory: entries one behind the other in a ring, oldest at the tail, new ones at the head.
//!
//! ```text
//! linear    0 ······ tail ████████████ head ······ capacity
//! wrapped   0 █████ head ··· tail ████████ wrap_at · capacity
//! ```
//!
//! Space is taken back at the tail only, where an entry either goes or moves on to the head. So
//! there is no allocator, no fragmentation, and the bound in bytes is exact.

use crate::reply::{Stored, bound_ttls};
use crate::wire::{HEADER_LEN, WithoutOpt};

use super::table::POSITION_MAX;

/// Entries start at multiples of this many bytes, so that 32 bits of position reach 16 GiB.
const UNIT: usize = 4;

/// The largest ring whose every place has a position, in bytes.
pub(super) const CAPACITY_MAX: usize = POSITION_MAX as usize * UNIT;

/// Bytes of an entry's head:
///
/// | bytes | what |
/// |---|---|
/// | 0..4 | when it was put in, in ticks |
/// | 4..7 | time to live, in seconds, 20 bits; uses counted since it was put in, 4 bits |
/// | 7 | marks: the key's flags, visited, dead, set |
/// | 8..12 | upper half of the key's hash |
/// | 12..14 | length of the wire that follows |
///
/// Behind the wire stand the offsets of its TTLs, two bytes each, as many as its header counts
/// records.
const HEAD_LEN: usize = 14;

/// Marks: the key's flag byte, as it is.
const KEY_FLAGS: u8 = 0x07;
/// Marks: it was of use since it came to the head.
const VISITED: u8 = 0x08;
/// Marks: no longer in the table.
const DEAD: u8 = 0x10;
/// Marks: it was no answer of its own, but came as part of others.
const SET: u8 = 0x20;

/// The byte whose upper half counts uses, and one use there.
const USES_AT: usize = 6;
const ONE_USE: u8 = 0x10;

/// As many uses as can be counted.
pub(super) const USES_MAX: u8 = 15;

/// Below this is every time to live, in seconds.
const TTL_MASK: u32 = 0x000f_ffff;

/// Where an entry stands, in units.
pub(super) type Position = u32;

/// The fixed part of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) inserted_tick: u32,
    pub(super) ttl_secs: u32,
    pub(super) key_flags: u8,
    pub(super) visited: bool,
    pub(super) dead: bool,
    pub(super) is_set: bool,
    /// Uses since it was put in, as far as they are counted.
    pub(super) uses: u8,
    pub(super) tag: u32,
    wire_len: u16,
}

/// A place in the line of entries, oldest first, that stays right while entries come and go: who walks may stop and go on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Which entry, counted from the first one ever.
    number: u64,
    at: usize,
}

#[derive(Debug)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
    /// Where the older part ends, when the newer one has begun again at zero.
    wrap_at: Option<usize>,
    entries: usize,
    /// How many entries have left the tail: the number of the oldest.
    passed: u64,
}

impl Ring {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            // Zeroed memory comes from the system untouched: it costs when it is used.
            bytes: vec![0; capacity / UNIT * UNIT],
            head: 0,
            tail: 0,
            wrap_at: None,
            entries: 0,
            passed: 0,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes between tail and head, dead entries included.
    pub(super) fn used(&self) -> usize {
        match self.wrap_at {
            Some(wrap_at) => wrap_at - self.tail + self.head,
            None => self.head - self.tail,
        }
    }

    pub(super) fn clear(&mut self) {
        self.passed += self.entries as u64;
        (self.head, self.tail, self.wrap_at, self.entries) = (0, 0, None, 0);
    }

    /// The bytes an entry of this message takes.
    pub(super) fn entry_len(message: &WithoutOpt<'_>) -> usize {
        (HEAD_LEN + message.len() + 2 * message.record_count()).next_multiple_of(UNIT)
    }

    /// The bytes the entry at `position` takes.
    pub(super) fn len_at(&self, position: Position) -> usize {
        let at = position as usize * UNIT;
        let head = self.head_at(position);
        let stored = self.stored(at, head.wire_len);
        (HEAD_LEN + stored.wire().len() + 2 * stored.ttl_offsets().len()).next_multiple_of(UNIT)
    }

    /// The oldest entry.
    pub(super) fn oldest(&self) -> Option<Position> {
        (self.entries > 0).then_some((self.tail / UNIT) as Position)
    }

    /// Takes room for a new entry of `len` bytes at the head, if there is any.
    pub(super) fn claim(&mut self, len: usize) -> Option<Position> {
        let at = self.place(len)?;
        self.head = at + len;
        self.entries += 1;
        Some((at / UNIT) as Position)
    }

    /// Gives up the oldest entry.
    pub(super) fn drop_oldest(&mut self, len: usize) {
        self.advance_tail(len);
        self.entries -= 1;
        self.passed += 1;
        if self.entries == 0 {
            self.clear();
        }
    }

    /// Moves the oldest entry to the head, and tells where it stands then. Always possible: it
    /// brings its own room.
    pub(super) fn renew_oldest(&mut self, len: usize) -> Position {
        let from = self.tail;
        // Where there is no room, the ring is wrapped and the head close behind the tail.
        let at = self.place(len).unwrap_or(self.head);
        self.bytes.copy_within(from..from + len, at);
        self.head = at + len;
        self.advance_tail(len);
        // It left the tail, and is the newest now.
        self.passed += 1;
        (at / UNIT) as Position
    }

    /// Returns the entry at the cursor, which then stands at the next. `None` behind the newest. An entry that moved to
    /// the head meanwhile is seen there, seen before or not.
    pub(super) fn step(&self, cursor: &mut Cursor) -> Option<Position> {
        if cursor.number <= self.passed {
            *cursor = Cursor { number: self.passed, at: self.tail };
        }
        if cursor.number >= self.passed + self.entries as u64 {
            return None;
        }
        if self.wrap_at == Some(cursor.at) {
            cursor.at = 0;
        }
        let position = (cursor.at / UNIT) as Position;
        *cursor = Cursor { number: cursor.number + 1, at: cursor.at + self.len_at(position) };
        Some(position)
    }

    fn advance_tail(&mut self, len: usize) {
        self.tail += len;
        if self.wrap_at == Some(self.tail) {
            self.tail = 0;
            self.wrap_at = None;
        }
    }

    /// Where `len` bytes fit at the head. Begins anew at zero when they don't fit at the end.
    fn place(&mut self, len: usize) -> Option<usize> {
        if self.wrap_at.is_none() {
            if self.bytes.len() - self.head >= len {
                return Some(self.head);
            }
            self.wrap_at = Some(self.head);
            self.head = 0;
        }
        (self.tail - self.head >= len).then_some(self.head)
    }

    /// Writes an entry into the place that was claimed for it, every TTL brought into
    /// `ttl_least..=ttl_most`, the question replaced by `question`.
    pub(super) fn write(&mut self, position: Position, entry: NewEntry<'_>, message: &WithoutOpt<'_>) {
        let at = position as usize * UNIT;
        let wire_len = message.len();
        let ttl = entry.ttl_secs.to_le_bytes();
        let mark = |set: bool, mark: u8| if set { mark } else { 0 };
        let marks = entry.key_flags & KEY_FLAGS | mark(entry.visited, VISITED) | mark(entry.is_set, SET);
        let mut head = [0; HEAD_LEN];
        head[0..4].copy_from_slice(&entry.inserted_tick.to_le_bytes());
        head[4..8].copy_from_slice(&[ttl[0], ttl[1], ttl[2], marks]);
        head[8..12].copy_from_slice(&entry.tag.to_le_bytes());
        head[12..14].copy_from_slice(&(wire_len as u16).to_le_bytes());

        let len = Self::entry_len(message);
        let place = &mut self.bytes[at..at + len];
        let (head_place, rest) = place.split_at_mut(HEAD_LEN);
        head_place.copy_from_slice(&head);
        let (wire, offsets) = rest.split_at_mut(wire_len);
        wire[..message.head.len()].copy_from_slice(message.head);
        wire[message.head.len()..].copy_from_slice(message.tail);
        let [answers, authorities, additionals] = message.counts;
        let counts = [1, answers, authorities, additionals].map(u16::to_be_bytes);
        wire[4..HEADER_LEN].copy_from_slice(counts.as_flattened());
        wire[HEADER_LEN..HEADER_LEN + entry.question.len()].copy_from_slice(entry.question);
        let (least, most) = entry.ttl_bounds;
        bound_ttls(wire, message.ttl_offsets(), least, most);
        for (place, offset) in offsets.as_chunks_mut::<2>().0.iter_mut().zip(message.ttl_offsets()) {
            *place = offset.to_le_bytes();
        }
    }

    #[inline]
    pub(super) fn head_at(&self, position: Position) -> Head {
        let at = position as usize * UNIT;
        let mut head = [0; HEAD_LEN];
        head.copy_from_slice(&self.bytes[at..at + HEAD_LEN]);
        let marks = head[7];
        Head {
            inserted_tick: u32::from_le_bytes([head[0], head[1], head[2], head[3]]),
            ttl_secs: u32::from_le_bytes([head[4], head[5], head[6], 0]) & TTL_MASK,
            key_flags: marks & KEY_FLAGS,
            visited: marks & VISITED != 0,
            dead: marks & DEAD != 0,
            is_set: marks & SET != 0,
            uses: head[USES_AT] / ONE_USE,
            tag: u32::from_le_bytes([head[8], head[9], head[10], head[11]]),
            wire_len: u16::from_le_bytes([head[12], head[13]]),
        }
    }

    /// True when the entry is the answer to this question, asked with these flags.
    #[inline]
    pub(super) fn answers(&self, position: Position, question: &[u8], key_flags: u8) -> bool {
        let at = position as usize * UNIT;
        let start = at + HEAD_LEN + HEADER_LEN;
        // A name ends with its root label: no question is another's beginning.
        self.bytes[at + 7] & KEY_FLAGS == key_flags
            && self.bytes.get(start..start + question.len()) == Some(question)
    }

    #[inline]
    pub(super) fn stored_at(&self, position: Position, head: &Head) -> Stored<'_> {
        self.stored(position as usize * UNIT, head.wire_len)
    }

    #[inline]
    fn stored(&self, at: usize, wire_len: u16) -> Stored<'_> {
        let wire_at = at + HEAD_LEN;
        let offsets_at = wire_at + usize::from(wire_len);
        let wire = &self.bytes[wire_at..offsets_at];
        let count = |at: usize| usize::from(u16::from_be_bytes([wire[at], wire[at + 1]]));
        let records = count(6) + count(8) + count(10);
        let offsets = &self.bytes[offsets_at..offsets_at + 2 * records];
        Stored::new(wire, offsets.as_chunks::<2>().0)
    }

    /// Notes a use: marks the entry, and counts up to `uses_max` uses. Writes only what is new. Returns the count.
    #[inline]
    pub(super) fn note_use(&mut self, position: Position, head: &Head, uses_max: u8) -> u8 {
        let at = position as usize * UNIT;
        if !head.visited {
            self.bytes[at + 7] |= VISITED;
        }
        if head.uses < uses_max {
            self.bytes[at + USES_AT] += ONE_USE;
            return head.uses + 1;
        }
        head.uses
    }

    pub(super) fn unmark_visited(&mut self, position: Position) {
        self.bytes[position as usize * UNIT + 7] &= !VISITED;
    }

    /// Marks an entry as gone; its room comes back when it is the oldest.
    pub(super) fn mark_dead(&mut self, position: Position) {
        self.bytes[position as usize * UNIT + 7] |= DEAD;
    }
}

/// What goes into an entry beside its message.
#[derive(Debug, Clone, Copy)]
pub(super) struct NewEntry<'a> {
    /// The lower-cased question, as long as the message's.
    pub(super) question: &'a [u8],
    pub(super) key_flags: u8,
    pub(super) tag: u32,
    pub(super) inserted_tick: u32,
    /// Less than 2^20.
    pub(super) ttl_secs: u32,
    /// The bounds of each record's TTL, in seconds.
    pub(super) ttl_bounds: (u32, u32),
    pub(super) visited: bool,
    pub(super) is_set: bool,
}

//! The form in which a cache outlives its process: written at exit, read at the next start.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `FOREBAYC` |
//! | 2 | version: 1 |
//! | 8 | when it was saved, in seconds since 1970 |
//! | … | entries, oldest first |
//! | 2 | zero: no more entries |
//! | 8 | how many there were |
//! | 8 | checksum of all before |
//!
//! An entry is the length of its message (2), marks (1), its time to live in seconds (4), its age when saved in
//! sixteenths of a second (4), and the message. Numbers are little-endian. Messages are scanned again when they are
//! read, as if they came from the network: a file can be wrong, but it cannot do harm.
//!
//! The clock of the file is the wall's, since a monotonic one may begin anew; what was spent switched off counts.

use std::fmt;

use forebay_core::Instant;

use super::ring::{Cursor, NewEntry};
use super::{MessageCache, NotKept, TICKS_PER_SEC, age_of, tag, tick};
use crate::wire::{Answer, AnswerKind, HashSeed, QuestionKey, Scan};

const MAGIC: [u8; 8] = *b"FOREBAYC";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 18;
const END_LEN: usize = 18;
const ENTRY_HEAD_LEN: usize = 11;

/// Marks: the key's flags, as they are.
const KEY_FLAGS: u8 = 0x07;
/// Marks: it was of use lately.
const VISITED: u8 = 0x08;
/// Marks: it is a set.
const SET: u8 = 0x20;

/// So many bytes are written at a time, about.
const PIECE_LEN: usize = 256 * 1024;

/// Writes a file: [`begin`](Self::begin), [`save`](Self::save) for each cache, [`end`](Self::end).
#[derive(Debug)]
pub struct Saver {
    sum: u64,
    entries: u64,
    cursor: Cursor,
}

/// A file whose form and checksum are right.
#[derive(Debug, Clone, Copy)]
pub struct SavedFile<'a> {
    /// The entries, without what comes before and behind them.
    entries: &'a [u8],
    /// When it was saved, in seconds since 1970.
    pub saved_at: u64,
    /// How many entries it has.
    pub count: u64,
}

/// What became of the entries of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Put in.
    pub kept: u64,
    /// Left out because their time is over.
    pub over: u64,
    /// Left out because they are no messages that a cache would keep, or because others are there that last longer.
    pub left_out: u64,
}

/// Why a file is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileError {
    /// It does not begin as a saved cache does: it is something else.
    Foreign,
    /// Another version wrote it.
    Version {
        /// Which one.
        found: u16,
    },
    /// It ends too early, or goes on too long.
    Length,
    /// Its checksum is wrong: it was damaged, or not written to its end.
    Checksum,
    /// It was saved later than now: one of the two clocks is wrong, and the age of its entries unknown.
    Future {
        /// When it was saved, in seconds since 1970.
        saved_at: u64,
    },
}

impl Saver {
    /// Begins a file. `now` is in seconds since 1970.
    pub fn begin(now: u64, out: &mut Vec<u8>) -> Self {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&now.to_le_bytes());
        Self { sum: mix(0, &out[start..]), entries: 0, cursor: Cursor::default() }
    }

    /// Appends the next entries of a cache that are still of use, some 256 KiB of them. Returns whether these were its
    /// last; then the next cache may follow.
    pub fn save(&mut self, cache: &MessageCache, now: Instant, out: &mut Vec<u8>) -> bool {
        let end = out.len() + PIECE_LEN;
        while out.len() < end {
            let Some(position) = cache.ring.step(&mut self.cursor) else {
                self.cursor = Cursor::default();
                return true;
            };
            let head = cache.ring.head_at(position);
            if head.dead || cache.is_useless(&head, tick(now)) {
                continue;
            }
            let stored = cache.ring.stored_at(position, &head);
            let mark = |set: bool, mark: u8| if set { mark } else { 0 };
            let start = out.len();
            out.extend_from_slice(&(stored.wire().len() as u16).to_le_bytes());
            out.push(head.key_flags | mark(head.visited, VISITED) | mark(head.is_set, SET));
            out.extend_from_slice(&head.ttl_secs.to_le_bytes());
            out.extend_from_slice(&tick(now).wrapping_sub(head.inserted_tick).to_le_bytes());
            out.extend_from_slice(stored.wire());
            self.sum = mix(self.sum, &out[start..]);
            self.entries += 1;
        }
        false
    }

    /// Ends a file with entries of a test's own: message, marks, time to live, age.
    #[cfg(test)]
    pub(super) fn end_with(mut self, entries: &[(Vec<u8>, u8, u32, u32)], out: &mut Vec<u8>) {
        for (wire, marks, ttl_secs, age_ticks) in entries {
            let start = out.len();
            out.extend_from_slice(&(wire.len() as u16).to_le_bytes());
            out.push(*marks);
            out.extend_from_slice(&ttl_secs.to_le_bytes());
            out.extend_from_slice(&age_ticks.to_le_bytes());
            out.extend_from_slice(wire);
            self.sum = mix(self.sum, &out[start..]);
            self.entries += 1;
        }
        self.end(out);
    }

    /// Ends the file. Returns how many entries it has.
    pub fn end(self, out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.entries.to_le_bytes());
        let sum = mix(self.sum, &out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
        self.entries
    }
}

impl<'a> SavedFile<'a> {
    /// Checks a file: all of it. `now` is in seconds since 1970.
    ///
    /// # Errors
    ///
    /// [`FileError`] says what it is instead.
    pub fn read(bytes: &'a [u8], now: u64) -> Result<Self, FileError> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEAD_LEN>() else {
            let is_begun = !bytes.is_empty() && MAGIC.starts_with(&bytes[..bytes.len().min(MAGIC.len())]);
            return Err(if is_begun { FileError::Length } else { FileError::Foreign });
        };
        if !head.starts_with(&MAGIC) {
            return Err(FileError::Foreign);
        }
        let version = u16::from_le_bytes([head[8], head[9]]);
        if version != VERSION {
            return Err(FileError::Version { found: version });
        }
        let mut saved_at = [0; 8];
        saved_at.copy_from_slice(&head[10..]);
        let saved_at = u64::from_le_bytes(saved_at);

        let mut sum = mix(0, head);
        let mut left = rest;
        let mut count = 0;
        while let Some((entry, behind)) = split_entry(left) {
            sum = mix(sum, entry);
            count += 1;
            left = behind;
        }
        let end = left.first_chunk::<END_LEN>().ok_or(FileError::Length)?;
        if left.len() != END_LEN || end[..2] != [0; 2] {
            return Err(FileError::Length);
        }
        if end[2..10] != u64::to_le_bytes(count) || end[10..] != mix(sum, &end[..10]).to_le_bytes() {
            return Err(FileError::Checksum);
        }
        if saved_at > now {
            return Err(FileError::Future { saved_at });
        }
        Ok(Self { entries: &rest[..rest.len() - left.len()], saved_at, count })
    }
}

/// Takes an entry off the front; `None` at the end, or if it is cut.
fn split_entry(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u16::from_le_bytes(*bytes.first_chunk()?);
    if len == 0 {
        return None;
    }
    bytes.split_at_checked(ENTRY_HEAD_LEN + usize::from(len))
}

impl MessageCache {
    /// Puts those entries of a file in that are `wanted`, `away_secs` after it was saved. Where an entry is there
    /// already, the one that lasts longer stays.
    pub fn load(
        &mut self,
        file: &SavedFile<'_>,
        away_secs: u64,
        seed: &HashSeed,
        now: Instant,
        mut wanted: impl FnMut(&QuestionKey, &Answer<'_>) -> bool,
    ) -> Loaded {
        let mut loaded = Loaded::default();
        let mut scan = Scan::new();
        let mut key = QuestionKey::empty();
        let mut left = file.entries;
        while let Some((entry, behind)) = split_entry(left) {
            left = behind;
            let Some((head, wire)) = entry.split_first_chunk::<ENTRY_HEAD_LEN>() else { break };
            let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            let saved = SavedEntry { marks: head[2], ttl_secs: word(3), age_ticks: word(7) };
            match self.load_one(&saved, wire, away_secs, seed, now, &mut scan, &mut key, &mut wanted) {
                Ok(true) => loaded.kept += 1,
                Ok(false) => loaded.over += 1,
                Err(_) => loaded.left_out += 1,
            }
        }
        loaded
    }

    /// Puts one entry in. Returns false if its time is over.
    #[expect(clippy::too_many_arguments, reason = "two are memory to work in")]
    fn load_one(
        &mut self,
        saved: &SavedEntry,
        wire: &[u8],
        away_secs: u64,
        seed: &HashSeed,
        now: Instant,
        scan: &mut Scan,
        key: &mut QuestionKey,
        wanted: &mut impl FnMut(&QuestionKey, &Answer<'_>) -> bool,
    ) -> Result<bool, NotKept> {
        if self.ring.capacity() == 0 {
            return Err(NotKept::NoCache);
        }
        let answer = scan.scan_answer(wire).map_err(|_| NotKept::Rcode)?;
        let most = match answer.kind {
            AnswerKind::Positive => self.ttl_max,
            AnswerKind::NxDomain | AnswerKind::NoData => self.negative_ttl_max.min(self.ttl_max),
            AnswerKind::Referral => return Err(NotKept::Referral),
            AnswerKind::Error => return Err(NotKept::Rcode),
        };
        if answer.question.is_empty() || answer.is_truncated() {
            return Err(NotKept::OtherQuestion);
        }
        let ttl_secs = saved.ttl_secs.min(most);
        let away_ticks = away_secs.saturating_mul(u64::from(TICKS_PER_SEC));
        let age_ticks = u64::from(saved.age_ticks).saturating_add(away_ticks);
        let over = u64::from(ttl_secs + self.stale_max) * u64::from(TICKS_PER_SEC);
        if age_ticks >= over {
            return Ok(false);
        }
        // Below fourteen days of ticks.
        let age_ticks = age_ticks as u32;
        key.fill(answer.question, saved.marks & KEY_FLAGS, seed);
        if !wanted(key, &answer) {
            return Err(NotKept::OtherQuestion);
        }
        let left_ticks = i64::from(ttl_secs * TICKS_PER_SEC) - i64::from(age_ticks);
        if let Some((_, position)) = self.find(key) {
            let head = self.ring.head_at(position);
            let age = tick(now).wrapping_sub(head.inserted_tick);
            let is_set = saved.marks & SET != 0;
            let is_outranked = is_set && !head.is_set && age_of(&head, tick(now)) < head.ttl_secs;
            if i64::from(head.ttl_secs * TICKS_PER_SEC) - i64::from(age) >= left_ticks || is_outranked {
                return Err(NotKept::Outranked);
            }
        }
        let entry = NewEntry {
            question: key.question(),
            key_flags: key.flags(),
            tag: tag(key),
            inserted_tick: tick(now).wrapping_sub(age_ticks),
            ttl_secs,
            ttl_bounds: (0, most),
            visited: saved.marks & VISITED != 0,
            is_set: saved.marks & SET != 0,
        };
        self.put(key, entry, &answer, tick(now))?;
        Ok(true)
    }
}

struct SavedEntry {
    marks: u8,
    ttl_secs: u32,
    age_ticks: u32,
}

/// Goes on with a checksum over these bytes. Finds damage, not malice.
fn mix(sum: u64, bytes: &[u8]) -> u64 {
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let fold = |sum: u64, word: u64| {
        let product = u128::from(sum ^ word ^ STEP) * u128::from(STEP);
        (product as u64) ^ (product >> 64) as u64
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let sum =
        words.iter().fold(fold(sum, bytes.len() as u64), |sum, word| fold(sum, u64::from_le_bytes(*word)));
    fold(sum, u64::from_le_bytes(last))
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("not a saved cache"),
            Self::Version { found } => {
                write!(f, "saved by another version (form {found}, this one reads {VERSION})")
            }
            Self::Length => f.write_str("cut short or too long"),
            Self::Checksum => f.write_str("damaged: its checksum is wrong"),
            Self::Future { saved_at } => {
                write!(f, "saved in the future ({saved_at} s since 1970): a clock is wrong")
            }
        }
    }
}

impl std::error::Error for FileError {}

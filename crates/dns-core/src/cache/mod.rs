//! One worker's message cache: from a question to the bytes of its answer, bounded in bytes.
//!
//! Two pieces of memory of fixed size: a ring that holds the entries one behind the other, and a
//! table of 8-byte slots that finds them. New entries go to the ring's head; where room is
//! needed the oldest goes, unless it was of use since it came: then it moves to the head once
//! more (CLOCK, without a hand). A hit writes at most one byte, nothing is ever allocated after
//! the start, and the bound is exact because both pieces are of that size from the beginning —
//! the system gives their pages only as they are touched.
//!
//! An entry is 14 bytes, the message without its OPT record, and 2 bytes for each record, rounded
//! up to 4. The table takes a ninth of the whole. A 60-byte answer with one record thus takes
//! 76 bytes of ring, and 86 of the bound.
//!
//! An entry is either an answer as it came, or a *set*: what an answer to one question said of another (see
//! [`rrset`](crate::rrset)). Both have the form of a message and are found by their question, in the same memory; they
//! differ in trust: a set never takes the place of an answer that is still good (RFC 2181 §5.4.1).
//!
//! Entries whose time is over stay until their room is needed, and can be found by [`MessageCache::find_stale`] for as
//! long as the policy says (RFC 8767).

mod file;
mod flush;
mod ring;
mod table;

#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use forebay_core::Instant;

use crate::reply::Stored;
use crate::wire::{Answer, AnswerKind, QuestionKey, same_question};
pub use file::{FileError, Loaded, SavedFile, Saver};
pub use flush::Flush;
use ring::{CAPACITY_MAX, Head, NewEntry, Position, Ring, USES_MAX};
use table::{SLOT_LEN, Table};

/// A ninth of the bound is for the table: a slot for each 72 bytes.
const BYTES_PER_SLOT: usize = 72;

/// Times are kept in sixteenths of a second: 32 bits of them last for 8 years, after which an
/// entry that nobody touched could look young again.
const NANOS_PER_TICK: u64 = 1_000_000_000 / TICKS_PER_SEC as u64;
const TICKS_PER_SEC: u32 = 16;

/// Entries that move to the head for one insert. Each costs a copy (50 to 100 ns), and a cache whose every
/// entry was of use must not stop the worker for all of them.
const RENEWALS_MAX: u32 = 64;

/// An entry takes at most this part of the ring, so that one answer can't empty it.
const ENTRY_SHARE: usize = 4;

/// What may be kept, and for how long. Times are whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePolicy {
    /// Answers are kept no shorter, and no TTL of theirs is below. Default 0. Anything else
    /// serves records longer than their owner wants.
    pub ttl_min: Duration,
    /// Answers are kept no longer, and no TTL of theirs is above. Default one day; at most seven
    /// (RFC 8767 §4).
    pub ttl_max: Duration,
    /// Negative answers are kept no longer (RFC 2308 §5 recommends one to three hours). Default
    /// one hour.
    pub negative_ttl_max: Duration,
    /// How long an answer may still be found by [`MessageCache::find_stale`] after its time is over; zero is not at
    /// all. At most seven days. Default zero.
    pub stale_max: Duration,
    /// Up to how many uses of an answer are counted since it was put in: 15 at most. Default 0.
    pub uses_counted: u8,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self {
            ttl_min: Duration::ZERO,
            ttl_max: Duration::from_secs(86_400),
            negative_ttl_max: Duration::from_secs(3_600),
            stale_max: Duration::ZERO,
            uses_counted: 0,
        }
    }
}

/// Why a cache cannot be made so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheConfigError {
    /// The size is not zero and yet too small to be of use, or too large for 32-bit positions.
    Size {
        /// What was asked for, in bytes.
        bytes_max: usize,
    },
    /// A time is no whole number of seconds, or more than seven days.
    Time {
        /// Which one.
        field: &'static str,
        /// Its value.
        value: Duration,
    },
    /// The lower bound is above an upper one.
    Order {
        /// Which upper bound.
        field: &'static str,
        /// Its value.
        value: Duration,
        /// The lower bound.
        ttl_min: Duration,
    },
    /// More uses are to be counted than can be.
    Uses {
        /// How many.
        value: u8,
    },
}

/// A message cache. For one thread: everything takes `&mut self`.
#[derive(Debug)]
pub struct MessageCache {
    table: Table,
    ring: Ring,
    ttl_min: u32,
    ttl_max: u32,
    negative_ttl_max: u32,
    stale_max: u32,
    uses_counted: u8,
    counters: CacheCounters,
}

/// A cache's figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Entries there now, expired ones included.
    pub entries: u64,
    /// Bytes in use now: table, live entries, and those replaced whose room has not come back.
    pub bytes: u64,
    /// Those of the entries that are sets.
    pub sets: u64,
    /// Bytes that live sets take.
    pub set_bytes: u64,
    /// Lookups that found an answer.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Those of the misses that found an expired one.
    pub expired: u64,
    /// Answers put in.
    pub inserts: u64,
    /// Answers given up for others while they were still good.
    pub evictions: u64,
}

/// An answer found.
#[derive(Debug, Clone, Copy)]
pub struct Hit<'a> {
    /// The answer; see [`write_stored`](crate::reply::write_stored).
    pub stored: Stored<'a>,
    /// How long ago it was put in, in whole seconds.
    pub age_secs: u32,
    /// How long it is good from then on, in seconds; more than its age.
    pub ttl_secs: u32,
    /// How often it was found since, this time included, as far as [`CachePolicy::uses_counted`] says.
    pub uses: u8,
    /// Whether it is a set.
    pub is_set: bool,
}

/// An entry looked at without being used.
#[derive(Debug, Clone, Copy)]
pub struct Known<'a> {
    /// The entry.
    pub stored: Stored<'a>,
    /// How long ago it was put in, in seconds, begun ones counted whole.
    pub age_secs: u32,
    /// How long it is good from then on, in seconds; more than its age.
    pub ttl_secs: u32,
}

/// An answer found that may be past its time.
#[derive(Debug, Clone, Copy)]
pub struct Stale<'a> {
    /// The answer.
    pub stored: Stored<'a>,
    /// How long ago it was put in, in whole seconds.
    pub age_secs: u32,
    /// Whether its time is over. If not, another answer has brought it since it was last missed.
    pub is_over: bool,
}

/// What became of an answer that was to be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insert {
    /// It is kept for so many seconds.
    Kept {
        /// Time to live.
        ttl_secs: u32,
    },
    /// It is not kept.
    NotKept(NotKept),
}

/// Why an answer is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotKept {
    /// There is no cache.
    NoCache,
    /// It answers another question, or repeats none.
    OtherQuestion,
    /// It is not all there is to say (RFC 2181 §9).
    Truncated,
    /// Its response code says nothing about the name.
    Rcode,
    /// A referral: the upstream did not recurse.
    Referral,
    /// Negative, and without a SOA record to say for how long (RFC 2308 §5).
    NoSoa,
    /// Its time to live is zero: for this once only (RFC 1035 §3.2.1).
    ZeroTtl,
    /// It would take more than a quarter of the cache.
    TooLarge,
    /// It is a set, and an answer of its own is there and still good (RFC 2181 §5.4.1).
    Outranked,
}

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// An upstream answered this very question.
    Answer,
    /// It was part of the answer to another question.
    Set,
    /// It was joined of sets and answers whose times have been bounded and have run on.
    Joined,
}

impl MessageCache {
    /// The smallest size other than zero, in bytes.
    pub const BYTES_MIN: usize = 16 * 1024;

    /// Makes a cache that takes no more than `bytes_max` of memory, everything counted. Zero
    /// makes one that keeps nothing.
    ///
    /// # Errors
    ///
    /// [`CacheConfigError`] names the field and the value that cannot be.
    pub fn new(bytes_max: usize, policy: CachePolicy) -> Result<Self, CacheConfigError> {
        let ttl_min = whole_secs("ttl_min", policy.ttl_min)?;
        let ttl_max = whole_secs("ttl_max", policy.ttl_max)?;
        let negative_ttl_max = whole_secs("negative_ttl_max", policy.negative_ttl_max)?;
        for (field, value) in [("ttl_max", policy.ttl_max), ("negative_ttl_max", policy.negative_ttl_max)] {
            if value < policy.ttl_min {
                return Err(CacheConfigError::Order { field, value, ttl_min: policy.ttl_min });
            }
        }
        let stale_max = whole_secs("stale_max", policy.stale_max)?;
        if policy.uses_counted > USES_MAX {
            return Err(CacheConfigError::Uses { value: policy.uses_counted });
        }
        let usable = bytes_max.saturating_sub(size_of::<Self>());
        let slots = usable / BYTES_PER_SLOT;
        let capacity = usable - slots * SLOT_LEN;
        if bytes_max != 0 && bytes_max < Self::BYTES_MIN || capacity > CAPACITY_MAX {
            return Err(CacheConfigError::Size { bytes_max });
        }
        Ok(Self {
            table: Table::new(slots),
            ring: Ring::new(capacity),
            ttl_min,
            ttl_max,
            negative_ttl_max,
            stale_max,
            uses_counted: policy.uses_counted,
            counters: CacheCounters::default(),
        })
    }

    /// Finds the answer to a question, if there is one that is still good at `now`.
    #[inline]
    pub fn lookup(&mut self, key: &QuestionKey, now: Instant) -> Option<Hit<'_>> {
        let Some((_, position)) = self.find(key) else {
            self.counters.misses += 1;
            return None;
        };
        let head = self.ring.head_at(position);
        let age_secs = age_of(&head, tick(now));
        if age_secs >= head.ttl_secs {
            self.counters.misses += 1;
            self.counters.expired += 1;
            return None;
        }
        self.counters.hits += 1;
        let uses = self.ring.note_use(position, &head, self.uses_counted);
        let stored = self.ring.stored_at(position, &head);
        Some(Hit { stored, age_secs, ttl_secs: head.ttl_secs, uses, is_set: head.is_set })
    }

    /// Looks at the entry of a question, if it is still good at `now`, without counting or using it.
    pub fn peek(&self, key: &QuestionKey, now: Instant) -> Option<Known<'_>> {
        let (_, position) = self.find(key)?;
        let head = self.ring.head_at(position);
        let age_secs = tick(now).wrapping_sub(head.inserted_tick).div_ceil(TICKS_PER_SEC);
        (age_secs < head.ttl_secs).then(|| Known {
            stored: self.ring.stored_at(position, &head),
            age_secs,
            ttl_secs: head.ttl_secs,
        })
    }

    /// Finds the answer to a question, also when its time is over for no longer than [`CachePolicy::stale_max`].
    pub fn find_stale(&mut self, key: &QuestionKey, now: Instant) -> Option<Stale<'_>> {
        let (_, position) = self.find(key)?;
        let head = self.ring.head_at(position);
        if self.is_useless(&head, tick(now)) {
            return None;
        }
        // It is of use: it is not the next to go.
        self.ring.note_use(position, &head, 0);
        let age_secs = age_of(&head, tick(now));
        let stored = self.ring.stored_at(position, &head);
        Some(Stale { stored, age_secs, is_over: age_secs >= head.ttl_secs })
    }

    /// Puts an answer in, if it may be kept, in the place of an earlier one.
    ///
    /// Positive answers are kept for the smallest TTL of all their records, so that none is
    /// served beyond its own; negative ones as RFC 2308 §5 says. The policy bounds both.
    pub fn insert(&mut self, key: &QuestionKey, answer: &Answer<'_>, now: Instant) -> Insert {
        self.insert_from(Origin::Answer, key, answer, now)
    }

    /// Puts in a set: what the answer to another question said of this one, in the form of an answer. The rules and
    /// the policy are the same as for answers; an answer that is still good stays.
    pub(crate) fn insert_set(&mut self, key: &QuestionKey, set: &Answer<'_>, now: Instant) -> Insert {
        self.insert_from(Origin::Set, key, set, now)
    }

    /// Puts in an answer that was joined of entries of this cache, whose TTLs are those that are left.
    pub(crate) fn insert_joined(&mut self, key: &QuestionKey, joined: &Answer<'_>, now: Instant) -> Insert {
        self.insert_from(Origin::Joined, key, joined, now)
    }

    fn insert_from(
        &mut self,
        origin: Origin,
        key: &QuestionKey,
        answer: &Answer<'_>,
        now: Instant,
    ) -> Insert {
        match self.try_insert(origin, key, answer, now) {
            Ok(ttl_secs) => Insert::Kept { ttl_secs },
            Err(cause) => Insert::NotKept(cause),
        }
    }

    /// Forgets the answer to one question. True when there was one.
    pub fn remove(&mut self, key: &QuestionKey) -> bool {
        let Some((index, position)) = self.find(key) else {
            return false;
        };
        self.give_up(index, position);
        true
    }

    /// Forgets everything. Counters that count up stay.
    pub fn clear(&mut self) {
        self.table.clear();
        self.ring.clear();
        (self.counters.sets, self.counters.set_bytes) = (0, 0);
    }

    /// The figures as of now.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            entries: self.table.len() as u64,
            bytes: (self.fixed_bytes() + self.ring.used()) as u64,
            ..self.counters
        }
    }

    /// All the memory it can ever use, in bytes: never more than it was made with.
    pub fn bytes_bound(&self) -> usize {
        self.fixed_bytes() + self.ring.capacity()
    }

    fn fixed_bytes(&self) -> usize {
        if self.ring.capacity() == 0 {
            return 0;
        }
        size_of::<Self>() + self.table.slots() * SLOT_LEN
    }

    #[inline]
    fn find(&self, key: &QuestionKey) -> Option<(usize, Position)> {
        let (question, flags) = (key.question(), key.flags());
        self.table.find(tag(key), |position| self.ring.answers(position, question, flags))
    }

    fn try_insert(
        &mut self,
        origin: Origin,
        key: &QuestionKey,
        answer: &Answer<'_>,
        now: Instant,
    ) -> Result<u32, NotKept> {
        if self.ring.capacity() == 0 {
            return Err(NotKept::NoCache);
        }
        if !same_question(answer.question, key.question()) {
            return Err(NotKept::OtherQuestion);
        }
        let (ttl_secs, ttl_bounds) = match origin {
            Origin::Joined => self.time_left(answer)?,
            Origin::Answer | Origin::Set => self.time_to_live(answer)?,
        };
        let entry = NewEntry {
            question: key.question(),
            key_flags: key.flags(),
            tag: tag(key),
            inserted_tick: tick(now),
            ttl_secs,
            ttl_bounds,
            visited: false,
            is_set: origin != Origin::Answer,
        };
        self.put(key, entry, answer, tick(now))?;
        Ok(ttl_secs)
    }

    /// Puts an entry into the place of the one before, or into a new one.
    fn put(
        &mut self,
        key: &QuestionKey,
        mut entry: NewEntry<'_>,
        answer: &Answer<'_>,
        now_tick: u32,
    ) -> Result<(), NotKept> {
        let message = answer.without_opt();
        let len = Ring::entry_len(&message);
        if len > self.ring.capacity() / ENTRY_SHARE {
            return Err(NotKept::TooLarge);
        }
        let before = self.find(key);
        if let Some((_, position)) = before {
            let head = self.ring.head_at(position);
            // RFC 2181 §5.4.1: what is trusted less does not replace what is trusted more.
            if entry.is_set && !head.is_set && age_of(&head, now_tick) < head.ttl_secs {
                return Err(NotKept::Outranked);
            }
        }
        self.counters.inserts += 1;
        if let Some((index, position)) = before {
            // A refreshed answer is mostly as long as the old one, and takes its place.
            if self.ring.len_at(position) == len {
                entry.visited |= self.ring.head_at(position).visited;
                self.uncount(position);
                self.ring.write(position, entry, &message);
                self.count_set(entry.is_set, len);
                return Ok(());
            }
            self.give_up(index, position);
        }
        let position = self.make_room(len, now_tick);
        self.ring.write(position, entry, &message);
        self.table.insert(entry.tag, position);
        self.count_set(entry.is_set, len);
        Ok(())
    }

    /// Takes an entry out of the table; its room comes back when it is the oldest.
    fn give_up(&mut self, index: usize, position: Position) {
        self.uncount(position);
        self.table.remove(index);
        self.ring.mark_dead(position);
    }

    fn count_set(&mut self, is_set: bool, len: usize) {
        if is_set {
            self.counters.sets += 1;
            self.counters.set_bytes += len as u64;
        }
    }

    /// An entry goes: counts it out.
    fn uncount(&mut self, position: Position) {
        if self.ring.head_at(position).is_set {
            self.counters.sets -= 1;
            self.counters.set_bytes -= self.ring.len_at(position) as u64;
        }
    }

    /// Whether an entry can be of no more use: its time is over, and that of serving it stale too.
    fn is_useless(&self, head: &Head, now_tick: u32) -> bool {
        age_of(head, now_tick) >= head.ttl_secs + self.stale_max
    }

    /// How long a joined answer is kept: for the smallest of the times that are left, none of which is changed.
    fn time_left(&self, joined: &Answer<'_>) -> Result<(u32, (u32, u32)), NotKept> {
        match joined.ttl_min.unwrap_or(0).min(self.ttl_max) {
            0 => Err(NotKept::ZeroTtl),
            ttl => Ok((ttl, (0, self.ttl_max))),
        }
    }

    /// How long an answer is kept, and the least and the most that a TTL in it may be.
    fn time_to_live(&self, answer: &Answer<'_>) -> Result<(u32, (u32, u32)), NotKept> {
        if answer.is_truncated() {
            return Err(NotKept::Truncated);
        }
        let (ttl, most) = match answer.kind {
            AnswerKind::Positive => (answer.ttl_min, self.ttl_max),
            AnswerKind::NxDomain | AnswerKind::NoData => {
                let negative = answer.negative_ttl.ok_or(NotKept::NoSoa)?;
                let ttl = answer.ttl_min.unwrap_or(negative).min(negative);
                (Some(ttl), self.negative_ttl_max.min(self.ttl_max))
            }
            AnswerKind::Referral => return Err(NotKept::Referral),
            AnswerKind::Error => return Err(NotKept::Rcode),
        };
        match ttl.unwrap_or(0).max(self.ttl_min).min(most) {
            0 => Err(NotKept::ZeroTtl),
            // RFC 2308 §5: what a negative answer shows is no longer than it holds.
            ttl if answer.kind == AnswerKind::Positive => Ok((ttl, (self.ttl_min, most))),
            ttl => Ok((ttl, (self.ttl_min, ttl))),
        }
    }

    /// Takes room for `len` bytes and a slot, at the cost of the oldest entries.
    fn make_room(&mut self, len: usize, now_tick: u32) -> Position {
        let mut renewals_left = RENEWALS_MAX;
        loop {
            if !self.table.is_full()
                && let Some(position) = self.ring.claim(len)
            {
                return position;
            }
            self.retire_oldest(now_tick, &mut renewals_left);
        }
    }

    /// Gives the oldest entry up, or moves it to the head if it was of use.
    fn retire_oldest(&mut self, now_tick: u32, renewals_left: &mut u32) {
        // An empty ring has room for anything that passed the size check.
        let Some(position) = self.ring.oldest() else {
            debug_assert!(false, "no room in an empty ring");
            self.clear();
            return;
        };
        let head = self.ring.head_at(position);
        let len = self.ring.len_at(position);
        if head.dead {
            self.ring.drop_oldest(len);
            return;
        }
        let Some((index, _)) = self.table.find(head.tag, |found| found == position) else {
            debug_assert!(false, "a live entry that the table does not know");
            self.ring.drop_oldest(len);
            return;
        };
        if head.visited && !self.is_useless(&head, now_tick) && *renewals_left > 0 {
            *renewals_left -= 1;
            self.ring.unmark_visited(position);
            let moved_to = self.ring.renew_oldest(len);
            self.table.relocate(index, head.tag, moved_to);
            return;
        }
        if age_of(&head, now_tick) < head.ttl_secs {
            self.counters.evictions += 1;
        }
        self.uncount(position);
        self.table.remove(index);
        self.ring.drop_oldest(len);
    }
}

fn whole_secs(field: &'static str, value: Duration) -> Result<u32, CacheConfigError> {
    const MOST: u32 = 7 * 86_400;
    match u32::try_from(value.as_secs()) {
        Ok(secs) if secs <= MOST && value.subsec_nanos() == 0 => Ok(secs),
        _ => Err(CacheConfigError::Time { field, value }),
    }
}

/// The upper half of the hash: chooses the slot and is compared before the entry is.
#[inline]
fn tag(key: &QuestionKey) -> u32 {
    (key.hash() >> 32) as u32
}

/// How long ago an entry was put in, in whole seconds.
#[inline]
fn age_of(head: &Head, now_tick: u32) -> u32 {
    now_tick.wrapping_sub(head.inserted_tick) / TICKS_PER_SEC
}

/// Sixteenths of a second; wraps after 8 years, which differences don't mind.
#[inline]
fn tick(now: Instant) -> u32 {
    (now.as_nanos() / NANOS_PER_TICK) as u32
}

impl NotKept {
    /// A short name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoCache => "no_cache",
            Self::OtherQuestion => "other_question",
            Self::Truncated => "truncated",
            Self::Rcode => "rcode",
            Self::Referral => "referral",
            Self::NoSoa => "no_soa",
            Self::ZeroTtl => "zero_ttl",
            Self::TooLarge => "too_large",
            Self::Outranked => "outranked",
        }
    }
}

impl fmt::Display for CacheConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { bytes_max } => write!(
                f,
                "cache size of {bytes_max} bytes: it must be 0 (no cache) or from {} to {} bytes",
                MessageCache::BYTES_MIN,
                CAPACITY_MAX
            ),
            Self::Time { field, value } => {
                write!(f, "{field} of {value:?}: it must be whole seconds, 7 days at most")
            }
            Self::Order { field, value, ttl_min } => {
                write!(f, "{field} of {value:?} is below ttl_min of {ttl_min:?}")
            }
            Self::Uses { value } => write!(f, "{value} uses to be counted: at most {USES_MAX}"),
        }
    }
}

impl std::error::Error for CacheConfigError {}

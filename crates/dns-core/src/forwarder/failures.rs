//! Failures remembered for a while (RFC 9520), so that a question that nobody could answer is not asked again and again.
//!
//! ```text
//!   an endpoint answers SERVFAIL, REFUSED … or nobody answers ──▶ kept for `ttl`, twice as long each time, up to `ttl_max`
//!   asked again meanwhile: other endpoints are asked; when all have failed, the reply is SERVFAIL at once
//!   answered after all ──▶ forgotten of that endpoint
//! ```
//!
//! A question is remembered, not an endpoint: refused connections and failures of this machine say nothing of it, and
//! are left to back-off and breaker.

use std::time::Duration;

use forebay_core::Instant;
use hashbrown::HashTable;

use crate::wire::QuestionKey;

/// Questions remembered per worker: a fresh failure takes the place of the oldest. A flood of names that fail costs less
/// than a megabyte, and a minute of an ordinary resolver's failures fits.
const FAILURES_MAX: usize = 4096;
/// RFC 9520 §3.2: a failure is cached for a second at least, and for five minutes at most.
pub(super) const TTL_MIN: Duration = Duration::from_secs(1);
/// See [`TTL_MIN`].
pub(super) const TTL_MAX: Duration = Duration::from_secs(300);

/// What is remembered of one question.
#[derive(Debug)]
struct Failure {
    hash: u64,
    question: Box<[u8]>,
    /// The endpoints that failed, as bits by their places in the question's upstream.
    endpoints: u64,
    until: Instant,
    /// For how long it was remembered last.
    span: Duration,
}

/// The questions that failed lately.
#[derive(Debug)]
pub(crate) struct Failures {
    ttl: Duration,
    ttl_max: Duration,
    entries: Vec<Failure>,
    /// The next entry to be replaced when there are too many.
    oldest: usize,
    index: HashTable<u32>,
}

/// How sure it is that asking again is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// The endpoint said so: if it does again, it is believed for longer.
    Answered,
    /// It said nothing. When the network is back, names must not stay dead for long.
    Silent,
}

impl Failures {
    /// Remembers for `ttl` at first; zero is never.
    pub(crate) const fn new(ttl: Duration, ttl_max: Duration) -> Self {
        Self { ttl, ttl_max, entries: Vec::new(), oldest: 0, index: HashTable::new() }
    }

    /// The endpoints that failed this question lately, as bits.
    pub(crate) fn recall(&self, now: Instant, key: &QuestionKey) -> u64 {
        if self.entries.is_empty() {
            return 0;
        }
        let failure = self.find(key).map(|at| &self.entries[at as usize]);
        failure.filter(|failure| now < failure.until).map_or(0, |failure| failure.endpoints)
    }

    /// How many questions are remembered, those whose time is over included.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// These endpoints have failed this question.
    pub(crate) fn note(&mut self, now: Instant, key: &QuestionKey, endpoints: u64, how: Certainty) {
        if self.ttl.is_zero() || endpoints == 0 {
            return;
        }
        let Some(at) = self.find(key) else {
            self.insert(now, key, endpoints);
            return;
        };
        let (ttl, ttl_max) = (self.ttl, self.ttl_max);
        let failure = &mut self.entries[at as usize];
        if now < failure.until {
            failure.endpoints |= endpoints;
            return;
        }
        // It failed again, soon after it was let pass.
        let again = how == Certainty::Answered && now < failure.until + failure.span;
        failure.span = if again { (failure.span * 2).min(ttl_max) } else { ttl };
        failure.until = now + failure.span;
        failure.endpoints = endpoints;
    }

    /// These endpoints have answered the question.
    pub(crate) fn forgive(&mut self, key: &QuestionKey, endpoints: u64) {
        if self.entries.is_empty() {
            return;
        }
        if let Some(at) = self.find(key) {
            let failure = &mut self.entries[at as usize];
            failure.endpoints &= !endpoints;
            if failure.endpoints == 0 {
                // Its place is used again in its turn.
                (failure.until, failure.span) = (Instant::ZERO, Duration::ZERO);
            }
        }
    }

    fn find(&self, key: &QuestionKey) -> Option<u32> {
        let same = |at: &u32| {
            let failure = &self.entries[*at as usize];
            failure.hash == key.hash() && *failure.question == *key.as_bytes()
        };
        self.index.find(key.hash(), same).copied()
    }

    fn insert(&mut self, now: Instant, key: &QuestionKey, endpoints: u64) {
        let failure = Failure {
            hash: key.hash(),
            question: key.as_bytes().into(),
            endpoints,
            until: now + self.ttl,
            span: self.ttl,
        };
        let at = if self.entries.len() < FAILURES_MAX {
            self.entries.push(failure);
            self.entries.len() - 1
        } else {
            let at = self.oldest;
            self.oldest = (at + 1) % FAILURES_MAX;
            let before = std::mem::replace(&mut self.entries[at], failure);
            if let Ok(entry) = self.index.find_entry(before.hash, |&other| other as usize == at) {
                entry.remove();
            }
            at
        };
        let entries = &self.entries;
        self.index.insert_unique(key.hash(), at as u32, |&other| entries[other as usize].hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{name, seed};

    const S: Duration = Duration::from_secs(1);

    fn key(n: usize) -> QuestionKey {
        let mut key = QuestionKey::empty();
        key.fill(&[name(&format!("n{n}.test")), vec![0, 1, 0, 1]].concat(), QuestionKey::RD, &seed());
        key
    }

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(1_000_000 + millis)
    }

    #[test]
    fn a_failure_is_remembered_for_its_time_per_endpoint() {
        let mut failures = Failures::new(S * 5, S * 30);
        failures.note(at(0), &key(1), 0b01, Certainty::Answered);
        failures.note(at(1000), &key(1), 0b10, Certainty::Answered);
        assert_eq!(failures.recall(at(4999), &key(1)), 0b11);
        assert_eq!(failures.recall(at(4999), &key(2)), 0, "another question");
        assert_eq!(failures.recall(at(5000), &key(1)), 0);
    }

    #[test]
    fn who_fails_again_and_says_so_is_believed_for_longer_up_to_a_bound() {
        let mut failures = Failures::new(S * 5, S * 30);
        let mut now = at(0);
        let mut spans = Vec::new();
        for _ in 0..6 {
            failures.note(now, &key(1), 1, Certainty::Answered);
            let began = now;
            while failures.recall(now, &key(1)) != 0 {
                now = now + S;
            }
            spans.push(now.saturating_duration_since(began).as_secs());
        }
        assert_eq!(spans, [5, 10, 20, 30, 30, 30]);
        failures.note(now, &key(1), 1, Certainty::Silent);
        assert_eq!(failures.recall(now + S * 5, &key(1)), 0, "silence is believed no longer than at first");
        failures.note(now + S * 100, &key(1), 1, Certainty::Answered);
        assert_eq!(failures.recall(now + S * 105, &key(1)), 0, "what was long ago does not count");
    }

    #[test]
    fn an_answer_ends_it() {
        let mut failures = Failures::new(S * 5, S * 30);
        failures.note(at(0), &key(1), 1, Certainty::Answered);
        failures.note(at(5000), &key(1), 1, Certainty::Answered);
        failures.forgive(&key(1), 1);
        assert_eq!(failures.recall(at(5001), &key(1)), 0);
        failures.note(at(5002), &key(1), 1, Certainty::Answered);
        assert_eq!(failures.recall(at(10_001), &key(1)), 1);
        assert_eq!(failures.recall(at(10_002), &key(1)), 0, "from the beginning");
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_goes() {
        let mut failures = Failures::new(S * 5, S * 30);
        (0..3 * FAILURES_MAX).for_each(|n| failures.note(at(0), &key(n), 1, Certainty::Answered));
        assert_eq!((failures.len(), failures.entries.len()), (FAILURES_MAX, FAILURES_MAX));
        assert_eq!(failures.recall(at(1), &key(3 * FAILURES_MAX - 1)), 1);
        assert_eq!(failures.recall(at(1), &key(0)), 0);
    }

    #[test]
    fn zero_remembers_nothing() {
        let mut failures = Failures::new(Duration::ZERO, S);
        failures.note(at(0), &key(1), 1, Certainty::Answered);
        assert_eq!(failures.recall(at(0), &key(1)), 0);
    }
}

//! What is known without asking: answers joined of others, and keeping what they are joined of.

use std::time::Duration;

use forebay_core::Instant;

use super::errors::{count_reply, terms};
use super::{Client, Forwarder, How, Outbox};
use crate::cache::{Flush, Loaded, SavedFile, Saver};
use crate::reply::write_fresh;
use crate::rrset::Store;
use crate::wire::{Answer, Query};

impl Forwarder {
    /// Answers a query that the cache has no answer for, if one can be joined of what it has.
    pub(super) fn answer_known(
        &mut self,
        now: Instant,
        client: &Client,
        query: &Query<'_>,
        out: &mut impl Outbox,
    ) -> bool {
        let Self { sets: Some(sets), front, key, cache, seed, .. } = self else { return false };
        let upstream = front.route_of(key.name()).unwrap_or(0);
        // A name that is answered here, or by another upstream, may be answered otherwise.
        let is_ours = |name: &[u8]| front.asked_about(name) == Some(upstream);
        let Some(answer) = sets.join(&Store { cache, seed, now }, key, is_ours) else { return false };
        if front.objects_to(upstream, key.name(), &answer) {
            return false;
        }
        // It is good for as long as each of its parts: to keep it is no more than a short cut.
        let _ = cache.insert_joined(key, &answer, now);
        self.counters.hits += 1;
        self.counters.known += 1;
        let terms = terms(client, &query.asked, self.udp_size);
        let counters = &mut self.counters;
        out.tell(How::Cached, Duration::ZERO);
        out.reply(client, |buffer| {
            count_reply(counters, write_fresh(buffer, &answer, &query.asked, &terms));
        });
        true
    }

    /// Keeps what the answer to a flight says of other questions.
    pub(super) fn learn(&mut self, now: Instant, flight: u32, answer: &Answer<'_>) {
        if !answer.has_alias {
            return;
        }
        let Self { sets: Some(sets), front, flights, cache, seed, .. } = self else { return };
        let this = flights.flight(flight);
        // What is kept of a name is found before it is looked whether it is answered here.
        let is_ours = |name: &[u8], set: &Answer<'_>| {
            front.asked_about(name) == Some(this.upstream) && !front.objects_to(this.upstream, name, set)
        };
        sets.learn(&mut Store { cache, seed, now }, &this.key, answer, is_ours);
    }

    /// Forgets cached answers: looks at `entries_max` entries, and returns whether that was all. If not, call it again
    /// with the same `flush`: so a large cache is gone through without anybody waiting.
    ///
    /// What is in flight meanwhile is kept when its answer comes.
    pub fn flush_some(&mut self, flush: &mut Flush, entries_max: usize) -> bool {
        let before = flush.flushed();
        let is_done = self.cache.flush_some(flush, entries_max);
        self.counters.flushed += flush.flushed() - before;
        is_done
    }

    /// Appends the next piece of the cache to a file; see [`Saver::save`].
    pub fn save(&self, now: Instant, saver: &mut Saver, out: &mut Vec<u8>) -> bool {
        saver.save(&self.cache, now, out)
    }

    /// Puts the entries of a file into the cache, `away_secs` after it was saved; what would be answered here now, or
    /// kept from clients, is left out.
    pub fn load(&mut self, now: Instant, file: &SavedFile<'_>, away_secs: u64) -> Loaded {
        let Self { cache, front, seed, .. } = self;
        cache.load(file, away_secs, seed, now, |key, answer| {
            front
                .asked_about(key.name())
                .is_some_and(|upstream| !front.objects_to(upstream, key.name(), answer))
        })
    }
}

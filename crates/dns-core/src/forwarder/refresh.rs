//! Answers past their time, and answers shortly before (RFC 8767, prefetch).
//!
//! A query that finds only a stale answer goes upstream like any other. The stale answer is given when the upstream
//! attempts fail, or have taken too long; they go on then, with nobody waiting. After a failure the name is left alone
//! for a while, and what is stale is given at once. A name that is asked again shortly before its time is over is
//! asked for in the background, so that nobody has to wait for it at all.

use std::time::Duration;

use forebay_core::Instant;

use super::config::{PrefetchConfig, StaleConfig};
use super::errors::{count_reply, terms};
use super::wheel::Wheel;
use super::{Client, Forwarder, How, Outbox};
use crate::cache::{Hit, Stale};
use crate::reply::{Fit, Terms, write_stale, write_stored};
use crate::wire::{Asked, Query};

/// Names whose refresh failed lately, at most about: one more takes the place of another, which then is asked for again.
const FAILURES: usize = 1 << 14;

/// Whether those who wait for a flight can be given a stale answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StaleState {
    /// Nobody has looked. Left when the first waiter comes.
    Unknown,
    /// There is none.
    Absent,
    /// There is one, to be given when the timer fires. Left then, or when the flight fails.
    Armed,
    /// It was given. Whoever comes to this flight gets it at once.
    Given,
}

/// What there is to know about refreshing.
#[derive(Debug)]
pub(super) struct Refresh {
    stale: Option<StaleConfig>,
    /// When those who wait for a flight are given what is stale; by flight.
    timers: Wheel,
    failures: Failures,
    prefetch: Option<PrefetchConfig>,
    /// Uses from which on an answer is asked for early; none is ever used so often if that is off.
    uses: u8,
    /// Of a hundred parts of its time, those that must have gone by.
    age_percent: u64,
    /// Flights that nobody began by waiting.
    pub(super) running: u32,
}

impl Refresh {
    pub(super) fn new(now: Instant, stale: Option<StaleConfig>, prefetch: Option<PrefetchConfig>) -> Self {
        Self {
            stale,
            timers: Wheel::new(now),
            failures: Failures::default(),
            prefetch,
            uses: prefetch.map_or(u8::MAX, |prefetch| prefetch.uses),
            age_percent: 100 - prefetch.map_or(0, |prefetch| u64::from(prefetch.below_percent)),
            running: 0,
        }
    }

    /// Whether an answer that was found ought to be asked for again before its time is over.
    #[inline]
    pub(super) fn is_due(&self, hit: &Hit<'_>) -> bool {
        hit.uses >= self.uses && u64::from(hit.age_secs) * 100 >= u64::from(hit.ttl_secs) * self.age_percent
    }

    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(super) fn forget(&mut self, flight: u32) {
        self.timers.cancel(flight);
    }

    /// How long a name is left alone after a failure.
    fn recheck(&self) -> Duration {
        self.stale.map_or(StaleConfig::default().recheck, |stale| stale.recheck)
    }
}

impl Forwarder {
    /// Answers a query with what is stale if there is no point in waiting for something better.
    pub(super) fn answer_stale(
        &mut self,
        now: Instant,
        flight: Option<u32>,
        client: &Client,
        query: &Query<'_>,
        out: &mut impl Outbox,
    ) -> bool {
        if self.refresh.stale.is_none() {
            return false;
        }
        let is_hopeless = self.is_overloaded()
            || match flight {
                Some(flight) => self.flights.flight(flight).stale == StaleState::Given,
                // RFC 8767 §5: the failure recheck timer.
                None => self.refresh.failures.is_recent(self.key.hash(), now) || self.has_failed(now),
            };
        is_hopeless && self.reply_stale(now, client, query, out)
    }

    /// Answers a query with what is stale. Returns whether there was anything.
    pub(super) fn reply_stale(
        &mut self,
        now: Instant,
        client: &Client,
        query: &Query<'_>,
        out: &mut impl Outbox,
    ) -> bool {
        let Some(stale) = self.refresh.stale else { return false };
        let Some(found) = self.cache.find_stale(&self.key, now) else { return false };
        let terms = terms(client, &query.asked, self.udp_size);
        let counters = &mut self.counters;
        counters.stale += 1;
        out.tell(how(&found), Duration::ZERO);
        out.reply(client, |buffer| {
            count_reply(counters, write_found(buffer, &found, &query.asked, stale.ttl, &terms));
        });
        true
    }

    /// Somebody waits for a flight: sets the time at which a stale answer is good enough, if there is one.
    pub(super) fn arm_stale(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let Some(stale) = self.refresh.stale else { return };
        let this = self.flights.flight_mut(flight);
        if this.stale != StaleState::Unknown {
            return;
        }
        if self.cache.find_stale(&this.key, now).is_none() {
            this.stale = StaleState::Absent;
        } else if stale.answer_after.is_zero() {
            self.give_stale(now, flight, out);
        } else {
            this.stale = StaleState::Armed;
            self.refresh.timers.set(flight, now + stale.answer_after);
        }
    }

    /// Gives stale answers to those who have waited long enough (RFC 8767 §5: the client response timer).
    pub(super) fn give_stale_answers(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(flight) = self.refresh.timers.pop(now) {
            if self.flights.is_in_use(flight) {
                self.give_stale(now, flight, out);
            }
        }
    }

    /// Gives everybody who waits for a flight what is stale. Returns whether there was anything.
    fn give_stale(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) -> bool {
        let Some(stale) = self.refresh.stale else { return false };
        let Some(found) = self.cache.find_stale(&self.flights.flight(flight).key, now) else { return false };
        let began = self.flights.flight(flight).deadline - self.query_timeout;
        let took = now.saturating_duration_since(began);
        let (udp_size, counters) = (self.udp_size, &mut self.counters);
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, udp_size);
            counters.stale += 1;
            out.tell(how(&found), took);
            out.reply(&waiter.client, |buffer| {
                count_reply(counters, write_found(buffer, &found, &asked, stale.ttl, &terms));
            });
        }
        self.flights.flight_mut(flight).stale = StaleState::Given;
        true
    }

    /// No upstream had an answer: gives those who wait what is stale, and notes to leave the name alone for a while.
    pub(super) fn fall_back(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let is_refresh = self.give_stale(now, flight, out) || self.flights.flight(flight).is_background;
        if is_refresh {
            self.counters.refresh_failures += 1;
            let until = now + self.refresh.recheck();
            self.refresh.failures.note(self.flights.flight(flight).key.hash(), until);
        }
    }

    /// An upstream had an answer, and it is not kept: if that was for nobody, the name is left alone for a while, or every
    /// use of the old answer would ask again.
    pub(super) fn note_unkept(&mut self, now: Instant, flight: u32) {
        let this = self.flights.flight(flight);
        if this.is_background {
            self.refresh.failures.note(this.key.hash(), now + self.refresh.recheck());
        }
    }

    /// Asks in the background for what was just given from the cache, unless that is being done or has just failed.
    #[cold]
    pub(super) fn prefetch(&mut self, now: Instant, out: &mut impl Outbox) {
        let Some(prefetch) = self.refresh.prefetch else { return };
        if self.refresh.running >= prefetch.running_max
            || self.is_overloaded()
            || self.flights.find(&self.key).is_some()
            || self.refresh.failures.is_recent(self.key.hash(), now)
        {
            return;
        }
        self.counters.prefetches += 1;
        self.refresh.running += 1;
        let flight = self.begin_flight(now);
        self.flights.flight_mut(flight).is_background = true;
        self.launch(now, flight, out);
        self.process(now, out);
    }
}

fn how(found: &Stale<'_>) -> How {
    if found.is_over { How::Stale } else { How::Cached }
}

/// Writes what was found: as stale, or, if another answer has brought it meanwhile, as what it is.
fn write_found(out: &mut Vec<u8>, found: &Stale<'_>, asked: &Asked<'_>, ttl: Duration, terms: &Terms) -> Fit {
    if found.is_over {
        write_stale(out, &found.stored, asked, ttl.as_secs() as u32, terms)
    } else {
        write_stored(out, &found.stored, asked, found.age_secs, terms)
    }
}

/// Which names failed lately, by the hash of their questions. Its memory is taken when the first fails, and is of fixed
/// size: a name that is forgotten too early is asked for once more.
#[derive(Debug, Default)]
struct Failures {
    slots: Vec<(u64, Instant)>,
}

impl Failures {
    fn is_recent(&self, hash: u64, now: Instant) -> bool {
        self.slots.get(hash as usize % FAILURES).is_some_and(|(noted, until)| *noted == hash && now < *until)
    }

    fn note(&mut self, hash: u64, until: Instant) {
        if self.slots.is_empty() {
            self.slots = vec![(0, Instant::ZERO); FAILURES];
        }
        self.slots[hash as usize % FAILURES] = (hash, until);
    }
}

//! One worker's forwarder: every decision between a client's query and its reply.
//!
//! ```text
//!  handle_query ──▶ cache ──hit──▶ reply
//!                     │ miss
//!                     ▼
//!                  Flight ──▶ Attempt ──▶ Engine ──▶ transmit … handle_answer ──▶ cache, replies to all who wait
//!                     ▲          │  refused, failed, late
//!                     └──────────┘
//! ```
//!
//! Listeners and upstream transports only carry bytes. What goes out at once is written straight into the caller's
//! [`Outbox`]; connections to make and to close come out of [`Forwarder::poll_link`]. A question is asked once however
//! many clients wait for it, and each gets its own id and letter case back. An answer is taken only from the
//! connection that the query went out on, under its id, with its question (RFC 5452 §9.1).

mod config;
mod exchange;
mod flight;
mod wheel;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use forebay_core::{
    Acquired, Action, Balance, Blame, Cause, EndpointId, Engine, Event, Histogram, Instant, Lease, Outcome,
    Rng, SlotId, Snapshot, TicketId,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

pub use self::config::{Carrier, ForwarderConfig, ForwarderConfigError, Link, Strategy, Upstream};
use self::exchange::Exchanges;
pub use self::flight::Client;
use self::flight::{AttemptState, Flights};
use self::wheel::Wheel;
use crate::cache::{CacheCounters, MessageCache};
use crate::reply::{Fit, Terms, write_error, write_fresh, write_stored};
use crate::wire::{
    Answer, Asked, ExtendedError, HashSeed, LetterCase, Query, QueryFault, QuestionEcho, QuestionKey, Scan,
    UpstreamQuery, answer_matches, rcode, scan_query, write_query,
};

/// Where replies and queries are written: straight into the buffers that go to the kernel.
pub trait Outbox {
    /// Sends a reply to a client.
    fn reply(&mut self, client: &Client, write: impl FnOnce(&mut Vec<u8>));

    /// Sends a query on a connection.
    fn transmit(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>));
}

/// What became of a client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// There will be one reply: it is written already, or a later call writes it.
    Taken,
    /// It was no query: there will be no reply.
    Ignored,
}

/// A connection to make or to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkAction {
    /// Make a connection, and tell [`Forwarder::handle_dialed`].
    Dial {
        /// Its slot.
        slot: SlotId,
        /// Which upstream, by its place in the configuration.
        upstream: u16,
        /// Over what.
        carrier: Carrier,
        /// How long it may take.
        timeout: Duration,
    },
    /// Close a connection, and tell [`Forwarder::handle_closed`] when it is done: until then it counts.
    Close {
        /// Its slot.
        slot: SlotId,
    },
}

macro_rules! counters {
    ($($(#[doc = $help:literal])* $field:ident,)*) => {
        /// Figures of one worker since it began. Declared once: metrics and documents are made of [`Self::fields`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ForwarderCounters {
            $($(#[doc = $help])* pub $field: u64,)*
        }

        impl ForwarderCounters {
            /// Iterates over name, meaning and value of every counter.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), concat!($($help),*), self.$field),)*].into_iter()
            }

            /// Adds another worker's figures to these.
            pub const fn merge(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

counters! {
    /// Queries that could be read.
    queries,
    /// Messages that were answered with an error because they could not be served (FORMERR, NOTIMP, REFUSED…).
    faulty,
    /// Messages dropped in silence: no queries at all.
    ignored,
    /// Queries answered from the cache.
    hits,
    /// Queries that joined a question already in flight.
    coalesced,
    /// Questions that went upstream.
    misses,
    /// Queries sent upstream, retries and replays included.
    transmits,
    /// Attempts after the first for a question.
    retries,
    /// Attempts begun anew because a used connection turned out dead.
    replays,
    /// Truncated answers retried over a stream.
    truncated,
    /// Answers taken.
    answers,
    /// Answers that fitted no query of their connection: late, forged or garbled.
    unexpected,
    /// Connections given up because of too many such answers.
    rotated,
    /// Answers that could not be read.
    malformed,
    /// Replies sent.
    replies,
    /// Replies that did not fit the client's UDP size.
    replies_truncated,
    /// Replies SERVFAIL because every attempt had timed out.
    failed_timeout,
    /// Replies SERVFAIL because of upstreams: refused, reset, malformed.
    failed_upstream,
    /// Replies SERVFAIL because this machine ran out of something.
    failed_local,
    /// Replies SERVFAIL because too many clients waited.
    failed_overload,
}

/// The decisions of one worker.
#[derive(Debug)]
pub struct Forwarder {
    seed: HashSeed,
    strategy: Strategy,
    attempt_timeout: Duration,
    query_timeout: Duration,
    attempts_max: u32,
    waiting_max: usize,
    udp_size: u16,
    names: Vec<String>,
    endpoints: Vec<Endpoints>,
    /// Upstream and carrier of each of the engine's endpoints, by its index.
    roles: Vec<(u16, Carrier)>,
    turn: u32,
    ids: ChaCha8Rng,
    chance: Rng,
    engine: Engine,
    cache: MessageCache,
    key: QuestionKey,
    scan: Scan,
    flights: Flights,
    exchanges: Exchanges,
    timers: Wheel,
    /// Which attempt holds a ticket, by the engine's endpoint and the ticket's index.
    tickets: Vec<Vec<u32>>,
    links: VecDeque<LinkAction>,
    counters: ForwarderCounters,
    /// How long questions that went upstream took, in nanoseconds.
    latency: Histogram,
    draining: bool,
}

#[derive(Clone, Copy, Debug)]
struct Endpoints {
    datagram: Option<EndpointId>,
    stream: EndpointId,
}

// News from outside.
impl Forwarder {
    /// Makes a forwarder. Connections that the pools keep warm are asked for at once.
    ///
    /// # Errors
    ///
    /// The first setting that cannot be.
    pub fn new(now: Instant, config: ForwarderConfig) -> Result<Self, ForwarderConfigError> {
        config.validate()?;
        let mut ids = ChaCha8Rng::from_seed(config.random_seed);
        let mut engine = Engine::new(Balance::default(), ids.next_u64());
        let mut endpoints = Vec::new();
        let mut roles = Vec::new();
        for (upstream, one) in config.upstreams.iter().enumerate() {
            let mut add = |link: &Link, carrier| {
                let id = engine.add_endpoint(now, link.config, link.permits.clone())?;
                roles.push((upstream as u16, carrier));
                Ok::<_, ForwarderConfigError>(id)
            };
            let datagram = one.datagram.as_ref().map(|link| add(link, Carrier::Datagram)).transpose()?;
            endpoints.push(Endpoints { datagram, stream: add(&one.stream, Carrier::Stream)? });
        }
        let mut forwarder = Self {
            seed: config.hash_seed,
            strategy: config.strategy,
            attempt_timeout: config.attempt_timeout,
            query_timeout: config.query_timeout,
            attempts_max: config.attempts_max,
            waiting_max: config.waiting_max,
            udp_size: config.udp_size,
            names: config.upstreams.into_iter().map(|upstream| upstream.name).collect(),
            tickets: vec![Vec::new(); roles.len()],
            endpoints,
            roles,
            turn: 0,
            chance: Rng::new(ids.next_u64()),
            ids,
            engine,
            cache: MessageCache::new(config.cache_bytes, config.cache_policy)?,
            key: QuestionKey::empty(),
            scan: Scan::new(),
            flights: Flights::new(),
            exchanges: Exchanges::default(),
            timers: Wheel::new(now),
            links: VecDeque::new(),
            counters: ForwarderCounters::default(),
            latency: Histogram::default(),
            draining: false,
        };
        forwarder.process(now, &mut NoMail);
        Ok(forwarder)
    }

    /// A client's message came. The reply is written now, or when the answer comes, or never if it was no query.
    pub fn handle_query(
        &mut self,
        now: Instant,
        client: Client,
        bytes: &[u8],
        out: &mut impl Outbox,
    ) -> Handled {
        let query = match scan_query(bytes) {
            Ok(query) => query,
            Err(QueryFault::Ignore(_)) => {
                self.counters.ignored += 1;
                return Handled::Ignored;
            }
            Err(QueryFault::Answer(fault)) => {
                self.counters.faulty += 1;
                self.reply_error(&client, &fault.asked, fault.rcode, None, out);
                return Handled::Taken;
            }
        };
        self.counters.queries += 1;
        query.fill_key(&mut self.key, &self.seed);
        if let Some(hit) = self.cache.lookup(&self.key, now) {
            self.counters.hits += 1;
            let terms = terms(&client, &query.asked, self.udp_size);
            let counters = &mut self.counters;
            out.reply(&client, |buffer| {
                count_reply(counters, write_stored(buffer, &hit.stored, &query.asked, hit.age_secs, &terms));
            });
            return Handled::Taken;
        }
        self.miss(now, client, &query, out);
        Handled::Taken
    }

    /// A message came on an upstream connection.
    pub fn handle_answer(&mut self, now: Instant, slot: SlotId, bytes: &[u8], out: &mut impl Outbox) {
        let mut scan = std::mem::take(&mut self.scan);
        self.judge_answer(now, slot, bytes, &mut scan, out);
        self.scan = scan;
        self.process(now, out);
    }

    /// A dial ended.
    pub fn handle_dialed(
        &mut self,
        now: Instant,
        slot: SlotId,
        result: Result<(), Cause>,
        out: &mut impl Outbox,
    ) {
        if result.is_ok() {
            self.exchanges.open(slot);
        }
        self.engine.handle_dialed(now, slot, result.map(|()| u32::MAX));
        self.process(now, out);
    }

    /// A connection is gone: closed as told, or the peer closed or refused it, or it could not be written to.
    ///
    /// What was out on it is asked again elsewhere; on a stream that had answered before, a failure is nobody's fault
    /// but of bad timing. The shell forgets the connection.
    pub fn handle_closed(&mut self, now: Instant, slot: SlotId, cause: Option<Cause>, out: &mut impl Outbox) {
        let proved = self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.answered);
        let mut verdict = match cause {
            Some(cause) if !proved || self.carrier(slot) == Carrier::Datagram => Outcome::Broken(cause),
            None if !proved => Outcome::Broken(Cause::Reset),
            _ => Outcome::Abandoned,
        };
        let mut stranded = Vec::new();
        while let Some(attempt) = self.exchanges.first(slot) {
            let flight = self.flights.attempt(attempt).flight;
            // One broken connection is one failure, however many queries were on it.
            self.drop_attempt(now, attempt, verdict);
            if let Outcome::Broken(cause) = verdict {
                self.flights.flight_mut(flight).failure = Some(cause);
            }
            verdict = Outcome::Abandoned;
            stranded.push(flight);
        }
        self.exchanges.close(slot);
        self.engine.handle_closed(now, slot);
        for flight in stranded {
            // Two attempts of one flight may have been on it, and the first may have been its last hope.
            if !self.flights.is_in_use(flight) {
                continue;
            }
            self.counters.replays += 1;
            self.flights.flight_mut(flight).replays += 1;
            self.try_again(now, flight, out);
        }
        self.process(now, out);
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(flight) = self.timers.pop(now) {
            if !self.flights.is_in_use(flight) {
                continue;
            }
            self.note_silence(now, flight);
            if now >= self.flights.flight(flight).deadline {
                self.fail(now, flight, out);
            } else {
                self.flights.mark_late(flight);
                self.attempt(now, flight, out);
            }
        }
        self.engine.handle_timeout(now);
        self.process(now, out);
    }

    /// Begins to end: no new connections; what is in flight may still be answered.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Closes every connection and forgets what is in flight, telling its clients.
    pub fn close(&mut self, now: Instant, out: &mut impl Outbox) {
        let flights: Vec<u32> = self.flights.iter().collect();
        for flight in flights {
            self.fail(now, flight, out);
        }
        self.engine.close_all(now);
        self.process(now, out);
    }

    /// Takes the next connection to make or to close.
    pub fn poll_link(&mut self) -> Option<LinkAction> {
        self.links.pop_front()
    }

    /// Takes the next event for the log, with the name of the upstream it is about.
    pub fn poll_event(&mut self) -> Option<(Event, &str)> {
        let event = self.engine.poll_event()?;
        let endpoint = match event {
            Event::Opened { slot, .. } | Event::DialFailed { slot, .. } | Event::Closed { slot, .. } => {
                slot.endpoint()
            }
            Event::BreakerOpened { endpoint, .. }
            | Event::BreakerClosed { endpoint }
            | Event::HealthChanged { endpoint, .. }
            | Event::LocalExhaustion { endpoint, .. } => endpoint,
            _ => return Some((event, "")),
        };
        let (upstream, _) = self.roles[endpoint.index()];
        Some((event, &self.names[usize::from(upstream)]))
    }

    /// Returns when to call [`Forwarder::handle_timeout`] next.
    pub fn next_timeout(&self) -> Option<Instant> {
        match (self.timers.next(), self.engine.next_timeout()) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.flights.len() == 0
    }

    /// Returns the figures.
    pub const fn counters(&self) -> &ForwarderCounters {
        &self.counters
    }

    /// Returns how long questions that went upstream took until their answer, in nanoseconds.
    pub const fn latency(&self) -> &Histogram {
        &self.latency
    }

    /// Returns the cache's figures.
    pub fn cache_counters(&self) -> CacheCounters {
        self.cache.counters()
    }

    /// Returns how many questions are in flight and how many clients wait for them.
    pub fn in_flight(&self) -> (usize, usize) {
        (self.flights.len(), self.flights.waiting())
    }

    /// Iterates over the pools: upstream (by its place in the configuration), carrier, figures.
    pub fn pools(&self, now: Instant) -> impl Iterator<Item = (u16, Carrier, Snapshot)> + '_ {
        let ids = self.endpoints.iter().flat_map(|e| e.datagram.into_iter().chain([e.stream]));
        ids.zip(&self.roles).filter_map(move |(id, &(upstream, carrier))| {
            self.engine.snapshot(now, id).map(|snapshot| (upstream, carrier, snapshot))
        })
    }

    /// Forgets every cached answer.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
    }
}

// A question's way.
impl Forwarder {
    fn miss(&mut self, now: Instant, client: Client, query: &Query<'_>, out: &mut impl Outbox) {
        if self.flights.waiting() >= self.waiting_max || self.draining {
            self.counters.failed_overload += 1;
            let text = if self.draining { "shutting down" } else { "too many queries waiting" };
            let error = ExtendedError { code: ede::NOT_READY, text: text.as_bytes() };
            self.reply_error(&client, &query.asked, rcode::SERVFAIL, Some(error), out);
            return;
        }
        if let Some(flight) = self.flights.find(&self.key) {
            self.counters.coalesced += 1;
            self.flights.add_waiter(flight, client, query);
            return;
        }
        self.counters.misses += 1;
        let flight = self.flights.begin(&self.key, now + self.query_timeout);
        self.flights.add_waiter(flight, client, query);
        self.flights.flight_mut(flight).cursor = self.first_upstream(now);
        self.attempt(now, flight, out);
        self.process(now, out);
    }

    fn first_upstream(&mut self, now: Instant) -> u32 {
        let n = self.endpoints.len() as u32;
        match self.strategy {
            _ if n == 1 => 0,
            Strategy::Sequential => 0,
            Strategy::RoundRobin => {
                self.turn = (self.turn + 1) % n;
                self.turn
            }
            Strategy::Random => self.chance.below(n),
            Strategy::LeastInflight => (0..n)
                .min_by_key(|&upstream| {
                    let id = self.endpoint_of(upstream, false);
                    (!self.engine.is_available(now, id), self.engine.in_use(id))
                })
                .unwrap_or(0),
        }
    }

    fn endpoint_of(&self, upstream: u32, stream: bool) -> EndpointId {
        let endpoints = &self.endpoints[upstream as usize];
        match endpoints.datagram {
            Some(datagram) if !stream => datagram,
            _ => endpoints.stream,
        }
    }

    /// Begins one more attempt at the next upstream that lets it; fails the flight when there is no hope left.
    fn attempt(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let n = self.endpoints.len() as u32;
        for _ in 0..n {
            let this = self.flights.flight_mut(flight);
            if this.tries >= self.attempts_max {
                break;
            }
            let (upstream, stream, deadline) = (this.cursor % n, this.stream, this.deadline);
            this.cursor = this.cursor.wrapping_add(1) % n;
            if self.flights.stands_in_line(flight, upstream as u16) {
                continue;
            }
            let this = self.flights.flight_mut(flight);
            this.tries += 1;
            let retry = this.tries > 1;
            let endpoint = self.endpoint_of(upstream, stream);
            match self.engine.acquire(now, endpoint, deadline) {
                Acquired::Lease(lease) => {
                    self.counters.retries += u64::from(retry);
                    let attempt = self.flights.add_attempt(flight, upstream as u16, AttemptState::Vacant);
                    self.transmit(now, attempt, lease, out);
                    return;
                }
                Acquired::Wait(ticket) => {
                    self.counters.retries += u64::from(retry);
                    let attempt =
                        self.flights.add_attempt(flight, upstream as u16, AttemptState::Line(ticket));
                    self.remember_ticket(ticket, attempt);
                    self.set_timer(now, flight);
                    return;
                }
                Acquired::Refused(refusal) => {
                    let cause = self.engine.last_failure(endpoint);
                    let this = self.flights.flight_mut(flight);
                    this.failure = Some(match refusal {
                        forebay_core::Refusal::BreakerOpen { last, .. }
                        | forebay_core::Refusal::Backoff { last, .. } => {
                            last.or(cause).unwrap_or(Cause::Limit)
                        }
                        _ => Cause::Limit,
                    });
                }
            }
        }
        if self.flights.has_attempts(flight) {
            self.set_timer(now, flight);
        } else {
            self.fail(now, flight, out);
        }
    }

    /// An attempt came to nothing, and not by time-out: begins another unless one is still out.
    fn try_again(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let this = self.flights.flight_mut(flight);
        // A connection that had worked and was closed meanwhile does not count against the attempts, once.
        if this.replays == 1 && this.failure.is_none() {
            this.tries = this.tries.saturating_sub(1);
            this.cursor =
                this.cursor.wrapping_add(self.endpoints.len() as u32 - 1) % self.endpoints.len() as u32;
        }
        self.attempt(now, flight, out);
    }

    /// Sends the flight's question on a connection.
    fn transmit(&mut self, now: Instant, attempt: u32, lease: Lease, out: &mut impl Outbox) {
        let flight = self.flights.attempt(attempt).flight;
        let slot = lease.slot();
        let Some(id) = self.exchanges.book(slot, attempt, &mut self.ids) else {
            // The shell closed the connection before the engine's grant was taken: nothing was sent.
            self.flights.remove_attempt(attempt);
            self.engine.release(now, lease, Outcome::Unused);
            self.try_again(now, flight, out);
            return;
        };
        self.flights.attempt_mut(attempt).state = AttemptState::Sent { lease, id, at: now, late: false };
        self.counters.transmits += 1;
        let this = self.flights.flight(flight);
        let flags = this.key.flags();
        let query = UpstreamQuery {
            id,
            question: this.key.question(),
            rd: flags & QuestionKey::RD != 0,
            cd: flags & QuestionKey::CD != 0,
            dnssec_ok: flags & QuestionKey::DO != 0,
            udp_size: this.edns.then_some(self.udp_size),
        };
        out.transmit(slot, |buffer| write_query(buffer, &query));
        self.set_timer(now, flight);
    }

    fn set_timer(&mut self, now: Instant, flight: u32) {
        let deadline = self.flights.flight(flight).deadline;
        self.timers.set(flight, deadline.min(now + self.attempt_timeout));
    }

    fn judge_answer(
        &mut self,
        now: Instant,
        slot: SlotId,
        bytes: &[u8],
        scan: &mut Scan,
        out: &mut impl Outbox,
    ) {
        let Some(attempt) = self.expected(now, slot, bytes) else { return };
        let flight = self.flights.attempt(attempt).flight;
        let answer = match scan.scan_answer(bytes) {
            Ok(answer) if !(answer.question.is_empty() && answer.rcode == rcode::NOERROR) => answer,
            _ => {
                // It has the right id and question, so the upstream sent it, or somebody who sees our queries.
                self.counters.malformed += 1;
                if self.carrier(slot) == Carrier::Stream {
                    self.drop_attempt(now, attempt, Outcome::Failed(Cause::Protocol));
                    self.flights.flight_mut(flight).failure = Some(Cause::Protocol);
                    self.try_again(now, flight, out);
                }
                return;
            }
        };
        self.counters.answers += 1;
        if let Some(exchange) = self.exchanges.get_mut(slot) {
            exchange.answered = true;
            exchange.silent = 0;
        }
        if let AttemptState::Sent { at, .. } = &self.flights.attempt(attempt).state {
            let took = now.saturating_duration_since(*at);
            self.engine.observe_latency(slot.endpoint(), took);
        }
        let upstream = self.flights.attempt(attempt).upstream;
        self.drop_attempt(now, attempt, Outcome::Good);
        if answer.is_truncated() && self.carrier(slot) == Carrier::Datagram {
            self.counters.truncated += 1;
            let this = self.flights.flight_mut(flight);
            this.stream = true;
            this.cursor = u32::from(upstream);
            self.attempt(now, flight, out);
            return;
        }
        match answer.rcode {
            rcode::NOERROR | rcode::NXDOMAIN => self.finish(now, flight, &answer, out),
            rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS
                if answer.opt.is_none() && self.flights.flight(flight).edns =>
            {
                // RFC 6891 §7: it may be the OPT record that it does not understand.
                let this = self.flights.flight_mut(flight);
                this.edns = false;
                this.cursor = u32::from(upstream);
                self.attempt(now, flight, out);
            }
            _ => self.weigh_error(now, flight, &answer, out),
        }
    }

    /// An upstream answered with an error: another may know better; if none is left to ask, this is the answer.
    fn weigh_error(&mut self, now: Instant, flight: u32, answer: &Answer<'_>, out: &mut impl Outbox) {
        let untried = self.flights.flight(flight).tries < self.endpoints.len() as u32;
        if untried && self.flights.flight(flight).tries < self.attempts_max {
            self.flights.flight_mut(flight).rcode = Some(answer.rcode);
            self.attempt(now, flight, out);
        } else if self.flights.has_attempts(flight) {
            self.flights.flight_mut(flight).rcode = Some(answer.rcode);
        } else {
            self.finish(now, flight, answer, out);
        }
    }

    /// The attempt that a message on this connection answers: by id and by question.
    fn expected(&mut self, now: Instant, slot: SlotId, bytes: &[u8]) -> Option<u32> {
        let exchange = self.exchanges.get_mut(slot)?;
        let found = bytes.first_chunk::<2>().and_then(|id| exchange.find(u16::from_be_bytes(*id)));
        if let Some(attempt) = found {
            let key = &self.flights.flight(self.flights.attempt(attempt).flight).key;
            let is_response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
            match answer_matches(bytes, key.question(), LetterCase::Ignored) {
                QuestionEcho::Same if is_response => return found,
                // Some servers leave the question out of errors; whether it is one is looked at after the scan.
                QuestionEcho::Missing if is_response => return found,
                _ => {}
            }
        }
        self.counters.unexpected += 1;
        if self.roles[slot.endpoint().index()].1 == Carrier::Datagram && exchange.note_unexpected() {
            self.counters.rotated += 1;
            self.engine.handle_goodbye(now, slot);
        }
        None
    }

    fn finish(&mut self, now: Instant, flight: u32, answer: &Answer<'_>, out: &mut impl Outbox) {
        let this = self.flights.flight(flight);
        let began = this.deadline - self.query_timeout;
        self.latency.record_duration(now.saturating_duration_since(began));
        // What is not kept is of no interest here: the reply goes out all the same.
        let _ = self.cache.insert(&this.key, answer, now);
        let (udp_size, counters) = (self.udp_size, &mut self.counters);
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, udp_size);
            out.reply(&waiter.client, |buffer| {
                count_reply(counters, write_fresh(buffer, answer, &asked, &terms));
            });
        }
        self.end(now, flight);
    }

    /// Tells everybody who waits that it did not work, and why.
    fn fail(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let this = self.flights.flight(flight);
        let failure = this.failure.unwrap_or(Cause::Timeout);
        let code = this.rcode.filter(|code| *code <= 15).unwrap_or(rcode::SERVFAIL);
        let mut waiters = 0;
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            waiters += 1;
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, self.udp_size);
            let error = explain(failure);
            out.reply(&waiter.client, |buffer| write_error(buffer, &asked, code, Some(error), &terms));
        }
        self.counters.replies += waiters;
        *match failure.blame() {
            Blame::Local => &mut self.counters.failed_local,
            Blame::Upstream if failure == Cause::Timeout => &mut self.counters.failed_timeout,
            Blame::Upstream | Blame::Client => &mut self.counters.failed_upstream,
        } += waiters;
        self.end(now, flight);
    }

    fn end(&mut self, now: Instant, flight: u32) {
        while let Some(state) = self.flights.pop_attempt(flight) {
            self.let_go(now, state, None);
        }
        self.timers.cancel(flight);
        self.flights.end(flight);
    }

    /// Ends one attempt with this outcome.
    fn drop_attempt(&mut self, now: Instant, attempt: u32, outcome: Outcome) {
        let state = self.flights.remove_attempt(attempt);
        self.let_go(now, state, Some(outcome));
    }

    /// Gives back what an attempt held. Without an outcome, it was let go: the loser of a race is no failure, but one
    /// whose time was up is.
    fn let_go(&mut self, now: Instant, state: AttemptState, outcome: Option<Outcome>) {
        match state {
            AttemptState::Vacant => {}
            AttemptState::Line(ticket) => {
                self.engine.cancel(now, ticket);
            }
            AttemptState::Sent { lease, id, late, .. } => {
                let slot = lease.slot();
                self.exchanges.free(slot, id);
                let silent = self.exchanges.get_mut(slot).map_or(0, |exchange| exchange.silent);
                let stream = self.carrier(slot) == Carrier::Stream;
                let outcome = outcome.unwrap_or(match late {
                    true if stream && silent >= SILENT_MAX => Outcome::Broken(Cause::Timeout),
                    true => Outcome::Failed(Cause::Timeout),
                    false => Outcome::Unused,
                });
                self.engine.release(now, lease, outcome);
            }
        }
    }

    /// The attempts of a flight have not been answered in time: notes it on the flight and on their connections, and
    /// gives up streams that have answered nothing for long.
    fn note_silence(&mut self, now: Instant, flight: u32) {
        let mut dead = None;
        let mut asked = false;
        self.flights.for_each_sent(flight, |slot, late| {
            asked = true;
            if late {
                return;
            }
            if let Some(exchange) = self.exchanges.get_mut(slot) {
                exchange.silent += 1;
                if exchange.silent == SILENT_MAX {
                    dead = Some(slot);
                }
            }
        });
        // Who only stood in line has heard nothing of any upstream: the limit was ours.
        let this = self.flights.flight_mut(flight);
        this.failure = if asked { Some(Cause::Timeout) } else { this.failure.or(Some(Cause::Limit)) };
        if let Some(slot) = dead
            && self.carrier(slot) == Carrier::Stream
        {
            self.engine.handle_goodbye(now, slot);
        }
    }
}

// The engine's actions.
impl Forwarder {
    /// Takes every action of the engine and does it, or passes it on to the shell.
    fn process(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Dial { slot, timeout } => {
                    let (upstream, carrier) = self.roles[slot.endpoint().index()];
                    self.links.push_back(LinkAction::Dial { slot, upstream, carrier, timeout });
                }
                Action::Close { slot, .. } => {
                    // What the shell has told to be gone already needs no closing.
                    if self.exchanges.close(slot) {
                        self.links.push_back(LinkAction::Close { slot });
                    } else {
                        self.engine.handle_closed(now, slot);
                    }
                }
                Action::Grant { ticket, lease } => match self.ticket_holder(ticket) {
                    Some(attempt) => self.transmit(now, attempt, lease, out),
                    None => self.engine.release(now, lease, Outcome::Unused),
                },
                Action::Fail { ticket, error } => {
                    if let Some(attempt) = self.ticket_holder(ticket) {
                        self.line_failed(now, attempt, error, out);
                    }
                }
                Action::Probe { endpoint } => self.engine.handle_probed(now, endpoint, Err(Cause::Cancelled)),
            }
        }
    }

    fn line_failed(
        &mut self,
        now: Instant,
        attempt: u32,
        error: forebay_core::TicketError,
        out: &mut impl Outbox,
    ) {
        let flight = self.flights.attempt(attempt).flight;
        self.flights.attempt_mut(attempt).state = AttemptState::Vacant;
        self.flights.remove_attempt(attempt);
        self.flights.flight_mut(flight).failure = Some(match error {
            forebay_core::TicketError::Dial(cause) => cause,
            forebay_core::TicketError::Timeout { last, .. } => last.unwrap_or(Cause::Limit),
            _ => Cause::Limit,
        });
        self.attempt(now, flight, out);
    }

    fn remember_ticket(&mut self, ticket: TicketId, attempt: u32) {
        let table = &mut self.tickets[ticket.endpoint().index()];
        if table.len() <= ticket.index() {
            table.resize(ticket.index() + 1, flight::NONE);
        }
        table[ticket.index()] = attempt;
    }

    fn ticket_holder(&self, ticket: TicketId) -> Option<u32> {
        let attempt = *self.tickets[ticket.endpoint().index()].get(ticket.index())?;
        let state = &self.flights.attempt(attempt).state;
        matches!(state, AttemptState::Line(held) if *held == ticket).then_some(attempt)
    }

    fn carrier(&self, slot: SlotId) -> Carrier {
        self.roles[slot.endpoint().index()].1
    }

    fn reply_error(
        &mut self,
        client: &Client,
        asked: &Asked<'_>,
        code: u16,
        error: Option<ExtendedError<'_>>,
        out: &mut impl Outbox,
    ) {
        self.counters.replies += 1;
        let terms = terms(client, asked, self.udp_size);
        out.reply(client, |buffer| write_error(buffer, asked, code, error, &terms));
    }
}

/// Time-outs in a row, with no answer between, after which a stream is taken for dead.
const SILENT_MAX: u32 = 3;

fn terms(client: &Client, asked: &Asked<'_>, udp_size: u16) -> Terms {
    match client {
        Client::Udp { .. } => Terms::udp(asked, udp_size),
        Client::Stream { .. } => Terms::stream(None),
    }
}

const fn count_reply(counters: &mut ForwarderCounters, fit: Fit) {
    counters.replies += 1;
    if matches!(fit, Fit::Truncated) {
        counters.replies_truncated += 1;
    }
}

/// What a failure is called towards a client (RFC 8914).
fn explain(cause: Cause) -> ExtendedError<'static> {
    let (code, text) = match cause.blame() {
        Blame::Local => (ede::OTHER, local_text(cause)),
        Blame::Upstream if cause == Cause::Timeout => {
            (ede::NO_REACHABLE_AUTHORITY, "no upstream answered in time")
        }
        Blame::Upstream if cause == Cause::Protocol => (ede::NETWORK_ERROR, "upstream answer malformed"),
        Blame::Upstream | Blame::Client => (ede::NETWORK_ERROR, "upstream refused or closed the connection"),
    };
    ExtendedError { code, text: text.as_bytes() }
}

const fn local_text(cause: Cause) -> &'static str {
    match cause {
        Cause::Ports => "forwarder has no local port left",
        Cause::Descriptors => "forwarder has no file descriptor left",
        Cause::Route => "forwarder has no route to its upstreams",
        Cause::Limit => "forwarder is at its connection limit",
        _ => "forwarder cannot make a connection",
    }
}

/// Extended error codes (RFC 8914 §4).
mod ede {
    pub(super) const OTHER: u16 = 0;
    pub(super) const NOT_READY: u16 = 14;
    pub(super) const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub(super) const NETWORK_ERROR: u16 = 23;
}

/// For the start, when nothing can be on its way yet.
struct NoMail;

impl Outbox for NoMail {
    fn reply(&mut self, _: &Client, _: impl FnOnce(&mut Vec<u8>)) {}

    fn transmit(&mut self, _: SlotId, _: impl FnOnce(&mut Vec<u8>)) {}
}

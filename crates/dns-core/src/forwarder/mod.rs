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

mod actions;
mod answers;
mod attempts;
mod config;
mod cookies;
mod counters;
mod errors;
mod exchange;
mod failures;
mod flight;
mod front;
mod guesses;
mod health;
mod known;
mod letters;
mod notices;
mod refresh;
mod safety;
mod strategy;
mod streams;
mod suspects;
mod vouching;
mod wheel;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use forebay_core::{
    Balance, Blame, Cause, EndpointId, Engine, Event, Histogram, Instant, LOCAL_PAUSE_MAX, Outcome, Rng,
    SlotId, Snapshot,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use self::attempts::has_no_way;
pub use self::config::{
    Carrier, Endpoint, ForwarderConfig, ForwarderConfigError, HealthCheck, Link, PrefetchConfig, Route,
    StaleConfig, Strategy, StrategyConfig, Upstream,
};
use self::cookies::Cookie;
pub use self::counters::ForwarderCounters;
use self::errors::{count_reply, terms};
use self::exchange::Exchanges;
use self::failures::Failures;
use self::flight::Flights;
pub use self::flight::{Client, StreamKind};
pub use self::front::{AnyPolicy, FrontConfig, How};
use self::front::{Front, Turned};
use self::guesses::Watch;
use self::health::Check;
pub use self::health::{QuestionTextError, parse_question};
use self::letters::Letters;
pub use self::notices::Notice;
use self::notices::Notices;
use self::refresh::Refresh;
pub use self::safety::SafetyConfig;
pub use self::strategy::EndpointFigures;
use self::strategy::Estimate;
use self::suspects::Habits;
pub use self::vouching::CookieSecret;
use self::wheel::Wheel;
use crate::cache::{CacheCounters, CachePolicy, MessageCache};
use crate::guard::RateLimit;
use crate::reply::write_stored;
use crate::rrset::Sets;
use crate::wire::{HashSeed, Query, QueryFault, QuestionKey, Scan, scan_query};

/// Where replies and queries are written: straight into the buffers that go to the kernel.
pub trait Outbox {
    /// Sends a reply to a client.
    fn reply(&mut self, client: &Client, write: impl FnOnce(&mut Vec<u8>));

    /// Tells how the reply that comes next was found, and how long it took; for a log of queries.
    #[inline]
    fn tell(&mut self, _how: How, _took: Duration) {}

    /// Sends a query on a connection.
    fn transmit(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>));
}

/// What became of a client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled {
    /// There will be one reply: it is written already, or a later call writes it.
    Taken,
    /// It was no query, or one datagram too many: there will be no reply.
    Ignored,
}

/// A connection to make or to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkAction {
    /// Make a connection, and tell [`Forwarder::handle_dialed`].
    Dial {
        /// Its slot.
        slot: SlotId,
        /// Which endpoint, by its place among those of all upstreams.
        endpoint: u16,
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

/// The decisions of one worker.
#[derive(Debug)]
pub struct Forwarder {
    seed: HashSeed,
    attempt_timeout: Duration,
    query_timeout: Duration,
    attempts_max: u32,
    waiting_max: usize,
    udp_size: u16,
    upstreams: Vec<Group>,
    front: Front,
    choosing: StrategyConfig,
    failures: Failures,
    /// The question that checks ask; `None` when there are none.
    check: Option<Check>,
    endpoints: Vec<Address>,
    /// Endpoint and carrier of each of the engine's endpoints, by its index.
    roles: Vec<(u16, Carrier)>,
    ids: ChaCha8Rng,
    chance: Rng,
    engine: Engine,
    cache: MessageCache,
    /// What takes answers apart and joins others; `None` if that is not wanted.
    sets: Option<Sets>,
    refresh: Refresh,
    key: QuestionKey,
    scan: Scan,
    flights: Flights,
    exchanges: Exchanges,
    timers: Wheel,
    /// Which attempt holds a ticket, by the engine's endpoint and the ticket's index.
    tickets: Vec<Vec<u32>>,
    links: VecDeque<LinkAction>,
    safety: SafetyConfig,
    notices: Notices,
    /// What is known of streams, by the engine's endpoint; and of how many something is.
    habits: Vec<Habits>,
    habits_learnt: u32,
    /// What our cookies are made with, and the addresses of sockets that are being made.
    cookie_key: [u8; 16],
    locals: Vec<(SlotId, std::net::IpAddr)>,
    /// A moment, and what time it was then for everybody else.
    clock: (Instant, u64),
    /// The rate limit of clients with a right cookie.
    vouched: Option<RateLimit>,
    /// Streams that are known to be dead.
    condemned: Vec<SlotId>,
    /// Until when it may be that the engine pauses somewhere for want of a way: only then it is asked.
    cut_off_until: Instant,
    counters: ForwarderCounters,
    /// How long questions that went upstream took, in nanoseconds.
    latency: Histogram,
    draining: bool,
}

/// One upstream: a run of the endpoints.
#[derive(Clone, Copy, Debug)]
struct Group {
    first: u16,
    len: u16,
    strategy: Strategy,
    /// Where the last turn of round robin was.
    turn: u32,
}

/// One endpoint as it was listed; to the engine it is one for each carrier.
#[derive(Debug)]
struct Address {
    name: String,
    datagram: Option<EndpointId>,
    stream: EndpointId,
    is_encrypted: bool,
    /// How fast it answers.
    latency: Estimate,
    /// Races that it won, and those that it lost.
    won: u64,
    lost: u64,
    watch: Watch,
    letters: Letters,
    cookie: Cookie,
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
        let vouched = match (config.safety.server_cookies, &config.front.rate) {
            (Some(_), Some(rate)) => rate.another(),
            _ => None,
        };
        let mut cookie_key = [0; 16];
        ids.fill_bytes(&mut cookie_key);
        let mut engine = Engine::new(Balance::default(), ids.next_u64());
        let mut upstreams = Vec::new();
        let mut endpoints = Vec::new();
        let mut roles = Vec::new();
        let mut habits = Vec::new();
        for upstream in config.upstreams {
            let (first, len) = (endpoints.len() as u16, upstream.endpoints.len() as u16);
            upstreams.push(Group { first, len, strategy: upstream.strategy, turn: 0 });
            for one in upstream.endpoints {
                let mut add = |link: Link, carrier| {
                    let id = engine.add_endpoint(now, link.config, link.permits)?;
                    roles.push((endpoints.len() as u16, carrier));
                    habits.push(Habits::new(link.config));
                    Ok::<_, ForwarderConfigError>(id)
                };
                let datagram = one.datagram.map(|link| add(link, Carrier::Datagram)).transpose()?;
                let stream = add(one.stream, Carrier::Stream)?;
                let (name, latency) = (one.name, Estimate::default());
                let (watch, is_encrypted) = (Watch::default(), one.is_encrypted);
                endpoints.push(Address {
                    name,
                    datagram,
                    stream,
                    is_encrypted,
                    latency,
                    won: 0,
                    lost: 0,
                    watch,
                    letters: Letters::default(),
                    cookie: Cookie::default(),
                });
            }
        }
        let policy = CachePolicy {
            stale_max: config.stale.map_or(Duration::ZERO, |stale| stale.max),
            uses_counted: config.prefetch.map_or(0, |prefetch| prefetch.uses),
            ..config.cache_policy
        };
        let mut forwarder = Self {
            seed: config.hash_seed,
            attempt_timeout: config.attempt_timeout,
            query_timeout: config.query_timeout,
            attempts_max: config.attempts_max,
            waiting_max: config.waiting_max,
            udp_size: config.udp_size,
            upstreams,
            front: Front::new(now, config.front, &config.routes, config.hash_seed),
            choosing: config.strategies,
            check: config.health.as_ref().map(|check| Check::new(check, &config.hash_seed)),
            failures: Failures::new(config.failure_ttl, config.failure_ttl_max),
            tickets: vec![Vec::new(); roles.len()],
            endpoints,
            roles,
            chance: Rng::new(ids.next_u64()),
            ids,
            engine,
            cache: MessageCache::new(config.cache_bytes, policy)?,
            sets: (config.rrsets && config.cache_bytes > 0).then(Sets::new),
            refresh: Refresh::new(now, config.stale, config.prefetch),
            key: QuestionKey::empty(),
            scan: Scan::new(),
            flights: Flights::new(),
            exchanges: Exchanges::default(),
            timers: Wheel::new(now),
            links: VecDeque::new(),
            safety: config.safety,
            notices: Notices::default(),
            habits,
            habits_learnt: 0,
            cookie_key,
            locals: Vec::new(),
            clock: (now, 0),
            vouched,
            condemned: Vec::new(),
            cut_off_until: Instant::ZERO,
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
        if let Some(turned) = self.front.turns_away(now, &client)
            && (turned == Turned::Outsider || !self.is_vouched_for(now, &client, bytes))
        {
            return self.turn_away(turned, &client, bytes, out);
        }
        let mut query = match scan_query(bytes) {
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
        if self.safety.server_cookies.is_some() && !self.vouch(now, &client, &mut query) {
            self.counters.faulty += 1;
            self.reply_error(&client, &query.asked, crate::wire::rcode::FORMERR, None, out);
            return Handled::Taken;
        }
        self.counters.queries += 1;
        query.fill_key(&mut self.key, &self.seed);
        if !self.answer_cached(now, &client, &query, false, out) && !self.answer_here(&client, &query, out) {
            self.miss(now, client, &query, out);
        }
        Handled::Taken
    }

    /// Answers from the cache, if the answer there came after what is known here, or if that was `looked` at. Returns
    /// whether there was a reply.
    #[inline]
    fn answer_cached(
        &mut self,
        now: Instant,
        client: &Client,
        query: &Query<'_>,
        looked: bool,
        out: &mut impl Outbox,
    ) -> bool {
        let Some(hit) = self.cache.lookup(&self.key, now) else { return false };
        if !looked && !self.front.trusts(now, hit.age_secs) {
            return self.answer_here(client, query, out) || self.answer_cached(now, client, query, true, out);
        }
        self.counters.hits += 1;
        self.counters.known += u64::from(hit.is_set);
        let is_due = self.refresh.is_due(&hit);
        let terms = terms(client, &query.asked, self.udp_size);
        let counters = &mut self.counters;
        out.tell(How::Cached, Duration::ZERO);
        out.reply(client, |buffer| {
            count_reply(counters, write_stored(buffer, &hit.stored, &query.asked, hit.age_secs, &terms));
        });
        if is_due {
            self.prefetch(now, out);
        }
        true
    }

    /// A message came on an upstream connection. Returns whether it answers a query of that connection.
    pub fn handle_answer(&mut self, now: Instant, slot: SlotId, bytes: &[u8], out: &mut impl Outbox) -> bool {
        let mut scan = std::mem::take(&mut self.scan);
        let expected = self.judge_answer(now, slot, bytes, &mut scan, out);
        self.scan = scan;
        self.process(now, out);
        expected
    }

    /// A dial ended: with a connection that carries so many queries at once as far as the peer allows, or with a
    /// failure.
    pub fn handle_dialed(
        &mut self,
        now: Instant,
        slot: SlotId,
        result: Result<u32, Cause>,
        out: &mut impl Outbox,
    ) {
        if result.is_err_and(has_no_way) {
            self.cut_off_until = now + LOCAL_PAUSE_MAX;
        }
        if result.is_ok() {
            self.exchanges.open(now, slot);
            self.choose_cookie(slot);
        }
        self.engine.handle_dialed(now, slot, result);
        self.process(now, out);
    }

    /// A connection is gone: closed as told, or the peer closed or refused it, or it could not be written to.
    ///
    /// What was out on it is asked again elsewhere; on a stream that had answered before, a failure is nobody's fault
    /// but of bad timing. The shell forgets the connection.
    pub fn handle_closed(&mut self, now: Instant, slot: SlotId, cause: Option<Cause>, out: &mut impl Outbox) {
        let proved = self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.answers > 0);
        self.learn_from_closing(now, slot, cause);
        let broken = match cause {
            Some(cause) if !proved || self.carrier(slot) == Carrier::Datagram => Outcome::Broken(cause),
            None if !proved => Outcome::Broken(Cause::Reset),
            _ => Outcome::Abandoned,
        };
        let mut verdict = broken;
        let mut stranded = Vec::new();
        // Which of many was too much for the peer, nobody knows; and a reset takes answers away that had been sent. Then
        // only the number of attempts is a bound.
        let is_alone = self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.attempts().count() == 1);
        while let Some(attempt) = self.exchanges.first(slot) {
            let (flight, endpoint) = {
                let attempt = self.flights.attempt(attempt);
                (attempt.flight, attempt.endpoint)
            };
            // One broken connection is one failure, however many queries were on it.
            self.drop_attempt(now, attempt, verdict);
            if let Outcome::Broken(cause) = verdict {
                self.flights.flight_mut(flight).failure = Some(cause);
            }
            match broken {
                Outcome::Broken(cause) if cause.blame() == Blame::Upstream => {
                    if is_alone {
                        self.strike(now, flight, endpoint, false);
                    }
                }
                // It was bad timing: the same endpoint, on another connection.
                _ => self.forget_asked(flight, endpoint),
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
        self.give_stale_answers(now, out);
        while let Some(flight) = self.timers.pop(now) {
            if !self.flights.is_in_use(flight) {
                continue;
            }
            if self.flights.flight(flight).probe.is_some() {
                self.handle_probe_due(now, flight);
            } else {
                self.handle_due(now, flight, out);
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
        while let Some(probe) = self.flights.next_probe(0) {
            self.end_probe(now, probe, Err(Cause::Cancelled));
        }
        self.engine.close_all(now);
        self.process(now, out);
    }

    /// Takes the next connection to make or to close.
    pub fn poll_link(&mut self) -> Option<LinkAction> {
        self.links.pop_front()
    }

    /// Takes the next event for the log, with the name of the endpoint it is about.
    pub fn poll_event(&mut self) -> Option<(Event, &str)> {
        let event = self.engine.poll_event()?;
        let endpoint = match event {
            Event::Opened { slot, .. } | Event::DialFailed { slot, .. } | Event::Closed { slot, .. } => {
                slot.endpoint()
            }
            Event::BreakerOpened { endpoint, .. }
            | Event::BreakerClosed { endpoint }
            | Event::HealthChanged { endpoint, .. }
            | Event::Full { endpoint, .. }
            | Event::LocalExhaustion { endpoint, .. } => endpoint,
            _ => return Some((event, "")),
        };
        let (endpoint, _) = self.roles[endpoint.index()];
        Some((event, &self.endpoints[usize::from(endpoint)].name))
    }

    /// Returns when to call [`Forwarder::handle_timeout`] next.
    pub fn next_timeout(&self) -> Option<Instant> {
        [self.timers.next(), self.engine.next_timeout(), self.refresh.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.flights.waiting() == 0
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

    /// Iterates over the pools: endpoint (by its place among all), carrier, figures.
    pub fn pools(&self, now: Instant) -> impl Iterator<Item = (u16, Carrier, Snapshot)> + '_ {
        let ids = self.endpoints.iter().flat_map(|e| e.datagram.into_iter().chain([e.stream]));
        ids.zip(&self.roles).filter_map(move |(id, &(endpoint, carrier))| {
            self.engine.snapshot(now, id).map(|snapshot| (endpoint, carrier, snapshot))
        })
    }

    /// Forgets every cached answer.
    pub fn clear_cache(&mut self) {
        self.cache.clear();
    }
}

/// For the start, when nothing can be on its way yet.
struct NoMail;

impl Outbox for NoMail {
    fn reply(&mut self, _: &Client, _: impl FnOnce(&mut Vec<u8>)) {}

    fn transmit(&mut self, _: SlotId, _: impl FnOnce(&mut Vec<u8>)) {}
}

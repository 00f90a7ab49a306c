//! Many endpoints under one policy: what a shell talks to.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::balance::Balance;
use crate::breaker::BreakerState;
use crate::config::{Config, ConfigError};
use crate::endpoint::{Context, Endpoint};
use crate::event::{AcquireOutcome, CloseReason, Counters, Event};
use crate::health::Health;
use crate::ledger::{Denied, Permits};
use crate::slot::{Lease, SlotId, State};
use crate::ticket::TicketId;
use crate::{Cause, Instant, Rng};

/// Events kept for a shell that does not ask for them; older ones are dropped.
const EVENTS_MAX: usize = 1024;

/// Names one endpoint of one engine. Never reused while anybody could still hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl EndpointId {
    /// Returns a small number, unique among the endpoints that exist now: fit to index a table.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

/// The answer to an acquire.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease must be released, a ticket cancelled or awaited"]
pub enum Acquired {
    /// Here it is.
    Lease(Lease),
    /// In line: [`Action::Grant`] or [`Action::Fail`] will name this ticket, unless it is cancelled first.
    Wait(TicketId),
    /// Not now, and waiting would not help.
    Refused(Refusal),
}

/// Why an acquire was refused at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// `waiters_max` tickets wait already.
    LineFull {
        /// How many wait.
        waiters: u32,
        /// How many leases are out.
        in_use: u32,
    },
    /// The pool is full and the policy is not to wait.
    Full {
        /// How many leases are out.
        in_use: u32,
        /// What forbids one more connection.
        denied: Denied,
    },
    /// The caller's deadline leaves no time to wait, and no slot is free.
    Deadline {
        /// How many leases are out.
        in_use: u32,
    },
    /// The endpoint failed too often and is left alone.
    BreakerOpen {
        /// When a probe may pass.
        until: Instant,
        /// The last failure.
        last: Option<Cause>,
    },
    /// No connection is there, and the next dial comes after the caller's deadline.
    Backoff {
        /// When the next dial may begin.
        until: Instant,
        /// The last failure.
        last: Option<Cause>,
    },
    /// The endpoint was removed or renewed, or the engine is draining.
    Leaving,
    /// There is no such endpoint, or none at all.
    NoEndpoint,
}

/// Why a ticket got nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TicketError {
    /// Its deadline passed.
    Timeout {
        /// How many others still wait.
        waiters: u32,
        /// How many leases are out.
        in_use: u32,
        /// How many dials are under way.
        connecting: u32,
        /// The last failure of this endpoint, if any.
        last: Option<Cause>,
    },
    /// Every connection it could have got failed to be made.
    Dial(Cause),
    /// The endpoint was removed or renewed, or the engine is draining.
    Leaving,
}

/// With what a lease is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request was answered; the connection can serve another.
    Good,
    /// The request was answered; the peer wants no other on this connection.
    GoodLast,
    /// Nothing was learnt, and the connection is as it was.
    Unused,
    /// The request failed, but not the connection: a time-out among many requests in flight.
    Failed(Cause),
    /// The request failed, and the connection with it.
    Broken(Cause),
    /// Dropped half-way: nobody knows in which state the connection is.
    Abandoned,
}

impl Outcome {
    /// What the outcome says of the upstream: it worked, it failed for this cause, or nothing.
    pub(crate) const fn verdict(self) -> Option<Result<(), Cause>> {
        match self {
            Self::Good | Self::GoodLast => Some(Ok(())),
            Self::Failed(cause) | Self::Broken(cause) => Some(Err(cause)),
            Self::Unused | Self::Abandoned => None,
        }
    }

    /// Why the connection must go, if it must.
    pub(crate) const fn ends_connection(self) -> Option<CloseReason> {
        match self {
            Self::Good | Self::Unused | Self::Failed(_) => None,
            Self::GoodLast => Some(CloseReason::Goodbye),
            Self::Broken(_) => Some(CloseReason::Broken),
            Self::Abandoned => Some(CloseReason::Abandoned),
        }
    }
}

/// What the shell is to do. Taken with [`Engine::poll_action`], in order, all of them, after every call.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a connection, and tell [`Engine::handle_dialed`] how it went, within `timeout`, whoever has given up since.
    Dial {
        /// The slot it is for.
        slot: SlotId,
        /// How long it may take.
        timeout: Duration,
    },
    /// Close the connection, then tell [`Engine::handle_closed`].
    Close {
        /// Its slot.
        slot: SlotId,
        /// Why.
        reason: CloseReason,
    },
    /// Give this lease to that ticket's owner; if the owner has gone, release it as unused.
    Grant {
        /// The ticket.
        ticket: TicketId,
        /// The lease.
        lease: Lease,
    },
    /// Tell that ticket's owner that it gets nothing.
    Fail {
        /// The ticket.
        ticket: TicketId,
        /// Why.
        error: TicketError,
    },
    /// Check an endpoint's health, and tell [`Engine::handle_probed`].
    Probe {
        /// The endpoint.
        endpoint: EndpointId,
    },
}

/// What becomes of the connections of an endpoint that is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// Leases that are out may finish.
    Drain,
    /// Everything is closed now.
    Close,
}

/// One endpoint's figures at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Dials under way.
    pub connecting: u32,
    /// Connections that can take a lease.
    pub ready: u32,
    /// Connections that are full.
    pub busy: u32,
    /// Connections that take no more leases.
    pub draining: u32,
    /// Connections being closed.
    pub closed: u32,
    /// Of all these, those that are temporary.
    pub temporary: u32,
    /// Ready connections that nobody holds.
    pub idle: u32,
    /// Leases out.
    pub in_use: u32,
    /// Tickets waiting.
    pub waiting: u32,
    /// The policy in force.
    pub config: Config,
    /// How long a connection may stand idle now: the policy, or less if the peer taught so.
    pub idle_timeout: Option<Duration>,
    /// Where the breaker stands.
    pub breaker: BreakerState,
    /// What the active checks say.
    pub health: Health,
    /// The last failure, whoever was to blame.
    pub last_failure: Option<Cause>,
    /// Smoothed latency as told to [`Engine::observe_latency`]; `None` before the first.
    pub latency: Option<Duration>,
    /// Figures since the endpoint was added.
    pub counters: Counters,
}

impl Snapshot {
    /// Connections in any state.
    pub const fn connections(&self) -> u32 {
        self.connecting + self.ready + self.busy + self.draining + self.closed
    }

    /// Adds the figures of the same endpoint in another engine. Counts are summed; limits stay, since they are shared; of
    /// latency, breaker and health the worst is shown.
    pub fn merge(&mut self, other: &Self) {
        self.connecting += other.connecting;
        self.ready += other.ready;
        self.busy += other.busy;
        self.draining += other.draining;
        self.closed += other.closed;
        self.temporary += other.temporary;
        self.idle += other.idle;
        self.in_use += other.in_use;
        self.waiting += other.waiting;
        self.latency = self.latency.max(other.latency);
        self.last_failure = self.last_failure.or(other.last_failure);
        if other.health == Health::Unhealthy {
            self.health = other.health;
        }
        let rank = |state: &BreakerState| match state {
            BreakerState::Closed => 0,
            BreakerState::HalfOpen => 1,
            BreakerState::Open(_) => 2,
        };
        if rank(&other.breaker) > rank(&self.breaker) {
            self.breaker = other.breaker;
        }
        self.counters.merge(&other.counters);
    }

    /// The part of all acquires that was served by a connection that existed, 0 to 1; `None` before the first.
    pub fn reuse_rate(&self) -> Option<f64> {
        let counters = &self.counters;
        let reused = counters.acquires(AcquireOutcome::Reused) + counters.acquires(AcquireOutcome::Waited);
        let fresh = counters.acquires(AcquireOutcome::Fresh) + counters.acquires(AcquireOutcome::Temporary);
        (reused + fresh > 0).then(|| reused as f64 / (reused + fresh) as f64)
    }
}

#[derive(Debug, Default)]
struct Entry {
    generation: u32,
    endpoint: Option<Box<Endpoint>>,
}

/// The decisions of one pool: endpoints, their slots, and the tickets that wait for them.
///
/// Bring news in with the commands and `handle_*`, then take every action with [`Engine::poll_action`] and do it;
/// call [`Engine::handle_timeout`] when [`Engine::next_timeout`] has come. Nothing here blocks, allocates on the way
/// of an acquire that finds a free slot, or knows a clock.
#[derive(Debug)]
pub struct Engine {
    entries: Vec<Entry>,
    balance: Balance,
    rng: Rng,
    actions: VecDeque<Action>,
    events: VecDeque<Event>,
    /// No endpoint has anything due before this.
    due: Instant,
    leaving: bool,
}

impl Engine {
    /// Makes an engine without endpoints. `seed` decides every choice that chance makes.
    pub const fn new(balance: Balance, seed: u64) -> Self {
        Self {
            entries: Vec::new(),
            balance,
            rng: Rng::new(seed),
            actions: VecDeque::new(),
            events: VecDeque::new(),
            due: Instant::MAX,
            leaving: false,
        }
    }

    /// Adds an endpoint. With `connections_min`, dials begin at once.
    ///
    /// # Errors
    ///
    /// The first field of `config` that cannot be.
    pub fn add_endpoint(
        &mut self,
        now: Instant,
        config: Config,
        permits: Permits,
    ) -> Result<EndpointId, ConfigError> {
        config.validate()?;
        let vacant = self.entries.iter().position(|entry| entry.endpoint.is_none());
        let index = vacant.unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() - 1
        });
        let id = EndpointId { index: index as u32, generation: self.entries[index].generation };
        let mut cx =
            Context { now, rng: &mut self.rng, actions: &mut self.actions, events: &mut self.events };
        let endpoint = Endpoint::new(id, config, permits, self.leaving, &mut cx);
        self.due = self.due.min(endpoint.due());
        self.entries[index].endpoint = Some(Box::new(endpoint));
        // Added to an engine that drains, it goes as it came.
        self.with(now, id, |_, _| ());
        Ok(id)
    }

    /// Removes an endpoint. Its tickets fail with [`TicketError::Leaving`]; it is forgotten when its last connection
    /// has closed.
    pub fn remove_endpoint(&mut self, now: Instant, id: EndpointId, removal: Removal) {
        self.with(now, id, |endpoint, cx| match removal {
            Removal::Drain => endpoint.leave(cx),
            Removal::Close => endpoint.close_all(cx),
        });
    }

    /// Lets go of an endpoint's connections without removing it: idle ones close now, those in use when they are given
    /// back, and its tickets fail with [`TicketError::Leaving`]. What it has counted stays, and later acquires get new
    /// connections.
    pub fn renew_endpoint(&mut self, now: Instant, id: EndpointId) {
        self.with(now, id, |endpoint, cx| endpoint.renew(cx));
    }

    /// Changes an endpoint's policy, for the connections that are there too. Raised limits serve those who wait at
    /// once. Under lowered ones nobody loses a lease or a place in line: idle connections close, and others when their
    /// leases come back. Where several engines share a limit, tell each.
    ///
    /// # Errors
    ///
    /// The first field of `config` that cannot be; the old policy then stays.
    pub fn handle_config(&mut self, now: Instant, id: EndpointId, config: Config) -> Result<(), ConfigError> {
        config.validate()?;
        self.with(now, id, |endpoint, cx| endpoint.handle_config(cx, config));
        Ok(())
    }

    /// Chooses an endpoint by the balance. Those that are broken, unhealthy or backing off are passed over; if all
    /// are, that is ignored. `hash` matters to [`Balance::SourceHash`] alone. `None` when there is no endpoint.
    pub fn pick(&mut self, now: Instant, hash: u64) -> Option<EndpointId> {
        let candidates = self.entries.iter().filter_map(|entry| entry.endpoint.as_deref());
        self.balance.pick(now, candidates, hash, &mut self.rng)
    }

    /// Takes a unit of capacity, or a place in line until `deadline`.
    pub fn acquire(&mut self, now: Instant, id: EndpointId, deadline: Instant) -> Acquired {
        self.acquire_since(now, id, deadline, now)
    }

    /// Acquires for somebody who has waited elsewhere since `since`.
    pub fn acquire_since(
        &mut self,
        now: Instant,
        id: EndpointId,
        deadline: Instant,
        since: Instant,
    ) -> Acquired {
        self.with(now, id, |endpoint, cx| endpoint.acquire(cx, deadline, since))
            .unwrap_or(Acquired::Refused(Refusal::NoEndpoint))
    }

    /// Takes a unit of capacity if one is free and nobody waits; never waits, never dials.
    pub fn try_acquire(&mut self, now: Instant, id: EndpointId) -> Option<Lease> {
        self.with(now, id, |endpoint, cx| endpoint.try_acquire(cx)).flatten()
    }

    /// A request has failed for this cause, while its lease is kept: an answer would still be welcome. What the failure
    /// says of the endpoint counts now, lest a probe that nobody answers keep the breaker half open. The lease is given
    /// back later, as [`Outcome::Unused`] if nothing more was learnt.
    pub fn handle_late(&mut self, now: Instant, lease: &Lease, cause: Cause) {
        let probe = lease.probe;
        self.with(now, lease.slot.endpoint, |endpoint, cx| endpoint.judge(cx, probe, Outcome::Failed(cause)));
    }

    /// Gives a lease back.
    pub fn release(&mut self, now: Instant, lease: Lease, outcome: Outcome) {
        self.with(now, lease.slot.endpoint, |endpoint, cx| endpoint.release(cx, lease, outcome));
    }

    /// Says that a connection served more requests than it had leases, by somebody who lends a lease on.
    pub fn note_uses(&mut self, slot: SlotId, uses: u64) {
        if let Some(endpoint) = self.endpoint_mut(slot.endpoint) {
            endpoint.note_uses(slot, uses);
            let due = endpoint.due();
            self.due = self.due.min(due);
        }
    }

    /// Gives up a place in line. Returns whether it was still in line: if not, a [`Action::Grant`] or
    /// [`Action::Fail`] for it has been taken or can be.
    pub fn cancel(&mut self, now: Instant, ticket: TicketId) -> bool {
        self.with(now, ticket.endpoint, |endpoint, _| endpoint.cancel(ticket)).unwrap_or(false)
    }

    /// A dial ended: with a connection of this capacity (as far as the peer allows), or with a failure.
    pub fn handle_dialed(&mut self, now: Instant, slot: SlotId, result: Result<u32, Cause>) {
        self.with(now, slot.endpoint, |endpoint, cx| endpoint.handle_dialed(cx, slot, result));
    }

    /// A connection is closed: as told by [`Action::Close`], or because the peer closed it.
    pub fn handle_closed(&mut self, now: Instant, slot: SlotId) {
        self.with(now, slot.endpoint, |endpoint, cx| endpoint.handle_closed(cx, slot));
    }

    /// The peer said that it will take no more requests on this connection (GOAWAY, `Connection: close`).
    pub fn handle_goodbye(&mut self, now: Instant, slot: SlotId) {
        self.with(now, slot.endpoint, |endpoint, cx| endpoint.handle_goodbye(cx, slot));
    }

    /// The peer changed how many requests a connection carries at once.
    pub fn handle_capacity(&mut self, now: Instant, slot: SlotId, capacity: u32) {
        self.with(now, slot.endpoint, |endpoint, cx| endpoint.handle_capacity(cx, slot, capacity));
    }

    /// Holds a connection back, which may be dead: while it is held, it takes no lease beyond one. Those that are out
    /// stay. Nothing is learnt of it for other connections.
    pub fn hold(&mut self, now: Instant, slot: SlotId, held: bool) {
        self.with(now, slot.endpoint, |endpoint, cx| endpoint.hold(cx, slot, held));
    }

    /// The peer announced how long it lets connections stand idle; three quarters of it are used, for ten minutes.
    pub fn handle_idle_timeout(&mut self, now: Instant, id: EndpointId, announced: Duration) {
        self.with(now, id, |endpoint, cx| endpoint.learn_idle_timeout(cx.now, announced));
    }

    /// A health check ended. Only failures that are the upstream's fault count.
    pub fn handle_probed(&mut self, now: Instant, id: EndpointId, result: Result<(), Cause>) {
        self.with(now, id, |endpoint, cx| endpoint.handle_probed(cx, result));
    }

    /// Notes how long a request took, for [`Balance::P2c`] and the figures: the peak counts at once, and fades.
    pub fn observe_latency(&mut self, id: EndpointId, latency: Duration) {
        if let Some(endpoint) = self.endpoint_mut(id) {
            let sample = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1);
            let smoothed = endpoint.latency_nanos;
            endpoint.latency_nanos =
                if sample > smoothed { sample } else { smoothed - (smoothed - sample) / 8 };
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if now < self.due {
            return;
        }
        let mut due = Instant::MAX;
        for entry in &mut self.entries {
            let Some(endpoint) = &mut entry.endpoint else { continue };
            let mut cx =
                Context { now, rng: &mut self.rng, actions: &mut self.actions, events: &mut self.events };
            endpoint.handle_timeout(&mut cx);
            due = due.min(endpoint.due());
            if endpoint.is_gone() {
                forget(entry);
            }
        }
        self.due = due;
        self.bound_events();
    }

    /// Stops giving leases everywhere. Idle connections close, others when their leases come back.
    pub fn drain(&mut self, now: Instant) {
        self.leaving = true;
        self.for_each(now, |endpoint, cx| endpoint.leave(cx));
    }

    /// Ends a drain that took long enough: closes everything. Leases given back later change nothing.
    pub fn close_all(&mut self, now: Instant) {
        self.leaving = true;
        self.for_each(now, |endpoint, cx| endpoint.close_all(cx));
    }

    /// Takes the next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Whether there is anything to do: cheaper than asking for it.
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// Takes the next event for the log. At most 1024 are kept.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns when to call [`Engine::handle_timeout`] next: never later than needed, sometimes earlier.
    pub fn next_timeout(&self) -> Option<Instant> {
        (self.due != Instant::MAX).then_some(self.due)
    }

    /// Whether nothing is left: no connection, no lease, no ticket.
    pub fn is_empty(&self) -> bool {
        self.endpoints().all(|e| e.connections() == 0 && e.in_use() == 0 && e.waiting() == 0)
    }

    /// Iterates over the endpoints, those that are leaving included.
    pub fn endpoint_ids(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.endpoints().map(|endpoint| endpoint.id)
    }

    /// Whether an acquire would be let through now, rather than refused at once.
    pub fn is_available(&self, now: Instant, id: EndpointId) -> bool {
        self.endpoint(id).is_some_and(|endpoint| endpoint.is_available(now))
    }

    /// How many leases are out on an endpoint.
    pub fn in_use(&self, id: EndpointId) -> u32 {
        self.endpoint(id).map_or(0, Endpoint::in_use)
    }

    /// Why the last failed request or dial of an endpoint failed.
    pub fn last_failure(&self, id: EndpointId) -> Option<Cause> {
        self.endpoint(id).and_then(Endpoint::last_failure)
    }

    /// What this machine failed for when it dialled an endpoint last, as long as it pauses for that and there is no
    /// connection that could serve anybody: who acquires now waits for the end of the pause, half a second at most, and
    /// then for another dial. `None` if there is no such pause.
    pub fn hindrance(&self, now: Instant, id: EndpointId) -> Option<Cause> {
        self.endpoint(id).and_then(|endpoint| endpoint.hindrance(now))
    }

    /// Whether the endpoint's connections are as many as may be and none is being dialled: then those who wait can only
    /// be served by leases that come back.
    pub fn is_full(&self, id: EndpointId) -> bool {
        self.endpoint(id).is_some_and(Endpoint::is_full)
    }

    /// Returns since when the oldest ticket in the endpoint's line has waited.
    pub fn oldest_ticket(&self, id: EndpointId) -> Option<Instant> {
        self.endpoint(id).and_then(Endpoint::oldest_ticket)
    }

    /// How many requests the endpoint's free slots would take at once, at least; zero means that one would wait.
    pub fn free_slots(&self, id: EndpointId) -> u32 {
        self.endpoint(id).map_or(0, Endpoint::free)
    }

    /// How long a lease may be lent on without giving it back: until when, and for how many uses.
    pub fn terms(&self, lease: &Lease) -> (Instant, u64) {
        let endpoint = self.endpoint(lease.slot.endpoint);
        let Some((endpoint, slot)) = endpoint.and_then(|e| e.slot(lease.slot).map(|slot| (e, slot))) else {
            return (Instant::ZERO, 0);
        };
        if !slot.is_open() || slot.temporary || lease.is_probe() {
            return (Instant::ZERO, 0);
        }
        (slot.retire_at, endpoint.config().uses_max.map_or(u64::MAX, |max| max.saturating_sub(slot.uses)))
    }

    /// Returns one endpoint's figures.
    pub fn snapshot(&self, now: Instant, id: EndpointId) -> Option<Snapshot> {
        let endpoint = self.endpoint(id)?;
        Some(Snapshot {
            endpoint: id,
            connecting: endpoint.count(State::Connecting),
            ready: endpoint.count(State::Ready),
            busy: endpoint.count(State::Busy),
            draining: endpoint.count(State::Draining),
            closed: endpoint.count(State::Closed),
            temporary: endpoint.temporary(),
            idle: endpoint.idle(),
            in_use: endpoint.in_use(),
            waiting: endpoint.waiting(),
            config: *endpoint.config(),
            idle_timeout: endpoint.idle_timeout(now),
            breaker: endpoint.breaker(),
            health: endpoint.health(),
            last_failure: endpoint.last_failure(),
            latency: (endpoint.latency_nanos > 0).then(|| Duration::from_nanos(endpoint.latency_nanos)),
            counters: endpoint.counters.clone(),
        })
    }

    /// Returns the state of one slot; `Vacant` when there is no such slot any more.
    pub fn slot_state(&self, slot: SlotId) -> State {
        self.endpoint(slot.endpoint).and_then(|e| e.slot(slot)).map_or(State::Vacant, |slot| slot.state)
    }

    /// Counts everything anew and compares it with the books. For simulation and tests.
    ///
    /// # Errors
    ///
    /// The first thing that does not add up.
    pub fn audit(&self) -> Result<(), String> {
        self.endpoints().try_for_each(|endpoint| {
            endpoint.audit().map_err(|error| format!("endpoint {}: {error}", endpoint.id.index))
        })
    }
}

impl Engine {
    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.entries.iter().filter_map(|entry| entry.endpoint.as_deref())
    }

    fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        let entry = self.entries.get(id.index as usize)?;
        entry.endpoint.as_deref().filter(|_| entry.generation == id.generation)
    }

    fn endpoint_mut(&mut self, id: EndpointId) -> Option<&mut Endpoint> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        entry.endpoint.as_deref_mut()
    }

    /// Lets one endpoint decide something.
    fn with<T>(
        &mut self,
        now: Instant,
        id: EndpointId,
        decide: impl FnOnce(&mut Endpoint, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let entry = self.entries.get_mut(id.index as usize)?;
        if entry.generation != id.generation {
            return None;
        }
        let endpoint = entry.endpoint.as_deref_mut()?;
        let mut cx =
            Context { now, rng: &mut self.rng, actions: &mut self.actions, events: &mut self.events };
        let decision = decide(endpoint, &mut cx);
        self.due = self.due.min(endpoint.due());
        if endpoint.is_leaving() && endpoint.is_gone() {
            forget(entry);
        }
        self.bound_events();
        Some(decision)
    }

    fn for_each(&mut self, now: Instant, decide: impl Fn(&mut Endpoint, &mut Context<'_>)) {
        let ids: Vec<_> = self.endpoint_ids().collect();
        for id in ids {
            self.with(now, id, &decide);
        }
    }

    fn bound_events(&mut self) {
        while self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }
}

fn forget(entry: &mut Entry) {
    entry.endpoint = None;
    entry.generation = entry.generation.wrapping_add(1);
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineFull { waiters, in_use } => {
                write!(f, "waiters_max reached: {waiters} waiting, {in_use} in use")
            }
            Self::Full { in_use, denied } => write!(f, "the pool is full: {in_use} in use, no more {denied}"),
            Self::Deadline { in_use } => write!(f, "no time left to wait: {in_use} in use"),
            Self::BreakerOpen { last, .. } => write!(f, "left alone after too many failures{}", Last(*last)),
            Self::Backoff { last, .. } => {
                write!(f, "no connection, and the next dial is too late{}", Last(*last))
            }
            Self::Leaving => f.write_str("draining"),
            Self::NoEndpoint => f.write_str("no such endpoint"),
        }
    }
}

impl fmt::Display for TicketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { waiters, in_use, connecting, last } => write!(
                f,
                "no connection in time: {in_use} in use, {connecting} connecting, {waiters} others waiting{}",
                Last(*last)
            ),
            Self::Dial(cause) => write!(f, "dial failed: {cause} ({})", cause.blame()),
            Self::Leaving => f.write_str("draining"),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "connections (connections_max)",
            Self::Descriptors => "file descriptors",
            Self::Ports => "local ports",
        })
    }
}

/// The last failure, as the tail of a sentence.
struct Last(Option<Cause>);

impl fmt::Display for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |cause| write!(f, "; last failure: {cause} ({})", cause.blame()))
    }
}

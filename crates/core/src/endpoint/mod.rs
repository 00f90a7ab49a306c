//! One endpoint's connections: the state machine in which every rule of the engine meets.
//!
//! ```text
//!  acquire ──▶ a free slot? ──yes──▶ lease
//!                  │ no
//!                  ▼
//!           ticket in line ──▶ grow: demand > capacity? ──▶ Dial … handle_dialed ──▶ lease to the oldest ticket
//!                  ▲                                                   ▲
//!                  └────────── release: slot has room ─────────────────┘
//! ```
//!
//! Two rules hold after every call, and [`Endpoint::audit`] checks them: no slot has room while a ticket waits, and
//! the counts are what one gets by counting.

mod books;
mod ending;
mod growth;
mod judge;
mod line;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::breaker::{Admission, Breaker, BreakerState, Probe};
use crate::config::{BackoffConfig, Config, IdleOrder};
use crate::engine::{Acquired, Action, EndpointId, Outcome, Refusal, TicketError};
use crate::event::{AcquireOutcome, CloseReason, Counters, Event};
use crate::health::{Checks, Health};
use crate::ledger::{Denied, Permits, Want};
use crate::list::{Bag, List};
use crate::slot::{Lease, Slot, SlotId, State};
use crate::ticket::{TicketId, Tickets};
use crate::{Blame, Cause, Instant, Rng};

/// How often an endpoint with idle connections looks whether this machine runs short.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);
/// How often an endpoint with idle connections looks whether another engine, which shares its limit, needs them: when
/// half of the limit is taken, so that somebody may; until then, every second.
const YIELD_INTERVAL: Duration = Duration::from_millis(25);
/// How long a learnt idle time-out is believed: servers restart, and then close everything early once.
const LEARNT_FOR: Duration = Duration::from_secs(600);
/// The longest pause between dials while this machine is at fault: ports and routes come back within moments, and
/// trying costs one system call.
pub const LOCAL_PAUSE_MAX: Duration = Duration::from_millis(500);
/// How many dials may be under way before any has succeeded.
const DIAL_WINDOW_FIRST: u32 = 8;

/// What every decision needs from outside, and where it puts what is to be done.
pub(crate) struct Context<'a> {
    pub(crate) now: Instant,
    pub(crate) rng: &'a mut Rng,
    pub(crate) actions: &'a mut VecDeque<Action>,
    pub(crate) events: &'a mut VecDeque<Event>,
}

/// Why growth stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// Enough is connected or connecting.
    Satisfied,
    /// As many dials as may be are under way.
    Window,
    /// The last dial failed a moment ago; not before this time.
    Pause(Instant),
    /// The breaker is open until this time.
    Breaker(Instant),
    /// No permit.
    Denied(Denied),
    /// The endpoint takes no more.
    Leaving,
}

/// The pauses after failures of this machine: it recovers without telling, so they are short whatever those for
/// upstreams are.
fn local_pause(config: &Config) -> BackoffConfig {
    let base = config.backoff.base.min(LOCAL_PAUSE_MAX);
    BackoffConfig { base, max: config.backoff.max.min(LOCAL_PAUSE_MAX) }
}

/// The free slots, in the order in which they are taken.
#[derive(Debug)]
enum Free {
    Line { list: List, lifo: bool },
    Any { bag: Bag, choices: u32 },
}

impl Free {
    const fn new(order: IdleOrder) -> Self {
        match order {
            IdleOrder::Lifo => Self::Line { list: List::new(), lifo: true },
            IdleOrder::Fifo => Self::Line { list: List::new(), lifo: false },
            IdleOrder::Random => Self::Any { bag: Bag::new(), choices: 1 },
            IdleOrder::LeastLoaded => Self::Any { bag: Bag::new(), choices: 2 },
        }
    }

    fn pick(&self, slots: &[Slot], rng: &mut Rng) -> Option<u32> {
        match self {
            Self::Line { list, .. } => list.front(),
            Self::Any { bag, .. } if bag.len() == 0 => None,
            Self::Any { bag, .. } if bag.len() == 1 => Some(bag.at(0)),
            Self::Any { bag, choices } => (0..*choices)
                .map(|_| bag.at(rng.below(bag.len())))
                .min_by_key(|index| slots[*index as usize].in_flight),
        }
    }

    fn insert(&mut self, index: u32) {
        match self {
            Self::Line { list, lifo: true } => list.push_front(index),
            Self::Line { list, lifo: false } => list.push_back(index),
            Self::Any { bag, .. } => bag.insert(index),
        }
    }

    fn remove(&mut self, index: u32) {
        match self {
            Self::Line { list, .. } => list.remove(index),
            Self::Any { bag, .. } => bag.remove(index),
        }
    }

    /// A slot with room left was just used: first in, first out means that it goes to the end of the line. A full one
    /// that was just given more room is not in the line yet.
    fn rotate(&mut self, index: u32) {
        if let Self::Line { list, lifo: false } = self
            && list.contains(index)
        {
            list.remove(index);
            list.push_back(index);
        }
    }

    const fn len(&self) -> u32 {
        match self {
            Self::Line { list, .. } => list.len(),
            Self::Any { bag, .. } => bag.len(),
        }
    }

    fn contains(&self, index: u32) -> bool {
        match self {
            Self::Line { list, .. } => list.contains(index),
            Self::Any { bag, .. } => bag.contains(index),
        }
    }
}

/// A slot's age has come: the first time to be replaced, the second time to go.
type AgeEntry = Reverse<(Instant, u32, u32)>;

#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) id: EndpointId,
    config: Config,
    permits: Permits,
    /// What other engines are told of permits that are lacking here.
    want: Want,
    slots: Vec<Slot>,
    vacant: Vec<u32>,
    free: Free,
    /// Slots that nobody holds, longest idle first.
    idle: List,
    tickets: Tickets,
    ages: BinaryHeap<AgeEntry>,
    counts: [u32; State::COUNT],
    /// Slots that are ready or busy, and pooled.
    open: u32,
    /// Their capacity.
    capacity_open: u32,
    /// Leases on the open, pooled slots: the demand that growth must carry.
    in_flight_open: u32,
    /// Leases out, wherever.
    in_use: u32,
    temporary: u32,
    temporary_connecting: u32,
    /// What the peer allowed last, on any connection.
    capacity_allowed: u32,
    /// The same within the policy: the guess for a connection that is being dialled.
    capacity_guess: u32,
    dial_window: u32,
    backoff: Backoff,
    local_pause: Backoff,
    breaker: Breaker,
    checks: Option<Checks>,
    last_failure: Option<Cause>,
    learnt_idle: Option<(Duration, Instant)>,
    peak_now: u32,
    peak_before: u32,
    next_shrink: Instant,
    next_reclaim: Instant,
    next_yield: Instant,
    starved_until: Option<Instant>,
    /// Until when it is not told again that the pool is full.
    full_told: Instant,
    leaving: bool,
    /// Nothing is due before this. A lower bound, made exact by [`Endpoint::handle_timeout`].
    due: Instant,
    /// Smoothed latency in nanoseconds, for balance; zero when nothing is known.
    pub(crate) latency_nanos: u64,
    pub(crate) counters: Counters,
}

// Commands, and news from outside.
impl Endpoint {
    pub(crate) fn new(
        id: EndpointId,
        config: Config,
        permits: Permits,
        leaving: bool,
        cx: &mut Context<'_>,
    ) -> Self {
        let mut endpoint = Self {
            id,
            want: Want::new(Arc::clone(&permits.connections)),
            permits,
            slots: Vec::new(),
            vacant: Vec::new(),
            free: Free::new(config.order),
            idle: List::new(),
            tickets: Tickets::new(),
            ages: BinaryHeap::new(),
            counts: [0; State::COUNT],
            open: 0,
            capacity_open: 0,
            in_flight_open: 0,
            in_use: 0,
            temporary: 0,
            temporary_connecting: 0,
            capacity_allowed: u32::MAX,
            capacity_guess: config.capacity,
            dial_window: DIAL_WINDOW_FIRST.min(config.dials_max),
            backoff: Backoff::new(config.backoff.base, config.backoff.max),
            local_pause: Backoff::new(local_pause(&config).base, local_pause(&config).max),
            breaker: Breaker::new(config.breaker),
            checks: config.health.map(|health| Checks::new(health, cx.now, cx.rng)),
            last_failure: None,
            learnt_idle: None,
            peak_now: 0,
            peak_before: 0,
            next_shrink: Instant::MAX,
            next_reclaim: Instant::MAX,
            next_yield: Instant::MAX,
            starved_until: None,
            full_told: cx.now,
            leaving,
            due: Instant::MAX,
            latency_nanos: 0,
            counters: Counters::default(),
            config,
        };
        if let Some(checks) = &endpoint.checks {
            endpoint.due = checks.next();
        }
        endpoint.next_shrink = cx.now + endpoint.shrink_period();
        endpoint.arm(endpoint.next_shrink);
        endpoint.grow(cx);
        endpoint
    }

    /// `since` is when the caller began to wait, which may be before now.
    pub(crate) fn acquire(&mut self, cx: &mut Context<'_>, deadline: Instant, since: Instant) -> Acquired {
        if self.leaving {
            return self.refuse(Refusal::Leaving);
        }
        let probe = match self.breaker.admit(cx.now) {
            Admission::Pass => Probe::NONE,
            Admission::Probe(probe) => probe,
            Admission::Refuse(until) => {
                return self.refuse(Refusal::BreakerOpen { until, last: self.last_failure });
            }
        };
        if self.tickets.is_empty()
            && let Some(index) = self.free.pick(&self.slots, cx.rng)
        {
            let lease = self.lease(index, probe);
            self.counters.acquired(AcquireOutcome::Reused);
            self.keep_ahead(cx);
            return Acquired::Lease(lease);
        }
        self.line_up(cx, deadline, since, probe)
    }

    /// Takes a free slot if there is one and nobody waits; never waits, never dials.
    pub(crate) fn try_acquire(&mut self, cx: &mut Context<'_>) -> Option<Lease> {
        if self.leaving || !self.tickets.is_empty() || self.breaker.state() != BreakerState::Closed {
            return None;
        }
        let index = self.free.pick(&self.slots, cx.rng)?;
        self.counters.acquired(AcquireOutcome::Reused);
        let lease = self.lease(index, Probe::NONE);
        self.keep_ahead(cx);
        Some(lease)
    }

    pub(crate) fn release(&mut self, cx: &mut Context<'_>, lease: Lease, outcome: Outcome) {
        self.judge(cx, lease.probe, outcome);
        let SlotId { index, generation, .. } = lease.slot;
        if !self.is_current(index, generation) || self.slots[index as usize].in_flight == 0 {
            return;
        }
        let open = self.slots[index as usize].is_open();
        self.return_unit(index);
        if open {
            match outcome.ends_connection().or_else(|| self.spent(index)) {
                Some(reason) => self.retire(cx, index, reason),
                None => self.offer(cx, index),
            }
        } else if self.slots[index as usize].state == State::Draining
            && self.slots[index as usize].in_flight == 0
        {
            let reason = self.slots[index as usize].reason;
            self.close(cx, index, reason);
        }
    }

    pub(crate) fn note_uses(&mut self, slot: SlotId, uses: u64) {
        let SlotId { index, generation, .. } = slot;
        if !self.is_current(index, generation) {
            return;
        }
        let slot = &mut self.slots[index as usize];
        slot.uses += uses;
        if slot.is_open() && slot.in_flight > 0 && slot.uses >= self.config.uses_max.unwrap_or(u64::MAX) {
            slot.reason = CloseReason::Uses;
            self.set_state(index, State::Draining);
            // Somebody may want another in its place, and this call has no say in that.
            self.arm(Instant::ZERO);
        }
    }

    /// Takes a ticket out of the line. Returns whether it still waited.
    pub(crate) fn cancel(&mut self, id: TicketId) -> bool {
        let Some(ticket) = self.tickets.remove(id.index, id.generation) else {
            return false;
        };
        self.breaker.abandon(ticket.probe);
        self.counters.acquired(AcquireOutcome::Cancelled);
        true
    }

    pub(crate) fn handle_dialed(&mut self, cx: &mut Context<'_>, slot: SlotId, result: Result<u32, Cause>) {
        let SlotId { index, generation, .. } = slot;
        if !self.is_current(index, generation) || self.slots[index as usize].state != State::Connecting {
            return;
        }
        match result {
            Ok(capacity) => self.connected(cx, index, capacity),
            Err(cause) => self.dial_failed(cx, index, cause),
        }
    }

    pub(crate) fn handle_closed(&mut self, cx: &mut Context<'_>, slot: SlotId) {
        let SlotId { index, generation, .. } = slot;
        if !self.is_current(index, generation) {
            return;
        }
        match self.slots[index as usize].state {
            State::Vacant | State::Connecting => return,
            State::Closed => {}
            State::Ready | State::Busy | State::Draining => {
                self.learn_from_closing(cx.now, index);
                self.forget_leases(index);
                self.note_closed(cx, index, CloseReason::Peer);
            }
        }
        self.vacate(index);
        self.grow(cx);
    }

    pub(crate) fn handle_goodbye(&mut self, cx: &mut Context<'_>, slot: SlotId) {
        if self.is_current(slot.index, slot.generation) && self.slots[slot.index as usize].is_open() {
            self.retire(cx, slot.index, CloseReason::Goodbye);
        }
    }

    pub(crate) fn handle_capacity(&mut self, cx: &mut Context<'_>, slot: SlotId, capacity: u32) {
        let SlotId { index, generation, .. } = slot;
        if !self.is_current(index, generation) || !self.slots[index as usize].is_open() {
            return;
        }
        self.guess_capacity(capacity);
        self.slots[index as usize].allowed = capacity;
        self.apply_capacity(cx, index);
        self.grow(cx);
    }

    pub(crate) fn hold(&mut self, cx: &mut Context<'_>, slot: SlotId, held: bool) {
        let SlotId { index, generation, .. } = slot;
        if self.is_current(index, generation) && self.slots[index as usize].is_open() {
            self.slots[index as usize].held = held;
            self.apply_capacity(cx, index);
            self.grow(cx);
        }
    }

    pub(crate) fn handle_probed(&mut self, cx: &mut Context<'_>, result: Result<(), Cause>) {
        let good = match result {
            Ok(()) => true,
            Err(cause) if cause.blame() == Blame::Upstream => false,
            Err(_) => return,
        };
        if let Some(checks) = &mut self.checks
            && checks.note(good)
        {
            cx.events.push_back(Event::HealthChanged { endpoint: self.id, health: checks.health() });
        }
    }

    /// Takes note of the idle time-out that the peer announced, so that it is undercut.
    pub(crate) fn learn_idle_timeout(&mut self, now: Instant, announced: Duration) {
        let undercut = announced * 3 / 4;
        let believed = self.learnt_idle.filter(|(_, until)| now < *until).map(|(idle, _)| idle);
        self.learnt_idle = Some((believed.map_or(undercut, |idle| idle.min(undercut)), now + LEARNT_FOR));
        if let Some(front) = self.idle.front() {
            self.arm(self.slots[front as usize].idle_since + undercut);
        }
    }

    pub(crate) fn handle_config(&mut self, cx: &mut Context<'_>, config: Config) {
        let old = std::mem::replace(&mut self.config, config);
        self.permits.connections.set_max(config.connections_max);
        self.permits.temporary.set_max(config.temporary_max);
        self.backoff.configure(cx.now, config.backoff);
        self.local_pause.configure(cx.now, local_pause(&config));
        self.breaker.configure(cx.now, config.breaker);
        self.configure_checks(cx);
        self.guess_capacity(self.capacity_allowed);
        self.dial_window = self.dial_window.min(config.dials_max);
        if (config.order, config.idle_timeout) != (old.order, old.idle_timeout) {
            self.next_shrink = cx.now + self.shrink_period();
        }
        if config.order != old.order {
            self.reorder(config.order);
        }
        if config.age_max != old.age_max {
            self.ages.clear();
        }
        for index in 0..self.slots.len() as u32 {
            if !self.slots[index as usize].is_open() {
                continue;
            }
            if config.age_max != old.age_max {
                self.plan_age(cx, index);
            }
            match self.spent(index) {
                // A temporary one is spent when its lease comes back, and has one.
                Some(reason) if reason != CloseReason::Temporary => self.retire(cx, index, reason),
                _ => self.apply_capacity(cx, index),
            }
        }
        self.trim(cx);
        // What else has become due is done when the shell returns, which is now.
        self.arm(Instant::ZERO);
        self.grow(cx);
    }

    /// Stops giving leases: idle connections close now, others when they are given back.
    pub(crate) fn leave(&mut self, cx: &mut Context<'_>) {
        self.leaving = true;
        self.want.set(0);
        self.renew(cx);
    }

    /// Sends away who waits, and lets go of every connection that is open: idle ones close now, others when they are
    /// given back.
    pub(crate) fn renew(&mut self, cx: &mut Context<'_>) {
        while let Some((index, ticket)) = self.tickets.pop() {
            self.fail_ticket(cx, index, &ticket, TicketError::Leaving);
        }
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].is_open() {
                self.retire(cx, index, CloseReason::Drain);
            }
        }
    }

    /// Closes what is still held. Leases given back later change nothing.
    pub(crate) fn close_all(&mut self, cx: &mut Context<'_>) {
        self.leave(cx);
        for index in 0..self.slots.len() as u32 {
            if self.slots[index as usize].state == State::Draining {
                self.forget_leases(index);
                self.close(cx, index, CloseReason::Drain);
            }
        }
    }

    /// Whether it is leaving and nothing of it is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.leaving && self.connections() == 0 && self.in_use == 0
    }

    pub(crate) fn handle_timeout(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.due {
            return;
        }
        self.expire_tickets(cx);
        self.close_idle(cx);
        self.shrink(cx);
        self.reclaim(cx);
        self.yield_when_due(cx);
        self.age(cx);
        if let Some(checks) = &mut self.checks
            && checks.take_due(cx.now, cx.rng)
            && !self.leaving
        {
            cx.actions.push_back(Action::Probe { endpoint: self.id });
        }
        self.grow(cx);
        self.due = self.exact_due(cx.now);
    }
}

// Questions.
impl Endpoint {
    pub(crate) const fn due(&self) -> Instant {
        self.due
    }

    pub(crate) const fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) const fn count(&self, state: State) -> u32 {
        self.counts[state as usize]
    }

    /// Connections in any state but vacant: what the limits count.
    pub(crate) fn connections(&self) -> u32 {
        self.slots.len() as u32 - self.vacant.len() as u32
    }

    pub(crate) const fn temporary(&self) -> u32 {
        self.temporary
    }

    pub(crate) const fn in_use(&self) -> u32 {
        self.in_use
    }

    pub(crate) const fn waiting(&self) -> u32 {
        self.tickets.len()
    }

    pub(crate) const fn idle(&self) -> u32 {
        self.idle.len()
    }

    pub(crate) const fn free(&self) -> u32 {
        self.free.len()
    }

    /// Whether the pool's size is reached and nothing is being dialled: only leases that come back serve anybody.
    pub(crate) fn is_full(&self) -> bool {
        self.counts[State::Connecting as usize] == 0
            && self.connections() - self.temporary >= self.config.connections_max
    }

    pub(crate) fn oldest_ticket(&self) -> Option<Instant> {
        self.tickets.oldest()
    }

    pub(crate) const fn is_leaving(&self) -> bool {
        self.leaving
    }

    pub(crate) const fn breaker(&self) -> BreakerState {
        self.breaker.state()
    }

    pub(crate) fn health(&self) -> Health {
        self.checks.as_ref().map_or(Health::Healthy, Checks::health)
    }

    pub(crate) const fn last_failure(&self) -> Option<Cause> {
        self.last_failure
    }

    pub(crate) fn hindrance(&self, now: Instant) -> Option<Cause> {
        let is_paused = !self.local_pause.is_over(now) && !self.could_serve();
        self.last_failure.filter(|cause| is_paused && cause.blame() == Blame::Local)
    }

    pub(crate) fn idle_timeout(&self, now: Instant) -> Option<Duration> {
        let learnt = self.learnt_idle.filter(|(_, until)| now < *until).map(|(idle, _)| idle);
        match (self.config.idle_timeout, learnt) {
            (Some(own), Some(peer)) => Some(own.min(peer)),
            (own, peer) => own.or(peer),
        }
    }

    /// Whether an acquire would be let through: not leaving, not broken, not known to be unhealthy.
    pub(crate) fn is_available(&self, now: Instant) -> bool {
        !self.leaving
            && self.breaker.is_available(now)
            && self.health() == Health::Healthy
            && (self.counts[State::Ready as usize] + self.counts[State::Busy as usize] > 0
                || self.backoff.is_over(now))
    }

    pub(crate) fn slot(&self, id: SlotId) -> Option<&Slot> {
        self.is_current(id.index, id.generation).then(|| &self.slots[id.index as usize])
    }
}

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

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use crate::backoff::Backoff;
use crate::breaker::{Admission, Breaker, BreakerState, Probe};
use crate::config::{Config, IdleOrder, Overflow};
use crate::engine::{Acquired, Action, EndpointId, Outcome, Refusal, TicketError};
use crate::event::{AcquireOutcome, CloseReason, Counters, Event};
use crate::health::{Checks, Health};
use crate::ledger::{Denied, Permits};
use crate::list::{Bag, List};
use crate::slot::{Lease, Slot, SlotId, State};
use crate::ticket::{Ticket, TicketId, Tickets};
use crate::{Blame, Cause, Instant, Rng};

/// How often growth that was denied for want of permits is tried again: permits come back without telling.
const STARVED_RETRY: Duration = Duration::from_millis(5);
/// How often an endpoint with idle connections looks whether this machine runs short.
const RECLAIM_INTERVAL: Duration = Duration::from_secs(1);
/// How long a learnt idle time-out is believed: servers restart, and then close everything early once.
const LEARNT_FOR: Duration = Duration::from_secs(600);
/// A connection closed by the peer after less idle time than this taught nothing about idle time-outs.
const LEARNT_MIN: Duration = Duration::from_millis(500);
/// How long to wait before the replacement of an old connection is tried again.
const AGE_RETRY: Duration = Duration::from_secs(1);
/// How many planned ages there may be beyond those of the slots, before the outdated are swept.
const AGES_SLACK: usize = 64;
/// Demand is looked at this often at most, however short `idle_timeout` is.
const SHRINK_PERIOD_MIN: Duration = Duration::from_millis(10);
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

/// The free slots, in the order in which they are taken.
#[derive(Debug)]
enum Free {
    Line { list: List, lifo: bool },
    Any(Bag),
}

impl Free {
    const fn new(order: IdleOrder) -> Self {
        match order {
            IdleOrder::Lifo => Self::Line { list: List::new(), lifo: true },
            IdleOrder::Fifo => Self::Line { list: List::new(), lifo: false },
            IdleOrder::Random => Self::Any(Bag::new()),
        }
    }

    fn pick(&self, rng: &mut Rng) -> Option<u32> {
        match self {
            Self::Line { list, .. } => list.front(),
            Self::Any(bag) if bag.len() == 0 => None,
            Self::Any(bag) => Some(bag.at(rng.below(bag.len()))),
        }
    }

    fn insert(&mut self, index: u32) {
        match self {
            Self::Line { list, lifo: true } => list.push_front(index),
            Self::Line { list, lifo: false } => list.push_back(index),
            Self::Any(bag) => bag.insert(index),
        }
    }

    fn remove(&mut self, index: u32) {
        match self {
            Self::Line { list, .. } => list.remove(index),
            Self::Any(bag) => bag.remove(index),
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
            Self::Any(bag) => bag.len(),
        }
    }

    fn contains(&self, index: u32) -> bool {
        match self {
            Self::Line { list, .. } => list.contains(index),
            Self::Any(bag) => bag.contains(index),
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
    starved_until: Option<Instant>,
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
            local_pause: Backoff::new(config.backoff.base, config.backoff.max),
            breaker: Breaker::new(config.breaker),
            checks: config.health.map(|health| Checks::new(health, cx.now, cx.rng)),
            last_failure: None,
            learnt_idle: None,
            peak_now: 0,
            peak_before: 0,
            next_shrink: Instant::MAX,
            next_reclaim: Instant::MAX,
            starved_until: None,
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
            && let Some(index) = self.free.pick(cx.rng)
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
        let index = self.free.pick(cx.rng)?;
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
        self.local_pause.configure(cx.now, config.backoff);
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

// Leases and tickets.
impl Endpoint {
    fn line_up(&mut self, cx: &mut Context<'_>, deadline: Instant, since: Instant, probe: Probe) -> Acquired {
        let refusal = if self.tickets.len() >= self.config.waiters_max {
            Some(Refusal::LineFull { waiters: self.tickets.len(), in_use: self.in_use })
        } else if deadline <= cx.now {
            Some(Refusal::Deadline { in_use: self.in_use })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.breaker.abandon(probe);
            if probe.is_some() {
                // The pause is over: who stands in line already has the probe that this caller could not use.
                self.grow(cx);
            }
            return self.refuse(refusal);
        }
        let (index, generation) = self.tickets.push(since, deadline, probe);
        let stop = self.grow(cx);
        if let Some(refusal) = self.overflow(stop, deadline)
            && let Some(ticket) = self.tickets.remove(index, generation)
        {
            self.breaker.abandon(ticket.probe);
            return self.refuse(refusal);
        }
        self.arm(deadline);
        Acquired::Wait(TicketId { endpoint: self.id, index, generation })
    }

    /// The newest ticket cannot be sure of a connection: what the policy says to that.
    fn overflow(&self, stop: Stop, deadline: Instant) -> Option<Refusal> {
        if !self.is_newest_unpromised() {
            return None;
        }
        match stop {
            Stop::Denied(denied) if self.config.overflow == Overflow::Reject => {
                Some(Refusal::Full { in_use: self.in_use, denied })
            }
            Stop::Pause(until) if until >= deadline && !self.could_serve() => {
                Some(Refusal::Backoff { until, last: self.last_failure })
            }
            Stop::Breaker(until) if !self.could_serve() => {
                Some(Refusal::BreakerOpen { until, last: self.last_failure })
            }
            _ => None,
        }
    }

    /// Whether the newest ticket has no part in what the dials under way will bring.
    fn is_newest_unpromised(&self) -> bool {
        let pooled = self.counts[State::Connecting as usize] - self.temporary_connecting;
        let promised =
            u64::from(pooled) * u64::from(self.capacity_guess) + u64::from(self.temporary_connecting);
        u64::from(self.tickets.len()) > promised
    }

    /// Whether any slot could ever serve a waiting ticket.
    const fn could_serve(&self) -> bool {
        self.counts[State::Ready as usize]
            + self.counts[State::Busy as usize]
            + self.counts[State::Connecting as usize]
            > 0
    }

    const fn refuse(&mut self, refusal: Refusal) -> Acquired {
        self.counters.acquired(AcquireOutcome::Rejected);
        Acquired::Refused(refusal)
    }

    fn lease(&mut self, index: u32, probe: Probe) -> Lease {
        let uses_max = self.config.uses_max.unwrap_or(u64::MAX);
        let slot = &mut self.slots[index as usize];
        let was_idle = slot.in_flight == 0;
        slot.in_flight += 1;
        slot.uses += 1;
        let (fresh, temporary, generation) = (slot.uses == 1, slot.temporary, slot.generation);
        let (full, worn_out) = (slot.in_flight >= slot.capacity, slot.uses >= uses_max);
        self.in_use += 1;
        if !temporary {
            self.in_flight_open += 1;
            self.peak_now = self.peak_now.max(self.in_flight_open);
        }
        if was_idle {
            self.idle.remove(index);
        }
        if worn_out {
            self.slots[index as usize].reason = CloseReason::Uses;
            self.set_state(index, State::Draining);
        } else if full {
            self.set_state(index, State::Busy);
        } else {
            self.free.rotate(index);
        }
        let probe = self.breaker.current(probe);
        Lease { slot: SlotId { endpoint: self.id, index, generation }, fresh, probe, temporary }
    }

    /// Takes back one unit; the slot's state is the caller's business.
    fn return_unit(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.in_flight -= 1;
        let counts_as_demand = slot.is_open() && !slot.temporary;
        self.in_use -= 1;
        if counts_as_demand {
            self.in_flight_open -= 1;
        }
    }

    /// Why a slot can serve nobody any more, now that a lease came back or the policy changed.
    fn spent(&self, index: u32) -> Option<CloseReason> {
        let slot = &self.slots[index as usize];
        if slot.temporary {
            return Some(CloseReason::Temporary);
        }
        self.config.uses_max.is_some_and(|max| slot.uses >= max).then_some(CloseReason::Uses)
    }

    /// A slot has room: for the oldest tickets first, then for whoever comes.
    fn offer(&mut self, cx: &mut Context<'_>, index: u32) {
        loop {
            let slot = &self.slots[index as usize];
            if !slot.is_open() || slot.in_flight >= slot.capacity {
                self.keep_ahead(cx);
                return;
            }
            let Some((ticket_index, ticket)) = self.tickets.pop() else { break };
            self.grant(cx, index, ticket_index, &ticket);
        }
        if self.slots[index as usize].state == State::Busy {
            self.set_state(index, State::Ready);
        }
        if self.slots[index as usize].in_flight == 0 {
            self.stand_idle(cx, index);
        }
    }

    fn grant(&mut self, cx: &mut Context<'_>, index: u32, ticket_index: u32, ticket: &Ticket) {
        let lease = self.lease(index, ticket.probe);
        self.counters.acquired(match (lease.temporary, lease.fresh) {
            (true, _) => AcquireOutcome::Temporary,
            (false, true) => AcquireOutcome::Fresh,
            (false, false) => AcquireOutcome::Waited,
        });
        self.counters.wait.record_duration(cx.now.saturating_duration_since(ticket.enqueued));
        let ticket = TicketId { endpoint: self.id, index: ticket_index, generation: ticket.generation };
        cx.actions.push_back(Action::Grant { ticket, lease });
    }

    fn fail_ticket(&mut self, cx: &mut Context<'_>, index: u32, ticket: &Ticket, error: TicketError) {
        self.breaker.abandon(ticket.probe);
        self.counters.acquired(match error {
            TicketError::Timeout { .. } => AcquireOutcome::Timeout,
            TicketError::Dial(_) | TicketError::Leaving => AcquireOutcome::Rejected,
        });
        let ticket = TicketId { endpoint: self.id, index, generation: ticket.generation };
        cx.actions.push_back(Action::Fail { ticket, error });
    }

    fn expire_tickets(&mut self, cx: &mut Context<'_>) {
        while let Some((index, ticket)) = self.tickets.pop_expired(cx.now) {
            let error = TicketError::Timeout {
                waiters: self.tickets.len(),
                in_use: self.in_use,
                connecting: self.count(State::Connecting),
                last: self.last_failure,
            };
            self.fail_ticket(cx, index, &ticket, error);
        }
    }
}

// Judging: the one place where an outcome meets the breaker and the back-off.
impl Endpoint {
    fn judge(&mut self, cx: &mut Context<'_>, probe: Probe, outcome: Outcome) {
        match outcome.verdict() {
            Some(Ok(())) => {
                let paused = !self.backoff.is_over(cx.now);
                self.backoff.reset();
                let closed = self.breaker.succeed(probe);
                if closed {
                    cx.events.push_back(Event::BreakerClosed { endpoint: self.id });
                }
                if closed || paused {
                    self.grow(cx);
                }
            }
            Some(Err(cause)) if cause.blame() == Blame::Upstream => {
                self.counters.failures += 1;
                self.last_failure = Some(cause);
                self.breaker_failed(cx, probe, cause);
            }
            Some(Err(_)) | None => self.breaker.abandon(probe),
        }
    }

    fn breaker_failed(&mut self, cx: &mut Context<'_>, probe: Probe, cause: Cause) {
        if self.breaker.fail(cx.now, probe, cx.rng)
            && let BreakerState::Open(until) = self.breaker.state()
        {
            self.counters.breaker_opened += 1;
            cx.events.push_back(Event::BreakerOpened { endpoint: self.id, until, cause: Some(cause) });
            self.arm(until);
        }
    }

    fn dial_failed(&mut self, cx: &mut Context<'_>, index: u32, cause: Cause) {
        let slot = self.slots[index as usize];
        let id = SlotId { endpoint: self.id, index, generation: slot.generation };
        self.vacate(index);
        self.counters.dial_failed(cause);
        self.last_failure = Some(cause);
        cx.events.push_back(Event::DialFailed { slot: id, cause });
        match cause.blame() {
            Blame::Upstream => {
                self.dial_window = (self.dial_window / 2).max(1);
                self.backoff.fail(cx.now, cx.rng);
                // While half open there is one dial at a most, and what becomes of it is what the probe found.
                self.breaker_failed(cx, self.breaker.probe(), cause);
            }
            Blame::Local => {
                self.dial_window = (self.dial_window / 2).max(1);
                self.local_pause.fail(cx.now, cx.rng);
                self.exhausted(cx, cause);
            }
            Blame::Client => {}
        }
        self.breaker.abandon(slot.probe);
        if let Some((old, generation)) = slot.replaces
            && self.is_current(old, generation)
        {
            self.age_again(cx, old);
        }
        self.grow(cx);
        if !self.could_serve() && cause.blame() != Blame::Client {
            while let Some((ticket_index, ticket)) = self.tickets.pop() {
                self.fail_ticket(cx, ticket_index, &ticket, TicketError::Dial(cause));
            }
        }
    }

    fn exhausted(&mut self, cx: &mut Context<'_>, cause: Cause) {
        self.counters.local_exhaustions += 1;
        cx.events.push_back(Event::LocalExhaustion { endpoint: self.id, cause });
    }
}

// Growing.
impl Endpoint {
    /// Starts dials until demand is met or something forbids more.
    fn grow(&mut self, cx: &mut Context<'_>) -> Stop {
        loop {
            let stop = self.next_dial(cx);
            match stop {
                None => self.dial(cx, false, None),
                Some(Stop::Denied(_)) if self.take_temporary() => self.dial(cx, true, None),
                Some(stop) => {
                    self.note_stop(cx, stop);
                    return stop;
                }
            }
        }
    }

    /// Grows where a lease was given and nobody waits: for headroom, and for what the lease wore out.
    fn keep_ahead(&mut self, cx: &mut Context<'_>) {
        if self.wants_slot() && self.starved_until.is_none_or(|until| cx.now >= until) {
            self.grow(cx);
        }
    }

    /// The pool is full: takes the permits for a temporary connection, if the policy and the line call for one.
    fn take_temporary(&self) -> bool {
        self.config.overflow == Overflow::Temporary
            && self.is_newest_unpromised()
            && self.permits.take(true, self.could_serve()).is_ok()
    }

    /// Takes the permits for one more dial, or says why there is none.
    fn next_dial(&mut self, cx: &mut Context<'_>) -> Option<Stop> {
        if self.leaving {
            return Some(Stop::Leaving);
        }
        if !self.wants_slot() {
            return Some(Stop::Satisfied);
        }
        if let Some(stop) = self.forbidden(cx.now) {
            return Some(stop);
        }
        let modest = self.could_serve();
        self.permits.take(false, modest).err().map(Stop::Denied)
    }

    /// What, other than permits, forbids a dial now.
    fn forbidden(&mut self, now: Instant) -> Option<Stop> {
        let connecting = self.counts[State::Connecting as usize];
        match self.breaker.state() {
            BreakerState::Open(until) if now < until => return Some(Stop::Breaker(until)),
            BreakerState::HalfOpen if connecting > 0 => return Some(Stop::Window),
            _ => {}
        }
        let pause = self.backoff.until().max(self.local_pause.until());
        if now < pause {
            return Some(Stop::Pause(pause));
        }
        (connecting >= self.dial_window).then_some(Stop::Window)
    }

    /// Whether demand, or `connections_min`, asks for one more slot than are there and coming.
    fn wants_slot(&self) -> bool {
        let connecting = self.counts[State::Connecting as usize] - self.temporary_connecting;
        if self.open + connecting < self.config.connections_min {
            return true;
        }
        let waiting = self.tickets.len();
        let wanted = if waiting > 0 {
            u64::from(self.in_flight_open + waiting.saturating_sub(self.temporary_connecting))
        } else {
            (u64::from(self.in_flight_open) * u64::from(self.config.headroom_percent)).div_ceil(100)
        };
        wanted > u64::from(self.capacity_open) + u64::from(connecting) * u64::from(self.capacity_guess)
    }

    fn note_stop(&mut self, cx: &mut Context<'_>, stop: Stop) {
        match stop {
            Stop::Denied(denied) => {
                let retry = if self.tickets.is_empty() { RECLAIM_INTERVAL } else { STARVED_RETRY };
                let was_starved = self.starved_until.replace(cx.now + retry).is_some();
                self.arm(cx.now + retry);
                if !was_starved {
                    match denied {
                        Denied::Connections => {}
                        Denied::Descriptors => self.exhausted(cx, Cause::Descriptors),
                        Denied::Ports => self.exhausted(cx, Cause::Ports),
                    }
                }
            }
            Stop::Pause(until) | Stop::Breaker(until) => self.arm(until),
            Stop::Satisfied | Stop::Window | Stop::Leaving => self.starved_until = None,
        }
    }

    /// Begins a dial whose permits are taken.
    fn dial(&mut self, cx: &mut Context<'_>, temporary: bool, replaces: Option<(u32, u32)>) {
        // A dial for older tickets or for `connections_min` may find the pause over, or the last probe given up, before
        // any acquire does: then it is the probe.
        let probe = match self.breaker.admit(cx.now) {
            Admission::Probe(probe) => probe,
            Admission::Pass | Admission::Refuse(_) => Probe::NONE,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::VACANT);
            self.slots.len() as u32 - 1
        });
        let generation = self.slots[index as usize].generation;
        self.slots[index as usize] =
            Slot { generation, since: cx.now, temporary, probe, replaces, ..Slot::VACANT };
        if temporary {
            self.temporary += 1;
            self.temporary_connecting += 1;
        }
        self.set_state(index, State::Connecting);
        self.counters.dials_started += 1;
        let slot = SlotId { endpoint: self.id, index, generation };
        cx.actions.push_back(Action::Dial { slot, timeout: self.config.dial_timeout });
    }

    fn connected(&mut self, cx: &mut Context<'_>, index: u32, capacity: u32) {
        self.guess_capacity(capacity);
        self.dial_window = (self.dial_window + 1).min(self.config.dials_max);
        self.local_pause.reset();
        self.counters.dials_succeeded += 1;
        let slot = &mut self.slots[index as usize];
        let took = cx.now.saturating_duration_since(slot.since);
        slot.since = cx.now;
        slot.allowed = if slot.temporary { 1 } else { capacity };
        slot.capacity = slot.allowed.clamp(1, self.config.capacity);
        let (temporary, probe, replaces, generation) =
            (slot.temporary, slot.probe, slot.replaces, slot.generation);
        self.counters.dial.record_duration(took);
        cx.events.push_back(Event::Opened { slot: SlotId { endpoint: self.id, index, generation }, took });
        if temporary {
            self.temporary_connecting -= 1;
        }
        self.set_state(index, State::Ready);
        if self.leaving {
            self.retire(cx, index, CloseReason::Drain);
            return;
        }
        self.plan_age(cx, index);
        // The breaker may have opened since, and another ticket be the probe: then this one is nobody.
        let probe = self.breaker.current(probe);
        if probe.is_some() && !self.tickets.mark_front(probe) && self.breaker.succeed(probe) {
            cx.events.push_back(Event::BreakerClosed { endpoint: self.id });
        }
        self.offer(cx, index);
        if let Some((old, old_generation)) = replaces
            && self.is_current(old, old_generation)
            && self.slots[old as usize].is_open()
        {
            self.retire(cx, old, CloseReason::Age);
        }
        if temporary && self.slots[index as usize].in_flight == 0 && self.slots[index as usize].is_open() {
            self.retire(cx, index, CloseReason::Temporary);
        }
        self.grow(cx);
    }
}

// Ending.
impl Endpoint {
    /// Takes a slot out of service: closes it now if nobody holds it, else when the last lease comes back.
    fn retire(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        if self.slots[index as usize].in_flight == 0 {
            self.close(cx, index, reason);
        } else {
            self.slots[index as usize].reason = reason;
            self.set_state(index, State::Draining);
            self.grow(cx);
        }
    }

    fn close(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        self.idle.remove(index);
        self.note_closed(cx, index, reason);
        self.set_state(index, State::Closed);
        let slot = SlotId { endpoint: self.id, index, generation: self.slots[index as usize].generation };
        cx.actions.push_back(Action::Close { slot, reason });
        self.grow(cx);
    }

    fn note_closed(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        let slot = &self.slots[index as usize];
        let (uses, age) = (slot.uses, cx.now.saturating_duration_since(slot.since));
        self.counters.closed(reason);
        self.counters.uses.record(uses);
        let slot = SlotId { endpoint: self.id, index, generation: slot.generation };
        cx.events.push_back(Event::Closed { slot, reason, uses, age });
    }

    /// The connection is gone: its leases, when they come back, mean nothing.
    fn forget_leases(&mut self, index: u32) {
        while self.slots[index as usize].in_flight > 0 {
            self.return_unit(index);
        }
    }

    fn vacate(&mut self, index: u32) {
        self.idle.remove(index);
        let slot = self.slots[index as usize];
        if slot.temporary {
            self.temporary -= 1;
            if slot.state == State::Connecting {
                self.temporary_connecting -= 1;
            }
        }
        self.set_state(index, State::Vacant);
        self.permits.give(slot.temporary);
        self.slots[index as usize].generation = slot.generation.wrapping_add(1);
        self.vacant.push(index);
    }

    fn stand_idle(&mut self, cx: &mut Context<'_>, index: u32) {
        self.slots[index as usize].idle_since = cx.now;
        if self.slots[index as usize].temporary {
            return;
        }
        self.idle.push_back(index);
        if self.idle.len() > self.config.idle_max
            && let Some(oldest) = self.idle.front()
        {
            self.close(cx, oldest, CloseReason::IdleMax);
        }
        if let (Some(timeout), Some(oldest)) = (self.idle_timeout(cx.now), self.idle.front())
            && self.spare() > 0
        {
            self.arm(self.slots[oldest as usize].idle_since + timeout);
        }
        if self.has_budget() && self.next_reclaim == Instant::MAX {
            self.next_reclaim = cx.now + RECLAIM_INTERVAL;
            self.arm(self.next_reclaim);
        }
    }

    /// Open, pooled connections that could go without falling below `connections_min`.
    fn spare(&self) -> u32 {
        self.open.saturating_sub(self.config.connections_min)
    }

    fn close_idle(&mut self, cx: &mut Context<'_>) {
        let Some(timeout) = self.idle_timeout(cx.now) else { return };
        while let Some(index) = self.idle.front() {
            if self.slots[index as usize].idle_since + timeout > cx.now || self.spare() == 0 {
                return;
            }
            self.close(cx, index, CloseReason::Idle);
        }
    }

    /// How often [`Endpoint::shrink`] looks.
    fn shrink_period(&self) -> Duration {
        match (self.config.order, self.config.idle_timeout) {
            (IdleOrder::Fifo | IdleOrder::Random, Some(timeout)) => (timeout / 2).max(SHRINK_PERIOD_MIN),
            (IdleOrder::Lifo, _) | (_, None) => Duration::MAX,
        }
    }

    /// Where the order keeps every connection warm, demand decides how many stay (HAProxy's rule): twice per
    /// `idle_timeout`, half of what neither this period nor the one before needed goes. What stands idle goes first;
    /// a multiplexed endpoint may have nothing idle, and then those that carry least take no more.
    fn shrink(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.next_shrink {
            return;
        }
        self.next_shrink = cx.now + self.shrink_period();
        let peak = u64::from(self.peak_now.max(self.peak_before));
        let wanted = (peak * u64::from(self.config.headroom_percent)).div_ceil(100);
        let needed = u32::try_from(wanted.div_ceil(self.capacity_guess.into())).unwrap_or(u32::MAX);
        self.peak_before = std::mem::replace(&mut self.peak_now, self.in_flight_open);
        let surplus = self.open.saturating_sub(needed.max(self.config.connections_min));
        self.retire_surplus(cx, surplus.div_ceil(2));
    }

    /// Takes so many pooled connections out of service: the longest idle first, then those that carry least.
    fn retire_surplus(&mut self, cx: &mut Context<'_>, n: u32) {
        for _ in 0..n.min(self.spare()) {
            let least = || {
                let open = (0..self.slots.len() as u32).filter(|i| {
                    let slot = &self.slots[*i as usize];
                    slot.is_open() && !slot.temporary
                });
                open.min_by_key(|i| self.slots[*i as usize].in_flight)
            };
            let Some(index) = self.idle.front().or_else(least) else { return };
            self.retire(cx, index, CloseReason::Surplus);
        }
    }

    /// A limit was lowered: what is now too much goes, this engine's share of it.
    fn trim(&mut self, cx: &mut Context<'_>) {
        while self.idle.len() > self.config.idle_max
            && let Some(oldest) = self.idle.front()
        {
            self.close(cx, oldest, CloseReason::IdleMax);
        }
        let going = self.count(State::Draining) + self.count(State::Closed);
        let used = self.permits.connections.used().saturating_sub(going);
        if used > self.config.connections_max {
            let mine = self.open + self.count(State::Connecting) - self.temporary_connecting;
            let share = (u64::from(mine) * u64::from(self.config.connections_max)).div_ceil(used.into());
            self.retire_surplus(cx, mine.saturating_sub(share as u32));
        }
    }

    /// While this machine runs short, half of what stands idle goes back each second.
    fn reclaim(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.next_reclaim {
            return;
        }
        if self.permits.is_tight() {
            self.close_longest_idle(cx, self.idle.len().div_ceil(2), CloseReason::Reclaimed);
        }
        self.next_reclaim = if self.idle.is_empty() { Instant::MAX } else { cx.now + RECLAIM_INTERVAL };
    }

    fn close_longest_idle(&mut self, cx: &mut Context<'_>, n: u32, reason: CloseReason) {
        for _ in 0..n.min(self.spare()) {
            let Some(index) = self.idle.front() else { return };
            self.close(cx, index, reason);
        }
    }

    fn plan_age(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.temporary {
            return;
        }
        let Some(age_max) = self.config.age_max else {
            slot.retire_at = Instant::MAX;
            return;
        };
        slot.retire_at = slot.since + age_max;
        let soft = slot.since + cx.rng.between(age_max * 80 / 100, age_max * 95 / 100);
        let (hard, generation) = (slot.retire_at, slot.generation);
        // Entries of connections that went early lie about until their time comes: not too many of them.
        if self.ages.len() > AGES_SLACK + 4 * self.slots.len() {
            let slots = &self.slots;
            self.ages.retain(|Reverse((_, index, generation))| {
                let slot = &slots[*index as usize];
                slot.generation == *generation && slot.is_open()
            });
        }
        self.ages.push(Reverse((soft, index, generation)));
        self.ages.push(Reverse((hard, index, generation)));
        self.arm(soft);
    }

    /// The replacement of an old connection could not be dialled, or failed: tries again soon.
    fn age_again(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &self.slots[index as usize];
        let retry = cx.now + AGE_RETRY;
        if retry < slot.retire_at {
            self.ages.push(Reverse((retry, index, slot.generation)));
            self.arm(retry);
        }
    }

    /// Replaces what has become old, then retires it; at `age_max` it goes even without a replacement.
    fn age(&mut self, cx: &mut Context<'_>) {
        while let Some(&Reverse((at, index, generation))) = self.ages.peek() {
            if at > cx.now {
                return;
            }
            self.ages.pop();
            if !self.is_current(index, generation) || !self.slots[index as usize].is_open() {
                continue;
            }
            if cx.now >= self.slots[index as usize].retire_at || self.can_do_without(index) {
                self.retire(cx, index, CloseReason::Age);
                continue;
            }
            if self.forbidden(cx.now).is_some() {
                self.age_again(cx, index);
                continue;
            }
            match self.permits.take(false, true) {
                Ok(()) => self.dial(cx, false, Some((index, generation))),
                // The pool is full, so its replacement needs its place. If all waited for `age_max`, all of a burst
                // would go at once.
                Err(Denied::Connections) if self.open > 1 => self.retire(cx, index, CloseReason::Age),
                Err(_) => self.age_again(cx, index),
            }
        }
    }

    /// Whether nobody would notice if this slot went: it is idle, and another has room.
    fn can_do_without(&self, index: u32) -> bool {
        self.slots[index as usize].in_flight == 0 && self.spare() > 0 && self.free.len() > 1
    }

    /// A peer that closes a connection that stood idle tells how long it lets them stand.
    fn learn_from_closing(&mut self, now: Instant, index: u32) {
        let slot = &self.slots[index as usize];
        let stood = now.saturating_duration_since(slot.idle_since);
        if self.idle.contains(index) && slot.uses > 0 && stood >= LEARNT_MIN {
            self.learn_idle_timeout(now, stood);
        }
    }
}

// Keeping the books.
impl Endpoint {
    const fn has_budget(&self) -> bool {
        self.permits.budget.descriptors.is_some() || self.permits.budget.ports.is_some()
    }

    /// Notes what the peer allows: the next connections are expected to carry as much.
    fn guess_capacity(&mut self, allowed: u32) {
        self.capacity_allowed = allowed;
        self.capacity_guess = allowed.clamp(1, self.config.capacity);
    }

    /// The peer or the policy changed how much a slot carries.
    fn apply_capacity(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.temporary {
            return;
        }
        let capacity = slot.allowed.clamp(1, self.config.capacity);
        let before = std::mem::replace(&mut slot.capacity, capacity);
        self.capacity_open = self.capacity_open + capacity - before;
        let (state, in_flight) = (slot.state, slot.in_flight);
        if state == State::Ready && in_flight >= capacity {
            self.set_state(index, State::Busy);
        } else if state == State::Busy && in_flight < capacity {
            self.offer(cx, index);
        }
    }

    fn reorder(&mut self, order: IdleOrder) {
        let mut free = Free::new(order);
        for index in 0..self.slots.len() as u32 {
            if self.free.contains(index) {
                free.insert(index);
            }
        }
        self.free = free;
    }

    fn configure_checks(&mut self, cx: &mut Context<'_>) {
        let before = self.health();
        match (&mut self.checks, self.config.health) {
            (Some(checks), Some(config)) => checks.configure(cx.now, config),
            (checks, config) => *checks = config.map(|config| Checks::new(config, cx.now, cx.rng)),
        }
        if self.health() != before {
            cx.events.push_back(Event::HealthChanged { endpoint: self.id, health: self.health() });
        }
    }

    fn is_current(&self, index: u32, generation: u32) -> bool {
        self.slots.get(index as usize).is_some_and(|slot| slot.generation == generation)
    }

    /// The one place where a slot changes its state, and with it every count that depends on it.
    fn set_state(&mut self, index: u32, state: State) {
        let slot = &mut self.slots[index as usize];
        let before = std::mem::replace(&mut slot.state, state);
        if before != State::Vacant {
            self.counts[before as usize] -= 1;
        }
        if state != State::Vacant {
            self.counts[state as usize] += 1;
        }
        let was_open = matches!(before, State::Ready | State::Busy);
        let is_open = matches!(state, State::Ready | State::Busy);
        if !slot.temporary && was_open != is_open {
            if is_open {
                self.open += 1;
                self.capacity_open += slot.capacity;
                self.in_flight_open += slot.in_flight;
            } else {
                self.open -= 1;
                self.capacity_open -= slot.capacity;
                self.in_flight_open -= slot.in_flight;
            }
        }
        if before == State::Ready {
            self.free.remove(index);
        }
        if state == State::Ready {
            self.free.insert(index);
        }
    }

    fn arm(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    fn exact_due(&self, now: Instant) -> Instant {
        let mut due = self.tickets.expiry().min(self.next_shrink).min(self.next_reclaim);
        if let (Some(front), Some(timeout)) = (self.idle.front(), self.idle_timeout(now))
            && self.spare() > 0
        {
            due = due.min(self.slots[front as usize].idle_since + timeout);
        }
        if let Some(Reverse((at, ..))) = self.ages.peek() {
            due = due.min(*at);
        }
        if let Some(checks) = &self.checks {
            due = due.min(checks.next());
        }
        if !self.leaving && self.wants_slot() {
            // Of these, what is over forbids nothing any more.
            let starved = self.starved_until.unwrap_or(now);
            for until in [starved, self.backoff.until(), self.local_pause.until()] {
                if until > now {
                    due = due.min(until);
                }
            }
            if let BreakerState::Open(until) = self.breaker.state()
                && until > now
            {
                due = due.min(until);
            }
        }
        due
    }

    /// Counts everything anew and compares. For simulation and tests.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut counts = [0; State::COUNT];
        let (mut open, mut capacity, mut in_flight, mut in_use, mut temporary, mut idle, mut free) =
            (0, 0, 0, 0, 0, 0, 0);
        for (index, slot) in self.slots.iter().enumerate() {
            let index = index as u32;
            if slot.state == State::Vacant {
                continue;
            }
            counts[slot.state as usize] += 1;
            in_use += slot.in_flight;
            temporary += u32::from(slot.temporary);
            if slot.is_open() && !slot.temporary {
                open += 1;
                capacity += slot.capacity;
                in_flight += slot.in_flight;
            }
            let should_be_idle = slot.is_open() && slot.in_flight == 0 && !slot.temporary;
            idle += u32::from(should_be_idle);
            free += u32::from(slot.state == State::Ready);
            if self.idle.contains(index) != should_be_idle {
                return Err(format!(
                    "slot {index} {slot:?}: in the idle list: {}",
                    self.idle.contains(index)
                ));
            }
            if self.free.contains(index) != (slot.state == State::Ready) {
                return Err(format!("slot {index} {slot:?}: among the free: {}", self.free.contains(index)));
            }
            match slot.state {
                State::Ready if slot.in_flight >= slot.capacity => {
                    return Err(format!("slot {index} is ready and full"));
                }
                State::Busy if slot.in_flight < slot.capacity => {
                    return Err(format!("slot {index} is busy with room"));
                }
                State::Draining if slot.in_flight == 0 => {
                    return Err(format!("slot {index} drains with no lease"));
                }
                State::Closed | State::Connecting if slot.in_flight > 0 => {
                    return Err(format!("a lease is out on slot {index}, which is {:?}", slot.state));
                }
                _ => {}
            }
        }
        let counted = (counts, open, capacity, in_flight, in_use, temporary, idle, free);
        let kept = (
            self.counts,
            self.open,
            self.capacity_open,
            self.in_flight_open,
            self.in_use,
            self.temporary,
            self.idle.len(),
            self.free.len(),
        );
        if counted != kept {
            return Err(format!("counted {counted:?}, kept {kept:?}"));
        }
        if !self.tickets.is_empty() && self.free.len() > 0 {
            return Err(format!(
                "{} tickets wait while {} slots have room",
                self.tickets.len(),
                self.free.len()
            ));
        }
        Ok(())
    }
}

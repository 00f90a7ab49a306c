//! The world's own books on one endpoint as one engine sees it: kept without asking the engine, then compared.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use forebay_core::{
    AcquireOutcome, Acquired, BreakerState, Cause, CloseReason, Config, EndpointId, Engine, Health,
    HealthConfig, Instant, Lease, Outcome, Overflow, Refusal, SlotId, Snapshot, State, TicketError, TicketId,
};

use super::coverage::Coverage;

/// What an invariant says when it does not hold.
pub(crate) type Broken = (&'static str, String);

/// Ends the function with a broken invariant unless the condition holds.
macro_rules! hold {
    ($condition:expr, $invariant:literal, $($detail:tt)+) => {
        if !$condition {
            return Err(($invariant, format!($($detail)+)));
        }
    };
}
pub(crate) use hold;

/// Where a connection stands, as the world knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Dialing,
    Open,
    /// The engine said to close it.
    Closing,
}

/// One socket.
#[derive(Clone, Debug)]
pub(crate) struct Conn {
    pub(crate) phase: Phase,
    /// When its dial began, then when it was made.
    pub(crate) since: Instant,
    /// Requests at once that the peer allows.
    pub(crate) allowed: u32,
    pub(crate) in_flight: u32,
    pub(crate) uses: u64,
    /// When the last lease came back, or the connection was made.
    pub(crate) idle_since: Instant,
    /// The peer said goodbye, or a lease came back broken: no lease may be given on it any more.
    pub(crate) doomed: bool,
    /// It was granted as a temporary one.
    pub(crate) temporary: bool,
}

/// What the last call told the engine about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing.
    Nothing,
    /// It worked.
    Success,
    /// A connection was made.
    Connected,
    /// It failed, and is to blame.
    Upstream,
    /// Something failed, and somebody else is to blame.
    NotUpstream,
}

impl News {
    pub(crate) fn of_cause(cause: Cause) -> Self {
        match cause.blame() {
            forebay_core::Blame::Upstream => Self::Upstream,
            forebay_core::Blame::Local | forebay_core::Blame::Client => Self::NotUpstream,
        }
    }

    pub(crate) fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Good | Outcome::GoodLast => Self::Success,
            Outcome::Failed(cause) | Outcome::Broken(cause) => Self::of_cause(cause),
            Outcome::Unused | Outcome::Abandoned => Self::Nothing,
        }
    }
}

/// When the permits of a site last had no room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// Since when a connection could be added even by an engine that has one.
    pub(crate) modest: Option<Instant>,
    /// Since when a connection could be added by an engine that has none.
    pub(crate) urgent: Option<Instant>,
}

/// One endpoint as one engine sees it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) worker: usize,
    pub(crate) site: usize,
    pub(crate) id: EndpointId,
    pub(crate) config: Config,
    pub(crate) conns: BTreeMap<SlotId, Conn>,
    pub(crate) dialing: u32,
    /// Tickets that wait, oldest first, with their deadlines.
    pub(crate) line: VecDeque<(TicketId, Instant)>,
    pub(crate) leaving: bool,
    pub(crate) closed_all: bool,
    pub(crate) breaker: BreakerState,
    health: Health,
    /// Upstream failures since the last success, while the breaker is closed.
    failures: u32,
    /// Health checks in a row that disagree with the verdict.
    disagreeing: u32,
    /// Probe leases given since the breaker last opened, and not yet returned.
    probes_out: u32,
    /// Counts the times that the breaker opened or closed, so that a late probe is known as such.
    pub(crate) epoch: u32,
    last_dial_failure: Option<Instant>,
    /// The shortest `age_max` of any policy so far: a replacement may have been dialled under an older one.
    age_least: Option<Duration>,
    /// The longest pause that any policy so far allowed.
    backoff_max: Duration,
    acquires: [u64; AcquireOutcome::ALL.len()],
    closes: [u64; CloseReason::ALL.len()],
}

impl Lane {
    pub(crate) fn new(worker: usize, site: usize, id: EndpointId, config: Config) -> Self {
        Self {
            worker,
            site,
            id,
            config,
            conns: BTreeMap::new(),
            dialing: 0,
            line: VecDeque::new(),
            leaving: false,
            closed_all: false,
            breaker: BreakerState::Closed,
            health: Health::Healthy,
            failures: 0,
            disagreeing: 0,
            probes_out: 0,
            epoch: 0,
            last_dial_failure: None,
            age_least: config.age_max,
            backoff_max: config.backoff.max,
            acquires: [0; AcquireOutcome::ALL.len()],
            closes: [0; CloseReason::ALL.len()],
        }
    }

    pub(crate) fn reconfigure(&mut self, config: Config) {
        if config.health != self.config.health {
            self.disagreeing = 0;
        }
        if config.health.is_none() {
            self.health = Health::Healthy;
        }
        self.config = config;
        self.age_least = self.age_least.into_iter().chain(config.age_max).min();
        self.backoff_max = self.backoff_max.max(config.backoff.max);
    }

    /// Whether anything of it is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.leaving && self.conns.is_empty()
    }

    fn capacity(&self, conn: &Conn) -> u32 {
        if conn.temporary { 1 } else { conn.allowed.clamp(1, self.config.capacity) }
    }

    /// The answer to an acquire.
    pub(crate) fn acquired(
        &mut self,
        now: Instant,
        deadline: Instant,
        answer: &Acquired,
    ) -> Result<(), Broken> {
        match answer {
            Acquired::Lease(lease) => {
                hold!(self.line.is_empty(), "no barging", "{} tickets wait, and {lease:?}", self.line.len());
                self.count(AcquireOutcome::Reused);
                self.granted(lease)
            }
            Acquired::Wait(ticket) => {
                hold!(
                    (self.line.len() as u32) < self.config.waiters_max,
                    "waiters_max holds",
                    "{} wait, at most {}",
                    self.line.len() + 1,
                    self.config.waiters_max
                );
                hold!(self.may_enter(now), "an open breaker lets nobody in", "{:?}", self.breaker);
                hold!(!self.leaving, "who leaves takes nobody in", "{ticket:?}");
                self.line.push_back((*ticket, deadline));
                Ok(())
            }
            Acquired::Refused(refusal) => {
                self.count(AcquireOutcome::Rejected);
                self.refused(now, deadline, *refusal)
            }
        }
    }

    fn may_enter(&self, now: Instant) -> bool {
        match self.breaker {
            BreakerState::Open(until) => now >= until,
            BreakerState::Closed | BreakerState::HalfOpen => true,
        }
    }

    fn refused(&self, now: Instant, deadline: Instant, refusal: Refusal) -> Result<(), Broken> {
        let reject = self.config.overflow == Overflow::Reject;
        let fair = match refusal {
            Refusal::LineFull { waiters, .. } => waiters >= self.config.waiters_max,
            Refusal::Full { .. } => reject,
            Refusal::Deadline { .. } => deadline <= now,
            Refusal::BreakerOpen { .. } => match self.breaker {
                BreakerState::Closed => false,
                BreakerState::Open(_) => true,
                // Somebody must be the probe: a lease, a dial, or a ticket.
                BreakerState::HalfOpen => self.probes_out > 0 || self.dialing > 0 || !self.line.is_empty(),
            },
            Refusal::Backoff { until, .. } => until >= deadline && self.may_pause(now),
            Refusal::Leaving => self.leaving,
            Refusal::NoEndpoint => self.is_gone(),
            _ => false,
        };
        hold!(fair, "a refusal has its reason", "{refusal:?}, {:?}", self.breaker);
        Ok(())
    }

    /// A lease leaves the engine, at once or for a ticket.
    pub(crate) fn granted(&mut self, lease: &Lease) -> Result<(), Broken> {
        let config = self.config;
        let slot = lease.slot();
        let Some(conn) = self.conns.get(&slot) else {
            return Err(("a lease is on a connection", format!("{lease:?}: there is none")));
        };
        hold!(
            conn.phase == Phase::Open && !conn.doomed && !self.leaving,
            "no lease on what is closing",
            "{lease:?} on {conn:?}"
        );
        hold!(
            conn.in_flight < self.capacity(conn),
            "in flight within capacity",
            "{lease:?} on {conn:?}, capacity {}",
            self.capacity(conn)
        );
        hold!(config.uses_max.is_none_or(|max| conn.uses < max), "uses_max holds", "{lease:?} on {conn:?}");
        hold!(lease.is_fresh() == (conn.uses == 0), "fresh means never used", "{lease:?} on {conn:?}");
        hold!(
            !lease.is_temporary() || conn.uses == 0,
            "a temporary connection serves once",
            "{lease:?} on {conn:?}"
        );
        hold!(!conn.temporary, "a temporary connection serves once", "{lease:?} on {conn:?}");
        if lease.is_probe() {
            self.probes_out += 1;
            hold!(self.probes_out == 1, "one probe at a time", "{lease:?} is the {}th", self.probes_out);
        }
        let Some(conn) = self.conns.get_mut(&slot) else { return Ok(()) };
        conn.in_flight += 1;
        conn.uses += 1;
        conn.temporary = lease.is_temporary();
        Ok(())
    }

    /// A ticket's turn came.
    pub(crate) fn served(&mut self, ticket: TicketId, lease: &Lease) -> Result<(), Broken> {
        let Some((front, _)) = self.line.pop_front() else {
            return Err(("each ticket is answered once", format!("{ticket:?} does not wait")));
        };
        hold!(front == ticket, "first in, first out", "{ticket:?} was served before {front:?}");
        self.count(match (lease.is_temporary(), lease.is_fresh()) {
            (true, _) => AcquireOutcome::Temporary,
            (false, true) => AcquireOutcome::Fresh,
            (false, false) => AcquireOutcome::Waited,
        });
        self.granted(lease)
    }

    /// A ticket got nothing.
    pub(crate) fn failed(
        &mut self,
        now: Instant,
        ticket: TicketId,
        error: &TicketError,
    ) -> Result<(), Broken> {
        let Some(place) = self.line.iter().position(|(id, _)| *id == ticket) else {
            return Err(("each ticket is answered once", format!("{ticket:?} does not wait, and {error:?}")));
        };
        let (_, deadline) = self.line.remove(place).unwrap_or((ticket, Instant::ZERO));
        let open = self.conns.values().filter(|conn| conn.phase == Phase::Open && !conn.doomed).count();
        let fair = match error {
            TicketError::Timeout { in_use, connecting, .. } => {
                let held: u32 = self.conns.values().map(|conn| conn.in_flight).sum();
                hold!(
                    (*in_use, *connecting) == (held, self.dialing),
                    "a time-out says who was in the way",
                    "{error:?}, but {held} in use and {} connecting",
                    self.dialing
                );
                deadline <= now
            }
            // A slot that drains by age or uses may still be held; what counts is that none could serve.
            TicketError::Dial(_) => self.dialing == 0 && open == self.retiring(),
            TicketError::Leaving => self.leaving,
            _ => false,
        };
        hold!(fair, "a ticket fails for a reason", "{ticket:?} due {deadline:?}: {error:?}");
        self.count(match error {
            TicketError::Timeout { .. } => AcquireOutcome::Timeout,
            _ => AcquireOutcome::Rejected,
        });
        Ok(())
    }

    /// Open connections that take no more leases though the peer said nothing: worn out, or old, or surplus.
    fn retiring(&self) -> usize {
        let open = self.conns.values().filter(|conn| conn.phase == Phase::Open && !conn.doomed);
        open.filter(|conn| conn.in_flight > 0).count()
    }

    /// Somebody gave up waiting. Returns whether the ticket was in line.
    pub(crate) fn cancelled(&mut self, ticket: TicketId) -> bool {
        let place = self.line.iter().position(|(id, _)| *id == ticket);
        if let Some(place) = place {
            self.line.remove(place);
            self.count(AcquireOutcome::Cancelled);
        }
        place.is_some()
    }

    pub(crate) fn returned(&mut self, now: Instant, slot: SlotId, outcome: Outcome) {
        let Some(conn) = self.conns.get_mut(&slot) else { return };
        if conn.phase != Phase::Open {
            return;
        }
        conn.in_flight -= 1;
        conn.idle_since = now;
        let ends = matches!(outcome, Outcome::GoodLast | Outcome::Broken(_) | Outcome::Abandoned);
        conn.doomed |= ends || conn.temporary;
    }

    pub(crate) const fn probe_returned(&mut self, epoch: u32) {
        if self.epoch == epoch {
            self.probes_out = self.probes_out.saturating_sub(1);
        }
    }

    /// The engine wants a connection.
    pub(crate) fn dials(&mut self, now: Instant, slot: SlotId) -> Result<(), Broken> {
        self.dialing += 1;
        hold!(
            self.dialing <= self.config.dials_max,
            "dials_max holds",
            "{} under way, at most {}",
            self.dialing,
            self.config.dials_max
        );
        let conn = Conn {
            phase: Phase::Dialing,
            since: now,
            allowed: 0,
            in_flight: 0,
            uses: 0,
            idle_since: now,
            doomed: false,
            temporary: false,
        };
        let before = self.conns.insert(slot, conn);
        hold!(before.is_none(), "a slot is one connection", "{slot:?} is dialled twice");
        hold!(!self.leaving, "who leaves dials no more", "{slot:?}");
        Ok(())
    }

    /// A dial ended.
    pub(crate) fn dialed(&mut self, now: Instant, slot: SlotId, result: Result<u32, Cause>) {
        self.dialing -= 1;
        match result {
            Ok(allowed) => {
                let Some(conn) = self.conns.get_mut(&slot) else { return };
                conn.phase = Phase::Open;
                (conn.since, conn.idle_since) = (now, now);
                conn.allowed = allowed;
            }
            Err(cause) => {
                self.conns.remove(&slot);
                if cause.blame() != forebay_core::Blame::Client {
                    self.last_dial_failure = Some(now);
                }
            }
        }
    }

    /// The engine wants a connection closed.
    pub(crate) fn closes(&mut self, now: Instant, slot: SlotId, reason: CloseReason) -> Result<(), Broken> {
        self.closes[reason as usize] += 1;
        let Some(conn) = self.conns.get_mut(&slot) else {
            return Err(("what is closed was open", format!("{slot:?}, {reason:?}: there is none")));
        };
        hold!(conn.phase == Phase::Open, "what is closed was open", "{slot:?}, {reason:?}: {conn:?}");
        hold!(
            conn.in_flight == 0 || self.closed_all,
            "nobody loses a connection in use",
            "{slot:?}, {reason:?}: {conn:?}"
        );
        let age = now.saturating_duration_since(conn.since);
        let fair = match reason {
            CloseReason::Age => self.age_least.is_some_and(|max| age >= max * 8 / 10),
            CloseReason::Uses => conn.uses > 0,
            CloseReason::Temporary => self.config.overflow == Overflow::Temporary || conn.uses <= 1,
            CloseReason::Drain => self.leaving,
            CloseReason::Goodbye | CloseReason::Broken | CloseReason::Abandoned => conn.doomed,
            CloseReason::Peer => false,
            CloseReason::Idle | CloseReason::IdleMax | CloseReason::Surplus | CloseReason::Reclaimed => true,
        };
        hold!(fair, "a connection ends for a reason", "{slot:?}, {reason:?}: {conn:?}");
        conn.phase = Phase::Closing;
        conn.in_flight = 0;
        Ok(())
    }

    /// The peer closed a connection that the engine thought open.
    pub(crate) const fn closed_by_peer(&mut self) {
        self.closes[CloseReason::Peer as usize] += 1;
    }

    pub(crate) const fn count(&mut self, outcome: AcquireOutcome) {
        self.acquires[outcome as usize] += 1;
    }

    /// Adds how the acquires ended to what happened.
    pub(crate) fn count_acquires(&self, coverage: &mut Coverage) {
        for (outcome, n) in AcquireOutcome::ALL.iter().zip(self.acquires) {
            coverage.add("acquire", outcome.as_str(), n);
        }
    }

    fn may_pause(&self, now: Instant) -> bool {
        self.last_dial_failure.is_some_and(|at| now <= at + self.backoff_max)
    }

    /// Time has come this far, and nothing was told to the engine yet: was it asleep with work to do?
    pub(crate) fn check_awake(&self, now: Instant, lazy: Duration, room: Room) -> Result<(), Broken> {
        for (ticket, deadline) in &self.line {
            hold!(
                now <= *deadline + lazy,
                "no ticket waits longer than its deadline",
                "{ticket:?} due {deadline:?} still waits at {now:?}"
            );
        }
        if self.line.is_empty() || self.dialing > 0 {
            return Ok(());
        }
        let paused = self.last_dial_failure.is_some_and(|at| now <= at + self.backoff_max + lazy);
        let barred = matches!(self.breaker, BreakerState::Open(until) if now <= until + lazy);
        let serving = self.conns.values().any(|conn| conn.phase == Phase::Open);
        let since = if serving { room.modest } else { room.urgent };
        let starved = since.is_none_or(|since| now <= since + STARVED_RETRY + lazy);
        hold!(
            paused || barred || starved,
            "nobody waits while a dial could help",
            "{} wait at {now:?}, nothing is dialled, and there is room since {since:?}",
            self.line.len()
        );
        Ok(())
    }

    /// Compares the engine's books with these, after a call that brought this news.
    pub(crate) fn check(
        &mut self,
        engine: &Engine,
        now: Instant,
        lazy: Duration,
        news: News,
    ) -> Result<(), Broken> {
        let Some(snapshot) = engine.snapshot(now, self.id) else {
            hold!(self.is_gone(), "what is forgotten is gone", "{} connections", self.conns.len());
            hold!(self.line.is_empty(), "what is forgotten is gone", "{} tickets", self.line.len());
            return Ok(());
        };
        self.check_counts(&snapshot)?;
        self.check_slots(engine, now, lazy)?;
        self.check_breaker(now, snapshot.breaker, news)?;
        hold!(
            snapshot.health == self.health,
            "health follows the checks",
            "{:?}, should be {:?}",
            snapshot.health,
            self.health
        );
        Ok(())
    }

    fn check_counts(&self, snapshot: &Snapshot) -> Result<(), Broken> {
        let phase = |phase| self.conns.values().filter(|conn| conn.phase == phase).count() as u32;
        let held: u32 = self.conns.values().map(|conn| conn.in_flight).sum();
        let open = snapshot.ready + snapshot.busy + snapshot.draining;
        let told = (snapshot.connecting, open, snapshot.closed, snapshot.in_use, snapshot.waiting);
        let known =
            (phase(Phase::Dialing), phase(Phase::Open), phase(Phase::Closing), held, self.line.len() as u32);
        hold!(
            told == known,
            "the engine counts what is there",
            "(connecting, open, closing, in use, waiting): {told:?}, there are {known:?}"
        );
        for (i, outcome) in AcquireOutcome::ALL.iter().enumerate() {
            let told = snapshot.counters.acquires(*outcome);
            hold!(
                told == self.acquires[i],
                "every acquire is counted once",
                "{outcome:?}: {told}, there were {}",
                self.acquires[i]
            );
        }
        for (i, reason) in CloseReason::ALL.iter().enumerate() {
            let told = snapshot.counters.closes(*reason);
            hold!(
                told == self.closes[i],
                "every close is counted once",
                "{reason:?}: {told}, there were {}",
                self.closes[i]
            );
        }
        Ok(())
    }

    fn check_slots(&self, engine: &Engine, now: Instant, lazy: Duration) -> Result<(), Broken> {
        // Else it is to be woken this moment, and says so.
        let settled = engine.next_timeout().is_none_or(|due| due > now);
        let mut pooled_open = 0;
        let mut longest_idle: Option<Instant> = None;
        for (slot, conn) in &self.conns {
            let state = engine.slot_state(*slot);
            let capacity = self.capacity(conn);
            let fits = match state {
                State::Vacant => false,
                State::Connecting => conn.phase == Phase::Dialing,
                State::Ready => conn.phase == Phase::Open && conn.in_flight < capacity && !conn.doomed,
                State::Busy => conn.phase == Phase::Open && conn.in_flight >= capacity && !conn.doomed,
                State::Draining => conn.phase == Phase::Open && conn.in_flight > 0,
                State::Closed => conn.phase == Phase::Closing,
            };
            hold!(fits, "a slot is in the state of its connection", "{slot:?} is {state:?}: {conn:?}");
            hold!(
                state != State::Ready || self.line.is_empty(),
                "no ready slot while a ticket waits",
                "{slot:?} has room, {} wait",
                self.line.len()
            );
            if matches!(state, State::Ready | State::Busy) {
                let age = now.saturating_duration_since(conn.since);
                hold!(
                    !settled || conn.temporary || self.config.age_max.is_none_or(|max| age <= max + lazy),
                    "age_max holds",
                    "{slot:?} is {age:?} old: {conn:?}"
                );
                pooled_open += u32::from(!conn.temporary);
                if conn.in_flight == 0 {
                    longest_idle =
                        Some(longest_idle.map_or(conn.idle_since, |since| since.min(conn.idle_since)));
                }
            }
        }
        if let (Some(since), Some(timeout)) = (longest_idle, self.config.idle_timeout)
            && pooled_open > self.config.connections_min
            && settled
        {
            let idle = now.saturating_duration_since(since);
            hold!(idle <= timeout + lazy, "idle_timeout holds", "{idle:?} idle, at most {timeout:?}");
        }
        Ok(())
    }

    fn check_breaker(&mut self, now: Instant, after: BreakerState, news: News) -> Result<(), Broken> {
        use BreakerState::{Closed, HalfOpen, Open};
        let before = self.breaker;
        let limit = self.config.breaker.failures;
        if before == Closed {
            match news {
                News::Upstream => self.failures += 1,
                News::Success => self.failures = 0,
                News::Nothing | News::Connected | News::NotUpstream => {}
            }
        }
        let fair = match (before, after) {
            (Closed, Closed) => limit == 0 || self.failures < limit || news != News::Upstream,
            (Closed, Open(until)) => {
                news == News::Upstream && limit > 0 && self.failures >= limit && until > now
            }
            (Open(a), Open(b)) => a == b,
            (Open(until), HalfOpen) => now >= until,
            (HalfOpen, HalfOpen) => true,
            (HalfOpen, Open(until)) => news == News::Upstream && until > now,
            (HalfOpen, Closed) => matches!(news, News::Success | News::Connected),
            (Closed, HalfOpen) | (Open(_), Closed) => false,
        };
        hold!(
            fair,
            "the breaker moves for the upstream's failures alone",
            "{before:?} to {after:?} after {news:?}, {} failures of {limit}",
            self.failures
        );
        if std::mem::discriminant(&before) != std::mem::discriminant(&after) {
            self.breaker = after;
            self.failures = 0;
            if after != HalfOpen {
                self.epoch += 1;
                self.probes_out = 0;
            }
        }
        Ok(())
    }

    /// A health check ended: what the verdict should be now.
    pub(crate) fn probed(&mut self, result: Result<(), Cause>) {
        let Some(HealthConfig { rise, fall, .. }) = self.config.health else { return };
        let good = match result {
            Ok(()) => true,
            Err(cause) if News::of_cause(cause) == News::Upstream => false,
            Err(_) => return,
        };
        if good == (self.health == Health::Healthy) {
            self.disagreeing = 0;
            return;
        }
        self.disagreeing += 1;
        let (needed, other) = if good { (rise, Health::Healthy) } else { (fall, Health::Unhealthy) };
        if self.disagreeing >= needed {
            self.disagreeing = 0;
            self.health = other;
        }
    }
}

/// How often the engine looks again for permits that others may have given back.
const STARVED_RETRY: Duration = Duration::from_millis(5);

//! One scenario per rule of the engine. Time advances by assignment; nothing is awaited.

mod balance;
mod blame;
mod breaker;
mod budget;
mod churn;
mod ending;
mod growth;
mod overflow;
mod policy;
mod sharing;
mod waiting;

use std::collections::VecDeque;
use std::time::Duration;

use crate::*;

/// A capacity that no policy reaches: the peer does not care.
const ANY: u32 = u32::MAX;

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// An engine with one endpoint, and a shell that keeps what it was told until the test looks.
struct Rig {
    engine: Engine,
    endpoint: EndpointId,
    now: Instant,
    dials: VecDeque<SlotId>,
    closes: VecDeque<(SlotId, CloseReason)>,
    grants: VecDeque<(TicketId, Lease)>,
    failures: VecDeque<(TicketId, TicketError)>,
    probes: usize,
    events: Vec<Event>,
    /// Whether the shell closes connections at once, as it usually does.
    closes_at_once: bool,
}

impl Rig {
    fn new(config: Config) -> Self {
        Self::with_permits(config, Permits::alone(config.connections_max, config.temporary_max))
    }

    fn with_permits(config: Config, permits: Permits) -> Self {
        let now = Instant::from_nanos(1_000_000_000_000);
        let mut engine = Engine::new(Balance::default(), 7);
        let endpoint = engine.add_endpoint(now, config, permits).unwrap();
        let mut rig = Self {
            engine,
            endpoint,
            now,
            dials: VecDeque::new(),
            closes: VecDeque::new(),
            grants: VecDeque::new(),
            failures: VecDeque::new(),
            probes: 0,
            events: Vec::new(),
            closes_at_once: true,
        };
        rig.settle();
        rig
    }

    /// An engine with `n` connections that stand ready, made in this order, a millisecond apart.
    fn connected(config: Config, n: usize) -> Self {
        let mut rig = Self::new(config);
        rig.connect(n);
        rig
    }

    fn connect(&mut self, n: usize) {
        let capacity = self.engine.snapshot(self.now, self.endpoint).unwrap().config.capacity;
        let mut leases = Vec::new();
        for _ in 0..n {
            for _ in 0..capacity {
                match self.acquire(1_000) {
                    Acquired::Lease(lease) => leases.push(lease),
                    Acquired::Wait(_) => {
                        self.dialed(Ok(ANY));
                        leases.push(self.granted());
                    }
                    refused => panic!("{refused:?}"),
                }
            }
        }
        for lease in leases {
            self.pass(1);
            self.release(lease, Outcome::Unused);
        }
    }

    /// Takes all that the engine wants, and looks whether its books add up.
    fn settle(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Dial { slot, .. } => self.dials.push_back(slot),
                Action::Close { slot, reason } => {
                    self.closes.push_back((slot, reason));
                    if self.closes_at_once {
                        self.engine.handle_closed(self.now, slot);
                    }
                }
                Action::Grant { ticket, lease } => self.grants.push_back((ticket, lease)),
                Action::Fail { ticket, error } => self.failures.push_back((ticket, error)),
                Action::Probe { .. } => self.probes += 1,
            }
        }
        self.events.extend(std::iter::from_fn(|| self.engine.poll_event()));
        self.engine.audit().unwrap();
    }

    /// Lets so many milliseconds pass, and wakes the engine whenever it asked for that.
    fn pass(&mut self, millis: u64) {
        self.pass_for(ms(millis));
    }

    fn pass_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.engine.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.engine.handle_timeout(self.now);
            self.settle();
            assert!(self.engine.next_timeout().is_none_or(|next| next > self.now), "the engine spins");
        }
        self.now = end;
    }

    fn acquire(&mut self, patience_ms: u64) -> Acquired {
        let answer = self.engine.acquire(self.now, self.endpoint, self.now + ms(patience_ms));
        self.settle();
        answer
    }

    fn lease(&mut self) -> Lease {
        match self.acquire(1_000) {
            Acquired::Lease(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    fn ticket(&mut self, patience_ms: u64) -> TicketId {
        match self.acquire(patience_ms) {
            Acquired::Wait(ticket) => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn tickets(&mut self, n: usize) {
        (0..n).for_each(|_| {
            self.ticket(1_000);
        });
    }

    /// Every dial that is under way now ends.
    fn dialed_all(&mut self, result: Result<u32, Cause>) {
        (0..self.dials.len()).for_each(|_| {
            self.dialed(result);
        });
    }

    fn refused(&mut self, patience_ms: u64) -> Refusal {
        match self.acquire(patience_ms) {
            Acquired::Refused(refusal) => refusal,
            other => panic!("{other:?}"),
        }
    }

    /// The oldest dial ends.
    fn dialed(&mut self, result: Result<u32, Cause>) -> SlotId {
        let slot = self.dials.pop_front().expect("nothing is dialled");
        self.engine.handle_dialed(self.now, slot, result);
        self.settle();
        slot
    }

    fn granted(&mut self) -> Lease {
        self.grants.pop_front().expect("nothing was granted").1
    }

    fn release(&mut self, lease: Lease, outcome: Outcome) {
        self.engine.release(self.now, lease, outcome);
        self.settle();
    }

    /// A new lease comes back with this.
    fn serve(&mut self, outcome: Outcome) {
        let lease = self.lease();
        self.release(lease, outcome);
    }

    fn cancel(&mut self, ticket: TicketId) -> bool {
        let waited = self.engine.cancel(self.now, ticket);
        self.settle();
        waited
    }

    fn peer_closes(&mut self, slot: SlotId) {
        self.engine.handle_closed(self.now, slot);
        self.settle();
    }

    fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.snapshot().config;
        change(&mut config);
        self.engine.handle_config(self.now, self.endpoint, config).unwrap();
        self.settle();
        self.pass(0);
    }

    fn snapshot(&self) -> Snapshot {
        self.engine.snapshot(self.now, self.endpoint).unwrap()
    }

    fn count(&self, outcome: AcquireOutcome) -> u64 {
        self.snapshot().counters.acquires(outcome)
    }

    /// The reasons for which connections were closed since this was asked last.
    fn closed(&mut self) -> Vec<CloseReason> {
        self.closes.drain(..).map(|(_, reason)| reason).collect()
    }

    /// Fails dials or leases for this cause until the breaker is open, and says until when.
    fn open_breaker(&mut self, cause: Cause) -> Instant {
        for _ in 0..100 {
            match self.acquire(60_000) {
                Acquired::Lease(lease) => self.release(lease, Outcome::Failed(cause)),
                Acquired::Wait(_) if !self.dials.is_empty() => {
                    self.dialed(Err(cause));
                }
                _ => {}
            }
            if let BreakerState::Open(until) = self.snapshot().breaker {
                return until;
            }
            self.pass(10_000);
        }
        panic!("the breaker stays {:?}", self.snapshot().breaker);
    }

    fn pass_until(&mut self, at: Instant) {
        self.pass_for(at.saturating_duration_since(self.now));
    }
}

fn small(connections_max: u32) -> Config {
    Config { connections_max, idle_timeout: None, ..Config::default() }
}

fn shared(connections_max: u32, capacity: u32) -> Config {
    Config { capacity, ..small(connections_max) }
}

//! Worlds for the pool engine: workers whose engines share limits, upstreams that misbehave, callers who give up.
//!
//! The [`World`] plays the shell: it executes each [`Action`] after a delay in virtual time, and brings the news. It
//! keeps books of its own (module `lane`) and compares them with the engine's after every call. What must hold is written
//! where it is checked, as a sentence: `grep hold! -A2` lists the invariants.

mod coverage;
mod lane;
mod plan;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::{
    AcquireOutcome, Acquired, Action, Budget, Cause, Config, EndpointId, Engine, Event, Instant, Lease,
    Ledger, Level, Outcome, Overflow, Permits, Removal, SlotId, TicketId,
};

pub use coverage::Coverage;
use lane::{Broken, Lane, News, Phase, Room, hold};
use plan::{Callers, Draw, Upstream};

/// An invariant that did not hold.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The seed of the world in which it happened.
    pub seed: u64,
    /// How many calls into engines had been made.
    pub step: u64,
    /// What should hold.
    pub invariant: &'static str,
    /// What was found.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, step, invariant, detail } = self;
        writeln!(f, "broken: {invariant}")?;
        writeln!(f, "  {detail}")?;
        writeln!(f, "  seed {seed}, step {step}; to see every step:")?;
        write!(f, "  FOREBAY_SIM_SEED={seed} cargo test -p forebay-sim -- --nocapture")
    }
}

/// Lives through the world of one seed.
///
/// # Errors
///
/// The first invariant that did not hold; a panic of the engine is one.
pub fn run(seed: u64, trace: bool) -> Result<Coverage, Violation> {
    let mut world = World::new(seed);
    world.trace = trace;
    match catch_unwind(AssertUnwindSafe(|| world.live())) {
        Ok(Ok(())) => Ok(std::mem::take(&mut world.coverage)),
        Ok(Err((invariant, detail))) => {
            Err(Violation { seed, step: world.coverage.steps, invariant, detail })
        }
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            let detail = text.unwrap_or_default();
            Err(Violation { seed, step: world.coverage.steps, invariant: "nothing panics", detail })
        }
    }
}

/// One thread with one engine.
#[derive(Debug)]
struct Worker {
    engine: Engine,
    lanes: BTreeMap<EndpointId, usize>,
    /// When the timer is set to.
    timer: Option<Instant>,
    /// In which second the engine was last woken, and how often in it for nothing.
    idle_wakes: (u64, u32),
    /// Slots and tickets of the past, for news that comes late.
    past_slots: VecDeque<SlotId>,
    past_tickets: VecDeque<TicketId>,
}

/// One endpoint, with what all workers share about it.
#[derive(Debug)]
struct Site {
    config: Config,
    permits: Permits,
    upstream: Upstream,
    lanes: Vec<usize>,
    sockets: u32,
    /// Permits taken after the last call: pooled, temporary.
    used: (u32, u32),
    room: Room,
}

/// A ticket's owner, from the grant until it has taken the lease.
#[derive(Debug)]
struct Granted {
    lease: Lease,
    epoch: u32,
    hold: Duration,
}

/// A caller at work.
#[derive(Debug)]
struct Held {
    lane: usize,
    lease: Lease,
    epoch: u32,
}

/// What is going to happen.
#[derive(Debug)]
enum Happening {
    Timer { worker: usize },
    Arrive { stream: usize },
    GiveUp { worker: usize, ticket: TicketId },
    Take { worker: usize, ticket: TicketId },
    Return { held: u64 },
    Dialed { lane: usize, slot: SlotId, result: Result<u32, Cause> },
    Closed { lane: usize, slot: SlotId },
    PeerCloses { lane: usize, slot: SlotId },
    PeerIdle { lane: usize, slot: SlotId, uses: u64 },
    Goodbye { lane: usize, slot: SlotId },
    Capacity { lane: usize, slot: SlotId, capacity: u32 },
    Probed { lane: usize },
    Mood { site: usize },
    Junk,
    Reconfigure,
    AddEndpoint,
    RemoveEndpoint,
    Calm,
    Drain,
    CloseAll,
}

/// A place in the queue of what is going to happen: by time, then in the order of planning.
#[derive(Debug)]
struct Planned {
    at: Instant,
    turn: u64,
    what: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.turn) == (other.at, other.turn)
    }
}
impl Eq for Planned {}
impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.turn).cmp(&(other.at, other.turn))
    }
}

/// Workers, sites, callers and time.
#[derive(Debug)]
pub struct World {
    draw: Draw,
    now: Instant,
    queue: BinaryHeap<Reverse<Planned>>,
    turns: u64,
    /// How many planned happenings are not timers: when none is left, the world has ended.
    pending: usize,
    workers: Vec<Worker>,
    sites: Vec<Site>,
    lanes: Vec<Lane>,
    callers: Vec<Callers>,
    granted: BTreeMap<(usize, TicketId), Granted>,
    /// How long the owners of waiting tickets will hold their leases.
    holds: BTreeMap<(usize, TicketId), Duration>,
    held: BTreeMap<u64, Held>,
    descriptors: Option<Arc<Ledger>>,
    kernel_descriptors: u32,
    sockets: u32,
    /// How late a timer may come.
    lazy: Duration,
    calm: bool,
    ending: bool,
    trace: bool,
    coverage: Coverage,
}

// Beginning.
impl World {
    /// Makes the world of one seed.
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed ^ 0x466f_7265_6261_7921);
        let budget = draw.chance(40).then(|| Arc::new(Ledger::resource(draw.number(6, 60))));
        let workers = if draw.chance(50) { 1 } else { draw.number(2, 4) };
        let balance = plan::balance(&mut draw);
        let workers = (0..workers)
            .map(|_| Worker {
                engine: Engine::new(balance, draw.seed()),
                lanes: BTreeMap::new(),
                timer: None,
                idle_wakes: (0, 0),
                past_slots: VecDeque::new(),
                past_tickets: VecDeque::new(),
            })
            .collect();
        Self {
            now: Instant::from_nanos(1_000_000_000),
            queue: BinaryHeap::new(),
            turns: 0,
            pending: 0,
            workers,
            sites: Vec::new(),
            lanes: Vec::new(),
            callers: Vec::new(),
            granted: BTreeMap::new(),
            holds: BTreeMap::new(),
            held: BTreeMap::new(),
            descriptors: budget,
            kernel_descriptors: if draw.chance(15) { draw.number(2, 30) } else { u32::MAX },
            sockets: 0,
            lazy: if draw.chance(50) { Duration::ZERO } else { draw.micros(1, 2_000) },
            calm: false,
            ending: false,
            trace: false,
            coverage: Coverage::default(),
            draw,
        }
    }

    /// Lives from the first endpoint to the last closed connection.
    fn live(&mut self) -> Result<(), Broken> {
        self.begin()?;
        while self.pending > 0 {
            let Some(Reverse(Planned { at, what, .. })) = self.queue.pop() else { break };
            if at > self.now {
                self.now = at;
                self.check_awake()?;
            }
            if !matches!(what, Happening::Timer { .. }) {
                self.pending -= 1;
            }
            self.happen(what)?;
        }
        self.check_end()
    }

    fn begin(&mut self) -> Result<(), Broken> {
        for _ in 0..self.draw.number(1, 4) {
            self.add_endpoint()?;
        }
        let life =
            if self.draw.chance(80) { self.draw.millis(300, 2_500) } else { self.draw.millis(2_500, 8_000) };
        let storm = life * 3 / 4;
        for stream in 0..self.draw.index(3) + 1 {
            let callers = Callers::new(&mut self.draw);
            self.callers.push(callers);
            self.plan(Duration::ZERO, Happening::Arrive { stream });
        }
        self.plan(storm, Happening::Calm);
        self.plan(life, Happening::Drain);
        let grace = self.draw.millis(0, 300);
        self.plan(life + grace, Happening::CloseAll);
        for _ in 0..self.draw.index(4) {
            let at = self.draw.micros(0, storm.as_micros() as u64);
            self.plan(at, Happening::Reconfigure);
        }
        for _ in 0..self.draw.index(3) {
            let at = self.draw.micros(0, storm.as_micros() as u64);
            self.plan(at, Happening::AddEndpoint);
            let at = self.draw.micros(0, storm.as_micros() as u64);
            self.plan(at, Happening::RemoveEndpoint);
        }
        self.plan(Duration::ZERO, Happening::Junk);
        Ok(())
    }

    fn plan(&mut self, after: Duration, what: Happening) {
        if !matches!(what, Happening::Timer { .. }) {
            self.pending += 1;
        }
        self.turns += 1;
        self.queue.push(Reverse(Planned { at: self.now + after, turn: self.turns, what }));
    }

    fn say(&self, text: impl FnOnce() -> String) {
        if self.trace {
            println!("{:>6} {:>12} {}", self.coverage.steps, self.now.as_nanos() / 1000, text());
        }
    }
}

// What happens.
impl World {
    fn happen(&mut self, what: Happening) -> Result<(), Broken> {
        match what {
            Happening::Timer { worker } => self.timer(worker),
            Happening::Arrive { stream } => self.arrive(stream),
            Happening::GiveUp { worker, ticket } => self.give_up(worker, ticket),
            Happening::Take { worker, ticket } => self.take(worker, ticket),
            Happening::Return { held } => self.bring_back(held),
            Happening::Dialed { lane, slot, result } => self.dialed(lane, slot, result),
            Happening::Closed { lane, slot } => self.closed(lane, slot),
            Happening::PeerCloses { lane, slot } => self.peer_closes(lane, slot),
            Happening::PeerIdle { lane, slot, uses } => self.peer_idle(lane, slot, uses),
            Happening::Goodbye { lane, slot } => self.goodbye(lane, slot),
            Happening::Capacity { lane, slot, capacity } => self.capacity(lane, slot, capacity),
            Happening::Probed { lane } => self.probed(lane),
            Happening::Mood { site } => {
                self.change_mood(site);
                Ok(())
            }
            Happening::Junk => self.junk(),
            Happening::Reconfigure => self.reconfigure(),
            Happening::AddEndpoint => self.add_endpoint(),
            Happening::RemoveEndpoint => self.remove_endpoint(),
            Happening::Calm => {
                self.calm = true;
                self.kernel_descriptors = u32::MAX;
                self.sites.iter_mut().for_each(|site| site.upstream.calm());
                self.say(|| "calm".to_owned());
                Ok(())
            }
            Happening::Drain => self.drain(),
            Happening::CloseAll => self.close_all(),
        }
    }

    fn timer(&mut self, worker: usize) -> Result<(), Broken> {
        let now = self.now;
        let w = &mut self.workers[worker];
        if w.timer != Some(now) {
            return Ok(());
        }
        w.timer = None;
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} timeout"));
        let w = &mut self.workers[worker];
        w.engine.handle_timeout(now);
        let next = w.engine.next_timeout();
        hold!(next.is_none_or(|next| next > now), "a timeout handled is a timeout past", "next is {next:?}");
        let second = now.as_nanos() / 1_000_000_000;
        if w.idle_wakes.0 != second {
            w.idle_wakes = (second, 0);
        }
        if !w.engine.has_actions() {
            w.idle_wakes.1 += 1;
            hold!(w.idle_wakes.1 < IDLE_WAKES_MAX, "the engine does not spin", "{} wakes", w.idle_wakes.1);
        }
        self.settle(worker, None, News::Nothing)
    }

    fn arrive(&mut self, stream: usize) -> Result<(), Broken> {
        let callers = self.callers[stream];
        for _ in 0..callers.burst {
            self.call(callers)?;
        }
        if !self.ending {
            let pause = self.draw.micros(0, callers.every.as_micros() as u64 * 2);
            // A lull now and then, so that things stand idle.
            let lull = if self.draw.chance(2) { self.draw.millis(100, 800) } else { Duration::ZERO };
            self.plan(pause + lull, Happening::Arrive { stream });
        }
        Ok(())
    }

    /// Somebody wants a connection.
    fn call(&mut self, callers: Callers) -> Result<(), Broken> {
        let now = self.now;
        let worker = self.draw.index(self.workers.len());
        let lane = if self.draw.chance(75) {
            let hash = u64::from(self.draw.number(0, 9));
            let picked = self.workers[worker].engine.pick(now, hash);
            match picked.map(|id| self.workers[worker].lanes[&id]) {
                Some(lane) => {
                    self.check_picked(worker, lane)?;
                    lane
                }
                None => {
                    let staying = self.lanes.iter().any(|lane| lane.worker == worker && !lane.leaving);
                    hold!(!staying, "an endpoint is chosen if there is one", "none");
                    return Ok(());
                }
            }
        } else {
            let mine: Vec<_> = (0..self.lanes.len()).filter(|l| self.lanes[*l].worker == worker).collect();
            mine[self.draw.index(mine.len())]
        };
        let hold = self.draw.micros(1, callers.hold.as_micros() as u64);
        if self.draw.chance(8) {
            return self.try_acquire(lane, hold);
        }
        let patience = self.draw.micros(0, callers.patience.as_micros() as u64);
        let deadline = if self.draw.chance(2) { now } else { now + patience };
        self.coverage.steps += 1;
        let id = self.lanes[lane].id;
        let answer = self.workers[worker].engine.acquire(now, id, deadline);
        self.say(|| {
            format!("w{worker} acquire {} by {}: {answer:?}", id.index(), deadline.as_nanos() / 1000)
        });
        if let Acquired::Refused(refusal) = &answer {
            self.coverage.note("refusal", coverage::of_refusal(refusal));
        }
        self.lanes[lane].acquired(now, deadline, &answer)?;
        match answer {
            Acquired::Lease(lease) => self.work(lane, lease, hold),
            Acquired::Wait(ticket) => {
                self.holds.insert((worker, ticket), hold);
                if self.draw.chance(callers.fickle_percent) {
                    let after = self.draw.micros(0, patience.as_micros() as u64 * 5 / 4);
                    self.plan(after, Happening::GiveUp { worker, ticket });
                }
            }
            Acquired::Refused(_) => {}
        }
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn check_picked(&self, worker: usize, picked: usize) -> Result<(), Broken> {
        let engine = &self.workers[worker].engine;
        hold!(!self.lanes[picked].leaving, "who leaves is not chosen", "{:?}", self.lanes[picked].id);
        let available = |lane: &&Lane| lane.worker == worker && engine.is_available(self.now, lane.id);
        hold!(
            engine.is_available(self.now, self.lanes[picked].id) || !self.lanes.iter().any(|l| available(&l)),
            "the available are chosen first",
            "{:?}",
            self.lanes[picked].id
        );
        Ok(())
    }

    fn try_acquire(&mut self, lane: usize, hold: Duration) -> Result<(), Broken> {
        let (worker, id, now) = (self.lanes[lane].worker, self.lanes[lane].id, self.now);
        self.coverage.steps += 1;
        let lease = self.workers[worker].engine.try_acquire(now, id);
        self.say(|| format!("w{worker} try_acquire {}: {lease:?}", id.index()));
        self.coverage
            .note("world", if lease.is_some() { "try_acquire_served" } else { "try_acquire_refused" });
        if let Some(lease) = lease {
            let lane_ref = &mut self.lanes[lane];
            hold!(lane_ref.line.is_empty(), "no barging", "{} wait", lane_ref.line.len());
            lane_ref.count(AcquireOutcome::Reused);
            lane_ref.granted(&lease)?;
            self.work(lane, lease, hold);
        }
        self.settle(worker, Some(lane), News::Nothing)
    }

    /// A caller has its lease, and will bring it back.
    fn work(&mut self, lane: usize, lease: Lease, hold: Duration) {
        let epoch = self.lanes[lane].epoch;
        self.hold(lane, lease, epoch, hold);
    }

    fn hold(&mut self, lane: usize, lease: Lease, epoch: u32, hold: Duration) {
        self.turns += 1;
        let held = self.turns;
        if lease.is_probe() {
            self.coverage.note("world", "probe_lease");
        }
        self.held.insert(held, Held { lane, lease, epoch });
        self.plan(hold, Happening::Return { held });
    }

    fn give_up(&mut self, worker: usize, ticket: TicketId) -> Result<(), Broken> {
        let now = self.now;
        let lane = self.workers[worker].lanes[&ticket.endpoint()];
        self.coverage.steps += 1;
        let told = self.workers[worker].engine.cancel(now, ticket);
        self.say(|| format!("w{worker} cancel {ticket:?}: {told}"));
        let waited = self.lanes[lane].cancelled(ticket);
        hold!(told == waited, "cancel says whether the ticket waited", "{told}, and it is {waited}");
        self.settle(worker, Some(lane), News::Nothing)?;
        if waited {
            self.holds.remove(&(worker, ticket));
            self.forget_ticket(worker, ticket);
            self.coverage.note("world", "cancelled_in_line");
        } else if let Some(Granted { lease, epoch, .. }) = self.granted.remove(&(worker, ticket)) {
            self.coverage.note("world", "cancelled_after_grant");
            self.release(lane, lease, epoch, Outcome::Unused)?;
        } else {
            self.coverage.note("world", "cancelled_after_failure");
        }
        Ok(())
    }

    /// A ticket's owner wakes up and takes what was granted.
    fn take(&mut self, worker: usize, ticket: TicketId) -> Result<(), Broken> {
        if let Some(Granted { lease, epoch, hold }) = self.granted.remove(&(worker, ticket)) {
            let lane = self.workers[worker].lanes[&ticket.endpoint()];
            self.hold(lane, lease, epoch, hold);
        }
        Ok(())
    }

    fn bring_back(&mut self, held: u64) -> Result<(), Broken> {
        let Some(Held { lane, mut lease, epoch }) = self.held.remove(&held) else { return Ok(()) };
        let (worker, id, slot) = (self.lanes[lane].worker, self.lanes[lane].id, lease.slot());
        if self.draw.chance(10) {
            let latency = self.draw.micros(50, 50_000);
            self.workers[worker].engine.observe_latency(id, latency);
        }
        if self.draw.chance(5) {
            let (until, uses) = self.workers[worker].engine.terms(&lease);
            if until > self.now && uses > 0 {
                let lent = uses.min(u64::from(self.draw.number(1, 5)));
                self.workers[worker].engine.note_uses(slot, lent);
                if let Some(conn) = self.lanes[lane].conns.get_mut(&slot) {
                    conn.uses += lent;
                }
                lease.mark_reused();
                self.coverage.note("world", "lent_on");
            }
        }
        if self.draw.chance(3) && self.sites[self.lanes[lane].site].upstream.announces {
            let announced = self.draw.millis(50, 2_000);
            self.coverage.note("world", "announced_idle");
            self.coverage.steps += 1;
            self.workers[worker].engine.handle_idle_timeout(self.now, id, announced);
            self.say(|| format!("w{worker} announced idle {announced:?}"));
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        let site = self.lanes[lane].site;
        let outcome = self.sites[site].upstream.outcome(&mut self.draw);
        self.release(lane, lease, epoch, outcome)
    }

    fn release(&mut self, lane: usize, lease: Lease, epoch: u32, outcome: Outcome) -> Result<(), Broken> {
        let now = self.now;
        let (worker, slot) = (self.lanes[lane].worker, lease.slot());
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} release {lease:?} {outcome:?}"));
        let news = News::of_outcome(outcome);
        // What became of an endpoint that is gone moves nothing.
        if lease.is_probe() {
            self.lanes[lane].probe_returned(epoch);
        }
        if !self.lanes[lane].conns.get(&slot).is_some_and(|conn| conn.phase == Phase::Open) {
            self.coverage.note("world", "late_lease");
        }
        self.lanes[lane].returned(now, slot, outcome);
        self.workers[worker].engine.release(now, lease, outcome);
        self.watch_idle(lane, slot);
        self.settle(worker, Some(lane), news)
    }

    /// The peer of a connection that begins to stand idle may close it, some time.
    fn watch_idle(&mut self, lane: usize, slot: SlotId) {
        let Some(conn) = self.lanes[lane].conns.get(&slot) else { return };
        let (uses, idle) = (conn.uses, conn.in_flight == 0);
        if idle && let Some(after) = self.sites[self.lanes[lane].site].upstream.idle_close {
            self.plan(after, Happening::PeerIdle { lane, slot, uses });
        }
    }

    fn dialed(&mut self, lane: usize, slot: SlotId, result: Result<u32, Cause>) -> Result<(), Broken> {
        let (worker, site, now) = (self.lanes[lane].worker, self.lanes[lane].site, self.now);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} dialed {slot:?} {result:?}"));
        self.lanes[lane].dialed(now, slot, result);
        if result.is_err() {
            self.sockets -= 1;
            self.sites[site].sockets -= 1;
            self.forget_slot(worker, slot);
        }
        self.workers[worker].engine.handle_dialed(now, slot, result);
        if result.is_ok() {
            self.connected(lane, slot);
        }
        let news = match result {
            Ok(_) => News::Connected,
            Err(cause) => News::of_cause(cause),
        };
        self.settle(worker, Some(lane), news)
    }

    /// What is going to befall a new connection.
    fn connected(&mut self, lane: usize, slot: SlotId) {
        self.watch_idle(lane, slot);
        let upstream = self.sites[self.lanes[lane].site].upstream.clone();
        if self.draw.chance(upstream.reset_percent) {
            let after = self.draw.millis(0, 300);
            self.plan(after, Happening::PeerCloses { lane, slot });
        }
        if self.draw.chance(upstream.goodbye_percent) {
            let after = self.draw.millis(0, 300);
            self.plan(after, Happening::Goodbye { lane, slot });
        }
        if self.draw.chance(upstream.capacity_percent) {
            let after = self.draw.millis(0, 300);
            let capacity = self.draw.number(0, 30);
            self.plan(after, Happening::Capacity { lane, slot, capacity });
        }
    }

    fn closed(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.lanes[lane].conns.contains_key(&slot) {
            return Ok(());
        }
        let (worker, now) = (self.lanes[lane].worker, self.now);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} closed {slot:?}"));
        self.forget_conn(lane, slot);
        self.workers[worker].engine.handle_closed(now, slot);
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn forget_conn(&mut self, lane: usize, slot: SlotId) {
        let (worker, site) = (self.lanes[lane].worker, self.lanes[lane].site);
        if let Some(conn) = self.lanes[lane].conns.remove(&slot)
            && conn.phase == Phase::Open
        {
            self.lanes[lane].closed_by_peer();
            self.coverage.note("close", "peer");
        }
        self.sockets -= 1;
        self.sites[site].sockets -= 1;
        self.forget_slot(worker, slot);
    }

    fn is_open(&self, lane: usize, slot: SlotId) -> bool {
        self.lanes[lane].conns.get(&slot).is_some_and(|conn| conn.phase == Phase::Open)
    }

    fn peer_closes(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.is_open(lane, slot) {
            return Ok(());
        }
        self.coverage.note("world", "peer_reset");
        self.closed(lane, slot)
    }

    fn peer_idle(&mut self, lane: usize, slot: SlotId, uses: u64) -> Result<(), Broken> {
        let idle = self.lanes[lane].conns.get(&slot).is_some_and(|c| c.in_flight == 0 && c.uses == uses);
        if !idle || !self.is_open(lane, slot) {
            return Ok(());
        }
        self.coverage.note("world", "idle_closed_by_peer");
        self.closed(lane, slot)
    }

    fn goodbye(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.is_open(lane, slot) {
            return Ok(());
        }
        let worker = self.lanes[lane].worker;
        self.coverage.note("world", "peer_goodbye");
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} goodbye {slot:?}"));
        if let Some(conn) = self.lanes[lane].conns.get_mut(&slot) {
            conn.doomed = true;
        }
        self.workers[worker].engine.handle_goodbye(self.now, slot);
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn capacity(&mut self, lane: usize, slot: SlotId, capacity: u32) -> Result<(), Broken> {
        let worker = self.lanes[lane].worker;
        let Some(conn) = self.lanes[lane].conns.get_mut(&slot) else { return Ok(()) };
        if conn.phase != Phase::Open {
            return Ok(());
        }
        let before = std::mem::replace(&mut conn.allowed, capacity);
        self.coverage.note("world", if capacity < before { "capacity_lowered" } else { "capacity_raised" });
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} capacity {slot:?} {capacity}"));
        self.workers[worker].engine.handle_capacity(self.now, slot, capacity);
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn probed(&mut self, lane: usize) -> Result<(), Broken> {
        let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
        let result = self.sites[self.lanes[lane].site].upstream.check(&mut self.draw);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} probed {} {result:?}", id.index()));
        self.lanes[lane].probed(result);
        self.workers[worker].engine.handle_probed(self.now, id, result);
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn change_mood(&mut self, site: usize) {
        if self.calm {
            return;
        }
        self.sites[site].upstream.change(&mut self.draw);
        self.say(|| format!("site {site} is {:?}", self.sites[site].upstream.mood));
        let after = self.draw.millis(30, 500);
        self.plan(after, Happening::Mood { site });
    }

    /// News of what is long over must change nothing; the books are compared as after any call.
    fn junk(&mut self) -> Result<(), Broken> {
        for worker in 0..self.workers.len() {
            if let Some(slot) = self.workers[worker].past_slots.front().copied() {
                let (now, kind) = (self.now, self.draw.number(0, 4));
                self.coverage.steps += 1;
                self.coverage.note("world", "stale_news");
                self.say(|| format!("w{worker} stale news {kind} of {slot:?}"));
                let engine = &mut self.workers[worker].engine;
                match kind {
                    0 => engine.handle_closed(now, slot),
                    1 => engine.handle_dialed(now, slot, Ok(1)),
                    2 => engine.handle_dialed(now, slot, Err(Cause::Refused)),
                    3 => engine.handle_goodbye(now, slot),
                    _ => engine.handle_capacity(now, slot, 7),
                }
                let lane = self.workers[worker].lanes[&slot.endpoint()];
                self.settle(worker, Some(lane), News::Nothing)?;
            }
            if let Some(ticket) = self.workers[worker].past_tickets.front().copied() {
                let told = self.workers[worker].engine.cancel(self.now, ticket);
                hold!(!told, "a ticket answered waits no more", "{ticket:?}");
            }
        }
        if !self.ending {
            let after = self.draw.millis(10, 200);
            self.plan(after, Happening::Junk);
        }
        Ok(())
    }

    fn reconfigure(&mut self) -> Result<(), Broken> {
        let site = self.draw.index(self.sites.len());
        let config = plan::edited(&mut self.draw, self.sites[site].config);
        self.coverage.note("world", "config_changed");
        self.say(|| format!("site {site} {config:?}"));
        self.sites[site].config = config;
        for lane in self.sites[site].lanes.clone() {
            let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
            self.coverage.steps += 1;
            self.lanes[lane].reconfigure(config);
            if self.workers[worker].engine.handle_config(self.now, id, config).is_err() {
                return Err(("a valid policy is taken", format!("{config:?}")));
            }
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    fn add_endpoint(&mut self) -> Result<(), Broken> {
        let (now, site) = (self.now, self.sites.len());
        let stormy = self.draw.chance(25);
        let config = if stormy { plan::stormy(&mut self.draw) } else { plan::config(&mut self.draw) };
        let mut permits = Permits::alone(config.connections_max, config.temporary_max);
        let ports = self.draw.chance(30).then(|| Arc::new(Ledger::resource(self.draw.number(2, 30))));
        permits.budget = Budget { descriptors: self.descriptors.clone(), ports };
        let mut upstream = Upstream::new(&mut self.draw, stormy);
        if self.calm {
            upstream.calm();
        }
        self.coverage.note("world", "endpoint_added");
        self.say(|| format!("site {site} {config:?} {upstream:?}"));
        self.sites.push(Site {
            config,
            permits,
            upstream,
            lanes: Vec::new(),
            sockets: 0,
            used: (0, 0),
            room: Room { modest: None, urgent: None },
        });
        let after = self.draw.millis(10, 300);
        self.plan(after, Happening::Mood { site });
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            let permits = self.sites[site].permits.clone();
            let Ok(id) = self.workers[worker].engine.add_endpoint(now, config, permits) else {
                return Err(("a valid policy is taken", format!("{config:?}")));
            };
            let lane = self.lanes.len();
            let before = self.workers[worker].lanes.insert(id, lane);
            hold!(before.is_none(), "an endpoint's name is its own", "{id:?} named another");
            self.lanes.push(Lane::new(worker, site, id, config));
            self.sites[site].lanes.push(lane);
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    fn remove_endpoint(&mut self) -> Result<(), Broken> {
        let site = self.draw.index(self.sites.len());
        let removal = if self.draw.chance(50) { Removal::Drain } else { Removal::Close };
        self.coverage
            .note("world", if removal == Removal::Drain { "endpoint_drained" } else { "endpoint_closed" });
        for lane in self.sites[site].lanes.clone() {
            let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} remove {} {removal:?}", id.index()));
            self.lanes[lane].leaving = true;
            self.lanes[lane].closed_all |= removal == Removal::Close;
            self.workers[worker].engine.remove_endpoint(self.now, id, removal);
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Broken> {
        self.coverage.note("world", "drain");
        self.ending = true;
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} drain"));
            self.lanes.iter_mut().filter(|lane| lane.worker == worker).for_each(|lane| lane.leaving = true);
            self.workers[worker].engine.drain(self.now);
            self.settle(worker, None, News::Nothing)?;
        }
        // Somebody did not hear of it.
        for stream in 0..self.callers.len() {
            self.plan(Duration::from_millis(1), Happening::Arrive { stream });
        }
        Ok(())
    }

    fn close_all(&mut self) -> Result<(), Broken> {
        self.coverage.note("world", "close_all");
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} close_all"));
            self.lanes
                .iter_mut()
                .filter(|lane| lane.worker == worker)
                .for_each(|lane| lane.closed_all = true);
            self.workers[worker].engine.close_all(self.now);
            self.settle(worker, None, News::Nothing)?;
        }
        Ok(())
    }
}

// What the engine wants, and what must hold after each call.
impl World {
    /// Takes every action, compares the books, sets the timer.
    fn settle(&mut self, worker: usize, lane: Option<usize>, news: News) -> Result<(), Broken> {
        while let Some(action) = self.workers[worker].engine.poll_action() {
            self.coverage.note("action", coverage::of_action(&action));
            self.say(|| format!("   w{worker} {action:?}"));
            self.obey(worker, action)?;
        }
        while let Some(event) = self.workers[worker].engine.poll_event() {
            self.coverage.note("event", coverage::of_event(&event));
            self.say(|| format!("   w{worker} {event:?}"));
            if let Event::LocalExhaustion { cause, .. } = event {
                hold!(cause.blame() == forebay_core::Blame::Local, "local exhaustion is local", "{cause:?}");
            }
        }
        let engine = &self.workers[worker].engine;
        engine.audit().map_err(|error| ("the engine's books add up", error))?;
        match lane {
            Some(lane) => self.lanes[lane].check(engine, self.now, self.lazy, news)?,
            None => {
                for lane in self.lanes.iter_mut().filter(|lane| lane.worker == worker) {
                    lane.check(engine, self.now, self.lazy, news)?;
                }
            }
        }
        self.check_ledgers()?;
        self.set_timer(worker);
        Ok(())
    }

    fn obey(&mut self, worker: usize, action: Action) -> Result<(), Broken> {
        match action {
            Action::Dial { slot, timeout } => self.dial(worker, slot, timeout),
            Action::Close { slot, reason } => {
                self.coverage.note("close", reason.as_str());
                let lane = self.workers[worker].lanes[&slot.endpoint()];
                self.lanes[lane].closes(self.now, slot, reason)?;
                let after = self.draw.micros(0, 3_000);
                self.plan(after, Happening::Closed { lane, slot });
                Ok(())
            }
            Action::Grant { ticket, lease } => {
                self.coverage.note("ticket", "granted");
                let lane = self.workers[worker].lanes[&ticket.endpoint()];
                self.lanes[lane].served(ticket, &lease)?;
                let Some(hold) = self.holds.remove(&(worker, ticket)) else {
                    return Err(("each ticket is answered once", format!("{ticket:?}")));
                };
                self.forget_ticket(worker, ticket);
                let epoch = self.lanes[lane].epoch;
                self.granted.insert((worker, ticket), Granted { lease, epoch, hold });
                let after = self.draw.micros(0, 500);
                if self.draw.chance(3) {
                    self.plan(after, Happening::GiveUp { worker, ticket });
                }
                self.plan(after, Happening::Take { worker, ticket });
                Ok(())
            }
            Action::Fail { ticket, error } => {
                self.coverage.note("ticket", coverage::of_ticket_error(&error));
                let lane = self.workers[worker].lanes[&ticket.endpoint()];
                self.lanes[lane].failed(self.now, ticket, &error)?;
                self.holds.remove(&(worker, ticket));
                self.forget_ticket(worker, ticket);
                Ok(())
            }
            Action::Probe { endpoint } => {
                let lane = self.workers[worker].lanes[&endpoint];
                hold!(!self.lanes[lane].leaving, "who leaves is not checked", "{endpoint:?}");
                let after = self.draw.millis(0, 20);
                self.plan(after, Happening::Probed { lane });
                Ok(())
            }
        }
    }

    fn dial(&mut self, worker: usize, slot: SlotId, timeout: Duration) -> Result<(), Broken> {
        let lane = self.workers[worker].lanes[&slot.endpoint()];
        let site = self.lanes[lane].site;
        self.lanes[lane].dials(self.now, slot)?;
        hold!(
            timeout == self.lanes[lane].config.dial_timeout,
            "dial_timeout holds",
            "{timeout:?}, should be {:?}",
            self.lanes[lane].config.dial_timeout
        );
        self.sockets += 1;
        self.sites[site].sockets += 1;
        let site = &self.sites[site];
        let (after, answer) = if self.sockets > self.kernel_descriptors {
            self.coverage.note("world", "kernel_descriptors_gone");
            (Duration::ZERO, Some(Err(Cause::Descriptors)))
        } else if site.sockets > site.upstream.kernel_ports {
            self.coverage.note("world", "kernel_ports_gone");
            (Duration::ZERO, Some(Err(Cause::Ports)))
        } else {
            site.upstream.answer(&mut self.draw)
        };
        let (after, result) = match answer {
            Some(result) if after < timeout => (after, result),
            _ => (timeout, Err(Cause::Timeout)),
        };
        self.coverage.note(
            "world",
            match result {
                Ok(_) => "dial_accepted",
                Err(Cause::Timeout) => "dial_hung",
                Err(Cause::Cancelled) => "dial_cancelled",
                Err(cause) if cause.blame() == forebay_core::Blame::Local => "dial_local",
                Err(_) => "dial_refused",
            },
        );
        self.plan(after, Happening::Dialed { lane, slot, result });
        Ok(())
    }

    fn check_ledgers(&mut self) -> Result<(), Broken> {
        let now = self.now;
        if let Some(descriptors) = &self.descriptors {
            hold!(
                descriptors.used() == self.sockets,
                "a permit for each socket",
                "{} descriptors taken, {} sockets",
                descriptors.used(),
                self.sockets
            );
        }
        for site in &mut self.sites {
            let (pooled, temporary) = (&site.permits.connections, &site.permits.temporary);
            hold!(
                pooled.used() + temporary.used() == site.sockets,
                "a permit for each socket",
                "{} pooled and {} temporary taken, {} sockets",
                pooled.used(),
                temporary.used(),
                site.sockets
            );
            if let Some(ports) = &site.permits.budget.ports {
                hold!(
                    ports.used() == site.sockets,
                    "a permit for each socket",
                    "{} ports taken, {} sockets",
                    ports.used(),
                    site.sockets
                );
            }
            let used = (pooled.used(), temporary.used());
            hold!(
                used.0 <= pooled.max().max(site.used.0) && used.1 <= temporary.max().max(site.used.1),
                "connections_max and temporary_max hold",
                "{used:?}, before {:?}, at most {} and {}",
                site.used,
                pooled.max(),
                temporary.max()
            );
            site.used = used;
            let policy = pooled.level() != Level::Exhausted
                || (site.config.overflow == Overflow::Temporary && temporary.level() != Level::Exhausted);
            let budget = &site.permits.budget;
            let machine = [&budget.descriptors, &budget.ports].into_iter().flatten().map(|l| l.level()).max();
            let machine = machine.unwrap_or(Level::Free);
            let since = |room: bool, since: Option<Instant>| if room { since.or(Some(now)) } else { None };
            site.room.modest = since(policy && machine == Level::Free, site.room.modest);
            site.room.urgent = since(policy && machine != Level::Exhausted, site.room.urgent);
        }
        Ok(())
    }

    fn check_awake(&self) -> Result<(), Broken> {
        for lane in &self.lanes {
            lane.check_awake(self.now, self.lazy, self.sites[lane.site].room)?;
        }
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), Broken> {
        for lane in &self.lanes {
            lane.count_acquires(&mut self.coverage);
        }
        for (i, worker) in self.workers.iter().enumerate() {
            hold!(worker.engine.is_empty(), "after drain nothing is left", "worker {i}");
            let left: Vec<_> = worker.engine.endpoint_ids().collect();
            hold!(left.is_empty(), "after drain nothing is left", "worker {i}: {left:?}");
        }
        hold!(self.held.is_empty() && self.granted.is_empty(), "the world forgets nobody", "leases are out");
        hold!(self.holds.is_empty(), "each ticket is answered once", "{:?} were not", self.holds.keys());
        hold!(self.sockets == 0, "after drain nothing is left", "{} sockets", self.sockets);
        for site in &self.sites {
            let used = site.permits.connections.used() + site.permits.temporary.used();
            hold!(used == 0, "after drain nothing is left", "{used} permits");
        }
        Ok(())
    }

    /// Wakes the engine when it asks to be woken, or a little later.
    fn set_timer(&mut self, worker: usize) {
        let Some(due) = self.workers[worker].engine.next_timeout() else { return };
        let late =
            if self.lazy.is_zero() { self.lazy } else { self.draw.micros(0, self.lazy.as_micros() as u64) };
        let at = due.max(self.now) + late;
        // A timer that is set already stays if it is in time for this.
        if self.workers[worker].timer.is_none_or(|set| due + late < set && at < set) {
            self.workers[worker].timer = Some(at);
            self.turns += 1;
            let planned = Planned { at, turn: self.turns, what: Happening::Timer { worker } };
            self.queue.push(Reverse(planned));
        }
    }

    fn forget_slot(&mut self, worker: usize, slot: SlotId) {
        remember(&mut self.workers[worker].past_slots, slot);
    }

    fn forget_ticket(&mut self, worker: usize, ticket: TicketId) {
        remember(&mut self.workers[worker].past_tickets, ticket);
    }
}

fn remember<T>(past: &mut VecDeque<T>, one: T) {
    past.push_back(one);
    if past.len() > 8 {
        past.pop_front();
    }
}

/// A second in which an engine is woken more often than this for nothing is one in which it spins: five endpoints that
/// look for permits each 5 ms make a thousand.
const IDLE_WAKES_MAX: u32 = 2_000;

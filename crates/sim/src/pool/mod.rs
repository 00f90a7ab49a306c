//! Worlds for the pool engine: workers whose engines share limits, upstreams that misbehave, callers who give up.
//!
//! The [`World`] plays the shell: it executes each [`Action`](forebay_core::Action) after a delay in virtual time, and brings the news. It
//! keeps books of its own (module `lane`) and compares them with the engine's after every call. What must hold is written
//! where it is checked, as a sentence: `grep hold! -A2` lists the invariants.

mod callers;
mod changes;
mod coverage;
mod lane;
mod plan;
mod settle;
mod upstreams;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use forebay_core::{Cause, Config, EndpointId, Engine, Instant, Lease, Ledger, Permits, SlotId, TicketId};

pub use coverage::Coverage;
use lane::{Broken, Lane, News, Room, hold};
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
}

/// A second in which an engine is woken more often than this for nothing is one in which it spins: five endpoints that
/// look for permits each 5 ms make a thousand.
const IDLE_WAKES_MAX: u32 = 2_000;

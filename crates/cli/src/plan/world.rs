//! A world around the engine's own core, in virtual time: requests come, wait for a place, are served, and are counted.
//!
//! Nothing here decides who waits for what: [`forebay_core::Engine`] does, as it does in the servers. The world dials,
//! serves and asks, each at its time, from one seed.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use forebay_core::{
    Acquired, Action, Balance, Config, ConfigError, EndpointId, Engine, Instant, Lease, Outcome, Permits,
    Rng, SlotId,
};

use super::draw::{Service, exponential};

/// Who asks one endpoint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrivals {
    /// Requests come on their own, at random, so many at once.
    Open {
        /// How many per second.
        rate: f64,
        /// How many come at the same moment.
        burst: u32,
    },
    /// Callers ask one thing at a time, again and again.
    Closed {
        /// How many there are.
        callers: u32,
        /// The mean pause before each asks again, in seconds; exponential.
        think: f64,
    },
}

/// What is to be lived through.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Who asks.
    pub(crate) arrivals: Arrivals,
    /// How long each request is served.
    pub(crate) service: Service,
    /// Requests on one connection at once.
    pub(crate) capacity: u32,
    /// Connections at most.
    pub(crate) connections: u32,
    /// Whether all of them are there from the beginning and stay; otherwise they are dialled as they are needed.
    pub(crate) is_warm: bool,
    /// How long a dial takes, in seconds.
    pub(crate) dial: f64,
    /// How many requests are counted; where all is warm, after a tenth as many that are not.
    pub(crate) requests: u32,
    /// What chance is made of.
    pub(crate) seed: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Lived {
    /// How long each counted request waited for its place, in nanoseconds, ascending.
    waits: Vec<u64>,
    /// Requests served per second while they were counted.
    pub(crate) throughput: f64,
    /// Connections at the highest.
    pub(crate) connections: u32,
    /// Dials in all.
    pub(crate) dials: u64,
    /// Requests that were refused because too many waited.
    pub(crate) refused: u64,
}

impl Lived {
    /// The mean wait, in seconds.
    pub(crate) fn mean(&self) -> f64 {
        let sum: u128 = self.waits.iter().map(|wait| u128::from(*wait)).sum();
        sum as f64 / self.waits.len().max(1) as f64 / 1e9
    }

    /// The wait that this part (0 to 1) does not exceed, in seconds.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let rank = (part * self.waits.len() as f64).ceil() as usize;
        self.waits.get(rank.clamp(1, self.waits.len().max(1)) - 1).map_or(0.0, |wait| *wait as f64 / 1e9)
    }

    /// The part that waited at all.
    pub(crate) fn waits(&self) -> f64 {
        let zero = self.waits.partition_point(|wait| *wait == 0);
        (self.waits.len() - zero) as f64 / self.waits.len().max(1) as f64
    }
}

/// Who may stand in line: beyond that, what is planned is no pool any more.
const WAITERS_MAX: u32 = 1 << 20;

impl World {
    /// Lives through it.
    ///
    /// # Errors
    ///
    /// When connections or capacity cannot be.
    pub(crate) fn live(&self) -> Result<Lived, ConfigError> {
        let config = Config {
            connections_max: self.connections,
            idle_max: self.connections,
            connections_min: if self.is_warm { self.connections } else { 0 },
            capacity: self.capacity,
            waiters_max: WAITERS_MAX,
            dial_timeout: Duration::from_secs(3600),
            ..Config::default()
        };
        let mut engine = Engine::new(Balance::default(), self.seed);
        let endpoint = engine.add_endpoint(Instant::ZERO, config, Permits::alone(self.connections, 0))?;
        let mut life = Life {
            world: self,
            engine,
            endpoint,
            rng: Rng::new(self.seed ^ 0x5eed),
            now: 0,
            events: BinaryHeap::new(),
            order: 0,
            leases: Vec::new(),
            vacant: Vec::new(),
            waiting: Vec::new(),
            open: 0,
            asked: 0,
            served: 0,
            count_from: None,
            counted_to: 0,
            lived: Lived { waits: Vec::new(), throughput: 0.0, connections: 0, dials: 0, refused: 0 },
        };
        life.live();
        Ok(life.lived)
    }
}

struct Life<'a> {
    world: &'a World,
    engine: Engine,
    endpoint: EndpointId,
    rng: Rng,
    now: u64,
    events: BinaryHeap<Reverse<Event>>,
    /// Gives events of one moment an order.
    order: u64,
    leases: Vec<Option<Lease>>,
    vacant: Vec<usize>,
    /// Since when each ticket waits, and whether it is counted.
    waiting: Vec<Option<(u64, bool)>>,
    open: u32,
    asked: u64,
    served: u64,
    /// When the first counted request was asked.
    count_from: Option<u64>,
    counted_to: u64,
    lived: Lived,
}

#[derive(Debug)]
struct Event {
    at: u64,
    order: u64,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A request comes; as many as come at once.
    Ask,
    /// A dial has made its connection.
    Dialed(SlotId),
    /// The request that has this lease is answered.
    Answered(usize),
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Event {}

impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Event {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl Life<'_> {
    fn live(&mut self) {
        self.act();
        // Connections that are to be there from the beginning.
        while self.world.is_warm && self.open < self.world.connections && self.step() {}
        match self.world.arrivals {
            Arrivals::Open { .. } => self.plan(0, What::Ask),
            Arrivals::Closed { callers, think } => {
                for _ in 0..callers {
                    // Not all at once: nobody starts a clock for them.
                    let after = exponential(think + self.world.service.mean, &mut self.rng);
                    self.plan(nanos(after), What::Ask);
                }
            }
        }
        while (self.lived.waits.len() as u64) < u64::from(self.world.requests) && self.step() {}
        let from = self.count_from.unwrap_or(0);
        let seconds = self.counted_to.saturating_sub(from) as f64 / 1e9;
        self.lived.throughput = if seconds > 0.0 { self.served as f64 / seconds } else { 0.0 };
        self.lived.waits.sort_unstable();
    }

    /// Lets the next thing happen; returns whether there was one.
    fn step(&mut self) -> bool {
        let next = self.events.peek().map(|Reverse(event)| event.at);
        let due = self.engine.next_timeout().map(|due| due.as_nanos());
        match (next, due) {
            (None, None) => return false,
            (next, Some(due)) if next.is_none_or(|next| due < next) => {
                self.now = self.now.max(due);
                self.engine.handle_timeout(Instant::from_nanos(self.now));
            }
            _ => {
                let Some(Reverse(event)) = self.events.pop() else { return false };
                self.now = event.at;
                self.happen(event.what);
            }
        }
        self.act();
        true
    }

    fn happen(&mut self, what: What) {
        let now = Instant::from_nanos(self.now);
        match what {
            What::Ask => {
                let mut at_once = 1;
                if let Arrivals::Open { rate, burst } = self.world.arrivals {
                    at_once = burst;
                    let pause = exponential(f64::from(burst) / rate, &mut self.rng);
                    self.plan(nanos(pause), What::Ask);
                }
                for _ in 0..at_once {
                    self.ask();
                }
            }
            What::Dialed(slot) => {
                self.open += 1;
                self.lived.connections = self.lived.connections.max(self.open);
                self.engine.handle_dialed(now, slot, Ok(u32::MAX));
            }
            What::Answered(at) => {
                if let Some(lease) = self.leases[at].take() {
                    self.vacant.push(at);
                    self.engine.release(now, lease, Outcome::Good);
                }
                if self.count_from.is_some() {
                    self.served += 1;
                    self.counted_to = self.now;
                }
                if let Arrivals::Closed { think, .. } = self.world.arrivals {
                    let pause = if think > 0.0 { exponential(think, &mut self.rng) } else { 0.0 };
                    self.plan(nanos(pause), What::Ask);
                }
            }
        }
    }

    fn ask(&mut self) {
        self.asked += 1;
        let is_counted = !self.world.is_warm || self.asked > u64::from(self.world.requests / 10);
        if is_counted && self.count_from.is_none() {
            self.count_from = Some(self.now);
        }
        match self.engine.acquire(Instant::from_nanos(self.now), self.endpoint, Instant::MAX) {
            Acquired::Lease(lease) => self.serve(lease, 0, is_counted),
            Acquired::Wait(ticket) => {
                let at = ticket.index();
                if self.waiting.len() <= at {
                    self.waiting.resize(at + 1, None);
                }
                self.waiting[at] = Some((self.now, is_counted));
            }
            Acquired::Refused(_) => self.lived.refused += 1,
        }
    }

    fn serve(&mut self, lease: Lease, wait: u64, is_counted: bool) {
        if is_counted {
            self.lived.waits.push(wait);
        }
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.leases.push(None);
            self.leases.len() - 1
        });
        self.leases[at] = Some(lease);
        let time = self.world.service.draw(&mut self.rng);
        self.plan(time, What::Answered(at));
    }

    /// Does what the engine wants.
    fn act(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Dial { slot, .. } => {
                    self.lived.dials += 1;
                    let time = if self.world.is_warm { 0 } else { nanos(self.world.dial) };
                    self.plan(time, What::Dialed(slot));
                }
                Action::Close { slot, .. } => {
                    self.open -= 1;
                    self.engine.handle_closed(Instant::from_nanos(self.now), slot);
                }
                Action::Grant { ticket, lease } => {
                    let waited = self.waiting.get_mut(ticket.index()).and_then(Option::take);
                    let (since, is_counted) = waited.unwrap_or((self.now, false));
                    self.serve(lease, self.now - since, is_counted);
                }
                Action::Fail { ticket, .. } => {
                    if let Some(waiting) = self.waiting.get_mut(ticket.index()) {
                        *waiting = None;
                    }
                    self.lived.refused += 1;
                }
                Action::Probe { .. } => {}
            }
        }
    }

    fn plan(&mut self, after: u64, what: What) {
        self.order += 1;
        self.events.push(Reverse(Event { at: self.now + after, order: self.order, what }));
    }
}

fn nanos(seconds: f64) -> u64 {
    (seconds * 1e9) as u64
}

#[cfg(test)]
mod tests {
    use super::super::theory::{ClosedLine, OpenLine};
    use super::*;

    fn world(arrivals: Arrivals, spread: f64, connections: u32) -> World {
        World {
            arrivals,
            service: Service { mean: 0.001, spread },
            capacity: 1,
            connections,
            is_warm: true,
            dial: 0.0,
            requests: 300_000,
            seed: 7,
        }
    }

    fn open(rate: f64) -> Arrivals {
        Arrivals::Open { rate, burst: 1 }
    }

    #[track_caller]
    fn within_a_tenth(what: &str, told: f64, lived: f64) {
        assert!((told / lived - 1.0).abs() < 0.1, "{what}: theory {told}, simulation {lived}");
    }

    #[test]
    fn erlang_and_the_engine_agree_within_a_tenth() {
        for (connections, rate) in [(1, 700.0), (4, 3200.0), (10, 8500.0), (50, 44_000.0)] {
            // Long enough for a thousand times of busy and idle: waits of neighbours are alike.
            let lived = World { requests: 600_000, ..world(open(rate), 1.0, connections) }.live().unwrap();
            let told = OpenLine::new(connections.into(), rate, 0.001, 1.0).unwrap();
            let name = format!("{connections} connections at {rate}/s");
            within_a_tenth(&format!("{name}: chance"), told.waits, lived.waits());
            within_a_tenth(&format!("{name}: mean"), told.mean(), lived.mean());
            within_a_tenth(&format!("{name}: p99"), told.quantile(0.99), lived.quantile(0.99));
            within_a_tenth(&format!("{name}: rate"), rate, lived.throughput);
        }
    }

    #[test]
    fn callers_who_come_back_agree_within_a_tenth() {
        for (connections, callers, think) in [(10, 256, 0.0), (4, 16, 0.002), (20, 64, 0.003), (1, 2, 0.001)]
        {
            let lived = world(Arrivals::Closed { callers, think }, 1.0, connections).live().unwrap();
            let told = ClosedLine::new(connections.into(), callers.into(), 0.001, think);
            let name = format!("{callers} callers on {connections}, pausing {think}");
            within_a_tenth(&format!("{name}: mean"), told.mean(), lived.mean());
            within_a_tenth(&format!("{name}: p99"), told.quantile(0.99), lived.quantile(0.99));
            within_a_tenth(&format!("{name}: rate"), told.throughput(), lived.throughput);
        }
    }

    #[test]
    fn connections_that_carry_several_are_as_many_places() {
        let many = World { capacity: 5, connections: 2, ..world(open(8500.0), 1.0, 2) }.live().unwrap();
        let told = OpenLine::new(10, 8500.0, 0.001, 1.0).unwrap();
        within_a_tenth("mean", told.mean(), many.mean());
        assert_eq!(many.connections, 2);
    }

    #[test]
    fn a_single_place_meets_pollaczek_and_khinchine_whatever_the_spread() {
        // M/G/1: the mean wait is ρ/(1 − ρ) · (1 + cv²)/2 · S, which is what roughness is.
        for spread in [0.0, 0.5, 2.0] {
            let lived = World { requests: 600_000, ..world(open(600.0), spread, 1) }.live().unwrap();
            let told = OpenLine::new(1, 600.0, 0.001, (1.0 + spread * spread) / 2.0).unwrap();
            within_a_tenth(&format!("spread {spread}"), told.mean(), lived.mean());
        }
    }

    #[test]
    fn bursts_wait_longer_than_the_same_load_one_by_one() {
        let smooth = world(open(5000.0), 1.0, 10).live().unwrap();
        let burst = world(Arrivals::Open { rate: 5000.0, burst: 20 }, 1.0, 10).live().unwrap();
        assert!(burst.quantile(0.99) > 3.0 * smooth.quantile(0.99));
        assert!((burst.throughput / smooth.throughput - 1.0).abs() < 0.1);
    }

    #[test]
    fn a_pool_that_begins_empty_dials_what_it_needs_and_no_more_than_it_may() {
        let cold = World { is_warm: false, dial: 0.005, ..world(open(5000.0), 1.0, 100) }.live().unwrap();
        assert!((5..=100).contains(&cold.connections), "{}", cold.connections);
        assert!(cold.dials >= u64::from(cold.connections));
        let tight = World { is_warm: false, dial: 0.005, ..world(open(5000.0), 1.0, 7) }.live().unwrap();
        assert_eq!(tight.connections, 7);
    }

    #[test]
    fn one_seed_is_one_life() {
        let (a, b) =
            (world(open(3000.0), 2.0, 4).live().unwrap(), world(open(3000.0), 2.0, 4).live().unwrap());
        assert_eq!(a.waits, b.waits);
        let other = World { seed: 8, ..world(open(3000.0), 2.0, 4) }.live().unwrap();
        assert_ne!(a.waits, other.waits);
    }

    #[test]
    fn callers_without_a_line_wait_for_nobody() {
        let lived = world(Arrivals::Closed { callers: 8, think: 0.0 }, 1.0, 8).live().unwrap();
        assert_eq!((lived.waits(), lived.mean(), lived.refused), (0.0, 0.0, 0));
        within_a_tenth("rate", 8000.0, lived.throughput);
    }
}

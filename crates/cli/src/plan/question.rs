//! What is asked of a plan, checked once; and the arithmetic of the answer.

use forebay_core::ConfigError;
use serde::Serialize;

use super::draw::Service;
use super::theory::{ClosedLine, OpenLine};
use super::world::{Arrivals, Lived, World};

/// What is asked. Valid from [`Question::check`] on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// Who asks, all endpoints together.
    pub(crate) arrivals: Arrivals,
    /// How long the upstream takes.
    pub(crate) service: Service,
    /// Requests on one connection at once.
    pub(crate) capacity: u32,
    /// Endpoints that share the load evenly.
    pub(crate) endpoints: u32,
    /// How long `part` of all requests may wait for a connection, in seconds.
    pub(crate) target: f64,
    /// Which part of all requests, 0 to 1.
    pub(crate) part: f64,
    /// Connections to each endpoint, if it is known how many there are to be.
    pub(crate) connections: Option<u32>,
    /// How long a dial takes, in seconds.
    pub(crate) dial: f64,
    /// What the connections are.
    pub(crate) transport: Transport,
    /// What there is.
    pub(crate) room: Room,
    /// Requests to live through in each simulation.
    pub(crate) requests: u32,
    /// What chance is made of there.
    pub(crate) seed: u64,
}

/// What connections are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// Datagrams: no TIME_WAIT.
    Udp,
    /// Streams: whoever closes one keeps its port for a minute.
    Tcp,
    /// Streams with TLS.
    Tls,
}

impl Transport {
    /// How long the kernel keeps the port of a connection that this side has closed, in seconds (`TCP_TIMEWAIT_LEN`).
    pub(crate) const fn time_wait(self) -> f64 {
        match self {
            Self::Udp => 0.0,
            Self::Tcp | Self::Tls => 60.0,
        }
    }

    /// What a connection is taken to need, kernel and process together, with its buffers empty. An assumption: the
    /// kernel's objects are 2 to 4 KiB, a TLS session 20 to 40 KiB.
    pub(crate) const fn memory_bytes(self) -> u64 {
        match self {
            Self::Udp => 4 << 10,
            Self::Tcp => 8 << 10,
            Self::Tls => 48 << 10,
        }
    }

    /// What it is called.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
        }
    }
}

/// What there is of everything that connections need.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Room {
    /// `connections_max` of the pool, for each endpoint.
    pub(crate) connections_max: u64,
    /// Local ports for one destination.
    pub(crate) ports: u64,
    /// Descriptors of the process.
    pub(crate) descriptors: u64,
    /// Of these, those that are for other things than connections to upstreams.
    pub(crate) descriptors_taken: u64,
    /// Memory for connections; `None` when it is not known.
    pub(crate) memory_bytes: Option<u64>,
    /// Memory of one connection.
    pub(crate) connection_bytes: u64,
}

/// More requests in flight than anybody has: units were mixed up.
const IN_FLIGHT_MAX: f64 = 1e6;
/// Service beyond this is no request.
const SERVICE_MAX: f64 = 3600.0;
/// Requests to live through for one number among several that only are to be compared.
const WHAT_IF_REQUESTS: u32 = 30_000;

impl Question {
    /// Refuses what cannot be.
    ///
    /// # Errors
    ///
    /// The option, its value and what it may be.
    pub(crate) fn check(self) -> Result<Self, String> {
        match self.arrivals {
            Arrivals::Open { rate, burst } => {
                if rate <= 0.0 {
                    return Err(format!("--rate: is {rate}; it must be more than 0 requests per second"));
                }
                if !(1..=10_000).contains(&burst) {
                    return Err(format!("--burst: is {burst}; it must be 1 to 10000"));
                }
                let in_flight = rate * self.service.mean;
                if in_flight > IN_FLIGHT_MAX {
                    return Err(format!(
                        "--rate: {rate}/s of {} each are {in_flight:.0} requests in flight; no more than {IN_FLIGHT_MAX} \
                         are planned: look at the units",
                        super::units::shown(self.service.mean)
                    ));
                }
            }
            Arrivals::Closed { callers, think } => {
                if !(1..=1_000_000).contains(&callers) {
                    return Err(format!("--callers: is {callers}; it must be 1 to 1000000"));
                }
                if think > SERVICE_MAX {
                    return Err(format!("--think: is {think}s; it must be at most an hour"));
                }
            }
        }
        let Service { mean, spread } = self.service;
        if !(1e-7..=SERVICE_MAX).contains(&mean) {
            return Err(format!("--service: is {mean}s; it must be 100ns to 1h"));
        }
        if !(0.0..=10.0).contains(&spread) {
            return Err(format!(
                "--spread: is {spread:.2}; it must be 0 (always the same) to 10: beyond, a mean says nothing"
            ));
        }
        if !(0.5..=0.9999).contains(&self.part) {
            return Err(format!("--percentile: is {}; it must be 50 to 99.99", self.part * 100.0));
        }
        for (option, value, least, most) in [
            ("--capacity", self.capacity, 1, 100_000),
            ("--endpoints", self.endpoints, 1, 10_000),
            ("--connections", self.connections.unwrap_or(1), 1, 1_000_000),
            ("--requests", self.requests, 1_000, 10_000_000),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("{option}: is {value}; it must be {least} to {most}"));
            }
        }
        if self.dial > 60.0 {
            return Err(format!("--dial: is {}s; it must be at most a minute", self.dial));
        }
        if self.room.descriptors <= self.room.descriptors_taken {
            return Err(format!(
                "--descriptors: {} are all taken: clients and the process itself need {}",
                self.room.descriptors, self.room.descriptors_taken
            ));
        }
        Ok(self)
    }

    /// Who asks one of the endpoints.
    pub(crate) fn share(&self) -> Arrivals {
        match self.arrivals {
            Arrivals::Open { rate, burst } => {
                Arrivals::Open { rate: rate / f64::from(self.endpoints), burst }
            }
            Arrivals::Closed { callers, think } => {
                Arrivals::Closed { callers: callers.div_ceil(self.endpoints), think }
            }
        }
    }

    /// Whether theory is exact for all that is asked.
    pub(crate) fn is_exact(&self) -> bool {
        let burst = matches!(self.arrivals, Arrivals::Open { burst, .. } if burst > 1);
        self.service.is_exponential() && !burst
    }

    /// The mean of the squared spreads of arrivals and of service.
    fn roughness(&self) -> f64 {
        match self.arrivals {
            Arrivals::Open { burst, .. } => (f64::from(burst) + self.service.spread.powi(2)) / 2.0,
            Arrivals::Closed { .. } => 1.0,
        }
    }

    /// The fewest connections to an endpoint by theory; `None` when more than can be planned.
    pub(crate) fn by_theory(&self) -> Option<u32> {
        let service = self.service.mean;
        let places = match self.share() {
            Arrivals::Open { rate, .. } => {
                let most = (rate * service * 2.0) as u64 + 1_000_000;
                OpenLine::fewest(rate, service, self.roughness(), self.part, self.target, most)?
            }
            Arrivals::Closed { callers, think } => {
                ClosedLine::fewest(callers.into(), service, think, self.part, self.target)
            }
        };
        u32::try_from(places.div_ceil(self.capacity.into())).ok()
    }

    /// What theory says of so many connections to an endpoint.
    pub(crate) fn told(&self, connections: u32) -> Figures {
        let (service, places) = (self.service.mean, u64::from(connections) * u64::from(self.capacity));
        match self.share() {
            Arrivals::Open { rate, .. } => match OpenLine::new(places, rate, service, self.roughness()) {
                None => Figures { throughput: places as f64 / service, ..Figures::ENDLESS },
                Some(line) => Figures {
                    waits: Some(line.waits),
                    mean: Some(line.mean()),
                    quantiles: self.parts().map(|part| Some(line.quantile(part))),
                    throughput: rate,
                },
            },
            Arrivals::Closed { callers, think } => {
                let line = ClosedLine::new(places, callers.into(), service, think);
                Figures {
                    waits: Some(line.waits()),
                    mean: Some(line.mean()),
                    quantiles: self.parts().map(|part| Some(line.quantile(part))),
                    throughput: line.throughput(),
                }
            }
        }
    }

    /// Lives with so many connections to an endpoint; `None` when the line would have no end.
    ///
    /// # Errors
    ///
    /// When the engine refuses the settings.
    pub(crate) fn lived(&self, connections: u32, is_warm: bool) -> Result<Option<Lived>, ConfigError> {
        if self.is_endless(connections) {
            return Ok(None);
        }
        let world = World {
            arrivals: self.share(),
            service: self.service,
            capacity: self.capacity,
            connections,
            is_warm,
            dial: self.dial,
            requests: self.requests,
            seed: self.seed,
        };
        world.live().map(Some)
    }

    /// Whether more comes to an endpoint than so many connections can serve.
    pub(crate) fn is_endless(&self, connections: u32) -> bool {
        let places = f64::from(connections) * f64::from(self.capacity);
        matches!(self.share(), Arrivals::Open { rate, .. } if rate * self.service.mean >= places)
    }

    /// The part that the target is about, and the usual ones.
    pub(crate) const fn parts(&self) -> [f64; 4] {
        [0.5, 0.9, 0.99, 0.999]
    }

    /// The fewest connections to an endpoint, by theory where it is exact and by living through it elsewhere.
    ///
    /// # Errors
    ///
    /// When there are more than can be planned, or the engine refuses the settings.
    pub(crate) fn fewest(&self) -> Result<u32, String> {
        let too_many = "the target needs more than a million places: look at the units";
        let guess = self.by_theory().ok_or(too_many)?;
        if self.is_exact() {
            return Ok(guess);
        }
        let meets = |connections: u32| match self.lived(connections, true) {
            Ok(Some(lived)) => Ok(lived.refused == 0 && lived.quantile(self.part) <= self.target),
            Ok(None) => Ok(false),
            Err(error) => Err(error.to_string()),
        };
        // Nobody waits where each caller has a place.
        let most = match self.share() {
            Arrivals::Closed { callers, .. } => callers.div_ceil(self.capacity),
            Arrivals::Open { .. } => 1_000_000,
        };
        bracket(guess.min(most), most, meets)?.ok_or_else(|| too_many.to_owned())
    }

    /// What each connection and request needs of this machine, against what there is.
    pub(crate) fn bounds(&self, connections: u32) -> Vec<Bound> {
        let (room, endpoints) = (&self.room, u64::from(self.endpoints));
        let (each, all) = (u64::from(connections), u64::from(connections) * endpoints);
        let free = room.descriptors - room.descriptors_taken;
        let mut bounds = vec![
            Bound::new("connections_max of the pool", each, room.connections_max, room.connections_max),
            Bound::new("local ports to one destination", each, room.ports, room.ports),
            Bound::new("descriptors", all + room.descriptors_taken, room.descriptors, free / endpoints),
        ];
        if let Some(bytes) = room.memory_bytes {
            let room_for = bytes / room.connection_bytes.max(1) / endpoints;
            bounds.push(Bound::new("memory (bytes)", all * room.connection_bytes, bytes, room_for));
        }
        // The one that the load reaches first, as it grows, comes first.
        bounds.sort_by_key(|bound| bound.connections);
        bounds
    }

    /// How many times this load so many connections to an endpoint could carry within the target, by theory: for where it
    /// is exact.
    pub(crate) fn reach(&self, connections: u64) -> f64 {
        let places = connections * u64::from(self.capacity);
        let service = self.service.mean;
        let meets = |times: f64| match self.share() {
            Arrivals::Open { rate, .. } => {
                // With so many places nobody waits before nearly all are busy.
                let load = rate * times * service;
                if places > 100_000 {
                    return load < places as f64 * 0.99;
                }
                OpenLine::new(places, rate * times, service, self.roughness())
                    .is_some_and(|line| line.quantile(self.part) <= self.target)
            }
            Arrivals::Closed { callers, think } => {
                let callers = (f64::from(callers) * times) as u64;
                callers <= places
                    || (callers < 100_000_000
                        && ClosedLine::new(places, callers, service, think).quantile(self.part)
                            <= self.target)
            }
        };
        if connections == 0 || !meets(1e-6) {
            return 0.0;
        }
        let (mut low, mut high) = (1e-6f64, 1e9f64);
        for _ in 0..50 {
            let middle = (low * high).sqrt();
            if meets(middle) { low = middle } else { high = middle }
        }
        low
    }

    /// What it costs to make a connection for each request.
    pub(crate) fn without_pool(&self) -> NoPool {
        let time = self.service.mean + self.dial;
        let rate = match self.arrivals {
            Arrivals::Open { rate, .. } => rate,
            Arrivals::Closed { callers, think } => f64::from(callers) / (think + time),
        };
        let held = time + self.transport.time_wait();
        let endpoints = f64::from(self.endpoints);
        NoPool {
            sockets_per_second: rate,
            in_flight: rate * time,
            ports_per_destination: rate / endpoints * held,
            rate_max: self.room.ports as f64 / held * endpoints,
        }
    }

    /// How many connections an endpoint needs if one assumption is wrong, against the number that is needed if none is.
    pub(crate) fn sensitivity(&self, now: u32) -> Vec<WhatIf> {
        let Service { mean, spread } = self.service;
        let slow = Self { service: Service { mean: mean * 2.0, spread }, ..*self };
        let mut cases = vec![("service takes twice as long", slow)];
        match self.arrivals {
            Arrivals::Open { rate, burst } => {
                let arrivals = Arrivals::Open { rate: rate * 2.0, burst };
                cases.push(("twice as many requests come", Self { arrivals, ..*self }));
                let wide = Service { mean, spread: (spread * 2.0).max(2.0) };
                cases.push((
                    "times of service spread twice as far (2 at least)",
                    Self { service: wide, ..*self },
                ));
                let arrivals = Arrivals::Open { rate, burst: burst.saturating_mul(10) };
                cases.push(("ten times as many come at once", Self { arrivals, ..*self }));
            }
            Arrivals::Closed { callers, think } => {
                let arrivals = Arrivals::Closed { callers: callers.saturating_mul(2), think };
                cases.push(("twice as many callers come", Self { arrivals, ..*self }));
                let arrivals = Arrivals::Closed { callers, think: think + mean };
                cases.push(("callers pause for one more service time", Self { arrivals, ..*self }));
            }
        }
        cases.push(("the target is half as long", Self { target: self.target / 2.0, ..*self }));
        cases
            .into_iter()
            .filter_map(|(what, question)| {
                let connections =
                    Self { requests: question.requests.min(WHAT_IF_REQUESTS), ..question }.fewest().ok()?;
                Some(WhatIf { what, connections, times: f64::from(connections) / f64::from(now) })
            })
            .collect()
    }
}

/// Finds the least number that will do, from a guess: up or down in growing steps, then by halves.
fn bracket(
    guess: u32,
    most: u32,
    mut meets: impl FnMut(u32) -> Result<bool, String>,
) -> Result<Option<u32>, String> {
    // `low` will not do (0 never does), `high` will.
    let (mut low, mut high) = (0, 0);
    let mut step = (guess / 16).max(1);
    if meets(guess)? {
        high = guess;
        while high > 1 {
            let next = high.saturating_sub(step).max(1);
            if !meets(next)? {
                low = next;
                break;
            }
            high = next;
            step *= 2;
        }
    } else {
        low = guess;
        while high == 0 {
            if low >= most {
                return Ok(None);
            }
            let next = low.saturating_add(step).min(most);
            if meets(next)? {
                high = next
            } else {
                low = next
            }
            step = step.saturating_mul(2);
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if meets(middle)? { high = middle } else { low = middle }
    }
    Ok(Some(high))
}

/// Waits and throughput; `None` where the line has no end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Figures {
    /// The part that waits at all.
    pub(crate) waits: Option<f64>,
    /// The mean, in seconds.
    pub(crate) mean: Option<f64>,
    /// Those of [`Question::parts`].
    pub(crate) quantiles: [Option<f64>; 4],
    /// Requests per second, at one endpoint.
    pub(crate) throughput: f64,
}

impl Figures {
    const ENDLESS: Self = Self { waits: None, mean: None, quantiles: [None; 4], throughput: 0.0 };

    pub(crate) fn of(lived: &Lived, parts: [f64; 4]) -> Self {
        Self {
            waits: Some(lived.waits()),
            mean: Some(lived.mean()),
            quantiles: parts.map(|part| Some(lived.quantile(part))),
            throughput: lived.throughput,
        }
    }
}

/// One thing that connections need, and how far it goes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Bound {
    /// What it is.
    pub(crate) what: &'static str,
    /// How much is needed.
    pub(crate) needs: u64,
    /// How much there is.
    pub(crate) has: u64,
    /// How many connections to each endpoint it allows.
    pub(crate) connections: u64,
}

impl Bound {
    const fn new(what: &'static str, needs: u64, has: u64, connections: u64) -> Self {
        Self { what, needs, has, connections }
    }

    /// Whether there is less than is needed.
    pub(crate) const fn is_short(&self) -> bool {
        self.needs > self.has
    }
}

/// The same load with a connection for each request.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct NoPool {
    /// Sockets made each second.
    pub(crate) sockets_per_second: f64,
    /// Sockets open on average.
    pub(crate) in_flight: f64,
    /// Local ports taken at each destination, those in TIME_WAIT included.
    pub(crate) ports_per_destination: f64,
    /// The requests per second at which the ports are used up.
    pub(crate) rate_max: f64,
}

/// What becomes of the plan when an assumption is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct WhatIf {
    /// The assumption.
    pub(crate) what: &'static str,
    /// Connections to each endpoint.
    pub(crate) connections: u32,
    /// The same by what is needed if no assumption is wrong.
    pub(crate) times: f64,
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn question(arrivals: Arrivals) -> Question {
        Question {
            arrivals,
            service: Service { mean: 0.00078, spread: 1.0 },
            capacity: 1,
            endpoints: 1,
            target: 0.000_078,
            part: 0.99,
            connections: None,
            dial: 0.001,
            transport: Transport::Tcp,
            room: Room {
                connections_max: 1024,
                ports: 28_232,
                descriptors: 20_000,
                descriptors_taken: 64,
                memory_bytes: Some(1 << 30),
                connection_bytes: 8 << 10,
            },
            requests: 50_000,
            seed: 1,
        }
    }

    const OPEN: Arrivals = Arrivals::Open { rate: 5000.0, burst: 1 };

    #[test]
    fn the_seeds_case_needs_a_connection_for_nearly_each_caller() {
        let callers = question(Arrivals::Closed { callers: 256, think: 0.0 });
        let fewest = callers.fewest().unwrap();
        assert!((200..=256).contains(&fewest), "{fewest}");
        let told = callers.told(10);
        // Its own calculation said 19.97 ms; the wait is one time of service less.
        assert!((told.mean.unwrap() - 0.019_188).abs() < 1e-6);
        assert!((told.throughput - 12_820.5).abs() < 1.0);
    }

    #[test]
    fn what_is_found_by_living_meets_the_target_and_one_less_does_not() {
        for (spread, burst) in [(0.0, 1), (2.5, 1), (1.0, 8)] {
            let asked = Question {
                service: Service { mean: 0.00078, spread },
                ..question(Arrivals::Open { rate: 5000.0, burst })
            };
            assert!(!asked.is_exact());
            let fewest = asked.fewest().unwrap();
            let at = |n: u32| asked.lived(n, true).unwrap().map(|lived| lived.quantile(0.99));
            assert!(at(fewest).unwrap() <= asked.target, "{spread} {burst}: {fewest}");
            assert!(at(fewest - 1).is_none_or(|wait| wait > asked.target), "{spread} {burst}: {fewest}");
        }
    }

    #[test]
    fn theory_and_simulation_agree_on_how_many_where_theory_is_exact() {
        for arrivals in [OPEN, Arrivals::Closed { callers: 40, think: 0.002 }] {
            let asked = Question { requests: 200_000, ..question(arrivals) };
            let fewest = asked.fewest().unwrap();
            let lived = asked.lived(fewest, true).unwrap().unwrap();
            assert!(lived.quantile(0.99) <= asked.target * 1.5, "{fewest}: {}", lived.quantile(0.99));
            let told = asked.told(fewest - 2).quantiles[2].unwrap();
            let lived = asked.lived(fewest - 2, true).unwrap().unwrap().quantile(0.99);
            assert!((told / lived - 1.0).abs() < 0.1, "{told} {lived}");
        }
    }

    #[test]
    fn load_is_shared_by_endpoints_and_places_by_capacity() {
        let one = question(OPEN);
        let four = Question { endpoints: 4, ..one };
        assert!(four.fewest().unwrap() < one.fewest().unwrap());
        assert!(four.fewest().unwrap() * 4 > one.fewest().unwrap(), "four lines are worse than one");
        let many = Question { capacity: 8, ..one };
        assert_eq!(many.fewest().unwrap(), one.fewest().unwrap().div_ceil(8));
    }

    #[test]
    fn a_line_without_end_is_told_as_one() {
        let asked = question(OPEN);
        assert_eq!(asked.told(3).mean, None);
        assert!(asked.lived(3, true).unwrap().is_none());
        assert!(asked.told(4).mean.is_some());
    }

    #[test]
    fn the_first_bound_is_the_one_that_allows_the_fewest() {
        let asked = question(OPEN);
        assert_eq!(asked.bounds(10)[0].what, "connections_max of the pool");
        let few_ports = Question { room: Room { ports: 200, ..asked.room }, ..asked };
        let bounds = few_ports.bounds(250);
        assert_eq!((bounds[0].what, bounds[0].is_short()), ("local ports to one destination", true));
        let few_files = Question { room: Room { descriptors: 100, ..asked.room }, endpoints: 12, ..asked };
        let bounds = few_files.bounds(4);
        assert_eq!((bounds[0].what, bounds[0].connections), ("descriptors", 3));
        assert_eq!((bounds[0].needs, bounds[0].is_short()), (4 * 12 + 64, true));
    }

    #[test]
    fn without_a_pool_ports_wait_for_a_minute() {
        let without = question(Arrivals::Open { rate: 1000.0, burst: 1 }).without_pool();
        assert!((without.ports_per_destination - 60_001.78).abs() < 0.1, "{without:?}");
        assert!((without.rate_max - 470.5).abs() < 0.1, "{without:?}");
        let udp = Question { transport: Transport::Udp, dial: 0.0, ..question(OPEN) }.without_pool();
        assert!((udp.ports_per_destination - 3.9).abs() < 1e-9);
        // 1,000 users and 3 upstreams: each destination has ports of its own.
        let users = Question { endpoints: 3, ..question(Arrivals::Closed { callers: 1000, think: 0.0 }) };
        assert!((users.without_pool().in_flight - 1000.0).abs() < 1e-6);
    }

    #[test]
    fn the_reach_of_what_is_needed_is_this_load_or_a_little_more() {
        for arrivals in [OPEN, Arrivals::Closed { callers: 400, think: 0.01 }] {
            let asked = question(arrivals);
            let fewest = asked.fewest().unwrap();
            let reach = asked.reach(fewest.into());
            assert!((1.0..1.5).contains(&reach), "{reach}");
            assert!(asked.reach(u64::from(fewest) * 10) > 8.0);
        }
        assert_eq!(question(OPEN).reach(0), 0.0);
        let reach = Question { capacity: 128, ..question(OPEN) }.reach(28_232);
        assert!((8e5..1e6).contains(&reach), "{reach}");
    }

    #[test]
    fn wrong_assumptions_have_a_price() {
        let asked = question(OPEN);
        let now = asked.fewest().unwrap();
        let all = asked.sensitivity(now);
        assert_eq!(all.len(), 5);
        assert!(all.iter().all(|one| one.connections >= now), "{all:?}");
        assert!(all.iter().any(|one| one.times > 1.5), "{all:?}");
        let callers = question(Arrivals::Closed { callers: 64, think: 0.0 });
        let callers = callers.sensitivity(callers.fewest().unwrap());
        assert!(callers.iter().any(|one| one.what.contains("pause") && one.times < 1.0), "{callers:?}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let good = question(OPEN);
        let of = |arrivals| Question { arrivals, ..good };
        let service = |mean, spread| Question { service: Service { mean, spread }, ..good };
        let cases = [
            ("--rate: is 0", of(Arrivals::Open { rate: 0.0, burst: 1 })),
            ("--rate: 10000000000/s", of(Arrivals::Open { rate: 1e10, burst: 1 })),
            ("--burst: is 0", of(Arrivals::Open { rate: 1.0, burst: 0 })),
            ("--callers: is 0", of(Arrivals::Closed { callers: 0, think: 0.0 })),
            ("--callers: is 2000000", of(Arrivals::Closed { callers: 2_000_000, think: 0.0 })),
            ("--think: ", of(Arrivals::Closed { callers: 1, think: 1e6 })),
            ("--service: is 0s", service(0.0, 1.0)),
            ("--spread: is 11.00", service(0.001, 11.0)),
            ("--percentile: is 100", Question { part: 1.0, ..good }),
            ("--capacity: is 0", Question { capacity: 0, ..good }),
            ("--endpoints: is 0", Question { endpoints: 0, ..good }),
            ("--connections: is 0", Question { connections: Some(0), ..good }),
            ("--requests: is 10;", Question { requests: 10, ..good }),
            ("--requests: is 20000000;", Question { requests: 20_000_000, ..good }),
            ("--dial: is 90s", Question { dial: 90.0, ..good }),
            ("--descriptors: 64", Question { room: Room { descriptors: 64, ..good.room }, ..good }),
        ];
        for (start, question) in cases {
            let error = question.check().unwrap_err();
            assert!(error.starts_with(start), "{start}: {error}");
        }
        good.check().unwrap();
    }

    proptest! {
        #[test]
        fn the_least_that_will_do_is_found_from_any_guess(guess in 1u32..500, least in 1u32..500, most in 500u32..600) {
            prop_assert_eq!(bracket(guess, most, |n| Ok(n >= least)), Ok(Some(least)));
            prop_assert_eq!(bracket(guess, most, |n| Ok(n > most)), Ok(None));
        }

        #[test]
        fn more_load_never_needs_less(rate in 1.0f64..50_000.0, more in 1.0f64..5.0, capacity in 1u32..64) {
            let at = |rate| Question { capacity, ..question(Arrivals::Open { rate, burst: 1 }) }.by_theory().unwrap();
            prop_assert!(at(rate * more) >= at(rate));
        }
    }
}

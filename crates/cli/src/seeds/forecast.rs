//! What `forebay plan` foretells beside what sockets do, and beside the seed's own calculation.

use std::time::Duration;

use forebay::units::Size;
use forebay_bench::dns::{Arrivals as Spread, DnsLoad, Names, Verify};
use forebay_bench::responder::Script;
use forebay_dns::{CacheSettings, Settings, UdpSettings};

use super::forwarder::{Forwarder, upstream};
use super::model::{Bound, Figure, Section, Table, Target, Unit, shown};
use super::stage::{Stage, Stop, rounds};
use crate::admin::metrics::{Scrape, exposition};
use crate::plan::{Arrivals, Counts, Service, Times, World};

/// The upstream takes 2 to 6 ms, evenly spread: long enough that the way there does not matter.
const DELAY: Duration = Duration::from_millis(2);
const JITTER: Duration = Duration::from_millis(4);
/// How far a plan may be off.
const OFF_MAX: f64 = 0.25;
/// Requests that a plan lives through.
const REQUESTS: u32 = 300_000;

/// A load, and exclusive connections that are a little too few for nobody to wait.
#[derive(Clone, Copy, Debug)]
struct Case {
    arrivals: Arrivals,
    connections: u32,
}

const CASES: [Case; 5] = [
    Case { arrivals: Arrivals::Open { rate: 1200.0, burst: 1 }, connections: 6 },
    Case { arrivals: Arrivals::Open { rate: 2000.0, burst: 1 }, connections: 10 },
    Case { arrivals: Arrivals::Open { rate: 2200.0, burst: 1 }, connections: 10 },
    Case { arrivals: Arrivals::Open { rate: 5000.0, burst: 1 }, connections: 24 },
    Case { arrivals: Arrivals::Closed { callers: 256, think: 0.0 }, connections: 10 },
];

impl Case {
    fn name(&self) -> String {
        match self.arrivals {
            Arrivals::Open { rate, .. } => {
                format!("{rate:.0}/s at random on {} connections", self.connections)
            }
            Arrivals::Closed { callers, .. } => {
                format!("{callers} callers on {} connections", self.connections)
            }
        }
    }

    fn load(&self, stage: &Stage, server: &Forwarder, span: Duration) -> DnsLoad {
        let load = DnsLoad {
            names: Names::Unique,
            verify: Verify::Derived,
            duration: Some(span),
            pin: stage.cores.load,
            clients: 64,
            ..DnsLoad::new(server.address)
        };
        match self.arrivals {
            Arrivals::Open { rate, .. } => {
                DnsLoad { rate: Some(rate), arrivals: Spread::Poisson, in_flight: 8192, ..load }
            }
            Arrivals::Closed { callers, .. } => DnsLoad { in_flight: callers as usize, ..load },
        }
    }

    /// The mean wait by the engine's own core in virtual time, in seconds, for requests of this service.
    fn foretold(&self, counts: &Counts, rate: f64) -> Option<f64> {
        let arrivals = match self.arrivals {
            Arrivals::Open { burst, .. } => Arrivals::Open { rate, burst },
            closed @ Arrivals::Closed { .. } => closed,
        };
        let Counts { service: mean, spread, .. } = *counts;
        let world = World {
            arrivals,
            service: Service { mean, spread },
            capacity: 1,
            connections: self.connections,
            is_warm: true,
            dial: 0.0,
            requests: REQUESTS,
            seed: 1,
        };
        let is_endless =
            matches!(arrivals, Arrivals::Open { rate, .. } if rate * mean >= f64::from(self.connections));
        if is_endless { None } else { world.live().ok().map(|lived| lived.mean()) }
    }

    /// What the seed calculates: those who ask at once, by connections, times the upstream's time.
    fn by_seed(&self, counts: &Counts) -> Option<f64> {
        match self.arrivals {
            Arrivals::Closed { callers, .. } => {
                Some(f64::from(callers) / f64::from(self.connections) * counts.service)
            }
            Arrivals::Open { .. } => None,
        }
    }
}

/// How many steps there are.
pub(super) const fn steps(quick: bool) -> usize {
    CASES.len() * rounds(quick)
}

/// One round of a case.
#[derive(Clone, Copy, Debug)]
struct Round {
    counts: Counts,
    foretold: Option<f64>,
}

impl Round {
    /// By how much what was foretold differs from what was measured, as a share of that.
    fn off(&self) -> Option<f64> {
        Some((self.foretold? / self.counts.wait - 1.0).abs())
    }
}

/// Measures, and adds a table and targets.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let mut cases: Vec<(Case, Vec<Round>)> = CASES.into_iter().map(|case| (case, Vec::new())).collect();
    let result = run(stage, &mut cases);
    section.tables.push(table(&cases));
    section.targets.extend(cases.iter().map(|(case, rounds)| target(case, rounds)));
    result
}

fn run(stage: &mut Stage, cases: &mut [(Case, Vec<Round>)]) -> Result<(), Stop> {
    let upstream =
        upstream(stage, Script { delay: DELAY, jitter: JITTER, ttl: 3600, ..Script::default() }, None)?;
    let servers = CASES.iter().map(|case| {
        let settings = Settings {
            listen: vec!["127.0.0.1:0".to_owned()],
            upstreams: vec![upstream.addr().to_string()],
            workers: 1,
            cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
            udp: UdpSettings {
                capacity: 1,
                connections_min: case.connections,
                connections_max: case.connections,
                ..UdpSettings::default()
            },
            ..Settings::default()
        };
        Forwarder::start(stage, &settings)
    });
    let servers = servers.collect::<Result<Vec<_>, _>>()?;
    let span = stage.span(4000, 1000);
    for round in 0..stage.rounds {
        for (server, (case, rounds)) in servers.iter().zip(cases.iter_mut()) {
            stage.step(&format!("000, a plan: {}", case.name()))?;
            if round == 0 {
                server.measure(stage, &case.load(stage, server, span / 8))?;
            }
            let before = times(server);
            let run = server.measure(stage, &case.load(stage, server, span))?;
            let counts = before.zip(times(server)).and_then(|(before, after)| after.since(&before));
            if let Some(counts) = counts {
                rounds.push(Round { counts, foretold: case.foretold(&counts, run.qps) });
            }
        }
    }
    Ok(())
}

/// What the server has counted, read as `forebay plan --from` does.
fn times(server: &Forwarder) -> Option<Times> {
    let stats = server.stats();
    Times::read(&exposition(&Scrape::new(Duration::ZERO, Some(&stats), &[])))
}

fn figure(unit: Unit, rounds: &[Round], of: impl Fn(&Round) -> Option<f64>) -> Option<Figure> {
    Figure::of(unit, rounds.iter().filter_map(of))
}

fn table(cases: &[(Case, Vec<Round>)]) -> Table {
    let row = |(case, rounds): &(Case, Vec<Round>)| {
        let us = |of: fn(&Round) -> Option<f64>| {
            shown(figure(Unit::Microseconds, rounds, |round| of(round).map(|seconds| seconds * 1e6)).as_ref())
        };
        let by_seed = figure(Unit::Microseconds, rounds, |round| {
            case.by_seed(&round.counts).map(|seconds| seconds * 1e6)
        });
        vec![
            case.name(),
            us(|round| Some(round.counts.service)),
            shown(figure(Unit::Share, rounds, |round| Some(round.counts.spread)).as_ref()),
            us(|round| round.foretold),
            shown(by_seed.as_ref()),
            us(|round| Some(round.counts.wait)),
            shown(figure(Unit::Share, rounds, Round::off).as_ref()),
        ]
    };
    Table {
        title: "What forebay plan foretells of the wait for an exclusive connection; upstream of 2 to 6 ms"
            .to_owned(),
        columns: vec![
            "load",
            "service",
            "its spread",
            "wait, by the plan",
            "by the seed's calculation",
            "wait, measured",
            "the plan is off by",
        ],
        rows: cases.iter().map(row).collect(),
    }
}

fn target(case: &Case, rounds: &[Round]) -> Target {
    let (low, high) = rounds.iter().fold((f64::MAX, 0.0_f64), |(low, high), round| {
        (low.min(round.counts.wait * 1e6), high.max(round.counts.wait * 1e6))
    });
    Target::new(
        format!("(ours) forebay plan is off by, {}", case.name()),
        Bound::Below,
        OFF_MAX,
        figure(Unit::Share, rounds, Round::off),
        format!(
            "the measured wait itself was {} to {} in {} rounds",
            Unit::Microseconds.write(low),
            Unit::Microseconds.write(high),
            rounds.len()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(service: f64, spread: f64, wait: f64) -> Counts {
        Counts { service, spread, wait, count: 1000.0 }
    }

    #[test]
    fn callers_wait_as_littles_law_has_it_and_the_seed_adds_their_service() {
        let case = CASES[4];
        let counts = counts(0.004, 0.3, 0.0984);
        let foretold = case.foretold(&counts, 0.0).unwrap();
        // 256 in flight, ten of them served: 246 / 10 × 4 ms.
        assert!((foretold / 0.0984 - 1.0).abs() < 0.03, "{foretold}");
        assert!((case.by_seed(&counts).unwrap() - 0.1024).abs() < 1e-9);
    }

    #[test]
    fn a_plan_is_off_by_its_distance_from_what_was_measured() {
        let round = |foretold, wait| Round { counts: counts(0.004, 0.3, wait), foretold }.off();
        assert!((round(Some(0.0012), 0.001).unwrap() - 0.2).abs() < 1e-9);
        assert!((round(Some(0.0008), 0.001).unwrap() - 0.2).abs() < 1e-9);
        assert_eq!(round(None, 0.001), None);
    }

    #[test]
    fn more_than_can_be_served_is_not_foretold() {
        assert_eq!(CASES[1].foretold(&counts(0.005, 0.3, 0.1), 2000.0), None);
        assert!(CASES[1].foretold(&counts(0.0041, 0.3, 0.1), 2000.0).is_some());
    }

    #[test]
    fn a_missed_forecast_says_how_steady_the_measurement_was() {
        let rounds = [Round { counts: counts(0.004, 0.3, 0.001), foretold: Some(0.002) }];
        let target = target(&CASES[0], &rounds);
        assert_eq!(target.reached, Some(false));
        assert!(target.reason.unwrap().contains("1.00 ms to 1.00 ms in 1 rounds"));
    }
}

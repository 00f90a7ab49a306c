//! 000: a socket per query against pools of several kinds, in a DNS forwarder with four upstreams.

use std::time::Duration;

use forebay::units::Size;
use forebay_bench::dns::{DnsLoad, Names, Verify};
use forebay_bench::responder::{Responder, Script};
use forebay_dns::{CacheSettings, OverflowName, PoolMode, Settings, StrategyName, UdpSettings};

use super::forecast;
use super::forwarder::{Forwarder, Run, latency_curve, upstream};
use super::model::{
    Axis, Better, Bound, Claim, Figure, Plot, Said, Scale, Section, Series, Table, Target, Unit, grouped,
    shown,
};
use super::stage::{Stage, Stop, rounds};

/// Queries that are asked at once.
const CLIENTS: usize = 256;
/// Upstreams, and how long each takes.
const UPSTREAMS: usize = 4;
const DELAY: Duration = Duration::from_micros(780);
/// Of a hundred queries, those that the cache does not have.
const MISSES: [f64; 2] = [100.0, 4.0];
/// Names that it has.
const HOT: u64 = 1000;

/// What the seed measured: a socket per query, and its pool of ten.
const SEED_OFF_QPS: f64 = 65_076.0;
const SEED_TEN_QPS: f64 = 1_980.0;
/// What it wanted to reach.
const TARGET_QPS: f64 = 100_000.0;
const TARGET_MEAN_US: f64 = 500.0;
const TARGET_P99_US: f64 = 5_000.0;
const TARGET_SOCKETS: f64 = 0.05;

/// The pools, in the order of the table.
const POOLS: [(&str, Pool); 6] = [
    ("a socket per query", Pool::Off),
    ("ten, exclusive, who finds none waits (V2)", Pool::Ten),
    ("256, exclusive, who finds none waits", Pool::Large),
    ("ten, and temporary ones beyond", Pool::TenAndTemporary),
    ("256, and temporary ones beyond (the hybrid)", Pool::Hybrid),
    ("forebay as it is", Pool::Default),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    Off,
    Ten,
    Large,
    TenAndTemporary,
    Hybrid,
    Default,
}

impl Pool {
    fn settings(self) -> (PoolMode, UdpSettings) {
        let default = UdpSettings::default();
        let exclusive =
            |connections_max| UdpSettings { connections_min: 0, connections_max, capacity: 1, ..default };
        let temporary = |connections_max| UdpSettings {
            overflow: OverflowName::Temporary,
            temporary_max: 4096,
            ..exclusive(connections_max)
        };
        match self {
            Self::Off => (PoolMode::Off, default),
            Self::Ten => (PoolMode::On, exclusive(10)),
            Self::Large => (PoolMode::On, exclusive(256)),
            Self::TenAndTemporary => (PoolMode::On, temporary(10)),
            Self::Hybrid => (PoolMode::On, temporary(256)),
            Self::Default => (PoolMode::On, default),
        }
    }
}

/// How many steps there are.
pub(super) const fn steps(quick: bool) -> usize {
    // Each pool in each round, then its profile, and the load at half of what it can.
    MISSES.len() * (POOLS.len() * (rounds(quick) + 1) + rounds(quick)) + forecast::steps(quick)
}

/// Measures.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    section.title =
        "a pool of ten, 33 times slower: a DNS forwarder with 256 clients and four upstreams of 0.78 ms";
    let script = Script { delay: DELAY, ttl: 3600, ..Script::default() };
    let upstreams =
        (0..UPSTREAMS).map(|_| upstream(stage, script.clone(), None)).collect::<Result<Vec<_>, _>>()?;
    for misses in MISSES {
        let mut load = Load::start(stage, &upstreams, misses)?;
        let result = load.run(stage);
        // What there is by now is kept, whatever came then.
        load.report(section);
        result?;
    }
    forecast::measure(stage, section)
}

/// All pools under one share of misses.
struct Load {
    misses: f64,
    servers: Vec<Forwarder>,
    runs: Vec<Vec<Run>>,
    shares: Vec<Option<f64>>,
    /// The default's at half of what it can.
    half: Vec<Run>,
    half_rate: f64,
    server_has_a_core: bool,
}

impl Load {
    fn start(stage: &Stage, upstreams: &[Responder], misses: f64) -> Result<Self, Stop> {
        let size = if misses < 100.0 { Size::mib(64) } else { Size { bytes: 0 } };
        let start = |(_, pool): (&str, Pool)| {
            let (mode, udp) = pool.settings();
            let settings = Settings {
                listen: vec!["127.0.0.1:0".to_owned()],
                upstreams: upstreams.iter().map(|upstream| upstream.addr().to_string()).collect(),
                strategy: StrategyName::RoundRobin,
                workers: 1,
                cache: CacheSettings { size, ..CacheSettings::default() },
                pool: mode,
                udp,
                ..Settings::default()
            };
            Forwarder::start(stage, &settings)
        };
        Ok(Self {
            misses,
            servers: POOLS.into_iter().map(start).collect::<Result<_, _>>()?,
            runs: vec![Vec::new(); POOLS.len()],
            shares: vec![None; POOLS.len()],
            half: Vec::new(),
            half_rate: 0.0,
            server_has_a_core: stage.cores.server.is_some(),
        })
    }

    fn load(&self, stage: &Stage, server: &Forwarder, span: Duration) -> DnsLoad {
        let names = match self.misses {
            100.0.. => Names::Unique,
            unique_percent => Names::Mix { names: HOT, unique_percent },
        };
        DnsLoad {
            clients: CLIENTS,
            in_flight: CLIENTS,
            names,
            verify: Verify::Derived,
            duration: Some(span),
            pin: stage.cores.load,
            ..DnsLoad::new(server.address)
        }
    }

    fn run(&mut self, stage: &mut Stage) -> Result<(), Stop> {
        let hits = 100.0 - self.misses;
        let span = stage.span(2000, 250);
        for round in 0..stage.rounds {
            for (number, (name, _)) in POOLS.iter().enumerate() {
                stage.step(&format!("000 at {hits} % hits: {name}"))?;
                let server = &self.servers[number];
                if round == 0 {
                    // Every name that the cache is to have is asked for twice, which also makes the connections.
                    let warm = self.load(stage, server, span);
                    let names =
                        if self.misses < 100.0 { Names::Hot { names: HOT } } else { warm.names.clone() };
                    let warm = DnsLoad { names, queries: Some(2 * HOT), duration: None, ..warm };
                    server.measure(stage, &warm)?;
                }
                let run = server.measure(stage, &self.load(stage, server, span))?;
                self.runs[number].push(run);
            }
        }
        let default = POOLS.len() - 1;
        self.half_rate = median(&self.runs[default], |run| run.qps).map_or(0.0, |qps| (qps / 2.0).round());
        for _ in 0..stage.rounds {
            stage.step(&format!("000 at {hits} % hits: forebay at half of what it can"))?;
            let server = &self.servers[default];
            let load = DnsLoad { rate: Some(self.half_rate), ..self.load(stage, server, span) };
            self.half.push(server.measure(stage, &load)?);
        }
        for (number, (name, _)) in POOLS.iter().enumerate() {
            stage.step(&format!("000 at {hits} % hits: a profile of {name}"))?;
            let server = &self.servers[number];
            let span = stage.span(1500, 300);
            self.shares[number] = server.socket_share(&self.load(stage, server, span), span);
        }
        Ok(())
    }

    fn figure(&self, pool: Pool, unit: Unit, of: impl Fn(&Run) -> f64) -> Option<Figure> {
        let number = POOLS.iter().position(|(_, other)| *other == pool)?;
        Figure::of(unit, self.runs[number].iter().map(of))
    }

    fn qps(&self, pool: Pool) -> Option<Figure> {
        self.figure(pool, Unit::PerSecond, |run| run.qps)
    }

    fn share(&self, pool: Pool) -> Option<Figure> {
        let number = POOLS.iter().position(|(_, other)| *other == pool)?;
        Figure::once(Unit::Share, self.shares[number]?)
    }

    fn report(&self, section: &mut Section) {
        section.claims.extend(self.claims());
        section.targets.extend(self.targets());
        section.tables.push(self.table());
        section.plots.extend(self.plots());
        let bad: u64 = self.runs.iter().flatten().map(|run| run.bad).sum();
        let all: u64 = self.runs.iter().flatten().map(|run| run.answered).sum();
        let hits: Vec<f64> = self.runs.iter().flatten().map(|run| run.hits).collect();
        let (low, high) =
            hits.iter().fold((1.0_f64, 0.0_f64), |(low, high), hit| (low.min(*hit), high.max(*hit)));
        if all > 0 {
            section.notes.push(format!(
                "At {:.0} % hits: the caches of all pools had {:.1} to {:.1} % of queries; of {} answers {} were wrong, \
                 late or errors.",
                100.0 - self.misses,
                low * 100.0,
                high * 100.0,
                grouped(all as f64),
                grouped(bad as f64)
            ));
        }
        if let Some(ten) = self.figure(Pool::Ten, Unit::Microseconds, |run| run.mean_us) {
            section.notes.extend(little(self.misses / 100.0, &ten));
        }
    }

    fn claims(&self) -> Vec<Claim> {
        let here = |text: &str| format!("{text}; {:.0} % hits on both sides", 100.0 - self.misses);
        let said = |says, claimed, compared, text: &str, better| Said {
            says,
            claimed,
            compared,
            here: here(text),
            better,
        };
        let mut claims = vec![
            said(
                "a pool of ten is 33 times slower than a socket per query (65,076 → 1,980 QPS)",
                Some(SEED_TEN_QPS / SEED_OFF_QPS),
                "two runs with other hit rates (0.1 % and 95.9 %) and lengths; 81 misses a second need no ten sockets, and \
                 each of them took a second: answers were lost",
                "QPS of a socket per query, and of the pool of ten",
                Better::More,
            )
            .judge(self.qps(Pool::Off), self.qps(Pool::Ten)),
            said(
                "a pool of 256 brings 50,000 to 70,000 QPS, as much as a socket per query",
                Some(1.0),
                "nothing: it was expected",
                "QPS of a socket per query, and of an exclusive pool of 256",
                Better::More,
            )
            .judge(self.qps(Pool::Off), self.qps(Pool::Large)),
            said(
                "the hybrid with temporary connections brings 65,000 to 80,000 QPS, as much as a socket per query or more",
                Some(1.0),
                "nothing: it was expected",
                "QPS of a socket per query, and of 256 with temporary ones beyond",
                Better::More,
            )
            .judge(self.qps(Pool::Off), self.qps(Pool::Hybrid)),
        ];
        claims.push(
            said(
                "(ours) connections that are shared by message id need no size",
                None,
                "–",
                "QPS of a socket per query, and of forebay as it is",
                Better::More,
            )
            .judge(self.qps(Pool::Off), self.qps(Pool::Default)),
        );
        claims.push(
            said(
                "52 % of CPU goes into making and closing sockets; pooled, none",
                None,
                "profiles of 30 s, at different hit rates",
                "share of the server's CPU time in calls that make, set up or close sockets: a socket per query, and \
                 forebay as it is",
                Better::Less,
            )
            .judge(self.share(Pool::Off), self.share(Pool::Default)),
        );
        claims
    }

    fn targets(&self) -> Vec<Target> {
        let at = format!("at {:.0} % hits", 100.0 - self.misses);
        let default = self.runs[POOLS.len() - 1].as_slice();
        let middle = |of: fn(&Run) -> f64| median(default, of).unwrap_or(f64::NAN);
        let (qps, cpu_us, busy) = (middle(|run| run.qps), middle(|run| run.cpu_us), middle(|run| run.busy));
        let limit = default.iter().find_map(|run| run.generator_limit.clone());
        let half = |of: fn(&Run) -> f64| Figure::of(Unit::Microseconds, self.half.iter().map(of));
        let us = |of: fn(&Run) -> f64| self.figure(Pool::Default, Unit::Microseconds, of);
        let queue = |wanted_us| why_late(qps, wanted_us);
        let alone = |wanted_us| why_late_alone(self.misses / 100.0, self.half_rate, wanted_us);
        vec![
            Target::new(
                format!("QPS {at}"),
                Bound::AtLeast,
                TARGET_QPS,
                self.qps(Pool::Default),
                why_slow(qps, cpu_us, busy, self.server_has_a_core, limit.as_deref()),
            ),
            Target::new(
                format!("average latency {at}, {CLIENTS} asking at once"),
                Bound::Below,
                TARGET_MEAN_US,
                us(|run| run.mean_us),
                queue(TARGET_MEAN_US),
            ),
            Target::new(
                format!("p99 {at}, {CLIENTS} asking at once"),
                Bound::Below,
                TARGET_P99_US,
                us(|run| run.p99_us),
                queue(TARGET_P99_US),
            ),
            Target::new(
                format!("average latency {at}, {}/s whatever the answers", grouped(self.half_rate)),
                Bound::Below,
                TARGET_MEAN_US,
                half(|run| run.mean_us),
                alone(TARGET_MEAN_US),
            ),
            Target::new(
                format!("p99 {at}, {}/s whatever the answers", grouped(self.half_rate)),
                Bound::Below,
                TARGET_P99_US,
                half(|run| run.p99_us),
                alone(TARGET_P99_US),
            ),
            Target::new(
                format!("CPU in socket calls {at}"),
                Bound::Below,
                TARGET_SOCKETS,
                self.share(Pool::Default),
                "sockets are replaced by age and use, so that ports stay hard to guess",
            ),
        ]
    }

    fn table(&self) -> Table {
        let row = |(number, (name, _)): (usize, &(&str, Pool))| {
            let runs = &self.runs[number];
            let cell = |unit, of: fn(&Run) -> f64| shown(Figure::of(unit, runs.iter().map(of)).as_ref());
            vec![
                (*name).to_owned(),
                cell(Unit::PerSecond, |run| run.qps),
                cell(Unit::Microseconds, |run| run.mean_us),
                cell(Unit::Microseconds, |run| run.p99_us),
                cell(Unit::Microseconds, |run| run.cpu_us),
                cell(Unit::Share, |run| run.busy),
                cell(Unit::PerSecond, |run| run.made_per_second),
                shown(self.shares[number].and_then(|share| Figure::once(Unit::Share, share)).as_ref()),
            ]
        };
        Table {
            title: format!(
                "{CLIENTS} clients, {UPSTREAMS} upstreams of {DELAY:?}, {:.0} % hits",
                100.0 - self.misses
            ),
            columns: vec![
                "pool",
                "QPS",
                "average",
                "p99",
                "CPU a query",
                "of its core",
                "sockets made",
                "CPU in socket calls",
            ],
            rows: POOLS.iter().enumerate().map(row).collect(),
        }
    }

    fn plots(&self) -> Vec<Plot> {
        let hits = 100.0 - self.misses;
        // The last round of each, as it was.
        let last = || {
            POOLS
                .iter()
                .zip(&self.runs)
                .filter_map(|((name, _), runs)| Some(((*name).to_owned(), runs.last()?)))
        };
        let seconds = Axis { label: "seconds", scale: Scale::Linear };
        let plot = |title: String, x, y, series| Plot { title, x, y, series };
        vec![
            plot(
                format!("Latency at {hits:.0} % hits"),
                Axis { label: "share of queries; at its end, the longest", scale: Scale::Nines },
                Axis { label: "latency, µs", scale: Scale::Log },
                last().filter_map(|(name, run)| Some(latency_curve(name, run.latency.as_ref()?))).collect(),
            ),
            plot(
                format!("Throughput over time at {hits:.0} % hits"),
                seconds,
                Axis { label: "answers a second", scale: Scale::Linear },
                last().map(|(name, run)| Series { name, points: run.over_time.clone() }).collect(),
            ),
            plot(
                format!("Connections over time at {hits:.0} % hits"),
                seconds,
                Axis { label: "connections to upstreams", scale: Scale::Log },
                last().map(|(name, run)| Series { name, points: run.connections.clone() }).collect(),
            ),
        ]
    }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> Option<f64> {
    Figure::of(Unit::Count, runs.iter().map(of)).map(|figure| figure.median)
}

/// Why there were not as many answers a second as wanted.
fn why_slow(qps: f64, cpu_us: f64, busy: f64, own_core: bool, generator: Option<&str>) -> String {
    let full = format!(
        "at {cpu_us:.1} µs of CPU a query one core carries {} QPS at most, and {} need {:.1} cores",
        grouped(1e6 / cpu_us),
        grouped(TARGET_QPS),
        TARGET_QPS * cpu_us / 1e6
    );
    match generator {
        _ if busy >= 0.9 => format!("its core was full: {full}"),
        Some(limit) => format!(
            "the generator was the limit ({limit}); the server used {:.0} % of its core: {full}",
            busy * 100.0
        ),
        None if own_core => format!(
            "load and upstreams, on their core, gave it no more: it used {:.0} % of its own for {} QPS; {full}",
            busy * 100.0,
            grouped(qps)
        ),
        None => format!("all share one core; {full}"),
    }
}

/// Why so many at once cannot be answered so soon.
fn why_late(qps: f64, wanted_us: f64) -> String {
    format!(
        "{CLIENTS} in flight at {} QPS are {:.2} ms each, whatever the pool (Little's law); {:.2} ms would take {} QPS",
        grouped(qps),
        CLIENTS as f64 / qps * 1e3,
        wanted_us / 1e3,
        grouped(CLIENTS as f64 * 1e6 / wanted_us)
    )
}

/// Why it is late without a queue of its own making.
fn why_late_alone(misses: f64, rate: f64, wanted_us: f64) -> String {
    let upstream_us = misses * DELAY.as_secs_f64() * 1e6;
    if upstream_us >= wanted_us {
        return format!("the upstreams alone take {:.2} ms", upstream_us / 1e3);
    }
    format!(
        "of it {:.2} ms are the upstreams'; the rest is spent on cores that load, upstreams and server share at {}/s",
        upstream_us / 1e3,
        grouped(rate)
    )
}

/// The seed's calculation beside what was measured of the pool of ten.
fn little(misses: f64, measured: &Figure) -> Option<String> {
    let connections = (10 * UPSTREAMS) as f64;
    let seed_us = CLIENTS as f64 / 10.0 * DELAY.as_secs_f64() * 1e6;
    let little_us = CLIENTS as f64 * misses / connections * DELAY.as_secs_f64() * 1e6;
    (misses >= 1.0).then(|| {
        format!(
            "The seed calculates {} of waiting for a pool of ten ((256 / 10) × 0.78 ms) and measured 40 ms; it has ten for each \
             of {UPSTREAMS} upstreams, which makes {}; measured here: {measured}.",
            Unit::Microseconds.write(seed_us),
            Unit::Microseconds.write(little_us)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_rate_is_explained_by_what_was_full() {
        let full = why_slow(80_000.0, 12.0, 0.97, true, Some("it used 99 % of a core"));
        assert!(full.starts_with("its core was full") && full.contains("83,333 QPS"), "{full}");
        let generator = why_slow(60_000.0, 5.0, 0.5, true, Some("it used 99 % of a core"));
        assert!(generator.contains("the generator was the limit (it used 99 % of a core)"), "{generator}");
        assert!(generator.contains("used 50 %") && generator.contains("200,000 QPS"), "{generator}");
        assert!(why_slow(60_000.0, 5.0, 0.5, true, None).contains("load and upstreams"));
        assert!(why_slow(60_000.0, 5.0, 0.5, false, None).contains("share one core"));
    }

    #[test]
    fn what_256_at_once_must_wait_follows_from_the_rate() {
        let why = why_late(100_000.0, 500.0);
        assert!(why.contains("2.56 ms") && why.contains("512,000 QPS"), "{why}");
        assert!(why_late_alone(1.0, 40_000.0, 500.0).contains("alone take 0.78 ms"));
        assert!(why_late_alone(1.0, 40_000.0, 5000.0).contains("0.78 ms are the upstreams'"));
        assert!(why_late_alone(0.04, 40_000.0, 500.0).contains("0.03 ms are the upstreams'"));
    }

    #[test]
    fn the_seeds_calculation_stands_beside_littles_law() {
        let note = little(1.0, &Figure::once(Unit::Microseconds, 6000.0).unwrap()).unwrap();
        assert!(note.contains("19.97 ms") && note.contains("4.99 ms") && note.contains("6.00 ms"), "{note}");
    }

    #[test]
    fn every_pool_of_the_table_is_a_valid_setting_of_its_own() {
        let all: Vec<_> = POOLS.iter().map(|(_, pool)| pool.settings()).collect();
        for (number, (mode, udp)) in all.iter().enumerate() {
            let settings = Settings {
                upstreams: vec!["192.0.2.1".into()],
                pool: *mode,
                udp: *udp,
                ..Settings::default()
            };
            forebay_dns::DnsConfig::new(&settings, &[], 1).unwrap();
            assert!(!all[..number].contains(&(*mode, *udp)));
        }
    }
}

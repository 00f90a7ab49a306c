//! `/pools`: what every pool does, for people and for programs.

use std::collections::BTreeMap;

use forebay_core::{AcquireOutcome, BreakerState, Cause, CloseReason, Health};
use forebay_dns::LatencyStats;
use serde::Serialize;

use super::metrics::{NamedPool, Scrape, states};

/// All pools of a process.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    uptime_seconds: f64,
    pools: Vec<Pool<'a>>,
}

#[derive(Debug, Serialize)]
struct Pool<'a> {
    /// The upstream that it belongs to: of the DNS server `default` or the suffix of a route, else the
    /// proxy.
    upstream: &'a str,
    endpoint: &'a str,
    transport: &'a str,
    connections: BTreeMap<&'static str, u32>,
    idle: u32,
    temporary: u32,
    in_use: u32,
    waiters: u32,
    limits: Limits,
    acquires: BTreeMap<&'static str, u64>,
    /// 0 to 1; null before the first acquire.
    reuse_rate: Option<f64>,
    wait: LatencyStats,
    dials: Dials,
    closes: BTreeMap<&'static str, u64>,
    uses_p50: u64,
    latency_us: Option<f64>,
    breaker: &'static str,
    breaker_opened: u64,
    /// What active checks say.
    health: &'static str,
    failures: u64,
    local_exhaustions: u64,
    last_failure: Option<LastFailure>,
}

#[derive(Debug, Serialize)]
struct Limits {
    connections_max: u32,
    connections_min: u32,
    idle_max: u32,
    capacity: u32,
    waiters_max: u32,
    dials_max: u32,
    idle_timeout_ms: Option<u128>,
    age_max_ms: Option<u128>,
    uses_max: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Dials {
    started: u64,
    succeeded: u64,
    /// By cause; causes that never happened are left out.
    failed: BTreeMap<&'static str, u64>,
    took: LatencyStats,
}

#[derive(Debug, Serialize)]
struct LastFailure {
    cause: &'static str,
    blame: &'static str,
}

impl<'a> Report<'a> {
    pub(super) fn new(scrape: &'a Scrape<'_>) -> Self {
        let pools = scrape.pools().iter().map(Pool::new).collect();
        Self { uptime_seconds: scrape.uptime().as_secs_f64(), pools }
    }
}

impl<'a> Pool<'a> {
    fn new(pool: &'a NamedPool<'_>) -> Self {
        let snapshot = pool.snapshot;
        let (config, counters) = (&snapshot.config, &snapshot.counters);
        let failed = Cause::ALL.iter().map(|cause| (cause.as_str(), counters.dial_failures(*cause)));
        Self {
            upstream: pool.upstream,
            endpoint: &pool.endpoint,
            transport: pool.transport,
            connections: states(snapshot).into_iter().collect(),
            idle: snapshot.idle,
            temporary: snapshot.temporary,
            in_use: snapshot.in_use,
            waiters: snapshot.waiting,
            limits: Limits {
                connections_max: config.connections_max,
                connections_min: config.connections_min,
                idle_max: config.idle_max,
                capacity: config.capacity,
                waiters_max: config.waiters_max,
                dials_max: config.dials_max,
                idle_timeout_ms: snapshot.idle_timeout.map(|time| time.as_millis()),
                age_max_ms: config.age_max.map(|time| time.as_millis()),
                uses_max: config.uses_max,
            },
            acquires: AcquireOutcome::ALL.iter().map(|one| (one.as_str(), counters.acquires(*one))).collect(),
            reuse_rate: snapshot.reuse_rate(),
            wait: LatencyStats::from(&counters.wait),
            dials: Dials {
                started: counters.dials_started,
                succeeded: counters.dials_succeeded,
                failed: failed.filter(|(_, n)| *n > 0).collect(),
                took: LatencyStats::from(&counters.dial),
            },
            closes: CloseReason::ALL.iter().map(|one| (one.as_str(), counters.closes(*one))).collect(),
            uses_p50: counters.uses.quantile(0.5),
            latency_us: snapshot.latency.map(|latency| latency.as_secs_f64() * 1e6),
            breaker: match snapshot.breaker {
                BreakerState::Closed => "closed",
                BreakerState::HalfOpen => "half_open",
                BreakerState::Open(_) => "open",
            },
            health: match snapshot.health {
                Health::Healthy => "healthy",
                Health::Unhealthy => "unhealthy",
            },
            breaker_opened: counters.breaker_opened,
            failures: counters.failures,
            local_exhaustions: counters.local_exhaustions,
            last_failure: snapshot
                .last_failure
                .map(|cause| LastFailure { cause: cause.as_str(), blame: cause.blame().as_str() }),
        }
    }
}

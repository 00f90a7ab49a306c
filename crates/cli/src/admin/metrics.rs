//! Every metric, declared once: `FAMILIES` and the forwarder's own table of counters. The exposition and the page of
//! reference are both made of these.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use forebay::sys::{clock, process};
use forebay_core::{
    AcquireOutcome, Blame, BreakerState, Cause, CloseReason, Counters, Health, Histogram, Snapshot,
};
use forebay_dns::{PoolStats, Stats};
use forebay_dns_core::forwarder::{EndpointFigures, ForwarderCounters};
use forebay_grpc::server::ServerFigures;
use forebay_proxy::{BackendFigures, DiscoveryStats, ProxyFigures};

/// What is shown: the figures of the servers, with names that no two pools share.
#[derive(Debug)]
pub struct Scrape<'a> {
    uptime: Duration,
    dns: Option<&'a Stats>,
    proxies: &'a [ProxyStats],
    pools: Vec<NamedPool<'a>>,
    grpc: Option<ServerFigures>,
}

impl<'a> Scrape<'a> {
    /// Gives every pool a name.
    pub fn new(uptime: Duration, dns: Option<&'a Stats>, proxies: &'a [ProxyStats]) -> Self {
        let mut pools: Vec<NamedPool<'_>> = dns.into_iter().flat_map(named).collect();
        for proxy in proxies {
            pools.extend(proxy.backends.iter().map(|one| NamedPool {
                upstream: &proxy.name,
                endpoint: one.backend.to_string(),
                transport: "tcp",
                snapshot: &one.snapshot,
                dns: None,
            }));
        }
        Self { uptime, dns, proxies, pools, grpc: None }
    }

    /// Adds the figures of a server of gRPC.
    #[must_use]
    pub const fn with_grpc(mut self, figures: Option<ServerFigures>) -> Self {
        self.grpc = figures;
        self
    }

    /// Returns how long the servers have run.
    pub(super) const fn uptime(&self) -> Duration {
        self.uptime
    }

    /// Returns every pool.
    pub(super) fn pools(&self) -> &[NamedPool<'a>] {
        &self.pools
    }
}

/// Figures of one proxy at one moment.
#[derive(Clone, Debug)]
pub struct ProxyStats {
    /// What it is called.
    pub name: String,
    /// Its own figures.
    pub figures: ProxyFigures,
    /// Those of the connections to its backends.
    pub backends: Vec<BackendFigures>,
    /// Those of discovery, if its backends come from there.
    pub discovery: Option<DiscoveryStats>,
}

/// A pool with a name that no other has.
#[derive(Debug)]
pub(crate) struct NamedPool<'a> {
    /// The upstream that it belongs to: of the DNS server `default` or the suffix of a route, else the proxy.
    pub(crate) upstream: &'a str,
    /// The endpoint, with its transport.
    pub(crate) endpoint: String,
    /// `udp`, `tcp` and so on.
    pub(crate) transport: &'a str,
    /// Its figures.
    pub(crate) snapshot: &'a Snapshot,
    /// What only the DNS server knows of it.
    pub(crate) dns: Option<&'a PoolStats>,
}

/// Names the DNS server's pools `udp://address` or `tcp://address`. An address that is listed more than once has a
/// number from the second time on.
pub(crate) fn named(stats: &Stats) -> Vec<NamedPool<'_>> {
    let mut all: Vec<NamedPool<'_>> = Vec::new();
    for pool in &stats.pools {
        let address = pool.upstream.split_once("://").map_or(&*pool.upstream, |(_, address)| address);
        let name = format!("{}://{address}", pool.transport);
        let before = all.iter().filter(|other| other.endpoint.split('#').next() == Some(&name)).count();
        all.push(NamedPool {
            upstream: &pool.group,
            endpoint: if before == 0 { name } else { format!("{name}#{}", before + 1) },
            transport: pool.transport,
            snapshot: &pool.snapshot,
            dns: Some(pool),
        });
    }
    all
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is now.
    Gauge,
    /// How many values lie below each of several bounds.
    Histogram,
}

impl Kind {
    /// Returns the word of the exposition format.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// What is known of a metric before it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, and what to do about it.
    pub help: String,
}

/// One metric: its description, and how it is read.
struct Family {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Scrape<'_>, &mut Samples<'_>),
}

const POOL: &[&str] = &["upstream", "endpoint"];
const PROXY: &[&str] = &["proxy"];

const FAMILIES: &[Family] = &[
    Family {
        name: "forebay_build_info",
        kind: Kind::Gauge,
        labels: &["version"],
        help: "Always 1; the label says which version runs.",
        read: |_, samples| samples.put(&[env!("CARGO_PKG_VERSION")], 1),
    },
    Family {
        name: "forebay_uptime_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "How long the server has run.",
        read: |scrape, samples| samples.put(&[], format!("{:.3}", scrape.uptime.as_secs_f64())),
    },
    Family {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        labels: &[],
        help: "CPU time, user and system, of the process.",
        read: |_, samples| samples.put(&[], format!("{:.6}", clock::process_cpu_time().as_secs_f64())),
    },
    Family {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the process in RAM.",
        read: |_, samples| resident_bytes().into_iter().for_each(|bytes| samples.put(&[], bytes)),
    },
    Family {
        name: "process_open_fds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Descriptors in use. Near process_max_fds pools stop growing.",
        read: |_, samples| process::descriptors_in_use().into_iter().for_each(|n| samples.put(&[], n)),
    },
    Family {
        name: "process_max_fds",
        kind: Kind::Gauge,
        labels: &[],
        help: "Descriptors that the process may have (RLIMIT_NOFILE).",
        read: |_, samples| {
            process::descriptor_limit().into_iter().for_each(|limit| samples.put(&[], limit.soft))
        },
    },
    Family {
        name: "forebay_pool_connections",
        kind: Kind::Gauge,
        labels: &["upstream", "endpoint", "state"],
        help: "Connections by state. All busy and many waiters: the pool is too small, or the upstream too slow.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for (state, n) in states(pool) {
                    samples.put(&[of, at, state], n);
                }
            });
        },
    },
    Family {
        name: "forebay_pool_connections_max",
        kind: Kind::Gauge,
        labels: POOL,
        help: "The pool's size: connections in any state, at most.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], pool.config.connections_max));
        },
    },
    Family {
        name: "forebay_pool_leases",
        kind: Kind::Gauge,
        labels: POOL,
        help: "Units of capacity in use: queries in flight.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.in_use)),
    },
    Family {
        name: "forebay_pool_waiters",
        kind: Kind::Gauge,
        labels: POOL,
        help: "Requests waiting for a connection.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.waiting)),
    },
    Family {
        name: "forebay_pool_acquires_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "outcome"],
        help: "Acquires by how they ended. Many `fresh` beside `reused`: connections do not last.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for outcome in AcquireOutcome::ALL {
                    samples.put(&[of, at, outcome.as_str()], pool.counters.acquires(*outcome));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_wait_seconds",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How long requests waited for a connection, of those that waited and got one.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.times(&[of, at], &pool.counters.wait)),
    },
    Family {
        name: "forebay_pool_dials_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "result", "blame"],
        help: "Dials that ended: `ok`, or the cause of the failure and whose it was. `local` means this machine.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                samples.put(&[of, at, "ok", ""], pool.counters.dials_succeeded);
                for cause in Cause::ALL {
                    let labels = [of, at, cause.as_str(), cause.blame().as_str()];
                    samples.put(&labels, pool.counters.dial_failures(*cause));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_dial_seconds",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How long dials took that made a connection.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.times(&[of, at], &pool.counters.dial)),
    },
    Family {
        name: "forebay_pool_closes_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "reason"],
        help: "Connections that ended, by why. Many `peer`: the upstream closes sooner than idle_timeout.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                for reason in CloseReason::ALL {
                    samples.put(&[of, at, reason.as_str()], pool.counters.closes(*reason));
                }
            });
        },
    },
    Family {
        name: "forebay_pool_uses",
        kind: Kind::Histogram,
        labels: POOL,
        help: "How many requests a connection had served when it ended.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.counts(&[of, at], &pool.counters.uses)),
    },
    Family {
        name: "forebay_pool_failures_total",
        kind: Kind::Counter,
        labels: POOL,
        help: "Requests that failed on a connection with the upstream to blame.",
        read: |scrape, samples| scrape.each(|of, at, pool| samples.put(&[of, at], pool.counters.failures)),
    },
    Family {
        name: "forebay_local_exhaustion_total",
        kind: Kind::Counter,
        labels: &["resource"],
        help: "Times this machine had no more of something when a connection was wanted, by what the kernel said; \
               `budget` is growth held back before the kernel had to say no. Look at this machine, not at the upstream.",
        read: |scrape, samples| {
            let mut all = Counters::default();
            scrape.pools.iter().for_each(|pool| all.merge(&pool.snapshot.counters));
            let mut kernel = 0;
            for cause in Cause::ALL.iter().filter(|cause| cause.blame() == Blame::Local) {
                let n = all.dial_failures(*cause);
                kernel += n;
                samples.put(&[cause.as_str()], n);
            }
            samples.put(&["budget"], all.local_exhaustions.saturating_sub(kernel));
        },
    },
    Family {
        name: "forebay_breaker_state",
        kind: Kind::Gauge,
        labels: POOL,
        help: "0 closed, 1 half-open (a probe decides), 2 open: the endpoint is left alone after failures in a row.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| {
                let state = match pool.breaker {
                    BreakerState::Closed => 0,
                    BreakerState::HalfOpen => 1,
                    BreakerState::Open(_) => 2,
                };
                samples.put(&[of, at], state);
            });
        },
    },
    Family {
        name: "forebay_breaker_opened_total",
        kind: Kind::Counter,
        labels: POOL,
        help: "Times the breaker opened.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], pool.counters.breaker_opened))
        },
    },
    Family {
        name: "forebay_health_state",
        kind: Kind::Gauge,
        labels: POOL,
        help: "0 healthy or not checked, 1 unhealthy: active checks fail (dns.health), and it is asked last.",
        read: |scrape, samples| {
            scrape.each(|of, at, pool| samples.put(&[of, at], u8::from(pool.health == Health::Unhealthy)));
        },
    },
    Family {
        name: "forebay_dns_latency_seconds",
        kind: Kind::Gauge,
        labels: POOL,
        help: "How long an endpoint takes to answer, smoothed, on the slowest worker: what parallel, racing and fastest \
               go by.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                if let Some((latency, _)) = figures.latency {
                    samples.put(&[of, at], format!("{:.6}", latency.as_secs_f64()));
                }
            });
        },
    },
    Family {
        name: "forebay_dns_latency_deviation_seconds",
        kind: Kind::Gauge,
        labels: POOL,
        help: "The mean deviation from that latency; a head start of racing is the latency and four of it.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                if let Some((_, deviation)) = figures.latency {
                    samples.put(&[of, at], format!("{:.6}", deviation.as_secs_f64()));
                }
            });
        },
    },
    Family {
        name: "forebay_dns_races_total",
        kind: Kind::Counter,
        labels: &["upstream", "endpoint", "result"],
        help: "Questions asked of several endpoints at once: how often each was first. Hardly ever `won`: it costs \
               queries and saves nobody any time.",
        read: |scrape, samples| {
            scrape.each_endpoint(|of, at, figures| {
                samples.put(&[of, at, "won"], figures.races_won);
                samples.put(&[of, at, "lost"], figures.races_lost);
            });
        },
    },
    Family {
        name: "forebay_dns_entropy_bits",
        kind: Kind::Gauge,
        labels: POOL,
        help: "How hard an answer over UDP is to guess, in bits, for somebody who knows the ports of all sockets, on the \
               worker where it is easiest: the logarithm of how many pairs of socket and unused message id a query's is \
               one of. Near 16: there is one socket; raise udp.connections_min.",
        read: |scrape, samples| {
            for pool in &scrape.pools {
                if let Some(bits) = pool.dns.and_then(|dns| dns.entropy_bits) {
                    samples.put(&[pool.upstream, &pool.endpoint], format!("{bits:.3}"));
                }
            }
        },
    },
    Family {
        name: "forebay_dns_workers",
        kind: Kind::Gauge,
        labels: &[],
        help: "Workers that answered when they were asked for these figures.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.workers)),
    },
    Family {
        name: "forebay_dns_questions",
        kind: Kind::Gauge,
        labels: &[],
        help: "Questions in flight to upstreams.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.questions)),
    },
    Family {
        name: "forebay_dns_waiting",
        kind: Kind::Gauge,
        labels: &[],
        help: "Clients waiting for the answers to them.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.waiting)),
    },
    Family {
        name: "forebay_dns_upstream_seconds",
        kind: Kind::Histogram,
        labels: &[],
        help: "How long questions took that went upstream, from the client's query to its reply.",
        read: |scrape, samples| scrape.dns(|stats| samples.times(&[], &stats.latency)),
    },
    Family {
        name: "forebay_dns_cache_entries",
        kind: Kind::Gauge,
        labels: &[],
        help: "Answers in the cache.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.entries)),
    },
    Family {
        name: "forebay_dns_cache_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the cache in use.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.bytes)),
    },
    Family {
        name: "forebay_dns_cache_sets",
        kind: Kind::Gauge,
        labels: &[],
        help: "Those of the answers in the cache that nobody asked for: they came with others.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.sets)),
    },
    Family {
        name: "forebay_dns_cache_set_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory that these take.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.set_bytes)),
    },
    Family {
        name: "forebay_dns_cache_inserts_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Answers put into the cache.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.inserts)),
    },
    Family {
        name: "forebay_dns_cache_evictions_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Answers that left the cache for others while still good: with many, dns.cache.size is small.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.cache.evictions)),
    },
    Family {
        name: "forebay_dns_client_connections",
        kind: Kind::Gauge,
        labels: &[],
        help: "Clients' connections, over TCP, TLS and HTTPS.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.client_connections)),
    },
    Family {
        name: "forebay_dns_clients_rejected_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Clients' connections closed at once because clients.connections_max, connections_per_client or \
               handshakes_max was reached.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.clients_rejected)),
    },
    Family {
        name: "forebay_dns_tls_handshakes_total",
        kind: Kind::Counter,
        labels: &["side", "result"],
        help: "TLS handshakes, by side (`client`: clients with us; `upstream`: we with upstreams) and by result (`full`; \
               `resumed`, which is cheaper; `failed`).",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            for (side, handshakes) in
                [("client", stats.client_handshakes), ("upstream", stats.upstream_handshakes)]
            {
                samples.put(&[side, "full"], handshakes.full);
                samples.put(&[side, "resumed"], handshakes.resumed);
                samples.put(&[side, "failed"], handshakes.failed);
            }
        },
    },
    Family {
        name: "forebay_dns_certificate_expires_seconds",
        kind: Kind::Gauge,
        labels: &[],
        help: "When the certificate of the encrypted listeners expires, in seconds since 1970; absent without one.",
        read: |scrape, samples| {
            if let Some(expires) = scrape.dns.and_then(|stats| stats.certificate_expires) {
                samples.put(&[], expires);
            }
        },
    },
    Family {
        name: "forebay_dns_clients_refused_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Clients' connections closed at once because protection.allow does not have their addresses.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.clients_refused)),
    },
    Family {
        name: "forebay_dns_local_names",
        kind: Kind::Gauge,
        labels: &[],
        help: "Names known from local.hosts and local.records.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.local)),
    },
    Family {
        name: "forebay_dns_blocked_names",
        kind: Kind::Gauge,
        labels: &[],
        help: "Names on the block lists.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.blocked)),
    },
    Family {
        name: "forebay_dns_blocked_names_bytes",
        kind: Kind::Gauge,
        labels: &[],
        help: "Memory of the block lists, all workers together.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.blocked_bytes)),
    },
    Family {
        name: "forebay_dns_names_bad_lines",
        kind: Kind::Gauge,
        labels: &[],
        help: "Lines of hosts file and block lists that could not be read; the log shows the first of each file.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.names.bad_lines)),
    },
    Family {
        name: "forebay_dns_names_reloads_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Times that a hosts file or block list had changed; `failed`: it could not be read, and the old one holds.",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            samples.put(&["ok"], stats.names.reloads);
            samples.put(&["failed"], stats.names.reloads_failed);
        },
    },
    Family {
        name: "forebay_dns_query_log_lines_total",
        kind: Kind::Counter,
        labels: &["result"],
        help: "Lines of the query log; `dropped`: writer or disk were too slow, or the file cannot be written.",
        read: |scrape, samples| {
            let Some(stats) = scrape.dns else { return };
            samples.put(&["written"], stats.query_log.written);
            samples.put(&["dropped"], stats.query_log.dropped);
        },
    },
    Family {
        name: "forebay_grpc_calls_ended_total",
        kind: Kind::Counter,
        labels: &["code"],
        help: "Calls that have ended, by their code.",
        read: |scrape, samples| {
            let Some(figures) = &scrape.grpc else { return };
            for (code, name) in ServerFigures::CODES {
                samples.put(&[name], figures.ended(code));
            }
        },
    },
    Family {
        name: "forebay_dns_datagrams_dropped_total",
        kind: Kind::Counter,
        labels: &[],
        help: "Datagrams that the kernel did not take from us.",
        read: |scrape, samples| scrape.dns(|stats| samples.put(&[], stats.datagrams_dropped)),
    },
];

/// Describes every metric, in the order in which they are shown.
pub fn descriptions() -> Vec<Description> {
    let declared = FAMILIES.iter().map(|family| Description {
        name: family.name.to_owned(),
        kind: family.kind,
        labels: family.labels,
        help: family.help.to_owned(),
    });
    let counted = ForwarderCounters::default();
    let counted = counted.fields().map(|(field, help, _)| Description {
        name: counter_name(field),
        kind: Kind::Counter,
        labels: &[],
        help: help.trim().to_owned(),
    });
    let proxies = ProxyFigures::TABLE.iter().chain(DiscoveryStats::TABLE).map(|(field, kind, help)| {
        let (name, kind) = proxy_metric(field, *kind);
        Description { name, kind, labels: PROXY, help: help.trim().to_owned() }
    });
    let grpc = ServerFigures::TABLE.iter().map(|(field, kind, help)| {
        let (name, kind) = grpc_metric(field, *kind);
        Description { name, kind, labels: &[], help: help.trim().to_owned() }
    });
    declared.chain(counted).chain(proxies).chain(grpc).collect()
}

/// Writes every metric in the text format of Prometheus, version 0.0.4.
pub fn exposition(scrape: &Scrape<'_>) -> String {
    let mut text = String::with_capacity(16 << 10);
    for family in FAMILIES.iter().filter(|family| scrape.has(family.name)) {
        head(&mut text, family.name, family.kind, family.help);
        (family.read)(scrape, &mut Samples { text: &mut text, name: family.name, labels: family.labels });
    }
    if let Some(dns) = scrape.dns {
        for (field, help, value) in dns.counters.fields() {
            let name = counter_name(field);
            head(&mut text, &name, Kind::Counter, help.trim());
            Samples { text: &mut text, name: &name, labels: &[] }.put(&[], value);
        }
    }
    if !scrape.proxies.is_empty() {
        for (at, (field, kind, help)) in ProxyFigures::TABLE.iter().enumerate() {
            let (name, kind) = proxy_metric(field, *kind);
            head(&mut text, &name, kind, help.trim());
            let mut samples = Samples { text: &mut text, name: &name, labels: PROXY };
            for proxy in scrape.proxies {
                if let Some(value) = proxy.figures.values().nth(at) {
                    samples.put(&[&proxy.name], value);
                }
            }
        }
    }
    if scrape.proxies.iter().any(|proxy| proxy.discovery.is_some()) {
        for (at, (field, kind, help)) in DiscoveryStats::TABLE.iter().enumerate() {
            let (name, kind) = proxy_metric(field, *kind);
            head(&mut text, &name, kind, help);
            let mut samples = Samples { text: &mut text, name: &name, labels: PROXY };
            for proxy in scrape.proxies {
                if let Some(discovery) = &proxy.discovery {
                    samples.put(&[&proxy.name], discovery.values()[at]);
                }
            }
        }
    }
    if let Some(figures) = &scrape.grpc {
        for ((field, kind, help), value) in ServerFigures::TABLE.iter().zip(figures.values()) {
            let (name, kind) = grpc_metric(field, *kind);
            head(&mut text, &name, kind, help.trim());
            Samples { text: &mut text, name: &name, labels: &[] }.put(&[], value);
        }
    }
    text
}

/// Returns how a figure of a server of gRPC is called and what it is.
fn grpc_metric(field: &str, kind: forebay_grpc::server::Kind) -> (String, Kind) {
    match kind {
        forebay_grpc::server::Kind::Counter => (format!("forebay_grpc_{field}_total"), Kind::Counter),
        forebay_grpc::server::Kind::Gauge => (format!("forebay_grpc_{field}"), Kind::Gauge),
    }
}

/// Returns how a figure of a proxy is called and what it is.
fn proxy_metric(field: &str, kind: forebay_proxy::Kind) -> (String, Kind) {
    match kind {
        forebay_proxy::Kind::Counter => (format!("forebay_proxy_{field}_total"), Kind::Counter),
        forebay_proxy::Kind::Gauge => (format!("forebay_proxy_{field}"), Kind::Gauge),
    }
}

fn counter_name(field: &str) -> String {
    format!("forebay_dns_{field}_total")
}

fn head(text: &mut String, name: &str, kind: Kind, help: &str) {
    let help = help.replace('\\', "\\\\").replace('\n', "\\n");
    // Writing to a string cannot fail.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {}", kind.as_str());
}

impl Scrape<'_> {
    /// Whether a metric is about something that runs here.
    fn has(&self, name: &str) -> bool {
        (self.dns.is_some() || !name.starts_with("forebay_dns_"))
            && (self.grpc.is_some() || !name.starts_with("forebay_grpc_"))
    }

    fn dns(&self, show: impl FnOnce(&Stats)) {
        if let Some(stats) = self.dns {
            show(stats);
        }
    }

    fn each_endpoint(&self, mut show: impl FnMut(&str, &str, &EndpointFigures)) {
        for pool in &self.pools {
            if let Some(figures) = pool.dns.and_then(|dns| dns.figures.as_ref()) {
                show(pool.upstream, &pool.endpoint, figures);
            }
        }
    }

    fn each(&self, mut show: impl FnMut(&str, &str, &Snapshot)) {
        for pool in &self.pools {
            show(pool.upstream, &pool.endpoint, pool.snapshot);
        }
    }
}

/// Counts connections by state.
pub(super) fn states(pool: &Snapshot) -> [(&'static str, u32); 5] {
    [
        ("connecting", pool.connecting),
        ("ready", pool.ready),
        ("busy", pool.busy),
        ("draining", pool.draining),
        ("closing", pool.closed),
    ]
}

/// Writes the samples of one metric.
struct Samples<'a> {
    text: &'a mut String,
    name: &'a str,
    labels: &'static [&'static str],
}

/// Exponents of the bounds of histograms of times: 16 µs to 34 s, each twice the one before. Powers of two less one
/// are bounds of [`Histogram`]'s own buckets, so that nothing is guessed.
const TIME_BOUNDS: std::ops::RangeInclusive<u32> = 14..=35;
/// The same for counts: 1 to a million.
const COUNT_BOUNDS: std::ops::RangeInclusive<u32> = 1..=20;

impl Samples<'_> {
    fn put(&mut self, values: &[&str], sample: impl ToString) {
        debug_assert_eq!(values.len(), self.labels.len(), "{}", self.name);
        self.line("", values, None, &sample.to_string());
    }

    /// Writes a histogram of nanoseconds, in seconds.
    fn times(&mut self, values: &[&str], histogram: &Histogram) {
        self.histogram(values, histogram, TIME_BOUNDS, |nanos| {
            format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
        });
    }

    fn counts(&mut self, values: &[&str], histogram: &Histogram) {
        self.histogram(values, histogram, COUNT_BOUNDS, |count| count.to_string());
    }

    fn histogram(
        &mut self,
        values: &[&str],
        histogram: &Histogram,
        bounds: std::ops::RangeInclusive<u32>,
        show: fn(u64) -> String,
    ) {
        let mut buckets = histogram.cumulative().peekable();
        let mut below = 0;
        for bound in bounds.map(|exponent| (1 << exponent) - 1) {
            while let Some((_, seen)) = buckets.next_if(|(upper, _)| *upper <= bound) {
                below = seen;
            }
            self.line("_bucket", values, Some(&show(bound)), &below.to_string());
        }
        self.line("_bucket", values, Some("+Inf"), &histogram.count().to_string());
        self.line("_sum", values, None, &show(histogram.sum()));
        self.line("_count", values, None, &histogram.count().to_string());
    }

    fn line(&mut self, suffix: &str, values: &[&str], bound: Option<&str>, sample: &str) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let labels = self.labels.iter().copied().zip(values.iter().copied());
        let mut before = '{';
        for (label, value) in labels.chain(bound.map(|bound| ("le", bound))) {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            // Writing to a string cannot fail.
            let _ = write!(self.text, "{before}{label}=\"{value}\"");
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {sample}");
    }
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

//! Figures of a running server, all workers together.

use std::time::Duration;

use forebay_core::{Counters, Histogram, Snapshot};
use forebay_dns_core::cache::CacheCounters;
use forebay_dns_core::forwarder::{Carrier, EndpointFigures, ForwarderCounters};
use rustls::HandshakeKind;
use serde::Serialize;

use crate::settings::DnsConfig;

/// What one worker tells.
#[derive(Clone, Debug)]
pub(crate) struct WorkerStats {
    pub(crate) counters: ForwarderCounters,
    pub(crate) cache: CacheCounters,
    pub(crate) latency: Histogram,
    pub(crate) questions: usize,
    pub(crate) waiting: usize,
    pub(crate) pools: Vec<(u16, Carrier, Snapshot)>,
    pub(crate) entropy: Vec<(u16, f64)>,
    pub(crate) endpoints: Vec<EndpointFigures>,
    pub(crate) client_connections: usize,
    pub(crate) clients_rejected: u64,
    pub(crate) client_handshakes: HandshakeStats,
    pub(crate) upstream_handshakes: HandshakeStats,
    pub(crate) clients_refused: u64,
    pub(crate) datagrams_dropped: u64,
}

/// Figures of a server.
#[derive(Clone, Debug)]
pub struct Stats {
    /// How long it has run.
    pub uptime: Duration,
    /// How many workers have answered.
    pub workers: usize,
    /// What happened to queries.
    pub counters: ForwarderCounters,
    /// The cache.
    pub cache: CacheStats,
    /// How long questions that went upstream took, in nanoseconds.
    pub latency: Histogram,
    /// Questions in flight.
    pub questions: usize,
    /// Clients that wait for them.
    pub waiting: usize,
    /// Clients' connections.
    pub client_connections: usize,
    /// Clients' connections closed at once because there were too many.
    pub clients_rejected: u64,
    /// TLS handshakes with clients.
    pub client_handshakes: HandshakeStats,
    /// TLS handshakes with upstreams.
    pub upstream_handshakes: HandshakeStats,
    /// When the certificate of the encrypted listeners expires, in seconds since 1970; `None` if there is none.
    pub certificate_expires: Option<i64>,
    /// Clients' connections closed at once because their addresses are not served (`protection.allow`).
    pub clients_refused: u64,
    /// Datagrams that the kernel did not take.
    pub datagrams_dropped: u64,
    /// The pools, in the order of the configuration.
    pub pools: Vec<PoolStats>,
    /// The query log.
    pub query_log: QueryLogStats,
    /// Names known here and blocked.
    pub names: NameStats,
    endpoints: Vec<(String, String)>,
}

/// How TLS handshakes ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HandshakeStats {
    /// In a new session.
    pub full: u64,
    /// In one that was resumed: cheaper for both.
    pub resumed: u64,
    /// In a failure, that of time included.
    pub failed: u64,
}

impl HandshakeStats {
    /// Counts one that has worked.
    pub(crate) fn note(&mut self, kind: Option<HandshakeKind>) {
        match kind {
            Some(HandshakeKind::Resumed) => self.resumed += 1,
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) => self.full += 1,
            // No handshake at all.
            None => {}
        }
    }

    fn merge(&mut self, other: &Self) {
        self.full += other.full;
        self.resumed += other.resumed;
        self.failed += other.failed;
    }
}

/// Figures of the message cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CacheStats {
    /// Answers in it.
    pub entries: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Those of the answers that were not asked for, but came with others.
    pub sets: u64,
    /// Bytes that these take.
    pub set_bytes: u64,
    /// Lookups that found an answer.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Answers put in.
    pub inserts: u64,
    /// Answers given up for others while still good.
    pub evictions: u64,
}

/// Figures of the query log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct QueryLogStats {
    /// Lines written.
    pub written: u64,
    /// Lines lost: the writer or the disk was too slow, or the file cannot be written.
    pub dropped: u64,
}

/// Figures of local data and the block list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NameStats {
    /// Names known here.
    pub local: u64,
    /// Names blocked.
    pub blocked: u64,
    /// Memory of the block list, in bytes.
    pub blocked_bytes: u64,
    /// Lines of hosts file and lists that could not be read, at the last reading.
    pub bad_lines: u64,
    /// Times that a file had changed and was read again.
    pub reloads: u64,
    /// Times that it could not be: what was there before still holds.
    pub reloads_failed: u64,
}

/// Percentiles of a histogram of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LatencyStats {
    /// How many.
    pub count: u64,
    /// Half are below, in microseconds.
    pub p50_us: f64,
    /// Nine of ten are below, in microseconds.
    pub p90_us: f64,
    /// All but one of a hundred are below, in microseconds.
    pub p99_us: f64,
    /// The largest, in microseconds.
    pub max_us: f64,
}

impl From<&Histogram> for LatencyStats {
    fn from(histogram: &Histogram) -> Self {
        let us = |nanos: u64| nanos as f64 / 1e3;
        Self {
            count: histogram.count(),
            p50_us: us(histogram.quantile(0.5)),
            p90_us: us(histogram.quantile(0.9)),
            p99_us: us(histogram.quantile(0.99)),
            max_us: us(histogram.max()),
        }
    }
}

/// Figures of the connections to one upstream over one transport, all workers together.
#[derive(Clone, Debug)]
pub struct PoolStats {
    /// The upstream that it belongs to: `default`, or the suffix of a route.
    pub group: String,
    /// The endpoint, as `udp://192.0.2.53:53`.
    pub upstream: String,
    /// Its place in the configuration.
    pub index: u16,
    /// `udp` or `tcp`.
    pub transport: &'static str,
    /// Counts by state, limits, counters: the sums over the workers; limits are those of one, since they are shared.
    pub snapshot: Snapshot,
    /// How hard an answer is to guess, in bits, on the worker where it is easiest: the logarithm of how many pairs of
    /// socket and unused message id a query's is one of. `None` over TCP, where a guess needs a sequence number too.
    pub entropy_bits: Option<f64>,
    /// What the strategy knows of the endpoint, whatever it is spoken to over; on the first of its pools only.
    pub figures: Option<EndpointFigures>,
}

impl Stats {
    pub(crate) fn new(config: &DnsConfig, uptime: Duration) -> Self {
        Self {
            uptime,
            workers: 0,
            counters: ForwarderCounters::default(),
            cache: CacheStats::default(),
            latency: Histogram::default(),
            questions: 0,
            waiting: 0,
            client_connections: 0,
            clients_rejected: 0,
            client_handshakes: HandshakeStats::default(),
            upstream_handshakes: HandshakeStats::default(),
            certificate_expires: config
                .certificates
                .as_ref()
                .and_then(|certificates| certificates.not_after()),
            clients_refused: 0,
            datagrams_dropped: 0,
            pools: Vec::new(),
            query_log: QueryLogStats::default(),
            names: NameStats::default(),
            endpoints: config
                .upstreams()
                .iter()
                .enumerate()
                .map(|(at, endpoint)| (config.upstream_of(at).to_owned(), endpoint.to_string()))
                .collect(),
        }
    }

    pub(crate) fn add(&mut self, worker: &WorkerStats) {
        self.workers += 1;
        self.counters.merge(&worker.counters);
        let (mine, theirs) = (&mut self.cache, &worker.cache);
        mine.entries += theirs.entries;
        mine.bytes += theirs.bytes;
        mine.sets += theirs.sets;
        mine.set_bytes += theirs.set_bytes;
        mine.hits += theirs.hits;
        mine.misses += theirs.misses;
        mine.inserts += theirs.inserts;
        mine.evictions += theirs.evictions;
        self.latency.merge(&worker.latency);
        self.questions += worker.questions;
        self.waiting += worker.waiting;
        self.client_connections += worker.client_connections;
        self.clients_rejected += worker.clients_rejected;
        self.client_handshakes.merge(&worker.client_handshakes);
        self.upstream_handshakes.merge(&worker.upstream_handshakes);
        self.clients_refused += worker.clients_refused;
        self.datagrams_dropped += worker.datagrams_dropped;
        for (index, carrier, snapshot) in &worker.pools {
            let transport = match carrier {
                Carrier::Datagram => "udp",
                Carrier::Stream => "tcp",
            };
            let same = |pool: &&mut PoolStats| pool.index == *index && pool.transport == transport;
            match self.pools.iter_mut().find(same) {
                Some(pool) => pool.snapshot.merge(snapshot),
                None => self.pools.push(PoolStats {
                    group: self.endpoints[usize::from(*index)].0.clone(),
                    upstream: self.endpoints[usize::from(*index)].1.clone(),
                    index: *index,
                    transport,
                    snapshot: snapshot.clone(),
                    entropy_bits: None,
                    figures: None,
                }),
            }
        }
        for (index, figures) in worker.endpoints.iter().enumerate() {
            if let Some(pool) = self.pools.iter_mut().find(|pool| usize::from(pool.index) == index) {
                pool.figures.get_or_insert_default().merge(figures);
            }
        }
        for (index, bits) in &worker.entropy {
            let udp = |pool: &&mut PoolStats| pool.index == *index && pool.transport == "udp";
            if let Some(pool) = self.pools.iter_mut().find(udp) {
                pool.entropy_bits = Some(pool.entropy_bits.map_or(*bits, |least| least.min(*bits)));
            }
        }
    }

    /// Dials of all pools that succeeded: sockets made.
    pub fn connections_made(&self) -> u64 {
        self.pools.iter().map(|pool| pool.snapshot.counters.dials_succeeded).sum()
    }

    /// All pools' counters together.
    pub fn pool_counters(&self) -> Counters {
        let mut all = Counters::default();
        self.pools.iter().for_each(|pool| all.merge(&pool.snapshot.counters));
        all
    }
}

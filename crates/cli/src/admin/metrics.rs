//! Every metric, declared once: `FAMILIES` and the forwarder's own table of counters. The exposition and the page of
//! reference are both made of these.

mod families;

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

use self::families::FAMILIES;

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

const PROXY: &[&str] = &["proxy"];

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

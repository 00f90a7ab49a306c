//! What a person writes in `[dns]`, and the valid configuration made of it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use forebay::units::{Size, Span};
use forebay_core::{BackoffConfig, BreakerConfig, Config, IdleOrder};
use forebay_dns_core::cache::{CachePolicy, MessageCache};
use forebay_dns_core::forwarder::Strategy;
use serde::{Deserialize, Serialize};

/// The `[dns]` table of a configuration, every key optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Addresses to listen on, UDP and TCP both. Default `["127.0.0.1:5300"]`.
    pub listen: Vec<String>,
    /// Where queries go, in order: `udp://address`, `tcp://address`, or a bare address for UDP; the port is 53 unless
    /// given. Default: this machine's own resolvers.
    pub upstreams: Vec<String>,
    /// Which upstream is asked first: `sequential`, `round_robin`, `random` or `least_inflight`. Default `sequential`.
    pub strategy: StrategyName,
    /// Worker threads; zero is one for each core. Default 0.
    pub workers: usize,
    /// Memory of the message cache, all workers together; 0 is no cache. Default `64MiB`.
    pub cache_size: Size,
    /// The shortest time an answer is kept. Default `0s`.
    pub ttl_min: Span,
    /// The longest time an answer is kept. Default `1day`.
    pub ttl_max: Span,
    /// The longest time a negative answer is kept. Default `1h`.
    pub negative_ttl_max: Span,
    /// How long an answer is waited for before another attempt begins. Default `1s`.
    pub attempt_timeout: Span,
    /// How long a client waits before it is told SERVFAIL. Default `4s`.
    pub query_timeout: Span,
    /// Attempts for one question. Default 6.
    pub attempts_max: u32,
    /// Clients that may wait at once, per worker. Default 65536.
    pub waiting_max: usize,
    /// The longest UDP message sent to a client or asked of an upstream, in bytes. Default 1232.
    pub udp_size: u16,
    /// `on`, or `off` for one UDP socket or TCP connection per query: the baseline of measurements. Default `on`.
    pub pool: PoolMode,
    /// The UDP sockets to each upstream.
    pub udp: UdpSettings,
    /// The TCP connections to each upstream.
    pub stream: StreamSettings,
    /// Clients' TCP connections.
    pub clients: ClientSettings,
}

/// The `[dns.udp]` table: sockets to one upstream address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct UdpSettings {
    /// Sockets kept open per worker: each has its own random port (RFC 5452). Default 8.
    pub connections_min: u32,
    /// Sockets at most, all workers together. Default 4096.
    pub connections_max: u32,
    /// Queries in flight on one socket. Default 128.
    pub capacity: u32,
    /// A socket is replaced by one with another port after so long. Default `2m`.
    pub age_max: Span,
    /// A socket is replaced after so many queries. Default 20000.
    pub uses_max: u64,
    /// Sockets beyond `connections_min` close after standing idle for so long. Default `30s`.
    pub idle_timeout: Span,
}

/// The `[dns.stream]` table: TCP connections to one upstream address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StreamSettings {
    /// Connections kept open per worker. Default 0.
    pub connections_min: u32,
    /// Connections at most, all workers together. Default 64.
    pub connections_max: u32,
    /// Queries in flight on one connection. Default 64.
    pub capacity: u32,
    /// Connections close after standing idle for so long; many servers close theirs after 10 s. Default `8s`.
    pub idle_timeout: Span,
    /// How long a connection may take to be made. Default `2s`.
    pub dial_timeout: Span,
}

/// The `[dns.clients]` table: clients' TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// Connections at most, all workers together; one more is closed at once. Default 4096.
    pub connections_max: u32,
    /// Queries in flight on one connection; more wait unread in the socket. Default 256.
    pub queries_max: u32,
    /// A connection is closed when it has neither asked nor taken anything for so long. Default `10s`.
    pub idle_timeout: Span,
}

/// How `strategy` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// The first upstream as long as it answers.
    #[default]
    Sequential,
    /// Each in its turn.
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The one with the fewest queries in flight.
    LeastInflight,
}

/// Whether connections to upstreams are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Kept, shared, rotated.
    #[default]
    On,
    /// One for each query.
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:5300".to_owned()],
            upstreams: Vec::new(),
            strategy: StrategyName::default(),
            workers: 0,
            cache_size: Size::mib(64),
            ttl_min: Span(Duration::ZERO),
            ttl_max: Span(Duration::from_secs(86_400)),
            negative_ttl_max: Span(Duration::from_secs(3_600)),
            attempt_timeout: Span(Duration::from_secs(1)),
            query_timeout: Span(Duration::from_secs(4)),
            attempts_max: 6,
            waiting_max: 65_536,
            udp_size: 1232,
            pool: PoolMode::default(),
            udp: UdpSettings::default(),
            stream: StreamSettings::default(),
            clients: ClientSettings::default(),
        }
    }
}

impl Default for UdpSettings {
    fn default() -> Self {
        Self {
            connections_min: 8,
            connections_max: 4096,
            capacity: 128,
            age_max: Span(Duration::from_secs(120)),
            uses_max: 20_000,
            idle_timeout: Span(Duration::from_secs(30)),
        }
    }
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self {
            connections_min: 0,
            connections_max: 64,
            capacity: 64,
            idle_timeout: Span(Duration::from_secs(8)),
            dial_timeout: Span(Duration::from_secs(2)),
        }
    }
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self { connections_max: 4096, queries_max: 256, idle_timeout: Span(Duration::from_secs(10)) }
    }
}

/// Over what an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams; what is truncated goes over TCP.
    Udp,
    /// TCP, many queries at once.
    Tcp,
}

/// An upstream endpoint: an address and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddress {
    /// How.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Udp, text),
            Some(("udp", rest)) => (Transport::Udp, rest),
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some((scheme, _)) => return Err(format!("unknown scheme `{scheme}://`: use udp:// or tcp://")),
        };
        let address = parse_address(rest, 53).ok_or_else(|| {
            format!("`{rest}` is not an address like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53")
        })?;
        if address.port() == 0 {
            return Err("port 0 cannot be an upstream's".to_owned());
        }
        Ok(Self { transport, address })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        write!(f, "{scheme}://{}", self.address)
    }
}

/// Reads `address`, `address:port`, `[v6]`, `[v6]:port` or `:port` (all interfaces).
pub fn parse_address(text: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, port));
    }
    let port = text.strip_prefix(':')?.parse().ok()?;
    Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
}

/// A value that cannot be, named so that its line can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The key, dotted, as in `udp.capacity`.
    pub key: String,
    /// What is wrong with its value, and what it may be.
    pub problem: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.problem)
    }
}

impl std::error::Error for SettingsError {}

/// A valid configuration of the DNS server. Made of [`Settings`] only.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    pub(crate) listen: Vec<SocketAddr>,
    pub(crate) upstreams: Vec<UpstreamAddress>,
    pub(crate) strategy: Strategy,
    pub(crate) workers: usize,
    pub(crate) cache_bytes: usize,
    pub(crate) cache_policy: CachePolicy,
    pub(crate) attempt_timeout: Duration,
    pub(crate) query_timeout: Duration,
    pub(crate) attempts_max: u32,
    pub(crate) waiting_max: usize,
    pub(crate) udp_size: u16,
    pub(crate) udp: Config,
    pub(crate) stream: Config,
    pub(crate) clients: ClientSettings,
}

impl DnsConfig {
    /// Returns where queries will go.
    pub fn upstreams(&self) -> &[UpstreamAddress] {
        &self.upstreams
    }

    /// Returns where it will listen.
    pub fn listen(&self) -> &[SocketAddr] {
        &self.listen
    }

    /// Returns how many workers there will be.
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Makes a configuration. `system` are the machine's own resolvers, for when no upstream is named; `cores` is how
    /// many there are.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be.
    pub fn new(settings: &Settings, system: &[IpAddr], cores: usize) -> Result<Self, SettingsError> {
        let wrong = |key: &str, problem: String| Err(SettingsError { key: key.to_owned(), problem });
        let mut listen: Vec<SocketAddr> = Vec::new();
        for text in &settings.listen {
            let Some(address) = parse_address(text, 53) else {
                return wrong(
                    "listen",
                    format!("`{text}` is not an address like 127.0.0.1:5300, [::1]:5300 or :53"),
                );
            };
            if address.port() != 0 && listen.contains(&address) {
                return wrong("listen", format!("{address} is listed twice"));
            }
            listen.push(address);
        }
        if listen.is_empty() {
            return wrong(
                "listen",
                "is empty: name at least one address, like \"127.0.0.1:5300\"".to_owned(),
            );
        }
        let upstreams = upstreams(settings, system, &listen)?;
        if settings.workers > WORKERS_MAX {
            return wrong(
                "workers",
                format!("{} is too many: 0 (one per core) to {WORKERS_MAX}", settings.workers),
            );
        }
        let workers = if settings.workers == 0 { cores.clamp(1, WORKERS_MAX) } else { settings.workers };
        let cache_bytes = usize::try_from(settings.cache_size.bytes).unwrap_or(usize::MAX) / workers;
        if settings.cache_size.bytes != 0 && cache_bytes < MessageCache::BYTES_MIN {
            return wrong(
                "cache_size",
                format!(
                    "{} is too small for {workers} workers: 16KiB for each, or 0 for no cache",
                    settings.cache_size
                ),
            );
        }
        let cache_policy = CachePolicy {
            ttl_min: settings.ttl_min.0,
            ttl_max: settings.ttl_max.0,
            negative_ttl_max: settings.negative_ttl_max.0,
        };
        if let Err(error) = MessageCache::new(cache_bytes, cache_policy) {
            return wrong("cache_size, ttl_min, ttl_max, negative_ttl_max", error.to_string());
        }
        let config = Self {
            listen,
            upstreams,
            strategy: match settings.strategy {
                StrategyName::Sequential => Strategy::Sequential,
                StrategyName::RoundRobin => Strategy::RoundRobin,
                StrategyName::Random => Strategy::Random,
                StrategyName::LeastInflight => Strategy::LeastInflight,
            },
            workers,
            cache_bytes,
            cache_policy,
            attempt_timeout: settings.attempt_timeout.0,
            query_timeout: settings.query_timeout.0,
            attempts_max: settings.attempts_max,
            waiting_max: settings.waiting_max,
            udp_size: settings.udp_size,
            udp: udp_pool(settings),
            stream: stream_pool(settings),
            clients: settings.clients,
        };
        config.validate(settings)?;
        Ok(config)
    }

    fn validate(&self, settings: &Settings) -> Result<(), SettingsError> {
        for (table, pool, min) in [
            ("udp", &self.udp, settings.udp.connections_min),
            ("stream", &self.stream, settings.stream.connections_min),
        ] {
            if let Err(error) = pool.validate() {
                let problem = format!("is {}; it must be {}", error.value, error.allowed);
                return Err(SettingsError { key: format!("{table}.{}", error.field), problem });
            }
            let all = u64::from(min) * self.workers as u64;
            if settings.pool == PoolMode::On && all > u64::from(pool.connections_max) {
                let problem =
                    format!("{min} for each of {} workers is more than connections_max", self.workers);
                return Err(SettingsError { key: format!("{table}.connections_min"), problem });
            }
        }
        for (key, value) in [
            ("clients.connections_max", self.clients.connections_max),
            ("clients.queries_max", self.clients.queries_max),
        ] {
            if value == 0 {
                return Err(SettingsError {
                    key: key.to_owned(),
                    problem: "is 0; it must be at least 1".to_owned(),
                });
            }
        }
        if self.clients.idle_timeout.0 < Duration::from_millis(100) {
            let problem = format!("{} is too short: at least 100ms", self.clients.idle_timeout);
            return Err(SettingsError { key: "clients.idle_timeout".to_owned(), problem });
        }
        crate::worker::probe_config(self).map_err(|error| {
            use forebay_dns_core::forwarder::ForwarderConfigError::Field;
            match error {
                Field { field, value, allowed } => SettingsError {
                    key: field.to_owned(),
                    problem: format!("is {value}; it must be {allowed}"),
                },
                other => SettingsError { key: "dns".to_owned(), problem: other.to_string() },
            }
        })
    }
}

/// More threads than this have no use on any machine that forwards DNS.
const WORKERS_MAX: usize = 256;

fn upstreams(
    settings: &Settings,
    system: &[IpAddr],
    listen: &[SocketAddr],
) -> Result<Vec<UpstreamAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "upstreams".to_owned(), problem };
    let mut found = Vec::new();
    if settings.upstreams.is_empty() {
        let own =
            system.iter().map(|ip| SocketAddr::new(*ip, 53)).filter(|address| !listen.contains(address));
        found.extend(own.map(|address| UpstreamAddress { transport: Transport::Udp, address }));
        if found.is_empty() {
            return Err(wrong(
                "none named, and this machine's resolv.conf names none: give one, like udp://192.0.2.53"
                    .to_owned(),
            ));
        }
    }
    for text in &settings.upstreams {
        let upstream: UpstreamAddress =
            text.parse().map_err(|problem| wrong(format!("`{text}`: {problem}")))?;
        if listen.iter().any(|address| is_same_socket(*address, upstream.address)) {
            return Err(wrong(format!("`{text}` is this server itself: queries would go round for ever")));
        }
        found.push(upstream);
    }
    Ok(found)
}

/// Whether queries to `upstream` would come to `listen` again.
fn is_same_socket(listen: SocketAddr, upstream: SocketAddr) -> bool {
    let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    listen.port() == upstream.port()
        && (listen.ip() == upstream.ip()
            || everywhere.contains(&listen.ip()) && upstream.ip().is_loopback()
            || listen.ip().is_loopback() && everywhere.contains(&upstream.ip()))
}

/// A breaker for DNS: names whose own servers are dead time out at a healthy upstream too, so that it takes many
/// failures in a row, and a short pause, to say something of the upstream.
const BREAKER: BreakerConfig =
    BreakerConfig { failures: 32, open_base: Duration::from_millis(200), open_max: Duration::from_secs(2) };

fn udp_pool(settings: &Settings) -> Config {
    let udp = &settings.udp;
    let base = Config {
        connections_max: udp.connections_max,
        idle_max: udp.connections_max,
        capacity: udp.capacity,
        order: IdleOrder::Random,
        dials_max: udp.connections_max.max(1),
        idle_timeout: Some(udp.idle_timeout.0),
        backoff: BackoffConfig { base: Duration::from_millis(20), max: Duration::from_secs(1) },
        breaker: BREAKER,
        ..Config::default()
    };
    match settings.pool {
        PoolMode::On => Config {
            connections_min: udp.connections_min,
            age_max: Some(udp.age_max.0),
            uses_max: Some(udp.uses_max),
            ..base
        },
        PoolMode::Off => Config { capacity: 1, uses_max: Some(1), ..base },
    }
}

fn stream_pool(settings: &Settings) -> Config {
    let stream = &settings.stream;
    let base = Config {
        connections_max: stream.connections_max,
        idle_max: stream.connections_max,
        capacity: stream.capacity,
        dial_timeout: stream.dial_timeout.0,
        idle_timeout: Some(stream.idle_timeout.0),
        breaker: BREAKER,
        ..Config::default()
    };
    match settings.pool {
        PoolMode::On => Config { connections_min: stream.connections_min, ..base },
        PoolMode::Off => Config { capacity: 1, uses_max: Some(1), ..base },
    }
}

#[cfg(test)]
mod tests;

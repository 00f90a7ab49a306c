//! What a person writes in `[dns]`, and the valid configuration made of it.

mod address;
mod block;
mod bootstrap;
mod cache;
mod clients;
mod health;
mod listen;
mod local;
mod pools;
mod protection;
mod query_log;
mod routes;
mod safety;
mod strategies;
mod tls;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use forebay::settings::{PoolMode, SettingsError, parse_address};
use forebay::tls::Certificates;
use forebay::units::Span;
use forebay_core::Config;
use forebay_dns_core::forwarder::{SafetyConfig, Strategy, StrategyConfig};
use serde::{Deserialize, Serialize};

use self::address::upstreams;
pub use self::address::{Host, Transport, UpstreamAddress};
pub(crate) use self::block::BlockConfig;
pub use self::block::{BlockAnswerName, BlockSettings};
pub use self::cache::CacheSettings;
pub(crate) use self::cache::CacheShare;
pub use self::clients::ClientSettings;
pub(crate) use self::health::HealthPlan;
pub use self::health::HealthSettings;
use self::listen::listen;
pub use self::listen::{ListenAddress, Scheme};
pub(crate) use self::local::LocalConfig;
pub use self::local::LocalSettings;
pub use self::pools::{OverflowName, StreamSettings, UdpSettings};
use self::pools::{stream_pool, udp_pool};
pub(crate) use self::protection::Protection;
pub use self::protection::{AnyName, ProtectionSettings};
pub(crate) use self::query_log::QueryLogConfig;
pub use self::query_log::QueryLogSettings;
pub(crate) use self::routes::RouteConfig;
pub use self::routes::RouteSettings;
use self::routes::routes;
pub use self::safety::SafetySettings;
pub use self::strategies::{StrategyName, StrategySettings};
pub use self::tls::TlsSettings;
use crate::tls::Trust;

/// The `[dns]` table of a configuration, every key optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Addresses to listen on: a bare one takes UDP and TCP both, as `udp+tcp://` does; `udp://` and `tcp://` take one
    /// of them, `tls://` is DNS over TLS (port 853), `https://` DNS over HTTPS (port 443, path `/dns-query` unless
    /// another follows). Default `["127.0.0.1:5300"]`.
    pub listen: Vec<String>,
    /// Where queries go, in order: `udp://address`, `tcp://address`, or a bare address for UDP, port 53 unless given;
    /// `tls://address?name=dns.example` for DNS over TLS, port 853: `name` is for whom its certificate must be, the
    /// address itself unless given, and `ca=/path/ca.pem` who must have signed it, one whom this machine trusts unless
    /// given; `https://dns.example/dns-query` for DNS over HTTPS, port 443, path `/dns-query` unless another follows,
    /// with the same parameters. The host of an encrypted upstream may be a name; its addresses are asked for as
    /// `bootstrap` says, or follow as `bootstrap=192.0.2.1,2001:db8::1`. Default: this machine's own resolvers.
    pub upstreams: Vec<String>,
    /// Plain DNS servers that are asked for the addresses of upstreams that are given by name, the next if one does not
    /// know: `address` or `address:port`, port 53 unless given. They are asked again when what they said ends, after
    /// half a minute at the earliest and an hour at the latest; connections that are there then stay. Default: this
    /// machine's own resolvers, without this server.
    pub bootstrap: Vec<String>,
    /// Which upstream is asked: `sequential`, the first as long as it answers; `parallel`, several at once, of which the
    /// first good answer wins; `racing`, the quickest first, and the next when it takes longer than usual; `fastest`, the
    /// quickest; `least_inflight`, the one with the fewest queries in flight; `round_robin` and `random`. Those that have
    /// failed or do not answer come last; an error is followed by the next one at once. Default `sequential`.
    pub strategy: StrategyName,
    /// What the strategies go by.
    pub strategies: StrategySettings,
    /// Worker threads; zero is one for each core. Default 0.
    pub workers: usize,
    /// How long an answer is waited for before another attempt begins. Default `1s`.
    pub attempt_timeout: Span,
    /// How long a client waits before it is told SERVFAIL. Default `4s`.
    pub query_timeout: Span,
    /// How long a question that an upstream has answered with an error, or that nobody has answered, is not asked of
    /// them again; when it is so for all, the reply is SERVFAIL at once (RFC 9520). `0s` is not at all. Default `5s`.
    pub failure_ttl: Span,
    /// How long at most, when an upstream answers with an error again and again: twice as long each time. Default `30s`.
    pub failure_ttl_max: Span,
    /// Attempts for one question. Default 6.
    pub attempts_max: u32,
    /// Clients that may wait at once, per worker. Default 65536.
    pub waiting_max: usize,
    /// The longest UDP message sent to a client or asked of an upstream, in bytes. Default 1232.
    pub udp_size: u16,
    /// `on`, or `off` for one UDP socket or TCP connection per query: the baseline of measurements. Default `on`.
    pub pool: PoolMode,
    /// What is kept of answers.
    pub cache: CacheSettings,
    /// Active checks of upstreams.
    pub health: HealthSettings,
    /// The UDP sockets to each upstream.
    pub udp: UdpSettings,
    /// The TCP connections to each upstream.
    pub stream: StreamSettings,
    /// Clients' connections.
    pub clients: ClientSettings,
    /// What is done against forged answers.
    pub safety: SafetySettings,
    /// The certificate of the encrypted listeners.
    pub tls: TlsSettings,
    /// Who may ask, how often, and what is never asked of an upstream.
    pub protection: ProtectionSettings,
    /// Names that are known here.
    pub local: LocalSettings,
    /// Names that are not to be found.
    pub block: BlockSettings,
    /// A line for each query, or for some.
    pub query_log: QueryLogSettings,
    /// Names that other upstreams know. Default `[]`.
    pub routes: Vec<RouteSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: vec!["127.0.0.1:5300".to_owned()],
            upstreams: Vec::new(),
            strategy: StrategyName::default(),
            strategies: StrategySettings::default(),
            workers: 0,
            attempt_timeout: Span(Duration::from_secs(1)),
            query_timeout: Span(Duration::from_secs(4)),
            failure_ttl: Span(Duration::from_secs(5)),
            failure_ttl_max: Span(Duration::from_secs(30)),
            attempts_max: 6,
            waiting_max: 65_536,
            udp_size: 1232,
            pool: PoolMode::default(),
            cache: CacheSettings::default(),
            health: HealthSettings::default(),
            udp: UdpSettings::default(),
            stream: StreamSettings::default(),
            clients: ClientSettings::default(),
            safety: SafetySettings::default(),
            tls: TlsSettings::default(),
            protection: ProtectionSettings::default(),
            local: LocalSettings::default(),
            block: BlockSettings::default(),
            query_log: QueryLogSettings::default(),
            routes: Vec::new(),
            bootstrap: Vec::new(),
        }
    }
}

/// A valid configuration of the DNS server. Made of [`Settings`] only.
#[derive(Clone, Debug)]
pub struct DnsConfig {
    pub(crate) listen: Vec<ListenAddress>,
    /// Every endpoint: those of the default upstream, then those of each route.
    pub(crate) upstreams: Vec<UpstreamAddress>,
    pub(crate) routes: Vec<RouteConfig>,
    pub(crate) strategy: Strategy,
    pub(crate) strategies: StrategyConfig,
    pub(crate) workers: usize,
    pub(crate) cache: CacheShare,
    pub(crate) attempt_timeout: Duration,
    pub(crate) query_timeout: Duration,
    pub(crate) failure_ttl: Duration,
    pub(crate) failure_ttl_max: Duration,
    pub(crate) attempts_max: u32,
    pub(crate) waiting_max: usize,
    pub(crate) udp_size: u16,
    pub(crate) health: Option<HealthPlan>,
    pub(crate) udp: Config,
    pub(crate) stream: Config,
    pub(crate) clients: ClientSettings,
    pub(crate) safety: SafetyConfig,
    pub(crate) certificates: Option<Arc<Certificates>>,
    pub(crate) trust: Trust,
    pub(crate) protection: Protection,
    pub(crate) local: Option<LocalConfig>,
    pub(crate) block: Option<BlockConfig>,
    pub(crate) query_log: Option<QueryLogConfig>,
    pub(crate) bootstrap: Vec<SocketAddr>,
}

impl DnsConfig {
    /// Returns where queries will go: the default upstream's endpoints, then those of each route.
    pub fn upstreams(&self) -> &[UpstreamAddress] {
        &self.upstreams
    }

    /// Returns the name of an upstream, by its place: `default`, then those of the routes.
    pub(crate) fn upstream_name(&self, upstream: usize) -> &str {
        upstream.checked_sub(1).and_then(|at| self.routes.get(at)).map_or("default", |route| &route.name)
    }

    /// Returns the name of the upstream that an endpoint belongs to, by the endpoint's place among all.
    pub(crate) fn upstream_of(&self, endpoint: usize) -> &str {
        let route =
            self.routes.iter().find(|route| (route.first..route.first + route.len).contains(&endpoint));
        route.map_or("default", |route| &route.name)
    }

    /// Returns where it will listen.
    pub fn listen(&self) -> &[ListenAddress] {
        &self.listen
    }

    /// Returns how many workers there will be.
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Makes a configuration. `system` are the machine's own resolvers, for when no upstream is named; `cores` is how
    /// many there are. Reads the certificates that are named.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be.
    pub fn new(settings: &Settings, system: &[IpAddr], cores: usize) -> Result<Self, SettingsError> {
        let wrong = |key: &str, problem: String| Err(SettingsError { key: key.to_owned(), problem });
        let listen = listen(&settings.listen)?;
        let mut upstreams = upstreams(settings, system, &listen)?;
        let routes = routes(&settings.routes, &listen, &mut upstreams)?;
        let bootstrap = bootstrap::servers(settings, system, &listen, &upstreams)?;
        let certificates = settings.tls.load(&listen)?;
        let trust = Trust::new(upstreams.iter())
            .map_err(|problem| SettingsError { key: "upstreams".to_owned(), problem })?;
        if settings.workers > WORKERS_MAX {
            return wrong(
                "workers",
                format!("{} is too many: 0 (one per core) to {WORKERS_MAX}", settings.workers),
            );
        }
        let workers = if settings.workers == 0 { cores.clamp(1, WORKERS_MAX) } else { settings.workers };
        let cache = settings.cache.share(workers)?;
        let config = Self {
            listen,
            upstreams,
            strategy: settings.strategy.into(),
            strategies: settings.strategies.into(),
            routes,
            workers,
            cache,
            attempt_timeout: settings.attempt_timeout.0,
            query_timeout: settings.query_timeout.0,
            failure_ttl: settings.failure_ttl.0,
            failure_ttl_max: settings.failure_ttl_max.0,
            attempts_max: settings.attempts_max,
            waiting_max: settings.waiting_max,
            udp_size: settings.udp_size,
            health: settings.health.plan()?,
            udp: udp_pool(settings),
            stream: stream_pool(settings),
            clients: settings.clients,
            safety: settings.safety.valid()?,
            certificates,
            trust,
            protection: settings.protection.valid()?,
            local: settings.local.valid()?,
            block: settings.block.valid()?,
            query_log: settings.query_log.valid()?,
            bootstrap,
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
            ("clients.connections_per_client", self.clients.connections_per_client),
            ("clients.handshakes_max", self.clients.handshakes_max),
            ("clients.queries_max", self.clients.queries_max),
        ] {
            if value == 0 {
                return Err(SettingsError {
                    key: key.to_owned(),
                    problem: "is 0; it must be at least 1".to_owned(),
                });
            }
        }
        for (key, value) in [
            ("clients.idle_timeout", self.clients.idle_timeout),
            ("clients.handshake_timeout", self.clients.handshake_timeout),
        ] {
            if value.0 < Duration::from_millis(100) {
                let problem = format!("{value} is too short: at least 100ms");
                return Err(SettingsError { key: key.to_owned(), problem });
            }
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

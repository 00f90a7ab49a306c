//! What a person writes in `[[proxy]]`, and the valid configuration made of it.

mod access_log;
mod backend;
mod clients;
mod connections;
mod discovery;
mod health;
mod http;
mod listen;
mod proxy_protocol;
mod spares;
mod tls;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

pub use forebay::settings::{PoolMode, SettingsError};
use forebay::units::Span;
use serde::{Deserialize, Serialize};

pub(crate) use self::access_log::AccessLogConfig;
pub use self::access_log::{AccessLogFormat, AccessLogSettings};
pub use self::backend::{BackendAddress, BackendTls, Protocol};
pub use self::clients::ClientSettings;
pub use self::connections::ConnectionSettings;
pub use self::discovery::DiscoverySettings;
#[cfg(feature = "kubernetes")]
pub(crate) use self::discovery::KubeConfig;
pub(crate) use self::discovery::{DiscoveryConfig, DnsConfig, DnsQuestion};
pub(crate) use self::health::HealthConfig;
pub use self::health::{CheckKind, HealthSettings, OnRemoved, OnUnhealthy};
pub(crate) use self::http::HttpConfig;
pub use self::http::{HttpSettings, ReuseName};
pub use self::listen::{ListenAddress, Scheme};
pub(crate) use self::proxy_protocol::ProxyProtocolConfig;
pub use self::proxy_protocol::{ProxyProtocolSettings, SendHeader};
pub use self::spares::SpareSettings;
pub(crate) use self::tls::ServerTls;
pub use self::tls::TlsSettings;

/// A `[[proxy]]` table of a configuration, every key but `backends` optional.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What it is called in logs and metrics. Default: its first address to listen on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Addresses to listen on; `https://` ones, in mode `http`, end TLS. Default `["127.0.0.1:8080"]`.
    pub listen: Vec<String>,
    /// What is understood of what is passed on: `opaque`, nothing, and a connection that has carried a client's byte is
    /// never given to another client, but spares are dialled ahead; `passthrough`, the same without spares; `http`, HTTP
    /// requests, which share connections. Default `opaque`.
    pub mode: Mode,
    /// Where clients are sent: addresses with a port. With `discovery`, where to begin; then they may be left out. In mode `http` a scheme may stand before: `h2c://`, HTTP/2 without
    /// TLS; `https://`, TLS, with HTTP/2 if the backend agrees, and behind it after `?`, joined by `&`: `name=`, the name
    /// its certificate must be valid for, if not the address; `ca=`, a PEM file with the only signers that are believed;
    /// `cert=` and `key=`, PEM files with the certificate that is shown to it; `protocol=http1` or `http2`.
    pub backends: Vec<String>,
    /// Which backend serves the next client: `round_robin`, one after the other; `random`; `least_connections`, the one
    /// with the fewest; `p2c`, the better of two chosen at random, by latency and load; `source_hash`, always the same for
    /// the same client; `first_healthy`, the first in order. Default `round_robin`.
    pub balance: BalanceName,
    /// Worker threads; zero is one for each core. Default 0.
    pub workers: usize,
    /// `on`, or `off` for a connection of its own for each client or request: the baseline of measurements. Default `on`.
    pub pool: PoolMode,
    /// The connections to each backend.
    pub connections: ConnectionSettings,
    /// Requests in mode `http`.
    pub http: HttpSettings,
    /// Connections that are dialled ahead.
    pub spares: SpareSettings,
    /// The certificate of `https://` listeners.
    pub tls: TlsSettings,
    /// Clients' connections.
    pub clients: ClientSettings,
    /// Which backends are well.
    pub health: HealthSettings,
    /// PROXY headers.
    pub proxy_protocol: ProxyProtocolSettings,
    /// The access log.
    pub access_log: AccessLogSettings,
    /// How long connections may go on after the proxy was told to end. Default `1m`.
    pub drain_timeout: Span,
    /// Where backends come from, besides those that are named.
    pub discovery: DiscoverySettings,
}

/// What is understood of what is passed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Nothing; spares are dialled ahead.
    #[default]
    Opaque,
    /// Nothing, and no spares.
    Passthrough,
    /// HTTP requests.
    Http,
}

impl Mode {
    /// Returns how it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Opaque => "opaque",
            Self::Passthrough => "passthrough",
            Self::Http => "http",
        }
    }
}

/// Which backend serves the next client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BalanceName {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The one with the fewest connections.
    LeastConnections,
    /// The better of two chosen at random.
    P2c,
    /// The same for the same client.
    SourceHash,
    /// The first in order.
    FirstHealthy,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: None,
            listen: vec!["127.0.0.1:8080".to_owned()],
            mode: Mode::default(),
            backends: Vec::new(),
            balance: BalanceName::default(),
            workers: 0,
            pool: PoolMode::default(),
            connections: ConnectionSettings::default(),
            http: HttpSettings::default(),
            spares: SpareSettings::default(),
            tls: TlsSettings::default(),
            clients: ClientSettings::default(),
            health: HealthSettings::default(),
            proxy_protocol: ProxyProtocolSettings::default(),
            access_log: AccessLogSettings::default(),
            drain_timeout: Span(Duration::from_secs(60)),
            discovery: DiscoverySettings::default(),
        }
    }
}

/// A valid configuration of one proxy. Made of [`Settings`] only.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    pub(crate) name: Box<str>,
    pub(crate) listen: Vec<ListenAddress>,
    pub(crate) mode: Mode,
    pub(crate) backends: Vec<BackendAddress>,
    pub(crate) balance: BalanceName,
    pub(crate) workers: usize,
    pub(crate) connections: ConnectionSettings,
    pub(crate) pool: forebay_core::Config,
    pub(crate) http: HttpConfig,
    pub(crate) spares: Option<SpareSettings>,
    pub(crate) tls: Option<ServerTls>,
    pub(crate) clients: ClientSettings,
    pub(crate) health: HealthConfig,
    pub(crate) proxy_protocol: ProxyProtocolConfig,
    pub(crate) access_log: Option<AccessLogConfig>,
    pub(crate) drain_timeout: Duration,
    pub(crate) discovery: Option<DiscoveryConfig>,
}

impl ProxyConfig {
    /// Makes a configuration. `cores` is how many there are.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be.
    pub fn new(settings: &Settings, cores: usize) -> Result<Self, SettingsError> {
        Self::on_machine(settings, cores, &[])
    }

    /// Makes a configuration, as [`ProxyConfig::new`] does, on a machine with these resolvers, which are asked when
    /// backends come from DNS and no server is named.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be.
    pub fn on_machine(
        settings: &Settings,
        cores: usize,
        resolvers: &[IpAddr],
    ) -> Result<Self, SettingsError> {
        let listen = listen::listen(&settings.listen, settings.mode)?;
        let tls = settings.tls.load(&listen)?;
        let backends = backend::backends(settings, &listen)?;
        if settings.workers > WORKERS_MAX {
            let problem = format!("{} is too many: 0 (one per core) to {WORKERS_MAX}", settings.workers);
            return Err(SettingsError { key: "workers".to_owned(), problem });
        }
        let workers = if settings.workers == 0 { cores.clamp(1, WORKERS_MAX) } else { settings.workers };
        let connections_max = settings.connections.connections_max;
        if settings.mode == Mode::Http && (connections_max as usize) < workers {
            let allowed = format!(
                "at least workers, {workers}, since each keeps connections of its own: raise it, or set workers"
            );
            return Err(wrong("connections.connections_max", connections_max, &allowed));
        }
        let name = settings.name.clone().unwrap_or_else(|| listen[0].to_string());
        if name.is_empty() || name.chars().any(char::is_control) {
            let problem = format!("`{name}` is no name: one line, not empty");
            return Err(SettingsError { key: "name".to_owned(), problem });
        }
        let spares = settings.spares.valid()?;
        let has_spares = settings.mode == Mode::Opaque && settings.pool == PoolMode::On;
        Ok(Self {
            name: name.into(),
            listen,
            mode: settings.mode,
            backends,
            balance: settings.balance,
            workers,
            connections: settings.connections,
            pool: settings.connections.pool(settings)?,
            http: settings.http.valid()?,
            spares: spares.filter(|_| has_spares),
            tls,
            clients: settings.clients.valid()?,
            health: settings.health.valid()?,
            proxy_protocol: settings.proxy_protocol.valid(settings.mode)?,
            access_log: settings.access_log.valid(),
            drain_timeout: settings.drain_timeout.0,
            discovery: settings.discovery.valid(resolvers)?,
        })
    }

    /// Returns what it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns where it will listen.
    pub fn listen(&self) -> &[ListenAddress] {
        &self.listen
    }

    /// Returns the backends that are named.
    pub fn backends(&self) -> &[BackendAddress] {
        &self.backends
    }

    /// Returns which backend serves the next client.
    pub const fn balance(&self) -> BalanceName {
        self.balance
    }

    /// Returns how spares are dialled, if any are.
    pub const fn spares(&self) -> Option<SpareSettings> {
        self.spares
    }

    /// Returns what is understood of what is passed on.
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns how many workers there will be.
    pub const fn workers(&self) -> usize {
        self.workers
    }

    /// Returns how long connections may go on after the proxy was told to end.
    pub const fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }
}

/// Says that a key has a value that cannot be.
fn wrong(key: &str, value: impl fmt::Display, allowed: &str) -> SettingsError {
    SettingsError { key: key.to_owned(), problem: format!("is {value}; it must be {allowed}") }
}

/// More threads than this have no use on any machine.
const WORKERS_MAX: usize = 256;

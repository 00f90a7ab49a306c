//! The configuration file: TOML in, a valid [`Config`] out, and for everything wrong its line.
//!
//! Reading goes in three steps, and each reports all that it finds before the next begins: what is no TOML, then
//! unknown keys and values of the wrong kind, then values that are impossible or do not fit each other.

mod problems;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use clap::ValueEnum;
use forebay_dns::{DnsConfig, RouteSettings, Settings, SettingsError};
use forebay_proxy::{HealthSettings, HttpSettings, ProxyConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::problems::{Index, check_keys};
pub use self::problems::{Problem, Problems};

/// What a person writes in a configuration file. Every table and every key is optional.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    /// The DNS forwarder; it runs if the table is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<Settings>,
    /// The proxies; each runs. Default `[]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy: Vec<forebay_proxy::Settings>,
    /// The admin endpoint of the process.
    pub admin: AdminSettings,
    /// What is logged, and how.
    pub log: LogSettings,
}

/// The `[admin]` table: where figures and health are asked for over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdminSettings {
    /// Where it listens: an address with a port, or `none`. Beyond loopback only with a `token`. Default
    /// `127.0.0.1:9053`; should that be taken and not have been asked for by name, the server runs without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<AdminListen>,
    /// What a client must send as `Authorization: Bearer …`; 16 characters or more. Default: none, and nothing to
    /// send. The environment's `FOREBAY_ADMIN_TOKEN` stands in for a missing one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}

/// The `[log]` table: what is written to the standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// The least important level that is written: `error`, `warn`, `info`, `debug` or `trace`. Default `info`.
    pub level: LogLevel,
    /// How a line looks: `text` for people, `json` for programs. Default `text`.
    pub format: LogFormat,
}

/// How important a line of the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Something failed.
    Error,
    /// Something is wrong, and service goes on.
    Warn,
    /// What runs, and when it ends.
    #[default]
    Info,
    /// Every connection made, failed or closed.
    Debug,
    /// Everything.
    Trace,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the admin endpoint listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// Nowhere.
    None,
    /// At this address.
    At(SocketAddr),
}

impl FromStr for AdminListen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        if let Some(port) = text.strip_prefix(':').and_then(|port| port.parse().ok()) {
            return Ok(Self::At(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), port)));
        }
        text.parse().map(Self::At).map_err(|_| {
            format!("`{text}` is not an address with a port, like 127.0.0.1:9053 or [::1]:9053, nor `none`")
        })
    }
}

impl fmt::Display for AdminListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl<'de> Deserialize<'de> for AdminListen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for AdminListen {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a configuration takes from the machine it runs on.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// Its own resolvers, for when no upstream is named.
    pub resolvers: Vec<IpAddr>,
    /// Why there are none, when there are none.
    pub resolvers_trouble: String,
    /// How many cores the process may run on.
    pub cores: usize,
    /// The token of the environment, for when the configuration has none.
    pub token: Option<String>,
}

impl Machine {
    /// Makes a configuration of the DNS server on this machine.
    ///
    /// # Errors
    ///
    /// The first key whose value cannot be.
    pub fn dns(&self, settings: &Settings) -> Result<DnsConfig, SettingsError> {
        DnsConfig::new(settings, &self.resolvers, self.cores).map_err(|error| {
            if error.key == "upstreams" && settings.upstreams.is_empty() && self.resolvers.is_empty() {
                let trouble = &self.resolvers_trouble;
                let problem = format!("none named, and {trouble}: give one, like udp://192.0.2.53");
                return SettingsError { problem, ..error };
            }
            error
        })
    }
}

/// A valid configuration of a process.
#[derive(Clone, Debug)]
pub struct Config {
    /// The DNS forwarder, if it runs.
    pub dns: Option<DnsConfig>,
    /// The proxies that run.
    pub proxies: Vec<ProxyConfig>,
    /// The admin endpoint.
    pub admin: AdminConfig,
    /// The log.
    pub log: LogSettings,
}

/// A valid configuration of the admin endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminConfig {
    /// Where it listens; `None` is nowhere.
    pub listen: Option<SocketAddr>,
    /// Whether the address was asked for by name: then the process does not run without it.
    pub is_explicit: bool,
    /// What a client must show.
    pub token: Option<String>,
}

impl AdminConfig {
    /// Where the endpoint listens unless told otherwise.
    pub const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9053);

    /// Makes a configuration of what was written. `token` stands in for a missing one.
    ///
    /// # Errors
    ///
    /// An address beyond loopback without a token, and a token too short to keep anybody out.
    pub fn new(settings: &AdminSettings, token: Option<&str>) -> Result<Self, SettingsError> {
        let wrong = |key: &str, problem: String| Err(SettingsError { key: key.to_owned(), problem });
        let token = settings.token.as_deref().or(token).map(str::to_owned);
        if token.as_ref().is_some_and(|token| token.len() < TOKEN_MIN) {
            return wrong("token", format!("is too short: {TOKEN_MIN} characters or more"));
        }
        if token.as_ref().is_some_and(|token| !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            return wrong(
                "token",
                "has a character that no HTTP header carries: visible ASCII only".to_owned(),
            );
        }
        let listen = match settings.listen {
            None => Some(Self::DEFAULT),
            Some(AdminListen::None) => None,
            Some(AdminListen::At(address)) => Some(address),
        };
        match listen {
            Some(address) if !address.ip().is_loopback() && token.is_none() => wrong(
                "listen",
                format!(
                    "{address} can be reached from other machines: set admin.token (or the environment's \
                     {TOKEN_VARIABLE}), or listen on loopback, like 127.0.0.1:{}",
                    address.port()
                ),
            ),
            _ => Ok(Self { listen, is_explicit: settings.listen.is_some(), token }),
        }
    }
}

/// The environment variable with the admin token.
pub const TOKEN_VARIABLE: &str = "FOREBAY_ADMIN_TOKEN";

/// Fewer characters can be guessed over a network.
const TOKEN_MIN: usize = 16;

impl File {
    /// Reads `text`, which stands in the file called `name`.
    ///
    /// # Errors
    ///
    /// Everything that is no TOML; or else every unknown key, and every value of the wrong kind.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problems> {
        let index = Index::new(name, text)?;
        check_keys(&index)?;
        toml::from_str(text).map_err(|error| index.problem(&error))
    }

    /// Makes a file in which every table and key is present, as a model of what there is.
    pub fn model() -> Self {
        Self {
            dns: Some(Settings { routes: vec![RouteSettings::default()], ..Settings::default() }),
            proxy: vec![forebay_proxy::Settings {
                name: Some(String::new()),
                http: HttpSettings { via: Some(String::new()), ..HttpSettings::default() },
                health: HealthSettings {
                    host: Some(String::new()),
                    name: Some(String::new()),
                    ..HealthSettings::default()
                },
                ..forebay_proxy::Settings::default()
            }],
            admin: AdminSettings {
                listen: Some(AdminListen::At(AdminConfig::DEFAULT)),
                token: Some(String::new()),
            },
            log: LogSettings::default(),
        }
    }
}

impl Config {
    /// Reads `text`, which stands in the file called `name`.
    ///
    /// # Errors
    ///
    /// Those of [`File::parse`], or else every value that is impossible.
    pub fn parse(name: &str, text: &str, machine: &Machine) -> Result<Self, Problems> {
        let file = File::parse(name, text)?;
        let index = Index::new(name, text)?;
        let mut problems = Vec::new();
        let mut take = |table: &str, error: SettingsError| problems.push(index.locate(table, &error));
        if file.dns.is_none() && file.proxy.is_empty() {
            let problem = "no server is configured: add a line [dns] or [[proxy]], and below it what differs from the \
                           default";
            take("", SettingsError { key: String::new(), problem: problem.to_owned() });
        }
        let dns = file.dns.as_ref().map(|settings| machine.dns(settings).map_err(|error| take("dns", error)));
        let mut proxies: Vec<ProxyConfig> = Vec::new();
        for (n, settings) in file.proxy.iter().enumerate() {
            let table = format!("proxy[{n}]");
            match ProxyConfig::on_machine(settings, machine.cores, &machine.resolvers) {
                Ok(config) if proxies.iter().any(|other| other.name() == config.name()) => {
                    let problem =
                        format!("`{}` is the name of another proxy: give each its own", config.name());
                    take(&table, SettingsError { key: "name".to_owned(), problem });
                }
                Ok(config) => proxies.push(config),
                Err(error) => take(&table, error),
            }
        }
        let admin = AdminConfig::new(&file.admin, machine.token.as_deref())
            .map_err(|error| take("admin", error))
            .ok();
        match (dns.transpose(), admin) {
            (Ok(dns), Some(admin)) if problems.is_empty() => Ok(Self { dns, proxies, admin, log: file.log }),
            _ => Err(index.problems(problems)),
        }
    }

    /// Says in one line what would run.
    pub fn summary(&self) -> String {
        let workers = |n| format!("{n} {}", if n == 1 { "worker" } else { "workers" });
        let mut parts = Vec::new();
        if let Some(dns) = &self.dns {
            let (listen, upstreams) = (listed(dns.listen()), listed(dns.upstreams()));
            parts.push(format!("dns on {listen} to {upstreams}, {}", workers(dns.workers())));
        }
        for proxy in &self.proxies {
            let (listen, backends) = (listed(proxy.listen()), listed(proxy.backends()));
            let mode = proxy.mode().as_str();
            parts.push(format!("proxy ({mode}) on {listen} to {backends}, {}", workers(proxy.workers())));
        }
        parts.push(format!(
            "admin {}",
            self.admin.listen.map_or("none".to_owned(), |address| address.to_string())
        ));
        parts.join("; ")
    }
}

/// Writes a list as people do.
pub(crate) fn listed<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;

//! `[proxy.health]`: which backends are well.

use std::path::PathBuf;
use std::time::Duration;

use forebay::dial::Roots;
use forebay::units::Span;
use forebay_proxy_core::roster::{Active, CheckConfig, EjectionConfig, RosterConfig};
use rustls::pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::{SettingsError, wrong};

/// The `[proxy.health]` table: which backends are well. Those that are not get clients only when all others have
/// failed, or when there are no others.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// How backends are checked: `none`; `tcp`, a connection is made and closed; `tls`, hands are shaken and the connection
    /// is closed with a goodbye, so that a Kubernetes API server does not log an error for each; `http`, a `GET` of `path`
    /// is answered with a status of `expect`; `https`, the same over TLS. `tcp` makes a server that speaks TLS log an
    /// error for each check: take `tls` there. Default `tcp`.
    pub check: CheckKind,
    /// What is asked for with `http` and `https`. Default `/`.
    pub path: String,
    /// The `Host` of such a request, and the name (SNI) in the handshake of `tls` and `https`. Default: the backend's
    /// address, and no name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// A PEM file with the only signers whose certificates `tls` and `https` believe. Without it those of this machine are
    /// believed if there is a `name`; without both, every certificate is, for then it is only asked whether a server is
    /// there. A backend that is named with `https://` is checked with its own `ca`, `name`, `cert` and `key` instead.
    /// Default: none.
    pub ca: PathBuf,
    /// The name that a certificate must be valid for, sent as SNI. Default: that of `host`, or the backend's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The statuses that are good: one, or a range like `200-399`. Default `["200-399"]`.
    pub expect: Vec<String>,
    /// The mean time between two checks of one backend; jittered by 20 %. A failed client or check asks for another one
    /// at once, a tenth of this time apart. Default `5s`.
    pub interval: Span,
    /// How long a check may take. Default `5s`.
    pub timeout: Span,
    /// Failed checks in a row that make a backend unhealthy. Default 2.
    pub fall: u32,
    /// Good checks in a row that make it healthy again. Default 1.
    pub rise: u32,
    /// What becomes of connections in use when checks find their backend unhealthy: `close` or `keep`. Default `close`.
    pub on_unhealthy: OnUnhealthy,
    /// What becomes of connections in use when their backend is taken off the list: `close` or `drain`, which lets them
    /// end by themselves. Default `close`.
    pub on_removed: OnRemoved,
    /// Failures in a row, met by clients, that eject a backend for a while: it accepts no connection, resets one before it
    /// has said a byte, or acknowledges nothing for `user_timeout`; 0 ejects nobody. Default 5.
    pub failures: u32,
    /// How long the first ejection lasts; the second in a row lasts twice as long, and so on. A good check ends it.
    /// Default `30s`.
    pub ejection: Span,
    /// How long an ejection lasts at most. Default `5m`.
    pub ejection_max: Span,
    /// How many of all backends may be ejected at once, in percent; one may always be, unless this is 0, and the last
    /// that is usable never is. Default 50.
    pub max_ejection_percent: u32,
    /// How long a backend that came or came back gets less than its share, rising from a tenth; not at the start, and
    /// not the only one. `0s` is off. Default `10s`.
    pub slow_start: Span,
}

/// How backends are checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckKind {
    /// Not at all.
    None,
    /// By a connection.
    #[default]
    Tcp,
    /// By a TLS handshake.
    Tls,
    /// By an HTTP request.
    Http,
    /// By an HTTP request over TLS.
    Https,
}

/// What becomes of connections in use when their backend is found unhealthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnhealthy {
    /// They are closed.
    #[default]
    Close,
    /// They stay.
    Keep,
}

/// What becomes of connections in use when their backend is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnRemoved {
    /// They are closed.
    #[default]
    Close,
    /// They end by themselves.
    Drain,
}

impl Default for HealthSettings {
    fn default() -> Self {
        let (checks, ejection) = (CheckConfig::default(), EjectionConfig::default());
        Self {
            check: CheckKind::default(),
            path: "/".to_owned(),
            host: None,
            ca: PathBuf::new(),
            name: None,
            expect: vec!["200-399".to_owned()],
            interval: Span(checks.interval),
            timeout: Span(checks.timeout),
            fall: checks.fall,
            rise: checks.rise,
            on_unhealthy: OnUnhealthy::default(),
            on_removed: OnRemoved::default(),
            failures: ejection.failures,
            ejection: Span(ejection.base),
            ejection_max: Span(ejection.max),
            max_ejection_percent: ejection.max_percent,
            slow_start: Span(RosterConfig::default().slow_start),
        }
    }
}

/// Valid settings of health.
#[derive(Clone, Debug)]
pub(crate) struct HealthConfig {
    pub(crate) kind: CheckKind,
    pub(crate) path: Box<str>,
    pub(crate) host: Option<Box<str>>,
    pub(crate) name: Option<ServerName<'static>>,
    /// Who may have signed certificates; `None`: nobody needs to have.
    pub(crate) roots: Option<Roots>,
    /// First and last of each range of good statuses.
    pub(crate) expect: Box<[(u16, u16)]>,
    pub(crate) timeout: Duration,
    pub(crate) roster: RosterConfig,
}

impl HealthSettings {
    pub(crate) fn valid(&self) -> Result<HealthConfig, SettingsError> {
        let is_visible = |byte: u8| byte.is_ascii_graphic();
        if !self.path.starts_with('/') || !self.path.bytes().all(is_visible) {
            return Err(wrong("health.path", &self.path, "a path like /readyz"));
        }
        let name = match &self.host {
            None => None,
            Some(host) if host.is_empty() || !host.bytes().all(is_visible) => {
                return Err(wrong("health.host", host, "a name, or a name with a port"));
            }
            Some(host) => {
                let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
                Some(ServerName::try_from(name.to_owned()).map_err(|_| {
                    wrong(
                        "health.host",
                        host,
                        "a name that TLS can be told, like api.example or api.example:6443",
                    )
                })?)
            }
        };
        let (name, roots) = self.trust(name)?;
        if self.expect.is_empty() {
            return Err(wrong("health.expect", "empty", "at least one status"));
        }
        let expect = self.expect.iter().map(|text| {
            range(text).ok_or_else(|| {
                wrong("health.expect", text, "a status from 100 to 599, or a range like 200-399")
            })
        });
        let checks = CheckConfig {
            interval: self.interval.0,
            timeout: self.timeout.0,
            fall: self.fall,
            rise: self.rise,
        };
        let roster = RosterConfig {
            checks: (self.check != CheckKind::None).then_some(checks),
            ejection: EjectionConfig {
                failures: self.failures,
                base: self.ejection.0,
                max: self.ejection_max.0,
                max_percent: self.max_ejection_percent,
            },
            slow_start: self.slow_start.0,
            on_unhealthy: match self.on_unhealthy {
                OnUnhealthy::Close => Active::Close,
                OnUnhealthy::Keep => Active::Keep,
            },
            on_removed: match self.on_removed {
                OnRemoved::Close => Active::Close,
                OnRemoved::Drain => Active::Keep,
            },
            allow_empty: false,
        };
        // Without checks their values do not matter to the roster, but what is written must be possible all the same.
        RosterConfig { checks: Some(checks), ..roster }
            .validate()
            .map_err(|error| wrong(error.field, error.value, error.allowed))?;
        Ok(HealthConfig {
            kind: self.check,
            path: self.path.as_str().into(),
            host: self.host.as_deref().map(Into::into),
            name,
            roots,
            expect: expect.collect::<Result<_, _>>()?,
            timeout: self.timeout.0,
            roster,
        })
    }

    /// Which name certificates must be valid for, and who may have signed them. `host` is the name of the requests.
    fn trust(
        &self,
        host: Option<ServerName<'static>>,
    ) -> Result<(Option<ServerName<'static>>, Option<Roots>), SettingsError> {
        let has_ca = !self.ca.as_os_str().is_empty();
        let key = if has_ca { "health.ca" } else { "health.name" };
        if (has_ca || self.name.is_some()) && !matches!(self.check, CheckKind::Tls | CheckKind::Https) {
            return Err(wrong(key, "set", "left out unless health.check is tls or https"));
        }
        let name = match &self.name {
            None => host,
            Some(name) => Some(
                ServerName::try_from(name.clone())
                    .map_err(|_| wrong("health.name", name, "a name of a server, like api.example"))?,
            ),
        };
        let roots = match (has_ca, &self.name) {
            (true, _) => Some(Roots::from_pem_file(&self.ca)),
            (false, Some(_)) => Some(Roots::native()),
            (false, None) => None,
        };
        let roots = roots.transpose().map_err(|error| {
            let problem = match has_ca {
                true => format!("{}: {error}; name a PEM file with certificates", self.ca.display()),
                false => format!("{error}; install them (Debian: ca-certificates), or set health.ca"),
            };
            SettingsError { key: key.to_owned(), problem }
        })?;
        Ok((name, roots))
    }
}

fn range(text: &str) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| text.parse().ok().filter(|status| (100..600).contains(status));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some((first, last))
}

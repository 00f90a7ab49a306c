//! `[proxy.connections]`: the connections to each backend.

use std::time::Duration;

use forebay::sys::TcpOptions;
use forebay::units::Span;
use forebay_core::{BackoffConfig, BreakerConfig, Config};
use serde::{Deserialize, Serialize};

use super::clients::{check_tcp, tcp};
use super::{Mode, PoolMode, Settings, SettingsError, wrong};

/// The `[proxy.connections]` table: the connections to each backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConnectionSettings {
    /// Connections to one backend at most, all workers together, spares included. Default 8192.
    pub connections_max: u32,
    /// Clients that may wait for a connection to one backend, per worker; one more is refused. Default 1024.
    pub waiters_max: u32,
    /// How long one backend is given to accept a connection; then the next is tried. A dead node must not eat the time
    /// that a client gives. Default `2s`.
    pub connect_timeout: Span,
    /// How long a client waits for a connection to any backend, however many are tried. Default `10s`.
    pub connect_budget: Span,
    /// A backend that has not acknowledged what was sent to it for so long is given up (`TCP_USER_TIMEOUT`). Default
    /// `30s`.
    pub user_timeout: Span,
    /// A backend that is silent is asked after so long whether it is still there, then three times, a third of this time
    /// apart. Default `15s`.
    pub keepalive: Span,
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            waiters_max: 1024,
            connect_timeout: Span(Duration::from_secs(2)),
            connect_budget: Span(Duration::from_secs(10)),
            user_timeout: Span(Duration::from_secs(30)),
            keepalive: Span(Duration::from_secs(15)),
        }
    }
}

/// The longest pause before a backend is dialled again: one that is back is used within a second.
const PAUSE_MAX: Duration = Duration::from_millis(800);

impl ConnectionSettings {
    /// Makes the policy of one backend's pool.
    pub(super) fn pool(&self, settings: &Settings) -> Result<Config, SettingsError> {
        if self.connect_timeout.0 > self.connect_budget.0 {
            let allowed = format!("at least connect_timeout, {}", self.connect_timeout);
            return Err(wrong("connections.connect_budget", self.connect_budget, &allowed));
        }
        check_tcp("connections", self.user_timeout, self.keepalive)?;
        let opaque = settings.mode != Mode::Http;
        let config = Config {
            connections_max: self.connections_max,
            idle_max: self.connections_max,
            waiters_max: self.waiters_max,
            dial_timeout: self.connect_timeout.0,
            dials_max: 256,
            // A connection that has carried a client's byte is never given to another.
            uses_max: (opaque || settings.pool == PoolMode::Off).then_some(1),
            age_max: Some(match opaque {
                true => settings.spares.age_max.0,
                false => settings.http.backend_age_max.0,
            }),
            // Spares that are wanted no more; connections that wait for a request.
            idle_timeout: Some(match opaque {
                true => settings.spares.linger.0,
                false => settings.http.backend_idle_timeout.0,
            }),
            backoff: BackoffConfig { base: Duration::from_millis(20), max: PAUSE_MAX },
            // Who is well and who is not is judged over all workers.
            breaker: BreakerConfig { failures: 0, ..BreakerConfig::default() },
            ..Config::default()
        };
        config.validate().map_err(|error| {
            let key = match error.field {
                "dial_timeout" => "connections.connect_timeout".to_owned(),
                "age_max" if opaque => "spares.age_max".to_owned(),
                "age_max" => "http.backend_age_max".to_owned(),
                "idle_timeout" if opaque => "spares.linger".to_owned(),
                "idle_timeout" => "http.backend_idle_timeout".to_owned(),
                field => format!("connections.{field}"),
            };
            wrong(&key, error.value, error.allowed)
        })?;
        Ok(config)
    }

    /// Returns the options of a socket to a backend.
    pub(crate) fn tcp(&self) -> TcpOptions {
        tcp(self.user_timeout, self.keepalive)
    }
}

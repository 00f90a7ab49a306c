//! `[proxy.clients]`: clients' connections.

use std::time::Duration;

use forebay::sys::{Keepalive, TcpOptions};
use forebay::units::Span;
use serde::{Deserialize, Serialize};

use super::{SettingsError, wrong};

/// The `[proxy.clients]` table: clients' connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// Connections at most, all workers together; then no more are accepted until one ends, and those that have waited
    /// for a second are refused. Default 8192.
    pub connections_max: u32,
    /// Connections of one client address (of one /64 network, for IPv6) at most; one more is refused at once. Default
    /// 8192: behind another proxy all come from one address.
    pub connections_per_client: u32,
    /// A connection on which nothing has moved for so long is closed. Watches of a Kubernetes API server are silent for
    /// minutes. Default `1h`.
    pub idle_timeout: Span,
    /// A client that has not acknowledged what was sent to it for so long is given up (`TCP_USER_TIMEOUT`). Default
    /// `30s`.
    pub user_timeout: Span,
    /// A client that is silent is asked after so long whether it is still there, then three times, a third of this time
    /// apart. Default `15s`.
    pub keepalive: Span,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connections_max: 8192,
            connections_per_client: 8192,
            idle_timeout: Span(Duration::from_secs(3600)),
            user_timeout: Span(Duration::from_secs(30)),
            keepalive: Span(Duration::from_secs(15)),
        }
    }
}

impl ClientSettings {
    pub(super) fn valid(self) -> Result<Self, SettingsError> {
        for (key, value) in [
            ("clients.connections_max", self.connections_max),
            ("clients.connections_per_client", self.connections_per_client),
        ] {
            if value == 0 {
                return Err(wrong(key, value, "at least 1"));
            }
        }
        if self.idle_timeout.0 < Duration::from_millis(100) {
            return Err(wrong("clients.idle_timeout", self.idle_timeout, "at least 100ms"));
        }
        check_tcp("clients", self.user_timeout, self.keepalive)?;
        Ok(self)
    }

    /// Returns the options of a client's socket.
    pub(crate) fn tcp(&self) -> TcpOptions {
        tcp(self.user_timeout, self.keepalive)
    }
}

/// Checks times that the kernel is told.
pub(super) fn check_tcp(table: &str, user_timeout: Span, keepalive: Span) -> Result<(), SettingsError> {
    for (key, value, low) in [("user_timeout", user_timeout, 100), ("keepalive", keepalive, 3000)] {
        let (low, high) = (Duration::from_millis(low), Duration::from_secs(32_767));
        if value.0 < low || value.0 > high {
            let allowed = format!("{} to {}", Span(low), Span(high));
            return Err(wrong(&format!("{table}.{key}"), value, &allowed));
        }
    }
    Ok(())
}

/// Returns the options of a socket.
pub(super) fn tcp(user_timeout: Span, keepalive: Span) -> TcpOptions {
    TcpOptions {
        user_timeout: Some(user_timeout.0),
        keepalive: Some(Keepalive { time: keepalive.0, interval: keepalive.0 / 3, probes: 3 }),
        ..TcpOptions::default()
    }
}

//! `[dns.clients]`: clients' streams.

use std::time::Duration;

use forebay::units::Span;
use serde::{Deserialize, Serialize};

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

impl Default for ClientSettings {
    fn default() -> Self {
        Self { connections_max: 4096, queries_max: 256, idle_timeout: Span(Duration::from_secs(10)) }
    }
}

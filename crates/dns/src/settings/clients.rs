//! `[dns.clients]`: clients' connections.

use std::time::Duration;

use forebay::units::Span;
use serde::{Deserialize, Serialize};

/// The `[dns.clients]` table: clients' connections, over TCP, TLS and HTTPS alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientSettings {
    /// Connections at most, all workers together; one more is closed at once. Default 4096.
    pub connections_max: u32,
    /// Connections of one client address (of one /64 network, for IPv6) at most; one more is closed at once: a quarter
    /// of all, so that nobody can take every place alone. Default 1024.
    pub connections_per_client: u32,
    /// Queries in flight on one connection; more wait unread in the socket. Default 256.
    pub queries_max: u32,
    /// A connection is closed when it has neither asked nor taken anything for so long. Clients that ask are told
    /// (RFC 7828). Default `10s`.
    pub idle_timeout: Span,
    /// TLS handshakes under way at once, per worker; one more connection is closed at once. Default 512.
    pub handshakes_max: u32,
    /// How long a TLS handshake may take; then the connection is closed. Default `5s`.
    pub handshake_timeout: Span,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_client: 1024,
            queries_max: 256,
            idle_timeout: Span(Duration::from_secs(10)),
            handshakes_max: 512,
            handshake_timeout: Span(Duration::from_secs(5)),
        }
    }
}

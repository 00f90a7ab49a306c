//! `[dns.udp]` and `[dns.stream]`: the connections to each endpoint.

use std::time::Duration;

use forebay::units::Span;
use forebay_core::{BackoffConfig, BreakerConfig, Config, IdleOrder, Overflow};
use serde::{Deserialize, Serialize};

use super::{PoolMode, Settings};

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
    /// What happens to a query when all sockets are full: `wait` in line, `temporary` for a socket of its own beyond
    /// `connections_max`, used once, or `reject`, which is SERVFAIL at once. Default `wait`.
    pub overflow: OverflowName,
    /// Temporary sockets at most, all workers together; with `overflow = "temporary"` alone. Default 0.
    pub temporary_max: u32,
}

/// How `overflow` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OverflowName {
    /// Wait in line.
    #[default]
    Wait,
    /// A connection beyond the pool's size, used once.
    Temporary,
    /// Refuse at once.
    Reject,
}

impl From<OverflowName> for Overflow {
    fn from(name: OverflowName) -> Self {
        match name {
            OverflowName::Wait => Self::Wait,
            OverflowName::Temporary => Self::Temporary,
            OverflowName::Reject => Self::Reject,
        }
    }
}

/// The `[dns.stream]` table: TCP, TLS and HTTPS connections to one upstream address.
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
    /// How long a connection may take to be made, its TLS handshake included; never more than half of `query_timeout`,
    /// so that time is left to ask another. Default `2s`.
    pub dial_timeout: Span,
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
            overflow: OverflowName::default(),
            temporary_max: 0,
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

/// A breaker for DNS: names whose own servers are dead time out at a healthy upstream too, so that it takes many
/// failures in a row, and a short pause, to say something of the upstream.
const BREAKER: BreakerConfig =
    BreakerConfig { failures: 32, open_base: Duration::from_millis(200), open_max: PAUSE_MAX };
/// An upstream that is back is used again within a second, however long it was gone; until then, one query or dial
/// in each pause finds out.
const PAUSE_MAX: Duration = Duration::from_millis(800);

pub(super) fn udp_pool(settings: &Settings) -> Config {
    let udp = &settings.udp;
    let base = Config {
        connections_max: udp.connections_max,
        idle_max: udp.connections_max,
        capacity: udp.capacity,
        order: IdleOrder::Random,
        dials_max: udp.connections_max.max(1),
        idle_timeout: Some(udp.idle_timeout.0),
        backoff: BackoffConfig { base: Duration::from_millis(20), max: PAUSE_MAX },
        breaker: BREAKER,
        ..Config::default()
    };
    match settings.pool {
        PoolMode::On => Config {
            connections_min: udp.connections_min,
            age_max: Some(udp.age_max.0),
            uses_max: Some(udp.uses_max),
            overflow: udp.overflow.into(),
            temporary_max: udp.temporary_max,
            ..base
        },
        PoolMode::Off => Config { capacity: 1, uses_max: Some(1), ..base },
    }
}

pub(super) fn stream_pool(settings: &Settings) -> Config {
    let stream = &settings.stream;
    let base = Config {
        connections_max: stream.connections_max,
        idle_max: stream.connections_max,
        capacity: stream.capacity,
        // The other half is for another endpoint, should this one take a connection and never answer.
        dial_timeout: stream.dial_timeout.0.min(settings.query_timeout.0 / 2),
        idle_timeout: Some(stream.idle_timeout.0),
        backoff: BackoffConfig { base: Duration::from_millis(50), max: PAUSE_MAX },
        breaker: BREAKER,
        ..Config::default()
    };
    match settings.pool {
        PoolMode::On => Config { connections_min: stream.connections_min, ..base },
        PoolMode::Off => Config { capacity: 1, uses_max: Some(1), ..base },
    }
}

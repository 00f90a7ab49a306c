//! What the settings of all servers have in common.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

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

/// Whether connections to upstreams are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Kept, shared, rotated.
    #[default]
    On,
    /// One for each request.
    Off,
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

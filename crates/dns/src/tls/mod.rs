//! Keys and trust: what listeners answer a handshake with, and whom connections to upstreams believe.

mod trust;

use std::fmt;
use std::sync::Arc;

use forebay::tls::{ALPN_HTTP, Certificates, server_config};
use rustls::ServerConfig;

pub(crate) use self::trust::Trust;

/// The name of DNS over TLS in ALPN (RFC 7858; registered with IANA as `dot`).
const ALPN_DOT: &[u8] = b"dot";

/// What the listeners of a server answer a handshake with; shared by all workers, so that a session begun on one is
/// resumed on another.
#[derive(Clone)]
pub(crate) struct ServerConfigs {
    /// For `tls://`.
    pub(crate) dot: Arc<ServerConfig>,
    /// For `https://`.
    pub(crate) https: Arc<ServerConfig>,
}

impl ServerConfigs {
    pub(crate) fn new(certificates: &Arc<Certificates>) -> Result<Self, rustls::Error> {
        Ok(Self {
            dot: server_config(certificates, &[ALPN_DOT])?,
            https: server_config(certificates, &ALPN_HTTP)?,
        })
    }
}

impl fmt::Debug for ServerConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerConfigs")
    }
}

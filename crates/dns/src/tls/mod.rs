//! Keys and trust: the certificate that clients see, and whom connections to upstreams believe.

mod certificates;
mod trust;
mod validity;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use rustls::ServerConfig;

pub(crate) use self::certificates::{Certificates, watch};
pub(crate) use self::trust::{Trust, remedy};

/// The name of DNS over TLS in ALPN (RFC 7858; registered with IANA as `dot`).
const ALPN_DOT: &[u8] = b"dot";

/// The names of HTTP/2 and HTTP/1.1 in ALPN (RFC 7540 §3.3, RFC 7301 §6).
pub(crate) const ALPN_HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

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
        let config = |alpn: &[&[u8]]| {
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            // TLS 1.2 and 1.3, nothing older (RFC 8996).
            let mut config = ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_cert_resolver(Arc::clone(certificates) as _);
            config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
            // Sessions are resumed by tickets, which cost the server no memory. Their keys change every six hours.
            config.ticketer = rustls::crypto::ring::Ticketer::new()?;
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        Ok(Self { dot: config(&[ALPN_DOT])?, https: config(&ALPN_HTTP)? })
    }
}

impl fmt::Debug for ServerConfigs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerConfigs")
    }
}

//! Keys and trust: the certificate that clients see, and what to do when a handshake fails.
//!
//! Trust in upstreams is told with their endpoints: [`crate::dial::Roots`].

mod certificates;
mod validity;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::{CertificateError, ServerConfig};

pub use self::certificates::{Certificates, Fault, watch};

/// The names of HTTP/2 and HTTP/1.1 in ALPN (RFC 9113 §3.2, RFC 7301 §6), the better first.
pub const ALPN_HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Makes what a listener answers handshakes with: TLS 1.2 and 1.3, these protocols by ALPN (RFC 7301; none: it is not
/// used), sessions resumed by tickets. Share one among workers, so that a session begun on one is resumed on another.
///
/// # Errors
///
/// When there are no random numbers for the keys of tickets.
pub fn server_config(
    certificates: &Arc<Certificates>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // TLS 1.2 and 1.3, nothing older (RFC 8996).
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(certificates) as _);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    // Sessions are resumed by tickets, which cost the server no memory. Their keys change every six hours.
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// What a person can do about a handshake with an upstream that failed. Names the settings `?name=` and `?ca=` that
/// addresses of upstreams have.
#[must_use]
pub fn remedy(error: &rustls::Error) -> &'static str {
    use CertificateError as Certificate;
    match error {
        rustls::Error::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        ) => "say with ?name= for which name its certificate is, or ask another server",
        rustls::Error::InvalidCertificate(Certificate::Expired | Certificate::ExpiredContext { .. }) => {
            "its operator must renew the certificate; if it is this machine's clock, set it"
        }
        rustls::Error::InvalidCertificate(
            Certificate::NotValidYet | Certificate::NotValidYetContext { .. },
        ) => "look at the clocks of both machines",
        rustls::Error::InvalidCertificate(Certificate::UnknownIssuer | Certificate::BadSignature) => {
            "if it is signed by your own authority, name that with ?ca=/path/ca.pem"
        }
        rustls::Error::NoApplicationProtocol => {
            "it speaks TLS there, but not the protocol that is wanted over it: look at the port"
        }
        rustls::Error::InvalidMessage(_) => "it does not speak TLS there: look at the port",
        _ => "look at the upstream's log",
    }
}

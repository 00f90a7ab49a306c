//! Whom connections to upstreams believe.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use forebay::dial::{ClientConfigs, Roots};
use forebay::tls::ALPN_HTTP;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::ALPN_DOT;
use crate::settings::{Transport, UpstreamAddress};

/// What a handshake with each encrypted upstream needs. Shared by all workers, and with it the remembered sessions:
/// connections to the same name under the same trust resume each other's.
#[derive(Clone, Default)]
pub(crate) struct Trust {
    upstreams: HashMap<UpstreamAddress, TlsTarget>,
}

/// What a handshake with one upstream needs.
#[derive(Clone)]
pub(crate) struct TlsTarget {
    /// Whom it believes, and which sessions it remembers.
    pub(crate) config: Arc<ClientConfig>,
    /// The name that the certificate must be valid for.
    pub(crate) name: ServerName<'static>,
}

impl Trust {
    /// Reads the certificates that these upstreams name, and those of the machine if one of them needs them.
    ///
    /// # Errors
    ///
    /// The first upstream that could never be believed, and why.
    pub(crate) fn new<'a>(upstreams: impl Iterator<Item = &'a UpstreamAddress>) -> Result<Self, String> {
        let configs = ClientConfigs::default();
        let mut files: HashMap<Option<PathBuf>, Roots> = HashMap::new();
        let mut trust = Self::default();
        for upstream in upstreams {
            let alpn: Vec<Vec<u8>> = match upstream.transport {
                Transport::Udp | Transport::Tcp => continue,
                Transport::Tls => vec![ALPN_DOT.to_vec()],
                Transport::Https => vec![ALPN_HTTP[0].to_vec()],
            };
            let roots = match files.get(&upstream.ca) {
                Some(roots) => roots.clone(),
                None => {
                    let roots = roots(upstream).map_err(|problem| format!("`{upstream}`: {problem}"))?;
                    files.insert(upstream.ca.clone(), roots.clone());
                    roots
                }
            };
            let config = configs.config(&roots, &alpn).map_err(|error| format!("`{upstream}`: {error}"))?;
            let name = upstream.server_name().map_err(|problem| format!("`{upstream}`: {problem}"))?;
            trust.upstreams.insert(upstream.clone(), TlsTarget { config, name });
        }
        Ok(trust)
    }

    /// Returns what a handshake with this upstream needs; `None` if it is not encrypted.
    pub(crate) fn target(&self, upstream: &UpstreamAddress) -> Option<&TlsTarget> {
        self.upstreams.get(upstream)
    }
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Trust({} upstreams)", self.upstreams.len())
    }
}

fn roots(upstream: &UpstreamAddress) -> Result<Roots, String> {
    match &upstream.ca {
        Some(path) => Roots::from_pem_file(path).map_err(|error| {
            let place = path.display();
            match error.kind() {
                std::io::ErrorKind::NotFound => format!("ca: there is no file {place}"),
                // The file's name stands in the error already, but not if it cannot be read.
                _ => {
                    format!("ca: {place}: {error}; it must be a PEM file with the certificate of its signer")
                }
            }
        }),
        None => Roots::native().map_err(|error| {
            format!("{error}; install them (Debian: ca-certificates), or name a file: ?ca=/path/ca.pem")
        }),
    }
}

//! Where clients are sent.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::{ListenAddress, Settings, SettingsError};

/// A backend: an address and everything that shapes a connection to it. Compared in full (never by a hash alone).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BackendAddress {
    /// The address.
    pub address: SocketAddr,
}

impl From<SocketAddr> for BackendAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address }
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            None => text,
            Some(("tcp" | "http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
            Some((scheme, _)) => {
                return Err(format!("unknown scheme `{scheme}://`: use tcp:// or http://, or none"));
            }
        };
        let address: SocketAddr = rest.parse().map_err(|_| {
            format!("`{text}` is not an address with a port, like 192.0.2.1:8443 or [2001:db8::1]:8443")
        })?;
        if address.port() == 0 {
            return Err(format!("`{text}`: port 0 cannot be a backend's"));
        }
        Ok(Self { address })
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

pub(super) fn backends(
    settings: &Settings,
    listen: &[ListenAddress],
) -> Result<Vec<BackendAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "backends".to_owned(), problem };
    if settings.backends.is_empty() && !settings.discovery.is_on() {
        return Err(wrong("none named: give one, like \"192.0.2.1:8443\", or set discovery".to_owned()));
    }
    let mut found: Vec<BackendAddress> = Vec::new();
    for text in &settings.backends {
        let backend: BackendAddress = text.parse().map_err(wrong)?;
        if listen.iter().any(|own| own.is_reached_by(backend.address)) {
            return Err(wrong(format!("`{text}` is where this proxy listens: it would send to itself")));
        }
        if found.contains(&backend) {
            return Err(wrong(format!("`{text}` is there twice")));
        }
        found.push(backend);
    }
    Ok(found)
}

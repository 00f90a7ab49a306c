//! What is asked for.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use tokio_rustls::rustls::pki_types::ServerName;

/// An `http` or `https` URL (RFC 9110 §4.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    /// Without brackets.
    host: String,
    port: u16,
    /// With the query, and at least `/`.
    path: String,
}

/// Why a text is no URL that load can be put on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url}: {remedy}")]
pub struct UrlError {
    url: String,
    remedy: &'static str,
}

impl Url {
    pub(super) fn is_tls(&self) -> bool {
        self.is_tls
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// What `Host` says: the port only where it is not the scheme's own.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == default_port(self.is_tls) { host } else { format!("{host}:{}", self.port) }
    }

    pub(super) fn server_name(&self) -> ServerName<'static> {
        ServerName::try_from(self.host.clone()).expect("a host that was read as a name or an address")
    }

    pub(super) fn resolve(&self) -> io::Result<SocketAddr> {
        let mut addresses = (self.host.as_str(), self.port).to_socket_addrs()?;
        addresses.next().ok_or_else(|| io::Error::other("it resolves to nothing"))
    }
}

const fn default_port(is_tls: bool) -> u16 {
    if is_tls { 443 } else { 80 }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}{}", self.authority(), self.path)
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let wrong = |remedy| UrlError { url: text.to_owned(), remedy };
        let (is_tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => return Err(wrong("write http://HOST[:PORT][/PATH] or https://…")),
        };
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, "/"),
        };
        if authority.contains('@') || text.contains('#') {
            return Err(wrong("neither a user nor a fragment is sent to a server: leave it out"));
        }
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong("encode spaces and what is not ASCII as %XX"));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let port_of = |port: &str| port.parse().ok().filter(|port| *port > 0);
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(|| wrong("an IPv6 address ends with ]"))?;
            (
                host,
                after
                    .strip_prefix(':')
                    .map(port_of)
                    .or_else(|| after.is_empty().then_some(Some(0)))
                    .flatten(),
            )
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, port_of(port)),
                None => (authority, Some(0)),
            }
        };
        let port = match port.ok_or_else(|| wrong("a port is a number from 1 to 65535"))? {
            0 => default_port(is_tls),
            port => port,
        };
        if host.parse::<IpAddr>().is_err() && ServerName::try_from(host.to_owned()).is_err() {
            return Err(wrong("the host is neither a name nor an address"));
        }
        Ok(Self { is_tls, host: host.to_owned(), port, path })
    }
}

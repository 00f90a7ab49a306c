//! Where calls go: an origin as people write it, and the endpoints behind it.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Uri;
use http::uri::{Authority, Scheme};

/// A server by its URL: `http://HOST[:PORT]` or `https://HOST[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    pub(super) scheme: Scheme,
    pub(super) authority: Authority,
}

impl Origin {
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{url:?}: {why}; write http://HOST:PORT or https://HOST:PORT");
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let parts = full.parse::<Uri>().map_err(|error| wrong(&error.to_string()))?.into_parts();
        let scheme = parts.scheme.filter(|scheme| *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS);
        let scheme = scheme.ok_or_else(|| wrong("not a scheme of gRPC"))?;
        let authority = parts.authority.ok_or_else(|| wrong("no host"))?;
        if authority.host().is_empty() || authority.as_str().contains('@') {
            return Err(wrong("no host, or more than a host"));
        }
        let has_port = authority.as_str().len() > authority.host().len();
        if has_port && authority.port_u16().is_none_or(|port| port == 0) {
            return Err(wrong("not a port"));
        }
        if parts.path_and_query.is_some_and(|path| path != "/") {
            return Err(wrong("a path, which gRPC has no use for"));
        }
        Ok(Self { scheme, authority })
    }

    pub(super) fn is_secure(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }

    /// Returns the host without brackets.
    pub(super) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    pub(super) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.is_secure() { 443 } else { 80 })
    }

    /// Returns the address, if the host is one.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.host().parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, self.port()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// One address of a server: the endpoint of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub(super) address: SocketAddr,
    pub(super) origin: Arc<Origin>,
}

impl Peer {
    /// Returns the address.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.origin.address() {
            Some(_) => self.origin.fmt(f),
            None => write!(f, "{} at {}", self.origin, self.address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read_as_people_write_them() {
        for (text, host, port, secure) in [
            ("http://127.0.0.1:50051", "127.0.0.1", 50051, false),
            ("127.0.0.1:50051", "127.0.0.1", 50051, false),
            ("https://greet.example", "greet.example", 443, true),
            ("http://[::1]:7/", "::1", 7, false),
            ("localhost:1", "localhost", 1, false),
        ] {
            let origin = Origin::parse(text).unwrap();
            assert_eq!((origin.host(), origin.port(), origin.is_secure()), (host, port, secure), "{text}");
        }
        assert!(Origin::parse("http://[::1]:7").unwrap().address().is_some());
        assert!(Origin::parse("http://greet.example").unwrap().address().is_none());
    }

    #[test]
    fn what_is_no_origin_says_what_would_be_one() {
        for text in [
            "",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://u@a",
            "http://a:0",
            "http://a:",
            "a b",
            "http://a:99999",
        ] {
            let error = Origin::parse(text).unwrap_err();
            assert!(error.contains("http://HOST:PORT") && error.contains(&format!("{text:?}")), "{error}");
        }
    }
}

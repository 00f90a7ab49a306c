//! Where queries go: addresses as they are written, and as they are used.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Settings, SettingsError};

/// Over what an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams; what is truncated goes over TCP.
    Udp,
    /// TCP, many queries at once.
    Tcp,
}

/// An upstream endpoint: an address and how it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddress {
    /// How.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Udp, text),
            Some(("udp", rest)) => (Transport::Udp, rest),
            Some(("tcp", rest)) => (Transport::Tcp, rest),
            Some((scheme, _)) => return Err(format!("unknown scheme `{scheme}://`: use udp:// or tcp://")),
        };
        let address = parse_address(rest, 53).ok_or_else(|| {
            format!("`{rest}` is not an address like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53")
        })?;
        if address.port() == 0 {
            return Err("port 0 cannot be an upstream's".to_owned());
        }
        Ok(Self { transport, address })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        write!(f, "{scheme}://{}", self.address)
    }
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

pub(super) fn upstreams(
    settings: &Settings,
    system: &[IpAddr],
    listen: &[SocketAddr],
) -> Result<Vec<UpstreamAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "upstreams".to_owned(), problem };
    let mut found = Vec::new();
    if settings.upstreams.is_empty() {
        let own =
            system.iter().map(|ip| SocketAddr::new(*ip, 53)).filter(|address| !listen.contains(address));
        found.extend(own.map(|address| UpstreamAddress { transport: Transport::Udp, address }));
        if found.is_empty() {
            return Err(wrong(
                "none named, and this machine's resolv.conf names none: give one, like udp://192.0.2.53"
                    .to_owned(),
            ));
        }
    }
    for text in &settings.upstreams {
        let upstream: UpstreamAddress =
            text.parse().map_err(|problem| wrong(format!("`{text}`: {problem}")))?;
        if listen.iter().any(|address| is_same_socket(*address, upstream.address)) {
            return Err(wrong(format!("`{text}` is this server itself: queries would go round for ever")));
        }
        found.push(upstream);
    }
    Ok(found)
}

/// Whether queries to `upstream` would come to `listen` again.
fn is_same_socket(listen: SocketAddr, upstream: SocketAddr) -> bool {
    let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    listen.port() == upstream.port()
        && (listen.ip() == upstream.ip()
            || everywhere.contains(&listen.ip()) && upstream.ip().is_loopback()
            || listen.ip().is_loopback() && everywhere.contains(&upstream.ip()))
}

//! Where queries go: addresses as they are written, and as they are used.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use rustls::pki_types::ServerName;

use super::{ListenAddress, Settings, SettingsError, parse_address};

/// Where DNS over HTTPS is asked unless told otherwise.
pub(super) const PATH_DEFAULT: &str = "/dns-query";

/// Over what an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Datagrams; what is truncated goes over TCP.
    Udp,
    /// TCP, many queries at once.
    Tcp,
    /// DNS over TLS (RFC 7858), many queries at once.
    Tls,
    /// DNS over HTTPS (RFC 8484), over HTTP/2.
    Https,
}

impl Transport {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Tls, Self::Https];

    /// Returns how it is written before `://`, and in labels of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }

    /// Returns the port that is meant when none is given.
    pub const fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            // RFC 7858 §3.1.
            Self::Tls => 853,
            Self::Https => 443,
        }
    }

    /// Whether nobody on the way can read what goes over it.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }
}

/// The machine that an upstream is on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// By its address.
    Ip(IpAddr),
    /// By its name, lower case, without a dot at its end.
    Name(String),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip @ IpAddr::V4(_)) => ip.fmt(f),
            Self::Ip(ip @ IpAddr::V6(_)) => write!(f, "[{ip}]"),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// An upstream endpoint: an address and everything that shapes a connection to it. Compared in full.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamAddress {
    /// How it is spoken to.
    pub transport: Transport,
    /// On which machine.
    pub host: Host,
    /// On which port.
    pub port: u16,
    /// The path that is asked over HTTPS; empty for all others.
    pub path: String,
    /// The name or address that its certificate must be valid for; `None` is that of the host.
    pub name: Option<String>,
    /// The file with the certificates that may have signed its own; `None` is those that this machine trusts.
    pub ca: Option<PathBuf>,
    /// The addresses of a host that is given by name; empty if it has to be asked for.
    pub bootstrap: Vec<IpAddr>,
}

impl UpstreamAddress {
    /// Returns an upstream spoken to over UDP, or TCP, at this address.
    pub fn plain(transport: Transport, address: SocketAddr) -> Self {
        let (host, port) = (Host::Ip(address.ip()), address.port());
        Self { transport, host, port, path: String::new(), name: None, ca: None, bootstrap: Vec::new() }
    }

    /// Returns the addresses that are known without asking for them.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let own = match self.host {
            Host::Ip(ip) => Some(ip),
            Host::Name(_) => None,
        };
        own.into_iter().chain(self.bootstrap.iter().copied()).map(|ip| SocketAddr::new(ip, self.port))
    }

    /// Returns the name that its certificate must be valid for.
    pub(crate) fn server_name(&self) -> Result<ServerName<'static>, String> {
        let name = match (&self.name, &self.host) {
            (Some(name), _) | (None, Host::Name(name)) => name,
            (None, Host::Ip(ip)) => return Ok(ServerName::from(*ip)),
        };
        ServerName::try_from(name.clone()).map_err(|_| {
            format!("`{name}` is no name that a certificate can have: give one like name=dns.example")
        })
    }

    fn take(&mut self, key: &str, value: String) -> Result<(), String> {
        match key {
            "name" if self.transport.is_encrypted() => {
                self.name = Some(value.trim_end_matches('.').to_ascii_lowercase());
            }
            "ca" if self.transport.is_encrypted() && !value.is_empty() => self.ca = Some(value.into()),
            "bootstrap" if matches!(self.host, Host::Name(_)) => {
                let one = |text: &str| {
                    text.parse().map_err(|_| {
                        format!("bootstrap: `{text}` is not an IP address like 192.0.2.1 or 2001:db8::1")
                    })
                };
                self.bootstrap = value.split(',').map(one).collect::<Result<_, _>>()?;
            }
            "name" | "ca" if !self.transport.is_encrypted() => {
                return Err(format!("`{key}` is of no use without encryption: tls:// and https:// take it"));
            }
            "ca" => return Err("`ca` is empty: give the path of a PEM file".to_owned()),
            "bootstrap" => return Err("`bootstrap` is of no use: the host is an address already".to_owned()),
            _ => {
                return Err(format!("unknown parameter `{key}`: name=, ca= and bootstrap= are known"));
            }
        }
        Ok(())
    }
}

impl FromStr for UpstreamAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Udp, text),
            Some((word, rest)) => {
                let known = Transport::ALL.into_iter().find(|transport| transport.as_str() == word);
                let unknown =
                    || format!("unknown scheme `{word}://`: use udp://, tcp://, tls:// or https://");
                (known.ok_or_else(unknown)?, rest)
            }
        };
        // RFC 8484 §4.1.1 writes `{?dns}` behind the path: a template, of which the rest is clear.
        let rest = rest.strip_suffix("{?dns}").unwrap_or(rest);
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match place.find('/') {
            Some(at) if transport == Transport::Https => place.split_at(at),
            _ => (place, if transport == Transport::Https { PATH_DEFAULT } else { "" }),
        };
        if transport == Transport::Https {
            check_path(path)?;
        }
        let (host, port) = parse_host(authority, transport)?;
        if port == 0 {
            return Err("port 0 cannot be an upstream's".to_owned());
        }
        let path = path.to_owned();
        let mut upstream = Self { transport, host, port, path, name: None, ca: None, bootstrap: Vec::new() };
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            upstream.take(key, decode(value)?)?;
        }
        if transport.is_encrypted() {
            upstream.server_name()?;
        }
        Ok(upstream)
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}{}", self.transport.as_str(), self.host, self.port, self.path)?;
        let mut mark = '?';
        let mut parameter = |key: &str, value: &str| {
            write!(f, "{mark}{key}={}", encode(value))?;
            mark = '&';
            Ok(())
        };
        if let Some(name) = &self.name {
            parameter("name", name)?;
        }
        if let Some(ca) = &self.ca {
            parameter("ca", &ca.to_string_lossy())?;
        }
        if !self.bootstrap.is_empty() {
            let all: Vec<String> = self.bootstrap.iter().map(ToString::to_string).collect();
            parameter("bootstrap", &all.join(","))?;
        }
        Ok(())
    }
}

/// Reads `host`, `host:port`, `v6`, `[v6]` or `[v6]:port`.
fn parse_host(text: &str, transport: Transport) -> Result<(Host, u16), String> {
    if let Some(address) = parse_address(text, transport.port()) {
        return Ok((Host::Ip(address.ip()), address.port()));
    }
    let not_one = || format!("`{text}` is not an address like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53");
    if !transport.is_encrypted() {
        return Err(not_one());
    }
    let (name, port) = match text.split_once(':') {
        None => (text, transport.port()),
        Some((name, port)) => {
            (name, port.parse().map_err(|_| format!("`{port}` is no port: it must be 1 to 65535"))?)
        }
    };
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    match ServerName::try_from(name.as_str()) {
        Ok(ServerName::DnsName(_)) => Ok((Host::Name(name), port)),
        _ => Err(format!("`{text}` is neither an address like 192.0.2.1:853 nor a name like dns.example")),
    }
}

/// Says what is wrong with the path of a URL (RFC 3986 §3.3).
pub(super) fn check_path(path: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_graphic() && !b"?#\"<>\\^`{|}".contains(&byte);
    match path.starts_with('/') && path.bytes().all(fits) {
        true => Ok(()),
        false => Err(format!("`{path}` is not the path of a URL, like {PATH_DEFAULT}")),
    }
}

/// Writes a parameter's value so that it ends where it should (RFC 3986 §2.1).
fn encode(value: &str) -> String {
    let mut text = String::new();
    for byte in value.bytes() {
        match byte {
            b'%' | b'&' | b'{' | b'}' => write!(text, "%{byte:02X}").unwrap_or_default(),
            byte if byte.is_ascii_graphic() => text.push(byte.into()),
            byte => write!(text, "%{byte:02X}").unwrap_or_default(),
        }
    }
    text
}

fn decode(value: &str) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut rest = value.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let (byte, after) = match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (Some(high), Some(low)) = (digit(*high), digit(*low)) else {
                    return Err(format!("`{value}`: `%` must be followed by two hexadecimal digits"));
                };
                ((high * 16 + low) as u8, after)
            }
            (b'%', _) => return Err(format!("`{value}`: `%` must be followed by two hexadecimal digits")),
            other => other,
        };
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| format!("`{value}` is not UTF-8"))
}

pub(super) fn upstreams(
    settings: &Settings,
    system: &[IpAddr],
    listen: &[ListenAddress],
) -> Result<Vec<UpstreamAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "upstreams".to_owned(), problem };
    let mut found = Vec::new();
    if settings.upstreams.is_empty() {
        let is_own = |address: &SocketAddr| listen.iter().any(|own| own.address == *address);
        let others = system.iter().map(|ip| SocketAddr::new(*ip, 53)).filter(|address| !is_own(address));
        found.extend(others.map(|address| UpstreamAddress::plain(Transport::Udp, address)));
        if found.is_empty() {
            return Err(wrong(
                "none named, and this machine's resolv.conf names none: give one, like udp://192.0.2.53"
                    .to_owned(),
            ));
        }
    }
    for text in &settings.upstreams {
        found.push(other(text, listen).map_err(wrong)?);
    }
    Ok(found)
}

/// Reads an upstream, which must be another server than this one.
pub(super) fn other(text: &str, listen: &[ListenAddress]) -> Result<UpstreamAddress, String> {
    let upstream: UpstreamAddress = text.parse().map_err(|problem| format!("`{text}`: {problem}"))?;
    let is_own = |there| listen.iter().any(|here| is_same_socket(here.address, there));
    if upstream.addresses().any(is_own) {
        return Err(format!("`{text}` is this server itself: queries would go round for ever"));
    }
    Ok(upstream)
}

/// Whether queries to `upstream` would come to `listen` again.
pub(super) fn is_same_socket(listen: SocketAddr, upstream: SocketAddr) -> bool {
    let everywhere = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    listen.port() == upstream.port()
        && (listen.ip() == upstream.ip()
            || everywhere.contains(&listen.ip()) && upstream.ip().is_loopback()
            || listen.ip().is_loopback() && everywhere.contains(&upstream.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<UpstreamAddress, String> {
        text.parse()
    }

    #[test]
    fn an_address_comes_out_as_it_went_in() {
        for (text, shown) in [
            ("192.0.2.1", "udp://192.0.2.1:53"),
            ("tcp://[2001:db8::1]", "tcp://[2001:db8::1]:53"),
            ("tls://192.0.2.1", "tls://192.0.2.1:853"),
            ("tls://2001:db8::1?name=DNS.Example.", "tls://[2001:db8::1]:853?name=dns.example"),
            (
                "tls://192.0.2.1:8853?ca=/etc/my%20ca%26.pem&name=a.b",
                "tls://192.0.2.1:8853?name=a.b&ca=/etc/my%20ca%26.pem",
            ),
            ("https://192.0.2.1", "https://192.0.2.1:443/dns-query"),
            ("https://Dns.Example/q/x{?dns}", "https://dns.example:443/q/x"),
            (
                "https://dns.example:8443?bootstrap=192.0.2.1,2001:db8::1",
                "https://dns.example:8443/dns-query?bootstrap=192.0.2.1,2001:db8::1",
            ),
        ] {
            let one = read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(one.to_string(), shown);
            assert_eq!(read(shown).unwrap(), one, "{shown}");
        }
    }

    #[test]
    fn everything_that_shapes_a_connection_tells_endpoints_apart() {
        let all = [
            "tls://192.0.2.1",
            "tls://192.0.2.1:854",
            "tls://192.0.2.1?name=a.example",
            "tls://192.0.2.1?name=b.example",
            "tls://192.0.2.1?ca=/a.pem",
            "tls://192.0.2.1?ca=/b.pem",
            "https://192.0.2.1",
            "https://192.0.2.1/other",
        ];
        for (i, one) in all.iter().enumerate() {
            for other in &all[..i] {
                assert_ne!(read(one).unwrap(), read(other).unwrap());
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_remedy() {
        for (text, part) in [
            ("quic://192.0.2.1", "quic"),
            ("resolver.example", "resolver.example"),
            ("udp://resolver.example:53", "resolver.example"),
            ("tls://-bad-.example", "neither an address"),
            ("tls://dns.example:none", "`none` is no port"),
            ("tls://192.0.2.1:0", "port 0"),
            ("tls://192.0.2.1?nom=x", "unknown parameter `nom`"),
            ("tls://192.0.2.1?name=not a name", "no name that a certificate can have"),
            ("tls://192.0.2.1?ca=", "`ca` is empty"),
            ("tls://192.0.2.1?ca=%zz", "hexadecimal"),
            ("tls://192.0.2.1?bootstrap=192.0.2.2", "already"),
            ("tls://dns.example?bootstrap=nowhere", "`nowhere` is not an IP address"),
            ("tcp://192.0.2.1?name=dns.example", "without encryption"),
            ("https://192.0.2.1/a b", "path"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_certificate_must_be_for_the_name_or_the_host() {
        let name = |text: &str| read(text).unwrap().server_name().unwrap().to_str().into_owned();
        assert_eq!(name("tls://192.0.2.1"), "192.0.2.1");
        assert_eq!(name("tls://192.0.2.1?name=dns.example"), "dns.example");
        assert_eq!(name("https://dns.example/"), "dns.example");
        assert_eq!(name("https://dns.example/?name=other.example"), "other.example");
    }
}

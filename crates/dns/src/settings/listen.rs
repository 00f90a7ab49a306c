//! Where clients are listened to: addresses as they are written, and as they are used.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use super::address::check_path;
use super::{SettingsError, parse_address};

/// What a listener speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// UDP and TCP on the same port: what a bare address means.
    Both,
    /// UDP alone.
    Udp,
    /// TCP alone.
    Tcp,
    /// DNS over TLS (RFC 7858).
    Tls,
    /// DNS over HTTPS (RFC 8484).
    Https,
}

impl Scheme {
    /// Every value.
    pub const ALL: [Self; 5] = [Self::Both, Self::Udp, Self::Tcp, Self::Tls, Self::Https];

    /// Returns how it is written before `://`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Both => "udp+tcp",
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }

    /// Returns the port that is meant when none is given.
    pub const fn port(self) -> u16 {
        match self {
            Self::Both | Self::Udp | Self::Tcp => 53,
            // RFC 7858 §3.1.
            Self::Tls => 853,
            Self::Https => 443,
        }
    }

    /// Whether it takes datagrams.
    pub const fn has_udp(self) -> bool {
        matches!(self, Self::Both | Self::Udp)
    }

    /// Whether it takes streams.
    pub const fn has_tcp(self) -> bool {
        !matches!(self, Self::Udp)
    }

    /// Whether it needs a certificate.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }
}

/// An address to listen on, and what is spoken there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ListenAddress {
    /// What.
    pub scheme: Scheme,
    /// Where; port 0 is any that is free.
    pub address: SocketAddr,
    /// The path that is asked over HTTPS; empty for all others.
    pub path: String,
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Both, text),
            Some((word, rest)) => {
                let known = Scheme::ALL.into_iter().find(|scheme| scheme.as_str() == word);
                let unknown = || {
                    format!("unknown scheme `{word}://`: use udp+tcp://, udp://, tcp://, tls:// or https://")
                };
                (known.ok_or_else(unknown)?, rest)
            }
        };
        let (address, path) = match rest.find('/') {
            Some(at) if scheme == Scheme::Https => (&rest[..at], &rest[at..]),
            _ => (rest, if scheme == Scheme::Https { super::address::PATH_DEFAULT } else { "" }),
        };
        if scheme == Scheme::Https {
            check_path(path)?;
        }
        let address = parse_address(address, scheme.port()).ok_or_else(|| {
            format!("`{address}` is not an address like 127.0.0.1:5300, [::1]:5300 or :{}", scheme.port())
        })?;
        Ok(Self { scheme, address, path: path.to_owned() })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Both => self.address.fmt(f),
            scheme => write!(f, "{}://{}{}", scheme.as_str(), self.address, self.path),
        }
    }
}

/// Reads the list, and sees to it that no two want the same socket.
pub(super) fn listen(texts: &[String]) -> Result<Vec<ListenAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "listen".to_owned(), problem };
    let mut all: Vec<ListenAddress> = Vec::new();
    for text in texts {
        let one: ListenAddress =
            text.parse().map_err(|problem: String| match problem.starts_with(&format!("`{text}`")) {
                true => wrong(problem),
                false => wrong(format!("`{text}`: {problem}")),
            })?;
        let collides = |other: &&ListenAddress| {
            let (a, b) = (other.scheme, one.scheme);
            other.address == one.address && (a.has_udp() && b.has_udp() || a.has_tcp() && b.has_tcp())
        };
        if one.address.port() != 0
            && let Some(other) = all.iter().find(collides)
        {
            return Err(wrong(match other == &one {
                true => format!("{one} is listed twice"),
                false => format!("{one} wants the same port as {other}: give one of them another"),
            }));
        }
        all.push(one);
    }
    if all.is_empty() {
        return Err(wrong("is empty: name at least one address, like \"127.0.0.1:5300\"".to_owned()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ListenAddress, String> {
        text.parse()
    }

    #[test]
    fn each_scheme_has_its_port_and_comes_out_as_it_went_in() {
        for (text, shown) in [
            ("127.0.0.1", "127.0.0.1:53"),
            ("udp+tcp://[::1]:5300", "[::1]:5300"),
            (":5300", "0.0.0.0:5300"),
            ("udp://192.0.2.1", "udp://192.0.2.1:53"),
            ("tcp://:54", "tcp://0.0.0.0:54"),
            ("tls://::1", "tls://[::1]:853"),
            ("https://127.0.0.1", "https://127.0.0.1:443/dns-query"),
            ("https://:8443/a/b", "https://0.0.0.0:8443/a/b"),
        ] {
            let one = read(text).unwrap();
            assert_eq!(one.to_string(), shown);
            assert_eq!(read(shown).unwrap(), one, "{shown}");
        }
        for (text, part) in [
            ("quic://127.0.0.1", "quic"),
            ("tls://nowhere", "nowhere"),
            ("https://127.0.0.1/a b", "path"),
            ("tls://127.0.0.1/path", "127.0.0.1/path"),
        ] {
            assert!(read(text).unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn two_that_want_one_socket_are_refused_and_others_are_not() {
        let all = |texts: &[&str]| listen(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        for pair in [
            ["127.0.0.1:53", "udp://127.0.0.1:53"],
            ["127.0.0.1:53", "127.0.0.1"],
            ["tls://127.0.0.1:53", "tcp://127.0.0.1:53"],
            ["tls://127.0.0.1:443", "https://127.0.0.1/other"],
        ] {
            assert!(all(&pair).unwrap_err().problem.contains("127.0.0.1"), "{pair:?}");
        }
        assert!(all(&["udp://127.0.0.1:53", "tls://127.0.0.1:53", "127.0.0.2:53"]).is_ok());
        assert!(all(&["127.0.0.1:0", "tls://127.0.0.1:0"]).is_ok());
    }
}

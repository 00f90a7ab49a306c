//! `[proxy.proxy_protocol]`: who a connection comes from, told by the proxy before this one and to the one behind it.

use std::net::IpAddr;
use std::time::Duration;

use forebay::units::Span;
use forebay_proxy_core::proxy_header::Version;
use serde::{Deserialize, Serialize};

use super::{Mode, SettingsError, wrong};

/// The `[proxy.proxy_protocol]` table: PROXY headers, versions 1 and 2.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyProtocolSettings {
    /// Whether each client's connection must begin with a header; one that does not is refused. Default `false`.
    pub accept: bool,
    /// Who may send headers: addresses and networks, like `192.0.2.0/24`. Clients from elsewhere are refused. Default:
    /// this machine.
    pub trusted: Vec<String>,
    /// How long a header may take to come. Default `5s`.
    pub timeout: Span,
    /// Whether connections to backends begin with a header: `off`, `v1` or `v2`. Not with mode `http`, where connections
    /// are shared by clients. Default `off`.
    pub send: SendHeader,
}

/// Which header connections to backends begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SendHeader {
    /// None.
    #[default]
    Off,
    /// A line of text.
    V1,
    /// A binary one.
    V2,
}

impl Default for ProxyProtocolSettings {
    fn default() -> Self {
        Self {
            accept: false,
            trusted: vec!["127.0.0.0/8".to_owned(), "::1".to_owned()],
            timeout: Span(Duration::from_secs(5)),
            send: SendHeader::default(),
        }
    }
}

/// Valid settings of PROXY headers.
#[derive(Clone, Debug)]
pub(crate) struct ProxyProtocolConfig {
    /// `None`: headers are not looked for.
    pub(crate) accept: Option<AcceptConfig>,
    pub(crate) send: Option<Version>,
}

/// How headers are taken.
#[derive(Clone, Debug)]
pub(crate) struct AcceptConfig {
    trusted: Box<[Network]>,
    pub(crate) timeout: Duration,
}

impl AcceptConfig {
    /// Whether this address may say who others are.
    pub(crate) fn trusts(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.trusted.iter().any(|network| network.contains(peer))
    }
}

impl ProxyProtocolSettings {
    pub(crate) fn valid(&self, mode: Mode) -> Result<ProxyProtocolConfig, SettingsError> {
        let trusted = self
            .trusted
            .iter()
            .map(|text| {
                Network::parse(text).ok_or_else(|| {
                    wrong(
                        "proxy_protocol.trusted",
                        text,
                        "an address or a network, like 192.0.2.7 or 192.0.2.0/24",
                    )
                })
            })
            .collect::<Result<Box<[_]>, _>>()?;
        if self.accept && trusted.is_empty() {
            return Err(wrong("proxy_protocol.trusted", "empty", "at least one, or every client is refused"));
        }
        if self.timeout.0.is_zero() {
            return Err(wrong("proxy_protocol.timeout", self.timeout, "more than zero"));
        }
        let send = match self.send {
            SendHeader::Off => None,
            SendHeader::V1 => Some(Version::V1),
            SendHeader::V2 => Some(Version::V2),
        };
        if send.is_some() && mode == Mode::Http {
            let allowed =
                "off with mode http: connections are shared by clients, and requests say who they are from";
            return Err(wrong("proxy_protocol.send", "on", allowed));
        }
        let accept = self.accept.then_some(AcceptConfig { trusted, timeout: self.timeout.0 });
        Ok(ProxyProtocolConfig { accept, send })
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Network {
    first: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let first: IpAddr = address.parse().ok()?;
        let most = if first.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
        (bits <= most).then_some(Self { first, bits })
    }

    fn contains(&self, address: IpAddr) -> bool {
        let differ = match (self.first, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => return false,
        };
        differ >= self.bits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_the_addresses_that_begin_like_it() {
        for (network, inside, outside) in [
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("192.0.2.0/24", "192.0.2.255", "192.0.3.0"),
            ("0.0.0.0/0", "255.255.255.255", "::1"),
            ("2001:db8::/33", "2001:db8:7fff::1", "2001:db8:8000::1"),
            ("::1", "::1", "::2"),
        ] {
            let parsed = Network::parse(network).unwrap();
            assert!(parsed.contains(inside.parse().unwrap()), "{network}");
            assert!(!parsed.contains(outside.parse().unwrap()), "{network}");
        }
        for text in ["", "x", "192.0.2.0/33", "::/129", "192.0.2.0/", "192.0.2.0/-1", "192.0.2/24"] {
            assert_eq!(Network::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_mapped_address_is_the_one_that_it_maps() {
        let config = ProxyProtocolSettings { accept: true, ..ProxyProtocolSettings::default() };
        let accept = config.valid(Mode::Opaque).unwrap().accept.unwrap();
        assert!(accept.trusts("::ffff:127.0.0.1".parse().unwrap()));
        assert!(!accept.trusts("::ffff:192.0.2.1".parse().unwrap()));
    }
}

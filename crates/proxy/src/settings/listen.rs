//! Where clients come.

use std::fmt;
use std::net::SocketAddr;

use forebay::settings::parse_address;

use super::{Mode, SettingsError};

/// What is spoken at an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scheme {
    /// TCP, and what the mode makes of it.
    #[default]
    Plain,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// Whether clients must shake hands first.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Https)
    }
}

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenAddress {
    /// What is spoken there.
    pub scheme: Scheme,
    /// The address; with port 0, any port that is free.
    pub address: SocketAddr,
}

impl ListenAddress {
    /// Whether who connects to `address` comes here, as far as can be said.
    pub(crate) fn is_reached_by(&self, address: SocketAddr) -> bool {
        let own = self.address;
        own.port() != 0
            && own.port() == address.port()
            && (own.ip() == address.ip() || own.ip().is_unspecified() && address.ip().is_loopback())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scheme {
            Scheme::Plain => self.address.fmt(f),
            Scheme::Https => write!(f, "https://{}", self.address),
        }
    }
}

/// The port that is meant when none is given.
const PORT: u16 = 8080;

pub(super) fn listen(texts: &[String], mode: Mode) -> Result<Vec<ListenAddress>, SettingsError> {
    let wrong = |problem: String| SettingsError { key: "listen".to_owned(), problem };
    if texts.is_empty() {
        return Err(wrong("is empty: name an address, like 127.0.0.1:8080".to_owned()));
    }
    let mut found: Vec<ListenAddress> = Vec::new();
    for text in texts {
        let (scheme, rest) = match text.split_once("://") {
            None => (Scheme::Plain, text.as_str()),
            Some(("tcp" | "http", rest)) => (Scheme::Plain, rest),
            Some(("https", rest)) => (Scheme::Https, rest),
            Some((scheme, _)) => {
                return Err(wrong(format!(
                    "unknown scheme `{scheme}://`: use tcp://, http:// or https://, or none"
                )));
            }
        };
        if scheme.is_encrypted() && mode != Mode::Http {
            return Err(wrong(format!(
                "`{text}` ends TLS, and mode {} passes on bytes as they are: set mode = \"http\", or leave the scheme \
                 out",
                mode.as_str()
            )));
        }
        let address = parse_address(rest, PORT).ok_or_else(|| {
            wrong(format!("`{text}` is not an address like 127.0.0.1:8080, [::1]:8080 or :8080"))
        })?;
        let one = ListenAddress { scheme, address };
        if address.port() != 0 && found.iter().any(|other| other.address == address) {
            return Err(wrong(format!("`{text}` is there twice")));
        }
        found.push(one);
    }
    Ok(found)
}

//! Where clients are sent.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use forebay::dial::{Identity, Roots};
use rustls::pki_types::ServerName;

use super::{ListenAddress, Mode, Settings, SettingsError};

/// A backend: an address and everything that shapes a connection to it. Compared in full (never by a hash alone), the
/// certificates and the key that its files had in them included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendAddress {
    /// The address.
    pub address: SocketAddr,
    /// What is spoken there.
    pub protocol: Protocol,
    /// What a handshake there needs; `None` without encryption.
    pub tls: Option<Arc<BackendTls>>,
}

/// What is spoken to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// HTTP/1.1, or bytes that nobody looks at.
    #[default]
    Plain,
    /// HTTP/2, without asking first.
    Http2,
    /// HTTP/2 if the backend agrees to it by ALPN, else HTTP/1.1.
    Best,
}

/// What a handshake with a backend needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    /// The name that its certificate must be valid for; sent as SNI unless it is an address (RFC 6066 §3).
    pub name: ServerName<'static>,
    /// Who may have signed its certificate.
    pub roots: Roots,
    /// The certificate that it is shown if it asks for one.
    pub identity: Option<Identity>,
    /// How it is written: what follows the address.
    text: Box<str>,
}

impl From<SocketAddr> for BackendAddress {
    fn from(address: SocketAddr) -> Self {
        Self { address, protocol: Protocol::Plain, tls: None }
    }
}

/// By what tells most backends apart: what is equal is found by comparing all of it.
impl Hash for BackendAddress {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address.hash(state);
        self.protocol.hash(state);
        self.tls.as_ref().map(|tls| &tls.text).hash(state);
    }
}

impl BackendAddress {
    /// Returns the same backend at another address: what shapes connections stays as it is. A certificate that had to be
    /// valid for the old address has to be for the new one.
    pub fn at(&self, address: SocketAddr) -> Self {
        let mut moved = Self { address, ..self.clone() };
        if let Some(tls) = &mut moved.tls
            && matches!(tls.name, ServerName::IpAddress(_))
        {
            *tls =
                Arc::new(BackendTls { name: ServerName::IpAddress(address.ip().into()), ..(**tls).clone() });
        }
        moved
    }

    /// Reads it; `trust` keeps what was read of files.
    fn read(text: &str, trust: &mut Trust) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("tcp", text));
        let (place, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place.strip_suffix('/').unwrap_or(place);
        let protocol = match scheme {
            "tcp" | "http" => Protocol::Plain,
            "h2c" => Protocol::Http2,
            "https" => Protocol::Best,
            _ => {
                return Err(format!(
                    "unknown scheme `{scheme}://`: use tcp://, http://, h2c:// or https://, or none"
                ));
            }
        };
        let address: SocketAddr = place.parse().map_err(|_| {
            format!("`{text}` is not an address with a port, like 192.0.2.1:8443 or [2001:db8::1]:8443")
        })?;
        if address.port() == 0 {
            return Err(format!("`{text}`: port 0 cannot be a backend's"));
        }
        let mut backend = Self { address, protocol, tls: None };
        let mut parts = Parameters::default();
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let place = match key {
                "name" => &mut parts.name,
                "ca" => &mut parts.ca,
                "cert" => &mut parts.cert,
                "key" => &mut parts.key,
                "protocol" => &mut parts.protocol,
                _ => {
                    return Err(format!(
                        "`{text}`: unknown parameter `{key}`: use name, ca, cert, key or protocol"
                    ));
                }
            };
            if value.is_empty() {
                return Err(format!("`{text}`: {key} has no value"));
            }
            *place = Some(value);
        }
        if scheme == "https" {
            let tls =
                parts.tls(address, parameters, trust).map_err(|problem| format!("`{text}`: {problem}"))?;
            backend.tls = Some(Arc::new(tls));
            match parts.protocol {
                None => {}
                Some("http1") => backend.protocol = Protocol::Plain,
                Some("http2") => backend.protocol = Protocol::Http2,
                Some(other) => {
                    return Err(format!(
                        "`{text}`: protocol is `{other}`: http1 or http2, or none for what ALPN says"
                    ));
                }
            }
        } else if let Some((key, _)) = parameters.split_once('=') {
            return Err(format!("`{text}`: {key} is for https:// only"));
        }
        Ok(backend)
    }
}

/// What follows the address.
#[derive(Default)]
struct Parameters<'a> {
    name: Option<&'a str>,
    ca: Option<&'a str>,
    cert: Option<&'a str>,
    key: Option<&'a str>,
    protocol: Option<&'a str>,
}

impl Parameters<'_> {
    fn tls(&self, address: SocketAddr, text: &str, trust: &mut Trust) -> Result<BackendTls, String> {
        let name = match self.name {
            None => ServerName::IpAddress(address.ip().into()),
            Some(name) => ServerName::try_from(name.to_owned())
                .map_err(|_| format!("name: `{name}` is no name of a server"))?,
        };
        let identity = match (self.cert, self.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let identity = Identity::from_pem_files(Path::new(cert), Path::new(key));
                Some(identity.map_err(|error| match error.kind() {
                    ErrorKind::NotFound => format!("cert, key: {error}: give the paths of PEM files"),
                    _ => format!("cert, key: {error}"),
                })?)
            }
            (Some(_), None) => return Err("cert is there, and key is not: give both".to_owned()),
            (None, Some(_)) => return Err("key is there, and cert is not: give both".to_owned()),
        };
        Ok(BackendTls { name, roots: trust.roots(self.ca)?, identity, text: text.into() })
    }
}

/// Whom backends are believed by: read once for all that name the same.
#[derive(Default)]
struct Trust(HashMap<Option<PathBuf>, Roots>);

impl Trust {
    fn roots(&mut self, ca: Option<&str>) -> Result<Roots, String> {
        let path = ca.map(PathBuf::from);
        if let Some(roots) = self.0.get(&path) {
            return Ok(roots.clone());
        }
        let roots = match &path {
            Some(path) => Roots::from_pem_file(path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => format!("ca: there is no file {}", path.display()),
                _ => format!(
                    "ca: {}: {error}; it must be a PEM file with the certificate of its signer",
                    path.display()
                ),
            }),
            None => Roots::native().map_err(|error| {
                format!("{error}; install them (Debian: ca-certificates), or name a file: ?ca=/path/ca.pem")
            }),
        }?;
        self.0.insert(path, roots.clone());
        Ok(roots)
    }
}

impl FromStr for BackendAddress {
    type Err = String;

    /// Reads it, and the files that it names.
    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, &mut Trust::default())
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.tls, self.protocol) {
            (Some(tls), _) => {
                write!(f, "https://{}", self.address)?;
                if tls.text.is_empty() { Ok(()) } else { write!(f, "?{}", tls.text) }
            }
            (None, Protocol::Http2) => write!(f, "h2c://{}", self.address),
            (None, _) => self.address.fmt(f),
        }
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
    let (mut found, mut trust): (Vec<BackendAddress>, _) = (Vec::new(), Trust::default());
    for text in &settings.backends {
        let backend = BackendAddress::read(text, &mut trust).map_err(wrong)?;
        if settings.mode != Mode::Http && backend.protocol != Protocol::Plain {
            return Err(wrong(format!(
                "`{text}` has to be spoken to, and mode {} passes on bytes as they are: set mode = \"http\", or leave \
                 the scheme out",
                settings.mode.as_str()
            )));
        }
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

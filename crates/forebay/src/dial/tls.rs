//! TLS over TCP, by rustls.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Route, SocketEndpoint, Tcp, Transport, step};
use crate::pool::{Connector, Dial, DialError};
use crate::stream::Stream;
use crate::sys::{self, StreamState, TcpOptions};

/// Combinations of roots, ALPN and identity of which TLS sessions are remembered. One is usual.
const CONFIGS_MAX: usize = 64;

/// Where a TLS connection goes, and all that shapes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsEndpoint {
    /// The addresses.
    pub socket: SocketEndpoint,
    /// The name that the certificate must be valid for; sent as SNI unless it is an address (RFC 6066 §3).
    pub name: ServerName<'static>,
    /// Who may have signed the certificate.
    pub roots: Roots,
    /// The protocols offered, the best first (RFC 7301); none: ALPN is not used.
    pub alpn: Vec<Vec<u8>>,
    /// The certificate shown to a server that asks for one; `None`: none is.
    pub identity: Option<Identity>,
}

impl fmt::Display for TlsEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} as {}", self.socket, self.name.to_str())
    }
}

/// Certificates that are trusted to sign others. Compared by their content.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Roots(Arc<[CertificateDer<'static>]>);

impl Roots {
    /// Reads those that this machine trusts. Takes milliseconds: do it once.
    ///
    /// # Errors
    ///
    /// When none can be read.
    pub fn native() -> io::Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        if found.certs.is_empty() {
            let why = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
            return Err(io::Error::other(format!("no certificates that this machine trusts: {why}")));
        }
        Ok(Self(found.certs.into()))
    }

    /// Reads those in a PEM file, and trusts no others.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or has no certificate in it.
    pub fn from_pem_file(path: &Path) -> io::Result<Self> {
        std::fs::read(path)
            .and_then(|pem| Self::from_pem(&pem))
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Reads those in a PEM text, and trusts no others.
    ///
    /// # Errors
    ///
    /// When it is no PEM, or has no certificate in it.
    pub fn from_pem(pem: &[u8]) -> io::Result<Self> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        if certificates.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it"));
        }
        Ok(Self(certificates.into()))
    }
}

/// A client's certificate, those between it and its root, and its key. Compared by their content, the key's included:
/// what a server lets one identity do is not another's.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity(Arc<IdentityParts>);

#[derive(PartialEq, Eq, Hash)]
struct IdentityParts {
    chain: Vec<CertificateDer<'static>>,
    /// The key as DER.
    key: Vec<u8>,
}

impl Identity {
    /// Reads a certificate and its key out of PEM files.
    ///
    /// # Errors
    ///
    /// When one cannot be read, has nothing of its kind in it, or the two do not belong together; the text names the file.
    pub fn from_pem_files(certificate: &Path, key: &Path) -> io::Result<Self> {
        let read = |path: &Path| {
            std::fs::read(path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        Self::from_pem(&read(certificate)?, &read(key)?).map_err(|error| {
            let files = format!("{} and {}", certificate.display(), key.display());
            io::Error::new(error.kind(), format!("{files}: {error}"))
        })
    }

    /// Reads a certificate and its key out of PEM texts, which may be one and the same.
    ///
    /// # Errors
    ///
    /// When one has nothing of its kind in it, or the two do not belong together.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> io::Result<Self> {
        let invalid = |error: String| io::Error::new(io::ErrorKind::InvalidData, error);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| invalid(error.to_string()))?;
        if chain.is_empty() {
            return Err(invalid("no certificate in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| invalid(format!("no key: {error}")))?;
        CertifiedKey::from_der(chain.clone(), key.clone_key(), &rustls::crypto::ring::default_provider())
            .map_err(|error| invalid(error.to_string()))?;
        Ok(Self(Arc::new(IdentityParts { chain, key: key.secret_der().to_vec() })))
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, rustls::Error> {
        PrivateKeyDer::try_from(self.0.key.clone()).map_err(|error| rustls::Error::General(error.to_owned()))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Nothing of a key stands in a log.
        write!(f, "Identity({} certificates)", self.0.chain.len())
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({} certificates)", self.0.len())
    }
}

/// Client configurations, one for each combination of roots, ALPN and identity: each remembers the sessions of all names
/// under it, so that connections which share one resume each other's, and no identity those of another.
#[derive(Debug, Default)]
pub struct ClientConfigs(Mutex<HashMap<Trust, Arc<ClientConfig>>>);

/// What a configuration depends on: roots, ALPN, identity.
type Trust = (Roots, Vec<Vec<u8>>, Option<Identity>);

impl ClientConfigs {
    /// Returns the configuration for these roots and these protocols, the best first (RFC 7301); without protocols,
    /// ALPN is not used. TLS 1.2 and 1.3, sessions resumed where the server allows it.
    ///
    /// # Errors
    ///
    /// When none of the roots can be used.
    pub fn config(&self, roots: &Roots, alpn: &[Vec<u8>]) -> Result<Arc<ClientConfig>, rustls::Error> {
        self.config_as(roots, alpn, None)
    }

    /// Returns the configuration for these roots, these protocols and this identity, as [`ClientConfigs::config`] does.
    ///
    /// # Errors
    ///
    /// When none of the roots can be used, or not the identity.
    pub fn config_as(
        &self,
        roots: &Roots,
        alpn: &[Vec<u8>],
        identity: Option<&Identity>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut configs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (roots.clone(), alpn.to_vec(), identity.cloned());
        if let Some(config) = configs.get(&key) {
            return Ok(Arc::clone(config));
        }
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(roots.0.iter().cloned());
        if added == 0 {
            return Err(rustls::Error::General("none of the trusted certificates can be used".to_owned()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(store);
        let mut config = match identity {
            Some(identity) => config.with_client_auth_cert(identity.0.chain.clone(), identity.key()?)?,
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.to_vec();
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        let config = Arc::new(config);
        configs.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

/// Connects TLS streams: TLS 1.2 and 1.3, sessions resumed where the server allows it.
#[derive(Debug, Default)]
pub struct Tls {
    tcp: Tcp,
    configs: ClientConfigs,
}

impl Tls {
    /// Makes a connector over TCP with these options.
    pub fn new(options: TcpOptions) -> Self {
        Self { tcp: Tcp::new(options), configs: ClientConfigs::default() }
    }

    /// Connects and shakes hands, as a pool's dial does, for a connection as a [`Stream`].
    ///
    /// # Errors
    ///
    /// A [`DialError`] that names the step that failed.
    pub async fn open(&self, endpoint: TlsEndpoint, timeout: Duration) -> Result<Stream, DialError> {
        let stream = self.shake_hands(endpoint, Instant::now() + timeout).await?;
        let (socket, connection) = stream.into_inner();
        Ok(Stream::encrypted(socket, connection))
    }

    /// Connects without shaking hands, with the same options.
    ///
    /// # Errors
    ///
    /// A [`DialError`] that names the step that failed.
    pub async fn open_plain(
        &self,
        endpoint: &SocketEndpoint,
        timeout: Duration,
    ) -> Result<Stream, DialError> {
        self.tcp.stream(endpoint, Instant::now() + timeout).await.map(Stream::plain)
    }

    async fn shake_hands(
        &self,
        endpoint: TlsEndpoint,
        deadline: Instant,
    ) -> Result<TlsStream<TcpStream>, DialError> {
        const HANDSHAKE: &str = "TLS handshake";
        let config =
            self.configs.config_as(&endpoint.roots, &endpoint.alpn, endpoint.identity.as_ref()).map_err(
                |error| DialError::new(forebay_core::Cause::Internal, "TLS configuration").with_source(error),
            )?;
        let stream = self.tcp.stream(&endpoint.socket, deadline).await?;
        let handshake = async {
            let stream = TlsConnector::from(config).connect(endpoint.name, stream).await;
            stream.map_err(|error| DialError::from_io(error, HANDSHAKE))
        };
        step(deadline, HANDSHAKE, handshake).await
    }
}

impl Connector for Tls {
    type Conn = TlsStream<TcpStream>;
    type Endpoint = TlsEndpoint;

    async fn connect(&self, dial: Dial<TlsEndpoint>) -> Result<Self::Conn, DialError> {
        self.shake_hands(dial.endpoint, Instant::now() + dial.timeout).await
    }

    fn is_alive(&self, conn: &mut Self::Conn) -> bool {
        match sys::stream_state(conn.get_ref().0.as_fd()) {
            StreamState::Quiet => true,
            StreamState::Closed => false,
            // It may be a session ticket, which servers send unasked (RFC 8446 §4.6.1).
            StreamState::Readable => poll_byte(conn, &mut Context::from_waker(Waker::noop())).is_pending(),
        }
    }

    fn watches(&self) -> bool {
        true
    }

    fn poll_closed(&self, conn: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<()> {
        poll_byte(conn, cx)
    }

    fn route(&self, endpoint: &TlsEndpoint) -> Option<Route> {
        Some(endpoint.socket.route(Transport::Tcp))
    }
}

/// Resolves when there is something to read, an end or an error.
fn poll_byte(conn: &mut TlsStream<TcpStream>, cx: &mut Context<'_>) -> Poll<()> {
    Pin::new(conn).poll_read(cx, &mut ReadBuf::new(&mut [0])).map(drop)
}

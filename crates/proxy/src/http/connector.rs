//! Connections to backends whose bytes are HTTP.

use std::io::ErrorKind;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use forebay::dial::{Roots, Route, SocketEndpoint, Tls, TlsEndpoint, Transport};
use forebay::stream::Stream;
use forebay::tls::ALPN_HTTP;
use forebay::{Connector, Dial, DialError};

use crate::settings::{BackendAddress, ProxyConfig};

/// A connection to a backend that speaks HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Conn1 {
    pub(super) stream: Stream,
    /// How many responses it has brought.
    pub(super) uses: u64,
}

/// Connects to backends, and shakes hands where they want that. Remembers the sessions of each identity for itself.
#[derive(Debug)]
pub(super) struct Dialler {
    tls: Tls,
}

impl Dialler {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        Self { tls: Tls::new(config.connections.tcp()) }
    }

    /// Connects, and offers these protocols.
    pub(super) async fn dial(
        &self,
        backend: &BackendAddress,
        alpn: &[&[u8]],
        timeout: Duration,
    ) -> Result<Stream, DialError> {
        let socket = SocketEndpoint::from(backend.address);
        let Some(tls) = &backend.tls else {
            return self.tls.open_plain(&socket, timeout).await;
        };
        let endpoint = TlsEndpoint {
            socket,
            name: tls.name.clone(),
            roots: Roots::clone(&tls.roots),
            alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            identity: tls.identity.clone(),
        };
        self.tls.open(endpoint, timeout).await
    }
}

/// Dials backends that speak HTTP/1.1.
#[derive(Debug)]
pub(crate) struct HttpConnector {
    dialler: Arc<Dialler>,
}

impl HttpConnector {
    pub(super) const fn new(dialler: Arc<Dialler>) -> Self {
        Self { dialler }
    }
}

impl Connector for HttpConnector {
    type Conn = Conn1;
    type Endpoint = BackendAddress;

    async fn connect(&self, dial: Dial<BackendAddress>) -> Result<Conn1, DialError> {
        let stream = self.dialler.dial(&dial.endpoint, &ALPN_HTTP[1..], dial.timeout).await?;
        Ok(Conn1 { stream, uses: 0 })
    }

    /// Whether nothing has come on an idle connection: an end, or what nobody asked for, makes it useless.
    ///
    /// It costs no system call: the request that wants it came with an event, and with the same look at all sockets an
    /// event of this one would have come. What comes after that look might as well have come after any look.
    fn is_alive(&self, conn: &mut Conn1) -> bool {
        self.poll_closed(conn, &mut Context::from_waker(Waker::noop())).is_pending()
    }

    fn watches(&self) -> bool {
        true
    }

    fn poll_closed(&self, conn: &mut Conn1, cx: &mut Context<'_>) -> Poll<()> {
        while conn.stream.poll_read_ready(cx).is_ready() {
            match conn.stream.read(&mut Vec::new()) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }

    fn route(&self, endpoint: &BackendAddress) -> Option<Route> {
        Some(Route { transport: Transport::Tcp, local: None, remote: endpoint.address })
    }
}

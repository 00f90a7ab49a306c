//! Connections to backends whose bytes are HTTP.

use std::io::ErrorKind;
use std::task::{Context, Poll, Waker};

use forebay::dial::{Route, SocketEndpoint, Tcp, Transport};
use forebay::stream::Stream;
use forebay::{Connector, Dial, DialError};

use crate::settings::{BackendAddress, ProxyConfig};

/// A connection to a backend that speaks HTTP/1.1.
#[derive(Debug)]
pub(crate) struct Conn1 {
    pub(super) stream: Stream,
    /// How many responses it has brought.
    pub(super) uses: u64,
}

/// Dials backends that speak HTTP/1.1.
#[derive(Debug)]
pub(crate) struct HttpConnector {
    tcp: Tcp,
}

impl HttpConnector {
    pub(super) fn new(config: &ProxyConfig) -> Self {
        Self { tcp: Tcp::new(config.connections.tcp()) }
    }
}

impl Connector for HttpConnector {
    type Conn = Conn1;
    type Endpoint = BackendAddress;

    async fn connect(&self, dial: Dial<BackendAddress>) -> Result<Conn1, DialError> {
        let endpoint = SocketEndpoint::from(dial.endpoint.address);
        let dial = Dial { endpoint, timeout: dial.timeout, reporter: dial.reporter };
        let stream = self.tcp.connect(dial).await.map(Stream::plain)?;
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

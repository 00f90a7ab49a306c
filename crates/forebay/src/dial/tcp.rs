//! TCP.

use std::os::fd::AsFd;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::Instant;

use super::{Route, SocketEndpoint, Transport, step};
use crate::blame::cause_of_bind;
use crate::pool::{Connector, Dial, DialError};
use crate::sys::{self, StreamState, TcpOptions};

/// Connects TCP streams. Options are set before the connection is made.
#[derive(Clone, Debug, Default)]
pub struct Tcp {
    options: TcpOptions,
}

impl Tcp {
    /// Makes a connector with these options.
    pub const fn new(options: TcpOptions) -> Self {
        Self { options }
    }

    /// Connects one stream, until `deadline`.
    pub(super) async fn stream(
        &self,
        endpoint: &SocketEndpoint,
        deadline: Instant,
    ) -> Result<TcpStream, DialError> {
        const BIND: &str = "TCP socket";
        const CONNECT: &str = "TCP connect";
        let socket = sys::tcp_socket(endpoint.remote, endpoint.local, &self.options)
            .map_err(|error| DialError::new(cause_of_bind(&error), BIND).with_source(error))?;
        let connect = async {
            let stream = TcpSocket::from_std_stream(socket).connect(endpoint.remote).await;
            stream.map_err(|error| DialError::from_io(error, CONNECT))
        };
        step(deadline, CONNECT, connect).await
    }
}

impl Connector for Tcp {
    type Conn = TcpStream;
    type Endpoint = SocketEndpoint;

    async fn connect(&self, dial: Dial<SocketEndpoint>) -> Result<TcpStream, DialError> {
        self.stream(&dial.endpoint, Instant::now() + dial.timeout).await
    }

    fn is_alive(&self, conn: &mut TcpStream) -> bool {
        sys::stream_state(conn.as_fd()) == StreamState::Quiet
    }

    fn watches(&self) -> bool {
        true
    }

    fn poll_closed(&self, conn: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        // Whatever comes (an end, an error, bytes that nobody asked for) ends an idle connection.
        conn.poll_peek(cx, &mut ReadBuf::new(&mut [0])).map(drop)
    }

    fn route(&self, endpoint: &SocketEndpoint) -> Option<Route> {
        Some(endpoint.route(Transport::Tcp))
    }
}

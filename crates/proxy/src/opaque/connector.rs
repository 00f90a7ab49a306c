//! Connections whose bytes are not understood.

use std::os::fd::AsFd;
use std::sync::PoisonError;
use std::task::{Context, Poll};

use forebay::dial::{Route, SocketEndpoint, Tcp, Transport};
use forebay::sys::{self, StreamState};
use forebay::{Connector, Dial, DialError};
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::spares::Dialled;
use crate::settings::{BackendAddress, ProxyConfig};

/// Dials backends.
#[derive(Debug)]
pub(crate) struct BackendConnector {
    tcp: Tcp,
    /// Who wants to know how long dials take.
    dialled: Option<Dialled>,
}

impl BackendConnector {
    pub(super) fn new(config: &ProxyConfig, dialled: Option<Dialled>) -> Self {
        Self { tcp: Tcp::new(config.connections.tcp()), dialled }
    }
}

impl Connector for BackendConnector {
    type Conn = TcpStream;
    type Endpoint = BackendAddress;

    async fn connect(&self, dial: Dial<BackendAddress>) -> Result<TcpStream, DialError> {
        let (endpoint, began) = (SocketEndpoint::from(dial.endpoint.address), sys::now());
        let stream =
            self.tcp.connect(Dial { endpoint, timeout: dial.timeout, reporter: dial.reporter }).await?;
        if let Some(dialled) = &self.dialled {
            let took = sys::now().saturating_duration_since(began);
            dialled.lock().unwrap_or_else(PoisonError::into_inner).push((dial.endpoint, took));
        }
        Ok(stream)
    }

    fn is_alive(&self, conn: &mut TcpStream) -> bool {
        // What a server says first is the client's to read.
        sys::stream_state(conn.as_fd()) != StreamState::Closed
    }

    fn watches(&self) -> bool {
        true
    }

    fn poll_closed(&self, conn: &mut TcpStream, cx: &mut Context<'_>) -> Poll<()> {
        let mut byte = [0];
        match conn.poll_peek(cx, &mut ReadBuf::new(&mut byte)) {
            // What a server says first is the client's to read; that it has ended, too, is seen when it is taken.
            Poll::Ready(Ok(1..)) | Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
        }
    }

    fn route(&self, endpoint: &BackendAddress) -> Option<Route> {
        Some(Route { transport: Transport::Tcp, local: None, remote: endpoint.address })
    }
}

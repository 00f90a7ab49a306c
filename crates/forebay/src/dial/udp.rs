//! UDP.

use std::os::fd::AsFd;

use tokio::net::UdpSocket;

use super::{Route, SocketEndpoint, Transport};
use crate::blame::{cause_of, cause_of_bind};
use crate::pool::{Connector, Dial, DialError};
use crate::sys::{self, StreamState, UdpOptions};

/// Makes connected UDP sockets, each from a port that the kernel chose at random (RFC 5452 §9.2).
#[derive(Clone, Debug, Default)]
pub struct Udp {
    options: UdpOptions,
    reuse_on_drop: bool,
}

impl Udp {
    /// Makes a connector with these options.
    pub const fn new(options: UdpOptions) -> Self {
        Self { options, reuse_on_drop: false }
    }

    /// Keeps sockets whose lease was dropped without an outcome. For protocols whose datagrams name the question that
    /// they answer: the next user may get a late answer to the last one's. Default: false.
    #[must_use]
    pub const fn reuse_on_drop(mut self, reuse: bool) -> Self {
        self.reuse_on_drop = reuse;
        self
    }
}

impl Connector for Udp {
    type Conn = UdpSocket;
    type Endpoint = SocketEndpoint;

    async fn connect(&self, dial: Dial<SocketEndpoint>) -> Result<UdpSocket, DialError> {
        let SocketEndpoint { remote, local } = dial.endpoint;
        let socket = sys::udp_connected(remote, local, &self.options).and_then(UdpSocket::from_std);
        socket.map_err(|error| {
            // With an address of our own, "not available" is about that address.
            let cause = if local.is_some() { cause_of_bind(&error) } else { cause_of(&error) };
            DialError::new(cause, "UDP socket").with_source(error)
        })
    }

    fn is_alive(&self, conn: &mut UdpSocket) -> bool {
        // A datagram that waits was meant for the last user; an error is the answer of the peer's machine.
        self.reuse_on_drop || sys::stream_state(conn.as_fd()) == StreamState::Quiet
    }

    fn reuse_on_drop(&self) -> bool {
        self.reuse_on_drop
    }

    fn route(&self, endpoint: &SocketEndpoint) -> Option<Route> {
        Some(endpoint.route(Transport::Udp))
    }
}

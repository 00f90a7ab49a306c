//! Connectors for UDP, TCP and TLS, and the budget of this machine.
//!
//! | connector | connection | endpoint |
//! |---|---|---|
//! | [`Udp`] | a connected socket | [`SocketEndpoint`] |
//! | [`Tcp`] | a stream, with its options set before it connects | [`SocketEndpoint`] |
//! | [`Tls`] | TLS over that stream | [`TlsEndpoint`] |
//!
//! Each says in its [`DialError`] during what it failed and whose fault it was, and ends with the dial's time.

mod machine;
mod tcp;
mod tls;
mod udp;

use std::fmt;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};

use forebay_core::Cause;
use tokio::time::{Instant, timeout_at};

use crate::pool::DialError;

pub use machine::{Machine, Route, Transport};
pub use tcp::Tcp;
pub use tls::{ClientConfigs, Identity, Roots, Tls, TlsEndpoint};
pub use udp::Udp;

/// An address, and the local address from which to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketEndpoint {
    /// Where to.
    pub remote: SocketAddr,
    /// Where from; `None`: the kernel chooses.
    pub local: Option<IpAddr>,
}

impl SocketEndpoint {
    fn route(&self, transport: Transport) -> Route {
        Route { transport, local: self.local, remote: self.remote }
    }
}

impl From<SocketAddr> for SocketEndpoint {
    fn from(remote: SocketAddr) -> Self {
        Self { remote, local: None }
    }
}

impl fmt::Display for SocketEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.remote.fmt(f)?;
        self.local.map_or(Ok(()), |local| write!(f, " from {local}"))
    }
}

/// Ends a step of a dial with the dial's time, so that the error names the step.
async fn step<T>(
    deadline: Instant,
    doing: &'static str,
    work: impl Future<Output = Result<T, DialError>>,
) -> Result<T, DialError> {
    timeout_at(deadline, work)
        .await
        .unwrap_or_else(|_| Err(DialError::new(Cause::Timeout, doing).with_source("no answer in time")))
}

//! Descriptors that the runtime watches for one thing alone.

use std::io;
use std::net::UdpSocket;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lets the runtime watch a socket that does not block, for what `interest` names.
///
/// # Errors
///
/// When no descriptor is left to watch with.
///
/// # Panics
///
/// Outside a runtime, as those of tokio do.
pub(crate) fn watch(socket: UdpSocket, interest: Interest) -> io::Result<AsyncFd<UdpSocket>> {
    // SAFETY: a `UdpSocket` owns its descriptor, which stays the same and open until it is dropped, and `AsyncFd` owns the
    // socket: what it gives out is `&UdpSocket` (and `into_inner`, which ends the watch), by which neither can be changed.
    unsafe { AsyncFd::register_with_interest(socket, interest) }.map_err(io::Error::from)
}

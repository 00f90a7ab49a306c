//! Ports for peers that are started with a number.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};

/// Returns a port for a peer, free for UDP and TCP. Not one of those that the kernel gives to sockets that ask for any: between
/// the look and the peer's own bind, another test's socket could be given it.
///
/// # Panics
///
/// After ten thousand ports that are all taken.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 11_000 + (std::process::id().wrapping_mul(37).wrapping_add(next) % 20_000) as u16;
        let address = (Ipv4Addr::LOCALHOST, port);
        if UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok() {
            return port;
        }
        assert!(next < 10_000, "no free port");
    }
}

//! Listening: the same addresses for every worker.

use std::io;
use std::net::{SocketAddr, TcpListener};

use forebay::sys::{self, TcpListenerOptions, TcpOptions};

use super::BuildError;

/// Clients that may wait to be accepted, for each worker; the kernel's `net.core.somaxconn` caps it.
const BACKLOG: u16 = 4096;

/// Binds every address once for each worker. Returns the addresses, with the ports that were given where any was asked
/// for, and for each worker its listeners. Clients' connections inherit these options from the listener.
pub(super) fn bind_all(
    addresses: &[SocketAddr],
    workers: usize,
    clients: &TcpOptions,
) -> Result<(Vec<SocketAddr>, Vec<Vec<TcpListener>>), BuildError> {
    let mut bound = Vec::new();
    let mut all: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for &address in addresses {
        let (address, listeners) =
            bind_one(address, workers, clients).map_err(|error| BuildError::Bind { address, error })?;
        bound.push(address);
        for (worker, listener) in all.iter_mut().zip(listeners) {
            worker.push(listener);
        }
    }
    Ok((bound, all))
}

fn bind_one(
    address: SocketAddr,
    workers: usize,
    clients: &TcpOptions,
) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    let bind = |address, reuse_port| {
        let listener = sys::tcp_listener(address, &TcpListenerOptions { reuse_port, backlog: BACKLOG })?;
        sys::socket::apply_tcp_options(&listener, clients)?;
        listener.set_nonblocking(true)?;
        io::Result::Ok(listener)
    };
    // SO_REUSEPORT would let a second server share the port unnoticed: first ask without it.
    let alone = bind(address, false)?;
    let address = alone.local_addr()?;
    if workers == 1 {
        return Ok((address, vec![alone]));
    }
    drop(alone);
    let listeners = (0..workers).map(|_| bind(address, true)).collect::<io::Result<_>>()?;
    Ok((address, listeners))
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;
    use crate::server::ServerSettings;

    #[test]
    fn connections_have_the_options_of_the_settings() {
        for (nodelay, keepalive) in [(true, Some(Duration::from_secs(600))), (false, None)] {
            let settings = ServerSettings {
                tcp_nodelay: nodelay,
                tcp_keepalive: keepalive,
                ..ServerSettings::default()
            };
            let any = "127.0.0.1:0".parse().unwrap();
            let (addresses, listeners) = bind_all(&[any], 1, &settings.tcp()).unwrap();
            let _client = TcpStream::connect(addresses[0]).unwrap();
            let accepted = loop {
                match listeners[0][0].accept() {
                    Ok((accepted, _)) => break accepted,
                    Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
                }
            };
            let socket = socket2::SockRef::from(&accepted);
            assert_eq!(accepted.nodelay().unwrap(), nodelay);
            assert_eq!(socket.keepalive().unwrap(), keepalive.is_some());
            if let Some(time) = keepalive {
                assert_eq!(socket.tcp_keepalive_time().unwrap(), time);
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), time / 10);
            }
        }
    }

    #[test]
    fn every_worker_has_a_listener_of_its_own() {
        let any = "127.0.0.1:0".parse().unwrap();
        let (addresses, listeners) = bind_all(&[any, any], 3, &ServerSettings::default().tcp()).unwrap();
        assert_eq!((addresses.len(), listeners.len()), (2, 3));
        for worker in listeners {
            let bound: Vec<_> = worker.iter().map(|listener| listener.local_addr().unwrap()).collect();
            assert_eq!(bound, addresses);
        }
    }
}

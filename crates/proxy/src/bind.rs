//! Listening: the same addresses for every worker.

use std::io;
use std::net::TcpListener;

use forebay::sys::{self, TcpListenerOptions, TcpOptions};

use crate::StartError;
use crate::settings::ListenAddress;

/// What all workers listen on.
pub(crate) struct Listeners {
    /// The addresses, with the ports that were given where any was asked for.
    pub(crate) addresses: Vec<ListenAddress>,
    /// For each worker, a listener for each address.
    pub(crate) workers: Vec<Vec<TcpListener>>,
}

/// Binds every address once for each worker. Clients' connections have these options from their beginning: they inherit
/// them from the listener, which saves six system calls for each.
pub(crate) fn bind_all(
    listen: &[ListenAddress],
    workers: usize,
    clients: &TcpOptions,
) -> Result<Listeners, StartError> {
    let mut addresses = Vec::new();
    let mut all: Vec<Vec<TcpListener>> = (0..workers).map(|_| Vec::new()).collect();
    for one in listen {
        let failed = |error| StartError::Bind { address: one.address, error };
        let (address, listeners) = bind_one(one, workers, clients).map_err(failed)?;
        addresses.push(address);
        for (worker, listener) in all.iter_mut().zip(listeners) {
            worker.push(listener);
        }
    }
    Ok(Listeners { addresses, workers: all })
}

fn bind_one(
    listen: &ListenAddress,
    workers: usize,
    clients: &TcpOptions,
) -> io::Result<(ListenAddress, Vec<TcpListener>)> {
    let bind = |address, reuse_port| {
        let listener = sys::tcp_listener(address, &TcpListenerOptions { reuse_port, backlog: BACKLOG })?;
        sys::socket::apply_tcp_options(&listener, clients)?;
        io::Result::Ok(listener)
    };
    // SO_REUSEPORT would let a second server share the port unnoticed: first ask without it.
    let alone = bind(listen.address, false)?;
    let address = ListenAddress { address: alone.local_addr()?, ..listen.clone() };
    if workers == 1 {
        return Ok((address, vec![alone]));
    }
    drop(alone);
    let listeners = (0..workers).map(|_| bind(address.address, true)).collect::<io::Result<_>>()?;
    Ok((address, listeners))
}

/// Clients that may wait to be accepted, for each worker; the kernel's `net.core.somaxconn` caps it.
const BACKLOG: u16 = 4096;

//! Listening: the same addresses for every worker.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use forebay::sys::{self, TcpListenerOptions, UdpOptions};

use crate::StartError;
use crate::settings::{ListenAddress, Scheme};

/// Buffers of a listening UDP socket, in bytes: a burst of some thousand queries while a worker is busy.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// How often another port is tried when the one that UDP got is taken for TCP.
const PORT_TRIES: u32 = 16;

/// What one worker listens on.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) udp: Vec<UdpSocket>,
    /// Each with the place of its address in the configuration.
    pub(crate) streams: Vec<(usize, TcpListener)>,
}

/// What all workers listen on.
pub(crate) struct Listeners {
    pub(crate) addresses: Vec<ListenAddress>,
    pub(crate) workers: Vec<Sockets>,
}

/// Binds every address once for each worker.
pub(crate) fn bind_all(listen: &[ListenAddress], workers: usize) -> Result<Listeners, StartError> {
    let mut addresses = Vec::new();
    let mut all: Vec<Sockets> = (0..workers).map(|_| Sockets::default()).collect();
    for (place, one) in listen.iter().enumerate() {
        let (actual, sockets) = bind_one(one.scheme, one.address, workers)?;
        addresses.push(ListenAddress { address: actual, ..one.clone() });
        for (worker, (udp, tcp)) in all.iter_mut().zip(sockets) {
            worker.udp.extend(udp);
            worker.streams.extend(tcp.map(|tcp| (place, tcp)));
        }
    }
    Ok(Listeners { addresses, workers: all })
}

/// The sockets of one worker at one address.
type Pair = (Option<UdpSocket>, Option<TcpListener>);

fn bind_one(
    scheme: Scheme,
    address: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<Pair>), StartError> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match try_bind(scheme, address, workers) {
            Err(StartError::Bind { error, .. }) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn try_bind(
    scheme: Scheme,
    address: SocketAddr,
    workers: usize,
) -> Result<(SocketAddr, Vec<Pair>), StartError> {
    // SO_REUSEPORT would let a second server share the port unnoticed: first ask without it.
    let (actual, alone) = bind_pair(scheme, address, false)?;
    if workers == 1 {
        return Ok((actual, vec![alone]));
    }
    drop(alone);
    let pairs: Result<_, _> =
        (0..workers).map(|_| bind_pair(scheme, actual, true).map(|(_, pair)| pair)).collect();
    Ok((actual, pairs?))
}

fn bind_pair(
    scheme: Scheme,
    mut address: SocketAddr,
    reuse_port: bool,
) -> Result<(SocketAddr, Pair), StartError> {
    let failed = |address, protocol| move |error| StartError::Bind { address, protocol, error };
    let mut pair = (None, None);
    if scheme.has_udp() {
        let socket = udp(address, reuse_port).map_err(failed(address, "UDP"))?;
        address = socket.local_addr().map_err(failed(address, "UDP"))?;
        pair.0 = Some(socket);
    }
    if scheme.has_tcp() {
        let socket = tcp(address, reuse_port).map_err(failed(address, "TCP"))?;
        address = socket.local_addr().map_err(failed(address, "TCP"))?;
        pair.1 = Some(socket);
    }
    Ok((address, pair))
}

fn udp(address: SocketAddr, reuse_port: bool) -> io::Result<UdpSocket> {
    let options = UdpOptions {
        reuse_port,
        recv_buffer_bytes: Some(UDP_BUFFER_BYTES),
        send_buffer_bytes: Some(UDP_BUFFER_BYTES),
        report_local: address.ip().is_unspecified(),
    };
    sys::udp_listener(address, &options)
}

fn tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    sys::tcp_listener(address, &TcpListenerOptions { reuse_port, ..TcpListenerOptions::default() })
}

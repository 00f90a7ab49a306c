//! Listening: the same addresses for every worker.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use forebay::sys::{self, TcpListenerOptions, UdpOptions};

use crate::StartError;

/// Buffers of a listening UDP socket, in bytes: a burst of some thousand queries while a worker is busy.
const UDP_BUFFER_BYTES: usize = 4 << 20;

/// How often another port is tried when the one that UDP got is taken for TCP.
const PORT_TRIES: u32 = 16;

/// What one worker listens on.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// What all workers listen on.
pub(crate) struct Listeners {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) workers: Vec<Sockets>,
}

/// Binds every address, UDP and TCP, once for each worker.
pub(crate) fn bind_all(listen: &[SocketAddr], workers: usize) -> Result<Listeners, StartError> {
    let mut addresses = Vec::new();
    let mut all: Vec<Sockets> = (0..workers).map(|_| Sockets { udp: Vec::new(), tcp: Vec::new() }).collect();
    for &address in listen {
        let (actual, sockets) = bind_one(address, workers)?;
        addresses.push(actual);
        for (worker, (udp, tcp)) in all.iter_mut().zip(sockets) {
            worker.udp.push(udp);
            worker.tcp.push(tcp);
        }
    }
    Ok(Listeners { addresses, workers: all })
}

type Pairs = Vec<(UdpSocket, TcpListener)>;

fn bind_one(address: SocketAddr, workers: usize) -> Result<(SocketAddr, Pairs), StartError> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match try_bind(address, workers) {
            Err(StartError::Bind { error, .. }) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn try_bind(address: SocketAddr, workers: usize) -> Result<(SocketAddr, Pairs), StartError> {
    let failed = |address, protocol| move |error| StartError::Bind { address, protocol, error };
    // SO_REUSEPORT would let a second server share the port unnoticed: first ask without it.
    let alone = udp(address, false).map_err(failed(address, "UDP"))?;
    let actual = alone.local_addr().map_err(failed(address, "UDP"))?;
    let alone_tcp = tcp(actual, false).map_err(failed(actual, "TCP"))?;
    if workers == 1 {
        return Ok((actual, vec![(alone, alone_tcp)]));
    }
    drop((alone, alone_tcp));
    let mut pairs = Vec::new();
    for _ in 0..workers {
        let udp = udp(actual, true).map_err(failed(actual, "UDP"))?;
        let tcp = tcp(actual, true).map_err(failed(actual, "TCP"))?;
        pairs.push((udp, tcp));
    }
    Ok((actual, pairs))
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

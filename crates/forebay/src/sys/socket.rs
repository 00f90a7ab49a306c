//! Sockets with their options set: std's types, non-blocking, ready for tokio's `from_std`.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

/// Options of a UDP socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UdpOptions {
    /// Lets several sockets be bound to one address; the kernel spreads datagrams over them (`SO_REUSEPORT`).
    /// Listeners only. Default: false.
    pub reuse_port: bool,
    /// Receive buffer in bytes, doubled and capped (`net.core.rmem_max`) by the kernel. `None`: the kernel's default.
    pub recv_buffer_bytes: Option<usize>,
    /// Send buffer in bytes, doubled and capped (`net.core.wmem_max`) by the kernel. `None`: the kernel's default.
    pub send_buffer_bytes: Option<usize>,
    /// Reports with each datagram the address that it came to, so that an answer can leave from there: needed by a
    /// listener on a wildcard address. Default: false.
    pub report_local: bool,
}

/// Binds a UDP socket for serving. An IPv6 wildcard address takes IPv6 only: bind IPv4 beside it.
///
/// # Errors
///
/// Those of `socket(2)`, `setsockopt(2)` and `bind(2)`.
pub fn udp_listener(address: SocketAddr, options: &UdpOptions) -> io::Result<UdpSocket> {
    let socket = udp_socket(address, options)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Makes a UDP socket that speaks with `remote` only, from a port that the kernel chooses at random.
///
/// With `local`, it leaves from that address.
///
/// # Errors
///
/// Those of `socket(2)`, `setsockopt(2)`, `bind(2)` and `connect(2)`. Without a free local port, Linux says `EAGAIN`
/// (`EADDRINUSE` with `local`): [`crate::blame`] knows both as local.
pub fn udp_connected(
    remote: SocketAddr,
    local: Option<IpAddr>,
    options: &UdpOptions,
) -> io::Result<UdpSocket> {
    let socket = udp_socket(remote, options)?;
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    socket.connect(&remote.into())?;
    Ok(socket.into())
}

/// Options of a TCP listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpListenerOptions {
    /// Lets several sockets be bound to one address; the kernel spreads connections over them (`SO_REUSEPORT`).
    /// Default: false.
    pub reuse_port: bool,
    /// How many connections may wait to be accepted, capped by `net.core.somaxconn`. Default: 1024.
    pub backlog: u16,
}

impl Default for TcpListenerOptions {
    fn default() -> Self {
        Self { reuse_port: false, backlog: 1024 }
    }
}

/// Binds a TCP listener, with `SO_REUSEADDR` so that a restart need not wait for old connections.
/// An IPv6 wildcard address takes IPv6 only: bind IPv4 beside it.
///
/// # Errors
///
/// Those of `socket(2)`, `setsockopt(2)`, `bind(2)` and `listen(2)`.
pub fn tcp_listener(address: SocketAddr, options: &TcpListenerOptions) -> io::Result<TcpListener> {
    let socket = tcp_raw(address)?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(options.backlog.into())?;
    Ok(socket.into())
}

/// Options of a TCP connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpOptions {
    /// Sends small writes at once (`TCP_NODELAY`). Default: true.
    pub nodelay: bool,
    /// Probes a silent peer. Default: after 60 s, every 10 s, 3 times. `None`: never.
    pub keepalive: Option<Keepalive>,
    /// Gives a connection up when sent bytes stay unacknowledged for so long (`TCP_USER_TIMEOUT`); without it the
    /// kernel tries for about 15 minutes. Default: 10 s. `None`: the kernel's way.
    pub user_timeout: Option<Duration>,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            nodelay: true,
            keepalive: Some(Keepalive::default()),
            user_timeout: Some(Duration::from_secs(10)),
        }
    }
}

/// When to probe a silent TCP peer. Seconds are the kernel's unit: a fraction is rounded down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long a connection must be silent before the first probe. Default: 60 s.
    pub time: Duration,
    /// How long to wait between probes. Default: 10 s.
    pub interval: Duration,
    /// How many unanswered probes end the connection. Default: 3.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { time: Duration::from_secs(60), interval: Duration::from_secs(10), probes: 3 }
    }
}

/// Makes a TCP socket with its options set, bound to `local` if given, and **not yet connected**:
/// `tokio::net::TcpSocket::from_std_stream(…).connect(remote)` does that.
///
/// Binding an address does not take a port yet (`IP_BIND_ADDRESS_NO_PORT`), so that one port can serve connections to
/// many destinations.
///
/// # Errors
///
/// Those of `socket(2)`, `setsockopt(2)` and `bind(2)`: no descriptor left, or `local` is not an address of this machine.
pub fn tcp_socket(remote: SocketAddr, local: Option<IpAddr>, options: &TcpOptions) -> io::Result<TcpStream> {
    let socket = tcp_raw(remote)?;
    apply(&socket, options)?;
    if let Some(local) = local {
        set_option(socket.as_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    Ok(socket.into())
}

/// Begins to connect a socket of [`tcp_socket`] without a runtime: it has succeeded when the socket is writable and
/// `take_error` says nothing.
///
/// # Errors
///
/// Those of `connect(2)` that are known at once: no local port, no route, refused.
pub fn tcp_connect_begin(stream: &TcpStream, remote: SocketAddr) -> io::Result<()> {
    match socket2::SockRef::from(stream).connect(&SockAddr::from(remote)) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        result => result,
    }
}

/// Sets the options of a connection that was accepted, or of a listener: the connections that it accepts inherit them,
/// and cost no call of their own.
///
/// # Errors
///
/// Those of `setsockopt(2)`: the connection has ended already (`EINVAL`).
pub fn apply_tcp_options(stream: impl AsFd, options: &TcpOptions) -> io::Result<()> {
    apply(&socket2::SockRef::from(&stream.as_fd()), options)
}

/// Lets a connection end with a reset when it is closed (`SO_LINGER` of 0): the peer hears at once that it is refused or
/// that something failed, what was not sent is thrown away, and no port waits (`TIME_WAIT`).
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn reset_on_close(stream: impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(&stream.as_fd()).set_linger(Some(Duration::ZERO))
}

/// Ends one half of a connection: nothing more will be written, reading goes on (`shutdown(2)` of writing).
///
/// # Errors
///
/// [`io::ErrorKind::NotConnected`] when the connection is gone.
pub fn end_writing(stream: impl AsFd) -> io::Result<()> {
    socket2::SockRef::from(&stream.as_fd()).shutdown(std::net::Shutdown::Write)
}

/// What a connection that should be silent has to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamState {
    /// Nothing has come: it can be used.
    Quiet,
    /// Bytes have come that nobody asked for.
    Readable,
    /// The peer has closed or reset it.
    Closed,
}

/// Looks without waiting or consuming whether a stream has bytes or has ended. About 0.3 µs.
pub fn stream_state(stream: BorrowedFd<'_>) -> StreamState {
    let mut byte = 0u8;
    loop {
        // SAFETY: `byte` is one valid byte to write to, and the call keeps no pointer to it.
        let count = unsafe {
            libc::recv(
                stream.as_raw_fd(),
                std::ptr::from_mut(&mut byte).cast(),
                1,
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        return match count {
            0 => StreamState::Closed,
            1.. => StreamState::Readable,
            _ => match io::Error::last_os_error().kind() {
                io::ErrorKind::WouldBlock => StreamState::Quiet,
                io::ErrorKind::Interrupted => continue,
                _ => StreamState::Closed,
            },
        };
    }
}

fn udp_socket(address: SocketAddr, options: &UdpOptions) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if let Some(bytes) = options.recv_buffer_bytes {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = options.send_buffer_bytes {
        socket.set_send_buffer_size(bytes)?;
    }
    if options.report_local {
        let (level, name) = if address.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_PKTINFO)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO)
        };
        set_option(socket.as_fd(), level, name, 1)?;
    }
    Ok(socket)
}

fn tcp_raw(address: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

fn apply(socket: &Socket, options: &TcpOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(options.nodelay)?;
    if let Some(keepalive) = &options.keepalive {
        socket.set_tcp_keepalive(
            &TcpKeepalive::new()
                .with_time(keepalive.time)
                .with_interval(keepalive.interval)
                .with_retries(keepalive.probes),
        )?;
    }
    if let Some(timeout) = options.user_timeout {
        socket.set_tcp_user_timeout(Some(timeout))?;
    }
    Ok(())
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is one int of the size given, read during the call only.
    super::check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
    .map(drop)
}

#[cfg(test)]
pub(super) fn option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` has room for the length given, and the call keeps no pointer to either.
    super::check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, std::ptr::from_mut(&mut value).cast(), &mut length)
    })?;
    Ok(value)
}

//! Whose fault an I/O error is: the one table from `errno` to [`Cause`] and [`Blame`].
//!
//! Running out of local ports looks, to code that only sees "connect failed", just like a dead upstream. Then health
//! checks take healthy upstreams out, and the rest gets more load and fewer ports. So each error is judged here, once:
//! only what the far end did, or the network said about it, is [`Blame::Upstream`].
//!
//! The rule for what the table does not name: the far end reaches us through few errors (a refusal, a reset, silence,
//! ICMP), and all of them are named. **An `errno` that is not named is ours** ([`Cause::Internal`]).
//!
//! HAProxy decides likewise: `EADDRNOTAVAIL`, `EAGAIN` and `EADDRINUSE` of `connect` are "resource", never "server".

use std::io::{self, ErrorKind};

use forebay_core::{Blame, Cause};

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The number, as in `errno(3)`.
    pub errno: i32,
    /// What it means for a connection to an upstream.
    pub cause: Cause,
    /// Where the kernel takes it from, and so why it is judged like this.
    pub why: &'static str,
}

/// The table. What it does not name is [`Cause::Internal`].
pub const TABLE: &[Row] = &[
    // Local: ports. TCP and UDP say it differently, and each differently again when an address was bound.
    row(
        libc::EADDRNOTAVAIL,
        Cause::Ports,
        "connect(2), TCP: every port of ip_local_port_range is used to this destination",
    ),
    row(
        libc::EADDRINUSE,
        Cause::Ports,
        "bind(2) to port 0, or connect(2) with a bound address: no port is left",
    ),
    row(
        libc::EAGAIN,
        Cause::Ports,
        "connect(2), UDP: no port is left. As would-block, EAGAIN is never reported as a failure",
    ),
    // Local: the rest.
    row(libc::EMFILE, Cause::Descriptors, "socket(2): RLIMIT_NOFILE of this process is reached"),
    row(libc::ENFILE, Cause::Descriptors, "socket(2): fs.file-max of this machine is reached"),
    row(libc::ENOMEM, Cause::Memory, "any call: no kernel memory, or the limit of the control group"),
    row(
        libc::ENOBUFS,
        Cause::Memory,
        "send(2), socket(2): no buffer space, or the queue of the device is full",
    ),
    row(
        libc::EACCES,
        Cause::Permission,
        "connect(2): a prohibit route, a firewall rule, or a broadcast address",
    ),
    row(
        libc::EPERM,
        Cause::Permission,
        "connect(2), send(2): a firewall rule of this machine dropped the packet",
    ),
    row(
        libc::ENETUNREACH,
        Cause::Route,
        "connect(2): the routing table has no entry, as on a machine that is offline. A far router may say so by ICMP \
         too, but rarely, and a machine without network must not open breakers",
    ),
    row(libc::ENETDOWN, Cause::Route, "send(2): the interface is down"),
    row(libc::EAFNOSUPPORT, Cause::Route, "socket(2): this machine has no IPv6 (or no IPv4)"),
    row(
        libc::EMSGSIZE,
        Cause::Internal,
        "send(2): the datagram is too long, for UDP or for the path; we made it",
    ),
    // Upstream: the far end itself.
    row(libc::ECONNREFUSED, Cause::Refused, "connect(2), TCP: RST to SYN. UDP: ICMP port unreachable"),
    row(libc::ECONNRESET, Cause::Reset, "read(2), write(2): RST"),
    row(libc::ECONNABORTED, Cause::Reset, "read(2), write(2): the connection was given up by the protocol"),
    row(libc::EPIPE, Cause::Reset, "write(2): the far end closed before"),
    row(libc::ENOTCONN, Cause::Reset, "shutdown(2): the far end reset before"),
    row(
        libc::ETIMEDOUT,
        Cause::Timeout,
        "connect(2), read(2): no acknowledgement (retries, TCP_USER_TIMEOUT, keepalive)",
    ),
    row(libc::EPROTO, Cause::Protocol, "read(2): the far end broke the transport's rules"),
    // Upstream: what the network says about it. There was a route, or no packet would have left.
    row(
        libc::EHOSTUNREACH,
        Cause::Unreachable,
        "ICMP host unreachable or filtered, or the neighbour on our own link does not answer ARP: that host is gone, \
         while others can be reached. (An unreachable route says so too; who sets one means it)",
    ),
    row(libc::EHOSTDOWN, Cause::Unreachable, "ICMP destination host unknown"),
    row(libc::ENONET, Cause::Unreachable, "ICMP source host isolated"),
];

/// Returns what an error of connecting to, reading from or writing to an upstream means.
pub fn cause_of(error: &io::Error) -> Cause {
    if let Some(errno) = error.raw_os_error() {
        return cause_of_errno(errno);
    }
    if let Some(inner) = error.get_ref() {
        if inner.is::<rustls::Error>() {
            return Cause::Tls;
        }
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return cause_of(inner);
        }
    }
    cause_of_kind(error.kind())
}

/// Returns what an error of `bind(2)` before connecting means.
///
/// It differs in one place: `EADDRNOTAVAIL` here says that the address is not ours, and nothing about ports.
pub fn cause_of_bind(error: &io::Error) -> Cause {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => Cause::Address,
        _ => cause_of(error),
    }
}

/// Returns whose fault an error of talking to an upstream is.
pub fn blame_of(error: &io::Error) -> Blame {
    cause_of(error).blame()
}

fn cause_of_errno(errno: i32) -> Cause {
    TABLE.iter().find(|row| row.errno == errno).map_or(Cause::Internal, |row| row.cause)
}

/// Judges an error that no system call made: those of std, tokio and protocol code.
fn cause_of_kind(kind: ErrorKind) -> Cause {
    match kind {
        ErrorKind::TimedOut => Cause::Timeout,
        ErrorKind::ConnectionRefused => Cause::Refused,
        // A stream that ends in the middle of something was closed by its peer.
        ErrorKind::UnexpectedEof
        | ErrorKind::WriteZero
        | ErrorKind::BrokenPipe
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::NotConnected => Cause::Reset,
        ErrorKind::InvalidData => Cause::Protocol,
        ErrorKind::HostUnreachable => Cause::Unreachable,
        ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => Cause::Route,
        ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => Cause::Ports,
        ErrorKind::OutOfMemory => Cause::Memory,
        ErrorKind::PermissionDenied => Cause::Permission,
        _ => Cause::Internal,
    }
}

const fn row(errno: i32, cause: Cause, why: &'static str) -> Row {
    Row { errno, cause, why }
}

#[cfg(test)]
mod tests;

//! The table against the real kernel, wherever an error can be had cheaply.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use super::*;
use crate::sys::epoll::{Epoll, Interest};
use crate::sys::netns::NetNamespace;
use crate::sys::socket::tcp_connect_begin;
use crate::sys::{
    self, TcpListenerOptions, TcpOptions, UdpOptions, process, tcp_listener, tcp_socket, udp_connected,
};

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 53);

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// An address on loopback where nobody listens.
fn nobody() -> SocketAddr {
    let listener = TcpListener::bind(loopback(0)).expect("bind");
    listener.local_addr().expect("address")
}

#[track_caller]
fn assert_judged(error: &io::Error, errno: i32, cause: Cause) {
    assert_eq!(error.raw_os_error(), Some(errno), "{error}");
    assert_eq!(cause_of(error), cause, "{error}");
    assert_eq!(blame_of(error), cause.blame());
}

fn connect(remote: SocketAddr, local: Option<IpAddr>) -> io::Result<TcpStream> {
    let stream = tcp_socket(remote, local, &TcpOptions::default())?;
    tcp_connect_begin(&stream, remote)?;
    Ok(stream)
}

#[test]
fn errno_stands_in_the_table_once_with_a_reason() {
    for (index, row) in TABLE.iter().enumerate() {
        assert!(TABLE[index + 1..].iter().all(|other| other.errno != row.errno), "{row:?}");
        assert!(!row.why.is_empty());
        let error = io::Error::from_raw_os_error(row.errno);
        assert_eq!((cause_of(&error), blame_of(&error)), (row.cause, row.cause.blame()));
        assert_ne!(row.cause.blame(), Blame::Client, "no errno says that our caller is at fault");
    }
}

#[test]
fn unnamed_errno_is_our_own_fault() {
    for errno in [libc::EBADF, libc::EINVAL, libc::EFAULT, libc::ENOTSOCK, 4095] {
        assert_eq!(cause_of(&io::Error::from_raw_os_error(errno)), Cause::Internal);
    }
    assert_eq!(blame_of(&io::Error::other("something")), Blame::Local);
}

#[test]
fn errors_without_errno_are_judged_by_kind() {
    for (kind, cause) in [
        (ErrorKind::TimedOut, Cause::Timeout),
        (ErrorKind::UnexpectedEof, Cause::Reset),
        (ErrorKind::WriteZero, Cause::Reset),
        (ErrorKind::InvalidData, Cause::Protocol),
        (ErrorKind::ConnectionRefused, Cause::Refused),
        (ErrorKind::AddrInUse, Cause::Ports),
        (ErrorKind::OutOfMemory, Cause::Memory),
        (ErrorKind::PermissionDenied, Cause::Permission),
        (ErrorKind::HostUnreachable, Cause::Unreachable),
        (ErrorKind::NetworkUnreachable, Cause::Route),
        (ErrorKind::Unsupported, Cause::Internal),
    ] {
        assert_eq!(cause_of(&io::Error::from(kind)), cause, "{kind}");
        assert_eq!(cause_of(&io::Error::new(kind, "with a message")), cause, "{kind}");
    }
}

#[test]
fn wrapped_errors_are_judged_by_what_they_wrap() {
    let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
    assert_eq!(cause_of(&io::Error::other(refused)), Cause::Refused);
    let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
    assert_eq!(cause_of(&io::Error::new(ErrorKind::InvalidData, tls)), Cause::Tls);
}

#[test]
fn refused_connection_is_the_upstreams() {
    let error = TcpStream::connect(nobody()).expect_err("nobody listens");
    assert_judged(&error, libc::ECONNREFUSED, Cause::Refused);
}

#[test]
fn refused_datagram_is_the_upstreams() {
    let address = UdpSocket::bind(loopback(0)).and_then(|socket| socket.local_addr()).expect("address");
    let socket = udp_connected(address, None, &UdpOptions::default()).expect("connect");
    socket.send(b"x").expect("the refusal comes later");
    let error = socket.recv(&mut [0]).expect_err("ICMP has come");
    assert_judged(&error, libc::ECONNREFUSED, Cause::Refused);
}

#[test]
fn reset_and_broken_pipe_are_the_upstreams() {
    let listener = TcpListener::bind(loopback(0)).expect("bind");
    let mut near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (far, _) = listener.accept().expect("accept");
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(far);
    assert_judged(&near.read(&mut [0]).expect_err("reset"), libc::ECONNRESET, Cause::Reset);
    assert_judged(&near.write(b"x").expect_err("reset"), libc::EPIPE, Cause::Reset);
    let error = near.shutdown(std::net::Shutdown::Both).expect_err("not connected any more");
    assert_judged(&error, libc::ENOTCONN, Cause::Reset);
}

#[test]
fn end_in_the_middle_is_the_upstreams() {
    let listener = TcpListener::bind(loopback(0)).expect("bind");
    let mut near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    drop(listener.accept().expect("accept"));
    let error = near.read_exact(&mut [0; 2]).expect_err("closed");
    assert_eq!(cause_of(&error), Cause::Reset);
}

#[test]
fn unacknowledged_connection_is_the_upstreams() {
    // A listener whose queue is full stays silent towards further connections.
    let full = tcp_listener(loopback(0), &TcpListenerOptions { backlog: 0, ..TcpListenerOptions::default() })
        .expect("bind");
    let address = full.local_addr().expect("address");
    let _first = TcpStream::connect(address).expect("the one that fits");
    let options = TcpOptions { user_timeout: Some(Duration::from_millis(50)), ..TcpOptions::default() };
    let stream = tcp_socket(address, None, &options).expect("socket");
    tcp_connect_begin(&stream, address).expect("begins");
    let mut epoll = Epoll::new(1).expect("epoll");
    epoll.add(stream.as_fd(), 0, Interest::ReadWrite).expect("add");
    assert_eq!(epoll.wait(Some(Duration::from_secs(10))).expect("wait").count(), 1);
    let error = stream.take_error().expect("error of the socket").expect("timed out");
    assert_judged(&error, libc::ETIMEDOUT, Cause::Timeout);
}

#[test]
fn foreign_address_is_local() {
    let error = tcp_socket(nobody(), Some(NOWHERE.ip()), &TcpOptions::default()).expect_err("not ours");
    assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
    assert_eq!(cause_of_bind(&error), Cause::Address);
    assert_eq!(blame_of(&error), Blame::Local);
    let error = udp_connected(loopback(9), Some(NOWHERE.ip()), &UdpOptions::default()).expect_err("not ours");
    assert_eq!(cause_of_bind(&error), Cause::Address);
    // Everything else means the same in bind(2) as elsewhere.
    assert_eq!(cause_of_bind(&io::Error::from_raw_os_error(libc::EADDRINUSE)), Cause::Ports);
}

#[test]
fn forbidden_destination_is_local() {
    let broadcast = SocketAddr::from((Ipv4Addr::BROADCAST, 53));
    let error = udp_connected(broadcast, None, &UdpOptions::default()).expect_err("needs SO_BROADCAST");
    assert_judged(&error, libc::EACCES, Cause::Permission);
}

#[test]
fn missing_descriptors_are_local() {
    const CHILD: &str = "FOREBAY_TEST_CHILD_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        // The limit is the process's: it needs one of its own.
        let output = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "blame::tests::missing_descriptors_are_local", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("start");
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
        return;
    }
    let address = nobody();
    let limit = process::descriptors_in_use().expect("count") + 5;
    process::set_descriptor_limit(limit).expect("lower");
    let mut held = Vec::new();
    let error = loop {
        match tcp_socket(address, None, &TcpOptions::default()) {
            Ok(socket) => held.push(socket),
            Err(error) => break error,
        }
    };
    // The kernel bounds the number of a descriptor, so that gaps left by the parent may still be filled.
    assert!(held.len() as u64 <= limit);
    assert_judged(&error, libc::EMFILE, Cause::Descriptors);
    held.pop();
    tcp_socket(address, None, &TcpOptions::default()).expect("one was given back");
}

/// Asks until what was closed is there again: a child that another test starts holds a copy of every descriptor
/// from its fork to its exec.
fn given_back<T>(mut ask: impl FnMut() -> io::Result<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        match ask() {
            Ok(got) => return got,
            Err(error) => {
                assert!(start.elapsed() < Duration::from_secs(10), "nothing was given back: {error}")
            }
        }
        std::thread::yield_now();
    }
}

#[test]
fn missing_ports_are_local_and_come_back() {
    let Some(namespace) = NetNamespace::for_test(40000..=40049) else {
        return;
    };
    namespace.run(|| {
        let listener = tcp_listener(loopback(53), &TcpListenerOptions::default()).expect("bind");
        let address = listener.local_addr().expect("address");
        for local in [None, Some(IpAddr::from([127, 0, 0, 2]))] {
            let mut held: Vec<_> =
                (0..50).map(|_| connect(address, local).expect("a port is left")).collect();
            let error = connect(address, local).expect_err("all 50 are used");
            assert_judged(&error, libc::EADDRNOTAVAIL, Cause::Ports);
            // A reset gives the port back at once, where an orderly end would keep it for a minute (TIME_WAIT).
            let last = held.pop().expect("fifty");
            socket2::SockRef::from(&last).set_linger(Some(Duration::ZERO)).expect("linger");
            drop(last);
            given_back(|| connect(address, local));
        }
    });
}

#[test]
fn missing_ports_of_udp_are_local_and_come_back() {
    let Some(namespace) = NetNamespace::for_test(40000..=40049) else {
        return;
    };
    namespace.run(|| {
        let options = UdpOptions::default();
        for (local, errno) in
            [(None, libc::EAGAIN), (Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), libc::EADDRINUSE)]
        {
            let mut held: Vec<_> = (0..50)
                .map(|_| udp_connected(loopback(53), local, &options).expect("a port is left"))
                .collect();
            let error = udp_connected(loopback(53), local, &options).expect_err("all 50 are used");
            assert_judged(&error, errno, Cause::Ports);
            held.pop();
            given_back(|| udp_connected(loopback(53), local, &options));
        }
    });
}

#[test]
fn missing_route_is_local() {
    let Some(namespace) = NetNamespace::for_test(40000..=40049) else {
        return;
    };
    namespace.run(|| {
        assert_judged(&connect(NOWHERE, None).expect_err("offline"), libc::ENETUNREACH, Cause::Route);
        let error = udp_connected(NOWHERE, None, &UdpOptions::default()).expect_err("offline");
        assert_judged(&error, libc::ENETUNREACH, Cause::Route);
    });
}

#[test]
fn routes_that_refuse_are_judged_by_their_word() {
    let Some(namespace) = NetNamespace::for_test(40000..=40049) else {
        return;
    };
    namespace.run(|| {
        for (kind, errno, cause) in [
            ("prohibit", libc::EACCES, Cause::Permission),
            ("unreachable", libc::EHOSTUNREACH, Cause::Unreachable),
        ] {
            let route = Command::new("ip").args(["route", "replace", kind, "192.0.2.0/24"]).status();
            if !route.as_ref().is_ok_and(|status| status.success()) {
                let required = std::env::var_os(sys::netns::REQUIRE).is_some_and(|value| value == "1");
                assert!(!required, "ip(8) is needed: {route:?}");
                eprintln!("skipped: ip(8) is needed: {route:?}");
                return;
            }
            assert_judged(&connect(NOWHERE, None).expect_err(kind), errno, cause);
        }
    });
}

//! The kernel is the subject here: real sockets on loopback.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::epoll::{Epoll, Interest};
use super::netns::NetNamespace;
use super::socket::{apply_tcp_options, option, tcp_connect_begin};
use super::*;

const V4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const V6: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::LOCALHOST), 0);

pub(super) fn wait_readable(fd: BorrowedFd<'_>) {
    let mut epoll = Epoll::new(1).expect("epoll");
    epoll.add(fd, 7, Interest::Read).expect("add");
    let events: Vec<_> = epoll.wait(Some(Duration::from_secs(5))).expect("wait").collect();
    assert_eq!(events.iter().map(|event| event.token).collect::<Vec<_>>(), [7], "readable within 5 s");
}

fn listener(address: SocketAddr) -> (UdpSocket, SocketAddr) {
    let socket = udp_listener(address, &UdpOptions::default()).expect("bind");
    let address = socket.local_addr().expect("address");
    (socket, address)
}

#[test]
fn batch_of_datagrams_crosses_loopback_with_senders() {
    for any in [V4, V6] {
        let (server, address) = listener(any);
        let (client, client_address) = listener(any);
        let mut out = SendBatch::new(64, 1024);
        for number in 0..64u8 {
            assert!(out.push(Some(address), None, |bytes| { bytes.extend_from_slice(&[number; 3]) }));
        }
        assert!(out.is_full());
        assert!(!out.push(Some(address), None, |_| unreachable!("a full batch does not fill")));
        let flush = out.flush(client.as_fd()).expect("flush");
        assert_eq!((flush.sent, flush.failed, flush.left), (64, 0, 0));
        assert!(out.is_empty() && flush.error.is_none());

        let mut batch = RecvBatch::new(64, 16);
        assert_eq!(batch.capacity(), 64);
        assert_eq!(batch.recv(server.as_fd()).expect("recv"), 64);
        for (number, datagram) in batch.datagrams().enumerate() {
            assert_eq!(datagram.bytes, [number as u8; 3]);
            assert_eq!(datagram.peer, client_address);
            assert_eq!((datagram.local, datagram.truncated), (None, false));
        }
        assert_eq!(batch.recv(server.as_fd()).expect_err("nothing left").kind(), io::ErrorKind::WouldBlock);
        assert_eq!(batch.datagrams().count(), 0);
    }
}

#[test]
fn answer_leaves_from_the_address_that_the_query_came_to() {
    let Some(namespace) = NetNamespace::for_test(40000..=40999) else {
        return;
    };
    namespace.run(|| {
        for (any, query) in [
            (SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), IpAddr::from([127, 0, 0, 53])),
            (SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), IpAddr::V6(Ipv6Addr::LOCALHOST)),
        ] {
            let options = UdpOptions { report_local: true, ..UdpOptions::default() };
            let server = udp_listener(any, &options).expect("bind");
            let address = SocketAddr::new(query, server.local_addr().expect("address").port());
            // A connected socket takes answers from exactly the address it asked.
            let client = udp_connected(address, None, &UdpOptions::default()).expect("connect");
            client.send(b"query").expect("send");

            let mut batch = RecvBatch::new(4, 512);
            assert_eq!(batch.recv(server.as_fd()).expect("recv"), 1);
            let datagram = batch.datagrams().next().expect("one");
            assert_eq!(datagram.local, Some(query));
            let mut out = SendBatch::new(1, 512);
            assert!(
                out.push(Some(datagram.peer), datagram.local, |bytes| { bytes.extend_from_slice(b"answer") })
            );
            assert_eq!(out.flush(server.as_fd()).expect("flush").sent, 1);

            let mut answers = ConnectedRecvBatch::new(4, 512);
            assert_eq!(answers.recv(client.as_fd()).expect("the answer is from where the query went"), 1);
            assert_eq!(answers.payloads().collect::<Vec<_>>(), [(&b"answer"[..], false)]);
        }
    });
}

#[test]
fn batch_can_be_used_again_with_fewer_and_more_datagrams() {
    let options = UdpOptions { report_local: true, ..UdpOptions::default() };
    let server = udp_listener(V4, &options).expect("bind");
    let client =
        udp_connected(server.local_addr().expect("address"), None, &UdpOptions::default()).expect("connect");
    let mut batch = RecvBatch::new(8, 64);
    for round in [8usize, 1, 5, 8, 2] {
        for number in 0..round {
            client.send(&vec![number as u8; number + 1]).expect("send");
        }
        assert_eq!(batch.recv(server.as_fd()).expect("recv"), round);
        for (number, datagram) in batch.datagrams().enumerate() {
            assert_eq!(datagram.bytes, vec![number as u8; number + 1]);
            assert_eq!(datagram.peer, client.local_addr().expect("address"));
            assert_eq!(datagram.local, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        }
    }
}

#[test]
fn datagram_longer_than_its_room_is_marked() {
    let (server, address) = listener(V4);
    let client = udp_connected(address, None, &UdpOptions::default()).expect("connect");
    client.send(&[1; 17]).expect("send");
    client.send(&[2; 16]).expect("send");
    let mut batch = RecvBatch::new(2, 16);
    assert_eq!(batch.recv(server.as_fd()).expect("recv"), 2);
    let seen: Vec<_> = batch.datagrams().map(|datagram| (datagram.bytes.len(), datagram.truncated)).collect();
    assert_eq!(seen, [(16, true), (16, false)]);
}

#[test]
fn one_bad_datagram_does_not_stop_the_others() {
    let (server, address) = listener(V4);
    let (client, _) = listener(V4);
    let mut out = SendBatch::new(8, 1024);
    assert!(out.push(Some(address), None, |bytes| bytes.push(1)));
    // An address of no machine cannot be a source (EINVAL or ENETUNREACH); port 0 cannot be a destination (EINVAL).
    assert!(out.push(Some(address), Some(IpAddr::from([192, 0, 2, 1])), |bytes| { bytes.push(2) }));
    assert!(out.push(Some(SocketAddr::from(([127, 0, 0, 1], 0))), None, |bytes| { bytes.push(3) }));
    assert!(out.push(Some(address), None, |_| {}));
    assert!(out.push(Some(address), None, |bytes| bytes.push(4)));
    let flush = out.flush(client.as_fd()).expect("flush");
    assert_eq!((flush.sent, flush.failed, flush.left), (2, 2, 0), "{:?}", flush.error);
    assert!(flush.error.is_some());
    let mut batch = RecvBatch::new(8, 16);
    assert_eq!(batch.recv(server.as_fd()).expect("recv"), 2);
    assert_eq!(batch.datagrams().map(|datagram| datagram.bytes[0]).collect::<Vec<_>>(), [1, 4]);
}

#[test]
fn refusal_of_an_earlier_datagram_does_not_cost_the_next() {
    let (server, address) = listener(V4);
    drop(server);
    let client = udp_connected(address, None, &UdpOptions::default()).expect("connect");
    client.send(b"to nobody").expect("the refusal comes later");
    let server = udp_listener(address, &UdpOptions::default()).expect("bind again");
    let mut out = SendBatch::new(1, 64);
    assert!(out.push(None, None, |bytes| bytes.extend_from_slice(b"to somebody")));
    let flush = out.flush(client.as_fd()).expect("flush");
    assert_eq!((flush.sent, flush.failed), (1, 0));
    assert_eq!(flush.error.expect("the refusal is told").kind(), io::ErrorKind::ConnectionRefused);
    let mut batch = RecvBatch::new(1, 64);
    assert_eq!(batch.recv(server.as_fd()).expect("recv"), 1);
    assert_eq!(batch.datagrams().next().expect("one").bytes, b"to somebody");
}

#[test]
fn full_socket_leaves_the_rest_for_the_next_flush() {
    // A UNIX socket holds its sender back where UDP on loopback would drop.
    let (a, b) = std::os::unix::net::UnixDatagram::pair().expect("pair");
    let mut out = SendBatch::new(64, 64 * 4096);
    let mut number = 0u32;
    while out.push(None, None, |bytes| bytes.extend_from_slice(&[number.to_be_bytes(); 1024].concat())) {
        number += 1;
    }
    let mut sent = 0;
    let mut received = 0;
    let mut partly = false;
    let mut batch = ConnectedRecvBatch::new(64, 4096);
    while received < 64 {
        let flush = out.flush(a.as_fd()).expect("flush");
        sent += flush.sent;
        partly |= flush.left > 0;
        assert_eq!(flush.left, 64 - sent);
        assert_eq!(flush.left, out.len());
        received += batch.recv(b.as_fd()).expect("recv");
        let last = batch.payloads().last().expect("at least one").0;
        assert_eq!(last[..4], (received as u32 - 1).to_be_bytes(), "in order");
    }
    assert!(partly, "64 datagrams are more than such a socket holds");
}

#[test]
fn cleared_batch_sends_nothing() {
    let (server, address) = listener(V4);
    let client = udp_connected(address, None, &UdpOptions::default()).expect("connect");
    let mut out = SendBatch::new(2, 16);
    assert!(out.push(None, None, |bytes| bytes.push(1)));
    out.clear();
    assert_eq!(out.flush(client.as_fd()).expect("flush").sent, 0);
    assert_eq!(
        RecvBatch::new(1, 16).recv(server.as_fd()).expect_err("nothing").kind(),
        io::ErrorKind::WouldBlock
    );
}

#[test]
fn closed_descriptor_is_an_error_of_the_socket() {
    // A file is no socket: nothing can be sent, now or later.
    let file = std::fs::File::open("/dev/null").expect("open");
    let mut out = SendBatch::new(2, 16);
    assert!(out.push(None, None, |bytes| bytes.push(1)));
    assert_eq!(out.flush(file.as_fd()).expect_err("not a socket").raw_os_error(), Some(libc::ENOTSOCK));
    assert_eq!(out.len(), 1);
}

#[test]
fn udp_options_reach_the_kernel() {
    let plain = udp_listener(V4, &UdpOptions::default()).expect("bind");
    let options = UdpOptions {
        reuse_port: true,
        recv_buffer_bytes: Some(65536),
        send_buffer_bytes: Some(32768),
        report_local: false,
    };
    let tuned = udp_listener(V4, &options).expect("bind");
    // The kernel doubles what is asked for.
    for (name, value) in [(libc::SO_RCVBUF, 131_072), (libc::SO_SNDBUF, 65536), (libc::SO_REUSEPORT, 1)] {
        assert_eq!(option(tuned.as_fd(), libc::SOL_SOCKET, name).expect("option"), value);
        assert_ne!(option(plain.as_fd(), libc::SOL_SOCKET, name).expect("option"), value);
    }
    let address = tuned.local_addr().expect("address");
    udp_listener(address, &options).expect("a second one shares the port");
    let alone = udp_listener(plain.local_addr().expect("address"), &UdpOptions::default());
    assert_eq!(alone.expect_err("not shared").kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn connected_socket_leaves_from_the_local_address_given() {
    let (_server, address) = listener(V4);
    let local = IpAddr::from([127, 0, 0, 9]);
    let client = udp_connected(address, Some(local), &UdpOptions::default()).expect("connect");
    assert_eq!(client.local_addr().expect("address").ip(), local);
    assert_eq!(client.peer_addr().expect("address"), address);
}

#[test]
fn wildcard_of_ipv6_leaves_ipv4_alone() {
    let v6 = tcp_listener("[::]:0".parse().expect("address"), &TcpListenerOptions::default()).expect("bind");
    let port = v6.local_addr().expect("address").port();
    tcp_listener(SocketAddr::from(([0, 0, 0, 0], port)), &TcpListenerOptions::default())
        .expect("bind beside it");
}

#[test]
fn tcp_options_reach_the_kernel() {
    let listener = tcp_listener(V4, &TcpListenerOptions::default()).expect("bind");
    let address = listener.local_addr().expect("address");
    let options = TcpOptions {
        nodelay: false,
        keepalive: Some(Keepalive {
            time: Duration::from_secs(33),
            interval: Duration::from_secs(7),
            probes: 5,
        }),
        user_timeout: Some(Duration::from_millis(4321)),
    };
    let bare = TcpOptions { nodelay: true, keepalive: None, user_timeout: None };
    let read = |socket: &TcpStream| {
        [
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
        ]
        .map(|(level, name)| option(socket.as_fd(), level, name).expect("option"))
    };
    let tuned = tcp_socket(address, None, &options).expect("socket");
    assert_eq!(read(&tuned), [0, 1, 4321]);
    let probing = [libc::TCP_KEEPIDLE, libc::TCP_KEEPINTVL, libc::TCP_KEEPCNT]
        .map(|name| option(tuned.as_fd(), libc::IPPROTO_TCP, name).expect("option"));
    assert_eq!(probing, [33, 7, 5]);
    let plain = tcp_socket(address, None, &bare).expect("socket");
    assert_eq!(read(&plain), [1, 0, 0]);
    assert_eq!(read(&tcp_socket(address, None, &TcpOptions::default()).expect("socket")), [1, 1, 10_000]);
    apply_tcp_options(&plain, &options).expect("options of a stream that is there");
    assert_eq!(read(&plain), [0, 1, 4321]);
}

#[test]
fn accepted_connections_inherit_the_options_of_their_listener() {
    let listener = tcp_listener(V4, &TcpListenerOptions::default()).expect("bind");
    let keepalive = Keepalive { time: Duration::from_secs(33), interval: Duration::from_secs(7), probes: 5 };
    let options = TcpOptions {
        nodelay: true,
        keepalive: Some(keepalive),
        user_timeout: Some(Duration::from_millis(4321)),
    };
    apply_tcp_options(&listener, &options).expect("options of a listener");
    let _client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    wait_readable(listener.as_fd());
    let (accepted, _) = listener.accept().expect("accept");
    let read = |level, name| option(accepted.as_fd(), level, name).expect("option");
    assert_eq!(read(libc::SOL_SOCKET, libc::SO_KEEPALIVE), 1);
    let inherited = [
        libc::TCP_NODELAY,
        libc::TCP_USER_TIMEOUT,
        libc::TCP_KEEPIDLE,
        libc::TCP_KEEPINTVL,
        libc::TCP_KEEPCNT,
    ]
    .map(|name| read(libc::IPPROTO_TCP, name));
    assert_eq!(inherited, [1, 4321, 33, 7, 5]);
}

#[test]
fn local_address_takes_no_port_before_the_connection() {
    let listener = tcp_listener(V4, &TcpListenerOptions::default()).expect("bind");
    let address = listener.local_addr().expect("address");
    let local = IpAddr::from([127, 0, 0, 7]);
    let stream = tcp_socket(address, Some(local), &TcpOptions::default()).expect("socket");
    assert_eq!(stream.local_addr().expect("address"), SocketAddr::new(local, 0));
    tcp_connect_begin(&stream, address).expect("connect");
    wait_readable(listener.as_fd());
    let (_accepted, peer) = listener.accept().expect("accept");
    assert_eq!(peer.ip(), local);
}

#[test]
fn reuse_port_lets_two_listeners_share_an_address() {
    let shared = TcpListenerOptions { reuse_port: true, ..TcpListenerOptions::default() };
    let first = tcp_listener(V4, &shared).expect("bind");
    let address = first.local_addr().expect("address");
    tcp_listener(address, &shared).expect("shared");
    let alone = tcp_listener(address, &TcpListenerOptions::default());
    assert_eq!(alone.expect_err("not shared").kind(), io::ErrorKind::AddrInUse);
}

#[test]
fn backlog_bounds_connections_that_wait() {
    let accepted_at_once = |backlog| {
        let listener =
            tcp_listener(V4, &TcpListenerOptions { backlog, ..TcpListenerOptions::default() }).expect("bind");
        let address = listener.local_addr().expect("address");
        let streams: Vec<_> = (0..8)
            .map(|_| {
                let stream = tcp_socket(address, None, &TcpOptions::default()).expect("socket");
                tcp_connect_begin(&stream, address).expect("connect");
                stream
            })
            .collect();
        // On loopback the handshake is over before `connect` returns, unless the queue is full.
        streams.iter().filter(|stream| stream.peer_addr().is_ok()).count()
    };
    assert_eq!(accepted_at_once(16), 8);
    assert_eq!(accepted_at_once(2), 3, "Linux lets one more than the backlog wait");
}

#[test]
fn stream_state_tells_quiet_from_readable_from_closed() {
    let listener = tcp_listener(V4, &TcpListenerOptions::default()).expect("bind");
    let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (far, _) = listener.accept().expect("accept");
    assert_eq!(stream_state(near.as_fd()), StreamState::Quiet);

    io::Write::write_all(&mut &far, b"x").expect("write");
    wait_readable(near.as_fd());
    assert_eq!(stream_state(near.as_fd()), StreamState::Readable);
    assert_eq!(stream_state(near.as_fd()), StreamState::Readable, "looking consumes nothing");
    io::Read::read_exact(&mut &near, &mut [0]).expect("read");
    assert_eq!(stream_state(near.as_fd()), StreamState::Quiet);

    drop(far);
    wait_readable(near.as_fd());
    assert_eq!(stream_state(near.as_fd()), StreamState::Closed);
}

#[test]
fn reset_stream_is_closed() {
    let listener = tcp_listener(V4, &TcpListenerOptions::default()).expect("bind");
    let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (far, _) = listener.accept().expect("accept");
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).expect("linger");
    drop(far);
    wait_readable(near.as_fd());
    assert_eq!(stream_state(near.as_fd()), StreamState::Closed);
}

#[test]
fn a_connection_that_resets_on_close_leaves_nothing_behind() {
    let listener = std::net::TcpListener::bind(V4).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    reset_on_close(&server).expect("linger");
    drop(server);
    wait_readable(client.as_fd());
    let error = io::Read::read(&mut &client, &mut [0]).expect_err("reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn one_half_of_a_connection_ends_and_the_other_goes_on() {
    let listener = std::net::TcpListener::bind(V4).expect("bind");
    let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (server, _) = listener.accept().expect("accept");
    end_writing(&client).expect("shutdown");
    assert_eq!(io::Read::read(&mut &server, &mut [0]).expect("the end"), 0);
    io::Write::write_all(&mut &server, b"still here").expect("write");
    wait_readable(client.as_fd());
    assert_eq!(io::Read::read(&mut &client, &mut [0; 16]).expect("read"), 10);
}

#[test]
fn coarse_clock_follows_the_exact_one() {
    let coarse = coarse_now();
    let exact = now();
    assert!(coarse <= exact);
    assert!(
        exact.saturating_duration_since(coarse) < Duration::from_millis(500),
        "one origin, one tick apart"
    );
    assert!(now() >= exact);
}

#[test]
fn the_cpu_time_of_a_thread_is_read_by_its_number_and_no_other_is() {
    let own: i32 = std::fs::read_link("/proc/thread-self")
        .unwrap()
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    let before = clock::cpu_time_of_thread(own).unwrap();
    let until = now() + Duration::from_millis(20);
    while now() < until {}
    let (by_number, by_itself) = (clock::cpu_time_of_thread(own).unwrap(), clock::thread_cpu_time());
    assert!(by_number > before && by_number <= by_itself, "{before:?} {by_number:?} {by_itself:?}");
    for nobody in [0, -1, i32::MAX, 1 << 22] {
        assert!(clock::cpu_time_of_thread(nobody).is_err(), "{nobody}");
    }
}

#[test]
fn cpu_time_counts_work_and_not_waiting() {
    let (process, thread) = (clock::process_cpu_time(), clock::thread_cpu_time());
    let mut sum = 0u64;
    while clock::thread_cpu_time() - thread < Duration::from_millis(2) {
        sum = std::hint::black_box(sum.wrapping_mul(31) + 1);
    }
    assert!(clock::process_cpu_time() - process >= Duration::from_millis(2));
    let pid = std::process::id() as i32;
    assert!(clock::cpu_time_of(pid).expect("own process") >= process + Duration::from_millis(2));
    for nobody in [i32::MAX, 1 << 22, 0, -1] {
        let error = clock::cpu_time_of(nobody).expect_err("no such process");
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{nobody}");
    }
}

#[test]
fn descriptors_are_counted() {
    // Other tests open and close descriptors meanwhile: hold many, and allow for theirs.
    let before = process::descriptors_in_use().expect("count");
    let held: Vec<_> = (0..500).map(|_| std::fs::File::open("/dev/null").expect("open")).collect();
    let during = process::descriptors_in_use().expect("count");
    drop(held);
    assert!(during >= before + 300, "{before} before, {during} with 500 more");
    let limit = process::descriptor_limit().expect("limit");
    assert!(during <= limit.soft && limit.soft <= limit.hard);
}

#[test]
fn raised_limit_is_the_hard_one() {
    let limit = process::raise_descriptor_limit().expect("raise");
    assert_eq!(limit.soft, limit.hard);
    assert!(process::set_descriptor_limit(limit.hard + 1).is_err() || limit.hard == libc::RLIM_INFINITY);
}

#[test]
fn port_range_is_that_of_the_namespace() {
    let outside = process::local_port_range().expect("range");
    assert!(outside.usable() > 0);
    let Some(namespace) = NetNamespace::for_test(40000..=40049) else {
        return;
    };
    let inside = namespace.run(|| process::local_port_range().expect("range"));
    assert_eq!((inside.first, inside.last, inside.usable()), (40000, 40049, 50));
    assert_eq!(process::local_port_range().expect("range"), outside);
}

#[test]
fn pinned_thread_may_run_on_its_core_only() {
    std::thread::spawn(|| {
        let core = *process::allowed_cores().expect("cores").last().expect("at least one");
        process::pin_current_thread(core).expect("pin");
        assert_eq!(process::allowed_cores().expect("cores"), [core]);
        assert!(process::pin_current_thread(1023).is_err());
        assert!(process::pin_current_thread(usize::MAX).is_err());
    })
    .join()
    .expect("no panic");
}

#[test]
fn epoll_waits_less_than_a_millisecond_when_told_so() {
    clock::exact_timers().expect("timers");
    let mut epoll = Epoll::new(4).expect("epoll");
    let shortest = (0..20)
        .map(|_| {
            let before = now();
            assert_eq!(epoll.wait(Some(Duration::from_micros(100))).expect("wait").count(), 0);
            now().saturating_duration_since(before)
        })
        .min()
        .expect("twenty");
    assert!(shortest >= Duration::from_micros(100) && shortest < Duration::from_micros(900), "{shortest:?}");
}

#[test]
fn epoll_tells_writable_once_asked() {
    let (socket, _) = listener(V4);
    let mut epoll = Epoll::new(4).expect("epoll");
    epoll.add(&socket, 3, Interest::Read).expect("add");
    assert_eq!(epoll.wait(Some(Duration::ZERO)).expect("wait").count(), 0);
    epoll.modify(&socket, 4, Interest::ReadWrite).expect("modify");
    let events: Vec<_> = epoll.wait(Some(Duration::ZERO)).expect("wait").collect();
    assert_eq!(events.len(), 1);
    assert!(events[0].token == 4 && events[0].writable && !events[0].readable);
    assert_eq!(
        epoll.add(&socket, 3, Interest::Read).expect_err("added already").kind(),
        io::ErrorKind::AlreadyExists
    );
}

#[test]
fn a_counting_allocator_counts_what_is_asked_for_and_gives_it() {
    use std::alloc::{GlobalAlloc, Layout};
    let counting = counting::CountingAllocator::new();
    let layout = Layout::from_size_align(100, 8).expect("a layout");
    // SAFETY: the layout has a size; each pointer is checked, used within its size, and given back once with its layout.
    unsafe {
        let pointer = counting.alloc(layout);
        assert!(!pointer.is_null());
        pointer.write_bytes(7, 100);
        let pointer = counting.realloc(pointer, layout, 1000);
        assert_eq!((!pointer.is_null(), *pointer.add(99)), (true, 7));
        counting.dealloc(pointer, Layout::from_size_align(1000, 8).expect("a layout"));
        let zeroed = counting.alloc_zeroed(layout);
        assert_eq!((!zeroed.is_null(), *zeroed.add(99)), (true, 0));
        counting.dealloc(zeroed, layout);
    }
    assert_eq!(counting.allocations(), 3);
}

#[test]
fn a_group_ends_with_all_that_its_leader_started() {
    use std::io::Read;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let mut leader = Command::new("/bin/sh")
        .args(["-c", "sleep 60 & sleep 60"])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("a shell");
    process::end_group(leader.id()).expect("it is there");
    leader.wait().expect("it ends");
    // The end of what both could write to: neither has it any more.
    let mut rest = Vec::new();
    leader.stdout.take().expect("a pipe").read_to_end(&mut rest).expect("an end");
    for no_group in [0, 1, u32::MAX] {
        assert_eq!(process::end_group(no_group).expect_err("none").kind(), io::ErrorKind::InvalidInput);
    }
}

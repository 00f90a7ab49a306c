//! Bytes that are not understood, from end to end: a proxy, backends and clients in one process.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use forebay_proxy::{ProxyConfig, Server, Settings, start};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts a backend of which each connection is served by `serve`, with its number. Ends with the test.
fn backend(serve: impl Fn(TcpStream, u64) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (serve, next) = (Arc::new(serve), AtomicU64::new(0));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (serve, number) = (Arc::clone(&serve), next.fetch_add(1, Ordering::Relaxed));
            thread::spawn(move || serve(stream, number));
        }
    });
    address
}

fn echo(mut stream: TcpStream, _: u64) {
    let mut buffer = [0; 16 << 10];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

fn proxy(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 1,
        ..Settings::default()
    };
    change(&mut settings);
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

fn client(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// Waits until something is so.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "not so: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_a_client_sends_comes_back_from_the_backend() {
    let server = proxy(&[backend(echo)], |_| {});
    let mut client = client(&server);
    let sent: Vec<u8> = (0..3 << 20).map(|n: u32| (n % 251) as u8).collect();
    let mut writer = client.try_clone().unwrap();
    let expected = sent.clone();
    let writing = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert!(rest(&mut client) == expected);
    writing.join().unwrap();
    eventually("all is counted", || {
        let figures = server.handle().figures();
        (figures.bytes_up, figures.bytes_down) == (3 << 20, 3 << 20)
    });
}

#[test]
fn much_in_a_row_goes_by_without_being_copied_and_comes_out_the_same() {
    let server = proxy(&[backend(echo)], |_| {});
    let mut client = client(&server);
    let sent: Arc<Vec<u8>> = Arc::new((0..64 << 20).map(|n: u32| (n % 251) as u8).collect());
    let mut writer = client.try_clone().unwrap();
    let bytes = Arc::clone(&sent);
    let writing = thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        // Small pieces afterwards are copied again.
        for _ in 0..64 {
            writer.write_all(b"small").unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let came = rest(&mut client);
    writing.join().unwrap();
    assert!(came[..64 << 20] == sent[..] && came[64 << 20..] == b"small".repeat(64)[..]);
    let figures = server.handle().figures();
    assert!(figures.bytes_spliced > 32 << 20, "{figures:?}");
}

#[test]
fn a_half_close_is_passed_on_either_way_and_the_other_way_goes_on() {
    // This one closes first, and then reads to the end.
    let (told, heard) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let first = backend(move |mut stream, _| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        // A spare that nobody takes says nothing, and ends when it is no longer wanted.
        if stream.read_to_end(&mut bytes).is_ok_and(|n| n > 0) {
            told.lock().unwrap().send(bytes).unwrap();
        }
    });
    let server = proxy(&[first], |_| {});
    let mut client = client(&server);
    assert_eq!(rest(&mut client), b"bye");
    client.write_all(b"still here").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"still here");
}

#[test]
fn a_reset_is_passed_on_as_one() {
    let server = proxy(
        &[backend(|mut stream, _| {
            let _ = stream.read(&mut [0; 1]);
            forebay::sys::socket::reset_on_close(&stream).unwrap();
        })],
        |_| {},
    );
    let mut client = client(&server);
    client.write_all(b"x").unwrap();
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    eventually("it is counted", || server.handle().figures().failed_backend == 1);
}

#[test]
fn nothing_that_moves_for_long_ends_a_connection() {
    let server =
        proxy(&[backend(echo)], |settings| settings.clients.idle_timeout.0 = Duration::from_millis(300));
    let mut client = client(&server);
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(100));
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
    }
    assert_eq!(rest(&mut client), b"");
    eventually("it is counted", || server.handle().figures().ended_idle == 1);
}

#[test]
fn clients_that_keep_coming_find_spares_and_without_them_spares_go() {
    let address = backend(echo);
    let round = |server: &Server| {
        let mut client = client(server);
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0; 1]).unwrap();
    };
    let server = proxy(&[address], |settings| settings.spares.linger.0 = Duration::from_millis(500));
    for _ in 0..100 {
        round(&server);
        thread::sleep(Duration::from_millis(2));
    }
    let figures = server.handle().figures();
    assert!(figures.spares_used >= 90, "{figures:?}");
    let idle = || server.handle().backends()[0].snapshot.idle;
    assert!(idle() > 0);
    eventually("spares go", || idle() == 0);
    // None where none are wanted.
    for change in [
        (|settings: &mut Settings| settings.spares.max = 0) as fn(&mut Settings),
        |settings| settings.mode = forebay_proxy::Mode::Passthrough,
        |settings| settings.pool = forebay_proxy::PoolMode::Off,
    ] {
        let server = proxy(&[address], change);
        (0..20).for_each(|_| round(&server));
        let figures = server.handle().figures();
        assert_eq!(figures.spares_used, 0, "{figures:?}");
    }
}

#[test]
fn a_backend_that_refuses_is_passed_over_and_no_client_hears_of_it() {
    let dead = SocketAddr::from(([127, 0, 0, 1], forebay_bench::ports::free_port()));
    let server = proxy(&[dead, backend(echo)], |_| {});
    for _ in 0..8 {
        let mut client = client(&server);
        client.write_all(b"hello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut client), b"hello");
    }
    assert!(server.handle().figures().tried_in_vain > 0);
}

#[test]
fn no_two_clients_see_one_connection() {
    let server = proxy(
        &[backend(|mut stream, number| {
            let _ = stream.write_all(&number.to_be_bytes());
            echo(stream, number);
        })],
        |_| {},
    );
    let mut seen = std::collections::HashSet::new();
    for _ in 0..200 {
        let mut client = client(&server);
        let mut stamp = [0; 8];
        client.read_exact(&mut stamp).unwrap();
        assert!(seen.insert(stamp), "a connection was given to a second client");
    }
}

/// A client that is served, or `None` if it is refused; and how long that took.
fn served(server: &Server) -> (Option<TcpStream>, Duration) {
    let began = std::time::Instant::now();
    let mut stream = client(server);
    let is_served = stream.write_all(b"x").is_ok() && stream.read_exact(&mut [0; 1]).is_ok();
    (is_served.then_some(stream), began.elapsed())
}

#[test]
fn a_backend_has_no_more_connections_than_the_setting_says_and_is_not_to_blame_for_it() {
    for max in [1, 3] {
        let server = proxy(&[backend(echo), backend(echo)], |settings| {
            settings.spares.max = 0;
            settings.connections.connections_max = max;
            settings.connections.connect_timeout.0 = Duration::from_millis(200);
            settings.health.failures = 1;
            settings.health.check = forebay_proxy::CheckKind::None;
        });
        let mut held: Vec<_> = (0..2 * max).map(|_| served(&server).0.unwrap()).collect();
        for _ in 0..3 {
            let (refused, took) = served(&server);
            assert!(refused.is_none() && took >= Duration::from_millis(350), "{took:?}: it waits at each");
        }
        assert_eq!(server.handle().figures().tried_in_vain, 6);
        held.clear();
        eventually("they are gone", || server.handle().figures().clients == 0);
        let _held: Vec<_> = (0..2 * max).map(|_| served(&server).0.expect("both serve")).collect();
    }
}

#[test]
fn no_more_clients_wait_for_a_connection_than_the_setting_says() {
    for max in [1_u32, 4] {
        let server = proxy(&[backend(echo)], |settings| {
            settings.spares.max = 0;
            settings.connections.connections_max = 1;
            settings.connections.waiters_max = max;
            settings.connections.connect_timeout.0 = Duration::from_millis(600);
        });
        let _held = served(&server).0.unwrap();
        let all: Vec<_> = thread::scope(|scope| {
            let waiting: Vec<_> = (0..4).map(|_| scope.spawn(|| served(&server).1)).collect();
            waiting.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let waited = all.iter().filter(|took| **took >= Duration::from_millis(500)).count();
        assert_eq!(waited, max as usize, "{all:?}");
    }
}

#[test]
fn there_are_no_more_spares_than_the_setting_says() {
    let most = |max| {
        let server = proxy(&[backend(echo)], |settings| settings.spares.max = max);
        let idle = || server.handle().backends()[0].snapshot.idle;
        let mut most = 0;
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|_| drop(served(&server))));
            }
            for _ in 0..40 {
                most = most.max(idle());
                thread::sleep(Duration::from_millis(5));
            }
        });
        most.max(idle())
    };
    let (few, many) = (most(2), most(64));
    assert!((1..=2).contains(&few) && many > 2, "{few} {many}");
}

#[test]
fn spares_are_replaced_at_the_age_of_the_setting() {
    let replaced = |age: u64| {
        let backend = forebay_bench::backend::Backend::spawn(forebay_bench::backend::Serve::Echo);
        let server = proxy(&[backend.addr()], |settings| {
            settings.spares.age_max.0 = Duration::from_millis(age);
            settings.health.check = forebay_proxy::CheckKind::None;
        });
        (0..100).for_each(|_| drop(served(&server)));
        let before = backend.stats().connections;
        thread::sleep(Duration::from_secs(2));
        assert!(server.handle().backends()[0].snapshot.idle > 0);
        backend.stats().connections - before
    };
    let (often, never) = (replaced(300), replaced(20_000));
    assert!(often >= 4 && never <= 1, "{often} {never}");
}

#[test]
fn one_client_address_has_no_more_connections_than_the_setting_says() {
    for max in [1, 2] {
        let server = proxy(&[backend(echo)], |settings| settings.clients.connections_per_client = max);
        let _held: Vec<_> = (0..max).map(|_| served(&server).0.unwrap()).collect();
        let (refused, took) = served(&server);
        assert!(refused.is_none() && took < Duration::from_millis(500), "at once: {took:?}");
        assert_eq!(server.handle().figures().refused_full, 1);
        let other = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        other.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).unwrap();
        other.connect(&server.local_addrs()[0].address.into()).unwrap();
        let mut other = TcpStream::from(other);
        other.write_all(b"x").unwrap();
        other.read_exact(&mut [0; 1]).unwrap();
    }
}

#[test]
fn every_address_is_listened_on_by_as_many_workers_as_the_setting_says() {
    for workers in [1, 3] {
        let server = proxy(&[backend(echo)], |settings| {
            settings.listen = vec!["127.0.0.1:0".to_owned(), "127.0.0.5:0".to_owned(), "[::1]:0".to_owned()];
            settings.workers = workers;
        });
        assert_eq!(server.handle().workers(), workers);
        for listen in server.local_addrs() {
            let mut client = TcpStream::connect(listen.address).unwrap();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut [0; 1]).unwrap();
        }
    }
}

#[test]
fn the_next_client_goes_where_the_balance_says() {
    use forebay_proxy::BalanceName::{FirstHealthy, LeastConnections, P2c, Random, RoundRobin, SourceHash};
    let named = |name: u8| {
        backend(move |mut stream, number| {
            let _ = stream.write_all(&[name]);
            echo(stream, number);
        })
    };
    let backends = [named(0), named(1), named(2)];
    for balance in [RoundRobin, Random, LeastConnections, P2c, SourceHash, FirstHealthy] {
        let server = proxy(&backends, |settings| {
            settings.balance = balance;
            settings.health.check = forebay_proxy::CheckKind::None;
        });
        let come = || {
            let (mut client, mut name) = (client(&server), [0]);
            client.read_exact(&mut name).unwrap();
            (client, usize::from(name[0]))
        };
        let mut counts = [0; 3];
        let mut held: Vec<_> = (0..30).map(|_| come()).collect();
        held.iter().for_each(|(_, name)| counts[*name] += 1);
        match balance {
            RoundRobin | LeastConnections => assert_eq!(counts, [10; 3], "{balance:?}"),
            Random | P2c => assert!(counts.iter().all(|n| *n > 1), "{balance:?} {counts:?}"),
            SourceHash => assert!(counts.contains(&30), "{counts:?}"),
            FirstHealthy => assert_eq!(counts, [30, 0, 0]),
        }
        // Three that leave one backend are made good by the next three there, or by the turn.
        let gone = held.iter().filter(|(_, name)| *name == 1).count().min(3);
        for _ in 0..gone {
            let place = held.iter().position(|(_, name)| *name == 1).unwrap();
            held.remove(place);
        }
        let left = held.len() as u64;
        eventually("they are gone", || server.handle().figures().clients == left);
        let next: Vec<_> = (0..3).map(|_| come().1).collect();
        match balance {
            // Each leaves at once, and its place is the emptiest again.
            LeastConnections => assert!(next.iter().all(|name| *name == 1), "{next:?}"),
            RoundRobin => assert_eq!(next.iter().sum::<usize>(), 3, "{next:?}"),
            _ => {}
        }
    }
}

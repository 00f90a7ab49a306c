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

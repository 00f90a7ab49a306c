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
    let figures = server.handle().figures();
    assert_eq!((figures.bytes_up, figures.bytes_down), (3 << 20, 3 << 20));
}

#[test]
fn a_backend_that_refuses_is_passed_over_and_no_client_hears_of_it() {
    let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
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

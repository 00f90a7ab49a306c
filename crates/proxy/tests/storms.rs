//! Many clients at once and in a row: what each gets is its own, whole, and nothing of it is left behind.
//!
//! Tests here count what the process has, and run one after the other.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use forebay_bench::backend::{Backend, Serve};
use forebay_core::Rng;
use forebay_proxy::{CheckKind, Mode, OnRemoved, ProxyConfig, Server, Settings, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn proxy(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 2,
        ..Settings::default()
    };
    change(&mut settings);
    start(ProxyConfig::new(&settings, 2).unwrap()).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Closes so that no port is left waiting.
fn reset(stream: TcpStream) {
    forebay::sys::socket::reset_on_close(&stream).unwrap();
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        thread::sleep(Duration::from_micros(500));
    }
}

/// Bytes that nobody expects, and a length that is as often small as large.
fn random_bytes(rng: &mut Rng) -> Vec<u8> {
    let most = [1, 100, 20_000, 200_000][rng.below(4) as usize];
    let mut bytes = vec![0; rng.below(most) as usize];
    for chunk in bytes.chunks_mut(8) {
        let word = rng.next_u64().to_ne_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes
}

fn read_all(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    bytes
}

/// What a backend has read and what it will say next, for the client to compare.
type Ledger = Arc<Mutex<VecDeque<(Vec<u8>, Vec<u8>)>>>;

const HALF_CLOSES: u64 = 1000;

#[test]
fn a_thousand_half_closes_by_the_client_first_are_exact_to_the_byte() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let ledger = Ledger::default();
    let books = Arc::clone(&ledger);
    thread::spawn(move || {
        let mut rng = Rng::new(1);
        // One after the other: without spares and checks, the order of connections is that of clients.
        for mut stream in listener.incoming().flatten() {
            let heard = read_all(&mut stream);
            let answer = random_bytes(&mut rng);
            books.lock().unwrap().push_back((heard, answer.clone()));
            stream.write_all(&answer).unwrap();
        }
    });
    let server = proxy(&[backend], |settings| {
        settings.spares.max = 0;
        settings.health.check = CheckKind::None;
    });
    let mut rng = Rng::new(2);
    for n in 0..HALF_CLOSES {
        let sent = random_bytes(&mut rng);
        let mut client = connect(&server);
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let came = read_all(&mut client);
        let (heard, answer) = ledger.lock().unwrap().pop_front().unwrap();
        assert!(heard == sent, "{n}: the backend heard {} bytes of {}", heard.len(), sent.len());
        assert!(came == answer, "{n}: the client heard {} bytes of {}", came.len(), answer.len());
    }
    until("each ended whole", || {
        let figures = server.handle().figures();
        figures.clients == 0 && figures.failed_client + figures.failed_backend == 0
    });
}

#[test]
fn a_thousand_half_closes_by_the_backend_first_are_exact_to_the_byte() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    let ledger = Ledger::default();
    let books = Arc::clone(&ledger);
    thread::spawn(move || {
        let mut rng = Rng::new(3);
        for mut stream in listener.incoming().flatten() {
            let said = random_bytes(&mut rng);
            stream.write_all(&said).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // The other way goes on for as long as the client likes.
            let heard = read_all(&mut stream);
            books.lock().unwrap().push_back((heard, said));
        }
    });
    let server = proxy(&[backend], |settings| {
        settings.spares.max = 0;
        settings.health.check = CheckKind::None;
    });
    let mut rng = Rng::new(4);
    for n in 0..HALF_CLOSES {
        let mut client = connect(&server);
        let came = read_all(&mut client);
        let sent = random_bytes(&mut rng);
        client.write_all(&sent).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        until("the backend has heard all", || !ledger.lock().unwrap().is_empty());
        let (heard, said) = ledger.lock().unwrap().pop_front().unwrap();
        assert!(heard == sent, "{n}: the backend heard {} bytes of {}", heard.len(), sent.len());
        assert!(came == said, "{n}: the client heard {} bytes of {}", came.len(), said.len());
    }
    until("each ended whole", || {
        let figures = server.handle().figures();
        figures.clients == 0 && figures.failed_client + figures.failed_backend == 0
    });
}

/// A backend gives up half-way, with a reset, while more is on its way to it than it takes: what it had said must never
/// look whole. A socket tells its error once, and who writes to it is the first to hear.
#[test]
fn an_answer_that_a_reset_cuts_off_never_looks_whole() {
    let _alone = alone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let _ = stream.read_exact(&mut vec![0; 100_000]);
                thread::sleep(Duration::from_millis(600));
                let _ = stream.write_all(b"half of an ans");
                thread::sleep(Duration::from_millis(20));
                reset(stream);
            });
        }
    });
    let server = proxy(&[backend], |settings| {
        settings.spares.max = 0;
        settings.health.check = CheckKind::None;
    });
    thread::scope(|scope| {
        for _ in 0..12 {
            scope.spawn(|| {
                let mut client = connect(&server);
                client.set_nonblocking(true).unwrap();
                let mut stuck = 0;
                while stuck < 5 {
                    match client.write(&[7; 10_000]) {
                        Ok(_) => stuck = 0,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            stuck += 1;
                            thread::sleep(Duration::from_millis(10));
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                client.set_nonblocking(false).unwrap();
                let mut came = Vec::new();
                let end = client.read_to_end(&mut came);
                assert!(end.is_err(), "{} bytes came, and then an end as if they were all", came.len());
            });
        }
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn after_a_storm_no_descriptor_is_left() {
    let _alone = alone();
    for mode in [Mode::Opaque, Mode::Http] {
        let serve = if mode == Mode::Http { Serve::Http } else { Serve::Echo };
        let backends = [Backend::spawn(serve.clone()), Backend::spawn(serve)];
        let addresses = backends.each_ref().map(Backend::addr);
        let before = descriptors();
        let server = proxy(&addresses, |settings| {
            settings.mode = mode;
            settings.spares.linger.0 = Duration::from_millis(200);
            settings.http.backend_idle_timeout.0 = Duration::from_millis(500);
        });
        let is_quiet = |server: &Server| {
            server.handle().figures().clients == 0
                && server.handle().backends().iter().all(|one| one.snapshot.connections() == 0)
        };
        until("it has started", || is_quiet(&server));
        let at_rest = descriptors();
        thread::scope(|scope| {
            for seed in 0..4 {
                let server = &server;
                scope.spawn(move || {
                    let mut rng = Rng::new(seed);
                    for _ in 0..500 {
                        storm(&mut rng, server, mode);
                    }
                });
            }
        });
        // Who resets at once may have gone before anybody saw it.
        until("nearly all have come", || server.handle().figures().accepted > 1500);
        until("clients and connections are gone", || is_quiet(&server));
        until("descriptors are as at the start", || descriptors() <= at_rest);
        drop(server);
        until("all of the proxy is gone", || {
            backends.iter().all(|backend| backend.stats().connections_open == 0) && descriptors() <= before
        });
    }
}

/// One client, which does what clients do.
fn storm(rng: &mut Rng, server: &Server, mode: Mode) {
    let mut client = connect(server);
    let request: &[u8] = match mode {
        Mode::Http => {
            b"POST /echo HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"
        }
        _ => b"hello",
    };
    match rng.below(6) {
        0 => reset(client),
        1 => drop(client),
        2 => {
            // It leaves in the middle of what it says.
            client.write_all(&request[..request.len() - 2]).unwrap();
            reset(client);
        }
        3 => {
            client.write_all(request).unwrap();
            drop(client);
        }
        4 => {
            client.write_all(request).unwrap();
            assert!(client.read(&mut [0; 3]).unwrap() > 0);
            reset(client);
        }
        _ => {
            client.write_all(request).unwrap();
            // To HTTP, who ends has left.
            if mode == Mode::Opaque {
                client.shutdown(Shutdown::Write).unwrap();
            }
            assert!(read_all(&mut client).windows(5).any(|bytes| bytes == b"hello"));
        }
    }
}

const CLIENTS: u64 = 100_000;

/// What stamps connections: a number that no two have, before anything else; then it sends back what it gets.
struct Stamping {
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Stamping {
    fn start(n: u8) -> Self {
        let listeners: Vec<_> =
            (1..=n).map(|n| TcpListener::bind((Ipv4Addr::new(127, 0, 77, n), 0)).unwrap()).collect();
        let addresses = listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let next = Arc::new(AtomicU64::new(0));
            runtime.block_on(async {
                for listener in listeners {
                    listener.set_nonblocking(true).unwrap();
                    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                    let next = Arc::clone(&next);
                    tokio::spawn(async move {
                        while let Ok((stream, _)) = listener.accept().await {
                            tokio::spawn(stamp(stream, next.fetch_add(1, Relaxed)));
                        }
                    });
                }
                while !stopped.load(Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
        });
        Self { addresses, stop, thread: Some(thread) }
    }
}

async fn stamp(mut stream: tokio::net::TcpStream, number: u64) {
    if stream.write_all(&number.to_be_bytes()).await.is_err() {
        return;
    }
    let mut buffer = [0; 256];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

impl Drop for Stamping {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn list(path: &Path, backends: &[SocketAddr]) {
    let beside = path.with_extension("new");
    let lines: Vec<_> = backends.iter().map(ToString::to_string).collect();
    std::fs::write(&beside, lines.join("\n")).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[test]
fn of_a_hundred_thousand_clients_no_two_see_one_connection() {
    let _alone = alone();
    let began = Instant::now();
    let backends = Stamping::start(6);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints");
    list(&path, &backends.addresses);
    let server = proxy(&[], |settings| {
        settings.discovery.file.clone_from(&path);
        settings.health.on_removed = OnRemoved::Drain;
        settings.health.slow_start.0 = Duration::ZERO;
        settings.spares.age_max.0 = Duration::from_secs(1);
        // Each has a range of the local ports for itself.
        settings.listen = (1..=4).map(|n| format!("127.0.78.{n}:0")).collect();
    });
    // More than there can be connections: each client has one, and few spares go unused.
    let seen: Arc<Vec<AtomicU8>> = Arc::new((0..4 * CLIENTS).map(|_| AtomicU8::new(0)).collect());
    let (next, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let stamped = AtomicU64::new(0);
    let mut changes = 0;
    thread::scope(|scope| {
        for (seed, listen) in server.local_addrs().iter().enumerate() {
            let (seen, next, stamped) = (&seen, &next, &stamped);
            scope.spawn(move || {
                let mut rng = Rng::new(seed as u64);
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= CLIENTS {
                        return;
                    }
                    if let Some(stamp) = visit(&mut rng, listen.address, number) {
                        stamped.fetch_add(1, Relaxed);
                        let before = seen[stamp as usize].fetch_add(1, Relaxed);
                        assert_eq!(before, 0, "connection {stamp} was given to a second client");
                    }
                }
            });
        }
        // Backends come and go.
        let (addresses, path, over, next, changes) = (&backends.addresses, &path, &over, &next, &mut changes);
        scope.spawn(move || {
            let mut rng = Rng::new(9);
            while next.load(Relaxed) < CLIENTS && !over.load(Relaxed) {
                let first = rng.below(6) as usize;
                let some: Vec<_> = addresses.iter().cycle().skip(first).take(3).copied().collect();
                list(path, &some);
                *changes += 1;
                thread::sleep(Duration::from_millis(300));
            }
        });
    });
    let figures = server.handle().figures();
    println!(
        "{CLIENTS} clients, {} stamps, {changes} lists, {} spares used, in {:?}",
        stamped.load(Relaxed),
        figures.spares_used,
        began.elapsed()
    );
    assert_eq!(figures.refused_unreachable, 0);
    assert!(stamped.load(Relaxed) > CLIENTS / 2);
    assert!(figures.spares_used > CLIENTS / 10, "{figures:?}");
    assert!(server.handle().discovery().unwrap().changes > 3);
}

/// One client of the stamping backends. Returns the stamp that it saw, if it waited for one.
fn visit(rng: &mut Rng, address: SocketAddr, number: u64) -> Option<u64> {
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut stamp, mut own) = ([0; 8], number.to_be_bytes());
    let kind = rng.below(8);
    match kind {
        // It leaves before it has heard anything.
        0 => {
            reset(client);
            return None;
        }
        1 => {
            // What it says must not reach anybody else.
            match client.write_all(&own) {
                Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("{error}"),
                _ => reset(client),
            }
            return None;
        }
        // It never sends.
        2 | 3 => client.read_exact(&mut stamp).unwrap(),
        // It says that it will not.
        4 => {
            client.shutdown(Shutdown::Write).unwrap();
            let came = read_all(&mut client);
            stamp.copy_from_slice(&came);
        }
        _ => {
            client.write_all(&own).unwrap();
            client.read_exact(&mut stamp).unwrap();
            client.read_exact(&mut own).unwrap();
            assert_eq!(own, number.to_be_bytes(), "another client's bytes");
        }
    }
    reset(client);
    Some(u64::from_be_bytes(stamp))
}

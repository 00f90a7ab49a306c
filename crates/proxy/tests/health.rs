//! Backends that die, hang and come back, from end to end: clients of a proxy hear as little of it as can be.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_proxy::{CheckKind, OnUnhealthy, ProxyConfig, Server, Settings, start};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A backend that answers each line with its name, on as many connections as come, until it is killed.
struct Backend {
    address: SocketAddr,
    dead: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    /// The status that it gives to requests for `/readyz`.
    ready: Arc<AtomicU16>,
    clients: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start(name: &'static str) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), name)
    }

    fn start_at(address: SocketAddr, name: &'static str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (dead, streams) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (ready, clients) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let thread = thread::spawn({
            let (dead, streams) = (Arc::clone(&dead), Arc::clone(&streams));
            let (ready, clients) = (Arc::clone(&ready), Arc::clone(&clients));
            move || {
                while !dead.load(SeqCst) {
                    let Ok((stream, _)) = listener.accept() else {
                        thread::sleep(Duration::from_millis(1));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    streams.lock().unwrap().push(stream.try_clone().unwrap());
                    let (ready, clients) = (Arc::clone(&ready), Arc::clone(&clients));
                    thread::spawn(move || answer(stream, name, &ready, &clients));
                }
            }
        });
        Self { address, dead, streams, ready, clients, thread: Some(thread) }
    }

    /// Closes the listener and resets all connections.
    fn kill(&mut self) {
        self.dead.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.kill();
    }
}

fn answer(mut stream: TcpStream, name: &str, ready: &AtomicU16, clients: &AtomicUsize) {
    let mut buffer = [0; 1024];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let answer = if buffer[..n].starts_with(b"GET /readyz ") {
            format!("HTTP/1.1 {} x\r\nConnection: close\r\n\r\n", ready.load(SeqCst))
        } else {
            clients.fetch_add(1, SeqCst);
            name.to_owned()
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn proxy(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 2,
        ..Settings::default()
    };
    settings.health.check = CheckKind::None;
    settings.spares.max = 0;
    change(&mut settings);
    start(ProxyConfig::new(&settings, 2).unwrap()).unwrap()
}

fn connect(server: &Server) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server.local_addrs()[0].address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A new client asks who serves it.
fn ask(server: &Server) -> io::Result<String> {
    ask_on(&mut connect(server)?)
}

fn ask_on(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"who\n")?;
    let mut buffer = [0; 64];
    match stream.read(&mut buffer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        n => Ok(String::from_utf8_lossy(&buffer[..n]).into_owned()),
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn quick(settings: &mut Settings) {
    settings.health.interval = Span(Duration::from_millis(200));
    settings.health.timeout = Span(Duration::from_millis(500));
    settings.health.slow_start = Span(Duration::ZERO);
}

#[test]
fn the_death_of_one_of_three_under_load_fails_no_new_client_and_is_known_within_two_seconds() {
    let mut backends = [Backend::start("a"), Backend::start("b"), Backend::start("c")];
    let addresses = backends.each_ref().map(|backend| backend.address);
    // The defaults: checks each five seconds.
    let server = Arc::new(proxy(&addresses, |settings| settings.health.check = CheckKind::Tcp));
    let over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (server, over) = (Arc::clone(&server), Arc::clone(&over));
            thread::spawn(move || {
                let mut results = Vec::new();
                while !over.load(SeqCst) {
                    let began = Instant::now();
                    results.push((began, ask(&server)));
                    thread::sleep(Duration::from_millis(2));
                }
                results
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(500));
    let death = Instant::now();
    backends[1].kill();
    thread::sleep(Duration::from_secs(2));
    let vain = server.handle().figures().tried_in_vain;
    thread::sleep(Duration::from_secs(1));
    assert_eq!(server.handle().figures().tried_in_vain, vain, "the dead one is still tried");
    over.store(true, SeqCst);
    let results: Vec<_> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let after = results.iter().filter(|(began, _)| *began > death + Duration::from_millis(50));
    let failed: Vec<_> = after.clone().filter(|(_, result)| result.is_err()).collect();
    assert!(after.count() > 200);
    assert!(failed.is_empty(), "{failed:?}");
    let by_b = results.iter().filter(|(_, result)| matches!(result, Ok(name) if name == "b")).count();
    assert!(by_b > 20, "it had served {by_b}");
}

#[test]
fn a_backend_that_swallows_connections_costs_a_client_one_connect_timeout_and_then_nobody_any() {
    // A backlog that is full: the kernel drops whoever knocks.
    let hole = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    hole.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    hole.listen(0).unwrap();
    let address = hole.local_addr().unwrap().as_socket().unwrap();
    let fillers: Vec<_> = (0..4)
        .map(|_| {
            let filler = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address.into());
            filler
        })
        .collect();
    let good = Backend::start("good");
    let server = proxy(&[address, good.address], |settings| {
        settings.connections.connect_timeout = Span(Duration::from_millis(300));
        settings.health.failures = 3;
    });
    let times: Vec<_> = (0..20)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(ask(&server).unwrap(), "good");
            began.elapsed()
        })
        .collect();
    assert!(times.iter().all(|took| *took < Duration::from_secs(1)), "{times:?}");
    let slow = times.iter().filter(|took| **took > Duration::from_millis(250)).count();
    assert!((1..=4).contains(&slow), "{times:?}");
    assert!(times[12..].iter().all(|took| *took < Duration::from_millis(250)), "it is left alone: {times:?}");
    drop(fillers);
}

#[test]
fn when_all_are_thought_dead_all_are_tried() {
    let mut only = Backend::start("a");
    let server = proxy(&[only.address], |settings| {
        settings.health.check = CheckKind::Tcp;
        quick(settings);
        // A check will not save the day.
        settings.health.rise = 1000;
    });
    assert_eq!(ask(&server).unwrap(), "a");
    only.kill();
    until("the only backend is unhealthy", || !server.handle().is_ready());
    assert!(ask(&server).is_err());
    let back = Backend::start_at(only.address, "back");
    until("it serves again", || ask(&server).is_ok_and(|name| name == "back"));
    assert!(!server.handle().is_ready(), "and is still thought to be unhealthy");
    drop(back);
}

#[test]
fn a_backend_that_says_it_is_not_ready_gets_no_clients_until_it_says_that_it_is() {
    let (a, b) = (Backend::start("a"), Backend::start("b"));
    let server = proxy(&[a.address, b.address], |settings| {
        settings.health.check = CheckKind::Http;
        settings.health.path = "/readyz".to_owned();
        settings.health.expect = vec!["200".to_owned()];
        quick(settings);
    });
    let served = |n: usize| (0..n).filter(|_| ask(&server).unwrap() == "a").count();
    assert!((4..=6).contains(&served(10)), "both get theirs");
    a.ready.store(503, SeqCst);
    until("a gets nobody", || served(4) == 0);
    assert_eq!(served(10), 0);
    a.ready.store(200, SeqCst);
    until("a gets its share again", || (4..=6).contains(&served(10)));
}

#[test]
fn connections_in_use_end_with_the_health_of_their_backend_or_stay_as_the_setting_says() {
    for (setting, stays) in [(OnUnhealthy::Close, false), (OnUnhealthy::Keep, true)] {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let server = proxy(&[a.address, b.address], |settings| {
            settings.health.check = CheckKind::Http;
            settings.health.path = "/readyz".to_owned();
            settings.health.on_unhealthy = setting;
            quick(settings);
        });
        let mut held: Vec<_> = (0..2).map(|_| connect(&server).unwrap()).collect();
        let names: Vec<_> = held.iter_mut().map(|stream| ask_on(stream).unwrap()).collect();
        a.ready.store(500, SeqCst);
        until("a gets nobody", || (0..4).all(|_| ask(&server).unwrap() == "b"));
        thread::sleep(Duration::from_millis(100));
        for (stream, name) in held.iter_mut().zip(names) {
            assert_eq!(ask_on(stream).is_ok(), name == "b" || stays, "{setting:?} {name}");
        }
    }
}

#[test]
fn a_backend_that_is_back_is_used_within_seconds() {
    let (mut a, b) = (Backend::start("a"), Backend::start("b"));
    let server = proxy(&[a.address, b.address], |settings| {
        settings.health.check = CheckKind::Tcp;
        quick(settings);
    });
    a.kill();
    until("a is left alone", || {
        let vain = server.handle().figures().tried_in_vain;
        (0..6).for_each(|_| assert_eq!(ask(&server).unwrap(), "b"));
        server.handle().figures().tried_in_vain == vain
    });
    let back = Backend::start_at(a.address, "back");
    let began = Instant::now();
    until("it serves again", || ask(&server).unwrap() == "back");
    assert!(began.elapsed() < Duration::from_secs(2));
    drop((back, b.clients.load(SeqCst)));
}

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
    let hole = Hole::dig();
    let address = hole.address;
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
}

/// What swallows connections: a backlog that is full, where the kernel drops whoever knocks.
struct Hole {
    address: SocketAddr,
    _sockets: Vec<socket2::Socket>,
}

impl Hole {
    fn dig() -> Self {
        let socket = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let hole = socket();
        hole.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
        hole.listen(0).unwrap();
        let address = hole.local_addr().unwrap().as_socket().unwrap();
        let fillers = (0..4).map(|_| {
            let filler = socket();
            filler.set_nonblocking(true).unwrap();
            let _ = filler.connect(&address.into());
            filler
        });
        let mut sockets: Vec<_> = fillers.collect();
        sockets.push(hole);
        Self { address, _sockets: sockets }
    }
}

#[test]
fn a_client_waits_for_all_backends_together_no_longer_than_the_setting_says() {
    let holes = [Hole::dig(), Hole::dig(), Hole::dig()];
    for (budget, tried) in [(300, 1), (700, 3), (5000, 3)] {
        let server = proxy(&holes.each_ref().map(|hole| hole.address), |settings| {
            settings.connections.connect_timeout = Span(Duration::from_millis(300));
            settings.connections.connect_budget = Span(Duration::from_millis(budget));
        });
        let began = Instant::now();
        assert!(ask(&server).is_err());
        let (took, lasts) = (began.elapsed().as_millis() as u64, budget.min(900));
        assert!(took + 50 > lasts && took < lasts + 250, "{took} ms of {lasts}");
        assert_eq!(server.handle().figures().tried_in_vain, tried);
    }
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
        // Who is at a when it is found unhealthy may be cut.
        until("a gets nobody", || (0..4).all(|_| ask(&server).is_ok_and(|who| who == "b")));
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

/// A backend that closes each connection with a reset once the client has said something, while `spoilt`; else it
/// answers each with its name.
struct Moody {
    address: SocketAddr,
    spoilt: Arc<AtomicBool>,
    clients: Arc<AtomicUsize>,
}

fn moody(name: &'static str, spoilt: bool) -> Moody {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (spoilt, clients) = (Arc::new(AtomicBool::new(spoilt)), Arc::new(AtomicUsize::new(0)));
    let (is_spoilt, came) = (Arc::clone(&spoilt), Arc::clone(&clients));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (is_spoilt, came) = (Arc::clone(&is_spoilt), Arc::clone(&came));
            thread::spawn(move || {
                while let Ok(1..) = stream.read(&mut [0; 64]) {
                    came.fetch_add(1, SeqCst);
                    if is_spoilt.load(SeqCst) {
                        return forebay::sys::socket::reset_on_close(&stream).unwrap();
                    }
                    if stream.write_all(name.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Moody { address, spoilt, clients }
}

/// How many of so many clients are served by nobody.
fn failed(server: &Server, n: usize) -> usize {
    (0..n).filter(|_| ask(server).is_err()).count()
}

#[test]
fn resets_before_the_first_byte_eject_a_backend_after_as_many_as_the_setting_says() {
    for (failures, met) in [(2, 2), (4, 4), (0, 20)] {
        let (bad, good) = (moody("bad", true), moody("good", false));
        let server = proxy(&[bad.address, good.address], |settings| {
            settings.workers = 1;
            settings.health.failures = failures;
        });
        assert_eq!(failed(&server, 40), met, "failures = {failures}");
        assert_eq!(bad.clients.load(SeqCst), met);
    }
}

#[test]
fn a_client_that_resets_first_is_no_failure_of_its_backend() {
    let (a, b) = (moody("a", false), moody("b", false));
    let server = proxy(&[a.address, b.address], |settings| {
        settings.workers = 1;
        settings.health.failures = 1;
    });
    for _ in 0..20 {
        let silent = connect(&server).unwrap();
        forebay::sys::socket::reset_on_close(&silent).unwrap();
        drop(silent);
        let mut stream = connect(&server).unwrap();
        stream.write_all(b"w").unwrap();
        forebay::sys::socket::reset_on_close(&stream).unwrap();
    }
    until("they are gone", || server.handle().figures().clients == 0);
    let served = |name: &str| (0..20).filter(|_| ask(&server).unwrap() == name).count();
    assert!(served("a") > 0 && served("b") > 0, "nobody is ejected");
}

#[test]
fn a_reset_after_the_first_byte_is_an_answer_and_ejects_nobody() {
    let (bad, good) = (moody("bad", false), moody("good", false));
    let server = proxy(&[bad.address, good.address], |settings| {
        settings.workers = 1;
        settings.health.failures = 1;
    });
    let mut held: Vec<_> = (0..10).map(|_| connect(&server).unwrap()).collect();
    held.iter_mut().for_each(|stream| drop(ask_on(stream).unwrap()));
    bad.spoilt.store(true, SeqCst);
    let lost = held.iter_mut().filter_map(|stream| ask_on(stream).err()).count();
    assert_eq!(lost, 5);
    bad.spoilt.store(false, SeqCst);
    assert_eq!((0..10).filter(|_| ask(&server).unwrap() == "bad").count(), 5);
}

#[test]
fn what_a_backend_has_counted_stays_when_it_is_ejected() {
    let (bad, good) = (moody("bad", false), moody("good", false));
    let server = proxy(&[bad.address, good.address], |settings| {
        settings.workers = 1;
        settings.health.failures = 1;
    });
    let dials = || {
        let all = server.handle().backends();
        let one = all.iter().find(|one| one.backend.address == bad.address);
        one.map_or(0, |one| one.snapshot.counters.dials_succeeded)
    };
    assert_eq!(failed(&server, 20), 0);
    assert_eq!(dials(), 10);
    bad.spoilt.store(true, SeqCst);
    assert_eq!(failed(&server, 20), 1);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(dials(), 11, "it is not counted anew");
}

/// Fails until it is ejected. Returns how long it is left alone, by how soon a client comes to it again.
fn time_out_of_use(server: &Server, bad: &Moody, failures: usize) -> Duration {
    assert_eq!(failed(server, 12), failures);
    let (began, before) = (Instant::now(), bad.clients.load(SeqCst));
    bad.spoilt.store(false, SeqCst);
    until("it is back", || {
        let _ = ask(server);
        bad.clients.load(SeqCst) > before
    });
    bad.spoilt.store(true, SeqCst);
    began.elapsed()
}

#[test]
fn an_ejection_lasts_as_long_as_the_settings_say_and_the_next_twice_as_long_up_to_a_most() {
    let millis = Duration::from_millis;
    for (base, most, lasting) in
        [(300, 10_000, [300, 600]), (600, 10_000, [600, 1200]), (300, 300, [300, 300])]
    {
        let (bad, good) = (moody("bad", true), moody("good", false));
        let server = proxy(&[bad.address, good.address], |settings| {
            settings.workers = 1;
            settings.health.failures = 2;
            settings.health.ejection.0 = millis(base);
            settings.health.ejection_max.0 = millis(most);
            settings.health.slow_start.0 = Duration::ZERO;
        });
        let first = time_out_of_use(&server, &bad, 2);
        // What came back unproved, and was good once, fails twice again.
        let second = time_out_of_use(&server, &bad, 2);
        for (took, lasts) in [first, second].into_iter().zip(lasting) {
            assert!(took > millis(lasts * 2 / 3) && took < millis(lasts * 3 / 2 + 100), "{took:?} {lasts}");
        }
    }
}

#[test]
fn no_more_backends_are_ejected_than_the_setting_says() {
    for (percent, left) in [(0, 3), (50, 2), (100, 1)] {
        let bad = [moody("x", true), moody("y", true)];
        let good = moody("good", false);
        let all = [bad[0].address, bad[1].address, good.address];
        let server = proxy(&all, |settings| {
            settings.workers = 1;
            settings.health.failures = 1;
            settings.health.max_ejection_percent = percent;
        });
        failed(&server, 12);
        let before: usize = bad.iter().map(|bad| bad.clients.load(SeqCst)).sum();
        failed(&server, 60);
        let met = bad.iter().map(|bad| bad.clients.load(SeqCst)).sum::<usize>() - before;
        assert_eq!(met, 60 - 60 / left, "{percent} %: {left} are left in turn");
    }
}

#[test]
fn a_backend_that_comes_back_gets_less_than_its_share_for_as_long_as_the_setting_says() {
    let shares = |slow_start: Duration| {
        let (a, b) = (Backend::start("a"), Backend::start("b"));
        let server = proxy(&[a.address, b.address], |settings| {
            settings.health.check = CheckKind::Http;
            settings.health.path = "/readyz".to_owned();
            quick(settings);
            settings.health.interval = Span(Duration::from_millis(50));
            settings.health.slow_start = Span(slow_start);
        });
        a.ready.store(500, SeqCst);
        // Who is at a when it is found unhealthy may be cut.
        until("a gets nobody", || (0..4).all(|_| ask(&server).is_ok_and(|who| who == "b")));
        a.ready.store(200, SeqCst);
        until("a gets somebody", || ask(&server).unwrap() == "a");
        (0..100).filter(|_| ask(&server).unwrap() == "a").count()
    };
    let (at_once, slowly) = (shares(Duration::ZERO), shares(Duration::from_secs(60)));
    assert!((45..=55).contains(&at_once), "{at_once}");
    assert!((5..=20).contains(&slowly), "{slowly}");
}

/// A server that counts what checks ask of it, and answers as it is told.
struct Checked {
    address: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<Mutex<Vec<(Instant, String)>>>,
}

fn checked(delay: Duration) -> Checked {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
    let (answer, seen) = (Arc::clone(&status), Arc::clone(&asked));
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
            thread::spawn(move || {
                let mut buffer = [0; 1024];
                let Ok(n @ 1..) = stream.read(&mut buffer) else { return };
                seen.lock()
                    .unwrap()
                    .push((Instant::now(), String::from_utf8_lossy(&buffer[..n]).into_owned()));
                thread::sleep(delay);
                let _ = stream.write_all(format!("HTTP/1.1 {} x\r\n\r\n", answer.load(SeqCst)).as_bytes());
            });
        }
    });
    Checked { address, status, asked }
}

fn by_http(settings: &mut Settings) {
    settings.health.check = CheckKind::Http;
    quick(settings);
}

#[test]
fn checks_ask_for_the_path_and_the_host_of_the_settings_as_often_as_they_say() {
    let count = |interval: u64, host: Option<&str>, path: &str| {
        let backend = checked(Duration::ZERO);
        let server = proxy(&[backend.address], |settings| {
            by_http(settings);
            settings.health.interval = Span(Duration::from_millis(interval));
            settings.health.host = host.map(str::to_owned);
            settings.health.path = path.to_owned();
        });
        thread::sleep(Duration::from_millis(1500));
        drop(server);
        let asked = backend.asked.lock().unwrap();
        let host = host.map_or(backend.address.to_string(), str::to_owned);
        let wanted = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n");
        assert!(asked.iter().all(|(_, text)| text.starts_with(&wanted)), "{asked:?}");
        asked.len()
    };
    let (often, seldom) = (count(100, None, "/"), count(700, Some("api.example:1"), "/x?y"));
    assert!((9..=20).contains(&often), "{often}");
    assert!((2..=4).contains(&seldom), "{seldom}");
}

#[test]
fn a_check_may_take_as_long_as_the_setting_says() {
    for (timeout, is_well) in [(100, false), (2000, true)] {
        let backend = checked(Duration::from_millis(400));
        let server = proxy(&[backend.address], |settings| {
            by_http(settings);
            settings.health.timeout = Span(Duration::from_millis(timeout));
        });
        thread::sleep(Duration::from_millis(1500));
        assert_eq!(server.handle().is_ready(), is_well, "{timeout} ms");
    }
}

#[test]
fn so_many_checks_in_a_row_as_the_settings_say_change_the_verdict() {
    for (fall, rise) in [(1, 1), (3, 1), (1, 4)] {
        let backend = checked(Duration::ZERO);
        let server = proxy(&[backend.address], |settings| {
            by_http(settings);
            settings.health.fall = fall;
            settings.health.rise = rise;
        });
        until("it is checked", || !backend.asked.lock().unwrap().is_empty());
        let checks_until = |status: u16, ready: bool| {
            backend.status.store(status, SeqCst);
            let before = backend.asked.lock().unwrap().len() as u32;
            until("the verdict changes", || server.handle().is_ready() == ready);
            backend.asked.lock().unwrap().len() as u32 - before
        };
        for (n, wanted) in [(checks_until(500, false), fall), (checks_until(200, true), rise)] {
            // One may be on its way while the answer changes, another begin before that is seen.
            assert!((wanted - 1..=wanted + 1).contains(&n), "fall {fall}, rise {rise}: {n} of {wanted}");
        }
    }
}

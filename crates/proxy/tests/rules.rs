//! The rules of what may be shared, each as what it forbids, from end to end through a running proxy.
//!
//! | rule | what it is about |
//! |---|---|
//! | 1 | bytes that are not understood: a connection serves one client |
//! | 2 | what makes two connections different |
//! | 3 | when a connection may be kept |
//! | 4 | messages that two readers would understand differently |
//! | 5 | tunnels |
//! | 6 | fields that belong to a connection |
//! | 7, 8 | kept connections that their backend has left, or is about to |
//! | 9 | what is sent again |
//! | 10 | connections that were authenticated |
//! | 11 | HTTP/2 |
//! | 12 | what this machine lacks is no backend's fault |
//! | 13 | backends that are removed, or are not well |
//! | 14 | exchanges that are dropped |

#[path = "support/http1.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod http1;
#[path = "support/http2.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod http2;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use forebay::sys::netns::NetNamespace;
use forebay::units::Span;
use forebay_bench::backend::http::WRONG;
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{
    CheckKind, DiscoverySettings, Mode, OnRemoved, PoolMode, ProxyConfig, ReuseName, SendHeader, Server,
    Settings,
};
use forebay_proxy_core::http1::Method;
use http1::{Client, PATIENCE, ask, backend, eventually, figures, pair, proxy};

const fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

/// A proxy of bytes that are not understood.
fn opaque(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
    proxy(backends, |settings| {
        settings.mode = Mode::Opaque;
        change(settings);
    })
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[test]
fn rule_1_no_connection_that_carried_a_clients_byte_serves_another() {
    for mode in [Mode::Opaque, Mode::Passthrough] {
        let backend = Backend::spawn(Serve::Stamp);
        let server = opaque(&[backend.addr()], |settings| {
            settings.mode = mode;
            settings.workers = 2;
        });
        let seen = Mutex::new(HashSet::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for n in 0..50 {
                        let mut client = connect(&server);
                        let mut answer = String::new();
                        writeln!(client, "mine").unwrap();
                        // Every other one leaves without a word, so that its connection could look unused.
                        if n % 2 == 0 {
                            client.shutdown(Shutdown::Write).unwrap();
                        }
                        BufReader::new(&client).read_line(&mut answer).unwrap();
                        let (stamp, rest) = answer.split_once(' ').unwrap();
                        assert!(rest.starts_with("mine "), "{answer}");
                        let is_new = seen.lock().unwrap().insert(stamp.to_owned());
                        assert!(is_new, "{mode:?}: connection {stamp} was given to a second client");
                    }
                });
            }
        });
        assert_eq!(seen.lock().unwrap().len(), 200);
        if mode == Mode::Opaque {
            assert!(figures(&server).spares_used > 0, "spares were among them");
        }
    }
}

#[test]
fn rule_1_an_end_of_one_way_ends_that_way_alone() {
    let backend = Backend::spawn(Serve::Echo);
    let server = opaque(&[backend.addr()], |_| {});
    let mut client = connect(&server);
    client.write_all(&[7; 100_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 100_000, "what came before the end is still answered");
}

#[test]
fn rule_2_a_connection_that_was_told_of_one_client_never_serves_another() {
    // It sends back what it hears, the header included.
    let backend = Backend::spawn(Serve::Echo);
    for send in [SendHeader::V1, SendHeader::V2] {
        let server = opaque(&[backend.addr()], |settings| settings.proxy_protocol.send = send);
        for _ in 0..50 {
            let mut client = connect(&server);
            client.write_all(b"mine").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let mut all = Vec::new();
            client.read_to_end(&mut all).unwrap();
            let port = client.local_addr().unwrap().port();
            match send {
                SendHeader::V1 => {
                    let text = String::from_utf8(all).unwrap();
                    assert_eq!(text.matches("PROXY ").count(), 1, "{text}");
                    assert!(text.contains(&format!(" {port} ")) && text.ends_with("\r\nmine"), "{text}");
                }
                _ => {
                    // RFC-less, but fixed: 12 bytes of signature, 4 of what follows, addresses, ports.
                    assert_eq!(all.len(), 28 + 4, "one header and no more");
                    assert_eq!(all[24..26], port.to_be_bytes());
                }
            }
        }
    }
    // Where connections are shared, nobody is told of a client by its connection.
    let settings = Settings {
        mode: Mode::Http,
        backends: vec![backend.addr().to_string()],
        proxy_protocol: forebay_proxy::ProxyProtocolSettings {
            send: SendHeader::V1,
            ..forebay_proxy::ProxyProtocolSettings::default()
        },
        ..Settings::default()
    };
    assert_eq!(ProxyConfig::new(&settings, 1).unwrap_err().key, "proxy_protocol.send");
}

#[test]
fn rule_3_no_connection_is_kept_whose_exchange_did_not_end_by_its_framing() {
    let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    for (what, request) in [
        ("Connection: close", "GET /close HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("HTTP/1.0", "GET /http10 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("ended by the connection", "GET /close-delimited/9 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("no answer in time", "GET /hang HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("no HTTP", "GET /wrong/no-http HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("bytes beyond the answer", "GET /extra HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("cut short", "GET /short/100 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned()),
        ("a tunnel", format!("GET /upgrade HTTP/1.1\r\nHost: a\r\n{upgrade}\r\n")),
        ("CONNECT", "CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n".to_owned()),
        (
            "a request not sent whole",
            "POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx".to_owned(),
        ),
    ] {
        let backend = backend();
        let server = proxy(&[backend.addr()], |settings| {
            settings.http.response_timeout = ms(100);
            settings.health.check = CheckKind::None;
        });
        let mut first = Client::new(&server);
        first.send(request);
        // Whole or not: what counts is what becomes of the connection.
        first.stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut some = [0; 1024];
        assert!(first.stream.read(&mut some).unwrap() > 0, "{what}");
        drop(first);
        let next = Client::new(&server).get("/");
        assert_eq!((next.status, next.text(), next.stamp()), (200, "ok", (2, 1)), "{what}");
    }
}

#[test]
fn rule_4_nothing_is_passed_on_as_it_came() {
    let (server, _backend) = pair();
    let odd = "GET /head HTTP/1.1\r\nhOsT:a\r\nX-Odd: \t spaced \t\r\nTransfer-Encoding: \r\n\r\n";
    let answer = ask(&server, odd);
    assert!(answer.status == 400 || !answer.text().contains("Transfer-Encoding"), "{answer:?}");
    let answer = ask(&server, "GET http://b/head?q HTTP/1.1\r\nHost: a\r\nX-Odd: \t spaced \t\r\n\r\n");
    let head = answer.text();
    assert!(head.starts_with("GET /head?q HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("X-Odd: spaced\r\n"), "{head}");
    // RFC 9112 §3.2.2: the target's authority is the one that counts.
    assert!(head.contains("Host: b\r\n") && !head.contains("Host: a"), "{head}");
    // RFC 9112 §6.1: HTTP/1.0 knows no chunks.
    let old = "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(ask(&server, old).status, 400);
}

#[test]
fn rule_7_what_comes_unasked_on_a_kept_connection_reaches_nobody() {
    // What it says unasked looks like an answer.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for (number, stream) in listener.incoming().flatten().enumerate() {
            thread::spawn(move || {
                let (mut stream, mut buffer) = (stream, [0; 4096]);
                while let Ok(1..) = stream.read(&mut buffer) {
                    let body = format!("good {number}");
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).unwrap();
                    thread::sleep(Duration::from_millis(20));
                    let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
                    if number % 2 == 0 {
                        let _ = stream.write_all(poison.as_bytes());
                    } else {
                        return;
                    }
                }
            });
        }
    });
    let server = proxy(&[address], |settings| {
        settings.health.check = CheckKind::None;
        settings.http.retries = false;
        settings.http.reuse = ReuseName::Always;
    });
    for n in 0..8 {
        let answer = Client::new(&server).get("/");
        assert_eq!((answer.status, answer.text()), (200, &*format!("good {n}")));
        thread::sleep(Duration::from_millis(60));
    }
    assert_eq!(figures(&server).retries, 0, "it was seen before a request was wasted on it");
}

#[test]
fn rule_8_a_kept_connection_is_left_before_its_backend_leaves_it() {
    // Closes what was idle for 400 ms, as a backend or a box between does.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let closed = Arc::new(Mutex::new(0));
    let count = Arc::clone(&closed);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                stream.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
                let mut buffer = [0; 4096];
                loop {
                    match stream.read(&mut buffer) {
                        Ok(1..) => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap(),
                        Ok(0) => return,
                        Err(_) => return *count.lock().unwrap() += 1,
                    }
                }
            });
        }
    });
    let server = proxy(&[address], |settings| {
        settings.health.check = CheckKind::None;
        settings.http.backend_idle_timeout = ms(100);
        settings.http.reuse = ReuseName::Always;
        settings.http.retries = false;
    });
    // What may not be asked twice would fail on a connection that is just being closed.
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    for pause in [0, 50, 200, 380, 400, 420] {
        assert_eq!(Client::new(&server).send(post).answer(Method::Post).status, 200, "after {pause} ms");
        thread::sleep(Duration::from_millis(pause));
    }
    thread::sleep(Duration::from_millis(500));
    assert_eq!(*closed.lock().unwrap(), 0, "the backend never had to be the first");
    // Without being told: less than the five seconds after which the quickest of common backends close.
    assert!(Settings::default().http.backend_idle_timeout.0 < Duration::from_secs(5));
}

#[test]
fn rule_8_no_connection_gets_older_than_the_setting_says() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| settings.http.backend_age_max = ms(200));
    let mut client = Client::new(&server);
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(900) {
        assert_eq!(client.get("/").status, 200);
        thread::sleep(Duration::from_millis(10));
    }
    let connections = backend.stats().connections;
    assert!((4..=12).contains(&connections), "{connections} in 900 ms");
    assert_eq!((figures(&server).requests_failed, figures(&server).retries), (0, 0));
}

#[test]
fn rule_9_retries_stay_within_their_budget_however_many_requests_fail() {
    // Each connection answers once, and hangs up on what comes next.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(0_u64));
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let count = Arc::clone(&count);
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                for n in 0..2 {
                    if !matches!(stream.read(&mut buffer), Ok(1..)) {
                        return;
                    }
                    *count.lock().unwrap() += 1;
                    if n == 0 {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
                    }
                }
            });
        }
    });
    let server = proxy(&[address], |settings| {
        settings.health.check = CheckKind::None;
        settings.health.failures = 0;
        settings.http.reuse = ReuseName::Always;
    });
    let (mut good, mut failed) = (0, 0);
    let began = Instant::now();
    let mut client = Client::new(&server);
    for _ in 0..400 {
        let answer = client.get("/");
        match answer.status {
            200 => good += 1,
            502 | 503 => failed += 1,
            other => panic!("{other}"),
        }
    }
    let took = began.elapsed().as_secs() + 1;
    let retries = figures(&server).retries;
    println!("{good} good, {failed} failed, {retries} retries");
    // Ten seconds' worth at first, one for each five requests, three for each second.
    assert!(retries <= 30 + 400 / 5 + 3 * took, "{retries}");
    assert!(retries >= 80 && failed > 0, "{retries} retries, {failed} failures");
    assert_eq!(*asked.lock().unwrap(), 400 + retries, "the backend saw no more than that");
}

/// A storm of clients that each hold a connection to a backend for a while. Returns how many were answered.
fn storm(addresses: &[SocketAddr], clients: usize) -> usize {
    thread::scope(|scope| {
        let all: Vec<_> = (0..clients)
            .map(|n| {
                scope.spawn(move || {
                    let Ok(mut stream) = TcpStream::connect(addresses[n % addresses.len()]) else {
                        return false;
                    };
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    let _ =
                        stream.write_all(b"GET /delay/300 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer);
                    answer.starts_with(b"HTTP/1.1 200 ")
                })
            })
            .collect();
        all.into_iter().filter_map(|one| one.join().ok()).filter(|good| *good).count()
    })
}

/// After a storm: both backends serve, at once.
fn both_serve(address: SocketAddr, backends: &[Backend; 2]) {
    // The pause after a shortage is half a second at most, and ports rest for a second.
    eventually("it recovers by itself", || {
        let mut answer = String::new();
        let stream = TcpStream::connect(address).and_then(|mut stream| {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        stream.is_ok() && answer.starts_with("HTTP/1.1 200 ")
    });
    let before = backends.each_ref().map(|backend| backend.stats().requests);
    for n in 0..10 {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{n}: {answer}");
    }
    for (backend, before) in backends.iter().zip(before) {
        assert_eq!(backend.stats().requests - before, 5, "each gets its half");
    }
}

/// One failure that is a backend's would show for long.
fn touchy(settings: &mut Settings) {
    settings.health.check = CheckKind::None;
    settings.health.failures = 1;
    settings.health.ejection = Span(Duration::from_secs(300));
    settings.connections.connect_timeout = ms(200);
    settings.connections.connect_budget = ms(500);
    settings.pool = PoolMode::Off;
}

#[test]
fn rule_12_a_machine_without_ports_blames_no_backend() {
    let Some(namespace) = NetNamespace::for_test(40_000..=40_019) else { return };
    namespace.run(|| {
        for mode in [Mode::Http, Mode::Opaque] {
            let spawn = |port| {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                Backend::builder().serve(Serve::Http).listen(address).spawn().unwrap()
            };
            let backends = [spawn(5301), spawn(5302)];
            let server = proxy(&backends.each_ref().map(Backend::addr), |settings| {
                settings.mode = mode;
                // Two of each client's own ports are as many as it has: more addresses, more clients.
                settings.listen = (1..=8).map(|n| format!("127.0.0.{n}:5300")).collect();
                touchy(settings);
            });
            let addresses: Vec<_> = server.local_addrs().iter().map(|listen| listen.address).collect();
            let good = storm(&addresses, 120);
            println!("{mode:?}: {good} of 120 were answered");
            assert!((20..120).contains(&good), "{mode:?}: {good}");
            both_serve(addresses[0], &backends);
        }
    });
}

/// Descriptors that the machine of the next test has.
const DESCRIPTORS: u32 = 120;

#[test]
fn rule_12_a_machine_without_descriptors_blames_no_backend() {
    const CHILD: &str = "FOREBAY_TEST_FEW_DESCRIPTORS";
    if let Ok(text) = std::env::var(CHILD) {
        // The process that has few: a proxy, until its input ends.
        let (mode, backends) = text.split_once(' ').unwrap();
        let backends: Vec<SocketAddr> = backends.split(' ').map(|text| text.parse().unwrap()).collect();
        let server = proxy(&backends, |settings| {
            settings.mode = if mode == "http" { Mode::Http } else { Mode::Opaque };
            touchy(settings);
        });
        println!("\nlistens {}", server.local_addrs()[0].address);
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    for mode in ["http", "opaque"] {
        let backends = [backend(), backend()];
        let [a, b] = backends.each_ref().map(Backend::addr);
        let mut child = Command::new("sh")
            .args(["-c", &format!("ulimit -n {DESCRIPTORS}; exec \"$@\""), "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "rule_12_a_machine_without_descriptors_blames_no_backend", "--nocapture"])
            .env(CHILD, format!("{mode} {a} {b}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address: SocketAddr = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("listens ").map(|text| text.parse().unwrap()))
            .expect("the proxy listens");
        let good = storm(&[address], 300);
        println!("{mode}: {good} of 300 were answered");
        assert!((10..300).contains(&good), "{mode}: {good}");
        both_serve(address, &backends);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
}

#[test]
fn rule_12_a_limit_of_our_own_blames_no_backend() {
    for mode in [Mode::Http, Mode::Opaque] {
        let backends = [backend(), backend()];
        let server = proxy(&backends.each_ref().map(Backend::addr), |settings| {
            settings.mode = mode;
            touchy(settings);
            settings.connections.connections_max = 2;
        });
        let address = server.local_addrs()[0].address;
        let good = storm(&[address], 20);
        assert!((4..20).contains(&good), "{mode:?}: {good}");
        both_serve(address, &backends);
    }
}

/// Replaces a list of backends, as careful programs do.
fn list(path: &Path, backends: &[&Backend]) {
    let all: Vec<_> = backends.iter().map(|backend| format!("\"{}\"", backend.addr())).collect();
    let beside = path.with_extension("new");
    std::fs::write(&beside, format!("{{\"endpoints\":[{}]}}", all.join(","))).unwrap();
    std::fs::rename(beside, path).unwrap();
}

#[test]
fn rule_13_a_backend_that_is_removed_keeps_no_idle_connection_and_those_in_use_as_the_setting_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.json");
    for (on_removed, finishes) in [(OnRemoved::Close, false), (OnRemoved::Drain, true)] {
        let (gone, stays) = (backend(), backend());
        list(&path, &[&gone]);
        let server = proxy(&[], |settings| {
            settings.discovery = DiscoverySettings { file: path.clone(), ..DiscoverySettings::default() };
            settings.health.check = CheckKind::None;
            settings.health.on_removed = on_removed;
            settings.http.backend_idle_timeout = Span(Duration::from_secs(600));
        });
        let mut clients: Vec<_> = (0..3).map(|_| Client::new(&server)).collect();
        for client in &mut clients {
            client.send("GET /delay/100 HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        clients.iter_mut().for_each(|client| assert_eq!(client.answer(Method::Get).status, 200));
        assert_eq!(gone.stats().connections_open, 3);
        // One has begun, one has not, one is a tunnel, one is a client's own.
        let [mut begun, mut waits, mut tunnel, mut own] = std::array::from_fn(|_| Client::new(&server));
        begun.send("GET /drip/20/50 HTTP/1.1\r\nHost: a\r\n\r\n");
        waits.send("POST /delay/1000 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        let upgrade = "GET /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert_eq!(tunnel.send(upgrade).answer(Method::Get).status, 101);
        assert_eq!(own.get("/ntlm").status, 401);
        eventually("they are there", || gone.stats().requests == 7);
        list(&path, &[&stays]);
        let left = if finishes { 4 } else { 0 };
        eventually("what is idle is closed", || gone.stats().connections_open <= left);
        let whole = begun.answer(Method::Get);
        assert_eq!(whole.is_whole, finishes, "{on_removed:?}: {whole:?}");
        assert_eq!(waits.answer(Method::Post).status, if finishes { 200 } else { 502 }, "{on_removed:?}");
        // It may be gone already.
        let _ = tunnel.stream.write_all(b"hello");
        let came = tunnel.more();
        assert_eq!(came && tunnel.read == b"hello", finishes, "{on_removed:?}");
        assert_eq!(own.get("/").stamp(), (1, 1), "{on_removed:?}: nothing new is asked there");
        assert_eq!(Client::new(&server).get("/").status, 200);
        drop(tunnel);
        eventually("nothing is left", || gone.stats().connections_open == 0);
        assert_eq!(figures(&server).cut, if finishes { 0 } else { 4 });
    }
}

#[test]
fn rule_13_a_backend_that_fails_its_checks_keeps_no_idle_connection() {
    let backends = [backend(), backend()];
    let server = proxy(&backends.each_ref().map(Backend::addr), |settings| {
        settings.http.backend_idle_timeout = Span(Duration::from_secs(600));
        settings.health.check = CheckKind::Http;
        settings.health.path = "/status/500".to_owned();
        settings.health.expect = vec!["500".to_owned()];
        settings.health.interval = ms(100);
        settings.health.timeout = ms(300);
    });
    let mut client = Client::new(&server);
    (0..4).for_each(|_| assert_eq!(client.get("/").status, 200));
    // It hears nothing more; what is open stays open.
    backends[0].accept(false);
    let open = |backend: &Backend| backend.stats().connections_open;
    assert_eq!(open(&backends[0]), 1);
    eventually("the idle connection is closed", || open(&backends[0]) == 0);
    for _ in 0..4 {
        assert_eq!(client.get("/").status, 200);
    }
    assert_eq!(open(&backends[0]), 0);
}

#[test]
fn rule_3_no_connection_is_kept_that_its_backend_will_close_or_has_said_too_much_on() {
    for path in
        ["/close", "/http10", "/close-delimited/5", "/extra", "/early-close", "/close-silently", "/extra/1"]
    {
        let (server, _backend) = pair();
        let mut client = Client::new(&server);
        let first = client.get(path);
        thread::sleep(Duration::from_millis(30));
        let second = client.get("/");
        assert_eq!((second.status, second.text()), (200, "ok"), "{path}");
        assert_ne!(first.stamp().0, second.stamp().0, "{path}");
    }
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    assert_eq!(client.get("/http10-keep").stamp().0, client.get("/").stamp().0);
}

#[test]
fn rule_3_what_is_left_of_a_request_that_was_answered_early_is_never_a_request() {
    let (server, backend) = pair();
    for path in ["/early", "/early-close"] {
        let mut client = Client::new(&server);
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        ));
        let answer = client.answer(Method::Post);
        assert_eq!((answer.status, answer.field("Connection")), (413, Some("close")), "{path}");
        assert!(client.is_ended());
    }
    assert_eq!(Client::new(&server).get("/").stamp().1, 1, "an unfinished request spoils its connection");
    assert_eq!(backend.stats().requests, 3);
}

#[test]
fn rule_4_smuggled_requests_are_refused_with_the_right_status_and_harm_nobody() {
    let (server, backend) = pair();
    let mut other = Client::new(&server);
    assert_eq!(other.get("/").status, 200);
    for (fields, status) in [
        ("Host: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /bad", 400),
        ("Host: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
        ("Host: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
        ("Host: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
        ("Host: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("Host: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("Host: a\r\nA: b\r\n c\r\n\r\n", 400),
        ("Host: a\r\nA: b\rc\r\n\r\n", 400),
        ("Host: a\r\nA: b\nC: d\r\n\r\n", 400),
        ("Host: a\r\nA: \0\r\n\r\n", 400),
        ("Host: a\r\nHost: b\r\n\r\n", 400),
        ("\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\n\r\nhello\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", 400),
    ] {
        let mut client = Client::new(&server);
        let answer = client.send(format!("POST / HTTP/1.1\r\n{fields}")).answer(Method::Post);
        assert_eq!(answer.status, status, "{fields:?}");
        assert!(client.is_ended(), "{fields:?}");
        let after = other.get("/size/5");
        assert_eq!((after.status, after.body.len()), (200, 5), "after {fields:?}");
    }
    for (text, status) in [
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(40_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(101)), 431),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        ("\x16\x03\x01\x02".to_owned(), 400),
    ] {
        assert_eq!(ask(&server, &text).status, status, "{:?}", text.get(..30));
    }
    assert_eq!(figures(&server).requests_failed, 0);
    assert!(
        backend.requests_per_connection().iter().sum::<u64>() < 25,
        "none of them reached the backend whole"
    );
}

#[test]
fn rule_4_a_backend_that_breaks_the_rules_is_a_bad_gateway_and_its_connection_is_not_kept() {
    let (server, backend) = pair();
    for (kind, _) in WRONG {
        let answer = ask(&server, format!("GET /wrong/{kind} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let is_broken_off = answer.status == 200 && !answer.is_whole;
        assert!(answer.status == 502 || is_broken_off || kind.starts_with("chunk-"), "{kind}: {answer:?}");
        if answer.status == 502 {
            assert!(
                answer.text().contains("look at the backend")
                    && answer.text().contains(&backend.addr().to_string())
            );
        }
        assert_eq!(Client::new(&server).get("/").stamp().1, 1, "{kind}: a connection was reused");
        backend.close_connections();
    }
}

#[test]
fn rule_5_a_tunnel_opens_only_after_the_backend_agrees() {
    let (server, backend) = pair();
    let upgrade = "Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = Client::new(&server);
    // Bytes that come before the answer are the tunnel's.
    let answer = client.send(format!("GET /upgrade HTTP/1.1\r\n{upgrade}hello")).answer(Method::Get);
    assert_eq!((answer.status, answer.field("Upgrade")), (101, Some("websocket")));
    client.send(" world");
    client.stream.shutdown(Shutdown::Write).unwrap();
    while client.more() {}
    assert_eq!(client.read, b"hello world", "half an end is passed on");
    // Refused: the bytes are a request, and a bad one.
    let mut client = Client::new(&server);
    let answer = client.send(format!("GET / HTTP/1.1\r\n{upgrade}\x01\x02")).answer(Method::Get);
    assert_eq!(answer.status, 200);
    assert_eq!(client.answer(Method::Get).status, 400);
    // With a body, it is no upgrade.
    let text = "POST /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(ask(&server, text).status, 426);
    assert_eq!(figures(&server).tunnels, 1);
    assert_eq!(Client::new(&server).get("/").status, 200);
    eventually("the tunnel's connection is gone", || backend.stats().connections_open <= 1);
}

#[test]
fn rule_5_connect_is_a_tunnel_after_2xx_alone() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let answer =
        client.send("CONNECT refuse:443 HTTP/1.1\r\nHost: refuse:443\r\n\r\n").answer(Method::Connect);
    assert_eq!(answer.status, 403);
    assert_eq!(client.get("/").status, 200, "what was refused stays HTTP");
    let answer = client.send("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\nhello").answer(Method::Connect);
    assert_eq!(answer.status, 200);
    client.stream.shutdown(Shutdown::Write).unwrap();
    while client.more() {}
    assert_eq!(client.read, b"hello");
}

#[test]
fn rule_6_hop_by_hop_fields_stay_behind_and_the_backend_learns_of_the_client() {
    let (server, _backend) = pair();
    let text = "GET /head HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\nProxy-Connection: close\r\nX-Forwarded-For: 9.9.9.9\r\nOther: 2\r\n\r\n";
    let answer = ask(&server, text);
    let head = answer.text();
    for gone in ["Connection", "X-Mine", "Keep-Alive", "9.9.9.9"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    for there in [
        "Other: 2\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
        "X-Forwarded-Proto: http\r\n",
        "X-Forwarded-Host: a\r\n",
    ] {
        assert!(head.contains(there), "{there} in {head}");
    }
}

#[test]
fn rule_6_a_client_that_closes_does_not_close_the_backends_connection() {
    let (server, backend) = pair();
    for _ in 0..5 {
        let mut client = Client::new(&server);
        let answer =
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").answer(Method::Get);
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(client.is_ended());
    }
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn rule_9_a_request_is_sent_again_only_if_it_may_be_and_its_connection_was_reused() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    for path in ["/hang-up?reused", "/reset?reused"] {
        assert_eq!(client.get("/").status, 200);
        let answer = client.get(path);
        assert_eq!((answer.status, answer.stamp().1), (200, 1), "on a new connection");
    }
    assert_eq!(figures(&server).retries, 2);
    // It may have done what it was asked for.
    let post = "POST /hang-up?reused HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(client.send(post).answer(Method::Post).status, 502);
    assert_eq!(client.get("/hang-up").status, 502, "nor on a connection that was new");
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| settings.http.retries = false);
    let mut client = Client::new(&server);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.get("/hang-up?reused").status, 502);
}

#[test]
fn rule_9_the_first_request_of_a_client_goes_on_a_used_connection_as_the_policy_says() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    for (reuse, posts, gets) in [
        (ReuseName::Never, 4, 4),
        (ReuseName::Safe, 4, 1),
        (ReuseName::Aggressive, 3, 1),
        (ReuseName::Always, 1, 1),
    ] {
        let count = |text: &str| {
            let backend = backend();
            let server = proxy(&[backend.addr()], |settings| settings.http.reuse = reuse);
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    let mut client = Client::new(&server);
                    (0..3).for_each(|_| assert_eq!(client.send(text).answer(Method::Post).status, 200));
                    client
                })
                .collect();
            drop(clients);
            backend.stats().connections
        };
        assert_eq!(count("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), gets, "{reuse:?}");
        let found = count(post);
        assert!(found == posts || reuse == ReuseName::Aggressive && found < 4, "{reuse:?}: {found}");
    }
}

#[test]
fn rule_10_a_connection_that_is_authenticated_is_given_to_no_other_client() {
    for path in ["/negotiate", "/ntlm"] {
        let (server, backend) = pair();
        let mut client = Client::new(&server);
        let answer = client.get(path);
        assert_eq!(answer.status, 401);
        assert_eq!(client.get("/").stamp().0, answer.stamp().0, "the client keeps it");
        assert_ne!(Client::new(&server).get("/").stamp().0, answer.stamp().0);
        assert_eq!(client.get("/").stamp().0, answer.stamp().0);
        drop(client);
        eventually("it ends with its client", || backend.stats().connections_open == 1);
    }
}

#[test]
fn rule_14_a_client_that_leaves_takes_its_exchange_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = proxy(&[listener.local_addr().unwrap()], |_| {});
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"] {
        let mut client = Client::new(&server);
        client.send("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n");
        let (mut backend, _) = listener.accept().unwrap();
        backend.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 1024];
        assert!(backend.read(&mut buffer).unwrap() > 0);
        backend.write_all(answer.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(client);
        assert!(matches!(backend.read(&mut buffer), Ok(0) | Err(_)), "the backend's connection is closed");
    }
    eventually("it is the client's doing", || figures(&server).failed_client == 2);
}

mod by_http2 {
    use std::collections::{BTreeMap, BTreeSet};
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use h2::Reason;
    use http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::http2::*;
    use super::ms;

    #[tokio::test]
    async fn rule_2_no_connection_of_one_identity_serves_another() {
        let authority = Authority::new();
        let backend = Backend2::spawn_tls(Script::default(), &authority, "back.test", &["h2"], true).await;
        let (a, b) = (authority.write("a.test"), authority.write("b.test"));
        let address = |who: &str| {
            let ca = authority.ca();
            format!("https://{}?name=back.test&ca={}{who}", backend.address, ca.display())
        };
        let as_who = |pair: &Files| {
            address(&format!("&cert={}&key={}", pair.certificate.display(), pair.key.display()))
        };
        let server = proxy(&[as_who(&a), as_who(&b), address("")], |_| {});
        let mut client = connect(&server).await;
        let mut seen = BTreeMap::<String, BTreeSet<String>>::new();
        for _ in 0..30 {
            let answer = within(get(&mut client, "/hello")).await;
            let field = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
            seen.entry(field("backend-connection")).or_default().insert(field("seen-certificate"));
        }
        assert_eq!(seen.len(), 3, "a connection for each identity, and one for none: {seen:?}");
        assert!(seen.values().all(|who| who.len() == 1), "{seen:?}");
        let all: BTreeSet<_> = seen.values().flatten().collect();
        assert_eq!(all.len(), 3, "{seen:?}");
    }

    #[tokio::test]
    async fn rule_11_no_more_streams_than_the_backend_allows() {
        let script = Script { streams_max: 3, ..Script::default() };
        let backend = Backend2::spawn(script).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.connections.connections_max = 2;
        });
        let mut client = connect(&server).await;
        let warm = get(&mut client, "/hello").await;
        assert_eq!(warm.status, 200);
        let mut asked = Vec::new();
        for _ in 0..24 {
            let request = Request::get("http://test/slow").body(()).unwrap();
            asked.push(client.send_request(request, true).unwrap().0);
        }
        for response in asked {
            assert_eq!(within(response).await.unwrap().status(), 200);
        }
        assert!(backend.streams_most() <= 3, "{} at once on one connection", backend.streams_most());
        assert_eq!(backend.connections(), 2, "the second connection takes what the first cannot");
        assert_eq!(figures(&server).requests_failed, 0);
    }

    #[tokio::test]
    async fn rule_11_after_goaway_requests_go_on_another_connection_and_none_is_lost() {
        let backend = Backend2::spawn(Script { goaway_after: Some(5), ..Script::default() }).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
        let mut client = connect(&server).await;
        for n in 0..40 {
            let answer = get(&mut client, "/hello").await;
            assert_eq!(answer.status, 200, "request {n}: {answer:?}");
        }
        assert!(backend.connections() >= 4, "{} connections", backend.connections());
    }

    #[tokio::test]
    async fn rule_11_a_connection_whose_other_end_is_gone_without_a_word_is_given_up() {
        let backend = Backend2::spawn(Script { falls_silent: true, ..Script::default() }).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.http.ping_interval = "200ms".parse().unwrap();
            settings.http.response_timeout = "30s".parse().unwrap();
        });
        let mut client = connect(&server).await;
        let begun = Instant::now();
        let answer = within(get(&mut client, "/hello")).await;
        assert_eq!(answer.status, 502, "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(3), "after {:?}", begun.elapsed());
        assert!(begun.elapsed() >= Duration::from_millis(200));
    }

    #[tokio::test]
    async fn rule_2_no_connection_is_shared_by_what_differs_in_anything_that_shaped_it() {
        let (authority, other) = (Authority::new(), Authority::new());
        let backend =
            Backend2::spawn_tls(Script::default(), &authority, "back.test", &["h2", "http/1.1"], true).await;
        let (a, b) = (authority.write("a.test"), authority.write("b.test"));
        let ca = authority.ca();
        // The same signer, and another one that does not matter here.
        let more = ca.with_file_name("more.pem");
        let both = [std::fs::read(&ca).unwrap(), std::fs::read(other.ca()).unwrap()].concat();
        std::fs::write(&more, both).unwrap();
        let with = |ca: &std::path::Path, rest: &str| {
            format!("https://{}?name=back.test&ca={}{rest}", backend.address, ca.display())
        };
        let shows = |who: &Files| format!("&cert={}&key={}", who.certificate.display(), who.key.display());
        let all = [
            with(&ca, ""),
            with(&more, ""),
            with(&ca, "&protocol=http1"),
            with(&ca, &shows(&a)),
            with(&ca, &shows(&b)),
            with(&ca, &format!("&protocol=http1{}", shows(&a))),
            with(&ca, &format!("&protocol=http1{}", shows(&b))),
        ];
        let server = proxy(&all, |_| {});
        let mut client = connect(&server).await;
        let mut seen = BTreeMap::<String, BTreeSet<(String, String)>>::new();
        for _ in 0..all.len() * 4 {
            let answer = within(get(&mut client, "/hello")).await;
            let field = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
            let shown = (field("seen-certificate"), field("seen-version"));
            seen.entry(field("backend-connection")).or_default().insert(shown);
        }
        assert_eq!(seen.len(), all.len(), "one connection each, and none for two: {seen:?}");
        assert!(seen.values().all(|shown| shown.len() == 1), "{seen:?}");
        let kinds: BTreeSet<_> = seen.values().flatten().collect();
        assert_eq!(kinds.len(), 6, "three that are shown, by two protocols: {kinds:?}");
    }

    #[tokio::test]
    async fn rule_9_with_reuse_never_no_connection_of_http2_serves_two_clients() {
        let backend = Backend2::spawn(Script::default()).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.http.reuse = forebay_proxy::ReuseName::Never;
        });
        let (mut a, mut b) = (connect(&server).await, connect(&server).await);
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        for _ in 0..3 {
            for (client, seen) in [&mut a, &mut b].into_iter().zip(&mut seen) {
                let answer = within(get(client, "/hello")).await;
                assert_eq!(answer.status, 200);
                seen.insert(answer.headers["backend-connection"].clone().to_str().unwrap().to_owned());
            }
        }
        assert!(seen[0].is_disjoint(&seen[1]), "{seen:?}");
        // Those of HTTP/1.1 keep theirs for as long as they stay.
        let before = backend.connections();
        let asked = "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";
        let last = "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let answers = get1(&server, &format!("{asked}{asked}{last}")).await;
        assert_eq!(answers.matches("HTTP/1.1 200 ").count(), 3, "{answers}");
        assert_eq!(backend.connections(), before + 1);
    }

    #[tokio::test]
    async fn rule_9_what_a_backend_refused_unread_is_sent_again_whatever_the_setting() {
        let backend = Backend2::spawn(Script { refuses: 1, ..Script::default() }).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.http.retries = false;
        });
        let mut client = connect(&server).await;
        let request = Request::post("http://test/hello").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        assert_eq!(within(response).await.unwrap().status(), 200);
    }

    #[tokio::test]
    async fn rule_11_a_sign_of_life_is_waited_for_even_while_nothing_can_be_written() {
        // It gives all the room that there is, and reads nothing.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
                let window = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0, 0, 0];
                stream.write_all(&[&settings[..], &window[..]].concat()).await.unwrap();
                kept.push(stream);
            }
        });
        let server = proxy(&[format!("h2c://{address}")], |settings| {
            settings.http.ping_interval = ms(200);
            settings.http.response_timeout = "30s".parse().unwrap();
            settings.http.body_timeout = "30s".parse().unwrap();
        });
        let mut client = tokio::net::TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
        let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        let (mut read, mut write) = client.into_split();
        let writing = tokio::spawn(async move {
            let (piece, mut sent) = (vec![0; 1 << 16], 0);
            while let Ok(n) = write.write(&piece).await {
                sent += n;
            }
            sent
        });
        let began = Instant::now();
        let mut answer = [0; 12];
        within(read.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 502");
        assert!(began.elapsed() < Duration::from_secs(4), "after {:?}", began.elapsed());
        drop((read, server));
        let sent = within(writing).await.unwrap();
        assert!(sent > 1 << 20, "{sent} bytes: writes did block");
    }

    #[tokio::test]
    async fn rule_13_streams_to_a_backend_that_is_removed_end_as_the_setting_says() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints.json");
        for (on_removed, finishes) in
            [(forebay_proxy::OnRemoved::Close, false), (forebay_proxy::OnRemoved::Drain, true)]
        {
            let (gone, stays) = (super::backend(), super::backend());
            super::list(&path, &[&gone]);
            let server = proxy(&[], |settings| {
                settings.discovery.file = path.clone();
                settings.health.on_removed = on_removed;
            });
            let mut client = connect(&server).await;
            let ask = |path: &str| Request::get(format!("http://a{path}")).body(()).unwrap();
            let (response, _) = client.send_request(ask("/drip/10/100"), true).unwrap();
            let response = within(response).await.unwrap();
            super::list(&path, &[&stays]);
            let body = read_body(response.into_body()).await;
            match finishes {
                true => assert_eq!(body.unwrap().0.len(), 10),
                false => assert_eq!(body.unwrap_err().reason(), Some(Reason::INTERNAL_ERROR)),
            }
            assert_eq!(get(&mut client, "/").await.status, 200, "elsewhere");
        }
    }

    #[tokio::test]
    async fn rule_14_a_request_that_its_client_breaks_off_is_broken_off_at_the_backend() {
        let two = Backend2::spawn(Script::default()).await;
        let server = proxy(&[format!("h2c://{}", two.address)], |_| {});
        let mut client = connect(&server).await;
        let request = Request::post("http://test/endless").body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        let response = within(response).await.unwrap();
        body.send_reset(Reason::CANCEL);
        drop(response);
        let began = Instant::now();
        while two.resets().is_empty() {
            assert!(began.elapsed() < Duration::from_secs(5), "the backend goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // The connection is not its stream: it carries on.
        assert_eq!(get(&mut client, "/hello").await.status, 200);
        assert_eq!(two.connections(), 1);
        // By HTTP/1.1 the connection is all there is to break off.
        let one = super::backend();
        let server = proxy(&[one.addr().to_string()], |_| {});
        let mut client = connect(&server).await;
        let request = Request::get("http://test/drip/100/20").body(()).unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let response = within(response).await.unwrap();
        assert_eq!(one.stats().connections_open, 1);
        drop(response);
        let began = Instant::now();
        while one.stats().connections_open > 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "it is still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

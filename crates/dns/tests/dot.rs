//! DNS over TLS on both sides.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{ClientSettings, DnsConfig, Scheme, Settings, StreamSettings, TlsSettings};
use rustls::{ClientConfig, HandshakeKind};
use support::tls::{Authority, Dot, Pair, client_config};
use support::{Running, Udp, address, id, query, rcode, run, settings};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn span(ms: u64) -> forebay::units::Span {
    forebay::units::Span(Duration::from_millis(ms))
}

fn tls(pair: &Pair) -> TlsSettings {
    TlsSettings { certificate: pair.certificate.clone(), key: pair.key.clone() }
}

/// UDP and TCP on the first address, DNS over TLS on the second.
fn dot_settings(upstream: &Responder, pair: &Pair) -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".to_owned(), "tls://127.0.0.1:0".to_owned()],
        tls: tls(pair),
        ..settings(&[upstream])
    }
}

fn dot_address(server: &Running) -> SocketAddr {
    server.at(Scheme::Tls)
}

/// A server with a listener for DNS over TLS, and a client's configuration that trusts it.
fn dot_server(upstream: &Responder) -> (Authority, Running, Arc<ClientConfig>) {
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let server = run(&dot_settings(upstream, &pair));
    let config = client_config(&authority.ca(), &["dot"]);
    (authority, server, config)
}

/// A forwarder that asks `server` over TLS, and trusts `ca`.
fn over_tls(server: SocketAddr, ca: &Path) -> Settings {
    let upstream = format!("tls://{server}?name=dns.test&ca={}", ca.display());
    Settings { upstreams: vec![upstream], ..settings(&[]) }
}

#[test]
fn a_client_is_answered_over_tls_out_of_order() {
    let slow = ("slow.test".to_owned(), forebay_bench::responder::Verdict::Silence);
    let upstream = upstream(Script { verdicts: vec![slow], ..Script::default() });
    let (_authority, server, config) = dot_server(&upstream);
    let mut client = Dot::to(dot_address(&server), &config).expect("a handshake");
    assert_eq!(client.0.conn.alpn_protocol(), Some(&b"dot"[..]));
    let mut messages = vec![query(1, "a.slow.test", 1, Some(1232))];
    messages.extend((2..200).map(|n| query(n, &format!("n{n}.test"), 1, None)));
    client.send_all(&messages);
    let mut ids = Vec::new();
    for _ in 2..200 {
        let reply = client.recv().expect("a reply");
        assert_eq!(address(&reply), expected_a(&format!("n{}.test", id(&reply))));
        ids.push(id(&reply));
    }
    ids.sort_unstable();
    assert_eq!(ids, (2..200).collect::<Vec<u16>>(), "nobody waits for the slow one");
    assert_eq!(rcode(&Udp::to(server.address).ask("a.test")), 0, "the plain listener is there as well");
}

#[test]
fn a_second_connection_resumes_the_session_of_the_first() {
    let upstream = upstream(Script::default());
    let (_authority, server, config) = dot_server(&upstream);
    for (round, kind) in
        [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed].iter().enumerate()
    {
        let mut client = Dot::to(dot_address(&server), &config).expect("a handshake");
        let reply = client.ask(&query(1, "a.test", 1, None));
        assert_eq!(rcode(&reply), 0);
        assert_eq!(client.kind(), *kind, "round {round}");
    }
    let stats = server.stats().client_handshakes;
    assert_eq!((stats.full, stats.resumed, stats.failed), (1, 2, 0));
}

#[test]
fn a_client_that_offers_no_or_another_protocol_is_served_or_told() {
    let upstream = upstream(Script::default());
    let (authority, server, _) = dot_server(&upstream);
    let none = client_config(&authority.ca(), &[]);
    let mut client = Dot::to(dot_address(&server), &none).expect("ALPN is not asked for");
    assert_eq!(rcode(&client.ask(&query(1, "a.test", 1, None))), 0);
    let other = client_config(&authority.ca(), &["h2"]);
    assert!(Dot::to(dot_address(&server), &other).is_err());
    server.until("the failure is counted", |stats| stats.client_handshakes.failed == 1);
}

#[test]
fn queries_go_to_an_upstream_over_tls_and_sessions_are_resumed() {
    let origin = upstream(Script::default());
    let (authority, front, _) = dot_server(&origin);
    let stream = StreamSettings { idle_timeout: span(100), ..StreamSettings::default() };
    let server = run(&Settings { stream, ..over_tls(dot_address(&front), &authority.ca()) });
    let client = Udp::to(server.address);
    for round in 0..3 {
        let name = format!("r{round}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
        server.until("the connection is closed", |stats| stats.pools[0].snapshot.ready == 0);
    }
    let stats = server.stats();
    assert_eq!((stats.upstream_handshakes.full, stats.upstream_handshakes.resumed), (1, 2));
    assert_eq!(front.stats().client_handshakes, stats.upstream_handshakes);
}

#[test]
fn a_burst_on_a_cold_upstream_dials_no_more_than_it_needs() {
    let origin = upstream(Script { delay: Duration::from_millis(30), ..Script::default() });
    let (authority, front, _) = dot_server(&origin);
    let stream = StreamSettings { capacity: 64, ..StreamSettings::default() };
    let server = run(&Settings { stream, ..over_tls(dot_address(&front), &authority.ca()) });
    let client = Udp::to(server.address);
    for n in 0..256 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    for _ in 0..256 {
        let reply = client.recv();
        assert_eq!(address(&reply), expected_a(&format!("n{}.test", id(&reply))));
    }
    assert_eq!(server.stats().connections_made(), 4);
}

#[test]
fn what_is_wrong_with_an_upstreams_certificate_is_said_and_is_its_fault() {
    let origin = upstream(Script::default());
    let (authority, other) = (Authority::new(), Authority::new());
    let expired = authority.issue_with("expired", &["dns.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let good = authority.issue("good", &["dns.test", "127.0.0.1"]);
    let ca = authority.ca();
    for (pair, parameters, said) in [
        (&expired, format!("name=dns.test&ca={}", ca.display()), "expired"),
        (&good, format!("name=other.test&ca={}", ca.display()), "not valid for name"),
        (&good, format!("name=dns.test&ca={}", other.ca().display()), "UnknownIssuer"),
    ] {
        let front = run(&dot_settings(&origin, pair));
        let log = support::log::Log::new();
        let server = {
            let upstream = format!("tls://{}?{parameters}", dot_address(&front));
            run(&Settings { upstreams: vec![upstream], ..settings(&[]) })
        };
        let client = Udp::to(server.address);
        assert_eq!(rcode(&client.ask("a.test")), 2, "{said}");
        let stats = server.stats();
        assert!(stats.pools[0].snapshot.counters.dial_failures(forebay_core::Cause::Tls) > 0, "{said}");
        assert!(stats.upstream_handshakes.failed > 0 && stats.counters.failed_upstream == 1);
        let text = log.text();
        let own = |line: &&str| line.contains("TLS with an upstream failed") && line.contains(&parameters);
        let lines: Vec<_> = text.lines().filter(own).collect();
        assert_eq!(lines.len(), 1, "once, not each time: {text}");
        assert!(lines[0].contains(said), "{text}");
    }
    let front = run(&dot_settings(&origin, &good));
    let upstream = format!("tls://{}?ca={}", dot_address(&front), ca.display());
    let server = run(&Settings { upstreams: vec![upstream], ..settings(&[]) });
    let reply = Udp::to(server.address).ask("a.test");
    assert_eq!(address(&reply), expected_a("a.test"), "a certificate may be for the address itself");
}

#[test]
fn a_configuration_without_what_tls_needs_names_the_key_and_the_file() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let (pair, other) = (authority.issue("dns", &["dns.test"]), authority.issue("other", &["dns.test"]));
    let base = dot_settings(&origin, &pair);
    let error = |settings: &Settings| DnsConfig::new(settings, &[], 1).expect_err("impossible").to_string();
    let with = |tls: TlsSettings| Settings { tls, ..base.clone() };
    let missing = authority.folder.path("missing.pem");
    for (settings, parts) in [
        (with(TlsSettings::default()), ["listen:", "tls.certificate"]),
        (
            with(TlsSettings { key: pair.key.clone(), ..TlsSettings::default() }),
            ["tls.certificate:", "missing"],
        ),
        (
            with(TlsSettings { certificate: pair.certificate.clone(), ..TlsSettings::default() }),
            ["tls.key:", "missing"],
        ),
        (
            with(TlsSettings { certificate: missing.clone(), ..tls(&pair) }),
            ["tls.certificate:", "missing.pem"],
        ),
        (with(TlsSettings { key: other.key.clone(), ..tls(&pair) }), ["tls.key:", "other.key"]),
        (
            Settings { upstreams: vec!["tls://192.0.2.1?ca=/nowhere/ca.pem".to_owned()], ..base.clone() },
            ["upstreams:", "/nowhere/ca.pem"],
        ),
        (
            Settings {
                upstreams: vec![format!("tls://192.0.2.1?ca={}", pair.key.display())],
                ..base.clone()
            },
            ["upstreams:", "no certificate in it"],
        ),
    ] {
        let error = error(&settings);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_new_certificate_is_taken_and_a_broken_one_is_not() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let log = support::log::Log::new();
    let server = run(&dot_settings(&origin, &pair));
    let config = || client_config(&authority.ca(), &["dot"]);
    let serves = |name: &str| Dot::named(dot_address(&server), &config(), name).is_ok();
    assert!(serves("dns.test") && !serves("new.test"));
    let mut open = Dot::to(dot_address(&server), &config()).expect("a handshake");
    authority.folder.write("dns.key", "no key");
    let key = pair.key.display().to_string();
    log.until(&format!("{key}: "));
    assert!(log.text().contains("the old one stays"), "{}", log.text());
    assert!(serves("dns.test"), "a broken pair changes nothing");
    authority.issue("dns", &["new.test"]);
    log.until(&format!("certificate reloaded file={}", pair.certificate.display()));
    assert!(serves("new.test") && !serves("dns.test"));
    assert_eq!(rcode(&open.ask(&query(1, "a.test", 1, None))), 0, "who is there already stays");
}

#[test]
fn an_expired_certificate_is_served_and_complained_about() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let expired = authority.issue_with("dns", &["dns.test"], |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let log = support::log::Log::new();
    let server = run(&dot_settings(&origin, &expired));
    log.until(&format!("refuse it file={}", expired.certificate.display()));
    assert_eq!(server.stats().certificate_expires, Some(1_577_836_800));
    let error = Dot::to(dot_address(&server), &client_config(&authority.ca(), &["dot"])).err();
    assert!(error.expect("the client looks").to_string().contains("expired"));
}

#[test]
fn a_certificate_that_ends_within_seven_days_is_warned_about_and_no_other() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let log = support::log::Log::new();
    let day = Duration::from_secs(86_400);
    let ends_in = |file: &str, span: Duration| {
        authority.issue_with(file, &["dns.test"], |params| {
            let now = rustls::pki_types::UnixTime::now().as_secs();
            let end = Duration::from_secs(now) + span;
            params.not_after = (std::time::SystemTime::UNIX_EPOCH + end).into();
        })
    };
    let (later, soon) = (ends_in("later", 7 * day + day / 24), ends_in("soon", 7 * day - day / 24));
    let said =
        |pair: &Pair| format!("the certificate expires soon: renew it file={}", pair.certificate.display());
    let server = run(&dot_settings(&origin, &later));
    let other = run(&dot_settings(&origin, &soon));
    log.until(&format!("{} days=6", said(&soon)));
    // One that is put in the place of another is looked at like the first.
    ends_in("later", 3 * day + day / 24);
    log.until(&format!("{} days=3", said(&later)));
    assert!(log.text().matches(&said(&later)).count() == 1, "{}", log.text());
    let config = client_config(&authority.ca(), &["dot"]);
    for server in [&server, &other] {
        assert!(Dot::to(dot_address(server), &config).is_ok(), "it is good until then");
    }
}

#[test]
fn a_handshake_that_stalls_costs_its_time_and_nobody_else_anything() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let clients =
        ClientSettings { handshake_timeout: span(300), handshakes_max: 8, ..ClientSettings::default() };
    let server = run(&Settings { clients, ..dot_settings(&origin, &pair) });
    let began = Instant::now();
    let mut stalled: Vec<_> = (0..7).map(|_| support::Tcp::to(dot_address(&server))).collect();
    let config = client_config(&authority.ca(), &["dot"]);
    let mut client = Dot::to(dot_address(&server), &config).expect("a handshake beside them");
    assert_eq!(rcode(&client.ask(&query(1, "a.test", 1, None))), 0);
    assert!(began.elapsed() < Duration::from_millis(290), "{:?}", began.elapsed());
    stalled.push(support::Tcp::to(dot_address(&server)));
    assert!(support::Tcp::to(dot_address(&server)).recv().is_none(), "the ninth is closed at once");
    assert!(began.elapsed() < Duration::from_millis(290), "{:?}", began.elapsed());
    assert_eq!(server.stats().clients_rejected, 1);
    for client in &mut stalled {
        assert!(client.recv().is_none());
    }
    assert!(began.elapsed() >= Duration::from_millis(290));
    assert_eq!(server.stats().client_handshakes.failed, 8);
}

#[test]
fn an_upstream_that_stalls_in_the_handshake_costs_half_a_querys_time() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let stalls = format!("tls://{}?name=dns.test", listener.local_addr().expect("an address"));
    let good = upstream(Script::default());
    let server = run(&Settings {
        upstreams: vec![stalls, good.addr().to_string()],
        query_timeout: span(1200),
        attempt_timeout: span(1100),
        ..settings(&[])
    });
    let began = Instant::now();
    assert_eq!(address(&Udp::to(server.address).ask("a.test")), expected_a("a.test"));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(590) && took < Duration::from_millis(1000), "{took:?}");
}

/// A query with EDNS and these options.
fn with_options(id: u16, name: &str, options: &[u8]) -> Vec<u8> {
    let mut bytes = query(id, name, 1, Some(1232));
    let at = bytes.len() - 2;
    bytes[at..].copy_from_slice(&(options.len() as u16).to_be_bytes());
    bytes.extend_from_slice(options);
    bytes
}

const KEEPALIVE: [u8; 4] = [0, 11, 0, 0];
const PADDING: [u8; 4] = [0, 12, 0, 0];

#[test]
fn clients_of_streams_are_told_how_long_they_may_be_idle_and_that_is_true() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let clients = ClientSettings { idle_timeout: span(700), ..ClientSettings::default() };
    let server = run(&Settings { clients, ..dot_settings(&origin, &pair) });
    let wanted = [0, 11, 0, 2, 0, 7];
    let message = with_options(1, "a.test", &KEEPALIVE);
    let mut tcp = support::Tcp::to(server.address);
    tcp.send(&message);
    assert!(tcp.recv().expect("a reply").ends_with(&wanted));
    let mut dot =
        Dot::to(dot_address(&server), &client_config(&authority.ca(), &["dot"])).expect("a handshake");
    assert!(dot.ask(&message).ends_with(&wanted));
    assert!(!dot.ask(&query(2, "a.test", 1, Some(1232))).ends_with(&wanted), "who does not ask is not told");
    let udp = Udp::to(server.address);
    udp.send(&message);
    assert!(!udp.recv().ends_with(&wanted), "never over UDP");
    let began = Instant::now();
    assert!(dot.recv().is_none());
    assert!(began.elapsed() >= Duration::from_millis(600), "{:?}", began.elapsed());
}

#[test]
fn clients_of_a_server_that_is_about_to_end_are_told_zero() {
    let origin = upstream(Script { delay: Duration::from_secs(3), ..Script::default() });
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let clients = ClientSettings { idle_timeout: span(700), ..ClientSettings::default() };
    let mut server = run(&Settings {
        clients,
        query_timeout: span(8000),
        attempt_timeout: span(6000),
        ..dot_settings(&origin, &pair)
    });
    let (slow, local) =
        (with_options(1, "slow.test", &KEEPALIVE), with_options(2, "a.localhost", &KEEPALIVE));
    let mut tcp = support::Tcp::to(server.address);
    let config = client_config(&authority.ca(), &["dot"]);
    let mut dot = Dot::to(dot_address(&server), &config).expect("a handshake");
    // What is in flight keeps both connections.
    tcp.send(&slow);
    dot.send(&slow);
    server.until("both wait", |stats| stats.waiting == 2);
    let running = server.server.take().expect("it runs");
    let end = server.runtime.spawn(running.drain(Duration::from_secs(10)));
    let drain = std::thread::spawn(move || server.runtime.block_on(end).expect("it ends"));
    let (told, ended) = ([0, 11, 0, 2, 0, 7], [0, 11, 0, 2, 0, 0]);
    let mut both = [&mut tcp as &mut dyn Asks, &mut dot];
    for client in &mut both {
        let deadline = Instant::now() + Duration::from_secs(1);
        loop {
            let reply = client.ask(&local);
            if reply.ends_with(&ended) {
                break;
            }
            assert!(reply.ends_with(&told) && Instant::now() < deadline, "{reply:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    for client in both {
        assert_eq!(id(&client.next()), 1, "what was in flight is answered");
    }
    drain.join().expect("it ends");
}

/// A client of either kind of stream.
trait Asks {
    fn next(&mut self) -> Vec<u8>;
    fn ask(&mut self, message: &[u8]) -> Vec<u8>;
}

impl Asks for support::Tcp {
    fn next(&mut self) -> Vec<u8> {
        self.recv().expect("a reply")
    }

    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        self.send(message);
        self.next()
    }
}

impl Asks for Dot {
    fn next(&mut self) -> Vec<u8> {
        self.recv().expect("a reply")
    }

    fn ask(&mut self, message: &[u8]) -> Vec<u8> {
        Self::ask(self, message)
    }
}

#[test]
fn messages_are_padded_where_nobody_can_read_them_and_nowhere_else() {
    let origin = upstream(Script::default());
    let (authority, server, config) = dot_server(&origin);
    let mut dot = Dot::to(dot_address(&server), &config).expect("a handshake");
    let padded = with_options(1, "a.test", &PADDING);
    for _ in ["asked", "cached"] {
        assert_eq!(dot.ask(&padded).len(), 468);
    }
    assert!(dot.ask(&query(1, "a.test", 1, Some(1232))).len() < 128, "only who pads is padded for");
    let mut tcp = support::Tcp::to(server.address);
    tcp.send(&padded);
    assert!(tcp.recv().expect("a reply").len() < 128);
    // What we ask of an upstream over TLS comes padded, and so does what it answers.
    let behind = run(&over_tls(dot_address(&server), &authority.ca()));
    let reply = Udp::to(behind.address).ask("b.test");
    assert!(address(&reply) == expected_a("b.test") && reply.len() < 128, "padding is of one hop");
}

#[test]
fn one_client_address_takes_no_more_than_its_share() {
    let origin = upstream(Script::default());
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let clients = ClientSettings { connections_per_client: 2, ..ClientSettings::default() };
    let server = run(&Settings { clients, ..dot_settings(&origin, &pair) });
    let config = client_config(&authority.ca(), &["dot"]);
    let _tcp = support::Tcp::to(server.address);
    let _dot = Dot::to(dot_address(&server), &config).expect("a handshake");
    assert!(support::Tcp::to(server.address).recv().is_none(), "TCP and TLS count together");
    assert!(Dot::to(dot_address(&server), &config).is_err());
    server.until("both are counted", |stats| stats.clients_rejected == 2);
}

/// Memory of this process, in bytes: pages in use.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).expect("a number") * 4096
}

/// The middle of how long so many questions take, one after the other.
fn usual_latency(server: &Running, asked: u32) -> Duration {
    let client = Udp::to(server.address);
    let mut all: Vec<Duration> = (0..asked)
        .map(|n| {
            let began = Instant::now();
            assert_eq!(rcode(&client.ask(&format!("n{}.good.test", n % 50))), 0);
            began.elapsed()
        })
        .collect();
    all.sort_unstable();
    all[all.len() / 2]
}

#[test]
fn clients_that_never_read_and_clients_that_leave_cost_little_and_harm_nobody() {
    let origin = upstream(Script { records: 60, ..Script::default() });
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let clients = ClientSettings { idle_timeout: span(1500), ..ClientSettings::default() };
    let server = run(&Settings { clients, ..dot_settings(&origin, &pair) });
    let config = client_config(&authority.ca(), &["dot"]);
    usual_latency(&server, 200);
    let alone = usual_latency(&server, 1000);
    let before = resident();
    // Each asks for some megabytes and takes none of them.
    let mut deaf = Vec::new();
    for n in 0..8u16 {
        let mut client = Dot::to(dot_address(&server), &config).expect("a handshake");
        client.0.sock.set_write_timeout(Some(Duration::from_millis(200))).expect("a time-out");
        let all: Vec<u8> = (0..10_000u16)
            .flat_map(|i| {
                let message = query(i, &format!("d{}.test", (n + i) % 200), 1, Some(1232));
                [(message.len() as u16).to_be_bytes().to_vec(), message].concat()
            })
            .collect();
        // It stops taking queries when nobody takes its answers.
        let _ = std::io::Write::write_all(&mut client.0, &all);
        deaf.push(client);
    }
    // And each of these asks ten thousand times and is gone.
    for _ in 0..4 {
        let mut client = Dot::to(dot_address(&server), &config).expect("a handshake");
        let _ = client.0.sock.set_write_timeout(Some(Duration::from_millis(200)));
        let all: Vec<u8> = (0..10_000u16)
            .flat_map(|i| {
                let message = query(i, &format!("l{i}.test"), 1, Some(1232));
                [(message.len() as u16).to_be_bytes().to_vec(), message].concat()
            })
            .collect();
        let _ = std::io::Write::write_all(&mut client.0, &all);
    }
    let beside = usual_latency(&server, 1000);
    let grown = resident().saturating_sub(before);
    assert!(beside < 2 * alone + Duration::from_micros(500), "{alone:?} alone, {beside:?} beside them");
    // Replies that wait, records, the cache and the kernel's share of this test's own buffers.
    assert!(grown < 64 << 20, "{grown} bytes more");
    let stats = server.until("all have been left", |stats| stats.client_connections == 0);
    assert_eq!(stats.waiting, 0);
    println!("latency {alone:?} alone, {beside:?} beside them; {} KiB more memory", grown >> 10);
    drop(deaf);
}

/// Answers per second with 256 questions in flight, none of them from the cache.
fn rate(server: &Running, span: Duration) -> f64 {
    let client = Udp::to(server.address);
    let ask = |n: u16| client.send(&query(n, &format!("n{n}.test"), 1, Some(1232)));
    (0..256).for_each(ask);
    let (began, mut answers) = (Instant::now(), 0);
    while began.elapsed() < span {
        let reply = client.recv();
        assert_eq!(rcode(&reply), 0);
        answers += 1;
        ask(id(&reply));
    }
    f64::from(answers) / began.elapsed().as_secs_f64()
}

#[test]
fn an_upstream_over_tls_keeps_up_with_one_over_tcp() {
    let origin = upstream(Script::default());
    let (authority, front, _) = dot_server(&origin);
    let cache = forebay_dns::CacheSettings { size: forebay::units::Size { bytes: 0 }, ..Default::default() };
    let with = |settings: Settings| run(&Settings { cache: cache.clone(), ..settings });
    let tcp = with(Settings { upstreams: vec![format!("tcp://{}", front.address)], ..settings(&[]) });
    let tls = with(over_tls(dot_address(&front), &authority.ca()));
    rate(&front, Duration::from_millis(100));
    let (mut plain, mut encrypted): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        plain.push(rate(&tcp, Duration::from_millis(300)));
        encrypted.push(rate(&tls, Duration::from_millis(300)));
    }
    plain.sort_by(f64::total_cmp);
    encrypted.sort_by(f64::total_cmp);
    let (plain, encrypted) = (plain[2], encrypted[2]);
    let stats = tls.stats();
    let reuse = stats.pools[0].snapshot.reuse_rate().expect("queries were sent");
    println!(
        "256 in flight: {plain:.0}/s over TCP, {encrypted:.0}/s over TLS ({:.2}); {} connections, {:.3} % reused, {:?}",
        encrypted / plain,
        stats.connections_made(),
        reuse * 100.0,
        stats.upstream_handshakes
    );
    assert!(encrypted > 0.5 * plain, "a share of the machine that others take meanwhile is allowed for");
    assert!(reuse > 0.99 && stats.connections_made() <= 8, "{reuse}");
}

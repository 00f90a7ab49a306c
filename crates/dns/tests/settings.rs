//! Every key of `[dns]`, changed, and the difference seen on a running server.

mod support;

use std::time::Duration;

use forebay::units::{Size, Span};
use forebay_bench::responder::{Responder, Script, Verdict, expected_a};
use forebay_core::AcquireOutcome::Fresh;
use forebay_core::{AcquireOutcome, CloseReason};
use forebay_dns::{
    CacheSettings, ClientSettings, DnsConfig, OverflowName, PoolMode, SafetySettings, Settings, StrategyName,
    StreamSettings, UdpSettings,
};
use support::{Running, Tcp, Udp, address, id, query, rcode, run, settings, truncated, ttl};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

fn secs(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

/// Asks for so many names, one after the other.
fn ask(server: &Running, names: std::ops::Range<u32>) {
    let client = Udp::to(server.address);
    for n in names {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
}

/// Sends so many questions at once, and takes the replies.
fn burst(server: &Running, prefix: &str, n: u16) {
    let client = Udp::to(server.address);
    for i in 0..n {
        client.send(&query(i, &format!("{prefix}{i}.test"), 1, None));
    }
    for _ in 0..n {
        client.recv();
    }
}

#[test]
fn listen_names_every_address() {
    let upstream = upstream(Script::default());
    let two = vec!["127.0.0.1:0".to_owned(), "127.0.0.2:0".to_owned()];
    let server = run(&Settings { listen: two, ..settings(&[&upstream]) });
    let addresses = server.server.as_ref().expect("it runs").local_addrs().to_vec();
    assert_eq!(addresses.len(), 2);
    for listen in addresses {
        let address = listen.address;
        assert_eq!(rcode(&Udp::to(address).ask("a.test")), 0);
        let mut stream = Tcp::to(address);
        stream.send(&query(1, "a.test", 1, None));
        assert_eq!(rcode(&stream.recv().expect("a reply")), 0);
    }
}

#[test]
fn a_wildcard_listener_answers_from_the_address_that_was_asked() {
    let upstream = upstream(Script::default());
    let server = run(&Settings { listen: vec!["0.0.0.0:0".to_owned()], ..settings(&[&upstream]) });
    // A connected client takes answers from this address alone.
    let client = Udp::to((std::net::Ipv4Addr::new(127, 0, 0, 9), server.address.port()).into());
    assert_eq!(address(&client.ask("a.test")), expected_a("a.test"));
}

#[test]
fn workers_is_how_many_threads_serve() {
    let upstream = upstream(Script::default());
    for workers in [1, 3] {
        let server = run(&Settings { workers, ..settings(&[&upstream]) });
        assert_eq!(server.stats().workers, workers);
        ask(&server, 0..20);
    }
}

#[test]
fn upstreams_and_strategy_say_who_is_asked() {
    let two = [upstream(Script::default()), upstream(Script::default())];
    let asked = |strategy| {
        let before = two.each_ref().map(|upstream| upstream.stats().udp_queries);
        let server = run(&Settings { strategy, ..settings(&[&two[0], &two[1]]) });
        ask(&server, 0..40);
        [0, 1].map(|i| two[i].stats().udp_queries - before[i])
    };
    assert_eq!(asked(StrategyName::Sequential), [40, 0]);
    assert_eq!(asked(StrategyName::RoundRobin), [20, 20]);
    assert!(asked(StrategyName::Random).iter().all(|n| *n > 5));
    // One question at a time: the first is never busier than the second.
    assert_eq!(asked(StrategyName::LeastInflight), [40, 0]);
}

#[test]
fn least_inflight_spares_the_one_that_is_slow() {
    let slow = upstream(Script { delay: Duration::from_millis(300), ..Script::default() });
    let quick = upstream(Script::default());
    let server = run(&Settings { strategy: StrategyName::LeastInflight, ..settings(&[&slow, &quick]) });
    for round in 0..20 {
        burst(&server, &format!("r{round}n"), 2);
    }
    assert!(slow.stats().udp_queries <= 21 && quick.stats().udp_queries >= 19, "{:?}", slow.stats());
}

#[test]
fn size_of_the_cache_bounds_what_is_kept_and_zero_keeps_nothing() {
    let upstream = upstream(Script::default());
    let server = run(&Settings {
        cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
        ..settings(&[&upstream])
    });
    ask(&server, 0..10);
    ask(&server, 0..10);
    assert_eq!(server.stats().counters.hits, 0);
    let server = run(&Settings {
        cache: CacheSettings { size: Size { bytes: 32 << 10 }, ..CacheSettings::default() },
        ..settings(&[&upstream])
    });
    ask(&server, 0..2000);
    let stats = server.stats();
    assert!(stats.cache.bytes <= 32 << 10 && stats.cache.evictions > 0, "{:?}", stats.cache);
}

#[test]
fn ttl_bounds_are_obeyed() {
    let upstream = upstream(Script {
        ttl: 100,
        verdicts: vec![("no.test".to_owned(), Verdict::NxDomain)],
        ..Script::default()
    });
    let second_ttl = |settings: Settings| {
        let server = run(&settings);
        let client = Udp::to(server.address);
        client.ask("a.test");
        ttl(&client.ask("a.test"))
    };
    assert_eq!(second_ttl(settings(&[&upstream])), 100);
    assert_eq!(
        second_ttl(Settings {
            cache: CacheSettings { ttl_max: secs(30), ..CacheSettings::default() },
            ..settings(&[&upstream])
        }),
        30
    );
    assert_eq!(
        second_ttl(Settings {
            cache: CacheSettings { ttl_min: secs(500), ..CacheSettings::default() },
            ..settings(&[&upstream])
        }),
        500
    );
    let kept = |settings: Settings| {
        let server = run(&settings);
        let client = Udp::to(server.address);
        assert_eq!(rcode(&client.ask("x.no.test")), 3);
        assert_eq!(rcode(&client.ask("x.no.test")), 3);
        server.stats().counters.hits
    };
    assert_eq!(kept(settings(&[&upstream])), 1);
    assert_eq!(
        kept(Settings {
            cache: CacheSettings { negative_ttl_max: secs(0), ..CacheSettings::default() },
            ..settings(&[&upstream])
        }),
        0
    );
}

#[test]
fn attempts_and_their_timeouts_are_obeyed() {
    let upstream = upstream(Script { drop: 1.0, ..Script::default() });
    let queries = |settings: Settings| {
        let before = upstream.stats().udp_queries;
        let server = run(&settings);
        let began = std::time::Instant::now();
        assert_eq!(rcode(&Udp::to(server.address).ask("a.test")), 2);
        (upstream.stats().udp_queries - before, began.elapsed())
    };
    let base = Settings { attempt_timeout: ms(100), query_timeout: ms(500), ..settings(&[&upstream]) };
    assert_eq!(queries(Settings { attempts_max: 2, ..base.clone() }).0, 2);
    assert_eq!(queries(Settings { attempt_timeout: ms(250), ..base.clone() }).0, 2);
    let (n, took) = queries(Settings { query_timeout: ms(300), ..base });
    assert_eq!(n, 3);
    assert!(took >= Duration::from_millis(290) && took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn waiting_max_is_how_many_clients_wait() {
    let upstream = upstream(Script { delay: Duration::from_millis(300), ..Script::default() });
    let server = run(&Settings { waiting_max: 5, ..settings(&[&upstream]) });
    burst(&server, "n", 20);
    assert_eq!(server.stats().counters.failed_overload, 15);
}

#[test]
fn udp_size_caps_replies_and_is_told_to_upstreams() {
    let upstream = upstream(Script { records: 40, ..Script::default() });
    let asked = |udp_size| {
        let server = run(&Settings { udp_size, ..settings(&[&upstream]) });
        let client = Udp::to(server.address);
        client.send(&query(1, "big.test", 1, Some(4096)));
        let truncated = truncated(&client.recv());
        assert_eq!(server.stats().counters.replies_truncated, u64::from(truncated));
        truncated
    };
    assert!(asked(512));
    assert!(!asked(1232));
    assert_eq!(upstream.stats().connections, 1, "with 512 it had to be fetched over TCP");
}

#[test]
fn pool_off_is_one_socket_for_each_query() {
    let upstream = upstream(Script::default());
    let server = run(&Settings { pool: PoolMode::Off, ..settings(&[&upstream]) });
    ask(&server, 0..200);
    assert_eq!(server.stats().connections_made(), 200);
    let server = run(&settings(&[&upstream]));
    ask(&server, 0..200);
    assert_eq!(server.stats().connections_made(), 8);
}

#[test]
fn udp_sockets_are_kept_and_bounded() {
    let upstream = upstream(Script { delay: Duration::from_millis(30), ..Script::default() });
    let with = |udp: UdpSettings| run(&Settings { udp, ..settings(&[&upstream]) });
    let base = UdpSettings::default();
    let server = with(UdpSettings { connections_min: 3, ..base });
    server.until("three are warm", |stats| stats.pools[0].snapshot.ready == 3);
    let server = with(UdpSettings { connections_min: 0, connections_max: 4, capacity: 1, ..base });
    assert_eq!(server.stats().connections_made(), 0);
    burst(&server, "n", 20);
    let stats = server.stats();
    assert_eq!(stats.connections_made(), 4);
    assert!(stats.pools[0].snapshot.counters.wait.count() >= 16, "sixteen waited");
    let server = with(UdpSettings { connections_min: 0, capacity: 5, ..base });
    burst(&server, "n", 20);
    assert_eq!(server.stats().connections_made(), 4, "20 queries, 5 on each");
}

#[test]
fn a_query_that_finds_all_udp_sockets_full_waits_or_gets_one_of_its_own_or_is_refused() {
    let upstream = upstream(Script { delay: Duration::from_millis(50), ..Script::default() });
    let two = UdpSettings { connections_min: 0, connections_max: 2, capacity: 1, ..UdpSettings::default() };
    let with = |udp: UdpSettings| run(&Settings { udp, ..settings(&[&upstream]) });
    let temporary =
        |stats: &forebay_dns::Stats| stats.pools[0].snapshot.counters.acquires(AcquireOutcome::Temporary);
    let server = with(two);
    burst(&server, "n", 6);
    assert_eq!((server.stats().connections_made(), temporary(&server.stats())), (2, 0));
    let server = with(UdpSettings { overflow: OverflowName::Temporary, temporary_max: 3, ..two });
    burst(&server, "n", 6);
    let stats = server.stats();
    assert_eq!((stats.connections_made(), temporary(&stats)), (5, 3), "and the sixth waited");
    server.until("temporary ones go", |stats| stats.pools[0].snapshot.connections() == 2);
    let server = with(UdpSettings { overflow: OverflowName::Reject, ..two });
    // Who comes before there is any connection waits for it to be made.
    burst(&server, "first", 2);
    server.until("both are idle", |stats| stats.pools[0].snapshot.idle == 2);
    let client = Udp::to(server.address);
    (0..6).for_each(|n| client.send(&query(n, &format!("n{n}.test"), 1, None)));
    let rcodes: Vec<u8> = (0..6).map(|_| rcode(&client.recv())).collect();
    assert_eq!(rcodes.iter().filter(|code| **code == 2).count(), 4, "{rcodes:?}");
    let error = DnsConfig::new(
        &Settings { udp: UdpSettings { temporary_max: 3, ..two }, ..settings(&[&upstream]) },
        &[],
        1,
    );
    let error = error.unwrap_err().to_string();
    assert!(error.contains("udp.temporary_max") && error.contains("overflow"), "{error}");
}

#[test]
fn udp_sockets_are_replaced_by_age_and_by_use_and_go_when_idle() {
    let upstream = upstream(Script::default());
    let with = |udp: UdpSettings| run(&Settings { udp, ..settings(&[&upstream]) });
    let base = UdpSettings { connections_min: 1, ..UdpSettings::default() };
    let closes = |stats: &forebay_dns::Stats, reason| stats.pools[0].snapshot.counters.closes(reason);
    let server = with(UdpSettings { uses_max: 10, ..base });
    ask(&server, 0..100);
    assert!(closes(&server.stats(), CloseReason::Uses) >= 9);
    let server = with(UdpSettings { age_max: ms(100), ..base });
    server.until("sockets age", |stats| closes(stats, CloseReason::Age) >= 3);
    let server = with(UdpSettings { connections_min: 0, idle_timeout: ms(50), ..base });
    ask(&server, 0..1);
    server.until("the idle one goes", |stats| {
        closes(stats, CloseReason::Idle) + closes(stats, CloseReason::Surplus) == 1
    });
}

#[test]
fn stream_connections_are_kept_bounded_and_closed_when_idle() {
    let upstream = upstream(Script { delay: Duration::from_millis(30), ..Script::default() });
    let with = |stream: StreamSettings| {
        run(&Settings { stream, upstreams: vec![format!("tcp://{}", upstream.addr())], ..settings(&[]) })
    };
    let base = StreamSettings::default();
    let server = with(StreamSettings { connections_min: 2, ..base });
    server.until("two are warm", |stats| stats.pools[0].snapshot.ready == 2);
    let server = with(StreamSettings { capacity: 10, ..base });
    burst(&server, "n", 40);
    assert_eq!(server.stats().connections_made(), 4);
    let server = with(StreamSettings { capacity: 10, connections_max: 2, ..base });
    burst(&server, "n", 40);
    assert_eq!(server.stats().connections_made(), 2);
    let server = with(StreamSettings { idle_timeout: ms(50), ..base });
    ask(&server, 0..1);
    server
        .until("the idle one goes", |stats| stats.pools[0].snapshot.counters.closes(CloseReason::Idle) == 1);
}

#[test]
fn a_stream_that_cannot_be_made_is_given_up_after_dial_timeout() {
    // A listener whose queue is full: the kernel drops what comes, and connecting hangs.
    let options = forebay::sys::TcpListenerOptions { backlog: 0, ..Default::default() };
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = forebay::sys::tcp_listener(any, &options).expect("a port");
    let address = listener.local_addr().expect("an address");
    let _full: Vec<_> =
        (0..4).map(|_| std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100))).collect();
    let stream = StreamSettings { dial_timeout: ms(200), ..StreamSettings::default() };
    let server = run(&Settings { stream, upstreams: vec![format!("tcp://{address}")], ..settings(&[]) });
    let began = std::time::Instant::now();
    assert_eq!(rcode(&Udp::to(server.address).ask("a.test")), 2);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(190) && took < Duration::from_millis(3500), "{took:?}");
    let stats = server.stats();
    assert!(stats.pools[0].snapshot.counters.dial_failures(forebay_core::Cause::Timeout) > 0);
    assert_eq!(stats.pools[0].snapshot.counters.acquires(Fresh), 0);
}

#[test]
fn near_misses_max_is_how_many_guesses_make_it_ask_over_tcp() {
    let upstream = upstream(Script { decoys: 3, ..Script::default() });
    let safety = SafetySettings { near_misses_max: 0, ..SafetySettings::default() };
    let udp = UdpSettings { connections_min: 1, ..UdpSettings::default() };
    let server = run(&Settings { safety, udp, ..settings(&[&upstream]) });
    ask(&server, 0..20);
    assert_eq!((server.stats().counters.bursts, upstream.stats().connections), (0, 0));
    let server = run(&Settings { udp, ..settings(&[&upstream]) });
    ask(&server, 0..20);
    assert_eq!(server.stats().counters.bursts, 1);
    assert!(upstream.stats().tcp_queries >= 18, "{:?}", upstream.stats());
}

#[test]
fn randomize_case_spells_names_at_random_and_asks_again_where_letters_are_lost() {
    let upstream = upstream(Script { fold_case: true, ..Script::default() });
    let over_tcp = |randomize_case| {
        let before = upstream.stats().tcp_queries;
        let safety = SafetySettings { randomize_case, ..SafetySettings::default() };
        let server = run(&Settings { safety, ..settings(&[&upstream]) });
        ask(&server, 0..20);
        (upstream.stats().tcp_queries - before, server.stats().counters.case_mismatches)
    };
    assert_eq!(over_tcp(false), (0, 0));
    let (queries, mismatches) = over_tcp(true);
    assert_eq!(queries, mismatches);
    assert!((5..=20).contains(&queries), "eight in a row, and it is spared: {queries}");
}

#[test]
fn cookies_are_sent_and_demanded_of_those_that_give_them() {
    let upstream = upstream(Script { cookies: true, ..Script::default() });
    let missing = |cookies| {
        upstream.set_script(Script { cookies: true, ..Script::default() });
        let safety = SafetySettings { cookies, ..SafetySettings::default() };
        let server = run(&Settings { safety, ..settings(&[&upstream]) });
        ask(&server, 0..20);
        assert_eq!(server.stats().counters.cookies_missing, 0);
        let bits = server.stats().pools[0].entropy_bits.expect("over UDP");
        assert_eq!(bits > 80.0, cookies, "{bits}");
        upstream.set_script(Script::default());
        ask(&server, 20..40);
        server.stats().counters.cookies_missing
    };
    assert_eq!((missing(false), missing(true)), (0, 8));
}

/// The cookie in a reply whose OPT record ends with it.
fn cookie_of(reply: &[u8]) -> Option<&[u8]> {
    let (head, cookie) = reply.split_last_chunk::<24>()?;
    head.ends_with(&[0, 10, 0, 24]).then_some(cookie)
}

fn with_cookie(id: u16, name: &str, cookie: &[u8]) -> Vec<u8> {
    let mut bytes = query(id, name, 1, Some(1232));
    let len = bytes.len();
    bytes[len - 2..].copy_from_slice(&(cookie.len() as u16 + 4).to_be_bytes());
    bytes.extend_from_slice(&[0, 10, 0, cookie.len() as u8]);
    bytes.extend_from_slice(cookie);
    bytes
}

#[test]
fn server_cookies_are_given_renewed_and_the_same_where_the_secret_is() {
    let upstream = upstream(Script::default());
    let safety = |server_cookies, secret: &str| SafetySettings {
        server_cookies,
        cookie_secret: secret.to_owned(),
        ..SafetySettings::default()
    };
    let given = |safety: SafetySettings, cookie: &[u8]| {
        let server = run(&Settings { safety, ..settings(&[&upstream]) });
        let client = Udp::to(server.address);
        // From the upstream, then from the cache.
        for _ in 0..2 {
            client.send(&with_cookie(1, "a.test", cookie));
            let reply = client.recv();
            if cookie_of(&reply).is_none() {
                return (None, 0);
            }
        }
        client.send(&with_cookie(1, "a.test", cookie));
        let given = cookie_of(&client.recv()).map(<[u8]>::to_vec);
        (given, server.stats().counters.cookies_right)
    };
    assert_eq!(given(safety(false, ""), b"clientxx"), (None, 0));
    let secret = "00112233445566778899aabbccddeeff";
    let (cookie, right) = given(safety(true, secret), b"clientxx");
    let cookie = cookie.expect("a cookie");
    assert_eq!((&cookie[..8], right), (&b"clientxx"[..], 0));
    assert_eq!(
        given(safety(true, secret), &cookie),
        (Some(cookie.clone()), 3),
        "another server, the same secret"
    );
    assert_eq!(given(safety(true, ""), &cookie).1, 0, "another secret");
    let server = run(&Settings { safety: safety(true, ""), ..settings(&[&upstream]) });
    let client = Udp::to(server.address);
    client.send(&with_cookie(1, "a.test", b"short"));
    assert_eq!(rcode(&client.recv()), 1);
}

#[test]
fn a_right_cookie_has_a_rate_limit_of_its_own() {
    let upstream = upstream(Script::default());
    let protection = forebay_dns::ProtectionSettings { rate_limit: 5, rate_slip: 0, ..Default::default() };
    let safety = SafetySettings { server_cookies: true, ..SafetySettings::default() };
    let server = run(&Settings { safety, protection, ..settings(&[&upstream]) });
    let client = Udp::to(server.address);
    client.send(&with_cookie(1, "a.test", b"clientxx"));
    let cookie = cookie_of(&client.recv()).expect("a cookie").to_vec();
    // Somebody else uses up the limit in the client's name.
    for n in 0..20 {
        client.send(&query(n, "a.test", 1, None));
    }
    server.until("the limit is used up", |stats| stats.counters.limited_dropped >= 10);
    client.send(&with_cookie(99, "a.test", &cookie));
    while id(&client.recv()) != 99 {}
    assert_eq!(server.stats().counters.limited_vouched, 1);
}

#[test]
fn clients_connections_are_bounded() {
    let upstream = upstream(Script::default());
    let clients = ClientSettings { connections_max: 2, ..ClientSettings::default() };
    let server = run(&Settings { clients, ..settings(&[&upstream]) });
    let mut open: Vec<Tcp> = (0..2).map(|_| Tcp::to(server.address)).collect();
    for client in &mut open {
        client.send(&query(1, "a.test", 1, None));
        assert_eq!(rcode(&client.recv().expect("a reply")), 0);
    }
    assert!(Tcp::to(server.address).recv().is_none(), "the third is closed at once");
    assert_eq!(server.stats().clients_rejected, 1);
    drop(open.pop());
    server.until("one place is free", |stats| stats.client_connections == 1);
    let mut third = Tcp::to(server.address);
    third.send(&query(1, "a.test", 1, None));
    assert!(third.recv().is_some());
}

#[test]
fn queries_of_one_connection_in_flight_are_bounded() {
    let upstream = upstream(Script { delay: Duration::from_millis(200), ..Script::default() });
    let clients = ClientSettings { queries_max: 3, ..ClientSettings::default() };
    let server = run(&Settings { clients, ..settings(&[&upstream]) });
    let mut client = Tcp::to(server.address);
    for n in 0..9 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    server.until("three are in flight", |stats| stats.questions == 3);
    assert_eq!(upstream.stats().udp_queries, 3, "the others are not read yet");
    let mut ids: Vec<u16> = (0..9).map(|_| id(&client.recv().expect("a reply"))).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..9).collect::<Vec<u16>>());
}

#[test]
fn idle_clients_are_closed_and_waiting_ones_are_not() {
    let upstream = upstream(Script { delay: Duration::from_millis(900), ..Script::default() });
    let clients = ClientSettings { idle_timeout: ms(200), ..ClientSettings::default() };
    let server = run(&Settings { clients, ..settings(&[&upstream]) });
    let began = std::time::Instant::now();
    let mut idle = Tcp::to(server.address);
    assert!(idle.recv().is_none());
    assert!(began.elapsed() >= Duration::from_millis(190));
    let mut waiting = Tcp::to(server.address);
    waiting.send(&query(1, "a.test", 1, None));
    assert_eq!(rcode(&waiting.recv().expect("it waits for its answer")), 0);
}

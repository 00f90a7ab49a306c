//! TCP upstreams that die in silence, answer little, close early, reset or stall: no query fails that a fresh connection
//! would have answered, and no storm of connections follows.

mod support;

use std::time::{Duration, Instant};

use forebay::units::{Size, Span};
use forebay_bench::responder::{Close, Responder, Script, expected_a};
use forebay_dns::{CacheSettings, Settings, StreamSettings};
use support::{Running, Udp, address, id, query, rcode, run, settings};

/// How long an answer is waited for. Long beside what a busy machine takes for a dial and a round trip.
const ATTEMPT: Duration = Duration::from_millis(600);
/// A query that takes longer has waited for an answer that did not come.
const LATE: Duration = Duration::from_millis(500);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

/// In front of TCP upstreams, without a cache.
fn over_tcp(upstreams: &[&Responder]) -> Settings {
    Settings {
        upstreams: upstreams.iter().map(|upstream| format!("tcp://{}", upstream.addr())).collect(),
        cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
        attempt_timeout: Span(ATTEMPT),
        query_timeout: Span(ms(4000)),
        ..settings(&[])
    }
}

/// Asks one name after the other, each of which must be answered. Returns how long each took.
fn ask(client: &Udp, prefix: &str, n: u32) -> Vec<Duration> {
    let one = |n| {
        let name = format!("{prefix}{n}.test");
        let began = Instant::now();
        assert_eq!(address(&client.ask(&name)), expected_a(&name), "{name}");
        began.elapsed()
    };
    (0..n).map(one).collect()
}

/// Asks so many at once, all of which must be answered. Returns how long the last took.
fn burst(server: &Running, prefix: &str, n: u16) -> Duration {
    let client = Udp::to(server.address);
    let began = Instant::now();
    for i in 0..n {
        client.send(&query(i, &format!("{prefix}{i}.test"), 1, None));
    }
    for _ in 0..n {
        let reply = client.recv();
        assert_eq!(address(&reply), expected_a(&format!("{prefix}{}.test", id(&reply))));
    }
    began.elapsed()
}

#[test]
fn half_open_connections_cost_each_query_one_attempt_at_most() {
    let upstream = upstream(Script::default());
    let stream = StreamSettings { capacity: 4, ..StreamSettings::default() };
    let server = run(&Settings { stream, ..over_tcp(&[&upstream]) });
    burst(&server, "warm", 32);
    let before = upstream.stats().connections;
    upstream.set_script(Script { half_open: true, ..Script::default() });
    let took = burst(&server, "n", 32);
    println!("32 queries on half-open connections: the last was answered after {took:?}");
    assert!(took < ATTEMPT * 2, "one attempt of 600 ms, a dial and a round trip: {took:?}");
    let made = upstream.stats().connections - before;
    assert!(made <= 12, "{made} connections for 32 queries at 4 each");
    let worst = ask(&Udp::to(server.address), "after", 50).into_iter().max().unwrap_or_default();
    assert!(worst < LATE, "the dead ones are gone: {worst:?}");
}

#[test]
fn one_half_open_connection_after_the_other_is_found_at_once() {
    let upstream = upstream(Script::default());
    let stream = StreamSettings { capacity: 4, ..StreamSettings::default() };
    let server = run(&Settings { stream, ..over_tcp(&[&upstream]) });
    burst(&server, "warm", 32);
    upstream.set_script(Script { half_open: true, ..Script::default() });
    let slow = ask(&Udp::to(server.address), "n", 20).into_iter().filter(|took| *took > LATE).count();
    assert_eq!(slow, 1, "the first query finds all eight");
}

#[test]
fn an_upstream_that_answers_only_the_first_query_of_a_connection_is_learnt() {
    let upstream = upstream(Script { first_only: true, ..Script::default() });
    let server = run(&over_tcp(&[&upstream]));
    let took = ask(&Udp::to(server.address), "n", 60);
    let slow = took.iter().filter(|took| **took > LATE).count();
    assert_eq!(slow, 2, "two teach it: {took:?}");
    assert!(took[10..].iter().all(|took| *took < LATE));
    let stats = upstream.stats();
    assert!(stats.connections <= 62, "one for each query: {stats:?}");
    println!("60 queries, {} connections, {slow} late", stats.connections);
}

#[test]
fn a_burst_at_an_upstream_that_answers_only_the_first_query_fails_nobody() {
    let upstream = upstream(Script { first_only: true, ..Script::default() });
    let server = run(&over_tcp(&[&upstream]));
    let took = burst(&server, "n", 200);
    let stats = upstream.stats();
    println!("200 queries at once, {} connections, the last answered after {took:?}", stats.connections);
    assert!(took < ms(4000) && stats.connections <= 220, "{took:?} {stats:?}");
}

#[test]
fn upstreams_that_close_after_few_answers_fail_no_burst() {
    for close in [Close::After(1), Close::After(3), Close::ResetAfter(3)] {
        let upstream = upstream(Script { close, ..Script::default() });
        let server = run(&over_tcp(&[&upstream]));
        burst(&server, "n", 120);
        let stats = upstream.stats();
        println!("{close:?}: 120 queries, {} connections", stats.connections);
        assert!(stats.connections <= 130, "{close:?}: {stats:?}");
    }
}

#[test]
fn an_upstream_that_closes_idle_connections_is_undercut() {
    let upstream = upstream(Script { close: Close::Idle(ms(2000)), ..Script::default() });
    let server = run(&over_tcp(&[&upstream]));
    let client = Udp::to(server.address);
    ask(&client, "a", 1);
    // It closes after two seconds, and that is noticed.
    server.until("it has closed", |stats| {
        stats.pools[0].snapshot.counters.closes(forebay_core::CloseReason::Peer) == 1
    });
    let learnt = server.stats().pools[0].snapshot.idle_timeout;
    assert!(learnt.is_some_and(|learnt| learnt < ms(1700)), "{learnt:?}");
    for round in 0..3 {
        ask(&client, &format!("r{round}n"), 2);
        std::thread::sleep(ms(1700));
    }
    let counters = server.stats().pools[0].snapshot.counters.clone();
    assert_eq!(counters.closes(forebay_core::CloseReason::Peer), 1, "never again by the upstream");
    assert!(counters.closes(forebay_core::CloseReason::Idle) >= 2);
}

#[test]
fn an_upstream_that_resets_every_connection_causes_no_storm() {
    for close in [Close::ResetAtOnce, Close::ResetAfter(0)] {
        let bad = upstream(Script { close, ..Script::default() });
        let server = run(&over_tcp(&[&bad]));
        let client = Udp::to(server.address);
        let mut at_once = 0;
        for n in 0..200 {
            let began = Instant::now();
            assert_eq!(rcode(&client.ask(&format!("n{n}.test"))), 2);
            at_once += u32::from(began.elapsed() < ms(100));
        }
        let made = bad.stats().connections;
        println!("{close:?}: 200 queries, {made} connections, {at_once} told at once");
        assert!(made <= 400, "{close:?}: two a query at most, and none while the breaker is open: {made}");
        // The others waited for the pause between two dials.
        assert!(at_once >= 150, "{close:?}: {at_once} told at once");

        let good = upstream(Script::default());
        let before = bad.stats().connections;
        let server = run(&over_tcp(&[&bad, &good]));
        ask(&Udp::to(server.address), "m", 200);
        let made = bad.stats().connections - before;
        println!("{close:?}: beside a good one: 200 queries, {made} connections to the bad one");
        assert!(made <= 210, "{close:?}: {made}");
    }
}

#[test]
fn a_connection_that_is_made_and_never_answers_leaves_time_for_another_upstream() {
    let silent = upstream(Script { drop: 1.0, ..Script::default() });
    let good = upstream(Script::default());
    let server = run(&over_tcp(&[&silent, &good]));
    let took = ask(&Udp::to(server.address), "n", 5);
    assert!(took.iter().all(|took| *took < ATTEMPT * 2), "{took:?}");
    assert!(silent.stats().connections <= 5);
}

#[test]
fn a_dial_that_stalls_takes_half_of_the_deadline_at_most() {
    // A listener whose queue is full: the kernel drops what comes, and connecting hangs.
    let options = forebay::sys::TcpListenerOptions { backlog: 0, ..Default::default() };
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = forebay::sys::tcp_listener(any, &options).expect("a port");
    let stalls = listener.local_addr().expect("an address");
    let _full: Vec<_> =
        (0..4).map(|_| std::net::TcpStream::connect_timeout(&stalls, Duration::from_millis(100))).collect();
    let good = upstream(Script::default());
    let stream = StreamSettings { dial_timeout: Span(Duration::from_secs(60)), ..StreamSettings::default() };
    let server = run(&Settings {
        upstreams: vec![format!("tcp://{stalls}"), format!("tcp://{}", good.addr())],
        attempt_timeout: Span(ms(3900)),
        stream,
        ..over_tcp(&[])
    });
    let took = ask(&Udp::to(server.address), "n", 1);
    assert!(took[0] >= ms(1900) && took[0] < ms(3500), "half of four seconds, then the other one: {took:?}");
}

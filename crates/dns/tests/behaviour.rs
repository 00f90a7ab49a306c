//! The server on real sockets, in front of an upstream that does what it is told.

mod support;

use std::time::{Duration, Instant};

use forebay_bench::responder::{Close, Responder, Script, Truncate, Verdict, expected_a};
use forebay_dns::{CacheSettings, Settings};
use support::{Tcp, Udp, address, id, query, rcode, run, settings, truncated};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn tcp_upstream(settings: Settings, upstream: &Responder) -> Settings {
    Settings { upstreams: vec![format!("tcp://{}", upstream.addr())], ..settings }
}

#[test]
fn a_name_is_forwarded_answered_and_then_served_from_the_cache() {
    let upstream = upstream(Script::default());
    let server = run(&settings(&[&upstream]));
    let client = Udp::to(server.address);
    assert_eq!(address(&client.ask("www.example.test")), expected_a("www.example.test"));
    client.send(&query(0xbeef, "WWW.example.TEST", 1, None));
    let reply = client.recv();
    assert_eq!(id(&reply), 0xbeef);
    assert_eq!(&reply[13..16], b"WWW", "the client's letters come back");
    assert_eq!(address(&reply), expected_a("www.example.test"));
    assert_eq!(upstream.stats().udp_queries, 1);
    assert_eq!(server.stats().counters.hits, 1);
}

#[test]
fn tcp_clients_are_answered_out_of_order_on_one_connection() {
    let slow = Script { verdicts: vec![("slow.test".to_owned(), Verdict::Silence)], ..Script::default() };
    let upstream = upstream(slow);
    let server = run(&Settings { query_timeout: span(1500), ..settings(&[&upstream]) });
    let mut client = Tcp::to(server.address);
    client.send(&query(1, "a.slow.test", 1, Some(1232)));
    for n in 2..20 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    let mut ids: Vec<u16> = (2..20).map(|_| id(&client.recv().expect("a reply"))).collect();
    ids.sort_unstable();
    assert_eq!(ids, (2..20).collect::<Vec<u16>>(), "nobody waits for the slow one");
    let last = client.recv().expect("a reply");
    assert_eq!((id(&last), rcode(&last)), (1, 2));
}

fn span(ms: u64) -> forebay::units::Span {
    forebay::units::Span(Duration::from_millis(ms))
}

#[test]
fn a_half_closed_client_still_gets_its_answers() {
    let upstream = upstream(Script { delay: Duration::from_millis(50), ..Script::default() });
    let server = run(&settings(&[&upstream]));
    let mut client = Tcp::to(server.address);
    client.send(&query(1, "a.test", 1, None));
    client.0.shutdown(std::net::Shutdown::Write).expect("half closed");
    assert_eq!(id(&client.recv().expect("a reply")), 1);
    assert!(client.recv().is_none(), "then the server closes too");
}

#[test]
fn garbage_on_a_stream_ends_it_and_harms_nobody() {
    let upstream = upstream(Script::default());
    let server = run(&settings(&[&upstream]));
    for garbage in [&[0u8, 0][..], &[0, 3, 1, 2, 3], &[0, 12, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut client = Tcp::to(server.address);
        std::io::Write::write_all(&mut client.0, garbage).expect("sent");
        assert!(client.recv().is_none());
    }
    let client = Udp::to(server.address);
    client.send(b"no query");
    client.send(&[0; 12]);
    assert_eq!(rcode(&client.recv()), 1, "only the one with a header is answered");
    assert_eq!(address(&client.ask("a.test")), expected_a("a.test"));
}

#[test]
fn a_truncated_answer_is_fetched_over_tcp_and_cut_to_what_the_client_takes() {
    let upstream = upstream(Script { records: 60, truncate: Truncate::ToFit, ..Script::default() });
    let server = run(&settings(&[&upstream]));
    let client = Udp::to(server.address);
    client.send(&query(1, "big.test", 1, None));
    let reply = client.recv();
    assert!(truncated(&reply) && reply.len() <= 512);
    let mut stream = Tcp::to(server.address);
    stream.send(&query(2, "big.test", 1, None));
    let reply = stream.recv().expect("a reply");
    assert!(!truncated(&reply) && reply.len() > 900);
    assert_eq!(upstream.stats().connections, 0, "992 bytes fit our own 1232");
    upstream.set_script(Script { truncate: Truncate::Always, ..Script::default() });
    assert_eq!(address(&client.ask("other.test")), expected_a("other.test"));
    assert_eq!(upstream.stats().connections, 1);
    assert_eq!(server.stats().counters.truncated, 1);
}

#[test]
fn lies_about_ids_and_questions_are_counted_and_not_believed() {
    let upstream = upstream(Script { decoys: 3, ..Script::default() });
    let server = run(&settings(&[&upstream]));
    let client = Udp::to(server.address);
    for n in 0..50 {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
    let stats = server.stats();
    // A wrong id may be one that the socket has used, as a late answer's would be.
    let strays = stats.counters.unexpected + stats.counters.late;
    assert!(strays >= 12 && stats.counters.rotated > 0, "{:?}", stats.counters);
    upstream.set_script(Script { wrong_question: 1.0, ..Script::default() });
    let server =
        run(&Settings { query_timeout: span(300), attempt_timeout: span(100), ..settings(&[&upstream]) });
    let client = Udp::to(server.address);
    assert_eq!(rcode(&client.ask("x.test")), 2);
    assert_eq!(server.stats().counters.answers, 0);
}

#[test]
fn a_silent_upstream_costs_a_bounded_time_and_is_counted_as_such() {
    let upstream = upstream(Script { drop: 1.0, ..Script::default() });
    let server =
        run(&Settings { query_timeout: span(400), attempt_timeout: span(100), ..settings(&[&upstream]) });
    let client = Udp::to(server.address);
    let began = Instant::now();
    assert_eq!(rcode(&client.ask("a.test")), 2);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(390) && took < Duration::from_secs(5), "{took:?}");
    let stats = server.stats();
    assert_eq!(stats.counters.failed_timeout, 1);
    assert_eq!(upstream.stats().udp_queries, 4);
}

#[test]
fn a_refusing_upstream_is_told_to_the_client_at_once_and_another_takes_over() {
    let gone = upstream(Script::default()).addr();
    let server = run(&Settings { upstreams: vec![gone.to_string()], ..settings(&[]) });
    let client = Udp::to(server.address);
    let began = Instant::now();
    assert_eq!(rcode(&client.ask("a.test")), 2);
    assert!(began.elapsed() < Duration::from_secs(1), "ICMP said so, no time-out was waited for");
    assert_eq!(server.stats().counters.failed_upstream, 1);

    let good = upstream(Script::default());
    let two = Settings { upstreams: vec![gone.to_string(), good.addr().to_string()], ..settings(&[]) };
    let server = run(&two);
    let client = Udp::to(server.address);
    for n in 0..100 {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
}

#[test]
fn late_answers_never_reach_another_question() {
    let late = forebay_bench::responder::Late { share: 0.5, by: Duration::from_millis(150) };
    let upstream = upstream(Script {
        late: Some(late),
        jitter: Duration::from_millis(20),
        duplicate: true,
        ..Script::default()
    });
    let server = run(&Settings {
        attempt_timeout: span(60),
        cache: CacheSettings { size: forebay::units::Size { bytes: 0 }, ..CacheSettings::default() },
        ..settings(&[&upstream])
    });
    let client = Udp::to(server.address);
    for round in 0..20u16 {
        for n in 0..50u16 {
            client.send(&query(round * 50 + n, &format!("r{round}n{n}.test"), 1, None));
        }
        for _ in 0..50 {
            let reply = client.recv();
            let (round, n) = (id(&reply) / 50, id(&reply) % 50);
            assert_eq!(address(&reply), expected_a(&format!("r{round}n{n}.test")));
        }
    }
}

#[test]
fn a_tcp_upstream_carries_many_queries_on_few_connections() {
    let upstream = upstream(Script { delay: Duration::from_millis(5), ..Script::default() });
    let server = run(&tcp_upstream(settings(&[]), &upstream));
    let client = Udp::to(server.address);
    for n in 0..128 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    for _ in 0..128 {
        let reply = client.recv();
        assert_eq!(address(&reply), expected_a(&format!("n{}.test", id(&reply))));
    }
    let stats = upstream.stats();
    assert_eq!(stats.udp_queries, 0);
    assert!(stats.connections <= 2, "128 queries at 64 each: {stats:?}");
}

#[test]
fn tcp_upstreams_that_close_too_early_fail_no_query_and_cause_no_storm() {
    for close in [Close::After(1), Close::After(3), Close::ResetAfter(5)] {
        let upstream = upstream(Script { close, ..Script::default() });
        let server = run(&tcp_upstream(settings(&[]), &upstream));
        let client = Udp::to(server.address);
        for n in 0..60 {
            let name = format!("n{n}.test");
            assert_eq!(address(&client.ask(&name)), expected_a(&name), "{close:?}");
        }
        let stats = upstream.stats();
        assert!(stats.connections <= 130, "{close:?}: {stats:?}");
    }
}

#[test]
fn a_tcp_upstream_that_resets_everything_costs_few_connections() {
    let upstream = upstream(Script { close: Close::ResetAfter(0), ..Script::default() });
    let server = run(&tcp_upstream(Settings { query_timeout: span(1000), ..settings(&[]) }, &upstream));
    let client = Udp::to(server.address);
    for n in 0..20 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    for _ in 0..20 {
        assert_eq!(rcode(&client.recv()), 2);
    }
    let stats = upstream.stats();
    assert!(stats.connections <= 20 * 6, "attempts are bounded: {stats:?}");
}

#[test]
fn draining_answers_what_is_in_flight() {
    let upstream = upstream(Script { delay: Duration::from_millis(200), ..Script::default() });
    let mut server = run(&settings(&[&upstream]));
    let client = Udp::to(server.address);
    client.send(&query(7, "a.test", 1, None));
    server.until("the query is in flight", |stats| stats.questions == 1);
    server.drain(Duration::from_secs(5));
    assert_eq!(address(&client.recv()), expected_a("a.test"));
}

#[test]
fn a_draining_server_still_tells_its_figures_and_a_cancelled_drain_ends_it_at_once() {
    let upstream = upstream(Script { delay: Duration::from_secs(3), ..Script::default() });
    let mut server = run(&settings(&[&upstream]));
    let client = Udp::to(server.address);
    client.send(&query(7, "a.test", 1, None));
    server.until("the query is in flight", |stats| stats.questions == 1);
    let (running, handle) = {
        let running = server.server.take().expect("it runs");
        let handle = running.handle();
        (running, handle)
    };
    let began = Instant::now();
    server.runtime.block_on(async move {
        let mut drain = Box::pin(running.drain(Duration::from_secs(30)));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut drain).await;
        assert!(early.is_err(), "the query is still in flight");
        assert_eq!(handle.stats().await.questions, 1);
        drop(drain);
    });
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(rcode(&client.recv()), 2, "and the client was told");
}

#[test]
fn an_upstream_that_comes_back_is_used_again() {
    let upstream = upstream(Script { drop: 1.0, ..Script::default() });
    let quick = Settings { query_timeout: span(100), attempt_timeout: span(50), ..settings(&[&upstream]) };
    let server = run(&quick);
    let client = Udp::to(server.address);
    for n in 0..100 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    for _ in 0..100 {
        assert_eq!(rcode(&client.recv()), 2);
    }
    upstream.set_script(Script::default());
    let end = Instant::now() + Duration::from_secs(10);
    let mut tries = 0;
    loop {
        tries += 1;
        let reply = client.ask(&format!("back{tries}.test"));
        if rcode(&reply) == 0 {
            break;
        }
        assert!(Instant::now() < end, "it never came back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

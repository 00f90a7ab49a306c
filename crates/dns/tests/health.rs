//! Active checks and remembered failures, on real sockets.

mod support;

use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_bench::responder::{Responder, Script, Verdict, expected_a};
use forebay_core::Health;
use forebay_dns::{HealthSettings, Settings, Stats};
use support::{Udp, address, rcode, run, settings};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

fn quick() -> HealthSettings {
    HealthSettings {
        enabled: true,
        interval: ms(100),
        timeout: ms(80),
        rise: 1,
        fall: 1,
        ..HealthSettings::default()
    }
}

fn health(stats: &Stats) -> Health {
    stats.pools[0].snapshot.health
}

#[test]
fn checks_are_asked_only_if_enabled_and_over_what_clients_queries_go() {
    let upstream = upstream(Script::default());
    let server = run(&settings(&[&upstream]));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((upstream.stats().udp_queries, server.stats().counters.checks), (0, 0));
    let server = run(&Settings { health: quick(), ..settings(&[&upstream]) });
    server.until("five checks", |stats| stats.counters.checks >= 5);
    assert!(upstream.stats().udp_queries >= 4);
    assert_eq!(upstream.stats().connections, 0, "the stream behind it is for what was truncated");
    drop(server);
    let server = run(&Settings {
        health: quick(),
        upstreams: vec![format!("tcp://{}", upstream.addr())],
        ..settings(&[])
    });
    let stats = server.until("five checks", |stats| stats.counters.checks >= 5);
    assert_eq!(upstream.stats().connections, 1);
    assert_eq!((health(&stats), stats.counters.checks_failed), (Health::Healthy, 0));
}

#[test]
fn the_question_and_its_timeout_are_settings() {
    let verdicts = vec![
        ("silent.test".to_owned(), Verdict::Silence),
        ("broken.test".to_owned(), Verdict::ServFail),
        ("refused.test".to_owned(), Verdict::Refused),
    ];
    let upstream = upstream(Script { verdicts, delay: Duration::from_millis(30), ..Script::default() });
    let with = |question: &str, timeout: u64| {
        let health = HealthSettings { question: question.to_owned(), timeout: ms(timeout), ..quick() };
        run(&Settings { health, ..settings(&[&upstream]) })
    };
    for question in ["silent.test NS", "a.silent.test TYPE65"] {
        with(question, 80).until("silence is noticed", |stats| health(stats) == Health::Unhealthy);
    }
    with("a.test A", 15).until("it takes too long", |stats| health(stats) == Health::Unhealthy);
    for question in [". NS", "a.test A", "broken.test A", "refused.test A"] {
        let server = with(question, 80);
        let stats = server.until("three checks", |stats| stats.counters.checks >= 3);
        assert_eq!(health(&stats), Health::Healthy, "{question}: any answer will do");
    }
}

#[test]
fn rise_fall_and_interval_are_settings() {
    let upstream = upstream(Script { drop: 1.0, ..Script::default() });
    let with = |health| run(&Settings { health, ..settings(&[&upstream]) });
    let checks_until = |health: HealthSettings| {
        with(health)
            .until("it is unhealthy", |stats| self::health(stats) == Health::Unhealthy)
            .counters
            .checks_failed
    };
    assert!((1..=2).contains(&checks_until(quick())));
    assert!((4..=6).contains(&checks_until(HealthSettings { fall: 4, ..quick() })));
    let server = with(HealthSettings { rise: 4, ..quick() });
    server.until("it is unhealthy", |stats| health(stats) == Health::Unhealthy);
    upstream.set_script(Script::default());
    let good = |stats: &Stats| stats.counters.checks - stats.counters.checks_failed;
    let before = good(&server.stats());
    let stats = server.until("it is healthy again", |stats| health(stats) == Health::Healthy);
    assert!(good(&stats) - before >= 3, "four answers in a row");
    let server = with(HealthSettings { interval: ms(60_000), ..quick() });
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.stats().counters.checks <= 1);
}

#[test]
fn no_client_has_to_find_out_that_an_upstream_is_silent() {
    let (silent, good) = (upstream(Script { drop: 1.0, ..Script::default() }), upstream(Script::default()));
    let server = run(&Settings { health: quick(), ..settings(&[&silent, &good]) });
    server.until("silence is noticed", |stats| health(stats) == Health::Unhealthy);
    let client = Udp::to(server.address);
    let began = Instant::now();
    for n in 0..20 {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
    assert!(began.elapsed() < Duration::from_millis(900), "{:?}", began.elapsed());
    assert_eq!(server.stats().counters.retries, 0);
}

#[test]
fn failures_are_remembered_for_failure_ttl_and_longer_the_second_time() {
    let verdicts = vec![("bad.test".to_owned(), Verdict::ServFail)];
    let upstream = upstream(Script { verdicts, ..Script::default() });
    let with = |ttl: u64, max: u64| {
        let (failure_ttl, failure_ttl_max) = (ms(ttl * 1000), ms(max * 1000));
        run(&Settings { failure_ttl, failure_ttl_max, ..settings(&[&upstream]) })
    };
    let servers = [with(0, 0), with(1, 1), with(1, 60)];
    let ask = || {
        servers.each_ref().map(|server| {
            let before = upstream.stats().udp_queries;
            assert_eq!(rcode(&Udp::to(server.address).ask("a.bad.test")), 2);
            upstream.stats().udp_queries - before
        })
    };
    assert_eq!(ask(), [1, 1, 1]);
    assert_eq!(ask(), [1, 0, 0]);
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(ask(), [1, 1, 1], "its time is over");
    std::thread::sleep(Duration::from_millis(1050));
    assert_eq!(ask(), [1, 1, 0], "the second time is twice as long, if it may be");
    assert_eq!(servers[2].stats().counters.remembered, 2);
}

//! Strategies on real sockets: who is asked, and what a client feels of it.

mod support;

use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_bench::responder::{Responder, Script, Verdict, expected_a};
use forebay_dns::{Settings, Stats, StrategyName, StrategySettings};
use support::{Running, Udp, address, rcode, run, settings};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn slow(ms: u64) -> Responder {
    upstream(Script { delay: Duration::from_millis(ms), ..Script::default() })
}

fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

fn ask(server: &Running, names: std::ops::Range<u32>) {
    let client = Udp::to(server.address);
    for n in names {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
}

/// Waits until those have answered too whose answers nobody needed.
fn settled(server: &Running) -> Stats {
    server.until("the losers have answered", |stats| {
        stats.counters.late + stats.counters.answers == stats.counters.transmits
    })
}

#[test]
fn parallel_asks_as_many_as_may_be_and_its_losers_are_no_failures() {
    let all = [slow(30), slow(0), slow(30), slow(30)];
    let asked = |parallel_max| {
        let before = all.each_ref().map(|upstream| upstream.stats().udp_queries);
        let server = run(&Settings {
            strategy: StrategyName::Parallel,
            strategies: StrategySettings { parallel_max, ..StrategySettings::default() },
            ..settings(&[&all[0], &all[1], &all[2], &all[3]])
        });
        ask(&server, 0..50);
        let stats = settled(&server);
        assert_eq!((stats.counters.unexpected, stats.counters.rotated), (0, 0));
        assert_eq!(stats.pool_counters().failures, 0);
        let figures = stats.pools.iter().filter_map(|pool| pool.figures);
        let (won, lost) =
            figures.clone().fold((0, 0), |(won, lost), one| (won + one.races_won, lost + one.races_lost));
        assert_eq!((figures.count(), won, lost), (4, 50, 50 * u64::from(parallel_max - 1)));
        let latency = stats.pools.iter().find(|pool| pool.index == 1).and_then(|pool| pool.figures?.latency);
        assert!(latency.is_some_and(|(mean, _)| mean < Duration::from_millis(20)), "{latency:?}");
        let n = all.each_ref().map(|upstream| upstream.stats().udp_queries);
        n.iter().zip(before).map(|(n, before)| n - before).sum::<u64>()
    };
    assert_eq!(asked(4), 200);
    assert_eq!(asked(2), 100);
}

#[test]
fn racing_gives_a_head_start_and_hides_an_upstream_that_falls_silent() {
    let (first, second) = (slow(2), slow(2));
    let with = |min, max| Settings {
        strategy: StrategyName::Racing,
        strategies: StrategySettings {
            head_start_min: ms(min),
            head_start_max: ms(max),
            probing_percent: 0,
            ..StrategySettings::default()
        },
        ..settings(&[&first, &second])
    };
    let server = run(&with(10, 250));
    ask(&server, 0..30);
    first.set_script(Script { drop: 1.0, ..Script::default() });
    let began = Instant::now();
    ask(&server, 100..130);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "thirty head starts would be more: {:?}",
        began.elapsed()
    );
    let took = |settings: &Settings| {
        let server = run(settings);
        let began = Instant::now();
        ask(&server, 0..1);
        began.elapsed()
    };
    let (short, long) = (took(&with(10, 100)), took(&with(400, 400)));
    assert!(short >= Duration::from_millis(95), "{short:?}");
    assert!(long >= Duration::from_millis(395), "{long:?}");
}

#[test]
fn fastest_finds_the_quickest_by_probing() {
    let (first, second) = (slow(20), slow(0));
    let asked = |probing_percent| {
        let server = run(&Settings {
            strategy: StrategyName::Fastest,
            strategies: StrategySettings { probing_percent, ..StrategySettings::default() },
            ..settings(&[&first, &second])
        });
        let before = [first.stats().udp_queries, second.stats().udp_queries];
        ask(&server, 0..100);
        settled(&server);
        [first.stats().udp_queries - before[0], second.stats().udp_queries - before[1]]
    };
    assert!(asked(0).iter().all(|n| *n == 0 || *n == 100), "nobody is measured but who is asked");
    let asked = asked(30);
    assert!(asked[1] > 60 && asked[0] + asked[1] > 105, "{asked:?}");
}

#[test]
fn errors_of_all_are_told_at_once_by_every_strategy() {
    let broken = || {
        let verdicts = vec![("bad.test".to_owned(), Verdict::ServFail)];
        upstream(Script { verdicts, ..Script::default() })
    };
    let (first, second) = (broken(), broken());
    for strategy in [
        StrategyName::Sequential,
        StrategyName::Parallel,
        StrategyName::Racing,
        StrategyName::RoundRobin,
        StrategyName::Random,
        StrategyName::Fastest,
        StrategyName::LeastInflight,
    ] {
        let server = run(&Settings { strategy, ..settings(&[&first, &second]) });
        let began = Instant::now();
        assert_eq!(rcode(&Udp::to(server.address).ask("a.bad.test")), 2);
        assert!(began.elapsed() < Duration::from_millis(900), "{strategy:?}: {:?}", began.elapsed());
    }
}

use super::super::facts::Process;
use super::super::parse::{Memory, Resolvers};
use super::*;
use crate::remote::samples;

fn good() -> Facts {
    Facts {
        descriptors: Some(Limit { soft: 1024, hard: 524_288 }),
        files: Some((1000, 1_000_000)),
        nr_open: Some(1_048_576),
        ports: Some(28_232),
        tw_reuse: Some(2),
        tw_buckets: Some(131_072),
        rmem_max: Some(4 << 20),
        wmem_max: Some(4 << 20),
        somaxconn: Some(4096),
        syn_backlog: Some(4096),
        governor: Some("performance".to_owned()),
        clocksource: Some("tsc".to_owned()),
        is_synchronised: Some(true),
        cores: Some(2),
        memory: Some(Memory { total_bytes: 8 << 30, available_bytes: 6 << 30 }),
        resolvers: Some(Resolvers {
            nameservers: vec!["192.0.2.1".to_owned(), "192.0.2.2".to_owned()],
            timeout: 5,
            attempts: 2,
        }),
        sockets: [("TCP.tw".to_owned(), 10)].into(),
        ..Facts::default()
    }
}

/// The worst that is said of this thing, and the line that changes it.
fn worst(facts: &Facts, what: &str) -> (State, String) {
    let all = machine(facts);
    let one = all.iter().filter(|one| one.what == what).min_by_key(|one| one.state).unwrap();
    assert_eq!(one.change.is_some(), one.state != State::Ok, "{one:?}");
    (one.state, one.change.clone().unwrap_or_default())
}

#[test]
fn nothing_is_wrong_with_a_good_machine() {
    let bad: Vec<_> = machine(&good()).into_iter().filter(|one| one.state != State::Ok).collect();
    assert_eq!(bad, []);
}

#[test]
fn each_lack_is_found_with_the_line_that_changes_it() {
    let busy = Towards { connections: 28_000, time_wait: 27_000 };
    let greedy = Process { pid: 7, name: "x".to_owned(), used: 99, limit: Limit { soft: 100, hard: 100 } };
    let overflow = [("TcpExt.ListenOverflows".to_owned(), 9)];
    let cases: Vec<(&str, Facts, State, &str)> = vec![
        (
            "descriptors",
            Facts { descriptors: Some(Limit { soft: 1024, hard: 4096 }), ..good() },
            State::Low,
            "LimitNOFILE=",
        ),
        ("descriptors", Facts { processes: vec![greedy], ..good() }, State::Bad, "prlimit --pid 7"),
        ("files", Facts { files: Some((95, 100)), ..good() }, State::Bad, "fs.file-max"),
        ("local ports", Facts { ports: Some(200), ..good() }, State::Low, "ip_local_port_range"),
        (
            "local ports",
            Facts { busiest: Some(("192.0.2.1:443".to_owned(), busy)), ..good() },
            State::Bad,
            "tcp_tw_reuse",
        ),
        ("TIME_WAIT", Facts { tw_buckets: Some(10), ..good() }, State::Bad, "tcp_max_tw_buckets"),
        ("conntrack", Facts { conntrack: Some((95_000, 100_000)), ..good() }, State::Bad, "nf_conntrack_max"),
        ("receive buffers", Facts { rmem_max: Some(212_992), ..good() }, State::Low, "rmem_max=4194304"),
        ("send buffers", Facts { wmem_max: Some(212_992), ..good() }, State::Low, "wmem_max=4194304"),
        ("backlog", Facts { somaxconn: Some(128), ..good() }, State::Low, "somaxconn=4096"),
        ("backlog", Facts { syn_backlog: Some(128), ..good() }, State::Low, "tcp_max_syn_backlog"),
        ("backlog", Facts { counters: overflow.into(), ..good() }, State::Low, "ss -ltn"),
        ("network queue", Facts { softnet_dropped: Some(1), ..good() }, State::Low, "netdev_max_backlog"),
        ("cores", Facts { cpu_quota: Some(1.5), ..good() }, State::Low, "--workers 1"),
        ("frequency", Facts { governor: Some("powersave".to_owned()), ..good() }, State::Low, "cpupower"),
        ("clock", Facts { clocksource: Some("hpet".to_owned()), ..good() }, State::Low, "clocksource"),
        ("clock", Facts { is_synchronised: Some(false), ..good() }, State::Low, "timedatectl"),
        ("memory", Facts { memory_max: Some(64 << 20), ..good() }, State::Low, "MemoryMax="),
        ("resolvers", Facts { resolvers: Some(Resolvers::default()), ..good() }, State::Bad, "--upstream"),
    ];
    for (what, facts, state, change) in cases {
        let (found, line) = worst(&facts, what);
        assert_eq!(found, state, "{what}: {line}");
        assert!(line.contains(change), "{what}: {line}");
    }
}

#[test]
fn what_it_carries_is_arithmetic_of_its_limits() {
    let most = |facts: &Facts, what: &str| {
        carries(facts).into_iter().find(|one| one.what.starts_with(what)).map(|one| one.most)
    };
    let facts = good();
    assert_eq!(most(&facts, "connections of one process"), Some(524_288 - 64));
    assert_eq!(most(&facts, "connections to one destination"), Some(28_232));
    assert_eq!(most(&facts, "new connections a second to one"), Some(470));
    assert_eq!(
        most(&Facts { tw_reuse: Some(1), ..facts.clone() }, "new connections a second to"),
        Some(28_232)
    );
    let flows = Facts { conntrack: Some((0, 12_000)), ..facts.clone() };
    assert_eq!(most(&flows, "new connections a second through"), Some(100));
    assert_eq!(most(&facts, "new connections a second through"), None);
    let few = Facts { ports: Some(10), ..facts };
    assert_eq!(most(&few, "DNS queries in flight"), Some(1280));
}

#[test]
fn what_breaks_first_is_the_least_of_its_sort() {
    let report = Report::new(good(), None);
    assert_eq!(report.breaks_first[0].what, "connections to one destination");
    assert_eq!(report.breaks_first[1].most, 470);
    let few = Facts { descriptors: Some(Limit { soft: 1024, hard: 4096 }), ..good() };
    let report = Report::new(few, None);
    assert_eq!(report.breaks_first[0].what, "connections of one process");
    let text = report.to_string();
    assert!(text.contains("as connections stay: connections of one process, at 4,032"), "{text}");
    assert!(text.contains("LimitNOFILE=1048576") && text.ends_with("for good."), "{text}");
    let nothing = Report::new(Facts::default(), None);
    assert!(nothing.to_string().contains("nothing could be read"));
}

#[test]
fn a_running_forebays_counters_are_judged() {
    let text = "process_open_fds 950\nprocess_max_fds 1000\n\
        forebay_local_exhaustion_total{resource=\"ports\"} 7\nforebay_local_exhaustion_total{resource=\"memory\"} 0\n\
        forebay_pool_acquires_total{upstream=\"a\",endpoint=\"b\",outcome=\"rejected\"} 3\n\
        forebay_pool_acquires_total{upstream=\"a\",endpoint=\"b\",outcome=\"reused\"} 10\n\
        forebay_pool_acquires_total{upstream=\"a\",endpoint=\"b\",outcome=\"fresh\"} 190\n\
        forebay_pool_waiters{upstream=\"a\",endpoint=\"b\"} 2\n\
        forebay_pool_connections{upstream=\"a\",endpoint=\"b\",state=\"busy\"} 10\n\
        forebay_pool_connections_max{upstream=\"a\",endpoint=\"b\"} 10\n\
        forebay_breaker_state{upstream=\"a\",endpoint=\"b\"} 2\nforebay_dns_datagrams_dropped_total 5\n";
    let all = server(&samples(text));
    let has = |words: &str, state| {
        assert!(all.iter().any(|one| one.state == state && one.found.contains(words)), "{words}: {all:?}");
    };
    has("950 of 1,000 descriptors", State::Bad);
    has("7 times a connection was wanted and this machine had no more of it: ports", State::Bad);
    has("3 requests got no connection", State::Bad);
    has("2 requests wait", State::Low);
    has("10 of 10 connections to b", State::Bad);
    has("5.0 % of requests went on a connection that was there", State::Low);
    has("breaker of b is open", State::Bad);
    has("5 replies did not fit", State::Low);
    assert!(!all.iter().any(|one| one.found.contains("of it: memory")));
    let quiet = server(&samples("process_open_fds 1\nprocess_max_fds 1000\n"));
    assert!(quiet.iter().any(|one| one.found.contains("never lacked")), "{quiet:?}");
}

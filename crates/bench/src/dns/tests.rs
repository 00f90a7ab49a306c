//! The generator against the scripted responder.

use std::net::{Ipv4Addr, UdpSocket};

use super::*;
use crate::message::rcode_word;
use crate::responder::{Close, Late, Responder, Script, Truncate, Verdict};

fn spawn(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("spawn")
}

/// A load that is over after so many queries, with all checks on.
fn load(responder: &Responder, queries: u64) -> DnsLoad {
    DnsLoad {
        queries: Some(queries),
        duration: None,
        timeout: Duration::from_millis(200),
        verify: Verify::Derived,
        ..DnsLoad::new(responder.addr())
    }
}

fn report(load: &DnsLoad) -> DnsReport {
    run(load, |_| ControlFlow::Continue(())).expect("a load that can be run")
}

#[track_caller]
fn assert_all_right(report: &DnsReport, queries: u64) {
    assert_eq!((report.sent, report.answered), (queries, queries), "{report}");
    assert_eq!((report.lost, report.wrong, report.unexpected, report.errors), (0, 0, 0, 0), "{report}");
    assert_eq!(report.rcodes.get("NOERROR"), Some(&queries), "{report}");
}

#[test]
fn every_query_is_answered_rightly_over_both_transports() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let responder = spawn(Script::default());
        let load = DnsLoad { transport, clients: 8, in_flight: 100, ..load(&responder, 20_000) };
        let report = report(&load);
        assert_all_right(&report, 20_000);
        assert_eq!(report.sockets, 8);
        let stats = responder.stats();
        let seen = match transport {
            Transport::Udp => (stats.udp_queries, stats.udp_ports),
            Transport::Tcp => (stats.tcp_queries, stats.connections),
        };
        assert_eq!(seen, (20_000, 8));
        let latency = report.latency.expect("answers");
        assert!(0.0 < latency.min_us && latency.min_us <= latency.p50_us && latency.p50_us <= latency.p99_us);
        assert!(latency.p99_us <= latency.p999_us && latency.p999_us <= latency.max_us);
    }
}

#[test]
fn clients_are_spread_over_threads() {
    let responder = spawn(Script::default());
    let load = DnsLoad { threads: 3, clients: 7, in_flight: 10, ..load(&responder, 10_001) };
    assert_all_right(&report(&load), 10_001);
    assert_eq!(responder.stats().udp_ports, 7);
}

#[test]
fn number_in_flight_is_what_was_asked_for() {
    // With answers after 5 ms, n in flight give n/5 ms: Little's law measures n.
    for in_flight in [4, 32] {
        let responder = spawn(Script { delay: Duration::from_millis(5), ..Script::default() });
        let load = DnsLoad { clients: 4, in_flight, ..load(&responder, 50 * in_flight as u64) };
        let report = report(&load);
        let mean = report.latency.expect("answers").mean_us;
        assert!(mean >= 5000.0, "{report}");
        let held = report.qps * mean / 1e6;
        assert!((held / in_flight as f64 - 1.0).abs() < 0.15, "{held} held, {in_flight} wanted\n{report}");
    }
}

#[test]
fn unanswered_queries_are_lost() {
    let responder = spawn(Script { drop: 0.5, ..Script::default() });
    let report = report(&DnsLoad { timeout: Duration::from_millis(20), ..load(&responder, 2000) });
    assert_eq!(report.answered + report.lost, 2000, "{report}");
    assert!((800..1200).contains(&report.lost), "{report}");
    assert_eq!((report.wrong, report.unexpected), (0, 0));
}

#[test]
fn answers_after_the_time_out_are_lost_and_unexpected() {
    let late = Late { share: 0.25, by: Duration::from_millis(60) };
    let responder = spawn(Script { late: Some(late), ..Script::default() });
    let timeout = Duration::from_millis(30);
    let patient = report(&DnsLoad { timeout: Duration::from_secs(2), ..load(&responder, 400) });
    assert_all_right(&patient, 400);
    let hasty = report(&DnsLoad { timeout, in_flight: 16, ..load(&responder, 400) });
    assert_eq!(hasty.answered + hasty.lost, 400, "{hasty}");
    assert!(hasty.lost > 50 && hasty.unexpected > 0, "{hasty}");
    assert_eq!(hasty.wrong, 0, "an id is not given again so soon that a late answer would fit\n{hasty}");
}

#[test]
fn lies_are_counted_by_kind() {
    let report_of = |script| {
        let responder = spawn(script);
        report(&DnsLoad { timeout: Duration::from_millis(20), ..load(&responder, 200) })
    };
    let ids = report_of(Script { wrong_id: 1.0, ..Script::default() });
    assert_eq!((ids.answered, ids.lost, ids.unexpected), (0, 200, 200), "{ids}");
    assert_eq!(ids.latency, None);
    let questions = report_of(Script { wrong_question: 1.0, ..Script::default() });
    assert_eq!((questions.answered, questions.wrong), (200, 200), "{questions}");
    let twice = report_of(Script { duplicate: true, ..Script::default() });
    assert_eq!((twice.answered, twice.wrong), (200, 0), "{twice}");
    assert!(twice.unexpected > 100, "{twice}");
}

#[test]
fn wrong_addresses_are_found_only_when_verified() {
    fn never(_: &[u8], _: Option<Ipv4Addr>) -> bool {
        false
    }
    fn is_derived(name: &[u8], address: Option<Ipv4Addr>) -> bool {
        name.ends_with(b"\x05bench\x04test\x00")
            && address == Some(crate::responder::expected_a_of_wire(name))
    }
    // No record is no address.
    let responder = spawn(Script { records: 0, ..Script::default() });
    let load = load(&responder, 100);
    assert_eq!(report(&load).wrong, 100);
    assert_eq!(report(&DnsLoad { verify: Verify::Off, ..load.clone() }).wrong, 0);
    responder.set_script(Script { cnames: 2, records: 3, ..Script::default() });
    assert_eq!(report(&load).wrong, 0);
    assert_eq!(report(&DnsLoad { verify: Verify::With(never), ..load.clone() }).wrong, 100);
    assert_eq!(report(&DnsLoad { verify: Verify::With(is_derived), ..load.clone() }).wrong, 0);
    // Answers to other questions have no address to check.
    let other = DnsLoad { qtype: QueryType::TXT, ..load };
    assert_eq!(report(&other).wrong, 0);
}

#[test]
fn codes_and_truncation_are_counted() {
    let verdicts = vec![
        ("h1.bench.test".to_owned(), Verdict::NxDomain),
        ("h2.bench.test".to_owned(), Verdict::ServFail),
    ];
    let responder = spawn(Script { verdicts, truncate: Truncate::Always, ..Script::default() });
    let report = report(&DnsLoad { names: Names::Hot { names: 4 }, ..load(&responder, 400) });
    let codes: Vec<_> = report.rcodes.iter().map(|(word, count)| (word.as_str(), *count)).collect();
    assert_eq!(codes, [("NOERROR", 200), ("NXDOMAIN", 100), ("SERVFAIL", 100)]);
    assert_eq!((report.truncated, report.wrong), (400, 0));
    assert_eq!(rcode_word(2), "SERVFAIL");
}

#[test]
fn open_loop_keeps_its_rate() {
    let responder = spawn(Script::default());
    let load = DnsLoad {
        duration: Some(Duration::from_secs(1)),
        rate: Some(5000.0),
        ..DnsLoad::new(responder.addr())
    };
    let report = report(&load);
    assert_eq!((report.sent + report.unsent, report.lost), (5000, 0), "{report}");
    assert!((report.qps / 5000.0 - 1.0).abs() < 0.05, "{report}");
    assert!(report.cpu_seconds < 0.5, "it sleeps between queries\n{report}");
}

#[test]
fn random_arrivals_meet_each_other_and_even_ones_do_not() {
    let responder = spawn(Script { delay: Duration::from_millis(5), ..Script::default() });
    let held_back = |arrivals| {
        let load = DnsLoad { clients: 1, in_flight: 1, rate: Some(100.0), arrivals, ..load(&responder, 100) };
        let report = report(&load);
        assert_eq!(report.answered, 100, "{report}");
        assert_eq!(report.to_string().contains("at random"), arrivals == Arrivals::Poisson);
        report.held_back
    };
    // Of those that come at random, four in ten come while another is on its way.
    assert!(held_back(Arrivals::Poisson) > 10);
    assert!(held_back(Arrivals::Even) < 10);
}

#[test]
fn rate_is_shared_by_threads() {
    let responder = spawn(Script::default());
    let load = DnsLoad { rate: Some(4000.0), threads: 2, ..load(&responder, 2000) };
    let report = report(&load);
    assert_all_right(&report, 2000);
    assert!((report.elapsed_seconds - 0.5).abs() < 0.025, "{report}");
}

#[test]
fn open_loop_counts_from_when_a_query_should_have_left() {
    // Two in flight and 10 ms each: 200 a second, where 1000 are due. Waiting for a place is part of the latency.
    let responder = spawn(Script { delay: Duration::from_millis(10), ..Script::default() });
    let load = DnsLoad {
        clients: 2,
        in_flight: 2,
        rate: Some(1000.0),
        duration: Some(Duration::from_millis(500)),
        ..DnsLoad::new(responder.addr())
    };
    let report = report(&load);
    let latency = report.latency.expect("answers");
    assert!(latency.min_us >= 10_000.0 && latency.max_us > 300_000.0, "{report}");
    assert!(report.held_back > report.sent / 2, "{report}");
    assert_eq!(report.sent + report.unsent, 500, "{report}");
}

#[test]
fn ended_connections_are_made_anew_and_their_queries_lost() {
    let responder = spawn(Script { close: Close::After(100), ..Script::default() });
    let load = DnsLoad { transport: Transport::Tcp, clients: 2, in_flight: 2, ..load(&responder, 1000) };
    let first = report(&load);
    assert_eq!(first.answered + first.lost, 1000, "{first}");
    assert!(first.closed >= 8 && first.sockets > 8, "{first}");
    assert!(first.answered >= 950 && first.wrong == 0, "{first}");
    responder.set_script(Script { close: Close::ResetAfter(0), ..Script::default() });
    let reset = report(&DnsLoad { queries: Some(10), ..load });
    assert_eq!((reset.answered, reset.lost), (0, 10), "{reset}");
    assert!(reset.last_error.as_ref().is_some_and(|error| error.contains("reset")), "{reset}");
}

#[test]
fn refusal_is_an_error_at_once_over_tcp_and_a_loss_over_udp() {
    let responder = spawn(Script::default());
    let load = DnsLoad { timeout: Duration::from_millis(30), ..load(&responder, 20) };
    drop(responder);
    let udp = report(&load);
    assert_eq!((udp.answered, udp.lost), (0, 20), "{udp}");
    assert!(udp.errors > 0 && udp.last_error.is_some_and(|error| error.contains("refused")));
    let tcp = run(&DnsLoad { transport: Transport::Tcp, ..load.clone() }, |_| ControlFlow::Continue(()));
    let error = tcp.expect_err("refused").to_string();
    assert!(error.contains(&load.target.to_string()) && error.contains("refused"), "{error}");
}

#[test]
fn load_ends_when_told_so() {
    let responder = spawn(Script::default());
    let load = DnsLoad { duration: None, rate: Some(1000.0), ..DnsLoad::new(responder.addr()) };
    let mut told = Vec::new();
    let report = run(&load, |progress| {
        told.push(*progress);
        if told.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .expect("report");
    assert!((400..700).contains(&report.sent), "{report}");
    assert_eq!(report.answered, report.sent);
    assert!(told[0].answered > 0 && told[0].answered <= told[1].answered && told[1].sent >= told[1].answered);
    assert!(told[1].elapsed >= Duration::from_millis(450));
}

#[test]
fn setting_of_edns_and_type_reaches_the_server() {
    let server = UdpSocket::bind("127.0.0.1:0").expect("bind");
    server.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    let target = server.local_addr().expect("address");
    let query_of = |edns_size, dnssec_ok, qtype| {
        let load = DnsLoad {
            clients: 1,
            in_flight: 1,
            queries: Some(1),
            timeout: Duration::from_millis(1),
            zone: "x".to_owned(),
            edns_size,
            dnssec_ok,
            qtype,
            ..DnsLoad::new(target)
        };
        assert_eq!(report(&load).lost, 1);
        let mut buffer = [0; 512];
        let length = server.recv(&mut buffer).expect("query");
        buffer[2..length].to_vec()
    };
    let plain = b"\x01\0\0\x01\0\0\0\0\0\0\x02h0\x01x\0\0\x01\0\x01";
    assert_eq!(query_of(None, false, QueryType::A), plain);
    assert!(query_of(None, false, QueryType(257)).ends_with(b"\x01x\0\x01\x01\0\x01"));
    let opt = &query_of(Some(4096), false, QueryType::A)[plain.len()..];
    assert_eq!(opt, [0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
    let opt = &query_of(Some(1232), true, QueryType::A)[plain.len()..];
    assert_eq!(opt, [0, 0, 41, 4, 0xd0, 0, 0, 0x80, 0, 0, 0]);
}

/// The names that `count` queries of a load ask for, as text, with their types.
fn asked(names: Names, count: usize, seed: u64) -> Vec<String> {
    let load =
        DnsLoad { names, zone: "z".to_owned(), ..DnsLoad::new("127.0.0.1:53".parse().expect("address")) };
    let table = NameTable::new(&load, seed).expect("names");
    let mut source = table.source(seed, 0, 1);
    (0..count)
        .map(|_| {
            let mut wire = Vec::new();
            source.write(&mut wire);
            let mut text = String::new();
            let mut at = 0;
            while wire[at] != 0 {
                let length = usize::from(wire[at]);
                text.push_str(&String::from_utf8_lossy(&wire[at + 1..at + 1 + length]));
                text.push('.');
                at += 1 + length;
            }
            assert_eq!(wire.len(), at + 5);
            text.push_str(&format!(" {}", QueryType(u16::from_be_bytes([wire[at + 1], wire[at + 2]]))));
            text
        })
        .collect()
}

#[test]
fn hot_names_come_in_turn() {
    assert_eq!(asked(Names::Hot { names: 2 }, 3, 1), ["h0.z. A", "h1.z. A", "h0.z. A"]);
    assert_eq!(asked(Names::Hot { names: 200 }, 124, 1)[123], "h123.z. A");
}

#[test]
fn unique_names_are_never_repeated_in_a_run_nor_in_the_next() {
    let mut names = asked(Names::Unique, 1000, 1);
    names.extend(asked(Names::Unique, 1000, 2));
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2000);
}

#[test]
fn a_mix_has_its_share_of_names_that_come_once_evenly_spread() {
    let names = asked(Names::Mix { names: 10, unique_percent: 4.0 }, 1000, 1);
    let is_hot = |name: &String| name.starts_with('h');
    for window in names.chunks(25) {
        assert_eq!(window.iter().filter(|name| !is_hot(name)).count(), 1, "{window:?}");
    }
    let mut unique: Vec<_> = names.iter().filter(|name| !is_hot(name)).collect();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), 40, "none came twice");
    let all = |unique_percent| asked(Names::Mix { names: 10, unique_percent }, 100, 1);
    assert!(all(0.0).iter().all(is_hot) && !all(100.0).iter().any(is_hot));
}

#[test]
fn zipf_follows_its_law() {
    let share = |exponent: f64, number: usize| {
        let names = asked(Names::Zipf { names: 100, exponent }, 100_000, 7);
        let wanted = format!("h{number}.z. A");
        names.iter().filter(|name| **name == wanted).count() as f64 / 100_000.0
    };
    // The sum of 1/n over 100 is 5.187.
    for (number, expected) in [(0, 1.0 / 5.187), (1, 0.5 / 5.187), (9, 0.1 / 5.187)] {
        let share = share(1.0, number);
        assert!((share / expected - 1.0).abs() < 0.1, "{number}: {share}, {expected} expected");
    }
    assert!((share(0.0, 42) / 0.01 - 1.0).abs() < 0.15, "even");
}

#[test]
fn file_is_asked_line_by_line() {
    let path = std::env::temp_dir().join(format!("forebay-names-{}", std::process::id()));
    std::fs::write(&path, "; a comment\nexample.org A\n\n  Example.COM.  aaaa \n# another\n. NS\n")
        .expect("write");
    let names = asked(Names::File { path: path.clone() }, 4, 1);
    assert_eq!(names, ["example.org. A", "Example.COM. AAAA", " NS", "example.org. A"]);
    for (text, line, reason) in [
        ("example.org A\nexample.org\n", 2, "has no type"),
        ("example.org BOGUS\n", 1, "BOGUS"),
        ("a..b A\n", 1, "label is empty"),
        ("example.org A B\n", 1, "too much"),
        ("; nothing\n", 0, "no queries"),
    ] {
        std::fs::write(&path, text).expect("write");
        let load = DnsLoad {
            names: Names::File { path: path.clone() },
            ..DnsLoad::new("127.0.0.1:53".parse().expect("address"))
        };
        let error = run(&load, |_| ControlFlow::Continue(())).expect_err(text).to_string();
        assert!(
            error.starts_with(&format!("{}:{line}: ", path.display())) && error.contains(reason),
            "{error}"
        );
    }
    std::fs::remove_file(&path).expect("remove");
    let load =
        DnsLoad { names: Names::File { path }, ..DnsLoad::new("127.0.0.1:53".parse().expect("address")) };
    let error = run(&load, |_| ControlFlow::Continue(())).expect_err("no file").to_string();
    assert!(error.contains("cannot be read"), "{error}");
}

#[test]
fn names_are_read_from_words() {
    assert_eq!("hot:7".parse(), Ok(Names::Hot { names: 7 }));
    assert_eq!("unique".parse(), Ok(Names::Unique));
    assert_eq!("mix:9:2.5".parse(), Ok(Names::Mix { names: 9, unique_percent: 2.5 }));
    assert_eq!("zipf:200000:0.9".parse(), Ok(Names::Zipf { names: 200_000, exponent: 0.9 }));
    assert_eq!("file:/x:y".parse(), Ok(Names::File { path: "/x:y".into() }));
    for wrong in ["", "hot", "hot:x", "zipf:5", "zipf:5:x", "mix:5", "file:", "unique:3", "cold:1"] {
        assert!(wrong.parse::<Names>().expect_err(wrong).contains("say hot:1000"));
    }
}

#[test]
fn zone_for_an_authoritative_server_has_the_same_addresses() {
    let mut zone = Vec::new();
    write_zone(&mut zone, "bench.test.", 3).expect("write");
    let zone = String::from_utf8(zone).expect("text");
    assert!(zone.starts_with("$ORIGIN bench.test.\n"));
    assert!(zone.ends_with(&format!("h2 A {}\n", crate::responder::expected_a("h2.bench.test"))));
}

#[test]
fn senseless_settings_are_refused_with_value_and_remedy() {
    let good = DnsLoad::new("127.0.0.1:53".parse().expect("address"));
    let wrong: [(DnsLoad, &str); 20] = [
        (DnsLoad { clients: 0, ..good.clone() }, "clients is 0: at least one"),
        (DnsLoad { in_flight: 15, ..good.clone() }, "in-flight is 15: give each of the 16 clients"),
        (
            DnsLoad { in_flight: 1 << 20, ..good.clone() },
            "in-flight is 1048576: one socket carries at most 32768",
        ),
        (DnsLoad { threads: 0, ..good.clone() }, "threads is 0: 1 to 16"),
        (DnsLoad { threads: 17, ..good.clone() }, "threads is 17: 1 to 16"),
        (DnsLoad { rate: Some(0.0), ..good.clone() }, "rate is 0: say how many"),
        (DnsLoad { rate: Some(f64::NAN), ..good.clone() }, "rate is NaN"),
        (DnsLoad { timeout: Duration::ZERO, ..good.clone() }, "timeout is 0 s"),
        (DnsLoad { duration: Some(Duration::ZERO), ..good.clone() }, "duration is 0 s"),
        (DnsLoad { queries: Some(0), ..good.clone() }, "queries is 0"),
        (DnsLoad { edns_size: Some(511), ..good.clone() }, "edns-size is 511: RFC 6891"),
        (DnsLoad { edns_size: None, dnssec_ok: true, ..good.clone() }, "dnssec-ok is true"),
        (
            DnsLoad { target: "127.0.0.1:0".parse().expect("address"), ..good.clone() },
            "target is 127.0.0.1:0",
        ),
        (DnsLoad { names: Names::Hot { names: 0 }, ..good.clone() }, "names is 0"),
        (
            DnsLoad { names: Names::Zipf { names: 1 << 30, exponent: 1.0 }, ..good.clone() },
            "names is 1073741824",
        ),
        (DnsLoad { names: Names::Zipf { names: 5, exponent: -1.0 }, ..good.clone() }, "zipf exponent is -1"),
        (
            DnsLoad { names: Names::Mix { names: 5, unique_percent: 101.0 }, ..good.clone() },
            "mix percent is 101",
        ),
        (DnsLoad { zone: "a..b".to_owned(), ..good.clone() }, "zone is \"a..b\""),
        (DnsLoad { zone: "abcdefg.".repeat(30), ..good.clone() }, "it leaves no room"),
        (DnsLoad { clients: 1 << 24, in_flight: 1 << 24, ..good.clone() }, "RLIMIT_NOFILE"),
    ];
    for (load, expected) in wrong {
        let error = run(&load, |_| ControlFlow::Continue(())).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let nobody = DnsLoad { server_pid: Some(1 << 22), ..good.clone() };
    let error = run(&nobody, |_| ControlFlow::Continue(())).expect_err("no process").to_string();
    assert!(error.contains("process 4194304"), "{error}");
    let nowhere = DnsLoad { pin: Some(1023), queries: Some(1), ..good };
    assert!(run(&nowhere, |_| ControlFlow::Continue(())).is_err());
}

#[test]
fn report_has_the_servers_cpu_time_and_reads_on_one_screen() {
    let responder = spawn(Script::default());
    let load =
        DnsLoad { server_pid: Some(std::process::id() as i32), pin: Some(0), ..load(&responder, 5000) };
    let report = report(&load);
    let server = report.server.expect("asked for");
    assert!(server.cpu_seconds >= report.cpu_seconds, "the process holds both here");
    let each = report.cpu_us_per_query.expect("answers");
    assert!((each * 5000.0 / 1e6 - report.cpu_seconds).abs() < 1e-6);
    let text = report.to_string();
    assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 100), "{text}");
    for word in ["answered    5000 of 5000", "NOERROR 5000", "p99.9", "server ", "generator "] {
        assert!(text.contains(word), "{text}");
    }
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["answered"], 5000);
    assert_eq!(json["transport"], "udp");
    assert_eq!(json["rcodes"]["NOERROR"], 5000);
    assert!(json["latency"]["p999_us"].as_f64().expect("number") > 0.0);
}

#[test]
fn busy_generator_says_so() {
    let mut outcome = Outcome::new();
    outcome.sent = 1000;
    outcome.answered = 1000;
    outcome.sent_late = 11;
    let open = DnsLoad { rate: Some(1.0), ..DnsLoad::new("127.0.0.1:53".parse().expect("address")) };
    let start = now();
    outcome.ended = start + Duration::from_secs(1);
    outcome.count_thread(Duration::ZERO, start);
    let report = DnsReport::new(&open, start, Outcome::merged(vec![outcome]), ServerTime::default());
    assert!(
        report.generator_limited && report.to_string().contains("1.1 % of queries left more than 1 ms"),
        "{report}"
    );

    // A server that is behind is not the generator's fault.
    let mut outcome = Outcome::new();
    (outcome.sent, outcome.held_back, outcome.sent_late) = (1000, 900, 10);
    let report = DnsReport::new(&open, start, Outcome::merged(vec![outcome]), ServerTime::default());
    assert!(!report.generator_limited && report.to_string().contains("held back   900"), "{report}");

    let mut outcome = Outcome::new();
    outcome.ended = start + Duration::from_secs(1);
    outcome.count_thread(Duration::from_secs(3600), start);
    let closed = DnsLoad { rate: None, ..open };
    let report = DnsReport::new(&closed, start, Outcome::merged(vec![outcome]), ServerTime::default());
    assert!(report.generator_limit.is_some_and(|limit| limit.contains("of a core")));
}

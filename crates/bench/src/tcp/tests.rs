//! The generator against the scripted backends.

use super::*;
use crate::backend::{Backend, Serve};

fn load(backend: &Backend, requests: u64) -> TcpLoad {
    TcpLoad {
        requests: Some(requests),
        duration: None,
        timeout: Duration::from_secs(10),
        ..TcpLoad::new(backend.addr())
    }
}

#[test]
fn each_pattern_opens_as_many_connections_as_it_says() {
    for (pattern, pool, opened) in
        [(Pattern::Connect, None, 600), (Pattern::Connect, Some(3), 3), (Pattern::Kept, None, 8)]
    {
        let backend = Backend::spawn(Serve::Echo);
        let report = run(&TcpLoad { pattern, pool, clients: 8, size: 300, ..load(&backend, 600) }).unwrap();
        let figures = &report.figures;
        assert_eq!((figures.answered, figures.failed), (600, 0), "{report}");
        assert_eq!((figures.bytes_sent, figures.bytes_received), (180_000, 180_000));
        assert_eq!(figures.connections_opened, backend.stats().connections, "{report}");
        assert!(figures.connections_opened <= opened, "{report}");
        let reuse = figures.reuse_rate.unwrap();
        assert!((reuse - (600 - figures.connections_opened) as f64 / 600.0).abs() < 1e-9, "{report}");
        let latency = figures.latency.unwrap();
        assert!(0.0 < latency.min_us && latency.p50_us <= latency.p99_us && latency.p99_us <= latency.max_us);
    }
}

#[test]
fn clients_and_pools_are_spread_over_threads() {
    let backend = Backend::spawn(Serve::Echo);
    let spread =
        TcpLoad { pattern: Pattern::Connect, pool: Some(5), clients: 7, threads: 3, ..load(&backend, 501) };
    let report = run(&spread).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (501, 0), "{report}");
    assert!(backend.stats().connections <= 5, "{report}");
}

#[test]
fn an_open_loop_keeps_its_rate_and_counts_from_when_a_request_was_due() {
    let backend = Backend::spawn(Serve::Echo);
    let steady = TcpLoad { rate: Some(1000.0), clients: 16, ..load(&backend, 300) };
    let report = run(&steady).unwrap();
    assert_eq!((report.figures.answered, report.figures.unsent), (300, 0), "{report}");
    assert!(report.figures.elapsed_seconds >= 0.29, "{report}");
    // One client of a server that takes 20 ms for the first byte of each connection, asked 200 times a second: the
    // last of ten requests waits for the nine before it.
    let far = Backend::builder().first_byte_after(Duration::from_millis(20)).spawn().unwrap();
    let behind = TcpLoad { pattern: Pattern::Connect, rate: Some(200.0), ..load(&far, 10) };
    let latency = run(&behind).unwrap().figures.latency.unwrap();
    assert!(latency.max_us > 100_000.0, "{latency:?}");
}

#[test]
fn bulk_comes_back_whole() {
    let backend = Backend::spawn(Serve::Echo);
    let bulk = TcpLoad { pattern: Pattern::Bulk, clients: 2, ..TcpLoad::new(backend.addr()) };
    let bulk = TcpLoad { duration: Some(Duration::from_millis(300)), ..bulk };
    let report = run(&bulk).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (2, 0), "{report}");
    assert_eq!(report.figures.bytes_sent, report.figures.bytes_received);
    assert!(report.figures.bytes_sent > 1_000_000, "{report}");
    assert!(report.figures.gigabytes_per_second() > 0.0);
}

#[test]
fn what_fails_is_counted_by_its_kind() {
    let nobody = Backend::spawn(Serve::Echo);
    let refused = load(&nobody, 5);
    drop(nobody);
    let errors = |load: &TcpLoad| run(load).unwrap().figures.errors;
    let one = |kind: &str| std::collections::BTreeMap::from([(kind.to_owned(), 5)]);
    assert_eq!(errors(&refused), one("refused"));
    let reset = Backend::spawn(Serve::Reset);
    assert_eq!(errors(&load(&reset, 5)), one("reset"));
    let silent = Backend::spawn(Serve::Hang);
    let impatient = TcpLoad { timeout: Duration::from_millis(20), ..load(&silent, 5) };
    assert_eq!(errors(&impatient), one("timeout"));
    let liar = Backend::spawn(Serve::Greet(vec![7; 64]));
    let report = run(&TcpLoad { requests: Some(1), ..load(&liar, 1) }).unwrap();
    assert_eq!(report.figures.errors.keys().collect::<Vec<_>>(), ["wrong"], "{report}");
}

#[test]
fn claims_are_measured_on_both_sides() {
    let backend = Backend::spawn(Serve::Echo);
    let load =
        TcpLoad { clients: 20, duration: Some(Duration::from_millis(150)), ..TcpLoad::new(backend.addr()) };
    let report = claims(&load).unwrap();
    assert_eq!(report.claims.len(), 3);
    for claim in &report.claims {
        assert!(claim.pool_off.done > 0 && claim.pool_on.done > 0, "{report}");
        assert_eq!((claim.pool_off.failed, claim.pool_on.failed), (0, 0), "{report}");
        assert_eq!(claim.pool_off.reuse_rate, Some(0.0), "{report}");
        assert!(claim.pool_on.connections_opened <= 10, "{report}");
    }
    assert!(report.claims[0].ratio > 3.0, "a hit is cheaper than a dial: {report}");
}

#[test]
fn a_load_that_cannot_be_names_its_setting() {
    let good = TcpLoad::new("127.0.0.1:9".parse().unwrap());
    let cases = [
        ("clients", TcpLoad { clients: 0, ..good.clone() }),
        ("threads", TcpLoad { threads: 2, ..good.clone() }),
        ("rate", TcpLoad { rate: Some(0.0), ..good.clone() }),
        ("duration", TcpLoad { duration: Some(Duration::ZERO), ..good.clone() }),
        ("duration", TcpLoad { duration: None, ..good.clone() }),
        ("requests", TcpLoad { requests: Some(0), ..good.clone() }),
        ("size", TcpLoad { size: 0, ..good.clone() }),
        ("timeout", TcpLoad { timeout: Duration::ZERO, ..good.clone() }),
        ("pool", TcpLoad { pool: Some(1), ..good.clone() }),
        ("pool", TcpLoad { pool: Some(0), pattern: Pattern::Connect, ..good.clone() }),
        ("pattern", TcpLoad { pattern: Pattern::Bulk, rate: Some(1.0), ..good.clone() }),
        ("ADDR", TcpLoad { target: "127.0.0.1:0".parse().unwrap(), ..good.clone() }),
    ];
    for (name, load) in cases {
        match run(&load) {
            Err(BenchError::Setting { setting, .. }) => assert_eq!(setting, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

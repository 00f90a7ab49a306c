//! Every key of `[dns.cache]` beside the plain ones, changed, and the difference seen on a running server.

mod support;

use std::time::{Duration, Instant};

use forebay::units::{Size, Span};
use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{CacheSettings, Settings, parse_name};
use support::{Running, Udp, address, rcode, run, settings, ttl};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn ms(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

fn secs(n: u64) -> Span {
    Span(Duration::from_secs(n))
}

/// A server with these settings of its cache, that gives an upstream up quickly.
fn with(upstream: &Responder, cache: CacheSettings) -> Running {
    run(&quick(upstream, cache))
}

fn quick(upstream: &Responder, cache: CacheSettings) -> Settings {
    Settings { attempt_timeout: ms(200), query_timeout: ms(600), cache, ..settings(&[upstream]) }
}

fn silent() -> Script {
    Script { drop: 1.0, ..Script::default() }
}

/// Asks, and says how long the reply took.
fn timed(client: &Udp, name: &str) -> (Vec<u8>, Duration) {
    let began = Instant::now();
    let reply = client.ask(name);
    (reply, began.elapsed())
}

/// Waits until what has one second to live is over.
fn outlive() {
    std::thread::sleep(Duration::from_millis(1_100));
}

#[test]
fn rrsets_answer_for_names_that_came_with_others() {
    let upstream = upstream(Script { cnames: 2, ..Script::default() });
    for rrsets in [true, false] {
        let server = with(&upstream, CacheSettings { rrsets, ..CacheSettings::default() });
        let client = Udp::to(server.address);
        let before = upstream.stats().udp_queries;
        assert_eq!(rcode(&client.ask("www.test")), 0);
        // The first alias leads to the second: joined. The second has the address: a set.
        for name in ["00.www.test", "01.www.test"] {
            assert_eq!(rcode(&client.ask(name)), 0);
        }
        let asked = upstream.stats().udp_queries - before;
        let stats = server.stats();
        assert_eq!((asked, stats.counters.known), if rrsets { (1, 2) } else { (3, 0) }, "{rrsets}");
        assert_eq!(stats.cache.sets > 0, rrsets);
    }
}

#[test]
fn a_stale_answer_comes_after_stale_answer_after_with_stale_ttl() {
    let upstream = upstream(Script { ttl: 1, ..Script::default() });
    let base = CacheSettings { stale_answer_after: ms(250), stale_ttl: secs(9), ..CacheSettings::default() };
    let off = CacheSettings { serve_stale: false, ..base.clone() };
    let at_once = CacheSettings { stale_answer_after: ms(0), ..base.clone() };
    let servers = [base, at_once, off].map(|cache| with(&upstream, cache));
    let clients = servers.each_ref().map(|server| Udp::to(server.address));
    for client in &clients {
        assert_eq!(address(&client.ask("a.test")), expected_a("a.test"));
    }
    outlive();
    upstream.set_script(silent());
    let (reply, took) = timed(&clients[0], "a.test");
    assert_eq!((address(&reply), ttl(&reply)), (expected_a("a.test"), 9));
    assert!(took >= Duration::from_millis(240) && took < Duration::from_millis(590), "{took:?}");
    let (reply, took) = timed(&clients[1], "a.test");
    assert_eq!(ttl(&reply), 9);
    assert!(took < Duration::from_millis(240), "{took:?}");
    assert_eq!(rcode(&clients[2].ask("a.test")), 2);
    assert_eq!(servers[0].stats().counters.stale, 1);
}

#[test]
fn stale_max_is_how_old_a_stale_answer_may_be() {
    let upstream = upstream(Script { ttl: 1, ..Script::default() });
    let servers = [secs(1), secs(100)].map(|stale_max| {
        with(&upstream, CacheSettings { stale_max, stale_answer_after: ms(50), ..CacheSettings::default() })
    });
    let clients = servers.each_ref().map(|server| Udp::to(server.address));
    clients.iter().for_each(|client| drop(client.ask("a.test")));
    outlive();
    outlive();
    upstream.set_script(silent());
    assert_eq!(clients.each_ref().map(|client| rcode(&client.ask("a.test"))), [2, 0]);
}

#[test]
fn stale_recheck_is_how_long_a_name_is_left_alone_after_a_failure() {
    let upstream = upstream(Script { ttl: 1, ..Script::default() });
    for (stale_recheck, is_asked_again) in [(secs(60), false), (ms(0), true)] {
        upstream.set_script(Script { ttl: 1, ..Script::default() });
        let cache = CacheSettings { stale_recheck, stale_answer_after: ms(100), ..CacheSettings::default() };
        // Failures are remembered beside it, also of names that were never known.
        let server = run(&Settings { failure_ttl: ms(0), ..quick(&upstream, cache) });
        let client = Udp::to(server.address);
        client.ask("a.test");
        outlive();
        upstream.set_script(silent());
        client.ask("a.test");
        server.until("the refresh has failed", |stats| stats.counters.refresh_failures == 1);
        let before = upstream.stats().udp_queries;
        assert_eq!(rcode(&client.ask("a.test")), 0);
        assert_eq!(upstream.stats().udp_queries > before, is_asked_again);
    }
}

#[test]
fn what_is_asked_again_near_its_end_is_fetched_ahead() {
    let upstream = upstream(Script { ttl: 3, ..Script::default() });
    let base = CacheSettings { prefetch_below: 90, ..CacheSettings::default() };
    let cases = [
        (base.clone(), 1),
        (CacheSettings { prefetch: false, ..base.clone() }, 0),
        (CacheSettings { prefetch_below: 10, ..base.clone() }, 0),
        (CacheSettings { prefetch_hits: 3, ..base.clone() }, 0),
    ];
    let servers = cases.map(|(cache, wanted)| (with(&upstream, cache), wanted));
    let clients = servers.each_ref().map(|(server, _)| Udp::to(server.address));
    clients.iter().for_each(|client| drop(client.ask("a.test")));
    outlive();
    for (client, (server, wanted)) in clients.iter().zip(&servers) {
        client.ask("a.test");
        client.ask("a.test");
        assert_eq!(server.stats().counters.prefetches, *wanted);
    }
    servers[0].0.until("it has come", |stats| stats.cache.inserts == 2);
    assert_eq!(ttl(&clients[0].ask("a.test")), 3);
    assert_eq!(servers[0].0.stats().counters.misses, 1);
}

#[test]
fn prefetch_max_is_how_many_are_fetched_ahead_at_once() {
    for prefetch_max in [1, 8] {
        let upstream = upstream(Script { ttl: 3, ..Script::default() });
        let base = CacheSettings { prefetch_below: 90, prefetch_hits: 1, ..CacheSettings::default() };
        let server = with(&upstream, CacheSettings { prefetch_max, ..base });
        let client = Udp::to(server.address);
        let names: Vec<String> = (0..4).map(|n| format!("n{n}.test")).collect();
        names.iter().for_each(|name| drop(client.ask(name)));
        outlive();
        upstream.set_script(silent());
        names.iter().for_each(|name| drop(client.ask(name)));
        assert_eq!(server.stats().counters.prefetches, u64::from(prefetch_max.min(4)));
    }
}

#[test]
fn a_cache_with_a_path_outlives_its_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("cache");
    let upstream = upstream(Script { ttl: 300, ..Script::default() });
    let cache = CacheSettings { path: file.display().to_string(), ..CacheSettings::default() };
    let names: Vec<String> = (0..500).map(|n| format!("n{n}.test")).collect();
    let mut server = run(&Settings { workers: 3, ..quick(&upstream, cache.clone()) });
    // Each socket goes to some worker.
    for half in names.chunks(50) {
        let client = Udp::to(server.address);
        half.iter().for_each(|name| drop(client.ask(name)));
    }
    assert!(!file.exists());
    server.drain(Duration::from_secs(1));
    assert!(file.is_file() && !folder.path().join("cache.new").exists());

    upstream.set_script(silent());
    let mut server = run(&Settings { workers: 2, ..quick(&upstream, cache.clone()) });
    assert_eq!(server.stats().cache.entries, 1_000, "each worker has them all");
    let client = Udp::to(server.address);
    for name in &names {
        let reply = client.ask(name);
        assert_eq!(address(&reply), expected_a(name));
        assert!((250..=300).contains(&ttl(&reply)));
    }
    server.drain(Duration::from_secs(1));

    // Whatever else is in its place is no reason not to serve.
    let saved = std::fs::read(&file).expect("the file");
    for broken in [&saved[..saved.len() / 2], b"something else", b""] {
        std::fs::write(&file, broken).expect("written");
        let mut server = with(&upstream, cache.clone());
        assert_eq!(server.stats().cache.entries, 0);
        server.drain(Duration::from_secs(1));
        assert_ne!(std::fs::read(&file).expect("a new file"), broken);
    }
    // One of the right form, but larger than this cache could ever fill.
    std::fs::write(&file, &saved).expect("written");
    let small = CacheSettings { size: Size { bytes: 16 << 10 }, ..cache.clone() };
    assert!(saved.len() > 16 << 10 && saved.len() < 64 << 10, "{}", saved.len());
    let server = with(&upstream, small);
    let stats = server.stats();
    assert!(stats.cache.entries > 50 && stats.cache.bytes <= 16 << 10, "{stats:?}");
    drop(server);
    // A place that cannot be written to, and one that is no file.
    for path in [folder.path().join("none/cache"), folder.path().to_owned()] {
        let mut server = with(&upstream, CacheSettings { path: path.display().to_string(), ..cache.clone() });
        server.drain(Duration::from_secs(1));
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
}

#[test]
fn a_flush_forgets_in_every_worker() {
    let upstream = upstream(Script { ttl: 300, ..Script::default() });
    let server = run(&Settings { workers: 2, ..settings(&[&upstream]) });
    let ask_all = || {
        for _ in 0..16 {
            let client = Udp::to(server.address);
            for name in ["www.gone.test", "gone.test", "stays.test"] {
                client.ask(name);
            }
        }
    };
    ask_all();
    let entries = server.stats().cache.entries;
    let flush = |name: &str, subtree| {
        let handle = server.server.as_ref().expect("it runs").handle();
        let name = parse_name(name).expect("a name");
        server.runtime.block_on(async move { handle.flush(&name, subtree).await })
    };
    let (one, tree) = (flush("Gone.test", false), flush("gone.test", true));
    assert_eq!((one.workers, tree.workers), (2, 2));
    assert!(one.entries >= 1 && tree.entries == one.entries, "{one:?} {tree:?}");
    assert_eq!(server.stats().cache.entries, entries - one.entries - tree.entries);
    let before = upstream.stats().udp_queries;
    ask_all();
    assert_eq!(upstream.stats().udp_queries - before, one.entries + tree.entries);
    assert_eq!(flush(".", true).entries, entries);
    assert_eq!(server.stats().counters.flushed, one.entries + tree.entries + entries);
}

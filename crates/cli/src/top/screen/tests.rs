//! Frames, looked at: what is on them at 80 x 24 and wide.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::model::tests::{at, broken, look, pool};
use super::super::model::{Key, Sort};
use super::*;

const METRICS: &str = "forebay_build_info{version=\"0.1.0\"} 1\nprocess_resident_memory_bytes 36700160\n\
                       process_open_fds 120\nprocess_max_fds 1024\nforebay_dns_workers 2\n";

/// Four pools of two upstreams, one of them broken, after half an hour.
fn watched() -> Watched {
    let metrics = |queries: u64, cpu: f64| {
        format!(
            "{METRICS}forebay_dns_queries_total {queries}\nforebay_dns_hits_total {}\nprocess_cpu_seconds_total {cpu}\n",
            queries * 7 / 8
        )
    };
    let pools = |acquires: u64| {
        let mut broken = broken("tls://192.0.2.54:853");
        broken.failures = acquires / 1000;
        vec![
            pool("default", "udp://192.0.2.53:53", acquires * 10),
            broken,
            pool("corp.example", "tcp://10.0.0.53:53", acquires),
            pool("web", "http://[2001:db8::7]:8080", acquires / 50),
        ]
    };
    let mut watched = Watched::default();
    for second in 0..40 {
        let acquires = 1000 * second + (second % 7) * 300;
        let look =
            look(1800.0 + second as f64, pools(acquires), &metrics(acquires * 12, second as f64 / 10.0));
        watched.take(at(second), "12:34:56 UTC", Ok(look));
    }
    watched
}

fn drawn(watched: &Watched, view: &View, (width, height): (u16, u16), now: u64) -> String {
    let about = About { target: "http://127.0.0.1:9053".to_owned(), interval: Duration::from_secs(1) };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let frame = terminal.draw(|frame| draw(frame, &about, watched, view, at(now))).unwrap();
    let text = text(frame.buffer);
    if std::env::var_os("FOREBAY_SHOW_FRAMES").is_some() {
        println!("{:-^1$}\n{text}", "", usize::from(width));
    }
    text
}

fn live() -> View {
    View { is_live: true, ..View::default() }
}

const SMALL: (u16, u16) = (80, 24);

#[track_caller]
fn assert_has(screen: &str, all: &[&str]) {
    for text in all {
        assert!(screen.contains(text), "{text} is not on\n{screen}");
    }
}

#[test]
fn a_small_terminal_shows_every_pool_and_the_chosen_one_in_short() {
    let screen = drawn(&watched(), &live(), SMALL, 39);
    assert_has(
        &screen,
        &[
            "forebay 0.1.0 at http://127.0.0.1:9053, up 30 min 39 s",
            "every 1s",
            "4 (1 open): 32 ready, 12 busy, 4 connecting, 0 draining; 7 waiters",
            "dns 15,600/s, 87.5 % hits",
            "35 MiB, 120 of 1024 descriptors",
            "10.0 % of a core",
            "acquires/s",
            "udp://192.0.2.53:53",
            "tcp://10.0.0.53:53",
            "http://[2001:db8::7]:8080",
            "12/64",
            "wait p50 120 µs p99 2.5 ms; dial p50 480 µs p99 1.2 ms",
            "order: name",
            "? help",
        ],
    );
    let broken = screen.lines().find(|line| line.contains("tls://192.0.2.54:853")).unwrap();
    assert!(broken.starts_with('x'), "{broken}");
    assert_eq!(screen.lines().count(), 24, "{screen}");
}

#[test]
fn a_wide_terminal_shows_breaker_and_last_error_in_the_table() {
    let view = View { sort: Sort::Trouble, ..live() };
    let screen = drawn(&watched(), &view, (180, 50), 39);
    let row = screen.lines().find(|line| line.starts_with('x')).unwrap();
    assert_has(row, &["open", "refused, the upstream's"]);
    assert_has(&screen, &["dial p99", "last error", "fails/s", "dials/s", "wait p50", "order: trouble"]);
    let first = screen.lines().skip_while(|line| !line.contains("endpoint")).nth(1).unwrap();
    assert!(first.starts_with('x'), "what is broken stands first: {first}");
}

#[test]
fn all_about_a_pool_is_on_its_page() {
    let key = Key { upstream: "default".to_owned(), endpoint: "tls://192.0.2.54:853".to_owned() };
    let view = View { page: Page::Detail, chosen: Some(key), ..live() };
    for size in [SMALL, (160, 40)] {
        let screen = drawn(&watched(), &view, size, 39);
        assert_has(
            &screen,
            &[
                "default tls://192.0.2.54:853",
                "breaker open, opened 2 times; active checks: healthy",
                "the last: refused, the upstream's",
                "0 to 64 kept idle, 16 dials at once",
                "1 connecting, 8 ready, 3 busy, 0 draining; 8 idle",
                "3 in use of 64 × 1; 7 waiters of 1024",
                "p50 120 µs, p99 2.5 ms, most 9.0 ms of 5",
                "idle_timeout 30s, age_max none, uses_max none",
                "4 idle",
                "acquires/s",
            ],
        );
    }
}

#[test]
fn keys_columns_and_signs_are_explained() {
    let screen = drawn(&watched(), &View { page: Page::Help, ..live() }, SMALL, 39);
    assert_has(
        &screen,
        &["choose a pool", "wait p99", "breaker half-open", "these move no breaker", "? or Esc back"],
    );
    for column in COLUMNS.iter().filter(|column| column.rank == 0 && !column.is_text) {
        assert!(HELP.contains(column.head), "{} is not explained", column.head);
    }
}

#[test]
fn who_is_away_is_told_with_since_when_and_why() {
    let mut watched = watched();
    watched.take(at(45), "12:35:02 UTC", Err("cannot be reached: Connection refused".to_owned()));
    let screen = drawn(&watched, &live(), SMALL, 59);
    assert_has(
        &screen,
        &[
            "AWAY since 12:35:02 UTC (14 s)",
            "it cannot be reached: Connection refused",
            "udp://192.0.2.53:53",
        ],
    );
    watched.take(at(60), "", Ok(look(1.0, vec![pool("default", "a", 1)], METRICS)));
    let screen = drawn(&watched, &live(), SMALL, 65);
    assert_has(&screen, &["restarted 5 s ago: its counts began anew", "up 1 s"]);
    assert!(!screen.contains("AWAY"), "{screen}");
    assert!(!drawn(&watched, &live(), SMALL, 200).contains("restarted"), "that is long ago");
}

#[test]
fn one_frame_as_text_has_no_keys_and_no_choice() {
    let screen = drawn(&watched(), &View::default(), SMALL, 39);
    assert!(!screen.contains("q end"), "{screen}");
    assert_has(&screen, &["over 1s", "web", "15,600/s"]);
}

#[test]
fn a_forebay_without_pools_says_so() {
    let mut watched = Watched::default();
    watched.take(
        at(0),
        "",
        Ok(look(3.0, Vec::new(), "forebay_grpc_calls_total 5\nforebay_grpc_in_flight 2\n")),
    );
    watched.take(
        at(1),
        "",
        Ok(look(4.0, Vec::new(), "forebay_grpc_calls_total 905\nforebay_grpc_in_flight 2\n")),
    );
    let screen = drawn(&watched, &live(), SMALL, 1);
    assert_has(&screen, &["It has no pools", "grpc 900 calls/s, 2 in flight"]);
}

#[test]
fn a_machine_that_was_short_of_something_says_so() {
    let mut watched = Watched::default();
    let mut short = pool("default", "a", 1);
    short.local_exhaustions = 1234;
    watched.take(at(0), "", Ok(look(3.0, vec![short], METRICS)));
    let screen = drawn(&watched, &live(), SMALL, 1);
    assert_has(&screen, &["this machine had no port, descriptor or memory: 1,234 times"]);
}

#[test]
fn many_pools_are_scrolled_through() {
    let mut watched = Watched::default();
    let pools = (0..300).map(|n| pool("default", &format!("udp://192.0.2.1:{}", 1000 + n), 1)).collect();
    watched.take(at(0), "", Ok(look(3.0, pools, METRICS)));
    let key = Key { upstream: "default".to_owned(), endpoint: "udp://192.0.2.1:1299".to_owned() };
    let screen = drawn(&watched, &View { chosen: Some(key), ..live() }, SMALL, 1);
    assert_has(&screen, &["udp://192.0.2.1:1299", "udp://192.0.2.1:1298"]);
    assert!(!screen.contains("udp://192.0.2.1:1000"), "{screen}");
}

#[test]
fn a_tiny_terminal_is_survived() {
    let mut away = watched();
    away.take(at(45), "", Err("gone".to_owned()));
    for page in [Page::List, Page::Detail, Page::Help] {
        for size in [(1, 1), (10, 3), (20, 10), (40, 12), (500, 5)] {
            drawn(&away, &View { page, ..live() }, size, 46);
        }
    }
}

#[test]
fn ages_have_two_units() {
    let told = [5, 65, 3700, 90_000].map(|seconds| age(Duration::from_secs(seconds)));
    assert_eq!(told, ["5 s", "1 min 5 s", "1 h 1 min", "1 d 1 h"]);
    let rates = [0.0, 0.26, 42.0, 1234.4, 123_456.0, 2_500_000.0].map(|rate| short(Some(rate)));
    assert_eq!(rates, ["0", "0.3", "42.0", "1,234", "123k", "2.50M"]);
    assert_eq!([Some(0.9996), Some(0.999), None].map(share), ["100 %", "99.9 %", "–"]);
}

#[test]
fn more_columns_never_take_the_endpoints_room() {
    let mut before = 0;
    for width in 80..=260 {
        let (columns, _) = columns(width);
        let others: u16 = columns.iter().map(|column| column.width + 1).sum::<u16>() - 1;
        assert!(width - others + 1 >= ENDPOINT_WIDTH, "at {width} an endpoint has {}", width - others);
        assert!(columns.len() >= before, "at {width}");
        before = columns.len();
    }
    assert_eq!(before, COLUMNS.len());
}

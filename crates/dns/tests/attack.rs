//! Somebody guesses answers at full speed, from the upstream's own address and port, for names and ports that he knows.
//!
//! `FOREBAY_ATTACK_SECONDS=10` makes it last so long; without, it is two seconds.

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay::units::Size;
use forebay_bench::responder::{Late, Responder, Script, expected_a};
use forebay_dns::{CacheSettings, Settings};
use support::{Udp, address, id, query, run, settings};

fn seconds() -> u64 {
    std::env::var("FOREBAY_ATTACK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn uncached(upstream: &Responder) -> Settings {
    Settings {
        cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
        ..settings(&[upstream])
    }
}

/// Keeps so many questions in the air until the time is over. Every reply must be right. Returns how many there were.
fn ask_for(client: &Udp, prefix: &str, span: Duration, in_flight: u16) -> u64 {
    let end = Instant::now() + span;
    let mut round = 0u64;
    while Instant::now() < end {
        for n in 0..in_flight {
            client.send(&query(n, &format!("{prefix}{round}n{n}.test"), 1, None));
        }
        for _ in 0..in_flight {
            let reply = client.recv();
            let name = format!("{prefix}{round}n{}.test", id(&reply));
            assert_eq!(address(&reply), expected_a(&name), "a guess was believed: {name}");
        }
        round += 1;
    }
    round * u64::from(in_flight)
}

#[test]
fn no_guess_is_believed_and_the_upstream_is_named_in_a_warning() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    let upstream = Responder::builder().delay(Duration::from_millis(2)).spawn().expect("a free port");
    let server = run(&uncached(&upstream));
    let client = Udp::to(server.address);
    ask_for(&client, "calm", Duration::from_millis(100), 16);
    let calm = server.stats();
    assert_eq!((calm.counters.unexpected, calm.counters.bursts), (0, 0));
    let bits = calm.pools[0].entropy_bits.expect("over UDP");
    assert!(bits > 18.9 && bits <= 19.0, "eight sockets: {bits}");

    let attack = upstream.attack().expect("a thread");
    let span = Duration::from_secs(seconds());
    let asked = ask_for(&client, "attacked", span, 16);
    let sent = attack.guesses();
    drop(attack);
    let counters = server.stats().counters;
    println!(
        "{span:?}: {sent} guesses sent, {} came to an open socket, {asked} questions, all answered rightly; {} bursts, {} \
         sockets replaced, {} answers asked for again over TCP, {} queries over TCP",
        counters.unexpected + counters.late,
        counters.bursts,
        counters.rotated,
        counters.distrusted,
        upstream.stats().tcp_queries,
    );
    assert!(asked > 100 && counters.unexpected > 0 && counters.bursts > 0, "{counters:?}");
    assert!(counters.rotated >= 8, "every socket is replaced: {counters:?}");
    assert!(server.stats().pools[0].snapshot.counters.dials_succeeded >= 16, "by others with other ports");
    let log = String::from_utf8_lossy(&lines.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("guessed answers")).collect();
    assert!(warnings.iter().all(|line| line.contains("WARN")), "{log}");
    assert!(warnings.iter().all(|line| line.contains(&upstream.addr().to_string())), "{log}");
    assert!((1..=1 + seconds() as usize / 5).contains(&warnings.len()), "once a burst: {log}");
}

#[test]
fn answers_that_are_late_doubled_or_out_of_order_reach_nobody_else() {
    let upstream = Responder::builder()
        .script(Script {
            jitter: Duration::from_millis(5),
            late: Some(Late { share: 0.2, by: Duration::from_millis(120) }),
            duplicate: true,
            ..Script::default()
        })
        .spawn()
        .expect("a free port");
    let base = uncached(&upstream);
    let server = run(&Settings { attempt_timeout: forebay::units::Span(Duration::from_millis(50)), ..base });
    let client = Udp::to(server.address);
    let asked = ask_for(&client, "late", Duration::from_secs(seconds()), 64);
    let counters = server.stats().counters;
    println!(
        "{asked} questions, {} answers late or doubled, {} unexpected",
        counters.late, counters.unexpected
    );
    assert!(counters.late > asked, "each came twice: {counters:?}");
    assert_eq!(counters.bursts, 0, "late answers are no guesses: {counters:?}");
}

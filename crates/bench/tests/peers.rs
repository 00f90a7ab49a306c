//! The generators beside other people's: at the same pace, dnsperf and h2load must see what ours see.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use forebay_bench::backend::{Backend, Serve};
use forebay_bench::dns::{self, DnsLoad, Names};
use forebay_bench::http::{self, HttpLoad};
use forebay_bench::responder::Responder;

/// Requests a second that all are told to send: so few that any machine keeps up, since this is no race.
const RATE: u32 = 2000;

/// How long.
const SECONDS: u32 = 2;

/// Whether a program is there. Says why a test is skipped if not; in CI that is a failure.
fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let required = std::env::var_os("FOREBAY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(found || !required, "FOREBAY_REQUIRE_PEERS=1, but {program} is not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn output(command: &mut Command) -> String {
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads a word as a number.
#[track_caller]
fn number(word: Option<&str>, text: &str) -> f64 {
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no rate in {text}"))
}

#[track_caller]
fn assert_within_a_tenth(what: &str, ours: f64, theirs: f64) {
    assert!((ours / theirs - 1.0).abs() < 0.1, "{what}: ours {ours:.1}/s, theirs {theirs:.1}/s");
}

#[test]
fn dnsperf_sees_the_rate_that_we_see() {
    if !has("dnsperf") {
        return;
    }
    let server = Responder::builder().spawn().unwrap();
    let load = DnsLoad {
        rate: Some(RATE.into()),
        duration: Some(Duration::from_secs(SECONDS.into())),
        names: Names::Hot { names: 1000 },
        ..DnsLoad::new(server.addr())
    };
    let ours = dns::run(&load, |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((ours.lost, ours.partial.as_ref()), (0, None), "{ours}");
    let mut names = String::new();
    for n in 0..1000 {
        writeln!(names, "n{n}.bench.test A").unwrap();
    }
    let file = own_file();
    std::fs::write(&file, names).unwrap();
    let (port, rate, seconds) = (server.addr().port().to_string(), RATE.to_string(), SECONDS.to_string());
    let text = output(
        Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &port, "-c", "16", "-q", "64", "-Q", &rate, "-l", &seconds, "-d"])
            .arg(&file),
    );
    std::fs::remove_file(&file).unwrap();
    let theirs = text.split("Queries per second:").nth(1).and_then(|rest| rest.split_whitespace().next());
    assert_within_a_tenth("dnsperf", ours.qps, number(theirs, &text));
    assert_within_a_tenth("what was asked for", ours.qps, RATE.into());
}

/// A file of this test's own.
fn own_file() -> PathBuf {
    std::env::temp_dir().join(format!("forebay-bench-peers-{}", std::process::id()))
}

#[test]
fn h2load_sees_the_rate_that_we_see_by_both_protocols() {
    if !has("h2load") {
        return;
    }
    for (serve, http2) in [(Serve::Http, false), (Serve::Http2, true)] {
        let server = Backend::spawn(serve);
        let url = format!("http://{}/size/100", server.addr());
        let load = HttpLoad {
            http2,
            clients: 16,
            pool: Some(16),
            rate: Some(RATE.into()),
            duration: Some(Duration::from_secs(SECONDS.into())),
            ..HttpLoad::new(url.parse().unwrap())
        };
        let ours = http::run(&load).unwrap();
        assert_eq!((ours.figures.failed, ours.figures.partial.as_ref()), (0, None), "{ours}");
        let protocol: &[&str] = if http2 { &[] } else { &["--h1"] };
        let (each, seconds) = ((RATE / 4).to_string(), SECONDS.to_string());
        let text = output(
            Command::new("h2load").args(protocol).args(["-c", "4", "--rps", &each, "-D", &seconds, &url]),
        );
        let theirs = text.split("req/s,").next().and_then(|before| before.split_whitespace().last());
        assert_within_a_tenth("h2load", ours.figures.rate, number(theirs, &text));
        assert_within_a_tenth("what was asked for", ours.figures.rate, RATE.into());
    }
}

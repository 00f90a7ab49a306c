//! `forebay bench compare` as its users meet it.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use forebay_bench::backend::{Backend, Serve};
use forebay_bench::responder::{Responder, Script};
use serde_json::{Value, json};
use tempfile::TempDir;

const FOREBAY: &str = env!("CARGO_BIN_EXE_forebay");

fn forebay(args: &[&str]) -> Output {
    Command::new(FOREBAY).args(args).stdin(Stdio::null()).output().expect("the command runs")
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs what must succeed, and returns what it says as JSON.
#[track_caller]
fn compared(args: &[&str]) -> Value {
    let output = forebay(&[&["bench", "compare", "--json"], args].concat());
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn verdict<'a>(of: &'a Value, figure: &str) -> &'a str {
    let row = of["figures"].as_array().unwrap().iter().find(|row| row["figure"] == figure);
    row.unwrap_or_else(|| panic!("no {figure} in {of}"))["verdict"].as_str().unwrap()
}

/// A load that any machine carries, as a command: so many requests a second for a moment.
fn command(target: &str) -> String {
    format!(
        "'{FOREBAY}' bench dns --target {target} --rate 200 --duration 150ms --clients 4 --in-flight 64 --json"
    )
}

#[test]
fn a_slow_server_is_slower_and_the_same_server_is_not() {
    let fast = Responder::builder().spawn().unwrap();
    let slow = Script { delay: std::time::Duration::from_millis(20), ..Script::default() };
    let slow = Responder::builder().script(slow).spawn().unwrap();
    let (fast, slow) = (command(&fast.addr().to_string()), command(&slow.addr().to_string()));
    let found = compared(&["--run", &fast, "--run", &slow, "--rounds", "5"]);
    assert_eq!((verdict(&found, "p50"), verdict(&found, "mean")), ("slower", "slower"), "{found}");
    assert_eq!(verdict(&found, "rate"), "paced", "both sent what they were told to: {found}");
    assert_eq!((&found["a"]["reports"], &found["kind"]), (&json!(5), &json!("dns")));
    let p50 = found["figures"].as_array().unwrap().iter().find(|row| row["figure"] == "p50").unwrap();
    assert!(p50["interval"]["low"].as_f64().unwrap() > 1.0 && p50["a_values"].as_array().unwrap().len() == 5);
    assert_eq!(found["partial"], Value::Null);
}

#[test]
fn reports_of_files_are_compared_and_text_says_the_verdict() {
    let folder = TempDir::new().unwrap();
    let backend = Backend::spawn(Serve::Http);
    let url = format!("http://{}/size/10", backend.addr());
    let bench = ["bench", "http", &url, "--rate", "200", "--duration", "100ms", "--clients", "4", "--json"];
    let report = forebay(&bench);
    assert_eq!(report.status.code(), Some(0), "{}", told(&report));
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let write = |name: &str, text: String| -> String {
        let path: PathBuf = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    // Times that are made, since a test is no measurement.
    let with = |p50: f64| {
        let mut one = report.clone();
        one["latency"]["p50_us"] = json!(p50);
        one
    };
    let a = write("a.json", json!([with(100.0), with(101.0), with(102.0), with(103.0)]).to_string());
    let b1 = write("b1.json", format!("{}\n{}", with(50.0), with(51.0)));
    let b2 = write("b2.json", format!("{}\n{}", with(52.0), with(53.0)));
    let found = compared(&["--a", &a, "--b", &b1, "--b", &b2]);
    assert_eq!(verdict(&found, "p50"), "faster", "{found}");
    assert_eq!(compared(&["--a", &a, "--b", &b1, "--b", &b2]), found, "the same seed, the same intervals");
    let text = forebay(&["bench", "compare", &a, &a]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("no difference shown") && !text.contains("B faster"), "{text}");

    let empty = write("empty.json", String::new());
    let cut = write("cut.json", report.to_string()[..200].to_owned());
    let foreign = write("foreign.json", "{\"hello\": 1}".to_owned());
    for (files, expected) in [
        ([&a, &empty], "empty.json is damaged: there is nothing in it"),
        ([&cut, &a], "cut.json is damaged: EOF while parsing"),
        ([&a, &foreign], "foreign.json is no report to compare"),
    ] {
        let output = forebay(&["bench", "compare", files[0], files[1]]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{expected}");
        assert!(told(&output).contains(expected) && told(&output).lines().count() == 1, "{}", told(&output));
    }
}

#[test]
fn a_round_that_fails_leaves_what_there_was_marked() {
    let server = Responder::builder().spawn().unwrap();
    let folder = TempDir::new().unwrap();
    let good = command(&server.addr().to_string());
    // Ends with its fifth run.
    let count = folder.path().join("count");
    let count = count.display();
    let failing = format!(
        "echo >> {count}; test $(wc -l < {count}) -lt 5 || {{ echo 'it is gone' >&2; exit 3; }}; {good}"
    );
    let output = forebay(&["bench", "compare", "--json", "--run", &good, "--run", &failing, "--rounds", "9"]);
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("what there was");
    let partial = found["partial"].as_str().unwrap();
    assert!(
        partial.starts_with("5 and 4 of 9 rounds: B round 5: ") && partial.contains("it is gone"),
        "{partial}"
    );
    assert_eq!(found["b"]["reports"], 4);
    let last = told(&output).lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("error: the comparison ended early: B round 5"), "{last}");
}

#[test]
fn commands_that_print_no_report_are_told_by_round_and_side() {
    let server = Responder::builder().spawn().unwrap();
    let good = command(&server.addr().to_string());
    for (other, expected) in [
        ("echo hello", "B round 1 is damaged: expected value at line 1"),
        ("true", "B round 1 is damaged: there is nothing in it"),
        ("exit 7", "B round 1: `exit 7` ended with exit status: 7"),
        ("sleep 30", "B round 1: it took longer than 1s (--limit)"),
    ] {
        let args = ["bench", "compare", "--run", &good, "--run", other, "--rounds", "1", "--limit", "1s"];
        let output = forebay(&args);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{other}: {}", told(&output));
        assert!(
            told(&output).contains(&format!("nothing could be compared: {expected}")),
            "{}",
            told(&output)
        );
    }
}

#[test]
fn a_run_that_takes_too_long_ends_with_all_that_it_started() {
    let server = Responder::builder().spawn().unwrap();
    let good = command(&server.addr().to_string());
    // A name of its own, by which it is found among all processes.
    let time = format!("60.{}", std::process::id());
    let slow = format!("sleep {time} & sleep {time}");
    let args = ["bench", "compare", "--run", &slow, "--run", &good, "--rounds", "1", "--limit", "1s"];
    assert_eq!(forebay(&args).status.code(), Some(1));
    let is_it = |process: std::io::Result<std::fs::DirEntry>| {
        let line = process.ok().and_then(|process| std::fs::read(process.path().join("cmdline")).ok());
        line.is_some_and(|line| line == format!("sleep\0{time}\0").as_bytes())
    };
    // Who is killed may take a moment to be gone.
    let none_is_left = || !std::fs::read_dir("/proc").unwrap().any(is_it);
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while !none_is_left() {
        assert!(std::time::Instant::now() < patience, "sleep {time} is still there");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_comparison_without_two_sides_is_refused() {
    for (args, expected) in [
        (&[][..], "nothing to compare: name two reports"),
        (&["--run", "true"], "--run: 1 given, and a comparison has two sides"),
        (&["--a", "a.json"], "--b"),
        (&["a.json"], "2 values required"),
        (&["a.json", "b.json", "--rounds", "3"], "--run"),
        (&["/nowhere/a.json", "/nowhere/b.json"], "cannot read /nowhere/a.json: No such file"),
    ] {
        let output = forebay(&[&["bench", "compare"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", told(&output));
        assert!(told(&output).contains(expected), "{args:?}: {}", told(&output));
    }
}

#[test]
fn a_bench_whose_server_ends_says_so_keeps_its_report_and_fails() {
    let server = Backend::spawn(Serve::Http);
    let url = format!("http://{}/size/10", server.addr());
    let args =
        ["bench", "http", &url, "--rate", "300", "--duration", "1500ms", "--timeout", "200ms", "--json"];
    let ends = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(600));
        drop(server);
    });
    let output = forebay(&args);
    ends.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("the report is kept");
    assert!(report["answered"].as_u64().unwrap() > 0, "{report}");
    assert!(report["partial"].as_str().unwrap().starts_with("no answer after 0."), "{report}");
    assert!(told(&output).starts_with("error: the report is of a part of the load only: no answer after 0."));
}

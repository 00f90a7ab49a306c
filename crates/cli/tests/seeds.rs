//! `forebay bench seeds` as its users meet it: what it prints, what it writes, and what is kept when it is ended early.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn forebay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["bench", "seeds"]).args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    forebay(args).output().expect("the command runs")
}

/// Runs a seed quickly, and returns what JSON says of it.
fn quick(seed: &str) -> Value {
    let output = run(&["--quick", "--only", seed, "--json"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{message}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&report["unfinished"], &report["quick"]), (&Value::Null, &Value::Bool(true)));
    let seeds = report["seeds"].as_array().unwrap();
    assert_eq!((seeds.len(), seeds[0]["seed"].as_str()), (1, Some(seed)));
    let section = seeds[0].clone();
    for claim in section["claims"].as_array().unwrap() {
        assert_ne!(claim["verdict"], "not_measured", "{claim}");
        for side in ["without", "with"] {
            let figure = &claim[side];
            let value = |name: &str| figure[name].as_f64().unwrap();
            assert!(value("low") <= value("median") && value("median") <= value("high"), "{claim}");
        }
    }
    for plot in section["plots"].as_array().unwrap() {
        assert!(!plot["series"].as_array().unwrap().is_empty(), "{plot}");
    }
    section
}

/// The claim that begins so.
fn claim<'a>(section: &'a Value, begins: &str) -> &'a Value {
    let mut claims = section["claims"].as_array().unwrap().iter();
    let says = |claim: &&Value| claim["says"].as_str().unwrap().starts_with(begins);
    claims.find(says).unwrap_or_else(|| panic!("no claim begins with {begins:?}"))
}

/// The cell of a table, by the beginning of its title, its row and its column.
fn cell(section: &Value, title: &str, row: &str, column: &str) -> String {
    let tables = section["tables"].as_array().unwrap();
    let table =
        tables.iter().find(|table| table["title"].as_str().unwrap().starts_with(title)).expect("the table");
    let place =
        table["columns"].as_array().unwrap().iter().position(|head| head == column).expect("the column");
    let row = table["rows"].as_array().unwrap().iter().find(|cells| cells[0] == row).expect("the row");
    row[place].as_str().unwrap().to_owned()
}

fn number(text: &str) -> f64 {
    let digits: String = text.chars().filter(|letter| letter.is_ascii_digit() || *letter == '.').collect();
    digits.parse().unwrap_or_else(|_| panic!("{text:?} is no number"))
}

#[test]
fn a_socket_per_query_makes_one_for_each_and_the_same_hit_rate_is_on_all_sides() {
    let section = quick("000");
    for title in
        ["256 clients, 4 upstreams of 780µs, 0 % hits", "256 clients, 4 upstreams of 780µs, 96 % hits"]
    {
        let made = |row: &str| number(&cell(&section, title, row, "sockets made"));
        let qps = |row: &str| number(&cell(&section, title, row, "QPS"));
        let misses = if title.contains("96") { 0.04 } else { 1.0 };
        let off = "a socket per query";
        let share = made(off) / (qps(off) * misses);
        assert!((0.7..1.3).contains(&share), "{share} sockets for each query that the cache does not have");
        assert!(made("forebay as it is") < made(off) / 10.0);
        let ten = "ten, exclusive, who finds none waits (V2)";
        assert!(made(ten) < made(off) / 10.0);
    }
    let targets = section["targets"].as_array().unwrap();
    assert!(
        targets.iter().all(|target| target["reached"] == true || target["reason"].is_string()),
        "{targets:?}"
    );
    let notes = section["notes"].to_string();
    assert!(notes.contains("had 96.") || notes.contains("95.9") || notes.contains("had 95."), "{notes}");
}

#[test]
fn without_a_pool_a_thousand_users_need_a_socket_for_each_upstream_and_no_shortage_is_blamed_on_one() {
    let section = quick("001");
    for over in ["UDP", "TCP", "DoT"] {
        let made = |pool: &str| {
            number(&cell(&section, "1000 questions", &format!("{over}, {pool}"), "sockets made"))
        };
        assert!(made("off") >= 2500.0, "{over}: {}", made("off"));
        assert!(made("on") <= 200.0, "{over}: {}", made("on"));
        let few = |pool: &str, column: &str| {
            number(&cell(&section, "The same", &format!("{over}, {pool}"), column))
        };
        assert!(few("off", "connections at once") <= 3.0 * 200.0);
        assert_eq!(few("off", "blamed on upstreams"), 0.0, "{over}");
        assert_eq!(few("on", "blamed on upstreams"), 0.0, "{over}");
        assert_eq!(few("off", "breakers opened"), 0.0, "{over}");
    }
    let over_udp = cell(&section, "The same", "UDP, off", "shortages seen");
    assert!(number(&over_udp) > 0.0, "there were too few ports for it");
}

#[test]
fn the_order_of_connections_shows_in_ports_and_in_fairness() {
    let section = quick("002");
    let bits = |order: &str, column: &str| number(&cell(&section, "16 connections", order, column));
    assert!(bits("FIFO", "source port") > 3.9 && bits("random", "source port") > 3.9);
    assert!(bits("FIFO", "for who knows the last") < 0.1);
    assert!(bits("random", "for who knows the last") > 3.0);
    assert!(bits("LIFO", "source port") < 2.0);
    assert!(bits("FIFO", "fairness") > 95.0 && bits("LIFO", "fairness") < 90.0);
}

#[test]
fn strangers_share_a_connection_of_the_seeds_pool_and_never_one_of_ours() {
    let section = quick("003");
    let safety = claim(&section, "(safety)");
    assert!(safety["without"]["median"].as_f64().unwrap() > 0.0, "{safety}");
    assert_eq!(safety["with"]["median"], 0.0, "{safety}");
    let checkout = claim(&section, "connection reuse is 376 times faster");
    assert!(checkout["ratio"].as_f64().unwrap() > 1.0, "{checkout}");
    assert_eq!(cell(&section, "HTTP through the proxy", "on", "failed"), "0");
}

#[test]
fn the_seeds_command_makes_its_calls_and_every_setting_is_compared_with_main() {
    let section = quick("004");
    assert_eq!(cell(&section, "Ways to call", "--clients 50 --requests 200", "calls"), "10,000");
    let each = "a connection for each call, 50 clients";
    let of = |column| number(&cell(&section, "Ways to call", each, column));
    assert!(of("connections") >= of("calls"), "each had its own");
    assert_eq!(number(&cell(&section, "Ways to call", "the same on one connection", "connections")), 1.0);
    let tables = section["tables"].as_array().unwrap();
    let settings: Vec<_> = tables
        .iter()
        .filter(|table| table["title"].as_str().unwrap().starts_with("What each setting"))
        .collect();
    assert_eq!(settings.len(), 2);
    for table in settings {
        for row in table["rows"].as_array().unwrap().iter().skip(1) {
            assert!(row[4].as_str().unwrap().contains(['b', 'w', 'n']), "{row}");
        }
    }
}

#[test]
fn what_was_measured_before_an_interruption_is_kept_in_all_forms_and_marked() {
    let folder = TempDir::new().unwrap();
    let page = folder.path().join("seeds.html");
    let mut child = forebay(&["--only", "004", "--markdown", "--html", page.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    // The second step has begun: the first is measured.
    for _ in 0..2 {
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0 && line.contains("004"), "{line}");
    }
    let kill = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let drain = std::thread::spawn(move || std::io::read_to_string(log).unwrap());
    let output = child.wait_with_output().unwrap();
    let log = drain.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("error: not all was measured: 004: interrupted"), "{log}");
    let markdown = String::from_utf8(output.stdout).unwrap();
    assert!(
        markdown.contains("**Not the whole:**") && markdown.contains("Ways to call a greeter"),
        "{markdown}"
    );
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("Not the whole") && page.contains("<svg") && page.ends_with("</html>\n"));
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_measured() {
    for (args, expected) in [
        (&["--only", "005"][..], "possible values: 000, 001, 002, 003, 004"),
        (&["--json", "--markdown"], "cannot be used with"),
        (&["--html", "/nowhere/seeds.html"], "error: --html: cannot write /nowhere/seeds.html: No such file"),
    ] {
        let output = run(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(expected), "{message}");
        assert_eq!(output.stdout, b"");
    }
}

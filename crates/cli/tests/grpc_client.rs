//! `forebay bench grpc` and `forebay grpc hello` as their users meet them, and beside a generator of others.

use std::fs;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use forebay_grpc::greet::FILE_DESCRIPTOR_SET;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::{Greeter, Running, Server};
use tempfile::TempDir;

fn forebay(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("the command runs")
}

/// A greeter with health and reflection, by TLS if a folder is given, to which its certificate is written.
fn greeter(tls: Option<&TempDir>) -> (Running, String) {
    let mut server = Server::builder()
        .with(|settings| settings.workers = 1)
        .add_service(GreeterServiceServer::new(Greeter { interval: Duration::from_millis(1) }))
        .health()
        .reflection(FILE_DESCRIPTOR_SET)
        .listen("127.0.0.1:0");
    if let Some(folder) = tls {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
        fs::write(&certificate, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        server = server.tls(certificate, key);
    }
    let running = server.build().unwrap();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", running.local_addrs()[0]);
    (running, url)
}

/// Runs what must succeed, and returns what it says.
fn said(args: &[&str]) -> String {
    let output = forebay(args);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{args:?}: {error}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stdout).unwrap()
}

fn report(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&said(&[&["bench", "grpc"], args, &["--json"]].concat())).expect("JSON")
}

/// Runs what must fail, and returns its exit code and its message of one line.
fn refused(args: &[&str]) -> (i32, String) {
    let output = forebay(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{args:?}: {message}");
    (output.status.code().unwrap(), message)
}

/// An address where nobody listens.
fn nobody() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[test]
fn the_seeds_command_reports_rate_latency_and_reuse() {
    let (_running, url) = greeter(None);
    let text = said(&["bench", "grpc", &url, "--clients", "50", "--requests", "200"]);
    for expected in
        ["answered    10000 of 10000", "requests/s", "mean", "p50", "p90", "p99.9", "found one ready"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let report = report(&[
        &url,
        "--connections",
        "1",
        "--duration",
        "300ms",
        "--pid",
        &std::process::id().to_string(),
    ]);
    assert_eq!((&report["failed"], &report["connections_opened"]), (&0.into(), &1.into()), "{report}");
    assert!(report["reuse_rate"].as_f64().unwrap() > 0.9, "{report}");
    assert!(report["cpu_us_per_request"].as_f64().unwrap() > 0.0, "{report}");
    assert!(report["server_cpu_us_per_request"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn streams_tls_and_described_methods_are_measured_too() {
    let folder = TempDir::new().unwrap();
    let (_running, url) = greeter(Some(&folder));
    let ca = folder.path().join("cert.pem");
    let ca = ["--ca", ca.to_str().unwrap(), "--clients", "4", "--requests", "5"];
    let all = |more: &[&str]| report(&[&[&*url], &ca[..], more].concat());
    let streams = all(&["--streaming", "--payload", "1KiB"]);
    assert_eq!((&streams["answered"], &streams["messages_received"]), (&20.into(), &100.into()), "{streams}");
    assert_eq!(streams["message_bytes"], 1024 + 3);
    let health = all(&["--method", "grpc.health.v1.Health/Check", "--data", "{\"service\": \"\"}"]);
    assert_eq!((&health["answered"], &health["failed"]), (&20.into(), &0.into()), "{health}");
    assert_eq!(health["method"], "grpc.health.v1.Health/Check");
    // Without its certificate the server is not trusted, and nothing is answered.
    let (code, message) = refused(&["bench", "grpc", &url, "--clients", "1", "--requests", "1"]);
    assert!(code == 1 && message.contains("no call was answered"), "{code}: {message}");
}

#[test]
fn what_cannot_be_measured_is_told_in_a_line() {
    let (_running, url) = greeter(None);
    let down = nobody();
    for (args, code, expected) in [
        (vec!["ftp://x"], 2, "URL is ftp://x: "),
        (
            vec![&*url, "--method", "greet.GreeterService/SayBye"],
            2,
            "--method: method is greet.GreeterService/SayBye",
        ),
        (vec![&url, "--method", "greet.GreeterService/SayHello", "--data", "{"], 2, "--data: data is {: "),
        (vec![&url, "--ca", "/nowhere.pem"], 2, "--ca: /nowhere.pem"),
        (vec![&url, "--clients", "0"], 2, "--clients: clients is 0"),
        (vec![&url, "--payload", "1GiB"], 2, "--payload: payload is "),
        (vec![&url, "--requests", "1", "--clients", "1", "--pid", "999999999"], 1, ""),
        (vec![&down, "--requests", "1", "--clients", "1", "--timeout", "1s"], 1, "no call was answered"),
        (vec![&down, "--method", "a.B/C", "--timeout", "1s"], 1, "does not say what its methods are"),
    ] {
        let (found, message) = refused(&[&["bench", "grpc"], &args[..]].concat());
        assert!(found == code && message.contains(expected), "{args:?}: {found}: {message}");
    }
}

#[test]
fn a_generator_of_others_finds_a_rate_of_the_same_order() {
    let found = Command::new("h2load").arg("--version").stdout(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("FOREBAY_REQUIRE_PEERS").is_none(), "h2load is missing");
        eprintln!("skipped: no h2load here");
        return;
    }
    let (_running, url) = greeter(None);
    let folder = TempDir::new().unwrap();
    let message = folder.path().join("message");
    // Not compressed, seven bytes: a name of five.
    fs::write(&message, b"\0\0\0\0\x07\x0a\x05hello").unwrap();
    let theirs = Command::new("h2load")
        .args(["--duration=1", "--clients=1", "--max-concurrent-streams=16", "--threads=1"])
        .args(["--header=content-type: application/grpc", "--header=te: trailers", "--data"])
        .arg(&message)
        .arg(format!("{url}/greet.GreeterService/SayHello"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&theirs.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("finished in ")).unwrap_or_else(|| panic!("{text}"));
    let theirs: f64 = line.split(", ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let ours = report(&[&url, "--duration", "1s", "--clients", "16", "--connections", "1"]);
    let ours = ours["rate"].as_f64().unwrap();
    assert!(
        theirs > 100.0 && ours > theirs / 20.0 && ours < theirs * 20.0,
        "ours {ours}/s, theirs {theirs}/s"
    );
}

#[test]
fn hello_shows_what_the_greeter_says() {
    let folder = TempDir::new().unwrap();
    let (_plain, url) = greeter(None);
    assert_eq!(said(&["grpc", "hello", &url]), "Hello world!\n");
    let lines = said(&["grpc", "hello", &url, "--name", "you", "--streaming"]);
    assert_eq!((lines.lines().count(), lines.lines().next()), (5, Some("Hello you! (1 of 5)")), "{lines}");
    let (_tls, url) = greeter(Some(&folder));
    let ca = folder.path().join("cert.pem");
    assert_eq!(said(&["grpc", "hello", &url, "--ca", ca.to_str().unwrap()]), "Hello world!\n");
    let (code, message) = refused(&["grpc", "hello", &url]);
    assert!(code == 1 && message.contains(&url) && message.contains("UNAVAILABLE"), "{code}: {message}");
}

#[test]
fn hello_says_why_there_is_no_answer() {
    let folder = TempDir::new().unwrap();
    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    let down = nobody();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}", silent.local_addr().unwrap());
    for (args, code, expected) in [
        (vec!["ftp://x"], 2, "URL: "),
        (vec!["https://127.0.0.1:1", "--ca", empty.to_str().unwrap()], 2, "--ca: "),
        (vec![&*down, "--timeout", "1s"], 1, &*down),
        (vec![&*silent, "--timeout", "300ms"], 1, "DEADLINE_EXCEEDED: no answer in 300ms"),
    ] {
        let (found, message) = refused(&[&["grpc", "hello"], &args[..]].concat());
        assert!(found == code && message.contains(expected), "{args:?}: {found}: {message}");
    }
}

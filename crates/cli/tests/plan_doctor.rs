//! `forebay plan` and `forebay doctor` as their users meet them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use forebay_bench::ports::free_port;
use forebay_bench::responder::{Responder, Script};
use tempfile::TempDir;

fn forebay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).stdin(Stdio::null()).env_remove("FOREBAY_ADMIN_TOKEN");
    command
}

fn run(args: &[&str]) -> Output {
    forebay(args).output().expect("the command runs")
}

/// Runs what must succeed, and returns what it says.
fn said(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&said(&[args, &["--json"]].concat())).expect("JSON")
}

/// Runs what must fail with this code, and returns its message of one line.
fn refused(code: i32, args: &[&str]) -> String {
    let output = run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert_eq!(output.stdout, b"", "{args:?}");
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "{args:?}: {message}");
    message
}

/// A forwarder with an admin endpoint, and an upstream that takes 20 ms for each answer. Killed when dropped.
struct Server {
    child: Child,
    listen: SocketAddr,
    admin: String,
    _upstream: Responder,
}

impl Server {
    fn start(token: Option<&str>) -> Self {
        let script = Script { delay: Duration::from_millis(20), ..Script::default() };
        let upstream = Responder::builder().script(script).spawn().unwrap();
        let to = upstream.addr().to_string();
        let options =
            ["dns", "--listen", "127.0.0.1:0", "--upstream", &to, "--workers", "1", "--cache-size", "0"];
        let mut command = forebay(&options);
        command
            .args(["--admin", "127.0.0.1:0", "--log-format", "json"])
            .envs(token.map(|token| ("FOREBAY_ADMIN_TOKEN", token)));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let ready = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
            let event: serde_json::Value = serde_json::from_str(&line).unwrap();
            if event["message"] == "dns is ready" {
                break event;
            }
        };
        // What it logs later is read by nobody, and must not stop it.
        thread::spawn(move || log.read_to_end(&mut Vec::new()));
        let listen = ready["listen"].as_str().unwrap().parse().unwrap();
        Self { child, listen, admin: ready["admin"].as_str().unwrap().to_owned(), _upstream: upstream }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where a test wanted that.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again, about two hundred times a second, until it is dropped.
struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Load {
    fn on(server: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            for n in 0u32.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let name = format!("n{n:08}");
                let mut query = vec![n as u8, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
                query.extend_from_slice(name.as_bytes());
                query.extend_from_slice(&[0, 0, 1, 0, 1]);
                // A server that has gone is no failure of the load.
                let _ = socket.send_to(&query, server);
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn a_plan_answers_the_seeds_question() {
    let text = said(&["plan", "--callers", "256", "--service", "0.78ms", "--connections", "10"]);
    for expected in [
        "needed",
        "engine, all connected",
        "binds first: ",
        "the seed's own calculation",
        "= 20.0 ms of waiting",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let plan = json(&["plan", "--callers", "256", "--service", "0.78ms", "--connections", "10"]);
    let rows = plan["waits"].as_array().unwrap();
    let mean = |by: &str, connections: u64| {
        let row = rows.iter().find(|row| row["by"] == by && row["connections"] == connections);
        row.and_then(|row| row["mean_us"].as_f64()).unwrap_or_else(|| panic!("{by} {connections}: {plan}"))
    };
    let (told, lived) = (mean("theory (exact)", 10), mean("engine, all connected", 10));
    assert!((told / lived - 1.0).abs() < 0.1, "{told} {lived}");
}

#[test]
fn options_change_what_is_planned() {
    let base = ["plan", "--rate", "5000/s", "--service", "2ms", "--requests", "20000"];
    let with = |options: &[&str]| json(&[&base[..], options].concat());
    let connections = |plan: &serde_json::Value| plan["connections"].as_u64().unwrap();
    let plain = with(&[]);
    assert!(connections(&with(&["--spread", "3"])) > connections(&plain));
    assert!(connections(&with(&["--burst", "20"])) > connections(&plain));
    assert!(connections(&with(&["--hits", "0.9"])) < connections(&plain));
    assert!(connections(&with(&["--target-wait", "50ms"])) < connections(&plain));
    assert!(connections(&with(&["--percentile", "99.9"])) > connections(&plain));
    assert!(connections(&with(&["--capacity", "8"])) < connections(&plain));
    assert_eq!(with(&["--ports", "5"])["binds"]["what"], "local ports to one destination");
    assert_eq!(with(&["--descriptors", "70"])["binds"]["what"], "descriptors");
    assert_eq!(with(&["--memory", "16KiB"])["binds"]["what"], "memory (bytes)");
    let spread = ["plan", "--rate", "5000", "--spread", "p50=0.5ms,p99=8ms", "--requests", "20000"];
    assert!(connections(&json(&spread)) > 3);
}

#[test]
fn impossible_numbers_are_one_line_and_exit_2() {
    for (args, expected) in [
        (&["--rate", "0", "--service", "1ms"][..], "--rate: is 0; it must be more than 0"),
        (&["--rate", "1e9", "--service", "1s"], "--rate: 1000000000/s of 1.00 s each"),
        (&["--rate", "10"], "--service: say how long"),
        (&["--callers", "0", "--service", "1ms"], "--callers: is 0"),
        (&["--rate", "10", "--service", "1ms", "--percentile", "100"], "--percentile: is 100"),
        (&["--rate", "10", "--service", "1ms", "--capacity", "0"], "--capacity: is 0"),
        (
            &["--from", "https://127.0.0.1:1"],
            "--from: `https://127.0.0.1:1` is no admin endpoint: it speaks plain HTTP",
        ),
        (&["--from", "127.0.0.1:1", "--for", "0s"], "--for: is 0ns"),
    ] {
        let message = refused(2, &[&["plan"], args].concat());
        assert!(message.starts_with(&format!("error: {expected}")), "{message}");
    }
    let output = run(&["plan", "--service", "fast", "--rate", "1"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(message.contains("`fast` is not a time like 0.78ms"), "{message}");
}

#[test]
fn whoever_is_no_forebay_is_told_apart() {
    let nobody = format!("127.0.0.1:{}", free_port());
    for command in ["plan", "doctor"] {
        let message = refused(1, &[command, "--from", &nobody]);
        assert!(message.contains("nobody listens there"), "{message}");
    }
    for (answer, expected) in [
        ("SSH-2.0-OpenSSH_9\r\n", "is no forebay"),
        ("HTTP/1.1 404 Not Found\r\n\r\n", "is no forebay"),
        ("HTTP/1.1 200 OK\r\n\r\n<html>", "no"),
        ("HTTP/1.1 401 Unauthorized\r\n\r\n", "FOREBAY_ADMIN_TOKEN"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]);
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        for command in ["plan", "doctor"] {
            let message = refused(1, &[command, "--from", &url]);
            assert!(message.contains(expected), "{command}: {message}");
        }
        server.join().unwrap();
    }
}

#[test]
fn a_plan_takes_rate_and_service_from_a_running_forebay() {
    let server = Server::start(None);
    let idle = refused(1, &["plan", "--from", &server.admin, "--for", "300ms"]);
    assert!(idle.contains("nothing asked an upstream"), "{idle}");
    let _load = Load::on(server.listen);
    thread::sleep(Duration::from_millis(200));
    let plan = json(&["plan", "--from", &server.admin, "--for", "1s", "--requests", "5000"]);
    let notes = plan["notes"].to_string();
    assert!(notes.contains("of upstream default: ") && notes.contains("service from "), "{notes}");
    // It is asked at most 200 times a second, and answers after 20 ms and what it takes itself.
    let in_flight = plan["in_flight"].as_f64().unwrap();
    assert!((0.2..40.0).contains(&in_flight), "{plan}");
    assert_eq!(
        plan["bounds"].as_array().unwrap().iter().filter(|one| one["has"] == 4096).count(),
        1,
        "{plan}"
    );
    let wrong = refused(1, &["plan", "--from", &server.admin, "--for", "300ms", "--upstream", "web"]);
    assert!(wrong.contains("there is no `web`; there is default"), "{wrong}");
}

#[test]
fn a_forebay_that_dies_while_it_is_looked_at_leaves_a_marked_plan() {
    let mut server = Server::start(None);
    let load = Load::on(server.listen);
    let watching = forebay(&["plan", "--from", &server.admin, "--for", "30s", "--requests", "5000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(1500));
    server.child.kill().unwrap();
    server.child.wait().unwrap();
    let output = watching.wait_with_output().unwrap();
    drop(load);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("note: cut short: it could be looked at for "), "{text}");
}

#[test]
fn the_token_of_the_environment_opens_a_guarded_endpoint() {
    let token = "0123456789abcdef";
    let server = Server::start(Some(token));
    let message = refused(1, &["doctor", "--from", &server.admin]);
    assert!(message.contains("set FOREBAY_ADMIN_TOKEN"), "{message}");
    let output =
        forebay(&["doctor", "--from", &server.admin]).env("FOREBAY_ADMIN_TOKEN", token).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8(output.stdout).unwrap().contains("forebay has "));
}

#[test]
fn a_doctor_says_what_this_machine_can_carry() {
    let text = said(&["doctor"]);
    for expected in [
        "what this machine can carry",
        "what breaks first",
        "connections to one destination",
        "Nothing was changed.",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let report = json(&["doctor"]);
    let ports = report["facts"]["ports"].as_u64().unwrap();
    let carries = report["carries"].as_array().unwrap();
    let one = carries.iter().find(|one| one["what"] == "connections to one destination").unwrap();
    assert_eq!(one["most"].as_u64(), Some(ports));
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(finding["change"].is_string(), finding["state"] != "ok", "{finding}");
    }
}

#[test]
fn a_doctor_judges_another_machines_files() {
    let folder = TempDir::new().unwrap();
    for (path, text) in [
        ("proc/self/limits", "Max open files  1024  4096  files\n"),
        ("proc/sys/net/ipv4/ip_local_port_range", "40000\t40199\n"),
        ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
        ("proc/sys/net/core/somaxconn", "128\n"),
    ] {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = folder.path().to_str().unwrap();
    let text = said(&["doctor", "--root", root]);
    for expected in [
        "as connections stay: connections to one destination, at 200",
        "as connections come and go: new connections a second to one destination, closed by this side, at 3 ",
        "change: sysctl -w net.core.somaxconn=4096",
        "change: LimitNOFILE=1048576",
        "not read",
        "it is another machine's",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let message = refused(2, &["doctor", "--root", "/nowhere"]);
    assert!(message.contains("--root: /nowhere is no folder"), "{message}");
}

//! The command as its users meet it: exit codes, messages, signals.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::time::{Duration, Instant};

use forebay_bench::backend::{Backend, Serve};
use forebay_bench::ports::free_port;
use forebay_bench::responder::{Responder, Script};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn forebay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).stdin(Stdio::null()).env_remove("FOREBAY_ADMIN_TOKEN");
    command
}

fn run(args: &[&str]) -> Output {
    forebay(args).output().expect("the command runs")
}

/// Runs what must fail as wrong usage, and returns its message.
fn refused(args: &[&str]) -> String {
    let output = run(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert_eq!(output.stdout, b"", "{args:?}");
    message
}

fn file(folder: &TempDir, text: &str) -> String {
    let path: PathBuf = folder.path().join("forebay.toml");
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A running server; killed when dropped.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    listen: SocketAddr,
    ready: serde_json::Value,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        Self::of(forebay(args))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command
            .args(["--log", "info", "--log-format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let ready = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
            let event: serde_json::Value = serde_json::from_str(&line).expect("a line of the log is JSON");
            if event["message"] == "dns is ready" {
                break event;
            }
        };
        let listen = ready["listen"].as_str().unwrap().parse().unwrap();
        Self { child, log, listen, ready }
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end, and returns the exit code and the rest of the log.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (status.code(), rest)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A query for an address of `name`.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() as u8];
    query.extend_from_slice(name.as_bytes());
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

fn client(server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn ask(server: SocketAddr, name: &str) -> Vec<u8> {
    let socket = client(server);
    socket.send(&query(name)).unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).expect("an answer");
    reply[..length].to_vec()
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn help_and_version_are_no_failures() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let help = String::from_utf8(help.stdout).unwrap();
    for text in ["Examples:", "forebay demo", "Exit codes", "--admin"] {
        assert!(help.contains(text), "{text}: {help}");
    }
    for command in ["dns", "run", "check", "demo", "bench"] {
        assert_eq!(run(&[command, "--help"]).status.code(), Some(0), "{command}");
    }
    let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
    assert_eq!(version, format!("forebay {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_one_line_and_exit_2() {
    for (args, expected) in [
        (&["dns", "--upstream", "http://192.0.2.1"][..], "--upstream: `http://192.0.2.1`: unknown scheme"),
        (&["dns", "--upstream", "192.0.2.300"], "--upstream: `192.0.2.300`"),
        (
            &["dns", "--listen", "localhost:53", "--upstream", "192.0.2.1"],
            "--listen: `localhost:53` is not an address",
        ),
        (&["dns", "--cache-size", "1KiB", "--upstream", "192.0.2.1"], "--cache-size: 1KiB is too small"),
        (&["--admin", "0.0.0.0:9053", "--upstream", "192.0.2.1"], "--admin: 0.0.0.0:9053 can be reached"),
        (&["--workers", "2", "demo"], "options of `dns` go after the command"),
        (&["check", "-c", "f", "--admin", "none"], "--admin, --log and --log-format are for servers"),
        (&["run", "-c", "/nowhere/forebay.toml"], "cannot read /nowhere/forebay.toml: No such file"),
        (
            &["--resolv-conf", "/nowhere/resolv.conf"],
            "--upstream: none named, and /nowhere/resolv.conf cannot be read",
        ),
        (&["bench", "dns", "--target", "127.0.0.1:0"], "--target: target is 127.0.0.1:0"),
    ] {
        let message = refused(args);
        assert!(message.starts_with(&format!("error: {expected}")), "{args:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    }
    for (args, hint) in [
        (&["--cache-size", "64MB"][..], "64MiB"),
        (&["--strategy", "sequentail"], "'sequential'"),
        (&["dms"], "'dns'"),
        (&["demo", "--duration", "3"], "30s"),
        (&["bench", "dns", "--target", "127.0.0.1:53", "--names", "cold"], "hot:1000"),
    ] {
        let message = refused(args);
        assert!(message.contains(hint), "{args:?}: {message}");
    }
}

#[test]
fn an_empty_resolv_conf_is_told() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "# nothing\n");
    let message = refused(&["--resolv-conf", &path]);
    assert!(message.contains(&format!("{path} names none: give one, like udp://192.0.2.53")), "{message}");
}

#[test]
fn a_wrong_file_is_told_by_line_with_all_that_is_wrong() {
    let folder = TempDir::new().unwrap();
    let path = file(
        &folder,
        "[dns]\nupstreams = [\"192.0.2.53\"]\nworkres = 2\nquery_timeout = 30\n\n[dns.udp]\ncapacity = \"8\"\n",
    );
    for command in ["run", "check"] {
        let message = refused(&[command, "-c", &path]);
        let told: Vec<&str> = message.lines().filter(|line| line.starts_with(&path)).collect();
        assert_eq!(
            told,
            [
                format!("{path}:3: dns.workres: unknown key; did you mean `workers`?"),
                format!("{path}:4: dns.query_timeout: `30` has no unit: write a time like \"30s\""),
                format!("{path}:7: dns.udp.capacity: is a text; write the number without quotes: 8"),
            ]
        );
        assert!(message.contains("    3 | workres = 2"), "{message}");
    }
    let path = file(&folder, "[dns]\nupstreams = [\"192.0.2.53\"]\nudp.capacity = 0\n");
    let message = refused(&["check", "-c", &path]);
    assert!(
        message.starts_with(&format!("{path}:3: dns.udp.capacity: is 0; it must be at least 1")),
        "{message}"
    );
}

#[test]
fn a_good_file_is_summed_up() {
    let folder = TempDir::new().unwrap();
    let path = file(&folder, "[dns]\nlisten = [\":53\"]\nupstreams = [\"tcp://192.0.2.53\"]\nworkers = 1\n");
    let output = run(&["check", "-c", &path]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        format!("{path}: ok: dns on 0.0.0.0:53 to tcp://192.0.2.53:53, 1 worker; admin 127.0.0.1:9053\n")
    );
}

#[test]
fn an_address_in_use_is_told_with_its_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = refused(&["dns", "--listen", &address, "--upstream", "192.0.2.53", "--admin", "none"]);
    assert!(message.contains(&format!("cannot listen on {address} (TCP)")), "{message}");
    assert!(message.contains("another server listens there"), "{message}");
    let message =
        refused(&["dns", "--listen", "127.0.0.1:0", "--upstream", "192.0.2.53", "--admin", &address]);
    assert!(message.starts_with(&format!("error: --admin: cannot listen on {address} (TCP)")), "{message}");
    let message =
        refused(&["dns", "--listen", "192.0.2.1:5300", "--upstream", "192.0.2.53", "--admin", "none"]);
    assert!(message.contains("not one of this machine"), "{message}");
}

#[test]
fn a_taken_default_admin_address_is_no_reason_not_to_serve() {
    // Whoever holds the default address, it is taken for the server below.
    let _taken = TcpListener::bind("127.0.0.1:9053");
    let upstream = Responder::builder().spawn().unwrap();
    let server =
        Running::start(&["dns", "--listen", "127.0.0.1:0", "--upstream", &upstream.addr().to_string()]);
    assert_eq!(server.ready["admin"], "none");
    assert_eq!(ask(server.listen, "served")[3] & 15, 0);
}

#[test]
fn a_file_is_served_with_its_admin_endpoint() {
    let folder = TempDir::new().unwrap();
    let upstream = Responder::builder().spawn().unwrap();
    let path = file(
        &folder,
        &format!(
            "[dns]\nlisten = [\"127.0.0.1:0\"]\nupstreams = [\"{}\"]\nworkers = 1\n\
             [admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"0123456789abcdef\"\n",
            upstream.addr()
        ),
    );
    let server = Running::start(&["run", "-c", &path]);
    assert_eq!(server.ready["workers"], 1);
    assert_eq!(server.ready["upstreams"], format!("udp://{}", upstream.addr()));
    assert_eq!(ask(server.listen, "one")[3] & 15, 0);
    let admin = server.ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    assert!(get(&admin, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(&admin, "/metrics").starts_with("HTTP/1.1 401"));
    server.signal("-TERM");
    assert_eq!(server.end().0, Some(0));
}

/// Serves a file with this in it, asks once, and returns the standard output and the log from beginning to end.
fn logged(settings: &str) -> (String, String) {
    let folder = TempDir::new().unwrap();
    let upstream = Responder::builder().spawn().unwrap();
    let listen = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let path = file(
        &folder,
        &format!(
            "[dns]\nlisten = [\"{listen}\"]\nupstreams = [\"tcp://{}\"]\nworkers = 1\n\
             [admin]\nlisten = \"none\"\n{settings}",
            upstream.addr()
        ),
    );
    let mut child = forebay(&["run", "-c", &path])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command runs");
    // At the level `error` nothing says when it is ready.
    let socket = client(listen);
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        // Until it listens, the kernel says that nobody does.
        let _ = socket.send(&query("one"));
        if socket.recv(&mut [0; 512]).is_ok() {
            break;
        }
        assert!(Instant::now() < deadline, "it does not answer");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    let (mut output, mut log) = (String::new(), String::new());
    child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{log}");
    (output, log)
}

#[test]
fn level_and_format_of_the_log_are_settings() {
    let log =
        |level: &str, format: &str| logged(&format!("[log]\nlevel = \"{level}\"\nformat = \"{format}\"\n")).1;
    assert_eq!(log("error", "text"), "");
    let (info, debug, json) = (log("info", "text"), log("debug", "text"), log("debug", "json"));
    assert!(info.contains("dns is ready") && !info.contains("connection made"), "{info}");
    assert!(debug.contains("dns is ready") && debug.contains("connection made"), "{debug}");
    let is_json = |line: &str| serde_json::from_str::<serde_json::Value>(line).is_ok();
    assert!(!info.lines().any(is_json), "{info}");
    assert!(json.contains("connection made") && json.lines().all(is_json), "{json}");
}

#[test]
fn a_query_log_may_go_to_the_standard_output() {
    assert_eq!(logged("").0, "");
    let (output, log) = logged("[dns.query_log]\npath = \"-\"\n");
    assert!(output.lines().any(|line| line.contains(r#""name":"one""#)), "{output}");
    assert!(!log.contains(r#""name":"one""#), "{log}");
}

#[test]
fn the_token_of_file_or_environment_opens_the_admin_endpoint() {
    let folder = TempDir::new().unwrap();
    let asked = |token: &str, environment: Option<&str>, header: &str| {
        let path = file(
            &folder,
            &format!(
                "[dns]\nlisten = [\"127.0.0.1:0\"]\nupstreams = [\"192.0.2.53\"]\n\
                 [admin]\nlisten = \"127.0.0.1:0\"\n{token}"
            ),
        );
        let mut command = forebay(&["run", "-c", &path]);
        command.envs(environment.map(|token| ("FOREBAY_ADMIN_TOKEN", token)));
        let server = Running::of(command);
        let admin = server.ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
        let answer = get(&admin, &format!("/metrics HTTP/1.1\r\n{header}X-Rest:"));
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    let token = "token = \"0123456789abcdef\"\n";
    assert_eq!(asked("", None, ""), "200");
    assert_eq!(asked(token, None, ""), "401");
    assert_eq!(asked(token, None, bearer), "200");
    assert_eq!(asked("", Some("0123456789abcdef"), ""), "401");
    assert_eq!(asked("", Some("0123456789abcdef"), bearer), "200");
    assert_eq!(asked(token, Some("another-token-of-length"), bearer), "200", "the file's wins");
}

#[test]
fn sigterm_answers_what_is_in_flight() {
    let script = Script { delay: Duration::from_millis(700), ..Script::default() };
    let upstream = Responder::builder().script(script).spawn().unwrap();
    let server = Running::start(&[
        "dns",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        &upstream.addr().to_string(),
        "--admin",
        "127.0.0.1:0",
    ]);
    let admin = server.ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let socket = client(server.listen);
    socket.send(&query("late")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while upstream.stats().udp_queries == 0 {
        assert!(Instant::now() < deadline, "the query does not reach the upstream");
        std::thread::sleep(Duration::from_millis(2));
    }
    server.signal("-TERM");
    while !get(&admin, "/readyz").starts_with("HTTP/1.1 503") {
        assert!(Instant::now() < deadline, "it does not drain");
        std::thread::sleep(Duration::from_millis(2));
    }
    let mut reply = [0; 512];
    socket.recv(&mut reply).expect("the query in flight is answered");
    assert_eq!((reply[0], reply[1], reply[3] & 15), (0xab, 0xcd, 0));
    let (code, log) = server.end();
    assert_eq!(code, Some(0));
    assert!(log.contains("SIGTERM") && log.contains("\"ended\""), "{log}");
}

#[test]
fn a_second_signal_ends_at_once() {
    let script = Script { drop: 1.0, ..Script::default() };
    let upstream = Responder::builder().script(script).spawn().unwrap();
    let server = Running::start(&[
        "dns",
        "--listen",
        "127.0.0.1:0",
        "--upstream",
        &upstream.addr().to_string(),
        "--admin",
        "127.0.0.1:0",
    ]);
    let admin = server.ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    client(server.listen).send(&query("never")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while upstream.stats().udp_queries == 0 {
        assert!(Instant::now() < deadline, "the query does not reach the upstream");
        std::thread::sleep(Duration::from_millis(2));
    }
    let began = Instant::now();
    server.signal("-INT");
    while !get(&admin, "/readyz").starts_with("HTTP/1.1 503") {
        assert!(Instant::now() < deadline, "it does not drain");
        std::thread::sleep(Duration::from_millis(2));
    }
    server.signal("-INT");
    let (code, log) = server.end();
    assert_eq!(code, Some(1));
    assert!(log.contains("ended at once"), "{log}");
    assert!(began.elapsed() < Duration::from_secs(3), "the query's own time-out is 4 s");
}

#[test]
fn the_demo_ends_with_a_summary() {
    let output = run(&["demo", "--duration", "2500ms", "--rate", "500", "--admin", "none"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for expected in [
        "try:   dig @127.0.0.1 -p ",
        " +tls anything.example",
        " +https)",
        "  or   curl http://127.0.0.1:",
        " q/s, ",
        " | http ",
        "forebay demo, ",
        " 0 wrong; ",
        " 0 failed, on ",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(!text.contains("admin:"), "{text}");
}

#[test]
fn benches_report_as_text_and_as_json() {
    let upstream = Responder::builder().spawn().unwrap();
    let target = upstream.addr().to_string();
    let bench = ["bench", "dns", "--target", &target, "--duration", "300ms", "--rate", "200", "--verify"];
    let json = run(&[&bench[..], &["--json"]].concat());
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&report["lost"], &report["wrong"]), (&0.into(), &0.into()), "{report}");
    assert!(report["answered"].as_u64().unwrap() > 10, "{report}");
    let text = String::from_utf8(run(&bench).stdout).unwrap();
    assert!(text.contains("lost") && text.contains("p99"), "{text}");
    let pool = run(&["bench", "pool", "--rounds", "1", "--pairs", "1000", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&pool.stdout).expect("JSON");
    assert!(report["one_task_ratio"].as_f64().unwrap() > 0.0, "{report}");
}

#[test]
fn the_three_claims_about_pooling_are_measured_with_and_without_a_pool() {
    let (echo, web) = (Backend::spawn(Serve::Echo), Backend::spawn(Serve::Http));
    let url = format!("http://{}/size/100", web.addr());
    let options = ["--pattern", "claims", "--clients", "8", "--pool", "4", "--duration", "1s"];
    for (what, target) in [("tcp", echo.addr().to_string()), ("http", url)] {
        let bench = [&["bench", what, &*target], &options[..]].concat();
        let output = run(&[&bench[..], &["--json"]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let claims = report["claims"].as_array().unwrap();
        assert_eq!(claims.len(), 3, "{report}");
        for claim in claims {
            let side = |name: &str, what: &str| claim[name][what].as_u64().unwrap();
            assert!(side("pool_off", "done") > 0 && side("pool_on", "done") > 0, "{claim}");
            assert_eq!((side("pool_off", "failed"), side("pool_on", "failed")), (0, 0), "{claim}");
            // Without a pool each has a connection of its own; with it there are no more than the pool has.
            assert!(side("pool_off", "connections_opened") >= side("pool_off", "done"), "{claim}");
            assert!(side("pool_on", "connections_opened") <= 4, "{claim}");
            assert!(claim["ratio"].as_f64().unwrap() > 0.0, "{claim}");
        }
        let text = String::from_utf8(run(&bench).stdout).unwrap();
        assert!(text.contains("pool off") && text.contains("with the pool"), "{text}");
    }
}

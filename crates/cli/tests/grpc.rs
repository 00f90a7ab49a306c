//! `forebay grpc serve` as its users meet it: arguments, metrics, signals.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn forebay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).stdin(Stdio::null()).env_remove("FOREBAY_ADMIN_TOKEN");
    command
}

/// A running server; killed when dropped.
struct Running {
    child: Child,
    log: BufReader<ChildStderr>,
    ready: serde_json::Value,
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut child = forebay(&["grpc", "serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            .args(args)
            .args(["--log-format", "json"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        let ready: serde_json::Value = serde_json::from_str(&line).expect("a line of the log is JSON");
        assert_eq!(ready["message"], "grpc is ready", "{line}");
        Self { child, log, ready }
    }

    fn listen(&self) -> SocketAddr {
        self.ready["listen"].as_str().unwrap().parse().unwrap()
    }

    fn admin(&self, path: &str) -> String {
        let address = self.ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap();
        let mut socket = TcpStream::connect(address).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

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

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags, 0, 0, 0, stream]);
    bytes.extend_from_slice(payload);
    bytes
}

/// A client that has begun a call of HTTP/2, by hand.
fn call(address: SocketAddr, method: &str, name: &str) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let path = format!("/greet.GreeterService/{method}");
    let mut block = Vec::new();
    for (field, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path.as_str()),
        (":authority", "x"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ] {
        block.extend([0, field.len() as u8]);
        block.extend_from_slice(field.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    let mut message = vec![0, 0, 0, 0, name.len() as u8 + 2, 0x0A, name.len() as u8];
    message.extend_from_slice(name.as_bytes());
    let request = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 1, 1, &message),
    ];
    socket.write_all(&request.concat()).unwrap();
    socket
}

/// Reads until this has come.
fn read_until(socket: &mut TcpStream, words: &str) {
    let mut read = Vec::new();
    while !read.windows(words.len()).any(|window| window == words.as_bytes()) {
        let mut buffer = [0; 4096];
        let n = socket.read(&mut buffer).unwrap();
        assert!(n > 0, "{words} does not come: {}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&buffer[..n]);
    }
}

#[test]
fn calls_are_served_and_counted_and_a_signal_lets_them_end() {
    let server = Running::start(&["--workers", "1", "--interval", "200ms", "--profile", "pprof"]);
    assert_eq!(
        (server.ready["profile"].as_str(), server.ready["workers"].as_u64()),
        (Some("pprof"), Some(1))
    );
    read_until(&mut call(server.listen(), "SayHello", "Ada"), "Hello Ada!");
    let mut row = call(server.listen(), "SayHelloStream", "Bo");
    read_until(&mut row, "Hello Bo! (1 of 5)");
    let metrics = server.admin("/metrics");
    for line in [
        "forebay_grpc_calls_total 2",
        "forebay_grpc_calls_ended_total{code=\"ok\"} 1",
        "forebay_grpc_in_flight 1",
        "forebay_grpc_accepted_total 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(!metrics.contains("forebay_dns_"), "{metrics}");
    assert!(server.admin("/readyz").starts_with("HTTP/1.1 200"));
    server.signal("-TERM");
    read_until(&mut row, "Hello Bo! (5 of 5)");
    // Its connection stays open, and its client does not know what a goodbye asks of it.
    drop(row);
    let (code, log) = server.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("draining") && log.contains("\"ended\""), "{log}");
}

#[test]
fn a_second_signal_ends_at_once_and_so_does_the_time_to_drain() {
    for (args, signals, code) in
        [(&["--interval", "1h"][..], 2, 1), (&["--interval", "1h", "--drain-timeout", "300ms"], 1, 0)]
    {
        let server = Running::start(args);
        let mut row = call(server.listen(), "SayHelloStream", "Bo");
        read_until(&mut row, "Hello Bo! (1 of 5)");
        for _ in 0..signals {
            server.signal("-TERM");
            std::thread::sleep(Duration::from_millis(100));
        }
        let (ended, log) = server.end();
        assert_eq!(ended, Some(code), "{log}");
    }
}

#[test]
fn wrong_usage_is_told() {
    for (args, words) in [
        (&["grpc", "serve", "--listen", "nowhere"][..], "error: --listen: `nowhere` is no address"),
        (&["grpc", "serve", "--profile", "fast"], "main, pprof"),
        (
            &[
                "grpc",
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "none",
                "--tls-cert",
                "/no",
                "--tls-key",
                "/no",
            ],
            "error: --tls-cert: ",
        ),
        (&["grpc"], "Usage"),
    ] {
        let output = forebay(args).output().unwrap();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{message}");
        assert!(message.contains(words), "{args:?}: {message}");
    }
    let help = forebay(&["grpc", "serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for option in ["--profile", "--tls-cert", "--age-max", "--drain-timeout", "--admin", "pprof"] {
        assert!(help.contains(option), "{help}");
    }
}

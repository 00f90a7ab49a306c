//! `forebay top` as its users meet it, where there is no terminal.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};
use std::thread;

use forebay_bench::ports::free_port;
use forebay_bench::responder::Responder;
use tempfile::TempDir;

const TOKEN: &str = "0123456789abcdef";

fn forebay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(args).stdin(Stdio::null()).env_remove("FOREBAY_ADMIN_TOKEN");
    command
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A forwarder with an admin endpoint; killed when dropped.
struct Running {
    child: Child,
    admin: String,
    upstream: Responder,
}

impl Running {
    fn start(token: Option<&str>) -> Self {
        let (upstream, admin) = (Responder::builder().spawn().unwrap(), format!("127.0.0.1:{}", free_port()));
        let listen = format!("127.0.0.1:{}", free_port());
        let mut command = forebay(&["dns", "--listen", &listen, "--upstream", &upstream.addr().to_string()]);
        command.args(["--admin", &admin, "--workers", "1", "--log-format", "json"]);
        if let Some(token) = token {
            command.env("FOREBAY_ADMIN_TOKEN", token);
        }
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains("dns is ready") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
        }
        // What it says later must not stop it.
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Self { child, admin, upstream }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn one_frame_shows_the_pools_of_a_running_forebay() {
    let server = Running::start(None);
    let args = ["top", &server.admin, "--once", "--interval", "200ms"];
    let output = forebay(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    for expected in [
        format!("at http://{}, up ", server.admin),
        format!("udp://{}", server.upstream.addr()),
        format!("forebay {} at", env!("CARGO_PKG_VERSION")),
        "default".to_owned(),
        "acq/s".to_owned(),
        "MiB".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected} is not in\n{text}");
    }
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    let wide = forebay(&[&args[..], &["--width", "180", "--height", "12"]].concat()).output().unwrap();
    let text = String::from_utf8(wide.stdout).unwrap();
    assert!(text.contains("last error") && text.lines().count() <= 12, "{text}");
}

#[test]
fn a_token_is_taken_from_the_environment_or_a_file() {
    let server = Running::start(Some(TOKEN));
    let args = ["top", &server.admin, "--once", "--interval", "100ms"];
    let none = forebay(&args).output().unwrap();
    assert_eq!(none.status.code(), Some(1));
    let message = format!("error: http://{} wants a token: set FOREBAY_ADMIN_TOKEN\n", server.admin);
    assert_eq!(told(&none), message);
    let wrong = forebay(&args).env("FOREBAY_ADMIN_TOKEN", "fedcba9876543210").output().unwrap();
    assert!(told(&wrong).contains("refuses the token"), "{}", told(&wrong));
    let right = forebay(&args).env("FOREBAY_ADMIN_TOKEN", TOKEN).output().unwrap();
    assert_eq!(right.status.code(), Some(0), "{}", told(&right));
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let from_file = forebay(&args).arg("--token-file").arg(&file).output().unwrap();
    assert_eq!(from_file.status.code(), Some(0), "{}", told(&from_file));
    let missing = forebay(&args).args(["--token-file", "/nowhere/token"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(told(&missing).starts_with("error: --token-file: cannot read /nowhere/token: No such file"));
}

#[test]
fn what_is_not_there_or_no_forebay_is_a_clear_line() {
    let nobody = format!("127.0.0.1:{}", free_port());
    let output = forebay(&["top", &nobody, "--once"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let message = told(&output);
    assert!(
        message.starts_with(&format!("error: http://{nobody} cannot be reached: Connection refused")),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let other = listener.local_addr().unwrap().to_string();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).unwrap() > 0);
        stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let output = forebay(&["top", &other, "--once"]).output().unwrap();
    server.join().unwrap();
    let message = format!("error: http://{other} is no forebay: it answers 404 to /pools\n");
    assert_eq!((output.status.code(), told(&output)), (Some(1), message));
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let server = Running::start(None);
    let output = forebay(&["top", &server.admin]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(told(&output).contains("take --once for one frame as text"), "{}", told(&output));
    for (args, expected) in [
        (&["top", "https://127.0.0.1:1"][..], "plain HTTP"),
        (&["top", "--interval", "1ms"], "100ms to 3600s are possible"),
        (&["top", "--width", "100"], "--once"),
        (&["top", "--admin", "none"], "are for servers"),
    ] {
        let output = forebay(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(told(&output).contains(expected), "{args:?}: {}", told(&output));
    }
}

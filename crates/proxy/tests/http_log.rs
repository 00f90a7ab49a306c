//! The access log of requests: a proxy, scripted backends and clients in one process, and what the file says after.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{AccessLogFormat, CheckKind, Mode, ProxyConfig, Server, Settings, start};
use http::Request;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

struct Logged {
    server: Server,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Logged {
    fn new(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut settings = Settings {
            name: Some("web".to_owned()),
            mode: Mode::Http,
            listen: vec!["127.0.0.1:0".to_owned()],
            backends: backends.iter().map(ToString::to_string).collect(),
            workers: 1,
            ..Settings::default()
        };
        settings.health.check = CheckKind::None;
        settings.access_log.path = path.display().to_string();
        change(&mut settings);
        let server = start(ProxyConfig::new(&settings, 1).unwrap()).unwrap();
        Self { server, path, _dir: dir }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.server.local_addrs()[0].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Says something, and returns all that comes back until the proxy ends.
    fn ask(&self, what: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect();
        stream.write_all(what.as_ref()).unwrap();
        let mut answer = Vec::new();
        // What comes before a reset is an answer, too.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits for so many lines, and returns them.
    fn lines(&self, count: usize) -> Vec<String> {
        lines(&self.path, count)
    }

    /// The same, while other tasks of this thread go on.
    async fn lines_later(&self, count: usize) -> Vec<String> {
        let path = self.path.clone();
        tokio::task::spawn_blocking(move || lines(&path, count)).await.unwrap()
    }

    /// Ends the proxy, and returns what was written.
    fn end(self) -> Vec<String> {
        drop(self.server);
        lines(&self.path, 0)
    }
}

fn lines(path: &Path, count: usize) -> Vec<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<_> = text.lines().map(str::to_owned).collect();
        if lines.len() >= count {
            return lines;
        }
        assert!(Instant::now() < until, "{count} lines, not {lines:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns a value of a JSON line, as it is written there.
fn value<'a>(line: &'a str, name: &str) -> &'a str {
    let key = format!(r#""{name}":"#);
    let rest = line.split_once(&key).unwrap_or_else(|| panic!("{name} in {line}")).1;
    let end = match rest.strip_prefix('"') {
        Some(text) => text.find('"').unwrap() + 2,
        None => rest.find([',', '}']).unwrap(),
    };
    &rest[..end]
}

fn number(line: &str, name: &str) -> u64 {
    value(line, name).parse().unwrap_or_else(|_| panic!("{name} in {line}"))
}

const SECRETS: &str = "Authorization: Bearer hidden-token\r\nCookie: session=hidden-cookie\r\n\
                       Proxy-Authorization: Basic hidden-proxy\r\nX-Api-Key: hidden-key\r\n";

#[test]
fn each_request_is_a_line_and_each_part_of_it_is_true() {
    let backend = Backend::spawn(Serve::Http);
    let logged = Logged::new(&[backend.addr()], |settings| settings.http.request_id = true);
    let mut client = logged.connect();
    let own = client.local_addr().unwrap();
    let mut ask = |what: &str, wanted: &str| {
        client.write_all(what.as_bytes()).unwrap();
        let mut answer = String::new();
        // A head ends as what is wanted may, too.
        let is_whole = |answer: &str| {
            answer.split_once("\r\n\r\n").is_some_and(|(_, body)| !body.is_empty() && body.ends_with(wanted))
        };
        while !is_whole(&answer) {
            let mut buffer = [0; 4096];
            let n = client.read(&mut buffer).unwrap();
            assert!(n > 0, "{answer}");
            answer.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
        answer
    };
    let told = ask(
        &format!(
            "GET /head?a=b HTTP/1.1\r\nHost: one.test\r\nReferer: http://x/\r\nUser-Agent: some/1\r\n{SECRETS}\r\n"
        ),
        "\r\n\r\n",
    );
    ask("GET /delay/150 HTTP/1.1\r\nHost: one.test\r\n\r\n", "ok");
    logged.ask("POST /size/7 HTTP/1.0\r\nHost: one.test\r\nContent-Length: 5\r\n\r\nhello");
    let lines = logged.lines(3);
    assert_eq!(lines.len(), 3, "{lines:?}");
    for (line, wanted) in lines.iter().zip([
        ("proxy", r#""web""#),
        ("client", r#""127.0.0.1""#),
        ("host", r#""one.test""#),
        ("status", "200"),
    ]) {
        assert_eq!(value(line, wanted.0), wanted.1, "{line}");
    }
    let first = &lines[0];
    assert_eq!(number(first, "port"), u64::from(own.port()));
    for (name, wanted) in [
        ("method", r#""GET""#),
        ("target", r#""/head?a=b""#),
        ("version", r#""HTTP/1.1""#),
        ("referer", r#""http://x/""#),
        ("user_agent", r#""some/1""#),
        ("reused", "false"),
        ("tries", "1"),
        ("bytes_up", "0"),
        ("end", r#""whole""#),
    ] {
        assert_eq!(value(first, name), wanted, "{first}");
    }
    assert_eq!(value(first, "backend"), format!("\"{}\"", backend.addr()));
    // The id is the one that the backend was told; the body is as long as what came.
    let id = value(first, "request_id").trim_matches('"');
    assert!(id.len() == 32 && told.contains(&format!("X-Request-ID: {id}\r\n")), "{told}");
    let body = told.split_once("\r\n\r\n").unwrap().1;
    assert_eq!(number(first, "bytes_down"), body.len() as u64, "{told}");
    assert!(lines.iter().all(|line| !line.contains("hidden")), "{lines:?}");

    let second = &lines[1];
    assert_eq!(value(second, "reused"), "true", "{second}");
    assert!((140_000..5_000_000).contains(&number(second, "head_us")), "{second}");
    assert!(number(second, "took_us") >= number(second, "head_us"), "{second}");
    assert_eq!(value(second, "user_agent"), "null");
    assert_ne!(value(second, "request_id"), value(first, "request_id"));

    let third = &lines[2];
    assert_eq!((number(third, "bytes_up"), number(third, "bytes_down")), (5, 7), "{third}");
    assert_eq!((value(third, "method"), value(third, "version")), (r#""POST""#, r#""HTTP/1.0""#));
    assert_eq!(logged.end().len(), 3);
}

#[test]
fn how_a_request_ended_is_told() {
    let backend = Backend::spawn(Serve::Http);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let logged = Logged::new(&[backend.addr()], |settings| {
        settings.http.response_timeout = "200ms".parse().unwrap();
        settings.http.body_timeout = "200ms".parse().unwrap();
        settings.http.retries = false;
        settings.health.ejection = "10ms".parse().unwrap();
    });
    let mut count = 0;
    let mut told = |what: &str, status: &str, end: &str| {
        logged.ask(what);
        count += 1;
        let lines = logged.lines(count);
        let line = &lines[count - 1];
        let found = (value(line, "status"), value(line, "end").trim_matches('"'));
        assert_eq!(found, (status, end), "{what}: {line}");
        line.clone()
    };
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    told(&get("/"), "200", "whole");
    told(&get("/status/404"), "404", "whole");
    let line = told(&get("/hang-up"), "502", "backend_failed");
    assert_eq!(value(&line, "head_us"), "null", "{line}");
    told(&get("/short/1000"), "200", "backend_failed");
    told(&get("/wrong/no-http"), "502", "backend_failed");
    told(&get("/hang"), "504", "backend_late");
    let slow = "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\nslow";
    let line = told(slow, "408", "client_late");
    assert_eq!(number(&line, "bytes_up"), 4, "{line}");
    let line = told("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", "refused");
    assert_eq!((value(&line, "method"), value(&line, "backend")), ("null", "null"), "{line}");
    assert!(number(&line, "bytes_down") > 0, "{line}");
    told("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: wonders\r\n\r\n", "417", "refused");
    let mut left = logged.connect();
    left.write_all(b"GET /delay/5000 HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    drop(left);
    count += 1;
    let lines = logged.lines(count);
    assert_eq!(value(&lines[count - 1], "end"), r#""client_left""#, "{lines:?}");
    drop(logged);

    let nobody = Logged::new(&[deaf], |_| {});
    nobody.ask(get("/"));
    let line = &nobody.lines(1)[0];
    assert_eq!((value(line, "status"), value(line, "end")), ("503", r#""refused""#), "{line}");
    assert_eq!((value(line, "backend"), value(line, "tries")), ("null", "1"), "{line}");
}

#[test]
fn what_is_in_flight_when_the_proxy_ends_is_a_line() {
    let backend = Backend::spawn(Serve::Http);
    let logged = Logged::new(&[backend.addr()], |_| {});
    let mut client = logged.connect();
    client.write_all(b"GET /hang HTTP/1.1\r\nHost: test\r\n\r\n").unwrap();
    let until = Instant::now() + PATIENCE;
    while backend.stats().requests == 0 {
        assert!(Instant::now() < until, "the request reaches the backend");
        std::thread::sleep(Duration::from_millis(5));
    }
    let lines = logged.end();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((value(&lines[0], "status"), value(&lines[0], "end")), ("null", r#""cut""#));
}

#[test]
fn a_tunnel_is_a_line_with_its_bytes() {
    let backend = Backend::spawn(Serve::Http);
    let logged = Logged::new(&[backend.addr()], |_| {});
    let mut client = logged.connect();
    client
        .write_all(b"GET /upgrade HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    client.write_all(b"twelve bytes").unwrap();
    client.read_exact(&mut [0; 12]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let _ = client.read_to_end(&mut Vec::new());
    let line = &logged.lines(1)[0];
    assert_eq!((value(line, "status"), value(line, "end")), ("101", r#""whole""#), "{line}");
    assert_eq!((number(line, "bytes_up"), number(line, "bytes_down")), (12, 12), "{line}");
}

#[test]
fn no_client_writes_a_line_of_its_own_or_commands_for_a_terminal() {
    let backend = Backend::spawn(Serve::Http);
    for format in [AccessLogFormat::Json, AccessLogFormat::Text] {
        let logged = Logged::new(&[backend.addr()], |settings| settings.access_log.format = format);
        let hostile = "x\" 200 1 \"-\" \\ \u{9b}2J é\t\u{202e}";
        logged.ask(format!(
            "GET /\"';DROP HTTP/1.1\r\nHost: test\r\nReferer: {hostile}\r\nUser-Agent: {hostile}\r\nConnection: close\r\n\r\n"
        ));
        logged.ask(format!(
            "GET /ok HTTP/1.1\r\nHost: test\r\nUser-Agent: {hostile}\r\nConnection: close\r\n\r\n"
        ));
        // Bytes that no head may have are refused, and not repeated.
        logged.ask(b"GET /\x1b[2J\0 HTTP/1.1\r\nHost: evil\nGET / HTTP/1.1\r\n\r\n");
        let lines = logged.lines(3);
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains(char::is_control)), "{lines:?}");
        assert!(!lines[2].contains("evil"), "{lines:?}");
        if format == AccessLogFormat::Text {
            assert!(lines[1].contains(r#""x\x22 200 1 \x22-\x22 \x5c \xc2\x9b2J \xc3\xa9"#), "{lines:?}");
            assert!(lines.iter().all(|line| line.matches('"').count() == 10), "{lines:?}");
            assert!(lines[1].starts_with("127.0.0.1 - - ["), "{lines:?}");
        } else {
            assert!(lines[1].contains(r#""x\" 200 1 \"-\" \\ \u009b2J é"#), "{lines:?}");
        }
    }
}

#[test]
fn a_connection_that_asks_nothing_is_no_line() {
    let backend = Backend::spawn(Serve::Http);
    let logged = Logged::new(&[backend.addr()], |_| {});
    drop(logged.connect());
    logged.ask("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
    assert_eq!(logged.end().len(), 1);
}

#[tokio::test]
async fn each_stream_of_http2_is_a_line() {
    let backend = Backend::spawn(Serve::Http);
    let logged = Logged::new(&[backend.addr()], |_| {});
    let stream = tokio::net::TcpStream::connect(logged.server.local_addrs()[0].address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    for path in ["/size/70", "/status/404"] {
        let request = Request::get(format!("http://two.test{path}"))
            .header("user-agent", "two/2")
            .header("authorization", "hidden")
            .body(())
            .unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let mut body = tokio::time::timeout(PATIENCE, response).await.unwrap().unwrap().into_body();
        while let Some(piece) = body.data().await {
            body.flow_control().release_capacity(piece.unwrap().len()).unwrap();
        }
    }
    // One that its client breaks off, and one that it leaves behind.
    let hang = || Request::get("http://two.test/hang").body(()).unwrap();
    let (response, mut sending) = client.send_request(hang(), false).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    sending.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(value(&logged.lines_later(3).await[2], "end"), r#""client_left""#);
    let (response, _sending) = client.send_request(hang(), false).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    connection.abort();
    let lines = logged.lines_later(4).await;
    drop(response);
    assert_eq!(value(&lines[3], "end"), r#""client_left""#, "{lines:?}");
    for (line, status, down) in [(&lines[0], 200, 70), (&lines[1], 404, 2)] {
        assert_eq!((number(line, "status"), number(line, "bytes_down")), (status, down), "{line}");
        assert_eq!((value(line, "version"), value(line, "end")), (r#""HTTP/2.0""#, r#""whole""#), "{line}");
        assert_eq!((value(line, "host"), value(line, "user_agent")), (r#""two.test""#, r#""two/2""#));
        assert!(!line.contains("hidden"));
    }
    assert_eq!(value(&lines[1], "reused"), "true", "{lines:?}");
}

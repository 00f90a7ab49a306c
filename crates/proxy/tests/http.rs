//! Requests of HTTP/1.1 from end to end: a proxy, scripted backends and clients in one process.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use forebay_bench::backend::http::{Step, WRONG};
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{Mode, PoolMode, ProxyConfig, ProxyFigures, ReuseName, Server, Settings, start};
use forebay_proxy_core::http1::{
    Body, BodyReader, Limits, Method, Part, ResponseHead, TrailerLimits, response_body,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

fn proxy(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 1,
        ..Settings::default()
    };
    change(&mut settings);
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

fn backend() -> Backend {
    Backend::spawn(Serve::Http)
}

/// A proxy before one backend.
fn pair() -> (Server, Backend) {
    let backend = backend();
    (proxy(&[backend.addr()], |_| {}), backend)
}

fn figures(server: &Server) -> ProxyFigures {
    server.handle().figures()
}

/// What a client is answered.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
    /// Whether the body ended as its framing says.
    is_whole: bool,
}

impl Answer {
    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The number of the backend's connection, and of the request on it.
    fn stamp(&self) -> (u64, u64) {
        let number = |name| self.field(name).unwrap_or_else(|| panic!("{name} in {self:?}")).parse().unwrap();
        (number("Backend-Connection"), number("Backend-Request"))
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A client that reads what comes by the same strict rules.
struct Client {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Client {
    fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    fn send(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(text.as_ref()).unwrap();
        self
    }

    fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).answer(Method::Get)
    }

    fn more(&mut self) -> bool {
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(n) => {
                self.read.extend_from_slice(&buffer[..n]);
                n > 0
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn answer(&mut self, asked: Method) -> Answer {
        let mut head = ResponseHead::default();
        let len = loop {
            if let Some(len) = head.parse(&self.read, &Limits::default()).expect("a head from the proxy") {
                break len;
            }
            assert!(self.more(), "no answer, but {:?}", String::from_utf8_lossy(&self.read));
        };
        let text = String::from_utf8(self.read.drain(..len).collect()).unwrap();
        let framing = match head.status() {
            100..200 => Body::None,
            _ => response_body(asked, &head),
        };
        let mut reader = BodyReader::new(framing);
        let mut body = Vec::new();
        let mut is_whole = true;
        let mut has_more = framing != Body::None;
        while has_more {
            let (len, part) =
                reader.read(&self.read, &TrailerLimits::default()).expect("a body from the proxy");
            let data = match &part {
                Part::Data(range) => self.read[range.clone()].to_vec(),
                _ => Vec::new(),
            };
            body.extend_from_slice(&data);
            self.read.drain(..len);
            has_more = part != Part::End;
            if part == Part::More && !self.more() {
                is_whole = reader.handle_end().is_ok();
                has_more = false;
            }
        }
        let trailers = reader.take_trailers().map_or(Vec::new(), |trailers| {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            trailers.iter().map(|(name, value)| (text(name), text(value))).collect()
        });
        Answer { status: head.status(), head: text, body, trailers, is_whole }
    }

    /// Whether the proxy has ended the connection, with nothing before it.
    fn is_ended(&mut self) -> bool {
        self.read.is_empty() && !self.more()
    }
}

/// Asks once, on a connection of its own.
fn ask(server: &Server, text: impl AsRef<[u8]>) -> Answer {
    Client::new(server).send(text).answer(Method::Get)
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_request_is_answered_by_the_backend() {
    let (server, _backend) = pair();
    let answer = Client::new(&server).get("/");
    assert_eq!((answer.status, answer.text(), answer.stamp()), (200, "ok", (1, 1)));
}

#[test]
fn requests_of_one_client_and_of_others_share_a_connection() {
    let (server, backend) = pair();
    for _ in 0..5 {
        let mut client = Client::new(&server);
        for _ in 0..5 {
            assert_eq!(client.get("/").status, 200);
        }
    }
    assert_eq!((backend.stats().connections, backend.stats().requests), (1, 25));
    assert_eq!((figures(&server).requests, figures(&server).retries), (25, 0));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let text: String = (1..=50)
        .map(|n| match n % 3 {
            0 => format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{n:03}"),
            1 => format!(
                "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{n:03}\r\n0\r\n\r\n"
            ),
            _ => format!("GET /size/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        })
        .collect();
    client.send(text);
    for n in 1..=50 {
        let answer = client.answer(Method::Get);
        match n % 3 {
            2 => assert_eq!(answer.body.len(), n),
            _ => assert_eq!(answer.text(), format!("{n:03}")),
        }
    }
}

#[test]
fn bodies_of_every_framing_pass_whole() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    for size in [0, 1, 4095, 65536, 3_000_000] {
        for path in
            [format!("/size/{size}"), format!("/chunked/{size}/777"), format!("/close-delimited/{size}")]
        {
            let answer = client.get(&path);
            assert!(answer.is_whole && answer.body.len() == size, "{path}: {}", answer.body.len());
        }
    }
    assert_eq!(figures(&server).failed_backend, 0);
    assert!(backend.stats().connections > 4, "a close-delimited response ends its connection");
}

#[test]
fn a_long_request_body_streams_through_both_ways() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let body: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 253) as u8).collect();
    let mut writer = client.stream.try_clone().unwrap();
    let sent = body.clone();
    let writing = thread::spawn(move || {
        write!(writer, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    let answer = client.answer(Method::Post);
    writing.join().unwrap();
    assert!(answer.is_whole && answer.body == body);
    assert_eq!(client.get("/").status, 200, "and the connection lasts");
}

#[test]
fn trailers_pass_to_those_who_take_them_and_to_nobody_else() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let answer = client
        .send("GET /trailers/10 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        .answer(Method::Get);
    assert_eq!(answer.trailers.len(), 2, "{answer:?}");
    let answer = client.get("/trailers/10");
    assert!(answer.is_whole && answer.trailers.is_empty());
}

#[test]
fn a_client_of_http_1_0_gets_what_it_understands() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    let answer = client.send("GET /chunked/100/7 HTTP/1.0\r\n\r\n").answer(Method::Get);
    assert_eq!((answer.body.len(), answer.field("Transfer-Encoding")), (100, None));
    assert_eq!(answer.field("Connection"), Some("close"));
    let mut client = Client::new(&server);
    for _ in 0..3 {
        let answer =
            client.send("GET /size/9 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer(Method::Get);
        assert_eq!((answer.body.len(), answer.field("Connection")), (9, Some("keep-alive")));
    }
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn a_head_request_has_no_body_and_keeps_its_connection() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    let answer = client.send("HEAD /status/204 HTTP/1.1\r\nHost: a\r\n\r\n").answer(Method::Head);
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(client.get("/").status, 200);
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn interim_responses_reach_the_client() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    client.send("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(Method::Get).status, 103);
    assert_eq!(client.answer(Method::Get).status, 200);
    client.send("POST /continue HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer(Method::Post).status, 100);
    client.send("hello");
    assert_eq!(client.answer(Method::Post).status, 200);
    assert_eq!(
        ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: tea\r\n\r\n").status,
        417
    );
}

#[test]
fn hop_by_hop_fields_stay_behind_and_the_backend_learns_of_the_client() {
    let (server, _backend) = pair();
    let text = "GET /head HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\nProxy-Connection: close\r\nX-Forwarded-For: 9.9.9.9\r\nOther: 2\r\n\r\n";
    let answer = ask(&server, text);
    let head = answer.text();
    for gone in ["Connection", "X-Mine", "Keep-Alive", "9.9.9.9"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    for there in [
        "Other: 2\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
        "X-Forwarded-Proto: http\r\n",
        "X-Forwarded-Host: a\r\n",
    ] {
        assert!(head.contains(there), "{there} in {head}");
    }
}

#[test]
fn each_setting_of_what_backends_are_told_shows() {
    let backend = backend();
    let head = |change: fn(&mut Settings)| {
        let server = proxy(&[backend.addr()], change);
        let answer = ask(&server, "GET /head HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n");
        (answer.text().to_owned(), answer.field("Via").map(ToOwned::to_owned))
    };
    assert!(!head(|settings| settings.http.x_forwarded = false).0.contains("X-Forwarded"));
    assert!(
        head(|settings| settings.http.forwarded = true)
            .0
            .contains("Forwarded: for=127.0.0.1;host=\"a\";proto=http\r\n")
    );
    assert!(head(|settings| settings.http.trust_forwarded = true).0.contains("9.9.9.9"));
    assert!(head(|settings| settings.http.request_id = true).0.contains("X-Request-ID: "));
    let (text, via) = head(|settings| settings.http.via = Some("fb".to_owned()));
    assert!(text.contains("Via: 1.1 fb\r\n"));
    assert_eq!(via.as_deref(), Some("1.1 fb"));
}

#[test]
fn a_client_that_closes_does_not_close_the_backends_connection() {
    let (server, backend) = pair();
    for _ in 0..5 {
        let mut client = Client::new(&server);
        let answer =
            client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").answer(Method::Get);
        assert_eq!(answer.field("Connection"), Some("close"));
        assert!(client.is_ended());
    }
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn smuggled_requests_are_refused_with_the_right_status_and_harm_nobody() {
    let (server, backend) = pair();
    let mut other = Client::new(&server);
    assert_eq!(other.get("/").status, 200);
    for (fields, status) in [
        ("Host: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /bad", 400),
        ("Host: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
        ("Host: a\r\nContent-Length: 4, 4\r\n\r\nabcd", 400),
        ("Host: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
        ("Host: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        ("Host: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        ("Host: a\r\nA: b\r\n c\r\n\r\n", 400),
        ("Host: a\r\nA: b\rc\r\n\r\n", 400),
        ("Host: a\r\nA: b\nC: d\r\n\r\n", 400),
        ("Host: a\r\nA: \0\r\n\r\n", 400),
        ("Host: a\r\nHost: b\r\n\r\n", 400),
        ("\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n5;\n\r\nhello\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", 400),
        ("Host: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", 400),
    ] {
        let mut client = Client::new(&server);
        let answer = client.send(format!("POST / HTTP/1.1\r\n{fields}")).answer(Method::Post);
        assert_eq!(answer.status, status, "{fields:?}");
        assert!(client.is_ended(), "{fields:?}");
        let after = other.get("/size/5");
        assert_eq!((after.status, after.body.len()), (200, 5), "after {fields:?}");
    }
    for (text, status) in [
        (format!("GET /{} HTTP/1.1\r\n", "a".repeat(9000)), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(40_000)), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(101)), 431),
        ("GET / HTTP/2.0\r\n\r\n".to_owned(), 505),
        ("\x16\x03\x01\x02".to_owned(), 400),
    ] {
        assert_eq!(ask(&server, &text).status, status, "{:?}", text.get(..30));
    }
    assert_eq!(figures(&server).requests_failed, 0);
    assert!(
        backend.requests_per_connection().iter().sum::<u64>() < 25,
        "none of them reached the backend whole"
    );
}

#[test]
fn limits_of_heads_are_those_of_the_settings() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.head_size_max.bytes = 1024;
        settings.http.fields_max = 8;
    });
    assert_eq!(
        ask(&server, format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(1024))).status,
        431
    );
    assert_eq!(
        ask(&server, format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(8))).status,
        431
    );
}

#[test]
fn a_backend_that_breaks_the_rules_is_a_bad_gateway_and_its_connection_is_not_kept() {
    let (server, backend) = pair();
    for (kind, _) in WRONG {
        let answer = ask(&server, format!("GET /wrong/{kind} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let is_broken_off = answer.status == 200 && !answer.is_whole;
        assert!(answer.status == 502 || is_broken_off || kind.starts_with("chunk-"), "{kind}: {answer:?}");
        if answer.status == 502 {
            assert!(
                answer.text().contains("look at the backend")
                    && answer.text().contains(&backend.addr().to_string())
            );
        }
        assert_eq!(Client::new(&server).get("/").stamp().1, 1, "{kind}: a connection was reused");
        backend.close_connections();
    }
}

#[test]
fn no_connection_is_reused_that_its_backend_will_close_or_has_said_too_much_on() {
    for path in
        ["/close", "/http10", "/close-delimited/5", "/extra", "/early-close", "/close-silently", "/extra/1"]
    {
        let (server, _backend) = pair();
        let mut client = Client::new(&server);
        let first = client.get(path);
        thread::sleep(Duration::from_millis(30));
        let second = client.get("/");
        assert_eq!((second.status, second.text()), (200, "ok"), "{path}");
        assert_ne!(first.stamp().0, second.stamp().0, "{path}");
    }
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    assert_eq!(client.get("/http10-keep").stamp().0, client.get("/").stamp().0);
}

#[test]
fn a_response_that_ends_early_is_broken_off_and_never_looks_whole() {
    let (server, _backend) = pair();
    for path in ["/short/1000", "/short-chunked/1000", "/short-reset/100000"] {
        let answer = Client::new(&server).get(path);
        assert!(answer.status == 502 || !answer.is_whole, "{path}: {answer:?}");
    }
    assert_eq!(figures(&server).failed_backend, 3);
}

#[test]
fn a_request_is_sent_again_only_if_it_may_be_and_its_connection_was_reused() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    for path in ["/hang-up?reused", "/reset?reused"] {
        assert_eq!(client.get("/").status, 200);
        let answer = client.get(path);
        assert_eq!((answer.status, answer.stamp().1), (200, 1), "on a new connection");
    }
    assert_eq!(figures(&server).retries, 2);
    // It may have done what it was asked for.
    let post = "POST /hang-up?reused HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(client.send(post).answer(Method::Post).status, 502);
    assert_eq!(client.get("/hang-up").status, 502, "nor on a connection that was new");
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| settings.http.retries = false);
    let mut client = Client::new(&server);
    assert_eq!(client.get("/").status, 200);
    assert_eq!(client.get("/hang-up?reused").status, 502);
}

#[test]
fn the_first_request_of_a_client_goes_on_a_used_connection_as_the_policy_says() {
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n";
    for (reuse, posts, gets) in [
        (ReuseName::Never, 4, 4),
        (ReuseName::Safe, 4, 1),
        (ReuseName::Aggressive, 3, 1),
        (ReuseName::Always, 1, 1),
    ] {
        let count = |text: &str| {
            let backend = backend();
            let server = proxy(&[backend.addr()], |settings| settings.http.reuse = reuse);
            let clients: Vec<_> = (0..4)
                .map(|_| {
                    let mut client = Client::new(&server);
                    (0..3).for_each(|_| assert_eq!(client.send(text).answer(Method::Post).status, 200));
                    client
                })
                .collect();
            drop(clients);
            backend.stats().connections
        };
        assert_eq!(count("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), gets, "{reuse:?}");
        let found = count(post);
        assert!(found == posts || reuse == ReuseName::Aggressive && found < 4, "{reuse:?}: {found}");
    }
}

#[test]
fn a_connection_that_is_authenticated_is_given_to_no_other_client() {
    for path in ["/negotiate", "/ntlm"] {
        let (server, backend) = pair();
        let mut client = Client::new(&server);
        let answer = client.get(path);
        assert_eq!(answer.status, 401);
        assert_eq!(client.get("/").stamp().0, answer.stamp().0, "the client keeps it");
        assert_ne!(Client::new(&server).get("/").stamp().0, answer.stamp().0);
        assert_eq!(client.get("/").stamp().0, answer.stamp().0);
        drop(client);
        eventually("it ends with its client", || backend.stats().connections_open == 1);
    }
}

#[test]
fn a_tunnel_opens_only_after_the_backend_agrees() {
    let (server, backend) = pair();
    let upgrade = "Host: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut client = Client::new(&server);
    // Bytes that come before the answer are the tunnel's.
    let answer = client.send(format!("GET /upgrade HTTP/1.1\r\n{upgrade}hello")).answer(Method::Get);
    assert_eq!((answer.status, answer.field("Upgrade")), (101, Some("websocket")));
    client.send(" world");
    client.stream.shutdown(Shutdown::Write).unwrap();
    while client.more() {}
    assert_eq!(client.read, b"hello world", "half an end is passed on");
    // Refused: the bytes are a request, and a bad one.
    let mut client = Client::new(&server);
    let answer = client.send(format!("GET / HTTP/1.1\r\n{upgrade}\x01\x02")).answer(Method::Get);
    assert_eq!(answer.status, 200);
    assert_eq!(client.answer(Method::Get).status, 400);
    // With a body, it is no upgrade.
    let text = "POST /upgrade HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nab";
    assert_eq!(ask(&server, text).status, 426);
    assert_eq!(figures(&server).tunnels, 1);
    assert_eq!(Client::new(&server).get("/").status, 200);
    eventually("the tunnel's connection is gone", || backend.stats().connections_open <= 1);
}

#[test]
fn connect_is_a_tunnel_after_2xx_alone() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let answer =
        client.send("CONNECT refuse:443 HTTP/1.1\r\nHost: refuse:443\r\n\r\n").answer(Method::Connect);
    assert_eq!(answer.status, 403);
    assert_eq!(client.get("/").status, 200, "what was refused stays HTTP");
    let answer = client.send("CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\nhello").answer(Method::Connect);
    assert_eq!(answer.status, 200);
    client.stream.shutdown(Shutdown::Write).unwrap();
    while client.more() {}
    assert_eq!(client.read, b"hello");
}

#[test]
fn an_early_answer_reaches_the_client_and_what_is_left_of_the_request_is_never_a_request() {
    let (server, backend) = pair();
    for path in ["/early", "/early-close"] {
        let mut client = Client::new(&server);
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        ));
        let answer = client.answer(Method::Post);
        assert_eq!((answer.status, answer.field("Connection")), (413, Some("close")), "{path}");
        assert!(client.is_ended());
    }
    assert_eq!(Client::new(&server).get("/").stamp().1, 1, "an unfinished request spoils its connection");
    assert_eq!(backend.stats().requests, 3);
}

#[test]
fn a_client_that_leaves_takes_its_exchange_with_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = proxy(&[listener.local_addr().unwrap()], |_| {});
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"] {
        let mut client = Client::new(&server);
        client.send("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n");
        let (mut backend, _) = listener.accept().unwrap();
        backend.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 1024];
        assert!(backend.read(&mut buffer).unwrap() > 0);
        backend.write_all(answer.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(client);
        assert!(matches!(backend.read(&mut buffer), Ok(0) | Err(_)), "the backend's connection is closed");
    }
    eventually("it is the client's doing", || figures(&server).failed_client == 2);
}

#[test]
fn slow_clients_and_slow_backends_are_told_so() {
    let backend = backend();
    let short = forebay::units::Span(Duration::from_millis(200));
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.head_timeout = short;
        settings.http.body_timeout = short;
        settings.http.response_timeout = short;
        settings.http.idle_timeout = short;
    });
    assert_eq!(ask(&server, "GET / HTTP/1.1\r\nHost").status, 408);
    assert_eq!(ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").status, 408);
    let answer = ask(&server, "GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.status, 504);
    assert!(answer.text().contains(&backend.addr().to_string()), "{}", answer.text());
    let mut idle = Client::new(&server);
    assert_eq!(idle.get("/delay/100").status, 200);
    assert!(idle.is_ended(), "an idle client is not told, but its connection is closed");
    assert_eq!(figures(&server).ended_idle, 1);
}

#[test]
fn every_backend_is_tried_before_a_client_is_refused() {
    let dead = || SocketAddr::from(([127, 0, 0, 1], forebay_bench::ports::free_port()));
    let backend = backend();
    let server = proxy(&[dead(), dead(), backend.addr()], |_| {});
    for _ in 0..6 {
        assert_eq!(ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").status, 200);
    }
    let server = proxy(&[dead(), dead()], |_| {});
    let mut client = Client::new(&server);
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains("2 tried") && answer.text().contains("refused"), "{}", answer.text());
    }
}

#[test]
fn without_a_pool_each_request_has_a_connection_of_its_own() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| settings.pool = PoolMode::Off);
    let mut client = Client::new(&server);
    (0..5).for_each(|_| assert_eq!(client.get("/").stamp().1, 1));
    assert_eq!(backend.stats().connections, 5);
}

#[test]
fn kept_connections_end_before_their_backend_ends_them() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.backend_idle_timeout = forebay::units::Span(Duration::from_millis(100));
    });
    assert_eq!(Client::new(&server).get("/").status, 200);
    eventually("it ends", || backend.stats().connections_open == 0);
}

#[test]
fn a_script_of_its_own_shows_that_a_response_is_passed_on_as_it_comes() {
    let backend = Backend::builder()
        .serve(Serve::Http)
        .answer(
            "/slow",
            vec![
                Step::write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"),
                Step::Hang,
            ],
        )
        .spawn()
        .unwrap();
    let server = proxy(&[backend.addr()], |_| {});
    let mut client = Client::new(&server);
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    while !client.read.ends_with(b"3\r\none\r\n") {
        assert!(client.more());
    }
}

#[test]
fn a_proxy_that_drains_lets_requests_finish_and_idle_clients_go() {
    let (server, _backend) = pair();
    let mut idle = Client::new(&server);
    assert_eq!(idle.get("/").status, 200);
    let mut busy = Client::new(&server);
    busy.send("GET /delay/300 HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request is at the backend", || figures(&server).requests == 2);
    let draining = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.drain(PATIENCE));
    });
    let began = Instant::now();
    assert!(idle.is_ended());
    assert!(began.elapsed() < Duration::from_millis(250), "an idle client is not waited for");
    let answer = busy.answer(Method::Get);
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert!(busy.is_ended());
    draining.join().unwrap();
}

#[test]
fn a_backend_that_keeps_back_pressure_is_never_buffered_for() {
    // Takes the head and then nothing: what the client can send is what sockets and bounds hold.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = proxy(&[listener.local_addr().unwrap()], |_| {});
    let mut client = Client::new(&server);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let (_backend, _) = listener.accept().unwrap();
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0_usize;
    while let Ok(n) = client.stream.write(&piece) {
        sent += n;
        assert!(sent < 64 << 20, "the proxy takes what nobody reads");
    }
}

//! A proxy of HTTP in front of scripted backends, and a strict client of HTTP/1.1.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{Mode, ProxyConfig, ProxyFigures, Server, Settings, start};
use forebay_proxy_core::http1::{
    Body, BodyReader, Limits, Method, Part, ResponseHead, TrailerLimits, response_body,
};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn proxy(backends: &[SocketAddr], change: impl FnOnce(&mut Settings)) -> Server {
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

pub(crate) fn backend() -> Backend {
    Backend::spawn(Serve::Http)
}

/// A proxy before one backend.
pub(crate) fn pair() -> (Server, Backend) {
    let backend = backend();
    (proxy(&[backend.addr()], |_| {}), backend)
}

pub(crate) fn figures(server: &Server) -> ProxyFigures {
    server.handle().figures()
}

/// What a client is answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Vec<(String, String)>,
    /// Whether the body ended as its framing says.
    pub(crate) is_whole: bool,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(": ")?;
            found.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The number of the backend's connection, and of the request on it.
    pub(crate) fn stamp(&self) -> (u64, u64) {
        let number = |name| self.field(name).unwrap_or_else(|| panic!("{name} in {self:?}")).parse().unwrap();
        (number("Backend-Connection"), number("Backend-Request"))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// A client that reads what comes by the same strict rules.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    pub(crate) read: Vec<u8>,
}

impl Client {
    pub(crate) fn new(server: &Server) -> Self {
        let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) fn send(&mut self, text: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(text.as_ref()).unwrap();
        self
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")).answer(Method::Get)
    }

    pub(crate) fn more(&mut self) -> bool {
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

    pub(crate) fn answer(&mut self, asked: Method) -> Answer {
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
    pub(crate) fn is_ended(&mut self) -> bool {
        self.read.is_empty() && !self.more()
    }
}

/// Asks once, on a connection of its own.
pub(crate) fn ask(server: &Server, text: impl AsRef<[u8]>) -> Answer {
    Client::new(server).send(text).answer(Method::Get)
}

pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(5));
    }
}

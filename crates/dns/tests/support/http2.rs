//! An upstream that speaks HTTP/2 frame by frame, and does to each query what the test says.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use forebay_bench::responder::expected_a;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::support::tls::Pair;

/// A query as it came.
pub struct Asked {
    /// On which connection, from 0.
    pub connection: u32,
    /// Which of the queries of that connection, from 0.
    pub n: u32,
    /// Its stream.
    pub stream: u32,
    pub query: Vec<u8>,
}

/// What is done.
pub enum Act {
    /// The address that the name says, for so many seconds.
    Answer(Asked),
    /// The same, from a cache where it has been for so many seconds.
    Aged(Asked, u32),
    /// The answer to another question.
    Wrong(Asked),
    /// A response without a DNS message, with this status.
    Status(Asked, u16),
    /// A page for people.
    Html(Asked),
    /// More than fits into a DNS message.
    Endless(Asked),
    /// RST_STREAM with this code.
    Reset(Asked, u32),
    /// GOAWAY: streams up to this one are looked at.
    Goaway(u32),
    /// Nothing.
    Ignore,
    /// The connection ends.
    Close,
    /// From now on nothing is said, not even to a PING.
    Hang,
}

#[derive(Default)]
pub struct Seen {
    pub connections: AtomicU32,
    pub queries: AtomicU32,
    /// RST_STREAM of the client.
    pub resets: AtomicU32,
    pub pings: AtomicU32,
    /// The most queries that were on their way at once on any connection.
    pub busiest: AtomicU32,
}

pub struct Http2 {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

type Script = dyn Fn(Asked) -> Vec<Act> + Send + Sync;

pub const NO_ERROR: u32 = 0;
pub const REFUSED_STREAM: u32 = 7;
pub const CANCEL: u32 = 8;

/// Starts one with this certificate, which allows so many streams at once.
pub fn http2(
    pair: &Pair,
    streams_max: Option<u32>,
    script: impl Fn(Asked) -> Vec<Act> + Send + Sync + 'static,
) -> Http2 {
    let certificates = CertificateDer::pem_file_iter(&pair.certificate).expect("a file");
    let certificates = certificates.map(|certificate| certificate.expect("a certificate")).collect();
    let key = PrivateKeyDer::from_pem_file(&pair.key).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .expect("a pair");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let seen = Arc::new(Seen::default());
    let (script, noted): (Arc<Script>, _) = (Arc::new(script), Arc::clone(&seen));
    // It ends with the test's process.
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let (config, script, seen) = (Arc::clone(&config), Arc::clone(&script), Arc::clone(&noted));
            let number = seen.connections.fetch_add(1, SeqCst);
            std::thread::spawn(move || {
                socket.set_nodelay(true).expect("no delay");
                let tls = ServerConnection::new(config).expect("a connection");
                let stream = StreamOwned::new(tls, socket);
                let mut peer = Peer { stream, number, n: 0, open: 0, silent: false, seen };
                // A client that has gone is the end of it.
                let _ = peer.run(streams_max, &*script);
            });
        }
    });
    Http2 { address, seen }
}

struct Peer {
    stream: StreamOwned<ServerConnection, TcpStream>,
    number: u32,
    n: u32,
    open: u32,
    silent: bool,
    seen: Arc<Seen>,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

impl Peer {
    fn run(&mut self, streams_max: Option<u32>, script: &Script) -> io::Result<()> {
        self.stream.read_exact(&mut [0; 24])?;
        let mut settings = Vec::new();
        if let Some(most) = streams_max {
            settings.extend_from_slice(&3u16.to_be_bytes());
            settings.extend_from_slice(&most.to_be_bytes());
        }
        self.send(SETTINGS, 0, 0, &settings)?;
        let mut bodies: Vec<(u32, Vec<u8>)> = Vec::new();
        loop {
            let mut head = [0; 9];
            self.stream.read_exact(&mut head)?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let length = u32::from_be_bytes([0, a, b, c]);
            let stream = u32::from_be_bytes(stream) & !(1 << 31);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload)?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(SETTINGS, ACK, 0, &[])?,
                PING if flags & ACK == 0 => {
                    self.seen.pings.fetch_add(1, SeqCst);
                    self.send(PING, ACK, 0, &payload)?;
                }
                RST_STREAM => {
                    self.seen.resets.fetch_add(1, SeqCst);
                    self.open -= 1;
                }
                HEADERS => {
                    bodies.push((stream, Vec::new()));
                    self.open += 1;
                    self.seen.busiest.fetch_max(self.open, SeqCst);
                }
                DATA => {
                    self.send(WINDOW_UPDATE, 0, 0, &length.max(1).to_be_bytes())?;
                    let at = bodies.iter().position(|(other, _)| *other == stream).expect("begun");
                    bodies[at].1.extend_from_slice(&payload);
                    if flags & END_STREAM != 0 {
                        let (stream, query) = bodies.swap_remove(at);
                        assert_eq!(&query[..2], [0, 0], "RFC 8484, section 4.1: the id is 0");
                        self.seen.queries.fetch_add(1, SeqCst);
                        let asked = Asked { connection: self.number, n: self.n, stream, query };
                        self.n += 1;
                        for act in script(asked) {
                            self.act(act)?;
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn act(&mut self, act: Act) -> io::Result<()> {
        match act {
            Act::Answer(asked) => {
                let answer = answer(&asked.query);
                self.respond(asked.stream, &status(200), "application/dns-message", &answer)
            }
            Act::Aged(asked, age) => {
                let mut head = status(200);
                // `age` is the 21st of the static table (RFC 7541, appendix A).
                literal(&mut head, 21, &age.to_string());
                self.respond(asked.stream, &head, "application/dns-message", &answer(&asked.query))
            }
            Act::Wrong(asked) => {
                let mut answer = answer(&asked.query);
                answer[13] ^= 1;
                self.respond(asked.stream, &status(200), "application/dns-message", &answer)
            }
            Act::Status(asked, code) => self.respond(asked.stream, &status(code), "text/plain", b"no"),
            Act::Html(asked) => self.respond(asked.stream, &status(200), "text/html", b"<html>"),
            Act::Endless(asked) => {
                let mut head = status(200);
                literal(&mut head, 31, "application/dns-message");
                self.send(HEADERS, END_HEADERS, asked.stream, &head)?;
                for _ in 0..2 {
                    for _ in 0..4 {
                        self.send(DATA, 0, asked.stream, &[0; 16_000])?;
                    }
                    // The client takes what came, and gives room for more.
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            }
            Act::Reset(asked, code) => {
                self.open -= 1;
                self.send(RST_STREAM, 0, asked.stream, &code.to_be_bytes())
            }
            Act::Goaway(last) => {
                let mut payload = last.to_be_bytes().to_vec();
                payload.extend_from_slice(&NO_ERROR.to_be_bytes());
                self.send(GOAWAY, 0, 0, &payload)
            }
            Act::Ignore => Ok(()),
            Act::Close => {
                self.stream.conn.send_close_notify();
                self.stream.flush()?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Act::Hang => {
                self.silent = true;
                Ok(())
            }
        }
    }

    fn respond(&mut self, stream: u32, head: &[u8], media_type: &str, body: &[u8]) -> io::Result<()> {
        let mut head = head.to_vec();
        literal(&mut head, 31, media_type);
        self.open -= 1;
        self.send(HEADERS, END_HEADERS, stream, &head)?;
        self.send(DATA, END_STREAM, stream, body)
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        if self.silent {
            return Ok(());
        }
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame)?;
        self.stream.flush()
    }
}

/// `:status`, with the name of the 8th of the static table.
fn status(code: u16) -> Vec<u8> {
    let mut head = Vec::new();
    literal(&mut head, 8, &code.to_string());
    head
}

/// A header that is not indexed, its name by its place in the static table (RFC 7541, section 6.2.2).
fn literal(head: &mut Vec<u8>, name: u8, value: &str) {
    match name {
        0..15 => head.push(name),
        _ => head.extend_from_slice(&[15, name - 15]),
    }
    head.push(value.len() as u8);
    head.extend_from_slice(value.as_bytes());
}

/// The address that the name of an A question says, for a minute.
fn answer(query: &[u8]) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..end]).into_owned());
        at = end;
    }
    let mut bytes = query[..at + 5].to_vec();
    bytes[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
    bytes.extend_from_slice(&expected_a(&labels.join(".")).octets());
    bytes
}

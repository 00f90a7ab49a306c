//! A client, a server and peers for the tests.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

pub mod log;
pub mod servers;
pub mod tls;

pub use forebay_bench::ports::free_port;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use forebay_bench::message::encode_name;
use forebay_bench::responder::Responder;
use forebay_dns::{DnsConfig, Scheme, Server, Settings, Stats, start};

/// Longer than anything here takes on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn settings(upstreams: &[&Responder]) -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        upstreams: upstreams.iter().map(|upstream| upstream.addr().to_string()).collect(),
        workers: 1,
        ..Settings::default()
    }
}

pub fn run(settings: &Settings) -> Running {
    let server = start(DnsConfig::new(settings, &[], 2).expect("valid settings")).expect("a free port");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    Running { address: server.local_addrs()[0].address, server: Some(server), runtime }
}

pub struct Running {
    pub address: SocketAddr,
    pub server: Option<Server>,
    pub runtime: tokio::runtime::Runtime,
}

impl Running {
    /// The first address on which this is spoken.
    pub fn at(&self, scheme: Scheme) -> SocketAddr {
        let all = self.server.as_ref().expect("it runs").local_addrs();
        all.iter().find(|one| one.scheme == scheme).expect("it was asked for").address
    }

    pub fn stats(&self) -> Stats {
        let handle = self.server.as_ref().expect("it runs").handle();
        self.runtime.block_on(async move { handle.stats().await })
    }

    pub fn drain(&mut self, limit: Duration) {
        let server = self.server.take().expect("it runs");
        self.runtime.block_on(server.drain(limit));
    }

    /// Waits until the figures are as wanted.
    pub fn until(&self, what: &str, wanted: impl Fn(&Stats) -> bool) -> Stats {
        let end = Instant::now() + PATIENCE;
        loop {
            let stats = self.stats();
            if wanted(&stats) {
                return stats;
            }
            assert!(Instant::now() < end, "{what}: {stats:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A query with RD; with an OPT record if there is a size.
pub fn query(id: u16, name: &str, qtype: u16, edns: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [id, 0x0100, 1, 0, 0, u16::from(edns.is_some())] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    encode_name(name, &mut bytes).expect("a name");
    bytes.extend_from_slice(&qtype.to_be_bytes());
    bytes.extend_from_slice(&1u16.to_be_bytes());
    if let Some(size) = edns {
        bytes.extend_from_slice(&[0, 0, 41]);
        bytes.extend_from_slice(&size.to_be_bytes());
        bytes.extend_from_slice(&[0; 6]);
    }
    bytes
}

pub struct Udp(pub UdpSocket);

impl Udp {
    pub fn to(server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        socket.connect(server).expect("loopback");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        Self(socket)
    }

    pub fn send(&self, bytes: &[u8]) {
        self.0.send(bytes).expect("sent");
    }

    pub fn recv(&self) -> Vec<u8> {
        let mut buffer = vec![0; 65_535];
        let length = self.0.recv(&mut buffer).expect("a reply in time");
        buffer.truncate(length);
        buffer
    }

    /// Whether nothing comes for a while.
    pub fn silent_for(&self, span: Duration) -> bool {
        self.0.set_read_timeout(Some(span)).expect("a time-out");
        let error = self.0.recv(&mut [0; 512]).map_err(|error| error.kind());
        self.0.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        matches!(error, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    pub fn ask(&self, name: &str) -> Vec<u8> {
        self.send(&query(1, name, 1, Some(1232)));
        self.recv()
    }
}

pub struct Tcp(pub TcpStream);

impl Tcp {
    pub fn to(server: SocketAddr) -> Self {
        let stream = TcpStream::connect(server).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        stream.set_nodelay(true).expect("no delay");
        Self(stream)
    }

    pub fn send(&mut self, bytes: &[u8]) {
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(bytes);
        self.0.write_all(&framed).expect("sent");
    }

    /// The next reply; `None` when the server has closed.
    pub fn recv(&mut self) -> Option<Vec<u8>> {
        let mut length = [0; 2];
        match self.0.read_exact(&mut length) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                return None;
            }
            Err(error) => panic!("neither reply nor end: {error}"),
        }
        let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
        self.0.read_exact(&mut bytes).expect("a whole reply");
        Some(bytes)
    }
}

pub fn id(reply: &[u8]) -> u16 {
    u16::from_be_bytes([reply[0], reply[1]])
}

pub fn rcode(reply: &[u8]) -> u8 {
    reply[3] & 0x0f
}

pub fn truncated(reply: &[u8]) -> bool {
    reply[2] & 2 != 0
}

/// The address in the first record of an answer to an A question.
pub fn address(reply: &[u8]) -> Ipv4Addr {
    assert_eq!(rcode(reply), 0, "{reply:?}");
    let mut at = 12;
    while reply[at] != 0 {
        at += usize::from(reply[at]) + 1;
    }
    at += 5;
    // The owner is a pointer; type, class, TTL and length follow.
    let data = at + 2 + 10;
    Ipv4Addr::new(reply[data], reply[data + 1], reply[data + 2], reply[data + 3])
}

/// The TTL of the first record.
pub fn ttl(reply: &[u8]) -> u32 {
    let mut at = 12;
    while reply[at] != 0 {
        at += usize::from(reply[at]) + 1;
    }
    at += 5 + 2 + 4;
    u32::from_be_bytes([reply[at], reply[at + 1], reply[at + 2], reply[at + 3]])
}

/// Whether a program is there. Says why a test is skipped if not; in CI that is a failure.
pub fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .env("PATH", path())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let required = std::env::var_os("FOREBAY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(found || !required, "FOREBAY_REQUIRE_PEERS=1, but {program} is not installed");
    if !found {
        eprintln!("skipped: {program} is not installed");
    }
    found
}

/// Runs `ip` (Debian: iproute2), inside the namespace of the calling thread.
pub fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).env("PATH", path()).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Debian keeps servers where only root's path looks.
pub fn path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// A process that ends with the test.
pub struct Peer(pub Child);

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! A DNS upstream that does what it is told: answers at once, late, wrongly, in part or never.
//!
//! It answers any question with records derived from the name, so that whoever asks can check each answer by name
//! ([`expected_a`]). One thread serves UDP and TCP on one port with batched I/O; what is to be late waits in a queue
//! whose error is some tens of microseconds.
//!
//! ```
//! use std::time::Duration;
//! use forebay_bench::responder::{Responder, Script};
//!
//! let script = Script { delay: Duration::from_micros(780), drop: 0.01, ..Script::default() };
//! let upstream = Responder::builder().script(script).spawn()?;
//! println!("answering on {}", upstream.addr());
//! # std::io::Result::Ok(())
//! ```

mod answer;
mod attack;
mod server;

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay::sys::{TcpListenerOptions, UdpOptions, process, tcp_listener, udp_listener};

pub use self::attack::Attack;
use crate::message;

/// What the responder does to queries. The default answers everything at once and rightly. All of it combines.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// How long each answer waits. Default: not at all.
    pub delay: Duration,
    /// Up to how much longer, evenly spread: answers overtake each other. Default: none.
    pub jitter: Duration,
    /// Share of queries (0 to 1) that are never answered. 1 is a silent upstream. Default: 0.
    pub drop: f64,
    /// Share of answers that come later still. Default: none.
    pub late: Option<Late>,
    /// Share of answers that carry another id. Default: 0.
    pub wrong_id: f64,
    /// Share of answers that repeat another question. Default: 0.
    pub wrong_question: f64,
    /// How many answers with another id and another address come before each right one. Default: 0.
    pub decoys: u32,
    /// Sends each UDP answer twice. Default: false.
    pub duplicate: bool,
    /// When a UDP answer is cut to its question and marked (TC). Default: as the client's size demands.
    pub truncate: Truncate,
    /// Names under a suffix that get another verdict; the first that fits holds. Default: none.
    pub verdicts: Vec<(String, Verdict)>,
    /// When TCP connections end. Default: when the client ends them.
    pub close: Close,
    /// Answers only the first query of a TCP connection, and stays silent to the others. Default: false.
    pub first_only: bool,
    /// Answers so many queries of a TCP connection, and stays silent to the others. Default: all.
    pub answers_max: Option<u64>,
    /// TCP connections that are open when this script comes are never answered again, nor closed, as if a firewall had
    /// forgotten them. Default: false.
    pub half_open: bool,
    /// Lower-cases the question in its answers. Default: false.
    pub fold_case: bool,
    /// Answers cookies with its own (RFC 7873), eight bytes made of the client's. Default: false.
    pub cookies: bool,
    /// How many records an answer has: for A, the first is [`expected_a`], the others count up from it. Default: 1.
    pub records: u16,
    /// How many aliases lead to the records. Default: 0.
    pub cnames: u8,
    /// Time to live of all records, in seconds. Default: 60.
    pub ttl: u32,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            drop: 0.0,
            late: None,
            wrong_id: 0.0,
            wrong_question: 0.0,
            decoys: 0,
            duplicate: false,
            truncate: Truncate::ToFit,
            verdicts: Vec::new(),
            close: Close::Never,
            first_only: false,
            answers_max: None,
            half_open: false,
            fold_case: false,
            cookies: false,
            records: 1,
            cnames: 0,
            ttl: 60,
        }
    }
}

/// Some answers are late.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Late {
    /// Share of answers (0 to 1).
    pub share: f64,
    /// How much later than the others.
    pub by: Duration,
}

/// When a UDP answer is cut to its question and marked as truncated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// When it is longer than the client takes (512 bytes without EDNS).
    ToFit,
    /// Also when it is longer than so many bytes.
    Above(usize),
    /// Always.
    Always,
    /// Never, however long.
    Never,
}

/// What names under a suffix get instead of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The name does not exist: NXDOMAIN with SOA (RFC 2308 §2.1).
    NxDomain,
    /// The name has no such record: NOERROR with SOA (RFC 2308 §2.2).
    NoData,
    /// SERVFAIL.
    ServFail,
    /// REFUSED.
    Refused,
    /// Nothing.
    Silence,
}

/// When the responder ends a TCP connection by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Never.
    Never,
    /// At once, when it has been accepted.
    AtOnce,
    /// At once, when it has been accepted, with a reset.
    ResetAtOnce,
    /// After so many answers, in order.
    After(u64),
    /// When nothing has come or gone for so long, in order; looked at every 20 ms.
    Idle(Duration),
    /// After so many answers, with a reset; 0 resets upon the first query.
    ResetAfter(u64),
}

/// What the responder has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Queries over UDP.
    pub udp_queries: u64,
    /// Queries over TCP.
    pub tcp_queries: u64,
    /// Answers sent, duplicates and decoys included.
    pub answers: u64,
    /// Messages that were no query.
    pub malformed: u64,
    /// TCP connections accepted.
    pub connections: u64,
    /// TCP connections that are open.
    pub connections_open: u64,
    /// Distinct source ports of UDP queries.
    pub udp_ports: u64,
}

/// The IPv4 address that the responder gives for `name`, in whatever case.
///
/// # Panics
///
/// When `name` is no name.
pub fn expected_a(name: &str) -> Ipv4Addr {
    let mut wire = Vec::with_capacity(message::NAME_MAX);
    message::encode_name(name, &mut wire).expect("a well-formed name");
    expected_a_of_wire(&wire)
}

/// As [`expected_a`], for a name in wire format without compression.
pub fn expected_a_of_wire(name: &[u8]) -> Ipv4Addr {
    let hash = message::hash_caseless(name);
    // Folded to 24 bits, in a network that nobody mistakes for the Internet.
    let folded = (hash ^ (hash >> 24) ^ (hash >> 48)) as u32;
    Ipv4Addr::from(0x0a00_0000 | folded & 0x00ff_ffff)
}

/// A running responder. Dropping it stops it, and frees its port.
#[derive(Debug)]
pub struct Responder {
    address: SocketAddr,
    shared: Arc<Shared>,
    udp: UdpSocket,
    wake: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Responder {
    /// Begins to describe a responder.
    pub fn builder() -> Builder {
        Builder { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), script: Script::default(), pin: None }
    }

    /// Returns where it answers, over UDP and TCP.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns what it has seen and done so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.stats()
    }

    /// Changes what it does, from the next query on. Answers that are already on their way stay as they are.
    ///
    /// # Panics
    ///
    /// When a suffix in the script's verdicts is no name.
    pub fn set_script(&self, script: Script) {
        let plan = Arc::new(answer::Plan::new(script));
        *self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan;
        self.shared.version.fetch_add(1, Relaxed);
        self.rouse();
    }

    fn rouse(&self) {
        // A full pipe wakes just as well.
        let _ = (&self.wake).write(&[0]);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.rouse();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

/// Describes a responder.
#[derive(Clone, Debug)]
pub struct Builder {
    listen: SocketAddr,
    script: Script,
    pin: Option<usize>,
}

impl Builder {
    /// Sets where to answer. Default: a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets what to do. Default: [`Script::default`].
    #[must_use]
    pub fn script(mut self, script: Script) -> Self {
        self.script = script;
        self
    }

    /// Sets how long each answer waits; shorthand for [`Script::delay`].
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.script.delay = delay;
        self
    }

    /// Sets the core that its thread runs on. Default: any.
    #[must_use]
    pub fn pin(mut self, core: usize) -> Self {
        self.pin = Some(core);
        self
    }

    /// Binds the sockets and starts.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound for UDP and TCP, no descriptor is left, or there is no such core.
    ///
    /// # Panics
    ///
    /// When a suffix in the script's verdicts is no name.
    pub fn spawn(self) -> io::Result<Responder> {
        let (udp, tcp) = bind_both(self.listen)?;
        let address = udp.local_addr()?;
        let shared = Arc::new(Shared {
            plan: Mutex::new(Arc::new(answer::Plan::new(self.script))),
            version: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            counters: Counters::default(),
            targets: attack::Targets::default(),
        });
        let own = udp.try_clone()?;
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let mut server = server::Server::new(udp, tcp, woken, Arc::clone(&shared))?;
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let pin = self.pin;
        let thread = std::thread::Builder::new().name("responder".into()).spawn(move || {
            let pinned = pin.map_or(Ok(()), process::pin_current_thread);
            let go = pinned.is_ok();
            let _ = ready.send(pinned);
            if go && let Err(error) = server.run() {
                eprintln!("responder on {address} has failed: {error}");
            }
        })?;
        started.recv().expect("the thread says whether it has started")?;
        Ok(Responder { address, shared, udp: own, wake, thread: Some(thread) })
    }
}

/// Binds one port for both transports; when any port will do, tries until one is free in both.
fn bind_both(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    const TRIES: usize = 16;
    let options = UdpOptions {
        recv_buffer_bytes: Some(4 << 20),
        send_buffer_bytes: Some(4 << 20),
        report_local: address.ip().is_unspecified(),
        ..UdpOptions::default()
    };
    let mut tries = 0;
    loop {
        let udp = udp_listener(address, &options)?;
        match tcp_listener(udp.local_addr()?, &TcpListenerOptions::default()) {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(error)
                if error.kind() == io::ErrorKind::AddrInUse && address.port() == 0 && tries < TRIES =>
            {
                tries += 1
            }
            Err(error) => return Err(error),
        }
    }
}

/// What the handle and the thread share.
#[derive(Debug)]
struct Shared {
    plan: Mutex<Arc<answer::Plan>>,
    /// Changes with the plan, so that the thread need not lock to see that nothing has changed.
    version: AtomicU64,
    stop: AtomicBool,
    counters: Counters,
    targets: attack::Targets,
}

/// Counted by the thread, read by the handle.
#[derive(Debug)]
struct Counters {
    udp_queries: AtomicU64,
    tcp_queries: AtomicU64,
    answers: AtomicU64,
    malformed: AtomicU64,
    connections: AtomicU64,
    connections_open: AtomicU64,
    udp_ports: [AtomicU64; 1024],
}

impl Default for Counters {
    fn default() -> Self {
        let zero = AtomicU64::default;
        Self {
            udp_queries: zero(),
            tcp_queries: zero(),
            answers: zero(),
            malformed: zero(),
            connections: zero(),
            connections_open: zero(),
            udp_ports: std::array::from_fn(|_| zero()),
        }
    }
}

impl Counters {
    fn saw_port(&self, port: u16) {
        let (word, bit) = (&self.udp_ports[usize::from(port >> 6)], 1 << (port & 63));
        if word.load(Relaxed) & bit == 0 {
            word.fetch_or(bit, Relaxed);
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            udp_queries: self.udp_queries.load(Relaxed),
            tcp_queries: self.tcp_queries.load(Relaxed),
            answers: self.answers.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            connections: self.connections.load(Relaxed),
            connections_open: self.connections_open.load(Relaxed),
            udp_ports: self.udp_ports.iter().map(|word| u64::from(word.load(Relaxed).count_ones())).sum(),
        }
    }
}

#[cfg(test)]
mod tests;

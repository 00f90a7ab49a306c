//! The thread of a responder: one loop over UDP, TCP and the queue of what is late.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use forebay::sys::epoll::{Epoll, Event, Interest};
use forebay::sys::{RecvBatch, SendBatch, TcpOptions, clock, now, socket};
use forebay_core::{Instant, Rng};

use super::answer::{self, Lies, Plan, Received};
use super::{Close, Shared, Verdict};

const UDP: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
const WOKEN: u64 = u64::MAX - 2;

/// Answers that wait at once; beyond it queries go unanswered, and memory stays bounded.
const LATE_MAX: usize = 1 << 20;

/// How late the kernel wakes a sleeper on an idle virtual machine. Sleep so much less, and poll for the rest…
const WAKE_UP: Duration = Duration::from_micros(60);

/// … while so few answers wait. With more, waking a little late gathers them, and polling would take the core.
const POLLED_MAX: usize = 8;

/// How often connections are looked at that are to end when they have stood idle.
const IDLE_LOOK: Duration = Duration::from_millis(20);

/// Bytes of unread answers at which a TCP connection is no longer read from.
const OUTPUT_MAX: usize = 1 << 20;

pub(super) struct Server {
    udp: UdpSocket,
    listener: TcpListener,
    woken: UnixStream,
    shared: Arc<Shared>,
    plan: Arc<Plan>,
    version: u64,
    epoll: Epoll,
    out: SendBatch,
    late: LateQueue,
    connections: Vec<Option<Connection>>,
    generation: u32,
    rng: Rng,
}

/// Where an answer goes.
#[derive(Clone, Copy)]
enum Route {
    Udp {
        peer: SocketAddr,
        local: Option<IpAddr>,
    },
    /// The token of a connection, which no later connection has.
    Tcp(u64),
}

struct Connection {
    stream: TcpStream,
    token: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    queries: u64,
    answers: u64,
    /// When it was last read from or answered.
    active: Instant,
    /// It is never answered again.
    deaf: bool,
    interest: Interest,
    /// It ends when its output is written; with a reset if true.
    ending: Option<bool>,
}

impl Server {
    pub(super) fn new(
        udp: UdpSocket,
        listener: TcpListener,
        woken: UnixStream,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(256)?;
        epoll.add(&udp, UDP, Interest::Read)?;
        epoll.add(&listener, LISTENER, Interest::Read)?;
        epoll.add(&woken, WOKEN, Interest::Read)?;
        let plan = Arc::clone(&shared.plan.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(Self {
            udp,
            listener,
            woken,
            shared,
            plan,
            version: 0,
            epoll,
            out: SendBatch::new(64, 64 * 512),
            late: LateQueue::default(),
            connections: Vec::new(),
            generation: 0,
            rng: Rng::new(now().as_nanos()),
        })
    }

    pub(super) fn run(&mut self) -> io::Result<()> {
        clock::exact_timers()?;
        let mut batch = RecvBatch::new(64, 4096);
        let mut events: Vec<Event> = Vec::with_capacity(256);
        while !self.shared.stop.load(Relaxed) {
            let timeout = self.until_next();
            events.clear();
            events.extend(self.epoll.wait(timeout)?);
            self.follow_script();
            for event in &events {
                match event.token {
                    UDP => self.serve_udp(&mut batch)?,
                    LISTENER => self.accept()?,
                    WOKEN => while self.woken.read(&mut [0; 64]).is_ok_and(|count| count == 64) {},
                    token => self.serve_tcp(token, event.readable),
                }
            }
            self.send_late();
            self.close_idle();
            self.flush()?;
        }
        Ok(())
    }

    /// How long to sleep at most.
    fn until_next(&self) -> Option<Duration> {
        let late = self.late.wait(now());
        match self.plan.script.close {
            Close::Idle(_) => Some(late.map_or(IDLE_LOOK, |late| late.min(IDLE_LOOK))),
            _ => late,
        }
    }

    fn close_idle(&mut self) {
        let Close::Idle(span) = self.plan.script.close else { return };
        let now = now();
        let idle: Vec<u64> = self
            .connections
            .iter()
            .flatten()
            .filter(|connection| now.saturating_duration_since(connection.active) >= span)
            .map(|connection| connection.token)
            .collect();
        for token in idle {
            self.end(token, false);
        }
    }

    fn follow_script(&mut self) {
        let version = self.shared.version.load(Relaxed);
        if version != self.version {
            self.version = version;
            self.plan = Arc::clone(&self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner));
            if self.plan.script.half_open {
                self.connections.iter_mut().flatten().for_each(|connection| connection.deaf = true);
            }
        }
    }

    fn serve_udp(&mut self, batch: &mut RecvBatch) -> io::Result<()> {
        let received = match batch.recv(self.udp.as_fd()) {
            Ok(received) => received,
            // What ICMP says about answers that nobody waits for any more.
            Err(_) => return Ok(()),
        };
        self.shared.counters.udp_queries.fetch_add(received as u64, Relaxed);
        let plan = Arc::clone(&self.plan);
        let arrived = if plan.is_prompt() { Instant::ZERO } else { now() };
        for datagram in batch.datagrams() {
            self.shared.counters.saw_port(datagram.peer.port());
            self.shared.targets.note(datagram.peer, datagram.local, datagram.bytes);
            let route = Route::Udp { peer: datagram.peer, local: datagram.local };
            self.answer(&plan, datagram.bytes, route, arrived);
        }
        Ok(())
    }

    /// Decides what becomes of one message, and sends or queues the answers.
    fn answer(&mut self, plan: &Plan, message: &[u8], route: Route, arrived: Instant) {
        let script = &plan.script;
        let query = match answer::read(message) {
            Received::Query(query) => query,
            Received::Unusable(rcode) => {
                self.shared.counters.malformed.fetch_add(1, Relaxed);
                return self.send(route, |out| answer::write_refusal(out, message, rcode));
            }
            Received::Nonsense => {
                self.shared.counters.malformed.fetch_add(1, Relaxed);
                return;
            }
        };
        let verdict = plan.verdict(query.name);
        if verdict == Some(Verdict::Silence) || self.happens(script.drop) {
            return;
        }
        let is_udp = matches!(route, Route::Udp { .. });
        let mut due = arrived + script.delay;
        if !script.jitter.is_zero() {
            due = due + self.rng.up_to(script.jitter);
        }
        if let Some(late) = script.late
            && self.happens(late.share)
        {
            due = due + late.by;
        }
        let lies = Lies {
            id: self.happens(script.wrong_id),
            question: self.happens(script.wrong_question),
            address: false,
        };
        let copies = if script.duplicate && is_udp { 2 } else { 1 };
        let decoys = (0..script.decoys).map(|_| Lies { id: true, question: false, address: true });
        for lies in decoys.chain(std::iter::repeat_n(lies, copies)) {
            let write = |out: &mut Vec<u8>| answer::write(out, &query, script, verdict, lies, is_udp);
            if plan.is_prompt() {
                self.send(route, write);
            } else {
                self.late.push(due, route, write);
            }
        }
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && ((self.rng.next_u64() >> 11) as f64) < share * (1u64 << 53) as f64
    }

    fn send(&mut self, route: Route, write: impl FnOnce(&mut Vec<u8>)) {
        match route {
            Route::Udp { peer, local } => {
                if self.out.is_full() {
                    // The socket may be useless; the next flush says so to `run`.
                    let _ = self.flush();
                }
                self.out.push(Some(peer), local, write);
            }
            Route::Tcp(token) => {
                let index = index_of(token);
                let Some(connection) = self.connections[index].as_mut().filter(|found| found.token == token)
                else {
                    return;
                };
                if connection.ending.is_some() || connection.deaf {
                    return;
                }
                connection.active = now();
                let start = connection.output.len();
                connection.output.extend_from_slice(&[0; 2]);
                write(&mut connection.output);
                // RFC 7766 §8: the length in front, and both in one write.
                let length = (connection.output.len() - start - 2) as u16;
                connection.output[start..start + 2].copy_from_slice(&length.to_be_bytes());
                connection.answers += 1;
                match self.plan.script.close {
                    Close::After(answers) if connection.answers >= answers => connection.ending = Some(false),
                    Close::ResetAfter(answers) if connection.answers >= answers => {
                        connection.ending = Some(true)
                    }
                    _ => {}
                }
                self.shared.counters.answers.fetch_add(1, Relaxed);
            }
        }
    }

    fn send_late(&mut self) {
        if self.late.next().is_none() {
            return;
        }
        let now = now();
        let mut touched = Vec::new();
        while let Some((route, bytes)) = self.late.pop(now) {
            self.send(route, |out| out.extend_from_slice(&bytes));
            if let Route::Tcp(token) = route
                && touched.last() != Some(&token)
            {
                touched.push(token);
            }
            self.late.give_back(bytes);
        }
        for token in touched {
            self.write_tcp(token);
        }
    }

    /// Sends all UDP answers, waiting for room if the socket has none.
    fn flush(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            // Counted first: whoever has an answer finds it counted.
            let waiting = self.out.len() as u64;
            self.shared.counters.answers.fetch_add(waiting, Relaxed);
            let flush = self.out.flush(self.udp.as_fd())?;
            if flush.failed + flush.left > 0 {
                let not_sent = (flush.failed + flush.left) as u64;
                self.shared.counters.answers.fetch_sub(not_sent, Relaxed);
            }
            if flush.left > 0 {
                let mut room = Epoll::new(1)?;
                room.add(&self.udp, 0, Interest::ReadWrite)?;
                drop(room.wait(Some(Duration::from_millis(1)))?);
            }
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            self.shared.counters.connections.fetch_add(1, Relaxed);
            match self.plan.script.close {
                Close::AtOnce => continue,
                Close::ResetAtOnce => {
                    // Without lingering, close(2) resets.
                    let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    continue;
                }
                _ => {}
            }
            stream.set_nonblocking(true)?;
            // A connection that has ended meanwhile says so when it is read.
            let _ = socket::apply_tcp_options(&stream, &TcpOptions::default());
            let index = self.connections.iter().position(Option::is_none).unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.generation = (self.generation + 1) & 0x7fff_ffff;
            let token = u64::from(self.generation) << 32 | index as u64;
            self.epoll.add(&stream, token, Interest::Read)?;
            self.shared.counters.connections_open.fetch_add(1, Relaxed);
            self.connections[index] = Some(Connection {
                stream,
                token,
                input: Vec::new(),
                output: Vec::new(),
                written: 0,
                queries: 0,
                answers: 0,
                active: now(),
                deaf: false,
                interest: Interest::Read,
                ending: None,
            });
        }
    }

    fn serve_tcp(&mut self, token: u64, readable: bool) {
        if readable && !self.read_tcp(token) {
            self.end(token, false);
            return;
        }
        self.write_tcp(token);
    }

    /// Reads and answers what has come; returns false when the connection has ended.
    fn read_tcp(&mut self, token: u64) -> bool {
        let index = index_of(token);
        let Some(connection) = self.connections[index].as_mut().filter(|found| found.token == token) else {
            return true;
        };
        if connection.output.len() - connection.written > OUTPUT_MAX {
            return true;
        }
        let mut chunk = [0; 16384];
        match connection.stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => connection.input.extend_from_slice(&chunk[..count]),
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
            }
        }
        let input = std::mem::take(&mut connection.input);
        let plan = Arc::clone(&self.plan);
        let arrived = now();
        let mut at = 0;
        while let Some(message) = framed(&input[at..]) {
            at += 2 + message.len();
            self.shared.counters.tcp_queries.fetch_add(1, Relaxed);
            let Some(connection) = self.connections[index].as_mut() else { break };
            connection.queries += 1;
            connection.active = arrived;
            if self.plan.script.close == Close::ResetAfter(0) {
                connection.ending = Some(true);
                break;
            }
            let answered = if self.plan.script.first_only { Some(1) } else { self.plan.script.answers_max };
            if answered.is_some_and(|max| connection.queries > max) {
                continue;
            }
            self.answer(&plan, message, Route::Tcp(token), arrived);
        }
        if let Some(connection) = self.connections[index].as_mut() {
            connection.input = input;
            connection.input.drain(..at);
        }
        true
    }

    /// Writes what there is, and ends the connection if that was to be its end.
    fn write_tcp(&mut self, token: u64) {
        let Some(connection) =
            self.connections[index_of(token)].as_mut().filter(|found| found.token == token)
        else {
            return;
        };
        while connection.written < connection.output.len() {
            match connection.stream.write(&connection.output[connection.written..]) {
                Ok(count) => connection.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.end(token, false),
            }
        }
        let all = connection.written == connection.output.len();
        if all {
            connection.output.clear();
            connection.written = 0;
            if let Some(reset) = connection.ending {
                return self.end(token, reset);
            }
        }
        let interest = if all { Interest::Read } else { Interest::ReadWrite };
        if interest != connection.interest {
            connection.interest = interest;
            if self.epoll.modify(&connection.stream, token, interest).is_err() {
                self.end(token, true);
            }
        }
    }

    fn end(&mut self, token: u64, reset: bool) {
        let place = &mut self.connections[index_of(token)];
        if let Some(connection) = place.take_if(|found| found.token == token) {
            if reset {
                // Without lingering, close(2) resets.
                let _ = socket2::SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO));
            }
            self.shared.counters.connections_open.fetch_sub(1, Relaxed);
        }
    }
}

impl Plan {
    /// Whether every answer leaves as soon as its query has been read.
    fn is_prompt(&self) -> bool {
        self.script.delay.is_zero() && self.script.jitter.is_zero() && self.script.late.is_none()
    }
}

fn index_of(token: u64) -> usize {
    (token & 0xffff_ffff) as usize
}

/// Returns the first message of a stream, if all of it is there (RFC 1035 §4.2.2).
fn framed(input: &[u8]) -> Option<&[u8]> {
    let length = usize::from(u16::from_be_bytes(input.get(..2)?.try_into().ok()?));
    input.get(2..2 + length)
}

/// Answers that wait for their time; those due at one time leave in the order in which they came.
#[derive(Default)]
struct LateQueue {
    order: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    places: Vec<Option<(Route, Vec<u8>)>>,
    free: Vec<u32>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    pushed: u64,
}

impl LateQueue {
    fn next(&self) -> Option<Instant> {
        self.order.peek().map(|Reverse((due, ..))| *due)
    }

    /// How long to sleep until the next is due; `None` when nothing waits.
    fn wait(&self, now: Instant) -> Option<Duration> {
        let rest = self.next()?.saturating_duration_since(now);
        Some(if self.order.len() <= POLLED_MAX { rest.saturating_sub(WAKE_UP) } else { rest })
    }

    fn push(&mut self, due: Instant, route: Route, write: impl FnOnce(&mut Vec<u8>)) {
        if self.order.len() == LATE_MAX {
            return;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        write(&mut bytes);
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() as u32 - 1
        });
        self.places[place as usize] = Some((route, bytes));
        self.pushed += 1;
        self.order.push(Reverse((due, self.pushed, place)));
    }

    fn pop(&mut self, now: Instant) -> Option<(Route, Vec<u8>)> {
        let Reverse((due, _, place)) = *self.order.peek()?;
        if due > now {
            return None;
        }
        self.order.pop();
        self.free.push(place);
        self.places[place as usize].take()
    }

    fn give_back(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.spare.push(bytes);
    }
}

//! One thread of load: its sockets, its queries, one loop.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use forebay::sys::epoll::{Epoll, Event, Interest};
use forebay::sys::{
    ConnectedRecvBatch, SendBatch, TcpOptions, UdpOptions, clock, now, socket, tcp_socket, udp_connected,
};
use forebay_core::Instant;

use super::names::{NameSource, NameTable};
use super::report::Outcome;
use super::schedule::Schedule;
use super::slots::{Sent, Slots};
use super::{BenchError, DnsLoad, Shared, Transport, Verify};
use crate::message::{HEADER, QueryType, hash, next_record, u16_at};
use crate::responder::expected_a_of_wire;

/// A query that leaves so much after its time, with room for it, is the generator's fault.
const LATE: Duration = Duration::from_millis(1);

/// In open loop, how long to gather queries that are due before sending them together.
const GATHER: Duration = Duration::from_micros(20);

/// How long to wait before connecting anew to a server that ended a connection.
const RECONNECT_AFTER: Duration = Duration::from_millis(10);

/// How long a connection may take at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often counters are shown to whoever watches.
const TELL_EVERY: Duration = Duration::from_millis(50);

pub(super) struct Worker<'a> {
    load: &'a DnsLoad,
    shared: &'a Shared,
    names: NameSource<'a>,
    links: Vec<Link>,
    slots: Slots,
    /// Clients that have a free place, each once.
    needy: VecDeque<u32>,
    is_needy: Vec<bool>,
    epoll: Epoll,
    recv: ConnectedRecvBatch,
    send: SendBatch,
    schedule: Option<Schedule>,
    /// How many connections are to be made anew.
    broken: usize,
    /// Queries that may still be sent.
    quota: u64,
    outcome: Outcome,
    told_at: Instant,
}

enum Link {
    Udp(UdpSocket),
    Tcp(TcpLink),
}

struct TcpLink {
    /// `None` until it is connected anew.
    stream: Option<TcpStream>,
    reconnect_at: Instant,
    input: Vec<u8>,
    output: Vec<u8>,
    written: usize,
    interest: Interest,
}

impl<'a> Worker<'a> {
    pub(super) fn new(
        load: &'a DnsLoad,
        names: &'a NameTable,
        shared: &'a Shared,
        seed: u64,
        number: usize,
    ) -> Result<Self, BenchError> {
        let share = |total: u64, of: u64, index: u64| total / of + u64::from(index < total % of);
        let mine: Vec<usize> = (number..load.clients).step_by(load.threads).collect();
        let per_client =
            |&client: &usize| share(load.in_flight as u64, load.clients as u64, client as u64) as usize;
        let slots = Slots::new(mine.iter().map(per_client));
        let epoll = Epoll::new(256).map_err(|error| BenchError::io("cannot wait for sockets", error))?;
        let mut outcome = Outcome::new();
        let mut links = Vec::with_capacity(mine.len());
        for token in 0..mine.len() {
            let link =
                Link::open(load).and_then(|link| link.watch(&epoll, token as u64).map(|()| link)).map_err(
                    |error| BenchError::io(format!("cannot open client {token} to {}", load.target), error),
                )?;
            outcome.sockets += 1;
            links.push(link);
        }
        let schedule = Schedule::new(load, number, seed);
        Ok(Self {
            load,
            shared,
            names: names.source(seed, number, load.threads),
            needy: (0..links.len() as u32).collect(),
            is_needy: vec![true; links.len()],
            links,
            slots,
            epoll,
            recv: ConnectedRecvBatch::new(64, 4096),
            send: SendBatch::new(64, 64 * 128),
            schedule,
            broken: 0,
            quota: load
                .queries
                .map_or(u64::MAX, |queries| share(queries, load.threads as u64, number as u64)),
            outcome,
            told_at: Instant::ZERO,
        })
    }

    /// Returns what has been counted.
    pub(super) fn outcome(self) -> Outcome {
        self.outcome
    }

    /// Sends and receives until it is over. Times count from `started`.
    pub(super) fn run(&mut self, started: Instant) -> io::Result<()> {
        clock::exact_timers()?;
        let cpu_before = clock::thread_cpu_time();
        let end = self.load.duration.map_or(Instant::MAX, |duration| started + duration);
        let mut events: Vec<Event> = Vec::with_capacity(256);
        let mut sending_until = None;
        loop {
            let now = now();
            self.expire(now);
            if self.broken > 0 {
                self.reconnect(now)?;
            }
            if sending_until.is_none() {
                self.send_due(started, now, end)?;
                if now >= end || self.quota == 0 || self.shared.stop.load(Relaxed) {
                    sending_until = Some(now.min(end));
                }
            }
            if sending_until.is_some() && self.slots.in_flight() == 0 {
                break;
            }
            self.tell(now);
            let no_place = self.needy.is_empty();
            let wake = self.wake_at(now, started, end, sending_until.is_some());
            let timeout = wake.saturating_duration_since(forebay::sys::now());
            events.clear();
            events.extend(self.epoll.wait(Some(timeout))?);
            if no_place && let Some(schedule) = &mut self.schedule {
                schedule.held_back_at = forebay::sys::now();
            }
            for event in &events {
                let client = event.token as usize;
                self.receive(client, event)?;
                if self.schedule.is_none() && sending_until.is_none() && self.slots.free(client) > 0 {
                    self.fill(client, usize::MAX, None)?;
                }
            }
        }
        self.outcome.ended = sending_until.unwrap_or(end).max(self.outcome.last_answer);
        self.outcome.count_thread(clock::thread_cpu_time() - cpu_before, started);
        if let Some(schedule) = &mut self.schedule {
            let until = sending_until.unwrap_or(end).min(end).saturating_duration_since(started);
            self.outcome.unsent += schedule.due(until).min(self.quota);
        }
        self.tell(Instant::MAX);
        Ok(())
    }

    /// When something must be done even if nothing comes.
    fn wake_at(&self, now: Instant, started: Instant, end: Instant, drains: bool) -> Instant {
        let mut wake = now + TELL_EVERY;
        if let Some(oldest) = self.slots.oldest_left_at() {
            wake = wake.min(oldest + self.load.timeout);
        }
        if drains {
            return wake;
        }
        wake = wake.min(end);
        match &self.schedule {
            Some(schedule) if !self.needy.is_empty() => wake.min(schedule.next(started).max(now + GATHER)),
            // In closed loop, whoever still needs to send waits for a connection.
            None if !self.needy.is_empty() => wake.min(now + RECONNECT_AFTER),
            _ => wake,
        }
    }

    /// Sends what is due.
    fn send_due(&mut self, started: Instant, now: Instant, end: Instant) -> io::Result<()> {
        let Some(schedule) = &mut self.schedule else {
            // Closed loop: every free place is due. Each client is looked at once, as some may be unable to send.
            if now < end {
                for _ in 0..self.needy.len() {
                    let Some(client) = self.next_needy() else { break };
                    self.fill(client, usize::MAX, None)?;
                }
            }
            return Ok(());
        };
        let mut due = schedule.due(now.min(end).saturating_duration_since(started));
        let mut tries = self.needy.len() * 2;
        while due > 0 && tries > 0 && self.quota > 0 {
            let Some(client) = self.next_needy() else { break };
            let sent = self.fill(client, due.min(64) as usize, Some(started))?;
            due -= sent as u64;
            tries -= usize::from(sent == 0);
        }
        if due > 0
            && let Some(schedule) = &mut self.schedule
        {
            schedule.held_back_at = now;
        }
        Ok(())
    }

    fn next_needy(&mut self) -> Option<usize> {
        let client = self.needy.pop_front()? as usize;
        self.is_needy[client] = false;
        Some(client)
    }

    fn note_need(&mut self, client: usize) {
        if !self.is_needy[client] {
            self.is_needy[client] = true;
            self.needy.push_back(client as u32);
        }
    }

    /// Sends up to `most` queries from `client`, and returns how many those were.
    ///
    /// `scheduled` is the start of an open loop; without it, queries are due now.
    fn fill(&mut self, client: usize, most: usize, scheduled: Option<Instant>) -> io::Result<usize> {
        let count = self.slots.free(client).min(most).min(usize::try_from(self.quota).unwrap_or(usize::MAX));
        let mut sent = 0;
        while sent < count {
            let now = now();
            let batch = (count - sent).min(64);
            if !self.links[client].can_send() {
                break;
            }
            for _ in 0..batch {
                let due = match (&mut self.schedule, scheduled) {
                    (Some(schedule), Some(started)) => {
                        let due = schedule.take(started);
                        if now.saturating_duration_since(due) > LATE {
                            if due <= schedule.held_back_at {
                                self.outcome.held_back += 1;
                            } else {
                                self.outcome.sent_late += 1;
                            }
                        }
                        due
                    }
                    _ => now,
                };
                self.write_query(client, due, now);
            }
            self.flush(client)?;
            sent += batch;
        }
        self.quota -= sent as u64;
        self.outcome.sent += sent as u64;
        if self.slots.free(client) > 0 && self.quota > 0 {
            self.note_need(client);
        }
        Ok(sent)
    }

    fn write_query(&mut self, client: usize, due: Instant, now: Instant) {
        let id = self.slots.take(client, now);
        let (names, load) = (&mut self.names, self.load);
        let mut sent = Sent { due, question: 0, question_length: 0 };
        let mut write = |out: &mut Vec<u8>| {
            let start = out.len();
            let id = id.to_be_bytes();
            let additional = u8::from(load.edns_size.is_some());
            out.extend_from_slice(&[id[0], id[1], 1, 0, 0, 1, 0, 0, 0, 0, 0, additional]);
            names.write(out);
            let question = &out[start + HEADER..];
            sent.question = hash(question);
            sent.question_length = question.len() as u16;
            if let Some(size) = load.edns_size {
                let size = size.to_be_bytes();
                let dnssec_ok = if load.dnssec_ok { 0x80 } else { 0 };
                out.extend_from_slice(&[
                    0,
                    0,
                    QueryType::OPT.0 as u8,
                    size[0],
                    size[1],
                    0,
                    0,
                    dnssec_ok,
                    0,
                    0,
                    0,
                ]);
            }
        };
        match &mut self.links[client] {
            Link::Udp(_) => {
                self.send.push(None, None, write);
            }
            Link::Tcp(link) => {
                let start = link.output.len();
                link.output.extend_from_slice(&[0; 2]);
                let out = &mut link.output;
                write(out);
                let length = (out.len() - start - 2) as u16;
                out[start..start + 2].copy_from_slice(&length.to_be_bytes());
            }
        }
        self.slots.fill(client, id, sent);
    }

    fn flush(&mut self, client: usize) -> io::Result<()> {
        match &mut self.links[client] {
            Link::Udp(socket) => {
                // A network that takes nothing for so long loses these: they will time out.
                for _ in 0..100 {
                    let flush = self.send.flush(socket.as_fd())?;
                    if let Some(error) = flush.error {
                        self.outcome.trouble(&error);
                    }
                    if flush.left == 0 {
                        break;
                    }
                    let mut room = Epoll::new(1)?;
                    room.add(&*socket, 0, Interest::ReadWrite)?;
                    drop(room.wait(Some(Duration::from_millis(1)))?);
                }
                self.send.clear();
                Ok(())
            }
            Link::Tcp(_) => self.write_tcp(client),
        }
    }

    fn receive(&mut self, client: usize, event: &Event) -> io::Result<()> {
        match &mut self.links[client] {
            Link::Udp(_) => self.receive_udp(client),
            Link::Tcp(_) => {
                if event.readable {
                    self.receive_tcp(client)?;
                }
                self.write_tcp(client)
            }
        }
    }

    fn receive_udp(&mut self, client: usize) -> io::Result<()> {
        loop {
            let Link::Udp(socket) = &self.links[client] else { return Ok(()) };
            match self.recv.recv(socket.as_fd()) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    self.outcome.trouble(&error);
                    return Ok(());
                }
            }
            let now = now();
            let mut judge = Judge { load: self.load, slots: &mut self.slots, outcome: &mut self.outcome };
            let mut count = 0;
            for (answer, _) in self.recv.payloads() {
                judge.answer(client, answer, now);
                count += 1;
            }
            if self.slots.free(client) > 0 {
                self.note_need(client);
            }
            if count < self.recv.capacity() {
                return Ok(());
            }
        }
    }

    fn receive_tcp(&mut self, client: usize) -> io::Result<()> {
        let Link::Tcp(link) = &mut self.links[client] else { return Ok(()) };
        let Some(stream) = &mut link.stream else { return Ok(()) };
        let mut chunk = [0; 65536];
        match stream.read(&mut chunk) {
            Ok(0) => return self.lose(client, None),
            Ok(count) => link.input.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return Ok(());
            }
            Err(error) => return self.lose(client, Some(error)),
        }
        let now = now();
        let mut judge = Judge { load: self.load, slots: &mut self.slots, outcome: &mut self.outcome };
        let mut at = 0;
        while let Some(length) = u16_at(&link.input, at)
            && let Some(answer) = link.input.get(at + 2..at + 2 + usize::from(length))
        {
            judge.answer(client, answer, now);
            at += 2 + usize::from(length);
        }
        link.input.drain(..at);
        if self.slots.free(client) > 0 {
            self.note_need(client);
        }
        Ok(())
    }

    fn write_tcp(&mut self, client: usize) -> io::Result<()> {
        let Link::Tcp(link) = &mut self.links[client] else { return Ok(()) };
        let Some(stream) = &mut link.stream else { return Ok(()) };
        while link.written < link.output.len() {
            match stream.write(&link.output[link.written..]) {
                Ok(count) => link.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return self.lose(client, Some(error)),
            }
        }
        let all = link.written == link.output.len();
        if all {
            link.output.clear();
            link.written = 0;
        }
        let interest = if all { Interest::Read } else { Interest::ReadWrite };
        if interest != link.interest {
            link.interest = interest;
            self.epoll.modify(&*stream, client as u64, interest)?;
        }
        Ok(())
    }

    /// Ends a connection that the server has ended: what was on its way is lost, and it will be made anew.
    fn lose(&mut self, client: usize, error: Option<io::Error>) -> io::Result<()> {
        let Link::Tcp(link) = &mut self.links[client] else { return Ok(()) };
        if link.stream.take().is_some() {
            self.broken += 1;
        }
        link.reconnect_at = now() + RECONNECT_AFTER;
        link.input.clear();
        link.output.clear();
        link.written = 0;
        match error {
            Some(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.outcome.trouble(&error),
            Some(error) => {
                self.outcome.closed += 1;
                self.outcome.trouble(&error);
            }
            None => self.outcome.closed += 1,
        }
        let lost = self.slots.release_all(client) as u64;
        if lost > 0 {
            self.outcome.last_lost = Some(now());
        }
        self.outcome.lost += lost;
        self.note_need(client);
        Ok(())
    }

    /// Makes ended connections anew, without waiting for them.
    fn reconnect(&mut self, now: Instant) -> io::Result<()> {
        for (client, link) in self.links.iter_mut().enumerate() {
            let Link::Tcp(link) = link else { continue };
            if link.stream.is_some() || link.reconnect_at > now {
                continue;
            }
            link.reconnect_at = now + RECONNECT_AFTER;
            let connected = tcp_socket(self.load.target, None, &TcpOptions::default()).and_then(|stream| {
                socket::tcp_connect_begin(&stream, self.load.target)?;
                Ok(stream)
            });
            match connected {
                Ok(stream) => {
                    link.interest = Interest::ReadWrite;
                    self.epoll.add(&stream, client as u64, link.interest)?;
                    link.stream = Some(stream);
                    self.broken -= 1;
                    self.outcome.sockets += 1;
                }
                Err(error) => self.outcome.trouble(&error),
            }
        }
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        loop {
            let left_at = self.slots.oldest_left_at();
            let Some(client) = self.slots.expire(now, self.load.timeout) else { return };
            self.outcome.lost += 1;
            self.outcome.last_lost = self.outcome.last_lost.max(left_at);
            self.note_need(client);
        }
    }

    fn tell(&mut self, now: Instant) {
        if now < self.told_at + TELL_EVERY {
            return;
        }
        self.told_at = now;
        let told = std::mem::replace(
            &mut self.outcome.told,
            [self.outcome.sent, self.outcome.answered, self.outcome.lost],
        );
        let shown = [&self.shared.sent, &self.shared.answered, &self.shared.lost];
        for ((shown, before), after) in shown.into_iter().zip(told).zip(self.outcome.told) {
            shown.fetch_add(after - before, Relaxed);
        }
    }
}

impl Link {
    fn open(load: &DnsLoad) -> io::Result<Self> {
        match load.transport {
            Transport::Udp => {
                let per_client = load.in_flight / load.clients;
                let options = UdpOptions {
                    recv_buffer_bytes: (per_client > 64).then_some(per_client * 2048),
                    ..UdpOptions::default()
                };
                udp_connected(load.target, None, &options).map(Self::Udp)
            }
            Transport::Tcp => {
                let stream = TcpStream::connect_timeout(&load.target, CONNECT_TIMEOUT)?;
                stream.set_nonblocking(true)?;
                socket::apply_tcp_options(&stream, &TcpOptions::default())?;
                Ok(Self::Tcp(TcpLink {
                    stream: Some(stream),
                    reconnect_at: Instant::ZERO,
                    input: Vec::new(),
                    output: Vec::new(),
                    written: 0,
                    interest: Interest::Read,
                }))
            }
        }
    }

    fn watch(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        match self {
            Self::Udp(socket) => epoll.add(socket, token, Interest::Read),
            Self::Tcp(TcpLink { stream: Some(stream), .. }) => epoll.add(stream, token, Interest::Read),
            Self::Tcp(_) => Ok(()),
        }
    }

    fn can_send(&self) -> bool {
        !matches!(self, Self::Tcp(TcpLink { stream: None, .. }))
    }
}

/// Compares answers with their queries.
struct Judge<'a> {
    load: &'a DnsLoad,
    slots: &'a mut Slots,
    outcome: &'a mut Outcome,
}

impl Judge<'_> {
    fn answer(&mut self, client: usize, answer: &[u8], now: Instant) {
        let found = (answer.len() >= HEADER && answer[2] & 0x80 != 0)
            .then(|| u16::from_be_bytes([answer[0], answer[1]]))
            .and_then(|id| self.slots.find(client, id).map(|sent| (id, sent)));
        let Some((id, sent)) = found else {
            self.outcome.unexpected += 1;
            return;
        };
        self.slots.release(client, id);
        let rcode = answer[3] & 0x0f;
        self.outcome.answered += 1;
        self.outcome.rcodes[usize::from(rcode)] += 1;
        self.outcome.truncated += u64::from(answer[2] & 0x02 != 0);
        self.outcome.last_answer = now;
        self.outcome.record(now.saturating_duration_since(sent.due));
        if !self.is_right(answer, rcode, &sent) {
            self.outcome.wrong += 1;
        }
    }

    fn is_right(&self, answer: &[u8], rcode: u8, sent: &Sent) -> bool {
        let end = HEADER + usize::from(sent.question_length);
        if u16_at(answer, 4) == Some(0) && rcode != 0 {
            // A server that could not read the query has no question to repeat.
            return true;
        }
        let Some(question) = answer.get(HEADER..end) else { return false };
        if u16_at(answer, 4) != Some(1) || hash(question) != sent.question {
            return false;
        }
        let is_address = u16_at(question, question.len() - 4) == Some(QueryType::A.0);
        if rcode != 0 || answer[2] & 0x02 != 0 || !is_address {
            return true;
        }
        let name = &question[..question.len() - 4];
        match self.load.verify {
            Verify::Off => true,
            Verify::Derived => first_address(answer, end) == Some(expected_a_of_wire(name)),
            Verify::With(is_right) => is_right(name, first_address(answer, end)),
        }
    }
}

/// Returns the first IPv4 address of the answer section, which begins at `at`.
fn first_address(answer: &[u8], mut at: usize) -> Option<Ipv4Addr> {
    for _ in 0..u16_at(answer, 6)? {
        let record = next_record(answer, &mut at)?;
        if record.rtype == QueryType::A {
            return Some(Ipv4Addr::from(<[u8; 4]>::try_from(record.data).ok()?));
        }
    }
    None
}

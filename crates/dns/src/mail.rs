//! What goes out: replies to clients and queries to upstreams, written straight into the buffers that the kernel reads.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use forebay::blame::cause_of;
use forebay::datagram::DatagramSocket;
use forebay::stream::Stream;
use forebay::sys::SendBatch;
use forebay::sys::udp::MESSAGES_MAX;
use forebay_core::{Cause, SlotId};
use forebay_dns_core::forwarder::{Client, How, Outbox, StreamKind};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::doh::link::RequestOut;
use crate::doh::reply::Requests;
use crate::query_log::QueryLog;

/// Room of a batch of replies, in bytes: 64 usual ones. It grows once if they are large.
const BATCH_BYTES: usize = 64 * 512;

/// Bytes that wait to be written on one stream before nothing more is read from it.
pub(crate) const STREAM_BACKLOG_BYTES: usize = 64 << 10;

/// Bytes that wait to be written to one client before it is left: answers to what is in flight still come when nothing
/// more is read, and who takes none of them must not hold the memory for all.
pub(crate) const CLIENT_BACKLOG_BYTES: usize = 512 << 10;

/// A UDP listener's way out.
pub(crate) struct UdpOut {
    pub(crate) socket: Rc<DatagramSocket>,
    pub(crate) batch: SendBatch,
    /// Woken when the kernel had no room: its owner waits until there is.
    pub(crate) stuck: Rc<Notify>,
}

/// A stream's way out: what the socket has not taken yet.
pub(crate) struct StreamOut {
    stream: Rc<Stream>,
    buffer: Vec<u8>,
    written: usize,
    /// Where the message ends that is being written, if each must go into a record of its own.
    apart: Option<usize>,
    dirty: bool,
    /// Wakes the task that owns the stream.
    pub(crate) wake: Rc<Notify>,
}

impl StreamOut {
    pub(crate) fn new(stream: Rc<Stream>, wake: Rc<Notify>) -> Self {
        Self { stream, buffer: Vec::new(), written: 0, apart: None, dirty: false, wake }
    }

    /// The same, with each message in a TLS record of its own. Some servers (NSD 4.6 is one) look at the socket again
    /// when they have taken one message out of a record, and find out about the next only when something else comes.
    /// They still go out together.
    pub(crate) fn apart(self) -> Self {
        Self { apart: Some(0), ..self }
    }

    /// Bytes that wait; those not counted that are encrypted already.
    pub(crate) const fn backlog(&self) -> usize {
        self.buffer.len() - self.written
    }

    /// Whether anything waits for the socket.
    pub(crate) fn waits(&self) -> bool {
        self.backlog() > 0 || self.stream.wants_write()
    }

    /// Adds a message with its length before it, as one piece (RFC 7766 §8).
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buffer.len();
        self.buffer.extend_from_slice(&[0; 2]);
        write(&mut self.buffer);
        let length = self.buffer.len() - start - 2;
        match u16::try_from(length) {
            Ok(length) if length > 0 => self.buffer[start..start + 2].copy_from_slice(&length.to_be_bytes()),
            _ => self.buffer.truncate(start),
        }
    }

    /// Where what is written at once ends.
    fn end(&mut self) -> usize {
        let all = self.buffer.len();
        let Some(end) = &mut self.apart else { return all };
        if self.written >= *end {
            let length = self.buffer.get(self.written..).and_then(|rest| rest.first_chunk::<2>());
            *end = self.written + 2 + length.map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
        }
        all.min(*end)
    }

    /// Writes what the socket takes now.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.buffer.len() {
            let end = self.end();
            match self.stream.write(&self.buffer[self.written..end]) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.buffer.clear();
        self.written = 0;
        self.apart = self.apart.map(|_| 0);
        self.stream.flush()
    }
}

/// A client's connection.
pub(crate) struct ClientOut {
    pub(crate) out: StreamOut,
    /// The address at its other end.
    pub(crate) peer: SocketAddr,
    /// What it carries messages in.
    pub(crate) kind: StreamKind,
    /// Queries that have not been answered.
    pub(crate) in_flight: u32,
    /// Whether its task reads nothing until a reply is out.
    pub(crate) paused: bool,
    /// Whether it is left: it reads too slowly for what it asks.
    pub(crate) left: bool,
}

/// A connection to an upstream.
pub(crate) struct LinkOut {
    generation: u32,
    pub(crate) task: AbortHandle,
    pub(crate) io: LinkIo,
}

pub(crate) enum LinkIo {
    /// Being dialled.
    Dialing,
    Datagram(Rc<DatagramSocket>),
    Stream(StreamOut),
    Requests(Box<RequestOut>),
}

/// Connections to upstreams, by the engine's slots.
#[derive(Default)]
pub(crate) struct Links {
    endpoints: Vec<Vec<Option<LinkOut>>>,
}

impl Links {
    pub(crate) fn insert(&mut self, slot: SlotId, task: AbortHandle, io: LinkIo) {
        let endpoint = slot.endpoint().index();
        if self.endpoints.len() <= endpoint {
            self.endpoints.resize_with(endpoint + 1, Vec::new);
        }
        let table = &mut self.endpoints[endpoint];
        if table.len() <= slot.index() {
            table.resize_with(slot.index() + 1, || None);
        }
        table[slot.index()] = Some(LinkOut { generation: slot.generation(), task, io });
    }

    pub(crate) fn get_mut(&mut self, slot: SlotId) -> Option<&mut LinkOut> {
        let link = self.endpoints.get_mut(slot.endpoint().index())?.get_mut(slot.index())?.as_mut()?;
        (link.generation == slot.generation()).then_some(link)
    }

    pub(crate) fn remove(&mut self, slot: SlotId) -> Option<LinkOut> {
        let place = self.endpoints.get_mut(slot.endpoint().index())?.get_mut(slot.index())?;
        place.take_if(|link| link.generation == slot.generation())
    }
}

/// Everything that goes out of one worker.
pub(crate) struct Mail {
    log: Option<QueryLog>,
    pub(crate) udp: Vec<UdpOut>,
    pub(crate) clients: HashMap<u64, ClientOut>,
    /// Clients' requests over HTTPS.
    pub(crate) requests: Requests,
    pub(crate) links: Links,
    /// Connections found broken while writing; told to the forwarder when it is not in the middle of something.
    pub(crate) broken: Vec<(SlotId, Cause)>,
    dirty_clients: Vec<u64>,
    dirty_links: Vec<SlotId>,
    scratch: Vec<u8>,
    /// Datagrams that the kernel did not take.
    pub(crate) dropped: u64,
}

impl Mail {
    pub(crate) fn new(udp: Vec<Rc<DatagramSocket>>, log: Option<QueryLog>) -> Self {
        let out = |socket| UdpOut {
            socket,
            batch: SendBatch::new(MESSAGES_MAX, BATCH_BYTES),
            stuck: Rc::new(Notify::new()),
        };
        Self {
            log,
            udp: udp.into_iter().map(out).collect(),
            clients: HashMap::new(),
            requests: Requests::default(),
            links: Links::default(),
            broken: Vec::new(),
            dirty_clients: Vec::new(),
            dirty_links: Vec::new(),
            scratch: Vec::new(),
            dropped: 0,
        }
    }

    /// Sends everything that has been collected.
    pub(crate) fn flush(&mut self) {
        for udp in &mut self.udp {
            if !udp.batch.is_empty() {
                self.dropped += flush_udp(udp);
            }
        }
        while let Some(connection) = self.dirty_clients.pop() {
            let Some(client) = self.clients.get_mut(&connection) else { continue };
            client.out.dirty = false;
            // An error shows again when its task reads.
            let failed = client.out.flush().is_err();
            if failed || client.paused || client.out.waits() || client.in_flight == 0 {
                client.out.wake.notify_one();
            }
        }
        while let Some(slot) = self.dirty_links.pop() {
            let Some(LinkOut { io: LinkIo::Stream(out), .. }) = self.links.get_mut(slot) else { continue };
            out.dirty = false;
            match out.flush() {
                Ok(()) if out.waits() => out.wake.notify_one(),
                Ok(()) => {}
                Err(error) => self.broken.push((slot, cause_of(&error))),
            }
        }
    }
}

impl Outbox for Mail {
    fn reply(&mut self, client: &Client, write: impl FnOnce(&mut Vec<u8>)) {
        match *client {
            Client::Udp { listener, peer, local } => {
                let udp = &mut self.udp[usize::from(listener)];
                if udp.batch.is_full() {
                    self.dropped += flush_udp(udp);
                }
                let log = self.log.as_mut();
                let write = |buffer: &mut Vec<u8>| logged(log, peer, "udp", buffer, write);
                if !udp.batch.push(Some(peer), local, write) {
                    self.dropped += 1;
                }
            }
            Client::Stream { connection, kind: StreamKind::Https, .. } => {
                let log = self.log.as_mut();
                self.requests.reply(connection, |peer, buffer| logged(log, peer, "https", buffer, write));
            }
            Client::Stream { connection, .. } => {
                let Some(client) = self.clients.get_mut(&connection) else { return };
                client.in_flight -= 1;
                if client.left || client.out.backlog() > CLIENT_BACKLOG_BYTES {
                    if !std::mem::replace(&mut client.left, true) {
                        client.out.wake.notify_one();
                    }
                    return;
                }
                let (log, peer, kind) = (self.log.as_mut(), client.peer, client.kind.as_str());
                client.out.push(|buffer| logged(log, peer, kind, buffer, write));
                if !std::mem::replace(&mut client.out.dirty, true) {
                    self.dirty_clients.push(connection);
                }
            }
        }
    }

    fn tell(&mut self, how: How, took: Duration) {
        if let Some(log) = &mut self.log {
            log.tell(how, took);
        }
    }

    fn transmit(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(link) = self.links.get_mut(slot) else { return };
        match &mut link.io {
            LinkIo::Dialing => {}
            LinkIo::Datagram(socket) => {
                self.scratch.clear();
                write(&mut self.scratch);
                match socket.socket().send(&self.scratch) {
                    Ok(_) => {}
                    // The socket's buffer is full: as good as lost on the way, and asked again after the time-out.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.dropped += 1,
                    Err(error) => self.broken.push((slot, cause_of(&error))),
                }
            }
            LinkIo::Requests(out) => out.push(write),
            LinkIo::Stream(out) => {
                out.push(write);
                if !std::mem::replace(&mut out.dirty, true) {
                    self.dirty_links.push(slot);
                }
            }
        }
    }
}

/// Writes a reply, and notes it in the log if there is one.
fn logged(
    log: Option<&mut QueryLog>,
    client: SocketAddr,
    protocol: &'static str,
    buffer: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let start = buffer.len();
    write(buffer);
    if let Some(log) = log {
        log.note(client, protocol, &buffer[start..]);
    }
}

/// Returns how many datagrams were refused for good.
fn flush_udp(udp: &mut UdpOut) -> u64 {
    match udp.batch.flush(udp.socket.as_fd()) {
        Ok(flush) => {
            if flush.left > 0 {
                udp.stuck.notify_one();
            }
            flush.failed as u64
        }
        Err(_) => {
            let lost = udp.batch.len() as u64;
            udp.batch.clear();
            lost
        }
    }
}

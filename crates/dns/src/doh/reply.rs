//! Where answers to HTTP requests go: straight into their streams.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use forebay_dns_core::web::freshness;
use forebay_dns_core::wire::Scan;
use h2::SendStream;
use h2::server::SendResponse;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tokio::sync::{Notify, oneshot};

use super::MEDIA_TYPE;
use super::request::Fault;
use super::watch::Watch;
use crate::mail::CLIENT_BACKLOG_BYTES;

/// Requests that wait for their answers, by their numbers.
#[derive(Default)]
pub(crate) struct Requests {
    waiting: HashMap<u64, (SocketAddr, Waiting)>,
    scan: Scan,
}

/// Whose answer it is.
pub(super) enum Waiting {
    /// A stream of HTTP/2.
    Stream {
        /// Its way out.
        respond: SendResponse<Bytes>,
        /// The connection it belongs to.
        connection: Rc<Connection>,
    },
    /// A task that serves HTTP/1.1, one request after the other.
    Task(oneshot::Sender<Response<Bytes>>),
}

impl Requests {
    pub(super) fn insert(&mut self, number: u64, peer: SocketAddr, waiting: Waiting) {
        if let Waiting::Stream { connection, .. } = &waiting {
            connection.in_flight.set(connection.in_flight.get() + 1);
        }
        self.waiting.insert(number, (peer, waiting));
    }

    /// Answers the request with this number. What writes the answer is told from which address it was asked.
    pub(crate) fn reply(&mut self, number: u64, write: impl FnOnce(SocketAddr, &mut Vec<u8>)) {
        let Some((peer, waiting)) = self.waiting.remove(&number) else { return };
        let mut body = Vec::new();
        write(peer, &mut body);
        let head = head_of(&body, &mut self.scan);
        waiting.send(head, body.into());
    }

    /// Tells the request with this number what is wrong with it.
    pub(super) fn refuse(&mut self, number: u64, fault: &Fault) {
        if let Some((_, waiting)) = self.waiting.remove(&number) {
            let (head, body) = refusal(fault).into_parts();
            waiting.send(Response::from_parts(head, ()), body);
        }
    }
}

impl Waiting {
    fn send(self, head: Response<()>, body: Bytes) {
        match self {
            Self::Stream { mut respond, connection } => {
                connection.in_flight.set(connection.in_flight.get() - 1);
                connection.answered.set(true);
                // A client that has given up its request needs nothing more.
                if let Ok(stream) = respond.send_response(head, body.is_empty()) {
                    connection.send(stream, body);
                }
                connection.wake.notify_one();
            }
            // The same: then nobody listens.
            Self::Task(sender) => drop(sender.send(head.map(|()| body))),
        }
    }
}

/// The head of a response with an answer in it.
fn head_of(message: &[u8], scan: &mut Scan) -> Response<()> {
    let mut response = Response::new(());
    let headers = response.headers_mut();
    headers.reserve(3);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CONTENT_LENGTH, message.len().into());
    // RFC 8484 §5.1: no longer than the answer holds; RFC 9111 §5.2.2.5 for what must not be kept.
    let keep = match freshness(message, scan) {
        Some(seconds) => HeaderValue::try_from(format!("max-age={seconds}")).ok(),
        None => None,
    };
    headers.insert(CACHE_CONTROL, keep.unwrap_or(NO_STORE));
    response
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// The response to a request that carries no query.
pub(super) fn refusal(fault: &Fault) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from_static(fault.text.as_bytes()));
    *response.status_mut() = fault.status;
    let headers: &mut HeaderMap = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, fault.text.len().into());
    headers.insert(CACHE_CONTROL, NO_STORE);
    if let Some((name, value)) = &fault.header {
        headers.insert(name, HeaderValue::from_static(value));
    }
    debug_assert!(fault.status != StatusCode::OK);
    response
}

/// What a connection of HTTP/2 and the answers for its streams have in common.
#[derive(Default)]
pub(super) struct Connection {
    /// Queries that have not been answered, those whose streams are gone included: a client that resets its streams
    /// must not have more of them than one that waits (CVE-2023-44487).
    pub(super) in_flight: Cell<u32>,
    /// Whether anything was answered since the last look.
    pub(super) answered: Cell<bool>,
    /// Wakes the connection's task.
    pub(super) wake: Notify,
    /// What is seen of the client.
    pub(super) watch: Rc<Watch>,
    /// Bytes of answers that were sent since the client takes nothing.
    pub(super) held: Cell<usize>,
    /// Whether the client is to be left: it takes none of too many answers.
    pub(super) left: Cell<bool>,
    /// Answers for which the client has given no room yet.
    blocked: RefCell<Vec<(SendStream<Bytes>, Bytes)>>,
    /// Their bytes.
    backlog: Cell<usize>,
}

impl Connection {
    pub(super) fn new(watch: Rc<Watch>) -> Self {
        Self { watch, ..Self::default() }
    }

    /// Sends a body, as far as the client lets it (RFC 9113 §5.2).
    pub(super) fn send(&self, mut stream: SendStream<Bytes>, body: Bytes) {
        if body.is_empty() {
            return;
        }
        if self.watch.stuck.get() {
            self.held.set(self.held.get() + body.len());
        }
        if self.left.get() || self.held.get() + self.backlog.get() > CLIENT_BACKLOG_BYTES {
            self.left.set(true);
            return;
        }
        stream.reserve_capacity(body.len());
        if stream.capacity() >= body.len() {
            // An error says that the stream is gone, and with it whoever wanted the answer.
            let _ = stream.send_data(body, true);
        } else {
            self.backlog.set(self.backlog.get() + body.len());
            self.blocked.borrow_mut().push((stream, body));
        }
    }

    /// Bytes that wait for room.
    pub(super) fn backlog(&self) -> usize {
        self.backlog.get()
    }

    /// Sends what the client has given room for since.
    pub(super) fn poll_blocked(&self, cx: &mut Context<'_>) {
        self.blocked.borrow_mut().retain_mut(|(stream, body)| {
            while let Poll::Ready(room) = stream.poll_capacity(cx) {
                let Some(Ok(room)) = room else {
                    // Reset: nobody wants the rest.
                    self.backlog.set(self.backlog.get() - body.len());
                    return false;
                };
                let part = body.split_to(room.min(body.len()));
                self.backlog.set(self.backlog.get() - part.len());
                let end = body.is_empty();
                if stream.send_data(part, end).is_err() || end {
                    self.backlog.set(self.backlog.get() - body.len());
                    return false;
                }
            }
            true
        });
    }
}

//! A client's connection that speaks HTTP/2 (RFC 9113).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay::sys;
use forebay_core::Instant;
use forebay_dns_core::forwarder::{Client, Handled, StreamKind};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};

use super::MESSAGE_BYTES_MAX;
use super::reply::{Connection, Waiting, refusal};
use super::request::{Asked, Fault, read};
use super::watch::{Watch, Watched};
use crate::mail::STREAM_BACKLOG_BYTES;
use crate::worker::{Shell, State};

/// What a client may send on one stream before we have taken it, in bytes: a whole message, and enough more to see that
/// it is too long.
const STREAM_WINDOW_BYTES: u32 = 65_536;

/// The same for all streams of a connection together. Bodies count until they are whole, so that this bounds what a
/// client that never finishes them can make us hold.
const CONNECTION_WINDOW_BYTES: u32 = 256 << 10;

/// The longest list of headers that is read, in bytes: a query in a URI has some hundred.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// Streams that a client may reset before we have seen them; more of them, and it is sent away (CVE-2023-44487).
const RESETS_MAX: usize = 20;

/// Protocol errors on single streams of one connection; more of them, and it is sent away.
const STREAM_ERRORS_MAX: usize = 100;

/// How much is read of the body of a request that is to be refused, in bytes, before its client is told all the same.
const THROWN_AWAY_BYTES_MAX: usize = 256 << 10;

/// Requests taken in a row before other tasks of the worker get their turn.
const REQUESTS_IN_A_ROW: usize = 64;

/// How long to wait before looking again at a client whose queries are still being answered.
const MOMENT: Duration = Duration::from_millis(100);

/// How long a client that was told goodbye is given to close.
const LINGER: Duration = Duration::from_secs(1);

/// Serves a connection on which the client speaks HTTP/2, until it ends.
pub(crate) async fn http2(
    shell: &Rc<Shell>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    path: &str,
) {
    let clients = &shell.config.clients;
    let watch = Rc::new(Watch::default());
    let handshake = h2::server::Builder::new()
        .max_concurrent_streams(clients.queries_max)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_concurrent_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
        .handshake(Watched { stream, watch: Rc::clone(&watch) });
    // Who says nothing is idle.
    let Ok(Ok(http)) = tokio::time::timeout(clients.idle_timeout.0, handshake).await else { return };
    let connection = Rc::new(Connection::new(watch));
    let serving = Serving { shell, peer, path, http, connection, bodies: FuturesUnordered::new() };
    serving.run().await;
}

/// One connection.
struct Serving<'a, S: AsyncRead + AsyncWrite + Unpin> {
    shell: &'a Rc<Shell>,
    peer: SocketAddr,
    path: &'a str,
    http: h2::server::Connection<Watched<S>, Bytes>,
    connection: Rc<Connection>,
    /// Bodies that are not whole yet.
    bodies: FuturesUnordered<BodyReader>,
}

/// A request with its query, or what is wrong with it.
type Arrived = (SendResponse<Bytes>, Result<Bytes, Fault>);

/// Reads the body of a request; `None` when its stream is gone.
type BodyReader = Pin<Box<dyn Future<Output = Option<Arrived>>>>;

/// What happened on a connection.
enum News {
    /// Queries, or what was meant to be.
    Queries(Vec<Arrived>),
    /// It is over.
    End,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Serving<'_, S> {
    async fn run(mut self) {
        let idle_timeout = self.shell.config.clients.idle_timeout.0;
        let mut leaving = false;
        let mut progress = sys::now();
        let mut taken = 0;
        let alarm = tokio::time::sleep(idle_timeout);
        tokio::pin!(alarm);
        loop {
            if self.shell.is_draining() && !leaving {
                // What is in flight is answered; the client asks elsewhere from now on (RFC 9113 §6.8).
                leaving = true;
                self.http.graceful_shutdown();
            }
            let (shell, connection) = (Rc::clone(self.shell), Rc::clone(&self.connection));
            tokio::select! {
                news = poll_fn(|cx| self.poll(cx)) => match news {
                    News::Queries(queries) => {
                        progress = sys::now();
                        self.take(progress, queries);
                    }
                    News::End => return,
                },
                () = connection.wake.notified() => {}
                () = shell.stop.notified(), if !leaving => {}
                () = &mut alarm => {
                    let now = sys::now();
                    // Who reads slowly is not idle; who reads nothing is.
                    if self.is_stuck() && self.connection.watch.taken.get() != taken {
                        progress = now;
                    }
                    taken = self.connection.watch.taken.get();
                    let due = progress + if leaving { LINGER.min(idle_timeout) } else { idle_timeout };
                    let waits_for_us = self.connection.in_flight.get() > 0 && !self.is_stuck();
                    if now >= due && !waits_for_us {
                        if leaving || self.is_stuck() || !self.bodies.is_empty() {
                            return;
                        }
                        leaving = true;
                        progress = now;
                        self.http.graceful_shutdown();
                    }
                    let pause = due.saturating_duration_since(now).max(MOMENT);
                    alarm.as_mut().reset(tokio::time::Instant::now() + pause);
                }
            }
            if self.connection.answered.take() {
                progress = sys::now();
            }
        }
    }

    /// Whether the client does not take what is there for it.
    fn is_stuck(&self) -> bool {
        self.connection.watch.stuck.get() || self.connection.backlog() > 0
    }

    /// Whether nothing more is taken until answers have gone out.
    fn is_paused(&self) -> bool {
        self.connection.in_flight.get() >= self.shell.config.clients.queries_max
            || self.connection.backlog() >= STREAM_BACKLOG_BYTES
            || self.connection.watch.stuck.get()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<News> {
        let mut queries = Vec::new();
        if self.connection.left.get() {
            return Poll::Ready(News::End);
        }
        if !self.connection.watch.stuck.get() {
            self.connection.held.set(0);
        }
        self.connection.poll_blocked(cx);
        loop {
            if self.is_paused() || queries.len() >= REQUESTS_IN_A_ROW {
                if self.http.poll_closed(cx).is_ready() {
                    return Poll::Ready(News::End);
                }
                if self.is_paused() || !queries.is_empty() {
                    break;
                }
            }
            match self.http.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(cx, request, respond, &mut queries),
                // After an error of the connection there is nothing left to tell the client.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(News::End),
                Poll::Pending => break,
            }
        }
        while let Poll::Ready(Some(whole)) = self.bodies.poll_next_unpin(cx) {
            queries.extend(whole);
        }
        if queries.is_empty() { Poll::Pending } else { Poll::Ready(News::Queries(queries)) }
    }

    fn begin(
        &self,
        cx: &mut Context<'_>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        queries: &mut Vec<Arrived>,
    ) {
        let (head, mut body) = request.into_parts();
        match read(self.path, &head.method, &head.uri, &head.headers) {
            Ok(Asked::Query(query)) => queries.push((respond, Ok(query.into()))),
            Ok(Asked::Body) => match body.poll_data(cx) {
                // The usual case: the whole query came with the head.
                Poll::Ready(Some(Ok(part))) if body.is_end_stream() && part.len() <= MESSAGE_BYTES_MAX => {
                    let _ = body.flow_control().release_capacity(part.len());
                    queries.push((respond, Ok(part)));
                }
                Poll::Ready(Some(Err(_))) => {}
                Poll::Ready(part) => self.bodies.push(Box::pin(collect(respond, part, body))),
                Poll::Pending => self.bodies.push(Box::pin(collect(respond, None, body))),
            },
            Err(fault) if body.is_end_stream() => queries.push((respond, Err(fault))),
            Err(fault) => self.bodies.push(Box::pin(throw_away(respond, fault, body))),
        }
    }

    fn take(&self, now: Instant, queries: Vec<Arrived>) {
        {
            let State { forwarder, mail, .. } = &mut *self.shell.state.borrow_mut();
            for (mut respond, query) in queries {
                let query = match query {
                    Ok(query) => query,
                    Err(fault) => {
                        let (head, body) = refusal(&fault).into_parts();
                        if let Ok(stream) = respond.send_response(http::Response::from_parts(head, ()), false)
                        {
                            self.connection.send(stream, body);
                        }
                        continue;
                    }
                };
                let number = self.shell.next_connection();
                let connection = Rc::clone(&self.connection);
                mail.requests.insert(number, self.peer, Waiting::Stream { respond, connection });
                let client = Client::Stream {
                    connection: number,
                    peer: self.peer.ip(),
                    kind: StreamKind::Https,
                    idle: 0,
                };
                if forwarder.handle_query(now, client, &query, mail) == Handled::Ignored {
                    mail.requests.refuse(number, &Fault::no_query());
                }
            }
        }
        self.shell.settle();
    }
}

/// Reads the rest of a body. `None` when its stream is gone.
async fn collect(
    respond: SendResponse<Bytes>,
    first: Option<Result<Bytes, h2::Error>>,
    mut body: RecvStream,
) -> Option<Arrived> {
    let mut bytes = first.transpose().ok()?.map_or_else(Vec::new, Vec::from);
    while let Some(part) = body.data().await {
        let part = part.ok()?;
        bytes.extend_from_slice(&part);
        if bytes.len() > MESSAGE_BYTES_MAX {
            let _ = body.flow_control().release_capacity(bytes.len());
            return throw_away(respond, Fault::too_large(), body).await;
        }
    }
    // Room is given back only now: what is not whole counts against the connection's window.
    let _ = body.flow_control().release_capacity(bytes.len());
    Some((respond, Ok(bytes.into())))
}

/// Reads the body of a request that is to be refused: who is answered while still sending may not read the answer. Not
/// for ever, though. `None` when its stream is gone.
async fn throw_away(respond: SendResponse<Bytes>, fault: Fault, mut body: RecvStream) -> Option<Arrived> {
    let mut left = THROWN_AWAY_BYTES_MAX;
    while let Some(part) = body.data().await {
        let length = part.ok()?.len();
        let _ = body.flow_control().release_capacity(length);
        left = left.saturating_sub(length);
        if left == 0 {
            break;
        }
    }
    Some((respond, Err(fault)))
}

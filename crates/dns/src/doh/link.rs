//! A connection to an upstream that speaks HTTP/2 (RFC 8484, RFC 9113): one stream for each query, all in one task.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use forebay::blame::cause_of;
use forebay::stream::Stream;
use forebay::sys;
use forebay::tls::ALPN_HTTP;
use forebay_core::{Cause, SlotId};
use forebay_dns_core::web::age_ttls;
use forebay_dns_core::wire::Scan;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::header::{ACCEPT, AGE, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;

use super::request::is_dns_message;
use super::watch::{Watch, Watched};
use super::{MEDIA_TYPE, MESSAGE_BYTES_MAX, Pipe};
use crate::link::end;
use crate::mail::{LinkIo, LinkOut};
use crate::settings::UpstreamAddress;
use crate::worker::{Shell, State};

/// How many queries are sent on a connection before the upstream has said how many it takes: it should take 100
/// (RFC 9113 §6.5.2). Not that number, so that one sees when it has spoken.
const STREAMS_FIRST: u32 = 97;

/// What the upstream may send on all streams of a connection before we have read it, in bytes.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;

/// The same for one stream: a whole answer.
const STREAM_WINDOW_BYTES: u32 = 65_535;

/// The longest list of headers that is read, in bytes.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// Where queries are written.
pub(crate) struct RequestOut {
    sender: SendRequest<Bytes>,
    uri: Uri,
    headers: HeaderMap,
    /// Queries that the connection has no room for yet.
    waiting: VecDeque<(u16, Bytes)>,
    /// Queries that have been sent since the connection's task last looked.
    sent: Vec<Sent>,
    /// Queries that cannot be sent on this connection any more.
    unsent: Vec<u16>,
    /// How many the connection began with.
    first: usize,
    wake: Rc<Notify>,
}

/// A query that is on its way.
struct Sent {
    id: u16,
    response: ResponseFuture,
    /// Whether it went out before the upstream said how many it takes.
    early: bool,
}

impl RequestOut {
    /// Sends a query; its id becomes 0 (RFC 8484 §4.1), and comes back with the answer.
    pub(crate) fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut query = Vec::with_capacity(QUERY_BYTES);
        write(&mut query);
        let Some(place) = query.first_chunk_mut::<2>() else { return };
        let id = u16::from_be_bytes(std::mem::take(place));
        self.waiting.push_back((id, query.into()));
        if self.waiting.len() == 1 {
            self.send();
        }
        self.wake.notify_one();
    }

    /// Sends the first of those that wait, if there is room. Returns whether it is gone.
    fn send(&mut self) -> bool {
        let Some((id, query)) = self.waiting.front() else { return false };
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_LENGTH, query.len().into());
        *request.headers_mut() = headers;
        let early = self.sender.current_max_send_streams() == self.first;
        match self.sender.send_request(request, false) {
            Ok((response, mut body)) => {
                // What went wrong with the stream shows in its response.
                let _ = body.send_data(query.clone(), true);
                self.sent.push(Sent { id: *id, response, early });
            }
            Err(error) if is_full(&error) => return false,
            Err(_) => self.unsent.push(*id),
        }
        self.waiting.pop_front();
        true
    }
}

/// A usual query, in bytes, and more.
const QUERY_BYTES: usize = 128;

/// Whether a query could not be sent because the peer lets no more be sent now.
fn is_full(error: &h2::Error) -> bool {
    // Everything else that goes wrong here comes from the peer, or is an end of the connection.
    !error.is_go_away()
        && !error.is_io()
        && !error.is_reset()
        && error.reason().is_none()
        && !error.is_library()
}

/// A connection that has been made.
struct Link<S> {
    connection: Connection<Watched<S>, Bytes>,
    watch: Rc<Watch>,
    ping: Option<PingPong>,
    first: usize,
    wake: Rc<Notify>,
}

/// Carries queries over a connection that has been dialled, until it ends; or tells that it could not be.
pub(crate) async fn run(shell: &Rc<Shell>, slot: SlotId, endpoint: u16, dialed: Result<Stream, Cause>) {
    let upstream = &shell.config.upstreams()[usize::from(endpoint)];
    let first = shell.directory.streams(endpoint).unwrap_or(STREAMS_FIRST);
    let opened = match dialed {
        Ok(stream) if !stream.speaks(ALPN_HTTP[0]) => {
            // A server without ALPN (RFC 7301 §3.2) speaks HTTP/1.1 at best.
            tracing::warn!(%upstream, "an upstream does not speak HTTP/2, which DNS over HTTPS needs");
            Err(Cause::Protocol)
        }
        Ok(stream) => open(Pipe::new(stream), uri(upstream), first).await,
        Err(cause) => Err(cause),
    };
    let mut link = None;
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        let result = match (opened, mail.links.get_mut(slot)) {
            (Ok((out, opened)), Some(place)) => {
                place.io = LinkIo::Requests(Box::new(out));
                link = Some(opened);
                Ok(first)
            }
            (Err(cause), _) => {
                drop(mail.links.remove(slot));
                Err(cause)
            }
            // It was given up meanwhile.
            (Ok(_), None) => return,
        };
        forwarder.handle_dialed(sys::now(), slot, result, mail);
    }
    shell.settle();
    if let Some(link) = link {
        let cause = link.carry(shell, slot, endpoint).await;
        end(shell, slot, cause);
    }
}

/// What is asked: by the name in the certificate, which the server may tell its services apart by (RFC 9110 §7.2).
fn uri(upstream: &UpstreamAddress) -> Uri {
    let UpstreamAddress { host, port, path, name, .. } = upstream;
    let host = name.clone().unwrap_or_else(|| host.to_string());
    let authority = if *port == 443 { host } else { format!("{host}:{port}") };
    // The parts have been checked when they were read.
    Uri::builder()
        .scheme("https")
        .authority(authority)
        .path_and_query(path.as_str())
        .build()
        .unwrap_or_default()
}

/// Begins HTTP/2 on a stream. Queries can be sent at once: what the upstream has to say comes later.
async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    uri: Uri,
    first: u32,
) -> Result<(RequestOut, Link<S>), Cause> {
    let watch = Rc::new(Watch::default());
    let handshake = h2::client::Builder::new()
        .enable_push(false)
        .initial_max_send_streams(first as usize)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .handshake(Watched { stream, watch: Rc::clone(&watch) });
    let (sender, mut connection) = handshake.await.map_err(|error| end_of(&error).unwrap_or(Cause::Reset))?;
    let mut headers = HeaderMap::with_capacity(3);
    headers.insert(ACCEPT, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    let wake = Rc::new(Notify::new());
    let out = RequestOut {
        sender,
        uri,
        headers,
        waiting: VecDeque::new(),
        sent: Vec::new(),
        unsent: Vec::new(),
        first: first as usize,
        wake: Rc::clone(&wake),
    };
    let ping = connection.ping_pong();
    Ok((out, Link { connection, watch, ping, first: first as usize, wake }))
}

/// What became of a query.
enum Verdict {
    /// Here is its answer.
    Answer(Vec<u8>),
    /// The upstream never looked at it.
    Unread,
    /// It failed.
    Failed(Cause),
    /// Its connection did, which shows there too.
    Connection,
}

/// What happened on a connection.
struct News {
    verdicts: Vec<(u16, Verdict)>,
    /// Whether the upstream takes no more queries on it.
    goodbye: bool,
    /// How many queries it takes at once, if that has changed.
    capacity: Option<u32>,
    /// Why it is over, if it is; without a cause, the upstream has closed it.
    end: Option<Option<Cause>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Link<S> {
    /// Carries queries and answers until the connection ends. Returns why; `None` when the upstream closed it.
    async fn carry(mut self, shell: &Rc<Shell>, slot: SlotId, endpoint: u16) -> Option<Cause> {
        let mut queries = FuturesUnordered::new();
        let mut capacity = self.first;
        let mut goodbye = false;
        let query_timeout = shell.config.query_timeout;
        let mut pulse = Pulse::new(shell.config.attempt_timeout);
        loop {
            let wake = Rc::clone(&self.wake);
            let news = tokio::select! {
                news = poll_fn(|cx| self.poll(cx, shell, slot, &mut queries, &mut capacity, &mut goodbye)) => news,
                () = wake.notified() => {
                    if queries.is_empty() {
                        pulse.rest(self.watch.read.get());
                    }
                    take_sent(shell, slot, |sent| queries.push(receive(sent, query_timeout)));
                    continue;
                }
                () = pulse.tick(), if !queries.is_empty() => {
                    match pulse.feel(self.watch.read.get(), self.ping.as_mut()) {
                        true => continue,
                        false => return Some(Cause::Timeout),
                    }
                }
            };
            if let Some(capacity) = news.capacity {
                shell.directory.note_streams(endpoint, capacity);
            }
            if let Some(end) = tell(shell, slot, news) {
                return end;
            }
        }
    }

    fn poll<F: Future<Output = (u16, Verdict)>>(
        &mut self,
        cx: &mut Context<'_>,
        shell: &Shell,
        slot: SlotId,
        queries: &mut FuturesUnordered<F>,
        capacity: &mut usize,
        goodbye: &mut bool,
    ) -> Poll<News> {
        let mut news = News { verdicts: Vec::new(), goodbye: false, capacity: None, end: None };
        if let Poll::Ready(end) = Pin::new(&mut self.connection).poll(cx) {
            news.end = Some(end.err().and_then(|error| end_of(&error)));
        }
        if let Some(ping) = &mut self.ping {
            // That it came is enough.
            let _ = ping.poll_pong(cx);
        }
        while let Poll::Ready(Some(verdict)) = queries.poll_next_unpin(cx) {
            news.verdicts.push(verdict);
        }
        if let Some(LinkOut { io: LinkIo::Requests(out), .. }) =
            shell.state.borrow_mut().mail.links.get_mut(slot)
        {
            match out.sender.poll_ready(cx) {
                Poll::Ready(Ok(())) => {
                    let mut more = false;
                    while out.send() {
                        more = true;
                    }
                    if more {
                        self.wake.notify_one();
                    }
                }
                Poll::Ready(Err(_)) => {
                    news.goodbye = !std::mem::replace(goodbye, true);
                    news.verdicts.extend(out.waiting.drain(..).map(|(id, _)| (id, Verdict::Unread)));
                }
                Poll::Pending => {}
            }
            news.verdicts.extend(out.unsent.drain(..).map(|id| (id, Verdict::Unread)));
            let allowed = out.sender.current_max_send_streams();
            if std::mem::replace(capacity, allowed) != allowed {
                news.capacity = Some(u32::try_from(allowed).unwrap_or(u32::MAX));
            }
        }
        let nothing =
            news.verdicts.is_empty() && !news.goodbye && news.capacity.is_none() && news.end.is_none();
        if nothing { Poll::Pending } else { Poll::Ready(news) }
    }
}

/// Hands over what has been sent since the last look.
fn take_sent(shell: &Shell, slot: SlotId, mut take: impl FnMut(Sent)) {
    if let Some(LinkOut { io: LinkIo::Requests(out), .. }) = shell.state.borrow_mut().mail.links.get_mut(slot)
    {
        out.sent.drain(..).for_each(&mut take);
    }
}

/// Tells the forwarder. Returns why the connection is over, if it is.
fn tell(shell: &Rc<Shell>, slot: SlotId, news: News) -> Option<Option<Cause>> {
    let now = sys::now();
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        if let Some(capacity) = news.capacity {
            forwarder.handle_capacity(now, slot, capacity, mail);
        }
        // First of all, lest what must be asked anew goes to the same connection.
        if news.goodbye || news.end.is_some() {
            forwarder.handle_goodbye(now, slot, mail);
        }
        for (id, verdict) in news.verdicts {
            match verdict {
                Verdict::Answer(mut bytes) => {
                    bytes[..2].copy_from_slice(&id.to_be_bytes());
                    if !forwarder.handle_answer(now, slot, &bytes, mail) {
                        // The stream is over: no better answer can come.
                        forwarder.handle_unanswered(now, slot, id, Some(Cause::Protocol), mail);
                    }
                }
                Verdict::Unread => forwarder.handle_unanswered(now, slot, id, None, mail),
                Verdict::Failed(cause) => forwarder.handle_unanswered(now, slot, id, Some(cause), mail),
                Verdict::Connection => {}
            }
        }
    }
    if news.end.is_none() {
        shell.settle();
    }
    news.end
}

/// Waits for what becomes of a query.
async fn receive(sent: Sent, limit: Duration) -> (u16, Verdict) {
    let Sent { id, response, early } = sent;
    let verdict = async {
        match response.await {
            Ok(response) => read(response).await,
            Err(error) => Err(error),
        }
    };
    // Nobody waits for an answer any longer. Letting go of the stream resets it.
    let verdict = match tokio::time::timeout(limit, verdict).await {
        Ok(Ok(verdict)) => verdict,
        Ok(Err(error)) => verdict_of(&error, early),
        Err(_) => Verdict::Failed(Cause::Timeout),
    };
    (id, verdict)
}

async fn read(response: Response<RecvStream>) -> Result<Verdict, h2::Error> {
    let (head, body) = response.into_parts();
    match head.status {
        StatusCode::OK if is_dns_message(&head.headers) => {}
        status => return Ok(Verdict::Failed(failure_of(status))),
    }
    let Some(mut answer) = collect(body).await? else { return Ok(Verdict::Failed(Cause::Protocol)) };
    if answer.len() < 2 {
        return Ok(Verdict::Failed(Cause::Protocol));
    }
    let age = head.headers.get(AGE).and_then(|age| age.to_str().ok()?.parse().ok()).unwrap_or(0);
    if age > 0 {
        age_ttls(&mut answer, age, &mut Scan::new());
    }
    Ok(Verdict::Answer(answer))
}

/// Reads a body; `None` if it is too long for a DNS message.
async fn collect(mut body: RecvStream) -> Result<Option<Vec<u8>>, h2::Error> {
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        if bytes.len() + part.len() > MESSAGE_BYTES_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&part);
        body.flow_control().release_capacity(part.len())?;
    }
    Ok(Some(bytes))
}

/// What a response without an answer says of the upstream.
fn failure_of(status: StatusCode) -> Cause {
    match status {
        // It has too much to do, and says so: others are asked.
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Cause::Refused,
        _ => Cause::Protocol,
    }
}

/// What the end of a stream says of its query.
fn verdict_of(error: &h2::Error, early: bool) -> Verdict {
    // RFC 9113 §8.7: streams above the last one of a GOAWAY, and refused ones, have not been looked at.
    if error.is_go_away() {
        return if error.is_remote() { Verdict::Unread } else { Verdict::Connection };
    }
    if error.is_reset() && error.is_remote() {
        return match error.reason() {
            // It could not have known better; who refuses what he allows is to blame.
            Some(Reason::REFUSED_STREAM) if early => Verdict::Unread,
            Some(Reason::REFUSED_STREAM) => Verdict::Failed(Cause::Refused),
            _ => Verdict::Failed(Cause::Reset),
        };
    }
    if error.is_io() { Verdict::Connection } else { Verdict::Failed(Cause::Protocol) }
}

/// What the end of a connection says of the upstream; `None` if it was a goodbye.
fn end_of(error: &h2::Error) -> Option<Cause> {
    if let Some(error) = error.get_io() {
        return Some(cause_of(error));
    }
    match error.reason() {
        Some(Reason::NO_ERROR) => None,
        Some(Reason::ENHANCE_YOUR_CALM | Reason::REFUSED_STREAM) => Some(Cause::Refused),
        _ => Some(Cause::Protocol),
    }
}

/// Finds connections whose other end is gone without a word: while queries are out and nothing comes, it asks for a
/// sign of life (RFC 9113 §6.7), and gives up when there is none for as long as an attempt may take.
struct Pulse {
    every: Duration,
    next: Option<tokio::time::Instant>,
    heard: u64,
    /// Since when a sign of life is waited for.
    asked: Option<tokio::time::Instant>,
}

impl Pulse {
    fn new(attempt_timeout: Duration) -> Self {
        Self { every: attempt_timeout / 2, next: None, heard: 0, asked: None }
    }

    /// Nothing was out until now.
    const fn rest(&mut self, heard: u64) {
        (self.heard, self.next, self.asked) = (heard, None, None);
    }

    async fn tick(&mut self) {
        let next = *self.next.get_or_insert_with(|| tokio::time::Instant::now() + self.every);
        tokio::time::sleep_until(next).await;
        self.next = None;
    }

    /// Looks at how many bytes have come. Returns whether the connection may still live.
    fn feel(&mut self, heard: u64, ping: Option<&mut PingPong>) -> bool {
        if std::mem::replace(&mut self.heard, heard) != heard {
            self.asked = None;
            return true;
        }
        match self.asked {
            Some(asked) => asked.elapsed() < 2 * self.every,
            None => {
                // One that is still out is as good.
                let _ = ping.map(|ping| ping.send_ping(Ping::opaque()));
                self.asked = Some(tokio::time::Instant::now());
                true
            }
        }
    }
}

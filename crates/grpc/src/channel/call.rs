//! One call: from the request to the head of its response.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use forebay::http2::Counted;
use forebay::{Blame, Cause, SlotId};
use h2::client::ResponseFuture;
use h2::{Reason, SendStream};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tonic::Status;
use tonic::body::Body;

use super::body::{PooledBody, Pump};
use super::connect::GrpcConnector;
use super::status::{Fate, fate_of, status_without_connection, too_late};
use super::{PooledChannel, Resolution};

/// How often one call is sent at most.
const TRIES_MAX: u32 = 5;
/// How often one call that got no connection asks for another, at another endpoint.
const ASKS_MAX: usize = 4;
/// What is sent before anybody has asked for room: a stream begins with 64 KiB of it (RFC 9113 §6.9.2).
const SENT_UNASKED_MAX: usize = 16 << 10;
/// How much room is asked for at once.
const PIECE_BYTES_MAX: usize = 64 << 10;
/// The pause before a call is sent for the third time, or to the connection that has refused it; it doubles with each.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);

pub(super) type Lease = forebay::Lease<GrpcConnector, forebay::Shared>;

/// Resolves to the head of a response. Made by calling a [`PooledChannel`].
///
/// # Cancel safety
///
/// Dropping it cancels the call: the server is told, and no other call is harmed.
#[must_use = "futures do nothing unless awaited"]
pub struct PooledFuture {
    channel: PooledChannel,
    call: Option<Call>,
    deadline: Option<Deadline>,
    state: State,
}

enum State {
    /// Nothing has been done yet.
    New,
    /// It was refused before anything was done.
    Failed(Status),
    /// It waits for a connection.
    Line(Pin<Box<dyn Future<Output = Result<Lease, Status>> + Send>>),
    /// It has been sent, or is being sent.
    Sent(Sent),
    Done,
}

/// What is sent, and sent again.
struct Call {
    path: PathAndQuery,
    headers: HeaderMap,
    outgoing: Outgoing,
    tries: u32,
    /// The connection that has refused it.
    refused_by: Option<SlotId>,
}

struct Sent {
    response: ResponseFuture,
    /// `None` when all has been sent.
    stream: Option<SendStream<Bytes>>,
    lease: Lease,
    counted: Counted,
    /// How many bytes the connection had brought when the call was sent, and when that was.
    heard: u64,
    began: forebay_core::Instant,
}

/// A caller's deadline. The timer is only set when there is something to wait for.
#[derive(Debug)]
pub(super) struct Deadline {
    at: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(super) const fn new(at: Instant) -> Self {
        Self { at, sleep: None }
    }

    /// Whether it has passed, for those who never have to wait.
    pub(super) fn has_passed(&self) -> bool {
        Instant::now() >= self.at
    }

    /// Whether it has passed; wakes the task when it does.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sleep.get_or_insert_with(|| Box::pin(sleep_until(self.at))).as_mut().poll(cx)
    }
}

impl PooledFuture {
    pub(super) fn new(channel: PooledChannel, request: Request<Body>) -> Self {
        let shared = &channel.shared;
        shared.counters.calls.fetch_add(1, Ordering::Relaxed);
        let (parts, body) = request.into_parts();
        let failed =
            |channel, status| Self { channel, call: None, deadline: None, state: State::Failed(status) };
        let Some(path) = parts.uri.path_and_query().cloned() else {
            return failed(channel, Status::internal("a call without a path"));
        };
        let mut headers = parts.headers;
        let asked = match headers.get(super::timeout::NAME).map(super::timeout::parse) {
            None => None,
            Some(Some(asked)) => Some(asked),
            Some(None) => return failed(channel, Status::invalid_argument("grpc-timeout is none")),
        };
        let limit = match (asked, shared.timeout) {
            (Some(asked), Some(ours)) => Some(asked.min(ours)),
            (asked, ours) => asked.or(ours),
        };
        if let Some(limit) = limit
            && asked != Some(limit)
        {
            headers.insert(super::timeout::NAME, super::timeout::write(limit));
        }
        if !headers.contains_key(http::header::USER_AGENT) {
            headers.insert(http::header::USER_AGENT, shared.user_agent.clone());
        }
        let deadline = limit.map(|limit| Deadline::new(Instant::now() + limit));
        if limit == Some(Duration::ZERO) {
            return failed(channel, too_late());
        }
        let outgoing = Outgoing::new(body, shared.replay_bytes);
        let call = Call { path, headers, outgoing, tries: 0, refused_by: None };
        Self { channel, call: Some(call), deadline, state: State::New }
    }

    /// Gets a connection at once, or stands in line for one.
    fn acquire(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        let (refused_by, tries) = self.call.as_ref().map_or((None, 0), |call| (call.refused_by, call.tries));
        if tries < 2
            && let Some(lease) = self.channel.shared.pool.try_acquire()
        {
            if refused_by != Some(lease.slot()) {
                return self.send(lease, cx);
            }
            // It has refused this call: another, if there is one.
            if let Some(other) = self.channel.shared.pool.try_acquire()
                && refused_by != Some(other.slot())
            {
                lease.unused();
                return self.send(other, cx);
            }
            lease.unused();
        }
        let deadline = self.deadline.as_ref().map(|deadline| deadline.at);
        let pause = refused_by.map_or(Duration::ZERO, |_| REFUSED_PAUSE * (1 << tries.saturating_sub(1)));
        self.state = State::Line(Box::pin(line_up(self.channel.clone(), deadline, pause)));
        Ok(())
    }

    fn send(&mut self, lease: Lease, cx: &mut Context<'_>) -> Result<(), Status> {
        let Some(call) = &mut self.call else { return Err(Status::internal("a call that was sent away")) };
        call.tries += 1;
        let mut uri = http::uri::Parts::default();
        uri.scheme = Some(lease.origin().scheme.clone());
        uri.authority = Some(lease.origin().authority.clone());
        uri.path_and_query = Some(call.path.clone());
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::from_parts(uri).map_err(|error| Status::internal(error.to_string()))?;
        *request.headers_mut() = call.headers.clone();
        let is_whole = call.outgoing.is_empty();
        match lease.requests().send_request(request, is_whole) {
            Ok((response, stream)) => {
                let sent = Sent {
                    response,
                    stream: (!is_whole).then_some(stream),
                    counted: lease.count(),
                    heard: lease.load().heard(),
                    began: forebay::sys::coarse_now(),
                    lease,
                };
                self.state = State::Sent(sent);
                Ok(())
            }
            Err(error) => {
                // The connection takes no more: nothing was sent.
                lease.leave();
                self.unseen(lease, error, cx)
            }
        }
    }

    /// The call was not looked at: once more, if that may be.
    fn unseen(&mut self, lease: Lease, error: h2::Error, cx: &mut Context<'_>) -> Result<(), Status> {
        let slot = lease.slot();
        lease.unused();
        let counters = &self.channel.shared.counters;
        let may =
            self.call.as_ref().is_some_and(|call| call.tries < TRIES_MAX && call.outgoing.can_begin_again());
        if !may || !self.channel.shared.budget.spend() {
            counters.failed.fetch_add(1, Ordering::Relaxed);
            return Err(super::status::status_of(error));
        }
        counters.replays.fetch_add(1, Ordering::Relaxed);
        if let Some(call) = &mut self.call {
            call.outgoing.begin_again();
            call.refused_by = Some(slot);
        }
        self.acquire(cx)
    }

    /// Moves a call that was sent.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Response<PooledBody>>, Status>> {
        let (State::Sent(sent), Some(call)) = (&mut self.state, &mut self.call) else {
            return Poll::Ready(Err(Status::internal("a call that was not sent")));
        };
        if let Some(stream) = &mut sent.stream {
            match call.outgoing.poll_send(cx, stream) {
                Poll::Ready(Ok(())) => sent.stream = None,
                Poll::Ready(Err(status)) => return Poll::Ready(Err(status)),
                Poll::Pending => {}
            }
        }
        let result = ready!(Pin::new(&mut sent.response).poll(cx));
        let State::Sent(sent) = std::mem::replace(&mut self.state, State::Done) else {
            return Poll::Ready(Err(Status::internal("a call that was not sent")));
        };
        match result {
            Ok(response) => Poll::Ready(Ok(Some(self.answered(sent, response)))),
            Err(error) => Poll::Ready(self.broken(sent, error, cx).map(|()| None)),
        }
    }

    fn answered(&mut self, sent: Sent, response: Response<h2::RecvStream>) -> Response<PooledBody> {
        let Sent { stream, lease, counted, began, .. } = sent;
        let shared = &self.channel.shared;
        shared.budget.earn();
        shared.observe(&lease, began);
        let (parts, body) = response.into_parts();
        // What is left of the request goes on while the response is read.
        let pump = match (stream, self.call.take()) {
            (Some(stream), Some(call)) => {
                Some(Pump(shared.runtime.spawn(call.outgoing.run(stream)).abort_handle()))
            }
            _ => None,
        };
        let body = PooledBody::new(body, lease, counted, self.deadline.take(), pump);
        Response::from_parts(parts, body)
    }

    fn broken(&mut self, sent: Sent, error: h2::Error, cx: &mut Context<'_>) -> Result<(), Status> {
        let Sent { lease, .. } = sent;
        match fate_of(error) {
            Fate::Unseen(error) => {
                if error.reason() == Some(Reason::REFUSED_STREAM) {
                    lease.note_refused();
                }
                self.unseen(lease, error, cx)
            }
            Fate::Failed { status, cause, connection_is_lost } => {
                self.channel.shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                give_back(lease, cause, connection_is_lost);
                Err(status)
            }
        }
    }

    /// The deadline has passed before there was a response.
    fn give_up(&mut self) -> Status {
        if let State::Sent(Sent { lease, heard, .. }) = std::mem::replace(&mut self.state, State::Done) {
            // Nothing at all has come since: it may be dead, and the next call goes elsewhere.
            if lease.load().heard() == heard {
                lease.leave();
                lease.fail(Cause::Timeout);
            } else {
                lease.unused();
            }
        }
        self.channel.shared.counters.late.fetch_add(1, Ordering::Relaxed);
        too_late()
    }

    fn poll_inner(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response<PooledBody>, Status>> {
        loop {
            match &mut self.state {
                State::New => self.acquire(cx)?,
                State::Failed(_) | State::Done => {
                    let state = std::mem::replace(&mut self.state, State::Done);
                    let State::Failed(status) = state else {
                        return Poll::Ready(Err(Status::internal("polled after its end")));
                    };
                    return Poll::Ready(Err(status));
                }
                State::Line(line) => {
                    let lease = ready!(line.as_mut().poll(cx))?;
                    self.send(lease, cx)?;
                }
                State::Sent(_) => {
                    if let Some(response) = ready!(self.poll_sent(cx))? {
                        return Poll::Ready(Ok(response));
                    }
                }
            }
        }
    }
}

impl Future for PooledFuture {
    type Output = Result<Response<PooledBody>, Status>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let result = this.poll_inner(cx);
        if result.is_pending()
            && let Some(deadline) = &mut this.deadline
            && deadline.poll(cx).is_ready()
        {
            return Poll::Ready(Err(this.give_up()));
        }
        result
    }
}

/// Gives a lease back whose call has failed.
pub(super) fn give_back(lease: Lease, cause: Option<Cause>, connection_is_lost: bool) {
    match cause {
        Some(cause) if connection_is_lost && lease.blame() => lease.discard(cause),
        Some(cause) if !connection_is_lost => lease.fail(cause),
        _ => lease.unused(),
    }
}

/// Waits for a connection: for the first look at the names, and in line.
async fn line_up(
    channel: PooledChannel,
    deadline: Option<Instant>,
    pause: Duration,
) -> Result<Lease, Status> {
    let shared = channel.shared;
    if !pause.is_zero() {
        sleep(pause).await;
    }
    let until = deadline.unwrap_or_else(|| Instant::now() + shared.acquire_timeout);
    let mut resolution = shared.resolution.clone();
    // A copy, since what is borrowed cannot be held while something is waited for.
    let known =
        async { resolution.wait_for(|found| *found != Resolution::Pending).await.map(|found| found.clone()) };
    if let Ok(Ok(Resolution::Unknown(why))) = tokio::time::timeout_at(until, known).await {
        shared.counters.failed.fetch_add(1, Ordering::Relaxed);
        return Err(Status::unavailable(why));
    }
    let mut asks = 0;
    loop {
        asks += 1;
        match shared.pool.acquire_until(until.into_std()).await {
            Ok(lease) => return Ok(lease),
            // Nothing was sent: another endpoint may have a connection.
            Err(error)
                if asks < ASKS_MAX
                    && error.blame() == Blame::Upstream
                    && shared.has_many()
                    && Instant::now() < until => {}
            Err(error) => {
                shared.counters.failed.fetch_add(1, Ordering::Relaxed);
                return Err(match deadline {
                    Some(deadline) if Instant::now() >= deadline => too_late(),
                    _ => status_without_connection(error),
                });
            }
        }
    }
}

/// The body of a request, and what has been sent of it.
pub(super) struct Outgoing {
    body: Body,
    is_over: bool,
    /// What was sent, as long as it may have to be sent again.
    kept: Kept,
    /// How many of those that are kept have been sent on this connection.
    cursor: usize,
    /// Taken from the body, and not yet sent: the last one carries the end.
    held: Option<Bytes>,
    has_sent: bool,
}

/// Frames that may have to be sent again. One is usual, and needs no memory of its own.
#[derive(Debug, Default)]
struct Kept {
    first: Option<Bytes>,
    more: Vec<Bytes>,
    bytes: usize,
    bytes_max: usize,
    /// Whether there were too many to be kept.
    is_lost: bool,
}

impl Kept {
    fn push(&mut self, data: &Bytes) {
        self.bytes += data.len();
        if self.is_lost || self.bytes > self.bytes_max {
            self.is_lost = true;
            (self.first, self.more) = (None, Vec::new());
        } else if self.first.is_none() {
            self.first = Some(data.clone());
        } else {
            self.more.push(data.clone());
        }
    }

    fn get(&self, n: usize) -> Option<&Bytes> {
        match n {
            0 => self.first.as_ref(),
            n => self.more.get(n - 1),
        }
    }
}

impl Outgoing {
    fn new(body: Body, bytes_max: usize) -> Self {
        let is_over = body.is_end_stream();
        let kept = Kept { bytes_max, ..Kept::default() };
        Self { body, is_over, kept, cursor: 0, held: None, has_sent: false }
    }

    /// Whether there is nothing to send at all.
    fn is_empty(&self) -> bool {
        self.is_over && self.held.is_none() && self.kept.get(self.cursor).is_none()
    }

    const fn can_begin_again(&self) -> bool {
        !self.kept.is_lost
    }

    fn begin_again(&mut self) {
        (self.cursor, self.held, self.has_sent) = (0, None, false);
    }

    /// Returns the next piece; `None` at the end.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        if let Some(data) = self.kept.get(self.cursor) {
            self.cursor += 1;
            return Poll::Ready(Ok(Some(data.clone())));
        }
        while !self.is_over {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    // A client of gRPC sends no trailers.
                    let Ok(data) = frame.into_data() else { continue };
                    self.kept.push(&data);
                    self.cursor += 1;
                    return Poll::Ready(Ok(Some(data)));
                }
                Some(Err(status)) => return Poll::Ready(Err(status)),
                None => self.is_over = true,
            }
        }
        Poll::Ready(Ok(None))
    }

    /// Sends as much as can be sent now; ready when all has been, or nobody takes any more.
    pub(super) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> Poll<Result<(), Status>> {
        loop {
            if self.held.is_none() {
                match self.poll_next(cx) {
                    Poll::Ready(Ok(Some(data))) => self.held = Some(data),
                    Poll::Ready(Ok(None)) => {
                        // That the stream is gone shows in its response.
                        let _ = stream.send_data(Bytes::new(), true);
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(status)) => {
                        stream.send_reset(Reason::CANCEL);
                        return Poll::Ready(Err(status));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
            let len = self.held.as_ref().map_or(0, Bytes::len);
            let room = if !std::mem::replace(&mut self.has_sent, true) && len <= SENT_UNASKED_MAX {
                len
            } else {
                stream.reserve_capacity(len.min(PIECE_BYTES_MAX));
                while len > 0 && stream.capacity() == 0 {
                    match ready!(stream.poll_capacity(cx)) {
                        Some(Ok(_)) => {}
                        Some(Err(_)) | None => return Poll::Ready(Ok(())),
                    }
                }
                len.min(stream.capacity())
            };
            let Some(mut piece) = self.held.take() else { continue };
            if room < len {
                self.held = Some(piece.split_off(room));
            }
            // The end rides on the last piece: it costs no frame of its own.
            let mut next = Poll::Pending;
            if self.held.is_none() {
                next = self.poll_next(cx);
            }
            let is_last = matches!(next, Poll::Ready(Ok(None)));
            if stream.send_data(piece, is_last).is_err() || is_last {
                return Poll::Ready(Ok(()));
            }
            match next {
                Poll::Ready(Ok(data)) => self.held = data,
                Poll::Ready(Err(status)) => {
                    stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(status));
                }
                Poll::Pending if self.held.is_none() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }

    /// Sends what is left.
    async fn run(mut self, mut stream: SendStream<Bytes>) {
        let _ = std::future::poll_fn(|cx| self.poll_send(cx, &mut stream)).await;
    }
}

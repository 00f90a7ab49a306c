//! One call: from its request to the end of its response.
//!
//! A unary call whose request has come whole is usually ready when it is asked for the first time: it costs no task, no
//! timer and no wake-up. Only what has to wait becomes an entry of its connection's set.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};
use http_body::{Body as _, Frame};
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, Sleep};
use tonic::body::Body;
use tonic::{Code, Status};

use super::body::too_long;
use super::messages::{Lengths, TooLong};
use super::services::Answer;
use super::worker::Worker;

/// The first bytes of a response up to this length are given to HTTP/2 without asking for room: they wait there instead of
/// here if the client has given none.
const AT_ONCE_BYTES: usize = 16 << 10;

/// A response of up to this length is copied out of its buffer, which tonic makes of 8 KiB.
const COPIED_BYTES: usize = 1 << 10;

/// How a call has ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ended {
    /// With this code.
    Answered(Code),
    /// By the client, or with its connection.
    Left,
}

/// A call in progress.
pub(super) struct Call {
    stage: Stage,
    respond: SendResponse<Bytes>,
    /// How long the client waits for the whole.
    client_timeout: Option<Duration>,
    /// When that is over; known once the call has had to wait.
    client_deadline: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Resolves when the server takes no more: of calls that would never end by themselves.
    drains: Option<Pin<Box<OwnedNotified>>>,
    progress: Progress,
}

enum Stage {
    /// The service works on it.
    Serving(Answer),
    /// The response is sent.
    Sending(Sending),
}

/// A response on its way.
struct Sending {
    body: Body,
    stream: SendStream<Bytes>,
    lengths: Lengths,
    /// What there was no room for yet.
    rest: Bytes,
    /// Since when it waits for room.
    blocked: Option<Instant>,
    is_first: bool,
}

/// Counts a call that has to wait, until it is dropped.
struct Progress {
    worker: Rc<Worker>,
    is_waiting: bool,
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_waiting {
            self.worker.figures.in_flight.sub(1);
        }
    }
}

/// Lets a service work. What it panics with harms nobody but its own call.
pub(super) fn caught<T>(worker: &Worker, work: impl FnOnce() -> T) -> Result<T, Status> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        worker.figures.panicked.add(1);
        Status::internal("the service has failed")
    })
}

impl Call {
    /// Begins one.
    pub(super) fn new(
        worker: Rc<Worker>,
        answer: Answer,
        respond: SendResponse<Bytes>,
        client_timeout: Option<Duration>,
    ) -> Self {
        Self {
            stage: Stage::Serving(answer),
            respond,
            client_timeout,
            client_deadline: None,
            alarm: None,
            drains: None,
            progress: Progress { worker, is_waiting: false },
        }
    }

    /// Takes note that the call has to wait, from now on.
    pub(super) fn wait(&mut self, drains: Option<OwnedNotified>) {
        self.progress.worker.figures.in_flight.add(1);
        self.progress.is_waiting = true;
        self.drains = drains.map(Box::pin);
        let now = Instant::now();
        self.client_deadline = self.client_timeout.and_then(|timeout| now.checked_add(timeout));
        let server = match self.stage {
            Stage::Serving(_) => self.progress.worker.settings.call_timeout,
            Stage::Sending(_) => None,
        };
        let server = server.and_then(|timeout| now.checked_add(timeout));
        self.set_alarm([server, self.client_deadline].into_iter().flatten().min());
    }

    fn set_alarm(&mut self, at: Option<Instant>) {
        match (at, &mut self.alarm) {
            (None, alarm) => *alarm = None,
            (Some(at), Some(alarm)) if alarm.deadline() == at => {}
            (Some(at), Some(alarm)) => alarm.as_mut().reset(at),
            (Some(at), None) => self.alarm = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }

    /// Goes on as far as it can without waiting. What it waits for wakes the task.
    pub(super) fn poll_on(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        loop {
            match &mut self.stage {
                Stage::Serving(answer) => {
                    let worker = &self.progress.worker;
                    let response = match caught(worker, || answer.as_mut().poll(cx)) {
                        Ok(Poll::Ready(Ok(response))) => response,
                        Ok(Poll::Ready(Err(never))) => match never {},
                        Ok(Poll::Pending) => return Poll::Pending,
                        Err(status) => return Poll::Ready(self.refuse(&status)),
                    };
                    if let Some(ended) = self.begin_response(response) {
                        return Poll::Ready(ended);
                    }
                }
                Stage::Sending(sending) => {
                    let ended = sending.poll_on(cx, &self.progress.worker);
                    if self.progress.is_waiting && ended.is_pending() {
                        let stall = self.progress.worker.settings.stall_timeout;
                        let blocked = sending.blocked.map(|since| since + stall);
                        self.set_alarm([blocked, self.client_deadline].into_iter().flatten().min());
                    }
                    return ended;
                }
            }
        }
    }

    /// Sends the head of a response. Returns how the call has ended, if that was all.
    fn begin_response(&mut self, response: Response<Body>) -> Option<Ended> {
        let (head, body) = response.into_parts();
        let is_all = body.is_end_stream();
        let code = is_all.then(|| code_of(&head.headers));
        match self.respond.send_response(Response::from_parts(head, ()), is_all) {
            Ok(stream) => {
                if let Some(code) = code {
                    return Some(Ended::Answered(code));
                }
                let limit = self.progress.worker.settings.response_message_bytes_max;
                self.stage = Stage::Sending(Sending {
                    body,
                    stream,
                    lengths: Lengths::new(limit),
                    rest: Bytes::new(),
                    blocked: None,
                    is_first: true,
                });
                None
            }
            Err(error) if error.is_library() || error.is_remote() => Some(Ended::Left),
            // Its stream is gone, or it has fields that HTTP/2 does not allow.
            Err(_) => {
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                Some(Ended::Left)
            }
        }
    }

    /// Ends a call that has no response yet.
    fn refuse(&mut self, status: &Status) -> Ended {
        refuse(&mut self.respond, status)
    }

    /// Ends a call whose time is over.
    fn expire(&mut self) -> Ended {
        let figures = Rc::clone(&self.progress.worker);
        let figures = &figures.figures;
        let is_late = self.client_deadline.is_some_and(|deadline| deadline <= Instant::now());
        match &mut self.stage {
            Stage::Serving(_) => {
                figures.timed_out.add(1);
                self.refuse(&Status::deadline_exceeded("the call took too long"))
            }
            Stage::Sending(sending) if is_late => {
                figures.timed_out.add(1);
                sending.end(&Status::deadline_exceeded("the call took too long"))
            }
            Stage::Sending(sending) => {
                figures.stalled.add(1);
                sending.stream.send_reset(Reason::CANCEL);
                Ended::Answered(Code::Unavailable)
            }
        }
    }

    /// Ends a call that would go on for as long as the server.
    fn go_away(&mut self) -> Ended {
        let status = Status::unavailable("the server is going away");
        match &mut self.stage {
            Stage::Serving(_) => self.refuse(&status),
            Stage::Sending(sending) => sending.end(&status),
        }
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stage {
            Stage::Serving(_) => self.respond.poll_reset(cx).map(drop),
            Stage::Sending(sending) => sending.stream.poll_reset(cx).map(drop),
        }
    }
}

impl Future for Call {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let call = &mut *self;
        if let Poll::Ready(ended) = call.poll_on(cx) {
            return Poll::Ready(ended);
        }
        if call.poll_reset(cx).is_ready() {
            return Poll::Ready(Ended::Left);
        }
        if let Some(alarm) = &mut call.alarm
            && alarm.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(call.expire());
        }
        if let Some(drains) = &mut call.drains
            && drains.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(call.go_away());
        }
        Poll::Pending
    }
}

impl Sending {
    fn poll_on(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<Ended> {
        loop {
            if !self.rest.is_empty() {
                if let Some(ended) = ready!(self.poll_send_rest(cx)) {
                    return Poll::Ready(ended);
                }
                continue;
            }
            match caught(worker, || Pin::new(&mut self.body).poll_frame(cx)) {
                Ok(Poll::Ready(frame)) => {
                    if let Some(ended) = self.send(frame) {
                        return Poll::Ready(ended);
                    }
                }
                Ok(Poll::Pending) => return Poll::Pending,
                Err(status) => return Poll::Ready(self.end(&status)),
            }
        }
    }

    /// Sends what the service has. Returns how the call has ended, if that was all.
    fn send(&mut self, frame: Option<Result<Frame<Bytes>, Status>>) -> Option<Ended> {
        let frame = match frame {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => return Some(self.end(&status)),
            // A response without a status, which is for the client to judge.
            None => {
                let sent = self.stream.send_data(Bytes::new(), true);
                return Some(sent.map_or(Ended::Left, |()| Ended::Answered(Code::Unknown)));
            }
        };
        match frame.into_data() {
            Ok(data) => {
                let was_within = self.lengths.is_within();
                if let Err(TooLong(length)) = self.lengths.advance(&data) {
                    let status = too_long("response", length, self.lengths.limit());
                    return Some(if was_within { self.break_off(status.code()) } else { self.end(&status) });
                }
                if std::mem::take(&mut self.is_first) && data.len() <= AT_ONCE_BYTES {
                    // The buffer of a short message is large: better the next call has it, while it is in the cache.
                    let data = if data.len() <= COPIED_BYTES { Bytes::copy_from_slice(&data) } else { data };
                    return self.stream.send_data(data, false).is_err().then_some(Ended::Left);
                }
                self.stream.reserve_capacity(data.len());
                self.rest = data;
                None
            }
            Err(frame) => frame.into_trailers().ok().map(|trailers| self.end_with(trailers)),
        }
    }

    /// Sends what there was no room for. Returns how the call has ended, if it has.
    fn poll_send_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ended>> {
        let room = self.stream.capacity();
        if room == 0 {
            return match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => Poll::Ready(None),
                Poll::Ready(Some(Err(_)) | None) => Poll::Ready(Some(Ended::Left)),
                Poll::Pending => {
                    self.blocked.get_or_insert_with(Instant::now);
                    Poll::Pending
                }
            };
        }
        self.blocked = None;
        let piece = self.rest.split_to(room.min(self.rest.len()));
        Poll::Ready(self.stream.send_data(piece, false).is_err().then_some(Ended::Left))
    }

    /// Ends the response with a status.
    fn end(&mut self, status: &Status) -> Ended {
        if !self.rest.is_empty() {
            return self.break_off(status.code());
        }
        let mut trailers = HeaderMap::with_capacity(4);
        // What cannot be said is left out: the code never is.
        let _ = status.add_header(&mut trailers);
        self.end_with(trailers)
    }

    fn end_with(&mut self, trailers: HeaderMap) -> Ended {
        let code = code_of(&trailers);
        self.stream.send_trailers(trailers).map_or(Ended::Left, |()| Ended::Answered(code))
    }

    /// Ends the response in the middle of a message, so that the client learns that something is missing.
    fn break_off(&mut self, code: Code) -> Ended {
        self.stream.send_reset(Reason::CANCEL);
        Ended::Answered(code)
    }
}

/// Ends a call with a status and nothing else ("Trailers-Only" of PROTOCOL-HTTP2).
pub(super) fn refuse(respond: &mut SendResponse<Bytes>, status: &Status) -> Ended {
    let response = status.clone().into_http::<()>();
    respond.send_response(response, true).map_or(Ended::Left, |_| Ended::Answered(status.code()))
}

/// Returns what a response says of its end.
fn code_of(headers: &HeaderMap) -> Code {
    headers.get(Status::GRPC_STATUS).map_or(Code::Unknown, |value| Code::from_bytes(value.as_bytes()))
}

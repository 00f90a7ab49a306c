//! One client's connection: HTTP/2, the calls on it, and how it ends, all in one task.
//!
//! ```text
//! all that has come is read ─▶ each call is begun and asked once ─▶ what waits joins the set
//!             ▲                                                              │
//!             └──────── all answers leave with one write ◀───────────────────┘
//! ```

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use forebay::places::Place;
use forebay::stream::{PolledStream, Stream};
use forebay::sys;
use forebay_core::Instant;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{Ping, PingPong, Reason, RecvStream};
use http::{Request, Response};
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Sleep;
use tonic::Status;

use super::Peer;
use super::bell::Bell;
use super::body::RequestBody;
use super::call::{Call, Ended, caught, refuse};
use super::head::{self, NoCall};
use super::io::{Io, Transport, Watch};
use super::life::{Life, LifeConfig, Pulse, Step, Why};
use super::pings::PingGuard;
use super::services::service_of;
use super::worker::{Open, Worker};

/// How long a client that was told to go is given to hear it.
const LINGER: Duration = Duration::from_secs(1);

/// The service whose watches go on for as long as the server.
const HEALTH: &str = "grpc.health.v1.Health";

/// A request that has come, and where its response goes.
pub(super) type Arrived = (Request<RecvStream>, SendResponse<Bytes>);

/// Serves a client, until it ends.
pub(super) async fn serve(worker: Rc<Worker>, socket: TcpStream, peer: SocketAddr, place: Place) {
    let _open = Open::new(&worker, place);
    let watch = Rc::new(Watch::default());
    let begun = tokio::time::timeout(
        worker.settings.handshake_timeout,
        Box::pin(begin(&worker, socket, Rc::clone(&watch))),
    );
    let Ok(Some(http)) = begun.await else {
        worker.figures.handshakes_failed.add(1);
        return;
    };
    let mut connection = Connection::new(worker, http, watch, peer);
    poll_fn(|cx| connection.poll(cx)).await;
}

type Http = h2::server::Connection<Io, Bytes>;

/// Begins TLS, if there is any, and HTTP/2.
async fn begin(worker: &Worker, socket: TcpStream, watch: Rc<Watch>) -> Option<Http> {
    let transport = match &worker.tls {
        None => Transport::Plain(socket),
        Some(tls) => {
            let connection = rustls::ServerConnection::new(tls.clone()).ok()?;
            let stream = Stream::encrypted(socket, connection);
            stream.handshake().await.ok()?;
            Transport::Encrypted(PolledStream::new(stream))
        }
    };
    let settings = &worker.settings;
    h2::server::Builder::new()
        .max_concurrent_streams(settings.streams_max)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_frame_size(settings.frame_bytes_max)
        .max_header_list_size(settings.header_list_bytes_max)
        .max_send_buffer_size(settings.send_buffer_bytes as usize)
        .max_pending_accept_reset_streams(settings.resets_unseen_max)
        .max_concurrent_reset_streams(settings.resets_kept_max)
        .max_local_error_reset_streams(Some(settings.stream_errors_max))
        .handshake(Io::new(transport, watch))
        .await
        .ok()
}

struct Connection {
    worker: Rc<Worker>,
    http: Http,
    /// What HTTP/2 rings, once it is known for whom.
    bell: Option<(Arc<Bell>, Waker)>,
    peer: SocketAddr,
    watch: Rc<Watch>,
    /// What of `watch` has been counted.
    counted: (u64, u64),
    calls: FuturesUnordered<Call>,
    life: Life,
    guard: PingGuard,
    own_pings: Option<PingPong>,
    /// Whether something was answered since pings were looked at.
    answered: bool,
    /// Calls that the client has broken off, and others.
    resets: u64,
    answers: u64,
    alarm: Pin<Box<Sleep>>,
    /// When the alarm rings.
    due: Instant,
    drains: Option<Pin<Box<OwnedNotified>>>,
    /// Whether nothing is left but to let the client hear so.
    is_over: bool,
}

impl Connection {
    fn new(worker: Rc<Worker>, mut http: Http, watch: Rc<Watch>, peer: SocketAddr) -> Self {
        let settings = &worker.settings;
        let now = sys::now();
        let life = Life::new(
            LifeConfig {
                idle_timeout: settings.idle_timeout,
                age_max: settings.age_max.map(|age| worker.jitter(age)),
                age_grace: settings.age_grace,
                keepalive_interval: settings.keepalive_interval,
                keepalive_timeout: settings.keepalive_timeout,
                stall_timeout: settings.stall_timeout,
            },
            now,
        );
        let drains = Some(Box::pin(worker.drains()));
        watch.is_serving.set(true);
        Self {
            own_pings: settings.keepalive_interval.and_then(|_| http.ping_pong()),
            guard: PingGuard::new(settings.ping_interval_min),
            http,
            bell: None,
            peer,
            watch,
            counted: (0, 0),
            calls: FuturesUnordered::new(),
            life,
            answered: false,
            resets: 0,
            answers: 0,
            // Rings at once, and is set right then.
            alarm: Box::pin(tokio::time::sleep(Duration::ZERO)),
            due: now,
            drains,
            is_over: false,
            worker,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.watch.is_dry.set(false);
        if self.is_over {
            return self.poll_end(cx);
        }
        let (bell, waker) = match self.bell.take() {
            Some(known) if known.0.wakes(cx.waker()) => known,
            _ => {
                let bell = Bell::new(cx.waker());
                let waker = Waker::from(Arc::clone(&bell));
                (bell, waker)
            }
        };
        bell.begin_work();
        let polled = self.work(cx, &bell, &mut Context::from_waker(&waker));
        bell.end_work();
        self.bell = Some((bell, waker));
        self.count_bytes();
        if polled.is_pending() && self.is_over {
            return self.poll_end(cx);
        }
        polled
    }

    /// Does all that can be done without waiting. `rings` is what HTTP/2 wakes.
    fn work(&mut self, cx: &mut Context<'_>, bell: &Bell, rings: &mut Context<'_>) -> Poll<()> {
        if let Some(drains) = &mut self.drains {
            let is_notified = drains.as_mut().poll(cx).is_ready();
            if is_notified || self.worker.drain_until().is_some() {
                self.drains = None;
                self.drain();
            }
        }
        let mut arrived = self.worker.take_desk();
        let polled = loop {
            // What rang before is done now.
            bell.take_rang();
            match self.poll_arrivals(rings, &mut arrived) {
                Poll::Ready(()) => break Poll::Ready(()),
                Poll::Pending if self.is_over => break Poll::Pending,
                Poll::Pending => {}
            }
            let began = !arrived.is_empty();
            arrived.drain(..).for_each(|(request, respond)| self.begin(request, respond));
            let ended = self.poll_calls(cx);
            let stepped = self.poll_life(cx, began || ended);
            if self.is_over {
                break Poll::Pending;
            }
            if !(began || ended || stepped || bell.take_rang()) {
                break Poll::Pending;
            }
        };
        arrived.clear();
        self.worker.give_desk(arrived);
        polled
    }

    /// Reads what has come, and writes what is there to be written. Ready when the connection has ended.
    fn poll_arrivals(&mut self, cx: &mut Context<'_>, arrived: &mut Vec<Arrived>) -> Poll<()> {
        loop {
            match self.http.poll_accept(cx) {
                Poll::Ready(Some(Ok(request))) => arrived.push(request),
                // After an error of the connection there is nothing left to tell the client.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        let pings = self.watch.pings.take();
        if pings > 0 {
            let answered = std::mem::take(&mut self.answered);
            if self.guard.handle_pings(sys::now(), pings, answered) {
                self.worker.figures.goaways_pings.add(1);
                tracing::debug!(client = %self.peer, "sent away: too many pings");
                self.calm();
            }
        }
        Poll::Pending
    }

    /// Begins a call. Usually that is all there is to it.
    fn begin(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let worker = &self.worker;
        let (mut head, stream) = request.into_parts();
        let client_timeout = match head::read(&head.method, &head.headers) {
            Ok(timeout) => timeout,
            Err(no_call) => return self.refuse_no_call(no_call, &mut respond),
        };
        worker.figures.calls.add(1);
        let settings = &worker.settings;
        if self.calls.len() >= settings.calls_per_connection as usize {
            worker.figures.shed.add(1);
            let status = Status::resource_exhausted(format!(
                "{} calls are in flight on this connection, which is as many as may be",
                self.calls.len()
            ));
            return self.note(refuse(&mut respond, &status));
        }
        if client_timeout.is_some_and(|timeout| timeout.is_zero()) {
            worker.figures.timed_out.add(1);
            let status = Status::deadline_exceeded("the deadline was over when the call came");
            return self.note(refuse(&mut respond, &status));
        }
        if settings.peer_info {
            head.extensions.insert(Peer { address: self.peer, is_encrypted: worker.tls.is_some() });
        }
        let is_health = service_of(head.uri.path()) == HEALTH;
        let body = RequestBody::new(stream, settings.request_message_bytes_max);
        let answer = worker.call(Request::from_parts(head, body));
        let mut call = match answer {
            Ok(answer) => Call::new(Rc::clone(worker), answer, respond, client_timeout),
            Err(status) => return self.note(refuse(&mut respond, &status)),
        };
        // Nobody needs to be woken: what is not ready is asked again by the set.
        match call.poll_on(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(ended) => self.note(ended),
            Poll::Pending => {
                call.wait(is_health.then(|| self.worker.drains()));
                self.calls.push(call);
            }
        }
    }

    fn refuse_no_call(&mut self, no_call: NoCall, respond: &mut SendResponse<Bytes>) {
        self.worker.figures.not_grpc.add(1);
        match no_call.http_status() {
            Some(status) => {
                let mut response = Response::new(());
                *response.status_mut() = status;
                // The stream may be gone.
                let _ = respond.send_response(response, true);
            }
            None => {
                let status = Status::internal("the grpc-timeout cannot be read: eight digits and a unit");
                let _ = refuse(respond, &status);
            }
        }
    }

    /// Asks the calls that were woken. Returns whether any has ended.
    fn poll_calls(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(ended)) = self.calls.poll_next_unpin(cx) {
            any = true;
            self.note(ended);
        }
        any
    }

    /// Takes note of how a call has ended.
    fn note(&mut self, ended: Ended) {
        let figures = &self.worker.figures;
        match ended {
            Ended::Answered(code) => {
                figures.end(code);
                self.answers += 1;
                self.answered = true;
            }
            Ended::Left => {
                figures.end(tonic::Code::Cancelled);
                figures.cancelled.add(1);
                self.resets += 1;
                if self.resets > self.answers + u64::from(self.worker.settings.resets_max) && !self.is_over {
                    figures.goaways_resets.add(1);
                    tracing::debug!(client = %self.peer, "sent away: it breaks off what it asks for");
                    self.calm();
                }
            }
        }
    }

    /// Looks after the connection itself. Returns whether there is something to be written.
    fn poll_life(&mut self, cx: &mut Context<'_>, is_active: bool) -> bool {
        if self.is_over {
            return false;
        }
        let pulse = Pulse {
            is_busy: !self.calls.is_empty(),
            is_stuck: self.watch.is_stuck.get(),
            read: self.watch.read.get(),
            taken: self.watch.taken.get(),
        };
        if is_active {
            let now = sys::coarse_now();
            self.life.handle_call(now);
            self.life.handle_read(now, pulse.read);
        }
        if let Some(pings) = &mut self.own_pings {
            // An error is the connection's, and shows there.
            let _ = pings.poll_pong(cx);
        }
        let mut stepped = false;
        loop {
            let rang = self.alarm.as_mut().poll(cx).is_ready();
            if rang {
                let now = sys::now();
                while let Some(step) = self.life.poll_step(now, &pulse) {
                    stepped = true;
                    self.take_step(step);
                    if self.is_over {
                        return true;
                    }
                }
            }
            let Some(due) = self.life.next_timeout(&pulse) else { return stepped };
            if !rang && due >= self.due {
                return stepped;
            }
            self.set_alarm(due);
        }
    }

    fn set_alarm(&mut self, due: Instant) {
        let now = sys::now();
        self.due = due;
        // At least a millisecond: the clocks of timers are coarse.
        let pause = due.saturating_duration_since(now).max(Duration::from_millis(1));
        self.alarm.as_mut().reset(tokio::time::Instant::now() + pause);
    }

    fn take_step(&mut self, step: Step) {
        let figures = &self.worker.figures;
        match step {
            Step::Ping => {
                if let Some(pings) = &mut self.own_pings {
                    // One that is on its way already does as well.
                    let _ = pings.send_ping(Ping::opaque());
                }
            }
            Step::Leave(why) => {
                match why {
                    Why::Idle => figures.goaways_idle.add(1),
                    _ => figures.goaways_age.add(1),
                }
                self.http.graceful_shutdown();
            }
            Step::Cut(why) => {
                figures.cut.add(1);
                tracing::debug!(client = %self.peer, ?why, "cut off");
                self.end(Reason::NO_ERROR);
                if matches!(why, Why::Silent | Why::Stalled) {
                    // It would not hear.
                    self.set_alarm(sys::now());
                }
            }
        }
    }

    /// Takes no more calls; those that are there may end (RFC 9113 §6.8).
    fn drain(&mut self) {
        let Some(until) = self.worker.drain_until() else { return };
        if self.life.handle_drain(until) {
            self.worker.figures.goaways_drain.add(1);
            self.http.graceful_shutdown();
        }
        self.due = Instant::ZERO;
        self.set_alarm(sys::now());
    }

    /// Sends away a client that does too much of something.
    fn calm(&mut self) {
        self.end(Reason::ENHANCE_YOUR_CALM);
    }

    fn end(&mut self, reason: Reason) {
        self.is_over = true;
        self.calls.clear();
        self.http.abrupt_shutdown(reason);
        self.set_alarm(sys::now() + LINGER);
    }

    /// Lets the client hear that it is over, for a moment.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.http.poll_closed(cx).is_ready() || self.alarm.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn count_bytes(&mut self) {
        let now = (self.watch.read.get(), self.watch.taken.get());
        self.worker.figures.bytes_received.add(now.0 - self.counted.0);
        self.worker.figures.bytes_sent.add(now.1 - self.counted.1);
        self.counted = now;
    }
}

impl Worker {
    /// Lets a service begin a call.
    fn call(&self, request: Request<RequestBody>) -> Result<super::services::Answer, Status> {
        caught(self, || self.services.borrow_mut().call(request)).and_then(|answer| answer)
    }
}

//! One request and its response, whatever versions they come and go by.
//!
//! # The seam
//!
//! A [`Front`] is the client's side of one exchange, a [`Back`] the backend's. Each is a head and two bodies, one that
//! comes ([`Incoming`]) and one that goes ([`Outgoing`]); heads are text and spans (`http1`), and those of HTTP/2 are
//! built into that form (`RequestHead::build`, `ResponseHead::build`). [`attempt`] runs one exchange between any two:
//!
//! ```text
//! Front ── head, data, trailers ──▶ Back        both at once; neither side's data are asked for
//! Front ◀── head, data, trailers ── Back        before the other side has taken what there is
//! ```
//!
//! What a side may rely on:
//!
//! - `poll_data` is called until it says `false`; the data it has shown stay until they are consumed;
//! - `begin` is called once, before any `poll_send`; `finish` once, after the last; `poll_flush` until it is ready;
//!   a side that is dropped before has broken off, and must let its peer know (a reset, a close);
//! - `Back::begin` may be called on another backend later: the front's head stays until the exchange has ended, and its
//!   body until its first byte was consumed.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use forebay::sys;
use forebay_core::Instant;
use forebay_proxy_core::http1::{
    Body, BodyError, HeadError, Method, RequestHead, ResponseHead, Trailers, response_body,
};
use forebay_proxy_core::rules::{Switch, TunnelError, switches};

use crate::access_log::Trail;
use crate::worker::Session as Entered;

/// Pieces in a row in one direction before other tasks of the worker get their turn.
const PIECES_IN_A_ROW: u32 = 16;

/// What broke a side.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The connection was closed or failed.
    Io(io::Error),
    /// What came was no head.
    Head(HeadError),
    /// What came was no body, or ended early.
    Body(BodyError),
    /// The peer did not look at the request (HTTP/2: REFUSED_STREAM, or a stream above GOAWAY's).
    Refused,
    /// The stream was broken off, and the code says why (HTTP/2).
    Reset(h2::Reason),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                f.write_str("the connection was closed without an answer")
            }
            Self::Io(error) => error.fmt(f),
            Self::Head(error) => error.fmt(f),
            Self::Body(error) => error.fmt(f),
            Self::Refused => f.write_str("the request was refused unread"),
            Self::Reset(reason) => write!(f, "the stream was reset: {reason} ({reason:?})"),
        }
    }
}

/// A body that comes.
pub(crate) trait Incoming {
    /// Makes the next data available. `false` when the body has ended.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>>;
    /// Returns the data that are available.
    fn data(&self) -> &[u8];
    /// Takes so many bytes off them.
    fn consume(&mut self, n: usize);
    /// Takes the trailers, once the body has ended.
    fn take_trailers(&mut self) -> Option<Box<Trailers>>;
}

/// A head and a body that go.
pub(crate) trait Outgoing {
    /// Takes data. Returns how many bytes. What it takes may wait until [`Outgoing::poll_flush`], up to a bound.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>>;
    /// Ends the body, with these trailers.
    fn finish(&mut self, trailers: Option<&Trailers>);
    /// Writes what waits.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
}

/// The client's side.
pub(crate) trait Front: Incoming + Outgoing {
    /// Returns the request, and the bytes that its spans mean.
    fn request(&self) -> (&RequestHead, &[u8]);
    /// Passes on a response before the last one (RFC 9110 §15.2).
    fn interim(&mut self, head: &ResponseHead, bytes: &[u8]);
    /// Begins the last response. `is_whole`: the request's body was read to its end; if not, the client must learn that
    /// its connection ends.
    fn begin(&mut self, head: &ResponseHead, bytes: &[u8], body: Body, switch: Switch, is_whole: bool);
    /// Whether the client has left, once its request was read whole.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// The backend's side. It was given the request's head when it was made.
pub(crate) trait Back: Incoming + Outgoing {
    /// Waits for the next head of a response.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    /// Returns the response, and the bytes that its spans mean.
    fn response(&self) -> (&ResponseHead, &[u8]);
    /// Passes over a response that was not the last.
    fn pass_interim(&mut self);
    /// The last response has this body: it follows.
    fn begin_body(&mut self, body: Body);
    /// Whether anything of a response has come.
    fn has_begun(&self) -> bool;
}

/// How an attempt ended that ended well.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finished {
    /// How the response's body was framed.
    pub(crate) body: Body,
    /// Whether the request was sent whole.
    pub(crate) request_sent: bool,
    /// Whether the two connections are a tunnel now.
    pub(crate) switch: Switch,
}

/// How an attempt ended that did not.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The backend's side broke.
    Back(Broken),
    /// The backend opened a tunnel that it must not.
    Tunnel(TunnelError),
    /// The backend has not answered in time, or takes nothing.
    BackTimeout,
    /// The backend was removed, or fails its checks, and what is in progress there is to end.
    Cut,
    /// The client's side broke.
    Front(Broken),
    /// The client has left.
    Left,
    /// The client has not sent its body in time, or takes nothing.
    FrontTimeout,
}

/// An attempt that failed, and how far it had come.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) failed: Failed,
    /// Whether any byte of a response has come from the backend.
    pub(crate) answered: bool,
    /// Whether the last response's head was given to the client: then it can only be broken off.
    pub(crate) begun: bool,
    /// Whether any of the request's body was consumed.
    pub(crate) body_consumed: bool,
}

impl Failure {
    /// The failure of a request of which nothing was sent.
    pub(crate) const fn unsent(broken: Broken) -> Self {
        Self { failed: Failed::Back(broken), answered: false, begun: false, body_consumed: false }
    }
}

/// For how long each side may do nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// The backend, until its response begins.
    pub(crate) response: Duration,
    /// The client, for a body either way.
    pub(crate) body: Duration,
    /// The backend, in the middle of a response: watches are silent for minutes.
    pub(crate) idle: Duration,
}

impl Patience {
    fn least(&self) -> Duration {
        self.response.min(self.body).min(self.idle)
    }
}

/// Rings when nothing has moved for too long. Moving costs no timer: it is set anew only when it has rung.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    sleep: Option<Pin<Box<tokio::time::Sleep>>>,
    rings_at: Instant,
}

impl Alarm {
    /// Whether it is `until`. `step` is the least time of all that this alarm is used for.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, until: Instant, step: Duration) -> Poll<()> {
        loop {
            let now = sys::coarse_now();
            if now >= until {
                return Poll::Ready(());
            }
            if self.sleep.is_none() || self.rings_at > now + step {
                self.set(now, until, step);
            }
            let Some(sleep) = &mut self.sleep else { return Poll::Pending };
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.set(sys::coarse_now(), until, step);
        }
    }

    fn set(&mut self, now: Instant, until: Instant, step: Duration) {
        // The coarse clock is a tick behind: what rings a moment late rings once.
        let left = until.saturating_duration_since(now).min(step) + Duration::from_millis(5);
        self.rings_at = now + left;
        let at = tokio::time::Instant::now() + left;
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().reset(at),
            None => self.sleep = Some(Box::pin(tokio::time::sleep_until(at))),
        }
    }
}

/// Runs one exchange between two sides, whose request has been begun. Both directions run at once. `entered` says when it
/// is to be cut.
///
/// # Cancel safety
///
/// Cancelled, both sides have broken off.
pub(crate) async fn attempt<F: Front, B: Back>(
    front: &mut F,
    back: &mut B,
    asked: Option<&[u8]>,
    patience: &Patience,
    alarm: &mut Alarm,
    trail: &mut Trail<'_>,
    entered: &Entered<'_>,
) -> Result<Finished, Failure> {
    let mut attempt = Attempt {
        up: Up::Body,
        down: Down::Head,
        method: front.request().0.method(),
        asked,
        finished: Finished { body: Body::None, request_sent: false, switch: Switch::Stays },
        broken: None,
        body_consumed: false,
        front_is_slow: false,
        moved: false,
        trail,
    };
    let mut moved_at = sys::coarse_now();
    let result = poll_fn(|cx| {
        attempt.moved = false;
        match attempt.poll(cx, front, back) {
            Ok(Poll::Ready(())) => return Poll::Ready(Ok(())),
            Ok(Poll::Pending) => {}
            Err(failed) => return Poll::Ready(Err(failed)),
        }
        if entered.is_cut(cx) {
            return Poll::Ready(Err(Failed::Cut));
        }
        if attempt.moved {
            moved_at = sys::coarse_now();
        }
        let (limit, late) = attempt.limit(patience);
        alarm.poll(cx, moved_at + limit, patience.least()).map(|()| Err(late))
    })
    .await;
    match result {
        Ok(()) => {
            attempt.finished.request_sent = attempt.up == Up::Done;
            Ok(attempt.finished)
        }
        Err(failed) => Err(Failure {
            failed,
            answered: back.has_begun() || attempt.down != Down::Head,
            begun: attempt.down != Down::Head,
            body_consumed: attempt.body_consumed,
        }),
    }
}

/// The request's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Up {
    /// Its body is passed on. Left at its end, to `Flush`; when the backend takes nothing more, to `Broken`.
    Body,
    /// What waits is written. Left when it is, to `Done`.
    Flush,
    /// The request was sent whole.
    Done,
    /// The backend takes nothing more. It may have answered before.
    Broken,
}

/// The response's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Down {
    /// A head is waited for. Left by the last one, to `Body`.
    Head,
    /// Its body is passed on. Left at its end, to `Flush`.
    Body,
    /// What waits is written. Left when it is, and the exchange has ended.
    Flush,
}

struct Attempt<'a, 'log> {
    up: Up,
    down: Down,
    method: Method,
    asked: Option<&'a [u8]>,
    finished: Finished,
    /// Why the backend takes nothing more.
    broken: Option<Broken>,
    body_consumed: bool,
    /// Whether it is the client who is waited for.
    front_is_slow: bool,
    moved: bool,
    trail: &'a mut Trail<'log>,
}

impl Attempt<'_, '_> {
    fn poll<F: Front, B: Back>(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut F,
        back: &mut B,
    ) -> Result<Poll<()>, Failed> {
        self.front_is_slow = false;
        self.poll_up(cx, front, back)?;
        if self.poll_down(cx, front, back)?.is_ready() {
            return Ok(Poll::Ready(()));
        }
        if self.up == Up::Done && front.poll_left(cx).is_ready() {
            return Err(Failed::Left);
        }
        Ok(Poll::Pending)
    }

    fn poll_up<F: Front, B: Back>(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut F,
        back: &mut B,
    ) -> Result<(), Failed> {
        let mut pieces = 0;
        while self.up == Up::Body {
            if pieces == PIECES_IN_A_ROW {
                cx.waker().wake_by_ref();
                return Ok(());
            }
            pieces += 1;
            match front.poll_data(cx) {
                Poll::Ready(Ok(true)) => match back.poll_send(cx, front.data()) {
                    Poll::Ready(Ok(n)) => {
                        front.consume(n);
                        self.trail.up(n as u64);
                        self.body_consumed |= n > 0;
                        self.moved = true;
                    }
                    Poll::Ready(Err(broken)) => self.give_up_sending(broken),
                    Poll::Pending => return Ok(()),
                },
                Poll::Ready(Ok(false)) => {
                    back.finish(front.take_trailers().as_deref());
                    self.up = Up::Flush;
                }
                Poll::Ready(Err(broken)) => return Err(Failed::Front(broken)),
                Poll::Pending => {
                    // What has come goes out before more is waited for.
                    match back.poll_flush(cx) {
                        Poll::Ready(Err(broken)) => self.give_up_sending(broken),
                        // Once it is being answered, it may say more whenever it likes: watches of gRPC do.
                        Poll::Ready(Ok(())) => self.front_is_slow = self.down == Down::Head,
                        Poll::Pending => {}
                    }
                    return Ok(());
                }
            }
        }
        if self.up == Up::Flush {
            match back.poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.up = Up::Done;
                    self.moved = true;
                }
                Poll::Ready(Err(broken)) => self.give_up_sending(broken),
                Poll::Pending => {}
            }
        }
        Ok(())
    }

    /// The backend takes nothing more; but it may have said why before it stopped to listen.
    fn give_up_sending(&mut self, broken: Broken) {
        self.up = Up::Broken;
        self.broken = Some(broken);
    }

    fn poll_down<F: Front, B: Back>(
        &mut self,
        cx: &mut Context<'_>,
        front: &mut F,
        back: &mut B,
    ) -> Result<Poll<()>, Failed> {
        let mut pieces = 0;
        loop {
            if pieces == PIECES_IN_A_ROW {
                cx.waker().wake_by_ref();
                return Ok(Poll::Pending);
            }
            pieces += 1;
            match self.down {
                Down::Head => match back.poll_head(cx) {
                    Poll::Ready(Ok(())) => {
                        self.moved = true;
                        self.take_head(front, back)?;
                    }
                    Poll::Ready(Err(broken)) => return Err(Failed::Back(self.why(broken))),
                    // An interim response may wait to be written.
                    Poll::Pending => return self.flush_front(cx, front).map(|_| Poll::Pending),
                },
                Down::Body => match back.poll_data(cx) {
                    Poll::Ready(Ok(true)) => match front.poll_send(cx, back.data()) {
                        Poll::Ready(Ok(n)) => {
                            back.consume(n);
                            self.trail.down(n as u64);
                            self.moved = true;
                        }
                        Poll::Ready(Err(broken)) => return Err(Failed::Front(broken)),
                        Poll::Pending => {
                            self.front_is_slow = true;
                            return Ok(Poll::Pending);
                        }
                    },
                    Poll::Ready(Ok(false)) => {
                        front.finish(back.take_trailers().as_deref());
                        self.down = Down::Flush;
                    }
                    Poll::Ready(Err(broken)) => {
                        // What has come is worth having, even if it is not all.
                        let _ = front.poll_flush(cx);
                        return Err(Failed::Back(broken));
                    }
                    Poll::Pending => return self.flush_front(cx, front).map(|_| Poll::Pending),
                },
                Down::Flush => return self.flush_front(cx, front),
            }
        }
    }

    fn flush_front<F: Front>(&mut self, cx: &mut Context<'_>, front: &mut F) -> Result<Poll<()>, Failed> {
        match front.poll_flush(cx) {
            Poll::Ready(Ok(())) => Ok(Poll::Ready(())),
            Poll::Ready(Err(broken)) => Err(Failed::Front(broken)),
            Poll::Pending => {
                self.front_is_slow = true;
                Ok(Poll::Pending)
            }
        }
    }

    /// A head has come.
    fn take_head<F: Front, B: Back>(&mut self, front: &mut F, back: &mut B) -> Result<(), Failed> {
        let (head, bytes) = back.response();
        if head.is_interim() {
            front.interim(head, bytes);
            back.pass_interim();
            return Ok(());
        }
        self.finished.switch = switches(self.method, self.asked, head, bytes).map_err(Failed::Tunnel)?;
        self.finished.body = response_body(self.method, head);
        self.trail.head(head.status());
        let is_whole = matches!(self.up, Up::Flush | Up::Done);
        front.begin(head, bytes, self.finished.body, self.finished.switch, is_whole);
        back.begin_body(self.finished.body);
        self.down = Down::Body;
        Ok(())
    }

    /// Why no answer comes: what broke first says more.
    fn why(&mut self, broken: Broken) -> Broken {
        match (&broken, self.broken.take()) {
            (Broken::Io(_), Some(first)) => first,
            _ => broken,
        }
    }

    /// For how long nothing may move now, and whose fault it is if nothing does.
    fn limit(&self, patience: &Patience) -> (Duration, Failed) {
        match (self.front_is_slow, self.down) {
            (true, _) => (patience.body, Failed::FrontTimeout),
            (false, Down::Head) => (patience.response, Failed::BackTimeout),
            (false, _) => (patience.idle, Failed::BackTimeout),
        }
    }
}

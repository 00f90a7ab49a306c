//! Sends one request: picks a backend, takes a connection, tries again where that is allowed, gives the connection back.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use forebay::{AcquireError, Cause, Exclusive, Lease, Shared, sys};
use forebay_proxy_core::http1::{Announce, Body, Client, Method, RequestOut, request_body};
use forebay_proxy_core::roster::{Standing, Tried};
use forebay_proxy_core::rules::{self, Replay, Reuse, Switch, is_private, wants_upgrade};

use super::Http;
use super::back1::{Back1, BackDesk};
use super::back2::{Back2, Http2Connector};
use super::connector::HttpConnector;
use super::exchange::{Alarm, Back, Broken, Failed, Failure, Front, attempt};
use crate::access_log::{End, Trail};
use crate::backends::Known;
use crate::settings::{BackendAddress, Protocol};
use crate::worker::{Session as Entered, Shell};

/// A client while it asks for something. Each stream of an HTTP/2 connection has one of its own.
pub(super) struct Session {
    client: Client,
    /// Where it comes from.
    peer: SocketAddr,
    history: History,
}

/// What is known of a client from the requests before.
pub(super) struct History {
    /// Whether no request of it has been sent yet.
    is_first: bool,
    /// A connection that belongs to this client alone.
    private: Option<Box<(Known, Hold)>>,
}

impl Default for History {
    fn default() -> Self {
        Self { is_first: true, private: None }
    }
}

impl Session {
    /// A client that comes from `peer`, encrypted or not.
    pub(super) fn new(peer: SocketAddr, is_encrypted: bool, history: History) -> Self {
        Self { client: Client::new(peer.ip(), is_encrypted), peer, history }
    }

    /// Returns one for a stream of this client, which may have had others before.
    pub(super) fn of_stream(&self, is_first: bool) -> Self {
        Self { client: self.client.clone(), peer: self.peer, history: History { is_first, private: None } }
    }

    /// Returns the client's address as it is told.
    pub(super) fn client(&self) -> &str {
        self.client.address()
    }

    /// Whether it has a connection of its own.
    pub(super) const fn is_private(&self) -> bool {
        self.history.private.is_some()
    }

    /// Returns what tells when the client's own connection is to be left while it is idle.
    pub(super) fn enter<'a>(&self, shell: &'a Shell) -> Option<Entered<'a>> {
        self.history.private.as_ref().map(|held| shell.enter(&held.0))
    }

    /// Leaves the client's own connection.
    pub(super) fn leave(&mut self) {
        if let Some((_, hold)) = self.history.private.take().map(|held| *held) {
            hold.discard(Cause::Cancelled);
        }
    }

    /// Keeps a connection that is the client's own, if its backend is not to be left.
    fn keep(&mut self, backend: Known, hold: Hold) {
        if is_left(&backend) {
            hold.complete_last();
        } else {
            self.history.private = Some(Box::new((backend, hold)));
        }
    }

    /// Ends it: what is to be known when the client asks again.
    pub(super) fn into_history(self) -> History {
        self.history
    }

    /// Returns where the client comes from.
    pub(super) const fn peer(&self) -> SocketAddr {
        self.peer
    }
}

type Held = Lease<HttpConnector, Exclusive>;
type Held2 = Lease<Http2Connector, Shared>;

/// What became of a request.
pub(super) enum Sent {
    /// The response has been written.
    Answered,
    /// The response has been written, and both connections are a tunnel.
    Tunnel(Box<Tunnel>),
    /// Nothing of a response has been written: this is to be.
    Refused(Refused),
    /// The client has left.
    Left,
    /// The response can only be broken off; by HTTP/2, with this code.
    BrokenOff(Option<h2::Reason>),
}

/// The backend's end of a tunnel.
pub(super) struct Tunnel {
    pub(super) backend: Known,
    pub(super) lease: Held,
    /// What came after the response's head.
    pub(super) early: Vec<u8>,
}

/// An answer of our own.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) status: u16,
    /// What failed, where, and whose fault it is.
    pub(super) why: String,
}

/// A connection for one request.
struct Link {
    backend: Known,
    hold: Hold,
    is_private: bool,
    is_reused: bool,
}

/// A connection, or one stream of it.
enum Hold {
    One(Held),
    Two(Held2),
}

impl Hold {
    /// Whether another request may go on it, as far as one can know.
    fn is_quiet(&self) -> bool {
        match self {
            Self::One(lease) => lease.stream.is_quiet(),
            Self::Two(lease) => lease.takes_requests(),
        }
    }

    fn discard(self, cause: Cause) {
        match self {
            Self::One(lease) => lease.discard(cause),
            Self::Two(lease) => lease.discard(cause),
        }
    }

    fn complete_last(self) {
        match self {
            Self::One(lease) => lease.complete_last(),
            Self::Two(lease) => lease.complete_last(),
        }
    }
}

/// Whether nothing more is to be sent on connections to this backend.
fn is_left(backend: &Known) -> bool {
    matches!(backend.standing(), Standing::Removed | Standing::Unhealthy)
}

/// What kind of connection a request wants.
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// Whether it could be sent again.
    is_replayable: bool,
    /// Whether it may become a tunnel, which only HTTP/1.1 has.
    is_tunnel: bool,
}

impl Http {
    /// Sends a request, whose client's side is `front`, and passes the response on.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the connection to the backend is closed: nobody knows what its next bytes belong to.
    pub(super) async fn send<F: Front>(
        &self,
        shell: &Rc<Shell>,
        session: &mut Session,
        front: &mut F,
        desk: &mut BackDesk,
        alarm: &mut Alarm,
        trail: &mut Trail<'_>,
    ) -> Sent {
        self.budget.borrow_mut().handle_request();
        let (head, bytes) = front.request();
        let (method, body) = (head.method(), request_body(head));
        let upgrade = wants_upgrade(head, bytes);
        let asked = upgrade.then(|| head.fields().upgrade(bytes).unwrap_or_default().to_vec());
        let needs_host = head.authority(bytes).is_empty();
        let is_replayable = method.is_idempotent() && body == Body::None && self.config.retries;
        let id = if self.config.forwarded.request_id { self.next_id() } else { 0 };
        trail.name(&self.config.forwarded, head, bytes, id);
        let mut tried = Tried::new();
        let mut again: Option<Known> = None;
        let wish = Wish { is_replayable, is_tunnel: upgrade || method == Method::Connect };
        let mut was_refused = false;
        loop {
            let link = match self.link(shell, session, again.take(), &mut tried, wish, trail).await {
                Ok(link) => link,
                Err(refused) => {
                    shell.figures.requests_failed.add(1);
                    tracing::warn!(
                        proxy = &*shell.config.name,
                        client = session.client.address(),
                        why = refused.why,
                        "a request has failed"
                    );
                    return Sent::Refused(refused);
                }
            };
            session.history.is_first = false;
            trail.link(link.backend.key().address, link.is_reused);
            let known = Arc::clone(&link.backend);
            let (_visit, entered, began) = (known.enter(), shell.enter(&known), sys::coarse_now());
            let host = if needs_host { link.backend.key().to_string() } else { String::new() };
            let how = RequestOut {
                policy: &self.config.forwarded,
                client: &session.client,
                body: match body {
                    Body::Length(length) => Announce::Length(length),
                    Body::Chunked => Announce::Chunked,
                    Body::None | Body::UntilClose => front
                        .request()
                        .0
                        .fields()
                        .content_length()
                        .map_or(Announce::Nothing, Announce::Length),
                },
                upgrade,
                host: &host,
                id,
            };
            let Link { backend, hold, is_private: was_private, is_reused } = link;
            let mut lease = match hold {
                Hold::One(lease) => lease,
                Hold::Two(lease) => {
                    let back = Back2::new(&lease, &mut desk.two, backend.key(), front.request(), &how);
                    let ended = match back {
                        Ok(mut back) => {
                            attempt(front, &mut back, None, &self.patience, alarm, trail, &entered).await
                        }
                        Err(broken) => Err(Failure::unsent(broken)),
                    };
                    let failure = match ended {
                        Ok(_) => {
                            let now = sys::coarse_now();
                            known.note_good();
                            known.note_latency(now, now.saturating_duration_since(began));
                            match was_private {
                                true => session.keep(backend, Hold::Two(lease)),
                                false => lease.complete(),
                            }
                            return Sent::Answered;
                        }
                        Err(failure) => failure,
                    };
                    // Its stream has failed; of the connection's end its own task tells.
                    match &failure.failed {
                        Failed::Back(Broken::Refused | Broken::Io(_)) => lease.unused(),
                        failed => lease.fail(cause(failed)),
                    }
                    if !is_reused || failure.answered || matches!(failure.failed, Failed::BackTimeout) {
                        shell.backends.note_failed(backend.id(), cause(&failure.failed));
                    }
                    // One backend may refuse a stream only because its connection ends: it is asked once more.
                    let is_refused = matches!(failure.failed, Failed::Back(Broken::Refused));
                    let replay = match replay(&failure, method, is_reused) {
                        Some(Replay::Next) if is_refused && !std::mem::replace(&mut was_refused, true) => {
                            Some(Replay::Fresh)
                        }
                        replay => replay,
                    };
                    if !self.tries_again(shell, &failure, replay, &backend, &mut again, &mut tried) {
                        return self.fail(shell, session, backend.key(), &failure, trail);
                    }
                    continue;
                }
            };
            let mut back = Back1::new(&lease.stream, desk, &self.config.limits, front.request(), &how);
            let ended =
                attempt(front, &mut back, asked.as_deref(), &self.patience, alarm, trail, &entered).await;
            let failure = match ended {
                Ok(finished) if finished.switch != Switch::Stays => {
                    let early = back.early().to_vec();
                    return Sent::Tunnel(Box::new(Tunnel { backend, lease, early }));
                }
                Ok(finished) => {
                    let now = sys::coarse_now();
                    known.note_good();
                    known.note_latency(now, now.saturating_duration_since(began));
                    let verdict = back.verdict(&finished, method == Method::Connect);
                    let (head, bytes) = back.response();
                    let is_private = was_private || is_private(head, bytes);
                    lease.uses += 1;
                    match verdict {
                        Ok(()) if is_private => session.keep(backend, Hold::One(lease)),
                        Ok(()) => lease.complete(),
                        Err(spoilt) => {
                            tracing::trace!(backend = %backend.key(), why = spoilt.as_str(), "not kept");
                            lease.complete_last();
                        }
                    }
                    return Sent::Answered;
                }
                Err(failure) => failure,
            };
            let cause = cause(&failure.failed);
            lease.discard(cause);
            // That a kept connection has ended meanwhile says nothing of the backend.
            if !is_reused || failure.answered || matches!(failure.failed, Failed::BackTimeout) {
                shell.backends.note_failed(backend.id(), cause);
            }
            let replay = replay(&failure, method, is_reused);
            if !self.tries_again(shell, &failure, replay, &backend, &mut again, &mut tried) {
                return self.fail(shell, session, backend.key(), &failure, trail);
            }
        }
    }

    /// Whether a request that failed is sent again; notes where.
    fn tries_again(
        &self,
        shell: &Shell,
        failure: &Failure,
        replay: Option<Replay>,
        backend: &Known,
        again: &mut Option<Known>,
        tried: &mut Tried,
    ) -> bool {
        // What the backend says that it has not looked at may be sent again by anybody's rules (RFC 9113 §8.7).
        let is_unread = matches!(failure.failed, Failed::Back(Broken::Refused));
        let may = matches!(replay, Some(Replay::Fresh | Replay::Next))
            && (self.config.retries || is_unread)
            && !failure.begun
            && self.may_replay();
        if may {
            shell.figures.retries.add(1);
            match replay {
                Some(Replay::Fresh) => *again = Some(Arc::clone(backend)),
                _ => tried.insert(backend.id()),
            }
        }
        may
    }

    fn may_replay(&self) -> bool {
        self.budget.borrow_mut().take(sys::coarse_now())
    }

    /// Gets a connection for a request: every backend is tried before the client is refused. `again` is one to which a
    /// new connection is wanted.
    async fn link(
        &self,
        shell: &Rc<Shell>,
        session: &mut Session,
        again: Option<Known>,
        tried: &mut Tried,
        wish: Wish,
        trail: &mut Trail<'_>,
    ) -> Result<Link, Refused> {
        if let Some((backend, hold)) = session.history.private.take().map(|held| *held) {
            if hold.is_quiet() && !is_left(&backend) {
                return Ok(Link { backend, hold, is_private: true, is_reused: true });
            }
            // It has ended, has said what nobody asked for, or its backend is to be left: the client begins anew.
            hold.discard(Cause::Reset);
        }
        let settings = &shell.config.connections;
        let mut deadline = None;
        let mut last: Option<AcquireError> = None;
        let mut again = again;
        loop {
            let must_be_new = again.is_some();
            let backend = match again.take() {
                Some(backend) => backend,
                None => match shell.pick(session.peer.ip(), tried) {
                    Some(backend) => backend,
                    None => break,
                },
            };
            let now = Instant::now();
            let deadline = *deadline.get_or_insert(now + settings.connect_budget.0);
            let until = deadline.min(now + settings.connect_timeout.0);
            match self.acquire(session, backend.key(), until, must_be_new, wish).await {
                Ok((hold, is_private)) => {
                    let is_reused = match &hold {
                        Hold::One(lease) => lease.is_reused(),
                        // Once more, and no more.
                        Hold::Two(lease) => lease.is_reused() && !must_be_new,
                    };
                    return Ok(Link { backend, hold, is_private, is_reused });
                }
                Err(error) => {
                    shell.figures.tried_in_vain.add(1);
                    trail.miss();
                    tracing::debug!(proxy = &*shell.config.name, backend = %backend.key(), %error, "cannot be reached");
                    shell.backends.note_unreached(backend.id(), &error);
                    last = Some(error);
                }
            }
            tried.insert(backend.id());
            if Instant::now() >= deadline {
                break;
            }
        }
        let mut why = "no backend can be reached".to_owned();
        if let Some(last) = last {
            // Writing into a text cannot fail.
            let _ = write!(why, "; {} tried; the last: {last}", tried.len());
        }
        Err(Refused { status: 503, why })
    }

    /// Takes a connection to this backend. Returns whether it is the client's alone, too.
    async fn acquire(
        &self,
        session: &Session,
        backend: &BackendAddress,
        until: Instant,
        must_be_new: bool,
        wish: Wish,
    ) -> Result<(Hold, bool), AcquireError> {
        let reuse = self.config.reuse;
        // A connection that carries many clients at once is reused in every sense.
        let is_private = reuse == Reuse::Never;
        if (!wish.is_tunnel || backend.protocol == Protocol::Http2) && self.spoken.may_be_http2(backend) {
            let pool = if is_private { &self.fresh2 } else { &self.pool2 };
            match pool.acquire_at_until(backend, until).await {
                Ok(lease) => return Ok((Hold::Two(lease), is_private)),
                // It has just chosen HTTP/1.1.
                Err(_) if !self.spoken.may_be_http2(backend) => {}
                Err(error) => return Err(error),
            }
        }
        if must_be_new || is_private {
            return Ok((Hold::One(self.fresh.acquire_at_until(backend, until).await?), true));
        }
        let lease = self.pool.acquire_at_until(backend, until).await?;
        if reuse.admits(session.history.is_first, wish.is_replayable, lease.uses) {
            return Ok((Hold::One(lease), false));
        }
        lease.unused();
        // The client's own, for as long as it stays.
        Ok((Hold::One(self.fresh.acquire_at_until(backend, until).await?), true))
    }

    /// A request has failed for good.
    fn fail(
        &self,
        shell: &Shell,
        session: &Session,
        backend: &BackendAddress,
        failure: &Failure,
        trail: &mut Trail<'_>,
    ) -> Sent {
        trail.end(match &failure.failed {
            Failed::Left | Failed::Front(Broken::Io(_) | Broken::Reset(_) | Broken::Refused) => {
                End::ClientLeft
            }
            Failed::Front(_) => End::Refused,
            Failed::FrontTimeout => End::ClientLate,
            Failed::Back(_) | Failed::Tunnel(_) => End::BackendFailed,
            Failed::Cut => End::Cut,
            Failed::BackTimeout => End::BackendLate,
        });
        let (status, what) = match &failure.failed {
            Failed::Left | Failed::Front(Broken::Io(_) | Broken::Reset(_) | Broken::Refused) => {
                shell.figures.failed_client.add(1);
                return Sent::Left;
            }
            Failed::Front(broken) => (400, format!("the request's body: {broken}")),
            Failed::FrontTimeout => (408, "the request's body did not come in time".to_owned()),
            Failed::Back(broken) => (502, format!("backend {backend}: {broken}; look at the backend")),
            Failed::Tunnel(error) => (502, format!("backend {backend}: {error}; look at the backend")),
            Failed::Cut => (
                502,
                format!("backend {backend}: it was removed or fails its checks; what it did is not known"),
            ),
            Failed::BackTimeout => {
                (504, format!("backend {backend}: no answer in time; look at the backend"))
            }
        };
        let is_clients = matches!(failure.failed, Failed::Front(_) | Failed::FrontTimeout);
        let figures = &shell.figures;
        if is_clients {
            figures.requests_bad.add(1)
        } else {
            figures.requests_failed.add(1)
        }
        if is_clients {
            figures.failed_client.add(1)
        } else {
            figures.failed_backend.add(1)
        }
        let (proxy, client) = (&*shell.config.name, session.client.address());
        tracing::warn!(proxy, client, status, why = what, cut = failure.begun, "a request has failed");
        if failure.begun {
            Sent::BrokenOff(code(&failure.failed))
        } else {
            Sent::Refused(Refused { status, why: what })
        }
    }
}

/// Whether this failure lets the request be sent again.
fn replay(failure: &Failure, method: Method, on_reused: bool) -> Option<Replay> {
    let kind = match &failure.failed {
        Failed::Back(Broken::Io(_)) => rules::Failure::Closed,
        Failed::Back(Broken::Refused) => rules::Failure::Refused,
        Failed::Back(Broken::Head(_) | Broken::Body(_) | Broken::Reset(_)) | Failed::Tunnel(_) => {
            rules::Failure::Malformed
        }
        Failed::BackTimeout => rules::Failure::TimedOut,
        Failed::Cut => rules::Failure::Closed,
        Failed::Front(_) | Failed::Left | Failed::FrontTimeout => return None,
    };
    let sent = rules::Sent {
        any: true,
        is_idempotent: method.is_idempotent(),
        is_kept: !failure.body_consumed,
        on_reused: on_reused || matches!(failure.failed, Failed::Cut),
        answered: failure.answered,
    };
    match sent.replay(kind) {
        // Not there again.
        Replay::Fresh if matches!(failure.failed, Failed::Cut) => Some(Replay::Next),
        replay => Some(replay),
    }
}

/// With which code the client's stream is broken off: that of the backend's, if it has one that means the same there.
const fn code(failed: &Failed) -> Option<h2::Reason> {
    match failed {
        Failed::Back(Broken::Reset(reason)) => Some(*reason),
        _ => None,
    }
}

/// What the connection is told of its end.
fn cause(failed: &Failed) -> Cause {
    match failed {
        Failed::Back(Broken::Io(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            forebay::blame::cause_of(error)
        }
        Failed::Back(Broken::Io(_) | Broken::Refused | Broken::Reset(_)) => Cause::Reset,
        Failed::Back(Broken::Head(_) | Broken::Body(_)) | Failed::Tunnel(_) => Cause::Protocol,
        Failed::BackTimeout => Cause::Timeout,
        Failed::Front(_) | Failed::Left | Failed::FrontTimeout | Failed::Cut => Cause::Cancelled,
    }
}

//! Requests of HTTP: each goes to a backend on a connection that may have carried others.
//!
//! | module | what |
//! |---|---|
//! | `exchange` | one request and its response, whatever versions they come and go by: the seam between the two sides |
//! | `send` | picks a backend, takes a connection, tries again where that is allowed, gives the connection back |
//! | `front1` | the client's side by HTTP/1.1 |
//! | `back1` | the backend's side by HTTP/1.1 |
//! | `front2`, `back2` | the same by HTTP/2; `stream2`: what both have in common |
//! | `wire` | one half of an HTTP/1.1 connection: buffers and framing |
//! | `tunnel` | what was HTTP, after 101 or CONNECT |
//! | `connector` | connections to backends |

mod back1;
mod back2;
mod connector;
mod exchange;
mod front1;
mod front2;
mod send;
mod stream2;
mod tunnel;
mod wire;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use forebay::dial::Machine;
use forebay::stream::Stream;
use forebay::tls::ALPN_HTTP;
use forebay::{Limits, Pool, Removal, Shared, sys};
use forebay_core::{Config, Instant};
use forebay_proxy_core::http1::{Expectation, HeadError, write_decimal};
use forebay_proxy_core::rules::RetryBudget;
use rustls::{ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio::sync::futures::Notified;

use self::back1::BackDesk;
use self::back2::{Http2Connector, Spoken};
use self::connector::{Dialler, HttpConnector};
use self::exchange::{Alarm, Patience};
use self::front1::{Front1, FrontDesk};
use self::front2::PREFACE;
use self::send::{History, Refused, Sent, Session};
use crate::access_log::{Came, End, Trail};
use crate::settings::{BackendAddress, HttpConfig, ProxyConfig, Scheme};
use crate::worker::{Figured, Open, Shell, refuse};

/// Desks that are kept for the next request, per worker: as many requests as are commonly in progress at once.
const DESKS_MAX: usize = 256;

/// How long what a client's requests need is held after the last of them: one that asks again by then costs no
/// allocation.
const BUSY: Duration = Duration::from_millis(250);

/// How long a client that was told off is listened to, so that it reads the answer before it learns of the end
/// (RFC 9112 §9.6), and how many bytes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES_MAX: usize = 1 << 20;

/// What one worker needs to serve requests.
pub(crate) struct Http {
    config: HttpConfig,
    patience: Patience,
    pool: Pool<HttpConnector>,
    /// Connections that carry one client's requests alone: those that must be new, and those that have become private.
    fresh: Pool<HttpConnector>,
    /// Connections that carry many requests at once, by HTTP/2.
    pool2: Pool<Http2Connector, Shared>,
    /// Connections by HTTP/2 that are one client's alone.
    fresh2: Pool<Http2Connector, Shared>,
    /// Which backends have chosen HTTP/1.1 when they were asked.
    spoken: Arc<Spoken>,
    /// What clients of `https://` listeners are answered.
    tls: Option<Arc<ServerConfig>>,
    #[allow(clippy::vec_box, reason = "what is lent changes hands by its address")]
    desks: RefCell<Vec<Box<Desk>>>,
    budget: RefCell<RetryBudget>,
    /// What request ids are made of.
    ids: Cell<(u64, u64)>,
}

/// What a client's connection needs while a request is in progress.
#[derive(Debug, Default)]
struct Desk {
    front: FrontDesk,
    back: BackDesk,
}

/// With what the runtime adds, a task of this size fits 384 bytes; one byte more, and it takes 512.
const TASK_BYTES_MAX: usize = 280;

/// A client: all that is held of it while it asks for nothing.
struct Guest {
    stream: Stream,
    /// Where it comes from.
    peer: IpAddr,
    port: u16,
    history: History,
    alarm: Alarm,
}

impl Guest {
    /// Waits for its next request until `until`; `step` is the alarm's.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        shell: &Shell,
        drains: Pin<&mut Notified<'_>>,
        until: Instant,
        step: Duration,
    ) -> Poll<Waited> {
        if let Poll::Ready(ready) = self.stream.poll_read_ready(cx) {
            return Poll::Ready(if ready.is_ok() { Waited::Asked } else { Waited::Gone });
        }
        if shell.is_draining() || drains.poll(cx).is_ready() {
            return Poll::Ready(Waited::Gone);
        }
        self.alarm.poll(cx, until, step).map(|()| Waited::Silent)
    }

    /// Waits for its next request for as long as it may ask for nothing.
    fn rest<'a>(&'a mut self, shell: &'a Shell, idle: Duration) -> Rest<'a> {
        Rest { until: sys::coarse_now() + idle, drains: shell.drains(), guest: self, shell }
    }

    fn session(&mut self) -> Session {
        let peer = SocketAddr::new(self.peer, self.port);
        Session::new(peer, self.stream.is_encrypted(), std::mem::take(&mut self.history))
    }
}

pin_project_lite::pin_project! {
    /// A client that asks for nothing. Written by hand, since this is what there is most of.
    struct Rest<'a> {
        guest: &'a mut Guest,
        shell: &'a Shell,
        until: Instant,
        #[pin]
        drains: Notified<'a>,
    }
}

impl Future for Rest<'_> {
    type Output = Waited;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Waited> {
        let this = self.project();
        // The alarm rings once: a step would wake a client for nothing.
        this.guest.poll(cx, this.shell, this.drains, *this.until, Duration::MAX)
    }
}

/// How waiting for a request ended.
enum Waited {
    /// Something has come.
    Asked,
    /// The client has ended, or the proxy ends.
    Gone,
    /// Nothing has come for so long.
    Silent,
}

/// What a client does that was busy.
enum Next {
    /// Nothing, for now.
    Rests,
    /// It is over.
    Goes,
    /// It speaks HTTP/2; this has been read.
    Http2(Vec<u8>),
}

/// What came instead of a head.
enum NoHead {
    /// The client has ended, or the proxy ends.
    Gone,
    /// What came is none.
    Bad(HeadError),
    /// It did not come in time.
    Late,
}

impl Http {
    pub(crate) fn new(
        config: &ProxyConfig,
        machine: Arc<Machine>,
        limits: Arc<Limits<BackendAddress>>,
        seed: u64,
    ) -> io::Result<Self> {
        let (dialler, spoken) = (Arc::new(Dialler::new(config)), Arc::new(Spoken::default()));
        let pool = |config: &ProxyConfig, policy: Config, seed| {
            Pool::builder(HttpConnector::new(Arc::clone(&dialler)))
                .name(&*config.name)
                .config(policy)
                .budget(Arc::clone(&machine))
                .limits(Arc::clone(&limits))
                .shards(1)
                .seed(seed)
                .build()
                .map_err(io::Error::other)
        };
        let http = config.http.clone();
        let pool2 = |policy: Config, seed| {
            Pool::shared(Http2Connector::new(&config.http, Arc::clone(&dialler), Arc::clone(&spoken)))
                .name(&*config.name)
                .config(policy)
                .budget(Arc::clone(&machine))
                .limits(Arc::clone(&limits))
                .shards(1)
                .seed(seed)
                .build()
                .map_err(io::Error::other)
        };
        let shared2 = Config { capacity: http.backend_streams_max, ..config.pool };
        let fresh2 = Config { capacity: 1, uses_max: Some(1), ..config.pool };
        Ok(Self {
            patience: Patience {
                response: http.response_timeout,
                body: http.body_timeout,
                idle: config.clients.idle_timeout.0,
            },
            pool: pool(config, config.pool, seed)?,
            fresh: pool(config, Config { uses_max: Some(1), ..config.pool }, seed.rotate_left(32))?,
            pool2: pool2(shared2, seed.rotate_left(16))?,
            fresh2: pool2(fresh2, seed.rotate_left(48))?,
            spoken,
            tls: config.tls.as_ref().map(|tls| Arc::clone(&tls.config)),
            desks: RefCell::default(),
            budget: RefCell::default(),
            ids: Cell::new((seed, 0)),
            config: http,
        })
    }

    /// Makes room for connections to a backend.
    pub(crate) fn adopt(&self, backend: &BackendAddress) {
        self.pool.add_endpoint(backend.clone());
        self.fresh.add_endpoint(backend.clone());
        self.pool2.add_endpoint(backend.clone());
        self.fresh2.add_endpoint(backend.clone());
    }

    /// Closes connections to a backend that nobody uses, and lets those in use end. The backend stays.
    pub(crate) fn purge(&self, backend: &BackendAddress) {
        self.pool.renew_endpoint(backend);
        self.fresh.renew_endpoint(backend);
        self.pool2.renew_endpoint(backend);
    }

    /// Forgets a backend: closes connections to it that nobody uses, and lets those in use end.
    pub(crate) fn remove(&self, backend: &BackendAddress) {
        self.pool.remove_endpoint(backend, Removal::Drain);
        self.fresh.remove_endpoint(backend, Removal::Drain);
        self.pool2.remove_endpoint(backend, Removal::Drain);
        self.fresh2.remove_endpoint(backend, Removal::Drain);
    }

    /// Returns what tells the figures of the connections.
    pub(crate) fn figured(&self) -> Figured {
        let (pool, fresh) = (self.pool.clone(), self.fresh.clone());
        let (pool2, fresh2) = (self.pool2.clone(), self.fresh2.clone());
        Arc::new(move || {
            let mut all = pool.snapshot().endpoints;
            all.extend(fresh.snapshot().endpoints);
            all.extend(pool2.snapshot().endpoints);
            all.extend(fresh2.snapshot().endpoints);
            all
        })
    }

    /// Serves one client in a task of its own, request after request, for as long as it is `open`. `scheme` is that of the
    /// listener it came to.
    ///
    /// While the client has asked for nothing for a while, what is held of it is this task: what requests need is boxed,
    /// and an `async fn` would hold its arguments twice.
    pub(crate) fn serve(this: &Rc<Self>, client: TcpStream, peer: SocketAddr, scheme: Scheme, open: Open) {
        let stream = match (scheme, &this.tls) {
            (Scheme::Plain, _) => Stream::plain(client),
            (Scheme::Https, Some(tls)) => match ServerConnection::new(Arc::clone(tls)) {
                Ok(tls) => Stream::encrypted(client, tls),
                Err(_) => return open.shell().figures.failed_client.add(1),
            },
            // Settings without a certificate have no such listener.
            (Scheme::Https, None) => return,
        };
        let mut guest = Guest {
            stream,
            peer: peer.ip(),
            port: peer.port(),
            history: History::default(),
            alarm: Alarm::default(),
        };
        let http = Rc::clone(this);
        let task = async move {
            if guest.stream.is_encrypted() {
                if !Box::pin(http.shake_hands(&guest.stream)).await {
                    return open.shell().figures.failed_client.add(1);
                }
                if guest.stream.speaks(ALPN_HTTP[0]) {
                    return Box::pin(http.serve2(open.shell(), guest, Vec::new())).await;
                }
            }
            loop {
                match guest.rest(open.shell(), http.config.idle_timeout).await {
                    Waited::Asked => {}
                    Waited::Gone => return,
                    Waited::Silent => return open.shell().figures.ended_idle.add(1),
                }
                match Box::pin(http.serve_busy(open.shell(), &mut guest)).await {
                    Next::Rests => {}
                    Next::Goes => return,
                    Next::Http2(early) => return Box::pin(http.serve2(open.shell(), guest, early)).await,
                }
            }
        };
        debug_assert!(size_of_val(&task) <= TASK_BYTES_MAX, "{} bytes for each client", size_of_val(&task));
        tokio::task::spawn_local(task);
    }

    /// Serves a client until it has asked for nothing for [`BUSY`].
    async fn serve_busy(&self, shell: &Rc<Shell>, guest: &mut Guest) -> Next {
        let mut session = guest.session();
        let mut desk: Option<Box<Desk>> = None;
        loop {
            let mut busy = desk.take().unwrap_or_else(|| self.take_desk());
            let lasts = self.serve_request(shell, guest, &mut session, &mut busy).await;
            if !lasts {
                let early = busy.front.reading.take_http2();
                self.give_desk(busy);
                return early.map_or(Next::Goes, Next::Http2);
            }
            if busy.front.reading.left() > 0 {
                // The next request has come already.
                desk = Some(busy);
                continue;
            }
            self.give_desk(busy);
            // With a connection of its own at a backend a client is not at rest: that may have to be left.
            let busy_for = match session.is_private() {
                true => self.config.idle_timeout,
                false => self.config.idle_timeout.min(BUSY),
            };
            let mut entered = session.enter(shell);
            let (until, mut drains) = (sys::coarse_now() + busy_for, pin!(shell.drains()));
            let waited = poll_fn(|cx| {
                if entered.as_ref().is_some_and(|entered| entered.is_cut(cx)) {
                    entered = None;
                    session.leave();
                }
                guest.poll(cx, shell, drains.as_mut(), until, self.step())
            })
            .await;
            match waited {
                Waited::Asked => {}
                Waited::Gone => return Next::Goes,
                Waited::Silent if busy_for < self.config.idle_timeout => {
                    guest.history = session.into_history();
                    return Next::Rests;
                }
                Waited::Silent => {
                    shell.figures.ended_idle.add(1);
                    return Next::Goes;
                }
            }
        }
    }

    /// Shakes hands with a client. Whether that went well, and in time.
    async fn shake_hands(&self, stream: &Stream) -> bool {
        matches!(tokio::time::timeout(self.config.head_timeout, stream.handshake()).await, Ok(Ok(_)))
    }

    /// The least time that an alarm of a client's connection is set for.
    fn step(&self) -> Duration {
        let config = &self.config;
        config
            .idle_timeout
            .min(config.head_timeout)
            .min(config.body_timeout)
            .min(config.response_timeout)
            .min(self.patience.idle)
            .min(BUSY)
    }

    /// Serves one request. Whether the connection lasts.
    async fn serve_request(
        &self,
        shell: &Rc<Shell>,
        guest: &mut Guest,
        session: &mut Session,
        desk: &mut Desk,
    ) -> bool {
        let Guest { stream, alarm, .. } = guest;
        let head_len = match self.read_head(stream, &mut desk.front, alarm).await {
            Ok(head_len) => head_len,
            Err(NoHead::Gone) => return false,
            // It speaks HTTP/2 without having asked (RFC 9113 §3.3).
            Err(NoHead::Bad(_)) if desk.front.reading.bytes.starts_with(PREFACE) => return false,
            Err(NoHead::Bad(error)) => {
                let trail = Trail::begin(shell.log.as_ref(), session.peer());
                shell.figures.requests_bad.add(1);
                let refused = Refused { status: error.status(), why: error.to_string() };
                self.answer(stream, desk, &refused, false, trail).await;
                return false;
            }
            Err(NoHead::Late) => {
                shell.figures.requests_bad.add(1);
                if desk.front.reading.bytes.is_empty() {
                    return false;
                }
                let mut trail = Trail::begin(shell.log.as_ref(), session.peer());
                trail.end(End::ClientLate);
                let refused = Refused { status: 408, why: "the head did not come in time".to_owned() };
                self.answer(stream, desk, &refused, false, trail).await;
                return false;
            }
        };
        shell.figures.requests.add(1);
        let mut trail = Trail::begin(shell.log.as_ref(), session.peer());
        trail.ask(&desk.front.head, &desk.front.reading.bytes, Came::Http1);
        let Desk { front: front_desk, back } = desk;
        let via = self.config.forwarded.via.as_deref();
        let mut front = Front1::new(stream, front_desk, head_len, via, !shell.is_draining());
        let sent = if exchange::Front::request(&front).0.fields().expectation() == Expectation::Unknown {
            Sent::Refused(Refused { status: 417, why: "only 100-continue can be expected".to_owned() })
        } else {
            self.send(shell, session, &mut front, back, alarm, &mut trail).await
        };
        let (lasts, is_whole) = (front.lasts, front.is_whole());
        match sent {
            // What is left of a request that was not read would be the next one.
            Sent::Answered if lasts && is_whole => {
                trail.end(End::Whole);
                desk.front.reading.pass();
                true
            }
            Sent::Answered => {
                trail.end(End::Whole);
                drop(trail);
                if !is_whole {
                    linger(stream).await;
                }
                false
            }
            Sent::Tunnel(tunnel) => {
                shell.figures.tunnels.add(1);
                let reading = &desk.front.reading;
                let early = (reading.bytes.get(reading.at..).unwrap_or_default(), &tunnel.early[..]);
                let (visit, entered) = (tunnel.backend.enter(), shell.enter(&tunnel.backend));
                let (backend, idle) = (&tunnel.lease.stream, self.patience.idle);
                match tunnel::run(shell, stream, backend, early, alarm, (idle, &entered), &mut trail).await {
                    Ok(true) => trail.end(End::Whole),
                    Ok(false) => {
                        trail.end(End::Idle);
                        shell.figures.ended_idle.add(1);
                    }
                    Err(_) => {
                        trail.end(End::Broken);
                        refuse(stream.socket());
                        refuse(tunnel.lease.stream.socket());
                    }
                }
                drop((visit, entered));
                tunnel.lease.complete_last();
                false
            }
            Sent::Refused(refused) => {
                let lasts = lasts && is_whole;
                let answered = self.answer(stream, desk, &refused, lasts, trail).await;
                desk.front.reading.pass();
                answered && lasts
            }
            Sent::Left | Sent::BrokenOff(_) => {
                // A response that ends early must not look like one that ended.
                refuse(stream.socket());
                false
            }
        }
    }

    /// Reads the head of the next request. Returns its length.
    async fn read_head(
        &self,
        stream: &Stream,
        desk: &mut FrontDesk,
        alarm: &mut Alarm,
    ) -> Result<usize, NoHead> {
        let mut until = None;
        desk.head.clear();
        poll_fn(|cx| {
            loop {
                if !desk.reading.bytes.is_empty() {
                    match desk.head.parse(&desk.reading.bytes, &self.config.limits) {
                        Ok(Some(len)) => return Poll::Ready(Ok(len)),
                        Ok(None) => {}
                        Err(error) => return Poll::Ready(Err(NoHead::Bad(error))),
                    }
                }
                match desk.reading.poll_read(stream, cx) {
                    Poll::Ready(Ok(true)) => {}
                    Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(Err(NoHead::Gone)),
                    Poll::Pending => break,
                }
            }
            let until = *until.get_or_insert_with(|| sys::coarse_now() + self.config.head_timeout);
            alarm.poll(cx, until, self.step()).map(|()| Err(NoHead::Late))
        })
        .await
    }

    /// Answers a request ourselves. Whether that went well.
    async fn answer(
        &self,
        stream: &Stream,
        desk: &mut Desk,
        refused: &Refused,
        lasts: bool,
        mut trail: Trail<'_>,
    ) -> bool {
        let writing = &mut desk.front.writing;
        writing.clear();
        let out = &mut writing.bytes;
        let is_head = desk.front.head.method() == forebay_proxy_core::http1::Method::Head;
        let text = format!("{} {}: {}\n", refused.status, reason(refused.status), refused.why);
        out.extend_from_slice(b"HTTP/1.1 ");
        write_decimal(out, u64::from(refused.status));
        out.push(b' ');
        out.extend_from_slice(reason(refused.status).as_bytes());
        out.extend_from_slice(b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: ");
        write_decimal(out, text.len() as u64);
        out.extend_from_slice(if lasts { b"\r\n\r\n" } else { b"\r\nConnection: close\r\n\r\n" });
        if !is_head {
            out.extend_from_slice(text.as_bytes());
        }
        trail.refuse(refused.status, if is_head { 0 } else { text.len() });
        let flushed = poll_fn(|cx| writing.poll_flush(stream, cx));
        let is_fine = matches!(tokio::time::timeout(self.config.body_timeout, flushed).await, Ok(Ok(())));
        drop(trail);
        if is_fine && !lasts {
            linger(stream).await;
        }
        is_fine
    }

    fn take_desk(&self) -> Box<Desk> {
        self.desks.borrow_mut().pop().unwrap_or_default()
    }

    fn give_desk(&self, mut desk: Box<Desk>) {
        desk.front.clear();
        desk.back.clear();
        let mut desks = self.desks.borrow_mut();
        if desks.len() < DESKS_MAX {
            desks.push(desk);
        }
    }

    /// Returns a number that nobody has used.
    fn next_id(&self) -> u128 {
        let (seed, count) = self.ids.get();
        self.ids.set((seed, count + 1));
        u128::from(seed) << 64 | u128::from(count)
    }
}

/// Ends what is said, and listens until the client has ended, too: a close with bytes unread would be a reset, which
/// takes the answer back.
async fn linger(stream: &Stream) {
    if stream.end_writing().is_err() {
        return;
    }
    let mut heard = Vec::new();
    let mut count = 0;
    let listening = poll_fn(|cx| {
        loop {
            heard.clear();
            match stream.read(&mut heard) {
                Ok(0) => return Poll::Ready(()),
                Ok(n) => count += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => match stream.poll_read_ready(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                },
                Err(_) => return Poll::Ready(()),
            }
            if count > LINGER_BYTES_MAX {
                return Poll::Ready(());
            }
        }
    });
    // Then it has had its time.
    let _ = tokio::time::timeout(LINGER, listening).await;
}

/// Returns what a status is called.
fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        408 => "Request Timeout",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

//! One worker: a thread, a single-threaded runtime, a forwarder, and the tasks that carry bytes to and from it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use forebay::datagram::DatagramSocket;
use forebay::sys::udp::MESSAGES_MAX;
use forebay::sys::{self, ConnectedRecvBatch, RecvBatch};
use forebay_core::{Instant, Permits, SlotId};
use forebay_dns_core::cache::{Flush, Loaded};
use forebay_dns_core::forwarder::{
    Client, Endpoint, Forwarder, ForwarderConfig, ForwarderConfigError, FrontConfig, Link, LinkAction, Route,
    Upstream,
};
use forebay_dns_core::local::{BlockList, LocalData};
use forebay_dns_core::wire::HashSeed;
use tokio::net::TcpListener;
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::bind::Sockets;
use crate::bootstrap::Directory;
use crate::keep::{Keeper, SavedCache};
use crate::log::Log;
use crate::mail::Mail;
use crate::query_log::QueryLog;
use crate::settings::{DnsConfig, Transport};
use crate::stats::{HandshakeStats, WorkerStats};
use crate::tls::ServerConfigs;
use crate::{client, link};
use forebay::places::Places;

/// Room for one received datagram, in bytes: no query is longer, and no answer to what we say we take.
const DATAGRAM_BYTES: usize = 4096;

/// Entries of the cache that are looked at for a flush before other tasks of the worker get their turn: about 1 ms.
const FLUSH_STEP: usize = 16_384;

/// How often a worker looks what time it is for everybody else: the machine's clock may be set.
const CLOCK_INTERVAL: Duration = Duration::from_secs(60);

/// How often a draining worker looks whether everything is answered.
const DRAIN_LOOK: Duration = Duration::from_millis(5);

/// How often the log hears of the same trouble with the same upstream.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// How long a draining worker lets connections over which HTTP is spoken close, once everything is answered.
const DRAIN_LINGER: Duration = Duration::from_millis(500);

/// A batch of fewer is waited for anew: while it was answered, nothing more will have come.
const BATCH_SMALL: usize = 4;

/// How long replies rest that the kernel has no room for, when nobody can tell when it has.
const STUCK_PAUSE: Duration = Duration::from_millis(1);

/// Batches that are read before other tasks of the worker get their turn.
const BATCHES_IN_A_ROW: u32 = 4;

/// What the workers have in common, and what each is made of.
#[derive(Clone)]
pub(crate) struct WorkerSeed {
    pub(crate) config: Arc<DnsConfig>,
    pub(crate) hash_seed: HashSeed,
    pub(crate) permits: Vec<(Permits, Permits)>,
    /// Who may ask, and what is answered here.
    pub(crate) front: FrontConfig,
    /// Clients' connections, over all workers.
    pub(crate) clients: Arc<Places>,
    /// What encrypted listeners answer a handshake with.
    pub(crate) tls: Option<ServerConfigs>,
    /// What an earlier process had in its cache.
    pub(crate) saved: Option<Arc<SavedCache>>,
    /// Where the cache is saved.
    pub(crate) keeper: Option<Arc<Keeper>>,
    /// Where upstreams are.
    pub(crate) directory: Arc<Directory>,
}

/// What a worker can be told.
pub(crate) enum Command {
    /// Tell the figures.
    Stats {
        /// To whom.
        reply: oneshot::Sender<WorkerStats>,
    },
    /// Forget every cached answer.
    ClearCache,
    /// Take other local data.
    Local(Arc<LocalData>),
    /// Take another block list.
    Block(Arc<BlockList>),
    /// Forget some cached answers.
    Flush {
        /// Which.
        flush: Flush,
        /// Told how many there were.
        reply: oneshot::Sender<u64>,
    },
    /// Take no more queries, answer those in flight, end.
    Drain {
        /// After how long to end all the same.
        limit: Duration,
        /// Told when it has ended.
        ended: oneshot::Sender<()>,
    },
}

/// Checks what a forwarder would say of this configuration.
pub(crate) fn probe_config(config: &DnsConfig) -> Result<(), ForwarderConfigError> {
    let permits = || (Permits::alone(1, 0), Permits::alone(1, 0));
    let all: Vec<_> = config.upstreams.iter().map(|_| permits()).collect();
    forwarder_config(config, &all, FrontConfig::default(), HashSeed::from_bytes([0; 16]), [0; 32]).validate()
}

fn forwarder_config(
    config: &DnsConfig,
    permits: &[(Permits, Permits)],
    front: FrontConfig,
    hash_seed: HashSeed,
    random_seed: [u8; 32],
) -> ForwarderConfig {
    let health = config.health.as_ref().map(|plan| plan.config);
    let endpoint = |(address, (udp, stream)): (&crate::UpstreamAddress, &(Permits, Permits))| Endpoint {
        name: address.to_string(),
        datagram: (address.transport == Transport::Udp)
            .then(|| Link { config: forebay_core::Config { health, ..config.udp }, permits: udp.clone() }),
        stream: Link {
            // Streams behind a datagram upstream are for what was truncated: none is kept warm.
            config: forebay_core::Config {
                connections_min: match address.transport {
                    Transport::Udp => 0,
                    Transport::Tcp | Transport::Tls | Transport::Https => config.stream.connections_min,
                },
                health: health.filter(|_| address.transport != Transport::Udp),
                ..config.stream
            },
            permits: stream.clone(),
        },
        is_encrypted: address.transport.is_encrypted(),
    };
    let mut endpoints = config.upstreams.iter().zip(permits).map(endpoint);
    let first = config.routes.first().map_or(config.upstreams.len(), |route| route.first);
    let upstreams = [(first, config.strategy)].into_iter();
    let upstreams =
        upstreams.chain(config.routes.iter().map(|route| (route.len, route.strategy))).enumerate();
    let upstream = |(n, (len, strategy))| Upstream {
        name: config.upstream_name(n).to_owned(),
        endpoints: endpoints.by_ref().take(len).collect(),
        strategy,
    };
    let upstreams = upstreams.map(upstream).collect();
    let routes = config.routes.iter().zip(1..);
    let routes = routes.map(|(route, upstream)| Route { suffix: route.suffix.clone(), upstream }).collect();
    ForwarderConfig {
        strategies: config.strategies,
        routes,
        front,
        attempt_timeout: config.attempt_timeout,
        query_timeout: config.query_timeout,
        health: config.health.as_ref().map(|plan| plan.check.clone()),
        failure_ttl: config.failure_ttl,
        failure_ttl_max: config.failure_ttl_max,
        attempts_max: config.attempts_max,
        waiting_max: config.waiting_max,
        udp_size: config.udp_size,
        cache_bytes: config.cache.bytes,
        cache_policy: config.cache.policy,
        rrsets: config.cache.rrsets,
        stale: config.cache.stale,
        prefetch: config.cache.prefetch,
        safety: config.safety,
        ..ForwarderConfig::new(upstreams, hash_seed, random_seed)
    }
}

/// What the tasks of one worker share. Borrowed for the length of a decision, never across an await.
pub(crate) struct Shell {
    pub(crate) config: Arc<DnsConfig>,
    pub(crate) state: RefCell<State>,
    pub(crate) clients: Arc<Places>,
    pub(crate) tls: Option<ServerConfigs>,
    keeper: Option<Arc<Keeper>>,
    /// Wakes the task that keeps time, when something is due earlier or a connection's task has ended.
    wake: Notify,
    /// Connections whose sockets are closed, to be told to the forwarder.
    ended: RefCell<Vec<SlotId>>,
    next_connection: Cell<u64>,
    draining: Cell<bool>,
    /// The tasks of UDP listeners, ended when draining begins.
    listeners: RefCell<Vec<AbortHandle>>,
    /// Woken when the listeners must stop.
    pub(crate) stop: Notify,
    clients_rejected: Cell<u64>,
    clients_refused: Cell<u64>,
    /// Clients' connections over which HTTP is spoken.
    pub(crate) web_connections: Cell<usize>,
    /// Where upstreams are.
    pub(crate) directory: Arc<Directory>,
    /// TLS handshakes with clients under way.
    shaking: Rc<Cell<u32>>,
    pub(crate) handshakes: Cell<HandshakeStats>,
    pub(crate) upstream_handshakes: Cell<HandshakeStats>,
    /// What was last said in the log about TLS with each endpoint, and when.
    complaints: RefCell<HashMap<u16, (rustls::Error, Instant)>>,
}

/// A TLS handshake with a client that is under way: counted until it is dropped.
pub(crate) struct Handshake(Rc<Cell<u32>>);

impl Drop for Handshake {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

pub(crate) struct State {
    pub(crate) forwarder: Forwarder,
    pub(crate) mail: Mail,
    log: Log,
    /// When the timer task wakes.
    armed: Instant,
    /// Where upstream datagrams are read; taken while in use.
    pub(crate) batch: Option<ConnectedRecvBatch>,
}

impl State {
    fn write_log(&mut self, now: Instant) {
        while let Some((event, endpoint)) = self.forwarder.poll_event() {
            self.log.write(now, event, endpoint);
        }
        while let Some((notice, endpoint)) = self.forwarder.poll_notice() {
            crate::log::notify(notice, endpoint);
        }
    }
}

/// Runs a worker until it is told to end.
pub(crate) fn run(
    seed: WorkerSeed,
    query_log: Option<QueryLog>,
    random_seed: [u8; 32],
    sockets: Sockets,
    inbox: mpsc::UnboundedReceiver<Command>,
    ready: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    runtime.block_on(async move {
        match Shell::new(seed, query_log, random_seed, &sockets) {
            Ok((shell, udp)) => match shell.listen(udp, sockets.streams) {
                Ok(()) => {
                    let _ = ready.send(Ok(()));
                    shell.obey(inbox).await;
                }
                Err(error) => drop(ready.send(Err(error))),
            },
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

impl Shell {
    fn new(
        seed: WorkerSeed,
        query_log: Option<QueryLog>,
        random_seed: [u8; 32],
        sockets: &Sockets,
    ) -> io::Result<(Rc<Self>, Vec<Rc<DatagramSocket>>)> {
        let udp = sockets
            .udp
            .iter()
            .map(|socket| Ok(Rc::new(DatagramSocket::new(socket.try_clone()?)?)))
            .collect::<io::Result<Vec<_>>>()?;
        let now = sys::now();
        let config = forwarder_config(&seed.config, &seed.permits, seed.front, seed.hash_seed, random_seed);
        let mut forwarder = Forwarder::new(now, config).map_err(io::Error::other)?;
        forwarder.set_clock(now, crate::keep::unix_now());
        if let Some(saved) = &seed.saved {
            let Loaded { kept, over, left_out } = saved.load(now, &mut forwarder);
            tracing::info!(kept, over, left_out, "cache loaded");
        }
        let state = State {
            forwarder,
            mail: Mail::new(udp.clone(), query_log),
            log: Log::new(now),
            armed: Instant::MAX,
            batch: Some(ConnectedRecvBatch::new(MESSAGES_MAX, DATAGRAM_BYTES)),
        };
        let shell = Self {
            config: seed.config,
            state: RefCell::new(state),
            clients: seed.clients,
            tls: seed.tls,
            keeper: seed.keeper,
            wake: Notify::new(),
            ended: RefCell::default(),
            next_connection: Cell::new(0),
            draining: Cell::new(false),
            listeners: RefCell::default(),
            stop: Notify::new(),
            clients_rejected: Cell::new(0),
            web_connections: Cell::new(0),
            directory: seed.directory,
            shaking: Rc::default(),
            handshakes: Cell::default(),
            upstream_handshakes: Cell::default(),
            complaints: RefCell::default(),
            clients_refused: Cell::new(0),
        };
        Ok((Rc::new(shell), udp))
    }

    fn listen(
        self: &Rc<Self>,
        udp: Vec<Rc<DatagramSocket>>,
        streams: Vec<(usize, std::net::TcpListener)>,
    ) -> io::Result<()> {
        tokio::task::spawn_local(Rc::clone(self).keep_time());
        let mut listeners = self.listeners.borrow_mut();
        for (index, socket) in udp.into_iter().enumerate() {
            let unstick = Rc::clone(self).unstick(index as u16, Rc::clone(&socket));
            listeners.push(tokio::task::spawn_local(unstick).abort_handle());
            let serve = Rc::clone(self).serve_udp(index as u16, socket);
            listeners.push(tokio::task::spawn_local(serve).abort_handle());
        }
        drop(listeners);
        for (listen, listener) in streams {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(client::accept(Rc::clone(self), listener, listen));
        }
        // Sockets that are kept warm are made before the first query comes.
        self.settle();
        Ok(())
    }

    /// Does what it is told until it is told to end; while it drains, figures are still told.
    async fn obey(self: &Rc<Self>, mut inbox: mpsc::UnboundedReceiver<Command>) {
        let mut until = None;
        let mut waiting = Vec::new();
        loop {
            let command = match until {
                None => inbox.recv().await,
                Some(until) if sys::now() >= until => break,
                Some(_) if self.state.borrow().forwarder.is_idle() => break self.let_out().await,
                Some(_) => match tokio::time::timeout(DRAIN_LOOK, inbox.recv()).await {
                    Ok(command) => command,
                    Err(_) => continue,
                },
            };
            match command {
                None => break,
                Some(Command::Stats { reply }) => drop(reply.send(self.stats())),
                Some(Command::ClearCache) => self.state.borrow_mut().forwarder.clear_cache(),
                Some(Command::Local(data)) => {
                    self.state.borrow_mut().forwarder.handle_local(sys::now(), Some(data));
                }
                Some(Command::Block(list)) => {
                    self.state.borrow_mut().forwarder.handle_block(sys::now(), Some(list));
                }
                Some(Command::Flush { mut flush, reply }) => {
                    // Clients are served between the steps.
                    while !self.state.borrow_mut().forwarder.flush_some(&mut flush, FLUSH_STEP) {
                        tokio::task::yield_now().await;
                    }
                    // Who asked may have stopped waiting.
                    let _ = reply.send(flush.flushed());
                }
                Some(Command::Drain { limit, ended }) => {
                    let limit = sys::now() + limit;
                    // A second order may only hurry.
                    until = Some(until.map_or(limit, |until: Instant| until.min(limit)));
                    waiting.push(ended);
                    self.draining.set(true);
                    self.stop.notify_waiters();
                    for listener in self.listeners.take() {
                        listener.abort();
                    }
                    self.state.borrow_mut().forwarder.drain();
                }
            }
        }
        {
            let state = &mut *self.state.borrow_mut();
            let now = sys::now();
            state.forwarder.close(now, &mut state.mail);
            state.mail.flush();
            state.write_log(now);
            if let Some(keeper) = &self.keeper {
                keeper.save(now, &state.forwarder);
            }
        }
        for ended in waiting {
            // Who asked may have stopped waiting.
            let _ = ended.send(());
        }
    }

    /// Gives HTTP's connections, whose answers leave by their own tasks, time to send them.
    async fn let_out(&self) {
        let limit = sys::now() + DRAIN_LINGER;
        while self.web_connections.get() > 0 && sys::now() < limit {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    }

    fn stats(&self) -> WorkerStats {
        let state = self.state.borrow();
        let now = sys::now();
        let (questions, waiting) = state.forwarder.in_flight();
        WorkerStats {
            counters: *state.forwarder.counters(),
            cache: state.forwarder.cache_counters(),
            latency: state.forwarder.latency().clone(),
            questions,
            waiting,
            pools: state.forwarder.pools(now).collect(),
            entropy: state.forwarder.entropy().collect(),
            endpoints: state.forwarder.endpoints().collect(),
            client_connections: state.mail.clients.len() + self.web_connections.get(),
            clients_rejected: self.clients_rejected.get(),
            client_handshakes: self.handshakes.get(),
            upstream_handshakes: self.upstream_handshakes.get(),
            clients_refused: self.clients_refused.get(),
            datagrams_dropped: state.mail.dropped,
        }
    }

    /// Reads queries in batches; every hit of a batch is answered from it and written with one call.
    async fn serve_udp(self: Rc<Self>, listener: u16, socket: Rc<DatagramSocket>) {
        let mut batch = RecvBatch::new(MESSAGES_MAX, DATAGRAM_BYTES);
        let mut in_a_row = 0;
        loop {
            // One waker in the socket, and no list of those who wait: this is most of what a query alone costs here.
            if let Err(error) = poll_fn(|cx| socket.poll_readable(cx)).await {
                tracing::error!(%error, "a UDP listener cannot be waited for");
            }
            let read = socket.read(BATCH_SMALL, |socket| batch.recv(socket));
            // An error other than that nothing came is what ICMP said about a reply that was sent to nobody.
            let (came, is_empty) = match read {
                Ok(came) => (came, came < BATCH_SMALL),
                Err(error) => (0, error.kind() == io::ErrorKind::WouldBlock),
            };
            if came > 0 {
                self.handle_queries(listener, &batch);
            }
            in_a_row = if is_empty { 0 } else { in_a_row + 1 };
            if in_a_row >= BATCHES_IN_A_ROW {
                in_a_row = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Sends what the kernel had no room for, as soon as it has.
    async fn unstick(self: Rc<Self>, listener: u16, socket: Rc<DatagramSocket>) {
        let stuck = Rc::clone(&self.state.borrow().mail.udp[usize::from(listener)].stuck);
        loop {
            stuck.notified().await;
            if let Err(error) = socket.room().await {
                tracing::error!(%error, "a UDP listener cannot be waited for");
                tokio::time::sleep(STUCK_PAUSE).await;
            }
            self.state.borrow_mut().mail.flush();
        }
    }

    fn handle_queries(self: &Rc<Self>, listener: u16, batch: &RecvBatch) {
        let now = sys::now();
        {
            let State { forwarder, mail, .. } = &mut *self.state.borrow_mut();
            for datagram in batch.datagrams() {
                let client = Client::Udp { listener, peer: datagram.peer, local: datagram.local };
                forwarder.handle_query(now, client, datagram.bytes, mail);
            }
        }
        self.settle_at(now);
    }

    /// Does everything that the last decisions asked for: dials, closes, writes, and sets the timer.
    pub(crate) fn settle(self: &Rc<Self>) {
        self.settle_at(sys::now());
    }

    /// The same for who has just looked what time it is.
    pub(crate) fn settle_at(self: &Rc<Self>, now: Instant) {
        let state = &mut *self.state.borrow_mut();
        loop {
            let State { forwarder, mail, .. } = state;
            while let Some(slot) = self.ended.borrow_mut().pop() {
                forwarder.handle_closed(now, slot, None, mail);
            }
            if let Some((slot, cause)) = mail.broken.pop() {
                if let Some(link) = mail.links.remove(slot) {
                    link.task.abort();
                    forwarder.handle_closed(now, slot, Some(cause), mail);
                }
            } else if let Some(action) = forwarder.poll_link() {
                match action {
                    LinkAction::Dial { slot, endpoint, carrier, timeout } => {
                        link::dial(self, state, now, slot, endpoint, carrier, timeout);
                    }
                    LinkAction::Close { slot } => {
                        if let Some(link) = mail.links.remove(slot) {
                            link.task.abort();
                        } else {
                            forwarder.handle_closed(now, slot, None, mail);
                        }
                    }
                }
            } else {
                mail.flush();
                if mail.broken.is_empty() {
                    break;
                }
            }
        }
        state.write_log(now);
        let next = state.forwarder.next_timeout().unwrap_or(Instant::MAX);
        if next < state.armed {
            state.armed = next;
            self.wake.notify_one();
        }
    }

    /// A connection's task has ended, and with it its socket is closed.
    pub(crate) fn link_ended(&self, slot: SlotId) {
        self.ended.borrow_mut().push(slot);
        self.wake.notify_one();
    }

    /// Wakes when something is due.
    async fn keep_time(self: Rc<Self>) {
        let mut clock_due = sys::now() + CLOCK_INTERVAL;
        loop {
            let now = sys::now();
            let armed = {
                let State { forwarder, mail, armed, .. } = &mut *self.state.borrow_mut();
                if now >= clock_due {
                    forwarder.set_clock(now, crate::keep::unix_now());
                    clock_due = now + CLOCK_INTERVAL;
                }
                forwarder.handle_timeout(now, mail);
                *armed = forwarder.next_timeout().unwrap_or(Instant::MAX);
                *armed
            };
            self.settle();
            let armed = self.state.borrow().armed.min(armed);
            let pause = armed.saturating_duration_since(sys::now()).min(CLOCK_INTERVAL);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Returns a number for a new connection that no other had.
    pub(crate) fn next_connection(&self) -> u64 {
        let number = self.next_connection.get();
        self.next_connection.set(number + 1);
        number
    }

    /// Counts a client's connection that was closed because there were too many.
    pub(crate) fn reject(&self) {
        // Closing is the answer that costs least: the client tries again or goes elsewhere.
        self.clients_rejected.set(self.clients_rejected.get() + 1);
    }

    /// Counts a client's connection that was closed because its address is not served.
    pub(crate) fn refuse(&self) {
        self.clients_refused.set(self.clients_refused.get() + 1);
    }

    /// Begins a handshake with a client, unless too many are under way.
    pub(crate) fn begin_handshake(&self) -> Option<Handshake> {
        let shaking = self.shaking.get();
        (shaking < self.config.clients.handshakes_max).then(|| {
            self.shaking.set(shaking + 1);
            Handshake(Rc::clone(&self.shaking))
        })
    }

    /// Whether the log should hear of this failure: not if it has just heard of the same.
    pub(crate) fn may_complain(&self, endpoint: u16, error: &rustls::Error) -> bool {
        let now = sys::now();
        let mut complaints = self.complaints.borrow_mut();
        let recent = |(last, at): &(rustls::Error, Instant)| {
            // What differs by time alone is the same.
            std::mem::discriminant(last) == std::mem::discriminant(error)
                && now.saturating_duration_since(*at) < COMPLAIN_EVERY
        };
        if complaints.get(&endpoint).is_some_and(recent) {
            return false;
        }
        complaints.insert(endpoint, (error.clone(), now));
        true
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

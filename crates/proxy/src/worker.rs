//! One worker: a thread, a single-threaded runtime, listeners, a pool, and a task for each client.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use forebay::dial::Machine;
use forebay::places::{Place, Places};
use forebay::{Blame, EndpointSnapshot, Limits, sys};
use forebay_core::Rng;
use forebay_proxy_core::roster::{Active, BackendId, Tried};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, broadcast, watch};

use crate::access_log::AccessLog;
use crate::backends::{Backends, Known, Parting, View};
use crate::http::Http;
use crate::introduce::{Client, introduce};
use crate::opaque::{Buffers, Opaque};
use crate::settings::{BackendAddress, Mode, ProxyConfig, Scheme};
use crate::stats::Figures;

/// How long clients wait while there are too many, before those that come are refused.
const WAIT_WHILE_FULL: Duration = Duration::from_secs(1);

/// How often it is looked for a place while there are too many.
const LOOK_WHILE_FULL: Duration = Duration::from_millis(5);

/// How long nobody is accepted after the machine had no descriptor for one more.
const PAUSE_WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(10);

/// What a proxy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Clients are served.
    Serving,
    /// Those that are there may finish.
    Draining {
        /// When they are cut off.
        until: Instant,
    },
    /// It is over.
    Ended,
}

/// What a worker is made of.
pub(crate) struct WorkerSeed {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) backends: Arc<Backends>,
    pub(crate) places: Arc<Places>,
    pub(crate) machine: Arc<Machine>,
    /// Limits of connections to backends, over all workers.
    pub(crate) limits: Arc<Limits<BackendAddress>>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) log: Option<AccessLog>,
    pub(crate) seed: u64,
}

/// What is known of a worker outside of it.
#[derive(Clone)]
pub(crate) struct Started {
    pub(crate) figures: Arc<Figures>,
    /// Returns the figures of its connections to each backend.
    pub(crate) backends: Figured,
    life: Weak<()>,
}

/// Returns the figures of connections to each backend, from any thread.
pub(crate) type Figured = Arc<dyn Fn() -> Vec<EndpointSnapshot<BackendAddress>> + Send + Sync>;

/// What is done with a client's connection.
pub(crate) enum Service {
    /// Its bytes are passed on as they are.
    Opaque(Opaque),
    /// Requests of HTTP, which share connections.
    Http(Rc<Http>),
}

impl Service {
    /// Makes room for connections to a backend.
    fn adopt(&self, backend: &BackendAddress) {
        match self {
            Self::Opaque(opaque) => opaque.adopt(backend),
            Self::Http(http) => http.adopt(backend),
        }
    }

    /// Closes connections to a backend that nobody uses, and lets those in use end. The backend stays.
    fn purge(&self, shell: &Shell, backend: &BackendAddress) {
        match self {
            Self::Opaque(opaque) => opaque.purge(shell, backend),
            Self::Http(http) => http.purge(backend),
        }
    }

    /// Forgets a backend: closes connections to it that nobody uses, and lets those in use end.
    fn remove(&self, backend: &BackendAddress) {
        match self {
            Self::Opaque(opaque) => opaque.remove(backend),
            Self::Http(http) => http.remove(backend),
        }
    }
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("figures", &self.figures).finish_non_exhaustive()
    }
}

impl Started {
    /// Whether the worker lives.
    pub(crate) fn lives(&self) -> bool {
        self.life.strong_count() > 0
    }
}

/// What the tasks of one worker share. Borrowed for the length of a decision, never across an await.
pub(crate) struct Shell {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) backends: Arc<Backends>,
    service: Service,
    view: RefCell<View>,
    sessions: Sessions,
    pub(crate) figures: Arc<Figures>,
    pub(crate) buffers: RefCell<Buffers>,
    pub(crate) log: Option<AccessLog>,
    places: Arc<Places>,
    draining: Cell<bool>,
    /// Woken when no more clients are taken.
    drains: Notify,
    /// Woken when the last client has gone.
    empty: Notify,
}

/// Runs a worker until it is told to end.
pub(crate) fn run(
    seed: WorkerSeed,
    listeners: Vec<std::net::TcpListener>,
    ready: &std::sync::mpsc::Sender<io::Result<Started>>,
) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async move {
        let (life, phase) = (Arc::new(()), seed.phase.clone());
        match Shell::start(seed, listeners) {
            Ok(shell) => {
                let figures = Arc::clone(&shell.figures);
                let backends = match &shell.service {
                    Service::Opaque(opaque) => opaque.figured(),
                    Service::Http(http) => http.figured(),
                };
                let _ = ready.send(Ok(Started { figures, backends, life: Arc::downgrade(&life) }));
                shell.obey(phase).await;
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

impl Shell {
    fn start(seed: WorkerSeed, listeners: Vec<std::net::TcpListener>) -> io::Result<Rc<Self>> {
        let config = seed.config;
        let service = match config.mode {
            Mode::Opaque | Mode::Passthrough => {
                Service::Opaque(Opaque::new(&config, seed.machine, seed.limits, seed.seed)?)
            }
            Mode::Http => Service::Http(Rc::new(Http::new(&config, seed.machine, seed.limits, seed.seed)?)),
        };
        let shell = Rc::new(Self {
            view: RefCell::new(View::new(&seed.backends, config.balance, seed.seed)),
            sessions: Sessions::default(),
            backends: seed.backends,
            service,
            figures: Arc::default(),
            buffers: RefCell::default(),
            log: seed.log,
            places: seed.places,
            draining: Cell::new(false),
            drains: Notify::new(),
            empty: Notify::new(),
            config,
        });
        tokio::task::spawn_local(Rc::clone(&shell).part(shell.backends.partings()));
        shell.view.borrow().list().iter().for_each(|backend| shell.service.adopt(backend.key()));
        match &shell.service {
            Service::Opaque(opaque) => opaque.start(&shell),
            Service::Http(_) => {}
        }
        // Each worker has one for each address, in their order.
        for (listener, listen) in listeners.into_iter().zip(&shell.config.listen) {
            let listener = TcpListener::from_std(listener)?;
            let accept = Rc::clone(&shell).accept(listener, listen.scheme, seed.phase.clone());
            tokio::task::spawn_local(accept);
        }
        Ok(shell)
    }

    /// Does what the phase says, until the end.
    async fn obey(self: Rc<Self>, mut phase: watch::Receiver<Phase>) {
        // An error means that the server is gone.
        let left =
            phase.wait_for(|phase| *phase != Phase::Serving).await.map_or(Phase::Ended, |phase| *phase);
        self.draining.set(true);
        let Phase::Draining { until } = left else { return };
        self.drains.notify_waiters();
        let empty = async {
            while self.figures.clients.value() > 0 {
                self.empty.notified().await;
            }
        };
        tokio::select! {
            () = empty => {}
            () = tokio::time::sleep_until(until.into()) => {
                tracing::warn!(proxy = &*self.config.name, clients = self.figures.clients.value(), "cut off: the time to drain is over");
            }
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    }

    /// Accepts clients until the proxy takes no more.
    async fn accept(
        self: Rc<Self>,
        listener: TcpListener,
        scheme: Scheme,
        mut phase: watch::Receiver<Phase>,
    ) {
        let mut full_since = None;
        loop {
            // Who comes while there are too many waits in the kernel's line: a place may soon be free.
            if self.places.is_full()
                && *full_since.get_or_insert_with(Instant::now) + WAIT_WHILE_FULL > Instant::now()
            {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_WHILE_FULL) => continue,
                    _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
                }
            }
            if !self.places.is_full() {
                full_since = None;
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    if !self.places.is_full() {
                        full_since = None;
                    }
                    self.admit(stream, peer, scheme);
                }
                // The client has gone already, or this machine has nothing left to serve it with.
                Err(error) if forebay::blame::cause_of(&error).blame() == Blame::Local => {
                    tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS).await;
                }
                Err(_) => {}
            }
        }
    }

    /// Serves a client, if there is a place for it.
    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr, scheme: Scheme) {
        self.figures.accepted.add(1);
        let Some(place) = self.places.take(peer.ip()) else {
            self.figures.refused_full.add(1);
            return refuse(&stream);
        };
        let (open, shell) = (Open::new(self, place), Rc::clone(self));
        // A task for each kind of service: clients of one do not pay for the room that the other needs.
        match &self.service {
            Service::Opaque(_) => drop(tokio::task::spawn_local(async move {
                if let (Some(client), Service::Opaque(opaque)) =
                    (Box::pin(shell.introduced(&stream, peer)).await, &shell.service)
                {
                    opaque.serve(&shell, stream, client).await;
                }
                drop(open);
            })),
            Service::Http(http) if self.config.proxy_protocol.accept.is_none() => {
                Http::serve(http, stream, peer, scheme, open);
            }
            Service::Http(http) => {
                let http = Rc::clone(http);
                tokio::task::spawn_local(async move {
                    if let Some(client) = shell.introduced(&stream, peer).await {
                        Http::serve(&http, stream, client.peer, scheme, open);
                    }
                });
            }
        }
    }

    /// Learns who a client is. `None` if it is to be refused, and was. To be boxed: it is over before bytes flow.
    async fn introduced(&self, stream: &TcpStream, peer: SocketAddr) -> Option<Client> {
        match introduce(stream, peer, &self.config.proxy_protocol).await {
            Ok(client) => Some(client),
            Err(stranger) => {
                self.figures.refused_strangers.add(1);
                tracing::debug!(proxy = &*self.config.name, %peer, why = %stranger, "a client is refused");
                refuse(stream);
                None
            }
        }
    }

    /// Resolves when no more clients are taken. What begins to wait later should ask [`Shell::is_draining`] first.
    pub(crate) fn drains(&self) -> Notified<'_> {
        self.drains.notified()
    }

    /// Chooses a backend for a client that was not tried yet. `None` if all were.
    pub(crate) fn pick(&self, peer: IpAddr, tried: &Tried) -> Option<Known> {
        let mut view = self.view.borrow_mut();
        if let Some(list) = view.refresh(&self.backends) {
            list.iter().for_each(|backend| self.service.adopt(backend.key()));
        }
        view.pick(hash_of(peer), tried)
    }

    /// Notes a client's connection to a backend, or a request: it may have to be cut.
    pub(crate) fn enter(&self, backend: &Known) -> Session<'_> {
        self.sessions.enter(backend.id())
    }

    /// Ends connections to backends that are to be left.
    async fn part(self: Rc<Self>, mut partings: broadcast::Receiver<Parting>) {
        loop {
            match partings.recv().await {
                Ok(Parting { backend, active }) => {
                    // It may have come back meanwhile, or be unhealthy only.
                    let stays = |known: &Known| known.key() == backend.key();
                    match self.backends.list().0.iter().any(stays) {
                        true => self.service.purge(&self, backend.key()),
                        false => self.service.remove(backend.key()),
                    }
                    if active == Active::Close {
                        self.figures.cut.add(self.sessions.cut(backend.id()));
                    }
                }
                // What was missed is an idle connection, which ends by itself.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    }

    /// Whether no more clients are taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// A client's connection, counted until it is dropped.
pub(crate) struct Open {
    shell: Rc<Shell>,
    _place: Place,
}

impl Open {
    fn new(shell: &Rc<Shell>, place: Place) -> Self {
        shell.figures.clients.add(1);
        Self { shell: Rc::clone(shell), _place: place }
    }

    /// Returns the worker that the client has come to.
    pub(crate) const fn shell(&self) -> &Rc<Shell> {
        &self.shell
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.shell.figures.clients.sub(1);
        if self.shell.figures.clients.value() == 0 && self.shell.is_draining() {
            self.shell.empty.notify_waiters();
        }
    }
}

/// Clients' connections and requests at backends, so that they can be cut. Places are used again: to enter costs no memory.
#[derive(Default)]
struct Sessions(RefCell<Slots>);

#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    /// Those that nobody is in.
    free: Vec<usize>,
}

struct Slot {
    /// `None` while nobody is in it.
    backend: Option<BackendId>,
    cut: bool,
    waker: Option<Waker>,
}

/// One client's connection to a backend, or one request, until it is dropped.
pub(crate) struct Session<'a> {
    sessions: &'a Sessions,
    at: usize,
}

impl Sessions {
    fn enter(&self, backend: BackendId) -> Session<'_> {
        let slots = &mut *self.0.borrow_mut();
        let slot = Slot { backend: Some(backend), cut: false, waker: None };
        let at = match slots.free.pop() {
            Some(at) => {
                slots.all[at] = slot;
                at
            }
            None => {
                slots.all.push(slot);
                slots.all.len() - 1
            }
        };
        Session { sessions: self, at }
    }

    /// Cuts all connections to a backend. Returns how many.
    fn cut(&self, backend: BackendId) -> u64 {
        let mut wakers = Vec::new();
        let mut n = 0;
        for slot in &mut self.0.borrow_mut().all {
            if slot.backend == Some(backend) && !std::mem::replace(&mut slot.cut, true) {
                n += 1;
                wakers.extend(slot.waker.take());
            }
        }
        wakers.into_iter().for_each(Waker::wake);
        n
    }
}

impl Session<'_> {
    /// Whether it is to be cut; if not, the task is woken when it is.
    pub(crate) fn is_cut(&self, cx: &Context<'_>) -> bool {
        let slot = &mut self.sessions.0.borrow_mut().all[self.at];
        if !slot.cut && !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            slot.waker = Some(cx.waker().clone());
        }
        slot.cut
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        let mut slots = self.sessions.0.borrow_mut();
        slots.all[self.at] = Slot { backend: None, cut: false, waker: None };
        slots.free.push(self.at);
    }
}

/// What stands for a client when backends are chosen by it.
fn hash_of(ip: IpAddr) -> u64 {
    let bits = match ip.to_canonical() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    Rng::new(bits as u64 ^ (bits >> 64) as u64).next_u64()
}

/// Closes a connection so that its peer hears at once, and nothing of it is left here.
pub(crate) fn refuse(stream: &TcpStream) {
    // It may have gone already.
    let _ = sys::socket::reset_on_close(stream);
}

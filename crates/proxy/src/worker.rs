//! One worker: a thread, a single-threaded runtime, listeners, a pool, and a task for each client.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use forebay::dial::Machine;
use forebay::places::{Place, Places};
use forebay::{Blame, EndpointSnapshot, Limits, sys};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::backends::Backends;
use crate::http::Http;
use crate::opaque::Opaque;
use crate::settings::{BackendAddress, Mode, ProxyConfig};
use crate::stats::Figures;

/// Where what is passed on stands for a moment, in bytes: one buffer for all connections of a worker, since nothing
/// stays in it.
const SCRATCH_BYTES: usize = 64 << 10;

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
    Http(Box<Http>),
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
    pub(crate) figures: Arc<Figures>,
    pub(crate) scratch: RefCell<Box<[u8]>>,
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
                Service::Opaque(Opaque::new(&config, &seed.backends, seed.machine, seed.seed)?)
            }
            Mode::Http => Service::Http(Box::new(Http::new(
                &config,
                &seed.backends,
                seed.machine,
                seed.limits,
                seed.seed,
            )?)),
        };
        let shell = Rc::new(Self {
            backends: seed.backends,
            service,
            figures: Arc::default(),
            scratch: RefCell::new(vec![0; SCRATCH_BYTES].into()),
            places: seed.places,
            draining: Cell::new(false),
            drains: Notify::new(),
            empty: Notify::new(),
            config,
        });
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(Rc::clone(&shell).accept(listener, seed.phase.clone()));
        }
        Ok(shell)
    }

    /// Does what the phase says, until the end.
    async fn obey(self: Rc<Self>, mut phase: watch::Receiver<Phase>) {
        // An error means that the server is gone.
        let left =
            phase.wait_for(|phase| *phase != Phase::Serving).await.map_or(Phase::Ended, |phase| *phase);
        let Phase::Draining { until } = left else { return };
        self.draining.set(true);
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
    async fn accept(self: Rc<Self>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                // The client has gone already, or this machine has nothing left to serve it with.
                Err(error) if forebay::blame::cause_of(&error).blame() == Blame::Local => {
                    tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS).await;
                }
                Err(_) => {}
            }
        }
    }

    /// Serves a client, if there is a place for it.
    fn admit(self: &Rc<Self>, stream: TcpStream, peer: SocketAddr) {
        self.figures.accepted.add(1);
        let Some(place) = self.places.take(peer.ip()) else {
            self.figures.refused_full.add(1);
            return refuse(&stream);
        };
        if sys::socket::apply_tcp_options(&stream, &self.config.clients.tcp()).is_err() {
            // It has gone already.
            return;
        }
        let open = Open::new(self, place);
        let shell = Rc::clone(self);
        tokio::task::spawn_local(async move {
            match &shell.service {
                Service::Opaque(opaque) => opaque.serve(&shell, stream, peer).await,
                Service::Http(http) => http.serve(&shell, stream, peer).await,
            }
            drop(open);
        });
    }

    /// Resolves when no more clients are taken. What begins to wait later should ask [`Shell::is_draining`] first.
    pub(crate) fn drains(&self) -> Notified<'_> {
        self.drains.notified()
    }

    /// Whether no more clients are taken.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }
}

/// A client's connection, counted until it is dropped.
struct Open {
    shell: Rc<Shell>,
    _place: Place,
}

impl Open {
    fn new(shell: &Rc<Shell>, place: Place) -> Self {
        shell.figures.clients.add(1);
        Self { shell: Rc::clone(shell), _place: place }
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

/// Closes a connection so that its peer hears at once, and nothing of it is left here.
pub(crate) fn refuse(stream: &TcpStream) {
    // It may have gone already.
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

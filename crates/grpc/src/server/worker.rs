//! One worker: a thread, a single-threaded runtime, listeners, services of its own, and a task for each client.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use forebay::places::{Place, Places};
use forebay::{Blame, sys};
use forebay_core::{Instant, Rng};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{Notify, watch};

use super::connection::{self, Arrived};
use super::services::Services;
use super::settings::ServerSettings;
use super::stats::Figures;

/// How long clients wait while there are too many, before those that come are refused.
const WAIT_WHILE_FULL: Duration = Duration::from_secs(1);

/// How often it is looked for a place while there are too many.
const LOOK_WHILE_FULL: Duration = Duration::from_millis(5);

/// How long nobody is accepted after the machine had no descriptor for one more.
const PAUSE_WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(10);

/// How long connections that are cut at the end of a drain may take to say so.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Requests that room is kept for between batches.
const DESK_MAX: usize = 1024;

/// What a server is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Clients are served.
    Serving,
    /// Calls that are in flight may finish.
    Draining {
        /// When they are cut off.
        until: Instant,
    },
    /// It is over.
    Ended,
}

/// What a worker is made of.
pub(super) struct Seed {
    pub(super) settings: Arc<ServerSettings>,
    pub(super) services: Services,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) places: Arc<Places>,
    pub(super) phase: watch::Receiver<Phase>,
    pub(super) listeners: Vec<std::net::TcpListener>,
    pub(super) random: u64,
}

/// What is known of a worker outside of it.
#[derive(Clone, Debug)]
pub(super) struct Started {
    pub(super) figures: Arc<Figures>,
    life: Weak<()>,
}

impl Started {
    /// Whether the worker lives.
    pub(super) fn lives(&self) -> bool {
        self.life.strong_count() > 0
    }
}

/// What the tasks of one worker share. Borrowed for the length of a step, never across an await.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) settings: Arc<ServerSettings>,
    pub(super) services: RefCell<Services>,
    pub(super) tls: Option<Arc<rustls::ServerConfig>>,
    pub(super) figures: Arc<Figures>,
    places: Arc<Places>,
    drain_until: Cell<Option<Instant>>,
    /// Woken when no more calls are taken.
    drains: Arc<Notify>,
    /// Woken when the last client has gone.
    empty: Notify,
    rng: RefCell<Rng>,
    /// Room for what one batch of requests needs, so that idle connections have none.
    desk: RefCell<Vec<Arrived>>,
}

/// Runs a worker until it is told to end.
pub(super) fn run(seed: Seed, ready: &std::sync::mpsc::Sender<io::Result<Started>>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return drop(ready.send(Err(error))),
    };
    runtime.block_on(async move {
        let (life, phase) = (Arc::new(()), seed.phase.clone());
        match Worker::start(seed) {
            Ok(worker) => {
                let figures = Arc::clone(&worker.figures);
                let _ = ready.send(Ok(Started { figures, life: Arc::downgrade(&life) }));
                worker.obey(phase).await;
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    });
}

impl Worker {
    fn start(seed: Seed) -> io::Result<Rc<Self>> {
        let worker = Rc::new(Self {
            settings: seed.settings,
            services: RefCell::new(seed.services),
            tls: seed.tls,
            figures: Arc::default(),
            places: seed.places,
            drain_until: Cell::new(None),
            drains: Arc::default(),
            empty: Notify::new(),
            rng: RefCell::new(Rng::new(seed.random)),
            desk: RefCell::default(),
        });
        for listener in seed.listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::task::spawn_local(Rc::clone(&worker).accept(listener, seed.phase.clone()));
        }
        Ok(worker)
    }

    /// Does what the phase says, until the end.
    async fn obey(self: Rc<Self>, mut phase: watch::Receiver<Phase>) {
        // An error means that the server is gone.
        let left =
            phase.wait_for(|phase| *phase != Phase::Serving).await.map_or(Phase::Ended, |phase| *phase);
        let Phase::Draining { until } = left else { return };
        self.drain_until.set(Some(until));
        self.drains.notify_waiters();
        let empty = async {
            while self.figures.connections.value() > 0 {
                self.empty.notified().await;
            }
        };
        let pause = until.saturating_duration_since(sys::now()) + LAST_WORDS;
        tokio::select! {
            () = empty => {}
            () = tokio::time::sleep(pause) => {
                tracing::warn!(clients = self.figures.connections.value(), "cut off: the time to drain is over");
            }
            _ = phase.wait_for(|phase| *phase == Phase::Ended) => {}
        }
    }

    /// Accepts clients until the server takes no more.
    async fn accept(self: Rc<Self>, listener: TcpListener, mut phase: watch::Receiver<Phase>) {
        let mut full_since = None;
        loop {
            // Who comes while there are too many waits in the kernel's line: a place may soon be free.
            if !self.places.is_full() {
                full_since = None;
            } else if sys::now() < *full_since.get_or_insert_with(sys::now) + WAIT_WHILE_FULL {
                tokio::select! {
                    () = tokio::time::sleep(LOOK_WHILE_FULL) => continue,
                    _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
                }
            }
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = phase.wait_for(|phase| *phase != Phase::Serving) => return,
            };
            match accepted {
                Ok((socket, peer)) => self.admit(socket, peer),
                // The client has gone already, or this machine has nothing left to serve it with.
                Err(error) if forebay::blame::cause_of(&error).blame() == Blame::Local => {
                    tokio::time::sleep(PAUSE_WITHOUT_DESCRIPTORS).await;
                }
                Err(_) => {}
            }
        }
    }

    /// Serves a client, if there is a place for it.
    fn admit(self: &Rc<Self>, socket: TcpStream, peer: SocketAddr) {
        self.figures.accepted.add(1);
        match self.places.take(peer.ip()) {
            Some(place) => {
                tokio::task::spawn_local(connection::serve(Rc::clone(self), socket, peer, place));
            }
            None => {
                self.figures.refused.add(1);
                // It may have gone already.
                let _ = sys::socket::reset_on_close(&socket);
            }
        }
    }

    /// Returns when the server ends, once it takes no more.
    pub(super) fn drain_until(&self) -> Option<Instant> {
        self.drain_until.get()
    }

    /// Resolves when the server takes no more.
    pub(super) fn drains(&self) -> OwnedNotified {
        Arc::clone(&self.drains).notified_owned()
    }

    /// Returns a time give or take a tenth, so that not all connections grow old at once.
    pub(super) fn jitter(&self, age: Duration) -> Duration {
        let tenth = age / 10;
        age - tenth + self.rng.borrow_mut().up_to(2 * tenth)
    }

    /// Lends room for a batch of requests.
    pub(super) fn take_desk(&self) -> Vec<Arrived> {
        self.desk.take()
    }

    /// Takes it back.
    pub(super) fn give_desk(&self, desk: Vec<Arrived>) {
        if desk.capacity() <= DESK_MAX {
            self.desk.replace(desk);
        }
    }
}

/// A client's connection, counted until it is dropped.
pub(super) struct Open {
    worker: Rc<Worker>,
    _place: Place,
}

impl Open {
    pub(super) fn new(worker: &Rc<Worker>, place: Place) -> Self {
        worker.figures.connections.add(1);
        Self { worker: Rc::clone(worker), _place: place }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.figures.connections.sub(1);
        if self.worker.figures.connections.value() == 0 && self.worker.drain_until().is_some() {
            self.worker.empty.notify_waiters();
        }
    }
}

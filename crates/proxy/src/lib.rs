//! The proxy: settings in, [`start`] out.
//!
//! Each worker is one thread with one single-threaded runtime, its own listeners (`SO_REUSEPORT`) and its own pool of
//! connections to the backends. What the workers share is the list of backends with what is known of each, and counted
//! permission: limits hold over all of them.
//!
//! ```text
//! accept ─▶ a place? ─▶ pick a backend ─▶ a spare, or dial ─▶ relay bytes both ways ─▶ end: the connection is never reused
//!              │ no           └── cannot be reached: the next one, until all were tried ─▶ refused
//!              └─▶ refused
//! ```

mod access_log;
mod backends;
mod bind;
mod checks;
mod discover;
mod http;
mod introduce;
mod keeper;
mod opaque;
mod settings;
mod stats;
mod worker;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay::dial::Machine;
use forebay::lines::LineFigures;
use forebay::places::Places;
use forebay::{Limits, Snapshot, sys};
use forebay_proxy_core::roster::RosterConfig;
use tokio::sync::{oneshot, watch};

use self::access_log::{AccessLog, AccessLogWriter};
use self::backends::Backends;
use self::discover::{DiscoverError, Discovered, Discovery};
pub use self::discover::{DiscoveryStats, Source};
use self::keeper::Keeper;
pub use self::settings::{
    AccessLogFormat, AccessLogSettings, BackendAddress, BackendTls, BalanceName, CheckKind, ClientSettings,
    ConnectionSettings, DiscoverySettings, HealthSettings, HttpSettings, ListenAddress, Mode, OnRemoved,
    OnUnhealthy, PoolMode, Protocol, ProxyConfig, ProxyProtocolSettings, ReuseName, Scheme, SendHeader,
    Settings, SettingsError, SpareSettings, TlsSettings,
};
pub use self::stats::{Kind, ProxyFigures};
use self::worker::{Phase, Started, WorkerSeed};

/// A running proxy. Dropping it ends it at once, without draining.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<ListenAddress>,
    phase: watch::Sender<Phase>,
    workers: Vec<Worker>,
    handle: Handle,
    access_log: Option<AccessLogWriter>,
    _keeper: Keeper,
    /// While it is there, the files of the certificate are looked after.
    _certificate: Option<std::sync::mpsc::Sender<()>>,
}

#[derive(Debug)]
struct Worker {
    ended: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Asks a running proxy for its figures, from anywhere.
#[derive(Clone, Debug)]
pub struct Handle {
    config: Arc<ProxyConfig>,
    backends: Arc<Backends>,
    discovery: Option<Arc<Discovery>>,
    workers: Arc<[Started]>,
    lines: Option<LineFigures>,
}

/// Starts a proxy: binds, starts the workers, and returns.
///
/// # Errors
///
/// [`StartError`]: an address cannot be bound, or the machine gives no thread or no randomness.
pub fn start(config: ProxyConfig) -> Result<Server, StartError> {
    let config = Arc::new(config);
    let listeners = bind::bind_all(&config.listen, config.workers, &config.clients.tcp())?;
    let discovery = match &config.discovery {
        Some(discovery) => {
            Some(Discovery::start(&config.name, discovery, &config.backends, &listeners.addresses)?)
        }
        None => None,
    };
    let list = discovery.as_ref().map_or_else(|| Discovered::fixed(&config.backends), Discovery::list);
    let roster = RosterConfig { allow_empty: config.discovery.is_some(), ..config.health.roster };
    let backends =
        Backends::new(&config.name, roster, &list.borrow().shares(config.balance), sys::now(), random()?)
            .map_err(|error| StartError::Thread { error: io::Error::other(error) })?;
    let backends = Arc::new(backends);
    let keeper = Keeper::start(Arc::clone(&backends), list, &config)?;
    let machine = Machine::of_process().map_err(|error| StartError::Thread { error })?;
    let certificate =
        config.tls.as_ref().map(|tls| watch_certificate(Arc::clone(&tls.certificates))).transpose()?;
    let (phase, _) = watch::channel(Phase::Serving);
    let places = Arc::new(Places::new(config.clients.connections_max, config.clients.connections_per_client));
    let limits = Limits::new();
    let (access_log, log) = match &config.access_log {
        None => (None, None),
        Some(log) => {
            let (writer, log_end) = AccessLog::start(&config.name, log).map_err(|error| {
                StartError::AccessLog { path: log.path.clone().unwrap_or_else(|| "-".into()), error }
            })?;
            (Some(writer), Some(log_end))
        }
    };
    let (mut workers, mut all) = (Vec::new(), Vec::new());
    for (index, listeners) in listeners.workers.into_iter().enumerate() {
        let seed = WorkerSeed {
            config: Arc::clone(&config),
            backends: Arc::clone(&backends),
            places: Arc::clone(&places),
            machine: Arc::clone(&machine),
            limits: Arc::clone(&limits),
            phase: phase.subscribe(),
            log: log.clone(),
            seed: random()?,
        };
        let (ready, started) = std::sync::mpsc::channel();
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("proxy-{index}"))
            .spawn(move || {
                worker::run(seed, listeners, &ready);
                let _ = ending.send(());
            })
            .map_err(|error| StartError::Thread { error })?;
        let started = started
            .recv()
            .map_err(|_| StartError::Thread { error: io::Error::other("the worker ended while starting") })?
            .map_err(|error| StartError::Thread { error })?;
        workers.push(Worker { ended, thread: Some(thread) });
        all.push(started);
    }
    let lines = access_log.as_ref().map(AccessLogWriter::figures);
    let handle = Handle { lines, config, backends, discovery: discovery.map(Arc::new), workers: all.into() };
    Ok(Server {
        addresses: listeners.addresses,
        phase,
        workers,
        handle,
        _keeper: keeper,
        _certificate: certificate,
        access_log,
    })
}

impl Server {
    /// Returns what it listens on, in the order of the configuration; where port 0 was asked for, with the one that was
    /// given.
    pub fn local_addrs(&self) -> &[ListenAddress] {
        &self.addresses
    }

    /// Returns a handle that can ask for figures from anywhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Takes no more clients, lets those that are there finish, then ends; after `limit` it ends all the same.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the server ends at once.
    pub async fn drain(mut self, limit: Duration) {
        self.phase.send_replace(Phase::Draining { until: std::time::Instant::now() + limit });
        for worker in &mut self.workers {
            // A worker that has ended needs no draining.
            let _ = (&mut worker.ended).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Ended);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic was told when it happened.
                let _ = thread.join();
            }
        }
        if let Some(log) = &mut self.access_log {
            log.join();
        }
    }
}

impl Handle {
    /// Returns what the proxy is called.
    pub fn name(&self) -> &str {
        self.config.name()
    }

    /// Returns its configuration.
    pub fn config(&self) -> &ProxyConfig {
        &self.config
    }

    /// Returns the figures of this moment.
    pub fn figures(&self) -> ProxyFigures {
        let mut sum = ProxyFigures::default();
        self.workers.iter().for_each(|worker| sum.merge(&worker.figures));
        if let Some(lines) = &self.lines {
            (sum.access_log_lines, sum.access_log_lost) = (lines.written(), lines.dropped());
        }
        sum
    }

    /// Returns the figures of the connections to each backend, all workers together.
    pub fn backends(&self) -> Vec<BackendFigures> {
        let mut all: Vec<BackendFigures> = Vec::new();
        for one in self.workers.iter().flat_map(|worker| (worker.backends)()) {
            match all.iter_mut().find(|known| known.backend == one.endpoint) {
                Some(known) => known.snapshot.merge(&one.snapshot),
                None => all.push(BackendFigures { backend: one.endpoint, snapshot: one.snapshot }),
            }
        }
        all
    }

    /// Returns the figures of discovery; `None` if backends are only those that are named.
    pub fn discovery(&self) -> Option<DiscoveryStats> {
        self.discovery.as_ref().map(|discovery| discovery.stats())
    }

    /// Returns the backends that discovery knows; `None` if backends are only those that are named.
    pub fn discovered(&self) -> Option<Vec<BackendAddress>> {
        self.discovery.as_ref().map(|discovery| discovery.known())
    }

    /// Returns how many workers live.
    pub fn workers(&self) -> usize {
        self.workers.iter().filter(|worker| worker.lives()).count()
    }

    /// Whether a client would be sent somewhere with some hope: some backend is neither unhealthy nor ejected.
    pub fn is_ready(&self) -> bool {
        self.backends.is_ready()
    }
}

/// Figures of the connections to one backend, all workers together.
#[derive(Clone, Debug)]
pub struct BackendFigures {
    /// The backend.
    pub backend: BackendAddress,
    /// Counts by state, limits, counters.
    pub snapshot: Snapshot,
}

/// Why a proxy did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// An address cannot be bound.
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The access log cannot be opened.
    AccessLog {
        /// Where it would be.
        path: std::path::PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A worker could not be started.
    Thread {
        /// What the system said.
        error: io::Error,
    },
    /// The list of backends cannot be had: the text names the file, and what to do.
    Discovery(String),
    /// The system gave no randomness.
    Random,
}

impl From<DiscoverError> for StartError {
    fn from(error: DiscoverError) -> Self {
        match error {
            DiscoverError::File(problem) => Self::Discovery(problem),
            DiscoverError::System(error) => Self::Thread { error },
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, error } => match error.kind() {
                io::ErrorKind::AddrInUse => {
                    write!(f, "cannot listen on {address}: another process does; name another address")
                }
                io::ErrorKind::AddrNotAvailable => {
                    write!(f, "cannot listen on {address}: it is no address of this machine")
                }
                io::ErrorKind::PermissionDenied => {
                    write!(
                        f,
                        "cannot listen on {address}: ports below 1024 need the capability CAP_NET_BIND_SERVICE"
                    )
                }
                _ => write!(f, "cannot listen on {address}: {error}"),
            },
            Self::AccessLog { path, error } => {
                write!(
                    f,
                    "cannot write the access log {}: {error}; name another file in access_log.path",
                    path.display()
                )
            }
            Self::Thread { error } => write!(f, "cannot start a worker: {error}"),
            Self::Discovery(problem) => f.write_str(problem),
            Self::Random => f.write_str("the system gives no random numbers"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { error, .. } | Self::AccessLog { error, .. } | Self::Thread { error } => Some(error),
            Self::Discovery(_) | Self::Random => None,
        }
    }
}

/// Looks after the certificate until the returned end is dropped. Not on a worker: a disk may take its time.
fn watch_certificate(
    certificates: Arc<forebay::tls::Certificates>,
) -> Result<std::sync::mpsc::Sender<()>, StartError> {
    let (alive, end) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("proxy-certificate".to_owned())
        .spawn(move || forebay::tls::watch(&certificates, &end))
        .map(|_| alive)
        .map_err(|error| StartError::Thread { error })
}

fn random() -> Result<u64, StartError> {
    getrandom::u64().map_err(|_| StartError::Random)
}

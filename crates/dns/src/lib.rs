//! A caching DNS forwarder: settings in, [`start`] out.
//!
//! Each worker is one thread with one single-threaded runtime, its own listeners (`SO_REUSEPORT`), its own sockets to
//! the upstreams and its own [`Forwarder`](forebay_dns_core::forwarder::Forwarder), which decides everything. What the
//! workers share is counted permission ([`Ledger`]): limits hold over all of them.
//!
//! ```text
//! recvmmsg ─▶ handle_query ─▶ SendBatch ─▶ sendmmsg           one batch, run to completion
//!                 │ miss
//!                 └─▶ upstream sockets ─▶ handle_answer ─▶ SendBatch ─▶ sendmmsg
//! ```

mod bind;
mod bootstrap;
mod client;
mod doh;
mod files;
mod keep;
mod link;
mod log;
mod mail;
mod query_log;
mod settings;
mod stats;
mod tls;
mod worker;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay::sys;
use forebay_core::{Budget, Instant, Ledger, Permits};
use forebay_dns_core::cache::Flush;
use forebay_dns_core::forwarder::FrontConfig;
use forebay_dns_core::guard::RateLimit;
use forebay_dns_core::wire::HashSeed;
pub use forebay_dns_core::wire::{NameTextError, parse_name};
use tokio::sync::{mpsc, oneshot};

use self::bootstrap::{Directory, Resolver};
use self::files::{Looked, NameFigures, Watch};
use self::keep::{Keeper, SavedCache};
use self::query_log::{QueryLogFigures, QueryLogWriter};
pub use self::settings::{
    AnyName, BlockAnswerName, BlockSettings, LocalSettings, ProtectionSettings, QueryLogSettings,
    RouteSettings,
};
pub use self::settings::{
    CacheSettings, ClientSettings, DnsConfig, HealthSettings, Host, ListenAddress, OverflowName, PoolMode,
    SafetySettings, Scheme, Settings, SettingsError, StrategyName, StrategySettings, StreamSettings,
    TlsSettings, Transport, UdpSettings, UpstreamAddress, parse_address,
};
pub use self::stats::{CacheStats, HandshakeStats, LatencyStats, NameStats, PoolStats, QueryLogStats, Stats};
use self::tls::ServerConfigs;
use self::worker::{Command, WorkerSeed};
use forebay::places::Places;

/// Descriptors that the pools leave to listeners, clients, logs and whatever else the process does.
const DESCRIPTORS_RESERVED: u64 = 512;

/// A running DNS server. Dropping it ends it at once, without draining.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<ListenAddress>,
    workers: Vec<Worker>,
    handle: Handle,
    /// Looks after the certificate until its other end is dropped.
    watch: Option<std::sync::mpsc::Sender<()>>,
    query_log: Option<QueryLogWriter>,
    _files: Option<Watch>,
    keeper: Option<Arc<Keeper>>,
    /// Looks for upstreams that are given by name.
    resolver: Option<Resolver>,
}

#[derive(Debug)]
struct Worker {
    commands: mpsc::UnboundedSender<Command>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Asks a running server for its figures.
#[derive(Clone, Debug)]
pub struct Handle {
    workers: Vec<mpsc::UnboundedSender<Command>>,
    config: Arc<DnsConfig>,
    names: Arc<NameFigures>,
    query_log: Option<QueryLogFigures>,
    started: Instant,
}

/// Starts a server: binds, starts the workers, and returns.
///
/// # Errors
///
/// [`StartError`]: an address cannot be bound, a file cannot be read or written, or the machine gives no thread or no
/// randomness.
pub fn start(config: DnsConfig) -> Result<Server, StartError> {
    let config = Arc::new(config);
    let listeners = bind::bind_all(&config.listen, config.workers)?;
    let addresses = listeners.addresses;
    let tls = config.certificates.as_ref().map(ServerConfigs::new).transpose();
    let tls = tls.map_err(|error| StartError::Tls { error })?;
    let watch = config.certificates.clone().map(watch).transpose()?;
    let hash_seed = HashSeed::from_bytes(random()?);
    let names = Arc::new(NameFigures::default());
    let looked = Looked::at(&config);
    let front = front(&config, hash_seed, &names)?;
    let (query_log, log) = match &config.query_log {
        Some(log) => {
            let path = log.path.clone().unwrap_or_else(|| "-".into());
            let started = QueryLogWriter::start(Arc::clone(&config), log, u64::from_le_bytes(random()?));
            let (writer, log) =
                started.map_err(|error| StartError::File { key: "query_log.path", path, error })?;
            (Some(writer), Some(log))
        }
        None => (None, None),
    };
    let path = config.cache.path.as_deref();
    let cache_bytes = config.cache.bytes as u64 * config.workers as u64;
    let keeper = path.map(|path| Arc::new(Keeper::new(path.to_owned())));
    let (directory, unknown) = Directory::new(config.upstreams());
    let resolver = match unknown.is_empty() {
        true => None,
        false => Some(
            Resolver::start(unknown, config.bootstrap.clone(), u32::from_ne_bytes(random()?).into())
                .map_err(|error| StartError::Thread { error })?,
        ),
    };
    let seed = WorkerSeed {
        directory: Arc::new(directory),
        config: Arc::clone(&config),
        hash_seed,
        permits: permits(&config),
        clients: Arc::new(Places::new(config.clients.connections_max, config.clients.connections_per_client)),
        tls,
        front,
        saved: path.and_then(|path| SavedCache::read(path, cache_bytes)).map(Arc::new),
        keeper: keeper.clone(),
    };
    let mut workers = Vec::new();
    for (index, sockets) in listeners.workers.into_iter().enumerate() {
        let (commands, inbox) = mpsc::unbounded_channel();
        let random_seed: [u8; 32] = random()?;
        let chance = random_seed.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let log = log.as_ref().map(|log| log.another(chance));
        let seed = seed.clone();
        let (ready, started) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new()
            .name(format!("dns-{index}"))
            .spawn(move || worker::run(seed, log, random_seed, sockets, inbox, &ready))
            .map_err(|error| StartError::Thread { error })?;
        started
            .recv()
            .map_err(|_| StartError::Thread { error: io::Error::other("the worker ended while starting") })?
            .map_err(|error| StartError::Thread { error })?;
        workers.push(Worker { commands, thread: Some(thread) });
    }
    let handle = Handle {
        workers: workers.iter().map(|worker| worker.commands.clone()).collect(),
        config: Arc::clone(&config),
        names: Arc::clone(&names),
        query_log: query_log.as_ref().map(QueryLogWriter::figures),
        started: sys::now(),
    };
    let files = Watch::start(looked, config, hash_seed, names, handle.workers.clone())
        .map_err(|error| StartError::Thread { error })?;
    Ok(Server { addresses, workers, handle, watch, resolver, query_log, _files: files, keeper })
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

    /// Takes no more queries, answers those in flight, then ends; after `limit` it ends all the same. The cache is saved
    /// then, if a path is set.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the server ends at once.
    pub async fn drain(mut self, limit: Duration) {
        let mut done = Vec::new();
        for worker in &self.workers {
            let (ended, end) = oneshot::channel();
            // A worker that has ended needs no draining.
            let _ = worker.commands.send(Command::Drain { limit, ended });
            done.push(end);
        }
        for end in done {
            let _ = end.await;
        }
        self.join();
    }

    fn join(&mut self) {
        self.watch = None;
        self.resolver = None;
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take()
                && thread.join().is_err()
            {
                tracing::error!("a DNS worker had panicked");
            }
        }
        if let Some(log) = &mut self.query_log {
            log.join();
        }
        if let Some(keeper) = &self.keeper {
            keeper.finish();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for worker in &self.workers {
            let (ended, _) = oneshot::channel();
            let _ = worker.commands.send(Command::Drain { limit: Duration::ZERO, ended });
        }
        self.join();
    }
}

impl Handle {
    /// Returns how many workers were started.
    pub fn workers(&self) -> usize {
        self.config.workers()
    }

    /// Collects the figures of all workers.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    pub async fn stats(&self) -> Stats {
        let mut replies = Vec::new();
        for worker in &self.workers {
            let (reply, answer) = oneshot::channel();
            if worker.send(Command::Stats { reply }).is_ok() {
                replies.push(answer);
            }
        }
        let mut stats = Stats::new(&self.config, sys::now().saturating_duration_since(self.started));
        for reply in replies {
            if let Ok(worker) = reply.await {
                stats.add(&worker);
            }
        }
        stats.names = self.names.stats();
        stats.query_log = self.query_log.as_ref().map(QueryLogFigures::stats).unwrap_or_default();
        stats
    }

    /// Forgets what the caches of all workers have of a name: every type, and answers that lead to it by an alias. With
    /// `subtree`, of everything below it too; below the root is everything. `name` is in wire form: see [`parse_name`].
    ///
    /// What is in flight to an upstream meanwhile is kept when its answer comes.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, it is forgotten all the same.
    pub async fn flush(&self, name: &[u8], subtree: bool) -> Flushed {
        let flush = if subtree { Flush::subtree(name) } else { Flush::name(name) };
        let mut replies = Vec::new();
        for worker in &self.workers {
            let (reply, answer) = oneshot::channel();
            if worker.send(Command::Flush { flush: flush.clone(), reply }).is_ok() {
                replies.push(answer);
            }
        }
        let mut flushed = Flushed { entries: 0, workers: 0 };
        for reply in replies {
            if let Ok(entries) = reply.await {
                flushed.entries += entries;
                flushed.workers += 1;
            }
        }
        flushed
    }

    /// Forgets every cached answer.
    pub fn clear_cache(&self) {
        for worker in &self.workers {
            // A worker that has ended has no cache.
            let _ = worker.send(Command::ClearCache);
        }
    }
}

/// What a flush has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushed {
    /// Entries forgotten, all workers together.
    pub entries: u64,
    /// Workers that have looked through their caches.
    pub workers: usize,
}

/// Why a server did not start.
#[derive(Debug)]
pub enum StartError {
    /// An address cannot be bound.
    Bind {
        /// Which one.
        address: SocketAddr,
        /// `UDP` or `TCP`.
        protocol: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// A file of the configuration cannot be read or written.
    File {
        /// The key that names it, as in `local.hosts`.
        key: &'static str,
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A worker could not be started.
    Thread {
        /// What the kernel said.
        error: io::Error,
    },
    /// The encrypted listeners could not be set up.
    Tls {
        /// What rustls said.
        error: rustls::Error,
    },
    /// The system gave no random bytes, without which message ids could be guessed.
    Random,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bind { address, protocol, error } => {
                let remedy = match error.kind() {
                    io::ErrorKind::AddrInUse => {
                        "another server listens there: stop it or choose another address"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "ports below 1024 need root or CAP_NET_BIND_SERVICE: use one, or choose another port"
                    }
                    io::ErrorKind::AddrNotAvailable => "that address is not one of this machine",
                    _ => "choose another address",
                };
                write!(f, "cannot listen on {address} ({protocol}): {error}; {remedy}")
            }
            Self::File { key, path, error } => {
                let remedy = match error.kind() {
                    io::ErrorKind::NotFound => "make it, or leave the key out",
                    io::ErrorKind::PermissionDenied => "give this user the right to it",
                    _ => "name another file, or leave the key out",
                };
                write!(f, "{key}: cannot open {}: {error}; {remedy}", path.display())
            }
            Self::Thread { error } => write!(f, "cannot start a worker: {error}"),
            Self::Tls { error } => write!(f, "cannot set up TLS for the listeners: {error}"),
            Self::Random => f.write_str("the system gives no random bytes"),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Bind { error, .. } | Self::File { error, .. } | Self::Thread { error } => Some(error),
            Self::Tls { error } => Some(error),
            Self::Random => None,
        }
    }
}

/// Looks after the certificate until the returned end is dropped. Not on a worker: a disk may take its time.
fn watch(certificates: Arc<forebay::tls::Certificates>) -> Result<std::sync::mpsc::Sender<()>, StartError> {
    let (alive, end) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("dns-certificate".to_owned())
        .spawn(move || forebay::tls::watch(&certificates, &end))
        .map(|_| alive)
        .map_err(|error| StartError::Thread { error })
}

fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| StartError::Random)?;
    Ok(bytes)
}

/// Who may ask, and what is answered here, for all workers: files are read now.
fn front(config: &DnsConfig, seed: HashSeed, names: &NameFigures) -> Result<FrontConfig, StartError> {
    let file = |key| move |files::FileError { path, error }| StartError::File { key, path, error };
    let local = config.local.as_ref().map(|local| files::read_local(local, seed, names));
    let local = local.transpose().map_err(file("local.hosts"))?;
    let block = config.block.as_ref().map(|block| files::read_block(block, seed, names));
    let block = block.transpose().map_err(file("block.lists"))?;
    let protection = &config.protection;
    Ok(FrontConfig {
        allow: Some(protection.allow.clone()),
        rate: protection.rate.and_then(|rate| RateLimit::new(rate, seed)).map(Arc::new),
        rate_slip: protection.rate_slip,
        any: protection.any,
        special_names: protection.special_names,
        rebind: protection.rebind.clone(),
        local: local.map(Arc::new),
        block: block.map(Arc::new),
        block_answer: config.block.as_ref().map(|block| block.answer).unwrap_or_default(),
        block_ttl: config.block.as_ref().map_or(0, |block| block.ttl),
    })
}

/// Permits for each upstream, shared by the workers: datagram and stream connections.
fn permits(config: &DnsConfig) -> Vec<(Permits, Permits)> {
    let descriptors = sys::process::descriptor_limit().map_or(1024, |limit| limit.soft);
    let descriptors =
        u32::try_from(descriptors.saturating_sub(DESCRIPTORS_RESERVED)).unwrap_or(u32::MAX).max(64);
    let descriptors = Arc::new(Ledger::resource(descriptors));
    let ports = sys::process::local_port_range().map_or(28_000, |range| range.usable());
    let permits = |connections_max, temporary_max| Permits {
        budget: Budget {
            descriptors: Some(Arc::clone(&descriptors)),
            ports: Some(Arc::new(Ledger::resource(ports))),
        },
        ..Permits::alone(connections_max, temporary_max)
    };
    let one = |pool: &forebay_core::Config| permits(pool.connections_max, pool.temporary_max);
    let both = |_| (one(&config.udp), one(&config.stream));
    config.upstreams.iter().map(both).collect()
}

//! Where backends come from: a file, DNS, Kubernetes.
//!
//! Sources run on a thread of their own and never disturb a worker. Each sends complete lists through one [`Feed`], which
//! decides what becomes of them; who uses the list waits for the other end.
//!
//! ```text
//! file ────┐
//! DNS ─────┼─▶ Feed ──changed──▶ watch channel ─▶ the roster of backends
//! Kubernetes ┘   └─▶ the saved file
//!                └─ the same, empty, broken: the last good list stays
//! ```

mod dns;
mod file;
#[cfg(feature = "kubernetes")]
mod kube;
mod list;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use forebay::sys;
use forebay_core::Instant;
use tokio::sync::{oneshot, watch};

use crate::settings::{BackendAddress, BalanceName, DiscoveryConfig, ListenAddress};
use crate::stats::Kind;

/// One backend that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it is, and what shapes a connection to it.
    pub(crate) backend: BackendAddress,
    /// Lower ones go first (SRV); 0 elsewhere.
    pub(crate) priority: u16,
    /// Its share of clients beside others of its priority (SRV); 1 elsewhere.
    pub(crate) weight: u16,
}

impl Found {
    /// One like any other.
    pub(crate) fn plain(backend: BackendAddress) -> Self {
        Self { backend, priority: 0, weight: 1 }
    }
}

/// The list of backends as it is known now.
#[derive(Clone, Debug)]
pub(crate) struct Discovered {
    /// All of them: by priority, then by address. Each is there once.
    pub(crate) endpoints: Arc<[Found]>,
    /// Who said so.
    pub(crate) source: Source,
    /// When.
    pub(crate) at: Instant,
}

impl Discovered {
    /// Makes a list that nothing will change.
    pub(crate) fn fixed(backends: &[BackendAddress]) -> watch::Receiver<Self> {
        let endpoints = backends.iter().cloned().map(Found::plain).collect();
        watch::channel(Self { endpoints, source: Source::Configured, at: sys::now() }).1
    }

    /// Returns the part of the list that clients are sent to, with shares: those with the best priority, of which each
    /// gets its share (RFC 2782), or all in order where the first that is well is wanted.
    pub(crate) fn shares(&self, balance: BalanceName) -> Vec<(BackendAddress, u32)> {
        let best = self.endpoints.first().map(|found| found.priority);
        let is_wanted = |found: &&Found| balance == BalanceName::FirstHealthy || Some(found.priority) == best;
        let share = |found: &Found| (found.backend.clone(), u32::from(found.weight));
        self.endpoints.iter().filter(is_wanted).map(share).collect()
    }
}

/// Who knows backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The configuration, and the list that was saved by the process before.
    Configured,
    /// The file.
    File,
    /// DNS.
    Dns,
    /// Kubernetes.
    Kubernetes,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Configured => "configured",
            Self::File => "file",
            Self::Dns => "dns",
            Self::Kubernetes => "kubernetes",
        })
    }
}

/// Figures of discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscoveryStats {
    /// Where the list in use comes from.
    pub source: Source,
    /// Backends in it.
    pub backends: usize,
    /// Lists that a source has given.
    pub lists: u64,
    /// Those of them that differed from the one before.
    pub changes: u64,
    /// Attempts that gave no list: a broken file, a server that did not answer. The last good list stays.
    pub failures: u64,
    /// Empty lists, which were not believed unless that is allowed.
    pub empty: u64,
    /// Times that the list could not be written to its file.
    pub save_failures: u64,
    /// Whether the last attempt of a source has given a list; true before the first.
    pub is_fresh: bool,
    /// When a source last gave a list; `None` if it never has.
    pub listed_at: Option<Instant>,
}

impl DiscoveryStats {
    /// Name, kind and meaning of each figure, in the order of [`DiscoveryStats::values`].
    pub const TABLE: &[(&str, Kind, &str)] = &[
        ("discovery_backends", Kind::Gauge, "Backends in the list that is in use."),
        (
            "discovery_fresh",
            Kind::Gauge,
            "Whether the last attempt to get a list gave one: 0 says that the list is an old one.",
        ),
        ("discovery_lists", Kind::Counter, "Lists that a source has given."),
        ("discovery_changes", Kind::Counter, "Lists that differed from the one before."),
        ("discovery_failures", Kind::Counter, "Attempts that gave no list; the last good one stays."),
        ("discovery_empty", Kind::Counter, "Empty lists; the last good one stays, unless they are allowed."),
        ("discovery_save_failures", Kind::Counter, "Times that the list could not be written to its file."),
    ];

    /// Returns the figures in the order of [`DiscoveryStats::TABLE`].
    pub fn values(&self) -> [u64; 7] {
        let backends = self.backends as u64;
        let fresh = u64::from(self.is_fresh);
        [backends, fresh, self.lists, self.changes, self.failures, self.empty, self.save_failures]
    }
}

#[derive(Debug)]
struct Figures {
    lists: AtomicU64,
    changes: AtomicU64,
    failures: AtomicU64,
    empty: AtomicU64,
    save_failures: AtomicU64,
    is_fresh: AtomicBool,
    listed_at: Mutex<Option<Instant>>,
}

/// Takes lists from sources, and passes on those that are good and new.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The proxy whose backends they are, for the log.
    proxy: Box<str>,
    sender: watch::Sender<Discovered>,
    /// Where the proxy itself listens: an entry that leads there would be a loop.
    own: Vec<ListenAddress>,
    allow_empty: bool,
    save: Option<PathBuf>,
    figures: Arc<Figures>,
}

impl Feed {
    fn new(proxy: &str, config: &DiscoveryConfig, initial: Vec<Found>, own: Vec<ListenAddress>) -> Self {
        let first = Discovered {
            endpoints: in_order(initial).into(),
            source: if config.file.is_some() { Source::File } else { Source::Configured },
            at: sys::now(),
        };
        Self {
            proxy: proxy.into(),
            sender: watch::Sender::new(first),
            own,
            allow_empty: config.allow_empty,
            save: config.save.clone(),
            figures: Arc::new(Figures {
                lists: AtomicU64::new(0),
                changes: AtomicU64::new(0),
                failures: AtomicU64::new(0),
                empty: AtomicU64::new(0),
                save_failures: AtomicU64::new(0),
                is_fresh: AtomicBool::new(true),
                listed_at: Mutex::new(None),
            }),
        }
    }

    /// Whether who connects to `address` comes to this proxy.
    fn is_own(&self, address: std::net::SocketAddr) -> bool {
        self.own.iter().any(|own| own.is_reached_by(address))
    }

    /// Returns the list as it is now.
    pub(crate) fn current(&self) -> Arc<[Found]> {
        Arc::clone(&self.sender.borrow().endpoints)
    }

    /// Takes a complete list. One that is empty is refused, unless that is allowed; one that says nothing new changes
    /// nothing.
    pub(crate) fn offer(&self, source: Source, list: Vec<Found>) {
        self.figures.lists.fetch_add(1, Relaxed);
        let was_fresh = self.figures.is_fresh.swap(true, Relaxed);
        *self.figures.listed_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(sys::now());
        let (list, loops): (Vec<_>, Vec<_>) =
            list.into_iter().partition(|found| !self.is_own(found.backend.address));
        for found in loops {
            tracing::warn!(
                proxy = &*self.proxy,
                %source,
                endpoint = %found.backend,
                "an endpoint is left out: this proxy listens there, and would send to itself"
            );
        }
        let list = in_order(list);
        let before = self.current();
        if list.is_empty() {
            self.figures.empty.fetch_add(1, Relaxed);
        }
        if list.is_empty() && !self.allow_empty {
            tracing::warn!(
                proxy = &*self.proxy,
                %source,
                kept = before.len(),
                "the list of endpoints is empty: the last good one stays; should it be empty, set allow_empty"
            );
            return;
        }
        if *before == *list {
            if !was_fresh {
                tracing::info!(proxy = &*self.proxy, %source, endpoints = list.len(), "the list of endpoints is known again");
            }
            // The first word of a source says nothing new, and yet the list is now its own.
            self.sender.send_if_modified(|known| {
                (known.source, known.at) = (source, sys::now());
                false
            });
            return;
        }
        let has = |list: &[Found], found: &Found| list.iter().any(|one| one.backend == found.backend);
        let added: Vec<_> =
            list.iter().filter(|one| !has(&before, one)).map(|one| one.backend.to_string()).collect();
        let removed: Vec<_> =
            before.iter().filter(|one| !has(&list, one)).map(|one| one.backend.to_string()).collect();
        tracing::info!(
            proxy = &*self.proxy,
            %source,
            endpoints = list.len(),
            added = added.join(" "),
            removed = removed.join(" "),
            "updating endpoints"
        );
        // What was read from the file is there already.
        if source != Source::File {
            self.write(&list);
        }
        self.sender.send_replace(Discovered { endpoints: list.into(), source, at: sys::now() });
        // Whoever sees it counted finds it.
        self.figures.changes.fetch_add(1, Release);
    }

    /// Notes that a source could give no list: why, and what to do, stands in `problem`. Only the first of several in a
    /// row is a warning.
    pub(crate) fn failed(&self, source: Source, problem: &str) {
        self.figures.failures.fetch_add(1, Relaxed);
        let kept = self.current().len();
        if self.figures.is_fresh.swap(false, Relaxed) {
            tracing::warn!(proxy = &*self.proxy, %source, problem, kept, "no new list of endpoints: the last good one stays");
        } else {
            tracing::debug!(proxy = &*self.proxy, %source, problem, kept, "no new list of endpoints yet");
        }
    }

    fn write(&self, list: &[Found]) {
        let Some(path) = &self.save else { return };
        if let Err(error) = list::write(path, list) {
            self.figures.save_failures.fetch_add(1, Relaxed);
            tracing::warn!(
                proxy = &*self.proxy,
                file = %path.display(),
                %error,
                "the list of endpoints cannot be saved, and a restart would begin with an older one: let this user write \
                 to the file's folder"
            );
        }
    }
}

/// Puts a list in order, each backend once, in its best place.
fn in_order(mut list: Vec<Found>) -> Vec<Found> {
    list.sort_by_cached_key(|found| (found.priority, found.backend.to_string(), u16::MAX - found.weight));
    let mut seen = std::collections::HashSet::new();
    list.retain(|found| seen.insert(found.backend.clone()));
    list
}

/// Running discovery. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Discovery {
    list: watch::Receiver<Discovered>,
    figures: Arc<Figures>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Discovery {
    /// Starts the sources. `seeds` are the named backends: with those of the saved list they are the list until a source
    /// has spoken, and are asked for it where that is how it is had.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is broken, if it is the source; when no thread can be started.
    pub(crate) fn start(
        proxy: &str,
        config: &DiscoveryConfig,
        seeds: &[BackendAddress],
        own: &[ListenAddress],
    ) -> Result<Self, DiscoverError> {
        let looked = config.file.as_deref().map(file::look);
        let initial = initial(config, seeds)?;
        let feed = Feed::new(proxy, config, initial.clone(), own.to_vec());
        let (list, figures) = (feed.sender.subscribe(), Arc::clone(&feed.figures));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let config = config.clone();
        let thread = std::thread::Builder::new().name("proxy-discovery".to_owned()).spawn(move || {
            let file = async {
                if let (Some(path), Some(looked)) = (&config.file, looked) {
                    file::follow(path, looked, &feed).await;
                }
            };
            let dns = async {
                if let Some(dns) = &config.dns {
                    dns::follow(dns, &feed).await;
                }
            };
            let kube = async {
                #[cfg(feature = "kubernetes")]
                if let Some(kube) = &config.kube {
                    kube::follow(kube, &feed, &initial).await;
                }
            };
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = async { tokio::join!(file, dns, kube) } => {}
                }
            });
        })?;
        Ok(Self { list, figures, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns the list as it is now, and what tells when it changes.
    pub(crate) fn list(&self) -> watch::Receiver<Discovered> {
        self.list.clone()
    }

    /// Returns the backends that are known.
    pub(crate) fn known(&self) -> Vec<BackendAddress> {
        self.list.borrow().endpoints.iter().map(|found| found.backend.clone()).collect()
    }

    /// Returns the figures.
    pub(crate) fn stats(&self) -> DiscoveryStats {
        let (known, figures) = (self.list.borrow(), &self.figures);
        DiscoveryStats {
            source: known.source,
            backends: known.endpoints.len(),
            lists: figures.lists.load(Relaxed),
            changes: figures.changes.load(Acquire),
            failures: figures.failures.load(Relaxed),
            empty: figures.empty.load(Relaxed),
            save_failures: figures.save_failures.load(Relaxed),
            is_fresh: figures.is_fresh.load(Relaxed),
            listed_at: *figures.listed_at.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks for endpoints had panicked");
        }
    }
}

/// Why discovery could not begin.
#[derive(Debug)]
pub(crate) enum DiscoverError {
    /// The file is the source, and there is no list in it.
    File(String),
    /// The system has no thread, or no descriptor, for it.
    System(io::Error),
}

impl fmt::Display for DiscoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(problem) => f.write_str(problem),
            Self::System(error) => write!(f, "cannot start discovery: {error}"),
        }
    }
}

impl From<io::Error> for DiscoverError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Makes the list that there is before any source has spoken: the named backends, and those of the file.
fn initial(config: &DiscoveryConfig, seeds: &[BackendAddress]) -> Result<Vec<Found>, DiscoverError> {
    let mut all: Vec<Found> = seeds.iter().cloned().map(Found::plain).collect();
    if let Some(path) = &config.file {
        match list::read(path) {
            Ok(list) if list.is_empty() && all.is_empty() && !config.allow_empty => {
                let place = path.display();
                return Err(DiscoverError::File(format!(
                    "{place}: has no endpoint in it: put one there, as in {{\"endpoints\": [\"192.0.2.1:6443\"]}}"
                )));
            }
            Ok(list) => all.extend(list),
            // With named ones there is something to begin with.
            Err(problem) if seeds.is_empty() => return Err(DiscoverError::File(problem)),
            Err(problem) => tracing::warn!(problem, "begins without the list of this file"),
        }
    } else if let Some(path) = &config.save
        && path.exists()
    {
        match list::read(path) {
            Ok(list) => all.extend(list),
            Err(problem) => tracing::warn!(problem, "begins without the saved list"),
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests;

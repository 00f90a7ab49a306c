//! The backends that all workers share: the roster, and what keeps it going.
//!
//! The roster has one lock, which failures, checks and changes take; who picks a backend reads a list of its own worker,
//! and looks at one number that says whether there is a newer one.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use forebay::{AcquireError, Failure, TicketError, sys};
use forebay_core::{Blame, Cause, Instant};
use forebay_proxy_core::roster::{
    Action, Active, Backend, BackendId, Balance, EmptyList, Event, Picker, Roster, RosterConfig,
    RosterConfigError, Standing, Tried,
};
use tokio::sync::{Notify, broadcast};

use crate::settings::{BackendAddress, BalanceName};

/// A backend as workers see it.
pub(crate) type Known = Arc<Backend<BackendAddress>>;

/// Partings that a worker has not heard of yet: more of them, and it looks at the whole list instead.
const PARTINGS_MAX: usize = 1024;

/// Connections to a backend are to end: those that nobody uses, and those in use if `active` says so.
#[derive(Clone, Debug)]
pub(crate) struct Parting {
    /// The backend.
    pub(crate) backend: Known,
    /// What becomes of connections in use.
    pub(crate) active: Active,
}

/// The backends.
pub(crate) struct Backends {
    name: Box<str>,
    roster: Mutex<Roster<BackendAddress>>,
    version: AtomicU64,
    /// Wakes who keeps time, when something may be due earlier.
    wake: Notify,
    partings: broadcast::Sender<Parting>,
}

impl Backends {
    /// Makes a roster of these backends.
    ///
    /// # Errors
    ///
    /// The first value of `config` that cannot be.
    pub(crate) fn new(
        name: &str,
        config: RosterConfig,
        list: &[(BackendAddress, u32)],
        now: Instant,
        seed: u64,
    ) -> Result<Self, RosterConfigError> {
        let mut roster = Roster::new(config, seed)?;
        // An empty list to begin with is what discovery is there for.
        let _ = roster.replace(now, list.iter().cloned());
        Ok(Self {
            name: name.into(),
            version: AtomicU64::new(roster.version()),
            roster: Mutex::new(roster),
            wake: Notify::new(),
            partings: broadcast::Sender::new(PARTINGS_MAX),
        })
    }

    /// Takes a new list. Backends that stay, and connections to them, are not touched.
    ///
    /// # Errors
    ///
    /// The list is empty: the one before it stays.
    pub(crate) fn replace(&self, list: &[(BackendAddress, u32)]) -> Result<(), EmptyList> {
        let result = self.with(|roster, now| roster.replace(now, list.iter().cloned()).map(drop));
        self.wake.notify_one();
        result
    }

    /// Notes that a backend could not be reached, or failed. Only what is the backend's fault counts.
    pub(crate) fn note_failed(&self, id: BackendId, cause: Cause) {
        if cause.blame() == Blame::Upstream {
            self.with(|roster, now| roster.handle_failed(now, id, cause));
            self.wake.notify_one();
        }
    }

    /// Notes that there was no connection to a backend for a client. What this machine lacks, a limit of this proxy, or a
    /// place in line that was waited for in vain, is not the backend's fault; that it does not answer dials is, however
    /// many it has answered.
    pub(crate) fn note_unreached(&self, id: BackendId, error: &AcquireError) {
        let dials_hang = match error.failure() {
            Failure::Waited(TicketError::Timeout { connecting: 1.., last, .. }) => {
                Some(last.unwrap_or(Cause::Timeout))
            }
            _ => None,
        };
        if let Some(cause) = error.cause().or(dials_hang) {
            self.note_failed(id, cause);
        }
    }

    /// Returns the list of this moment and its number.
    pub(crate) fn list(&self) -> (Arc<[Known]>, u64) {
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        (roster.list(), roster.version())
    }

    /// Returns the number of the list of this moment.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Returns what tells which connections are to end.
    pub(crate) fn partings(&self) -> broadcast::Receiver<Parting> {
        self.partings.subscribe()
    }

    /// Whether a client would be sent somewhere with some hope.
    pub(crate) fn is_ready(&self) -> bool {
        let usable = |backend: &Known| matches!(backend.standing(), Standing::Usable | Standing::Warming);
        self.list().0.iter().any(usable)
    }

    /// Keeps time for the roster, until it is dropped: runs the checks that are due, by `check`.
    pub(crate) async fn keep<F: Future<Output = Result<(), Cause>> + 'static>(
        self: Arc<Self>,
        check: impl Fn(Known) -> F,
    ) {
        let check = std::rc::Rc::new(check);
        loop {
            let due = self.with(|roster, now| {
                roster.handle_timeout(now);
                roster.next_timeout()
            });
            for backend in self.act() {
                let (this, id, check) = (Arc::clone(&self), backend.id(), check(backend));
                tokio::task::spawn_local(async move {
                    let result = check.await;
                    this.with(|roster, now| roster.handle_checked(now, id, result));
                    this.wake.notify_one();
                });
            }
            let pause = due.saturating_duration_since(sys::now());
            tokio::select! {
                () = tokio::time::sleep(pause), if due != Instant::MAX => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// Changes the roster, and tells everybody of it.
    fn with<T>(&self, change: impl FnOnce(&mut Roster<BackendAddress>, Instant) -> T) -> T {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut roster, sys::now());
        self.version.store(roster.version(), Ordering::Release);
        let mut events = Vec::new();
        while let Some(event) = roster.poll_event() {
            events.push(event);
        }
        drop(roster);
        events.iter().for_each(|event| self.tell(event));
        result
    }

    /// Does what the roster says is to be done. Returns who is to be checked.
    fn act(&self) -> Vec<Known> {
        let mut checks = Vec::new();
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(action) = roster.poll_action() {
            match action {
                Action::Check(backend) => checks.push(backend),
                Action::Purge { backend, active, why: _ } => {
                    // Without a worker there is nothing to end.
                    let _ = self.partings.send(Parting { backend, active });
                }
            }
        }
        checks
    }

    fn tell(&self, event: &Event<BackendAddress>) {
        let proxy = &*self.name;
        match event {
            Event::Unhealthy { backend, cause } => {
                tracing::warn!(proxy, backend = %backend.key(), cause = cause.as_str(), "deactivated endpoint: its checks fail");
            }
            Event::Healthy { backend } => {
                tracing::info!(proxy, backend = %backend.key(), "activated endpoint")
            }
            Event::Ejected { backend, failures, cause, lasting } => {
                tracing::warn!(proxy, backend = %backend.key(), failures, cause = cause.as_str(), ?lasting, "deactivated endpoint for a while: it failed too often");
            }
            event => tracing::debug!(proxy, ?event, "backends"),
        }
    }
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backends").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One worker's sight of the backends.
pub(crate) struct View {
    list: Arc<[Known]>,
    version: u64,
    picker: Picker,
}

impl View {
    pub(crate) fn new(backends: &Backends, balance: BalanceName, seed: u64) -> Self {
        let (list, version) = backends.list();
        Self { list, version, picker: Picker::new(balance.into(), seed) }
    }

    /// Takes the list of this moment. Returns it if it is a new one.
    pub(crate) fn refresh(&mut self, backends: &Backends) -> Option<Arc<[Known]>> {
        if backends.version() == self.version {
            return None;
        }
        (self.list, self.version) = backends.list();
        Some(Arc::clone(&self.list))
    }

    /// Returns the backends.
    pub(crate) fn list(&self) -> &[Known] {
        &self.list
    }

    /// Chooses a backend that was not tried. `hash` stands for the client. `None` if all were tried.
    pub(crate) fn pick(&mut self, hash: u64, tried: &Tried) -> Option<Known> {
        let place = self.picker.pick(sys::coarse_now(), &self.list, hash, tried)?;
        Some(Arc::clone(&self.list[place]))
    }
}

impl From<BalanceName> for Balance {
    fn from(name: BalanceName) -> Self {
        match name {
            BalanceName::RoundRobin => Self::RoundRobin,
            BalanceName::Random => Self::Random,
            BalanceName::LeastConnections => Self::LeastConnections,
            BalanceName::P2c => Self::P2c,
            BalanceName::SourceHash => Self::SourceHash,
            BalanceName::FirstHealthy => Self::FirstHealthy,
        }
    }
}

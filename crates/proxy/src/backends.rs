//! The backends that all workers share.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use forebay::{AcquireError, Connector, Failure, Lease, Mode, Pool};
use forebay_core::{Instant, Refusal, Removal};
use tokio::sync::watch;

use crate::discover::Discovered;
use crate::settings::{BackendAddress, BalanceName, ProxyConfig};

/// The backends.
#[derive(Debug)]
pub(crate) struct Backends {
    list: watch::Receiver<Discovered>,
    balance: BalanceName,
    turn: AtomicUsize,
}

impl Backends {
    /// Makes those of this list, and of what it becomes.
    pub(crate) fn new(
        config: &ProxyConfig,
        list: watch::Receiver<Discovered>,
        _now: Instant,
        seed: u64,
    ) -> Self {
        Self { list, balance: config.balance, turn: AtomicUsize::new(seed as usize >> 1) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.borrow().endpoints.is_empty()
    }

    /// Returns the list, and what tells when it changes.
    pub(crate) fn list(&self) -> watch::Receiver<Discovered> {
        self.list.clone()
    }

    /// Returns one that was not tried yet.
    pub(crate) fn pick(&self, tried: &[BackendAddress]) -> Option<BackendAddress> {
        let list = Arc::clone(&self.list.borrow().endpoints);
        let list = Discovered::in_use(&list, self.balance);
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..list.len())
            .map(|n| &list[(turn + n) % list.len()].backend)
            .find(|backend| !tried.contains(backend))
            .cloned()
    }
}

/// Keeps the endpoints of a worker's pool those of the list. Connections in use to one that is gone may finish.
pub(crate) async fn follow<C, M>(pool: Pool<C, M>, mut list: watch::Receiver<Discovered>)
where
    C: Connector<Endpoint = BackendAddress>,
    M: Mode<C::Conn>,
{
    let mut had: HashSet<BackendAddress> = HashSet::new();
    loop {
        let now: HashSet<_> =
            list.borrow_and_update().endpoints.iter().map(|found| found.backend.clone()).collect();
        for gone in had.difference(&now) {
            pool.remove_endpoint(gone, Removal::Drain);
        }
        for new in now.difference(&had) {
            pool.add_endpoint(new.clone());
        }
        had = now;
        // Nobody is left who could change it.
        if list.changed().await.is_err() {
            return;
        }
    }
}

/// Takes a connection to a backend of the list, which may be newer than the pool's endpoints.
pub(crate) async fn acquire_at<C, M>(
    pool: &Pool<C, M>,
    backend: &BackendAddress,
    until: std::time::Instant,
) -> Result<Lease<C, M>, AcquireError>
where
    C: Connector<Endpoint = BackendAddress>,
    M: Mode<C::Conn>,
{
    match pool.acquire_at_until(backend, until).await {
        Err(error) if error.failure() == Failure::Refused(Refusal::NoEndpoint) => {
            pool.add_endpoint(backend.clone());
            pool.acquire_at_until(backend, until).await
        }
        acquired => acquired,
    }
}

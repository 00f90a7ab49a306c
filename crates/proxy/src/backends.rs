//! The backends that all workers share.

use std::sync::atomic::{AtomicUsize, Ordering};

use forebay_core::Instant;

use crate::settings::{BackendAddress, ProxyConfig};

/// The backends.
#[derive(Debug)]
pub(crate) struct Backends {
    list: Vec<BackendAddress>,
    turn: AtomicUsize,
}

impl Backends {
    pub(crate) fn new(config: &ProxyConfig, _now: Instant, seed: u64) -> Self {
        Self { list: config.backends.clone(), turn: AtomicUsize::new(seed as usize >> 1) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns one that was not tried yet.
    pub(crate) fn pick(&self, tried: &[BackendAddress]) -> Option<&BackendAddress> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (0..self.list.len())
            .map(|n| &self.list[(turn + n) % self.list.len()])
            .find(|backend| !tried.contains(backend))
    }
}

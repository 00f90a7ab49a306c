//! Dialling ahead: for each backend, as many spares as the rate of new clients asks for.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use forebay::{Config, Pool, sys};
use forebay_core::Instant;
use forebay_proxy_core::spares::Target;
use tokio::sync::Notify;

use super::connector::BackendConnector;
use crate::settings::{BackendAddress, SpareSettings};

/// How often it is looked whether fewer spares are wanted, at most.
const LOOK_MIN: Duration = Duration::from_millis(50);

/// How long dials took, by the connector, which may be on any thread.
pub(super) type Dialled = Arc<Mutex<Vec<(BackendAddress, Duration)>>>;

/// The spares of one worker.
pub(super) struct Spares {
    max: u32,
    linger: Duration,
    dialled: Dialled,
    state: Rc<State>,
}

#[derive(Default)]
struct State {
    rows: RefCell<HashMap<BackendAddress, Row>>,
    /// Wakes who looks whether fewer are wanted.
    wake: Notify,
}

struct Row {
    target: Target,
    /// What the pool was told.
    told: u32,
}

impl Spares {
    /// `workers` share what is allowed.
    pub(super) fn new(settings: SpareSettings, workers: usize, dialled: Dialled) -> Self {
        let max = settings.max.div_ceil(u32::try_from(workers).unwrap_or(u32::MAX).max(1));
        Self { max, linger: settings.linger.0, dialled, state: Rc::default() }
    }

    /// Notes a client, and dials more if that is wanted.
    pub(super) fn note_arrival(
        &self,
        pool: &Pool<BackendConnector>,
        base: Config,
        backend: &BackendAddress,
        found_spare: bool,
    ) {
        let now = sys::now();
        let mut rows = self.state.rows.borrow_mut();
        for (backend, took) in self.dialled.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if let Some(row) = rows.get_mut(&backend) {
                row.target.note_dialled(took);
            }
        }
        if !rows.contains_key(backend) {
            rows.insert(backend.clone(), Row { target: Target::new(self.max, self.linger), told: 0 });
            self.state.wake.notify_one();
        }
        if let Some(row) = rows.get_mut(backend) {
            row.target.note_arrival(now, found_spare);
            // More are dialled at once; fewer are kept only after a while.
            if row.target.wanted(now) > row.told {
                row.tell(pool, base, backend, now);
            }
        }
    }

    /// Forgets a backend, whose spares the pool has closed.
    pub(super) fn forget(&self, backend: &BackendAddress) {
        self.state.rows.borrow_mut().remove(backend);
    }

    /// Lets spares go that are not wanted any more, for as long as the worker lives.
    pub(super) fn start(&self, pool: Pool<BackendConnector>, base: Config) {
        let (state, pause) = (Rc::clone(&self.state), (self.linger / 10).max(LOOK_MIN));
        tokio::task::spawn_local(async move {
            loop {
                if state.rows.borrow().is_empty() {
                    state.wake.notified().await;
                }
                tokio::time::sleep(pause).await;
                let now = sys::now();
                state.rows.borrow_mut().retain(|backend, row| {
                    if row.target.wanted(now) != row.told {
                        row.tell(&pool, base, backend, now);
                    }
                    row.told > 0 || row.target.next_look(now).is_some()
                });
            }
        });
    }
}

impl Row {
    fn tell(&mut self, pool: &Pool<BackendConnector>, base: Config, backend: &BackendAddress, now: Instant) {
        self.told = self.target.wanted(now).min(base.connections_max);
        let config = Config { connections_min: self.told, ..base };
        // A backend that was removed meanwhile has no spares.
        if let Err(error) = pool.set_config_at(backend, config) {
            tracing::error!(%backend, %error, "spares: a policy that was checked is refused");
        }
    }
}

//! The backends of a proxy: which there are, how they are, and who serves the next client.
//!
//! A [`Roster`] has one owner. It hears of changes of the list, of checks and of failures, and says which checks are due
//! and whose connections are to end. What it thinks of a backend stands in the [`Backend`] itself, in atomics that
//! workers read without a lock: each has a [`Picker`], which is all that a new client or request touches.
//!
//! ```text
//! replace · handle_checked · handle_failed · handle_timeout ──▶ Roster ──▶ poll_action · poll_event · next_timeout
//!                                                                  │ list(), version()
//!                                                                  ▼
//!                       Picker::pick ──▶ [Arc<Backend>] ◀── enter · note_good · note_latency
//! ```
//!
//! What keeps a backend from being chosen, and what ends it:
//!
//! | state | begins with | ends with |
//! |---|---|---|
//! | unhealthy | `fall` failed checks in a row | `rise` good ones |
//! | ejected | `failures` failures in a row of what clients sent | its time, or a good check that began after it |
//! | warming | a return, or coming to a list that was already in use | `slow_start`; meanwhile it gets less |
//!
//! A backend that is unhealthy or ejected is a last resort: it is picked for who has tried all others, or if there are
//! no others (panic).

mod backend;
mod config;
mod event;
mod pick;
mod row;

#[cfg(test)]
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;

use forebay_core::{Blame, Cause, Health, Instant, Rng};

pub use backend::{Backend, BackendId, Standing, Visit};
pub use config::{Active, CheckConfig, EjectionConfig, RosterConfig, RosterConfigError};
pub use event::{Counters, Event};
pub use pick::{Balance, Picker, Tried};

use row::Row;

/// Events that wait to be taken; the oldest go first when nobody takes them.
const EVENTS_MAX: usize = 1024;

/// How far apart two checks of a backend are at least that failures asked for: of a check's interval, this part.
const SOON: u32 = 10;

/// What the shell is to do.
#[derive(Debug)]
pub enum Action<E> {
    /// Check the backend now, and tell the result with [`Roster::handle_checked`], whatever it is.
    Check(Arc<Backend<E>>),
    /// Connections to the backend that nobody uses, spares too, are to be closed; those in use as `active` says.
    Purge {
        /// The backend.
        backend: Arc<Backend<E>>,
        /// What is to become of connections in use.
        active: Active,
        /// Why.
        why: Parting,
    },
}

/// Why connections to a backend are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parting {
    /// It is no longer on the list, and will not come back under this id.
    Removed,
    /// The active checks say that it is unhealthy.
    Unhealthy,
    /// Too many failures in a row.
    Ejected,
}

/// What a new list changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Backends that were not there before.
    pub added: usize,
    /// Backends that are gone.
    pub removed: usize,
    /// Entries that named a backend which an earlier entry had named.
    pub merged: usize,
}

/// An empty list was refused; the one before it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptyList;

impl Display for EmptyList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the new list of backends is empty: the one before it stays")
    }
}

impl std::error::Error for EmptyList {}

/// The backends of a proxy and what is thought of each.
///
/// `E` is the key of an endpoint: everything that shapes a connection to it, compared in full. Its `Hash` decides which
/// clients go there with [`Balance::SourceHash`], its `Display` is what logs show.
#[derive(Debug)]
pub struct Roster<E> {
    config: RosterConfig,
    rows: Vec<Row<E>>,
    list: Arc<[Arc<Backend<E>>]>,
    version: u64,
    next_id: u64,
    has_panic: bool,
    actions: VecDeque<Action<E>>,
    events: VecDeque<Event<E>>,
    counters: Counters,
    rng: Rng,
}

impl<E: Clone + Eq + Hash + Display> Roster<E> {
    /// Makes a roster without backends.
    ///
    /// # Errors
    ///
    /// The first value of `config` that cannot be.
    pub fn new(config: RosterConfig, seed: u64) -> Result<Self, RosterConfigError> {
        config.validate()?;
        Ok(Self {
            config,
            rows: Vec::new(),
            list: Arc::new([]),
            version: 0,
            next_id: 0,
            has_panic: false,
            actions: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
            rng: Rng::new(seed),
        })
    }

    /// Returns the backends in the order of the list that was last taken.
    pub fn list(&self) -> Arc<[Arc<Backend<E>>]> {
        Arc::clone(&self.list)
    }

    /// Returns a number that grows whenever [`Roster::list`] returns something new.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// Returns what has happened since the roster was made.
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns whether no backend is usable, so that health is ignored.
    pub const fn is_panicking(&self) -> bool {
        self.has_panic
    }

    /// Takes a new list, all of it at once. What is known of backends that stay is kept. Entries are keys with shares:
    /// how much of the traffic a backend gets, compared with the others; zero counts as one. Entries with equal keys
    /// are merged; the larger share counts.
    ///
    /// # Errors
    ///
    /// The list is empty, and the configuration does not allow that. Nothing was changed.
    pub fn replace(
        &mut self,
        now: Instant,
        entries: impl IntoIterator<Item = (E, u32)>,
    ) -> Result<Changes, EmptyList> {
        let mut changes = Changes::default();
        let mut places: HashMap<E, usize> = HashMap::new();
        let mut wanted: Vec<(E, u32)> = Vec::new();
        for (key, share) in entries {
            let share = share.clamp(1, backend::SHARE_MAX);
            if let Some(place) = places.get(&key) {
                let known = &mut wanted[*place].1;
                *known = (*known).max(share);
                changes.merged += 1;
            } else {
                places.insert(key.clone(), wanted.len());
                wanted.push((key, share));
            }
        }
        if wanted.is_empty() && !self.config.allow_empty {
            self.counters.empty_lists += 1;
            return Err(EmptyList);
        }

        // At the process's start there is nothing that newcomers should be gentler than.
        let is_first = self.rows.is_empty();
        let mut old: Vec<Option<Row<E>>> = std::mem::take(&mut self.rows).into_iter().map(Some).collect();
        let old_places: HashMap<E, usize> = old
            .iter()
            .enumerate()
            .filter_map(|(i, row)| Some((row.as_ref()?.backend.key().clone(), i)))
            .collect();
        for (key, share) in wanted {
            let known = old_places.get(&key).and_then(|place| old[*place].take());
            let row = known.unwrap_or_else(|| {
                changes.added += 1;
                self.newcomer(now, key, is_first)
            });
            row.backend.set_share(share);
            self.rows.push(row);
        }
        for row in old.into_iter().flatten() {
            changes.removed += 1;
            self.part(row.backend, self.config.on_removed, Parting::Removed);
        }
        if changes.added + changes.removed > 0 || self.rows.len() != self.list.len() || self.is_reordered() {
            self.version += 1;
            self.list = self.rows.iter().map(|row| Arc::clone(&row.backend)).collect();
        }
        self.keep_within_bounds(now);
        if let [only] = &mut self.rows[..] {
            only.stop_warming();
        }
        self.rows.iter().for_each(|row| row.publish());
        self.judge_panic();
        Ok(changes)
    }

    fn is_reordered(&self) -> bool {
        self.rows.iter().zip(self.list.iter()).any(|(row, backend)| row.backend.id() != backend.id())
    }

    fn newcomer(&mut self, now: Instant, key: E, is_first: bool) -> Row<E> {
        let backend = Arc::new(Backend::new(BackendId(self.next_id), key));
        self.next_id += 1;
        self.tell(Event::Added { backend: Arc::clone(&backend) });
        let mut row = Row::new(backend);
        if let Some(checks) = &self.config.checks {
            // The first check comes soon, spread out where there are many.
            row.plan_check(now + self.rng.up_to(checks.interval / 5));
        }
        if !is_first {
            row.warm(now, &self.config);
        }
        row
    }

    /// Takes another policy. Verdicts, ejections and the list stay.
    ///
    /// # Errors
    ///
    /// The first value of `config` that cannot be. Nothing was changed.
    pub fn configure(&mut self, now: Instant, config: RosterConfig) -> Result<(), RosterConfigError> {
        config.validate()?;
        self.config = config;
        for row in &mut self.rows {
            match &self.config.checks {
                Some(checks) => row.plan_check(now + self.rng.up_to(checks.interval / 5)),
                // Nobody is left who could take the verdict back.
                None => row.forget_checks(),
            }
        }
        self.keep_within_bounds(now);
        self.rows.iter().for_each(|row| row.publish());
        self.judge_panic();
        Ok(())
    }

    /// Does what is due: checks, the ends of ejections, growing weights.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut returned = Vec::new();
        for row in &mut self.rows {
            if row.ejected_until().is_some_and(|end| end <= now) {
                returned.push(row.backend.id());
            }
            if let Some(checks) = &self.config.checks
                && row.wants_check(now)
            {
                let next = now + self.rng.between(checks.interval * 4 / 5, checks.interval * 6 / 5);
                row.begin_check(now, next);
                self.counters.checks_begun += 1;
                self.actions.push_back(Action::Check(Arc::clone(&row.backend)));
            }
            if row.grow(now, &self.config) {
                row.publish();
            }
        }
        for id in returned {
            self.readmit(now, id, false);
        }
    }

    /// Returns when [`Roster::handle_timeout`] is to be called next; [`Instant::MAX`] if there is nothing to wait for.
    pub fn next_timeout(&self) -> Instant {
        self.rows.iter().map(|row| row.next_timeout(&self.config)).min().unwrap_or(Instant::MAX)
    }

    /// Takes the result of a check. Of a backend that is gone it is ignored; so is one that failed through the fault of
    /// this machine or of nobody, but it is counted.
    pub fn handle_checked(&mut self, now: Instant, id: BackendId, result: Result<(), Cause>) {
        let Some(checks) = self.config.checks else { return };
        let is_alone = self.rows.len() == 1;
        let Some(row) = self.rows.iter_mut().find(|row| row.backend.id() == id) else { return };
        let Some(begun) = row.finish_check(now, checks.interval / SOON) else { return };
        match result {
            Ok(()) => {
                self.counters.checks_good += 1;
                let became_healthy = row.note_check(true, &checks);
                let proves_return = row.ejected_since().is_some_and(|since| since <= begun);
                if became_healthy {
                    row.backend.clear_failures();
                    if !is_alone {
                        row.warm(now, &self.config);
                    }
                    let event = Event::Healthy { backend: Arc::clone(&row.backend) };
                    self.counters.recoveries += 1;
                    self.tell(event);
                }
                if proves_return {
                    self.readmit(now, id, true);
                }
            }
            Err(cause) if cause.blame() == Blame::Upstream => {
                self.counters.checks_bad += 1;
                let became_unhealthy = row.note_check(false, &checks);
                if row.health() == Health::Healthy {
                    // One more failure may settle it: ask again soon.
                    row.plan_check(now + checks.interval / SOON);
                }
                if became_unhealthy {
                    let backend = Arc::clone(&row.backend);
                    row.stop_warming();
                    self.counters.failures_of_health += 1;
                    self.tell(Event::Unhealthy { backend: Arc::clone(&backend), cause });
                    self.part(backend, self.config.on_unhealthy, Parting::Unhealthy);
                    self.keep_within_bounds(now);
                }
            }
            Err(_) => self.counters.checks_local += 1,
        }
        self.publish(id);
    }

    /// Takes a failure that a client's connection or request met at a backend. Only those that the upstream is to blame
    /// for count. Enough of them in a row eject the backend; one that smells of a dead host asks for a check at once.
    pub fn handle_failed(&mut self, now: Instant, id: BackendId, cause: Cause) {
        if cause.blame() != Blame::Upstream {
            return;
        }
        let Some(place) = self.rows.iter().position(|row| row.backend.id() == id) else { return };
        self.counters.failures += 1;
        let row = &mut self.rows[place];
        let failures = row.backend.note_bad();
        if let Some(checks) = &self.config.checks
            && matches!(cause, Cause::Refused | Cause::Unreachable | Cause::Timeout)
            && row.health() == Health::Healthy
        {
            row.hasten_check(now, checks.interval / SOON);
        }
        let limit = self.config.ejection.failures;
        if limit == 0 || failures < limit || !row.is_usable() {
            return;
        }
        if !self.may_eject(place) {
            if failures == limit {
                self.counters.ejections_refused += 1;
                let backend = Arc::clone(&self.rows[place].backend);
                self.tell(Event::Kept { backend, failures, cause });
            }
            return;
        }
        let row = &mut self.rows[place];
        let lasting = row.eject(now, &self.config.ejection);
        let backend = Arc::clone(&row.backend);
        self.counters.ejections += 1;
        self.tell(Event::Ejected { backend: Arc::clone(&backend), failures, cause, lasting });
        self.part(backend, Active::Keep, Parting::Ejected);
        self.publish(id);
    }

    /// Whether one more may be ejected, and this one of all.
    fn may_eject(&self, place: usize) -> bool {
        let ejected = self.rows.iter().filter(|row| row.is_ejected()).count();
        let others = self.rows.iter().enumerate().filter(|(i, row)| *i != place && row.is_usable()).count();
        others > 0 && ejected < self.ejected_max()
    }

    /// How many may be ejected at once: the given part of all, rounded down, but one unless the part is zero.
    fn ejected_max(&self) -> usize {
        match self.config.ejection.max_percent {
            0 => 0,
            percent => {
                (self.rows.len() * percent as usize / 100).max(1).min(self.rows.len().saturating_sub(1))
            }
        }
    }

    /// Ends ejections that a shorter list or a failed check made too many.
    fn keep_within_bounds(&mut self, now: Instant) {
        loop {
            let ejected = self.rows.iter().filter(|row| row.is_ejected()).count();
            let is_last_resort = !self.rows.iter().any(Row::is_usable);
            // Who would be usable but for its ejection helps now; else the one whose time is nearly up.
            let Some(row) = self
                .rows
                .iter()
                .filter(|row| row.is_ejected())
                .min_by_key(|row| (row.health() == Health::Unhealthy, row.ejected_until()))
            else {
                return;
            };
            let helps = is_last_resort && row.health() == Health::Healthy;
            if !helps && ejected <= self.ejected_max() {
                return;
            }
            self.readmit(now, row.backend.id(), false);
        }
    }

    fn readmit(&mut self, now: Instant, id: BackendId, is_proved: bool) {
        let Some(row) = self.rows.iter_mut().find(|row| row.backend.id() == id) else { return };
        if !row.is_ejected() {
            return;
        }
        row.end_ejection(now, is_proved, &self.config);
        let backend = Arc::clone(&row.backend);
        self.counters.returns += 1;
        self.tell(Event::Returned { backend, by_check: is_proved });
        self.publish(id);
    }

    fn publish(&mut self, id: BackendId) {
        if let Some(row) = self.rows.iter().find(|row| row.backend.id() == id) {
            row.publish();
        }
        self.judge_panic();
    }

    fn judge_panic(&mut self) {
        let panics = !self.rows.is_empty() && !self.rows.iter().any(Row::is_usable);
        if panics == self.has_panic {
            return;
        }
        self.has_panic = panics;
        if panics {
            self.counters.panics += 1;
            self.tell(Event::Panic { backends: self.rows.len() });
        } else {
            self.tell(Event::PanicOver);
        }
    }

    fn part(&mut self, backend: Arc<Backend<E>>, active: Active, why: Parting) {
        if why == Parting::Removed {
            backend.leave();
            self.tell(Event::Removed { backend: Arc::clone(&backend) });
        }
        self.actions.push_back(Action::Purge { backend, active, why });
    }

    fn tell(&mut self, event: Event<E>) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
            self.counters.events_lost += 1;
        }
        self.events.push_back(event);
    }

    /// Takes the next thing to do; to be called until there is none, after every other call.
    pub fn poll_action(&mut self) -> Option<Action<E>> {
        self.actions.pop_front()
    }

    /// Takes the next thing worth a line in a log.
    pub fn poll_event(&mut self) -> Option<Event<E>> {
        self.events.pop_front()
    }
}

//! What one shard has at hand: connections while there are enough, waiters while there are not.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use forebay_core::{Config, Histogram, IdleOrder, Instant};

use super::cell::{self, Cell};
use super::mode::{Mode, Terms};
use super::sync::Arc;
use super::{HUNGRY, LOCAL, news};

/// Links in one stash at most. More would only hide idle connections from the engine.
const LINKS_MAX: u32 = 64;

/// Waiters in one line at most; the next one stands in the engine's line.
pub(super) const WAITERS_MAX: usize = 256;

/// Of how many waits in a line one is timed.
const SAMPLE: u64 = 8;

/// Who has less time than this stands in the engine's line, which knows deadlines. Several times longer than anybody
/// stands in a shard's.
const PATIENCE: Duration = Duration::from_millis(200);

/// See the module's page. At most one of `links` and `line` has something in it.
pub(super) struct Shard<H, D> {
    /// The newest last.
    links: Vec<H>,
    links_max: usize,
    /// Acquires served from `links`.
    hits: u64,
    visits: u32,
    /// Whether the driver knows that `links` need visits.
    visited: bool,
    /// The oldest first.
    line: VecDeque<Waiter<H, D>>,
    /// Whether the driver knows that `line` needs visits.
    watched: bool,
    /// When the driver came last.
    last_visit: Instant,
    /// Acquires served from `line`.
    handed: u64,
    /// How long they had waited: one in [`SAMPLE`] stands for all, as reading the clock costs as much as the rest.
    waits: Histogram,
    cells: VecDeque<Arc<Cell<H, D>>>,
}

/// Somebody who waits, and of whom the engine does not know.
pub(super) struct Waiter<H, D> {
    pub(super) cell: Arc<Cell<H, D>>,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

impl<H, D> Shard<H, D> {
    pub(super) fn new() -> Self {
        Self {
            links: Vec::new(),
            links_max: 0,
            hits: 0,
            visits: 0,
            visited: false,
            line: VecDeque::new(),
            watched: false,
            last_visit: Instant::ZERO,
            handed: 0,
            waits: Histogram::default(),
            cells: VecDeque::new(),
        }
    }

    /// Bounds the stash, and makes room for as many at once: a put never allocates.
    pub(super) fn set_links_max(&mut self, links_max: usize) {
        self.links_max = links_max;
        self.links.reserve_exact(links_max.saturating_sub(self.links.len()));
    }

    pub(super) const fn stashed(&self) -> usize {
        self.links.len()
    }

    pub(super) fn waiting(&self) -> usize {
        self.line.len()
    }

    pub(super) const fn hits(&self) -> u64 {
        self.hits
    }

    pub(super) const fn handed(&self) -> u64 {
        self.handed
    }

    pub(super) const fn waits(&self) -> &Histogram {
        &self.waits
    }

    /// Takes the newest link, if it was lent at this gate and its time has not come.
    pub(super) fn pop<T, M: Mode<T, Held = H>>(&mut self, gate: u64) -> Option<H> {
        let (terms, _) = M::terms(self.links.last_mut()?)?;
        if terms.gate != gate || is_old(terms) {
            return None;
        }
        terms.lend_on();
        self.hits += 1;
        self.links.pop()
    }

    /// Keeps a link, if it may be kept. Returns whether visits have to begin.
    pub(super) fn push<T, M: Mode<T, Held = H>>(&mut self, gate: u64, mut held: H) -> Result<bool, H> {
        let Some((terms, token)) = M::terms(&mut held) else { return Err(held) };
        if terms.gate != gate || terms.uses_left <= 1 || self.links.len() >= self.links_max {
            return Err(held);
        }
        terms.visit = self.visits;
        token.mark_reused();
        self.links.push(held);
        Ok(!std::mem::replace(&mut self.visited, true))
    }

    /// Puts somebody in line, if the gate and the time left allow it. Returns whether visits have to begin.
    pub(super) fn line_up(
        &mut self,
        gate: u64,
        now: Instant,
        deadline: Instant,
        waker: &Waker,
    ) -> Option<(Arc<Cell<H, D>>, bool)> {
        if gate & LOCAL == 0 || self.line.len() >= WAITERS_MAX || deadline < now + PATIENCE {
            return None;
        }
        let cell = cell::free(&mut self.cells, waker.clone());
        self.line.push_back(Waiter { cell: Arc::clone(&cell), since: now, deadline });
        Some((cell, !std::mem::replace(&mut self.watched, true)))
    }

    /// Takes somebody out of the line. Returns whether they still stood there.
    pub(super) fn cancel(&mut self, cell: &Arc<Cell<H, D>>) -> bool {
        let Some(index) = self.line.iter().position(|waiter| Arc::ptr_eq(&waiter.cell, cell)) else {
            return false;
        };
        self.cells.extend(self.line.remove(index).map(|waiter| waiter.cell));
        true
    }

    /// Since when the first in line has waited.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.line.front().map(|waiter| waiter.since)
    }

    /// Hands a link to the first in line, unless somebody in the engine's line, who came at `rival`, was earlier.
    pub(super) fn hand_over<T, M: Mode<T, Held = H>>(
        &mut self,
        gate: u64,
        rival: Instant,
        mut held: H,
        now: impl FnOnce() -> Instant,
    ) -> Result<Option<Waker>, H> {
        if gate & LOCAL == 0 || self.oldest().is_none_or(|since| since > rival) {
            return Err(held);
        }
        let Some((terms, token)) = M::terms(&mut held) else { return Err(held) };
        if terms.gate != news(gate) || terms.uses_left <= 1 || is_old(terms) {
            return Err(held);
        }
        let Some(waiter) = self.line.pop_front() else { return Err(held) };
        terms.lend_on();
        token.mark_reused();
        if self.handed.is_multiple_of(SAMPLE) {
            let waited = now().saturating_duration_since(waiter.since);
            self.waits.record_n(waited.as_nanos() as u64, SAMPLE);
        }
        self.handed += 1;
        let waker = waiter.cell.fill(Ok(held));
        self.cells.push_back(waiter.cell);
        Ok(waker)
    }

    /// Gives everything up.
    pub(super) fn recall(&mut self, links: &mut Vec<H>, waiters: &mut Vec<Waiter<H, D>>) {
        links.append(&mut self.links);
        waiters.extend(self.line.drain(..));
    }

    /// Gives up links that have stood here since before the last visit. Returns whether another visit is needed.
    pub(super) fn visit_links<T, M: Mode<T, Held = H>>(&mut self, into: &mut Vec<H>) -> bool {
        let visits = self.visits;
        let is_old = |link: &mut H| M::terms(link).is_none_or(|(terms, _)| terms.visit != visits);
        let old = self.links.iter_mut().map(is_old).take_while(|old| *old).count();
        into.extend(self.links.drain(..old));
        self.visits = visits.wrapping_add(1);
        self.visited = !self.links.is_empty();
        self.visited
    }

    /// Gives up waiters who have stood here since before the last visit. Returns whether another visit is needed.
    pub(super) fn visit_line(&mut self, now: Instant, into: &mut Vec<Waiter<H, D>>) -> bool {
        while let Some(waiter) = self.line.pop_front_if(|waiter| waiter.since <= self.last_visit) {
            into.push(waiter);
        }
        self.last_visit = now;
        self.watched = !self.line.is_empty();
        self.watched
    }
}

impl Terms {
    const fn lend_on(&mut self) {
        self.uses_left -= 1;
        self.uses += 1;
    }
}

/// Whether the engine wants the link back for its age.
fn is_old(terms: &Terms) -> bool {
    terms.retire_at != Instant::MAX && crate::sys::coarse_now() >= terms.retire_at
}

/// How many links each of `shards` stashes may keep under this policy.
pub(super) fn links_max(config: &Config, shards: usize) -> usize {
    if config.order != IdleOrder::Lifo || config.idle_max == 0 {
        // Other orders choose among all idle connections: only the engine sees them all.
        return 0;
    }
    let share = config.connections_max.min(config.idle_max) / shards as u32;
    share.clamp(1, LINKS_MAX) as usize
}

// The gate's two bits are read together: waiters stand in a shard's line only while nobody takes from a stash.
const _: () = assert!(HUNGRY & LOCAL == 0);

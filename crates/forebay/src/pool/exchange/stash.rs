//! Exclusive connections that one shard keeps at hand: a small stack.

use forebay_core::{Config, IdleOrder, Instant};

use super::mode::Mode;

/// Links in one stash at most. More would only hide idle connections from the engine.
const BOUND_MAX: u32 = 64;

/// See the module's page. Entries were put in order of time, the newest last.
#[derive(Debug)]
pub(super) struct Stash<H> {
    links: Vec<H>,
    bound: usize,
    /// Acquires served.
    hits: u64,
    visits: u32,
    /// Whether the driver knows that visits are needed.
    visited: bool,
}

impl<H> Stash<H> {
    pub(super) const fn new() -> Self {
        Self { links: Vec::new(), bound: 0, hits: 0, visits: 0, visited: false }
    }

    /// Bounds the stash, and makes room for as many at once: a put never allocates.
    pub(super) fn set_bound(&mut self, bound: usize) {
        self.bound = bound;
        self.links.reserve_exact(bound.saturating_sub(self.links.len()));
    }

    pub(super) const fn len(&self) -> usize {
        self.links.len()
    }

    pub(super) const fn hits(&self) -> u64 {
        self.hits
    }

    /// Takes the newest link, if it was lent at this gate and its time has not come.
    pub(super) fn pop<T, M: Mode<T, Held = H>>(&mut self, gate: u64) -> Option<H> {
        let (terms, _) = M::terms(self.links.last_mut()?)?;
        if terms.gate != gate
            || (terms.retire_at != Instant::MAX && crate::sys::coarse_now() >= terms.retire_at)
        {
            return None;
        }
        terms.uses_left -= 1;
        terms.uses += 1;
        self.hits += 1;
        self.links.pop()
    }

    /// Keeps a link, if it may be kept. Returns whether visits have to begin.
    pub(super) fn push<T, M: Mode<T, Held = H>>(&mut self, gate: u64, mut held: H) -> Result<bool, H> {
        let full = self.links.len() >= self.bound;
        let Some((terms, token)) = M::terms(&mut held) else { return Err(held) };
        // The last use is the engine's to lend: it then knows that the connection ends.
        if full || terms.gate != gate || terms.uses_left <= 1 {
            return Err(held);
        }
        terms.visit = self.visits;
        token.mark_reused();
        self.links.push(held);
        Ok(!std::mem::replace(&mut self.visited, true))
    }

    /// Gives everything up.
    pub(super) fn recall(&mut self, into: &mut Vec<H>) {
        into.append(&mut self.links);
    }

    /// Gives up what has stood here since before the last visit. Returns whether another visit is needed.
    pub(super) fn visit<T, M: Mode<T, Held = H>>(&mut self, into: &mut Vec<H>) -> bool {
        let visits = self.visits;
        let is_old = |link: &mut H| M::terms(link).is_none_or(|(terms, _)| terms.visit != visits);
        let old = self.links.iter_mut().map(is_old).take_while(|old| *old).count();
        into.extend(self.links.drain(..old));
        self.visits = visits.wrapping_add(1);
        self.visited = !self.links.is_empty();
        self.visited
    }
}

/// How many links one of `shards` stashes may keep under this policy.
pub(super) fn bound(config: &Config, shards: usize) -> usize {
    if config.order != IdleOrder::Lifo || config.idle_max == 0 {
        // Other orders choose among all idle connections: only the engine sees them all.
        return 0;
    }
    let share = config.connections_max.min(config.idle_max) / shards as u32;
    share.clamp(1, BOUND_MAX) as usize
}

//! Counted permission: how many connections may exist, exactly, however many engines ask.
//!
//! A [`Ledger`] is one number with a bound. Engines on different workers share ledgers, so the only
//! concurrent state of the core is here: an atomic counter that is never above its bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much room a [`Ledger`] has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Below the watermark.
    Free,
    /// Above the watermark: time to give back what stands idle.
    Tight,
    /// Nothing left.
    Exhausted,
}

/// A bounded count of permits, shared by whoever holds an `Arc` to it.
#[derive(Debug)]
pub struct Ledger {
    used: AtomicU32,
    max: AtomicU32,
    /// Permits that engines were denied while somebody waits there.
    wanted: AtomicU32,
    /// Percent of `max` from which the level is [`Level::Tight`].
    tight_percent: u32,
}

impl Ledger {
    /// Makes a ledger of `max` permits that is tight only when it is exhausted: a limit somebody chose.
    pub const fn limit(max: u32) -> Self {
        Self {
            used: AtomicU32::new(0),
            max: AtomicU32::new(max),
            wanted: AtomicU32::new(0),
            tight_percent: 100,
        }
    }

    /// Makes a ledger of `max` permits that is tight from 90 % on: a resource of the machine, of which the last
    /// part is left to others.
    pub const fn resource(max: u32) -> Self {
        Self {
            used: AtomicU32::new(0),
            max: AtomicU32::new(max),
            wanted: AtomicU32::new(0),
            tight_percent: 90,
        }
    }

    /// Takes one permit; says whether there was one.
    pub fn try_take(&self) -> bool {
        let max = self.max.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| (used < max).then_some(used + 1))
            .is_ok()
    }

    /// Gives one permit back.
    pub fn give(&self) {
        let before = self.used.fetch_sub(1, Ordering::AcqRel);
        debug_assert!(before > 0, "a permit was given back that nobody had taken");
    }

    /// Returns how many permits are taken.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns how many permits there are.
    pub fn max(&self) -> u32 {
        self.max.load(Ordering::Relaxed)
    }

    /// Changes how many permits there are. Those taken above a lowered bound stay until they are given back.
    pub fn set_max(&self, max: u32) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Returns how many permits others than those who have these `own` wants lack: what is wanted beyond the room left.
    pub(crate) fn lacking(&self, own: u32) -> u32 {
        let wanted = self.wanted.load(Ordering::Relaxed);
        // Nearly always: nobody waits for anything.
        if wanted <= own {
            return 0;
        }
        (wanted - own).saturating_sub(self.max().saturating_sub(self.used()))
    }

    /// Returns how much room is left.
    pub fn level(&self) -> Level {
        let (used, max) = (u64::from(self.used()), u64::from(self.max()));
        if used >= max {
            Level::Exhausted
        } else if used * 100 >= max * u64::from(self.tight_percent) {
            Level::Tight
        } else {
            Level::Free
        }
    }
}

/// How many permits an engine was denied while somebody waits there: told to those who share the ledger, so that they
/// give back what stands idle. Taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Want {
    ledger: Arc<Ledger>,
    n: u32,
}

impl Want {
    pub(crate) const fn new(ledger: Arc<Ledger>) -> Self {
        Self { ledger, n: 0 }
    }

    /// Wants so many, instead of those before.
    pub(crate) fn set(&mut self, n: u32) {
        if n > self.n {
            self.ledger.wanted.fetch_add(n - self.n, Ordering::Relaxed);
        } else if n < self.n {
            self.ledger.wanted.fetch_sub(self.n - n, Ordering::Relaxed);
        }
        self.n = n;
    }

    /// Returns how many permits others lack beyond those that are left.
    pub(crate) fn of_others(&self) -> u32 {
        self.ledger.lacking(self.n)
    }

    /// Whether others wait for permits, if there are any left or not.
    pub(crate) fn is_of_others(&self) -> bool {
        self.ledger.wanted.load(Ordering::Relaxed) > self.n
    }

    /// Whether anybody else has the ledger.
    pub(crate) fn has_others(&self) -> bool {
        // One is here, one in the permits of the same endpoint.
        Arc::strong_count(&self.ledger) > 2
    }
}

impl Drop for Want {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Which resource of this machine a dial needs, and where it is counted.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// File descriptors of this process.
    pub descriptors: Option<Arc<Ledger>>,
    /// Local ports for one pair of source address and destination.
    pub ports: Option<Arc<Ledger>>,
}

/// The permits that one connection needs, taken together or not at all.
#[derive(Clone, Debug)]
pub struct Permits {
    /// Connections of the pool, over all engines that serve this endpoint.
    pub connections: Arc<Ledger>,
    /// Temporary connections, over all engines that serve this endpoint.
    pub temporary: Arc<Ledger>,
    /// What this machine has.
    pub budget: Budget,
}

/// Why a permit was not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The pool is as large as it may be.
    Connections,
    /// The process is near the end of its descriptors.
    Descriptors,
    /// The machine is near the end of its local ports for this destination.
    Ports,
}

impl Permits {
    /// Makes permits for one engine alone, with no budget of the machine.
    pub fn alone(connections_max: u32, temporary_max: u32) -> Self {
        Self {
            connections: Arc::new(Ledger::limit(connections_max)),
            temporary: Arc::new(Ledger::limit(temporary_max)),
            budget: Budget::default(),
        }
    }

    /// Takes what one connection needs.
    ///
    /// `modest` is for growth that can wait: it is denied while a resource is tight, so that the last part of it
    /// goes to endpoints that have no connection at all.
    pub(crate) fn take(&self, temporary: bool, modest: bool) -> Result<(), Denied> {
        let count = self.count(temporary);
        if !count.try_take() {
            return Err(Denied::Connections);
        }
        if !take_resource(self.budget.descriptors.as_deref(), modest) {
            count.give();
            return Err(Denied::Descriptors);
        }
        if !take_resource(self.budget.ports.as_deref(), modest) {
            if let Some(descriptors) = &self.budget.descriptors {
                descriptors.give();
            }
            count.give();
            return Err(Denied::Ports);
        }
        Ok(())
    }

    /// Gives back what [`Permits::take`] took.
    pub(crate) fn give(&self, temporary: bool) {
        if let Some(ports) = &self.budget.ports {
            ports.give();
        }
        if let Some(descriptors) = &self.budget.descriptors {
            descriptors.give();
        }
        self.count(temporary).give();
    }

    /// Whether a resource of the machine (not a chosen limit) is running out.
    pub(crate) fn is_tight(&self) -> bool {
        [&self.budget.descriptors, &self.budget.ports]
            .into_iter()
            .flatten()
            .any(|ledger| ledger.level() >= Level::Tight)
    }

    fn count(&self, temporary: bool) -> &Ledger {
        if temporary { &self.temporary } else { &self.connections }
    }
}

fn take_resource(ledger: Option<&Ledger>, modest: bool) -> bool {
    let Some(ledger) = ledger else { return true };
    if modest && ledger.level() >= Level::Tight {
        return false;
    }
    ledger.try_take()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_permit_above_the_bound() {
        let ledger = Ledger::limit(2);
        assert!(ledger.try_take() && ledger.try_take() && !ledger.try_take());
        ledger.give();
        assert!(ledger.try_take());
        ledger.set_max(1);
        ledger.give();
        assert!(!ledger.try_take(), "one is still taken, and one is all there is");
        ledger.give();
        assert!(ledger.try_take());
    }

    #[test]
    fn a_resource_is_tight_before_it_is_gone() {
        let ledger = Ledger::resource(10);
        for _ in 0..9 {
            assert_eq!(ledger.level(), Level::Free);
            assert!(ledger.try_take());
        }
        assert_eq!(ledger.level(), Level::Tight);
        assert!(ledger.try_take());
        assert_eq!(ledger.level(), Level::Exhausted);
    }

    #[test]
    fn permits_are_taken_together_or_not_at_all() {
        let mut permits = Permits::alone(5, 0);
        permits.budget.descriptors = Some(Arc::new(Ledger::resource(5)));
        permits.budget.ports = Some(Arc::new(Ledger::resource(1)));
        assert_eq!(permits.take(false, false), Ok(()));
        assert_eq!(permits.take(false, false), Err(Denied::Ports));
        assert_eq!(permits.connections.used(), 1);
        assert_eq!(permits.budget.descriptors.as_ref().unwrap().used(), 1);
        permits.give(false);
        assert_eq!(permits.connections.used(), 0);
        assert_eq!(permits.take(true, false), Err(Denied::Connections));
    }

    #[test]
    fn modest_growth_leaves_the_last_part_to_others() {
        let mut permits = Permits::alone(20, 0);
        permits.budget.descriptors = Some(Arc::new(Ledger::resource(10)));
        for _ in 0..9 {
            permits.take(false, true).unwrap();
        }
        assert!(permits.is_tight());
        assert_eq!(permits.take(false, true), Err(Denied::Descriptors));
        assert_eq!(permits.take(false, false), Ok(()));
    }
}

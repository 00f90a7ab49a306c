//! Limits that several pools keep together.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use forebay_core::{Config, Ledger, Permits};

/// Limits that several pools keep together, exactly: one per worker, say, each on its own runtime. Given to each of them
/// by [`Builder::limits`](crate::Builder::limits), [`Config::connections_max`] and [`Config::temporary_max`] of an
/// endpoint hold for all of them, and what stands idle in one goes to who waits in another within moments.
///
/// When the policy changes, each pool is to be told; the limits of the one that is told last hold.
pub struct Limits<E>(Mutex<HashMap<E, Counts>>);

/// Where connections to one endpoint are counted: pooled and temporary ones. Kept by the pools that have it.
#[derive(Clone, Debug)]
struct Counts(Weak<Ledger>, Weak<Ledger>);

impl<E: Clone + Eq + Hash> Limits<E> {
    /// Makes limits that nobody has used yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(HashMap::new())))
    }

    /// Returns where connections to this endpoint are counted; the policy says how many there may be if nobody else has
    /// the endpoint.
    pub(super) fn permits(&self, endpoint: &E, config: &Config) -> Permits {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let there = counts.get(endpoint).and_then(|Counts(a, b)| Some((a.upgrade()?, b.upgrade()?)));
        let mut permits = Permits::alone(config.connections_max, config.temporary_max);
        match there {
            Some((connections, temporary)) => {
                (permits.connections, permits.temporary) = (connections, temporary)
            }
            None => {
                // Endpoints come and go; those that no pool has are forgotten here.
                counts.retain(|_, Counts(connections, _)| connections.strong_count() > 0);
                let weak = Counts(Arc::downgrade(&permits.connections), Arc::downgrade(&permits.temporary));
                counts.insert(endpoint.clone(), weak);
            }
        }
        permits
    }

    /// Returns how many connections there are to this endpoint, over all pools: those that are being made, and those
    /// that are closing, count.
    pub fn connections(&self, endpoint: &E) -> u32 {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = |ledger: &Weak<Ledger>| ledger.upgrade().map_or(0, |ledger| ledger.used());
        counts.get(endpoint).map_or(0, |Counts(connections, temporary)| used(connections) + used(temporary))
    }
}

impl<E> fmt::Debug for Limits<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Limits({} endpoints)", counts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_endpoint_has_one_count_however_many_ask() {
        let limits = Limits::new();
        let config = Config { connections_max: 3, ..Config::default() };
        let (a, b, c) = (
            limits.permits(&1, &config),
            limits.permits(&1, &Config { connections_max: 9, ..config }),
            limits.permits(&2, &config),
        );
        assert!(Arc::ptr_eq(&a.connections, &b.connections) && Arc::ptr_eq(&a.temporary, &b.temporary));
        assert!(!Arc::ptr_eq(&a.connections, &c.connections));
        assert_eq!(b.connections.max(), 3, "who came first had the say");
        assert!(a.connections.try_take() && b.connections.try_take());
        assert_eq!((limits.connections(&1), limits.connections(&2), limits.connections(&3)), (2, 0, 0));
    }

    #[test]
    fn endpoints_that_no_pool_has_are_forgotten() {
        let limits = Limits::new();
        for endpoint in 0..100 {
            drop(limits.permits(&endpoint, &Config::default()));
        }
        assert!(limits.0.lock().unwrap().len() <= 1);
    }
}

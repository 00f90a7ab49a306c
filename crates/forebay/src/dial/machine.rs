//! What this machine has for connections: descriptors, and local ports per source and destination.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use forebay_core::{Budget, Ledger};

use crate::sys::process;

/// Descriptors that pools leave to everything else: listeners, clients, files.
const DESCRIPTORS_RESERVED: u64 = 64;

/// The transports that have local ports of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP, whatever is spoken over it.
    Tcp,
    /// UDP.
    Udp,
}

/// Between which addresses a connection goes: each pair has local ports of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The transport.
    pub transport: Transport,
    /// The local address; `None`: the kernel chooses, which for one destination is always the same.
    pub local: Option<IpAddr>,
    /// The destination.
    pub remote: SocketAddr,
}

/// A budget of descriptors and local ports, for all pools that are given it.
///
/// A pool with a budget stops to grow before the kernel has to say no, closes idle connections while something runs
/// short, and lets callers wait. Without one, exhaustion shows as failed dials with
/// [`Blame::Local`](forebay_core::Blame::Local).
#[derive(Debug)]
pub struct Machine {
    descriptors: Arc<Ledger>,
    ports_max: u32,
    ports: Mutex<HashMap<Route, Weak<Ledger>>>,
}

impl Machine {
    /// Makes a budget of its own. `descriptors` is for all connections, `ports` for each [`Route`].
    pub fn new(descriptors: u32, ports: u32) -> Arc<Self> {
        Arc::new(Self {
            descriptors: Arc::new(Ledger::resource(descriptors)),
            ports_max: ports,
            ports: Mutex::new(HashMap::new()),
        })
    }

    /// Makes a budget of what this machine has now: `RLIMIT_NOFILE` less what is open and a reserve of 64, and
    /// `ip_local_port_range`.
    ///
    /// # Errors
    ///
    /// When the limits cannot be read, as without `/proc`.
    pub fn detect() -> io::Result<Arc<Self>> {
        let soft = process::descriptor_limit()?.soft;
        let taken = process::descriptors_in_use()? + DESCRIPTORS_RESERVED;
        let descriptors = u32::try_from(soft.saturating_sub(taken)).unwrap_or(u32::MAX);
        Ok(Self::new(descriptors, process::local_port_range()?.usable()))
    }

    /// Returns the one budget of this process, made by [`Machine::detect`] when it is first asked for.
    ///
    /// # Errors
    ///
    /// Those of [`Machine::detect`]; the next call tries again.
    pub fn of_process() -> io::Result<Arc<Self>> {
        static MACHINE: OnceLock<Arc<Machine>> = OnceLock::new();
        if let Some(machine) = MACHINE.get() {
            return Ok(Arc::clone(machine));
        }
        let machine = Self::detect()?;
        Ok(Arc::clone(MACHINE.get_or_init(|| machine)))
    }

    /// Returns where connections of this route are counted. Without a route they need a descriptor only.
    pub fn budget(&self, route: Option<&Route>) -> Budget {
        Budget {
            descriptors: Some(Arc::clone(&self.descriptors)),
            ports: route.map(|route| self.ports(route)),
        }
    }

    fn ports(&self, route: &Route) -> Arc<Ledger> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ledger) = ports.get(route).and_then(Weak::upgrade) {
            return ledger;
        }
        // Routes come and go with endpoints; what nobody counts in any more is forgotten here.
        ports.retain(|_, ledger| ledger.strong_count() > 0);
        let ledger = Arc::new(Ledger::resource(self.ports_max));
        ports.insert(*route, Arc::downgrade(&ledger));
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(port: u16) -> Route {
        Route { transport: Transport::Tcp, local: None, remote: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    #[test]
    fn pools_to_one_destination_share_its_ports_and_all_share_descriptors() {
        let machine = Machine::new(100, 50);
        let (a, b, c) = (
            machine.budget(Some(&route(1))),
            machine.budget(Some(&route(1))),
            machine.budget(Some(&route(2))),
        );
        let ports = |budget: &Budget| Arc::as_ptr(budget.ports.as_ref().unwrap());
        assert_eq!(ports(&a), ports(&b));
        assert_ne!(ports(&a), ports(&c));
        let descriptors = |budget: &Budget| Arc::as_ptr(budget.descriptors.as_ref().unwrap());
        assert_eq!(descriptors(&a), descriptors(&c));
        assert_eq!(a.ports.unwrap().max(), 50);
        assert!(machine.budget(None).ports.is_none());
    }

    #[test]
    fn routes_that_nobody_uses_are_forgotten() {
        let machine = Machine::new(100, 50);
        for port in 1..100 {
            drop(machine.budget(Some(&route(port))));
        }
        assert!(machine.ports.lock().unwrap().len() <= 1);
    }

    #[test]
    fn this_machine_has_descriptors_and_ports() {
        let machine = Machine::of_process().unwrap();
        assert!(machine.descriptors.max() > 0 && machine.ports_max > 0);
        assert!(Arc::ptr_eq(&machine, &Machine::of_process().unwrap()));
    }
}

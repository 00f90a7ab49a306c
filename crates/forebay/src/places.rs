//! Places for clients' connections: so many in all, so many for each client, over all workers.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

use forebay_core::Ledger;

/// The places. Touched when a connection comes and when it goes.
#[derive(Debug)]
pub struct Places {
    all: Ledger,
    per_client: u32,
    clients: Mutex<HashMap<IpAddr, u32>>,
}

/// One place, given back when dropped.
#[derive(Debug)]
pub struct Place {
    places: Arc<Places>,
    client: IpAddr,
}

impl Places {
    /// So many for all clients, and so many for each.
    pub fn new(all: u32, per_client: u32) -> Self {
        Self { all: Ledger::limit(all), per_client, clients: Mutex::default() }
    }

    /// Whether there is none left for anybody.
    pub fn is_full(&self) -> bool {
        self.all.used() >= self.all.max()
    }

    /// Takes a place for a client at this address, if there is one.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        if !self.all.try_take() {
            return None;
        }
        let client = client(peer);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = clients.entry(client).or_default();
        if *taken >= self.per_client {
            self.all.give();
            return None;
        }
        *taken += 1;
        Some(Place { places: Arc::clone(self), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.places.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut taken) = clients.entry(self.client) {
            *taken.get_mut() -= 1;
            if *taken.get() == 0 {
                taken.remove();
            }
        }
        self.places.all.give();
    }
}

/// Who is one client: an IPv4 address, or a network of IPv6, of which a host has all the addresses that it likes.
fn client(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nobody_takes_more_than_his_share_and_all_no_more_than_there_are() {
        let places = Arc::new(Places::new(3, 2));
        let a = places.take(ip("192.0.2.1")).unwrap();
        let b = places.take(ip("::ffff:192.0.2.1")).unwrap();
        assert!(places.take(ip("192.0.2.1")).is_none());
        let c = places.take(ip("192.0.2.2")).unwrap();
        assert!(places.take(ip("192.0.2.3")).is_none());
        drop(b);
        let d = places.take(ip("192.0.2.3")).unwrap();
        assert!(places.take(ip("192.0.2.3")).is_none());
        drop((a, c, d));
        assert!(places.clients.lock().unwrap().is_empty(), "who has left is forgotten");
        assert!(places.take(ip("192.0.2.3")).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_client() {
        let places = Arc::new(Places::new(9, 1));
        let _a = places.take(ip("2001:db8:0:1::1")).unwrap();
        assert!(places.take(ip("2001:db8:0:1:ffff::2")).is_none());
        assert!(places.take(ip("2001:db8:0:2::1")).is_some());
    }
}

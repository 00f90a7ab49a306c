//! How often one network may ask: a leaky bucket for each, in a table of fixed size that all workers share.
//!
//! A bucket is two words: the keyed hash of a network, and the time at which its bucket would be empty again (GCRA, as
//! the "virtual scheduling" of ITU-T I.371). A query moves that time on by the interval between two queries; where it
//! would lie further ahead than the burst allows, the query is over the limit.
//!
//! The hash is seeded, so that nobody can choose networks that share a bucket. A network without a bucket takes, of the
//! four where it may stand, the one that is empty first: whoever is over the limit is forgotten last. Workers meet only
//! in the words of a client that asks several of them; a lost race between them costs one query's count.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use forebay_core::Instant;

use super::prefix::masked;
use crate::wire::HashSeed;

/// What a rate limit is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateConfig {
    /// Queries per second that one network may ask for long; at least 1.
    pub per_second: u32,
    /// Queries that it may ask at once; at least 1.
    pub burst: u32,
    /// How many bits of an IPv4 address make a network, 0 to 32. Default 32: each address for itself.
    pub v4_len: u8,
    /// How many bits of an IPv6 address make a network, 0 to 128. Default 56: what one customer has (RFC 6177 §2).
    pub v6_len: u8,
}

/// The buckets. Shared by all workers.
#[derive(Debug)]
pub struct RateLimit {
    config: RateConfig,
    seed: HashSeed,
    interval_ns: u64,
    /// How far ahead of now a bucket's time may lie.
    tolerance_ns: u64,
    sets: Box<[Set]>,
}

/// Four buckets: one line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Bucket; WAYS]);

#[derive(Debug, Default)]
struct Bucket {
    /// The hash of the network; zero is none.
    key: AtomicU64,
    /// When it would be empty, in nanoseconds of the process's clock.
    empty_at: AtomicU64,
}

/// Buckets that one network may take.
const WAYS: usize = 4;

/// Sets of buckets: 65,536 networks at once, in one mebibyte.
const SETS: usize = 16_384;

impl RateLimit {
    /// Memory of the table, in bytes.
    pub const BYTES: usize = SETS * size_of::<Set>();

    /// Makes a table in which nobody has asked yet. `None` if the rate or the burst is zero.
    pub fn new(config: RateConfig, seed: HashSeed) -> Option<Self> {
        let interval_ns = 1_000_000_000u64.checked_div(u64::from(config.per_second))?;
        let ahead = config.burst.checked_sub(1)?;
        let sets = (0..SETS).map(|_| Set::default()).collect();
        Some(Self { config, seed, interval_ns, tolerance_ns: interval_ns * u64::from(ahead), sets })
    }

    /// Makes another table for the same rate.
    pub fn another(&self) -> Option<Self> {
        Self::new(self.config, self.seed)
    }

    /// Counts one query of `address` at `now`. False when it is over the limit; such a query is not counted, so that who
    /// slows down is served again at once.
    #[inline]
    pub fn admit(&self, now: Instant, address: IpAddr) -> bool {
        let now = now.as_nanos();
        let address = address.to_canonical();
        let bits = match address {
            IpAddr::V4(_) => self.config.v4_len,
            IpAddr::V6(_) => self.config.v6_len,
        };
        let network = match masked(address, bits) {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let hash = self.seed.hash_words(network as u64, (network >> 64) as u64) | 1;
        let Some(set) = self.sets.get((hash >> 32) as usize % SETS) else { return true };
        let bucket = set.0.iter().find(|bucket| bucket.key.load(Relaxed) == hash);
        let bucket = bucket.unwrap_or_else(|| set.claim(hash));
        let admitted = bucket.empty_at.fetch_update(Relaxed, Relaxed, |empty_at| {
            let start = empty_at.max(now);
            (start - now <= self.tolerance_ns).then(|| start.saturating_add(self.interval_ns))
        });
        admitted.is_ok()
    }
}

impl Set {
    /// Gives the bucket that is empty first to another network.
    #[cold]
    fn claim(&self, hash: u64) -> &Bucket {
        let [first, others @ ..] = &self.0;
        let mut chosen = first;
        for bucket in others {
            if bucket.empty_at.load(Relaxed) < chosen.empty_at.load(Relaxed) {
                chosen = bucket;
            }
        }
        chosen.empty_at.store(0, Relaxed);
        chosen.key.store(hash, Relaxed);
        chosen
    }
}

#[cfg(test)]
mod tests;

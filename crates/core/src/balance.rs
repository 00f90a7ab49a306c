//! Which of several endpoints serves the next request.

use crate::endpoint::Endpoint;
use crate::engine::EndpointId;
use crate::{Instant, Rng};

/// How endpoints are chosen. Those that are broken, unhealthy or backing off are passed over, unless all are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    RoundRobin {
        /// The turn: how many choices were made.
        turn: u64,
    },
    /// Any, with equal chance.
    Random,
    /// The one with the fewest leases out and tickets waiting.
    LeastInUse,
    /// The better of two chosen at random, by smoothed peak latency times requests in flight.
    P2c,
    /// The first in order of addition.
    #[default]
    FirstHealthy,
    /// The one that a hash of the client points to; when one endpoint leaves, only its clients move (rendezvous).
    SourceHash,
}

impl Balance {
    pub(crate) fn pick<'a>(
        &mut self,
        now: Instant,
        endpoints: impl Iterator<Item = &'a Endpoint> + Clone,
        hash: u64,
        rng: &mut Rng,
    ) -> Option<EndpointId> {
        let staying = endpoints.filter(|endpoint| !endpoint.is_leaving());
        let available = staying.clone().filter(|endpoint| endpoint.is_available(now));
        match available.clone().count() {
            0 => {
                let n = staying.clone().count();
                self.choose(staying, n, hash, rng)
            }
            n => self.choose(available, n, hash, rng),
        }
        .map(|endpoint| endpoint.id)
    }

    fn choose<'a>(
        &mut self,
        mut candidates: impl Iterator<Item = &'a Endpoint> + Clone,
        n: usize,
        hash: u64,
        rng: &mut Rng,
    ) -> Option<&'a Endpoint> {
        if n <= 1 {
            return candidates.next();
        }
        match self {
            Self::RoundRobin { turn } => {
                *turn = turn.wrapping_add(1);
                candidates.nth((*turn % n as u64) as usize)
            }
            Self::Random => candidates.nth(rng.below(n as u32) as usize),
            Self::LeastInUse => candidates.min_by_key(|endpoint| busy(endpoint)),
            Self::P2c => {
                let one = rng.below(n as u32) as usize;
                let step = 1 + rng.below(n as u32 - 1) as usize;
                let other = (one + step) % n;
                let (a, b) = (candidates.clone().nth(one)?, candidates.nth(other)?);
                Some(if (load(b), busy(b)) < (load(a), busy(a)) { b } else { a })
            }
            Self::FirstHealthy => candidates.next(),
            Self::SourceHash => candidates.max_by_key(|endpoint| {
                Rng::new(hash ^ (u64::from(endpoint.id.index) << 32 | u64::from(endpoint.id.generation)))
                    .next_u64()
            }),
        }
    }
}

/// An endpoint of which nothing is known is tried before one that is known to be slow.
const fn load(endpoint: &Endpoint) -> u128 {
    endpoint.latency_nanos as u128 * (busy(endpoint) as u128 + 1)
}

/// Who is served there, and who waits.
const fn busy(endpoint: &Endpoint) -> u32 {
    endpoint.in_use() + endpoint.waiting()
}

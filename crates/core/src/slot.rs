//! The place of one connection.

use crate::Instant;
use crate::breaker::Probe;
use crate::engine::EndpointId;
use crate::event::CloseReason;

/// Names one connection of one endpoint. Never reused while anybody could still hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    pub(crate) endpoint: EndpointId,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl SlotId {
    /// Returns the endpoint to which the connection goes.
    pub const fn endpoint(self) -> EndpointId {
        self.endpoint
    }

    /// Returns a small number, unique among the slots of one endpoint that exist now: fit to index a table.
    pub const fn index(self) -> usize {
        self.index as usize
    }

    /// Returns how many connections had this index before.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

/// Where a slot stands. Every state but `Vacant` counts in every limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No connection. Left by a dial, to `Connecting`.
    Vacant,
    /// A dial is under way. Left by its success to `Ready`, by its failure to `Vacant`.
    Connecting,
    /// Can take a lease. Left by the lease that fills it, to `Busy`; by goodbye, age, uses, drain or a broken lease,
    /// to `Draining`; when nobody holds it, to `Closed`; when the peer closes it, to `Vacant`.
    Ready,
    /// Full. Left by a returned lease, to `Ready`; otherwise like `Ready`.
    Busy,
    /// Takes no new lease. Left by the last returned one, to `Closed`; when the peer closes it, to `Vacant`.
    Draining,
    /// The shell was told to close it. Left by the shell's word that it is done, to `Vacant`.
    Closed,
}

impl State {
    pub(crate) const COUNT: usize = 6;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    pub(crate) generation: u32,
    pub(crate) state: State,
    /// What the peer allows.
    pub(crate) allowed: u32,
    /// The same within the policy.
    pub(crate) capacity: u32,
    /// Whether it takes one lease at most for now, whatever it could carry.
    pub(crate) held: bool,
    pub(crate) in_flight: u32,
    pub(crate) uses: u64,
    /// When its dial began, then when it was ready.
    pub(crate) since: Instant,
    pub(crate) idle_since: Instant,
    /// When it is retired whatever happens.
    pub(crate) retire_at: Instant,
    pub(crate) temporary: bool,
    /// The breaker's probe, if its dial is that.
    pub(crate) probe: Probe,
    /// The slot that retires when this one is ready.
    pub(crate) replaces: Option<(u32, u32)>,
    /// Why it is draining or closed.
    pub(crate) reason: CloseReason,
}

impl Slot {
    pub(crate) const VACANT: Self = Self {
        generation: 0,
        state: State::Vacant,
        allowed: 0,
        capacity: 0,
        held: false,
        in_flight: 0,
        uses: 0,
        since: Instant::ZERO,
        idle_since: Instant::ZERO,
        retire_at: Instant::MAX,
        temporary: false,
        probe: Probe::NONE,
        replaces: None,
        reason: CloseReason::Drain,
    };

    /// Whether it may be given leases, now or when one comes back.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Ready | State::Busy)
    }
}

/// One unit of a slot's capacity in somebody's hands.
///
/// It is neither `Copy` nor `Clone`: giving it back twice does not compile. It must be given back
/// ([`Engine::release`](crate::Engine::release)); the slot is busy until then.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a lease must be released, or its unit of capacity is lost"]
pub struct Lease {
    pub(crate) slot: SlotId,
    pub(crate) fresh: bool,
    pub(crate) probe: Probe,
    pub(crate) temporary: bool,
}

impl Lease {
    /// Returns the slot of which this is a unit.
    pub const fn slot(&self) -> SlotId {
        self.slot
    }

    /// Whether no request was ever sent on this connection. A failure on one that is *not* fresh may be the peer
    /// having closed it meanwhile, and may be replayed once on a fresh one.
    pub const fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Whether the connection ends with this lease.
    pub const fn is_temporary(&self) -> bool {
        self.temporary
    }

    /// Whether its outcome decides if the breaker closes.
    pub fn is_probe(&self) -> bool {
        self.probe.is_some()
    }

    /// Says that the connection was used, by somebody who lends the lease on without giving it back.
    pub const fn mark_reused(&mut self) {
        self.fresh = false;
    }
}

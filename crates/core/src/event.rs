//! What happened: events for the log, counters for the figures. Each is declared once, here.

use std::time::Duration;

use crate::engine::EndpointId;
use crate::slot::SlotId;
use crate::{Cause, Health, Histogram, Instant};

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            /// Every value, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the word used in logs and metric labels.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
        }
    };
}

words! {
    /// Why a connection ended.
    CloseReason {
        /// It stood idle for longer than `idle_timeout`, or than the peer was learnt to allow.
        Idle = "idle",
        /// It stood idle beyond `idle_max`.
        IdleMax = "idle_max",
        /// More stood idle than demand had needed for a while.
        Surplus = "surplus",
        /// It was idle while descriptors or ports of this machine ran out, or while somebody waited at another worker.
        Reclaimed = "reclaimed",
        /// It reached `age_max`.
        Age = "age",
        /// It served `uses_max` leases.
        Uses = "uses",
        /// It was temporary, and its lease ended.
        Temporary = "temporary",
        /// The peer closed it.
        Peer = "peer",
        /// The peer said that it will take no more requests.
        Goodbye = "goodbye",
        /// A lease was given back as broken.
        Broken = "broken",
        /// A lease was dropped without an outcome.
        Abandoned = "abandoned",
        /// Its endpoint was removed, or the pool is draining.
        Drain = "drain",
    }
}

words! {
    /// How an acquire ended.
    AcquireOutcome {
        /// At once, on a connection that stood ready.
        Reused = "reused",
        /// On a connection made for it.
        Fresh = "fresh",
        /// After waiting, on a connection that somebody gave back.
        Waited = "waited",
        /// On a temporary connection.
        Temporary = "temporary",
        /// Refused: the pool or the line was full, the breaker open, the pool draining, or every dial had failed.
        Rejected = "rejected",
        /// Its deadline passed while it waited.
        Timeout = "timeout",
        /// Its caller gave up while it waited.
        Cancelled = "cancelled",
    }
}

/// Something worth a line in a log. Nothing on the hot path makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A connection was made.
    Opened {
        /// Its slot.
        slot: SlotId,
        /// How long the dial took.
        took: Duration,
    },
    /// A dial failed.
    DialFailed {
        /// The slot it was for.
        slot: SlotId,
        /// Why.
        cause: Cause,
    },
    /// A connection is to be closed, or was found closed.
    Closed {
        /// Its slot.
        slot: SlotId,
        /// Why.
        reason: CloseReason,
        /// How many leases it had served.
        uses: u64,
        /// How old it got.
        age: Duration,
    },
    /// An endpoint is left alone until the given time.
    BreakerOpened {
        /// The endpoint.
        endpoint: EndpointId,
        /// When a probe may pass.
        until: Instant,
        /// The failure that was one too many.
        cause: Option<Cause>,
    },
    /// An endpoint proved itself again.
    BreakerClosed {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// The active checks changed their verdict.
    HealthChanged {
        /// The endpoint.
        endpoint: EndpointId,
        /// The new verdict.
        health: Health,
    },
    /// One more connection was wanted, and `connections_max` has been reached: those that are there are reused, and who
    /// finds none waits. Told once a second at most.
    Full {
        /// The endpoint.
        endpoint: EndpointId,
        /// How many connections there are.
        connections: u32,
        /// How many wait.
        waiting: usize,
    },
    /// This machine ran out of something while a connection was wanted.
    LocalExhaustion {
        /// The endpoint that wanted it.
        endpoint: EndpointId,
        /// What ran out.
        cause: Cause,
    },
}

/// Figures of one endpoint since it was added. Plain numbers: the engine has one owner.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    acquires: [u64; AcquireOutcome::ALL.len()],
    closes: [u64; CloseReason::ALL.len()],
    /// Dials by cause of failure, in the order of [`Cause::ALL`].
    dial_failures: [u64; Cause::ALL.len()],
    /// Dials begun.
    pub dials_started: u64,
    /// Dials that made a connection.
    pub dials_succeeded: u64,
    /// Leases given back as failed with the upstream to blame.
    pub failures: u64,
    /// Times the breaker opened.
    pub breaker_opened: u64,
    /// Times growth was denied because this machine ran out of something, kernel or budget.
    pub local_exhaustions: u64,
    /// How long granted tickets had waited, in nanoseconds.
    pub wait: Histogram,
    /// How long successful dials took, in nanoseconds.
    pub dial: Histogram,
    /// How many leases closed connections had served.
    pub uses: Histogram,
}

impl Counters {
    /// Returns how many acquires ended in this way.
    pub const fn acquires(&self, outcome: AcquireOutcome) -> u64 {
        self.acquires[outcome as usize]
    }

    /// Returns how many connections ended for this reason.
    pub const fn closes(&self, reason: CloseReason) -> u64 {
        self.closes[reason as usize]
    }

    /// Returns how many dials failed for this cause.
    pub fn dial_failures(&self, cause: Cause) -> u64 {
        Cause::ALL.iter().position(|c| *c == cause).map_or(0, |i| self.dial_failures[i])
    }

    /// Counts acquires that were served outside the engine, by a stash.
    pub const fn add_acquires(&mut self, outcome: AcquireOutcome, n: u64) {
        self.acquires[outcome as usize] += n;
    }

    pub(crate) const fn acquired(&mut self, outcome: AcquireOutcome) {
        self.acquires[outcome as usize] += 1;
    }

    pub(crate) const fn closed(&mut self, reason: CloseReason) {
        self.closes[reason as usize] += 1;
    }

    pub(crate) fn dial_failed(&mut self, cause: Cause) {
        if let Some(i) = Cause::ALL.iter().position(|c| *c == cause) {
            self.dial_failures[i] += 1;
        }
    }

    /// Adds another endpoint's figures to these.
    pub fn merge(&mut self, other: &Self) {
        let pairs = [
            (&mut self.acquires[..], &other.acquires[..]),
            (&mut self.closes[..], &other.closes[..]),
            (&mut self.dial_failures[..], &other.dial_failures[..]),
        ];
        for (mine, theirs) in pairs {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self.dials_started += other.dials_started;
        self.dials_succeeded += other.dials_succeeded;
        self.failures += other.failures;
        self.breaker_opened += other.breaker_opened;
        self.local_exhaustions += other.local_exhaustions;
        self.wait.merge(&other.wait);
        self.dial.merge(&other.dial);
        self.uses.merge(&other.uses);
    }
}

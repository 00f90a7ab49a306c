//! Placeholder page, replaced in the next commit.

pub mod blame;
pub mod dial;
mod pool;
mod sync;
pub mod sys;
pub mod units;

pub use forebay_core::{
    AcquireOutcome, BackoffConfig, Balance, Blame, BreakerConfig, BreakerState, Cause, CloseReason, Config,
    ConfigError, Counters, Health, HealthConfig, IdleOrder, Overflow, Refusal, Removal, SlotId, Snapshot,
    TicketError,
};
pub use pool::{
    Acquire, AcquireError, BuildError, Builder, Connector, Dial, DialError, EndpointSnapshot, Exclusive,
    Failure, Lease, Mode, Pool, PoolSnapshot, Reporter, Shared,
};

//! Decisions of connection pooling, without a socket, a clock, a thread or a runtime.
//!
//! An [`Engine`] holds, for each endpoint of an upstream, the state of its connections and the line of those who wait
//! for one. It is a plain value: time and randomness are arguments, and what is to be done comes out as [`Action`]s.
//!
//! ```text
//! news ──▶ acquire / release / cancel · handle_dialed / handle_closed / handle_timeout ──▶ Engine
//! work ◀── poll_action / poll_event · next_timeout ◀──────────────────────────────────────┘
//! ```
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | upstream | a named group of endpoints with one policy |
//! | endpoint | one address and everything that shapes a connection to it |
//! | slot | the place of one connection: `Connecting → Ready ⇄ Busy → Draining → Closed` ([`State`]) |
//! | capacity | how many requests a slot carries at once; 1 is exclusive |
//! | lease | one unit of a slot's capacity in somebody's hands ([`Lease`]) |
//! | ticket | a waiter: first in, first out, with a deadline ([`TicketId`]) |
//! | temporary | a connection beyond the pool's size, never pooled, counted in every limit |
//! | dial | making a connection; it outlives the caller that asked, and its result goes to the pool |
//! | blame | [`Blame::Local`], [`Blame::Upstream`] or [`Blame::Client`]; only `Upstream` moves a breaker or a health state |
//! | breaker | closed → open → half-open, per endpoint, with one probe in half-open ([`BreakerState`]) |
//! | permit | the right to one more connection, from a [`Ledger`] that several engines may share |
//!
//! # Example
//!
//! ```
//! use std::time::Duration;
//! use forebay_core::{Acquired, Action, Balance, Config, Engine, Instant, Outcome, Permits};
//!
//! let mut engine = Engine::new(Balance::default(), 1);
//! let now = Instant::ZERO;
//! let endpoint = engine.add_endpoint(now, Config::default(), Permits::alone(1024, 0))?;
//!
//! // Nothing is connected: the caller waits, and a dial is wanted.
//! let Acquired::Wait(ticket) = engine.acquire(now, endpoint, now + Duration::from_secs(1)) else { panic!() };
//! let Some(Action::Dial { slot, .. }) = engine.poll_action() else { panic!() };
//!
//! // The dial succeeds: the caller gets its lease, and gives it back.
//! engine.handle_dialed(now, slot, Ok(1));
//! let Some(Action::Grant { ticket: granted, lease }) = engine.poll_action() else { panic!() };
//! assert_eq!(granted, ticket);
//! engine.release(now, lease, Outcome::Good);
//!
//! // The next one is served at once.
//! let Acquired::Lease(lease) = engine.acquire(now, endpoint, now) else { panic!() };
//! assert!(!lease.is_fresh());
//! engine.release(now, lease, Outcome::Good);
//! # Ok::<(), forebay_core::ConfigError>(())
//! ```

mod backoff;
mod balance;
mod blame;
mod breaker;
mod config;
mod endpoint;
mod engine;
mod event;
mod health;
mod histogram;
mod ledger;
mod list;
mod rng;
mod slot;
mod ticket;
mod time;

#[cfg(test)]
mod tests;

pub use balance::Balance;
pub use blame::{Blame, Cause};
pub use breaker::BreakerState;
pub use config::{BackoffConfig, BreakerConfig, Config, ConfigError, HealthConfig, IdleOrder, Overflow};
pub use endpoint::LOCAL_PAUSE_MAX;
pub use engine::{Acquired, Action, EndpointId, Engine, Outcome, Refusal, Removal, Snapshot, TicketError};
pub use event::{AcquireOutcome, CloseReason, Counters, Event};
pub use health::Health;
pub use histogram::Histogram;
pub use ledger::{Budget, Denied, Ledger, Level, Permits};
pub use rng::Rng;
pub use slot::{Lease, SlotId, State};
pub use ticket::TicketId;
pub use time::Instant;

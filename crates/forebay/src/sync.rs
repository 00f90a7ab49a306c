//! The primitives of everything that is concurrent in the pool.
//!
//! [`crate::pool::exchange`] takes them from its parent module, and is compiled a second time by its model check with
//! those of `shuttle`, which tries many schedules.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

//! Decisions of connection pooling.
pub mod blame;
pub mod rng;
pub mod time;
pub use blame::{Blame, Cause};
pub use rng::Rng;
pub use time::Instant;

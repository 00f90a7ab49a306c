//! What may be reused, replayed and passed on.
//!
//! | module | what it decides |
//! |---|---|
//! | `reuse` | whether a backend's connection may carry another request, and which requests may go on a used one |
//! | `replay` | whether a request that failed may be sent again, and how many may be |
//! | `tunnel` | when a connection stops being HTTP |
//! | `private` | which connections belong to one client |

mod private;
mod replay;
mod reuse;
#[cfg(test)]
mod tests;
mod tunnel;

pub use private::is_private;
pub use replay::{Failure, Replay, RetryBudget, Sent, Stays};
pub use reuse::{Ended, Reuse, Spoilt, verdict};
pub use tunnel::{Switch, TunnelError, switches, wants_upgrade};

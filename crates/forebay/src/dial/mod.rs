//! Connectors for UDP, TCP and TLS, and the budget of this machine.

mod machine;

pub use machine::{Machine, Route, Transport};

//! Decisions of the proxy, without a socket, a clock, a thread or a runtime.
//!
//! | module | what it decides |
//! |---|---|
//! | [`http1`] | where an HTTP/1.1 message ends, and whether it is one at all (RFC 9112) |
//! | [`rules`] | what may be reused, replayed and passed on |
//! | [`roster`] | which backends there are, how they are, and who serves the next client |
//! | [`spares`] | how many connections to dial ahead |
//! | [`proxy_header`] | the PROXY protocol, versions 1 and 2 |

pub mod http1;
pub mod proxy_header;
pub mod roster;
pub mod rules;
pub mod spares;

//! Everything that only Linux has, and the only place with `unsafe`.
//!
//! What stands here is thin: a system call, its arguments in Rust's types, its answer as [`std::io::Result`].
//! No decision is taken here; whose fault an error is says [`crate::blame`].
//!
//! | module | what |
//! |---|---|
//! | [`udp`] | many datagrams per system call, with the address that a query came to |
//! | [`socket`] | sockets with their options set, ready for tokio |
//! | [`clock`] | the monotonic clock, exact and coarse; CPU time |
//! | [`process`] | descriptors, local ports, cores |
//! | [`pipe`] | bytes from one stream to another that never come to this process |
//! | [`epoll`] | waiting for descriptors without a runtime (for load generators) |
//! | `heap` | who holds memory, by jemalloc (feature `jemalloc`) |
//! | `counting` | an allocator that counts, for tests and benches |
//! | `watch` | descriptors that the runtime watches for one thing alone |
//! | [`sample`] | what threads do with their CPU time, taken by a signal |

#![allow(
    unsafe_code,
    reason = "system calls that std and socket2 do not offer; every block has a reason and a test through it"
)]
#![allow(
    clippy::unnecessary_cast,
    reason = "the C libraries disagree on the types of lengths: what is needless with glibc is needed with musl"
)]

mod address;
pub mod clock;
#[doc(hidden)]
pub mod counting;
pub mod epoll;
#[cfg(feature = "jemalloc")]
pub mod heap;
#[doc(hidden)]
pub mod netns;
pub mod pipe;
pub mod process;
pub mod sample;
pub mod socket;
pub mod udp;
mod watch;

pub use clock::{coarse_now, now};
pub use pipe::Pipe;
pub use socket::{
    Keepalive, StreamState, TcpListenerOptions, TcpOptions, UdpOptions, end_writing, reset_on_close,
    stream_state, tcp_listener, tcp_socket, udp_connected, udp_listener,
};
pub use udp::{ConnectedRecvBatch, Datagram, Flush, RecvBatch, SendBatch};
pub(crate) use watch::watch;

use std::io;

/// Turns the `-1` of a system call into the error that `errno` names.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests;

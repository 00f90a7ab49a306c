//! gRPC on pooled connections: a channel for any tonic client, and a server that says no in time.

pub mod channel;
mod greeter;
pub mod server;

pub use channel::{ConnectivityState, PooledBody, PooledChannel, PooledFuture};
pub use greeter::Greeter;
pub use server::{Profile, Running, Server, ServerFigures, ServerSettings};

/// The greeter: `greet.GreeterService`, with which a client or a server is tried.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod greet {
    tonic::include_proto!("greet");

    /// The description of the service, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/greet.bin"));
}

//! gRPC on pooled connections: a channel for any tonic client, and a server that says no in time.
//!
//! # The channel
//!
//! A `tonic::transport::Channel` is one connection: when it is busy, calls wait behind others, and when the server sends it
//! away, calls fail. [`PooledChannel`] stands where a channel would, and is several. To move to it takes three lines:
//!
//! ```no_run
//! use forebay_grpc::PooledChannel; // 1: instead of tonic::transport::Channel
//! use forebay_grpc::greet::HelloRequest;
//! use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = PooledChannel::new("http://127.0.0.1:50051")?; // 2: instead of Channel::from_static(…).connect().await
//! let mut greeter: GreeterServiceClient<PooledChannel> = GreeterServiceClient::new(channel); // 3: where a type is named
//! let reply = greeter.say_hello(HelloRequest { name: "you".to_owned() }).await?;
//! println!("{}", reply.into_inner().message);
//! # Ok(())
//! # }
//! ```
//!
//! Interceptors, compression, limits of messages and deadlines of calls are the generated client's, as ever. What a
//! caller sees:
//!
//! | what happens | what the caller sees |
//! |---|---|
//! | no connection yet | the call waits for the first one; nothing is connected before |
//! | more calls than a connection should carry | another connection is made before the first is full |
//! | more calls than all connections carry | the call waits in line, first in, first out, until its deadline |
//! | GOAWAY, or a stream that was refused | nothing: a call that no server has looked at is sent again, elsewhere |
//! | a connection breaks under a call | UNAVAILABLE: a server may have done it |
//! | the deadline passes, wherever the call is | DEADLINE_EXCEEDED, and the server is told |
//! | no server can be reached | UNAVAILABLE, with the address and the reason |
//! | a limit of this process is reached | RESOURCE_EXHAUSTED: no server is to blame |
//! | the caller drops the future or the response | the call is cancelled; no other is harmed |
//!
//! Several servers ([`channel::Builder::and`], or a name with several addresses) are called by the better of two chosen at
//! random; one that cannot be reached or fails is left alone, names are looked up again, health services are watched if
//! [`channel::Builder::health_service`] says so. Every setting has a default that needs no touch: [`channel::Builder`].
//!
//! # The server
//!
//! [`Server`] takes the services that tonic generates, and is described in [`server`].
//!
//! # How it is built
//!
//! The channel is a tower service without a task, a queue or a boxed future between a call and its connection. A call
//! takes a lease of the engine's pool ([`forebay::Pool`], shared connections, the less loaded of two), writes its head and
//! message to HTTP/2 itself, and holds the lease until its response has ended. The server is one task for each
//! connection, which asks each call once before it waits for it. Both speak HTTP/2 by the crate `h2`; neither uses
//! tonic's transport.

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

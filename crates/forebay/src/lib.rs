//! A pool of connections in front of your upstreams: bounded, fair, and honest about whose fault it was.
//!
//! A forebay is the pool of water in front of a turbine: it takes surges, so that what is downstream runs steadily.
//!
//! # In short
//!
//! A [`Connector`] makes connections to endpoints; [`dial`] has those for UDP, TCP and TLS. A [`Pool`] keeps them within
//! exact limits and lends them as [`Lease`]s; who cannot be served at once waits in line. A lease is given back with
//! its outcome.
//!
//! ```
//! use forebay::dial::Tcp;
//! use forebay::{Config, Pool};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//! use tokio::net::TcpListener;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A server that sends back what it gets.
//! let listener = TcpListener::bind("127.0.0.1:0").await?;
//! let address = listener.local_addr()?;
//! tokio::spawn(async move {
//!     while let Ok((mut stream, _)) = listener.accept().await {
//!         tokio::spawn(async move {
//!             let (mut read, mut write) = stream.split();
//!             tokio::io::copy(&mut read, &mut write).await
//!         });
//!     }
//! });
//!
//! let pool = Pool::builder(Tcp::default())
//!     .name("echo")
//!     .endpoint(address.into())
//!     .config(Config { connections_max: 10, ..Config::default() })
//!     .build()?;
//!
//! for _ in 0..3 {
//!     let mut stream = pool.acquire().await?;
//!     stream.write_all(b"hello").await?;
//!     let mut answer = [0; 5];
//!     stream.read_exact(&mut answer).await?;
//!     assert_eq!(&answer, b"hello");
//!     // Without this, the connection would be closed: nobody would know what comes next on it.
//!     stream.complete();
//! }
//!
//! // Three requests, one connection.
//! assert_eq!(pool.snapshot().counters().dials_succeeded, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Exclusive and shared
//!
//! [`Pool::builder`] makes pools whose connections serve one request at a time (HTTP/1.1, most databases): a lease gives
//! `&mut` to the connection. [`Pool::shared`] makes pools whose connections carry many at once (HTTP/2, DNS message ids):
//! a lease gives `&`, and counts as one of [`Config::capacity`].
//!
//! # When it fails
//!
//! An [`AcquireError`] says what stood in the way, at which endpoint, and whose fault it is ([`Blame`]): a pool that is
//! too small and a machine without ports are not an upstream that is down, and never count as one.
//!
//! # What else is here
//!
//! | module | what |
//! |---|---|
//! | [`dial`] | connectors for UDP, TCP and TLS; the budget of this machine |
//! | [`datagram`] | a UDP socket that wakes its task for what comes alone |
//! | [`http2`] | client connections of HTTP/2 that a pool shares |
//! | [`blame`] | from an I/O error to whose fault it is |
//! | [`settings`], [`units`] | what the settings of all servers have in common; durations and sizes as people write them |
//! | [`lines`] | lines of a log that busy threads write |
//! | [`places`] | clients' connections, counted |
//! | [`stream`] | a byte stream, plain or encrypted, of either side |
//! | [`tls`] | certificates of listeners, and what to do about failed handshakes |
//! | [`sys`] | everything that only Linux has |
//!
//! The decisions (limits, order, growth, endings, breaker) are `forebay-core`'s; its first page has the words.

#![cfg_attr(
    test,
    allow(
        clippy::duplicate_mod,
        reason = "the model check compiles the exchange again, with shuttle's primitives"
    )
)]

pub mod blame;
pub mod datagram;
pub mod dial;
pub mod http2;
pub mod lines;
pub mod places;
mod pool;
pub mod settings;
pub mod stream;
mod sync;
pub mod sys;
pub mod tls;
pub mod units;

pub use forebay_core::{
    AcquireOutcome, BackoffConfig, Balance, Blame, BreakerConfig, BreakerState, Cause, CloseReason, Config,
    ConfigError, Counters, Health, HealthConfig, IdleOrder, Overflow, Refusal, Removal, SlotId, Snapshot,
    TicketError,
};
pub use pool::{
    Acquire, AcquireError, BuildError, Builder, Connector, Dial, DialError, EndpointSnapshot, Exclusive,
    Failure, Lease, Limits, Mode, Pool, PoolSnapshot, Reporter, Shared,
};

//! [`PooledChannel`]: several connections that look like one to any client that tonic generates.
//!
//! ```text
//!   GreeterClient ─▶ PooledChannel ─▶ PooledFuture ──▶ a lease at once, or a place in line
//!                                         │
//!                                         ├─▶ head, data, END_STREAM ─▶ connection's task ─▶ server
//!                                         └─◀ head of the response
//!                    PooledBody ◀── data, trailers ◀────┘   holds the lease to the end
//! ```
//!
//! | module | what |
//! |---|---|
//! | `builder` | settings, checked once |
//! | `call`, `body` | one call: what is sent and sent again; what comes |
//! | `connect` | connections of HTTP/2, TLS, signs of life |
//! | `resolve` | names, looked up again and again |
//! | `health` | what servers say of themselves |
//! | `status`, `timeout`, `budget`, `state`, `origin` | small decisions and words |

mod body;
mod budget;
mod builder;
mod call;
mod connect;
mod health;
mod origin;
mod resolve;
mod state;
mod status;
mod timeout;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use forebay::{Pool, PoolSnapshot};
use http::{HeaderValue, Request, Response};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

pub use body::PooledBody;
use budget::Budget;
pub use builder::{BuildError, Builder};
use call::Lease;
pub use call::PooledFuture;
use connect::GrpcConnector;
use health::Watches;
pub use origin::Peer;
use resolve::Resolution;
pub use resolve::{Resolve, SystemResolver};
pub use state::ConnectivityState;
use state::Watched;

/// Of so many calls, the latency of one is told to the balance: a median needs no more.
const OBSERVED_EVERY: u32 = 8;

/// A channel of gRPC on a pool of connections. Cheap to clone; all clones are one channel.
///
/// It is taken by every client that tonic generates, where `tonic::transport::Channel` would stand. It is always ready:
/// what goes wrong comes as the [`Status`] of the call that it happens to. Connections are made when the first call comes,
/// and when those that are there are half full; they go when they stand idle, and are replaced before they are too old.
///
/// When the last clone is dropped, idle connections close; calls that are out go on.
#[derive(Clone)]
pub struct PooledChannel {
    shared: Arc<Shared>,
}

/// What all clones share.
struct Shared {
    pool: Pool<GrpcConnector, forebay::Shared>,
    user_agent: HeaderValue,
    timeout: Option<Duration>,
    acquire_timeout: Duration,
    replay_bytes: usize,
    budget: Budget,
    counters: Counters,
    watched: Arc<Watched>,
    watches: Arc<Watches>,
    resolution: watch::Receiver<Resolution>,
    runtime: Handle,
    /// Whether there is more than one endpoint to choose from.
    has_many: AtomicBool,
    observed: AtomicU32,
    goaways: Arc<AtomicU64>,
    /// Ends all connections.
    cut: watch::Sender<bool>,
    /// `None` when there is no name to look up.
    keeper: Option<AbortHandle>,
}

/// What calls have come to.
#[derive(Debug, Default)]
struct Counters {
    calls: AtomicU64,
    replays: AtomicU64,
    failed: AtomicU64,
    late: AtomicU64,
}

impl Shared {
    fn has_many(&self) -> bool {
        self.has_many.load(Ordering::Relaxed)
    }

    /// Takes note of endpoints that have come or gone.
    fn note_endpoints(&self) {
        let peers: Vec<Peer> =
            self.pool.snapshot().endpoints.into_iter().map(|endpoint| endpoint.endpoint).collect();
        self.has_many.store(peers.len() > 1, Ordering::Relaxed);
        self.watches.keep(|peer| peers.contains(peer));
    }

    /// Tells the balance how long the first word of a response took, now and then.
    fn observe(&self, lease: &Lease, began: forebay_core::Instant) {
        if self.has_many() && self.observed.fetch_add(1, Ordering::Relaxed).is_multiple_of(OBSERVED_EVERY) {
            let took = forebay::sys::coarse_now().saturating_duration_since(began);
            self.pool.observe_latency(lease.peer(), took);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            keeper.abort();
        }
    }
}

/// What a channel has done, and the figures of its pool.
#[derive(Clone, Debug)]
pub struct ChannelSnapshot {
    /// Calls that were begun.
    pub calls: u64,
    /// Calls that were sent again because no server had looked at them.
    pub replays: u64,
    /// Calls that got no connection, or whose connection or stream broke before there was a response.
    pub failed: u64,
    /// Calls whose deadline passed before there was a response.
    pub late: u64,
    /// Connections that their servers have sent away (GOAWAY).
    pub goaways: u64,
    /// The pool, endpoint by endpoint.
    pub pool: PoolSnapshot<Peer>,
}

impl PooledChannel {
    /// Begins to make a channel to the server at this URL: `http://HOST:PORT` or `https://HOST[:PORT]`.
    pub fn builder(url: impl Into<String>) -> Builder {
        Builder::new(url.into())
    }

    /// Makes a channel to the server at this URL with the defaults of [`Builder`].
    ///
    /// # Errors
    ///
    /// When the URL is none, and outside of a tokio runtime.
    pub fn new(url: impl Into<String>) -> Result<Self, BuildError> {
        Self::builder(url).build()
    }

    /// Returns where the channel stands.
    pub fn state(&self) -> ConnectivityState {
        *self.shared.watched.subscribe().borrow()
    }

    /// Returns what tells where the channel stands, now and when it changes.
    pub fn watch_state(&self) -> watch::Receiver<ConnectivityState> {
        self.shared.watched.subscribe()
    }

    /// Returns the figures of this moment.
    pub fn snapshot(&self) -> ChannelSnapshot {
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ChannelSnapshot {
            calls: read(&counters.calls),
            replays: read(&counters.replays),
            failed: read(&counters.failed),
            late: read(&counters.late),
            goaways: read(&self.shared.goaways),
            pool: self.shared.pool.snapshot(),
        }
    }

    /// Ends the channel: no new calls; those that are out may end by themselves for so long, and are cut then. Returns how
    /// many connections were cut.
    ///
    /// # Cancel safety
    ///
    /// The drain goes on when the future is dropped, without an end to its time.
    pub async fn drain(&self, limit: Duration) -> u32 {
        let left = self.shared.pool.drain(std::time::Instant::now() + limit).await;
        self.shared.cut.send_replace(true);
        self.shared.watched.shut_down();
        left
    }
}

impl Service<Request<Body>> for PooledChannel {
    type Response = Response<PooledBody>;
    type Error = Status;
    type Future = PooledFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> PooledFuture {
        PooledFuture::new(self.clone(), request)
    }
}

impl fmt::Debug for PooledChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledChannel")
            .field("pool", &self.shared.pool.name())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

//! What a pool needs to know of a protocol.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::time::Duration;

use forebay_core::SlotId;

use crate::dial::Route;
use crate::pool::DialError;

/// Makes connections to endpoints, and knows what state they are in.
///
/// Only [`Connector::connect`] has to be written; the other methods have defaults that know nothing of the protocol.
pub trait Connector: Send + Sync + 'static {
    /// A connection. In a [`Shared`](crate::Shared) pool it must be `Sync`, too.
    type Conn: Send + 'static;

    /// An address **and everything that shapes a connection to it** (transport, TLS name, local address). Endpoints are
    /// compared in full: two connections are interchangeable exactly when their endpoints are equal.
    type Endpoint: Clone + Eq + Hash + fmt::Display + Send + Sync + 'static;

    /// Makes a connection. It runs in a task of its own, which ends at `dial.timeout`, and goes on when the caller who
    /// wanted the connection has given up: its result then goes to the next one.
    ///
    /// # Errors
    ///
    /// A [`DialError`] that says whose fault it was.
    fn connect(
        &self,
        dial: Dial<Self::Endpoint>,
    ) -> impl Future<Output = Result<Self::Conn, DialError>> + Send;

    /// Says whether an idle connection can be used. Called on each one that is taken, unless it was made a moment ago,
    /// with no lock held; must not block. In shared pools it is not called: use [`Reporter::closed`].
    ///
    /// Default: yes.
    fn is_alive(&self, conn: &mut Self::Conn) -> bool {
        let _ = conn;
        true
    }

    /// How many requests the connection carries at once, as far as its peer said. The pool's `capacity` clamps it.
    ///
    /// Default: any number.
    fn capacity(&self, conn: &Self::Conn) -> u32 {
        let _ = conn;
        u32::MAX
    }

    /// Whether a lease that is dropped without an outcome leaves the connection as it was. True for UDP, where each
    /// datagram stands alone; for streams somebody's half-read answer would be the next one's.
    ///
    /// Default: no, and the connection is closed. In shared pools it is never closed for that.
    fn reuse_on_drop(&self) -> bool {
        false
    }

    /// Whether [`Connector::poll_closed`] can tell anything. Default: no.
    fn watches(&self) -> bool {
        false
    }

    /// Resolves when the peer closes an idle connection, or sends what nobody asked for. Called about a second after
    /// the connection became idle, and when its waker was woken; the pool's lock is held, so it must not block.
    ///
    /// Default: never.
    fn poll_closed(&self, conn: &mut Self::Conn, cx: &mut Context<'_>) -> Poll<()> {
        let _ = (conn, cx);
        Poll::Pending
    }

    /// Checks an endpoint's health, if [`Config::health`](crate::Config::health) asks for it.
    ///
    /// Default: connects, outside of the pool's limits, and closes the connection.
    ///
    /// # Errors
    ///
    /// Why the check failed; only causes that are the upstream's fault count.
    fn probe(&self, dial: Dial<Self::Endpoint>) -> impl Future<Output = Result<(), DialError>> + Send {
        async { self.connect(dial).await.map(drop) }
    }

    /// Which resources of this machine a connection needs, for a pool with a
    /// [`Machine`](crate::dial::Machine) budget.
    ///
    /// Default: a descriptor, and no port that anybody counts.
    fn route(&self, endpoint: &Self::Endpoint) -> Option<Route> {
        let _ = endpoint;
        None
    }
}

/// One connection that is wanted.
#[derive(Clone, Debug)]
pub struct Dial<E> {
    /// To whom.
    pub endpoint: E,
    /// How long it may take. The pool ends the dial then; a connector may want to know.
    pub timeout: Duration,
    /// Where news of this connection is to be told.
    pub reporter: Reporter,
}

/// Tells the pool what happens to one connection. Keeps nothing alive; news of a connection that is gone are ignored.
///
/// For connections that know more than they are asked: a multiplexed one reads all the time, and learns of GOAWAY,
/// of a new stream limit or of its end.
#[derive(Clone)]
pub struct Reporter {
    slot: Option<SlotId>,
    pool: Weak<dyn Report>,
}

impl Reporter {
    pub(super) fn new(slot: Option<SlotId>, pool: Weak<dyn Report>) -> Self {
        Self { slot, pool }
    }

    /// The connection has ended. Leases on it learn so from the connection itself.
    pub fn closed(&self) {
        self.tell(News::Closed);
    }

    /// The peer takes no more requests on this connection (GOAWAY, `Connection: close`).
    pub fn goodbye(&self) {
        self.tell(News::Goodbye);
    }

    /// The peer changed how many requests the connection carries at once.
    pub fn capacity(&self, capacity: u32) {
        self.tell(News::Capacity(capacity));
    }

    /// The peer announced for how long it keeps idle connections; the pool undercuts that.
    pub fn idle_timeout(&self, announced: Duration) {
        self.tell(News::IdleTimeout(announced));
    }

    fn tell(&self, news: News) {
        if let (Some(slot), Some(pool)) = (self.slot, self.pool.upgrade()) {
            pool.report(slot, news);
        }
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// News of one connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    Closed,
    Goodbye,
    Capacity(u32),
    IdleTimeout(Duration),
}

pub(super) trait Report: Send + Sync {
    fn report(&self, slot: SlotId, news: News);
}

//! One unit of a connection in somebody's hands.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use forebay_core::{Cause, Outcome, SlotId};

use super::Owner;
use super::connector::Connector;
use super::exchange::{Exclusive, Mode, Shared};
use crate::sys;

/// A connection, or one unit of its capacity, until it is given back.
///
/// Say how it went: [`Lease::complete`], [`Lease::complete_last`], [`Lease::fail`] or [`Lease::discard`]. Dropped without
/// a word, an exclusive connection is closed (nobody knows what its peer will say next), unless
/// [`Connector::reuse_on_drop`] says that this does no harm; a shared one just loses one user.
///
/// Keep a shared lease until the response has *ended*: it is what counts the request.
#[must_use = "dropping a lease at once closes an exclusive connection"]
pub struct Lease<C: Connector, M: Mode<C::Conn> = Exclusive> {
    /// `None` after it was given back.
    held: Option<M::Held>,
    owner: Arc<Owner<C, M>>,
}

impl<C: Connector, M: Mode<C::Conn>> Lease<C, M> {
    pub(super) fn new(held: M::Held, owner: Arc<Owner<C, M>>) -> Self {
        Self { held: Some(held), owner }
    }

    /// Gives it back: the request was answered, and the connection can serve another.
    pub fn complete(self) {
        self.give(Outcome::Good);
    }

    /// Gives it back: the request was answered, and the peer wants no other on this connection.
    pub fn complete_last(self) {
        self.give(Outcome::GoodLast);
    }

    /// Gives it back: nothing was sent, and the connection is as it was.
    pub fn unused(self) {
        self.give(Outcome::Unused);
    }

    /// Gives it back: the request failed, but not the connection (one time-out among many requests in flight).
    pub fn fail(self, cause: Cause) {
        self.give(Outcome::Failed(cause));
    }

    /// Gives it back: the request failed, and the connection with it.
    pub fn discard(self, cause: Cause) {
        self.give(Outcome::Broken(cause));
    }

    /// Whether the connection has carried a request before. If a reused connection fails before the first byte of an
    /// answer, its peer may have closed it meanwhile: the request may be sent once more, on a fresh one.
    pub fn is_reused(&self) -> bool {
        !M::token(self.held()).is_fresh()
    }

    /// Returns the slot, which names the connection in logs.
    pub fn slot(&self) -> SlotId {
        M::token(self.held()).slot()
    }

    /// Returns the endpoint to which the connection goes; `None` if that has been removed meanwhile.
    pub fn endpoint(&self) -> Option<C::Endpoint> {
        let id = self.slot().endpoint();
        self.owner.inner.exchange.inspect(|hub| hub.data(id).map(|site| site.endpoint.clone()))
    }

    fn held(&self) -> &M::Held {
        self.held.as_ref().expect(HELD)
    }

    fn give(mut self, outcome: Outcome) {
        if let Some(held) = self.held.take() {
            self.owner.inner.give(held, outcome);
        }
    }
}

impl<C: Connector> Lease<C, Exclusive> {
    /// Takes the connection out of the pool for good; it counts in no limit any more.
    pub fn detach(mut self) -> C::Conn {
        let (conn, token, uses) = self.held.take().expect(HELD).into_parts();
        let inner = &self.owner.inner;
        inner.act(inner.exchange.detach(sys::now(), token, uses));
        conn
    }
}

impl<C: Connector, M: Mode<C::Conn>> Drop for Lease<C, M> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let inner = &self.owner.inner;
            let outcome = if !M::EXCLUSIVE || inner.connector.reuse_on_drop() {
                Outcome::Unused
            } else {
                Outcome::Abandoned
            };
            inner.give(held, outcome);
        }
    }
}

impl<C: Connector> Deref for Lease<C, Exclusive> {
    type Target = C::Conn;

    fn deref(&self) -> &C::Conn {
        &self.held().conn
    }
}

impl<C: Connector> DerefMut for Lease<C, Exclusive> {
    fn deref_mut(&mut self) -> &mut C::Conn {
        &mut self.held.as_mut().expect(HELD).conn
    }
}

impl<C: Connector> Deref for Lease<C, Shared>
where
    C::Conn: Sync,
{
    type Target = C::Conn;

    fn deref(&self) -> &C::Conn {
        Shared::conn(self.held())
    }
}

impl<C: Connector, M: Mode<C::Conn>> fmt::Debug for Lease<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot()).finish_non_exhaustive()
    }
}

const HELD: &str = "a lease that was not given back holds a connection";

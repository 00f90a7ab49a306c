//! Exclusive or shared: whose a connection is while it is lent.

use forebay_core::{Instant, Lease as Token};

use super::NEVER;
use super::sync::Arc;

/// One request at a time on each connection; a lease gives `&mut` to it.
#[derive(Clone, Copy, Debug)]
pub enum Exclusive {}

/// Many requests at once on each connection (HTTP/2 streams, DNS message ids); a lease gives `&` to it.
#[derive(Clone, Copy, Debug)]
pub enum Shared {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Exclusive {}
    impl Sealed for super::Shared {}
}

/// How a pool lends connections of type `T`: [`Exclusive`] or [`Shared`].
pub trait Mode<T>: sealed::Sealed + Sized + 'static {
    /// What stands in the pool.
    #[doc(hidden)]
    type Place: Send;
    /// What a lease holds.
    #[doc(hidden)]
    type Held: Send;
    /// Whether a connection has one holder at a time, and may be lent on without asking the engine.
    #[doc(hidden)]
    const EXCLUSIVE: bool;

    #[doc(hidden)]
    fn place(conn: T) -> Self::Place;
    /// Takes what a lease holds out of its place.
    #[doc(hidden)]
    fn lend(place: &mut Option<Self::Place>, token: Token, terms: Terms) -> Option<Self::Held>;
    /// Takes apart what a lease held: the token, the uses that the engine does not know of, and what goes back.
    #[doc(hidden)]
    fn unlend(held: Self::Held) -> (Token, u64, Option<Self::Place>);
    #[doc(hidden)]
    fn conn(held: &Self::Held) -> &T;
    #[doc(hidden)]
    fn token(held: &Self::Held) -> &Token;
    /// The connection itself, if this is its only place.
    #[doc(hidden)]
    fn conn_mut(held: &mut Self::Held) -> Option<&mut T>;
    /// The connection itself where it stands idle, if nobody can hold it.
    #[doc(hidden)]
    fn idle_mut(place: &mut Self::Place) -> Option<&mut T>;
    /// The terms on which it may be lent on.
    #[doc(hidden)]
    fn terms(held: &mut Self::Held) -> Option<(&mut Terms, &mut Token)>;
}

/// How long a link may be lent on without asking the engine.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// The gate at which it was lent; with any other it goes back to the engine.
    pub(super) gate: u64,
    pub(super) retire_at: Instant,
    pub(super) uses_left: u64,
    /// Uses that the engine does not know of.
    pub(super) uses: u64,
    /// The visit of its stash before which it was put there.
    pub(super) visit: u32,
}

impl Terms {
    /// Goes back to the engine, always.
    pub(super) const NEVER: Self =
        Self { gate: NEVER, retire_at: Instant::ZERO, uses_left: 0, uses: 0, visit: 0 };
}

/// An exclusive connection and what the pool knows of it. It is made once and moves as one pointer.
#[doc(hidden)]
#[derive(Debug)]
pub struct Link<T> {
    pub(crate) conn: T,
    token: Option<Token>,
    terms: Terms,
}

impl<T> Link<T> {
    /// Takes the connection out for good.
    pub(crate) fn into_parts(self) -> (T, Token, u64) {
        (self.conn, self.token.expect(LENT), self.terms.uses)
    }
}

/// A unit of a shared connection.
#[doc(hidden)]
#[derive(Debug)]
pub struct SharedLink<T> {
    conn: Arc<T>,
    token: Token,
}

const LENT: &str = "a link that is lent has a token";

impl<T: Send + 'static> Mode<T> for Exclusive {
    type Place = Box<Link<T>>;
    type Held = Box<Link<T>>;
    const EXCLUSIVE: bool = true;

    fn place(conn: T) -> Self::Place {
        Box::new(Link { conn, token: None, terms: Terms::NEVER })
    }

    fn lend(place: &mut Option<Self::Place>, token: Token, terms: Terms) -> Option<Self::Held> {
        let mut link = place.take()?;
        link.token = Some(token);
        link.terms = terms;
        Some(link)
    }

    fn unlend(mut held: Self::Held) -> (Token, u64, Option<Self::Place>) {
        let token = held.token.take().expect(LENT);
        (token, held.terms.uses, Some(held))
    }

    fn conn(held: &Self::Held) -> &T {
        &held.conn
    }

    fn token(held: &Self::Held) -> &Token {
        held.token.as_ref().expect(LENT)
    }

    fn conn_mut(held: &mut Self::Held) -> Option<&mut T> {
        Some(&mut held.conn)
    }

    fn idle_mut(place: &mut Self::Place) -> Option<&mut T> {
        Some(&mut place.conn)
    }

    fn terms(held: &mut Self::Held) -> Option<(&mut Terms, &mut Token)> {
        Some((&mut held.terms, held.token.as_mut().expect(LENT)))
    }
}

impl<T: Send + Sync + 'static> Mode<T> for Shared {
    type Place = Arc<T>;
    type Held = SharedLink<T>;
    const EXCLUSIVE: bool = false;

    fn place(conn: T) -> Self::Place {
        Arc::new(conn)
    }

    fn lend(place: &mut Option<Self::Place>, token: Token, _: Terms) -> Option<Self::Held> {
        Some(SharedLink { conn: Arc::clone(place.as_ref()?), token })
    }

    fn unlend(held: Self::Held) -> (Token, u64, Option<Self::Place>) {
        (held.token, 0, Some(held.conn))
    }

    fn conn(held: &Self::Held) -> &T {
        &held.conn
    }

    fn token(held: &Self::Held) -> &Token {
        &held.token
    }

    fn conn_mut(_: &mut Self::Held) -> Option<&mut T> {
        None
    }

    fn idle_mut(_: &mut Self::Place) -> Option<&mut T> {
        None
    }

    fn terms(_: &mut Self::Held) -> Option<(&mut Terms, &mut Token)> {
        None
    }
}

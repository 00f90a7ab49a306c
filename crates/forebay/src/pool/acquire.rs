//! The future of an acquire, written by hand: its first poll is the hot path, and dropping it gives up a place in line.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use forebay_core::{Instant, Refusal};

use super::connector::Connector;
use super::error::{AcquireError, Failure};
use super::exchange::{Answer, Exclusive, Mode, NotGranted, Target, Waiting};
use super::inner::{Inner, SiteOf};
use super::{Handle, Lease, Owner};
use crate::sys;

/// Resolves to a lease. Made by [`Pool::acquire`](crate::Pool::acquire) and its siblings.
///
/// # Cancel safety
///
/// Dropping it loses nothing: a place in line is given up, a connection granted meanwhile goes to the next in line, and
/// a dial that was started goes on for whoever comes.
#[must_use = "futures do nothing unless awaited"]
pub struct Acquire<'a, C: Connector, M: Mode<C::Conn> = Exclusive> {
    handle: &'a Handle<C, M>,
    /// `None`: the endpoint asked for is not there.
    target: Option<Target>,
    /// `None`: the pool's default, counted from the first poll.
    deadline: Option<Instant>,
    waiting: Option<Waiting<M::Held, SiteOf<C>>>,
}

impl<'a, C: Connector, M: Mode<C::Conn>> Acquire<'a, C, M> {
    pub(super) const fn new(
        handle: &'a Handle<C, M>,
        target: Option<Target>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { handle, target, deadline, waiting: None }
    }

    fn lease(&self, held: M::Held) -> Lease<C, M> {
        Lease::new(held, Arc::clone(self.owner()))
    }

    fn owner(&self) -> &'a Arc<Owner<C, M>> {
        self.handle.owner()
    }

    /// Asks the hub. Returns `None` when it is in line.
    fn ask(&mut self, cx: &Context<'_>) -> Option<Result<Lease<C, M>, AcquireError>> {
        let inner = &self.owner().inner;
        let refused = |refusal, site: Option<&SiteOf<C>>| {
            error_of::<C, M>(inner, Failure::Refused(refusal), Duration::ZERO, site)
        };
        let Some(target) = self.target else { return Some(Err(refused(Refusal::NoEndpoint, None))) };
        loop {
            let now = sys::now();
            let deadline = *self.deadline.get_or_insert(now + inner.acquire_timeout);
            if matches!(target, Target::Any(_)) {
                self.waiting = inner.line_up(now, deadline, cx.waker());
                if self.waiting.is_some() {
                    return None;
                }
            }
            let (answer, work) = inner.exchange.acquire(now, target, deadline, cx.waker());
            inner.act(work);
            match answer {
                Answer::Held(held) => {
                    if let Some(held) = inner.check(held) {
                        return Some(Ok(self.lease(held)));
                    }
                }
                Answer::Wait(waiting) => {
                    self.waiting = Some(waiting);
                    return None;
                }
                Answer::Refused(refusal, site) => return Some(Err(refused(refusal, site.as_ref()))),
            }
        }
    }
}

impl<C: Connector, M: Mode<C::Conn>> Future for Acquire<'_, C, M> {
    type Output = Result<Lease<C, M>, AcquireError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = &self.owner().inner;
        if self.waiting.is_none() {
            if matches!(self.target, Some(Target::Any(_)))
                && let Some(held) = inner.take_stashed()
            {
                return Poll::Ready(Ok(self.lease(held)));
            }
            if let Some(answer) = self.ask(cx) {
                return Poll::Ready(answer);
            }
        }
        while let Some(waiting) = &self.waiting {
            let granted = ready!(waiting.cell.poll(cx));
            let since = waiting.since;
            self.waiting = None;
            match granted.map(|held| inner.check(held)) {
                Ok(Some(held)) => return Poll::Ready(Ok(self.lease(held))),
                // It died while it was handed over: to the end of the line, with the time that is left.
                Ok(None) => {}
                Err(error) => {
                    let (failure, site) = match error {
                        NotGranted::Ticket(error, site) => (Failure::Waited(error), site),
                        NotGranted::Refused(refusal, site) => (Failure::Refused(refusal), site),
                    };
                    let waited = sys::now().saturating_duration_since(since);
                    return Poll::Ready(Err(error_of::<C, M>(inner, failure, waited, site.as_ref())));
                }
            }
            if let Some(answer) = self.ask(cx) {
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }
}

// Nothing in it is ever pinned: wakers and cells stand on the heap.
impl<C: Connector, M: Mode<C::Conn>> Unpin for Acquire<'_, C, M> {}

impl<C: Connector, M: Mode<C::Conn>> Drop for Acquire<'_, C, M> {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let inner = &self.owner().inner;
            inner.act(inner.exchange.cancel(sys::now(), &waiting));
        }
    }
}

fn error_of<C: Connector, M: Mode<C::Conn>>(
    inner: &Inner<C, M>,
    failure: Failure,
    waited: Duration,
    site: Option<&SiteOf<C>>,
) -> AcquireError {
    let name = site.map(|site| site.name.to_string());
    let dial = site.and_then(|site| site.last_dial_error());
    AcquireError::new(Arc::clone(&inner.upstream), name, failure, waited, dial)
}

//! Where one waiter finds what it waited for.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use forebay_core::{Refusal, TicketError, TicketId};

use super::lock;
use super::sync::{Arc, Mutex};

/// What a waiter gets in the end.
pub(crate) type Granted<H, D> = Result<H, NotGranted<D>>;

/// Why a waiter gets nothing, and what is known of the endpoint.
#[derive(Debug)]
pub(crate) enum NotGranted<D> {
    /// It waited in the engine's line.
    Ticket(TicketError, Option<D>),
    /// It waited in a shard's line, and the engine's would not take it.
    Refused(Refusal, Option<D>),
}

/// Shared by a waiter and the exchange. Its lock is held for a few instructions.
#[derive(Debug)]
pub(crate) struct Cell<H, D> {
    state: Mutex<State<H, D>>,
}

#[derive(Debug)]
struct State<H, D> {
    waker: Option<Waker>,
    granted: Option<Granted<H, D>>,
    /// Its place in the engine's line, once it stands there.
    ticket: Option<TicketId>,
}

impl<H, D> Cell<H, D> {
    /// Fills the cell. The waker is to be woken when no lock is held.
    pub(super) fn fill(&self, granted: Granted<H, D>) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.granted = Some(granted);
        state.waker.take()
    }

    /// Takes what the cell was filled with, or leaves a waker.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Granted<H, D>> {
        let mut state = lock(&self.state);
        if let Some(granted) = state.granted.take() {
            return Poll::Ready(granted);
        }
        let known = state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        let old = if known { None } else { state.waker.replace(cx.waker().clone()) };
        drop(state);
        // A waker is somebody else's code: it is dropped with no lock held.
        drop(old);
        Poll::Pending
    }

    pub(super) fn set_ticket(&self, ticket: TicketId) {
        lock(&self.state).ticket = Some(ticket);
    }

    pub(super) fn ticket(&self) -> Option<TicketId> {
        lock(&self.state).ticket
    }

    /// Takes what the cell was filled with, if it was.
    pub(super) fn take(&self) -> Option<Granted<H, D>> {
        lock(&self.state).granted.take()
    }
}

/// Takes the cell that was filled the longest ago, or makes one if its waiter still holds it.
pub(super) fn free<H, D>(cells: &mut VecDeque<Arc<Cell<H, D>>>, waker: Waker) -> Arc<Cell<H, D>> {
    let fresh = State { waker: Some(waker), granted: None, ticket: None };
    if let Some(cell) = cells.front_mut().and_then(Arc::get_mut) {
        *cell.state.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) = fresh;
        return cells.pop_front().expect("it was there a line above");
    }
    Arc::new(Cell { state: Mutex::new(fresh) })
}

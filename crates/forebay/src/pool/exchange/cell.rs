//! Where one waiter finds what it waited for.

use std::task::{Context, Poll, Waker};

use forebay_core::TicketError;

use super::lock;
use super::sync::Mutex;

/// What a waiter gets in the end.
pub(crate) type Granted<H> = Result<H, TicketError>;

/// Shared by a waiter and the hub. Its lock is held for a few instructions, by one of the two.
#[derive(Debug)]
pub(crate) struct Cell<H> {
    state: Mutex<State<H>>,
}

#[derive(Debug)]
struct State<H> {
    waker: Option<Waker>,
    granted: Option<Granted<H>>,
}

impl<H> Cell<H> {
    pub(super) fn new(waker: Waker) -> Self {
        Self { state: Mutex::new(State { waker: Some(waker), granted: None }) }
    }

    /// Makes a cell that nobody else holds ready for the next waiter.
    pub(super) fn reset(&mut self, waker: Waker) {
        let state = self.state.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        *state = State { waker: Some(waker), granted: None };
    }

    /// Fills the cell. The waker is to be woken when no lock is held.
    pub(super) fn fill(&self, granted: Granted<H>) -> Option<Waker> {
        let mut state = lock(&self.state);
        state.granted = Some(granted);
        state.waker.take()
    }

    /// Takes what the cell was filled with, or leaves a waker.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Granted<H>> {
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

    /// Takes what the cell was filled with, if it was.
    pub(crate) fn take(&self) -> Option<Granted<H>> {
        lock(&self.state).granted.take()
    }
}

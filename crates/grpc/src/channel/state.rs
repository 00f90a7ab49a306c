//! Where a channel stands, for those who watch it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::sync::watch;

/// Where a channel stands, in the words of gRPC's connectivity semantics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectivityState {
    /// There is no connection, and nobody wants one.
    Idle,
    /// The first connection is being made.
    Connecting,
    /// There is a connection.
    Ready,
    /// There is no connection, and the last try to make one failed.
    TransientFailure,
    /// The channel has been drained.
    Shutdown,
}

/// Counts what the state follows from.
#[derive(Debug)]
pub(super) struct Watched {
    dialing: AtomicU32,
    ready: AtomicU32,
    has_failed: AtomicBool,
    sender: watch::Sender<ConnectivityState>,
}

impl Default for Watched {
    fn default() -> Self {
        Self {
            dialing: AtomicU32::new(0),
            ready: AtomicU32::new(0),
            has_failed: AtomicBool::new(false),
            sender: watch::Sender::new(ConnectivityState::Idle),
        }
    }
}

impl Watched {
    pub(super) fn subscribe(&self) -> watch::Receiver<ConnectivityState> {
        self.sender.subscribe()
    }

    pub(super) fn shut_down(&self) {
        self.sender.send_replace(ConnectivityState::Shutdown);
    }

    /// A dial begins.
    pub(super) fn dial(self: &Arc<Self>) -> Dialing {
        self.dialing.fetch_add(1, Ordering::SeqCst);
        self.tell();
        Dialing { watched: Arc::clone(self), has_succeeded: false }
    }

    fn tell(&self) {
        self.sender.send_if_modified(|state| {
            // Read inside, where tellings wait for one another: the last one tells the truth.
            let now = if *state == ConnectivityState::Shutdown {
                ConnectivityState::Shutdown
            } else if self.ready.load(Ordering::SeqCst) > 0 {
                ConnectivityState::Ready
            } else if self.dialing.load(Ordering::SeqCst) > 0 {
                ConnectivityState::Connecting
            } else if self.has_failed.load(Ordering::SeqCst) {
                ConnectivityState::TransientFailure
            } else {
                ConnectivityState::Idle
            };
            std::mem::replace(state, now) != now
        });
    }
}

/// A dial under way; dropped without a word, it has failed.
#[derive(Debug)]
pub(super) struct Dialing {
    watched: Arc<Watched>,
    has_succeeded: bool,
}

impl Dialing {
    /// It has led to a connection, which is there until what is returned is dropped.
    pub(super) fn succeed(mut self) -> Ready {
        self.has_succeeded = true;
        self.watched.ready.fetch_add(1, Ordering::SeqCst);
        Ready(Arc::clone(&self.watched))
    }
}

impl Drop for Dialing {
    fn drop(&mut self) {
        self.watched.has_failed.store(!self.has_succeeded, Ordering::SeqCst);
        self.watched.dialing.fetch_sub(1, Ordering::SeqCst);
        self.watched.tell();
    }
}

/// A connection that is there.
#[derive(Debug)]
pub(super) struct Ready(Arc<Watched>);

impl Drop for Ready {
    fn drop(&mut self) {
        self.0.ready.fetch_sub(1, Ordering::SeqCst);
        self.0.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_dials_and_connections() {
        let watched = Arc::new(Watched::default());
        let seen = watched.subscribe();
        let now = || *seen.borrow();
        assert_eq!(now(), ConnectivityState::Idle);
        let first = watched.dial();
        assert_eq!(now(), ConnectivityState::Connecting);
        drop(first);
        assert_eq!(now(), ConnectivityState::TransientFailure);
        let second = watched.dial();
        assert_eq!(now(), ConnectivityState::Connecting);
        let ready = second.succeed();
        assert_eq!(now(), ConnectivityState::Ready);
        let third = watched.dial();
        drop(third);
        assert_eq!(now(), ConnectivityState::Ready, "another connection is there");
        drop(ready);
        assert_eq!(now(), ConnectivityState::TransientFailure);
        drop(watched.dial().succeed());
        assert_eq!(now(), ConnectivityState::Idle);
        watched.shut_down();
        let _dialing = watched.dial();
        assert_eq!(now(), ConnectivityState::Shutdown);
    }
}

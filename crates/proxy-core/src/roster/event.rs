//! What happened: events for the log, counters for the figures. Each is declared once, here.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::Cause;

use super::Backend;

/// Something worth a line in a log. Its `Display` is that line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event<E> {
    /// A backend came to the list.
    Added {
        /// The backend.
        backend: Arc<Backend<E>>,
    },
    /// A backend left the list.
    Removed {
        /// The backend.
        backend: Arc<Backend<E>>,
    },
    /// Checks found a backend unhealthy.
    Unhealthy {
        /// The backend.
        backend: Arc<Backend<E>>,
        /// Why the last check failed.
        cause: Cause,
    },
    /// Checks found a backend healthy again.
    Healthy {
        /// The backend.
        backend: Arc<Backend<E>>,
    },
    /// A backend is left alone for a while.
    Ejected {
        /// The backend.
        backend: Arc<Backend<E>>,
        /// How many failures in a row there were.
        failures: u32,
        /// The last one.
        cause: Cause,
        /// For how long.
        lasting: Duration,
    },
    /// A backend would have been ejected, but too many are already, or it is the last that is usable.
    Kept {
        /// The backend.
        backend: Arc<Backend<E>>,
        /// How many failures in a row there were.
        failures: u32,
        /// The last one.
        cause: Cause,
    },
    /// An ejection ended.
    Returned {
        /// The backend.
        backend: Arc<Backend<E>>,
        /// Whether a good check ended it before its time.
        by_check: bool,
    },
    /// No backend is usable: from now on health is ignored.
    Panic {
        /// How many backends there are.
        backends: usize,
    },
    /// A backend is usable again.
    PanicOver,
}

impl<E> Event<E> {
    /// Returns whether somebody should look at it.
    pub const fn is_warning(&self) -> bool {
        matches!(self, Self::Unhealthy { .. } | Self::Ejected { .. } | Self::Kept { .. } | Self::Panic { .. })
    }
}

impl<E: fmt::Display> fmt::Display for Event<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { backend } => write!(f, "backend {} was added", backend.key()),
            Self::Removed { backend } => write!(f, "backend {} was removed", backend.key()),
            Self::Unhealthy { backend, cause } => {
                write!(f, "backend {} is unhealthy: its checks failed ({cause})", backend.key())
            }
            Self::Healthy { backend } => write!(f, "backend {} is healthy again", backend.key()),
            Self::Ejected { backend, failures, cause, lasting } => write!(
                f,
                "backend {} is left alone for {lasting:?}: {failures} failures in a row, the last one {cause}",
                backend.key()
            ),
            Self::Kept { backend, failures, cause } => write!(
                f,
                "backend {} failed {failures} times in a row ({cause}), but stays: too few others are usable",
                backend.key()
            ),
            Self::Returned { backend, by_check: true } => {
                write!(f, "backend {} is back: a check succeeded", backend.key())
            }
            Self::Returned { backend, by_check: false } => {
                write!(f, "backend {} is given another try", backend.key())
            }
            Self::Panic { backends } => {
                write!(f, "none of {backends} backends is usable: all are tried, whatever their health")
            }
            Self::PanicOver => f.write_str("a backend is usable again: health counts"),
        }
    }
}

/// Figures of a roster since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Checks begun.
    pub checks_begun: u64,
    /// Checks that succeeded.
    pub checks_good: u64,
    /// Checks that failed with the backend to blame.
    pub checks_bad: u64,
    /// Checks that failed through the fault of this machine: they say nothing of the backend.
    pub checks_local: u64,
    /// Times a backend became unhealthy.
    pub failures_of_health: u64,
    /// Times a backend became healthy again.
    pub recoveries: u64,
    /// Failures met by clients with the backend to blame.
    pub failures: u64,
    /// Ejections.
    pub ejections: u64,
    /// Ejections that would have been one too many.
    pub ejections_refused: u64,
    /// Ends of ejections.
    pub returns: u64,
    /// Times no backend was usable.
    pub panics: u64,
    /// Empty lists that were refused.
    pub empty_lists: u64,
    /// Events that nobody took in time.
    pub events_lost: u64,
}

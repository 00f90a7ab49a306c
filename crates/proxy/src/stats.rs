//! Figures of a proxy: counted by each worker for itself, summed when asked for.

use std::sync::atomic::{AtomicU64, Ordering};

/// One figure. Written by one worker, read by anybody.
#[derive(Debug, Default)]
pub(crate) struct Figure(AtomicU64);

impl Figure {
    /// Counts `n` more. One writer: no locked instruction is needed.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts `n` less.
    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Returns the figure.
    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It is what it is at this moment.
    Gauge,
}

macro_rules! figures {
    ($($(#[doc = $help:literal])+ $name:ident: $kind:ident,)+) => {
        /// The figures of one worker.
        #[derive(Debug, Default)]
        pub(crate) struct Figures {
            $($(#[doc = $help])+ pub(crate) $name: Figure,)+
        }

        /// The figures of a proxy at one moment, all workers together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ProxyFigures {
            $($(#[doc = $help])+ pub $name: u64,)+
        }

        impl ProxyFigures {
            /// Every figure: its name, what it is, and what it says.
            pub const TABLE: &[(&str, Kind, &str)] =
                &[$((stringify!($name), Kind::$kind, concat!($($help),+)),)+];

            /// Returns the figures in the order of [`ProxyFigures::TABLE`].
            pub fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$name,)+].into_iter()
            }

            pub(crate) fn merge(&mut self, worker: &Figures) {
                $(self.$name = self.$name.wrapping_add(worker.$name.value());)+
            }
        }
    };
}

figures! {
    /// Clients' connections that are open.
    clients: Gauge,
    /// Clients' connections that were accepted.
    accepted: Counter,
    /// Clients' connections that were refused because there were too many.
    refused_full: Counter,
    /// Clients' connections that were refused because no PROXY header said who they are.
    refused_strangers: Counter,
    /// Lines of the access log that were written.
    access_log_lines: Counter,
    /// Lines of the access log that were lost: too many at once, or the file could not be written.
    access_log_lost: Counter,
    /// Clients' connections that were refused because no backend could be reached.
    refused_unreachable: Counter,
    /// Backends that were tried in vain before a client got its connection or was refused.
    tried_in_vain: Counter,
    /// Clients that got a spare: a connection that was dialled before they came.
    spares_used: Counter,
    /// Clients for whom a connection had to be dialled.
    spares_missed: Counter,
    /// Connections that ended because nothing had moved on them for too long.
    ended_idle: Counter,
    /// Connections that were cut because their backend was removed or failed its checks.
    cut: Counter,
    /// Connections that ended with an error on the client's side.
    failed_client: Counter,
    /// Connections that ended with an error on the backend's side.
    failed_backend: Counter,
    /// Requests of HTTP whose heads were read.
    requests: Counter,
    /// Requests that were refused because they were wrong or came too slowly.
    requests_bad: Counter,
    /// Requests that failed because no backend answered them rightly in time.
    requests_failed: Counter,
    /// Requests that were sent again, since the connection they went on turned out to be dead.
    retries: Counter,
    /// Requests that became tunnels, by 101 or CONNECT.
    tunnels: Counter,
    /// Bytes from clients to backends.
    bytes_up: Counter,
    /// Bytes from backends to clients.
    bytes_down: Counter,
    /// Bytes that went by splice(2), without being copied.
    bytes_spliced: Counter,
}

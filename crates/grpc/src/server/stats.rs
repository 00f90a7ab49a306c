//! Figures of a server: counted by each worker for itself, summed when asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use tonic::Code;

/// One figure. Written by one worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Figure(AtomicU64);

impl Figure {
    /// Counts `n` more. One writer: no locked instruction is needed.
    pub(super) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Counts `n` less.
    pub(super) fn sub(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(n), Ordering::Relaxed);
    }

    /// Returns the figure.
    pub(super) fn value(&self) -> u64 {
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
        pub(super) struct Figures {
            $($(#[doc = $help])+ pub(super) $name: Figure,)+
            /// Calls that have ended, by their code.
            pub(super) ended: [Figure; CODES],
        }

        /// The figures of a server at one moment, all workers together.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServerFigures {
            $($(#[doc = $help])+ pub $name: u64,)+
            /// Calls that have ended, by the number of their code.
            pub ended: [u64; CODES],
        }

        impl ServerFigures {
            /// Every figure but those by code: its name, what it is, and what it says.
            pub const TABLE: &[(&str, Kind, &str)] =
                &[$((stringify!($name), Kind::$kind, concat!($($help),+)),)+];

            /// Returns the figures in the order of [`ServerFigures::TABLE`].
            pub fn values(&self) -> impl Iterator<Item = u64> {
                [$(self.$name,)+].into_iter()
            }

            pub(super) fn merge(&mut self, worker: &Figures) {
                $(self.$name = self.$name.wrapping_add(worker.$name.value());)+
                for (sum, ended) in self.ended.iter_mut().zip(&worker.ended) {
                    *sum = sum.wrapping_add(ended.value());
                }
            }
        }
    };
}

/// How many codes gRPC has.
const CODES: usize = 17;

figures! {
    /// Connections that are open.
    connections: Gauge,
    /// Connections that were accepted.
    accepted: Counter,
    /// Connections that were refused because there were too many.
    refused: Counter,
    /// Connections that ended before TLS and HTTP/2 had begun.
    handshakes_failed: Counter,
    /// Calls that are in progress.
    in_flight: Gauge,
    /// Calls that came.
    calls: Counter,
    /// Calls that ended at once with RESOURCE_EXHAUSTED, since their connection had too many in flight.
    shed: Counter,
    /// Calls that ended with DEADLINE_EXCEEDED because this server or its client would not wait longer.
    timed_out: Counter,
    /// Calls that were broken off by their client.
    cancelled: Counter,
    /// Calls whose service panicked; its words are in the log of errors.
    panicked: Counter,
    /// Calls that were broken off because their client did not take the response.
    stalled: Counter,
    /// Requests that were no call of gRPC.
    not_grpc: Counter,
    /// Connections that were told goodbye since no call was in flight for too long.
    goaways_idle: Counter,
    /// Connections that were told goodbye since they were old enough.
    goaways_age: Counter,
    /// Connections that were told goodbye since the server was drained.
    goaways_drain: Counter,
    /// Connections that were told goodbye since they sent too many pings.
    goaways_pings: Counter,
    /// Connections that were told goodbye since they broke off too many calls.
    goaways_resets: Counter,
    /// Connections that were cut off: no sign of life, nothing taken, or too slow to end.
    cut: Counter,
    /// Bytes from clients, as HTTP/2 has them.
    bytes_received: Counter,
    /// Bytes to clients, as HTTP/2 has them.
    bytes_sent: Counter,
}

impl ServerFigures {
    /// Returns how many calls have ended with this code.
    pub fn ended(&self, code: Code) -> u64 {
        self.ended[code as usize]
    }

    /// Every code with how it is written, in the order of their numbers.
    pub const CODES: [(Code, &str); CODES] = [
        (Code::Ok, "ok"),
        (Code::Cancelled, "cancelled"),
        (Code::Unknown, "unknown"),
        (Code::InvalidArgument, "invalid_argument"),
        (Code::DeadlineExceeded, "deadline_exceeded"),
        (Code::NotFound, "not_found"),
        (Code::AlreadyExists, "already_exists"),
        (Code::PermissionDenied, "permission_denied"),
        (Code::ResourceExhausted, "resource_exhausted"),
        (Code::FailedPrecondition, "failed_precondition"),
        (Code::Aborted, "aborted"),
        (Code::OutOfRange, "out_of_range"),
        (Code::Unimplemented, "unimplemented"),
        (Code::Internal, "internal"),
        (Code::Unavailable, "unavailable"),
        (Code::DataLoss, "data_loss"),
        (Code::Unauthenticated, "unauthenticated"),
    ];
}

impl Figures {
    /// Counts a call that has ended.
    pub(super) fn end(&self, code: Code) {
        self.ended[code as usize].add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_stand_at_their_numbers() {
        for (number, (code, _)) in ServerFigures::CODES.iter().enumerate() {
            assert_eq!(*code as usize, number);
        }
    }
}

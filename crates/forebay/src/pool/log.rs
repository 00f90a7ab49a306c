//! The engine's events, as lines of a log. Nothing on a hot path makes one.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use forebay_core::Event;

/// Exhaustion comes in thousands: one line per pool and interval, with the number of those left out.
const EXHAUSTION_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Log {
    exhaustion: Mutex<Option<(Instant, u64)>>,
}

impl Log {
    pub(super) fn event(&self, upstream: &str, endpoint: &str, event: &Event) {
        match event {
            Event::Opened { slot, took } => {
                tracing::debug!(upstream, endpoint, slot = slot.index(), ?took, "connected");
            }
            Event::DialFailed { slot, cause } => {
                let blame = cause.blame().as_str();
                tracing::debug!(upstream, endpoint, slot = slot.index(), %cause, blame, "dial failed");
            }
            Event::Full { connections, waiting, .. } => {
                tracing::debug!(upstream, endpoint, connections, waiting, "full: connections are reused");
            }
            Event::Closed { slot, reason, uses, age } => {
                let reason = reason.as_str();
                tracing::debug!(upstream, endpoint, slot = slot.index(), reason, uses, ?age, "closed");
            }
            Event::BreakerOpened { cause, .. } => {
                let cause = cause.map_or("unknown", |cause| cause.as_str());
                tracing::warn!(upstream, endpoint, cause, "left alone: it failed too often in a row");
            }
            Event::BreakerClosed { .. } => tracing::info!(upstream, endpoint, "in use again"),
            Event::HealthChanged { health, .. } => {
                tracing::warn!(upstream, endpoint, ?health, "health changed")
            }
            Event::LocalExhaustion { cause, .. } => {
                if let Some(left_out) = self.admit_exhaustion(Instant::now()) {
                    tracing::warn!(
                        upstream, endpoint, %cause, left_out,
                        "this machine ran out of something; the upstream is not to blame"
                    );
                }
            }
            _ => {}
        }
    }

    /// Whether a line may be written now, and how many were not since the last one.
    fn admit_exhaustion(&self, now: Instant) -> Option<u64> {
        let mut last = self.exhaustion.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *last {
            Some((at, left_out)) if now.duration_since(*at) < EXHAUSTION_INTERVAL => {
                *left_out += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, left_out)| left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exhaustion_is_logged_once_per_interval_with_the_number_left_out() {
        let log = Log::default();
        let start = Instant::now();
        assert_eq!(log.admit_exhaustion(start), Some(0));
        assert_eq!(log.admit_exhaustion(start + EXHAUSTION_INTERVAL / 2), None);
        assert_eq!(log.admit_exhaustion(start + EXHAUSTION_INTERVAL / 2), None);
        assert_eq!(log.admit_exhaustion(start + EXHAUSTION_INTERVAL), Some(2));
    }
}

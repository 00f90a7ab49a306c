//! How often a client may ask for a sign of life, as gRPC servers see it (gRFC A8): who does it too often is sent away.

use std::time::Duration;

use forebay_core::Instant;

/// Pings that may come too early between two answers before a client is sent away: clocks differ, and some measure the
/// way with pings.
const STRIKES_MAX: u32 = 2;

/// What is known of one client's pings.
#[derive(Debug)]
pub(super) struct PingGuard {
    /// `None`: they may come as they like.
    interval_min: Option<Duration>,
    last: Option<Instant>,
    strikes: u32,
}

impl PingGuard {
    /// Nothing has come yet.
    pub(super) const fn new(interval_min: Option<Duration>) -> Self {
        Self { interval_min, last: None, strikes: 0 }
    }

    /// Takes note of `pings` that came together, and whether something was answered since those before. Returns whether
    /// that is too many.
    pub(super) fn handle_pings(&mut self, now: Instant, pings: u32, answered: bool) -> bool {
        let Some(interval_min) = self.interval_min else { return false };
        if answered {
            // What a client gets may make it ask how long the way is: that is forgiven.
            (self.strikes, self.last) = (0, None);
        }
        for _ in 0..pings.min(STRIKES_MAX + 2) {
            let is_early = self.last.is_some_and(|last| now < last + interval_min);
            self.last = Some(now);
            self.strikes = if is_early { self.strikes + 1 } else { 0 };
        }
        self.strikes > STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_secs(10);

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn a_client_that_keeps_to_the_interval_may_ping_for_ever() {
        let mut guard = PingGuard::new(Some(MIN));
        for n in 0..1000 {
            assert!(!guard.handle_pings(at(n * 10), 1, false));
        }
    }

    #[test]
    fn three_early_pings_are_too_many() {
        let mut guard = PingGuard::new(Some(MIN));
        assert!(!guard.handle_pings(at(1), 1, false));
        assert!(!guard.handle_pings(at(2), 1, false));
        assert!(!guard.handle_pings(at(3), 1, false));
        assert!(guard.handle_pings(at(4), 1, false));
        // However they come.
        assert!(PingGuard::new(Some(MIN)).handle_pings(at(1), u32::MAX, false));
    }

    #[test]
    fn pings_between_answers_are_forgiven() {
        let mut guard = PingGuard::new(Some(MIN));
        for n in 0..1000 {
            assert!(!guard.handle_pings(at(n), 1, true), "{n}");
        }
    }

    #[test]
    fn without_an_interval_nobody_is_sent_away() {
        assert!(!PingGuard::new(None).handle_pings(at(1), u32::MAX, false));
    }
}

//! Pauses between attempts: exponential, with full jitter, forgotten only after something proved useful.

use std::time::Duration;

use crate::config::BackoffConfig;
use crate::{Instant, Rng};

/// Counts failures in a row and says until when to pause.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
    until: Instant,
}

impl Backoff {
    pub(crate) const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0, until: Instant::ZERO }
    }

    /// Takes new bounds; a pause that would now be too long ends earlier.
    pub(crate) fn configure(&mut self, now: Instant, config: BackoffConfig) {
        (self.base, self.max) = (config.base, config.max);
        self.until = self.until.min(now + config.max);
    }

    /// Notes a failure. Failures of dials that began before the pause do not lengthen it: one outage that fails
    /// sixty-four dials at once is one failure.
    pub(crate) fn fail(&mut self, now: Instant, rng: &mut Rng) {
        if now < self.until {
            return;
        }
        let ceiling = self.base.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        // Never less than a tenth: full jitter may draw zero, and zero is a busy loop.
        self.until = now + rng.between(ceiling / 10, ceiling);
    }

    /// Forgets the past: the upstream has proved useful.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
        self.until = Instant::ZERO;
    }

    /// Until when to pause; a time in the past when there is no pause.
    pub(crate) const fn until(&self) -> Instant {
        self.until
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_maximum_and_are_never_zero() {
        let (base, max) = (Duration::from_millis(10), Duration::from_millis(80));
        let mut rng = Rng::new(3);
        let mut backoff = Backoff::new(base, max);
        let mut now = Instant::ZERO;
        for n in 0..50 {
            backoff.fail(now, &mut rng);
            let pause = backoff.until().saturating_duration_since(now);
            let ceiling = (base * (1 << n.min(3))).min(max);
            assert!(pause >= ceiling / 10 && pause <= ceiling, "{n}: {pause:?}");
            now = backoff.until();
            assert!(backoff.is_over(now));
        }
        backoff.reset();
        backoff.fail(now, &mut rng);
        assert!(backoff.until().saturating_duration_since(now) <= base);
    }

    #[test]
    fn many_failures_of_one_outage_count_once() {
        let mut rng = Rng::new(4);
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(10));
        for _ in 0..64 {
            backoff.fail(Instant::ZERO + Duration::from_nanos(1), &mut rng);
        }
        assert!(backoff.until() <= Instant::ZERO + Duration::from_millis(11));
    }
}

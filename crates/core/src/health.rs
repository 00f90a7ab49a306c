//! What active checks say of an endpoint: healthy after `rise` successes in a row, unhealthy after `fall` failures.

use crate::config::HealthConfig;
use crate::{Instant, Rng};

/// The verdict of the active checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not known to be bad. Left by `fall` failed checks in a row, to `Unhealthy`.
    Healthy,
    /// Known to be bad. Left by `rise` good checks in a row, to `Healthy`.
    Unhealthy,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Checks {
    config: HealthConfig,
    health: Health,
    streak: u32,
    next: Instant,
}

impl Checks {
    /// The first check comes at once, spread over a fifth of the interval.
    pub(crate) fn new(config: HealthConfig, now: Instant, rng: &mut Rng) -> Self {
        Self { config, health: Health::Healthy, streak: 0, next: now + rng.up_to(config.interval / 5) }
    }

    /// Takes a new policy. The verdict stays, the streak begins anew.
    pub(crate) fn configure(&mut self, now: Instant, config: HealthConfig) {
        if config != self.config {
            self.next = self.next.min(now + config.interval);
            self.config = config;
            self.streak = 0;
        }
    }

    pub(crate) const fn health(&self) -> Health {
        self.health
    }

    pub(crate) const fn next(&self) -> Instant {
        self.next
    }

    /// Whether a check is due; if so, the next one is planned.
    pub(crate) fn take_due(&mut self, now: Instant, rng: &mut Rng) -> bool {
        if now < self.next {
            return false;
        }
        let interval = self.config.interval;
        self.next = now + rng.between(interval * 4 / 5, interval * 6 / 5);
        true
    }

    /// Notes a check's result. Returns whether the verdict changed by it.
    pub(crate) fn note(&mut self, good: bool) -> bool {
        let agrees = good == (self.health == Health::Healthy);
        if agrees {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let (needed, other) = match self.health {
            Health::Healthy => (self.config.fall, Health::Unhealthy),
            Health::Unhealthy => (self.config.rise, Health::Healthy),
        };
        if self.streak < needed {
            return false;
        }
        self.health = other;
        self.streak = 0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_verdict_needs_a_streak() {
        let config = HealthConfig { rise: 2, fall: 3, interval: Duration::from_secs(1) };
        let mut checks = Checks::new(config, Instant::ZERO, &mut Rng::new(1));
        for good in [false, false, true, false, false] {
            assert!(!checks.note(good));
        }
        assert!(checks.note(false));
        assert_eq!(checks.health(), Health::Unhealthy);
        assert!(!checks.note(true));
        assert!(checks.note(true));
        assert_eq!(checks.health(), Health::Healthy);
    }

    #[test]
    fn checks_come_at_a_jittered_interval() {
        let config = HealthConfig { interval: Duration::from_secs(10), ..HealthConfig::default() };
        let mut rng = Rng::new(1);
        let mut checks = Checks::new(config, Instant::ZERO, &mut rng);
        assert!(checks.next() <= Instant::ZERO + Duration::from_secs(2));
        let due = checks.next();
        assert!(checks.take_due(due, &mut rng));
        assert!(!checks.take_due(due, &mut rng));
        let gap = checks.next().saturating_duration_since(due);
        assert!(gap >= Duration::from_secs(8) && gap <= Duration::from_secs(12));
    }
}

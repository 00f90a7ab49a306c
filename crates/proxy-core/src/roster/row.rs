//! What a roster knows of one backend.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::{Health, Instant};

use super::backend::{Backend, Standing};
use super::config::{CheckConfig, EjectionConfig, RosterConfig};

/// The least part of its share that a backend gets, in percent.
const PERCENT_MIN: u32 = 10;

/// How much more it gets at a time, in percent.
const PERCENT_STEP: u32 = 5;

#[derive(Debug)]
pub(super) struct Row<E> {
    pub(super) backend: Arc<Backend<E>>,
    health: Health,
    /// Checks in a row that disagree with `health`.
    streak: u32,
    check: Check,
    last_check: Instant,
    ejected: Option<Ejection>,
    /// How often in a row it was ejected, and the last time.
    ejections: u32,
    last: Ejection,
    warming: Option<Warming>,
}

#[derive(Clone, Copy, Debug)]
enum Check {
    /// Checks are off.
    Off,
    /// One is to begin at this time. Left when it begins, to `Running`.
    Due(Instant),
    /// One is on its way. Left by its result, to `Due`.
    Running {
        since: Instant,
        /// When the one after it comes, if nobody is in a hurry then.
        next: Instant,
    },
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    since: Instant,
    /// Planned while it lasts, real once it is over.
    until: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Warming {
    since: Instant,
    percent: u32,
}

impl<E> Row<E> {
    pub(super) const fn new(backend: Arc<Backend<E>>) -> Self {
        Self {
            backend,
            health: Health::Healthy,
            streak: 0,
            check: Check::Off,
            last_check: Instant::ZERO,
            ejected: None,
            ejections: 0,
            last: Ejection { since: Instant::ZERO, until: Instant::ZERO },
            warming: None,
        }
    }

    pub(super) const fn health(&self) -> Health {
        self.health
    }

    pub(super) const fn is_ejected(&self) -> bool {
        self.ejected.is_some()
    }

    pub(super) fn is_usable(&self) -> bool {
        self.health == Health::Healthy && self.ejected.is_none()
    }

    /// Plans the next check, unless one is on its way.
    pub(super) const fn plan_check(&mut self, at: Instant) {
        if !matches!(self.check, Check::Running { .. }) {
            self.check = Check::Due(at);
        }
    }

    /// Plans a check for now, or as soon as the last one is `pause` ago.
    pub(super) fn hasten_check(&mut self, now: Instant, pause: Duration) {
        if let Check::Due(at) = self.check {
            let soonest =
                if self.last_check == Instant::ZERO { now } else { now.max(self.last_check + pause) };
            self.check = Check::Due(at.min(soonest));
        }
    }

    pub(super) const fn forget_checks(&mut self) {
        self.check = Check::Off;
        self.health = Health::Healthy;
        self.streak = 0;
    }

    /// Whether a check is to begin now.
    pub(super) fn wants_check(&self, now: Instant) -> bool {
        matches!(self.check, Check::Due(at) if at <= now)
    }

    pub(super) const fn begin_check(&mut self, now: Instant, next: Instant) {
        self.check = Check::Running { since: now, next };
    }

    /// Ends the check that is on its way, if there is one, and plans the next. Returns when it had begun.
    pub(super) fn finish_check(&mut self, now: Instant, pause: Duration) -> Option<Instant> {
        let Check::Running { since, next } = self.check else { return None };
        self.last_check = now;
        self.check = Check::Due(next.max(now + pause));
        Some(since)
    }

    /// Notes a check's result. Returns whether the verdict changed by it.
    pub(super) fn note_check(&mut self, is_good: bool, checks: &CheckConfig) -> bool {
        if is_good == (self.health == Health::Healthy) {
            self.streak = 0;
            return false;
        }
        self.streak += 1;
        let (needed, other) = match self.health {
            Health::Healthy => (checks.fall, Health::Unhealthy),
            Health::Unhealthy => (checks.rise, Health::Healthy),
        };
        if self.streak < needed {
            return false;
        }
        (self.health, self.streak) = (other, 0);
        true
    }

    pub(super) const fn ejected_since(&self) -> Option<Instant> {
        match self.ejected {
            Some(ejection) => Some(ejection.since),
            None => None,
        }
    }

    pub(super) const fn ejected_until(&self) -> Option<Instant> {
        match self.ejected {
            Some(ejection) => Some(ejection.until),
            None => None,
        }
    }

    /// Begins an ejection. Returns how long it will last.
    pub(super) fn eject(&mut self, now: Instant, config: &EjectionConfig) -> Duration {
        let lasted = self.last.until.saturating_duration_since(self.last.since);
        let is_in_a_row = self.ejections > 0 && now.saturating_duration_since(self.last.until) <= lasted;
        self.ejections = if is_in_a_row { self.ejections.saturating_add(1) } else { 1 };
        let lasting = config.base.saturating_mul(self.ejections).min(config.max);
        self.ejected = Some(Ejection { since: now, until: now + lasting });
        self.warming = None;
        lasting
    }

    /// Ends an ejection. What returns unproved is ejected again by its first failure.
    pub(super) fn end_ejection(&mut self, now: Instant, is_proved: bool, config: &RosterConfig) {
        if let Some(ejection) = self.ejected.take() {
            self.last = Ejection { until: now, ..ejection };
            let failures = if is_proved { 0 } else { config.ejection.failures.saturating_sub(1) };
            self.backend.set_failures(failures);
            self.warm(now, config);
        }
    }

    /// Begins a slow start.
    pub(super) fn warm(&mut self, now: Instant, config: &RosterConfig) {
        if !config.slow_start.is_zero() {
            self.warming = Some(Warming { since: now, percent: PERCENT_MIN });
        }
    }

    pub(super) const fn stop_warming(&mut self) {
        self.warming = None;
    }

    /// Gives it as much of its share as it has earned by now. Returns whether that changed.
    pub(super) fn grow(&mut self, now: Instant, config: &RosterConfig) -> bool {
        let Some(warming) = &mut self.warming else { return false };
        let age = now.saturating_duration_since(warming.since);
        let percent = percent_at(age, config.slow_start);
        if percent == warming.percent {
            return false;
        }
        warming.percent = percent;
        if percent == 100 {
            self.warming = None;
        }
        true
    }

    /// Tells workers what is thought of it.
    pub(super) fn publish(&self) {
        let (standing, percent) = match (self.health, self.ejected, self.warming) {
            (Health::Unhealthy, ..) => (Standing::Unhealthy, 0),
            (_, Some(_), _) => (Standing::Ejected, 0),
            (_, _, Some(warming)) => (Standing::Warming, warming.percent),
            _ => (Standing::Usable, 100),
        };
        self.backend.publish(standing, percent);
    }

    pub(super) fn next_timeout(&self, config: &RosterConfig) -> Instant {
        let check = match self.check {
            Check::Due(at) => at,
            Check::Off | Check::Running { .. } => Instant::MAX,
        };
        let growth = self.warming.map_or(Instant::MAX, |warming| {
            warming.since + age_at(warming.percent + PERCENT_STEP, config.slow_start)
        });
        check.min(growth).min(self.ejected_until().unwrap_or(Instant::MAX))
    }
}

/// How much of its share a backend gets at an age: from a tenth to all of it, in steps.
fn percent_at(age: Duration, slow_start: Duration) -> u32 {
    if age >= slow_start {
        return 100;
    }
    let steps = u128::from((100 - PERCENT_MIN) / PERCENT_STEP);
    // A nanosecond's rounding must not make a step come after its own time-out.
    let done = (age.as_nanos() + 1) * steps / slow_start.as_nanos();
    PERCENT_MIN + PERCENT_STEP * done.min(steps) as u32
}

/// The age at which a backend gets so much.
fn age_at(percent: u32, slow_start: Duration) -> Duration {
    slow_start.mul_f64(f64::from(percent.min(100) - PERCENT_MIN) / f64::from(100 - PERCENT_MIN))
}

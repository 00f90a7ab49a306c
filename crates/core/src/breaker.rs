//! Leaves an endpoint alone that failed too often, and tries it again with one probe at a time.
//!
//! ```text
//!            `failures` in a row                 pause over, next acquire
//!   Closed ─────────────────────────▶ Open ───────────────────────────────▶ HalfOpen
//!     ▲                                ▲                                       │
//!     │                                └──── the probe failed, longer pause ───┤
//!     └─────────────────────────────────────────────── the probe succeeded ────┘
//! ```
//!
//! Only failures that the upstream is to blame for arrive here; the endpoint sees to that in one place.

use crate::backoff::Backoff;
use crate::config::{BackoffConfig, BreakerConfig};
use crate::{Instant, Rng};

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes. Left by `failures` failures in a row, to `Open`.
    Closed,
    /// Nothing passes until the given time. Left by the first acquire after it, to `HalfOpen`.
    Open(Instant),
    /// One probe passes. Left by its success to `Closed`, by its failure to `Open`.
    HalfOpen,
}

/// Names one probe. Only the current one decides; news of an earlier one changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probe(u32);

impl Probe {
    /// Not a probe.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn is_some(self) -> bool {
        self != Self::NONE
    }
}

/// What a breaker says to an acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Go ahead.
    Pass,
    /// Go ahead: you are the probe, and your outcome decides.
    Probe(Probe),
    /// Not before this time.
    Refuse(Instant),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Breaker {
    state: BreakerState,
    failures_max: u32,
    failures: u32,
    /// How many probes were ever let through: the name of the last.
    probes: u32,
    probe_out: bool,
    pause: Backoff,
}

impl Breaker {
    pub(crate) const fn new(config: BreakerConfig) -> Self {
        Self {
            state: BreakerState::Closed,
            failures_max: config.failures,
            failures: 0,
            probes: 0,
            probe_out: false,
            pause: Backoff::new(config.open_base, config.open_max),
        }
    }

    /// Takes a new policy. A pause that is under way ends as it was drawn.
    pub(crate) fn configure(&mut self, now: Instant, config: BreakerConfig) {
        self.failures_max = config.failures;
        self.pause.configure(now, BackoffConfig { base: config.open_base, max: config.open_max });
    }

    pub(crate) const fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether a probe may start, or everything passes.
    pub(crate) fn is_available(&self, now: Instant) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open(until) => now >= until,
            BreakerState::HalfOpen => !self.probe_out,
        }
    }

    /// The probe whose outcome is awaited.
    pub(crate) const fn probe(&self) -> Probe {
        if self.probe_out { Probe(self.probes) } else { Probe::NONE }
    }

    /// The same probe if its outcome is still awaited, else none.
    pub(crate) fn current(&self, probe: Probe) -> Probe {
        if self.is_current(probe) { probe } else { Probe::NONE }
    }

    pub(crate) fn admit(&mut self, now: Instant) -> Admission {
        match self.state {
            BreakerState::Closed => Admission::Pass,
            BreakerState::Open(until) if now < until => Admission::Refuse(until),
            BreakerState::HalfOpen if self.probe_out => Admission::Refuse(now),
            BreakerState::Open(_) | BreakerState::HalfOpen => {
                self.state = BreakerState::HalfOpen;
                self.probe_out = true;
                self.probes = self.probes.wrapping_add(1).max(1);
                Admission::Probe(Probe(self.probes))
            }
        }
    }

    /// A probe ended without a verdict: its caller gave up, or this machine was at fault. The next acquire probes.
    pub(crate) fn abandon(&mut self, probe: Probe) {
        if self.is_current(probe) {
            self.probe_out = false;
        }
    }

    /// A success. Returns whether the breaker closed by it.
    pub(crate) fn succeed(&mut self, probe: Probe) -> bool {
        self.failures = 0;
        if !self.is_current(probe) {
            return false;
        }
        self.state = BreakerState::Closed;
        self.probe_out = false;
        self.pause.reset();
        true
    }

    /// A failure of the upstream. Returns whether the breaker opened by it.
    pub(crate) fn fail(&mut self, now: Instant, probe: Probe, rng: &mut Rng) -> bool {
        let opens = match self.state {
            BreakerState::Closed => {
                self.failures = self.failures.saturating_add(1);
                self.failures_max != 0 && self.failures >= self.failures_max
            }
            BreakerState::Open(_) => false,
            BreakerState::HalfOpen => self.is_current(probe),
        };
        if opens {
            self.pause.fail(now, rng);
            self.state = BreakerState::Open(self.pause.until());
            self.probe_out = false;
            self.failures = 0;
        }
        opens
    }

    fn is_current(&self, probe: Probe) -> bool {
        probe.is_some() && probe == self.probe()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn opened() -> (Breaker, Rng, Instant) {
        let mut rng = Rng::new(5);
        let mut breaker = Breaker::new(BreakerConfig {
            failures: 3,
            open_base: Duration::from_secs(1),
            open_max: Duration::from_secs(8),
        });
        assert!(!breaker.fail(Instant::ZERO, Probe::NONE, &mut rng));
        assert!(!breaker.fail(Instant::ZERO, Probe::NONE, &mut rng));
        assert!(breaker.fail(Instant::ZERO, Probe::NONE, &mut rng));
        let BreakerState::Open(until) = breaker.state() else { panic!("{breaker:?}") };
        (breaker, rng, until)
    }

    #[test]
    fn a_success_between_failures_starts_the_count_anew() {
        let mut rng = Rng::new(6);
        let mut breaker = Breaker::new(BreakerConfig { failures: 2, ..BreakerConfig::default() });
        for _ in 0..10 {
            assert!(!breaker.fail(Instant::ZERO, Probe::NONE, &mut rng));
            breaker.succeed(Probe::NONE);
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn a_threshold_of_zero_never_opens() {
        let mut rng = Rng::new(6);
        let mut breaker = Breaker::new(BreakerConfig { failures: 0, ..BreakerConfig::default() });
        for _ in 0..100 {
            assert!(!breaker.fail(Instant::ZERO, Probe::NONE, &mut rng));
        }
    }

    fn probe(breaker: &mut Breaker, now: Instant) -> Probe {
        match breaker.admit(now) {
            Admission::Probe(probe) => probe,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn half_open_lets_exactly_one_probe_through() {
        let (mut breaker, _, until) = opened();
        assert!(matches!(breaker.admit(until - Duration::from_nanos(1)), Admission::Refuse(_)));
        let first = probe(&mut breaker, until);
        assert!(matches!(breaker.admit(until), Admission::Refuse(_)));
        assert!(!breaker.is_available(until));
        assert!(breaker.succeed(first));
        assert_eq!(breaker.admit(until), Admission::Pass);
    }

    #[test]
    fn an_abandoned_probe_makes_room_for_the_next_and_then_decides_nothing() {
        let (mut breaker, mut rng, until) = opened();
        let first = probe(&mut breaker, until);
        breaker.abandon(first);
        let second = probe(&mut breaker, until);
        breaker.abandon(first);
        assert!(!breaker.succeed(first) && !breaker.fail(until, first, &mut rng));
        assert!(matches!(breaker.admit(until), Admission::Refuse(_)), "the second is still out");
        assert!(breaker.succeed(second));
    }

    #[test]
    fn late_news_of_old_requests_does_not_decide_the_probe() {
        let (mut breaker, mut rng, until) = opened();
        let first = probe(&mut breaker, until);
        assert!(!breaker.fail(until, Probe::NONE, &mut rng));
        assert!(!breaker.succeed(Probe::NONE));
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(breaker.fail(until, first, &mut rng));
        assert!(matches!(breaker.state(), BreakerState::Open(_)));
    }
}

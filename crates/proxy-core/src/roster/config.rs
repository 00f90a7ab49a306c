//! The policy of a roster: plain values, checked once.

use std::fmt;
use std::time::Duration;

/// What becomes of connections in use when their backend is removed or found unhealthy. Connections that nobody uses
/// are closed in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Active {
    /// They live on until they end by themselves.
    Keep,
    /// They are closed at once.
    Close,
}

/// Active checks. What is asked of a backend is the shell's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckConfig {
    /// The mean time between two checks of one backend; jittered by ±20 %. Default 5 s.
    pub interval: Duration,
    /// How long a check may take before it has failed. Default 5 s.
    pub timeout: Duration,
    /// Failures in a row that make a healthy backend unhealthy. Default 2.
    pub fall: u32,
    /// Successes in a row that make an unhealthy backend healthy. Default 1.
    pub rise: u32,
}

impl Default for CheckConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(5), fall: 2, rise: 1 }
    }
}

/// When a backend at which clients fail is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EjectionConfig {
    /// Failures in a row that eject a backend; zero never does. Default 5.
    pub failures: u32,
    /// How long the first ejection lasts; the second in a row lasts twice as long, and so on. In a row are those
    /// between which the backend stayed no longer than the last one lasted. Default 30 s.
    pub base: Duration,
    /// How long an ejection lasts at most. Default 300 s.
    pub max: Duration,
    /// How many of all backends may be ejected at once, in percent, rounded down; but one, unless this is zero, and
    /// never the last that is usable. Default 50.
    pub max_percent: u32,
}

impl Default for EjectionConfig {
    fn default() -> Self {
        Self { failures: 5, base: Duration::from_secs(30), max: Duration::from_secs(300), max_percent: 50 }
    }
}

/// The policy of a [`Roster`](super::Roster).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RosterConfig {
    /// Active checks; `None` is none. Default `None`.
    pub checks: Option<CheckConfig>,
    /// When a backend at which clients fail is left alone.
    pub ejection: EjectionConfig,
    /// How long a backend that came or came back gets less than its share, rising from a tenth; zero gives it all at
    /// once. Not at the process's start, and not for the only backend. Default 10 s.
    pub slow_start: Duration,
    /// Connections in use when checks find a backend unhealthy. Default [`Active::Close`].
    pub on_unhealthy: Active,
    /// Connections in use when a backend is removed from the list. Default [`Active::Close`].
    pub on_removed: Active,
    /// Whether a list without backends is taken. Default no: the last good one stays.
    pub allow_empty: bool,
}

impl Default for RosterConfig {
    fn default() -> Self {
        Self {
            checks: None,
            ejection: EjectionConfig::default(),
            slow_start: Duration::from_secs(10),
            on_unhealthy: Active::Close,
            on_removed: Active::Close,
            allow_empty: false,
        }
    }
}

impl RosterConfig {
    /// Checks every value.
    ///
    /// # Errors
    ///
    /// The first that cannot be, with what it may be.
    pub fn validate(&self) -> Result<(), RosterConfigError> {
        let wrong = |field, value: String, allowed| Err(RosterConfigError { field, value, allowed });
        if let Some(checks) = &self.checks {
            // A tenth of it is the least pause between checks, which must not be nothing.
            if checks.interval < Duration::from_millis(10) {
                return wrong("health.interval", format!("{:?}", checks.interval), "at least 10ms");
            }
            if checks.timeout.is_zero() {
                return wrong("health.timeout", "0s".to_owned(), "more than zero");
            }
            if checks.fall == 0 {
                return wrong("health.fall", "0".to_owned(), "at least 1");
            }
            if checks.rise == 0 {
                return wrong("health.rise", "0".to_owned(), "at least 1");
            }
        }
        let ejection = &self.ejection;
        if ejection.base.is_zero() {
            return wrong("health.ejection", "0s".to_owned(), "more than zero; failures = 0 ejects nobody");
        }
        if ejection.max < ejection.base {
            return wrong("health.ejection_max", format!("{:?}", ejection.max), "at least health.ejection");
        }
        if ejection.max_percent > 100 {
            return wrong("health.max_ejection_percent", ejection.max_percent.to_string(), "0 to 100");
        }
        Ok(())
    }
}

/// A value of a [`RosterConfig`] that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterConfigError {
    /// The setting's name below `[proxy]`, dotted.
    pub field: &'static str,
    /// The value it had.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl fmt::Display for RosterConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}; it must be {}", self.field, self.value, self.allowed)
    }
}

impl std::error::Error for RosterConfigError {}

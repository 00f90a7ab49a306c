//! The policy of one endpoint's connections: plain values, checked once, valid ever after.

use std::fmt;
use std::time::Duration;

/// What to do with an acquire when the pool is full: no free slot, and none may be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overflow {
    /// Wait in line, first in, first out, until the caller's deadline.
    #[default]
    Wait,
    /// Dial a connection beyond the pool's size, use it once, close it. When `temporary_max` is reached too, wait.
    Temporary,
    /// Refuse at once.
    Reject,
}

/// Which of several free slots serves the next acquire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IdleOrder {
    /// The one returned last: surplus idles out, caches stay warm. For streams.
    #[default]
    Lifo,
    /// The one returned first: spreads load behind one address.
    Fifo,
    /// Any, with equal chance: source-port entropy. For UDP (RFC 5452 §9.2).
    Random,
    /// The one of two chosen at random that carries less. For connections that carry many requests at once.
    LeastLoaded,
}

/// Back-off between dials after failures that the upstream is to blame for: exponential, full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackoffConfig {
    /// The longest pause after the first failure. Default 50 ms.
    pub base: Duration,
    /// The longest pause ever. Default 10 s.
    pub max: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self { base: Duration::from_millis(50), max: Duration::from_secs(10) }
    }
}

/// When an endpoint is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// How many failures of the upstream in a row open the breaker; zero never does. Default 8.
    pub failures: u32,
    /// How long the breaker stays open the first time; the next times are longer, with jitter. Default 500 ms.
    pub open_base: Duration,
    /// How long it stays open at most. Default 30 s.
    pub open_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self { failures: 8, open_base: Duration::from_millis(500), open_max: Duration::from_secs(30) }
    }
}

/// Active health checks. The engine says when ([`Action::Probe`](crate::Action::Probe)); what is asked is the shell's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// The mean time between two checks of one endpoint; jittered by ±20 %. Default 5 s.
    pub interval: Duration,
    /// Successes in a row that make an unhealthy endpoint healthy. Default 2.
    pub rise: u32,
    /// Failures in a row that make a healthy endpoint unhealthy. Default 3.
    pub fall: u32,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), rise: 2, fall: 3 }
    }
}

/// The policy of one endpoint's connections.
///
/// Fields are plain so that `Config { connections_max: 4, ..Config::default() }` reads well;
/// [`Config::validate`] is called wherever one enters the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The pool's size: connections that are connecting, ready, busy or draining, at most. Default 1024
    /// (more than any measured need on one endpoint, few enough for 16 endpoints under 20,000 descriptors).
    pub connections_max: u32,
    /// Connections kept warm without demand. Default 0.
    pub connections_min: u32,
    /// Connections that may stand idle; one more is closed when it is returned. Default 1024.
    pub idle_max: u32,
    /// Connections beyond `connections_max` under [`Overflow::Temporary`]. Default 0.
    pub temporary_max: u32,
    /// Requests one connection carries at once, clamped by what the peer allows. 1 is exclusive. Default 1.
    pub capacity: u32,
    /// Tickets that may wait. Default 16384: a second of waiting at 16,000 requests per second.
    pub waiters_max: u32,
    /// Dials in progress at once; the engine starts lower and grows on success. Default 64.
    pub dials_max: u32,
    /// What happens when the pool is full. Default [`Overflow::Wait`].
    pub overflow: Overflow,
    /// Which free slot is taken. Default [`IdleOrder::Lifo`].
    pub order: IdleOrder,
    /// Capacity wanted per lease in use, in percent, while nobody waits: 125 grows before saturation. Default 100.
    pub headroom_percent: u32,
    /// How long a dial may take. Default 5 s.
    pub dial_timeout: Duration,
    /// How long a connection may stand idle; `None` is forever. Default 60 s.
    pub idle_timeout: Option<Duration>,
    /// How old a connection may get; each is replaced at 80 to 95 % of it (jitter), retired at 100 %. `None` is any age. Default `None`.
    pub age_max: Option<Duration>,
    /// How many leases a connection may serve; `None` is any number. Default `None`.
    pub uses_max: Option<u64>,
    /// Pauses after failed dials.
    pub backoff: BackoffConfig,
    /// When the endpoint is left alone.
    pub breaker: BreakerConfig,
    /// Active checks; `None` is none. Default `None`.
    pub health: Option<HealthConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            connections_min: 0,
            idle_max: 1024,
            temporary_max: 0,
            capacity: 1,
            waiters_max: 16_384,
            dials_max: 64,
            overflow: Overflow::Wait,
            order: IdleOrder::Lifo,
            headroom_percent: 100,
            dial_timeout: Duration::from_secs(5),
            idle_timeout: Some(Duration::from_secs(60)),
            age_max: None,
            uses_max: None,
            backoff: BackoffConfig::default(),
            breaker: BreakerConfig::default(),
            health: None,
        }
    }
}

impl Config {
    /// Checks every field and every pair of fields that must agree.
    ///
    /// # Errors
    ///
    /// The first field that is wrong, with its value and what it may be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_limits()?;
        self.validate_times()
    }

    fn validate_limits(&self) -> Result<(), ConfigError> {
        let wrong =
            |field, value: u64, allowed| Err(ConfigError { field, value: value.to_string(), allowed });
        if self.connections_max == 0 {
            return wrong("connections_max", 0, "at least 1");
        }
        if self.connections_min > self.connections_max {
            return wrong("connections_min", self.connections_min.into(), "at most connections_max");
        }
        if self.idle_max < self.connections_min {
            return wrong("idle_max", self.idle_max.into(), "at least connections_min");
        }
        if self.capacity == 0 {
            return wrong("capacity", 0, "at least 1");
        }
        if self.waiters_max == 0 {
            return wrong("waiters_max", 0, "at least 1: who comes to an empty pool waits for a dial");
        }
        if self.dials_max == 0 {
            return wrong("dials_max", 0, "at least 1");
        }
        if self.overflow == Overflow::Temporary && self.temporary_max == 0 {
            return wrong("temporary_max", 0, "at least 1 when overflow is temporary");
        }
        if self.overflow != Overflow::Temporary && self.temporary_max != 0 {
            return wrong("temporary_max", self.temporary_max.into(), "0 unless overflow is temporary");
        }
        if !(100..=1000).contains(&self.headroom_percent) {
            return wrong("headroom_percent", self.headroom_percent.into(), "100 to 1000");
        }
        if self.uses_max == Some(0) {
            return wrong("uses_max", 0, "at least 1, or none");
        }
        if let Some(health) = self.health {
            if health.rise == 0 {
                return wrong("health.rise", 0, "at least 1");
            }
            if health.fall == 0 {
                return wrong("health.fall", 0, "at least 1");
            }
        }
        Ok(())
    }

    fn validate_times(&self) -> Result<(), ConfigError> {
        let positive = [
            ("dial_timeout", Some(self.dial_timeout)),
            ("idle_timeout", self.idle_timeout),
            ("age_max", self.age_max),
            ("backoff.base", Some(self.backoff.base)),
            ("breaker.open_base", Some(self.breaker.open_base)),
            ("health.interval", self.health.map(|h| h.interval)),
        ];
        for (field, value) in positive {
            if value == Some(Duration::ZERO) {
                return Err(ConfigError { field, value: "0s".to_owned(), allowed: "more than zero" });
            }
        }
        let ordered = [
            ("backoff.max", self.backoff.base, self.backoff.max, "at least backoff.base"),
            ("breaker.open_max", self.breaker.open_base, self.breaker.open_max, "at least breaker.open_base"),
        ];
        for (field, low, high, allowed) in ordered {
            if high < low {
                return Err(ConfigError { field, value: format!("{high:?}"), allowed });
            }
        }
        Ok(())
    }
}

/// A field of a [`Config`] that cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The field's name, dotted.
    pub field: &'static str,
    /// The value it had.
    pub value: String,
    /// What it may be.
    pub allowed: &'static str,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}; it must be {}", self.field, self.value, self.allowed)
    }
}

impl std::error::Error for ConfigError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_valid() {
        Config::default().validate().unwrap();
    }

    #[test]
    fn each_impossible_field_is_named() {
        let good = Config::default();
        let zero = Duration::ZERO;
        let cases = [
            ("connections_max", Config { connections_max: 0, ..good }),
            ("connections_min", Config { connections_min: 2, connections_max: 1, ..good }),
            ("idle_max", Config { connections_min: 2, idle_max: 1, ..good }),
            ("capacity", Config { capacity: 0, ..good }),
            ("waiters_max", Config { waiters_max: 0, ..good }),
            ("dials_max", Config { dials_max: 0, ..good }),
            ("temporary_max", Config { overflow: Overflow::Temporary, ..good }),
            ("temporary_max", Config { temporary_max: 1, ..good }),
            ("headroom_percent", Config { headroom_percent: 99, ..good }),
            ("uses_max", Config { uses_max: Some(0), ..good }),
            ("dial_timeout", Config { dial_timeout: zero, ..good }),
            ("idle_timeout", Config { idle_timeout: Some(zero), ..good }),
            ("age_max", Config { age_max: Some(zero), ..good }),
            ("backoff.base", Config { backoff: BackoffConfig { base: zero, ..good.backoff }, ..good }),
            (
                "backoff.max",
                Config { backoff: BackoffConfig { max: Duration::from_millis(1), ..good.backoff }, ..good },
            ),
            (
                "breaker.open_max",
                Config { breaker: BreakerConfig { open_max: zero, ..good.breaker }, ..good },
            ),
            (
                "health.rise",
                Config { health: Some(HealthConfig { rise: 0, ..HealthConfig::default() }), ..good },
            ),
            (
                "health.fall",
                Config { health: Some(HealthConfig { fall: 0, ..HealthConfig::default() }), ..good },
            ),
            (
                "health.interval",
                Config { health: Some(HealthConfig { interval: zero, ..HealthConfig::default() }), ..good },
            ),
        ];
        for (field, config) in cases {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
    }
}

//! `[dns.health]`: active checks.

use std::time::Duration;

use forebay::units::Span;
use forebay_core::HealthConfig;
use forebay_dns_core::forwarder::{HealthCheck, parse_question};
use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.health]` table: questions of our own that find out whether an upstream answers, before a client has to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthSettings {
    /// Whether upstreams are checked. Without, clients' queries show who fails, and one of them in a while finds out
    /// whether it answers again. An unhealthy upstream is asked last; if all are, that is ignored. Default `false`.
    pub enabled: bool,
    /// What is asked: a name and a type. Any answer will do, an error too. Default `. NS`.
    pub question: String,
    /// The time between two checks of one upstream, per worker, give or take a fifth. Default `10s`.
    pub interval: Span,
    /// How long an answer is waited for: no longer than `interval`. Default `1s`.
    pub timeout: Span,
    /// Answers in a row that make an unhealthy upstream healthy. Default 2.
    pub rise: u32,
    /// Failures in a row that make a healthy upstream unhealthy. Default 3.
    pub fall: u32,
}

impl Default for HealthSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            question: ". NS".to_owned(),
            interval: Span(Duration::from_secs(10)),
            timeout: Span(Duration::from_secs(1)),
            rise: 2,
            fall: 3,
        }
    }
}

/// What is asked, and how often. Checked even if it is off: a mistake must not wait for the day when it is on.
#[derive(Clone, Debug)]
pub(crate) struct HealthPlan {
    pub(crate) check: HealthCheck,
    pub(crate) config: HealthConfig,
}

impl HealthSettings {
    pub(super) fn plan(&self) -> Result<Option<HealthPlan>, SettingsError> {
        let wrong = |key: &str, problem: String| Err(SettingsError { key: format!("health.{key}"), problem });
        let question = match parse_question(&self.question) {
            Ok(question) => question,
            Err(error) => return wrong("question", format!("`{}`: {error}", self.question)),
        };
        if self.interval.0 < INTERVAL_MIN {
            return wrong("interval", format!("{} is too short: at least 100ms", self.interval));
        }
        if self.timeout.0 < TIMEOUT_MIN || self.timeout.0 > self.interval.0 {
            return wrong("timeout", format!("is {}; it must be 10ms to health.interval", self.timeout));
        }
        for (key, n) in [("rise", self.rise), ("fall", self.fall)] {
            if n == 0 {
                return wrong(key, "is 0; it must be at least 1".to_owned());
            }
        }
        let config = HealthConfig { interval: self.interval.0, rise: self.rise, fall: self.fall };
        let plan = HealthPlan { check: HealthCheck { question, timeout: self.timeout.0 }, config };
        Ok(self.enabled.then_some(plan))
    }
}

/// More often than this is a load, not a check.
const INTERVAL_MIN: Duration = Duration::from_millis(100);
/// No network is so quick that a shorter one would tell anything.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);

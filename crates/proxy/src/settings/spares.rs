//! `[proxy.spares]`: connections that are dialled ahead.

use std::time::Duration;

use forebay::units::Span;
use serde::{Deserialize, Serialize};

use super::{SettingsError, wrong};

/// The `[proxy.spares]` table: connections that are dialled ahead, and have never carried a client's byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpareSettings {
    /// Spares to one backend at most, all workers together; how many there are follows the rate of new clients. 0 is
    /// none. Default 64.
    pub max: u32,
    /// How old a spare may get, with jitter; it is replaced before. A Kubernetes API server drops a silent connection
    /// after 32 s. Default `20s`.
    pub age_max: Span,
    /// Without a new client for so long, no spare is replaced. Default `10s`.
    pub linger: Span,
}

impl Default for SpareSettings {
    fn default() -> Self {
        Self { max: 64, age_max: Span(Duration::from_secs(20)), linger: Span(Duration::from_secs(10)) }
    }
}

impl SpareSettings {
    pub(super) fn valid(self) -> Result<Option<Self>, SettingsError> {
        for (key, value) in [("spares.age_max", self.age_max), ("spares.linger", self.linger)] {
            if value.0 < Duration::from_millis(100) {
                return Err(wrong(key, value, "at least 100ms"));
            }
        }
        Ok((self.max > 0).then_some(self))
    }
}

//! `[dns.safety]`: what is done against forged answers.

use forebay_dns_core::forwarder::SafetyConfig;
use serde::{Deserialize, Serialize};

/// The `[dns.safety]` table: what is done against forged answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SafetySettings {
    /// Answers that fit no query, on one UDP socket, after which somebody is taken to be guessing: that upstream's
    /// sockets are replaced, and it is asked over TCP until it has been quiet for 10 s, if it takes TCP. Late and
    /// doubled answers do not count. 0 never suspects anybody. Default 4.
    pub near_misses_max: u32,
}

impl Default for SafetySettings {
    fn default() -> Self {
        Self { near_misses_max: 4 }
    }
}

impl SafetySettings {
    pub(super) fn config(&self) -> SafetyConfig {
        SafetyConfig { near_misses_max: self.near_misses_max }
    }
}

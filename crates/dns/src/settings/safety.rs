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
    /// Whether names go out over UDP with letters in random case, which an answer must repeat (0x20). An upstream that does
    /// not is found out, and asked in lower case for ten minutes. Default false.
    pub randomize_case: bool,
    /// Whether queries over UDP carry a DNS cookie (RFC 7873). From an upstream that has answered with one, an answer
    /// without is asked for again over TCP. Default false.
    pub cookies: bool,
}

impl Default for SafetySettings {
    fn default() -> Self {
        Self { near_misses_max: 4, randomize_case: false, cookies: false }
    }
}

impl SafetySettings {
    pub(super) fn config(&self) -> SafetyConfig {
        SafetyConfig {
            near_misses_max: self.near_misses_max,
            randomize_case: self.randomize_case,
            cookies: self.cookies,
        }
    }
}

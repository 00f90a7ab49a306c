//! `[dns.safety]`: what is done against forged answers.

use forebay_dns_core::forwarder::{CookieSecret, SafetyConfig};
use serde::{Deserialize, Serialize};

use super::SettingsError;

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
    /// Whether clients that send DNS cookies get ours (RFC 9018). Those that show a right one have a rate limit of their
    /// own, which queries forged in their name do not use up. Default false.
    pub server_cookies: bool,
    /// What cookies for clients are made with: 32 hexadecimal digits, the same on all servers behind one address; empty is
    /// a secret of this run alone. Default ``.
    pub cookie_secret: String,
}

impl Default for SafetySettings {
    fn default() -> Self {
        Self {
            near_misses_max: 4,
            randomize_case: false,
            cookies: false,
            server_cookies: false,
            cookie_secret: String::new(),
        }
    }
}

impl SafetySettings {
    pub(super) fn valid(&self) -> Result<SafetyConfig, SettingsError> {
        let wrong = |problem: &str| SettingsError {
            key: "safety.cookie_secret".to_owned(),
            problem: problem.to_owned(),
        };
        let mut secret = [0; 16];
        if !self.cookie_secret.is_empty() {
            secret = unhex(&self.cookie_secret)
                .ok_or_else(|| wrong("is not 32 hexadecimal digits, as `openssl rand -hex 16` makes them"))?;
            if !self.server_cookies {
                return Err(wrong("is of no use: set safety.server_cookies = true, or leave it out"));
            }
        } else if self.server_cookies {
            getrandom::fill(&mut secret)
                .map_err(|_| wrong("cannot be made: the system gives no random bytes"))?;
        }
        Ok(SafetyConfig {
            near_misses_max: self.near_misses_max,
            randomize_case: self.randomize_case,
            cookies: self.cookies,
            server_cookies: self.server_cookies.then_some(CookieSecret::new(secret)),
        })
    }
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    let digits = text.as_bytes().as_chunks::<2>();
    if digits.0.len() != bytes.len() || !digits.1.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.0) {
        let digit = |ascii: &u8| char::from(*ascii).to_digit(16);
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(bytes)
}

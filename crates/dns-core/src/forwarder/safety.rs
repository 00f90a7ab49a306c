//! What is done against forged answers, as settings.

use super::vouching::CookieSecret;

/// What is done against forged answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SafetyConfig {
    /// Answers that fit no query, on one socket, after which somebody is taken to be guessing: the endpoint's sockets
    /// are replaced, and it is asked over streams for a while. 0 is never. Default 4: each guess has one chance in
    /// 65,536 at best.
    pub near_misses_max: u32,
    /// Whether names go out over datagrams spelled at random, and must come back so. Default false.
    pub randomize_case: bool,
    /// Whether cookies go out over datagrams, and must come back once they have (RFC 7873). Default false.
    pub cookies: bool,
    /// What cookies for clients are made with (RFC 9018); `None` is no cookies. Default `None`.
    pub server_cookies: Option<CookieSecret>,
}

impl Default for SafetyConfig {
    fn default() -> Self {
        Self { near_misses_max: 4, randomize_case: false, cookies: false, server_cookies: None }
    }
}

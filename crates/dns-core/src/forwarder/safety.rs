//! What is done against forged answers, as settings.

/// What is done against forged answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SafetyConfig {
    /// Answers that fit no query, on one socket, after which somebody is taken to be guessing: the endpoint's sockets
    /// are replaced, and it is asked over streams for a while. 0 is never. Default 4: each guess has one chance in
    /// 65,536 at best.
    pub near_misses_max: u32,
}

impl Default for SafetyConfig {
    fn default() -> Self {
        Self { near_misses_max: 4 }
    }
}

//! Whether a request that failed may be sent again, and how many may be.

use std::time::Duration;

use forebay_core::Instant;

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Whether any byte of it was written.
    pub any: bool,
    /// Whether its method may be asked twice (RFC 9110 §9.2.2).
    pub is_idempotent: bool,
    /// Whether all of it that was written is still there to be written again.
    pub is_kept: bool,
    /// Whether the connection had carried a request before.
    pub on_reused: bool,
    /// Whether any byte of a response has come, or any of it has gone to the client.
    pub answered: bool,
}

/// How it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No connection was had.
    Dial,
    /// The connection was closed or reset.
    Closed,
    /// The backend has said that it did not look at the request (HTTP/2: REFUSED_STREAM, a stream above GOAWAY's).
    Refused,
    /// The response did not come in time. The backend may be at work still.
    TimedOut,
    /// What came was no response.
    Malformed,
}

/// What becomes of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It may be tried at the next backend.
    Next,
    /// It may be sent once more to the same backend, on a connection that has carried nothing: it was the connection
    /// that was dead, and nobody is to blame.
    Fresh,
    /// It fails.
    No(Stays),
}

/// Why a request is not sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stays {
    /// A byte of the response has come.
    Answered,
    /// Asking twice would be doing twice (RFC 9110 §9.2.2).
    NotIdempotent,
    /// A part of its body has gone, and was not kept.
    BodyGone,
    /// The connection was a new one: that it broke says something of the request, or of the backend.
    NotReused,
    /// The backend may still be at work.
    TimedOut,
    /// What came was an answer, though a bad one.
    Malformed,
}

impl Sent {
    /// Returns what becomes of the request. The budget has its own say.
    pub const fn replay(&self, failure: Failure) -> Replay {
        match (failure, self) {
            (_, Self { answered: true, .. }) => Replay::No(Stays::Answered),
            (Failure::Dial, _) if !self.any => Replay::Next,
            (Failure::TimedOut, _) => Replay::No(Stays::TimedOut),
            (Failure::Malformed, _) => Replay::No(Stays::Malformed),
            (_, Self { is_kept: false, any: true, .. }) => Replay::No(Stays::BodyGone),
            (Failure::Refused | Failure::Dial, _) => Replay::Next,
            // RFC 9112 §9.3.1, §9.5: only what may be asked twice, and only where a connection may have idled out.
            (Failure::Closed, Self { on_reused: false, .. }) => Replay::No(Stays::NotReused),
            (Failure::Closed, Self { any: false, .. } | Self { is_idempotent: true, .. }) => Replay::Fresh,
            (Failure::Closed, _) => Replay::No(Stays::NotIdempotent),
        }
    }
}

/// How many requests may be sent again: one in five, and three in a second at least, so that retries cannot become the
/// load under which backends fail.
#[derive(Clone, Debug)]
pub struct RetryBudget {
    /// In thousandths of a retry.
    tokens: u64,
    filled_at: Option<Instant>,
}

/// What one request adds, and what a second adds, in thousandths.
const PER_REQUEST: u64 = 200;
const PER_SECOND: u64 = 3000;
/// As many connections as one worker commonly keeps to one backend, which may break all at once.
const TOKENS_MAX: u64 = 256_000;

impl Default for RetryBudget {
    fn default() -> Self {
        // What ten quiet seconds would have saved.
        Self { tokens: 10 * PER_SECOND, filled_at: None }
    }
}

impl RetryBudget {
    /// A request has come.
    #[inline]
    pub fn handle_request(&mut self) {
        self.tokens = TOKENS_MAX.min(self.tokens + PER_REQUEST);
    }

    /// Takes the right to send one request again. Returns whether there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let since =
            self.filled_at.replace(now).map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.tokens = TOKENS_MAX.min(self.tokens.saturating_add(millis.saturating_mul(PER_SECOND / 1000)));
        let left = self.tokens.checked_sub(1000);
        self.tokens = left.unwrap_or(self.tokens);
        left.is_some()
    }
}

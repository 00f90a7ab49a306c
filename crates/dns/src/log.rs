//! What is written of connections: one line for each made, failed or closed, and for pools that are full.

use std::time::Duration;

use forebay_core::{CloseReason, Event, Instant};
use forebay_dns_core::forwarder::Notice;

/// How often a worker says that this machine ran out of something: it may happen thousands of times a second.
const EXHAUSTION_INTERVAL: Duration = Duration::from_secs(1);

/// Writes events to the log.
#[derive(Debug)]
pub(crate) struct Log {
    next_exhaustion: Instant,
    left_out: u64,
}

impl Log {
    pub(crate) const fn new(now: Instant) -> Self {
        Self { next_exhaustion: now, left_out: 0 }
    }

    /// Writes one, about this endpoint.
    pub(crate) fn write(&mut self, now: Instant, event: Event, endpoint: &str) {
        match event {
            Event::Opened { slot, took } => {
                tracing::debug!(endpoint, slot = slot.index(), ?took, "connection made");
            }
            Event::DialFailed { cause, .. } => {
                tracing::debug!(endpoint, %cause, blame = %cause.blame(), "connection could not be made");
            }
            Event::Full { connections, waiting, .. } => {
                tracing::debug!(endpoint, connections, waiting, "pool full: its connections are reused");
            }
            Event::Closed { slot, reason: CloseReason::Idle, uses, age } => {
                tracing::debug!(endpoint, slot = slot.index(), uses, ?age, "idle connection cleaned up");
            }
            Event::Closed { slot, reason, uses, age } => {
                let reason = reason.as_str();
                tracing::debug!(endpoint, slot = slot.index(), reason, uses, ?age, "connection closed");
            }
            Event::BreakerOpened { cause, .. } => {
                let cause = cause.map_or("unknown", forebay_core::Cause::as_str);
                tracing::warn!(endpoint, cause, "upstream is left alone for a moment: it failed too often");
            }
            Event::BreakerClosed { .. } => tracing::info!(endpoint, "upstream answers again"),
            Event::HealthChanged { health, .. } => tracing::warn!(endpoint, ?health, "health changed"),
            Event::LocalExhaustion { cause, .. } => self.write_exhaustion(now, cause, endpoint),
            _ => {}
        }
    }

    fn write_exhaustion(&mut self, now: Instant, cause: forebay_core::Cause, endpoint: &str) {
        if now < self.next_exhaustion {
            self.left_out += 1;
            return;
        }
        self.next_exhaustion = now + EXHAUSTION_INTERVAL;
        let left_out = std::mem::take(&mut self.left_out);
        tracing::warn!(
            endpoint, %cause, left_out,
            "this machine ran out of something; the upstream is not to blame"
        );
    }
}

/// Writes what a person should know of about an upstream.
pub(crate) fn notify(notice: Notice, endpoint: &str) {
    match notice {
        Notice::Guessing { guesses } => tracing::warn!(
            endpoint,
            guesses,
            "somebody sends guessed answers in this upstream's name: its sockets are replaced, and it is asked over TCP"
        ),
        Notice::FewAnswers { answers } => tracing::info!(
            endpoint,
            answers,
            "this upstream answers only so many queries on a connection: each is used for no more, for ten minutes"
        ),
        Notice::CaseNotKept => tracing::warn!(
            endpoint,
            "this upstream does not keep the letter case of questions: it is asked in lower case for ten minutes"
        ),
        Notice::CookiesLost => {
            tracing::warn!(endpoint, "this upstream gave DNS cookies, and does so no more");
        }
    }
}

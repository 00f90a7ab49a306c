//! The one place where an outcome meets the breaker and the back-off.

use super::{Context, Endpoint};
use crate::breaker::{BreakerState, Probe};
use crate::engine::{Outcome, TicketError};
use crate::event::Event;
use crate::slot::SlotId;
use crate::{Blame, Cause};

impl Endpoint {
    pub(crate) fn judge(&mut self, cx: &mut Context<'_>, probe: Probe, outcome: Outcome) {
        match outcome.verdict() {
            Some(Ok(())) => {
                let paused = !self.backoff.is_over(cx.now);
                self.backoff.reset();
                let closed = self.breaker.succeed(probe);
                if closed {
                    cx.events.push_back(Event::BreakerClosed { endpoint: self.id });
                }
                if closed || paused {
                    self.grow(cx);
                }
            }
            Some(Err(cause)) if cause.blame() == Blame::Upstream => {
                self.counters.failures += 1;
                self.last_failure = Some(cause);
                self.breaker_failed(cx, probe, cause);
            }
            Some(Err(_)) | None => self.breaker.abandon(probe),
        }
    }

    pub(super) fn breaker_failed(&mut self, cx: &mut Context<'_>, probe: Probe, cause: Cause) {
        if self.breaker.fail(cx.now, probe, cx.rng)
            && let BreakerState::Open(until) = self.breaker.state()
        {
            self.counters.breaker_opened += 1;
            cx.events.push_back(Event::BreakerOpened { endpoint: self.id, until, cause: Some(cause) });
            self.arm(until);
        }
    }

    pub(super) fn dial_failed(&mut self, cx: &mut Context<'_>, index: u32, cause: Cause) {
        let slot = self.slots[index as usize];
        let id = SlotId { endpoint: self.id, index, generation: slot.generation };
        self.vacate(index);
        self.counters.dial_failed(cause);
        self.last_failure = Some(cause);
        cx.events.push_back(Event::DialFailed { slot: id, cause });
        match cause.blame() {
            Blame::Upstream => {
                self.dial_window = (self.dial_window / 2).max(1);
                self.backoff.fail(cx.now, cx.rng);
                // While half open there is one dial at a most, and what becomes of it is what the probe found.
                self.breaker_failed(cx, self.breaker.probe(), cause);
            }
            Blame::Local => {
                self.dial_window = (self.dial_window / 2).max(1);
                self.local_pause.fail(cx.now, cx.rng);
                self.exhausted(cx, cause);
            }
            Blame::Client => {}
        }
        self.breaker.abandon(slot.probe);
        if let Some((old, generation)) = slot.replaces
            && self.is_current(old, generation)
        {
            self.age_again(cx, old);
        }
        self.grow(cx);
        if !self.could_serve() && cause.blame() != Blame::Client {
            while let Some((ticket_index, ticket)) = self.tickets.pop() {
                self.fail_ticket(cx, ticket_index, &ticket, TicketError::Dial(cause));
            }
        }
    }

    pub(super) fn exhausted(&mut self, cx: &mut Context<'_>, cause: Cause) {
        self.counters.local_exhaustions += 1;
        cx.events.push_back(Event::LocalExhaustion { endpoint: self.id, cause });
    }
}

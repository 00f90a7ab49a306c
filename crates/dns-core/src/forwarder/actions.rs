//! What the engine wants done: some is done here, the rest goes to the shell.

use forebay_core::{Action, Blame, Cause, Instant, Outcome, SlotId, TicketId};

use super::config::Carrier;
use super::flight::{self, AttemptState};
use super::{Forwarder, LinkAction, Outbox};

impl Forwarder {
    /// Takes every action of the engine and does it, or passes it on to the shell.
    pub(super) fn process(&mut self, now: Instant, out: &mut impl Outbox) {
        self.close_condemned(now, out);
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Dial { slot, timeout } => {
                    let (endpoint, carrier) = self.roles[slot.endpoint().index()];
                    self.links.push_back(LinkAction::Dial { slot, endpoint, carrier, timeout });
                }
                Action::Close { slot, .. } => {
                    // What the shell has told to be gone already needs no closing.
                    if self.exchanges.close(slot) {
                        self.links.push_back(LinkAction::Close { slot });
                    } else {
                        self.engine.handle_closed(now, slot);
                    }
                }
                Action::Grant { ticket, lease } => match self.ticket_holder(ticket) {
                    Some(attempt) => self.granted(now, attempt, lease, out),
                    None => self.engine.release(now, lease, Outcome::Unused),
                },
                Action::Fail { ticket, error } => {
                    if let Some(attempt) = self.ticket_holder(ticket) {
                        self.line_failed(now, attempt, error, out);
                    }
                }
                Action::Probe { endpoint } => self.probe(now, endpoint, out),
            }
        }
    }

    pub(super) fn line_failed(
        &mut self,
        now: Instant,
        attempt: u32,
        error: forebay_core::TicketError,
        out: &mut impl Outbox,
    ) {
        let (flight, endpoint) = {
            let attempt = self.flights.attempt(attempt);
            (attempt.flight, attempt.endpoint)
        };
        self.flights.remove_attempt(attempt);
        if let forebay_core::TicketError::Dial(cause) = error
            && cause.blame() == Blame::Upstream
        {
            self.strike(now, flight, endpoint, true);
        }
        self.flights.flight_mut(flight).failure = Some(match error {
            forebay_core::TicketError::Dial(cause) => cause,
            forebay_core::TicketError::Timeout { last, .. } => last.unwrap_or(Cause::Limit),
            _ => Cause::Limit,
        });
        self.attempt(now, flight, out);
    }

    pub(super) fn remember_ticket(&mut self, ticket: TicketId, attempt: u32) {
        let table = &mut self.tickets[ticket.endpoint().index()];
        if table.len() <= ticket.index() {
            table.resize(ticket.index() + 1, flight::NONE);
        }
        table[ticket.index()] = attempt;
    }

    pub(super) fn ticket_holder(&self, ticket: TicketId) -> Option<u32> {
        let attempt = *self.tickets[ticket.endpoint().index()].get(ticket.index())?;
        let state = &self.flights.attempt(attempt).state;
        matches!(state, AttemptState::Line(held) if *held == ticket).then_some(attempt)
    }

    pub(super) fn carrier(&self, slot: SlotId) -> Carrier {
        self.roles[slot.endpoint().index()].1
    }
}

//! Who has a unit of capacity, and who waits for one.

use super::{Context, Endpoint, Stop};
use crate::Instant;
use crate::breaker::Probe;
use crate::config::Overflow;
use crate::engine::{Acquired, Action, Refusal, TicketError};
use crate::event::{AcquireOutcome, CloseReason};
use crate::slot::{Lease, SlotId, State};
use crate::ticket::{Ticket, TicketId};

impl Endpoint {
    pub(super) fn line_up(
        &mut self,
        cx: &mut Context<'_>,
        deadline: Instant,
        since: Instant,
        probe: Probe,
    ) -> Acquired {
        let refusal = if self.tickets.len() >= self.config.waiters_max {
            Some(Refusal::LineFull { waiters: self.tickets.len(), in_use: self.in_use })
        } else if deadline <= cx.now {
            Some(Refusal::Deadline { in_use: self.in_use })
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.breaker.abandon(probe);
            if probe.is_some() {
                // The pause is over: who stands in line already has the probe that this caller could not use.
                self.grow(cx);
            }
            return self.refuse(refusal);
        }
        let (index, generation) = self.tickets.push(since, deadline, probe);
        let stop = self.grow(cx);
        if let Some(refusal) = self.overflow(stop, deadline)
            && let Some(ticket) = self.tickets.remove(index, generation)
        {
            self.breaker.abandon(ticket.probe);
            return self.refuse(refusal);
        }
        self.arm(deadline);
        Acquired::Wait(TicketId { endpoint: self.id, index, generation })
    }

    /// The newest ticket cannot be sure of a connection: what the policy says to that.
    pub(super) fn overflow(&self, stop: Stop, deadline: Instant) -> Option<Refusal> {
        if !self.is_newest_unpromised() {
            return None;
        }
        match stop {
            Stop::Denied(denied) if self.config.overflow == Overflow::Reject => {
                Some(Refusal::Full { in_use: self.in_use, denied })
            }
            Stop::Pause(until) if until >= deadline && !self.could_serve() => {
                Some(Refusal::Backoff { until, last: self.last_failure })
            }
            Stop::Breaker(until) if !self.could_serve() => {
                Some(Refusal::BreakerOpen { until, last: self.last_failure })
            }
            _ => None,
        }
    }

    /// Whether the newest ticket has no part in what the dials under way will bring.
    pub(super) fn is_newest_unpromised(&self) -> bool {
        let pooled = self.counts[State::Connecting as usize] - self.temporary_connecting;
        let promised =
            u64::from(pooled) * u64::from(self.capacity_guess) + u64::from(self.temporary_connecting);
        u64::from(self.tickets.len()) > promised
    }

    /// Whether any slot could ever serve a waiting ticket.
    pub(super) const fn could_serve(&self) -> bool {
        self.counts[State::Ready as usize]
            + self.counts[State::Busy as usize]
            + self.counts[State::Connecting as usize]
            > 0
    }

    pub(super) const fn refuse(&mut self, refusal: Refusal) -> Acquired {
        self.counters.acquired(AcquireOutcome::Rejected);
        Acquired::Refused(refusal)
    }

    pub(super) fn lease(&mut self, index: u32, probe: Probe) -> Lease {
        let uses_max = self.config.uses_max.unwrap_or(u64::MAX);
        let slot = &mut self.slots[index as usize];
        let was_idle = slot.in_flight == 0;
        slot.in_flight += 1;
        slot.uses += 1;
        let (fresh, temporary, generation) = (slot.uses == 1, slot.temporary, slot.generation);
        let (full, worn_out) = (slot.in_flight >= slot.capacity, slot.uses >= uses_max);
        self.in_use += 1;
        if !temporary {
            self.in_flight_open += 1;
            self.peak_now = self.peak_now.max(self.in_flight_open);
        }
        if was_idle {
            self.idle.remove(index);
        }
        if worn_out {
            self.slots[index as usize].reason = CloseReason::Uses;
            self.set_state(index, State::Draining);
        } else if full {
            self.set_state(index, State::Busy);
        } else {
            self.free.rotate(index);
        }
        let probe = self.breaker.current(probe);
        Lease { slot: SlotId { endpoint: self.id, index, generation }, fresh, probe, temporary }
    }

    /// Takes back one unit; the slot's state is the caller's business.
    pub(super) fn return_unit(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        slot.in_flight -= 1;
        let counts_as_demand = slot.is_open() && !slot.temporary;
        self.in_use -= 1;
        if counts_as_demand {
            self.in_flight_open -= 1;
        }
    }

    /// Why a slot can serve nobody any more, now that a lease came back or the policy changed.
    pub(super) fn spent(&self, index: u32) -> Option<CloseReason> {
        let slot = &self.slots[index as usize];
        if slot.temporary {
            return Some(CloseReason::Temporary);
        }
        self.config.uses_max.is_some_and(|max| slot.uses >= max).then_some(CloseReason::Uses)
    }

    /// A slot has room: for the oldest tickets first, then for whoever comes.
    pub(super) fn offer(&mut self, cx: &mut Context<'_>, index: u32) {
        loop {
            let slot = &self.slots[index as usize];
            if !slot.is_open() || slot.in_flight >= slot.capacity {
                self.keep_ahead(cx);
                return;
            }
            let Some((ticket_index, ticket)) = self.tickets.pop() else { break };
            self.grant(cx, index, ticket_index, &ticket);
        }
        if self.slots[index as usize].state == State::Busy {
            self.set_state(index, State::Ready);
        }
        if self.slots[index as usize].in_flight == 0 {
            self.stand_idle(cx, index);
        }
    }

    pub(super) fn grant(&mut self, cx: &mut Context<'_>, index: u32, ticket_index: u32, ticket: &Ticket) {
        let lease = self.lease(index, ticket.probe);
        self.counters.acquired(match (lease.temporary, lease.fresh) {
            (true, _) => AcquireOutcome::Temporary,
            (false, true) => AcquireOutcome::Fresh,
            (false, false) => AcquireOutcome::Waited,
        });
        self.counters.wait.record_duration(cx.now.saturating_duration_since(ticket.enqueued));
        let ticket = TicketId { endpoint: self.id, index: ticket_index, generation: ticket.generation };
        cx.actions.push_back(Action::Grant { ticket, lease });
    }

    pub(super) fn fail_ticket(
        &mut self,
        cx: &mut Context<'_>,
        index: u32,
        ticket: &Ticket,
        error: TicketError,
    ) {
        self.breaker.abandon(ticket.probe);
        self.counters.acquired(match error {
            TicketError::Timeout { .. } => AcquireOutcome::Timeout,
            TicketError::Dial(_) | TicketError::Leaving => AcquireOutcome::Rejected,
        });
        let ticket = TicketId { endpoint: self.id, index, generation: ticket.generation };
        cx.actions.push_back(Action::Fail { ticket, error });
    }

    pub(super) fn expire_tickets(&mut self, cx: &mut Context<'_>) {
        while let Some((index, ticket)) = self.tickets.pop_expired(cx.now) {
            let error = TicketError::Timeout {
                waiters: self.tickets.len(),
                in_use: self.in_use,
                connecting: self.count(State::Connecting),
                last: self.last_failure,
            };
            self.fail_ticket(cx, index, &ticket, error);
        }
    }
}

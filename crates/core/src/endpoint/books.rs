//! Keeping the books: states, counts, clocks, and the audit of them all.

use std::cmp::Reverse;

use super::{Context, Endpoint, Free};
use crate::Instant;
use crate::breaker::BreakerState;
use crate::config::IdleOrder;
use crate::event::Event;
use crate::health::Checks;
use crate::slot::State;

impl Endpoint {
    pub(super) const fn has_budget(&self) -> bool {
        self.permits.budget.descriptors.is_some() || self.permits.budget.ports.is_some()
    }

    /// Notes what the peer allows: the next connections are expected to carry as much.
    pub(super) fn guess_capacity(&mut self, allowed: u32) {
        self.capacity_allowed = allowed;
        self.capacity_guess = allowed.clamp(1, self.config.capacity);
    }

    /// The peer or the policy changed how much a slot carries.
    pub(super) fn apply_capacity(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.temporary {
            return;
        }
        let capacity = if slot.held { 1 } else { slot.allowed.clamp(1, self.config.capacity) };
        let before = std::mem::replace(&mut slot.capacity, capacity);
        self.capacity_open = self.capacity_open + capacity - before;
        let (state, in_flight) = (slot.state, slot.in_flight);
        if state == State::Ready && in_flight >= capacity {
            self.set_state(index, State::Busy);
        } else if state == State::Busy && in_flight < capacity {
            self.offer(cx, index);
        }
    }

    pub(super) fn reorder(&mut self, order: IdleOrder) {
        let mut free = Free::new(order);
        for index in 0..self.slots.len() as u32 {
            if self.free.contains(index) {
                free.insert(index);
            }
        }
        self.free = free;
    }

    pub(super) fn configure_checks(&mut self, cx: &mut Context<'_>) {
        let before = self.health();
        match (&mut self.checks, self.config.health) {
            (Some(checks), Some(config)) => checks.configure(cx.now, config),
            (checks, config) => *checks = config.map(|config| Checks::new(config, cx.now, cx.rng)),
        }
        if self.health() != before {
            cx.events.push_back(Event::HealthChanged { endpoint: self.id, health: self.health() });
        }
    }

    pub(super) fn is_current(&self, index: u32, generation: u32) -> bool {
        self.slots.get(index as usize).is_some_and(|slot| slot.generation == generation)
    }

    /// The one place where a slot changes its state, and with it every count that depends on it.
    pub(super) fn set_state(&mut self, index: u32, state: State) {
        let slot = &mut self.slots[index as usize];
        let before = std::mem::replace(&mut slot.state, state);
        if before != State::Vacant {
            self.counts[before as usize] -= 1;
        }
        if state != State::Vacant {
            self.counts[state as usize] += 1;
        }
        let was_open = matches!(before, State::Ready | State::Busy);
        let is_open = matches!(state, State::Ready | State::Busy);
        if !slot.temporary && was_open != is_open {
            if is_open {
                self.open += 1;
                self.capacity_open += slot.capacity;
                self.in_flight_open += slot.in_flight;
            } else {
                self.open -= 1;
                self.capacity_open -= slot.capacity;
                self.in_flight_open -= slot.in_flight;
            }
        }
        if before == State::Ready {
            self.free.remove(index);
        }
        if state == State::Ready {
            self.free.insert(index);
        }
    }

    pub(super) fn arm(&mut self, at: Instant) {
        self.due = self.due.min(at);
    }

    pub(super) fn exact_due(&self, now: Instant) -> Instant {
        let mut due = self.tickets.expiry().min(self.next_shrink).min(self.next_reclaim);
        if let (Some(front), Some(timeout)) = (self.idle.front(), self.idle_timeout(now))
            && self.spare() > 0
        {
            due = due.min(self.slots[front as usize].idle_since + timeout);
        }
        if let Some(Reverse((at, ..))) = self.ages.peek() {
            due = due.min(*at);
        }
        if let Some(checks) = &self.checks {
            due = due.min(checks.next());
        }
        if !self.leaving && self.wants_slot() {
            // Of these, what is over forbids nothing any more.
            let starved = self.starved_until.unwrap_or(now);
            for until in [starved, self.backoff.until(), self.local_pause.until()] {
                if until > now {
                    due = due.min(until);
                }
            }
            if let BreakerState::Open(until) = self.breaker.state()
                && until > now
            {
                due = due.min(until);
            }
        }
        due
    }

    /// Counts everything anew and compares. For simulation and tests.
    pub(crate) fn audit(&self) -> Result<(), String> {
        let mut counts = [0; State::COUNT];
        let (mut open, mut capacity, mut in_flight, mut in_use, mut temporary, mut idle, mut free) =
            (0, 0, 0, 0, 0, 0, 0);
        for (index, slot) in self.slots.iter().enumerate() {
            let index = index as u32;
            if slot.state == State::Vacant {
                continue;
            }
            counts[slot.state as usize] += 1;
            in_use += slot.in_flight;
            temporary += u32::from(slot.temporary);
            if slot.is_open() && !slot.temporary {
                open += 1;
                capacity += slot.capacity;
                in_flight += slot.in_flight;
            }
            let should_be_idle = slot.is_open() && slot.in_flight == 0 && !slot.temporary;
            idle += u32::from(should_be_idle);
            free += u32::from(slot.state == State::Ready);
            if self.idle.contains(index) != should_be_idle {
                return Err(format!(
                    "slot {index} {slot:?}: in the idle list: {}",
                    self.idle.contains(index)
                ));
            }
            if self.free.contains(index) != (slot.state == State::Ready) {
                return Err(format!("slot {index} {slot:?}: among the free: {}", self.free.contains(index)));
            }
            match slot.state {
                State::Ready if slot.in_flight >= slot.capacity => {
                    return Err(format!("slot {index} is ready and full"));
                }
                State::Busy if slot.in_flight < slot.capacity => {
                    return Err(format!("slot {index} is busy with room"));
                }
                State::Draining if slot.in_flight == 0 => {
                    return Err(format!("slot {index} drains with no lease"));
                }
                State::Closed | State::Connecting if slot.in_flight > 0 => {
                    return Err(format!("a lease is out on slot {index}, which is {:?}", slot.state));
                }
                _ => {}
            }
        }
        let counted = (counts, open, capacity, in_flight, in_use, temporary, idle, free);
        let kept = (
            self.counts,
            self.open,
            self.capacity_open,
            self.in_flight_open,
            self.in_use,
            self.temporary,
            self.idle.len(),
            self.free.len(),
        );
        if counted != kept {
            return Err(format!("counted {counted:?}, kept {kept:?}"));
        }
        if !self.tickets.is_empty() && self.free.len() > 0 {
            return Err(format!(
                "{} tickets wait while {} slots have room",
                self.tickets.len(),
                self.free.len()
            ));
        }
        Ok(())
    }
}

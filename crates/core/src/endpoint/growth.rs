//! When connections are dialled, and what keeps them from being dialled.

use std::time::Duration;

use super::{Context, Endpoint, RECLAIM_INTERVAL, Stop};
use crate::breaker::{Admission, BreakerState, Probe};
use crate::config::Overflow;
use crate::engine::Action;
use crate::event::{CloseReason, Event};
use crate::ledger::Denied;
use crate::slot::{Slot, SlotId, State};
use crate::{Cause, Instant};

/// How often a full pool says so.
const FULL_INTERVAL: Duration = Duration::from_secs(1);
/// How often growth that was denied for want of permits is tried again: permits come back without telling.
const STARVED_RETRY: Duration = Duration::from_millis(5);

impl Endpoint {
    /// Starts dials until demand is met or something forbids more.
    pub(super) fn grow(&mut self, cx: &mut Context<'_>) -> Stop {
        loop {
            let stop = self.next_dial(cx);
            match stop {
                None => self.dial(cx, false, None),
                Some(Stop::Denied(_)) if self.take_temporary() => self.dial(cx, true, None),
                Some(stop) => {
                    self.note_stop(cx, stop);
                    return stop;
                }
            }
        }
    }

    /// Grows where a lease was given and nobody waits: for headroom, and for what the lease wore out.
    pub(super) fn keep_ahead(&mut self, cx: &mut Context<'_>) {
        if self.wants_slot() && self.starved_until.is_none_or(|until| cx.now >= until) {
            self.grow(cx);
        }
    }

    /// The pool is full: takes the permits for a temporary connection, if the policy and the line call for one.
    pub(super) fn take_temporary(&self) -> bool {
        self.config.overflow == Overflow::Temporary
            && self.is_newest_unpromised()
            && self.permits.take(true, self.could_serve()).is_ok()
    }

    /// Takes the permits for one more dial, or says why there is none.
    pub(super) fn next_dial(&mut self, cx: &mut Context<'_>) -> Option<Stop> {
        if self.leaving {
            return Some(Stop::Leaving);
        }
        if !self.wants_slot() {
            return Some(Stop::Satisfied);
        }
        if let Some(stop) = self.forbidden(cx.now) {
            return Some(stop);
        }
        if self.tickets.is_empty() && self.want.is_of_others() {
            // Warm connections wait: elsewhere somebody waits for one at all.
            return Some(Stop::Denied(Denied::Connections));
        }
        let modest = self.could_serve();
        self.permits.take(false, modest).err().map(Stop::Denied)
    }

    /// What, other than permits, forbids a dial now.
    pub(super) fn forbidden(&mut self, now: Instant) -> Option<Stop> {
        let connecting = self.counts[State::Connecting as usize];
        match self.breaker.state() {
            BreakerState::Open(until) if now < until => return Some(Stop::Breaker(until)),
            BreakerState::HalfOpen if connecting > 0 => return Some(Stop::Window),
            _ => {}
        }
        let pause = self.backoff.until().max(self.local_pause.until());
        if now < pause {
            return Some(Stop::Pause(pause));
        }
        (connecting >= self.dial_window).then_some(Stop::Window)
    }

    /// Whether demand, or `connections_min`, asks for one more slot than are there and coming.
    pub(super) fn wants_slot(&self) -> bool {
        let connecting = self.counts[State::Connecting as usize] - self.temporary_connecting;
        if self.open + connecting < self.config.connections_min {
            return true;
        }
        let waiting = self.tickets.len();
        let wanted = if waiting > 0 {
            u64::from(self.in_flight_open + waiting.saturating_sub(self.temporary_connecting))
        } else {
            (u64::from(self.in_flight_open) * u64::from(self.config.headroom_percent)).div_ceil(100)
        };
        wanted > u64::from(self.capacity_open) + u64::from(connecting) * u64::from(self.capacity_guess)
    }

    pub(super) fn note_stop(&mut self, cx: &mut Context<'_>, stop: Stop) {
        self.want.set(match stop {
            Stop::Denied(Denied::Connections) => self.lacking(),
            _ => 0,
        });
        match stop {
            Stop::Denied(denied) => {
                let retry = if self.tickets.is_empty() { RECLAIM_INTERVAL } else { STARVED_RETRY };
                let was_starved = self.starved_until.replace(cx.now + retry).is_some();
                self.arm(cx.now + retry);
                if !was_starved {
                    match denied {
                        Denied::Connections => self.note_full(cx),
                        Denied::Descriptors => self.exhausted(cx, Cause::Descriptors),
                        Denied::Ports => self.exhausted(cx, Cause::Ports),
                    }
                }
            }
            Stop::Pause(until) | Stop::Breaker(until) => self.arm(until),
            Stop::Satisfied | Stop::Window | Stop::Leaving => self.starved_until = None,
        }
    }

    /// How many more connections those who wait would need.
    fn lacking(&self) -> u32 {
        if self.tickets.is_empty() {
            return 0;
        }
        let connecting = self.counts[State::Connecting as usize];
        let coming = u64::from(self.capacity_open) + u64::from(connecting) * u64::from(self.capacity_guess);
        let demand = u64::from(self.in_flight_open) + u64::from(self.tickets.len());
        u32::try_from(demand.saturating_sub(coming).div_ceil(self.capacity_guess.into())).unwrap_or(u32::MAX)
    }

    fn note_full(&mut self, cx: &mut Context<'_>) {
        if cx.now >= self.full_told {
            self.full_told = cx.now + FULL_INTERVAL;
            let (connections, waiting) = (self.connections(), self.tickets.len() as usize);
            cx.events.push_back(Event::Full { endpoint: self.id, connections, waiting });
        }
    }

    /// Begins a dial whose permits are taken.
    pub(super) fn dial(&mut self, cx: &mut Context<'_>, temporary: bool, replaces: Option<(u32, u32)>) {
        // A dial for older tickets or for `connections_min` may find the pause over, or the last probe given up, before
        // any acquire does: then it is the probe.
        let probe = match self.breaker.admit(cx.now) {
            Admission::Probe(probe) => probe,
            Admission::Pass | Admission::Refuse(_) => Probe::NONE,
        };
        let index = self.vacant.pop().unwrap_or_else(|| {
            self.slots.push(Slot::VACANT);
            self.slots.len() as u32 - 1
        });
        let generation = self.slots[index as usize].generation;
        self.slots[index as usize] =
            Slot { generation, since: cx.now, temporary, probe, replaces, ..Slot::VACANT };
        if temporary {
            self.temporary += 1;
            self.temporary_connecting += 1;
        }
        self.set_state(index, State::Connecting);
        self.counters.dials_started += 1;
        let slot = SlotId { endpoint: self.id, index, generation };
        cx.actions.push_back(Action::Dial { slot, timeout: self.config.dial_timeout });
    }

    pub(super) fn connected(&mut self, cx: &mut Context<'_>, index: u32, capacity: u32) {
        self.guess_capacity(capacity);
        self.dial_window = (self.dial_window + 1).min(self.config.dials_max);
        self.local_pause.reset();
        self.counters.dials_succeeded += 1;
        let slot = &mut self.slots[index as usize];
        let took = cx.now.saturating_duration_since(slot.since);
        slot.since = cx.now;
        slot.allowed = if slot.temporary { 1 } else { capacity };
        slot.capacity = slot.allowed.clamp(1, self.config.capacity);
        let (temporary, probe, replaces, generation) =
            (slot.temporary, slot.probe, slot.replaces, slot.generation);
        self.counters.dial.record_duration(took);
        cx.events.push_back(Event::Opened { slot: SlotId { endpoint: self.id, index, generation }, took });
        if temporary {
            self.temporary_connecting -= 1;
        }
        self.set_state(index, State::Ready);
        if self.leaving {
            self.retire(cx, index, CloseReason::Drain);
            return;
        }
        self.plan_age(cx, index);
        // The breaker may have opened since, and another ticket be the probe: then this one is nobody.
        let probe = self.breaker.current(probe);
        if probe.is_some() && !self.tickets.mark_front(probe) && self.breaker.succeed(probe) {
            cx.events.push_back(Event::BreakerClosed { endpoint: self.id });
        }
        self.offer(cx, index);
        if let Some((old, old_generation)) = replaces
            && self.is_current(old, old_generation)
            && self.slots[old as usize].is_open()
        {
            self.retire(cx, old, CloseReason::Age);
        }
        if temporary && self.slots[index as usize].in_flight == 0 && self.slots[index as usize].is_open() {
            self.retire(cx, index, CloseReason::Temporary);
        }
        self.grow(cx);
    }
}

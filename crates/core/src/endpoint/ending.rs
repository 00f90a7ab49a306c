//! How connections end: retired, closed, aged, shrunk away.

use std::cmp::Reverse;
use std::time::Duration;

use super::{Context, Endpoint, RECLAIM_INTERVAL, YIELD_INTERVAL};
use crate::Instant;
use crate::config::IdleOrder;
use crate::engine::Action;
use crate::event::{CloseReason, Event};
use crate::ledger::Denied;
use crate::slot::{SlotId, State};

/// A connection closed by the peer after less idle time than this taught nothing about idle time-outs.
const LEARNT_MIN: Duration = Duration::from_millis(500);
/// How long to wait before the replacement of an old connection is tried again.
const AGE_RETRY: Duration = Duration::from_secs(1);
/// How many planned ages there may be beyond those of the slots, before the outdated are swept.
const AGES_SLACK: usize = 64;
/// Demand is looked at this often at most, however short `idle_timeout` is.
const SHRINK_PERIOD_MIN: Duration = Duration::from_millis(10);

impl Endpoint {
    /// Takes a slot out of service: closes it now if nobody holds it, else when the last lease comes back.
    pub(super) fn retire(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        if self.slots[index as usize].in_flight == 0 {
            self.close(cx, index, reason);
        } else {
            self.slots[index as usize].reason = reason;
            self.set_state(index, State::Draining);
            self.grow(cx);
        }
    }

    pub(super) fn close(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        self.idle.remove(index);
        self.note_closed(cx, index, reason);
        self.set_state(index, State::Closed);
        let slot = SlotId { endpoint: self.id, index, generation: self.slots[index as usize].generation };
        cx.actions.push_back(Action::Close { slot, reason });
        self.grow(cx);
    }

    pub(super) fn note_closed(&mut self, cx: &mut Context<'_>, index: u32, reason: CloseReason) {
        let slot = &self.slots[index as usize];
        let (uses, age) = (slot.uses, cx.now.saturating_duration_since(slot.since));
        self.counters.closed(reason);
        self.counters.uses.record(uses);
        let slot = SlotId { endpoint: self.id, index, generation: slot.generation };
        cx.events.push_back(Event::Closed { slot, reason, uses, age });
    }

    /// The connection is gone: its leases, when they come back, mean nothing.
    pub(super) fn forget_leases(&mut self, index: u32) {
        while self.slots[index as usize].in_flight > 0 {
            self.return_unit(index);
        }
    }

    pub(super) fn vacate(&mut self, index: u32) {
        self.idle.remove(index);
        let slot = self.slots[index as usize];
        if slot.temporary {
            self.temporary -= 1;
            if slot.state == State::Connecting {
                self.temporary_connecting -= 1;
            }
        }
        self.set_state(index, State::Vacant);
        self.permits.give(slot.temporary);
        self.slots[index as usize].generation = slot.generation.wrapping_add(1);
        self.vacant.push(index);
    }

    pub(super) fn stand_idle(&mut self, cx: &mut Context<'_>, index: u32) {
        self.slots[index as usize].idle_since = cx.now;
        if self.slots[index as usize].temporary {
            return;
        }
        self.idle.push_back(index);
        if self.idle.len() > self.config.idle_max
            && let Some(oldest) = self.idle.front()
        {
            self.close(cx, oldest, CloseReason::IdleMax);
        }
        if let (Some(timeout), Some(oldest)) = (self.idle_timeout(cx.now), self.idle.front())
            && self.spare() > 0
        {
            self.arm(self.slots[oldest as usize].idle_since + timeout);
        }
        if self.has_budget() && self.next_reclaim == Instant::MAX {
            self.next_reclaim = cx.now + RECLAIM_INTERVAL;
            self.arm(self.next_reclaim);
        }
        if self.want.has_others() {
            self.yield_idle(cx);
            self.plan_yield(cx);
        }
    }

    /// Open, pooled connections that could go without falling below `connections_min`.
    pub(super) fn spare(&self) -> u32 {
        self.open.saturating_sub(self.config.connections_min)
    }

    pub(super) fn close_idle(&mut self, cx: &mut Context<'_>) {
        let Some(timeout) = self.idle_timeout(cx.now) else { return };
        while let Some(index) = self.idle.front() {
            if self.slots[index as usize].idle_since + timeout > cx.now || self.spare() == 0 {
                return;
            }
            self.close(cx, index, CloseReason::Idle);
        }
    }

    /// How often [`Endpoint::shrink`] looks.
    pub(super) fn shrink_period(&self) -> Duration {
        match (self.config.order, self.config.idle_timeout) {
            (IdleOrder::Fifo | IdleOrder::Random | IdleOrder::LeastLoaded, Some(timeout)) => {
                (timeout / 2).max(SHRINK_PERIOD_MIN)
            }
            (IdleOrder::Lifo, _) | (_, None) => Duration::MAX,
        }
    }

    /// Where the order keeps every connection warm, demand decides how many stay (HAProxy's rule): twice per
    /// `idle_timeout`, half of what neither this period nor the one before needed goes. What stands idle goes first;
    /// a multiplexed endpoint may have nothing idle, and then those that carry least take no more.
    pub(super) fn shrink(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.next_shrink {
            return;
        }
        self.next_shrink = cx.now + self.shrink_period();
        let peak = u64::from(self.peak_now.max(self.peak_before));
        let wanted = (peak * u64::from(self.config.headroom_percent)).div_ceil(100);
        let needed = u32::try_from(wanted.div_ceil(self.capacity_guess.into())).unwrap_or(u32::MAX);
        self.peak_before = std::mem::replace(&mut self.peak_now, self.in_flight_open);
        let surplus = self.open.saturating_sub(needed.max(self.config.connections_min));
        self.retire_surplus(cx, surplus.div_ceil(2));
    }

    /// Takes so many pooled connections out of service: the longest idle first, then those that carry least.
    pub(super) fn retire_surplus(&mut self, cx: &mut Context<'_>, n: u32) {
        for _ in 0..n.min(self.spare()) {
            let least = || {
                let open = (0..self.slots.len() as u32).filter(|i| {
                    let slot = &self.slots[*i as usize];
                    slot.is_open() && !slot.temporary
                });
                open.min_by_key(|i| self.slots[*i as usize].in_flight)
            };
            let Some(index) = self.idle.front().or_else(least) else { return };
            self.retire(cx, index, CloseReason::Surplus);
        }
    }

    /// A limit was lowered: what is now too much goes, this engine's share of it.
    pub(super) fn trim(&mut self, cx: &mut Context<'_>) {
        while self.idle.len() > self.config.idle_max
            && let Some(oldest) = self.idle.front()
        {
            self.close(cx, oldest, CloseReason::IdleMax);
        }
        let going = self.count(State::Draining) + self.count(State::Closed);
        let used = self.permits.connections.used().saturating_sub(going);
        if used > self.config.connections_max {
            let mine = self.open + self.count(State::Connecting) - self.temporary_connecting;
            let share = (u64::from(mine) * u64::from(self.config.connections_max)).div_ceil(used.into());
            self.retire_surplus(cx, mine.saturating_sub(share as u32));
        }
    }

    /// While this machine runs short, half of what stands idle goes back each second.
    pub(super) fn reclaim(&mut self, cx: &mut Context<'_>) {
        if cx.now < self.next_reclaim {
            return;
        }
        if self.permits.is_tight() {
            self.close_longest_idle(cx, self.idle.len().div_ceil(2), CloseReason::Reclaimed);
        }
        self.next_reclaim = if self.idle.is_empty() { Instant::MAX } else { cx.now + RECLAIM_INTERVAL };
    }

    /// Another engine, which shares the limit, cannot tell that somebody waits there: looks from time to time.
    pub(super) fn yield_when_due(&mut self, cx: &mut Context<'_>) {
        if cx.now >= self.next_yield {
            self.next_yield = Instant::MAX;
            self.yield_idle(cx);
            self.plan_yield(cx);
        }
    }

    fn plan_yield(&mut self, cx: &mut Context<'_>) {
        if self.idle.is_empty() {
            return;
        }
        let connections = &self.permits.connections;
        let contended = connections.used() >= connections.max().div_ceil(2);
        let at = cx.now + if contended { YIELD_INTERVAL } else { RECLAIM_INTERVAL };
        if at < self.next_yield {
            self.next_yield = at;
            self.arm(at);
        }
    }

    /// Gives back what stands idle while at another engine, which shares the limit, somebody waits; even what is kept
    /// warm.
    fn yield_idle(&mut self, cx: &mut Context<'_>) {
        for _ in 0..self.want.of_others() {
            let Some(index) = self.idle.front() else { return };
            self.close(cx, index, CloseReason::Reclaimed);
        }
    }

    pub(super) fn close_longest_idle(&mut self, cx: &mut Context<'_>, n: u32, reason: CloseReason) {
        for _ in 0..n.min(self.spare()) {
            let Some(index) = self.idle.front() else { return };
            self.close(cx, index, reason);
        }
    }

    pub(super) fn plan_age(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &mut self.slots[index as usize];
        if slot.temporary {
            return;
        }
        let Some(age_max) = self.config.age_max else {
            slot.retire_at = Instant::MAX;
            return;
        };
        slot.retire_at = slot.since + age_max;
        let soft = slot.since + cx.rng.between(age_max * 80 / 100, age_max * 95 / 100);
        let (hard, generation) = (slot.retire_at, slot.generation);
        // Entries of connections that went early lie about until their time comes: not too many of them.
        if self.ages.len() > AGES_SLACK + 4 * self.slots.len() {
            let slots = &self.slots;
            self.ages.retain(|Reverse((_, index, generation))| {
                let slot = &slots[*index as usize];
                slot.generation == *generation && slot.is_open()
            });
        }
        self.ages.push(Reverse((soft, index, generation)));
        self.ages.push(Reverse((hard, index, generation)));
        self.arm(soft);
    }

    /// The replacement of an old connection could not be dialled, or failed: tries again soon.
    pub(super) fn age_again(&mut self, cx: &mut Context<'_>, index: u32) {
        let slot = &self.slots[index as usize];
        let retry = cx.now + AGE_RETRY;
        if retry < slot.retire_at {
            self.ages.push(Reverse((retry, index, slot.generation)));
            self.arm(retry);
        }
    }

    /// Replaces what has become old, then retires it; at `age_max` it goes even without a replacement.
    pub(super) fn age(&mut self, cx: &mut Context<'_>) {
        while let Some(&Reverse((at, index, generation))) = self.ages.peek() {
            if at > cx.now {
                return;
            }
            self.ages.pop();
            if !self.is_current(index, generation) || !self.slots[index as usize].is_open() {
                continue;
            }
            if cx.now >= self.slots[index as usize].retire_at || self.can_do_without(index) {
                self.retire(cx, index, CloseReason::Age);
                continue;
            }
            if self.forbidden(cx.now).is_some() {
                self.age_again(cx, index);
                continue;
            }
            match self.permits.take(false, true) {
                Ok(()) => self.dial(cx, false, Some((index, generation))),
                // The pool is full, so its replacement needs its place. If all waited for `age_max`, all of a burst
                // would go at once.
                Err(Denied::Connections) if self.open > 1 => self.retire(cx, index, CloseReason::Age),
                Err(_) => self.age_again(cx, index),
            }
        }
    }

    /// Whether nobody would notice if this slot went: it is idle, and another has room.
    pub(super) fn can_do_without(&self, index: u32) -> bool {
        self.slots[index as usize].in_flight == 0 && self.spare() > 0 && self.free.len() > 1
    }

    /// A peer that closes a connection that stood idle tells how long it lets them stand.
    pub(super) fn learn_from_closing(&mut self, now: Instant, index: u32) {
        let slot = &self.slots[index as usize];
        let stood = now.saturating_duration_since(slot.idle_since);
        if self.idle.contains(index) && slot.uses > 0 && stood >= LEARNT_MIN {
            self.learn_idle_timeout(now, stood);
        }
    }
}

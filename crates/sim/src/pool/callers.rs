//! Callers: they want connections, wait or give up, use what they get, and bring it back.

use std::time::Duration;

use forebay_core::{AcquireOutcome, Acquired, Lease, Outcome, TicketId};

use super::coverage;
use super::lane::{Broken, Lane, News, Phase, hold};
use super::plan::Callers;
use super::{Granted, Happening, Held, World};

impl World {
    pub(super) fn arrive(&mut self, stream: usize) -> Result<(), Broken> {
        let callers = self.callers[stream];
        for _ in 0..callers.burst {
            self.call(callers)?;
        }
        if !self.ending {
            let pause = self.draw.micros(0, callers.every.as_micros() as u64 * 2);
            // A lull now and then, so that things stand idle.
            let lull = if self.draw.chance(2) { self.draw.millis(100, 800) } else { Duration::ZERO };
            self.plan(pause + lull, Happening::Arrive { stream });
        }
        Ok(())
    }

    /// Somebody wants a connection.
    fn call(&mut self, callers: Callers) -> Result<(), Broken> {
        let now = self.now;
        let worker = self.draw.index(self.workers.len());
        let lane = if self.draw.chance(75) {
            let hash = u64::from(self.draw.number(0, 9));
            let picked = self.workers[worker].engine.pick(now, hash);
            match picked.map(|id| self.workers[worker].lanes[&id]) {
                Some(lane) => {
                    self.check_picked(worker, lane)?;
                    lane
                }
                None => {
                    let staying = self.lanes.iter().any(|lane| lane.worker == worker && !lane.leaving);
                    hold!(!staying, "an endpoint is chosen if there is one", "none");
                    return Ok(());
                }
            }
        } else {
            let mine: Vec<_> = (0..self.lanes.len()).filter(|l| self.lanes[*l].worker == worker).collect();
            mine[self.draw.index(mine.len())]
        };
        let hold = self.draw.micros(1, callers.hold.as_micros() as u64);
        if self.draw.chance(8) {
            return self.try_acquire(lane, hold);
        }
        let patience = self.draw.micros(0, callers.patience.as_micros() as u64);
        let deadline = if self.draw.chance(2) { now } else { now + patience };
        self.coverage.steps += 1;
        let id = self.lanes[lane].id;
        let answer = self.workers[worker].engine.acquire(now, id, deadline);
        self.say(|| {
            format!("w{worker} acquire {} by {}: {answer:?}", id.index(), deadline.as_nanos() / 1000)
        });
        if let Acquired::Refused(refusal) = &answer {
            self.coverage.note("refusal", coverage::of_refusal(refusal));
        }
        self.lanes[lane].acquired(now, deadline, &answer)?;
        match answer {
            Acquired::Lease(lease) => self.work(lane, lease, hold),
            Acquired::Wait(ticket) => {
                self.holds.insert((worker, ticket), hold);
                if self.draw.chance(callers.fickle_percent) {
                    let after = self.draw.micros(0, patience.as_micros() as u64 * 5 / 4);
                    self.plan(after, Happening::GiveUp { worker, ticket });
                }
            }
            Acquired::Refused(_) => {}
        }
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn check_picked(&self, worker: usize, picked: usize) -> Result<(), Broken> {
        let engine = &self.workers[worker].engine;
        hold!(!self.lanes[picked].leaving, "who leaves is not chosen", "{:?}", self.lanes[picked].id);
        let available = |lane: &&Lane| lane.worker == worker && engine.is_available(self.now, lane.id);
        hold!(
            engine.is_available(self.now, self.lanes[picked].id) || !self.lanes.iter().any(|l| available(&l)),
            "the available are chosen first",
            "{:?}",
            self.lanes[picked].id
        );
        Ok(())
    }

    fn try_acquire(&mut self, lane: usize, hold: Duration) -> Result<(), Broken> {
        let (worker, id, now) = (self.lanes[lane].worker, self.lanes[lane].id, self.now);
        self.coverage.steps += 1;
        let lease = self.workers[worker].engine.try_acquire(now, id);
        self.say(|| format!("w{worker} try_acquire {}: {lease:?}", id.index()));
        self.coverage
            .note("world", if lease.is_some() { "try_acquire_served" } else { "try_acquire_refused" });
        if let Some(lease) = lease {
            let lane_ref = &mut self.lanes[lane];
            hold!(lane_ref.line.is_empty(), "no barging", "{} wait", lane_ref.line.len());
            lane_ref.count(AcquireOutcome::Reused);
            lane_ref.granted(&lease)?;
            self.work(lane, lease, hold);
        }
        self.settle(worker, Some(lane), News::Nothing)
    }

    /// A caller has its lease, and will bring it back.
    fn work(&mut self, lane: usize, lease: Lease, hold: Duration) {
        let epoch = self.lanes[lane].epoch;
        self.hold(lane, lease, epoch, hold);
    }

    fn hold(&mut self, lane: usize, lease: Lease, epoch: u32, hold: Duration) {
        self.turns += 1;
        let held = self.turns;
        if lease.is_probe() {
            self.coverage.note("world", "probe_lease");
        }
        self.held.insert(held, Held { lane, lease, epoch });
        self.plan(hold, Happening::Return { held });
    }

    pub(super) fn give_up(&mut self, worker: usize, ticket: TicketId) -> Result<(), Broken> {
        let now = self.now;
        let lane = self.workers[worker].lanes[&ticket.endpoint()];
        self.coverage.steps += 1;
        let told = self.workers[worker].engine.cancel(now, ticket);
        self.say(|| format!("w{worker} cancel {ticket:?}: {told}"));
        let waited = self.lanes[lane].cancelled(ticket);
        hold!(told == waited, "cancel says whether the ticket waited", "{told}, and it is {waited}");
        self.settle(worker, Some(lane), News::Nothing)?;
        if waited {
            self.holds.remove(&(worker, ticket));
            self.forget_ticket(worker, ticket);
            self.coverage.note("world", "cancelled_in_line");
        } else if let Some(Granted { lease, epoch, .. }) = self.granted.remove(&(worker, ticket)) {
            self.coverage.note("world", "cancelled_after_grant");
            self.release(lane, lease, epoch, Outcome::Unused)?;
        } else {
            self.coverage.note("world", "cancelled_after_failure");
        }
        Ok(())
    }

    /// A ticket's owner wakes up and takes what was granted.
    pub(super) fn take(&mut self, worker: usize, ticket: TicketId) -> Result<(), Broken> {
        if let Some(Granted { lease, epoch, hold }) = self.granted.remove(&(worker, ticket)) {
            let lane = self.workers[worker].lanes[&ticket.endpoint()];
            self.hold(lane, lease, epoch, hold);
        }
        Ok(())
    }

    pub(super) fn bring_back(&mut self, held: u64) -> Result<(), Broken> {
        let Some(Held { lane, mut lease, epoch }) = self.held.remove(&held) else { return Ok(()) };
        let (worker, id, slot) = (self.lanes[lane].worker, self.lanes[lane].id, lease.slot());
        if self.draw.chance(10) {
            let latency = self.draw.micros(50, 50_000);
            self.workers[worker].engine.observe_latency(id, latency);
        }
        if self.draw.chance(5) {
            let (until, uses) = self.workers[worker].engine.terms(&lease);
            if until > self.now && uses > 0 {
                let lent = uses.min(u64::from(self.draw.number(1, 5)));
                self.workers[worker].engine.note_uses(slot, lent);
                if let Some(conn) = self.lanes[lane].conns.get_mut(&slot) {
                    conn.uses += lent;
                }
                lease.mark_reused();
                self.coverage.note("world", "lent_on");
            }
        }
        if self.draw.chance(3) && self.sites[self.lanes[lane].site].upstream.announces {
            let announced = self.draw.millis(50, 2_000);
            self.coverage.note("world", "announced_idle");
            self.coverage.steps += 1;
            self.workers[worker].engine.handle_idle_timeout(self.now, id, announced);
            self.say(|| format!("w{worker} announced idle {announced:?}"));
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        let site = self.lanes[lane].site;
        let outcome = self.sites[site].upstream.outcome(&mut self.draw);
        self.release(lane, lease, epoch, outcome)
    }

    fn release(&mut self, lane: usize, lease: Lease, epoch: u32, outcome: Outcome) -> Result<(), Broken> {
        let now = self.now;
        let (worker, slot) = (self.lanes[lane].worker, lease.slot());
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} release {lease:?} {outcome:?}"));
        let news = News::of_outcome(outcome);
        // What became of an endpoint that is gone moves nothing.
        if lease.is_probe() {
            self.lanes[lane].probe_returned(epoch);
        }
        if !self.lanes[lane].conns.get(&slot).is_some_and(|conn| conn.phase == Phase::Open) {
            self.coverage.note("world", "late_lease");
        }
        self.lanes[lane].returned(now, slot, outcome);
        self.workers[worker].engine.release(now, lease, outcome);
        self.watch_idle(lane, slot);
        self.settle(worker, Some(lane), news)
    }
}

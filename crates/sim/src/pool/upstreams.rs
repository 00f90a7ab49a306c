//! Upstreams: how dials end, and what connections do by themselves.

use forebay_core::{Cause, SlotId};

use super::lane::{Broken, News, Phase};
use super::{Happening, World};

impl World {
    /// The peer of a connection that begins to stand idle may close it, some time.
    pub(super) fn watch_idle(&mut self, lane: usize, slot: SlotId) {
        let Some(conn) = self.lanes[lane].conns.get(&slot) else { return };
        let (uses, idle) = (conn.uses, conn.in_flight == 0);
        if idle && let Some(after) = self.sites[self.lanes[lane].site].upstream.idle_close {
            self.plan(after, Happening::PeerIdle { lane, slot, uses });
        }
    }

    pub(super) fn dialed(
        &mut self,
        lane: usize,
        slot: SlotId,
        result: Result<u32, Cause>,
    ) -> Result<(), Broken> {
        let (worker, site, now) = (self.lanes[lane].worker, self.lanes[lane].site, self.now);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} dialed {slot:?} {result:?}"));
        self.lanes[lane].dialed(now, slot, result);
        if result.is_err() {
            self.sockets -= 1;
            self.sites[site].sockets -= 1;
            self.forget_slot(worker, slot);
        }
        self.workers[worker].engine.handle_dialed(now, slot, result);
        if result.is_ok() {
            self.connected(lane, slot);
        }
        let news = match result {
            Ok(_) => News::Connected,
            Err(cause) => News::of_cause(cause),
        };
        self.settle(worker, Some(lane), news)
    }

    /// What is going to befall a new connection.
    fn connected(&mut self, lane: usize, slot: SlotId) {
        self.watch_idle(lane, slot);
        let upstream = self.sites[self.lanes[lane].site].upstream.clone();
        if self.draw.chance(upstream.reset_percent) {
            let after = self.draw.millis(0, 300);
            self.plan(after, Happening::PeerCloses { lane, slot });
        }
        if self.draw.chance(upstream.goodbye_percent) {
            let after = self.draw.millis(0, 300);
            self.plan(after, Happening::Goodbye { lane, slot });
        }
        if self.draw.chance(upstream.capacity_percent) {
            let after = self.draw.millis(0, 300);
            let capacity = self.draw.number(0, 30);
            self.plan(after, Happening::Capacity { lane, slot, capacity });
        }
    }

    pub(super) fn closed(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.lanes[lane].conns.contains_key(&slot) {
            return Ok(());
        }
        let (worker, now) = (self.lanes[lane].worker, self.now);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} closed {slot:?}"));
        self.forget_conn(lane, slot);
        self.workers[worker].engine.handle_closed(now, slot);
        self.settle(worker, Some(lane), News::Nothing)
    }

    fn forget_conn(&mut self, lane: usize, slot: SlotId) {
        let (worker, site) = (self.lanes[lane].worker, self.lanes[lane].site);
        if let Some(conn) = self.lanes[lane].conns.remove(&slot)
            && conn.phase == Phase::Open
        {
            self.lanes[lane].closed_by_peer();
            self.coverage.note("close", "peer");
        }
        self.sockets -= 1;
        self.sites[site].sockets -= 1;
        self.forget_slot(worker, slot);
    }

    fn is_open(&self, lane: usize, slot: SlotId) -> bool {
        self.lanes[lane].conns.get(&slot).is_some_and(|conn| conn.phase == Phase::Open)
    }

    pub(super) fn peer_closes(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.is_open(lane, slot) {
            return Ok(());
        }
        self.coverage.note("world", "peer_reset");
        self.closed(lane, slot)
    }

    pub(super) fn peer_idle(&mut self, lane: usize, slot: SlotId, uses: u64) -> Result<(), Broken> {
        let idle = self.lanes[lane].conns.get(&slot).is_some_and(|c| c.in_flight == 0 && c.uses == uses);
        if !idle || !self.is_open(lane, slot) {
            return Ok(());
        }
        self.coverage.note("world", "idle_closed_by_peer");
        self.closed(lane, slot)
    }

    pub(super) fn goodbye(&mut self, lane: usize, slot: SlotId) -> Result<(), Broken> {
        if !self.is_open(lane, slot) {
            return Ok(());
        }
        let worker = self.lanes[lane].worker;
        self.coverage.note("world", "peer_goodbye");
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} goodbye {slot:?}"));
        if let Some(conn) = self.lanes[lane].conns.get_mut(&slot) {
            conn.doomed = true;
        }
        self.workers[worker].engine.handle_goodbye(self.now, slot);
        self.settle(worker, Some(lane), News::Nothing)
    }

    pub(super) fn capacity(&mut self, lane: usize, slot: SlotId, capacity: u32) -> Result<(), Broken> {
        let worker = self.lanes[lane].worker;
        let Some(conn) = self.lanes[lane].conns.get_mut(&slot) else { return Ok(()) };
        if conn.phase != Phase::Open {
            return Ok(());
        }
        let before = std::mem::replace(&mut conn.allowed, capacity);
        self.coverage.note("world", if capacity < before { "capacity_lowered" } else { "capacity_raised" });
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} capacity {slot:?} {capacity}"));
        self.workers[worker].engine.handle_capacity(self.now, slot, capacity);
        self.settle(worker, Some(lane), News::Nothing)
    }

    pub(super) fn probed(&mut self, lane: usize) -> Result<(), Broken> {
        let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
        let result = self.sites[self.lanes[lane].site].upstream.check(&mut self.draw);
        self.coverage.steps += 1;
        self.say(|| format!("w{worker} probed {} {result:?}", id.index()));
        self.lanes[lane].probed(result);
        self.workers[worker].engine.handle_probed(self.now, id, result);
        self.settle(worker, Some(lane), News::Nothing)
    }

    pub(super) fn change_mood(&mut self, site: usize) {
        if self.calm {
            return;
        }
        self.sites[site].upstream.change(&mut self.draw);
        self.say(|| format!("site {site} is {:?}", self.sites[site].upstream.mood));
        let after = self.draw.millis(30, 500);
        self.plan(after, Happening::Mood { site });
    }
}

//! Changes from outside: other policies, endpoints that come and go, the end.

use std::sync::Arc;
use std::time::Duration;

use forebay_core::{Budget, Ledger, Permits, Removal};

use super::lane::{Broken, Lane, News, Room, hold};
use super::plan::{self, Upstream};
use super::{Happening, Site, World};

impl World {
    pub(super) fn reconfigure(&mut self) -> Result<(), Broken> {
        let site = self.draw.index(self.sites.len());
        let config = plan::edited(&mut self.draw, self.sites[site].config);
        self.coverage.note("world", "config_changed");
        self.say(|| format!("site {site} {config:?}"));
        self.sites[site].config = config;
        for lane in self.sites[site].lanes.clone() {
            let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
            self.coverage.steps += 1;
            self.lanes[lane].reconfigure(config);
            if self.workers[worker].engine.handle_config(self.now, id, config).is_err() {
                return Err(("a valid policy is taken", format!("{config:?}")));
            }
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    pub(super) fn add_endpoint(&mut self) -> Result<(), Broken> {
        let (now, site) = (self.now, self.sites.len());
        let stormy = self.draw.chance(25);
        let config = if stormy { plan::stormy(&mut self.draw) } else { plan::config(&mut self.draw) };
        let mut permits = Permits::alone(config.connections_max, config.temporary_max);
        let ports = self.draw.chance(30).then(|| Arc::new(Ledger::resource(self.draw.number(2, 30))));
        permits.budget = Budget { descriptors: self.descriptors.clone(), ports };
        let mut upstream = Upstream::new(&mut self.draw, stormy);
        if self.calm {
            upstream.calm();
        }
        self.coverage.note("world", "endpoint_added");
        self.say(|| format!("site {site} {config:?} {upstream:?}"));
        self.sites.push(Site {
            config,
            permits,
            upstream,
            lanes: Vec::new(),
            sockets: 0,
            used: (0, 0),
            room: Room { modest: None, urgent: None },
        });
        let after = self.draw.millis(10, 300);
        self.plan(after, Happening::Mood { site });
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            let permits = self.sites[site].permits.clone();
            let Ok(id) = self.workers[worker].engine.add_endpoint(now, config, permits) else {
                return Err(("a valid policy is taken", format!("{config:?}")));
            };
            let lane = self.lanes.len();
            let before = self.workers[worker].lanes.insert(id, lane);
            hold!(before.is_none(), "an endpoint's name is its own", "{id:?} named another");
            self.lanes.push(Lane::new(worker, site, id, config));
            self.sites[site].lanes.push(lane);
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    pub(super) fn remove_endpoint(&mut self) -> Result<(), Broken> {
        let site = self.draw.index(self.sites.len());
        let removal = if self.draw.chance(50) { Removal::Drain } else { Removal::Close };
        self.coverage
            .note("world", if removal == Removal::Drain { "endpoint_drained" } else { "endpoint_closed" });
        for lane in self.sites[site].lanes.clone() {
            let (worker, id) = (self.lanes[lane].worker, self.lanes[lane].id);
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} remove {} {removal:?}", id.index()));
            self.lanes[lane].leaving = true;
            self.lanes[lane].closed_all |= removal == Removal::Close;
            self.workers[worker].engine.remove_endpoint(self.now, id, removal);
            self.settle(worker, Some(lane), News::Nothing)?;
        }
        Ok(())
    }

    pub(super) fn drain(&mut self) -> Result<(), Broken> {
        self.coverage.note("world", "drain");
        self.ending = true;
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} drain"));
            self.lanes.iter_mut().filter(|lane| lane.worker == worker).for_each(|lane| lane.leaving = true);
            self.workers[worker].engine.drain(self.now);
            self.settle(worker, None, News::Nothing)?;
        }
        // Somebody did not hear of it.
        for stream in 0..self.callers.len() {
            self.plan(Duration::from_millis(1), Happening::Arrive { stream });
        }
        Ok(())
    }

    pub(super) fn close_all(&mut self) -> Result<(), Broken> {
        self.coverage.note("world", "close_all");
        for worker in 0..self.workers.len() {
            self.coverage.steps += 1;
            self.say(|| format!("w{worker} close_all"));
            self.lanes
                .iter_mut()
                .filter(|lane| lane.worker == worker)
                .for_each(|lane| lane.closed_all = true);
            self.workers[worker].engine.close_all(self.now);
            self.settle(worker, None, News::Nothing)?;
        }
        Ok(())
    }
}

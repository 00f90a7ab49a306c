//! After each call: what the engine wants is done, and what must hold is checked.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::Duration;

use forebay_core::{Action, Cause, Event, Instant, Level, Overflow, SlotId, TicketId};

use super::coverage;
use super::lane::{Broken, News, hold};
use super::{Granted, Happening, Planned, World};

impl World {
    /// Takes every action, compares the books, sets the timer.
    pub(super) fn settle(&mut self, worker: usize, lane: Option<usize>, news: News) -> Result<(), Broken> {
        while let Some(action) = self.workers[worker].engine.poll_action() {
            self.coverage.note("action", coverage::of_action(&action));
            self.say(|| format!("   w{worker} {action:?}"));
            self.obey(worker, action)?;
        }
        while let Some(event) = self.workers[worker].engine.poll_event() {
            self.coverage.note("event", coverage::of_event(&event));
            self.say(|| format!("   w{worker} {event:?}"));
            if let Event::LocalExhaustion { cause, .. } = event {
                hold!(cause.blame() == forebay_core::Blame::Local, "local exhaustion is local", "{cause:?}");
            }
        }
        let engine = &self.workers[worker].engine;
        engine.audit().map_err(|error| ("the engine's books add up", error))?;
        match lane {
            Some(lane) => self.lanes[lane].check(engine, self.now, self.lazy, news)?,
            None => {
                for lane in self.lanes.iter_mut().filter(|lane| lane.worker == worker) {
                    lane.check(engine, self.now, self.lazy, news)?;
                }
            }
        }
        self.check_ledgers()?;
        self.set_timer(worker);
        Ok(())
    }

    fn obey(&mut self, worker: usize, action: Action) -> Result<(), Broken> {
        match action {
            Action::Dial { slot, timeout } => self.dial(worker, slot, timeout),
            Action::Close { slot, reason } => {
                self.coverage.note("close", reason.as_str());
                let lane = self.workers[worker].lanes[&slot.endpoint()];
                self.lanes[lane].closes(self.now, slot, reason)?;
                let after = self.draw.micros(0, 3_000);
                self.plan(after, Happening::Closed { lane, slot });
                Ok(())
            }
            Action::Grant { ticket, lease } => {
                self.coverage.note("ticket", "granted");
                let lane = self.workers[worker].lanes[&ticket.endpoint()];
                self.lanes[lane].served(ticket, &lease)?;
                let Some(hold) = self.holds.remove(&(worker, ticket)) else {
                    return Err(("each ticket is answered once", format!("{ticket:?}")));
                };
                self.forget_ticket(worker, ticket);
                let epoch = self.lanes[lane].epoch;
                self.granted.insert((worker, ticket), Granted { lease, epoch, hold });
                let after = self.draw.micros(0, 500);
                if self.draw.chance(3) {
                    self.plan(after, Happening::GiveUp { worker, ticket });
                }
                self.plan(after, Happening::Take { worker, ticket });
                Ok(())
            }
            Action::Fail { ticket, error } => {
                self.coverage.note("ticket", coverage::of_ticket_error(&error));
                let lane = self.workers[worker].lanes[&ticket.endpoint()];
                self.lanes[lane].failed(self.now, ticket, &error)?;
                self.holds.remove(&(worker, ticket));
                self.forget_ticket(worker, ticket);
                Ok(())
            }
            Action::Probe { endpoint } => {
                let lane = self.workers[worker].lanes[&endpoint];
                hold!(!self.lanes[lane].leaving, "who leaves is not checked", "{endpoint:?}");
                let after = self.draw.millis(0, 20);
                self.plan(after, Happening::Probed { lane });
                Ok(())
            }
        }
    }

    fn dial(&mut self, worker: usize, slot: SlotId, timeout: Duration) -> Result<(), Broken> {
        let lane = self.workers[worker].lanes[&slot.endpoint()];
        let site = self.lanes[lane].site;
        self.lanes[lane].dials(self.now, slot)?;
        hold!(
            timeout == self.lanes[lane].config.dial_timeout,
            "dial_timeout holds",
            "{timeout:?}, should be {:?}",
            self.lanes[lane].config.dial_timeout
        );
        self.sockets += 1;
        self.sites[site].sockets += 1;
        let site = &self.sites[site];
        let (after, answer) = if self.sockets > self.kernel_descriptors {
            self.coverage.note("world", "kernel_descriptors_gone");
            (Duration::ZERO, Some(Err(Cause::Descriptors)))
        } else if site.sockets > site.upstream.kernel_ports {
            self.coverage.note("world", "kernel_ports_gone");
            (Duration::ZERO, Some(Err(Cause::Ports)))
        } else {
            site.upstream.answer(&mut self.draw)
        };
        let (after, result) = match answer {
            Some(result) if after < timeout => (after, result),
            _ => (timeout, Err(Cause::Timeout)),
        };
        self.coverage.note(
            "world",
            match result {
                Ok(_) => "dial_accepted",
                Err(Cause::Timeout) => "dial_hung",
                Err(Cause::Cancelled) => "dial_cancelled",
                Err(cause) if cause.blame() == forebay_core::Blame::Local => "dial_local",
                Err(_) => "dial_refused",
            },
        );
        self.plan(after, Happening::Dialed { lane, slot, result });
        Ok(())
    }

    fn check_ledgers(&mut self) -> Result<(), Broken> {
        let now = self.now;
        if let Some(descriptors) = &self.descriptors {
            hold!(
                descriptors.used() == self.sockets,
                "a permit for each socket",
                "{} descriptors taken, {} sockets",
                descriptors.used(),
                self.sockets
            );
        }
        for site in &mut self.sites {
            let (pooled, temporary) = (&site.permits.connections, &site.permits.temporary);
            hold!(
                pooled.used() + temporary.used() == site.sockets,
                "a permit for each socket",
                "{} pooled and {} temporary taken, {} sockets",
                pooled.used(),
                temporary.used(),
                site.sockets
            );
            if let Some(ports) = &site.permits.budget.ports {
                hold!(
                    ports.used() == site.sockets,
                    "a permit for each socket",
                    "{} ports taken, {} sockets",
                    ports.used(),
                    site.sockets
                );
            }
            let used = (pooled.used(), temporary.used());
            hold!(
                used.0 <= pooled.max().max(site.used.0) && used.1 <= temporary.max().max(site.used.1),
                "connections_max and temporary_max hold",
                "{used:?}, before {:?}, at most {} and {}",
                site.used,
                pooled.max(),
                temporary.max()
            );
            site.used = used;
            let policy = pooled.level() != Level::Exhausted
                || (site.config.overflow == Overflow::Temporary && temporary.level() != Level::Exhausted);
            let budget = &site.permits.budget;
            let machine = [&budget.descriptors, &budget.ports].into_iter().flatten().map(|l| l.level()).max();
            let machine = machine.unwrap_or(Level::Free);
            let since = |room: bool, since: Option<Instant>| if room { since.or(Some(now)) } else { None };
            site.room.modest = since(policy && machine == Level::Free, site.room.modest);
            site.room.urgent = since(policy && machine != Level::Exhausted, site.room.urgent);
        }
        Ok(())
    }

    pub(super) fn check_awake(&self) -> Result<(), Broken> {
        for lane in &self.lanes {
            lane.check_awake(self.now, self.lazy, self.sites[lane.site].room)?;
        }
        Ok(())
    }

    pub(super) fn check_end(&mut self) -> Result<(), Broken> {
        for lane in &self.lanes {
            lane.count_acquires(&mut self.coverage);
        }
        for (i, worker) in self.workers.iter().enumerate() {
            hold!(worker.engine.is_empty(), "after drain nothing is left", "worker {i}");
            let left: Vec<_> = worker.engine.endpoint_ids().collect();
            hold!(left.is_empty(), "after drain nothing is left", "worker {i}: {left:?}");
        }
        hold!(self.held.is_empty() && self.granted.is_empty(), "the world forgets nobody", "leases are out");
        hold!(self.holds.is_empty(), "each ticket is answered once", "{:?} were not", self.holds.keys());
        hold!(self.sockets == 0, "after drain nothing is left", "{} sockets", self.sockets);
        for site in &self.sites {
            let used = site.permits.connections.used() + site.permits.temporary.used();
            hold!(used == 0, "after drain nothing is left", "{used} permits");
        }
        Ok(())
    }

    /// Wakes the engine when it asks to be woken, or a little later.
    fn set_timer(&mut self, worker: usize) {
        let Some(due) = self.workers[worker].engine.next_timeout() else { return };
        let late =
            if self.lazy.is_zero() { self.lazy } else { self.draw.micros(0, self.lazy.as_micros() as u64) };
        let at = due.max(self.now) + late;
        // A timer that is set already stays if it is in time for this.
        if self.workers[worker].timer.is_none_or(|set| due + late < set && at < set) {
            self.workers[worker].timer = Some(at);
            self.turns += 1;
            let planned = Planned { at, turn: self.turns, what: Happening::Timer { worker } };
            self.queue.push(Reverse(planned));
        }
    }

    pub(super) fn forget_slot(&mut self, worker: usize, slot: SlotId) {
        remember(&mut self.workers[worker].past_slots, slot);
    }

    pub(super) fn forget_ticket(&mut self, worker: usize, ticket: TicketId) {
        remember(&mut self.workers[worker].past_tickets, ticket);
    }
}

fn remember<T>(past: &mut VecDeque<T>, one: T) {
    past.push_back(one);
    if past.len() > 8 {
        past.pop_front();
    }
}

//! What stands behind the one lock: the engine, the connections that nobody holds, and the cells of those who wait.

use std::collections::VecDeque;
use std::task::Waker;
use std::time::Duration;

use forebay_core::{
    Acquired, Action, Cause, Config, ConfigError, EndpointId, Engine, Event, IdleOrder, Instant,
    Lease as Token, Outcome, Overflow, Permits, Refusal, Removal, SlotId, Snapshot, State, TicketError,
    TicketId,
};

use super::cell::{self, Cell, NotGranted};
use super::mode::{Mode, Terms};
use super::shard::Waiter;
use super::sync::Arc;
use super::{NEWS, Target};

/// What is to be done with no lock held. Small: most of the time it is one waiter to wake.
pub(crate) struct Work<T, M: Mode<T>, D> {
    /// To be woken first.
    pub(crate) wake: Option<Waker>,
    /// The driver has to get up earlier than it thinks.
    pub(crate) rouse: bool,
    /// A drain has ended: nothing is left.
    pub(crate) drained: bool,
    pub(crate) rest: Option<Box<Rest<T, M, D>>>,
}

/// What is seldom to be done, in this order.
pub(crate) struct Rest<T, M: Mode<T>, D> {
    /// To be woken, too.
    pub(crate) wake: Vec<Waker>,
    /// For the log.
    pub(crate) events: Vec<(D, Event)>,
    /// To be dialled, then told to [`super::Exchange::handle_dialed`].
    pub(crate) dials: Vec<DialOrder<D>>,
    /// To be checked, then told to [`Engine::handle_probed`].
    pub(crate) probes: Vec<(EndpointId, D)>,
    /// To be dropped: the engine does not count them any more.
    pub(crate) dropped: Vec<M::Place>,
    /// To be closed, then told to [`super::Exchange::handle_closed`].
    pub(crate) closing: Vec<Closing<M::Place>>,
}

/// A connection to close.
#[derive(Debug)]
pub(crate) struct Closing<P> {
    pub(crate) slot: SlotId,
    pub(crate) place: P,
}

/// A connection to make.
#[derive(Debug)]
pub(crate) struct DialOrder<D> {
    pub(crate) slot: SlotId,
    pub(crate) timeout: Duration,
    pub(crate) data: D,
}

impl<T, M: Mode<T>, D> Default for Work<T, M, D> {
    fn default() -> Self {
        Self { wake: None, rouse: false, drained: false, rest: None }
    }
}

impl<T, M: Mode<T>, D> Default for Rest<T, M, D> {
    fn default() -> Self {
        Self {
            wake: Vec::new(),
            events: Vec::new(),
            dials: Vec::new(),
            probes: Vec::new(),
            dropped: Vec::new(),
            closing: Vec::new(),
        }
    }
}

impl<T, M: Mode<T>, D> Work<T, M, D> {
    fn rest(&mut self) -> &mut Rest<T, M, D> {
        self.rest.get_or_insert_default()
    }

    fn wake(&mut self, waker: Option<Waker>) {
        if self.wake.is_none() {
            self.wake = waker;
        } else if let Some(waker) = waker {
            self.rest().wake.push(waker);
        }
    }

    fn drop(&mut self, place: Option<M::Place>) {
        if let Some(place) = place {
            self.rest().dropped.push(place);
        }
    }

    fn close(&mut self, slot: SlotId, place: Option<M::Place>) {
        if let Some(place) = place {
            self.rest().closing.push(Closing { slot, place });
        }
    }
}

type CellOf<T, M, D> = Arc<Cell<<M as Mode<T>>::Held, D>>;

/// One endpoint's connections and waiters, by the engine's small numbers.
struct Site<T, M: Mode<T>, D> {
    id: EndpointId,
    data: D,
    stands: Vec<Stand<M::Place>>,
    cells: Vec<Option<CellOf<T, M, D>>>,
    order: IdleOrder,
    overflow: Overflow,
    waiters_max: u32,
    /// Something failed, and nothing has succeeded since: the engine wants to hear of the next success.
    unproven: bool,
}

struct Stand<P> {
    /// The slot that had this place last.
    slot: Option<SlotId>,
    place: Option<P>,
    /// Its peer's close will be noticed without anybody asking.
    watched: bool,
}

/// See the module's page.
pub(crate) struct Hub<T, M: Mode<T>, D> {
    pub(crate) engine: Engine,
    sites: Vec<Option<Site<T, M, D>>>,
    /// The only site, if there is only one: then there is nothing to choose, and stashes are in use.
    only: Option<EndpointId>,
    stashes: bool,
    /// Endpoints that were removed and have connections still.
    leaving: Vec<EndpointId>,
    draining: bool,
    /// Tickets in the engine.
    waiting: u32,
    /// Cells that were filled, the longest ago first; most are free to be used again.
    cells: VecDeque<CellOf<T, M, D>>,
    /// The gate without its flags. See the parent module.
    pub(super) gate: u64,
    /// Whether shards have lines of their own. See the parent module.
    pub(super) local: bool,
    /// What came out of the shards a moment ago; empty between calls.
    pub(super) recalled: Vec<M::Held>,
    pub(super) recalled_waiters: Vec<Waiter<M::Held, D>>,
    work: Work<T, M, D>,
    /// When the driver gets up next.
    driver_due: Instant,
    /// Some idle connection is not watched.
    unwatched: bool,
}

impl<T, M: Mode<T>, D: Clone> Hub<T, M, D> {
    pub(super) fn new(engine: Engine) -> Self {
        Self {
            engine,
            sites: Vec::new(),
            only: None,
            stashes: false,
            leaving: Vec::new(),
            draining: false,
            waiting: 0,
            cells: VecDeque::new(),
            gate: 0,
            local: false,
            recalled: Vec::new(),
            recalled_waiters: Vec::new(),
            work: Work::default(),
            driver_due: Instant::MAX,
            unwatched: false,
        }
    }

    pub(super) const fn waiting(&self) -> u32 {
        self.waiting
    }

    pub(crate) fn data(&self, id: EndpointId) -> Option<&D> {
        self.site(id).map(|site| &site.data)
    }

    /// The driver sleeps until this time unless it is roused.
    pub(crate) fn plan_driver(&mut self) -> Option<Instant> {
        let due = self.engine.next_timeout();
        self.driver_due = due.unwrap_or(Instant::MAX);
        due
    }

    pub(super) fn target(&mut self, now: Instant, target: Target) -> Option<EndpointId> {
        match (target, self.only) {
            (Target::At(id), _) | (Target::Any(_), Some(id)) => Some(id),
            (Target::Any(hash), None) => self.engine.pick(now, hash),
        }
    }

    pub(super) fn try_acquire(&mut self, now: Instant, id: EndpointId) -> Option<M::Held> {
        let token = self.engine.try_acquire(now, id)?;
        self.lend(token)
    }

    /// Takes a connection that the engine has given a lease on out of its place.
    pub(super) fn lend(&mut self, token: Token) -> Option<M::Held> {
        let slot = token.slot();
        let proven = self.site(slot.endpoint()).is_some_and(|site| !site.unproven);
        let terms = if M::EXCLUSIVE && self.stashes && proven {
            let (retire_at, uses_left) = self.engine.terms(&token);
            Terms { gate: self.gate, retire_at, uses_left, ..Terms::NEVER }
        } else {
            Terms::NEVER
        };
        let stand = self.site_mut(slot.endpoint()).and_then(|site| site.stands.get_mut(slot.index()))?;
        stand.watched = false;
        let held = M::lend(&mut stand.place, token, terms);
        debug_assert!(held.is_some(), "the engine lent {slot:?}, which is not in its place");
        held
    }

    /// Puts somebody in the engine's line.
    pub(super) fn line_up(&mut self, ticket: TicketId, cell: Arc<Cell<M::Held, D>>) {
        cell.set_ticket(ticket);
        self.waiting += 1;
        let Some(site) = self.site_mut(ticket.endpoint()) else { return };
        if site.cells.len() <= ticket.index() {
            site.cells.resize_with(ticket.index() + 1, || None);
        }
        site.cells[ticket.index()] = Some(cell);
    }

    pub(super) fn free_cell(&mut self, waker: &Waker) -> Arc<Cell<M::Held, D>> {
        cell::free(&mut self.cells, waker.clone())
    }

    /// Puts those who waited in shards in the engine's line, the longest waiting first.
    pub(super) fn line_up_recalled(&mut self, now: Instant) {
        let mut waiters = std::mem::take(&mut self.recalled_waiters);
        waiters.sort_by_key(|waiter| waiter.since);
        for Waiter { cell, since, deadline } in waiters.drain(..) {
            let id = self.target(now, Target::Any(0));
            let acquired = id.map_or(Acquired::Refused(Refusal::NoEndpoint), |id| {
                self.engine.acquire_since(now, id, deadline, since)
            });
            let granted = match acquired {
                Acquired::Wait(ticket) => {
                    self.line_up(ticket, cell);
                    continue;
                }
                Acquired::Lease(token) => match self.lend(token) {
                    Some(held) => Ok(held),
                    None => continue,
                },
                Acquired::Refused(refusal) => {
                    Err(NotGranted::Refused(refusal, id.and_then(|id| self.data(id)).cloned()))
                }
            };
            let waker = cell.fill(granted);
            self.cells.push_back(cell);
            self.work.wake(waker);
        }
        self.recalled_waiters = waiters;
    }

    /// Since when the oldest ticket has waited, while there is one endpoint.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.engine.oldest_ticket(self.only?)
    }

    /// Whether shards may have lines of their own: the pool is full and does nothing but wait for leases to come back,
    /// and `more` waiters beyond the engine's would not be too many.
    pub(super) fn may_be_local(&self, more: u32) -> bool {
        let Some(site) = self.only.filter(|_| self.stashes).and_then(|id| self.site(id)) else {
            return false;
        };
        site.overflow == Overflow::Wait
            && self.waiting + more <= site.waiters_max
            && self.engine.is_full(site.id)
    }

    /// Something happened that the engine decides upon.
    pub(super) const fn note_news(&mut self) {
        self.gate = self.gate.wrapping_add(NEWS);
    }

    /// Notes that somebody is to be woken.
    pub(super) fn wake(&mut self, waker: Option<Waker>) {
        self.work.wake(waker);
    }

    /// Returns whether the ticket still waited.
    pub(super) fn cancel(&mut self, now: Instant, ticket: TicketId) -> bool {
        if !self.engine.cancel(now, ticket) {
            return false;
        }
        self.waiting -= 1;
        let cell = self.site_mut(ticket.endpoint()).and_then(|site| site.cells[ticket.index()].take());
        self.cells.extend(cell);
        true
    }

    /// Takes back what a lease held.
    pub(super) fn give_back(&mut self, now: Instant, held: M::Held, outcome: Outcome) {
        let (token, uses, place) = M::unlend(held);
        let slot = token.slot();
        match self.engine.slot_state(slot) {
            // Its peer closed it, or its endpoint is gone.
            State::Vacant => self.work.drop(place),
            // It was to be closed while it was lent.
            State::Closed if M::EXCLUSIVE => self.work.close(slot, place),
            State::Closed => self.work.drop(place),
            _ => {
                self.unwatched = true;
                if let (Some(place), Some(site)) = (place, self.site_mut(slot.endpoint())) {
                    // A shared connection stands there already; then this was not the last hold on it.
                    site.stands[slot.index()].place.get_or_insert(place);
                }
            }
        }
        if let Some(site) = self.site_mut(slot.endpoint()) {
            match outcome {
                Outcome::Good | Outcome::GoodLast => site.unproven = false,
                Outcome::Failed(_) | Outcome::Broken(_) => site.unproven = true,
                Outcome::Unused | Outcome::Abandoned => {}
            }
        }
        if uses > 0 {
            self.engine.note_uses(slot, uses);
        }
        self.engine.release(now, token, outcome);
    }

    /// Takes back what came out of the stashes. Each had been given back as good.
    pub(super) fn give_back_recalled(&mut self, now: Instant) {
        let mut recalled = std::mem::take(&mut self.recalled);
        for held in recalled.drain(..) {
            self.give_back(now, held, Outcome::Good);
        }
        self.recalled = recalled;
    }

    pub(super) fn handle_dialed(&mut self, now: Instant, slot: SlotId, result: Result<(T, u32), Cause>) {
        let wanted = self.engine.slot_state(slot) == State::Connecting;
        let Some(site) = self.site_mut(slot.endpoint()) else {
            self.work.drop(result.ok().map(|(conn, _)| M::place(conn)));
            return;
        };
        let capacity = match result {
            Ok((conn, _)) if !wanted => {
                self.work.drop(Some(M::place(conn)));
                return;
            }
            Ok((conn, capacity)) => {
                if site.stands.len() <= slot.index() {
                    site.stands.resize_with(slot.index() + 1, || Stand {
                        slot: None,
                        place: None,
                        watched: false,
                    });
                }
                site.stands[slot.index()] =
                    Stand { slot: Some(slot), place: Some(M::place(conn)), watched: false };
                self.unwatched = true;
                Ok(capacity)
            }
            Err(cause) => {
                site.unproven = true;
                Err(cause)
            }
        };
        self.engine.handle_dialed(now, slot, capacity);
    }

    pub(super) fn handle_closed(&mut self, now: Instant, slot: SlotId) {
        if self.engine.slot_state(slot) == State::Vacant {
            return;
        }
        let place = self
            .site_mut(slot.endpoint())
            .and_then(|site| site.stands.get_mut(slot.index()))
            .and_then(|stand| stand.place.take());
        self.work.drop(place);
        self.engine.handle_closed(now, slot);
    }

    pub(super) fn add_endpoint(
        &mut self,
        now: Instant,
        config: Config,
        permits: Permits,
        data: D,
    ) -> Result<EndpointId, ConfigError> {
        let id = self.engine.add_endpoint(now, config, permits)?;
        if self.sites.len() <= id.index() {
            self.sites.resize_with(id.index() + 1, || None);
        }
        self.sites[id.index()] = Some(Site {
            id,
            data,
            stands: Vec::new(),
            cells: Vec::new(),
            order: config.order,
            overflow: config.overflow,
            waiters_max: config.waiters_max,
            unproven: false,
        });
        self.count_sites();
        Ok(id)
    }

    pub(super) fn remove_endpoint(&mut self, now: Instant, id: EndpointId, removal: Removal) {
        self.engine.remove_endpoint(now, id, removal);
        self.leaving.push(id);
        self.count_sites();
    }

    pub(super) fn renew_endpoint(&mut self, now: Instant, id: EndpointId) {
        self.engine.renew_endpoint(now, id);
    }

    pub(super) fn set_config(
        &mut self,
        now: Instant,
        id: EndpointId,
        config: Config,
    ) -> Result<(), ConfigError> {
        self.engine.handle_config(now, id, config)?;
        if let Some(site) = self.site_mut(id) {
            site.order = config.order;
            site.overflow = config.overflow;
            site.waiters_max = config.waiters_max;
        }
        self.count_sites();
        Ok(())
    }

    pub(super) fn drain(&mut self, now: Instant) {
        self.engine.drain(now);
        self.draining = true;
    }

    pub(super) fn snapshot(&self, now: Instant) -> Vec<(D, Snapshot)> {
        let figures = |site: &Site<T, M, D>| Some((site.data.clone(), self.engine.snapshot(now, site.id)?));
        self.sites.iter().flatten().filter_map(figures).collect()
    }

    /// Asks of up to `n` idle connections that are not watched yet whether the peer has closed them, or of those
    /// named. Returns the closed ones, and whether some are left to ask.
    pub(super) fn find_closed(
        &mut self,
        named: &[SlotId],
        n: usize,
        mut is_closed: impl FnMut(SlotId, &mut T) -> bool,
    ) -> (Vec<SlotId>, bool) {
        let mut closed = Vec::new();
        let engine = &self.engine;
        let mut ask = |slot: SlotId, stand: &mut Stand<M::Place>| {
            let conn = stand.place.as_mut().and_then(M::idle_mut);
            if let Some(conn) = conn
                && engine.slot_state(slot) != State::Vacant
            {
                stand.watched = true;
                if is_closed(slot, conn) {
                    closed.push(slot);
                }
            }
        };
        for &slot in named {
            let site = self.sites.get_mut(slot.endpoint().index()).and_then(Option::as_mut);
            if let Some(stand) = site.and_then(|site| site.stands.get_mut(slot.index())) {
                ask(slot, stand);
            }
        }
        let mut left = false;
        if self.unwatched {
            let mut asked = 0;
            'sites: for site in self.sites.iter_mut().flatten() {
                for stand in &mut site.stands {
                    let Some(slot) = stand.slot.filter(|_| stand.place.is_some() && !stand.watched) else {
                        continue;
                    };
                    if asked == n {
                        left = true;
                        break 'sites;
                    }
                    asked += 1;
                    ask(slot, stand);
                }
            }
            self.unwatched = left;
        }
        (closed, left)
    }

    /// Takes the engine's actions over into what is to be done.
    pub(super) fn take_actions(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            match action {
                Action::Grant { ticket, lease } => {
                    if let Some(held) = self.lend(lease) {
                        self.answer(ticket, Ok(held));
                    }
                }
                Action::Fail { ticket, error } => self.answer(ticket, Err(error)),
                Action::Close { slot, .. } => self.close(slot),
                Action::Dial { slot, timeout } => {
                    if let Some(data) = self.data(slot.endpoint()).cloned() {
                        self.work.rest().dials.push(DialOrder { slot, timeout, data });
                    }
                }
                Action::Probe { endpoint } => {
                    if let Some(data) = self.data(endpoint).cloned() {
                        self.work.rest().probes.push((endpoint, data));
                    }
                }
            }
        }
    }

    pub(super) fn take_work(&mut self) -> Work<T, M, D> {
        while let Some(event) = self.engine.poll_event() {
            if let Some(data) = endpoint_of(&event).and_then(|id| self.data(id)).cloned() {
                self.work.rest().events.push((data, event));
            }
        }
        if !self.leaving.is_empty() {
            self.forget_gone();
        }
        self.work.drained = self.draining && self.engine.is_empty();
        if let Some(due) = self.engine.next_timeout()
            && due < self.driver_due
        {
            self.driver_due = due;
            self.work.rouse = true;
        }
        std::mem::take(&mut self.work)
    }

    fn answer(&mut self, ticket: TicketId, granted: Result<M::Held, TicketError>) {
        let Some(site) = self.site_mut(ticket.endpoint()) else { return };
        let Some(cell) = site.cells[ticket.index()].take() else { return };
        let waker = cell.fill(granted.map_err(|error| NotGranted::Ticket(error, Some(site.data.clone()))));
        self.waiting -= 1;
        self.cells.push_back(cell);
        self.work.wake(waker);
    }

    /// A connection that is lent is closed by whoever gives it back.
    fn close(&mut self, slot: SlotId) {
        let stand = self.site_mut(slot.endpoint()).and_then(|site| site.stands.get_mut(slot.index()));
        let place = stand.and_then(|stand| stand.place.take());
        self.work.close(slot, place);
    }

    fn forget_gone(&mut self) {
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|&id| {
            let stays = self.engine.endpoint_ids().any(|known| known == id);
            if !stays && self.site(id).is_some() {
                self.sites[id.index()] = None;
            }
            stays
        });
        self.leaving = leaving;
        self.count_sites();
    }

    fn count_sites(&mut self) {
        let mut sites = self.sites.iter().flatten();
        let first = sites.next();
        let alone = first.filter(|_| sites.next().is_none());
        self.only = alone.map(|site| site.id);
        self.stashes = alone.is_some_and(|site| site.order == IdleOrder::Lifo);
    }

    fn site(&self, id: EndpointId) -> Option<&Site<T, M, D>> {
        self.sites.get(id.index())?.as_ref().filter(|site| site.id == id)
    }

    fn site_mut(&mut self, id: EndpointId) -> Option<&mut Site<T, M, D>> {
        self.sites.get_mut(id.index())?.as_mut().filter(|site| site.id == id)
    }
}

fn endpoint_of(event: &Event) -> Option<EndpointId> {
    Some(match *event {
        Event::Opened { slot, .. } | Event::DialFailed { slot, .. } | Event::Closed { slot, .. } => {
            slot.endpoint()
        }
        Event::BreakerOpened { endpoint, .. }
        | Event::BreakerClosed { endpoint }
        | Event::HealthChanged { endpoint, .. }
        | Event::Full { endpoint, .. }
        | Event::LocalExhaustion { endpoint, .. } => endpoint,
        _ => return None,
    })
}

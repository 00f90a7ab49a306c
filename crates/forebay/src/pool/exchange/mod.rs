//! Where leases change hands: the engine behind one lock, and in front of it one stash per shard.
//!
//! ```text
//!   acquire ──▶ own stash ──hit──▶ lease              complete ──▶ own stash (gate open, room, terms allow)
//!                  │ miss, or gate shut                   │ otherwise
//!                  ▼                                      ▼
//!            hub: a free slot? ─▶ lease             hub: release ─▶ the oldest ticket ─▶ its cell ─▶ wake
//!                  │ no
//!                  ▼
//!            shut the gate, empty every stash into the engine, then acquire or wait
//! ```
//!
//! The one idea: a stash lends an *exclusive* connection on **without telling the engine**, for which it stays in use.
//! That is invisible as long as nobody is kept waiting by it and nothing has changed that the engine would have
//! decided upon. Both are said by one number, the *gate*:
//!
//! - its lowest bit is set while tickets wait (or are about to): then nothing enters or leaves a stash;
//! - the rest counts *news*: a failure, a dial, a closed connection, a time-out, a changed policy. A link remembers the
//!   gate at which the engine lent it, and with any other value it goes back to the engine.
//!
//! Why no wake-up is lost: the gate only changes under the hub's lock, and is read under a stash's lock. Who is about
//! to wait shuts the gate first and then visits every stash. A put that saw the gate open has either left its link
//! where the visit finds it, or comes after the visit and sees the gate shut.
//!
//! Nothing here knows tokio or a connector: what is to be done is returned as [`Work`] and done with no lock held.

mod cell;
mod hub;
mod mode;
mod stash;

use std::task::Waker;
use std::time::Duration;

use forebay_core::{
    AcquireOutcome, Acquired, Cause, Config, ConfigError, EndpointId, Engine, Instant, Lease as Token,
    Outcome, Permits, Refusal, Removal, SlotId, Snapshot, TicketId,
};

use super::sync;
use sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering};

pub(crate) use cell::{Cell, Granted};
pub(crate) use hub::{DialOrder, Hub, Rest, Work};
pub use mode::{Exclusive, Mode, Shared};
use stash::Stash;

/// A gate that no lease was lent at.
const NEVER: u64 = u64::MAX;
/// The gate's bit for "tickets wait".
const HUNGRY: u64 = 1;
/// What one count of news adds to the gate.
const NEWS: u64 = 2;

/// Keeps its content on cache lines of its own (two, as processors fetch them in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Padded<T>(pub(crate) T);

/// For which endpoint a lease is wanted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The one that the balance picks, with this hash of the client.
    Any(u64),
    /// This one.
    At(EndpointId),
}

/// The answer to an acquire that had to ask the hub.
pub(crate) enum Answer<H, D> {
    /// Here it is.
    Held(H),
    /// In line. The cell will be filled and the waker woken.
    Wait(Waiting<H, D>),
    /// Not now.
    Refused(Refusal, Option<D>),
}

/// Where a lease went that was given back.
pub(crate) enum Given<T, M: Mode<T>, D> {
    /// Into a stash.
    Kept,
    /// Into a stash that from now on needs to be visited ([`Exchange::visit`]).
    KeptFirst,
    /// To the engine.
    Hub(Work<T, M, D>),
}

/// A place in line.
pub(crate) struct Waiting<H, D> {
    pub(crate) ticket: TicketId,
    pub(crate) cell: Arc<Cell<H>>,
    /// What is known of the endpoint, for error messages.
    pub(crate) data: D,
    pub(crate) since: Instant,
}

type Stashes<H> = Box<[Padded<Mutex<Stash<H>>>]>;

/// See the module's page. `T` is a connection, `D` what the shell wants to remember of an endpoint.
pub(crate) struct Exchange<T, M: Mode<T>, D> {
    gate: Padded<AtomicU64>,
    stashes: Stashes<M::Held>,
    hub: Padded<Mutex<Hub<T, M, D>>>,
}

impl<T, M: Mode<T>, D: Clone> Exchange<T, M, D> {
    /// Makes an exchange with `shards` stashes: a power of two.
    pub(crate) fn new(engine: Engine, shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        Self {
            gate: Padded(AtomicU64::new(0)),
            stashes: (0..shards).map(|_| Padded(Mutex::new(Stash::new()))).collect(),
            hub: Padded(Mutex::new(Hub::new(engine))),
        }
    }

    /// Takes a connection from the stash of `shard`: the way of most acquires. No allocation, no shared cache line.
    pub(crate) fn take(&self, shard: usize) -> Option<M::Held> {
        if !M::EXCLUSIVE || self.gate.0.load(Ordering::Relaxed) & HUNGRY != 0 {
            return None;
        }
        let mut stash = lock(&self.stashes[shard].0);
        let gate = self.gate.0.load(Ordering::Relaxed);
        stash.pop::<T, M>(gate)
    }

    /// Gives a lease back. Good ones stay in the stash of `shard` if they may.
    pub(crate) fn give(
        &self,
        shard: usize,
        held: M::Held,
        outcome: Outcome,
        clock: impl FnOnce() -> Instant,
    ) -> Given<T, M, D> {
        let held = if M::EXCLUSIVE && outcome == Outcome::Good {
            let mut stash = lock(&self.stashes[shard].0);
            let gate = self.gate.0.load(Ordering::Relaxed);
            match stash.push::<T, M>(gate, held) {
                Ok(first) => return if first { Given::KeptFirst } else { Given::Kept },
                Err(held) => held,
            }
        } else {
            held
        };
        let now = clock();
        if matches!(outcome, Outcome::Good | Outcome::Unused) {
            let mut hub = self.lock_hub();
            hub.give_back(now, held, outcome);
            return Given::Hub(self.leave(hub));
        }
        // A failure, or a connection that ends: what was lent before must be asked about again.
        Given::Hub(self.with_news(now, |hub| hub.give_back(now, held, outcome)).1)
    }

    /// Asks the hub for a lease: at once, or by a place in line until `deadline`.
    pub(crate) fn acquire(
        &self,
        now: Instant,
        target: Target,
        deadline: Instant,
        waker: &Waker,
    ) -> (Answer<M::Held, D>, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let Some(id) = hub.target(now, target) else {
            return (Answer::Refused(Refusal::NoEndpoint, None), self.leave(hub));
        };
        if hub.waiting() == 0 {
            if let Some(held) = hub.try_acquire(now, id) {
                return (Answer::Held(held), self.leave(hub));
            }
            self.recall(now, &mut hub);
        }
        let answer = match hub.engine.acquire(now, id, deadline) {
            Acquired::Lease(token) => hub.lend(token).map(Answer::Held),
            Acquired::Wait(ticket) => hub.line_up(now, ticket, waker).map(Answer::Wait),
            Acquired::Refused(refusal) => Some(Answer::Refused(refusal, hub.data(id).cloned())),
        };
        (answer.unwrap_or(Answer::Refused(Refusal::NoEndpoint, None)), self.leave(hub))
    }

    /// Takes a lease if one is free now, wherever it stands; never waits, never dials.
    pub(crate) fn try_acquire(&self, now: Instant, target: Target) -> (Option<M::Held>, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let held = hub.target(now, target).filter(|_| hub.waiting() == 0).and_then(|id| {
            hub.try_acquire(now, id).or_else(|| {
                self.recall(now, &mut hub);
                hub.try_acquire(now, id)
            })
        });
        (held, self.leave(hub))
    }

    /// Gives up a place in line; what was granted meanwhile goes to the next.
    pub(crate) fn cancel(&self, now: Instant, ticket: TicketId, cell: &Cell<M::Held>) -> Work<T, M, D> {
        let mut hub = self.lock_hub();
        if !hub.cancel(now, ticket)
            && let Some(Ok(held)) = cell.take()
        {
            hub.give_back(now, held, Outcome::Unused);
        }
        self.leave(hub)
    }

    /// Gives back a lease without its connection, which is now somebody else's.
    pub(crate) fn detach(&self, now: Instant, token: Token, uses: u64) -> Work<T, M, D> {
        let slot = token.slot();
        self.with_news(now, |hub| {
            hub.engine.note_uses(slot, uses);
            hub.engine.release(now, token, Outcome::GoodLast);
            hub.take_actions();
            hub.engine.handle_closed(now, slot);
        })
        .1
    }

    /// The peer closed a connection that was lent; the connection is dropped already.
    pub(crate) fn handle_lost(&self, now: Instant, token: Token) -> Work<T, M, D> {
        self.with_news(now, |hub| {
            hub.engine.handle_closed(now, token.slot());
            // Its slot is gone: this only tells the breaker that a probe found out nothing.
            hub.engine.release(now, token, Outcome::Unused);
        })
        .1
    }

    /// A dial ended.
    pub(crate) fn handle_dialed(
        &self,
        now: Instant,
        slot: SlotId,
        result: Result<(T, u32), Cause>,
    ) -> Work<T, M, D> {
        self.with_news(now, |hub| hub.handle_dialed(now, slot, result)).1
    }

    /// A connection is closed: as told by [`Work`], or by its peer.
    pub(crate) fn handle_closed(&self, now: Instant, slot: SlotId) -> Work<T, M, D> {
        self.with_news(now, |hub| hub.handle_closed(now, slot)).1
    }

    /// Lets the engine do what is due.
    pub(crate) fn handle_timeout(&self, now: Instant) -> Work<T, M, D> {
        let hub = self.lock_hub();
        if hub.engine.next_timeout().is_none_or(|due| now < due) {
            return self.leave(hub);
        }
        drop(hub);
        self.with_news(now, |hub| hub.engine.handle_timeout(now)).1
    }

    /// Brings any other news to the engine.
    pub(crate) fn handle<R>(&self, now: Instant, tell: impl FnOnce(&mut Engine) -> R) -> (R, Work<T, M, D>) {
        self.with_news(now, |hub| tell(&mut hub.engine))
    }

    /// Adds an endpoint.
    pub(crate) fn add_endpoint(
        &self,
        now: Instant,
        config: Config,
        permits: Permits,
        data: D,
    ) -> Result<(EndpointId, Work<T, M, D>), ConfigError> {
        let (added, work) = self.with_news(now, |hub| hub.add_endpoint(now, config, permits, data));
        self.bound_stashes(&config);
        added.map(|id| (id, work))
    }

    /// Removes an endpoint.
    pub(crate) fn remove_endpoint(&self, now: Instant, id: EndpointId, removal: Removal) -> Work<T, M, D> {
        self.with_news(now, |hub| hub.remove_endpoint(now, id, removal)).1
    }

    /// Changes the policy of one endpoint.
    pub(crate) fn set_config(
        &self,
        now: Instant,
        id: EndpointId,
        config: Config,
    ) -> Result<Work<T, M, D>, ConfigError> {
        let (set, work) = self.with_news(now, |hub| hub.set_config(now, id, config));
        set?;
        self.bound_stashes(&config);
        Ok(work)
    }

    /// Starts to drain every endpoint.
    pub(crate) fn drain(&self, now: Instant) -> Work<T, M, D> {
        self.with_news(now, |hub| hub.drain(now)).1
    }

    /// Looks after the stashes: what has stood in one since before the last visit goes back to the engine, so that its
    /// ages and idle times stay true. Returns whether another visit is needed.
    pub(crate) fn visit(&self, now: Instant) -> (bool, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let mut again = false;
        for stash in &self.stashes {
            let mut stash = lock(&stash.0);
            again |= stash.visit::<T, M>(&mut hub.recalled);
        }
        hub.give_back_recalled(now);
        (again, self.leave(hub))
    }

    /// Asks of up to `n` idle connections that are not watched yet, and of those named, whether the peer has closed
    /// them; `is_closed` is to arrange that it is told when that changes. Returns whether some are left to ask.
    pub(crate) fn watch(
        &self,
        now: Instant,
        named: &[SlotId],
        n: usize,
        is_closed: impl FnMut(SlotId, &mut T) -> bool,
    ) -> (bool, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let (closed, left) = hub.find_closed(named, n, is_closed);
        if !closed.is_empty() {
            hub.gate = hub.gate.wrapping_add(NEWS);
            self.recall(now, &mut hub);
        }
        for slot in closed {
            hub.handle_closed(now, slot);
        }
        (left, self.leave(hub))
    }

    /// Runs `look` over the hub. It must not change what the engine decides.
    pub(crate) fn inspect<R>(&self, look: impl FnOnce(&mut Hub<T, M, D>) -> R) -> R {
        look(&mut self.lock_hub())
    }

    /// Returns each endpoint's figures as if the stashes were part of the engine.
    pub(crate) fn snapshot(&self, now: Instant) -> Vec<(D, Snapshot)> {
        let hub = self.lock_hub();
        let (mut stashed, mut hits) = (0, 0);
        for stash in &self.stashes {
            let stash = lock(&stash.0);
            stashed += stash.len() as u32;
            hits += stash.hits();
        }
        let mut figures: Vec<_> = hub.snapshot(now);
        // Stashes are in use only while there is one endpoint; hits of an earlier one are its successor's.
        if let Some((_, snapshot)) = figures.first_mut() {
            let stashed = stashed.min(snapshot.in_use).min(snapshot.busy);
            snapshot.in_use -= stashed;
            snapshot.busy -= stashed;
            snapshot.ready += stashed;
            snapshot.idle += stashed;
            snapshot.counters.add_acquires(AcquireOutcome::Reused, hits);
        }
        figures
    }
}

impl<T, M: Mode<T>, D: Clone> Exchange<T, M, D> {
    fn lock_hub(&self) -> MutexGuard<'_, Hub<T, M, D>> {
        lock(&self.hub.0)
    }

    /// Brings news: links that are lent or stashed now are not lent on any more.
    fn with_news<R>(&self, now: Instant, tell: impl FnOnce(&mut Hub<T, M, D>) -> R) -> (R, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        hub.gate = hub.gate.wrapping_add(NEWS);
        self.recall(now, &mut hub);
        let told = tell(&mut hub);
        (told, self.leave(hub))
    }

    /// Shuts the gate, then empties every stash into the engine. [`Exchange::leave`] opens it again.
    fn recall(&self, now: Instant, hub: &mut Hub<T, M, D>) {
        if !M::EXCLUSIVE {
            return;
        }
        self.gate.0.store(hub.gate | HUNGRY, Ordering::Relaxed);
        for stash in &self.stashes {
            lock(&stash.0).recall(&mut hub.recalled);
        }
        hub.give_back_recalled(now);
    }

    /// The way out of the hub: takes the engine's actions, and opens the gate unless somebody waits.
    fn leave(&self, mut hub: MutexGuard<'_, Hub<T, M, D>>) -> Work<T, M, D> {
        hub.take_actions();
        if M::EXCLUSIVE {
            let gate = if hub.waiting() > 0 { hub.gate | HUNGRY } else { hub.gate };
            if self.gate.0.load(Ordering::Relaxed) != gate {
                self.gate.0.store(gate, Ordering::Relaxed);
            }
        }
        hub.take_work()
    }

    fn bound_stashes(&self, config: &Config) {
        let bound = stash::bound(config, self.stashes.len());
        for stash in &self.stashes {
            lock(&stash.0).set_bound(bound);
        }
    }
}

/// How often the stashes want a visit under this policy: often enough that idle times stay true.
pub(crate) fn visit_interval(config: &Config) -> Duration {
    config.idle_timeout.map_or(VISIT_INTERVAL, |idle| VISIT_INTERVAL.min(idle / 4))
}

/// The longest time between two visits to a stash that is in use.
const VISIT_INTERVAL: Duration = Duration::from_secs(1);

/// Locks. No code of others runs inside, so a poisoned lock guards consistent data.
fn lock<G>(mutex: &Mutex<G>) -> MutexGuard<'_, G> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

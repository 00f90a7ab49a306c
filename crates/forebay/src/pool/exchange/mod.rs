//! Where leases change hands: the engine behind one lock, the *hub*, and in front of it one *shard* per core.
//!
//! ```text
//!   acquire ──▶ own stash ──hit──▶ lease              complete ──▶ own stash (gate open, room, terms allow)
//!                  │ miss, or gate shut                   │ otherwise
//!                  ▼                                      ▼
//!            own line, if the pool is full            own line: the first in it ─▶ its cell ─▶ wake
//!                  │ otherwise                            │ nobody, or somebody elsewhere was earlier
//!                  ▼                                      ▼
//!            hub: a free slot? ─▶ lease             hub: the oldest ticket, or the oldest in any line
//!                  │ no
//!                  ▼
//!            shut the gate, take all out of the shards, then acquire or wait
//! ```
//!
//! The one idea: an *exclusive* connection is lent on **without telling the engine**, for which it stays in use. A shard
//! keeps connections while nobody waits (its *stash*), and waiters while the pool is full (its *line*). That is
//! invisible as long as the engine would not have decided anything else. Whether that is so is said by one number, the
//! *gate*:
//!
//! - [`HUNGRY`] is set while anybody waits or is about to: then nothing enters or leaves a stash;
//! - [`LOCAL`] is set while shards may have lines of their own: the pool is as large as it may be and nothing is being
//!   dialled, so that only leases that come back can serve anybody;
//! - the rest counts *news*: a failure, a dial, a closed connection, a time-out, a changed policy. A link remembers the
//!   news at which the engine lent it, and with any other it goes back to the engine.
//!
//! # Order
//!
//! First in, first out within the engine's line and within each shard's, and nobody in the engine's is overtaken by who
//! came later. Between the lines of two shards order is kept to about twice [`LINE_VISIT`]: then the driver moves a
//! waiter into the engine's line. With one shard order is exact.
//!
//! # Why no wake-up is lost
//!
//! The gate only changes under the hub's lock, and is read under a shard's lock. Who is about to wait in the engine's
//! line shuts the gate first and then visits every shard: a put that saw the gate open has either left its link where
//! the visit finds it, or comes after the visit and sees the gate shut. Who clears [`LOCAL`] does so first and then
//! takes all waiters out of the shards: who lined up has done so where the visit finds it, or sees that it may not.
//! And while it is set, a lease that comes back to the hub looks for a waiter in every shard before it becomes idle.
//!
//! Locks are taken in this order: hub, shard, cell. Nothing here knows tokio or a connector: what is to be done is
//! returned as [`Work`] and done with no lock held.

mod cell;
mod hub;
mod mode;
mod shard;

use std::task::Waker;
use std::time::Duration;

use forebay_core::{
    AcquireOutcome, Acquired, Cause, Config, ConfigError, EndpointId, Engine, Instant, Lease as Token,
    Outcome, Permits, Refusal, Removal, SlotId, Snapshot,
};

use super::sync;
use sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering};

pub(crate) use cell::{Cell, NotGranted};
pub(crate) use hub::{DialOrder, Hub, Rest, Work};
pub use mode::{Exclusive, Mode, Shared};
use shard::Shard;

/// A gate that no lease was lent at.
const NEVER: u64 = u64::MAX;
/// The gate's bit for "somebody waits".
const HUNGRY: u64 = 1;
/// The gate's bit for "who waits may stand in a shard's line".
const LOCAL: u64 = 2;
/// What one count of news adds to the gate.
const NEWS: u64 = 4;

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
    /// Into a stash that from now on needs to be visited ([`Exchange::visit_links`]).
    KeptFirst,
    /// To somebody who is to be woken.
    Handed(Option<Waker>),
    /// To the engine.
    Hub(Work<T, M, D>),
}

/// A place in line.
pub(crate) struct Waiting<H, D> {
    pub(crate) cell: Arc<Cell<H, D>>,
    pub(crate) since: Instant,
    /// In whose line it began to wait; `None`: in the engine's.
    shard: Option<usize>,
}

/// Read by all, written under the hub's lock.
struct Gate {
    value: AtomicU64,
    /// Since when the oldest ticket in the engine's line has waited, in nanoseconds; `u64::MAX`: there is none.
    oldest: AtomicU64,
}

type Shards<H, D> = Box<[Padded<Mutex<Shard<H, D>>>]>;

/// See the module's page. `T` is a connection, `D` what the shell wants to remember of an endpoint.
pub(crate) struct Exchange<T, M: Mode<T>, D> {
    gate: Padded<Gate>,
    shards: Shards<M::Held, D>,
    hub: Padded<Mutex<Hub<T, M, D>>>,
}

impl<T, M: Mode<T>, D: Clone> Exchange<T, M, D> {
    /// Makes an exchange with `shards` stashes: a power of two.
    pub(crate) fn new(engine: Engine, shards: usize) -> Self {
        debug_assert!(shards.is_power_of_two());
        Self {
            gate: Padded(Gate { value: AtomicU64::new(0), oldest: AtomicU64::new(u64::MAX) }),
            shards: (0..shards).map(|_| Padded(Mutex::new(Shard::new()))).collect(),
            hub: Padded(Mutex::new(Hub::new(engine))),
        }
    }

    /// Takes a connection from the stash of `shard`: the way of most acquires. No allocation, no shared cache line.
    pub(crate) fn take(&self, shard: usize) -> Option<M::Held> {
        if !M::EXCLUSIVE || self.gate() & HUNGRY != 0 {
            return None;
        }
        let mut shard = self.lock_shard(shard);
        let gate = self.gate();
        shard.pop::<T, M>(gate)
    }

    /// Gives a lease back. Good ones stay in `shard`, in its stash or with the first in its line, if they may.
    pub(crate) fn give(
        &self,
        shard: usize,
        held: M::Held,
        outcome: Outcome,
        clock: impl Fn() -> Instant,
    ) -> Given<T, M, D> {
        let held = if M::EXCLUSIVE && outcome == Outcome::Good {
            let mut shard = self.lock_shard(shard);
            let gate = self.gate();
            let held = match shard.push::<T, M>(gate, held) {
                Ok(first) => return if first { Given::KeptFirst } else { Given::Kept },
                Err(held) => held,
            };
            let rival = Instant::from_nanos(self.gate.0.oldest.load(Ordering::Relaxed));
            match shard.hand_over::<T, M>(gate, rival, held, &clock) {
                Ok(waker) => return Given::Handed(waker),
                Err(held) => held,
            }
        } else {
            held
        };
        let now = clock();
        if matches!(outcome, Outcome::Good | Outcome::Unused) {
            let mut hub = self.lock_hub();
            self.give_to_hub(now, &mut hub, held, outcome);
            return Given::Hub(self.leave(now, hub));
        }
        // A failure, or a connection that ends: what was lent before must be asked about again.
        Given::Hub(self.with_news(now, |hub| hub.give_back(now, held, outcome)).1)
    }

    /// Waits in the line of `shard`, if that is possible now. With `true`, the lines need visits from now on
    /// ([`Exchange::visit_lines`]).
    pub(crate) fn line_up(
        &self,
        shard: usize,
        now: Instant,
        deadline: Instant,
        waker: &Waker,
    ) -> Option<(Waiting<M::Held, D>, bool)> {
        if !M::EXCLUSIVE || self.gate() & LOCAL == 0 {
            return None;
        }
        let mut line = self.lock_shard(shard);
        let gate = self.gate();
        let (cell, first) = line.line_up(gate, now, deadline, waker)?;
        Some((Waiting { cell, since: now, shard: Some(shard) }, first))
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
            return (Answer::Refused(Refusal::NoEndpoint, None), self.leave(now, hub));
        };
        if hub.waiting() == 0 && !hub.local {
            if let Some(held) = hub.try_acquire(now, id) {
                return (Answer::Held(held), self.leave(now, hub));
            }
            self.recall(now, &mut hub);
        }
        let answer = match hub.engine.acquire(now, id, deadline) {
            Acquired::Lease(token) => hub.lend(token).map(Answer::Held),
            Acquired::Wait(ticket) => {
                let cell = hub.free_cell(waker);
                hub.line_up(ticket, Arc::clone(&cell));
                Some(Answer::Wait(Waiting { cell, since: now, shard: None }))
            }
            Acquired::Refused(refusal) => Some(Answer::Refused(refusal, hub.data(id).cloned())),
        };
        (answer.unwrap_or(Answer::Refused(Refusal::NoEndpoint, None)), self.leave(now, hub))
    }

    /// Takes a lease if one is free now, wherever it stands; never waits, never dials.
    pub(crate) fn try_acquire(&self, now: Instant, target: Target) -> (Option<M::Held>, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let nobody_waits = hub.waiting() == 0 && !hub.local;
        let held = hub.target(now, target).filter(|_| nobody_waits).and_then(|id| {
            hub.try_acquire(now, id).or_else(|| {
                self.recall(now, &mut hub);
                hub.try_acquire(now, id)
            })
        });
        (held, self.leave(now, hub))
    }

    /// Gives up a place in line; what was granted meanwhile goes to the next.
    pub(crate) fn cancel(&self, now: Instant, waiting: &Waiting<M::Held, D>) -> Work<T, M, D> {
        if let Some(shard) = waiting.shard
            && self.lock_shard(shard).cancel(&waiting.cell)
        {
            return Work::default();
        }
        // Now it has been granted something, or stands in the engine's line: both happen under the locks just held.
        let mut hub = self.lock_hub();
        let waits = waiting.cell.ticket().is_some_and(|ticket| hub.cancel(now, ticket));
        if !waits && let Some(Ok(held)) = waiting.cell.take() {
            self.give_to_hub(now, &mut hub, held, Outcome::Unused);
        }
        self.leave(now, hub)
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
            return self.leave(now, hub);
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

    /// Lets go of an endpoint's connections, and keeps the endpoint.
    pub(crate) fn renew_endpoint(&self, now: Instant, id: EndpointId) -> Work<T, M, D> {
        self.with_news(now, |hub| hub.renew_endpoint(now, id)).1
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
    pub(crate) fn visit_links(&self, now: Instant) -> (bool, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let mut again = false;
        for shard in &self.shards {
            again |= lock(&shard.0).visit_links::<T, M>(&mut hub.recalled);
        }
        hub.give_back_recalled(now);
        (again, self.leave(now, hub))
    }

    /// Looks after the lines: who has stood in one since before the last visit goes to the engine's line, so that
    /// nobody is forgotten. Returns whether another visit is needed.
    pub(crate) fn visit_lines(&self, now: Instant) -> (bool, Work<T, M, D>) {
        let mut hub = self.lock_hub();
        let mut again = false;
        for shard in &self.shards {
            again |= lock(&shard.0).visit_line(now, &mut hub.recalled_waiters);
        }
        hub.line_up_recalled(now);
        (again, self.leave(now, hub))
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
            hub.note_news();
            self.recall(now, &mut hub);
        }
        for slot in closed {
            hub.handle_closed(now, slot);
        }
        (left, self.leave(now, hub))
    }

    /// Runs `look` over the hub. It must not change what the engine decides.
    pub(crate) fn inspect<R>(&self, look: impl FnOnce(&mut Hub<T, M, D>) -> R) -> R {
        look(&mut self.lock_hub())
    }

    /// Returns each endpoint's figures as if the shards were part of the engine.
    pub(crate) fn snapshot(&self, now: Instant) -> Vec<(D, Snapshot)> {
        let hub = self.lock_hub();
        let mut figures: Vec<_> = hub.snapshot(now);
        // Shards are in use only while there is one endpoint; what they counted before is its successor's.
        let Some((_, snapshot)) = figures.first_mut() else { return figures };
        for shard in &self.shards {
            let shard = lock(&shard.0);
            let stashed = shard.stashed() as u32;
            snapshot.in_use -= stashed;
            snapshot.busy -= stashed;
            snapshot.ready += stashed;
            snapshot.idle += stashed;
            snapshot.waiting += shard.waiting() as u32;
            snapshot.counters.add_acquires(AcquireOutcome::Reused, shard.hits());
            snapshot.counters.add_acquires(AcquireOutcome::Waited, shard.handed());
            snapshot.counters.wait.merge(shard.waits());
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
        hub.note_news();
        self.recall(now, &mut hub);
        let told = tell(&mut hub);
        (told, self.leave(now, hub))
    }

    /// Gives a lease back that goes on: to the oldest ticket, or to the oldest in any shard's line.
    fn give_to_hub(&self, now: Instant, hub: &mut Hub<T, M, D>, mut held: M::Held, outcome: Outcome) {
        if hub.local && hub.waiting() == 0 {
            if outcome == Outcome::Good {
                match self.hand_over(now, hub.gate | HUNGRY | LOCAL, held) {
                    Ok(waker) => return hub.wake(waker),
                    Err(back) => held = back,
                }
            }
            self.recall(now, hub);
        }
        hub.give_back(now, held, outcome);
    }

    /// Hands a link to who has waited the longest in any shard's line.
    fn hand_over(&self, now: Instant, gate: u64, held: M::Held) -> Result<Option<Waker>, M::Held> {
        let oldest = |shard: &&Padded<Mutex<Shard<M::Held, D>>>| lock(&shard.0).oldest();
        let first = self.shards.iter().filter(|shard| oldest(shard).is_some()).min_by_key(oldest);
        match first {
            Some(shard) => lock(&shard.0).hand_over::<T, M>(gate, Instant::MAX, held, || now),
            None => Err(held),
        }
    }

    /// Shuts the gate, then takes everything out of the shards and into the engine. [`Exchange::leave`] opens it again.
    fn recall(&self, now: Instant, hub: &mut Hub<T, M, D>) {
        if !M::EXCLUSIVE {
            return;
        }
        hub.local = false;
        self.gate.0.value.store(hub.gate | HUNGRY, Ordering::Relaxed);
        for shard in &self.shards {
            lock(&shard.0).recall(&mut hub.recalled, &mut hub.recalled_waiters);
        }
        // Waiters first, so that what comes back finds them.
        hub.line_up_recalled(now);
        hub.give_back_recalled(now);
    }

    /// The way out of the hub: takes the engine's actions, and sets the gate to what they left.
    fn leave(&self, now: Instant, mut hub: MutexGuard<'_, Hub<T, M, D>>) -> Work<T, M, D> {
        hub.take_actions();
        if M::EXCLUSIVE {
            let may_be_local = hub.may_be_local((self.shards.len() * shard::WAITERS_MAX) as u32);
            if hub.local && !may_be_local {
                self.recall(now, &mut hub);
                hub.take_actions();
            }
            // Once set it stays, until somebody finds every line empty.
            hub.local |= may_be_local && hub.waiting() > 0;
            let hungry = if hub.local || hub.waiting() > 0 { HUNGRY } else { 0 };
            let gate = hub.gate | hungry | if hub.local { LOCAL } else { 0 };
            if self.gate() != gate {
                self.gate.0.value.store(gate, Ordering::Relaxed);
            }
            let oldest = hub.oldest().map_or(u64::MAX, Instant::as_nanos);
            if self.gate.0.oldest.load(Ordering::Relaxed) != oldest {
                self.gate.0.oldest.store(oldest, Ordering::Relaxed);
            }
        }
        hub.take_work()
    }

    fn gate(&self) -> u64 {
        self.gate.0.value.load(Ordering::Relaxed)
    }

    fn lock_shard(&self, index: usize) -> MutexGuard<'_, Shard<M::Held, D>> {
        lock(&self.shards[index].0)
    }

    fn bound_stashes(&self, config: &Config) {
        let links_max = shard::links_max(config, self.shards.len());
        for shard in &self.shards {
            lock(&shard.0).set_links_max(links_max);
        }
    }
}

/// Returns a gate without its flags.
const fn news(gate: u64) -> u64 {
    gate & !(HUNGRY | LOCAL)
}

/// How often the stashes want a visit under this policy: often enough that idle times stay true.
pub(crate) fn visit_interval(config: &Config) -> Duration {
    config.idle_timeout.map_or(VISIT_INTERVAL, |idle| VISIT_INTERVAL.min(idle / 4))
}

/// The longest time between two visits to a stash that is in use.
const VISIT_INTERVAL: Duration = Duration::from_secs(1);

/// The time between two visits to lines in which somebody stands.
pub(crate) const LINE_VISIT: Duration = Duration::from_millis(10);

/// Locks. No code of others runs inside, so a poisoned lock guards consistent data.
fn lock<G>(mutex: &Mutex<G>) -> MutexGuard<'_, G> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

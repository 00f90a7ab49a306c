//! A model check of [`exchange`](super::exchange): the very same files, compiled with the primitives of `shuttle`, which
//! tries many schedules of the threads and prints the one that fails.
//!
//! Checked: every acquire ends (no wake-up is lost; shuttle sees a deadlock otherwise), a connection has one user, limits
//! hold, nothing is lost when callers give up at any point, and in the end the books add up and everything can be closed.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering as StdOrdering};
use std::task::{Context, Poll};
use std::time::Duration;

use forebay_core::{Balance, Cause, Config, Engine, Instant, Outcome, Permits, Removal};
use shuttle::rand::Rng;
use shuttle::thread;

use exchange::{Answer, Exchange, Exclusive, Given, Mode, Target, Waiting, Work};
use sync::Arc;

/// What the copy of the exchange below takes from its parent.
mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicU64, Ordering};
    pub(crate) use shuttle::sync::{Arc, Mutex, MutexGuard};
}

#[path = "exchange/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, reason = "the model uses what it checks")]
mod exchange;

type Held = <Exclusive as Mode<Conn>>::Held;

/// Counts the connections that exist, with primitives that are no points of the schedule.
#[derive(Debug, Default)]
struct Census {
    open: AtomicU32,
    users: AtomicU32,
}

#[derive(Debug)]
struct Conn {
    census: Arc<Census>,
    in_use: bool,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.census.open.fetch_sub(1, StdOrdering::SeqCst);
    }
}

struct World {
    exchange: Exchange<Conn, Exclusive, ()>,
    census: Arc<Census>,
    limit: u32,
}

const NOW: Instant = Instant::from_nanos(1_000_000_000);

fn never() -> Instant {
    NOW + Duration::from_secs(60)
}

impl World {
    fn new(config: Config, shards: usize) -> Arc<Self> {
        let world = Arc::new(Self {
            exchange: Exchange::new(Engine::new(Balance::default(), 1), shards),
            census: Arc::default(),
            limit: config.connections_max,
        });
        let permits = Permits::alone(config.connections_max, config.temporary_max);
        let (_, work) = world.exchange.add_endpoint(NOW, config, permits, ()).expect("the policy is valid");
        world.act(work);
        world
    }

    /// Does what is to be done; dials succeed at once.
    fn act(&self, work: Work<Conn, Exclusive, ()>) {
        let mut works = VecDeque::from([work]);
        while let Some(work) = works.pop_front() {
            work.wake.into_iter().for_each(std::task::Waker::wake);
            let Some(rest) = work.rest else { continue };
            rest.wake.into_iter().for_each(std::task::Waker::wake);
            drop(rest.dropped);
            for order in rest.dials {
                let open = self.census.open.fetch_add(1, StdOrdering::SeqCst) + 1;
                assert!(open <= self.limit, "{open} connections");
                let conn = Conn { census: Arc::clone(&self.census), in_use: false };
                works.push_back(self.exchange.handle_dialed(NOW, order.slot, Ok((conn, 1))));
            }
            for closing in rest.closing {
                drop(closing.place);
                works.push_back(self.exchange.handle_closed(NOW, closing.slot));
            }
        }
    }

    fn acquire(self: &Arc<Self>, shard: usize) -> Acquire {
        Acquire { world: Arc::clone(self), shard, hurried: false, waiting: None }
    }

    fn give(&self, shard: usize, mut held: Held, outcome: Outcome) {
        held.conn.in_use = false;
        self.census.users.fetch_sub(1, StdOrdering::SeqCst);
        match self.exchange.give(shard, held, outcome, || NOW) {
            Given::Kept | Given::KeptFirst => {}
            Given::Handed(waker) => waker.into_iter().for_each(std::task::Waker::wake),
            Given::Hub(work) => self.act(work),
        }
    }

    /// Acquires, uses, and gives back.
    fn serve(self: &Arc<Self>, shard: usize, outcome: Outcome) {
        let held = shuttle::future::block_on(self.acquire(shard));
        thread::yield_now();
        self.give(shard, held, outcome);
    }

    /// Nothing is held any more: everything adds up, and can be closed.
    fn end(&self) {
        self.act(self.exchange.visit_lines(NOW).1);
        let figures = self.exchange.snapshot(NOW);
        for (_, snapshot) in &figures {
            assert_eq!((snapshot.in_use, snapshot.waiting), (0, 0), "{snapshot:?}");
            assert_eq!(snapshot.connections(), self.census.open.load(StdOrdering::SeqCst));
        }
        self.exchange.inspect(|hub| hub.engine.audit()).expect("the books add up");
        self.act(self.exchange.drain(NOW));
        assert!(self.exchange.inspect(|hub| hub.engine.is_empty()));
        assert_eq!(self.census.open.load(StdOrdering::SeqCst), 0);
    }
}

/// The future of an acquire, as the shell's, without clocks.
struct Acquire {
    world: Arc<World>,
    shard: usize,
    /// Has too little time for a shard's line.
    hurried: bool,
    waiting: Option<Waiting<Held, ()>>,
}

impl Acquire {
    fn used(&self, mut held: Held) -> Poll<Held> {
        assert!(!std::mem::replace(&mut held.conn.in_use, true), "a connection has two users");
        let users = self.world.census.users.fetch_add(1, StdOrdering::SeqCst) + 1;
        assert!(users <= self.world.limit, "{users} leases");
        Poll::Ready(held)
    }
}

impl Future for Acquire {
    type Output = Held;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Held> {
        let world = Arc::clone(&self.world);
        if self.waiting.is_none() {
            if let Some(held) = world.exchange.take(self.shard) {
                return self.used(held);
            }
            let deadline = if self.hurried { NOW + Duration::from_millis(1) } else { never() };
            if let Some((waiting, _)) = world.exchange.line_up(self.shard, NOW, deadline, cx.waker()) {
                self.waiting = Some(waiting);
            } else {
                let (answer, work) = world.exchange.acquire(NOW, Target::Any(0), deadline, cx.waker());
                world.act(work);
                match answer {
                    Answer::Held(held) => return self.used(held),
                    Answer::Wait(waiting) => self.waiting = Some(waiting),
                    Answer::Refused(refusal, _) => panic!("refused: {refusal}"),
                }
            }
        }
        let Some(waiting) = &self.waiting else { unreachable!("it waits since a line above") };
        match waiting.cell.poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(granted) => {
                self.waiting = None;
                let Ok(held) = granted else { panic!("a ticket failed: {:?}", granted.err()) };
                self.used(held)
            }
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            self.world.act(self.world.exchange.cancel(NOW, &waiting));
        }
    }
}

fn policy(connections_max: u32) -> Config {
    let breaker = forebay_core::BreakerConfig { failures: 0, ..Default::default() };
    Config { connections_max, breaker, ..Config::default() }
}

/// Runs threads, each with its number, and checks the end.
fn check(config: Config, shards: usize, threads: usize, run: fn(&Arc<World>, usize)) {
    let scenario = move || {
        let world = World::new(config, shards);
        let handles: Vec<_> = (0..threads)
            .map(|number| {
                let world = Arc::clone(&world);
                thread::spawn(move || run(&world, number))
            })
            .collect();
        handles.into_iter().for_each(|handle| handle.join().expect("the thread ends"));
        world.end();
    };
    // Threads with random turns, and threads with priorities that change seldom (few, deep preemptions).
    shuttle::check_random(scenario, schedules(2000));
    shuttle::check_pct(scenario, schedules(1000), 3);
}

/// How many schedules are tried; `FOREBAY_SCHEDULES` multiplies it.
fn schedules(n: usize) -> usize {
    let times = std::env::var("FOREBAY_SCHEDULES").ok().and_then(|times| times.parse::<usize>().ok());
    n * times.unwrap_or(1)
}

#[test]
fn no_wake_up_is_lost_between_two_shards_and_one_connection() {
    check(policy(1), 2, 3, |world, number| {
        for _ in 0..3 {
            world.serve(number % 2, Outcome::Good);
        }
    });
}

#[test]
fn waiters_in_lines_are_served_whoever_gives_back() {
    check(policy(2), 2, 4, |world, number| {
        for round in 0..3 {
            // Leases come back on another shard than they were taken on.
            let held = shuttle::future::block_on(world.acquire(number % 2));
            thread::yield_now();
            world.give((number + round) % 2, held, Outcome::Good);
        }
    });
}

#[test]
fn lines_are_given_up_when_the_engines_line_may_become_too_long() {
    // As many as stand in two shards' lines at most, and one more: with two tickets, lines would be too much.
    let config = Config { waiters_max: 513, ..policy(1) };
    check(config, 2, 5, |world, number| {
        for _ in 0..2 {
            let mut acquire = world.acquire(number % 2);
            acquire.hurried = number < 3;
            let held = shuttle::future::block_on(acquire);
            thread::yield_now();
            world.give(number % 2, held, Outcome::Good);
        }
    });
}

#[test]
fn connections_that_break_are_replaced_for_those_who_wait() {
    check(policy(2), 2, 3, |world, number| {
        let outcomes =
            [Outcome::Good, Outcome::Broken(Cause::Protocol), Outcome::Abandoned, Outcome::GoodLast];
        for round in 0..3 {
            world.serve(number % 2, outcomes[(number + round) % outcomes.len()]);
        }
    });
}

#[test]
fn giving_up_at_any_point_loses_nothing() {
    check(policy(1), 2, 4, |world, number| {
        for round in 0..3 {
            if (number + round) % 2 == 0 {
                world.serve(number % 2, Outcome::Good);
                continue;
            }
            // Polls a few times, then drops the future, or serves if it came through.
            let mut acquire = Box::pin(world.acquire(number % 2));
            let polls = shuttle::rand::thread_rng().gen_range(1..4);
            let held = shuttle::future::block_on(std::future::poll_fn(|cx| {
                for _ in 0..polls {
                    if let Poll::Ready(held) = acquire.as_mut().poll(cx) {
                        return Poll::Ready(Some(held));
                    }
                    thread::yield_now();
                }
                Poll::Ready(None)
            }));
            drop(acquire);
            held.into_iter().for_each(|held| world.give(number % 2, held, Outcome::Good));
        }
    });
}

#[test]
fn the_driver_may_come_at_any_time() {
    check(policy(2), 2, 4, |world, number| {
        if number == 0 {
            for _ in 0..3 {
                world.act(world.exchange.visit_links(NOW).1);
                world.act(world.exchange.visit_lines(NOW).1);
                world.act(world.exchange.handle_timeout(NOW));
                world.act(world.exchange.handle(NOW, |_| ()).1);
            }
            return;
        }
        for _ in 0..3 {
            world.serve(number % 2, Outcome::Good);
        }
    });
}

#[test]
fn policy_may_change_at_any_time() {
    check(policy(3), 2, 3, |world, number| {
        if number == 0 {
            let ids = || world.exchange.inspect(|hub| hub.engine.endpoint_ids().collect::<Vec<_>>());
            for connections_max in [1, 2, 3] {
                let config = Config { idle_max: connections_max, ..policy(connections_max) };
                for id in ids() {
                    let work = world.exchange.set_config(NOW, id, config).expect("the policy is valid");
                    world.act(work);
                }
            }
            return;
        }
        for _ in 0..3 {
            world.serve(number % 2, Outcome::Good);
        }
    });
}

#[test]
fn what_is_lent_when_the_endpoint_goes_is_closed_when_it_comes_back() {
    let scenario = || {
        let world = World::new(policy(2), 2);
        let lent = shuttle::future::block_on(world.acquire(0));
        let other = Arc::clone(&world);
        let giver = thread::spawn(move || other.give(1, lent, Outcome::Good));
        let ids = world.exchange.inspect(|hub| hub.engine.endpoint_ids().collect::<Vec<_>>());
        for id in ids {
            world.act(world.exchange.remove_endpoint(NOW, id, Removal::Close));
        }
        giver.join().expect("the thread ends");
        assert_eq!(world.census.open.load(StdOrdering::SeqCst), 0);
        world.end();
    };
    shuttle::check_random(scenario, schedules(1000));
}

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay::{
    AcquireOutcome, Balance, Blame, BreakerConfig, BreakerState, BuildError, Cause, CloseReason, Config,
    Failure, HealthConfig, IdleOrder, Overflow, Pool, Refusal, Removal, TicketError,
};

use crate::fake::{Fake, Plan, World};

fn soon(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn pool_of(config: Config) -> (Pool<Fake>, Arc<World>) {
    let (fake, world) = Fake::new();
    (Pool::builder(fake).name("test").endpoint("a").config(config).build().unwrap(), world)
}

/// Waits until something holds.
async fn until(mut holds: impl FnMut() -> bool) {
    let deadline = soon(5000);
    while !holds() {
        assert!(Instant::now() < deadline, "it never held");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn dial_outlives_the_caller_who_asked_for_it() {
    let (pool, world) = pool_of(Config::default());
    world.plan([Plan::After(Duration::from_millis(20))]);
    let error = pool.acquire_until(soon(2)).await.unwrap_err();
    assert!(matches!(error.failure(), Failure::Waited(TicketError::Timeout { .. })), "{error}");
    until(|| world.open() == 1).await;
    pool.acquire().await.unwrap().complete();
    assert_eq!(world.dials(), 1);
}

#[tokio::test]
async fn cancelled_waiter_leaves_its_place_to_the_next() {
    let (pool, world) = pool_of(Config { connections_max: 1, ..Config::default() });
    let lease = pool.acquire().await.unwrap();
    let mut cancelled = Box::pin(pool.acquire());
    let mut next = Box::pin(pool.acquire());
    assert!(futures_poll(&mut cancelled).await.is_none());
    assert!(futures_poll(&mut next).await.is_none());
    // The lease is granted to the first, which is dropped before it looks.
    lease.complete();
    drop(cancelled);
    next.await.unwrap().complete();
    assert_eq!((world.dials(), world.open()), (1, 1));
}

/// Polls once.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn waiters_are_served_in_the_order_in_which_they_came() {
    let (pool, _) = pool_of(Config { connections_max: 1, ..Config::default() });
    let lease = pool.acquire().await.unwrap();
    let served = Arc::new(std::sync::Mutex::new(Vec::new()));
    let tasks: Vec<_> = (0..10)
        .map(|number| {
            let (pool, served) = (pool.clone(), Arc::clone(&served));
            tokio::spawn(async move {
                let lease = pool.acquire().await.unwrap();
                served.lock().unwrap().push(number);
                tokio::task::yield_now().await;
                lease.complete();
            })
        })
        .collect();
    until(|| pool.snapshot().endpoints[0].snapshot.waiting == 10).await;
    lease.complete();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*served.lock().unwrap(), (0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn timeout_says_who_was_in_the_way() {
    let (pool, _) = pool_of(Config { connections_max: 1, ..Config::default() });
    let _held = pool.acquire().await.unwrap();
    let error = pool.acquire_until(soon(10)).await.unwrap_err();
    let Failure::Waited(TicketError::Timeout { in_use: 1, waiters: 0, connecting: 0, .. }) = error.failure()
    else {
        panic!("{error}")
    };
    assert_eq!(error.blame(), Blame::Local);
    let text = error.to_string();
    for part in ["\"test\"", "endpoint a", "1 in use", "look here"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
    assert!(error.waited() >= Duration::from_millis(9), "{:?}", error.waited());
}

#[tokio::test]
async fn waiter_of_a_full_pool_with_time_left_is_timed_out_all_the_same() {
    let (fake, _) = Fake::new();
    let config = Config { connections_max: 1, ..Config::default() };
    let pool = Pool::builder(fake)
        .endpoint("a")
        .config(config)
        .acquire_timeout(Duration::from_millis(300))
        .build()
        .unwrap();
    let _held = pool.acquire().await.unwrap();
    // The second stands in a shard's line, as the first of them makes the pool hungry.
    let (first, second) = tokio::join!(pool.acquire(), pool.acquire());
    for error in [first.unwrap_err(), second.unwrap_err()] {
        assert!(matches!(error.failure(), Failure::Waited(TicketError::Timeout { .. })), "{error}");
        let waited = error.waited();
        assert!((Duration::from_millis(290)..Duration::from_millis(600)).contains(&waited), "{waited:?}");
    }
}

#[tokio::test]
async fn acquire_timeout_is_the_time_an_acquire_waits() {
    let (fake, world) = Fake::new();
    world.plan([Plan::Hang]);
    let pool = Pool::builder(fake).endpoint("a").acquire_timeout(Duration::from_millis(30)).build().unwrap();
    let start = Instant::now();
    let error = pool.acquire().await.unwrap_err();
    assert!((30..500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    // Nobody has a connection and one is being dialled: the upstream does not answer.
    assert_eq!(error.blame(), Blame::Upstream);
}

#[tokio::test]
async fn dial_timeout_ends_a_dial_that_hangs() {
    let (pool, world) = pool_of(Config { dial_timeout: Duration::from_millis(20), ..Config::default() });
    world.plan([Plan::Hang]);
    let error = pool.acquire().await.unwrap_err();
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Timeout), Blame::Upstream));
    assert!(error.to_string().contains("no connection within 20ms"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

#[tokio::test]
async fn dial_that_panics_fails_and_frees_its_slot() {
    let (pool, world) = pool_of(Config { connections_max: 1, ..Config::default() });
    world.plan([Plan::Panic]);
    let error = pool.acquire().await.unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Internal));
    pool.acquire().await.unwrap().complete();
}

#[tokio::test]
async fn full_pool_with_temporaries_serves_beyond_its_size_and_closes_them() {
    let config =
        Config { connections_max: 1, overflow: Overflow::Temporary, temporary_max: 1, ..Config::default() };
    let (pool, world) = pool_of(config);
    let pooled = pool.acquire().await.unwrap();
    let temporary = pool.acquire().await.unwrap();
    assert_eq!(world.open(), 2);
    temporary.complete();
    assert_eq!(world.open(), 1);
    pooled.complete();
    let counters = pool.snapshot().counters();
    assert_eq!(counters.acquires(AcquireOutcome::Temporary), 1);
    assert_eq!(counters.closes(CloseReason::Temporary), 1);
}

#[tokio::test]
async fn full_pool_that_rejects_says_so_at_once() {
    let (pool, _) = pool_of(Config { connections_max: 1, overflow: Overflow::Reject, ..Config::default() });
    let _held = pool.acquire().await.unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error.failure(), Failure::Refused(Refusal::Full { in_use: 1, .. })), "{error}");
    assert_eq!(error.blame(), Blame::Local);
}

#[tokio::test]
async fn line_longer_than_waiters_max_is_refused() {
    let (pool, _) = pool_of(Config { connections_max: 1, waiters_max: 2, ..Config::default() });
    let held = pool.acquire().await.unwrap();
    let (one, two, three) = tokio::join!(
        pool.acquire_until(soon(20)),
        pool.acquire_until(soon(20)),
        pool.acquire_until(soon(20)),
    );
    assert!(matches!(one.unwrap_err().failure(), Failure::Waited(_)));
    assert!(matches!(two.unwrap_err().failure(), Failure::Waited(_)));
    let error = three.unwrap_err();
    assert!(matches!(error.failure(), Failure::Refused(Refusal::LineFull { waiters: 2, .. })), "{error}");
    held.complete();
}

#[tokio::test]
async fn connections_min_are_kept_warm_without_demand() {
    let (pool, world) = pool_of(Config { connections_min: 3, ..Config::default() });
    until(|| world.open() == 3).await;
    pool.acquire().await.unwrap().discard(Cause::Protocol);
    until(|| world.dials() == 4 && world.open() == 3).await;
}

#[tokio::test]
async fn idle_connections_close_after_idle_timeout_even_from_a_stash() {
    let (pool, world) =
        pool_of(Config { idle_timeout: Some(Duration::from_millis(100)), ..Config::default() });
    pool.acquire().await.unwrap().complete();
    pool.acquire().await.unwrap().complete();
    assert_eq!(world.open(), 1);
    let start = Instant::now();
    until(|| world.open() == 0).await;
    assert!((80..400).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(pool.snapshot().counters().closes(CloseReason::Idle), 1);
}

#[tokio::test]
async fn connection_serves_uses_max_leases_and_no_more() {
    let (pool, world) = pool_of(Config { uses_max: Some(5), ..Config::default() });
    for expected in [0, 0, 0, 0, 0, 1, 1] {
        let lease = pool.acquire().await.unwrap();
        assert_eq!(lease.number, expected);
        lease.complete();
    }
    assert_eq!(world.open(), 1);
    assert_eq!(pool.snapshot().counters().closes(CloseReason::Uses), 1);
}

#[tokio::test]
async fn connection_is_replaced_before_it_reaches_age_max() {
    let (pool, world) = pool_of(Config { age_max: Some(Duration::from_millis(100)), ..Config::default() });
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        let lease = pool.acquire().await.unwrap();
        tokio::time::sleep(Duration::from_millis(1)).await;
        lease.complete();
    }
    assert!(world.dials() >= 3, "{} dials", world.dials());
    assert!(pool.snapshot().counters().closes(CloseReason::Age) >= 2);
}

#[tokio::test]
async fn newest_or_oldest_idle_connection_is_taken_as_the_order_says() {
    for (order, expected) in [(IdleOrder::Lifo, 1), (IdleOrder::Fifo, 0)] {
        let (pool, _) = pool_of(Config { order, ..Config::default() });
        let (one, two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
        assert_eq!((one.number, two.number), (0, 1));
        one.complete();
        two.complete();
        let lease = pool.acquire().await.unwrap();
        assert_eq!(lease.number, expected, "{order:?}");
        lease.complete();
    }
}

#[tokio::test]
async fn connection_found_dead_when_taken_is_replaced() {
    let (pool, world) = pool_of(Config::default());
    let lease = pool.acquire().await.unwrap();
    let dead = Arc::clone(&lease.dead);
    lease.complete();
    dead.store(true, Ordering::SeqCst);
    let lease = pool.acquire().await.unwrap();
    assert!(!lease.is_reused());
    lease.complete();
    assert_eq!((world.dials(), world.open()), (2, 1));
    assert_eq!(pool.snapshot().counters().closes(CloseReason::Peer), 1);
}

#[tokio::test]
async fn upstream_failures_open_the_breaker_and_a_probe_closes_it() {
    let breaker = BreakerConfig {
        failures: 2,
        open_base: Duration::from_millis(20),
        open_max: Duration::from_millis(40),
    };
    let (pool, _) = pool_of(Config { breaker, ..Config::default() });
    for _ in 0..2 {
        pool.acquire().await.unwrap().discard(Cause::Protocol);
    }
    let error = pool.acquire().await.unwrap_err();
    assert!(matches!(error.failure(), Failure::Refused(Refusal::BreakerOpen { .. })), "{error}");
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Protocol), Blame::Upstream));
    let lease = loop {
        match pool.acquire().await {
            Ok(lease) => break lease,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    lease.complete();
    assert_eq!(pool.snapshot().endpoints[0].snapshot.breaker, BreakerState::Closed);
}

#[tokio::test]
async fn success_between_failures_keeps_the_breaker_closed_through_the_stash_too() {
    let breaker = BreakerConfig { failures: 2, ..BreakerConfig::default() };
    let (pool, _) = pool_of(Config { breaker, ..Config::default() });
    for _ in 0..5 {
        pool.acquire().await.unwrap().discard(Cause::Protocol);
        // Fresh after the failure, then twice from the stash if it stood there.
        for _ in 0..3 {
            pool.acquire().await.unwrap().complete();
        }
    }
    assert_eq!(pool.snapshot().endpoints[0].snapshot.breaker, BreakerState::Closed);
}

#[tokio::test]
async fn local_failures_never_open_the_breaker() {
    let breaker = BreakerConfig { failures: 1, ..BreakerConfig::default() };
    let (pool, world) = pool_of(Config { breaker, ..Config::default() });
    world.plan([Plan::Fail(Cause::Ports), Plan::Fail(Cause::Descriptors)]);
    for _ in 0..2 {
        let error = pool.acquire().await.unwrap_err();
        assert_eq!(error.blame(), Blame::Local);
    }
    pool.acquire().await.unwrap().complete();
    assert_eq!(pool.snapshot().counters().breaker_opened, 0);
}

#[tokio::test]
async fn unhealthy_endpoint_is_passed_over_until_it_answers_again() {
    let (fake, world) = Fake::new();
    let health = Some(HealthConfig { interval: Duration::from_millis(10), rise: 1, fall: 1 });
    let pool = Pool::builder(fake)
        .endpoints(["a", "b"])
        .config(Config { health, ..Config::default() })
        .build()
        .unwrap();
    world.plan([Plan::Fail(Cause::Refused), Plan::Succeed, Plan::Fail(Cause::Refused)]);
    let unhealthy = || {
        let snapshot = pool.snapshot();
        snapshot.endpoints.iter().filter(|e| e.snapshot.health != forebay::Health::Healthy).count()
    };
    until(|| unhealthy() > 0).await;
    until(|| unhealthy() == 0).await;
}

#[tokio::test]
async fn round_robin_uses_each_endpoint_in_turn() {
    let (fake, _) = Fake::new();
    let pool = Pool::builder(fake)
        .endpoints(["a", "b", "c"])
        .balance(Balance::RoundRobin { turn: 0 })
        .build()
        .unwrap();
    let mut seen = std::collections::HashMap::new();
    for _ in 0..9 {
        let lease = pool.acquire().await.unwrap();
        *seen.entry(lease.endpoint().unwrap()).or_insert(0) += 1;
        lease.complete();
    }
    assert_eq!(seen.into_values().collect::<Vec<_>>(), [3, 3, 3]);
}

#[tokio::test]
async fn same_hash_goes_to_the_same_endpoint() {
    let (fake, _) = Fake::new();
    let endpoints = ["a", "b", "c", "d"];
    let pool = Pool::builder(fake).endpoints(endpoints).balance(Balance::SourceHash).build().unwrap();
    let mut used = std::collections::HashSet::new();
    for hash in 0..32 {
        let first = pool.acquire_hashed(hash).await.unwrap();
        let second = pool.acquire_hashed(hash).await.unwrap();
        assert_eq!(first.endpoint(), second.endpoint());
        used.insert(first.endpoint().unwrap());
        first.complete();
        second.complete();
    }
    assert_eq!(used.len(), endpoints.len());
}

#[tokio::test]
async fn slower_endpoint_gets_less_under_p2c() {
    let (fake, _) = Fake::new();
    let pool = Pool::builder(fake).endpoints(["a", "b"]).balance(Balance::P2c).seed(1).build().unwrap();
    pool.observe_latency(&"a", Duration::from_millis(100));
    pool.observe_latency(&"b", Duration::from_millis(1));
    for _ in 0..20 {
        let lease = pool.acquire().await.unwrap();
        assert_eq!(lease.endpoint(), Some("b"));
        lease.complete();
    }
}

#[tokio::test]
async fn same_seed_makes_the_same_choices() {
    let choices = async |seed| {
        let (fake, _) = Fake::new();
        let pool = Pool::builder(fake)
            .endpoints(["a", "b", "c"])
            .balance(Balance::Random)
            .seed(seed)
            .build()
            .unwrap();
        let mut choices = Vec::new();
        for _ in 0..20 {
            let lease = pool.acquire().await.unwrap();
            choices.push(lease.endpoint().unwrap());
            lease.complete();
        }
        choices
    };
    assert_eq!(choices(7).await, choices(7).await);
    assert_ne!(choices(7).await, choices(8).await);
}

#[tokio::test]
async fn endpoints_come_and_go() {
    let (pool, world) = pool_of(Config::default());
    pool.add_endpoint("b");
    pool.add_endpoint("b");
    let at_b = pool.acquire_at(&"b").await.unwrap();
    let at_a = pool.acquire_at(&"a").await.unwrap();
    at_a.complete();
    assert!(pool.remove_endpoint(&"a", Removal::Drain) && !pool.remove_endpoint(&"a", Removal::Drain));
    assert_eq!(world.open(), 1);
    let error = pool.acquire_at(&"a").await.unwrap_err();
    assert_eq!(error.failure(), Failure::Refused(Refusal::NoEndpoint));
    // What is lent may finish, and is then closed.
    assert!(pool.remove_endpoint(&"b", Removal::Drain));
    assert_eq!(world.open(), 1);
    at_b.complete();
    assert_eq!(world.open(), 0);
    assert!(pool.snapshot().endpoints.is_empty());
    // The same endpoint again is a new one.
    pool.add_endpoint("a");
    pool.acquire().await.unwrap().complete();
    assert_eq!(pool.snapshot().endpoints.len(), 1);
}

#[tokio::test]
async fn removed_endpoint_fails_those_who_wait_for_it() {
    let (pool, _) = pool_of(Config { connections_max: 1, ..Config::default() });
    let held = pool.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(drop) }
    });
    until(|| pool.snapshot().endpoints[0].snapshot.waiting == 1).await;
    pool.remove_endpoint(&"a", Removal::Close);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.failure(), Failure::Waited(TicketError::Leaving));
    held.complete();
    assert!(pool.snapshot().endpoints.is_empty());
}

#[tokio::test]
async fn raised_limit_serves_those_who_wait() {
    let (pool, world) = pool_of(Config { connections_max: 1, ..Config::default() });
    let _held = pool.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(forebay::Lease::complete) }
    });
    until(|| pool.snapshot().endpoints[0].snapshot.waiting == 1).await;
    pool.set_config(Config { connections_max: 2, ..Config::default() }).unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(world.open(), 2);
    assert_eq!(
        pool.set_config(Config { connections_max: 0, ..Config::default() }).unwrap_err().field,
        "connections_max"
    );
}

#[tokio::test]
async fn drain_waits_for_leases_and_refuses_new_ones() {
    let (pool, world) = pool_of(Config::default());
    let held = pool.acquire().await.unwrap();
    pool.acquire().await.unwrap().complete();
    let drain = tokio::spawn({
        let pool = pool.clone();
        async move { pool.drain(soon(2000)).await }
    });
    until(|| world.open() == 1).await;
    assert_eq!(pool.acquire().await.unwrap_err().failure(), Failure::Refused(Refusal::Leaving));
    assert!(!drain.is_finished());
    held.complete();
    assert_eq!(drain.await.unwrap(), 0);
    assert_eq!(world.open(), 0);
}

#[tokio::test]
async fn drain_that_takes_too_long_says_what_is_left_and_closes_it_when_it_comes_back() {
    let (pool, world) = pool_of(Config::default());
    let held = pool.acquire().await.unwrap();
    assert_eq!(pool.drain(soon(10)).await, 1);
    held.complete();
    assert_eq!(world.open(), 0);
    assert_eq!(pool.drain(soon(10)).await, 0);
}

#[tokio::test]
async fn dropping_the_last_handle_closes_everything_and_ends_the_tasks() {
    let (pool, world) = pool_of(Config { connections_max: 3, connections_min: 2, ..Config::default() });
    let held = pool.acquire().await.unwrap();
    until(|| world.open() == 2).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(tasks() >= 1);
    let clone = pool.clone();
    drop(pool);
    assert_eq!(world.open(), 2);
    drop(clone);
    assert_eq!(world.open(), 1, "what is lent stays with its user");
    held.complete();
    assert_eq!(world.open(), 0);
    until(|| tasks() == 0).await;
}

#[tokio::test]
async fn dial_of_a_dropped_pool_is_ended() {
    let (pool, world) = pool_of(Config { connections_min: 1, ..Config::default() });
    world.plan([Plan::Hang]);
    until(|| world.dials() == 1).await;
    drop(pool);
    until(|| tokio::runtime::Handle::current().metrics().num_alive_tasks() == 0).await;
}

#[tokio::test]
async fn try_acquire_takes_what_is_free_and_never_dials() {
    let (pool, world) = pool_of(Config::default());
    assert!(pool.try_acquire().is_none());
    pool.acquire().await.unwrap().complete();
    let lease = pool.try_acquire().unwrap();
    assert!(pool.try_acquire().is_none());
    lease.complete();
    assert_eq!(world.dials(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn free_connection_of_another_thread_is_taken_rather_than_dialling() {
    let (fake, world) = Fake::new();
    let pool = Pool::builder(fake).endpoint("a").shards(8).build().unwrap();
    for _ in 0..20 {
        let pool = pool.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                runtime.block_on(async { pool.acquire().await.unwrap().complete() });
            });
        });
    }
    assert_eq!(world.dials(), 1);
}

#[tokio::test]
async fn with_one_shard_threads_share_a_stash_and_with_many_they_do_not() {
    for (shards, same) in [(1, true), (64, false)] {
        let (fake, _) = Fake::new();
        let config = Config { connections_max: 256, ..Config::default() };
        let pool = Pool::builder(fake).endpoint("a").config(config).shards(shards).build().unwrap();
        let (one, two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
        one.complete();
        // The other one comes back on another thread, and stands on top of the stack only if that is the same.
        std::thread::scope(|scope| {
            scope.spawn(|| two.complete());
        });
        let lease = pool.acquire().await.unwrap();
        assert_eq!(lease.number == 1, same, "{shards} shards");
        lease.complete();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiter_of_one_thread_is_not_starved_by_those_of_another() {
    let (fake, _) = Fake::new();
    let config = Config { connections_max: 1, ..Config::default() };
    let pool = Pool::builder(fake).endpoint("a").config(config).shards(64).build().unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy = std::thread::spawn({
        let (pool, stop) = (pool.clone(), Arc::clone(&stop));
        move || {
            // Four tasks of one thread hand the only connection to each other, through their shard's line.
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let turn = async |pool: Pool<Fake>| {
                while !stop.load(Ordering::Relaxed) {
                    let lease = pool.acquire().await.unwrap();
                    tokio::task::yield_now().await;
                    lease.complete();
                }
            };
            runtime.block_on(async {
                tokio::join!(turn(pool.clone()), turn(pool.clone()), turn(pool.clone()), turn(pool.clone()))
            });
        }
    });
    until(|| pool.snapshot().counters().acquires(AcquireOutcome::Waited) > 100).await;
    let mut waits = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        pool.acquire().await.unwrap().complete();
        waits.push(start.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    waits.sort();
    assert!(waits[5] < Duration::from_millis(100), "{waits:?}");
}

#[tokio::test]
async fn impossible_policy_is_refused_by_name() {
    let (fake, _) = Fake::new();
    let error = Pool::builder(fake).config(Config { capacity: 2, ..Config::default() }).build().unwrap_err();
    let BuildError::Config(error) = error else { panic!("{error}") };
    assert_eq!(error.field, "capacity");
}

#[test]
fn pool_outside_of_a_runtime_is_refused() {
    let (fake, _) = Fake::new();
    assert_eq!(Pool::builder(fake).build().unwrap_err(), BuildError::NoRuntime);
}

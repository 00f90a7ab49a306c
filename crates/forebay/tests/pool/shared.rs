use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay::{Cause, CloseReason, Config, Pool, Shared};

use crate::fake::{Fake, Plan};

fn capacity(capacity: u32) -> Config {
    Config { capacity, ..Config::default() }
}

#[tokio::test]
async fn burst_on_an_empty_pool_dials_as_many_connections_as_its_requests_need() {
    let (fake, world) = Fake::new();
    let pool = Pool::shared(fake).endpoint("a").config(capacity(10)).build().unwrap();
    let tasks: Vec<_> = (0..25)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.acquire().await.unwrap() })
        })
        .collect();
    let mut leases = Vec::new();
    for task in tasks {
        leases.push(task.await.unwrap());
    }
    assert_eq!(world.dials(), 3);
    assert_eq!(pool.snapshot().endpoints[0].snapshot.in_use, 25);
}

#[tokio::test]
async fn many_leases_share_one_connection_up_to_what_its_peer_allows() {
    let (fake, world) = Fake::new();
    world.capacity.store(2, Ordering::SeqCst);
    let config = Config { connections_max: 1, ..capacity(100) };
    let pool: Pool<Fake, Shared> = Pool::shared(fake).endpoint("a").config(config).build().unwrap();
    let (one, two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    assert!(std::ptr::eq(&*one, &*two));
    let soon = Instant::now() + Duration::from_millis(10);
    assert!(pool.acquire_until(soon).await.is_err());
    // The peer allows one more: who waits is served.
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(|lease| lease.number) }
    });
    tokio::task::yield_now().await;
    let reporter = world.reporters.lock().unwrap()[0].clone();
    reporter.capacity(3);
    assert_eq!(waiting.await.unwrap().unwrap(), 0);
    one.complete();
    two.complete();
}

#[tokio::test]
async fn dropped_lease_gives_its_unit_back_and_closes_nothing() {
    let (fake, world) = Fake::new();
    let config = Config { connections_max: 1, ..capacity(1) };
    let pool = Pool::shared(fake).endpoint("a").config(config).build().unwrap();
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire().await.unwrap());
    assert_eq!((world.dials(), world.open()), (1, 1));
}

#[tokio::test]
async fn failed_request_leaves_the_connection_and_a_broken_one_ends_it_for_all() {
    let (fake, world) = Fake::new();
    let pool = Pool::shared(fake).endpoint("a").config(capacity(4)).build().unwrap();
    let (one, two) = (pool.acquire().await.unwrap(), pool.acquire().await.unwrap());
    one.fail(Cause::Timeout);
    let three = pool.acquire().await.unwrap();
    assert_eq!(three.number, 0);
    two.discard(Cause::Protocol);
    // No new request goes there; the one in flight may finish.
    let four = pool.acquire().await.unwrap();
    assert_eq!(four.number, 1);
    assert_eq!(world.open(), 2);
    three.complete();
    assert_eq!(world.open(), 1);
    four.complete();
}

#[tokio::test]
async fn goodbye_moves_new_requests_to_another_connection() {
    let (fake, world) = Fake::new();
    let pool = Pool::shared(fake).endpoint("a").config(capacity(4)).build().unwrap();
    let one = pool.acquire().await.unwrap();
    world.reporters.lock().unwrap()[0].clone().goodbye();
    let two = pool.acquire().await.unwrap();
    assert_eq!((one.number, two.number), (0, 1));
    one.complete();
    assert_eq!(world.open(), 1);
    assert_eq!(pool.snapshot().counters().closes(CloseReason::Goodbye), 1);
    two.complete();
}

#[tokio::test]
async fn connection_reported_closed_is_replaced_for_those_who_wait() {
    let (fake, world) = Fake::new();
    let config = Config { connections_max: 1, ..capacity(1) };
    let pool = Pool::shared(fake).endpoint("a").config(config).build().unwrap();
    let one = pool.acquire().await.unwrap();
    let waiting = tokio::spawn({
        let pool = pool.clone();
        async move { pool.acquire().await.map(|lease| lease.number) }
    });
    tokio::task::yield_now().await;
    world.plan([Plan::Succeed]);
    world.reporters.lock().unwrap()[0].clone().closed();
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    one.fail(Cause::Reset);
}

#[tokio::test]
async fn announced_idle_timeout_is_undercut() {
    let (fake, world) = Fake::new();
    let pool = Pool::shared(fake).endpoint("a").config(capacity(4)).build().unwrap();
    pool.acquire().await.unwrap().complete();
    world.reporters.lock().unwrap()[0].clone().idle_timeout(Duration::from_secs(4));
    let idle_timeout = pool.snapshot().endpoints[0].snapshot.idle_timeout;
    assert_eq!(idle_timeout, Some(Duration::from_secs(3)));
}

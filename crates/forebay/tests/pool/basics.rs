use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay::{Cause, Config, Pool};

use crate::fake::Fake;

fn small(connections_max: u32) -> Config {
    Config { connections_max, ..Config::default() }
}

#[tokio::test]
async fn completed_connection_serves_the_next_caller() {
    let (fake, world) = Fake::new();
    let pool = Pool::builder(fake).endpoint("a").build().unwrap();
    let lease = pool.acquire().await.unwrap();
    assert!(!lease.is_reused());
    let number = lease.number;
    lease.complete();
    for _ in 0..10 {
        let lease = pool.acquire().await.unwrap();
        assert!(lease.is_reused());
        assert_eq!(lease.number, number);
        lease.complete();
    }
    assert_eq!(world.dials(), 1);
}

#[tokio::test]
async fn connection_dropped_half_way_is_discarded() {
    let (fake, world) = Fake::new();
    let pool = Pool::builder(fake).endpoint("a").build().unwrap();
    drop(pool.acquire().await.unwrap());
    assert_eq!(world.open(), 0);
    pool.acquire().await.unwrap().complete();
    assert_eq!(world.dials(), 2);
}

#[tokio::test]
async fn connection_dropped_half_way_stays_where_the_protocol_allows_it() {
    let (fake, world) = Fake::new();
    world.reuse_on_drop.store(true, Ordering::SeqCst);
    let pool = Pool::builder(fake).endpoint("a").build().unwrap();
    drop(pool.acquire().await.unwrap());
    drop(pool.acquire().await.unwrap());
    assert_eq!((world.dials(), world.open()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_few_connections_and_each_has_one_user() {
    let (fake, world) = Fake::new();
    let pool = Pool::builder(fake).endpoint("a").config(small(4)).build().unwrap();
    let tasks: Vec<_> = (0..32)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    let mut lease = pool.acquire().await.unwrap();
                    let before = lease.uses;
                    lease.uses += 1;
                    tokio::task::yield_now().await;
                    assert_eq!(lease.uses, before + 1);
                    lease.complete();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(world.open_max.load(Ordering::SeqCst) <= 4);
    let snapshot = pool.snapshot();
    assert_eq!(snapshot.endpoints[0].snapshot.in_use, 0);
    assert_eq!(snapshot.endpoints[0].snapshot.waiting, 0);
}

#[tokio::test]
async fn failed_dial_names_endpoint_cause_and_fault() {
    let (fake, world) = Fake::new();
    world.plan([crate::fake::Plan::Fail(Cause::Refused)]);
    let pool = Pool::builder(fake).name("api").endpoint("a:1").build().unwrap();
    let error = pool.acquire_until(std::time::Instant::now() + Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(error.blame(), forebay::Blame::Upstream);
    let text = error.to_string();
    for part in ["\"api\"", "a:1", "fake dial failed: refused", "look at the upstream"] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

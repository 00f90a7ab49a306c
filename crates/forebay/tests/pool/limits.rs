//! Several pools, one limit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::{Config, Limits, Pool};

use crate::fake::{Fake, World};

type Pair = ([Pool<Fake>; 2], [Arc<World>; 2], Arc<Limits<&'static str>>);

fn pair(config: Config) -> Pair {
    let limits = Limits::new();
    let one = || {
        let (fake, world) = Fake::new();
        let pool = Pool::builder(fake).endpoint("a").config(config).limits(Arc::clone(&limits)).shards(1);
        (pool.build().unwrap(), world)
    };
    let ((a, of_a), (b, of_b)) = (one(), one());
    ([a, b], [of_a, of_b], limits)
}

fn small(connections_max: u32) -> Config {
    Config { connections_max, ..Config::default() }
}

#[tokio::test]
async fn pools_that_share_a_limit_keep_it_together() {
    let ([a, b], _, limits) = pair(small(3));
    let _held =
        [a.acquire_at(&"a").await.unwrap(), a.acquire_at(&"a").await.unwrap(), b.acquire().await.unwrap()];
    assert_eq!(limits.connections(&"a"), 3);
    let soon = || Instant::now() + Duration::from_millis(50);
    assert!(a.acquire_at_until(&"a", soon()).await.is_err());
    assert!(b.acquire_until(soon()).await.is_err());
}

#[tokio::test]
async fn who_waits_gets_what_stands_idle_in_another_pool() {
    let ([a, b], [of_a, of_b], limits) = pair(small(2));
    for _ in 0..2 {
        // By either way of taking one.
        let held = [a.acquire().await.unwrap(), a.acquire_at(&"a").await.unwrap()];
        held.into_iter().for_each(forebay::Lease::complete);
    }
    assert_eq!(of_a.open(), 2);
    let begun = Instant::now();
    let one = b.acquire().await.unwrap();
    let other = b.acquire_at(&"a").await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!((of_a.open(), of_b.open(), limits.connections(&"a")), (0, 2, 2));
    // And back again.
    one.complete();
    a.acquire().await.unwrap().complete();
    other.complete();
    assert_eq!(limits.connections(&"a"), 2);
}

#[tokio::test]
async fn pools_on_threads_of_their_own_share_few_connections() {
    let limits = Limits::new();
    let worlds: Vec<_> = (0..3)
        .map(|_| {
            let (fake, world) = Fake::new();
            let limits = Arc::clone(&limits);
            let thread = std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let pool = Pool::builder(fake)
                        .endpoint("a")
                        .config(small(2))
                        .limits(Arc::clone(&limits))
                        .build();
                    let pool = pool.unwrap();
                    for n in 0..20 {
                        let lease = pool.acquire_at(&"a").await.unwrap();
                        assert!(limits.connections(&"a") <= 2);
                        tokio::time::sleep(Duration::from_millis(n % 3)).await;
                        lease.complete();
                    }
                });
            });
            (thread, world)
        })
        .collect();
    let mut dials = 0;
    for (thread, world) in worlds {
        thread.join().unwrap();
        dials += world.dials();
    }
    assert!(dials >= 3, "each had one at some time");
    assert_eq!(limits.connections(&"a"), 0);
}

#[tokio::test]
async fn one_endpoint_may_have_a_policy_of_its_own() {
    let (fake, world) = Fake::new();
    let pool = Pool::builder(fake).endpoints(["a", "b"]).config(small(4)).build().unwrap();
    assert!(pool.set_config_at(&"b", Config { connections_min: 3, ..small(4) }).unwrap());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let idle = |pool: &Pool<Fake>| {
        let of = |name| {
            pool.snapshot().endpoints.iter().find(|e| e.endpoint == name).map_or(0, |e| e.snapshot.idle)
        };
        (of("a"), of("b"))
    };
    assert_eq!((world.dials(), idle(&pool)), (3, (0, 3)));
    assert!(!pool.set_config_at(&"c", small(4)).unwrap(), "there is none");
    let wrong = Config { connections_min: 5, ..small(4) };
    assert_eq!(pool.set_config_at(&"b", wrong).unwrap_err().field, "connections_min");
    pool.set_config(small(4)).unwrap();
    assert_eq!(
        pool.snapshot().endpoints[1].snapshot.config.connections_min,
        0,
        "the policy of all is for all"
    );
}

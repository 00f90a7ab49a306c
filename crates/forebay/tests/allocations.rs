//! A hit allocates nothing, and neither does waiting once it is warm. A test binary of its own, as it counts
//! allocations of the whole process.

use forebay::sys::counting::CountingAllocator;
use forebay::{Config, Connector, Dial, DialError, Pool};

#[global_allocator]
static COUNTING: CountingAllocator = CountingAllocator::new();

#[derive(Debug)]
struct Numbers;

impl Connector for Numbers {
    type Conn = [u64; 32];
    type Endpoint = &'static str;

    async fn connect(&self, _: Dial<&'static str>) -> Result<[u64; 32], DialError> {
        Ok([0; 32])
    }
}

fn allocations() -> u64 {
    COUNTING.allocations()
}

/// One test, so that nothing else runs and is counted.
#[test]
fn neither_a_hit_nor_a_wait_allocates() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let config = Config { connections_max: 2, ..Config::default() };
        let pool = Pool::builder(Numbers).endpoint("numbers").config(config).build().unwrap();

        pool.acquire().await.unwrap().complete();
        tokio::task::yield_now().await;
        let before = allocations();
        for _ in 0..1000 {
            pool.acquire().await.unwrap().complete();
        }
        assert_eq!(allocations() - before, 0, "a hit allocates");

        // Eight tasks share two connections: everybody waits.
        let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(9));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (pool, barrier) = (pool.clone(), std::sync::Arc::clone(&barrier));
                tokio::spawn(async move {
                    for _ in 0..3 {
                        for _ in 0..100 {
                            let lease = pool.acquire().await.unwrap();
                            tokio::task::yield_now().await;
                            lease.complete();
                        }
                        barrier.wait().await;
                        barrier.wait().await;
                    }
                })
            })
            .collect();
        let mut rounds = Vec::with_capacity(3);
        let mut before = allocations();
        for _ in 0..3 {
            barrier.wait().await;
            rounds.push(allocations() - before);
            before = allocations();
            barrier.wait().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        let waited = pool.snapshot().counters().acquires(forebay::AcquireOutcome::Waited);
        assert!(waited > 2000, "only {waited} waited");
        // The first round makes what waiting needs, the others use it again; growing to full size may allocate a little.
        assert!(rounds[1] + rounds[2] < 16, "1600 waits made {rounds:?} allocations");
    });
}

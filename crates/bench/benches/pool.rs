//! Acquire and release beside other pools: `cargo bench -p forebay-bench --bench pool`.
//!
//! Before criterion begins, the report of [`PoolBench`] is printed, with the allocations that this binary counts.

use std::hint::black_box;

use criterion::{Criterion, criterion_group};
use forebay::sys::counting::CountingAllocator;
use forebay_bench::pool::{
    BareVec, Bb8, Deadpool, Forebay, PoolBench, Subject, many_tasks, one_task, runtime,
};

#[global_allocator]
static COUNTING: CountingAllocator = CountingAllocator::new();

fn pool(c: &mut Criterion) {
    case::<Forebay>(c);
    case::<Bb8>(c);
    case::<Deadpool>(c);
    case::<BareVec>(c);
}

fn case<S: Subject>(c: &mut Criterion) {
    let runtime = runtime();
    let pool = runtime.block_on(S::new());
    c.bench_function(&format!("one task/{}", S::NAME), |b| {
        b.iter_custom(|pairs| one_task(&runtime, black_box(&pool), pairs.clamp(1, 10_000_000) as u32));
    });
    c.bench_function(&format!("64 tasks/{}", S::NAME), |b| {
        b.iter_custom(|pairs| {
            // Each of the tasks makes at least one pair.
            let made = pairs.clamp(64, 10_000_000) as u32;
            many_tasks(&runtime, black_box(&pool), made).mul_f64(pairs as f64 / f64::from(made))
        });
    });
}

criterion_group!(benches, pool);

fn main() {
    let allocations: fn() -> u64 = || COUNTING.allocations();
    // Cargo passes `--bench`; anything else asks for something particular.
    if std::env::args().skip(1).all(|arg| arg == "--bench") {
        println!("{}", PoolBench { allocations: Some(allocations), ..PoolBench::default() }.run());
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}

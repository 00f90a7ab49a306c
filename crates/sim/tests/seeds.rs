//! Many worlds, and whether they had everything in them that worlds should have.
//!
//! `FOREBAY_SIM_SEEDS` (2000) is how many, `FOREBAY_SIM_FIRST` (0) the first; `FOREBAY_SIM_SEED` replays one with a trace.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use forebay_sim::pool::{self, Coverage};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}")))
}

#[test]
fn every_seed_keeps_every_invariant() {
    if let Some(seed) = from_environment("FOREBAY_SIM_SEED") {
        match pool::run(seed, true) {
            Ok(coverage) => print!("{coverage}"),
            Err(violation) => panic!("{violation}"),
        }
        return;
    }
    let count = from_environment("FOREBAY_SIM_SEEDS").unwrap_or(2_000);
    let first = from_environment("FOREBAY_SIM_FIRST").unwrap_or(0);
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let all = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match pool::run(seed, false) {
                        Ok(coverage) => all.lock().unwrap().merge(&coverage),
                        Err(violation) => {
                            failed.store(true, Ordering::Relaxed);
                            panic!("{violation}");
                        }
                    }
                }
            });
        }
    });
    let coverage = all.into_inner().unwrap();
    println!("{coverage}");
    if count >= 2_000 {
        assert_eq!(coverage.missing(), [], "these never occurred: the worlds prove nothing about them");
    }
}

#[test]
fn a_seed_is_one_world() {
    for seed in [1, 7, 42] {
        let (one, other) = (pool::run(seed, false).unwrap(), pool::run(seed, false).unwrap());
        assert_eq!(one.to_string(), other.to_string());
    }
}

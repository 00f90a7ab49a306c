//! Lives through ranges of seeds, on all cores: `forebay-sim [COUNT] [FIRST]`.
//!
//! With `FOREBAY_SIM_SEED` set, lives through that one alone and prints every step.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use forebay_sim::pool::{self, Coverage, Violation};

fn main() -> ExitCode {
    if let Some(seed) = std::env::var("FOREBAY_SIM_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return match pool::run(seed, true) {
            Ok(coverage) => {
                print!("{coverage}");
                ExitCode::SUCCESS
            }
            Err(violation) => {
                println!("{violation}");
                ExitCode::FAILURE
            }
        };
    }
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<u64>());
    let (count, first) = match (args.next().unwrap_or(Ok(10_000)), args.next().unwrap_or(Ok(0))) {
        (Ok(count), Ok(first)) => (count, first),
        _ => {
            eprintln!("usage: forebay-sim [COUNT] [FIRST]");
            return ExitCode::from(2);
        }
    };
    let begun = Instant::now();
    let (next, failed) = (AtomicU64::new(first), AtomicBool::new(false));
    let all: Mutex<(Coverage, Option<Violation>)> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut mine = Coverage::default();
                while !failed.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    match pool::run(seed, false) {
                        Ok(coverage) => mine.merge(&coverage),
                        Err(violation) => {
                            failed.store(true, Ordering::Relaxed);
                            if let Ok(mut all) = all.lock()
                                && all.1.as_ref().is_none_or(|other| violation.seed < other.seed)
                            {
                                all.1 = Some(violation);
                            }
                        }
                    }
                }
                if let Ok(mut all) = all.lock() {
                    all.0.merge(&mine);
                }
            });
        }
    });
    let (coverage, violation) = all.into_inner().unwrap_or_default();
    print!("{coverage}");
    if let Some(violation) = violation {
        eprintln!("{violation}");
        return ExitCode::FAILURE;
    }
    for (kind, name) in coverage.missing() {
        println!("never: {kind} {name}");
    }
    println!("{count} seeds from {first} in {:.1?}: all held", begun.elapsed());
    ExitCode::SUCCESS
}

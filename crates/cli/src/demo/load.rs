//! The demo's clients: most ask for hot names, some for names never asked before.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_bench::dns::{self, BenchError, DnsLoad, DnsReport, Names, Verify};

use crate::failure::Failure;

/// Hot names: enough that some are always just expiring.
const NAMES: u64 = 20_000;
/// How unevenly they are asked for, as real ones are.
const EXPONENT: f64 = 0.9;
/// Of a hundred queries, those for names never asked before.
const UNIQUE_PERCENT: f64 = 5.0;
/// How often it is looked whether the load has ended.
pub(super) const LOOKED_EVERY: Duration = Duration::from_millis(10);

/// Load in threads of its own.
pub(super) struct Load {
    threads: Vec<JoinHandle<Result<DnsReport, BenchError>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    lost: [AtomicU64; 2],
}

/// How the load goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Queries that were not answered in time.
    pub(super) lost: u64,
}

impl Load {
    /// Puts `rate` queries per second on `target`.
    pub(super) fn start(target: SocketAddr, rate: u32) -> Result<Self, Failure> {
        let unique = f64::from(rate) * UNIQUE_PERCENT / 100.0;
        let parts = [
            (Names::Zipf { names: NAMES, exponent: EXPONENT }, f64::from(rate) - unique),
            (Names::Unique, unique),
        ];
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (number, (names, rate)) in parts.into_iter().enumerate() {
            let load = DnsLoad {
                names,
                rate: Some(rate),
                clients: 8,
                in_flight: 1024,
                duration: None,
                verify: Verify::Derived,
                ..DnsLoad::new(target)
            };
            let shared = Arc::clone(&shared);
            let work = move || {
                dns::run(&load, |progress| {
                    shared.lost[number].store(progress.lost, Relaxed);
                    if shared.stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
            };
            let thread = thread::Builder::new()
                .name(format!("demo-{number}"))
                .spawn(work)
                .map_err(|error| Failure::failed(format!("cannot start the load: {error}")))?;
            threads.push(thread);
        }
        Ok(Self { threads, shared })
    }

    /// Whether all of it still runs.
    pub(super) fn runs(&self) -> bool {
        !self.threads.iter().any(JoinHandle::is_finished)
    }

    pub(super) fn progress(&self) -> Progress {
        Progress { lost: self.shared.lost.iter().map(|lost| lost.load(Relaxed)).sum() }
    }

    /// Stops sending, waits for what is on its way, and reports.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the load ends by itself, and nobody hears its report.
    pub(super) async fn finish(&mut self) -> Result<Vec<DnsReport>, Failure> {
        self.shared.stop.store(true, Relaxed);
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            tokio::time::sleep(LOOKED_EVERY).await;
        }
        let joined = self.threads.drain(..).map(|thread| match thread.join() {
            Ok(report) => report.map_err(|error| Failure::failed(format!("the load has failed: {error}"))),
            Err(_) => Err(Failure::failed("the load has panicked, which is a bug")),
        });
        joined.collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

//! A DNS forwarder that is measured: started on its core, loaded, asked for its figures.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use forebay::sys::now;
use forebay_bench::dns::{self, DnsLoad, DnsReport, Latency};
use forebay_bench::responder::{Responder, Script};
use forebay_core::Blame;
use forebay_dns::{DnsConfig, Handle, Server, Settings, Stats};
use tokio::runtime::{Builder, Runtime};

use super::model::Series;
use super::stage::{Stage, Stop, cpu_of, on_core, threads_named, threads_since};
use crate::profile::{Order, Profile};

/// What the thread of a forwarder with one worker is called; it has others for certificates and files.
const WORKER: &str = "dns-0";

/// Names of functions in which a socket is made, set up, watched or closed, as far as the system's library has them.
const SOCKET_CALLS: [&str; 12] = [
    "socket",
    "connect",
    "bind",
    "close",
    "setsockopt",
    "getsockopt",
    "epoll_ctl",
    "shutdown",
    "getsockname",
    "fcntl",
    "ioctl",
    "accept4",
];

/// Over how many seconds, at least, a rate is told.
const RATE_OVER: f64 = 0.1;

/// Starts an upstream that does what `script` says.
pub(super) fn upstream(stage: &Stage, script: Script, listen: Option<SocketAddr>) -> Result<Responder, Stop> {
    let mut builder = Responder::builder().script(script);
    if let Some(address) = listen {
        builder = builder.listen(address);
    }
    on_core(stage.cores.upstream, || builder.spawn())?
        .map_err(|error| Stop::failed("cannot start an embedded upstream", error))
}

/// A forwarder. Ends when dropped.
pub(super) struct Forwarder {
    pub(super) address: SocketAddr,
    handle: Handle,
    runtime: Runtime,
    threads: Vec<i32>,
    _server: Server,
}

impl Forwarder {
    /// Starts one on the server's core.
    pub(super) fn start(stage: &Stage, settings: &Settings) -> Result<Self, Stop> {
        Self::start_on(stage.cores.server, settings)
    }

    /// Starts one that is an upstream itself.
    pub(super) fn start_beside(stage: &Stage, settings: &Settings) -> Result<Self, Stop> {
        Self::start_on(stage.cores.upstream, settings)
    }

    fn start_on(core: Option<usize>, settings: &Settings) -> Result<Self, Stop> {
        let config = DnsConfig::new(settings, &[], 1).map_err(|error| Stop::failed("[dns]", error))?;
        let before = threads_named(WORKER);
        let server = on_core(core, || forebay_dns::start(config))?
            .map_err(|error| Stop::failed("cannot start a forwarder", error))?;
        let threads = threads_since(&before, WORKER, 1)?;
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Stop::failed("cannot start a runtime", error))?;
        let address = server.local_addrs()[0].address;
        Ok(Self { address, handle: server.handle(), runtime, threads, _server: server })
    }

    /// Its figures.
    pub(super) fn stats(&self) -> Stats {
        self.runtime.block_on(self.handle.stats())
    }

    /// CPU time of its workers.
    fn cpu(&self) -> Duration {
        cpu_of(&self.threads)
    }

    /// Puts a load on it, and says what came of it.
    pub(super) fn measure(&self, stage: &Stage, load: &DnsLoad) -> Result<Run, Stop> {
        let (before, cpu) = (self.stats(), self.cpu());
        let (mut over_time, mut connections) = (Vec::new(), Vec::new());
        let mut last = (0.0, 0);
        let report = dns::run(load, |progress| {
            let at = progress.elapsed.as_secs_f64();
            // What comes in a moment at the end is no rate.
            if at - last.0 >= RATE_OVER {
                over_time.push((at, (progress.answered - last.1) as f64 / (at - last.0)));
                last = (at, progress.answered);
            }
            connections.push((at, connections_of(&self.stats())));
            stage.flow()
        })
        .map_err(|error| Stop::failed("the load", error))?;
        let cpu = self.cpu().saturating_sub(cpu).as_secs_f64();
        if stage.flow().is_break() {
            return Err(Stop::Interrupted);
        }
        Ok(Run::new(&report, &before, &self.stats(), cpu, over_time, connections))
    }

    /// Puts a load on it and says what share of its CPU time it spends in making and closing sockets, by samples of its
    /// stacks; `None` where this system does not let a process look at itself.
    pub(super) fn socket_share(&self, load: &DnsLoad, span: Duration) -> Option<f64> {
        let load = DnsLoad { duration: Some(span), ..load.clone() };
        thread::scope(|scope| {
            let running = scope.spawn(|| dns::run(&load, |_| std::ops::ControlFlow::Continue(())));
            let profile = Profile::take(Order { duration: span, hz: 999 }, || true);
            let _ = running.join();
            profile.ok()?.share(WORKER, is_socket_work)
        })
    }
}

/// Whether a stack is in the making or the closing of a socket.
fn is_socket_work(names: &[String]) -> bool {
    let called = |name: &String| {
        let bare = name.trim_start_matches("__GI_").trim_start_matches("__libc_").trim_start_matches('_');
        let bare = bare.split(['@', '+']).next().unwrap_or_default();
        SOCKET_CALLS.contains(&bare)
    };
    names.first().is_some_and(called)
        || names.iter().any(|name| name.contains("udp_connected") || name.contains("OwnedFd as"))
}

/// Connections in any state, to all upstreams.
pub(super) fn connections_of(stats: &Stats) -> f64 {
    stats.pools.iter().map(|pool| f64::from(pool.snapshot.connections())).sum()
}

/// Failures whose blame is the upstream's, as its pools have counted them.
pub(super) fn blamed_on_upstreams(stats: &Stats) -> u64 {
    let counters = stats.pool_counters();
    let dials: u64 = forebay_core::Cause::ALL
        .iter()
        .filter(|cause| cause.blame() == Blame::Upstream)
        .map(|cause| counters.dial_failures(*cause))
        .sum();
    dials + counters.failures
}

/// What a load came to.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    pub(super) qps: f64,
    pub(super) answered: u64,
    pub(super) mean_us: f64,
    pub(super) p99_us: f64,
    pub(super) latency: Option<Latency>,
    /// CPU time of the server's workers for each answer, in microseconds.
    pub(super) cpu_us: f64,
    /// Share of its core that the server used.
    pub(super) busy: f64,
    /// Sockets to upstreams that were made in a second.
    pub(super) made_per_second: f64,
    /// Share of queries that the cache had.
    pub(super) hits: f64,
    /// Queries without an answer, or with a wrong one, or with an error.
    pub(super) bad: u64,
    /// Why the generator was the limit, if it was.
    pub(super) generator_limit: Option<String>,
    /// Answers a second at each time.
    pub(super) over_time: Vec<(f64, f64)>,
    /// Connections to upstreams at each time.
    pub(super) connections: Vec<(f64, f64)>,
}

impl Run {
    fn new(
        report: &DnsReport,
        before: &Stats,
        after: &Stats,
        cpu: f64,
        over_time: Vec<(f64, f64)>,
        connections: Vec<(f64, f64)>,
    ) -> Self {
        let elapsed = report.elapsed_seconds.max(1e-9);
        let made = after.connections_made().saturating_sub(before.connections_made()) as f64;
        let hits = after.cache.hits.saturating_sub(before.cache.hits) as f64;
        let misses = after.cache.misses.saturating_sub(before.cache.misses) as f64;
        let good = report.rcodes.get("NOERROR").copied().unwrap_or_default();
        Self {
            qps: report.qps,
            answered: report.answered,
            mean_us: report.latency.map_or(f64::NAN, |latency| latency.mean_us),
            p99_us: report.latency.map_or(f64::NAN, |latency| latency.p99_us),
            latency: report.latency,
            cpu_us: if report.answered > 0 { cpu * 1e6 / report.answered as f64 } else { f64::NAN },
            busy: cpu / elapsed,
            made_per_second: made / elapsed,
            hits: if hits + misses > 0.0 { hits / (hits + misses) } else { 0.0 },
            bad: report.sent.saturating_sub(good) + report.wrong,
            generator_limit: report.generator_limit.clone(),
            over_time,
            connections,
        }
    }
}

/// A curve of latencies: what share of requests took at most how long.
pub(super) fn latency_curve(name: impl Into<String>, latency: &Latency) -> Series {
    let Latency { min_us, p50_us, p90_us, p99_us, p999_us, max_us, .. } = *latency;
    let points =
        vec![(0.0, min_us), (0.5, p50_us), (0.9, p90_us), (0.99, p99_us), (0.999, p999_us), (0.9999, max_us)];
    Series { name: name.into(), points }
}

/// Waits until it is so, for a second at most.
pub(super) fn soon(is_so: impl Fn() -> bool) {
    let patience = now() + Duration::from_secs(1);
    while !is_so() && now() < patience {
        thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_socket_work_if_its_innermost_call_is_or_a_socket_is_made_above_it() {
        let stack = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for names in [
            &["__close", "core::ptr::drop_in_place"][..],
            &["connect@@GLIBC_2.2.5", "x"],
            &["__GI___socket", "x"],
            &["memset", "forebay::sys::socket::udp_connected", "x"],
            &["syscall", "<std::os::fd::owned::OwnedFd as core::ops::drop::Drop>::drop"],
        ] {
            assert!(is_socket_work(&stack(names)), "{names:?}");
        }
        for names in [&["sendmmsg", "x"][..], &["recvmmsg", "close"], &["epoll_wait"], &[]] {
            assert!(!is_socket_work(&stack(names)), "{names:?}");
        }
    }

    #[test]
    fn a_curve_of_latencies_rises() {
        let latency = Latency {
            min_us: 1.0,
            mean_us: 2.0,
            p50_us: 2.0,
            p90_us: 3.0,
            p99_us: 4.0,
            p999_us: 5.0,
            max_us: 6.0,
        };
        let curve = latency_curve("x", &latency).points;
        assert!(curve.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "{curve:?}");
    }
}

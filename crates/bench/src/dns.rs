//! DNS load: so many queries in flight, or so many a second, and what came back.
//!
//! **Closed loop** (the default) keeps `in_flight` queries on their way, and measures capacity. **Open loop** sends at
//! a `rate` whatever the server does, and measures latency from when a query *should* have left, so that a server
//! that stalls cannot hide it (no coordinated omission).
//!
//! Each answer is compared with its query: id, question, and, if wanted, the address in it. The report says so when
//! the generator itself was the limit.
//!
//! ```no_run
//! use forebay_bench::dns::{DnsLoad, Names, run};
//! use std::ops::ControlFlow;
//!
//! let load = DnsLoad { names: Names::Hot { names: 1000 }, ..DnsLoad::new("127.0.0.1:5300".parse()?) };
//! println!("{}", run(&load, |_| ControlFlow::Continue(()))?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod names;
mod report;
mod schedule;
mod slots;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use forebay::sys::{clock, now, process};
use serde::{Deserialize, Serialize};

use crate::message::QueryType;
pub use names::{Names, write_zone};
pub use report::{DnsReport, Latency, ServerCpu};
pub(crate) use report::{percent, spelled};

use names::NameTable;
use report::Outcome;
use worker::Worker;

/// How often [`run`] tells how it goes.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Queries in flight on one socket: half of all ids, so that an answer that comes late is not taken for a later one's.
const IN_FLIGHT_PER_CLIENT_MAX: usize = 32768;

/// A load to put on a DNS server.
#[derive(Clone, Debug)]
pub struct DnsLoad {
    /// Where the server listens.
    pub target: SocketAddr,
    /// How queries travel. Default: UDP.
    pub transport: Transport,
    /// How many sockets (connections) queries are spread over. Default: 16.
    pub clients: usize,
    /// How many queries are on their way at once, over all clients; with `rate`, at most. Default: 64.
    pub in_flight: usize,
    /// Queries a second to send (open loop). `None`: as fast as answers come (closed loop). Default: `None`.
    pub rate: Option<f64>,
    /// How queries of an open loop are spread in time. Default: evenly.
    pub arrivals: Arrivals,
    /// When to stop sending. Default: 10 s. `None`: with `queries`, or when told so.
    pub duration: Option<Duration>,
    /// How many queries to send at most. Default: `None`, any number.
    pub queries: Option<u64>,
    /// When a query without answer is lost. Default: 2 s.
    pub timeout: Duration,
    /// What to ask about. Default: 1000 hot names.
    pub names: Names,
    /// What all names but those from a file are under. Default: `bench.test`.
    pub zone: String,
    /// What to ask for; a file says so itself. Default: A.
    pub qtype: QueryType,
    /// Answer size to announce by EDNS, in bytes. `None`: no EDNS. Default: 1232.
    pub edns_size: Option<u16>,
    /// Asks for DNSSEC records (DO); needs EDNS. Default: false.
    pub dnssec_ok: bool,
    /// How addresses in answers are checked. Default: not at all.
    pub verify: Verify,
    /// Threads to send from; clients are spread over them. Default: 1.
    pub threads: usize,
    /// Core that the first thread runs on; further threads take the following ones. Default: `None`, any.
    pub pin: Option<usize>,
    /// Process whose CPU time per query to report. Default: `None`.
    pub server_pid: Option<i32>,
    /// Seed of unique names and of Zipf's choice. `None`: from the clock, so that no run repeats another's unique
    /// names. Default: `None`.
    pub seed: Option<u64>,
}

impl DnsLoad {
    /// Describes the default load on `target`.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            transport: Transport::Udp,
            clients: 16,
            in_flight: 64,
            rate: None,
            arrivals: Arrivals::Even,
            duration: Some(Duration::from_secs(10)),
            queries: None,
            timeout: Duration::from_secs(2),
            names: Names::Hot { names: 1000 },
            zone: "bench.test".to_owned(),
            qtype: QueryType::A,
            edns_size: Some(1232),
            dnssec_ok: false,
            verify: Verify::Off,
            threads: 1,
            pin: None,
            server_pid: None,
            seed: None,
        }
    }
}

/// How the queries of an open loop are spread in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// At equal distances: a line forms only when the server stumbles.
    #[default]
    Even,
    /// At random ones (a Poisson process), as many who know nothing of each other ask: lines form long before a server is full.
    Poisson,
}

/// How queries travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Datagrams from connected sockets.
    Udp,
    /// Kept connections with many queries at once (RFC 7766 §6.2.1.1).
    Tcp,
}

/// How the address in an answer is checked. Only answers to A questions with NOERROR and not truncated are.
#[derive(Clone, Copy, Debug)]
pub enum Verify {
    /// Not at all.
    Off,
    /// It must be the one that [`responder::expected_a`](crate::responder::expected_a) gives.
    Derived,
    /// This says whether the address (`None`: there is none) is right for the name, given in wire format.
    With(fn(name: &[u8], address: Option<std::net::Ipv4Addr>) -> bool),
}

/// How a load goes, told four times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Time since the first query.
    pub elapsed: Duration,
    /// Queries sent so far.
    pub sent: u64,
    /// Queries answered so far.
    pub answered: u64,
    /// Queries lost so far.
    pub lost: u64,
}

/// Why a load could not be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// A setting makes no sense.
    #[error("{setting} is {value}: {remedy}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What it is.
        value: String,
        /// What it should be.
        remedy: String,
    },
    /// A query file cannot be used.
    #[error("{}:{line}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Where; 0 is the file as a whole.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// This machine or the target did not play along.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What came of it.
        source: io::Error,
    },
}

impl BenchError {
    pub(crate) fn setting(setting: &'static str, value: impl ToString, remedy: impl Into<String>) -> Self {
        Self::Setting { setting, value: value.to_string(), remedy: remedy.into() }
    }

    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io { what: what.into(), source }
    }
}

/// Puts `load` on its target until it is over, and reports.
///
/// `progress` hears how it goes; when it breaks, sending stops, answers on their way are awaited, and the report is of
/// what there was. With neither a duration nor a number of queries that is the only end.
///
/// # Errors
///
/// When a setting makes no sense, the query file cannot be read, sockets cannot be made, the target refuses TCP
/// connections at the start, or there is no process `server_pid`. What happens to queries later is in the report.
pub fn run(
    load: &DnsLoad,
    mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
) -> Result<DnsReport, BenchError> {
    check(load)?;
    let seed = load.seed.unwrap_or_else(|| now().as_nanos() ^ u64::from(std::process::id()) << 32);
    let names = NameTable::new(load, seed)?;
    make_room_for_sockets(load)?;
    let shared = Shared::default();
    let workers = (0..load.threads)
        .map(|number| Worker::new(load, &names, &shared, seed, number))
        .collect::<Result<Vec<_>, _>>()?;
    let server_before = server_cpu(load.server_pid)?;
    let started = now();
    let outcomes = thread::scope(|scope| {
        let (done, news) = mpsc::channel();
        for (number, mut worker) in workers.into_iter().enumerate() {
            let done = done.clone();
            let work = move || {
                let pinned = load.pin.map_or(Ok(()), |core| process::pin_current_thread(core + number));
                // Nobody listens only when `run` panics.
                let _ = done.send(pinned.and_then(|()| worker.run(started)).map(|()| worker.outcome()));
            };
            thread::Builder::new()
                .name(format!("load-{number}"))
                .spawn_scoped(scope, work)
                .map_err(|error| shared.stopped(BenchError::io("cannot start a thread", error)))?;
        }
        drop(done);
        let mut outcomes = Vec::new();
        loop {
            match news.recv_timeout(PROGRESS_EVERY) {
                Ok(Ok(outcome)) => outcomes.push(outcome),
                Ok(Err(error)) => return Err(shared.stopped(BenchError::io("the load broke off", error))),
                Err(RecvTimeoutError::Disconnected) => return Ok(outcomes),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if progress(&shared.progress(started)).is_break() {
                shared.stop.store(true, Relaxed);
            }
        }
    })?;
    let server = ServerTime::since(server_before, load.server_pid);
    Ok(DnsReport::new(load, started, Outcome::merged(outcomes), server))
}

fn check(load: &DnsLoad) -> Result<(), BenchError> {
    let wrong = |setting, value: &dyn ToString, remedy: &str| {
        Err(BenchError::setting(setting, value.to_string(), remedy))
    };
    if load.clients == 0 {
        return wrong("clients", &0, "at least one socket is needed to send from");
    }
    if load.in_flight < load.clients {
        let remedy =
            format!("give each of the {} clients at least one query, or take fewer clients", load.clients);
        return wrong("in-flight", &load.in_flight, &remedy);
    }
    if load.in_flight.div_ceil(load.clients) > IN_FLIGHT_PER_CLIENT_MAX {
        let remedy = format!(
            "one socket carries at most {IN_FLIGHT_PER_CLIENT_MAX} queries at once: take {} clients",
            load.in_flight.div_ceil(IN_FLIGHT_PER_CLIENT_MAX)
        );
        return wrong("in-flight", &load.in_flight, &remedy);
    }
    if load.threads == 0 || load.threads > load.clients {
        let remedy = format!("1 to {} (one client each) are possible", load.clients);
        return wrong("threads", &load.threads, &remedy);
    }
    if let Some(rate) = load.rate
        && !(rate.is_finite() && rate > 0.0)
    {
        return wrong("rate", &rate, "say how many queries a second, more than none");
    }
    if load.timeout.is_zero() {
        return wrong("timeout", &"0 s", "a query needs time to be answered: 2 s is usual");
    }
    if load.duration.is_some_and(|duration| duration.is_zero()) {
        return wrong(
            "duration",
            &"0 s",
            "say for how long to send, or leave it out and say how many queries",
        );
    }
    if load.queries == Some(0) {
        return wrong("queries", &0, "say how many to send, or leave it out and say for how long");
    }
    if let Some(size) = load.edns_size
        && size < 512
    {
        return wrong("edns-size", &size, "RFC 6891 allows no less than 512 bytes");
    }
    if load.dnssec_ok && load.edns_size.is_none() {
        return wrong("dnssec-ok", &true, "the DO bit is part of EDNS: set edns-size too");
    }
    if load.target.port() == 0 {
        return wrong("target", &load.target, "port 0 cannot be asked: DNS is usually on 53");
    }
    Ok(())
}

/// Raises the limit of descriptors if the clients need that, and says so early if it is not enough.
fn make_room_for_sockets(load: &DnsLoad) -> Result<(), BenchError> {
    let trouble = |error| BenchError::io("cannot count descriptors", error);
    let needed =
        process::descriptors_in_use().map_err(trouble)? + load.clients as u64 + load.threads as u64 + 8;
    let limit = process::descriptor_limit().map_err(trouble)?;
    if needed <= limit.soft {
        return Ok(());
    }
    if needed > limit.hard {
        let remedy = format!(
            "this process may open {} descriptors (RLIMIT_NOFILE): raise that, or take fewer",
            limit.hard
        );
        return Err(BenchError::setting("clients", load.clients, remedy));
    }
    process::raise_descriptor_limit()
        .map(drop)
        .map_err(|error| BenchError::io("cannot raise RLIMIT_NOFILE", error))
}

/// Reads the CPU time of a process, if one is named.
pub(crate) fn server_cpu(pid: Option<i32>) -> Result<Option<Duration>, BenchError> {
    let read = |pid| {
        clock::cpu_time_of(pid)
            .map_err(|error| BenchError::io(format!("cannot read the CPU time of process {pid}"), error))
    };
    pid.map(read).transpose()
}

/// What the server's process used while there was load.
#[derive(Debug, Default)]
pub(crate) struct ServerTime {
    /// CPU time, if the process was named and is still there.
    pub(crate) used: Option<Duration>,
    /// Why that is not known, though it was wanted.
    pub(crate) gone: Option<String>,
}

impl ServerTime {
    /// Looks at a process once more. One that has ended meanwhile is no reason to give up what was measured.
    pub(crate) fn since(before: Option<Duration>, pid: Option<i32>) -> Self {
        match (before, server_cpu(pid)) {
            (Some(before), Ok(Some(after))) => Self { used: Some(after.saturating_sub(before)), gone: None },
            (_, Err(error)) => {
                Self { used: None, gone: Some(format!("the server's process ended: {error}")) }
            }
            _ => Self::default(),
        }
    }
}

/// What workers tell while they run.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
    lost: AtomicU64,
}

impl Shared {
    /// Stops all workers because of `error`.
    fn stopped(&self, error: BenchError) -> BenchError {
        self.stop.store(true, Relaxed);
        error
    }

    fn progress(&self, started: forebay_core::Instant) -> Progress {
        Progress {
            elapsed: now().saturating_duration_since(started),
            sent: self.sent.load(Relaxed),
            answered: self.answered.load(Relaxed),
            lost: self.lost.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests;

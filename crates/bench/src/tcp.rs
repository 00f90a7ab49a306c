//! TCP load on a server that sends back what it gets: what a connection costs, and what it saves to keep one.
//!
//! | pattern | each request |
//! |---|---|
//! | [`Pattern::Connect`] | takes a connection: opens and closes one, or borrows one of a [`forebay::Pool`] |
//! | [`Pattern::Kept`] | goes over the one connection that its client keeps |
//! | [`Pattern::Bulk`] | none: each client sends as much as it can, and reads as much as comes |
//!
//! Every answer is compared with its request. [`claims()`] measures the same work with and without a pool, side by side.
//!
//! ```no_run
//! use forebay_bench::tcp::{Pattern, TcpLoad, run};
//!
//! let load = TcpLoad { pattern: Pattern::Connect, pool: Some(10), ..TcpLoad::new("127.0.0.1:7".parse()?) };
//! println!("{}", run(&load)?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod claims;
mod client;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

pub use self::claims::{Claim, ClaimsReport, Counts, Side, claims};
use self::client::{Bulk, Kept, One, Pooled, pool};
use crate::load::{BenchError, Figures, Pace, Tally, drive, make_room, on_threads};

/// The longest request, in bytes: requests and answers are held in memory.
const SIZE_MAX: usize = 1 << 26;

/// A load to put on a TCP server that echoes.
#[derive(Clone, Debug)]
pub struct TcpLoad {
    /// Where the server listens.
    pub target: SocketAddr,
    /// How requests get their connections. Default: [`Pattern::Kept`].
    pub pattern: Pattern,
    /// With [`Pattern::Connect`]: how many connections the pool has that requests borrow from. `None`: no pool, each
    /// request opens and closes its own. Default: `None`.
    pub pool: Option<u32>,
    /// How many make requests, each one at a time. Default: 1.
    pub clients: usize,
    /// Bytes in a request and in its answer. Default: 64.
    pub size: usize,
    /// Requests a second to begin (open loop). `None`: as fast as answers come. Default: `None`.
    pub rate: Option<f64>,
    /// When to stop. `None`: after `requests`. Default: 5 s.
    pub duration: Option<Duration>,
    /// How many requests to make at most. Default: `None`, any number.
    pub requests: Option<u64>,
    /// When a request without a whole answer has failed, its wait for a connection included. Default: 5 s.
    pub timeout: Duration,
    /// Threads that clients are spread over, each with a pool of its own share. Default: 1.
    pub threads: usize,
    /// Core of the first thread. Default: `None`, any.
    pub pin: Option<usize>,
    /// Process whose CPU time to report. Default: `None`.
    pub server_pid: Option<i32>,
}

impl TcpLoad {
    /// Describes the default load on `target`.
    pub fn new(target: SocketAddr) -> Self {
        Self {
            target,
            pattern: Pattern::Kept,
            pool: None,
            clients: 1,
            size: 64,
            rate: None,
            duration: Some(Duration::from_secs(5)),
            requests: None,
            timeout: Duration::from_secs(5),
            threads: 1,
            pin: None,
            server_pid: None,
        }
    }

    fn pace(&self) -> Pace {
        Pace {
            rate: self.rate,
            duration: self.duration,
            requests: self.requests,
            threads: self.threads,
            pin: self.pin,
            server_pid: self.server_pid,
        }
    }

    /// How many of the clients are on thread `number`.
    fn clients_of(&self, number: usize) -> usize {
        self.pace().share(self.clients as u64, number) as usize
    }

    fn check(&self) -> Result<(), BenchError> {
        self.pace().check(self.clients)?;
        let wrong = |setting, value: &dyn ToString, remedy: &str| {
            Err(BenchError::setting(setting, value.to_string(), remedy))
        };
        if self.size == 0 || self.size > SIZE_MAX {
            let remedy = format!("1 to {SIZE_MAX} bytes are possible");
            return wrong("size", &self.size, &remedy);
        }
        if self.timeout.is_zero() {
            return wrong("timeout", &"0 s", "a request needs time to be answered: 5 s is usual");
        }
        if self.pool.is_some() && self.pattern != Pattern::Connect {
            return wrong("pool", &"on", "only requests of the pattern `connect` borrow connections");
        }
        if self.pool == Some(0) {
            return wrong("pool", &0, "a pool has at least one connection; `off` is without one");
        }
        if self.pool.is_some_and(|pool| (pool as usize) < self.threads) {
            return wrong("pool", &self.pool.unwrap_or_default(), "each thread needs one of its connections");
        }
        if self.pattern == Pattern::Bulk && (self.rate.is_some() || self.requests.is_some()) {
            return wrong(
                "pattern",
                &"bulk",
                "it makes no requests: leave out how many, and say for how long",
            );
        }
        if self.target.port() == 0 {
            return wrong("ADDR", &self.target, "nobody listens on port 0");
        }
        Ok(())
    }
}

/// How requests get their connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pattern {
    /// One for each request: opened and closed, or borrowed.
    Connect,
    /// One for each client.
    Kept,
    /// One for each client, which carries as much as it can both ways.
    Bulk,
}

/// What a TCP load came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TcpReport {
    /// Where the server listens.
    pub target: SocketAddr,
    /// How requests got their connections.
    pub pattern: Pattern,
    /// How many connections the pool had; `None` without a pool.
    pub pool: Option<u32>,
    /// How many made requests.
    pub clients: usize,
    /// Bytes in a request and in its answer.
    pub size: usize,
    /// Requests a second that were wanted (open loop).
    pub target_rate: Option<f64>,
    /// What came of it.
    #[serde(flatten)]
    pub figures: Figures,
}

impl fmt::Display for TcpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, clients, size, .. } = self;
        write!(f, "load        tcp://{target}, {clients} clients, ")?;
        match (self.pattern, self.pool) {
            (Pattern::Bulk, _) => write!(f, "as much as goes both ways")?,
            (Pattern::Kept, _) => write!(f, "{size} bytes both ways on kept connections")?,
            (Pattern::Connect, None) => write!(f, "{size} bytes both ways, a connection per request")?,
            (Pattern::Connect, Some(pool)) => {
                write!(f, "{size} bytes both ways on connections of a pool of {pool}")?;
            }
        }
        match self.target_rate {
            Some(rate) => writeln!(f, ", open loop at {rate}/s")?,
            None => writeln!(f)?,
        }
        self.figures.fmt(f)
    }
}

/// Puts `load` on its target until it is over, and reports. Must not be called from within a runtime.
///
/// # Errors
///
/// When a setting makes no sense, or this machine gives no thread, descriptor or core. What happens to requests is in
/// the report.
pub fn run(load: &TcpLoad) -> Result<TcpReport, BenchError> {
    load.check()?;
    make_room(load.clients)?;
    let pace = load.pace();
    let (mut figures, _) = on_threads(&pace, |number| work(load, pace, number))?;
    if load.pattern == Pattern::Bulk {
        // A transfer is as long as it was told to be, and needs no second connection.
        (figures.latency, figures.reuse_rate) = (None, None);
    }
    Ok(TcpReport {
        target: load.target,
        pattern: load.pattern,
        pool: load.pool,
        clients: load.clients,
        size: load.size,
        target_rate: load.rate,
        figures,
    })
}

async fn work(load: &TcpLoad, pace: Pace, number: usize) -> Result<Tally, BenchError> {
    let clients = load.clients_of(number);
    Ok(match (load.pattern, load.pool) {
        (Pattern::Connect, None) => {
            drive(&pace, number, (0..clients).map(|_| One::new(load)).collect()).await
        }
        (Pattern::Connect, Some(connections)) => {
            let share = pace.share(connections.into(), number) as u32;
            let pool = pool(load, share, clients)?;
            let clients = (0..clients).map(|_| Pooled::new(load, pool.clone())).collect();
            let mut tally = drive(&pace, number, clients).await;
            tally.opened = pool.snapshot().counters().dials_succeeded;
            tally
        }
        (Pattern::Kept, _) => drive(&pace, number, (0..clients).map(|_| Kept::new(load)).collect()).await,
        (Pattern::Bulk, _) => drive(&pace, number, (0..clients).map(|_| Bulk::new(load)).collect()).await,
    })
}

#[cfg(test)]
mod tests;

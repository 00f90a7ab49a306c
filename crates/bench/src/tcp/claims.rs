//! Three claims about pooling, each measured with and without a pool in interleaved rounds.

use std::fmt;
use std::time::Duration;

use forebay::sys::now;
use serde::Serialize;

use super::client::{connect, pool};
use super::{BenchError, Pattern, TcpLoad, run};
use crate::load::{Figures, Latency, Tally, on_threads};

/// Rounds of each claim, of which medians are taken.
pub(crate) const ROUNDS: usize = 3;

/// What the three claims came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClaimsReport {
    /// Where the server listens.
    pub target: std::net::SocketAddr,
    /// Connections in the pool.
    pub pool: u32,
    /// Bytes in a request and in its answer.
    pub size: usize,
    /// Rounds of which medians were taken.
    pub rounds: usize,
    /// One table row for each.
    pub claims: Vec<Claim>,
}

/// One claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Claim {
    /// What was done.
    pub what: String,
    /// Each time with a connection of its own.
    pub pool_off: Side,
    /// Each time with one of the pool's.
    pub pool_on: Side,
    /// What the ratio compares.
    pub counts: Counts,
    /// How many times as fast the pool was: without it / with it in time, or with it / without it in rate.
    pub ratio: f64,
}

/// What shows whether the pool was faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Counts {
    /// How often a second it was done.
    Rate,
    /// How long it took on average, where the rate was given.
    Time,
}

/// One claim, with or without a pool: the round with the median rate, or time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Side {
    /// How often it was done.
    pub done: u64,
    /// How often it failed.
    pub failed: u64,
    /// How often a second.
    pub rate: f64,
    /// How long it took.
    pub latency: Option<Latency>,
    /// Connections that were made.
    pub connections_opened: u64,
    /// Share (0 to 1) that found a connection ready.
    pub reuse_rate: Option<f64>,
    /// CPU time of the generator, which dials, for each, in microseconds.
    pub cpu_us: Option<f64>,
}

/// Measures, each side of each claim for a third of `load.duration` in each of three rounds:
///
/// 1. *checkout*: a connection is taken and given back, without a byte: `connect(2)` and `close(2)` against a pool's hit;
/// 2. *one client*: a request of `load.size` bytes and its answer, one at a time, the connection taken for each;
/// 3. *sustained*: the same by `load.clients` at once, who share the pool's connections.
///
/// `load.pool` is the pool's size; `load.pattern`, `rate` and `requests` say nothing here.
///
/// # Errors
///
/// Those of [`run`], and when a warm pool cannot be made because the server takes no connection.
pub fn claims(load: &TcpLoad) -> Result<ClaimsReport, BenchError> {
    let size = load.pool.unwrap_or(10);
    let each = load.duration.unwrap_or(Duration::from_secs(5)) / ROUNDS as u32;
    let base = TcpLoad {
        pattern: Pattern::Connect,
        duration: Some(each),
        rate: None,
        requests: None,
        threads: 1,
        ..load.clone()
    };
    let with = |clients: usize, pool: Option<u32>| TcpLoad { clients, pool, ..base.clone() };
    let mut claims = vec![
        Samples::new("checkout: take a connection and give it back", Counts::Rate),
        Samples::new("one client: take it, one request, give it back", Counts::Rate),
        Samples::new(format!("sustained: {} clients do that at once", load.clients), Counts::Rate),
    ];
    for _ in 0..ROUNDS {
        for (index, samples) in claims.iter_mut().enumerate() {
            for pool in [None, Some(size)] {
                let side = match index {
                    0 => checkout(&with(1, pool))?,
                    1 => exchange(&with(1, pool))?,
                    _ => exchange(&with(load.clients, pool))?,
                };
                if pool.is_some() { samples.on.push(side) } else { samples.off.push(side) }
            }
        }
    }
    let claims = claims.into_iter().map(Samples::claim).collect();
    Ok(ClaimsReport { target: load.target, pool: size, size: load.size, rounds: ROUNDS, claims })
}

fn exchange(load: &TcpLoad) -> Result<Side, BenchError> {
    Ok(Side::of(run(load)?.figures))
}

/// Takes connections and gives them back for the load's duration, from a pool that has one already.
fn checkout(load: &TcpLoad) -> Result<Side, BenchError> {
    load.check()?;
    let span = load.duration.unwrap_or_default();
    let (figures, _) = on_threads(&load.pace(), async |_| {
        let mut tally = Tally::new();
        let until = now() + span;
        let Some(connections) = load.pool else {
            while now() < until {
                let began = now();
                match connect(load.target).await {
                    Ok(stream) => {
                        drop(stream);
                        tally.opened += 1;
                        tally.answer(began);
                    }
                    Err(trouble) => tally.trouble(began, trouble, 1),
                }
            }
            return Ok(tally);
        };
        let pool = pool(load, connections, 1)?;
        let warm = pool.acquire().await;
        let refused = |error| BenchError::io("the server takes no connection", std::io::Error::other(error));
        warm.map_err(refused)?.unused();
        while now() < until {
            // Reading the clock costs as much as a hit: one reading for a hundred.
            let began = now();
            for _ in 0..100 {
                match pool.acquire().await {
                    Ok(lease) => lease.complete(),
                    Err(error) => tally.trouble(began, error.into(), 1),
                }
            }
            let each = now().saturating_duration_since(began) / 100;
            tally.answers(each, 100);
        }
        tally.opened = pool.snapshot().counters().dials_succeeded;
        Ok(tally)
    })?;
    Ok(Side::of(figures))
}

impl Side {
    pub(crate) fn of(figures: Figures) -> Self {
        Self {
            done: figures.answered,
            failed: figures.failed,
            rate: figures.rate,
            latency: figures.latency,
            connections_opened: figures.connections_opened,
            reuse_rate: figures.reuse_rate,
            cpu_us: figures.cpu_us_per_request,
        }
    }

    fn mean_us(&self) -> f64 {
        self.latency.map_or(0.0, |latency| latency.mean_us)
    }
}

/// The rounds of one claim.
pub(crate) struct Samples {
    what: String,
    counts: Counts,
    pub(crate) off: Vec<Side>,
    pub(crate) on: Vec<Side>,
}

impl Samples {
    pub(crate) fn new(what: impl Into<String>, counts: Counts) -> Self {
        Self { what: what.into(), counts, off: Vec::new(), on: Vec::new() }
    }

    pub(crate) fn claim(self) -> Claim {
        let counts = self.counts;
        let (pool_off, pool_on) = (median(self.off, counts), median(self.on, counts));
        let (more, less) = match counts {
            Counts::Rate => (pool_on.rate, pool_off.rate),
            Counts::Time => (pool_off.mean_us(), pool_on.mean_us()),
        };
        let ratio = if less > 0.0 { more / less } else { 0.0 };
        Claim { what: self.what, pool_off, pool_on, counts, ratio }
    }
}

fn median(mut sides: Vec<Side>, counts: Counts) -> Side {
    sides.sort_by(|a, b| match counts {
        Counts::Rate => a.rate.total_cmp(&b.rate),
        Counts::Time => a.mean_us().total_cmp(&b.mean_us()),
    });
    let middle = sides.len() / 2;
    sides.into_iter().nth(middle).unwrap_or_default()
}

impl fmt::Display for ClaimsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, pool, size, rounds, .. } = self;
        writeln!(
            f,
            "tcp://{target}, {size} bytes both ways, pool of {pool}; medians of {rounds} interleaved rounds"
        )?;
        self.claims.iter().try_for_each(|claim| claim.fmt(f))
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{}", self.what)?;
        writeln!(
            f,
            "  {:<9}{:>12}{:>12}{:>12}{:>12}{:>10}{:>9}{:>8}",
            "", "per second", "mean", "p99", "CPU each", "opened", "reused", "failed"
        )?;
        for (name, side) in [("pool off", &self.pool_off), ("pool on", &self.pool_on)] {
            let us = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{us:.2} µs"));
            writeln!(
                f,
                "  {name:<9}{:>12.0}{:>12}{:>12}{:>12}{:>10}{:>8.2}%{:>8}",
                side.rate,
                us(side.latency.map(|latency| latency.mean_us)),
                us(side.latency.map(|latency| latency.p99_us)),
                us(side.cpu_us),
                side.connections_opened,
                side.reuse_rate.unwrap_or_default() * 100.0,
                side.failed
            )?;
        }
        let word = match self.counts {
            Counts::Rate => "often",
            Counts::Time => "fast",
        };
        writeln!(f, "  with the pool {:.1} times as {word}", self.ratio)?;
        Ok(())
    }
}

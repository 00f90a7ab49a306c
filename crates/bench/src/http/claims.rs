//! Three claims about pooling, measured by requests of HTTP with and without a pool in interleaved rounds.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::{BenchError, HttpLoad, run};
use crate::tcp::claims::{ROUNDS, Samples};
use crate::tcp::{Claim, Counts, Side};

/// Requests a second of the second claim, unless the load says how many: what a machine does without a pool, too.
const RATE: f64 = 500.0;

/// What the three claims came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpClaimsReport {
    /// What was asked for.
    pub url: String,
    /// `http/1.1` or `h2`.
    pub protocol: &'static str,
    /// Connections in the pool.
    pub pool: u32,
    /// Rounds of which medians were taken.
    pub rounds: usize,
    /// One table row for each.
    pub claims: Vec<Claim>,
}

/// Measures, each side of each claim for a third of `load.duration` in each of three rounds:
///
/// 1. *one client*: a request on a kept connection against a connection for each, one at a time;
/// 2. *realistic*: `load.rate` requests a second (500 without it) by `load.clients`, whatever the answers: how long they take;
/// 3. *sustained*: `load.clients` ask as fast as they are answered.
///
/// `load.pool` is the pool's size (64 without it); `requests` and `pipeline` say nothing here.
///
/// # Errors
///
/// Those of [`run`].
pub fn claims(load: &HttpLoad) -> Result<HttpClaimsReport, BenchError> {
    let size = load.pool.unwrap_or(64);
    let rate = load.rate.unwrap_or(RATE);
    let each = load.duration.unwrap_or(Duration::from_secs(5)) / ROUNDS as u32;
    let base = HttpLoad {
        duration: Some(each),
        rate: None,
        requests: None,
        pipeline: 1,
        threads: 1,
        ..load.clone()
    };
    let clients = load.clients;
    let mut claims = vec![
        Samples::new("one client: a request, then the next", Counts::Rate),
        Samples::new(format!("realistic: {rate} requests a second by {clients} clients"), Counts::Time),
        Samples::new(format!("sustained: {clients} clients at once"), Counts::Rate),
    ];
    for _ in 0..ROUNDS {
        for (index, samples) in claims.iter_mut().enumerate() {
            for pool in [None, Some(size)] {
                let load = match index {
                    0 => HttpLoad { clients: 1, pool: pool.map(|_| 1), ..base.clone() },
                    1 => HttpLoad { rate: Some(rate), pool, ..base.clone() },
                    _ => HttpLoad { pool, ..base.clone() },
                };
                let side = Side::of(run(&load)?.figures);
                if pool.is_some() { samples.on.push(side) } else { samples.off.push(side) }
            }
        }
    }
    let claims = claims.into_iter().map(Samples::claim).collect();
    let protocol = if load.http2 { "h2" } else { "http/1.1" };
    Ok(HttpClaimsReport { url: load.url.to_string(), protocol, pool: size, rounds: ROUNDS, claims })
}

impl fmt::Display for HttpClaimsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, protocol, pool, rounds, .. } = self;
        writeln!(f, "{url} by {protocol}, pool of {pool}; medians of {rounds} interleaved rounds")?;
        self.claims.iter().try_for_each(|claim| claim.fmt(f))
    }
}

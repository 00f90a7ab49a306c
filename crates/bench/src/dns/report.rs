//! What a load came to.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::time::Duration;

use forebay_core::Instant;
use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Arrivals, DnsLoad, ServerTime, Transport};
use crate::message::rcode_word;
use crate::partial::Ending;

/// Share of a core from which the generator counts as busy.
const BUSY: f64 = 0.9;

/// Share of queries that may leave late before an open loop counts as missed.
const LATE_SHARE: f64 = 0.01;

/// What a load came to. Times have their unit in their name.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DnsReport {
    /// What was asked.
    pub target: String,
    /// How.
    pub transport: Transport,
    /// Over how many clients at once.
    pub clients: usize,
    /// With how many queries on their way at once, at most.
    pub in_flight: usize,
    /// How many queries a second were wanted (open loop).
    pub rate: Option<f64>,
    /// How they were to be spread in time (open loop).
    pub arrivals: Arrivals,
    /// From the first query to the last answer, or to the end of sending if that was later.
    pub elapsed_seconds: f64,
    /// Queries sent.
    pub sent: u64,
    /// Answers with the id of a query on its way; `wrong` ones are among them.
    pub answered: u64,
    /// Queries without answer: timed out, or their connection ended.
    pub lost: u64,
    /// Answers with another question, or with another address than expected.
    pub wrong: u64,
    /// Messages that answer nothing: another id, too late, a second time.
    pub unexpected: u64,
    /// Answers marked as truncated.
    pub truncated: u64,
    /// Answers by response code.
    pub rcodes: BTreeMap<String, u64>,
    /// Answers a second.
    pub qps: f64,
    /// From when a query should have left to its answer. `None` without answers.
    pub latency: Option<Latency>,
    /// Sockets made, again after a connection ended.
    pub sockets: u64,
    /// Connections that the server ended.
    pub closed: u64,
    /// Errors of sending and receiving.
    pub errors: u64,
    /// The last of them.
    pub last_error: Option<String>,
    /// CPU time of the generator, in seconds.
    pub cpu_seconds: f64,
    /// The same for each answer, in microseconds.
    pub cpu_us_per_query: Option<f64>,
    /// CPU time of the server's process, if it was named.
    pub server: Option<ServerCpu>,
    /// Open loop: queries that were due and never left.
    pub unsent: u64,
    /// Open loop: queries that left late because `in_flight` were on their way: the server is behind.
    pub held_back: u64,
    /// The figures say more about the generator than about the server.
    pub generator_limited: bool,
    /// Why.
    pub generator_limit: Option<String>,
    /// Why the figures are of a part of the load only: the server fell silent before the end, or its process ended.
    /// `None`: they are of all of it.
    pub partial: Option<String>,
}

/// Latencies in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The shortest.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// Half of all are at most so long.
    pub p50_us: f64,
    /// 90 %.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What the server's process used meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ServerCpu {
    /// CPU time, in seconds.
    pub cpu_seconds: f64,
    /// The same for each answer, in microseconds.
    pub cpu_us_per_query: Option<f64>,
}

impl DnsReport {
    pub(super) fn new(load: &DnsLoad, started: Instant, outcome: Outcome, server: ServerTime) -> Self {
        let elapsed = outcome.ended.saturating_duration_since(started).as_secs_f64();
        let per_query = |cpu: f64| (outcome.answered > 0).then(|| cpu * 1e6 / outcome.answered as f64);
        let limit = outcome.limit(load);
        let partial = outcome.silence(started).or(server.gone);
        let rcodes = outcome.rcodes.iter().enumerate().filter(|(_, count)| **count > 0);
        Self {
            target: load.target.to_string(),
            transport: load.transport,
            clients: load.clients,
            in_flight: load.in_flight,
            rate: load.rate,
            arrivals: load.arrivals,
            elapsed_seconds: elapsed,
            sent: outcome.sent,
            answered: outcome.answered,
            lost: outcome.lost,
            wrong: outcome.wrong,
            unexpected: outcome.unexpected,
            truncated: outcome.truncated,
            rcodes: rcodes.map(|(rcode, count)| (rcode_word(rcode as u8), *count)).collect(),
            qps: if elapsed > 0.0 { outcome.answered as f64 / elapsed } else { 0.0 },
            latency: Latency::of(&outcome.latency),
            sockets: outcome.sockets,
            closed: outcome.closed,
            errors: outcome.errors,
            cpu_seconds: outcome.cpu.as_secs_f64(),
            cpu_us_per_query: per_query(outcome.cpu.as_secs_f64()),
            server: server.used.map(|cpu| ServerCpu {
                cpu_seconds: cpu.as_secs_f64(),
                cpu_us_per_query: per_query(cpu.as_secs_f64()),
            }),
            unsent: outcome.unsent,
            held_back: outcome.held_back,
            generator_limited: limit.is_some(),
            generator_limit: limit,
            partial,
            last_error: outcome.last_error,
        }
    }
}

impl Latency {
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let us = |nanos: u64| nanos as f64 / 1e3;
        let quantile = |share| us(histogram.value_at_quantile(share));
        (!histogram.is_empty()).then(|| Self {
            min_us: us(histogram.min()),
            mean_us: histogram.mean() / 1e3,
            p50_us: quantile(0.5),
            p90_us: quantile(0.9),
            p99_us: quantile(0.99),
            p999_us: quantile(0.999),
            max_us: us(histogram.max()),
        })
    }
}

impl fmt::Display for DnsReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let loop_kind = match self.rate {
            Some(rate) if self.arrivals == Arrivals::Poisson => format!("open loop at {rate}/s, at random"),
            Some(rate) => format!("open loop at {rate}/s"),
            None => "closed loop".to_owned(),
        };
        let Self { target, clients, in_flight, .. } = self;
        writeln!(
            f,
            "load        {transport}://{target}, {clients} clients, {in_flight} in flight, {loop_kind}"
        )?;
        writeln!(f, "answered    {} of {} in {:.2} s", self.answered, self.sent, self.elapsed_seconds)?;
        writeln!(f, "rate        {:.0} answers/s", self.qps)?;
        writeln!(f, "lost        {} ({:.3} %)", self.lost, percent(self.lost, self.sent))?;
        writeln!(f, "wrong       {}", self.wrong)?;
        let rcodes: Vec<_> = self.rcodes.iter().map(|(word, count)| format!("{word} {count}")).collect();
        writeln!(f, "codes       {}", if rcodes.is_empty() { "none".to_owned() } else { rcodes.join(", ") })?;
        for (word, count) in
            [("unexpected", self.unexpected), ("truncated", self.truncated), ("unsent", self.unsent)]
        {
            if count > 0 {
                writeln!(f, "{word:<11} {count}")?;
            }
        }
        if self.held_back > 0 {
            writeln!(
                f,
                "held back   {} (all {in_flight} in flight were waiting for the server)",
                self.held_back
            )?;
        }
        if let Some(latency) = &self.latency {
            writeln!(
                f,
                "latency     {:>10} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "min", "mean", "p50", "p90", "p99", "p99.9", "max"
            )?;
            let Latency { min_us, mean_us, p50_us, p90_us, p99_us, p999_us, max_us } = *latency;
            write!(f, "           ")?;
            for us in [min_us, mean_us, p50_us, p90_us, p99_us, p999_us, max_us] {
                write!(f, " {:>10}", spelled(us))?;
            }
            writeln!(f)?;
        }
        write!(f, "sockets     {}", self.sockets)?;
        match self.closed {
            0 => writeln!(f)?,
            closed => writeln!(f, " ({closed} ended by the server)")?,
        }
        if let Some(error) = &self.last_error {
            writeln!(f, "errors      {} (the last: {error})", self.errors)?;
        }
        write!(f, "generator   {:.2} s of CPU{}", self.cpu_seconds, each(self.cpu_us_per_query))?;
        if let Some(server) = &self.server {
            write!(f, "\nserver      {:.2} s of CPU{}", server.cpu_seconds, each(server.cpu_us_per_query))?;
        }
        if let Some(limit) = &self.generator_limit {
            write!(f, "\nbeware      limited by the generator: {limit}")?;
        }
        if let Some(partial) = &self.partial {
            write!(f, "\npartial     {partial}")?;
        }
        Ok(())
    }
}

pub(crate) fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn each(us_per_query: Option<f64>) -> String {
    us_per_query.map_or_else(String::new, |us| format!(", {us:.2} µs per query"))
}

pub(crate) fn spelled(us: f64) -> String {
    match us {
        ..1e3 => format!("{us:.1} µs"),
        ..1e6 => format!("{:.2} ms", us / 1e3),
        _ => format!("{:.2} s", us / 1e6),
    }
}

/// What workers count.
pub(super) struct Outcome {
    pub(super) sent: u64,
    pub(super) answered: u64,
    pub(super) lost: u64,
    pub(super) wrong: u64,
    pub(super) unexpected: u64,
    pub(super) truncated: u64,
    pub(super) rcodes: [u64; 16],
    pub(super) sockets: u64,
    pub(super) closed: u64,
    pub(super) errors: u64,
    pub(super) last_error: Option<String>,
    pub(super) unsent: u64,
    pub(super) held_back: u64,
    /// Open loop: queries that left late though there was room.
    pub(super) sent_late: u64,
    pub(super) last_answer: Instant,
    /// When the last of the lost queries left.
    pub(super) last_lost: Option<Instant>,
    pub(super) ended: Instant,
    /// What of sent, answered and lost has been shown already.
    pub(super) told: [u64; 3],
    latency: Histogram<u64>,
    cpu: Duration,
    /// The largest share of a core that a thread used.
    busiest: f64,
}

impl Outcome {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            answered: 0,
            lost: 0,
            wrong: 0,
            unexpected: 0,
            truncated: 0,
            rcodes: [0; 16],
            sockets: 0,
            closed: 0,
            errors: 0,
            last_error: None,
            unsent: 0,
            held_back: 0,
            sent_late: 0,
            last_answer: Instant::ZERO,
            last_lost: None,
            ended: Instant::ZERO,
            told: [0; 3],
            latency: Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("bounds that fit each other"),
            cpu: Duration::ZERO,
            busiest: 0.0,
        }
    }

    pub(super) fn record(&mut self, latency: Duration) {
        self.latency.saturating_record(latency.as_nanos() as u64);
    }

    pub(super) fn trouble(&mut self, error: &io::Error) {
        self.errors += 1;
        // The first of a kind is worth an allocation, its repetitions are not.
        if self.errors == 1 || self.errors.is_power_of_two() {
            self.last_error = Some(error.to_string());
        }
    }

    /// Counts what a thread has used since `started`, once it has `ended`.
    pub(super) fn count_thread(&mut self, cpu: Duration, started: Instant) {
        self.cpu = cpu;
        let elapsed = forebay::sys::now().saturating_duration_since(started).as_secs_f64();
        self.busiest = cpu.as_secs_f64() / elapsed.max(1e-9);
    }

    pub(super) fn merged(outcomes: Vec<Self>) -> Self {
        let mut all = Self::new();
        for one in outcomes {
            all.sent += one.sent;
            all.answered += one.answered;
            all.lost += one.lost;
            all.wrong += one.wrong;
            all.unexpected += one.unexpected;
            all.truncated += one.truncated;
            for (sum, count) in all.rcodes.iter_mut().zip(one.rcodes) {
                *sum += count;
            }
            all.sockets += one.sockets;
            all.closed += one.closed;
            all.errors += one.errors;
            all.last_error = one.last_error.or(all.last_error);
            all.unsent += one.unsent;
            all.held_back += one.held_back;
            all.sent_late += one.sent_late;
            all.ended = all.ended.max(one.ended);
            all.last_answer = all.last_answer.max(one.last_answer);
            all.last_lost = all.last_lost.max(one.last_lost);
            all.latency.add(one.latency).expect("histograms of one shape");
            all.cpu += one.cpu;
            all.busiest = all.busiest.max(one.busiest);
        }
        all
    }

    /// Says from when on nothing was answered any more, if that was long before the end.
    fn silence(&self, started: Instant) -> Option<String> {
        let ending = Ending {
            started,
            last_answer: (self.answered > 0).then_some(self.last_answer),
            last_unanswered: self.last_lost,
            ended: self.ended,
            answered: self.answered,
            last_error: self.last_error.as_deref(),
        };
        ending.silence()
    }

    /// Says why the generator was the limit, if it was.
    fn limit(&self, load: &DnsLoad) -> Option<String> {
        let late = percent(self.sent_late, self.sent);
        if load.rate.is_some() && late > LATE_SHARE * 100.0 {
            return Some(format!("{late:.1} % of queries left more than 1 ms after their time"));
        }
        (self.busiest >= BUSY).then(|| {
            let busy = self.busiest * 100.0;
            format!("it used {busy:.0} % of a core: take more threads, or a slower server")
        })
    }
}

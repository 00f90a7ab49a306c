//! Acquire and release, beside other pools, in one binary and in interleaved rounds.
//!
//! Connections are numbers and dialling costs nothing, so that only the pools are measured. Two cases:
//!
//! - **one task**: acquires and releases, with nobody else there: what a hit costs;
//! - **64 tasks** on two threads share 16 connections, each held over one yield: what waiting costs.
//!
//! Ratios count; absolute figures do not travel. Rounds of all subjects alternate and medians are reported, so that a
//! busy moment of the machine hits all of them.

mod subjects;

use std::fmt;
use std::future::Future;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::runtime::{Builder, Runtime};

pub use subjects::{BareVec, Bb8, Deadpool, Forebay};

/// Connections in each pool.
pub const CONNECTIONS: u32 = 16;
/// Tasks of the second case.
pub const TASKS: u32 = 64;
/// Threads that run them.
pub const THREADS: usize = 2;

/// A pool to be measured.
pub trait Subject: Clone + Send + Sync + 'static {
    /// What a report calls it.
    const NAME: &'static str;
    /// A connection in use.
    type Lease<'a>: Send;

    /// Makes a pool of [`CONNECTIONS`], inside a runtime.
    fn new() -> impl Future<Output = Self> + Send;
    /// Takes a connection.
    fn acquire(&self) -> impl Future<Output = Self::Lease<'_>> + Send;
    /// Gives it back.
    fn release(&self, lease: Self::Lease<'_>);
}

/// What is to be measured, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct PoolBench {
    /// Rounds of each case for each subject. Default: 9.
    pub rounds: u32,
    /// How many pairs of acquire and release a round has. Default: 200,000.
    pub pairs: u32,
    /// Reads how many allocations the process has made, if the binary counts them. Default: none, and the report says
    /// nothing of allocations.
    pub allocations: Option<fn() -> u64>,
}

impl Default for PoolBench {
    fn default() -> Self {
        Self { rounds: 9, pairs: 200_000, allocations: None }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct PoolReport {
    /// Rounds of which medians were taken.
    pub rounds: u32,
    /// Pairs of acquire and release per round.
    pub pairs: u32,
    /// One task alone.
    pub one_task: Vec<PoolFigures>,
    /// [`TASKS`] tasks on [`THREADS`] threads with [`CONNECTIONS`] connections, each held over a yield.
    pub many_tasks: Vec<PoolFigures>,
    /// Forebay's time over that of the better of bb8 and deadpool, for one task.
    pub one_task_ratio: f64,
    /// The same for many tasks.
    pub many_tasks_ratio: f64,
}

/// One pool in one case.
#[derive(Clone, Debug, Serialize)]
pub struct PoolFigures {
    /// Its name.
    pub pool: &'static str,
    /// Wall time per acquire and release, in nanoseconds: the median of the rounds.
    pub pair_ns: f64,
    /// The fastest round.
    pub pair_ns_min: f64,
    /// Allocations per acquire and release after a warm-up, if they were counted: the least of the rounds.
    pub allocations: Option<f64>,
    /// Waits for a connection, in nanoseconds, in rounds of their own; only with many tasks.
    pub wait: Option<Waits>,
}

/// How long tasks waited.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Waits {
    /// The median, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 waited at most so long, in nanoseconds.
    pub p99_ns: u64,
    /// 999 of 1000 waited at most so long, in nanoseconds.
    pub p999_ns: u64,
    /// The longest, in nanoseconds.
    pub max_ns: u64,
}

impl PoolBench {
    /// Measures. Takes about a second per round; must not be called from within a runtime.
    ///
    /// # Panics
    ///
    /// When no thread can be started.
    pub fn run(&self) -> PoolReport {
        let runtime = runtime();
        let mut subjects = [
            self.subject::<Forebay>(&runtime),
            self.subject::<Bb8>(&runtime),
            self.subject::<Deadpool>(&runtime),
            self.subject::<BareVec>(&runtime),
        ];
        for _ in 0..self.rounds {
            for subject in &mut subjects {
                (subject.round)(&mut subject.samples);
            }
        }
        let one_task: Vec<_> =
            subjects.iter().map(|subject| subject.samples.one_task(subject.name)).collect();
        let many_tasks: Vec<_> =
            subjects.iter().map(|subject| subject.samples.many_tasks(subject.name)).collect();
        PoolReport {
            rounds: self.rounds,
            pairs: self.pairs,
            one_task_ratio: ratio(&one_task),
            many_tasks_ratio: ratio(&many_tasks),
            one_task,
            many_tasks,
        }
    }

    fn subject<'a, S: Subject>(self, runtime: &'a Runtime) -> Running<'a> {
        let pool = runtime.block_on(S::new());
        one_task(runtime, &pool, self.pairs / 10);
        many_tasks(runtime, &pool, self.pairs / 10);
        let count = move || self.allocations.map(|read| read());
        let pairs = f64::from(self.pairs);
        let round = move |samples: &mut Samples| {
            let before = count();
            samples.one.push(one_task(runtime, &pool, self.pairs).as_nanos() as f64 / pairs);
            samples
                .one_allocations
                .extend(count().zip(before).map(|(after, before)| (after - before) as f64 / pairs));
            let before = count();
            samples.many.push(many_tasks(runtime, &pool, self.pairs).as_nanos() as f64 / pairs);
            samples
                .many_allocations
                .extend(count().zip(before).map(|(after, before)| (after - before) as f64 / pairs));
            samples.waits.add(waits(runtime, &pool, self.pairs / 4)).expect("histograms are alike");
        };
        Running { name: S::NAME, samples: Samples::new(), round: Box::new(round) }
    }
}

/// Makes the runtime in which pools are measured.
///
/// # Panics
///
/// When no thread can be started.
pub fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().expect("threads can be started")
}

/// Lets one task acquire and release `pairs` times; returns how long that took.
///
/// # Panics
///
/// When the pool does.
pub fn one_task<S: Subject>(runtime: &Runtime, pool: &S, pairs: u32) -> Duration {
    let pool = pool.clone();
    let task = async move {
        let start = Instant::now();
        for _ in 0..pairs {
            let lease = pool.acquire().await;
            pool.release(std::hint::black_box(lease));
        }
        start.elapsed()
    };
    runtime.block_on(runtime.spawn(task)).expect("the task does not panic")
}

/// Lets [`TASKS`] tasks acquire, yield and release, `pairs` times together; returns how long that took.
///
/// # Panics
///
/// When the pool does.
pub fn many_tasks<S: Subject>(runtime: &Runtime, pool: &S, pairs: u32) -> Duration {
    let each = pairs / TASKS;
    runtime.block_on(async {
        let start = Instant::now();
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    for _ in 0..each {
                        let lease = pool.acquire().await;
                        tokio::task::yield_now().await;
                        pool.release(lease);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("the task does not panic");
        }
        start.elapsed()
    })
}

/// As [`many_tasks`], and measures each wait.
fn waits<S: Subject>(runtime: &Runtime, pool: &S, pairs: u32) -> Histogram<u64> {
    let each = pairs / TASKS;
    runtime.block_on(async {
        let tasks: Vec<_> = (0..TASKS)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let mut histogram = histogram();
                    for _ in 0..each {
                        let start = Instant::now();
                        let lease = pool.acquire().await;
                        histogram.saturating_record(start.elapsed().as_nanos() as u64);
                        tokio::task::yield_now().await;
                        pool.release(lease);
                    }
                    histogram
                })
            })
            .collect();
        let mut sum = histogram();
        for task in tasks {
            sum.add(task.await.expect("the task does not panic")).expect("histograms are alike");
        }
        sum
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order")
}

struct Running<'a> {
    name: &'static str,
    samples: Samples,
    round: Box<dyn Fn(&mut Samples) + 'a>,
}

struct Samples {
    one: Vec<f64>,
    one_allocations: Vec<f64>,
    many: Vec<f64>,
    many_allocations: Vec<f64>,
    waits: Histogram<u64>,
}

impl Samples {
    fn new() -> Self {
        Self {
            one: Vec::new(),
            one_allocations: Vec::new(),
            many: Vec::new(),
            many_allocations: Vec::new(),
            waits: histogram(),
        }
    }

    fn one_task(&self, pool: &'static str) -> PoolFigures {
        PoolFigures {
            pool,
            pair_ns: median(&self.one),
            pair_ns_min: least(&self.one).unwrap_or_default(),
            allocations: least(&self.one_allocations),
            wait: None,
        }
    }

    fn many_tasks(&self, pool: &'static str) -> PoolFigures {
        let at = |quantile| self.waits.value_at_quantile(quantile);
        PoolFigures {
            pool,
            pair_ns: median(&self.many),
            pair_ns_min: least(&self.many).unwrap_or_default(),
            allocations: least(&self.many_allocations),
            wait: Some(Waits {
                p50_ns: at(0.5),
                p99_ns: at(0.99),
                p999_ns: at(0.999),
                max_ns: self.waits.max(),
            }),
        }
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn least(samples: &[f64]) -> Option<f64> {
    samples.iter().copied().min_by(f64::total_cmp)
}

/// Forebay's time over that of the better of bb8 and deadpool.
fn ratio(figures: &[PoolFigures]) -> f64 {
    let of = |name| figures.iter().find(|f| f.pool == name).map_or(f64::NAN, |f| f.pair_ns);
    of(Forebay::NAME) / of(Bb8::NAME).min(of(Deadpool::NAME))
}

impl fmt::Display for PoolReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "acquire + release, medians of {} rounds of {} pairs", self.rounds, self.pairs)?;
        write_case(f, "one task", &self.one_task, self.one_task_ratio)?;
        let many = format!("{TASKS} tasks, {THREADS} threads, {CONNECTIONS} connections, held over a yield");
        write_case(f, &many, &self.many_tasks, self.many_tasks_ratio)
    }
}

fn write_case(f: &mut fmt::Formatter<'_>, title: &str, figures: &[PoolFigures], ratio: f64) -> fmt::Result {
    writeln!(f, "\n{title}")?;
    for figures in figures {
        write!(f, "  {:<12}{:>8.0} ns (best {:.0})", figures.pool, figures.pair_ns, figures.pair_ns_min)?;
        if let Some(allocations) = figures.allocations {
            write!(f, "  {allocations:.2} allocations")?;
        }
        if let Some(wait) = figures.wait {
            let us = |ns: u64| ns as f64 / 1000.0;
            let Waits { p50_ns, p99_ns, p999_ns, max_ns } = wait;
            write!(
                f,
                "  waits: p50 {:.1} µs, p99 {:.1} µs, p99.9 {:.1} µs, max {:.1} µs",
                us(p50_ns),
                us(p99_ns),
                us(p999_ns),
                us(max_ns)
            )?;
        }
        writeln!(f)?;
    }
    writeln!(f, "  forebay / the better of bb8 and deadpool: {ratio:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_is_measured_in_both_cases() {
        let report = PoolBench { rounds: 1, pairs: 2_000, allocations: None }.run();
        let names = |figures: &[PoolFigures]| figures.iter().map(|f| f.pool).collect::<Vec<_>>();
        assert_eq!(names(&report.one_task), ["forebay", "bb8", "deadpool", "mutex + vec"]);
        assert_eq!(names(&report.many_tasks), names(&report.one_task));
        assert!(report.many_tasks.iter().chain(&report.one_task).all(|f| f.pair_ns > 0.0));
        assert!(report.one_task_ratio > 0.0 && report.many_tasks_ratio > 0.0);
        assert!(report.many_tasks.iter().all(|f| f.wait.is_some_and(|wait| wait.max_ns >= wait.p50_ns)));
        let text = report.to_string();
        assert!(text.contains("deadpool") && !text.contains("allocations"), "{text}");
        assert!(serde_json::to_string(&report).unwrap().contains("\"p999_ns\""));
    }
}

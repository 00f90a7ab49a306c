//! What the generators of TCP and HTTP load share: clients in closed or open loop, what they count, how it is told.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay::blame::cause_of;
use forebay::sys::{clock, now, process};
use forebay::{AcquireError, Cause, DialError, Failure};
use forebay_core::Instant;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use crate::dns::{BenchError, Latency};
use crate::dns::{ServerTime, percent, server_cpu, spelled};
use crate::partial::Ending;

/// Share of a core from which the generator counts as busy.
const BUSY: f64 = 0.9;

/// How long requests of an open loop that were due in time may leave late when the load is over.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a load of TCP or HTTP came to. Times have their unit in their name.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// From the first request to the last answer.
    pub elapsed_seconds: f64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were not, for whatever reason.
    pub failed: u64,
    /// Why, in one word each.
    pub errors: BTreeMap<String, u64>,
    /// The last of them, in full.
    pub last_error: Option<String>,
    /// Answers a second.
    pub rate: f64,
    /// From when a request should have left to the end of its answer; connecting and waiting are part of it. `None`
    /// without answers.
    pub latency: Option<Latency>,
    /// Connections that were made.
    pub connections_opened: u64,
    /// Share of requests (0 to 1) that found a connection ready; `None` without requests.
    pub reuse_rate: Option<f64>,
    /// Bytes written, without those of TLS.
    pub bytes_sent: u64,
    /// Bytes read, without those of TLS.
    pub bytes_received: u64,
    /// Open loop: requests that were due and never left, as all clients were waiting.
    pub unsent: u64,
    /// CPU time of the generator, in seconds.
    pub cpu_seconds: f64,
    /// The same for each answer, in microseconds.
    pub cpu_us_per_request: Option<f64>,
    /// CPU time of the server's process in seconds, if it was named.
    pub server_cpu_seconds: Option<f64>,
    /// The same for each answer, in microseconds.
    pub server_cpu_us_per_request: Option<f64>,
    /// Why the figures say more about the generator than about the server, if they do.
    pub generator_limit: Option<String>,
    /// Why they are of a part of the load only: the server fell silent before the end, or its process ended. `None`:
    /// they are of all of it.
    pub partial: Option<String>,
}

impl Figures {
    pub(crate) fn new(started: Instant, tally: Tally, server: ServerTime) -> Self {
        let elapsed = tally.ended.saturating_duration_since(started).as_secs_f64();
        let per_request = |cpu: f64| (tally.answered > 0).then(|| cpu * 1e6 / tally.answered as f64);
        let sent = tally.answered + tally.failed;
        let opened = tally.opened;
        let partial = tally.silence(started).or(server.gone);
        let server = server.used;
        Self {
            elapsed_seconds: elapsed,
            answered: tally.answered,
            failed: tally.failed,
            errors: tally.errors.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect(),
            rate: if elapsed > 0.0 { tally.answered as f64 / elapsed } else { 0.0 },
            latency: Latency::of(&tally.latency),
            connections_opened: opened,
            reuse_rate: (sent > 0).then(|| sent.saturating_sub(opened) as f64 / sent as f64),
            bytes_sent: tally.bytes_sent,
            bytes_received: tally.bytes_received,
            unsent: tally.unsent,
            cpu_seconds: tally.cpu.as_secs_f64(),
            cpu_us_per_request: per_request(tally.cpu.as_secs_f64()),
            server_cpu_seconds: server.map(|cpu| cpu.as_secs_f64()),
            server_cpu_us_per_request: server.and_then(|cpu| per_request(cpu.as_secs_f64())),
            generator_limit: (tally.busiest >= BUSY).then(|| {
                let busy = tally.busiest * 100.0;
                format!("it used {busy:.0} % of a core: take more threads, or a slower server")
            }),
            last_error: tally.last_error,
            partial,
        }
    }

    /// Both directions together, in 10⁹ bytes a second.
    pub fn gigabytes_per_second(&self) -> f64 {
        (self.bytes_sent + self.bytes_received) as f64 / 1e9 / self.elapsed_seconds.max(1e-9)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sent = self.answered + self.failed;
        writeln!(f, "answered    {} of {sent} in {:.2} s", self.answered, self.elapsed_seconds)?;
        writeln!(f, "rate        {:.0} requests/s", self.rate)?;
        if self.failed > 0 {
            let errors: Vec<_> = self.errors.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(
                f,
                "failed      {} ({:.3} %): {}",
                self.failed,
                percent(self.failed, sent),
                errors.join(", ")
            )?;
        }
        if let Some(error) = &self.last_error {
            writeln!(f, "last error  {error}")?;
        }
        if self.unsent > 0 {
            writeln!(f, "unsent      {} (all clients were waiting for the server)", self.unsent)?;
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
        write!(f, "connections {} opened", self.connections_opened)?;
        if let Some(reuse) = self.reuse_rate {
            write!(f, ", {:.3} % of requests found one ready", reuse * 100.0)?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "bytes       {} sent, {} received ({:.3} GB/s)",
            self.bytes_sent,
            self.bytes_received,
            self.gigabytes_per_second()
        )?;
        write!(f, "generator   {:.2} s of CPU{}", self.cpu_seconds, each(self.cpu_us_per_request))?;
        if let Some(seconds) = self.server_cpu_seconds {
            write!(f, "\nserver      {seconds:.2} s of CPU{}", each(self.server_cpu_us_per_request))?;
            let gigabytes = (self.bytes_sent + self.bytes_received) as f64 / 1e9;
            if gigabytes >= 1.0 {
                write!(f, ", {:.3} s per GB", seconds / gigabytes)?;
            }
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

fn each(us_per_request: Option<f64>) -> String {
    us_per_request.map_or_else(String::new, |us| format!(", {us:.2} µs per request"))
}

/// Why a request failed: one word for the table, and the whole of it.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) kind: &'static str,
    pub(crate) text: String,
}

impl Trouble {
    pub(crate) fn new(kind: &'static str, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    pub(crate) fn timeout(limit: Duration) -> Self {
        Self::new(Cause::Timeout.as_str(), format!("no answer in {limit:?}"))
    }

    pub(crate) fn dial(error: &DialError) -> Self {
        Self::new(error.cause().as_str(), error.to_string())
    }

    pub(crate) fn closed(text: &str) -> Self {
        Self::new("closed", text)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::closed("the connection ended before the answer"),
            _ => Self::new(cause_of(&error).as_str(), error.to_string()),
        }
    }
}

impl From<AcquireError> for Trouble {
    fn from(error: AcquireError) -> Self {
        let kind = match error.failure() {
            Failure::Waited(_) if error.cause().is_none() => "waited",
            _ => error.cause().map_or("refused by the pool", Cause::as_str),
        };
        Self::new(kind, error.to_string())
    }
}

/// What clients count.
pub(crate) struct Tally {
    pub(crate) answered: u64,
    pub(crate) failed: u64,
    pub(crate) errors: BTreeMap<&'static str, u64>,
    pub(crate) last_error: Option<String>,
    pub(crate) opened: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) unsent: u64,
    pub(crate) statuses: Statuses,
    pub(crate) ended: Instant,
    last_answer: Option<Instant>,
    last_unanswered: Option<Instant>,
    latency: Histogram<u64>,
    cpu: Duration,
    busiest: f64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            answered: 0,
            failed: 0,
            errors: BTreeMap::new(),
            last_error: None,
            opened: 0,
            bytes_sent: 0,
            bytes_received: 0,
            unsent: 0,
            statuses: BTreeMap::new(),
            ended: Instant::ZERO,
            last_answer: None,
            last_unanswered: None,
            latency: Histogram::new_with_bounds(1, 3_600_000_000_000, 3).expect("bounds that fit each other"),
            cpu: Duration::ZERO,
            busiest: 0.0,
        }
    }

    /// Counts an answer to a request that should have left when it was `due`.
    pub(crate) fn answer(&mut self, due: Instant) {
        let now = now();
        self.answered += 1;
        (self.ended, self.last_answer) = (now, Some(now));
        self.latency.saturating_record(now.saturating_duration_since(due).as_nanos() as u64);
    }

    /// Counts so many answers, each of which took so long.
    pub(crate) fn answers(&mut self, each: Duration, answers: u64) {
        self.answered += answers;
        self.ended = now();
        if answers > 0 {
            self.last_answer = Some(self.ended);
        }
        self.latency.saturating_record_n(each.as_nanos() as u64, answers);
    }

    /// Counts `requests` that came to nothing and should have left when they were `due`.
    pub(crate) fn trouble(&mut self, due: Instant, trouble: Trouble, requests: u64) {
        self.failed += requests;
        self.ended = now();
        self.last_unanswered = self.last_unanswered.max(Some(due));
        *self.errors.entry(trouble.kind).or_default() += requests;
        self.last_error = Some(trouble.text);
    }

    fn silence(&self, started: Instant) -> Option<String> {
        let ending = Ending {
            started,
            last_answer: self.last_answer,
            last_unanswered: self.last_unanswered,
            ended: self.ended,
            answered: self.answered,
            last_error: self.last_error.as_deref(),
        };
        ending.silence()
    }

    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.failed += other.failed;
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        for (status, count) in other.statuses {
            *self.statuses.entry(status).or_default() += count;
        }
        self.last_error = other.last_error.or(self.last_error.take());
        self.opened += other.opened;
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.unsent += other.unsent;
        self.ended = self.ended.max(other.ended);
        self.last_answer = self.last_answer.max(other.last_answer);
        self.last_unanswered = self.last_unanswered.max(other.last_unanswered);
        self.latency.add(other.latency).expect("histograms of one shape");
        self.cpu += other.cpu;
        self.busiest = self.busiest.max(other.busiest);
    }
}

/// One of many that make requests, one after the other.
pub(crate) trait Client: Send + 'static {
    /// Makes one request (or several at once), and returns how many were answered.
    fn attempt(&mut self, tally: &mut Tally) -> impl Future<Output = Result<u64, Trouble>> + Send;

    /// When an attempt has failed.
    fn limit(&self) -> Duration;

    /// Hears that an attempt has failed, its time being up or otherwise: what it used is in no known state.
    fn broke(&mut self) {}

    /// How many requests an attempt makes.
    fn batch(&self) -> u64 {
        1
    }
}

/// How long clients go on, and when their requests are due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Requests a second of all threads, for an open loop.
    pub(crate) rate: Option<f64>,
    /// When to stop beginning requests.
    pub(crate) duration: Option<Duration>,
    /// How many requests to make at most, over all threads.
    pub(crate) requests: Option<u64>,
    /// Threads, each with a runtime and its share of the clients.
    pub(crate) threads: usize,
    /// Core of the first thread.
    pub(crate) pin: Option<usize>,
    /// Whose CPU time is reported, too.
    pub(crate) server_pid: Option<i32>,
}

impl Pace {
    pub(crate) fn check(&self, clients: usize) -> Result<(), BenchError> {
        let wrong = |setting, value: &dyn ToString, remedy: &str| {
            Err(BenchError::setting(setting, value.to_string(), remedy))
        };
        if clients == 0 {
            return wrong("clients", &0, "somebody must make the requests");
        }
        if self.threads == 0 || self.threads > clients {
            let remedy = format!("1 to {clients} (one client each) are possible");
            return wrong("threads", &self.threads, &remedy);
        }
        if let Some(rate) = self.rate
            && !(rate.is_finite() && rate > 0.0)
        {
            return wrong("rate", &rate, "say how many requests a second, more than none");
        }
        if self.duration.is_some_and(|duration| duration.is_zero()) {
            return wrong("duration", &"0 s", "say for how long, or leave it out and say how many requests");
        }
        if self.requests == Some(0) {
            return wrong("requests", &0, "say how many, or leave it out and say for how long");
        }
        if self.duration.is_none() && self.requests.is_none() {
            return wrong("duration", &"none", "say for how long, or how many requests");
        }
        Ok(())
    }

    /// The share of `total` that thread `number` has.
    pub(crate) fn share(&self, total: u64, number: usize) -> u64 {
        let threads = self.threads as u64;
        total / threads + u64::from((number as u64) < total % threads)
    }
}

/// Raises the limit of descriptors if so many connections need that, and says so early if it is not enough.
pub(crate) fn make_room(connections: usize) -> Result<(), BenchError> {
    let trouble = |error| BenchError::io("cannot count descriptors", error);
    let needed = process::descriptors_in_use().map_err(trouble)? + connections as u64 + 64;
    let limit = process::descriptor_limit().map_err(trouble)?;
    if needed > limit.hard {
        let remedy = format!(
            "this process may open {} descriptors (RLIMIT_NOFILE): raise that, or take fewer",
            limit.hard
        );
        return Err(BenchError::setting("clients", connections, remedy));
    }
    if needed > limit.soft {
        process::raise_descriptor_limit()
            .map_err(|error| BenchError::io("cannot raise RLIMIT_NOFILE", error))?;
    }
    Ok(())
}

/// Runs one `work` per thread, each in a runtime of its own, and sums what they counted.
pub(crate) fn on_threads<F>(
    pace: &Pace,
    work: impl Fn(usize) -> F + Sync,
) -> Result<(Figures, Statuses), BenchError>
where
    F: Future<Output = Result<Tally, BenchError>>,
{
    let server_before = server_cpu(pace.server_pid)?;
    let started = now();
    let run = |number: usize| -> Result<Tally, BenchError> {
        let trouble = |error| BenchError::io("the load cannot begin", error);
        pace.pin.map_or(Ok(()), |core| process::pin_current_thread(core + number)).map_err(trouble)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(trouble)?;
        let mut tally = runtime.block_on(work(number))?;
        tally.cpu = clock::thread_cpu_time();
        let elapsed = now().saturating_duration_since(started).as_secs_f64();
        tally.busiest = tally.cpu.as_secs_f64() / elapsed.max(1e-9);
        Ok(tally)
    };
    let tallies: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..pace.threads).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the generator does not panic")).collect()
    });
    let mut sum = Tally::new();
    for tally in tallies {
        sum.add(tally?);
    }
    let server = ServerTime::since(server_before, pace.server_pid);
    let statuses = std::mem::take(&mut sum.statuses);
    Ok((Figures::new(started, sum, server), statuses))
}

/// Answers by status code; only HTTP has them.
pub(crate) type Statuses = BTreeMap<u16, u64>;

/// Lets clients make requests at this pace, on thread `number`, until it is over.
pub(crate) async fn drive<C: Client>(pace: &Pace, number: usize, clients: Vec<C>) -> Tally {
    let started = now();
    let until = pace.duration.map_or(Instant::MAX, |duration| started + duration);
    let quota = pace.requests.map_or(u64::MAX, |requests| pace.share(requests, number));
    let schedule = pace.rate.map(|rate| {
        let interval = 1e9 * pace.threads as f64 / rate;
        Arc::new(Schedule::new(started, interval, 1e9 * number as f64 / rate, until, quota))
    });
    let clock = schedule.as_ref().map(Schedule::start);
    let taken = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for mut client in clients {
        let (schedule, taken) = (schedule.clone(), Arc::clone(&taken));
        tasks.spawn(async move {
            let mut tally = Tally::new();
            loop {
                let due = match &schedule {
                    Some(schedule) => match schedule.next().await {
                        Some(due) => due,
                        None => break,
                    },
                    None => {
                        let now = now();
                        if now >= until || taken.fetch_add(1, Relaxed) >= quota {
                            break;
                        }
                        now
                    }
                };
                let limit = client.limit();
                let result = timeout(limit, client.attempt(&mut tally)).await;
                match result.unwrap_or_else(|_| Err(Trouble::timeout(limit))) {
                    Ok(answers) => (0..answers).for_each(|_| tally.answer(due)),
                    Err(trouble) => {
                        client.broke();
                        tally.trouble(due, trouble, client.batch());
                    }
                }
            }
            tally
        });
    }
    let mut sum = Tally::new();
    while let Some(tally) = tasks.join_next().await {
        sum.add(tally.expect("a client does not panic"));
    }
    if let Some(clock) = clock {
        clock.join().expect("the clock does not panic");
    }
    if let Some(schedule) = schedule {
        sum.unsent = schedule.given.load(Relaxed).saturating_sub(schedule.taken.load(Relaxed));
    }
    sum
}

/// When requests of an open loop are due. A thread with exact timers tells, since those of the runtime have
/// milliseconds.
struct Schedule {
    started: Instant,
    interval_ns: f64,
    offset_ns: f64,
    until: Instant,
    quota: u64,
    places: Semaphore,
    given: AtomicU64,
    taken: AtomicU64,
}

impl Schedule {
    fn new(started: Instant, interval_ns: f64, offset_ns: f64, until: Instant, quota: u64) -> Self {
        Self {
            started,
            interval_ns,
            offset_ns,
            until,
            quota,
            places: Semaphore::new(0),
            given: AtomicU64::new(0),
            taken: AtomicU64::new(0),
        }
    }

    fn due(&self, turn: u64) -> Instant {
        self.started + Duration::from_nanos((self.offset_ns + self.interval_ns * turn as f64) as u64)
    }

    /// Returns when the next request is due, once it is; `None` when there is no next one.
    async fn next(&self) -> Option<Instant> {
        self.places.acquire().await.ok()?.forget();
        Some(self.due(self.taken.fetch_add(1, Relaxed)))
    }

    fn start(self: &Arc<Self>) -> std::thread::JoinHandle<()> {
        let own = Arc::clone(self);
        std::thread::spawn(move || {
            // Less exact without; the latencies say so.
            let _ = clock::exact_timers();
            let mut turn = 0;
            while turn < own.quota && own.due(turn) < own.until {
                let wait = own.due(turn).saturating_duration_since(now());
                if !wait.is_zero() {
                    std::thread::sleep(wait);
                    continue;
                }
                own.given.fetch_add(1, Relaxed);
                own.places.add_permits(1);
                turn += 1;
            }
            // What is due by now may still leave, when a client comes back from its last request.
            let patience = now() + PATIENCE;
            while own.taken.load(Relaxed) < turn && now() < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
            own.places.close();
        })
    }
}

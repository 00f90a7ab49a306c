//! What all measurements share: how long they take, which cores they have, how far they are, whether they are to stop.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use forebay::sys::{clock, now, process};
use forebay_core::Instant;

/// How wide the bar is.
const BAR: usize = 24;

/// Why a measurement ends before its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Somebody wants it to.
    Interrupted,
    /// It cannot go on.
    Failed(String),
}

impl Stop {
    /// Says what failed, and why.
    pub(super) fn failed(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Interrupted => f.write_str("interrupted"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Which core has what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cores {
    /// That of the server that is measured; `None`: any.
    pub(super) server: Option<usize>,
    /// That of the load.
    pub(super) load: Option<usize>,
    /// That of upstreams and backends.
    pub(super) upstream: Option<usize>,
}

impl Cores {
    /// Deals out the cores that there are.
    pub(super) fn of(allowed: &[usize]) -> Self {
        match *allowed {
            [] | [_] => Self { server: None, load: None, upstream: None },
            [server, load] => Self { server: Some(server), load: Some(load), upstream: Some(load) },
            [server, load, upstream, ..] => {
                Self { server: Some(server), load: Some(load), upstream: Some(upstream) }
            }
        }
    }

    /// Says so.
    pub(super) fn words(&self) -> String {
        let processes = "All run in one process; CPU time is that of the server's own threads.";
        match (self.server, self.load, self.upstream) {
            (Some(server), Some(load), Some(upstream)) if load == upstream => format!(
                "The server that is measured has core {server} alone; load and upstreams share core {load}. {processes}"
            ),
            (Some(server), Some(load), Some(upstream)) => format!(
                "The server that is measured has core {server} alone, the load core {load}, upstreams and backends core \
                 {upstream}. {processes}"
            ),
            _ => format!("Server, load and upstreams share one core: only ratios say something. {processes}"),
        }
    }
}

/// What all measurements share.
pub(super) struct Stage {
    /// Whether the short run is wanted.
    pub(super) quick: bool,
    /// Rounds of each measurement.
    pub(super) rounds: usize,
    /// Which core has what.
    pub(super) cores: Cores,
    stop: Arc<AtomicBool>,
    started: Instant,
    steps: usize,
    done: usize,
    on_terminal: bool,
}

impl Stage {
    /// Prepares so many steps.
    pub(super) fn new(quick: bool, steps: usize, stop: Arc<AtomicBool>) -> Self {
        let cores = Cores::of(&process::allowed_cores().unwrap_or_default());
        let on_terminal = io::stderr().is_terminal();
        Self { quick, rounds: rounds(quick), cores, stop, started: now(), steps, done: 0, on_terminal }
    }

    /// How long a measurement takes that takes so many milliseconds in the long run, or in the short one.
    pub(super) fn span(&self, full_ms: u64, quick_ms: u64) -> Duration {
        Duration::from_millis(if self.quick { quick_ms } else { full_ms })
    }

    /// Tells what comes next.
    ///
    /// # Errors
    ///
    /// When it is not to come, since somebody has interrupted.
    pub(super) fn step(&mut self, what: &str) -> Result<(), Stop> {
        if self.stop.load(Relaxed) {
            return Err(Stop::Interrupted);
        }
        let elapsed = now().saturating_duration_since(self.started);
        let line = progress(self.done, self.steps, elapsed, what);
        self.done += 1;
        // Who reads no progress needs none.
        let _ = match self.on_terminal {
            true => write!(io::stderr(), "\r\x1b[2K{line}"),
            false => writeln!(io::stderr(), "{line}"),
        };
        Ok(())
    }

    /// Ends the bar.
    pub(super) fn end(&self) {
        if self.on_terminal {
            let _ = write!(io::stderr(), "\r\x1b[2K");
        }
    }

    /// Whether a load that runs is to go on.
    pub(super) fn flow(&self) -> ControlFlow<()> {
        if self.stop.load(Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Runs `work`, whose threads stay on the server's core.
    pub(super) fn on_server_core<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Stop> {
        on_core(self.cores.server, work)
    }
}

/// How many rounds there are.
pub(super) const fn rounds(quick: bool) -> usize {
    if quick { 1 } else { 3 }
}

/// Runs `work` on a thread of this core; what it starts inherits that.
pub(super) fn on_core<T: Send>(core: Option<usize>, work: impl FnOnce() -> T + Send) -> Result<T, Stop> {
    let pinned = || {
        core.map_or(Ok(()), process::pin_current_thread)?;
        Ok::<_, io::Error>(work())
    };
    thread::scope(|scope| match scope.spawn(pinned).join() {
        Ok(result) => result.map_err(|error| Stop::failed("cannot use the core", error)),
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// A line of progress: a bar, what comes next, how long the rest will take if it goes on like this.
fn progress(done: usize, steps: usize, elapsed: Duration, what: &str) -> String {
    let share = (done as f64 / steps.max(1) as f64).min(1.0);
    let full = (share * BAR as f64) as usize;
    let bar = format!("{}{}", "█".repeat(full), "░".repeat(BAR - full));
    let left = match done {
        0 => String::new(),
        _ => {
            let seconds = elapsed.as_secs_f64() * (1.0 - share) / share;
            format!(", about {:.0}:{:02.0} left", (seconds / 60.0).floor(), seconds % 60.0)
        }
    };
    format!("{bar} {:3.0} %{left}  {what}", share * 100.0)
}

/// The threads of this process whose names begin so.
pub(super) fn threads_named(prefix: &str) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else { return Vec::new() };
    let named = tasks.flatten().filter(|task| {
        fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end().starts_with(prefix))
    });
    named.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// The threads of that name that are new since `before`: so many. A thread takes its name when it begins, which may be after
/// whoever started it has gone on.
pub(super) fn threads_since(before: &[i32], prefix: &str, count: usize) -> Result<Vec<i32>, Stop> {
    let patience = now() + Duration::from_secs(1);
    loop {
        let all = threads_named(prefix).into_iter();
        let threads: Vec<i32> = all.filter(|thread| !before.contains(thread)).collect();
        if threads.len() == count {
            return Ok(threads);
        }
        if now() >= patience {
            let found = format!("{} of {count} threads are called {prefix}", threads.len());
            return Err(Stop::failed("cannot tell whose CPU time is the server's", found));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The CPU time of these threads together.
pub(super) fn cpu_of(threads: &[i32]) -> Duration {
    threads.iter().filter_map(|thread| clock::cpu_time_of_thread(*thread).ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_shares_its_core_with_nobody_where_there_are_two() {
        let two = Cores::of(&[3, 5]);
        assert_eq!((two.server, two.load, two.upstream), (Some(3), Some(5), Some(5)));
        assert!(two.words().contains("core 3 alone; load and upstreams share core 5"));
        let four = Cores::of(&[0, 1, 2, 3]);
        assert_eq!((four.server, four.load, four.upstream), (Some(0), Some(1), Some(2)));
        assert_eq!(Cores::of(&[0]).server, None);
        assert!(Cores::of(&[0]).words().contains("share one core"));
    }

    #[test]
    fn progress_tells_how_far_it_is_and_how_long_it_will_take() {
        let start = progress(0, 10, Duration::ZERO, "000");
        assert!(start.contains("  0 %  000") && !start.contains("left"), "{start}");
        let half = progress(5, 10, Duration::from_secs(65), "next");
        assert!(half.contains(" 50 %, about 1:05 left  next"), "{half}");
        assert_eq!(half.matches('█').count(), BAR / 2);
        assert!(progress(12, 10, Duration::from_secs(9), "late").contains("100 %"));
    }

    #[test]
    fn nothing_more_is_begun_after_an_interruption() {
        let stop = Arc::new(AtomicBool::new(false));
        let mut stage = Stage::new(true, 2, Arc::clone(&stop));
        assert_eq!(stage.step("one"), Ok(()));
        assert!(stage.flow().is_continue());
        stop.store(true, Relaxed);
        assert_eq!(stage.step("two"), Err(Stop::Interrupted));
        assert!(stage.flow().is_break());
    }

    #[test]
    fn the_cpu_time_of_a_thread_is_its_own() {
        let (send, receive) = std::sync::mpsc::channel::<()>();
        let busy = thread::Builder::new()
            .name("seed-busy".into())
            .spawn(move || {
                let until = now() + Duration::from_millis(50);
                while now() < until {}
                let _ = receive.recv();
            })
            .unwrap();
        thread::sleep(Duration::from_millis(80));
        let threads = threads_since(&[], "seed-busy", 1).unwrap();
        let none = threads_since(&threads, "seed-busy", 1).unwrap_err().to_string();
        assert!(none.ends_with("0 of 1 threads are called seed-busy"), "{none}");
        let cpu = cpu_of(&threads);
        assert!(cpu > Duration::from_millis(1) && cpu < Duration::from_secs(5), "{cpu:?}");
        drop(send);
        busy.join().unwrap();
        assert_eq!(cpu_of(&threads), Duration::ZERO, "it is gone");
    }
}

//! Profiles of this process: where its CPU time goes, and who holds its memory.
//!
//! ```text
//! forebay::sys::sample ──registers, stacks──▶ Modules::walk ──addresses──▶ Stacks ──▶ Symbols ──▶ pprof │ flame
//! ```
//!
//! Nothing of this exists until somebody asks for a profile: then one thread takes samples, walks the copied stacks by
//! the tables that unwinding needs anyway (`.eh_frame`), so that no build needs frame pointers, and ends. Names and lines
//! are looked up when sampling is over.

mod flame;
pub(crate) mod heap;
mod modules;
mod pprof;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use forebay::sys::now;
use forebay::sys::sample::Sampler;

use self::modules::{Modules, Symbols};

/// How often samples are drained and new threads looked for. The sampler has places for several times that.
const DRAINED_EVERY: Duration = Duration::from_millis(10);

/// What a profile is to be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// For how long samples are taken.
    pub(crate) duration: Duration,
    /// Samples of each thread per second of its CPU time.
    pub(crate) hz: u32,
}

/// Stacks, and how often each was seen.
#[derive(Debug)]
pub(crate) struct Profile {
    stacks: Stacks,
    modules: Modules,
    hz: u32,
    began: SystemTime,
    duration: Duration,
    /// Periods whose samples found no place.
    lost: u64,
}

/// Counts by thread's name and addresses, innermost first.
type Stacks = BTreeMap<(String, Vec<u64>), i64>;

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// Whoever asked has left.
    #[error("whoever asked has left")]
    Left,
    /// This system does not let a process look at itself.
    #[error("no samples can be taken: {0}")]
    Sample(#[source] io::Error),
    /// Its own code cannot be found.
    #[error("the code of this process cannot be read: {0}")]
    Code(#[source] io::Error),
}

impl Profile {
    /// Takes samples for as long as `order` says, or until nobody is `wanted` any more. Blocks the thread.
    pub(crate) fn take(order: Order, is_wanted: impl Fn() -> bool) -> Result<Self, ProfileError> {
        let mut modules = Modules::of_this_process().map_err(ProfileError::Code)?;
        let mut sampler = Sampler::start(order.hz).map_err(ProfileError::Sample)?;
        let mut names = HashMap::new();
        let mut stacks = Stacks::new();
        let (began, started) = (wall_clock(), now());
        let mut elapsed = Duration::ZERO;
        while elapsed < order.duration {
            if !is_wanted() {
                return Err(ProfileError::Left);
            }
            sampler.watch_threads().map_err(ProfileError::Sample)?;
            std::thread::sleep(DRAINED_EVERY.min(order.duration - elapsed));
            sampler.drain(|sample| {
                let name = names.entry(sample.thread).or_insert_with(|| name_of(sample.thread)).clone();
                *stacks.entry((name, modules.walk(&sample))).or_default() += i64::from(sample.ticks);
            });
            elapsed = now().saturating_duration_since(started);
        }
        Ok(Self { stacks, modules, hz: order.hz, began, duration: elapsed, lost: sampler.lost() })
    }

    /// Returns the profile as `go tool pprof` reads it: a message of profile.proto, compressed with gzip.
    pub(crate) fn pprof(&self) -> Vec<u8> {
        pprof::encode(self)
    }

    /// Returns the share (0 to 1) of the CPU time of the threads whose names begin with `thread` that `is` says to be in:
    /// it is given the names of each stack's functions, innermost first. `None` without samples of such threads.
    pub(crate) fn share(&self, thread: &str, is: impl Fn(&[String]) -> bool) -> Option<f64> {
        let mut symbols = Symbols::new(&self.modules);
        let (mut inside, mut all) = (0, 0);
        for ((name, addresses), count) in &self.stacks {
            if name.starts_with(thread) {
                let places = addresses.iter().flat_map(|address| symbols.places(*address));
                let names: Vec<String> = places.map(|place| place.function).collect();
                all += count;
                inside += if is(&names) { *count } else { 0 };
            }
        }
        (all > 0).then(|| inside as f64 / all as f64)
    }

    /// Returns the profile as a picture in SVG, threads apart.
    pub(crate) fn flame_graph(&self) -> String {
        flame::draw(self)
    }
}

/// A thread's name, as far as it still lives.
fn name_of(thread: i32) -> String {
    fs::read_to_string(format!("/proc/self/task/{thread}/comm"))
        .map_or_else(|_| "ended".to_owned(), |name| name.trim_end().to_owned())
}

#[expect(clippy::disallowed_methods, reason = "a profile says when it was taken, for people")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests;

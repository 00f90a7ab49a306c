//! `forebay bench seeds`: the claims of the five documents that this project grew from, measured on this machine.
//!
//! ```text
//! seed000 … seed004 ──figures──▶ model (verdicts, targets) ──▶ render (text, Markdown) │ JSON │ html
//! ```
//!
//! Everything runs in this process, with embedded servers alone; CPU time is that of the server's threads, whose core
//! nobody else has where there are two. What was measured before an interruption or a failure is kept, and marked.

mod forecast;
mod forwarder;
mod html;
mod model;
mod render;
mod seed000;
mod seed001;
mod seed002;
mod seed003;
mod seed004;
mod stage;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use clap::ValueEnum;
use forebay::sys::process;
use tokio::runtime;

use self::model::{Report, Section};
use self::stage::{Stage, Stop, rounds};
use crate::failure::{Failure, say};
use crate::serve::{Ends, end_at_once};

/// The options of `bench seeds`.
#[derive(Debug, clap::Args)]
pub struct SeedsBenchArgs {
    /// Measure this seed alone; repeat for more [default: all].
    #[arg(long, value_name = "N")]
    pub only: Vec<SeedName>,
    /// A short run of about half a minute, whose figures are signs rather than figures.
    #[arg(long)]
    pub quick: bool,
    /// Report as JSON.
    #[arg(long, conflicts_with = "markdown")]
    pub json: bool,
    /// Report as Markdown.
    #[arg(long)]
    pub markdown: bool,
    /// Write the report with plots to this file too, as one page of HTML that needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

/// A document that this project grew from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeedName {
    /// A pool of ten in a DNS server.
    #[value(name = "000")]
    S000,
    /// A thousand users and three upstreams.
    #[value(name = "001")]
    S001,
    /// An actor, a mutex, and the order of connections.
    #[value(name = "002")]
    S002,
    /// Reuse in a TCP proxy.
    #[value(name = "003")]
    S003,
    /// Settings of gRPC.
    #[value(name = "004")]
    S004,
}

impl SeedName {
    fn number(self) -> &'static str {
        match self {
            Self::S000 => "000",
            Self::S001 => "001",
            Self::S002 => "002",
            Self::S003 => "003",
            Self::S004 => "004",
        }
    }

    fn steps(self, quick: bool) -> usize {
        match self {
            Self::S000 => seed000::steps(quick),
            Self::S001 => seed001::steps(),
            Self::S002 => seed002::steps(quick),
            Self::S003 => seed003::steps(quick),
            Self::S004 => seed004::steps(quick),
        }
    }

    fn measure(self, stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
        match self {
            Self::S000 => seed000::measure(stage, section),
            Self::S001 => seed001::measure(stage, section),
            Self::S002 => seed002::measure(stage, section),
            Self::S003 => seed003::measure(stage, section),
            Self::S004 => seed004::measure(stage, section),
        }
    }
}

/// Measures what was asked for, and reports it, whole or not.
pub(crate) fn run(args: &SeedsBenchArgs) -> Result<(), Failure> {
    let unwritable =
        |path: &PathBuf, error| Failure::wrong(format!("--html: cannot write {}: {error}", path.display()));
    if let Some(path) = &args.html {
        // Better now than after some minutes.
        fs::File::options().create(true).append(true).open(path).map_err(|error| unwritable(path, error))?;
    }
    // Without, measurements that need more say so themselves.
    let _ = process::raise_descriptor_limit();
    let report = measure(args, stop_by_signal()?);
    if let Some(path) = &args.html {
        fs::write(path, html::page(&report)).map_err(|error| unwritable(path, error))?;
    }
    if args.json {
        say(&serde_json::to_string_pretty(&report).expect("a report has nothing that JSON has not"));
    } else if args.markdown {
        say(render::markdown(&report).trim_end());
    } else {
        say(render::text(&report).trim_end());
    }
    eprintln!("verdicts: {}", render::summary(&report.seeds));
    match report.unfinished {
        None => Ok(()),
        Some(why) => Err(Failure::failed(format!("not all was measured: {why}"))),
    }
}

fn measure(args: &SeedsBenchArgs, stop: Arc<AtomicBool>) -> Report {
    let wanted = wanted(&args.only);
    let steps = wanted.iter().map(|seed| seed.steps(args.quick)).sum();
    let mut stage = Stage::new(args.quick, steps, stop);
    let mut report = Report {
        quick: args.quick,
        rounds: rounds(args.quick),
        layout: stage.cores.words(),
        seeds: Vec::new(),
        unfinished: None,
    };
    let mut unfinished = Vec::new();
    for seed in wanted {
        let mut section = Section { seed: seed.number(), ..Section::default() };
        let result = seed.measure(&mut stage, &mut section);
        if let Err(stop) = &result {
            section.unfinished = Some(stop.to_string());
            unfinished.push(format!("{}: {stop}", seed.number()));
        }
        report.seeds.push(section);
        if result == Err(Stop::Interrupted) {
            break;
        }
    }
    stage.end();
    report.unfinished = (!unfinished.is_empty()).then(|| unfinished.join("; "));
    report
}

/// What is to be measured, in order, each once.
fn wanted(only: &[SeedName]) -> Vec<SeedName> {
    let all = SeedName::value_variants().iter().copied();
    all.filter(|seed| only.is_empty() || only.contains(seed)).collect()
}

/// Returns what the first signal sets; the second ends the process.
fn stop_by_signal() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let cannot = |error| Failure::failed(format!("cannot take signals: {error}"));
    let runtime = runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let mut ends = {
        let _entered = runtime.enter();
        Ends::new()?
    };
    let own = Arc::clone(&stop);
    let watch = move || {
        runtime.block_on(async {
            ends.next().await;
            own.store(true, Relaxed);
            eprintln!("\nending: what was measured is reported; once more ends at once");
            let signal = ends.next().await;
            end_at_once(signal)
        })
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(watch).map_err(cannot)?;
    Ok(stop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_measured_in_order_and_each_once() {
        assert_eq!(wanted(&[]), SeedName::value_variants());
        assert_eq!(
            wanted(&[SeedName::S004, SeedName::S000, SeedName::S004]),
            [SeedName::S000, SeedName::S004]
        );
    }

    #[test]
    fn an_interrupted_run_keeps_the_seed_that_it_was_at_and_says_so() {
        let args = SeedsBenchArgs { only: Vec::new(), quick: true, json: false, markdown: false, html: None };
        let report = measure(&args, Arc::new(AtomicBool::new(true)));
        assert_eq!(report.seeds.len(), 1);
        assert_eq!(report.seeds[0].unfinished.as_deref(), Some("interrupted"));
        assert_eq!(report.unfinished.as_deref(), Some("000: interrupted"));
        assert!(render::text(&report).contains("NOT THE WHOLE"));
    }
}

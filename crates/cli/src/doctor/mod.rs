//! `forebay doctor`: what load this machine can carry, what breaks first, and the line that changes it. Changes nothing.
//!
//! `parse` reads texts, `facts` finds them below a root, `judge` says what they mean; this page reads the arguments.

mod facts;
mod judge;
pub(crate) mod parse;

use std::io;
use std::path::{Path, PathBuf};

use forebay::sys::clock;

use self::facts::Facts;
use self::judge::Report;
use crate::args::refused_options;
use crate::failure::{Failure, say};
use crate::remote::{self, Remote, samples};

/// The options of `doctor`.
#[derive(Clone, Debug, clap::Args)]
#[command(args = refused_options())]
pub struct DoctorArgs {
    /// Judge what a running forebay has counted too: its admin endpoint.
    #[arg(long, value_name = "URL")]
    pub from: Option<String>,
    /// Read /proc, /sys and /etc below this folder: a copy of another machine's.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The help that stands after the options.
pub(crate) const EXAMPLES: &str = "\
Examples:
  forebay doctor
  sudo forebay doctor                                descriptors of all processes are seen
  forebay doctor --from http://127.0.0.1:9053        with the counters of a running forebay
  forebay doctor --json | jq '.findings[] | select(.state != \"ok\")'

It reads files and asks the kernel; it changes nothing, and ends with 0 whatever it finds.";

/// Looks, and says what it found.
pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let running = match &args.from {
        Some(url) => {
            let remote: Remote = url.parse().map_err(|error| Failure::wrong(format!("--from: {error}")))?;
            let text = remote
                .get("/metrics", remote::token(None)?.as_deref())
                .map_err(|trouble| Failure::failed(format!("--from: {remote} {trouble}")))?;
            let samples = samples(&text);
            if !samples.iter().any(|sample| sample.name == "forebay_build_info") {
                return Err(Failure::failed(format!(
                    "--from: {remote} is no forebay: its /metrics are those of another"
                )));
            }
            Some(samples)
        }
        None => None,
    };
    if !args.root.is_dir() {
        return Err(Failure::wrong(format!("--root: {} is no folder", args.root.display())));
    }
    // Only this machine's own clock can be asked.
    let is_synchronised = if args.root == Path::new("/") {
        clock::is_synchronised()
    } else {
        Err(io::Error::new(io::ErrorKind::Unsupported, "it is another machine's"))
    };
    let report = Report::new(Facts::read(&args.root, is_synchronised), running.as_deref());
    if args.json {
        say(&serde_json::to_string_pretty(&report).expect("a report has nothing that JSON has not"));
    } else {
        say(&report.to_string());
    }
    Ok(())
}

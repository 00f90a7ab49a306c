//! `forebay bench compare`: two sides' reports from files, or from commands that it runs in turn.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use forebay::sys::process;
use forebay::units::Span;
use forebay_bench::compare::{Comparison, Reading, Side, compare, read};
use tokio::runtime;
use tokio::time::sleep;

use crate::args::refused_options;
use crate::bench::say_report;
use crate::failure::Failure;
use crate::serve::Ends;

/// The options of `bench compare`.
#[derive(Debug, clap::Args)]
#[command(args = refused_options())]
pub struct CompareArgs {
    /// A report of side A and one of side B, as `forebay bench … --json` wrote them; a file may have several.
    #[arg(value_names = ["A.json", "B.json"], num_args = 2, conflicts_with_all = ["run", "a", "b"])]
    pub files: Vec<PathBuf>,
    /// A report of side A; repeat for more.
    #[arg(long, value_name = "FILE", requires = "b", conflicts_with = "run")]
    pub a: Vec<PathBuf>,
    /// A report of side B; repeat for more.
    #[arg(long, value_name = "FILE", requires = "a", conflicts_with = "run")]
    pub b: Vec<PathBuf>,
    /// A command that prints a report as JSON, for /bin/sh; twice: the first is side A, the second side B. They run in
    /// turn, and who is first changes with each round.
    #[arg(long, value_name = "COMMAND")]
    pub run: Vec<String>,
    /// How often each command runs [default: 7].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: Option<u32>,
    /// When one run of a command has failed [default: 10m].
    #[arg(long, value_name = "TIME")]
    pub limit: Option<Span>,
    /// Where the intervals' random draws begin: the same reports and seed give the same intervals.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Report as JSON, with every value of every run.
    #[arg(long)]
    pub json: bool,
}

/// How often each command runs when nothing is said: enough for p = 0.0006 when all of a side is ahead.
const ROUNDS: u32 = 7;

/// How long one run may take when nothing is said.
const LIMIT: Duration = Duration::from_secs(600);

/// How often it is looked after whether a command has ended. Not while it is measured: it does not run here.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long what a command has written is waited for when it has ended: something that it started may hold on to it.
const OUTPUT_MAX: Duration = Duration::from_secs(2);

/// The most that a command may write, in bytes: a report has a few thousand.
const OUTPUT_BYTES_MAX: u64 = 16 << 20;

pub(crate) fn run(args: &CompareArgs) -> Result<(), Failure> {
    if args.run.is_empty() && (args.rounds.is_some() || args.limit.is_some()) {
        return Err(Failure::wrong("--rounds and --limit are for commands: write --run for each side"));
    }
    match (&args.run[..], &args.files[..]) {
        ([], [a, b]) => of_files(args, std::slice::from_ref(a), std::slice::from_ref(b)),
        ([], _) if !args.a.is_empty() => of_files(args, &args.a, &args.b),
        ([a, b], _) => of_commands(args, [a, b]),
        ([], _) => Err(Failure::wrong(
            "nothing to compare: name two reports (forebay bench compare A.json B.json), or two commands (--run … --run …)",
        )),
        (commands, _) => Err(Failure::wrong(format!(
            "--run: {} given, and a comparison has two sides: write it twice",
            commands.len()
        ))),
    }
}

fn of_files(args: &CompareArgs, a: &[PathBuf], b: &[PathBuf]) -> Result<(), Failure> {
    let (a, b) = (side(a)?, side(b)?);
    let found = compare(&a, &b, args.seed).map_err(|error| Failure::failed(error.to_string()))?;
    say_report(&found, args.json);
    Ok(())
}

fn side(files: &[PathBuf]) -> Result<Side, Failure> {
    let mut readings = Vec::new();
    for file in files {
        let name = file.display().to_string();
        let text = fs::read_to_string(file)
            .map_err(|error| Failure::wrong(format!("cannot read {name}: {error}")))?;
        readings.extend(read(&name, &text).map_err(|error| Failure::wrong(error.to_string()))?);
    }
    let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    Ok(Side { name: names.join(", "), readings })
}

/// Runs both commands in turn until all rounds are over or one has failed, and compares what there is by then.
fn of_commands(args: &CompareArgs, commands: [&String; 2]) -> Result<(), Failure> {
    let rounds = args.rounds.unwrap_or(ROUNDS);
    let limit = args.limit.map_or(LIMIT, |limit| limit.0);
    let mut sides = commands.map(|command| Side { name: command.clone(), readings: Vec::new() });
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let trouble = runtime.block_on(async {
        let mut ends = Ends::new()?;
        for (round, number) in turns(rounds) {
            let name = format!("{} round {round}", LETTERS[number]);
            eprintln!("{name} of {rounds}: {}", commands[number]);
            match report(&name, commands[number], limit, &mut ends).await {
                Ok(reading) => sides[number].readings.push(reading),
                Err(trouble) => return Ok(Some(trouble)),
            }
            // What half ran is a reading too, and the next would be another half.
            if let Some(partial) = sides[number].readings.last().and_then(|reading| reading.partial.as_ref())
            {
                return Ok(Some(format!("{name}: {partial}")));
            }
        }
        Ok::<_, Failure>(None)
    })?;
    let [a, b] = &sides;
    match (compare(a, b, args.seed), trouble) {
        (Ok(found), None) => {
            say_report(&found, args.json);
            Ok(())
        }
        (Ok(mut found), Some(trouble)) => {
            mark(&mut found, rounds, &trouble);
            say_report(&found, args.json);
            Err(Failure::failed(format!("the comparison ended early: {trouble}")))
        }
        (Err(_), Some(trouble)) => Err(Failure::failed(format!("nothing could be compared: {trouble}"))),
        (Err(error), None) => Err(Failure::failed(error.to_string())),
    }
}

/// What the sides are called.
const LETTERS: [char; 2] = ['A', 'B'];

/// Says of a comparison that it is of fewer rounds than were wanted.
fn mark(found: &mut Comparison, rounds: u32, trouble: &str) {
    found.partial =
        Some(format!("{} and {} of {rounds} rounds: {trouble}", found.a.reports, found.b.reports));
}

/// In which order sides run: round and side. Who is first changes, so that what drifts hurts both alike.
fn turns(rounds: u32) -> impl Iterator<Item = (u32, usize)> {
    (1..=rounds).flat_map(|round| {
        let first = usize::from(round % 2 == 0);
        [(round, first), (round, 1 - first)]
    })
}

/// Runs a command once, and reads its report.
async fn report(name: &str, command: &str, limit: Duration, ends: &mut Ends) -> Result<Reading, String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // What the command starts ends with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{name}: cannot run /bin/sh: {error}"))?;
    let output = drain(child.stdout.take());
    let errors = drain(child.stderr.take());
    let status = watch(&mut child, limit, ends).await.map_err(|why| format!("{name}: {why}"))?;
    let text = output.recv_timeout(OUTPUT_MAX).unwrap_or_default();
    let errors = errors.recv_timeout(OUTPUT_MAX).unwrap_or_default();
    let last = errors.trim().lines().last().map_or_else(String::new, |line| format!(": {line}"));
    let failed = || format!("{name}: `{command}` ended with {status}{last}");
    let mut readings = match read(name, &text) {
        Ok(readings) => readings,
        Err(_) if !status.success() => return Err(failed()),
        Err(error) => return Err(format!("{error}: `{command}` should print one report as JSON")),
    };
    match readings.pop() {
        Some(reading) if readings.is_empty() && (status.success() || reading.partial.is_some()) => {
            Ok(reading)
        }
        Some(_) if readings.is_empty() => Err(failed()),
        _ => Err(format!("{name}: `{command}` printed several reports, and should print one")),
    }
}

/// Waits for the end of a command, and ends it if it takes too long or somebody wants no more.
async fn watch(child: &mut Child, limit: Duration, ends: &mut Ends) -> Result<ExitStatus, String> {
    let began = Instant::now();
    let why = loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if began.elapsed() > limit => break format!("it took longer than {limit:?} (--limit)"),
            Ok(None) => {}
            Err(error) => break format!("cannot wait for it: {error}"),
        }
        tokio::select! {
            () = sleep(LOOK_EVERY) => {}
            signal = ends.next() => break format!("{signal} ended it"),
        }
    };
    // Gone already is as good.
    let _ = process::end_group(child.id());
    let _ = child.wait();
    Err(why)
}

/// Reads all that a command writes, on a thread, so that it never waits for us.
fn drain(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (to, text) = mpsc::channel();
    if let Some(from) = from {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What came until an error is what there is.
            let _ = from.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
            let _ = to.send(String::from_utf8_lossy(&bytes).into_owned());
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_first_changes_with_each_round() {
        let turns: Vec<_> = turns(3).collect();
        assert_eq!(turns, [(1, 0), (1, 1), (2, 1), (2, 0), (3, 0), (3, 1)]);
    }

    #[test]
    fn a_commands_words_are_read_to_their_end() {
        let long = "x".repeat(300_000);
        let text = drain(Some(std::io::Cursor::new(long.clone()))).recv_timeout(OUTPUT_MAX).unwrap();
        assert_eq!(text, long);
    }
}

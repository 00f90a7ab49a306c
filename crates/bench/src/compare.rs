//! Whether one side is really faster than another: reports of two sides in, a verdict for every figure out. Pure.
//!
//! A figure differs when both say so: the Mann–Whitney U test (p below 5 %), and the bootstrap interval of the ratio of
//! the medians (95 %), which must leave 1 out. Everything else is "no difference shown", which is not "no difference".
//!
//! ```text
//! text of a file ─▶ read() ─▶ Reading ─┐
//!                                      ├─▶ Side ─▶ compare() ─▶ Comparison
//! output of a command ─▶ read() ─▶ … ──┘
//! ```

mod read;
pub mod stats;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

pub use self::read::{Kind, Reading, read};

/// How many draws an interval is made of.
const RESAMPLES: usize = 10_000;

/// How much of all draws an interval has.
const CONFIDENCE: f64 = 0.95;

/// A difference is called one when it would come by chance less often than this.
const P_MAX: f64 = 0.05;

/// Less rounds a side cannot reach `P_MAX`, however clear they are: of four and four, 2 orders of 70 are so clear.
pub const ROUNDS_MIN: usize = 4;

/// A figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// Answers a second.
    Rate,
    /// The mean latency, in microseconds.
    Mean,
    /// The median latency, in microseconds.
    P50,
    /// The latency that 90 % keep, in microseconds.
    P90,
    /// That 99 % keep.
    P99,
    /// That 99.9 % keep.
    P999,
    /// CPU time of the server for each answer, in microseconds.
    ServerCpu,
    /// CPU time of the generator for each answer, in microseconds.
    GeneratorCpu,
}

impl Figure {
    /// Every figure, in the order in which they are shown.
    pub const ALL: [Self; 8] = [
        Self::Rate,
        Self::Mean,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::P999,
        Self::ServerCpu,
        Self::GeneratorCpu,
    ];

    /// Returns its name, as it is shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::ServerCpu => "server CPU",
            Self::GeneratorCpu => "generator CPU",
        }
    }

    fn spelled(self, value: f64) -> String {
        match self {
            Self::Rate => format!("{value:.0}/s"),
            Self::ServerCpu | Self::GeneratorCpu => format!("{value:.2} µs"),
            _ => crate::dns::spelled(value),
        }
    }
}

/// What the reports say of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// B is better: more answers a second, or less time.
    Faster,
    /// B is worse.
    Slower,
    /// There may be none, or it is too small for so many rounds.
    NoDifferenceShown,
    /// Both were paced alike, so that their rates say nothing of speed.
    Paced,
}

impl Verdict {
    /// Returns it in words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Faster => "B faster",
            Self::Slower => "B slower",
            Self::NoDifferenceShown => "no difference shown",
            Self::Paced => "paced: no speed",
        }
    }
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub struct Side {
    /// What it is called: files or a command.
    pub name: String,
    /// Its reports, each of one run of the same load.
    pub readings: Vec<Reading>,
}

/// Why reports cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// A text is no JSON.
    #[error("{name} is damaged: {problem}")]
    Damaged {
        /// Where it is from.
        name: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// A text is JSON, and no report of one load.
    #[error(
        "{name} is no report to compare: {problem}; `forebay bench dns|tcp|http|grpc … --json` writes one"
    )]
    Foreign {
        /// Where it is from.
        name: String,
        /// What it is instead, or what it lacks.
        problem: String,
    },
    /// Reports are of different kinds of load.
    #[error("these are different kinds of load, which say nothing of each other: {one}, but {other}")]
    Mixed {
        /// One of them.
        one: String,
        /// The other.
        other: String,
    },
    /// A side has no whole report.
    #[error("nothing to compare: {side} ({name}) has no whole report{why}")]
    Nothing {
        /// `A` or `B`.
        side: char,
        /// What it is called.
        name: String,
        /// Why those that it has are no use.
        why: String,
    },
}

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// What kind of load it was.
    pub kind: Kind,
    /// The side that is compared with.
    pub a: SideSummary,
    /// The side that is judged.
    pub b: SideSummary,
    /// One for each figure that all reports have.
    pub figures: Vec<Row>,
    /// In what the two loads differ, beside where they went.
    pub differences: Vec<String>,
    /// What else is to be known.
    pub notes: Vec<String>,
    /// Why this is of less than was wanted. `None`: it is of all.
    pub partial: Option<String>,
}

/// What is known of a side beside its figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SideSummary {
    /// What it is called.
    pub name: String,
    /// How many reports its figures are of.
    pub reports: usize,
    /// Share of requests without an answer, or with a wrong one (0 to 1), over all of them.
    pub failed_share: f64,
    /// In how many reports the generator was the limit.
    pub generator_limited: usize,
    /// Reports that were left out, and why.
    pub left_out: Vec<String>,
}

/// One figure of both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which.
    pub figure: Figure,
    /// The median of A's reports.
    pub a: f64,
    /// The median of B's reports.
    pub b: f64,
    /// B over A. `None` when one of them is nothing.
    pub ratio: Option<f64>,
    /// Between what the ratio may lie, at 95 %. `None` with less than two reports a side.
    #[serde(serialize_with = "as_ends")]
    pub interval: Option<(f64, f64)>,
    /// How probable so large a difference would be by chance (Mann–Whitney, two-sided).
    pub p: f64,
    /// What that says.
    pub verdict: Verdict,
    /// A's values, in the order of its reports.
    pub a_values: Vec<f64>,
    /// B's values, in the order of its reports.
    pub b_values: Vec<f64>,
}

/// Compares two sides. The same `seed` gives the same intervals.
///
/// # Errors
///
/// When a side has no whole report, or reports are of different kinds of load.
pub fn compare(a: &Side, b: &Side, seed: u64) -> Result<Comparison, CompareError> {
    alike(a, b)?;
    let (whole_a, whole_b) = (whole('A', a)?, whole('B', b)?);
    let paced = whole_a[0].paced.is_some();
    let figures: Vec<Row> =
        Figure::ALL.into_iter().filter_map(|figure| row(figure, &whole_a, &whole_b, paced, seed)).collect();
    let mut notes = Vec::new();
    let least = whole_a.len().min(whole_b.len());
    if least < ROUNDS_MIN {
        notes.push(format!(
            "{least} report{} of a side cannot show a difference, however clear it is: take {ROUNDS_MIN} or more, \
             better 7",
            if least == 1 { "" } else { "s" }
        ));
    }
    for (letter, readings) in [('A', &whole_a), ('B', &whole_b)] {
        let limited = readings.iter().filter_map(|one| one.generator_limit.as_ref());
        if let Some(why) = limited.clone().next() {
            notes.push(format!(
                "{letter} was limited by the generator in {} of {} reports, so that the server may be faster: {why}",
                limited.count(),
                readings.len()
            ));
        }
    }
    let (a_summary, b_summary) = (summary(a, &whole_a), summary(b, &whole_b));
    let (one, other) = (a_summary.failed_share, b_summary.failed_share);
    if (one - other).abs() > 0.001 {
        notes.push(format!(
            "{:.2} % of A's and {:.2} % of B's requests failed: who answers less has less to do",
            one * 100.0,
            other * 100.0
        ));
    }
    let left_out = a_summary.left_out.len() + b_summary.left_out.len();
    Ok(Comparison {
        kind: whole_a[0].kind,
        differences: differences(whole_a[0], whole_b[0]),
        figures,
        notes,
        partial: (left_out > 0)
            .then(|| format!("{left_out} of {} reports were left out", a.readings.len() + b.readings.len())),
        a: a_summary,
        b: b_summary,
    })
}

/// Refuses reports that are not of one kind of load, and of a side those that are not of one load.
fn alike(a: &Side, b: &Side) -> Result<(), CompareError> {
    let told = |reading: &Reading| match reading.paced {
        Some(rate) => format!("{} is {} at {rate}/s", reading.name, reading.kind.as_str()),
        None => format!("{} is {} as fast as answers come", reading.name, reading.kind.as_str()),
    };
    let mixed = |one, other| Err(CompareError::Mixed { one, other });
    let Some(first) = a.readings.first().or(b.readings.first()) else { return Ok(()) };
    for other in a.readings.iter().chain(&b.readings) {
        if (first.kind, first.paced) != (other.kind, other.paced) {
            return mixed(told(first), told(other));
        }
    }
    for side in [a, b] {
        for pair in side.readings.windows(2) {
            if let Some(difference) = differences(&pair[0], &pair[1]).into_iter().next() {
                let [one, other] = [&pair[0].name, &pair[1].name];
                return mixed(
                    format!("{one} and {other} should be runs of one load"),
                    format!("differ in {difference}"),
                );
            }
        }
    }
    Ok(())
}

fn whole(letter: char, side: &Side) -> Result<Vec<&Reading>, CompareError> {
    let whole: Vec<&Reading> = side.readings.iter().filter(|reading| reading.partial.is_none()).collect();
    if whole.is_empty() {
        let why = left_out(side).first().map_or_else(String::new, |why| format!(": {why}"));
        return Err(CompareError::Nothing { side: letter, name: side.name.clone(), why });
    }
    Ok(whole)
}

fn left_out(side: &Side) -> Vec<String> {
    let told = |reading: &Reading| Some(format!("{}: {}", reading.name, reading.partial.as_ref()?));
    side.readings.iter().filter_map(told).collect()
}

fn summary(side: &Side, whole: &[&Reading]) -> SideSummary {
    let sum = |of: fn(&Reading) -> u64| whole.iter().map(|reading| of(reading)).sum::<u64>() as f64;
    let (failed, all) = (sum(|one| one.failed), sum(|one| one.requests));
    SideSummary {
        name: side.name.clone(),
        reports: whole.len(),
        failed_share: if all > 0.0 { failed / all } else { 0.0 },
        generator_limited: whole.iter().filter(|one| one.generator_limit.is_some()).count(),
        left_out: left_out(side),
    }
}

/// Names every setting that differs, with both values.
fn differences(a: &Reading, b: &Reading) -> Vec<String> {
    let names: BTreeSet<&String> = a.settings.keys().chain(b.settings.keys()).collect();
    let value =
        |of: &Reading, name: &String| of.settings.get(name).cloned().unwrap_or_else(|| "none".to_owned());
    let differing = names.into_iter().filter(|name| a.settings.get(*name) != b.settings.get(*name));
    differing.map(|name| format!("{name}: {} and {}", value(a, name), value(b, name))).collect()
}

/// Compares one figure; `None` when a report lacks it.
fn row(figure: Figure, a: &[&Reading], b: &[&Reading], paced: bool, seed: u64) -> Option<Row> {
    let values = |of: &[&Reading]| -> Option<Vec<f64>> {
        of.iter().map(|reading| reading.figures.get(&figure).copied()).collect()
    };
    let (a_values, b_values) = (values(a)?, values(b)?);
    let test = stats::mann_whitney(&a_values, &b_values)?;
    let ratio = stats::ratio(&a_values, &b_values, CONFIDENCE, RESAMPLES, seed);
    let interval = ratio.and_then(|ratio| ratio.interval);
    let verdict = match (figure, interval) {
        (Figure::Rate, _) if paced => Verdict::Paced,
        (_, Some((low, high))) if test.p < P_MAX && (low > 1.0 || high < 1.0) => {
            if (low > 1.0) == (figure == Figure::Rate) { Verdict::Faster } else { Verdict::Slower }
        }
        _ => Verdict::NoDifferenceShown,
    };
    Some(Row {
        figure,
        a: stats::median(&a_values)?,
        b: stats::median(&b_values)?,
        ratio: ratio.map(|ratio| ratio.ratio),
        interval,
        p: test.p,
        verdict,
        a_values,
        b_values,
    })
}

/// Writes an interval as an object, so that nobody has to know which end comes first.
fn as_ends<S: Serializer>(interval: &Option<(f64, f64)>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Ends {
        low: f64,
        high: f64,
    }
    interval.map(|(low, high)| Ends { low, high }).serialize(to)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counted = |n: usize| if n == 1 { "1 report".to_owned() } else { format!("{n} reports") };
        writeln!(f, "load        {}", self.kind.as_str())?;
        writeln!(f, "A           {}, {}", self.a.name, counted(self.a.reports))?;
        writeln!(f, "B           {}, {}", self.b.name, counted(self.b.reports))?;
        for difference in &self.differences {
            writeln!(f, "differs     {difference}")?;
        }
        writeln!(f)?;
        let columns = ["A", "B", "B / A", "95 % interval", "p"];
        writeln!(
            f,
            "{:<14} {:>12} {:>12} {:>8}  {:<17} {:>7}  verdict",
            "", columns[0], columns[1], columns[2], columns[3], columns[4]
        )?;
        for row in &self.figures {
            let ratio = row.ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"));
            let interval =
                row.interval.map_or("–".to_owned(), |(low, high)| format!("{low:.3} to {high:.3}"));
            let p = if row.p < 0.0001 { "<0.0001".to_owned() } else { format!("{:.4}", row.p) };
            writeln!(
                f,
                "{:<14} {:>12} {:>12} {ratio:>8}  {interval:<17} {p:>7}  {}",
                row.figure.as_str(),
                row.figure.spelled(row.a),
                row.figure.spelled(row.b),
                row.verdict.as_str()
            )?;
        }
        writeln!(f)?;
        for note in &self.notes {
            writeln!(f, "note        {note}")?;
        }
        for (letter, side) in [('A', &self.a), ('B', &self.b)] {
            for left_out in &side.left_out {
                writeln!(f, "left out    {letter}: {left_out}")?;
            }
        }
        match &self.partial {
            Some(partial) => write!(f, "partial     {partial}"),
            None => write!(f, "rule        a difference is one with p < 0.05 and an interval without 1"),
        }
    }
}

#[cfg(test)]
mod tests;

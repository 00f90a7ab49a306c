//! A report as text, and as Markdown. Pure functions.

use std::fmt::Write;

use super::model::{Report, Section, Table, shown, times};

/// How wide text is.
const WIDTH: usize = 110;

/// The heads of the table of claims, in both forms.
const CLAIMS: [&str; 6] = ["claim", "what it compared", "measured here", "without", "with", "verdict"];

/// Writes a report for a terminal.
pub(crate) fn text(report: &Report) -> String {
    let mut out = String::new();
    for line in head(report) {
        wrapped(&mut out, "", &line);
    }
    for section in &report.seeds {
        let _ = write!(out, "\n{} {}\n", section.seed, section.title);
        out.push_str(&"─".repeat(WIDTH));
        out.push('\n');
        for claim in &section.claims {
            wrapped(&mut out, "", claim.says);
            wrapped(&mut out, "  it compared  ", claim.compared);
            wrapped(&mut out, "  here         ", &claim.here);
            let (without, with) = (shown(claim.without.as_ref()), shown(claim.with.as_ref()));
            let _ = writeln!(out, "  without      {without}   with  {with}   ratio  {}", ratio(claim.ratio));
            wrapped(&mut out, "  verdict      ", &claim.words);
            out.push('\n');
        }
        if !section.targets.is_empty() {
            out.push_str("targets\n");
            for target in &section.targets {
                let measured = shown(target.measured.as_ref());
                let line = format!("{}: {}, {measured}, {}", target.what, target.wanted(), target.words());
                wrapped(&mut out, "  ", &line);
            }
            out.push('\n');
        }
        for table in &section.tables {
            out.push_str(&columns(table));
            out.push('\n');
        }
        for note in &section.notes {
            wrapped(&mut out, "note  ", note);
        }
        if let Some(why) = &section.unfinished {
            wrapped(&mut out, "NOT THE WHOLE  ", why);
        }
    }
    if let Some(why) = &report.unfinished {
        let _ = write!(out, "\nNOT THE WHOLE  {why}\n");
    }
    out
}

/// Writes a report as Markdown.
pub(crate) fn markdown(report: &Report) -> String {
    let mut out = String::new();
    for line in head(report) {
        let _ = writeln!(out, "{line}");
    }
    for section in &report.seeds {
        let _ = write!(out, "\n## {} {}\n", section.seed, section.title);
        if let Some(why) = &section.unfinished {
            let _ = write!(out, "\n**Not the whole:** {}\n", cell(why));
        }
        if !section.claims.is_empty() {
            let _ = write!(out, "\n{}", row(&CLAIMS.map(str::to_owned)));
            let _ = writeln!(out, "{}|", "|---".repeat(CLAIMS.len()));
            for claim in &section.claims {
                out.push_str(&row(&[
                    claim.says.to_owned(),
                    claim.compared.to_owned(),
                    claim.here.clone(),
                    shown(claim.without.as_ref()),
                    shown(claim.with.as_ref()),
                    format!("**{}**", claim.words),
                ]));
            }
        }
        if !section.targets.is_empty() {
            out.push_str("\n| target | wanted | measured | outcome |\n|---|---|---|---|\n");
            for target in &section.targets {
                out.push_str(&row(&[
                    target.what.clone(),
                    target.wanted(),
                    shown(target.measured.as_ref()),
                    target.words(),
                ]));
            }
        }
        for table in &section.tables {
            let _ = write!(out, "\n{}\n\n", table.title);
            let heads: Vec<String> = table.columns.iter().map(|head| (*head).to_owned()).collect();
            out.push_str(&row(&heads));
            let _ = writeln!(out, "{}|", "|---".repeat(heads.len()));
            for cells in &table.rows {
                out.push_str(&row(cells));
            }
        }
        for note in &section.notes {
            let _ = write!(out, "\n{note}\n");
        }
    }
    if let Some(why) = &report.unfinished {
        let _ = write!(out, "\n**Not the whole:** {why}\n");
    }
    out
}

/// What stands above everything.
pub(super) fn head(report: &Report) -> Vec<String> {
    let rounds = match report.rounds {
        1 => "one round each, so that no spread is known".to_owned(),
        rounds => format!("medians of {rounds} interleaved rounds"),
    };
    let mut lines = vec![format!("The claims of the five seeds, measured on this machine; {rounds}.")];
    if report.quick {
        lines.push("A quick run: signs, not figures. Without --quick it takes some minutes.".to_owned());
    }
    lines.push(report.layout.clone());
    lines
}

/// A verdict's counts, for the end of a run.
pub(crate) fn summary(sections: &[Section]) -> String {
    let claims = sections.iter().flat_map(|section| &section.claims);
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for claim in claims {
        let word = claim.words.split([':', ',']).next().unwrap_or_default();
        match counts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    counts.iter().map(|(word, count)| format!("{count} {word}")).collect::<Vec<_>>().join(", ")
}

pub(super) fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "–".to_owned(), times)
}

/// Breaks a text at spaces; further lines stand below where the first one begins.
fn wrapped(out: &mut String, label: &str, text: &str) {
    let indent = label.chars().count();
    let mut at = indent;
    out.push_str(label);
    for (number, word) in text.split_ascii_whitespace().enumerate() {
        let length = word.chars().count();
        if number > 0 && at + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(&" ".repeat(indent));
            at = indent;
        } else if number > 0 {
            out.push(' ');
            at += 1;
        }
        out.push_str(word);
        at += length;
    }
    out.push('\n');
}

/// A table in columns as wide as they need: the first to the left, others to the right.
fn columns(table: &Table) -> String {
    let heads: Vec<String> = table.columns.iter().map(|head| (*head).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&heads).chain(&table.rows).collect();
    let width = |column: usize| {
        all.iter().filter_map(|cells| cells.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut out = String::new();
    wrapped(&mut out, "", &table.title);
    for cells in all {
        out.push(' ');
        for (column, cell) in cells.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or_default();
            let _ = match column {
                0 => write!(out, " {cell:<width$}"),
                _ => write!(out, "  {cell:>width$}"),
            };
        }
        while out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
    }
    out
}

fn row(cells: &[String]) -> String {
    let cells: Vec<_> = cells.iter().map(|text| cell(text)).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::model::{Axis, Better, Bound, Figure, Plot, Said, Scale, Series, Target, Unit};
    use super::*;

    /// A report with one of everything.
    pub(in super::super) fn sample() -> Report {
        let said = Said {
            says: "33 times <slower> | than before",
            claimed: Some(1.0 / 33.0),
            compared: "two runs with different hit rates",
            here: "the same hit rate".to_owned(),
            better: Better::More,
        };
        let rate = |value| Figure::once(Unit::PerSecond, value);
        let curve = Series { name: "ours & theirs".into(), points: vec![(0.5, 100.0), (0.99, 900.0)] };
        let plot = Plot {
            title: "Latency".into(),
            x: Axis { label: "share of queries", scale: Scale::Nines },
            y: Axis { label: "µs", scale: Scale::Log },
            series: vec![curve],
        };
        let section = Section {
            seed: "000",
            title: "A pool of ten",
            claims: vec![said.judge(rate(30_000.0), rate(10_000.0))],
            targets: vec![Target::new("QPS", Bound::AtLeast, 1e5, rate(9e4), "the core is full")],
            tables: vec![Table {
                title: "Six pools".into(),
                columns: vec!["pool", "QPS"],
                rows: vec![vec!["default".into(), "90,000/s".into()], vec!["off".into(), "1/s".into()]],
            }],
            plots: vec![plot],
            notes: vec!["A note.".into()],
            unfinished: Some("interrupted before the profile".into()),
        };
        Report {
            quick: true,
            rounds: 1,
            layout: "The server has core 0.".into(),
            seeds: vec![section],
            unfinished: Some("interrupted".into()),
        }
    }

    #[test]
    fn both_forms_have_claim_comparison_figures_ratio_and_verdict() {
        let report = sample();
        for out in [text(&report), markdown(&report)] {
            for part in [
                "two runs with different hit rates",
                "the same hit rate",
                "30,000/s",
                "10,000/s",
                "smaller: × 0.333, claimed × 0.030",
                "≥ 100,000/s",
                "not reached: the core is full",
                "Six pools",
                "A note.",
                "signs, not figures",
                "The server has core 0.",
            ] {
                assert!(out.contains(part), "{part} is missing:\n{out}");
            }
        }
    }

    #[test]
    fn what_is_not_the_whole_is_marked_where_it_is_missing_and_at_the_end() {
        let report = sample();
        assert_eq!(text(&report).matches("NOT THE WHOLE").count(), 2);
        assert_eq!(markdown(&report).matches("**Not the whole:**").count(), 2);
        let whole = Report {
            unfinished: None,
            seeds: vec![Section { unfinished: None, ..report.seeds[0].clone() }],
            ..report
        };
        assert!(!text(&whole).contains("NOT THE WHOLE") && !markdown(&whole).contains("Not the whole"));
    }

    #[test]
    fn a_bar_in_a_text_does_not_split_a_cell_of_markdown() {
        let out = markdown(&sample());
        let line = out.lines().find(|line| line.contains("33 times")).unwrap();
        assert!(line.contains("\\|"), "{line}");
        assert_eq!(line.replace("\\|", "").matches('|').count(), CLAIMS.len() + 1);
    }

    #[test]
    fn lines_of_text_are_no_wider_than_a_terminal() {
        let mut report = sample();
        report.layout = "word ".repeat(100);
        assert!(text(&report).lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn the_columns_of_a_table_stand_below_each_other() {
        let out = columns(&sample().seeds[0].tables[0]);
        let lines: Vec<_> = out.lines().skip(1).map(|line| line.chars().count()).collect();
        assert_eq!(lines, [lines[0]; 3], "{out}");
    }

    #[test]
    fn verdicts_are_counted() {
        assert_eq!(summary(&sample().seeds), "1 smaller");
    }
}

//! What is reported: figures, claims that are judged by them, targets, tables and plots. Plain data; verdicts follow from
//! the figures and from what a seed claims, and from nothing else.

use serde::Serialize;

/// The share of a claimed effect from which a claim holds.
const HOLDS_FROM: f64 = 0.8;
/// Medians that are closer than this share show no difference, however narrow their rounds.
const NOISE: f64 = 0.05;

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// Whether it was the short run, whose figures are signs.
    pub(crate) quick: bool,
    /// Rounds of which medians were taken.
    pub(crate) rounds: usize,
    /// What ran on which cores.
    pub(crate) layout: String,
    /// The seeds, in their order.
    pub(crate) seeds: Vec<Section>,
    /// Why it is not the whole, if it is not.
    pub(crate) unfinished: Option<String>,
}

/// What one seed's claims came to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Section {
    /// Its number.
    pub(crate) seed: &'static str,
    /// What it is about.
    pub(crate) title: &'static str,
    /// Its claims.
    pub(crate) claims: Vec<Claim>,
    /// What it wanted to reach.
    pub(crate) targets: Vec<Target>,
    /// The figures behind them.
    pub(crate) tables: Vec<Table>,
    /// The same to look at.
    pub(crate) plots: Vec<Plot>,
    /// What else is to be said.
    pub(crate) notes: Vec<String>,
    /// Why it is not the whole, if it is not.
    pub(crate) unfinished: Option<String>,
}

/// In what a figure is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Things a second.
    PerSecond,
    /// Microseconds.
    Microseconds,
    /// A share, 0 to 1.
    Share,
    /// Things.
    Count,
    /// Bits.
    Bits,
}

impl Unit {
    /// Writes a value with its unit.
    pub(crate) fn write(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{}/s", grouped(value)),
            Self::Microseconds if value < 1.0 => format!("{:.0} ns", value * 1e3),
            Self::Microseconds if value < 1e3 => format!("{value:.1} µs"),
            Self::Microseconds => format!("{:.2} ms", value / 1e3),
            Self::Share => format!("{:.1} %", value * 100.0),
            Self::Count => grouped(value),
            Self::Bits => format!("{value:.1} bits"),
        }
    }
}

/// A whole number with its thousands apart.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 && digits != "0" { format!("-{text}") } else { text }
}

/// What several rounds came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// In what it is counted.
    pub(crate) unit: Unit,
    /// The middle one.
    pub(crate) median: f64,
    /// The least.
    pub(crate) low: f64,
    /// The most.
    pub(crate) high: f64,
    /// How many there were.
    pub(crate) rounds: usize,
}

impl Figure {
    /// Makes a figure of what rounds came to; `None` without rounds, and of what is no number.
    pub(crate) fn of(unit: Unit, rounds: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = rounds.into_iter().filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        Some(Self { unit, median: sorted[sorted.len() / 2], low, high, rounds: sorted.len() })
    }

    /// Makes a figure of what was counted once.
    pub(crate) fn once(unit: Unit, value: f64) -> Option<Self> {
        Self::of(unit, [value])
    }

    /// Whether the rounds of both overlap, or their medians are as good as the same.
    fn is_near(&self, other: &Self) -> bool {
        let apart = (self.median - other.median).abs();
        let overlap = self.low <= other.high && other.low <= self.high && self.rounds + other.rounds > 2;
        overlap || apart <= NOISE * self.median.abs().max(other.median.abs())
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.unit.write(self.median))
    }
}

/// Writes a figure that may be missing.
pub(crate) fn shown(figure: Option<&Figure>) -> String {
    figure.map_or_else(|| "–".to_owned(), Figure::to_string)
}

/// Which way a figure is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    /// The more of it.
    More,
    /// The less of it.
    Less,
}

/// What a claim came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As much as claimed, or more.
    Holds,
    /// In the right direction, by much less than claimed.
    Smaller,
    /// No number was claimed, or that both are as good; with is better than without.
    Better,
    /// No number was claimed, or that both are as good; with is worse than without.
    Worse,
    /// Neither is shown to be better.
    NoDifference,
    /// The opposite of what was claimed.
    Reversed,
    /// There are no figures.
    NotMeasured,
}

/// What a seed says, before it is judged.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    /// What it says, with its own numbers.
    pub(crate) says: &'static str,
    /// How many times as good it says that it makes things; below one is worse. `None`: it gives no number that can be
    /// compared.
    pub(crate) claimed: Option<f64>,
    /// What it compared to come to that.
    pub(crate) compared: &'static str,
    /// What is compared here.
    pub(crate) here: String,
    /// Which way is better.
    pub(crate) better: Better,
}

/// A claim that was judged.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Claim {
    pub(crate) says: &'static str,
    pub(crate) claimed: Option<f64>,
    pub(crate) compared: &'static str,
    pub(crate) here: String,
    pub(crate) better: Better,
    pub(crate) without: Option<Figure>,
    pub(crate) with: Option<Figure>,
    /// How many times as good `with` is as `without`.
    pub(crate) ratio: Option<f64>,
    pub(crate) verdict: Verdict,
    /// The verdict for people.
    pub(crate) words: String,
}

impl Said {
    /// Judges what was said by two figures.
    pub(crate) fn judge(self, without: Option<Figure>, with: Option<Figure>) -> Claim {
        let Self { says, claimed, compared, here, better } = self;
        let ratio = ratio(better, without.as_ref(), with.as_ref());
        let verdict = verdict(claimed, better, without.as_ref(), with.as_ref());
        let words = words(verdict, ratio, claimed);
        Claim { says, claimed, compared, here, better, without, with, ratio, verdict, words }
    }
}

/// How many times as good `with` is; `None` where one is missing or nothing, so that no number tells.
pub(crate) fn ratio(better: Better, without: Option<&Figure>, with: Option<&Figure>) -> Option<f64> {
    let (without, with) = (without?.median, with?.median);
    let (more, less) = match better {
        Better::More => (with, without),
        Better::Less => (without, with),
    };
    (less > 0.0).then(|| more / less)
}

/// Judges two figures by what was claimed of them.
pub(crate) fn verdict(
    claimed: Option<f64>,
    better: Better,
    without: Option<&Figure>,
    with: Option<&Figure>,
) -> Verdict {
    let (Some(without), Some(with)) = (without, with) else { return Verdict::NotMeasured };
    // To be as good as before may be all that was claimed.
    let claims_no_more = claimed.is_some_and(|claimed| (claimed - 1.0).abs() <= NOISE);
    if without.is_near(with) {
        return if claims_no_more { Verdict::Holds } else { Verdict::NoDifference };
    }
    let is_better = match better {
        Better::More => with.median > without.median,
        Better::Less => with.median < without.median,
    };
    let claimed = match claimed {
        Some(claimed) if !claims_no_more => claimed,
        _ => return if is_better { Verdict::Better } else { Verdict::Worse },
    };
    if is_better != (claimed >= 1.0) {
        return Verdict::Reversed;
    }
    // Nothing at all is beyond any ratio.
    let Some(ratio) = ratio(better, Some(without), Some(with)) else { return Verdict::Holds };
    let (effect, claimed) = if claimed >= 1.0 { (ratio, claimed) } else { (1.0 / ratio, 1.0 / claimed) };
    if effect >= HOLDS_FROM * claimed { Verdict::Holds } else { Verdict::Smaller }
}

/// Says a verdict in a few words.
pub(crate) fn words(verdict: Verdict, ratio: Option<f64>, claimed: Option<f64>) -> String {
    let here = ratio.map_or_else(|| "from something to nothing".to_owned(), times);
    let claim = claimed.map_or_else(String::new, times);
    match verdict {
        Verdict::Holds => format!("holds: {here}, claimed {claim}"),
        Verdict::Smaller => format!("smaller: {here}, claimed {claim}"),
        Verdict::Better if claimed.is_some() => format!("better: {here}, claimed {claim}"),
        Verdict::Worse if claimed.is_some() => format!("worse: {here}, claimed {claim}"),
        Verdict::Better => format!("better: {here}"),
        Verdict::Worse => format!("worse: {here}"),
        Verdict::NoDifference if claimed.is_some() => format!("no difference shown, claimed {claim}"),
        Verdict::NoDifference => "no difference shown".to_owned(),
        Verdict::Reversed => format!("the other way round: {here}, claimed {claim}"),
        Verdict::NotMeasured => "not measured".to_owned(),
    }
}

/// Writes a ratio.
pub(crate) fn times(ratio: f64) -> String {
    match ratio {
        100.0.. => format!("× {}", grouped(ratio)),
        10.0.. => format!("× {ratio:.1}"),
        0.995.. => format!("× {ratio:.2}"),
        _ => format!("× {ratio:.3}"),
    }
}

/// On which side of a target a figure must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    /// As much, or more.
    AtLeast,
    /// Less.
    Below,
}

/// Something that a seed wanted to reach.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    /// What of.
    pub(crate) what: String,
    /// Which side.
    pub(crate) bound: Bound,
    /// How much.
    pub(crate) wanted: f64,
    /// What was measured.
    pub(crate) measured: Option<Figure>,
    /// Whether it was reached; `None` without a figure.
    pub(crate) reached: Option<bool>,
    /// Why not, by figures.
    pub(crate) reason: Option<String>,
}

impl Target {
    /// Compares a figure with what was wanted; `reason` is kept if that was not reached.
    pub(crate) fn new(
        what: impl Into<String>,
        bound: Bound,
        wanted: f64,
        measured: Option<Figure>,
        reason: impl Into<String>,
    ) -> Self {
        let reached = measured.as_ref().map(|figure| match bound {
            Bound::AtLeast => figure.median >= wanted,
            Bound::Below => figure.median < wanted,
        });
        let reason = (reached == Some(false)).then(|| reason.into());
        Self { what: what.into(), bound, wanted, measured, reached, reason }
    }

    /// What was wanted, as it is written.
    pub(crate) fn wanted(&self) -> String {
        let sign = match self.bound {
            Bound::AtLeast => "≥",
            Bound::Below => "<",
        };
        let unit = self.measured.as_ref().map_or(Unit::Count, |figure| figure.unit);
        format!("{sign} {}", unit.write(self.wanted))
    }

    /// The outcome for people.
    pub(crate) fn words(&self) -> String {
        match (self.reached, &self.reason) {
            (None, _) => "not measured".to_owned(),
            (Some(true), _) => "reached".to_owned(),
            (Some(false), None) => "not reached".to_owned(),
            (Some(false), Some(reason)) => format!("not reached: {reason}"),
        }
    }
}

/// Figures side by side.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Table {
    /// What it shows.
    pub(crate) title: String,
    /// The heads of the columns.
    pub(crate) columns: Vec<&'static str>,
    /// A name, and what stands in each of the other columns.
    pub(crate) rows: Vec<Vec<String>>,
}

/// Curves.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plot {
    /// What it shows.
    pub(crate) title: String,
    /// What goes to the right.
    pub(crate) x: Axis,
    /// What goes up.
    pub(crate) y: Axis,
    /// The curves.
    pub(crate) series: Vec<Series>,
}

/// One direction of a plot.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Axis {
    /// What it is, with its unit.
    pub(crate) label: &'static str,
    /// How far apart values are.
    pub(crate) scale: Scale,
}

/// How far apart values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scale {
    /// By their differences.
    Linear,
    /// By their ratios.
    Log,
    /// Shares of all, so that 90 %, 99 % and 99.9 % are equally far apart.
    Nines,
}

/// A curve.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Series {
    /// What a legend calls it.
    pub(crate) name: String,
    /// To the right, up.
    pub(crate) points: Vec<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rates(rounds: &[f64]) -> Option<Figure> {
        Figure::of(Unit::PerSecond, rounds.iter().copied())
    }

    fn judged(claimed: Option<f64>, without: &[f64], with: &[f64]) -> Claim {
        let said = Said { says: "s", claimed, compared: "c", here: "h".into(), better: Better::More };
        said.judge(rates(without), rates(with))
    }

    #[test]
    fn the_same_claim_is_judged_by_its_figures_alone() {
        let verdict = |with: &[f64]| judged(Some(10.0), &[95.0, 100.0, 105.0], with).verdict;
        assert_eq!(verdict(&[990.0, 1000.0, 1010.0]), Verdict::Holds);
        assert_eq!(verdict(&[810.0, 820.0, 830.0]), Verdict::Holds);
        assert_eq!(verdict(&[210.0, 220.0, 230.0]), Verdict::Smaller);
        assert_eq!(verdict(&[90.0, 104.0, 120.0]), Verdict::NoDifference);
        assert_eq!(verdict(&[40.0, 50.0, 60.0]), Verdict::Reversed);
        assert_eq!(verdict(&[]), Verdict::NotMeasured);
    }

    #[test]
    fn a_claim_that_something_is_slower_holds_when_it_is() {
        let verdict = |with: f64| judged(Some(1.0 / 33.0), &[3300.0], &[with]).verdict;
        assert_eq!(verdict(100.0), Verdict::Holds);
        assert_eq!(verdict(50.0), Verdict::Holds);
        assert_eq!(verdict(1000.0), Verdict::Smaller);
        assert_eq!(verdict(9900.0), Verdict::Reversed);
    }

    #[test]
    fn without_a_number_better_and_worse_are_what_is_said() {
        assert_eq!(judged(None, &[100.0], &[200.0]).words, "better: × 2.00");
        assert_eq!(judged(None, &[200.0], &[100.0]).words, "worse: × 0.500");
        assert_eq!(judged(None, &[100.0], &[102.0]).words, "no difference shown");
    }

    #[test]
    fn less_time_is_better_and_none_at_all_has_no_ratio() {
        let said =
            |claimed| Said { says: "s", claimed, compared: "c", here: String::new(), better: Better::Less };
        let us = |value| Figure::once(Unit::Microseconds, value);
        let claim = said(Some(4.0)).judge(us(400.0), us(100.0));
        assert_eq!((claim.ratio, claim.verdict), (Some(4.0), Verdict::Holds));
        let none = said(None).judge(us(400.0), us(0.0));
        assert_eq!((none.ratio, none.verdict), (None, Verdict::Better));
        assert_eq!(none.words, "better: from something to nothing");
    }

    #[test]
    fn to_be_as_good_as_before_can_be_a_claim() {
        assert_eq!(judged(Some(1.0), &[100.0], &[101.0]).verdict, Verdict::Holds);
        assert_eq!(judged(Some(1.2), &[100.0], &[101.0]).verdict, Verdict::NoDifference);
        assert_eq!(judged(Some(1.0), &[100.0], &[147.0]).words, "better: × 1.47, claimed × 1.00");
        assert_eq!(judged(Some(1.0), &[100.0], &[50.0]).words, "worse: × 0.500, claimed × 1.00");
    }

    #[test]
    fn a_target_that_is_missed_says_why_and_one_that_is_reached_does_not() {
        let target = |value| Target::new("QPS", Bound::AtLeast, 100.0, rates(&[value]), "the core is full");
        assert_eq!(target(100.0).words(), "reached");
        assert_eq!(target(99.0).words(), "not reached: the core is full");
        assert_eq!(target(99.0).wanted(), "≥ 100/s");
        let below = Target::new("p99", Bound::Below, 5.0, rates(&[5.0]), "x");
        assert_eq!(below.reached, Some(false), "below is less, not as much");
        assert_eq!(Target::new("p99", Bound::Below, 5.0, None, "x").words(), "not measured");
    }

    #[test]
    fn numbers_are_written_as_people_read_them() {
        for (value, text) in [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")] {
            assert_eq!(grouped(value), text);
        }
        assert_eq!(grouped(-1234.0), "-1,234");
        assert_eq!(Unit::Microseconds.write(0.251), "251 ns");
        assert_eq!(Unit::Microseconds.write(1500.0), "1.50 ms");
        assert_eq!(Unit::Share.write(0.52), "52.0 %");
    }

    proptest! {
        /// Whoever exchanges the sides gets the opposite verdict.
        #[test]
        fn exchanged_sides_exchange_the_verdict(a in 1.0..1e6_f64, b in 1.0..1e6_f64) {
            let (there, back) = (judged(None, &[a], &[b]).verdict, judged(None, &[b], &[a]).verdict);
            let expected = match there {
                Verdict::Better => Verdict::Worse,
                Verdict::Worse => Verdict::Better,
                same => same,
            };
            prop_assert_eq!(back, expected);
        }

        /// The more there is, the better it is judged.
        #[test]
        fn more_is_never_judged_worse(without in 1.0..1e6_f64, with in 1.0..1e6_f64, more in 1.0..10.0_f64) {
            let rank = |with| match judged(Some(5.0), &[without], &[with]).verdict {
                Verdict::Reversed => 0,
                Verdict::NoDifference => 1,
                Verdict::Smaller => 2,
                Verdict::Holds => 3,
                other => panic!("{other:?}"),
            };
            prop_assert!(rank(with * more) >= rank(with));
        }

        #[test]
        fn a_median_lies_between_the_least_and_the_most(rounds in prop::collection::vec(-1e9..1e9_f64, 1..9)) {
            let figure = rates(&rounds).unwrap();
            prop_assert!(figure.low <= figure.median && figure.median <= figure.high);
            prop_assert_eq!(figure.rounds, rounds.len());
        }
    }
}

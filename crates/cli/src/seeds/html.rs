//! A report as one page of HTML that needs nothing else: tables, and plots in SVG. Pure functions.

use std::fmt::Write;

use super::model::{Axis, Plot, Report, Scale, Section, Table, Verdict, shown};
use super::render::{head, ratio};

/// Size of a plot, and the room for its axes, in pixels.
const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 74.0;
const RIGHT: f64 = 26.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 44.0;

/// Colours of curves, which also differ for those who do not see red and green apart.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9", "#333333", "#a0522d"];

/// Writes the page.
pub(crate) fn page(report: &Report) -> String {
    let mut out = String::from(HEAD);
    out.push_str("<h1>Five seeds, measured</h1>\n");
    for line in head(report) {
        let _ = writeln!(out, "<p>{}</p>", escaped(&line));
    }
    if let Some(why) = &report.unfinished {
        let _ = writeln!(out, "<p class=\"partial\">Not the whole: {}</p>", escaped(why));
    }
    for section in &report.seeds {
        write_section(&mut out, section);
    }
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

fn write_section(out: &mut String, section: &Section) {
    let _ = writeln!(out, "<h2>{} {}</h2>", escaped(section.seed), escaped(section.title));
    if let Some(why) = &section.unfinished {
        let _ = writeln!(out, "<p class=\"partial\">Not the whole: {}</p>", escaped(why));
    }
    if !section.claims.is_empty() {
        out.push_str(
            "<div class=\"wide\"><table>\n<tr><th>claim</th><th>what it compared</th><th>measured here</th>\
             <th>without</th><th>with</th><th>ratio</th><th>verdict</th></tr>\n",
        );
        for claim in &section.claims {
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{}</td><td class=\"{}\">{}</td></tr>",
                escaped(claim.says),
                escaped(claim.compared),
                escaped(&claim.here),
                escaped(&shown(claim.without.as_ref())),
                escaped(&shown(claim.with.as_ref())),
                escaped(&ratio(claim.ratio)),
                class(claim.verdict),
                escaped(&claim.words)
            );
        }
        out.push_str("</table></div>\n");
    }
    if !section.targets.is_empty() {
        out.push_str(
            "<div class=\"wide\"><table>\n<tr><th>target</th><th>wanted</th><th>measured</th><th>outcome</th></tr>\n",
        );
        for target in &section.targets {
            let class = match target.reached {
                Some(true) => "good",
                Some(false) => "small",
                None => "none",
            };
            let _ = writeln!(
                out,
                "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"{class}\">{}</td></tr>",
                escaped(&target.what),
                escaped(&target.wanted()),
                escaped(&shown(target.measured.as_ref())),
                escaped(&target.words())
            );
        }
        out.push_str("</table></div>\n");
    }
    for table in &section.tables {
        write_table(out, table);
    }
    if !section.plots.is_empty() {
        out.push_str("<div class=\"plots\">\n");
        section.plots.iter().for_each(|plot| out.push_str(&figure(plot)));
        out.push_str("</div>\n");
    }
    for note in &section.notes {
        let _ = writeln!(out, "<p>{}</p>", escaped(note));
    }
}

fn write_table(out: &mut String, table: &Table) {
    let _ = writeln!(out, "<h3>{}</h3>\n<div class=\"wide\"><table>", escaped(&table.title));
    let heads: String = table.columns.iter().map(|head| format!("<th>{}</th>", escaped(head))).collect();
    let _ = writeln!(out, "<tr>{heads}</tr>");
    for cells in &table.rows {
        out.push_str("<tr>");
        for (column, cell) in cells.iter().enumerate() {
            let class = if column == 0 { "" } else { " class=\"n\"" };
            let _ = write!(out, "<td{class}>{}</td>", escaped(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

/// How a verdict is coloured.
const fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Holds | Verdict::Better => "good",
        Verdict::Smaller | Verdict::NoDifference => "small",
        Verdict::Reversed | Verdict::Worse => "bad",
        Verdict::NotMeasured => "none",
    }
}

/// A plot with its legend.
fn figure(plot: &Plot) -> String {
    let mut out = format!("<figure>\n{}<figcaption>", svg(plot));
    for (number, series) in plot.series.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let _ = write!(out, "<span><i style=\"background:{colour}\"></i>{}</span> ", escaped(&series.name));
    }
    out.push_str("</figcaption>\n</figure>\n");
    out
}

/// Draws a plot.
pub(super) fn svg(plot: &Plot) -> String {
    let mut out = format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <title>{0}</title><text x=\"{LEFT}\" y=\"18\" class=\"title\">{0}</text>\n",
        escaped(&plot.title)
    );
    let all = || plot.series.iter().flat_map(|series| &series.points);
    let x = Mapping::new(plot.x, all().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Mapping::new(plot.y, all().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let (Some(x), Some(y)) = (x, y) else {
        let _ = writeln!(out, "<text x=\"{LEFT}\" y=\"60\">no figures</text>\n</svg>");
        return out;
    };
    for (at, label) in x.ticks() {
        let _ = writeln!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{:.1}\" class=\"grid\"/>\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 15.0
        );
    }
    for (at, label) in y.ticks() {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" class=\"grid\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\
         <text x=\"14\" y=\"{:.1}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {:.1})\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        escaped(plot.x.label),
        (TOP + HEIGHT - BOTTOM) / 2.0,
        (TOP + HEIGHT - BOTTOM) / 2.0,
        escaped(plot.y.label)
    );
    for (number, series) in plot.series.iter().enumerate() {
        let points: Vec<_> = series
            .points
            .iter()
            .filter_map(|point| Some(format!("{:.1},{:.1}", x.place(point.0)?, y.place(point.1)?)))
            .collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.8\" points=\"{}\"/>",
            COLOURS[number % COLOURS.len()],
            points.join(" ")
        );
        // A line through one point is nothing to see.
        if let [one] = &points[..]
            && let Some((x, y)) = one.split_once(',')
        {
            let colour = COLOURS[number % COLOURS.len()];
            let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
    }
    out.push_str("</svg>\n");
    out
}

/// From values to pixels.
struct Mapping {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Mapping {
    /// Finds the range of all values; `None` if there are none.
    fn new(axis: Axis, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let scaled = values.filter_map(|value| scaled(axis.scale, value));
        let (low, high) =
            scaled.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return None;
        }
        let (low, high) = match axis.scale {
            // Whole decades.
            Scale::Log => (low.floor(), high.ceil().max(low.floor() + 1.0)),
            Scale::Nines => (low.min(0.0), high.max(1.0)),
            Scale::Linear => (low.min(0.0), if high > low.min(0.0) { high * 1.05 } else { 1.0 }),
        };
        Some(Self { scale: axis.scale, low, high, from, to })
    }

    fn place(&self, value: f64) -> Option<f64> {
        let value = scaled(self.scale, value)?;
        Some(self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from))
    }

    /// Where lines go, and what is written there.
    fn ticks(&self) -> Vec<(f64, String)> {
        let values: Vec<(f64, String)> = match self.scale {
            Scale::Nines => [
                (0.0, "0"),
                (0.5, "50 %"),
                (0.9, "90 %"),
                (0.99, "99 %"),
                (0.999, "99.9 %"),
                (0.9999, "99.99 %"),
            ]
            .map(|(share, label)| (share, label.to_owned()))
            .to_vec(),
            Scale::Log => (self.low as i32..=self.high as i32)
                .map(|power| 10_f64.powi(power))
                .map(|value| (value, short(value)))
                .collect(),
            Scale::Linear => {
                let step = step((self.high - self.low) / 5.0);
                let first = (self.low / step).ceil() as i64;
                (first..)
                    .map(|turn| turn as f64 * step)
                    .take_while(|value| *value <= self.high)
                    .map(|value| (value, short(value)))
                    .collect()
            }
        };
        let (least, most) = (self.from.min(self.to) - 0.5, self.from.max(self.to) + 0.5);
        let placed = values.into_iter().filter_map(|(value, label)| Some((self.place(value)?, label)));
        placed.filter(|(at, _)| (least..=most).contains(at)).collect()
    }
}

/// A value as its axis has it; `None` if it has no place there.
fn scaled(scale: Scale, value: f64) -> Option<f64> {
    let scaled = match scale {
        Scale::Linear => value,
        Scale::Log if value > 0.0 => value.log10(),
        Scale::Nines if (0.0..1.0).contains(&value) => -(1.0 - value).log10(),
        Scale::Log | Scale::Nines => return None,
    };
    scaled.is_finite().then_some(scaled)
}

/// The next of 1, 2 and 5 and their tens.
fn step(about: f64) -> f64 {
    let power = 10_f64.powf(about.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= about).unwrap_or(10.0);
    factor * power
}

/// A number in few letters.
fn short(value: f64) -> String {
    match value.abs() {
        1e6.. => format!("{} M", trimmed(value / 1e6)),
        1e4.. => format!("{} k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// A text in which nothing is taken for a tag.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const HEAD: &str = "<!doctype html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<title>Forebay: five seeds, measured</title>
<style>
:root { color-scheme: light dark; --line: #c8c8c0; --soft: #f3f3ec; }
@media (prefers-color-scheme: dark) { :root { --line: #55554f; --soft: #2a2a27; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0; }
main { max-width: 1360px; margin: 0 auto; padding: 1rem 1.2rem 3rem; }
h1 { font-size: 1.6rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid var(--line); } h3 { font-size: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1.2rem; font-size: .86rem; }
th, td { border: 1px solid var(--line); padding: .3rem .55rem; text-align: left; vertical-align: top; }
th { background: var(--soft); } td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.good { background: #00924526; } td.small { background: #c08a0026; } td.bad { background: #c0283026; }
.partial { background: #c0283026; padding: .4rem .7rem; font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; width: min(640px, 100%); background: #fff; color: #222; border: 1px solid var(--line); }
figcaption { padding: 0 .8rem .6rem; font-size: .8rem; } figcaption span { margin-right: .9rem; white-space: nowrap; }
figcaption i { display: inline-block; width: .9rem; height: .3rem; margin-right: .3rem; vertical-align: middle; }
svg { width: 100%; height: auto; display: block; } svg text { font: 11px system-ui, sans-serif; fill: #333; }
svg text.title { font-size: 13px; font-weight: 600; } svg .grid { stroke: #ddd; }
</style>
</head>
<body>
<main>
";

#[cfg(test)]
mod tests {
    use super::super::model::Series;
    use super::super::render::tests::sample;
    use super::*;

    fn plot(x: Scale, y: Scale, points: &[(f64, f64)]) -> Plot {
        Plot {
            title: "p".into(),
            x: Axis { label: "x", scale: x },
            y: Axis { label: "y", scale: y },
            series: vec![Series { name: "s".into(), points: points.to_vec() }],
        }
    }

    /// The points of the first curve.
    fn points(svg: &str) -> Vec<(f64, f64)> {
        let points = svg.split_once("points=\"").unwrap().1.split_once('"').unwrap().0;
        let number = |text: &str| text.parse().unwrap();
        points
            .split_whitespace()
            .map(|point| point.split_once(',').unwrap())
            .map(|(x, y)| (number(x), number(y)))
            .collect()
    }

    #[test]
    fn a_single_point_can_be_seen() {
        let linear = |points| svg(&plot(Scale::Linear, Scale::Linear, points));
        assert_eq!(linear(&[(1.0, 2.0)]).matches("<circle").count(), 1);
        assert_eq!(linear(&[(1.0, 2.0), (2.0, 3.0)]).matches("<circle").count(), 0);
    }

    #[test]
    fn the_page_needs_nothing_else_and_marks_what_is_missing() {
        let page = page(&sample());
        for outside in ["src=", "href=", "url(", "@import", "<script"] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.matches("class=\"partial\"").count(), 2);
        for part in ["<svg", "smaller: × 0.333", "not reached: the core is full", "A note."] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn nothing_that_is_told_becomes_a_tag() {
        let page = page(&sample());
        assert!(page.contains("&lt;slower&gt;") && page.contains("ours &amp; theirs"));
        assert!(!page.contains("<slower>"));
        for tag in ["table", "tr", "td", "th", "figure", "svg", "div", "p", "h2"] {
            let (opened, closed) = (format!("<{tag}"), format!("</{tag}>"));
            let opened =
                page.matches(&format!("{opened}>")).count() + page.matches(&format!("{opened} ")).count();
            assert_eq!(opened, page.matches(&closed).count(), "{tag}");
        }
    }

    #[test]
    fn more_is_drawn_higher_and_later_further_to_the_right() {
        for (x, y) in [(Scale::Linear, Scale::Linear), (Scale::Linear, Scale::Log)] {
            let drawn = points(&svg(&plot(x, y, &[(0.0, 10.0), (1.0, 100.0), (2.0, 50.0)])));
            assert!(drawn[0].0 < drawn[1].0 && drawn[1].0 < drawn[2].0, "{drawn:?}");
            assert!(drawn[1].1 < drawn[2].1 && drawn[2].1 < drawn[0].1, "{drawn:?}");
            let inside = |(x, y): &(f64, f64)| {
                (LEFT..=WIDTH - RIGHT).contains(x) && (TOP..=HEIGHT - BOTTOM).contains(y)
            };
            assert!(drawn.iter().all(inside), "{drawn:?}");
        }
    }

    #[test]
    fn nines_are_equally_far_apart() {
        let drawn =
            points(&svg(&plot(Scale::Nines, Scale::Linear, &[(0.9, 1.0), (0.99, 2.0), (0.999, 3.0)])));
        assert!(((drawn[1].0 - drawn[0].0) - (drawn[2].0 - drawn[1].0)).abs() < 0.2, "{drawn:?}");
    }

    #[test]
    fn what_has_no_place_on_an_axis_is_left_out() {
        let drawn = points(&svg(&plot(
            Scale::Nines,
            Scale::Log,
            &[(0.5, 0.0), (1.0, 5.0), (0.5, 5.0), (0.9, f64::NAN)],
        )));
        assert_eq!(drawn.len(), 1);
        assert!(svg(&plot(Scale::Linear, Scale::Log, &[])).contains("no figures"));
    }

    #[test]
    fn lines_stand_at_round_numbers() {
        for (about, expected) in [(0.7, 1.0), (1.3, 2.0), (3.0, 5.0), (70.0, 100.0)] {
            assert!((step(about) - expected).abs() < 1e-9, "{about}");
        }
        assert_eq!(
            (short(1500.0), short(20_000.0), short(2.5e6)),
            ("1500".into(), "20 k".into(), "2.5 M".into())
        );
        let svg = svg(&plot(Scale::Linear, Scale::Linear, &[(0.0, 0.0), (10.0, 90_000.0)]));
        assert!(svg.contains(">80 k<") && svg.contains(">10<"), "{svg}");
    }
}

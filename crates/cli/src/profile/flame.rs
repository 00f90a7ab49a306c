//! Profiles as pictures: a flame graph in SVG, which a browser shows without anything else.
//!
//! Each bar is a function, as wide as the share of CPU time that it and what it called took; its callers are below it, and
//! threads at the bottom. A click on a bar spreads it over the whole width, one on the lowest bar shows all again.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use super::Profile;
use super::modules::Symbols;

/// The picture's width in pixels.
const WIDTH: f64 = 1400.0;
/// The height of a bar.
const ROW: f64 = 17.0;
/// Room for a title above.
const HEAD: f64 = 30.0;
/// Bars that are narrower are not drawn: nobody could see them, nor point at them.
const NARROWEST: f64 = 0.3;
/// How wide a letter is, about.
const LETTER: f64 = 7.0;

/// A function in the place that its callers give it.
#[derive(Debug, Default)]
struct Node {
    total: i64,
    above: BTreeMap<String, Node>,
}

impl Node {
    fn depth(&self) -> usize {
        1 + self.above.values().map(Self::depth).max().unwrap_or(0)
    }
}

/// Draws a profile of CPU time.
pub(super) fn draw(profile: &Profile) -> String {
    let mut symbols = Symbols::new(&profile.modules);
    let mut known: HashMap<u64, Vec<String>> = HashMap::new();
    let mut root = Node::default();
    for ((thread, addresses), count) in &profile.stacks {
        root.total += count;
        let mut node = root.above.entry(thread.clone()).or_default();
        node.total += count;
        for address in addresses.iter().rev() {
            let names = known.entry(*address).or_insert_with(|| {
                symbols.places(*address).into_iter().rev().map(|place| place.function).collect()
            });
            for name in names {
                node = node.above.entry(name.clone()).or_default();
                node.total += count;
            }
        }
    }
    let seconds = profile.duration.as_secs_f64();
    let mut title = format!("{} samples of {} Hz in {seconds:.1} s", root.total, profile.hz);
    if profile.lost > 0 {
        let _ = write!(title, ", {} missing", profile.lost);
    }
    picture(&root, &title)
}

fn picture(root: &Node, title: &str) -> String {
    let height = HEAD + root.depth() as f64 * ROW + 4.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fdfdf8\"/>\n\
         <text x=\"8\" y=\"19\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    bar(&mut svg, root, "all", 0.0, WIDTH, height - ROW - 2.0, root.total.max(1));
    svg.push_str(ZOOM);
    svg.push_str("</svg>\n");
    svg
}

/// Draws a function and what stands on it.
fn bar(svg: &mut String, node: &Node, name: &str, x: f64, width: f64, y: f64, all: i64) {
    if width < NARROWEST {
        return;
    }
    let share = node.total as f64 * 100.0 / all as f64;
    let name_escaped = escaped(name);
    let _ = writeln!(
        svg,
        "<g class=\"bar\" data-name=\"{name_escaped}\"><title>{name_escaped}: {} samples, {share:.2} %</title>\
         <rect x=\"{x:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{}\" fill=\"{}\" rx=\"1\"/>\
         <text x=\"{:.2}\" y=\"{}\">{}</text></g>",
        node.total,
        ROW - 1.0,
        colour(name),
        x + 3.0,
        y + 12.0,
        escaped(&cut(name, width))
    );
    let mut left = x;
    for (name, above) in &node.above {
        let share = width * above.total as f64 / node.total.max(1) as f64;
        bar(svg, above, name, left, share, y - ROW, all);
        left += share;
    }
}

/// As much of a name as a bar has room for.
fn cut(name: &str, width: f64) -> String {
    let room = ((width - 6.0) / LETTER).max(0.0) as usize;
    let letters = name.chars().count();
    match room {
        0..3 => String::new(),
        _ if letters <= room => name.to_owned(),
        _ => name.chars().take(room - 2).chain("..".chars()).collect(),
    }
}

/// Orange is ours, yellow that of others, grey that without a path, which is no Rust.
fn colour(name: &str) -> String {
    let shade = name.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into())) % 40;
    if name.contains("forebay") {
        format!("rgb(235,{},60)", 110 + shade)
    } else if name.contains("::") {
        format!("rgb(240,{},110)", 190 + shade)
    } else {
        let grey = 185 + shade;
        format!("rgb({grey},{grey},{grey})")
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Lets a click spread a bar, and those above and below it, over the whole width.
const ZOOM: &str = r#"<script><![CDATA[
const bars = [...document.querySelectorAll('g.bar')].map(g => {
  const rect = g.querySelector('rect'), text = g.querySelector('text');
  const at = key => parseFloat(rect.getAttribute(key));
  return { g, rect, text, x: at('x'), y: at('y'), width: at('width'), name: g.dataset.name };
});
const WIDTH = document.documentElement.viewBox.baseVal.width;
function show(one) {
  const scale = WIDTH / one.width;
  for (const bar of bars) {
    const below = bar.y > one.y && bar.x <= one.x + 0.01 && bar.x + bar.width >= one.x + one.width - 0.01;
    const inside = bar.y <= one.y && bar.x >= one.x - 0.01 && bar.x + bar.width <= one.x + one.width + 0.01;
    bar.g.style.display = below || inside ? '' : 'none';
    const x = below ? 0 : (bar.x - one.x) * scale, width = below ? WIDTH : bar.width * scale;
    bar.rect.setAttribute('x', x);
    bar.rect.setAttribute('width', width);
    bar.text.setAttribute('x', x + 3);
    const room = Math.floor((width - 6) / 7);
    bar.text.textContent = room < 3 ? '' : bar.name.length <= room ? bar.name : bar.name.slice(0, room - 2) + '..';
  }
}
for (const bar of bars) bar.g.addEventListener('click', () => show(bar));
]]></script>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_wide_as_its_share_and_stands_on_its_caller() {
        let leaf = |total| Node { total, ..Node::default() };
        let above = BTreeMap::from([("a<b>".to_owned(), leaf(3)), ("forebay::c".to_owned(), leaf(1))]);
        let svg = picture(&Node { total: 4, above }, "t & t");
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(
            svg.contains("t &amp; t") && svg.contains("<title>a&lt;b&gt;: 3 samples, 75.00 %</title>"),
            "{svg}"
        );
        assert!(svg.contains("x=\"1050.00\" y=\"") && svg.contains("width=\"350.00\""), "{svg}");
        let row = |name: &str| {
            let line = svg.lines().find(|line| line.contains(&format!("data-name=\"{name}\""))).unwrap();
            line.split("y=\"").nth(1).unwrap().split('"').next().unwrap().parse::<f64>().unwrap()
        };
        assert_eq!(row("all") - row("forebay::c"), ROW);
    }

    #[test]
    fn names_are_cut_to_their_bars() {
        assert_eq!(cut("abcdefghij", 6.0 + 10.0 * LETTER), "abcdefghij");
        assert_eq!(cut("abcdefghij", 6.0 + 6.0 * LETTER), "abcd..");
        assert_eq!(cut("abcdefghij", 5.0), "");
    }

    #[test]
    fn a_profile_of_nothing_is_a_picture_too() {
        assert!(picture(&Node::default(), "none").contains("<title>all: 0 samples"));
    }
}

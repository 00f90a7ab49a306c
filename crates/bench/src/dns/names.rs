//! Which names are asked for, and in which order.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use forebay_core::Rng;

use super::{BenchError, DnsLoad};
use crate::message::{NAME_MAX, QueryType, encode_name};
use crate::responder::expected_a;

/// The most names of a Zipf distribution: its table takes 12 bytes for each.
const ZIPF_NAMES_MAX: u64 = 10_000_000;

/// Of so many queries of a mix it is said how many are for names that were never asked before.
const MIX_OF: u64 = 10_000;

/// What to ask about.
#[derive(Clone, Debug, PartialEq)]
pub enum Names {
    /// The names `h0` to `h<names - 1>` in turn.
    Hot {
        /// How many.
        names: u64,
    },
    /// A name that was never asked before, every time.
    Unique,
    /// The names `h0` to `h<names - 1>` in turn, and evenly between them names that were never asked before: a cache that has
    /// the others hits as often as is wanted.
    Mix {
        /// How many.
        names: u64,
        /// Of a hundred queries, those for names never asked before; two decimals count.
        unique_percent: f64,
    },
    /// The names `h0` to `h<names - 1>` at random, the first most often: number *n* with weight 1/(n + 1)^exponent.
    Zipf {
        /// How many.
        names: u64,
        /// How steep: 0 is even, real traffic is near 0.9.
        exponent: f64,
    },
    /// The lines of a file in dnsperf's format (`name TYPE`), in turn.
    File {
        /// Where it is.
        path: PathBuf,
    },
}

impl FromStr for Names {
    type Err = String;

    /// Reads `hot:1000`, `unique`, `mix:1000:4`, `zipf:100000:0.9` or `file:PATH`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "names \"{text}\" are none: say hot:1000, unique, mix:1000:4, zipf:100000:0.9 or file:PATH"
            )
        };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "hot" => rest.parse().map(|names| Self::Hot { names }).map_err(|_| wrong()),
            "unique" if rest.is_empty() => Ok(Self::Unique),
            "mix" => {
                let (names, percent) = rest.split_once(':').ok_or_else(wrong)?;
                match (names.parse(), percent.parse()) {
                    (Ok(names), Ok(unique_percent)) => Ok(Self::Mix { names, unique_percent }),
                    _ => Err(wrong()),
                }
            }
            "zipf" => {
                let (names, exponent) = rest.split_once(':').ok_or_else(wrong)?;
                match (names.parse(), exponent.parse()) {
                    (Ok(names), Ok(exponent)) => Ok(Self::Zipf { names, exponent }),
                    _ => Err(wrong()),
                }
            }
            "file" if !rest.is_empty() => Ok(Self::File { path: rest.into() }),
            _ => Err(wrong()),
        }
    }
}

/// Writes a zone file with the names that [`Names::Hot`] and [`Names::Zipf`] ask for, each with the address that
/// [`expected_a`] gives, so that an authoritative server can stand in for the responder.
///
/// # Errors
///
/// Those of `out`.
pub fn write_zone(out: &mut impl Write, zone: &str, names: u64) -> io::Result<()> {
    let zone = zone.trim_end_matches('.');
    writeln!(
        out,
        "$ORIGIN {zone}.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 60\n@ NS ns\nns A 127.0.0.1"
    )?;
    for number in 0..names {
        writeln!(out, "h{number} A {}", expected_a(&format!("h{number}.{zone}")))?;
    }
    Ok(())
}

/// What all workers share of the names.
pub(super) struct NameTable {
    kind: Kind,
    /// In wire format.
    zone: Vec<u8>,
    /// Type and class.
    tail: [u8; 4],
    /// What unique names of this run begin with.
    prefix: String,
}

enum Kind {
    Hot(u64),
    Unique,
    /// How many, and how many of ten thousand queries are for others.
    Mix(u64, u64),
    Zipf(Arc<Alias>),
    /// Questions in wire format, one behind the other, and where each begins.
    File {
        questions: Vec<u8>,
        starts: Vec<u32>,
    },
}

impl NameTable {
    pub(super) fn new(load: &DnsLoad, seed: u64) -> Result<Self, BenchError> {
        let mut zone = Vec::new();
        encode_name(&load.zone, &mut zone)
            .map_err(|reason| BenchError::setting("zone", format!("{:?}", load.zone), reason))?;
        // The longest label in front of it: a prefix of 10 and a number of 20.
        if zone.len() + 31 > NAME_MAX {
            return Err(BenchError::setting(
                "zone",
                &load.zone,
                "it leaves no room for a label: make it shorter",
            ));
        }
        let none = |names: u64| BenchError::setting("names", names, "at least one is needed");
        let kind = match &load.names {
            Names::Hot { names: 0 } | Names::Mix { names: 0, .. } | Names::Zipf { names: 0, .. } => {
                return Err(none(0));
            }
            Names::Hot { names } => Kind::Hot(*names),
            Names::Unique => Kind::Unique,
            Names::Mix { names, unique_percent } => {
                if !(0.0..=100.0).contains(unique_percent) {
                    let remedy = "a share of queries is 0 to 100 percent";
                    return Err(BenchError::setting("mix percent", unique_percent, remedy));
                }
                Kind::Mix(*names, (unique_percent * 100.0).round() as u64)
            }
            Names::Zipf { names, exponent } => {
                if *names > ZIPF_NAMES_MAX {
                    let remedy = format!("Zipf's table holds at most {ZIPF_NAMES_MAX}");
                    return Err(BenchError::setting("names", names, remedy));
                }
                if !(exponent.is_finite() && *exponent >= 0.0) {
                    let remedy = "0 (even) or more: real traffic is near 0.9";
                    return Err(BenchError::setting("zipf exponent", exponent, remedy));
                }
                Kind::Zipf(Arc::new(Alias::zipf(*names as usize, *exponent)))
            }
            Names::File { path } => read_file(path)?,
        };
        let qtype = load.qtype.0.to_be_bytes();
        let prefix = format!("u{:08x}-", Rng::new(seed).next_u64() as u32);
        Ok(Self { kind, zone, tail: [qtype[0], qtype[1], 0, 1], prefix })
    }

    /// Returns the names for worker `number` of `workers`: together they ask what one alone would.
    pub(super) fn source(&self, seed: u64, number: usize, workers: usize) -> NameSource<'_> {
        NameSource {
            table: self,
            next: number as u64,
            step: workers as u64,
            rng: Rng::new(seed.wrapping_add(number as u64 + 1)),
        }
    }
}

/// The names that one worker asks for.
pub(super) struct NameSource<'a> {
    table: &'a NameTable,
    next: u64,
    step: u64,
    rng: Rng,
}

impl NameSource<'_> {
    /// Appends the next question: name, type and class.
    pub(super) fn write(&mut self, out: &mut Vec<u8>) {
        let (number, is_unique) = match &self.table.kind {
            Kind::Hot(names) => (self.advance() % names, false),
            Kind::Unique => (self.advance(), true),
            Kind::Mix(names, unique) => {
                let turn = self.advance();
                let so_far = |turn: u64| turn.wrapping_mul(*unique) / MIX_OF;
                if so_far(turn + 1) > so_far(turn) { (turn, true) } else { (turn % names, false) }
            }
            Kind::Zipf(alias) => (alias.pick(&mut self.rng), false),
            Kind::File { questions, starts } => {
                let index = (self.advance() % (starts.len() as u64 - 1)) as usize;
                out.extend_from_slice(&questions[starts[index] as usize..starts[index + 1] as usize]);
                return;
            }
        };
        let prefix: &[u8] = if is_unique { self.table.prefix.as_bytes() } else { b"h" };
        let mut digits = [0; 20];
        let mut at = digits.len();
        let mut rest = number;
        loop {
            at -= 1;
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        out.push((prefix.len() + digits.len() - at) as u8);
        out.extend_from_slice(prefix);
        out.extend_from_slice(&digits[at..]);
        out.extend_from_slice(&self.table.zone);
        out.extend_from_slice(&self.table.tail);
    }

    fn advance(&mut self) -> u64 {
        let number = self.next;
        self.next += self.step;
        number
    }
}

fn read_file(path: &Path) -> Result<Kind, BenchError> {
    let wrong = |line, reason: String| BenchError::File { path: path.to_owned(), line, reason };
    let text = fs::read_to_string(path).map_err(|error| wrong(0, format!("cannot be read: {error}")))?;
    let mut questions = Vec::new();
    let mut starts = vec![0];
    for (index, line) in text.lines().enumerate() {
        let mut words = line.split_ascii_whitespace();
        let Some(name) = words.next().filter(|word| !word.starts_with([';', '#'])) else { continue };
        let at = |reason| wrong(index + 1, reason);
        let qtype: QueryType = words
            .next()
            .ok_or_else(|| {
                at(format!("\"{name}\" has no type: a line is a name and a type, as in \"{name} A\""))
            })?
            .parse()
            .map_err(at)?;
        if let Some(word) = words.next() {
            return Err(at(format!("\"{word}\" is too much: a line is a name and a type")));
        }
        encode_name(name, &mut questions).map_err(at)?;
        questions.extend_from_slice(&qtype.0.to_be_bytes());
        questions.extend_from_slice(&[0, 1]);
        starts.push(
            u32::try_from(questions.len())
                .map_err(|_| at("the file is too long: 4 GB of questions".into()))?,
        );
    }
    if starts.len() == 1 {
        return Err(wrong(0, "has no queries: a line is a name and a type, as in \"example.org A\"".into()));
    }
    Ok(Kind::File { questions, starts })
}

/// Weighted choice with one look-up (Walker's alias method).
struct Alias {
    /// How likely a column keeps its own number, as a share of 2³².
    keep: Vec<u32>,
    other: Vec<u32>,
}

impl Alias {
    fn zipf(names: usize, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=names).map(|rank| (rank as f64).powf(-exponent)).collect();
        let mean = weights.iter().sum::<f64>() / names as f64;
        let mut shares: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let mut keep = vec![u32::MAX; names];
        let mut other: Vec<u32> = (0..names as u32).collect();
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..names as u32).partition(|&number| shares[number as usize] < 1.0);
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            keep[low as usize] = (shares[low as usize] * 4_294_967_296.0) as u32;
            other[low as usize] = high;
            shares[high as usize] -= 1.0 - shares[low as usize];
            if shares[high as usize] < 1.0 {
                large.pop();
                small.push(high);
            }
        }
        Self { keep, other }
    }

    fn pick(&self, rng: &mut Rng) -> u64 {
        let column = rng.below(self.keep.len() as u32) as usize;
        let kept = (rng.next_u64() as u32) < self.keep[column];
        u64::from(if kept { column as u32 } else { self.other[column] })
    }
}

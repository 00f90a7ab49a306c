//! How times, rates and spreads are written.

use std::fmt;
use std::str::FromStr;

use forebay::units::Span;

/// A time that may have a fraction, `0.78ms`; in seconds.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Time(pub f64);

/// Units, the longest first.
const UNITS: [(&str, f64); 7] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("min", 60.0), ("s", 1.0), ("h", 3600.0)];

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a time like 0.78ms, 250us or 2s");
        let trimmed = text.trim();
        if trimmed == "0" {
            return Ok(Self(0.0));
        }
        if let Ok(span) = trimmed.parse::<Span>() {
            return Ok(Self(span.0.as_secs_f64()));
        }
        let (number, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, factor)))
            .ok_or_else(wrong)?;
        positive(number).map(|number| Self(number * factor)).ok_or_else(wrong)
    }
}

/// Requests per second: `5000`, `5000/s`, `300/min`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, per) = text.trim().split_once('/').unwrap_or((text.trim(), "s"));
        let seconds = match per {
            "s" => Some(1.0),
            "min" => Some(60.0),
            "h" => Some(3600.0),
            _ => None,
        };
        positive(number)
            .zip(seconds)
            .map(|(number, seconds)| Self(number / seconds))
            .ok_or_else(|| format!("`{text}` is not a rate like 5000, 5000/s or 300/min"))
    }
}

/// How much times of service differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Spread {
    /// The coefficient of variation, deviation by mean: 0 is always the same, 1 exponential.
    Variation(f64),
    /// The median and the 99th percentile, in seconds.
    Percentiles {
        /// The median.
        p50: f64,
        /// The 99th percentile.
        p99: f64,
    },
}

impl FromStr for Spread {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is neither a number like 1.5 nor percentiles like p50=0.5ms,p99=8ms");
        if let Some(variation) = positive(text.trim()) {
            return Ok(Self::Variation(variation));
        }
        let (mut p50, mut p99) = (None, None);
        for part in text.split(',') {
            match part.trim().split_once('=') {
                Some(("p50", time)) => p50 = Some(time.parse::<Time>()?.0),
                Some(("p99", time)) => p99 = Some(time.parse::<Time>()?.0),
                _ => return Err(wrong()),
            }
        }
        p50.zip(p99).map(|(p50, p99)| Self::Percentiles { p50, p99 }).ok_or_else(wrong)
    }
}

/// Reads a number that is not negative and has an end.
fn positive(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0)
}

/// Writes a time of so many seconds with three digits and a unit.
pub(crate) fn shown(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 0.5e-9 => return "0".to_owned(),
        s if s < 0.999_5e-6 => (s * 1e9, "ns"),
        s if s < 0.999_5e-3 => (s * 1e6, "µs"),
        s if s < 0.999_5 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
    format!("{value:.digits$} {unit}")
}

/// Writes a rate per second, with the digits that matter.
pub(crate) fn per_second(rate: f64) -> String {
    match rate {
        r if r < 9.95 => format!("{r:.2}/s"),
        r if r < 99.95 => format!("{r:.1}/s"),
        r => format!("{}/s", Grouped(r.round() as u64)),
    }
}

/// A number in groups of three digits.
pub(crate) struct Grouped(pub(crate) u64);

impl fmt::Display for Grouped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        let mut text = String::new();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                text.push(',');
            }
            text.push(digit);
        }
        f.pad(&text)
    }
}

/// Writes an amount of memory.
pub(crate) fn memory(bytes: u64) -> String {
    const KIB: f64 = 1024.0;
    match bytes as f64 {
        b if b < KIB => format!("{bytes} B"),
        b if b < KIB * KIB => format!("{:.1} KiB", b / KIB),
        b if b < KIB * KIB * KIB => format!("{:.1} MiB", b / (KIB * KIB)),
        b => format!("{:.1} GiB", b / (KIB * KIB * KIB)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_have_a_fraction() {
        for (text, seconds) in [
            ("0.78ms", 0.00078),
            ("780us", 0.00078),
            ("780µs", 0.00078),
            ("2s", 2.0),
            ("1.5s", 1.5),
            ("0", 0.0),
        ] {
            let Time(read) = text.parse().unwrap();
            assert!((read - seconds).abs() < 1e-12, "{text}: {read}");
        }
        for wrong in ["", "5", "-1ms", "ms", "NaNms", "infs", "1 fortnight"] {
            let error = wrong.parse::<Time>().unwrap_err();
            assert!(error.contains("0.78ms"), "{wrong}: {error}");
        }
    }

    #[test]
    fn rates_are_per_second_unless_they_say_otherwise() {
        assert_eq!("5000".parse(), Ok(Rate(5000.0)));
        assert_eq!("5000/s".parse(), Ok(Rate(5000.0)));
        assert_eq!("300/min".parse(), Ok(Rate(5.0)));
        for wrong in ["", "-5", "5/day", "NaN", "inf", "many"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_spread_is_a_number_or_two_percentiles() {
        assert_eq!("1.5".parse(), Ok(Spread::Variation(1.5)));
        let Ok(Spread::Percentiles { p50, p99 }) = "p50=0.5ms,p99=8ms".parse() else { panic!() };
        assert!((p50 - 0.0005).abs() < 1e-12 && (p99 - 0.008).abs() < 1e-12);
        for wrong in ["", "p50=1ms", "p99=1ms", "p50=1,p99=2", "wide", "-1", "p50=1ms,p90=2ms"] {
            assert!(wrong.parse::<Spread>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_has_three_digits_and_a_unit() {
        let cases = [
            (0.0, "0"),
            (0.000_000_5, "500 ns"),
            (0.00078, "780 µs"),
            (0.019_188, "19.2 ms"),
            (1.0, "1.00 s"),
            (0.000_999_9, "1.00 ms"),
        ];
        for (seconds, text) in cases {
            assert_eq!(shown(seconds), text);
        }
        assert_eq!((per_second(0.5), per_second(12_820.51)), ("0.50/s".to_owned(), "12,821/s".to_owned()));
        assert_eq!(
            (Grouped(0).to_string(), Grouped(1_234_567).to_string()),
            ("0".into(), "1,234,567".into())
        );
        assert_eq!((memory(100), memory(3 << 20)), ("100 B".to_owned(), "3.0 MiB".to_owned()));
    }
}

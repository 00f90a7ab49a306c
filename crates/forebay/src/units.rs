//! Values with units, as people write them in a configuration: `"30s"`, `"64MiB"`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// An amount of memory: `"64MiB"`, `"512KiB"`, `"1GiB"`, `"100000B"`, or a bare zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size {
    /// The amount, in bytes.
    pub bytes: u64,
}

impl Size {
    /// Makes a size of so many mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self { bytes: n << 20 }
    }
}

/// The units of memory: binary ones by their IEC names; decimal ones are not offered, so that nobody is off by 5 %.
const UNITS: [(&str, u64); 4] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError { value: text.to_owned(), allowed: "a size like 64MiB, 512KiB, 1GiB or 0" };
        let trimmed = text.trim();
        if trimmed == "0" {
            return Ok(Self { bytes: 0 });
        }
        let (unit, factor) = UNITS.iter().find(|(unit, _)| trimmed.ends_with(unit)).ok_or_else(wrong)?;
        let number: u64 = trimmed[..trimmed.len() - unit.len()].trim_end().parse().map_err(|_| wrong())?;
        number.checked_mul(*factor).map(|bytes| Self { bytes }).ok_or_else(wrong)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes == 0 {
            return f.write_str("0");
        }
        let (unit, factor) =
            UNITS.iter().find(|(_, factor)| self.bytes.is_multiple_of(*factor)).unwrap_or(&UNITS[3]);
        write!(f, "{}{unit}", self.bytes / factor)
    }
}

/// A span of time: `"30s"`, `"250ms"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let wrong = || UnitError { value: text.to_owned(), allowed: "a time like 30s, 250ms, 5m or 1h" };
        humantime::parse_duration(text.trim()).map(Self).map_err(|_| wrong())
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// A text that is no value with a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitError {
    /// What was written.
    pub value: String,
    /// What may be written.
    pub allowed: &'static str,
}

impl fmt::Display for UnitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not {}", self.value, self.allowed)
    }
}

impl std::error::Error for UnitError {}

/// Reads a text, or a bare zero where zero means something.
struct TextVisitor<T> {
    expected: &'static str,
    zero: Option<T>,
}

impl<T: FromStr<Err = UnitError>> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        match self.zero {
            Some(zero) if number == 0 => Ok(zero),
            _ => Err(E::custom(format_args!("`{number}` has no unit: write {}", self.expected))),
        }
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let zero = Some(Self::default());
        deserializer.deserialize_any(TextVisitor { expected: "a size like \"64MiB\"", zero })
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor { expected: "a time like \"30s\"", zero: None })
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_alike() {
        for (text, bytes) in
            [("0", 0), ("1B", 1), ("512KiB", 512 << 10), ("64MiB", 64 << 20), ("3GiB", 3 << 30)]
        {
            assert_eq!(text.parse::<Size>().unwrap().bytes, bytes);
            assert_eq!(Size { bytes }.to_string(), text);
        }
        assert_eq!("1536KiB".parse::<Size>().unwrap().to_string(), "1536KiB");
    }

    #[test]
    fn what_is_no_size_is_told_so() {
        for text in ["", "64", "64MB", "-1MiB", "MiB", "99999999999999GiB", "1.5GiB"] {
            let error = text.parse::<Size>().unwrap_err().to_string();
            assert!(error.contains("64MiB"), "{error}");
        }
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!("250ms".parse::<Span>().unwrap().0, Duration::from_millis(250));
        assert!("30".parse::<Span>().unwrap_err().to_string().contains("30s"));
        assert_eq!(Span(Duration::from_secs(90)).to_string(), "1m 30s");
    }
}

//! The header `grpc-timeout`: up to eight digits and a unit.

use std::time::Duration;

use http::HeaderValue;

/// The name of the header.
pub(super) const NAME: &str = "grpc-timeout";

/// The largest number that fits.
const MOST: u128 = 99_999_999;

/// Units, and how many nanoseconds each is.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// Reads one; `None` if it is none.
pub(super) fn parse(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |number: u64, digit| number * 10 + u64::from(digit - b'0'));
    let (_, nanos) = UNITS.iter().find(|(known, _)| known == unit)?;
    // Eight digits of hours are 11,000 years.
    Some(Duration::from_nanos(number.saturating_mul(*nanos)))
}

/// Writes one, in the finest unit in which it fits, rounded down.
pub(super) fn write(limit: Duration) -> HeaderValue {
    let nanos = limit.as_nanos();
    let fits = UNITS.iter().find(|(_, unit)| nanos / u128::from(*unit) <= MOST);
    let (unit, size) = fits.copied().unwrap_or(UNITS[5]);
    let number = (nanos / u128::from(size)).min(MOST);
    HeaderValue::from_str(&format!("{number}{}", char::from(unit))).unwrap_or(HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_are_read_and_written() {
        for (text, expected) in [
            ("0n", Some(Duration::ZERO)),
            ("1S", Some(Duration::from_secs(1))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("99999999H", Some(Duration::from_nanos(u64::MAX))),
            ("123456789n", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
        ] {
            let value = HeaderValue::from_str(text).unwrap();
            assert_eq!(parse(&value), expected, "{text:?}");
        }
        for limit in [0, 1, 99_999_999, 100_000_000, 30_000_000_000, 3_600_000_000_000_000] {
            let limit = Duration::from_nanos(limit);
            assert_eq!(parse(&write(limit)), Some(limit), "{limit:?}");
        }
        let long = Duration::from_nanos(30_000_000_001);
        assert_eq!(parse(&write(long)), Some(Duration::from_secs(30)), "it is rounded down");
    }
}

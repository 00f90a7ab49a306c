//! A histogram cheap enough to keep for everything that is not on the hottest path.

use std::time::Duration;

/// Sub-buckets per power of two: the error of a quantile is below 1/8.
const PARTS: u32 = 4;
const BUCKETS: usize = (PARTS as usize) * 44;

/// Counts values in buckets that grow by a quarter of a power of two; exact below eight.
#[derive(Clone)]
pub struct Histogram {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: Box::new([0; BUCKETS]), count: 0, sum: 0, max: 0 }
    }
}

impl std::fmt::Debug for Histogram {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Histogram")
            .field("count", &self.count)
            .field("p50", &self.quantile(0.5))
            .field("p99", &self.quantile(0.99))
            .field("max", &self.max)
            .finish()
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts one value `n` times, as for a sample that stands for `n`.
    pub fn record_n(&mut self, value: u64, n: u64) {
        self.buckets[bucket(value)] += n;
        self.count += n;
        self.sum = self.sum.saturating_add(value.saturating_mul(n));
        self.max = self.max.max(value);
    }

    /// Counts one duration, in nanoseconds.
    pub fn record_duration(&mut self, duration: Duration) {
        self.record(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Returns how many values were counted.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns their sum.
    pub const fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns the largest; zero when there is none.
    pub const fn max(&self) -> u64 {
        self.max
    }

    /// Returns a value that `fraction` (0 to 1) of the counted ones do not exceed, at most 25 % above the true one.
    pub fn quantile(&self, fraction: f64) -> u64 {
        let rank = (fraction.clamp(0.0, 1.0) * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank && *n > 0 {
                return upper_bound(i).min(self.max);
            }
        }
        self.max
    }

    /// Adds another histogram's counts to this one's.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets.iter()) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
    }

    /// Iterates over `(upper bound, values counted up to it)`, ascending, for buckets that are not empty.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut seen = 0;
        self.buckets.iter().enumerate().filter(|(_, n)| **n > 0).map(move |(i, n)| {
            seen += n;
            (upper_bound(i), seen)
        })
    }
}

fn bucket(value: u64) -> usize {
    if value < u64::from(PARTS) {
        return value as usize;
    }
    let exponent = 63 - value.leading_zeros();
    let part = (value >> (exponent - 2)) as u32 & (PARTS - 1);
    (((exponent - 1) * PARTS + part) as usize).min(BUCKETS - 1)
}

fn upper_bound(bucket: usize) -> u64 {
    let bucket = bucket as u32;
    if bucket < PARTS {
        return u64::from(bucket);
    }
    let (exponent, part) = (bucket / PARTS + 1, bucket % PARTS);
    let width = 1u64 << (exponent - 2);
    (1u64 << exponent) + width * u64::from(part + 1) - 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_lies_within_a_quarter_of_its_bucket(value in 0u64..(1 << 44)) {
            let bound = upper_bound(bucket(value));
            prop_assert!(bound >= value);
            prop_assert!(bound - value <= value / 4);
        }

        #[test]
        fn a_quantile_is_near_the_true_one(mut values in prop::collection::vec(0u64..1_000_000, 1..200), q in 0.0f64..1.0) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            let (truth, told) = (values[rank], histogram.quantile(q));
            prop_assert!(told >= truth && told - truth <= truth / 4 + 1);
        }
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut a, mut b, mut both) = (Histogram::default(), Histogram::default(), Histogram::default());
        for v in 0..100 {
            if v % 3 == 0 {
                a.record(v)
            } else {
                b.record(v)
            }
            both.record(v);
        }
        a.merge(&b);
        assert_eq!(a.cumulative().collect::<Vec<_>>(), both.cumulative().collect::<Vec<_>>());
        assert_eq!((a.count(), a.sum(), a.max()), (both.count(), both.sum(), both.max()));
    }

    #[test]
    fn an_empty_histogram_has_quantiles_of_zero() {
        assert_eq!(Histogram::default().quantile(0.99), 0);
    }
}

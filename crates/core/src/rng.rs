//! Randomness as an argument: a small generator that its owner seeds.

use std::time::Duration;

/// A fast generator (SplitMix64) for jitter and choice. **Not for secrets**: DNS message ids come from a CSPRNG.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// Makes a generator; equal seeds give equal sequences.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns the next 64 random bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, or zero when `bound` is zero.
    ///
    /// Multiply-shift (Lemire): the bias is below 2⁻³² for the bounds used here.
    pub const fn below(&mut self, bound: u32) -> u32 {
        (((self.next_u64() >> 32) * bound as u64) >> 32) as u32
    }

    /// Returns a duration between zero and `max`, both included ("full jitter").
    pub fn up_to(&mut self, max: Duration) -> Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX - 1);
        Duration::from_nanos(((u128::from(self.next_u64()) * (u128::from(nanos) + 1)) >> 64) as u64)
    }

    /// Returns a duration between `low` and `high`; `low` when the range is empty.
    pub fn between(&mut self, low: Duration, high: Duration) -> Duration {
        low + self.up_to(high.saturating_sub(low))
    }

    /// Returns true in `percent` of a hundred cases.
    pub const fn percent(&mut self, percent: u32) -> bool {
        self.below(100) < percent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_every_value() {
        let mut rng = Rng::new(1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            seen[rng.below(7) as usize] = true;
        }
        assert_eq!(seen, [true; 7]);
        assert_eq!(rng.below(0), 0);
    }

    #[test]
    fn jitter_stays_in_its_range() {
        let mut rng = Rng::new(2);
        let (low, high) = (Duration::from_millis(5), Duration::from_millis(9));
        for _ in 0..1000 {
            let d = rng.between(low, high);
            assert!(d >= low && d <= high);
        }
        assert_eq!(rng.between(high, low), high);
        assert_eq!(rng.up_to(Duration::ZERO), Duration::ZERO);
    }
}

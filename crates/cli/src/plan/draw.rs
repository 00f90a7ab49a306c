//! How long requests take: a mean and a spread, and times drawn from them.

use std::f64::consts::TAU;
use std::fmt;

use forebay_core::Rng;

use super::units::shown;

/// How long the upstream takes for a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Service {
    /// The mean, in seconds.
    pub(crate) mean: f64,
    /// The coefficient of variation: deviation by mean. 0 is always the same, 1 is exponential.
    pub(crate) spread: f64,
}

/// What lies between the median and the 99th percentile of a normal distribution, in deviations.
const NORMAL_P99: f64 = 2.326_347_874_040_841;

impl Service {
    /// Takes median and 99th percentile for those of a log-normal distribution: the form that latencies often have.
    pub(crate) fn of_percentiles(p50: f64, p99: f64) -> Self {
        let sigma = (p99 / p50).ln() / NORMAL_P99;
        Self { mean: p50 * (sigma * sigma / 2.0).exp(), spread: ((sigma * sigma).exp() - 1.0).sqrt() }
    }

    /// Whether theory is exact for it.
    pub(crate) fn is_exponential(&self) -> bool {
        (self.spread - 1.0).abs() < 1e-9
    }

    /// Draws a time, in nanoseconds: always the same, exponential, or log-normal.
    pub(crate) fn draw(&self, rng: &mut Rng) -> u64 {
        let seconds = if self.spread <= 0.0 {
            self.mean
        } else if self.is_exponential() {
            exponential(self.mean, rng)
        } else {
            let variance = (1.0 + self.spread * self.spread).ln();
            (self.mean.ln() - variance / 2.0 + variance.sqrt() * normal(rng)).exp()
        };
        (seconds * 1e9) as u64
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = if self.spread <= 0.0 {
            "always the same"
        } else if self.is_exponential() {
            "exponential"
        } else {
            "log-normal"
        };
        write!(f, "{} on average, spread {:.2} ({form})", shown(self.mean), self.spread)
    }
}

/// Draws an exponential time with this mean.
pub(crate) fn exponential(mean: f64, rng: &mut Rng) -> f64 {
    -mean * (1.0 - uniform(rng)).ln()
}

/// Draws from 0 (included) to 1 (not).
pub(crate) fn uniform(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Draws a normal number (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    let (a, b) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * a.ln()).sqrt() * (TAU * b).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(service: Service) -> (f64, f64) {
        let mut rng = Rng::new(1);
        let times: Vec<f64> = (0..200_000).map(|_| service.draw(&mut rng) as f64 / 1e9).collect();
        let mean = times.iter().sum::<f64>() / times.len() as f64;
        let variance = times.iter().map(|time| (time - mean).powi(2)).sum::<f64>() / times.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn what_is_drawn_has_mean_and_spread() {
        for spread in [0.0, 0.3, 1.0, 2.0] {
            let (mean, found) = moments(Service { mean: 0.00078, spread });
            assert!((mean / 0.00078 - 1.0).abs() < 0.02, "{spread}: {mean}");
            assert!((found - spread).abs() < 0.05 * spread.max(0.01), "{spread}: {found}");
        }
    }

    #[test]
    fn percentiles_come_back_as_they_were_told() {
        let service = Service::of_percentiles(0.001, 0.010);
        let mut rng = Rng::new(2);
        let mut times: Vec<u64> = (0..200_000).map(|_| service.draw(&mut rng)).collect();
        times.sort_unstable();
        let at = |part: f64| times[(times.len() as f64 * part) as usize] as f64 / 1e9;
        assert!((at(0.5) / 0.001 - 1.0).abs() < 0.02, "{}", at(0.5));
        assert!((at(0.99) / 0.010 - 1.0).abs() < 0.04, "{}", at(0.99));
        assert!((Service::of_percentiles(0.001, 0.001).spread).abs() < 1e-9);
    }
}

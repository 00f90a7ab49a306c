//! When queries of an open loop are due.

use std::collections::VecDeque;
use std::time::Duration;

use forebay_core::{Instant, Rng};

use super::{Arrivals, DnsLoad};

/// When the queries of one worker are due.
pub(super) struct Schedule {
    /// Nanoseconds between two of this worker, on average.
    interval: f64,
    times: Times,
    /// When there was last no place for a query that was due.
    pub(super) held_back_at: Instant,
}

/// Nanoseconds after the start.
enum Times {
    /// At equal distances.
    Even { offset: f64, taken: u64 },
    /// At random ones. There is always one to come.
    Poisson { rng: Rng, to_come: VecDeque<f64> },
}

impl Schedule {
    /// Plans for worker `number`; `None` in closed loop.
    pub(super) fn new(load: &DnsLoad, number: usize, seed: u64) -> Option<Self> {
        let rate = load.rate?;
        let interval = 1e9 * load.threads as f64 / rate;
        let times = match load.arrivals {
            Arrivals::Even => Times::Even { offset: 1e9 * number as f64 / rate, taken: 0 },
            Arrivals::Poisson => {
                // Each thread's own: what several do at random together is at random too.
                let mut rng = Rng::new(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let first = exponential(interval, &mut rng);
                Times::Poisson { rng, to_come: VecDeque::from([first]) }
            }
        };
        Some(Self { interval, times, held_back_at: Instant::ZERO })
    }

    /// When the next query is due.
    pub(super) fn next(&self, started: Instant) -> Instant {
        let after = match &self.times {
            Times::Even { offset, taken } => offset + *taken as f64 * self.interval,
            Times::Poisson { to_come, .. } => to_come.front().copied().unwrap_or(f64::MAX),
        };
        started + Duration::from_nanos(after as u64)
    }

    /// How many queries that were not taken are due before `elapsed` has passed since the start.
    pub(super) fn due(&mut self, elapsed: Duration) -> u64 {
        let elapsed = elapsed.as_nanos() as f64;
        match &mut self.times {
            Times::Even { offset, taken } => {
                let past = elapsed - *offset;
                let due = if past <= 0.0 { 0 } else { (past / self.interval).ceil() as u64 };
                due.saturating_sub(*taken)
            }
            Times::Poisson { rng, to_come } => {
                while let Some(last) = to_come.back().copied()
                    && last < elapsed
                {
                    to_come.push_back(last + exponential(self.interval, rng));
                }
                to_come.partition_point(|at| *at < elapsed) as u64
            }
        }
    }

    /// Takes the next query, and says when it is, or was, due.
    pub(super) fn take(&mut self, started: Instant) -> Instant {
        let due = self.next(started);
        match &mut self.times {
            Times::Even { taken, .. } => *taken += 1,
            Times::Poisson { rng, to_come } => {
                if let Some(taken) = to_come.pop_front()
                    && to_come.is_empty()
                {
                    to_come.push_back(taken + exponential(self.interval, rng));
                }
            }
        }
        due
    }
}

/// Draws an exponential time with this mean.
fn exponential(mean: f64, rng: &mut Rng) -> f64 {
    let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    -mean * (1.0 - uniform).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrivals: Arrivals, threads: usize, number: usize) -> Schedule {
        let load = DnsLoad {
            rate: Some(1000.0),
            arrivals,
            threads,
            ..DnsLoad::new("127.0.0.1:53".parse().expect("address"))
        };
        Schedule::new(&load, number, 7).expect("open loop")
    }

    fn gaps(schedule: &mut Schedule, count: usize) -> Vec<f64> {
        let mut last = Instant::ZERO;
        let mut gap = || {
            let at = schedule.take(Instant::ZERO);
            let gap = at.saturating_duration_since(last).as_secs_f64();
            last = at;
            gap
        };
        (0..count).map(|_| gap()).collect()
    }

    #[test]
    fn even_queries_are_equally_far_apart_and_threads_take_turns() {
        let mut first = schedule(Arrivals::Even, 2, 0);
        let mut second = schedule(Arrivals::Even, 2, 1);
        assert_eq!(second.next(Instant::ZERO).as_nanos() - first.next(Instant::ZERO).as_nanos(), 1_000_000);
        assert!(gaps(&mut first, 100)[1..].iter().all(|gap| (gap - 0.002).abs() < 1e-8));
        assert_eq!(second.due(Duration::from_millis(100)), 50);
        second.take(Instant::ZERO);
        assert_eq!(second.due(Duration::from_millis(100)), 49);
    }

    #[test]
    fn random_queries_have_the_rate_and_the_spread_of_an_exponential() {
        let gaps = gaps(&mut schedule(Arrivals::Poisson, 1, 0), 100_000);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean / 0.001 - 1.0).abs() < 0.02, "{mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn what_is_due_is_taken_in_order_and_none_is_left_out() {
        let mut schedule = schedule(Arrivals::Poisson, 1, 0);
        let mut taken = 0;
        for ms in (0..5000).step_by(10) {
            let elapsed = Duration::from_millis(ms);
            let due = schedule.due(elapsed);
            for _ in 0..due {
                assert!(schedule.take(Instant::ZERO) < Instant::ZERO + elapsed);
            }
            taken += due;
            assert_eq!(schedule.due(elapsed), 0);
            assert!(schedule.next(Instant::ZERO) + Duration::from_nanos(1) >= Instant::ZERO + elapsed);
        }
        assert!((4700..5300).contains(&taken), "{taken}");
    }

    #[test]
    fn threads_have_chances_of_their_own() {
        let (first, second) = (
            gaps(&mut schedule(Arrivals::Poisson, 2, 0), 3),
            gaps(&mut schedule(Arrivals::Poisson, 2, 1), 3),
        );
        assert_ne!(first, second);
    }
}

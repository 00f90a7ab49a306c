//! What queueing theory says of a line before a pool: exact for times between requests and of service that are
//! exponential, and the first guess where they are not.
//!
//! A pool of `c` connections that carry `k` requests each is `c × k` *places*. Requests that come on their own stand in an
//! M/M/c line (Erlang C); callers who come back stand in the line of a repair shop (M/M/c//N). Times are seconds.

/// The line before places to which requests come on their own, `rate` of them per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct OpenLine {
    /// The chance that a request waits at all.
    pub(crate) waits: f64,
    /// How fast the line goes down while everything is busy, per second.
    drain: f64,
}

impl OpenLine {
    /// `None` when more comes than can be served: then the line has no end. `roughness` is 1 for exponential times; the
    /// mean of the squared spreads of arrivals and of service otherwise (Allen and Cunneen).
    pub(crate) fn new(places: u64, rate: f64, service: f64, roughness: f64) -> Option<Self> {
        let load = rate * service;
        (load < places as f64)
            .then(|| Self::with_blocking(erlang_b(places, load), places, rate, service, roughness))
    }

    fn with_blocking(blocking: f64, places: u64, rate: f64, service: f64, roughness: f64) -> Self {
        let used = rate * service / places as f64;
        let waits = blocking / (1.0 - used * (1.0 - blocking));
        Self { waits, drain: (places as f64 / service - rate) / roughness.max(1e-3) }
    }

    /// The mean wait of all requests.
    pub(crate) fn mean(&self) -> f64 {
        self.waits / self.drain
    }

    /// The wait that this part (0 to 1) of all requests does not exceed.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        if self.waits <= 1.0 - part { 0.0 } else { (self.waits / (1.0 - part)).ln() / self.drain }
    }

    /// The fewest places at which `part` of all requests waits at most `target`; `None` if `places_max` are too few.
    pub(crate) fn fewest(
        rate: f64,
        service: f64,
        roughness: f64,
        part: f64,
        target: f64,
        places_max: u64,
    ) -> Option<u64> {
        let load = rate * service;
        let mut blocking = 1.0;
        for places in 1..=places_max {
            blocking = load * blocking / (places as f64 + load * blocking);
            if places as f64 > load
                && Self::with_blocking(blocking, places, rate, service, roughness).quantile(part) <= target
            {
                return Some(places);
            }
        }
        None
    }
}

/// Erlang's B: the chance that all of so many places are busy, when those who find them so leave.
fn erlang_b(places: u64, load: f64) -> f64 {
    (1..=places).fold(1.0, |blocking, n| load * blocking / (n as f64 + load * blocking))
}

/// The line before places at which `callers` ask again and again, after a pause each time.
#[derive(Clone, Debug)]
pub(crate) struct ClosedLine {
    places: u64,
    callers: u64,
    service: f64,
    think: f64,
    /// How many others a caller finds there: the smallest number that counts, and the chances from there on.
    first: u64,
    chances: Vec<f64>,
}

/// What is rarer than this part of the likeliest is left out.
const NEGLIGIBLE: f64 = 1e-16;

impl ClosedLine {
    /// `places` and `callers` are at least 1.
    pub(crate) fn new(places: u64, callers: u64, service: f64, think: f64) -> Self {
        // A caller who comes finds what the others alone would make (the arrival theorem).
        let others = callers - 1;
        let (first, chances) = if think <= 0.0 {
            (others, vec![1.0])
        } else {
            // From n at the places to n + 1: this much likelier.
            let ratio = |n: u64| (others - n) as f64 * service / (think * (n + 1).min(places) as f64);
            // It falls with n: the likeliest number is where it passes 1.
            let (mut low, mut high) = (0, others);
            while low < high {
                let middle = low + (high - low) / 2;
                if ratio(middle) >= 1.0 { low = middle + 1 } else { high = middle }
            }
            let (mut below, mut above) = (Vec::new(), vec![1.0]);
            let (mut n, mut weight) = (low, 1.0);
            while n > 0 {
                weight /= ratio(n - 1);
                if weight < NEGLIGIBLE {
                    break;
                }
                below.push(weight);
                n -= 1;
            }
            let first = n;
            (n, weight) = (low, 1.0);
            while n < others {
                weight *= ratio(n);
                if weight < NEGLIGIBLE {
                    break;
                }
                above.push(weight);
                n += 1;
            }
            below.reverse();
            below.append(&mut above);
            let sum: f64 = below.iter().sum();
            (first, below.into_iter().map(|weight| weight / sum).collect())
        };
        Self { places, callers, service, think, first, chances }
    }

    fn each(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        (self.first..).zip(self.chances.iter().copied()).filter(|(n, _)| *n >= self.places)
    }

    /// The chance that a request waits at all.
    pub(crate) fn waits(&self) -> f64 {
        self.each().map(|(_, chance)| chance).sum()
    }

    /// The mean wait of all requests.
    pub(crate) fn mean(&self) -> f64 {
        let turn = self.service / self.places as f64;
        self.each().map(|(n, chance)| chance * (n - self.places + 1) as f64 * turn).sum()
    }

    /// Requests per second.
    pub(crate) fn throughput(&self) -> f64 {
        self.callers as f64 / (self.think + self.mean() + self.service)
    }

    /// The wait that this part (0 to 1) of all requests does not exceed.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        let beyond = 1.0 - part;
        if self.tail(0.0) <= beyond {
            return 0.0;
        }
        let mut high = self.service / self.places as f64;
        while self.tail(high) > beyond {
            high *= 2.0;
        }
        let mut low = 0.0;
        for _ in 0..60 {
            let middle = (low + high) / 2.0;
            if self.tail(middle) > beyond { low = middle } else { high = middle }
        }
        high
    }

    /// The chance of a wait longer than this.
    fn tail(&self, wait: f64) -> f64 {
        let x = wait * self.places as f64 / self.service;
        let (mut sum, mut known) = (0.0, None);
        for (n, chance) in self.each() {
            let turns = n - self.places + 1;
            let longer = match known {
                None => erlang_tail(turns, x),
                Some(before) => f64::min(before + poisson(turns - 1, x), 1.0),
            };
            known = Some(longer);
            sum += chance * longer;
        }
        sum
    }

    /// The fewest places at which `part` of all requests waits at most `target`: never more than there are callers.
    pub(crate) fn fewest(callers: u64, service: f64, think: f64, part: f64, target: f64) -> u64 {
        let (mut low, mut high) = (1, callers);
        while low < high {
            let middle = low + (high - low) / 2;
            if Self::new(middle, callers, service, think).quantile(part) <= target {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// The chance that so many turns, each exponential with mean 1, take longer than `x`.
fn erlang_tail(turns: u64, x: f64) -> f64 {
    if x <= 0.0 {
        return 1.0;
    }
    let last = turns - 1;
    let top = last.min(x as u64);
    let mut sum = 0.0;
    for i in (0..=top).rev() {
        let part = poisson(i, x);
        sum += part;
        if part < sum * NEGLIGIBLE {
            break;
        }
    }
    for i in top + 1..=last {
        let part = poisson(i, x);
        sum += part;
        if part < sum * NEGLIGIBLE {
            break;
        }
    }
    sum.min(1.0)
}

/// The chance of exactly `n` events where `mean` are expected.
fn poisson(n: u64, mean: f64) -> f64 {
    if mean <= 0.0 {
        return if n == 0 { 1.0 } else { 0.0 };
    }
    (n as f64 * mean.ln() - mean - ln_factorial(n)).exp()
}

fn ln_factorial(n: u64) -> f64 {
    if n < 32 {
        return (2..=n).map(|i| (i as f64).ln()).sum();
    }
    // Stirling's series; the next term is below 1e-11.
    let n = n as f64;
    (n + 0.5) * n.ln() - n + 0.5 * std::f64::consts::TAU.ln() + 1.0 / (12.0 * n) - 1.0 / (360.0 * n.powi(3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1e-12)
    }

    #[test]
    fn one_place_is_the_line_of_the_textbook() {
        // M/M/1 at 80 %: four of five wait, and the mean wait is ρ/(μ − λ).
        let line = OpenLine::new(1, 80.0, 0.01, 1.0).unwrap();
        assert!(near(line.waits, 0.8));
        assert!(near(line.mean(), 0.8 / 20.0));
        assert!(near(line.quantile(0.9), 8f64.ln() / 20.0));
    }

    #[test]
    fn erlangs_own_table_is_met() {
        // 10 places, 7 erlang: B = 7.874 %, C = 22.17 % (printed tables).
        assert!((erlang_b(10, 7.0) - 0.07874).abs() < 1e-5);
        assert!((OpenLine::new(10, 7.0, 1.0, 1.0).unwrap().waits - 0.2217).abs() < 1e-4);
    }

    #[test]
    fn more_than_can_be_served_is_no_line() {
        assert_eq!(OpenLine::new(10, 1000.0, 0.01, 1.0), None);
        assert!(OpenLine::new(11, 1000.0, 0.01, 1.0).is_some());
    }

    #[test]
    fn an_empty_queue_predicts_no_wait() {
        let line = OpenLine::new(100, 1.0, 0.001, 1.0).unwrap();
        assert!(line.waits < 1e-12 && line.quantile(0.999) == 0.0);
        let line = ClosedLine::new(8, 8, 0.001, 0.0);
        assert_eq!((line.waits(), line.mean(), line.quantile(0.999)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn callers_without_a_pause_wait_for_all_before_them() {
        // 256 callers, 10 connections, 0.78 ms: 246 stand in line, ten go each 0.78 ms.
        let line = ClosedLine::new(10, 256, 0.00078, 0.0);
        assert!(near(line.mean(), 246.0 * 0.00078 / 10.0));
        assert!(near(line.throughput(), 10.0 / 0.00078));
        // The sum of 246 turns is nearly normal.
        let (mean, deviation) = (line.mean(), line.mean() / 246f64.sqrt());
        assert!((line.quantile(0.99) - (mean + 2.326 * deviation)).abs() < 0.15 * deviation);
    }

    #[test]
    fn callers_who_pause_are_the_repair_shop_of_the_textbook() {
        // One repairer, two machines, equal rates: p0 : p1 : p2 = 1 : 2 : 2 of two; of the one other, 1 : 1.
        let line = ClosedLine::new(1, 2, 1.0, 1.0);
        assert!(near(line.waits(), 0.5));
        assert!(near(line.mean(), 0.5));
        assert!(near(line.throughput(), 2.0 / 2.5));
    }

    #[test]
    fn many_callers_who_pause_long_come_as_if_on_their_own() {
        let open = OpenLine::new(12, 1000.0, 0.01, 1.0).unwrap();
        let closed = ClosedLine::new(12, 1_000_000, 0.01, 1000.0 - 0.015);
        assert!((closed.throughput() - 1000.0).abs() < 0.1);
        assert!((closed.mean() / open.mean() - 1.0).abs() < 0.01, "{} {}", closed.mean(), open.mean());
        assert!((closed.quantile(0.99) / open.quantile(0.99) - 1.0).abs() < 0.01);
    }

    #[test]
    fn a_million_callers_are_no_trouble() {
        let line = ClosedLine::new(1000, 1_000_000, 0.001, 0.0);
        assert!((line.quantile(0.99) / line.mean() - 1.0) < 0.01);
    }

    #[test]
    fn factorials_join_where_the_series_begins() {
        let exact: f64 = (2..=32).map(|i| f64::from(i).ln()).sum();
        assert!(near(ln_factorial(32), exact));
    }

    proptest! {
        #[test]
        fn one_place_more_never_waits_longer(
            load in 0.1f64..200.0, extra in 0u64..20, part in 0.5f64..0.999, roughness in 0.1f64..10.0,
        ) {
            let places = load as u64 + 1 + extra;
            let (less, more) = (
                OpenLine::new(places, load, 1.0, roughness).unwrap(),
                OpenLine::new(places + 1, load, 1.0, roughness).unwrap(),
            );
            prop_assert!(more.waits <= less.waits && more.mean() <= less.mean());
            prop_assert!(more.quantile(part) <= less.quantile(part));
            prop_assert!((0.0..=1.0).contains(&less.waits));
        }

        #[test]
        fn the_fewest_places_meet_the_target_and_one_less_does_not(
            load in 0.1f64..200.0, part in 0.5f64..0.999, target in 0.001f64..2.0,
        ) {
            let fewest = OpenLine::fewest(load, 1.0, 1.0, part, target, 10_000).unwrap();
            prop_assert!(OpenLine::new(fewest, load, 1.0, 1.0).unwrap().quantile(part) <= target);
            if fewest > 1 && let Some(less) = OpenLine::new(fewest - 1, load, 1.0, 1.0) {
                prop_assert!(less.quantile(part) > target);
            }
        }

        #[test]
        fn the_fewest_places_for_callers_do_the_same(
            callers in 1u64..400, think in 0.0f64..20.0, part in 0.5f64..0.999, target in 0.001f64..2.0,
        ) {
            let fewest = ClosedLine::fewest(callers, 1.0, think, part, target);
            prop_assert!((1..=callers).contains(&fewest));
            prop_assert!(ClosedLine::new(fewest, callers, 1.0, think).quantile(part) <= target);
            if fewest > 1 {
                prop_assert!(ClosedLine::new(fewest - 1, callers, 1.0, think).quantile(part) > target);
            }
        }

        #[test]
        fn littles_law_holds_for_callers(callers in 1u64..300, places in 1u64..100, think in 0.0f64..20.0) {
            let line = ClosedLine::new(places, callers, 1.0, think);
            // No more than all places at work, no more than all callers without a wait.
            prop_assert!(line.throughput() <= places as f64 * (1.0 + 1e-9));
            prop_assert!(line.throughput() <= callers as f64 / (1.0 + think) * (1.0 + 1e-9));
        }
    }
}

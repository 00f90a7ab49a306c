//! The statistics of a comparison: medians, the Mann–Whitney U test, and bootstrap intervals. Plain arithmetic.

use forebay_core::Rng;

/// Up to so many values of both sides together, none of which comes twice, the test is exact.
const EXACT_MAX: usize = 40;

/// Returns the middle of `values`: with an even number of them, the mean of the two in the middle. `None` without values.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    median_of(&mut sorted)
}

/// The same without a copy: puts the values in order.
fn median_of(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// What the Mann–Whitney U test says of two groups of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MannWhitney {
    /// In how many pairs the first group's value is the larger; a tie counts half.
    pub u: f64,
    /// How probable so large a difference, in either direction, would be if there were none (0 to 1).
    pub p: f64,
    /// Whether `p` was counted out; else it is the normal approximation, with corrections for ties and continuity.
    pub is_exact: bool,
}

/// Tests whether values of `a` tend to be larger, or smaller, than those of `b`. `None` when a group is empty or has a
/// value that is no number.
///
/// Up to 40 values without ties, `p` is exact.
///
/// ```
/// use forebay_bench::compare::stats::mann_whitney;
///
/// // Four rounds a side, all of the one below all of the other: 2 of 70 orders are so clear.
/// let test = mann_whitney(&[1.0, 2.0, 3.0, 4.0], &[5.0, 6.0, 7.0, 8.0]).unwrap();
/// assert_eq!((test.u, test.p), (0.0, 2.0 / 70.0));
/// ```
pub fn mann_whitney(a: &[f64], b: &[f64]) -> Option<MannWhitney> {
    if a.is_empty() || b.is_empty() || a.iter().chain(b).any(|value| value.is_nan()) {
        return None;
    }
    let mut all: Vec<(f64, bool)> =
        a.iter().map(|value| (*value, true)).chain(b.iter().map(|value| (*value, false))).collect();
    all.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut rank_sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for group in all.chunk_by(|one, other| one.0 == other.0) {
        // Ranks count from 1; those who share a value share the mean of their ranks.
        let size = group.len() as f64;
        let rank = before + (size + 1.0) / 2.0;
        rank_sum += rank * group.iter().filter(|(_, is_first)| *is_first).count() as f64;
        ties += size.powi(3) - size;
        before += size;
    }
    let (n, m) = (a.len() as f64, b.len() as f64);
    let u = rank_sum - n * (n + 1.0) / 2.0;
    let is_exact = ties == 0.0 && all.len() <= EXACT_MAX;
    let p = if is_exact { exact_p(a.len(), b.len(), u) } else { normal_p(n, m, u, ties) };
    Some(MannWhitney { u, p, is_exact })
}

/// Of all orders of `n` and `m` values, the share with a U that is as far from the middle.
fn exact_p(n: usize, m: usize, u: f64) -> f64 {
    let counts = orders(n, m);
    let extreme = u.min((n * m) as f64 - u) as usize;
    let below: f64 = counts[..=extreme].iter().sum();
    let all: f64 = counts.iter().sum();
    (2.0 * below / all).min(1.0)
}

/// In how many orders of `n` and `m` values U is 0, 1, … n·m: the coefficients of the Gaussian binomial, which is the
/// product of (1 − q^(m+i)) / (1 − q^i) for i from 1 to n.
fn orders(n: usize, m: usize) -> Vec<f64> {
    let mut counts = vec![0.0; n * m + 1];
    counts[0] = 1.0;
    for i in 1..=n {
        for u in (m + i..counts.len()).rev() {
            counts[u] -= counts[u - m - i];
        }
        for u in i..counts.len() {
            counts[u] += counts[u - i];
        }
    }
    counts
}

fn normal_p(n: f64, m: f64, u: f64, ties: f64) -> f64 {
    let all = n + m;
    let variance = n * m / 12.0 * (all + 1.0 - ties / (all * (all - 1.0)));
    if variance <= 0.0 {
        // All values are the same.
        return 1.0;
    }
    let z = ((u - n * m / 2.0).abs() - 0.5).max(0.0) / variance.sqrt();
    erfc(z / std::f64::consts::SQRT_2)
}

/// The complementary error function for x ≥ 0: its series near zero, its continued fraction (Lentz) further out.
fn erfc(x: f64) -> f64 {
    let root_pi = std::f64::consts::PI.sqrt();
    if x < 2.0 {
        let (mut term, mut sum) = (x, x);
        for k in 1..200 {
            let k = f64::from(k);
            term *= -x * x / k;
            sum += term / (2.0 * k + 1.0);
            if term.abs() < 1e-18 {
                break;
            }
        }
        return 1.0 - 2.0 / root_pi * sum;
    }
    let fraction = (1..200).rev().fold(x, |below, k| x + f64::from(k) / 2.0 / below);
    (-x * x).exp() / (root_pi * fraction)
}

/// A ratio of medians, and between what it may lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median of the second group over that of the first.
    pub ratio: f64,
    /// Its ends; `None` when a group has less than two values, which show no spread.
    pub interval: Option<(f64, f64)>,
}

/// Returns the median of `b` over the median of `a`, with a bootstrap interval: both groups are drawn from anew, with
/// replacement, `resamples` times, and the middle `confidence` (0 to 1) of the ratios is the interval. The same `seed`
/// gives the same interval. `None` when a group is empty or has a value that is not above zero.
pub fn ratio(a: &[f64], b: &[f64], confidence: f64, resamples: usize, seed: u64) -> Option<Ratio> {
    if a.iter().chain(b).any(|value| !(value.is_finite() && *value > 0.0)) {
        return None;
    }
    let ratio = median(b)? / median(a)?;
    if a.len() < 2 || b.len() < 2 || resamples == 0 {
        return Some(Ratio { ratio, interval: None });
    }
    let mut rng = Rng::new(seed);
    let mut room = Vec::with_capacity(a.len().max(b.len()));
    let mut draw = |from: &[f64]| {
        room.clear();
        room.extend((0..from.len()).map(|_| from[rng.below(from.len() as u32) as usize]));
        median_of(&mut room)
    };
    let mut ratios: Vec<f64> = (0..resamples).filter_map(|_| Some((1.0 / draw(a)?) * draw(b)?)).collect();
    ratios.sort_by(f64::total_cmp);
    let outside = ((1.0 - confidence.clamp(0.0, 1.0)) / 2.0 * ratios.len() as f64) as usize;
    let outside = outside.min((ratios.len() - 1) / 2);
    Some(Ratio { ratio, interval: Some((ratios[outside], ratios[ratios.len() - 1 - outside])) })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(median(&[9.0, 1.0, 5.0]), Some(5.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_worked_example_comes_out_as_in_the_book() {
        // Ages at diagnosis of men and women (the example of SciPy's documentation): U = 17, p = 1/9 exactly.
        let test = mann_whitney(&[19.0, 22.0, 16.0, 29.0, 24.0], &[20.0, 11.0, 17.0, 12.0]).unwrap();
        assert_eq!((test.u, test.is_exact), (17.0, true));
        assert!(near(test.p, 1.0 / 9.0), "{}", test.p);
        // By the normal approximation, with its correction for continuity, the same page has 0.11134688653314041.
        assert!(near(normal_p(5.0, 4.0, 17.0, 0.0), 0.111_346_886_533_140_41));
    }

    #[test]
    fn tortoises_and_hares_are_counted() {
        // T H H H H H T T T T T H: the tortoises win 25 of the 36 races, the hares 11.
        let places = |animal| {
            "THHHHHTTTTTH"
                .chars()
                .zip(1..)
                .filter(move |(c, _)| *c == animal)
                .map(|(_, place)| f64::from(place))
        };
        let (tortoises, hares): (Vec<f64>, Vec<f64>) = (places('T').collect(), places('H').collect());
        assert_eq!(mann_whitney(&tortoises, &hares).unwrap().u, 25.0);
        assert_eq!(mann_whitney(&hares, &tortoises).unwrap().u, 11.0);
    }

    #[test]
    fn orders_are_counted_as_by_hand() {
        assert_eq!(orders(2, 2), [1.0, 1.0, 2.0, 1.0, 1.0]);
        assert_eq!(orders(1, 4), [1.0; 5]);
        assert_eq!(orders(20, 20).iter().sum::<f64>(), 137_846_528_820.0, "40 over 20");
    }

    #[test]
    fn too_few_rounds_cannot_show_a_difference_however_clear() {
        let apart = |n: u32| {
            let a: Vec<f64> = (0..n).map(f64::from).collect();
            let b: Vec<f64> = (100..100 + n).map(f64::from).collect();
            mann_whitney(&a, &b).unwrap().p
        };
        assert!(near(apart(1), 1.0) && near(apart(3), 0.1) && near(apart(5), 2.0 / 252.0));
    }

    #[test]
    fn ties_share_their_ranks_and_equals_differ_in_nothing() {
        let test = mann_whitney(&[1.0, 2.0, 2.0], &[2.0, 3.0, 4.0]).unwrap();
        assert_eq!((test.u, test.is_exact), (1.0, false));
        // n·m/12 · (N+1 − 24/30) = 4.65; z = (|1 − 4.5| − 0.5) / √4.65 = 1.391.
        assert!((test.p - 0.164_1).abs() < 5e-4, "{}", test.p);
        assert_eq!(mann_whitney(&[5.0; 6], &[5.0; 9]).unwrap().p, 1.0);
        assert_eq!(mann_whitney(&[], &[1.0]), None);
        assert_eq!(mann_whitney(&[f64::NAN], &[1.0]), None);
    }

    #[test]
    fn the_error_function_is_that_of_the_tables() {
        for (x, expected) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (1.999, 0.004_698_3),
            (2.0, 0.004_677_734_981_047_266),
            (3.0, 2.209_049_699_858_544e-5),
        ] {
            assert!((erfc(x) / expected - 1.0).abs() < 1e-4, "{x}: {}", erfc(x));
        }
        assert!((erfc(3.0) / 2.209_049_699_858_544e-5 - 1.0).abs() < 1e-9);
    }

    #[test]
    fn an_interval_holds_the_ratio_and_repeats_with_its_seed() {
        let a = [100.0, 101.0, 99.0, 100.5, 100.2];
        let b: Vec<f64> = a.iter().map(|value| value * 1.1).collect();
        let found = ratio(&a, &b, 0.95, 5000, 7).unwrap();
        assert!(near(found.ratio, 1.1));
        let (low, high) = found.interval.unwrap();
        assert!(1.07 < low && low < 1.1 && 1.1 < high && high < 1.13, "{low} {high}");
        assert_eq!(ratio(&a, &b, 0.95, 5000, 7), Some(found));
        assert_eq!(ratio(&[1.0], &[3.0, 3.0], 0.95, 100, 1), Some(Ratio { ratio: 3.0, interval: None }));
        assert_eq!(ratio(&[0.0], &[3.0], 0.95, 100, 1), None);
        assert_eq!(ratio(&[], &[3.0], 0.95, 100, 1), None);
    }

    #[test]
    fn nineteen_of_twenty_intervals_hold_the_truth() {
        // Two groups of 12 from one population, 400 times over: the ratio of the medians is 1.
        let mut rng = forebay_core::Rng::new(11);
        let mut draw = || -> Vec<f64> {
            (0..12).map(|_| 100.0 + (0..4).map(|_| f64::from(rng.below(1000)) / 100.0).sum::<f64>()).collect()
        };
        let (mut held, mut called) = (0, 0);
        for round in 0..400 {
            let (a, b) = (draw(), draw());
            let (low, high) = ratio(&a, &b, 0.95, 400, round).unwrap().interval.unwrap();
            held += u32::from(low <= 1.0 && 1.0 <= high);
            called += u32::from(mann_whitney(&a, &b).unwrap().p < 0.05);
        }
        assert!((360..=400).contains(&held), "{held} of 400");
        assert!((4..=36).contains(&called), "{called} of 400 were called different");
    }

    proptest! {
        #[test]
        fn swapping_the_groups_mirrors_u_and_keeps_p(
            a in vec(0u32..50, 1..30), b in vec(0u32..50, 1..30),
        ) {
            let (a, b): (Vec<f64>, Vec<f64>) =
                (a.into_iter().map(f64::from).collect(), b.into_iter().map(f64::from).collect());
            let (one, other) = (mann_whitney(&a, &b).unwrap(), mann_whitney(&b, &a).unwrap());
            prop_assert!(near(one.u + other.u, (a.len() * b.len()) as f64));
            prop_assert!(near(one.p, other.p) && (0.0..=1.0).contains(&one.p), "{} {}", one.p, other.p);
        }

        #[test]
        fn u_counts_the_pairs_that_were_won(a in vec(0u32..20, 1..12), b in vec(0u32..20, 1..12)) {
            let mut won = 0.0;
            for (one, other) in a.iter().flat_map(|one| b.iter().map(move |other| (one, other))) {
                won += if one > other { 1.0 } else if one == other { 0.5 } else { 0.0 };
            }
            let as_floats = |values: &[u32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
            prop_assert!(near(mann_whitney(&as_floats(&a), &as_floats(&b)).unwrap().u, won));
        }

        #[test]
        fn a_scale_changes_neither_test_nor_interval_but_the_ratio(
            a in vec(1u32..1000, 2..10), b in vec(1u32..1000, 2..10), seed in any::<u64>(),
        ) {
            let scaled = |values: &[u32], by: f64| values.iter().map(|v| f64::from(*v) * by).collect::<Vec<_>>();
            let (a1, b1, a2, b2) = (scaled(&a, 1.0), scaled(&b, 1.0), scaled(&a, 4.0), scaled(&b, 4.0));
            prop_assert_eq!(mann_whitney(&a1, &b1), mann_whitney(&a2, &b2));
            let (one, other) =
                (ratio(&a1, &b1, 0.95, 200, seed).unwrap(), ratio(&a2, &b2, 0.95, 200, seed).unwrap());
            prop_assert!(near(one.ratio, other.ratio));
            let ((low, high), (low2, high2)) = (one.interval.unwrap(), other.interval.unwrap());
            prop_assert!(low <= high && near(low, low2) && near(high, high2));
            let smallest = b.iter().min().unwrap() / a.iter().max().unwrap().max(&1);
            prop_assert!(low >= f64::from(smallest) * 0.99, "no ratio is below that of the extremes");
        }
    }
}

//! Which endpoint of an upstream is asked next, how many at once, and how fast each is.
//!
//! ```text
//!  launch ──▶ begin ──▶ next_endpoint: not failed, not busy, not asked yet ──▶ available first ──▶ by the strategy
//!    │ parallel: several at once      ▲
//!    │ and one more now and then      │  error, head start over, attempt late
//!    └────────────────────────────────┘
//! ```
//!
//! A set of endpoints is a word of bits: their places among those of their upstream.

use std::time::Duration;

use forebay_core::{EndpointId, Instant};

use super::config::{Strategy, StrategyConfig};
use super::{Forwarder, Group};

/// How many deviations above the mean an answer may be late before the next endpoint is asked too (RFC 6298 §2.3).
const DEVIATIONS: u64 = 4;
/// What an endpoint is taken for that never answered: slower than a near one, quicker than a failing one.
const UNKNOWN: Duration = Duration::from_millis(200);
/// After so long without news an estimate counts half, again and again: what was slow once is tried again some day.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// How fast an endpoint answers: smoothed mean and deviation, as a TCP sender keeps them (RFC 6298 §2), fading.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Estimate {
    mean_nanos: u64,
    deviation_nanos: u64,
    seen: Instant,
    /// Whether all that is known is that it was slower than another.
    guessed: bool,
}

impl Estimate {
    /// The smoothed latency and its mean deviation; `None` before the first answer.
    pub(crate) fn known(&self) -> Option<(Duration, Duration)> {
        let known = self.mean_nanos > 0 && !self.guessed;
        known.then(|| (Duration::from_nanos(self.mean_nanos), Duration::from_nanos(self.deviation_nanos)))
    }

    /// Notes how long an answer took.
    pub(crate) fn observe(&mut self, now: Instant, took: Duration) {
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        if self.mean_nanos == 0 || self.guessed || self.half_lives(now) > 0 {
            // RFC 6298 §2.2: the first measurement, and the first after a long while.
            *self = Self { mean_nanos: sample, deviation_nanos: sample / 2, seen: now, guessed: false };
            return;
        }
        let off = self.mean_nanos.abs_diff(sample);
        self.deviation_nanos = self.deviation_nanos - self.deviation_nanos / 4 + off / 4;
        self.mean_nanos = (self.mean_nanos - self.mean_nanos / 8 + sample / 8).max(1);
        self.seen = now;
    }

    /// Notes that there was no answer within this time, in which another endpoint gave one.
    pub(crate) fn observe_none(&mut self, now: Instant, within: Duration) {
        let sample = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX).max(1);
        if self.mean_nanos == 0 {
            *self = Self { mean_nanos: sample * 2, deviation_nanos: sample, seen: now, guessed: true };
        } else if sample > self.score(now) {
            self.observe(now, within);
        }
    }

    /// Less is better, in nanoseconds.
    pub(crate) fn score(&self, now: Instant) -> u64 {
        match self.mean_nanos {
            0 => UNKNOWN.as_nanos() as u64,
            mean => (mean >> self.half_lives(now)).max(1),
        }
    }

    /// How long it is given before another endpoint is asked too.
    pub(crate) fn head_start(&self, config: &StrategyConfig) -> Duration {
        match self.known() {
            None => config.head_start_max,
            Some(_) => {
                let patience =
                    self.mean_nanos.saturating_add(DEVIATIONS.saturating_mul(self.deviation_nanos));
                Duration::from_nanos(patience).clamp(config.head_start_min, config.head_start_max)
            }
        }
    }

    fn half_lives(&self, now: Instant) -> u32 {
        let age = now.saturating_duration_since(self.seen).as_nanos() / HALF_LIFE.as_nanos();
        age.min(63) as u32
    }
}

/// What the strategies know of one endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointFigures {
    /// How long it takes to answer, smoothed, and the mean deviation from that; `None` before the first answer.
    pub latency: Option<(Duration, Duration)>,
    /// Questions that others were asked beside it, and it answered first.
    pub races_won: u64,
    /// Questions that it was asked beside others, and another answered first.
    pub races_lost: u64,
}

impl EndpointFigures {
    /// Adds another worker's figures to these; of the latencies, the longer one is kept.
    pub fn merge(&mut self, other: &Self) {
        self.latency = self.latency.max(other.latency);
        self.races_won += other.races_won;
        self.races_lost += other.races_lost;
    }
}

/// Every endpoint of an upstream with so many.
const fn all(n: u32) -> u64 {
    u64::MAX >> (64 - n)
}

/// Iterates over the places in a set.
fn places(mut set: u64) -> impl Iterator<Item = u32> + Clone {
    std::iter::from_fn(move || {
        let place = (set != 0).then(|| set.trailing_zeros())?;
        set &= set - 1;
        Some(place)
    })
}

impl Forwarder {
    /// Iterates over what the strategies know of each endpoint, in their order.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointFigures> + '_ {
        self.endpoints.iter().map(|address| EndpointFigures {
            latency: address.latency.known(),
            races_won: address.won,
            races_lost: address.lost,
        })
    }

    /// All endpoints of an upstream.
    pub(super) fn everybody(&self, upstream: u16) -> u64 {
        all(self.upstreams[usize::from(upstream)].len.into())
    }

    /// Where in the order of an upstream's endpoints a question begins.
    pub(super) fn first_endpoint(&mut self, upstream: u16) -> u32 {
        let group = &mut self.upstreams[usize::from(upstream)];
        let n = u32::from(group.len);
        match group.strategy {
            _ if n == 1 => 0,
            Strategy::RoundRobin => {
                group.turn = (group.turn + 1) % n;
                group.turn
            }
            Strategy::Random => self.chance.below(n),
            _ => 0,
        }
    }

    /// Which endpoints a question asks beside the first, at its beginning.
    pub(super) fn company(&mut self, flight: u32) -> Company {
        let Group { strategy, len, .. } = *self.group(flight);
        let (n, max) = (u32::from(len), self.choosing.parallel_max);
        let others = if strategy == Strategy::Parallel { max.min(n) - 1 } else { 0 };
        let measures = match strategy {
            Strategy::Parallel => others > 0 && max < n,
            Strategy::Racing | Strategy::Fastest => n > 1,
            _ => false,
        };
        let stalest = measures && self.chance.percent(self.choosing.probing_percent);
        Company { others: if stalest { others.saturating_sub(1) } else { others }, stalest }
    }

    /// The endpoint to ask next: by its place in the upstream, and none of `skip`. `None`: everybody has failed or is
    /// being asked.
    pub(super) fn next_endpoint(&mut self, now: Instant, flight: u32, skip: u64) -> Option<u32> {
        let group = *self.group(flight);
        let busy = self.flights.busy(flight, group.first);
        let this = self.flights.flight_mut(flight);
        let open = all(group.len.into()) & !(this.failed | busy | skip);
        if open == 0 {
            return None;
        }
        let mut fresh = open & !this.asked;
        if fresh == 0 {
            // Another round.
            this.asked = 0;
            fresh = open;
        }
        let unhurt = fresh & !this.struck;
        let fresh = if unhurt == 0 { fresh } else { unhurt };
        let (stream, cursor) = (this.stream, this.cursor);
        if fresh.is_power_of_two() {
            return Some(fresh.trailing_zeros());
        }
        let id = |place: u32| self.engine_endpoint(group.first + place as u16, stream);
        let is_available = |place: &u32| self.engine.is_available(now, id(*place));
        let in_order = places(fresh & (u64::MAX << cursor)).chain(places(fresh & !(u64::MAX << cursor)));
        if matches!(group.strategy, Strategy::Sequential | Strategy::RoundRobin) {
            return in_order.clone().find(is_available).or_else(|| in_order.clone().next());
        }
        let available = places(fresh).filter(is_available).fold(0u64, |set, place| set | 1 << place);
        let from = if available == 0 { fresh } else { available };
        let score = |place: u32| self.endpoints[usize::from(group.first + place as u16)].latency.score(now);
        match group.strategy {
            Strategy::Sequential | Strategy::RoundRobin => in_order.clone().next(),
            Strategy::Random => {
                let nth = self.chance.below(from.count_ones());
                places(from).nth(nth as usize)
            }
            Strategy::LeastInflight => places(from).min_by_key(|place| self.engine.in_use(id(*place))),
            Strategy::Parallel | Strategy::Racing => places(from).min_by_key(|place| score(*place)),
            Strategy::Fastest => {
                let best = places(from).map(score).min()?;
                let equal = places(from).filter(|place| score(*place) <= best.saturating_add(best / EQUALS));
                let nth = self.chance.below(equal.clone().count() as u32);
                equal.clone().nth(nth as usize)
            }
        }
    }

    /// The endpoint that was not heard from for longest, of those that a question has not asked.
    pub(super) fn stalest_endpoint(&self, now: Instant, flight: u32) -> Option<u32> {
        let Group { first, len, .. } = *self.group(flight);
        let this = self.flights.flight(flight);
        let rest = all(len.into()) & !(this.failed | this.asked);
        places(rest)
            .filter(|place| {
                self.engine.is_available(now, self.engine_endpoint(first + *place as u16, this.stream))
            })
            .min_by_key(|place| self.endpoints[usize::from(first + *place as u16)].latency.seen)
    }

    pub(super) fn engine_endpoint(&self, endpoint: u16, stream: bool) -> EndpointId {
        let address = &self.endpoints[usize::from(endpoint)];
        match address.datagram {
            Some(datagram) if !stream => datagram,
            _ => address.stream,
        }
    }
}

/// Endpoints whose latency is within this part of the best are as good as it: a fifth.
const EQUALS: u64 = 5;

/// Who is asked beside the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Company {
    /// So many more, whoever is next.
    pub(super) others: u32,
    /// And the one that was not heard from for longest, to measure it.
    pub(super) stalest: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(1000 + seconds)
    }

    fn measured(samples: &[u32]) -> Estimate {
        let mut estimate = Estimate::default();
        samples.iter().for_each(|ms| estimate.observe(at(0), MS * *ms));
        estimate
    }

    #[test]
    fn a_steady_latency_is_learnt_and_its_deviation_vanishes() {
        let estimate = measured(&[20; 60]);
        let (mean, deviation) = estimate.known().unwrap();
        assert!(mean > MS * 19 && mean < MS * 21, "{mean:?}");
        assert!(deviation < MS, "{deviation:?}");
    }

    #[test]
    fn the_head_start_is_the_latency_and_four_deviations_within_bounds() {
        let config = StrategyConfig::default();
        assert_eq!(Estimate::default().head_start(&config), config.head_start_max, "nothing is known");
        assert_eq!(measured(&[20]).head_start(&config), MS * 60, "RFC 6298: 20 + 4 · 10");
        assert_eq!(measured(&[1; 50]).head_start(&config), config.head_start_min);
        assert_eq!(measured(&[400; 50]).head_start(&config), config.head_start_max);
    }

    #[test]
    fn what_was_slow_fades_and_is_measured_anew() {
        let mut estimate = measured(&[64; 9]);
        let fresh = estimate.score(at(29));
        assert_eq!(estimate.score(at(60)), fresh >> 2);
        estimate.observe(at(60), MS * 5);
        assert_eq!(estimate.known().unwrap().0, MS * 5, "old news does not weigh on it");
    }

    #[test]
    fn a_loser_is_only_known_to_be_slower() {
        let mut estimate = Estimate::default();
        estimate.observe_none(at(0), MS * 10);
        assert!(estimate.known().is_none());
        assert!(estimate.score(at(0)) > 10_000_000);
        estimate.observe(at(0), MS * 12);
        assert_eq!(estimate.known().unwrap().0, MS * 12);
        estimate.observe_none(at(0), MS * 3);
        assert_eq!(estimate.known().unwrap().0, MS * 12, "less than is known teaches nothing");
        (0..50).for_each(|_| estimate.observe_none(at(0), MS * 100));
        assert!(estimate.score(at(0)) > 90_000_000, "one that never answers any more is noticed");
    }

    #[test]
    fn places_are_the_bits_of_a_set() {
        assert_eq!(places(0b1011).collect::<Vec<_>>(), [0, 1, 3]);
        assert_eq!(places(all(64)).count(), 64);
        assert_eq!(all(1), 1);
    }
}

//! Rate and time of service of a running forebay, from several looks at its figures.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::units::{per_second, shown};
use crate::remote::{Sample, samples};

/// The part of `/pools` that a plan needs.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Pools {
    pools: Vec<Pool>,
}

#[derive(Clone, Debug, Deserialize)]
struct Pool {
    upstream: String,
    endpoint: String,
    transport: String,
    in_use: u32,
    waiters: u32,
    limits: Limits,
    acquires: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Limits {
    connections_max: u32,
    capacity: u32,
}

impl Pool {
    /// How many requests have got a connection.
    fn served(&self) -> u64 {
        ["reused", "fresh", "waited", "temporary"].iter().filter_map(|how| self.acquires.get(*how)).sum()
    }
}

/// One look.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// When, in seconds since the first.
    pub(crate) at: f64,
    /// What there was.
    pub(crate) pools: Pools,
}

impl Pools {
    /// Reads `/pools`.
    ///
    /// # Errors
    ///
    /// When it is something else.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map_err(|error| format!("/pools is not what a forebay says there: {error}"))
    }
}

/// Times that the server has counted itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// From the client's query to its reply: they wait for a connection, too.
    asked: Counted,
    /// What of it was waiting.
    waited: Counted,
}

/// What came of a look at the times of a server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    /// The mean time of service, in seconds.
    pub(crate) service: f64,
    /// Its deviation by its mean.
    pub(crate) spread: f64,
    /// The mean wait before that, of all, in seconds.
    pub(crate) wait: f64,
    /// How many there were.
    pub(crate) count: f64,
}

/// A histogram.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counted {
    sum: f64,
    count: f64,
    /// Upper bounds, and how many lie below each.
    below: Vec<(f64, f64)>,
}

/// The histogram of requests that went upstream.
const TIMES: &str = "forebay_dns_upstream_seconds";
/// That of their waits for a connection; those that did not wait are not in it.
const WAITS: &str = "forebay_pool_wait_seconds";

impl Counted {
    /// Adds up a histogram over all its labels; `None` if it is not there.
    fn read(all: &[Sample], name: &str) -> Option<Self> {
        let named = |suffix: &str| {
            let name = format!("{name}{suffix}");
            all.iter().filter(move |sample| sample.name == name)
        };
        named("_count").next()?;
        let sum = |suffix: &str| named(suffix).map(|sample| sample.value).sum();
        let mut below: Vec<(f64, f64)> = Vec::new();
        for sample in named("_bucket") {
            let Some(bound) = sample.label("le").parse().ok().filter(|bound: &f64| bound.is_finite()) else {
                continue;
            };
            match below.iter_mut().find(|(other, _)| *other == bound) {
                Some((_, count)) => *count += sample.value,
                None => below.push((bound, sample.value)),
            }
        }
        Some(Self { sum: sum("_sum"), count: sum("_count"), below })
    }

    /// What came since `before`: sum, count, and the moments of the middles between the bounds.
    fn since(&self, before: &Self) -> Option<Came> {
        if !before.below.is_empty() && self.below.len() != before.below.len() {
            return None;
        }
        let then = before.below.iter().map(|(_, count)| *count).chain(std::iter::repeat(0.0));
        let mut came =
            Came { sum: self.sum - before.sum, count: self.count - before.count, middles: 0.0, squares: 0.0 };
        let (mut low, mut seen) = (0.0, 0.0);
        for ((bound, now), then) in self.below.iter().zip(then) {
            let n = (now - then - seen).max(0.0);
            let middle = (low + bound) / 2.0;
            came.middles += n * middle;
            came.squares += n * middle * middle;
            (low, seen) = (*bound, seen + n);
        }
        Some(came)
    }
}

/// What came into a histogram between two looks.
#[derive(Clone, Copy, Debug)]
struct Came {
    sum: f64,
    count: f64,
    middles: f64,
    squares: f64,
}

impl Came {
    /// The variance, where `count` came in all and those that are missing here are nothing. The bounds lie far apart, and what is
    /// between them is seldom in the middle; but how far they spread compared with their mean is nearly that of the middles.
    fn variance(&self, count: f64) -> f64 {
        let (mean, middle) = (self.sum / count, self.middles / count);
        if middle <= 0.0 {
            return 0.0;
        }
        (self.squares / count - middle * middle).max(0.0) * (mean / middle).powi(2)
    }
}

impl Times {
    /// Reads `/metrics`; `None` when no DNS server runs there.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let all = samples(text);
        let waited = Counted::read(&all, WAITS).unwrap_or_default();
        Some(Self { asked: Counted::read(&all, TIMES)?, waited })
    }

    /// What came since `before`; `None` if that is too little to say anything.
    pub(crate) fn since(&self, before: &Self) -> Option<Counts> {
        let asked = self.asked.since(&before.asked)?;
        let waited = self.waited.since(&before.waited)?;
        let count = asked.count;
        if count < 30.0 {
            return None;
        }
        let wait = waited.sum / count;
        let service = asked.sum / count - wait;
        // Who waits long is served no longer than others, so that both add up.
        let variance = (asked.variance(count) - waited.variance(count)).max(0.0);
        (service > 0.0).then(|| Counts { service, spread: variance.sqrt() / service, wait, count })
    }
}

/// What was taken from a running forebay.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Taken {
    /// Requests per second that got a connection, all endpoints of the upstream together.
    pub(crate) rate: f64,
    /// The mean time for which each was in use, in seconds.
    pub(crate) service: f64,
    /// How far these times spread, if the server knows.
    pub(crate) spread: Option<f64>,
    /// Endpoints that were asked.
    pub(crate) endpoints: u32,
    /// Requests on one connection at once.
    pub(crate) capacity: u32,
    /// `connections_max`.
    pub(crate) connections_max: u32,
    /// `udp`, `tcp` and so on.
    pub(crate) transport: String,
    /// How it was come by.
    pub(crate) notes: Vec<String>,
}

/// Makes a rate and a time of service of what was seen. `upstream` names the one that is meant; otherwise it is the
/// busiest.
///
/// # Errors
///
/// When there is no such upstream, no traffic, or the server was started anew meanwhile.
pub(crate) fn estimate(
    looks: &[Look],
    times: Option<(&Times, &Times)>,
    upstream: Option<&str>,
) -> Result<Taken, String> {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else {
        return Err("it was not looked at".to_owned());
    };
    let seconds = last.at - first.at;
    if seconds <= 0.0 {
        return Err("one look is no rate".to_owned());
    }
    let mut rates: BTreeMap<&str, u64> = BTreeMap::new();
    let mut asked: Vec<(&Pool, u64)> = Vec::new();
    for pool in &last.pools.pools {
        let before = first.pools.pools.iter().find(|one| is_same(one, pool)).map_or(0, Pool::served);
        let Some(served) = pool.served().checked_sub(before) else {
            return Err("it was started anew while it was looked at: ask again".to_owned());
        };
        *rates.entry(&pool.upstream).or_default() += served;
        asked.push((pool, served));
    }
    let name = match upstream {
        Some(name) if rates.contains_key(name) => name,
        Some(name) => {
            let known: Vec<_> = rates.keys().copied().collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(format!("--upstream: there is no `{name}`; there is {known}"));
        }
        None => rates.iter().max_by_key(|(_, served)| **served).map_or("", |(name, _)| *name),
    };
    asked.retain(|(pool, served)| pool.upstream == name && *served > 0);
    let served: u64 = asked.iter().map(|(_, served)| served).sum();
    let Some((busiest, _)) = asked.iter().max_by_key(|(_, served)| *served).copied() else {
        return Err(format!(
            "nothing asked an upstream in {seconds:.1} s: no rate to plan for; look for longer (--for), or say --rate and --service"
        ));
    };
    let rate = served as f64 / seconds;
    let mut notes = vec![format!(
        "of upstream {name}: {} on {} endpoints in {seconds:.1} s",
        per_second(rate),
        asked.len()
    )];
    let mine = |pool: &&Pool| asked.iter().any(|(one, _)| is_same(one, pool));
    let in_use =
        |look: &Look| look.pools.pools.iter().filter(mine).map(|pool| f64::from(pool.in_use)).sum::<f64>();
    let in_flight = looks.iter().map(in_use).sum::<f64>() / looks.len() as f64;
    let waited = looks.iter().any(|look| look.pools.pools.iter().filter(mine).any(|pool| pool.waiters > 0));
    let is_alone = rates.values().filter(|served| **served > 0).count() == 1;
    let is_dns = asked.iter().all(|(pool, _)| pool.endpoint.contains("://"));
    let counted = times.filter(|_| is_alone && is_dns).and_then(|(before, after)| after.since(before));
    let (service, spread) = match counted {
        Some(Counts { service, spread, wait, count }) => {
            notes.push(format!(
                "service from {count:.0} questions of {TIMES}, without {} of waiting: {} on average, spread {spread:.2}",
                shown(wait),
                shown(service)
            ));
            (service, Some(spread))
        }
        None => {
            let service = in_flight / rate;
            if service <= 0.0 {
                return Err(format!(
                    "{} looks found nothing in use at {}: the time of service cannot be told; say --service",
                    looks.len(),
                    per_second(rate)
                ));
            }
            notes.push(format!(
                "service by Little's law, {in_flight:.2} in use over {} looks: {}",
                looks.len(),
                shown(service)
            ));
            (service, None)
        }
    };
    if waited {
        notes.push(
            "requests waited for a connection while it was looked at: the load that wants in may be more"
                .into(),
        );
    }
    Ok(Taken {
        rate,
        service,
        spread,
        endpoints: asked.len() as u32,
        capacity: busiest.limits.capacity,
        connections_max: busiest.limits.connections_max,
        transport: busiest.transport.clone(),
        notes,
    })
}

fn is_same(a: &Pool, b: &Pool) -> bool {
    (&a.upstream, &a.endpoint) == (&b.upstream, &b.endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(at: f64, served: u64, in_use: u32) -> Look {
        let text = format!(
            r#"{{"uptime_seconds": 9, "pools": [
                {{"upstream": "default", "endpoint": "udp://192.0.2.53:53", "transport": "udp", "in_use": {in_use},
                  "waiters": 0, "limits": {{"connections_max": 4096, "capacity": 128}},
                  "acquires": {{"reused": {served}, "fresh": 1, "rejected": 77}}}},
                {{"upstream": "idle", "endpoint": "192.0.2.1:80", "transport": "tcp", "in_use": 0, "waiters": 0,
                  "limits": {{"connections_max": 1, "capacity": 1}}, "acquires": {{}}}}]}}"#
        );
        Look { at, pools: Pools::read(&text).unwrap() }
    }

    #[test]
    fn rate_and_service_come_from_counts_and_littles_law() {
        let looks: Vec<_> = (0..10).map(|i| look(f64::from(i), 1000 + 500 * i as u64, 3)).collect();
        let taken = estimate(&looks, None, None).unwrap();
        assert_eq!((taken.rate, taken.endpoints, taken.capacity), (500.0, 1, 128));
        assert!((taken.service - 0.006).abs() < 1e-9);
        assert_eq!((taken.spread, taken.connections_max, taken.transport.as_str()), (None, 4096, "udp"));
        assert!(taken.notes[1].contains("Little's law, 3.00 in use over 10 looks: 6.00 ms"), "{taken:?}");
    }

    fn times(counts: [u64; 3]) -> Times {
        let mut text = format!("# TYPE {TIMES} histogram\n");
        for (bound, n) in ["0.001", "0.003", "+Inf"].iter().zip(counts) {
            text += &format!("{TIMES}_bucket{{le=\"{bound}\"}} {n}\n");
        }
        let sum = counts[0] as f64 * 0.0005 + (counts[1] - counts[0]) as f64 * 0.002;
        Times::read(&format!("{text}{TIMES}_sum {sum}\n{TIMES}_count {}\n", counts[2])).unwrap()
    }

    #[test]
    fn the_servers_own_histogram_goes_before_littles_law() {
        let looks = [look(0.0, 0, 1), look(2.0, 200, 1)];
        let (before, after) = (times([10, 20, 20]), times([110, 220, 220]));
        let taken = estimate(&looks, Some((&before, &after)), None).unwrap();
        // Half at 0.5 ms, half at 2 ms.
        assert!((taken.service - 0.00125).abs() < 1e-9, "{taken:?}");
        assert!((taken.spread.unwrap() - 0.6).abs() < 0.01, "{taken:?}");
        assert!(taken.notes[1].contains("without 0 of waiting"), "{taken:?}");
        let few = estimate(&looks, Some((&before, &before)), None).unwrap();
        assert_eq!(few.spread, None, "nothing was counted meanwhile");
    }

    #[test]
    fn waiting_for_a_connection_is_no_service() {
        // Every other one waits a millisecond, and is served as long as the others.
        let text = |n: f64| {
            format!(
                "{TIMES}_bucket{{le=\"0.002\"}} {}\n{TIMES}_bucket{{le=\"0.004\"}} {n}\n{TIMES}_sum {}\n{TIMES}_count {n}\n\
                 {WAITS}_bucket{{upstream=\"a\",endpoint=\"b\",le=\"0.0005\"}} 0\n\
                 {WAITS}_bucket{{upstream=\"a\",endpoint=\"b\",le=\"0.0015\"}} {}\n\
                 {WAITS}_sum{{upstream=\"a\",endpoint=\"b\"}} {}\n{WAITS}_count{{upstream=\"a\",endpoint=\"b\"}} {}\n\
                 {WAITS}_sum{{upstream=\"a\",endpoint=\"c\"}} 0\n{WAITS}_count{{upstream=\"a\",endpoint=\"c\"}} 0\n",
                n / 2.0,
                n * 0.002,
                n / 2.0,
                n / 2.0 * 0.001,
                n / 2.0
            )
        };
        let (before, after) = (Times::read(&text(10.0)).unwrap(), Times::read(&text(1010.0)).unwrap());
        let counts = after.since(&before).unwrap();
        assert!((counts.service - 0.0015).abs() < 1e-9 && (counts.wait - 0.0005).abs() < 1e-9, "{counts:?}");
        // Of the bounds' 1 and 3 ms, deviation 1 ms, a quarter of the variance is that of waiting.
        assert!((counts.spread - 0.75_f64.sqrt() / 1.5).abs() < 0.01, "{counts:?}");
        let none = Times { waited: Counted::default(), ..after.clone() };
        assert!(
            (none.since(&Times { waited: Counted::default(), ..before }).unwrap().service - 0.002).abs()
                < 1e-9
        );
    }

    #[test]
    fn bounds_that_lie_far_apart_do_not_make_times_spread() {
        // Evenly spread over 2 to 6 ms: a deviation of 29 % of the mean. The bounds are powers of two, as the server has them.
        let all: Vec<f64> = (0..4000).map(|n| 0.002 + 0.000_001 * f64::from(n)).collect();
        let mut text = String::new();
        for power in 20..26 {
            let bound = f64::from(1 << power) * 1e-9;
            let below = all.iter().filter(|time| **time <= bound).count();
            text += &format!("{TIMES}_bucket{{le=\"{bound}\"}} {below}\n");
        }
        text += &format!("{TIMES}_sum {}\n{TIMES}_count 4000\n", all.iter().sum::<f64>());
        let counts = Times::read(&text).unwrap().since(&Times::default()).unwrap();
        assert!((counts.spread - 0.29).abs() < 0.08, "{counts:?}");
    }

    #[test]
    fn what_says_nothing_is_told() {
        let error = |looks: &[Look], upstream| estimate(looks, None, upstream).unwrap_err();
        assert!(error(&[], None).contains("not looked at"));
        assert!(error(&[look(0.0, 1, 1)], None).contains("one look"));
        assert!(
            error(&[look(0.0, 5, 1), look(3.0, 5, 1)], None).contains("nothing asked an upstream in 3.0 s")
        );
        assert!(error(&[look(0.0, 5, 1), look(3.0, 4, 1)], None).contains("started anew"));
        let two = [look(0.0, 5, 0), look(3.0, 50, 0)];
        assert!(error(&two, None).contains("say --service"));
        assert!(error(&two, Some("web")).contains("there is no `web`; there is default, idle"));
        assert!(error(&two, Some("idle")).contains("nothing asked"));
        assert!(Pools::read("{}").unwrap_err().contains("/pools is not"));
        assert_eq!(Times::read("a 1\n"), None);
    }
}

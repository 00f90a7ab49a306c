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

/// Times of service that the server has counted itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    sum: f64,
    count: f64,
    /// Upper bounds, and how many lie below each.
    below: Vec<(f64, f64)>,
}

/// The histogram of requests that went upstream.
const TIMES: &str = "forebay_dns_upstream_seconds";

impl Times {
    /// Reads `/metrics`; `None` when no DNS server runs there.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let all = samples(text);
        let named = |suffix: &str| {
            let name = format!("{TIMES}{suffix}");
            all.iter().filter(move |sample| sample.name == name)
        };
        let value = |suffix: &str| named(suffix).next().map(|sample| sample.value);
        let below = named("_bucket").filter_map(|sample: &Sample| {
            Some((sample.label("le").parse().ok()?, sample.value))
                .filter(|(bound, _): &(f64, f64)| bound.is_finite())
        });
        Some(Self { below: below.collect(), sum: value("_sum")?, count: value("_count")? })
    }

    /// Mean and spread of what came since `before`; `None` if that is too little to say anything.
    fn since(&self, before: &Self) -> Option<(f64, f64, f64)> {
        let count = self.count - before.count;
        if count < 30.0 || self.below.len() != before.below.len() {
            return None;
        }
        let mean = (self.sum - before.sum) / count;
        let (mut low, mut seen, mut squares) = (0.0, 0.0, 0.0);
        for ((bound, now), (_, then)) in self.below.iter().zip(&before.below) {
            let n = (now - then - seen).max(0.0);
            let middle = (low + bound) / 2.0;
            squares += n * middle * middle;
            (low, seen) = (*bound, seen + n);
        }
        let variance = (squares / count - mean * mean).max(0.0);
        (mean > 0.0).then(|| (mean, variance.sqrt() / mean, count))
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
        Some((mean, spread, count)) => {
            notes.push(format!(
                "service from {count:.0} questions of {TIMES}: {} on average, spread {spread:.2}",
                shown(mean)
            ));
            (mean, Some(spread))
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
        let few = estimate(&looks, Some((&before, &before)), None).unwrap();
        assert_eq!(few.spread, None, "nothing was counted meanwhile");
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

//! What the demo shows: figures of the last second, and a summary of all of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use forebay::Snapshot;
use forebay_bench::dns::DnsReport;
use forebay_core::{AcquireOutcome, Counters, Histogram, Instant};
use forebay_dns::Stats;

use super::load::Progress;
use super::web::{WebFigures, WebReport, WebSample};
use crate::admin::metrics::named;

/// What was known at one moment.
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) stats: Stats,
    pub(super) load: Progress,
    pub(super) web: WebSample,
}

/// What happened between two samples, and how it stands at the second.
#[derive(Clone, Debug, Default)]
pub(super) struct Figures {
    pub(super) uptime: Duration,
    /// Queries per second.
    pub(super) qps: f64,
    /// The part of them that the cache answered.
    pub(super) hit_rate: Option<f64>,
    /// Queries sent upstream per second.
    pub(super) upstream_qps: f64,
    pub(super) queries: u64,
    pub(super) lost: u64,
    /// Questions in flight.
    pub(super) questions: usize,
    pub(super) cache_entries: u64,
    pub(super) cache_bytes: u64,
    /// From a query that was no hit to its reply.
    pub(super) latency: Percentiles,
    /// For a connection.
    pub(super) wait: Percentiles,
    pub(super) reuse: Option<f64>,
    /// Sockets made since the start.
    pub(super) sockets: u64,
    pub(super) pools: Vec<PoolFigures>,
    pub(super) web: WebFigures,
}

/// How one pool stands.
#[derive(Clone, Debug, Default)]
pub(super) struct PoolFigures {
    pub(super) endpoint: String,
    pub(super) connecting: u32,
    pub(super) ready: u32,
    pub(super) busy: u32,
    pub(super) draining: u32,
    pub(super) in_use: u32,
    pub(super) waiting: u32,
    pub(super) sockets: u64,
    pub(super) reuse: Option<f64>,
    pub(super) dial: Percentiles,
}

impl PoolFigures {
    pub(super) fn of(endpoint: String, snapshot: &Snapshot) -> Self {
        Self {
            endpoint,
            connecting: snapshot.connecting,
            ready: snapshot.ready,
            busy: snapshot.busy,
            draining: snapshot.draining,
            in_use: snapshot.in_use,
            waiting: snapshot.waiting,
            sockets: snapshot.counters.dials_succeeded,
            reuse: reuse(&snapshot.counters),
            dial: Percentiles::between(&Histogram::default(), &snapshot.counters.dial),
        }
    }
}

/// Two percentiles; `None` when nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Percentiles {
    pub(super) p50: Option<Duration>,
    pub(super) p99: Option<Duration>,
}

impl Percentiles {
    /// Percentiles of what `after` has and `before` had not.
    fn between(before: &Histogram, after: &Histogram) -> Self {
        let mut counts: BTreeMap<u64, u64> = BTreeMap::new();
        let mut last = 0;
        for (bound, seen) in after.cumulative() {
            counts.insert(bound, seen - last);
            last = seen;
        }
        last = 0;
        for (bound, seen) in before.cumulative() {
            counts.entry(bound).and_modify(|count| *count = count.saturating_sub(seen - last));
            last = seen;
        }
        let all: u64 = counts.values().sum();
        let quantile = |percent: u64| {
            let rank = (all * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let found = counts.iter().find(|(_, count)| {
                seen += **count;
                seen >= rank
            });
            found.map(|(bound, _)| Duration::from_nanos((*bound).min(after.max())))
        };
        Self { p50: quantile(50), p99: quantile(99) }
    }
}

impl Figures {
    pub(super) fn between(before: &Sample, after: &Sample) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let (old, new) = (&before.stats, &after.stats);
        let queries = new.counters.queries.saturating_sub(old.counters.queries);
        let hits = new.counters.hits.saturating_sub(old.counters.hits);
        let (pools_before, pools_after) = (old.pool_counters(), new.pool_counters());
        let pools = named(new).into_iter().map(|pool| PoolFigures::of(pool.endpoint, pool.snapshot));
        Self {
            uptime: new.uptime,
            qps: queries as f64 / seconds,
            hit_rate: (queries > 0).then(|| hits as f64 / queries as f64),
            upstream_qps: new.counters.transmits.saturating_sub(old.counters.transmits) as f64 / seconds,
            queries: new.counters.queries,
            lost: after.load.lost,
            questions: new.questions,
            cache_entries: new.cache.entries,
            cache_bytes: new.cache.bytes,
            latency: Percentiles::between(&old.latency, &new.latency),
            wait: Percentiles::between(&pools_before.wait, &pools_after.wait),
            reuse: reuse(&pools_after),
            sockets: pools_after.dials_succeeded,
            pools: pools.collect(),
            web: WebFigures::between(&before.web, &after.web, seconds),
        }
    }

    /// Connections by state, over all pools.
    pub(super) fn connections(&self) -> [(&'static str, u32); 4] {
        let sum = |count: fn(&PoolFigures) -> u32| self.pools.iter().map(count).sum();
        [
            ("connecting", sum(|pool| pool.connecting)),
            ("ready", sum(|pool| pool.ready)),
            ("busy", sum(|pool| pool.busy)),
            ("draining", sum(|pool| pool.draining)),
        ]
    }

    /// The figures as one line.
    pub(super) fn line(&self) -> String {
        let connections = self.connections().map(|(state, n)| format!("{n} {state}"));
        format!(
            "{:>4} s  {} q/s, {} hits, {} lost | connections {}, {} made, reuse {} | upstream p50 {} p99 {} | \
             wait p50 {} p99 {} | http {} req/s, reuse {}, {} failed",
            self.uptime.as_secs(),
            grouped(self.qps.round() as u64),
            percent(self.hit_rate),
            self.lost,
            connections.join(" "),
            self.sockets,
            percent(self.reuse),
            time(self.latency.p50),
            time(self.latency.p99),
            time(self.wait.p50),
            time(self.wait.p99),
            grouped(self.web.rate.round() as u64),
            percent(self.web.reuse),
            self.web.failed,
        )
    }
}

/// The part of acquires that needed no new connection.
pub(super) fn reuse(counters: &Counters) -> Option<f64> {
    let sum = |outcomes: [AcquireOutcome; 2]| -> u64 { outcomes.iter().map(|o| counters.acquires(*o)).sum() };
    let reused = sum([AcquireOutcome::Reused, AcquireOutcome::Waited]);
    let all = reused + sum([AcquireOutcome::Fresh, AcquireOutcome::Temporary]);
    (all > 0).then(|| reused as f64 / all as f64)
}

/// What is told at the end.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    seconds: f64,
    answered: u64,
    lost: u64,
    pub(super) wrong: u64,
    hit_rate: Option<f64>,
    /// What the clients of hot names saw: median and the slowest hundredth, in microseconds.
    hot: Option<(f64, f64)>,
    /// The same for names never asked before.
    unique: Option<(f64, f64)>,
    asked: u64,
    sockets: u64,
    web: WebReport,
    /// Connections that the proxy made to its backends.
    web_sockets: u64,
}

impl Summary {
    /// `reports` are of hot and of unique names; `asked` is how many queries the upstreams have seen; `web` is what web
    /// clients have met, and how the proxy stood at the end.
    pub(super) fn new(
        stats: &Stats,
        reports: &[DnsReport],
        asked: u64,
        web: (WebReport, &WebSample),
    ) -> Self {
        let latency = |at: usize| {
            reports
                .get(at)
                .and_then(|report| report.latency.as_ref())
                .map(|latency| (latency.p50_us, latency.p99_us))
        };
        let (queries, hits) = (stats.counters.queries, stats.counters.hits);
        Self {
            seconds: stats.uptime.as_secs_f64(),
            answered: reports.iter().map(|report| report.answered).sum(),
            lost: reports.iter().map(|report| report.lost).sum(),
            wrong: reports.iter().map(|report| report.wrong).sum(),
            hit_rate: (queries > 0).then(|| hits as f64 / queries as f64),
            hot: latency(0),
            unique: latency(1),
            asked,
            sockets: stats.connections_made(),
            web: web.0,
            web_sockets: web.1.sockets(),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seen = |latency: Option<(f64, f64)>| {
            let us = |us: f64| time(Some(Duration::from_nanos((us * 1e3) as u64)));
            latency.map_or("–".to_owned(), |(p50, p99)| format!("p50 {} p99 {}", us(p50), us(p99)))
        };
        writeln!(f, "forebay demo, {:.1} s", self.seconds)?;
        writeln!(
            f,
            "  clients    {} answers, {} lost, {} wrong; {} from the cache",
            grouped(self.answered),
            self.lost,
            self.wrong,
            percent(self.hit_rate)
        )?;
        writeln!(f, "  hot names  {}", seen(self.hot))?;
        writeln!(f, "  new names  {}", seen(self.unique))?;
        writeln!(
            f,
            "  upstreams  {} queries on {} sockets, instead of one socket for each",
            grouped(self.asked),
            grouped(self.sockets)
        )?;
        write!(
            f,
            "  web        {} requests of {} clients, {} failed, on {} connections to backends",
            grouped(self.web.answered),
            grouped(self.web.opened),
            self.web.failed,
            grouped(self.web_sockets)
        )
    }
}

/// Writes a number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a part of one in percent.
pub(crate) fn percent(part: Option<f64>) -> String {
    part.map_or("–".to_owned(), |part| format!("{:.1} %", part * 100.0))
}

/// Writes a short time with a unit that suits it.
pub(crate) fn time(duration: Option<Duration>) -> String {
    match duration {
        None => "–".to_owned(),
        Some(time) if time < Duration::from_micros(1) => "0".to_owned(),
        Some(time) if time < Duration::from_millis(1) => format!("{} µs", time.as_micros()),
        Some(time) if time < Duration::from_secs(1) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        Some(time) => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_came_between() {
        let mut before = Histogram::default();
        (0..1000).for_each(|_| before.record(1 << 30));
        let mut after = before.clone();
        assert_eq!(Percentiles::between(&before, &after), Percentiles::default(), "nothing came");
        (0..98).for_each(|_| after.record(1000));
        (0..2).for_each(|_| after.record(1_000_000));
        let between = Percentiles::between(&before, &after);
        let near = |found: Option<Duration>, nanos: u64| {
            let found = found.unwrap().as_nanos() as u64;
            assert!((nanos..=nanos + nanos / 4).contains(&found), "{found} is not {nanos}");
        };
        near(between.p50, 1000);
        near(between.p99, 1_000_000);
    }

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([Some(0.9876), None].map(percent), ["98.8 %", "–"]);
        let times =
            [0, 17_000, 2_345_000, 1_500_000_000].map(|nanos| time(Some(Duration::from_nanos(nanos))));
        assert_eq!(times, ["0", "17 µs", "2.3 ms", "1.5 s"]);
    }
}

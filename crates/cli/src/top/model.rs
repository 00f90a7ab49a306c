//! What is known of a forebay that is watched: two looks in, rates and rows out. Pure: time is an argument.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use forebay_core::Instant;

use super::fetch::Look;
use super::report::{Metrics, Pool};

/// How many looks are kept for sparklines: more than a terminal is wide.
const PAST_MAX: usize = 512;

/// By how many seconds less than the clock an uptime may have grown: answers come late when a machine is busy.
const UPTIME_LATE: f64 = 2.0;

/// What is watched, as it is known.
#[derive(Debug, Default)]
pub(super) struct Watched {
    last: Option<(Instant, Look)>,
    pub(super) overview: Overview,
    pub(super) rows: Vec<Row>,
    pub(super) past: Past,
    pub(super) away: Option<Away>,
    pub(super) restart: Option<Restart>,
    pools_past: HashMap<Key, Past>,
}

/// It does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Away {
    pub(super) since: Instant,
    /// The same as people tell it.
    pub(super) clock: String,
    /// What came of the last try.
    pub(super) why: String,
}

/// It has begun anew while it was watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Restart {
    pub(super) seen: Instant,
    /// How often that was seen.
    pub(super) times: u32,
}

/// By what a pool is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) upstream: String,
    pub(super) endpoint: String,
}

/// What sparklines are made of; the newest is the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Past {
    /// Acquires a second.
    pub(super) rate: VecDeque<u64>,
    pub(super) waiters: VecDeque<u64>,
    /// Dials a second.
    pub(super) dials: VecDeque<u64>,
}

/// One pool between two looks, and how it stands at the second. Rates are a second, and `None` at the first look.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    pub(super) key: Key,
    pub(super) pool: Pool,
    /// Acquires that got a connection.
    pub(super) rate: Option<f64>,
    /// Acquires that were refused, or waited too long.
    pub(super) refused: Option<f64>,
    /// Part of acquires that found a connection that existed: of the last ones, or of all if there were none.
    pub(super) reuse: Option<f64>,
    pub(super) dials: Option<f64>,
    /// Dials and requests that failed.
    pub(super) failures: Option<f64>,
    /// How long those waited, on average, that got a connection between the looks after waiting.
    pub(super) wait_mean: Option<Duration>,
    /// The same of dials.
    pub(super) dial_mean: Option<Duration>,
}

/// The process as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Overview {
    pub(super) uptime: Duration,
    pub(super) version: Option<String>,
    /// Connections by state: connecting, ready, busy, draining.
    pub(super) states: [u64; 4],
    pub(super) waiters: u64,
    pub(super) breakers_open: usize,
    pub(super) unhealthy: usize,
    pub(super) rate: Option<f64>,
    pub(super) reuse: Option<f64>,
    pub(super) dials: Option<f64>,
    pub(super) failures: Option<f64>,
    pub(super) local_exhaustions: u64,
    /// Share of a core.
    pub(super) cpu: Option<f64>,
    pub(super) resident_bytes: Option<f64>,
    pub(super) descriptors: Option<(f64, f64)>,
    /// Queries a second, and the part of them that the cache answered.
    pub(super) dns: Option<(f64, Option<f64>)>,
    /// Requests of HTTP a second, and clients' connections.
    pub(super) proxy: Option<(f64, f64)>,
    /// Calls a second, and those in progress.
    pub(super) grpc: Option<(f64, f64)>,
}

/// In which order rows stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// By upstream, then endpoint.
    #[default]
    Name,
    /// The busiest first.
    Rate,
    /// The most connections first.
    Connections,
    /// The most waiters first.
    Waiters,
    /// The longest waits first.
    Wait,
    /// The longest dials first.
    Dial,
    /// What is broken first.
    Trouble,
}

impl Sort {
    pub(super) const ALL: [Self; 7] =
        [Self::Name, Self::Rate, Self::Connections, Self::Waiters, Self::Wait, Self::Dial, Self::Trouble];

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Connections => "connections",
            Self::Waiters => "waiters",
            Self::Wait => "wait",
            Self::Dial => "dial",
            Self::Trouble => "trouble",
        }
    }

    /// The order after this one.
    pub(super) fn next(self) -> Self {
        let place = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(place + 1) % Self::ALL.len()]
    }

    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let larger = |of: fn(&Row) -> f64| of(b).total_cmp(&of(a));
        let by = match self {
            Self::Name => Ordering::Equal,
            Self::Rate => larger(|row| row.rate.unwrap_or_default()),
            Self::Connections => larger(|row| row.connections() as f64),
            Self::Waiters => larger(|row| row.pool.waiters as f64),
            Self::Wait => larger(|row| row.pool.wait.p99_us),
            Self::Dial => larger(|row| row.pool.dials.took.p99_us),
            Self::Trouble => {
                let key = |row: &Row| (row.trouble(), row.pool.last_failure.is_some());
                key(b).cmp(&key(a)).then(larger(|row| row.failures.unwrap_or_default()))
            }
        };
        by.then_with(|| a.key.cmp(&b.key))
    }
}

/// What is wrong with a pool now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wrong {
    /// Nothing.
    Nothing,
    /// Requests wait for a connection.
    Waits,
    /// Active checks fail.
    Unhealthy,
    /// A probe decides.
    HalfOpen,
    /// The endpoint is left alone.
    Open,
}

impl Row {
    /// Connecting, ready, busy and draining.
    pub(super) fn states(&self) -> [u64; 4] {
        ["connecting", "ready", "busy", "draining"].map(|state| count(&self.pool.connections, state))
    }

    /// Connections in any state.
    pub(super) fn connections(&self) -> u64 {
        self.pool.connections.values().sum()
    }

    pub(super) fn trouble(&self) -> Wrong {
        match (&*self.pool.breaker, &*self.pool.health) {
            ("open", _) => Wrong::Open,
            ("half_open", _) => Wrong::HalfOpen,
            (_, "unhealthy") => Wrong::Unhealthy,
            _ if self.pool.waiters > 0 => Wrong::Waits,
            _ => Wrong::Nothing,
        }
    }
}

impl Watched {
    /// Takes in what a look brought, at `now`; `clock` is how people tell that time.
    pub(super) fn take(&mut self, now: Instant, clock: &str, look: Result<Look, String>) {
        let look = match look {
            Ok(look) => look,
            Err(why) => {
                match &mut self.away {
                    Some(away) => away.why = why,
                    None => self.away = Some(Away { since: now, clock: clock.to_owned(), why }),
                }
                return;
            }
        };
        self.away = None;
        let before = self.last.take().filter(|(at, before)| {
            let elapsed = now.saturating_duration_since(*at).as_secs_f64();
            let grown = look.pools.uptime_seconds - before.pools.uptime_seconds;
            let is_same = grown >= 0.0 && grown + UPTIME_LATE >= elapsed;
            if !is_same {
                let times = self.restart.as_ref().map_or(0, |restart| restart.times) + 1;
                self.restart = Some(Restart { seen: now, times });
            }
            is_same
        });
        let between = before.as_ref().map(|(at, before)| Between {
            before,
            after: &look,
            seconds: now.saturating_duration_since(*at).as_secs_f64().max(1e-3),
        });
        self.rows = rows(&look, between.as_ref());
        self.overview = overview(&look, &self.rows, between.as_ref());
        self.remember();
        self.last = Some((now, look));
    }

    fn remember(&mut self) {
        let whole = |rate: Option<f64>| rate.unwrap_or_default().round() as u64;
        self.past.push([whole(self.overview.rate), self.overview.waiters, whole(self.overview.dials)]);
        let rows = &self.rows;
        self.pools_past.retain(|key, _| rows.iter().any(|row| row.key == *key));
        for row in rows {
            let past = self.pools_past.entry(row.key.clone()).or_default();
            past.push([whole(row.rate), row.pool.waiters, whole(row.dials)]);
        }
    }

    /// What was of one pool, if it is still there.
    pub(super) fn past_of(&self, key: &Key) -> Option<&Past> {
        self.pools_past.get(key)
    }

    /// Returns the rows in an order.
    pub(super) fn sorted(&self, sort: Sort, is_reversed: bool) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by(|a, b| sort.compare(a, b));
        if is_reversed {
            rows.reverse();
        }
        rows
    }
}

impl Past {
    fn push(&mut self, values: [u64; 3]) {
        for (past, value) in [&mut self.rate, &mut self.waiters, &mut self.dials].into_iter().zip(values) {
            past.push_back(value);
            if past.len() > PAST_MAX {
                past.pop_front();
            }
        }
    }
}

/// Two looks at one process.
struct Between<'a> {
    before: &'a Look,
    after: &'a Look,
    seconds: f64,
}

impl Between<'_> {
    /// How much a counter has grown in a second.
    fn rate(&self, of: impl Fn(&Metrics) -> Option<f64>) -> Option<f64> {
        Some((of(&self.after.metrics)? - of(&self.before.metrics)?).max(0.0) / self.seconds)
    }

    /// The mean of what a histogram of a pool has taken in.
    fn mean(&self, name: &str, key: &Key) -> Option<Duration> {
        let grown = |suffix: &str| {
            let of =
                |look: &Look| look.metrics.of_pool(&format!("{name}{suffix}"), &key.upstream, &key.endpoint);
            Some(of(self.after)? - of(self.before).unwrap_or_default())
        };
        let (sum, count) = (grown("_sum")?, grown("_count")?);
        (count >= 1.0).then(|| Duration::from_secs_f64((sum / count).max(0.0)))
    }
}

/// Makes rows of a look, with rates if there was one before.
fn rows(look: &Look, between: Option<&Between<'_>>) -> Vec<Row> {
    let row = |pool: &Pool| {
        let key = Key { upstream: pool.upstream.clone(), endpoint: pool.endpoint.clone() };
        let mut row = Row { reuse: pool.reuse_rate, pool: pool.clone(), key, ..Row::default() };
        let Some(between) = between else { return row };
        let is_it = |one: &&Pool| (&one.upstream, &one.endpoint) == (&pool.upstream, &pool.endpoint);
        // One that is new began with nothing.
        let nothing = Pool::default();
        let before = between.before.pools.pools.iter().find(is_it).unwrap_or(&nothing);
        let grown = |of: fn(&Pool) -> u64| of(pool).saturating_sub(of(before)) as f64;
        let got = grown(got);
        row.rate = Some(got / between.seconds);
        row.refused = Some(grown(refused) / between.seconds);
        row.dials = Some(grown(|pool| pool.dials.started) / between.seconds);
        row.failures = Some(grown(failed) / between.seconds);
        if got > 0.0 {
            row.reuse = Some(grown(reused) / got);
        }
        row.wait_mean = between.mean("forebay_pool_wait_seconds", &row.key);
        row.dial_mean = between.mean("forebay_pool_dial_seconds", &row.key);
        row
    };
    look.pools.pools.iter().map(row).collect()
}

fn overview(look: &Look, rows: &[Row], between: Option<&Between<'_>>) -> Overview {
    let sum = |of: fn(&Row) -> Option<f64>| between.map(|_| rows.iter().filter_map(of).sum::<f64>());
    let (metrics, pools) = (&look.metrics, &look.pools);
    let rate_of = |name: &str| between.and_then(|between| between.rate(|metrics| metrics.sum(name)));
    let reused: f64 = rows.iter().filter_map(|row| Some(row.rate? * row.reuse?)).sum();
    let rate = sum(|row| row.rate);
    let queries =
        rate_of("forebay_dns_queries_total").filter(|_| metrics.value("forebay_dns_workers") > Some(0.0));
    let hits = rate_of("forebay_dns_hits_total").zip(queries).filter(|(_, queries)| *queries > 0.0);
    Overview {
        uptime: Duration::try_from_secs_f64(pools.uptime_seconds).unwrap_or_default(),
        version: metrics.label("forebay_build_info", "version").map(str::to_owned),
        states: rows.iter().map(Row::states).fold([0; 4], |sum, one| {
            let [a, b, c, d] = sum;
            [a + one[0], b + one[1], c + one[2], d + one[3]]
        }),
        waiters: rows.iter().map(|row| row.pool.waiters).sum(),
        breakers_open: rows.iter().filter(|row| row.trouble() == Wrong::Open).count(),
        unhealthy: rows.iter().filter(|row| row.pool.health == "unhealthy").count(),
        rate,
        reuse: rate.filter(|rate| *rate > 0.0).map(|rate| reused / rate),
        dials: sum(|row| row.dials),
        failures: sum(|row| row.failures),
        local_exhaustions: rows.iter().map(|row| row.pool.local_exhaustions).sum(),
        cpu: rate_of("process_cpu_seconds_total"),
        resident_bytes: metrics.value("process_resident_memory_bytes"),
        descriptors: metrics.value("process_open_fds").zip(metrics.value("process_max_fds")),
        dns: queries.map(|queries| (queries, hits.map(|(hits, queries)| hits / queries))),
        proxy: rate_of("forebay_proxy_requests_total").zip(metrics.sum("forebay_proxy_clients")),
        grpc: rate_of("forebay_grpc_calls_total").zip(metrics.sum("forebay_grpc_in_flight")),
    }
}

fn count(of: &std::collections::BTreeMap<String, u64>, name: &str) -> u64 {
    of.get(name).copied().unwrap_or_default()
}

/// Acquires that ended with a connection.
fn got(pool: &Pool) -> u64 {
    ["reused", "waited", "fresh", "temporary"].iter().map(|outcome| count(&pool.acquires, outcome)).sum()
}

/// Those of them whose connection existed.
fn reused(pool: &Pool) -> u64 {
    ["reused", "waited"].iter().map(|outcome| count(&pool.acquires, outcome)).sum()
}

/// Acquires that ended without one.
fn refused(pool: &Pool) -> u64 {
    pool.acquires.values().sum::<u64>() - got(pool)
}

fn failed(pool: &Pool) -> u64 {
    pool.failures + pool.dials.failed.values().sum::<u64>()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::report::{Dials, LastFailure, Limits, Pools, Times};
    use super::*;

    /// A pool after so many acquires, of which nine of ten were reused.
    pub(crate) fn pool(upstream: &str, endpoint: &str, acquires: u64) -> Pool {
        Pool {
            upstream: upstream.to_owned(),
            endpoint: endpoint.to_owned(),
            connections: [("connecting", 1), ("ready", 8), ("busy", 3), ("draining", 0), ("closing", 0)]
                .map(|(state, n)| (state.to_owned(), n))
                .into(),
            idle: 8,
            in_use: 3,
            limits: Limits {
                connections_max: 64,
                idle_max: 64,
                capacity: 1,
                waiters_max: 1024,
                dials_max: 16,
                idle_timeout_ms: Some(30_000),
                ..Limits::default()
            },
            acquires: [("reused", acquires - acquires / 10), ("fresh", acquires / 10)]
                .map(|(outcome, n)| (outcome.to_owned(), n))
                .into(),
            reuse_rate: Some(0.9),
            wait: Times { count: 5, p50_us: 120.0, p99_us: 2500.0, max_us: 9000.0 },
            dials: Dials {
                started: acquires / 10,
                succeeded: acquires / 10,
                took: Times { count: 5, p50_us: 480.0, p99_us: 1200.0, max_us: 3000.0 },
                ..Dials::default()
            },
            closes: [("idle".to_owned(), 4)].into(),
            breaker: "closed".to_owned(),
            health: "healthy".to_owned(),
            ..Pool::default()
        }
    }

    pub(crate) fn look(uptime: f64, pools: Vec<Pool>, metrics: &str) -> Look {
        Look { pools: Pools { uptime_seconds: uptime, pools }, metrics: Metrics::parse(metrics) }
    }

    pub(crate) fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    /// A pool in every kind of trouble.
    pub(crate) fn broken(endpoint: &str) -> Pool {
        Pool {
            breaker: "open".to_owned(),
            breaker_opened: 2,
            waiters: 7,
            failures: 12,
            last_failure: Some(LastFailure { cause: "refused".to_owned(), blame: "upstream".to_owned() }),
            ..pool("default", endpoint, 0)
        }
    }

    #[test]
    fn rates_are_of_what_came_between_two_looks() {
        let mut watched = Watched::default();
        let metrics = |cpu: f64, sum: f64, n: u64| {
            format!(
                "process_cpu_seconds_total {cpu}\nforebay_pool_wait_seconds_sum{{upstream=\"default\",endpoint=\"a\"}} {sum}\n\
                 forebay_pool_wait_seconds_count{{upstream=\"default\",endpoint=\"a\"}} {n}\nforebay_dns_workers 1\n\
                 forebay_dns_queries_total {n}\nforebay_dns_hits_total {}\n",
                n / 2
            )
        };
        watched.take(at(10), "", Ok(look(1.0, vec![pool("default", "a", 1000)], &metrics(1.0, 0.0, 0))));
        assert_eq!((watched.rows[0].rate, watched.overview.rate, watched.overview.cpu), (None, None, None));
        assert_eq!(watched.rows[0].reuse, Some(0.9), "since the start");
        watched.take(at(12), "", Ok(look(3.0, vec![pool("default", "a", 3000)], &metrics(1.5, 0.02, 10))));
        let row = &watched.rows[0];
        assert_eq!((row.rate, row.dials, row.failures), (Some(1000.0), Some(100.0), Some(0.0)));
        assert_eq!((row.reuse, row.wait_mean), (Some(0.9), Some(Duration::from_millis(2))));
        let overview = &watched.overview;
        assert_eq!(
            (overview.rate, overview.cpu, overview.dns),
            (Some(1000.0), Some(0.25), Some((5.0, Some(0.5))))
        );
        assert_eq!((overview.states, watched.past.rate.back()), ([1, 8, 3, 0], Some(&1000)));
    }

    #[test]
    fn a_pool_that_is_new_has_rates_and_one_that_is_gone_no_row() {
        let mut watched = Watched::default();
        watched.take(at(0), "", Ok(look(1.0, vec![pool("default", "a", 100)], "")));
        watched.take(at(1), "", Ok(look(2.0, vec![pool("default", "b", 50)], "")));
        let names: Vec<_> = watched.rows.iter().map(|row| (&*row.key.endpoint, row.rate)).collect();
        assert_eq!(names, [("b", Some(50.0))]);
        let key = |endpoint: &str| Key { upstream: "default".to_owned(), endpoint: endpoint.to_owned() };
        assert!(watched.past_of(&key("a")).is_none() && watched.past_of(&key("b")).is_some());
    }

    #[test]
    fn a_restart_is_seen_by_its_uptime_and_gives_no_rates() {
        let mut watched = Watched::default();
        watched.take(at(0), "", Ok(look(100.0, vec![pool("default", "a", 5000)], "")));
        watched.take(at(1), "", Ok(look(0.5, vec![pool("default", "a", 10)], "")));
        assert_eq!(watched.restart, Some(Restart { seen: at(1), times: 1 }));
        assert_eq!(watched.rows[0].rate, None);
        watched.take(at(2), "", Ok(look(1.5, vec![pool("default", "a", 30)], "")));
        assert_eq!(watched.rows[0].rate, Some(20.0));
    }

    #[test]
    fn who_is_away_is_so_since_the_first_miss_and_goes_on_when_back() {
        let mut watched = Watched::default();
        watched.take(at(0), "12:00:00", Ok(look(100.0, vec![pool("default", "a", 5000)], "")));
        watched.take(at(1), "12:00:01", Err("refused".to_owned()));
        watched.take(at(9), "12:00:09", Err("silent".to_owned()));
        let away = Away { since: at(1), clock: "12:00:01".to_owned(), why: "silent".to_owned() };
        assert_eq!((watched.away.as_ref(), watched.rows.len()), (Some(&away), 1), "the last figures stay");
        watched.take(at(11), "12:00:11", Ok(look(111.0, vec![pool("default", "a", 6100)], "")));
        assert_eq!(
            (watched.away.as_ref(), watched.restart.as_ref()),
            (None, None),
            "it was only not to be reached"
        );
        assert_eq!(watched.rows[0].rate, Some(100.0), "over all of the eleven seconds");
    }

    #[test]
    fn rows_stand_in_the_order_that_was_asked_for() {
        let mut watched = Watched::default();
        let with = |endpoint: &str, acquires: u64, wait: f64, dial: f64| {
            let mut one = pool("default", endpoint, acquires);
            (one.wait.p99_us, one.dials.took.p99_us) = (wait, dial);
            one
        };
        let mut many = with("c", 30, 1.0, 3.0);
        many.connections.insert("ready".to_owned(), 50);
        let mut waited_for = with("d", 40, 4.0, 0.0);
        waited_for.waiters = 3;
        let second = vec![with("b", 20, 9.0, 1.0), broken("e"), with("a", 90, 2.0, 9.0), many, waited_for];
        watched.take(at(0), "", Ok(look(1.0, Vec::new(), "")));
        watched.take(at(1), "", Ok(look(2.0, second, "")));
        let order = |sort, is_reversed| -> String {
            watched.sorted(sort, is_reversed).iter().map(|row| row.key.endpoint.as_str()).collect()
        };
        assert_eq!(order(Sort::Name, false), "abcde");
        assert_eq!(order(Sort::Name, true), "edcba");
        assert_eq!(order(Sort::Rate, false), "adcbe");
        assert_eq!(order(Sort::Connections, false), "cabde");
        assert_eq!(order(Sort::Waiters, false), "edabc");
        assert_eq!(order(Sort::Wait, false), "ebdac");
        assert_eq!(order(Sort::Dial, false), "eacbd");
        assert_eq!(order(Sort::Trouble, false), "edabc");
        let mut sorts = vec![Sort::Name];
        for _ in 0..Sort::ALL.len() {
            sorts.push(sorts[sorts.len() - 1].next());
        }
        assert_eq!((&sorts[..7], sorts[7]), (&Sort::ALL[..], Sort::Name));
    }

    #[test]
    fn the_past_has_an_end() {
        let mut past = Past::default();
        (0..2000).for_each(|n| past.push([n, 0, 0]));
        assert_eq!((past.rate.len(), past.rate.back()), (PAST_MAX, Some(&1999)));
    }
}

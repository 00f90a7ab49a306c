//! The answer to a plan's question, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::question::{Bound, Figures, NoPool, Question, WhatIf};
use super::units::{Grouped, memory, per_second, shown};
use super::world::Arrivals;

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Plan {
    asked: Vec<String>,
    target: String,
    /// Of which percentile the target is.
    percentile: f64,
    target_wait_us: f64,
    /// Connections needed to each endpoint.
    connections: u32,
    connections_all: u64,
    /// How that number was found.
    found_by: &'static str,
    /// Requests in flight to each endpoint on average, as Little's law has it.
    in_flight: f64,
    waits: Vec<Row>,
    bounds: Vec<Bound>,
    binds: Binds,
    without_pool: NoPool,
    sensitivity: Vec<WhatIf>,
    seed: Seed,
    notes: Vec<String>,
}

/// How long requests wait with so many connections.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// Who says so.
    by: &'static str,
    /// Connections to each endpoint.
    connections: u32,
    /// Nothing at all when the line has no end.
    waits: Option<f64>,
    mean_us: Option<f64>,
    p50_us: Option<f64>,
    p90_us: Option<f64>,
    p99_us: Option<f64>,
    p999_us: Option<f64>,
    /// Requests per second, all endpoints together.
    throughput: f64,
    /// Connections at the highest and dials, where they were lived.
    peak: Option<u32>,
    dials: Option<u64>,
}

/// Which limit is reached first.
#[derive(Clone, Debug, Serialize)]
struct Binds {
    what: &'static str,
    /// Connections to each endpoint that it allows.
    connections: u64,
    /// At how many times this load; below 1 it does not fit.
    at_times: f64,
    fits: bool,
    remedy: String,
}

/// The calculation that this one replaces, and what it gets wrong.
#[derive(Clone, Debug, Serialize)]
struct Seed {
    /// The pool that it is about: what was asked about, or the seed's ten.
    connections: u32,
    /// Callers, or requests in flight.
    concurrency: f64,
    /// Concurrency by connections, times the time of service.
    delay_us: f64,
    /// The mean wait here; nothing when the line has no end.
    ours_us: Option<f64>,
    /// As many connections as callers.
    size: f64,
    wrong: Vec<String>,
}

/// Connections of the seed's pool: one for each core of its machine.
const SEED_CONNECTIONS: u32 = 10;

impl Plan {
    /// Answers. `taken` is what is to be told of where the question came from.
    ///
    /// # Errors
    ///
    /// When no number of connections could meet the target, or the engine refuses them.
    pub(crate) fn new(question: &Question, taken: Vec<String>) -> Result<Self, String> {
        let connections = question.fewest()?;
        let engine = |n, is_warm| question.lived(n, is_warm).map_err(|error| error.to_string());
        let theory = match (question.is_exact(), question.arrivals) {
            (true, _) => "theory (exact)",
            (false, Arrivals::Open { .. }) => "theory (about)",
            (false, Arrivals::Closed { .. }) => "theory (as if exponential)",
        };
        let mut waits = Vec::new();
        let mut rows = |n: u32, from_empty: bool| -> Result<(), String> {
            waits.push(Row::of(question, theory, n, &question.told(n), None));
            let mut lives = vec![("engine, all connected", engine(n, true)?)];
            if from_empty {
                lives.push(("engine, from empty", engine(n, false)?));
            }
            for (by, lived) in lives {
                if let Some(lived) = lived {
                    let figures = Figures::of(&lived, question.parts());
                    waits.push(Row::of(question, by, n, &figures, Some((lived.connections, lived.dials))));
                }
            }
            Ok(())
        };
        rows(connections, true)?;
        if let Some(given) = question.connections.filter(|given| *given != connections) {
            rows(given, false)?;
        }
        let seed_connections = question.connections.unwrap_or(SEED_CONNECTIONS);
        let ours = if question.is_exact() {
            question.told(seed_connections).mean
        } else {
            engine(seed_connections, true)?.map(|lived| lived.mean())
        };
        let planned = question.connections.unwrap_or(connections);
        let bounds = question.bounds(planned);
        let binds = Binds::new(question, &bounds, connections);
        let in_flight = question.service.mean * question.told(connections).throughput;
        let mut notes = taken;
        notes.extend(notes_on(question, planned));
        Ok(Self {
            asked: asked(question),
            target: format!(
                "{} % of requests wait at most {} for a connection",
                percent(question.part),
                shown(question.target)
            ),
            percentile: question.part * 100.0,
            target_wait_us: question.target * 1e6,
            connections,
            connections_all: u64::from(connections) * u64::from(question.endpoints),
            found_by: if question.is_exact() {
                "theory, exact for these assumptions"
            } else {
                "simulation with the engine's own core"
            },
            in_flight,
            waits,
            binds,
            bounds,
            without_pool: question.without_pool(),
            sensitivity: question.sensitivity(connections),
            seed: Seed::new(question, seed_connections, ours),
            notes,
        })
    }
}

fn asked(question: &Question) -> Vec<String> {
    let who = match question.arrivals {
        Arrivals::Open { rate, burst: 1 } => format!("{} that come on their own", per_second(rate)),
        Arrivals::Open { rate, burst } => {
            format!("{} that come on their own, {burst} at once", per_second(rate))
        }
        Arrivals::Closed { callers, think } if think > 0.0 => {
            format!(
                "{} callers, each asking again {} after its answer",
                Grouped(callers.into()),
                shown(think)
            )
        }
        Arrivals::Closed { callers, .. } => {
            format!("{} callers, each asking again at once", Grouped(callers.into()))
        }
    };
    let endpoints = match question.endpoints {
        1 => "1 endpoint".to_owned(),
        n => format!("{n} endpoints that share the load evenly"),
    };
    let capacity = match question.capacity {
        1 => "one request on a connection at a time".to_owned(),
        n => format!("{n} requests on a connection at once"),
    };
    let transport = question.transport.as_str();
    vec![who, format!("service {}", question.service), format!("{endpoints} by {transport}, {capacity}")]
}

fn notes_on(question: &Question, planned: u32) -> Vec<String> {
    let mut notes = Vec::new();
    if question.is_endless(planned) {
        let needed = match question.share() {
            Arrivals::Open { rate, .. } => rate * question.service.mean / f64::from(question.capacity),
            Arrivals::Closed { .. } => 0.0,
        };
        notes.push(format!(
            "with {planned} connections more comes than can be served: the line has no end; more than {needed:.1} are \
             needed to keep up at all"
        ));
    }
    if let Arrivals::Closed { callers, .. } = question.share()
        && planned >= callers.div_ceil(question.capacity)
    {
        notes.push(
            "each caller has a place of its own: nobody ever waits, and more connections would stand idle"
                .into(),
        );
    }
    notes.push(format!(
        "memory is {} a connection, an assumption; --connection-memory says another",
        memory(question.room.connection_bytes)
    ));
    notes
}

fn percent(part: f64) -> String {
    let text = format!("{:.2}", part * 100.0);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

impl Row {
    fn of(
        question: &Question,
        by: &'static str,
        connections: u32,
        figures: &Figures,
        lived: Option<(u32, u64)>,
    ) -> Self {
        let us = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e6);
        let [p50, p90, p99, p999] = figures.quantiles;
        Self {
            by,
            connections,
            waits: figures.waits,
            mean_us: us(figures.mean),
            p50_us: us(p50),
            p90_us: us(p90),
            p99_us: us(p99),
            p999_us: us(p999),
            throughput: figures.throughput * f64::from(question.endpoints),
            peak: lived.map(|(peak, _)| peak),
            dials: lived.map(|(_, dials)| dials),
        }
    }
}

impl Binds {
    fn new(question: &Question, bounds: &[Bound], needed: u32) -> Self {
        // Sorted: the first allows the fewest connections.
        let first = &bounds[0];
        // Where theory is not exact, as if load and connections grew together: a little less than is true.
        let at_times = if question.is_exact() {
            question.reach(first.connections)
        } else {
            first.connections as f64 / f64::from(needed)
        };
        let remedy = match first.what {
            "connections_max of the pool" => "raise connections_max of the upstream",
            "local ports to one destination" => {
                "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\", or more endpoints or source addresses"
            }
            "descriptors" => "LimitNOFILE=1048576 in the unit, or ulimit -Hn",
            _ => "more memory, or more requests on a connection (--capacity)",
        };
        let fits = !bounds.iter().any(Bound::is_short);
        Self { what: first.what, connections: first.connections, at_times, fits, remedy: remedy.to_owned() }
    }
}

impl Seed {
    fn new(question: &Question, connections: u32, ours: Option<f64>) -> Self {
        let service = question.service.mean;
        let (concurrency, is_closed) = match question.share() {
            Arrivals::Open { rate, .. } => (rate * service, false),
            Arrivals::Closed { callers, .. } => (f64::from(callers), true),
        };
        let places = f64::from(connections) * f64::from(question.capacity);
        let delay = concurrency / f64::from(connections) * service;
        let mut wrong = Vec::new();
        if is_closed && concurrency > places {
            wrong.push(
                "it is line and service together: the wait is one time of service less, and only while every caller is \
                 always there"
                    .to_owned(),
            );
        } else if is_closed {
            wrong.push(
                "there are as many places as callers: nobody waits, and it says that they do".to_owned(),
            );
        } else if concurrency >= places {
            wrong.push(
                "more comes than can be served, so that the line grows without end: it gives a number all the same"
                    .to_owned(),
            );
        } else {
            wrong.push(
                "who is being served is no line: it gives a wait wherever anything is in flight, and nearly none where \
                 the line explodes"
                    .to_owned(),
            );
        }
        if question.capacity > 1 {
            wrong.push("it knows of no connection that carries more than one request".to_owned());
        }
        wrong.push("it is one number: it knows neither spread, nor bursts, nor percentiles".to_owned());
        wrong.push(
            "nor were its 256 callers in line: at 95.9 % hits, 1,980/s ask the pool 81 times a second, which ten \
             connections serve without a line unless each takes 120 ms; its 40 ms came from elsewhere"
                .to_owned(),
        );
        Self {
            connections,
            concurrency,
            delay_us: delay * 1e6,
            ours_us: ours.map(|seconds| seconds * 1e6),
            size: concurrency,
            wrong,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in self.asked.iter().enumerate() {
            writeln!(f, "{:<8} {line}", if at == 0 { "asked" } else { "" })?;
        }
        writeln!(f, "{:<8} {}", "target", self.target)?;
        let all = if self.connections_all == u64::from(self.connections) {
            String::new()
        } else {
            format!(" to each endpoint, {} in all", Grouped(self.connections_all))
        };
        writeln!(
            f,
            "\n{:<8} {} connections{all} ({})",
            "needed",
            Grouped(self.connections.into()),
            self.found_by
        )?;
        writeln!(f, "{:<8} {:.2} requests in flight to each endpoint on average", "", self.in_flight)?;
        self.show_waits(f)?;
        self.show_bounds(f)?;
        let without = &self.without_pool;
        writeln!(f, "\nwithout a pool")?;
        writeln!(
            f,
            "  {} sockets made and {:.0} open on average; {} local ports at each destination, those in TIME_WAIT included; no \
             more than {} before ports run out",
            per_second(without.sockets_per_second),
            without.in_flight,
            Grouped(without.ports_per_destination.ceil() as u64),
            per_second(without.rate_max),
        )?;
        writeln!(f, "\nif an assumption is wrong (connections to each endpoint)")?;
        for one in &self.sensitivity {
            writeln!(f, "  {:<48} {:>9}  ×{:.2}", one.what, Grouped(one.connections.into()), one.times)?;
        }
        self.show_seed(f)?;
        for (at, note) in self.notes.iter().enumerate() {
            write!(f, "{}note: {note}", if at == 0 { "\n" } else { "" })?;
            if at + 1 < self.notes.len() {
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

impl Plan {
    fn show_waits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n{:<27} {:>6} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11}",
            "wait for a connection", "conns", "waiting", "mean", "p50", "p90", "p99", "p99.9", "served"
        )?;
        for row in &self.waits {
            let time = |us: Option<f64>| us.map_or_else(|| "no end".to_owned(), |us| shown(us / 1e6));
            let waits = row.waits.map_or_else(|| "all".to_owned(), |part| format!("{:.1} %", part * 100.0));
            write!(
                f,
                "{:<27} {:>6} {waits:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>11}",
                row.by,
                row.connections,
                time(row.mean_us),
                time(row.p50_us),
                time(row.p90_us),
                time(row.p99_us),
                time(row.p999_us),
                per_second(row.throughput)
            )?;
            match (row.by, row.peak, row.dials) {
                ("engine, from empty", Some(peak), Some(dials)) => {
                    writeln!(f, "  {} dials, {} connections at most", Grouped(dials), Grouped(peak.into()))?;
                }
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }

    fn show_bounds(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n{:<32} {:>12} {:>14} {:>12}", "what it takes", "needs", "there is", "allows")?;
        for bound in &self.bounds {
            let amount = |n: u64| {
                if bound.what.starts_with("memory") { memory(n) } else { Grouped(n).to_string() }
            };
            writeln!(
                f,
                "{:<32} {:>12} {:>14} {:>12}{}",
                bound.what.trim_end_matches(" (bytes)"),
                amount(bound.needs),
                amount(bound.has),
                Grouped(bound.connections),
                if bound.is_short() { "  too little" } else { "" }
            )?;
        }
        let Binds { what, connections, at_times, fits, remedy } = &self.binds;
        let what = what.trim_end_matches(" (bytes)");
        let connections = Grouped(*connections);
        if *fits {
            writeln!(
                f,
                "binds first: {what}, {connections} connections to each endpoint, enough for about {at_times:.1} times this load"
            )?;
        } else {
            writeln!(
                f,
                "does not fit: {what} allow {connections} connections to each endpoint, enough for about {at_times:.2} times \
                 this load"
            )?;
        }
        writeln!(f, "  remedy: {remedy}")
    }

    fn show_seed(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Seed { connections, concurrency, delay_us, ours_us, size, wrong } = &self.seed;
        let ours =
            ours_us.map_or_else(|| "no end".to_owned(), |us| format!("{} on average", shown(us / 1e6)));
        writeln!(f, "\nthe seed's own calculation: callers / connections × service")?;
        writeln!(
            f,
            "  {concurrency:.1} / {connections} × service = {} of waiting; here, with {connections}: {ours}",
            shown(delay_us / 1e6)
        )?;
        writeln!(f, "  its size, as many as callers: {size:.0}; here: {}", self.connections)?;
        for one in wrong {
            writeln!(f, "  - {one}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::draw::Service;
    use super::super::question::tests::question;
    use super::*;

    fn plan(question: Question) -> (String, serde_json::Value) {
        let plan = Plan::new(&question.check().unwrap(), Vec::new()).unwrap();
        (plan.to_string(), serde_json::to_value(&plan).unwrap())
    }

    #[test]
    fn the_seeds_case_stands_beside_its_own_calculation() {
        let (text, json) = plan(Question {
            connections: Some(10),
            ..question(Arrivals::Closed { callers: 256, think: 0.0 })
        });
        assert!(
            text.contains("256.0 / 10 × service = 20.0 ms of waiting; here, with 10: 19.2 ms on average"),
            "{text}"
        );
        assert!(text.contains("line and service together"), "{text}");
        assert_eq!(json["seed"]["connections"], 10);
        assert!((json["seed"]["delay_us"].as_f64().unwrap() - 19_968.0).abs() < 1.0, "{json}");
        let rows = json["waits"].as_array().unwrap();
        assert_eq!(rows.len(), 5, "theory, warm, from empty; theory and warm with ten");
        let mean = |at: usize| rows[at]["mean_us"].as_f64().unwrap();
        assert!((mean(3) / mean(4) - 1.0).abs() < 0.1, "{rows:?}");
    }

    #[test]
    fn what_binds_first_is_said_with_its_remedy() {
        let open = Arrivals::Open { rate: 5000.0, burst: 1 };
        let (text, json) = plan(question(open));
        assert!(text.contains("binds first: connections_max of the pool, 1,024 connections"), "{text}");
        assert_eq!(json["binds"]["fits"], true);
        let asked = question(open);
        let (text, json) =
            plan(Question { room: super::super::question::Room { ports: 5, ..asked.room }, ..asked });
        assert!(text.contains("does not fit: local ports to one destination allow 5 connections"), "{text}");
        assert!(text.contains("net.ipv4.ip_local_port_range"), "{text}");
        assert!(json["binds"]["at_times"].as_f64().unwrap() < 1.0, "{json}");
    }

    #[test]
    fn a_pool_that_cannot_keep_up_is_said_to_have_no_end() {
        let open = Arrivals::Open { rate: 5000.0, burst: 1 };
        let (text, json) = plan(Question { connections: Some(3), ..question(open) });
        assert!(text.contains("no end") && text.contains("more than 3.9 are needed"), "{text}");
        assert!(json["seed"]["ours_us"].is_null(), "{json}");
    }

    #[test]
    fn what_theory_does_not_cover_is_lived_through() {
        let open = Arrivals::Open { rate: 5000.0, burst: 4 };
        let asked = Question { service: Service { mean: 0.00078, spread: 2.0 }, ..question(open) };
        let (text, json) = plan(Question { requests: 20_000, ..asked });
        assert!(text.contains("simulation with the engine's own core"), "{text}");
        assert!(text.contains("theory (about)"), "{text}");
        let target = json["target_wait_us"].as_f64().unwrap();
        assert!(json["waits"][1]["p99_us"].as_f64().unwrap() <= target, "{json}");
    }
}

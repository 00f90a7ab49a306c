//! Reports as they were written: which kind of load, which settings, which figures.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{CompareError, Figure};

/// A kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `forebay bench dns`.
    Dns,
    /// `forebay bench tcp`.
    Tcp,
    /// `forebay bench http`.
    Http,
    /// `forebay bench grpc`.
    Grpc,
}

impl Kind {
    /// Returns its name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Grpc => "grpc",
        }
    }

    /// By which fields its reports are known. No other's have them all.
    const fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Dns => &["transport", "in_flight", "qps", "rcodes"],
            Self::Tcp => &["pattern", "size", "rate", "connections_opened"],
            Self::Http => &["url", "protocol", "statuses", "rate"],
            Self::Grpc => &["url", "message_bytes", "is_streaming", "rate"],
        }
    }

    /// What was asked for, beside of whom.
    const fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Dns => &["transport", "clients", "in_flight"],
            Self::Tcp => &["pattern", "pool", "clients", "size"],
            Self::Http => &["protocol", "method", "body", "pool", "clients", "pipeline"],
            Self::Grpc => &["method", "is_streaming", "message_bytes", "clients", "requests", "connections"],
        }
    }

    const fn is_dns(self) -> bool {
        matches!(self, Self::Dns)
    }
}

/// What one report says.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// Where it is from.
    pub name: String,
    /// Of what kind of load it is.
    pub kind: Kind,
    /// What was asked for, beside of whom: names and values.
    pub settings: BTreeMap<String, String>,
    /// Requests a second that were wanted (open loop).
    pub paced: Option<f64>,
    /// Requests that were made.
    pub requests: u64,
    /// Those without an answer, or with a wrong one.
    pub failed: u64,
    /// The figures that it has: latencies only with answers, CPU of the server only if it was named.
    pub figures: BTreeMap<Figure, f64>,
    /// Why the generator was the limit, if it was.
    pub generator_limit: Option<String>,
    /// Why it is of a part of its load only, if it is.
    pub partial: Option<String>,
}

/// Reads all reports in a text: one, several after each other, or a list of them. `name` says where it is from.
///
/// # Errors
///
/// When the text is no JSON, or something in it is no report of one load.
pub fn read(name: &str, text: &str) -> Result<Vec<Reading>, CompareError> {
    let mut found = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        let value = value.map_err(|error| CompareError::Damaged {
            name: name.to_owned(),
            problem: format!("{error}, after {} whole report(s)", found.len()),
        })?;
        match value {
            Value::Array(values) => found.extend(values),
            value => found.push(value),
        }
    }
    if found.is_empty() {
        return Err(CompareError::Damaged {
            name: name.to_owned(),
            problem: "there is nothing in it".to_owned(),
        });
    }
    let several = found.len() > 1;
    let numbered = |n: usize| if several { format!("{name}#{}", n + 1) } else { name.to_owned() };
    found.iter().enumerate().map(|(n, value)| Report::of(numbered(n), value)?.reading()).collect()
}

/// A report whose kind is known.
struct Report<'a> {
    name: String,
    kind: Kind,
    fields: &'a Map<String, Value>,
}

impl<'a> Report<'a> {
    fn of(name: String, value: &'a Value) -> Result<Self, CompareError> {
        let foreign =
            |problem: &str| CompareError::Foreign { name: name.clone(), problem: problem.to_owned() };
        let fields = value.as_object().ok_or_else(|| foreign("it is no JSON object"))?;
        if fields.contains_key("claims") {
            return Err(foreign("the report of `--pattern claims` has both its sides in it"));
        }
        if fields.contains_key("one_task_ratio") {
            return Err(foreign("the report of `bench pool` has all its sides in it"));
        }
        let is = |kind: &Kind| kind.marks().iter().all(|mark| fields.contains_key(*mark));
        match [Kind::Dns, Kind::Tcp, Kind::Http, Kind::Grpc].into_iter().find(is) {
            Some(kind) => Ok(Self { name, kind, fields }),
            None => Err(foreign("it has not the fields of one")),
        }
    }

    fn reading(&self) -> Result<Reading, CompareError> {
        let kind = self.kind;
        let answered = self.count("answered")?;
        let (requests, failed) = if kind.is_dns() {
            (self.count("sent")?, self.count("lost")? + self.count("wrong")?)
        } else {
            let failed = self.count("failed")?;
            (answered + failed, failed)
        };
        let mut partial = self.text("partial")?;
        if answered == 0 && partial.is_none() {
            partial = Some("nothing was answered".to_owned());
        }
        Ok(Reading {
            name: self.name.clone(),
            kind,
            settings: self.settings(),
            paced: self.number(if kind.is_dns() { "rate" } else { "target_rate" })?,
            requests,
            failed,
            figures: self.figures()?,
            generator_limit: self.text("generator_limit")?,
            partial,
        })
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let told = |name: &&str| {
            let value = self.fields.get(*name).filter(|value| !value.is_null())?;
            Some(((*name).to_owned(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        };
        self.kind.settings().iter().filter_map(told).collect()
    }

    fn figures(&self) -> Result<BTreeMap<Figure, f64>, CompareError> {
        let mut figures = BTreeMap::new();
        let rate = if self.kind.is_dns() { "qps" } else { "rate" };
        figures.insert(Figure::Rate, self.number(rate)?.ok_or_else(|| self.lacks(rate, "a number"))?);
        if let Some(latency) = self.fields.get("latency").filter(|value| !value.is_null()) {
            for (figure, name) in [
                (Figure::Mean, "mean_us"),
                (Figure::P50, "p50_us"),
                (Figure::P90, "p90_us"),
                (Figure::P99, "p99_us"),
                (Figure::P999, "p999_us"),
            ] {
                let value = latency.get(name).and_then(Value::as_f64);
                let value = value.ok_or_else(|| self.lacks(&format!("latency.{name}"), "a number"))?;
                figures.insert(figure, value);
            }
        }
        let (own, server) = if self.kind.is_dns() {
            let server = self.fields.get("server").filter(|value| !value.is_null());
            (
                self.number("cpu_us_per_query")?,
                server.and_then(|server| server.get("cpu_us_per_query")?.as_f64()),
            )
        } else {
            (self.number("cpu_us_per_request")?, self.number("server_cpu_us_per_request")?)
        };
        figures.extend(own.map(|cpu| (Figure::GeneratorCpu, cpu)));
        figures.extend(server.map(|cpu| (Figure::ServerCpu, cpu)));
        Ok(figures)
    }

    fn count(&self, name: &str) -> Result<u64, CompareError> {
        let value = self.fields.get(name).and_then(Value::as_u64);
        value.ok_or_else(|| self.lacks(name, "a number of requests"))
    }

    fn number(&self, name: &str) -> Result<Option<f64>, CompareError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| self.lacks(name, "a number")),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, CompareError> {
        match self.fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| self.lacks(name, "a text"))
            }
        }
    }

    fn lacks(&self, field: &str, what: &str) -> CompareError {
        let found = self.fields.get(field).map_or_else(|| "missing".to_owned(), Value::to_string);
        let problem = format!("`{field}` is {found} and should be {what}");
        CompareError::Damaged { name: self.name.clone(), problem }
    }
}

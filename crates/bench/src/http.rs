//! HTTP load: requests over kept, pooled or single-use connections, by HTTP/1.1 or HTTP/2, plain or TLS.
//!
//! **Closed loop** (the default): each client makes its next request when it has the answer to its last. **Open loop**
//! (`rate`): requests are due whatever the server does, and latency counts from when one was due.
//!
//! Clients borrow connections from a [`forebay::Pool`]; without a pool every request opens and closes its own, which is
//! the baseline. Answers are read by an own reader, so that it can disagree with the proxy's.
//!
//! ```no_run
//! use forebay_bench::http::{HttpLoad, run};
//!
//! let load = HttpLoad { clients: 64, ..HttpLoad::new("http://127.0.0.1:8080/".parse()?) };
//! println!("{}", run(&load)?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod claims;
mod h1;
mod h2;
mod io;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use forebay::Config;
use forebay::dial::{ClientConfigs, Roots};
use serde::Serialize;

pub use self::claims::{HttpClaimsReport, claims};
pub use self::url::{Url, UrlError};
use crate::load::{BenchError, Figures, Pace, Tally, drive, make_room, on_threads};
use io::Target;

/// The longest body of a request, in bytes: it is held in memory.
const BODY_MAX: usize = 1 << 26;

/// Requests that one write may hold.
const PIPELINE_MAX: usize = 1024;

/// A load to put on an HTTP server.
#[derive(Clone, Debug)]
pub struct HttpLoad {
    /// What is asked for.
    pub url: Url,
    /// By which method. Default: `GET`.
    pub method: String,
    /// Bytes in each request's body. Default: 0, none.
    pub body: usize,
    /// Header fields beside `Host` and the body's length. Default: none.
    pub fields: Vec<(String, String)>,
    /// Speaks HTTP/2 (by ALPN over TLS, else by prior knowledge). Default: HTTP/1.1.
    pub http2: bool,
    /// Whose certificates are trusted with `https`. `None`: those that this machine trusts. Default: `None`.
    pub roots: Option<Roots>,
    /// How many connections requests borrow from. `None`: each request opens and closes its own. Default: 64.
    pub pool: Option<u32>,
    /// HTTP/2: requests on one connection at once, as far as the server allows. Default: 100.
    pub streams: u32,
    /// How many make requests. Default: 64.
    pub clients: usize,
    /// HTTP/1.1: requests that a client writes at once, before it reads their answers. Default: 1.
    pub pipeline: usize,
    /// Requests a second to begin (open loop). `None`: as fast as answers come. Default: `None`.
    pub rate: Option<f64>,
    /// When to stop. `None`: after `requests`. Default: 5 s.
    pub duration: Option<Duration>,
    /// How many requests to make at most. Default: `None`, any number.
    pub requests: Option<u64>,
    /// When a request without a whole answer has failed, its wait for a connection included. Default: 5 s.
    pub timeout: Duration,
    /// Threads that clients are spread over, each with a pool of its own share. Default: 1.
    pub threads: usize,
    /// Core of the first thread. Default: `None`, any.
    pub pin: Option<usize>,
    /// Process whose CPU time to report. Default: `None`.
    pub server_pid: Option<i32>,
}

impl HttpLoad {
    /// Describes the default load on `url`.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            method: "GET".to_owned(),
            body: 0,
            fields: Vec::new(),
            http2: false,
            roots: None,
            pool: Some(64),
            streams: 100,
            clients: 64,
            pipeline: 1,
            rate: None,
            duration: Some(Duration::from_secs(5)),
            requests: None,
            timeout: Duration::from_secs(5),
            threads: 1,
            pin: None,
            server_pid: None,
        }
    }

    fn pace(&self) -> Pace {
        Pace {
            rate: self.rate,
            duration: self.duration,
            // Whoever pipelines makes several with each turn.
            requests: self.requests.map(|requests| requests.div_ceil(self.pipeline.max(1) as u64)),
            threads: self.threads,
            pin: self.pin,
            server_pid: self.server_pid,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |setting, value: &dyn ToString, remedy: &str| {
            Err(BenchError::setting(setting, value.to_string(), remedy))
        };
        self.pace().check(self.clients)?;
        let is_token = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte))
        };
        if !is_token(&self.method) || self.method == "CONNECT" {
            return wrong(
                "method",
                &self.method,
                "a method is one word such as GET or POST; tunnels are not measured",
            );
        }
        if self.body > BODY_MAX {
            let remedy = format!("at most {BODY_MAX} bytes are possible");
            return wrong("body", &self.body, &remedy);
        }
        if let Some((name, value)) =
            self.fields.iter().find(|(name, value)| !is_token(name) || value.bytes().any(|byte| byte < b' '))
        {
            return wrong(
                "header",
                &format!("{name}: {value}"),
                "write a name, a colon and a value without line ends",
            );
        }
        if self.pipeline == 0 || self.pipeline > PIPELINE_MAX {
            let remedy = format!("1 to {PIPELINE_MAX} requests at once are possible");
            return wrong("pipeline", &self.pipeline, &remedy);
        }
        if self.pipeline > 1 && (self.http2 || self.pool.is_none() || self.rate.is_some()) {
            let remedy = "only kept HTTP/1.1 connections in a closed loop have a pipeline";
            return wrong("pipeline", &self.pipeline, remedy);
        }
        if self.streams == 0 {
            return wrong("streams", &0, "a connection carries one request at least");
        }
        if self.timeout.is_zero() {
            return wrong("timeout", &"0 s", "a request needs time to be answered: 5 s is usual");
        }
        if self.pool == Some(0) {
            return wrong("pool", &0, "a pool has at least one connection; `off` is without one");
        }
        if self.pool.is_some_and(|pool| (pool as usize) < self.threads) {
            return wrong("pool", &self.pool.unwrap_or_default(), "each thread needs one of its connections");
        }
        if self.roots.is_some() && !self.url.is_tls() {
            return wrong("ca", &"set", "only https has certificates");
        }
        Ok(())
    }

    /// The policy of a pool with so many connections.
    fn config(&self, connections: u32) -> Config {
        let default = Config::default();
        Config {
            connections_max: connections,
            idle_max: connections,
            capacity: if self.http2 { self.streams } else { 1 },
            waiters_max: default.waiters_max.max(self.clients as u32),
            dial_timeout: self.timeout,
            ..default
        }
    }

    fn target(&self) -> Result<Target, BenchError> {
        let alpn: &[u8] = if self.http2 { b"h2" } else { b"http/1.1" };
        let address = self
            .url
            .resolve()
            .map_err(|error| BenchError::io(format!("{} has no address", self.url.authority()), error))?;
        let mut tls = None;
        if self.url.is_tls() {
            let roots = match &self.roots {
                Some(roots) => roots.clone(),
                None => {
                    Roots::native().map_err(|error| BenchError::io("cannot verify certificates", error))?
                }
            };
            let config = ClientConfigs::default()
                .config(&roots, &[alpn.to_vec()])
                .map_err(|error| BenchError::setting("ca", "unusable", error.to_string()))?;
            tls = Some((config, self.url.server_name()));
        }
        Ok(Target { address, tls, http2: self.http2 })
    }
}

/// What an HTTP load came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HttpReport {
    /// What was asked for.
    pub url: String,
    /// `http/1.1` or `h2`.
    pub protocol: &'static str,
    /// By which method.
    pub method: String,
    /// Bytes in each request's body.
    pub body: usize,
    /// How many connections the pool had; `None` without a pool.
    pub pool: Option<u32>,
    /// How many made requests.
    pub clients: usize,
    /// Requests that a client wrote at once.
    pub pipeline: usize,
    /// Requests a second that were wanted (open loop).
    pub target_rate: Option<f64>,
    /// Answers by status code.
    pub statuses: BTreeMap<u16, u64>,
    /// What came of it.
    #[serde(flatten)]
    pub figures: Figures,
}

impl fmt::Display for HttpReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, protocol, method, clients, .. } = self;
        write!(f, "load        {method} {url} by {protocol}, {clients} clients, ")?;
        match self.pool {
            None => write!(f, "a connection per request")?,
            Some(pool) => write!(f, "a pool of {pool}")?,
        }
        if self.body > 0 {
            write!(f, ", bodies of {} bytes", self.body)?;
        }
        if self.pipeline > 1 {
            write!(f, ", {} requests at once", self.pipeline)?;
        }
        match self.target_rate {
            Some(rate) => writeln!(f, ", open loop at {rate}/s")?,
            None => writeln!(f)?,
        }
        let statuses: Vec<_> =
            self.statuses.iter().map(|(status, count)| format!("{status} {count}")).collect();
        writeln!(
            f,
            "statuses    {}",
            if statuses.is_empty() { "none".to_owned() } else { statuses.join(", ") }
        )?;
        self.figures.fmt(f)
    }
}

/// Puts `load` on its target until it is over, and reports. Must not be called from within a runtime.
///
/// # Errors
///
/// When a setting makes no sense, the host has no address, certificates cannot be read, or this machine gives no thread,
/// descriptor or core. What happens to requests is in the report.
pub fn run(load: &HttpLoad) -> Result<HttpReport, BenchError> {
    load.check()?;
    let target = Arc::new(load.target()?);
    make_room(load.clients)?;
    let pace = load.pace();
    let (figures, statuses) = on_threads(&pace, |number| work(load, Arc::clone(&target), pace, number))?;
    Ok(HttpReport {
        url: load.url.to_string(),
        protocol: if load.http2 { "h2" } else { "http/1.1" },
        method: load.method.clone(),
        body: load.body,
        pool: load.pool,
        clients: load.clients,
        pipeline: load.pipeline,
        target_rate: load.rate,
        statuses,
        figures,
    })
}

async fn work(load: &HttpLoad, target: Arc<Target>, pace: Pace, number: usize) -> Result<Tally, BenchError> {
    let clients = pace.share(load.clients as u64, number) as usize;
    let connections = load.pool.map(|pool| pace.share(pool.into(), number) as u32);
    if load.http2 {
        let source = h2::Source::new(load, target, connections)?;
        let clients = (0..clients).map(|_| h2::Requester::new(load, source.clone())).collect();
        let mut tally = drive(&pace, number, clients).await;
        tally.opened += source.opened();
        Ok(tally)
    } else {
        let source = h1::Source::new(load, target, connections)?;
        let clients = (0..clients).map(|_| h1::Requester::new(load, source.clone())).collect();
        let mut tally = drive(&pace, number, clients).await;
        tally.opened += source.opened();
        Ok(tally)
    }
}

#[cfg(test)]
mod tests;

//! gRPC load: unary and server-streaming calls through a [`PooledChannel`], of the greeter or of any method that the
//! server describes.
//!
//! **Closed loop** (the default): each client makes its next call when its last has ended. **Open loop** (`rate`): calls
//! are due whatever the server does, and latency counts from when one was due. A call that streams counts once, when its
//! last message is here.
//!
//! ```no_run
//! use forebay_bench::grpc::{GrpcLoad, run};
//!
//! // As the seed of this has it: 50 clients, 200 calls each.
//! let load = GrpcLoad { clients: 50, requests: Some(200), duration: None, ..GrpcLoad::new("http://127.0.0.1:50051") };
//! println!("{}", run(&load)?);
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod call;
mod method;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use forebay::dial::Roots;
use forebay_grpc::PooledChannel;
use serde::Serialize;

pub use self::call::told;
pub use self::method::Method;
use self::method::Plan;
use crate::load::{BenchError, Figures, Pace, Tally, drive, make_room, on_threads};

/// The longest name that a greeter is called with, in bytes: what servers take in a message by default, nearly.
pub const PAYLOAD_MAX: usize = 4_000_000;

/// Room for calls that wait for a connection; as many as there are clients, if those are more.
const WAITERS_MIN: u32 = 1024;

/// A load to put on a gRPC server.
#[derive(Clone, Debug)]
pub struct GrpcLoad {
    /// Where the server is: `http://HOST[:PORT]` or `https://HOST[:PORT]`.
    pub url: String,
    /// What is called. Default: the greeter's `SayHello`.
    pub method: Method,
    /// Whose certificates are trusted with `https`. `None`: those that this machine trusts. Default: `None`.
    pub roots: Option<Roots>,
    /// Connections at most, all threads together. `None`: as the channel decides. Default: `None`.
    pub connections: Option<u32>,
    /// How many make calls, each one at a time. Default: 50.
    pub clients: usize,
    /// How many calls each of them makes at most. Default: `None`, any number.
    pub requests: Option<u64>,
    /// When to stop. `None`: after `requests`. Default: 5 s.
    pub duration: Option<Duration>,
    /// Calls a second to begin (open loop). `None`: as fast as answers come. Default: `None`.
    pub rate: Option<f64>,
    /// When a call without its end has failed, its wait for a connection included. Default: 5 s.
    pub timeout: Duration,
    /// Threads that clients are spread over, each with a channel of its own. Default: 1.
    pub threads: usize,
    /// Core of the first thread. Default: `None`, any.
    pub pin: Option<usize>,
    /// Process whose CPU time to report. Default: `None`.
    pub server_pid: Option<i32>,
}

impl GrpcLoad {
    /// Describes the default load on the server at `url`.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            method: Method::Hello { payload: 5, is_streaming: false },
            roots: None,
            connections: None,
            clients: 50,
            requests: None,
            duration: Some(Duration::from_secs(5)),
            rate: None,
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
            requests: self.requests.map(|requests| requests.saturating_mul(self.clients as u64)),
            threads: self.threads,
            pin: self.pin,
            server_pid: self.server_pid,
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        self.pace().check(self.clients)?;
        let wrong = |setting, value: &dyn ToString, remedy: &str| {
            Err(BenchError::setting(setting, value.to_string(), remedy))
        };
        if self.timeout.is_zero() {
            return wrong("timeout", &"0 s", "a call needs time to be answered: 5 s is usual");
        }
        match self.connections {
            Some(0) => return wrong("connections", &0, "calls need one at least"),
            Some(connections) if (connections as usize) < self.threads => {
                return wrong("connections", &connections, "each thread needs one of its own");
            }
            _ => {}
        }
        if self.roots.is_some() && !self.url.starts_with("https://") {
            return wrong("ca", &"set", "only https has certificates");
        }
        match &self.method {
            Method::Hello { payload, .. } if *payload > PAYLOAD_MAX => {
                let remedy = format!("at most {PAYLOAD_MAX} bytes are possible");
                wrong("payload", payload, &remedy)
            }
            _ => Ok(()),
        }
    }

    /// Makes a channel with so many connections at most. Connects when it is used.
    fn channel(&self, connections: Option<u32>) -> Result<PooledChannel, BenchError> {
        let mut builder = PooledChannel::builder(&self.url)
            .connect_timeout(self.timeout)
            .acquire_timeout(self.timeout)
            .waiters_max(u32::try_from(self.clients).unwrap_or(u32::MAX).max(WAITERS_MIN));
        if let Some(connections) = connections {
            builder = builder.connections_max(connections);
        }
        if let Some(roots) = &self.roots {
            builder = builder.roots(roots.clone());
        }
        builder.build().map_err(|error| BenchError::setting("URL", &self.url, error.to_string()))
    }
}

/// What a gRPC load came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GrpcReport {
    /// Where the server was.
    pub url: String,
    /// What was called, as `package.Service/Method`.
    pub method: String,
    /// Whether answers were streams.
    pub is_streaming: bool,
    /// Bytes in each call's message.
    pub message_bytes: usize,
    /// How many made calls.
    pub clients: usize,
    /// How many calls each was to make at most.
    pub requests: Option<u64>,
    /// How many connections there might be; `None` as the channel decided.
    pub connections: Option<u32>,
    /// Calls a second that were wanted (open loop).
    pub target_rate: Option<f64>,
    /// Messages that came in answer.
    pub messages_received: u64,
    /// What came of it: answers are calls that ended well, errors are named by their codes.
    #[serde(flatten)]
    pub figures: Figures,
}

impl fmt::Display for GrpcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { url, method, clients, message_bytes, .. } = self;
        write!(f, "load        {method} at {url}, messages of {message_bytes} bytes, {clients} clients, ")?;
        if let Some(requests) = self.requests {
            write!(f, "{requests} calls each, ")?;
        }
        match self.connections {
            None => write!(f, "as many connections as needed")?,
            Some(1) => write!(f, "1 connection")?,
            Some(connections) => write!(f, "at most {connections} connections")?,
        }
        match self.target_rate {
            Some(rate) => writeln!(f, ", open loop at {rate}/s")?,
            None => writeln!(f)?,
        }
        if self.is_streaming {
            let each = self.messages_received as f64 / self.figures.answered.max(1) as f64;
            writeln!(f, "streams     {} messages received, {each:.1} per call", self.messages_received)?;
        }
        self.figures.fmt(f)
    }
}

/// Puts `load` on its server until it is over, and reports. Must not be called from within a runtime.
///
/// # Errors
///
/// When a setting makes no sense; the server does not describe the method, or describes one that this cannot call;
/// certificates cannot be read; or this machine gives no thread, descriptor or core. What happens to calls is in the
/// report.
pub fn run(load: &GrpcLoad) -> Result<GrpcReport, BenchError> {
    load.check()?;
    make_room(load.connections.map_or(load.clients, |connections| connections as usize))?;
    let plan = Arc::new(Plan::of(load)?);
    let pace = load.pace();
    let (figures, _) = on_threads(&pace, |number| work(load, Arc::clone(&plan), pace, number))?;
    Ok(GrpcReport {
        url: load.url.clone(),
        method: plan.path.as_str().trim_start_matches('/').to_owned(),
        is_streaming: plan.is_streaming,
        message_bytes: plan.message.len(),
        clients: load.clients,
        requests: load.requests,
        connections: load.connections,
        target_rate: load.rate,
        messages_received: plan.messages.load(Relaxed),
        figures,
    })
}

async fn work(load: &GrpcLoad, plan: Arc<Plan>, pace: Pace, number: usize) -> Result<Tally, BenchError> {
    let clients = pace.share(load.clients as u64, number) as usize;
    let connections = load.connections.map(|connections| pace.share(connections.into(), number) as u32);
    let channel = load.channel(connections)?;
    let callers = (0..clients).map(|_| call::Caller::new(channel.clone(), Arc::clone(&plan), load.timeout));
    let mut tally = drive(&pace, number, callers.collect()).await;
    tally.opened += channel.snapshot().pool.counters().dials_succeeded;
    Ok(tally)
}

#[cfg(test)]
mod tests;

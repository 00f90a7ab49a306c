//! The arguments of `forebay bench`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Subcommand;
use forebay::units::{Size, Span};
use forebay_bench::dns::{Arrivals, Names};
use forebay_bench::http::Url;
use serde::Deserialize;

use super::{refused_options, words};
use crate::compare::CompareArgs;
use crate::seeds::SeedsBenchArgs;

/// How `--arrivals` is written.
const ARRIVALS: &[&str] = &["even", "poisson"];
/// How the patterns of `bench http` are written.
const HTTP_PATTERNS: &[&str] = &["requests", "claims"];
/// How those of `bench tcp` are written.
const TCP_PATTERNS: &[&str] = &["connect", "kept", "bulk", "claims"];

/// The options of `bench`.
#[derive(Debug, clap::Args)]
#[command(args = refused_options())]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub command: BenchCommand,
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Put load on a DNS server, and report latency, losses and wrong answers.
    #[command(after_help = "\
Examples:
  forebay bench dns --target 127.0.0.1:5300 --clients 64 --in-flight 256
  forebay bench dns --target 127.0.0.1:5300 --names unique --rate 20000 --pin 1
  forebay bench dns --target 127.0.0.1:5300 --names zipf:200000:0.9 --server-pid $(pidof forebay) --json")]
    Dns(Box<DnsBenchArgs>),
    /// Acquire and release, beside other pools.
    Pool(PoolBenchArgs),
    /// Put load on a TCP server that sends back what it gets, and report what connections cost.
    #[command(after_help = "\
Examples:
  forebay bench tcp 127.0.0.1:7 --pattern connect --clients 64
  forebay bench tcp 127.0.0.1:7 --pattern connect --clients 64 --pool 10
  forebay bench tcp 127.0.0.1:7 --pattern connect --rate 1000 --clients 256 --json
  forebay bench tcp 127.0.0.1:7 --pattern bulk --clients 4 --server-pid $(pidof forebay)
  forebay bench tcp 127.0.0.1:7 --pattern claims --clients 64 --pool 10")]
    Tcp(TcpBenchArgs),
    /// Put load on an HTTP server, and report latency, statuses and how far connections were reused.
    #[command(after_help = "\
Examples:
  forebay bench http http://127.0.0.1:8080/ --connections 64
  forebay bench http http://127.0.0.1:8080/ --pool off             the baseline: a connection per request
  forebay bench http http://127.0.0.1:8080/ --rate 5000 --clients 256 --server-pid $(pidof forebay)
  forebay bench http https://localhost:8443/ --ca ca.pem --http2 --clients 200 --pool 2
  forebay bench http http://127.0.0.1:8080/upload --method POST --body 64KiB --json
  forebay bench http http://127.0.0.1:8080/ --pattern claims --pool 10")]
    Http(Box<HttpBenchArgs>),
    /// Put load on a gRPC server through a pooled channel, and report latency, codes and how far connections were reused.
    #[command(after_help = "\
Examples:
  forebay bench grpc http://127.0.0.1:50051 --clients 50 --requests 200
  forebay bench grpc http://127.0.0.1:50051 --duration 10s --connections 1     one connection, against the pool
  forebay bench grpc http://127.0.0.1:50051 --rate 20000 --server-pid $(pidof forebay) --json
  forebay bench grpc https://localhost:50051 --ca ca.pem --streaming --payload 4KiB
  forebay bench grpc http://127.0.0.1:50051 --method grpc.health.v1.Health/Check --data '{\"service\": \"\"}'")]
    Grpc(Box<GrpcBenchArgs>),
    /// Measure what five documents claim about pooling, on this machine, with embedded servers alone: some minutes.
    #[command(after_help = "\
Examples:
  forebay bench seeds --quick
  forebay bench seeds --html seeds.html
  forebay bench seeds --only 003 --only 004 --markdown

What the claims are, and how they are judged: docs/seeds.md. Ctrl-C: what was measured is reported; the exit code is 1.")]
    Seeds(SeedsBenchArgs),
    /// Say whether one side is really faster than another: by reports of both, or by running both in turn.
    #[command(after_help = "\
A difference is one when the Mann-Whitney U test has p < 0.05 and the 95 % interval of the ratio leaves 1 out; four runs a
side are the least that can show one.

Examples:
  forebay bench compare before.json after.json
  forebay bench compare --a old1.json --a old2.json --b new1.json --b new2.json
  forebay bench compare --run 'forebay bench dns --target 127.0.0.1:5300 --duration 3s --json' \\
                        --run 'forebay bench dns --target 127.0.0.1:5301 --duration 3s --json' --rounds 7")]
    Compare(CompareArgs),
}

/// The options of `bench dns`.
#[derive(Debug, clap::Args)]
pub struct DnsBenchArgs {
    /// Where the server listens.
    #[arg(long, value_name = "ADDR")]
    pub target: SocketAddr,
    /// Sockets (connections) to spread queries over.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub clients: usize,
    /// Queries on their way at once, over all clients.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub in_flight: usize,
    /// Queries per second to send, whatever the answers (open loop) [default: as fast as answers come].
    #[arg(long, value_name = "QPS")]
    pub rate: Option<f64>,
    /// How they are spread in time: at equal distances (even), or at random (poisson), as many clients who know nothing of each
    /// other ask.
    #[arg(long, value_name = "HOW", default_value = "even", requires = "rate", value_parser = words::<Arrivals>(ARRIVALS))]
    pub arrivals: Arrivals,
    /// How long to send.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub duration: Span,
    /// How many queries to send at most.
    #[arg(long, value_name = "N")]
    pub queries: Option<u64>,
    /// When a query without answer counts as lost.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub timeout: Span,
    /// What to ask for: hot:N, unique, mix:N:PERCENT (N names, and PERCENT of queries for others, never asked before),
    /// zipf:N:EXPONENT or file:PATH (dnsperf's format).
    #[arg(long, value_name = "NAMES", default_value = "hot:10000")]
    pub names: Names,
    /// What all names but those of a file are under.
    #[arg(long, default_value = "bench.test")]
    pub zone: String,
    /// Ask over TCP.
    #[arg(long)]
    pub tcp: bool,
    /// Check each answer against the address that the embedded responder derives from the name.
    #[arg(long)]
    pub verify: bool,
    /// Threads to send from.
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Core to run on (the first thread; others on the following ones).
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// Process whose CPU time per query to report.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<i32>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The options of `bench pool`.
#[derive(Debug, clap::Args)]
pub struct PoolBenchArgs {
    /// Rounds of each case for each pool; medians are reported.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Pairs of acquire and release in a round.
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1000..))]
    pub pairs: u32,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The options of `bench tcp`.
#[derive(Debug, clap::Args)]
pub struct TcpBenchArgs {
    /// Where the server listens; it must send back what it gets.
    #[arg(value_name = "ADDR")]
    pub target: SocketAddr,
    /// How requests get connections: one each (connect), one per client (kept), no requests but as much as goes both
    /// ways (bulk), or the three claims about pooling, each with and without a pool (claims).
    #[arg(long, value_name = "PATTERN", default_value = "kept", value_parser = words::<TcpPattern>(TCP_PATTERNS))]
    pub pattern: TcpPattern,
    /// With connect: borrow each request's connection from a pool of N (on: as many as clients), instead of opening one.
    /// With claims: the size of the pool [default there: 10].
    #[arg(long, value_name = "on|off|N", default_value = "off")]
    pub pool: PoolChoice,
    /// Those who make requests, each one at a time.
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 1)]
    pub clients: usize,
    /// Bytes in a request and in its answer.
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    pub size: usize,
    /// Requests per second to begin, whatever the answers (open loop) [default: as fast as answers come].
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f64>,
    /// How long to go on.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub duration: Span,
    /// How many requests to make at most.
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// When a request without a whole answer has failed.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub timeout: Span,
    /// Threads to send from.
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Core to run on (the first thread; others on the following ones).
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// Process whose CPU time per request to report.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<i32>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// The options of `bench grpc`.
#[derive(Debug, clap::Args)]
pub struct GrpcBenchArgs {
    /// Where the server is; http or https.
    #[arg(value_name = "URL")]
    pub url: String,
    /// What to call, as package.Service/Method: unary, or with a stream of answers; the server must describe it by
    /// reflection [default: the greeter].
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["streaming", "payload"])]
    pub method: Option<String>,
    /// The message of each call, as JSON.
    #[arg(long, value_name = "JSON", default_value = "{}", requires = "method")]
    pub data: String,
    /// Call the greeter's SayHelloStream, which answers several times, rather than SayHello.
    #[arg(long)]
    pub streaming: bool,
    /// Size of the name that is greeted.
    #[arg(long, value_name = "SIZE", default_value = "5B")]
    pub payload: Size,
    /// Connections at most, or auto: as many as calls need.
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = connections)]
    pub connections: Connections,
    /// Those who make calls, each one at a time.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub clients: usize,
    /// How many calls each of them makes [default: as many as fit into the duration].
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// How long to go on [default: 5s, or until the requests are made].
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Span>,
    /// Calls per second to begin, whatever the answers (open loop) [default: as fast as answers come].
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f64>,
    /// When a call without its end has failed.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub timeout: Span,
    /// PEM file of the certificates to trust [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Threads to send from.
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Core to run on (the first thread; others on the following ones).
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// Process whose CPU time per call to report.
    #[arg(long, visible_alias = "pid", value_name = "PID")]
    pub server_pid: Option<i32>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// How many connections a channel may have; `None` is as it decides.
pub type Connections = Option<u32>;

/// Reads `auto` or a number of connections.
fn connections(text: &str) -> Result<Connections, String> {
    match text {
        "auto" => Ok(None),
        _ => match text.parse() {
            Ok(connections) if connections > 0 => Ok(Some(connections)),
            _ => Err("auto, or how many connections there may be".to_owned()),
        },
    }
}

/// The options of `bench http`.
#[derive(Debug, clap::Args)]
pub struct HttpBenchArgs {
    /// What to ask for; http or https.
    #[arg(value_name = "URL")]
    pub url: Url,
    /// Requests, or the three claims about pooling, each with and without a pool (claims).
    #[arg(long, value_name = "PATTERN", default_value = "requests", value_parser = words::<HttpPattern>(HTTP_PATTERNS))]
    pub pattern: HttpPattern,
    /// The method of the requests.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Size of each request's body.
    #[arg(long, value_name = "SIZE", default_value = "0B")]
    pub body: Size,
    /// A header field of each request; repeat for more.
    #[arg(long, value_name = "NAME: VALUE", value_parser = header)]
    pub header: Vec<(String, String)>,
    /// Speak HTTP/2: by ALPN with https, by prior knowledge with http.
    #[arg(long)]
    pub http2: bool,
    /// PEM file of the certificates to trust [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Connections that requests borrow from (on: as many as clients), or off: one for each request.
    #[arg(long, value_name = "on|off|N", default_value = "on")]
    pub pool: PoolChoice,
    /// HTTP/2: requests on one connection at once, as far as the server allows.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub streams: u32,
    /// Those who make requests, each one at a time.
    #[arg(long, visible_alias = "connections", value_name = "N", default_value_t = 64)]
    pub clients: usize,
    /// HTTP/1.1: requests that each client writes at once, before it reads their answers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pipeline: usize,
    /// Requests per second to begin, whatever the answers (open loop) [default: as fast as answers come].
    #[arg(long, value_name = "RATE")]
    pub rate: Option<f64>,
    /// How long to go on.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub duration: Span,
    /// How many requests to make at most.
    #[arg(long, value_name = "N")]
    pub requests: Option<u64>,
    /// When a request without a whole answer has failed.
    #[arg(long, value_name = "TIME", default_value = "5s")]
    pub timeout: Span,
    /// Threads to send from.
    #[arg(long, value_name = "N", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Core to run on (the first thread; others on the following ones).
    #[arg(long, value_name = "CORE")]
    pub pin: Option<usize>,
    /// Process whose CPU time per request to report.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<i32>,
    /// Report as JSON.
    #[arg(long)]
    pub json: bool,
}

/// Reads a header field.
fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write a name, a colon and a value")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// What `bench http` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpPattern {
    /// Requests, as the other options say.
    Requests,
    /// The three claims about pooling.
    Claims,
}

/// What `bench tcp` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TcpPattern {
    /// A connection per request, opened or borrowed.
    Connect,
    /// A connection per client.
    Kept,
    /// As much as goes both ways.
    Bulk,
    /// The three claims about pooling.
    Claims,
}

/// Whether a generator borrows connections, and of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolChoice {
    /// Of as many as there are clients.
    On,
    /// A connection of its own for each request.
    Off,
    /// Of so many.
    Of(u32),
}

impl FromStr for PoolChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" => Ok(Self::On),
            "off" => Ok(Self::Off),
            _ => match text.parse() {
                Ok(connections) if connections > 0 => Ok(Self::Of(connections)),
                _ => Err("on, off, or how many connections the pool has".to_owned()),
            },
        }
    }
}

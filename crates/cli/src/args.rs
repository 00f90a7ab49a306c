//! What may be written on the command line.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use forebay::units::{Size, Span};
use forebay_bench::dns::Names;
use forebay_bench::http::Url;
use forebay_dns::{CacheSettings, DnsConfig, PoolMode, Settings, SettingsError, StrategyName};
use forebay_proxy::{BalanceName, Mode, ProxyConfig};
use serde::Deserialize;
use serde::de::value::{Error as WordError, StrDeserializer};

use crate::apiserver::ApiserverProxyArgs;
use crate::compare::CompareArgs;
use crate::config::{
    AdminConfig, AdminListen, AdminSettings, Config, LogFormat, LogLevel, LogSettings, Machine,
    TOKEN_VARIABLE,
};
use crate::doctor::{self, DoctorArgs};
use crate::failure::Failure;
use crate::grpc::{GrpcArgs, GrpcCommand};
use crate::manual::{CompletionsArgs, ManArgs};
use crate::plan::{self, PlanArgs};
use crate::seeds::SeedsBenchArgs;
use crate::top::TopArgs;

/// The arguments of the command.
#[derive(Debug, Parser)]
#[command(
    name = "forebay",
    version,
    about = "A pool of connections in front of your upstreams: a caching DNS forwarder, a proxy, and gRPC.",
    long_about = "A pool of connections in front of your upstreams: a caching DNS forwarder, a proxy, and gRPC.\n\n\
                  Without a command it forwards DNS from 127.0.0.1:5300 to this machine's own resolvers; the options \
                  are then those of `forebay dns`.",
    after_help = EXAMPLES
)]
pub struct Args {
    /// What to do; nothing is `dns`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `dns`, for when no command is given.
    #[command(flatten)]
    pub dns: DnsArgs,
    /// The options of every server, before or after the command.
    #[command(flatten)]
    pub serve: ServeArgs,
}

const EXAMPLES: &str = "\
Examples:
  forebay                                           forward to this machine's resolvers
  forebay dns --upstream 192.0.2.53 --workers 2     forward to a resolver by its address
  forebay proxy --listen 127.0.0.1:6443 --backend 192.0.2.1:6443
  forebay grpc serve                                serve a greeter by gRPC
  forebay demo                                      see it work, with nothing else installed
  forebay run -c forebay.toml                       run what a file says
  forebay bench dns --target 127.0.0.1:5300         put load on a DNS server
  forebay plan --rate 5000 --service 20ms           how big must a pool be?
  forebay doctor                                    what can this machine carry?
  forebay top                                       watch the pools of a running forebay

Exit codes: 0 all is well, 1 it failed while running, 2 it was used or configured wrongly.
SIGTERM or Ctrl-C: queries in flight are answered, for at most 5 seconds, and clients of a proxy may finish, for at most\nits drain_timeout; a second one ends at once, with 1.";

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Forward DNS.
    #[command(after_help = "\
Examples:
  forebay dns
  forebay dns --listen 127.0.0.1:53 --listen [::1]:53 --upstream tcp://192.0.2.53
  forebay dns --upstream 192.0.2.53 --upstream 192.0.2.54 --strategy least_inflight
  forebay dns --pool off --cache-size 0             the baseline of measurements")]
    Dns(DnsArgs),
    /// Stand between clients and backends.
    #[command(after_help = "\
Examples:
  forebay proxy --listen 127.0.0.1:6443 --backend 192.0.2.1:6443 --backend 192.0.2.2:6443
  forebay proxy --listen :8080 --backend 127.0.0.1:9001 --balance least_connections
  forebay proxy --listen :8080 --backend 127.0.0.1:9001 --pool off   the baseline of measurements")]
    Proxy(ProxyArgs),
    /// Stand on a node before the API servers of its Kubernetes cluster, in the place of k8s-apiserver-proxy.
    #[command(after_help = "\
Clients are passed on as they are, one connection each, to API servers that answer /readyz. The list of them is followed
in the file and, unless --refresh-interval is 0, in Kubernetes, which is asked at each known API server directly; the last
good list stays.

Examples:
  forebay apiserver-proxy
  forebay apiserver-proxy --listen 127.0.0.1:6443 --endpoints endpoints.json --refresh-interval 0")]
    ApiserverProxy(ApiserverProxyArgs),
    /// Speak gRPC.
    Grpc(GrpcArgs),
    /// Run the servers of a configuration file.
    Run(RunArgs),
    /// Say what is wrong with a configuration file.
    Check(CheckArgs),
    /// Show it working: embedded upstreams and web servers, a forwarder and a proxy in front of them, light load, live
    /// figures.
    Demo(DemoArgs),
    /// Measure.
    Bench(BenchArgs),
    /// Write what a shell reads to complete forebay's arguments.
    #[command(after_help = "\
Examples:
  forebay completions bash > /etc/bash_completion.d/forebay
  forebay completions fish > ~/.config/fish/completions/forebay.fish")]
    Completions(CompletionsArgs),
    /// Write manual pages.
    #[command(after_help = "\
Examples:
  forebay man | man -l -
  forebay man --output /usr/local/share/man/man1")]
    Man(ManArgs),
    /// Say how many connections a load needs, how long requests then wait, and what is used up first.
    #[command(after_help = plan::EXAMPLES)]
    Plan(Box<PlanArgs>),
    /// Say what load this machine can carry, what breaks first, and what changes it. Changes nothing.
    #[command(after_help = doctor::EXAMPLES)]
    Doctor(DoctorArgs),
    /// Watch the pools of a running forebay, live in the terminal.
    #[command(after_help = "\
Keys: ? explains them and the columns, q ends. It goes on when what it watches is restarted. An admin endpoint with a token
wants it in FOREBAY_ADMIN_TOKEN or --token-file.

Examples:
  forebay top
  forebay top http://127.0.0.1:9054 --interval 500ms
  forebay top --once                                one frame as text, for a log or a ticket")]
    Top(TopArgs),
}

/// The options of `dns`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct DnsArgs {
    /// Address to listen on: ADDR for UDP and TCP, tls://ADDR or https://ADDR for TLS (with a certificate, of a file);
    /// repeat for more [default: 127.0.0.1:5300].
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Where queries go: ADDR, udp://ADDR, tcp://ADDR, tls://ADDR?name=NAME or https://NAME/PATH; repeat for more
    /// [default: this machine's resolvers].
    #[arg(long, value_name = "URL")]
    pub upstream: Vec<String>,
    /// Which upstream is asked first [default: sequential].
    #[arg(long, value_parser = words::<StrategyName>(STRATEGIES))]
    pub strategy: Option<StrategyName>,
    /// Worker threads; 0 is one for each core [default: 0].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Memory of the cache, all workers together; 0 is no cache [default: 64MiB].
    #[arg(long, value_name = "SIZE")]
    pub cache_size: Option<Size>,
    /// Whether connections to upstreams are kept; `off` is one per query [default: on].
    #[arg(long, value_parser = words::<PoolMode>(POOL_MODES))]
    pub pool: Option<PoolMode>,
    /// Where this machine's resolvers are named.
    #[arg(long, value_name = "FILE", default_value = RESOLV_CONF)]
    pub resolv_conf: PathBuf,
}

/// The options of `proxy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ProxyArgs {
    /// Address to listen on; repeat for more [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Where clients are sent; repeat for more.
    #[arg(long, value_name = "ADDR", required = true)]
    pub backend: Vec<String>,
    /// What is understood of what is passed on [default: opaque].
    #[arg(long, value_parser = words::<Mode>(MODES))]
    pub mode: Option<Mode>,
    /// Which backend serves the next client [default: round_robin].
    #[arg(long, value_parser = words::<BalanceName>(BALANCES))]
    pub balance: Option<BalanceName>,
    /// Worker threads; 0 is one for each core [default: 0].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Whether connections to backends are kept or dialled ahead; `off` is one for each client or request [default: on].
    #[arg(long, value_parser = words::<PoolMode>(POOL_MODES))]
    pub pool: Option<PoolMode>,
}

/// The options of every server. They go before what a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ServeArgs {
    /// Where /metrics, /pools, /healthz, /readyz and profiles (/debug/pprof) are served, or `none`
    /// [default: 127.0.0.1:9053].
    #[arg(long, value_name = "ADDR", global = true, help_heading = "Every server")]
    pub admin: Option<AdminListen>,
    /// The least important level that is logged [default: info].
    #[arg(long, value_name = "LEVEL", global = true, help_heading = "Every server")]
    pub log: Option<LogLevel>,
    /// How the log looks [default: text].
    #[arg(long, value_name = "FORMAT", global = true, help_heading = "Every server")]
    pub log_format: Option<LogFormat>,
}

/// Returns the options of servers, not shown in the help of a command that refuses them.
pub(crate) fn refused_options() -> Vec<clap::Arg> {
    let command = <ServeArgs as clap::Args>::augment_args(clap::Command::new("none"));
    command.get_arguments().map(|option| option.clone().hide(true)).collect()
}

/// The options of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where this machine's resolvers are named.
    #[arg(long, value_name = "FILE", default_value = RESOLV_CONF)]
    pub resolv_conf: PathBuf,
}

/// The options of `check`.
#[derive(Debug, clap::Args)]
#[command(args = refused_options())]
pub struct CheckArgs {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE")]
    pub config: PathBuf,
    /// Where this machine's resolvers are named.
    #[arg(long, value_name = "FILE", default_value = RESOLV_CONF)]
    pub resolv_conf: PathBuf,
}

/// The options of `demo`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Figures are a screen on a terminal, and a line a second elsewhere.")]
pub struct DemoArgs {
    /// How long to run [default: until q or Ctrl-C].
    #[arg(long, value_name = "TIME")]
    pub duration: Option<Span>,
    /// Queries per second to put on it; requests of HTTP are a twentieth of that.
    #[arg(long, value_name = "QPS", default_value_t = 4000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
}

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

impl Args {
    /// Refuses options that would be read by nobody.
    ///
    /// # Errors
    ///
    /// Options of `dns` before another command, and options of servers with a command that serves nothing.
    pub(crate) fn validate(&self) -> Result<(), Failure> {
        let none = DnsArgs { resolv_conf: self.dns.resolv_conf.clone(), ..DnsArgs::default() };
        if self.command.is_some() && (self.dns != none || self.dns.resolv_conf.as_os_str() != RESOLV_CONF) {
            return Err(Failure::wrong("options of `dns` go after the command: forebay dns --listen …"));
        }
        let serves = !matches!(
            self.command,
            Some(
                Command::Check(_)
                    | Command::Bench(_)
                    | Command::Plan(_)
                    | Command::Doctor(_)
                    | Command::Top(_)
                    | Command::Grpc(GrpcArgs { command: GrpcCommand::Hello(_) })
            )
        );
        if !serves && self.serve != ServeArgs::default() {
            return Err(Failure::wrong(
                "--admin, --log and --log-format are for servers, and this command is none",
            ));
        }
        Ok(())
    }
}

impl DnsArgs {
    /// Makes a configuration of the options.
    pub(crate) fn config(&self, serve: &ServeArgs, machine: &Machine) -> Result<Config, Failure> {
        let default = Settings::default();
        let settings = Settings {
            listen: if self.listen.is_empty() { default.listen } else { self.listen.clone() },
            upstreams: self.upstream.clone(),
            strategy: self.strategy.unwrap_or(default.strategy),
            workers: self.workers.unwrap_or(default.workers),
            cache: CacheSettings { size: self.cache_size.unwrap_or(default.cache.size), ..default.cache },
            pool: self.pool.unwrap_or(default.pool),
            ..default
        };
        let dns: DnsConfig = machine.dns(&settings).map_err(|error| flag_failure(&error))?;
        let (admin, log) = serve.resolve(machine.token.as_deref())?;
        Ok(Config { dns: Some(dns), proxies: Vec::new(), admin, log })
    }
}

impl ProxyArgs {
    /// Makes a configuration of the options.
    pub(crate) fn config(&self, serve: &ServeArgs, machine: &Machine) -> Result<Config, Failure> {
        let default = forebay_proxy::Settings::default();
        let settings = forebay_proxy::Settings {
            listen: if self.listen.is_empty() { default.listen } else { self.listen.clone() },
            backends: self.backend.clone(),
            mode: self.mode.unwrap_or(default.mode),
            balance: self.balance.unwrap_or(default.balance),
            workers: self.workers.unwrap_or(default.workers),
            pool: self.pool.unwrap_or(default.pool),
            ..default
        };
        let proxy = ProxyConfig::new(&settings, machine.cores).map_err(|error| flag_failure(&error))?;
        let (admin, log) = serve.resolve(machine.token.as_deref())?;
        Ok(Config { dns: None, proxies: vec![proxy], admin, log })
    }
}

impl ServeArgs {
    /// Makes a configuration of the options and the defaults.
    pub(crate) fn resolve(&self, token: Option<&str>) -> Result<(AdminConfig, LogSettings), Failure> {
        let settings = AdminSettings { listen: self.admin, token: None };
        let admin = AdminConfig::new(&settings, token).map_err(|error| admin_failure(&error))?;
        let default = LogSettings::default();
        let log = LogSettings {
            level: self.log.unwrap_or(default.level),
            format: self.log_format.unwrap_or(default.format),
        };
        Ok((admin, log))
    }

    /// Puts the options in the place of what a file says.
    pub(crate) fn over(&self, mut config: Config) -> Result<Config, Failure> {
        if self.admin.is_some() {
            let settings = AdminSettings { listen: self.admin, token: config.admin.token };
            config.admin = AdminConfig::new(&settings, None).map_err(|error| admin_failure(&error))?;
        }
        config.log.level = self.log.unwrap_or(config.log.level);
        config.log.format = self.log_format.unwrap_or(config.log.format);
        Ok(config)
    }
}

/// Says of an option what was wrong with the setting that it stands for.
fn flag_failure(error: &SettingsError) -> Failure {
    let flag = match error.key.as_str() {
        "upstreams" => "--upstream".to_owned(),
        "backends" => "--backend".to_owned(),
        "cache.size" => "--cache-size".to_owned(),
        key @ ("listen" | "workers") => format!("--{key}"),
        key => key.to_owned(),
    };
    Failure::wrong(format!("{flag}: {}", error.problem))
}

/// The same for the admin endpoint, whose token has no option: a list of processes is no place for it.
fn admin_failure(error: &SettingsError) -> Failure {
    let place = if error.key == "token" { TOKEN_VARIABLE } else { "--admin" };
    Failure::wrong(format!("{place}: {}", error.problem))
}

/// How `--strategy` is written.
const STRATEGIES: &[&str] =
    &["sequential", "parallel", "racing", "round_robin", "random", "fastest", "least_inflight"];
/// How `--mode` is written.
const MODES: &[&str] = &["opaque", "passthrough", "http"];
/// How `--balance` is written.
const BALANCES: &[&str] =
    &["round_robin", "random", "least_connections", "p2c", "source_hash", "first_healthy"];
/// How the patterns of `bench tcp` are written.
const HTTP_PATTERNS: &[&str] = &["requests", "claims"];
const TCP_PATTERNS: &[&str] = &["connect", "kept", "bulk", "claims"];
/// How `--pool` is written.
const POOL_MODES: &[&str] = &["on", "off"];
/// Where machines name their resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Reads one of `words` as the configuration file would.
fn words<T>(words: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: for<'de> Deserialize<'de> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(words).try_map(|word| T::deserialize(StrDeserializer::<WordError>::new(&word)))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_ascii_whitespace())
    }

    fn machine() -> Machine {
        Machine { resolvers: vec!["192.0.2.53".parse().unwrap()], cores: 2, ..Machine::default() }
    }

    #[test]
    fn the_declaration_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_arguments_forward_to_the_machines_resolvers() {
        let args = parse("forebay").unwrap();
        assert!(args.command.is_none());
        let config = args.dns.config(&args.serve, &machine()).unwrap();
        assert_eq!(config.dns.as_ref().unwrap().listen(), ["127.0.0.1:5300".parse().unwrap()]);
        assert_eq!(config.dns.as_ref().unwrap().upstreams()[0].to_string(), "udp://192.0.2.53:53");
        assert!(!config.admin.is_explicit);
    }

    #[test]
    fn every_option_of_dns_reaches_its_setting() {
        let line = "forebay dns --listen 127.0.0.1:1 --listen [::1]:2 --upstream tcp://192.0.2.1 --workers 3 \
                    --strategy round_robin --cache-size 32MiB --pool off --admin none --log warn --log-format json";
        let all = parse(line).unwrap();
        let Some(Command::Dns(args)) = all.command else { panic!("dns was asked for") };
        let config = args.config(&all.serve, &machine()).unwrap();
        assert_eq!(config.dns.as_ref().unwrap().listen().len(), 2);
        assert_eq!(config.dns.as_ref().unwrap().upstreams()[0].to_string(), "tcp://192.0.2.1:53");
        assert_eq!(config.dns.as_ref().unwrap().workers(), 3);
        assert_eq!((args.strategy, args.pool), (Some(StrategyName::RoundRobin), Some(PoolMode::Off)));
        assert_eq!(args.cache_size, Some(Size::mib(32)));
        assert_eq!(config.admin.listen, None);
        assert_eq!(config.log, LogSettings { level: LogLevel::Warn, format: LogFormat::Json });
    }

    #[test]
    fn every_option_of_proxy_reaches_its_setting() {
        let line = "forebay proxy --listen 127.0.0.1:1 --backend 192.0.2.1:1 --backend 192.0.2.2:1 --workers 3 \
                    --mode passthrough --balance p2c --pool off --admin none";
        let all = parse(line).unwrap();
        let Some(Command::Proxy(args)) = all.command else { panic!("proxy was asked for") };
        assert_eq!((args.balance, args.pool), (Some(BalanceName::P2c), Some(PoolMode::Off)));
        let config = args.config(&all.serve, &machine()).unwrap();
        let proxy = &config.proxies[0];
        assert_eq!((proxy.workers(), proxy.mode(), proxy.backends().len()), (3, Mode::Passthrough, 2));
        assert_eq!(
            (proxy.balance(), proxy.listen()[0].to_string().as_str()),
            (BalanceName::P2c, "127.0.0.1:1")
        );
        assert!(config.dns.is_none());
        let error = parse("forebay proxy").unwrap_err().to_string();
        assert!(error.contains("--backend"), "{error}");
        let wrong = parse("forebay proxy --backend nowhere").unwrap();
        let Some(Command::Proxy(args)) = wrong.command else { panic!("proxy was asked for") };
        let failure = args.config(&wrong.serve, &machine()).unwrap_err().to_string();
        assert!(failure.starts_with("error: --backend: "), "{failure}");
    }

    #[test]
    fn every_word_of_an_option_is_one_of_its_setting() {
        for word in MODES {
            parse(&format!("forebay proxy --backend 192.0.2.1:1 --mode {word}")).unwrap();
        }
        for word in BALANCES {
            parse(&format!("forebay proxy --backend 192.0.2.1:1 --balance {word}")).unwrap();
        }
        for word in STRATEGIES {
            parse(&format!("forebay --strategy {word}")).unwrap();
        }
        for word in POOL_MODES {
            parse(&format!("forebay --pool {word}")).unwrap();
        }
        let error = parse("forebay --strategy sequentail").unwrap_err().to_string();
        assert!(error.contains("'sequential'"), "{error}");
    }

    #[test]
    fn an_option_that_nobody_would_read_is_refused() {
        for line in [
            "forebay --workers 3 run -c f",
            "forebay --resolv-conf f dns",
            "forebay check -c f --admin none",
            "forebay --log debug bench pool",
            "forebay --log debug doctor",
            "forebay plan --rate 1 --service 1ms --admin none",
            "forebay grpc hello http://127.0.0.1:1 --admin none",
        ] {
            assert!(parse(line).unwrap().validate().is_err(), "{line}");
        }
        assert!(parse("forebay run -c f.toml --workers 3").is_err());
        for line in
            ["forebay --admin none demo", "forebay demo --admin none", "forebay --log warn --workers 2"]
        {
            parse(line).unwrap().validate().unwrap();
        }
    }

    #[test]
    fn help_shows_no_option_that_is_refused() {
        let help = |line: &str| parse(line).unwrap_err().to_string();
        for line in [
            "forebay check --help",
            "forebay bench --help",
            "forebay bench tcp --help",
            "forebay grpc hello --help",
            "forebay plan --help",
            "forebay doctor --help",
        ] {
            let help = help(line);
            assert!(!help.contains("--admin") && !help.contains("--log"), "{help}");
        }
        for line in ["forebay --help", "forebay run --help", "forebay demo --help", "forebay proxy --help"] {
            assert!(help(line).contains("--admin"), "{line}");
        }
        let dns = help("forebay dns --help");
        for scheme in ["udp://", "tcp://", "tls://", "https://"] {
            assert!(dns.contains(scheme), "{dns}");
        }
    }

    #[test]
    fn options_of_servers_go_before_the_files() {
        let text = "[dns]\n[admin]\nlisten = \"none\"\n[log]\nlevel = \"error\"\nformat = \"json\"";
        let config = |line: &str| {
            parse(line).unwrap().serve.over(Config::parse("f", text, &machine()).unwrap()).unwrap()
        };
        let over = config("forebay run -c f --admin [::1]:1 --log debug");
        assert_eq!(over.admin.listen, Some("[::1]:1".parse().unwrap()));
        assert_eq!(over.log, LogSettings { level: LogLevel::Debug, format: LogFormat::Json });
        let none = config("forebay run -c f");
        assert_eq!((none.admin.listen, none.log.level), (None, LogLevel::Error));
    }

    #[test]
    fn a_setting_that_cannot_be_names_its_option() {
        for (line, flag) in [
            ("forebay --upstream http://x", "error: --upstream: "),
            ("forebay --listen nowhere", "error: --listen: "),
            ("forebay --cache-size 1B", "error: --cache-size: "),
            ("forebay --cache-size 1000000GiB", "error: --cache-size: "),
            ("forebay --workers 100000", "error: --workers: "),
            ("forebay --admin 0.0.0.0:9053", "error: --admin: "),
        ] {
            let args = parse(line).unwrap();
            let failure = args.dns.config(&args.serve, &machine()).unwrap_err().to_string();
            assert!(failure.starts_with(flag), "{line}: {failure}");
        }
    }
}

//! What may be written on the command line.

mod bench;

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use forebay::units::{Size, Span};
use forebay_dns::{CacheSettings, DnsConfig, PoolMode, Settings, SettingsError, StrategyName};
use forebay_proxy::{BalanceName, Mode, ProxyConfig};
use serde::Deserialize;
use serde::de::value::{Error as WordError, StrDeserializer};

pub use self::bench::{
    BenchArgs, BenchCommand, Connections, DnsBenchArgs, GrpcBenchArgs, HttpBenchArgs, HttpPattern,
    PoolBenchArgs, PoolChoice, TcpBenchArgs, TcpPattern,
};
use crate::apiserver::ApiserverProxyArgs;
use crate::config::{
    AdminConfig, AdminListen, AdminSettings, Config, LogFormat, LogLevel, LogSettings, Machine,
    TOKEN_VARIABLE,
};
use crate::doctor::{self, DoctorArgs};
use crate::failure::Failure;
use crate::grpc::{GrpcArgs, GrpcCommand};
use crate::manual::{CompletionsArgs, ManArgs};
use crate::plan::{self, PlanArgs};
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

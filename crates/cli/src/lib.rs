//! The command `forebay`: arguments, configuration file, log, admin endpoint, demo.
//!
//! The only crate that reads the environment, files and arguments; what servers and pools do is decided elsewhere.
//!
//! | module | what |
//! |---|---|
//! | [`apiserver`] | the drop-in for k8s-apiserver-proxy |
//! | [`args`] | what may be written on the command line |
//! | [`config`] | the configuration file, and everything that can be wrong in it |
//! | [`admin`] | figures and health over HTTP; every metric is declared there |
//! | [`grpc`] | the server of gRPC |
//! | [`hello`] | a client of the greeter |
//! | `serve` | a server from its start to its end by a signal |
//! | `demo` | upstreams, a server in front of them and load, in one process, to look at |
//! | `profile` | where this process spends its CPU time, and who holds its memory |
//! | [`manual`] | manual pages, and completions for shells |
//! | `bench` | load generators from the command line |
//! | [`plan`] | how big a pool must be |
//! | [`doctor`] | what this machine can carry |
//! | `remote` | the admin endpoint of a running forebay, asked from outside |
//! | [`seeds`] | the claims of five documents about pooling, measured |
//! | [`compare`] | whether one side of a bench is faster than another |
//! | [`top`] | the pools of a running forebay, live |
//! | `logs`, `machine`, `failure` | the log, what this machine gives, how the command ends |

pub mod admin;
pub mod apiserver;
pub mod args;
mod bench;
pub mod compare;
pub mod config;
mod demo;
pub mod doctor;
mod failure;
pub mod grpc;
pub mod hello;
mod logs;
mod machine;
pub mod manual;
pub mod plan;
mod profile;
mod remote;
pub mod seeds;
mod serve;
pub mod top;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command, DnsArgs, ServeArgs};
use self::config::{Config, Machine};
use self::failure::{Failure, say};

/// Runs the command with the process's own arguments, and returns what the process is to exit with: 0 when all is well,
/// 1 when it failed while running, 2 when it was used or configured wrongly.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match dispatch(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            failure.code()
        }
    }
}

fn dispatch(args: Args) -> Result<(), Failure> {
    args.validate()?;
    match args.command {
        None => serve_dns(&args.dns, &args.serve),
        Some(Command::Dns(dns)) => serve_dns(&dns, &args.serve),
        Some(Command::Proxy(proxy)) => {
            serve::run(proxy.config(&args.serve, &machine::read(Path::new("/dev/null")))?)
        }
        Some(Command::ApiserverProxy(proxy)) => {
            if let Some(warning) = proxy.warning() {
                eprintln!("warning: {warning}");
            }
            serve::run(proxy.config(&args.serve, &machine::read(Path::new("/dev/null")))?)
        }
        Some(Command::Grpc(grpc)) => grpc::run(&grpc, &args.serve),
        Some(Command::Run(run)) => {
            let config = read(&run.config, &machine::read(&run.resolv_conf))?;
            serve::run(args.serve.over(config)?)
        }
        Some(Command::Check(check)) => check_file(&check.config, &machine::read(&check.resolv_conf)),
        Some(Command::Demo(demo)) => demo::run(&demo, &args.serve),
        Some(Command::Bench(bench)) => bench::run(&bench),
        Some(Command::Completions(completions)) => manual::completions(&completions),
        Some(Command::Man(man)) => manual::man(&man),
        Some(Command::Plan(args)) => plan::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        Some(Command::Top(top)) => top::run(&top),
    }
}

fn serve_dns(dns: &DnsArgs, serve: &ServeArgs) -> Result<(), Failure> {
    serve::run(dns.config(serve, &machine::read(&dns.resolv_conf))?)
}

fn check_file(path: &Path, machine: &Machine) -> Result<(), Failure> {
    let config = read(path, machine)?;
    say(&format!("{}: ok: {}", path.display(), config.summary()));
    Ok(())
}

fn read(path: &Path, machine: &Machine) -> Result<Config, Failure> {
    let name = path.display().to_string();
    let text =
        fs::read_to_string(path).map_err(|error| Failure::wrong(format!("cannot read {name}: {error}")))?;
    Config::parse(&name, &text, machine).map_err(Failure::from)
}

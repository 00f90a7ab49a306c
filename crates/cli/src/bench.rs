//! Load generators from the command line.

use std::ops::ControlFlow;

use forebay_bench::dns::{self, BenchError, DnsLoad, Transport, Verify};
use forebay_bench::pool::PoolBench;
use serde::Serialize;

use crate::args::{BenchArgs, BenchCommand, DnsBenchArgs, PoolBenchArgs};
use crate::failure::{Failure, say};

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Dns(args) => run_dns(args),
        BenchCommand::Pool(args) => run_pool(args),
    }
}

fn run_dns(args: &DnsBenchArgs) -> Result<(), Failure> {
    let report = dns::run(&load(args), |_| ControlFlow::Continue(())).map_err(|error| match error {
        BenchError::Setting { setting, .. } => Failure::wrong(format!("--{setting}: {error}")),
        BenchError::File { .. } => Failure::wrong(error.to_string()),
        _ => Failure::failed(error.to_string()),
    })?;
    if args.json {
        say_json(&report)
    } else {
        say(&report.to_string())
    }
    Ok(())
}

fn load(args: &DnsBenchArgs) -> DnsLoad {
    DnsLoad {
        transport: if args.tcp { Transport::Tcp } else { Transport::Udp },
        clients: args.clients,
        in_flight: args.in_flight,
        rate: args.rate,
        duration: Some(args.duration.0),
        queries: args.queries,
        timeout: args.timeout.0,
        names: args.names.clone(),
        zone: args.zone.clone(),
        verify: if args.verify { Verify::Derived } else { Verify::Off },
        threads: args.threads.get(),
        pin: args.pin,
        server_pid: args.server_pid,
        ..DnsLoad::new(args.target)
    }
}

fn run_pool(args: &PoolBenchArgs) -> Result<(), Failure> {
    let bench = PoolBench { rounds: args.rounds, pairs: args.pairs, ..PoolBench::default() };
    let report = bench.run();
    if args.json {
        say_json(&report)
    } else {
        say(&report.to_string())
    }
    Ok(())
}

fn say_json(report: &impl Serialize) {
    say(&serde_json::to_string_pretty(report).expect("a report has nothing that JSON has not"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use forebay_bench::dns::Names;

    use super::*;
    use crate::args::{Args, Command};

    fn parsed(line: &str) -> DnsLoad {
        match Args::try_parse_from(line.split_ascii_whitespace()).unwrap().command {
            Some(Command::Bench(BenchArgs { command: BenchCommand::Dns(args) })) => load(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_option_reaches_its_setting() {
        let load = parsed(
            "forebay bench dns --target 127.0.0.1:1 --clients 3 --in-flight 9 --rate 100 --duration 2s --queries 7 \
             --timeout 1s --names zipf:5:0.5 --zone example. --tcp --verify --threads 2 --pin 1 --server-pid 4",
        );
        assert_eq!((load.clients, load.in_flight, load.threads), (3, 9, 2));
        assert_eq!(
            (load.rate, load.queries, load.pin, load.server_pid),
            (Some(100.0), Some(7), Some(1), Some(4))
        );
        assert_eq!((load.duration, load.timeout), (Some(Duration::from_secs(2)), Duration::from_secs(1)));
        assert_eq!(load.names, Names::Zipf { names: 5, exponent: 0.5 });
        assert_eq!((load.zone.as_str(), load.transport), ("example.", Transport::Tcp));
        assert!(matches!(load.verify, Verify::Derived));
        let load = parsed("forebay bench dns --target 127.0.0.1:1");
        assert_eq!((load.clients, load.in_flight, load.transport), (64, 256, Transport::Udp));
        assert_eq!(load.names, Names::Hot { names: 10_000 });
        assert!(matches!(load.verify, Verify::Off));
    }
}

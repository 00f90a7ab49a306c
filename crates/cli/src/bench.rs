//! Load generators from the command line.

use std::ops::ControlFlow;

use forebay_bench::dns::{self, BenchError, DnsLoad, Transport, Verify};
use forebay_bench::pool::PoolBench;
use forebay_bench::tcp::{self, Pattern, TcpLoad};
use serde::Serialize;

use crate::args::{
    BenchArgs, BenchCommand, DnsBenchArgs, PoolBenchArgs, PoolChoice, TcpBenchArgs, TcpPattern,
};
use crate::failure::{Failure, say};

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Dns(args) => run_dns(args),
        BenchCommand::Pool(args) => run_pool(args),
        BenchCommand::Tcp(args) => run_tcp(args),
    }
}

fn run_dns(args: &DnsBenchArgs) -> Result<(), Failure> {
    let report = dns::run(&load(args), |_| ControlFlow::Continue(())).map_err(failure)?;
    say_report(&report, args.json);
    Ok(())
}

/// Says of a load that could not be run which option it is.
fn failure(error: BenchError) -> Failure {
    match error {
        // What help calls ADDR or URL is no option.
        BenchError::Setting { setting, .. } if setting.starts_with(|first: char| first.is_uppercase()) => {
            Failure::wrong(error.to_string())
        }
        BenchError::Setting { setting, .. } => Failure::wrong(format!("--{setting}: {error}")),
        BenchError::File { .. } => Failure::wrong(error.to_string()),
        _ => Failure::failed(error.to_string()),
    }
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
    say_report(&bench.run(), args.json);
    Ok(())
}

fn run_tcp(args: &TcpBenchArgs) -> Result<(), Failure> {
    let load = tcp_load(args);
    if args.pattern == TcpPattern::Claims {
        say_report(&tcp::claims(&load).map_err(failure)?, args.json);
    } else {
        say_report(&tcp::run(&load).map_err(failure)?, args.json);
    }
    Ok(())
}

fn tcp_load(args: &TcpBenchArgs) -> TcpLoad {
    TcpLoad {
        pattern: match args.pattern {
            TcpPattern::Kept => Pattern::Kept,
            TcpPattern::Bulk => Pattern::Bulk,
            TcpPattern::Connect | TcpPattern::Claims => Pattern::Connect,
        },
        pool: pool_size(args.pool, args.clients),
        clients: args.clients,
        size: args.size,
        rate: args.rate,
        duration: Some(args.duration.0),
        requests: args.requests,
        timeout: args.timeout.0,
        threads: args.threads.get(),
        pin: args.pin,
        server_pid: args.server_pid,
        ..TcpLoad::new(args.target)
    }
}

fn pool_size(choice: PoolChoice, clients: usize) -> Option<u32> {
    match choice {
        PoolChoice::Off => None,
        PoolChoice::On => Some(clients.try_into().unwrap_or(u32::MAX)),
        PoolChoice::Of(connections) => Some(connections),
    }
}

fn say_report(report: &(impl Serialize + ToString), json: bool) {
    if json {
        say(&serde_json::to_string_pretty(report).expect("a report has nothing that JSON has not"));
    } else {
        say(&report.to_string());
    }
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

    #[test]
    fn every_option_of_tcp_reaches_its_setting() {
        let parsed = |line: &str| match Args::try_parse_from(line.split_ascii_whitespace()).unwrap().command {
            Some(Command::Bench(BenchArgs { command: BenchCommand::Tcp(args) })) => tcp_load(&args),
            other => panic!("{other:?}"),
        };
        let load = parsed(
            "forebay bench tcp 127.0.0.1:1 --pattern connect --pool 3 --clients 9 --size 5 --rate 100 --duration 2s \
             --requests 7 --timeout 1s --threads 2 --pin 1 --server-pid 4",
        );
        assert_eq!((load.pattern, load.pool, load.clients), (Pattern::Connect, Some(3), 9));
        assert_eq!((load.size, load.rate, load.requests), (5, Some(100.0), Some(7)));
        assert_eq!((load.duration, load.timeout), (Some(Duration::from_secs(2)), Duration::from_secs(1)));
        assert_eq!((load.threads, load.pin, load.server_pid), (2, Some(1), Some(4)));
        let load = parsed("forebay bench tcp 127.0.0.1:1");
        assert_eq!((load.pattern, load.pool, load.clients), (Pattern::Kept, None, 1));
        let load = parsed("forebay bench tcp 127.0.0.1:1 --pattern connect --connections 6 --pool on");
        assert_eq!((load.pool, load.clients), (Some(6), 6));
        assert_eq!(parsed("forebay bench tcp 127.0.0.1:1 --pattern bulk").pattern, Pattern::Bulk);
        assert!(Args::try_parse_from(["forebay", "bench", "tcp", "127.0.0.1:1", "--pool", "0"]).is_err());
    }
}

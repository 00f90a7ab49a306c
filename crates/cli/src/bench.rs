//! Load generators from the command line.

use std::ops::ControlFlow;

use forebay::dial::Roots;
use forebay_bench::dns::{self, BenchError, DnsLoad, Transport, Verify};
use forebay_bench::grpc::{self, GrpcLoad, Method};
use forebay_bench::http::{self, HttpLoad};
use forebay_bench::pool::PoolBench;
use forebay_bench::tcp::{self, Pattern, TcpLoad};
use serde::Serialize;

use crate::args::{
    BenchArgs, BenchCommand, DnsBenchArgs, GrpcBenchArgs, HttpBenchArgs, HttpPattern, PoolBenchArgs,
    PoolChoice, TcpBenchArgs, TcpPattern,
};
use crate::compare;
use crate::failure::{Failure, say};
use crate::seeds;

pub(crate) fn run(args: &BenchArgs) -> Result<(), Failure> {
    match &args.command {
        BenchCommand::Dns(args) => run_dns(args),
        BenchCommand::Pool(args) => run_pool(args),
        BenchCommand::Tcp(args) => run_tcp(args),
        BenchCommand::Http(args) => run_http(args),
        BenchCommand::Grpc(args) => run_grpc(args),
        BenchCommand::Seeds(args) => seeds::run(args),
        BenchCommand::Compare(args) => compare::run(args),
    }
}

fn run_dns(args: &DnsBenchArgs) -> Result<(), Failure> {
    let report = dns::run(&load(args), |_| ControlFlow::Continue(())).map_err(failure)?;
    say_report(&report, args.json);
    whole(&report.partial)
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
        arrivals: args.arrivals,
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
        return Ok(());
    }
    let report = tcp::run(&load).map_err(failure)?;
    say_report(&report, args.json);
    whole(&report.figures.partial)
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

fn run_http(args: &HttpBenchArgs) -> Result<(), Failure> {
    let mut load = http_load(args);
    if let Some(file) = &args.ca {
        let roots = Roots::from_pem_file(file).map_err(|error| Failure::wrong(format!("--ca: {error}")))?;
        load.roots = Some(roots);
    }
    match args.pattern {
        HttpPattern::Requests => {
            let report = http::run(&load).map_err(failure)?;
            say_report(&report, args.json);
            whole(&report.figures.partial)
        }
        HttpPattern::Claims => {
            say_report(&http::claims(&load).map_err(failure)?, args.json);
            Ok(())
        }
    }
}

/// All but the certificates, which are in a file.
fn http_load(args: &HttpBenchArgs) -> HttpLoad {
    HttpLoad {
        method: args.method.clone(),
        body: args.body.bytes as usize,
        fields: args.header.clone(),
        http2: args.http2,
        pool: pool_size(args.pool, args.clients),
        streams: args.streams,
        clients: args.clients,
        pipeline: args.pipeline,
        rate: args.rate,
        duration: Some(args.duration.0),
        requests: args.requests,
        timeout: args.timeout.0,
        threads: args.threads.get(),
        pin: args.pin,
        server_pid: args.server_pid,
        ..HttpLoad::new(args.url.clone())
    }
}

fn run_grpc(args: &GrpcBenchArgs) -> Result<(), Failure> {
    let mut load = grpc_load(args);
    if let Some(file) = &args.ca {
        let roots = Roots::from_pem_file(file).map_err(|error| Failure::wrong(format!("--ca: {error}")))?;
        load.roots = Some(roots);
    }
    let report = grpc::run(&load).map_err(failure)?;
    say_report(&report, args.json);
    match &report.figures.last_error {
        Some(error) if report.figures.answered == 0 => {
            Err(Failure::failed(format!("{}: no call was answered: {error}", load.url)))
        }
        _ => whole(&report.figures.partial),
    }
}

/// Ends the command with a failure when its report, which has been said, is of a part of the load only.
fn whole(partial: &Option<String>) -> Result<(), Failure> {
    match partial {
        Some(why) => Err(Failure::failed(format!("the report is of a part of the load only: {why}"))),
        None => Ok(()),
    }
}

/// All but the certificates, which are in a file.
fn grpc_load(args: &GrpcBenchArgs) -> GrpcLoad {
    let default = GrpcLoad::new(args.url.clone());
    let method = match &args.method {
        Some(name) => Method::Described { name: name.clone(), json: args.data.clone() },
        None => Method::Hello { payload: args.payload.bytes as usize, is_streaming: args.streaming },
    };
    let duration = match (&args.duration, args.requests) {
        (Some(duration), _) => Some(duration.0),
        (None, Some(_)) => None,
        (None, None) => default.duration,
    };
    GrpcLoad {
        method,
        connections: args.connections,
        clients: args.clients,
        requests: args.requests,
        duration,
        rate: args.rate,
        timeout: args.timeout.0,
        threads: args.threads.get(),
        pin: args.pin,
        server_pid: args.server_pid,
        ..default
    }
}

fn pool_size(choice: PoolChoice, clients: usize) -> Option<u32> {
    match choice {
        PoolChoice::Off => None,
        PoolChoice::On => Some(clients.try_into().unwrap_or(u32::MAX)),
        PoolChoice::Of(connections) => Some(connections),
    }
}

pub(crate) fn say_report(report: &(impl Serialize + ToString), json: bool) {
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

    #[test]
    fn every_option_of_grpc_reaches_its_setting() {
        let parsed = |line: &str| match Args::try_parse_from(line.split_ascii_whitespace()).unwrap().command {
            Some(Command::Bench(BenchArgs { command: BenchCommand::Grpc(args) })) => grpc_load(&args),
            other => panic!("{other:?}"),
        };
        let load = parsed(
            "forebay bench grpc https://x:1 --streaming --payload 4KiB --connections 3 --clients 8 --requests 7 \
             --duration 2s --rate 100 --timeout 1s --threads 2 --pin 1 --pid 4",
        );
        assert_eq!(load.url, "https://x:1");
        assert_eq!(load.method, Method::Hello { payload: 4096, is_streaming: true });
        assert_eq!((load.connections, load.clients, load.requests), (Some(3), 8, Some(7)));
        assert_eq!((load.duration, load.timeout), (Some(Duration::from_secs(2)), Duration::from_secs(1)));
        assert_eq!((load.rate, load.threads, load.pin, load.server_pid), (Some(100.0), 2, Some(1), Some(4)));
        let load = parsed("forebay bench grpc http://x");
        assert_eq!((load.clients, load.connections, load.requests), (50, None, None));
        assert_eq!(load.method, Method::Hello { payload: 5, is_streaming: false });
        assert_eq!(load.duration, Some(Duration::from_secs(5)));
        assert_eq!(
            parsed("forebay bench grpc http://x --requests 200").duration,
            None,
            "until they are made"
        );
        let load = parsed("forebay bench grpc http://x --connections auto --method a.B/C --data {\"d\":1}");
        let (name, json) = ("a.B/C".to_owned(), "{\"d\":1}".to_owned());
        assert_eq!((load.connections, load.method), (None, Method::Described { name, json }));
        for wrong in
            ["--connections 0", "--data {}", "--method a.B/C --streaming", "--method a.B/C --payload 1B"]
        {
            let line = format!("forebay bench grpc http://x {wrong}");
            assert!(Args::try_parse_from(line.split_ascii_whitespace()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn every_option_of_http_reaches_its_setting() {
        let parsed = |line: &str| match Args::try_parse_from(line.split_ascii_whitespace()).unwrap().command {
            Some(Command::Bench(BenchArgs { command: BenchCommand::Http(args) })) => http_load(&args),
            other => panic!("{other:?}"),
        };
        let load = parsed(
            "forebay bench http https://x:1/y --method POST --body 64KiB --header A:b --http2 --pool 3 --streams 9 \
             --clients 8 --pipeline 2 --rate 100 --duration 2s --requests 7 --timeout 1s --threads 2 --pin 1 \
             --server-pid 4",
        );
        assert_eq!((load.url.to_string().as_str(), load.method.as_str()), ("https://x:1/y", "POST"));
        assert_eq!((load.body, load.http2, load.pool, load.streams), (65536, true, Some(3), 9));
        assert_eq!(load.fields, [("A".to_owned(), "b".to_owned())]);
        assert_eq!((load.clients, load.pipeline, load.rate), (8, 2, Some(100.0)));
        assert_eq!((load.duration, load.requests), (Some(Duration::from_secs(2)), Some(7)));
        assert_eq!((load.timeout, load.threads), (Duration::from_secs(1), 2));
        assert_eq!((load.pin, load.server_pid), (Some(1), Some(4)));
        let load = parsed("forebay bench http http://x/");
        assert_eq!((load.clients, load.pool, load.http2, load.pipeline), (64, Some(64), false, 1));
        assert_eq!(parsed("forebay bench http http://x/ --pool off").pool, None);
        assert!(Args::try_parse_from(["forebay", "bench", "http", "x"]).is_err());
    }
}

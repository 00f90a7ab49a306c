//! 004: gRPC: the seed's command, one connection against the pool, the profiles, and what each setting changes.

use std::time::Duration;

use forebay::sys::now;
use forebay_bench::grpc::{self, GrpcLoad, Method};
use forebay_bench::load::Figures;
use forebay_grpc::greet::HelloRequest;
use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::server::{Profile, Running, Server, ServerSettings};
use forebay_grpc::{Greeter, PooledChannel};
use tokio::runtime::Builder;

use super::forwarder::latency_curve;
use super::model::{
    Better, Figure, Plot, Said, Section, Table, Unit, grouped, ratio, shown, times, verdict, words,
};
use super::seed003::latencies;
use super::stage::{Stage, Stop, cpu_of, on_core, rounds, threads_named, threads_since};

/// The seed's command: clients, and calls of each.
const CLIENTS: usize = 50;
const CALLS: u64 = 200;
/// More callers than one connection of profile `main` takes calls (256).
const MANY: usize = 400;
/// A message for which windows could matter.
const LARGE: usize = 64 << 10;
/// What the threads of a server's workers are called.
const WORKER: &str = "grpc-0";
/// What HTTP/2 begins with (RFC 9113 §6.9.2).
const WINDOW: u32 = 65_535;

/// What a setting is called, and what it changes.
type Setting = (&'static str, fn(&mut ServerSettings));

/// Settings beside `main`.
const SETTINGS: [Setting; 9] = [
    ("main", |_| {}),
    ("pprof", |settings| *settings = ServerSettings { workers: 1, ..Profile::Pprof.settings() }),
    ("HTTP/2's own windows, 64 KiB", |settings| {
        (settings.stream_window, settings.connection_window) = (WINDOW, WINDOW);
    }),
    ("stream window of 2 MiB", |settings| settings.stream_window = 2 << 20),
    ("2000 streams", |settings| settings.streams_max = 2000),
    ("512 calls on a connection", |settings| settings.calls_per_connection = 512),
    ("no TCP keep-alive", |settings| settings.tcp_keepalive = None),
    ("no TCP_NODELAY", |settings| settings.tcp_nodelay = false),
    ("no call timeout", |settings| settings.call_timeout = None),
];

/// How many steps there are.
pub(super) const fn steps(quick: bool) -> usize {
    rounds(quick) * (6 + 2 * SETTINGS.len())
}

/// A server on its core.
struct Served {
    running: Running,
    threads: Vec<i32>,
}

impl Served {
    fn start(stage: &Stage, change: fn(&mut ServerSettings)) -> Result<Self, Stop> {
        let before = threads_named(WORKER);
        let build = || {
            Server::builder()
                .with(|settings| {
                    settings.workers = 1;
                    change(settings);
                })
                .add_service(GreeterServiceServer::new(Greeter { interval: Duration::ZERO }))
                .listen("127.0.0.1:0")
                .build()
        };
        let running = stage
            .on_server_core(build)?
            .map_err(|error| Stop::failed("cannot start a server of gRPC", error))?;
        let threads = threads_since(&before, WORKER, 1)?;
        Ok(Self { running, threads })
    }

    fn url(&self) -> String {
        format!("http://{}", self.running.local_addrs()[0])
    }

    /// Makes calls, and says what each cost the server, in microseconds of CPU time.
    fn measure(&self, load: &GrpcLoad) -> Result<(Figures, f64), Stop> {
        let before = cpu_of(&self.threads);
        let report = grpc::run(load).map_err(|error| Stop::failed("calls", error))?;
        let cpu = cpu_of(&self.threads).saturating_sub(before).as_secs_f64();
        let figures = report.figures;
        if figures.answered == 0 {
            return Err(Stop::Failed(format!(
                "no call was answered: {}",
                figures.last_error.unwrap_or_default()
            )));
        }
        let each = cpu * 1e6 / figures.answered as f64;
        Ok((figures, each))
    }
}

/// Measures.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    section.title = "connection pooling in gRPC, 20 to 30 % more QPS: a greeter and its callers";
    pooled(stage, section)?;
    settings(stage, section, 5)?;
    settings(stage, section, LARGE)
}

/// The ways to make calls that are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A connection for each call.
    Each,
    /// The seed's command: 50 clients, 200 calls each.
    Command,
    /// The same for some time.
    Timed,
    /// For some time, on one connection.
    One,
    /// More callers than a connection takes calls, on one connection.
    ManyOne,
    /// The same on as many as are needed.
    Many,
}

const WAYS: [(&str, Way); 6] = [
    ("a connection for each call, 50 clients", Way::Each),
    ("--clients 50 --requests 200", Way::Command),
    ("50 clients, for some time", Way::Timed),
    ("the same on one connection", Way::One),
    ("400 clients on one connection", Way::ManyOne),
    ("400 clients, as many as needed", Way::Many),
];

fn pooled(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let server = Served::start(stage, |_| {})?;
    let mut runs: Vec<Vec<(Figures, f64)>> = vec![Vec::new(); WAYS.len()];
    let mut result = Ok(());
    'all: for _ in 0..stage.rounds {
        for (number, (name, way)) in WAYS.iter().enumerate() {
            let run = stage.step(&format!("004: {name}")).and_then(|()| one_way(stage, &server, *way));
            match run {
                Ok(run) => runs[number].push(run),
                Err(stop) => {
                    result = Err(stop);
                    break 'all;
                }
            }
        }
    }
    report_ways(section, &runs);
    result
}

fn one_way(stage: &Stage, server: &Served, way: Way) -> Result<(Figures, f64), Stop> {
    let span = stage.span(2000, 300);
    let base = GrpcLoad {
        clients: CLIENTS,
        duration: Some(span),
        pin: stage.cores.load,
        ..GrpcLoad::new(server.url())
    };
    let load = match way {
        Way::Each => {
            let before = cpu_of(&server.threads);
            let figures = one_connection_each(stage, &server.url(), span)?;
            let cpu = cpu_of(&server.threads).saturating_sub(before).as_secs_f64();
            let each = cpu * 1e6 / figures.answered.max(1) as f64;
            return Ok((figures, each));
        }
        Way::Command => GrpcLoad { requests: Some(CALLS), duration: None, ..base },
        Way::Timed => base,
        Way::One => GrpcLoad { connections: Some(1), ..base },
        Way::ManyOne => GrpcLoad { clients: MANY, connections: Some(1), ..base },
        Way::Many => GrpcLoad { clients: MANY, ..base },
    };
    server.measure(&load)
}

/// Clients that make a connection for each call, as if there were nothing to keep.
fn one_connection_each(stage: &Stage, url: &str, span: Duration) -> Result<Figures, Stop> {
    let run = || {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let started = now();
        let until = started + span;
        let (mut answered, mut failed, mut took) = (0_u32, 0_u32, Duration::ZERO);
        runtime.block_on(async {
            let client = || async {
                let mut counts = (0_u32, 0_u32, Duration::ZERO);
                while now() < until {
                    let began = now();
                    let Ok(channel) = PooledChannel::new(url) else {
                        counts.1 += 1;
                        continue;
                    };
                    let call = HelloRequest { name: "world".to_owned() };
                    match GreeterServiceClient::new(channel).say_hello(call).await {
                        Ok(_) => counts.0 += 1,
                        Err(_) => counts.1 += 1,
                    }
                    counts.2 += now().saturating_duration_since(began);
                }
                counts
            };
            for (good, bad, time) in futures_util::future::join_all((0..CLIENTS).map(|_| client())).await {
                answered += good;
                failed += bad;
                took += time;
            }
        });
        let elapsed = now().saturating_duration_since(started).as_secs_f64();
        let mean_us = took.as_secs_f64() * 1e6 / f64::from(answered + failed).max(1.0);
        Ok::<_, std::io::Error>((answered, failed, elapsed, mean_us))
    };
    let (answered, failed, elapsed, mean_us) =
        on_core(stage.cores.load, run)?.map_err(|error| Stop::failed("callers without a pool", error))?;
    let latency = forebay_bench::load::Latency {
        min_us: f64::NAN,
        mean_us,
        p50_us: f64::NAN,
        p90_us: f64::NAN,
        p99_us: f64::NAN,
        p999_us: f64::NAN,
        max_us: f64::NAN,
    };
    Ok(Figures {
        elapsed_seconds: elapsed,
        answered: answered.into(),
        failed: failed.into(),
        rate: f64::from(answered) / elapsed.max(1e-9),
        latency: Some(latency),
        connections_opened: (answered + failed).into(),
        ..Figures::default()
    })
}

fn report_ways(section: &mut Section, runs: &[Vec<(Figures, f64)>]) {
    let figure = |way: Way, unit, of: fn(&Figures) -> f64| {
        let number = WAYS.iter().position(|(_, other)| *other == way)?;
        Figure::of(unit, runs[number].iter().map(|(figures, _)| of(figures)))
    };
    let rate = |way| figure(way, Unit::PerSecond, |figures| figures.rate);
    let mean = |way| {
        figure(way, Unit::Microseconds, |figures| figures.latency.map_or(f64::NAN, |latency| latency.mean_us))
    };
    let nothing = "nothing: it was expected. There is no pool in it: settings of tonic, and one channel for each client";
    let said = |says, claimed, compared, here: &str, better| Said {
        says,
        claimed,
        compared,
        here: here.to_owned(),
        better,
    };
    section.claims.extend([
        said(
            "20 to 30 % more QPS",
            Some(1.2),
            nothing,
            "calls a second of 50 clients: a connection for each call, and a pooled channel",
            Better::More,
        )
        .judge(rate(Way::Each), rate(Way::Timed)),
        said(
            "10 to 20 % less latency (482 µs before)",
            Some(1.0 / 0.9),
            nothing,
            "average latency of 50 clients: a connection for each call, and a pooled channel",
            Better::Less,
        )
        .judge(mean(Way::Each), mean(Way::Timed)),
        said(
            "one connection, as it is, is enough for 50 clients",
            Some(1.0),
            "not looked at",
            "calls a second of 50 clients: on one connection, and as many as the pool wants",
            Better::More,
        )
        .judge(rate(Way::One), rate(Way::Timed)),
        said(
            "(ours) it is not for more callers than a connection takes calls",
            None,
            "–",
            "calls a second of 400 clients: on one connection, and as many as the pool wants",
            Better::More,
        )
        .judge(rate(Way::ManyOne), rate(Way::Many)),
        said(
            "(the seed's way to measure) 500 requests in 41 ms are 12,199 QPS",
            None,
            "one run of milliseconds, in which connections were made, against others",
            "calls a second by the seed's command, and by the same clients for some time",
            Better::More,
        )
        .judge(rate(Way::Command), rate(Way::Timed)),
    ]);
    let row = |((name, _), runs): (&(&str, Way), &Vec<(Figures, f64)>)| {
        let cell =
            |unit, of: &dyn Fn(&(Figures, f64)) -> f64| shown(Figure::of(unit, runs.iter().map(of)).as_ref());
        let latency = |run: &(Figures, f64), of: fn(&forebay_bench::load::Latency) -> f64| {
            run.0.latency.as_ref().map_or(f64::NAN, of)
        };
        vec![
            (*name).to_owned(),
            cell(Unit::Count, &|run| run.0.answered as f64),
            cell(Unit::PerSecond, &|run| run.0.rate),
            cell(Unit::Microseconds, &|run| latency(run, |latency| latency.mean_us)),
            cell(Unit::Microseconds, &|run| latency(run, |latency| latency.p99_us)),
            cell(Unit::Microseconds, &|run| run.1),
            cell(Unit::Count, &|run| run.0.connections_opened as f64),
            cell(Unit::Count, &|run| run.0.failed as f64),
        ]
    };
    section.tables.push(Table {
        title: "Ways to call a greeter".to_owned(),
        columns: vec![
            "way",
            "calls",
            "calls/s",
            "average",
            "p99",
            "server CPU a call",
            "connections",
            "failed",
        ],
        rows: WAYS.iter().zip(runs).map(row).collect(),
    });
    let series = WAYS.iter().zip(runs).filter_map(|((name, _), runs)| {
        let latency = runs.last()?.0.latency.filter(|latency| latency.p50_us.is_finite())?;
        Some(latency_curve(*name, &latency))
    });
    section.plots.push(Plot { series: series.collect(), ..latencies("Latency of calls") });
}

/// What each setting changes, by itself.
fn settings(stage: &mut Stage, section: &mut Section, payload: usize) -> Result<(), Stop> {
    let servers =
        SETTINGS.iter().map(|(_, change)| Served::start(stage, *change)).collect::<Result<Vec<_>, _>>()?;
    let mut runs: Vec<Vec<(Figures, f64)>> = vec![Vec::new(); SETTINGS.len()];
    let mut result = Ok(());
    'all: for _ in 0..stage.rounds {
        for (number, (name, _)) in SETTINGS.iter().enumerate() {
            let load = GrpcLoad {
                clients: CLIENTS,
                duration: Some(stage.span(1000, 200)),
                method: Method::Hello { payload, is_streaming: false },
                pin: stage.cores.load,
                ..GrpcLoad::new(servers[number].url())
            };
            let run = stage
                .step(&format!("004: {} bytes, {name}", grouped(payload as f64)))
                .and_then(|()| servers[number].measure(&load));
            match run {
                Ok(run) => runs[number].push(run),
                Err(stop) => {
                    result = Err(stop);
                    break 'all;
                }
            }
        }
    }
    let rate = |runs: &[(Figures, f64)]| Figure::of(Unit::PerSecond, runs.iter().map(|run| run.0.rate));
    let main = rate(&runs[0]);
    let row = |((name, _), runs): (&Setting, &Vec<(Figures, f64)>)| {
        let own = rate(runs);
        let (ratio, verdict) = (
            ratio(Better::More, main.as_ref(), own.as_ref()),
            verdict(None, Better::More, main.as_ref(), own.as_ref()),
        );
        let cpu = Figure::of(Unit::Microseconds, runs.iter().map(|run| run.1));
        vec![
            (*name).to_owned(),
            shown(own.as_ref()),
            shown(cpu.as_ref()),
            ratio.map_or_else(|| "–".to_owned(), times),
            if *name == "main" { "–".to_owned() } else { words(verdict, ratio, None) },
        ]
    };
    section.tables.push(Table {
        title: format!(
            "What each setting of the server changes, by itself: {CLIENTS} clients, messages of {} bytes",
            grouped(payload as f64)
        ),
        columns: vec!["setting", "calls/s", "server CPU a call", "to main", "verdict"],
        rows: SETTINGS.iter().zip(&runs).map(row).collect(),
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_but_the_first_changes_something_and_each_something_else() {
        let settings = |change: fn(&mut ServerSettings)| {
            let mut settings = ServerSettings { workers: 1, ..ServerSettings::default() };
            change(&mut settings);
            settings
        };
        let all: Vec<_> = SETTINGS.iter().map(|(_, change)| settings(*change)).collect();
        assert_eq!(all[0], ServerSettings { workers: 1, ..Profile::Main.settings() });
        for (number, one) in all.iter().enumerate() {
            assert!(!all[..number].contains(one), "{}", SETTINGS[number].0);
            assert_eq!(one.workers, 1, "{}", SETTINGS[number].0);
        }
    }

    #[test]
    fn there_are_as_many_steps_as_are_made() {
        assert_eq!(steps(true), WAYS.len() + 2 * SETTINGS.len());
    }
}

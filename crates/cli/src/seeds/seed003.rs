//! 003: connect against checkout, one client and many, for bytes that are not understood and for HTTP; and whether a client
//! ever gets a connection that has carried another's bytes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use forebay::dial::Tcp;
use forebay::{Config, Pool};
use forebay_bench::backend::{Backend, Serve};
use forebay_bench::http::{self, HttpLoad};
use forebay_bench::tcp::{self, Counts, Pattern, TcpLoad};
use forebay_proxy::{Mode, PoolMode, ProxyConfig, Server, Settings};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};

use super::forwarder::latency_curve;
use super::model::{
    Axis, Better, Figure, Plot, Said, Scale, Section, Series, Table, Unit, grouped, shown, times,
};
use super::stage::{Stage, Stop, on_core, rounds};

/// The seed's pool had so many connections to an address.
const POOL: u32 = 10;
/// Clients at once.
const CLIENTS: usize = 64;
/// How far the backend is away, for spares: on loopback a dial costs nearly nothing.
const FAR: Duration = Duration::from_millis(2);
/// New clients a second, for spares.
const ARRIVALS: f64 = 100.0;
/// Clients, one after the other, each with a secret of its own.
const STRANGERS: usize = 100;
/// How long a peer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// The claims: what is said, how many times as good, what it compared.
const CLAIMS: [(&str, f64, &str); 3] = [
    (
        "connection reuse is 376 times faster (94.576 µs → 251 ns)",
        376.0,
        "connect(2) with a look into a list; not a byte was sent",
    ),
    (
        "realistic workloads are 15 times faster",
        15.0,
        "an echo server and a pool of 20, without TLS; a used connection went to the next client",
    ),
    (
        "22 times the sustained throughput",
        22.0,
        "the same with a pool of 50; never more clients than connections",
    ),
];

/// How many steps there are.
pub(super) const fn steps(quick: bool) -> usize {
    3 + 2 * (2 * rounds(quick)) + 2
}

/// Measures.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    section.title = "reuse, 376 times faster: connections of a TCP proxy";
    raw(stage, section)?;
    by_http(stage, section)?;
    spares(stage, section)?;
    reuse(stage, section)?;
    strangers(stage, section)
}

fn backend(stage: &Stage, serve: Serve, first_byte_after: Duration) -> Result<Backend, Stop> {
    let builder = Backend::builder().serve(serve).first_byte_after(first_byte_after);
    on_core(stage.cores.upstream, || builder.spawn())?
        .map_err(|error| Stop::failed("cannot start an embedded backend", error))
}

fn proxy(
    stage: &Stage,
    backend: SocketAddr,
    mode: Mode,
    pool: PoolMode,
) -> Result<(Server, SocketAddr), Stop> {
    let settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: vec![backend.to_string()],
        workers: 1,
        mode,
        pool,
        ..Settings::default()
    };
    let config = ProxyConfig::new(&settings, 1).map_err(|error| Stop::failed("[[proxy]]", error))?;
    let server = stage
        .on_server_core(|| forebay_proxy::start(config))?
        .map_err(|error| Stop::failed("cannot start a proxy", error))?;
    let address = server.local_addrs()[0].address;
    Ok((server, address))
}

/// The three claims as the seed has them: a client that dials, and one that borrows.
fn raw(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    stage.step("003: connect against checkout, with bytes that nobody understands")?;
    let echo = backend(stage, Serve::Echo, Duration::ZERO)?;
    let load = TcpLoad {
        pattern: Pattern::Connect,
        clients: CLIENTS,
        pool: Some(POOL),
        duration: Some(stage.span(2400, 300)),
        pin: stage.cores.server,
        ..TcpLoad::new(echo.addr())
    };
    let report = tcp::claims(&load).map_err(|error| Stop::failed("claims by TCP", error))?;
    for (claim, (says, claimed, compared)) in report.claims.iter().zip(CLAIMS) {
        let said = Said {
            says,
            claimed: Some(claimed),
            compared,
            here: format!("{}; a pool of {POOL} in the client, 64 bytes both ways", claim.what),
            better: Better::More,
        };
        section.claims.push(said.judge(rate(claim.pool_off.rate), rate(claim.pool_on.rate)));
    }
    curves(section, "TCP, one client: latency with and without a pool", &report.claims[1]);
    Ok(())
}

/// The same where reuse is safe, since requests are understood.
fn by_http(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    stage.step("003: the same by HTTP")?;
    let web = backend(stage, Serve::Http, Duration::ZERO)?;
    let url = format!("http://{}/size/1000", web.addr());
    let load = HttpLoad {
        clients: CLIENTS,
        pool: Some(POOL),
        duration: Some(stage.span(2400, 300)),
        pin: stage.cores.server,
        ..HttpLoad::new(url.parse().map_err(|error| Stop::failed(&url, error))?)
    };
    let report = http::claims(&load).map_err(|error| Stop::failed("claims by HTTP", error))?;
    for claim in &report.claims {
        let (unit, better, of): (_, _, fn(&tcp::Side) -> f64) = match claim.counts {
            Counts::Rate => (Unit::PerSecond, Better::More, |side| side.rate),
            Counts::Time => (Unit::Microseconds, Better::Less, |side| {
                side.latency.map_or(f64::NAN, |latency| latency.mean_us)
            }),
        };
        let said = Said {
            says: "(ours) by HTTP, where a connection may be used again",
            claimed: None,
            compared: "–",
            here: format!("{}; a pool of {POOL} in the client, answers of 1,000 bytes", claim.what),
            better,
        };
        let side = |side| Figure::once(unit, of(side));
        section.claims.push(said.judge(side(&claim.pool_off), side(&claim.pool_on)));
    }
    curves(section, "HTTP, one client: latency with and without a pool", &report.claims[0]);
    Ok(())
}

/// What a proxy can do for bytes that it does not understand: dial before they come.
fn spares(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let far = backend(stage, Serve::Echo, FAR)?;
    let off = proxy(stage, far.addr(), Mode::Opaque, PoolMode::Off)?;
    let on = proxy(stage, far.addr(), Mode::Opaque, PoolMode::On)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..stage.rounds {
        for (name, address, figures) in [("off", off.1, &mut without), ("spares", on.1, &mut with)] {
            stage.step(&format!("003: a new client each time, through a proxy, {name}"))?;
            let load = TcpLoad {
                pattern: Pattern::Connect,
                clients: CLIENTS,
                rate: Some(ARRIVALS),
                duration: Some(stage.span(3000, 800)),
                pin: stage.cores.load,
                ..TcpLoad::new(address)
            };
            let report = tcp::run(&load).map_err(|error| Stop::failed("clients of the proxy", error))?;
            figures.push(report.figures);
        }
    }
    let mean = |all: &[forebay_bench::load::Figures]| {
        Figure::of(Unit::Microseconds, all.iter().filter_map(|one| one.latency).map(|latency| latency.p50_us))
    };
    let said = Said {
        says: "(ours) opaque bytes: connections dialled ahead, never used before",
        claimed: None,
        compared: "–",
        here: format!(
            "half of new clients are answered within, {ARRIVALS} a second, each with 64 bytes, through a proxy to a backend \
             whose connections are {} ms old before it listens to them",
            FAR.as_millis()
        ),
        better: Better::Less,
    };
    section.claims.push(said.judge(mean(&without), mean(&with)));
    let series = [("pool off", without.last()), ("spares", with.last())];
    let series =
        series.into_iter().filter_map(|(name, one)| Some(latency_curve(name, one?.latency.as_ref()?)));
    section
        .plots
        .push(Plot { series: series.collect(), ..latencies("Opaque bytes: new clients of a proxy") });
    Ok(())
}

/// What a proxy can do for requests that it understands: use connections again.
fn reuse(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let web = backend(stage, Serve::Http, Duration::ZERO)?;
    let off = proxy(stage, web.addr(), Mode::Http, PoolMode::Off)?;
    let on = proxy(stage, web.addr(), Mode::Http, PoolMode::On)?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let mut opened = [0, 0];
    for _ in 0..stage.rounds {
        for (at, (name, address, figures)) in
            [("pool off", off.1, &mut without), ("pool on", on.1, &mut with)].into_iter().enumerate()
        {
            stage.step(&format!("003: requests of HTTP through a proxy, {name}"))?;
            let url = format!("http://{address}/size/1000");
            let load = HttpLoad {
                clients: CLIENTS,
                pool: Some(CLIENTS as u32),
                duration: Some(stage.span(1500, 300)),
                pin: stage.cores.load,
                ..HttpLoad::new(url.parse().map_err(|error| Stop::failed(&url, error))?)
            };
            let before = web.stats().connections;
            let report =
                http::run(&load).map_err(|error| Stop::failed("requests through the proxy", error))?;
            opened[at] += web.stats().connections - before;
            figures.push(report.figures);
        }
    }
    let rates = |all: &[forebay_bench::load::Figures]| {
        Figure::of(Unit::PerSecond, all.iter().map(|figures| figures.rate))
    };
    let said = Said {
        says: "(ours) HTTP: connections to the backend are used again",
        claimed: None,
        compared: "–",
        here: format!("requests of {CLIENTS} clients with kept connections, through a proxy on its own core"),
        better: Better::More,
    };
    section.claims.push(said.judge(rates(&without), rates(&with)));
    let row = |name: &str, all: &[forebay_bench::load::Figures], opened: u64| {
        let answered: u64 = all.iter().map(|figures| figures.answered).sum();
        let failed: u64 = all.iter().map(|figures| figures.failed).sum();
        vec![
            name.to_owned(),
            shown(rates(all).as_ref()),
            grouped(answered as f64),
            grouped(failed as f64),
            grouped(opened as f64),
        ]
    };
    section.tables.push(Table {
        title: "HTTP through the proxy".to_owned(),
        columns: vec!["pool", "rate", "answered", "failed", "connections to the backend"],
        rows: vec![row("off", &without, opened[0]), row("on", &with, opened[1])],
    });
    Ok(())
}

/// Who gets a connection that has carried another's bytes.
fn strangers(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    stage.step("003: strangers on one connection, by the seed's pool")?;
    let stamps = backend(stage, Serve::Stamp, Duration::ZERO)?;
    let seed = through_a_pool(stamps.addr())?;
    let seed = (seed, shared(&stamps.requests_per_connection()));
    stage.step("003: strangers on one connection, by spares")?;
    let stamps = backend(stage, Serve::Stamp, Duration::ZERO)?;
    let (_server, address) = proxy(stage, stamps.addr(), Mode::Opaque, PoolMode::On)?;
    let ours = through_a_proxy(address)?;
    let ours = (ours, shared(&stamps.requests_per_connection()));
    let said = Said {
        says: "(safety) a used connection goes to the next client",
        claimed: None,
        compared: "not looked at: no test drove the proxy with its pool",
        here: format!(
            "of {STRANGERS} clients, those whose bytes went over a connection that had carried another's: the seed's pool \
             of bytes that nobody understands, and spares"
        ),
        better: Better::Less,
    };
    let count = |count: usize| Figure::once(Unit::Count, count as f64);
    section.claims.push(said.judge(count(seed.1), count(ours.1)));
    section.notes.push(format!(
        "Safety: {} and {} clients were answered. With the seed's pool a client's bytes become part of its predecessor's \
         session: with TLS nothing would work, without it they are mixed up.",
        seed.0, ours.0
    ));
    Ok(())
}

/// How many clients used a connection after somebody else.
fn shared(requests_per_connection: &[u64]) -> usize {
    requests_per_connection.iter().map(|requests| requests.saturating_sub(1) as usize).sum()
}

/// Clients that borrow connections as the seed's do.
fn through_a_pool(target: SocketAddr) -> Result<usize, Stop> {
    let trouble = |error: &dyn std::fmt::Display| Stop::failed("a client of the pool", error);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::failed("cannot start a runtime", error))?;
    runtime.block_on(async {
        let config = Config { connections_max: POOL, idle_max: POOL, ..Config::default() };
        let pool = Pool::builder(Tcp::default()).endpoint(target.into()).config(config).build();
        let pool = pool.map_err(|error| trouble(&error))?;
        let mut answered = 0;
        for number in 0..STRANGERS {
            let mut stream = pool.acquire().await.map_err(|error| trouble(&error))?;
            let hello = format!("secret {number}\n");
            stream.write_all(hello.as_bytes()).await.map_err(|error| trouble(&error))?;
            let mut answer = String::new();
            let read = async { tokio::io::BufReader::new(&mut *stream).read_line(&mut answer).await };
            let read = tokio::time::timeout(PATIENCE, read).await.map_err(|error| trouble(&error))?;
            read.map_err(|error| trouble(&error))?;
            answered += usize::from(answer.contains(hello.trim_end()));
            stream.complete();
        }
        Ok(answered)
    })
}

/// Clients of a proxy.
fn through_a_proxy(target: SocketAddr) -> Result<usize, Stop> {
    let mut answered = 0;
    for number in 0..STRANGERS {
        let visit = || {
            let mut stream = TcpStream::connect(target)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let hello = format!("secret {number}\n");
            stream.write_all(hello.as_bytes())?;
            let mut answer = String::new();
            BufReader::new(stream).read_line(&mut answer)?;
            Ok::<_, std::io::Error>(answer.contains(hello.trim_end()))
        };
        answered += usize::from(visit().map_err(|error| Stop::failed("a client of the proxy", error))?);
    }
    Ok(answered)
}

fn rate(rate: f64) -> Option<Figure> {
    Figure::once(Unit::PerSecond, rate)
}

fn curves(section: &mut Section, title: &str, claim: &tcp::Claim) {
    let sides = [("pool off", &claim.pool_off), ("pool on", &claim.pool_on)];
    let series: Vec<Series> = sides
        .into_iter()
        .filter_map(|(name, side)| Some(latency_curve(name, side.latency.as_ref()?)))
        .collect();
    section.plots.push(Plot { series, ..latencies(&format!("{title} ({})", times(claim.ratio))) });
}

/// An empty plot of latencies.
pub(super) fn latencies(title: &str) -> Plot {
    Plot {
        title: title.to_owned(),
        x: Axis { label: "share of requests; at its end, the longest", scale: Scale::Nines },
        y: Axis { label: "latency, µs", scale: Scale::Log },
        series: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_second_on_a_connection_has_somebody_elses() {
        assert_eq!(shared(&[1, 1, 1]), 0);
        assert_eq!(shared(&[3, 0, 1]), 2);
        assert_eq!(shared(&[]), 0);
    }

    #[test]
    fn the_seeds_pool_mixes_strangers_up_and_spares_do_not() {
        let stamps = Backend::spawn(Serve::Stamp);
        assert_eq!(through_a_pool(stamps.addr()).unwrap(), STRANGERS);
        assert!(shared(&stamps.requests_per_connection()) > STRANGERS / 2);
        let stamps = Backend::spawn(Serve::Stamp);
        let mut stage = Stage::new(true, 1, std::sync::Arc::default());
        stage.cores = super::super::stage::Cores::of(&[]);
        let (_server, address) = proxy(&stage, stamps.addr(), Mode::Opaque, PoolMode::On).unwrap();
        assert_eq!(through_a_proxy(address).unwrap(), STRANGERS);
        assert_eq!(shared(&stamps.requests_per_connection()), 0);
    }
}

//! 001: a thousand users and three upstreams: ports, descriptors and time, over UDP, TCP and DoT; then with 200 local ports.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use forebay::sys::netns::NetNamespace;
use forebay::sys::process;
use forebay::units::{Size, Span};
use forebay_bench::dns::{DnsLoad, Names, Verify};
use forebay_bench::responder::{Responder, Script};
use forebay_dns::{
    CacheSettings, ClientSettings, PoolMode, Settings, StrategyName, StreamSettings, TlsSettings, UdpSettings,
};
use tempfile::TempDir;

use super::forwarder::{Forwarder, Run, blamed_on_upstreams, connections_of, soon, upstream};
use super::model::{Axis, Better, Figure, Plot, Said, Scale, Section, Series, Table, Unit, grouped, shown};
use super::stage::{Stage, Stop};

/// Users who ask at once, each something else.
const USERS: usize = 1000;
/// Upstreams, all of which are asked.
const UPSTREAMS: u16 = 3;
/// How long each takes, so that all questions are in flight together.
const DELAY: Duration = Duration::from_millis(200);
/// The seed's arithmetic: a socket for each user and upstream, and ten for each upstream.
const SEED_TIMES: f64 = 100.0;
/// Local ports of the second part.
const PORTS: u16 = 200;
/// Descriptors that a forwarder leaves to others (it says so in its log).
const RESERVED: u64 = 512;
/// Where servers of a namespace of their own are: outside of the range that is to run out.
const FIXED: u16 = 5300;
/// How often connections are counted.
const SAMPLED: Duration = Duration::from_millis(3);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
    Tls,
}

const ALL: [(&str, Over); 3] = [("UDP", Over::Udp), ("TCP", Over::Tcp), ("DoT", Over::Tls)];
const MODES: [(&str, PoolMode); 2] = [("off", PoolMode::Off), ("on", PoolMode::On)];

/// How many steps there are.
pub(super) const fn steps() -> usize {
    2 * ALL.len() * MODES.len()
}

/// Measures.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    section.title = "3,000 ports to 30: a thousand users and three upstreams";
    let certificate =
        Certificate::make().map_err(|error| Stop::failed("cannot make a certificate", error))?;
    let mut plenty = Vec::new();
    let result = storms(stage, &certificate, None, &mut plenty);
    report_plenty(section, &plenty);
    result?;
    let mut few = Vec::new();
    let (place, result) = match NetNamespace::new(40_000..=40_000 + PORTS - 1) {
        Ok(namespace) => {
            let result = namespace.run(|| storms(stage, &certificate, Some(Few::Ports), &mut few));
            ("a network namespace with 200 local ports".to_owned(), result)
        }
        Err(error) => (
            format!("a budget of {PORTS} descriptors, as no network namespace can be made ({error})"),
            storms(stage, &certificate, Some(Few::Descriptors), &mut few),
        ),
    };
    report_few(section, &few, &place);
    result
}

/// What there is too little of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Few {
    /// The kernel's ports; servers have fixed addresses.
    Ports,
    /// What the forwarder believes to have.
    Descriptors,
}

/// What came of one storm.
struct Storm {
    over: Over,
    mode: PoolMode,
    run: Run,
    /// Sockets made, those among them that are kept warm.
    made: f64,
    /// The most connections at once.
    most: f64,
    /// How many there were, at each time.
    curve: Vec<(f64, f64)>,
    /// The first exchange, and the median of later ones in each round, in microseconds.
    first_us: f64,
    later_us: Vec<f64>,
    /// Distinct source ports that the upstreams saw: of UDP.
    ports_seen: u64,
    /// Times that this machine had no more to give.
    exhausted: u64,
    /// Failures that count against upstreams.
    blamed: u64,
    breakers: u64,
}

impl Storm {
    fn later(&self) -> Option<Figure> {
        Figure::of(Unit::Microseconds, self.later_us.iter().copied())
    }
}

fn storms(
    stage: &mut Stage,
    certificate: &Certificate,
    few: Option<Few>,
    storms: &mut Vec<Storm>,
) -> Result<(), Stop> {
    for (name, over) in ALL {
        for (pool, mode) in MODES {
            let what = if few.is_some() { "with 200 ports" } else { "a thousand users" };
            stage.step(&format!("001: {what}, {name}, pool {pool}"))?;
            storms.push(storm(stage, certificate, few, over, mode)?);
        }
    }
    Ok(())
}

fn storm(
    stage: &Stage,
    certificate: &Certificate,
    few: Option<Few>,
    over: Over,
    mode: PoolMode,
) -> Result<Storm, Stop> {
    let fixed = |number: u16| (few == Some(Few::Ports)).then(|| (Ipv4Addr::LOCALHOST, FIXED + number).into());
    let quick = Script { ttl: 3600, ..Script::default() };
    let responders = (0..UPSTREAMS)
        .map(|number| upstream(stage, quick.clone(), fixed(10 + number)))
        .collect::<Result<Vec<_>, _>>()?;
    // Upstreams that speak TLS are forwarders themselves, before the same responders.
    let encrypted = match over {
        Over::Tls => Some(encrypted(stage, certificate, &responders, |number| fixed(20 + number))?),
        Over::Udp | Over::Tcp => None,
    };
    let upstreams: Vec<String> = match (&encrypted, over) {
        (Some(servers), _) => servers.iter().map(|server| certificate.upstream(server.address)).collect(),
        (None, Over::Tcp) => responders.iter().map(|one| format!("tcp://{}", one.addr())).collect(),
        (None, _) => responders.iter().map(|one| one.addr().to_string()).collect(),
    };
    let listen = fixed(0).map_or_else(|| "127.0.0.1:0".to_owned(), |address: SocketAddr| address.to_string());
    let settings = settings(vec![listen], upstreams, mode);
    let start = || match few {
        Some(Few::Descriptors) => with_few_descriptors(|| Forwarder::start(stage, &settings)),
        _ => Forwarder::start(stage, &settings),
    };
    let load = |server: &Forwarder, in_flight, queries| DnsLoad {
        clients: 1,
        in_flight,
        queries: Some(queries),
        duration: None,
        names: Names::Unique,
        verify: Verify::Derived,
        timeout: Duration::from_secs(8),
        pin: stage.cores.load,
        ..DnsLoad::new(server.address)
    };
    let server = start()?;
    let first = server.measure(stage, &load(&server, 1, 1))?;
    let mut later = Vec::new();
    for _ in 0..stage.rounds {
        later.push(server.measure(stage, &load(&server, 1, if stage.quick { 100 } else { 500 }))?);
    }
    // Another one, whose every socket is counted; it may have the same address.
    drop(server);
    let server = start()?;
    for responder in &responders {
        responder.set_script(Script { delay: DELAY, ..quick.clone() });
    }
    let seen = || responders.iter().map(|one| one.stats().udp_ports).sum::<u64>();
    let before = seen();
    let stop = AtomicBool::new(false);
    let (run, curve) = thread::scope(|scope| {
        let sampler = scope.spawn(|| {
            let started = forebay::sys::now();
            let mut curve = Vec::new();
            while !stop.load(Relaxed) {
                let at = forebay::sys::now().saturating_duration_since(started).as_secs_f64();
                curve.push((at, connections_of(&server.stats())));
                thread::sleep(SAMPLED);
            }
            curve
        });
        let run = server.measure(stage, &load(&server, USERS, USERS as u64));
        stop.store(true, Relaxed);
        (run, sampler.join().unwrap_or_default())
    });
    let run = run?;
    soon(|| server.stats().questions == 0);
    let stats = server.stats();
    let latency = |run: &Run| run.latency.map_or(f64::NAN, |latency| latency.p50_us);
    let counters = stats.pool_counters();
    Ok(Storm {
        over,
        mode,
        most: curve.iter().map(|point| point.1).fold(0.0, f64::max),
        run,
        curve,
        first_us: latency(&first),
        later_us: later.iter().map(latency).collect(),
        ports_seen: seen().saturating_sub(before),
        made: stats.connections_made() as f64,
        exhausted: counters.local_exhaustions,
        blamed: blamed_on_upstreams(&stats),
        breakers: counters.breaker_opened,
    })
}

fn settings(listen: Vec<String>, upstreams: Vec<String>, pool: PoolMode) -> Settings {
    Settings {
        listen,
        upstreams,
        strategy: StrategyName::Parallel,
        workers: 1,
        cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
        pool,
        attempt_timeout: Span(Duration::from_secs(3)),
        query_timeout: Span(Duration::from_secs(6)),
        // Without a pool there is one for each question.
        udp: UdpSettings { connections_max: 4096, ..UdpSettings::default() },
        stream: StreamSettings { connections_max: 4096, ..StreamSettings::default() },
        ..Settings::default()
    }
}

/// A forwarder with an encrypted listener before each responder.
fn encrypted(
    stage: &Stage,
    certificate: &Certificate,
    responders: &[Responder],
    fixed: impl Fn(u16) -> Option<SocketAddr>,
) -> Result<Vec<Forwarder>, Stop> {
    let clients = ClientSettings {
        connections_max: 8192,
        connections_per_client: 8192,
        handshakes_max: 8192,
        ..ClientSettings::default()
    };
    let start = |(number, responder): (u16, &Responder)| {
        let listen = match fixed(number) {
            Some(address) => format!("tls://{address}"),
            None => "tls://127.0.0.1:0".to_owned(),
        };
        let settings = Settings {
            tls: certificate.settings(),
            clients,
            ..settings(vec![listen], vec![responder.addr().to_string()], PoolMode::On)
        };
        Forwarder::start_beside(stage, &settings)
    };
    (0..).zip(responders).map(start).collect()
}

/// Does something that reads how many descriptors there are while there seem to be few.
fn with_few_descriptors<T>(work: impl FnOnce() -> Result<T, Stop>) -> Result<T, Stop> {
    let trouble = |error| Stop::failed("cannot change the limit of descriptors", error);
    let limit = process::descriptor_limit().map_err(trouble)?;
    process::set_descriptor_limit(RESERVED + u64::from(PORTS)).map_err(trouble)?;
    let result = work();
    process::set_descriptor_limit(limit.soft).map_err(trouble)?;
    result
}

fn find(storms: &[Storm], over: Over, mode: PoolMode) -> Option<&Storm> {
    storms.iter().find(|storm| storm.over == over && storm.mode == mode)
}

fn report_plenty(section: &mut Section, storms: &[Storm]) {
    let figure = |over, mode, unit, of: fn(&Storm) -> f64| {
        find(storms, over, mode).and_then(|storm| Figure::once(unit, of(storm)))
    };
    for (name, over) in ALL {
        let count = |mode| figure(over, mode, Unit::Count, |storm| storm.made);
        let said = Said {
            says: "3,000 ports and socket calls become 30: 100 times fewer",
            claimed: Some(SEED_TIMES),
            compared: "arithmetic: 1,000 × 3 against 3 × 10, as if ten could carry a thousand at once",
            here: format!("sockets made for {USERS} questions at once to {UPSTREAMS} upstreams over {name}"),
            better: Better::Less,
        };
        section.claims.push(said.judge(count(PoolMode::Off), count(PoolMode::On)));
    }
    for (name, over) in ALL {
        let later = |mode| find(storms, over, mode).and_then(Storm::later);
        let said = Said {
            says: "connecting takes 10 ms each time; reused, less than 1 ms: 10 times",
            claimed: Some(10.0),
            compared: "nothing: it was expected",
            here: format!(
                "exchanges after the first over {name}, one at a time, on loopback, where a round trip costs nothing: add \
                 one for TCP and two for DoT"
            ),
            better: Better::Less,
        };
        section.claims.push(said.judge(later(PoolMode::Off), later(PoolMode::On)));
    }
    let row = |storm: &Storm| {
        vec![
            label(storm),
            grouped(storm.made),
            grouped(storm.most),
            if storm.over == Over::Udp { grouped(storm.ports_seen as f64) } else { grouped(storm.made) },
            Unit::Microseconds.write(storm.first_us),
            shown(storm.later().as_ref()),
            shown(Figure::once(Unit::Microseconds, storm.run.cpu_us).as_ref()),
            grouped(storm.run.bad as f64),
        ]
    };
    section.tables.push(Table {
        title: format!(
            "{USERS} questions at once, each to {UPSTREAMS} upstreams of {} ms",
            DELAY.as_millis()
        ),
        columns: vec![
            "over, pool",
            "sockets made",
            "descriptors at once",
            "ports",
            "first exchange",
            "later",
            "CPU a question",
            "not answered",
        ],
        rows: storms.iter().map(row).collect(),
    });
    section.plots.push(connections(storms, "Connections over time: a thousand users"));
}

fn report_few(section: &mut Section, storms: &[Storm], place: &str) {
    for (name, over) in ALL {
        let failed =
            |mode| find(storms, over, mode).and_then(|storm| Figure::once(Unit::Count, storm.run.bad as f64));
        let said = Said {
            says: "ports run out, and reuse ends that",
            claimed: None,
            compared: "nothing: it was expected",
            here: format!("questions of {USERS} that got no answer over {name}, in {place}"),
            better: Better::Less,
        };
        section.claims.push(said.judge(failed(PoolMode::Off), failed(PoolMode::On)));
    }
    let sum = |of: fn(&Storm) -> u64| {
        let off = storms.iter().filter(|storm| storm.mode == PoolMode::Off);
        (!storms.is_empty()).then(|| off.map(of).sum::<u64>() as f64)
    };
    let count = |value: Option<f64>| value.and_then(|value| Figure::once(Unit::Count, value));
    let said = Said {
        says: "a shortage of this machine is taken for a dead upstream",
        claimed: None,
        compared: "true of the seed's own code, too: what its pool cannot give counts against the upstream",
        here: format!(
            "in {place}, pool off: times that this machine had nothing left, all of which the seed's rule would count \
             against upstreams, and failures that forebay counts against them"
        ),
        better: Better::Less,
    };
    section.claims.push(said.judge(count(sum(|storm| storm.exhausted)), count(sum(|storm| storm.blamed))));
    let row = |storm: &Storm| {
        vec![
            label(storm),
            grouped(storm.run.answered as f64),
            grouped(storm.run.bad as f64),
            grouped(storm.most),
            grouped(storm.exhausted as f64),
            grouped(storm.blamed as f64),
            grouped(storm.breakers as f64),
        ]
    };
    section.tables.push(Table {
        title: format!("The same in {place}"),
        columns: vec![
            "over, pool",
            "answered",
            "of them, or late, failed",
            "connections at once",
            "shortages seen",
            "blamed on upstreams",
            "breakers opened",
        ],
        rows: storms.iter().map(row).collect(),
    });
    section.plots.push(connections(storms, "Connections over time: the same with 200 ports"));
}

fn label(storm: &Storm) -> String {
    let over = ALL.iter().find(|(_, over)| *over == storm.over).map_or("", |(name, _)| name);
    let pool = MODES.iter().find(|(_, mode)| *mode == storm.mode).map_or("", |(name, _)| name);
    format!("{over}, {pool}")
}

fn connections(storms: &[Storm], title: &str) -> Plot {
    Plot {
        title: title.to_owned(),
        x: Axis { label: "seconds", scale: Scale::Linear },
        y: Axis { label: "connections to upstreams", scale: Scale::Log },
        series: storms
            .iter()
            .map(|storm| Series { name: label(storm), points: storm.curve.clone() })
            .collect(),
    }
}

/// A certificate of this run's own.
struct Certificate {
    folder: TempDir,
}

impl Certificate {
    fn make() -> std::io::Result<Self> {
        let made =
            rcgen::generate_simple_self_signed(["localhost".to_owned()]).map_err(std::io::Error::other)?;
        let this = Self { folder: TempDir::new()? };
        let settings = this.settings();
        fs::write(settings.certificate, made.cert.pem())?;
        fs::write(settings.key, made.signing_key.serialize_pem())?;
        Ok(this)
    }

    fn settings(&self) -> TlsSettings {
        let file = |name| self.folder.path().join(name);
        TlsSettings { certificate: file("certificate.pem"), key: file("key.pem") }
    }

    fn upstream(&self, address: SocketAddr) -> String {
        format!("tls://{address}?name=localhost&ca={}", self.settings().certificate.display())
    }
}

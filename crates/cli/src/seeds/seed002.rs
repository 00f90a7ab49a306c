//! 002: one backend against the same one named three times; an actor, a mutex and shards under contention; the order in
//! which idle connections are used.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use forebay::dial::{Tcp, Udp};
use forebay::sys::now;
use forebay::units::Size;
use forebay::{Config, IdleOrder, Pool};
use forebay_bench::backend::{Backend, Serve};
use forebay_bench::dns::{DnsLoad, Names, Verify};
use forebay_bench::pool::{BareVec, CONNECTIONS, Forebay, Subject, TASKS, THREADS, many_tasks, runtime};
use forebay_bench::responder::Script;
use forebay_dns::{CacheSettings, Settings, StrategyName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot};

use super::forwarder::{Forwarder, Run, latency_curve, upstream};
use super::model::{Better, Figure, Plot, Said, Section, Table, Unit, shown, times};
use super::seed003::latencies;
use super::stage::{Stage, Stop, on_core, rounds};

/// Clients at once, as in the measurement behind the seed.
const CLIENTS: usize = 256;
/// One backend, 28,890 QPS; three times the same, 46,271.
const SEED_ONE_QPS: f64 = 28_890.0;
const SEED_THREE_QPS: f64 = 46_271.0;
/// A pool of channels, 42,000 QPS without it and 12,000 with; 21,000 with eight of them.
const SEED_ACTORS: f64 = 21_000.0 / 12_000.0;
/// Servers behind one address, to which a balancer gives connections in turn.
const BEHIND: usize = 4;
/// Callers of the pool whose order is looked at.
const CALLERS: usize = 3;

const ORDERS: [(&str, IdleOrder); 3] =
    [("FIFO", IdleOrder::Fifo), ("LIFO", IdleOrder::Lifo), ("random", IdleOrder::Random)];

/// How many steps there are.
pub(super) const fn steps(quick: bool) -> usize {
    rounds(quick) * (2 + SUBJECTS.len()) + 2 * ORDERS.len()
}

/// Measures.
pub(super) fn measure(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    section.title = "an actor gives way to a mutex: one backend as fast as three";
    backends(stage, section)?;
    contention(stage, section)?;
    orders(stage, section)
}

/// One upstream, and the same named three times.
fn backends(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let upstream = upstream(stage, Script { ttl: 3600, ..Script::default() }, None)?;
    let start = |named: usize| {
        let settings = Settings {
            listen: vec!["127.0.0.1:0".to_owned()],
            upstreams: vec![upstream.addr().to_string(); named],
            strategy: StrategyName::RoundRobin,
            workers: 1,
            cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
            ..Settings::default()
        };
        Forwarder::start(stage, &settings)
    };
    let servers = [start(1)?, start(3)?];
    let mut runs: [Vec<Run>; 2] = Default::default();
    let mut result = Ok(());
    'all: for _ in 0..stage.rounds {
        for (number, name) in ["one backend", "the same, named three times"].into_iter().enumerate() {
            let load = DnsLoad {
                clients: CLIENTS,
                in_flight: CLIENTS,
                names: Names::Unique,
                verify: Verify::Derived,
                duration: Some(stage.span(2000, 400)),
                pin: stage.cores.load,
                ..DnsLoad::new(servers[number].address)
            };
            match stage.step(&format!("002: {name}")).and_then(|()| servers[number].measure(stage, &load)) {
                Ok(run) => runs[number].push(run),
                Err(stop) => {
                    result = Err(stop);
                    break 'all;
                }
            }
        }
    }
    let qps = |runs: &[Run]| Figure::of(Unit::PerSecond, runs.iter().map(|run| run.qps));
    let said = |says, claimed, compared| Said {
        says,
        claimed,
        compared,
        here: format!(
            "QPS of forebay with one upstream, and with the same one named three times; {CLIENTS} at once, all misses"
        ),
        better: Better::More,
    };
    section.claims.push(
        said(
            "a single backend performs on par with several (before: 28,890 QPS with one, 46,271 with three)",
            Some(1.0),
            "one server that answers for all, so that three actors did what one could not",
        )
        .judge(qps(&runs[0]), qps(&runs[1])),
    );
    let names = ["one backend", "named three times"];
    let series = names
        .iter()
        .zip(&runs)
        .filter_map(|(name, runs)| Some(latency_curve(*name, runs.last()?.latency.as_ref()?)));
    section
        .plots
        .push(Plot { series: series.collect(), ..latencies("One backend and three times the same") });
    result
}

/// A pool's name, and what measures it.
type Contender = (&'static str, fn(&Runtime, u32) -> f64);

/// The pools that are compared, by how they are called.
const SUBJECTS: [Contender; 6] = [
    ("one actor with channels", pairs::<Actor>),
    ("three of them, in turn", pairs::<Three<Actor>>),
    ("one mutex, who finds none tries again", pairs::<BareVec>),
    ("three of them, in turn", pairs::<Three<BareVec>>),
    ("forebay, its shards", pairs::<Forebay>),
    ("three of them, in turn", pairs::<Three<Forebay>>),
];

/// Pairs of acquire and release in a second.
fn pairs<S: Subject>(runtime: &Runtime, pairs: u32) -> f64 {
    let pool = runtime.block_on(S::new());
    many_tasks(runtime, &pool, pairs / 10);
    f64::from(pairs) / many_tasks(runtime, &pool, pairs).as_secs_f64().max(1e-9)
}

fn contention(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let runtime = runtime();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); SUBJECTS.len()];
    let count = if stage.quick { 40_000 } else { 400_000 };
    for _ in 0..stage.rounds {
        for (number, (name, measure)) in SUBJECTS.iter().enumerate() {
            stage.step(&format!("002: under contention, {name}"))?;
            rates[number].push(measure(&runtime, count));
        }
    }
    let figure = |number: usize| Figure::of(Unit::PerSecond, rates[number].iter().copied());
    let here = |what: &str| {
        format!(
            "{what}: acquire and release a second, {TASKS} tasks on {THREADS} threads, {CONNECTIONS} connections"
        )
    };
    let said = |says, claimed, compared, what: &str| Said {
        says,
        claimed,
        compared,
        here: here(what),
        better: Better::More,
    };
    section.claims.extend([
        said(
            "an actor for each backend is a bottleneck: three do more than one",
            Some(SEED_THREE_QPS / SEED_ONE_QPS),
            "QPS of a whole server with one and three actors",
            "one actor, and three",
        )
        .judge(figure(0), figure(1)),
        said(
            "a pool of channels costs most of the throughput; eight of them give half of it back",
            Some(SEED_ACTORS),
            "QPS of a whole server",
            "one actor, and one mutex",
        )
        .judge(figure(0), figure(2)),
        said("(ours) shards instead of one lock", None, "–", "one mutex, and forebay")
            .judge(figure(2), figure(4)),
        said("(ours) one is as fast as three", Some(1.0), "–", "one forebay, and three")
            .judge(figure(4), figure(5)),
    ]);
    let row = |(number, (name, _)): (usize, &Contender)| {
        let (own, first) = (figure(number), figure(0));
        let to_first = own.as_ref().zip(first.as_ref()).map(|(own, first)| own.median / first.median);
        vec![(*name).to_owned(), shown(own.as_ref()), to_first.map_or_else(String::new, times)]
    };
    section.tables.push(Table {
        title: here("Under contention, each held over a yield"),
        columns: vec!["pool", "pairs", "to one actor"],
        rows: SUBJECTS.iter().enumerate().map(row).collect(),
    });
    Ok(())
}

/// One task that owns all connections; others ask it by a channel, and wait for its answer.
#[derive(Clone)]
struct Actor(mpsc::UnboundedSender<Ask>);

enum Ask {
    Dial(oneshot::Sender<u64>),
    Yield(u64),
}

impl Subject for Actor {
    const NAME: &'static str = "actor";
    type Lease<'a> = u64;

    async fn new() -> Self {
        let (sender, mut inbox) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut idle: Vec<u64> = (0..CONNECTIONS.into()).collect();
            let mut waiting: VecDeque<oneshot::Sender<u64>> = VecDeque::new();
            while let Some(ask) = inbox.recv().await {
                match ask {
                    Ask::Dial(answer) => match idle.pop() {
                        // Who has left needs none: it goes to the next, or back.
                        Some(number) => idle.extend(answer.send(number).err()),
                        None => waiting.push_back(answer),
                    },
                    Ask::Yield(number) => {
                        let mut left = Some(number);
                        while let Some(number) = left.take() {
                            match waiting.pop_front() {
                                // Who has left needs none: it goes to the next.
                                Some(next) => left = next.send(number).err(),
                                None => idle.push(number),
                            }
                        }
                    }
                }
            }
        });
        Self(sender)
    }

    async fn acquire(&self) -> u64 {
        let (answer, number) = oneshot::channel();
        self.0.send(Ask::Dial(answer)).expect("the actor lives as long as its pool");
        number.await.expect("the actor answers")
    }

    fn release(&self, number: u64) {
        self.0.send(Ask::Yield(number)).expect("the actor lives as long as its pool");
    }
}

/// Three pools in turn, as if a backend were named three times.
#[derive(Clone)]
struct Three<S> {
    pools: [S; 3],
    next: Arc<AtomicUsize>,
}

impl<S: Subject> Subject for Three<S> {
    const NAME: &'static str = "three";
    type Lease<'a> = (usize, S::Lease<'a>);

    async fn new() -> Self {
        Self { pools: [S::new().await, S::new().await, S::new().await], next: Arc::default() }
    }

    async fn acquire(&self) -> Self::Lease<'_> {
        let number = self.next.fetch_add(1, Relaxed) % self.pools.len();
        (number, self.pools[number].acquire().await)
    }

    fn release(&self, (number, lease): Self::Lease<'_>) {
        self.pools[number].release(lease);
    }
}

/// What one order came to.
struct Order {
    name: &'static str,
    rate: f64,
    /// Requests of each server behind the address.
    requests: Vec<f64>,
    /// Source ports in the order in which they were used.
    ports: Vec<u16>,
}

fn orders(stage: &mut Stage, section: &mut Section) -> Result<(), Stop> {
    let mut all = Vec::new();
    for (name, order) in ORDERS {
        stage.step(&format!("002: {name} order, servers behind one address"))?;
        let backend = on_core(stage.cores.upstream, || Backend::builder().serve(Serve::Echo).spawn())?
            .map_err(|error| Stop::failed("cannot start an embedded backend", error))?;
        let span = stage.span(1500, 300);
        let (rate, uses) = on_core(stage.cores.load, || echo(&backend, order, span))??;
        stage.step(&format!("002: {name} order, source ports"))?;
        let responder = upstream(stage, Script::default(), None)?;
        let ports = on_core(stage.cores.load, || source_ports(responder.addr(), order))??;
        all.push(Order { name, rate, requests: by_server(&uses, BEHIND), ports });
    }
    let of = |name: &str, unit, figure: fn(&Order) -> f64| {
        all.iter().find(|order| order.name == name).and_then(|order| Figure::once(unit, figure(order)))
    };
    let said = |says, compared, here: String, better| Said { says, claimed: None, compared, here, better };
    section.claims.extend([
        said(
            "FIFO instead of LIFO, for source port diversity",
            "nothing: it was reasoned (RFC 5452)",
            "bits of entropy of the source port of a query, LIFO and FIFO".to_owned(),
            Better::More,
        )
        .judge(
            of("LIFO", Unit::Bits, |order| entropy(&order.ports)),
            of("FIFO", Unit::Bits, |order| entropy(&order.ports)),
        ),
        said(
            "(ours) who has seen one port cannot tell the next",
            "–",
            "bits of entropy of the source port for who knows the last one, FIFO and random".to_owned(),
            Better::More,
        )
        .judge(
            of("FIFO", Unit::Bits, |order| entropy_after(&order.ports)),
            of("random", Unit::Bits, |order| entropy_after(&order.ports)),
        ),
        said(
            "(beside it) FIFO serves the servers behind one address alike",
            "–",
            format!(
                "fairness over {BEHIND} servers (Jain: 1 is even, {:.2} is all to one), {CALLERS} callers, LIFO and FIFO",
                1.0 / BEHIND as f64
            ),
            Better::More,
        )
        .judge(
            of("LIFO", Unit::Share, |order| fairness(&order.requests)),
            of("FIFO", Unit::Share, |order| fairness(&order.requests)),
        ),
        said(
            "(beside it) the order costs no throughput",
            "–",
            format!("echoes a second of {CALLERS} callers, LIFO and FIFO"),
            Better::More,
        )
        .judge(
            of("LIFO", Unit::PerSecond, |order| order.rate),
            of("FIFO", Unit::PerSecond, |order| order.rate),
        ),
    ]);
    let row = |order: &Order| {
        vec![
            order.name.to_owned(),
            Unit::PerSecond.write(order.rate),
            Unit::Share.write(fairness(&order.requests)),
            Unit::Bits.write(entropy(&order.ports)),
            Unit::Bits.write(entropy_after(&order.ports)),
        ]
    };
    section.tables.push(Table {
        title: format!("{CONNECTIONS} connections, {CALLERS} callers"),
        columns: vec!["order", "echoes", "fairness", "source port", "for who knows the last"],
        rows: all.iter().map(row).collect(),
    });
    Ok(())
}

fn config(order: IdleOrder) -> Config {
    Config {
        connections_max: CONNECTIONS,
        connections_min: CONNECTIONS,
        idle_max: CONNECTIONS,
        order,
        ..Config::default()
    }
}

fn own_runtime() -> Result<Runtime, Stop> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Stop::failed("cannot start a runtime", error))
}

/// Lets a few callers echo over a pool that has more connections than callers; returns the rate, and the uses of each
/// connection by its local port.
fn echo(backend: &Backend, order: IdleOrder, span: Duration) -> Result<(f64, Vec<f64>), Stop> {
    own_runtime()?.block_on(async {
        let pool = Pool::builder(Tcp::default())
            .endpoint(backend.addr().into())
            .config(config(order))
            .shards(1)
            .build();
        let pool = pool.map_err(|error| Stop::failed("the pool", error))?;
        warm(|| pool.snapshot().endpoints.iter().map(|one| one.snapshot.ready).sum()).await;
        let until = now() + span;
        let started = now();
        let caller = || async {
            let mut uses: BTreeMap<u16, f64> = BTreeMap::new();
            let mut answer = [0; 64];
            while now() < until {
                let mut stream = pool.acquire().await.map_err(|error| Stop::failed("a caller", error))?;
                let trouble = |error| Stop::failed("an echo", error);
                stream.write_all(&[7; 64]).await.map_err(trouble)?;
                stream.read_exact(&mut answer).await.map_err(trouble)?;
                *uses.entry(stream.local_addr().map_err(trouble)?.port()).or_default() += 1.0;
                stream.complete();
            }
            Ok::<_, Stop>(uses)
        };
        let mut all: BTreeMap<u16, f64> = BTreeMap::new();
        for uses in futures_util::future::try_join_all((0..CALLERS).map(|_| caller())).await? {
            uses.into_iter().for_each(|(port, count)| *all.entry(port).or_default() += count);
        }
        let elapsed = now().saturating_duration_since(started).as_secs_f64();
        let mut uses: Vec<f64> = all.into_values().collect();
        // Connections that were never used have served nobody.
        uses.resize(uses.len().max(CONNECTIONS as usize), 0.0);
        Ok((uses.iter().sum::<f64>() / elapsed, uses))
    })
}

/// Takes one socket after the other, and notes the port from which a query would leave.
fn source_ports(upstream: std::net::SocketAddr, order: IdleOrder) -> Result<Vec<u16>, Stop> {
    own_runtime()?.block_on(async {
        let pool =
            Pool::builder(Udp::default()).endpoint(upstream.into()).config(config(order)).shards(1).build();
        let pool = pool.map_err(|error| Stop::failed("the pool", error))?;
        warm(|| pool.snapshot().endpoints.iter().map(|one| one.snapshot.ready).sum()).await;
        let mut ports = Vec::new();
        for _ in 0..20_000 {
            let socket = pool.acquire().await.map_err(|error| Stop::failed("a socket", error))?;
            ports.push(socket.local_addr().map_err(|error| Stop::failed("a socket", error))?.port());
            socket.complete();
        }
        Ok(ports)
    })
}

/// Waits until all connections are there, for a second at most.
async fn warm(ready: impl Fn() -> u32) {
    let patience = now() + Duration::from_secs(1);
    while ready() < CONNECTIONS && now() < patience {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The uses of each server, if a balancer before them deals out connections in turn.
fn by_server(uses: &[f64], servers: usize) -> Vec<f64> {
    let mut sums = vec![0.0; servers];
    for (number, uses) in uses.iter().enumerate() {
        sums[number % servers] += uses;
    }
    sums
}

/// Jain's index: 1 when all have the same, 1/n when one has all.
fn fairness(shares: &[f64]) -> f64 {
    let (sum, squares) =
        shares.iter().fold((0.0, 0.0), |(sum, squares), share| (sum + share, squares + share * share));
    if squares == 0.0 { 0.0 } else { sum * sum / (shares.len() as f64 * squares) }
}

/// Shannon's entropy of what is seen, in bits.
fn entropy<T: Ord>(seen: &[T]) -> f64 {
    let mut counts: BTreeMap<&T, f64> = BTreeMap::new();
    seen.iter().for_each(|one| *counts.entry(one).or_default() += 1.0);
    let all = seen.len() as f64;
    let bits: f64 = counts.values().map(|count| -(count / all) * (count / all).log2()).sum();
    // Of one value alone it is minus nothing.
    bits.max(0.0)
}

/// The entropy that is left for who knows what came before: that of pairs without that of the first of each.
fn entropy_after<T: Ord + Copy>(seen: &[T]) -> f64 {
    let pairs: Vec<(T, T)> = seen.windows(2).map(|two| (two[0], two[1])).collect();
    let firsts: Vec<T> = pairs.iter().map(|pair| pair.0).collect();
    (entropy(&pairs) - entropy(&firsts)).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fairness_is_one_when_even_and_a_share_when_one_has_all() {
        assert_eq!(fairness(&[5.0; 4]), 1.0);
        assert_eq!(fairness(&[9.0, 0.0, 0.0, 0.0]), 0.25);
        assert_eq!(fairness(&[]), 0.0);
    }

    #[test]
    fn connections_are_dealt_out_in_turn() {
        assert_eq!(by_server(&[1.0, 2.0, 3.0, 4.0, 5.0], 2), [9.0, 6.0]);
    }

    #[test]
    fn in_turn_is_as_diverse_as_by_chance_and_can_be_foretold() {
        let turn: Vec<u16> = (0..16_000).map(|n| n % 16).collect();
        assert!((entropy(&turn) - 4.0).abs() < 1e-9);
        assert!(entropy_after(&turn) < 0.01);
        let mut rng = forebay_core::Rng::new(7);
        let chance: Vec<u16> = (0..16_000).map(|_| rng.below(16) as u16).collect();
        assert!(entropy(&chance) > 3.99 && entropy_after(&chance) > 3.9);
        assert_eq!((entropy(&[3; 100]), entropy_after(&[3; 100])), (0.0, 0.0));
    }

    #[test]
    fn every_pool_under_contention_serves_all() {
        let runtime = runtime();
        for (name, measure) in SUBJECTS {
            assert!(measure(&runtime, 6400) > 0.0, "{name}");
        }
    }
}

//! Where upstreams are: fixed addresses, and those of names, which one thread asks plain DNS servers for.
//!
//! Nothing waits for it but dials: a server starts whether or not its upstreams' names can be found, and looks for them
//! until they are. Connections that exist are left alone when addresses change.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay::sys;
use forebay_core::Rng;
use forebay_dns_core::bootstrap::{Finding, Refresh, interleave, read_addresses};
use forebay_dns_core::wire::{Scan, UpstreamQuery, parse_name, rtype, write_query};
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};

use crate::settings::{Host, UpstreamAddress};

/// How long one try to ask a server may take.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Tries with one server: datagrams may get lost.
const TRIES: u32 = 2;

/// Where every upstream is.
#[derive(Debug)]
pub(crate) struct Directory {
    places: Vec<Place>,
}

/// Where one upstream is.
#[derive(Debug)]
struct Place {
    fixed: Vec<SocketAddr>,
    /// The addresses of its name, if that is asked for.
    found: Option<Found>,
    port: u16,
    /// Which address is tried first.
    turn: AtomicUsize,
    /// How many queries its connections carry at once as far as it has said.
    streams: AtomicU32,
}

/// The addresses of a name, as they are known now.
type Found = watch::Receiver<Arc<[IpAddr]>>;

/// Names to look for, and where to put what is found.
pub(crate) type Names = Vec<(String, watch::Sender<Arc<[IpAddr]>>)>;

impl Directory {
    /// Makes the directory of these upstreams, and lists the names that have to be asked for.
    pub(crate) fn new(upstreams: &[UpstreamAddress]) -> (Self, Names) {
        let mut names = Names::new();
        let mut known: HashMap<&str, Found> = HashMap::new();
        let mut places = Vec::new();
        for upstream in upstreams {
            let found = match &upstream.host {
                Host::Name(name) if upstream.bootstrap.is_empty() => {
                    let begin = || {
                        let (sender, receiver) = watch::channel(Arc::default());
                        names.push((name.clone(), sender));
                        receiver
                    };
                    Some(known.entry(name).or_insert_with(begin).clone())
                }
                _ => None,
            };
            let (fixed, port) = (upstream.addresses().collect(), upstream.port);
            places.push(Place { fixed, found, port, turn: AtomicUsize::new(0), streams: AtomicU32::new(0) });
        }
        (Self { places }, names)
    }

    /// Returns the addresses of an upstream in the order in which a dial tries them. Waits until there are any.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    pub(crate) async fn addresses(&self, upstream: u16) -> Vec<SocketAddr> {
        let place = &self.places[usize::from(upstream)];
        let mut all = place.fixed.clone();
        if let Some(found) = &place.found {
            // An end says that the server ends, and this dial with it.
            if let Ok(found) = found.clone().wait_for(|found| !found.is_empty()).await {
                all.extend(found.iter().map(|ip| SocketAddr::new(*ip, place.port)));
            }
        }
        if !all.is_empty() {
            let turn = place.turn.load(Ordering::Relaxed) % all.len();
            all.rotate_left(turn);
        }
        all
    }

    /// Returns an address of an upstream without waiting for one.
    pub(crate) fn address(&self, upstream: u16) -> Option<SocketAddr> {
        let place = &self.places[usize::from(upstream)];
        let turn = place.turn.load(Ordering::Relaxed);
        let found = place.found.as_ref().map(|found| found.borrow().clone()).unwrap_or_default();
        let ip = |at: usize| found.get(at).map(|ip| SocketAddr::new(*ip, place.port));
        let all = place.fixed.len() + found.len();
        let at = turn.checked_rem(all)?;
        place.fixed.get(at).copied().or_else(|| ip(at - place.fixed.len()))
    }

    /// Returns how many queries a new connection to an upstream carries at once, if another one has learnt it.
    pub(crate) fn streams(&self, upstream: u16) -> Option<u32> {
        let streams = self.places[usize::from(upstream)].streams.load(Ordering::Relaxed);
        (streams > 0).then_some(streams)
    }

    /// Notes how many queries an upstream lets a connection carry at once.
    pub(crate) fn note_streams(&self, upstream: u16, streams: u32) {
        self.places[usize::from(upstream)].streams.store(streams, Ordering::Relaxed);
    }

    /// Whether the addresses of an upstream have still to be found.
    pub(crate) fn is_looking(&self, upstream: u16) -> bool {
        self.places[usize::from(upstream)].found.as_ref().is_some_and(|found| found.borrow().is_empty())
    }

    /// Lets the next dial begin with another address: this many further on.
    pub(crate) fn turn(&self, upstream: u16, by: usize) {
        self.places[usize::from(upstream)].turn.fetch_add(by, Ordering::Relaxed);
    }
}

/// Connects to the first of these addresses that lets it, giving each its share of the time. Returns how many were
/// passed over.
pub(crate) async fn connect_any<C, F: Future<Output = io::Result<C>>>(
    addresses: &[SocketAddr],
    end: tokio::time::Instant,
    connect: impl Fn(SocketAddr) -> F,
) -> (usize, io::Result<C>) {
    let mut failure = io::Error::new(
        io::ErrorKind::NetworkUnreachable,
        "its address is not known yet: the bootstrap servers have not told it",
    );
    for (passed, &address) in addresses.iter().enumerate() {
        let left = end.saturating_duration_since(tokio::time::Instant::now());
        let share = left / (addresses.len() - passed) as u32;
        failure = match tokio::time::timeout(share, connect(address)).await {
            Ok(Ok(connection)) => return (passed, Ok(connection)),
            Ok(Err(error)) => error,
            Err(_) => io::ErrorKind::TimedOut.into(),
        };
    }
    (addresses.len(), Err(failure))
}

/// The thread that looks for names; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Resolver {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Resolver {
    /// Starts to look for names, asking these servers in turn.
    pub(crate) fn start(names: Names, servers: Vec<SocketAddr>, seed: u64) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("dns-bootstrap".to_owned()).spawn(move || {
            let servers = &servers;
            let looks = names
                .iter()
                .zip(seed..)
                .map(|((name, found), seed)| look_after(name, found, servers, Rng::new(seed)));
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    _ = join_all(looks) => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that looks for upstreams' addresses had panicked");
        }
    }
}

/// Keeps the addresses of one name.
async fn look_after(name: &str, found: &watch::Sender<Arc<[IpAddr]>>, servers: &[SocketAddr], mut rng: Rng) {
    let mut refresh = Refresh::new(sys::now());
    loop {
        let pause = refresh.due().saturating_duration_since(sys::now());
        tokio::time::sleep(pause).await;
        match resolve(name, servers, &mut rng).await {
            Ok((addresses, ttl)) => {
                refresh.note_found(sys::now(), ttl);
                let changed = found.send_if_modified(|known| {
                    let changed = **known != *addresses;
                    *known = addresses.into();
                    changed
                });
                if changed {
                    tracing::info!(name, addresses = ?&**found.borrow(), "the addresses of an upstream are found");
                }
            }
            Err(problem) => {
                refresh.note_failed(sys::now(), &mut rng);
                let known = found.borrow().len();
                let again = refresh.due().saturating_duration_since(sys::now());
                tracing::warn!(
                    name,
                    problem,
                    known,
                    ?again,
                    "the addresses of an upstream cannot be found: those that are known stay in use; `bootstrap` says \
                     which servers are asked"
                );
            }
        }
    }
}

async fn resolve(name: &str, servers: &[SocketAddr], rng: &mut Rng) -> Result<(Vec<IpAddr>, u32), String> {
    let mut problem = "there is no server to ask".to_owned();
    for &server in servers {
        let ids = [random_id(rng), random_id(rng)];
        let (four, six) =
            tokio::join!(ask(server, name, rtype::A, ids[0]), ask(server, name, rtype::AAAA, ids[1]));
        let list = |answer: &Result<(Vec<IpAddr>, u32), String>| match answer {
            Ok((list, _)) => list.clone(),
            Err(_) => Vec::new(),
        };
        let all = interleave(&list(&four), &list(&six));
        if !all.is_empty() {
            let ttls = [&four, &six].into_iter().flatten().filter(|(list, _)| !list.is_empty());
            return Ok((all, ttls.map(|(_, ttl)| *ttl).min().unwrap_or(0)));
        }
        problem = match four.and(six) {
            Ok(_) => format!("{server} says that it has none"),
            Err(error) => format!("{server} {error}"),
        };
    }
    Err(problem)
}

/// Unguessable as far as the system's randomness goes; without it, as far as the seed.
fn random_id(rng: &mut Rng) -> u16 {
    let mut bytes = [0; 2];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u16::from_ne_bytes(bytes),
        Err(_) => rng.below(1 << 16) as u16,
    }
}

/// Asks one server for the addresses of one type.
async fn ask(server: SocketAddr, name: &str, qtype: u16, id: u16) -> Result<(Vec<IpAddr>, u32), String> {
    let mut question = parse_name(name).map_err(|error| format!("was not asked: {error}"))?;
    question.extend_from_slice(&qtype.to_be_bytes());
    question.extend_from_slice(&1u16.to_be_bytes());
    let mut query = Vec::new();
    let parts = UpstreamQuery {
        id,
        question: &question,
        rd: true,
        cd: false,
        dnssec_ok: false,
        udp_size: Some(forebay_dns_core::wire::UDP_LEN_DEFAULT),
        options: &[],
    };
    write_query(&mut query, &parts);
    let mut finding = None;
    for _ in 0..TRIES {
        match tokio::time::timeout(TRY_TIMEOUT, over_udp(server, &query, id, &question)).await {
            Ok(Ok(Finding::Truncated)) => {
                let stream = tokio::time::timeout(TRY_TIMEOUT, over_tcp(server, &query, id, &question)).await;
                finding = Some(stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
                break;
            }
            Ok(answer) => {
                finding = Some(answer);
                break;
            }
            Err(_) => {}
        }
    }
    match finding {
        Some(Ok(Finding::Addresses { list, ttl })) => Ok((list, ttl)),
        Some(Ok(Finding::NoName)) => Err("says that there is no such name".to_owned()),
        Some(Ok(Finding::Failed { rcode })) => Err(format!("answers with response code {rcode}")),
        Some(Ok(Finding::Truncated | Finding::Unfit)) => Err("answers something else".to_owned()),
        Some(Err(error)) => Err(format!("cannot be asked: {error}")),
        None => Err("does not answer".to_owned()),
    }
}

async fn over_udp(server: SocketAddr, query: &[u8], id: u16, question: &[u8]) -> io::Result<Finding> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // What fits nothing may be forged: the true answer is still waited for (RFC 5452 §9.1).
        match read_addresses(&buffer[..length], id, question, &mut Scan::new()) {
            Finding::Unfit => {}
            finding => return Ok(finding),
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8], id: u16, question: &[u8]) -> io::Result<Finding> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    Ok(read_addresses(&answer, id, question, &mut Scan::new()))
}

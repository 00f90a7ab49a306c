//! A list in DNS: the addresses of a name, or the SRV records of a service (RFC 2782).
//!
//! A stub of its own instead of the system's `getaddrinfo`, which knows neither SRV nor how long an answer holds.

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use domain::base::iana::{Class, Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, ToName};
use domain::rdata::{A, Aaaa, Srv};
use forebay_core::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::{Feed, Found, Source};
use crate::settings::{BackendAddress, DnsConfig, DnsQuestion};

/// How long one try to ask a server may take.
const TRY_TIMEOUT: Duration = Duration::from_millis(1500);

/// Tries with one server: datagrams may get lost.
const TRIES: u32 = 2;

/// The longest pause after a failure: a list that cannot be had is asked for at least so often.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What fits into a datagram on any path (DNS flag day 2020).
const UDP_BYTES: u16 = 1232;

/// A hosts file that is longer is taken for a mistake.
const HOSTS_BYTES_MAX: u64 = 4 << 20;

/// Targets of a service that are looked at. More is no service that this proxy should stand in front of.
const TARGETS_MAX: usize = 256;

type Answer = Message<Vec<u8>>;
type Host = Name<Vec<u8>>;

/// What DNS says, and for how long.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    list: Vec<Found>,
    ttl: Duration,
}

/// Follows DNS for ever.
pub(super) async fn follow(config: &DnsConfig, feed: &Feed) {
    let mut rng = Rng::new(u64::from_ne_bytes(random()));
    let mut failed = 0;
    loop {
        let pause = match resolve(config).await {
            Ok(said) => {
                failed = 0;
                feed.offer(Source::Dns, said.list);
                said.ttl.clamp(config.ttl_min, config.ttl_max)
            }
            Err(problem) => {
                failed += 1;
                feed.failed(Source::Dns, &problem);
                let longest = Duration::from_secs(1 << failed.min(5)).min(PAUSE_MAX).max(config.ttl_min);
                rng.between(longest / 2, longest)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Looks into the hosts file, then asks the servers in turn, until one knows.
async fn resolve(config: &DnsConfig) -> Result<Said, String> {
    let hosts = Hosts::read(config.hosts.as_deref());
    if let DnsQuestion::Addresses { name, port } = &config.question
        && let Some(said) = hosts.said(name, *port)
    {
        return Ok(said);
    }
    let mut problem = String::new();
    for &server in &config.servers {
        let asked = match &config.question {
            DnsQuestion::Addresses { name, port } => match host(name) {
                Ok(name) => addresses(server, &name, *port).await,
                Err(problem) => Err(problem),
            },
            DnsQuestion::Services { name } => match host(name) {
                Ok(name) => services(server, &name, &hosts).await,
                Err(problem) => Err(problem),
            },
        };
        match asked {
            Ok(said) => return Ok(said),
            Err(error) => problem = error,
        }
    }
    Err(problem)
}

/// What a hosts file says (hosts(5)).
struct Hosts(String);

impl Hosts {
    /// Reads the file. One that cannot be read, or is too long, says nothing.
    fn read(path: Option<&Path>) -> Self {
        let mut bytes = Vec::new();
        let read = path.map(|path| File::open(path)?.take(HOSTS_BYTES_MAX + 1).read_to_end(&mut bytes));
        if !matches!(read, Some(Ok(length)) if length as u64 <= HOSTS_BYTES_MAX) {
            bytes.clear();
        }
        Self(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the addresses of a name, in any case and with or without the dot at its end.
    fn ips(&self, name: &str) -> Vec<IpAddr> {
        let bare = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let name = bare(name);
        let line = |line: &str| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|word| bare(word) == name).then_some(ip)
        };
        self.0.lines().filter_map(line).collect()
    }

    /// What the file says of a name, if it does. It holds until the next look.
    fn said(&self, name: &str, port: u16) -> Option<Said> {
        let ips = self.ips(name);
        let found = |ip: &IpAddr| Found::plain(SocketAddr::new(*ip, port).into());
        (!ips.is_empty()).then(|| Said { list: ips.iter().map(found).collect(), ttl: Duration::ZERO })
    }
}

fn host(text: &str) -> Result<Host, String> {
    text.parse().map_err(|error| format!("`{text}` cannot be asked for: {error}"))
}

async fn addresses(server: SocketAddr, name: &Host, port: u16) -> Result<Said, String> {
    let (four, six) = tokio::join!(ask(server, name, Rtype::A), ask(server, name, Rtype::AAAA));
    let (four, six) = match (four, six) {
        (Err(problem), Err(_)) => return Err(problem),
        (four, six) => (four.ok(), six.ok()),
    };
    let answers = [four, six];
    let answers = || answers.iter().flatten();
    let ips: Vec<IpAddr> = answers().flat_map(|answer| ips(answer, None)).collect();
    // A server that fails for one kind may hide backends: its word alone is not that there are none.
    if ips.is_empty() && answers().count() < 2 {
        return Err(format!("{server} does not say which addresses {name} has"));
    }
    let list = ips.iter().map(|ip| Found::plain(BackendAddress::from(SocketAddr::new(*ip, port)))).collect();
    // An answer without records says nothing of how long it holds.
    Ok(Said { list, ttl: answers().filter_map(ttl).min().unwrap_or_default() })
}

async fn services(server: SocketAddr, name: &Host, hosts: &Hosts) -> Result<Said, String> {
    let answer = ask(server, name, Rtype::SRV).await?;
    let mut said = Said { list: Vec::new(), ttl: ttl(&answer).unwrap_or_default() };
    for (priority, weight, port, target) in targets(&answer).into_iter().take(TARGETS_MAX) {
        // The service is decidedly not available there (RFC 2782).
        if target.is_root() {
            continue;
        }
        let mut ips = hosts.ips(&target.to_string());
        if ips.is_empty() {
            // The server may have said already where its targets are.
            ips = self::ips(&answer, Some(&target));
        }
        if ips.is_empty() {
            let found = addresses(server, &target, port).await?;
            if !found.list.is_empty() {
                said.ttl = said.ttl.min(found.ttl);
            }
            ips = found.list.iter().map(|found| found.backend.address.ip()).collect();
        }
        said.list.extend(ips.into_iter().map(|ip| Found {
            backend: SocketAddr::new(ip, port).into(),
            priority,
            weight,
        }));
    }
    Ok(said)
}

/// Takes the addresses out of an answer: those of the name that was asked for, at the end of its aliases, or those of a
/// target that came along.
fn ips(answer: &Answer, target: Option<&Host>) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let (section, owner) = match target {
        None => (answer.answer(), answer.canonical_name().map(|name| name.to_name::<Vec<u8>>())),
        Some(target) => (answer.additional(), Some(target.clone())),
    };
    let (Ok(section), Some(owner)) = (section, owner) else { return found };
    for record in section.limit_to::<A>().flatten() {
        if record.owner().name_eq(&owner) {
            found.push(record.data().addr().into());
        }
    }
    for record in section.limit_to::<Aaaa>().flatten() {
        if record.owner().name_eq(&owner) {
            found.push(record.data().addr().into());
        }
    }
    found
}

fn targets(answer: &Answer) -> Vec<(u16, u16, u16, Host)> {
    let (Ok(section), Some(owner)) = (answer.answer(), answer.canonical_name()) else { return Vec::new() };
    let ours = section.limit_to::<Srv<_>>().flatten().filter(|record| record.owner().name_eq(&owner));
    ours.map(|record| {
        let data = record.data();
        (data.priority(), data.weight(), data.port(), data.target().to_name())
    })
    .collect()
}

/// For how long an answer holds: as long as the record of it that ends first. `None` if it has none.
fn ttl(answer: &Answer) -> Option<Duration> {
    let records = answer.answer().ok()?.flatten();
    records.map(|record| Duration::from_secs(record.ttl().as_secs().into())).min()
}

/// Asks one server one question.
async fn ask(server: SocketAddr, name: &Host, rtype: Rtype) -> Result<Answer, String> {
    let id = u16::from_ne_bytes(random());
    let query = query(id, name, rtype).map_err(|()| format!("{name} is too long to be asked for"))?;
    let mut asked = Err(format!("{server} does not answer"));
    for _ in 0..TRIES {
        let Ok(answer) = tokio::time::timeout(TRY_TIMEOUT, over_udp(server, &query, id, name, rtype)).await
        else {
            continue;
        };
        asked = match answer {
            Ok(answer) if answer.header().tc() => {
                match tokio::time::timeout(TRY_TIMEOUT, over_tcp(server, &query, id, name, rtype)).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Ok(Err(error)) => Err(format!("{server} cannot be asked over TCP: {error}")),
                    Err(_) => Err(format!("{server} does not answer over TCP")),
                }
            }
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("{server} cannot be asked: {error}")),
        };
        break;
    }
    let answer = asked?;
    match answer.header().rcode() {
        Rcode::NOERROR | Rcode::NXDOMAIN => Ok(answer),
        rcode => Err(format!("{server} answers {rcode} to {name}")),
    }
}

fn query(id: u16, name: &Host, rtype: Rtype) -> Result<Vec<u8>, ()> {
    let mut message = MessageBuilder::new_vec();
    message.header_mut().set_id(id);
    message.header_mut().set_rd(true);
    let mut message = message.question();
    message.push((name, rtype)).map_err(drop)?;
    let mut message = message.additional();
    message
        .opt(|opt| {
            opt.set_udp_payload_size(UDP_BYTES);
            Ok(())
        })
        .map_err(drop)?;
    Ok(message.finish())
}

/// Reads a message, if it is the answer to this question.
fn read(bytes: &[u8], id: u16, name: &Host, rtype: Rtype) -> Option<Answer> {
    let message = Message::from_octets(bytes.to_vec()).ok()?;
    let fits = {
        let question = message.sole_question().ok()?;
        let header = message.header();
        header.qr()
            && header.id() == id
            && question.qname().name_eq(name)
            && question.qtype() == rtype
            && question.qclass() == Class::IN
    };
    fits.then_some(message)
}

async fn over_udp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    name: &Host,
    rtype: Rtype,
) -> io::Result<Answer> {
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
        if let Some(answer) = read(&buffer[..length], id, name, rtype) {
            return Ok(answer);
        }
    }
}

async fn over_tcp(
    server: SocketAddr,
    query: &[u8],
    id: u16,
    name: &Host,
    rtype: Rtype,
) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(server).await?;
    let mut framed = (query.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(query);
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    read(&bytes, id, name, rtype).ok_or_else(|| io::Error::other("it answers something else"))
}

/// Unguessable as far as the system has randomness.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness an answer is still bound to its port and its question.
    let _ = getrandom::fill(&mut bytes);
    bytes
}

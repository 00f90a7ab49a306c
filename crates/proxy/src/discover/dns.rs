//! A list in DNS: the addresses of a name, or the SRV records of a service (RFC 2782).
//!
//! A stub of its own instead of the system's `getaddrinfo`, which knows neither SRV nor how long an answer holds.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// Asks the servers in turn, until one knows.
async fn resolve(config: &DnsConfig) -> Result<Said, String> {
    let mut problem = String::new();
    for &server in &config.servers {
        let asked = match &config.question {
            DnsQuestion::Addresses { name, port } => match host(name) {
                Ok(name) => addresses(server, &name, *port).await,
                Err(problem) => Err(problem),
            },
            DnsQuestion::Services { name } => match host(name) {
                Ok(name) => services(server, &name).await,
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

async fn services(server: SocketAddr, name: &Host) -> Result<Said, String> {
    let answer = ask(server, name, Rtype::SRV).await?;
    let mut said = Said { list: Vec::new(), ttl: ttl(&answer).unwrap_or_default() };
    for (priority, weight, port, target) in targets(&answer).into_iter().take(TARGETS_MAX) {
        // The service is decidedly not available there (RFC 2782).
        if target.is_root() {
            continue;
        }
        // The server may have said already where its targets are.
        let mut ips = ips(&answer, Some(&target));
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

//! Upstreams that are given by name.

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{Scheme, Settings, TlsSettings};
use http2::{Act, Http2, http2};
use support::log::Log;
use support::tls::Authority;
use support::{PATIENCE, Udp, address, rcode, run, settings};

/// What a server of names says.
#[derive(Clone, Default)]
struct Book {
    addresses: Vec<Ipv4Addr>,
    truncated: bool,
    silent: bool,
    rcode: u8,
}

/// A plain DNS server that knows where everything is.
struct Names {
    address: SocketAddr,
    book: Arc<Mutex<Book>>,
    udp: Arc<AtomicU32>,
    tcp: Arc<AtomicU32>,
}

fn names(book: Book) -> Names {
    // A port that is free for both.
    let (udp, tcp) = (0..50)
        .find_map(|_| {
            let udp = UdpSocket::bind("127.0.0.1:0").ok()?;
            let tcp = TcpListener::bind(udp.local_addr().ok()?).ok()?;
            Some((udp, tcp))
        })
        .expect("a port");
    let address = udp.local_addr().expect("an address");
    let book = Arc::new(Mutex::new(book));
    let names = Names { address, book, udp: Arc::default(), tcp: Arc::default() };
    // Both end with the test's process.
    let (known, asked) = (Arc::clone(&names.book), Arc::clone(&names.udp));
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, client)) = udp.recv_from(&mut query) {
            asked.fetch_add(1, SeqCst);
            let book = known.lock().expect("whole").clone();
            if !book.silent {
                let _ = udp.send_to(&say(&book, &query[..length], book.truncated), client);
            }
        }
    });
    let (known, asked) = (Arc::clone(&names.book), Arc::clone(&names.tcp));
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            asked.fetch_add(1, SeqCst);
            let mut length = [0; 2];
            if stream.read_exact(&mut length).is_err() {
                continue;
            }
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut query).expect("a query");
            let reply = say(&known.lock().expect("whole"), &query, false);
            let _ = stream.write_all(&[&(reply.len() as u16).to_be_bytes(), &reply[..]].concat());
        }
    });
    names
}

/// The answer to a question for addresses; of IPv6 there are none.
fn say(book: &Book, query: &[u8], truncated: bool) -> Vec<u8> {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let is_a = query[end + 1..end + 3] == [0, 1];
    let mut reply = query[..end + 5].to_vec();
    let list: &[Ipv4Addr] = if is_a && !truncated && book.rcode == 0 { &book.addresses } else { &[] };
    reply[2..12].copy_from_slice(&[0x81, 0x80 | book.rcode, 0, 1, 0, list.len() as u8, 0, 0, 0, 0]);
    if truncated {
        reply[2] |= 2;
    }
    for address in list {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 0, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    reply
}

fn at(addresses: &[[u8; 4]]) -> Book {
    Book { addresses: addresses.iter().map(|octets| Ipv4Addr::from(*octets)).collect(), ..Book::default() }
}

const HERE: [u8; 4] = [127, 0, 0, 1];

fn peer(authority: &Authority, name: &str) -> Http2 {
    http2(&authority.issue("upstream", &[name]), None, |asked| vec![Act::Answer(asked)])
}

/// A forwarder that asks `peer` by this name.
fn by_name(authority: &Authority, name: &str, peer: &Http2, names: &[&Names]) -> Settings {
    let port = peer.address.port();
    let upstream = format!("https://{name}:{port}/dns-query?ca={}", authority.ca().display());
    Settings {
        upstreams: vec![upstream],
        bootstrap: names.iter().map(|names| names.address.to_string()).collect(),
        ..settings(&[])
    }
}

#[test]
fn an_upstream_given_by_name_is_found_and_asked() {
    let authority = Authority::new();
    let peer = peer(&authority, "found.test");
    let names = names(at(&[HERE]));
    let server = run(&by_name(&authority, "found.test", &peer, &[&names]));
    let client = Udp::to(server.address);
    for n in 0..20 {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name), "the first one waits for the address");
    }
    assert_eq!(names.udp.load(SeqCst), 2, "both families were asked for, once");
}

#[test]
fn a_server_starts_without_knowing_where_its_upstream_is_and_finds_it_later() {
    let log = Log::new();
    let authority = Authority::new();
    let peer = peer(&authority, "later.test");
    let names = names(Book { silent: true, ..at(&[HERE]) });
    let began = Instant::now();
    let server = run(&by_name(&authority, "later.test", &peer, &[&names]));
    assert!(began.elapsed() < Duration::from_secs(2), "it waits for nobody");
    let client = Udp::to(server.address);
    assert_eq!(rcode(&client.ask("early.test")), 2);
    log.until("does not answer");
    assert!(log.text().contains("later.test"), "{}", log.text());
    names.book.lock().expect("whole").silent = false;
    let end = Instant::now() + PATIENCE;
    while rcode(&client.ask("late.test")) != 0 {
        assert!(Instant::now() < end, "it is asked for again");
    }
    let stats = server.stats();
    assert_eq!(stats.counters.failed_upstream, 0, "nobody is to blame but us: {:?}", stats.counters);
}

#[test]
fn a_name_that_does_not_exist_is_told_in_the_log() {
    let log = Log::new();
    let authority = Authority::new();
    let peer = peer(&authority, "nowhere.test");
    let names = names(Book { rcode: 3, ..Book::default() });
    let _server = run(&by_name(&authority, "nowhere.test", &peer, &[&names]));
    log.until("nowhere.test");
    log.until("says that there is no such name");
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let authority = Authority::new();
    let peer = peer(&authority, "long.test");
    let names = names(Book { truncated: true, ..at(&[HERE]) });
    let server = run(&by_name(&authority, "long.test", &peer, &[&names]));
    assert_eq!(address(&Udp::to(server.address).ask("a.test")), expected_a("a.test"));
    assert_eq!(names.tcp.load(SeqCst), 2);
}

#[test]
fn the_next_server_is_asked_when_one_does_not_know() {
    let authority = Authority::new();
    let peer = peer(&authority, "second.test");
    let (first, second) = (names(Book { rcode: 2, ..Book::default() }), names(at(&[HERE])));
    let server = run(&by_name(&authority, "second.test", &peer, &[&first, &second]));
    assert_eq!(address(&Udp::to(server.address).ask("a.test")), expected_a("a.test"));
    assert!(first.udp.load(SeqCst) >= 1);
}

#[test]
fn all_addresses_are_tried_and_the_one_that_works_is_kept() {
    let authority = Authority::new();
    let peer = peer(&authority, "many.test");
    // Nobody listens on the first ones.
    let names = names(at(&[[127, 0, 0, 99], [127, 0, 0, 98], HERE]));
    let server = run(&by_name(&authority, "many.test", &peer, &[&names]));
    let client = Udp::to(server.address);
    for n in 0..20 {
        let name = format!("n{n}.test");
        assert_eq!(address(&client.ask(&name)), expected_a(&name));
    }
    assert_eq!(server.stats().counters.retries, 0, "one dial has found it");
}

#[test]
fn addresses_in_the_upstream_itself_need_nobody_to_ask() {
    let authority = Authority::new();
    let pair = authority.issue("dns", &["fixed.test"]);
    let origin = Responder::builder().script(Script::default()).spawn().expect("a free port");
    let front = run(&Settings {
        listen: vec!["tls://127.0.0.1:0".to_owned(), "https://127.0.0.1:0/q".to_owned()],
        tls: TlsSettings { certificate: pair.certificate, key: pair.key },
        ..settings(&[&origin])
    });
    let ca = authority.ca();
    let (tls, https) = (front.at(Scheme::Tls).port(), front.at(Scheme::Https).port());
    for upstream in [format!("tls://fixed.test:{tls}?"), format!("https://fixed.test:{https}/q?")] {
        let upstream = format!("{upstream}bootstrap=127.0.0.99,127.0.0.1&ca={}", ca.display());
        let server = run(&Settings { upstreams: vec![upstream], ..settings(&[]) });
        assert_eq!(address(&Udp::to(server.address).ask("a.test")), expected_a("a.test"));
    }
}

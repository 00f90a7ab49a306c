//! Sources and what becomes of their lists.

use std::fs;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, Ttl};
use domain::rdata::{A, Aaaa, Cname, Srv};

use super::*;
use crate::settings::DiscoverySettings;

/// Longer than anything here takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(20);

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn backends(texts: &[&str]) -> Vec<BackendAddress> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn start(settings: &DiscoverySettings, seeds: &[&str]) -> Result<Discovery, DiscoverError> {
    Discovery::start("test", &settings.valid(&[]).unwrap().unwrap(), &backends(seeds), &[])
}

fn texts(list: &[Found]) -> Vec<String> {
    list.iter().map(|found| found.backend.to_string()).collect()
}

fn known(discovery: &Discovery) -> Vec<String> {
    texts(&discovery.list.borrow().endpoints)
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Replaces a file as careful programs do.
fn rename(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    fs::write(&beside, text).unwrap();
    fs::rename(beside, path).unwrap();
}

#[test]
fn a_list_is_read_in_both_formats() {
    for text in [
        r#"{"endpoints":["192.0.2.1:6443","[2001:db8::1]:6443"]}"#,
        "\n {\"endpoints\": [\n\"192.0.2.1:6443\", \"[2001:db8::1]:6443\"], \"other\": 1}\n",
        "# ours\n192.0.2.1:6443\n\n  [2001:db8::1]:6443 # six\n",
    ] {
        assert_eq!(texts(&list::parse(text).unwrap()), ["192.0.2.1:6443", "[2001:db8::1]:6443"], "{text}");
    }
    for empty in ["", "\n# nothing\n", r#"{"endpoints":[]}"#] {
        assert_eq!(list::parse(empty).unwrap(), []);
    }
}

#[test]
fn a_broken_list_names_the_place() {
    for (text, words) in [
        (r#"{"endpoints":["192.0.2.1:6443""#, &["line 1", "{\"endpoints\""][..]),
        ("{\"endpoints\":\n 7}", &["line 2", "{\"endpoints\""]),
        (r#"{"endpoint":[]}"#, &["endpoints"]),
        (r#"["192.0.2.1:6443"]"#, &["{\"endpoints\""]),
        (r#"{"endpoints":["192.0.2.1:1","192.0.2.1"]}"#, &["endpoint 2 of 2", "`192.0.2.1`", "port"]),
        ("192.0.2.1:1\nnonsense\n", &["line 2", "`nonsense`", "port"]),
    ] {
        let problem = list::parse(text).unwrap_err();
        assert!(words.iter().all(|word| problem.contains(word)), "{text}: {problem}");
    }
    let folder = folder();
    let missing = list::read(&folder.path().join("x.json")).unwrap_err();
    assert!(
        missing.contains("x.json") && missing.contains("no such file") && missing.contains("write"),
        "{missing}"
    );
    let long = folder.path().join("long");
    fs::write(&long, vec![b'#'; 2 << 20]).unwrap();
    assert!(list::read(&long).unwrap_err().contains("longer"));
    fs::write(&long, [0xff, 0xfe]).unwrap();
    assert!(list::read(&long).unwrap_err().contains("no text"));
}

#[test]
fn a_saved_list_is_sorted_private_and_whole() {
    let folder = folder();
    let path = folder.path().join("endpoints.json");
    fs::write(&path, "old").unwrap();
    let list: Vec<_> = backends(&["192.0.2.2:1", "192.0.2.1:1"]).into_iter().map(Found::plain).collect();
    list::write(&path, &list).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"endpoints":["192.0.2.1:1","192.0.2.2:1"]}"#);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    let nowhere = folder.path().join("no/such/folder/x");
    assert!(list::write(&nowhere, &list).is_err());
}

#[test]
fn a_renamed_file_is_seen_within_two_seconds() {
    let folder = folder();
    let path = folder.path().join("endpoints.json");
    fs::write(&path, r#"{"endpoints":["192.0.2.1:1"]}"#).unwrap();
    let settings = DiscoverySettings { file: path.clone(), ..DiscoverySettings::default() };
    let discovery = start(&settings, &[]).unwrap();
    assert_eq!(known(&discovery), ["192.0.2.1:1"]);
    let mut list = discovery.list();
    assert_eq!(list.borrow_and_update().source, Source::File);
    let began = Instant::now();
    rename(&path, r#"{"endpoints":["192.0.2.2:1","192.0.2.1:1"]}"#);
    until("the new list", || known(&discovery) == ["192.0.2.1:1", "192.0.2.2:1"]);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(list.has_changed().unwrap());
    rename(&path, "192.0.2.3:1\n");
    until("lines too", || known(&discovery) == ["192.0.2.3:1"]);
    assert_eq!((discovery.stats().changes, discovery.stats().failures), (2, 0));
}

#[test]
fn a_file_that_is_written_bit_by_bit_is_read_when_it_stands_still() {
    use std::io::Write;
    let folder = folder();
    let path = folder.path().join("endpoints");
    fs::write(&path, "192.0.2.100:1").unwrap();
    let settings = DiscoverySettings { file: path.clone(), ..DiscoverySettings::default() };
    let discovery = start(&settings, &[]).unwrap();
    let mut file = fs::File::create(&path).unwrap();
    for n in 1..=30 {
        writeln!(file, "192.0.2.{n}:1").unwrap();
        std::thread::sleep(Duration::from_millis(30));
    }
    assert_eq!(discovery.stats().changes, 0, "a part of it is no list");
    until("all of it", || known(&discovery).len() == 30);
    assert_eq!((discovery.stats().changes, discovery.stats().failures), (1, 0));
}

#[test]
fn a_file_that_is_emptied_broken_or_gone_keeps_the_last_good_list() {
    let folder = folder();
    let path = folder.path().join("endpoints.json");
    fs::write(&path, "192.0.2.1:1").unwrap();
    let settings = DiscoverySettings { file: path.clone(), ..DiscoverySettings::default() };
    let discovery = start(&settings, &[]).unwrap();
    fs::write(&path, "").unwrap();
    until("empty", || discovery.stats().empty == 1);
    rename(&path, r#"{"endpoints":[]}"#);
    until("empty again", || discovery.stats().empty == 2);
    rename(&path, r#"{"endpoints":["192.0.2.1"#);
    until("broken", || discovery.stats().failures == 1);
    assert!(!discovery.stats().is_fresh);
    fs::remove_file(&path).unwrap();
    until("gone", || discovery.stats().failures == 2);
    assert_eq!(known(&discovery), ["192.0.2.1:1"]);
    rename(&path, "192.0.2.2:1");
    until("back", || known(&discovery) == ["192.0.2.2:1"]);
    assert!(discovery.stats().is_fresh);
}

#[test]
fn an_empty_list_is_believed_if_that_is_allowed() {
    let folder = folder();
    let path = folder.path().join("endpoints.json");
    fs::write(&path, "192.0.2.1:1").unwrap();
    let settings =
        DiscoverySettings { file: path.clone(), allow_empty: true, ..DiscoverySettings::default() };
    let discovery = start(&settings, &[]).unwrap();
    rename(&path, "");
    until("nothing left", || known(&discovery).is_empty());
}

#[test]
fn a_file_that_is_the_only_source_must_be_there_at_the_start() {
    let folder = folder();
    let path = folder.path().join("endpoints.json");
    let settings = DiscoverySettings { file: path.clone(), ..DiscoverySettings::default() };
    let problem = start(&settings, &[]).unwrap_err().to_string();
    assert!(problem.contains("endpoints.json") && problem.contains("no such file"), "{problem}");
    fs::write(&path, r#"{"endpoints":[]}"#).unwrap();
    assert!(start(&settings, &[]).unwrap_err().to_string().contains("no endpoint in it"));
    assert_eq!(known(&start(&settings, &["192.0.2.9:1"]).unwrap()), ["192.0.2.9:1"], "but for named ones");
}

#[test]
fn an_entry_that_leads_back_to_the_proxy_is_left_out() {
    let folder = folder();
    let path = folder.path().join("endpoints");
    fs::write(&path, "192.0.2.1:1").unwrap();
    let config = DiscoverySettings { file: path, ..DiscoverySettings::default() };
    let config = config.valid(&[]).unwrap().unwrap();
    let own = crate::ProxyConfig::new(
        &crate::Settings {
            backends: vec!["192.0.2.1:1".to_owned()],
            listen: vec![":6443".to_owned()],
            ..crate::Settings::default()
        },
        1,
    );
    let feed = Feed::new("test", &config, Vec::new(), own.unwrap().listen().to_vec());
    let list = ["127.0.0.1:6443", "192.0.2.2:6443"].map(|text| Found::plain(text.parse().unwrap()));
    feed.offer(Source::File, list.to_vec());
    assert_eq!(texts(&feed.current()), ["192.0.2.2:6443"]);
}

/// What a scripted DNS server has.
#[derive(Clone, Default)]
struct Zone {
    addresses: Vec<(&'static str, IpAddr)>,
    aliases: Vec<(&'static str, &'static str)>,
    services: Vec<(&'static str, u16, u16, u16, &'static str)>,
    ttl: u32,
    rcode: Option<Rcode>,
    /// Nothing fits into a datagram.
    is_long: bool,
    /// Targets of services come with their addresses.
    has_additional: bool,
}

/// A DNS server on loopback, over UDP and TCP, which ends when it is dropped.
struct Dns {
    address: std::net::SocketAddr,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Dns {
    fn start(zone: Zone) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
            if let Ok(tcp) = std::net::TcpListener::bind(udp.local_addr().unwrap()) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(zone));
        let (asked, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        tcp.set_nonblocking(true).unwrap();
        let over_udp = {
            let (zone, asked, stop) = (Arc::clone(&zone), Arc::clone(&asked), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut buffer = [0; 2048];
                while !stop.load(Relaxed) {
                    let Ok((length, peer)) = udp.recv_from(&mut buffer) else { continue };
                    asked.fetch_add(1, Relaxed);
                    let mut answer = zone.lock().unwrap().answer(&buffer[..length]);
                    if zone.lock().unwrap().is_long {
                        answer = truncated(&buffer[..length]);
                    }
                    // A forged one first: another id.
                    let mut forged = answer.clone();
                    forged[0] ^= 0xff;
                    udp.send_to(&forged, peer).unwrap();
                    udp.send_to(&answer, peer).unwrap();
                }
            })
        };
        let over_tcp = {
            let (zone, stop) = (Arc::clone(&zone), Arc::clone(&stop));
            std::thread::spawn(move || {
                use std::io::{Read, Write};
                while !stop.load(Relaxed) {
                    let Ok((mut stream, _)) = tcp.accept() else {
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    };
                    stream.set_nonblocking(false).unwrap();
                    let mut length = [0; 2];
                    stream.read_exact(&mut length).unwrap();
                    let mut query = vec![0; u16::from_be_bytes(length).into()];
                    stream.read_exact(&mut query).unwrap();
                    let answer = zone.lock().unwrap().answer(&query);
                    stream.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                    stream.write_all(&answer).unwrap();
                }
            })
        };
        Self { address, zone, asked, stop, threads: vec![over_udp, over_tcp] }
    }

    fn settings(&self) -> DiscoverySettings {
        DiscoverySettings { servers: vec![self.address.to_string()], ..DiscoverySettings::default() }
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn truncated(query: &[u8]) -> Vec<u8> {
    let query = Message::from_octets(query).unwrap();
    let mut answer = MessageBuilder::new_vec().start_answer(&query, Rcode::NOERROR).unwrap();
    answer.header_mut().set_tc(true);
    answer.finish()
}

impl Zone {
    fn answer(&self, query: &[u8]) -> Vec<u8> {
        let query = Message::from_octets(query).unwrap();
        let question = query.sole_question().unwrap();
        let rcode = self.rcode.unwrap_or(Rcode::NOERROR);
        let mut answer = MessageBuilder::new_vec().start_answer(&query, rcode).unwrap();
        let ttl = Ttl::from_secs(self.ttl);
        let name = |text: &str| text.parse::<Name<Vec<u8>>>().unwrap();
        let mut at = question.qname().to_string();
        while let Some((from, to)) = self.aliases.iter().find(|(from, _)| *from == at) {
            answer.push((name(from), ttl, Cname::new(name(to)))).unwrap();
            (*to).clone_into(&mut at);
        }
        for (owner, ip) in self.addresses.iter().filter(|(owner, _)| *owner == at) {
            match (ip, question.qtype()) {
                (IpAddr::V4(ip), Rtype::A) => answer.push((name(owner), ttl, A::new(*ip))).unwrap(),
                (IpAddr::V6(ip), Rtype::AAAA) => answer.push((name(owner), ttl, Aaaa::new(*ip))).unwrap(),
                _ => {}
            }
        }
        let services =
            self.services.iter().filter(|service| service.0 == at && question.qtype() == Rtype::SRV);
        for (owner, priority, weight, port, target) in services.clone() {
            answer.push((name(owner), ttl, Srv::new(*priority, *weight, *port, name(target)))).unwrap();
        }
        let mut answer = answer.additional();
        if self.has_additional {
            for service in services {
                for (owner, ip) in self.addresses.iter().filter(|(owner, _)| *owner == service.4) {
                    if let IpAddr::V4(ip) = ip {
                        answer.push((name(owner), ttl, A::new(*ip))).unwrap();
                    }
                }
            }
        }
        answer.finish()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn addresses_of_a_name_are_found_behind_its_aliases_and_asked_for_again_when_they_end() {
    let dns = Dns::start(Zone {
        addresses: vec![
            ("end.test", ip("192.0.2.1")),
            ("end.test", ip("2001:db8::1")),
            ("other.test", ip("192.0.2.9")),
        ],
        aliases: vec![("api.test", "mid.test"), ("mid.test", "end.test")],
        ttl: 1,
        ..Zone::default()
    });
    let settings = DiscoverySettings { dns: "api.test:6443".to_owned(), ..dns.settings() };
    let discovery = start(&settings, &[]).unwrap();
    until("both families", || known(&discovery) == ["192.0.2.1:6443", "[2001:db8::1]:6443"]);
    dns.zone.lock().unwrap().addresses[0].1 = ip("192.0.2.7");
    until("the new address", || known(&discovery) == ["192.0.2.7:6443", "[2001:db8::1]:6443"]);
    dns.zone.lock().unwrap().rcode = Some(Rcode::SERVFAIL);
    until("a failure", || discovery.stats().failures > 0);
    dns.zone.lock().unwrap().rcode = None;
    dns.zone.lock().unwrap().addresses.clear();
    until("no address", || discovery.stats().empty > 0);
    assert_eq!(known(&discovery), ["192.0.2.7:6443", "[2001:db8::1]:6443"], "the last good list stays");
}

#[test]
fn a_name_in_the_hosts_file_is_not_asked_for_and_targets_of_services_are_looked_up_there() {
    let folder = folder();
    let path = folder.path().join("hosts");
    let text = "# ours\n192.0.2.8 other API.test. # two\n2001:db8::8\tapi.test\nnonsense\n192.0.2.7\n192.0.2.6 b.test\n";
    fs::write(&path, text).unwrap();
    let dns = Dns::start(Zone {
        addresses: vec![("api.test", ip("192.0.2.1")), ("b.test", ip("192.0.2.2"))],
        services: vec![("_https._tcp.test", 0, 0, 2, "b.test")],
        ttl: 60,
        ..Zone::default()
    });
    let named = |hosts: &Path| DiscoverySettings {
        dns: "api.test:1".to_owned(),
        hosts: hosts.to_owned(),
        ..dns.settings()
    };
    let discovery = start(&named(&path), &[]).unwrap();
    until("what the file says", || known(&discovery) == ["192.0.2.8:1", "[2001:db8::8]:1"]);
    assert_eq!(dns.asked.load(Relaxed), 0);
    rename(&path, "192.0.2.9 api.test\n192.0.2.6 b.test\n");
    until("what it says now", || known(&discovery) == ["192.0.2.9:1"]);
    for hosts in [Path::new(""), &folder.path().join("none")] {
        let discovery = start(&named(hosts), &[]).unwrap();
        until("what DNS says", || known(&discovery) == ["192.0.2.1:1"]);
    }
    let service = |hosts| DiscoverySettings { srv: "_https._tcp.test".to_owned(), hosts, ..dns.settings() };
    for (hosts, wanted) in [(path, "192.0.2.6:2"), (PathBuf::new(), "192.0.2.2:2")] {
        let discovery = start(&service(hosts), &[]).unwrap();
        until("the target", || known(&discovery) == [wanted]);
    }
}

#[test]
fn answers_that_end_at_once_are_asked_for_as_often_as_the_least_time_says() {
    let zone = Zone { addresses: vec![("api.test", ip("192.0.2.1"))], ttl: 0, ..Zone::default() };
    let (often, seldom) = (Dns::start(zone.clone()), Dns::start(zone));
    let name = "api.test:1".to_owned();
    let least = "5s".parse().unwrap();
    let _all = [
        start(&DiscoverySettings { dns: name.clone(), ..often.settings() }, &[]).unwrap(),
        start(&DiscoverySettings { dns: name, ttl_min: least, ..seldom.settings() }, &[]).unwrap(),
    ];
    until("three rounds", || often.asked.load(Relaxed) >= 6);
    assert_eq!(seldom.asked.load(Relaxed), 2);
}

/// Those that a proxy in front of `dns` sends so many clients to, with how many each.
fn served_by(dns: &Dns, backends: &[std::net::SocketAddr], balance: BalanceName, n: usize) -> Vec<usize> {
    use std::io::Read;
    let settings = crate::Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        workers: 1,
        balance,
        discovery: DiscoverySettings { srv: "_x._tcp.test".to_owned(), ..dns.settings() },
        ..crate::Settings::default()
    };
    let server = crate::start(crate::ProxyConfig::new(&settings, 1).unwrap()).unwrap();
    until("the list", || server.handle().discovered().is_some_and(|list| list.len() == backends.len()));
    until("a backend is known", || server.handle().is_ready());
    let mut served = vec![0; backends.len()];
    for _ in 0..n {
        let mut stream = std::net::TcpStream::connect(server.local_addrs()[0].address).unwrap();
        let mut name = [0];
        stream.read_exact(&mut name).unwrap();
        served[usize::from(name[0])] += 1;
    }
    served
}

#[test]
fn clients_go_to_targets_by_their_priority_and_weight() {
    use std::io::Write;
    let backends: Vec<_> = (0..3_u8)
        .map(|name| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let _ = stream.write_all(&[name]);
                }
            });
            address
        })
        .collect();
    let zone = |priorities: [u16; 3], weights: [u16; 3]| Zone {
        addresses: vec![("here.test", ip("127.0.0.1"))],
        services: (0..3)
            .map(|n| ("_x._tcp.test", priorities[n], weights[n], backends[n].port(), "here.test"))
            .collect(),
        ttl: 60,
        has_additional: true,
        ..Zone::default()
    };
    let dns = Dns::start(zone([1, 1, 1], [1, 2, 7]));
    assert_eq!(served_by(&dns, &backends, BalanceName::RoundRobin, 100), [10, 20, 70]);
    let dns = Dns::start(zone([2, 1, 1], [1, 1, 1]));
    assert_eq!(served_by(&dns, &backends, BalanceName::RoundRobin, 20), [0, 10, 10]);
    let dns = Dns::start(zone([1, 0, 2], [1, 1, 1]));
    assert_eq!(served_by(&dns, &backends, BalanceName::FirstHealthy, 20), [0, 20, 0]);
}

#[test]
fn an_answer_is_not_asked_for_before_it_ends_nor_later_than_the_cap() {
    let zone = Zone { addresses: vec![("api.test", ip("192.0.2.1"))], ttl: 3600, ..Zone::default() };
    let (long, capped) = (Dns::start(zone.clone()), Dns::start(zone.clone()));
    let short = Dns::start(Zone { ttl: 0, ..zone });
    let name = "api.test:1".to_owned();
    let second = "1s".parse().unwrap();
    let all = [
        start(&DiscoverySettings { dns: name.clone(), ..long.settings() }, &[]).unwrap(),
        start(&DiscoverySettings { dns: name.clone(), ttl_max: second, ..capped.settings() }, &[]).unwrap(),
        start(&DiscoverySettings { dns: name, ..short.settings() }, &[]).unwrap(),
    ];
    until("three rounds", || capped.asked.load(Relaxed) >= 6);
    assert_eq!(long.asked.load(Relaxed), 2, "one question for each family");
    assert!(short.asked.load(Relaxed) <= 8, "at most once a second: {}", short.asked.load(Relaxed));
    assert!(all.iter().all(|discovery| discovery.stats().changes == 1));
}

#[test]
fn services_are_found_with_their_ports_in_order_of_priority() {
    for has_additional in [true, false] {
        let dns = Dns::start(Zone {
            addresses: vec![
                ("a.test", ip("192.0.2.3")),
                ("b.test", ip("192.0.2.2")),
                ("b.test", ip("192.0.2.1")),
            ],
            services: vec![
                ("_https._tcp.test", 20, 0, 2, "b.test"),
                ("_https._tcp.test", 10, 7, 1, "a.test"),
            ],
            ttl: 60,
            has_additional,
            ..Zone::default()
        });
        let settings = DiscoverySettings { srv: "_https._tcp.test".to_owned(), ..dns.settings() };
        let discovery = start(&settings, &[]).unwrap();
        until("the targets", || known(&discovery) == ["192.0.2.3:1", "192.0.2.1:2", "192.0.2.2:2"]);
        let list = discovery.list.borrow().endpoints.clone();
        assert_eq!((list[0].priority, list[0].weight, list[1].priority), (10, 7, 20));
        assert_eq!(discovery.list.borrow().source, Source::Dns);
    }
}

#[test]
fn a_service_that_is_decidedly_not_there_has_no_backends() {
    let dns = Dns::start(Zone { services: vec![("_x._tcp.test", 0, 0, 0, ".")], ttl: 1, ..Zone::default() });
    let settings = DiscoverySettings { srv: "_x._tcp.test".to_owned(), ..dns.settings() };
    let discovery = start(&settings, &["192.0.2.1:1"]).unwrap();
    until("the answer", || discovery.stats().empty > 0);
    assert_eq!(known(&discovery), ["192.0.2.1:1"]);
}

#[test]
fn a_long_answer_comes_over_tcp_and_a_dead_server_is_passed_over() {
    let dns = Dns::start(Zone {
        addresses: (1..=200).map(|n| ("api.test", ip(&format!("192.0.2.{n}")))).collect(),
        ttl: 60,
        is_long: true,
        ..Zone::default()
    });
    // Nobody listens there: refused at once.
    let dead = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = DiscoverySettings {
        dns: "api.test:1".to_owned(),
        servers: vec![dead.to_string(), dns.address.to_string()],
        ..DiscoverySettings::default()
    };
    let discovery = start(&settings, &[]).unwrap();
    until("all of them", || known(&discovery).len() == 200);
}

#[test]
fn what_dns_said_last_is_where_the_next_start_begins() {
    let folder = folder();
    let path = folder.path().join("last.json");
    let dns = Dns::start(Zone { addresses: vec![("api.test", ip("192.0.2.1"))], ttl: 60, ..Zone::default() });
    let name = "api.test:1".to_owned();
    let settings = DiscoverySettings { dns: name, save: path.clone(), ..dns.settings() };
    drop({
        let discovery = start(&settings, &["192.0.2.5:1"]).unwrap();
        until("the answer", || known(&discovery) == ["192.0.2.1:1"]);
        until("the file", || path.exists());
        discovery
    });
    drop(dns);
    let discovery = start(&settings, &["192.0.2.5:1"]).unwrap();
    assert_eq!(known(&discovery), ["192.0.2.1:1", "192.0.2.5:1"], "beside the named ones");
    assert_eq!(discovery.stats().source, Source::Configured);
    fs::write(&path, "nonsense").unwrap();
    assert_eq!(known(&start(&settings, &["192.0.2.5:1"]).unwrap()), ["192.0.2.5:1"], "it is only a memory");
}

//! Every key of `[dns.protection]`, `[[dns.routes]]`, `[dns.local]`, `[dns.block]` and `[dns.query_log]`, changed, and
//! the difference seen on a running server.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{
    AnyName, BlockAnswerName, BlockSettings, DnsConfig, LocalSettings, ProtectionSettings, QueryLogSettings,
    RouteSettings, Settings, StartError, StrategyName, start,
};
use support::{PATIENCE, Running, Tcp, Udp, address, query, rcode, run, settings, truncated, ttl};

const A: u16 = 1;
const PTR: u16 = 12;
const TXT: u16 = 16;
const AAAA: u16 = 28;
const ANY: u16 = 255;

fn upstream() -> Responder {
    Responder::builder().script(Script::default()).spawn().expect("a free port")
}

/// A server in front of an upstream, with this in its settings.
fn served(upstream: &Responder, change: impl FnOnce(&mut Settings)) -> Running {
    let mut settings = settings(&[upstream]);
    change(&mut settings);
    run(&settings)
}

fn protected(upstream: &Responder, protection: ProtectionSettings) -> Running {
    served(upstream, |settings| settings.protection = protection)
}

fn ask(server: &Running, name: &str, qtype: u16) -> Vec<u8> {
    let client = Udp::to(server.address);
    client.send(&query(7, name, qtype, Some(1232)));
    client.recv()
}

/// The code of a reply's extended error.
fn extended_error(reply: &[u8]) -> Option<u16> {
    // It is the last option of the last record.
    let fits =
        |at: &usize| reply[*at..at + 2] == [0, 15] && at + 4 + usize::from(reply[at + 3]) == reply.len();
    let at = (12..reply.len() - 5).find(fits)?;
    Some(u16::from_be_bytes([reply[at + 4], reply[at + 5]]))
}

fn answers(reply: &[u8]) -> u16 {
    u16::from_be_bytes([reply[6], reply[7]])
}

fn millis(n: u64) -> Span {
    Span(Duration::from_millis(n))
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("forebay-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn problem(change: impl FnOnce(&mut Settings)) -> String {
    let mut settings = Settings { upstreams: vec!["192.0.2.53".to_owned()], ..Settings::default() };
    change(&mut settings);
    DnsConfig::new(&settings, &[], 1).expect_err("it cannot be").to_string()
}

#[test]
fn allow_says_whose_queries_are_served() {
    let upstream = upstream();
    let server = protected(
        &upstream,
        ProtectionSettings { allow: vec!["192.0.2.0/24".to_owned()], ..ProtectionSettings::default() },
    );
    let reply = ask(&server, "a.test", A);
    assert_eq!((rcode(&reply), extended_error(&reply)), (5, Some(18)));
    let mut stream = Tcp::to(server.address);
    assert_eq!(stream.recv(), None, "a connection is closed at once");
    let stats = server.stats();
    assert_eq!((stats.counters.refused_client, stats.clients_refused), (1, 1));
    assert_eq!(upstream.stats().udp_queries, 0);
    let server = protected(
        &upstream,
        ProtectionSettings { allow: vec!["127.0.0.1".to_owned()], ..ProtectionSettings::default() },
    );
    assert_eq!(address(&ask(&server, "a.test", A)), expected_a("a.test"));
}

#[test]
fn rate_limit_and_burst_bound_what_a_client_asks() {
    let upstream = upstream();
    let limited = |rate_limit, rate_burst, rate_slip| {
        let protection =
            ProtectionSettings { rate_limit, rate_burst, rate_slip, ..ProtectionSettings::default() };
        protected(&upstream, protection)
    };
    let flood = |server: &Running| {
        let client = Udp::to(server.address);
        for n in 0..30 {
            client.send(&query(n, "a.local", A, None));
        }
        server.until("all are seen", |stats| {
            let counters = &stats.counters;
            counters.special + counters.limited_dropped + counters.limited_truncated == 30
        })
    };
    let counters = flood(&limited(1, 10, 0)).counters;
    assert_eq!((counters.special, counters.limited_dropped), (10, 20));
    let counters = flood(&limited(5, 0, 1)).counters;
    assert_eq!(
        (counters.special, counters.limited_truncated),
        (5, 25),
        "the burst is the rate unless it is given"
    );
    let counters = flood(&limited(0, 0, 1)).counters;
    assert_eq!(counters.special, 30, "no limit");
    let server = limited(1, 1, 1);
    assert_eq!(rcode(&ask(&server, "a.local", A)), 3);
    assert!(truncated(&ask(&server, "a.local", A)), "the client comes back over TCP");
    let mut stream = Tcp::to(server.address);
    stream.send(&query(1, "a.local", A, Some(1232)));
    let reply = stream.recv().expect("a reply");
    assert_eq!((rcode(&reply), extended_error(&reply)), (5, Some(18)));
    assert_eq!(server.stats().counters.limited_refused, 1);
}

#[test]
fn rate_prefixes_say_who_shares_a_limit() {
    let upstream = upstream();
    let passed = |rate_v4_prefix| {
        let protection = ProtectionSettings {
            rate_limit: 1,
            rate_slip: 0,
            rate_v4_prefix,
            ..ProtectionSettings::default()
        };
        let server = protected(&upstream, protection);
        for last in 1..=4u8 {
            let socket = std::net::UdpSocket::bind(std::net::SocketAddr::from(([127, 0, 0, last], 0)))
                .expect("loopback");
            socket.send_to(&query(1, "a.local", A, None), server.address).expect("sent");
        }
        let seen = |counters: &forebay_dns_core::forwarder::ForwarderCounters| {
            counters.special + counters.limited_dropped
        };
        server.until("all are seen", |stats| seen(&stats.counters) == 4).counters.special
    };
    assert_eq!((passed(32), passed(24)), (4, 1));
    let wrong = problem(|settings| settings.protection.rate_v6_prefix = 129);
    assert!(wrong.contains("protection.rate_v6_prefix") && wrong.contains("0 to 128"), "{wrong}");
}

#[test]
fn rate_v6_prefix_says_which_ipv6_clients_share_a_limit() {
    // Addresses of our own, which no test beside this one can see.
    let Some(namespace) = forebay::sys::netns::NetNamespace::for_test(30_000..=40_000) else { return };
    if !support::has("ip") {
        return;
    }
    // The same /64 as the first; another, in the same /56; another /56, in the same /48.
    let clients = ["fd00::1", "fd00::2", "fd00:0:0:1::1", "fd00:0:0:100::1"];
    namespace.run(|| {
        for client in clients.iter().chain(&["fd00::53"]) {
            support::ip(&format!("address add {client}/128 dev lo nodad"));
        }
        let upstream = upstream();
        let passed = |rate_v6_prefix| {
            let server = served(&upstream, |settings| {
                settings.listen = vec!["[fd00::53]:5300".to_owned()];
                settings.protection = ProtectionSettings {
                    rate_limit: 1,
                    rate_slip: 0,
                    rate_v6_prefix,
                    ..ProtectionSettings::default()
                };
            });
            for client in clients {
                let socket = std::net::UdpSocket::bind((client, 0)).expect("an address of this namespace");
                socket.send_to(&query(1, "a.local", A, None), server.address).expect("sent");
            }
            let seen = |counters: &forebay_dns_core::forwarder::ForwarderCounters| {
                counters.special + counters.limited_dropped
            };
            server.until("all are seen", |stats| seen(&stats.counters) == 4).counters.special
        };
        let default = ProtectionSettings::default().rate_v6_prefix;
        assert_eq!(([128, 64, 56, 48].map(passed), passed(default)), ([4, 3, 2, 1], 2));
    });
}

#[test]
fn any_is_answered_in_short_or_forwarded() {
    let upstream = upstream();
    let reply = ask(&served(&upstream, |_| {}), "a.test", ANY);
    assert!(reply.windows(8).any(|eight| eight == b"\x07RFC8482"));
    assert_eq!(upstream.stats().udp_queries, 0);
    let forward = ProtectionSettings { any: AnyName::Forward, ..ProtectionSettings::default() };
    ask(&protected(&upstream, forward), "a.test", ANY);
    assert_eq!(upstream.stats().udp_queries, 1);
}

#[test]
fn special_names_are_answered_here_or_forwarded() {
    let upstream = upstream();
    let server = served(&upstream, |_| {});
    assert_eq!(address(&ask(&server, "localhost", A)).octets(), [127, 0, 0, 1]);
    assert_eq!(rcode(&ask(&server, "printer.local", A)), 3);
    assert_eq!(rcode(&ask(&server, "1.0.0.10.in-addr.arpa", PTR)), 3);
    assert_eq!((server.stats().counters.special, upstream.stats().udp_queries), (3, 0));
    let off = ProtectionSettings { special_names: false, ..ProtectionSettings::default() };
    assert_eq!(address(&ask(&protected(&upstream, off), "printer.local", A)), expected_a("printer.local"));
}

#[test]
fn rebind_keeps_private_addresses_of_public_names_back() {
    // The responder's addresses are in 10.0.0.0/8.
    let upstream = upstream();
    assert!(expected_a("a.test").is_private());
    let rebind = ProtectionSettings {
        rebind: true,
        rebind_allow: vec!["home.test".to_owned()],
        ..ProtectionSettings::default()
    };
    let server = protected(&upstream, rebind);
    let reply = ask(&server, "evil.test", A);
    assert_eq!((rcode(&reply), extended_error(&reply)), (3, Some(15)));
    assert_eq!(address(&ask(&server, "nas.home.test", A)), expected_a("nas.home.test"));
    assert_eq!(server.stats().counters.rebind, 1);
    let server = served(&upstream, |_| {});
    assert_eq!(address(&ask(&server, "evil.test", A)), expected_a("evil.test"));
    let wrong = problem(|settings| settings.protection.rebind_allow = vec!["a".to_owned()]);
    assert!(wrong.contains("rebind = true"), "{wrong}");
}

#[test]
fn routes_send_names_to_upstreams_of_their_own() {
    let (default, one, other) = (upstream(), upstream(), upstream());
    let server = served(&default, |settings| {
        settings.routes = vec![
            RouteSettings {
                suffix: "corp.test".to_owned(),
                upstreams: vec![format!("udp://{}", one.addr()), format!("tcp://{}", other.addr())],
                strategy: StrategyName::RoundRobin,
            },
            RouteSettings {
                suffix: "10.in-addr.arpa.".to_owned(),
                upstreams: vec![one.addr().to_string()],
                ..RouteSettings::default()
            },
        ];
    });
    for n in 0..8 {
        let name = format!("n{n}.Corp.test");
        assert_eq!(address(&ask(&server, &name, A)), expected_a(&name));
    }
    assert_eq!((default.stats().udp_queries, one.stats().udp_queries), (0, 4));
    assert_eq!(other.stats().tcp_queries, 4, "each in its turn");
    ask(&server, "1.0.0.10.in-addr.arpa", PTR);
    assert_eq!(one.stats().udp_queries, 5, "a route wins over special names");
    ask(&server, "corp.test.example", A);
    assert_eq!(default.stats().udp_queries, 1);
    let groups: Vec<String> = server.stats().pools.iter().map(|pool| pool.group.clone()).collect();
    for group in ["default", "corp.test", "10.in-addr.arpa"] {
        assert!(groups.iter().any(|named| named == group), "{group} in {groups:?}");
    }
}

#[test]
fn a_route_that_cannot_be_is_refused_with_its_key() {
    let route = |suffix: &str, upstreams: &[&str]| RouteSettings {
        suffix: suffix.to_owned(),
        upstreams: upstreams.iter().map(|text| (*text).to_owned()).collect(),
        ..RouteSettings::default()
    };
    let wrong = |routes: Vec<RouteSettings>| problem(|settings| settings.routes = routes);
    let fine = || route("corp.test", &["10.0.0.53"]);
    assert!(wrong(vec![route("", &["10.0.0.53"])]).contains("routes[0].suffix: is missing"));
    assert!(wrong(vec![fine(), route("a..b", &["10.0.0.53"])]).contains("routes[1].suffix: `a..b`"));
    assert!(wrong(vec![fine(), route("CORP.test.", &["10.0.0.54"])]).contains("has a route already"));
    assert!(wrong(vec![route(".", &["10.0.0.53"])]).contains("is the root"));
    assert!(wrong(vec![route("corp.test", &[])]).contains("routes[0].upstreams: is missing"));
    assert!(wrong(vec![route("corp.test", &["10.0.0.300"])]).contains("10.0.0.300"));
    assert!(wrong(vec![route("corp.test", &["10.0.0.1", "udp://10.0.0.1:53"])]).contains("listed twice"));
    assert!(wrong(vec![route("corp.test", &["127.0.0.1:5300"])]).contains("this server itself"));
}

#[test]
fn local_records_and_hosts_are_answered_with_their_ttl() {
    let folder = Folder::new("local");
    let upstream = upstream();
    let local = LocalSettings {
        hosts: folder.file("hosts", "192.168.1.2 nas.home.test nas\nbad line\nfd00::2 nas.home.test\n"),
        records: vec![
            "www.home.test CNAME nas.home.test".to_owned(),
            "*.lab.test 5 A 192.168.9.9".to_owned(),
            "home.test TXT \"hello there\"".to_owned(),
        ],
        ttl: Span(Duration::from_secs(42)),
        ..LocalSettings::default()
    };
    let server = served(&upstream, |settings| settings.local = local);
    let nas = ask(&server, "NAS.home.test", A);
    assert_eq!((address(&nas).octets(), ttl(&nas)), ([192, 168, 1, 2], 42));
    assert_eq!(address(&ask(&server, "nas", A)).octets(), [192, 168, 1, 2]);
    assert_eq!(answers(&ask(&server, "nas.home.test", AAAA)), 1);
    assert_eq!(answers(&ask(&server, "2.1.168.192.in-addr.arpa", PTR)), 1);
    assert_eq!(answers(&ask(&server, "www.home.test", A)), 2, "the alias and its address");
    let lab = ask(&server, "a.b.lab.test", A);
    assert_eq!((address(&lab).octets(), ttl(&lab)), ([192, 168, 9, 9], 5));
    assert_eq!(answers(&ask(&server, "home.test", TXT)), 1);
    let nothing = ask(&server, "home.test", A);
    assert_eq!((rcode(&nothing), answers(&nothing)), (0, 0));
    assert_eq!(upstream.stats().udp_queries, 0);
    assert_eq!(address(&ask(&server, "x.nas.home.test", A)), expected_a("x.nas.home.test"));
    let stats = server.stats();
    assert_eq!((stats.counters.local, stats.names.bad_lines), (8, 1));
    let wrong = problem(|settings| settings.local.records = vec!["a.test A 1.2.3".to_owned()]);
    assert!(wrong.contains("local.records: `a.test A 1.2.3`: `1.2.3` is no IPv4 address"), "{wrong}");
    let wrong = problem(|settings| settings.local.ttl = millis(1500));
    assert!(wrong.contains("local.ttl") && wrong.contains("whole seconds"), "{wrong}");
}

#[test]
fn a_hosts_file_is_read_again_when_it_changes() {
    let folder = Folder::new("hosts");
    let path = folder.file("hosts", "192.168.1.2 nas.test\n");
    let upstream = upstream();
    let local =
        |reload_interval| LocalSettings { hosts: path.clone(), reload_interval, ..LocalSettings::default() };
    let server = served(&upstream, |settings| settings.local = local(millis(20)));
    let never = served(&upstream, |settings| settings.local = local(millis(0)));
    assert_eq!(address(&ask(&server, "nas.test", A)).octets(), [192, 168, 1, 2]);
    assert_eq!(address(&ask(&server, "new.test", A)), expected_a("new.test"));
    folder.file("hosts", "192.168.1.3 nas.test\n192.168.1.4 new.test\n");
    until("the change is seen", || address(&ask(&server, "nas.test", A)).octets() == [192, 168, 1, 3]);
    assert_eq!(
        address(&ask(&server, "new.test", A)).octets(),
        [192, 168, 1, 4],
        "what was cached counts no more"
    );
    fs::remove_file(&path).expect("removed");
    server.until("it is told", |stats| stats.names.reloads_failed > 0);
    assert_eq!(
        address(&ask(&server, "nas.test", A)).octets(),
        [192, 168, 1, 3],
        "what was there still holds"
    );
    assert_eq!(server.stats().names.reloads, 1);
    assert_eq!(address(&ask(&never, "nas.test", A)).octets(), [192, 168, 1, 2]);
    let wrong = problem(|settings| settings.local.reload_interval = millis(1));
    assert!(wrong.contains("local.reload_interval") && wrong.contains("10ms"), "{wrong}");
}

#[test]
fn block_lists_block_and_their_exceptions_do_not() {
    let folder = Folder::new("block");
    let lists = vec![
        folder.file("domains", "# list\nads.test\n||track.test^\nno such line\n"),
        folder.file("hosts", "0.0.0.0 bad.test\n"),
    ];
    let upstream = upstream();
    let block = BlockSettings {
        lists,
        allow: vec!["good.ads.test".to_owned()],
        ttl: Span(Duration::from_secs(9)),
        ..BlockSettings::default()
    };
    let server = served(&upstream, |settings| settings.block = block.clone());
    for blocked in ["ads.test", "a.ADS.test", "x.track.test", "bad.test"] {
        let reply = ask(&server, blocked, A);
        assert_eq!((rcode(&reply), extended_error(&reply), ttl(&reply)), (3, Some(15), 9), "{blocked}");
    }
    for free in ["good.ads.test", "a.good.ads.test", "a.bad.test", "test"] {
        assert_eq!(address(&ask(&server, free, A)), expected_a(free));
    }
    let stats = server.stats();
    assert_eq!((stats.counters.blocked, stats.names.blocked, stats.names.bad_lines), (4, 3, 1));
    let zero = BlockSettings { answer: BlockAnswerName::Zero, allow: Vec::new(), ..block };
    let server = served(&upstream, |settings| settings.block = zero);
    let reply = ask(&server, "good.ads.test", A);
    assert_eq!((address(&reply).octets(), extended_error(&reply), ttl(&reply)), ([0; 4], Some(15), 9));
}

#[test]
fn a_block_list_is_read_again_when_it_changes() {
    let folder = Folder::new("reblock");
    let path = folder.file("list", "one.test\n");
    let upstream = upstream();
    let block = |reload_interval| BlockSettings {
        lists: vec![path.clone()],
        reload_interval,
        ..BlockSettings::default()
    };
    let server = served(&upstream, |settings| settings.block = block(millis(20)));
    let never = served(&upstream, |settings| settings.block = block(millis(0)));
    assert_eq!(rcode(&ask(&server, "one.test", A)), 3);
    assert_eq!(rcode(&ask(&server, "two.test", A)), 0);
    folder.file("list", "two.test\nthree.test\n");
    until("the change is seen", || rcode(&ask(&server, "two.test", A)) == 3);
    assert_eq!(rcode(&ask(&server, "one.test", A)), 0);
    assert_eq!(rcode(&ask(&never, "two.test", A)), 0);
}

#[test]
fn a_file_that_is_missing_stops_the_start_with_its_name() {
    let missing = |change: &dyn Fn(&mut Settings)| {
        let mut settings = Settings {
            listen: vec!["127.0.0.1:0".to_owned()],
            upstreams: vec!["192.0.2.53".to_owned()],
            ..Settings::default()
        };
        change(&mut settings);
        let error =
            start(DnsConfig::new(&settings, &[], 1).expect("valid settings")).expect_err("a file is missing");
        assert!(matches!(error, StartError::File { .. }));
        error.to_string()
    };
    let path = || "/nonexistent/file".to_owned();
    let hosts = missing(&|settings| settings.local.hosts = path());
    assert!(
        hosts.contains("local.hosts: cannot open /nonexistent/file") && hosts.contains("leave the key out")
    );
    assert!(missing(&|settings| settings.block.lists = vec![path()]).contains("block.lists"));
    assert!(missing(&|settings| settings.query_log.path = path()).contains("query_log.path"));
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

#[test]
fn the_query_log_says_who_asked_what_and_how_it_was_answered() {
    let folder = Folder::new("log");
    let path = folder.0.join("queries.log");
    let upstream = upstream();
    let mut server = served(&upstream, |settings| {
        settings.query_log.path = path.to_str().expect("UTF-8").to_owned();
        settings.local.records = vec!["nas.test A 192.168.1.2".to_owned()];
    });
    ask(&server, "Www.test", A);
    ask(&server, "www.test", A);
    ask(&server, "nas.test", AAAA);
    let mut stream = Tcp::to(server.address);
    stream.send(&query(1, "x.local", A, None));
    stream.recv().expect("a reply");
    let stats = server.until("they are written", |stats| stats.query_log.written == 4);
    assert_eq!(stats.query_log.dropped, 0);
    server.drain(Duration::from_secs(1));
    let lines = lines(&path);
    assert_eq!(lines.len(), 4);
    for (line, parts) in lines.iter().zip([
        [
            r#""protocol":"udp","name":"Www.test","type":"A","rcode":"NOERROR""#,
            r#""how":"upstream","upstream":"default""#,
        ],
        [r#""name":"www.test""#, r#""how":"cache","took_us":0"#],
        [r#""type":"AAAA","rcode":"NOERROR""#, r#""how":"local""#],
        [r#""protocol":"tcp","name":"x.local","type":"A","rcode":"NXDOMAIN""#, r#""how":"special""#],
    ]) {
        assert!(line.contains(r#""client":"127.0.0.1","port":"#), "{line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
}

#[test]
fn a_query_log_that_was_moved_away_is_made_anew() {
    let folder = Folder::new("rotate");
    let path = folder.0.join("queries.log");
    let upstream = upstream();
    let server = served(&upstream, |settings| {
        settings.query_log = QueryLogSettings { path: path.to_str().expect("UTF-8").to_owned(), sample: 1 };
    });
    ask(&server, "one.local", A);
    server.until("it is written", |stats| stats.query_log.written == 1);
    fs::rename(&path, folder.0.join("queries.log.1")).expect("moved");
    until("there is another", || path.exists());
    ask(&server, "two.local", A);
    server.until("it is written", |stats| stats.query_log.written == 2);
    let (old, new) = (lines(&folder.0.join("queries.log.1")), lines(&path));
    assert!(old[0].contains("one.local") && new[0].contains("two.local"), "{old:?} {new:?}");
}

#[test]
fn a_sampled_query_log_has_one_in_so_many() {
    let folder = Folder::new("sample");
    let path = folder.0.join("queries.log");
    let upstream = upstream();
    let mut server = served(&upstream, |settings| {
        settings.query_log = QueryLogSettings { path: path.to_str().expect("UTF-8").to_owned(), sample: 10 };
    });
    for _ in 0..2000 {
        ask(&server, "a.local", A);
    }
    server.drain(Duration::from_secs(1));
    let count = lines(&path).len();
    assert!((100..=300).contains(&count), "{count} of 2000");
    let wrong = problem(|settings| settings.query_log.sample = 0);
    assert!(wrong.contains("query_log.sample: is 0"), "{wrong}");
}

#[test]
fn dig_reads_what_is_answered_here() {
    if !support::has("dig") {
        return;
    }
    let folder = Folder::new("dig");
    let upstream = upstream();
    let server = served(&upstream, |settings| {
        settings.block.lists = vec![folder.file("list", "ads.test\n")];
        settings.local.records = vec![
            "www.home.test CNAME nas.home.test".to_owned(),
            "nas.home.test 30 A 192.168.1.2".to_owned(),
            "nas.home.test TXT \"two words\" three".to_owned(),
            "_x._tcp.home.test SRV 1 2 853 nas.home.test".to_owned(),
            "home.test MX 10 nas.home.test".to_owned(),
        ];
    });
    let dig = |arguments: &[&str]| {
        let output = std::process::Command::new("dig")
            .args(["@127.0.0.1", "-p", &server.address.port().to_string(), "+tries=1"])
            .args(arguments)
            .output()
            .expect("it runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let blocked = dig(&["x.ads.test"]);
    assert!(blocked.contains("status: NXDOMAIN") && blocked.contains("EDE: 15 (Blocked)"), "{blocked}");
    assert!(blocked.contains("nobody.invalid. 1 3600 1200 604800 60"), "{blocked}");
    let short = |arguments: &[&str]| dig(&[&["+short"], arguments].concat()).trim().to_owned();
    assert_eq!(short(&["www.home.test"]), "nas.home.test.\n192.168.1.2");
    assert_eq!(short(&["nas.home.test", "TXT"]), "\"two words\" \"three\"");
    assert_eq!(short(&["_x._tcp.home.test", "SRV"]), "1 2 853 nas.home.test.");
    assert_eq!(short(&["home.test", "MX"]), "10 nas.home.test.");
    assert_eq!(short(&["-x", "127.0.0.1"]), "localhost.");
    assert_eq!(short(&["-x", "::1"]), "localhost.");
    assert_eq!(short(&["a.test", "ANY"]), "\"RFC8482\" \"\"");
    let chaos = dig(&["version.bind", "CH", "TXT"]);
    assert!(chaos.contains("status: REFUSED") && chaos.contains("EDE: 21 (Not Supported)"), "{chaos}");
    let local = dig(&["a.printer.local"]);
    assert!(local.contains("status: NXDOMAIN") && local.contains("local.\t\t\t10800\tIN\tSOA"), "{local}");
    assert_eq!(upstream.stats().udp_queries, 0, "nobody was asked");
}

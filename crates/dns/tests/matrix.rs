//! Every listener before every upstream transport: the same names, the same answers as NSD's own.
//!
//! NSD is the upstream over UDP, TCP and TLS; Unbound, which forwards to it, the one over HTTPS. kdig asks.

mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay_dns::{CacheSettings, Scheme, Settings, TlsSettings};
use support::tls::{Authority, Folder, Pair};
use support::{PATIENCE, Peer, Udp, free_port, has, path, query, run, settings};

/// Names that are asked, a tenth of each kind.
const NAMES: usize = 1_000;

/// What is asked: a name and a type.
fn question(n: usize) -> [String; 2] {
    let (name, kind) = match n % 10 {
        0 => (format!("a{n}"), "A"),
        1 => (format!("six{n}"), "AAAA"),
        2 => (format!("text{n}"), "TXT"),
        3 => (format!("mail{n}"), "MX"),
        4 => (format!("alias{n}"), "A"),
        5 => (format!("many{n}"), "A"),
        6 => (format!("big{n}"), "TXT"),
        7 => (format!("nobody{n}"), "A"),
        8 => (format!("a{}", n - 8), "TXT"),
        _ => (format!("srv{n}"), "SRV"),
    };
    [format!("{name}.peer.test"), kind.to_owned()]
}

/// The zone in which each of them has its answer: an address, an alias, a long text, nothing, no name at all…
fn zone() -> String {
    let mut zone = String::from(
        "$ORIGIN peer.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n",
    );
    let long = format!("\"{}\" ", "x".repeat(200)).repeat(10);
    for n in 0..NAMES {
        let line = match n % 10 {
            0 => format!("a{n} A 10.1.{}.{}", n / 256, n % 256),
            1 => format!("six{n} AAAA 2001:db8::{n:x}"),
            2 => format!("text{n} TXT \"text of {n}\" \"and more\""),
            3 => format!("mail{n} MX 10 a{}\nmail{n} MX 20 ns", n - 3),
            4 => format!("alias{n} CNAME a{}", n - 4),
            5 => (0..20).map(|i| format!("many{n} A 10.2.{}.{i}\n", n % 256)).collect(),
            6 => format!("big{n} TXT {long}"),
            9 => format!("srv{n} SRV 1 2 {n} a{}", n - 9),
            _ => continue,
        };
        writeln!(zone, "{line}").expect("memory");
    }
    zone
}

/// Two free ports: one for UDP and TCP, one for encryption.
fn ports() -> [u16; 2] {
    [free_port(), free_port()]
}

fn spawn(program: &str, arguments: &[&str]) -> Peer {
    let null = || Stdio::null();
    let child =
        Command::new(program).args(arguments).env("PATH", path()).stdout(null()).stderr(null()).spawn();
    Peer(child.expect("it starts"))
}

fn wait_for(server: SocketAddr) {
    let client = Udp::to(server);
    client.0.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    let end = Instant::now() + PATIENCE;
    loop {
        let _ = client.0.send(&query(1, "a0.peer.test", 1, None));
        if client.0.recv(&mut [0; 512]).is_ok() {
            return;
        }
        assert!(Instant::now() < end, "{server} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What each question got: response code and sorted records, without TTLs.
type Answers = BTreeMap<String, String>;

/// Asks everything with kdig, many questions on one connection.
fn ask(server: SocketAddr, scheme: Option<Scheme>) -> Answers {
    let (address, port) = (format!("@{}", server.ip()), server.port().to_string());
    let how: &[&str] = match scheme {
        None | Some(Scheme::Udp) => &[],
        Some(Scheme::Tcp) => &["+tcp", "+keepopen"],
        Some(Scheme::Tls) => &["+tls", "+keepopen"],
        Some(Scheme::Https) => &["+https", "+keepopen"],
        Some(other) => panic!("no way to ask over {other:?}"),
    };
    let mut answers = Answers::new();
    let all: Vec<_> = (0..NAMES).map(question).collect();
    for some in all.chunks(250) {
        let output = Command::new("kdig")
            .args([&address, "-p", &port, "+time=10", "+retry=2"])
            .args(how)
            .args(some.iter().flatten())
            .env("PATH", path())
            .output()
            .expect("kdig runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let (mut code, mut asked, mut records) = (String::new(), String::new(), Vec::new());
        let mut section = "";
        for line in text.lines().chain([";; end"]) {
            if let Some((_, rest)) = line.split_once("status: ") {
                code = rest.split(';').next().unwrap_or_default().to_owned();
                (asked, records, section) = (String::new(), Vec::new(), "");
            } else if line.starts_with(";; QUESTION SECTION") {
                section = "question";
            } else if line.starts_with(";; ANSWER SECTION") || line.starts_with(";; AUTHORITY SECTION") {
                section = "records";
            } else if line.starts_with(";; Received") {
                records.sort();
                answers.insert(std::mem::take(&mut asked), format!("{code} {}", records.join(" | ")));
                section = "";
            } else if line.starts_with(";; ") && section == "question" {
                asked = line.trim_start_matches(";; ").split_whitespace().collect::<Vec<_>>().join(" ");
            } else if section == "records" && !line.starts_with(';') && !line.is_empty() {
                // Owner, TTL, class, type, data: all but the TTL, which has aged.
                let words: Vec<_> = line.split_whitespace().collect();
                records.push([&words[..1], &words[2..]].concat().join(" "));
            } else if line.starts_with(";; ") {
                section = "";
            }
        }
    }
    answers
}

/// What a forwarder leaves out or adds: the authority section of positive answers is its upstream's business.
fn without_referrals(answers: Answers) -> Answers {
    let answer = |text: String| {
        let (code, records) = text.split_once(' ').unwrap_or((&text, ""));
        let kept: Vec<_> = records.split(" | ").filter(|record| !record.contains(" IN NS ")).collect();
        format!("{code} {}", kept.join(" | "))
    };
    answers.into_iter().map(|(question, text)| (question, answer(text))).collect()
}

fn nsd(folder: &Folder, pair: &Pair) -> (Peer, [SocketAddr; 2]) {
    let [plain, tls] = ports();
    let place = folder.0.display();
    let config = format!(
        "server:\n ip-address: 127.0.0.1@{plain}\n ip-address: 127.0.0.1@{tls}\n tls-port: {tls}\n \
         tls-service-key: \"{}\"\n tls-service-pem: \"{}\"\n username: \"\"\n chroot: \"\"\n zonesdir: \"{place}\"\n \
         database: \"\"\n pidfile: \"{place}/pid\"\n xfrdfile: \"{place}/xfrd\"\n zonelistfile: \"{place}/list\"\n \
         server-count: 1\n rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n \
         name: peer.test\n zonefile: zone\n",
        pair.key.display(),
        pair.certificate.display(),
    );
    let config = folder.write("nsd.conf", config);
    folder.write("zone", zone());
    let process = spawn("nsd", &["-d", "-c", &config.display().to_string()]);
    let addresses = [plain, tls].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    wait_for(addresses[0]);
    (process, addresses)
}

/// Unbound, which answers over HTTPS and asks NSD.
fn unbound(folder: &Folder, pair: &Pair, nsd: SocketAddr) -> (Peer, SocketAddr) {
    let [plain, https] = ports();
    let place = folder.0.display();
    let config = format!(
        "server:\n interface: 127.0.0.1@{plain}\n interface: 127.0.0.1@{https}\n https-port: {https}\n \
         tls-service-key: \"{}\"\n tls-service-pem: \"{}\"\n http-endpoint: \"/dns-query\"\n num-threads: 1\n \
         username: \"\"\n chroot: \"\"\n directory: \"{place}\"\n pidfile: \"{place}/unbound.pid\"\n use-syslog: no\n \
         do-daemonize: no\n do-not-query-localhost: no\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\n\
         remote-control:\n control-enable: no\nforward-zone:\n name: \".\"\n forward-addr: 127.0.0.1@{}\n",
        pair.key.display(),
        pair.certificate.display(),
        nsd.port(),
    );
    let config = folder.write("unbound.conf", config);
    let process = spawn("unbound", &["-d", "-c", &config.display().to_string()]);
    wait_for(SocketAddr::from(([127, 0, 0, 1], plain)));
    (process, SocketAddr::from(([127, 0, 0, 1], https)))
}

#[test]
fn every_listener_before_every_upstream_gives_nsd_s_answers() {
    if !["nsd", "unbound", "kdig"].map(has).iter().all(|there| *there) {
        return;
    }
    let authority = Authority::new();
    let folder = Folder::new();
    let pair = authority.issue("peer", &["peer.test"]);
    let (_nsd, [plain, tls]) = nsd(&folder, &pair);
    let (_unbound, https) = unbound(&folder, &pair, plain);
    let trust = format!("name=peer.test&ca={}", authority.ca().display());
    let upstreams = [
        ("udp", format!("udp://{plain}")),
        ("tcp", format!("tcp://{plain}")),
        ("tls", format!("tls://{tls}?{trust}")),
        ("https", format!("https://{https}/dns-query?{trust}")),
    ];
    let listeners =
        [("udp", Scheme::Udp), ("tcp", Scheme::Tcp), ("tls", Scheme::Tls), ("https", Scheme::Https)];
    let expected = without_referrals(ask(plain, None));
    assert_eq!(expected.len(), NAMES, "NSD knows them all");
    let mut table = String::from("listener  upstream  same as NSD\n");
    let mut wrong = String::new();
    for (upstream, address) in upstreams {
        let server = run(&Settings {
            // What is truncated over UDP is asked again over TCP on the same port.
            listen: ["127.0.0.1:0", "tls://127.0.0.1:0", "https://127.0.0.1:0"].map(str::to_owned).to_vec(),
            upstreams: vec![address],
            tls: TlsSettings { certificate: pair.certificate.clone(), key: pair.key.clone() },
            // Each answer is asked for, by every listener anew.
            cache: CacheSettings { size: forebay::units::Size { bytes: 0 }, ..CacheSettings::default() },
            ..settings(&[])
        });
        for (listener, scheme) in listeners {
            let address = if scheme.is_encrypted() { server.at(scheme) } else { server.address };
            let answers = without_referrals(ask(address, Some(scheme)));
            let same =
                expected.iter().filter(|(question, answer)| answers.get(*question) == Some(answer)).count();
            writeln!(table, "{listener:<9} {upstream:<9} {same:>5} of {NAMES}").expect("memory");
            for (question, answer) in expected.iter().filter(|(q, a)| answers.get(*q) != Some(a)).take(3) {
                let got = answers.get(question);
                writeln!(wrong, "{listener} {upstream} {question}: {got:?} instead of {answer}")
                    .expect("memory");
            }
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{table}{wrong}");
}

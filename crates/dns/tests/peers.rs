//! Against other people's programs: NSD behind, dig, kdig and dnsperf in front.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use forebay_bench::responder::expected_a;
use forebay_dns::Settings;
use support::{PATIENCE, Peer, Running, Udp, address, free_port, has, path, query, run, settings};

/// Names in the zone, each with the address that its name says.
const NAMES: u32 = 100_000;

/// NSD with a zone of its own, on a free port.
struct Nsd {
    _process: Peer,
    folder: PathBuf,
    address: SocketAddr,
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // Only the temporary folder of this test.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn nsd() -> Option<Nsd> {
    if !has("nsd") {
        return None;
    }
    let port = free_port();
    let folder = std::env::temp_dir().join(format!("forebay-nsd-{}-{port}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let place = folder.display();
    let config = format!(
        "server:\n ip-address: 127.0.0.1@{port}\n username: \"\"\n chroot: \"\"\n zonesdir: \"{place}\"\n database: \"\"\n \
         pidfile: \"{place}/pid\"\n xfrdfile: \"{place}/xfrd\"\n zonelistfile: \"{place}/list\"\n server-count: 1\n \
         rrl-ratelimit: 0\n rrl-whitelist-ratelimit: 0\nremote-control:\n control-enable: no\nzone:\n name: peer.test\n \
         zonefile: zone\n"
    );
    let mut zone = String::from(
        "$ORIGIN peer.test.\n$TTL 3600\n@ SOA ns host 1 3600 600 86400 300\n@ NS ns\nns A 127.0.0.1\n*.u A 192.0.2.77\n\
         alias CNAME n1\n",
    );
    let long = format!("\"{}\" ", "x".repeat(250));
    writeln!(zone, "big TXT {}", long.repeat(12)).expect("memory");
    for n in 0..NAMES {
        writeln!(zone, "n{n} A {}", expected_a(&format!("n{n}.peer.test"))).expect("memory");
    }
    fs::write(folder.join("conf"), config).expect("written");
    fs::write(folder.join("zone"), zone).expect("written");
    let process = Command::new("nsd")
        .args(["-d", "-c", &folder.join("conf").display().to_string()])
        .env("PATH", path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("nsd starts");
    let nsd = Nsd { _process: Peer(process), folder, address: ([127, 0, 0, 1], port).into() };
    let client = Udp::to(nsd.address);
    client.0.set_read_timeout(Some(Duration::from_millis(100))).expect("a time-out");
    let end = Instant::now() + PATIENCE;
    loop {
        // Refused until it listens.
        let _ = client.0.send(&query(1, "n1.peer.test", 1, None));
        if client.0.recv(&mut [0; 512]).is_ok() {
            return Some(nsd);
        }
        assert!(Instant::now() < end, "nsd does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn forwarder(nsd: &Nsd) -> Running {
    run(&Settings { upstreams: vec![nsd.address.to_string()], ..settings(&[]) })
}

/// Runs a client program against the forwarder and returns what it printed.
fn ask(program: &str, server: &Running, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(["@127.0.0.1", "-p", &server.address.port().to_string()])
        .args(arguments)
        .env("PATH", path())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn dig_sees_what_nsd_says() {
    let Some(nsd) = nsd() else { return };
    if !has("dig") {
        return;
    }
    let server = forwarder(&nsd);
    for transport in ["+notcp", "+tcp"] {
        for round in ["asked", "cached"] {
            let short = ask("dig", &server, &["+short", transport, "n7.peer.test"]);
            assert_eq!(short.trim(), expected_a("n7.peer.test").to_string(), "{transport} {round}");
        }
    }
    let chain = ask("dig", &server, &["+short", "alias.peer.test"]);
    assert_eq!(chain.lines().collect::<Vec<_>>(), ["n1.peer.test.", &expected_a("n1.peer.test").to_string()]);
    let big = ask("dig", &server, &["+short", "TXT", "big.peer.test"]);
    assert_eq!(big.matches('x').count(), 3000, "fetched over TCP by both");
    let missing = ask("dig", &server, &["missing.peer.test"]);
    assert!(missing.contains("NXDOMAIN") && missing.contains("SOA"), "{missing}");
    let case = ask("dig", &server, &["+noall", "+question", "N7.PeEr.test"]);
    assert!(case.contains("N7.PeEr.test"), "{case}");
}

#[test]
fn kdig_keeps_its_connection_open() {
    let Some(nsd) = nsd() else { return };
    if !has("kdig") {
        return;
    }
    let server = forwarder(&nsd);
    let names: Vec<String> = (0..50).map(|n| format!("n{n}.peer.test")).collect();
    let arguments: Vec<&str> =
        ["+tcp", "+keepopen", "+short"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let output = ask("kdig", &server, &arguments);
    let expected: Vec<String> = names.iter().map(|name| expected_a(name).to_string()).collect();
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), expected);
}

#[test]
fn dnsperf_loses_nothing() {
    let Some(nsd) = nsd() else { return };
    if !has("dnsperf") {
        return;
    }
    let server = forwarder(&nsd);
    let hot: String = (0..5000).map(|n| format!("n{}.peer.test A\n", n % 1000)).collect();
    let unique: String = (0..200_000).map(|n| format!("q{n}.u.peer.test A\n")).collect();
    for (what, names) in [("hot", hot), ("unique", unique)] {
        let file = nsd.folder.join(what);
        fs::write(&file, names).expect("written");
        let port = server.address.port().to_string();
        let output = Command::new("dnsperf")
            .args(["-s", "127.0.0.1", "-p", &port, "-c", "16", "-q", "64", "-l", "2", "-n", "1", "-d"])
            .arg(&file)
            .env("PATH", path())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let lost = text.lines().find(|line| line.contains("Queries lost")).unwrap_or_default();
        assert!(lost.contains(" 0 (0.00%)"), "{what}: {text}");
        let codes = text.lines().find(|line| line.contains("Response codes")).unwrap_or_default();
        assert!(codes.contains("NOERROR") && !codes.contains(','), "{what}: {text}");
    }
}

#[test]
fn every_name_has_its_own_address() {
    let Some(nsd) = nsd() else { return };
    let server = forwarder(&nsd);
    let client = Udp::to(server.address);
    for round in ["asked", "cached"] {
        let mut n = 0;
        while n < NAMES {
            let batch = n..NAMES.min(n + 64);
            for n in batch.clone() {
                client.send(&query((n % 65_536) as u16, &format!("n{n}.peer.test"), 1, Some(1232)));
            }
            for _ in batch.clone() {
                let reply = client.recv();
                let number = batch.start + u32::from(support::id(&reply).wrapping_sub(batch.start as u16));
                assert_eq!(address(&reply), expected_a(&format!("n{number}.peer.test")), "{round}");
            }
            n = batch.end;
        }
    }
    assert!(server.stats().counters.hits >= u64::from(NAMES));
}

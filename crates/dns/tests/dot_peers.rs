//! DNS over TLS against other people's programs: kdig and dnsperf in front, NSD and Unbound behind.

mod support;

use std::process::{Command, Output};
use std::sync::OnceLock;

use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{Scheme, Settings, StreamSettings, TlsSettings};
use support::servers::{NAMES, TlsServer};
use support::tls::{Authority, Pair};
use support::{Running, Udp, address, has, id, path, query, run, settings};

/// One authority for all, and a certificate for `dns.test`.
fn authority() -> &'static (Authority, Pair) {
    static ONCE: OnceLock<(Authority, Pair)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let authority = Authority::new();
        let pair = authority.issue("dns", &["dns.test"]);
        (authority, pair)
    })
}

/// A forwarder with a listener for DNS over TLS.
fn dot_server(upstream: &Responder) -> Running {
    let (_, pair) = authority();
    run(&Settings {
        listen: vec!["tls://127.0.0.1:0".to_owned()],
        tls: TlsSettings { certificate: pair.certificate.clone(), key: pair.key.clone() },
        ..settings(&[upstream])
    })
}

fn kdig(server: &Running, arguments: &[&str]) -> Output {
    Command::new("kdig")
        .args(["@127.0.0.1", "-p", &server.at(Scheme::Tls).port().to_string()])
        .args(arguments)
        .env("PATH", path())
        .output()
        .expect("it runs")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn kdig_is_answered_over_tls_and_checks_the_certificate() {
    if !has("kdig") {
        return;
    }
    let upstream = Responder::builder().script(Script::default()).spawn().expect("a free port");
    let server = dot_server(&upstream);
    let ca = format!("+tls-ca={}", authority().0.ca().display());
    let good = expected_a("a.test").to_string();
    for arguments in [
        &["+tls", "+short", "a.test"][..],
        &["+tls", &ca, "+tls-hostname=dns.test", "+short", "a.test"],
        &["+tls", &ca, "+tls-hostname=dns.test", "+tls-sni=dns.test", "+short", "a.test"],
    ] {
        let output = kdig(&server, arguments);
        assert_eq!(text(&output).trim(), good, "{arguments:?} {output:?}");
    }
    let other = kdig(&server, &["+tls", &ca, "+tls-hostname=other.test", "+short", "a.test"]);
    assert!(!text(&other).contains(&good), "{other:?}");
    let stranger = kdig(&server, &["+tls", "+tls-ca", "+tls-hostname=dns.test", "+short", "a.test"]);
    assert!(!text(&stranger).contains(&good), "this machine does not trust our authority: {stranger:?}");
}

#[test]
fn kdig_sees_padding_to_468_bytes_and_many_answers_on_one_connection() {
    if !has("kdig") {
        return;
    }
    let upstream = Responder::builder().script(Script::default()).spawn().expect("a free port");
    let server = dot_server(&upstream);
    let output = text(&kdig(&server, &["+tls", "+padding", "a.test"]));
    assert!(output.contains("PADDING") && output.contains("Received 468 B"), "{output}");
    let output = text(&kdig(&server, &["+tls", "+nopadding", "+noalignment", "+edns", "a.test"]));
    assert!(!output.contains("PADDING"), "{output}");
    let names: Vec<String> = (0..50).map(|n| format!("n{n}.test")).collect();
    let arguments: Vec<&str> =
        ["+tls", "+keepopen", "+short"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let expected: Vec<String> = names.iter().map(|name| expected_a(name).to_string()).collect();
    let before = server.stats().client_handshakes.full;
    let output = text(&kdig(&server, &arguments));
    assert_eq!(output.split_whitespace().collect::<Vec<_>>(), expected);
    assert_eq!(server.stats().client_handshakes.full, before + 1);
}

#[test]
fn dnsperf_loses_nothing_over_tls() {
    if !has("dnsperf") {
        return;
    }
    let upstream = Responder::builder().script(Script::default()).spawn().expect("a free port");
    let server = dot_server(&upstream);
    let folder = support::tls::Folder::new();
    let names: String = (0..5000).map(|n| format!("n{}.test A\n", n % 1000)).collect();
    let file = folder.write("names", names);
    let port = server.at(Scheme::Tls).port().to_string();
    let output = Command::new("dnsperf")
        .args(["-m", "dot", "-s", "127.0.0.1", "-p", &port, "-c", "8", "-q", "200", "-l", "2", "-d"])
        .arg(&file)
        .env("PATH", path())
        .output()
        .expect("it runs");
    let text = text(&output);
    let line = |what: &str| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
    println!("{}", line("Queries per second"));
    assert!(line("Queries completed").contains("(100.00%)"), "{text}");
    assert!(line("Response codes").contains("NOERROR") && !line("Response codes").contains(','), "{text}");
}

/// Asks for every name of the zone over UDP, through a forwarder that asks `peer` over TLS.
fn every_name_over(peer: &TlsServer) -> Running {
    let ca = authority().0.ca();
    let upstream = format!("tls://{}?name=dns.test&ca={}", peer.address, ca.display());
    let stream = StreamSettings { connections_max: 2, ..StreamSettings::default() };
    let server = run(&Settings { upstreams: vec![upstream], stream, ..settings(&[]) });
    let client = Udp::to(server.address);
    let mut n = 0;
    while n < NAMES {
        let batch = n..NAMES.min(n + 64);
        for n in batch.clone() {
            client.send(&query(n as u16, &format!("n{n}.peer.test"), 1, Some(1232)));
        }
        for _ in batch.clone() {
            let reply = client.recv();
            assert_eq!(address(&reply), expected_a(&format!("n{}.peer.test", id(&reply))));
        }
        n = batch.end;
    }
    let stats = server.stats();
    let reuse = stats.pools[0].snapshot.reuse_rate().expect("queries were sent");
    println!(
        "{} made, {} full and {} resumed handshakes, {:.2} % on connections that were there",
        stats.connections_made(),
        stats.upstream_handshakes.full,
        stats.upstream_handshakes.resumed,
        reuse * 100.0
    );
    assert!(reuse > 0.99, "{reuse}");
    assert_eq!(stats.counters.answers, u64::from(NAMES));
    server
}

#[test]
fn every_name_of_nsd_comes_over_tls() {
    let Some(peer) = support::servers::nsd(&authority().1) else { return };
    every_name_over(&peer);
}

#[test]
fn every_name_of_unbound_comes_over_tls() {
    let Some(peer) = support::servers::unbound(&authority().1) else { return };
    every_name_over(&peer);
}

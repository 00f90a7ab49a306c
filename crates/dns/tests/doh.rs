//! DNS over HTTPS on both sides.

#[path = "support/http2.rs"]
mod http2;
mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use forebay_bench::responder::{Responder, Script, Verdict, expected_a};
use forebay_dns::{Scheme, Settings, StreamSettings, TlsSettings};
use http2::{Act, Asked, Http2, http2};
use support::tls::{Authority, Pair};
use support::{PATIENCE, Peer, Running, Udp, address, has, path, query, rcode, run, settings, ttl};

fn upstream(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("a free port")
}

fn span(ms: u64) -> forebay::units::Span {
    forebay::units::Span(Duration::from_millis(ms))
}

/// UDP and TCP on the first address, DNS over HTTPS on the second.
fn doh_settings(upstream: &Responder, pair: &Pair) -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".to_owned(), "https://127.0.0.1:0".to_owned()],
        tls: TlsSettings { certificate: pair.certificate.clone(), key: pair.key.clone() },
        ..settings(&[upstream])
    }
}

fn doh_server(upstream: &Responder) -> (Authority, Running) {
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test", "127.0.0.1"]);
    let server = run(&doh_settings(upstream, &pair));
    (authority, server)
}

/// A forwarder that asks `server` over HTTPS, and trusts `ca`.
fn over_https(server: SocketAddr, ca: &Path) -> Settings {
    let upstream = format!("https://{server}/dns-query?name=dns.test&ca={}", ca.display());
    Settings { upstreams: vec![upstream], ..settings(&[]) }
}

/// Runs curl and returns status, headers in lower case, and body.
fn curl(server: &Running, arguments: &[&str]) -> (u16, String, Vec<u8>) {
    let url = arguments.last().expect("a path");
    let url = format!("https://{}{url}", server.at(Scheme::Https));
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--include", "--max-time", "20"])
        .args(&arguments[..arguments.len() - 1])
        .arg(url)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let end = output.stdout.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&output.stdout[..end]).to_lowercase();
    let status = head.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a status");
    (status, head, output.stdout[end..].to_vec())
}

fn base64url(bytes: &[u8]) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for i in 0..=group.len() {
            text.push(SIGNS[(bits >> (18 - 6 * i) & 63) as usize].into());
        }
    }
    text
}

#[test]
fn curl_gets_and_posts_over_both_versions_of_http() {
    if !has("curl") {
        return;
    }
    let upstream = upstream(Script {
        ttl: 77,
        verdicts: vec![
            ("none.test".to_owned(), Verdict::NxDomain),
            ("broken.test".to_owned(), Verdict::ServFail),
        ],
        ..Script::default()
    });
    let (authority, server) = doh_server(&upstream);
    let question = query(0, "a.test", 1, None);
    let file = authority.folder.write("query", &question);
    let post = format!("@{}", file.display());
    for version in ["--http2", "--http1.1"] {
        let kind = "Content-Type: application/dns-message";
        for (arguments, path) in [
            (vec![version], format!("/dns-query?dns={}", base64url(&question))),
            (vec![version, "--data-binary", &post, "--header", kind], "/dns-query".to_owned()),
        ] {
            let arguments: Vec<&str> = arguments.into_iter().chain([path.as_str()]).collect();
            let (status, head, body) = curl(&server, &arguments);
            assert_eq!(status, 200, "{head}");
            assert!(head.contains("content-type: application/dns-message"), "{head}");
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            let keep = ["cache-control: max-age=77", "cache-control: max-age=76"];
            assert!(keep.iter().any(|line| head.contains(line)), "as long as the answer holds: {head}");
            assert_eq!(address(&body), expected_a("a.test"));
            assert_eq!(head.starts_with("http/2"), version == "--http2", "{head}");
        }
        let ask = |name: &str| format!("/dns-query?dns={}", base64url(&query(0, name, 1, None)));
        let (_, head, body) = curl(&server, &[version, &ask("x.none.test")]);
        assert_eq!(rcode(&body), 3);
        assert!(head.contains("cache-control: max-age="), "a negative answer is one: {head}");
        let (status, head, body) = curl(&server, &[version, &ask("x.broken.test")]);
        assert_eq!(
            (status, rcode(&body)),
            (200, 2),
            "RFC 8484, section 4.2.1: what DNS says is no error of HTTP"
        );
        assert!(head.contains("cache-control: no-store"), "{head}");
    }
}

#[test]
fn requests_that_are_wrong_are_told_what_is_wrong_with_them() {
    if !has("curl") {
        return;
    }
    let upstream = upstream(Script::default());
    let (authority, server) = doh_server(&upstream);
    let big = format!("@{}", authority.folder.write("big", vec![0; 70_000]).display());
    let junk = format!("@{}", authority.folder.write("junk", b"\0\0\x80\0").display());
    let kind = "Content-Type: application/dns-message";
    let response = base64url(&[&[0, 0, 0x81, 0x80][..], &query(0, "a.test", 1, None)[4..]].concat());
    for (version, unsaid) in [("--http2", "Content-Length:"), ("--http1.1", "Transfer-Encoding: chunked")] {
        for (status, arguments) in [
            (404, vec!["/other?dns=AAAA"]),
            (404, vec!["/"]),
            (400, vec!["/dns-query"]),
            (400, vec!["/dns-query?dns=AAA*"]),
            (400, vec!["/dns-query?dns=AAAA"]),
            (400, vec![format!("/dns-query?dns={response}").leak()]),
            (405, vec!["-X", "PUT", "/dns-query?dns=AAAA"]),
            (415, vec!["--data-binary", &junk, "/dns-query"]),
            (400, vec!["--data-binary", &junk, "-H", kind, "/dns-query"]),
            (413, vec!["--data-binary", &big, "-H", kind, "/dns-query"]),
            // Of a length that is not said before: in HTTP/2 by leaving it out, in HTTP/1.1 in chunks.
            (413, vec!["--data-binary", &big, "-H", kind, "-H", unsaid, "/dns-query"]),
        ] {
            let arguments: Vec<&str> = [version].into_iter().chain(arguments).collect();
            let (seen, head, body) = curl(&server, &arguments);
            assert_eq!(seen, status, "{arguments:?}: {head}");
            assert!(head.contains("cache-control: no-store"), "{head}");
            assert_eq!(head.contains("allow: get, post"), status == 405, "{head}");
            assert!(!body.is_empty(), "a person may be looking: {arguments:?}");
        }
    }
    assert_eq!(upstream.stats().udp_queries, 0);
}

#[test]
fn queries_go_to_an_upstream_over_https_and_come_back() {
    let origin = upstream(Script::default());
    let (authority, front) = doh_server(&origin);
    let server = run(&over_https(front.at(Scheme::Https), &authority.ca()));
    let client = Udp::to(server.address);
    for n in 0..300 {
        let name = format!("n{n}.test");
        client.send(&query(n, &name, 1, Some(1232)));
    }
    for _ in 0..300 {
        let reply = client.recv();
        assert_eq!(address(&reply), expected_a(&format!("n{}.test", support::id(&reply))));
    }
    let stats = server.stats();
    assert_eq!(stats.counters.replays + stats.counters.unexpected + stats.counters.malformed, 0);
    let made = stats.connections_made();
    assert!((1..=5).contains(&made), "{made} connections for 300 queries");
}

/// Runs kdig against a listener for DNS over HTTPS and returns what it printed.
fn kdig(server: SocketAddr, arguments: &[&str]) -> String {
    let output = Command::new("kdig")
        .args(["@127.0.0.1", "-p", &server.port().to_string()])
        .args(arguments)
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn kdig_asks_by_get_and_post_and_checks_the_certificate() {
    if !has("kdig") {
        return;
    }
    let upstream = upstream(Script::default());
    let (authority, server) = doh_server(&upstream);
    let at = server.at(Scheme::Https);
    let ca = format!("+tls-ca={}", authority.ca().display());
    for method in ["+https", "+https-get"] {
        let text = kdig(at, &[method, &ca, "+tls-hostname=dns.test", "a.test"]);
        assert!(text.contains(&expected_a("a.test").to_string()), "{text}");
        assert!(text.contains("HTTP/2") && text.contains("status: 200"), "{text}");
    }
    let names: Vec<String> = (0..40).map(|n| format!("n{n}.test")).collect();
    let arguments: Vec<&str> =
        ["+https", "+keepopen", "+short"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let expected: Vec<String> = names.iter().map(|name| expected_a(name).to_string()).collect();
    assert_eq!(kdig(at, &arguments).split_whitespace().collect::<Vec<_>>(), expected);
}

#[test]
fn dnsperf_loses_nothing_over_https() {
    if !has("dnsperf") {
        return;
    }
    let upstream = upstream(Script::default());
    let (authority, server) = doh_server(&upstream);
    let names: String = (0..5000).map(|n| format!("n{}.test A\n", n % 1000)).collect();
    let file = authority.folder.write("names", names);
    let at = server.at(Scheme::Https);
    for method in ["GET", "POST"] {
        let output = Command::new("dnsperf")
            .args(["-m", "doh", "-s", "127.0.0.1", "-p", &at.port().to_string()])
            // Many queries at a time: of several answers in one TLS record, dnsperf 2.10 takes one.
            .args(["-c", "4", "-q", "200", "-l", "1"])
            .args(["-O", &format!("doh-uri=https://127.0.0.1:{}/dns-query", at.port())])
            .args(["-O", &format!("doh-method={method}"), "-d"])
            .arg(&file)
            .env("PATH", path())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let line = |what| text.lines().find(|line| line.contains(what)).unwrap_or_default().to_owned();
        assert!(line("Queries lost").contains(" 0 (0.00%)"), "{method}: {text}");
        let codes = line("Response codes");
        assert!(codes.contains("NOERROR") && !codes.contains(','), "{method}: {text}");
        eprintln!("{method}:{}", line("Queries per second"));
    }
}

/// Unbound with a listener for DNS over HTTPS, and data of its own.
fn unbound(authority: &Authority) -> Option<(Peer, SocketAddr)> {
    if !has("unbound") {
        return None;
    }
    let folder = authority.folder.0.display();
    let pair = authority.issue("unbound", &["dns.test", "127.0.0.1"]);
    let port = support::free_port();
    let mut config = format!(
        "server:\n interface: 127.0.0.1@{port}\n https-port: {port}\n http-endpoint: \"/dns-query\"\n \
         tls-service-pem: \"{}\"\n tls-service-key: \"{}\"\n username: \"\"\n chroot: \"\"\n directory: \"{folder}\"\n \
         pidfile: \"{folder}/pid\"\n use-syslog: no\n logfile: \"{folder}/log\"\n access-control: 127.0.0.0/8 allow\n \
         num-threads: 1\n module-config: \"iterator\"\n local-zone: peer.test static\n \
         local-data: \"www.peer.test 300 A 127.0.0.1\"\n",
        pair.certificate.display(),
        pair.key.display()
    );
    for n in 0..1000 {
        let name = format!("n{n}.peer.test");
        config += &format!(" local-data: \"{name} 300 A {}\"\n", expected_a(&name));
    }
    config += "remote-control:\n control-enable: no\n";
    let file = authority.folder.write("unbound.conf", config);
    let process = Command::new("unbound")
        .args(["-d", "-c"])
        .arg(file)
        .env("PATH", path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("unbound starts");
    let peer = Peer(process);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(address).is_err() {
        assert!(Instant::now() < end, "unbound does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some((peer, address))
}

#[test]
fn unbound_is_asked_over_https_for_a_thousand_names() {
    let authority = Authority::new();
    let Some((_unbound, at)) = unbound(&authority) else { return };
    let server = run(&over_https(at, &authority.ca()));
    let client = Udp::to(server.address);
    for batch in 0..20 {
        for n in batch * 50..(batch + 1) * 50 {
            client.send(&query(n, &format!("n{n}.peer.test"), 1, Some(1232)));
        }
        for _ in 0..50 {
            let reply = client.recv();
            assert_eq!(address(&reply), expected_a(&format!("n{}.peer.test", support::id(&reply))));
        }
    }
    let stats = server.stats();
    assert_eq!(stats.counters.queries, 1000);
    assert!(stats.pools[0].snapshot.reuse_rate().is_some_and(|rate| rate > 0.9), "{:?}", stats.pools[0]);
}

#[test]
fn curl_finds_a_web_server_through_us_and_unbound() {
    let authority = Authority::new();
    if !has("curl") {
        return;
    }
    let Some((_unbound, at)) = unbound(&authority) else { return };
    let pair = authority.issue("dns", &["dns.test", "127.0.0.1"]);
    let server = run(&Settings {
        listen: vec!["127.0.0.1:0".to_owned(), "https://127.0.0.1:0/some/path".to_owned()],
        tls: TlsSettings { certificate: pair.certificate, key: pair.key },
        ..over_https(at, &authority.ca())
    });
    let web = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = web.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        let (mut socket, _) = web.accept().expect("a client");
        let _ = socket.read(&mut [0; 4096]);
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfound").expect("sent");
    });
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--doh-insecure", "--doh-url"])
        .arg(format!("https://{}/some/path", server.at(Scheme::Https)))
        .arg(format!("http://www.peer.test:{port}/"))
        .output()
        .expect("it runs");
    assert_eq!(output.stdout, b"found", "{}", String::from_utf8_lossy(&output.stderr));
}

/// A forwarder in front of such an upstream, with one connection to it.
fn forwarder(authority: &Authority, upstreams: &[&Http2]) -> Settings {
    let name = |upstream: &&Http2| {
        format!("https://{}/dns-query?name=dns.test&ca={}", upstream.address, authority.ca().display())
    };
    Settings { upstreams: upstreams.iter().map(name).collect(), ..settings(&[]) }
}

fn issue(authority: &Authority) -> Pair {
    authority.issue("upstream", &["dns.test"])
}

fn always(answer: impl Fn(Asked) -> Act + Send + Sync + 'static) -> impl Fn(Asked) -> Vec<Act> + Send + Sync {
    move |asked| vec![answer(asked)]
}

/// Sends so many questions at once; all must be answered rightly.
fn burst(server: &Running, prefix: &str, n: u16) {
    let client = Udp::to(server.address);
    for i in 0..n {
        client.send(&query(i, &format!("{prefix}{i}.test"), 1, None));
    }
    for _ in 0..n {
        let reply = client.recv();
        assert_eq!(address(&reply), expected_a(&format!("{prefix}{}.test", support::id(&reply))));
    }
}

#[test]
fn streams_beyond_a_goodbye_are_asked_anew_on_another_connection() {
    let authority = Authority::new();
    // Every connection answers ten, then says goodbye to those that come after, without a look at them.
    let peer = http2(&issue(&authority), None, |asked| match asked.n {
        0..9 => vec![Act::Answer(asked)],
        9 => {
            let last = asked.stream;
            vec![Act::Goaway(last), Act::Answer(asked)]
        }
        _ => vec![Act::Ignore],
    });
    let server = run(&forwarder(&authority, &[&peer]));
    for round in 0..5 {
        burst(&server, &format!("r{round}n"), 30);
    }
    let stats = server.stats();
    assert!(stats.counters.replays > 0, "{:?}", stats.counters);
    let counters = &stats.counters;
    assert_eq!(counters.failed_upstream + counters.failed_timeout + counters.failed_local, 0);
    assert_eq!(counters.replies, 150);
    assert!(peer.seen.connections.load(SeqCst) >= 15, "each has carried ten");
}

#[test]
fn a_stream_that_is_refused_or_reset_is_asked_of_the_next_and_the_others_go_on() {
    let authority = Authority::new();
    for code in [http2::REFUSED_STREAM, http2::CANCEL] {
        let peer = http2(&issue(&authority), None, move |asked| {
            vec![if asked.n % 2 == 0 { Act::Reset(asked, code) } else { Act::Answer(asked) }]
        });
        let other = http2(&issue(&authority), None, always(Act::Answer));
        let server = run(&forwarder(&authority, &[&peer, &other]));
        // What is refused before the upstream has said how many it takes is asked of it anew: it is not to blame.
        burst(&server, "first", 1);
        burst(&server, "n", 20);
        assert_eq!(peer.seen.connections.load(SeqCst), 1, "its connection is kept");
        assert!(other.seen.queries.load(SeqCst) >= 9, "what the first refused");
        assert_eq!(server.stats().counters.failed_upstream, 0);
    }
}

#[test]
fn responses_that_are_no_dns_answers_send_the_query_to_the_next() {
    let authority = Authority::new();
    let other = http2(&issue(&authority), None, always(Act::Answer));
    type Bad = (&'static str, fn(Asked) -> Act, u64);
    let bad: [Bad; 7] = [
        ("404", |asked| Act::Status(asked, 404), 0),
        ("429", |asked| Act::Status(asked, 429), 0),
        ("503", |asked| Act::Status(asked, 503), 0),
        ("a page", Act::Html, 0),
        ("another question", Act::Wrong, 1),
        ("no end", Act::Endless, 0),
        ("the connection ends", |_| Act::Close, 0),
    ];
    for (what, act, unexpected) in bad {
        let before = other.seen.queries.load(SeqCst);
        let peer = http2(&issue(&authority), None, always(act));
        let server = run(&forwarder(&authority, &[&peer, &other]));
        let reply = Udp::to(server.address).ask("a.test");
        assert_eq!(address(&reply), expected_a("a.test"), "{what}");
        assert!(peer.seen.queries.load(SeqCst) >= 1 && other.seen.queries.load(SeqCst) > before, "{what}");
        let stats = server.stats();
        assert_eq!(stats.counters.unexpected, unexpected, "{what}");
        assert!(stats.pools[0].snapshot.last_failure.is_some(), "{what}: it is to blame");
        if what == "no end" {
            let end = Instant::now() + PATIENCE;
            while peer.seen.resets.load(SeqCst) == 0 {
                assert!(Instant::now() < end, "its stream is let go of");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn the_age_of_an_answer_is_taken_off_its_ttl() {
    let authority = Authority::new();
    let peer = http2(&issue(&authority), None, always(|asked| Act::Aged(asked, 45)));
    let server = run(&forwarder(&authority, &[&peer]));
    let left = ttl(&Udp::to(server.address).ask("a.test"));
    assert!((14..=15).contains(&left), "{left} of 60 seconds, 45 of which have passed");
}

#[test]
fn no_connection_carries_more_than_the_upstream_allows() {
    let authority = Authority::new();
    let peer = http2(&issue(&authority), Some(3), always(Act::Answer));
    let server = run(&forwarder(&authority, &[&peer]));
    // Later connections begin with what the first has learnt.
    burst(&server, "first", 1);
    for round in 0..5 {
        burst(&server, &format!("r{round}n"), 40);
    }
    assert!(peer.seen.busiest.load(SeqCst) <= 3, "{}", peer.seen.busiest.load(SeqCst));
    let stats = server.stats();
    assert_eq!((stats.counters.retries, stats.counters.failed_timeout), (0, 0), "{:?}", stats.counters);
    // An upstream that allows nothing at all is as good as one that refuses.
    let peer = http2(&issue(&authority), Some(0), always(Act::Answer));
    let other = http2(&issue(&authority), None, always(Act::Answer));
    let server = run(&forwarder(&authority, &[&peer, &other]));
    burst(&server, "n", 5);
}

#[test]
fn capacity_bounds_the_queries_on_a_connection_too() {
    let authority = Authority::new();
    let peer = http2(&issue(&authority), None, always(Act::Answer));
    let stream = StreamSettings { capacity: 2, ..StreamSettings::default() };
    let server = run(&Settings { stream, ..forwarder(&authority, &[&peer]) });
    burst(&server, "n", 40);
    assert!(peer.seen.busiest.load(SeqCst) <= 2);
    assert!(peer.seen.connections.load(SeqCst) > 1);
}

#[test]
fn a_connection_whose_other_end_is_gone_is_found_and_left() {
    let authority = Authority::new();
    // The first connection answers one query and then nothing, not even a PING; it stays open.
    let peer = http2(&issue(&authority), None, |asked| match (asked.connection, asked.n) {
        (0, 0) => vec![Act::Answer(asked), Act::Hang],
        _ => vec![Act::Answer(asked)],
    });
    let server = run(&Settings { attempt_timeout: span(200), ..forwarder(&authority, &[&peer]) });
    let client = Udp::to(server.address);
    assert_eq!(address(&client.ask("a.test")), expected_a("a.test"));
    let began = Instant::now();
    assert_eq!(address(&client.ask("b.test")), expected_a("b.test"));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(peer.seen.pings.load(SeqCst) >= 1, "a sign of life was asked for");
    assert!(peer.seen.connections.load(SeqCst) >= 2);
    server.until("the dead one is closed", |stats| stats.pools[0].snapshot.connections() <= 1);
}

#[test]
fn a_slow_upstream_that_shows_signs_of_life_is_not_taken_for_dead() {
    let authority = Authority::new();
    let peer = http2(
        &issue(&authority),
        None,
        always(|asked| {
            std::thread::sleep(Duration::from_millis(5));
            if asked.n == 0 { Act::Ignore } else { Act::Answer(asked) }
        }),
    );
    let server = run(&Settings { attempt_timeout: span(200), ..forwarder(&authority, &[&peer]) });
    assert_eq!(address(&Udp::to(server.address).ask("a.test")), expected_a("a.test"));
    assert_eq!(peer.seen.connections.load(SeqCst), 1, "PINGs were answered: the second try went out on it");
}

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};

use forebay_bench::responder::Responder;
use forebay_dns::{DnsConfig, Server, Settings};

use super::metrics::{Kind, descriptions};
use super::*;

/// A server with two upstreams, of which one is listed twice, that has answered a few queries.
fn server() -> (Responder, Server) {
    let upstream = Responder::builder().spawn().unwrap();
    let url = upstream.addr().to_string();
    let settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        upstreams: vec![url.clone(), format!("tcp://{url}"), url],
        workers: 1,
        ..Settings::default()
    };
    let server = forebay_dns::start(DnsConfig::new(&settings, &[], 1).unwrap()).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for name in [b"one", b"two", b"one"] {
        let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3];
        query.extend_from_slice(name);
        query.extend_from_slice(&[0, 0, 1, 0, 1]);
        client.send_to(&query, server.local_addrs()[0].address).unwrap();
        let mut reply = [0; 512];
        assert!(client.recv(&mut reply).unwrap() > query.len());
    }
    (upstream, server)
}

fn admin(server: &Server, token: Option<&str>) -> Admin {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    Admin::start(
        listener,
        Source { dns: Some(server.handle()), proxies: Vec::new(), grpc: None },
        token.map(str::to_owned),
    )
    .unwrap()
}

/// Asks for a path, and returns the status and the body.
fn ask(admin: &Admin, path: &str, headers: &str) -> (u16, String) {
    request(admin, "GET", path, headers)
}

fn request(admin: &Admin, method: &str, path: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin.address()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: admin\r\n{headers}\r\n").unwrap();
    let mut answer = String::new();
    // The answer ends with its connection.
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn each_path_answers_and_others_are_told_of_them() {
    let (_upstream, server) = server();
    let admin = admin(&server, None);
    assert_eq!(ask(&admin, "/healthz", ""), (200, "alive\n".to_owned()));
    assert_eq!(ask(&admin, "/readyz", ""), (200, "ready\n".to_owned()));
    assert_eq!(ask(&admin, "/metrics", "").0, 200);
    assert_eq!(ask(&admin, "/pools", "").0, 200);
    let (status, body) = ask(&admin, "/metric", "");
    assert_eq!(status, 404);
    for path in ["/metrics", "/pools", "/healthz", "/readyz"] {
        assert!(body.contains(path), "{body}");
    }
}

#[test]
fn not_ready_while_draining_but_alive() {
    let (_upstream, server) = server();
    let admin = admin(&server, None);
    admin.set_phase(Phase::Draining);
    assert_eq!(ask(&admin, "/readyz", ""), (503, "draining\n".to_owned()));
    assert_eq!(ask(&admin, "/healthz", "").0, 200);
    admin.set_phase(Phase::Serving);
    assert_eq!(ask(&admin, "/readyz", "").0, 200);
}

#[test]
fn a_token_guards_figures_but_not_health() {
    let (_upstream, server) = server();
    let admin = admin(&server, Some("0123456789abcdef"));
    for path in ["/metrics", "/pools", "/other"] {
        assert_eq!(ask(&admin, path, "").0, 401, "{path}");
        assert_eq!(ask(&admin, path, "Authorization: Bearer 0123456789abcdeF\r\n").0, 401, "{path}");
        assert_eq!(ask(&admin, path, "Authorization: Bearer 0123456789abcde\r\n").0, 401, "{path}");
    }
    assert_eq!(ask(&admin, "/metrics", "Authorization: Bearer 0123456789abcdef\r\n").0, 200);
    assert_eq!(ask(&admin, "/healthz", "").0, 200);
    assert_eq!(ask(&admin, "/readyz", "").0, 200);
}

#[test]
fn a_flush_forgets_a_name_or_a_subtree_and_says_how_much_that_was() {
    let (_upstream, server) = server();
    let admin = admin(&server, Some("0123456789abcdef"));
    let token = "Authorization: Bearer 0123456789abcdef\r\nContent-Length: 0\r\n";
    let post = |path: &str, headers: &str| request(&admin, "POST", path, headers);
    assert_eq!(post("/dns/flush?name=one", "Content-Length: 0\r\n").0, 401, "it needs the token");
    assert_eq!(ask(&admin, "/dns/flush?name=one", token).0, 405, "to look is not to forget");
    let from_a_page = format!("{token}Origin: https://example.org\r\n");
    assert_eq!(post("/dns/flush?name=one", &from_a_page).0, 403);
    let (status, body) = post("/dns/flush?name=a..b", token);
    assert!(status == 400 && body.contains("a..b") && body.contains("POST /dns/flush?name="), "{body}");
    let flushed = |path: &str| {
        let (status, body) = post(path, token);
        assert_eq!(status, 200, "{body}");
        let report: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(report["workers"], 1);
        report["flushed"].as_u64().unwrap()
    };
    assert_eq!(flushed("/dns/flush?name=three"), 0);
    assert_eq!(flushed("/dns/flush?name=ONE"), 1);
    assert_eq!(flushed("/dns/flush?name=one"), 0);
    assert_eq!(flushed("/dns/flush?name=.&subtree=true"), 1);
    let samples = parse(&ask(&admin, "/metrics", token).1);
    assert_eq!((samples["forebay_dns_cache_entries"], samples["forebay_dns_flushed_total"]), (0.0, 2.0));
}

#[test]
fn a_profile_that_cannot_be_is_refused_with_what_can() {
    let (_upstream, server) = server();
    let admin = admin(&server, Some("0123456789abcdef"));
    let token = "Authorization: Bearer 0123456789abcdef\r\n";
    for path in ["profile", "flamegraph", "heap"] {
        let path = format!("/debug/pprof/{path}");
        assert_eq!(ask(&admin, &path, "").0, 401, "{path} needs the token");
        let (status, body) = ask(&admin, &format!("{path}?minutes=1"), token);
        assert!(status == 400 && body.contains("minutes"), "{status}: {body}");
    }
    for query in ["seconds=61", "hz=1000"] {
        let (status, body) = ask(&admin, &format!("/debug/pprof/flamegraph?{query}"), token);
        let what_can = "1 to 60 seconds, 1 to 999 samples";
        assert!(
            status == 400 && body.contains(&query.replace('=', ": `")) && body.contains(what_can),
            "{body}"
        );
    }
    assert_eq!(request(&admin, "POST", "/debug/pprof/profile", token).0, 405);
    let from_a_page = format!("{token}Origin: https://example.org\r\nContent-Length: 0\r\n");
    assert_eq!(request(&admin, "POST", "/debug/pprof/heap?active=true", &from_a_page).0, 403);
    assert!(ask(&admin, "/debug", token).1.contains("/debug/pprof/flamegraph"));
}

#[test]
fn pools_say_what_each_pool_does() {
    let (upstream, server) = server();
    let admin = admin(&server, None);
    let report: serde_json::Value = serde_json::from_str(&ask(&admin, "/pools", "").1).unwrap();
    let pools = report["pools"].as_array().unwrap();
    let names: BTreeSet<&str> = pools.iter().map(|pool| pool["endpoint"].as_str().unwrap()).collect();
    assert_eq!(names.len(), pools.len(), "{names:?}");
    let first = format!("udp://{}", upstream.addr());
    let pool = pools.iter().find(|pool| pool["endpoint"] == first.as_str()).unwrap();
    assert_eq!(pool["transport"], "udp");
    assert_eq!(pool["breaker"], "closed");
    assert_eq!(pool["last_failure"], serde_json::Value::Null);
    assert_eq!(pool["limits"]["connections_max"], 4096);
    assert_eq!(pool["dials"]["succeeded"], pool["dials"]["started"]);
    let acquires: u64 = pool["acquires"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(acquires, 2, "two of three names were asked upstream: {pool}");
    assert!(pool["connections"]["ready"].as_u64().unwrap() >= 8, "{pool}");
}

#[test]
fn metrics_count_what_happened() {
    let (_upstream, server) = server();
    let samples = parse(&ask(&admin(&server, None), "/metrics", "").1);
    assert_eq!(samples["forebay_dns_queries_total"], 3.0);
    assert_eq!(samples["forebay_dns_hits_total"], 1.0);
    assert_eq!(samples["forebay_dns_misses_total"], 2.0);
    assert_eq!(samples["forebay_dns_cache_entries"], 2.0);
    assert_eq!(samples["forebay_dns_upstream_seconds_count"], 2.0);
    assert_eq!(samples["forebay_dns_workers"], 1.0);
    assert!(samples["forebay_dns_upstream_seconds_sum"] < 5.0);
    assert!(samples["process_open_fds"] > 3.0);
}

#[test]
fn the_exposition_is_as_prometheus_wants_it() {
    let (_upstream, server) = server();
    let admin = admin(&server, None);
    let text = ask(&admin, "/metrics", "").1;
    let samples = parse(&text);
    let mut described = descriptions();
    let mut names: Vec<_> = described.iter().map(|one| one.name.clone()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), described.len(), "two metrics have one name");
    for one in &described {
        assert_eq!(one.name.ends_with("_total"), one.kind == Kind::Counter, "{}", one.name);
        assert!(one.help.ends_with('.'), "{}: {}", one.name, one.help);
    }
    described.retain(|one| one.kind == Kind::Histogram);
    for histogram in described {
        let bucket = format!("{}_bucket{{", histogram.name);
        let mut series: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
        for (name, value) in samples.iter().filter(|(name, _)| name.starts_with(&bucket)) {
            let (labels, bound) = name[bucket.len() - 1..].split_once("le=\"").unwrap();
            let bound = bound.trim_end_matches("\"}");
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().unwrap() };
            series.entry(labels.trim_end_matches([',', '{']).to_owned()).or_default().push((bound, *value));
        }
        assert!(!series.is_empty(), "{}", histogram.name);
        for (labels, mut buckets) in series {
            buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
            assert!(buckets.is_sorted_by(|a, b| a.1 <= b.1), "{buckets:?}");
            let (last, all) = buckets.last().unwrap();
            assert!(last.is_infinite());
            let labels = if labels.is_empty() { labels } else { format!("{labels}}}") };
            assert_eq!(samples[&format!("{}_count{labels}", histogram.name)], *all);
        }
    }
}

/// Reads the text format strictly: each metric has HELP, TYPE and then its samples; no sample comes twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    assert!(text.ends_with('\n'));
    let is_name = |name: &str| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    let (mut samples, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let (mut family, mut kind) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(is_name(&family) && seen.insert(family.clone()), "{line}");
            kind.clear();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, word) = rest.split_once(' ').unwrap();
            assert_eq!(name, family);
            kind = word.to_owned();
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line}");
            if let Some((_, labels)) = series.split_once('{') {
                for pair in labels.strip_suffix('}').unwrap().split("\",") {
                    let (label, value) = pair.split_once("=\"").unwrap();
                    assert!(is_name(label) && !value.trim_end_matches('"').contains('"'), "{line}");
                }
            }
            assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line}");
        }
    }
    samples
}

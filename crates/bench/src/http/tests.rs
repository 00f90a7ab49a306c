//! The generator against the scripted backends.

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::h1::{Body, Head};
use super::*;
use crate::backend::{Backend, Serve};

fn load(scheme: &str, backend: &Backend, path: &str, requests: u64) -> HttpLoad {
    let url = format!("{scheme}://localhost:{}{path}", backend.addr().port());
    HttpLoad {
        requests: Some(requests),
        duration: None,
        timeout: Duration::from_secs(10),
        clients: 8,
        pool: Some(8),
        ..HttpLoad::new(url.parse().expect("a URL"))
    }
}

fn figures(report: &HttpReport) -> (u64, u64, u64) {
    (report.figures.answered, report.figures.failed, report.figures.connections_opened)
}

/// A backend with a certificate for localhost, and who has signed that.
fn encrypted(serve: Serve, alpn: &[u8]) -> (Backend, Roots) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let backend = Backend::builder().serve(serve).tls(Arc::new(config)).spawn().unwrap();
    (backend, Roots::from_pem(made.cert.pem().as_bytes()).unwrap())
}

#[test]
fn connections_are_kept_pooled_or_opened_for_each_request() {
    for (pool, clients, most) in [(Some(8), 8, 8), (Some(2), 8, 2), (None, 8, 400)] {
        let backend = Backend::spawn(Serve::Http);
        let report = run(&HttpLoad { pool, clients, ..load("http", &backend, "/", 400) }).unwrap();
        let (answered, failed, opened) = figures(&report);
        assert_eq!((answered, failed), (400, 0), "{report}");
        assert!(opened <= most && opened == backend.stats().connections, "{report}");
        assert_eq!(pool.is_none(), opened == 400, "{report}");
        assert_eq!(report.statuses, BTreeMap::from([(200, 400)]));
        assert_eq!(backend.stats().requests, 400);
    }
}

#[test]
fn answers_are_read_to_their_end_however_they_are_framed() {
    let backend = Backend::spawn(Serve::Http);
    for (path, opened) in [
        ("/size/100000", 1),
        ("/chunked/100000/777", 1),
        ("/trailers/5000", 1),
        ("/hints", 1),
        ("/status/204", 1),
        ("/status/304", 1),
        ("/http10-keep", 1),
        ("/close-delimited/70000", 20),
        ("/close", 20),
        ("/http10", 20),
    ] {
        let load = HttpLoad { clients: 1, ..load("http", &backend, path, 20) };
        assert_eq!(figures(&run(&load).unwrap()), (20, 0, opened), "{path}");
        let head = HttpLoad { method: "HEAD".to_owned(), ..load };
        assert_eq!(figures(&run(&head).unwrap()).0, 20, "HEAD {path}");
    }
    let report = run(&load("http", &backend, "/size/1000", 10)).unwrap();
    assert!(report.figures.bytes_received > 10_000, "{report}");
}

#[test]
fn bodies_and_fields_are_sent_by_both_protocols() {
    let fields = vec![("X-Bench".to_owned(), "yes".to_owned())];
    for (serve, http2) in [(Serve::Http, false), (Serve::Http2, true)] {
        let backend = Backend::spawn(serve);
        let base = load("http", &backend, "/echo", 40);
        let body = 20_000;
        let load = HttpLoad { method: "POST".to_owned(), body, http2, fields: fields.clone(), ..base };
        let report = run(&load).unwrap();
        assert_eq!(figures(&report).0, 40, "{report}");
        assert!(report.figures.bytes_received >= 800_000, "{report}");
    }
    let backend = Backend::spawn(Serve::Http);
    let report = run(&HttpLoad { fields, ..load("http", &backend, "/head", 1) }).unwrap();
    let sent = "GET /head HTTP/1.1\r\nHost: localhost:12345\r\nX-Bench: yes\r\n\r\n".len() as u64;
    assert_eq!(report.figures.bytes_sent, sent);
    assert_eq!(backend.stats().bytes_read, sent);
}

#[test]
fn pipelined_requests_are_answered_together() {
    let backend = Backend::spawn(Serve::Http);
    let pipelined = HttpLoad { pipeline: 10, clients: 2, pool: Some(2), ..load("http", &backend, "/", 200) };
    assert_eq!(figures(&run(&pipelined).unwrap()), (200, 0, 2));
    let cut = HttpLoad { url: format!("http://{}/close", backend.addr()).parse().unwrap(), ..pipelined };
    let report = run(&cut).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (0, 200), "{report}");
}

#[test]
fn http2_carries_many_requests_on_each_connection() {
    let backend = Backend::spawn(Serve::Http2);
    let wide =
        HttpLoad { http2: true, clients: 50, pool: Some(2), ..load("http", &backend, "/delay/2", 500) };
    let report = run(&wide).unwrap();
    let (answered, failed, opened) = figures(&report);
    assert_eq!((answered, failed), (500, 0), "{report}");
    assert!(opened <= 2, "{report}");
    // 50 at once take 2 ms each; two connections that carried one each would need half a second.
    assert!(report.figures.elapsed_seconds < 0.4, "{report}");
    let single = HttpLoad { pool: None, clients: 4, ..wide };
    assert_eq!(figures(&run(&single).unwrap()), (500, 0, 500));
    let trailers = load("http", &backend, "/trailers/100000", 20);
    assert_eq!(figures(&run(&HttpLoad { http2: true, ..trailers }).unwrap()).0, 20);
}

#[test]
fn certificates_are_verified_for_both_protocols() {
    for (serve, alpn, http2) in [(Serve::Http, &b"http/1.1"[..], false), (Serve::Http2, b"h2", true)] {
        let (backend, roots) = encrypted(serve, alpn);
        let trusting = HttpLoad { http2, roots: Some(roots), ..load("https", &backend, "/size/5000", 60) };
        let report = run(&trusting).unwrap();
        assert_eq!((report.figures.answered, report.figures.failed), (60, 0), "{report}");
        assert!(report.figures.connections_opened <= 8, "{report}");
        let (_, others) = encrypted(Serve::Http, b"http/1.1");
        let wary = HttpLoad { roots: Some(others), requests: Some(3), clients: 1, pool: None, ..trusting };
        let report = run(&wary).unwrap();
        assert_eq!((report.figures.answered, report.figures.failed), (0, 3), "{report}");
    }
}

#[test]
fn what_fails_is_counted_by_its_kind() {
    let backend = Backend::spawn(Serve::Http);
    let kinds = |load: &HttpLoad| -> Vec<String> { run(load).unwrap().figures.errors.into_keys().collect() };
    for (path, kind) in [
        ("/hang-up", "closed"),
        ("/short/100", "closed"),
        ("/short-chunked/100", "closed"),
        ("/reset", "reset"),
        ("/wrong/no-http", "protocol"),
        ("/wrong/chunk-size", "protocol"),
        ("/wrong/chunk-end", "protocol"),
        ("/wrong/length-overflow", "protocol"),
        ("/extra", "protocol"),
    ] {
        assert_eq!(kinds(&HttpLoad { pool: None, ..load("http", &backend, path, 4) }), [kind], "{path}");
    }
    let impatient = HttpLoad { timeout: Duration::from_millis(30), ..load("http", &backend, "/hang", 4) };
    assert_eq!(kinds(&impatient), ["timeout"]);
    let backend = Backend::spawn(Serve::Http2);
    for (path, kind) in
        [("/reset", "stream reset"), ("/refuse", "refused stream"), ("/short/50", "stream reset")]
    {
        assert_eq!(kinds(&HttpLoad { http2: true, ..load("http", &backend, path, 4) }), [kind], "{path}");
    }
}

#[test]
fn an_open_loop_counts_from_when_a_request_was_due() {
    let backend = Backend::spawn(Serve::Http);
    let behind =
        HttpLoad { rate: Some(200.0), clients: 1, pool: Some(1), ..load("http", &backend, "/delay/20", 10) };
    let latency = run(&behind).unwrap().figures.latency.unwrap();
    assert!(latency.max_us > 100_000.0, "{latency:?}");
}

#[test]
fn heads_say_how_bodies_end() {
    let head = |text: &str| Head::read(text.as_bytes(), false);
    let cases = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 200, Body::Length(5), false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, Chunked\r\n\r\n", 200, Body::Chunked, false),
        ("HTTP/1.1 200 OK\r\n\r\n", 200, Body::UntilClose, true),
        ("HTTP/1.1 204\r\n\r\n", 204, Body::Length(0), false),
        ("HTTP/1.1 200 OK\r\nconnection: x, CLOSE\r\ncontent-length:0\r\n\r\n", 200, Body::Length(0), true),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", 200, Body::Length(1), true),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n",
            200,
            Body::Length(1),
            false,
        ),
    ];
    for (text, status, body, last) in cases {
        assert_eq!(head(text), Some(Head { status, body, last }), "{text}");
    }
    for text in
        ["", "HTTP/2 200\r\n\r\n", "HTTP/1.1 abc\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"]
    {
        assert_eq!(head(text), None, "{text}");
    }
}

#[test]
fn urls_are_read_and_written() {
    for (text, written) in [
        ("http://127.0.0.1:80/", "http://127.0.0.1/"),
        ("http://example.test", "http://example.test/"),
        ("https://example.test:8443/a?b=c", "https://example.test:8443/a?b=c"),
        ("https://[::1]:443?q", "https://[::1]/?q"),
    ] {
        assert_eq!(text.parse::<Url>().unwrap().to_string(), written);
    }
    for text in [
        "127.0.0.1",
        "ftp://x/",
        "http://",
        "http://x:0/",
        "http://x:y/",
        "http://[::1/",
        "http://u@x/",
        "http://x/#f",
        "http://x/ä",
    ] {
        assert!(text.parse::<Url>().is_err(), "{text}");
    }
}

#[test]
fn a_load_that_cannot_be_names_its_setting() {
    let good = HttpLoad::new("http://127.0.0.1:9/".parse().unwrap());
    let post = |text: &str| text.to_owned();
    let cases = [
        ("clients", HttpLoad { clients: 0, ..good.clone() }),
        ("method", HttpLoad { method: post("GET /"), ..good.clone() }),
        ("method", HttpLoad { method: post("CONNECT"), ..good.clone() }),
        ("body", HttpLoad { body: usize::MAX, ..good.clone() }),
        ("header", HttpLoad { fields: vec![(post("A"), post("b\r\nC: d"))], ..good.clone() }),
        ("pipeline", HttpLoad { pipeline: 0, ..good.clone() }),
        ("pipeline", HttpLoad { pipeline: 2, http2: true, ..good.clone() }),
        ("streams", HttpLoad { streams: 0, ..good.clone() }),
        ("timeout", HttpLoad { timeout: Duration::ZERO, ..good.clone() }),
        ("pool", HttpLoad { pool: Some(0), ..good.clone() }),
        ("pool", HttpLoad { pool: Some(1), threads: 2, ..good.clone() }),
    ];
    for (name, load) in cases {
        match run(&load) {
            Err(BenchError::Setting { setting, .. }) => assert_eq!(setting, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

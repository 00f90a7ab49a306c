//! Requests of HTTP/1.1 from end to end: a proxy, scripted backends and clients in one process. What may be shared and
//! what never is stands in `rules.rs`.

#[path = "support/http1.rs"]
mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

use forebay_bench::backend::http::Step;
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{PoolMode, Settings};
use forebay_proxy_core::http1::Method;
use support::{Client, PATIENCE, ask, backend, eventually, figures, pair, proxy};

#[test]
fn a_request_is_answered_by_the_backend() {
    let (server, _backend) = pair();
    let answer = Client::new(&server).get("/");
    assert_eq!((answer.status, answer.text(), answer.stamp()), (200, "ok", (1, 1)));
}

#[test]
fn requests_of_one_client_and_of_others_share_a_connection() {
    let (server, backend) = pair();
    for _ in 0..5 {
        let mut client = Client::new(&server);
        for _ in 0..5 {
            assert_eq!(client.get("/").status, 200);
        }
    }
    assert_eq!((backend.stats().connections, backend.stats().requests), (1, 25));
    assert_eq!((figures(&server).requests, figures(&server).retries), (25, 0));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let text: String = (1..=50)
        .map(|n| match n % 3 {
            0 => format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{n:03}"),
            1 => format!(
                "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{n:03}\r\n0\r\n\r\n"
            ),
            _ => format!("GET /size/{n} HTTP/1.1\r\nHost: a\r\n\r\n"),
        })
        .collect();
    client.send(text);
    for n in 1..=50 {
        let answer = client.answer(Method::Get);
        match n % 3 {
            2 => assert_eq!(answer.body.len(), n),
            _ => assert_eq!(answer.text(), format!("{n:03}")),
        }
    }
}

#[test]
fn bodies_of_every_framing_pass_whole() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    for size in [0, 1, 4095, 65536, 3_000_000] {
        for path in
            [format!("/size/{size}"), format!("/chunked/{size}/777"), format!("/close-delimited/{size}")]
        {
            let answer = client.get(&path);
            assert!(answer.is_whole && answer.body.len() == size, "{path}: {}", answer.body.len());
        }
    }
    assert_eq!(figures(&server).failed_backend, 0);
    assert!(backend.stats().connections > 4, "a close-delimited response ends its connection");
}

#[test]
fn a_long_request_body_streams_through_both_ways() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let body: Vec<u8> = (0..4 << 20).map(|n: u32| (n % 253) as u8).collect();
    let mut writer = client.stream.try_clone().unwrap();
    let sent = body.clone();
    let writing = thread::spawn(move || {
        write!(writer, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", sent.len()).unwrap();
        writer.write_all(&sent).unwrap();
    });
    let answer = client.answer(Method::Post);
    writing.join().unwrap();
    assert!(answer.is_whole && answer.body == body);
    assert_eq!(client.get("/").status, 200, "and the connection lasts");
}

#[test]
fn trailers_pass_to_those_who_take_them_and_to_nobody_else() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    let answer = client
        .send("GET /trailers/10 HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: TE\r\n\r\n")
        .answer(Method::Get);
    assert_eq!(answer.trailers.len(), 2, "{answer:?}");
    let answer = client.get("/trailers/10");
    assert!(answer.is_whole && answer.trailers.is_empty());
}

#[test]
fn a_client_of_http_1_0_gets_what_it_understands() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    let answer = client.send("GET /chunked/100/7 HTTP/1.0\r\n\r\n").answer(Method::Get);
    assert_eq!((answer.body.len(), answer.field("Transfer-Encoding")), (100, None));
    assert_eq!(answer.field("Connection"), Some("close"));
    let mut client = Client::new(&server);
    for _ in 0..3 {
        let answer =
            client.send("GET /size/9 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").answer(Method::Get);
        assert_eq!((answer.body.len(), answer.field("Connection")), (9, Some("keep-alive")));
    }
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn a_head_request_has_no_body_and_keeps_its_connection() {
    let (server, backend) = pair();
    let mut client = Client::new(&server);
    let answer = client.send("HEAD /status/204 HTTP/1.1\r\nHost: a\r\n\r\n").answer(Method::Head);
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(client.get("/").status, 200);
    assert_eq!(backend.stats().connections, 1);
}

#[test]
fn interim_responses_reach_the_client() {
    let (server, _backend) = pair();
    let mut client = Client::new(&server);
    client.send("GET /hints HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.answer(Method::Get).status, 103);
    assert_eq!(client.answer(Method::Get).status, 200);
    client.send("POST /continue HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.answer(Method::Post).status, 100);
    client.send("hello");
    assert_eq!(client.answer(Method::Post).status, 200);
    assert_eq!(
        ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: tea\r\n\r\n").status,
        417
    );
}

#[test]
fn each_setting_of_what_backends_are_told_shows() {
    let backend = backend();
    let head = |change: fn(&mut Settings)| {
        let server = proxy(&[backend.addr()], change);
        let answer = ask(&server, "GET /head HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\n\r\n");
        (answer.text().to_owned(), answer.field("Via").map(ToOwned::to_owned))
    };
    assert!(!head(|settings| settings.http.x_forwarded = false).0.contains("X-Forwarded"));
    assert!(
        head(|settings| settings.http.forwarded = true)
            .0
            .contains("Forwarded: for=127.0.0.1;host=\"a\";proto=http\r\n")
    );
    assert!(head(|settings| settings.http.trust_forwarded = true).0.contains("9.9.9.9"));
    assert!(head(|settings| settings.http.request_id = true).0.contains("X-Request-ID: "));
    let (text, via) = head(|settings| settings.http.via = Some("fb".to_owned()));
    assert!(text.contains("Via: 1.1 fb\r\n"));
    assert_eq!(via.as_deref(), Some("1.1 fb"));
}

#[test]
fn limits_of_heads_are_those_of_the_settings() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.head_size_max.bytes = 1024;
        settings.http.fields_max = 8;
    });
    assert_eq!(
        ask(&server, format!("GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n", "a".repeat(1024))).status,
        431
    );
    assert_eq!(
        ask(&server, format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "A: b\r\n".repeat(8))).status,
        431
    );
}

#[test]
fn a_response_that_ends_early_is_broken_off_and_never_looks_whole() {
    let (server, _backend) = pair();
    for path in ["/short/1000", "/short-chunked/1000", "/short-reset/100000"] {
        let answer = Client::new(&server).get(path);
        assert!(answer.status == 502 || !answer.is_whole, "{path}: {answer:?}");
    }
    assert_eq!(figures(&server).failed_backend, 3);
}

#[test]
fn slow_clients_and_slow_backends_are_told_so() {
    let backend = backend();
    let short = forebay::units::Span(Duration::from_millis(200));
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.head_timeout = short;
        settings.http.body_timeout = short;
        settings.http.response_timeout = short;
        settings.http.idle_timeout = short;
    });
    assert_eq!(ask(&server, "GET / HTTP/1.1\r\nHost").status, 408);
    assert_eq!(ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab").status, 408);
    let answer = ask(&server, "GET /hang HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(answer.status, 504);
    assert!(answer.text().contains(&backend.addr().to_string()), "{}", answer.text());
    let mut idle = Client::new(&server);
    assert_eq!(idle.get("/delay/100").status, 200);
    assert!(idle.is_ended(), "an idle client is not told, but its connection is closed");
    assert_eq!(figures(&server).ended_idle, 1);
}

#[test]
fn every_backend_is_tried_before_a_client_is_refused() {
    let dead = || SocketAddr::from(([127, 0, 0, 1], forebay_bench::ports::free_port()));
    let backend = backend();
    let server = proxy(&[dead(), dead(), backend.addr()], |_| {});
    for _ in 0..6 {
        assert_eq!(ask(&server, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab").status, 200);
    }
    let server = proxy(&[dead(), dead()], |_| {});
    let mut client = Client::new(&server);
    for _ in 0..2 {
        let answer = client.get("/");
        assert_eq!(answer.status, 503);
        assert!(answer.text().contains("2 tried") && answer.text().contains("refused"), "{}", answer.text());
    }
}

#[test]
fn without_a_pool_each_request_has_a_connection_of_its_own() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| settings.pool = PoolMode::Off);
    let mut client = Client::new(&server);
    (0..5).for_each(|_| assert_eq!(client.get("/").stamp().1, 1));
    assert_eq!(backend.stats().connections, 5, "{:?}", figures(&server));
}

#[test]
fn kept_connections_end_before_their_backend_ends_them() {
    let backend = backend();
    let server = proxy(&[backend.addr()], |settings| {
        settings.http.backend_idle_timeout = forebay::units::Span(Duration::from_millis(100));
    });
    assert_eq!(Client::new(&server).get("/").status, 200);
    eventually("it ends", || backend.stats().connections_open == 0);
}

#[test]
fn a_script_of_its_own_shows_that_a_response_is_passed_on_as_it_comes() {
    let backend = Backend::builder()
        .serve(Serve::Http)
        .answer(
            "/slow",
            vec![
                Step::write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n"),
                Step::Hang,
            ],
        )
        .spawn()
        .unwrap();
    let server = proxy(&[backend.addr()], |_| {});
    let mut client = Client::new(&server);
    client.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n");
    while !client.read.ends_with(b"3\r\none\r\n") {
        assert!(client.more());
    }
}

#[test]
fn a_proxy_that_drains_lets_requests_finish_and_idle_clients_go() {
    let (server, _backend) = pair();
    let mut idle = Client::new(&server);
    assert_eq!(idle.get("/").status, 200);
    let mut busy = Client::new(&server);
    busy.send("GET /delay/300 HTTP/1.1\r\nHost: a\r\n\r\n");
    eventually("the request is at the backend", || figures(&server).requests == 2);
    let draining = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.drain(PATIENCE));
    });
    let began = Instant::now();
    assert!(idle.is_ended());
    assert!(began.elapsed() < Duration::from_millis(250), "an idle client is not waited for");
    let answer = busy.answer(Method::Get);
    assert_eq!((answer.status, answer.text()), (200, "ok"));
    assert!(busy.is_ended());
    draining.join().unwrap();
}

#[test]
fn a_backend_that_keeps_back_pressure_is_never_buffered_for() {
    // Takes the head and then nothing: what the client can send is what sockets and bounds hold.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = proxy(&[listener.local_addr().unwrap()], |_| {});
    let mut client = Client::new(&server);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n");
    let (_backend, _) = listener.accept().unwrap();
    client.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let piece = vec![b'x'; 1 << 20];
    let mut sent = 0_usize;
    while let Ok(n) = client.stream.write(&piece) {
        sent += n;
        assert!(sent < 64 << 20, "the proxy takes what nobody reads");
    }
}

//! HTTP/2 on both sides, and TLS: a proxy, scripted backends and clients in one process.

#[path = "support/http2.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod support;

use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::Settings;
use h2::Reason;
use http::{HeaderMap, Request};
use support::{Authority, Backend2, Script, connect, connect_tls, figures, get, proxy, read_body, within};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_request_by_http2_reaches_a_backend_of_http2_and_is_answered() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    for n in 0..5 {
        let answer = get(&mut client, "/hello").await;
        assert_eq!((answer.status, &answer.body[..]), (200, &b"hello"[..]), "{n}");
        assert_eq!(answer.headers["seen-for"], "127.0.0.1");
        assert_eq!(answer.headers["seen-authority"], "test");
    }
    assert_eq!(backend.connections(), 1, "one connection carries them all");
    assert_eq!(figures(&server).requests, 5);
}

#[tokio::test]
async fn a_request_by_http2_reaches_a_backend_of_http1_and_is_answered() {
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr().to_string()], |_| {});
    let mut client = connect(&server).await;
    for _ in 0..3 {
        let answer = get(&mut client, "/size/100").await;
        assert_eq!((answer.status, answer.body.len()), (200, 100));
        assert_eq!(answer.headers["content-length"], "100");
        for name in ["connection", "transfer-encoding", "keep-alive"] {
            assert!(!answer.headers.contains_key(name), "{name} is HTTP/1.1's: {:?}", answer.headers);
        }
    }
    let answer = get(&mut client, "/chunked/70000/1000").await;
    assert_eq!((answer.status, answer.body.len()), (200, 70_000));
}

#[tokio::test]
async fn a_request_by_http1_reaches_a_backend_of_http2_and_is_answered() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let answer =
        support::get1(&server, "GET /hello HTTP/1.1\r\nHost: one\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.contains("seen-authority: one\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{answer}");
    // A body that way, and trailers back.
    let asked = "POST /echo HTTP/1.1\r\nHost: one\r\nTE: trailers\r\nConnection: TE, close\r\nContent-Length: 3\r\n\r\nabc";
    let answer = support::get1(&server, asked).await;
    assert!(answer.ends_with("3\r\nabc\r\n0\r\nechoed: yes\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn bodies_and_trailers_go_both_ways_through_every_pair() {
    let (two, one) = (Backend2::spawn(Script::default()).await, Backend::spawn(Serve::Http));
    for backend in [format!("h2c://{}", two.address), one.addr().to_string()] {
        let server = proxy(std::slice::from_ref(&backend), |_| {});
        let mut client = connect(&server).await;
        let request = Request::post("http://test/echo").header("te", "trailers").body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        let sent: Vec<u8> = (0..3 * MIB).map(|n| (n * 7) as u8).collect();
        let send = async {
            let mut rest = Bytes::from(sent.clone());
            while !rest.is_empty() {
                body.reserve_capacity(rest.len());
                let room = std::future::poll_fn(|cx| body.poll_capacity(cx)).await.unwrap().unwrap();
                body.send_data(rest.split_to(room.min(rest.len())), false).unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("sent", "all".parse().unwrap());
            body.send_trailers(trailers).unwrap();
        };
        let receive = async {
            let response = response.await.unwrap();
            assert_eq!(response.status(), 200, "{backend}");
            read_body(response.into_body()).await.unwrap()
        };
        let ((), (came, trailers)) = within(async { tokio::join!(send, receive) }).await;
        assert!(came == sent, "{backend}: {} bytes", came.len());
        if backend.starts_with("h2c") {
            assert_eq!(trailers.unwrap()["echoed"], "yes");
            assert_eq!(two.last_trailers().unwrap()["sent"], "all");
        }
    }
}

#[tokio::test]
async fn grpc_goes_through_with_its_status_in_trailers_or_alone() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    let call = |path: &str| {
        Request::post(format!("http://test{path}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap()
    };
    let (response, mut body) = client.send_request(call("/grpc"), false).unwrap();
    body.send_data(Bytes::from_static(b"\0\0\0\0\x02hi"), true).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(response.headers()["seen-te"], "trailers");
    let (came, trailers) = read_body(response.into_body()).await.unwrap();
    assert_eq!(
        (&came[..], &trailers.unwrap()["grpc-status"]),
        (&b"\0\0\0\0\x02hi"[..], &"0".parse().unwrap())
    );
    // A status alone is a head that ends its stream: anything after it would be an error to gRPC.
    let (response, mut body) = client.send_request(call("/grpc-status"), false).unwrap();
    body.send_data(Bytes::new(), true).unwrap();
    let response = within(response).await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert!(response.into_body().is_end_stream());
}

#[tokio::test]
async fn what_the_other_side_does_not_take_is_not_asked_for() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    // Much is promised, and nothing taken.
    let request = Request::get("http://test/endless").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = within(response).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let sent = backend.sent_bytes();
    assert!(sent > 0 && sent <= 1 << 20, "{sent} bytes came for a client that takes nothing");
    // Others on the same connection are not in its way (rule 11).
    let mut other = connect(&server).await;
    for _ in 0..10 {
        let answer = within(get(&mut other, "/hello")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(backend.connections(), 1);
    // Nor is the backend's sending held up for ever: the client leaves, and so does its stream.
    drop(response);
    let begun = Instant::now();
    while backend.resets().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(5), "the backend still sends");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(backend.resets(), [Reason::CANCEL]);
}

#[tokio::test]
async fn a_reset_by_the_backend_reaches_the_client_with_its_code() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    let request = Request::get("http://test/reset-midway").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = within(response).await.unwrap();
    let error = read_body(response.into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM), "{error}");
    // Before a response has begun, the client is told whose fault it was.
    let answer = get(&mut client, "/reset").await;
    assert_eq!(answer.status, 502);
    assert!(String::from_utf8_lossy(&answer.body).contains("look at the backend"), "{answer:?}");
}

#[tokio::test]
async fn a_response_that_a_backend_of_http1_cuts_short_is_broken_off() {
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr().to_string()], |_| {});
    let mut client = connect(&server).await;
    let request = Request::get("http://test/short/1000").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let Ok(response) = within(response).await else { return };
    let error = read_body(response.into_body()).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error}");
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_even_if_it_may_not_be_asked_twice() {
    let backend = Backend2::spawn(Script { refuses: 1, ..Script::default() }).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    let request = Request::post("http://test/hello").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    assert_eq!(within(response).await.unwrap().status(), 200);
    assert_eq!(figures(&server).retries, 1);
}

#[tokio::test]
async fn a_backend_that_refuses_everything_is_not_asked_for_ever() {
    let backend = Backend2::spawn(Script { refuses: u32::MAX, ..Script::default() }).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    let answer = within(get(&mut client, "/hello")).await;
    assert!(answer.status == 502 || answer.status == 503, "{answer:?}");
    assert!(figures(&server).retries <= 3);
}

#[tokio::test]
async fn a_tunnel_is_refused_by_http2_and_the_connection_lives() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut client = connect(&server).await;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = "elsewhere.test:443".parse().unwrap();
    let (response, _) = client.send_request(request, false).unwrap();
    assert_eq!(within(response).await.unwrap().status(), 501);
    assert_eq!(get(&mut client, "/hello").await.status, 200);
}

#[tokio::test]
async fn a_client_that_resets_all_it_asks_for_is_sent_away() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    let mut other = connect(&server).await;
    let mut client = connect(&server).await;
    let mut asked = 0;
    let error = loop {
        let request = Request::get("http://test/slow").body(()).unwrap();
        let sent = match std::future::poll_fn(|cx| client.poll_ready(cx)).await {
            Ok(()) => client.send_request(request, true),
            Err(error) => break error,
        };
        match sent {
            Ok((_, mut stream)) => {
                tokio::time::sleep(Duration::from_micros(300)).await;
                stream.send_reset(Reason::CANCEL);
            }
            Err(error) => break error,
        }
        asked += 1;
        assert!(asked < 10_000, "it is still served");
    };
    assert!(error.is_go_away() || error.is_io(), "{error}");
    assert_eq!(get(&mut other, "/hello").await.status, 200, "others are unharmed");
}

#[tokio::test]
async fn floods_of_one_client_do_not_keep_others_from_being_served() {
    let backend = Backend2::spawn(Script::default()).await;
    let server = proxy(&[format!("h2c://{}", backend.address)], |_| {});
    for flood in ["settings", "ping", "continuation", "window", "empty"] {
        let mut other = connect(&server).await;
        let flooding = support::flood(&server, flood);
        let serving = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..50 {
                let begun = Instant::now();
                assert_eq!(within(get(&mut other, "/hello")).await.status, 200, "{flood}");
                slowest = slowest.max(begun.elapsed());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            slowest
        };
        let ((), slowest) = tokio::join!(flooding, serving);
        assert!(slowest < Duration::from_secs(1), "{flood}: {slowest:?}");
    }
}

#[tokio::test]
async fn clients_of_tls_get_what_they_agree_to() {
    let (authority, backend) = (Authority::new(), Backend2::spawn(Script::default()).await);
    let pair = authority.write("front.test");
    let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
        settings.listen = vec!["https://127.0.0.1:0".to_owned()];
        settings.tls.certificate = pair.certificate.clone();
        settings.tls.key = pair.key.clone();
    });
    let address = server.local_addrs()[0].address;
    let mut client = connect_tls(address, &authority, "front.test").await;
    let answer = get(&mut client, "/hello").await;
    assert_eq!((answer.status, &answer.headers["seen-proto"]), (200, &"https".parse().unwrap()));
    let text = support::get1_tls(
        address,
        &authority,
        "front.test",
        "GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(text.starts_with("HTTP/1.1 200 ") && text.contains("seen-proto: https"), "{text}");
    // A new certificate is had without a restart.
    let first = support::shown_certificate(address, &authority, "front.test").await;
    authority.write("front.test");
    let begun = Instant::now();
    while support::shown_certificate(address, &authority, "front.test").await == first {
        assert!(begun.elapsed() < Duration::from_secs(10), "the old certificate stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(get(&mut client, "/hello").await.status, 200, "who is there stays");
}

#[tokio::test]
async fn a_backend_over_tls_speaks_what_it_agrees_to() {
    let authority = Authority::new();
    let ca = authority.ca();
    for (alpn, expected) in [(&["h2", "http/1.1"][..], "2"), (&["http/1.1"][..], "1"), (&[][..], "1")] {
        let backend = Backend2::spawn_tls(Script::default(), &authority, "back.test", alpn, false).await;
        let server =
            proxy(&[format!("https://{}?name=back.test&ca={}", backend.address, ca.display())], |_| {});
        let mut client = connect(&server).await;
        for _ in 0..3 {
            let answer = within(get(&mut client, "/hello")).await;
            assert_eq!(answer.status, 200, "{alpn:?}: {answer:?}");
            assert_eq!(answer.headers["seen-version"], expected, "{alpn:?}");
        }
        assert!(backend.connections() <= 2, "{alpn:?}: asked once, then remembered");
    }
}

#[tokio::test]
async fn a_backend_with_another_name_or_signer_is_not_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let backend = Backend2::spawn_tls(Script::default(), &authority, "back.test", &["h2"], false).await;
    for (name, ca) in [("elsewhere.test", authority.ca()), ("back.test", other.ca())] {
        let server = proxy(&[format!("https://{}?name={name}&ca={}", backend.address, ca.display())], |_| {});
        let mut client = connect(&server).await;
        let answer = within(get(&mut client, "/hello")).await;
        assert_eq!(answer.status, 503, "{name}");
        assert!(String::from_utf8_lossy(&answer.body).contains("TLS handshake"), "{answer:?}");
    }
    assert_eq!(backend.requests(), 0);
}

#[tokio::test]
async fn an_upgrade_goes_by_http1_to_a_backend_that_would_speak_http2() {
    let authority = Authority::new();
    let backend =
        Backend2::spawn_tls(Script::default(), &authority, "back.test", &["h2", "http/1.1"], false).await;
    let ca = authority.ca();
    let server = proxy(&[format!("https://{}?name=back.test&ca={}", backend.address, ca.display())], |_| {});
    let answer = support::upgrade1(&server).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    assert!(answer.ends_with("\r\n\r\nechoed through the tunnel"), "{answer}");
}

/// Every setting of HTTP/2 changes what is seen.
#[tokio::test]
async fn settings_of_http2_do_what_they_say() {
    let backend = Backend2::spawn(Script::default()).await;
    let allowed = async |change: fn(&mut Settings)| {
        let server = proxy(&[format!("h2c://{}", backend.address)], change);
        let mut client = connect(&server).await;
        assert_eq!(get(&mut client, "/hello").await.status, 200);
        client.current_max_send_streams()
    };
    assert_eq!(allowed(|_| {}).await, 100);
    assert_eq!(allowed(|settings| settings.http.streams_max = 7).await, 7);
    // Two requests at once fit on one connection, or do not.
    for (most, connections) in [(100, 1), (1, 2)] {
        let backend = Backend2::spawn(Script::default()).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.http.backend_streams_max = most;
        });
        let mut client = connect(&server).await;
        let ask = |client: &mut support::Client2| {
            client.send_request(Request::get("http://test/slow").body(()).unwrap(), true).unwrap().0
        };
        let (a, b) = (ask(&mut client), ask(&mut client));
        let (a, b) = within(async { tokio::join!(a, b) }).await;
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(backend.connections(), connections, "{most}");
    }
    // As much comes of a body that nobody takes as there is room for.
    let mut came = Vec::new();
    for window in ["16KiB", "1MiB"] {
        let backend = Backend2::spawn(Script::default()).await;
        let server = proxy(&[format!("h2c://{}", backend.address)], |settings| {
            settings.http.stream_window = window.parse().unwrap();
        });
        let mut client = connect(&server).await;
        let request = Request::get("http://test/endless").body(()).unwrap();
        let response = within(client.send_request(request, true).unwrap().0).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        came.push(backend.sent_bytes());
        drop(response);
    }
    assert!(came[0] + 512 * 1024 < came[1], "{came:?}");
}

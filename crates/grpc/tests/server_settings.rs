//! Every setting is live: it is changed, and the difference is seen.

mod server_support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::{Profile, ServerSettings};
use h2::Reason;
use server_support::*;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::Code;

const MOMENT: Duration = Duration::from_millis(300);

/// What a server announces: its settings, and the window of the connection.
async fn announced(change: impl FnOnce(&mut ServerSettings)) -> (Vec<(u16, u32)>, u32) {
    let server = server(change);
    let mut raw = Raw::new(address(&server)).await;
    let settings = raw.find(SETTINGS).await.unwrap().payload;
    let settings = settings.chunks(6).map(|one| {
        (u16::from_be_bytes([one[0], one[1]]), u32::from_be_bytes([one[2], one[3], one[4], one[5]]))
    });
    let settings = settings.collect();
    let window = raw.find(WINDOW_UPDATE).await.unwrap();
    assert_eq!(window.stream, 0);
    (settings, u32::from_be_bytes(window.payload.try_into().unwrap()) + 65_535)
}

#[tokio::test]
async fn limits_are_announced_as_the_profile_and_the_settings_say() {
    for (profile, window, all, streams) in
        [(Profile::Main, 1 << 20, 4 << 20, 1000), (Profile::Pprof, 2 << 20, 8 << 20, 2000)]
    {
        let (settings, connection) = announced(|settings| {
            *settings = ServerSettings { workers: 1, ..profile.settings() };
        })
        .await;
        assert!(settings.contains(&(INITIAL_WINDOW_SIZE, window)), "{settings:?}");
        assert!(settings.contains(&(MAX_CONCURRENT_STREAMS, streams)), "{settings:?}");
        assert!(settings.contains(&(MAX_FRAME_SIZE, 16 << 10)), "{settings:?}");
        assert!(settings.contains(&(MAX_HEADER_LIST_SIZE, 16 << 10)), "{settings:?}");
        assert_eq!(connection, all);
    }
    let (settings, connection) = announced(|settings| {
        (settings.stream_window, settings.connection_window) = (100_000, 200_000);
        (settings.streams_max, settings.frame_bytes_max) = (7, 1 << 20);
        settings.header_list_bytes_max = 5000;
    })
    .await;
    assert!(settings.contains(&(INITIAL_WINDOW_SIZE, 100_000)), "{settings:?}");
    assert!(settings.contains(&(MAX_CONCURRENT_STREAMS, 7)), "{settings:?}");
    assert!(settings.contains(&(MAX_FRAME_SIZE, 1 << 20)), "{settings:?}");
    assert!(settings.contains(&(MAX_HEADER_LIST_SIZE, 5000)), "{settings:?}");
    assert_eq!(connection, 200_000);
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    for (limit, code) in [(16 << 10, 200), (1 << 10, 431)] {
        let server = server(|settings| settings.header_list_bytes_max = limit);
        let mut wire = Wire::new(address(&server)).await;
        let long = Wire::request(SAY_HELLO).header("x-long", "x".repeat(2000)).body(()).unwrap();
        let answer = wire.ask(long, hello("Ada")).await;
        assert_eq!(answer.status.as_u16(), code, "{answer:?}");
    }
}

#[tokio::test]
async fn workers_are_as_many_as_was_said_and_all_of_them_serve() {
    let one = server(|_| {});
    assert_eq!((one.handle().workers(), one.handle().workers_expected()), (1, 1));
    let four = server(|settings| settings.workers = 4);
    assert_eq!((four.handle().workers(), four.handle().workers_expected()), (4, 4));
    for _ in 0..40 {
        let answer = Wire::new(address(&four)).await.call(SAY_HELLO, hello("Ada")).await;
        assert_eq!(answer.code, Some(Code::Ok));
    }
    assert_eq!(four.figures().ended(Code::Ok), 40);
}

#[tokio::test]
async fn calls_take_no_longer_than_the_server_allows() {
    let server = server(|settings| settings.call_timeout = Some(Duration::from_millis(50)));
    let mut wire = Wire::new(address(&server)).await;
    assert_eq!(wire.call(SAY_HELLO, hello("wait")).await.code, Some(Code::DeadlineExceeded));
    // A client that would wait for longer is told the same; one that would not, sooner.
    let long = Wire::request(SAY_HELLO).header("grpc-timeout", "1H").body(()).unwrap();
    assert_eq!(wire.ask(long, hello("wait")).await.code, Some(Code::DeadlineExceeded));
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    let patient = server_support::server(|settings| settings.call_timeout = None);
    let mut wire = Wire::new(address(&patient)).await;
    assert_eq!(wire.call(SAY_HELLO, hello("wait:200")).await.code, Some(Code::Ok));
}

#[tokio::test]
async fn a_stream_may_go_on_for_longer_than_a_call_may_take_to_begin() {
    let server = server(|settings| settings.call_timeout = Some(Duration::from_millis(50)));
    let mut wire = Wire::new(address(&server)).await;
    let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO_STREAM).body(()).unwrap(), false).await;
    stream.send_data(hello("wait"), true).unwrap();
    let response = response.await.unwrap();
    tokio::time::sleep(MOMENT).await;
    assert_eq!(server.figures().in_flight, 1);
    drop((response, stream));
    until(&server, "its end", |figures| figures.in_flight == 0).await;
}

#[tokio::test]
async fn more_calls_than_may_be_are_shed_at_once() {
    for limit in [3, 5] {
        let server = server(|settings| settings.calls_per_connection = limit);
        let mut wire = Wire::new(address(&server)).await;
        let mut waiting = Vec::new();
        for _ in 0..limit {
            let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
            stream.send_data(hello("wait"), true).unwrap();
            waiting.push((response, stream));
        }
        until(&server, "the calls", |figures| figures.in_flight == u64::from(limit)).await;
        assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::ResourceExhausted));
        assert_eq!(server.figures().shed, 1);
        // Another connection has room of its own.
        let mut other = Wire::new(address(&server)).await;
        assert_eq!(other.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
        waiting.pop();
        until(&server, "room", |figures| figures.in_flight == u64::from(limit) - 1).await;
        assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    }
}

#[tokio::test]
async fn what_waits_for_a_slow_client_is_as_much_as_was_said() {
    let mut pulled = Vec::new();
    for buffer in [16 << 10, 64 << 20] {
        let service = Told::default();
        let server = told(service.clone(), |settings| settings.send_buffer_bytes = buffer).build().unwrap();
        let mut raw = Raw::new(address(&server)).await;
        raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0x7F, 0xFF, 0xFF, 0xFF])).await;
        raw.write(&frame(WINDOW_UPDATE, 0, 0, &(0x7FFF_0000_u32).to_be_bytes())).await;
        let call = [head(1, SAY_HELLO_STREAM, &[], false), frame(DATA, END_STREAM, 1, &hello("flood:65536"))];
        raw.write(&call.concat()).await;
        let mut before = 0;
        loop {
            tokio::time::sleep(MOMENT).await;
            let now = service.flooded.load(Ordering::Relaxed);
            if now == before {
                break;
            }
            before = now;
        }
        assert!(before > 0);
        pulled.push(before * 65_536);
    }
    assert!(pulled[1] > pulled[0] + (32 << 20), "{pulled:?}");
}

#[tokio::test]
async fn connections_are_as_many_as_may_be() {
    let few = |settings: &mut ServerSettings| settings.connections_max = 1;
    let from_one = |settings: &mut ServerSettings| settings.connections_per_client = 1;
    let changes: [&dyn Fn(&mut ServerSettings); 2] = [&few, &from_one];
    for change in changes {
        let server = server(change);
        let mut first = Wire::new(address(&server)).await;
        assert_eq!(first.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
        // The reset may come before it knows that it is connected, too.
        if let Ok(mut second) = TcpStream::connect(address(&server)).await {
            let mut rest = Vec::new();
            // Within the time that it waits for a place.
            let read = tokio::time::timeout(PATIENCE, second.read_to_end(&mut rest)).await.unwrap();
            assert!(read.is_err() || rest.is_empty(), "it is refused");
        }
        assert_eq!((server.figures().refused, server.figures().connections), (1, 1));
        let _ = first.end().await;
        until(&server, "a place", |figures| figures.connections == 0).await;
        let mut third = Wire::new(address(&server)).await;
        assert_eq!(third.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    }
}

#[tokio::test]
async fn who_does_not_begin_in_time_is_closed() {
    for timeout in [MOMENT, 4 * MOMENT] {
        let server = server(|settings| settings.handshake_timeout = timeout);
        let began = Instant::now();
        let mut silent = TcpStream::connect(address(&server)).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest)).await.unwrap();
        assert!(began.elapsed() >= timeout);
        until(&server, "its end", |figures| figures.handshakes_failed == 1).await;
    }
}

#[tokio::test]
async fn an_idle_connection_is_told_goodbye_and_one_with_a_call_is_not() {
    let server = server(|settings| settings.idle_timeout = Some(MOMENT));
    let mut busy = Wire::new(address(&server)).await;
    let (response, mut stream) = busy.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
    stream.send_data(hello("wait:1500"), true).unwrap();
    let began = Instant::now();
    let idle = Wire::new(address(&server)).await;
    // It keeps `send`, as one who may call again.
    let ended = tokio::time::timeout(PATIENCE, idle.connection).await.unwrap().unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    assert!(began.elapsed() >= MOMENT);
    assert_eq!(answer(response).await.code, Some(Code::Ok));
    assert_eq!(server.figures().goaways_idle, 1);
    let patient = server_support::server(|settings| settings.idle_timeout = None);
    let quiet = Wire::new(address(&patient)).await;
    tokio::time::sleep(3 * MOMENT).await;
    assert!(!quiet.connection.is_finished());
}

#[tokio::test]
async fn an_old_connection_is_told_goodbye_and_its_calls_may_end_in_time() {
    let server = server(|settings| {
        settings.age_max = Some(MOMENT);
        settings.age_grace = 5 * MOMENT;
    });
    let began = Instant::now();
    let mut wire = Wire::new(address(&server)).await;
    let mut calls = Vec::new();
    // One that ends in time, and one that does not.
    for name in ["wait:600", "wait"] {
        let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
        stream.send_data(hello(name), true).unwrap();
        calls.push(response);
    }
    until(&server, "goodbye", |figures| figures.goaways_age == 1).await;
    assert!(began.elapsed() >= MOMENT * 9 / 10);
    let never = calls.pop().unwrap();
    assert_eq!(answer(calls.pop().unwrap()).await.code, Some(Code::Ok));
    assert!(answer(never).await.code.is_none(), "it is cut off");
    assert!(began.elapsed() >= 5 * MOMENT);
    assert_eq!(server.figures().cut, 1);
    let _ = wire.end().await;
    // With less grace, the first of them does not end either.
    let strict = server_support::server(|settings| {
        settings.age_max = Some(MOMENT);
        settings.age_grace = MOMENT;
    });
    let mut wire = Wire::new(address(&strict)).await;
    let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
    stream.send_data(hello("wait:1500"), true).unwrap();
    assert!(answer(response).await.code.is_none(), "it is cut off");
}

#[tokio::test]
async fn ages_differ_so_that_not_all_connections_end_at_once() {
    let server = server(|settings| settings.age_max = Some(Duration::from_secs(1)));
    let began = Instant::now();
    let mut all = Vec::new();
    for _ in 0..20 {
        all.push(Wire::new(address(&server)).await);
    }
    let ends = all.into_iter().map(|Wire { send, connection }| async move {
        let ended = tokio::time::timeout(PATIENCE, connection).await.unwrap().unwrap();
        drop(send);
        assert!(ended.is_ok(), "{ended:?}");
        began.elapsed()
    });
    let ends = futures_util::future::join_all(ends).await;
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(*last - *first > Duration::from_millis(40), "{ends:?}");
    assert_eq!(server.figures().goaways_age, 20);
}

#[tokio::test]
async fn a_silent_client_is_asked_and_cut_if_it_does_not_answer() {
    let alive = |settings: &mut ServerSettings| {
        settings.keepalive_interval = Some(MOMENT);
        settings.keepalive_timeout = MOMENT;
    };
    let asking = server(alive);
    let mut raw = Raw::new(address(&asking)).await;
    assert_eq!(raw.find(PING).await.unwrap().flags, 0);
    while raw.read().await.is_some() {}
    until(&asking, "its end", |figures| figures.cut == 1).await;
    // More time to answer is given.
    let patient = server(|settings| {
        alive(settings);
        settings.keepalive_timeout = 20 * MOMENT;
    });
    let mut raw = Raw::new(address(&patient)).await;
    assert_eq!(raw.find(PING).await.unwrap().flags, 0);
    assert!(tokio::time::timeout(5 * MOMENT, async { while raw.read().await.is_some() {} }).await.is_err());
    // h2 answers by itself.
    let quiet = Wire::new(address(&asking)).await;
    tokio::time::sleep(5 * MOMENT).await;
    assert!(!quiet.connection.is_finished());
    let silent = server(|settings| {
        alive(settings);
        settings.keepalive_interval = None;
    });
    let mut raw = Raw::new(address(&silent)).await;
    raw.find(SETTINGS).await.unwrap();
    let ping = tokio::time::timeout(4 * MOMENT, raw.find(PING)).await;
    assert!(ping.is_err(), "nobody asks: {ping:?}");
}

#[tokio::test]
async fn what_comes_late_on_a_stream_that_was_broken_off_is_forgiven_while_it_is_remembered() {
    for (kept, forgiven) in [(100, true), (0, false)] {
        let server = server(|settings| settings.resets_kept_max = kept);
        let mut raw = Raw::new(address(&server)).await;
        raw.find(SETTINGS).await.unwrap();
        // Answered before its end, and broken off then.
        raw.write(&head(1, "/no.Such/Thing", &[], false)).await;
        raw.find(RST_STREAM).await.unwrap();
        raw.write(&frame(DATA, 0, 1, &hello("late"))).await;
        raw.write(&whole(3, "Ada")).await;
        let mut is_told_off = false;
        while let Some(read) = raw.read().await {
            is_told_off |= read.kind == GOAWAY || (read.kind == RST_STREAM && read.stream == 1);
            if read.kind == DATA {
                break;
            }
        }
        assert_eq!(!is_told_off, forgiven, "{kept}");
    }
}

#[tokio::test]
async fn services_know_who_calls_if_they_are_to() {
    for is_on in [true, false] {
        let server = server(|settings| settings.peer_info = is_on);
        let answer = Wire::new(address(&server)).await.call(SAY_HELLO, hello("peer")).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(text.contains("127.0.0.1"), is_on, "{text}");
        assert!(!is_on || text.contains("is_encrypted: false"), "{text}");
    }
}

#[tokio::test]
async fn room_is_given_back_as_messages_are_taken() {
    // Twenty times the windows of stream and connection.
    let server = builder(|settings| {
        (settings.stream_window, settings.connection_window) = (65_535, 65_535);
        settings.request_message_bytes_max = 2 << 20;
    })
    .build()
    .unwrap();
    let mut wire = Wire::new(address(&server)).await;
    for _ in 0..2 {
        let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
        let mut body = hello(&"x".repeat(1_300_000));
        while !body.is_empty() {
            stream.reserve_capacity(body.len());
            let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
            let piece = body.split_to(room.min(body.len()));
            stream.send_data(piece, body.is_empty()).unwrap();
        }
        assert_eq!(answer(response).await.code, Some(Code::Ok));
    }
}

#[tokio::test]
async fn another_service_may_stand_behind_those_that_were_added() {
    let fallback = GreeterServiceServer::new(Told::default());
    let server = forebay_grpc::Server::builder()
        .with(|settings| settings.workers = 1)
        .fallback(fallback)
        .listen("127.0.0.1:0")
        .build()
        .unwrap();
    let answer = Wire::new(address(&server)).await.call(SAY_HELLO, hello("Ada")).await;
    assert_eq!(answer.code, Some(Code::Ok));
}

#[tokio::test]
async fn routes_of_tonic_can_be_served() {
    let routes = tonic::service::Routes::new(GreeterServiceServer::new(Told::default()));
    let server = forebay_grpc::Server::builder()
        .with(|settings| settings.workers = 1)
        .fallback(routes)
        .listen("127.0.0.1:0")
        .build()
        .unwrap();
    let mut wire = Wire::new(address(&server)).await;
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    assert_eq!(wire.call("/no.Such/Thing", Bytes::new()).await.code, Some(Code::Unimplemented));
    let _ = wire.end().await.map_err(|error| assert_eq!(error.reason(), Some(Reason::NO_ERROR)));
}

#[test]
fn what_cannot_be_is_refused_before_anything_runs() {
    let error = |change: &dyn Fn(&mut ServerSettings)| builder(change).build().unwrap_err().to_string();
    assert_eq!(
        error(&|settings| settings.stream_window = 1),
        "stream_window: `1` is not 65535 to 2147483647"
    );
    let twice = server(|_| {});
    let taken = address(&twice).to_string();
    let error = |builder: forebay_grpc::server::Builder| builder.build().unwrap_err().to_string();
    assert_eq!(
        error(builder(|_| {}).listen(taken.clone())),
        format!("cannot listen on {taken}: another process does; name another address")
    );
    assert!(error(builder(|_| {}).listen("nowhere")).starts_with("listen: `nowhere` is no address"));
    assert!(error(builder(|_| {}).tls("/nowhere", "/nowhere")).starts_with("tls.certificate: "));
    assert!(error(builder(|_| {}).reflection(b"\xFF\xFF")).starts_with("reflection: "));
}

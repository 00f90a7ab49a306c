//! What clients may do to the server: refused in time, with the right words, and nobody else is harmed.

mod server_support;

use std::time::Duration;

use bytes::Bytes;
use forebay_grpc::Running;
use h2::Reason;
use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use server_support::*;

/// The server still serves others.
async fn serves(server: &Running) {
    let answer = Wire::new(address(server)).await.call(SAY_HELLO, hello("Ada")).await;
    assert_eq!((answer.status, answer.code), (StatusCode::OK, Some(Code::Ok)));
}

#[tokio::test]
async fn a_message_that_says_it_is_too_long_is_refused_before_it_comes() {
    let server = server(|settings| settings.request_message_bytes_max = 1000);
    let mut wire = Wire::new(address(&server)).await;
    assert_eq!(wire.call(SAY_HELLO, hello(&"x".repeat(900))).await.code, Some(Code::Ok));
    let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
    // Five bytes, and no more.
    stream.send_data(Bytes::from_static(&[0, 0, 0, 0x10, 0]), false).unwrap();
    let answer = answer(response).await;
    assert_eq!(answer.code, Some(Code::ResourceExhausted), "{answer:?}");
    assert_eq!(answer.message, "a message of the request has 4096 bytes; the limit is 1000");
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
}

#[tokio::test]
async fn a_reply_that_is_too_long_is_not_sent() {
    let server = server(|settings| settings.response_message_bytes_max = 1000);
    let mut wire = Wire::new(address(&server)).await;
    let answer = wire.call(SAY_HELLO, hello("big:900")).await;
    assert_eq!((answer.code, answer.body.len()), (Some(Code::Ok), 5 + 3 + 900));
    let answer = wire.call(SAY_HELLO, hello("big:1000")).await;
    assert_eq!((answer.code, answer.body.len()), (Some(Code::ResourceExhausted), 0));
}

#[tokio::test]
async fn wrong_framing_is_told_and_harms_no_other_call() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    let cases: [(&[u8], Code); 6] = [
        // A flag that means nothing, compression that was not agreed on, half a prefix, half a message, nothing.
        (&[7, 0, 0, 0, 0], Code::Internal),
        (&[1, 0, 0, 0, 1, 0], Code::Internal),
        (&[0, 0, 0], Code::Internal),
        (&[0, 0, 0, 0, 9, 1], Code::Internal),
        (&[], Code::Internal),
        // No message of the service.
        (&[0, 0, 0, 0, 2, 0xFF, 0xFF], Code::Internal),
    ];
    for (bytes, code) in cases {
        let answer = wire.call(SAY_HELLO, Bytes::from_static(bytes)).await;
        assert_eq!(answer.code, Some(code), "{bytes:?}: {answer:?}");
    }
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
}

#[tokio::test]
async fn unknown_services_and_methods_are_not_implemented() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    for path in ["/greet.Greeter/SayHello", "/greet.GreeterService/Shout", "/", "/greet.GreeterService"] {
        let answer = wire.call(path, hello("Ada")).await;
        assert_eq!((answer.status, answer.code), (StatusCode::OK, Some(Code::Unimplemented)), "{path}");
    }
    let answer = wire.call("/no.Such/Thing", hello("Ada")).await;
    assert_eq!(answer.message, "no service `no.Such` is here");
    assert_eq!(server.figures().ended(Code::Unimplemented), 5);
}

#[tokio::test]
async fn what_is_no_call_is_told_by_http() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    let request = |kind: &str| {
        http::Request::post(format!("http://test{SAY_HELLO}")).header("content-type", kind).body(()).unwrap()
    };
    for kind in ["application/json", "application/grpc-web", "text/plain"] {
        assert_eq!(wire.ask(request(kind), hello("Ada")).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    }
    assert_eq!(wire.ask(request("application/grpc+proto"), hello("Ada")).await.code, Some(Code::Ok));
    let get = http::Request::get(format!("http://test{SAY_HELLO}")).body(()).unwrap();
    let (response, _) = wire.begin(get, true).await;
    assert_eq!(answer(response).await.status, StatusCode::METHOD_NOT_ALLOWED);
    let late = Wire::request(SAY_HELLO).header("grpc-timeout", "soon").body(()).unwrap();
    assert_eq!(wire.ask(late, hello("Ada")).await.code, Some(Code::Internal));
    let figures = server.figures();
    assert_eq!((figures.not_grpc, figures.calls), (5, 1));
}

#[tokio::test]
async fn a_deadline_holds_before_and_during_a_call() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    let within = |path, timeout| Wire::request(path).header("grpc-timeout", timeout).body(()).unwrap();
    let past = wire.ask(within(SAY_HELLO, "0n"), hello("Ada")).await;
    assert_eq!(past.code, Some(Code::DeadlineExceeded));
    let during = wire.ask(within(SAY_HELLO, "50m"), hello("wait")).await;
    assert_eq!(during.code, Some(Code::DeadlineExceeded));
    // A stream that has begun ends by its status, after what it had.
    let begun = wire.ask(within(SAY_HELLO_STREAM, "50m"), hello("wait")).await;
    assert_eq!((begun.code, begun.body.len()), (Some(Code::DeadlineExceeded), 5 + 5));
    assert_eq!(wire.ask(within(SAY_HELLO, "10S"), hello("wait:50")).await.code, Some(Code::Ok));
    let figures = server.figures();
    assert_eq!((figures.timed_out, figures.ended(Code::DeadlineExceeded), figures.in_flight), (3, 3, 0));
}

#[tokio::test]
async fn cancelled_calls_end_at_once_and_no_other_does() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    let (kept, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
    let mut waiting = Vec::new();
    for _ in 0..50 {
        let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
        stream.send_data(hello("wait"), true).unwrap();
        waiting.push((response, stream));
    }
    until(&server, "the calls", |figures| figures.in_flight == 51).await;
    for (_, stream) in &mut waiting {
        stream.send_reset(Reason::CANCEL);
    }
    until(&server, "their end", |figures| figures.in_flight == 1).await;
    stream.send_data(hello("Ada"), true).unwrap();
    assert_eq!(answer(kept).await.code, Some(Code::Ok));
    let figures = server.figures();
    assert_eq!((figures.cancelled, figures.ended(Code::Cancelled), figures.goaways_resets), (50, 50, 0));
}

#[tokio::test]
async fn two_thousand_resets_harm_no_other_call() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    for n in 0..2000 {
        let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
        stream.send_data(hello("wait"), true).unwrap();
        if n % 20 == 0 {
            assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok), "{n}");
        }
        stream.send_reset(Reason::CANCEL);
        drop(response);
    }
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    until(&server, "the end of all", |figures| figures.in_flight == 0).await;
}

#[tokio::test]
async fn who_breaks_off_too_much_is_sent_away() {
    let server = server(|settings| settings.resets_max = 30);
    let mut wire = Wire::new(address(&server)).await;
    let mut broken = Vec::new();
    for _ in 0..31 {
        let (response, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
        stream.send_data(hello("wait"), true).unwrap();
        broken.push((response, stream));
    }
    until(&server, "the calls", |figures| figures.in_flight == 31).await;
    broken.iter_mut().for_each(|(_, stream)| stream.send_reset(Reason::CANCEL));
    assert_eq!(wire.end().await.unwrap_err().reason(), Some(Reason::ENHANCE_YOUR_CALM));
    assert_eq!(server.figures().goaways_resets, 1);
    serves(&server).await;
}

#[tokio::test]
async fn resets_that_come_with_their_streams_are_bounded() {
    for (allowed, sent, goodbye) in [(50, 20, None), (10, 20, Some(Reason::ENHANCE_YOUR_CALM))] {
        let server = server(|settings| settings.resets_unseen_max = allowed);
        let mut raw = Raw::new(address(&server)).await;
        raw.find(SETTINGS).await.unwrap();
        let mut storm = Vec::new();
        for n in 0..sent {
            storm.extend(head(2 * n + 1, SAY_HELLO, &[], false));
            storm.extend(frame(RST_STREAM, 0, 2 * n + 1, &8_u32.to_be_bytes()));
        }
        storm.extend(whole(2 * sent + 1, "Ada"));
        raw.write(&storm).await;
        match goodbye {
            None => assert!(raw.find(DATA).await.is_some()),
            Some(_) => assert_eq!(raw.goodbye().await, goodbye),
        }
        serves(&server).await;
    }
}

#[tokio::test]
async fn a_flood_of_streams_is_refused_and_then_ended() {
    let server = server(|settings| {
        settings.streams_max = 10;
        settings.stream_errors_max = 20;
    });
    let mut raw = Raw::new(address(&server)).await;
    raw.find(SETTINGS).await.unwrap();
    let flood =
        |streams: std::ops::Range<u32>| streams.flat_map(|n| whole(2 * n + 1, "wait")).collect::<Vec<_>>();
    raw.write(&flood(0..15)).await;
    for _ in 0..5 {
        let refused = raw.find(RST_STREAM).await.unwrap();
        assert_eq!(refused.payload, u32::from(Reason::REFUSED_STREAM).to_be_bytes());
    }
    // The last of the others may begin after the first are refused.
    until(&server, "ten calls", |figures| figures.calls == 10).await;
    raw.write(&flood(15..60)).await;
    assert_eq!(raw.goodbye().await, Some(Reason::ENHANCE_YOUR_CALM));
    serves(&server).await;
}

#[tokio::test]
async fn too_many_pings_are_answered_with_goodbye() {
    let ping = frame(PING, 0, 0, b"01234567");
    let server = server(|_| {});
    let mut raw = Raw::new(address(&server)).await;
    for _ in 0..3 {
        raw.write(&ping).await;
        assert_eq!(raw.find(PING).await.unwrap().flags, ACK);
    }
    // What is answered makes pings welcome.
    raw.write(&whole(1, "Ada")).await;
    raw.find(DATA).await.unwrap();
    for _ in 0..3 {
        raw.write(&ping).await;
        assert_eq!(raw.find(PING).await.unwrap().flags, ACK);
    }
    raw.write(&ping).await;
    assert_eq!(raw.goodbye().await, Some(Reason::ENHANCE_YOUR_CALM));
    assert_eq!(server.figures().goaways_pings, 1);
    let lenient = server_support::server(|settings| settings.ping_interval_min = None);
    let mut raw = Raw::new(address(&lenient)).await;
    for _ in 0..20 {
        raw.write(&ping).await;
        assert_eq!(raw.find(PING).await.unwrap().flags, ACK);
    }
}

#[tokio::test]
async fn a_client_that_gives_no_room_holds_only_its_own_calls_and_not_for_ever() {
    let server = server(|settings| settings.stall_timeout = Duration::from_millis(300));
    let mut raw = Raw::new(address(&server)).await;
    raw.find(SETTINGS).await.unwrap();
    // 65,535 bytes of room, and never more.
    raw.write(&whole(1, "big:1000000")).await;
    let mut got = 0;
    let reset = loop {
        let read = raw.read().await.expect("it is not the connection's fault");
        match read.kind {
            DATA => got += read.payload.len(),
            RST_STREAM => break read,
            _ => {}
        }
    };
    assert_eq!((got, reset.payload), (65_535, u32::from(Reason::CANCEL).to_be_bytes().to_vec()));
    assert_eq!(server.figures().stalled, 1);
    serves(&server).await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let server = server(|settings| settings.stall_timeout = Duration::from_millis(300));
    let mut raw = Raw::new(address(&server)).await;
    // As much room as there can be, for more than any socket takes.
    raw.write(&frame(SETTINGS, 0, 0, &[0, 4, 0x7F, 0xFF, 0xFF, 0xFF])).await;
    raw.write(&frame(WINDOW_UPDATE, 0, 0, &(0x7FFF_0000_u32).to_be_bytes())).await;
    let calls: Vec<u8> = (0..16).flat_map(|n| whole(2 * n + 1, "big:4000000")).collect();
    raw.write(&calls).await;
    serves(&server).await;
    until(&server, "its end", |figures| figures.cut == 1 && figures.connections == 0).await;
    assert_eq!(server.figures().in_flight, 0);
}

#[tokio::test]
async fn a_panic_harms_its_own_call_alone() {
    let server = server(|_| {});
    let mut wire = Wire::new(address(&server)).await;
    let (kept, mut stream) = wire.begin(Wire::request(SAY_HELLO).body(()).unwrap(), false).await;
    stream.send_data(hello("wait:100"), true).unwrap();
    let answer_to = wire.call(SAY_HELLO, hello("panic")).await;
    assert_eq!(answer_to.code, Some(Code::Internal), "{answer_to:?}");
    let streamed = wire.call(SAY_HELLO_STREAM, hello("panic")).await;
    assert_eq!(streamed.code, Some(Code::Internal), "{streamed:?}");
    assert_eq!(answer(kept).await.code, Some(Code::Ok));
    assert_eq!(server.figures().panicked, 2);
}

#[tokio::test]
async fn what_is_not_http2_is_closed() {
    let server = server(|settings| settings.handshake_timeout = Duration::from_millis(300));
    for words in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], b"", b"PRI * HT", &[0xFF; 1000]] {
        let mut socket = TcpStream::connect(address(&server)).await.unwrap();
        socket.write_all(words).await.unwrap();
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "{words:?}");
    }
    until(&server, "their end", |figures| figures.handshakes_failed == 4 && figures.connections == 0).await;
    serves(&server).await;
}

#[tokio::test]
async fn a_client_that_says_goodbye_gets_what_it_waits_for() {
    let server = server(|_| {});
    let mut raw = Raw::new(address(&server)).await;
    raw.write(&whole(1, "wait:100")).await;
    until(&server, "the call", |figures| figures.in_flight == 1).await;
    raw.write(&frame(GOAWAY, 0, 0, &[0; 8])).await;
    assert!(raw.find(DATA).await.is_some());
    assert!(raw.find(HEADERS).await.is_some(), "trailers");
}

#[tokio::test]
async fn nonsense_among_frames_ends_its_connection_alone() {
    let server = server(|_| {});
    for nonsense in [
        // A stream of the server's, data on no stream, a window beyond 2^31, a frame too long, half a field block.
        head(2, SAY_HELLO, &[], true),
        frame(DATA, 0, 0, b"x"),
        [
            frame(WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]),
            frame(WINDOW_UPDATE, 0, 0, &[0x7F, 0xFF, 0xFF, 0xFF]),
        ]
        .concat(),
        frame(DATA, 0, 1, &[0; 20_000]),
        [frame(HEADERS, 0, 1, &[0x80]), frame(PING, 0, 0, &[0; 8])].concat(),
        frame(SETTINGS, 0, 0, &[0, 4, 0xFF, 0xFF, 0xFF, 0xFF]),
    ] {
        let mut raw = Raw::new(address(&server)).await;
        raw.write(&nonsense).await;
        assert!(raw.goodbye().await.is_some_and(|reason| reason != Reason::NO_ERROR), "{nonsense:?}");
    }
    serves(&server).await;
}

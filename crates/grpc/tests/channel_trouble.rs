//! The pooled channel, with servers that do not behave, go away, or are many.

mod support;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use forebay_grpc::channel::Resolve;
use forebay_grpc::greet::HelloRequest;
use forebay_grpc::{ConnectivityState, PooledChannel};
use h2::Reason;
use support::{Greeter, Raw, Script, builder, client, hello, raw, scripted, storm, tonic_server, until};
use tokio::net::TcpListener;
use tonic::{Code, Status};

const SECOND: Duration = Duration::from_secs(1);

fn caller(
    channel: &PooledChannel,
) -> impl Fn(u64) -> Pin<Box<dyn Future<Output = Result<(), Status>> + Send>> + Clone + Send + 'static {
    let channel = channel.clone();
    move |n| {
        let channel = channel.clone();
        Box::pin(async move { hello(&channel, &format!("{n}")).await.map(drop) })
    }
}

#[tokio::test]
async fn one_dead_server_of_three_fails_no_call() {
    let (a, seen_a) = scripted(Script::default()).await;
    let (b, seen_b) = scripted(Script::default()).await;
    // Nobody listens there any more.
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let channel = builder(&a).and(b.url()).and(format!("http://{dead}")).build().unwrap();
    let (failed, first) = storm(20_000, 32, caller(&channel)).await;
    assert_eq!(failed, 0, "{first:?}");
    assert!(seen_a.streams() > 2_000 && seen_b.streams() > 2_000, "{seen_a:?} {seen_b:?}");
    let dials = |at: SocketAddr| {
        let snapshot = channel.snapshot();
        let found = snapshot.pool.endpoints.into_iter().find(|one| one.endpoint.address() == at);
        found.unwrap().snapshot.counters.dials_started
    };
    assert!(dials(dead) < 30, "it is left alone: {} dials", dials(dead));
    // One that dies later: what was out on it may fail, what comes after does not.
    drop(b);
    let _ = storm(100, 32, caller(&channel)).await;
    let (failed, first) = storm(5_000, 32, caller(&channel)).await;
    assert_eq!(failed, 0, "{first:?}");
}

#[tokio::test]
async fn two_thousand_cancelled_calls_harm_no_other() {
    let (server, seen) = scripted(Script { delay: Duration::from_millis(50), ..Script::default() }).await;
    let channel = builder(&server).connections_max(1).build().unwrap();
    let others = tokio::spawn(storm(500, 8, caller(&channel)));
    for _ in 0..40 {
        let calls: Vec<_> = (0..50)
            .map(|n| {
                let channel = channel.clone();
                tokio::spawn(async move {
                    let name = format!("cancelled {n}");
                    tokio::time::timeout(Duration::from_millis(5), hello(&channel, &name)).await.is_err()
                })
            })
            .collect();
        for call in calls {
            assert!(call.await.unwrap());
        }
    }
    let (failed, first) = others.await.unwrap();
    assert_eq!(failed, 0, "{first:?}");
    assert_eq!(seen.connections(), 1);
    assert!(hello(&channel, "you").await.is_ok());
}

#[tokio::test]
async fn a_reader_that_stalls_delays_nobody() {
    let server = tonic_server(Greeter::default()).await;
    let channel = builder(&server).connections_max(1).build().unwrap();
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let request = HelloRequest { name: "endless".to_owned() };
        stalled.push(client(&channel).say_hello_stream(request).await.unwrap().into_inner());
    }
    // Their windows fill.
    tokio::time::sleep(SECOND / 2).await;
    let began = Instant::now();
    let (failed, first) = storm(1_000, 8, caller(&channel)).await;
    assert_eq!(failed, 0, "{first:?}");
    assert!(began.elapsed() < 5 * SECOND, "{:?}", began.elapsed());
    for stream in &mut stalled {
        assert!(stream.message().await.unwrap().is_some());
    }
}

#[tokio::test]
async fn a_limit_that_the_server_did_not_announce_is_learnt() {
    let script = Script { refuses_above: Some(10), delay: Duration::from_millis(10), ..Script::default() };
    let (server, seen) = scripted(script).await;
    let channel = builder(&server).build().unwrap();
    let (failed, first) = storm(2_000, 40, caller(&channel)).await;
    assert_eq!(failed, 0, "{first:?}");
    let refused = seen.refused.load(Ordering::Relaxed);
    println!("{refused} refused, {} connections", seen.connections());
    assert!(refused > 0 && refused < 500, "{refused}");
    assert_eq!(channel.snapshot().replays, refused);
}

#[tokio::test]
async fn calls_are_not_sent_again_beyond_the_budget_nor_when_they_are_too_large_to_keep() {
    let script = Script { reset: Some(Reason::REFUSED_STREAM), ..Script::default() };
    let (server, seen) = scripted(script).await;
    let channel = builder(&server).replays(3, 0).build().unwrap();
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!((seen.streams(), channel.snapshot().replays), (4, 3));
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(seen.streams(), 5, "the budget is spent");

    let channel = builder(&server).build().unwrap();
    let before = seen.streams();
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(seen.streams() - before, 5, "attempts are bounded");

    let channel = builder(&server).replay_bytes(100).build().unwrap();
    let before = seen.streams();
    assert_eq!(hello(&channel, &"x".repeat(200)).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(seen.streams() - before, 1);
}

#[tokio::test]
async fn a_server_that_resets_everything_is_told_as_it_is_and_left_alone() {
    for (reason, code) in [
        (Reason::INTERNAL_ERROR, Code::Internal),
        (Reason::CANCEL, Code::Cancelled),
        (Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
        (Reason::INADEQUATE_SECURITY, Code::PermissionDenied),
        (Reason::NO_ERROR, Code::Internal),
    ] {
        let (server, _) = scripted(Script { reset: Some(reason), ..Script::default() }).await;
        let channel = builder(&server).build().unwrap();
        let status = hello(&channel, "you").await.unwrap_err();
        assert_eq!(status.code(), code, "{reason:?}: {status}");
    }
    let (server, seen) = scripted(Script { reset: Some(Reason::INTERNAL_ERROR), ..Script::default() }).await;
    let channel = builder(&server).build().unwrap();
    for _ in 0..100 {
        hello(&channel, "you").await.unwrap_err();
    }
    assert!(seen.streams() < 20, "{} streams: the breaker opens", seen.streams());
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_deadline_ends_the_wait_wherever_it_is() {
    let deaf = Script { deaf: true, ..Script::default() };
    let (server, seen) = scripted(deaf).await;
    let channel = builder(&server).timeout(Some(SECOND / 5)).build().unwrap();
    let began = Instant::now();
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(began.elapsed() < SECOND && began.elapsed() > SECOND / 6, "{:?}", began.elapsed());
    assert_eq!((channel.snapshot().late, seen.streams()), (1, 1));

    // The caller's own is the shorter one.
    let mut request = tonic::Request::new(HelloRequest { name: "you".to_owned() });
    request.set_timeout(Duration::from_millis(20));
    let began = Instant::now();
    assert_eq!(client(&channel).say_hello(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert!(began.elapsed() < SECOND / 6, "{:?}", began.elapsed());

    // In the past: nothing is sent.
    let before = seen.streams();
    let mut request = tonic::Request::new(HelloRequest { name: "you".to_owned() });
    request.set_timeout(Duration::ZERO);
    assert_eq!(client(&channel).say_hello(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(seen.streams(), before);

    // In the middle of a response.
    let server = tonic_server(Greeter::default()).await;
    let channel = builder(&server).build().unwrap();
    let mut request = tonic::Request::new(HelloRequest { name: "endless".to_owned() });
    request.set_timeout(SECOND / 5);
    let mut stream = client(&channel).say_hello_stream(request).await.unwrap().into_inner();
    let status = loop {
        match stream.message().await {
            Ok(Some(_)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Ok(None) => panic!("it has no end"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded);

    // While nobody answers the dial.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let channel = PooledChannel::builder(url).timeout(Some(SECOND / 5)).build().unwrap();
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_connection_that_brings_nothing_is_left_after_a_deadline() {
    let (server, seen) = scripted(Script { deaf: true, ..Script::default() }).await;
    let channel = builder(&server).timeout(Some(SECOND / 10)).build().unwrap();
    hello(&channel, "you").await.unwrap_err();
    hello(&channel, "you").await.unwrap_err();
    assert_eq!(seen.connections(), 2, "the second call has a connection of its own");
}

#[tokio::test]
async fn what_is_not_framed_as_grpc_is_an_error_of_that_call_alone() {
    let (server, seen) = scripted(Script { garbage: true, ..Script::default() }).await;
    let channel = builder(&server).build().unwrap();
    for _ in 0..20 {
        assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Internal);
    }
    assert_eq!((seen.connections(), seen.streams()), (1, 20));
}

#[tokio::test]
async fn a_message_that_is_too_large_is_an_error_of_that_call_alone() {
    let server = tonic_server(Greeter::default()).await;
    let channel = builder(&server).build().unwrap();
    let mut small = client(&channel).max_decoding_message_size(1 << 20);
    let status = small.say_hello(HelloRequest { name: "large".to_owned() }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let mut large = client(&channel).max_decoding_message_size(4 << 20);
    let reply = large.say_hello(HelloRequest { name: "large".to_owned() }).await.unwrap();
    assert_eq!(reply.into_inner().message.len(), 3 << 20);
    // The other way: larger than every window.
    let mut request = large.max_encoding_message_size(64 << 20);
    let status = request.say_hello(HelloRequest { name: "x".repeat(8 << 20) }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "the server takes 4 MiB: {status}");
    assert!(hello(&channel, "you").await.is_ok());
    assert_eq!(channel.snapshot().pool.counters().dials_started, 1);
}

#[tokio::test]
async fn no_server_at_all_is_unavailable_and_says_where() {
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let channel = PooledChannel::new(format!("http://{dead}")).unwrap();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains(&dead.to_string()) && status.message().contains("refused"), "{status}");
    // What is no server of HTTP/2.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", other.local_addr().unwrap());
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        while let Ok((mut stream, _)) = other.accept().await {
            let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
        }
    });
    let channel = PooledChannel::new(url).unwrap();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("HTTP/2 handshake"), "{status}");
}

/// Looks names up in a list that the test changes.
#[derive(Clone, Default)]
struct List {
    addresses: Arc<Mutex<Vec<SocketAddr>>>,
    looks: Arc<AtomicU64>,
}

impl Resolve for List {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        _: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        assert_eq!(host, "greet.test");
        Box::pin(async { Ok(self.addresses.lock().unwrap().clone()) })
    }
}

#[tokio::test]
async fn a_name_is_looked_up_again_and_followed() {
    let (a, seen_a) = scripted(Script::default()).await;
    let (b, seen_b) = scripted(Script::default()).await;
    let list = List::default();
    list.addresses.lock().unwrap().push(a.address);
    let channel = PooledChannel::builder("http://greet.test:1")
        .resolver(list.clone())
        .resolve_interval(SECOND)
        .build()
        .unwrap();
    hello(&channel, "you").await.unwrap();
    assert_eq!((seen_a.streams(), seen_b.streams()), (1, 0));
    // It moves, by schedule.
    *list.addresses.lock().unwrap() = vec![b.address];
    until("the new address is known", || {
        channel.snapshot().pool.endpoints.iter().any(|one| one.endpoint.address() == b.address)
    })
    .await;
    hello(&channel, "you").await.unwrap();
    assert_eq!((seen_a.streams(), seen_b.streams()), (1, 1));
    until("the old connection is closed", || seen_a.open.load(Ordering::Relaxed) == 0).await;
}

#[tokio::test]
async fn a_lost_server_has_its_name_looked_up_at_once() {
    let (a, _) = scripted(Script::default()).await;
    let (b, _) = scripted(Script::default()).await;
    let list = List::default();
    list.addresses.lock().unwrap().push(a.address);
    let channel = PooledChannel::builder("greet.test:1")
        .resolver(list.clone())
        .resolve_interval(Duration::from_secs(3600))
        .build()
        .unwrap();
    hello(&channel, "you").await.unwrap();
    *list.addresses.lock().unwrap() = vec![b.address];
    drop(a);
    let began = Instant::now();
    while hello(&channel, "you").await.is_err() {
        assert!(began.elapsed() < 5 * SECOND);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(list.looks.load(Ordering::Relaxed) <= 4, "{:?}", list.looks);
}

#[tokio::test]
async fn a_name_without_an_address_is_unavailable_until_it_has_one() {
    let (server, _) = scripted(Script::default()).await;
    let list = List::default();
    let channel = PooledChannel::builder("http://greet.test:1").resolver(list.clone()).build().unwrap();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("greet.test"), "{status}");
    list.addresses.lock().unwrap().push(server.address);
    let began = Instant::now();
    while hello(&channel, "you").await.is_err() {
        assert!(began.elapsed() < 5 * SECOND);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_drain_is_bounded_though_the_server_never_answers() {
    let (server, _) = scripted(Script { deaf: true, ..Script::default() }).await;
    let channel = builder(&server).build().unwrap();
    let call = tokio::spawn({
        let channel = channel.clone();
        async move { hello(&channel, "you").await }
    });
    until("it is out", || channel.state() == ConnectivityState::Ready).await;
    let began = Instant::now();
    assert_eq!(channel.drain(SECOND / 5).await, 1);
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    let status = tokio::time::timeout(SECOND, call).await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

#[tokio::test]
async fn a_server_that_lowers_its_limit_while_calls_are_out_refuses_none() {
    let (server, seen) = raw(Raw { first: 100, then: 5, ..Raw::default() }).await;
    let channel = builder(&server).connections_max(16).build().unwrap();
    let (failed, first) = storm(3_000, 60, caller(&channel)).await;
    assert_eq!(failed, 0, "{first:?}");
    assert_eq!(seen.refused.load(Ordering::Relaxed), 0);
    assert!(seen.connections() > 8, "{} connections at five calls each", seen.connections());
}

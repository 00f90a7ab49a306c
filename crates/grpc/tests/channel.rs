//! The pooled channel, with servers that behave.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use forebay_grpc::greet::HelloRequest;
use forebay_grpc::{ConnectivityState, PooledChannel};
use support::{Greeter, Script, builder, client, hello, scripted, storm, tonic_server, until};
use tonic::Code;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_generated_client_takes_it_where_a_channel_would_stand() {
    let server = tonic_server(Greeter::default()).await;
    let channel = PooledChannel::new(server.url()).unwrap();
    assert_eq!(hello(&channel, "you").await.unwrap(), "Hello you");
    let mut stream = client(&channel)
        .say_hello_stream(HelloRequest { name: "all".to_owned() })
        .await
        .unwrap()
        .into_inner();
    for n in 0..5 {
        assert_eq!(stream.message().await.unwrap().unwrap().message, format!("Hello all {n}"));
    }
    assert!(stream.message().await.unwrap().is_none());
    let snapshot = channel.snapshot();
    assert_eq!((snapshot.calls, snapshot.failed, snapshot.pool.counters().dials_started), (2, 0, 1));
}

#[tokio::test]
async fn a_status_of_the_server_comes_as_it_is() {
    let server = tonic_server(Greeter::default()).await;
    let channel = builder(&server).build().unwrap();
    let status = hello(&channel, "denied").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "not you"));
}

#[tokio::test]
async fn a_call_counts_until_its_response_has_ended() {
    let server = tonic_server(Greeter::default()).await;
    let channel = builder(&server).build().unwrap();
    let in_use = || channel.snapshot().pool.endpoints.iter().map(|one| one.snapshot.in_use).sum::<u32>();
    let mut stream = client(&channel)
        .say_hello_stream(HelloRequest { name: "endless".to_owned() })
        .await
        .unwrap()
        .into_inner();
    assert!(stream.message().await.unwrap().is_some());
    assert_eq!(in_use(), 1);
    drop(stream);
    assert_eq!(in_use(), 0);
    assert_eq!(hello(&channel, "you").await.unwrap(), "Hello you");
}

#[tokio::test]
async fn five_hundred_calls_at_once_see_no_refusal_from_a_server_that_takes_a_hundred() {
    let script = Script { streams_max: Some(100), delay: Duration::from_millis(20), ..Script::default() };
    let (server, seen) = scripted(script).await;
    let channel = builder(&server).build().unwrap();
    let call = {
        let channel = channel.clone();
        move |n: u64| {
            let channel = channel.clone();
            async move { hello(&channel, &format!("{n}")).await.map(drop) }
        }
    };
    let (failed, first) = storm(5_000, 500, call).await;
    assert_eq!(failed, 0, "{first:?}");
    assert_eq!(seen.refused.load(Ordering::Relaxed), 0);
    assert_eq!(channel.snapshot().replays, 0);
    assert!((5..=8).contains(&seen.connections()), "{} connections", seen.connections());
}

#[tokio::test]
async fn a_server_that_says_goodbye_every_ten_thousand_streams_fails_no_call() {
    let (server, seen) = scripted(Script { goaway_every: Some(10_000), ..Script::default() }).await;
    let channel = builder(&server).build().unwrap();
    let call = {
        let channel = channel.clone();
        move |n: u64| {
            let channel = channel.clone();
            async move { hello(&channel, &format!("{n}")).await.map(drop) }
        }
    };
    let (failed, first) = storm(200_000, 64, call).await;
    assert_eq!(failed, 0, "{first:?}");
    let goaways = seen.goaways.load(Ordering::Relaxed);
    println!(
        "{goaways} goodbyes, {} connections, {} sent again",
        seen.connections(),
        channel.snapshot().replays
    );
    assert!(goaways >= 18, "{goaways}");
}

#[tokio::test]
async fn the_first_call_after_the_server_has_closed_an_idle_connection_succeeds() {
    let script = Script { idle_close: Some(Duration::from_millis(100)), ..Script::default() };
    let (server, seen) = scripted(script).await;
    let channel = builder(&server).build().unwrap();
    for n in 1..=5 {
        assert_eq!(hello(&channel, "you").await.unwrap(), "Hello you");
        assert_eq!(seen.connections(), n);
        until("the server closes it", || channel.state() == ConnectivityState::Idle).await;
    }
}

#[tokio::test]
async fn who_watches_the_state_hears_of_each_change() {
    let (server, _) = scripted(Script::default()).await;
    let address = server.address;
    let channel =
        builder(&server).backoff(Duration::from_millis(1), Duration::from_millis(5)).build().unwrap();
    let mut state = channel.watch_state();
    assert_eq!(*state.borrow(), ConnectivityState::Idle);
    hello(&channel, "you").await.unwrap();
    assert_eq!(*state.borrow(), ConnectivityState::Ready);
    drop(server);
    tokio::time::timeout(SECOND, state.wait_for(|state| *state == ConnectivityState::Idle))
        .await
        .unwrap()
        .unwrap();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert_eq!(channel.state(), ConnectivityState::TransientFailure);
    let (_server, _) = support::scripted_at(address, Script::default()).await;
    until("it is found again", || {
        let channel = channel.clone();
        tokio::task::spawn(async move { hello(&channel, "you").await });
        *state.borrow() == ConnectivityState::Ready
    })
    .await;
    assert_eq!(channel.drain(SECOND).await, 0);
    assert_eq!(channel.state(), ConnectivityState::Shutdown);
    assert_eq!(hello(&channel, "you").await.unwrap_err().code(), Code::Unavailable);
}

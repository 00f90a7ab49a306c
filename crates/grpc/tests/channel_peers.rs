//! The pooled channel, with a server that others wrote: grpc-core by grpcio.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use forebay_grpc::PooledChannel;
use forebay_grpc::greet::HelloRequest;
use support::{client, hello, storm};
use tonic::codec::CompressionEncoding;
use tonic::{Code, Request};

const PYTHON: &str = "/usr/bin/python3";
const SECOND: Duration = Duration::from_secs(1);

/// A greeter of grpc-core; ends when it is dropped.
struct Core {
    child: Child,
    url: String,
    lines: Receiver<String>,
}

impl Core {
    /// Starts one, or says why not.
    fn start(options: &[&str]) -> Option<Self> {
        let found = Command::new(PYTHON).args(["-c", "import grpc"]).stderr(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            let must = std::env::var_os("FOREBAY_REQUIRE_PEERS").is_some_and(|value| value == "1");
            assert!(!must, "grpcio (python3-grpcio) is not there, and FOREBAY_REQUIRE_PEERS=1");
            eprintln!("skipped: grpcio (python3-grpcio) is not there");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/greet_server.py");
        let mut child = Command::new(PYTHON)
            .args(["-B", script])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        let port = lines.recv_timeout(20 * SECOND).unwrap();
        Some(Self { child, url: format!("http://127.0.0.1:{port}"), lines })
    }

    async fn says(&self, expected: &str) {
        let end = Instant::now() + 10 * SECOND;
        loop {
            match self.lines.try_recv() {
                Ok(line) if line == expected => return,
                Ok(line) => panic!("{line:?} instead of {expected:?}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            assert!(Instant::now() < end, "no {expected:?}");
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn named(name: &str) -> HelloRequest {
    HelloRequest { name: name.to_owned() }
}

#[tokio::test]
async fn calls_of_both_kinds_with_metadata_and_errors() {
    let Some(core) = Core::start(&[]) else { return };
    let channel = PooledChannel::new(&core.url).unwrap();
    let mut greeter = client(&channel);
    let mut request = Request::new(named("you"));
    request.metadata_mut().insert("x-echo", "there and back".parse().unwrap());
    let reply = greeter.say_hello(request).await.unwrap();
    assert_eq!(reply.metadata().get("x-head").unwrap(), "there and back");
    assert_eq!(reply.metadata().get("x-tail").unwrap(), "there and back");
    assert_eq!(reply.into_inner().message, "Hello you");
    let mut stream = greeter.say_hello_stream(named("all")).await.unwrap().into_inner();
    for n in 0..5 {
        assert_eq!(stream.message().await.unwrap().unwrap().message, format!("Hello all {n}"));
    }
    assert!(stream.message().await.unwrap().is_none());
    let status = greeter.say_hello(named("denied")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "not you"));
    assert_eq!(channel.snapshot().pool.counters().dials_started, 1);
}

#[tokio::test]
async fn deadlines_and_cancelled_calls_are_told_to_the_server() {
    let Some(core) = Core::start(&[]) else { return };
    let channel = PooledChannel::new(&core.url).unwrap();
    let mut greeter = client(&channel);
    let mut request = Request::new(named("wait"));
    request.set_timeout(SECOND / 5);
    assert_eq!(greeter.say_hello(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    core.says("cancelled").await;
    assert!(tokio::time::timeout(SECOND / 5, greeter.say_hello(named("wait"))).await.is_err());
    core.says("cancelled").await;
    let mut stream = greeter.say_hello_stream(named("endless")).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    drop(stream);
    core.says("stream ended").await;
    assert_eq!(hello(&channel, "you").await.unwrap(), "Hello you");
}

#[tokio::test]
async fn large_and_compressed_messages_go_both_ways() {
    let Some(core) = Core::start(&["gzip"]) else { return };
    let channel = PooledChannel::new(&core.url).unwrap();
    let mut greeter = client(&channel)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip)
        .max_decoding_message_size(64 << 20);
    let reply = greeter.say_hello(named("you")).await.unwrap();
    assert_eq!(reply.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(reply.into_inner().message, "Hello you");
    let reply = greeter.say_hello(named("large 20000000")).await.unwrap();
    assert_eq!(reply.into_inner().message.len(), 20_000_000);
    let plain = client(&channel).max_decoding_message_size(64 << 20);
    let name: String = (0..10_000_000_u32)
        .map(|n| char::from(b'a' + (n.wrapping_mul(2_654_435_761) >> 27) as u8 % 26))
        .collect();
    let reply = plain.accept_compressed(CompressionEncoding::Gzip).say_hello(named(&name)).await.unwrap();
    assert_eq!(reply.into_inner().message.len(), name.len() + 6);
}

#[tokio::test]
async fn a_server_that_sends_connections_away_every_second_fails_no_call() {
    let Some(core) = Core::start(&["age"]) else { return };
    let channel = PooledChannel::new(&core.url).unwrap();
    let end = Instant::now() + 4 * SECOND;
    let mut calls = 0;
    while Instant::now() < end {
        let call = {
            let channel = channel.clone();
            move |n: u64| {
                let channel = channel.clone();
                async move { hello(&channel, &format!("{n}")).await.map(drop) }
            }
        };
        let (failed, first) = storm(200, 8, call).await;
        assert_eq!(failed, 0, "{first:?}");
        calls += 200;
    }
    println!("{calls} calls, {} connections", channel.snapshot().pool.counters().dials_started);
    assert!(channel.snapshot().goaways >= 2, "{:?}", channel.snapshot().goaways);
}

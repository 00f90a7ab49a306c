//! The server, asked by clients that others wrote: grpc-core by grpcio, h2load; health and reflection by tonic's.
//!
//! A missing peer is said so and passed over, unless FOREBAY_REQUIRE_PEERS is 1.

mod server_support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use server_support::*;
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

/// Whether a peer is there; if not, the test ends.
fn has(what: &str, mut probe: Command) -> bool {
    let there = probe.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success());
    let required = std::env::var("FOREBAY_REQUIRE_PEERS").is_ok_and(|value| value == "1");
    assert!(there || !required, "{what} is missing");
    if !there {
        eprintln!("passed over: {what} is missing");
    }
    there
}

fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output().unwrap()).await.unwrap()
}

/// Debian's Python is the one that has Debian's packages.
const PYTHON: &str = "/usr/bin/python3";

#[tokio::test]
async fn a_client_of_grpc_core_gets_what_it_asks_for() {
    if !has("grpcio (python3-grpcio)", command(PYTHON, &["-c", "import grpc"])) {
        return;
    }
    let service = GreeterServiceServer::new(Told::default())
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    let server = builder(|_| {}).add_service(service).build().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/greet_client.py");
    let output = run(command(PYTHON, &[script.to_str().unwrap(), &address(&server).to_string()])).await;
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{wrong}");
    assert_eq!(said.lines().count(), 10, "{said}");
    // Its own deadlines may be seen here as cancelled calls.
    until(&server, "the end of all", |figures| figures.in_flight == 0).await;
    let figures = server.figures();
    assert!(figures.ended(Code::Ok) >= 200 && figures.panicked == 0, "{figures:?}");
}

#[tokio::test]
async fn h2load_gets_every_answer() {
    if !has("h2load (nghttp2-client)", command("h2load", &["--version"])) {
        return;
    }
    let server = server(|settings| settings.workers = 2);
    let folder = tempfile::tempdir().unwrap();
    let message = folder.path().join("hello");
    std::fs::write(&message, hello("World")).unwrap();
    for (connections, streams) in [("1", "64"), ("10", "10")] {
        let url = format!("http://{}{SAY_HELLO}", address(&server));
        let output = run(command(
            "h2load",
            &[
                "-n20000",
                "-c",
                connections,
                "-m",
                streams,
                "-d",
                message.to_str().unwrap(),
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                &url,
            ],
        ))
        .await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains("20000 succeeded, 0 failed, 0 errored, 0 timeout"), "{said}");
        assert!(said.contains("20000 2xx"), "{said}");
    }
    assert_eq!(server.figures().ended(Code::Ok), 40_000);
}

async fn channel(address: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_is_told_and_watches_end_with_a_drain() {
    let server = server(|_| {});
    let (channel, handle) = (channel(address(&server)).await, server.handle());
    let mut health = HealthClient::new(channel);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "greet.GreeterService"] {
        let status = health.check(of(service)).await.unwrap().into_inner().status();
        assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::Serving, "{service}");
    }
    assert_eq!(health.check(of("no.Such")).await.unwrap_err().code(), Code::NotFound);
    // Somebody else may say something too.
    server.health().unwrap().set_service_status("no.Such", ServingStatus::NotServing).await;
    let status = health.check(of("no.Such")).await.unwrap().into_inner().status();
    assert_eq!(status, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    let mut watch = health.watch(of("greet.GreeterService")).await.unwrap().into_inner();
    assert!(watch.next().await.unwrap().is_ok());
    let drained = tokio::spawn(server.drain(PATIENCE));
    let last = watch.next().await.unwrap().unwrap().status();
    assert_eq!(last, tonic_health::pb::health_check_response::ServingStatus::NotServing);
    assert_eq!(watch.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    tokio::time::timeout(PATIENCE / 2, drained).await.expect("nothing holds it").unwrap();
    assert_eq!(handle.figures().goaways_drain, 1);
}

#[tokio::test]
async fn services_are_described_by_reflection() {
    let server = server(|_| {});
    let mut reflection = ServerReflectionClient::new(channel(address(&server)).await);
    let ask = |what| {
        tokio_stream::iter([ServerReflectionRequest { host: String::new(), message_request: Some(what) }])
    };
    let request = ask(MessageRequest::ListServices(String::new()));
    let mut answers = reflection.server_reflection_info(request).await.unwrap().into_inner();
    let ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(list)), ..
    } = answers.next().await.unwrap().unwrap()
    else {
        panic!("a list was asked for")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"greet.GreeterService") && names.contains(&"grpc.health.v1.Health"), "{names:?}");
    let request = ask(MessageRequest::FileContainingSymbol("greet.HelloRequest".into()));
    let mut answers = reflection.server_reflection_info(request).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response;
    assert!(matches!(answer, Some(MessageResponse::FileDescriptorResponse(_))), "{answer:?}");
    // The older name is there too.
    let old = Wire::new(address(&server))
        .await
        .call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", bytes::Bytes::new())
        .await;
    assert_eq!(old.code, Some(Code::Ok));
}

#[tokio::test]
async fn a_drain_is_over_in_time_whoever_does_not_answer() {
    let limit = Duration::from_millis(500);
    let server = server(|_| {});
    let handle = server.handle();
    // One that answers nothing, one with a call that does not end, one that has not begun.
    let mut silent = Raw::new(address(&server)).await;
    silent.find(SETTINGS).await.unwrap();
    let mut busy = Raw::new(address(&server)).await;
    busy.write(&whole(1, "wait")).await;
    let _early = tokio::net::TcpStream::connect(address(&server)).await.unwrap();
    until(&server, "all", |figures| figures.connections == 3 && figures.in_flight == 1).await;
    let began = std::time::Instant::now();
    tokio::time::timeout(PATIENCE, server.drain(limit)).await.expect("it ends");
    assert!(began.elapsed() >= limit && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(handle.figures().goaways_drain, 2);
    assert!(silent.find(GOAWAY).await.is_some());
    assert_eq!(busy.goodbye().await, Some(h2::Reason::NO_ERROR));
}

#[tokio::test]
async fn an_idle_client_does_not_hold_a_drain() {
    let server = server(|_| {});
    let mut idle = Wire::new(address(&server)).await;
    assert_eq!(idle.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok));
    let began = std::time::Instant::now();
    tokio::time::timeout(PATIENCE, server.drain(PATIENCE)).await.expect("it ends");
    assert!(began.elapsed() < PATIENCE / 4);
}

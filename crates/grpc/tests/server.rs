//! The server, asked by tonic's own client.

use std::time::Duration;

use forebay_grpc::greet::HelloRequest;
use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::server::Builder;
use forebay_grpc::{Greeter, Running, Server, greet};
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic::{Code, Request};

fn builder() -> Builder {
    Server::builder()
        .with(|settings| settings.workers = 1)
        .add_service(GreeterServiceServer::new(Greeter { interval: Duration::from_millis(5) }))
        .health()
        .reflection(greet::FILE_DESCRIPTOR_SET)
        .listen("127.0.0.1:0")
}

async fn channel(server: &Running) -> Channel {
    let url = format!("http://{}", server.local_addrs()[0]);
    Channel::from_shared(url).unwrap().connect().await.unwrap()
}

fn hello(name: &str) -> HelloRequest {
    HelloRequest { name: name.to_owned() }
}

#[tokio::test]
async fn a_client_of_tonic_is_greeted_once_and_in_a_row() {
    let server = builder().build().unwrap();
    let mut client = GreeterServiceClient::new(channel(&server).await);
    let reply = client.say_hello(hello("Ada")).await.unwrap().into_inner();
    assert_eq!(reply.message, "Hello Ada!");
    let row = client.say_hello_stream(hello("Ada")).await.unwrap().into_inner();
    let row: Vec<_> = row.map(|reply| reply.unwrap().message).collect().await;
    assert_eq!(row.len(), 5);
    assert_eq!(row[4], "Hello Ada! (5 of 5)");
    let figures = server.figures();
    assert_eq!((figures.calls, figures.ended(Code::Ok), figures.in_flight), (2, 2, 0));
    assert_eq!((figures.connections, figures.accepted), (1, 1));
    assert!(figures.bytes_received > 100 && figures.bytes_sent > 100);
}

#[tokio::test]
async fn many_calls_at_once_each_get_their_own_answer() {
    let server = builder().build().unwrap();
    let channel = channel(&server).await;
    let calls = (0..500).map(|n| {
        let mut client = GreeterServiceClient::new(channel.clone());
        async move {
            let name = format!("caller {n}");
            assert_eq!(
                client.say_hello(hello(&name)).await.unwrap().into_inner().message,
                format!("Hello {name}!")
            );
        }
    });
    futures_util::future::join_all(calls).await;
    assert_eq!(server.figures().ended(Code::Ok), 500);
}

#[tokio::test]
async fn a_drain_lets_a_call_finish_and_takes_no_more() {
    let server = builder().build().unwrap();
    let channel = channel(&server).await;
    let mut client = GreeterServiceClient::new(channel);
    let mut row = client.say_hello_stream(hello("Ada")).await.unwrap().into_inner();
    assert!(row.next().await.unwrap().is_ok());
    let drained = tokio::spawn(server.drain(Duration::from_secs(5)));
    let mut rest = 0;
    while let Some(reply) = row.next().await {
        reply.unwrap();
        rest += 1;
    }
    assert_eq!(rest, 4);
    drained.await.unwrap();
    assert_eq!(client.say_hello(Request::new(hello("Bo"))).await.unwrap_err().code(), Code::Unavailable);
}

//! WebSockets of an implementation of others through the proxy: client and backend.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_proxy::{CheckKind, Mode, ProxyConfig, Server, Settings, start};
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{accept_async, client_async};

const MIB: usize = 1 << 20;

/// A backend that says back what it is told; its pings and closes are its library's.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut socket) = accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn proxy(backend: SocketAddr) -> Server {
    let mut settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: vec![backend.to_string()],
        workers: 1,
        ..Settings::default()
    };
    settings.health.check = CheckKind::None;
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

#[tokio::test]
async fn text_bytes_pings_and_closes_pass_both_ways() {
    let server = proxy(echo().await);
    let work = async {
        for round in 0..3 {
            let stream = TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
            let (mut socket, response) = client_async("ws://test/chat", stream).await.unwrap();
            assert_eq!(response.status(), 101);
            let long: String = "long ".repeat(MIB / 5);
            let bytes: Vec<u8> = (0..MIB).map(|n| (n * 31) as u8).collect();
            for message in [
                Message::text(format!("hello {round}")),
                Message::text(""),
                Message::text(long),
                Message::binary(bytes),
                Message::binary(vec![0; 3]),
            ] {
                socket.send(message.clone()).await.unwrap();
                assert!(socket.next().await.unwrap().unwrap() == message, "{}", message.len());
            }
            socket.send(Message::Ping("are you there".into())).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong("are you there".into()));
            // Many that nobody waits for.
            for n in 0..500 {
                socket.feed(Message::text(n.to_string())).await.unwrap();
            }
            socket.flush().await.unwrap();
            for n in 0..500 {
                assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(n.to_string()));
            }
            let goodbye = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
            socket.close(Some(goodbye)).await.unwrap();
            assert!(socket.next().await.unwrap().unwrap().is_close(), "it says goodbye, too");
            let end = socket.next().await;
            assert!(matches!(end, None | Some(Err(Error::ConnectionClosed))), "{end:?}");
        }
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time");
    assert_eq!(server.handle().figures().tunnels, 3);
}

#[tokio::test]
async fn a_socket_is_one_clients_alone_and_its_end_is_the_end() {
    let server = proxy(echo().await);
    let connect = async || {
        let stream = TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
        client_async("ws://test/", stream).await.unwrap().0
    };
    let work = async {
        let mut all = Vec::new();
        for _ in 0..20 {
            all.push(connect().await);
        }
        for (n, socket) in all.iter_mut().enumerate() {
            socket.send(Message::text(n.to_string())).await.unwrap();
        }
        for (n, socket) in all.iter_mut().enumerate() {
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(n.to_string()));
        }
        drop(all);
        let began = std::time::Instant::now();
        while server.handle().figures().clients > 0 {
            assert!(began.elapsed() < Duration::from_secs(5), "sockets that are gone are still there");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let backends = server.handle().backends();
        let in_use: u32 = backends.iter().map(|one| one.snapshot.in_use).sum();
        assert_eq!(in_use, 0);
    };
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("in time");
}

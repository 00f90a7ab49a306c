//! Clients of DNS over HTTPS that are idle, deaf, rude or in a hurry.

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_dns::{ClientSettings, Scheme, Settings, TlsSettings};
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::{Request, Response};
use rustls::ClientConfig;
use support::tls::{Authority, client_config};
use support::{PATIENCE, Running, Udp, address, query, run, settings};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// A server, and what a client needs to ask it.
struct World {
    upstream: Responder,
    server: Running,
    ca: std::path::PathBuf,
    _authority: Authority,
    runtime: tokio::runtime::Runtime,
}

fn world(script: Script, clients: ClientSettings) -> World {
    let upstream = Responder::builder().script(script).spawn().expect("a free port");
    let authority = Authority::new();
    let pair = authority.issue("dns", &["dns.test"]);
    let server = run(&Settings {
        listen: vec!["127.0.0.1:0".to_owned(), "https://127.0.0.1:0".to_owned()],
        tls: TlsSettings { certificate: pair.certificate, key: pair.key },
        clients,
        ..settings(&[&upstream])
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    World { upstream, server, ca: authority.ca(), _authority: authority, runtime }
}

impl World {
    fn at(&self) -> (SocketAddr, Arc<ClientConfig>) {
        (self.server.at(Scheme::Https), client_config(&self.ca, &["h2"]))
    }
}

fn slow(ms: u64) -> Script {
    Script { delay: Duration::from_millis(ms), ..Script::default() }
}

fn idle(ms: u64) -> ClientSettings {
    let idle_timeout = forebay::units::Span(Duration::from_millis(ms));
    ClientSettings { idle_timeout, ..ClientSettings::default() }
}

async fn tls((server, config): (SocketAddr, Arc<ClientConfig>)) -> TlsStream<TcpStream> {
    let socket = TcpStream::connect(server).await.expect("connected");
    socket.set_nodelay(true).expect("no delay");
    let name = "dns.test".try_into().expect("a name");
    TlsConnector::from(config).connect(name, socket).await.expect("a handshake")
}

type Ending = JoinHandle<Result<(), h2::Error>>;

async fn connect(
    at: (SocketAddr, Arc<ClientConfig>),
    builder: &h2::client::Builder,
) -> (SendRequest<Bytes>, Ending) {
    let (client, connection) = builder.handshake(tls(at).await).await.expect("HTTP/2");
    (client, tokio::spawn(connection))
}

fn post() -> Request<()> {
    Request::post("https://dns.test/dns-query")
        .header("content-type", "application/dns-message")
        .body(())
        .expect("a request")
}

/// Asks, and returns what will be the response.
fn send(client: &mut SendRequest<Bytes>, name: &str) -> Result<h2::client::ResponseFuture, h2::Error> {
    let (response, mut body) = client.send_request(post(), false)?;
    body.send_data(query(0, name, 1, None).into(), true)?;
    Ok(response)
}

/// Whether one more stream can be begun within so many milliseconds.
async fn has_room(client: &mut SendRequest<Bytes>, ms: u64) -> bool {
    let ready = poll_fn(|cx| client.poll_ready(cx));
    matches!(tokio::time::timeout(Duration::from_millis(ms), ready).await, Ok(Ok(())))
}

async fn whole(response: Response<RecvStream>) -> Vec<u8> {
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.expect("a body");
        body.flow_control().release_capacity(part.len()).expect("room");
        bytes.extend_from_slice(&part);
    }
    bytes
}

async fn in_time<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: too late"))
}

#[test]
fn a_client_is_told_how_many_queries_may_be_in_flight_and_answered_out_of_order() {
    let world = world(Script::default(), ClientSettings { queries_max: 7, ..ClientSettings::default() });
    world.runtime.block_on(async {
        let mut builder = h2::client::Builder::new();
        builder.initial_max_send_streams(1);
        let (mut client, _ending) = connect(world.at(), &builder).await;
        for round in 0..10 {
            let mut answers = Vec::new();
            for n in 0..20 {
                client = in_time("room", client.ready()).await.expect("it lives");
                let name = format!("r{round}n{n}.test");
                answers.push((name.clone(), send(&mut client, &name).expect("sent")));
            }
            for (name, answer) in answers {
                let bytes = whole(in_time("an answer", answer).await.expect("an answer")).await;
                assert_eq!(address(&bytes), expected_a(&name));
            }
        }
        assert_eq!(client.current_max_send_streams(), 7);
    });
    assert_eq!(world.server.stats().counters.replies, 200);
}

#[test]
fn clients_that_neither_ask_nor_take_anything_are_left() {
    let world = world(Script::default(), idle(200));
    let began = Instant::now();
    world.runtime.block_on(async {
        // One says nothing at all; one asks once; one speaks HTTP/1.1 and says nothing.
        let mut mute = tls(world.at()).await;
        let (mut once, ending) = connect(world.at(), &h2::client::Builder::new()).await;
        whole(send(&mut once, "a.test").expect("sent").await.expect("an answer")).await;
        let (at, _) = world.at();
        let mut old = tls((at, client_config(&world.ca, &["http/1.1"]))).await;
        let goodbye = in_time("the one that has asked", ending).await.expect("no panic");
        assert!(goodbye.is_ok(), "it is told goodbye: {goodbye:?}");
        let mut rest = Vec::new();
        // Whether the end is a clean one does not matter.
        let _ = in_time("the mute one", mute.read_to_end(&mut rest)).await;
        let _ = in_time("the old one", old.read_to_end(&mut rest)).await;
    });
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    world.server.until("all are gone", |stats| stats.client_connections == 0);
}

#[test]
fn a_client_that_waits_for_its_answer_is_not_idle() {
    let world = world(slow(600), idle(200));
    world.runtime.block_on(async {
        let (mut client, _ending) = connect(world.at(), &h2::client::Builder::new()).await;
        let answer = in_time("an answer", send(&mut client, "a.test").expect("sent")).await;
        assert_eq!(address(&whole(answer.expect("an answer")).await), expected_a("a.test"));
    });
}

#[test]
fn resetting_streams_makes_nobody_ask_more_than_others() {
    let clients = ClientSettings { queries_max: 10, ..ClientSettings::default() };
    let world = world(slow(500), clients);
    let asked = world.runtime.block_on(async {
        let (mut client, ending) = connect(world.at(), &h2::client::Builder::new()).await;
        let mut asked = 0;
        for n in 0..2000 {
            if !has_room(&mut client, 300).await {
                break;
            }
            let Ok((_, mut body)) = client.send_request(post(), false) else { break };
            let _ = body.send_data(query(0, &format!("n{n}.test"), 1, None).into(), true);
            asked += 1;
            tokio::task::yield_now().await;
            body.send_reset(Reason::CANCEL);
        }
        drop(client);
        ending.abort();
        asked
    });
    let client = Udp::to(world.server.address);
    assert_eq!(address(&client.ask("good.test")), expected_a("good.test"), "others are served");
    // Ten at a time, and as many again for each half second that the loop took.
    let seen = world.upstream.stats().udp_queries;
    assert!(seen < 100, "{asked} were begun and reset, {seen} went upstream");
}

#[test]
fn an_answer_that_nobody_waits_for_any_more_harms_nobody() {
    let world = world(slow(100), ClientSettings::default());
    world.runtime.block_on(async {
        let (mut client, _ending) = connect(world.at(), &h2::client::Builder::new()).await;
        let dropped = send(&mut client, "dropped.test").expect("sent");
        let kept = send(&mut client, "kept.test").expect("sent");
        let (mut gone, ending) = connect(world.at(), &h2::client::Builder::new()).await;
        let _lost = send(&mut gone, "lost.test").expect("sent");
        tokio::time::sleep(Duration::from_millis(30)).await;
        drop(dropped);
        ending.abort();
        let answer = whole(in_time("an answer", kept).await.expect("an answer")).await;
        assert_eq!(address(&answer), expected_a("kept.test"));
    });
    world.server.until("all is answered", |stats| stats.waiting == 0 && stats.counters.replies == 3);
}

#[test]
fn a_client_that_takes_no_answers_is_asked_for_no_more_and_left() {
    // Some 1100 bytes each.
    let world = world(Script { records: 64, ..Script::default() }, idle(500));
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(100).initial_max_send_streams(100);
    world.runtime.block_on(async {
        let (mut client, ending) = connect(world.at(), &builder).await;
        let mut held = Vec::new();
        for n in 0..400 {
            if !has_room(&mut client, 200).await {
                break;
            }
            match send(&mut client, &format!("n{n}.test")) {
                Ok(response) => held.push(response),
                Err(_) => break,
            }
            tokio::task::yield_now().await;
        }
        // Neither reads nor gives room.
        let _ = in_time("it is left", ending).await;
    });
    let stats = world.server.until("it is gone", |stats| stats.client_connections == 0);
    assert!(stats.counters.queries < 300, "{} of 400 were taken", stats.counters.queries);
}

#[test]
fn a_server_that_ends_answers_what_it_has_taken_and_says_goodbye() {
    let mut world = world(slow(300), ClientSettings::default());
    let at = world.at();
    let client = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (mut client, ending) = connect(at, &h2::client::Builder::new()).await;
            let answer = in_time("an answer", send(&mut client, "a.test").expect("sent")).await;
            let bytes = whole(answer.expect("an answer")).await;
            let goodbye = in_time("goodbye", ending).await.expect("no panic");
            (bytes, goodbye)
        })
    });
    world.server.until("it has been asked", |stats| stats.questions == 1);
    let began = Instant::now();
    world.server.drain(Duration::from_secs(10));
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let (bytes, goodbye) = client.join().expect("no panic");
    assert_eq!(address(&bytes), expected_a("a.test"));
    assert!(goodbye.is_ok(), "{goodbye:?}");
}

//! Every setting of the pooled channel, changed to see the difference.

mod support;

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use forebay::dial::{Identity, Machine, Roots};
use forebay::http2::Keepalive;
use forebay::sys::TcpOptions;
use forebay_core::Balance;
use forebay_grpc::greet::HelloRequest;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::{ConnectivityState, PooledChannel, Server};
use support::{Greeter, Raw, Script, builder, client, hello, raw, scripted, tonic_server, until};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::{Code, Status};
use tonic_health::ServingStatus;

const SECOND: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Begins so many calls at once.
fn begin(channel: &PooledChannel, calls: usize) -> JoinSet<Result<String, Status>> {
    let mut all = JoinSet::new();
    for n in 0..calls {
        let channel = channel.clone();
        all.spawn(async move { hello(&channel, &format!("{n}")).await });
    }
    all
}

fn dials(channel: &PooledChannel) -> u64 {
    channel.snapshot().pool.counters().dials_started
}

/// Somebody who takes connections and says nothing.
async fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[tokio::test]
async fn connections_min_are_made_before_any_call() {
    let (server, seen) = scripted(Script::default()).await;
    let _lazy = builder(&server).build().unwrap();
    let _warm = builder(&server).connections_min(3).build().unwrap();
    until("three are there", || seen.connections() == 3).await;
    tokio::time::sleep(ms(100)).await;
    assert_eq!(seen.connections(), 3);
}

#[tokio::test]
async fn streams_soft_decides_when_there_is_another_connection() {
    for (soft, expected) in [(50, 1..=1), (10, 2..=4)] {
        let (server, seen) = scripted(Script { delay: ms(100), ..Script::default() }).await;
        let channel = builder(&server).streams_soft(soft).build().unwrap();
        let mut calls = begin(&channel, 30);
        while let Some(result) = calls.join_next().await {
            result.unwrap().unwrap();
        }
        assert!(expected.contains(&seen.connections()), "{soft}: {}", seen.connections());
    }
}

#[tokio::test]
async fn streams_max_and_connections_max_bound_what_is_out() {
    let (server, seen) = scripted(Script { delay: ms(100), ..Script::default() }).await;
    let channel = builder(&server).streams_max(5).streams_soft(5).connections_max(2).build().unwrap();
    let mut calls = begin(&channel, 30);
    tokio::time::sleep(ms(60)).await;
    assert_eq!((seen.connections(), seen.streams()), (2, 10));
    while let Some(result) = calls.join_next().await {
        result.unwrap().unwrap();
    }
    assert_eq!((seen.connections(), seen.streams()), (2, 30));
}

#[tokio::test]
async fn waiters_max_is_told_as_a_limit_of_this_side() {
    let (_listener, url) = silent().await;
    let channel = PooledChannel::builder(url).waiters_max(2).build().unwrap();
    let mut calls = begin(&channel, 3);
    let status = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("look here"), "{status}");
    assert_eq!(calls.len(), 2, "the others wait");
}

#[tokio::test]
async fn dials_max_bounds_the_connections_that_are_made_at_once() {
    for most in [1, 3] {
        let (_listener, url) = silent().await;
        let channel = PooledChannel::builder(url)
            .streams_max(1)
            .streams_soft(1)
            .dials_max(most)
            .connections_min(8)
            .build()
            .unwrap();
        let _calls = begin(&channel, 20);
        tokio::time::sleep(ms(200)).await;
        let connecting: u32 =
            channel.snapshot().pool.endpoints.iter().map(|one| one.snapshot.connecting).sum();
        assert!((1..=most).contains(&connecting), "{connecting} of {most}");
    }
}

#[tokio::test]
async fn connect_timeout_ends_a_dial_and_acquire_timeout_the_wait() {
    let (_listener, url) = silent().await;
    let channel = PooledChannel::builder(&url).connect_timeout(ms(100)).build().unwrap();
    let began = Instant::now();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());

    let channel = PooledChannel::builder(&url).acquire_timeout(ms(100)).build().unwrap();
    let began = Instant::now();
    let status = hello(&channel, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "nobody answers dials: {status}");
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn idle_timeout_closes_what_stands_idle() {
    for (timeout, closes) in [(Some(ms(200)), true), (None, false)] {
        let (server, seen) = scripted(Script::default()).await;
        let channel = builder(&server).idle_timeout(timeout).build().unwrap();
        hello(&channel, "you").await.unwrap();
        tokio::time::sleep(SECOND).await;
        let open = seen.open.load(Ordering::Relaxed);
        assert_eq!(open, u32::from(!closes), "{timeout:?}");
        let state = if closes { ConnectivityState::Idle } else { ConnectivityState::Ready };
        assert_eq!(channel.state(), state);
    }
}

#[tokio::test]
async fn age_max_replaces_connections_without_a_failed_call() {
    for (age, replaced) in [(Some(ms(300)), true), (None, false)] {
        let (server, seen) = scripted(Script::default()).await;
        let channel = builder(&server).age_max(age).build().unwrap();
        let end = Instant::now() + SECOND;
        while Instant::now() < end {
            hello(&channel, "you").await.unwrap();
            tokio::time::sleep(ms(2)).await;
        }
        assert_eq!(seen.connections() > 2, replaced, "{age:?}: {}", seen.connections());
    }
}

#[tokio::test]
async fn backoff_decides_how_often_a_dead_server_is_dialled() {
    let mut counts = Vec::new();
    for base in [ms(5), ms(20_000)] {
        let (listener, url) = silent().await;
        drop(listener);
        let channel = PooledChannel::builder(url).backoff(base, base.max(ms(20))).build().unwrap();
        let end = Instant::now() + SECOND / 2;
        while Instant::now() < end {
            hello(&channel, "you").await.unwrap_err();
            tokio::time::sleep(ms(5)).await;
        }
        counts.push(dials(&channel));
    }
    assert!(counts[0] > counts[1] + 3, "{counts:?}");
}

#[tokio::test]
async fn keepalive_finds_a_peer_that_is_gone() {
    let (server, seen) = raw(Raw { mute: true, ..Raw::default() }).await;
    let silent = builder(&server).build().unwrap();
    hello(&silent, "you").await.unwrap();
    let keepalive = |while_idle| Some(Keepalive { interval: ms(100), timeout: ms(100), while_idle });
    let busy = builder(&server).keepalive(keepalive(false)).build().unwrap();
    hello(&busy, "you").await.unwrap();
    tokio::time::sleep(ms(500)).await;
    assert!(seen.pings.lock().unwrap().is_empty(), "nobody pings while nothing is out");
    assert_eq!((silent.state(), busy.state()), (ConnectivityState::Ready, ConnectivityState::Ready));
    let idle = builder(&server).keepalive(keepalive(true)).build().unwrap();
    hello(&idle, "you").await.unwrap();
    until("it is given up", || idle.state() == ConnectivityState::Idle).await;
    assert_eq!(seen.pings.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_server_that_wants_calm_is_pinged_half_as_often() {
    let (server, seen) = raw(Raw { calm_after: Some(3), ..Raw::default() }).await;
    let keepalive = Keepalive { interval: ms(200), timeout: ms(100), while_idle: true };
    let channel = builder(&server).keepalive(Some(keepalive)).build().unwrap();
    hello(&channel, "you").await.unwrap();
    until("it is sent away", || channel.snapshot().goaways == 1).await;
    hello(&channel, "you").await.unwrap();
    until("three more pings", || seen.pings.lock().unwrap().len() >= 6).await;
    let pings = seen.pings.lock().unwrap().clone();
    let span = |connection: u64| {
        let times: Vec<Instant> =
            pings.iter().filter(|(on, _)| *on == connection).map(|(_, at)| *at).collect();
        times[2] - times[0]
    };
    assert!(span(2) > span(1) * 3 / 2, "{:?}, then {:?}", span(1), span(2));
}

#[tokio::test]
async fn the_options_of_sockets_are_set() {
    let (server, _) = scripted(Script::default()).await;
    let timers = |options: TcpOptions| {
        let server = &server;
        async move {
            let channel = builder(server).tcp(options).build().unwrap();
            hello(&channel, "you").await.unwrap();
            tokio::time::sleep(ms(300)).await;
            let port = server.address.port();
            let filter = format!("( dport = :{port} )");
            let output =
                Command::new("ss").args(["-tnoH", "state", "established", &filter]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        }
    };
    let with = timers(TcpOptions::default()).await;
    assert!(with.contains("timer:(keepalive"), "{with}");
    let without = timers(TcpOptions { keepalive: None, ..TcpOptions::default() }).await;
    assert!(!without.is_empty() && !without.contains("timer:(keepalive"), "{without}");
}

#[tokio::test]
async fn windows_and_sizes_are_told_to_the_server() {
    let (server, seen) = raw(Raw::default()).await;
    let settings = |id: u16| seen.settings.lock().unwrap().get(&id).copied();
    let channel = builder(&server).build().unwrap();
    hello(&channel, "you").await.unwrap();
    assert_eq!((settings(2), settings(4), settings(6)), (Some(0), Some(2 << 20), Some(64 << 10)));
    let channel = builder(&server)
        .stream_window(100_000)
        .max_frame_bytes(1 << 20)
        .header_list_bytes(5_000)
        .build()
        .unwrap();
    hello(&channel, "you").await.unwrap();
    assert_eq!((settings(4), settings(5), settings(6)), (Some(100_000), Some(1 << 20), Some(5_000)));
}

#[tokio::test]
async fn stream_window_bounds_what_comes_before_it_is_read() {
    let mut sent = Vec::new();
    for window in [64 << 10, 4 << 20] {
        let greeter = Greeter::default();
        let server = tonic_server(greeter.clone()).await;
        let channel = builder(&server).stream_window(window).build().unwrap();
        let request = HelloRequest { name: "endless".to_owned() };
        let _stream = client(&channel).say_hello_stream(request).await.unwrap();
        tokio::time::sleep(ms(500)).await;
        sent.push(greeter.sent.load(Ordering::Relaxed));
    }
    // Messages of 16 KiB.
    assert!(sent[0] < 64 && sent[1] > 200, "{sent:?}");
}

#[tokio::test]
async fn user_agent_and_time_out_are_told_to_the_server() {
    let greeter = Greeter::default();
    let server = tonic_server(greeter.clone()).await;
    let told = || greeter.seen.lock().unwrap().pop().unwrap();
    hello(&builder(&server).build().unwrap(), "you").await.unwrap();
    let headers = told();
    assert!(headers["user-agent"].to_str().unwrap().starts_with("forebay-grpc/"));
    assert!(!headers.contains_key("grpc-timeout"));
    let channel = builder(&server).user_agent("mine/1").timeout(Some(30 * SECOND)).build().unwrap();
    hello(&channel, "you").await.unwrap();
    let headers = told();
    assert_eq!(
        (&headers["user-agent"], &headers["grpc-timeout"]),
        (&"mine/1".parse().unwrap(), &"30000000u".parse().unwrap())
    );
}

#[tokio::test]
async fn balance_decides_which_server_is_called() {
    for (balance, both) in [(Balance::FirstHealthy, false), (Balance::P2c, true)] {
        let (a, seen_a) = scripted(Script::default()).await;
        let (b, seen_b) = scripted(Script::default()).await;
        let channel = builder(&a).and(b.url()).balance(balance).build().unwrap();
        for _ in 0..50 {
            hello(&channel, "you").await.unwrap();
        }
        assert!(seen_a.streams() > 0);
        assert_eq!(seen_b.streams() > 0, both, "{balance:?}");
    }
}

#[tokio::test]
async fn the_name_of_the_channel_stands_in_its_errors() {
    let (listener, url) = silent().await;
    drop(listener);
    let status = hello(&PooledChannel::new(&url).unwrap(), "you").await.unwrap_err();
    assert!(status.message().contains(&format!("upstream {url:?}")), "{status}");
    let channel = PooledChannel::builder(url).name("greeters").build().unwrap();
    let status = hello(&channel, "you").await.unwrap_err();
    assert!(status.message().contains("upstream \"greeters\""), "{status}");
}

#[tokio::test]
async fn a_budget_of_this_machine_is_nobodys_fault_but_ours() {
    let (server, _) = scripted(Script::default()).await;
    let machine = Machine::new(1, 1);
    let first = builder(&server).budget(Arc::clone(&machine)).build().unwrap();
    hello(&first, "you").await.unwrap();
    let second = builder(&server).budget(machine).acquire_timeout(ms(100)).build().unwrap();
    let status = hello(&second, "you").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
}

/// A server whose health is what the test says.
async fn with_health() -> (forebay_grpc::Running, tonic_health::server::HealthReporter, Greeter) {
    let greeter = Greeter::default();
    let (reporter, _) = tonic_health::server::health_reporter();
    reporter.set_service_status("greet.GreeterService", ServingStatus::Serving).await;
    let server = Server::builder()
        .with(|settings| settings.workers = 1)
        .add_service(GreeterServiceServer::new(greeter.clone()))
        .health_by(reporter.clone())
        .listen("127.0.0.1:0")
        .build()
        .unwrap();
    (server, reporter, greeter)
}

#[tokio::test]
async fn health_service_keeps_calls_from_a_server_that_does_not_serve() {
    let ((a, reporter, on_a), (b, _b, on_b)) = (with_health().await, with_health().await);
    let url = |server: &forebay_grpc::Running| format!("http://{}", server.local_addrs()[0]);
    let unwatched = PooledChannel::builder(url(&a)).and(url(&b)).build().unwrap();
    let watched =
        PooledChannel::builder(url(&a)).and(url(&b)).health_service("greet.GreeterService").build().unwrap();
    reporter.set_service_status("greet.GreeterService", ServingStatus::NotServing).await;
    tokio::time::sleep(2 * SECOND).await;
    let share = async |channel: &PooledChannel| {
        let before = (on_a.calls.load(Ordering::Relaxed), on_b.calls.load(Ordering::Relaxed));
        for _ in 0..50 {
            hello(channel, "you").await.unwrap();
        }
        (on_a.calls.load(Ordering::Relaxed) - before.0, on_b.calls.load(Ordering::Relaxed) - before.1)
    };
    assert_eq!(share(&watched).await, (0, 50));
    let (a_too, _) = share(&unwatched).await;
    assert!(a_too > 0);
    reporter.set_service_status("greet.GreeterService", ServingStatus::Serving).await;
    tokio::time::sleep(2 * SECOND).await;
    let (a_again, _) = share(&watched).await;
    assert!(a_again > 0);
}

#[tokio::test]
async fn a_connection_that_only_watches_health_is_none_for_calls() {
    let (server, reporter, _) = with_health().await;
    reporter.set_service_status("greet.GreeterService", ServingStatus::NotServing).await;
    let url = format!("http://{}", server.local_addrs()[0]);
    let channel = PooledChannel::builder(url).health_service("greet.GreeterService").build().unwrap();
    until("its health is watched", || server.figures().connections == 1).await;
    tokio::time::sleep(ms(100)).await;
    assert_eq!(*channel.watch_state().borrow(), ConnectivityState::Idle);
    reporter.set_service_status("greet.GreeterService", ServingStatus::Serving).await;
    hello(&channel, "you").await.unwrap();
    assert_eq!(*channel.watch_state().borrow(), ConnectivityState::Ready);
}

#[tokio::test]
async fn certificates_are_checked_as_the_settings_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let certified = rcgen::generate_simple_self_signed(vec!["greet.test".to_owned()]).unwrap();
    let (pem, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    std::fs::write(file("cert.pem"), &pem).unwrap();
    std::fs::write(file("key.pem"), &key).unwrap();
    let server = Server::builder()
        .with(|settings| settings.workers = 1)
        .add_service(GreeterServiceServer::new(Greeter::default()))
        .tls(file("cert.pem"), file("key.pem"))
        .listen("127.0.0.1:0")
        .build()
        .unwrap();
    let url = format!("https://{}", server.local_addrs()[0]);
    let roots = Roots::from_pem(pem.as_bytes()).unwrap();
    let good = PooledChannel::builder(&url).roots(roots.clone()).server_name("greet.test").build().unwrap();
    assert_eq!(hello(&good, "you").await.unwrap(), "Hello you");
    let file = PooledChannel::builder(&url)
        .ca(&file("cert.pem"))
        .unwrap()
        .server_name("greet.test")
        .build()
        .unwrap();
    assert_eq!(hello(&file, "you").await.unwrap(), "Hello you");
    let other_name = PooledChannel::builder(&url).roots(roots.clone()).build().unwrap();
    let status = hello(&other_name, "you").await.unwrap_err();
    assert!(status.code() == Code::Unavailable && status.message().contains("TLS"), "{status}");
    let native = PooledChannel::builder(&url).server_name("greet.test").build().unwrap();
    assert_eq!(hello(&native, "you").await.unwrap_err().code(), Code::Unavailable);
    // A certificate of ours is shown to who asks; this server does not, and it does no harm.
    let identity = Identity::from_pem(pem.as_bytes(), key.as_bytes()).unwrap();
    let shown = PooledChannel::builder(&url).roots(roots).server_name("greet.test").identity(identity);
    assert_eq!(hello(&shown.build().unwrap(), "you").await.unwrap(), "Hello you");
}

#[tokio::test]
async fn a_server_that_demands_a_certificate_is_shown_one() {
    let certified = |name: &str| rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (server_has, client_has, stranger_has) =
        (certified("greet.test"), certified("client.test"), certified("stranger.test"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut trusted = rustls::RootCertStore::empty();
    trusted.add(client_has.cert.der().clone()).unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(trusted.into(), provider.clone());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![server_has.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(server_has.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Decrypts, and lets a server behind it answer.
    let (behind, _) = scripted(Script::default()).await;
    let address = behind.address;
    let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", front.local_addr().unwrap());
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((socket, _)) = front.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut outside = acceptor.accept(socket).await?;
                let mut inside = tokio::net::TcpStream::connect(address).await?;
                tokio::io::copy_bidirectional(&mut outside, &mut inside).await
            });
        }
    });
    let roots = Roots::from_pem(server_has.cert.pem().as_bytes()).unwrap();
    let channel = |shown: Option<&rcgen::CertifiedKey<rcgen::KeyPair>>| {
        let builder = PooledChannel::builder(&url)
            .roots(roots.clone())
            .server_name("greet.test")
            .acquire_timeout(SECOND);
        let identity = shown.map(|shown| {
            let key = shown.signing_key.serialize_pem();
            Identity::from_pem(shown.cert.pem().as_bytes(), key.as_bytes()).unwrap()
        });
        match identity {
            Some(identity) => builder.identity(identity),
            None => builder,
        }
        .build()
        .unwrap()
    };
    assert_eq!(hello(&channel(Some(&client_has)), "you").await.unwrap(), "Hello you");
    for shown in [None, Some(&stranger_has)] {
        let status = hello(&channel(shown), "you").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
    }
}

#[tokio::test]
async fn settings_that_cannot_be_are_named_with_their_value() {
    let builder = || PooledChannel::builder("http://127.0.0.1:1");
    for (built, words) in [
        (PooledChannel::builder("ftp://a").build(), "\"ftp://a\""),
        (builder().streams_max(0).build(), "streams_max: 0"),
        (builder().streams_soft(101).build(), "streams_soft: 101"),
        (builder().stream_window(1).build(), "stream_window: 1"),
        (builder().max_frame_bytes(1).build(), "max_frame_bytes: 1"),
        (builder().resolve_interval(ms(1)).build(), "resolve_interval: 1ms"),
        (builder().connections_max(0).build(), "connections_max"),
        (builder().user_agent("a\nb").build(), "user_agent"),
        (builder().server_name("").build(), "server_name"),
    ] {
        let error = built.err().unwrap().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
    let error = std::thread::spawn(move || builder().build().err().unwrap()).join().unwrap();
    assert!(error.to_string().contains("tokio runtime"), "{error}");
}

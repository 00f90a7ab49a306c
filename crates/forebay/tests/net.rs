//! The dialers and the pool against the real kernel: loopback sockets, rustls, and a namespace with few ports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use forebay::dial::{Machine, Roots, SocketEndpoint, Tcp, Tls, TlsEndpoint, Udp};
use forebay::sys::netns::NetNamespace;
use forebay::{Blame, BreakerState, Cause, CloseReason, Config, Pool};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::TlsAcceptor;

/// An echo server that counts the connections it accepted.
struct Echo {
    address: SocketAddr,
    accepted: Arc<AtomicU32>,
    /// Closes every connection.
    hang_up: tokio::sync::watch::Sender<u32>,
}

async fn echo() -> Echo {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicU32::new(0));
    let hang_up = tokio::sync::watch::Sender::new(0);
    let (count, calls) = (Arc::clone(&accepted), hang_up.clone());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let mut hang_up = calls.subscribe();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::select! {
                    _ = tokio::io::copy(&mut read, &mut write) => {}
                    _ = hang_up.changed() => {}
                }
            });
        }
    });
    Echo { address, accepted, hang_up }
}

impl Echo {
    fn accepted(&self) -> u32 {
        self.accepted.load(Ordering::SeqCst)
    }
}

async fn say(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, text);
}

/// Waits until something holds; the kernel is not in a hurry.
async fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < deadline, "it never held");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn requests_in_a_row_share_one_connection() {
    let server = echo().await;
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).build().unwrap();
    for _ in 0..20 {
        let mut lease = pool.acquire().await.unwrap();
        say(&mut lease, b"hello").await;
        lease.complete();
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn connection_closed_by_its_peer_is_not_handed_out() {
    let server = echo().await;
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).build().unwrap();
    let mut lease = pool.acquire().await.unwrap();
    say(&mut lease, b"hello").await;
    let socket = forebay::sys::StreamState::Closed;
    server.hang_up.send_modify(|n| *n += 1);
    let watched = Instant::now();
    while forebay::sys::stream_state(lease.as_fd()) != socket {
        assert!(watched.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    lease.complete();
    let mut lease = pool.acquire().await.unwrap();
    assert!(!lease.is_reused());
    say(&mut lease, b"hello again").await;
    lease.complete();
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn close_of_an_idle_connection_is_noticed_before_anybody_asks() {
    let server = echo().await;
    let config = Config { idle_timeout: Some(Duration::from_millis(200)), ..Config::default() };
    let config = Config { connections_min: 1, ..config };
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).config(config).build().unwrap();
    until(|| pool.snapshot().endpoints[0].snapshot.idle == 1).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    server.hang_up.send_modify(|n| *n += 1);
    until(|| pool.snapshot().counters().closes(CloseReason::Peer) == 1).await;
    // `connections_min` wants another.
    until(|| server.accepted() == 2 && pool.snapshot().endpoints[0].snapshot.idle == 1).await;
}

#[tokio::test]
async fn connection_dropped_in_the_middle_of_a_request_is_closed() {
    let server = echo().await;
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).build().unwrap();
    let mut lease = pool.acquire().await.unwrap();
    lease.write_all(b"half").await.unwrap();
    drop(lease);
    let mut lease = pool.acquire().await.unwrap();
    say(&mut lease, b"whole").await;
    lease.complete();
    assert_eq!(server.accepted(), 2);
    assert_eq!(pool.snapshot().counters().closes(CloseReason::Abandoned), 1);
}

#[tokio::test]
async fn detached_connection_counts_no_more() {
    let server = echo().await;
    let config = Config { connections_max: 1, ..Config::default() };
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).config(config).build().unwrap();
    let mut kept = pool.acquire().await.unwrap().detach();
    let mut lease = pool.acquire().await.unwrap();
    say(&mut lease, b"pooled").await;
    say(&mut kept, b"detached").await;
    lease.complete();
    assert_eq!(pool.snapshot().endpoints[0].snapshot.connections(), 1);
}

#[tokio::test]
async fn refused_connection_says_whose_fault_and_where() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let pool = Pool::builder(Tcp::default()).name("echo").endpoint(address.into()).build().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Refused), Blame::Upstream));
    let text = error.to_string();
    assert!(text.contains("\"echo\"") && text.contains(&address.to_string()), "{text}");
    assert!(text.contains("TCP connect failed") && text.contains("look at the upstream"), "{text}");
}

#[tokio::test]
async fn address_that_is_not_ours_is_our_fault() {
    let server = echo().await;
    let endpoint = SocketEndpoint { remote: server.address, local: Some(Ipv4Addr::new(192, 0, 2, 1).into()) };
    let pool = Pool::builder(Tcp::default()).endpoint(endpoint).build().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Address), Blame::Local));
    assert!(error.to_string().contains("look at this machine"), "{error}");
}

#[tokio::test]
async fn local_address_is_part_of_the_endpoint_and_used() {
    let server = echo().await;
    let local: IpAddr = Ipv4Addr::new(127, 0, 0, 9).into();
    let plain: SocketEndpoint = server.address.into();
    let bound = SocketEndpoint { local: Some(local), ..plain };
    let pool = Pool::builder(Tcp::default()).endpoint(plain).endpoint(bound).build().unwrap();
    let lease = pool.acquire_at(&bound).await.unwrap();
    assert_eq!(lease.local_addr().unwrap().ip(), local);
    assert_eq!(lease.endpoint(), Some(bound));
    lease.complete();
    let lease = pool.acquire_at(&plain).await.unwrap();
    assert_ne!(lease.local_addr().unwrap().ip(), local);
    lease.complete();
}

#[tokio::test]
async fn streams_have_their_options_set() {
    let server = echo().await;
    let pool = Pool::builder(Tcp::default()).endpoint(server.address.into()).build().unwrap();
    let lease = pool.acquire().await.unwrap();
    assert!(lease.nodelay().unwrap());
    let socket = socket2::SockRef::from(&*lease);
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(10)));
    lease.complete();
}

#[tokio::test]
async fn late_datagram_never_reaches_the_next_user() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let pool = Pool::builder(Udp::default()).endpoint(address.into()).build().unwrap();
    let lease = pool.acquire().await.unwrap();
    let client = lease.local_addr().unwrap();
    lease.send(b"question").await.unwrap();
    lease.fail(Cause::Timeout);
    server.send_to(b"late answer", client).await.unwrap();
    let lease = pool.acquire().await.unwrap();
    assert_ne!(lease.local_addr().unwrap(), client);
    lease.complete();
}

/// A TLS echo server for `localhost`, and the certificate of who signed its own.
async fn tls_echo() -> (SocketAddr, String, Arc<AtomicU32>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let certificate =
        CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"echo".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (address, ca_certificate.pem(), accepted)
}

fn tls_endpoint(address: SocketAddr, name: &str, ca: &str) -> TlsEndpoint {
    TlsEndpoint {
        socket: address.into(),
        name: ServerName::try_from(name.to_owned()).unwrap(),
        roots: Roots::from_pem(ca.as_bytes()).unwrap(),
        alpn: vec![b"echo".to_vec()],
        identity: None,
    }
}

#[tokio::test]
async fn tls_connection_is_reused_although_the_server_sends_tickets() {
    let (address, ca, accepted) = tls_echo().await;
    let pool =
        Pool::builder(Tls::default()).endpoint(tls_endpoint(address, "localhost", &ca)).build().unwrap();
    for _ in 0..5 {
        let mut lease = pool.acquire().await.unwrap();
        assert_eq!(lease.get_ref().1.alpn_protocol(), Some(&b"echo"[..]));
        lease.write_all(b"x").await.unwrap();
        // The answer is left half-read only in the sense that tickets may stand behind it.
        assert_eq!(lease.read_u8().await.unwrap(), b'x');
        lease.complete();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(accepted.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn second_tls_connection_resumes_the_session() {
    let (address, ca, _) = tls_echo().await;
    let pool =
        Pool::builder(Tls::default()).endpoint(tls_endpoint(address, "localhost", &ca)).build().unwrap();
    for expected in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut lease = pool.acquire().await.unwrap();
        lease.write_all(b"x").await.unwrap();
        assert_eq!(lease.read_u8().await.unwrap(), b'x');
        assert_eq!(lease.get_ref().1.handshake_kind(), Some(expected));
        lease.complete_last();
    }
}

#[tokio::test]
async fn certificate_for_another_name_is_a_tls_failure_that_says_so() {
    let (address, ca, _) = tls_echo().await;
    let pool =
        Pool::builder(Tls::default()).endpoint(tls_endpoint(address, "elsewhere.test", &ca)).build().unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Tls), Blame::Upstream));
    let text = error.to_string();
    assert!(text.contains("TLS handshake failed") && text.contains("elsewhere.test"), "{text}");
}

#[tokio::test]
async fn certificate_of_an_unknown_signer_is_a_tls_failure_that_says_so() {
    let (address, ..) = tls_echo().await;
    let (_, stranger, _) = tls_echo().await;
    let pool = Pool::builder(Tls::default())
        .endpoint(tls_endpoint(address, "localhost", &stranger))
        .build()
        .unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!(error.cause(), Some(Cause::Tls));
    assert!(error.to_string().contains("TLS handshake failed"), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
}

#[tokio::test]
async fn server_that_does_not_speak_tls_ends_the_dial_in_its_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_, ca, _) = tls_echo().await;
    let config = Config { dial_timeout: Duration::from_millis(50), ..Config::default() };
    let pool = Pool::builder(Tls::default())
        .endpoint(tls_endpoint(address, "localhost", &ca))
        .config(config)
        .build()
        .unwrap();
    let error = pool.acquire().await.unwrap_err();
    assert_eq!((error.cause(), error.blame()), (Some(Cause::Timeout), Blame::Upstream));
    assert!(error.to_string().contains("TLS handshake failed: no answer in time"), "{error}");
}

const PORTS: u32 = 50;

/// Runs `work` where there are fifty local ports, with the address of a listener that accepts and holds.
fn in_a_small_network(work: impl AsyncFn(SocketAddr) + Send + Sync) {
    let Some(network) = NetNamespace::for_test(40_000..=40_049) else { return };
    network.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = forebay::sys::TcpListenerOptions::default();
            let listener = forebay::sys::tcp_listener(([127, 0, 0, 1], 1000).into(), &options).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            let address = listener.local_addr().unwrap();
            tokio::spawn(async move {
                loop {
                    let Ok((mut stream, _)) = listener.accept().await else { return };
                    tokio::spawn(async move {
                        let _ = stream.read(&mut [0]).await;
                    });
                }
            });
            work(address).await;
        });
    });
}

#[test]
fn storm_without_a_budget_is_this_machines_fault_and_passes() {
    in_a_small_network(async |address| {
        let config = Config { connections_max: 500, dials_max: 500, ..Config::default() };
        let pool = Pool::builder(Tcp::default())
            .name("storm")
            .endpoint(address.into())
            .config(config)
            .build()
            .unwrap();
        // Somebody else has taken every port but ten.
        let mut others = Vec::new();
        for _ in 0..PORTS - 10 {
            others.push(TcpStream::connect(address).await.unwrap());
        }
        let hold: Vec<_> = (0..200)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let lease = pool.acquire_until(Instant::now() + Duration::from_millis(300)).await;
                    lease.inspect(|_| ()).map_err(|error| error.blame())
                })
            })
            .collect();
        let (mut served, mut leases) = (0, Vec::new());
        for task in hold {
            match task.await.unwrap() {
                Ok(lease) => {
                    served += 1;
                    leases.push(lease);
                }
                Err(blame) => assert_eq!(blame, Blame::Local),
            }
        }
        assert_eq!(served, 10);
        let snapshot = pool.snapshot();
        let figures = &snapshot.endpoints[0].snapshot;
        assert!(figures.counters.dial_failures(Cause::Ports) > 0);
        assert_eq!(figures.counters.breaker_opened, 0);
        assert_eq!(figures.breaker, BreakerState::Closed);
        assert_eq!(figures.last_failure.map(Cause::blame), Some(Blame::Local));
        // The others leave; nobody tells the pool.
        drop(others);
        let more = tokio::time::timeout(Duration::from_secs(10), async {
            let mut more = Vec::new();
            for _ in 0..20 {
                more.push(loop {
                    if let Ok(lease) = pool.acquire().await {
                        break lease;
                    }
                });
            }
            more
        });
        assert_eq!(more.await.expect("the pool recovers by itself").len(), 20);
        leases.into_iter().for_each(forebay::Lease::complete);
    });
}

#[test]
fn storm_with_a_budget_fails_nobody() {
    in_a_small_network(async |address| {
        let machine = Machine::detect().unwrap();
        let config = Config { connections_max: 500, dials_max: 500, ..Config::default() };
        let pool = Pool::builder(Tcp::default())
            .endpoint(address.into())
            .config(config)
            .budget(machine)
            .build()
            .unwrap();
        let storm: Vec<_> = (0..200)
            .map(|_| {
                let pool = pool.clone();
                tokio::spawn(async move {
                    let lease = pool.acquire().await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    lease.complete();
                })
            })
            .collect();
        for task in storm {
            task.await.unwrap();
        }
        let snapshot = pool.snapshot();
        let figures = &snapshot.endpoints[0].snapshot;
        assert_eq!(figures.counters.dial_failures(Cause::Ports), 0);
        assert!(figures.connections() <= PORTS && figures.connections() > 10, "{}", figures.connections());
        assert_eq!(figures.breaker, BreakerState::Closed);
    });
}

//! A scripted backend of HTTP/2, clients of both versions, and certificates.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use forebay_proxy::{CheckKind, Mode, ProxyConfig, ProxyFigures, Server, Settings, start};
use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

pub(crate) type Client2 = SendRequest<Bytes>;

/// Ends a test that waits for what never comes.
pub(crate) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("within ten seconds")
}

pub(crate) fn proxy(backends: &[String], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.to_vec(),
        workers: 1,
        ..Settings::default()
    };
    // Checks would count as connections.
    settings.health.check = CheckKind::None;
    change(&mut settings);
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

pub(crate) fn figures(server: &Server) -> ProxyFigures {
    server.handle().figures()
}

/// What a backend does beyond what paths say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Script {
    /// Streams that it allows.
    pub(crate) streams_max: u32,
    /// Says GOAWAY after so many requests on a connection.
    pub(crate) goaway_after: Option<u32>,
    /// Refuses so many streams before it takes any.
    pub(crate) refuses: u32,
    /// Takes a request, and then neither reads nor writes.
    pub(crate) falls_silent: bool,
}

impl Default for Script {
    fn default() -> Self {
        Self { streams_max: 200, goaway_after: None, refuses: 0, falls_silent: false }
    }
}

/// A backend that speaks HTTP/2, and HTTP/1.1 to who agrees to that by ALPN.
pub(crate) struct Backend2 {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU32,
    requests: AtomicU32,
    refused: AtomicU32,
    streams_most: AtomicU32,
    sent: AtomicUsize,
    resets: Mutex<Vec<Reason>>,
    trailers: Mutex<Option<HeaderMap>>,
}

impl Backend2 {
    pub(crate) async fn spawn(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Seen>::default());
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve2(stream, script, Arc::clone(&all), String::new()));
            }
        });
        Self { address, seen }
    }

    pub(crate) async fn spawn_tls(
        script: Script,
        authority: &Authority,
        name: &str,
        alpn: &[&str],
        asks: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Seen>::default());
        let acceptor = TlsAcceptor::from(Arc::new(authority.server(name, alpn, asks)));
        let all = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, all) = (acceptor.clone(), Arc::clone(&all));
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let connection = stream.get_ref().1;
                    // The certificate's bytes are name enough.
                    let who = connection.peer_certificates().map_or(String::from("none"), |chain| {
                        chain[0].iter().map(|byte| format!("{byte:02x}")).collect::<String>()
                    });
                    match connection.alpn_protocol() {
                        Some(b"h2") => serve2(stream, script, all, who).await,
                        _ => serve1(stream, all, &who).await,
                    }
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn connections(&self) -> u32 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> u32 {
        self.seen.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn streams_most(&self) -> u32 {
        self.seen.streams_most.load(Ordering::SeqCst)
    }

    /// Bytes of endless bodies that found room.
    pub(crate) fn sent_bytes(&self) -> usize {
        self.seen.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn resets(&self) -> Vec<Reason> {
        self.seen.resets.lock().unwrap().clone()
    }

    pub(crate) fn last_trailers(&self) -> Option<HeaderMap> {
        self.seen.trailers.lock().unwrap().clone()
    }
}

async fn serve2<S: AsyncRead + AsyncWrite + Unpin>(stream: S, script: Script, seen: Arc<Seen>, who: String) {
    let number = seen.connections.fetch_add(1, Ordering::SeqCst) + 1;
    let handshake =
        h2::server::Builder::new().max_concurrent_streams(script.streams_max).handshake::<_, Bytes>(stream);
    let Ok(mut http) = handshake.await else { return };
    let (mut count, streams) = (0, Arc::new(AtomicU32::new(0)));
    while let Some(Ok((request, mut respond))) = http.accept().await {
        count += 1;
        if seen.refused.fetch_add(1, Ordering::SeqCst) < script.refuses {
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        seen.requests.fetch_add(1, Ordering::SeqCst);
        if script.falls_silent {
            return std::future::pending().await;
        }
        if script.goaway_after == Some(count) {
            http.graceful_shutdown();
        }
        let (seen, streams, who) = (Arc::clone(&seen), Arc::clone(&streams), who.clone());
        tokio::spawn(async move {
            let now = streams.fetch_add(1, Ordering::SeqCst) + 1;
            seen.streams_most.fetch_max(now, Ordering::SeqCst);
            answer2(request, respond, &seen, number, &who).await;
            streams.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

async fn answer2(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Seen,
    number: u32,
    who: &str,
) {
    let (head, mut body) = request.into_parts();
    let mut response = Response::new(());
    let headers = response.headers_mut();
    let told = |name: &str| head.headers.get(name).cloned().unwrap_or(HeaderValue::from_static(""));
    headers.insert("seen-for", told("x-forwarded-for"));
    headers.insert("seen-proto", told("x-forwarded-proto"));
    headers.insert("seen-te", told("te"));
    headers.insert("seen-version", HeaderValue::from_static("2"));
    headers.insert("seen-authority", head.uri.authority().unwrap().as_str().parse().unwrap());
    headers.insert("seen-certificate", who.parse().unwrap());
    headers.insert("backend-connection", number.into());
    match head.uri.path() {
        "/hello" => {
            let mut out = respond.send_response(response, false).unwrap();
            let _ = out.send_data(Bytes::from_static(b"hello"), true);
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if let Ok(mut out) = respond.send_response(response, false) {
                let _ = out.send_data(Bytes::from_static(b"hello"), true);
            }
        }
        path @ ("/echo" | "/grpc") => {
            let mut out = respond.send_response(response, false).unwrap();
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
                let mut rest = piece;
                while !rest.is_empty() {
                    out.reserve_capacity(rest.len());
                    let Some(Ok(room)) = poll_fn(|cx| out.poll_capacity(cx)).await else { return };
                    let _ = out.send_data(rest.split_to(room.min(rest.len())), false);
                }
            }
            *seen.trailers.lock().unwrap() = body.trailers().await.ok().flatten();
            let mut trailers = HeaderMap::new();
            let (name, value) = if path == "/grpc" { ("grpc-status", "0") } else { ("echoed", "yes") };
            trailers.insert(name, HeaderValue::from_static(value));
            let _ = out.send_trailers(trailers);
        }
        "/grpc-status" => {
            response.headers_mut().insert("grpc-status", HeaderValue::from_static("5"));
            let _ = respond.send_response(response, true);
        }
        "/endless" => {
            let mut out = respond.send_response(response, false).unwrap();
            loop {
                out.reserve_capacity(16 << 10);
                tokio::select! {
                    room = poll_fn(|cx| out.poll_capacity(cx)) => match room {
                        Some(Ok(room)) if room > 0 => {
                            seen.sent.fetch_add(room, Ordering::SeqCst);
                            let _ = out.send_data(vec![0; room].into(), false);
                        }
                        Some(Ok(_)) => {}
                        _ => {
                            if let Ok(reason) = poll_fn(|cx| out.poll_reset(cx)).await {
                                seen.resets.lock().unwrap().push(reason);
                            }
                            return;
                        }
                    },
                }
            }
        }
        "/reset" => respond.send_reset(Reason::INTERNAL_ERROR),
        "/reset-midway" => {
            let mut out = respond.send_response(response, false).unwrap();
            let _ = out.send_data(Bytes::from_static(b"some"), false);
            tokio::time::sleep(Duration::from_millis(50)).await;
            out.send_reset(Reason::ENHANCE_YOUR_CALM);
        }
        _ => {
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            let _ = respond.send_response(response, true);
        }
    }
}

/// Answers by HTTP/1.1: each request by its version, upgrades by sending back what comes.
async fn serve1<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, seen: Arc<Seen>, who: &str) {
    let number = seen.connections.fetch_add(1, Ordering::SeqCst) + 1;
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return,
            }
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        if head.contains("\r\nupgrade: websocket\r\n") {
            let switch = "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            return;
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nseen-version: 1\r\nseen-certificate: {who}\r\n\
             backend-connection: {number}\r\n\r\nok"
        );
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
        stream.flush().await.unwrap();
    }
}

/// Connects by HTTP/2 without asking first.
pub(crate) async fn connect(server: &Server) -> Client2 {
    let stream = TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

pub(crate) async fn connect_tls(address: SocketAddr, authority: &Authority, name: &str) -> Client2 {
    let stream = authority.connect(address, name, &["h2"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move {
        let _ = connection.await;
    });
    client
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

pub(crate) async fn get(client: &mut Client2, path: &str) -> Answer {
    let request = Request::get(format!("http://test{path}")).body(()).unwrap();
    let work = async {
        poll_fn(|cx| client.poll_ready(cx)).await.unwrap();
        let (response, _) = client.send_request(request, true).unwrap();
        let (head, body) = response.await.unwrap().into_parts();
        let (body, _) = read_body(body).await.unwrap();
        Answer { status: head.status.as_u16(), headers: head.headers, body }
    };
    within(work).await
}

pub(crate) async fn read_body(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let work = async {
        let mut bytes = Vec::new();
        while let Some(piece) = body.data().await {
            let piece = piece?;
            bytes.extend_from_slice(&piece);
            body.flow_control().release_capacity(piece.len())?;
        }
        Ok((bytes, body.trailers().await?))
    };
    within(work).await
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, text: &str) -> String {
    let work = async {
        stream.write_all(text.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        let mut answer = Vec::new();
        // An end without a goodbye is an end here.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    };
    within(work).await
}

/// Sends text, and returns all that comes until the end.
pub(crate) async fn get1(server: &Server, text: &str) -> String {
    talk(TcpStream::connect(server.local_addrs()[0].address).await.unwrap(), text).await
}

pub(crate) async fn get1_tls(address: SocketAddr, authority: &Authority, name: &str, text: &str) -> String {
    talk(authority.connect(address, name, &["http/1.1"]).await, text).await
}

/// Asks for an upgrade, says something through the tunnel, ends, and returns all that came.
pub(crate) async fn upgrade1(server: &Server) -> String {
    let mut stream = TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
    let asked = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(asked.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    let reading = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
    };
    within(reading).await;
    stream.write_all(b"echoed through the tunnel").await.unwrap();
    stream.shutdown().await.unwrap();
    String::from_utf8(head).unwrap() + &talk(stream, "").await
}

/// Floods the proxy for a while.
pub(crate) async fn flood(server: &Server, kind: &str) {
    let mut stream = TcpStream::connect(server.local_addrs()[0].address).await.unwrap();
    let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    };
    let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    first.extend(frame(4, 0, 0, &[]));
    // `:method: GET`, `:scheme: http`, `:path: /hello`, `:authority: test` (RFC 7541).
    let head = [&[0x82, 0x86, 0x04, 6][..], b"/hello", &[0x01, 4], b"test"].concat();
    let one = match kind {
        "settings" => frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]),
        "ping" => frame(6, 0, 0, &[7; 8]),
        "continuation" => {
            first.extend(frame(1, 0, 1, &head));
            frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(100))
        }
        "window" => {
            first.extend(frame(1, 5, 1, &head));
            frame(8, 0, 0, &1_u32.to_be_bytes())
        }
        "empty" => {
            first.extend(frame(1, 4, 1, &head));
            frame(0, 0, 1, &[])
        }
        other => panic!("no such flood: {other}"),
    };
    let many = one.repeat(1000);
    let flooding = async {
        if stream.write_all(&first).await.is_err() {
            return;
        }
        // Until it has had enough.
        while stream.write_all(&many).await.is_ok() {}
    };
    let _ = tokio::time::timeout(Duration::from_millis(400), flooding).await;
}

/// An authority of this test, and what it signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: tempfile::TempDir,
}

/// A certificate and its key, in files.
pub(crate) struct Files {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Else what it signs looks as if it had signed itself.
        params.distinguished_name.push(rcgen::DnType::CommonName, "authority of a test");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, folder: tempfile::tempdir().unwrap() }
    }

    /// The file with its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        let path = self.folder.path().join("ca.pem");
        std::fs::write(&path, self.issuer.pem()).unwrap();
        path
    }

    /// Signs a new certificate, and writes it to files of this name.
    pub(crate) fn write(&self, name: &str) -> Files {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            certificate: self.folder.path().join(format!("{name}.pem")),
            key: self.folder.path().join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn server(&self, name: &str, alpn: &[&str], asks: bool) -> ServerConfig {
        let files = self.write(name);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider);
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        let chain = CertificateDer::pem_file_iter(&files.certificate).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        name: &str,
        alpn: &[&str],
    ) -> TlsStream<TcpStream> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }
}

/// The certificate that a listener shows.
pub(crate) async fn shown_certificate(address: SocketAddr, authority: &Authority, name: &str) -> Vec<u8> {
    let stream = authority.connect(address, name, &["h2"]).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

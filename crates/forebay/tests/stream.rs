//! Streams over loopback, plain and encrypted, of both sides.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use forebay::dial::{ClientConfigs, Identity, Roots};
use forebay::stream::{PolledStream, Stream};
use forebay::tls::{ALPN_HTTP, Certificates, server_config};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// An authority of this test, and what it signs.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this name, and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn certificates(&self, name: &str) -> Arc<Certificates> {
        let (certificate, key) = self.sign(name);
        let path = |kind: &str| -> PathBuf {
            std::env::temp_dir().join(format!("forebay-stream-{}-{name}.{kind}", std::process::id()))
        };
        std::fs::write(path("pem"), certificate).unwrap();
        std::fs::write(path("key"), key).unwrap();
        let loaded = Certificates::load(&path("pem"), &path("key")).unwrap();
        for kind in ["pem", "key"] {
            std::fs::remove_file(path(kind)).unwrap();
        }
        Arc::new(loaded)
    }
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.unwrap(), accepted.unwrap().0)
}

/// Two ends that have shaken hands: the client's, the server's.
async fn encrypted(authority: &Authority, name: &'static str) -> (Stream, Stream) {
    let server = server_config(&authority.certificates(name), &ALPN_HTTP).unwrap();
    let roots = Roots::from_pem(authority.pem().as_bytes()).unwrap();
    let client = ClientConfigs::default().config(&roots, &[b"h2".to_vec()]).unwrap();
    let (near, far) = sockets().await;
    let near = Stream::encrypted(near, ClientConnection::new(client, name.try_into().unwrap()).unwrap());
    let far = Stream::encrypted(far, ServerConnection::new(server).unwrap());
    let (a, b) = tokio::join!(near.handshake(), far.handshake());
    a.unwrap();
    b.unwrap();
    assert!(near.speaks(b"h2") && far.speaks(b"h2") && near.is_encrypted());
    (near, far)
}

async fn plain() -> (Stream, Stream) {
    let (near, far) = sockets().await;
    (Stream::plain(near), Stream::plain(far))
}

/// Waits until what was written has come.
async fn moment() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

#[tokio::test]
async fn a_half_that_ends_leaves_the_other_to_go_on() {
    let authority = Authority::new();
    for (near, far) in [plain().await, encrypted(&authority, "half.test").await] {
        let asked: Vec<u8> = (0..700_000_u32).map(|n| ((n * 31) >> 3) as u8).collect();
        let answer: Vec<u8> = asked.iter().map(|byte| !byte).collect();
        let (mut near, mut far) = (PolledStream::new(near), PolledStream::new(far));
        let ask = async {
            near.write_all(&asked).await.unwrap();
            near.shutdown().await.unwrap();
            let mut came = Vec::new();
            near.read_to_end(&mut came).await.unwrap();
            (came, near)
        };
        let serve = async {
            let mut came = Vec::new();
            far.read_to_end(&mut came).await.unwrap();
            assert_eq!(came.len(), asked.len());
            assert!(came == asked);
            far.write_all(&answer).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let ((came, near), ()) = tokio::join!(ask, serve);
        assert!(came == answer);
        assert!(!near.stream().was_cut(), "it said goodbye");
    }
}

#[tokio::test]
async fn a_quiet_connection_is_told_from_one_that_has_said_something_or_has_ended() {
    let authority = Authority::new();
    for (near, far) in [plain().await, encrypted(&authority, "quiet.test").await] {
        // The server's tickets have come, or are still to come: neither is for a reader.
        moment().await;
        assert!(near.is_quiet() && near.is_quiet());
        assert_eq!(far.write(b"x").unwrap(), 1);
        far.flush().unwrap();
        moment().await;
        assert!(!near.is_quiet());
        assert!(!near.is_quiet(), "nor when asked again");
        assert_eq!(near.read(&mut Vec::new()).unwrap(), 1, "and it can still be read");
        assert!(near.is_quiet());
        drop(far);
        moment().await;
        assert!(!near.is_quiet());
    }
}

#[tokio::test]
async fn an_encrypted_stream_that_is_cut_is_told_from_one_that_ends() {
    let authority = Authority::new();
    let read = |stream: &Stream| stream.read_into(&mut [0; 100]);
    let (near, far) = encrypted(&authority, "ends.test").await;
    drop(far);
    moment().await;
    assert_eq!((read(&near).unwrap(), near.was_cut()), (0, false));
    let (near, far) = encrypted(&authority, "cut.test").await;
    forebay::sys::end_writing(far.socket()).unwrap();
    moment().await;
    assert_eq!((read(&near).unwrap(), near.was_cut()), (0, true));
}

#[tokio::test]
async fn no_identity_resumes_the_session_of_another() {
    let authority = Authority::new();
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
        .with_cert_resolver(authority.certificates("who.test"));
    server.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
    let server = Arc::new(server);
    let identity = |name| {
        let (certificate, key) = authority.sign(name);
        Identity::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap()
    };
    let (a, b) = (identity("a.test"), identity("b.test"));
    assert_ne!(a, b);
    let configs = ClientConfigs::default();
    let roots = Roots::from_pem(authority.pem().as_bytes()).unwrap();
    let mut seen = Vec::new();
    for who in [Some(&a), Some(&a), Some(&b), None, None] {
        let config = configs.config_as(&roots, &[], who).unwrap();
        let (near, far) = sockets().await;
        let near =
            Stream::encrypted(near, ClientConnection::new(config, "who.test".try_into().unwrap()).unwrap());
        let far = Stream::encrypted(far, ServerConnection::new(Arc::clone(&server)).unwrap());
        let (kind, accepted) = tokio::join!(near.handshake(), far.handshake());
        accepted.unwrap();
        seen.push(kind.unwrap().unwrap());
        moment().await;
        assert!(near.is_quiet(), "the ticket is taken in");
    }
    use HandshakeKind::{Full, Resumed};
    assert_eq!(seen, [Full, Resumed, Full, Full, Resumed]);
}

#[test]
fn what_is_no_identity_is_told_so() {
    let authority = Authority::new();
    let ((certificate, key), (_, other)) = (authority.sign("a.test"), authority.sign("a.test"));
    let read = |certificate: &str, key: &str| Identity::from_pem(certificate.as_bytes(), key.as_bytes());
    let good = read(&certificate, &key).unwrap();
    assert_eq!(good, read(&format!("{key}{certificate}"), &key).unwrap(), "compared by content");
    for (certificate, key) in [(&certificate, &other), (&key, &key), (&certificate, &certificate)] {
        read(certificate, key).unwrap_err();
    }
    let missing = Identity::from_pem_files("/nowhere/a.pem".as_ref(), "/nowhere/a.key".as_ref()).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/a.pem"), "{missing}");
    assert!(!format!("{good:?}").contains("PRIVATE"));
}

//! The server over TLS.

mod server_support;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_grpc::Running;
use rustls::pki_types::{CertificateDer, ServerName};
use server_support::*;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;

/// Puts a new certificate into the folder.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.der().clone()
}

async fn connect(
    server: &Running,
    trusted: &CertificateDer<'static>,
    protocols: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
    let socket = TcpStream::connect(address(server)).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), socket).await
}

#[tokio::test]
async fn calls_go_over_tls_and_new_files_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certify(folder.path());
    let server = builder(|settings| {
        settings.handshake_timeout = Duration::from_secs(1);
        settings.peer_info = true;
    })
    .tls(folder.path().join("cert.pem"), folder.path().join("key.pem"))
    .build()
    .unwrap();
    let stream = connect(&server, &trusted, &[b"h2"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut wire = Wire::over(stream, h2::client::Builder::new()).await;
    for name in ["Ada", "wait:10", "big:3000000", "peer"] {
        let answer = wire.call(SAY_HELLO, hello(name)).await;
        assert_eq!(answer.code, Some(Code::Ok), "{name}");
        assert!(name != "peer" || String::from_utf8_lossy(&answer.body).contains("is_encrypted: true"));
    }
    assert_eq!(wire.call(SAY_HELLO, hello(&"x".repeat(1_000_000))).await.code, Some(Code::Ok));
    // Who speaks something else, or nothing but bytes, is not served.
    assert!(connect(&server, &trusted, &[b"http/1.1"]).await.is_err());
    let mut plain = Raw::new(address(&server)).await;
    while plain.read().await.is_some() {}
    until(&server, "their end", |figures| figures.handshakes_failed == 2).await;
    // Another certificate, while it runs.
    let newer = certify(folder.path());
    let taken = async {
        while connect(&server, &newer, &[b"h2"]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(2 * PATIENCE, taken).await.expect("the new certificate is taken");
    assert_eq!(wire.call(SAY_HELLO, hello("Ada")).await.code, Some(Code::Ok), "old connections go on");
}

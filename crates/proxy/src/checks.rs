//! Active checks: what is asked of a backend to learn whether it is well.
//!
//! A check has a connection of its own, not one of a pool: it tells whether new ones can be made. It is closed as a
//! client would close it, so that servers do not log it as an error.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay::blame::{cause_of, cause_of_bind};
use forebay::dial::ClientConfigs;
use forebay::stream::Stream;
use forebay::sys::{self, TcpOptions};
use forebay_core::Cause;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme};
use tokio::io::Interest;
use tokio::net::TcpSocket;

use crate::settings::{BackendAddress, CheckKind, HealthConfig};

/// How much of a response is looked at: a status line is at its beginning.
const RESPONSE_BYTES_MAX: usize = 4096;

/// Checks backends.
#[derive(Debug)]
pub(crate) struct Checker {
    config: HealthConfig,
    tcp: TcpOptions,
    /// Where certificates matter.
    strict: ClientConfigs,
    /// Where they do not.
    lax: Arc<ClientConfig>,
}

/// Why a check failed.
#[derive(Debug)]
pub(crate) struct CheckError {
    /// What kind of failure it was.
    pub(crate) cause: Cause,
    text: String,
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Checker {
    /// Makes a checker.
    ///
    /// # Errors
    ///
    /// When TLS cannot be had.
    pub(crate) fn new(config: HealthConfig, tcp: TcpOptions) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        Ok(Self { config, tcp, strict: ClientConfigs::default(), lax: Arc::new(tls) })
    }

    /// Checks a backend.
    ///
    /// # Errors
    ///
    /// Why it is not well, or why that could not be found out; the blame of the cause tells which.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the connection is closed.
    pub(crate) async fn check(&self, backend: &BackendAddress) -> Result<(), CheckError> {
        match tokio::time::timeout(self.config.timeout, self.ask(backend)).await {
            Ok(result) => result,
            Err(_) => Err(CheckError {
                cause: Cause::Timeout,
                text: format!(
                    "no answer within {:?}",
                    Duration::from_millis(self.config.timeout.as_millis() as u64)
                ),
            }),
        }
    }

    async fn ask(&self, backend: &BackendAddress) -> Result<(), CheckError> {
        let address = backend.address;
        let socket = sys::tcp_socket(address, None, &self.tcp)
            .map_err(|error| CheckError { cause: cause_of_bind(&error), text: format!("socket: {error}") })?;
        let socket = TcpSocket::from_std_stream(socket).connect(address).await.map_err(failed("connect"))?;
        let stream = match self.config.kind {
            CheckKind::None | CheckKind::Tcp => return Ok(()),
            CheckKind::Http => Stream::plain(socket),
            CheckKind::Tls | CheckKind::Https => {
                let tls = self
                    .tls(backend)
                    .map_err(|error| CheckError { cause: Cause::Internal, text: error.to_string() })?;
                let stream = Stream::encrypted(socket, tls);
                stream.handshake().await.map_err(|error| {
                    let cause = if error.kind() == io::ErrorKind::InvalidData {
                        Cause::Tls
                    } else {
                        cause_of(&error)
                    };
                    CheckError { cause, text: format!("TLS handshake: {error}") }
                })?;
                stream
            }
        };
        if self.config.kind != CheckKind::Tls {
            self.request(&stream, address).await?;
        }
        // The goodbye goes out before the end, or not at all.
        let _ = stream.end_writing();
        Ok(())
    }

    /// Begins a handshake: by the backend's own settings, if it has some, else by those of checks.
    fn tls(&self, backend: &BackendAddress) -> Result<ClientConnection, rustls::Error> {
        let strictly = |roots, identity| {
            let mut config = ClientConfig::clone(&*self.strict.config_as(roots, &[], identity)?);
            // In a session that goes on no certificate is shown.
            config.resumption = Resumption::disabled();
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        let (config, name) = match (&backend.tls, &self.config.roots) {
            (Some(tls), _) => (strictly(&tls.roots, tls.identity.as_ref())?, Some(&tls.name)),
            (None, Some(roots)) => (strictly(roots, None)?, self.config.name.as_ref()),
            (None, None) => (Arc::clone(&self.lax), self.config.name.as_ref()),
        };
        let name = name.cloned().unwrap_or_else(|| ServerName::from(backend.address.ip()));
        ClientConnection::new(config, name)
    }

    async fn request(&self, stream: &Stream, address: SocketAddr) -> Result<(), CheckError> {
        let (path, own) = (&self.config.path, address.to_string());
        let host = self.config.host.as_deref().unwrap_or(&own);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: forebay-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        );
        let mut rest = request.as_bytes();
        while !rest.is_empty() || stream.wants_write() {
            match stream.write(rest).and_then(|n| stream.flush().map(|()| n)) {
                Ok(n) => rest = &rest[n..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(failed("request")(error)),
            }
            if !rest.is_empty() || stream.wants_write() {
                stream.ready(Interest::WRITABLE).await.map_err(failed("request"))?;
            }
        }
        let mut response = Vec::new();
        let status = loop {
            match stream.read(&mut response) {
                Ok(0) => return Err(odd(path, "the connection ended before a status".to_owned())),
                Ok(_) => match status(&response) {
                    Status::Is(status) => break status,
                    Status::Unfinished if response.len() < RESPONSE_BYTES_MAX => {}
                    _ => return Err(odd(path, "the answer is no HTTP/1 response".to_owned())),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.ready(Interest::READABLE).await.map_err(failed("response"))?;
                }
                Err(error) => return Err(failed("response")(error)),
            }
        };
        if self.config.expect.iter().any(|(first, last)| (*first..=*last).contains(&status)) {
            return Ok(());
        }
        Err(odd(path, format!("status {status}")))
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> CheckError {
    move |error| CheckError { cause: cause_of(&error), text: format!("{doing}: {error}") }
}

fn odd(path: &str, text: String) -> CheckError {
    CheckError { cause: Cause::Protocol, text: format!("GET {path}: {text}") }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Is(u16),
    Unfinished,
    None,
}

/// Reads the status out of the beginning of a response: `HTTP/1.1 200` (RFC 9112 §4).
fn status(response: &[u8]) -> Status {
    let begin = b"HTTP/1.";
    if !response.iter().zip(begin).all(|(a, b)| a == b) {
        return Status::None;
    }
    match response.get(begin.len()..13) {
        None => Status::Unfinished,
        Some([b'0' | b'1', b' ', digits @ .., b' ' | b'\r']) if digits.iter().all(u8::is_ascii_digit) => {
            Status::Is(digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0')))
        }
        Some(_) => Status::None,
    }
}

/// Believes every certificate: without a signer to believe, a check asks whether a server is there, not who it is, and
/// tells it nothing.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::settings::HealthSettings;

    fn checker(change: impl FnOnce(&mut HealthSettings)) -> Checker {
        let mut settings = HealthSettings::default();
        settings.timeout.0 = Duration::from_secs(5);
        change(&mut settings);
        Checker::new(settings.valid().unwrap(), TcpOptions::default()).unwrap()
    }

    fn check(checker: &Checker, address: SocketAddr) -> Result<(), CheckError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(checker.check(&address.into()))
    }

    /// A server that reads once and gives this answer; returns what it read.
    fn server(answer: &'static [u8]) -> (SocketAddr, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 2048];
            let n = stream.read(&mut buffer).unwrap();
            stream.write_all(answer).unwrap();
            String::from_utf8_lossy(&buffer[..n]).into_owned()
        });
        (address, thread)
    }

    #[test]
    fn a_server_that_accepts_is_well_and_one_that_refuses_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        check(&checker(|_| {}), address).unwrap();
        drop(listener);
        assert_eq!(check(&checker(|_| {}), address).unwrap_err().cause, Cause::Refused);
    }

    #[test]
    fn a_server_that_says_nothing_fails_when_the_time_is_up() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hasty = |kind| {
            checker(move |settings| {
                settings.check = kind;
                settings.timeout.0 = Duration::from_millis(50);
            })
        };
        for kind in [CheckKind::Tls, CheckKind::Http, CheckKind::Https] {
            let error = check(&hasty(kind), listener.local_addr().unwrap()).unwrap_err();
            assert_eq!((error.cause, error.to_string().as_str()), (Cause::Timeout, "no answer within 50ms"));
        }
    }

    #[test]
    fn the_status_decides_and_the_path_and_host_are_those_of_the_settings() {
        let http = |expect: &'static str| {
            checker(move |settings| {
                settings.check = CheckKind::Http;
                settings.path = "/readyz".to_owned();
                settings.host = Some("api.example:6443".to_owned());
                settings.expect = vec![expect.to_owned()];
            })
        };
        let (address, seen) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
        check(&http("204"), address).unwrap();
        let seen = seen.join().unwrap();
        assert!(seen.starts_with("GET /readyz HTTP/1.1\r\nHost: api.example:6443\r\n"), "{seen}");

        let (address, _) = server(b"HTTP/1.0 503 Service Unavailable\r\n\r\n");
        let error = check(&http("200-399"), address).unwrap_err();
        assert_eq!((error.cause, error.to_string().as_str()), (Cause::Protocol, "GET /readyz: status 503"));
        for answer in
            [&b"SSH-2.0-x\r\n"[..], b"HTTP/2 200\r\n\r\n", b"HTTP/1.1 2000 x\r\n", b"HTTP/1.1 +20 x\r\n", b""]
        {
            let (address, _) = server(answer);
            assert_eq!(check(&http("200"), address).unwrap_err().cause, Cause::Protocol, "{answer:?}");
        }
    }

    #[test]
    fn a_server_without_tls_fails_a_check_over_tls() {
        let (address, _) = server(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let error = check(&checker(|settings| settings.check = CheckKind::Tls), address).unwrap_err();
        assert_eq!(error.cause, Cause::Tls);
    }

    #[test]
    fn a_server_with_tls_is_told_goodbye_whoever_signed_its_certificate() {
        let key = rcgen::generate_simple_self_signed(vec!["api.example".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut all = Vec::new();
            for _ in 0..3 {
                let (mut socket, _) = listener.accept().unwrap();
                let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                let mut heard = [0; 512];
                // Zero, and not an error: the client had said goodbye.
                let n = stream.read(&mut heard).unwrap();
                if n > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nok").unwrap();
                }
                all.push((n, tls.server_name().map(str::to_owned)));
            }
            all
        });
        check(&checker(|settings| settings.check = CheckKind::Tls), address).unwrap();
        let named = |kind| {
            checker(move |settings| {
                settings.check = kind;
                settings.host = Some("api.example".to_owned());
            })
        };
        check(&named(CheckKind::Tls), address).unwrap();
        check(&named(CheckKind::Https), address).unwrap();
        let seen = thread.join().unwrap();
        assert_eq!(seen[..2], [(0, None), (0, Some("api.example".to_owned()))]);
        assert!(seen[2].0 > 0);
    }

    /// A server with TLS for so many checks, that signs for itself. Returns its certificate, too.
    fn signed(name: &str, checks: usize) -> (SocketAddr, String) {
        let key = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![key.cert.der().clone()],
                key.signing_key.serialize_der().try_into().unwrap(),
            )
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut socket in listener.incoming().take(checks).flatten() {
                let mut tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = rustls::Stream::new(&mut tls, &mut socket);
                // Who does not believe the certificate says so, and leaves.
                let _ = stream.read(&mut [0; 512]);
            }
        });
        (address, key.cert.pem())
    }

    #[test]
    fn a_certificate_must_be_what_the_settings_say_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let (address, own) = signed("api.example", 6);
        let (_, other) = signed("api.example", 0);
        let write = |name: &str, pem: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, pem).unwrap();
            path
        };
        let (own, other) = (write("own.pem", &own), write("other.pem", &other));
        let result = |ca: &std::path::Path, name: Option<&str>, host: Option<&str>| {
            let checker = checker(|settings| {
                settings.check = CheckKind::Tls;
                settings.ca = ca.to_owned();
                settings.name = name.map(str::to_owned);
                settings.host = host.map(str::to_owned);
            });
            check(&checker, address).map_err(|error| error.cause)
        };
        assert_eq!(result(&own, Some("api.example"), None), Ok(()));
        assert_eq!(result(&own, None, Some("api.example:6443")), Ok(()), "the name of the requests");
        assert_eq!(result(&own, Some("other.example"), Some("api.example")), Err(Cause::Tls));
        assert_eq!(result(&own, None, None), Err(Cause::Tls), "it is not for an address");
        assert_eq!(result(&other, Some("api.example"), None), Err(Cause::Tls));
        assert_eq!(result(std::path::Path::new(""), None, None), Ok(()), "nobody asks who it is");
    }

    #[test]
    fn a_backend_with_settings_of_its_own_is_checked_by_them() {
        let folder = tempfile::tempdir().unwrap();
        let (address, own) = signed("api.example", 2);
        let ca = folder.path().join("own.pem");
        std::fs::write(&ca, own).unwrap();
        let checker = checker(|settings| settings.check = CheckKind::Tls);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (name, result) in [("api.example", Ok(())), ("other.example", Err(Cause::Tls))] {
            let backend = format!("https://{address}?name={name}&ca={}", ca.display()).parse().unwrap();
            let checked = runtime.block_on(checker.check(&backend)).map_err(|error| error.cause);
            assert_eq!(checked, result, "{name}");
        }
    }
}

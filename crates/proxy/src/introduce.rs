//! PROXY headers on sockets: a client is introduced by the proxy before this one, and to the backend.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use forebay_proxy_core::proxy_header::{self, Addresses, HeaderError, Version};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::settings::ProxyProtocolConfig;

/// Who a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// Where it comes from.
    pub(crate) peer: SocketAddr,
    /// Where it went; known only where somebody is to be told.
    pub(crate) local: Option<SocketAddr>,
}

/// Why a client was not introduced.
#[derive(Debug)]
pub(crate) enum Stranger {
    /// Who sent it is not trusted to introduce anybody.
    Untrusted,
    /// It took too long.
    Late,
    /// What came is no valid header.
    Header(HeaderError),
    /// The connection ended or failed.
    Io(io::Error),
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untrusted => f.write_str("its address is not among proxy_protocol.trusted"),
            Self::Late => f.write_str("no PROXY header came in time"),
            Self::Header(error) => error.fmt(f),
            Self::Io(error) => write!(f, "no PROXY header came: {error}"),
        }
    }
}

/// Learns who a client is: by its header where that is asked for, else by its socket. Takes not a byte of what follows.
///
/// # Errors
///
/// [`Stranger`]: the client is to be refused.
///
/// # Cancel safety
///
/// Cancelled, a part of the header is lost.
pub(crate) async fn introduce(
    stream: &TcpStream,
    peer: SocketAddr,
    config: &ProxyProtocolConfig,
) -> Result<Client, Stranger> {
    let local = config.send.map(|_| stream.local_addr().map_err(Stranger::Io)).transpose()?;
    let own = Client { peer, local };
    let Some(accept) = &config.accept else { return Ok(own) };
    if !accept.trusts(peer.ip()) {
        return Err(Stranger::Untrusted);
    }
    // Boxed: clients without a header do not pay for its buffer.
    let addresses = match tokio::time::timeout(accept.timeout, Box::pin(take_header(stream))).await {
        Ok(addresses) => addresses?,
        Err(_) => return Err(Stranger::Late),
    };
    Ok(match addresses {
        Addresses::Tcp { source, destination } => Client { peer: source, local: Some(destination) },
        Addresses::Own | Addresses::Unix => own,
    })
}

async fn take_header(stream: &TcpStream) -> Result<Addresses, Stranger> {
    let mut buffer = [0; proxy_header::LEN_MAX];
    let mut taken = 0;
    loop {
        // Peeked at: nothing that follows the header may be taken.
        let n = stream.peek(&mut buffer[taken..]).await.map_err(Stranger::Io)?;
        if n == 0 {
            return Err(Stranger::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let header = proxy_header::parse(&buffer[..taken + n]).map_err(Stranger::Header)?;
        // An unfinished header is all there is so far: it is taken, so that the socket tells when more comes.
        let end = header.map_or(taken + n, |header| header.len);
        while taken < end {
            match stream.try_read(&mut buffer[taken..end]) {
                Ok(0) => return Err(Stranger::Io(io::ErrorKind::UnexpectedEof.into())),
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.ready(Interest::READABLE).await.map_err(Stranger::Io)?;
                }
                Err(error) => return Err(Stranger::Io(error)),
            }
        }
        if let Some(header) = header {
            return Ok(header.addresses);
        }
    }
}

/// Introduces a client to a backend, if that is to be done: writes the header as the first bytes of a connection.
///
/// # Errors
///
/// Those of the socket. A connection that has carried nothing takes a header at once.
pub(crate) fn introduce_to(backend: &TcpStream, client: &Client, version: Option<Version>) -> io::Result<()> {
    let (Some(version), Some(local)) = (version, client.local) else { return Ok(()) };
    let mut header = Vec::with_capacity(128);
    let addresses = Addresses::Tcp { source: client.peer, destination: local };
    proxy_header::write(&mut header, version, &addresses);
    match backend.try_write(&header) {
        Ok(n) if n == header.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::WriteZero.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::settings::{Mode, ProxyProtocolSettings};

    fn config(change: impl FnOnce(&mut ProxyProtocolSettings)) -> ProxyProtocolConfig {
        let mut settings = ProxyProtocolSettings { accept: true, ..ProxyProtocolSettings::default() };
        change(&mut settings);
        settings.valid(Mode::Opaque).unwrap()
    }

    async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        (client, stream, peer)
    }

    fn run(test: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
    }

    #[test]
    fn a_header_in_pieces_is_taken_and_not_a_byte_more() {
        run(async {
            let config = config(|_| {});
            let (mut client, mut stream, peer) = pair().await;
            let sender = tokio::spawn(async move {
                for piece in [&b"PRO"[..], b"XY TCP4 192.0.2.1 192", b".0.2.2 1 2\r\nHello"] {
                    client.write_all(piece).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                client
            });
            let who = introduce(&stream, peer, &config).await.unwrap();
            let expected =
                Client { peer: "192.0.2.1:1".parse().unwrap(), local: Some("192.0.2.2:2".parse().unwrap()) };
            assert_eq!(who, expected);
            drop(sender.await.unwrap());
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            assert_eq!(rest, "Hello");
        });
    }

    #[test]
    fn without_a_header_from_the_right_place_in_time_nobody_comes_in() {
        run(async {
            let (mut client, stream, peer) = pair().await;
            let strict = config(|settings| settings.timeout.0 = Duration::from_millis(50));
            assert!(matches!(introduce(&stream, peer, &strict).await, Err(Stranger::Late)));
            client.write_all(b"GET /").await.unwrap();
            let result = introduce(&stream, peer, &strict).await;
            assert!(matches!(result, Err(Stranger::Header(HeaderError::Missing))), "{result:?}");
            let elsewhere = config(|settings| settings.trusted = vec!["192.0.2.0/24".to_owned()]);
            assert!(matches!(introduce(&stream, peer, &elsewhere).await, Err(Stranger::Untrusted)));
            let (client, stream, peer) = pair().await;
            drop(client);
            assert!(matches!(introduce(&stream, peer, &strict).await, Err(Stranger::Io(_))));
        });
    }

    #[test]
    fn who_is_not_asked_for_a_header_is_who_its_socket_says() {
        run(async {
            let (_client, stream, peer) = pair().await;
            let who = introduce(&stream, peer, &config(|settings| settings.accept = false)).await.unwrap();
            assert_eq!(who, Client { peer, local: None });
        });
    }

    #[test]
    fn what_is_told_to_a_backend_is_what_another_proxy_understands() {
        run(async {
            let who = Client {
                peer: "192.0.2.1:1".parse().unwrap(),
                local: Some("[2001:db8::1]:2".parse().unwrap()),
            };
            for version in [Version::V1, Version::V2] {
                let (client, stream, peer) = pair().await;
                introduce_to(&client, &who, Some(version)).unwrap();
                let told = introduce(&stream, peer, &config(|_| {})).await.unwrap();
                assert_eq!((told.peer.ip().to_canonical(), told.peer.port()), (who.peer.ip(), 1));
                assert_eq!(told.local, who.local);
            }
        });
    }
}

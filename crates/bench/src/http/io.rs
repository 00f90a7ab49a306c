//! Bytes to and from a server, plain or TLS.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use forebay::blame::cause_of;
use forebay::dial::SocketEndpoint;
use forebay::sys::{self, StreamState, TcpOptions};
use forebay::{Cause, DialError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Where connections go, and all that shapes them.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    pub(super) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    pub(super) http2: bool,
}

impl Target {
    pub(super) fn endpoint(&self) -> SocketEndpoint {
        self.address.into()
    }

    /// Opens a connection.
    pub(super) async fn open(&self) -> Result<Io, DialError> {
        const CONNECT: &str = "TCP connect";
        const HANDSHAKE: &str = "TLS handshake";
        let socket = sys::tcp_socket(self.address, None, &TcpOptions::default())
            .map_err(|error| DialError::from_io(error, CONNECT))?;
        let stream = TcpSocket::from_std_stream(socket)
            .connect(self.address)
            .await
            .map_err(|error| DialError::from_io(error, CONNECT))?;
        let Some((config, name)) = &self.tls else { return Ok(Io::Plain(stream)) };
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name.clone(), stream)
            .await
            .map_err(|error| DialError::from_io(error, HANDSHAKE))?;
        if self.http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(DialError::new(Cause::Protocol, HANDSHAKE)
                .with_source("the server does not choose HTTP/2 (ALPN h2)"));
        }
        Ok(Io::Tls(Box::new(stream)))
    }
}

/// One connection's bytes.
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    /// Whether an idle connection can be used: a TLS server may have sent session tickets, nothing else comes unasked.
    pub(super) fn is_alive(&self) -> bool {
        match self {
            Self::Plain(stream) => sys::stream_state(stream.as_fd()) == StreamState::Quiet,
            Self::Tls(stream) => sys::stream_state(stream.get_ref().0.as_fd()) != StreamState::Closed,
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// What a failed handshake of HTTP/2 means.
pub(super) fn cause_of_h2(error: &h2::Error) -> Cause {
    error.get_io().map_or(Cause::Protocol, cause_of)
}

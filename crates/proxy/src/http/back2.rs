//! The backend's side by HTTP/2 (RFC 9113): one connection carries many requests, each a stream.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use forebay::dial::{Route, Transport};
use forebay::http2::{Carrying, Counted, Heard, Keepalive, Load};
use forebay::tls::ALPN_HTTP;
use forebay::{Cause, Connector, Dial, DialError};
use forebay_proxy_core::http1::{
    Announce, Body, HeadError, RequestHead, RequestOut, ResponseHead, Trailers, write_request,
};
use h2::client::{ResponseFuture, SendRequest};
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use tokio::sync::oneshot;

use super::connector::Dialler;
use super::exchange::{Back, Broken, Incoming, Outgoing};
use super::stream2::{Receiving, Sending, broken, build_fields};
use crate::settings::{BackendAddress, HttpConfig, Protocol};

/// How many requests are sent on a connection before the backend has said how many it takes: it should take 100
/// (RFC 9113 §6.5.2).
const STREAMS_FIRST: u32 = 100;

/// For how long a backend that chose HTTP/1.1 is not asked for HTTP/2.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Bytes that wait to be written to one stream.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// Backends that were asked for HTTP/2 and chose HTTP/1.1, and when.
#[derive(Debug, Default)]
pub(super) struct Spoken(Mutex<HashMap<BackendAddress, Instant>>);

impl Spoken {
    /// Whether HTTP/2 may be spoken to this backend.
    pub(super) fn may_be_http2(&self, backend: &BackendAddress) -> bool {
        match backend.protocol {
            Protocol::Plain => false,
            Protocol::Http2 => true,
            Protocol::Best => {
                let spoken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                spoken.get(backend).is_none_or(|since| since.elapsed() >= REMEMBERED_FOR)
            }
        }
    }

    fn note_http1(&self, backend: &BackendAddress) {
        let mut spoken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spoken.retain(|_, since| since.elapsed() < REMEMBERED_FOR);
        spoken.insert(backend.clone(), Instant::now());
    }
}

/// A connection to a backend that speaks HTTP/2. Its bytes are read and written by a task of its own, which ends when
/// nobody has the connection any more.
#[derive(Debug)]
pub(crate) struct Conn2 {
    requests: SendRequest<Bytes>,
    load: Arc<Load>,
    /// Dropped with the connection.
    _alive: oneshot::Sender<()>,
}

impl Conn2 {
    /// Whether it has neither ended nor said goodbye, as far as is known.
    pub(super) fn takes_requests(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !matches!(self.requests.clone().poll_ready(&mut cx), Poll::Ready(Err(_)))
    }
}

/// Dials backends that speak HTTP/2.
#[derive(Debug)]
pub(crate) struct Http2Connector {
    dialler: Arc<Dialler>,
    spoken: Arc<Spoken>,
    builder: h2::client::Builder,
    ping_interval: Duration,
}

impl Http2Connector {
    pub(super) fn new(config: &HttpConfig, dialler: Arc<Dialler>, spoken: Arc<Spoken>) -> Self {
        let mut builder = h2::client::Builder::new();
        // A client that takes nothing must not stand in the way of others: the connection has room for all streams.
        let all = config.stream_window.saturating_mul(config.backend_streams_max).min(WINDOW_MAX);
        builder
            .enable_push(false)
            .initial_max_send_streams(STREAMS_FIRST.min(config.backend_streams_max) as usize)
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(all)
            .max_header_list_size(config.limits.head_bytes_max as u32)
            .max_send_buffer_size(SEND_BUFFER_BYTES);
        Self { dialler, spoken, builder, ping_interval: config.ping_interval }
    }
}

/// RFC 9113 §6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

impl Connector for Http2Connector {
    type Conn = Conn2;
    type Endpoint = BackendAddress;

    async fn connect(&self, dial: Dial<BackendAddress>) -> Result<Conn2, DialError> {
        const HANDSHAKE: &str = "HTTP/2 handshake";
        let backend = &dial.endpoint;
        let alpn: &[&[u8]] = if backend.protocol == Protocol::Best { &ALPN_HTTP } else { &ALPN_HTTP[..1] };
        let stream = self.dialler.dial(backend, alpn, dial.timeout).await?;
        if stream.is_encrypted() && !stream.speaks(ALPN_HTTP[0]) {
            if backend.protocol == Protocol::Best {
                self.spoken.note_http1(backend);
            }
            return Err(DialError::new(Cause::Protocol, HANDSHAKE).with_source("it does not speak HTTP/2"));
        }
        let load = Arc::new(Load::default());
        let failed = |error: h2::Error| DialError::new(Cause::Protocol, HANDSHAKE).with_source(error);
        let (requests, connection) =
            self.builder.handshake(Heard::new(stream, &load)).await.map_err(failed)?;
        let (alive, end) = oneshot::channel();
        let capacity = STREAMS_FIRST as usize;
        let carrying =
            Carrying::new(connection, requests.clone(), dial.reporter, capacity, Arc::clone(&load));
        let keepalive =
            Keepalive { interval: self.ping_interval, timeout: self.ping_interval, while_idle: false };
        tokio::spawn(carrying.run(end, Some(keepalive)));
        Ok(Conn2 { requests, load, _alive: alive })
    }

    fn capacity(&self, conn: &Conn2) -> u32 {
        u32::try_from(conn.requests.current_max_send_streams()).unwrap_or(u32::MAX)
    }

    fn route(&self, endpoint: &BackendAddress) -> Option<Route> {
        Some(Route { transport: Transport::Tcp, local: None, remote: endpoint.address })
    }
}

/// What an exchange with a backend needs.
#[derive(Debug, Default)]
pub(super) struct Back2Desk {
    head: ResponseHead,
    text: Vec<u8>,
}

impl Back2Desk {
    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.text.clear();
    }
}

/// One request to a backend.
pub(super) struct Back2<'a> {
    desk: &'a mut Back2Desk,
    response: ResponseFuture,
    receiving: Receiving,
    sending: Sending,
    has_begun: bool,
    _counted: Counted,
}

impl<'a> Back2<'a> {
    /// Begins a request on this connection.
    ///
    /// # Errors
    ///
    /// The connection takes no more, or the head cannot be one of HTTP/2.
    pub(super) fn new(
        conn: &Conn2,
        desk: &'a mut Back2Desk,
        backend: &BackendAddress,
        request: (&RequestHead, &[u8]),
        how: &RequestOut<'_>,
    ) -> Result<Self, Broken> {
        desk.clear();
        let head = head_of(&mut desk.text, backend, request, how).ok_or(Broken::Head(HeadError::Target))?;
        desk.text.clear();
        let is_whole = how.body == Announce::Nothing || how.body == Announce::Length(0);
        let (response, stream) =
            conn.requests.clone().send_request(head, is_whole).map_err(|_| Broken::Refused)?;
        Ok(Self {
            desk,
            response,
            receiving: Receiving::default(),
            sending: Sending::new(stream, is_whole),
            has_begun: false,
            _counted: Counted::new(&conn.load),
        })
    }

    fn take_head(
        &mut self,
        status: StatusCode,
        headers: &HeaderMap,
        has_body: bool,
    ) -> Result<(), HeadError> {
        let Back2Desk { head, text } = &mut *self.desk;
        text.clear();
        head.build(text, status.as_u16())?;
        build_fields(headers, |name, value| head.build_field(text, name, value))?;
        head.built(has_body);
        Ok(())
    }
}

/// Writes the head as for HTTP/1.1, where all is said that is said of the client, and reads it back into HTTP/2's form
/// (RFC 9113 §8.3.1).
fn head_of(
    text: &mut Vec<u8>,
    backend: &BackendAddress,
    (head, bytes): (&RequestHead, &[u8]),
    how: &RequestOut<'_>,
) -> Option<Request<()>> {
    write_request(text, bytes, head, how);
    let mut headers = HeaderMap::with_capacity(16);
    let mut authority = None;
    for line in text.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii_start());
        if authority.is_none() && name == b"Host" {
            authority = Some(value);
            continue;
        }
        let name = HeaderName::from_bytes(name).ok()?;
        // RFC 9113 §8.2.2: a connection of HTTP/2 has no fields of its own.
        if !matches!(name.as_str(), "connection" | "transfer-encoding" | "upgrade") {
            headers.append(name, HeaderValue::from_bytes(value).ok()?);
        }
    }
    let path = head.path(bytes);
    let uri = Uri::builder()
        .scheme(if backend.tls.is_some() { "https" } else { "http" })
        .authority(authority?)
        .path_and_query(path)
        .build()
        .ok()?;
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method_name(bytes)).ok()?;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Some(request)
}

impl Incoming for Back2<'_> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        self.receiving.poll_data(cx)
    }

    fn data(&self) -> &[u8] {
        self.receiving.data()
    }

    fn consume(&mut self, n: usize) {
        self.receiving.consume(n);
    }

    fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        self.receiving.take_trailers()
    }
}

impl Outgoing for Back2<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.sending.poll_send(cx, data)
    }

    fn finish(&mut self, trailers: Option<&Trailers>) {
        self.sending.finish(trailers);
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The connection's task writes; how much waits there is bounded for each stream.
        Poll::Ready(Ok(()))
    }
}

impl Back for Back2<'_> {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            self.has_begun = true;
            let (parts, ()) = interim.into_parts();
            return Poll::Ready(self.take_head(parts.status, &parts.headers, false).map_err(Broken::Head));
        }
        match Pin::new(&mut self.response).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) => Poll::Ready(Err(broken(error))),
            Poll::Ready(Ok(response)) => {
                self.has_begun = true;
                let (parts, body) = Response::into_parts(response);
                let taken = self.take_head(parts.status, &parts.headers, !body.is_end_stream());
                self.receiving = Receiving::new(body);
                Poll::Ready(taken.map_err(Broken::Head))
            }
        }
    }

    fn response(&self) -> (&ResponseHead, &[u8]) {
        (&self.desk.head, &self.desk.text)
    }

    fn pass_interim(&mut self) {}

    fn begin_body(&mut self, _: Body) {}

    fn has_begun(&self) -> bool {
        self.has_begun
    }
}

//! The client's side by HTTP/2 (RFC 9113): one connection, and on it requests as streams, all in one task.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use forebay::stream::PolledStream;
use forebay_proxy_core::http1::{
    Body, Expectation, HeadError, Method, RequestHead, ResponseHead, Trailers, Version,
};
use forebay_proxy_core::rules::Switch;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, VIA};
use http::{Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Guest;
use super::exchange::{Alarm, Broken, Front, Incoming, Outgoing};
use super::send::{Refused, Sent, Session};
use super::stream2::{Receiving, Sending, build_fields};
use super::{Http, reason};
use crate::access_log::{Came, End, Trail};
use crate::worker::Shell;

/// With what every connection of HTTP/2 begins, as one that knows only HTTP/1.1 reads it (RFC 9113 §3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";

/// Streams that a client may reset before we have seen them; more of them, and it is sent away (CVE-2023-44487).
const RESETS_UNSEEN_MAX: usize = 20;

/// Requests that a client may break off beyond those that it let be answered; more of them, and it is sent away.
const RESETS_MAX: u64 = 100;

/// Protocol errors on single streams of one connection; more of them, and it is sent away.
const STREAM_ERRORS_MAX: usize = 100;

/// Streams whose bodies may fill the connection's window at once.
const WINDOWS: u32 = 8;

/// Bytes that wait to be written to one stream.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// How much is read of a client after our end, so that it hears our last words.
const LATE_BYTES_MAX: usize = 1 << 20;

/// How long a client that was told goodbye is given to close.
const LINGER: Duration = Duration::from_secs(1);

/// What a request needs while it is in progress.
#[derive(Debug, Default)]
struct Front2Desk {
    head: RequestHead,
    text: Vec<u8>,
}

/// How a stream ended.
enum Ended {
    /// With a response.
    Answered,
    /// By the client, before that.
    Left,
}

impl Http {
    /// Serves a client that speaks HTTP/2. `early` is what was read of it already.
    pub(super) async fn serve2(&self, shell: &Rc<Shell>, mut guest: Guest, early: Vec<u8>) {
        let session = guest.session();
        let Guest { stream, .. } = guest;
        let config = &self.config;
        let handshake = h2::server::Builder::new()
            .max_concurrent_streams(config.streams_max)
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.stream_window.saturating_mul(WINDOWS).min(i32::MAX as u32))
            .max_header_list_size(config.limits.head_bytes_max as u32)
            .max_pending_accept_reset_streams(RESETS_UNSEEN_MAX)
            .max_concurrent_reset_streams(RESETS_UNSEEN_MAX)
            .max_local_error_reset_streams(Some(STREAM_ERRORS_MAX))
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .handshake(Early { early, at: 0, late: 0, stream: PolledStream::new(stream) });
        let Ok(Ok(mut http)) = tokio::time::timeout(config.head_timeout, handshake).await else { return };
        let mut streams = FuturesUnordered::new();
        let (mut is_first, mut leaving) = (true, false);
        let (mut resets, mut answers) = (0_u64, 0_u64);
        let alarm = tokio::time::sleep(config.idle_timeout);
        tokio::pin!(alarm);
        loop {
            let drains = shell.drains();
            tokio::pin!(drains);
            let news = poll_fn(|cx| {
                if !leaving && (shell.is_draining() || drains.as_mut().poll(cx).is_ready()) {
                    return Poll::Ready(News::Leave);
                }
                if let Poll::Ready(Some(ended)) = streams.poll_next_unpin(cx) {
                    return Poll::Ready(News::Ended(ended));
                }
                // A client that resets its streams must not have more of them than one that waits: those that are not
                // done with count.
                if streams.len() >= config.streams_max as usize {
                    return http.poll_closed(cx).map(|_| News::End);
                }
                if let Poll::Ready(accepted) = http.poll_accept(cx) {
                    let request = accepted.and_then(Result::ok);
                    return Poll::Ready(
                        request.map_or(News::End, |request| News::Request(Box::new(request))),
                    );
                }
                if streams.is_empty() && alarm.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(News::Idle);
                }
                Poll::Pending
            })
            .await;
            let linger = if leaving { LINGER } else { config.idle_timeout };
            match news {
                News::Request(request) => {
                    let (request, respond) = *request;
                    let session = session.of_stream(std::mem::take(&mut is_first));
                    let trail = Trail::begin(shell.log.as_ref(), session.peer());
                    streams.push(self.serve_stream(shell, session, request, respond, trail));
                    continue;
                }
                News::Ended(Ended::Answered) => answers += 1,
                News::Ended(Ended::Left) => {
                    resets += 1;
                    if resets > RESETS_MAX + answers {
                        tracing::warn!(
                            client = session.client(),
                            "sent away: it breaks off what it asks for"
                        );
                        shell.figures.failed_client.add(1);
                        http.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                        leaving = true;
                        streams.clear();
                    }
                }
                News::Leave => {
                    // What is in flight is answered; the client asks elsewhere from now on (RFC 9113 §6.8).
                    leaving = true;
                    http.graceful_shutdown();
                }
                News::Idle if leaving => return,
                News::Idle => {
                    shell.figures.ended_idle.add(1);
                    leaving = true;
                    http.graceful_shutdown();
                }
                News::End => return,
            }
            alarm.as_mut().reset(tokio::time::Instant::now() + if leaving { LINGER } else { linger });
        }
    }

    /// Serves one request.
    async fn serve_stream(
        &self,
        shell: &Rc<Shell>,
        mut session: Session,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        trail: Trail<'_>,
    ) -> Ended {
        // A stream that is dropped before its end was broken off by its client, but if the proxy ends.
        let mut trail = Leaving { shell, trail };
        let trail = &mut trail.trail;
        shell.figures.requests.add(1);
        let (mut desk, mut back, mut alarm) = (Front2Desk::default(), self.take_desk(), Alarm::default());
        let via = self.config.forwarded.via.as_deref();
        let (parts, body) = request.into_parts();
        let is_connect = parts.method == http::Method::CONNECT;
        // A CONNECT that never ends has no body: what comes is the tunnel's.
        let read = desk.read(&parts, !is_connect && !body.is_end_stream(), self.config.limits.fields_max);
        if read.is_ok() {
            trail.ask(&desk.head, &desk.text, Came::Http2);
        }
        let mut front =
            Front2 { desk: &desk, receiving: Receiving::new(body), out: Out::Nothing(respond), via };
        let sent = match read {
            Ok(()) if is_connect => {
                // RFC 9113 §8.5, RFC 8441: a tunnel in a stream. Browsers open WebSockets by HTTP/1.1 then.
                let why = "CONNECT is not possible over HTTP/2 here: use HTTP/1.1".to_owned();
                Sent::Refused(Refused { status: 501, why })
            }
            Ok(()) if desk.head.fields().expectation() == Expectation::Unknown => {
                Sent::Refused(Refused { status: 417, why: "only 100-continue can be expected".to_owned() })
            }
            Ok(()) => self.send(shell, &mut session, &mut front, &mut back.back, &mut alarm, trail).await,
            Err(error) => {
                shell.figures.requests_bad.add(1);
                Sent::Refused(Refused { status: error.status(), why: error.to_string() })
            }
        };
        let ended = match sent {
            Sent::Answered => {
                trail.end(End::Whole);
                Ended::Answered
            }
            Sent::Refused(refused) => {
                trail.refuse(refused.status, front.answer(&refused));
                Ended::Answered
            }
            Sent::Left => Ended::Left,
            Sent::BrokenOff(reason) => {
                // A response that ends early must not look like one that ended.
                front.break_off(reason.unwrap_or(Reason::INTERNAL_ERROR));
                Ended::Answered
            }
            Sent::Tunnel(tunnel) => {
                // None is asked for by a request of HTTP/2.
                tunnel.lease.discard(forebay::Cause::Protocol);
                trail.end(End::BackendFailed);
                front.break_off(Reason::INTERNAL_ERROR);
                Ended::Answered
            }
        };
        drop(front);
        self.give_desk(back);
        ended
    }
}

/// The trail of a stream, which may be dropped at any time.
struct Leaving<'a> {
    shell: &'a Shell,
    trail: Trail<'a>,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.trail.end(if self.shell.is_draining() { End::Cut } else { End::ClientLeft });
    }
}

/// What happened on a connection.
enum News {
    /// A request has come.
    Request(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    /// A request is done with.
    Ended(Ended),
    /// The proxy takes no more.
    Leave,
    /// Nothing was asked for too long.
    Idle,
    /// It is over.
    End,
}

impl Front2Desk {
    /// Reads a head into the form that all versions share.
    fn read(
        &mut self,
        parts: &http::request::Parts,
        has_body: bool,
        fields_max: usize,
    ) -> Result<(), HeadError> {
        let Self { head, text } = self;
        let is_secure = parts.uri.scheme_str() == Some("https");
        let authority = parts.uri.authority().map_or("", http::uri::Authority::as_str);
        let path = parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
        let path = if parts.method == http::Method::CONNECT { "" } else { path };
        head.build(text, parts.method.as_str().as_bytes(), is_secure, authority.as_bytes(), path.as_bytes())?;
        build_fields(&parts.headers, |name, value| head.build_field(text, name, value))?;
        if head.fields().list().len() > fields_max {
            return Err(HeadError::TooManyFields);
        }
        head.built(text, has_body)
    }
}

/// What goes to the client.
enum Out {
    /// Nothing has yet.
    Nothing(SendResponse<Bytes>),
    /// A head, as soon as it is known whether a body follows.
    Head(SendResponse<Bytes>, Box<Response<()>>),
    /// The body.
    Body(Sending),
    /// Nothing more.
    Over,
}

/// One request of a client.
struct Front2<'a> {
    desk: &'a Front2Desk,
    receiving: Receiving,
    out: Out,
    via: Option<&'a str>,
}

impl Front2<'_> {
    /// Sends the head that waits. `is_whole`: no body follows.
    fn send_head(&mut self, is_whole: bool) {
        self.out = match std::mem::replace(&mut self.out, Out::Over) {
            Out::Head(mut respond, head) => match respond.send_response(*head, is_whole) {
                Ok(stream) => Out::Body(Sending::new(stream, is_whole)),
                // The stream is gone, which shows when the client is looked for.
                Err(_) => Out::Nothing(respond),
            },
            out => out,
        };
    }

    /// Answers by ourselves. Returns how many bytes.
    fn answer(&mut self, refused: &Refused) -> usize {
        let Out::Nothing(respond) = &mut self.out else { return 0 };
        let text = format!("{} {}: {}\n", refused.status, reason(refused.status), refused.why);
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(refused.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(CONTENT_LENGTH, text.len().into());
        let is_head = self.desk.head.method() == Method::Head;
        let len = if is_head { 0 } else { text.len() };
        if let Ok(mut stream) = respond.send_response(response, is_head)
            && !is_head
        {
            // It is short: it waits in the connection's buffer if the client has given no room.
            let _ = stream.send_data(text.into(), true);
        }
        self.out = Out::Over;
        len
    }

    /// Ends the stream so that the client learns that something is missing.
    fn break_off(&mut self, reason: Reason) {
        match &mut self.out {
            Out::Nothing(respond) | Out::Head(respond, _) => respond.send_reset(reason),
            Out::Body(sending) => sending.reset(reason),
            Out::Over => {}
        }
    }

    /// Returns a head in HTTP/2's form.
    fn head_of(&self, head: &ResponseHead, bytes: &[u8], length: Option<u64>) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(head.status()).unwrap_or(StatusCode::BAD_GATEWAY);
        let headers = response.headers_mut();
        headers.reserve(head.fields().list().len() + 2);
        for (name, value, _) in head.fields().end_to_end(bytes) {
            // What was understood is a name and a value.
            if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        if let Some(length) = length {
            headers.insert(CONTENT_LENGTH, length.into());
        }
        if let Some(via) = self.via {
            let version = if head.version() == Version::Http10 { "1.0" } else { "1.1" };
            if let Ok(via) = HeaderValue::try_from(format!("{version} {via}")) {
                headers.append(VIA, via);
            }
        }
        response
    }
}

impl Incoming for Front2<'_> {
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

impl Outgoing for Front2<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.send_head(false);
        match &mut self.out {
            Out::Body(sending) => sending.poll_send(cx, data),
            _ => Poll::Ready(Err(Broken::Io(io::ErrorKind::BrokenPipe.into()))),
        }
    }

    fn finish(&mut self, trailers: Option<&Trailers>) {
        self.send_head(trailers.is_none_or(Trailers::is_empty));
        if let Out::Body(sending) = &mut self.out {
            sending.finish(trailers);
        }
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        // The connection's task writes; how much waits there is bounded for each stream.
        self.send_head(false);
        Poll::Ready(Ok(()))
    }
}

impl Front for Front2<'_> {
    fn request(&self) -> (&RequestHead, &[u8]) {
        (&self.desk.head, &self.desk.text)
    }

    fn interim(&mut self, head: &ResponseHead, bytes: &[u8]) {
        let interim = self.head_of(head, bytes, None);
        if let Out::Nothing(respond) = &mut self.out {
            // The stream may be gone, which shows when the client is looked for.
            let _ = respond.send_informational(interim);
        }
    }

    fn begin(&mut self, head: &ResponseHead, bytes: &[u8], body: Body, _: Switch, _: bool) {
        let length = match body {
            Body::Length(length) => Some(length),
            // To HEAD, or 304: what there would have been.
            Body::None if head.status() != 204 => head.fields().content_length(),
            _ => None,
        };
        let response = Box::new(self.head_of(head, bytes, length));
        self.out = match std::mem::replace(&mut self.out, Out::Over) {
            Out::Nothing(respond) => Out::Head(respond, response),
            out => out,
        };
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.out {
            Out::Nothing(respond) | Out::Head(respond, _) => respond.poll_reset(cx).map(drop),
            Out::Body(sending) => sending.poll_reset(cx),
            Out::Over => Poll::Pending,
        }
    }
}

/// A stream of which something was read already.
struct Early {
    early: Vec<u8>,
    at: usize,
    /// What came after we had ended.
    late: usize,
    stream: PolledStream,
}

impl AsyncRead for Early {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { early, at, stream, .. } = &mut *self;
        let rest = &early[*at..];
        if rest.is_empty() {
            return Pin::new(stream).poll_read(cx, out);
        }
        let part = rest.len().min(out.remaining());
        out.put_slice(&rest[..part]);
        *at += part;
        if *at == early.len() {
            (*early, *at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Early {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Ends our side, and waits until the client has ended its own: closing on what it still says would be a reset, which
    /// takes our last words back. Not for one that goes on and on.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        while self.late <= LATE_BYTES_MAX {
            let mut scratch = [0; 4096];
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => self.late += buffer.filled().len(),
                // However it ended: there is nobody left to wait for.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

//! One stream of HTTP/2: a body that comes and a body that goes, of either side.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use forebay_proxy_core::http1::{HeadError, Trailers};
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http::header::{COOKIE, HeaderName, HeaderValue};

use super::exchange::Broken;

/// How much is asked to be sent at once: more is waited for in pieces.
const PIECE_BYTES_MAX: usize = 64 << 10;

/// A body that comes. The peer is given room for more only as it is taken (RFC 9113 §5.2).
#[derive(Default)]
pub(super) struct Receiving {
    /// `None` when there is none, or it has ended.
    body: Option<RecvStream>,
    piece: Bytes,
    trailers: Option<Box<Trailers>>,
}

impl Receiving {
    pub(super) fn new(body: RecvStream) -> Self {
        Self { body: Some(body), piece: Bytes::new(), trailers: None }
    }

    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        while self.piece.is_empty() {
            let Some(body) = &mut self.body else { return Poll::Ready(Ok(false)) };
            match ready!(body.poll_data(cx)) {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => {
                    let trailers = ready!(body.poll_trailers(cx)).map_err(broken)?;
                    self.body = None;
                    if let Some(fields) = trailers {
                        let mut trailers = Box::<Trailers>::default();
                        build_fields(&fields, |name, value| trailers.push(name, value))
                            .map_err(Broken::Head)?;
                        self.trailers = Some(trailers);
                    }
                }
            }
        }
        Poll::Ready(Ok(true))
    }

    pub(super) fn data(&self) -> &[u8] {
        &self.piece
    }

    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(self.piece.len());
        self.piece.advance(n);
        if let Some(body) = &mut self.body {
            // More than was received is never given back.
            let _ = body.flow_control().release_capacity(n);
        }
    }

    pub(super) fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        self.trailers.take()
    }
}

/// A body that goes.
pub(super) struct Sending {
    stream: SendStream<Bytes>,
    is_ended: bool,
}

impl Sending {
    pub(super) const fn new(stream: SendStream<Bytes>, is_ended: bool) -> Self {
        Self { stream, is_ended }
    }

    /// Takes data, as far as the peer has given room.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let wanted = data.len().min(PIECE_BYTES_MAX);
        self.stream.reserve_capacity(wanted);
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(self.why(cx))),
            }
        }
        let taken = wanted.min(self.stream.capacity());
        let piece = Bytes::copy_from_slice(&data[..taken]);
        Poll::Ready(self.stream.send_data(piece, false).map(|()| taken).map_err(broken))
    }

    /// Ends the body. That the stream is gone shows elsewhere.
    pub(super) fn finish(&mut self, trailers: Option<&Trailers>) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        match trailers.map(trailers_of).filter(|trailers| !trailers.is_empty()) {
            Some(trailers) => drop(self.stream.send_trailers(trailers)),
            None => drop(self.stream.send_data(Bytes::new(), true)),
        }
    }

    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_reset(cx).map(drop)
    }

    /// Breaks off.
    pub(super) fn reset(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }

    /// Why nothing more is taken.
    fn why(&mut self, cx: &mut Context<'_>) -> Broken {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset(reason),
            Poll::Ready(Err(error)) => broken(error),
            Poll::Pending => Broken::Io(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

/// Adds all fields to a head or to trailers. Cookies come in pieces by HTTP/2, and go on as one field (RFC 9113 §8.2.3).
pub(super) fn build_fields(
    headers: &HeaderMap,
    mut add: impl FnMut(&[u8], &[u8]) -> Result<(), HeadError>,
) -> Result<(), HeadError> {
    let crumbs = headers.get_all(COOKIE);
    let mut is_cookie_told = false;
    for (name, value) in headers {
        if name != COOKIE {
            add(name.as_str().as_bytes(), value.as_bytes())?;
        } else if !std::mem::replace(&mut is_cookie_told, true) {
            let all: Vec<&[u8]> = crumbs.iter().map(HeaderValue::as_bytes).collect();
            add(b"cookie", &all.join(&b"; "[..]))?;
        }
    }
    Ok(())
}

/// Returns trailers in HTTP/2's form.
fn trailers_of(trailers: &Trailers) -> HeaderMap {
    trailers
        .iter()
        .filter_map(|(name, value)| {
            Some((HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?))
        })
        .collect()
}

/// What an end of a stream means.
pub(super) fn broken(error: h2::Error) -> Broken {
    // RFC 9113 §8.7: streams above the last one of a GOAWAY, and refused ones, have not been looked at.
    if error.is_go_away() && error.is_remote() {
        return Broken::Refused;
    }
    match error.reason() {
        Some(reason) if error.is_reset() && error.is_remote() => reset(reason),
        Some(reason) => Broken::Reset(reason),
        None => Broken::Io(error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())),
    }
}

fn reset(reason: Reason) -> Broken {
    if reason == Reason::REFUSED_STREAM { Broken::Refused } else { Broken::Reset(reason) }
}

//! One half of an HTTP/1.1 connection: what is read of it, and what is to be written to it.
//!
//! Neither owns the stream, so that it may stand in a lease. Buffers are bounded: what is read waits until it was passed
//! on, and what is to be written waits only up to [`WAITING_BYTES_MAX`].

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::task::{Context, Poll, ready};

use forebay::stream::Stream;
use forebay_proxy_core::http1::{
    Body, BodyReader, Part, TrailerLimits, Trailers, write_chunk_head, write_last_chunk,
};

use super::exchange::Broken;

/// How many bytes may wait to be written before more is asked for.
pub(super) const WAITING_BYTES_MAX: usize = 32 << 10;

/// What is copied behind what waits already, rather than written by a call of its own.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// Buffers that have grown beyond this are not kept.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// What is read of a stream.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) bytes: Vec<u8>,
    /// Where what is not understood yet begins.
    pub(super) at: usize,
    /// How many bytes at the beginning stay: a head that is still needed.
    pub(super) kept: usize,
    /// Where data are that were not taken yet.
    data: Range<usize>,
    body: BodyReader,
    is_ended: bool,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            bytes: Vec::new(),
            at: 0,
            kept: 0,
            data: 0..0,
            body: BodyReader::new(Body::None),
            is_ended: true,
        }
    }
}

impl Reading {
    /// Reads what has come. `false` at the end of the stream.
    pub(super) fn poll_read(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match stream.read(&mut self.bytes) {
                Ok(n) => return Poll::Ready(Ok(n > 0)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(stream.poll_read_ready(cx))?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// A head of this length was read: its body follows.
    pub(super) fn begin_body(&mut self, head_len: usize, body: Body) {
        self.at = head_len;
        self.kept = head_len;
        self.data = 0..0;
        self.is_ended = body == Body::None;
        self.body = BodyReader::new(body);
    }

    /// Makes the next data of the body available. `false` at its end.
    pub(super) fn poll_data(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        loop {
            if !self.data.is_empty() {
                return Poll::Ready(Ok(true));
            }
            if self.is_ended {
                return Poll::Ready(Ok(false));
            }
            let unread = self.bytes.get(self.at..).unwrap_or_default();
            let (len, part) = self.body.read(unread, &TrailerLimits::default()).map_err(Broken::Body)?;
            let needs_more = part == Part::More;
            if let Part::Data(range) = part {
                self.data = self.at + range.start..self.at + range.end;
            }
            self.at += len;
            // A body by length has ended with its last byte; nobody waits for another read to know.
            self.is_ended = self.body.is_ended();
            if !needs_more {
                continue;
            }
            self.bytes.truncate(self.kept);
            self.at = self.kept;
            if !ready!(self.poll_read(stream, cx))? {
                self.body.handle_end().map_err(Broken::Body)?;
                self.is_ended = true;
            }
        }
    }

    pub(super) fn data(&self) -> &[u8] {
        self.bytes.get(self.data.clone()).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.data.start = self.data.end.min(self.data.start + n);
    }

    /// Takes what was read, if it is the beginning of HTTP/2.
    pub(super) fn take_http2(&mut self) -> Option<Vec<u8>> {
        self.bytes.starts_with(super::front2::PREFACE).then(|| std::mem::take(&mut self.bytes))
    }

    /// Whether the body was read to its end.
    pub(super) fn is_ended(&self) -> bool {
        self.is_ended && self.data.is_empty()
    }

    pub(super) fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        self.body.take_trailers()
    }

    /// Forgets what was understood; what came after it stays.
    pub(super) fn pass(&mut self) {
        self.bytes.drain(..self.at.min(self.bytes.len()));
        self.at = 0;
        self.kept = 0;
        self.data = 0..0;
        self.is_ended = true;
    }

    /// How many bytes came that nobody has understood yet.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at.min(self.bytes.len())
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.pass();
    }
}

/// What is to be written to a stream.
#[derive(Debug, Default)]
pub(super) struct Writing {
    pub(super) bytes: Vec<u8>,
    at: usize,
    pub(super) is_chunked: bool,
}

impl Writing {
    /// Takes data of the body: writes them, or lets them wait. Returns how many.
    pub(super) fn poll_send(
        &mut self,
        stream: &Stream,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.bytes.len() - self.at >= WAITING_BYTES_MAX {
            ready!(self.poll_flush(stream, cx))?;
        }
        let taken = data.len().min(COPIED_BYTES_MAX);
        if self.is_chunked {
            write_chunk_head(&mut self.bytes, taken);
            self.bytes.extend_from_slice(&data[..taken]);
            self.bytes.extend_from_slice(b"\r\n");
            return Poll::Ready(Ok(taken));
        }
        if !self.bytes.is_empty() {
            self.bytes.extend_from_slice(&data[..taken]);
            return Poll::Ready(Ok(taken));
        }
        poll_write(stream, cx, data)
    }

    /// Ends the body.
    pub(super) fn finish(&mut self, trailers: Option<&Trailers>) {
        if std::mem::take(&mut self.is_chunked) {
            write_last_chunk(&mut self.bytes, trailers);
        }
    }

    /// Writes what waits.
    pub(super) fn poll_flush(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.bytes.len() {
            self.at += ready!(poll_write(stream, cx, &self.bytes[self.at..]))?;
        }
        self.bytes.clear();
        self.at = 0;
        while stream.wants_write() {
            stream.flush()?;
            if stream.wants_write() {
                ready!(stream.poll_write_ready(cx))?;
            }
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.at = 0;
        self.is_chunked = false;
    }
}

fn poll_write(stream: &Stream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        match stream.write(bytes) {
            Ok(n) => return Poll::Ready(Ok(n)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if stream.wants_write() {
                    stream.flush()?;
                }
                ready!(stream.poll_write_ready(cx))?;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
    }
}

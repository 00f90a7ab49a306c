//! A stream as HTTP wants it: read and written as its task is polled.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use forebay::stream::{PolledStream, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// A stream, and where answers end in what is written.
pub(crate) struct Pipe {
    stream: PolledStream,
    /// `None` if answers need no records of their own.
    frames: Option<Frames>,
}

impl Pipe {
    pub(crate) const fn new(stream: Stream) -> Self {
        Self { stream: PolledStream::new(stream), frames: None }
    }

    /// A pipe that a server writes HTTP/2 to. No answer shares a TLS record with the next one: there are clients that
    /// take one answer from what they read at once and lose the others (dnsperf 2.10). Records still leave together.
    pub(super) const fn with_answers_apart(stream: Stream) -> Self {
        Self { stream: PolledStream::new(stream), frames: Some(Frames::new()) }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, out)
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = self.frames.map_or(bytes, |frames| &bytes[..frames.until_answer_ends(bytes)]);
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, part));
        if let (Ok(taken), Some(frames)) = (&written, &mut self.frames) {
            frames.advance(&part[..*taken]);
        }
        Poll::Ready(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It says goodbye when it is dropped.
        self.poll_flush(cx)
    }
}

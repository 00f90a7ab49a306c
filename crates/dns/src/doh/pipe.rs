//! A stream as HTTP wants it: read and written as its task is polled.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use forebay::stream::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::frames::Frames;

/// A stream, and what has been read of it and not been taken.
pub(crate) struct Pipe {
    stream: Stream,
    read: Vec<u8>,
    /// Where in `read` the rest begins.
    at: usize,
    /// Where answers end in what is written, if each of them begins a record.
    frames: Option<Frames>,
}

impl Pipe {
    pub(crate) const fn new(stream: Stream) -> Self {
        Self { stream, read: Vec::new(), at: 0, frames: None }
    }

    /// A pipe that a server writes HTTP/2 to. No answer shares a TLS record with the next one: there are clients that
    /// take one answer from what they read at once and lose the others (dnsperf 2.10). Records still leave together.
    pub(super) const fn with_answers_apart(stream: Stream) -> Self {
        Self { stream, read: Vec::new(), at: 0, frames: Some(Frames::new()) }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, read, at, .. } = self.get_mut();
        while *at == read.len() {
            read.clear();
            *at = 0;
            match stream.read(read) {
                Ok(0) => return Poll::Ready(Ok(())),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(stream.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        let part = &read[*at..];
        let part = &part[..part.len().min(out.remaining())];
        out.put_slice(part);
        *at += part.len();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = self.frames.map_or(bytes, |frames| &bytes[..frames.until_answer_ends(bytes)]);
        loop {
            match self.stream.write(part) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                written => {
                    if let (Ok(taken), Some(frames)) = (&written, &mut self.frames) {
                        frames.advance(&part[..*taken]);
                    }
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.stream.flush()?;
            if !self.stream.wants_write() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.stream.poll_write_ready(cx))?;
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It says goodbye when it is dropped.
        self.poll_flush(cx)
    }
}

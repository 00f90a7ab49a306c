//! A stream as HTTP wants it: read and written as its task is polled.

use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::stream::Stream;

/// A stream, and what has been read of it and not been taken.
pub(crate) struct Pipe {
    stream: Stream,
    read: Vec<u8>,
    /// Where in `read` the rest begins.
    at: usize,
}

impl Pipe {
    pub(crate) const fn new(stream: Stream) -> Self {
        Self { stream, read: Vec::new(), at: 0 }
    }
}

impl AsyncRead for Pipe {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, read, at } = self.get_mut();
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.stream.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(self.stream.poll_write_ready(cx))?;
                }
                written => return Poll::Ready(written),
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

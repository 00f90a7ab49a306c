//! A client's socket beneath HTTP/2, watched: bytes, pings, and whether anything gets anywhere.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use forebay::stream::PolledStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::frames::Frames;

/// How much is read of a client after our end, so that it hears our last words.
const LATE_BYTES_MAX: usize = 1 << 20;

/// What is seen of a client.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Bytes that have come.
    pub(super) read: Cell<u64>,
    /// Bytes that the socket has taken.
    pub(super) taken: Cell<u64>,
    /// Whether something waits that the socket does not take.
    pub(super) is_stuck: Cell<bool>,
    /// Pings that have come and were not looked at.
    pub(super) pings: Cell<u32>,
    /// Whether the socket was found empty since this was last set to false: it is not asked again until then. Not before
    /// the connection serves.
    pub(super) is_dry: Cell<bool>,
    pub(super) is_serving: Cell<bool>,
}

/// A client's stream of bytes.
#[derive(Debug)]
pub(super) enum Transport {
    /// As they are. tokio's own reading knows by a short read that there is no more, which saves a system call.
    Plain(TcpStream),
    /// Encrypted.
    Encrypted(PolledStream),
}

/// A stream that is watched.
#[derive(Debug)]
pub(super) struct Io {
    transport: Transport,
    watch: Rc<Watch>,
    frames: Frames,
    /// What came after our end.
    late: usize,
}

impl Io {
    pub(super) const fn new(transport: Transport, watch: Rc<Watch>) -> Self {
        Self { transport, watch, frames: Frames::new(), late: 0 }
    }

    fn note_written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(n)) => self.watch.taken.set(self.watch.taken.get() + *n as u64),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.watch.is_stuck.set(true),
        }
        written
    }
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let io = &mut *self;
        // HTTP/2 asks again for each request that it hands out.
        if io.watch.is_dry.get() {
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let read = io.transport.poll_read(cx, buffer);
        if read.is_pending() {
            io.watch.is_dry.set(io.watch.is_serving.get());
            return Poll::Pending;
        }
        let came = &buffer.filled()[before..];
        io.watch.read.set(io.watch.read.get() + came.len() as u64);
        let pings = io.frames.pings_in(came);
        if pings > 0 {
            io.watch.pings.set(io.watch.pings.get().saturating_add(pings));
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write(cx, bytes),
        };
        self.note_written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = match &mut self.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, pieces),
            Transport::Encrypted(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
        };
        self.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = match &mut self.transport {
            // The kernel has what was written.
            Transport::Plain(_) => Poll::Ready(Ok(())),
            Transport::Encrypted(stream) => Pin::new(stream).poll_flush(cx),
        };
        // TLS takes what is written and keeps it: only a flush tells that it is out.
        self.watch.is_stuck.set(flushed.is_pending());
        flushed
    }

    /// Ends our side, and waits until the client has ended its own: closing on what it still says would be a reset, which
    /// takes our last words back. Not for one that goes on and on.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = &mut *self;
        ready!(match &mut io.transport {
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Transport::Encrypted(stream) => Pin::new(stream).poll_shutdown(cx),
        })?;
        while io.late <= LATE_BYTES_MAX {
            let mut scratch = [0; 4096];
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(io.transport.poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => io.late += buffer.filled().len(),
                // However it ended: there is nobody left to wait for.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Transport {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buffer),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

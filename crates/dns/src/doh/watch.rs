//! What HTTP/2 hides of its stream: whether bytes get anywhere.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is seen of the peer.
#[derive(Default)]
pub(super) struct Watch {
    /// Whether something waits that it does not take.
    pub(super) stuck: Cell<bool>,
    /// Bytes that it has taken.
    pub(super) taken: Cell<u64>,
    /// Bytes that have come from it.
    pub(super) read: Cell<u64>,
}

impl Watch {
    fn note<T>(&self, result: Poll<T>, flushed: bool) -> Poll<T> {
        // TLS takes what is written and keeps it: only a flush tells that it is out.
        if result.is_pending() {
            self.stuck.set(true);
        } else if flushed {
            self.stuck.set(false);
        }
        result
    }

    fn note_written(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(n)) = &result {
            self.taken.set(self.taken.get() + *n as u64);
        }
        self.note(result, false)
    }
}

/// A stream that is watched.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) watch: Rc<Watch>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.watch.read.set(self.watch.read.get() + (buffer.filled().len() - before) as u64);
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch.note_written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch.note(flushed, true)
    }

    /// Ends our side, and waits until the peer has ended its own: closing on what it still says would make the kernel
    /// reset the connection, and the peer might never read our last words.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        loop {
            let mut scratch = [0; 1024];
            let mut buffer = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                // However it ended: there is nobody left to wait for.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch.note_written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

//! Client connections of HTTP/2 (RFC 9113) for pools whose connections are shared: their bytes are read and written by a
//! task of their own, which tells the pool of stream limits, of GOAWAY and of the end.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::Reporter;
use crate::stream::{PolledStream, Stream};

/// What a connection carries, and whether anything comes on it.
#[derive(Debug, Default)]
pub struct Load {
    in_flight: AtomicU32,
    heard: AtomicU64,
}

impl Load {
    /// Returns how many requests are in progress.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Returns how many bytes have come.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}

/// A request in progress, until it is dropped.
#[derive(Debug)]
pub struct Counted(Arc<Load>);

impl Counted {
    /// Counts one more.
    pub fn new(load: &Arc<Load>) -> Self {
        load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(load))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How connections whose other end is gone without a word are found: by asking for a sign of life (RFC 9113 §6.7) when
/// nothing has come for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// How long nothing comes before it asks.
    pub interval: Duration,
    /// How long it waits for the answer.
    pub timeout: Duration,
    /// Whether it asks while no request is in progress, too. Many servers end connections that do.
    pub while_idle: bool,
}

/// A stream that counts what comes.
pub struct Heard {
    stream: PolledStream,
    load: Arc<Load>,
}

impl Heard {
    /// Counts in `load`.
    pub fn new(stream: Stream, load: &Arc<Load>) -> Self {
        Self { stream: PolledStream::new(stream), load: Arc::clone(load) }
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.load.heard.fetch_add((buffer.filled().len() - before) as u64, Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for Heard {
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

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What reads and writes a connection.
pub struct Carrying {
    connection: Connection<Heard, Bytes>,
    /// `None` once nobody has the connection any more, or it takes no more requests: the last of these ends it.
    requests: Option<SendRequest<Bytes>>,
    reporter: Reporter,
    capacity: usize,
    load: Arc<Load>,
    goaway: Option<Reason>,
}

impl Carrying {
    /// Carries a connection of which the pool believes that it takes `capacity` requests at once.
    pub fn new(
        connection: Connection<Heard, Bytes>,
        requests: SendRequest<Bytes>,
        reporter: Reporter,
        capacity: usize,
        load: Arc<Load>,
    ) -> Self {
        Self { connection, requests: Some(requests), reporter, capacity, load, goaway: None }
    }

    /// Carries the connection to its end: until the peer ends it, nothing is heard for too long, or `end` is dropped and
    /// what is in flight has been answered. Returns what the peer's GOAWAY said, if there was one.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the connection; the pool is not told.
    pub async fn run(
        mut self,
        mut end: oneshot::Receiver<()>,
        keepalive: Option<Keepalive>,
    ) -> Option<Reason> {
        let mut ping = self.connection.ping_pong();
        let mut pulse = Pulse::default();
        let first = keepalive.map_or(Duration::MAX, |keepalive| keepalive.interval);
        let alarm = sleep(first);
        tokio::pin!(alarm);
        loop {
            tokio::select! {
                biased;
                () = poll_fn(|cx| self.poll(cx, ping.as_mut())) => break,
                _ = &mut end, if self.requests.is_some() => self.requests = None,
                // Set off by time alone: a peer that takes nothing would keep a ping from being written, too.
                () = &mut alarm, if keepalive.is_some() => {
                    let Some(keepalive) = keepalive else { continue };
                    let heard = self.load.heard();
                    let is_watched = keepalive.while_idle || self.load.in_flight() > 0;
                    let Some(asked) = pulse.feel(heard, is_watched, ping.as_mut()) else { break };
                    let pause = if asked { keepalive.timeout } else { keepalive.interval };
                    alarm.as_mut().reset(Instant::now() + pause);
                }
            }
        }
        // Streams that are left learn of it when the connection is dropped, which is now.
        let (reporter, goaway, was_open) = (self.reporter.clone(), self.goaway, self.requests.is_some());
        drop(self);
        if goaway.is_some() && was_open {
            // It was sent away, and did not stand idle for too long.
            reporter.goodbye();
        }
        reporter.closed();
        goaway
    }

    /// Resolves when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, ping: Option<&mut PingPong>) -> Poll<()> {
        if let Poll::Ready(result) = Pin::new(&mut self.connection).poll(cx) {
            if let Err(error) = result {
                self.note_goaway(&error);
            }
            return Poll::Ready(());
        }
        if let Some(ping) = ping {
            // That it came is enough.
            let _ = ping.poll_pong(cx);
        }
        let capacity = self.connection.max_concurrent_send_streams();
        if std::mem::replace(&mut self.capacity, capacity) != capacity {
            self.reporter.capacity(u32::try_from(capacity).unwrap_or(u32::MAX));
        }
        if let Some(requests) = &mut self.requests
            && let Poll::Ready(Err(error)) = requests.poll_ready(cx)
        {
            // GOAWAY: what is in flight up to the stream that it names goes on.
            self.note_goaway(&error);
            self.requests = None;
            self.reporter.goodbye();
        }
        Poll::Pending
    }

    fn note_goaway(&mut self, error: &h2::Error) {
        if error.is_go_away() && error.is_remote() {
            self.goaway = error.reason();
        }
    }
}

/// Finds connections whose other end is gone without a word: while they are watched and nothing comes, it asks for a
/// sign of life, and gives up when there is none.
#[derive(Debug, Default)]
struct Pulse {
    heard: u64,
    /// Whether a sign of life is waited for.
    asked: bool,
}

impl Pulse {
    /// Looks at how many bytes have come. Returns whether it has asked for a sign of life; nothing, if that is late.
    fn feel(&mut self, heard: u64, is_watched: bool, ping: Option<&mut PingPong>) -> Option<bool> {
        if std::mem::replace(&mut self.heard, heard) != heard || !is_watched {
            self.asked = false;
            return Some(false);
        }
        if std::mem::replace(&mut self.asked, true) {
            return None;
        }
        // One that is still out is as good.
        let _ = ping.map(|ping| ping.send_ping(Ping::opaque()));
        Some(true)
    }
}

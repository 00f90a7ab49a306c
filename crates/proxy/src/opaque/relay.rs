//! Bytes both ways between two streams, until both have ended.
//!
//! What is read goes out at once from a buffer that all connections of the worker share; only what the other side does
//! not take is kept. So an idle connection holds no buffer.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use forebay::sys;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::worker::{Shell, refuse};

/// Reads in a row in one direction before other tasks of the worker get their turn.
const READS_IN_A_ROW: u32 = 16;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have said all they had to say.
    Whole,
    /// Nothing moved for too long.
    Idle,
    /// The client's side failed.
    Client,
    /// The backend's side failed.
    Backend,
}

/// A client and a backend, and what is on its way between them.
pub(super) struct Relay<'a> {
    shell: &'a Rc<Shell>,
    client: TcpStream,
    backend: &'a mut TcpStream,
    up: Flow,
    down: Flow,
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// What was read and not taken yet.
    pending: Vec<u8>,
    /// Where in `pending` the rest begins.
    at: usize,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FlowState {
    /// More may come. Left by the end of what comes, to `Ending`; by a side that takes nothing more, to `Over`.
    #[default]
    Open,
    /// No more comes; what is pending is to go out, and then the end itself. Left when it has, to `Over`.
    Ending,
    /// Nothing more goes this way.
    Over,
}

/// Which side an error came from.
#[derive(Debug)]
enum Trouble {
    /// From where bytes come.
    Source,
}

impl<'a> Relay<'a> {
    pub(super) fn new(shell: &'a Rc<Shell>, client: TcpStream, backend: &'a mut TcpStream) -> Self {
        Self { shell, client, backend, up: Flow::default(), down: Flow::default() }
    }

    /// Passes bytes on until both sides have ended, one has failed, or nothing has moved for too long.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, what is on its way is lost.
    pub(super) async fn run(mut self) -> End {
        let idle = self.shell.config.clients.idle_timeout.0;
        let alarm = tokio::time::sleep(idle);
        tokio::pin!(alarm);
        let mut moved_at = sys::coarse_now();
        poll_fn(|cx| {
            let mut moved = false;
            if let Poll::Ready(end) = self.poll(cx, &mut moved) {
                return Poll::Ready(end);
            }
            if moved {
                moved_at = sys::coarse_now();
            }
            // Set anew only when it has rung: moving bytes costs no timer.
            while alarm.as_mut().poll(cx).is_ready() {
                let left = (moved_at + idle).saturating_duration_since(sys::coarse_now());
                if left.is_zero() {
                    return Poll::Ready(End::Idle);
                }
                alarm.as_mut().reset(tokio::time::Instant::now() + left);
            }
            Poll::Pending
        })
        .await
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &mut bool) -> Poll<End> {
        let scratch = &mut **self.shell.scratch.borrow_mut();
        let (up, n) = self.up.poll(cx, &mut self.client, self.backend, scratch);
        if n > 0 {
            *moved = true;
            self.shell.figures.bytes_up.add(n);
        }
        let (down, n) = self.down.poll(cx, self.backend, &mut self.client, scratch);
        if n > 0 {
            *moved = true;
            self.shell.figures.bytes_down.add(n);
        }
        match (up, down) {
            (Err(Trouble::Source), _) => {
                // A reset is passed on as one.
                refuse(self.backend);
                Poll::Ready(End::Client)
            }
            (_, Err(Trouble::Source)) => {
                refuse(&self.client);
                Poll::Ready(End::Backend)
            }
            (Ok(()), Ok(())) if self.up.state == FlowState::Over && self.down.state == FlowState::Over => {
                Poll::Ready(End::Whole)
            }
            _ => Poll::Pending,
        }
    }
}

impl Flow {
    /// Passes on what there is. Returns how many bytes have come.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        scratch: &mut [u8],
    ) -> (Result<(), Trouble>, u64) {
        let mut moved = 0;
        for _ in 0..READS_IN_A_ROW {
            match self.step(cx, from, to, scratch) {
                Poll::Pending => return (Ok(()), moved),
                Poll::Ready(Ok(0)) => return (Ok(()), moved),
                Poll::Ready(Ok(n)) => moved += n as u64,
                Poll::Ready(Err(_)) => return (Err(Trouble::Source), moved),
            }
        }
        cx.waker().wake_by_ref();
        (Ok(()), moved)
    }

    /// Does one thing: passes on what is pending, or reads and passes on. Returns how many bytes have come; none, when
    /// it is over.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.state == FlowState::Over {
            return Poll::Ready(Ok(0));
        }
        while self.at < self.pending.len() {
            match ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.at..])) {
                Ok(n) => self.at += n,
                Err(_) => return self.give_up(),
            }
        }
        if self.at > 0 {
            // Room is only kept while it is needed.
            self.pending = Vec::new();
            self.at = 0;
        }
        if self.state == FlowState::Ending {
            // The other side may have gone altogether: then there is nobody to tell.
            let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
            self.state = FlowState::Over;
            return Poll::Ready(Ok(0));
        }
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        let bytes = buffer.filled();
        if bytes.is_empty() {
            self.state = FlowState::Ending;
            return self.step_end(cx, to);
        }
        let taken = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(Ok(n)) => n,
            Poll::Ready(Err(_)) => return self.give_up(),
            Poll::Pending => 0,
        };
        self.pending.extend_from_slice(&bytes[taken..]);
        Poll::Ready(Ok(bytes.len()))
    }

    fn step_end(&mut self, cx: &mut Context<'_>, to: &mut TcpStream) -> Poll<io::Result<usize>> {
        let _ = ready!(Pin::new(to).poll_shutdown(cx));
        self.state = FlowState::Over;
        Poll::Ready(Ok(0))
    }

    /// The other side takes nothing more. What it still has to say may be worth hearing: its own direction tells how it
    /// ends.
    fn give_up(&mut self) -> Poll<io::Result<usize>> {
        self.pending = Vec::new();
        self.at = 0;
        self.state = FlowState::Over;
        Poll::Ready(Ok(0))
    }
}

//! Bytes both ways between two streams, until both have ended.
//!
//! What is read goes out at once from a buffer that all connections of the worker share; only what the other side does
//! not take is kept. So an idle connection holds no buffer.

use std::future::{Future, poll_fn};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use forebay::blame::cause_of;
use forebay::sys::{self, Pipe};
use forebay_core::Cause;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::backends::Known;
use crate::worker::{Session, Shell, refuse};

/// Reads in a row in one direction before other tasks of the worker get their turn.
const READS_IN_A_ROW: u32 = 16;

/// How a relay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Both sides have said all they had to say.
    Whole,
    /// The backend is to be left.
    Cut,
    /// Nothing moved for too long.
    Idle,
    /// The client's side failed.
    Client,
    /// The backend's side failed.
    Backend(Cause),
}

impl End {
    /// Returns the word for it in the access log.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Cut => "cut",
            Self::Idle => "idle",
            Self::Client => "client_failed",
            Self::Backend(_) => "backend_failed",
        }
    }
}

/// A client and a backend, and what is on its way between them.
pub(super) struct Relay<'a> {
    shell: &'a Rc<Shell>,
    session: Session<'a>,
    client: TcpStream,
    backend: &'a mut TcpStream,
    known: &'a Known,
    up: Flow,
    down: Flow,
    /// Bytes that have come from the client and from the backend.
    bytes: (u64, u64),
    /// Why the client and the backend took nothing more, if that was an error.
    broken: (Option<Cause>, Option<Cause>),
}

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    /// What was read and not taken yet.
    pending: Vec<u8>,
    /// Where in `pending` the rest begins.
    at: usize,
    /// What goes by without being read here, and was not taken yet.
    pipe: Option<Pipe>,
    state: FlowState,
    /// Whether what comes goes through a pipe.
    is_bulk: bool,
    /// Reads in a row that speak for the other way.
    streak: u32,
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

/// Where bytes come from has failed.
#[derive(Debug)]
struct SourceFailed(Cause);

impl<'a> Relay<'a> {
    pub(super) fn new(
        shell: &'a Rc<Shell>,
        session: Session<'a>,
        client: TcpStream,
        backend: &'a mut TcpStream,
        known: &'a Known,
    ) -> Self {
        let (up, down) = (Flow::default(), Flow::default());
        Self { shell, session, client, backend, known, up, down, bytes: (0, 0), broken: (None, None) }
    }

    /// Passes bytes on until both sides have ended, one has failed, or nothing has moved for too long.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, what is on its way is lost.
    pub(super) async fn run(&mut self) -> End {
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

    /// Returns how many bytes have come from the client and from the backend.
    pub(super) const fn bytes(&self) -> (u64, u64) {
        self.bytes
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &mut bool) -> Poll<End> {
        if self.session.is_cut(cx) {
            refuse(&self.client);
            refuse(self.backend);
            return Poll::Ready(End::Cut);
        }
        let buffers = &mut *self.shell.buffers.borrow_mut();
        let (mut n_up, mut n_down) = (0, 0);
        let (client, backend) = (&mut self.client, &mut *self.backend);
        let (of_client, of_backend) = (&mut self.broken.0, &mut self.broken.1);
        let up = self.up.poll(cx, (client, *of_client), (backend, of_backend), buffers, &mut n_up);
        let down = self.down.poll(cx, (backend, *of_backend), (client, of_client), buffers, &mut n_down);
        *moved = n_up + n_down > 0;
        self.bytes = (self.bytes.0 + n_up, self.bytes.1 + n_down);
        if n_up > 0 {
            self.shell.figures.bytes_up.add(n_up);
        }
        if n_down > 0 {
            if self.bytes.1 == n_down {
                // The first it says.
                self.known.note_good();
            }
            self.shell.figures.bytes_down.add(n_down);
        }
        if buffers.spliced > 0 {
            self.shell.figures.bytes_spliced.add(std::mem::take(&mut buffers.spliced));
        }
        match (up, down) {
            (Err(SourceFailed(_)), _) => {
                // A reset is passed on as one.
                refuse(self.backend);
                Poll::Ready(End::Client)
            }
            (_, Err(SourceFailed(cause))) => {
                refuse(&self.client);
                Poll::Ready(End::Backend(cause))
            }
            (Ok(()), Ok(())) if self.up.state == FlowState::Over && self.down.state == FlowState::Over => {
                Poll::Ready(End::Whole)
            }
            _ => Poll::Pending,
        }
    }
}

impl Flow {
    /// Passes on what there is, and notes how many bytes have come, and the error of a side that takes nothing more.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        (from, from_broken): (&mut TcpStream, Option<Cause>),
        (to, to_broken): (&mut TcpStream, &mut Option<Cause>),
        buffers: &mut Buffers,
        moved: &mut u64,
    ) -> Result<(), SourceFailed> {
        for _ in 0..READS_IN_A_ROW {
            match self.write(cx, to, buffers) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    *to_broken = to_broken.or(broken(&error));
                    // That side takes nothing more. What it still has to say may be worth hearing: its own direction
                    // tells how it ends.
                    *self = Self { state: FlowState::Over, ..Self::default() };
                }
                Poll::Pending => return Ok(()),
            }
            if self.state == FlowState::Over {
                return Ok(());
            }
            let read = match self.is_bulk {
                true => self.read_bulk(cx, from, buffers),
                false => self.read(cx, from, (to, &mut *to_broken), &mut buffers.scratch),
            };
            match read {
                // A socket tells its error once: who wrote to it has heard, and what looks like an end is none.
                Poll::Ready(Ok(0)) if let Some(cause) = from_broken => return Err(SourceFailed(cause)),
                Poll::Ready(Ok(0)) => self.state = FlowState::Ending,
                Poll::Ready(Ok(n)) => *moved += n as u64,
                Poll::Ready(Err(error)) => return Err(SourceFailed(cause_of(&error))),
                Poll::Pending => return Ok(()),
            }
        }
        cx.waker().wake_by_ref();
        Ok(())
    }

    /// Writes what is pending, then the end if no more comes.
    fn write(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        buffers: &mut Buffers,
    ) -> Poll<io::Result<()>> {
        while self.at < self.pending.len() {
            self.at += ready!(Pin::new(&mut *to).poll_write(cx, &self.pending[self.at..]))?;
        }
        if self.at > 0 {
            // Room is only kept while it is needed.
            (self.pending, self.at) = (Vec::new(), 0);
        }
        while let Some(pipe) = &mut self.pipe {
            match to.try_io(Interest::WRITABLE, || pipe.drain(to.as_fd())) {
                Ok(_) if pipe.is_empty() => buffers.keep(self.pipe.take()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(to.poll_write_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.state == FlowState::Ending {
            // The other side may have gone altogether: then there is nobody to tell.
            let _ = ready!(Pin::new(to).poll_shutdown(cx));
            self.state = FlowState::Over;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads, and writes what is taken at once. Returns how much was read; zero at the end.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        (to, to_broken): (&mut TcpStream, &mut Option<Cause>),
        scratch: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        self.streak = if buffer.remaining() == 0 { self.streak + 1 } else { 0 };
        if self.streak >= BULK_READS {
            (self.is_bulk, self.streak) = (true, 0);
        }
        let bytes = buffer.filled();
        if !bytes.is_empty() {
            let taken = match Pin::new(to).poll_write(cx, bytes) {
                Poll::Ready(Ok(n)) => n,
                // That nothing more is taken shows again when the rest is written; why, only now.
                Poll::Ready(Err(error)) => {
                    *to_broken = to_broken.or(broken(&error));
                    0
                }
                Poll::Pending => 0,
            };
            self.pending.extend_from_slice(&bytes[taken..]);
        }
        Poll::Ready(Ok(bytes.len()))
    }

    /// Takes much that comes in a row into a pipe. Returns how much; zero at the end.
    fn read_bulk(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        buffers: &mut Buffers,
    ) -> Poll<io::Result<usize>> {
        loop {
            let Some(mut pipe) = buffers.pipe() else {
                // No descriptor is left for a pipe: copying does it, too.
                self.is_bulk = false;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            };
            match from.try_io(Interest::READABLE, || pipe.fill(from.as_fd(), PIPE_BYTES)) {
                Ok(n) => {
                    buffers.spliced += n as u64;
                    match n {
                        0 => buffers.keep(Some(pipe)),
                        _ => self.pipe = Some(pipe),
                    }
                    self.streak = if n < SMALL_BYTES { self.streak + 1 } else { 0 };
                    if self.streak >= SMALL_READS {
                        (self.is_bulk, self.streak) = (false, 0);
                    }
                    return Poll::Ready(Ok(n));
                }
                Err(error) => {
                    buffers.keep(Some(pipe));
                    match error.kind() {
                        ErrorKind::WouldBlock => ready!(from.poll_read_ready(cx))?,
                        _ => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }
}

/// Why a side takes nothing more, if that is an error: one that had ended before says so of itself.
fn broken(error: &io::Error) -> Option<Cause> {
    (error.kind() != ErrorKind::BrokenPipe).then(|| cause_of(error))
}

/// What the relays of one worker share: nothing stays in it but empty pipes.
#[derive(Debug)]
pub(crate) struct Buffers {
    scratch: Box<[u8]>,
    /// Empty ones.
    pipes: Vec<Pipe>,
    /// Bytes that went through pipes, and were not told yet.
    spliced: u64,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { scratch: vec![0; SCRATCH_BYTES].into(), pipes: Vec::new(), spliced: 0 }
    }
}

impl Buffers {
    /// Returns an empty pipe; `None` if this machine has no descriptor for one.
    fn pipe(&mut self) -> Option<Pipe> {
        self.pipes.pop().or_else(|| Pipe::new(PIPE_BYTES).ok())
    }

    /// Keeps an empty pipe for the next one.
    fn keep(&mut self, pipe: Option<Pipe>) {
        if let Some(pipe) = pipe
            && self.pipes.len() < PIPES_KEPT
        {
            self.pipes.push(pipe);
        }
    }
}

/// Where what is passed on stands for a moment, in bytes.
const SCRATCH_BYTES: usize = 64 << 10;

/// How much a pipe holds, in bytes.
const PIPE_BYTES: usize = 256 << 10;

/// Empty pipes that a worker keeps.
const PIPES_KEPT: usize = 16;

/// Full reads in a row that make a direction bulk.
const BULK_READS: u32 = 2;

/// A read of bulk with less than this is small, in bytes: a copy is cheaper than two system calls more.
const SMALL_BYTES: usize = 16 << 10;

/// Small reads in a row after which a direction is bulk no more.
const SMALL_READS: u32 = 8;

//! Bytes both ways between two streams that were HTTP, until both have ended.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use forebay::stream::Stream;
use forebay::sys;

use super::exchange::Alarm;
use super::wire::{Reading, Writing};
use crate::access_log::Trail;
use crate::worker::{Session as Entered, Shell};

/// Reads in a row in one direction before other tasks of the worker get their turn.
const READS_IN_A_ROW: u32 = 16;

/// One direction.
#[derive(Debug, Default)]
struct Flow {
    reading: Reading,
    writing: Writing,
    state: FlowState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum FlowState {
    /// More may come. Left at its end, to `Ending`.
    #[default]
    Open,
    /// What waits is written, then the end. Left when it has been, to `Over`.
    Ending,
    /// Nothing more goes this way.
    Over,
}

/// Passes on what comes, beginning with what has come already, until nothing has moved for `idle`. `entered` says when it
/// is to be cut. Returns whether both sides have ended.
///
/// # Errors
///
/// What either side says, and `ConnectionAborted` when it is cut because its backend is to be left.
///
/// # Cancel safety
///
/// Cancelled, what is on its way is lost.
pub(super) async fn run(
    shell: &Shell,
    client: &Stream,
    backend: &Stream,
    early: (&[u8], &[u8]),
    alarm: &mut Alarm,
    (idle, entered): (Duration, &Entered<'_>),
    trail: &mut Trail<'_>,
) -> io::Result<bool> {
    let (mut up, mut down) = (Flow::default(), Flow::default());
    up.writing.bytes.extend_from_slice(early.0);
    down.writing.bytes.extend_from_slice(early.1);
    trail.up(early.0.len() as u64);
    trail.down(early.1.len() as u64);
    let mut moved_at = sys::coarse_now();
    poll_fn(|cx| {
        let moved_up = up.poll(cx, client, backend)?;
        let moved_down = down.poll(cx, backend, client)?;
        shell.figures.bytes_up.add(moved_up);
        shell.figures.bytes_down.add(moved_down);
        trail.up(moved_up);
        trail.down(moved_down);
        if up.state == FlowState::Over && down.state == FlowState::Over {
            return Poll::Ready(Ok(true));
        }
        if entered.is_cut(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if moved_up + moved_down > 0 {
            moved_at = sys::coarse_now();
        }
        alarm.poll(cx, moved_at + idle, idle).map(|()| Ok(false))
    })
    .await
}

impl Flow {
    /// Passes on what there is. Returns how many bytes have come.
    fn poll(&mut self, cx: &mut Context<'_>, from: &Stream, to: &Stream) -> io::Result<u64> {
        let mut moved = 0;
        for _ in 0..READS_IN_A_ROW {
            match self.step(cx, from, to) {
                Poll::Ready(Ok(0)) | Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(n)) => moved += n as u64,
                Poll::Ready(Err(error)) => return Err(error),
            }
        }
        cx.waker().wake_by_ref();
        Ok(moved)
    }

    fn step(&mut self, cx: &mut Context<'_>, from: &Stream, to: &Stream) -> Poll<io::Result<usize>> {
        if self.state == FlowState::Over {
            return Poll::Ready(Ok(0));
        }
        ready!(self.writing.poll_flush(to, cx))?;
        if self.state == FlowState::Ending {
            self.state = FlowState::Over;
            // The other side may have gone altogether: then there is nobody to tell.
            let _ = to.end_writing();
            return Poll::Ready(Ok(0));
        }
        // Room is only kept while bytes are in it.
        std::mem::swap(&mut self.reading.bytes, &mut self.writing.bytes);
        match self.reading.poll_read(from, cx) {
            Poll::Ready(Ok(true)) => {}
            Poll::Ready(Ok(false)) => self.state = FlowState::Ending,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {
                self.reading.bytes = Vec::new();
                return Poll::Pending;
            }
        }
        let n = self.reading.bytes.len();
        std::mem::swap(&mut self.reading.bytes, &mut self.writing.bytes);
        match self.writing.poll_flush(to, cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // The end goes out with the next step.
            Poll::Ready(Ok(())) if self.state == FlowState::Ending => self.step(cx, from, to),
            _ => Poll::Ready(Ok(n)),
        }
    }
}

//! The body of a response: it holds its place on the connection until it has ended.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use forebay::http2::Counted;
use h2::RecvStream;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tonic::Status;

use super::call::{Deadline, Lease, give_back};
use super::status::{Fate, fate_of, status_of, too_late};

/// What is left of a request, being sent; ends with the response.
#[derive(Debug)]
pub(super) struct Pump(pub(super) AbortHandle);

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of a response. Until it has ended or is dropped, its call counts as one of those that its connection carries;
/// dropped early, it cancels the call.
pub struct PooledBody {
    stream: RecvStream,
    /// `None` when it has ended.
    held: Option<(Lease, Counted)>,
    deadline: Option<Deadline>,
    pump: Option<Pump>,
    /// Whether all data has come.
    has_data: bool,
}

impl PooledBody {
    pub(super) fn new(
        stream: RecvStream,
        lease: Lease,
        counted: Counted,
        deadline: Option<Deadline>,
        pump: Option<Pump>,
    ) -> Self {
        let mut body = Self { stream, held: Some((lease, counted)), deadline, pump, has_data: true };
        if body.stream.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The call was answered to its end.
    fn finish(&mut self) {
        if let Some((lease, counted)) = self.held.take() {
            drop(counted);
            lease.complete();
        }
        (self.deadline, self.pump) = (None, None);
    }

    fn fail(&mut self, error: h2::Error) -> Status {
        let lease = self.held.take().map(|(lease, _)| lease);
        (self.deadline, self.pump) = (None, None);
        match (fate_of(error), lease) {
            (Fate::Failed { status, cause, connection_is_lost }, lease) => {
                if let Some(lease) = lease {
                    give_back(lease, cause, connection_is_lost);
                }
                status
            }
            // The head has come: it was looked at.
            (Fate::Unseen(error), _) => status_of(error),
        }
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.held.is_none() {
            return Poll::Ready(None);
        }
        if self.has_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // More than was received is never given back.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(self.fail(error)))),
                None => self.has_data = false,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                self.finish();
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => Poll::Ready(Some(Err(self.fail(error)))),
        }
    }
}

impl Body for PooledBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        // What comes faster than it is read never lets anybody wait.
        let is_late = this.deadline.as_ref().is_some_and(Deadline::has_passed);
        let result = if is_late { Poll::Pending } else { this.poll_stream(cx) };
        if let Some(deadline) = &mut this.deadline
            && (is_late || result.is_pending() && deadline.poll(cx).is_ready())
        {
            // Dropping the lease and the stream cancels the call.
            this.held = None;
            (this.deadline, this.pump) = (None, None);
            return Poll::Ready(Some(Err(too_late())));
        }
        result
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        if self.held.is_none() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

impl fmt::Debug for PooledBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PooledBody").field("has_ended", &self.held.is_none()).finish_non_exhaustive()
    }
}

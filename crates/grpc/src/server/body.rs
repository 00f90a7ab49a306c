//! The messages of a request, as services read them.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http_body::{Body, Frame, SizeHint};
use tonic::Status;

use super::messages::{Lengths, TooLong};

/// The body of a request. Room is given back to the client as messages are taken; a message that says it is too long is
/// an error before there is room made for it.
#[derive(Debug)]
pub struct RequestBody {
    stream: RecvStream,
    lengths: Lengths,
    is_over: bool,
}

impl RequestBody {
    pub(super) fn new(stream: RecvStream, message_bytes_max: u32) -> Self {
        Self { stream, lengths: Lengths::new(message_bytes_max), is_over: false }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let body = &mut *self;
        if body.is_over {
            return Poll::Ready(None);
        }
        match ready!(body.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                // The end often comes with the last bytes, which saves looking for trailers; and what a stream that
                // has ended had room for is given back when it is dropped.
                body.is_over = body.stream.is_end_stream();
                if !body.is_over {
                    let _ = body.stream.flow_control().release_capacity(data.len());
                }
                match body.lengths.advance(&data) {
                    Ok(()) => Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(TooLong(length)) => {
                        body.is_over = true;
                        Poll::Ready(Some(Err(too_long("request", length, body.lengths.limit()))))
                    }
                }
            }
            Some(Err(error)) => {
                body.is_over = true;
                Poll::Ready(Some(Err(broken(&error))))
            }
            None => {
                let trailers = ready!(body.stream.poll_trailers(cx));
                body.is_over = true;
                match trailers {
                    Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                    Ok(None) => Poll::Ready(None),
                    Err(error) => Poll::Ready(Some(Err(broken(&error)))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_over || self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// What is said of a message that is too long.
pub(super) fn too_long(what: &str, length: u32, limit: u32) -> Status {
    Status::resource_exhausted(format!("a message of the {what} has {length} bytes; the limit is {limit}"))
}

/// What a stream that broke is to a service ("Errors" of PROTOCOL-HTTP2).
fn broken(error: &h2::Error) -> Status {
    match error.reason() {
        Some(Reason::CANCEL) => Status::cancelled("the client has cancelled the call"),
        Some(Reason::REFUSED_STREAM) => Status::unavailable("the stream was refused"),
        Some(reason) => Status::internal(format!("the stream was reset: {reason}")),
        None => Status::unavailable("the connection is lost"),
    }
}

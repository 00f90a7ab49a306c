//! The backend's side by HTTP/1.1.

use std::io::ErrorKind;
use std::task::{Context, Poll};

use forebay::stream::Stream;
use forebay_proxy_core::http1::{
    Announce, Body, Limits, RequestHead, RequestOut, ResponseHead, Trailers, write_request,
};
use forebay_proxy_core::rules::{Ended, Spoilt, verdict};

use super::back2::Back2Desk;
use super::exchange::{Back, Broken, Finished, Incoming, Outgoing};
use super::wire::{Reading, Writing};

/// What an exchange with a backend needs.
#[derive(Debug, Default)]
pub(super) struct BackDesk {
    head: ResponseHead,
    head_len: usize,
    reading: Reading,
    writing: Writing,
    /// The same by HTTP/2.
    pub(super) two: Back2Desk,
}

impl BackDesk {
    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.head_len = 0;
        self.reading.clear();
        self.writing.clear();
        self.two.clear();
    }
}

/// One request to a backend.
pub(super) struct Back1<'a> {
    stream: &'a Stream,
    desk: &'a mut BackDesk,
    limits: &'a Limits,
}

impl<'a> Back1<'a> {
    /// Begins a request on this connection; it goes out with the first bytes of its body.
    pub(super) fn new(
        stream: &'a Stream,
        desk: &'a mut BackDesk,
        limits: &'a Limits,
        request: (&RequestHead, &[u8]),
        how: &RequestOut<'_>,
    ) -> Self {
        desk.clear();
        write_request(&mut desk.writing.bytes, request.1, request.0, how);
        desk.writing.is_chunked = how.body == Announce::Chunked;
        Self { stream, desk, limits }
    }

    /// Whether the connection may carry another request after this exchange.
    pub(super) fn verdict(&self, finished: &Finished, asked_connect: bool) -> Result<(), Spoilt> {
        verdict(&Ended {
            response: &self.desk.head,
            body: finished.body,
            response_ended: self.desk.reading.is_ended(),
            request_sent: finished.request_sent,
            bytes_left: self.desk.reading.left(),
            asked_connect,
        })
    }

    /// Returns what came after the head of a response that opened a tunnel.
    pub(super) fn early(&self) -> &[u8] {
        self.desk.reading.bytes.get(self.desk.reading.at..).unwrap_or_default()
    }
}

impl Incoming for Back1<'_> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Broken>> {
        self.desk.reading.poll_data(self.stream, cx)
    }

    fn data(&self) -> &[u8] {
        self.desk.reading.data()
    }

    fn consume(&mut self, n: usize) {
        self.desk.reading.consume(n);
    }

    fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        self.desk.reading.take_trailers()
    }
}

impl Outgoing for Back1<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.desk.writing.poll_send(self.stream, cx, data).map_err(Broken::Io)
    }

    fn finish(&mut self, trailers: Option<&Trailers>) {
        self.desk.writing.finish(trailers);
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.desk.writing.poll_flush(self.stream, cx).map_err(Broken::Io)
    }
}

impl Back for Back1<'_> {
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let desk = &mut *self.desk;
        loop {
            if !desk.reading.bytes.is_empty()
                && let Some(len) = desk.head.parse(&desk.reading.bytes, self.limits).map_err(Broken::Head)?
            {
                desk.head_len = len;
                return Poll::Ready(Ok(()));
            }
            match desk.reading.poll_read(self.stream, cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => {
                    return Poll::Ready(Err(Broken::Io(ErrorKind::UnexpectedEof.into())));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Broken::Io(error))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn response(&self) -> (&ResponseHead, &[u8]) {
        (&self.desk.head, self.desk.reading.bytes.get(..self.desk.head_len).unwrap_or_default())
    }

    fn pass_interim(&mut self) {
        self.desk.reading.at = self.desk.head_len;
        self.desk.reading.pass();
    }

    fn begin_body(&mut self, body: Body) {
        self.desk.reading.begin_body(self.desk.head_len, body);
    }

    fn has_begun(&self) -> bool {
        !self.desk.reading.bytes.is_empty()
    }
}

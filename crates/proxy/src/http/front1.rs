//! The client's side by HTTP/1.1.

use std::task::{Context, Poll};

use forebay::stream::Stream;
use forebay_proxy_core::http1::{
    Announce, Body, Lasting, Method, RequestHead, ResponseHead, ResponseOut, Trailers, Version, request_body,
    write_response,
};
use forebay_proxy_core::rules::Switch;

use super::exchange::{Broken, Front, Incoming, Outgoing};
use super::wire::{Reading, WAITING_BYTES_MAX, Writing};

/// What a client's connection needs while it has a request; idle ones have none.
#[derive(Debug, Default)]
pub(super) struct FrontDesk {
    pub(super) head: RequestHead,
    pub(super) reading: Reading,
    pub(super) writing: Writing,
}

impl FrontDesk {
    pub(super) fn clear(&mut self) {
        self.head.clear();
        self.reading.clear();
        self.writing.clear();
    }
}

/// One request of a client.
pub(super) struct Front1<'a> {
    stream: &'a Stream,
    desk: &'a mut FrontDesk,
    /// How long the head is.
    head_len: usize,
    via: Option<&'a str>,
    /// Whether the connection lasts beyond this exchange, if the request was read whole by then.
    pub(super) lasts: bool,
    /// Whether anything of the last response has been begun.
    pub(super) has_begun: bool,
}

impl<'a> Front1<'a> {
    /// Begins the exchange for the head of this length that stands at the beginning of what was read.
    pub(super) fn new(
        stream: &'a Stream,
        desk: &'a mut FrontDesk,
        head_len: usize,
        via: Option<&'a str>,
        lasts: bool,
    ) -> Self {
        desk.reading.begin_body(head_len, request_body(&desk.head));
        let lasts = lasts && desk.head.keeps_alive();
        Self { stream, desk, head_len, via, lasts, has_begun: false }
    }

    /// Whether the request's body was read to its end.
    pub(super) fn is_whole(&self) -> bool {
        self.desk.reading.is_ended()
    }
}

impl Incoming for Front1<'_> {
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

impl Outgoing for Front1<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        self.desk.writing.poll_send(self.stream, cx, data).map_err(Broken::Io)
    }

    fn finish(&mut self, trailers: Option<&Trailers>) {
        // RFC 9110 §6.5.1: trailers are for those who said that they take them; others may merge them unseen.
        self.desk.writing.finish(trailers.filter(|_| self.desk.head.fields().takes_trailers()));
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        self.desk.writing.poll_flush(self.stream, cx).map_err(Broken::Io)
    }
}

impl Front for Front1<'_> {
    fn request(&self) -> (&RequestHead, &[u8]) {
        (&self.desk.head, self.desk.reading.bytes.get(..self.head_len).unwrap_or_default())
    }

    fn interim(&mut self, head: &ResponseHead, bytes: &[u8]) {
        // RFC 9110 §15.2: a client of HTTP/1.0 knows none of them.
        if self.desk.head.version() == Version::Http11 {
            let how = ResponseOut { body: Announce::Nothing, lasting: Lasting::Lasts, via: self.via };
            write_response(&mut self.desk.writing.bytes, bytes, head, &how);
        }
    }

    fn begin(&mut self, head: &ResponseHead, bytes: &[u8], body: Body, switch: Switch, is_whole: bool) {
        self.has_begun = true;
        let request = &self.desk.head;
        let is_old = request.version() == Version::Http10;
        let announce = match body {
            // RFC 9110 §8.6, RFC 9112 §6.1: neither field in these.
            Body::None if switch != Switch::Stays || matches!(head.status(), 100..200 | 204) => {
                Announce::Nothing
            }
            Body::None => match (head.fields().content_length(), head.fields().is_chunked()) {
                (Some(length), _) => Announce::Length(length),
                // What a GET would have been answered with.
                (None, true) if request.method() == Method::Head && !is_old => Announce::Chunked,
                _ => Announce::Nothing,
            },
            Body::Length(length) => Announce::Length(length),
            Body::Chunked | Body::UntilClose if !is_old => Announce::Chunked,
            Body::Chunked | Body::UntilClose => {
                self.lasts = false;
                Announce::Nothing
            }
        };
        // A client that hears no before it has said everything should stop; one that hears yes may go on, and if it does
        // not come to its end with the response, the connection ends all the same.
        self.lasts &= is_whole || head.status() < 300;
        let lasting = match (switch, self.lasts) {
            (Switch::Upgraded, _) => Lasting::Upgrades,
            (Switch::Connected, _) => Lasting::Lasts,
            (Switch::Stays, false) => Lasting::Closes,
            (Switch::Stays, true) if is_old => Lasting::KeepAlive,
            (Switch::Stays, true) => Lasting::Lasts,
        };
        let writing = &mut self.desk.writing;
        write_response(
            &mut writing.bytes,
            bytes,
            head,
            &ResponseOut { body: announce, lasting, via: self.via },
        );
        writing.is_chunked = announce == Announce::Chunked && body != Body::None;
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // What comes now is the next request; it waits, up to a bound.
        while self.desk.reading.left() < WAITING_BYTES_MAX {
            match self.desk.reading.poll_read(self.stream, cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false) | Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Pending
    }
}

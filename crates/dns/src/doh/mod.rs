//! DNS over HTTPS (RFC 8484): the listener's side over HTTP/2 and HTTP/1.1, and the upstream's side over HTTP/2.
//!
//! A request is a query like any other: it goes into the worker's forwarder under a number of its own, and its answer
//! is written into its stream at once. No task stands for a request; one task carries each connection.

mod frames;
pub(crate) mod link;
mod pipe;
pub(crate) mod reply;
mod request;
mod serve;
mod serve1;
mod watch;

use std::net::SocketAddr;
use std::rc::Rc;

use forebay::stream::Stream;
use forebay::tls::ALPN_HTTP;

pub(crate) use self::pipe::Pipe;
use crate::worker::Shell;

/// What queries and answers are called (RFC 8484 §6).
const MEDIA_TYPE: &str = "application/dns-message";

/// The longest DNS message, in bytes, and so the longest body either way.
const MESSAGE_BYTES_MAX: usize = 65_535;

/// Serves a client that has shaken hands: with HTTP/2 if it speaks that, else with HTTP/1.1. `listen` is the
/// listener's place in the configuration.
pub(crate) async fn serve(shell: &Rc<Shell>, stream: Stream, peer: SocketAddr, listen: usize) {
    let path = &shell.config.listen[listen].path;
    let http2 = stream.speaks(ALPN_HTTP[0]);
    let _open = Open::new(shell);
    match http2 {
        true => serve::http2(shell, Pipe::with_answers_apart(stream), peer, path).await,
        false => serve1::http1(shell, Pipe::new(stream), peer, path).await,
    }
}

/// A client's connection, counted until it is dropped.
struct Open<'a>(&'a Rc<Shell>);

impl<'a> Open<'a> {
    fn new(shell: &'a Rc<Shell>) -> Self {
        shell.web_connections.set(shell.web_connections.get() + 1);
        Self(shell)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.web_connections.set(self.0.web_connections.get() - 1);
    }
}

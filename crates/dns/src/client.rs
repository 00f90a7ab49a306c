//! Clients' streams, TCP and TLS: pipelined queries, answers out of order (RFC 7766 §6.2.1.1, §7; RFC 7858 §3.3),
//! nobody waits for a slow reader.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use forebay::stream::Stream;
use forebay::sys::{self, TcpOptions};
use forebay_dns_core::forwarder::{Client, Handled, StreamKind};
use rustls::{ServerConfig, ServerConnection};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::doh;
use crate::mail::{ClientOut, STREAM_BACKLOG_BYTES, StreamOut};
use crate::settings::Scheme;
use crate::worker::{Shell, State};
use forebay::places::Place;

/// How long accepting rests after the kernel had no descriptor: trying again at once would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Takes clients' connections until the worker stops. `listen` is the listener's place in the configuration.
pub(crate) async fn accept(shell: Rc<Shell>, listener: TcpListener, listen: usize) {
    while !shell.is_draining() {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shell.stop.notified() => continue,
        };
        match accepted {
            // Nobody who is not served may take the place of one who is.
            Ok((_, peer)) if !shell.state.borrow().forwarder.serves(peer.ip()) => shell.refuse(),
            Ok((socket, peer)) => match shell.clients.take(peer.ip()) {
                Some(place) => {
                    tokio::task::spawn_local(serve(Rc::clone(&shell), socket, peer, listen, place));
                }
                None => shell.reject(),
            },
            Err(error) => {
                tracing::warn!(%error, "a client's connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(shell: Rc<Shell>, socket: TcpStream, peer: SocketAddr, listen: usize, _place: Place) {
    // A peer that has gone already shows on the first read.
    let _ = sys::socket::apply_tcp_options(&socket, &TcpOptions::default());
    let stream = match (shell.config.listen[listen].scheme, &shell.tls) {
        (Scheme::Tls, Some(tls)) => match shake(&shell, socket, Arc::clone(&tls.dot)).await {
            Some(stream) => stream,
            None => return,
        },
        (Scheme::Https, Some(tls)) => match shake(&shell, socket, Arc::clone(&tls.https)).await {
            Some(stream) => return doh::serve(&shell, stream, peer, listen).await,
            None => return,
        },
        _ => Stream::plain(socket),
    };
    let connection = shell.next_connection();
    let (stream, wake) = (Rc::new(stream), Rc::new(Notify::new()));
    let out = StreamOut::new(Rc::clone(&stream), Rc::clone(&wake));
    let kind = if stream.is_encrypted() { StreamKind::Tls } else { StreamKind::Tcp };
    let client = ClientOut { out, peer, kind, in_flight: 0, paused: false, left: false };
    shell.state.borrow_mut().mail.clients.insert(connection, client);
    converse(&shell, connection, &stream, &wake).await;
    shell.state.borrow_mut().mail.clients.remove(&connection);
}

/// Shakes hands with a client, in bounded time and number. `None` when that failed: then it has been counted.
async fn shake(shell: &Rc<Shell>, socket: TcpStream, config: Arc<ServerConfig>) -> Option<Stream> {
    let Some(_handshake) = shell.begin_handshake() else {
        shell.reject();
        return None;
    };
    let shaken = async {
        let stream = Stream::encrypted(socket, ServerConnection::new(config).map_err(io::Error::other)?);
        stream.handshake().await.map(|kind| (stream, kind))
    };
    let result = tokio::time::timeout(shell.config.clients.handshake_timeout.0, shaken).await;
    let mut counts = shell.handshakes.get();
    let stream = match result {
        Ok(Ok((stream, kind))) => {
            counts.note(kind);
            Some(stream)
        }
        Ok(Err(error)) => {
            tracing::debug!(%error, "a client's TLS handshake failed");
            counts.failed += 1;
            None
        }
        Err(_) => {
            counts.failed += 1;
            None
        }
    };
    shell.handshakes.set(counts);
    stream
}

/// What a client's task waits for.
struct Wants {
    read: bool,
    write: bool,
    idle: bool,
}

async fn converse(shell: &Rc<Shell>, connection: u64, stream: &Stream, wake: &Notify) {
    let idle_timeout = shell.config.clients.idle_timeout.0;
    let mut frames = Frames::new();
    let mut ended = false;
    let mut progress = sys::now();
    let alarm = tokio::time::sleep(idle_timeout);
    tokio::pin!(alarm);
    loop {
        let wants = take_queries(shell, connection, &mut frames, ended);
        let Some(wants) = wants else { return };
        if wants.idle && (ended || shell.is_draining()) {
            return;
        }
        let interest = match (wants.read, wants.write) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        };
        tokio::select! {
            ready = stream.ready(interest.unwrap_or(Interest::READABLE)), if interest.is_some() => {
                match ready.and_then(|ready| exchange(shell, connection, stream, &mut frames, ready)) {
                    Ok(Progress::Some) => progress = sys::now(),
                    Ok(Progress::None) => {}
                    Ok(Progress::End) => ended = true,
                    Err(_) => return,
                }
            }
            () = wake.notified() => {}
            () = shell.stop.notified() => {}
            () = &mut alarm => {
                let due = progress + idle_timeout;
                let now = sys::now();
                if now >= due && (wants.idle || wants.write) {
                    return;
                }
                alarm.as_mut().reset(tokio::time::Instant::now() + due.saturating_duration_since(now).max(MOMENT));
            }
        }
    }
}

/// How long to wait before looking again at a client whose queries are still being answered.
const MOMENT: Duration = Duration::from_millis(100);

enum Progress {
    None,
    Some,
    End,
}

/// Writes and reads what can be written and read now.
fn exchange(
    shell: &Shell,
    connection: u64,
    stream: &Stream,
    frames: &mut Frames,
    ready: tokio::io::Ready,
) -> io::Result<Progress> {
    let mut progress = Progress::None;
    if ready.is_writable()
        && let Some(client) = shell.state.borrow_mut().mail.clients.get_mut(&connection)
    {
        let before = stream.sent();
        client.out.flush()?;
        if stream.sent() > before {
            progress = Progress::Some;
        }
    }
    if ready.is_readable() {
        match frames.read(stream) {
            Ok(0) => return Ok(Progress::End),
            Ok(_) => progress = Progress::Some,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(progress)
}

/// Takes the queries that have been read, as many as may be in flight. `None` when the client must be left: it sent
/// what is no query, after which nothing on its stream can be trusted.
fn take_queries(shell: &Rc<Shell>, connection: u64, frames: &mut Frames, ended: bool) -> Option<Wants> {
    let queries_max = shell.config.clients.queries_max;
    // RFC 7828 §3.3.2: a server that is about to end says zero.
    let idle = if shell.is_draining() { 0 } else { tenths(shell.config.clients.idle_timeout.0) };
    let now = sys::now();
    let mut taken = false;
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        loop {
            let client = mail.clients.get_mut(&connection)?;
            client.paused = client.in_flight >= queries_max || client.out.backlog() >= STREAM_BACKLOG_BYTES;
            if client.paused {
                break;
            }
            let Some(message) = frames.next() else { break };
            client.in_flight += 1;
            taken = true;
            let client = Client::Stream { connection, peer: client.peer.ip(), kind: client.kind, idle };
            if forwarder.handle_query(now, client, message, mail) == Handled::Ignored {
                return None;
            }
        }
    }
    if taken {
        shell.settle();
    }
    let mut state = shell.state.borrow_mut();
    let client = state.mail.clients.get_mut(&connection)?;
    if client.left {
        tracing::debug!(peer = %client.peer, "a client that does not read its answers is left");
        return None;
    }
    // Replies of the queries just taken may have gone out already, and with them the reason to pause.
    client.paused = client.in_flight >= queries_max || client.out.backlog() >= STREAM_BACKLOG_BYTES;
    if !client.paused && frames.has_next() {
        client.out.wake.notify_one();
    }
    Some(Wants {
        read: !client.paused && !ended,
        write: client.out.waits(),
        idle: client.in_flight == 0 && !client.out.waits(),
    })
}

/// A time in units of 100 ms (RFC 7828 §3.1).
fn tenths(time: Duration) -> u16 {
    u16::try_from(time.as_millis() / 100).unwrap_or(u16::MAX)
}

/// Messages with their length before them, out of a byte stream (RFC 1035 §4.2.2).
pub(crate) struct Frames {
    buffer: Vec<u8>,
    start: usize,
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self { buffer: Vec::new(), start: 0 }
    }

    /// Reads what is there. Zero means that the peer will send nothing more.
    pub(crate) fn read(&mut self, stream: &Stream) -> io::Result<usize> {
        self.buffer.drain(..self.start);
        self.start = 0;
        stream.read(&mut self.buffer)
    }

    /// Whether a whole message is there.
    pub(crate) fn has_next(&self) -> bool {
        self.peek().is_some()
    }

    /// Takes the next whole message.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        let end = self.peek()?;
        let start = std::mem::replace(&mut self.start, end) + 2;
        Some(&self.buffer[start..end])
    }

    fn peek(&self) -> Option<usize> {
        let rest = &self.buffer[self.start..];
        let length = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
        (rest.len() >= 2 + length).then_some(self.start + 2 + length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Frames {
        Frames { buffer: bytes.to_vec(), start: 0 }
    }

    #[test]
    fn messages_come_out_whole_and_in_order() {
        let mut frames = frames(&[0, 2, b'a', b'b', 0, 1, b'c', 0, 3, b'd']);
        assert_eq!(frames.next(), Some(&b"ab"[..]));
        assert_eq!(frames.next(), Some(&b"c"[..]));
        assert!(!frames.has_next());
        assert_eq!(frames.next(), None);
        frames.buffer.extend_from_slice(b"ef");
        assert_eq!(frames.next(), Some(&b"def"[..]));
    }

    #[test]
    fn an_empty_message_is_a_message() {
        assert_eq!(frames(&[0, 0]).next(), Some(&[][..]));
        assert_eq!(frames(&[0]).next(), None);
    }
}

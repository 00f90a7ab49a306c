//! A byte stream, plain or encrypted, of either side.
//!
//! Encryption is a step between two buffers of the same task: what has been collected becomes few records and one write,
//! what is read becomes messages at once, and no other task, lock or copy stands between. rustls does it without I/O of
//! its own; a connection belongs to one worker, so that a `RefCell` is all it takes to let readers and writers at it.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::{Connection, HandshakeKind};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready};
use tokio::net::TcpStream;

use crate::sys::{self, StreamState};

/// How much is read from a stream at once, in bytes.
pub const READ_BYTES: usize = 16 << 10;

/// What rustls asks the socket for at once, in bytes: who gets less has emptied it.
const TLS_READ_BYTES: usize = 4096;

/// A connected stream. Dropped, it says goodbye if it is encrypted, and closes.
#[derive(Debug)]
pub struct Stream {
    socket: TcpStream,
    /// Boxed: plain streams do not pay for its kilobyte.
    tls: Option<Box<RefCell<Connection>>>,
    /// Bytes that the socket has taken.
    sent: Cell<u64>,
}

impl Stream {
    /// A stream that carries bytes as they are.
    pub const fn plain(socket: TcpStream) -> Self {
        Self { socket, tls: None, sent: Cell::new(0) }
    }

    /// A stream whose bytes are encrypted, once [`Stream::handshake`] is through.
    pub fn encrypted(socket: TcpStream, connection: impl Into<Connection>) -> Self {
        Self { socket, tls: Some(Box::new(RefCell::new(connection.into()))), sent: Cell::new(0) }
    }

    /// Whether nobody on the way can read what it carries.
    pub const fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Returns the socket beneath, for its options; on a plain stream, for what has to be done without a buffer.
    pub const fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Waits until the socket is ready.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, nothing is lost.
    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        self.socket.ready(interest).await
    }

    /// Wakes the task when there may be something to read.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_read_ready(cx)
    }

    /// Wakes the task when the socket may take something.
    ///
    /// # Errors
    ///
    /// When the runtime is shutting down.
    pub fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_write_ready(cx)
    }

    /// Whether the peers have agreed on this protocol (RFC 7301).
    pub fn speaks(&self, protocol: &[u8]) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().alpn_protocol() == Some(protocol))
    }

    /// Returns how many bytes the socket has taken: it shows whether the peer reads.
    pub const fn sent(&self) -> u64 {
        self.sent.get()
    }

    /// Shakes hands, if the stream is encrypted. Returns how.
    ///
    /// # Errors
    ///
    /// Those of the socket; [`ErrorKind::UnexpectedEof`] when the peer ended first; [`ErrorKind::InvalidData`] with a
    /// [`rustls::Error`] in it when it did not speak TLS, or was not believed.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, it is of no more use.
    pub async fn handshake(&self) -> io::Result<Option<HandshakeKind>> {
        let Some(tls) = &self.tls else { return Ok(None) };
        loop {
            let interest = {
                let connection = &mut *tls.borrow_mut();
                self.push(connection)?;
                if !connection.is_handshaking() {
                    return Ok(connection.handshake_kind());
                }
                match connection.wants_write() {
                    true => Interest::READABLE | Interest::WRITABLE,
                    false => Interest::READABLE,
                }
            };
            self.socket.ready(interest).await?;
            let connection = &mut *tls.borrow_mut();
            match connection.read_tls(&mut Socket(&self.socket)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => self.process(connection)?,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes as much as goes out now, or can wait in encrypted form until [`Stream::flush`]. Returns how much. What is
    /// given at once becomes records of its own.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WouldBlock`] when that is nothing; those of the socket and of TLS.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            let taken = self.socket.try_write(bytes)?;
            self.sent.set(self.sent.get() + taken as u64);
            return Ok(taken);
        };
        let connection = &mut *tls.borrow_mut();
        let mut taken = connection.writer().write(bytes)?;
        if taken == 0 {
            self.push(connection)?;
            taken = connection.writer().write(bytes)?;
        }
        if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Takes pieces as [`Stream::write`] takes one.
    ///
    /// # Errors
    ///
    /// Those of [`Stream::write`].
    pub fn write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(tls) = &self.tls else {
            let taken = self.socket.try_write_vectored(pieces)?;
            self.sent.set(self.sent.get() + taken as u64);
            return Ok(taken);
        };
        let connection = &mut *tls.borrow_mut();
        let mut taken = connection.writer().write_vectored(pieces)?;
        if taken == 0 {
            self.push(connection)?;
            taken = connection.writer().write_vectored(pieces)?;
        }
        if taken == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }

    /// Says that nothing more will be written, as far as it goes out now; reading goes on. What was written before must
    /// have been flushed.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn end_writing(&self) -> io::Result<()> {
        if let Some(tls) = &self.tls {
            let connection = &mut *tls.borrow_mut();
            connection.send_close_notify();
            self.push(connection)?;
        }
        sys::end_writing(&self.socket)
    }

    /// Whether an idle connection can be used: nothing has come of which anybody could think that it answers what was
    /// not asked yet, nor an end. Looks without waiting; session tickets and the like are taken in.
    pub fn is_quiet(&self) -> bool {
        match (sys::stream_state(self.socket.as_fd()), &self.tls) {
            (StreamState::Closed, _) | (StreamState::Readable, None) => false,
            (StreamState::Quiet, None) => true,
            (StreamState::Quiet, Some(tls)) => is_drained(&mut tls.borrow_mut()),
            (StreamState::Readable, Some(tls)) => {
                let connection = &mut *tls.borrow_mut();
                loop {
                    // Asks the kernel: the runtime may not have heard yet.
                    match connection.read_tls(&mut &*SockRef::from(&self.socket)) {
                        Ok(0) => return false,
                        Ok(_) if self.process(connection).is_ok() && is_drained(connection) => {}
                        Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                        Ok(_) | Err(_) => return false,
                    }
                }
            }
        }
    }

    /// Whether an encrypted stream has ended without a goodbye: somebody on the way may have cut it (RFC 8446 §6.1).
    /// Matters where the end of the stream is the end of what it carries.
    pub fn was_cut(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| {
            let connection = &mut *tls.borrow_mut();
            connection.process_new_packets().is_ok_and(|state| !state.peer_has_closed())
        })
    }

    /// Whether something encrypted waits for the socket.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.borrow().wants_write())
    }

    /// Writes what waits in encrypted form, as much as goes out now.
    ///
    /// # Errors
    ///
    /// Those of the socket; that it takes no more is none.
    pub fn flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| self.push(&mut tls.borrow_mut()))
    }

    /// Appends what has come. Zero means that the peer will send nothing more.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::WouldBlock`] when nothing has come; those of the socket and of TLS.
    pub fn read(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match &self.tls {
            None => {
                buffer.reserve(READ_BYTES);
                let room = buffer.capacity() - buffer.len();
                let read = self.socket.try_read_buf(buffer)?;
                if read < room {
                    // The socket is empty: who reads again waits for news, instead of asking the kernel once more. That it
                    // has ended is never forgotten.
                    let _ =
                        self.socket.try_io(Interest::READABLE, || Err::<(), _>(ErrorKind::WouldBlock.into()));
                }
                Ok(read)
            }
            Some(tls) => self.decrypt(&mut tls.borrow_mut(), buffer),
        }
    }

    /// Reads what has come into a buffer that is there. Zero means that the peer will send nothing more, or that the buffer
    /// has no room.
    ///
    /// # Errors
    ///
    /// Those of [`Stream::read`].
    pub fn read_into(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &self.tls else { return read_all(&self.socket, buffer) };
        let connection = &mut *tls.borrow_mut();
        let mut ended = false;
        loop {
            match connection.reader().read(buffer) {
                // An end with a goodbye, or none at all: see `Stream::was_cut`.
                Ok(0) => return Ok(0),
                Ok(read) => {
                    self.push(connection)?;
                    return Ok(read);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock && !ended => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
            match connection.read_tls(&mut Socket(&self.socket)) {
                Ok(came) => {
                    ended = came == 0;
                    self.process(connection)?;
                }
                Err(error) => {
                    self.push(connection)?;
                    return Err(error);
                }
            }
        }
    }

    fn decrypt(&self, connection: &mut Connection, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let before = buffer.len();
        // What came together with the end of the handshake.
        let mut ended = take_plain(connection, buffer)?;
        while !ended && buffer.len() - before < READ_BYTES {
            let came = match connection.read_tls(&mut Socket(&self.socket)) {
                Ok(came) => came,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // What has come before is worth having; the error shows again.
                Err(_) if buffer.len() > before => break,
                Err(error) => return Err(error),
            };
            self.process(connection)?;
            // An end without a goodbye is as good here: messages say how long they are (RFC 7858 §3.3).
            ended = take_plain(connection, buffer)? || came == 0;
            if came < TLS_READ_BYTES {
                break;
            }
        }
        // Tickets, new keys, a goodbye.
        self.push(connection)?;
        match buffer.len() - before {
            0 if ended => Ok(0),
            0 => Err(ErrorKind::WouldBlock.into()),
            read => Ok(read),
        }
    }

    /// Looks at the records that have come; what is wrong with them is told to the peer.
    fn process(&self, connection: &mut Connection) -> io::Result<()> {
        connection.process_new_packets().map(drop).map_err(|error| {
            // It may be gone already.
            let _ = self.push(connection);
            io::Error::new(ErrorKind::InvalidData, error)
        })
    }

    /// Writes records, as many as go out now.
    fn push(&self, connection: &mut Connection) -> io::Result<()> {
        while connection.wants_write() {
            match connection.write_tls(&mut Socket(&self.socket)) {
                Ok(taken) => self.sent.set(self.sent.get() + taken as u64),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(mut tls) = self.tls.take()
            && !tls.get_mut().is_handshaking()
        {
            // Says goodbye (RFC 8446 §6.1), if the socket takes it now.
            tls.get_mut().send_close_notify();
            let _ = self.push(tls.get_mut());
        }
    }
}

/// Reads what has come. Who gets less than there is room for has emptied the socket: it counts as not ready from then on, so
/// that who reads again waits for news, instead of asking the kernel once more. That it has ended is never forgotten.
fn read_all(socket: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    // Told within the read: what comes after it is news, whoever hears of it, and on which thread.
    let result = socket.try_io(Interest::READABLE, || {
        read = (&*SockRef::from(socket)).read(buffer)?;
        if read > 0 && read < buffer.len() { Err(ErrorKind::WouldBlock.into()) } else { Ok(read) }
    });
    if read > 0 { Ok(read) } else { result }
}

/// Whether nothing has come that somebody could read, nor an end.
fn is_drained(connection: &mut Connection) -> bool {
    connection
        .process_new_packets()
        .is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed())
}

/// A stream as libraries want it, which read and write when their task is polled.
#[derive(Debug)]
pub struct PolledStream(Stream);

impl PolledStream {
    /// Makes one.
    pub const fn new(stream: Stream) -> Self {
        Self(stream)
    }

    /// Returns the stream.
    pub const fn stream(&self) -> &Stream {
        &self.0
    }
}

impl AsyncRead for PolledStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.0.read_into(out.initialize_unfilled()) {
                Ok(read) => {
                    out.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.0.poll_read_ready(cx))?,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for PolledStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.0.poll_write_ready(cx))?,
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.0.write_vectored(pieces) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready!(self.0.poll_write_ready(cx))?,
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            self.0.flush()?;
            if !self.0.wants_write() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.0.poll_write_ready(cx))?;
        }
    }

    /// Says that nothing more will be written.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        match self.0.end_writing() {
            // Who has gone needs no goodbye.
            Err(error) if error.kind() == ErrorKind::NotConnected => Poll::Ready(Ok(())),
            ended => Poll::Ready(ended),
        }
    }
}

/// Takes what has been decrypted. Returns whether the peer has said goodbye.
fn take_plain(connection: &mut Connection, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let state =
        connection.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    let (start, length) = (buffer.len(), state.plaintext_bytes_to_read());
    if length > 0 {
        buffer.resize(start + length, 0);
        connection.reader().read_exact(&mut buffer[start..])?;
    }
    Ok(state.peer_has_closed())
}

/// A socket as rustls wants it.
struct Socket<'a>(&'a TcpStream);

impl Read for Socket<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // It stays ready after a short read, too: what has been decrypted is waited for by the socket's readiness.
        self.0.try_read(buffer)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(pieces)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

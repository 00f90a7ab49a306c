//! Connections to upstreams: dialled when the forwarder says so, read until they end.

use std::io;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use forebay::blame::cause_of;
use forebay::datagram::DatagramSocket;
use forebay::stream::Stream;
use forebay::sys::{self, TcpOptions, UdpOptions};
use forebay::tls::remedy;
use forebay_core::{Cause, Instant, SlotId};
use forebay_dns_core::forwarder::Carrier;
use rustls::{ClientConnection, HandshakeKind};
use tokio::io::{Interest, Ready};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Notify;

use crate::bootstrap::connect_any;
use crate::client::Frames;
use crate::doh;
use crate::mail::{LinkIo, LinkOut, StreamOut};
use crate::settings::Transport;
use crate::worker::{Shell, State};

/// Receive buffer of an upstream socket, in bytes: answers to all the queries that fit on one.
const UDP_BUFFER_BYTES: usize = 1 << 20;

/// Tells the shell, when a connection's task is gone and its socket with it, that it is closed.
struct Ended {
    shell: Weak<Shell>,
    slot: SlotId,
}

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(shell) = self.shell.upgrade() {
            shell.link_ended(self.slot);
        }
    }
}

/// Makes a connection: a datagram socket at once, a stream in a task of its own.
pub(crate) fn dial(
    shell: &Rc<Shell>,
    state: &mut State,
    now: Instant,
    slot: SlotId,
    endpoint: u16,
    carrier: Carrier,
    timeout: Duration,
) {
    let ended = Ended { shell: Rc::downgrade(shell), slot };
    match carrier {
        Carrier::Datagram => {
            let unknown = || io::Error::from(io::ErrorKind::NetworkUnreachable);
            let remote = shell.directory.address(endpoint).ok_or_else(unknown);
            let result = remote.and_then(open_datagram).map(|socket| {
                if shell.config.safety.cookies
                    && let Ok(local) = socket.socket().local_addr()
                {
                    state.forwarder.note_local(slot, local.ip());
                }
                let reader = read_datagrams(ended, Rc::clone(shell), slot, Rc::clone(&socket));
                let task = tokio::task::spawn_local(reader).abort_handle();
                state.mail.links.insert(slot, task, LinkIo::Datagram(socket));
            });
            let result = result.map(|()| u32::MAX).map_err(|error| cause_of(&error));
            state.forwarder.handle_dialed(now, slot, result, &mut state.mail);
        }
        Carrier::Stream => {
            let task = tokio::task::spawn_local(run_stream(ended, Rc::clone(shell), slot, endpoint, timeout));
            state.mail.links.insert(slot, task.abort_handle(), LinkIo::Dialing);
        }
    }
}

fn open_datagram(remote: SocketAddr) -> io::Result<Rc<DatagramSocket>> {
    let options = UdpOptions { recv_buffer_bytes: Some(UDP_BUFFER_BYTES), ..UdpOptions::default() };
    let socket = sys::udp_connected(remote, None, &options)?;
    Ok(Rc::new(DatagramSocket::new(socket)?))
}

async fn read_datagrams(_ended: Ended, shell: Rc<Shell>, slot: SlotId, socket: Rc<DatagramSocket>) {
    loop {
        // What ICMP says of a query comes as an error without anything to read.
        let ready = socket.ready().await;
        let Some(mut batch) = shell.state.borrow_mut().batch.take() else { continue };
        let error_ready = ready.as_ref().is_ok_and(|ready: &Ready| ready.is_error());
        let mut failure = ready.err();
        let room = batch.capacity();
        while failure.is_none() {
            match socket.read(room, |socket| batch.recv(socket)) {
                Ok(came) => {
                    let now = sys::now();
                    let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
                    for (bytes, _) in batch.payloads() {
                        forwarder.handle_answer(now, slot, bytes, mail);
                    }
                    if came < room {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => failure = Some(error),
            }
        }
        if error_ready && failure.is_none() {
            failure = socket.take_error();
        }
        shell.state.borrow_mut().batch = Some(batch);
        if let Some(error) = failure {
            shell.state.borrow_mut().mail.broken.push((slot, cause_of(&error)));
            shell.settle();
            return;
        }
        shell.settle();
    }
}

async fn run_stream(_ended: Ended, shell: Rc<Shell>, slot: SlotId, endpoint: u16, timeout: Duration) {
    let dialed = match tokio::time::timeout(timeout, connect(&shell, endpoint, timeout)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(cause_of(&error)),
        // Without an address there was nobody to be late.
        Err(_) if shell.directory.is_looking(endpoint) => Err(Cause::Route),
        Err(_) => Err(Cause::Timeout),
    };
    if shell.config.upstreams()[usize::from(endpoint)].transport == Transport::Https {
        return doh::link::run(&shell, slot, endpoint, dialed).await;
    }
    let dialed = dialed.map(Rc::new);
    let wake = Rc::new(Notify::new());
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        match (&dialed, mail.links.get_mut(slot)) {
            (Ok(stream), Some(link)) => {
                let out = StreamOut::new(Rc::clone(stream), Rc::clone(&wake));
                link.io = LinkIo::Stream(if stream.is_encrypted() { out.apart() } else { out });
            }
            (Err(_), _) => drop(mail.links.remove(slot)),
            (Ok(_), None) => {}
        }
        forwarder.handle_dialed(
            sys::now(),
            slot,
            dialed.as_ref().map(|_| u32::MAX).map_err(|cause| *cause),
            mail,
        );
    }
    shell.settle();
    let Ok(stream) = dialed else { return };
    let cause = carry(&shell, slot, &stream, &wake).await;
    end(&shell, slot, cause);
}

/// Tells that a connection is over, unless that is known already.
pub(crate) fn end(shell: &Rc<Shell>, slot: SlotId, cause: Option<Cause>) {
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        if mail.links.remove(slot).is_some() {
            forwarder.handle_closed(sys::now(), slot, cause, mail);
        }
    }
    shell.settle();
}

/// Connects to the first address that lets it. A failure after that lets the next dial begin with another.
async fn connect(shell: &Shell, endpoint: u16, limit: Duration) -> io::Result<Stream> {
    let end = tokio::time::Instant::now() + limit;
    let addresses = shell.directory.addresses(endpoint).await;
    let (passed, socket) = connect_any(&addresses, end, connect_tcp).await;
    shell.directory.turn(endpoint, passed % addresses.len().max(1));
    let mut turn = TurnOnFailure { shell, endpoint, failed: socket.is_ok() };
    let stream = shake(shell, endpoint, socket?).await?;
    turn.failed = false;
    Ok(stream)
}

/// Lets the next dial begin with another address if this one is given up half-way.
struct TurnOnFailure<'a> {
    shell: &'a Shell,
    endpoint: u16,
    failed: bool,
}

impl Drop for TurnOnFailure<'_> {
    fn drop(&mut self) {
        if self.failed {
            self.shell.directory.turn(self.endpoint, 1);
        }
    }
}

async fn shake(shell: &Shell, endpoint: u16, socket: TcpStream) -> io::Result<Stream> {
    let upstream = &shell.config.upstreams()[usize::from(endpoint)];
    let Some(target) = shell.config.trust.target(upstream) else { return Ok(Stream::plain(socket)) };
    let connection = ClientConnection::new(Arc::clone(&target.config), target.name.clone());
    let stream = Stream::encrypted(socket, connection.map_err(io::Error::other)?);
    let result = stream.handshake().await;
    note_handshake(shell, endpoint, &result);
    result.map(|_| stream)
}

async fn connect_tcp(remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = sys::tcp_socket(remote, None, &TcpOptions::default())?;
    TcpSocket::from_std_stream(socket).connect(remote).await
}

/// Counts a handshake with an upstream. One that the upstream's certificate spoils is told in the log, with what can be
/// done: nothing else says more than that TLS failed.
fn note_handshake(shell: &Shell, endpoint: u16, result: &io::Result<Option<HandshakeKind>>) {
    let mut counts = shell.upstream_handshakes.get();
    match result {
        Ok(kind) => counts.note(*kind),
        Err(error) => {
            counts.failed += 1;
            let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
            if let Some(inner) = inner
                && shell.may_complain(endpoint, inner)
            {
                let upstream = &shell.config.upstreams()[usize::from(endpoint)];
                tracing::warn!(%upstream, reason = %inner, remedy = remedy(inner), "TLS with an upstream failed");
            }
        }
    }
    shell.upstream_handshakes.set(counts);
}

/// Reads answers, and writes what could not be written at once, until the connection ends. Returns why; `None` when
/// the upstream closed it.
async fn carry(shell: &Rc<Shell>, slot: SlotId, stream: &Stream, wake: &Notify) -> Option<Cause> {
    let mut frames = Frames::new();
    loop {
        let interest =
            if waits(shell, slot) { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        let ready = tokio::select! {
            ready = stream.ready(interest) => ready,
            () = wake.notified() => continue,
        };
        match ready {
            Ok(ready) if ready.is_writable() => {
                let mut state = shell.state.borrow_mut();
                if let Some(LinkOut { io: LinkIo::Stream(out), .. }) = state.mail.links.get_mut(slot)
                    && let Err(error) = out.flush()
                {
                    return Some(cause_of(&error));
                }
            }
            Ok(_) => {}
            Err(error) => return Some(cause_of(&error)),
        }
        match frames.read(stream) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Some(cause_of(&error)),
        }
        {
            let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
            let now = sys::now();
            while let Some(message) = frames.next() {
                forwarder.handle_answer(now, slot, message, mail);
            }
        }
        shell.settle();
    }
}

fn waits(shell: &Shell, slot: SlotId) -> bool {
    match shell.state.borrow_mut().mail.links.get_mut(slot) {
        Some(LinkOut { io: LinkIo::Stream(out), .. }) => out.waits(),
        _ => false,
    }
}

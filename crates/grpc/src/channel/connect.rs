//! Connections of HTTP/2 to the servers of a channel.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use forebay::dial::{Identity, Roots, Route, SocketEndpoint, Tls, TlsEndpoint, Transport};
use forebay::http2::{Carrying, Counted, Heard, Keepalive, Load};
use forebay::stream::Stream;
use forebay::sys::TcpOptions;
use forebay::{Cause, Connector, Dial, DialError, Reporter};
use h2::Reason;
use h2::client::SendRequest;
use rustls::pki_types::ServerName;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::timeout;

use super::health::Watches;
use super::origin::{Origin, Peer};
use super::state::{Dialing, Watched};

/// The protocol that a server of gRPC must choose (RFC 9113 §3.2).
const ALPN: &[u8] = b"h2";

/// RFC 9113 §6.9.1.
const WINDOW_MAX: u32 = (1 << 31) - 1;

/// Streams that were cancelled and of which frames may still come: that many are remembered, so that those frames are not
/// taken for errors.
const RESET_STREAMS_REMEMBERED: usize = 4096;

/// Of a server that refuses one of so few calls nothing is learnt: it has other reasons.
const LEARNT_MIN: u32 = 4;

/// Bytes that wait to be written to one stream.
const SEND_BUFFER_BYTES: usize = 64 << 10;

/// How connections are made.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    pub(super) stream_window: u32,
    pub(super) streams_max: u32,
    pub(super) header_list_bytes: u32,
    pub(super) max_frame_bytes: u32,
    pub(super) keepalive: Option<Keepalive>,
    pub(super) tcp: TcpOptions,
    pub(super) roots: Option<Roots>,
    pub(super) identity: Option<Identity>,
    /// Instead of the name of the host.
    pub(super) server_name: Option<ServerName<'static>>,
}

/// A connection to a server. Its bytes are read and written by a task of its own.
#[derive(Debug)]
pub(super) struct Conn {
    requests: SendRequest<Bytes>,
    load: Arc<Load>,
    origin: Arc<Origin>,
    peer: Peer,
    reporter: Reporter,
    /// Whether its end has been told already: one broken connection is one failure, however many calls were on it.
    is_blamed: AtomicBool,
    /// Dropped with the connection.
    _alive: oneshot::Sender<()>,
}

impl Conn {
    pub(super) fn requests(&self) -> SendRequest<Bytes> {
        self.requests.clone()
    }

    pub(super) fn count(&self) -> Counted {
        Counted::new(&self.load)
    }

    pub(super) fn load(&self) -> &Arc<Load> {
        &self.load
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(super) const fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Keeps calls away from it; those on it go on.
    pub(super) fn leave(&self) {
        self.reporter.goodbye();
    }

    /// The server refused a stream, though it had not said that it would: it takes fewer than there are now. How many of
    /// those will be refused, too, is not known yet, so a quarter less is tried.
    pub(super) fn note_refused(&self) {
        let now = self.load.in_flight();
        if now >= LEARNT_MIN {
            self.reporter.capacity(now - now / 4);
        }
    }

    /// Whether this is the first who tells of its end.
    pub(super) fn blame(&self) -> bool {
        !self.is_blamed.swap(true, Ordering::Relaxed)
    }
}

/// Dials the servers of a channel.
#[derive(Debug)]
pub(super) struct GrpcConnector {
    manner: Manner,
    tls: Tls,
    builder: h2::client::Builder,
    watched: Arc<Watched>,
    watches: Arc<Watches>,
    /// Servers that found pings too many, and how often they may be sent to them.
    patience: Arc<Mutex<HashMap<Peer, Duration>>>,
    /// Told when names should be looked up again.
    lost: Arc<Notify>,
    /// How many connections their servers have sent away.
    goaways: Arc<AtomicU64>,
    /// Becomes true when all connections are to end, whatever is on them.
    cut: watch::Receiver<bool>,
}

impl GrpcConnector {
    pub(super) fn new(
        manner: Manner,
        watches: Arc<Watches>,
        watched: Arc<Watched>,
        lost: Arc<Notify>,
        goaways: Arc<AtomicU64>,
        cut: watch::Receiver<bool>,
    ) -> Self {
        let mut builder = h2::client::Builder::new();
        // A call whose answer nobody reads must not stand in the way of others: there is room for all of them.
        let all = manner.stream_window.saturating_mul(manner.streams_max.max(1)).min(WINDOW_MAX);
        builder
            .enable_push(false)
            // The peer says how many it takes: it is waited for.
            .initial_max_send_streams(0)
            .initial_window_size(manner.stream_window)
            .initial_connection_window_size(all)
            .max_frame_size(manner.max_frame_bytes)
            .max_header_list_size(manner.header_list_bytes)
            .max_concurrent_reset_streams(RESET_STREAMS_REMEMBERED)
            // Calls that are cancelled are no errors, and end no connection.
            .max_local_error_reset_streams(None)
            .max_send_buffer_size(SEND_BUFFER_BYTES);
        Self {
            tls: Tls::new(manner.tcp.clone()),
            manner,
            builder,
            watched,
            watches,
            patience: Arc::default(),
            lost,
            goaways,
            cut,
        }
    }

    async fn open(&self, peer: &Peer, limit: Duration) -> Result<Stream, DialError> {
        const TLS: &str = "TLS handshake";
        let socket = SocketEndpoint::from(peer.address);
        if !peer.origin.is_secure() {
            return self.tls.open_plain(&socket, limit).await;
        }
        let invalid = |why: &str| DialError::new(Cause::Internal, TLS).with_source(why.to_owned());
        let roots = self.manner.roots.clone().ok_or_else(|| invalid("no roots to trust"))?;
        let name = match &self.manner.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(peer.origin.host().to_owned())
                .map_err(|_| invalid("the host is no name of TLS"))?,
        };
        let identity = self.manner.identity.clone();
        let endpoint = TlsEndpoint { socket, name, roots, alpn: vec![ALPN.to_vec()], identity };
        let stream = self.tls.open(endpoint, limit).await?;
        if !stream.speaks(ALPN) {
            return Err(DialError::new(Cause::Protocol, TLS).with_source("it does not speak HTTP/2"));
        }
        Ok(stream)
    }

    /// How often a server may be asked for a sign of life.
    fn keepalive(&self, peer: &Peer) -> Option<Keepalive> {
        let keepalive = self.manner.keepalive?;
        let patience = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let interval = patience.get(peer).copied().unwrap_or(keepalive.interval);
        Some(Keepalive { interval, ..keepalive })
    }

    /// Makes a connection; `is_for_calls` if the channel's state is to show it.
    pub(super) async fn dial(&self, dial: &Dial<Peer>, is_for_calls: bool) -> Result<Conn, DialError> {
        const HANDSHAKE: &str = "HTTP/2 handshake";
        let peer = &dial.endpoint;
        let dialing = is_for_calls.then(|| self.watched.dial());
        let stream = self.open(peer, dial.timeout).await?;
        let load = Arc::new(Load::default());
        let failed = |error: h2::Error| DialError::new(Cause::Protocol, HANDSHAKE).with_source(error);
        let (requests, mut connection) =
            self.builder.handshake(Heard::new(stream, &load)).await.map_err(failed)?;
        let settled = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(Ok(())) => {
                Poll::Ready(Err(DialError::new(Cause::Reset, HANDSHAKE).with_source("it closed")))
            }
            Poll::Ready(Err(error)) if error.is_io() => {
                Poll::Ready(Err(DialError::new(Cause::Reset, HANDSHAKE).with_source(error)))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(failed(error))),
            Poll::Pending if requests.current_max_send_streams() > 0 => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        timeout(dial.timeout, settled).await.unwrap_or_else(|_| {
            Err(DialError::new(Cause::Timeout, HANDSHAKE)
                .with_source("it did not say how many calls it takes"))
        })?;
        let (alive, end) = oneshot::channel();
        let capacity = requests.current_max_send_streams();
        let carrying =
            Carrying::new(connection, requests.clone(), dial.reporter.clone(), capacity, Arc::clone(&load));
        let ready = dialing.map(Dialing::succeed);
        let (lost, goaways, patience) =
            (Arc::clone(&self.lost), Arc::clone(&self.goaways), Arc::clone(&self.patience));
        let (keepalive, who) = (self.keepalive(peer), peer.clone());
        let (mut cut, reporter) = (self.cut.clone(), dial.reporter.clone());
        tokio::spawn(async move {
            let goaway = tokio::select! {
                goaway = carrying.run(end, keepalive) => goaway,
                Ok(_) = cut.wait_for(|cut| *cut) => {
                    reporter.closed();
                    None
                }
            };
            drop(ready);
            goaways.fetch_add(u64::from(goaway.is_some()), Ordering::Relaxed);
            if let (Some(Reason::ENHANCE_YOUR_CALM), Some(keepalive)) = (goaway, keepalive) {
                let mut patience = patience.lock().unwrap_or_else(PoisonError::into_inner);
                patience.insert(who, keepalive.interval.saturating_mul(2));
            }
            lost.notify_one();
        });
        Ok(Conn {
            requests,
            load,
            origin: Arc::clone(&peer.origin),
            peer: peer.clone(),
            reporter: dial.reporter.clone(),
            is_blamed: AtomicBool::new(false),
            _alive: alive,
        })
    }
}

impl Connector for GrpcConnector {
    type Conn = Conn;
    type Endpoint = Peer;

    async fn connect(&self, dial: Dial<Peer>) -> Result<Conn, DialError> {
        let result = self.dial(&dial, true).await;
        if result.is_err() {
            self.lost.notify_one();
        }
        result
    }

    fn capacity(&self, conn: &Conn) -> u32 {
        u32::try_from(conn.requests.current_max_send_streams()).unwrap_or(u32::MAX)
    }

    /// What the server's health service has said last; it is watched.
    async fn probe(&self, dial: Dial<Peer>) -> Result<(), DialError> {
        self.watches.look(self, dial).await
    }

    fn route(&self, endpoint: &Peer) -> Option<Route> {
        Some(Route { transport: Transport::Tcp, local: None, remote: endpoint.address })
    }
}

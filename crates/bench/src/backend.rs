//! Scripted TCP and HTTP/1.1 backends: to be balanced over, reused, refused, cut off and lied to by.
//!
//! A [`Backend`] has a thread and a port of its own, and counts what it sees. Every connection has a number, from 1 in
//! the order in which they were accepted, and says it: whoever sees one number twice has been given one connection
//! twice.
//!
//! ```
//! use forebay_bench::backend::{Backend, Serve};
//! use std::io::{Read, Write};
//!
//! let backend = Backend::builder().serve(Serve::Stamp).spawn()?;
//! let mut stream = std::net::TcpStream::connect(backend.addr())?;
//! stream.write_all(b"hello\n")?;
//! let mut answer = [0; 10];
//! stream.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"1 hello 1\n");
//! # Ok::<_, std::io::Error>(())
//! ```
//!
//! What [`Serve::Http`] answers is chosen by the request's path: see [`http`].

mod fill;
pub mod http;
mod http2;
mod tcp;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay::sys::{TcpListenerOptions, TcpOptions, process, socket, tcp_listener};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use self::http::Step;

/// What a backend does with its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Serve {
    /// Sends back what it gets, and ends when its client has ended.
    #[default]
    Echo,
    /// Answers each line with the connection's number before and after it: `7 hello 7`.
    Stamp,
    /// Says `7` and a line's end as soon as it has accepted, then serves as [`Serve::Stamp`] does.
    StampFirst,
    /// Says this as soon as it has accepted (SMTP, SSH, MySQL do), then echoes.
    Greet(Vec<u8>),
    /// Reads and says nothing; ends when its client has ended.
    Swallow,
    /// Never reads, never writes, never closes.
    Hang,
    /// Sends so many bytes and ends, whatever it gets.
    Source(u64),
    /// Closes at once, with a reset.
    Reset,
    /// HTTP/1.1, answering as the path says.
    Http,
    /// HTTP/2 (over TLS with `h2` in the configuration's ALPN protocols), 100 streams at once at most. Answers 200 with
    /// `backend-connection` and `backend-request`; `/size/N`, `/trailers/N`, `/echo`, `/status/CODE`, `/delay/MS` and
    /// `/hang` are as in [`http`], `/short/N` ends its stream with a reset, `/reset` and `/refuse` (REFUSED_STREAM) do so
    /// at once, and `/goaway` is the connection's last.
    Http2,
}

/// What a backend has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections accepted.
    pub connections: u64,
    /// Connections that are open.
    pub connections_open: u64,
    /// The most that were open at once.
    pub connections_open_max: u64,
    /// Requests of HTTP, lines of [`Serve::Stamp`].
    pub requests: u64,
    /// Bytes read, without those of TLS.
    pub bytes_read: u64,
    /// Handshakes of TLS that failed, connections that ended with an error.
    pub errors: u64,
}

/// A running backend. Dropping it closes its listener and its connections.
#[derive(Debug)]
pub struct Backend {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Begins to describe a backend.
    pub fn builder() -> Builder {
        Builder {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            serve: Serve::default(),
            first_byte_after: Duration::ZERO,
            tls: None,
            answers: HashMap::new(),
            backlog: TcpListenerOptions::default().backlog,
            pin: None,
        }
    }

    /// Starts a backend on a free port of 127.0.0.1.
    ///
    /// # Panics
    ///
    /// When this machine has no port, descriptor or thread left.
    pub fn spawn(serve: Serve) -> Self {
        Self::builder().serve(serve).spawn().expect("a backend can be started")
    }

    /// Returns where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns what it has seen so far.
    pub fn stats(&self) -> Stats {
        self.shared.counters.stats()
    }

    /// Returns how many requests each connection has carried, in the order in which they were accepted.
    pub fn requests_per_connection(&self) -> Vec<u64> {
        self.shared.per_connection().clone()
    }

    /// Stops (`false`) or begins again (`true`) to accept. Meanwhile connections are made by the kernel, up to the
    /// backlog, and hear nothing.
    pub fn accept(&self, accepts: bool) {
        self.shared.deaf.store(!accepts, Relaxed);
        self.shared.changed.notify_waiters();
    }

    /// Closes all connections that are open, and goes on accepting.
    pub fn close_connections(&self) {
        self.shared.cut.notify_waiters();
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
        self.shared.changed.notify_waiters();
        // A permit for a thread that is about to wait.
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; a second one here would hide it.
            let _ = thread.join();
        }
    }
}

/// Describes a backend.
#[derive(Clone, Debug)]
pub struct Builder {
    listen: SocketAddr,
    serve: Serve,
    first_byte_after: Duration,
    tls: Option<Arc<ServerConfig>>,
    answers: HashMap<String, Vec<Step>>,
    backlog: u16,
    pin: Option<usize>,
}

impl Builder {
    /// Sets where to listen. Default: a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Sets what to do. Default: [`Serve::Echo`].
    #[must_use]
    pub fn serve(mut self, serve: Serve) -> Self {
        self.serve = serve;
        self
    }

    /// Sets for how long each new connection is neither read from nor written to. Default: zero.
    ///
    /// On loopback a handshake takes no time. This stands in for a peer that is so far away, as seen by who waits for
    /// its first byte: a connection that was made so long before it is needed answers at once, another one does not.
    /// What it does not show is the time in `connect(2)` itself. Rounded up to whole milliseconds.
    #[must_use]
    pub fn first_byte_after(mut self, span: Duration) -> Self {
        self.first_byte_after = span;
        self
    }

    /// Speaks TLS. Default: no.
    #[must_use]
    pub fn tls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Answers requests for `path` by these steps ([`Serve::Http`]), before any of the paths that it knows by itself.
    #[must_use]
    pub fn answer(mut self, path: &str, steps: Vec<Step>) -> Self {
        self.answers.insert(path.to_owned(), steps);
        self
    }

    /// Sets how many connections may wait to be accepted. Default: 1024.
    #[must_use]
    pub fn backlog(mut self, backlog: u16) -> Self {
        self.backlog = backlog;
        self
    }

    /// Sets the core that its thread runs on. Default: any.
    #[must_use]
    pub fn pin(mut self, core: usize) -> Self {
        self.pin = Some(core);
        self
    }

    /// Binds the listener and starts.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound, no descriptor or thread is left, or there is no such core.
    pub fn spawn(self) -> io::Result<Backend> {
        let options = TcpListenerOptions { backlog: self.backlog, ..TcpListenerOptions::default() };
        let listener = tcp_listener(self.listen, &options)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            serve: self.serve,
            first_byte_after: self.first_byte_after,
            tls: self.tls.map(TlsAcceptor::from),
            answers: self.answers,
            ..Shared::default()
        });
        let own = Arc::clone(&shared);
        let (ready, started) = std::sync::mpsc::sync_channel::<io::Result<()>>(1);
        let thread = std::thread::Builder::new().name("backend".into()).spawn(move || {
            let start = || {
                self.pin.map_or(Ok(()), process::pin_current_thread)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let entered = runtime.enter();
                let listener = TcpListener::from_std(listener)?;
                drop(entered);
                Ok((runtime, listener))
            };
            match start() {
                Ok((runtime, listener)) => {
                    let _ = ready.send(Ok(()));
                    runtime.block_on(run(listener, own));
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        started.recv().expect("the thread says whether it has started")?;
        Ok(Backend { address, shared, thread: Some(thread) })
    }
}

/// What the handle and the thread share.
#[derive(Default)]
struct Shared {
    serve: Serve,
    first_byte_after: Duration,
    tls: Option<TlsAcceptor>,
    answers: HashMap<String, Vec<Step>>,
    stop: AtomicBool,
    deaf: AtomicBool,
    changed: Notify,
    cut: Notify,
    counters: Counters,
    per_connection: Mutex<Vec<u64>>,
    /// How often each path was asked for that does something only the first few times.
    asked: Mutex<HashMap<String, u64>>,
}

impl Shared {
    fn per_connection(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.per_connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request on connection `number`, and returns which request on it this is.
    fn count_request(&self, number: u64) -> u64 {
        self.counters.requests.fetch_add(1, Relaxed);
        let requests = &mut self.per_connection()[number as usize - 1];
        *requests += 1;
        *requests
    }

    /// Returns how often `path` has been asked for, this time included.
    fn count_path(&self, path: &str) -> u64 {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = asked.entry(path.to_owned()).or_default();
        *count += 1;
        *count
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("serve", &self.serve).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    open: AtomicU64,
    open_max: AtomicU64,
    requests: AtomicU64,
    bytes_read: AtomicU64,
    errors: AtomicU64,
}

impl Counters {
    fn stats(&self) -> Stats {
        Stats {
            connections: self.connections.load(Relaxed),
            connections_open: self.open.load(Relaxed),
            connections_open_max: self.open_max.load(Relaxed),
            requests: self.requests.load(Relaxed),
            bytes_read: self.bytes_read.load(Relaxed),
            errors: self.errors.load(Relaxed),
        }
    }
}

async fn run(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let changed = shared.changed.notified();
        if shared.stop.load(Relaxed) {
            return;
        }
        if shared.deaf.load(Relaxed) {
            changed.await;
            continue;
        }
        tokio::select! {
            // First, so that what connects after it was told to go deaf is not accepted all the same.
            biased;
            () = changed => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let number = shared.counters.connections.fetch_add(1, Relaxed) + 1;
                    shared.per_connection().push(0);
                    let open = shared.counters.open.fetch_add(1, Relaxed) + 1;
                    shared.counters.open_max.fetch_max(open, Relaxed);
                    tokio::spawn(attend(stream, number, Arc::clone(&shared)));
                }
                // No descriptor is left: others may be given back meanwhile.
                Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
    }
}

/// Serves one connection to its end.
async fn attend(stream: TcpStream, number: u64, shared: Arc<Shared>) {
    let cut = shared.cut.notified();
    tokio::select! {
        () = cut => {}
        served = serve(stream, number, &shared) => {
            if served.is_err() {
                shared.counters.errors.fetch_add(1, Relaxed);
            }
        }
    }
    shared.counters.open.fetch_sub(1, Relaxed);
}

async fn serve(stream: TcpStream, number: u64, shared: &Shared) -> io::Result<()> {
    socket::apply_tcp_options(&stream, &TcpOptions::default())?;
    if !shared.first_byte_after.is_zero() {
        tokio::time::sleep(shared.first_byte_after).await;
    }
    match &shared.tls {
        None => {
            let mut connection = Connection { stream, number, shared };
            connection.serve().await.and_then(|end| end.apply(&connection.stream))
        }
        Some(acceptor) => {
            let mut connection = Connection { stream: acceptor.accept(stream).await?, number, shared };
            let end = connection.serve().await?;
            if end == End::Close {
                // The client may have gone already.
                let _ = tokio::io::AsyncWriteExt::shutdown(&mut connection.stream).await;
            }
            end.apply(connection.stream.get_ref().0)
        }
    }
}

/// One connection, plain or TLS.
struct Connection<'a, S> {
    stream: S,
    number: u64,
    shared: &'a Shared,
}

/// How a connection is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Close,
    Reset,
}

impl End {
    fn apply(self, stream: &TcpStream) -> io::Result<()> {
        match self {
            Self::Close => Ok(()),
            // Without lingering, close(2) resets.
            Self::Reset => socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn serve(&mut self) -> io::Result<End> {
        match &self.shared.serve {
            Serve::Echo => self.echo(&[]).await,
            Serve::Greet(greeting) => self.echo(greeting).await,
            Serve::Stamp => self.stamp(false).await,
            Serve::StampFirst => self.stamp(true).await,
            Serve::Swallow => self.swallow().await,
            Serve::Hang => std::future::pending().await,
            Serve::Source(bytes) => self.source(*bytes).await,
            Serve::Reset => Ok(End::Reset),
            Serve::Http => self.http().await,
            Serve::Http2 => self.http2().await,
        }
    }

    fn count_bytes(&self, count: usize) {
        self.shared.counters.bytes_read.fetch_add(count as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests;

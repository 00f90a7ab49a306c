//! The server: services of tonic in, a [`Running`] server out.
//!
//! ```
//! use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
//! use forebay_grpc::{Greeter, Profile, Server, greet};
//!
//! # fn main() -> Result<(), forebay_grpc::server::BuildError> {
//! let server = Server::builder()
//!     .profile(Profile::Main)
//!     .add_service(GreeterServiceServer::new(Greeter::default()))
//!     .health()
//!     .reflection(greet::FILE_DESCRIPTOR_SET)
//!     .listen("127.0.0.1:0")
//!     .build()?;
//! println!("listening on {:?}", server.local_addrs());
//! # Ok(())
//! # }
//! ```
//!
//! # What it is made of
//!
//! Each worker is a thread with a single-threaded runtime, its own listener (`SO_REUSEPORT`) and its own clones of the
//! services; nothing that a call needs is shared between workers. A connection is one task. It reads all that has come,
//! begins every call and asks it once: a unary call whose service does not wait is then over, without a task, a timer or
//! a wake-up, and all answers of a batch leave with one write. What waits stands in a set that the same task looks after.
//!
//! Services are those that tonic generates, with their interceptors, compression and limits. What a service spawns
//! with [`tokio::spawn`] runs on its worker's thread; what computes for long belongs on threads of its own
//! ([`tokio::task::spawn_blocking`]), since everything else on that worker waits for it.
//!
//! # What is refused, and how
//!
//! | what | answer |
//! |---|---|
//! | more calls on a connection than [`ServerSettings::calls_per_connection`] | RESOURCE_EXHAUSTED at once; nothing is queued |
//! | more streams than [`ServerSettings::streams_max`] | REFUSED_STREAM: clients may try again elsewhere |
//! | a call that takes longer than [`ServerSettings::call_timeout`] or its `grpc-timeout` | DEADLINE_EXCEEDED |
//! | a message longer than [`ServerSettings::request_message_bytes_max`] | RESOURCE_EXHAUSTED, before there is room made for it |
//! | an unknown service or method | UNIMPLEMENTED |
//! | another content type than `application/grpc…` | 415 of HTTP |
//! | too many pings, or calls that are begun and broken off | GOAWAY with ENHANCE_YOUR_CALM |
//! | a service that panics | INTERNAL, for that call alone |
//!
//! # How connections end
//!
//! Nothing lives for ever: a connection that is idle or old is told goodbye (GOAWAY), and calls on it may end in time; one
//! whose client gives no sign of life, or takes nothing of what is sent, is cut. [`Running::drain`] says goodbye to all,
//! says NOT_SERVING by the health service, and ends when the last call has, or its time is up. h2 cannot send the words
//! `too_many_pings` with a GOAWAY, by which some clients ping less from then on; its code says the same.

mod bell;
mod bind;
mod body;
mod call;
mod connection;
mod frames;
mod head;
mod io;
mod life;
mod messages;
mod pings;
mod services;
mod settings;
mod stats;
mod worker;

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use forebay::places::Places;
use forebay::settings::{SettingsError, parse_address};
use forebay::sys;
use forebay::tls::Certificates;
use futures_util::FutureExt;
use http::{Request, Response};
use tokio::sync::{oneshot, watch};
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};
use tower_service::Service;

pub use self::body::RequestBody;
use self::services::{Services, Tower};
pub use self::settings::{Profile, ServerSettings};
pub use self::stats::{Kind, ServerFigures};
use self::worker::{Phase, Seed, Started};

/// The port that is meant when an address names none.
const PORT: u16 = 50051;

/// Makes servers.
#[derive(Debug)]
pub struct Server;

impl Server {
    /// Begins to make one.
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            settings: ServerSettings::default(),
            services: Services::default(),
            health: None,
            descriptors: Vec::new(),
            tls: None,
            listen: Vec::new(),
        }
    }
}

/// A server that is not running yet.
#[derive(Debug)]
pub struct Builder {
    settings: ServerSettings,
    services: Services,
    health: Option<HealthReporter>,
    descriptors: Vec<&'static [u8]>,
    tls: Option<(PathBuf, PathBuf)>,
    listen: Vec<String>,
}

/// Who has sent a request: an extension of it, if [`ServerSettings::peer_info`] says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The client's address.
    pub address: SocketAddr,
    /// Whether nobody on the way can read what it says.
    pub is_encrypted: bool,
}

impl Builder {
    /// Takes all settings of a profile.
    #[must_use]
    pub fn profile(self, profile: Profile) -> Self {
        self.settings(profile.settings())
    }

    /// Takes all settings at once.
    #[must_use]
    pub fn settings(mut self, settings: ServerSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Changes single settings: `.with(|settings| settings.workers = 1)`.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut ServerSettings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Adds a service as tonic generates it, in the place of one that has the same name.
    #[must_use]
    pub fn add_service<S>(mut self, service: S) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<tonic::body::Body>, Error = Infallible>
            + NamedService
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        self.services.add(S::NAME, Box::new(Tower(service)));
        self
    }

    /// Sets what is asked for services that were not added; `tonic::service::Routes` is one. Without it such calls end
    /// with UNIMPLEMENTED.
    #[must_use]
    pub fn fallback<S>(mut self, service: S) -> Self
    where
        S: Service<Request<RequestBody>, Response = Response<tonic::body::Body>, Error = Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send + 'static,
    {
        self.services.set_fallback(Box::new(Tower(service)));
        self
    }

    /// Adds the service of health (`grpc.health.v1.Health`): SERVING for every service and for the server, NOT_SERVING
    /// once it is drained.
    #[must_use]
    pub fn health(self) -> Self {
        self.health_by(HealthReporter::new())
    }

    /// The same, told by a reporter that somebody else may tell things too.
    #[must_use]
    pub fn health_by(mut self, reporter: HealthReporter) -> Self {
        self.health = Some(reporter);
        self
    }

    /// Adds the services of reflection (v1 and v1alpha), which describe what is in an encoded `FileDescriptorSet`. To be
    /// repeated for more.
    #[must_use]
    pub fn reflection(mut self, descriptors: &'static [u8]) -> Self {
        self.descriptors.push(descriptors);
        self
    }

    /// Speaks TLS, with a certificate and its key in PEM; files that change are read again.
    #[must_use]
    pub fn tls(mut self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.tls = Some((certificate.as_ref().into(), key.as_ref().into()));
        self
    }

    /// Listens on an address: `127.0.0.1:50051`, `[::1]`, `:50051` for all of IPv4; port 0 is any. To be repeated for
    /// more; without any it is `127.0.0.1:50051`.
    #[must_use]
    pub fn listen(mut self, address: impl Into<String>) -> Self {
        self.listen.push(address.into());
        self
    }

    /// Binds, starts the workers, and returns.
    ///
    /// # Errors
    ///
    /// [`BuildError`]: a setting that cannot be, an address that cannot be bound, files of TLS or descriptors that
    /// cannot be used, or a machine that gives no thread or no randomness.
    pub fn build(mut self) -> Result<Running, BuildError> {
        self.settings.check()?;
        let listen = self.addresses()?;
        let certificates = match &self.tls {
            Some((certificate, key)) => {
                Some(Arc::new(Certificates::load(certificate, key).map_err(|fault| SettingsError {
                    key: format!("tls.{}", fault.key),
                    problem: fault.problem,
                })?))
            }
            None => None,
        };
        let tls = certificates.as_ref().map(|certificates| {
            // gRPC is HTTP/2, and says so (RFC 7301).
            forebay::tls::server_config(certificates, &forebay::tls::ALPN_HTTP[..1])
        });
        let tls = tls.transpose().map_err(BuildError::Tls)?;
        self.add_reflection()?;
        self.add_health();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = if self.settings.workers == 0 { cores } else { self.settings.workers };
        let (addresses, listeners) = bind::bind_all(&listen, workers, &self.settings.tcp())?;
        let certificate = certificates.map(watch_certificate).transpose()?;
        let settings = Arc::new(self.settings);
        let places = Arc::new(Places::new(settings.connections_max, settings.connections_per_client));
        let (phase, _) = watch::channel(Phase::Serving);
        // Workers that were started end when an error drops this.
        let mut running = Running {
            addresses,
            phase,
            workers: Vec::new(),
            handle: Handle { workers: Vec::new().into(), expected: workers },
            health: self.health.map(|reporter| (reporter, self.services.names().collect())),
            _certificate: certificate,
        };
        let mut all = Vec::new();
        for (index, listeners) in listeners.into_iter().enumerate() {
            let seed = Seed {
                settings: Arc::clone(&settings),
                services: self.services.clone(),
                tls: tls.clone(),
                places: Arc::clone(&places),
                phase: running.phase.subscribe(),
                listeners,
                random: getrandom::u64().map_err(|_| BuildError::Random)?,
            };
            let (worker, started) = start_worker(index, seed)?;
            running.workers.push(worker);
            all.push(started);
        }
        running.handle.workers = all.into();
        Ok(running)
    }

    fn addresses(&self) -> Result<Vec<SocketAddr>, SettingsError> {
        let default = [format!("127.0.0.1:{PORT}")];
        let listen = if self.listen.is_empty() { &default[..] } else { &self.listen };
        let parse = |text: &String| {
            parse_address(text, PORT).ok_or_else(|| SettingsError {
                key: "listen".to_owned(),
                problem: format!("`{text}` is no address: write ADDRESS:PORT, as in 127.0.0.1:{PORT}"),
            })
        };
        listen.iter().map(parse).collect()
    }

    fn add_reflection(&mut self) -> Result<(), BuildError> {
        if self.descriptors.is_empty() {
            return Ok(());
        }
        let configured = || {
            let mut builder = tonic_reflection::server::Builder::configure();
            if self.health.is_some() {
                builder = builder.register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            }
            self.descriptors
                .iter()
                .fold(builder, |builder, set| builder.register_encoded_file_descriptor_set(set))
        };
        let wrong = |error: tonic_reflection::server::Error| BuildError::Descriptors(error.to_string());
        let (new, old) =
            (configured().build_v1().map_err(wrong)?, configured().build_v1alpha().map_err(wrong)?);
        self.services.add(name_of(&new), Box::new(Tower(new)));
        self.services.add(name_of(&old), Box::new(Tower(old)));
        Ok(())
    }

    fn add_health(&mut self) {
        let Some(reporter) = &self.health else { return };
        for name in self.services.names() {
            report(reporter, name, ServingStatus::Serving);
        }
        report(reporter, "", ServingStatus::Serving);
        let service = HealthServer::new(HealthService::from_health_reporter(reporter.clone()));
        self.services.add(name_of(&service), Box::new(Tower(service)));
    }
}

/// A running server. Dropping it ends it at once, without draining.
#[derive(Debug)]
pub struct Running {
    addresses: Vec<SocketAddr>,
    phase: watch::Sender<Phase>,
    workers: Vec<Thread>,
    handle: Handle,
    /// Whom to tell, and of which services.
    health: Option<(HealthReporter, Vec<&'static str>)>,
    /// While it is there, the files of the certificate are looked after.
    _certificate: Option<std::sync::mpsc::Sender<()>>,
}

#[derive(Debug)]
struct Thread {
    ended: oneshot::Receiver<()>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Returns what it listens on, in the order in which it was asked for; where port 0 was, with the one that was given.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the figures of this moment.
    pub fn figures(&self) -> ServerFigures {
        self.handle.figures()
    }

    /// Returns a handle that can ask for figures from anywhere.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns who tells the service of health, if there is one.
    pub fn health(&self) -> Option<HealthReporter> {
        self.health.as_ref().map(|(reporter, _)| reporter.clone())
    }

    /// Takes no more connections and calls, says so by the service of health and to every client (GOAWAY), lets calls
    /// that are in flight finish, then ends; after `limit` it ends all the same.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the server ends at once.
    pub async fn drain(mut self, limit: Duration) {
        if let Some((reporter, names)) = &self.health {
            names.iter().chain(&[""]).for_each(|name| report(reporter, name, ServingStatus::NotServing));
        }
        self.phase.send_replace(Phase::Draining { until: sys::now() + limit });
        for worker in &mut self.workers {
            // A worker that has ended needs no draining.
            let _ = (&mut worker.ended).await;
        }
    }

    /// Ends at once: what is in flight is lost.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Ended);
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                // A panic was told when it happened.
                let _ = thread.join();
            }
        }
    }
}

/// Asks a running server for its figures, from anywhere.
#[derive(Clone, Debug)]
pub struct Handle {
    workers: Arc<[Started]>,
    expected: usize,
}

impl Handle {
    /// Returns the figures of this moment.
    pub fn figures(&self) -> ServerFigures {
        let mut sum = ServerFigures::default();
        self.workers.iter().for_each(|worker| sum.merge(&worker.figures));
        sum
    }

    /// Returns how many workers there should be.
    pub fn workers_expected(&self) -> usize {
        self.expected
    }

    /// Returns how many workers live.
    pub fn workers(&self) -> usize {
        self.workers.iter().filter(|worker| worker.lives()).count()
    }
}

/// Why a server did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum BuildError {
    /// A setting cannot be.
    Settings(SettingsError),
    /// An address cannot be bound.
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: std::io::Error,
    },
    /// What was given for reflection is no encoded `FileDescriptorSet`.
    Descriptors(String),
    /// TLS has no randomness for its tickets.
    Tls(rustls::Error),
    /// A thread could not be started.
    Thread {
        /// What the system said.
        error: std::io::Error,
    },
    /// The system gave no randomness.
    Random,
}

impl From<SettingsError> for BuildError {
    fn from(error: SettingsError) -> Self {
        Self::Settings(error)
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use std::io::ErrorKind;
        match self {
            Self::Settings(error) => error.fmt(f),
            Self::Bind { address, error } => {
                write!(f, "cannot listen on {address}: ")?;
                match error.kind() {
                    ErrorKind::AddrInUse => f.write_str("another process does; name another address"),
                    ErrorKind::AddrNotAvailable => f.write_str("it is no address of this machine"),
                    ErrorKind::PermissionDenied => {
                        f.write_str("ports below 1024 need the capability CAP_NET_BIND_SERVICE")
                    }
                    _ => error.fmt(f),
                }
            }
            Self::Descriptors(problem) => {
                write!(f, "reflection: {problem}: give an encoded FileDescriptorSet")
            }
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Thread { error } => write!(f, "cannot start a worker: {error}"),
            Self::Random => f.write_str("the system gives no random numbers"),
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Settings(error) => Some(error),
            Self::Bind { error, .. } | Self::Thread { error } => Some(error),
            Self::Tls(error) => Some(error),
            Self::Descriptors(_) | Self::Random => None,
        }
    }
}

fn start_worker(index: usize, seed: Seed) -> Result<(Thread, Started), BuildError> {
    let (ready, started) = std::sync::mpsc::channel();
    let (ending, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name(format!("grpc-{index}"))
        .spawn(move || {
            worker::run(seed, &ready);
            let _ = ending.send(());
        })
        .map_err(|error| BuildError::Thread { error })?;
    let started = started
        .recv()
        .map_err(|_| BuildError::Thread { error: std::io::Error::other("the worker ended while starting") })?
        .map_err(|error| BuildError::Thread { error })?;
    Ok((Thread { ended, thread: Some(thread) }, started))
}

/// Looks after the certificate until the returned end is dropped. Not on a worker: a disk may take its time.
fn watch_certificate(certificates: Arc<Certificates>) -> Result<std::sync::mpsc::Sender<()>, BuildError> {
    let (alive, end) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("grpc-certificate".to_owned())
        .spawn(move || forebay::tls::watch(&certificates, &end))
        .map(|_| alive)
        .map_err(|error| BuildError::Thread { error })
}

/// Tells the service of health. It waits for nothing but others who tell it something.
fn report(reporter: &HealthReporter, name: &str, status: ServingStatus) {
    let mut told = Box::pin(reporter.set_service_status(name, status));
    while told.as_mut().now_or_never().is_none() {
        std::thread::yield_now();
    }
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

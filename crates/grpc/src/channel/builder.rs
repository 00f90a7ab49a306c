//! The settings of a channel, checked once.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use forebay::Pool;
use forebay::dial::{Identity, Machine, Roots};
use forebay::http2::Keepalive;
use forebay::sys::TcpOptions;
use forebay_core::{BackoffConfig, Balance, Config, HealthConfig, IdleOrder};
use http::HeaderValue;
use rustls::pki_types::ServerName;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::budget::Budget;
use super::connect::{GrpcConnector, Manner};
use super::health::Watches;
use super::origin::{Origin, Peer};
use super::resolve::{Keeper, Resolution, Resolve, SystemResolver};
use super::state::Watched;
use super::{Counters, PooledChannel, Shared};

const USER_AGENT: &str = concat!("forebay-grpc/", env!("CARGO_PKG_VERSION"));

/// How often the last word of a health service is read: it costs nothing, and nobody is asked.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

/// Makes a [`PooledChannel`]. Each setting says its default; none has to be touched.
#[must_use = "a builder does nothing until it is built"]
#[derive(Clone)]
pub struct Builder {
    urls: Vec<String>,
    connections_min: u32,
    connections_max: u32,
    streams_soft: u32,
    streams_max: u32,
    waiters_max: u32,
    dials_max: u32,
    connect_timeout: Duration,
    acquire_timeout: Duration,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    age_max: Option<Duration>,
    backoff: BackoffConfig,
    keepalive: Option<Keepalive>,
    tcp: TcpOptions,
    stream_window: u32,
    max_frame_bytes: u32,
    header_list_bytes: u32,
    replay_bytes: usize,
    replay_reserve: u32,
    replay_percent: u32,
    user_agent: String,
    balance: Balance,
    roots: Option<Roots>,
    identity: Option<Identity>,
    server_name: Option<String>,
    resolver: Arc<dyn Resolve>,
    resolve_interval: Duration,
    health_service: Option<String>,
    machine: Option<Arc<Machine>>,
    name: Option<String>,
}

impl Builder {
    pub(super) fn new(url: String) -> Self {
        Self {
            urls: vec![url],
            connections_min: 0,
            connections_max: 8,
            streams_soft: 50,
            streams_max: 100,
            waiters_max: 16_384,
            dials_max: 8,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            timeout: None,
            idle_timeout: Some(Duration::from_secs(300)),
            age_max: Some(Duration::from_secs(1800)),
            backoff: BackoffConfig { base: Duration::from_millis(100), max: Duration::from_secs(30) },
            keepalive: None,
            tcp: TcpOptions { user_timeout: Some(Duration::from_secs(20)), ..TcpOptions::default() },
            stream_window: 2 << 20,
            max_frame_bytes: 16 << 10,
            header_list_bytes: 64 << 10,
            replay_bytes: 64 << 10,
            replay_reserve: 1000,
            replay_percent: 20,
            user_agent: USER_AGENT.to_owned(),
            balance: Balance::P2c,
            roots: None,
            identity: None,
            server_name: None,
            resolver: Arc::new(SystemResolver),
            resolve_interval: Duration::from_secs(30),
            health_service: None,
            machine: None,
            name: None,
        }
    }

    /// Adds another server of the same service. Calls go to the better of two chosen at random.
    pub fn and(mut self, url: impl Into<String>) -> Self {
        self.urls.push(url.into());
        self
    }

    /// Names the channel, for logs and errors. Default: the first URL.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets how many connections to each server are kept without demand. Default: 0, so that the first is made when the
    /// first call comes.
    pub const fn connections_min(mut self, connections: u32) -> Self {
        self.connections_min = connections;
        self
    }

    /// Sets how many connections to each server there may be. Default: 8.
    pub const fn connections_max(mut self, connections: u32) -> Self {
        self.connections_max = connections;
        self
    }

    /// Sets how many calls a connection carries on the average before there is another one. Default: 50.
    pub const fn streams_soft(mut self, streams: u32) -> Self {
        self.streams_soft = streams;
        self
    }

    /// Sets how many calls a connection carries at most; fewer, if the server says so. Default: 100.
    pub const fn streams_max(mut self, streams: u32) -> Self {
        self.streams_max = streams;
        self
    }

    /// Sets how many calls may wait for a connection. Default: 16,384.
    pub const fn waiters_max(mut self, waiters: u32) -> Self {
        self.waiters_max = waiters;
        self
    }

    /// Sets how many connections are made at once. Default: 8.
    pub const fn dials_max(mut self, dials: u32) -> Self {
        self.dials_max = dials;
        self
    }

    /// Sets how long a connection may take to be made, TLS and the server's first words included. Default: 5 s.
    pub const fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long a call without a deadline waits for a connection. Default: 10 s.
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Sets how long a call may take to the end of its response; the server is told. A call that says so itself
    /// (`Request::set_timeout`) has the shorter of both. Default: `None`, for as long as it takes.
    pub const fn timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how long a connection may stand idle. Default: 5 min. `None`: for ever.
    pub const fn idle_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets how old a connection may get. Its successor is made at 80 to 95 % of it (jitter), before it takes no more
    /// calls. Default: 30 min. `None`: any age.
    pub const fn age_max(mut self, age: Option<Duration>) -> Self {
        self.age_max = age;
        self
    }

    /// Sets the longest pause after the first failed dial, and after any. Default: 100 ms and 30 s, with full jitter.
    pub const fn backoff(mut self, base: Duration, max: Duration) -> Self {
        self.backoff = BackoffConfig { base, max };
        self
    }

    /// Sets how connections whose other end is gone are found by pings. Default: `None`; servers of others end connections
    /// that ping more often than they like, and what is sent and not acknowledged for 20 s ends a connection anyway. A
    /// server that says ENHANCE_YOUR_CALM is pinged half as often from then on.
    pub const fn keepalive(mut self, keepalive: Option<Keepalive>) -> Self {
        self.keepalive = keepalive;
        self
    }

    /// Sets the options of sockets. Default: those of [`TcpOptions`], with a `user_timeout` of 20 s.
    pub const fn tcp(mut self, options: TcpOptions) -> Self {
        self.tcp = options;
        self
    }

    /// Sets how many bytes of a response may come before they are read, 64 KiB to 2 GiB. A connection has room for all
    /// its calls, so that a response that nobody reads keeps no other from coming. Default: 2 MiB.
    pub const fn stream_window(mut self, bytes: u32) -> Self {
        self.stream_window = bytes;
        self
    }

    /// Sets how large a frame may be that the server sends, 16 KiB to 16 MiB. Default: 16 KiB.
    pub const fn max_frame_bytes(mut self, bytes: u32) -> Self {
        self.max_frame_bytes = bytes;
        self
    }

    /// Sets how large the metadata of a response may be. Default: 64 KiB.
    pub const fn header_list_bytes(mut self, bytes: u32) -> Self {
        self.header_list_bytes = bytes;
        self
    }

    /// Sets how much of a request is kept so that it can be sent again when no server has looked at it. Default: 64 KiB.
    /// 0: nothing is, and only calls without a message are sent again.
    pub const fn replay_bytes(mut self, bytes: usize) -> Self {
        self.replay_bytes = bytes;
        self
    }

    /// Sets how many calls may be sent again: `reserve` at once, and `percent` of those that are answered. Default: 1000
    /// and 20. A reserve of 0: none.
    pub const fn replays(mut self, reserve: u32, percent: u32) -> Self {
        (self.replay_reserve, self.replay_percent) = (reserve, percent);
        self
    }

    /// Sets what is said of this client to servers. Default: the name of this crate and its version.
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Sets how calls are spread over servers. Default: [`Balance::P2c`].
    pub const fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// Sets whose certificates are believed. Default: those that this machine trusts.
    pub fn roots(mut self, roots: Roots) -> Self {
        self.roots = Some(roots);
        self
    }

    /// Believes certificates that are signed by those in a PEM file, and no others.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or has no certificate in it.
    pub fn ca(self, file: &Path) -> Result<Self, BuildError> {
        let roots =
            Roots::from_pem_file(file).map_err(|error| BuildError { field: "ca", why: error.to_string() })?;
        Ok(self.roots(roots))
    }

    /// Sets the certificate that is shown to servers that ask for one. Default: none.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Sets the name that certificates must be valid for. Default: the host of the URL.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Sets who looks up names. Default: [`SystemResolver`].
    pub fn resolver(mut self, resolver: impl Resolve) -> Self {
        self.resolver = Arc::new(resolver);
        self
    }

    /// Sets how often names are looked up again. They are, too, when connections end or cannot be made, once a second at
    /// most. Default: 30 s.
    pub const fn resolve_interval(mut self, interval: Duration) -> Self {
        self.resolve_interval = interval;
        self
    }

    /// Asks the health service of each server about this service (`""`: about the server), and calls only those that
    /// serve it, unless none does. Default: nobody is asked.
    pub fn health_service(mut self, service: impl Into<String>) -> Self {
        self.health_service = Some(service.into());
        self
    }

    /// Counts connections in a budget of this machine, which pools share. Default: none.
    pub fn budget(mut self, machine: Arc<Machine>) -> Self {
        self.machine = Some(machine);
        self
    }

    fn config(&self) -> Result<Config, BuildError> {
        let wrong = |field, why: String| Err(BuildError { field, why });
        if self.streams_max == 0 {
            return wrong("streams_max", "0; it must be at least 1".to_owned());
        }
        if self.streams_soft == 0 || self.streams_soft > self.streams_max {
            return wrong(
                "streams_soft",
                format!("{}; it must be 1 to streams_max, {}", self.streams_soft, self.streams_max),
            );
        }
        if !(64 << 10..=i32::MAX as u32).contains(&self.stream_window) {
            return wrong("stream_window", format!("{}; it must be 64 KiB to 2 GiB", self.stream_window));
        }
        if !(16 << 10..1 << 24).contains(&self.max_frame_bytes) {
            return wrong(
                "max_frame_bytes",
                format!("{}; it must be 16 KiB to 16 MiB", self.max_frame_bytes),
            );
        }
        if self.resolve_interval < Duration::from_secs(1) {
            return wrong(
                "resolve_interval",
                format!("{:?}; it must be at least 1 s", self.resolve_interval),
            );
        }
        Ok(Config {
            connections_min: self.connections_min,
            connections_max: self.connections_max,
            idle_max: self.connections_max.max(1),
            capacity: self.streams_max,
            headroom_percent: (self.streams_max * 100).div_ceil(self.streams_soft).min(1000),
            waiters_max: self.waiters_max,
            dials_max: self.dials_max,
            order: IdleOrder::LeastLoaded,
            dial_timeout: self.connect_timeout,
            idle_timeout: self.idle_timeout,
            age_max: self.age_max,
            backoff: self.backoff,
            health: self.health_service.as_ref().map(|_| HealthConfig {
                interval: HEALTH_INTERVAL,
                rise: 1,
                fall: 1,
            }),
            ..Config::default()
        })
    }

    /// Makes the channel. Nothing is connected before the first call, unless `connections_min` says so.
    ///
    /// # Errors
    ///
    /// When a setting cannot be, and outside of a tokio runtime.
    pub fn build(self) -> Result<PooledChannel, BuildError> {
        let wrong = |field, why: String| BuildError { field, why };
        let runtime = Handle::try_current()
            .map_err(|_| wrong("runtime", "a channel is built inside a tokio runtime".to_owned()))?;
        let config = self.config()?;
        let user_agent = HeaderValue::from_str(&self.user_agent)
            .map_err(|_| wrong("user_agent", format!("{:?} is no value of a header", self.user_agent)))?;
        let parse = |url: &String| Origin::parse(url).map(Arc::new).map_err(|why| wrong("url", why));
        let origins = self.urls.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let is_secure = origins.iter().any(|origin| origin.is_secure());
        let roots = match (self.roots, is_secure) {
            (Some(roots), _) => Some(roots),
            (None, true) => Some(Roots::native().map_err(|error| wrong("roots", error.to_string()))?),
            (None, false) => None,
        };
        let server_name = match self.server_name {
            None => None,
            Some(name) => {
                let parsed = ServerName::try_from(name.clone());
                Some(parsed.map_err(|_| wrong("server_name", format!("{name:?} is no name of TLS")))?)
            }
        };
        let watched = Arc::new(Watched::default());
        let watches = Arc::new(Watches::new(self.health_service.unwrap_or_default()));
        let (lost, goaways) = (Arc::new(Notify::new()), Arc::new(AtomicU64::new(0)));
        let cut = watch::Sender::new(false);
        let manner = Manner {
            stream_window: self.stream_window,
            streams_max: self.streams_max,
            header_list_bytes: self.header_list_bytes,
            max_frame_bytes: self.max_frame_bytes,
            keepalive: self.keepalive,
            tcp: self.tcp,
            roots,
            identity: self.identity,
            server_name,
        };
        let connector = GrpcConnector::new(
            manner,
            Arc::clone(&watches),
            Arc::clone(&watched),
            Arc::clone(&lost),
            Arc::clone(&goaways),
            cut.subscribe(),
        );
        let fixed = |origin: &Arc<Origin>| {
            origin.address().map(|address: SocketAddr| Peer { address, origin: Arc::clone(origin) })
        };
        let peers: Vec<Peer> = origins.iter().filter_map(fixed).collect();
        let names: Vec<Arc<Origin>> =
            origins.iter().filter(|origin| origin.address().is_none()).cloned().collect();
        let mut pool = Pool::shared(connector)
            .name(self.name.unwrap_or_else(|| self.urls[0].clone()))
            .config(config)
            .balance(self.balance)
            .acquire_timeout(self.acquire_timeout)
            .endpoints(peers.iter().cloned());
        if let Some(machine) = self.machine {
            pool = pool.budget(machine);
        }
        let pool = pool.build().map_err(|error| wrong("pool", error.to_string()))?;
        let known = if peers.is_empty() { Resolution::Pending } else { Resolution::Known };
        let (resolution, found) = watch::channel(known);
        let (resolver, interval) = (self.resolver, self.resolve_interval);
        let shared = Arc::new_cyclic(|shared| {
            let keeper = (!names.is_empty()).then(|| {
                let shared = shared.clone();
                runtime
                    .spawn(Keeper { shared, origins: names, resolver, interval, lost, resolution }.run())
                    .abort_handle()
            });
            Shared {
                pool,
                user_agent,
                timeout: self.timeout,
                acquire_timeout: self.acquire_timeout,
                replay_bytes: self.replay_bytes,
                budget: Budget::new(self.replay_reserve, self.replay_percent),
                counters: Counters::default(),
                watched,
                watches,
                resolution: found,
                runtime,
                has_many: AtomicBool::new(peers.len() > 1),
                observed: AtomicU32::new(0),
                goaways,
                cut,
                keeper,
            }
        });
        Ok(PooledChannel { shared })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("urls", &self.urls).finish_non_exhaustive()
    }
}

/// Why a channel was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    field: &'static str,
    why: String,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.why)
    }
}

impl std::error::Error for BuildError {}

//! The tokio shell of the engine: a pool of connections to the endpoints of one upstream.
//!
//! | module | what |
//! |---|---|
//! | `exchange` | where leases change hands: locks, stashes, cells; knows neither tokio nor a protocol |
//! | `inner` | what all handles share; does what the exchange says is to be done |
//! | `driver` | tasks: dials, the one that keeps time |
//! | `acquire`, `lease` | what callers hold |
//! | `limits` | limits that several pools keep together |
//! | `connector`, `error`, `log` | to the protocol, to the caller, to the log |

mod acquire;
mod connector;
mod driver;
mod error;
mod exchange;
mod inner;
mod lease;
mod limits;
mod log;
#[cfg(test)]
mod model;

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use forebay_core::{Balance, Config, ConfigError, Counters, EndpointId, Engine, Removal, Snapshot};
use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::{Notify, watch};

use crate::dial::Machine;
use crate::{sync, sys};

pub use acquire::Acquire;
pub use connector::{Connector, Dial, Reporter};
pub use error::{AcquireError, BuildError, DialError, Failure};
use exchange::Target;
pub use exchange::{Exclusive, Mode, Shared};
use inner::{Inner, instant_of, validate};
pub use lease::Lease;
pub use limits::Limits;

/// A pool of connections to the endpoints of one upstream. Cheap to clone; all clones are one pool.
///
/// When the last clone is dropped, idle connections close, dials in progress are ended, and connections that are lent
/// close when they are given back.
pub struct Pool<C: Connector, M: Mode<C::Conn> = Exclusive> {
    handle: Arc<Handle<C, M>>,
}

impl<C: Connector> Pool<C, Exclusive> {
    /// Begins to make a pool of connections that serve one request at a time.
    pub fn builder(connector: C) -> Builder<C, Exclusive> {
        Builder::new(connector)
    }
}

impl<C: Connector> Pool<C, Shared>
where
    C::Conn: Sync,
{
    /// Begins to make a pool of connections that serve up to [`Config::capacity`] requests at once.
    pub fn shared(connector: C) -> Builder<C, Shared> {
        Builder::new(connector)
    }
}

impl<C: Connector, M: Mode<C::Conn>> Pool<C, M> {
    /// Takes a lease at the endpoint that the balance picks: at once, or after waiting in line for as long as
    /// [`Builder::acquire_timeout`] says.
    ///
    /// # Errors
    ///
    /// An [`AcquireError`], which says what stood in the way, where, and whose fault it is.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: see [`Acquire`].
    pub fn acquire(&self) -> Acquire<'_, C, M> {
        Acquire::new(&self.handle, Some(Target::Any(0)), None)
    }

    /// Takes a lease as [`Pool::acquire`] does, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::acquire`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: see [`Acquire`].
    pub fn acquire_until(&self, deadline: Instant) -> Acquire<'_, C, M> {
        Acquire::new(&self.handle, Some(Target::Any(0)), Some(instant_of(deadline)))
    }

    /// Takes a lease as [`Pool::acquire`] does; under [`Balance::SourceHash`], `hash` decides where.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::acquire`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: see [`Acquire`].
    pub fn acquire_hashed(&self, hash: u64) -> Acquire<'_, C, M> {
        Acquire::new(&self.handle, Some(Target::Any(hash)), None)
    }

    /// Takes a lease at this endpoint, whatever the balance says.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::acquire`], and [`Refusal::NoEndpoint`](forebay_core::Refusal::NoEndpoint).
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: see [`Acquire`].
    pub fn acquire_at(&self, endpoint: &C::Endpoint) -> Acquire<'_, C, M> {
        Acquire::new(&self.handle, self.inner().endpoint_id(endpoint).map(Target::At), None)
    }

    /// Takes a lease at this endpoint as [`Pool::acquire_at`] does, waiting until `deadline` at most.
    ///
    /// # Errors
    ///
    /// Those of [`Pool::acquire_at`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: see [`Acquire`].
    pub fn acquire_at_until(&self, endpoint: &C::Endpoint, deadline: Instant) -> Acquire<'_, C, M> {
        let target = self.inner().endpoint_id(endpoint).map(Target::At);
        Acquire::new(&self.handle, target, Some(instant_of(deadline)))
    }

    /// Takes a lease if a connection is free and nobody waits; never waits, never dials.
    pub fn try_acquire(&self) -> Option<Lease<C, M>> {
        let owner = self.handle.owner();
        let inner = &owner.inner;
        loop {
            if let Some(held) = inner.take_stashed() {
                return Some(Lease::new(held, Arc::clone(owner)));
            }
            let (held, work) = inner.exchange.try_acquire(sys::now(), Target::Any(0));
            inner.act(work);
            if let Some(held) = inner.check(held?) {
                return Some(Lease::new(held, Arc::clone(owner)));
            }
        }
    }

    /// Adds an endpoint under the pool's policy; one that is there already stays as it is.
    pub fn add_endpoint(&self, endpoint: C::Endpoint) {
        let config = *self.handle.config.lock().unwrap_or_else(PoisonError::into_inner);
        self.inner().add_endpoint(endpoint, config).expect("the pool's policy was checked when it was set");
    }

    /// Removes an endpoint. Returns whether it was there. Those who wait for it get an error; leases that are out may
    /// finish ([`Removal::Drain`]), or are told nothing, and find their connections closed when they are given back.
    pub fn remove_endpoint(&self, endpoint: &C::Endpoint, removal: Removal) -> bool {
        let inner = self.inner();
        let id = inner.endpoints.lock().unwrap_or_else(PoisonError::into_inner).remove(endpoint);
        if let Some(id) = id {
            inner.act(inner.exchange.remove_endpoint(sys::now(), id, removal));
        }
        id.is_some()
    }

    /// Lets go of the connections to an endpoint: those that nobody uses close now, others when they are given back, and
    /// who waits for it gets an error. Returns whether it was there. It stays, with what it has counted, and who comes
    /// later gets a new connection.
    pub fn renew_endpoint(&self, endpoint: &C::Endpoint) -> bool {
        let inner = self.inner();
        let id = inner.endpoint_id(endpoint);
        if let Some(id) = id {
            inner.act(inner.exchange.renew_endpoint(sys::now(), id));
        }
        id.is_some()
    }

    /// Changes the policy of all endpoints, and of those to come. Raised limits serve those who wait at once; what is
    /// above a lowered one closes as it becomes idle.
    ///
    /// # Errors
    ///
    /// The first field that cannot be; nothing is then changed.
    pub fn set_config(&self, config: Config) -> Result<(), ConfigError> {
        validate::<C, M>(&config)?;
        *self.handle.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        let ids: Vec<EndpointId> =
            self.inner().endpoints.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect();
        ids.into_iter().try_for_each(|id| self.inner().set_config(id, config))
    }

    /// Changes the policy of one endpoint, until [`Pool::set_config`] changes it again, as that does. Returns whether the
    /// endpoint is there.
    ///
    /// # Errors
    ///
    /// The first field that cannot be; nothing is then changed.
    pub fn set_config_at(&self, endpoint: &C::Endpoint, config: Config) -> Result<bool, ConfigError> {
        validate::<C, M>(&config)?;
        let id = self.inner().endpoint_id(endpoint);
        id.map(|id| self.inner().set_config(id, config)).transpose().map(|done| done.is_some())
    }

    /// Notes how long a request took at the endpoint of a lease, for [`Balance::P2c`].
    pub fn observe_latency(&self, endpoint: &C::Endpoint, latency: Duration) {
        if let Some(id) = self.inner().endpoint_id(endpoint) {
            self.inner().exchange.inspect(|hub| hub.engine.observe_latency(id, latency));
        }
    }

    /// Ends the pool gently: no new leases, idle connections close, and those that are lent close when they are given
    /// back. At `deadline`, what is left is closed: connections that are shared at once, exclusive ones, which are in
    /// somebody's hands, as soon as they are given back. Returns how many connections were left at the deadline.
    ///
    /// # Cancel safety
    ///
    /// The drain goes on when the future is dropped, without a deadline.
    pub async fn drain(&self, deadline: Instant) -> u32 {
        let inner = self.inner();
        let drained = inner.drained.notified();
        tokio::pin!(drained);
        drained.as_mut().enable();
        inner.act(inner.exchange.drain(sys::now()));
        let empty = || inner.exchange.inspect(|hub| hub.engine.is_empty());
        if empty() || tokio::time::timeout_at(deadline.into(), drained).await.is_ok() {
            return 0;
        }
        let now = sys::now();
        let left = inner.exchange.snapshot(now).iter().map(|(_, snapshot)| snapshot.connections()).sum();
        let ((), work) = inner.exchange.handle(now, |engine| engine.close_all(now));
        inner.act(work);
        left
    }

    /// Returns the figures of this moment.
    pub fn snapshot(&self) -> PoolSnapshot<C::Endpoint> {
        let figures = self.inner().exchange.snapshot(sys::now());
        let endpoints = figures
            .into_iter()
            .map(|(site, snapshot)| EndpointSnapshot {
                endpoint: site.endpoint.clone(),
                dial_error: site.last_dial_error(),
                snapshot,
            })
            .collect();
        PoolSnapshot { upstream: Arc::clone(&self.inner().upstream), endpoints }
    }

    /// Returns the name of the upstream.
    pub fn name(&self) -> &str {
        &self.inner().upstream
    }

    fn inner(&self) -> &Arc<Inner<C, M>> {
        &self.handle.owner().inner
    }
}

impl<C: Connector, M: Mode<C::Conn>> Clone for Pool<C, M> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

impl<C: Connector, M: Mode<C::Conn>> fmt::Debug for Pool<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("upstream", &self.name()).finish_non_exhaustive()
    }
}

/// One pool's figures at one moment.
#[derive(Clone, Debug)]
pub struct PoolSnapshot<E> {
    /// The name of the upstream.
    pub upstream: Arc<str>,
    /// Each endpoint, those that were removed and have connections still included.
    pub endpoints: Vec<EndpointSnapshot<E>>,
}

impl<E> PoolSnapshot<E> {
    /// Returns the counters of all endpoints together.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        self.endpoints.iter().for_each(|endpoint| sum.merge(&endpoint.snapshot.counters));
        sum
    }
}

/// One endpoint's figures at one moment.
#[derive(Clone, Debug)]
pub struct EndpointSnapshot<E> {
    /// The endpoint.
    pub endpoint: E,
    /// Why dialling failed last, if it ever did.
    pub dial_error: Option<DialError>,
    /// Its figures.
    pub snapshot: Snapshot,
}

/// Makes a [`Pool`].
#[must_use = "a builder does nothing until it is built"]
pub struct Builder<C: Connector, M: Mode<C::Conn>> {
    connector: C,
    name: String,
    config: Config,
    balance: Balance,
    endpoints: Vec<C::Endpoint>,
    machine: Option<Arc<Machine>>,
    limits: Option<Arc<Limits<C::Endpoint>>>,
    acquire_timeout: Duration,
    shards: Option<usize>,
    seed: u64,
    mode: PhantomData<M>,
}

impl<C: Connector, M: Mode<C::Conn>> Builder<C, M> {
    fn new(connector: C) -> Self {
        Self {
            connector,
            name: "unnamed".to_owned(),
            config: Config::default(),
            balance: Balance::default(),
            endpoints: Vec::new(),
            machine: None,
            limits: None,
            acquire_timeout: Duration::from_secs(5),
            shards: None,
            seed: std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
            mode: PhantomData,
        }
    }

    /// Names the upstream, for logs and errors. Default: `unnamed`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Adds an endpoint.
    pub fn endpoint(mut self, endpoint: C::Endpoint) -> Self {
        self.endpoints.push(endpoint);
        self
    }

    /// Adds endpoints.
    pub fn endpoints(mut self, endpoints: impl IntoIterator<Item = C::Endpoint>) -> Self {
        self.endpoints.extend(endpoints);
        self
    }

    /// Sets the policy of each endpoint. Default: [`Config::default`].
    pub const fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Sets how endpoints are chosen. Default: the first that is available.
    pub const fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// Counts connections in a budget of this machine, which pools share. Default: none, and the kernel says when
    /// something runs out.
    pub fn budget(mut self, machine: Arc<Machine>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// Counts connections together with those of other pools that are given the same limits. Default: those of this pool
    /// alone.
    pub fn limits(mut self, limits: Arc<Limits<C::Endpoint>>) -> Self {
        self.limits = Some(limits);
        self
    }

    /// Sets how long an acquire waits that has no deadline of its own. Default: 5 s.
    pub const fn acquire_timeout(mut self, timeout: Duration) -> Self {
        self.acquire_timeout = timeout;
        self
    }

    /// Sets over how many shards threads are spread; rounded up to a power of two. With one, waiters are served exactly
    /// in order; with several, order between waiters of different threads is kept to about 20 ms. Default: one per
    /// core, but one on a single-threaded runtime, and no more than a quarter of `connections_max`.
    pub const fn shards(mut self, shards: usize) -> Self {
        self.shards = Some(shards);
        self
    }

    /// Sets what decides each choice that chance makes. Default: a number that differs from run to run.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Makes the pool. With `connections_min`, dials begin at once.
    ///
    /// # Errors
    ///
    /// When a field of the policy cannot be, and outside of a tokio runtime.
    pub fn build(self) -> Result<Pool<C, M>, BuildError> {
        validate::<C, M>(&self.config)?;
        let runtime = Runtime::try_current().map_err(|_| BuildError::NoRuntime)?;
        let shards =
            self.shards.unwrap_or_else(|| shards_for(&runtime, &self.config)).max(1).next_power_of_two();
        let inner = Arc::new_cyclic(|me| Inner {
            exchange: exchange::Exchange::new(Engine::new(self.balance, self.seed), shards),
            me: me.clone(),
            connector: Arc::new(self.connector),
            upstream: self.name.into(),
            acquire_timeout: self.acquire_timeout,
            machine: self.machine,
            limits: self.limits,
            runtime,
            shard_mask: shards - 1,
            endpoints: Mutex::new(HashMap::new()),
            rouse: Notify::new(),
            stashes_used: AtomicBool::new(false),
            lines_used: AtomicBool::new(false),
            visit_interval: AtomicU64::new(exchange::visit_interval(&self.config).as_nanos() as u64),
            drained: Notify::new(),
            gone: watch::Sender::new(false),
            log: log::Log::default(),
        });
        for endpoint in self.endpoints {
            inner.add_endpoint(endpoint, self.config)?;
        }
        inner.runtime.spawn(driver::drive(Arc::clone(&inner)));
        let owners = (0..shards).map(|_| Arc::new(Owner { inner: Arc::clone(&inner) })).collect();
        Ok(Pool { handle: Arc::new(Handle { owners, config: Mutex::new(self.config) }) })
    }
}

impl<C: Connector, M: Mode<C::Conn>> fmt::Debug for Builder<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// What the clones of a pool share, and leases do not.
struct Handle<C: Connector, M: Mode<C::Conn>> {
    owners: Box<[Arc<Owner<C, M>>]>,
    /// For endpoints to come.
    config: Mutex<Config>,
}

impl<C: Connector, M: Mode<C::Conn>> Handle<C, M> {
    /// Returns the owner of this thread's shard.
    fn owner(&self) -> &Arc<Owner<C, M>> {
        &self.owners[inner::thread_index() & (self.owners.len() - 1)]
    }
}

impl<C: Connector, M: Mode<C::Conn>> Drop for Handle<C, M> {
    fn drop(&mut self) {
        let inner = &self.owners[0].inner;
        inner.gone.send_replace(true);
        inner.act(inner.exchange.drain(sys::now()));
    }
}

/// What keeps the pool alive for leases: one per shard, so that threads do not count references in one place.
#[repr(align(128))]
struct Owner<C: Connector, M: Mode<C::Conn>> {
    inner: Arc<Inner<C, M>>,
}

fn shards_for(runtime: &Runtime, config: &Config) -> usize {
    match runtime.runtime_flavor() {
        RuntimeFlavor::CurrentThread => 1,
        _ => available_parallelism().map_or(1, usize::from).min(config.connections_max as usize / 4),
    }
}

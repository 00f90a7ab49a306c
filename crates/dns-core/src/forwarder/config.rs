//! What a forwarder is told.

use std::fmt;
use std::time::Duration;

use forebay_core::{Config, ConfigError, Permits};

use super::failures::{TTL_MAX, TTL_MIN};
use super::front::FrontConfig;
use super::safety::SafetyConfig;
use crate::cache::{CacheConfigError, CachePolicy};
use crate::wire::{HashSeed, NAME_LEN_MAX, UDP_LEN_DEFAULT, UDP_LEN_MIN};

/// How a query reaches an upstream, as far as decisions differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// Datagrams: an answer may be truncated, lost or forged.
    Datagram,
    /// A byte stream that carries many messages at once.
    Stream,
}

/// The connections to one address over one carrier.
#[derive(Clone, Debug)]
pub struct Link {
    /// The policy of the pool.
    pub config: Config,
    /// Permits, shared with the other workers that use the same address.
    pub permits: Permits,
}

/// One address that queries go to.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// What it is called in errors: its address.
    pub name: String,
    /// Its datagram connections; `None` if it is only spoken to over streams.
    pub datagram: Option<Link>,
    /// Its stream connections: for everything, or for what was truncated.
    pub stream: Link,
    /// Whether nobody on the way can read what its streams carry: then queries are padded (RFC 8467 §4.1).
    pub is_encrypted: bool,
}

/// Endpoints that know the same, and how one of them is chosen.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// What it is called in logs and figures.
    pub name: String,
    /// Where queries go, in order.
    pub endpoints: Vec<Endpoint>,
    /// Which of them is asked first.
    pub strategy: Strategy,
}

/// Names that go to an upstream other than the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The name under which everything goes there, itself included: in wire form, lower case.
    pub suffix: Vec<u8>,
    /// Which upstream, by its place.
    pub upstream: u16,
}

/// Which endpoint is asked first, and which follow. Those that are broken, unhealthy or backing off come last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The first in the list, as long as it answers.
    #[default]
    Sequential,
    /// Each in its turn.
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The one with the fewest queries in flight.
    LeastInflight,
    /// Several at once, the quickest as known first: the first good answer wins.
    Parallel,
    /// The quickest as known; the next one too when it has not answered in the time it usually takes, or has failed.
    Racing,
    /// The quickest as known, those within a fifth of it being equals.
    Fastest,
}

impl Strategy {
    /// Every strategy.
    pub const ALL: [Self; 7] = [
        Self::Sequential,
        Self::RoundRobin,
        Self::Random,
        Self::LeastInflight,
        Self::Parallel,
        Self::Racing,
        Self::Fastest,
    ];
}

/// What the strategies go by that ask more than one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StrategyConfig {
    /// Endpoints that [`Strategy::Parallel`] asks at once, at most. Default 3.
    pub parallel_max: u32,
    /// The shortest head start under [`Strategy::Racing`]. Default 10 ms.
    pub head_start_min: Duration,
    /// The longest head start, and that of an endpoint which was never measured. Default 250 ms (RFC 8305 §8).
    pub head_start_max: Duration,
    /// The share of questions, in percent, that are asked also of the endpoint which was not heard from for longest, to
    /// measure it: under [`Strategy::Racing`], [`Strategy::Fastest`], and [`Strategy::Parallel`] if it does not ask
    /// everybody. Default 5.
    pub probing_percent: u32,
}

impl Default for StrategyConfig {
    fn default() -> Self {
        Self {
            parallel_max: 3,
            head_start_min: Duration::from_millis(10),
            head_start_max: Duration::from_millis(250),
            probing_percent: 5,
        }
    }
}

/// The question of active health checks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// Name, type and class in wire form: see [`parse_question`](super::parse_question).
    pub question: Vec<u8>,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// What a forwarder is told. [`Forwarder::new`](super::Forwarder::new) checks it.
#[derive(Clone, Debug)]
pub struct ForwarderConfig {
    /// Where queries go: to the first, unless a route says otherwise.
    pub upstreams: Vec<Upstream>,
    /// Which names go to others. The longest suffix that fits holds.
    pub routes: Vec<Route>,
    /// Who may ask, and what is answered here. Default: everybody, nothing.
    pub front: FrontConfig,
    /// What the strategies go by.
    pub strategies: StrategyConfig,
    /// How long an answer is waited for before another attempt begins; the answer stays welcome. Default 1 s.
    pub attempt_timeout: Duration,
    /// How long a client waits at most; then it is told SERVFAIL. Default 4 s, under the 5 s of common stub resolvers.
    pub query_timeout: Duration,
    /// What active health checks ask; `None` is none. How often is said by each [`Link`]'s policy. Default `None`.
    pub health: Option<HealthCheck>,
    /// How long a question that nobody could answer is remembered, per endpoint (RFC 9520); zero is not at all. Default
    /// 5 s.
    pub failure_ttl: Duration,
    /// How long at most, when an endpoint answers with an error again and again: twice as long each time. Default 30 s.
    pub failure_ttl_max: Duration,
    /// Attempts for one question. Default 6.
    pub attempts_max: u32,
    /// Clients that may wait at once; more are told SERVFAIL. Default 65,536.
    pub waiting_max: usize,
    /// The longest UDP message, in bytes, that is sent to a client or asked of an upstream. Default 1232.
    pub udp_size: u16,
    /// The memory of the message cache, in bytes; zero is no cache. Default 64 MiB.
    pub cache_bytes: usize,
    /// What the cache keeps, and for how long. Its `stale_max` and `uses_counted` follow from `stale` and `prefetch`.
    pub cache_policy: CachePolicy,
    /// Whether what an answer says of other questions is kept, and answers are joined of that. Default true.
    pub rrsets: bool,
    /// What is done with answers whose time is over; `None` is nothing. Default as [`StaleConfig::default`].
    pub stale: Option<StaleConfig>,
    /// Which answers are asked for before their time is over; `None` is none. Default as [`PrefetchConfig::default`].
    pub prefetch: Option<PrefetchConfig>,
    /// What is done against forged answers.
    pub safety: SafetyConfig,
    /// Keeps others from choosing questions whose hashes collide. From the system's randomness.
    pub hash_seed: HashSeed,
    /// Seeds message ids (RFC 5452 §9.2) and choices. From the system's randomness.
    pub random_seed: [u8; 32],
}

/// What is done with answers whose time is over (RFC 8767).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleConfig {
    /// How long after its time an answer is still better than none. Default one day; whole seconds, at most seven days.
    pub max: Duration,
    /// The TTL that a client is told. Default 30 s; whole seconds, one at least.
    pub ttl: Duration,
    /// How long a client waits for a new answer before it gets the stale one; zero is not at all. Default 1.8 s, under
    /// the 2 s of impatient stub resolvers; at most 8 s.
    pub answer_after: Duration,
    /// How long a name is not asked for again after that has failed. Default 30 s; zero is not at all.
    pub recheck: Duration,
}

impl Default for StaleConfig {
    fn default() -> Self {
        Self {
            max: Duration::from_secs(86_400),
            ttl: Duration::from_secs(30),
            answer_after: Duration::from_millis(1_800),
            recheck: Duration::from_secs(30),
        }
    }
}

impl StaleConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first one that cannot be.
    pub fn validate(&self) -> Result<(), ForwarderConfigError> {
        let week = Duration::from_secs(7 * 86_400);
        let is_whole = |value: Duration| value.subsec_nanos() == 0 && value <= week;
        let wrong = |field, value: Duration, allowed| {
            Err(ForwarderConfigError::Field { field, value: format!("{value:?}"), allowed })
        };
        if !is_whole(self.max) || self.max.is_zero() {
            return wrong("stale_max", self.max, "whole seconds, 1s to 7days");
        }
        if !is_whole(self.ttl) || self.ttl.is_zero() {
            return wrong("stale_ttl", self.ttl, "whole seconds, 1s to 7days");
        }
        if self.answer_after > STALE_ANSWER_AFTER_MAX {
            return wrong("stale_answer_after", self.answer_after, "at most 8s");
        }
        if self.recheck > week {
            return wrong("stale_recheck", self.recheck, "at most 7days");
        }
        Ok(())
    }
}

/// Which answers are asked for before their time is over: those that are asked for again shortly before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefetchConfig {
    /// How often an answer must have been given from the cache, the last time included. Default 2; 1 to 15.
    pub uses: u8,
    /// Of a hundred parts of its time, those that are left at most. Default 10; 1 to 90.
    pub below_percent: u8,
    /// Questions in flight for nobody, at once. Default 64.
    pub running_max: u32,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self { uses: 2, below_percent: 10, running_max: 64 }
    }
}

impl PrefetchConfig {
    /// Checks every field.
    ///
    /// # Errors
    ///
    /// The first one that cannot be.
    pub fn validate(&self) -> Result<(), ForwarderConfigError> {
        let wrong =
            |field, value: String, allowed| Err(ForwarderConfigError::Field { field, value, allowed });
        if !(1..=15).contains(&self.uses) {
            return wrong("prefetch_hits", self.uses.to_string(), "1 to 15");
        }
        if !(1..=90).contains(&self.below_percent) {
            return wrong("prefetch_below", self.below_percent.to_string(), "1 to 90");
        }
        if self.running_max == 0 {
            return wrong("prefetch_max", "0".to_owned(), "at least 1");
        }
        Ok(())
    }
}

impl ForwarderConfig {
    /// Makes a configuration with defaults for all but the upstreams and the seeds.
    pub fn new(upstreams: Vec<Upstream>, hash_seed: HashSeed, random_seed: [u8; 32]) -> Self {
        Self {
            upstreams,
            routes: Vec::new(),
            front: FrontConfig::default(),
            strategies: StrategyConfig::default(),
            attempt_timeout: Duration::from_secs(1),
            query_timeout: Duration::from_secs(4),
            health: None,
            failure_ttl: Duration::from_secs(5),
            failure_ttl_max: Duration::from_secs(30),
            attempts_max: 6,
            waiting_max: 65_536,
            udp_size: UDP_LEN_DEFAULT,
            cache_bytes: 64 << 20,
            cache_policy: CachePolicy::default(),
            rrsets: true,
            stale: Some(StaleConfig::default()),
            prefetch: Some(PrefetchConfig::default()),
            safety: SafetyConfig::default(),
            hash_seed,
            random_seed,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// The first one that cannot be.
    pub fn validate(&self) -> Result<(), ForwarderConfigError> {
        let wrong =
            |field, value: String, allowed| Err(ForwarderConfigError::Field { field, value, allowed });
        if self.upstreams.is_empty() {
            return wrong("upstreams", "empty".to_owned(), "at least one");
        }
        if self.upstreams.len() > UPSTREAMS_MAX {
            return wrong("upstreams", self.upstreams.len().to_string(), "at most 1024");
        }
        for upstream in &self.upstreams {
            if upstream.endpoints.is_empty() {
                return wrong(
                    "upstreams",
                    format!("{} without endpoints", upstream.name),
                    "one endpoint or more",
                );
            }
            if upstream.endpoints.len() > ENDPOINTS_MAX {
                return wrong("upstreams", upstream.endpoints.len().to_string(), "at most 64 endpoints each");
            }
        }
        if let Some(route) =
            self.routes.iter().find(|route| usize::from(route.upstream) >= self.upstreams.len())
        {
            return wrong("routes", route.upstream.to_string(), "the place of an upstream");
        }
        self.strategies.validate()?;
        if self.attempt_timeout < ATTEMPT_TIMEOUT_MIN {
            return wrong("attempt_timeout", format!("{:?}", self.attempt_timeout), "at least 10ms");
        }
        if self.query_timeout < self.attempt_timeout {
            return wrong("query_timeout", format!("{:?}", self.query_timeout), "at least attempt_timeout");
        }
        if self.query_timeout > QUERY_TIMEOUT_MAX {
            return wrong("query_timeout", format!("{:?}", self.query_timeout), "at most 60s");
        }
        if !self.failure_ttl.is_zero() && !(TTL_MIN..=TTL_MAX).contains(&self.failure_ttl) {
            return wrong("failure_ttl", format!("{:?}", self.failure_ttl), "1s to 5m (RFC 9520), or 0s");
        }
        if !(self.failure_ttl..=TTL_MAX).contains(&self.failure_ttl_max) {
            let value = format!("{:?}", self.failure_ttl_max);
            return wrong("failure_ttl_max", value, "failure_ttl to 5m (RFC 9520)");
        }
        if let Some(health) = &self.health {
            if health.timeout < ATTEMPT_TIMEOUT_MIN {
                return wrong("health.timeout", format!("{:?}", health.timeout), "at least 10ms");
            }
            if health.question.len() < 5 || health.question.len() > NAME_LEN_MAX + 4 {
                return wrong(
                    "health.question",
                    format!("{} bytes", health.question.len()),
                    "5 to 259 bytes",
                );
            }
        }
        if self.attempts_max == 0 {
            return wrong("attempts_max", "0".to_owned(), "at least 1");
        }
        if self.waiting_max == 0 {
            return wrong("waiting_max", "0".to_owned(), "at least 1");
        }
        if let Some(stale) = &self.stale {
            stale.validate()?;
        }
        if let Some(prefetch) = &self.prefetch {
            prefetch.validate()?;
        }
        if self.udp_size < UDP_LEN_MIN {
            return wrong("udp_size", self.udp_size.to_string(), "512 to 65535");
        }
        for endpoint in self.upstreams.iter().flat_map(|upstream| &upstream.endpoints) {
            for link in endpoint.datagram.iter().chain([&endpoint.stream]) {
                if link.config.capacity > CAPACITY_MAX {
                    return wrong("capacity", link.config.capacity.to_string(), "at most 16384");
                }
            }
        }
        Ok(())
    }
}

impl StrategyConfig {
    fn validate(&self) -> Result<(), ForwarderConfigError> {
        let wrong =
            |field, value: String, allowed| Err(ForwarderConfigError::Field { field, value, allowed });
        if self.parallel_max == 0 {
            return wrong("strategies.parallel_max", "0".to_owned(), "at least 1");
        }
        if self.head_start_min < HEAD_START_MIN {
            return wrong("strategies.head_start_min", format!("{:?}", self.head_start_min), "at least 1ms");
        }
        if self.head_start_max < self.head_start_min {
            return wrong(
                "strategies.head_start_max",
                format!("{:?}", self.head_start_max),
                "at least head_start_min",
            );
        }
        if self.probing_percent > 100 {
            return wrong("strategies.probing_percent", self.probing_percent.to_string(), "0 to 100");
        }
        Ok(())
    }
}

/// A head start shorter than this is none.
const HEAD_START_MIN: Duration = Duration::from_millis(1);
/// Upstreams of one forwarder: one for each route, a number that no list written by a person reaches.
const UPSTREAMS_MAX: usize = 1024;
/// Endpoints of one upstream: the same.
const ENDPOINTS_MAX: usize = 64;
/// An attempt shorter than this would give up on upstreams that are merely far away.
const ATTEMPT_TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// No client waits longer than this.
const QUERY_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// What a timer's wheel holds without turning round; and no client waits that long for anything.
const STALE_ANSWER_AFTER_MAX: Duration = Duration::from_secs(8);
/// A quarter of the message ids: a free one is found at once, and stays hard to guess.
const CAPACITY_MAX: u32 = 16_384;

/// Why a forwarder cannot be made so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwarderConfigError {
    /// A field has an impossible value.
    Field {
        /// Its name.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// The policy of an upstream's pool is impossible.
    Pool(ConfigError),
    /// The cache is impossible.
    Cache(CacheConfigError),
}

impl fmt::Display for ForwarderConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field { field, value, allowed } => write!(f, "{field} is {value}; it must be {allowed}"),
            Self::Pool(error) => error.fmt(f),
            Self::Cache(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ForwarderConfigError {}

impl From<ConfigError> for ForwarderConfigError {
    fn from(error: ConfigError) -> Self {
        Self::Pool(error)
    }
}

impl From<CacheConfigError> for ForwarderConfigError {
    fn from(error: CacheConfigError) -> Self {
        Self::Cache(error)
    }
}

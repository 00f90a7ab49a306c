//! `[dns.cache]`: what is kept of answers, and for how long.

use std::path::PathBuf;

use forebay::units::{Size, Span};
use forebay_dns_core::cache::{CacheConfigError, CachePolicy, MessageCache};
use forebay_dns_core::forwarder::{ForwarderConfigError, PrefetchConfig, StaleConfig};
use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.cache]` table: what is kept of answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Memory for everything that is kept, in equal parts for each worker; 0 is no cache. Default `64MiB`.
    pub size: Size,
    /// The shortest time an answer is kept. Default `0s`.
    pub ttl_min: Span,
    /// The longest time an answer is kept. Default `1day`.
    pub ttl_max: Span,
    /// The longest time a negative answer is kept. Default `1h`.
    pub negative_ttl_max: Span,
    /// Whether what an answer says of other names, by way of aliases, is kept in the same memory and answers for them.
    /// Default true.
    pub rrsets: bool,
    /// Whether an answer whose time is over is given when no upstream has a new one, or none soon enough (RFC 8767).
    /// Default true.
    pub serve_stale: bool,
    /// How long after its time an answer may be given: 1s to 7days. Default `1day`.
    pub stale_max: Span,
    /// The TTL that is told with such an answer. Default `30s`.
    pub stale_ttl: Span,
    /// How long a client waits for a new answer before it gets the stale one: up to 8s, and 0s is not at all. Default
    /// `1s 800ms`.
    pub stale_answer_after: Span,
    /// After an upstream had no new answer, the name is left alone for so long, and the stale one given at once. Default
    /// `30s`.
    pub stale_recheck: Span,
    /// Whether answers that are asked for again are fetched anew before their time is over. Default true.
    pub prefetch: bool,
    /// Only answers that were given so often from the cache are: 1 to 15. Default 2.
    pub prefetch_hits: u8,
    /// And only when no more than this many percent of their time are left: 1 to 90. Default 10.
    pub prefetch_below: u8,
    /// So many are fetched at once, per worker. Default 64.
    pub prefetch_max: u32,
    /// A file in which the cache is kept while the server is off: written when it ends, read when it starts. Empty, as it
    /// is unless said, is none.
    pub path: String,
}

impl Default for CacheSettings {
    fn default() -> Self {
        let (policy, stale, prefetch) =
            (CachePolicy::default(), StaleConfig::default(), PrefetchConfig::default());
        Self {
            size: Size::mib(64),
            ttl_min: Span(policy.ttl_min),
            ttl_max: Span(policy.ttl_max),
            negative_ttl_max: Span(policy.negative_ttl_max),
            rrsets: true,
            serve_stale: true,
            stale_max: Span(stale.max),
            stale_ttl: Span(stale.ttl),
            stale_answer_after: Span(stale.answer_after),
            stale_recheck: Span(stale.recheck),
            prefetch: true,
            prefetch_hits: prefetch.uses,
            prefetch_below: prefetch.below_percent,
            prefetch_max: prefetch.running_max,
            path: String::new(),
        }
    }
}

/// What one worker has of the cache.
#[derive(Clone, Debug)]
pub(crate) struct CacheShare {
    pub(crate) bytes: usize,
    pub(crate) policy: CachePolicy,
    pub(crate) rrsets: bool,
    pub(crate) stale: Option<StaleConfig>,
    pub(crate) prefetch: Option<PrefetchConfig>,
    /// Where it is kept while the server is off; `None` without a cache.
    pub(crate) path: Option<PathBuf>,
}

impl CacheSettings {
    /// What one of so many workers has.
    pub(super) fn share(&self, workers: usize) -> Result<CacheShare, SettingsError> {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("cache.{key}"), problem };
        let bytes = usize::try_from(self.size.bytes).unwrap_or(usize::MAX) / workers;
        if self.size.bytes != 0 && bytes < MessageCache::BYTES_MIN {
            let problem = format!(
                "{} is too small for {workers} workers: 16KiB for each, or 0 for no cache",
                self.size
            );
            return Err(wrong("size", problem));
        }
        let policy = CachePolicy {
            ttl_min: self.ttl_min.0,
            ttl_max: self.ttl_max.0,
            negative_ttl_max: self.negative_ttl_max.0,
            ..CachePolicy::default()
        };
        match MessageCache::new(bytes, policy) {
            Ok(_) => {}
            Err(error @ (CacheConfigError::Time { field, .. } | CacheConfigError::Order { field, .. })) => {
                return Err(wrong(field, error.to_string()));
            }
            Err(error) => return Err(wrong("size", error.to_string())),
        }
        let stale = StaleConfig {
            max: self.stale_max.0,
            ttl: self.stale_ttl.0,
            answer_after: self.stale_answer_after.0,
            recheck: self.stale_recheck.0,
        };
        let prefetch = PrefetchConfig {
            uses: self.prefetch_hits,
            below_percent: self.prefetch_below,
            running_max: self.prefetch_max,
        };
        // Also what is off must make sense: it may be switched on by the next hand.
        stale.validate().and_then(|()| prefetch.validate()).map_err(|error| match error {
            ForwarderConfigError::Field { field, value, allowed } => {
                wrong(field, format!("is {value}; it must be {allowed}"))
            }
            other => wrong("size", other.to_string()),
        })?;
        Ok(CacheShare {
            bytes,
            policy,
            rrsets: self.rrsets,
            stale: self.serve_stale.then_some(stale),
            prefetch: self.prefetch.then_some(prefetch),
            path: (bytes > 0 && !self.path.is_empty()).then(|| self.path.clone().into()),
        })
    }
}

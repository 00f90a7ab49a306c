//! `[dns.cache]`: what is kept of answers, and for how long.

use std::time::Duration;

use forebay::units::{Size, Span};
use forebay_dns_core::cache::{CacheConfigError, CachePolicy, MessageCache};
use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.cache]` table: what is kept of answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheSettings {
    /// Memory, all workers together; 0 is no cache. Default `64MiB`.
    pub size: Size,
    /// The shortest time an answer is kept. Default `0s`.
    pub ttl_min: Span,
    /// The longest time an answer is kept. Default `1day`.
    pub ttl_max: Span,
    /// The longest time a negative answer is kept. Default `1h`.
    pub negative_ttl_max: Span,
}

impl Default for CacheSettings {
    fn default() -> Self {
        Self {
            size: Size::mib(64),
            ttl_min: Span(Duration::ZERO),
            ttl_max: Span(Duration::from_secs(86_400)),
            negative_ttl_max: Span(Duration::from_secs(3_600)),
        }
    }
}

impl CacheSettings {
    /// What one of so many workers has: bytes and policy.
    pub(super) fn share(&self, workers: usize) -> Result<(usize, CachePolicy), SettingsError> {
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
        };
        match MessageCache::new(bytes, policy) {
            Ok(_) => Ok((bytes, policy)),
            Err(error @ CacheConfigError::Size { .. }) => Err(wrong("size", error.to_string())),
            Err(error @ (CacheConfigError::Time { field, .. } | CacheConfigError::Order { field, .. })) => {
                Err(wrong(field, error.to_string()))
            }
        }
    }
}

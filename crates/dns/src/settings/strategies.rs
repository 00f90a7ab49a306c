//! `[dns.strategies]`: what the strategies go by that know more than an order.

use forebay::units::Span;
use forebay_dns_core::forwarder::{Strategy, StrategyConfig};
use serde::{Deserialize, Serialize};

/// How `strategy` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// The first upstream as long as it answers.
    #[default]
    Sequential,
    /// Several at once; the first good answer wins.
    Parallel,
    /// The quickest first, the next when it takes longer than usual or fails.
    Racing,
    /// Each in its turn.
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The quickest.
    Fastest,
    /// The one with the fewest queries in flight.
    LeastInflight,
}

impl From<StrategyName> for Strategy {
    fn from(name: StrategyName) -> Self {
        match name {
            StrategyName::Sequential => Self::Sequential,
            StrategyName::Parallel => Self::Parallel,
            StrategyName::Racing => Self::Racing,
            StrategyName::RoundRobin => Self::RoundRobin,
            StrategyName::Random => Self::Random,
            StrategyName::Fastest => Self::Fastest,
            StrategyName::LeastInflight => Self::LeastInflight,
        }
    }
}

/// The `[dns.strategies]` table: what the strategies go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct StrategySettings {
    /// `parallel`: so many upstreams are asked at once, at most. Default 3.
    pub parallel_max: u32,
    /// `racing`: the next upstream is asked too when the first has not answered in the time it usually takes, its mean
    /// latency and four deviations, but not sooner than this. Default `10ms`.
    pub head_start_min: Span,
    /// `racing`: nor later than this, which is also the head start of one that was never measured. Default `250ms`.
    pub head_start_max: Span,
    /// `racing`, `fastest`, and `parallel` with more upstreams than it asks: the share of questions, in percent, that
    /// are asked also of the upstream which was not heard from for longest, to measure it. Default 5.
    pub probing_percent: u32,
}

impl Default for StrategySettings {
    fn default() -> Self {
        let default = StrategyConfig::default();
        Self {
            parallel_max: default.parallel_max,
            head_start_min: Span(default.head_start_min),
            head_start_max: Span(default.head_start_max),
            probing_percent: default.probing_percent,
        }
    }
}

impl From<StrategySettings> for StrategyConfig {
    fn from(settings: StrategySettings) -> Self {
        let StrategySettings { parallel_max, head_start_min, head_start_max, probing_percent } = settings;
        Self {
            parallel_max,
            head_start_min: head_start_min.0,
            head_start_max: head_start_max.0,
            probing_percent,
        }
    }
}

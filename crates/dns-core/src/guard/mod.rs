//! Who may ask, how often, and what is never asked of an upstream.
//!
//! - [`PrefixSet`]: the networks whose clients are served.
//! - [`RateLimit`]: how often each network may ask.
//! - special names (RFC 6761), which are answered here.
//! - [`RebindConfig`]: answers that no public name should have.

mod prefix;
mod rate;
mod rebind;
mod special;

pub use prefix::{Prefix, PrefixError, PrefixSet};
pub use rate::{RateConfig, RateLimit};
pub use rebind::RebindConfig;
pub(crate) use special::{SPECIAL_TTL, Special, SpecialAnswer, special};

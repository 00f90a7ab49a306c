//! One look at what is watched.

use super::report::{Metrics, Pools};
use crate::remote::{Remote, Trouble};

/// What was said at one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Look {
    pub(super) pools: Pools,
    pub(super) metrics: Metrics,
}

/// Asks for everything that is shown.
pub(super) fn look(target: &Remote, token: Option<&str>) -> Result<Look, Trouble> {
    let pools = serde_json::from_str(&target.get("/pools", token)?)
        .map_err(|error| Trouble::Foreign(format!("its /pools is not that of one ({error})")))?;
    Ok(Look { pools, metrics: Metrics::parse(&target.get("/metrics", token)?) })
}

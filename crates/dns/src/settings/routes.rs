//! `[[dns.routes]]`: names that other upstreams know.

use forebay_dns_core::forwarder::Strategy;
use forebay_dns_core::wire::{NameText, parse_name};
use serde::{Deserialize, Serialize};

use super::address::other;
use super::{ListenAddress, SettingsError, StrategyName, UpstreamAddress};

/// One `[[dns.routes]]` table: a name, and the upstreams that know it and everything below. The longest name that fits
/// a question holds; local data and the block list come before, special names after.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteSettings {
    /// The name, like `corp.example` or `10.in-addr.arpa`. Must be given.
    pub suffix: String,
    /// Where its queries go, written as `upstreams` of `[dns]`; with pools of their own. At least one must be given.
    pub upstreams: Vec<String>,
    /// Which of them is asked first, written as `strategy` of `[dns]`. Default `sequential`.
    pub strategy: StrategyName,
}

/// A route, with its endpoints' place among all.
#[derive(Clone, Debug)]
pub(crate) struct RouteConfig {
    /// In wire form, lower case.
    pub(crate) suffix: Vec<u8>,
    /// What it is called in figures.
    pub(crate) name: String,
    pub(crate) first: usize,
    pub(crate) len: usize,
    pub(crate) strategy: Strategy,
}

/// Reads the routes, and adds their endpoints to `all`.
pub(super) fn routes(
    settings: &[RouteSettings],
    listen: &[ListenAddress],
    all: &mut Vec<UpstreamAddress>,
) -> Result<Vec<RouteConfig>, SettingsError> {
    let mut found: Vec<RouteConfig> = Vec::new();
    for (n, route) in settings.iter().enumerate() {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("routes[{n}].{key}"), problem };
        if route.suffix.is_empty() {
            return Err(wrong(
                "suffix",
                "is missing: name what goes there, like \"corp.example\"".to_owned(),
            ));
        }
        let suffix = parse_name(&route.suffix)
            .map_err(|error| wrong("suffix", format!("`{}`: {error}", route.suffix)))?;
        if suffix == [0] {
            let problem = "is the root: that is what `upstreams` of [dns] is for";
            return Err(wrong("suffix", problem.to_owned()));
        }
        if found.iter().any(|other| other.suffix == suffix) {
            let problem = format!("`{}` has a route already: put all its upstreams into one", route.suffix);
            return Err(wrong("suffix", problem));
        }
        if route.upstreams.is_empty() {
            let problem = "is missing: name at least one, like [\"udp://10.0.0.53\"]";
            return Err(wrong("upstreams", problem.to_owned()));
        }
        let first = all.len();
        for text in &route.upstreams {
            let upstream = other(text, listen).map_err(|problem| wrong("upstreams", problem))?;
            if all[first..].contains(&upstream) {
                return Err(wrong("upstreams", format!("`{text}` is listed twice")));
            }
            all.push(upstream);
        }
        found.push(RouteConfig {
            name: NameText(&suffix).to_string(),
            suffix,
            first,
            len: route.upstreams.len(),
            strategy: route.strategy.into(),
        });
    }
    Ok(found)
}

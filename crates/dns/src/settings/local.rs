//! `[dns.local]`: names that are known here.

use std::path::PathBuf;
use std::time::Duration;

use forebay::units::Span;
use forebay_dns_core::local::LocalRecord;
use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.local]` table: names that are known here. They come before everything else: the block list, routes and
/// special names. A name that is known here is answered here for every type; one below it is not, unless by a wildcard.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LocalSettings {
    /// A hosts file, like `/etc/hosts`: addresses of its names, and for each address its first name. Lines that cannot
    /// be read are logged with their number and left out. Default: none.
    pub hosts: String,
    /// Records as zone files write them: `name [ttl] type data`, with type A, AAAA, CNAME, TXT, MX, SRV, PTR or NS; `*.`
    /// before a name stands for all below it that are not known otherwise. Default `[]`.
    pub records: Vec<String>,
    /// How long clients keep what does not say it itself, and that there is nothing. Default `1m`.
    pub ttl: Span,
    /// How often the hosts file is looked at; it is read again when it has changed. `0s` is never. Default `5s`.
    pub reload_interval: Span,
}

impl Default for LocalSettings {
    fn default() -> Self {
        Self {
            hosts: String::new(),
            records: Vec::new(),
            ttl: Span(Duration::from_secs(60)),
            reload_interval: Span(Duration::from_secs(5)),
        }
    }
}

/// What is made of the table.
#[derive(Clone, Debug)]
pub(crate) struct LocalConfig {
    pub(crate) hosts: Option<PathBuf>,
    pub(crate) records: Vec<LocalRecord>,
    pub(crate) ttl: u32,
    pub(crate) reload_interval: Option<Duration>,
}

impl LocalSettings {
    /// `None` when nothing is known here.
    pub(super) fn valid(&self) -> Result<Option<LocalConfig>, SettingsError> {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("local.{key}"), problem };
        let mut records = Vec::new();
        for text in &self.records {
            let record = LocalRecord::parse(text);
            records.push(record.map_err(|error| wrong("records", format!("`{text}`: {error}")))?);
        }
        let ttl = ttl(&self.ttl).map_err(|problem| wrong("ttl", problem))?;
        let reload_interval =
            interval(&self.reload_interval).map_err(|problem| wrong("reload_interval", problem))?;
        let hosts = (!self.hosts.is_empty()).then(|| PathBuf::from(&self.hosts));
        let is_empty = hosts.is_none() && records.is_empty();
        Ok((!is_empty).then_some(LocalConfig { hosts, records, ttl, reload_interval }))
    }
}

/// A time to live: whole seconds, at most a week.
pub(super) fn ttl(span: &Span) -> Result<u32, String> {
    const WEEK: u64 = 604_800;
    match span.0 {
        whole if whole.subsec_nanos() == 0 && whole.as_secs() <= WEEK => Ok(whole.as_secs() as u32),
        _ => Err(format!("is {span}; it must be whole seconds, at most 7days")),
    }
}

/// How often to look at a file: not so often that looking is all that is done.
pub(super) fn interval(span: &Span) -> Result<Option<Duration>, String> {
    match span.0 {
        Duration::ZERO => Ok(None),
        short if short < INTERVAL_MIN => Err(format!("{span} is too short: at least 10ms, or 0s for never")),
        fine => Ok(Some(fine)),
    }
}

/// A hundred looks a second cost nothing that can be measured.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

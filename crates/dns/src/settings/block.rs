//! `[dns.block]`: names that are not to be found.

use std::path::PathBuf;
use std::time::Duration;

use forebay::units::Span;
use forebay_dns_core::local::BlockAnswer;
use forebay_dns_core::wire::parse_name;
use serde::{Deserialize, Serialize};

use super::SettingsError;
use super::local::{interval, ttl};

/// The `[dns.block]` table: names that are not to be found. Only local data comes before it. A name takes 9 bytes of
/// memory, shared by all workers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlockSettings {
    /// Files, a name a line: `name`, `*.name` or `||name^` block it and all below it, `0.0.0.0 name…` exactly these names
    /// (hosts files), `@@||name^` is an exception; `#` and `!` begin comments. Default `[]`.
    pub lists: Vec<String>,
    /// Names that are not blocked, with all below them, whatever the lists say. Default `[]`.
    pub allow: Vec<String>,
    /// What is answered, with the extended error 15: `nxdomain`, or `zero` for the addresses 0.0.0.0 and ::. Default
    /// `nxdomain`.
    pub answer: BlockAnswerName,
    /// How long clients keep that. Default `1m`.
    pub ttl: Span,
    /// How often the files are looked at; they are read again when one has changed. `0s` is never. Default `1m`.
    pub reload_interval: Span,
}

/// How `answer` is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockAnswerName {
    /// There is no such name.
    #[default]
    Nxdomain,
    /// Its addresses are 0.0.0.0 and ::.
    Zero,
}

impl Default for BlockSettings {
    fn default() -> Self {
        Self {
            lists: Vec::new(),
            allow: Vec::new(),
            answer: BlockAnswerName::default(),
            ttl: Span(Duration::from_secs(60)),
            reload_interval: Span(Duration::from_secs(60)),
        }
    }
}

/// What is made of the table.
#[derive(Clone, Debug)]
pub(crate) struct BlockConfig {
    pub(crate) lists: Vec<PathBuf>,
    /// In wire form, lower case.
    pub(crate) allow: Vec<Vec<u8>>,
    pub(crate) answer: BlockAnswer,
    pub(crate) ttl: u32,
    pub(crate) reload_interval: Option<Duration>,
}

impl BlockSettings {
    /// `None` when nothing is blocked.
    pub(super) fn valid(&self) -> Result<Option<BlockConfig>, SettingsError> {
        let wrong = |key: &str, problem: String| SettingsError { key: format!("block.{key}"), problem };
        let mut lists: Vec<PathBuf> = Vec::new();
        for path in self.lists.iter().map(PathBuf::from) {
            if path.as_os_str().is_empty() || lists.contains(&path) {
                return Err(wrong("lists", format!("`{}` is no file, or listed twice", path.display())));
            }
            lists.push(path);
        }
        let mut allow = Vec::new();
        for text in &self.allow {
            allow.push(parse_name(text).map_err(|error| wrong("allow", format!("`{text}`: {error}")))?);
        }
        let config = BlockConfig {
            allow,
            answer: match self.answer {
                BlockAnswerName::Nxdomain => BlockAnswer::NxDomain,
                BlockAnswerName::Zero => BlockAnswer::Zero,
            },
            ttl: ttl(&self.ttl).map_err(|problem| wrong("ttl", problem))?,
            reload_interval: interval(&self.reload_interval)
                .map_err(|problem| wrong("reload_interval", problem))?,
            lists,
        };
        Ok((!config.lists.is_empty()).then_some(config))
    }
}

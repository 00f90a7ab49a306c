//! `[dns.query_log]`: a line for each query, or for some.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SettingsError;

/// The `[dns.query_log]` table: a JSON object a line for each query that was answered, or for some of them: `time`,
/// `client`, `port`, `protocol`, `name`, `type`, `rcode`, `how` (`cache`, `stale`, `local`, `blocked`, `special`, `rebind`,
/// `refused`, `error`, or `upstream` with its name as `upstream`), and `took_us`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueryLogSettings {
    /// The file, which is appended to, and made anew when it has been moved away; `-` is the standard output. Default:
    /// none, and nothing is logged.
    pub path: String,
    /// One query in so many is logged, by chance; 1 is all. Default 1.
    pub sample: u32,
}

impl Default for QueryLogSettings {
    fn default() -> Self {
        Self { path: String::new(), sample: 1 }
    }
}

/// What is made of the table.
#[derive(Clone, Debug)]
pub(crate) struct QueryLogConfig {
    /// `None` is the standard output.
    pub(crate) path: Option<PathBuf>,
    pub(crate) sample: u32,
}

impl QueryLogSettings {
    /// `None` when nothing is logged.
    pub(super) fn valid(&self) -> Result<Option<QueryLogConfig>, SettingsError> {
        if self.sample == 0 {
            let problem = "is 0; it must be at least 1: one query in so many";
            return Err(SettingsError { key: "query_log.sample".to_owned(), problem: problem.to_owned() });
        }
        let path = match &*self.path {
            "" => return Ok(None),
            "-" => None,
            path => Some(PathBuf::from(path)),
        };
        Ok(Some(QueryLogConfig { path, sample: self.sample }))
    }
}

//! `[proxy.access_log]`: a line for each connection.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Mode, SettingsError, wrong};

/// The `[proxy.access_log]` table: a line for each connection that has ended. Not with mode `http`, where requests share
/// connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogSettings {
    /// The file, which is appended to, and made anew when it has been moved away; `-` is the standard output. Default:
    /// none, and nothing is logged.
    pub path: String,
    /// `json`, an object a line, or `text`. Default `json`.
    pub format: AccessLogFormat,
}

/// What a line looks like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLogFormat {
    /// A JSON object.
    #[default]
    Json,
    /// Words for a person.
    Text,
}

/// What is made of the table.
#[derive(Clone, Debug)]
pub(crate) struct AccessLogConfig {
    /// `None` is the standard output.
    pub(crate) path: Option<PathBuf>,
    pub(crate) format: AccessLogFormat,
}

impl AccessLogSettings {
    /// `None` when nothing is logged.
    pub(super) fn valid(&self, mode: Mode) -> Result<Option<AccessLogConfig>, SettingsError> {
        if mode == Mode::Http && !self.path.is_empty() {
            return Err(wrong(
                "access_log.path",
                &self.path,
                "empty with mode http: its requests are not logged",
            ));
        }
        let path = match &*self.path {
            "" => return Ok(None),
            "-" => None,
            path => Some(PathBuf::from(path)),
        };
        Ok(Some(AccessLogConfig { path, format: self.format }))
    }
}

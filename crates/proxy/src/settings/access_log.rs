//! `[proxy.access_log]`: a line for each connection or request.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The `[proxy.access_log]` table: a line for each connection that has ended; with mode `http`, for each request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessLogSettings {
    /// The file, which is appended to, and made anew when it has been moved away; `-` is the standard output. Default:
    /// none, and nothing is logged.
    pub path: String,
    /// `json`, an object a line, or `text`: for requests, that is the combined format and more after it. A request's target
    /// is written with its query, so that secrets in queries stand in the file; of its fields `Host`, `Referer`,
    /// `User-Agent` and `X-Request-ID` are, and no other, neither `Authorization` nor `Cookie`. Default `json`.
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
    pub(super) fn valid(&self) -> Option<AccessLogConfig> {
        let path = match &*self.path {
            "" => return None,
            "-" => None,
            path => Some(PathBuf::from(path)),
        };
        Some(AccessLogConfig { path, format: self.format })
    }
}

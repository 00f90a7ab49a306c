//! How the command ends when it does not end well.

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::config::Problems;

/// Why the command did not do what it was asked, as it is shown.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was used or configured wrongly: exit code 2.
    Wrong(String),
    /// The configuration file is wrong: exit code 2.
    Config(Problems),
    /// Something failed while it ran: exit code 1.
    Failed(String),
}

impl Failure {
    pub(crate) fn wrong(text: impl Into<String>) -> Self {
        Self::Wrong(text.into())
    }

    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self::Failed(text.into())
    }

    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::Wrong(_) | Self::Config(_) => ExitCode::from(2),
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wrong(text) | Self::Failed(text) => write!(f, "error: {text}"),
            // As compilers do it, so that editors find the place.
            Self::Config(problems) => problems.fmt(f),
        }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

/// Writes a line to the standard output. Whoever closed it wants no more: that is no failure.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stdout().lock(), "{line}");
}

//! Errors that answer three questions: what failed, where, whose fault.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use forebay_core::{Blame, Cause, ConfigError, Denied, Refusal, TicketError};

use crate::blame::cause_of;

/// Why a connection was not made.
#[derive(Clone, Debug)]
pub struct DialError {
    cause: Cause,
    doing: &'static str,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl DialError {
    /// Makes an error of this cause; `doing` says during what ("TCP connect", "TLS handshake").
    pub const fn new(cause: Cause, doing: &'static str) -> Self {
        Self { cause, doing, source: None }
    }

    /// Makes an error of an I/O error, judged by [`cause_of`].
    pub fn from_io(error: io::Error, doing: &'static str) -> Self {
        Self::new(cause_of(&error), doing).with_source(error)
    }

    /// Adds what lies beneath.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// Returns what went wrong.
    pub const fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns whose fault it is.
    pub const fn blame(&self) -> Blame {
        self.cause.blame()
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: ", self.doing)?;
        match &self.source {
            Some(source) => write!(f, "{source} ({}, {})", self.cause, Fault(self.blame())),
            None => write!(f, "{} ({})", self.cause, Fault(self.blame())),
        }
    }
}

impl Error for DialError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Why an acquire got nothing.
#[derive(Clone)]
pub struct AcquireError(Box<Context>);

#[derive(Clone, Debug)]
struct Context {
    upstream: Arc<str>,
    endpoint: Option<String>,
    failure: Failure,
    waited: Duration,
    /// The last failed dial to the endpoint.
    dial: Option<DialError>,
}

/// What stood in the way of an acquire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// It was refused at once.
    Refused(Refusal),
    /// It waited in vain.
    Waited(TicketError),
}

impl AcquireError {
    pub(super) fn new(
        upstream: Arc<str>,
        endpoint: Option<String>,
        failure: Failure,
        waited: Duration,
        dial: Option<DialError>,
    ) -> Self {
        Self(Box::new(Context { upstream, endpoint, failure, waited, dial }))
    }

    /// Returns what stood in the way.
    pub fn failure(&self) -> Failure {
        self.0.failure
    }

    /// Returns the name of the upstream.
    pub fn upstream(&self) -> &str {
        &self.0.upstream
    }

    /// Returns the endpoint, if one was chosen.
    pub fn endpoint(&self) -> Option<&str> {
        self.0.endpoint.as_deref()
    }

    /// Returns how long the caller had waited.
    pub fn waited(&self) -> Duration {
        self.0.waited
    }

    /// Returns why dialling failed last, if that has to do with it.
    pub fn dial_error(&self) -> Option<&DialError> {
        self.0.dial.as_ref().filter(|_| self.cause().is_some())
    }

    /// Returns the failure of the upstream or of this machine that lies beneath, if one does.
    pub fn cause(&self) -> Option<Cause> {
        match self.0.failure {
            Failure::Refused(Refusal::BreakerOpen { last, .. } | Refusal::Backoff { last, .. }) => last,
            Failure::Refused(Refusal::Full { denied: Denied::Descriptors, .. }) => Some(Cause::Descriptors),
            Failure::Refused(Refusal::Full { denied: Denied::Ports, .. }) => Some(Cause::Ports),
            Failure::Waited(TicketError::Dial(cause)) => Some(cause),
            // While leases are out there are connections: then an old failure explains nothing.
            Failure::Waited(TicketError::Timeout { in_use: 0, last, .. }) => last,
            _ => None,
        }
    }

    /// Returns whose fault it is: whether to look at this machine or at the upstream.
    pub fn blame(&self) -> Blame {
        if let Some(cause) = self.cause() {
            return cause.blame();
        }
        match self.0.failure {
            // Connections are being made and nobody holds one: the upstream does not answer dials.
            Failure::Waited(TicketError::Timeout { in_use: 0, connecting: 1.., .. }) => Blame::Upstream,
            _ => Blame::Local,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { upstream, endpoint, failure, waited, .. } = &*self.0;
        write!(f, "upstream {upstream:?}")?;
        if let Some(endpoint) = endpoint {
            write!(f, ", endpoint {endpoint}")?;
        }
        match failure {
            Failure::Refused(refusal) => write!(f, ": {refusal}")?,
            Failure::Waited(error) => write!(f, ": after {waited:.1?}: {error}")?,
        }
        if let Some(dial) = self.dial_error() {
            write!(f, ": {dial}")?;
        }
        match (failure, self.blame()) {
            (Failure::Refused(Refusal::Leaving) | Failure::Waited(TicketError::Leaving), _) => Ok(()),
            (_, Blame::Upstream) => f.write_str("; look at the upstream"),
            (_, Blame::Local) if self.cause().is_some() => f.write_str("; look at this machine"),
            (_, Blame::Local) => {
                f.write_str("; look here: every connection is busy, or a limit of this pool is too low")
            }
            (_, Blame::Client) => Ok(()),
        }
    }
}

impl fmt::Debug for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for AcquireError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.dial_error().map(|error| error as &(dyn Error + 'static))
    }
}

/// Why a pool was not built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A field of the policy cannot be.
    Config(ConfigError),
    /// There is no tokio runtime to dial on.
    NoRuntime,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::NoRuntime => f.write_str("a pool is built inside a tokio runtime, and there is none here"),
        }
    }
}

impl Error for BuildError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Config(error) => Some(error),
            Self::NoRuntime => None,
        }
    }
}

impl From<ConfigError> for BuildError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

/// Whose fault it is, as part of a sentence.
struct Fault(Blame);

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Blame::Local => "this machine's fault",
            Blame::Upstream => "the upstream's fault",
            Blame::Client => "the caller's doing",
        })
    }
}

//! From what went wrong to what the caller is told.

use forebay::{AcquireError, Blame, Cause, Failure, TicketError};
use forebay_core::Refusal;
use h2::Reason;
use tonic::{Code, Status};

/// What an end of a call by HTTP/2 means.
#[derive(Debug)]
pub(super) enum Fate {
    /// The server has not looked at it (RFC 9113 §8.7): it may be sent again.
    Unseen(h2::Error),
    /// The call has failed, and this says what of it counts against the endpoint.
    Failed { status: Status, cause: Option<Cause>, connection_is_lost: bool },
}

pub(super) fn fate_of(error: h2::Error) -> Fate {
    // Streams above the last one that a GOAWAY names, and no others, end with its words.
    if error.is_go_away() && error.is_remote() {
        return Fate::Unseen(error);
    }
    if error.is_reset() && error.is_remote() {
        return match error.reason() {
            Some(Reason::REFUSED_STREAM) => Fate::Unseen(error),
            reason => {
                let cause = match reason {
                    // What a server says of one call.
                    Some(Reason::CANCEL | Reason::NO_ERROR | Reason::ENHANCE_YOUR_CALM) => None,
                    _ => Some(Cause::Reset),
                };
                Fate::Failed { status: status_of(error), cause, connection_is_lost: false }
            }
        };
    }
    let cause = if error.is_io() { Cause::Reset } else { Cause::Protocol };
    Fate::Failed { status: status_of(error), cause: Some(cause), connection_is_lost: true }
}

/// Returns the status for an error of HTTP/2, as the table of gRPC's PROTOCOL-HTTP2 has it.
pub(super) fn status_of(error: h2::Error) -> Status {
    let code = match error.reason() {
        // Without a reason, the connection was lost.
        None | Some(Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(Reason::CANCEL) => Code::Cancelled,
        Some(Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        Some(_) => Code::Internal,
    };
    let mut status = Status::new(code, format!("HTTP/2: {error}"));
    status.set_source(std::sync::Arc::new(error));
    status
}

/// Returns the status of a call that got no connection.
pub(super) fn status_without_connection(error: AcquireError) -> Status {
    let code = match (error.failure(), error.blame()) {
        (
            Failure::Refused(Refusal::Leaving | Refusal::NoEndpoint) | Failure::Waited(TicketError::Leaving),
            _,
        ) => Code::Unavailable,
        (_, Blame::Upstream) => Code::Unavailable,
        // A limit of ours: another try at once would meet it again.
        (_, Blame::Local) => Code::ResourceExhausted,
        (_, Blame::Client) => Code::Cancelled,
    };
    let mut status = Status::new(code, error.to_string());
    status.set_source(std::sync::Arc::new(error));
    status
}

/// The caller's time is up.
pub(super) fn too_late() -> Status {
    Status::deadline_exceeded("the deadline has passed")
}

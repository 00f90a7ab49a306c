//! Whether a backend's connection may carry another request, and which requests may go on a used one.

use crate::http1::{Body, ResponseHead};

/// How freely requests share connections to backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reuse {
    /// A connection serves the client it was made for, and nobody else.
    Never,
    /// The first request of a client's connection goes on a used one only if it may be sent again should that one
    /// turn out to be dead; else on a new one. Later requests may go on any.
    ///
    /// A client cannot know that its first request failed because a connection had idled out: it has just made its own.
    #[default]
    Safe,
    /// The first request may go on a connection that has been reused before, whoever it is: its backend keeps
    /// connections, or it would not have been.
    Aggressive,
    /// Every request may go on every connection.
    Always,
}

impl Reuse {
    /// Every policy, from the most careful on.
    pub const ALL: [Self; 4] = [Self::Never, Self::Safe, Self::Aggressive, Self::Always];

    /// Returns the word used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Safe => "safe",
            Self::Aggressive => "aggressive",
            Self::Always => "always",
        }
    }

    /// Returns whether a request may go on a connection that has carried `uses` requests, of other clients.
    pub const fn admits(self, is_first: bool, is_replayable: bool, uses: u64) -> bool {
        match self {
            _ if uses == 0 => true,
            Self::Never => false,
            Self::Safe => !is_first || is_replayable,
            Self::Aggressive => !is_first || is_replayable || uses > 1,
            Self::Always => true,
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $word:literal;)*) => {
        /// Why a backend's connection cannot carry another request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Spoilt {
            $($(#[$doc])* $variant,)*
        }

        impl Spoilt {
            /// Every reason, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the word used in logs and metric labels.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }
    };
}

reasons! {
    /// The response did not end by its framing: what is left of it would be the next one's.
    ResponseUnfinished = "response_unfinished";
    /// The request's body was not sent whole: the next request would be read as its rest.
    RequestUnfinished = "request_unfinished";
    /// The backend closes its connection (RFC 9112 §9.6).
    BackendCloses = "backend_closes";
    /// HTTP/1.0 without `keep-alive` (RFC 9112 §9.3).
    Http10 = "http10";
    /// The response's body ends with the connection.
    CloseDelimited = "close_delimited";
    /// The backend has switched protocols (101).
    Switched = "switched";
    /// CONNECT has succeeded.
    Tunnel = "tunnel";
    /// More bytes came than the response had: nobody asked for them.
    BytesLeft = "bytes_left";
    /// The connection has authenticated one client.
    Private = "private";
}

/// How an exchange has ended, for [`verdict`].
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The head of the final response.
    pub response: &'a ResponseHead,
    /// How its body was framed.
    pub body: Body,
    /// Whether that body has ended by its framing.
    pub response_ended: bool,
    /// Whether the request, with all of its body, has been written.
    pub request_sent: bool,
    /// How many bytes were read beyond the response.
    pub bytes_left: usize,
    /// Whether CONNECT was asked.
    pub asked_connect: bool,
}

/// Returns whether the backend's connection may carry another request after this exchange. An exchange that did not
/// end at all (time-out, error, a client that left) needs no verdict: its connection is closed.
///
/// # Errors
///
/// The first reason why it may not.
pub fn verdict(ended: &Ended<'_>) -> Result<(), Spoilt> {
    let response = ended.response;
    let is_success = (200..300).contains(&response.status());
    let reasons = [
        (response.status() == 101, Spoilt::Switched),
        (ended.asked_connect && is_success, Spoilt::Tunnel),
        (ended.body == Body::UntilClose, Spoilt::CloseDelimited),
        (!ended.response_ended, Spoilt::ResponseUnfinished),
        (!ended.request_sent, Spoilt::RequestUnfinished),
        (ended.bytes_left > 0, Spoilt::BytesLeft),
        (!response.keeps_alive() && response.version() == crate::http1::Version::Http10, Spoilt::Http10),
        (!response.keeps_alive(), Spoilt::BackendCloses),
    ];
    reasons.iter().find(|(holds, _)| *holds).map_or(Ok(()), |(_, reason)| Err(*reason))
}

//! When a connection stops being HTTP: after the backend's 101, or its 2xx to CONNECT, and never before.

use std::fmt;

use crate::http1::{Method, RequestHead, ResponseHead, Version};

/// Returns whether the client's wish for another protocol is passed on (RFC 9110 §7.8).
///
/// Not with a body, whose end two readers may see in two places (CVE-2026-58055), and not for `h2c`, of which the next
/// hop's HTTP/2 would know nothing (RFC 9113 §3.1).
pub fn wants_upgrade(head: &RequestHead, bytes: &[u8]) -> bool {
    head.version() == Version::Http11
        && head.method() != Method::Connect
        && !head.has_body()
        && head.fields().upgrade(bytes).is_some_and(|value| {
            protocols(value).all(|name| !name.is_empty() && !name.eq_ignore_ascii_case(b"h2c"))
        })
}

/// What a final response makes of the two connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// Nothing: it stays HTTP.
    Stays,
    /// A tunnel, as 101 says.
    Upgraded,
    /// A tunnel, as 2xx to CONNECT says.
    Connected,
}

/// What a backend must not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelError {
    /// 101 to a client that did not ask for it.
    NotAsked,
    /// 101 with a protocol that the client did not name, or with none.
    WrongProtocol,
}

impl TunnelError {
    /// Returns what is wrong, for a log and for the answer's body.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAsked => "the backend switches protocols unasked",
            Self::WrongProtocol => "the backend switches to a protocol that was not asked for",
        }
    }
}

impl fmt::Display for TunnelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for TunnelError {}

/// Returns whether this response opens a tunnel. `asked` is what was passed on of the client's wish, if it was.
///
/// # Errors
///
/// What a backend must not do: it gets no tunnel, and its client 502.
pub fn switches(
    method: Method,
    asked: Option<&[u8]>,
    response: &ResponseHead,
    bytes: &[u8],
) -> Result<Switch, TunnelError> {
    match (response.status(), asked) {
        (101, None) => Err(TunnelError::NotAsked),
        (101, Some(asked)) => {
            let given = response.fields().upgrade(bytes).ok_or(TunnelError::WrongProtocol)?;
            let is_asked = |name: &[u8]| protocols(asked).any(|wanted| wanted.eq_ignore_ascii_case(name));
            if protocols(given).all(is_asked) {
                Ok(Switch::Upgraded)
            } else {
                Err(TunnelError::WrongProtocol)
            }
        }
        (200..300, _) if method == Method::Connect => Ok(Switch::Connected),
        _ => Ok(Switch::Stays),
    }
}

fn protocols(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

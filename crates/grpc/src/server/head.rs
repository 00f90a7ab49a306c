//! What a request says before its messages: whether it is a call of gRPC, and how long it may take.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, Method, StatusCode};

/// What gRPC calls itself; a suffix may say how messages are written.
const GRPC: &[u8] = b"application/grpc";

/// How long the client waits.
static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Digits that a timeout may have.
const TIMEOUT_DIGITS_MAX: usize = 8;

/// Why a request is no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoCall {
    /// Another method than POST.
    Method,
    /// Something else than gRPC: browsers' `application/grpc-web` too.
    ContentType,
    /// A timeout that cannot be read.
    Timeout,
}

impl NoCall {
    /// Returns what HTTP says to it, if gRPC does not.
    pub(super) const fn http_status(self) -> Option<StatusCode> {
        match self {
            Self::Method => Some(StatusCode::METHOD_NOT_ALLOWED),
            Self::ContentType => Some(StatusCode::UNSUPPORTED_MEDIA_TYPE),
            Self::Timeout => None,
        }
    }
}

/// Reads a head. Returns how long the client waits, if it says so.
///
/// # Errors
///
/// Why it is no call.
pub(super) fn read(method: &Method, headers: &HeaderMap) -> Result<Option<Duration>, NoCall> {
    if method != Method::POST {
        return Err(NoCall::Method);
    }
    if !headers.get(CONTENT_TYPE).is_some_and(|value| is_grpc(value.as_bytes())) {
        return Err(NoCall::ContentType);
    }
    match headers.get(&GRPC_TIMEOUT) {
        None => Ok(None),
        Some(value) => timeout(value.as_bytes()).map(Some).ok_or(NoCall::Timeout),
    }
}

/// "If Content-Type does not begin with "application/grpc", gRPC servers SHOULD respond with HTTP status of 415"
/// (PROTOCOL-HTTP2).
fn is_grpc(value: &[u8]) -> bool {
    value.strip_prefix(GRPC).is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// Reads `TimeoutValue TimeoutUnit` (PROTOCOL-HTTP2): at most eight digits, and H, M, S, m, u or n.
fn timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > TIMEOUT_DIGITS_MAX {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_a_number_and_a_unit() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("0n", Some(Duration::ZERO)),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("999999999H", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("-1S", None),
            ("1.5S", None),
            ("1s", None),
        ] {
            assert_eq!(timeout(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn only_grpc_is_a_call() {
        for (text, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(is_grpc(text.as_bytes()), expected, "{text}");
        }
    }
}

//! Which connections belong to one client: those that authenticate the connection instead of the request.

use crate::http1::{Known, ResponseHead};

/// Returns whether this response begins to authenticate its connection, as NTLM and Negotiate do (against
/// RFC 9110 §11): what comes on it from then on comes from that client, and no other may ever use it.
pub fn is_private(head: &ResponseHead, bytes: &[u8]) -> bool {
    let known = match head.status() {
        401 => Known::WwwAuthenticate,
        407 => Known::ProxyAuthenticate,
        _ => return false,
    };
    head.fields().values_of(known, bytes).any(|value| {
        // Challenges are a list whose members are lists, so every word that begins a member may be a scheme.
        value.split(|byte| *byte == b',').any(|member| {
            let word = member.trim_ascii().split(|byte| *byte == b' ').next().unwrap_or_default();
            word.eq_ignore_ascii_case(b"ntlm") || word.eq_ignore_ascii_case(b"negotiate")
        })
    })
}

//! What clients are told when there is no answer.

use std::time::Duration;

use forebay_core::{Blame, Cause};

use super::attempts::has_no_way;
use super::counters::ForwarderCounters;
use super::{Client, Forwarder, How, Outbox, StreamKind};
use crate::reply::{Fit, Terms, write_error};
use crate::wire::{ANSWER_BLOCK, Asked, ExtendedError, rcode};

impl Forwarder {
    pub(super) fn reply_error(
        &mut self,
        client: &Client,
        asked: &Asked<'_>,
        code: u16,
        error: Option<ExtendedError<'_>>,
        out: &mut impl Outbox,
    ) {
        self.counters.replies += 1;
        let terms = terms(client, asked, self.udp_size);
        out.reply(client, |buffer| write_error(buffer, asked, code, error, &terms));
    }

    /// Every endpoint has failed this question a moment ago, and none is asked again yet (RFC 9520 §3.2).
    #[cold]
    pub(super) fn reply_remembered(&mut self, client: &Client, asked: &Asked<'_>, out: &mut impl Outbox) {
        self.counters.remembered += 1;
        out.tell(How::Cached, Duration::ZERO);
        let error =
            ExtendedError { code: ede::CACHED_ERROR, text: b"all upstreams failed this question lately" };
        self.reply_error(client, asked, rcode::SERVFAIL, Some(error), out);
    }
}

pub(super) fn terms(client: &Client, asked: &Asked<'_>, udp_size: u16) -> Terms {
    match client {
        Client::Udp { .. } => Terms::udp(asked, udp_size),
        Client::Stream { kind, idle, .. } => {
            let edns = asked.edns.as_ref();
            let has_keepalive = edns.is_some_and(|edns| edns.keepalive);
            // RFC 7828 §3.3.2: only if the query had the option. HTTP has means of its own (RFC 8484 §9).
            let keepalive = (has_keepalive && *kind != StreamKind::Https).then_some(*idle);
            // RFC 7830 §4, §6: only if the query was padded, and only where nobody on the way can read.
            let is_padded = edns.is_some_and(|edns| edns.padding) && *kind != StreamKind::Tcp;
            Terms { padding: if is_padded { ANSWER_BLOCK } else { 0 }, ..Terms::stream(keepalive) }
        }
    }
}

pub(super) const fn count_reply(counters: &mut ForwarderCounters, fit: Fit) {
    counters.replies += 1;
    if matches!(fit, Fit::Truncated) {
        counters.replies_truncated += 1;
    }
}

/// What a failure is called towards a client (RFC 8914).
pub(super) fn explain(cause: Cause) -> ExtendedError<'static> {
    let (code, text) = match cause.blame() {
        Blame::Local if has_no_way(cause) => (ede::NETWORK_ERROR, local_text(cause)),
        Blame::Local => (ede::OTHER, local_text(cause)),
        Blame::Upstream if cause == Cause::Timeout => {
            (ede::NO_REACHABLE_AUTHORITY, "no upstream answered in time")
        }
        Blame::Upstream if cause == Cause::Tls => (ede::NETWORK_ERROR, "TLS with the upstream failed"),
        Blame::Upstream if cause == Cause::Protocol => (ede::NETWORK_ERROR, "upstream answer malformed"),
        Blame::Upstream if cause == Cause::Unreachable => (ede::NETWORK_ERROR, "upstream cannot be reached"),
        Blame::Upstream | Blame::Client => (ede::NETWORK_ERROR, "upstream refused or closed the connection"),
    };
    ExtendedError { code, text: text.as_bytes() }
}

const fn local_text(cause: Cause) -> &'static str {
    match cause {
        Cause::Ports => "forwarder has no local port left",
        Cause::Descriptors => "forwarder has no file descriptor left",
        Cause::Route => "forwarder has no route to its upstreams",
        Cause::Permission => "forwarder is not allowed to reach its upstreams",
        Cause::Limit => "forwarder is at its connection limit",
        _ => "forwarder cannot make a connection",
    }
}

/// Extended error codes (RFC 8914 §4).
pub(super) mod ede {
    pub(in crate::forwarder) const OTHER: u16 = 0;
    pub(in crate::forwarder) const CACHED_ERROR: u16 = 13;
    pub(in crate::forwarder) const NOT_READY: u16 = 14;
    pub(in crate::forwarder) const BLOCKED: u16 = 15;
    pub(in crate::forwarder) const PROHIBITED: u16 = 18;
    pub(in crate::forwarder) const NOT_SUPPORTED: u16 = 21;
    pub(in crate::forwarder) const NO_REACHABLE_AUTHORITY: u16 = 22;
    pub(in crate::forwarder) const NETWORK_ERROR: u16 = 23;
}

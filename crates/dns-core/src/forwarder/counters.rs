//! What a forwarder counts, declared once.

macro_rules! counters {
    ($($(#[doc = $help:literal])* $field:ident,)*) => {
        /// Figures of one worker since it began. Declared once: metrics and documents are made of [`Self::fields`].
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ForwarderCounters {
            $($(#[doc = $help])* pub $field: u64,)*
        }

        impl ForwarderCounters {
            /// Iterates over name, meaning and value of every counter.
            pub fn fields(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($field), concat!($($help),*), self.$field),)*].into_iter()
            }

            /// Adds another worker's figures to these.
            pub const fn merge(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }
        }
    };
}

counters! {
    /// Queries that could be read.
    queries,
    /// Messages that were answered with an error because they could not be served (FORMERR, NOTIMP, REFUSED…).
    faulty,
    /// Messages dropped in silence: no queries at all.
    ignored,
    /// Queries refused because the client's address is not served (protection.allow).
    refused_client,
    /// Queries dropped because the client's network was over its rate limit.
    limited_dropped,
    /// Queries answered truncated because the client's network was over its rate limit.
    limited_truncated,
    /// Queries over a stream refused because the client's network was over its rate limit.
    limited_refused,
    /// Queries refused because of a class other than IN.
    refused_class,
    /// Queries for ANY answered with the one record of RFC 8482.
    any_minimal,
    /// Queries answered from local data.
    local,
    /// Queries for names on the block list.
    blocked,
    /// Queries for special names (RFC 6761), answered here.
    special,
    /// Queries whose answer was kept back: a public name with a private address.
    rebind,
    /// Queries answered from the cache.
    hits,
    /// Those of the hits that were answered with what answers to other questions had said.
    known,
    /// Queries answered with an answer past its time, because no upstream had a new one, or none soon enough. Rising:
    /// look at the upstreams.
    stale,
    /// Answers asked for again before their time was over.
    prefetches,
    /// Times that an answer was in the cache and no upstream had a new one.
    refresh_failures,
    /// Cached answers forgotten on demand.
    flushed,
    /// Queries that joined a question already in flight.
    coalesced,
    /// Queries answered SERVFAIL at once because every upstream had failed the question lately (RFC 9520).
    remembered,
    /// Questions that went upstream.
    misses,
    /// Queries sent upstream, retries and replays included.
    transmits,
    /// Attempts after the first for a question.
    retries,
    /// Attempts begun anew because a used connection turned out dead.
    replays,
    /// Truncated answers retried over a stream.
    truncated,
    /// Answers taken.
    answers,
    /// Active health checks begun.
    checks,
    /// Active health checks that failed with the upstream to blame.
    checks_failed,
    /// Answers that came late or twice: nobody waited for them any more.
    late,
    /// Attempts begun while another was still in time: to win a race, or to measure an endpoint.
    raced,
    /// Answers that fitted no query of their connection, and are not late either: forged or garbled.
    unexpected,
    /// Bursts of such answers: somebody was guessing.
    bursts,
    /// Sockets replaced because of such a burst.
    rotated,
    /// Answers that fitted, but were asked for again over a stream because they may have been guessed.
    distrusted,
    /// Answers whose question was spelled otherwise than it was asked; asked for again.
    case_mismatches,
    /// Answers with a cookie that is not ours: forged.
    cookies_wrong,
    /// Answers without a cookie from an upstream that gives them; asked for again.
    cookies_missing,
    /// Queries refused because of an old cookie; asked again with a new one.
    cookies_refused,
    /// Clients' queries with a cookie of ours that is right.
    cookies_right,
    /// Queries over the rate limit that were served because of such a cookie.
    limited_vouched,
    /// Streams held back because a query on them was not answered in time.
    suspects,
    /// Streams closed because another answered what they had not, or to make room for one.
    condemned,
    /// Answers that could not be read.
    malformed,
    /// Replies sent.
    replies,
    /// Replies that did not fit the client's UDP size.
    replies_truncated,
    /// Replies SERVFAIL because every attempt had timed out.
    failed_timeout,
    /// Replies SERVFAIL because of upstreams: refused, reset, malformed.
    failed_upstream,
    /// Replies SERVFAIL because this machine ran out of something.
    failed_local,
    /// Replies SERVFAIL because too many clients waited.
    failed_overload,
}

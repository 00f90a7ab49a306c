//! What happens before a question is asked: who may ask, and what is answered here.
//!
//! ```text
//! client ──▶ allow-list ──▶ rate limit ──▶ scan ──▶ cache ──hit──▶ reply
//!            REFUSED          TC=1, drop              │ miss
//!                                                     ▼
//!        class, ANY ──▶ local data ──▶ block list ──▶ routes ──▶ special names ──▶ an upstream
//! ```
//!
//! The first that knows the name answers. Nothing of it costs a hit anything but the look at the client's address: what
//! is answered here never comes into the cache, and when local data or a block list change, answers that are older are
//! looked at once more before they are given.
//!
//! A query without RD is forwarded as it is, under its own key: it is never answered with what others have asked for,
//! so that nobody can find out what that was (RFC 5358 speaks of why).

use std::sync::Arc;
use std::time::Duration;

use forebay_core::{Instant, Rng};

use super::config::Route;
use super::errors::{count_reply, ede, terms};
use super::{Client, Forwarder, Handled, Outbox};
use crate::guard::{PrefixSet, RateLimit, RebindConfig, SPECIAL_TTL, Special, SpecialAnswer, special};
use crate::local::{BlockAnswer, BlockList, LocalData, NameMap, write_record, write_soa};
use crate::reply::{Fit, write_local, write_truncated};
use crate::wire::{
    Answer, Asked, ExtendedError, HEADER_LEN, HashSeed, Query, QueryFault, Suffixes, class, rcode, rtype,
    scan_query,
};

/// What protects a forwarder, and what it answers by itself. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct FrontConfig {
    /// Whose queries are served; `None` serves everybody.
    pub allow: Option<PrefixSet>,
    /// How often each network may ask; `None` is as often as it likes. Shared by the workers.
    pub rate: Option<Arc<RateLimit>>,
    /// One in so many datagrams over the limit, by chance, is answered truncated, so that a client that is no forgery
    /// comes back over TCP; the others are dropped. 0 answers none, 1 all.
    pub rate_slip: u32,
    /// What questions for ANY are answered.
    pub any: AnyPolicy,
    /// Whether special names are answered here (RFC 6761).
    pub special_names: bool,
    /// Which answers of the first upstream are not passed on; `None` passes all.
    pub rebind: Option<RebindConfig>,
    /// Names that are known here.
    pub local: Option<Arc<LocalData>>,
    /// Names that are not to be found.
    pub block: Option<Arc<BlockList>>,
    /// What blocked names are answered.
    pub block_answer: BlockAnswer,
    /// How long such an answer holds, in seconds.
    pub block_ttl: u32,
}

/// What questions for ANY are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnyPolicy {
    /// What an upstream says.
    #[default]
    Forward,
    /// One HINFO record that says why (RFC 8482 §4.2).
    Minimal,
}

/// How a query was answered, for the log of queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// From the cache.
    Cached,
    /// From the cache, by an answer past its time.
    Stale,
    /// By an upstream, by its place; or nobody could, and the reply says so.
    Upstream(u16),
    /// From local data.
    Local,
    /// As a special name.
    Special,
    /// From the block list.
    Blocked,
    /// By an upstream, whose answer was not passed on.
    Rebind,
    /// Not at all: the client, its rate, or its question is not served.
    Refused,
}

/// The state behind [`FrontConfig`].
#[derive(Debug)]
pub(crate) struct Front {
    config: FrontConfig,
    routes: Routes,
    suffixes: Box<Suffixes>,
    /// Cached answers that came before are looked at once more.
    trusted_from: Instant,
}

/// Which upstream knows the names under a suffix.
#[derive(Debug)]
struct Routes {
    seed: HashSeed,
    by_suffix: NameMap<u16>,
}

/// Why a client's message is turned away before it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turned {
    /// Its sender is not served.
    Outsider,
    /// Its sender's network is over the limit.
    TooFast,
}

impl Front {
    pub(super) fn new(now: Instant, config: FrontConfig, routes: &[Route], seed: HashSeed) -> Self {
        let mut suffixes = Box::new(Suffixes::new());
        let mut by_suffix = NameMap::new();
        for route in routes {
            suffixes.fill(&route.suffix, &seed);
            // The first of equals holds.
            by_suffix.get_or_insert(suffixes.whole(&seed), &route.suffix, || route.upstream);
        }
        let knows_names = config.local.is_some() || config.block.is_some();
        let trusted_from = if knows_names { now + ROUNDING } else { Instant::from_nanos(0) };
        Self { config, routes: Routes { seed, by_suffix }, suffixes, trusted_from }
    }

    /// Whether a client's message goes no further.
    #[inline]
    pub(super) fn turns_away(&self, now: Instant, client: &Client) -> Option<Turned> {
        if let Some(allow) = &self.config.allow
            && !allow.contains(client.address())
        {
            return Some(Turned::Outsider);
        }
        if let Some(rate) = &self.config.rate
            && !rate.admit(now, client.address())
        {
            return Some(Turned::TooFast);
        }
        None
    }

    /// Whether a cached answer of this age came after what is known here now.
    #[inline]
    pub(super) fn trusts(&self, now: Instant, age_secs: u32) -> bool {
        now >= self.trusted_from + Duration::from_secs(u64::from(age_secs))
    }

    /// Which upstream has a route for a name in lower case; the longest suffix holds.
    pub(super) fn route_of(&mut self, name: &[u8]) -> Option<u16> {
        let Self { routes: Routes { seed, by_suffix }, suffixes, .. } = self;
        if by_suffix.is_empty() {
            return None;
        }
        suffixes.fill(name, seed);
        let below = suffixes.iter().find_map(|(start, hash)| by_suffix.get(hash, name.get(start..)?));
        below.or_else(|| by_suffix.get(seed.empty_name(), &[0])).copied()
    }

    /// Which upstream is asked about a name in lower case; `None` if that is answered here.
    pub(super) fn asked_about(&mut self, name: &[u8]) -> Option<u16> {
        let route = self.route_of(name);
        let Self { config, suffixes, .. } = self;
        let is_known = config.local.as_ref().is_some_and(|local| local.find(name, suffixes).is_some())
            || config.block.as_ref().is_some_and(|block| block.blocks(name, suffixes))
            || route.is_none() && config.special_names && special(name, rtype::A).is_some();
        (!is_known).then_some(route.unwrap_or(0))
    }

    /// Whether an answer of an upstream about a name must not reach clients: a public name with a private address.
    pub(super) fn objects_to(&self, upstream: u16, name: &[u8], answer: &Answer<'_>) -> bool {
        upstream == 0 && self.config.rebind.as_ref().is_some_and(|rebind| rebind.objects_to(name, answer))
    }

    /// What was learnt from now on differs from what was learnt before: `flying` is how long an answer may be under way.
    fn note_change(&mut self, now: Instant, flying: Duration) {
        self.trusted_from = now + flying + ROUNDING;
    }
}

/// Ages of cached answers are whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// The HINFO record of RFC 8482 §4.2.
const ANY_HINFO: &[u8] = b"\x07RFC8482\0";

/// How long it holds, in seconds.
const ANY_TTL: u32 = 3600;

/// How long it holds that a name's addresses are kept back, in seconds.
const REBIND_TTL: u32 = 60;

impl Forwarder {
    /// Takes other local data, or none. Cached answers that came before no longer count where it knows better.
    pub fn handle_local(&mut self, now: Instant, local: Option<Arc<LocalData>>) {
        self.front.config.local = local;
        self.front.note_change(now, self.query_timeout);
    }

    /// Takes another block list, or none. Cached answers that came before no longer count where it knows better.
    pub fn handle_block(&mut self, now: Instant, block: Option<Arc<BlockList>>) {
        self.front.config.block = block;
        self.front.note_change(now, self.query_timeout);
    }

    /// Whether queries from this address are served at all: what a shell asks before it takes a connection.
    pub fn serves(&self, address: std::net::IpAddr) -> bool {
        self.front.config.allow.as_ref().is_none_or(|allow| allow.contains(address))
    }

    /// Says no, as cheaply as can be, or nothing.
    #[cold]
    pub(super) fn turn_away(
        &mut self,
        turned: Turned,
        client: &Client,
        bytes: &[u8],
        out: &mut impl Outbox,
    ) -> Handled {
        let asked = match scan_query(bytes) {
            Ok(query) => query.asked,
            Err(QueryFault::Answer(fault)) => fault.asked,
            Err(QueryFault::Ignore(_)) => {
                self.counters.ignored += 1;
                return Handled::Ignored;
            }
        };
        let text = match turned {
            Turned::Outsider => {
                self.counters.refused_client += 1;
                "this server does not serve your address"
            }
            Turned::TooFast => {
                if matches!(client, Client::Udp { .. }) {
                    return self.slip(client, &asked, out);
                }
                self.counters.limited_refused += 1;
                "too many queries from your network"
            }
        };
        out.tell(How::Refused, Duration::ZERO);
        let error = ExtendedError { code: ede::PROHIBITED, text: text.as_bytes() };
        self.reply_error(client, &asked, rcode::REFUSED, Some(error), out);
        Handled::Taken
    }

    /// A datagram is over the limit: a truncated answer, no larger than the query, or silence.
    fn slip(&mut self, client: &Client, asked: &Asked<'_>, out: &mut impl Outbox) -> Handled {
        if asked.question.is_empty() || !slips(&mut self.chance, self.front.config.rate_slip) {
            self.counters.limited_dropped += 1;
            return Handled::Ignored;
        }
        self.counters.limited_truncated += 1;
        let (terms, counters) = (terms(client, asked, self.udp_size), &mut self.counters);
        out.tell(How::Refused, Duration::ZERO);
        out.reply(client, |buffer| count_reply(counters, write_truncated(buffer, asked, &terms)));
        Handled::Taken
    }

    /// Answers what no upstream needs to be asked. Returns whether there was a reply.
    pub(super) fn answer_here(&mut self, client: &Client, query: &Query<'_>, out: &mut impl Outbox) -> bool {
        let asked = &query.asked;
        if query.qclass != class::IN {
            self.counters.refused_class += 1;
            let text = b"only class IN is served";
            out.tell(How::Refused, Duration::ZERO);
            let error = ExtendedError { code: ede::NOT_SUPPORTED, text };
            self.reply_error(client, asked, rcode::REFUSED, Some(error), out);
            return true;
        }
        let terms = terms(client, asked, self.udp_size);
        let Self { front, key, counters, .. } = self;
        let is_any = query.qtype == rtype::ANY && front.config.any == AnyPolicy::Minimal;
        if is_any {
            counters.any_minimal += 1;
            out.tell(How::Special, Duration::ZERO);
            out.reply(client, |buffer| {
                let fit = write_local(buffer, asked, rcode::NOERROR, None, &terms, |buffer| {
                    write_record(buffer, HEADER_LEN, rtype::HINFO, ANY_TTL, ANY_HINFO);
                    [1, 0, 0]
                });
                count_reply(counters, fit);
            });
            return true;
        }
        let name = key.name();
        if let Some(local) = &front.config.local
            && let Some(found) = local.find(name, &mut front.suffixes)
        {
            counters.local += 1;
            out.tell(How::Local, Duration::ZERO);
            let suffixes = &mut front.suffixes;
            out.reply(client, |buffer| {
                let fit = write_local(buffer, asked, rcode::NOERROR, None, &terms, |buffer| {
                    local.write(buffer, name, found, query.qtype, suffixes)
                });
                count_reply(counters, fit);
            });
            return true;
        }
        if let Some(block) = &front.config.block
            && block.blocks(name, &mut front.suffixes)
        {
            counters.blocked += 1;
            let error = ExtendedError { code: ede::BLOCKED, text: b"on the block list" };
            let (answer, ttl) = (front.config.block_answer, front.config.block_ttl);
            out.tell(How::Blocked, Duration::ZERO);
            out.reply(client, |buffer| {
                let fit = write_local(buffer, asked, answer.rcode(), Some(error), &terms, |buffer| {
                    answer.write(buffer, query.qtype, ttl)
                });
                count_reply(counters, fit);
            });
            return true;
        }
        if front.config.special_names
            && let Some(found) = special(name, query.qtype)
            && front.route_of(name).is_none()
        {
            counters.special += 1;
            out.tell(How::Special, Duration::ZERO);
            out.reply(client, |buffer| {
                count_reply(counters, write_special(buffer, asked, &found, query.qtype, &terms));
            });
            return true;
        }
        false
    }

    /// Whether an answer must not reach its clients: a public name with a private address.
    pub(super) fn is_rebind(&mut self, flight: u32, answer: &Answer<'_>) -> bool {
        let Some(rebind) = &self.front.config.rebind else { return false };
        let this = self.flights.flight(flight);
        this.upstream == 0 && rebind.objects_to(this.key.name(), answer)
    }

    /// Ends a flight whose answer is not passed on.
    #[cold]
    pub(super) fn finish_rebind(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        self.note_unkept(now, flight);
        let began = self.flights.flight(flight).deadline - self.query_timeout;
        let took = now.saturating_duration_since(began);
        self.latency.record_duration(took);
        let error = ExtendedError { code: ede::BLOCKED, text: b"a public name with a private address" };
        let (udp_size, counters) = (self.udp_size, &mut self.counters);
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, udp_size);
            counters.rebind += 1;
            out.tell(How::Rebind, took);
            out.reply(&waiter.client, |buffer| {
                let fit = write_local(buffer, &asked, rcode::NXDOMAIN, Some(error), &terms, |buffer| {
                    write_soa(buffer, HEADER_LEN, REBIND_TTL);
                    [0, 1, 0]
                });
                count_reply(counters, fit);
            });
        }
        self.end(now, flight);
    }
}

fn slips(chance: &mut Rng, slip: u32) -> bool {
    match slip {
        0 => false,
        1 => true,
        n => chance.below(n) == 0,
    }
}

fn write_special(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    found: &Special,
    qtype: u16,
    terms: &crate::reply::Terms,
) -> Fit {
    let code = match found.answer {
        SpecialAnswer::NxDomain => rcode::NXDOMAIN,
        SpecialAnswer::NoData | SpecialAnswer::Data(_) => rcode::NOERROR,
    };
    write_local(out, asked, code, None, terms, |buffer| match found.answer {
        SpecialAnswer::Data(rdata) => {
            write_record(buffer, HEADER_LEN, qtype, SPECIAL_TTL, rdata);
            [1, 0, 0]
        }
        SpecialAnswer::NxDomain | SpecialAnswer::NoData => {
            write_soa(buffer, HEADER_LEN + found.apex, SPECIAL_TTL);
            [0, 1, 0]
        }
    })
}

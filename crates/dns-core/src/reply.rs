//! Writes replies: the bytes of an answer with this client's id, letter case and flags in place.
//!
//! Every writer appends to a buffer that the caller reuses, so that a batch of replies fills one
//! arena without allocating. What a reply gives back of its query is in [`Asked`], what its
//! transport allows in [`Terms`].
//!
//! A reply is never authoritative (AA=0), always offers recursion (RA=1), and has an OPT record
//! exactly when the query had one (RFC 6891 §7). The OPT record is ours, not the upstream's.

use crate::wire::{
    Answer, Asked, ExtendedError, HEADER_LEN, OPT_LEN, UDP_LEN_DEFAULT, be16, be32, flag, opt_record, option,
    pad, plain_ttl, rcode, same_question,
};

#[cfg(test)]
mod tests;

/// An answer in the form it is kept in: the wire without its OPT record, its question
/// lower-cased, and where its TTLs stand.
#[derive(Debug, Clone, Copy)]
pub struct Stored<'a> {
    wire: &'a [u8],
    ttl_offsets: &'a [[u8; 2]],
}

impl<'a> Stored<'a> {
    /// `wire` has one question and no OPT record; `ttl_offsets` has a little-endian offset for
    /// each of its records, in order.
    pub(crate) fn new(wire: &'a [u8], ttl_offsets: &'a [[u8; 2]]) -> Self {
        Self { wire, ttl_offsets }
    }

    /// The message: lower-cased question, TTLs as of when it was stored, id of no meaning.
    pub fn wire(&self) -> &'a [u8] {
        self.wire
    }

    /// Where the TTLs stand in it.
    pub fn ttl_offsets(&self) -> impl ExactSizeIterator<Item = usize> + 'a {
        self.ttl_offsets.iter().map(|pair| usize::from(u16::from_le_bytes(*pair)))
    }

    /// The response code.
    pub fn rcode(&self) -> u16 {
        be16(self.wire, 2).unwrap_or_default() & flag::RCODE
    }
}

/// What a reply's transport allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The longest reply, in bytes.
    pub len_max: usize,
    /// The UDP payload that we say we take, in bytes.
    pub udp_size: u16,
    /// The idle time-out granted to a client on a stream, in units of 100 ms (RFC 7828 §3.1).
    /// `None` says nothing; over UDP it must (RFC 7828 §3.3.1).
    pub keepalive: Option<u16>,
    /// The length of the reply becomes a multiple of this, in bytes, if it has an OPT record (RFC 8467 §4.1); 0 leaves
    /// it as it is.
    pub padding: u16,
}

impl Terms {
    /// Over UDP: what the client takes, but no more than `cap` bytes.
    #[inline]
    pub fn udp(asked: &Asked<'_>, cap: u16) -> Self {
        Self { len_max: asked.udp_len_max(cap), udp_size: UDP_LEN_DEFAULT, keepalive: None, padding: 0 }
    }

    /// Over a stream: everything fits.
    pub fn stream(keepalive: Option<u16>) -> Self {
        Self { len_max: crate::wire::MESSAGE_LEN_MAX, udp_size: UDP_LEN_DEFAULT, keepalive, padding: 0 }
    }
}

/// What became of an answer on its way into a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "truncated replies are worth counting"]
pub enum Fit {
    /// All of it was written; additional records may have been left out (RFC 2181 §9).
    Whole,
    /// It was too long: TC=1 and no records, so that the client asks again over TCP.
    Truncated,
    /// It could not be given to this client (another question, or a code that speaks of our hop
    /// to the upstream): SERVFAIL was written instead.
    Failed,
}

/// Appends the reply made of a stored answer that is `age_secs` old.
///
/// `asked` must be the question whose key found it.
#[inline]
pub fn write_stored(
    out: &mut Vec<u8>,
    stored: &Stored<'_>,
    asked: &Asked<'_>,
    age_secs: u32,
    terms: &Terms,
) -> Fit {
    let retime = (age_secs > 0).then_some(|ttl: u32| ttl.saturating_sub(age_secs));
    write_kept(out, stored, asked, terms, retime, flag::AD | flag::RCODE, None)
}

/// Appends the reply made of a stored answer whose time is over: every TTL is `ttl_secs`, the extended error says that
/// it is stale (RFC 8767 §4, RFC 8914 §4.4, §4.20), and AD is not set, since signatures have a time of their own.
pub fn write_stale(
    out: &mut Vec<u8>,
    stored: &Stored<'_>,
    asked: &Asked<'_>,
    ttl_secs: u32,
    terms: &Terms,
) -> Fit {
    let code = if stored.rcode() == rcode::NXDOMAIN { STALE_NXDOMAIN } else { STALE_ANSWER };
    let error = ExtendedError { code, text: b"" };
    write_kept(out, stored, asked, terms, Some(|_| ttl_secs), flag::RCODE, Some(error))
}

/// Extended errors (RFC 8914 §4.4, §4.20).
const STALE_ANSWER: u16 = 3;
const STALE_NXDOMAIN: u16 = 19;

#[inline]
fn write_kept(
    out: &mut Vec<u8>,
    stored: &Stored<'_>,
    asked: &Asked<'_>,
    terms: &Terms,
    retime: Option<impl Fn(u32) -> u32>,
    kept_flags: u16,
    error: Option<ExtendedError<'_>>,
) -> Fit {
    let Some(header) = stored.wire.first_chunk::<HEADER_LEN>() else {
        return write_failed(out, asked, terms);
    };
    let echoed = stored.wire.get(HEADER_LEN..HEADER_LEN + asked.question.len());
    debug_assert!(echoed.is_some_and(|echoed| same_question(echoed, asked.question)));
    if echoed.is_none() {
        return write_failed(out, asked, terms);
    }
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let base = out.len();
    out.extend_from_slice(stored.wire);
    if let Some(retime) = retime {
        let message = &mut out[base..];
        for at in stored.ttl_offsets() {
            if let Some(ttl) = message.get_mut(at..).and_then(|r| r.first_chunk_mut::<4>()) {
                *ttl = retime(u32::from_be_bytes(*ttl)).to_be_bytes();
            }
        }
    }
    let reply = Reply {
        base,
        asked,
        terms,
        flags: word(2) & kept_flags,
        counts: [word(6), word(8), word(10)],
        error,
    };
    reply.finish(out, |index| {
        let pair = stored.ttl_offsets.get(index)?;
        Some(usize::from(u16::from_le_bytes(*pair)))
    })
}

/// Appends the reply made of an answer as it came from the upstream.
///
/// The TTLs stay as they are, and the upstream's extended error (RFC 8914 §3) goes along.
/// `asked` may be any client that waited for this question, whatever its letter case.
pub fn write_fresh(out: &mut Vec<u8>, answer: &Answer<'_>, asked: &Asked<'_>, terms: &Terms) -> Fit {
    let error = answer.opt.as_ref().and_then(|opt| opt.edns.options.extended_error());
    if answer.rcode > flag::RCODE {
        // BADVERS, BADCOOKIE and the like are between the upstream and us.
        write_error(out, asked, rcode::SERVFAIL, error, terms);
        return Fit::Failed;
    }
    if answer.question.is_empty() && answer.rcode != rcode::NOERROR {
        write_error(out, asked, answer.rcode, error, terms);
        return Fit::Whole;
    }
    if !same_question(answer.question, asked.question) {
        return write_failed(out, asked, terms);
    }
    let parts = answer.without_opt();
    let base = out.len();
    out.reserve(parts.len() + OPT_LEN);
    out.extend_from_slice(parts.head);
    out.extend_from_slice(parts.tail);
    let reply = Reply {
        base,
        asked,
        terms,
        flags: answer.flags & (flag::AD | flag::TC | flag::RCODE),
        counts: parts.counts,
        error,
    };
    reply.finish(out, |index| parts.ttl_offsets().nth(index).map(usize::from))
}

/// Appends an error reply: the question if it could be read, the code, and for clients that
/// speak EDNS the extended error, if there is room for it.
pub fn write_error(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    rcode: u16,
    error: Option<ExtendedError<'_>>,
    terms: &Terms,
) {
    // Without OPT there is no place for the upper bits.
    let rcode = if rcode > flag::RCODE && asked.edns.is_none() { rcode::SERVFAIL } else { rcode };
    let base = out.len();
    let mut opt = Opt::new(asked, terms, error, (rcode >> 4) as u8);
    if let Some(opt) = &mut opt {
        opt.shrink_to(terms.len_max, HEADER_LEN + asked.question.len());
    }
    let questions = u16::from(!asked.question.is_empty());
    let flags = reply_flags(asked) | rcode & flag::RCODE;
    let words = [asked.id, flags, questions, 0, 0, u16::from(opt.is_some())];
    out.reserve(HEADER_LEN + asked.question.len() + OPT_LEN);
    out.extend_from_slice(words.map(u16::to_be_bytes).as_flattened());
    out.extend_from_slice(asked.question);
    if let Some(opt) = opt {
        opt.append(out, base, terms);
    }
    debug_assert!(out.len() - base <= terms.len_max.max(crate::wire::UDP_LEN_MIN.into()));
}

/// Appends a reply whose records are known here. `records` appends them behind the question, which stands 12 bytes after
/// what was in the buffer before, and returns how many there are in each section.
pub(crate) fn write_local(
    out: &mut Vec<u8>,
    asked: &Asked<'_>,
    rcode: u16,
    error: Option<ExtendedError<'_>>,
    terms: &Terms,
    records: impl FnOnce(&mut Vec<u8>) -> [u16; 3],
) -> Fit {
    let base = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    out.extend_from_slice(asked.question);
    let counts = records(out);
    let reply = Reply { base, asked, terms, flags: rcode & flag::RCODE, counts, error };
    // Only whole additional sections are left out by where their records stand, and there are none.
    reply.finish(out, |_| None)
}

/// Appends a reply without records and with TC=1: a client that is there asks again over TCP.
pub(crate) fn write_truncated(out: &mut Vec<u8>, asked: &Asked<'_>, terms: &Terms) -> Fit {
    let base = out.len();
    out.extend_from_slice(&[0; HEADER_LEN]);
    out.extend_from_slice(asked.question);
    Reply { base, asked, terms, flags: flag::TC, counts: [0; 3], error: None }.finish(out, |_| None)
}

fn write_failed(out: &mut Vec<u8>, asked: &Asked<'_>, terms: &Terms) -> Fit {
    write_error(out, asked, rcode::SERVFAIL, None, terms);
    Fit::Failed
}

/// A reply whose records stand in the buffer already, to be given its header and its end.
struct Reply<'a> {
    /// Where it starts in the buffer.
    base: usize,
    asked: &'a Asked<'a>,
    terms: &'a Terms,
    /// The answer's AD, TC and RCODE.
    flags: u16,
    counts: [u16; 3],
    error: Option<ExtendedError<'a>>,
}

impl Reply<'_> {
    #[inline]
    fn finish(mut self, out: &mut Vec<u8>, ttl_at: impl Fn(usize) -> Option<usize>) -> Fit {
        let mut opt = Opt::new(self.asked, self.terms, self.error, 0);
        let len = out.len() - self.base;
        if len + opt.as_ref().map_or(0, Opt::len) > self.terms.len_max || self.is_truncated() {
            self.shrink(out, &mut opt, ttl_at);
        }
        // RFC 6840 §5.8: AD only for those who have said that they understand it.
        if !(self.asked.ad || self.asked.dnssec_ok()) || self.is_truncated() {
            self.flags &= !flag::AD;
        }
        let [answers, authorities, additionals] = self.counts;
        let words = [
            self.asked.id,
            reply_flags(self.asked) | self.flags,
            1,
            answers,
            authorities,
            additionals + u16::from(opt.is_some()),
        ];
        let message = &mut out[self.base..];
        let question_end = HEADER_LEN + self.asked.question.len();
        if let Some((header, rest)) = message.split_first_chunk_mut::<HEADER_LEN>() {
            header.copy_from_slice(words.map(u16::to_be_bytes).as_flattened());
            if let Some(question) = rest.get_mut(..question_end - HEADER_LEN) {
                question.copy_from_slice(self.asked.question);
            }
        }
        if let Some(opt) = opt {
            opt.append(out, self.base, self.terms);
        }
        if self.is_truncated() { Fit::Truncated } else { Fit::Whole }
    }

    fn is_truncated(&self) -> bool {
        self.flags & flag::TC != 0
    }

    /// Leaves out, in this order and as needed: the extended error, the additional section
    /// (RFC 2181 §9: no TC for that), all records.
    #[cold]
    fn shrink(
        &mut self,
        out: &mut Vec<u8>,
        opt: &mut Option<Opt<'_>>,
        ttl_at: impl Fn(usize) -> Option<usize>,
    ) {
        let len = out.len() - self.base;
        if let Some(opt) = opt {
            opt.shrink_to(self.terms.len_max, len);
        }
        let opt_len = opt.as_ref().map_or(0, Opt::len);
        if !self.is_truncated() && len + opt_len <= self.terms.len_max {
            return;
        }
        let question_end = HEADER_LEN + self.asked.question.len();
        let [answers, authorities, additionals] = self.counts;
        if additionals > 0 && !self.is_truncated() {
            // Additional records start where the last one before them ends.
            let before = usize::from(answers) + usize::from(authorities);
            let start = match before.checked_sub(1) {
                None => Some(question_end),
                Some(last) => ttl_at(last).and_then(|at| {
                    let rdata_len = be16(&out[self.base..], at + 4)?;
                    Some(at + 6 + usize::from(rdata_len))
                }),
            };
            if let Some(start) = start.filter(|start| start + opt_len <= self.terms.len_max) {
                out.truncate(self.base + start);
                self.counts[2] = 0;
                return;
            }
        }
        // RFC 2181 §9: a truncated reply's records must not be used, so it has none.
        out.truncate(self.base + question_end);
        self.counts = [0; 3];
        self.flags |= flag::TC;
    }
}

/// The flags that are the same for every reply to this query: RD and CD copied, RA set, AA not.
#[inline]
fn reply_flags(asked: &Asked<'_>) -> u16 {
    let mut flags = flag::QR | flag::RA | u16::from(asked.opcode & 0x0f) << 11;
    if asked.rd {
        flags |= flag::RD;
    }
    if asked.cd {
        flags |= flag::CD;
    }
    flags
}

/// The OPT record of a reply.
struct Opt<'a> {
    udp_size: u16,
    rcode_high: u8,
    dnssec_ok: bool,
    keepalive: Option<u16>,
    cookie: Option<[u8; 24]>,
    error: Option<ExtendedError<'a>>,
}

impl<'a> Opt<'a> {
    /// `None` when the client does not speak EDNS.
    #[inline]
    fn new(
        asked: &Asked<'_>,
        terms: &Terms,
        error: Option<ExtendedError<'a>>,
        rcode_high: u8,
    ) -> Option<Self> {
        asked.edns.map(|edns| Self {
            udp_size: terms.udp_size,
            rcode_high,
            dnssec_ok: edns.dnssec_ok,
            keepalive: terms.keepalive,
            cookie: edns.cookie,
            error,
        })
    }

    #[inline]
    fn options_len(&self) -> usize {
        self.fixed_len() + self.error.map_or(0, |error| 6 + error.text.len())
    }

    /// Length of the options that are not given up, in bytes.
    #[inline]
    fn fixed_len(&self) -> usize {
        self.keepalive.map_or(0, |_| 6) + self.cookie.map_or(0, |_| 28)
    }

    #[inline]
    fn len(&self) -> usize {
        OPT_LEN + self.options_len()
    }

    /// Gives up the extended error's text, then the error, if the message does not fit with it.
    fn shrink_to(&mut self, len_max: usize, others_len: usize) {
        let fixed_len = self.fixed_len();
        if let Some(error) = &mut self.error
            && others_len + OPT_LEN + fixed_len + 6 + error.text.len() > len_max
        {
            error.text = &[];
        }
        if others_len + self.len() > len_max {
            self.error = None;
        }
    }

    /// Ends the message that began at `base`.
    #[inline]
    fn append(&self, out: &mut Vec<u8>, base: usize, terms: &Terms) {
        let (at, options_len) = (out.len(), self.options_len() as u16);
        out.extend_from_slice(&opt_record(self.udp_size, self.rcode_high, self.dnssec_ok, options_len));
        if options_len > 0 {
            self.append_options(out);
        }
        if terms.padding > 0 {
            pad(out, base, at, terms.padding, terms.len_max);
        }
    }

    #[cold]
    fn append_options(&self, out: &mut Vec<u8>) {
        if let Some(keepalive) = self.keepalive {
            let words = [option::TCP_KEEPALIVE, 2, keepalive];
            out.extend_from_slice(words.map(u16::to_be_bytes).as_flattened());
        }
        if let Some(cookie) = self.cookie {
            out.extend_from_slice([option::COOKIE, 24].map(u16::to_be_bytes).as_flattened());
            out.extend_from_slice(&cookie);
        }
        if let Some(error) = self.error {
            let words = [option::EXTENDED_ERROR, 2 + error.text.len() as u16, error.code];
            out.extend_from_slice(words.map(u16::to_be_bytes).as_flattened());
            out.extend_from_slice(error.text);
        }
    }
}

/// Brings the TTLs of a message that is about to be stored into `least..=most` seconds.
pub(crate) fn bound_ttls(wire: &mut [u8], offsets: impl Iterator<Item = u16>, least: u32, most: u32) {
    for at in offsets.map(usize::from) {
        let ttl = be32(wire, at).map_or(0, plain_ttl);
        if let Some(place) = wire.get_mut(at..at + 4) {
            place.copy_from_slice(&ttl.max(least).min(most).to_be_bytes());
        }
    }
}

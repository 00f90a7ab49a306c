//! The client's query, and the query that goes upstream in its place.

use std::fmt;

use super::edns::Edns;
use super::key::{HashSeed, QuestionKey};
use super::name::{Record, plain_name_end};
use super::{HEADER_LEN, MESSAGE_LEN_MAX, UDP_LEN_MIN, be16, class, flag, option, rcode, rtype};

/// A query that can be answered: its question is whole, its EDNS is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Query<'a> {
    /// What a reply must give back of it.
    pub asked: Asked<'a>,
    /// The type asked for.
    pub qtype: u16,
    /// The class asked for.
    pub qclass: u16,
    /// Its OPT record, options included. None of them is forwarded: they speak of this hop
    /// (RFC 6891 §6.1.1).
    pub edns: Option<Edns<'a>>,
}

/// What a reply must give back of a query: id, letter case, flags, and whether EDNS is spoken.
///
/// Small, and without lifetime but for the question: whoever must wait for an upstream keeps the
/// question's bytes and makes it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The message id.
    pub id: u16,
    /// The operation; 0 is a plain query.
    pub opcode: u8,
    /// Recursion desired.
    pub rd: bool,
    /// AD in a query: the client understands AD in the reply (RFC 6840 §5.7).
    pub ad: bool,
    /// Checking disabled.
    pub cd: bool,
    /// Name, type and class exactly as sent; empty when they could not be read.
    pub question: &'a [u8],
    /// What the OPT record asks of the reply; `None` when there was none.
    pub edns: Option<AskedEdns>,
}

/// What an OPT record asks of the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskedEdns {
    /// The UDP payload the client takes, in bytes; at least 512.
    pub udp_size: u16,
    /// The DO bit, to be copied into the reply (RFC 3225 §3).
    pub dnssec_ok: bool,
    /// It was padded: where nobody on the way can read, so is the reply (RFC 7830 §4).
    pub padding: bool,
    /// It asks how long a stream may stand idle (RFC 7828 §3.2.1).
    pub keepalive: bool,
    /// The cookie that the reply carries: the client's and ours (RFC 9018). A scan leaves it empty.
    pub cookie: Option<[u8; 24]>,
}

/// What to do with bytes that are no answerable query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryFault<'a> {
    /// Say nothing: any reply could start a loop or has no one to go to.
    Ignore(IgnoreCause),
    /// Answer with an error.
    Answer(FaultAnswer<'a>),
}

/// Why bytes are dropped in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IgnoreCause {
    /// Shorter than a header: there is no id to answer.
    TooShort,
    /// Longer than any DNS message.
    TooLong,
    /// A response: answering those makes two servers talk for ever.
    Response,
}

/// The error reply that a faulty query gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultAnswer<'a> {
    /// As much of the query as could be read.
    pub asked: Asked<'a>,
    /// The response code to send, possibly an extended one.
    pub rcode: u16,
    /// What is wrong.
    pub cause: FaultCause,
}

/// What is wrong with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultCause {
    /// An operation other than QUERY.
    Opcode,
    /// Not exactly one question (RFC 9619 §3).
    QuestionCount,
    /// The question is cut, compressed or too long.
    Question,
    /// A type that is no question: OPT, TSIG, TKEY.
    MetaType,
    /// A zone transfer.
    Transfer,
    /// A class nobody serves.
    Class,
    /// Records where a query has none.
    ExtraRecords,
    /// The additional section is cut or unreadable.
    Additional,
    /// More than one OPT record, or one that is not at the root (RFC 6891 §6.1.1, §6.1.2).
    Opt,
    /// An OPT record whose options do not fill it.
    OptOptions,
    /// An EDNS version that does not exist (RFC 6891 §6.1.3).
    EdnsVersion,
}

impl<'a> Query<'a> {
    /// The name asked for, in the client's letter case, root label included.
    pub fn name(&self) -> &'a [u8] {
        self.asked.name()
    }

    /// The flags that are part of its key.
    #[inline]
    pub fn key_flags(&self) -> u8 {
        self.asked.key_flags()
    }

    /// Makes `key` this question's key.
    #[inline]
    pub fn fill_key(&self, key: &mut QuestionKey, seed: &HashSeed) {
        key.fill(self.asked.question, self.key_flags(), seed);
    }
}

impl<'a> Asked<'a> {
    /// The name asked for, in the client's letter case; empty when it could not be read.
    pub fn name(&self) -> &'a [u8] {
        let end = self.question.len().saturating_sub(4);
        &self.question[..end]
    }

    /// True when DNSSEC records are wanted.
    #[inline]
    pub fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// The flags that are part of the question's key.
    #[inline]
    pub fn key_flags(&self) -> u8 {
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        bit(self.rd, QuestionKey::RD) | bit(self.cd, QuestionKey::CD) | bit(self.dnssec_ok(), QuestionKey::DO)
    }

    /// The longest UDP reply the client takes, but no more than `cap`, in bytes.
    #[inline]
    pub fn udp_len_max(&self, cap: u16) -> usize {
        let takes = self.edns.map_or(UDP_LEN_MIN, |edns| edns.udp_size);
        usize::from(takes.min(cap))
    }
}

/// Scans a client's query.
///
/// Bytes after the last record are ignored: no RFC forbids them, and nothing of the client's
/// bytes but the question goes upstream.
///
/// # Errors
///
/// [`QueryFault`] says whether to keep silent or what to answer.
#[inline]
pub fn scan_query(bytes: &[u8]) -> Result<Query<'_>, QueryFault<'_>> {
    let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
        return Err(QueryFault::Ignore(IgnoreCause::TooShort));
    };
    if bytes.len() > MESSAGE_LEN_MAX {
        return Err(QueryFault::Ignore(IgnoreCause::TooLong));
    }
    let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    let flags = word(2);
    if flags & flag::QR != 0 {
        return Err(QueryFault::Ignore(IgnoreCause::Response));
    }
    let mut asked = Asked {
        id: word(0),
        opcode: (flags >> 11 & 0x0f) as u8,
        rd: flags & flag::RD != 0,
        ad: flags & flag::AD != 0,
        cd: flags & flag::CD != 0,
        question: &[],
        edns: None,
    };
    let [questions, answers, authorities, additionals] = [word(4), word(6), word(8), word(10)];

    // RFC 9619 §3: a query has exactly one question, or it is FORMERR. Other operations have
    // other rules, but no other answer from us than NOTIMP, with as much given back as is there.
    let question_end = if questions == 1 { question_end(bytes) } else { None };
    asked.question = question_end.map_or(&[], |end| &bytes[HEADER_LEN..end]);
    let fault = |asked, rcode, cause| Err(QueryFault::Answer(FaultAnswer { asked, rcode, cause }));
    if asked.opcode != 0 {
        return fault(asked, rcode::NOTIMP, FaultCause::Opcode);
    }
    if questions != 1 {
        return fault(asked, rcode::FORMERR, FaultCause::QuestionCount);
    }
    let Some(question_end) = question_end else {
        return fault(asked, rcode::FORMERR, FaultCause::Question);
    };

    // The OPT record comes before judgement on the question: if there is one, the error reply
    // must carry one too (RFC 6891 §6.1.1).
    let mut edns = None;
    let mut opt_fault = None;
    let mut at = question_end;
    let records = u32::from(answers) + u32::from(authorities) + u32::from(additionals);
    for _ in 0..records {
        let Ok(record) = Record::read(bytes, at) else {
            return fault(asked, rcode::FORMERR, FaultCause::Additional);
        };
        at = record.end;
        if record.rtype != rtype::OPT {
            continue;
        }
        if edns.is_some() || !record.owner_is_root(bytes) {
            opt_fault = Some(FaultCause::Opt);
            continue;
        }
        let found = Edns::of_record(bytes, &record);
        if !found.options.well_formed() {
            opt_fault = Some(FaultCause::OptOptions);
        }
        let mut edns_asked = AskedEdns {
            udp_size: found.udp_size,
            dnssec_ok: found.dnssec_ok,
            padding: false,
            keepalive: false,
            cookie: None,
        };
        for option in found.options {
            edns_asked.padding |= option.code == option::PADDING;
            edns_asked.keepalive |= option.code == option::TCP_KEEPALIVE;
        }
        asked.edns = Some(edns_asked);
        edns = Some(found);
    }
    if let Some(cause) = opt_fault {
        return fault(asked, rcode::FORMERR, cause);
    }
    // RFC 6891 §6.1.3: BADVERS, whatever else the query says.
    if edns.is_some_and(|edns| edns.version != 0) {
        return fault(asked, rcode::BADVERS, FaultCause::EdnsVersion);
    }

    let qtype = be16(bytes, question_end - 4).unwrap_or_default();
    let qclass = be16(bytes, question_end - 2).unwrap_or_default();
    match qtype {
        rtype::AXFR | rtype::IXFR => return fault(asked, rcode::REFUSED, FaultCause::Transfer),
        rtype::OPT | rtype::TSIG | rtype::TKEY => {
            return fault(asked, rcode::FORMERR, FaultCause::MetaType);
        }
        _ => {}
    }
    // Only IXFR brings records along (RFC 1995 §3).
    if answers != 0 || authorities != 0 {
        return fault(asked, rcode::FORMERR, FaultCause::ExtraRecords);
    }
    match qclass {
        class::IN | class::CH | class::HS | class::ANY => {}
        // NONE is for updates (RFC 2136), the rest is unassigned.
        _ => return fault(asked, rcode::REFUSED, FaultCause::Class),
    }
    Ok(Query { asked, qtype, qclass, edns })
}

/// Where the first question ends, if it is whole and uncompressed.
#[inline]
pub(crate) fn question_end(bytes: &[u8]) -> Option<usize> {
    let end = plain_name_end(bytes, HEADER_LEN)? + 4;
    (end <= bytes.len()).then_some(end)
}

/// A query to an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamQuery<'a> {
    /// The message id, which must be unpredictable (RFC 5452 §9.2).
    pub id: u16,
    /// Name, type and class as on the wire, e.g. [`QuestionKey::question`].
    pub question: &'a [u8],
    /// Recursion desired: as the client had it.
    pub rd: bool,
    /// Checking disabled: as the client had it (RFC 4035 §3.2.2).
    pub cd: bool,
    /// The DO bit: as the client had it.
    pub dnssec_ok: bool,
    /// The UDP payload that we take, in bytes, usually
    /// [`UDP_LEN_DEFAULT`](super::UDP_LEN_DEFAULT). `None` sends no OPT record, and with it no
    /// DO bit: for an upstream that takes EDNS for an error (RFC 6891 §6.2.2).
    pub udp_size: Option<u16>,
    /// Options for the OPT record, as on the wire; without an OPT record they are not sent.
    pub options: &'a [u8],
}

/// Appends a query to `out`.
///
/// AD is always set: it asks for AD in the reply (RFC 6840 §5.7), and the one reply may serve
/// clients which want it and clients which don't. The client's EDNS options stay here: each
/// speaks of one hop (RFC 6891 §6.1.1).
pub fn write_query(out: &mut Vec<u8>, query: &UpstreamQuery<'_>) {
    let mut flags = flag::AD;
    if query.rd {
        flags |= flag::RD;
    }
    if query.cd {
        flags |= flag::CD;
    }
    let additionals = u16::from(query.udp_size.is_some());
    let words = [query.id, flags, 1, 0, 0, additionals];
    out.reserve(HEADER_LEN + query.question.len() + OPT_LEN);
    out.extend_from_slice(words.map(u16::to_be_bytes).as_flattened());
    out.extend_from_slice(query.question);
    if let Some(udp_size) = query.udp_size {
        out.extend_from_slice(&opt_record(udp_size, 0, query.dnssec_ok, query.options.len() as u16));
        out.extend_from_slice(query.options);
    }
}

/// Length of an OPT record without options, in bytes.
pub(crate) const OPT_LEN: usize = 11;

/// An OPT record (RFC 6891 §6.1.2, §6.1.3) whose options, of `options_len` bytes, follow.
#[inline]
pub(crate) fn opt_record(udp_size: u16, rcode_high: u8, dnssec_ok: bool, options_len: u16) -> [u8; OPT_LEN] {
    let [size_high, size_low] = udp_size.to_be_bytes();
    let [len_high, len_low] = options_len.to_be_bytes();
    let flags = if dnssec_ok { 0x80 } else { 0 };
    let kind = rtype::OPT as u8;
    #[rustfmt::skip]
    let record = [0, 0, kind, size_high, size_low, rcode_high, 0, flags, 0, len_high, len_low];
    record
}

impl IgnoreCause {
    /// A short name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::Response => "response",
        }
    }
}

impl FaultCause {
    /// A short name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Opcode => "opcode",
            Self::QuestionCount => "question_count",
            Self::Question => "question",
            Self::MetaType => "meta_type",
            Self::Transfer => "transfer",
            Self::Class => "class",
            Self::ExtraRecords => "extra_records",
            Self::Additional => "additional",
            Self::Opt => "opt",
            Self::OptOptions => "opt_options",
            Self::EdnsVersion => "edns_version",
        }
    }
}

impl fmt::Display for QueryFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ignore(cause) => write!(f, "ignored: {}", cause.name()),
            Self::Answer(answer) => {
                write!(f, "rcode {}: {}", answer.rcode, answer.cause.name())
            }
        }
    }
}

impl std::error::Error for QueryFault<'_> {}

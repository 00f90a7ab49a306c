//! The upstream's answer.

use std::fmt;
use std::ops::Range;

use super::edns::Edns;
use super::name::{NameFault, Record, skip_name};
use super::query::question_end;
use super::{HEADER_LEN, MESSAGE_LEN_MAX, be16, flag, rcode, rtype};

/// Scans answers, one after the other, into the same memory.
#[derive(Debug, Default)]
pub struct Scan {
    ttl_offsets: Vec<u16>,
}

/// A scanned answer: every record has been walked, every name proven readable.
#[derive(Debug, Clone)]
pub struct Answer<'a> {
    bytes: &'a [u8],
    /// The message id.
    pub id: u16,
    /// The second header word, as sent; see [`flag`].
    pub flags: u16,
    /// The response code with its EDNS half (RFC 6891 §6.1.3).
    pub rcode: u16,
    /// What it says, in one word.
    pub kind: AnswerKind,
    /// Name, type and class as echoed; empty when the question is missing.
    pub question: &'a [u8],
    /// Records of the answer, authority and additional sections, OPT included.
    pub counts: [u16; 3],
    /// The smallest TTL in the answer section, in seconds.
    pub answer_ttl_min: Option<u32>,
    /// The smallest TTL of all records but OPT, in seconds.
    pub ttl_min: Option<u32>,
    /// How long a negative answer holds, in seconds: the smaller of the SOA record's TTL and its
    /// MINIMUM (RFC 2308 §5). `None` without a SOA record in the authority section.
    pub negative_ttl: Option<u32>,
    /// Whether there is a CNAME record in the answer section though another type was asked for: the answer is about
    /// another name. False when there is a DNAME record too, which says more than one name can.
    pub has_alias: bool,
    /// Where the message ends; bytes behind are no part of it.
    pub end: usize,
    /// The OPT record.
    pub opt: Option<OptRecord<'a>>,
    ttl_offsets: &'a [u16],
}

/// An answer's OPT record and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptRecord<'a> {
    /// What it says.
    pub edns: Edns<'a>,
    /// Its place in the message, in bytes.
    pub range: Range<usize>,
    /// True when the records behind it may move to its place: no compression pointer of theirs
    /// leads to anything at or behind it. True when there are none.
    tail_moves: bool,
    /// How many records stand behind it.
    tail_count: u16,
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Records of the type asked for.
    Positive,
    /// The name does not exist (RFC 2308 §2.1).
    NxDomain,
    /// The name exists, or an alias of it, but has no such records (RFC 2308 §2.2).
    NoData,
    /// No answer, only name servers to ask instead: the upstream does not recurse.
    Referral,
    /// Any other response code.
    Error,
}

/// What is wrong with an answer. Whatever it is, the upstream sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerFault {
    /// Shorter than a header.
    TooShort,
    /// Longer than any DNS message.
    TooLong,
    /// A query.
    NotAResponse,
    /// More than one question.
    QuestionCount,
    /// The question is cut, compressed or too long.
    Question,
    /// The message ends before its counted records do.
    Cut,
    /// A label type that does not exist, or a name of more than 255 octets.
    BadName,
    /// A compression pointer that does not lead strictly backwards.
    BadPointer,
    /// RDATA that is not what its type says: a wrong length, or no name where one belongs.
    BadRdata,
    /// More than one OPT record (RFC 6891 §6.1.1).
    TwoOpts,
    /// An OPT record outside the additional section or not at the root.
    MisplacedOpt,
}

impl Scan {
    /// Makes a scan with no memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scans an answer.
    ///
    /// Bytes after the last counted record are tolerated, as BIND and Unbound do, and left out
    /// of everything made from it ([`Answer::end`]). Options that do not fill their OPT record
    /// are tolerated too: those before are read.
    ///
    /// # Errors
    ///
    /// [`AnswerFault`] when it is no readable response.
    pub fn scan_answer<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Answer<'a>, AnswerFault> {
        self.ttl_offsets.clear();
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(AnswerFault::TooShort)?;
        if bytes.len() > MESSAGE_LEN_MAX {
            return Err(AnswerFault::TooLong);
        }
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = word(2);
        if flags & flag::QR == 0 {
            return Err(AnswerFault::NotAResponse);
        }
        let start = match word(4) {
            0 => HEADER_LEN,
            1 => question_end(bytes).ok_or(AnswerFault::Question)?,
            _ => return Err(AnswerFault::QuestionCount),
        };
        let question = &bytes[HEADER_LEN..start];
        let qtype = question.len().checked_sub(4).and_then(|at| be16(question, at));
        let counts = [word(6), word(8), word(10)];

        let mut walk = Walk { bytes, at: start, ttl_offsets: &mut self.ttl_offsets, ttl_min: None };
        let answers = walk.answers(counts[0], qtype)?;
        let answer_ttl_min = walk.ttl_min;
        let authority = walk.authority(counts[1])?;
        let opt = walk.additional(counts[2])?;
        let (end, ttl_min) = (walk.at, walk.ttl_min);

        let rcode_high = opt.as_ref().map_or(0, |opt| opt.edns.rcode_high);
        let rcode = flags & flag::RCODE | u16::from(rcode_high) << 4;
        let kind = match rcode {
            rcode::NXDOMAIN => AnswerKind::NxDomain,
            rcode::NOERROR if answers.has_qtype => AnswerKind::Positive,
            // RFC 2308 §2.2: a referral has NS records, no SOA, and nothing in the answer.
            rcode::NOERROR if counts[0] == 0 && authority.has_ns && authority.negative_ttl.is_none() => {
                AnswerKind::Referral
            }
            rcode::NOERROR => AnswerKind::NoData,
            _ => AnswerKind::Error,
        };
        Ok(Answer {
            bytes,
            id: word(0),
            flags,
            rcode,
            kind,
            question,
            counts,
            answer_ttl_min,
            ttl_min,
            negative_ttl: authority.negative_ttl,
            has_alias: answers.has_cname && !answers.has_dname && qtype != Some(rtype::CNAME),
            end,
            opt,
            ttl_offsets: &self.ttl_offsets,
        })
    }
}

impl<'a> Answer<'a> {
    /// The message as it came.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// TC: the upstream had more to say than fitted.
    pub fn is_truncated(&self) -> bool {
        self.flags & flag::TC != 0
    }

    /// AA: the upstream answers for the zone.
    pub fn is_authoritative(&self) -> bool {
        self.flags & flag::AA != 0
    }

    /// AD: the upstream has validated all of it.
    pub fn is_authentic(&self) -> bool {
        self.flags & flag::AD != 0
    }

    /// Where each record's TTL stands, OPT left out, in order.
    pub fn ttl_offsets(&self) -> &'a [u16] {
        self.ttl_offsets
    }

    /// The message without its OPT record, in two parts, and its three record counts then.
    ///
    /// Records behind the OPT record move to its place. If one of them has a compression pointer
    /// that would then miss, all behind the OPT record are left out: they are additional data,
    /// which a reply need not have (RFC 2181 §9).
    pub fn without_opt(&self) -> WithoutOpt<'a> {
        let [answers, authorities, additionals] = self.counts;
        let whole = |end| self.bytes.get(..end).unwrap_or_default();
        let Some(opt) = &self.opt else {
            return WithoutOpt {
                head: whole(self.end),
                tail: &[],
                counts: self.counts,
                moved_by: 0,
                ttl_offsets: self.ttl_offsets,
            };
        };
        let head = whole(opt.range.start);
        if opt.tail_moves {
            WithoutOpt {
                head,
                tail: self.bytes.get(opt.range.end..self.end).unwrap_or_default(),
                counts: [answers, authorities, additionals.saturating_sub(1)],
                moved_by: opt.range.len() as u16,
                ttl_offsets: self.ttl_offsets,
            }
        } else {
            let kept = self.ttl_offsets.len().saturating_sub(usize::from(opt.tail_count));
            WithoutOpt {
                head,
                tail: &[],
                counts: [answers, authorities, additionals.saturating_sub(1 + opt.tail_count)],
                moved_by: 0,
                ttl_offsets: &self.ttl_offsets[..kept],
            }
        }
    }
}

/// A message without its OPT record; see [`Answer::without_opt`].
#[derive(Debug, Clone, Copy)]
pub struct WithoutOpt<'a> {
    /// Header to OPT. The header still counts all records.
    pub head: &'a [u8],
    /// What stood behind OPT.
    pub tail: &'a [u8],
    /// The record counts that are true without it.
    pub counts: [u16; 3],
    moved_by: u16,
    ttl_offsets: &'a [u16],
}

impl<'a> WithoutOpt<'a> {
    /// Length of head and tail together, in bytes.
    #[expect(clippy::len_without_is_empty, reason = "there is always a header")]
    pub fn len(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// How many records there are.
    pub fn record_count(&self) -> usize {
        self.ttl_offsets.len()
    }

    /// Where each record's TTL stands once head and tail are joined.
    pub fn ttl_offsets(&self) -> impl Iterator<Item = u16> + 'a {
        let (head_len, moved_by) = (self.head.len(), self.moved_by);
        self.ttl_offsets.iter().map(
            move |&at| {
                if usize::from(at) < head_len { at } else { at.saturating_sub(moved_by) }
            },
        )
    }
}

/// The walk over all records.
struct Walk<'a, 's> {
    bytes: &'a [u8],
    at: usize,
    ttl_offsets: &'s mut Vec<u16>,
    ttl_min: Option<u32>,
}

struct AnswerSection {
    has_qtype: bool,
    has_cname: bool,
    has_dname: bool,
}

struct AuthoritySection {
    has_ns: bool,
    negative_ttl: Option<u32>,
}

impl<'a> Walk<'a, '_> {
    fn answers(&mut self, count: u16, qtype: Option<u16>) -> Result<AnswerSection, AnswerFault> {
        let mut section = AnswerSection { has_qtype: false, has_cname: false, has_dname: false };
        for _ in 0..count {
            let record = self.record()?;
            section.has_qtype |= qtype == Some(record.rtype) || qtype == Some(rtype::ANY);
            section.has_cname |= record.rtype == rtype::CNAME;
            section.has_dname |= record.rtype == rtype::DNAME;
        }
        Ok(section)
    }

    fn authority(&mut self, count: u16) -> Result<AuthoritySection, AnswerFault> {
        let mut section = AuthoritySection { has_ns: false, negative_ttl: None };
        for _ in 0..count {
            let record = self.record()?;
            match record.rtype {
                rtype::NS => section.has_ns = true,
                rtype::SOA => {
                    // RFC 2308 §5: the smaller of TTL and MINIMUM, which ends the RDATA.
                    let minimum = record.rdata_last32(self.bytes).map_or(0, plain_ttl);
                    let ttl = plain_ttl(record.ttl).min(minimum);
                    let before = section.negative_ttl.unwrap_or(u32::MAX);
                    section.negative_ttl = Some(before.min(ttl));
                }
                _ => {}
            }
        }
        Ok(section)
    }

    fn additional(&mut self, count: u16) -> Result<Option<OptRecord<'a>>, AnswerFault> {
        let mut opt: Option<OptRecord<'a>> = None;
        for _ in 0..count {
            let record = Record::read(self.bytes, self.at)?;
            if record.rtype == rtype::OPT {
                if opt.is_some() {
                    return Err(AnswerFault::TwoOpts);
                }
                if !record.owner_is_root(self.bytes) {
                    return Err(AnswerFault::MisplacedOpt);
                }
                self.at = record.end;
                opt = Some(OptRecord {
                    edns: Edns::of_record(self.bytes, &record),
                    range: record.start..record.end,
                    tail_moves: true,
                    tail_count: 0,
                });
                continue;
            }
            let record = self.record()?;
            if let Some(opt) = &mut opt {
                opt.tail_count += 1;
                opt.tail_moves &= record.owner_reach <= opt.range.start && rdata_never_points(record.rtype);
            }
        }
        Ok(opt)
    }

    /// Takes in the next record, which must not be OPT.
    fn record(&mut self) -> Result<Record, AnswerFault> {
        let record = Record::read(self.bytes, self.at)?;
        if record.rtype == rtype::OPT {
            return Err(AnswerFault::MisplacedOpt);
        }
        check_rdata(self.bytes, &record)?;
        self.at = record.end;
        // The message is at most 65,535 bytes: so is every offset.
        self.ttl_offsets.push(record.ttl_at as u16);
        let ttl = plain_ttl(record.ttl);
        self.ttl_min = Some(self.ttl_min.map_or(ttl, |least| least.min(ttl)));
        Ok(record)
    }
}

/// A TTL with its top bit set counts as zero (RFC 2181 §8).
#[inline]
pub(crate) fn plain_ttl(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}

/// True for types that are usual in the additional section and cannot have a compressed name in
/// their RDATA. Types not named here may be old ones that do (RFC 3597 §4), so false is safe.
fn rdata_never_points(rtype: u16) -> bool {
    matches!(rtype, rtype::A | rtype::AAAA | rtype::RRSIG | rtype::TXT)
}

/// Checks the RDATA of the types that everybody reads, so that no client has to stumble over
/// what an upstream made up.
fn check_rdata(bytes: &[u8], record: &Record) -> Result<(), AnswerFault> {
    let (prefix, names, suffix) = match record.rtype {
        rtype::A => return exactly(record.rdata_len() == 4),
        rtype::AAAA => return exactly(record.rdata_len() == 16),
        rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => (0, 1, 0),
        rtype::MX => (2, 1, 0),
        rtype::SRV => (6, 1, 0),
        rtype::SOA => (0, 2, 20),
        _ => return Ok(()),
    };
    let mut at = record.rdata + prefix;
    // Names must end where the RDATA ends, not merely within the message.
    let inside = &bytes[..record.end];
    for _ in 0..names {
        at = match skip_name(inside, at) {
            Ok(span) => span.end,
            Err(NameFault::Pointer) => return Err(AnswerFault::BadPointer),
            Err(NameFault::Cut | NameFault::Bad) => return Err(AnswerFault::BadRdata),
        };
    }
    exactly(at + suffix == record.end)
}

fn exactly(fits: bool) -> Result<(), AnswerFault> {
    if fits { Ok(()) } else { Err(AnswerFault::BadRdata) }
}

/// How the echoed question compares to the one that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QuestionEcho {
    /// The same: the answer may be taken.
    Same,
    /// There is none. Some servers leave it out of FORMERR, NOTIMP, REFUSED and SERVFAIL; to be
    /// accepted for error codes only.
    Missing,
    /// Another one, or none that can be read: not the answer to this query (RFC 5452 §9.1).
    Different,
}

/// Whether letter case counts when questions are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetterCase {
    /// It counts: the query's case was random, and its echo proves that the query was seen.
    Exact,
    /// It does not (RFC 4343).
    Ignored,
}

/// Compares the question echoed in `answer` with `question`, the name, type and class that were
/// sent (RFC 5452 §9.1).
pub fn answer_matches(answer: &[u8], question: &[u8], case: LetterCase) -> QuestionEcho {
    match be16(answer, 4) {
        Some(0) if answer.len() >= HEADER_LEN => return QuestionEcho::Missing,
        Some(1) => {}
        _ => return QuestionEcho::Different,
    }
    let echoed = answer.get(HEADER_LEN..HEADER_LEN + question.len());
    let same = match (echoed, case) {
        (Some(echoed), LetterCase::Exact) => echoed == question,
        (Some(echoed), LetterCase::Ignored) => same_question(echoed, question),
        (None, _) => false,
    };
    if same && question.len() > 4 { QuestionEcho::Same } else { QuestionEcho::Different }
}

/// True when name (ASCII case apart), type and class are the same.
pub(crate) fn same_question(one: &[u8], other: &[u8]) -> bool {
    match (one.split_last_chunk::<4>(), other.split_last_chunk::<4>()) {
        (Some((name, kind)), Some((other_name, other_kind))) => {
            kind == other_kind && name.eq_ignore_ascii_case(other_name)
        }
        _ => false,
    }
}

impl From<NameFault> for AnswerFault {
    fn from(fault: NameFault) -> Self {
        match fault {
            NameFault::Cut => Self::Cut,
            NameFault::Bad => Self::BadName,
            NameFault::Pointer => Self::BadPointer,
        }
    }
}

impl AnswerFault {
    /// A short name for metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::TooLong => "too_long",
            Self::NotAResponse => "not_a_response",
            Self::QuestionCount => "question_count",
            Self::Question => "question",
            Self::Cut => "cut",
            Self::BadName => "bad_name",
            Self::BadPointer => "bad_pointer",
            Self::BadRdata => "bad_rdata",
            Self::TwoOpts => "two_opts",
            Self::MisplacedOpt => "misplaced_opt",
        }
    }
}

impl fmt::Display for AnswerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooShort => "shorter than a DNS header",
            Self::TooLong => "longer than any DNS message",
            Self::NotAResponse => "a query, not a response",
            Self::QuestionCount => "more than one question",
            Self::Question => "an unreadable question",
            Self::Cut => "ends before its counted records do",
            Self::BadName => "a malformed name",
            Self::BadPointer => "a compression pointer that does not lead backwards",
            Self::BadRdata => "record data that does not fit its type",
            Self::TwoOpts => "more than one OPT record",
            Self::MisplacedOpt => "an OPT record out of place",
        })
    }
}

impl std::error::Error for AnswerFault {}

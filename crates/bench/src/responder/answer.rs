//! Reads a query and writes what the script says to it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Script, Truncate, Verdict, expected_a_of_wire};
use crate::message::{HEADER, QueryType, encode_name, next_record, skip_name, u16_at};

/// The size that the responder announces (RFC 6891 §6.2.3), as all well-known servers do.
const EDNS_SIZE: u16 = 1232;

/// A query as far as an answer depends on it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Query<'a> {
    pub(super) message: &'a [u8],
    /// The name in wire format.
    pub(super) name: &'a [u8],
    qtype: QueryType,
    question_end: usize,
    edns: Option<Edns<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Edns<'a> {
    size: usize,
    /// The client's cookie (RFC 7873 §4.1).
    cookie: Option<&'a [u8; 8]>,
    /// The DO bit (RFC 3225 §3).
    dnssec_ok: bool,
}

/// What is wrong with the answer, on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Lies {
    pub(super) id: bool,
    pub(super) question: bool,
    pub(super) address: bool,
}

/// What a received message is.
pub(super) enum Received<'a> {
    Query(Query<'a>),
    /// Answered with this code: FORMERR or NOTIMP.
    Unusable(u8),
    /// Not even a header, or itself an answer.
    Nonsense,
}

pub(super) fn read(message: &[u8]) -> Received<'_> {
    if message.len() < HEADER || message[2] & 0x80 != 0 {
        return Received::Nonsense;
    }
    if message[2] & 0x78 != 0 {
        return Received::Unusable(4);
    }
    read_query(message).map_or(Received::Unusable(1), Received::Query)
}

fn read_query(message: &[u8]) -> Option<Query<'_>> {
    if message[4..10] != [0, 1, 0, 0, 0, 0] {
        return None;
    }
    let name_end = skip_name(message, HEADER)?;
    let name = &message[HEADER..name_end];
    // A pointer in the question points at the header: no name.
    if *name.last()? != 0 || u16_at(message, name_end + 2)? != 1 {
        return None;
    }
    let question_end = name_end + 4;
    let mut edns = None;
    let mut at = question_end;
    for _ in 0..u16_at(message, 10)? {
        let record = next_record(message, &mut at)?;
        if record.rtype == QueryType::OPT {
            edns = Some(Edns {
                size: usize::from(record.class).max(512),
                cookie: cookie_in(record.data),
                dnssec_ok: record.ttl & 0x8000 != 0,
            });
        }
    }
    Some(Query { message, name, qtype: QueryType(u16_at(message, name_end)?), question_end, edns })
}

/// The client's cookie among options, which are code, length and value each (RFC 6891 §6.1.2).
fn cookie_in(mut options: &[u8]) -> Option<&[u8; 8]> {
    loop {
        let (code, length) = (u16_at(options, 0)?, usize::from(u16_at(options, 2)?));
        let value = options.get(4..4 + length)?;
        if code == 10 {
            return value.first_chunk();
        }
        options = &options[4 + length..];
    }
}

/// A script, ready to follow.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) script: Script,
    /// Suffixes in wire format.
    verdicts: Vec<(Vec<u8>, Verdict)>,
}

impl Plan {
    /// # Panics
    ///
    /// When a suffix is no name.
    pub(super) fn new(script: Script) -> Self {
        let compile = |(suffix, verdict): &(String, Verdict)| {
            let mut wire = Vec::new();
            encode_name(suffix, &mut wire).expect("a suffix of the script is a well-formed name");
            (wire, *verdict)
        };
        Self { verdicts: script.verdicts.iter().map(compile).collect(), script }
    }

    /// Returns what `name`, in wire format, gets instead of an answer.
    pub(super) fn verdict(&self, name: &[u8]) -> Option<Verdict> {
        self.verdicts.iter().find(|(suffix, _)| is_under(name, suffix)).map(|(_, verdict)| *verdict)
    }
}

fn is_under(name: &[u8], suffix: &[u8]) -> bool {
    let mut rest = name;
    while rest.len() > suffix.len() {
        rest = &rest[1 + usize::from(rest[0])..];
    }
    rest.eq_ignore_ascii_case(suffix)
}

/// Appends the answer to `query`. Over UDP it is cut when it is too long.
pub(super) fn write(
    out: &mut Vec<u8>,
    query: &Query<'_>,
    script: &Script,
    verdict: Option<Verdict>,
    lies: Lies,
    udp: bool,
) {
    let start = out.len();
    let rcode = match verdict {
        Some(Verdict::NxDomain) => 3,
        Some(Verdict::ServFail) => 2,
        Some(Verdict::Refused) => 5,
        None | Some(Verdict::NoData | Verdict::Silence) => 0,
    };
    write_head(out, query, rcode, lies);
    if script.fold_case {
        out[start + HEADER..start + query.question_end - 4].make_ascii_lowercase();
    }
    let mut counts = Counts::default();
    match verdict {
        None => write_records(out, start, query, script, lies, &mut counts),
        Some(Verdict::NxDomain | Verdict::NoData) => write_soa(out, script.ttl, &mut counts),
        Some(_) => {}
    }
    let cookie = query.edns.and_then(|edns| edns.cookie).filter(|_| script.cookies);
    let opt = if query.edns.is_some() { 11 } else { 0 } + if cookie.is_some() { 20 } else { 0 };
    if udp && is_too_long(out.len() - start + opt, query, script.truncate) {
        out.truncate(start + query.question_end);
        out[start + 2] |= 0x02;
        counts = Counts::default();
    }
    if let Some(edns) = query.edns {
        // RFC 6891 §6.1.1: an answer to a query with OPT has one too.
        out.extend_from_slice(&[0, 0, QueryType::OPT.0 as u8]);
        out.extend_from_slice(&EDNS_SIZE.to_be_bytes());
        let options = if cookie.is_some() { 20 } else { 0 };
        out.extend_from_slice(&[0, 0, if edns.dnssec_ok { 0x80 } else { 0 }, 0, 0, options]);
        if let Some(client) = cookie {
            out.extend_from_slice(&[0, 10, 0, 16]);
            out.extend_from_slice(client);
            out.extend(client.iter().map(|byte| byte ^ 0xa5));
        }
        counts.additional = 1;
    }
    out[start + 6..start + 8].copy_from_slice(&counts.answer.to_be_bytes());
    out[start + 8..start + 10].copy_from_slice(&counts.authority.to_be_bytes());
    out[start + 10..start + 12].copy_from_slice(&counts.additional.to_be_bytes());
}

/// Appends a bare header that says `rcode` to a message that is no proper query.
pub(super) fn write_refusal(out: &mut Vec<u8>, message: &[u8], rcode: u8) {
    out.extend_from_slice(&message[..2]);
    out.extend_from_slice(&[0x80 | message[2] & 0x79, rcode, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[derive(Default)]
struct Counts {
    answer: u16,
    authority: u16,
    additional: u16,
}

fn write_head(out: &mut Vec<u8>, query: &Query<'_>, rcode: u8, lies: Lies) {
    let start = out.len();
    out.extend_from_slice(&query.message[..query.question_end]);
    out[start + 2] = 0x80 | query.message[2] & 0x01;
    out[start + 3] = 0x80 | query.message[3] & 0x10 | rcode;
    if lies.id {
        out[start] ^= 0x5a;
        out[start + 1] ^= 0xa5;
    }
    if lies.question {
        match out[start + HEADER] {
            // The root has no letter to change: ask about another type.
            0 => out[start + query.question_end - 3] ^= 0x40,
            _ => out[start + HEADER + 1] ^= 0x01,
        }
    }
}

fn is_too_long(length: usize, query: &Query<'_>, truncate: Truncate) -> bool {
    let fits = query.edns.map_or(512, |edns| edns.size);
    match truncate {
        Truncate::Never => false,
        Truncate::Always => true,
        Truncate::ToFit => length > fits,
        Truncate::Above(bytes) => length > fits.min(bytes),
    }
}

fn write_records(
    out: &mut Vec<u8>,
    start: usize,
    query: &Query<'_>,
    script: &Script,
    lies: Lies,
    counts: &mut Counts,
) {
    let mut owner = HEADER as u16;
    // Further labels must leave room within the longest name; two digits are enough.
    if query.qtype != QueryType::CNAME {
        for number in 0..script.cnames.min(99) {
            let data = [2, b'0' + number / 10, b'0' + number % 10, 0xc0, HEADER as u8];
            write_record(out, owner, QueryType::CNAME, script.ttl, &data);
            owner = (out.len() - start - data.len()) as u16;
            counts.answer += 1;
        }
    }
    // A pointer reaches 16383 bytes far (RFC 1035 §4.1.4), an answer 65535: stop well before.
    let longest = 65535 - 300;
    let address = u32::from(expected_a_of_wire(query.name)) ^ if lies.address { 0x00ff_ffff } else { 0 };
    for number in 0..script.records {
        if out.len() - start > longest {
            break;
        }
        let address = 0x0a00_0000 | address.wrapping_add(number.into()) & 0x00ff_ffff;
        match query.qtype {
            QueryType::A => {
                write_record(out, owner, QueryType::A, script.ttl, &Ipv4Addr::from(address).octets());
            }
            QueryType::AAAA => {
                let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, (address >> 16) as u16, address as u16);
                write_record(out, owner, QueryType::AAAA, script.ttl, &address.octets());
            }
            QueryType::TXT => {
                let mut data = *b"\x08........";
                for (place, byte) in data[1..].iter_mut().zip(0..8u32) {
                    *place = b"0123456789abcdef"[(address >> (28 - 4 * byte) & 0xf) as usize];
                }
                write_record(out, owner, QueryType::TXT, script.ttl, &data);
            }
            _ => return write_soa(out, script.ttl, counts),
        }
        counts.answer += 1;
    }
}

/// The authority of a negative answer: its minimum is the time to live (RFC 2308 §3).
fn write_soa(out: &mut Vec<u8>, ttl: u32, counts: &mut Counts) {
    let mut data = [0; 22];
    data[2..6].copy_from_slice(&1u32.to_be_bytes());
    data[6..10].copy_from_slice(&3600u32.to_be_bytes());
    data[10..14].copy_from_slice(&600u32.to_be_bytes());
    data[14..18].copy_from_slice(&86400u32.to_be_bytes());
    data[18..22].copy_from_slice(&ttl.to_be_bytes());
    out.push(0);
    write_fixed(out, QueryType::SOA, ttl, &data);
    counts.authority += 1;
}

fn write_record(out: &mut Vec<u8>, owner: u16, rtype: QueryType, ttl: u32, data: &[u8]) {
    out.extend_from_slice(&(0xc000 | owner).to_be_bytes());
    write_fixed(out, rtype, ttl, data);
}

fn write_fixed(out: &mut Vec<u8>, rtype: QueryType, ttl: u32, data: &[u8]) {
    let mut fixed = [0; 10];
    fixed[0..2].copy_from_slice(&rtype.0.to_be_bytes());
    fixed[3] = 1;
    fixed[4..8].copy_from_slice(&ttl.to_be_bytes());
    fixed[8..10].copy_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(&fixed);
    out.extend_from_slice(data);
}

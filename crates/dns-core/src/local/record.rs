//! Records as people write them: `name [ttl] [IN] type data` (RFC 1035 §5.1).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::wire::{NameTextError, escaped, push_name, rtype};

/// One record of local data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalRecord {
    /// Its owner in wire form and lower case; of a wildcard, the name above it.
    pub(crate) name: Vec<u8>,
    /// Whether it stands for every name below its owner.
    pub(crate) is_wildcard: bool,
    /// In seconds, if it was given.
    pub(crate) ttl: Option<u32>,
    pub(crate) rtype: u16,
    pub(crate) rdata: Vec<u8>,
}

/// Types that can be written, by their names.
const TYPES: [(&str, u16); 8] = [
    ("A", rtype::A),
    ("AAAA", rtype::AAAA),
    ("CNAME", rtype::CNAME),
    ("TXT", rtype::TXT),
    ("MX", rtype::MX),
    ("SRV", rtype::SRV),
    ("PTR", rtype::PTR),
    ("NS", rtype::NS),
];

/// The longest time to live (RFC 2181 §8 allows more; seven days are what caches keep), in seconds.
const TTL_MAX: u32 = 604_800;

/// RDATA beyond this would not fit a reply with its question and OPT record.
const RDATA_LEN_MAX: usize = 60_000;

impl LocalRecord {
    /// Reads a record: a name (`*.` in front makes a wildcard), a time to live in seconds if it is not the usual one, a
    /// type (A, AAAA, CNAME, TXT, MX, SRV, PTR or NS), and its data. Names need no final dot.
    ///
    /// # Errors
    ///
    /// [`RecordTextError`] says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, RecordTextError> {
        let mut words = Words { rest: text };
        let owner = words.next_word().ok_or(RecordTextError::Missing("a name"))?;
        let (is_wildcard, bare) = match owner.strip_prefix("*.") {
            Some(bare) => (true, bare),
            None => (false, owner),
        };
        let name = name(bare)?;
        let mut word = words.next_word().ok_or(RecordTextError::Missing("a type"))?;
        let mut ttl = None;
        if word.starts_with(|c: char| c.is_ascii_digit()) {
            let seconds = word.parse().ok().filter(|seconds| *seconds <= TTL_MAX);
            ttl = Some(seconds.ok_or_else(|| RecordTextError::Ttl(word.to_owned()))?);
            word = words.next_word().ok_or(RecordTextError::Missing("a type"))?;
        }
        if word.eq_ignore_ascii_case("IN") {
            word = words.next_word().ok_or(RecordTextError::Missing("a type"))?;
        }
        let known = TYPES.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
        let rtype = known.ok_or_else(|| RecordTextError::Type(word.to_owned()))?.1;
        let rdata = rdata(rtype, &mut words)?;
        if let Some(more) = words.next_word() {
            return Err(RecordTextError::Extra(more.to_owned()));
        }
        Ok(Self { name, is_wildcard, ttl, rtype, rdata })
    }
}

fn name(text: &str) -> Result<Vec<u8>, RecordTextError> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    push_name(&mut wire, text.as_bytes())
        .map_err(|error| RecordTextError::Name { text: text.to_owned(), error })?;
    Ok(wire)
}

fn rdata(rtype: u16, words: &mut Words<'_>) -> Result<Vec<u8>, RecordTextError> {
    let mut out = Vec::new();
    match rtype {
        rtype::A => {
            let word = words.next_word().ok_or(RecordTextError::Missing("an IPv4 address"))?;
            let address: Ipv4Addr =
                word.parse().map_err(|_| RecordTextError::Address { text: word.to_owned(), version: 4 })?;
            out.extend_from_slice(&address.octets());
        }
        rtype::AAAA => {
            let word = words.next_word().ok_or(RecordTextError::Missing("an IPv6 address"))?;
            let address: Ipv6Addr =
                word.parse().map_err(|_| RecordTextError::Address { text: word.to_owned(), version: 6 })?;
            out.extend_from_slice(&address.octets());
        }
        rtype::TXT => texts(words, &mut out)?,
        rtype::MX => {
            number(words, "a preference", &mut out)?;
            target(words, &mut out)?;
        }
        rtype::SRV => {
            for what in ["a priority", "a weight", "a port"] {
                number(words, what, &mut out)?;
            }
            target(words, &mut out)?;
        }
        _ => target(words, &mut out)?,
    }
    Ok(out)
}

fn target(words: &mut Words<'_>, out: &mut Vec<u8>) -> Result<(), RecordTextError> {
    let word = words.next_word().ok_or(RecordTextError::Missing("the name that it points to"))?;
    out.extend(name(word)?);
    Ok(())
}

fn number(words: &mut Words<'_>, what: &'static str, out: &mut Vec<u8>) -> Result<(), RecordTextError> {
    let word = words.next_word().ok_or(RecordTextError::Missing(what))?;
    let number: u16 = word.parse().map_err(|_| RecordTextError::Number { what, text: word.to_owned() })?;
    out.extend_from_slice(&number.to_be_bytes());
    Ok(())
}

/// One string or more, in quotes or without (RFC 1035 §5.1), each of at most 255 octets (§3.3).
fn texts(words: &mut Words<'_>, out: &mut Vec<u8>) -> Result<(), RecordTextError> {
    let mut is_first = true;
    while let Some(text) = words.next_text()? {
        is_first = false;
        let len = u8::try_from(text.len()).map_err(|_| RecordTextError::LongText(text.len()))?;
        out.push(len);
        out.extend_from_slice(&text);
        if out.len() > RDATA_LEN_MAX {
            return Err(RecordTextError::LongText(out.len()));
        }
    }
    if is_first { Err(RecordTextError::Missing("a text")) } else { Ok(()) }
}

/// What is left of a record's text.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn next_word(&mut self) -> Option<&'a str> {
        let rest = self.rest.trim_start();
        let end = rest.find(|c: char| c.is_whitespace()).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn next_text(&mut self) -> Result<Option<Vec<u8>>, RecordTextError> {
        let rest = self.rest.trim_start();
        if rest.is_empty() {
            return Ok(None);
        }
        let (is_quoted, bytes) = match rest.strip_prefix('"') {
            Some(quoted) => (true, quoted.as_bytes()),
            None => (false, rest.as_bytes()),
        };
        let skipped = rest.len() - bytes.len();
        let mut text = Vec::new();
        let mut at = 0;
        loop {
            match bytes.get(at) {
                Some(b'"') if is_quoted => break,
                None if is_quoted => return Err(RecordTextError::Quote),
                None => break,
                Some(byte) if !is_quoted && byte.is_ascii_whitespace() => break,
                Some(b'\\') => {
                    let (octet, len) = escaped(bytes.get(at + 1..).unwrap_or_default())
                        .map_err(|error| RecordTextError::Name { text: rest.to_owned(), error })?;
                    text.push(octet);
                    at += 1 + len;
                }
                Some(byte) => {
                    text.push(*byte);
                    at += 1;
                }
            }
        }
        let end = skipped + at + usize::from(is_quoted);
        // An escaped octet may be the first of a character of several.
        self.rest = rest.get(end..).ok_or(RecordTextError::Quote)?;
        Ok(Some(text))
    }
}

/// What is wrong with a record as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordTextError {
    /// It ends too early: this is missing.
    Missing(&'static str),
    /// A name that is none.
    Name {
        /// As it is written.
        text: String,
        /// What is wrong with it.
        error: NameTextError,
    },
    /// A time to live that is none.
    Ttl(String),
    /// A type that is not known.
    Type(String),
    /// An address that is none.
    Address {
        /// As it is written.
        text: String,
        /// 4 or 6.
        version: u8,
    },
    /// A number that is none, or too large.
    Number {
        /// What it would be.
        what: &'static str,
        /// As it is written.
        text: String,
    },
    /// A text of so many octets.
    LongText(usize),
    /// A quote that does not end.
    Quote,
    /// More than belongs to it.
    Extra(String),
}

impl fmt::Display for RecordTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(what) => {
                write!(f, "{what} is missing; write `name [ttl] type data`, like `tv.home 300 A 192.168.1.7`")
            }
            Self::Name { text, error } => write!(f, "`{text}`: {error}"),
            Self::Ttl(text) => write!(f, "`{text}` is no time to live: 0 to {TTL_MAX} seconds"),
            Self::Type(text) => {
                write!(f, "`{text}` is no type that can be had here:")?;
                TYPES.iter().try_for_each(|(name, _)| write!(f, " {name}"))
            }
            Self::Address { text, version } => write!(f, "`{text}` is no IPv{version} address"),
            Self::Number { what, text } => write!(f, "`{text}` is not {what}: 0 to 65535"),
            Self::LongText(len) => {
                write!(f, "a text of {len} octets is too long: split it into several of at most 255")
            }
            Self::Quote => f.write_str("a quote does not end, or ends within a character"),
            Self::Extra(text) => write!(f, "`{text}` is more than belongs to the record"),
        }
    }
}

impl std::error::Error for RecordTextError {}

//! As much of DNS messages (RFC 1035) as load and its answers need.

use std::fmt;

/// Length of a message's header (RFC 1035 §4.1.1).
pub const HEADER: usize = 12;

/// The longest name in wire format, final zero included (RFC 1035 §2.3.4).
pub const NAME_MAX: usize = 255;

/// A question type, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct QueryType(pub u16);

const TYPES: &[(&str, u16)] = &[
    ("A", 1),
    ("NS", 2),
    ("CNAME", 5),
    ("SOA", 6),
    ("PTR", 12),
    ("MX", 15),
    ("TXT", 16),
    ("AAAA", 28),
    ("SRV", 33),
    ("NAPTR", 35),
    ("DS", 43),
    ("SSHFP", 44),
    ("RRSIG", 46),
    ("NSEC", 47),
    ("DNSKEY", 48),
    ("NSEC3", 50),
    ("NSEC3PARAM", 51),
    ("TLSA", 52),
    ("SVCB", 64),
    ("HTTPS", 65),
    ("SPF", 99),
    ("ANY", 255),
    ("CAA", 257),
];

impl QueryType {
    /// IPv4 address.
    pub const A: Self = Self(1);
    /// Alias.
    pub const CNAME: Self = Self(5);
    /// Start of a zone.
    pub const SOA: Self = Self(6);
    /// Text.
    pub const TXT: Self = Self(16);
    /// IPv6 address.
    pub const AAAA: Self = Self(28);
    /// EDNS (RFC 6891 §6.1.1), not a question.
    pub const OPT: Self = Self(41);
}

impl std::str::FromStr for QueryType {
    type Err = String;

    /// Reads a mnemonic in any case, or `TYPE65280` (RFC 3597 §5).
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.to_ascii_uppercase();
        TYPES
            .iter()
            .find(|(word, _)| *word == upper)
            .map(|(_, number)| *number)
            .or_else(|| upper.strip_prefix("TYPE")?.parse().ok())
            .map(Self)
            .ok_or_else(|| format!("\"{text}\" is not a question type: say A, AAAA, TXT … or TYPE<number>"))
    }
}

impl TryFrom<String> for QueryType {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<QueryType> for String {
    fn from(qtype: QueryType) -> Self {
        qtype.to_string()
    }
}

impl fmt::Display for QueryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match TYPES.iter().find(|(_, number)| *number == self.0) {
            Some((word, _)) => f.write_str(word),
            None => write!(f, "TYPE{}", self.0),
        }
    }
}

/// Returns the word for a response code (RFC 1035 §4.1.1, RFC 2136 §2.2).
pub fn rcode_word(rcode: u8) -> String {
    const WORDS: [&str; 11] = [
        "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET",
        "NOTAUTH", "NOTZONE",
    ];
    WORDS.get(usize::from(rcode)).map_or_else(|| format!("RCODE{rcode}"), |word| (*word).to_owned())
}

/// Appends `name` in wire format to `out`: relative or absolute is all the same, `\.` and `\065` are understood
/// (RFC 1035 §5.1).
///
/// # Errors
///
/// Says what is wrong with the name; `out` is then as it was.
pub fn encode_name(name: &str, out: &mut Vec<u8>) -> Result<(), String> {
    let start = out.len();
    let result =
        encode_labels(name, out, start).map_err(|wrong| format!("\"{name}\" is not a name: {wrong}"));
    if result.is_err() {
        out.truncate(start);
    }
    result
}

fn encode_labels(name: &str, out: &mut Vec<u8>, start: usize) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("it is empty (the root is \".\")");
    }
    let mut length_at = out.len();
    out.push(0);
    if name == "." {
        return Ok(());
    }
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' => {
                close_label(out, length_at)?;
                length_at = out.len();
                out.push(0);
            }
            b'\\' => {
                let escaped = bytes.next().ok_or("it ends in a backslash")?;
                if escaped.is_ascii_digit() {
                    let (tens, ones) = (bytes.next(), bytes.next());
                    let digits = [Some(escaped), tens, ones].map(|digit| digit.filter(u8::is_ascii_digit));
                    let [Some(a), Some(b), Some(c)] = digits else {
                        return Err("a number after \\ has three digits");
                    };
                    let number = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
                    out.push(u8::try_from(number).map_err(|_| "a number after \\ is at most 255")?);
                } else {
                    out.push(escaped);
                }
            }
            _ => out.push(byte),
        }
    }
    if out.len() - length_at > 1 {
        close_label(out, length_at)?;
        out.push(0);
    }
    if out.len() - start > NAME_MAX {
        return Err("it is longer than 255 bytes");
    }
    Ok(())
}

fn close_label(out: &mut [u8], length_at: usize) -> Result<(), &'static str> {
    match out.len() - length_at - 1 {
        0 => Err("a label is empty"),
        length @ 1..=63 => {
            out[length_at] = length as u8;
            Ok(())
        }
        _ => Err("a label is longer than 63 bytes"),
    }
}

/// Returns where the name at `start` ends, or `None` when it runs out of the message. A pointer ends it.
pub fn skip_name(message: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return (at + 2 <= message.len()).then_some(at + 2),
            _ => return None,
        }
    }
}

/// One record of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where its owner stands in the message.
    pub owner_at: usize,
    /// Its type.
    pub rtype: QueryType,
    /// Its class, which means something else in OPT.
    pub class: u16,
    /// Its time to live in seconds, which means something else in OPT.
    pub ttl: u32,
    /// Its data; names in it may be compressed.
    pub data: &'a [u8],
}

/// Reads the record at `*at`, and moves `*at` behind it.
pub fn next_record<'a>(message: &'a [u8], at: &mut usize) -> Option<Record<'a>> {
    let owner_at = *at;
    let fixed = skip_name(message, owner_at)?;
    let length = usize::from(u16_at(message, fixed + 8)?);
    let data = message.get(fixed + 10..fixed + 10 + length)?;
    *at = fixed + 10 + length;
    Some(Record {
        owner_at,
        rtype: QueryType(u16_at(message, fixed)?),
        class: u16_at(message, fixed + 2)?,
        ttl: u32::from_be_bytes(message.get(fixed + 4..fixed + 8)?.try_into().ok()?),
        data,
    })
}

/// Reads two bytes at `at`, most significant first.
pub fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?))
}

/// Returns a number that hardly any two different byte strings share (FNV-1a, 64 bits).
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// As [`hash`], blind to the case of ASCII letters, as names are (RFC 4343).
pub fn hash_caseless(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte.to_ascii_lowercase())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;

//! Reads DNS messages in place: bounds-checked, without copying, without panics.
//!
//! The one idea: a forwarder needs very little of a message — where the question ends, where
//! the TTLs stand, where the OPT record is. So messages are scanned, not parsed, and replies are
//! made by copying bytes and patching those places.

mod answer;
mod edns;
mod key;
mod name;
mod padding;
mod query;
mod suffix;
mod text;

#[cfg(test)]
mod tests;

pub use answer::{
    Answer, AnswerFault, AnswerKind, LetterCase, OptRecord, QuestionEcho, Scan, WithoutOpt, answer_matches,
};
pub(crate) use answer::{plain_ttl, same_question};
pub use edns::{Edns, EdnsOption, EdnsOptions, ExtendedError};
pub use key::{HashSeed, QuestionKey};
pub use name::is_under;
pub(crate) use name::{Name, Record, plain_name_end};
pub(crate) use padding::pad;
pub use padding::{ANSWER_BLOCK, QUERY_BLOCK};
pub use query::{
    Asked, AskedEdns, FaultAnswer, FaultCause, IgnoreCause, Query, QueryFault, UpstreamQuery, scan_query,
    write_query,
};
pub(crate) use query::{OPT_LEN, opt_record};
pub(crate) use suffix::{Suffixes, label_starts};
pub use text::{NameText, NameTextError, parse_name};
pub(crate) use text::{escaped, push_name};

/// Length of the header that every message starts with (RFC 1035 §4.1.1), in bytes.
pub const HEADER_LEN: usize = 12;

/// The longest message: a stream's length prefix has 16 bits (RFC 1035 §4.2.2), in bytes.
pub const MESSAGE_LEN_MAX: usize = 65_535;

/// The longest name on the wire, root label included (RFC 1035 §2.3.4), in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// The UDP reply that every client takes without asking (RFC 1035 §2.3.4), in bytes.
pub const UDP_LEN_MIN: u16 = 512;

/// The UDP payload we announce and send at most: it crosses every usual path unfragmented
/// (RFC 9715 §3, DNS flag day 2020), in bytes.
pub const UDP_LEN_DEFAULT: u16 = 1232;

/// Bits of the second header word (RFC 1035 §4.1.1, RFC 4035 §3.2).
pub mod flag {
    /// The message is a response.
    pub const QR: u16 = 0x8000;
    /// Authoritative answer.
    pub const AA: u16 = 0x0400;
    /// Truncated.
    pub const TC: u16 = 0x0200;
    /// Recursion desired.
    pub const RD: u16 = 0x0100;
    /// Recursion available.
    pub const RA: u16 = 0x0080;
    /// Authentic data (RFC 4035 §3.2.3).
    pub const AD: u16 = 0x0020;
    /// Checking disabled (RFC 4035 §3.2.2).
    pub const CD: u16 = 0x0010;
    /// The response code's low four bits.
    pub const RCODE: u16 = 0x000f;
}

/// Response codes, extended ones included (RFC 6895 §2.3).
pub mod rcode {
    /// No error.
    pub const NOERROR: u16 = 0;
    /// The query could not be understood.
    pub const FORMERR: u16 = 1;
    /// The server could not do it.
    pub const SERVFAIL: u16 = 2;
    /// The name does not exist.
    pub const NXDOMAIN: u16 = 3;
    /// The server does not do this kind of query.
    pub const NOTIMP: u16 = 4;
    /// The server will not do it.
    pub const REFUSED: u16 = 5;
    /// The EDNS version is not known (RFC 6891 §9); needs an OPT record to be said.
    pub const BADVERS: u16 = 16;
    /// The cookie is missing or old (RFC 7873 §8).
    pub const BADCOOKIE: u16 = 23;
}

/// Record types that decisions depend on.
pub mod rtype {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name server.
    pub const NS: u16 = 2;
    /// Canonical name.
    pub const CNAME: u16 = 5;
    /// Start of authority.
    pub const SOA: u16 = 6;
    /// Pointer to a name.
    pub const PTR: u16 = 12;
    /// Machine and system (RFC 8482 gives it another use).
    pub const HINFO: u16 = 13;
    /// Mail exchange.
    pub const MX: u16 = 15;
    /// Text.
    pub const TXT: u16 = 16;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// Service location (RFC 2782).
    pub const SRV: u16 = 33;
    /// Naming authority pointer (RFC 3403).
    pub const NAPTR: u16 = 35;
    /// Redirection of a subtree (RFC 6672).
    pub const DNAME: u16 = 39;
    /// The EDNS pseudo record (RFC 6891).
    pub const OPT: u16 = 41;
    /// Delegation signer (RFC 4034).
    pub const DS: u16 = 43;
    /// DNSSEC signature (RFC 4034).
    pub const RRSIG: u16 = 46;
    /// Next secure name (RFC 4034).
    pub const NSEC: u16 = 47;
    /// Next secure hash (RFC 5155).
    pub const NSEC3: u16 = 50;
    /// Service binding (RFC 9460).
    pub const SVCB: u16 = 64;
    /// Service binding of HTTP (RFC 9460).
    pub const HTTPS: u16 = 65;
    /// Transaction key (RFC 2930).
    pub const TKEY: u16 = 249;
    /// Transaction signature (RFC 8945).
    pub const TSIG: u16 = 250;
    /// Incremental zone transfer (RFC 1995).
    pub const IXFR: u16 = 251;
    /// Zone transfer (RFC 5936).
    pub const AXFR: u16 = 252;
    /// Any type (RFC 1035 §3.2.3).
    pub const ANY: u16 = 255;
}

/// Classes.
pub mod class {
    /// Internet.
    pub const IN: u16 = 1;
    /// Chaos: questions about the server itself.
    pub const CH: u16 = 3;
    /// Hesiod.
    pub const HS: u16 = 4;
    /// Any class.
    pub const ANY: u16 = 255;
}

/// Codes of EDNS options.
pub mod option {
    /// Client subnet (RFC 7871).
    pub const CLIENT_SUBNET: u16 = 8;
    /// Cookie (RFC 7873).
    pub const COOKIE: u16 = 10;
    /// TCP keep-alive (RFC 7828).
    pub const TCP_KEEPALIVE: u16 = 11;
    /// Padding (RFC 7830).
    pub const PADDING: u16 = 12;
    /// Extended DNS error (RFC 8914).
    pub const EXTENDED_ERROR: u16 = 15;
}

/// The big-endian 16 bits at `at`, when they are there.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..)?.first_chunk::<2>()?;
    Some(u16::from_be_bytes(*pair))
}

/// The big-endian 32 bits at `at`, when they are there.
#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let quad = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_be_bytes(*quad))
}

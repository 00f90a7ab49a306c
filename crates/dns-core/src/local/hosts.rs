//! Hosts files: `address name…`, a line for each address (hosts(5)).

use std::fmt;
use std::net::IpAddr;

use crate::wire::NameTextError;

/// One line's address and what follows it; `None` for a line that says nothing.
pub(crate) fn parse_line(line: &[u8]) -> Result<Option<(IpAddr, impl Iterator<Item = &[u8]>)>, HostsFault> {
    let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let Some(first) = words.next() else { return Ok(None) };
    let address = str::from_utf8(first).ok().and_then(|text| text.parse().ok());
    let address = address.ok_or_else(|| HostsFault::Address(String::from_utf8_lossy(first).into_owned()))?;
    let mut names = words.peekable();
    if names.peek().is_none() {
        return Err(HostsFault::NoName);
    }
    Ok(Some((address, names)))
}

/// The name under which an address is looked up backwards (RFC 1035 §3.5, RFC 3596 §2.5), in wire form.
pub(crate) fn backwards(address: IpAddr) -> Vec<u8> {
    let mut wire = Vec::with_capacity(74);
    match address {
        IpAddr::V4(v4) => {
            for octet in v4.octets().iter().rev() {
                let text = octet.to_string();
                wire.push(text.len() as u8);
                wire.extend_from_slice(text.as_bytes());
            }
            wire.extend_from_slice(b"\x07in-addr\x04arpa\0");
        }
        IpAddr::V6(v6) => {
            for octet in v6.octets().iter().rev() {
                for nibble in [octet & 0x0f, octet >> 4] {
                    wire.push(1);
                    wire.push(if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 });
                }
            }
            wire.extend_from_slice(b"\x03ip6\x04arpa\0");
        }
    }
    wire
}

/// What is wrong with a line of a hosts file; the line is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostsFault {
    /// It does not begin with an address.
    Address(String),
    /// It has an address and no name.
    NoName,
    /// One of its names is none; the others count.
    Name {
        /// As it is written.
        text: String,
        /// What is wrong with it.
        error: NameTextError,
    },
}

impl fmt::Display for HostsFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(text) => write!(f, "`{}` is no address", text.escape_debug()),
            Self::NoName => f.write_str("no name behind the address"),
            Self::Name { text, error } => write!(f, "`{}`: {error}", text.escape_debug()),
        }
    }
}

impl std::error::Error for HostsFault {}

//! Places in bytes that somebody else owns, and what bytes may be where.

/// A place in the bytes of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Makes the span of these offsets. Heads are bounded far below 4 GiB.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// Returns the bytes at this place; none when they are not these bytes' place.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// Returns where it begins.
    #[inline]
    pub const fn start(self) -> usize {
        self.start as usize
    }

    /// Returns where it ends.
    #[inline]
    pub const fn end(self) -> usize {
        self.end as usize
    }

    /// Returns its length in bytes.
    pub const fn len(self) -> usize {
        self.end as usize - self.start as usize
    }

    /// Returns whether nothing is there.
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// Returns whether this byte may stand in a token (RFC 9110 §5.6.2).
#[inline]
pub(crate) const fn is_token_byte(byte: u8) -> bool {
    TOKEN[byte as usize]
}

/// Returns whether this is a token.
pub(crate) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

/// Returns whether these bytes may stand in the value of a field (RFC 9110 §5.5): anything but controls, though tabs.
#[inline]
pub(crate) fn is_field_value(bytes: &[u8]) -> bool {
    // Without a branch, so that it is done for many bytes at once.
    bytes
        .iter()
        .fold(0_u8, |bad, byte| bad | u8::from((*byte < 0x20) & (*byte != b'\t')) | u8::from(*byte == 0x7f))
        == 0
}

/// Returns whether these bytes may stand in the target of a request: visible ASCII without a fragment, which never goes
/// on the wire (RFC 9112 §3.2).
#[inline]
pub(crate) fn is_target(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .fold(0_u8, |bad, byte| bad | u8::from((*byte < 0x21) | (*byte > 0x7e)) | u8::from(*byte == b'#'))
        == 0
}

/// Returns whether this is a host with or without a port (RFC 9110 §7.2, RFC 3986 §3.2.2). User names are refused: they
/// have no place in HTTP (RFC 9110 §4.2.4).
pub(crate) fn is_authority(bytes: &[u8]) -> bool {
    let (host, port) = if bytes.first() == Some(&b'[') {
        let Some(end) = memchr::memchr(b']', bytes) else { return false };
        let (literal, rest) = bytes.split_at(end + 1);
        let inside = literal.get(1..end).unwrap_or_default();
        let is_literal = !inside.is_empty()
            && inside
                .iter()
                .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.' | b'v' | b'%'));
        match (is_literal, rest.split_first()) {
            (true, None) => return true,
            (true, Some((b':', port))) => (literal, port),
            _ => return false,
        }
    } else {
        match memchr::memchr(b':', bytes) {
            Some(at) => (bytes.get(..at).unwrap_or_default(), bytes.get(at + 1..).unwrap_or_default()),
            None => (bytes, &b""[..]),
        }
    };
    let is_host =
        bytes.first() == Some(&b'[') || (!host.is_empty() && host.iter().all(|byte| HOST[*byte as usize]));
    is_host && port.len() <= 5 && port.iter().all(u8::is_ascii_digit)
}

/// Returns the bytes without the white space around them (RFC 9110 §5.6.3).
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = bytes {
        bytes = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// Returns the members of a list (RFC 9110 §5.6.1), trimmed; empty ones too.
pub(crate) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}

const fn table(allowed: &[u8]) -> [bool; 256] {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let mut at = 0;
    while at < allowed.len() {
        table[allowed[at] as usize] = true;
        at += 1;
    }
    table
}

static TOKEN: [bool; 256] = table(b"!#$%&'*+-.^_`|~");
/// Of `reg-name`; commas are left out, which would make a list of it.
static HOST: [bool; 256] = table(b"-._~%!$&'()*+;=");

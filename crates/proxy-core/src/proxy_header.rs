//! The PROXY protocol, versions 1 and 2: who a connection comes from, told by the proxy that passes it on.
//!
//! The header is what a connection begins with. [`parse`] reads it out of what has come so far, [`write()`] appends one.
//! Section numbers are those of "The PROXY protocol, versions 1 & 2" by its author, W. Tarreau.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Which version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// Who a connection comes from and where it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The sender speaks for itself, or does not know: the addresses of the connection itself count.
    Own,
    /// A TCP connection.
    Tcp {
        /// The client.
        source: SocketAddr,
        /// What the client had connected to.
        destination: SocketAddr,
    },
    /// A connection between processes of one machine. The paths are of no use elsewhere.
    Unix,
}

/// A header that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its version.
    pub version: Version,
    /// What it tells.
    pub addresses: Addresses,
    /// How many bytes it has; what follows is the client's.
    pub len: usize,
}

/// How long a header may be. Without extensions the longest has 232 bytes; a certificate's name or two fit as well.
pub const LEN_MAX: usize = 4096;

/// The longest line of version 1, its end included (§2.1).
const V1_LEN_MAX: usize = 107;

const V1_SIGNATURE: &[u8] = b"PROXY ";

/// §2.2
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Why there is no valid header. The connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeaderError {
    /// The connection begins with something else.
    Missing,
    /// A line of version 1 is not as it must be.
    Line,
    /// A line of version 1 does not end within 107 bytes.
    LineTooLong,
    /// Version 2 with a version, command, family or protocol that the protocol does not know.
    Unknown,
    /// Version 2 with fewer bytes than its addresses need, or an extension that goes beyond its end.
    Short,
    /// Version 2 with more bytes than [`LEN_MAX`].
    TooLong,
    /// The checksum is another one.
    Checksum,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "the connection does not begin with a PROXY header",
            Self::Line => "the line of the PROXY header is malformed",
            Self::LineTooLong => "the line of the PROXY header does not end",
            Self::Unknown => "the PROXY header has a version, command, family or protocol that nobody knows",
            Self::Short => "the PROXY header ends before its content does",
            Self::TooLong => "the PROXY header is longer than 4096 bytes",
            Self::Checksum => "the checksum of the PROXY header is wrong",
        })
    }
}

impl std::error::Error for HeaderError {}

/// Reads a header out of what a connection has begun with. `None` asks for more bytes; never once there are
/// [`LEN_MAX`].
///
/// # Errors
///
/// There is no header, or it is wrong; said as soon as that is certain.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    if starts_alike(bytes, V2_SIGNATURE) {
        parse_v2(bytes)
    } else if starts_alike(bytes, V1_SIGNATURE) {
        parse_v1(bytes)
    } else {
        Err(HeaderError::Missing)
    }
}

/// Whether the bytes so far are those of the signature.
fn starts_alike(bytes: &[u8], signature: &[u8]) -> bool {
    bytes.iter().zip(signature).all(|(a, b)| a == b)
}

/// §2.1: `PROXY TCP4 192.0.2.1 192.0.2.2 1024 443` and CRLF, with single spaces.
fn parse_v1(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    let window = &bytes[..bytes.len().min(V1_LEN_MAX)];
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() >= V1_LEN_MAX { Err(HeaderError::LineTooLong) } else { Ok(None) };
    };
    let line = window[..end].strip_suffix(b"\r").ok_or(HeaderError::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| HeaderError::Line)?;
    let rest = line.strip_prefix("PROXY ").ok_or(HeaderError::Line)?;
    let addresses = match rest.split_once(' ').unwrap_or((rest, "")) {
        // What follows is to be ignored.
        ("UNKNOWN", _) => Addresses::Own,
        ("TCP4", text) => v1_addresses(text, |ip| ip.parse::<Ipv4Addr>().ok().map(IpAddr::V4))?,
        ("TCP6", text) => v1_addresses(text, |ip| ip.parse::<Ipv6Addr>().ok().map(IpAddr::V6))?,
        _ => return Err(HeaderError::Line),
    };
    Ok(Some(Header { version: Version::V1, addresses, len: end + 1 }))
}

fn v1_addresses(text: &str, ip: impl Fn(&str) -> Option<IpAddr>) -> Result<Addresses, HeaderError> {
    let mut parts = text.split(' ');
    let mut next = || parts.next().ok_or(HeaderError::Line);
    let (source, destination, source_port, destination_port) = (next()?, next()?, next()?, next()?);
    if parts.next().is_some() {
        return Err(HeaderError::Line);
    }
    let ip = |text| ip(text).ok_or(HeaderError::Line);
    Ok(Addresses::Tcp {
        source: SocketAddr::new(ip(source)?, port(source_port)?),
        destination: SocketAddr::new(ip(destination)?, port(destination_port)?),
    })
}

/// Decimal digits alone, without zeros in front (§2.1).
fn port(text: &str) -> Result<u16, HeaderError> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(HeaderError::Line)
}

/// §2.2: signature, version and command, family and protocol, length, addresses, extensions.
fn parse_v2(bytes: &[u8]) -> Result<Option<Header>, HeaderError> {
    // What is wrong is said before the rest has come.
    let is_local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(HeaderError::Unknown),
    };
    let addresses_len = match bytes.get(13) {
        None => return Ok(None),
        Some(0x00) => 0,
        Some(0x11 | 0x12) => 12,
        Some(0x21 | 0x22) => 36,
        Some(0x31 | 0x32) => 216,
        // A health check of the sender itself may say anything here: it is ignored (§2.2, "LOCAL").
        Some(_) if is_local => 0,
        Some(_) => return Err(HeaderError::Unknown),
    };
    let Some(length) = bytes.get(14..16) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let len = 16 + length;
    if len > LEN_MAX {
        return Err(HeaderError::TooLong);
    }
    if !is_local && length < addresses_len {
        return Err(HeaderError::Short);
    }
    let Some(whole) = bytes.get(..len) else { return Ok(None) };
    let header = |addresses| Ok(Some(Header { version: Version::V2, addresses, len }));
    if is_local {
        return header(Addresses::Own);
    }
    // Without a family nobody knows where addresses end and extensions begin.
    if whole[13] != 0 {
        check_extensions(whole, 16 + addresses_len)?;
    }
    header(match (whole[13], &whole[16..]) {
        (0x11, [s0, s1, s2, s3, d0, d1, d2, d3, p0, p1, q0, q1, ..]) => Addresses::Tcp {
            source: (Ipv4Addr::new(*s0, *s1, *s2, *s3), u16::from_be_bytes([*p0, *p1])).into(),
            destination: (Ipv4Addr::new(*d0, *d1, *d2, *d3), u16::from_be_bytes([*q0, *q1])).into(),
        },
        (0x21, body) => {
            let ip =
                |at: usize| body.get(at..).and_then(|b| b.first_chunk::<16>()).map(|b| Ipv6Addr::from(*b));
            let port =
                |at: usize| body.get(at..).and_then(|b| b.first_chunk::<2>()).map(|b| u16::from_be_bytes(*b));
            match (ip(0), ip(16), port(32), port(34)) {
                (Some(source), Some(destination), Some(from), Some(to)) => {
                    Addresses::Tcp { source: (source, from).into(), destination: (destination, to).into() }
                }
                _ => return Err(HeaderError::Short),
            }
        }
        (0x31, _) => Addresses::Unix,
        // No family, or datagrams, which this connection is none of.
        _ => Addresses::Own,
    })
}

/// §2.2.3 to §2.2.6: extensions are type, length, value. All are skipped but the checksum.
fn check_extensions(header: &[u8], mut at: usize) -> Result<(), HeaderError> {
    const CRC32C: u8 = 0x03;
    while at < header.len() {
        let Some([kind, high, low]) = header.get(at..at + 3).and_then(|bytes| bytes.first_chunk::<3>())
        else {
            return Err(HeaderError::Short);
        };
        let value_at = at + 3;
        let end = value_at + usize::from(u16::from_be_bytes([*high, *low]));
        let value = header.get(value_at..end).ok_or(HeaderError::Short)?;
        if *kind == CRC32C {
            let told = value.first_chunk::<4>().filter(|_| value.len() == 4).ok_or(HeaderError::Checksum)?;
            // Taken over the whole header, with zeros in place of the sum itself (§2.2.4).
            let sum = crc32c(header[..value_at].iter().chain(&[0; 4]).chain(&header[end..]));
            if sum != u32::from_be_bytes(*told) {
                return Err(HeaderError::Checksum);
            }
        }
        at = end;
    }
    Ok(())
}

/// CRC-32C (Castagnoli), bit by bit: it is seen once in a connection's life, if ever.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    !bytes.fold(!0, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// Appends a header. What is not TCP is told as the sender's own.
///
/// IPv4 addresses in IPv6 form are written as IPv4; where only one of the two is, both as IPv6.
pub fn write(out: &mut Vec<u8>, version: Version, addresses: &Addresses) {
    match version {
        Version::V1 => write_v1(out, addresses),
        Version::V2 => write_v2(out, addresses),
    }
}

fn write_v1(out: &mut Vec<u8>, addresses: &Addresses) {
    let line = match pair(addresses) {
        None => "PROXY UNKNOWN\r\n".to_owned(),
        Some((source, destination)) => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            // Every reader must understand a mapped address; one in hexadecimal leaves no doubt.
            let (s, d) = (Plain(source.ip()), Plain(destination.ip()));
            format!("PROXY {family} {s} {d} {} {}\r\n", source.port(), destination.port())
        }
    };
    out.extend_from_slice(line.as_bytes());
}

fn write_v2(out: &mut Vec<u8>, addresses: &Addresses) {
    out.extend_from_slice(V2_SIGNATURE);
    match pair(addresses) {
        None => out.extend_from_slice(&[0x20, 0x00, 0, 0]),
        Some((source, destination)) => {
            let (family, len) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
            out.extend_from_slice(&[0x21, family, 0, len]);
            for address in [source, destination] {
                match address.ip() {
                    IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
                }
            }
            out.extend_from_slice(&source.port().to_be_bytes());
            out.extend_from_slice(&destination.port().to_be_bytes());
        }
    }
}

/// Both ends in one family.
fn pair(addresses: &Addresses) -> Option<(SocketAddr, SocketAddr)> {
    let Addresses::Tcp { source, destination } = addresses else { return None };
    let (from, to) = (source.ip().to_canonical(), destination.ip().to_canonical());
    let (from, to) = match (from, to) {
        (IpAddr::V4(v4), IpAddr::V6(_)) => (IpAddr::V6(v4.to_ipv6_mapped()), to),
        (IpAddr::V6(_), IpAddr::V4(v4)) => (from, IpAddr::V6(v4.to_ipv6_mapped())),
        same => same,
    };
    Some((SocketAddr::new(from, source.port()), SocketAddr::new(to, destination.port())))
}

/// An address without dots in an IPv6 one.
struct Plain(IpAddr);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
                let [.., a, b] = ip.segments();
                write!(f, "::ffff:{a:x}:{b:x}")
            }
            ip => ip.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(source: &str, destination: &str) -> Addresses {
        Addresses::Tcp { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = V2_SIGNATURE.to_vec();
        bytes.extend([command, family]);
        bytes.extend((body.len() as u16).to_be_bytes());
        bytes.extend(body);
        bytes
    }

    const V4_BODY: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 2, 0x12, 0x34, 1, 187];

    #[test]
    fn a_line_of_text_tells_both_ends() {
        let line = b"PROXY TCP4 192.0.2.1 198.51.100.2 4660 443\r\nGET / HTTP/1.1\r\n";
        let header = parse(line).unwrap().unwrap();
        assert_eq!(header.addresses, tcp("192.0.2.1:4660", "198.51.100.2:443"));
        assert_eq!(&line[header.len..][..3], b"GET");
        let line = b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n";
        assert_eq!(parse(line).unwrap().unwrap().addresses, tcp("[2001:db8::1]:1", "[::1]:65535"));
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN ffff::1 whatever 1 2\r\n"] {
            assert_eq!(parse(line.as_bytes()).unwrap().unwrap().addresses, Addresses::Own);
        }
    }

    #[test]
    fn a_line_that_is_not_exactly_right_is_refused() {
        for line in [
            "PROXY\r\n",
            "PROXY \r\n",
            "PROXY TCP4\r\n",
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
            "PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 01.2.3.4 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n",
            "PROXY TCP4 1.2.3.4\r 1.2.3.4 1 2\r\n",
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n",
        ] {
            assert!(parse(line.as_bytes()).is_err(), "{line:?}");
        }
        let endless = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100]].concat();
        assert_eq!(parse(&endless[..106]), Ok(None));
        assert_eq!(parse(&endless[..107]), Err(HeaderError::LineTooLong));
    }

    #[test]
    fn what_begins_otherwise_is_known_by_its_first_byte() {
        for bytes in ["G", "GET / HTTP/1.1\r\n", "\x16\x03\x01", "PROXZ", "\r\nX", "\n", " PROXY"] {
            assert_eq!(parse(bytes.as_bytes()), Err(HeaderError::Missing), "{bytes:?}");
        }
        assert_eq!(parse(b""), Ok(None));
    }

    #[test]
    fn binary_headers_tell_both_ends_and_extensions_are_skipped() {
        let bytes = v2(0x21, 0x11, &V4_BODY);
        let header = parse(&bytes).unwrap().unwrap();
        assert_eq!(header.addresses, tcp("192.0.2.1:4660", "198.51.100.2:443"));
        assert_eq!((header.version, header.len), (Version::V2, 28));
        let mut body = V4_BODY.to_vec();
        body.extend([0x04, 0, 0, 0x01, 0, 2, b'h', b'2', 0xe0, 0, 1, 9]);
        assert_eq!(parse(&v2(0x21, 0x11, &body)).unwrap().unwrap().addresses, header.addresses);
        assert_eq!(parse(&v2(0x21, 0x31, &[0; 216])).unwrap().unwrap().addresses, Addresses::Unix);
    }

    #[test]
    fn a_sender_that_speaks_for_itself_is_taken_at_its_own_address() {
        for bytes in [
            v2(0x20, 0x00, &[]),
            v2(0x20, 0x11, &V4_BODY),
            v2(0x20, 0xff, b"whatever"),
            v2(0x21, 0x00, b"whatever"),
            v2(0x21, 0x12, &V4_BODY),
        ] {
            let header = parse(&bytes).unwrap().unwrap();
            assert_eq!((header.addresses, header.len), (Addresses::Own, bytes.len()));
        }
    }

    #[test]
    fn impossible_binary_headers_are_refused_before_the_rest_has_come() {
        let cases = [
            (v2(0x11, 0x11, &V4_BODY)[..13].to_vec(), HeaderError::Unknown),
            (v2(0x22, 0x11, &V4_BODY)[..13].to_vec(), HeaderError::Unknown),
            (v2(0x21, 0x41, &V4_BODY)[..14].to_vec(), HeaderError::Unknown),
            (v2(0x21, 0x13, &V4_BODY)[..14].to_vec(), HeaderError::Unknown),
            (v2(0x21, 0x11, &V4_BODY[..11])[..16].to_vec(), HeaderError::Short),
            (v2(0x21, 0x21, &[0; 35])[..16].to_vec(), HeaderError::Short),
            (v2(0x21, 0x31, &[0; 215])[..16].to_vec(), HeaderError::Short),
            (v2(0x21, 0x11, &[0; LEN_MAX - 15])[..16].to_vec(), HeaderError::TooLong),
            (v2(0x21, 0x11, &[&V4_BODY[..], &[4, 0]].concat()), HeaderError::Short),
            (v2(0x21, 0x11, &[&V4_BODY[..], &[4, 0, 2, 0]].concat()), HeaderError::Short),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(&bytes), Err(error), "{bytes:x?}");
        }
    }

    #[test]
    fn a_checksum_is_checked_where_there_is_one() {
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        let mut bytes = v2(0x21, 0x11, &[&V4_BODY[..], &[3, 0, 4, 0, 0, 0, 0, 4, 0, 1, 7]].concat());
        let sum = crc32c(bytes.iter());
        bytes[31..35].copy_from_slice(&sum.to_be_bytes());
        assert!(parse(&bytes).unwrap().is_some());
        for at in 16..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert!(at == 28 || parse(&bad).is_err(), "byte {at}");
        }
        assert_eq!(
            parse(&v2(0x21, 0x11, &[&V4_BODY[..], &[3, 0, 1, 0]].concat())),
            Err(HeaderError::Checksum)
        );
    }

    #[test]
    fn ends_of_two_families_are_told_in_the_wider_one() {
        let mut out = Vec::new();
        write(&mut out, Version::V1, &tcp("192.0.2.1:5", "[2001:db8::1]:6"));
        assert_eq!(out, b"PROXY TCP6 ::ffff:c000:201 2001:db8::1 5 6\r\n");
        out.clear();
        write(&mut out, Version::V1, &tcp("[::ffff:192.0.2.1]:5", "[::ffff:192.0.2.2]:6"));
        assert_eq!(out, b"PROXY TCP4 192.0.2.1 192.0.2.2 5 6\r\n");
        out.clear();
        write(&mut out, Version::V1, &Addresses::Unix);
        assert_eq!(out, b"PROXY UNKNOWN\r\n");
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let v4 = (any::<[u8; 4]>(), any::<u16>()).prop_map(SocketAddr::from);
        let v6 = (any::<[u8; 16]>(), any::<u16>()).prop_map(SocketAddr::from);
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_however_it_is_split(
            source in any_address(), destination in any_address(), binary in any::<bool>(), rest in any::<[u8; 3]>(),
        ) {
            let version = if binary { Version::V2 } else { Version::V1 };
            let addresses = Addresses::Tcp { source, destination };
            let mut out = Vec::new();
            write(&mut out, version, &addresses);
            let len = out.len();
            out.extend(rest);
            for n in 0..len {
                prop_assert_eq!(parse(&out[..n]), Ok(None));
            }
            let header = parse(&out).unwrap().unwrap();
            prop_assert_eq!((header.version, header.len), (version, len));
            prop_assert_eq!(pair(&header.addresses), pair(&addresses));
        }

        #[test]
        fn no_bytes_panic_and_more_are_never_wanted_forever(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for signature in [&b""[..], V1_SIGNATURE, V2_SIGNATURE, b"PROXY TCP4 "] {
                let mut all = signature.to_vec();
                all.extend(&bytes);
                if let Ok(Some(header)) = parse(&all) {
                    prop_assert!(header.len <= all.len() && header.len <= LEN_MAX);
                    prop_assert_eq!(parse(&all[..header.len]), Ok(Some(header)));
                }
                all.resize(LEN_MAX, 0);
                prop_assert!(parse(&all) != Ok(None));
            }
        }
    }
}

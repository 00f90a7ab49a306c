//! What DNS over HTTPS adds to messages (RFC 8484): queries in a URI, and how long HTTP may keep an answer.

use crate::wire::{AnswerKind, MESSAGE_LEN_MAX, Scan, flag};

/// Appends the bytes that a text in base64url says (RFC 4648 §5, without padding as RFC 8484 §6 asks). Returns whether
/// it was such a text; if not, `out` is as it was.
pub fn decode_base64url(text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    // One sign alone says six bits of eight.
    if text.len() % 4 == 1 || text.len() / 4 * 3 > MESSAGE_LEN_MAX {
        return false;
    }
    out.reserve(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0;
        for &sign in group {
            let Some(value) = value_of(sign) else {
                out.truncate(start);
                return false;
            };
            bits = bits << 6 | u32::from(value);
        }
        // What a short group leaves open must be zero, or one message had several texts.
        let spare = group.len() * 6 % 8;
        if bits & ((1 << spare) - 1) != 0 {
            out.truncate(start);
            return false;
        }
        let bytes = (bits << (6 * (4 - group.len()))).to_be_bytes();
        out.extend_from_slice(&bytes[1..group.len()]);
    }
    true
}

const fn value_of(sign: u8) -> Option<u8> {
    match sign {
        b'A'..=b'Z' => Some(sign - b'A'),
        b'a'..=b'z' => Some(sign - b'a' + 26),
        b'0'..=b'9' => Some(sign - b'0' + 52),
        b'-' => Some(62),
        b'_' => Some(63),
        _ => None,
    }
}

/// Returns how long an HTTP cache may keep this reply, in seconds (RFC 8484 §5.1): no longer than the smallest TTL of
/// its answer section, and a negative one no longer than its SOA record lets it (RFC 2308 §5). `None` for what is not
/// to be kept: errors, and answers that are not whole.
pub fn freshness(reply: &[u8], scan: &mut Scan) -> Option<u32> {
    let answer = scan.scan_answer(reply).ok().filter(|answer| answer.flags & flag::TC == 0)?;
    match answer.kind {
        AnswerKind::Positive => answer.answer_ttl_min,
        AnswerKind::NxDomain | AnswerKind::NoData => {
            let negative = answer.negative_ttl?;
            Some(answer.answer_ttl_min.map_or(negative, |least| least.min(negative)))
        }
        AnswerKind::Referral | AnswerKind::Error => None,
    }
}

/// Takes the time that an answer has spent in HTTP caches off its TTLs (RFC 8484 §5.1). What cannot be read stays as it
/// is: whoever reads it next says what is wrong.
pub fn age_ttls(answer: &mut [u8], age_secs: u32, scan: &mut Scan) {
    let Ok(read) = scan.scan_answer(answer) else { return };
    let offsets: Vec<usize> = read.ttl_offsets().iter().copied().map(usize::from).collect();
    for at in offsets {
        if let Some(place) = answer.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<4>) {
            *place = u32::from_be_bytes(*place).saturating_sub(age_secs).to_be_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Option<Vec<u8>> {
        let mut out = b"before".to_vec();
        let good = decode_base64url(text.as_bytes(), &mut out);
        assert!(out.starts_with(b"before"));
        good.then(|| out.split_off(6)).or_else(|| {
            assert_eq!(out.len(), 6, "nothing is left of a text that is wrong");
            None
        })
    }

    #[test]
    fn texts_of_rfc_4648_mean_their_bytes() {
        for (text, bytes) in
            [("", ""), ("Zg", "f"), ("Zm8", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob"), ("Zm9vYmE", "fooba")]
        {
            assert_eq!(decode(text).unwrap(), bytes.as_bytes());
        }
        assert_eq!(decode("-_8").unwrap(), [0xfb, 0xff]);
        // The example of RFC 8484 §4.1.1.
        let query = decode("AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB").unwrap();
        assert_eq!(&query[12..29], b"\x03www\x07example\x03com\0");
    }

    #[test]
    fn padding_other_alphabets_and_spare_bits_are_refused() {
        for text in ["Zg==", "Zm8=", "+/8", "Z", "Zm9vY", "Zm 9v", "Zh", "Zm9", "Zg\n", "Zé"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        assert!(!decode_base64url(&vec![b'A'; MESSAGE_LEN_MAX * 2], &mut Vec::new()));
    }

    /// A reply with records of so many seconds; the last one may be a SOA record in the authority section.
    fn reply(rcode: u8, qtype: u8, ttls: &[u32], soa: Option<(u32, u32)>) -> Vec<u8> {
        let mut bytes =
            vec![0, 0, 0x81, 0x80 | rcode, 0, 1, 0, ttls.len() as u8, 0, soa.is_some().into(), 0, 0];
        bytes.extend_from_slice(&[1, b'a', 0, 0, qtype, 0, 1]);
        for ttl in ttls {
            bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&[0, 4, 192, 0, 2, 1]);
        }
        if let Some((ttl, minimum)) = soa {
            bytes.extend_from_slice(&[0, 0, 6, 0, 1]);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&[0, 22, 0, 0]);
            bytes.extend_from_slice(&[0; 16]);
            bytes.extend_from_slice(&minimum.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn answers_are_fresh_as_long_as_their_least_ttl_and_errors_never() {
        let fresh = |bytes: &[u8]| freshness(bytes, &mut Scan::new());
        assert_eq!(fresh(&reply(0, 1, &[300, 20, 60], None)), Some(20));
        assert_eq!(fresh(&reply(0, 1, &[300], Some((5, 5)))), Some(300), "only the answer section counts");
        assert_eq!(fresh(&reply(3, 1, &[], Some((3600, 30)))), Some(30));
        assert_eq!(fresh(&reply(3, 1, &[], Some((10, 30)))), Some(10));
        assert_eq!(fresh(&reply(0, 28, &[], Some((3600, 30)))), Some(30));
        assert_eq!(
            fresh(&reply(0, 28, &[7], Some((3600, 30)))),
            Some(7),
            "an alias of a name without such records"
        );
        assert_eq!(fresh(&reply(3, 1, &[], None)), None);
        assert_eq!(fresh(&reply(2, 1, &[], None)), None);
        let mut truncated = reply(0, 1, &[300], None);
        truncated[2] |= 2;
        assert_eq!(fresh(&truncated), None);
        assert_eq!(fresh(&[]), None);
    }

    #[test]
    fn age_is_taken_off_every_ttl_and_never_below_zero() {
        let mut bytes = reply(0, 1, &[300, 20], Some((3600, 30)));
        age_ttls(&mut bytes, 50, &mut Scan::new());
        assert_eq!(bytes, reply(0, 1, &[250, 0], Some((3550, 30))));
        for end in 0..bytes.len() {
            age_ttls(&mut bytes[..end].to_vec(), 50, &mut Scan::new());
        }
    }
}

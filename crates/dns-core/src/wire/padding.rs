//! Padding, which hides from those who see only how long messages are which ones they are (RFC 7830, RFC 8467).

use super::{be16, option, rtype};

/// The lengths of queries that are padded are multiples of this, in bytes (RFC 8467 §4.1).
pub const QUERY_BLOCK: u16 = 128;

/// The lengths of answers that are padded are multiples of this, in bytes (RFC 8467 §4.1).
pub const ANSWER_BLOCK: u16 = 468;

/// Code and length of an option, in bytes.
const OPTION_HEADER_LEN: usize = 4;

/// Pads the message that begins at `base` and ends with the buffer, whose last record is an OPT record that begins at
/// `opt`, to a multiple of `block` bytes; to `len_max` if the next multiple is longer; not at all if there is no room.
pub(crate) fn pad(out: &mut Vec<u8>, base: usize, opt: usize, block: u16, len_max: usize) {
    debug_assert_eq!(be16(out, opt + 1), Some(rtype::OPT));
    let (block, len) = (usize::from(block.max(1)), out.len() - base + OPTION_HEADER_LEN);
    let padded = len.next_multiple_of(block).min(len_max);
    let Some(padding) = padded.checked_sub(len) else { return };
    // The length of the record's data stands in its last two bytes before them.
    let Some(place) = out.get_mut(opt + 9..).and_then(|rest| rest.first_chunk_mut::<2>()) else { return };
    let data_len = usize::from(u16::from_be_bytes(*place)) + OPTION_HEADER_LEN + padding;
    let (Ok(data_len), Ok(padding_len)) = (u16::try_from(data_len), u16::try_from(padding)) else { return };
    *place = data_len.to_be_bytes();
    out.extend_from_slice([option::PADDING, padding_len].map(u16::to_be_bytes).as_flattened());
    // RFC 7830 §3: zeros.
    out.resize(out.len() + padding, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Message;
    use crate::wire::scan_query;

    fn query(name: &str, block: u16, len_max: usize, options: &[u8]) -> Vec<u8> {
        let mut out = vec![0xff; 7];
        let message = Message::query(name, 1);
        let opt = out.len() + message.0.len();
        out.extend_from_slice(&message.opt(1232, 0, options).0);
        pad(&mut out, 7, opt, block, len_max);
        out.split_off(7)
    }

    #[test]
    fn every_length_becomes_a_multiple_and_the_message_stays_whole() {
        for labels in 1..40 {
            let name = "abcd.".repeat(labels);
            let bytes = query(&name, QUERY_BLOCK, 65_535, &[]);
            assert_eq!(bytes.len() % 128, 0, "{labels}");
            let scanned = scan_query(&bytes).unwrap();
            let options = scanned.edns.unwrap().options;
            assert!(options.has_padding() && options.well_formed());
            assert!(options.data_of(option::PADDING).unwrap().iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn padding_stops_at_the_longest_message_and_needs_room() {
        let plain = query("a.test", 1, 0, &[]).len();
        assert_eq!(query("a.test", 128, plain + 3, &[]).len(), plain, "no room for the option itself");
        assert_eq!(query("a.test", 128, plain + 4, &[]).len(), plain + 4, "an empty one");
        assert_eq!(query("a.test", 128, plain + 50, &[]).len(), plain + 50);
    }

    #[test]
    fn options_before_it_stay() {
        let bytes = query("a.test", 128, 512, &[0, 11, 0, 0]);
        let scanned = scan_query(&bytes).unwrap();
        assert!(scanned.edns.unwrap().options.has_keepalive());
        assert_eq!(bytes.len(), 128);
    }
}

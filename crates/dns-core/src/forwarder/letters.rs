//! Letter case as a secret: a query's name is spelled at random, and an answer must spell it the same (0x20).
//!
//! A name's n letters make an answer 2ⁿ times harder to guess. Upstreams copy the question into their answers; one that
//! does not is found out and spared: an answer that differs in case alone is asked for again over a stream, and after some
//! in a row, with none that was right between, the endpoint gets its names in lower case for ten minutes.

use std::time::Duration;

use forebay_core::{Instant, SlotId};
use rand_chacha::rand_core::RngCore;

use super::notices::Notice;
use super::{Carrier, Forwarder, Outbox};
use crate::wire::HEADER_LEN;

/// Answers in a row in another case after which an endpoint is taken not to keep it. Somebody who guesses would have to
/// find as many ids before one right answer came.
const LOST_MAX: u32 = 8;
/// How long it is taken for that.
const SPARED_FOR: Duration = Duration::from_secs(600);

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Letters {
    /// Answers in another case since the last right one.
    lost: u32,
    /// Its names are not spelled at random until then.
    spared_until: Instant,
    /// Letters of the names it was asked, in sixteenths, smoothed.
    mean: u32,
}

impl Forwarder {
    /// Chooses how the name of the next query is spelled; 0 is in lower case.
    pub(super) fn choose_letters(&mut self, now: Instant, endpoint: u16, carrier: Carrier) -> u64 {
        if !self.safety.randomize_case || carrier == Carrier::Stream {
            return 0;
        }
        if now < self.endpoints[usize::from(endpoint)].letters.spared_until {
            return 0;
        }
        self.ids.next_u64()
    }

    /// Notes how many letters a name had that was spelled at random.
    pub(super) fn note_letters(&mut self, endpoint: u16, letters: u32) {
        let mean = &mut self.endpoints[usize::from(endpoint)].letters.mean;
        *mean = if *mean == 0 { letters * 16 } else { *mean - *mean / 16 + letters };
    }

    /// What random case adds to the entropy, in bits.
    pub(super) fn letter_bits(&self, endpoint: u16) -> f64 {
        if self.safety.randomize_case {
            f64::from(self.endpoints[usize::from(endpoint)].letters.mean) / 16.0
        } else {
            0.0
        }
    }

    /// Whether an answer that fits spells the name as the query did. If not, it is asked for again.
    pub(super) fn is_spelled_right(
        &mut self,
        now: Instant,
        slot: SlotId,
        attempt: u32,
        bytes: &[u8],
        out: &mut impl Outbox,
    ) -> bool {
        let this = self.flights.attempt(attempt);
        let (letters, endpoint) = (this.letters, this.endpoint);
        let name_len = self.flights.flight(this.flight).key.name().len();
        // An error without a question says nothing of its spelling.
        let has_question = bytes.get(4..6) == Some(&[0, 1]);
        let name = bytes.get(HEADER_LEN..HEADER_LEN + name_len).unwrap_or_default();
        if letters == 0 || !has_question {
            return true;
        }
        if is_spelled(name, letters) {
            self.endpoints[usize::from(endpoint)].letters.lost = 0;
            return true;
        }
        self.counters.case_mismatches += 1;
        let known = &mut self.endpoints[usize::from(endpoint)].letters;
        known.lost += 1;
        if known.lost >= LOST_MAX {
            (known.lost, known.spared_until, known.mean) = (0, now + SPARED_FOR, 0);
            self.notices.push(endpoint, Notice::CaseNotKept);
        }
        debug_assert_eq!(self.carrier(slot), Carrier::Datagram);
        self.ask_otherwise(now, attempt, out);
        false
    }
}

/// Spells a lower-cased name by these bits, each letter in upper case whose bit is set. Returns how many letters it has.
/// Beyond 64 the bits come again: more would make nothing harder.
pub(super) fn spell(name: &mut [u8], letters: u64) -> u32 {
    let mut count = 0;
    for byte in name.iter_mut().filter(|byte| byte.is_ascii_lowercase()) {
        if letters.rotate_right(count) & 1 != 0 {
            *byte = byte.to_ascii_uppercase();
        }
        count += 1;
    }
    count
}

fn is_spelled(name: &[u8], letters: u64) -> bool {
    let mut count = 0;
    name.iter().filter(|byte| byte.is_ascii_alphabetic()).all(|byte| {
        let upper = letters.rotate_right(count) & 1 != 0;
        count += 1;
        byte.is_ascii_uppercase() == upper
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spelled_is_found_so_and_any_other_letter_is_noticed() {
        let name = b"\x03www\x1fa-label-with-63-digits-012345678\x04test\0";
        for letters in [0u64, 1, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut spelled = name.to_vec();
            let count = spell(&mut spelled, letters);
            assert_eq!(count as usize, name.iter().filter(|byte| byte.is_ascii_alphabetic()).count());
            assert!(spelled.eq_ignore_ascii_case(name) && is_spelled(&spelled, letters));
            for at in 0..spelled.len() {
                let mut other = spelled.clone();
                other[at] ^= 0x20;
                assert!(!spelled[at].is_ascii_alphabetic() || !is_spelled(&other, letters));
            }
        }
    }
}

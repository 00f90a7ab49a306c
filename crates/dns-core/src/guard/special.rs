//! Names that no upstream is asked for (RFC 6761 and what follows it).
//!
//! | name | answer | why |
//! |---|---|---|
//! | `localhost` and below | 127.0.0.1, ::1; else no data | RFC 6761 §6.3 |
//! | `invalid`, `local`, `onion` and below | no such name | RFC 6761 §6.4, RFC 6762 §22.1, RFC 7686 §2 |
//! | `home.arpa` and below, but for its DS record | no such name | RFC 8375 §4 |
//! | `service.arpa` and below | no such name | RFC 9665 §9 |
//! | `resolver.arpa` and below | no data: there is no encrypted resolver to be discovered | RFC 9462 §6.4 |
//! | addresses of this machine and of private networks, backwards | `localhost` for 127.0.0.1 and ::1; else no such name | RFC 6303 §4, RFC 7793 |
//!
//! `test` is not among them: whoever uses it has a server for it. A route or local data for any of these names wins.

use crate::wire::{label_starts, rtype};

/// What is said to a question for a special name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Special {
    /// Where in the name its zone begins.
    pub(crate) apex: usize,
    pub(crate) answer: SpecialAnswer,
}

/// The answer to a question for a special name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpecialAnswer {
    /// The name does not exist.
    NxDomain,
    /// It has no records of this type.
    NoData,
    /// One record of the type asked for, with these octets.
    Data(&'static [u8]),
}

/// How long these answers hold, in seconds (RFC 6303 §3).
pub(crate) const SPECIAL_TTL: u32 = 10_800;

const LOCALHOST: &[u8] = b"\x09localhost\0";

/// Looks whether an uncompressed name in lower case is special.
pub(crate) fn special(name: &[u8], qtype: u16) -> Option<Special> {
    let mut starts = [0; 128];
    let count = label_starts(name, &mut starts);
    let labels = Labels { name, starts: starts.get(..count)? };
    let zone = |depth: usize, answer| Some(Special { apex: labels.start(depth), answer });
    match labels.nth_last(0)? {
        b"localhost" => zone(1, localhost(qtype)),
        b"invalid" | b"local" | b"onion" => zone(1, SpecialAnswer::NxDomain),
        b"arpa" => match labels.nth_last(1)? {
            b"home" if count == 2 && qtype == rtype::DS => None,
            b"home" | b"service" => zone(2, SpecialAnswer::NxDomain),
            b"resolver" => zone(2, SpecialAnswer::NoData),
            b"in-addr" => backwards(&labels, qtype, in_addr(&labels)?),
            b"ip6" => backwards(&labels, qtype, ip6(&labels)?),
            _ => None,
        },
        _ => None,
    }
}

/// The labels of a name, counted from the right.
struct Labels<'a> {
    name: &'a [u8],
    starts: &'a [u8],
}

impl<'a> Labels<'a> {
    fn nth_last(&self, n: usize) -> Option<&'a [u8]> {
        let start = usize::from(*self.starts.get(self.starts.len().checked_sub(n + 1)?)?);
        let len = usize::from(*self.name.get(start)?);
        self.name.get(start + 1..start + 1 + len)
    }

    /// Where the last `depth` labels begin.
    fn start(&self, depth: usize) -> usize {
        let at = self.starts.len().checked_sub(depth).and_then(|at| self.starts.get(at));
        at.map_or(0, |start| usize::from(*start))
    }

    /// The last `N` octets of an address that is written backwards from `depth` on; fewer are `None`.
    fn octet(&self, n: usize) -> Option<u8> {
        let label = self.nth_last(n)?;
        let is_number = matches!(label, [b'0'] | [b'1'..=b'9', ..]) && label.len() <= 3;
        if !is_number {
            return None;
        }
        let value = label.iter().try_fold(0u16, |sum, digit| {
            digit.is_ascii_digit().then(|| sum * 10 + u16::from(digit - b'0'))
        })?;
        u8::try_from(value).ok()
    }

    fn nibble(&self, n: usize) -> Option<u8> {
        match self.nth_last(n)? {
            [digit @ b'0'..=b'9'] => Some(digit - b'0'),
            [digit @ b'a'..=b'f'] => Some(digit - b'a' + 10),
            _ => None,
        }
    }
}

fn localhost(qtype: u16) -> SpecialAnswer {
    match qtype {
        rtype::A => SpecialAnswer::Data(&[127, 0, 0, 1]),
        rtype::AAAA => SpecialAnswer::Data(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        _ => SpecialAnswer::NoData,
    }
}

/// A network whose addresses, written backwards, stand nowhere in the public tree.
enum Backwards {
    /// So many labels make its zone.
    Zone(usize),
    /// This machine, whose zone has so many labels.
    Loopback(usize),
}

fn backwards(labels: &Labels<'_>, qtype: u16, network: Backwards) -> Option<Special> {
    let (depth, answer) = match network {
        Backwards::Loopback(depth) if qtype == rtype::PTR => (depth, SpecialAnswer::Data(LOCALHOST)),
        Backwards::Loopback(depth) => (depth, SpecialAnswer::NoData),
        // RFC 6303 §3: the zone itself exists.
        Backwards::Zone(depth) if labels.starts.len() == depth => (depth, SpecialAnswer::NoData),
        Backwards::Zone(depth) => (depth, SpecialAnswer::NxDomain),
    };
    Some(Special { apex: labels.start(depth), answer })
}

/// RFC 6303 §4.2 and RFC 7793 §3.
fn in_addr(labels: &Labels<'_>) -> Option<Backwards> {
    let octets = [labels.octet(2), labels.octet(3), labels.octet(4), labels.octet(5)];
    Some(match octets {
        [Some(127), Some(0), Some(0), Some(1)] if labels.starts.len() == 6 => Backwards::Loopback(3),
        [Some(0 | 10 | 127), ..] => Backwards::Zone(3),
        [Some(172), Some(16..=31), ..]
        | [Some(192), Some(168), ..]
        | [Some(169), Some(254), ..]
        | [Some(100), Some(64..=127), ..] => Backwards::Zone(4),
        [Some(192), Some(0), Some(2), _]
        | [Some(198), Some(51), Some(100), _]
        | [Some(203), Some(0), Some(113), _] => Backwards::Zone(5),
        [Some(255), Some(255), Some(255), Some(255)] => Backwards::Zone(6),
        _ => return None,
    })
}

/// RFC 6303 §4.3 to §4.5.
fn ip6(labels: &Labels<'_>) -> Option<Backwards> {
    let nibbles = |n: usize| labels.nibble(2 + n);
    match [nibbles(0)?, nibbles(1)?] {
        [0xf, 0xd] => return Some(Backwards::Zone(4)),
        [0xf, 0xe] if matches!(nibbles(2), Some(8..=0xb)) => return Some(Backwards::Zone(5)),
        _ => {}
    }
    const DOCUMENTATION: [u8; 8] = [2, 0, 0, 1, 0, 0xd, 0xb, 8];
    if (0..8).all(|n| nibbles(n) == Some(DOCUMENTATION[n])) {
        return Some(Backwards::Zone(10));
    }
    let is_low = (0..31).all(|n| nibbles(n) == Some(0)) && labels.starts.len() >= 34;
    match nibbles(31) {
        Some(1) if is_low && labels.starts.len() == 34 => Some(Backwards::Loopback(34)),
        Some(0 | 1) if is_low => Some(Backwards::Zone(34)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::name;

    fn answer(dotted: &str, qtype: u16) -> Option<SpecialAnswer> {
        special(&name(dotted), qtype).map(|special| special.answer)
    }

    fn apex(dotted: &str) -> Vec<u8> {
        let wire = name(dotted);
        let at = special(&wire, rtype::A).unwrap().apex;
        wire[at..].to_vec()
    }

    use SpecialAnswer::{Data, NoData, NxDomain};

    #[test]
    fn localhost_is_this_machine() {
        for dotted in ["localhost", "www.localhost"] {
            assert_eq!(answer(dotted, rtype::A), Some(Data(&[127, 0, 0, 1])));
            assert!(matches!(answer(dotted, rtype::AAAA), Some(Data([.., 0, 1]))));
            assert_eq!(answer(dotted, rtype::MX), Some(NoData));
        }
        assert_eq!(apex("a.b.localhost"), name("localhost"));
        let low = "0.".repeat(31);
        assert_eq!(answer("1.0.0.127.in-addr.arpa", rtype::PTR), Some(Data(LOCALHOST)));
        assert_eq!(answer(&format!("1.{low}ip6.arpa"), rtype::PTR), Some(Data(LOCALHOST)));
        assert_eq!(answer(&format!("0.{low}ip6.arpa"), rtype::PTR), Some(NoData));
        assert_eq!(answer(&format!("a.1.{low}ip6.arpa"), rtype::PTR), Some(NxDomain));
        assert_eq!(answer("1.0.0.127.in-addr.arpa", rtype::A), Some(NoData));
        assert_eq!(answer("2.0.0.127.in-addr.arpa", rtype::PTR), Some(NxDomain));
    }

    #[test]
    fn names_of_other_systems_do_not_exist() {
        for dotted in
            ["local", "printer.local", "x.onion", "invalid", "a.invalid", "home.arpa", "tv.home.arpa"]
        {
            assert_eq!(answer(dotted, rtype::A), Some(NxDomain), "{dotted}");
        }
        assert_eq!(answer("_dns.resolver.arpa", 64), Some(NoData));
        assert_eq!(answer("home.arpa", rtype::DS), None, "its insecure delegation is public");
        assert_eq!(answer("tv.home.arpa", rtype::DS), Some(NxDomain));
        assert_eq!(apex("a.tv.home.arpa"), name("home.arpa"));
    }

    #[test]
    fn private_addresses_backwards_do_not_exist() {
        for dotted in [
            "1.2.3.10.in-addr.arpa",
            "9.16.172.in-addr.arpa",
            "1.31.172.in-addr.arpa",
            "1.1.168.192.in-addr.arpa",
            "1.254.169.in-addr.arpa",
            "7.2.0.192.in-addr.arpa",
            "1.64.100.in-addr.arpa",
            "1.0.in-addr.arpa",
            "1.127.100.in-addr.arpa",
            "9.100.51.198.in-addr.arpa",
            "9.113.0.203.in-addr.arpa",
            "0.d.f.ip6.arpa",
            "0.8.e.f.ip6.arpa",
            "0.b.e.f.ip6.arpa",
            "1.8.b.d.0.1.0.0.2.ip6.arpa",
        ] {
            assert_eq!(answer(dotted, rtype::PTR), Some(NxDomain), "{dotted}");
        }
        for dotted in
            ["10.in-addr.arpa", "168.192.in-addr.arpa", "d.f.ip6.arpa", "255.255.255.255.in-addr.arpa"]
        {
            assert_eq!(answer(dotted, rtype::PTR), Some(NoData), "{dotted}");
        }
        assert_eq!(apex("1.2.3.10.in-addr.arpa"), name("10.in-addr.arpa"));
        assert_eq!(apex("1.1.20.172.in-addr.arpa"), name("20.172.in-addr.arpa"));
    }

    #[test]
    fn everything_else_goes_on() {
        for dotted in [
            "",
            "example",
            "a.test",
            "test",
            "local.example",
            "localhost.example",
            "arpa",
            "in-addr.arpa",
            "ip6.arpa",
            "1.in-addr.arpa",
            "8.8.8.8.in-addr.arpa",
            "32.172.in-addr.arpa",
            "172.in-addr.arpa",
            "15.172.in-addr.arpa",
            "63.100.in-addr.arpa",
            "128.100.in-addr.arpa",
            "x.in-addr.arpa",
            "010.in-addr.arpa",
            "10a.in-addr.arpa",
            "266.in-addr.arpa",
            "f.ip6.arpa",
            "c.f.ip6.arpa",
            "c.e.f.ip6.arpa",
            "1.0.0.2.ip6.arpa",
            "0.ip6.arpa",
            "notlocal",
            "x-local",
            "ipv4only.arpa",
        ] {
            assert_eq!(answer(dotted, rtype::A), None, "{dotted}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_special_or_not_and_the_zone_is_a_suffix(bytes in prop::collection::vec(any::<u8>(), 0..260)) {
            if let Some(special) = special(&bytes, rtype::A) {
                prop_assert!(special.apex < bytes.len());
            }
        }
    }
}

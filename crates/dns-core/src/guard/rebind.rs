//! Rebinding: public names whose addresses are private, by which a web page reaches into the network of who reads it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::{Answer, Record, be16, class, is_under, rtype};

/// Whom public names may not point to, and which may all the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RebindConfig {
    /// Names under which private addresses are fine, themselves included: in wire form, lower case.
    pub allow: Vec<Vec<u8>>,
}

impl RebindConfig {
    /// Whether an answer says that `name` has an address that no public name should have.
    pub(crate) fn objects_to(&self, name: &[u8], answer: &Answer<'_>) -> bool {
        answer.counts[0] > 0
            && has_private_address(answer)
            && !self.allow.iter().any(|suffix| is_under(name, suffix))
    }
}

/// Whether any address in the answer section is private. The hints of service bindings count: browsers connect to them
/// (RFC 9460 §7.3).
fn has_private_address(answer: &Answer<'_>) -> bool {
    let bytes = answer.bytes();
    let mut at = 12 + answer.question.len();
    for _ in 0..answer.counts[0] {
        let Ok(record) = Record::read(bytes, at) else { return false };
        at = record.end;
        if record.class != class::IN {
            continue;
        }
        let rdata = bytes.get(record.rdata..record.end).unwrap_or_default();
        let found = match record.rtype {
            rtype::A => any_private_v4(rdata),
            rtype::AAAA => any_private_v6(rdata),
            rtype::SVCB | rtype::HTTPS => has_private_hint(rdata),
            _ => false,
        };
        if found {
            return true;
        }
    }
    false
}

fn any_private_v4(octets: &[u8]) -> bool {
    octets.as_chunks::<4>().0.iter().any(|octets| is_private(IpAddr::from(*octets)))
}

fn any_private_v6(octets: &[u8]) -> bool {
    octets.as_chunks::<16>().0.iter().any(|octets| is_private(IpAddr::from(*octets)))
}

/// Reads the parameters of a service binding (RFC 9460 §2.2): priority, uncompressed target, then key, length, value.
fn has_private_hint(rdata: &[u8]) -> bool {
    const IPV4_HINT: u16 = 4;
    const IPV6_HINT: u16 = 6;
    let mut at = 2;
    while let Some(&len) = rdata.get(at) {
        at += 1 + usize::from(len);
        if len == 0 {
            break;
        }
    }
    while let (Some(key), Some(len)) = (be16(rdata, at), be16(rdata, at + 2)) {
        let end = at + 4 + usize::from(len);
        let value = rdata.get(at + 4..end).unwrap_or_default();
        let found = match key {
            IPV4_HINT => any_private_v4(value),
            IPV6_HINT => any_private_v6(value),
            _ => false,
        };
        if found {
            return true;
        }
        at = end;
    }
    false
}

/// Whether an address leads to this machine or into a private network, whatever it is wrapped in.
pub(crate) fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_private_v4(v4),
        IpAddr::V6(v6) => is_private_v6(v6),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    // 0.0.0.0/8 is "this host on this network" (RFC 1122 §3.2.1.3): Linux connects to itself.
    address.octets()[0] == 0 || address.is_private() || address.is_loopback() || address.is_link_local()
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    let octets = address.octets();
    let [.., a, b, c, d] = octets;
    // Mapped (RFC 4291 §2.5.5.2), compatible (§2.5.5.1, ::1 and :: among them), behind NAT64 (RFC 6052 §2.1), 6to4
    // (RFC 3056 §2).
    let embedded = match address.segments() {
        [0, 0, 0, 0, 0, 0xffff | 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some([a, b, c, d]),
        [0x2002, ..] => Some([octets[2], octets[3], octets[4], octets[5]]),
        _ => None,
    };
    address.is_unique_local()
        || address.is_unicast_link_local()
        || embedded.is_some_and(|v4| is_private_v4(Ipv4Addr::from(v4)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{Message, name};
    use crate::wire::Scan;

    fn objects(message: &Message) -> bool {
        let config = RebindConfig { allow: vec![name("plex.direct")] };
        let mut scan = Scan::new();
        let answer = scan.scan_answer(&message.0).unwrap();
        let end = answer.question.len() - 4;
        config.objects_to(&answer.question[..end], &answer)
    }

    #[test]
    fn private_addresses_are_known_in_every_wrapping() {
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "192.168.0.1",
            "172.16.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "fc00::1",
            "::ffff:192.168.1.1",
            "::10.0.0.1",
            "64:ff9b::10.0.0.1",
            "2002:0a00:0001::1",
        ] {
            assert!(is_private(private.parse().unwrap()), "{private}");
        }
        for public in
            ["8.8.8.8", "172.32.0.1", "2001:db8::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:0808::1"]
        {
            assert!(!is_private(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn a_public_name_with_a_private_address_is_objected_to() {
        assert!(objects(&Message::response("evil.test", 1).a(60).record(0, 1, 60, &[192, 168, 0, 1])));
        assert!(!objects(&Message::response("good.test", 1).a(60)));
        assert!(!objects(&Message::response("a.plex.direct", 1).record(0, 1, 60, &[192, 168, 0, 1])));
        assert!(!objects(&Message::response("glue.test", 1).a(60).record(2, 1, 60, &[10, 0, 0, 1])));
        let mapped = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1];
        assert!(objects(&Message::response("evil.test", 28).record(0, 28, 60, &mapped)));
    }

    #[test]
    fn a_hint_of_a_service_binding_counts() {
        let hint =
            |octets: [u8; 4]| [&[0, 1, 0][..], &[0, 1, 0, 3, 2, b'h', b'2'], &[0, 4, 0, 4], &octets].concat();
        assert!(objects(&Message::response("evil.test", 65).record(0, 65, 60, &hint([10, 0, 0, 1]))));
        assert!(!objects(&Message::response("good.test", 65).record(0, 65, 60, &hint([8, 8, 8, 8]))));
    }

    proptest! {
        #[test]
        fn any_service_binding_can_be_read(rdata in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = objects(&Message::response("a.test", 65).record(0, 65, 60, &rdata));
        }
    }
}

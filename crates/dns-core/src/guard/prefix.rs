//! Networks: what a person writes as `192.168.0.0/16`, and whether an address is in one of many.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network: all addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// Makes a network of an address and the number of bits that count.
    ///
    /// # Errors
    ///
    /// More bits than the address has, or bits set behind those that count.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        if len > most {
            return Err(PrefixError::Length { len: u32::from(len), most });
        }
        let network = masked(address, len);
        if network != address {
            return Err(PrefixError::HostBits { network: Self { address: network, len } });
        }
        Ok(Self { address, len })
    }

    /// The first and the last address, as numbers.
    fn range(self) -> (u128, u128) {
        let (first, bits) = match self.address {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32 - u32::from(self.len)),
            IpAddr::V6(v6) => (v6.to_bits(), 128 - u32::from(self.len)),
        };
        (first, first | 1u128.checked_shl(bits).unwrap_or(0).wrapping_sub(1))
    }
}

/// Returns an address with all but its first `len` bits zero.
pub(crate) fn masked(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let syntax = || PrefixError::Syntax { text: text.to_owned() };
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len.parse::<u8>().map_err(|_| syntax())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| syntax())?;
        Self::new(address, len.unwrap_or(if address.is_ipv4() { 32 } else { 128 }))
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PrefixError {
    /// It does not look like one.
    Syntax {
        /// The text.
        text: String,
    },
    /// More bits than the address has.
    Length {
        /// How many.
        len: u32,
        /// How many there are.
        most: u8,
    },
    /// The address has bits behind those that count: one of the two is a mistake.
    HostBits {
        /// The network that it is in.
        network: Prefix,
    },
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax { text } => {
                write!(f, "`{text}` is no network: write 192.168.0.0/16, fd00::/8, or one address")
            }
            Self::Length { len, most } => write!(f, "a prefix of {len} bits is too long: 0 to {most}"),
            Self::HostBits { network } => {
                write!(
                    f,
                    "the address has bits behind the prefix: write {network}, or one address without `/`"
                )
            }
        }
    }
}

impl std::error::Error for PrefixError {}

/// Many networks, made for one question: is this address in any of them?
///
/// Two sorted lists of ranges that neither touch nor overlap; a look is a binary search in one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrefixSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl PrefixSet {
    /// Makes a set of networks, in any order.
    pub fn new(prefixes: &[Prefix]) -> Self {
        let ranges = |is_v4: bool| {
            let mut ranges: Vec<(u128, u128)> = prefixes
                .iter()
                .filter(|prefix| prefix.address.is_ipv4() == is_v4)
                .map(|prefix| prefix.range())
                .collect();
            ranges.sort_unstable();
            ranges.dedup_by(|next, kept| {
                let joins = next.0 <= kept.1.saturating_add(1);
                if joins {
                    kept.1 = kept.1.max(next.1);
                }
                joins
            });
            ranges
        };
        Self {
            v4: ranges(true).into_iter().map(|(first, last)| (first as u32, last as u32)).collect(),
            v6: ranges(false).into(),
        }
    }

    /// Whether an address is in any of the networks. An IPv4 address counts as such when it comes mapped into IPv6.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(v4) => find(&self.v4, v4.to_bits()),
            IpAddr::V6(v6) => find(&self.v6, v6.to_bits()),
        }
    }
}

#[inline]
fn find<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| address <= *last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(texts: &[&str]) -> PrefixSet {
        PrefixSet::new(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    fn is_in(set: &PrefixSet, address: &str) -> bool {
        set.contains(address.parse().unwrap())
    }

    #[test]
    fn an_address_is_in_its_network_and_in_no_other() {
        let set = set(&["10.0.0.0/8", "192.168.1.1", "fd00::/8", "::1"]);
        for inside in
            ["10.0.0.0", "10.255.255.255", "192.168.1.1", "fd00::1", "fdff::", "::1", "::ffff:10.1.2.3"]
        {
            assert!(is_in(&set, inside), "{inside}");
        }
        for outside in ["9.255.255.255", "11.0.0.0", "192.168.1.2", "fe00::", "::2", "::", "::ffff:11.0.0.0"]
        {
            assert!(!is_in(&set, outside), "{outside}");
        }
    }

    #[test]
    fn everything_and_nothing_can_be_said() {
        let all = set(&["0.0.0.0/0", "::/0"]);
        let none = set(&[]);
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            assert!(is_in(&all, address));
            assert!(!is_in(&none, address));
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_its_remedy() {
        let wrong = |text: &str| text.parse::<Prefix>().unwrap_err().to_string();
        assert!(wrong("home").contains("`home` is no network"));
        assert!(wrong("10.0.0.0/33").contains("0 to 32"));
        assert!(wrong("10.0.0.0/x").contains("is no network"));
        assert!(wrong("10.1.0.0/8").contains("write 10.0.0.0/8"));
        assert!(wrong("fd00::1/64").contains("write fd00::/64"));
        assert_eq!("10.0.0.0/8".parse::<Prefix>().unwrap().to_string(), "10.0.0.0/8");
    }

    fn prefix() -> impl Strategy<Value = Prefix> {
        let v4 = (any::<u8>(), 0u8..=32).prop_map(|(top, len)| (IpAddr::from([top & 7, 0, top, 0]), len));
        let v6 = (any::<u16>(), 0u8..=128)
            .prop_map(|(top, len)| (IpAddr::from([top & 7, 0, 0, 0, 0, 0, top, 0]), len));
        prop_oneof![v4, v6].prop_map(|(address, len)| Prefix::new(masked(address, len), len).unwrap())
    }

    proptest! {
        #[test]
        fn a_set_contains_what_one_of_its_networks_does(
            prefixes in prop::collection::vec(prefix(), 0..12),
            v4 in any::<[u8; 3]>(),
            v6 in any::<[u16; 2]>(),
        ) {
            let set = PrefixSet::new(&prefixes);
            for address in [
                IpAddr::from([v4[0] & 7, 0, v4[1], v4[2]]),
                IpAddr::from([v6[0] & 7, 0, 0, 0, 0, 0, v6[1], v6[0]]),
            ] {
                let expected = prefixes.iter().any(|prefix| {
                    prefix.address.is_ipv4() == address.is_ipv4() && masked(address, prefix.len) == prefix.address
                });
                prop_assert_eq!(set.contains(address), expected);
            }
        }
    }
}

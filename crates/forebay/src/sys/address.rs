//! Socket addresses as the kernel writes them.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Room for one IPv4 or IPv6 socket address: 28 bytes, where `sockaddr_storage` would touch 128.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) union RawAddress {
    family: libc::sa_family_t,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    /// How many bytes the kernel may write.
    pub(super) const ROOM: libc::socklen_t = size_of::<Self>() as libc::socklen_t;

    /// Writes `address` and returns how many bytes of `self` it takes.
    pub(super) fn set(&mut self, address: SocketAddr) -> libc::socklen_t {
        match address {
            SocketAddr::V4(address) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port: address.port().to_be(),
                    sin_addr: in_addr(*address.ip()),
                    sin_zero: [0; 8],
                };
                size_of::<libc::sockaddr_in>() as libc::socklen_t
            }
            SocketAddr::V6(address) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: address.port().to_be(),
                    sin6_flowinfo: address.flowinfo(),
                    sin6_addr: in6_addr(*address.ip()),
                    sin6_scope_id: address.scope_id(),
                };
                size_of::<libc::sockaddr_in6>() as libc::socklen_t
            }
        }
    }

    /// Reads the address; `None` when its family is neither IPv4 nor IPv6.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: `RawAddress` is only made zeroed, by `set`, or by the kernel in zeroed room, so that all its bytes
        // are initialised; each member of the union is plain integers, for which every bit pattern is valid.
        unsafe {
            match libc::c_int::from(self.family) {
                libc::AF_INET => {
                    let raw = self.v4;
                    Some(SocketAddr::V4(SocketAddrV4::new(ipv4(raw.sin_addr), u16::from_be(raw.sin_port))))
                }
                libc::AF_INET6 => {
                    let raw = self.v6;
                    Some(SocketAddr::V6(SocketAddrV6::new(
                        Ipv6Addr::from(raw.sin6_addr.s6_addr),
                        u16::from_be(raw.sin6_port),
                        raw.sin6_flowinfo,
                        raw.sin6_scope_id,
                    )))
                }
                _ => None,
            }
        }
    }
}

/// Room for one control message with a packet's own address, IPv4 (32 bytes) or IPv6 (40 bytes).
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct RawControl([u8; 40]);

impl RawControl {
    /// How many bytes the kernel may write.
    pub(super) const ROOM: usize = size_of::<Self>();

    const HEADER: usize = size_of::<libc::cmsghdr>();

    /// Writes the source address that a datagram shall leave from, and returns how many bytes of `self` it takes.
    pub(super) fn set(&mut self, source: IpAddr) -> usize {
        match source {
            IpAddr::V4(source) => self.write(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: in_addr(source),
                    ipi_addr: in_addr(Ipv4Addr::UNSPECIFIED),
                },
            ),
            IpAddr::V6(source) => self.write(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo { ipi6_addr: in6_addr(source), ipi6_ifindex: 0 },
            ),
        }
    }

    /// Reads the local address out of the first `length` bytes that the kernel wrote.
    ///
    /// For IPv4 this is the address that an answer should leave from, which differs from the packet's destination
    /// when that was a broadcast.
    pub(super) fn get(&self, length: usize) -> Option<IpAddr> {
        if length < Self::HEADER {
            return None;
        }
        let header: libc::cmsghdr = self.read(0);
        match (header.cmsg_level, header.cmsg_type) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) if Self::fits::<libc::in_pktinfo>(&header, length) => {
                let info: libc::in_pktinfo = self.read(Self::HEADER);
                Some(IpAddr::V4(ipv4(info.ipi_spec_dst)))
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if Self::fits::<libc::in6_pktinfo>(&header, length) => {
                let info: libc::in6_pktinfo = self.read(Self::HEADER);
                Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
            }
            _ => None,
        }
    }

    fn fits<T>(header: &libc::cmsghdr, length: usize) -> bool {
        let needed = Self::HEADER + size_of::<T>();
        header.cmsg_len as usize >= needed && length >= needed
    }

    fn write<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, info: T) -> usize {
        const { assert!(size_of::<T>().next_multiple_of(8) + Self::HEADER <= Self::ROOM) };
        // SAFETY: `cmsghdr` is plain integers, for which zero is a valid value.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = level;
        header.cmsg_type = kind;
        header.cmsg_len = (Self::HEADER + size_of::<T>()) as _;
        let base = self.0.as_mut_ptr();
        // SAFETY: the assertion above shows that header and `T` fit into the array; unaligned writes need no more.
        unsafe {
            base.cast::<libc::cmsghdr>().write_unaligned(header);
            base.add(Self::HEADER).cast::<T>().write_unaligned(info);
        }
        Self::HEADER + size_of::<T>().next_multiple_of(8)
    }

    fn read<T: Copy>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= Self::ROOM);
        // SAFETY: the assertion keeps the read inside the array; the three `T` used here (cmsghdr, in_pktinfo,
        // in6_pktinfo) are plain integers, for which every bit pattern is valid.
        unsafe { self.0.as_ptr().add(offset).cast::<T>().read_unaligned() }
    }
}

fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) }
}

fn in6_addr(address: Ipv6Addr) -> libc::in6_addr {
    libc::in6_addr { s6_addr: address.octets() }
}

fn ipv4(raw: libc::in_addr) -> Ipv4Addr {
    Ipv4Addr::from(raw.s_addr.to_ne_bytes())
}

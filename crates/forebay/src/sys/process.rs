//! What this process and this machine have left: descriptors, local ports, cores.

use std::fs;
use std::io;

/// How many descriptors the process may have open (`RLIMIT_NOFILE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// The limit in force.
    pub soft: u64,
    /// How far the process itself may raise it.
    pub hard: u64,
}

/// Returns how many descriptors the process may have open.
///
/// # Errors
///
/// Those of `getrlimit(2)`; none is known for this resource.
pub fn descriptor_limit() -> io::Result<DescriptorLimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer, and the call keeps no pointer to it.
    super::check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    Ok(DescriptorLimit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

/// Sets how many descriptors the process may have open, and leaves the hard limit as it is.
///
/// # Errors
///
/// `EINVAL` when `soft` is above the hard limit.
pub fn set_descriptor_limit(soft: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: descriptor_limit()?.hard };
    // SAFETY: `limit` is a valid value to read, and the call keeps no pointer to it.
    super::check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).map(drop)
}

/// Raises the soft limit of descriptors to the hard one, and returns what is then in force.
///
/// # Errors
///
/// Those of `setrlimit(2)`, as when a container forbids it; the limit is then as it was.
pub fn raise_descriptor_limit() -> io::Result<DescriptorLimit> {
    set_descriptor_limit(descriptor_limit()?.hard)?;
    descriptor_limit()
}

/// Counts the descriptors that the process has open. Costs about 1 µs per descriptor: not for hot paths.
///
/// # Errors
///
/// When `/proc` is not mounted, or no descriptor is left to read it with.
pub fn descriptors_in_use() -> io::Result<u64> {
    // The directory being read is itself one of its entries.
    Ok(fs::read_dir("/proc/self/fd")?.count().saturating_sub(1) as u64)
}

/// The local ports that the kernel hands out by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The lowest of them.
    pub first: u16,
    /// The highest of them.
    pub last: u16,
    /// How many between the two are reserved (`ip_local_reserved_ports`), and so never handed out.
    pub reserved: u16,
}

impl PortRange {
    /// Returns how many ports there are to hand out for one pair of source and destination address.
    pub fn usable(&self) -> u32 {
        u32::from(self.last) - u32::from(self.first) + 1 - u32::from(self.reserved)
    }
}

/// Reads the range of local ports from `/proc/sys/net/ipv4`, which holds for IPv6 too.
///
/// # Errors
///
/// When `/proc` cannot be read or holds something else than numbers.
pub fn local_port_range() -> io::Result<PortRange> {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")?;
    let reserved = fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports")?;
    parse_port_range(&range, &reserved).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "ip_local_port_range is {range:?}, ip_local_reserved_ports {reserved:?}: not ranges of ports"
            ),
        )
    })
}

fn parse_port_range(range: &str, reserved: &str) -> Option<PortRange> {
    let mut numbers = range.split_ascii_whitespace().map(str::parse::<u16>);
    let (first, last) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    if first > last {
        return None;
    }
    let mut taken = 0;
    for part in reserved.trim().split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (low.parse::<u16>().ok()?.max(first), high.parse::<u16>().ok()?.min(last));
        if low <= high {
            taken += high - low + 1;
        }
    }
    Some(PortRange { first, last, reserved: taken })
}

/// Ends a process that leads a group, and all others of that group, at once (`SIGKILL`). The leader must not have been waited
/// for, since its number may then be another's.
///
/// # Errors
///
/// `ESRCH` when there is no such group, `EINVAL` for 0 and 1, which would be other groups than meant.
pub fn end_group(leader: u32) -> io::Result<()> {
    let group = libc::pid_t::try_from(leader).ok().filter(|leader| *leader > 1);
    let group = group.ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    // SAFETY: the call takes numbers alone.
    super::check(unsafe { libc::kill(-group, libc::SIGKILL) }).map(drop)
}

/// Lets the calling thread run on `core` only (numbered from 0). Threads that it starts later inherit this.
///
/// # Errors
///
/// `EINVAL` when there is no such core, or the process may not use it.
pub fn pin_current_thread(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: `cpu_set_t` is a bit array, for which zero (no core) is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `core` was shown to be inside the set.
    unsafe { libc::CPU_SET(core, &mut set) };
    // SAFETY: `set` is a valid value of the size given; 0 is the calling thread.
    super::check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) }).map(drop)
}

/// Returns the cores that the calling thread may run on, lowest first.
///
/// # Errors
///
/// Those of `sched_getaffinity(2)`, as on a machine with more than 1024 cores.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: `cpu_set_t` is a bit array, for which zero (no core) is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid place of the size given; 0 is the calling thread.
    super::check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) })?;
    // SAFETY: every number asked about is inside the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ports_outside_the_range_do_not_count() {
        let range = parse_port_range("40000\t40049\n", "22,8080,39990-40001,40049-50000,40010\n")
            .expect("well-formed");
        assert_eq!(range, PortRange { first: 40000, last: 40049, reserved: 4 });
        assert_eq!(range.usable(), 46);
    }

    #[test]
    fn no_reserved_ports_leave_the_whole_range() {
        let range = parse_port_range("32768\t60999\n", "\n").expect("well-formed");
        assert_eq!(range.usable(), 28232);
    }

    #[test]
    fn nonsense_in_proc_is_refused() {
        assert_eq!(parse_port_range("", ""), None);
        assert_eq!(parse_port_range("70000 80000", ""), None);
        assert_eq!(parse_port_range("500 400", ""), None);
        assert_eq!(parse_port_range("400 500", "x"), None);
    }
}

//! What files of `/proc`, `/sys` and `/etc` say: text in, values out. A text of another form is `None`, never a guess.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// A soft limit and the hard one; no limit is `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Limit {
    /// The limit in force.
    pub(crate) soft: u64,
    /// How far the process itself may raise it.
    pub(crate) hard: u64,
}

/// Finds the limit of descriptors in `/proc/PID/limits`.
pub(crate) fn open_files(text: &str) -> Option<Limit> {
    let rest = text.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = rest.split_ascii_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    };
    Some(Limit { soft: next()?, hard: next()? })
}

/// Reads a file that holds one number.
pub(crate) fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Reads a file that holds numbers with space between them.
pub(crate) fn numbers(text: &str) -> Option<Vec<u64>> {
    text.split_ascii_whitespace().map(|word| word.parse().ok()).collect()
}

/// How many ports a range has, without those that are reserved (`ip_local_port_range`, `ip_local_reserved_ports`).
pub(crate) fn usable_ports(range: &str, reserved: &str) -> Option<u64> {
    let [first, last] = numbers(range)?[..] else { return None };
    if first > last || last > 65_535 {
        return None;
    }
    let mut taken = 0;
    for part in reserved.trim().split(',').filter(|part| !part.is_empty()) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (low.parse::<u64>().ok()?.max(first), high.parse::<u64>().ok()?.min(last));
        taken += (high + 1).saturating_sub(low);
    }
    Some(last - first + 1 - taken.min(last - first + 1))
}

/// Counts of `/proc/net/sockstat`, named `TCP.inuse` and so on.
pub(crate) fn sockstat(text: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some((kind, rest)) = line.split_once(':') else { continue };
        let words: Vec<&str> = rest.split_ascii_whitespace().collect();
        for pair in words.chunks_exact(2) {
            if let Ok(count) = pair[1].parse() {
                counts.insert(format!("{kind}.{}", pair[0]), count);
            }
        }
    }
    counts
}

/// Counters of `/proc/net/netstat` and `/proc/net/snmp`, named `TcpExt.ListenOverflows` and so on.
pub(crate) fn counters(text: &str) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.windows(2) {
        let (Some((kind, names)), Some((same, values))) = (pair[0].split_once(':'), pair[1].split_once(':'))
        else {
            continue;
        };
        if kind != same {
            continue;
        }
        for (name, value) in names.split_ascii_whitespace().zip(values.split_ascii_whitespace()) {
            if let Ok(value) = value.parse() {
                counters.insert(format!("{kind}.{name}"), value);
            }
        }
    }
    counters
}

/// Sums what the network's queues dropped: the second column of `/proc/net/softnet_stat`, in hexadecimal.
pub(crate) fn softnet_dropped(text: &str) -> Option<u64> {
    let dropped = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    let mut lines = text.lines().filter(|line| !line.trim().is_empty()).peekable();
    lines.peek()?;
    lines.map(dropped).sum()
}

/// How many local ports are used to one destination, and how many of them only wait for their minute to pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Towards {
    /// Connections in any state.
    pub(crate) connections: u64,
    /// Of these, those in TIME_WAIT.
    pub(crate) time_wait: u64,
}

/// Counts connections of `/proc/net/tcp` (or `tcp6`) by where they go. Listeners go nowhere, and neither do connections
/// that came to one of them: their ports are not local ones of this machine's choice.
pub(crate) fn destinations(text: &str, found: &mut HashMap<(IpAddr, u16), Towards>) {
    const TIME_WAIT: &str = "06";
    const LISTEN: &str = "0A";
    let rows = || {
        text.lines().skip(1).filter_map(|line| {
            let mut words = line.split_ascii_whitespace().skip(1);
            Some((words.next()?, words.next()?, words.next()?))
        })
    };
    let port = |end: &str| Some(end.rsplit_once(':')?.1.to_owned());
    let listening: std::collections::HashSet<_> =
        rows().filter(|(_, _, state)| *state == LISTEN).filter_map(|(local, ..)| port(local)).collect();
    for (local, remote, state) in rows() {
        let came = port(local).is_some_and(|port| listening.contains(&port));
        if state == LISTEN || came {
            continue;
        }
        if let Some(remote) = end(remote) {
            let towards = found.entry(remote).or_default();
            towards.connections += 1;
            towards.time_wait += u64::from(state == TIME_WAIT);
        }
    }
}

/// Reads an end of a connection as the kernel writes it: words of the address in the machine's own order.
fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word =
        |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for at in 0..4 {
                bytes[at * 4..at * 4 + 4].copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// Memory of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// All there is.
    pub(crate) total_bytes: u64,
    /// What can be had without swapping.
    pub(crate) available_bytes: u64,
}

/// Reads `/proc/meminfo`.
pub(crate) fn meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        number(rest.trim().strip_suffix("kB")?).map(|kib| kib << 10)
    };
    Some(Memory { total_bytes: field("MemTotal")?, available_bytes: field("MemAvailable")? })
}

/// Counts the cores of a list like `0-3,8`.
pub(crate) fn cores(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        (first <= last).then(|| sum + last - first + 1)
    })
}

/// Finds one field of `/proc/PID/status`.
pub(crate) fn status<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).map(str::trim)
}

/// Finds the group of a process in `/proc/PID/cgroup`: of version 2, or the one of a controller of version 1.
pub(crate) fn cgroup<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match controller {
            "" => controllers.is_empty(),
            name => controllers.split(',').any(|one| one == name),
        };
        is_it.then_some(path)
    })
}

/// Reads `cpu.max`: how many cores' time a group may use; infinite without a limit.
pub(crate) fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let period: f64 = period.parse().ok()?;
    match quota {
        "max" => Some(f64::INFINITY),
        quota => quota.parse::<f64>().ok().map(|quota| quota / period),
    }
}

/// Reads `cpu.cfs_quota_us` and `cpu.cfs_period_us`: the same of version 1.
pub(crate) fn cfs(quota: &str, period: &str) -> Option<f64> {
    let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
    Some(if quota < 0.0 { f64::INFINITY } else { quota / period })
}

/// What `resolv.conf` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Resolvers {
    /// Resolvers, in order, as they are written.
    pub(crate) nameservers: Vec<String>,
    /// Seconds until the next is asked; 5 if nothing is said.
    pub(crate) timeout: u64,
    /// Rounds; 2 if nothing is said.
    pub(crate) attempts: u64,
}

/// Reads `resolv.conf(5)`.
pub(crate) fn resolv_conf(text: &str) -> Resolvers {
    let mut resolvers = Resolvers { nameservers: Vec::new(), timeout: 5, attempts: 2 };
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("nameserver") => resolvers.nameservers.extend(words.next().map(str::to_owned)),
            Some("options") => {
                for option in words {
                    match option.split_once(':') {
                        Some(("timeout", n)) => resolvers.timeout = n.parse().unwrap_or(resolvers.timeout),
                        Some(("attempts", n)) => resolvers.attempts = n.parse().unwrap_or(resolvers.attempts),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    resolvers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn limits_are_found_among_the_others() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             96365                96365                processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some(Limit { soft: 1024, hard: 524_288 }));
        let none = "Max open files            unlimited            unlimited            files\n";
        assert_eq!(open_files(none), Some(Limit { soft: u64::MAX, hard: u64::MAX }));
        assert_eq!(open_files(""), None);
        assert_eq!(open_files("Max open files  many  more"), None);
    }

    #[test]
    fn reserved_ports_are_not_usable() {
        assert_eq!(usable_ports("32768\t60999\n", "\n"), Some(28_232));
        assert_eq!(usable_ports("40000\t40049\n", "22,39990-40001,40049-50000,40010\n"), Some(46));
        assert_eq!(usable_ports("1 2", "1-2,1"), Some(0));
        for (range, reserved) in [("", ""), ("5 4", ""), ("1 2 3", ""), ("1 70000", ""), ("1 2", "x")] {
            assert_eq!(usable_ports(range, reserved), None, "{range} {reserved}");
        }
    }

    #[test]
    fn sockets_are_counted_by_kind() {
        let text =
            "sockets: used 110\nTCP: inuse 9 orphan 0 tw 71 alloc 9 mem 0\nUDP: inuse 82 mem 92\nnonsense\n";
        let counts = sockstat(text);
        assert_eq!((counts["TCP.tw"], counts["UDP.inuse"], counts["sockets.used"]), (71, 82, 110));
        assert_eq!(sockstat("").len(), 0);
    }

    #[test]
    fn counters_stand_below_their_names() {
        let text = "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 0 979 980\nIpExt: InNoRoutes\nIpExt: 3\n";
        let counters = counters(text);
        assert_eq!((counters["TcpExt.ListenOverflows"], counters["IpExt.InNoRoutes"]), (979, 3));
        assert_eq!(counters.len(), 4);
    }

    #[test]
    fn dropped_packets_are_summed_over_cores() {
        assert_eq!(softnet_dropped("13172804 00000080 0000003e\n1292f9f1 000000ac 00000049\n"), Some(0x12c));
        assert_eq!(softnet_dropped(""), None);
        assert_eq!(softnet_dropped("1\n"), None);
    }

    #[test]
    fn connections_are_counted_by_destination_but_not_those_that_came() {
        let text = "  sl  local_address rem_address   st tx_queue\n\
                    0: 0100007F:1F90 00000000:0000 0A 0\n\
                    1: 0100007F:1F90 0100007F:C350 01 0\n\
                    2: 0100007F:C350 0100007F:1F90 01 0\n\
                    3: 0100007F:C351 0100007F:1F90 06 0\n\
                    4: broken\n";
        let mut found = HashMap::new();
        destinations(text, &mut found);
        let expected = Towards { connections: 2, time_wait: 1 };
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [(("127.0.0.1".parse().unwrap(), 8080), expected)]);
        let six = "head\n0: 00000000000000000000000001000000:C350 00000000000000000000000001000000:0035 01\n\
                   1: 0000000000000000FFFF00000100007F:C350 0000000000000000FFFF00000100007F:0035 01\n";
        let mut found = HashMap::new();
        destinations(six, &mut found);
        assert_eq!(found.len(), 2);
        assert!(found.contains_key(&("::1".parse().unwrap(), 53)));
        assert!(found.contains_key(&("127.0.0.1".parse().unwrap(), 53)), "{found:?}");
    }

    #[test]
    fn memory_is_in_kibibytes_there() {
        let text = "MemTotal:       24689384 kB\nMemFree: 1 kB\nMemAvailable:   20000000 kB\n";
        let memory = Memory { total_bytes: 24_689_384 << 10, available_bytes: 20_000_000 << 10 };
        assert_eq!(meminfo(text), Some(memory));
        assert_eq!(meminfo("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn cores_are_counted_from_lists_and_quotas() {
        assert_eq!((cores("0-1\n"), cores("0-3,8"), cores("5")), (Some(2), Some(5), Some(1)));
        assert_eq!((cores(""), cores("3-1"), cores("a")), (None, None, None));
        assert_eq!((cpu_max("200000 100000\n"), cpu_max("max 100000")), (Some(2.0), Some(f64::INFINITY)));
        assert_eq!((cpu_max("max"), cpu_max("x 1")), (None, None));
        assert_eq!((cfs("50000", "100000\n"), cfs("-1", "100000")), (Some(0.5), Some(f64::INFINITY)));
        assert_eq!(status("Name:\tcat\nCpus_allowed_list:\t0-1\n", "Cpus_allowed_list"), Some("0-1"));
    }

    #[test]
    fn groups_of_both_versions_are_found() {
        let text = "4:memory:/a/b\n2:cpu,cpuacct:/c\n0::/user.slice\n";
        assert_eq!(cgroup(text, ""), Some("/user.slice"));
        assert_eq!((cgroup(text, "memory"), cgroup(text, "cpu")), (Some("/a/b"), Some("/c")));
        assert_eq!(cgroup(text, "pids"), None);
    }

    #[test]
    fn resolvers_come_with_their_patience() {
        let text =
            "# nameserver 1.1.1.1\nnameserver 127.0.0.53\nnameserver\noptions edns0 timeout:1 attempts:x\n";
        let expected = Resolvers { nameservers: vec!["127.0.0.53".into()], timeout: 1, attempts: 2 };
        assert_eq!(resolv_conf(text), expected);
    }

    proptest! {
        #[test]
        fn no_text_makes_a_reader_panic(text in "[ -~\n\t]{0,200}", other in "[0-9,-]{0,20}") {
            let _ = (open_files(&text), number(&text), numbers(&text), usable_ports("1 65535", &other), sockstat(&text));
            let _ = (counters(&text), softnet_dropped(&text), meminfo(&text), cores(&other), status(&text, "a"));
            let _ = (cgroup(&text, ""), cpu_max(&text), cfs(&text, &other), resolv_conf(&text));
            destinations(&text, &mut HashMap::new());
        }
    }
}

//! What this machine has, read from its files below a root. What cannot be read is noted, and nothing else comes of it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::parse::{self, Limit, Memory, Resolvers, Towards};

/// What is known of a machine; `None` where a file is missing or says something else.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Facts {
    /// Limit of descriptors that a process started like this one has.
    pub(crate) descriptors: Option<Limit>,
    /// Files open on the whole machine, and how many there may be.
    pub(crate) files: Option<(u64, u64)>,
    /// How far a hard limit of descriptors may be raised.
    pub(crate) nr_open: Option<u64>,
    /// Processes that use more than a quarter of their descriptors, the nearest to its limit first.
    pub(crate) processes: Vec<Process>,
    /// Processes whose descriptors could not be counted, for want of permission.
    pub(crate) processes_hidden: u64,
    /// Local ports for one destination.
    pub(crate) ports: Option<u64>,
    /// Sockets by kind and state.
    pub(crate) sockets: BTreeMap<String, u64>,
    /// The destination with the most local ports in use.
    pub(crate) busiest: Option<(String, Towards)>,
    /// Whether a port in TIME_WAIT may be used again: 0 no, 1 yes, 2 on loopback only.
    pub(crate) tw_reuse: Option<u64>,
    /// How many TIME_WAIT there may be on the machine.
    pub(crate) tw_buckets: Option<u64>,
    /// The largest receive buffer that a process may ask for, in bytes.
    pub(crate) rmem_max: Option<u64>,
    /// The same for sending.
    pub(crate) wmem_max: Option<u64>,
    /// Connections that may wait to be accepted.
    pub(crate) somaxconn: Option<u64>,
    /// Connections that may be half open.
    pub(crate) syn_backlog: Option<u64>,
    /// Counters of TCP and UDP.
    pub(crate) counters: BTreeMap<String, u64>,
    /// Packets that came faster than they were looked at.
    pub(crate) softnet_dropped: Option<u64>,
    /// Flows that the firewall follows, and how many it can.
    pub(crate) conntrack: Option<(u64, u64)>,
    /// How long it keeps a TCP flow that has ended, in seconds.
    pub(crate) conntrack_time_wait: Option<u64>,
    /// How long it keeps a UDP flow, in seconds.
    pub(crate) conntrack_udp: Option<u64>,
    /// How fast cores are let to run; the first that is not `performance` if they differ.
    pub(crate) governor: Option<String>,
    /// What the clock is made of.
    pub(crate) clocksource: Option<String>,
    /// Whether something keeps the clock right.
    pub(crate) is_synchronised: Option<bool>,
    /// Cores that this process may use.
    pub(crate) cores: Option<u64>,
    /// Of their time, how much its control group may use, in cores; none without a limit.
    pub(crate) cpu_quota: Option<f64>,
    /// Memory of the machine.
    pub(crate) memory: Option<Memory>,
    /// Memory that its control group may use, in bytes; none without a limit.
    pub(crate) memory_max: Option<u64>,
    /// Resolvers.
    pub(crate) resolvers: Option<Resolvers>,
    /// What could not be read, and why.
    pub(crate) missing: Vec<String>,
}

/// A process and its descriptors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Process {
    /// Its number.
    pub(crate) pid: u32,
    /// Its name.
    pub(crate) name: String,
    /// Descriptors in use.
    pub(crate) used: u64,
    /// Its limit.
    pub(crate) limit: Limit,
}

impl Facts {
    /// Reads them below `root`. `is_synchronised` is what the kernel says of the clock, which is in no file.
    pub(crate) fn read(root: &Path, is_synchronised: io::Result<bool>) -> Self {
        let mut from = Reader { root, missing: Vec::new() };
        let descriptors = from.the("proc/self/limits", parse::open_files);
        let (processes, processes_hidden) = from.processes();
        let reserved = from.text("proc/sys/net/ipv4/ip_local_reserved_ports").unwrap_or_default();
        let mut counters = BTreeMap::new();
        for file in ["proc/net/netstat", "proc/net/snmp"] {
            counters.extend(from.the(file, |text| Some(parse::counters(text))).unwrap_or_default());
        }
        // Most machines without a firewall have none of these: that is no lack.
        let flows = |name: &str| format!("proc/sys/net/netfilter/nf_conntrack_{name}");
        let conntrack =
            from.maybe(&flows("count"), parse::number).zip(from.maybe(&flows("max"), parse::number));
        let is_synchronised = match is_synchronised {
            Ok(is_synchronised) => Some(is_synchronised),
            Err(error) => {
                from.missing.push(format!("whether the clock is synchronised: {error}"));
                None
            }
        };
        let (cpu_quota, memory_max) = from.group();
        Self {
            descriptors,
            files: from.the("proc/sys/fs/file-nr", |text| match parse::numbers(text)?[..] {
                [used, _, max] => Some((used, max)),
                _ => None,
            }),
            nr_open: from.the("proc/sys/fs/nr_open", parse::number),
            processes,
            processes_hidden,
            ports: from
                .the("proc/sys/net/ipv4/ip_local_port_range", |range| parse::usable_ports(range, &reserved)),
            sockets: from.the("proc/net/sockstat", |text| Some(parse::sockstat(text))).unwrap_or_default(),
            busiest: from.busiest(),
            tw_reuse: from.the("proc/sys/net/ipv4/tcp_tw_reuse", parse::number),
            tw_buckets: from.the("proc/sys/net/ipv4/tcp_max_tw_buckets", parse::number),
            rmem_max: from.the("proc/sys/net/core/rmem_max", parse::number),
            wmem_max: from.the("proc/sys/net/core/wmem_max", parse::number),
            somaxconn: from.the("proc/sys/net/core/somaxconn", parse::number),
            syn_backlog: from.the("proc/sys/net/ipv4/tcp_max_syn_backlog", parse::number),
            counters,
            softnet_dropped: from.the("proc/net/softnet_stat", parse::softnet_dropped),
            conntrack,
            conntrack_time_wait: from.maybe(&flows("tcp_timeout_time_wait"), parse::number),
            conntrack_udp: from.maybe(&flows("udp_timeout_stream"), parse::number),
            governor: from.governor(),
            clocksource: from
                .the("sys/devices/system/clocksource/clocksource0/current_clocksource", |text| {
                    Some(text.trim().to_owned()).filter(|name| !name.is_empty())
                }),
            is_synchronised,
            cores: from
                .the("proc/self/status", |text| parse::cores(parse::status(text, "Cpus_allowed_list")?)),
            memory: from.the("proc/meminfo", parse::meminfo),
            cpu_quota,
            memory_max,
            resolvers: from.the("etc/resolv.conf", |text| Some(parse::resolv_conf(text))),
            missing: from.missing,
        }
    }
}

struct Reader<'a> {
    root: &'a Path,
    missing: Vec<String>,
}

impl Reader<'_> {
    fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// Reads a text, and notes it if there is none.
    fn text(&mut self, file: &str) -> Option<String> {
        match fs::read_to_string(self.path(file)) {
            Ok(text) => Some(text),
            Err(error) => {
                self.missing.push(format!("{}: {error}", self.path(file).display()));
                None
            }
        }
    }

    /// Reads a value, and notes it if there is none.
    fn the<T>(&mut self, file: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let text = self.text(file)?;
        let value = parse(&text);
        if value.is_none() {
            self.missing.push(format!("{}: not of the form that was expected", self.path(file).display()));
        }
        value
    }

    /// Reads a value that need not be there.
    fn maybe<T>(&self, file: &str, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        parse(&fs::read_to_string(self.path(file)).ok()?)
    }

    fn processes(&mut self) -> (Vec<Process>, u64) {
        let (mut found, mut hidden) = (Vec::new(), 0);
        let Ok(entries) = fs::read_dir(self.path("proc")) else { return (found, hidden) };
        for entry in entries.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            // A process may end while it is looked at.
            let Some(limit) = self.maybe(&format!("proc/{pid}/limits"), parse::open_files) else { continue };
            let used = match fs::read_dir(entry.path().join("fd")) {
                Ok(descriptors) => descriptors.count() as u64,
                Err(error) => {
                    hidden += u64::from(error.kind() == io::ErrorKind::PermissionDenied);
                    continue;
                }
            };
            if used.saturating_mul(4) > limit.soft {
                let name = self.maybe(&format!("proc/{pid}/comm"), |text| Some(text.trim().to_owned()));
                found.push(Process { pid, name: name.unwrap_or_default(), used, limit });
            }
        }
        found.sort_by(|a, b| {
            let share = |process: &Process| process.used as f64 / process.limit.soft.max(1) as f64;
            share(b).total_cmp(&share(a)).then(a.pid.cmp(&b.pid))
        });
        (found, hidden)
    }

    fn busiest(&mut self) -> Option<(String, Towards)> {
        let mut found = HashMap::new();
        let four = self.text("proc/net/tcp")?;
        parse::destinations(&four, &mut found);
        // There may be no IPv6.
        if let Some(six) = self.maybe("proc/net/tcp6", |text| Some(text.to_owned())) {
            parse::destinations(&six, &mut found);
        }
        let most = found.into_iter().max_by_key(|(end, towards)| (towards.connections, *end));
        most.map(|((address, port), towards)| {
            (std::net::SocketAddr::from((address, port)).to_string(), towards)
        })
    }

    /// Virtual machines often have no governor: that is no lack.
    fn governor(&self) -> Option<String> {
        let mut found: Option<String> = None;
        for core in 0..4096 {
            let file = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
            let Some(governor) = self.maybe(&file, |text| Some(text.trim().to_owned())) else { break };
            if governor != "performance" {
                return Some(governor);
            }
            found = Some(governor);
        }
        found
    }

    /// Limits of the control group, in either version: those of all groups above hold too.
    fn group(&self) -> (Option<f64>, Option<u64>) {
        let text = self.maybe("proc/self/cgroup", |text| Some(text.to_owned())).unwrap_or_default();
        let (mut cpu, mut memory) = (f64::INFINITY, u64::MAX);
        if let Some(path) = parse::cgroup(&text, "") {
            for group in above(path) {
                let at = format!("sys/fs/cgroup{group}");
                cpu = self.maybe(&format!("{at}/cpu.max"), parse::cpu_max).map_or(cpu, |max| cpu.min(max));
                memory = self
                    .maybe(&format!("{at}/memory.max"), parse::number)
                    .map_or(memory, |max| memory.min(max));
            }
        }
        if let Some(path) = parse::cgroup(&text, "cpu") {
            for group in above(path) {
                let at = format!("sys/fs/cgroup/cpu{group}");
                let quota = self.maybe(&format!("{at}/cpu.cfs_quota_us"), |text| Some(text.to_owned()));
                let period = self.maybe(&format!("{at}/cpu.cfs_period_us"), |text| Some(text.to_owned()));
                let max = quota.zip(period).and_then(|(quota, period)| parse::cfs(&quota, &period));
                cpu = max.map_or(cpu, |max| cpu.min(max));
            }
        }
        if let Some(path) = parse::cgroup(&text, "memory") {
            for group in above(path) {
                let file = format!("sys/fs/cgroup/memory{group}/memory.limit_in_bytes");
                memory = self.maybe(&file, parse::number).map_or(memory, |max| memory.min(max));
            }
        }
        // Version 1 writes a huge number where there is no limit.
        (Some(cpu).filter(|cpu| cpu.is_finite()), Some(memory).filter(|memory| *memory < 1 << 60))
    }
}

/// A group and all above it: `/a/b`, `/a` and the root.
fn above(path: &str) -> Vec<&str> {
    let mut all = vec![path.trim_end_matches('/')];
    while let Some(at) = all[all.len() - 1].rfind('/') {
        all.push(&path[..at]);
    }
    all
}

#[cfg(test)]
pub(crate) mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Writes files of a machine below a folder of its own.
    pub(crate) fn machine(files: &[(&str, &str)]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_machine_without_files_has_no_facts_and_says_so() {
        let folder = machine(&[]);
        let facts = Facts::read(folder.path(), Ok(true));
        assert_eq!(facts.ports, None);
        assert!(facts.missing.len() > 10, "{:?}", facts.missing);
        assert!(facts.missing.iter().any(|line| line.contains("proc/sys/fs/file-nr: No such file")));
        assert!(!facts.missing.iter().any(|line| line.contains("conntrack") || line.contains("cpufreq")));
        let refused = Facts::read(folder.path(), Err(io::Error::from_raw_os_error(1)));
        assert!(refused.missing.iter().any(|line| line.contains("clock")));
    }

    #[test]
    fn what_is_there_is_read() {
        let folder = machine(&[
            ("proc/self/limits", "Max open files  1024  4096  files\n"),
            ("proc/sys/fs/file-nr", "764\t0\t2466193\n"),
            ("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n"),
            ("proc/sys/net/ipv4/ip_local_reserved_ports", "\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "5\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "100\n"),
            ("proc/net/tcp", "head\n 0: 0100007F:C350 0100007F:1F90 06\n"),
            ("proc/self/status", "Cpus_allowed_list:\t0-3\n"),
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.max", "1048576\n"),
            ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "performance\n"),
            ("sys/devices/system/cpu/cpu1/cpufreq/scaling_governor", "powersave\n"),
            ("proc/sys/fs/nr_open", "many\n"),
        ]);
        let facts = Facts::read(folder.path(), Ok(false));
        assert_eq!(facts.descriptors, Some(Limit { soft: 1024, hard: 4096 }));
        assert_eq!((facts.files, facts.ports), (Some((764, 2_466_193)), Some(28_232)));
        assert_eq!((facts.conntrack, facts.is_synchronised), (Some((5, 100)), Some(false)));
        let towards = Towards { connections: 1, time_wait: 1 };
        assert_eq!(facts.busiest, Some(("127.0.0.1:8080".to_owned(), towards)));
        assert_eq!((facts.cores, facts.cpu_quota, facts.memory_max), (Some(4), Some(1.5), Some(1_048_576)));
        assert_eq!(facts.governor.as_deref(), Some("powersave"));
        assert!(
            facts.missing.iter().any(|line| line.contains("nr_open: not of the form")),
            "{:?}",
            facts.missing
        );
    }

    #[test]
    fn processes_near_their_limit_are_found() {
        let folder = machine(&[
            ("proc/7/limits", "Max open files  4  8  files\n"),
            ("proc/7/comm", "greedy\n"),
            ("proc/7/fd/0", ""),
            ("proc/7/fd/1", ""),
            ("proc/7/fd/2", ""),
            ("proc/8/limits", "Max open files  1000  1000  files\n"),
            ("proc/8/fd/0", ""),
            ("proc/9/comm", "gone\n"),
            ("proc/net/x", ""),
        ]);
        let facts = Facts::read(folder.path(), Ok(true));
        let greedy =
            Process { pid: 7, name: "greedy".to_owned(), used: 3, limit: Limit { soft: 4, hard: 8 } };
        assert_eq!(facts.processes, [greedy]);
    }

    #[test]
    fn limits_of_the_first_version_are_read_too() {
        let folder = machine(&[
            ("proc/self/cgroup", "4:memory:/a\n2:cpu,cpuacct:/\n0::/\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        let facts = Facts::read(folder.path(), Ok(true));
        assert_eq!((facts.cpu_quota, facts.memory_max), (Some(0.5), None));
        assert_eq!(above("/a/b"), ["/a/b", "/a", ""]);
        assert_eq!(above("/"), [""]);
    }

    #[test]
    fn this_machine_can_be_read() {
        let facts = Facts::read(Path::new("/"), Ok(true));
        assert!(facts.descriptors.is_some() && facts.ports.is_some() && facts.cores.is_some(), "{facts:?}");
    }
}

//! What a machine's facts mean: what load it can carry, what breaks first, and the line that changes it.

use std::fmt;

use serde::Serialize;

use super::facts::Facts;
use super::parse::{Limit, Towards};
use crate::plan::units::{Grouped, memory};
use crate::remote::Sample;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It breaks, or did.
    Bad,
    /// It will, under load.
    Low,
    /// It does not.
    Ok,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    /// How bad it is.
    pub(crate) state: State,
    /// What was looked at.
    pub(crate) what: &'static str,
    /// What was found, and what it means.
    pub(crate) found: String,
    /// The line that changes it, if anything is to be changed.
    pub(crate) change: Option<String>,
}

/// How much of something this machine can carry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Carries {
    /// Of what.
    pub(crate) what: &'static str,
    /// What sort of load it is, by which limits are compared.
    pub(crate) kind: Kind,
    /// How much, at most.
    pub(crate) most: u64,
    /// What says so.
    pub(crate) by: String,
    /// The line that changes it.
    pub(crate) change: &'static str,
}

/// A sort of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Connections that are open at once.
    Held,
    /// Connections made each second.
    Made,
    /// Requests in flight at once.
    InFlight,
    /// What comes at one moment.
    Burst,
}

/// All that is said.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    carries: Vec<Carries>,
    breaks_first: Vec<Carries>,
    findings: Vec<Finding>,
    facts: Facts,
}

/// How long the kernel keeps the port of a connection that was closed here, in seconds (`TCP_TIMEWAIT_LEN`).
const TIME_WAIT: u64 = 60;
/// What a server keeps for other things than connections to upstreams.
const RESERVED: u64 = 64;
/// The receive buffer that the forwarder asks for.
const UDP_BUFFER_BYTES: u64 = 4 << 20;
/// The connections that servers let wait to be accepted.
const BACKLOG: u64 = 1024;
/// What a small datagram takes of a receive buffer: a page for most network cards.
const DATAGRAM_BYTES: u64 = 4096;
/// The flows that the firewall keeps longest where it says nothing: seconds of a TCP flow that has ended.
const CONNTRACK_TIME_WAIT: u64 = 120;
/// Receive buffers are counted twice over: the kernel keeps its own half.
const BUFFER_TWICE: u64 = 2;
/// A clock source whose reading is no system call.
const FAST_CLOCKS: [&str; 4] = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page"];

impl Report {
    /// Judges the facts, and the figures of a running forebay if there are any.
    pub(crate) fn new(facts: Facts, running: Option<&[Sample]>) -> Self {
        let carries = carries(&facts);
        let mut findings = machine(&facts);
        findings.extend(running.map(server).unwrap_or_default());
        findings.sort_by_key(|finding| finding.state);
        let least =
            |kind: Kind| carries.iter().filter(|one| one.kind == kind).min_by_key(|one| one.most).cloned();
        let breaks_first = [Kind::Held, Kind::Made].into_iter().filter_map(least).collect();
        Self { carries, breaks_first, findings, facts }
    }
}

/// What load the machine can carry.
fn carries(facts: &Facts) -> Vec<Carries> {
    let mut all = Vec::new();
    let mut add = |what, kind, most, by: String, change| all.push(Carries { what, kind, most, by, change });
    const RANGE: &str = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"";
    const FILES: &str = "LimitNOFILE=1048576 in the unit of the service";
    if let Some(Limit { hard, .. }) = facts.descriptors {
        let most = hard.saturating_sub(RESERVED);
        add(
            "connections of one process",
            Kind::Held,
            most,
            format!("hard limit of descriptors, {}", Grouped(hard)),
            FILES,
        );
    }
    if let Some((used, max)) = facts.files {
        let by = format!("{} of {} files of the machine are open", Grouped(used), Grouped(max));
        add(
            "connections of all processes",
            Kind::Held,
            max.saturating_sub(used),
            by,
            "sysctl -w fs.file-max=4194304",
        );
    }
    if let Some(ports) = facts.ports {
        let by = "local ports".to_owned();
        add("connections to one destination", Kind::Held, ports, by, RANGE);
        let (seconds, by) = match facts.tw_reuse {
            Some(1) => (1, "local ports, used again a second after they were closed (tcp_tw_reuse 1)"),
            Some(2) => (
                TIME_WAIT,
                "local ports, each a minute in TIME_WAIT (tcp_tw_reuse 2: sooner on loopback only)",
            ),
            _ => (TIME_WAIT, "local ports, each a minute in TIME_WAIT"),
        };
        let change = "sysctl -w net.ipv4.tcp_tw_reuse=1";
        let change = if seconds == 1 { RANGE } else { change };
        let what = "new connections a second to one destination, closed by this side";
        add(what, Kind::Made, ports / seconds, by.to_owned(), change);
    }
    if let Some((used, max)) = facts.conntrack {
        let by = format!("{} of {} flows of the firewall are in use", Grouped(used), Grouped(max));
        let change = "sysctl -w net.netfilter.nf_conntrack_max=1048576";
        add("connections through the firewall", Kind::Held, max.saturating_sub(used), by, change);
        let seconds = facts.conntrack_time_wait.unwrap_or(CONNTRACK_TIME_WAIT).max(1);
        let by = format!("{} flows, each kept {seconds} s after its end", Grouped(max));
        add("new connections a second through the firewall", Kind::Made, max / seconds, by, change);
    }
    // What the forwarder does with them unless it is told otherwise.
    let udp = forebay_dns::UdpSettings::default();
    let process = facts.descriptors.map_or(u64::MAX, |limit| limit.hard.saturating_sub(RESERVED));
    let sockets = u64::from(udp.connections_max).min(facts.ports.unwrap_or(u64::MAX)).min(process);
    let by = format!("{} sockets of {} queries each ([dns.udp])", Grouped(sockets), udp.capacity);
    let most = sockets * u64::from(udp.capacity);
    add(
        "DNS queries in flight to one upstream by UDP",
        Kind::InFlight,
        most,
        by,
        "capacity = 256 in [dns.udp]",
    );
    if let Some(somaxconn) = facts.somaxconn {
        let by = format!("the lesser of somaxconn ({}) and forebay's own {BACKLOG}", Grouped(somaxconn));
        let change = "sysctl -w net.core.somaxconn=4096";
        add(
            "clients that come at one moment, for each worker",
            Kind::Burst,
            somaxconn.min(BACKLOG),
            by,
            change,
        );
    }
    if let Some(rmem) = facts.rmem_max {
        let most = rmem.min(UDP_BUFFER_BYTES) * BUFFER_TWICE / DATAGRAM_BYTES;
        let by = format!(
            "receive buffers of {} (rmem_max), a page for each at worst",
            memory(rmem.min(UDP_BUFFER_BYTES))
        );
        let change = "sysctl -w net.core.rmem_max=4194304";
        add("DNS queries that come at one moment by UDP, for each worker", Kind::Burst, most, by, change);
    }
    all
}

fn finding(state: State, what: &'static str, found: String, change: Option<&str>) -> Finding {
    Finding { state, what, found, change: change.filter(|_| state != State::Ok).map(str::to_owned) }
}

/// Whether so much of `max` is used that little is left.
fn nearly(used: u64, max: u64) -> State {
    match used as f64 / max.max(1) as f64 {
        share if share >= 0.9 => State::Bad,
        share if share >= 0.7 => State::Low,
        _ => State::Ok,
    }
}

fn enough(is_enough: bool) -> State {
    if is_enough { State::Ok } else { State::Low }
}

/// What is wrong with the machine, or not.
fn machine(facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    descriptors(facts, &mut all);
    ports(facts, &mut all);
    queues(facts, &mut all);
    processor(facts, &mut all);
    surroundings(facts, &mut all);
    all
}

fn descriptors(facts: &Facts, all: &mut Vec<Finding>) {
    if let Some(Limit { soft, hard }) = facts.descriptors {
        let found = format!(
            "soft {}, hard {}; forebay raises the soft limit to the hard one when it starts",
            Grouped(soft),
            Grouped(hard)
        );
        let change = "LimitNOFILE=1048576 in the unit of the service (systemctl edit forebay)";
        all.push(finding(enough(hard >= 16_384), "descriptors", found, Some(change)));
    }
    for process in facts.processes.iter().take(3) {
        let Limit { soft, .. } = process.limit;
        let found = format!(
            "process {} ({}) has {} of its {} open",
            process.pid,
            process.name,
            Grouped(process.used),
            Grouped(soft)
        );
        let change = format!("prlimit --pid {} --nofile=1048576", process.pid);
        all.push(finding(nearly(process.used, soft), "descriptors", found, Some(&change)));
    }
    if let Some((used, max)) = facts.files {
        let found = format!("{} of {} files open on the machine", Grouped(used), Grouped(max));
        all.push(finding(nearly(used, max), "files", found, Some("sysctl -w fs.file-max=4194304")));
    }
    if let (Some(Limit { hard, .. }), Some(nr_open)) = (facts.descriptors, facts.nr_open)
        && nr_open < 1_048_576
    {
        let found = format!(
            "fs.nr_open is {}: no hard limit can be above it (now {})",
            Grouped(nr_open),
            Grouped(hard)
        );
        all.push(finding(State::Low, "descriptors", found, Some("sysctl -w fs.nr_open=1048576")));
    }
}

fn ports(facts: &Facts, all: &mut Vec<Finding>) {
    const RANGE: &str = "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"";
    if let Some(ports) = facts.ports {
        let found = format!("{} for each destination", Grouped(ports));
        all.push(finding(enough(ports >= 16_384), "local ports", found, Some(RANGE)));
        if let Some((destination, Towards { connections, time_wait })) = &facts.busiest {
            let found = format!(
                "{} of {} used towards {destination}, the busiest; {} of them in TIME_WAIT",
                Grouped(*connections),
                Grouped(ports),
                Grouped(*time_wait)
            );
            let state = nearly(*connections, ports);
            let change =
                if *time_wait * 2 > *connections { "sysctl -w net.ipv4.tcp_tw_reuse=1" } else { RANGE };
            all.push(finding(state, "local ports", found, Some(change)));
        }
    }
    if let (Some(time_wait), Some(max)) = (facts.sockets.get("TCP.tw"), facts.tw_buckets) {
        let reuse = match facts.tw_reuse {
            Some(0) => ", never used again before their minute has passed",
            Some(1) => ", used again after a second where a connection wants one",
            Some(2) => ", used again sooner on loopback only",
            _ => "",
        };
        let found = format!("{} sockets of at most {}{reuse}", Grouped(*time_wait), Grouped(max));
        let change = "sysctl -w net.ipv4.tcp_max_tw_buckets=262144";
        all.push(finding(nearly(*time_wait, max), "TIME_WAIT", found, Some(change)));
    }
    if let Some((used, max)) = facts.conntrack {
        let found = format!(
            "{} of {} flows followed; one more than that is dropped, silently",
            Grouped(used),
            Grouped(max)
        );
        let change = "sysctl -w net.netfilter.nf_conntrack_max=1048576";
        let state = nearly(used, max).min(enough(max >= 65_536));
        all.push(finding(state, "conntrack", found, Some(change)));
    }
    if let (Some((_, max)), Some(seconds)) = (facts.conntrack, facts.conntrack_udp) {
        let rate = max / seconds.max(1);
        if rate < 1000 {
            let found = format!(
                "each UDP flow is kept {seconds} s: with a socket for each query no more than {rate} queries a second pass"
            );
            let change = "sysctl -w net.netfilter.nf_conntrack_udp_timeout_stream=30";
            all.push(finding(State::Low, "conntrack", found, Some(change)));
        }
    }
}

fn queues(facts: &Facts, all: &mut Vec<Finding>) {
    for (what, value, change) in [
        ("receive buffers", facts.rmem_max, "sysctl -w net.core.rmem_max=4194304"),
        ("send buffers", facts.wmem_max, "sysctl -w net.core.wmem_max=4194304"),
    ] {
        if let Some(max) = value {
            let found =
                format!("at most {}; the forwarder asks for {}", memory(max), memory(UDP_BUFFER_BYTES));
            all.push(finding(enough(max >= UDP_BUFFER_BYTES), what, found, Some(change)));
        }
    }
    if let Some(somaxconn) = facts.somaxconn {
        let found = format!("somaxconn {}; forebay lets {BACKLOG} wait to be accepted", Grouped(somaxconn));
        let change = "sysctl -w net.core.somaxconn=4096";
        all.push(finding(enough(somaxconn >= BACKLOG), "backlog", found, Some(change)));
    }
    if let Some(backlog) = facts.syn_backlog {
        let found = format!("tcp_max_syn_backlog {}: connections that may be half open", Grouped(backlog));
        let change = "sysctl -w net.ipv4.tcp_max_syn_backlog=4096";
        all.push(finding(enough(backlog >= BACKLOG), "backlog", found, Some(change)));
    }
    // Counters since the machine was started: they tell that it happened, not when.
    for (counter, what, means, change) in [
        (
            "TcpExt.ListenOverflows",
            "backlog",
            "connections came while a listener's backlog was full, since the machine was started",
            "sysctl -w net.core.somaxconn=4096, and look which listener it is: ss -ltn",
        ),
        (
            "Udp.RcvbufErrors",
            "receive buffers",
            "datagrams found a receive buffer full, since the machine was started",
            "sysctl -w net.core.rmem_max=4194304, or more workers",
        ),
        (
            "TcpExt.TCPTimeWaitOverflow",
            "TIME_WAIT",
            "sockets could not stay in TIME_WAIT, since the machine was started",
            "sysctl -w net.ipv4.tcp_max_tw_buckets=262144",
        ),
    ] {
        if let Some(count) = facts.counters.get(counter).filter(|count| **count > 0) {
            let found = format!("{} {means} ({counter})", Grouped(*count));
            all.push(finding(State::Low, what, found, Some(change)));
        }
    }
    if let Some(dropped) = facts.softnet_dropped.filter(|dropped| *dropped > 0) {
        let found = format!(
            "{} packets dropped before they were looked at, since the machine was started",
            Grouped(dropped)
        );
        let change = "sysctl -w net.core.netdev_max_backlog=10000";
        all.push(finding(State::Low, "network queue", found, Some(change)));
    }
}

fn processor(facts: &Facts, all: &mut Vec<Finding>) {
    if let Some(cores) = facts.cores {
        let found = match facts.cpu_quota {
            Some(quota) => format!("{cores}, and the time of {quota:.2} by its control group"),
            None => format!("{cores}, without a limit of time"),
        };
        // A worker per core, with less time than cores, is stopped in the middle of its work.
        let state = enough(facts.cpu_quota.is_none_or(|quota| quota >= cores as f64));
        let workers = facts.cpu_quota.map_or(cores, |quota| (quota as u64).max(1));
        all.push(finding(
            state,
            "cores",
            found,
            Some(&format!("--workers {workers}, or CPUQuota= in the unit")),
        ));
    }
    if let Some(governor) = &facts.governor {
        let state = enough(governor == "performance");
        let found = format!("governor {governor}");
        let found =
            if state == State::Ok { found } else { format!("{found}: cores that just woke are slow") };
        let change = "cpupower frequency-set -g performance";
        all.push(finding(state, "frequency", found, Some(change)));
    }
    if let Some(source) = &facts.clocksource {
        let is_fast = FAST_CLOCKS.contains(&source.as_str());
        let means =
            if is_fast { "read without a system call" } else { "each reading is a system call, or slow" };
        let change = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource";
        all.push(finding(enough(is_fast), "clock", format!("source {source}: {means}"), Some(change)));
    }
    if let Some(is_synchronised) = facts.is_synchronised {
        let found = if is_synchronised {
            "synchronised"
        } else {
            "not synchronised, as the kernel says: certificates and DNSSEC depend on the date"
        };
        let change = "timedatectl set-ntp true";
        all.push(finding(enough(is_synchronised), "clock", found.to_owned(), Some(change)));
    }
}

fn surroundings(facts: &Facts, all: &mut Vec<Finding>) {
    if let Some(there) = facts.memory {
        let used = there.total_bytes.saturating_sub(there.available_bytes);
        let group = facts
            .memory_max
            .map(|max| format!(", {} for its control group", memory(max)))
            .unwrap_or_default();
        let found =
            format!("{} available of {}{group}", memory(there.available_bytes), memory(there.total_bytes));
        let state =
            nearly(used, there.total_bytes).min(enough(facts.memory_max.is_none_or(|max| max >= 256 << 20)));
        all.push(finding(state, "memory", found, Some("--cache-size 16MiB, or MemoryMax= in the unit")));
    }
    if let Some(resolvers) = &facts.resolvers {
        let names = resolvers.nameservers.join(", ");
        let change = "forebay dns --upstream 192.0.2.53 (an address of yours)";
        let (state, found) = match &resolvers.nameservers[..] {
            [] => (State::Bad, "resolv.conf names no resolver: forebay dns needs --upstream".to_owned()),
            [one] if one == "127.0.0.53" => (
                State::Low,
                format!("{names}: systemd-resolved, one more cache between this and the upstreams"),
            ),
            _ => (
                State::Ok,
                format!("{names}; each is given {} s, {} times", resolvers.timeout, resolvers.attempts),
            ),
        };
        all.push(finding(state, "resolvers", found, Some(change)));
        let is_local = |name: &String| name.starts_with("127.") || name == "::1";
        if resolvers.nameservers.len() == 1 && !is_local(&resolvers.nameservers[0]) {
            let found = format!("{names} is the only one: when it fails, so does everything");
            all.push(finding(
                State::Low,
                "resolvers",
                found,
                Some("a second nameserver line in /etc/resolv.conf"),
            ));
        }
    }
}

/// What a running forebay has counted.
fn server(samples: &[Sample]) -> Vec<Finding> {
    let mut all = Vec::new();
    let sum = |name: &str, label: &str, values: &[&str]| -> f64 {
        let wanted = |sample: &&Sample| {
            sample.name == name && (label.is_empty() || values.contains(&sample.label(label)))
        };
        samples.iter().filter(wanted).map(|sample| sample.value).sum()
    };
    let value =
        |name: &str| samples.iter().find(|sample| sample.name == name).map(|sample| sample.value as u64);
    if let (Some(used), Some(max)) = (value("process_open_fds"), value("process_max_fds")) {
        let found = format!("forebay has {} of {} descriptors open", Grouped(used), Grouped(max));
        all.push(finding(nearly(used, max), "forebay", found, Some("LimitNOFILE=1048576 in its unit")));
    }
    for sample in samples.iter().filter(|one| one.name == "forebay_local_exhaustion_total" && one.value > 0.0)
    {
        let resource = sample.label("resource");
        let change = match resource {
            "ports" => "sysctl -w net.ipv4.ip_local_port_range=\"1024 65535\"",
            "descriptors" => "LimitNOFILE=1048576 in its unit",
            "memory" => "MemoryMax= in its unit, or fewer connections",
            "permission" => "nft list ruleset: a rule of this machine forbids it",
            _ => "forebay doctor on its machine: see the limits above",
        };
        let found = format!(
            "{} times a connection was wanted and this machine had no more of it: {resource}",
            Grouped(sample.value as u64)
        );
        all.push(finding(State::Bad, "forebay", found, Some(change)));
    }
    const POOL: &str = "forebay plan --from URL says how big it must be; then connections_max";
    let refused = sum("forebay_pool_acquires_total", "outcome", &["rejected", "timeout"]);
    if refused > 0.0 {
        let found = format!(
            "{} requests got no connection: refused, or out of time in line",
            Grouped(refused as u64)
        );
        all.push(finding(State::Bad, "forebay", found, Some(POOL)));
    }
    let waiters = sum("forebay_pool_waiters", "", &[]);
    if waiters > 0.0 {
        let found = format!("{} requests wait for a connection now", Grouped(waiters as u64));
        all.push(finding(State::Low, "forebay", found, Some(POOL)));
    }
    for limit in samples.iter().filter(|one| one.name == "forebay_pool_connections_max") {
        let is_same = |one: &&Sample| {
            one.name == "forebay_pool_connections"
                && one.label("upstream") == limit.label("upstream")
                && one.label("endpoint") == limit.label("endpoint")
        };
        let open: f64 = samples.iter().filter(is_same).map(|one| one.value).sum();
        let state = nearly(open as u64, limit.value as u64);
        if state != State::Ok {
            let found = format!("{open} of {} connections to {} exist", limit.value, limit.label("endpoint"));
            all.push(finding(state, "forebay", found, Some(POOL)));
        }
    }
    let reused = sum("forebay_pool_acquires_total", "outcome", &["reused", "waited"]);
    let fresh = sum("forebay_pool_acquires_total", "outcome", &["fresh", "temporary"]);
    if reused + fresh >= 100.0 {
        let share = reused / (reused + fresh);
        let found = format!("{:.1} % of requests went on a connection that was there", share * 100.0);
        let change = "longer idle_timeout, and look at forebay_pool_closes_total for why connections end";
        all.push(finding(enough(share >= 0.5), "forebay", found, Some(change)));
    }
    for sample in samples.iter().filter(|one| one.name == "forebay_breaker_state" && one.value >= 2.0) {
        let found =
            format!("the breaker of {} is open: it failed, not this machine", sample.label("endpoint"));
        all.push(finding(
            State::Bad,
            "forebay",
            found,
            Some("curl ADMIN/pools: last_failure says what failed"),
        ));
    }
    if let Some(dropped) = value("forebay_dns_datagrams_dropped_total").filter(|dropped| *dropped > 0) {
        let found = format!("{} replies did not fit a send buffer", Grouped(dropped));
        all.push(finding(State::Low, "forebay", found, Some("sysctl -w net.core.wmem_max=4194304")));
    }
    if all.iter().all(|one| one.state == State::Ok) {
        all.push(finding(
            State::Ok,
            "forebay",
            "it never lacked anything since it was started".to_owned(),
            None,
        ));
    }
    all
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "what this machine can carry, at most")?;
        for Carries { what, most, by, .. } in &self.carries {
            writeln!(f, "  {:>11}  {what}\n               {by}", Grouped(*most))?;
        }
        writeln!(f, "\nwhat breaks first")?;
        if self.breaks_first.is_empty() {
            writeln!(f, "  nothing could be read that would tell")?;
        }
        for Carries { kind, what, most, by, change } in &self.breaks_first {
            let load = match kind {
                Kind::Held => "as connections stay",
                Kind::Made => "as connections come and go",
                Kind::InFlight => "as requests stay",
                Kind::Burst => "as they come at once",
            };
            writeln!(f, "  {load}: {what}, at {} ({by})\n      change: {change}", Grouped(*most))?;
        }
        for (state, head) in [
            (State::Bad, "what is wrong"),
            (State::Low, "what will be, under load"),
            (State::Ok, "what is well"),
        ] {
            let found: Vec<_> = self.findings.iter().filter(|finding| finding.state == state).collect();
            if found.is_empty() {
                continue;
            }
            writeln!(f, "\n{head}")?;
            for finding in found {
                writeln!(f, "  {:<16} {}", finding.what, finding.found)?;
                if let Some(change) = &finding.change {
                    writeln!(f, "  {:<16} change: {change}", "")?;
                }
            }
        }
        if self.facts.processes_hidden > 0 {
            writeln!(
                f,
                "\nnot seen: descriptors of {} processes of others (run as root)",
                self.facts.processes_hidden
            )?;
        }
        if !self.facts.missing.is_empty() {
            writeln!(f, "\nnot read")?;
            for line in &self.facts.missing {
                writeln!(f, "  {line}")?;
            }
        }
        write!(
            f,
            "\nNothing was changed. A line with sysctl -w holds until the next start; in /etc/sysctl.d for good."
        )
    }
}

#[cfg(test)]
mod tests;

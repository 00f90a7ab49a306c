//! What happened in the worlds, so that a fault that never fires is noticed.

use std::collections::BTreeMap;
use std::fmt;

use forebay_core::{AcquireOutcome, Action, Blame, CloseReason, Denied, Event, Health, Refusal, TicketError};

/// How often each thing occurred.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    /// Steps taken: calls into an engine.
    pub steps: u64,
}

impl Coverage {
    /// Counts one occurrence.
    pub(crate) fn note(&mut self, kind: &'static str, name: &'static str) {
        self.add(kind, name, 1);
    }

    pub(crate) fn add(&mut self, kind: &'static str, name: &'static str, n: u64) {
        *self.counts.entry((kind, name)).or_insert(0) += n;
    }

    /// Adds another world's counts to these.
    pub fn merge(&mut self, other: &Self) {
        for (key, n) in &other.counts {
            *self.counts.entry(*key).or_insert(0) += n;
        }
        self.steps += other.steps;
    }

    /// Returns how often this occurred.
    pub fn count(&self, kind: &'static str, name: &'static str) -> u64 {
        self.counts.get(&(kind, name)).copied().unwrap_or(0)
    }

    /// Everything that must occur somewhere, for a run to have proven something.
    pub fn expected() -> Vec<(&'static str, &'static str)> {
        let mut all = Vec::new();
        all.extend(CloseReason::ALL.iter().map(|reason| ("close", reason.as_str())));
        all.extend(AcquireOutcome::ALL.iter().map(|outcome| ("acquire", outcome.as_str())));
        for (kind, names) in NAMES {
            all.extend(names.iter().map(|name| (*kind, *name)));
        }
        all
    }

    /// What should have occurred and did not.
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        Self::expected().into_iter().filter(|(kind, name)| self.count(kind, name) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} steps", self.steps)?;
        let mut last = "";
        for ((kind, name), n) in &self.counts {
            if *kind != last {
                write!(f, "{}{kind}:", if last.is_empty() { "" } else { "\n" })?;
                last = kind;
            }
            write!(f, " {name} {n}")?;
        }
        writeln!(f)
    }
}

/// The names that come from enums without a list of their own, and the faults of the world.
const NAMES: &[(&str, &[&str])] = &[
    ("action", &["dial", "close", "grant", "fail", "probe"]),
    (
        "event",
        &[
            "opened",
            "dial_failed",
            "closed",
            "breaker_opened",
            "breaker_closed",
            "became_healthy",
            "became_unhealthy",
            "local_exhaustion",
        ],
    ),
    (
        "refusal",
        &[
            "line_full",
            "full_connections",
            "full_descriptors",
            "full_ports",
            "deadline",
            "breaker_open",
            "backoff",
            "leaving",
            "no_endpoint",
        ],
    ),
    ("ticket", &["granted", "timeout", "dial_local", "dial_upstream", "leaving"]),
    (
        "world",
        &[
            "announced_idle",
            "cancelled_in_line",
            "cancelled_after_grant",
            "cancelled_after_failure",
            "capacity_lowered",
            "capacity_raised",
            "close_all",
            "config_changed",
            "dial_accepted",
            "dial_cancelled",
            "dial_hung",
            "dial_local",
            "dial_refused",
            "drain",
            "endpoint_added",
            "endpoint_closed",
            "endpoint_drained",
            "idle_closed_by_peer",
            "kernel_descriptors_gone",
            "kernel_ports_gone",
            "late_lease",
            "lent_on",
            "peer_goodbye",
            "peer_reset",
            "probe_lease",
            "stale_news",
            "try_acquire_refused",
            "try_acquire_served",
        ],
    ),
];

pub(crate) const fn of_action(action: &Action) -> &'static str {
    match action {
        Action::Dial { .. } => "dial",
        Action::Close { .. } => "close",
        Action::Grant { .. } => "grant",
        Action::Fail { .. } => "fail",
        Action::Probe { .. } => "probe",
    }
}

pub(crate) const fn of_event(event: &Event) -> &'static str {
    match event {
        Event::Opened { .. } => "opened",
        Event::DialFailed { .. } => "dial_failed",
        Event::Closed { .. } => "closed",
        Event::BreakerOpened { .. } => "breaker_opened",
        Event::BreakerClosed { .. } => "breaker_closed",
        Event::HealthChanged { health: Health::Healthy, .. } => "became_healthy",
        Event::HealthChanged { health: Health::Unhealthy, .. } => "became_unhealthy",
        Event::Full { .. } => "full",
        Event::LocalExhaustion { .. } => "local_exhaustion",
        _ => "unknown",
    }
}

pub(crate) const fn of_refusal(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::LineFull { .. } => "line_full",
        Refusal::Full { denied: Denied::Connections, .. } => "full_connections",
        Refusal::Full { denied: Denied::Descriptors, .. } => "full_descriptors",
        Refusal::Full { denied: Denied::Ports, .. } => "full_ports",
        Refusal::Deadline { .. } => "deadline",
        Refusal::BreakerOpen { .. } => "breaker_open",
        Refusal::Backoff { .. } => "backoff",
        Refusal::Leaving => "leaving",
        Refusal::NoEndpoint => "no_endpoint",
        _ => "unknown",
    }
}

pub(crate) fn of_ticket_error(error: &TicketError) -> &'static str {
    match error {
        TicketError::Timeout { .. } => "timeout",
        TicketError::Dial(cause) if cause.blame() == Blame::Local => "dial_local",
        TicketError::Dial(_) => "dial_upstream",
        TicketError::Leaving => "leaving",
        _ => "unknown",
    }
}

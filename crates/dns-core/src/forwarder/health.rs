//! Active checks: a question of our own, asked of one endpoint. The engine says when, and what the answers make of it.
//!
//! A check is a flight that nobody waits for, that no client can join, and that knows one endpoint. Any answer to it
//! that can be read shows that the endpoint is alive, an error too: what it says of one name says nothing of it. A check
//! needs a connection as any query does; it is the probe that a half-open breaker waits for. What went wrong on this
//! machine, and a check that was not let through, say nothing.

use std::fmt;
use std::time::Duration;

use forebay_core::{Acquired, Blame, Cause, EndpointId, Instant};

use super::config::HealthCheck;
use super::flight::AttemptState;
use super::{Forwarder, Outbox};
use crate::wire::{HashSeed, NameTextError, QuestionKey, class, parse_name, rtype};

/// What is asked, and for how long an answer is waited for.
#[derive(Debug)]
pub(super) struct Check {
    key: QuestionKey,
    timeout: Duration,
}

impl Check {
    pub(super) fn new(check: &HealthCheck, seed: &HashSeed) -> Self {
        let mut key = QuestionKey::empty();
        key.fill(&check.question, QuestionKey::RD, seed);
        Self { key, timeout: check.timeout }
    }
}

impl Forwarder {
    /// Checks an endpoint.
    #[cold]
    pub(super) fn probe(&mut self, now: Instant, id: EndpointId, out: &mut impl Outbox) {
        let Some(check) = self.check.as_ref().filter(|_| !self.draining) else {
            self.engine.handle_probed(now, id, Err(Cause::Cancelled));
            return;
        };
        self.counters.checks += 1;
        let (endpoint, _) = self.roles[id.index()];
        let upstream = self.upstreams.iter().rposition(|group| group.first <= endpoint).unwrap_or(0) as u16;
        let flight = self.flights.begin_probe(&check.key, upstream, now + check.timeout, id);
        match self.engine.acquire(now, id, now + check.timeout) {
            Acquired::Lease(lease) => {
                let attempt = self.flights.add_attempt(now, flight, endpoint, AttemptState::Vacant);
                if !self.send(now, attempt, lease, out) {
                    self.end_probe(now, flight, Err(Cause::Cancelled));
                    return;
                }
            }
            Acquired::Wait(ticket) => {
                let attempt = self.flights.add_attempt(now, flight, endpoint, AttemptState::Line(ticket));
                self.remember_ticket(ticket, attempt);
            }
            Acquired::Refused(_) => {
                self.end_probe(now, flight, Err(Cause::Cancelled));
                return;
            }
        }
        self.set_timer(flight);
    }

    /// The only attempt of a check came to nothing.
    #[cold]
    pub(super) fn give_up_probe(&mut self, now: Instant, flight: u32) {
        let cause = self.flights.flight(flight).failure.unwrap_or(Cause::Cancelled);
        self.end_probe(now, flight, Err(cause));
    }

    /// A check has come to an end.
    #[cold]
    pub(super) fn end_probe(&mut self, now: Instant, flight: u32, result: Result<(), Cause>) {
        let Some(id) = self.flights.flight(flight).probe else { return };
        if result.is_err_and(|cause| cause.blame() == Blame::Upstream) {
            self.counters.checks_failed += 1;
        }
        self.end(now, flight);
        self.engine.handle_probed(now, id, result);
    }

    /// The time of a check is up, or a turn of the wheel is over.
    #[cold]
    pub(super) fn handle_probe_due(&mut self, now: Instant, flight: u32) {
        if now < self.flights.flight(flight).deadline {
            self.set_timer(flight);
            return;
        }
        let sent = self.flights.first_attempt(flight).filter(|at| {
            self.flights.attempt_mut(*at).late = true;
            self.blame_silence(now, *at)
        });
        // Who only stood in line has heard nothing; a dial that fails is blamed by itself.
        self.end_probe(now, flight, Err(if sent.is_some() { Cause::Timeout } else { Cause::Limit }));
    }
}

/// Reads a question: a name and a type, as `. NS` or `example.org TYPE65`. The result is in wire form.
///
/// # Errors
///
/// [`QuestionTextError`] says what is wrong with it.
pub fn parse_question(text: &str) -> Result<Vec<u8>, QuestionTextError> {
    let mut words = text.split_whitespace();
    let (Some(name), Some(kind), None) = (words.next(), words.next(), words.next()) else {
        return Err(QuestionTextError::Words);
    };
    let mut question = parse_name(name).map_err(QuestionTextError::Name)?;
    let kind = qtype(kind).ok_or_else(|| QuestionTextError::Type(kind.to_owned()))?;
    question.extend_from_slice(&kind.to_be_bytes());
    question.extend_from_slice(&class::IN.to_be_bytes());
    Ok(question)
}

/// Reads a type that can be asked for.
fn qtype(text: &str) -> Option<u16> {
    let named = TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, kind)| *kind);
    // RFC 3597 §5
    let numbered = || {
        let (word, number) = text.split_at_checked(4)?;
        word.eq_ignore_ascii_case("TYPE").then(|| number.parse().ok())?
    };
    named.or_else(numbered)
}

const TYPES: &[(&str, u16)] = &[
    ("A", rtype::A),
    ("AAAA", rtype::AAAA),
    ("NS", rtype::NS),
    ("SOA", rtype::SOA),
    ("TXT", rtype::TXT),
    ("CNAME", rtype::CNAME),
    ("MX", rtype::MX),
    ("PTR", rtype::PTR),
    ("SRV", rtype::SRV),
    ("DS", rtype::DS),
    ("SVCB", rtype::SVCB),
    ("HTTPS", rtype::HTTPS),
];

/// What is wrong with a question as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QuestionTextError {
    /// It is not a name and a type.
    Words,
    /// Its name.
    Name(NameTextError),
    /// Its type.
    Type(String),
}

impl fmt::Display for QuestionTextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Words => f.write_str("it must be a name and a type, like `. NS` or `example.org A`"),
            Self::Name(error) => error.fmt(f),
            Self::Type(kind) => {
                write!(f, "`{kind}` is no type that is known here: use A, NS, SOA … or TYPE and a number")
            }
        }
    }
}

impl std::error::Error for QuestionTextError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_a_name_and_a_type() {
        assert_eq!(parse_question(". NS").unwrap(), [0, 0, 2, 0, 1]);
        assert_eq!(parse_question("  Ab.test  aaaa ").unwrap(), b"\x02ab\x04test\0\0\x1c\0\x01");
        assert_eq!(parse_question(". TYPE65").unwrap(), [0, 0, 65, 0, 1]);
        for (text, why) in [
            ("", "a name and a type"),
            (".", "a name and a type"),
            (". NS IN", "a name and a type"),
            ("a..b NS", "empty label"),
            (". NX", "`NX`"),
            (". é", "`é`"),
            (". TYP€65", "type"),
            (". TYPE65536", "TYPE65536"),
        ] {
            assert!(parse_question(text).unwrap_err().to_string().contains(why), "{text}");
        }
    }
}

//! Addresses of upstreams that are given by name: what the answers of a plain DNS server say, and when to ask again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use forebay_core::{Instant, Rng};

use crate::wire::{AnswerKind, LetterCase, QuestionEcho, Scan, answer_matches, rcode, rtype};

/// Names change their addresses hardly more often, and whoever says so would have them asked for without end.
const TTL_MIN: Duration = Duration::from_secs(30);

/// A change is noticed after so long at the latest.
const TTL_MAX: Duration = Duration::from_secs(3600);

/// The pause after the first failure; it doubles with each.
const BACKOFF_BASE: Duration = Duration::from_millis(500);

/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// Addresses of one name; a hundred are more than any dial tries.
const ADDRESSES_MAX: usize = 100;

/// What an answer says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// So it is: these addresses, none if the name has none of this type, for so many seconds.
    Addresses {
        /// In the order of the answer.
        list: Vec<IpAddr>,
        /// How long they hold, in seconds.
        ttl: u32,
    },
    /// It was cut: to be asked for over TCP (RFC 7766 §5).
    Truncated,
    /// The name does not exist.
    NoName,
    /// The server could not tell.
    Failed {
        /// Its response code.
        rcode: u16,
    },
    /// It is no answer to this question.
    Unfit,
}

/// Reads an answer to a question for addresses, `question` being name, type and class as they were sent under `id`.
///
/// The addresses are those of the name or of what it is an alias of; the server is trusted to have followed aliases.
pub fn read_addresses(answer: &[u8], id: u16, question: &[u8], scan: &mut Scan) -> Finding {
    let fits = answer.first_chunk::<2>() == Some(&id.to_be_bytes())
        && answer_matches(answer, question, LetterCase::Ignored) == QuestionEcho::Same;
    let Some(read) = scan.scan_answer(answer).ok().filter(|_| fits) else { return Finding::Unfit };
    match read.rcode {
        _ if read.is_truncated() => return Finding::Truncated,
        rcode::NOERROR if read.kind != AnswerKind::Referral => {}
        rcode::NXDOMAIN => return Finding::NoName,
        rcode => return Finding::Failed { rcode },
    }
    let wanted = question.len().checked_sub(4).and_then(|at| question.get(at..at + 2));
    let mut list = Vec::new();
    for &at in read.ttl_offsets().iter().take(usize::from(read.counts[0])) {
        let at = usize::from(at);
        // Type and class stand before the TTL, length and data behind it (RFC 1035 §3.2.1).
        let kind = at.checked_sub(4).and_then(|at| answer.get(at..at + 2));
        if kind == wanted
            && let Some(address) = address(answer, at)
            && list.len() < ADDRESSES_MAX
            && !list.contains(&address)
        {
            list.push(address);
        }
    }
    let ttl = if list.is_empty() { read.negative_ttl } else { read.answer_ttl_min };
    Finding::Addresses { list, ttl: ttl.unwrap_or(0) }
}

/// The address in the record whose TTL stands at `at`.
fn address(answer: &[u8], at: usize) -> Option<IpAddr> {
    let kind = u16::from_be_bytes(*answer.get(at.checked_sub(4)?..)?.first_chunk()?);
    let length = u16::from_be_bytes(*answer.get(at + 4..)?.first_chunk()?);
    let data = answer.get(at + 6..)?;
    match (kind, length) {
        (rtype::A, 4) => data.first_chunk::<4>().map(|data| Ipv4Addr::from(*data).into()),
        (rtype::AAAA, 16) => data.first_chunk::<16>().map(|data| Ipv6Addr::from(*data).into()),
        _ => None,
    }
}

/// Brings addresses of both families into the order in which they are tried: in turn, so that a family that leads
/// nowhere costs one try (after RFC 8305 §4).
pub fn interleave(four: &[IpAddr], six: &[IpAddr]) -> Vec<IpAddr> {
    let most = four.len().max(six.len());
    (0..most).flat_map(|i| [six.get(i), four.get(i)]).flatten().copied().collect()
}

/// When a name is asked for again.
#[derive(Clone, Debug)]
pub struct Refresh {
    failures: u32,
    due: Instant,
}

impl Refresh {
    /// A name that has not been asked for: at once.
    pub const fn new(now: Instant) -> Self {
        Self { failures: 0, due: now }
    }

    /// Returns when.
    pub const fn due(&self) -> Instant {
        self.due
    }

    /// Notes addresses that hold for so many seconds. They are asked for again after that, though never before half a
    /// minute and never after more than an hour.
    pub fn note_found(&mut self, now: Instant, ttl_secs: u32) {
        self.failures = 0;
        self.due = now + Duration::from_secs(ttl_secs.into()).clamp(TTL_MIN, TTL_MAX);
    }

    /// Notes that nothing was learnt: each time twice as long is waited, half a minute at most, and a random part less
    /// so that many forwarders do not ask in step.
    pub fn note_failed(&mut self, now: Instant, rng: &mut Rng) {
        let pause = BACKOFF_BASE.saturating_mul(1 << self.failures.min(10)).min(BACKOFF_MAX);
        self.failures += 1;
        self.due = now + pause - pause / 100 * rng.below(50);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Message, name};

    fn question(qtype: u8) -> Vec<u8> {
        [name("dns.example"), vec![0, qtype, 0, 1]].concat()
    }

    fn reply(qtype: u16) -> Message {
        Message::response("dns.example", qtype)
    }

    fn read(message: &Message, qtype: u8) -> Finding {
        let id = u16::from_be_bytes([message.0[0], message.0[1]]);
        read_addresses(&message.0, id, &question(qtype), &mut Scan::new())
    }

    const FOUR: [u8; 4] = [192, 0, 2, 1];

    #[test]
    fn addresses_are_those_of_the_type_asked_for_whatever_stands_between() {
        let alias = name("other.example");
        let message = reply(1)
            .record(0, 5, 300, &alias)
            .record(0, 1, 20, &FOUR)
            .record(0, 1, 60, &[192, 0, 2, 2])
            .record(0, 1, 60, &FOUR);
        let list = vec!["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        assert_eq!(read(&message, 1), Finding::Addresses { list, ttl: 20 });
        let six: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let message = reply(28).record(0, 28, 90, &six.octets());
        assert_eq!(read(&message, 28), Finding::Addresses { list: vec![six.into()], ttl: 90 });
        let none = reply(28).soa(300, 45);
        assert_eq!(read(&none, 28), Finding::Addresses { list: Vec::new(), ttl: 45 });
    }

    #[test]
    fn what_answers_something_else_says_nothing() {
        let good = reply(1).record(0, 1, 60, &FOUR);
        assert_eq!(read(&good, 28), Finding::Unfit);
        let id = u16::from_be_bytes([good.0[0], good.0[1]]);
        assert_eq!(read_addresses(&good.0, id ^ 1, &question(1), &mut Scan::new()), Finding::Unfit);
        for end in 0..good.0.len() {
            assert_eq!(
                read_addresses(&good.0[..end], id, &question(1), &mut Scan::new()),
                Finding::Unfit,
                "cut at {end}"
            );
        }
    }

    #[test]
    fn errors_are_told_apart() {
        assert_eq!(read(&reply(1).flags(0x8183), 1), Finding::NoName);
        assert_eq!(read(&reply(1).flags(0x8182), 1), Finding::Failed { rcode: 2 });
        assert_eq!(read(&reply(1).flags(0x8380), 1), Finding::Truncated);
        let referral = Message::response("dns.example", 1).record(1, 2, 60, &name("ns.example"));
        assert_eq!(read(&referral, 1), Finding::Failed { rcode: 0 });
    }

    #[test]
    fn families_are_tried_in_turn() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (four, six) = ([ip("192.0.2.1"), ip("192.0.2.2")], [ip("2001:db8::1")]);
        assert_eq!(interleave(&four, &six), [six[0], four[0], four[1]]);
        assert_eq!(interleave(&[], &six), six);
    }

    #[test]
    fn names_are_asked_for_again_when_their_addresses_end_within_bounds() {
        let now = Instant::from_nanos(5_000_000_000);
        let mut refresh = Refresh::new(now);
        assert_eq!(refresh.due(), now);
        for (ttl, secs) in [(0, 30), (29, 30), (300, 300), (86_400, 3600)] {
            refresh.note_found(now, ttl);
            assert_eq!(refresh.due(), now + Duration::from_secs(secs));
        }
    }

    #[test]
    fn failures_make_it_wait_longer_each_time_and_never_too_long() {
        let now = Instant::from_nanos(5_000_000_000);
        let (mut refresh, mut rng) = (Refresh::new(now), Rng::new(7));
        let mut most = BACKOFF_BASE;
        for _ in 0..20 {
            refresh.note_failed(now, &mut rng);
            let pause = refresh.due().saturating_duration_since(now);
            assert!(pause > most / 2 && pause <= most, "{pause:?} of {most:?}");
            most = (most * 2).min(BACKOFF_MAX);
        }
        refresh.note_found(now, 60);
        refresh.note_failed(now, &mut rng);
        assert!(refresh.due() <= now + BACKOFF_BASE, "a success starts over");
    }
}

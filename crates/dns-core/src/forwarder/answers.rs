//! What comes back: which answers are taken, what is made of them, and how a question ends.

use std::time::Duration;

use forebay_core::{Blame, Cause, Instant, Outcome, SlotId};

use super::config::Carrier;
use super::errors::{count_reply, explain, terms};
use super::failures::Certainty;
use super::{Forwarder, How, Outbox};
use crate::cache::Insert;
use crate::reply::{write_error, write_fresh};
use crate::wire::{Answer, HEADER_LEN, LetterCase, QuestionEcho, Scan, answer_matches, rcode};

impl Forwarder {
    /// Returns whether the message answers a query of its connection.
    pub(super) fn judge_answer(
        &mut self,
        now: Instant,
        slot: SlotId,
        bytes: &[u8],
        scan: &mut Scan,
        out: &mut impl Outbox,
    ) -> bool {
        let Some(attempt) = self.expected(now, slot, bytes) else { return false };
        if self.flights.attempt(attempt).letters != 0
            && !self.is_spelled_right(now, slot, attempt, bytes, out)
        {
            return true;
        }
        let flight = self.flights.attempt(attempt).flight;
        let answer = match scan.scan_answer(bytes) {
            Ok(answer) if !(answer.question.is_empty() && answer.rcode == rcode::NOERROR) => answer,
            _ => {
                // It has the right id and question, so the upstream sent it, or somebody who sees our queries.
                self.counters.malformed += 1;
                if self.carrier(slot) == Carrier::Stream {
                    self.drop_attempt(now, attempt, Outcome::Failed(Cause::Protocol));
                    self.flights.flight_mut(flight).failure = Some(Cause::Protocol);
                    self.try_again(now, flight, out);
                }
                return true;
            }
        };
        if self.safety.cookies && !self.is_cookie_right(now, slot, attempt, &answer, out) {
            return true;
        }
        if self.is_doubtful(now, slot) {
            self.ask_over_stream(now, attempt, out);
            return true;
        }
        self.counters.answers += 1;
        self.note_heard(now, slot);
        if self.carrier(slot) == Carrier::Stream {
            self.learn_keepalive(now, slot, &answer);
            self.convict(now, slot, flight);
        }
        let endpoint = self.flights.attempt(attempt).endpoint;
        let took = now.saturating_duration_since(self.flights.attempt(attempt).began);
        self.observe_latency(now, slot, took, answer.rcode);
        self.drop_attempt(now, attempt, Outcome::Good);
        if self.flights.flight(flight).probe.is_some() {
            self.end_probe(now, flight, Ok(()));
            return true;
        }
        if answer.is_truncated() && self.carrier(slot) == Carrier::Datagram {
            self.counters.truncated += 1;
            // Of several that were asked at once, one is asked for all of it.
            let asks_stream = std::mem::replace(&mut self.flights.flight_mut(flight).stream, true);
            if !asks_stream || !self.flights.has_attempts(flight) {
                self.attempt_again(now, flight, endpoint, out);
            }
            return true;
        }
        match answer.rcode {
            rcode::NOERROR if self.is_rebind(flight, &answer) => self.finish_rebind(now, flight, out),
            rcode::NOERROR | rcode::NXDOMAIN => {
                self.note_race(now, flight, endpoint);
                let bit = 1 << (endpoint - self.group(flight).first);
                self.failures.forgive(&self.flights.flight(flight).key, bit);
                self.finish(now, flight, &answer, out);
            }
            rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS
                if answer.opt.is_none() && self.flights.flight(flight).edns =>
            {
                // RFC 6891 §7: it may be the OPT record that it does not understand.
                self.flights.flight_mut(flight).edns = false;
                self.attempt_again(now, flight, endpoint, out);
            }
            _ => self.weigh_error(now, flight, endpoint, &answer, out),
        }
        true
    }

    /// An upstream answered with an error: another may know better; if none is left to ask, this is the answer.
    pub(super) fn weigh_error(
        &mut self,
        now: Instant,
        flight: u32,
        endpoint: u16,
        answer: &Answer<'_>,
        out: &mut impl Outbox,
    ) {
        let bit = 1 << (endpoint - self.group(flight).first);
        let this = self.flights.flight_mut(flight);
        this.failed |= bit;
        this.rcode = Some(answer.rcode);
        self.failures.note(now, &this.key, bit, Certainty::Answered);
        self.begin(now, flight, out);
        if self.flights.has_attempts(flight) {
            self.set_timer(flight);
        } else {
            self.finish(now, flight, answer, out);
        }
    }

    /// Notes how long an answer took. One that is an error costs the client another attempt: that counts too.
    fn observe_latency(&mut self, now: Instant, slot: SlotId, took: Duration, code: u16) {
        self.engine.observe_latency(slot.endpoint(), took);
        let (endpoint, _) = self.roles[slot.endpoint().index()];
        let is_good = matches!(code, rcode::NOERROR | rcode::NXDOMAIN);
        let cost = if is_good { Duration::ZERO } else { self.attempt_timeout / 4 };
        self.endpoints[usize::from(endpoint)].latency.observe(now, took + cost);
    }

    /// An endpoint has answered; what that says of those that were asked beside it.
    fn note_race(&mut self, now: Instant, flight: u32, winner: u16) {
        let mut next = self.flights.first_attempt(flight);
        let mut lost = 0;
        while let Some(at) = next {
            next = self.flights.next_attempt(at);
            let attempt = self.flights.attempt(at);
            if attempt.late || attempt.endpoint == winner {
                continue;
            }
            lost += 1;
            let loser = &mut self.endpoints[usize::from(attempt.endpoint)];
            loser.lost += 1;
            loser.latency.observe_none(now, now.saturating_duration_since(attempt.began));
        }
        self.endpoints[usize::from(winner)].won += u64::from(lost > 0);
    }

    /// Whether a message answers a query that was let go. If so, it is noted for what it says of the upstream.
    fn is_settled(&mut self, now: Instant, slot: SlotId, bytes: &[u8]) -> bool {
        let Some(exchange) = self.exchanges.get_mut(slot) else { return false };
        let id = bytes.first_chunk::<2>().map(|id| u16::from_be_bytes(*id));
        let Some(query) = id.and_then(|id| exchange.settled(id)) else { return false };
        let one_question = bytes.get(4..6) == Some(&[0, 1]);
        let question = bytes.get(HEADER_LEN..HEADER_LEN + usize::from(query.len));
        let Some(question) = question.filter(|_| one_question) else { return false };
        self.key.fill(question, query.flags, &self.seed);
        if self.key.hash() != query.hash {
            return false;
        }
        exchange.forget_settled(query.id);
        self.note_heard(now, slot);
        self.counters.late += 1;
        let code = u16::from(bytes[3] & 0x0f);
        self.observe_latency(now, slot, now.saturating_duration_since(query.at), code);
        true
    }

    /// The attempt that a message on this connection answers: by id and by question.
    pub(super) fn expected(&mut self, now: Instant, slot: SlotId, bytes: &[u8]) -> Option<u32> {
        let exchange = self.exchanges.get_mut(slot)?;
        let found = bytes.first_chunk::<2>().and_then(|id| exchange.find(u16::from_be_bytes(*id)));
        if let Some(attempt) = found {
            let key = &self.flights.flight(self.flights.attempt(attempt).flight).key;
            let is_response = bytes.get(2).is_some_and(|flags| flags & 0x80 != 0);
            match answer_matches(bytes, key.question(), LetterCase::Ignored) {
                QuestionEcho::Same if is_response => return found,
                // Some servers leave the question out of errors; whether it is one is looked at after the scan.
                QuestionEcho::Missing if is_response => return found,
                _ => {}
            }
        }
        if found.is_none()
            && bytes.get(2).is_some_and(|flags| flags & 0x80 != 0)
            && self.is_settled(now, slot, bytes)
        {
            return None;
        }
        self.note_stray(now, slot, bytes, found.is_some());
        None
    }

    pub(super) fn finish(&mut self, now: Instant, flight: u32, answer: &Answer<'_>, out: &mut impl Outbox) {
        if !matches!(answer.rcode, rcode::NOERROR | rcode::NXDOMAIN) {
            self.fall_back(now, flight, out);
        }
        let this = self.flights.flight(flight);
        let began = this.deadline - self.query_timeout;
        let (how, took) = (How::Upstream(this.upstream), now.saturating_duration_since(began));
        self.latency.record_duration(took);
        // Why it is not kept is of no interest here: the reply goes out all the same.
        if let Insert::NotKept(_) = self.cache.insert(&this.key, answer, now) {
            self.note_unkept(now, flight);
        }
        let (udp_size, counters) = (self.udp_size, &mut self.counters);
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, udp_size);
            out.tell(how, took);
            out.reply(&waiter.client, |buffer| {
                count_reply(counters, write_fresh(buffer, answer, &asked, &terms));
            });
        }
        self.learn(now, flight, answer);
        self.end(now, flight);
    }

    /// Tells everybody who waits that it did not work, and why.
    pub(super) fn fail(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        self.fall_back(now, flight, out);
        let this = self.flights.flight(flight);
        let took = now.saturating_duration_since(this.deadline - self.query_timeout);
        let how = How::Upstream(this.upstream);
        let failure = this.failure.unwrap_or(Cause::Timeout);
        if failure == Cause::Timeout {
            let silent = self.flights.silent(flight, self.group(flight).first);
            self.failures.note(now, &this.key, silent, Certainty::Silent);
        }
        let code = this.rcode.filter(|code| *code <= 15).unwrap_or(rcode::SERVFAIL);
        let mut waiters = 0;
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            waiters += 1;
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, self.udp_size);
            let error = explain(failure);
            out.tell(how, took);
            out.reply(&waiter.client, |buffer| write_error(buffer, &asked, code, Some(error), &terms));
        }
        self.counters.replies += waiters;
        *match failure.blame() {
            Blame::Local => &mut self.counters.failed_local,
            Blame::Upstream if failure == Cause::Timeout => &mut self.counters.failed_timeout,
            Blame::Upstream | Blame::Client => &mut self.counters.failed_upstream,
        } += waiters;
        self.end(now, flight);
    }

    pub(super) fn end(&mut self, now: Instant, flight: u32) {
        while let Some(attempt) = self.flights.first_attempt(flight) {
            self.let_go(now, attempt, None);
        }
        self.timers.cancel(flight);
        self.refresh.forget(flight);
        self.refresh.running -= u32::from(self.flights.flight(flight).is_background);
        self.flights.end(flight);
    }
}

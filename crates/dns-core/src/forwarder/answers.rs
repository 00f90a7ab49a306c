//! What comes back: which answers are taken, what is made of them, and how a question ends.

use forebay_core::{Blame, Cause, Instant, Outcome, SlotId};

use super::config::Carrier;
use super::errors::{count_reply, explain, terms};
use super::flight::AttemptState;
use super::{Forwarder, Outbox};
use crate::reply::{write_error, write_fresh};
use crate::wire::{Answer, LetterCase, QuestionEcho, Scan, answer_matches, rcode};

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
        self.counters.answers += 1;
        if let Some(exchange) = self.exchanges.get_mut(slot) {
            exchange.answered = true;
            exchange.silent = 0;
        }
        if let AttemptState::Sent { at, .. } = &self.flights.attempt(attempt).state {
            let took = now.saturating_duration_since(*at);
            self.engine.observe_latency(slot.endpoint(), took);
        }
        let endpoint = self.flights.attempt(attempt).endpoint;
        self.drop_attempt(now, attempt, Outcome::Good);
        if answer.is_truncated() && self.carrier(slot) == Carrier::Datagram {
            self.counters.truncated += 1;
            let first = self.group(flight).first;
            let this = self.flights.flight_mut(flight);
            this.stream = true;
            this.cursor = u32::from(endpoint - first);
            self.attempt(now, flight, out);
            return true;
        }
        match answer.rcode {
            rcode::NOERROR if self.is_rebind(flight, &answer) => self.finish_rebind(now, flight, out),
            rcode::NOERROR | rcode::NXDOMAIN => self.finish(now, flight, &answer, out),
            rcode::FORMERR | rcode::NOTIMP | rcode::BADVERS
                if answer.opt.is_none() && self.flights.flight(flight).edns =>
            {
                // RFC 6891 §7: it may be the OPT record that it does not understand.
                let first = self.group(flight).first;
                let this = self.flights.flight_mut(flight);
                this.edns = false;
                this.cursor = u32::from(endpoint - first);
                self.attempt(now, flight, out);
            }
            _ => self.weigh_error(now, flight, &answer, out),
        }
        true
    }

    /// An upstream answered with an error: another may know better; if none is left to ask, this is the answer.
    pub(super) fn weigh_error(
        &mut self,
        now: Instant,
        flight: u32,
        answer: &Answer<'_>,
        out: &mut impl Outbox,
    ) {
        let untried = self.flights.flight(flight).tries < u32::from(self.group(flight).len);
        if untried && self.flights.flight(flight).tries < self.attempts_max {
            self.flights.flight_mut(flight).rcode = Some(answer.rcode);
            self.attempt(now, flight, out);
        } else if self.flights.has_attempts(flight) {
            self.flights.flight_mut(flight).rcode = Some(answer.rcode);
        } else {
            self.finish(now, flight, answer, out);
        }
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
        self.counters.unexpected += 1;
        if self.roles[slot.endpoint().index()].1 == Carrier::Datagram && exchange.note_unexpected() {
            self.counters.rotated += 1;
            self.engine.handle_goodbye(now, slot);
        }
        None
    }

    pub(super) fn finish(&mut self, now: Instant, flight: u32, answer: &Answer<'_>, out: &mut impl Outbox) {
        let this = self.flights.flight(flight);
        let began = this.deadline - self.query_timeout;
        self.latency.record_duration(now.saturating_duration_since(began));
        // What is not kept is of no interest here: the reply goes out all the same.
        let _ = self.cache.insert(&this.key, answer, now);
        let (udp_size, counters) = (self.udp_size, &mut self.counters);
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, udp_size);
            out.reply(&waiter.client, |buffer| {
                count_reply(counters, write_fresh(buffer, answer, &asked, &terms));
            });
        }
        self.end(now, flight);
    }

    /// Tells everybody who waits that it did not work, and why.
    pub(super) fn fail(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let this = self.flights.flight(flight);
        let failure = this.failure.unwrap_or(Cause::Timeout);
        let code = this.rcode.filter(|code| *code <= 15).unwrap_or(rcode::SERVFAIL);
        let mut waiters = 0;
        while let Some(waiter) = self.flights.pop_waiter(flight) {
            waiters += 1;
            let asked = waiter.asked();
            let terms = terms(&waiter.client, &asked, self.udp_size);
            let error = explain(failure);
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
        while let Some(state) = self.flights.pop_attempt(flight) {
            self.let_go(now, state, None);
        }
        self.timers.cancel(flight);
        self.flights.end(flight);
    }
}

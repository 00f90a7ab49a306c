//! What is tried for a question: which endpoint is asked next, over what, and when it is given up.

use forebay_core::{Acquired, Cause, Instant, Lease, Outcome, Refusal, SlotId};

use super::config::{Carrier, Strategy};
use super::cookies;
use super::errors::ede;
use super::exchange::Settled;
use super::flight::{Attempt, AttemptState};
use super::letters::spell;
use super::{Client, Forwarder, Group, Outbox};
use crate::wire::{
    ExtendedError, HEADER_LEN, MESSAGE_LEN_MAX, QUERY_BLOCK, Query, QuestionKey, UpstreamQuery, option, pad,
    rcode, write_query,
};

/// The keep-alive option without a time-out (RFC 7828 §3.1).
const KEEPALIVE: [u8; 4] = [0, option::TCP_KEEPALIVE as u8, 0, 0];

/// Time-outs in a row, with no answer between, after which a stream is taken for dead.
const SILENT_MAX: u32 = 3;

/// Whether this machine can make no connection at all, as when it is off-line: then nobody is made to wait for the next
/// try. Ports, descriptors and memory are another matter: they come back while others are served.
pub(super) const fn has_no_way(cause: Cause) -> bool {
    matches!(cause, Cause::Route | Cause::Address | Cause::Permission | Cause::Internal)
}

impl Forwarder {
    pub(super) fn miss(&mut self, now: Instant, client: Client, query: &Query<'_>, out: &mut impl Outbox) {
        let flight = self.flights.find(&self.key);
        if flight.is_none() && self.answer_known(now, &client, query, out)
            || self.answer_stale(now, flight, &client, query, out)
        {
            return;
        }
        if self.is_overloaded() {
            self.counters.failed_overload += 1;
            let text = if self.draining { "shutting down" } else { "too many queries waiting" };
            let error = ExtendedError { code: ede::NOT_READY, text: text.as_bytes() };
            self.reply_error(&client, &query.asked, rcode::SERVFAIL, Some(error), out);
            return;
        }
        if let Some(flight) = flight {
            self.counters.coalesced += 1;
            self.flights.add_waiter(flight, client, query);
            self.arm_stale(now, flight, out);
            return;
        }
        if self.has_failed(now) {
            if !self.reply_stale(now, &client, query, out) {
                self.reply_remembered(&client, &query.asked, out);
            }
            return;
        }
        self.counters.misses += 1;
        let flight = self.begin_flight(now);
        self.flights.add_waiter(flight, client, query);
        self.arm_stale(now, flight, out);
        self.launch(now, flight, out);
        self.process(now, out);
    }

    /// Whether no more clients may wait.
    pub(super) fn is_overloaded(&self) -> bool {
        self.flights.waiting() >= self.waiting_max || self.draining
    }

    /// Begins a flight for the question of `self.key`.
    pub(super) fn begin_flight(&mut self, now: Instant) -> u32 {
        let upstream = self.front.route_of(self.key.name()).unwrap_or(0);
        let flight = self.flights.begin(&self.key, upstream, now + self.query_timeout);
        let (cursor, failed) = (self.first_endpoint(upstream), self.failures.recall(now, &self.key));
        let this = self.flights.flight_mut(flight);
        (this.cursor, this.failed) = (cursor, failed);
        flight
    }

    /// Whether every endpoint that could know has failed the question at hand a moment ago.
    pub(super) fn has_failed(&mut self, now: Instant) -> bool {
        let failed = self.failures.recall(now, &self.key);
        if failed == 0 {
            return false;
        }
        let upstream = self.front.route_of(self.key.name()).unwrap_or(0);
        failed == self.everybody(upstream)
    }

    /// The upstream that a flight goes to.
    pub(super) fn group(&self, flight: u32) -> &Group {
        &self.upstreams[usize::from(self.flights.flight(flight).upstream)]
    }

    /// Asks for the first time: whom, and how many at once, is the strategy's choice.
    pub(super) fn launch(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let company = self.company(flight);
        self.begin(now, flight, out);
        for _ in 0..company.others {
            self.begin(now, flight, out);
        }
        if company.stalest
            && let Some(place) = self.stalest_endpoint(now, flight)
        {
            self.begin_at(now, flight, place, out);
        }
        self.carry_on(now, flight, out);
    }

    /// Begins one more attempt at the next endpoint that lets it; fails the flight when there is no hope left.
    pub(super) fn attempt(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        if self.flights.flight(flight).probe.is_some() {
            self.give_up_probe(now, flight);
            return;
        }
        self.begin(now, flight, out);
        self.carry_on(now, flight, out);
    }

    /// The same, at the endpoint that was asked just now, unless it does not let it.
    pub(super) fn attempt_again(&mut self, now: Instant, flight: u32, endpoint: u16, out: &mut impl Outbox) {
        if self.flights.flight(flight).probe.is_some() {
            self.give_up_probe(now, flight);
            return;
        }
        let place = u32::from(endpoint - self.group(flight).first);
        if !self.begin_at(now, flight, place, out) {
            self.begin(now, flight, out);
        }
        self.carry_on(now, flight, out);
    }

    /// Something may have begun: says when to look again, or ends the flight if nothing is out.
    fn carry_on(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        if self.flights.has_attempts(flight) {
            self.set_timer(flight);
        } else {
            self.fail(now, flight, out);
        }
    }

    /// Begins an attempt at the next endpoint that lets it. Returns whether there was one.
    pub(super) fn begin(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) -> bool {
        let mut refused = 0;
        while let Some(place) = self.next_endpoint(now, flight, refused) {
            if self.begin_at(now, flight, place, out) {
                return true;
            }
            refused |= 1 << place;
        }
        false
    }

    /// Begins an attempt at this endpoint, by its place in the upstream. Returns whether it lets it, and attempts are left.
    fn begin_at(&mut self, now: Instant, flight: u32, place: u32, out: &mut impl Outbox) -> bool {
        let Group { first, strategy, .. } = *self.group(flight);
        let endpoint = first + place as u16;
        let in_time = self.flights.busy(flight, first) != 0;
        let this = self.flights.flight_mut(flight);
        if this.tries >= self.attempts_max {
            return false;
        }
        this.asked |= 1 << place;
        let (stream, deadline) = (this.stream, this.deadline);
        if self.habits_learnt > 0 {
            self.forget_habits(now);
        }
        let id = self.engine_endpoint(endpoint, stream || self.is_guarded(now, endpoint));
        if now < self.cut_off_until
            && let Some(cause) = self.engine.hindrance(now, id).filter(|cause| has_no_way(*cause))
        {
            self.flights.flight_mut(flight).failure = Some(cause);
            return false;
        }
        match self.engine.acquire(now, id, deadline) {
            Acquired::Lease(lease) => {
                let attempt = self.flights.add_attempt(now, flight, endpoint, AttemptState::Vacant);
                if !self.send(now, attempt, lease, out) {
                    return false;
                }
            }
            Acquired::Wait(ticket) => {
                let attempt = self.flights.add_attempt(now, flight, endpoint, AttemptState::Line(ticket));
                self.remember_ticket(ticket, attempt);
            }
            Acquired::Refused(refusal) => {
                let last = match refusal {
                    Refusal::BreakerOpen { last, .. } | Refusal::Backoff { last, .. } => {
                        last.or_else(|| self.engine.last_failure(id))
                    }
                    _ => None,
                };
                self.flights.flight_mut(flight).failure = Some(last.unwrap_or(Cause::Limit));
                return false;
            }
        }
        let this = self.flights.flight_mut(flight);
        this.tries += 1;
        self.counters.retries += u64::from(this.tries > 1);
        self.counters.raced += u64::from(in_time);
        if strategy == Strategy::Racing {
            let estimate = &self.endpoints[usize::from(endpoint)].latency;
            this.next_start = now + estimate.head_start(&self.choosing);
        }
        true
    }

    /// An attempt came to nothing, and not by time-out: begins another.
    pub(super) fn try_again(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let this = self.flights.flight_mut(flight);
        // A connection that had worked and was closed meanwhile does not count against the attempts, once.
        if this.replays == 1 && this.failure.is_none() {
            this.tries = this.tries.saturating_sub(1);
        }
        self.attempt(now, flight, out);
    }

    /// Notes that an endpoint failed a flight: once more, and it is not asked again; not at all, if `for_good`.
    pub(super) fn strike(&mut self, now: Instant, flight: u32, endpoint: u16, for_good: bool) {
        let bit = 1 << (endpoint - self.group(flight).first);
        let this = self.flights.flight_mut(flight);
        if for_good || this.struck & bit != 0 {
            this.failed |= bit;
        }
        this.struck |= bit;
        self.endpoints[usize::from(endpoint)].latency.observe(now, self.attempt_timeout);
    }

    /// Lets a flight ask this endpoint again as if it had not.
    pub(super) fn forget_asked(&mut self, flight: u32, endpoint: u16) {
        let bit = 1 << (endpoint - self.group(flight).first);
        self.flights.flight_mut(flight).asked &= !bit;
    }

    /// The engine has granted a connection to an attempt in line.
    pub(super) fn granted(&mut self, now: Instant, attempt: u32, lease: Lease, out: &mut impl Outbox) {
        let flight = self.flights.attempt(attempt).flight;
        if self.send(now, attempt, lease, out) {
            self.set_timer(flight);
        } else {
            self.try_again(now, flight, out);
        }
    }

    /// Sends the flight's question on a connection. Returns whether the connection is still there; if not, the attempt
    /// is none any more.
    pub(super) fn send(&mut self, now: Instant, attempt: u32, lease: Lease, out: &mut impl Outbox) -> bool {
        let slot = lease.slot();
        let carrier = self.carrier(slot);
        let Some(id) = self.exchanges.book(slot, attempt, carrier, &mut self.ids) else {
            // The shell closed the connection before the engine's grant was taken: nothing was sent.
            self.flights.remove_attempt(attempt);
            self.engine.release(now, lease, Outcome::Unused);
            return false;
        };
        let endpoint = self.flights.attempt(attempt).endpoint;
        let letters = self.choose_letters(now, endpoint, carrier);
        let mut cookie = [0; cookies::OPTION_MAX];
        let cookie_len = self.write_cookie(slot, carrier, &mut cookie);
        let this = self.flights.attempt_mut(attempt);
        this.letters = letters;
        (this.began, this.late, this.state) = (now, false, AttemptState::Sent { lease, id });
        self.counters.transmits += 1;
        let this = self.flights.flight(self.flights.attempt(attempt).flight);
        let flags = this.key.flags();
        let query = UpstreamQuery {
            id,
            question: this.key.question(),
            rd: flags & QuestionKey::RD != 0,
            cd: flags & QuestionKey::CD != 0,
            dnssec_ok: flags & QuestionKey::DO != 0,
            udp_size: this.edns.then_some(self.udp_size),
            // RFC 7828 §3.2.1: it asks how long the connection may stand; over UDP it must not be there.
            options: if carrier == Carrier::Stream { &KEEPALIVE } else { &cookie[..cookie_len] },
        };
        let is_encrypted = self.endpoints[usize::from(endpoint)].is_encrypted;
        // Without an OPT record there is no place for padding.
        let is_padded = is_encrypted && carrier == Carrier::Stream && query.udp_size.is_some();
        let name_len = this.key.name().len();
        let mut spelled = 0;
        out.transmit(slot, |buffer| {
            let base = buffer.len();
            let name = base + HEADER_LEN;
            write_query(buffer, &query);
            if letters != 0 {
                spelled = spell(&mut buffer[name..name + name_len], letters);
            }
            if is_padded {
                pad(buffer, base, base + HEADER_LEN + query.question.len(), QUERY_BLOCK, MESSAGE_LEN_MAX);
            }
        });
        if letters != 0 {
            self.note_letters(endpoint, spelled);
        }
        if self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.is_worn_out()) {
            self.engine.handle_goodbye(now, slot);
        }
        true
    }

    /// Wakes the flight at its deadline, when an attempt's time is up, or when a head start is over.
    pub(super) fn set_timer(&mut self, flight: u32) {
        let this = self.flights.flight(flight);
        let mut at = this.deadline.min(this.next_start);
        if this.probe.is_some() {
            self.timers.set(flight, at);
            return;
        }
        for attempt in self.flights.attempts(flight) {
            let attempt = self.flights.attempt(attempt);
            if !attempt.late {
                at = at.min(attempt.began + self.attempt_timeout);
            }
        }
        self.timers.set(flight, at);
    }

    /// A flight's time has come, or a turn of the wheel is over.
    pub(super) fn handle_due(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let late = self.note_late(now, flight);
        let this = self.flights.flight_mut(flight);
        if now >= this.deadline {
            self.fail(now, flight, out);
            return;
        }
        let is_over = now >= this.next_start;
        if is_over {
            this.next_start = Instant::MAX;
        }
        for _ in 0..late.max(u32::from(is_over)) {
            self.begin(now, flight, out);
        }
        self.carry_on(now, flight, out);
    }

    /// Ends one attempt with this outcome.
    pub(super) fn drop_attempt(&mut self, now: Instant, attempt: u32, outcome: Outcome) {
        self.let_go(now, attempt, Some(outcome));
    }

    /// Gives back what an attempt held. Without an outcome, it was let go: the loser of a race is no failure, but one
    /// whose time was up is. Its answer may still come, and is known then.
    pub(super) fn let_go(&mut self, now: Instant, attempt: u32, outcome: Option<Outcome>) {
        let Attempt { flight, began, late, .. } = *self.flights.attempt(attempt);
        match self.flights.remove_attempt(attempt) {
            AttemptState::Vacant => {}
            AttemptState::Line(ticket) => {
                self.engine.cancel(now, ticket);
            }
            AttemptState::Sent { lease, id } => {
                let slot = lease.slot();
                let answered = matches!(outcome, Some(Outcome::Good | Outcome::Failed(Cause::Protocol)));
                let carrier = self.carrier(slot);
                self.exchanges.free(slot, id, carrier, answered);
                if outcome.is_none()
                    && let Some(exchange) = self.exchanges.get_mut(slot)
                {
                    let key = &self.flights.flight(flight).key;
                    let (len, flags, hash) = (key.question().len() as u16, key.flags(), key.hash());
                    exchange.settle(Settled { id, len, flags, hash, at: began });
                }
                if self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.suspect && exchange.is_idle())
                {
                    // It answered none of them.
                    self.engine.handle_goodbye(now, slot);
                }
                // The silence of a probe has been told when its time was up.
                let failed = late && !lease.is_probe() && self.blames_silence(slot);
                let unanswered = if failed { Outcome::Failed(Cause::Timeout) } else { Outcome::Unused };
                self.engine.release(now, lease, outcome.unwrap_or(unanswered));
            }
        }
    }

    /// Whether silence on a connection says something of the upstream. A stream that had answered may have died on the
    /// way: what that says, the next one tells.
    fn blames_silence(&mut self, slot: SlotId) -> bool {
        self.carrier(slot) == Carrier::Datagram
            || self.exchanges.get_mut(slot).is_none_or(|exchange| exchange.answers == 0)
    }

    /// An attempt was not answered in time: what that says of its endpoint and its connection. Returns whether it had
    /// been sent at all.
    pub(super) fn blame_silence(&mut self, now: Instant, attempt: u32) -> bool {
        let attempt = self.flights.attempt(attempt);
        let AttemptState::Sent { lease, .. } = &attempt.state else { return false };
        let (slot, began) = (lease.slot(), attempt.began);
        // Others are judged when their questions end: their answers may still come, and a burst of late ones is no
        // broken upstream. The probe's is what everybody waits for.
        if lease.is_probe() {
            self.engine.handle_late(now, lease, Cause::Timeout);
        }
        self.endpoints[usize::from(attempt.endpoint)].latency.observe(now, self.attempt_timeout);
        let is_stream = self.carrier(slot) == Carrier::Stream;
        if let Some(exchange) = self.exchanges.get_mut(slot) {
            exchange.silent += 1;
            if exchange.silent == SILENT_MAX && is_stream {
                self.engine.handle_goodbye(now, slot);
            }
        }
        if is_stream {
            self.suspect(now, slot, began);
        }
        true
    }

    /// Notes which attempts of a flight have not been answered in time: on the flight, on their endpoints, and on their
    /// connections; streams that have answered nothing for long are given up. Returns how many are late since now.
    fn note_late(&mut self, now: Instant, flight: u32) -> u32 {
        let (mut newly, mut asked) = (0, false);
        let mut next = self.flights.first_attempt(flight);
        while let Some(at) = next {
            next = self.flights.next_attempt(at);
            let attempt = self.flights.attempt_mut(at);
            let is_sent = matches!(attempt.state, AttemptState::Sent { .. });
            asked |= is_sent;
            if attempt.late || now < attempt.began + self.attempt_timeout {
                continue;
            }
            attempt.late = true;
            newly += 1;
            self.blame_silence(now, at);
        }
        // Who only stood in line has heard nothing of any upstream: the limit was ours.
        let this = self.flights.flight_mut(flight);
        if newly > 0 || now >= this.deadline {
            this.failure = if asked { Some(Cause::Timeout) } else { this.failure.or(Some(Cause::Limit)) };
        }
        newly
    }
}

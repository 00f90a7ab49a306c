//! What is tried for a question: which endpoint is asked next, over what, and when it is given up.

use forebay_core::{Acquired, Cause, EndpointId, Instant, Lease, Outcome};

use super::config::{Carrier, Strategy};
use super::errors::ede;
use super::flight::AttemptState;
use super::{Client, Forwarder, Group, Outbox};
use crate::wire::{ExtendedError, Query, QuestionKey, UpstreamQuery, rcode, write_query};

/// Time-outs in a row, with no answer between, after which a stream is taken for dead.
const SILENT_MAX: u32 = 3;

impl Forwarder {
    pub(super) fn miss(&mut self, now: Instant, client: Client, query: &Query<'_>, out: &mut impl Outbox) {
        if self.flights.waiting() >= self.waiting_max || self.draining {
            self.counters.failed_overload += 1;
            let text = if self.draining { "shutting down" } else { "too many queries waiting" };
            let error = ExtendedError { code: ede::NOT_READY, text: text.as_bytes() };
            self.reply_error(&client, &query.asked, rcode::SERVFAIL, Some(error), out);
            return;
        }
        if let Some(flight) = self.flights.find(&self.key) {
            self.counters.coalesced += 1;
            self.flights.add_waiter(flight, client, query);
            return;
        }
        self.counters.misses += 1;
        let upstream = self.upstream_of_key();
        let flight = self.flights.begin(&self.key, upstream, now + self.query_timeout);
        self.flights.add_waiter(flight, client, query);
        self.flights.flight_mut(flight).cursor = self.first_endpoint(now, upstream);
        self.attempt(now, flight, out);
        self.process(now, out);
    }

    /// Which upstream a question goes to: the longest suffix of its name that has a route.
    fn upstream_of_key(&mut self) -> u16 {
        self.front.route_of(self.key.name()).unwrap_or(0)
    }

    /// Where in the order of an upstream's endpoints a question begins.
    fn first_endpoint(&mut self, now: Instant, upstream: u16) -> u32 {
        let group = &mut self.upstreams[usize::from(upstream)];
        let n = u32::from(group.len);
        match group.strategy {
            _ if n == 1 => 0,
            Strategy::Sequential => 0,
            Strategy::RoundRobin => {
                group.turn = (group.turn + 1) % n;
                group.turn
            }
            Strategy::Random => self.chance.below(n),
            Strategy::LeastInflight => {
                let first = group.first;
                let load = |at: &u32| {
                    let id = self.engine_endpoint(first + *at as u16, false);
                    (!self.engine.is_available(now, id), self.engine.in_use(id))
                };
                (0..n).min_by_key(load).unwrap_or(0)
            }
        }
    }

    /// The upstream that a flight goes to.
    pub(super) fn group(&self, flight: u32) -> &Group {
        &self.upstreams[usize::from(self.flights.flight(flight).upstream)]
    }

    fn engine_endpoint(&self, endpoint: u16, stream: bool) -> EndpointId {
        let address = &self.endpoints[usize::from(endpoint)];
        match address.datagram {
            Some(datagram) if !stream => datagram,
            _ => address.stream,
        }
    }

    /// Begins one more attempt at the next endpoint that lets it; fails the flight when there is no hope left.
    pub(super) fn attempt(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let Group { first, len, .. } = *self.group(flight);
        let n = u32::from(len);
        for _ in 0..n {
            let this = self.flights.flight_mut(flight);
            if this.tries >= self.attempts_max {
                break;
            }
            let (stream, deadline) = (this.stream, this.deadline);
            let endpoint = first + (this.cursor % n) as u16;
            this.cursor = this.cursor.wrapping_add(1) % n;
            if self.flights.stands_in_line(flight, endpoint) {
                continue;
            }
            let this = self.flights.flight_mut(flight);
            this.tries += 1;
            let retry = this.tries > 1;
            let id = self.engine_endpoint(endpoint, stream);
            match self.engine.acquire(now, id, deadline) {
                Acquired::Lease(lease) => {
                    self.counters.retries += u64::from(retry);
                    let attempt = self.flights.add_attempt(flight, endpoint, AttemptState::Vacant);
                    self.transmit(now, attempt, lease, out);
                    return;
                }
                Acquired::Wait(ticket) => {
                    self.counters.retries += u64::from(retry);
                    let attempt = self.flights.add_attempt(flight, endpoint, AttemptState::Line(ticket));
                    self.remember_ticket(ticket, attempt);
                    self.set_timer(now, flight);
                    return;
                }
                Acquired::Refused(refusal) => {
                    let cause = self.engine.last_failure(id);
                    let this = self.flights.flight_mut(flight);
                    this.failure = Some(match refusal {
                        forebay_core::Refusal::BreakerOpen { last, .. }
                        | forebay_core::Refusal::Backoff { last, .. } => {
                            last.or(cause).unwrap_or(Cause::Limit)
                        }
                        _ => Cause::Limit,
                    });
                }
            }
        }
        if self.flights.has_attempts(flight) {
            self.set_timer(now, flight);
        } else {
            self.fail(now, flight, out);
        }
    }

    /// An attempt came to nothing, and not by time-out: begins another unless one is still out.
    pub(super) fn try_again(&mut self, now: Instant, flight: u32, out: &mut impl Outbox) {
        let n = u32::from(self.group(flight).len);
        let this = self.flights.flight_mut(flight);
        // A connection that had worked and was closed meanwhile does not count against the attempts, once.
        if this.replays == 1 && this.failure.is_none() {
            this.tries = this.tries.saturating_sub(1);
            this.cursor = (this.cursor + n - 1) % n;
        }
        self.attempt(now, flight, out);
    }

    /// Sends the flight's question on a connection.
    pub(super) fn transmit(&mut self, now: Instant, attempt: u32, lease: Lease, out: &mut impl Outbox) {
        let flight = self.flights.attempt(attempt).flight;
        let slot = lease.slot();
        let Some(id) = self.exchanges.book(slot, attempt, &mut self.ids) else {
            // The shell closed the connection before the engine's grant was taken: nothing was sent.
            self.flights.remove_attempt(attempt);
            self.engine.release(now, lease, Outcome::Unused);
            self.try_again(now, flight, out);
            return;
        };
        self.flights.attempt_mut(attempt).state = AttemptState::Sent { lease, id, at: now, late: false };
        self.counters.transmits += 1;
        let this = self.flights.flight(flight);
        let flags = this.key.flags();
        let query = UpstreamQuery {
            id,
            question: this.key.question(),
            rd: flags & QuestionKey::RD != 0,
            cd: flags & QuestionKey::CD != 0,
            dnssec_ok: flags & QuestionKey::DO != 0,
            udp_size: this.edns.then_some(self.udp_size),
        };
        out.transmit(slot, |buffer| write_query(buffer, &query));
        self.set_timer(now, flight);
    }

    pub(super) fn set_timer(&mut self, now: Instant, flight: u32) {
        let deadline = self.flights.flight(flight).deadline;
        self.timers.set(flight, deadline.min(now + self.attempt_timeout));
    }
    /// Ends one attempt with this outcome.
    pub(super) fn drop_attempt(&mut self, now: Instant, attempt: u32, outcome: Outcome) {
        let state = self.flights.remove_attempt(attempt);
        self.let_go(now, state, Some(outcome));
    }

    /// Gives back what an attempt held. Without an outcome, it was let go: the loser of a race is no failure, but one
    /// whose time was up is.
    pub(super) fn let_go(&mut self, now: Instant, state: AttemptState, outcome: Option<Outcome>) {
        match state {
            AttemptState::Vacant => {}
            AttemptState::Line(ticket) => {
                self.engine.cancel(now, ticket);
            }
            AttemptState::Sent { lease, id, late, .. } => {
                let slot = lease.slot();
                self.exchanges.free(slot, id);
                let silent = self.exchanges.get_mut(slot).map_or(0, |exchange| exchange.silent);
                let stream = self.carrier(slot) == Carrier::Stream;
                let outcome = outcome.unwrap_or(match late {
                    true if stream && silent >= SILENT_MAX => Outcome::Broken(Cause::Timeout),
                    true => Outcome::Failed(Cause::Timeout),
                    false => Outcome::Unused,
                });
                self.engine.release(now, lease, outcome);
            }
        }
    }

    /// The attempts of a flight have not been answered in time: notes it on the flight and on their connections, and
    /// gives up streams that have answered nothing for long.
    pub(super) fn note_silence(&mut self, now: Instant, flight: u32) {
        let mut dead = None;
        let mut asked = false;
        self.flights.for_each_sent(flight, |slot, late| {
            asked = true;
            if late {
                return;
            }
            if let Some(exchange) = self.exchanges.get_mut(slot) {
                exchange.silent += 1;
                if exchange.silent == SILENT_MAX {
                    dead = Some(slot);
                }
            }
        });
        // Who only stood in line has heard nothing of any upstream: the limit was ours.
        let this = self.flights.flight_mut(flight);
        this.failure = if asked { Some(Cause::Timeout) } else { this.failure.or(Some(Cause::Limit)) };
        if let Some(slot) = dead
            && self.carrier(slot) == Carrier::Stream
        {
            self.engine.handle_goodbye(now, slot);
        }
    }
}

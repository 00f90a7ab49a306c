//! News that only connections with streams of their own bring, one for each query, as those of HTTP/2: the peer says
//! how many there may be, that it will take no more, or ends one without an answer.

use forebay_core::{Blame, Cause, Instant, Outcome, SlotId};

use super::{Forwarder, Outbox};

impl Forwarder {
    /// The peer changed how many queries a connection carries at once. Those beyond it that are out already stay.
    pub fn handle_capacity(&mut self, now: Instant, slot: SlotId, capacity: u32, out: &mut impl Outbox) {
        self.engine.handle_capacity(now, slot, capacity);
        self.process(now, out);
    }

    /// The peer said that it takes no more queries on this connection; those that are out may still be answered.
    pub fn handle_goodbye(&mut self, now: Instant, slot: SlotId, out: &mut impl Outbox) {
        self.engine.handle_goodbye(now, slot);
        self.process(now, out);
    }

    /// The query with this id will not be answered on this connection, which otherwise is as it was.
    ///
    /// With a cause, the query failed, and another endpoint is asked. Without, the peer never looked at it: it is asked
    /// anew, and nobody is to blame (RFC 9113 §8.7). A query that nobody waits for any more changes nothing.
    pub fn handle_unanswered(
        &mut self,
        now: Instant,
        slot: SlotId,
        id: u16,
        cause: Option<Cause>,
        out: &mut impl Outbox,
    ) {
        let Some(exchange) = self.exchanges.get_mut(slot) else { return };
        let Some(attempt) = exchange.find(id) else {
            exchange.forget(id);
            return;
        };
        let (flight, endpoint) = {
            let attempt = self.flights.attempt(attempt);
            (attempt.flight, attempt.endpoint)
        };
        match cause {
            Some(cause) => {
                self.drop_attempt(now, attempt, Outcome::Failed(cause));
                self.flights.flight_mut(flight).failure = Some(cause);
                if cause.blame() == Blame::Upstream {
                    self.strike(now, flight, endpoint, false);
                }
            }
            None => {
                self.drop_attempt(now, attempt, Outcome::Unused);
                self.forget_asked(flight, endpoint);
                self.counters.replays += 1;
                self.flights.flight_mut(flight).replays += 1;
            }
        }
        if let Some(exchange) = self.exchanges.get_mut(slot) {
            exchange.forget(id);
        }
        self.try_again(now, flight, out);
        self.process(now, out);
    }
}

//! Guessed answers over datagrams: noticed, made useless, and told of (RFC 5452 §9).
//!
//! ```text
//! stray answer ──▶ its id was used on this socket? ──yes──▶ late or doubled: counted, harmless
//!                        │ no
//!                        ▼
//!                  a guess ──▶ `near_misses_max` of them on one socket: a burst
//!                                 ├─▶ every socket of the endpoint is replaced, at most once a second
//!                                 ├─▶ answers on a socket that saw so many are not believed: asked again over a stream
//!                                 ├─▶ queries to the endpoint go over streams until it has been quiet for 10 s
//!                                 └─▶ a notice for the log, once a burst
//! ```
//!
//! Where no stream can be made, queries stay on datagrams: their ids and ports are as hard to guess as ever.

use std::time::Duration;

use forebay_core::{Instant, Outcome, SlotId};

use super::notices::Notice;
use super::{Carrier, Forwarder, Outbox};

/// How long an endpoint is spoken to over streams after the last burst.
const QUIET: Duration = Duration::from_secs(10);
/// Sockets are replaced this often at most: a flood must not make us open them without end.
const ROTATE_PAUSE: Duration = Duration::from_secs(1);
/// A burst that lasts is told of again after so long.
const WARN_PAUSE: Duration = Duration::from_secs(60);

/// What is known about guessing at one endpoint.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Watch {
    /// Queries go over streams until then.
    until: Instant,
    rotate_at: Instant,
    warn_at: Instant,
    /// Guesses since the last notice.
    guesses: u64,
}

impl Forwarder {
    /// An answer came that nobody waits for.
    #[cold]
    pub(super) fn note_stray(&mut self, now: Instant, slot: SlotId, bytes: &[u8], id_fits: bool) {
        let Some(exchange) = self.exchanges.get_mut(slot) else { return };
        let id = bytes.first_chunk::<2>().map(|id| u16::from_be_bytes(*id));
        if !id_fits && id.is_some_and(|id| exchange.is_late(id)) {
            self.counters.late += 1;
            return;
        }
        self.counters.unexpected += 1;
        self.note_guess(now, slot);
    }

    /// Somebody may have sent a guess to this socket.
    pub(super) fn note_guess(&mut self, now: Instant, slot: SlotId) {
        let max = self.safety.near_misses_max;
        let (endpoint, carrier) = self.roles[slot.endpoint().index()];
        let Some(exchange) = self.exchanges.get_mut(slot).filter(|_| carrier == Carrier::Datagram && max > 0)
        else {
            return;
        };
        exchange.guesses += 1;
        let burst = exchange.guesses.is_multiple_of(max);
        let watch = &mut self.endpoints[usize::from(endpoint)].watch;
        watch.guesses += 1;
        if burst {
            self.note_burst(now, slot, endpoint);
        }
    }

    fn note_burst(&mut self, now: Instant, slot: SlotId, endpoint: u16) {
        let watch = &mut self.endpoints[usize::from(endpoint)].watch;
        let begins = now >= watch.until;
        watch.until = now + QUIET;
        if begins || now >= watch.warn_at {
            watch.warn_at = now + WARN_PAUSE;
            let guesses = std::mem::take(&mut watch.guesses);
            self.counters.bursts += u64::from(begins);
            self.notices.push(endpoint, Notice::Guessing { guesses });
        }
        if now >= watch.rotate_at {
            watch.rotate_at = now + ROTATE_PAUSE;
            self.rotate(now, slot);
        }
    }

    /// Replaces every socket of an endpoint by one with another port (RFC 5452 §9.3).
    fn rotate(&mut self, now: Instant, slot: SlotId) {
        let sockets: Vec<SlotId> = self.exchanges.open_at(slot.endpoint()).map(|(slot, _)| slot).collect();
        self.counters.rotated += sockets.len() as u64;
        for slot in sockets {
            self.engine.handle_goodbye(now, slot);
        }
    }

    /// Whether queries to this endpoint go over streams, because somebody is guessing at the answers.
    pub(super) fn is_guarded(&self, now: Instant, endpoint: u16) -> bool {
        let address = &self.endpoints[usize::from(endpoint)];
        now < address.watch.until && self.engine.is_available(now, address.stream)
    }

    /// Whether an answer that fits is not to be believed, since it may have been guessed.
    pub(super) fn is_doubtful(&mut self, now: Instant, slot: SlotId) -> bool {
        let max = self.safety.near_misses_max;
        let guesses = self.exchanges.get_mut(slot).map_or(0, |exchange| exchange.guesses);
        max > 0 && guesses >= max && {
            let (endpoint, carrier) = self.roles[slot.endpoint().index()];
            let stream = self.endpoints[usize::from(endpoint)].stream;
            carrier == Carrier::Datagram && self.engine.is_available(now, stream)
        }
    }

    /// Asks again over a stream of the same endpoint, where nobody who does not see the query can answer it.
    pub(super) fn ask_over_stream(&mut self, now: Instant, attempt: u32, out: &mut impl Outbox) {
        let (flight, endpoint) = {
            let attempt = self.flights.attempt(attempt);
            (attempt.flight, attempt.endpoint)
        };
        self.counters.distrusted += 1;
        self.drop_attempt(now, attempt, Outcome::Unused);
        self.flights.flight_mut(flight).stream = true;
        self.attempt_again(now, flight, endpoint, out);
    }

    /// Something about an answer over datagrams is wrong, that need not be anybody's ill will: asks again over a stream of
    /// the same endpoint, or else once more.
    pub(super) fn ask_otherwise(&mut self, now: Instant, attempt: u32, out: &mut impl Outbox) {
        let (flight, endpoint) = {
            let attempt = self.flights.attempt(attempt);
            (attempt.flight, attempt.endpoint)
        };
        if self.engine.is_available(now, self.endpoints[usize::from(endpoint)].stream) {
            return self.ask_over_stream(now, attempt, out);
        }
        self.drop_attempt(now, attempt, Outcome::Unused);
        self.forget_asked(flight, endpoint);
        self.attempt_again(now, flight, endpoint, out);
    }

    /// How hard an answer over datagrams is to guess, in bits: endpoint by its place among all, and the logarithm of
    /// how many pairs of socket and unused id the next query's is one of. That is for somebody who knows the ports of
    /// all sockets; who does not has those to find too. With random letter case, the letters of a usual name count too;
    /// with cookies that are known, their 64 bits.
    pub fn entropy(&self) -> impl Iterator<Item = (u16, f64)> + '_ {
        self.endpoints.iter().enumerate().filter_map(|(index, address)| {
            let datagram = address.datagram?;
            let places: u64 =
                self.exchanges.open_at(datagram).map(|(_, exchange)| u64::from(exchange.ids_left())).sum();
            let endpoint = index as u16;
            let bits =
                (places.max(1) as f64).log2() + self.letter_bits(endpoint) + self.cookie_bits(endpoint);
            Some((endpoint, bits))
        })
    }
}

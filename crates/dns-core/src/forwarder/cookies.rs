//! Cookies towards upstreams (RFC 7873): 64 bits that somebody who does not see our queries cannot know.
//!
//! Each query over UDP carries our cookie for that endpoint and address of ours, and the endpoint's own once it is known.
//! From then on an answer without our cookie is not believed: it is asked for again over a stream. An endpoint that has
//! stopped giving cookies is noticed, and starts anew.

use std::hash::Hasher;
use std::net::IpAddr;

use forebay_core::{Instant, SlotId};
use siphasher::sip::SipHasher24;

use super::notices::Notice;
use super::{Carrier, Forwarder, Outbox};
use crate::wire::{Answer, option, rcode};

/// Length of our cookie (RFC 7873 §4), in bytes.
const CLIENT_LEN: usize = 8;
/// Bounds of theirs (RFC 7873 §4), in bytes.
const SERVER_LEN: std::ops::RangeInclusive<usize> = 8..=32;
/// The option with the longest cookies, in bytes.
pub(super) const OPTION_MAX: usize = 4 + CLIENT_LEN + 32;
/// Answers in a row without a cookie after which an endpoint is taken to give none any more.
const LOST_MAX: u32 = 8;

/// What one endpoint's cookie is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cookie {
    /// Ours, for which it gave its own.
    client: [u8; CLIENT_LEN],
    server: [u8; 32],
    /// The length of its own; 0 as long as none is known.
    len: usize,
    /// Answers without a cookie since the last with one.
    lost: u32,
}

impl Cookie {
    fn is_known(&self, client: [u8; CLIENT_LEN]) -> bool {
        self.len > 0 && self.client == client
    }
}

impl Forwarder {
    /// Says from which address of ours a socket sends, before its dial is told to have ended. Our cookie depends on it, so
    /// that nobody can follow us from network to network by it (RFC 9018 §3). Without, it depends on the endpoint alone.
    pub fn note_local(&mut self, slot: SlotId, local: IpAddr) {
        if self.safety.cookies {
            self.locals.retain(|(other, _)| *other != slot);
            self.locals.push((slot, local));
        }
    }

    /// Our cookie on a connection that was made just now: a keyed hash of both addresses (RFC 9018 §3).
    pub(super) fn choose_cookie(&mut self, slot: SlotId) {
        if !self.safety.cookies {
            return;
        }
        let at = self.locals.iter().position(|(other, _)| *other == slot);
        let local = at.map(|at| self.locals.swap_remove(at).1);
        let (endpoint, _) = self.roles[slot.endpoint().index()];
        let mut hasher = SipHasher24::new_with_key(&self.cookie_key);
        match local {
            Some(IpAddr::V4(address)) => hasher.write(&address.octets()),
            Some(IpAddr::V6(address)) => hasher.write(&address.octets()),
            None => {}
        }
        hasher.write(self.endpoints[usize::from(endpoint)].name.as_bytes());
        let cookie = hasher.finish().to_le_bytes();
        if let Some(exchange) = self.exchanges.get_mut(slot) {
            exchange.cookie = cookie;
        }
    }

    /// Writes the option for a query on this connection. Returns its length, 0 for none.
    pub(super) fn write_cookie(
        &mut self,
        slot: SlotId,
        carrier: Carrier,
        out: &mut [u8; OPTION_MAX],
    ) -> usize {
        if !self.safety.cookies || carrier == Carrier::Stream {
            return 0;
        }
        let Some(client) = self.exchanges.get_mut(slot).map(|exchange| exchange.cookie) else { return 0 };
        let (endpoint, _) = self.roles[slot.endpoint().index()];
        let known = &self.endpoints[usize::from(endpoint)].cookie;
        let server = if known.is_known(client) { &known.server[..known.len] } else { &[] };
        let len = CLIENT_LEN + server.len();
        out[..2].copy_from_slice(&option::COOKIE.to_be_bytes());
        out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        out[4..4 + CLIENT_LEN].copy_from_slice(&client);
        out[4 + CLIENT_LEN..4 + len].copy_from_slice(server);
        4 + len
    }

    /// Whether an answer that fits may be taken, as far as cookies say. If not, what is to be done is done.
    pub(super) fn is_cookie_right(
        &mut self,
        now: Instant,
        slot: SlotId,
        attempt: u32,
        answer: &Answer<'_>,
        out: &mut impl Outbox,
    ) -> bool {
        if !self.safety.cookies || self.carrier(slot) == Carrier::Stream {
            return true;
        }
        let Some(client) = self.exchanges.get_mut(slot).map(|exchange| exchange.cookie) else { return true };
        let (flight, endpoint) = {
            let attempt = self.flights.attempt(attempt);
            (attempt.flight, attempt.endpoint)
        };
        if !self.flights.flight(flight).edns {
            return true;
        }
        let known = &mut self.endpoints[usize::from(endpoint)].cookie;
        match answer.opt.as_ref().and_then(|opt| opt.edns.options.cookie()) {
            Some(data) if data.get(..CLIENT_LEN) != Some(&client) => {
                // RFC 7873 §5.3: not ours, so it is not an answer to us. The right one may still come.
                self.counters.cookies_wrong += 1;
                self.note_guess(now, slot);
                return false;
            }
            Some(data) if SERVER_LEN.contains(&(data.len() - CLIENT_LEN)) => {
                let server = &data[CLIENT_LEN..];
                known.client = client;
                known.server[..server.len()].copy_from_slice(server);
                (known.len, known.lost) = (server.len(), 0);
            }
            // Ours alone, or with something that is no cookie: as if it gave none (RFC 7873 §5.3).
            _ if known.is_known(client) => {
                known.lost += 1;
                if known.lost >= LOST_MAX {
                    *known = Cookie::default();
                    self.notices.push(endpoint, Notice::CookiesLost);
                }
                self.counters.cookies_missing += 1;
                self.ask_otherwise(now, attempt, out);
                return false;
            }
            _ => {}
        }
        if answer.rcode == rcode::BADCOOKIE {
            // RFC 7873 §5.3: once more with the cookie that came, then over TCP.
            let again = !std::mem::replace(&mut self.flights.flight_mut(flight).cookie_refused, true);
            self.counters.cookies_refused += 1;
            if again {
                self.drop_attempt(now, attempt, forebay_core::Outcome::Good);
                self.forget_asked(flight, endpoint);
                self.attempt_again(now, flight, endpoint, out);
            } else {
                self.ask_otherwise(now, attempt, out);
            }
            return false;
        }
        true
    }

    /// What cookies add to the entropy of an endpoint's answers, in bits.
    pub(super) fn cookie_bits(&self, endpoint: u16) -> f64 {
        if self.safety.cookies && self.endpoints[usize::from(endpoint)].cookie.len > 0 { 64.0 } else { 0.0 }
    }
}

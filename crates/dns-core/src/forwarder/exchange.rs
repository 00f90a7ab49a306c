//! Which question went out under which id on which connection.

use forebay_core::{Instant, SlotId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Unexpected answers on one connection after which it is given up: somebody may be guessing (RFC 5452 §9.3 allows
/// a resolver to abandon a port on which it sees forgeries).
const UNEXPECTED_MAX: u32 = 16;

/// What is out on one connection.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    generation: u32,
    open: bool,
    /// Message id and attempt. Short: a connection's capacity at most.
    entries: Vec<(u16, u32)>,
    /// Whether anything was ever answered on it.
    pub(crate) answered: bool,
    /// Time-outs since the last answer.
    pub(crate) silent: u32,
    unexpected: u32,
    /// Queries whose answers nobody waits for any more, in no order.
    settled: Vec<Settled>,
    /// Which of them is the next to be forgotten.
    oldest: usize,
}

/// A query that was let go before its answer came: what is needed to tell that answer from a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) id: u16,
    /// The length of its question, in bytes.
    pub(crate) len: u16,
    /// The flags of its key, and the key's hash.
    pub(crate) flags: u8,
    pub(crate) hash: u64,
    /// When it was sent.
    pub(crate) at: Instant,
}

/// Queries let go that one connection remembers: those on the way to an upstream a tenth of a second away at a thousand
/// queries per second on one connection.
const SETTLED_MAX: usize = 128;

impl Exchange {
    /// Notes a query whose answer may still come. When there are too many, another is forgotten.
    pub(crate) fn settle(&mut self, query: Settled) {
        if self.settled.len() < SETTLED_MAX {
            self.settled.push(query);
            return;
        }
        self.settled[self.oldest] = query;
        self.oldest = (self.oldest + 1) % SETTLED_MAX;
    }

    /// The query let go under this id.
    pub(crate) fn settled(&self, id: u16) -> Option<Settled> {
        self.settled.iter().find(|query| query.id == id).copied()
    }

    /// Its answer came: another is not expected.
    pub(crate) fn forget_settled(&mut self, id: u16) {
        if let Some(place) = self.settled.iter().position(|query| query.id == id) {
            self.settled.swap_remove(place);
            self.oldest = 0;
        }
    }

    pub(crate) fn find(&self, id: u16) -> Option<u32> {
        self.entries.iter().find(|(other, _)| *other == id).map(|(_, attempt)| *attempt)
    }

    /// Notes an answer that fits nothing. Returns whether the connection has seen too many of them.
    pub(crate) fn note_unexpected(&mut self) -> bool {
        self.unexpected += 1;
        self.unexpected == UNEXPECTED_MAX
    }
}

/// The connections of every endpoint, by the engine's slots.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    endpoints: Vec<Vec<Exchange>>,
}

impl Exchanges {
    /// A connection was made.
    pub(crate) fn open(&mut self, slot: SlotId) {
        let endpoint = slot.endpoint().index();
        if self.endpoints.len() <= endpoint {
            self.endpoints.resize_with(endpoint + 1, Vec::new);
        }
        let table = &mut self.endpoints[endpoint];
        if table.len() <= slot.index() {
            table.resize_with(slot.index() + 1, Exchange::default);
        }
        let exchange = &mut table[slot.index()];
        debug_assert!(exchange.entries.is_empty());
        exchange.entries.clear();
        exchange.settled.clear();
        *exchange = Exchange {
            generation: slot.generation(),
            open: true,
            entries: std::mem::take(&mut exchange.entries),
            settled: std::mem::take(&mut exchange.settled),
            ..Exchange::default()
        };
    }

    /// A connection is gone. Returns whether it was there.
    pub(crate) fn close(&mut self, slot: SlotId) -> bool {
        let Some(exchange) = self.get_mut(slot) else { return false };
        exchange.open = false;
        exchange.entries.clear();
        true
    }

    pub(crate) fn get_mut(&mut self, slot: SlotId) -> Option<&mut Exchange> {
        let exchange = self.endpoints.get_mut(slot.endpoint().index())?.get_mut(slot.index())?;
        (exchange.open && exchange.generation == slot.generation()).then_some(exchange)
    }

    /// Finds an id that no query on this connection has, and books it for `attempt`.
    pub(crate) fn book(&mut self, slot: SlotId, attempt: u32, rng: &mut ChaCha8Rng) -> Option<u16> {
        let exchange = self.get_mut(slot)?;
        // A connection carries far fewer queries than there are ids; the engine's capacity sees to that.
        loop {
            let id = rng.next_u32() as u16;
            if exchange.find(id).is_none() && exchange.settled(id).is_none() {
                exchange.entries.push((id, attempt));
                return Some(id);
            }
        }
    }

    /// Frees an id.
    pub(crate) fn free(&mut self, slot: SlotId, id: u16) {
        if let Some(exchange) = self.get_mut(slot)
            && let Some(position) = exchange.entries.iter().position(|(other, _)| *other == id)
        {
            exchange.entries.swap_remove(position);
        }
    }

    /// Takes any attempt that is out on a connection.
    pub(crate) fn first(&self, slot: SlotId) -> Option<u32> {
        let exchange = self.endpoints.get(slot.endpoint().index())?.get(slot.index())?;
        if !exchange.open || exchange.generation != slot.generation() {
            return None;
        }
        exchange.entries.first().map(|(_, attempt)| *attempt)
    }
}

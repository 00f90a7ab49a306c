//! Which question went out under which id on which connection.

use forebay_core::{EndpointId, Instant, SlotId};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

use super::Carrier;

/// Ids that one datagram socket uses before it is replaced, whatever `uses_max` says: half of those there are, so that
/// an unused one is found in two tries and costs a guesser no more than one bit.
const IDS_MAX: u32 = 1 << 15;

/// Ids of one stream whose answers may still come, after which it is replaced: it answers next to nothing.
const ABANDONED_MAX: usize = 1024;

/// What is out on one connection.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Which connection it is, while it is open.
    slot: Option<SlotId>,
    /// Message id and attempt. Short: a connection's capacity at most.
    entries: Vec<(u16, u32)>,
    /// When it was made.
    pub(crate) opened: Instant,
    /// When the last answer came on it.
    pub(crate) heard: Instant,
    /// How many came.
    pub(crate) answers: u64,
    /// Whether a query on it was not answered in time, and nothing since. Streams only.
    pub(crate) suspect: bool,
    /// Our cookie on it (RFC 7873).
    pub(crate) cookie: [u8; 8],
    /// Time-outs since the last answer.
    pub(crate) silent: u32,
    /// Queries whose answers nobody waits for any more, in no order.
    settled: Vec<Settled>,
    /// Which of them is the next to be forgotten.
    oldest: usize,
    /// Answers that fit nothing, and are not late either: somebody may be guessing. Datagrams only.
    pub(crate) guesses: u32,
    /// Datagrams may be doubled and delayed without end. So no id is used twice on one socket: then no old answer can
    /// be taken for a new one.
    used: UsedIds,
    /// The same on a stream, where each answer comes once: ids whose answers have not come.
    abandoned: Vec<u16>,
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
            self.forget(id);
        }
    }

    pub(crate) fn find(&self, id: u16) -> Option<u32> {
        self.entries.iter().find(|(other, _)| *other == id).map(|(_, attempt)| *attempt)
    }

    /// Whether nothing is out on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.entries.is_empty()
    }

    /// The attempts that are out on it.
    pub(crate) fn attempts(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|(_, attempt)| *attempt)
    }

    /// Whether an answer with this id, for which nobody waits, is an old one: late, or here for the second time.
    pub(crate) fn is_late(&mut self, id: u16) -> bool {
        self.forget(id) || self.used.contains(id)
    }

    /// No answer with this id will come any more. Returns whether one might have.
    pub(crate) fn forget(&mut self, id: u16) -> bool {
        let found = self.abandoned.iter().position(|other| *other == id);
        found.map(|at| self.abandoned.swap_remove(at)).is_some()
    }

    /// How many ids the next query's is one of.
    pub(crate) const fn ids_left(&self) -> u32 {
        (1 << 16) - self.used.len
    }

    /// Whether too few ids are left for it to take another query.
    pub(crate) const fn is_worn_out(&self) -> bool {
        self.used.len >= IDS_MAX || self.abandoned.len() >= ABANDONED_MAX
    }
}

/// A set of message ids.
#[derive(Debug, Default)]
struct UsedIds {
    len: u32,
    /// The only one, as long as there is but one: a socket for one query needs no more.
    first: u16,
    bits: Option<Box<[u64; 1024]>>,
}

impl UsedIds {
    /// Returns whether it was not in the set.
    fn insert(&mut self, id: u16) -> bool {
        if self.len == 0 {
            (self.len, self.first) = (1, id);
            return true;
        }
        if self.contains(id) {
            return false;
        }
        if self.len == 1 {
            let first = self.first;
            let bits = self.bits.get_or_insert_with(|| Box::new([0; 1024]));
            bits.fill(0);
            bits[usize::from(first >> 6)] |= 1 << (first & 63);
        }
        if let Some(bits) = &mut self.bits {
            bits[usize::from(id >> 6)] |= 1 << (id & 63);
        }
        self.len += 1;
        true
    }

    fn contains(&self, id: u16) -> bool {
        match &self.bits {
            Some(bits) if self.len > 1 => bits[usize::from(id >> 6)] & (1 << (id & 63)) != 0,
            _ => self.len == 1 && self.first == id,
        }
    }
}

/// The connections of every endpoint, by the engine's slots.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    endpoints: Vec<Vec<Exchange>>,
}

impl Exchanges {
    /// A connection was made.
    pub(crate) fn open(&mut self, now: Instant, slot: SlotId) {
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
        exchange.abandoned.clear();
        *exchange = Exchange {
            slot: Some(slot),
            opened: now,
            entries: std::mem::take(&mut exchange.entries),
            settled: std::mem::take(&mut exchange.settled),
            abandoned: std::mem::take(&mut exchange.abandoned),
            used: UsedIds { bits: exchange.used.bits.take(), ..UsedIds::default() },
            ..Exchange::default()
        };
    }

    /// A connection is gone. Returns whether it was there.
    pub(crate) fn close(&mut self, slot: SlotId) -> bool {
        let Some(exchange) = self.get_mut(slot) else { return false };
        exchange.slot = None;
        exchange.entries.clear();
        true
    }

    pub(crate) fn get_mut(&mut self, slot: SlotId) -> Option<&mut Exchange> {
        let exchange = self.endpoints.get_mut(slot.endpoint().index())?.get_mut(slot.index())?;
        (exchange.slot == Some(slot)).then_some(exchange)
    }

    /// Finds an id for a query on this connection that no other can be mistaken for, and books it for `attempt`.
    pub(crate) fn book(
        &mut self,
        slot: SlotId,
        attempt: u32,
        carrier: Carrier,
        rng: &mut ChaCha8Rng,
    ) -> Option<u16> {
        let exchange = self.get_mut(slot)?;
        // Most ids are free: a connection is replaced before half of them have been used, and the engine's capacity
        // keeps a stream far below that.
        loop {
            let id = rng.next_u32() as u16;
            let free = match carrier {
                Carrier::Datagram => {
                    exchange.used.insert(id) || exchange.used.len == 1 << 16 && exchange.find(id).is_none()
                }
                Carrier::Stream => exchange.find(id).is_none() && !exchange.abandoned.contains(&id),
            };
            if free {
                exchange.entries.push((id, attempt));
                return Some(id);
            }
        }
    }

    /// Frees an id. On a stream, unless its answer has come, it is kept for that.
    pub(crate) fn free(&mut self, slot: SlotId, id: u16, carrier: Carrier, answered: bool) {
        if let Some(exchange) = self.get_mut(slot)
            && let Some(position) = exchange.entries.iter().position(|(other, _)| *other == id)
        {
            exchange.entries.swap_remove(position);
            if carrier == Carrier::Stream && !answered {
                exchange.abandoned.push(id);
            }
        }
    }

    /// The connections to one of the engine's endpoints that are open, by their indexes.
    pub(crate) fn open_at(&self, endpoint: EndpointId) -> impl Iterator<Item = (SlotId, &Exchange)> {
        let table = self.endpoints.get(endpoint.index()).map_or(&[][..], Vec::as_slice);
        table.iter().filter_map(|exchange| exchange.slot.map(|slot| (slot, exchange)))
    }

    /// Takes any attempt that is out on a connection.
    pub(crate) fn first(&self, slot: SlotId) -> Option<u32> {
        let exchange = self.endpoints.get(slot.endpoint().index())?.get(slot.index())?;
        exchange.entries.first().filter(|_| exchange.slot == Some(slot)).map(|(_, attempt)| *attempt)
    }
}

//! Queries that are on their way: found by id, and given up in the order in which they were sent.

use std::time::Duration;

use forebay_core::Instant;

const NONE: u32 = u32::MAX;

/// One query on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    /// When it should have left; latency counts from here.
    pub(super) due: Instant,
    /// Hash of its question section.
    pub(super) question: u64,
    /// Length of its question section in bytes.
    pub(super) question_length: u16,
}

/// The places of one worker's clients. Nothing is allocated once made.
pub(super) struct Slots {
    slots: Vec<Slot>,
    clients: Vec<ClientSlots>,
    /// Queries on their way, oldest first, as a list through `slots`.
    oldest: u32,
    newest: u32,
    in_flight: usize,
}

struct Slot {
    sent: Sent,
    left_at: Instant,
    client: u32,
    id: u16,
    busy: bool,
    before: u32,
    after: u32,
}

struct ClientSlots {
    first: u32,
    count: u32,
    /// An id is a slot's number in so many low bits, and how often it was used above.
    bits: u32,
    free: Vec<u16>,
}

impl Slots {
    /// Makes `counts[n]` places for client `n`.
    pub(super) fn new(counts: impl Iterator<Item = usize>) -> Self {
        let mut slots = Vec::new();
        let mut clients = Vec::new();
        let empty = Sent { due: Instant::ZERO, question: 0, question_length: 0 };
        for (client, count) in counts.enumerate() {
            let first = slots.len() as u32;
            slots.extend((0..count).map(|index| Slot {
                sent: empty,
                left_at: Instant::ZERO,
                client: client as u32,
                id: index as u16,
                busy: false,
                before: NONE,
                after: NONE,
            }));
            let bits = count.next_power_of_two().trailing_zeros();
            clients.push(ClientSlots {
                first,
                count: count as u32,
                bits,
                free: (0..count as u16).rev().collect(),
            });
        }
        Self { slots, clients, oldest: NONE, newest: NONE, in_flight: 0 }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// How many more queries `client` can have on their way.
    pub(super) fn free(&self, client: usize) -> usize {
        self.clients[client].free.len()
    }

    /// Takes a place, and returns the id of the query in it. The place is filled by [`fill`](Self::fill).
    ///
    /// # Panics
    ///
    /// When the client has no place.
    pub(super) fn take(&mut self, client: usize, now: Instant) -> u16 {
        let places = &mut self.clients[client];
        let index = places.free.pop().expect("a free place");
        let number = places.first + u32::from(index);
        let step = 1u16.checked_shl(places.bits).unwrap_or(0);
        let newest = self.newest;
        let slot = &mut self.slots[number as usize];
        slot.id = slot.id.wrapping_add(step);
        slot.busy = true;
        slot.left_at = now;
        slot.before = newest;
        slot.after = NONE;
        let id = slot.id;
        match newest {
            NONE => self.oldest = number,
            _ => self.slots[newest as usize].after = number,
        }
        self.newest = number;
        self.in_flight += 1;
        id
    }

    pub(super) fn fill(&mut self, client: usize, id: u16, sent: Sent) {
        let number = self.number(client, id).expect("a place that was taken");
        self.slots[number as usize].sent = sent;
    }

    /// Returns the query that `id` is the id of, if it is on its way.
    pub(super) fn find(&self, client: usize, id: u16) -> Option<Sent> {
        self.number(client, id).map(|number| self.slots[number as usize].sent)
    }

    /// Frees the place of a query.
    pub(super) fn release(&mut self, client: usize, id: u16) {
        if let Some(number) = self.number(client, id) {
            self.free_slot(number);
        }
    }

    /// When the oldest query was sent.
    pub(super) fn oldest_left_at(&self) -> Option<Instant> {
        (self.oldest != NONE).then(|| self.slots[self.oldest as usize].left_at)
    }

    /// Gives up the oldest query if it was sent `timeout` before `now`, and returns its client.
    pub(super) fn expire(&mut self, now: Instant, timeout: Duration) -> Option<usize> {
        if self.oldest_left_at()? + timeout > now {
            return None;
        }
        let number = self.oldest;
        let client = self.slots[number as usize].client as usize;
        self.free_slot(number);
        Some(client)
    }

    /// Gives up all queries of `client`, and returns how many those were.
    pub(super) fn release_all(&mut self, client: usize) -> usize {
        let ClientSlots { first, count, .. } = self.clients[client];
        let busy: Vec<u32> =
            (first..first + count).filter(|&number| self.slots[number as usize].busy).collect();
        for number in &busy {
            self.free_slot(*number);
        }
        busy.len()
    }

    fn number(&self, client: usize, id: u16) -> Option<u32> {
        let places = &self.clients[client];
        let index = u32::from(id) & ((1 << places.bits) - 1);
        let number = places.first + index;
        let slot = (index < places.count).then(|| &self.slots[number as usize])?;
        (slot.busy && slot.id == id).then_some(number)
    }

    fn free_slot(&mut self, number: u32) {
        let slot = &mut self.slots[number as usize];
        slot.busy = false;
        let (client, before, after) = (slot.client as usize, slot.before, slot.after);
        match before {
            NONE => self.oldest = after,
            _ => self.slots[before as usize].after = after,
        }
        match after {
            NONE => self.newest = before,
            _ => self.slots[after as usize].before = before,
        }
        let places = &mut self.clients[client];
        places.free.push((number - places.first) as u16);
        self.in_flight -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: Sent = Sent { due: Instant::ZERO, question: 7, question_length: 9 };

    #[test]
    fn id_of_an_earlier_use_finds_nothing() {
        let mut slots = Slots::new([3].into_iter());
        let id = slots.take(0, Instant::ZERO);
        slots.fill(0, id, SENT);
        assert_eq!(slots.find(0, id).expect("on its way").question, 7);
        slots.release(0, id);
        assert!(slots.find(0, id).is_none());
        let again = slots.take(0, Instant::ZERO);
        assert_ne!(again, id);
        assert!(slots.find(0, id).is_none());
        assert!(slots.find(0, 3).is_none(), "there are three places, not four");
    }

    #[test]
    fn ids_of_one_client_are_distinct_while_on_their_way() {
        for count in [1, 2, 5, 64, 1000, 32768] {
            let mut slots = Slots::new([count].into_iter());
            for _ in 0..3 {
                let mut ids: Vec<_> = (0..count).map(|_| slots.take(0, Instant::ZERO)).collect();
                assert_eq!(slots.free(0), 0);
                ids.sort_unstable();
                ids.dedup();
                assert_eq!(ids.len(), count);
                assert!(ids.iter().all(|&id| slots.find(0, id).is_some()));
                assert_eq!(slots.release_all(0), count);
                assert_eq!((slots.in_flight(), slots.free(0)), (0, count));
            }
        }
    }

    #[test]
    fn queries_expire_in_the_order_in_which_they_left() {
        let second = Duration::from_secs(1);
        let at = |seconds: u64| Instant::ZERO + second * seconds as u32;
        let mut slots = Slots::new([2, 2].into_iter());
        let first = slots.take(0, at(1));
        slots.take(1, at(2));
        let third = slots.take(0, at(3));
        slots.take(1, at(4));
        slots.release(0, first);
        assert_eq!(slots.expire(at(2), second), None);
        assert_eq!(slots.expire(at(4), second), Some(1));
        slots.release(0, third);
        assert_eq!(slots.expire(at(4), second), None);
        assert_eq!(slots.oldest_left_at(), Some(at(4)));
        assert_eq!(slots.expire(at(5), second), Some(1));
        assert_eq!((slots.expire(at(9), second), slots.in_flight()), (None, 0));
    }
}

//! Waiters: first in, first out, each with a deadline.

use crate::Instant;
use crate::breaker::Probe;
use crate::engine::EndpointId;
use crate::list::List;

/// Names one waiter of one endpoint. Never reused while anybody could still hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId {
    pub(crate) endpoint: EndpointId,
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl TicketId {
    /// Returns the endpoint in whose line the ticket stands.
    pub const fn endpoint(self) -> EndpointId {
        self.endpoint
    }

    /// Returns a small number, unique among the tickets of one endpoint that wait now: fit to index a table.
    pub const fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) generation: u32,
    pub(crate) enqueued: Instant,
    pub(crate) deadline: Instant,
    pub(crate) probe: Probe,
}

/// The line of one endpoint.
#[derive(Debug)]
pub(crate) struct Tickets {
    table: Vec<Ticket>,
    free: Vec<u32>,
    line: List,
    /// No ticket expires before this. A lower bound: it is made exact only when it passes, so that a ticket that is
    /// served in time costs nothing here.
    expiry: Instant,
}

impl Tickets {
    pub(crate) const fn new() -> Self {
        Self { table: Vec::new(), free: Vec::new(), line: List::new(), expiry: Instant::MAX }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.line.len()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.line.is_empty()
    }

    pub(crate) const fn expiry(&self) -> Instant {
        self.expiry
    }

    /// Returns since when the oldest ticket has waited.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.line.front().map(|index| self.table[index as usize].enqueued)
    }

    pub(crate) fn push(&mut self, now: Instant, deadline: Instant, probe: Probe) -> (u32, u32) {
        let index = self.free.pop().unwrap_or_else(|| {
            self.table.push(Ticket { generation: 0, enqueued: now, deadline, probe });
            self.table.len() as u32 - 1
        });
        let ticket = &mut self.table[index as usize];
        *ticket = Ticket { generation: ticket.generation, enqueued: now, deadline, probe };
        self.line.push_back(index);
        self.expiry = self.expiry.min(deadline);
        (index, ticket.generation)
    }

    /// Takes the oldest ticket out.
    pub(crate) fn pop(&mut self) -> Option<(u32, Ticket)> {
        let index = self.line.front()?;
        Some((index, self.take(index)))
    }

    /// Takes a given ticket out, if it still waits.
    pub(crate) fn remove(&mut self, index: u32, generation: u32) -> Option<Ticket> {
        let ticket = self.table.get(index as usize)?;
        (ticket.generation == generation && self.line.contains(index)).then(|| self.take(index))
    }

    /// Takes out one ticket whose deadline has passed. When there is none left, [`Tickets::expiry`] is exact again.
    pub(crate) fn pop_expired(&mut self, now: Instant) -> Option<(u32, Ticket)> {
        if now < self.expiry {
            return None;
        }
        let mut earliest = Instant::MAX;
        let mut found = None;
        for index in self.line.iter() {
            let deadline = self.table[index as usize].deadline;
            if deadline <= now {
                found = Some(index);
                break;
            }
            earliest = earliest.min(deadline);
        }
        match found {
            Some(index) => Some((index, self.take(index))),
            None => {
                self.expiry = earliest;
                None
            }
        }
    }

    /// Makes the oldest ticket the breaker's probe. Returns whether there is one.
    pub(crate) fn mark_front(&mut self, probe: Probe) -> bool {
        self.line.front().map(|index| self.table[index as usize].probe = probe).is_some()
    }

    fn take(&mut self, index: u32) -> Ticket {
        self.line.remove(index);
        self.free.push(index);
        let ticket = &mut self.table[index as usize];
        let taken = *ticket;
        ticket.generation = ticket.generation.wrapping_add(1);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u64) -> Instant {
        Instant::from_nanos(n)
    }

    #[test]
    fn the_oldest_comes_first_and_a_cancelled_one_never() {
        let mut tickets = Tickets::new();
        let (a, _) = tickets.push(at(0), at(100), Probe::NONE);
        let (b, b_generation) = tickets.push(at(1), at(50), Probe::NONE);
        let (c, _) = tickets.push(at(2), at(70), Probe::NONE);
        assert!(tickets.remove(b, b_generation).is_some());
        assert!(tickets.remove(b, b_generation).is_none());
        assert_eq!(tickets.pop().map(|(i, _)| i), Some(a));
        assert_eq!(tickets.pop().map(|(i, _)| i), Some(c));
        assert!(tickets.pop().is_none());
    }

    #[test]
    fn a_reused_place_does_not_answer_to_the_old_name() {
        let mut tickets = Tickets::new();
        let (a, old) = tickets.push(at(0), at(9), Probe::NONE);
        tickets.pop();
        let (b, new) = tickets.push(at(1), at(9), Probe::NONE);
        assert_eq!(a, b);
        assert!(tickets.remove(a, old).is_none());
        assert!(tickets.remove(b, new).is_some());
    }

    #[test]
    fn expired_tickets_leave_in_their_order_and_the_next_expiry_is_exact() {
        let mut tickets = Tickets::new();
        let (a, _) = tickets.push(at(0), at(30), Probe::NONE);
        tickets.push(at(0), at(90), Probe::NONE);
        let (c, _) = tickets.push(at(0), at(20), Probe::NONE);
        assert_eq!(tickets.expiry(), at(20));
        assert!(tickets.pop_expired(at(19)).is_none());
        assert_eq!(tickets.pop_expired(at(40)).map(|(i, _)| i), Some(a));
        assert_eq!(tickets.pop_expired(at(40)).map(|(i, _)| i), Some(c));
        assert!(tickets.pop_expired(at(40)).is_none());
        assert_eq!(tickets.expiry(), at(90));
    }
}

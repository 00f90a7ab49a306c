//! Forgetting on demand: one name, a subtree, or everything, some entries at a time.

use super::MessageCache;
use super::ring::Cursor;
use crate::wire::{HEADER_LEN, Name, Record, is_under, plain_name_end};

/// What is to be forgotten, and how far that has come.
///
/// An entry goes when its question is about such a name, or when its answer section has records of one: an answer that
/// leads there by an alias would keep it known.
#[derive(Debug, Clone)]
pub struct Flush {
    /// In lower case.
    name: Vec<u8>,
    subtree: bool,
    cursor: Cursor,
    flushed: u64,
}

impl Flush {
    /// Is to forget one name: every type of it, asked with whatever flags. `name` is in wire form.
    pub fn name(name: &[u8]) -> Self {
        Self { name: name.to_ascii_lowercase(), subtree: false, cursor: Cursor::default(), flushed: 0 }
    }

    /// Is to forget a name and all below it; below the root is everything.
    pub fn subtree(name: &[u8]) -> Self {
        Self { subtree: true, ..Self::name(name) }
    }

    /// How many entries have gone.
    pub const fn flushed(&self) -> u64 {
        self.flushed
    }

    fn fits(&self, name: &[u8]) -> bool {
        if self.subtree { is_under(name, &self.name) } else { name.eq_ignore_ascii_case(&self.name) }
    }

    fn mentions(&self, wire: &[u8]) -> bool {
        let Some(name_end) = plain_name_end(wire, HEADER_LEN) else { return false };
        if self.fits(&wire[HEADER_LEN..name_end]) {
            return true;
        }
        let mut at = name_end + 4;
        let answers = crate::wire::be16(wire, 6).unwrap_or_default();
        for _ in 0..answers {
            let Ok(record) = Record::read(wire, at) else { return false };
            // Most records are owned by the question's name, by way of a pointer to it.
            let is_asked = wire.get(at..at + 2) == Some(&[0xc0, HEADER_LEN as u8]);
            if !is_asked && Name::read(wire, at).is_some_and(|(owner, _)| self.fits(owner.as_bytes())) {
                return true;
            }
            at = record.end;
        }
        false
    }
}

impl MessageCache {
    /// Forgets what `flush` says, looking at no more than `entries_max` entries. Returns whether that is all; if not,
    /// it is to be called again. What was there at the first call is gone after the last, whatever comes between.
    pub fn flush_some(&mut self, flush: &mut Flush, entries_max: usize) -> bool {
        for _ in 0..entries_max {
            let Some(position) = self.ring.step(&mut flush.cursor) else { return true };
            let head = self.ring.head_at(position);
            if head.dead || !flush.mentions(self.ring.stored_at(position, &head).wire()) {
                continue;
            }
            if let Some((index, _)) = self.table.find(head.tag, |found| found == position) {
                self.give_up(index, position);
                flush.flushed += 1;
            }
        }
        false
    }
}

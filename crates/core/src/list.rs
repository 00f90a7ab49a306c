//! Two small index structures: a linked list that can remove from its middle, and a set that can pick at random.
//!
//! Both hold indices into somebody else's table, allocate only when that table grows, and do everything in O(1).

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Links {
    prev: u32,
    next: u32,
}

/// A doubly linked list of distinct indices.
#[derive(Debug)]
pub(crate) struct List {
    links: Vec<Links>,
    head: u32,
    tail: u32,
    len: u32,
}

/// Marks an index that is not in the list: linked to itself, which no member is.
const fn absent(index: u32) -> Links {
    Links { prev: index, next: index }
}

impl List {
    pub(crate) const fn new() -> Self {
        Self { links: Vec::new(), head: NONE, tail: NONE, len: 0 }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.links.get(index as usize).is_some_and(|l| l.prev != index)
    }

    pub(crate) fn push_front(&mut self, index: u32) {
        self.make_room(index);
        let head = self.head;
        self.links[index as usize] = Links { prev: NONE, next: head };
        match head {
            NONE => self.tail = index,
            old => self.links[old as usize].prev = index,
        }
        self.head = index;
        self.len += 1;
    }

    pub(crate) fn push_back(&mut self, index: u32) {
        self.make_room(index);
        let tail = self.tail;
        self.links[index as usize] = Links { prev: tail, next: NONE };
        match tail {
            NONE => self.head = index,
            old => self.links[old as usize].next = index,
        }
        self.tail = index;
        self.len += 1;
    }

    /// Takes an index out; does nothing when it is not in.
    pub(crate) fn remove(&mut self, index: u32) {
        if !self.contains(index) {
            return;
        }
        let Links { prev, next } = self.links[index as usize];
        match prev {
            NONE => self.head = next,
            before => self.links[before as usize].next = next,
        }
        match next {
            NONE => self.tail = prev,
            after => self.links[after as usize].prev = prev,
        }
        self.links[index as usize] = absent(index);
        self.len -= 1;
    }

    /// Iterates from the front.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let this = (at != NONE).then_some(at)?;
            at = self.links[this as usize].next;
            Some(this)
        })
    }

    fn make_room(&mut self, index: u32) {
        while self.links.len() <= index as usize {
            self.links.push(absent(self.links.len() as u32));
        }
        debug_assert!(!self.contains(index), "an index can be in a list only once");
    }
}

/// A set of distinct indices with O(1) access by position.
#[derive(Debug)]
pub(crate) struct Bag {
    items: Vec<u32>,
    position: Vec<u32>,
}

impl Bag {
    pub(crate) const fn new() -> Self {
        Self { items: Vec::new(), position: Vec::new() }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.items.len() as u32
    }

    pub(crate) fn at(&self, position: u32) -> u32 {
        self.items[position as usize]
    }

    pub(crate) fn contains(&self, index: u32) -> bool {
        self.position.get(index as usize).is_some_and(|&p| p != NONE)
    }

    pub(crate) fn insert(&mut self, index: u32) {
        if self.position.len() <= index as usize {
            self.position.resize(index as usize + 1, NONE);
        }
        debug_assert!(!self.contains(index), "an index can be in a bag only once");
        self.position[index as usize] = self.items.len() as u32;
        self.items.push(index);
    }

    /// Takes an index out; does nothing when it is not in.
    pub(crate) fn remove(&mut self, index: u32) {
        if !self.contains(index) {
            return;
        }
        let position = std::mem::replace(&mut self.position[index as usize], NONE);
        self.items.swap_remove(position as usize);
        if let Some(&moved) = self.items.get(position as usize) {
            self.position[moved as usize] = position;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_list_behaves_like_a_deque(steps in prop::collection::vec((0u8..3, 0u32..16), 0..200)) {
            let mut list = List::new();
            let mut model = VecDeque::new();
            for (what, index) in steps {
                match what {
                    0 if !model.contains(&index) => { list.push_back(index); model.push_back(index); }
                    1 if !model.contains(&index) => { list.push_front(index); model.push_front(index); }
                    _ => { list.remove(index); model.retain(|&i| i != index); }
                }
                prop_assert_eq!(list.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(list.front(), model.front().copied());
                prop_assert_eq!(list.len() as usize, model.len());
                prop_assert_eq!(list.contains(index), model.contains(&index));
            }
        }

        #[test]
        fn a_bag_behaves_like_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..16), 0..200)) {
            let mut bag = Bag::new();
            let mut model = std::collections::BTreeSet::new();
            for (insert, index) in steps {
                if insert && !model.contains(&index) {
                    bag.insert(index);
                    model.insert(index);
                } else {
                    bag.remove(index);
                    model.remove(&index);
                }
                let mut items: Vec<_> = (0..bag.len()).map(|p| bag.at(p)).collect();
                items.sort_unstable();
                prop_assert_eq!(items, model.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}

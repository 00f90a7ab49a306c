//! A table from names to whatever is known of them, found by the keyed hash that a walk over suffixes has made.

use hashbrown::HashTable;

#[derive(Clone, Debug)]
pub(crate) struct NameMap<V> {
    table: HashTable<Entry<V>>,
}

#[derive(Clone, Debug)]
struct Entry<V> {
    hash: u64,
    name: Box<[u8]>,
    value: V,
}

impl<V> NameMap<V> {
    pub(crate) const fn new() -> Self {
        Self { table: HashTable::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    #[inline]
    pub(crate) fn get(&self, hash: u64, name: &[u8]) -> Option<&V> {
        self.table.find(hash, |entry| entry.hash == hash && *entry.name == *name).map(|entry| &entry.value)
    }

    pub(crate) fn get_or_insert(&mut self, hash: u64, name: &[u8], value: impl FnOnce() -> V) -> &mut V {
        let same = |entry: &Entry<V>| entry.hash == hash && *entry.name == *name;
        let entry = self.table.entry(hash, same, |entry| entry.hash);
        let entry = entry.or_insert_with(|| Entry { hash, name: name.into(), value: value() });
        &mut entry.into_mut().value
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        self.table.iter().map(|entry| (&*entry.name, &entry.value))
    }
}

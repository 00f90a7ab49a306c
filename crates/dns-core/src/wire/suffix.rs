//! A name's suffixes and their hashes, in one walk: for whatever is looked up by "this name or one above it".

use super::HashSeed;

/// A name has at most 127 labels beside the root's.
const LABELS_MAX: usize = 128;

/// Where each suffix of a name begins, and its keyed hash. Meant to be reused: 1.2 KiB.
#[derive(Clone)]
pub(crate) struct Suffixes {
    starts: [u8; LABELS_MAX],
    hashes: [u64; LABELS_MAX],
    len: usize,
}

impl Suffixes {
    pub(crate) const fn new() -> Self {
        Self { starts: [0; LABELS_MAX], hashes: [0; LABELS_MAX], len: 0 }
    }

    /// Takes the suffixes of an uncompressed name in lower case, the longest first, which is the name itself; the root
    /// is not among them.
    pub(crate) fn fill(&mut self, name: &[u8], seed: &HashSeed) {
        self.len = label_starts(name, &mut self.starts);
        let mut hash = seed.empty_name();
        let places = self.starts.iter().zip(&mut self.hashes).take(self.len).rev();
        for (&start, place) in places {
            let start = usize::from(start);
            let len = name.get(start).copied().unwrap_or_default();
            let label = name.get(start..=start + usize::from(len)).unwrap_or_default();
            hash = seed.add_label(hash, label);
            *place = hash;
        }
    }

    /// The hash of the whole name, or of the root.
    pub(crate) fn whole(&self, seed: &HashSeed) -> u64 {
        self.hashes.first().filter(|_| self.len > 0).copied().unwrap_or_else(|| seed.empty_name())
    }

    /// Iterates over where each suffix begins in the name, and its hash; the longest first.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, u64)> + '_ {
        let pairs = self.starts.iter().zip(&self.hashes).take(self.len);
        pairs.map(|(start, hash)| (usize::from(*start), *hash))
    }
}

impl std::fmt::Debug for Suffixes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Suffixes").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Notes where each label of an uncompressed name begins, the root's apart. Returns how many there are.
pub(crate) fn label_starts(name: &[u8], starts: &mut [u8; LABELS_MAX]) -> usize {
    let (mut at, mut found) = (0, 0);
    while let Some(&len) = name.get(at).filter(|len| **len > 0)
        && let Some(place) = starts.get_mut(found)
    {
        *place = at as u8;
        found += 1;
        at += 1 + usize::from(len);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{name, seed};

    #[test]
    fn each_suffix_hashes_as_the_name_that_it_is() {
        let (mut long, mut short) = (Suffixes::new(), Suffixes::new());
        let wire = name("a.bb.a-label-beyond-eight-octets.example.org");
        long.fill(&wire, &seed());
        let starts: Vec<usize> = long.iter().map(|(start, _)| start).collect();
        assert_eq!(starts, [0, 2, 5, 33, 41]);
        for (start, hash) in long.iter() {
            short.fill(&wire[start..], &seed());
            assert_eq!(short.whole(&seed()), hash);
        }
        let mut hashes: Vec<u64> = long.iter().map(|(_, hash)| hash).collect();
        hashes.push(seed().empty_name());
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), 6);
    }

    #[test]
    fn labels_that_differ_in_one_octet_or_in_their_cut_differ() {
        let mut suffixes = Suffixes::new();
        let mut seen = std::collections::HashSet::new();
        let mut texts = vec![String::new(), "a.b".into(), "ab".into(), "aaaaaaaa".into(), "aaaaaaa.a".into()];
        for len in 1..=63 {
            for at in 0..len {
                let mut text = vec![b'a'; len];
                text[at] = b'b';
                texts.push(String::from_utf8(text).unwrap());
            }
        }
        for text in &texts {
            suffixes.fill(&name(text), &seed());
            assert!(seen.insert(suffixes.whole(&seed())) || text == "ab", "{text}");
        }
    }

    #[test]
    fn the_longest_name_fits_and_garbage_does_no_harm() {
        let mut suffixes = Suffixes::new();
        suffixes.fill(&name(&["a"; 127].join(".")), &seed());
        assert_eq!(suffixes.iter().count(), 127);
        for bytes in [&[][..], &[63], &[5, 1], &[1; 300]] {
            suffixes.fill(bytes, &seed());
        }
    }
}

//! What identifies a question: for the cache, for coalescing.

use super::{NAME_LEN_MAX, be16};

/// Room for the longest name and for the words that hashing reads past its end.
const BUFFER_LEN: usize = 272;

/// Bytes behind the name: type, class, flags.
const SUFFIX_LEN: usize = 5;

/// A secret that keeps others from choosing questions whose hashes collide.
///
/// One per process, from the system's randomness; handed in, since this crate has none.
#[derive(Clone, Copy)]
pub struct HashSeed {
    first: u64,
    second: u64,
}

impl HashSeed {
    /// Makes a seed of 16 random bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let both = u128::from_le_bytes(bytes);
        Self { first: both as u64, second: (both >> 64) as u64 }
    }
}

impl HashSeed {
    /// Hashes two words.
    #[inline]
    pub(crate) fn hash_words(&self, one: u64, other: u64) -> u64 {
        let hash = folded_multiply(one ^ self.first, other ^ self.second);
        folded_multiply(hash ^ self.second, self.first.rotate_left(29) ^ 1)
    }

    /// The hash of the root, to which labels are added from the right.
    #[inline]
    pub(crate) const fn empty_name(&self) -> u64 {
        self.second
    }

    /// The hash of a name that has one label more, with its length octet, than the one whose hash is given.
    #[inline]
    pub(crate) fn add_label(&self, mut hash: u64, label: &[u8]) -> u64 {
        let (words, rest) = label.as_chunks::<8>();
        for word in words {
            hash = folded_multiply(u64::from_le_bytes(*word) ^ self.first, hash ^ LABEL_SALT);
        }
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        // The length octet comes first, so that the zeros at the end are not taken for octets of the label.
        folded_multiply(u64::from_le_bytes(last) ^ self.first, hash.rotate_left(17) ^ self.second)
    }
}

/// Keeps the steps within a label from being those between labels.
const LABEL_SALT: u64 = 0x9e37_79b9_7f4a_7c15;

impl std::fmt::Debug for HashSeed {
    /// Keeps the secret out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HashSeed(secret)")
    }
}

/// A question in comparable form: lower-cased name, type, class, and the flags that change what
/// the answer is (RD, CD, DO).
///
/// Fixed in size and meant to be reused: [`fill`](Self::fill) overwrites it without clearing it.
/// Two keys are equal exactly when their [`as_bytes`](Self::as_bytes) are.
#[derive(Clone)]
pub struct QuestionKey {
    buffer: [u8; BUFFER_LEN],
    len: u16,
    hash: u64,
}

impl QuestionKey {
    /// The flag byte's bit for RD.
    pub const RD: u8 = 1;
    /// The flag byte's bit for CD: a validating upstream answers otherwise with it.
    pub const CD: u8 = 2;
    /// The flag byte's bit for DO: signatures are part of the answer.
    pub const DO: u8 = 4;

    /// A key of nothing, to be filled.
    pub fn empty() -> Self {
        Self { buffer: [0; BUFFER_LEN], len: SUFFIX_LEN as u16, hash: 0 }
    }

    /// Becomes the key of `question` (name, type and class as on the wire) asked with `flags`.
    ///
    /// Letters are folded as RFC 4343 §3 says: ASCII only. `question` comes from a scan, which
    /// has checked it; more than 255 octets of name are not kept.
    #[inline]
    pub fn fill(&mut self, question: &[u8], flags: u8, seed: &HashSeed) {
        let (name, kind) = question.split_last_chunk::<4>().unwrap_or((&[], &[0, 0, 0, 0]));
        let name = name.get(..NAME_LEN_MAX).unwrap_or(name);
        let len = name.len();
        self.buffer[..len].copy_from_slice(name);
        // The last word reads on past the name: what an earlier question left must not count.
        self.buffer[len..len + 16].fill(0);

        let mut hash = seed.second;
        for pair in self.buffer[..len.next_multiple_of(16)].as_chunks_mut::<16>().0 {
            let both = u128::from_le_bytes(*pair);
            // A length octet is at most 63 and no letter, so that labels need no telling apart.
            let (low, high) = (lower_case(both as u64), lower_case((both >> 64) as u64));
            *pair = (u128::from(low) | u128::from(high) << 64).to_le_bytes();
            hash = folded_multiply(low ^ seed.first, high ^ hash);
        }
        let suffix = u64::from(u32::from_be_bytes(*kind)) << 8 | u64::from(flags);
        // The name's length is in: 16 zero bytes more would be another hash.
        self.hash =
            folded_multiply(hash ^ suffix ^ (len as u64) << 48, seed.first.rotate_left(29) ^ seed.second)
                ^ hash;

        self.buffer[len..len + 4].copy_from_slice(kind);
        self.buffer[len + 4] = flags;
        self.len = (len + SUFFIX_LEN) as u16;
    }

    /// The key: lower-cased name, type, class, flag byte.
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[..usize::from(self.len)]
    }

    /// The question as it goes on the wire, lower-cased: name, type, class.
    #[inline]
    pub fn question(&self) -> &[u8] {
        &self.buffer[..usize::from(self.len) - 1]
    }

    /// The lower-cased name, root label included.
    pub fn name(&self) -> &[u8] {
        &self.buffer[..usize::from(self.len) - SUFFIX_LEN]
    }

    /// The type asked for.
    pub fn qtype(&self) -> u16 {
        be16(&self.buffer, usize::from(self.len) - SUFFIX_LEN).unwrap_or_default()
    }

    /// The class asked for.
    pub fn qclass(&self) -> u16 {
        be16(&self.buffer, usize::from(self.len) - 3).unwrap_or_default()
    }

    /// The flag byte: [`RD`](Self::RD), [`CD`](Self::CD), [`DO`](Self::DO).
    #[inline]
    pub fn flags(&self) -> u8 {
        self.buffer[usize::from(self.len) - 1]
    }

    /// The seeded hash of all of it.
    #[inline]
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

impl PartialEq for QuestionKey {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.as_bytes() == other.as_bytes()
    }
}

impl Eq for QuestionKey {}

impl std::hash::Hash for QuestionKey {
    /// Hands on the hash that is already there; use it with a hasher that keeps it.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl std::fmt::Debug for QuestionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuestionKey")
            .field("name", &self.name().escape_ascii().to_string())
            .field("qtype", &self.qtype())
            .field("qclass", &self.qclass())
            .field("flags", &self.flags())
            .finish()
    }
}

/// Lower-cases eight octets at once; those beyond ASCII stay.
#[inline]
fn lower_case(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low_bits = word & (0x7f * EACH);
    let from_a = low_bits + (0x80 - b'A' as u64) * EACH;
    let past_z = low_bits + (0x7f - b'Z' as u64) * EACH;
    let upper = !word & (from_a ^ past_z) & (0x80 * EACH);
    word | upper >> 2
}

/// Multiplies to 128 bits and folds the halves: each bit of the result depends on all.
#[inline]
fn folded_multiply(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ (product >> 64) as u64
}

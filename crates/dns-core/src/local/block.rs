//! A block list: millions of names in eight octets each.
//!
//! Kept are keyed 64-bit hashes, sorted, with a coarse index; a look takes one step for each label of the name. A name
//! that is on no list is taken for one that is with a chance of n·k / 2⁶⁴ (n names listed, k labels asked for): with ten
//! million names and four labels, once in 4·10¹¹ different names. The key is secret, so that nobody can look for one.

use std::fmt;
use std::net::IpAddr;

use super::{write_record, write_soa};
use crate::wire::{HashSeed, NameTextError, Suffixes, push_name, rcode, rtype};

/// Names that are blocked. Shared by all workers; another one takes its place when a file changes.
#[derive(Debug)]
pub struct BlockList {
    seed: HashSeed,
    blocked: Fingerprints,
    /// Names that are not blocked, with all below, whatever the lists say.
    allowed: Fingerprints,
}

/// Collects a block list.
#[derive(Debug)]
pub struct BlockListBuilder {
    seed: HashSeed,
    blocked: Vec<u64>,
    allowed: Vec<u64>,
    name: Vec<u8>,
    suffixes: Box<Suffixes>,
}

impl BlockListBuilder {
    /// Begins with nothing. `seed` must be that of the forwarders which will ask it.
    pub fn new(seed: HashSeed) -> Self {
        let suffixes = Box::new(Suffixes::new());
        Self { seed, blocked: Vec::new(), allowed: Vec::new(), name: Vec::new(), suffixes }
    }

    /// Adds what one line says:
    ///
    /// - `0.0.0.0 name…` (or `127.0.0.1`, `::`, `::1`), as in hosts files: exactly these names;
    /// - `name`, `*.name`, `.name` or `||name^`: the name and all below it;
    /// - `@@||name^`: the name and all below it are not blocked, whatever other lines say;
    /// - a comment behind `#`, or a line that begins with `!` or `[`: nothing.
    ///
    /// # Errors
    ///
    /// [`LineFault`] when it is none of these; it adds nothing then.
    pub fn add_line(&mut self, line: &[u8]) -> Result<(), LineFault> {
        let line = without_comment(line).trim_ascii();
        if matches!(line.first(), None | Some(b'!' | b'[')) {
            return Ok(());
        }
        if let Some(rule) = line.strip_prefix(b"@@||") {
            let hash = self.hash_of(filter_name(rule)?)?;
            self.allowed.push(hash);
            return Ok(());
        }
        if let Some(rule) = line.strip_prefix(b"||") {
            let hash = self.hash_of(filter_name(rule)?)?;
            self.blocked.push(hash);
            return Ok(());
        }
        let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let first = words.next().unwrap_or_default();
        if let Some(address) = address(first) {
            return self.add_host(address, words);
        }
        if words.next().is_some() {
            return Err(LineFault::NotUnderstood);
        }
        let hash = self.hash_of(below(first))?;
        self.blocked.push(hash);
        Ok(())
    }

    /// Adds a name that is not blocked, with all below it; in wire form and lower case.
    pub fn allow(&mut self, name: &[u8]) {
        self.suffixes.fill(name, &self.seed);
        self.allowed.push(self.suffixes.whole(&self.seed));
    }

    /// Makes the list ready.
    pub fn finish(self) -> BlockList {
        BlockList {
            seed: self.seed,
            blocked: Fingerprints::new(self.blocked),
            allowed: Fingerprints::new(self.allowed),
        }
    }

    fn add_host<'a>(
        &mut self,
        address: IpAddr,
        names: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), LineFault> {
        let is_nowhere = address.is_unspecified() || address.is_loopback();
        let (mut is_bare, mut fault) = (true, None);
        for name in names {
            is_bare = false;
            if is_of_hosts_files(name) {
                continue;
            }
            if !is_nowhere {
                return Err(LineFault::Address(address));
            }
            match self.hash_of(name) {
                Ok(hash) => self.blocked.push(exactly(hash)),
                Err(error) => fault = Some(error),
            }
        }
        match fault {
            Some(fault) => Err(fault),
            None if is_bare => Err(LineFault::NotUnderstood),
            None => Ok(()),
        }
    }

    fn hash_of(&mut self, text: &[u8]) -> Result<u64, LineFault> {
        // Stricter than DNS is: what else stands in a list is a rule of another kind.
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !text.iter().all(is_plain) || text == b"." {
            return Err(LineFault::NotUnderstood);
        }
        self.name.clear();
        push_name(&mut self.name, text).map_err(LineFault::Name)?;
        self.suffixes.fill(&self.name, &self.seed);
        Ok(self.suffixes.whole(&self.seed))
    }
}

fn without_comment(line: &[u8]) -> &[u8] {
    match line.iter().position(|byte| *byte == b'#') {
        // `##` and the like belong to rules for the contents of pages, which must not be taken for names.
        Some(at) if at == 0 || line[at - 1].is_ascii_whitespace() => &line[..at],
        _ => line,
    }
}

/// The name in `name^`, with or without `|` behind it.
fn filter_name(rule: &[u8]) -> Result<&[u8], LineFault> {
    let name =
        rule.strip_suffix(b"^").or_else(|| rule.strip_suffix(b"^|")).ok_or(LineFault::NotUnderstood)?;
    Ok(below(name))
}

fn below(name: &[u8]) -> &[u8] {
    name.strip_prefix(b"*.").or_else(|| name.strip_prefix(b".")).unwrap_or(name)
}

/// Reads an address; without trying on what cannot be one.
fn address(word: &[u8]) -> Option<IpAddr> {
    let may_be = word.contains(&b':') || word.last().is_some_and(u8::is_ascii_digit);
    if !may_be {
        return None;
    }
    str::from_utf8(word).ok()?.parse().ok()
}

/// What stands in every hosts file and blocks nothing.
fn is_of_hosts_files(name: &[u8]) -> bool {
    const NAMES: [&[u8]; 6] =
        [b"localhost", b"localhost.localdomain", b"local", b"broadcasthost", b"0.0.0.0", b"ip6-localhost"];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)) || name.starts_with(b"ip6-")
}

/// The fingerprint of a name that is blocked without those below it.
const fn exactly(hash: u64) -> u64 {
    hash.rotate_left(32) ^ 0x5bd1_e995_9d1b_5ca7
}

impl BlockList {
    /// How many different names are blocked.
    pub fn names(&self) -> usize {
        self.blocked.sorted.len()
    }

    /// Memory that it takes, in bytes.
    pub fn bytes(&self) -> usize {
        self.blocked.bytes() + self.allowed.bytes()
    }

    /// Whether a name in lower case is blocked.
    pub(crate) fn blocks(&self, name: &[u8], suffixes: &mut Suffixes) -> bool {
        suffixes.fill(name, &self.seed);
        let is_listed = self.blocked.contains(exactly(suffixes.whole(&self.seed)))
            || suffixes.iter().rev().any(|(_, hash)| self.blocked.contains(hash));
        is_listed && !suffixes.iter().any(|(_, hash)| self.allowed.contains(hash))
    }
}

/// Sorted hashes, and where those that begin with the same bits stand.
#[derive(Debug)]
struct Fingerprints {
    sorted: Vec<u64>,
    index: Vec<u32>,
    shift: u32,
}

/// Hashes in one bucket of the index, on average: one line of the processor's cache.
const BUCKET_LEN: usize = 8;

impl Fingerprints {
    fn new(mut hashes: Vec<u64>) -> Self {
        hashes.sort_unstable();
        hashes.dedup();
        // Positions have 32 bits: 34 GB of hashes.
        hashes.truncate(u32::MAX as usize);
        hashes.shrink_to_fit();
        let bits = (hashes.len() / BUCKET_LEN).max(1).next_power_of_two().trailing_zeros().max(1);
        let shift = 64 - bits;
        let mut index = Vec::with_capacity((1 << bits) + 1);
        let mut at = 0;
        for bucket in 0..1u64 << bits {
            at += hashes[at..].iter().take_while(|hash| **hash >> shift < bucket).count();
            index.push(at as u32);
        }
        index.push(hashes.len() as u32);
        Self { sorted: hashes, index, shift }
    }

    #[inline]
    fn contains(&self, hash: u64) -> bool {
        let bucket = (hash >> self.shift) as usize;
        let Some([start, end]) = self.index.get(bucket..bucket + 2) else { return false };
        self.sorted.get(*start as usize..*end as usize).is_some_and(|hashes| hashes.contains(&hash))
    }

    fn bytes(&self) -> usize {
        self.sorted.capacity() * 8 + self.index.capacity() * 4
    }
}

/// What is wrong with a line of a block list; the line is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFault {
    /// Neither a name, nor a hosts line, nor `||name^`.
    NotUnderstood,
    /// A name that is none.
    Name(NameTextError),
    /// A hosts line with an address that leads somewhere: it blocks nothing.
    Address(IpAddr),
}

impl fmt::Display for LineFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotUnderstood => f.write_str("it is no name, no hosts line, and no rule like ||name^"),
            Self::Name(error) => error.fmt(f),
            Self::Address(address) => {
                write!(f, "{address} leads somewhere: lines that block begin with 0.0.0.0 or 127.0.0.1")
            }
        }
    }
}

impl std::error::Error for LineFault {}

/// What blocked names are answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockAnswer {
    /// There is no such name.
    #[default]
    NxDomain,
    /// Its addresses are 0.0.0.0 and ::, and it has no other records.
    Zero,
}

impl BlockAnswer {
    pub(crate) const fn rcode(self) -> u16 {
        match self {
            Self::NxDomain => rcode::NXDOMAIN,
            Self::Zero => rcode::NOERROR,
        }
    }

    /// Appends the records behind the question. Returns how many there are in each section.
    pub(crate) fn write(self, out: &mut Vec<u8>, qtype: u16, ttl: u32) -> [u16; 3] {
        const OWNER: usize = crate::wire::HEADER_LEN;
        let rdata: &[u8] = match (self, qtype) {
            (Self::Zero, rtype::A) => &[0; 4],
            (Self::Zero, rtype::AAAA) => &[0; 16],
            _ => {
                write_soa(out, OWNER, ttl);
                return [0, 1, 0];
            }
        };
        write_record(out, OWNER, qtype, ttl, rdata);
        [1, 0, 0]
    }
}

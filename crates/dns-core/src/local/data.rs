//! Local data: what was read, made ready to answer.

use std::fmt;
use std::net::IpAddr;

use super::hosts::{HostsFault, backwards, parse_line};
use super::map::NameMap;
use super::record::LocalRecord;
use super::{write_record, write_soa};
use crate::wire::{HEADER_LEN, HashSeed, NameText, Suffixes, push_name, rtype};

/// Aliases that are followed for one answer.
const CHAIN_MAX: usize = 8;

/// Names that are answered here. Shared by all workers; another one takes its place when a file changes.
#[derive(Debug)]
pub struct LocalData {
    seed: HashSeed,
    names: NameMap<Node>,
    ttl: u32,
    has_wildcards: bool,
}

/// What is known of one name.
#[derive(Debug, Default)]
struct Node {
    sets: Vec<RecordSet>,
    /// The records of every name below that is not known otherwise (RFC 4592).
    wildcard: Vec<RecordSet>,
    /// It has no records, but stands between a wildcard and a name that has: it exists (RFC 4592 §2.2.2).
    is_between: bool,
}

/// Records of one type.
#[derive(Debug)]
pub(crate) struct RecordSet {
    rtype: u16,
    ttl: u32,
    rdata: Vec<Box<[u8]>>,
}

/// Collects local data.
#[derive(Debug)]
pub struct LocalDataBuilder {
    data: LocalData,
    suffixes: Box<Suffixes>,
}

impl LocalDataBuilder {
    /// Begins with nothing. `seed` must be that of the forwarders which will answer from it; `ttl`, in seconds, is that
    /// of records which do not say another, and of negative answers.
    pub fn new(seed: HashSeed, ttl: u32) -> Self {
        let data = LocalData { seed, names: NameMap::new(), ttl, has_wildcards: false };
        Self { data, suffixes: Box::new(Suffixes::new()) }
    }

    /// Adds a record of the configuration.
    pub fn add_record(&mut self, record: &LocalRecord) {
        let ttl = record.ttl.unwrap_or(self.data.ttl);
        let node = self.node(&record.name);
        let sets = if record.is_wildcard { &mut node.wildcard } else { &mut node.sets };
        add(sets, record.rtype, ttl, &record.rdata);
        self.data.has_wildcards |= record.is_wildcard;
    }

    /// Adds what a hosts file says: addresses of names, and for each address the first name that it is given. Lines
    /// that cannot be read are told to `fault` with their number, from 1, and left out.
    pub fn add_hosts(&mut self, text: &[u8], mut fault: impl FnMut(usize, HostsFault)) {
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            match parse_line(line) {
                Ok(None) => {}
                Ok(Some((address, names))) => {
                    for name in names {
                        if let Err(error) = self.add_host(address, name) {
                            fault(number + 1, error);
                        }
                    }
                }
                Err(error) => fault(number + 1, error),
            }
        }
    }

    fn add_host(&mut self, address: IpAddr, text: &[u8]) -> Result<(), HostsFault> {
        let mut name = Vec::with_capacity(text.len() + 2);
        push_name(&mut name, text)
            .map_err(|error| HostsFault::Name { text: String::from_utf8_lossy(text).into_owned(), error })?;
        let ttl = self.data.ttl;
        let sets = &mut self.node(&name).sets;
        // A name that the configuration makes an alias is nothing else (RFC 2181 §10.1).
        if sets.iter().all(|set| set.rtype != rtype::CNAME) {
            match address {
                IpAddr::V4(v4) => add(sets, rtype::A, ttl, &v4.octets()),
                IpAddr::V6(v6) => add(sets, rtype::AAAA, ttl, &v6.octets()),
            }
        }
        let backwards = backwards(address);
        let sets = &mut self.node(&backwards).sets;
        if sets.iter().all(|set| set.rtype != rtype::PTR) {
            add(sets, rtype::PTR, ttl, &name);
        }
        Ok(())
    }

    /// Makes the data ready. What is odd in it is told to `problem`; it is served all the same.
    pub fn finish(mut self, mut problem: impl FnMut(LocalProblem)) -> LocalData {
        if self.data.has_wildcards {
            self.note_between();
        }
        let data = self.data;
        let suffixes = &mut *self.suffixes;
        for (name, node) in data.names.iter() {
            for sets in [&node.sets, &node.wildcard] {
                if let Some(alias) = sets.iter().find(|set| set.rtype == rtype::CNAME) {
                    check_alias(&data, name, sets, alias, suffixes, &mut problem);
                }
            }
        }
        data
    }

    /// Marks the names between each wildcard's and those below that have records.
    fn note_between(&mut self) {
        let all: Vec<Box<[u8]>> = self.data.names.iter().map(|(name, _)| name.into()).collect();
        let mut missing = Vec::new();
        for name in &all {
            self.suffixes.fill(name, &self.data.seed);
            let mut between = Vec::new();
            for (start, hash) in self.suffixes.iter().skip(1) {
                let above = &name[start..];
                match self.data.names.get(hash, above) {
                    Some(node) if !node.wildcard.is_empty() => missing.append(&mut between),
                    Some(node) if !node.sets.is_empty() => {}
                    _ => between.push(above.to_vec()),
                }
            }
        }
        for name in missing {
            let node = self.node(&name);
            node.is_between = node.sets.is_empty();
        }
    }

    fn node(&mut self, name: &[u8]) -> &mut Node {
        self.suffixes.fill(name, &self.data.seed);
        let hash = self.suffixes.whole(&self.data.seed);
        self.data.names.get_or_insert(hash, name, Node::default)
    }
}

/// Adds a record to its set; the same one twice is one. A set has one time to live, the shortest (RFC 2181 §5.2).
fn add(sets: &mut Vec<RecordSet>, rtype: u16, ttl: u32, rdata: &[u8]) {
    match sets.iter_mut().find(|set| set.rtype == rtype) {
        Some(set) => {
            set.ttl = set.ttl.min(ttl);
            if !set.rdata.iter().any(|known| **known == *rdata) {
                set.rdata.push(rdata.into());
            }
        }
        None => sets.push(RecordSet { rtype, ttl, rdata: vec![rdata.into()] }),
    }
}

fn check_alias(
    data: &LocalData,
    name: &[u8],
    sets: &[RecordSet],
    alias: &RecordSet,
    suffixes: &mut Suffixes,
    problem: &mut impl FnMut(LocalProblem),
) {
    let shown = || NameText(name).to_string();
    if sets.len() > 1 || alias.rdata.len() > 1 {
        problem(LocalProblem::NotOnlyAlias { name: shown() });
    }
    let mut current = alias;
    for _ in 0..CHAIN_MAX {
        let Some(target) = current.rdata.first() else { return };
        let Some(sets) = data.find(target, suffixes) else {
            let target = NameText(target).to_string();
            return problem(LocalProblem::Dangling { name: shown(), target });
        };
        match sets.iter().find(|set| set.rtype == rtype::CNAME) {
            Some(next) => current = next,
            None => return,
        }
    }
    problem(LocalProblem::Loop { name: shown() });
}

impl LocalData {
    /// How many names have records here, wildcards included.
    pub fn names(&self) -> usize {
        self.names.iter().filter(|(_, node)| !node.sets.is_empty() || !node.wildcard.is_empty()).count()
    }

    /// The records of a name in lower case; `None` when it is not known here.
    pub(crate) fn find(&self, name: &[u8], suffixes: &mut Suffixes) -> Option<&[RecordSet]> {
        if self.names.is_empty() {
            return None;
        }
        suffixes.fill(name, &self.seed);
        if let Some(node) = self.names.get(suffixes.whole(&self.seed), name)
            && (!node.sets.is_empty() || node.is_between)
        {
            return Some(&node.sets);
        }
        if !self.has_wildcards {
            return None;
        }
        // RFC 4592 §3.3.1: the closest name above that exists says whether there is a wildcard.
        let above = suffixes.iter().skip(1).chain([(name.len().saturating_sub(1), self.seed.empty_name())]);
        for (start, hash) in above {
            let Some(node) = name.get(start..).and_then(|name| self.names.get(hash, name)) else { continue };
            if !node.wildcard.is_empty() {
                return Some(&node.wildcard);
            }
            if !node.sets.is_empty() || node.is_between {
                return None;
            }
        }
        None
    }

    /// Appends the records that answer a question for `name`, which has `sets`. Returns how many there are in each
    /// section. The question's name stands right behind the header, and nothing behind the question.
    pub(crate) fn write<'a>(
        &'a self,
        out: &mut Vec<u8>,
        name: &[u8],
        mut sets: &'a [RecordSet],
        qtype: u16,
        suffixes: &mut Suffixes,
    ) -> [u16; 3] {
        let base = out.len() - (HEADER_LEN + name.len() + 4);
        let mut owner = HEADER_LEN;
        let mut answers = 0;
        for _ in 0..=CHAIN_MAX {
            // RFC 8482 §4.1: for ANY, one of the sets will do.
            let fits = |set: &&RecordSet| set.rtype == qtype || qtype == rtype::ANY;
            if let Some(set) = sets.iter().find(fits) {
                answers += set.write(out, owner);
                return [answers, 0, 0];
            }
            let Some(alias) = sets.iter().find(|set| set.rtype == rtype::CNAME) else {
                write_soa(out, owner, self.ttl);
                return [answers, 1, 0];
            };
            let Some(target) = alias.rdata.first() else { break };
            write_record(out, owner, rtype::CNAME, alias.ttl, target);
            answers += 1;
            // The target ends the message so far.
            owner = out.len() - base - target.len();
            match self.find(target, suffixes) {
                Some(next) => sets = next,
                None => break,
            }
        }
        [answers, 0, 0]
    }
}

impl RecordSet {
    /// Appends the records, as many as a message holds. Returns how many.
    fn write(&self, out: &mut Vec<u8>, owner: usize) -> u16 {
        let mut written = 0;
        let start = out.len();
        for rdata in &self.rdata {
            if out.len() - start + rdata.len() > ANSWER_LEN_MAX {
                break;
            }
            write_record(out, owner, self.rtype, self.ttl, rdata);
            written += 1;
        }
        written
    }
}

/// One set's octets in a reply: the rest of 65,535 is for the question, aliases and the OPT record.
const ANSWER_LEN_MAX: usize = 61_000;

/// Something odd in local data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalProblem {
    /// An alias whose target is not known here: clients get the alias and no address.
    Dangling {
        /// The alias.
        name: String,
        /// Its target.
        target: String,
    },
    /// An alias that leads to itself, or to too many others.
    Loop {
        /// The alias.
        name: String,
    },
    /// An alias with other records, which nobody will see, or with two targets (RFC 2181 §10.1).
    NotOnlyAlias {
        /// The alias.
        name: String,
    },
}

impl fmt::Display for LocalProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dangling { name, target } => write!(
                f,
                "`{name}` is an alias of `{target}`, which has no local records: clients get no address; add some, or \
                 give `{name}` the records themselves"
            ),
            Self::Loop { name } => {
                write!(f, "the alias `{name}` leads to itself or over more than {CHAIN_MAX} others")
            }
            Self::NotOnlyAlias { name } => write!(f, "the alias `{name}` has other records or two targets"),
        }
    }
}

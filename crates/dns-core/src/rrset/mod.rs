//! Sets of records that came with answers to other questions, and answers joined of them.
//!
//! An answer that goes by way of an alias says more than what was asked: `www.example A` may be answered by
//! `www.example CNAME cdn.test` and `cdn.test A 192.0.2.1`. [`Sets::learn`] takes it apart into the sets of its chain
//! and keeps each as the answer to a question of its own, in the message cache, where a later query for `cdn.test A`
//! finds it as any other. [`Sets::join`] goes the other way: it follows known aliases from a question to a known answer
//! — records, or that there are none — and puts one message together.
//!
//! ```text
//!             learn                                        join
//! www A ─▶ [www CNAME cdn | cdn A 1]  ─▶  (www,CNAME) (cdn,A)     (mail,CNAME www) (www,CNAME cdn) (cdn,A)  ─▶  mail A
//! ```
//!
//! What is believed, and what not (RFC 2181 §5.4.1):
//!
//! - Only the answer section, and of it only the chain that begins at the question. Authority and additional sections
//!   of a forwarder's upstream are never given as answers, except that a negative answer has its SOA record, and the
//!   proofs beside it.
//! - A set never replaces an answer that is still good.
//! - Answers of one upstream say nothing about names that are routed to another, and chains do not cross there.
//! - Flags are part of the key: what was asked with DO, CD or without RD serves such questions only. AD holds for a
//!   joined answer when all its parts had it.
//! - With DO, a set whose signature is a wildcard's is not kept, since its proof stands in the authority section
//!   (RFC 4035 §3.1.3.3). Answers with DNAME records are not taken apart.
//! - A name that does not exist has no type (RFC 2308 §5): that it has no A for this reason answers all others. Not so
//!   for other types, since there are servers that deny a name when they are asked for AAAA (RFC 4074 §4.2).

mod build;

#[cfg(test)]
mod tests;

use forebay_core::Instant;

use self::build::{Builder, signature};
use crate::cache::{Insert, Known, MessageCache};
use crate::reply::Stored;
use crate::wire::{
    Answer, AnswerKind, HEADER_LEN, HashSeed, NAME_LEN_MAX, Name, QuestionKey, Record, Scan, be16, flag,
    plain_ttl, rcode, rtype,
};

/// Aliases that are followed. More than this are a mistake of somebody's: other resolvers stop between 8 and 16.
pub const ALIASES_MAX: usize = 16;

/// Memory to take answers apart in and to join them.
#[derive(Debug)]
pub struct Sets {
    builder: Builder,
    scan: Scan,
    key: QuestionKey,
    /// The names on the way, for finding that one comes back.
    chain: Vec<Name>,
}

impl Default for Sets {
    fn default() -> Self {
        Self {
            builder: Builder::default(),
            scan: Scan::new(),
            key: QuestionKey::empty(),
            chain: Vec::with_capacity(ALIASES_MAX + 1),
        }
    }
}

/// Where the sets are kept, and as of when.
#[derive(Debug)]
pub struct Store<'a, C> {
    /// The cache: `&mut` for learning, `&` for joining.
    pub cache: C,
    /// The seed of its keys.
    pub seed: &'a HashSeed,
    /// The time.
    pub now: Instant,
}

impl Sets {
    /// Makes one with next to no memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the sets of an answer to `key` that goes by way of an alias. `is_ours` says of a name, in lower case, and
    /// a set of it whether it may be believed of the upstream that answered. Returns how many were kept.
    pub fn learn(
        &mut self,
        store: &mut Store<'_, &mut MessageCache>,
        key: &QuestionKey,
        answer: &Answer<'_>,
        mut is_ours: impl FnMut(&[u8], &Answer<'_>) -> bool,
    ) -> u32 {
        let is_said = matches!(answer.kind, AnswerKind::Positive | AnswerKind::NoData | AnswerKind::NxDomain);
        if !answer.has_alias || !is_said || answer.is_truncated() || !follows_aliases(key.qtype()) {
            return 0;
        }
        let Some(mut name) = Name::plain(key.name()) else { return 0 };
        let mut kept = 0;
        self.chain.clear();
        while self.chain.len() < ALIASES_MAX {
            let set = Wanted { name: &name, rtype: rtype::CNAME, class: key.qclass() };
            match set.alias_in(answer) {
                Ok(Some(target)) => {
                    kept += u32::from(self.keep(store, key.flags(), &set, answer, &mut is_ours));
                    if self.chain.iter().any(|before| before.is(target.as_bytes())) {
                        return kept;
                    }
                    self.chain.push(name);
                    name = target;
                }
                Ok(None) => {
                    let set = Wanted { rtype: key.qtype(), ..set };
                    return kept + u32::from(self.keep(store, key.flags(), &set, answer, &mut is_ours));
                }
                Err(Several) => return kept,
            }
        }
        kept
    }

    /// Keeps one set of an answer: of its answer section, or what its authority section says of a set that it has not.
    fn keep(
        &mut self,
        store: &mut Store<'_, &mut MessageCache>,
        flags: u8,
        wanted: &Wanted<'_>,
        answer: &Answer<'_>,
        is_ours: &mut impl FnMut(&[u8], &Answer<'_>) -> bool,
    ) -> bool {
        self.builder.begin(&wanted.question()[..wanted.question_len()], answer.flags & flag::AD | flag::QR);
        match wanted.copy(answer, &mut self.builder) {
            Some(0) => {
                // At the end of the chain, and with nothing there: a negative answer speaks of this name (RFC 2308
                // §2.1, RFC 6604 §3).
                if answer.kind == AnswerKind::Positive || wanted.rtype == rtype::CNAME {
                    return false;
                }
                let code = answer.rcode & flag::RCODE;
                self.builder.set_flags(answer.flags & flag::AD | flag::QR | code);
                if copy_authority(answer, &mut self.builder).is_none() {
                    return false;
                }
            }
            Some(_) if answer.kind == AnswerKind::NxDomain && wanted.rtype != rtype::CNAME => return false,
            Some(_) => {}
            None => return false,
        }
        let Ok(set) = self.scan.scan_answer(self.builder.bytes()) else { return false };
        if !is_ours(wanted.name.as_bytes(), &set) {
            return false;
        }
        self.key.fill(set.question, flags, store.seed);
        matches!(store.cache.insert_set(&self.key, &set, store.now), Insert::Kept { .. })
    }

    /// Joins the answer to `key`, which is not in the cache itself, out of what is there. `is_ours` says of a name, in
    /// lower case, whether the upstream that `key` would go to is the one to ask about it.
    ///
    /// `None` when anything is missing, or about to be.
    pub fn join(
        &mut self,
        store: &Store<'_, &MessageCache>,
        key: &QuestionKey,
        mut is_ours: impl FnMut(&[u8]) -> bool,
    ) -> Option<Answer<'_>> {
        if !follows_aliases(key.qtype()) {
            return None;
        }
        let mut name = Name::plain(key.name())?;
        let mut authentic = flag::AD;
        self.chain.clear();
        let code = loop {
            if !self.chain.is_empty()
                && let Some(end) = self.known(store, &name, key.qtype(), key)
            {
                self.chain.push(name);
                authentic &= flags_of(&end.stored);
                let is_signed = key.flags() & QuestionKey::DO != 0;
                add_end(&mut self.builder, &self.chain, &end, is_signed)?;
                break flags_of(&end.stored) & flag::RCODE;
            }
            if key.qtype() != rtype::A
                && let Some(end) = self.known(store, &name, rtype::A, key)
                && flags_of(&end.stored) & flag::RCODE == rcode::NXDOMAIN
                && be16(end.stored.wire(), 6) == Some(0)
            {
                self.begin_once(key);
                authentic &= flags_of(&end.stored);
                add_authority(&mut self.builder, &end)?;
                break rcode::NXDOMAIN;
            }
            let alias = self.known(store, &name, rtype::CNAME, key)?;
            self.begin_once(key);
            authentic &= flags_of(&alias.stored);
            let target = add_alias(&mut self.builder, &name, &alias)?;
            let is_loop =
                target.is(name.as_bytes()) || self.chain.iter().any(|before| before.is(target.as_bytes()));
            if is_loop || self.chain.len() == ALIASES_MAX || !is_ours(target.as_bytes()) {
                return None;
            }
            self.chain.push(name);
            name = target;
        };
        self.builder.set_flags(flag::QR | authentic | code);
        let joined = self.scan.scan_answer(self.builder.bytes()).ok()?;
        if joined.ttl_min.is_none_or(|ttl| ttl == 0) {
            return None;
        }
        Some(joined)
    }

    /// Begins the message with the first piece that is found.
    fn begin_once(&mut self, key: &QuestionKey) {
        if self.chain.is_empty() {
            self.builder.begin(key.question(), flag::QR);
        }
    }

    /// What is known of a name and type, asked with the flags and the class of `key`.
    fn known<'a>(
        &mut self,
        store: &Store<'_, &'a MessageCache>,
        name: &Name,
        rtype: u16,
        key: &QuestionKey,
    ) -> Option<Known<'a>> {
        let wanted = Wanted { name, rtype, class: key.qclass() };
        self.key.fill(&wanted.question()[..wanted.question_len()], key.flags(), store.seed);
        store.cache.peek(&self.key, store.now)
    }
}

/// Whether a question of this type is answered by way of an alias. Types that stand beside a CNAME record, or for more
/// than one set, are not (RFC 4035 §2.5, RFC 1034 §3.6.2).
fn follows_aliases(qtype: u16) -> bool {
    // SIG, KEY and NXT (RFC 2535) were allowed there too.
    const OLD: [u16; 3] = [24, 25, 30];
    // Above 127 are types that only questions have (RFC 6895 §3.1).
    !matches!(
        qtype,
        rtype::CNAME | rtype::DNAME | rtype::DS | rtype::RRSIG | rtype::NSEC | rtype::NSEC3 | 128..=255
    ) && !OLD.contains(&qtype)
}

fn flags_of(stored: &Stored<'_>) -> u16 {
    be16(stored.wire(), 2).unwrap_or_default()
}

/// A set of records by what they have in common.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    name: &'a Name,
    rtype: u16,
    class: u16,
}

/// A name has more than one alias, which cannot be (RFC 2181 §10.1).
struct Several;

impl Wanted<'_> {
    /// The question for it.
    fn question(&self) -> [u8; NAME_LEN_MAX + 4] {
        let mut question = [0; NAME_LEN_MAX + 4];
        let name = self.name.as_bytes();
        question[..name.len()].copy_from_slice(name);
        question[name.len()..name.len() + 2].copy_from_slice(&self.rtype.to_be_bytes());
        question[name.len() + 2..name.len() + 4].copy_from_slice(&self.class.to_be_bytes());
        question
    }

    fn question_len(&self) -> usize {
        self.name.as_bytes().len() + 4
    }

    /// Whether a record is one of these.
    fn has(&self, source: &[u8], record: &Record) -> bool {
        record.rtype == self.rtype && self.is_about(source, record)
    }

    fn is_about(&self, source: &[u8], record: &Record) -> bool {
        record.class == self.class
            && Name::read(source, record.start).is_some_and(|(owner, _)| owner.is(self.name.as_bytes()))
    }

    /// The alias that an answer says the name is of, if any.
    fn alias_in(&self, answer: &Answer<'_>) -> Result<Option<Name>, Several> {
        let source = answer.bytes();
        let mut targets = section(answer, 0)
            .filter(|record| self.has(source, record))
            .filter_map(|record| Name::read(source, record.rdata).map(|(target, _)| target.in_lower_case()));
        let first = targets.next();
        if targets.next().is_some() { Err(Several) } else { Ok(first) }
    }

    /// Copies the set out of an answer, with its signatures. Returns how many records there were; `None` when it
    /// cannot stand alone.
    fn copy(&self, answer: &Answer<'_>, into: &mut Builder) -> Option<u16> {
        let source = answer.bytes();
        let labels = self.name.labels().count();
        let is_wild = self.name.as_bytes().starts_with(b"\x01*");
        let mut count = 0;
        for record in section(answer, 0) {
            if self.has(source, &record) {
                count += 1;
            } else if record.rtype == rtype::RRSIG && self.is_about(source, &record) {
                let (covered, signed_labels) = signature(source, &record)?;
                if covered != self.rtype {
                    continue;
                }
                // RFC 4034 §3.1.3: the root and the wildcard's own label do not count.
                if usize::from(signed_labels) + usize::from(is_wild) != labels {
                    return None;
                }
            } else {
                continue;
            }
            into.add(0, source, &record, plain_ttl(record.ttl))?;
        }
        Some(count)
    }
}

/// The records of one of the first two sections.
fn section<'a>(answer: &Answer<'a>, which: usize) -> impl Iterator<Item = Record> + 'a {
    let [answers, authorities, _] = answer.counts.map(usize::from);
    let (skip, take) = if which == 0 { (0, answers) } else { (answers, authorities) };
    records(answer.bytes(), HEADER_LEN + answer.question.len()).skip(skip).take(take)
}

/// All records from here on, also those of the end that are not counted.
fn records(wire: &[u8], mut at: usize) -> impl Iterator<Item = Record> + '_ {
    std::iter::from_fn(move || {
        let record = Record::read(wire, at).ok()?;
        at = record.end;
        Some(record)
    })
}

fn copy_authority(answer: &Answer<'_>, into: &mut Builder) -> Option<()> {
    for record in section(answer, 1) {
        into.add(1, answer.bytes(), &record, plain_ttl(record.ttl))?;
    }
    Some(())
}

/// The records of what is known, with the TTLs that are left.
fn left<'a>(known: &Known<'a>, which: usize) -> impl Iterator<Item = (Record, u32)> + use<'a> {
    let wire = known.stored.wire();
    let count = |at| be16(wire, at).map_or(0, usize::from);
    let (skip, take) = if which == 0 { (0, count(6)) } else { (count(6), count(8)) };
    let start = crate::wire::plain_name_end(wire, HEADER_LEN).map_or(wire.len(), |end| end + 4);
    let age_secs = known.age_secs;
    records(wire, start)
        .skip(skip)
        .take(take)
        .map(move |record| (record, record.ttl.saturating_sub(age_secs)))
}

/// Adds an alias and its signatures. Returns where it leads.
fn add_alias(into: &mut Builder, name: &Name, alias: &Known<'_>) -> Option<Name> {
    let wire = alias.stored.wire();
    let mut target = None;
    for (record, ttl) in left(alias, 0) {
        let (owner, _) = Name::read(wire, record.start)?;
        let is_alias = record.rtype == rtype::CNAME;
        let is_proof = record.rtype == rtype::RRSIG && signature(wire, &record)?.0 == rtype::CNAME;
        if !owner.is(name.as_bytes()) || !(is_alias || is_proof) {
            continue;
        }
        if is_alias && target.replace(Name::read(wire, record.rdata)?.0.in_lower_case()).is_some() {
            return None;
        }
        into.add(0, wire, &record, ttl)?;
    }
    target
}

/// Adds what stands at the end of the chain: records, with proofs where they are wanted, or a negative answer.
fn add_end(into: &mut Builder, chain: &[Name], end: &Known<'_>, is_signed: bool) -> Option<()> {
    let wire = end.stored.wire();
    let before = &chain[..chain.len().saturating_sub(1)];
    let mut aliases = before.len();
    for (record, ttl) in left(end, 0) {
        let (owner, _) = Name::read(wire, record.start)?;
        // It may go on by aliases of its own, but not back.
        if before.iter().any(|before| before.is(owner.as_bytes())) {
            return None;
        }
        aliases += usize::from(record.rtype == rtype::CNAME);
        into.add(0, wire, &record, ttl)?;
    }
    if aliases > ALIASES_MAX {
        return None;
    }
    if is_signed || left(end, 1).any(|(record, _)| record.rtype == rtype::SOA) {
        add_authority(into, end)?;
    }
    Some(())
}

fn add_authority(into: &mut Builder, known: &Known<'_>) -> Option<()> {
    for (record, ttl) in left(known, 1) {
        into.add(1, known.stored.wire(), &record, ttl)?;
    }
    Some(())
}

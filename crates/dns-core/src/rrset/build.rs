//! Puts messages together out of records of others.

use crate::wire::{HEADER_LEN, MESSAGE_LEN_MAX, Name, Record, be16, be32, plain_name_end, rtype};

/// Places of names that later ones may point to. More make messages hardly shorter.
const MARKS_MAX: usize = 64;

/// Pointers reach no further (RFC 1035 §4.1.4).
const POINTER_MAX: usize = 0x3fff;

/// A message in the making: a question, then records in the order of their sections.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    bytes: Vec<u8>,
    /// Where labels begin that a pointer may lead to.
    marks: Vec<u16>,
}

impl Builder {
    /// Begins a message with this question, name and type and class, and these flags.
    pub(crate) fn begin(&mut self, question: &[u8], flags: u16) {
        self.bytes.clear();
        self.marks.clear();
        self.bytes.extend_from_slice(&[0; HEADER_LEN]);
        self.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        self.bytes[5] = 1;
        self.bytes.extend_from_slice(question);
        self.mark(HEADER_LEN);
    }

    pub(crate) fn set_flags(&mut self, flags: u16) {
        self.bytes[2..4].copy_from_slice(&flags.to_be_bytes());
    }

    /// Adds a record of another message; section 0 is the answer, 1 the authority section. `None` when it cannot be,
    /// and then the message is good for nothing.
    pub(crate) fn add(&mut self, section: usize, source: &[u8], record: &Record, ttl: u32) -> Option<()> {
        let (owner, _) = Name::read(source, record.start)?;
        self.name(&owner, true);
        let fixed = source.get(record.ttl_at - 4..record.ttl_at)?;
        self.bytes.extend_from_slice(fixed);
        self.bytes.extend_from_slice(&ttl.to_be_bytes());
        let len_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.rdata(source, record)?;
        let len = u16::try_from(self.bytes.len() - len_at - 2).ok()?;
        self.bytes[len_at..len_at + 2].copy_from_slice(&len.to_be_bytes());
        if self.bytes.len() > MESSAGE_LEN_MAX {
            return None;
        }
        let count_at = 6 + 2 * section;
        let count = be16(&self.bytes, count_at)?.checked_add(1)?;
        self.bytes[count_at..count_at + 2].copy_from_slice(&count.to_be_bytes());
        Some(())
    }

    /// The message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Copies RDATA. Names in it that may be compressed are written anew: their pointers lead into another message.
    fn rdata(&mut self, source: &[u8], record: &Record) -> Option<()> {
        let mut at = record.rdata;
        let Some(form) = form_of(record.rtype) else {
            self.bytes.extend_from_slice(source.get(at..record.end)?);
            return Some(());
        };
        let mut prefix = usize::from(form.prefix);
        if record.rtype == rtype::NAPTR {
            // Flags, services and a regular expression, each with its length before it (RFC 3403 §4.1).
            for _ in 0..3 {
                prefix += 1 + usize::from(*source.get(at + prefix)?);
            }
        }
        self.bytes.extend_from_slice(source.get(at..at + prefix)?);
        at += prefix;
        let inside = source.get(..record.end)?;
        for _ in 0..form.names {
            let (name, end) = Name::read(inside, at)?;
            self.name(&name, form.may_compress);
            at = end;
        }
        self.bytes.extend_from_slice(inside.get(at..)?);
        Some(())
    }

    /// Writes a name, with a pointer for as much of its end as is there already.
    fn name(&mut self, name: &Name, may_compress: bool) {
        let start = self.bytes.len();
        let octets = name.as_bytes();
        let labels = name.labels();
        let known = labels.map(|at| (at, self.find(&octets[at..]))).find_map(|(at, mark)| Some((at, mark?)));
        match known.filter(|_| may_compress) {
            Some((at, mark)) => {
                self.bytes.extend_from_slice(&octets[..at]);
                self.bytes.extend_from_slice(&(0xc000 | mark).to_be_bytes());
            }
            None => self.bytes.extend_from_slice(octets),
        }
        self.mark(start);
    }

    /// Remembers the labels that begin at `at`, up to the root or a pointer.
    fn mark(&mut self, mut at: usize) {
        while let Some(len @ 1..=63) = self.bytes.get(at).copied() {
            if at > POINTER_MAX || self.marks.len() == MARKS_MAX {
                return;
            }
            self.marks.push(at as u16);
            at += 1 + usize::from(len);
        }
    }

    /// Where a name is written that is the same as this one.
    fn find(&self, suffix: &[u8]) -> Option<u16> {
        self.marks.iter().copied().find(|mark| self.is_at(usize::from(*mark), suffix))
    }

    /// Whether this name is written there, without regard to letter case.
    fn is_at(&self, mut at: usize, mut name: &[u8]) -> bool {
        loop {
            match self.bytes.get(at).copied() {
                Some(0) => return name == [0],
                Some(len @ 1..=63) => {
                    let step = 1 + usize::from(len);
                    let (Some(here), Some((label, rest))) =
                        (self.bytes.get(at..at + step), name.split_at_checked(step))
                    else {
                        return false;
                    };
                    if !here.eq_ignore_ascii_case(label) {
                        return false;
                    }
                    (at, name) = (at + step, rest);
                }
                // Our own pointers lead backwards.
                Some(0xc0..) => match be16(&self.bytes, at) {
                    Some(pointer) => at = usize::from(pointer & 0x3fff),
                    None => return false,
                },
                _ => return false,
            }
        }
    }
}

/// Where names stand in RDATA: behind so many octets, so many of them.
struct Form {
    prefix: u8,
    names: u8,
    /// Only types of RFC 1035 may have compressed names (RFC 3597 §4); older software compressed others too, so that
    /// they must be read.
    may_compress: bool,
}

fn form_of(kind: u16) -> Option<Form> {
    let form = |prefix, names, may_compress| Some(Form { prefix, names, may_compress });
    match kind {
        // NS, MD, MF, CNAME, MB, MG, MR, PTR (RFC 1035 §3.3).
        2..=5 | 7..=9 | 12 => form(0, 1, true),
        // SOA and MINFO.
        6 | 14 => form(0, 2, true),
        rtype::MX => form(2, 1, true),
        // RP (RFC 1183).
        17 => form(0, 2, false),
        // AFSDB and RT (RFC 1183), KX (RFC 2230).
        18 | 21 | 36 => form(2, 1, false),
        // SIG (RFC 2535).
        24 => form(18, 1, false),
        // PX (RFC 2163).
        26 => form(2, 2, false),
        // NXT (RFC 2535), DNAME (RFC 6672).
        30 | rtype::DNAME => form(0, 1, false),
        rtype::SRV => form(6, 1, false),
        rtype::NAPTR => form(4, 1, false),
        _ => None,
    }
}

/// What a signature covers, and how many labels its owner had when it was made (RFC 4034 §3.1): fewer than the owner
/// has now if a wildcard was expanded. `None` when it is malformed.
pub(crate) fn signature(source: &[u8], record: &Record) -> Option<(u16, u8)> {
    let rdata = source.get(record.rdata..record.end)?;
    // RFC 4034 §3.1.7: the signer's name is never compressed.
    plain_name_end(rdata, 18)?;
    be32(rdata, 14)?;
    Some((be16(rdata, 0)?, *rdata.get(3)?))
}

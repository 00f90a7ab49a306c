//! Names and records as they stand on the wire.

use super::{HEADER_LEN, NAME_LEN_MAX, be16, be32};

/// Labels are at most 63 octets (RFC 1035 §2.3.4); the two top bits mean something else.
const LABEL_LEN_MAX: u8 = 63;

/// Pointers followed for one name. A name has at most 127 labels, and a sane one needs no more
/// pointers than labels.
const HOPS_MAX: u32 = 127;

/// Why a name cannot be skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameFault {
    /// The message ends inside it.
    Cut,
    /// A label type that does not exist, or more than 255 octets.
    Bad,
    /// A pointer that does not lead strictly backwards, into the header, or on and on.
    Pointer,
}

/// Where a name ends in the message, and how far what its pointers lead to reaches.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NameSpan {
    pub(crate) end: usize,
    /// Where the labels end that the first pointer leads to; those of every further one end
    /// before them. Zero without pointers.
    pub(crate) reach: usize,
}

/// The end of the uncompressed name at `start`: what a question must carry.
///
/// `None` when it is cut, compressed or longer than RFC 1035 §2.3.4 allows.
#[inline]
pub(crate) fn plain_name_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        let len = *bytes.get(at)?;
        at += 1 + usize::from(len);
        if len == 0 {
            return (at - start <= NAME_LEN_MAX).then_some(at);
        }
        if len > LABEL_LEN_MAX || at - start >= NAME_LEN_MAX {
            return None;
        }
    }
}

/// Whether an uncompressed name is `suffix` or below it, whatever the letter case of the first. `suffix` is in lower
/// case. Both end with the root's label; a suffix that is the root fits every name.
pub fn is_under(name: &[u8], suffix: &[u8]) -> bool {
    let Some(mut skip) = name.len().checked_sub(suffix.len()) else { return false };
    let mut at = 0;
    // The suffix must begin where a label does.
    while skip > 0 {
        let step = 1 + usize::from(name[at]);
        let Some(left) = skip.checked_sub(step) else { return false };
        skip = left;
        at += step;
    }
    // Lengths of labels are below 64 and thus no letters.
    name[at..].eq_ignore_ascii_case(suffix)
}

/// A name without compression.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    len: u8,
    bytes: [u8; NAME_LEN_MAX],
}

impl Name {
    /// The root.
    pub(crate) const ROOT: Self = Self { len: 1, bytes: [0; NAME_LEN_MAX] };

    /// Copies the name at `start` out of a message, following its pointers. Returns where it ends, too.
    ///
    /// `None` when it is no name; what a scan has accepted is always one.
    pub(crate) fn read(bytes: &[u8], start: usize) -> Option<(Self, usize)> {
        let span = skip_name(bytes, start).ok()?;
        let mut name = Self::ROOT;
        let (mut at, mut len) = (start, 0);
        // A name has fewer labels and pointers than that.
        for _ in 0..2 * NAME_LEN_MAX {
            match *bytes.get(at)? {
                0 => {
                    *name.bytes.get_mut(len)? = 0;
                    name.len = len as u8 + 1;
                    return Some((name, span.end));
                }
                step @ 1..=LABEL_LEN_MAX => {
                    let label = bytes.get(at..at + 1 + usize::from(step))?;
                    name.bytes.get_mut(len..len + label.len())?.copy_from_slice(label);
                    len += label.len();
                    at += label.len();
                }
                // `skip_name` has followed them: they lead to an end.
                _ => at = usize::from(be16(bytes, at)? & 0x3fff),
            }
        }
        None
    }

    /// Copies a name as it stands in a question.
    pub(crate) fn plain(name: &[u8]) -> Option<Self> {
        let (name, end) = Self::read(name, 0).filter(|_| plain_name_end(name, 0) == Some(name.len()))?;
        (end == usize::from(name.len)).then_some(name)
    }

    /// The octets, root label included.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The same name in lower case.
    pub(crate) fn in_lower_case(mut self) -> Self {
        self.bytes.make_ascii_lowercase();
        self
    }

    /// True when both are the same name (RFC 4343).
    pub(crate) fn is(&self, other: &[u8]) -> bool {
        self.as_bytes().eq_ignore_ascii_case(other)
    }

    /// Where each label begins, the root's left out.
    pub(crate) fn labels(&self) -> impl Iterator<Item = usize> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (here, len) = (at, self.bytes[at]);
            at += 1 + usize::from(len);
            (len != 0).then_some(here)
        })
    }
}

impl std::fmt::Debug for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.as_bytes().escape_ascii())
    }
}

/// Skips the name at `start`, and proves by following its pointers that it can be read.
///
/// What a pointer leads to must begin and end before the run of labels that the pointer stands
/// in (RFC 1035 §4.1.4: a *prior* occurrence). So no chain can loop, and no name depends on bytes
/// behind it.
#[inline]
pub(crate) fn skip_name(bytes: &[u8], start: usize) -> Result<NameSpan, NameFault> {
    // Nearly every owner name is a pointer to the question's, which has been checked.
    if let Some([0xc0, 0x0c]) = bytes.get(start..).and_then(|rest| rest.first_chunk::<2>())
        && start > HEADER_LEN
    {
        // It reaches so far at least; and whatever stands there has been read before, and ends
        // before.
        return Ok(NameSpan { end: start + 2, reach: HEADER_LEN + 1 });
    }
    walk_name(bytes, start)
}

fn walk_name(bytes: &[u8], start: usize) -> Result<NameSpan, NameFault> {
    let mut at = start;
    let mut run_start = start;
    // Where the current run must have ended: the end of the message, then where it was led from.
    let mut limit = bytes.len();
    let mut len_total = 0;
    let mut hops = 0;
    let mut end = None;
    let mut reach = 0;
    loop {
        let byte = *bytes.get(at).ok_or(NameFault::Cut)?;
        let step = match byte {
            0 => 1,
            1..=LABEL_LEN_MAX => 1 + usize::from(byte),
            0xc0.. => 2,
            // 0b01 and 0b10 label types: withdrawn or never given (RFC 6891 §5).
            _ => return Err(NameFault::Bad),
        };
        if at + step > limit {
            return Err(if hops == 0 { NameFault::Cut } else { NameFault::Pointer });
        }
        if byte >= 0xc0 {
            let target = usize::from(be16(bytes, at).ok_or(NameFault::Cut)? & 0x3fff);
            hops += 1;
            if target < HEADER_LEN || target >= run_start || hops > HOPS_MAX {
                return Err(NameFault::Pointer);
            }
            match end {
                None => end = Some(at + 2),
                Some(_) if reach == 0 => reach = at + 2,
                Some(_) => {}
            }
            limit = run_start;
            run_start = target;
            at = target;
            continue;
        }
        at += step;
        len_total += step;
        if len_total > NAME_LEN_MAX || (byte != 0 && len_total == NAME_LEN_MAX) {
            return Err(NameFault::Bad);
        }
        if byte == 0 {
            return Ok(match end {
                None => NameSpan { end: at, reach: 0 },
                Some(end) if reach == 0 => NameSpan { end, reach: at },
                Some(end) => NameSpan { end, reach },
            });
        }
    }
}

/// One resource record's fixed parts, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) start: usize,
    /// How far what its owner name's pointers lead to reaches; zero without pointers.
    pub(crate) owner_reach: usize,
    pub(crate) rtype: u16,
    pub(crate) class: u16,
    pub(crate) ttl: u32,
    /// Where the TTL stands.
    pub(crate) ttl_at: usize,
    pub(crate) rdata: usize,
    pub(crate) end: usize,
}

impl Record {
    /// Reads the record at `start`.
    #[inline]
    pub(crate) fn read(bytes: &[u8], start: usize) -> Result<Self, NameFault> {
        let owner = skip_name(bytes, start)?;
        let fixed = bytes.get(owner.end..).and_then(|rest| rest.first_chunk::<10>()).ok_or(NameFault::Cut)?;
        let rdata = owner.end + 10;
        let end = rdata + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        if end > bytes.len() {
            return Err(NameFault::Cut);
        }
        Ok(Self {
            start,
            owner_reach: owner.reach,
            rtype: u16::from_be_bytes([fixed[0], fixed[1]]),
            class: u16::from_be_bytes([fixed[2], fixed[3]]),
            ttl: u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
            ttl_at: owner.end + 4,
            rdata,
            end,
        })
    }

    /// True when the owner is the root, written as such.
    pub(crate) fn owner_is_root(&self, bytes: &[u8]) -> bool {
        bytes.get(self.start) == Some(&0)
    }

    /// The RDATA's length, in bytes.
    pub(crate) fn rdata_len(&self) -> usize {
        self.end - self.rdata
    }

    /// The 32 bits that end the RDATA.
    pub(crate) fn rdata_last32(&self, bytes: &[u8]) -> Option<u32> {
        be32(bytes, self.end.checked_sub(4)?)
    }
}

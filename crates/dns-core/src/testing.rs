//! Messages for tests, put together byte by byte.

use crate::wire::{HashSeed, Query, QuestionKey, scan_query};

/// The seed that tests hash with.
pub(crate) fn seed() -> HashSeed {
    HashSeed::from_bytes(*b"sixteen bytes ok")
}

/// The key of a query.
pub(crate) fn key_of(query: &Query<'_>) -> QuestionKey {
    let mut key = QuestionKey::empty();
    query.fill_key(&mut key, &seed());
    key
}

/// A name on the wire; the root is "".
pub(crate) fn name(dotted: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in dotted.split('.').filter(|label| !label.is_empty()) {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// A message that is put together from the front.
#[derive(Clone)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn new(id: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 12];
        bytes[..2].copy_from_slice(&id.to_be_bytes());
        bytes[2..4].copy_from_slice(&flags.to_be_bytes());
        Self(bytes)
    }

    /// A query with RD.
    pub(crate) fn query(dotted: &str, qtype: u16) -> Self {
        Self::new(0x1234, 0x0100).question(dotted, qtype)
    }

    /// A response with RD and RA.
    pub(crate) fn response(dotted: &str, qtype: u16) -> Self {
        Self::new(0x5678, 0x8180).question(dotted, qtype)
    }

    pub(crate) fn question(self, dotted: &str, qtype: u16) -> Self {
        let mut message = self.counted(4);
        message.0.extend(name(dotted));
        message.words(&[qtype, 1])
    }

    /// A record owned by the question's name, by way of a pointer.
    pub(crate) fn record(self, section: usize, rtype: u16, ttl: u32, rdata: &[u8]) -> Self {
        self.record_at(section, &[0xc0, 0x0c], rtype, ttl, rdata)
    }

    /// A record; section 0 is the answer, 1 the authority, 2 the additional section.
    pub(crate) fn record_at(self, section: usize, owner: &[u8], rtype: u16, ttl: u32, rdata: &[u8]) -> Self {
        let mut message = self.counted(6 + 2 * section);
        message.0.extend_from_slice(owner);
        let message = message.words(&[rtype, 1, (ttl >> 16) as u16, ttl as u16]);
        let mut message = message.words(&[rdata.len() as u16]);
        message.0.extend_from_slice(rdata);
        message
    }

    pub(crate) fn a(self, ttl: u32) -> Self {
        self.record(0, 1, ttl, &[192, 0, 2, 1])
    }

    pub(crate) fn soa(self, ttl: u32, minimum: u32) -> Self {
        let mut rdata = vec![0xc0, 0x0c, 0xc0, 0x0c];
        for number in [1, 7200, 900, 86_400, minimum] {
            rdata.extend_from_slice(&number.to_be_bytes());
        }
        self.record(1, 6, ttl, &rdata)
    }

    pub(crate) fn opt(self, udp_size: u16, ttl: u32, options: &[u8]) -> Self {
        self.opt_at(&[0], udp_size, ttl, options)
    }

    pub(crate) fn opt_at(self, owner: &[u8], udp_size: u16, ttl: u32, options: &[u8]) -> Self {
        let mut message = self.counted(10);
        message.0.extend_from_slice(owner);
        let message = message.words(&[41, udp_size, (ttl >> 16) as u16, ttl as u16]);
        let mut message = message.words(&[options.len() as u16]);
        message.0.extend_from_slice(options);
        message
    }

    pub(crate) fn flags(mut self, flags: u16) -> Self {
        self.0[2..4].copy_from_slice(&flags.to_be_bytes());
        self
    }

    pub(crate) fn words(mut self, words: &[u16]) -> Self {
        for word in words {
            self.0.extend_from_slice(&word.to_be_bytes());
        }
        self
    }

    fn counted(mut self, at: usize) -> Self {
        let count = u16::from_be_bytes([self.0[at], self.0[at + 1]]) + 1;
        self.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
        self
    }
}

/// The OPT TTL field with DO set.
pub(crate) const DO: u32 = 0x8000;

/// Scans a query that must be fine.
pub(crate) fn scanned(message: &Message) -> Query<'_> {
    scan_query(&message.0).expect("a good query")
}

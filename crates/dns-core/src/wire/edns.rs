//! The OPT record and its options (RFC 6891 §6.1).

use super::name::Record;
use super::{UDP_LEN_MIN, be16, option};

/// What an OPT record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns<'a> {
    /// The UDP payload its sender takes, in bytes, never below 512 (RFC 6891 §6.2.3).
    pub udp_size: u16,
    /// The upper eight bits of the response code.
    pub rcode_high: u8,
    /// The EDNS version; 0 is the only one there is.
    pub version: u8,
    /// The DO bit: DNSSEC records are wanted (RFC 3225).
    pub dnssec_ok: bool,
    /// The options.
    pub options: EdnsOptions<'a>,
}

impl<'a> Edns<'a> {
    /// Reads the OPT record's fields out of where other records have class and TTL.
    pub(crate) fn of_record(bytes: &'a [u8], record: &Record) -> Self {
        let [rcode_high, version, flags, _] = record.ttl.to_be_bytes();
        Self {
            // RFC 6891 §6.2.3: values below 512 mean 512.
            udp_size: record.class.max(UDP_LEN_MIN),
            rcode_high,
            version,
            dnssec_ok: flags & 0x80 != 0,
            options: EdnsOptions { rest: bytes.get(record.rdata..record.end).unwrap_or_default() },
        }
    }
}

/// The options of an OPT record, in order. Ends at the first that is malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EdnsOptions<'a> {
    rest: &'a [u8],
}

/// One option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EdnsOption<'a> {
    /// Its code; see [`option`].
    pub code: u16,
    /// Its payload.
    pub data: &'a [u8],
}

/// An extended DNS error (RFC 8914).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExtendedError<'a> {
    /// The INFO-CODE.
    pub code: u16,
    /// The EXTRA-TEXT, which ought to be UTF-8.
    pub text: &'a [u8],
}

impl<'a> EdnsOptions<'a> {
    /// The payload of the first option with this code.
    pub fn data_of(mut self, code: u16) -> Option<&'a [u8]> {
        self.find(|found| found.code == code).map(|found| found.data)
    }

    /// The cookie: client part and, when known, server part (RFC 7873).
    pub fn cookie(self) -> Option<&'a [u8]> {
        self.data_of(option::COOKIE)
    }

    /// The client subnet option's payload (RFC 7871).
    pub fn client_subnet(self) -> Option<&'a [u8]> {
        self.data_of(option::CLIENT_SUBNET)
    }

    /// True when padding was sent (RFC 7830): the reply may be padded.
    pub fn has_padding(self) -> bool {
        self.data_of(option::PADDING).is_some()
    }

    /// True when the keep-alive option was sent, with or without a time-out (RFC 7828 §3.2.1).
    pub fn has_keepalive(self) -> bool {
        self.data_of(option::TCP_KEEPALIVE).is_some()
    }

    /// The idle time-out a server grants, in units of 100 ms (RFC 7828 §3.1).
    pub fn keepalive(self) -> Option<u16> {
        let data = self.data_of(option::TCP_KEEPALIVE)?;
        (data.len() == 2).then(|| be16(data, 0)).flatten()
    }

    /// The first extended error (RFC 8914 §2).
    pub fn extended_error(self) -> Option<ExtendedError<'a>> {
        let data = self.data_of(option::EXTENDED_ERROR)?;
        Some(ExtendedError { code: be16(data, 0)?, text: data.get(2..)? })
    }

    /// True when the options fill the RDATA exactly.
    pub(crate) fn well_formed(mut self) -> bool {
        while self.next().is_some() {}
        self.rest.is_empty()
    }
}

impl<'a> Iterator for EdnsOptions<'a> {
    type Item = EdnsOption<'a>;

    fn next(&mut self) -> Option<EdnsOption<'a>> {
        let code = be16(self.rest, 0)?;
        let end = 4 + usize::from(be16(self.rest, 2)?);
        let data = self.rest.get(4..end)?;
        self.rest = self.rest.get(end..)?;
        Some(EdnsOption { code, data })
    }
}

//! Names that are known here: from hosts files and from records in the configuration, and those on block lists.
//!
//! Local data is transparent: a name with records here is answered here for every type, with "no data" for those it
//! does not have; a name without records here is asked elsewhere, also below one that has some.

mod block;
mod data;
mod hosts;
mod map;
mod record;

#[cfg(test)]
mod tests;

pub use block::{BlockAnswer, BlockList, BlockListBuilder, LineFault};
pub use data::{LocalData, LocalDataBuilder, LocalProblem};
pub use hosts::HostsFault;
pub(crate) use map::NameMap;
pub use record::{LocalRecord, RecordTextError};

use crate::wire::{class, rtype};

/// Appends a record whose owner stands at `owner` in the message, in the first 16 KiB of it.
pub(crate) fn write_record(out: &mut Vec<u8>, owner: usize, rtype: u16, ttl: u32, rdata: &[u8]) {
    write_head(out, owner, rtype, ttl, rdata.len());
    out.extend_from_slice(rdata);
}

/// Appends the SOA record of a zone that nobody serves, for a negative answer (RFC 2308 §3); its name stands at `apex`
/// in the message. The numbers are those of RFC 6303 §3, but for the time to live.
pub(crate) fn write_soa(out: &mut Vec<u8>, apex: usize, ttl: u32) {
    const CONTACT: &[u8] = b"\x06nobody\x07invalid\0";
    write_head(out, apex, rtype::SOA, ttl, 2 + CONTACT.len() + 20);
    out.extend_from_slice(&pointer(apex));
    out.extend_from_slice(CONTACT);
    for number in [1, 3600, 1200, 604_800, ttl] {
        out.extend_from_slice(&u32::to_be_bytes(number));
    }
}

fn write_head(out: &mut Vec<u8>, owner: usize, rtype: u16, ttl: u32, rdata_len: usize) {
    out.extend_from_slice(&pointer(owner));
    out.extend_from_slice([rtype, class::IN].map(u16::to_be_bytes).as_flattened());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&(rdata_len as u16).to_be_bytes());
}

const fn pointer(to: usize) -> [u8; 2] {
    (0xc000 | to as u16).to_be_bytes()
}

//! Decisions of DNS forwarding, pure: bytes, time and randomness come in as arguments.
//!
//! No socket, clock, thread or runtime is known here, nothing panics on any bytes, and
//! nothing allocates per message once its buffers have grown. The way of one query:
//!
//! ```text
//! bytes ──scan_query──▶ Query ──QuestionKey::fill──▶ key ──MessageCache::lookup──▶ hit ──write_stored──▶ reply
//!             │                                                   │ miss
//!             ▼ fault                                             ▼
//!        write_error            write_query ─▶ upstream ─▶ Scan::scan_answer ─▶ insert + write_fresh
//! ```
//!
//! - [`wire`] reads messages: the client's query, the upstream's answer, the key of a question.
//! - [`reply`] writes replies: from the cache, from a fresh answer, or an error.
//! - [`cache`] keeps answers, bounded in bytes.
//! - [`rrset`] takes answers apart into what they say of other questions, and joins others of that.
//! - [`web`] is what DNS over HTTPS adds.
//! - [`guard`] says who may ask, and what no upstream is asked.
//! - [`local`] knows names of its own, and those that are blocked.
//! - [`bootstrap`] reads the addresses of upstreams that are given by name.

pub mod bootstrap;
pub mod cache;
pub mod forwarder;
pub mod guard;
pub mod local;
pub mod reply;
pub mod rrset;
pub mod web;
pub mod wire;

#[cfg(test)]
mod testing;

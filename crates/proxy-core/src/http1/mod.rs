//! HTTP/1.1 messages, read strictly and written anew (RFC 9112).
//!
//! A head is *text and spans*: [`RequestHead`] and [`ResponseHead`] hold where things stand in bytes that somebody else
//! owns, and their vectors are used again, so that a request costs no allocation. What was read is never passed on as it
//! came: [`write_request`] and [`write_response`] write what was understood, so that the next reader cannot understand
//! anything else.
//!
//! ```text
//! bytes ──▶ RequestHead::parse ──▶ request_body ──▶ BodyReader ──▶ data, trailers
//!                  │                                                    │
//!                  ▼                                                    ▼
//!            write_request                                    write_chunk, write_last_chunk
//! ```
//!
//! A message that came by HTTP/2 is put into the same form by [`RequestHead::build`] and [`ResponseHead::build`].

mod body;
mod chunked;
mod field;
mod head;
mod span;
#[cfg(test)]
mod tests;
mod write;

pub use body::{Body, BodyReader, Part, request_body, response_body};
pub use chunked::{
    BodyError, Chunk, ChunkedReader, LAST_CHUNK, TrailerLimits, Trailers, write_chunk_head, write_last_chunk,
};
pub use field::{Expectation, Field, Fields, Known};
pub use head::{HeadError, Limits, Method, RequestHead, ResponseHead, TargetForm, Version};
pub use span::Span;
pub use write::{
    Announce, Client, ForwardedPolicy, Lasting, RequestOut, ResponseOut, Trust, write_decimal, write_request,
    write_response,
};

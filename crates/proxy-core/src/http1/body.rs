//! How long the body of a message is (RFC 9112 §6.3), and reading it whatever its framing.

use std::ops::Range;

use super::chunked::{BodyError, Chunk, ChunkedReader, TrailerLimits, Trailers};
use super::head::{Method, RequestHead, ResponseHead};

/// How the body of a message is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// There is none.
    None,
    /// This many bytes, more than none.
    Length(u64),
    /// Chunks.
    Chunked,
    /// All bytes up to the end of the connection, which can then carry nothing else.
    UntilClose,
}

/// Returns how the body of a request is framed.
pub fn request_body(head: &RequestHead) -> Body {
    match (head.fields().is_chunked(), head.fields().content_length()) {
        (true, _) => Body::Chunked,
        (false, Some(length)) if length > 0 => Body::Length(length),
        // RFC 9112 §6.3, 7: a request without a length has no body.
        _ => Body::None,
    }
}

/// Returns how the body of the response to this method is framed. A response that opens a tunnel has none: what follows
/// is the tunnel's.
pub fn response_body(asked: Method, head: &ResponseHead) -> Body {
    // RFC 9112 §6.3, 1 and 2: these have no body, whatever their fields say.
    let is_empty = asked == Method::Head
        || matches!(head.status(), 100..200 | 204 | 304)
        || (asked == Method::Connect && (200..300).contains(&head.status()));
    match (head.fields().is_chunked(), head.fields().content_length()) {
        _ if is_empty => Body::None,
        (true, _) => Body::Chunked,
        (false, Some(0)) => Body::None,
        (false, Some(length)) => Body::Length(length),
        (false, None) => Body::UntilClose,
    }
}

/// What the next bytes of a body are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Data, at this place of the bytes.
    Data(Range<usize>),
    /// Nothing yet: all bytes were read, and more are needed.
    More,
    /// The body has ended; bytes that follow are not its own.
    End,
}

/// Reads a body of any framing.
#[derive(Clone, Debug)]
pub struct BodyReader {
    framing: Framing,
}

#[derive(Clone, Debug)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    Chunked(ChunkedReader),
    UntilClose,
}

impl BodyReader {
    /// Begins to read a body.
    pub fn new(body: Body) -> Self {
        let framing = match body {
            Body::None => Framing::Length(0),
            Body::Length(length) => Framing::Length(length),
            Body::Chunked => Framing::Chunked(ChunkedReader::default()),
            Body::UntilClose => Framing::UntilClose,
        };
        Self { framing }
    }

    /// Reads on. Returns how many bytes were read, and what they were; data are the last of them.
    ///
    /// # Errors
    ///
    /// What is wrong with chunks; the connection must then be closed.
    #[inline]
    pub fn read(&mut self, bytes: &[u8], limits: &TrailerLimits) -> Result<(usize, Part), BodyError> {
        match &mut self.framing {
            Framing::Length(0) => Ok((0, Part::End)),
            _ if bytes.is_empty() => Ok((0, if self.is_ended() { Part::End } else { Part::More })),
            Framing::Length(left) => {
                let len = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= len as u64;
                Ok((len, Part::Data(0..len)))
            }
            Framing::UntilClose => Ok((bytes.len(), Part::Data(0..bytes.len()))),
            Framing::Chunked(reader) => {
                let (len, chunk) = reader.read(bytes, limits)?;
                let part = match chunk {
                    Chunk::Data(range) => Part::Data(range),
                    Chunk::More => Part::More,
                    Chunk::End => Part::End,
                };
                Ok((len, part))
            }
        }
    }

    /// The connection has ended.
    ///
    /// # Errors
    ///
    /// [`BodyError::Truncated`], unless that is how the body ends or it had ended before.
    pub fn handle_end(&mut self) -> Result<(), BodyError> {
        match self.framing {
            Framing::UntilClose => {
                self.framing = Framing::Length(0);
                Ok(())
            }
            _ if self.is_ended() => Ok(()),
            _ => Err(BodyError::Truncated),
        }
    }

    /// Returns whether the body has ended.
    #[inline]
    pub fn is_ended(&self) -> bool {
        match &self.framing {
            Framing::Length(left) => *left == 0,
            Framing::Chunked(reader) => reader.is_ended(),
            Framing::UntilClose => false,
        }
    }

    /// Takes the trailers, once the body has ended.
    pub fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        match &mut self.framing {
            Framing::Chunked(reader) => reader.take_trailers(),
            _ => None,
        }
    }
}

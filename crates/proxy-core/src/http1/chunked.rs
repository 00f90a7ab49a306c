//! Bodies in chunks (RFC 9112 §7.1), read strictly over any splits of their bytes, and written.

use std::fmt;
use std::ops::Range;

use super::field::Fields;
use super::head::HeadError;
use super::span::is_field_value;

/// Longest size of a chunk: sixteen digits would be more than anybody's disk.
const SIZE_DIGITS_MAX: u32 = 15;
/// Most bytes of extensions of one chunk, and of all chunks of a body: nobody sends them but to make readers work or
/// disagree (CVE-2023-39326).
const EXTENSION_BYTES_MAX: u32 = 256;
const EXTENSIONS_BYTES_MAX: u32 = 4096;

/// The end of a body in chunks without trailers.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

macro_rules! errors {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// What is wrong with a body.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum BodyError {
            $($(#[$doc])* $variant,)*
            /// A trailer that cannot stand in a head either.
            Trailer(HeadError),
        }

        impl BodyError {
            /// Returns what is wrong, for a log and for an answer's body.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Trailer(error) => error.as_str(),
                }
            }
        }
    };
}

errors! {
    /// A chunk's size is no hexadecimal number, or too large a one.
    ChunkSize = "a chunk's size is not a hexadecimal number";
    /// A chunk's line or data is not followed by CR and LF.
    ChunkEnd = "a chunk does not end with CR and LF";
    /// Too many bytes of chunk extensions, or a control character in one.
    ChunkExtension = "a chunk's extension is too long, or has a control character";
    /// More trailers than the limit.
    TrailersTooLong = "the trailers are too long";
    /// The connection ended before the body did.
    Truncated = "the body ended early";
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for BodyError {}

/// How many trailers are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailerLimits {
    /// Most bytes of all trailers. Default: 8192.
    pub bytes_max: usize,
    /// Most trailers. Default: 32.
    pub fields_max: usize,
}

impl Default for TrailerLimits {
    fn default() -> Self {
        Self { bytes_max: 8192, fields_max: 32 }
    }
}

/// Fields after a body (RFC 9110 §6.5), with their text.
#[derive(Clone, Debug, Default)]
pub struct Trailers {
    text: Vec<u8>,
    fields: Fields,
}

impl Trailers {
    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.fields.list().is_empty()
    }

    /// Returns names and values of those that may be passed on: none that says how a message is framed, routed or kept,
    /// which a trailer must not (RFC 9110 §6.5.1).
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.end_to_end(&self.text).map(|(name, value, _)| (name, value))
    }

    /// Adds one, which came by another version.
    ///
    /// # Errors
    ///
    /// What cannot stand in a head of HTTP/1.1 either.
    pub fn push(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        let start = self.text.len();
        self.text.extend_from_slice(name);
        self.text.extend_from_slice(b": ");
        self.text.extend_from_slice(value);
        let end = self.text.len();
        let read = self.fields.read_line(&self.text, start, end);
        self.text.extend_from_slice(b"\r\n");
        read
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.text.clear();
        self.fields.clear();
    }
}

/// What the next bytes of a body in chunks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Data, at this place of the bytes.
    Data(Range<usize>),
    /// Nothing yet: all bytes were read, and more are needed.
    More,
    /// The body has ended.
    End,
}

/// Reads a body in chunks.
#[derive(Clone, Debug, Default)]
pub struct ChunkedReader {
    state: State,
    size: u64,
    digits: u32,
    extension: u32,
    extensions: u32,
    /// Allocated only when a trailer comes.
    trailers: Option<Box<Trailers>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In a size. To `Extension` by `;`, to `SizeEnd` by CR.
    #[default]
    Size,
    /// In an extension. To `SizeEnd` by CR.
    Extension,
    /// LF ends the line of a size: to `Data`, or to `TrailerStart` after the size 0.
    SizeEnd,
    /// In data. To `DataCr` when all is there.
    Data,
    /// CR follows data: to `DataLf`.
    DataCr,
    /// LF follows: to `Size`.
    DataLf,
    /// At the beginning of a trailer, or of the line that ends all: to `LastLf` by CR, else to `Trailer`.
    TrailerStart,
    /// In a trailer, up to LF: to `TrailerStart`.
    Trailer,
    /// LF ends all: to `Ended`.
    LastLf,
    /// The body has ended.
    Ended,
}

impl ChunkedReader {
    /// Reads on. Returns how many bytes were read, and what they were; data are the last of them.
    ///
    /// # Errors
    ///
    /// What is wrong; the connection must then be closed.
    pub fn read(&mut self, bytes: &[u8], limits: &TrailerLimits) -> Result<(usize, Chunk), BodyError> {
        let mut at = 0;
        while self.state != State::Ended {
            let Some(&byte) = bytes.get(at) else { return Ok((at, Chunk::More)) };
            match self.state {
                State::Data => {
                    let left = usize::try_from(self.size).unwrap_or(usize::MAX);
                    let end = bytes.len().min(at.saturating_add(left));
                    self.size -= (end - at) as u64;
                    if self.size == 0 {
                        self.state = State::DataCr;
                    }
                    return Ok((end, Chunk::Data(at..end)));
                }
                State::Trailer => {
                    at += self.read_trailer(bytes.get(at..).unwrap_or_default(), limits)?;
                    continue;
                }
                state => self.state = self.step(state, byte, limits)?,
            }
            at += 1;
        }
        Ok((at, Chunk::End))
    }

    /// Returns whether the body has ended.
    pub fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Takes the trailers, once the body has ended.
    pub fn take_trailers(&mut self) -> Option<Box<Trailers>> {
        self.trailers.take().filter(|trailers| self.is_ended() && !trailers.is_empty())
    }

    fn step(&mut self, state: State, byte: u8, limits: &TrailerLimits) -> Result<State, BodyError> {
        match (state, byte) {
            (State::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                self.digits += 1;
                if self.digits > SIZE_DIGITS_MAX {
                    return Err(BodyError::ChunkSize);
                }
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                Ok(State::Size)
            }
            (State::Size, b';') if self.digits > 0 => {
                self.extension = 1;
                Ok(State::Extension)
            }
            (State::Size, b'\r') if self.digits > 0 => Ok(State::SizeEnd),
            (State::Size, _) => Err(BodyError::ChunkSize),
            (State::Extension, b'\r') => Ok(State::SizeEnd),
            (State::Extension, _) => {
                self.extension += 1;
                self.extensions += 1;
                let is_fine = is_field_value(&[byte])
                    && self.extension <= EXTENSION_BYTES_MAX
                    && self.extensions <= EXTENSIONS_BYTES_MAX;
                if is_fine { Ok(State::Extension) } else { Err(BodyError::ChunkExtension) }
            }
            (State::SizeEnd, b'\n') => {
                self.digits = 0;
                Ok(if self.size == 0 { State::TrailerStart } else { State::Data })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::TrailerStart, b'\r') => Ok(State::LastLf),
            (State::TrailerStart, _) => {
                let trailers = self.trailers.get_or_insert_default();
                if byte == b'\n' {
                    return Err(BodyError::Trailer(HeadError::BareLf));
                }
                if trailers.text.len() >= limits.bytes_max {
                    return Err(BodyError::TrailersTooLong);
                }
                trailers.text.push(byte);
                Ok(State::Trailer)
            }
            (State::LastLf, b'\n') => Ok(State::Ended),
            _ => Err(BodyError::ChunkEnd),
        }
    }

    /// Reads a trailer up to the end of its line. Returns how many bytes.
    fn read_trailer(&mut self, bytes: &[u8], limits: &TrailerLimits) -> Result<usize, BodyError> {
        let trailers = self.trailers.get_or_insert_default();
        let found = memchr::memchr(b'\n', bytes);
        let len = found.map_or(bytes.len(), |at| at + 1);
        if trailers.text.len() + len > limits.bytes_max {
            return Err(BodyError::TrailersTooLong);
        }
        trailers.text.extend_from_slice(bytes.get(..len).unwrap_or_default());
        if found.is_some() {
            let start = trailers
                .fields
                .list()
                .last()
                .map_or(0, |field| line_after(&trailers.text, field.value.end()));
            let end = trailers.text.len() - 1;
            if trailers.text.get(start..end).and_then(<[u8]>::last) != Some(&b'\r') {
                return Err(BodyError::Trailer(HeadError::BareLf));
            }
            trailers.fields.read_line(&trailers.text, start, end - 1).map_err(BodyError::Trailer)?;
            if trailers.fields.list().len() > limits.fields_max {
                return Err(BodyError::TrailersTooLong);
            }
            self.state = State::TrailerStart;
        }
        Ok(len)
    }
}

/// Returns where the line after this place begins.
fn line_after(text: &[u8], at: usize) -> usize {
    memchr::memchr(b'\n', text.get(at..).unwrap_or_default()).map_or(text.len(), |len| at + len + 1)
}

/// Writes what stands before the data of a chunk; the data and CR LF follow. A chunk without data would end the body:
/// nothing is written for it.
pub fn write_chunk_head(out: &mut Vec<u8>, len: usize) {
    if len == 0 {
        return;
    }
    let digits = (usize::BITS - len.leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[len >> (4 * digit) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes the end of a body in chunks, with its trailers.
pub fn write_last_chunk(out: &mut Vec<u8>, trailers: Option<&Trailers>) {
    let Some(trailers) = trailers else { return out.extend_from_slice(LAST_CHUNK) };
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers.iter() {
        out.extend_from_slice(name);
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

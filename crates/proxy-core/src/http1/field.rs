//! Header fields: where they stand, which ones are known, and what they say about the message and its connection.

use super::head::{HeadError, Version};
use super::span::{Span, is_field_value, is_token, is_token_byte, members};

/// One header field, as spans of the bytes that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, in the letter case that it came in.
    pub name: Span,
    /// Its value, without the white space around it.
    pub value: Span,
    /// Which one it is.
    pub known: Known,
    /// Whether `name: value` and an end of line stand in the bytes exactly as they would be written anew.
    pub(crate) canonical: bool,
}

macro_rules! known {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// Fields that a proxy must know.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Known {
            $($(#[$doc])* $variant,)*
            /// Another name that begins with `x-forwarded-`.
            XForwardedOther,
            /// Any other field.
            Other,
        }

        impl Known {
            /// Returns which field this name means, in any letter case.
            pub fn of(name: &[u8]) -> Self {
                $(if name.len() == $name.len() && name.eq_ignore_ascii_case($name.as_bytes()) {
                    return Self::$variant;
                })*
                if name.len() > X_FORWARDED.len()
                    && name.get(..X_FORWARDED.len()).is_some_and(|start| start.eq_ignore_ascii_case(X_FORWARDED)) {
                    return Self::XForwardedOther;
                }
                Self::Other
            }
        }
    };
}

const X_FORWARDED: &[u8] = b"x-forwarded-";

known! {
    /// `Host` (RFC 9110 §7.2).
    Host = "host";
    /// `Connection` (RFC 9110 §7.6.1).
    Connection = "connection";
    /// `Content-Length` (RFC 9110 §8.6).
    ContentLength = "content-length";
    /// `Transfer-Encoding` (RFC 9112 §6.1).
    TransferEncoding = "transfer-encoding";
    /// `Upgrade` (RFC 9110 §7.8).
    Upgrade = "upgrade";
    /// `Expect` (RFC 9110 §10.1.1).
    Expect = "expect";
    /// `TE` (RFC 9110 §10.1.4).
    Te = "te";
    /// `Via` (RFC 9110 §7.6.3).
    Via = "via";
    /// `Trailer` (RFC 9110 §6.6.2).
    Trailer = "trailer";
    /// `Keep-Alive`, of the connection alone.
    KeepAlive = "keep-alive";
    /// `Proxy-Connection`, which should never have been (RFC 9112 §C.2.2).
    ProxyConnection = "proxy-connection";
    /// `HTTP2-Settings`, of an upgrade that is obsolete (RFC 9113 §3.1).
    Http2Settings = "http2-settings";
    /// `Forwarded` (RFC 7239).
    Forwarded = "forwarded";
    /// `X-Forwarded-For`.
    XForwardedFor = "x-forwarded-for";
    /// `X-Forwarded-Host`.
    XForwardedHost = "x-forwarded-host";
    /// `X-Forwarded-Proto`.
    XForwardedProto = "x-forwarded-proto";
    /// `X-Request-ID`.
    XRequestId = "x-request-id";
    /// `Authorization` (RFC 9110 §11.6.2).
    Authorization = "authorization";
    /// `WWW-Authenticate` (RFC 9110 §11.6.1).
    WwwAuthenticate = "www-authenticate";
    /// `Proxy-Authenticate` (RFC 9110 §11.7.1).
    ProxyAuthenticate = "proxy-authenticate";
}

impl Known {
    /// Returns whether this field belongs to one connection and is never passed on as it came (RFC 9110 §7.6.1).
    pub const fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::TransferEncoding
                | Self::Upgrade
                | Self::Http2Settings
        )
    }

    /// Returns whether this field says what and whose a message is, so that `Connection` cannot take it away and a
    /// trailer cannot bring it (RFC 9110 §6.5.1, §7.6.1).
    pub const fn is_pinned(self) -> bool {
        matches!(self, Self::Host | Self::ContentLength | Self::TransferEncoding)
    }
}

/// What the client expects of a server before it sends its body (RFC 9110 §10.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Expectation {
    /// Nothing.
    #[default]
    None,
    /// To be told `100 Continue`.
    Continue,
    /// Something that no server knows: the answer is 417.
    Unknown,
}

/// The header fields of one message, and what they say about its framing and its connection.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    list: Vec<Field>,
    pub(crate) host: Option<Span>,
    pub(crate) hosts: u32,
    pub(crate) length: Option<u64>,
    pub(crate) chunked: bool,
    pub(crate) close: bool,
    pub(crate) keep_alive: bool,
    pub(crate) upgrade_named: bool,
    pub(crate) others_named: bool,
    pub(crate) upgrade: Option<Span>,
    pub(crate) upgrades: u32,
    pub(crate) expect: Expectation,
    pub(crate) te_trailers: bool,
    pub(crate) has_via: bool,
}

impl Fields {
    /// Returns all fields, in their order.
    #[inline]
    pub fn list(&self) -> &[Field] {
        &self.list
    }

    /// Returns the fields that are meant for the other end, as names and values: none that belongs to a connection or
    /// is named by `Connection`, neither `Host` nor `Content-Length`, whose values stand elsewhere.
    pub fn end_to_end<'a>(&'a self, bytes: &'a [u8]) -> impl Iterator<Item = (&'a [u8], &'a [u8], Known)> {
        self.list
            .iter()
            .filter(|field| self.is_end_to_end(field, bytes))
            .map(|field| (field.name.of(bytes), field.value.of(bytes), field.known))
    }

    #[inline]
    pub(crate) fn is_end_to_end(&self, field: &Field, bytes: &[u8]) -> bool {
        match field.known {
            Known::Other | Known::XForwardedOther => {}
            known if known.is_hop_by_hop() || known.is_pinned() => return false,
            _ => {}
        }
        !self.others_named || !self.is_named_by_connection(field.name.of(bytes), bytes)
    }

    fn is_named_by_connection(&self, name: &[u8], bytes: &[u8]) -> bool {
        self.values_of(Known::Connection, bytes)
            .flat_map(members)
            .any(|option| option.eq_ignore_ascii_case(name))
    }

    /// Returns the values of all fields of this kind, in their order.
    pub fn values_of<'a>(&'a self, known: Known, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.list.iter().filter(move |field| field.known == known).map(|field| field.value.of(bytes))
    }

    /// Returns the value of the first field of this name, in any letter case.
    pub fn value_of<'a>(&self, name: &[u8], bytes: &'a [u8]) -> Option<&'a [u8]> {
        let field = self.list.iter().find(|field| field.name.of(bytes).eq_ignore_ascii_case(name))?;
        Some(field.value.of(bytes))
    }

    /// Returns the value of `Content-Length`, if there is one.
    pub const fn content_length(&self) -> Option<u64> {
        self.length
    }

    /// Returns whether the body comes in chunks.
    pub const fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// Returns what the client expects before it sends its body.
    pub const fn expectation(&self) -> Expectation {
        self.expect
    }

    /// Returns whether the sender takes trailers (RFC 9110 §10.1.4).
    pub const fn takes_trailers(&self) -> bool {
        self.te_trailers
    }

    /// Returns whether the sender keeps its connection after this message (RFC 9112 §9.3).
    pub fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Returns the protocols that `Upgrade` names, if `Connection` names it too (RFC 9110 §7.8).
    pub fn upgrade<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let value = self.upgrade.filter(|_| self.upgrade_named && self.upgrades == 1)?.of(bytes);
        (!value.is_empty()).then_some(value)
    }

    pub(crate) fn clear(&mut self) {
        let mut list = std::mem::take(&mut self.list);
        list.clear();
        *self = Self { list, ..Self::default() };
    }

    /// Reads the field in `bytes[start..end]`, a line without its end, which is followed by `\r\n`.
    #[inline]
    pub(crate) fn read_line(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), HeadError> {
        let line = bytes.get(start..end).unwrap_or_default();
        let name_len = line.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(line.len());
        match line.get(name_len) {
            Some(b':') if name_len > 0 => {}
            _ => return Err(fault_of_name(line, name_len)),
        }
        let mut from = name_len + 1;
        let mut to = line.len();
        while let Some(b' ' | b'\t') = line.get(from) {
            from += 1;
        }
        while to > from && matches!(line.get(to - 1), Some(b' ' | b'\t')) {
            to -= 1;
        }
        let value = line.get(from..to).unwrap_or_default();
        if !is_field_value(value) {
            return Err(if value.contains(&b'\r') { HeadError::BareCr } else { HeadError::FieldValue });
        }
        let canonical = from == name_len + 2 && line.get(name_len + 1) == Some(&b' ') && to == line.len();
        self.add(bytes, Span::new(start, start + name_len), Span::new(start + from, start + to), canonical)
    }

    /// Adds a field that stands at these places.
    #[inline]
    pub(crate) fn add(
        &mut self,
        bytes: &[u8],
        name: Span,
        value: Span,
        canonical: bool,
    ) -> Result<(), HeadError> {
        let known = Known::of(name.of(bytes));
        self.list.push(Field { name, value, known, canonical });
        if matches!(known, Known::Other) {
            return Ok(());
        }
        self.note(known, value, value.of(bytes))
    }

    fn note(&mut self, known: Known, span: Span, value: &[u8]) -> Result<(), HeadError> {
        match known {
            Known::Host => {
                self.hosts += 1;
                self.host = Some(span);
            }
            Known::ContentLength => self.note_length(value)?,
            Known::TransferEncoding => self.note_coding(value)?,
            Known::Connection => self.note_connection(value)?,
            Known::Upgrade => {
                self.upgrades += 1;
                self.upgrade = Some(span);
            }
            Known::Expect => {
                let is_continue = value.eq_ignore_ascii_case(b"100-continue");
                self.expect = match (is_continue, self.expect) {
                    (true, Expectation::None | Expectation::Continue) => Expectation::Continue,
                    _ => Expectation::Unknown,
                };
            }
            Known::Te => {
                self.te_trailers |= members(value).any(|member| member.eq_ignore_ascii_case(b"trailers"));
            }
            Known::Via => self.has_via = true,
            _ => {}
        }
        Ok(())
    }

    fn note_length(&mut self, value: &[u8]) -> Result<(), HeadError> {
        // Even the same number twice: RFC 9112 §6.3 lets us refuse it, and who sends it has been tampered with.
        match self.length.replace(length(value)?) {
            None => Ok(()),
            Some(_) => Err(HeadError::LengthRepeated),
        }
    }

    /// Only `chunked`, and only once: what else there is nobody sends, and every reader makes something else of it
    /// (RFC 9112 §6.1).
    fn note_coding(&mut self, value: &[u8]) -> Result<(), HeadError> {
        let mut last_is_chunked = false;
        let mut count = 0;
        let mut unknown = false;
        for coding in members(value) {
            if !is_token(coding) && !coding.iter().all(|byte| is_token_byte(*byte) || b"; =\"".contains(byte))
            {
                return Err(HeadError::CodingMalformed);
            }
            if coding.is_empty() {
                return Err(HeadError::CodingMalformed);
            }
            last_is_chunked = coding.eq_ignore_ascii_case(b"chunked");
            unknown |= !last_is_chunked;
            count += 1;
        }
        match (self.chunked, last_is_chunked, unknown, count) {
            (false, true, false, 1) => {
                self.chunked = true;
                Ok(())
            }
            (false, true, true, _) => Err(HeadError::CodingUnknown),
            (_, false, _, _) => Err(HeadError::CodingNotLast),
            _ => Err(HeadError::CodingRepeated),
        }
    }

    fn note_connection(&mut self, value: &[u8]) -> Result<(), HeadError> {
        for option in members(value) {
            if option.is_empty() {
                continue;
            }
            if !is_token(option) {
                return Err(HeadError::ConnectionMalformed);
            }
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade_named = true;
            } else {
                self.others_named = true;
            }
        }
        Ok(())
    }
}

/// Digits alone: no sign, no list, no more than a number of 63 bits (RFC 9112 §6.3).
fn length(value: &[u8]) -> Result<u64, HeadError> {
    let is_number = !value.is_empty() && value.len() <= 19 && value.iter().all(u8::is_ascii_digit);
    let number = value
        .iter()
        .fold(0_u64, |sum, digit| sum.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0'))));
    if is_number && number <= i64::MAX as u64 { Ok(number) } else { Err(HeadError::LengthMalformed) }
}

fn fault_of_name(line: &[u8], name_len: usize) -> HeadError {
    match line.get(name_len) {
        // RFC 9112 §5.2: a line that goes on is refused.
        Some(b' ' | b'\t') if name_len == 0 => HeadError::FoldedLine,
        // RFC 9112 §5.1: space before the colon is how requests are smuggled.
        Some(b' ' | b'\t') if line.contains(&b':') => HeadError::SpaceBeforeColon,
        Some(b'\r') => HeadError::BareCr,
        _ => HeadError::FieldName,
    }
}

//! Heads of requests and responses, read line by line: what was read of a part is not read again when more comes.

use std::fmt;

use super::field::{Fields, Known};
use super::span::{Span, is_authority, is_field_value, is_target, is_token, is_token_byte};

/// How much of a head is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest first line, in bytes: beyond it a request gets 414. Default: 8192, as RFC 9112 §3 advises.
    pub line_bytes_max: usize,
    /// The longest head, in bytes: beyond it a request gets 431. Default: 32768, twice what common servers take.
    pub head_bytes_max: usize,
    /// The most fields of one head: beyond it a request gets 431. Default: 100.
    pub fields_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { line_bytes_max: 8192, head_bytes_max: 32 * 1024, fields_max: 100 }
    }
}

/// The version of a message; others are refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1, or a message that came by a later version and was put into its form.
    #[default]
    Http11,
}

macro_rules! methods {
    ($($(#[$doc:meta])* $variant:ident = $name:literal;)*) => {
        /// The method of a request (RFC 9110 §9). Letter case counts.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum Method {
            $($(#[$doc])* $variant,)*
            /// Any other token.
            #[default]
            Other,
        }

        impl Method {
            /// Returns which method this name means.
            pub fn of(name: &[u8]) -> Self {
                $(if name == $name { return Self::$variant; })*
                Self::Other
            }
        }
    };
}

methods! {
    /// GET.
    Get = b"GET";
    /// HEAD: its response has no body, whatever its head says.
    Head = b"HEAD";
    /// POST.
    Post = b"POST";
    /// PUT.
    Put = b"PUT";
    /// DELETE.
    Delete = b"DELETE";
    /// CONNECT: a tunnel, once the answer is 2xx.
    Connect = b"CONNECT";
    /// OPTIONS.
    Options = b"OPTIONS";
    /// TRACE.
    Trace = b"TRACE";
    /// PATCH.
    Patch = b"PATCH";
}

impl Method {
    /// Returns whether asking twice does what asking once does (RFC 9110 §9.2.2).
    pub const fn is_idempotent(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace)
    }
}

/// The form of a request's target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetForm {
    /// `/path?query`.
    #[default]
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `host:port`, of CONNECT.
    Authority,
    /// `*`, of OPTIONS.
    Asterisk,
}

macro_rules! errors {
    ($($(#[$doc:meta])* $variant:ident = $status:literal, $text:literal;)*) => {
        /// What is wrong with a head.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum HeadError {
            $($(#[$doc])* $variant,)*
        }

        impl HeadError {
            /// Every error, in the order in which tables show them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the status of the answer, if the head was a request's. A bad response is 502 to its client.
            pub const fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// Returns what is wrong, for a log and for the answer's body.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

errors! {
    /// The first line is no request line.
    RequestLine = 400, "the first line is not METHOD TARGET HTTP/1.1";
    /// The first line is no status line.
    StatusLine = 400, "the first line is not HTTP/1.1 STATUS REASON";
    /// A method longer than any that is known.
    MethodTooLong = 501, "the method is longer than 32 bytes";
    /// A target that is none, or not one for its method.
    Target = 400, "the target is none that its method takes";
    /// The first line is longer than its limit.
    LineTooLong = 414, "the first line is too long";
    /// A version other than 1.0 and 1.1.
    Version = 505, "the version is neither HTTP/1.0 nor HTTP/1.1";
    /// A line that ends with LF alone.
    BareLf = 400, "a line ends without a carriage return";
    /// A carriage return that ends no line.
    BareCr = 400, "a carriage return ends no line";
    /// A field's name is no token, or no colon follows it.
    FieldName = 400, "a line is not NAME: VALUE";
    /// Space between a field's name and its colon.
    SpaceBeforeColon = 400, "white space stands before a colon";
    /// A line that goes on where another ended.
    FoldedLine = 400, "a line is folded";
    /// A control character in a value.
    FieldValue = 400, "a value has a control character";
    /// More fields than the limit.
    TooManyFields = 431, "there are too many fields";
    /// A head longer than the limit.
    HeadTooLong = 431, "the head is too long";
    /// HTTP/1.1 without `Host`, or with an empty one.
    HostMissing = 400, "Host is missing or empty";
    /// `Host` twice.
    HostRepeated = 400, "Host is there twice";
    /// `Host` that is no host.
    HostMalformed = 400, "Host is not HOST or HOST:PORT";
    /// `Content-Length` that is no number.
    LengthMalformed = 400, "Content-Length is not a number";
    /// `Content-Length` twice.
    LengthRepeated = 400, "Content-Length is there twice";
    /// `Content-Length` beside `Transfer-Encoding`.
    LengthAndCoding = 400, "Content-Length and Transfer-Encoding are both there";
    /// `Transfer-Encoding` that is no list of codings.
    CodingMalformed = 400, "Transfer-Encoding is not a list of codings";
    /// `Transfer-Encoding` whose last coding is not `chunked`.
    CodingNotLast = 400, "the last coding of Transfer-Encoding is not chunked";
    /// `chunked` twice.
    CodingRepeated = 400, "Transfer-Encoding says chunked twice";
    /// A coding other than `chunked`.
    CodingUnknown = 501, "Transfer-Encoding has a coding other than chunked";
    /// `Transfer-Encoding` in HTTP/1.0.
    CodingInHttp10 = 400, "HTTP/1.0 knows no Transfer-Encoding";
    /// `Connection` that is no list of tokens.
    ConnectionMalformed = 400, "Connection is not a list of names";
    /// CONNECT with a body, of which nobody knows whose it would be.
    ConnectWithBody = 400, "CONNECT has a body";
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::error::Error for HeadError {}

/// No method of any registry is longer than 18 bytes.
const METHOD_BYTES_MAX: usize = 32;

/// The head of a request. Keep one and read one head after the other into it.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    method: Method,
    method_name: Span,
    target: Span,
    path: Span,
    authority: Span,
    form: TargetForm,
    version: Version,
    is_secure: bool,
    fields: Fields,
    lines: Lines,
}

impl RequestHead {
    /// Reads a head that begins with these bytes. Returns its length when it is whole, and `None` while it is not: call
    /// again with the same bytes and more. Spans mean these bytes.
    ///
    /// An empty line before the head is taken as RFC 9112 §2.2 asks.
    ///
    /// # Errors
    ///
    /// What is wrong, as soon as the line that is wrong is there; the connection must then be closed.
    #[inline]
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        if self.lines.is_done {
            self.clear();
        }
        while let Some((start, end)) = self.lines.next(bytes, limits)? {
            if !self.lines.has_first {
                if start == end && start == 0 {
                    continue;
                }
                self.lines.has_first = true;
                self.read_first(bytes, start, end)?;
            } else if start == end {
                self.finish(bytes)?;
                self.lines.is_done = true;
                return Ok(Some(self.lines.at));
            } else {
                self.fields.read_line(bytes, start, end)?;
                if self.fields.list().len() > limits.fields_max {
                    return Err(HeadError::TooManyFields);
                }
            }
        }
        Ok(None)
    }

    /// Forgets what was read, so that another head can be.
    pub fn clear(&mut self) {
        self.lines = Lines::default();
        self.fields.clear();
    }

    /// Begins a head that came by another version: its text is appended to `text`, which must be empty, and the spans
    /// mean it. Add its fields, then [`RequestHead::built`].
    ///
    /// # Errors
    ///
    /// What cannot stand in a head of HTTP/1.1.
    pub fn build(
        &mut self,
        text: &mut Vec<u8>,
        method: &[u8],
        is_secure: bool,
        authority: &[u8],
        path: &[u8],
    ) -> Result<(), HeadError> {
        self.clear();
        self.lines.has_first = true;
        self.is_secure = is_secure;
        self.version = Version::Http11;
        self.method = Method::of(method);
        if method.len() > METHOD_BYTES_MAX {
            return Err(HeadError::MethodTooLong);
        }
        if !is_token(method) {
            return Err(HeadError::RequestLine);
        }
        if !authority.is_empty() && !is_authority(authority) {
            return Err(HeadError::HostMalformed);
        }
        self.form = match (self.method, path) {
            (Method::Connect, b"") if !authority.is_empty() => TargetForm::Authority,
            (Method::Connect, _) => return Err(HeadError::Target),
            (Method::Options, b"*") => TargetForm::Asterisk,
            (_, [b'/', ..]) if is_target(path) => TargetForm::Origin,
            _ => return Err(HeadError::Target),
        };
        self.method_name = append(text, method);
        self.path = append(text, path);
        self.target = self.path;
        self.authority = append(text, authority);
        Ok(())
    }

    /// Adds a field to a head that is built.
    ///
    /// # Errors
    ///
    /// What cannot stand in a head of HTTP/1.1.
    pub fn build_field(&mut self, text: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        build_field(&mut self.fields, text, name, value)
    }

    /// Ends a head that was built. A body whose length is not known comes in chunks.
    ///
    /// # Errors
    ///
    /// What does not go together.
    pub fn built(&mut self, text: &[u8], has_body: bool) -> Result<(), HeadError> {
        if let Some(host) = self.fields.host {
            // RFC 9113 §8.3.1: both may be there, but not as two hosts.
            if self.fields.hosts > 1 {
                return Err(HeadError::HostRepeated);
            }
            if self.authority.is_empty() {
                self.authority = host;
            }
            if !is_authority(host.of(text)) || !host.of(text).eq_ignore_ascii_case(self.authority.of(text)) {
                return Err(HeadError::HostMalformed);
            }
        }
        if has_body && self.method == Method::Connect {
            return Err(HeadError::ConnectWithBody);
        }
        self.fields.chunked = has_body && self.fields.length.is_none();
        self.lines.is_done = true;
        Ok(())
    }

    /// Returns its method.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// Returns its method as it came.
    pub fn method_name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.method_name.of(bytes)
    }

    /// Returns its target as it came.
    pub fn target<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.target.of(bytes)
    }

    /// Returns the form of its target.
    pub const fn form(&self) -> TargetForm {
        self.form
    }

    /// Returns what an origin server is to be asked for: path and query, `*`, or nothing for CONNECT.
    pub fn path<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.form {
            TargetForm::Authority => b"",
            // RFC 9112 §3.2.1: an empty path is sent as `/`; §3.2.4 makes `*` of it for OPTIONS.
            TargetForm::Absolute if self.path.is_empty() && self.method == Method::Options => b"*",
            TargetForm::Absolute if self.path.is_empty() => b"/",
            _ => self.path.of(bytes),
        }
    }

    /// Returns the host that is asked, with its port if it came with one: of the target if that has one
    /// (RFC 9112 §3.2.2), else of `Host`. Empty only for HTTP/1.0.
    pub fn authority<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.authority.of(bytes)
    }

    /// Returns its version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns its fields.
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Returns whether the client keeps its connection after this request (RFC 9112 §9.3).
    pub fn keeps_alive(&self) -> bool {
        self.fields.keeps_alive(self.version)
    }

    /// Returns whether a body follows.
    pub fn has_body(&self) -> bool {
        self.fields.chunked || self.fields.length.is_some_and(|length| length > 0)
    }

    /// Returns whether anything of this head has come, so that its client is waiting to be answered.
    pub const fn has_begun(&self) -> bool {
        self.lines.scanned > 0 && !self.lines.is_done
    }

    fn read_first(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), HeadError> {
        let line = bytes.get(start..end).unwrap_or_default();
        let name_len = line.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(line.len());
        if name_len > METHOD_BYTES_MAX {
            return Err(HeadError::MethodTooLong);
        }
        let Some((rest, version)) = line.split_last_chunk::<9>() else { return Err(HeadError::RequestLine) };
        // RFC 9112 §3: exactly one space between the three parts.
        if name_len == 0 || rest.get(name_len) != Some(&b' ') || !version.starts_with(b" HTTP/") {
            return Err(if line.contains(&b'\r') { HeadError::BareCr } else { HeadError::RequestLine });
        }
        let (target_start, target_end) = (start + name_len + 1, start + rest.len());
        let target = bytes.get(target_start..target_end).unwrap_or_default();
        if target.is_empty() || !is_target(target) {
            return Err(if target.contains(&b'\r') { HeadError::BareCr } else { HeadError::Target });
        }
        self.version = version_of(version.get(1..).unwrap_or_default(), HeadError::RequestLine)?;
        self.method_name = Span::new(start, start + name_len);
        self.method = Method::of(self.method_name.of(bytes));
        self.target = Span::new(target_start, target_end);
        self.path = self.target;
        self.authority = Span::default();
        self.is_secure = false;
        self.form = match (self.method, target) {
            (Method::Connect, _) => TargetForm::Authority,
            (Method::Options, b"*") => TargetForm::Asterisk,
            (_, [b'/', ..]) => TargetForm::Origin,
            _ => TargetForm::Absolute,
        };
        match self.form {
            TargetForm::Authority => {
                self.authority = self.target;
                // RFC 9112 §3.2.3: host and port, both.
                let has_port =
                    target.last() != Some(&b':') && !target.ends_with(b"]") && target.contains(&b':');
                if !has_port || !is_authority(target) {
                    return Err(HeadError::Target);
                }
            }
            TargetForm::Absolute => {
                let scheme_len = match target {
                    _ if starts_with(target, b"http://") => 7,
                    _ if starts_with(target, b"https://") => 8,
                    _ => return Err(HeadError::Target),
                };
                self.is_secure = scheme_len == 8;
                let rest = target.get(scheme_len..).unwrap_or_default();
                let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
                let path = target_start + scheme_len + len;
                self.authority = Span::new(target_start + scheme_len, path);
                self.path = Span::new(path, target_end);
                // A query without a path could not be sent on without making one up.
                if rest.get(len) == Some(&b'?') || !is_authority(self.authority.of(bytes)) {
                    return Err(HeadError::Target);
                }
            }
            TargetForm::Origin | TargetForm::Asterisk => {}
        }
        Ok(())
    }

    /// What must hold of the head as a whole.
    fn finish(&mut self, bytes: &[u8]) -> Result<(), HeadError> {
        self.fields.finish(self.version)?;
        // RFC 9112 §3.2: exactly one, even where the target says more.
        match (self.fields.hosts, self.fields.host) {
            (0, _) if self.version == Version::Http10 => {}
            (1, Some(host)) if !host.is_empty() => {
                if !is_authority(host.of(bytes)) {
                    return Err(HeadError::HostMalformed);
                }
                if self.authority.is_empty() {
                    self.authority = host;
                }
            }
            (0 | 1, _) => return Err(HeadError::HostMissing),
            _ => return Err(HeadError::HostRepeated),
        }
        if self.method == Method::Connect && (self.fields.chunked || self.fields.length.is_some()) {
            return Err(HeadError::ConnectWithBody);
        }
        Ok(())
    }
}

/// The head of a response. Keep one and read one head after the other into it.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    status: u16,
    reason: Span,
    version: Version,
    fields: Fields,
    lines: Lines,
}

impl ResponseHead {
    /// Reads a head that begins with these bytes, as [`RequestHead::parse`] does.
    ///
    /// # Errors
    ///
    /// What is wrong; the connection must then be closed.
    #[inline]
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<usize>, HeadError> {
        if self.lines.is_done {
            self.clear();
        }
        while let Some((start, end)) = self.lines.next(bytes, limits)? {
            if !self.lines.has_first {
                self.lines.has_first = true;
                self.read_first(bytes, start, end)?;
            } else if start == end {
                self.fields.finish(self.version)?;
                self.lines.is_done = true;
                return Ok(Some(self.lines.at));
            } else {
                self.fields.read_line(bytes, start, end)?;
                if self.fields.list().len() > limits.fields_max {
                    return Err(HeadError::TooManyFields);
                }
            }
        }
        Ok(None)
    }

    /// Forgets what was read, so that another head can be.
    pub fn clear(&mut self) {
        self.lines = Lines::default();
        self.fields.clear();
    }

    /// Begins a head that came by another version, as [`RequestHead::build`] does.
    ///
    /// # Errors
    ///
    /// A status that is none.
    pub fn build(&mut self, text: &mut Vec<u8>, status: u16) -> Result<(), HeadError> {
        self.clear();
        if !(100..1000).contains(&status) {
            return Err(HeadError::StatusLine);
        }
        self.lines.has_first = true;
        self.version = Version::Http11;
        self.status = status;
        self.reason = append(text, b"");
        Ok(())
    }

    /// Adds a field to a head that is built.
    ///
    /// # Errors
    ///
    /// What cannot stand in a head of HTTP/1.1.
    pub fn build_field(&mut self, text: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        build_field(&mut self.fields, text, name, value)
    }

    /// Ends a head that was built. A body whose length is not known comes in chunks.
    pub fn built(&mut self, has_body: bool) {
        self.fields.chunked = has_body && self.fields.length.is_none();
        self.lines.is_done = true;
    }

    /// Returns its status, of 100 to 999.
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// Returns its reason as it came; empty if it had none.
    pub fn reason<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        self.reason.of(bytes)
    }

    /// Returns its version.
    pub const fn version(&self) -> Version {
        self.version
    }

    /// Returns its fields.
    pub const fn fields(&self) -> &Fields {
        &self.fields
    }

    /// Returns whether the backend keeps its connection after this response (RFC 9112 §9.3).
    pub fn keeps_alive(&self) -> bool {
        self.fields.keeps_alive(self.version)
    }

    /// Returns whether another response to the same request follows (RFC 9110 §15.2); 101 is a last one.
    pub const fn is_interim(&self) -> bool {
        matches!(self.status, 100 | 102..200)
    }

    fn read_first(&mut self, bytes: &[u8], start: usize, end: usize) -> Result<(), HeadError> {
        let line = bytes.get(start..end).unwrap_or_default();
        let Some((version, rest)) = line.split_first_chunk::<8>() else { return Err(HeadError::StatusLine) };
        self.version = version_of(version, HeadError::StatusLine)?;
        let Some(([b' ', digits @ ..], reason)) = rest.split_first_chunk::<4>() else {
            return Err(HeadError::StatusLine);
        };
        if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
            return Err(HeadError::StatusLine);
        }
        self.status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        // The space before an empty reason must be there (RFC 9112 §4), but many servers leave it out.
        match reason {
            [] => self.reason = Span::new(end, end),
            [b' ', text @ ..] if is_field_value(text) => self.reason = Span::new(start + 13, end),
            text if text.contains(&b'\r') => return Err(HeadError::BareCr),
            _ => return Err(HeadError::StatusLine),
        }
        Ok(())
    }
}

impl Fields {
    /// What must hold of the fields of any message (RFC 9112 §6).
    fn finish(&mut self, version: Version) -> Result<(), HeadError> {
        if self.chunked {
            if self.length.is_some() {
                return Err(HeadError::LengthAndCoding);
            }
            if version == Version::Http10 {
                return Err(HeadError::CodingInHttp10);
            }
        }
        Ok(())
    }
}

fn build_field(fields: &mut Fields, text: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
    if !is_token(name) {
        return Err(HeadError::FieldName);
    }
    if !is_field_value(value) {
        return Err(HeadError::FieldValue);
    }
    // RFC 9113 §8.2.2: fields of a connection have no meaning there, and framing is the frames' alone.
    let known = Known::of(name);
    if known.is_hop_by_hop() && known != Known::Te {
        return Err(HeadError::FieldName);
    }
    let name = append(text, name);
    text.extend_from_slice(b": ");
    let value = append(text, super::span::trim(value));
    text.extend_from_slice(b"\r\n");
    fields.add(text, name, value, true)
}

fn append(text: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let start = text.len();
    text.extend_from_slice(bytes);
    Span::new(start, text.len())
}

fn starts_with(target: &[u8], scheme: &[u8]) -> bool {
    target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
}

fn version_of(text: &[u8], malformed: HeadError) -> Result<Version, HeadError> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            Err(HeadError::Version)
        }
        _ => Err(malformed),
    }
}

/// Where the lines of a head are.
#[derive(Clone, Copy, Debug, Default)]
struct Lines {
    /// Where the line begins that has not been read.
    at: usize,
    /// Up to where no end of that line was found.
    scanned: usize,
    has_first: bool,
    is_done: bool,
}

impl Lines {
    /// Returns where the next line begins and ends, without its end of line.
    #[inline]
    fn next(&mut self, bytes: &[u8], limits: &Limits) -> Result<Option<(usize, usize)>, HeadError> {
        let rest = bytes.get(self.scanned..).unwrap_or_default();
        let found = memchr::memchr(b'\n', rest);
        let upto = found.map_or(bytes.len(), |at| self.scanned + at);
        if !self.has_first {
            // Who speaks another protocol is told so before it waits for more.
            let text = bytes.get(self.at..).unwrap_or_default();
            match text.first() {
                Some(byte) if !is_token_byte(*byte) && *byte != b'\r' && *byte != b'\n' => {
                    return Err(HeadError::RequestLine);
                }
                _ => {}
            }
            if upto.saturating_sub(self.at) > limits.line_bytes_max {
                return Err(HeadError::LineTooLong);
            }
        }
        if upto > limits.head_bytes_max {
            return Err(HeadError::HeadTooLong);
        }
        if found.is_none() {
            self.scanned = bytes.len();
            return Ok(None);
        }
        let start = self.at;
        self.at = upto + 1;
        self.scanned = self.at;
        match bytes.get(start..upto) {
            Some([.., b'\r']) => Ok(Some((start, upto - 1))),
            _ => Err(HeadError::BareLf),
        }
    }
}

//! A line for each request of HTTP.
//!
//! A [`Trail`] goes with a request from its head to its end, and is written when it is dropped: whatever becomes of the
//! request, it is a line. With the log off, a trail is nothing, and each thing that is noted costs one look at that.
//!
//! Of the fields of a request only `Host`, `Referer`, `User-Agent` and `X-Request-ID` are kept; never `Authorization`,
//! never `Cookie`. What a client wrote is escaped, so that it is neither a second line nor a command to a terminal.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use forebay::lines::{WallClock, push_quoted};
use forebay::sys;
use forebay_core::Instant;
use forebay_proxy_core::http1::{ForwardedPolicy, Known, RequestHead, TargetForm, Trust, Version};

use super::{AccessLog, Line};

/// Longest target that is kept whole, in bytes: lines wait in a queue of fixed length, which must not hold gigabytes.
const TARGET_BYTES_MAX: usize = 2048;

/// Longest value of a field that is kept whole, in bytes.
const FIELD_BYTES_MAX: usize = 512;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The response was passed on to its end; a tunnel was ended by both sides.
    Whole,
    /// The client left before its response was whole.
    ClientLeft,
    /// The client did not send its body in time, or did not read.
    ClientLate,
    /// The backend closed, or what it said was none of HTTP.
    BackendFailed,
    /// The backend did not answer in time, or stopped in the middle.
    BackendLate,
    /// The proxy answered by itself: the request was wrong, or no backend could be reached.
    Refused,
    /// One of a tunnel's connections broke.
    Broken,
    /// Nothing moved in a tunnel for too long.
    Idle,
    /// The proxy ended, or the backend was removed or failed its checks.
    Cut,
}

impl End {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::ClientLeft => "client_left",
            Self::ClientLate => "client_late",
            Self::BackendFailed => "backend_failed",
            Self::BackendLate => "backend_late",
            Self::Refused => "refused",
            Self::Broken => "broken",
            Self::Idle => "idle",
            Self::Cut => "cut",
        }
    }
}

/// The version that a request came by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    /// HTTP/1.0 or HTTP/1.1, as its head says.
    Http1,
    /// HTTP/2.
    Http2,
}

/// What is known of a request, until it ends.
pub(crate) struct Trail<'a>(Option<Box<Open<'a>>>);

struct Open<'a> {
    log: &'a AccessLog,
    began: Instant,
    request: Request,
}

/// What a line says of a request.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// When it ended.
    at: Option<Instant>,
    /// From its head to its end.
    took: Duration,
    /// From its head to that of its response.
    head: Option<Duration>,
    client: Option<SocketAddr>,
    method: Vec<u8>,
    target: Vec<u8>,
    version: &'static str,
    host: Vec<u8>,
    referer: Vec<u8>,
    agent: Vec<u8>,
    /// As the backend was told.
    id: Vec<u8>,
    status: Option<u16>,
    /// Bytes of the bodies.
    up: u64,
    down: u64,
    /// The backend that was asked last, and whether its connection had carried others.
    backend: Option<(SocketAddr, bool)>,
    /// Backends and connections that were tried.
    tries: u32,
    end: Option<End>,
}

impl<'a> Trail<'a> {
    /// Begins at a request whose head is just being looked at.
    pub(crate) fn begin(log: Option<&'a AccessLog>, client: SocketAddr) -> Self {
        Self(log.map(|log| {
            let request = Request { client: Some(client), version: "-", ..Request::default() };
            Box::new(Open { log, began: sys::now(), request })
        }))
    }

    /// The request is this one.
    pub(crate) fn ask(&mut self, head: &RequestHead, bytes: &[u8], came: Came) {
        let Some(open) = &mut self.0 else { return };
        let request = &mut open.request;
        request.version = match (came, head.version()) {
            (Came::Http2, _) => "HTTP/2.0",
            (Came::Http1, Version::Http10) => "HTTP/1.0",
            (Came::Http1, Version::Http11) => "HTTP/1.1",
        };
        request.method = cut(head.method_name(bytes), FIELD_BYTES_MAX);
        // An absolute target may name a user and a password: what goes to the backend is kept.
        let is_authority = head.form() == TargetForm::Authority;
        let target = if is_authority { head.authority(bytes) } else { head.path(bytes) };
        request.target = cut(target, TARGET_BYTES_MAX);
        request.host = cut(head.authority(bytes), FIELD_BYTES_MAX);
        for field in head.fields().list() {
            let name = field.name.of(bytes);
            let slot = if name.eq_ignore_ascii_case(b"referer") {
                &mut request.referer
            } else if name.eq_ignore_ascii_case(b"user-agent") {
                &mut request.agent
            } else {
                continue;
            };
            *slot = cut(field.value.of(bytes), FIELD_BYTES_MAX);
        }
    }

    /// The backend is told this id, or the client's own.
    pub(crate) fn name(&mut self, policy: &ForwardedPolicy, head: &RequestHead, bytes: &[u8], id: u128) {
        let Some(open) = &mut self.0 else { return };
        let own = match policy.trust {
            Trust::Append => head.fields().values_of(Known::XRequestId, bytes).next(),
            Trust::Replace => None,
        };
        open.request.id = match own {
            Some(own) => cut(own, FIELD_BYTES_MAX),
            None if policy.request_id => format!("{id:032x}").into_bytes(),
            None => Vec::new(),
        };
    }

    /// A connection to this backend was had.
    pub(crate) fn link(&mut self, backend: SocketAddr, is_reused: bool) {
        if let Some(open) = &mut self.0 {
            open.request.backend = Some((backend, is_reused));
            open.request.tries += 1;
        }
    }

    /// A backend could not be reached.
    pub(crate) fn miss(&mut self) {
        if let Some(open) = &mut self.0 {
            open.request.tries += 1;
        }
    }

    /// The head of a response has come.
    pub(crate) fn head(&mut self, status: u16) {
        if let Some(open) = &mut self.0 {
            open.request.status = Some(status);
            open.request.head = Some(sys::now().saturating_duration_since(open.began));
        }
    }

    /// So many bytes of a body were passed on to the backend.
    pub(crate) fn up(&mut self, n: u64) {
        if let Some(open) = &mut self.0 {
            open.request.up += n;
        }
    }

    /// So many bytes of a body were passed on to the client.
    pub(crate) fn down(&mut self, n: u64) {
        if let Some(open) = &mut self.0 {
            open.request.down += n;
        }
    }

    /// It has ended like this. The first word counts.
    pub(crate) fn end(&mut self, end: End) {
        if let Some(open) = &mut self.0 {
            open.request.end.get_or_insert(end);
        }
    }

    /// The proxy answers by itself, with a body of so many bytes.
    pub(crate) fn refuse(&mut self, status: u16, bytes: usize) {
        if let Some(open) = &mut self.0 {
            open.request.status = Some(status);
            open.request.down += bytes as u64;
            open.request.end.get_or_insert(End::Refused);
        }
    }
}

impl Drop for Trail<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.0.take() {
            let Open { log, began, mut request } = *open;
            let now = sys::now();
            request.at = Some(now);
            request.took = now.saturating_duration_since(began);
            request.end.get_or_insert(End::Cut);
            log.0.push(Line::Request(Box::new(request)));
        }
    }
}

impl Request {
    pub(super) fn write_json(&self, proxy: &str, wall: &WallClock, out: &mut String) {
        // Nothing fails that writes into memory.
        if let Some(at) = self.at {
            let _ = write!(out, r#"{{"time":"{}","proxy":"#, wall.text(at));
        }
        push_quoted(out, proxy);
        if let Some(client) = self.client {
            let _ = write!(out, r#","client":"{}","port":{}"#, client.ip().to_canonical(), client.port());
        }
        for (name, text) in [
            ("method", &self.method),
            ("target", &self.target),
            ("host", &self.host),
            ("referer", &self.referer),
            ("user_agent", &self.agent),
            ("request_id", &self.id),
        ] {
            let _ = write!(out, r#","{name}":"#);
            match text.is_empty() {
                true => out.push_str("null"),
                false => push_quoted(out, &String::from_utf8_lossy(text)),
            }
        }
        let _ = write!(out, r#","version":"{}","status":"#, self.version);
        push_number(out, self.status.map(u128::from), "null");
        match self.backend {
            Some((backend, is_reused)) => {
                let _ = write!(out, r#","backend":"{backend}","reused":{is_reused}"#);
            }
            None => out.push_str(r#","backend":null,"reused":null"#),
        }
        let (tries, up, down) = (self.tries, self.up, self.down);
        let _ = write!(out, r#","tries":{tries},"bytes_up":{up},"bytes_down":{down},"head_us":"#);
        push_number(out, self.head.map(|head| head.as_micros()), "null");
        let (took, end) = (self.took.as_micros(), self.end.unwrap_or(End::Cut).as_str());
        let _ = writeln!(out, r#","took_us":{took},"end":"{end}"}}"#);
    }

    /// Writes the combined format, and after it what that does not have.
    pub(super) fn write_text(&self, wall: &WallClock, out: &mut String) {
        if let Some(client) = self.client {
            let _ = write!(out, "{} - - [", client.ip().to_canonical());
        }
        let began = self.at.map(|at| Instant::from_nanos(at.as_nanos().saturating_sub(nanos(self.took))));
        push_common_time(out, &began.map(|began| wall.text(began).to_string()).unwrap_or_default());
        out.push_str("] \"");
        match self.method.is_empty() {
            true => out.push('-'),
            false => {
                push_escaped(out, &self.method);
                out.push(' ');
                push_escaped(out, &self.target);
                let _ = write!(out, " {}", self.version);
            }
        }
        out.push_str("\" ");
        push_number(out, self.status.map(u128::from), "-");
        let _ = write!(out, " {} ", self.down);
        push_text(out, &self.referer);
        out.push(' ');
        push_text(out, &self.agent);
        out.push_str(" host=");
        push_text(out, &self.host);
        match self.backend {
            Some((backend, is_reused)) => {
                let kind = if is_reused { "reused" } else { "fresh" };
                let _ = write!(out, " backend={backend} connection={kind}");
            }
            None => out.push_str(" backend=- connection=-"),
        }
        let _ = write!(out, " tries={} up={} head_us=", self.tries, self.up);
        push_number(out, self.head.map(|head| head.as_micros()), "-");
        let _ = write!(out, " took_us={} id=", self.took.as_micros());
        push_text(out, &self.id);
        let _ = writeln!(out, " end={}", self.end.unwrap_or(End::Cut).as_str());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Copies so many bytes of a text; of a longer one, the end is three dots.
fn cut(text: &[u8], bytes_max: usize) -> Vec<u8> {
    match text.get(..bytes_max) {
        Some(start) if text.len() > bytes_max => [start, b"..."].concat(),
        _ => text.to_vec(),
    }
}

fn push_number(out: &mut String, number: Option<u128>, none: &str) {
    match number {
        Some(number) => {
            let _ = write!(out, "{number}");
        }
        None => out.push_str(none),
    }
}

/// Appends a text in quotes, or `"-"`.
fn push_text(out: &mut String, text: &[u8]) {
    out.push('"');
    match text.is_empty() {
        true => out.push('-'),
        false => push_escaped(out, text),
    }
    out.push('"');
}

/// Appends bytes so that they stay within their quotes: what is not printable ASCII, a quote or a backslash as `\xHH`.
fn push_escaped(out: &mut String, bytes: &[u8]) {
    for &byte in bytes {
        match byte {
            b'"' | b'\\' | 0..=0x1f | 0x7f.. => {
                let _ = write!(out, "\\x{byte:02x}");
            }
            byte => out.push(char::from(byte)),
        }
    }
}

/// Appends `2026-01-31T12:00:00.000Z` as `31/Jan/2026:12:00:00 +0000`.
fn push_common_time(out: &mut String, time: &str) {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let part = |range: std::ops::Range<usize>| time.get(range).unwrap_or("-");
    let month = part(5..7).parse::<usize>().ok().and_then(|month| MONTHS.get(month.wrapping_sub(1)));
    let (day, month, year) = (part(8..10), month.unwrap_or(&"-"), part(0..4));
    let _ = write!(out, "{day}/{month}/{year}:{} +0000", part(11..19));
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn wall() -> WallClock {
        WallClock::new(UNIX_EPOCH + Duration::from_secs(1_798_761_600), Instant::from_nanos(5_000_000_000))
    }

    fn request() -> Request {
        Request {
            at: Some(Instant::from_nanos(4_000_000_000)),
            took: Duration::from_millis(1500),
            head: Some(Duration::from_micros(1234)),
            client: Some("[::ffff:192.0.2.7]:4000".parse().unwrap()),
            method: b"GET".to_vec(),
            target: b"/a?b=c".to_vec(),
            version: "HTTP/1.1",
            host: b"example.com".to_vec(),
            referer: b"http://x/".to_vec(),
            agent: b"curl/8".to_vec(),
            id: b"00ff".to_vec(),
            status: Some(200),
            up: 5,
            down: 7,
            backend: Some(("192.0.2.9:80".parse().unwrap(), true)),
            tries: 1,
            end: Some(End::Whole),
        }
    }

    fn text(request: &Request) -> String {
        let mut out = String::new();
        request.write_text(&wall(), &mut out);
        out
    }

    fn json(request: &Request) -> String {
        let mut out = String::new();
        request.write_json("web", &wall(), &mut out);
        out
    }

    #[test]
    fn a_line_of_text_begins_as_the_combined_format_does() {
        assert_eq!(
            text(&request()),
            concat!(
                r#"192.0.2.7 - - [31/Dec/2026:23:59:57 +0000] "GET /a?b=c HTTP/1.1" 200 7 "http://x/" "curl/8" "#,
                r#"host="example.com" backend=192.0.2.9:80 connection=reused tries=1 up=5 head_us=1234 "#,
                r#"took_us=1500000 id="00ff" end=whole"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_request_is_one_json_object() {
        assert_eq!(
            json(&request()),
            concat!(
                r#"{"time":"2026-12-31T23:59:59.000Z","proxy":"web","client":"192.0.2.7","port":4000,"#,
                r#""method":"GET","target":"/a?b=c","host":"example.com","referer":"http://x/","#,
                r#""user_agent":"curl/8","request_id":"00ff","version":"HTTP/1.1","status":200,"#,
                r#""backend":"192.0.2.9:80","reused":true,"tries":1,"bytes_up":5,"bytes_down":7,"#,
                r#""head_us":1234,"took_us":1500000,"end":"whole"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn what_is_not_known_is_told_as_such() {
        let nothing = Request {
            at: request().at,
            client: request().client,
            version: "-",
            end: Some(End::Refused),
            ..Request::default()
        };
        let line = text(&nothing);
        assert!(
            line.contains(r#"] "-" - 0 "-" "-" host="-" backend=- connection=- tries=0 up=0 head_us=- "#)
        );
        assert!(line.ends_with("id=\"-\" end=refused\n"), "{line}");
        let line = json(&nothing);
        assert!(line.contains(r#""method":null,"target":null,"#), "{line}");
        assert!(line.contains(r#""status":null,"backend":null,"reused":null,"#), "{line}");
    }

    #[test]
    fn whatever_a_client_writes_stays_within_its_quotes_and_on_its_line() {
        let hostile = "a\"b\\c\r\nGET / \x1b[2J\0\u{7f}\u{9b}\u{2028}é".as_bytes();
        let bytes = [hostile, b"\xff\xfe"].concat();
        let request = Request {
            method: bytes.clone(),
            target: bytes.clone(),
            host: bytes.clone(),
            referer: bytes.clone(),
            agent: bytes.clone(),
            id: bytes,
            ..request()
        };
        let line = text(&request);
        assert_eq!(line.lines().count(), 1);
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')), "{line:?}");
        assert_eq!(line.matches('"').count(), 10, "{line}");
        assert!(line.contains(r"a\x22b\x5cc\x0d\x0aGET / \x1b[2J\x00\x7f\xc2\x9b"), "{line}");
        let line = json(&request);
        assert_eq!(line.lines().count(), 1);
        assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        assert!(line.contains(r#""a\"b\\c\u000d\u000aGET / \u001b[2J\u0000\u007f\u009b"#), "{line}");
    }

    #[test]
    fn what_is_too_long_is_cut() {
        assert_eq!(cut(b"1234", 4), b"1234");
        assert_eq!(cut(b"12345", 4), b"1234...");
    }
}

//! Heads written anew from what was understood, without what belongs to the connection they came by.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::field::{Fields, Known};
use super::head::{RequestHead, ResponseHead, TargetForm, Version};
use super::span::is_token;

/// What is done with `X-Forwarded-*`, `Forwarded` and request ids that a client sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// They are replaced: anybody may have written them.
    #[default]
    Replace,
    /// They stay, and this hop is added: the clients are proxies of ours.
    Append,
}

/// What a backend is told about the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedPolicy {
    /// Whether to write `X-Forwarded-For`, `-Proto` and `-Host`. Default: yes.
    pub x_forwarded: bool,
    /// Whether to write `Forwarded` (RFC 7239). Default: no.
    pub forwarded: bool,
    /// What is done with those that the client sends. Default: they are replaced, even by nothing.
    pub trust: Trust,
    /// Whether each request gets an `X-Request-ID`. Default: no.
    pub request_id: bool,
    /// The name that this proxy adds to `Via` (RFC 9110 §7.6.3). Default: none, and no `Via`.
    pub via: Option<String>,
}

impl Default for ForwardedPolicy {
    fn default() -> Self {
        Self { x_forwarded: true, forwarded: false, trust: Trust::Replace, request_id: false, via: None }
    }
}

impl ForwardedPolicy {
    /// Returns whether the name for `Via` can be one: a token, or a host with a port.
    pub fn is_via_name(name: &str) -> bool {
        is_token(name.as_bytes()) || super::span::is_authority(name.as_bytes())
    }
}

/// One client, as its connection's requests tell of it: written once, copied into each.
#[derive(Clone, Debug)]
pub struct Client {
    address: String,
    /// As RFC 7239 §6 wants it: with brackets and quotes around IPv6.
    pub(super) node: String,
    is_secure: bool,
}

impl Client {
    /// Makes it of the client's address, and of whether it speaks TLS to us.
    pub fn new(address: IpAddr, is_secure: bool) -> Self {
        // An IPv4 client of a socket of both families is an IPv4 client.
        let address = address.to_canonical();
        let node = match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("\"[{address}]\""),
        };
        Self { address: address.to_string(), node, is_secure }
    }

    /// Returns the client's address as text.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(super) const fn scheme(&self) -> &'static str {
        if self.is_secure { "https" } else { "http" }
    }
}

/// What the head says of the body that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announce {
    /// Nothing.
    Nothing,
    /// `Content-Length`.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// How a request is written.
#[derive(Debug)]
pub struct RequestOut<'a> {
    /// What the backend is told about the client.
    pub policy: &'a ForwardedPolicy,
    /// The client.
    pub client: &'a Client,
    /// How the body is framed.
    pub body: Announce,
    /// Whether the client's wish for another protocol is passed on: `rules::wants_upgrade` says so.
    pub upgrade: bool,
    /// What stands in `Host` when the client, of HTTP/1.0, named none.
    pub host: &'a str,
    /// The id of this request, if the policy wants one.
    pub id: u128,
}

/// What a client is told of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// Nothing: it lasts, as HTTP/1.1 does by itself.
    Lasts,
    /// `Connection: keep-alive`, for clients of HTTP/1.0.
    KeepAlive,
    /// `Connection: close`.
    Closes,
    /// `Connection: upgrade`, and the protocol that the backend has switched to.
    Upgrades,
}

/// How a response is written.
#[derive(Debug)]
pub struct ResponseOut<'a> {
    /// How the body is framed.
    pub body: Announce,
    /// What the client is told of its connection.
    pub lasting: Lasting,
    /// The name that this proxy adds to `Via`.
    pub via: Option<&'a str>,
}

/// Appends a request of HTTP/1.1 to `out`. `bytes` are those that the head was read from.
pub fn write_request(out: &mut Vec<u8>, bytes: &[u8], head: &RequestHead, how: &RequestOut<'_>) {
    let authority = match head.authority(bytes) {
        [] => how.host.as_bytes(),
        authority => authority,
    };
    out.extend_from_slice(head.method_name(bytes));
    out.push(b' ');
    // RFC 9112 §3.2.1: an origin server is asked in origin form, whatever form came.
    out.extend_from_slice(if head.form() == TargetForm::Authority { authority } else { head.path(bytes) });
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(authority);
    out.extend_from_slice(b"\r\n");

    let policy = how.policy;
    let fields = head.fields();
    let replaces = policy.trust == Trust::Replace;
    write_fields(out, bytes, fields, |known| match known {
        // Written below, after those that the client sent or instead of them.
        Known::Forwarded | Known::XForwardedFor => !replaces,
        Known::XForwardedHost | Known::XForwardedProto | Known::XForwardedOther | Known::XRequestId => {
            !replaces
        }
        _ => true,
    });
    write_framing(out, how.body);

    let has = |known| !replaces && fields.values_of(known, bytes).next().is_some();
    if policy.x_forwarded {
        write_field(out, "X-Forwarded-For", how.client.address.as_bytes());
        if !has(Known::XForwardedProto) {
            write_field(out, "X-Forwarded-Proto", how.client.scheme().as_bytes());
        }
        if !has(Known::XForwardedHost) {
            write_field(out, "X-Forwarded-Host", authority);
        }
    }
    if policy.forwarded {
        out.extend_from_slice(b"Forwarded: for=");
        out.extend_from_slice(how.client.node.as_bytes());
        out.extend_from_slice(b";host=\"");
        // No quote and no backslash can stand in an authority.
        out.extend_from_slice(authority);
        out.extend_from_slice(b"\";proto=");
        out.extend_from_slice(how.client.scheme().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if policy.request_id && !has(Known::XRequestId) {
        out.extend_from_slice(b"X-Request-ID: ");
        write_hex(out, how.id);
        out.extend_from_slice(b"\r\n");
    }
    write_via(out, head.version(), policy.via.as_deref());
    match (how.upgrade, fields.takes_trailers()) {
        (true, _) => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            write_field(out, "Upgrade", fields.upgrade(bytes).unwrap_or_default());
        }
        // RFC 9110 §10.1.4: TE stands in Connection. Trailers are passed on, so the wish for them may be, too.
        (false, true) => out.extend_from_slice(b"Connection: TE\r\nTE: trailers\r\n"),
        (false, false) => {}
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a response of HTTP/1.1 to `out`. `bytes` are those that the head was read from.
pub fn write_response(out: &mut Vec<u8>, bytes: &[u8], head: &ResponseHead, how: &ResponseOut<'_>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    write_decimal(out, u64::from(head.status()));
    out.push(b' ');
    out.extend_from_slice(head.reason(bytes));
    out.extend_from_slice(b"\r\n");
    write_fields(out, bytes, head.fields(), |_| true);
    write_framing(out, how.body);
    write_via(out, head.version(), how.via);
    match how.lasting {
        Lasting::Lasts => {}
        Lasting::KeepAlive => out.extend_from_slice(b"Connection: keep-alive\r\n"),
        Lasting::Closes => out.extend_from_slice(b"Connection: close\r\n"),
        Lasting::Upgrades => {
            out.extend_from_slice(b"Connection: upgrade\r\n");
            write_field(out, "Upgrade", head.fields().upgrade(bytes).unwrap_or_default());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal digits.
pub fn write_decimal(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Writes all fields for the other end that `keep` wants. Neighbours that stand in the bytes as they would be written
/// are copied at once.
#[inline]
fn write_fields(out: &mut Vec<u8>, bytes: &[u8], fields: &Fields, keep: impl Fn(Known) -> bool) {
    let mut run: Option<(usize, usize)> = None;
    for field in fields.list() {
        let is_kept = fields.is_end_to_end(field, bytes) && keep(field.known);
        let (start, end) = (field.name.start(), field.value.end() + 2);
        run = match run {
            Some((from, to)) if is_kept && field.canonical && to == start => Some((from, end)),
            run => {
                if let Some((from, to)) = run {
                    out.extend_from_slice(bytes.get(from..to).unwrap_or_default());
                }
                if is_kept && !field.canonical {
                    out.extend_from_slice(field.name.of(bytes));
                    out.extend_from_slice(b": ");
                    out.extend_from_slice(field.value.of(bytes));
                    out.extend_from_slice(b"\r\n");
                }
                (is_kept && field.canonical).then_some((start, end))
            }
        };
    }
    if let Some((from, to)) = run {
        out.extend_from_slice(bytes.get(from..to).unwrap_or_default());
    }
}

fn write_framing(out: &mut Vec<u8>, body: Announce) {
    match body {
        Announce::Nothing => {}
        Announce::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            write_decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Announce::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

fn write_via(out: &mut Vec<u8>, came_by: Version, name: Option<&str>) {
    if let Some(name) = name {
        out.extend_from_slice(if came_by == Version::Http10 { b"Via: 1.0 " } else { b"Via: 1.1 " });
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn write_hex(out: &mut Vec<u8>, number: u128) {
    let mut text = String::with_capacity(32);
    // Writing into a text cannot fail.
    let _ = write!(text, "{number:032x}");
    out.extend_from_slice(text.as_bytes());
}

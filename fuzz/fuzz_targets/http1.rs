//! Any bytes as requests on a client's connection: read as a stream in pieces and at once alike, and what is written of
//! them is read as the same. The first byte makes the pieces, the rest is what comes.

#![no_main]

use forebay_proxy_core::http1::{
    Announce, Body, BodyReader, Client, ForwardedPolicy, Lasting, Limits, Part, RequestHead, RequestOut,
    ResponseHead, ResponseOut, TrailerLimits, Trust, request_body, write_request, write_response,
};
use forebay_proxy_core::rules::{is_private, wants_upgrade};
use libfuzzer_sys::fuzz_target;

/// Most requests that are read of one input.
const REQUESTS_MAX: usize = 16;

fuzz_target!(|input: &[u8]| {
    let Some((&split, bytes)) = input.split_first() else { return };
    let limits = Limits::default();
    let mut rest = bytes;
    for _ in 0..REQUESTS_MAX {
        let mut whole = RequestHead::default();
        let at_once = whole.parse(rest, &limits);
        let mut parts = RequestHead::default();
        let mut by_parts = Ok(None);
        for end in (0..rest.len()).step_by(usize::from(split) + 1).chain([rest.len()]) {
            by_parts = parts.parse(&rest[..end], &limits);
            if by_parts != Ok(None) {
                break;
            }
        }
        assert_eq!(at_once, by_parts);
        let Ok(Some(len)) = at_once else { break };
        let framing = request_body(&whole);
        let out = written(&whole, rest, framing, Trust::Replace);
        let mut again = RequestHead::default();
        assert_eq!(
            again.parse(&out, &Limits { fields_max: 200, head_bytes_max: 1 << 20, line_bytes_max: 1 << 16 }),
            Ok(Some(out.len()))
        );
        assert_eq!(again.method_name(&out), whole.method_name(rest));
        assert_eq!(again.path(&out), whole.path(rest));
        assert_eq!(request_body(&again), framing);
        assert_eq!(wants_upgrade(&again, &out), wants_upgrade(&whole, rest));
        written(&whole, rest, framing, Trust::Append);
        let Some(len) = body(framing, &rest[len..], split).map(|body_len| len + body_len) else { break };
        rest = &rest[len..];
    }

    let mut response = ResponseHead::default();
    if let Ok(Some(len)) = response.parse(bytes, &limits) {
        let mut out = Vec::new();
        let how = ResponseOut { body: Announce::Length(1), lasting: Lasting::Closes, via: None };
        write_response(&mut out, bytes, &response, &how);
        let mut again = ResponseHead::default();
        assert_eq!(again.parse(&out, &Limits { fields_max: 200, ..limits }), Ok(Some(out.len())));
        assert_eq!((again.status(), again.reason(&out)), (response.status(), response.reason(bytes)));
        assert!(!again.keeps_alive() && !again.fields().is_chunked());
        // Connection may name the field that says so.
        assert!(!is_private(&again, &out) || is_private(&response, &bytes[..len]));
    }
    body(Body::Chunked, bytes, split);
});

fn written(head: &RequestHead, bytes: &[u8], framing: Body, trust: Trust) -> Vec<u8> {
    let mut out = Vec::new();
    let policy = ForwardedPolicy { forwarded: true, request_id: true, trust, ..ForwardedPolicy::default() };
    let client = Client::new([127, 0, 0, 1].into(), true);
    let body = match framing {
        Body::Length(length) => Announce::Length(length),
        Body::Chunked => Announce::Chunked,
        Body::None | Body::UntilClose => Announce::Nothing,
    };
    let upgrade = wants_upgrade(head, bytes);
    write_request(
        &mut out,
        bytes,
        head,
        &RequestOut { policy: &policy, client: &client, body, upgrade, host: "b", id: 7 },
    );
    out
}

/// Reads a body at once and in pieces. Returns its length, if it is whole.
fn body(framing: Body, bytes: &[u8], split: u8) -> Option<usize> {
    let at_once = read(framing, bytes, bytes.len().max(1));
    let by_parts = read(framing, bytes, usize::from(split) + 1);
    assert_eq!(at_once, by_parts);
    at_once.map(|(_, len)| len)
}

fn read(framing: Body, bytes: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let mut reader = BodyReader::new(framing);
    let (mut data, mut at, mut until) = (Vec::new(), 0, 0);
    loop {
        let (len, part) = reader.read(&bytes[at..until], &TrailerLimits::default()).ok()?;
        match part {
            Part::Data(range) => data.extend_from_slice(&bytes[at..until][range]),
            Part::End => return Some((data, at + len)),
            Part::More if until == bytes.len() => return None,
            Part::More => until = bytes.len().min(until + step),
        }
        at += len;
    }
}

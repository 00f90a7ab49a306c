use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const HOST: &str = "Host: a\r\n";

fn request(text: impl AsRef<[u8]>) -> Result<RequestHead, HeadError> {
    let mut head = RequestHead::default();
    let len = head.parse(text.as_ref(), &Limits::default())?.expect("a whole head");
    assert_eq!(len, text.as_ref().len());
    Ok(head)
}

fn response(text: &str) -> Result<ResponseHead, HeadError> {
    let mut head = ResponseHead::default();
    assert_eq!(head.parse(text.as_bytes(), &Limits::default())?, Some(text.len()));
    Ok(head)
}

fn post(fields: &str) -> Result<RequestHead, HeadError> {
    request(format!("POST / HTTP/1.1\r\n{HOST}{fields}\r\n"))
}

fn fault(text: impl AsRef<[u8]>) -> HeadError {
    RequestHead::default().parse(text.as_ref(), &Limits::default()).expect_err("a bad head")
}

fn written(text: &str, policy: &ForwardedPolicy) -> String {
    let head = request(text).unwrap();
    let mut out = Vec::new();
    let client = Client::new([192, 0, 2, 7].into(), false);
    let body = match request_body(&head) {
        Body::Length(length) => Announce::Length(length),
        Body::Chunked => Announce::Chunked,
        _ => Announce::Nothing,
    };
    let upgrade = crate::rules::wants_upgrade(&head, text.as_bytes());
    let how = RequestOut { policy, client: &client, body, upgrade, host: "backend:80", id: 0xfeed };
    write_request(&mut out, text.as_bytes(), &head, &how);
    String::from_utf8(out).unwrap()
}

fn quiet() -> ForwardedPolicy {
    ForwardedPolicy { x_forwarded: false, ..ForwardedPolicy::default() }
}

#[test]
fn a_request_is_read() {
    let text =
        b"PUT /a?b=c HTTP/1.1\r\nHost: example.com:80\r\nX-A:  b\tc \r\nEmpty:\r\nContent-Length: 3\r\n\r\n";
    let head = request(text).unwrap();
    assert_eq!((head.method(), head.target(text)), (Method::Put, &b"/a?b=c"[..]));
    assert_eq!((head.form(), head.version()), (TargetForm::Origin, Version::Http11));
    assert_eq!(head.authority(text), b"example.com:80");
    assert_eq!(head.fields().value_of(b"x-a", text), Some(&b"b\tc"[..]));
    assert_eq!(head.fields().value_of(b"empty", text), Some(&b""[..]));
    assert_eq!(request_body(&head), Body::Length(3));
    assert!(head.keeps_alive() && head.has_body());
}

#[test]
fn a_response_is_read_with_and_without_a_reason() {
    for (text, reason) in [
        ("HTTP/1.1 200 OK\r\n\r\n", "OK"),
        ("HTTP/1.1 200 \r\n\r\n", ""),
        ("HTTP/1.1 200\r\n\r\n", ""),
        ("HTTP/1.1 200 All is well\r\n\r\n", "All is well"),
    ] {
        let head = response(text).unwrap();
        assert_eq!((head.status(), head.reason(text.as_bytes())), (200, reason.as_bytes()));
    }
    for text in [
        "HTTP/1.1 20 OK\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1 099 OK\r\n",
        "HTTP/1.1  200 OK\r\n",
        "ICY 200 OK\r\n",
    ] {
        let fault = ResponseHead::default().parse(text.as_bytes(), &Limits::default());
        assert_eq!(fault, Err(HeadError::StatusLine), "{text:?}");
    }
}

#[test]
fn a_part_of_a_head_is_not_read_twice_and_any_split_means_the_same() {
    let text = format!("GET / HTTP/1.1\r\n{HOST}A: b\r\nConnection: close\r\n\r\n");
    let bytes = text.as_bytes();
    let mut head = RequestHead::default();
    for end in 0..bytes.len() {
        assert_eq!(head.parse(&bytes[..end], &Limits::default()), Ok(None), "{end}");
    }
    assert_eq!(head.parse(bytes, &Limits::default()), Ok(Some(bytes.len())));
    assert_eq!(head.fields().list().len(), 3);
    assert!(!head.keeps_alive());
    // The next one is read into the same value.
    let next = b"GET /2 HTTP/1.0\r\n\r\nrest";
    assert_eq!(head.parse(next, &Limits::default()), Ok(Some(19)));
    assert_eq!(
        (head.target(next), head.fields().list().len(), head.authority(next)),
        (&b"/2"[..], 0, &b""[..])
    );
}

#[test]
fn one_empty_line_before_a_request_is_passed_over_and_no_second_one() {
    let text = format!("\r\nGET / HTTP/1.1\r\n{HOST}\r\n");
    assert_eq!(request(&text).unwrap().method(), Method::Get);
    assert_eq!(fault(format!("\r\n{text}")), HeadError::RequestLine);
    assert_eq!(
        ResponseHead::default().parse(b"\r\nHTTP/1.1 200 OK\r\n", &Limits::default()),
        Err(HeadError::StatusLine)
    );
}

#[test]
fn another_protocol_is_refused_at_its_first_byte() {
    assert_eq!(fault(b"\x16\x03\x01"), HeadError::RequestLine);
    assert_eq!(fault(b"PRI * HTTP/2.0\r\n"), HeadError::Version);
    assert_eq!(HeadError::Version.status(), 505);
    assert_eq!(fault(b"GET / HTTP/1.2\r\n"), HeadError::Version);
    for line in [
        "GET / HTTP/1.1 \r\n",
        "GET /\r\n",
        "GET  / HTTP/1.1\r\n",
        "GET /  HTTP/1.1\r\n",
        "GET / http/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "G@T / HTTP/1.1\r\n",
        "GET / HTTP/11\r\n",
    ] {
        assert!(matches!(fault(line), HeadError::RequestLine | HeadError::Target), "{line:?}");
        assert_eq!(fault(line).status(), 400);
    }
}

#[test]
fn a_length_beside_a_coding_is_refused() {
    for fields in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    ] {
        assert_eq!(post(fields).unwrap_err(), HeadError::LengthAndCoding);
    }
    let text = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response(text).unwrap_err(), HeadError::LengthAndCoding);
}

#[test]
fn a_length_that_is_no_single_number_is_refused() {
    for value in [
        "",
        "+4",
        "-4",
        "4,4",
        "4, 4",
        "0x4",
        "4 4",
        "4;",
        "٤",
        "9223372036854775808",
        "99999999999999999999",
    ] {
        assert_eq!(
            post(&format!("Content-Length: {value}\r\n")).unwrap_err(),
            HeadError::LengthMalformed,
            "{value:?}"
        );
    }
    for second in ["4", "5"] {
        let fields = format!("Content-Length: 4\r\nContent-Length: {second}\r\n");
        assert_eq!(post(&fields).unwrap_err(), HeadError::LengthRepeated);
    }
    assert_eq!(
        post("Content-Length: 9223372036854775807\r\n").unwrap().fields().content_length(),
        Some(i64::MAX as u64)
    );
}

#[test]
fn codings_other_than_chunked_alone_are_refused() {
    for (fields, error, status) in [
        ("Transfer-Encoding: gzip, chunked\r\n", HeadError::CodingUnknown, 501),
        ("Transfer-Encoding: chunked, gzip\r\n", HeadError::CodingNotLast, 400),
        ("Transfer-Encoding: identity\r\n", HeadError::CodingNotLast, 400),
        ("Transfer-Encoding: xchunked\r\n", HeadError::CodingNotLast, 400),
        ("Transfer-Encoding: chunked, chunked\r\n", HeadError::CodingRepeated, 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", HeadError::CodingRepeated, 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n", HeadError::CodingNotLast, 400),
        ("Transfer-Encoding: \x0bchunked\r\n", HeadError::FieldValue, 400),
        ("Transfer-Encoding: \"chunked\"\r\n", HeadError::CodingNotLast, 400),
        ("Transfer-Encoding: chunked,\r\n", HeadError::CodingMalformed, 400),
        ("Transfer-Encoding:\r\n", HeadError::CodingMalformed, 400),
    ] {
        let found = post(fields).unwrap_err();
        assert_eq!((found, found.status()), (error, status), "{fields:?}");
    }
    assert!(post("Transfer-Encoding: Chunked\r\n").unwrap().fields().is_chunked());
    assert_eq!(fault("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), HeadError::CodingInHttp10);
}

#[test]
fn lines_that_fold_or_end_otherwise_are_refused() {
    for (text, error) in [
        ("GET / HTTP/1.1\n", HeadError::BareLf),
        ("GET / HTTP/1.1\r\nA: b\nC: d\r\n", HeadError::BareLf),
        ("GET / HTTP/1.1\r\nA: b\r\n c\r\n", HeadError::FoldedLine),
        ("GET / HTTP/1.1\r\n A: b\r\n", HeadError::FoldedLine),
        ("GET / HTTP/1.1\r\nA: b\rc\r\n", HeadError::BareCr),
        ("GET / HTTP/1.1\r\nA: b\r\r\n", HeadError::BareCr),
        ("GET / HTTP/1.1\r\nA\r: b\r\n", HeadError::BareCr),
        ("GET /\ra HTTP/1.1\r\n", HeadError::BareCr),
        ("GET / HTTP/1.1\r\n\n", HeadError::BareLf),
    ] {
        assert_eq!(fault(text), error, "{text:?}");
    }
}

#[test]
fn names_and_values_with_bytes_that_do_not_belong_there_are_refused() {
    for (line, error) in [
        ("A : b", HeadError::SpaceBeforeColon),
        ("A\t: b", HeadError::SpaceBeforeColon),
        (": b", HeadError::FieldName),
        ("A", HeadError::FieldName),
        ("A(: b", HeadError::FieldName),
        ("Ä: b", HeadError::FieldName),
        ("A\0: b", HeadError::FieldName),
        ("A: \0", HeadError::FieldValue),
        ("A: b\x7f", HeadError::FieldValue),
        ("A: \x01", HeadError::FieldValue),
    ] {
        assert_eq!(fault(format!("GET / HTTP/1.1\r\n{line}\r\n")), error, "{line:?}");
    }
    assert!(post("A: \u{e4}\tb\r\n").is_ok(), "bytes above ASCII and tabs are taken as they are");
}

#[test]
fn a_host_that_is_missing_empty_doubled_or_none_is_refused() {
    for (fields, error) in [
        ("", HeadError::HostMissing),
        ("Host:\r\n", HeadError::HostMissing),
        ("Host: a\r\nHost: a\r\n", HeadError::HostRepeated),
        ("Host: a, b\r\n", HeadError::HostMalformed),
        ("Host: a b\r\n", HeadError::HostMalformed),
        ("Host: user@a\r\n", HeadError::HostMalformed),
        ("Host: a/b\r\n", HeadError::HostMalformed),
        ("Host: a:b\r\n", HeadError::HostMalformed),
        ("Host: a:80:80\r\n", HeadError::HostMalformed),
        ("Host: [::1\r\n", HeadError::HostMalformed),
        ("Host: [::1]x\r\n", HeadError::HostMalformed),
        ("Host: []\r\n", HeadError::HostMalformed),
        ("Host: :80\r\n", HeadError::HostMalformed),
    ] {
        assert_eq!(fault(format!("GET / HTTP/1.1\r\n{fields}\r\n")), error, "{fields:?}");
    }
    for host in ["a", "a:80", "a.b_c-d", "[::1]", "[::1]:443", "127.0.0.1:1", "a:"] {
        assert!(request(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).is_ok(), "{host}");
    }
}

#[test]
fn targets_are_those_of_their_method() {
    for (line, form) in [
        ("GET /a", TargetForm::Origin),
        ("GET http://b:1/a?c", TargetForm::Absolute),
        ("GET HTTPS://b", TargetForm::Absolute),
        ("OPTIONS *", TargetForm::Asterisk),
        ("OPTIONS /", TargetForm::Origin),
        ("CONNECT b:443", TargetForm::Authority),
        ("CONNECT [::1]:443", TargetForm::Authority),
    ] {
        let head = request(format!("{line} HTTP/1.1\r\n{HOST}\r\n"));
        assert_eq!(head.map(|head| head.form()), Ok(form), "{line}");
    }
    for line in [
        "GET *",
        "GET a",
        "GET a:80",
        "GET ftp://a/",
        "GET http:///",
        "GET http://u@a/",
        "GET http://a?b",
        "CONNECT /",
        "CONNECT b",
        "CONNECT b:",
        "CONNECT [::1]",
        "CONNECT http://b:1/",
        "GET /#a",
        "GET /\u{e4}",
        "GET /a\x0bb",
        "GET //\x7f",
        "GET ",
    ] {
        let fault = fault(format!("{line} HTTP/1.1\r\n{HOST}\r\n"));
        assert!(matches!(fault, HeadError::Target | HeadError::RequestLine), "{line:?}: {fault:?}");
    }
    assert_eq!(
        fault(format!("CONNECT b:1 HTTP/1.1\r\n{HOST}Content-Length: 0\r\n\r\n")),
        HeadError::ConnectWithBody
    );
}

#[test]
fn what_is_too_long_is_told_so_with_its_own_status() {
    let limits = Limits { line_bytes_max: 100, head_bytes_max: 300, fields_max: 4 };
    let fault = |text: String| {
        let error = RequestHead::default().parse(text.as_bytes(), &limits).expect_err("too long");
        (error, error.status())
    };
    assert_eq!(fault(format!("GET /{}", "a".repeat(100))), (HeadError::LineTooLong, 414));
    assert_eq!(fault(format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(300))), (HeadError::HeadTooLong, 431));
    assert_eq!(fault(format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(5))), (HeadError::TooManyFields, 431));
    assert_eq!(fault(format!("{} / HTTP/1.1\r\n", "A".repeat(33))), (HeadError::MethodTooLong, 501));
}

#[test]
fn bodies_are_as_long_as_their_framing_says() {
    let of = |asked, fields: &str| {
        let (status, fields) = fields.split_once(' ').unwrap_or((fields, ""));
        let head = response(&format!("HTTP/1.1 {status} X\r\n{fields}\r\n")).unwrap();
        response_body(asked, &head)
    };
    let length = "Content-Length: 5\r\n";
    assert_eq!(of(Method::Get, &format!("200 {length}")), Body::Length(5));
    assert_eq!(of(Method::Get, "200 Transfer-Encoding: chunked\r\n"), Body::Chunked);
    assert_eq!(of(Method::Get, "200 Content-Length: 0\r\n"), Body::None);
    assert_eq!(of(Method::Get, "200"), Body::UntilClose);
    assert_eq!(of(Method::Head, &format!("200 {length}")), Body::None);
    for status in [100, 101, 103, 204, 304] {
        assert_eq!(of(Method::Get, &format!("{status} {length}")), Body::None, "{status}");
    }
    assert_eq!(of(Method::Connect, &format!("200 {length}")), Body::None);
    assert_eq!(of(Method::Connect, &format!("407 {length}")), Body::Length(5));
    assert_eq!(request_body(&post("").unwrap()), Body::None);
    assert_eq!(request_body(&post("Transfer-Encoding: chunked\r\n").unwrap()), Body::Chunked);
}

#[test]
fn connections_last_as_their_version_and_options_say() {
    for (version, option, keeps) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Foo, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
    ] {
        let head = request(format!("GET / HTTP/{version}\r\n{HOST}{option}\r\n")).unwrap();
        assert_eq!(head.keeps_alive(), keeps, "{version} {option}");
    }
    assert_eq!(post("Connection: a b\r\n").unwrap_err(), HeadError::ConnectionMalformed);
}

#[test]
fn fields_of_the_connection_and_those_it_names_stay_behind() {
    let text = "GET /x HTTP/1.1\r\nHost: a\r\nConnection: close, X-Private, Host\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n\
                TE: trailers, deflate\r\nX-Private: 1\r\nx-private: 2\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\nX-Kept:1\r\nB: 2\r\n\r\n";
    assert_eq!(
        written(text, &quiet()),
        "GET /x HTTP/1.1\r\nHost: a\r\nX-Kept: 1\r\nB: 2\r\nConnection: TE\r\nTE: trailers\r\n\r\n"
    );
}

#[test]
fn a_request_is_asked_in_origin_form_with_the_host_of_its_target() {
    let text = "GET http://real:8080/a?b HTTP/1.1\r\nHost: other\r\n\r\n";
    assert_eq!(written(text, &quiet()), "GET /a?b HTTP/1.1\r\nHost: real:8080\r\n\r\n");
    let text = "GET http://real HTTP/1.1\r\nHost: other\r\n\r\n";
    assert!(written(text, &quiet()).starts_with("GET / HTTP/1.1\r\nHost: real\r\n"));
    assert!(
        written("GET / HTTP/1.0\r\n\r\n", &quiet()).starts_with("GET / HTTP/1.1\r\nHost: backend:80\r\n")
    );
    let text = "CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n";
    assert_eq!(written(text, &quiet()), text);
}

#[test]
fn what_a_client_says_of_itself_is_replaced_unless_it_is_trusted() {
    let text = "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Port: 1\r\nForwarded: for=9.9.9.9\r\n\
                X-Request-Id: mine\r\nX-Forwarded-Proto: https\r\n\r\n";
    let mut policy = ForwardedPolicy {
        forwarded: true,
        request_id: true,
        via: Some("fb".to_owned()),
        ..ForwardedPolicy::default()
    };
    let replaced = written(text, &policy);
    assert!(
        !replaced.contains("9.9.9.9") && !replaced.contains("mine") && !replaced.contains("Port"),
        "{replaced}"
    );
    for line in [
        "X-Forwarded-For: 192.0.2.7\r\n",
        "X-Forwarded-Proto: http\r\n",
        "X-Forwarded-Host: a\r\n",
        "Forwarded: for=192.0.2.7;host=\"a\";proto=http\r\n",
        "X-Request-ID: 0000000000000000000000000000feed\r\n",
        "Via: 1.1 fb\r\n",
    ] {
        assert!(replaced.contains(line), "{line} in {replaced}");
    }
    policy.trust = Trust::Append;
    let appended = written(text, &policy);
    let order = |a: &str, b: &str| appended.find(a).unwrap() < appended.find(b).unwrap();
    assert!(
        order("9.9.9.9", "192.0.2.7") && appended.contains("mine") && appended.contains("Proto: https"),
        "{appended}"
    );
    assert!(!appended.contains("feed") && !appended.contains("Proto: http\r\n"));
    let head = request(written("GET / HTTP/1.0\r\n\r\n", &policy)).unwrap();
    assert_eq!(head.version(), Version::Http11);
}

#[test]
fn addresses_of_ipv6_are_quoted_where_they_must_be() {
    let client = Client::new("2001:db8::1".parse().unwrap(), true);
    assert_eq!(
        (client.address(), client.node.as_str(), client.scheme()),
        ("2001:db8::1", "\"[2001:db8::1]\"", "https")
    );
    assert_eq!(Client::new("::ffff:192.0.2.1".parse().unwrap(), false).address(), "192.0.2.1");
}

#[test]
fn a_response_is_written_with_its_own_framing() {
    let text = "HTTP/1.0 200 Fine\r\nConnection: keep-alive\r\nContent-Length: 7\r\nServer: x\r\nKeep-Alive: 3\r\n\r\n";
    let head = response(text).unwrap();
    let write = |body, lasting| {
        let mut out = Vec::new();
        write_response(&mut out, text.as_bytes(), &head, &ResponseOut { body, lasting, via: None });
        String::from_utf8(out).unwrap()
    };
    assert_eq!(
        write(Announce::Length(7), Lasting::Lasts),
        "HTTP/1.1 200 Fine\r\nServer: x\r\nContent-Length: 7\r\n\r\n"
    );
    assert_eq!(
        write(Announce::Chunked, Lasting::Closes),
        "HTTP/1.1 200 Fine\r\nServer: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
}

type ReadChunks = (Vec<u8>, usize, Option<Box<Trailers>>);

fn chunks(bytes: &[u8], split: usize) -> Result<ReadChunks, BodyError> {
    let mut reader = BodyReader::new(Body::Chunked);
    let (mut data, mut at, mut until) = (Vec::new(), 0, 0);
    loop {
        let (len, part) = reader.read(&bytes[at..until], &TrailerLimits::default())?;
        match part {
            Part::Data(range) => data.extend_from_slice(&bytes[at..][range]),
            Part::End => return Ok((data, at + len, reader.take_trailers())),
            Part::More if until == bytes.len() => return Err(BodyError::Truncated),
            Part::More => until = bytes.len().min(until + split),
        }
        at += len;
    }
}

#[test]
fn chunks_are_read_over_any_split() {
    let text = b"5\r\nhello\r\n06;a=\"b\"\r\n world\r\nA\r\n0123456789\r\n0\r\nX-A: 1 \r\nContent-Length: 3\r\nX-B:2\r\n\r\nrest";
    for split in 1..=text.len() {
        let (data, len, trailers) = chunks(text, split).unwrap();
        assert_eq!((data.as_slice(), len), (&b"hello world0123456789"[..], text.len() - 4), "{split}");
        let trailers = trailers.unwrap();
        let list: Vec<_> = trailers.iter().collect();
        assert_eq!(list, [(&b"X-A"[..], &b"1"[..]), (b"X-B", b"2")]);
        let mut out = Vec::new();
        write_last_chunk(&mut out, Some(&trailers));
        assert_eq!(out, b"0\r\nX-A: 1\r\nX-B: 2\r\n\r\n");
    }
}

#[test]
fn chunks_that_two_readers_may_read_differently_are_refused() {
    for (text, error) in [
        ("\r\n", BodyError::ChunkSize),
        ("g\r\n", BodyError::ChunkSize),
        ("0x5\r\nhello\r\n", BodyError::ChunkSize),
        ("+5\r\nhello\r\n", BodyError::ChunkSize),
        (" 5\r\nhello\r\n", BodyError::ChunkSize),
        ("5 \r\nhello\r\n", BodyError::ChunkSize),
        ("5\nhello\r\n", BodyError::ChunkSize),
        (";a\r\n", BodyError::ChunkSize),
        ("1000000000000000\r\n", BodyError::ChunkSize),
        ("5\rhello", BodyError::ChunkEnd),
        ("5\r\nhello\n", BodyError::ChunkEnd),
        ("5\r\nhelloo\r\n", BodyError::ChunkEnd),
        ("5\r\nhello\rx", BodyError::ChunkEnd),
        ("5;a\nhello", BodyError::ChunkExtension),
        ("5;\0\r\n", BodyError::ChunkExtension),
        ("0\r\n\n", BodyError::Trailer(HeadError::BareLf)),
        ("0\r\nA: b\n\r\n", BodyError::Trailer(HeadError::BareLf)),
        ("0\r\nA : b\r\n\r\n", BodyError::Trailer(HeadError::SpaceBeforeColon)),
        ("0\r\n A: b\r\n\r\n", BodyError::Trailer(HeadError::FoldedLine)),
        ("0\r\n\rx", BodyError::ChunkEnd),
    ] {
        for split in [1, 2, 100] {
            assert_eq!(chunks(text.as_bytes(), split).unwrap_err(), error, "{text:?}");
        }
    }
}

#[test]
fn extensions_and_trailers_have_an_end() {
    let long = format!("5;{}\r\nhello\r\n0\r\n\r\n", "a".repeat(300));
    assert_eq!(chunks(long.as_bytes(), 7).unwrap_err(), BodyError::ChunkExtension);
    let many = format!("{}0\r\n\r\n", "1;aaaaaaaa\r\nx\r\n".repeat(1000));
    assert_eq!(chunks(many.as_bytes(), 7).unwrap_err(), BodyError::ChunkExtension);
    let trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(40));
    assert_eq!(chunks(trailers.as_bytes(), 7).unwrap_err(), BodyError::TrailersTooLong);
    let trailer = format!("0\r\nA: {}\r\n\r\n", "b".repeat(9000));
    assert_eq!(chunks(trailer.as_bytes(), 7).unwrap_err(), BodyError::TrailersTooLong);
}

#[test]
fn a_body_that_ends_early_is_known_to() {
    let mut reader = BodyReader::new(Body::Length(5));
    assert_eq!(reader.read(b"abc", &TrailerLimits::default()), Ok((3, Part::Data(0..3))));
    assert_eq!(reader.handle_end(), Err(BodyError::Truncated));
    assert_eq!(reader.read(b"defg", &TrailerLimits::default()), Ok((2, Part::Data(0..2))));
    assert_eq!(reader.read(b"g", &TrailerLimits::default()), Ok((0, Part::End)));
    assert_eq!(reader.handle_end(), Ok(()));
    let mut reader = BodyReader::new(Body::UntilClose);
    assert_eq!(reader.read(b"abc", &TrailerLimits::default()), Ok((3, Part::Data(0..3))));
    assert!(!reader.is_ended());
    assert_eq!(reader.handle_end(), Ok(()));
    assert!(reader.is_ended());
    assert_eq!(BodyReader::new(Body::Chunked).handle_end(), Err(BodyError::Truncated));
    assert!(BodyReader::new(Body::None).is_ended());
}

#[test]
fn a_head_of_another_version_takes_the_same_form() {
    let mut text = Vec::new();
    let mut head = RequestHead::default();
    head.build(&mut text, b"POST", true, b"example.com", b"/a").unwrap();
    head.build_field(&mut text, b"te", b"trailers").unwrap();
    head.build_field(&mut text, b"x-a", b"b").unwrap();
    for (name, value) in [
        (&b"connection"[..], &b"close"[..]),
        (b"transfer-encoding", b"chunked"),
        (b"x y", b""),
        (b"x", b"\n"),
    ] {
        assert!(head.build_field(&mut text, name, value).is_err());
    }
    head.built(&text, true).unwrap();
    assert_eq!(request_body(&head), Body::Chunked);
    let policy = quiet();
    let client = Client::new([192, 0, 2, 7].into(), true);
    let how = RequestOut {
        policy: &policy,
        client: &client,
        body: Announce::Chunked,
        upgrade: false,
        host: "",
        id: 0,
    };
    let mut out = Vec::new();
    write_request(&mut out, &text, &head, &how);
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "POST /a HTTP/1.1\r\nHost: example.com\r\nx-a: b\r\nTransfer-Encoding: chunked\r\nConnection: TE\r\nTE: trailers\r\n\r\n"
    );
    for (authority, path) in
        [(&b"a b"[..], &b"/"[..]), (b"u@a", b"/"), (b"a", b"x"), (b"a", b""), (b"a", b"/ HTTP/1.1\r\n")]
    {
        assert!(head.build(&mut Vec::new(), b"GET", true, authority, path).is_err());
    }
    text.clear();
    head.build(&mut text, b"GET", true, b"a", b"/").unwrap();
    head.build_field(&mut text, b"host", b"b").unwrap();
    assert_eq!(head.built(&text, false), Err(HeadError::HostMalformed), "two hosts are none");
}

#[test]
fn numbers_are_written() {
    for number in [0, 9, 10, 123, u64::MAX] {
        let mut out = Vec::new();
        write_decimal(&mut out, number);
        assert_eq!(out, number.to_string().into_bytes());
    }
    for len in [1, 15, 16, 4096, 0xabcdef] {
        let mut out = Vec::new();
        write_chunk_head(&mut out, len);
        assert_eq!(out, format!("{len:x}\r\n").into_bytes());
    }
    let mut out = Vec::new();
    write_chunk_head(&mut out, 0);
    assert!(out.is_empty(), "a chunk without data ends the body");
}

fn token() -> impl Strategy<Value = String> {
    "[A-Za-z0-9!#$%&'*+.^_`|~-]{1,12}"
}

fn value() -> impl Strategy<Value = String> {
    "([!-~]([ -~\t]{0,20}[!-~])?)?"
}

/// Bytes that have the look of a head, with some that do not belong there.
fn nearly_a_head() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        Just("GET / HTTP/1.1\r\n".to_owned()),
        Just("Host: a\r\n".to_owned()),
        Just("\r\n".to_owned()),
        Just("Content-Length: 5\r\n".to_owned()),
        Just("Transfer-Encoding: chunked\r\n".to_owned()),
        (token(), value()).prop_map(|(name, value)| format!("{name}: {value}\r\n")),
        "[ -~\r\n\t\0:]{0,6}",
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #[test]
    fn a_request_that_is_written_is_read_as_what_it_was(
        path in "/[!-\"$-~]{0,20}",
        fields in vec((token(), value()), 0..10),
        length in proptest::option::of(0..1000_u64),
    ) {
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, value)| (format!("X-{name}"), value))
            .filter(|(name, _)| Known::of(name.as_bytes()) == Known::Other)
            .collect();
        let mut text = format!("POST {path} HTTP/1.1\r\nHost: a\r\n");
        fields.iter().for_each(|(name, value)| text += &format!("{name}:  {value}\t\r\n"));
        length.iter().for_each(|length| text += &format!("Content-Length: {length}\r\n"));
        text += "\r\n";
        let out = written(&text, &quiet());
        let head = request(&out).unwrap();
        prop_assert_eq!(head.target(out.as_bytes()), path.as_bytes());
        let read: Vec<_> = head.fields().end_to_end(out.as_bytes()).map(|(name, value, _)| (name.to_vec(), value.to_vec())).collect();
        let wanted: Vec<_> = fields.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())).collect();
        prop_assert_eq!(read, wanted);
        prop_assert_eq!(head.fields().content_length().unwrap_or(0), length.unwrap_or(0));
        // Written once more, it is the same.
        prop_assert_eq!(written(&out, &quiet()), out);
    }

    #[test]
    fn what_we_read_another_reader_reads_alike(bytes in nearly_a_head()) {
        let mut head = RequestHead::default();
        if let Ok(Some(len)) = head.parse(&bytes, &Limits::default()) {
            let mut fields = [httparse::EMPTY_HEADER; 100];
            let mut other = httparse::Request::new(&mut fields);
            prop_assert_eq!(other.parse(&bytes), Ok(httparse::Status::Complete(len)));
            prop_assert_eq!(other.method.unwrap().as_bytes(), head.method_name(&bytes));
            prop_assert_eq!(other.path.unwrap().as_bytes(), head.target(&bytes));
            prop_assert_eq!(other.headers.len(), head.fields().list().len());
            for (theirs, ours) in other.headers.iter().zip(head.fields().list()) {
                prop_assert_eq!(theirs.name.as_bytes(), ours.name.of(&bytes));
                prop_assert_eq!(theirs.value, ours.value.of(&bytes));
            }
        }
    }

    #[test]
    fn any_split_of_any_bytes_is_read_alike(bytes in nearly_a_head(), step in 1..20_usize) {
        let mut whole = RequestHead::default();
        let at_once = whole.parse(&bytes, &Limits::default());
        let mut parts = RequestHead::default();
        let mut by_parts = Ok(None);
        for end in (0..bytes.len()).step_by(step).chain([bytes.len()]) {
            by_parts = parts.parse(&bytes[..end], &Limits::default());
            if by_parts != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(at_once, by_parts);
        prop_assert_eq!(whole.fields().list(), parts.fields().list());
    }

    #[test]
    fn data_that_is_written_in_chunks_is_read_back(data in vec(vec(any::<u8>(), 0..300), 0..8), split in 1..200_usize) {
        let mut out = Vec::new();
        for piece in data.iter().filter(|piece| !piece.is_empty()) {
            write_chunk_head(&mut out, piece.len());
            out.extend_from_slice(piece);
            out.extend_from_slice(b"\r\n");
        }
        write_last_chunk(&mut out, None);
        let (read, len, trailers) = chunks(&out, split).unwrap();
        prop_assert_eq!(read, data.concat());
        prop_assert_eq!(len, out.len());
        prop_assert!(trailers.is_none());
    }

    #[test]
    fn no_bytes_harm_the_reader_of_chunks(bytes in vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'3'), Just(b';'), Just(b':'), any::<u8>()], 0..60)) {
        let whole = chunks(&bytes, 1000);
        for split in [1, 3] {
            let parts = chunks(&bytes, split);
            match (&whole, parts) {
                (Ok((data, len, _)), Ok((other, other_len, _))) => prop_assert_eq!((data, *len), (&other, other_len)),
                (Err(error), Err(other)) => prop_assert_eq!(*error, other),
                _ => prop_assert!(false),
            }
        }
    }
}

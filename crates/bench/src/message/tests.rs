use super::*;

fn encoded(name: &str) -> Result<Vec<u8>, String> {
    let mut out = vec![9];
    let result = encode_name(name, &mut out);
    assert_eq!(out[0], 9, "what was there stays");
    if result.is_err() {
        assert_eq!(out, [9], "a refused name leaves nothing behind");
    }
    result.map(|()| out[1..].to_vec())
}

#[test]
fn names_become_labels() {
    assert_eq!(encoded("www.example").expect("name"), b"\x03www\x07example\x00");
    assert_eq!(encoded("www.example.").expect("name"), b"\x03www\x07example\x00");
    assert_eq!(encoded(".").expect("root"), [0]);
    assert_eq!(encoded("a\\.b.\\065").expect("escapes"), b"\x03a.b\x01A\x00");
}

#[test]
fn what_is_no_name_is_refused_with_a_reason() {
    for (name, reason) in [
        ("", "empty"),
        ("a..b", "label is empty"),
        (".a", "label is empty"),
        ("a\\", "backslash"),
        ("a\\25", "three digits"),
        ("a\\256", "at most 255"),
        (&"x".repeat(64), "63"),
        (&"abcdefg.".repeat(32), "255"),
    ] {
        let error = encoded(name).expect_err(name);
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!(encoded(&"abcdefg.".repeat(31)).expect("as long as may be").len(), 249);
}

#[test]
fn types_are_read_and_written_by_word_and_number() {
    for (text, number) in [("A", 1), ("aaaa", 28), ("Https", 65), ("TYPE65280", 65280), ("type1", 1)] {
        assert_eq!(text.parse(), Ok(QueryType(number)));
    }
    assert_eq!(QueryType(28).to_string(), "AAAA");
    assert_eq!(QueryType(65280).to_string(), "TYPE65280");
    assert!("BOGUS".parse::<QueryType>().expect_err("no type").contains("BOGUS"));
    assert!("TYPE65536".parse::<QueryType>().is_err());
}

#[test]
fn records_are_read_one_after_another_and_never_beyond_the_end() {
    let mut message = b"\x01a\x00".to_vec();
    message.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 1, 2, 3]);
    message.extend_from_slice(&[0xc0, 0, 0, 16, 0, 1, 0, 0, 0, 5, 0, 2, 1, b'x']);
    let mut at = 0;
    let first = next_record(&message, &mut at).expect("first");
    assert_eq!((first.rtype, first.ttl, first.data), (QueryType::A, 60, &[10, 1, 2, 3][..]));
    let second = next_record(&message, &mut at).expect("second");
    assert_eq!((second.rtype, second.owner_at, second.data), (QueryType::TXT, 17, &[1, b'x'][..]));
    assert_eq!(at, message.len());
    assert_eq!(next_record(&message, &mut at), None);
    for end in 0..17 {
        assert_eq!(next_record(&message[..end], &mut 0), None, "cut at {end}");
    }
}

#[test]
fn caseless_hash_is_blind_to_case_only() {
    assert_eq!(hash_caseless(b"\x03wWw"), hash_caseless(b"\x03WwW"));
    assert_ne!(hash(b"\x03wWw"), hash(b"\x03WwW"));
    assert_ne!(hash_caseless(b"\x03www"), hash_caseless(b"\x03wwv"));
    assert_eq!(rcode_word(3), "NXDOMAIN");
    assert_eq!(rcode_word(15), "RCODE15");
}

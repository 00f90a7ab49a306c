use forebay_core::Instant;

use super::*;
use crate::cache::{CachePolicy, Insert, MessageCache};
use crate::testing::{DO, Message, key_of, name, scanned};
use crate::wire::{FaultAnswer, QueryFault, Scan, rtype, scan_query};

/// The reply to `query` made of `answer` after it has been in a cache for `age_secs`.
fn stored_reply(answer: &Message, query: &Message, age_secs: u64, cap: u16) -> (Vec<u8>, Fit) {
    let query = scanned(query);
    let key = key_of(&query);
    let mut cache = MessageCache::new(1 << 20, CachePolicy::default()).expect("a cache");
    let mut scan = Scan::new();
    let scanned_answer = scan.scan_answer(&answer.0).expect("an answer");
    let inserted = cache.insert(&key, &scanned_answer, Instant::ZERO);
    assert!(matches!(inserted, Insert::Kept { .. }), "{inserted:?}");
    let now = Instant::from_nanos(age_secs * 1_000_000_000);
    let hit = cache.lookup(&key, now).expect("a hit");
    // What is in the buffer already must stay.
    let mut out = vec![0xee; 3];
    let terms = Terms::udp(&query.asked, cap);
    let fit = write_stored(&mut out, &hit.stored, &query.asked, hit.age_secs, &terms);
    assert_eq!(out[..3], [0xee; 3]);
    (out[3..].to_vec(), fit)
}

fn fresh_reply(answer: &Message, query: &Message, terms: &Terms) -> (Vec<u8>, Fit) {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&answer.0).expect("an answer");
    let mut out = Vec::new();
    let fit = write_fresh(&mut out, &answer, &scanned(query).asked, terms);
    (out, fit)
}

#[test]
fn stored_reply_has_the_clients_id_case_and_flags_and_aged_ttls() {
    let answer = Message::response("www.example.com", 1).a(300).a(200);
    let query = Message::query("wWw.ExAmPlE.cOm", 1);
    let (reply, fit) = stored_reply(&answer, &query, 77, 1232);
    let wanted = Message::new(0x1234, 0x8180).question("wWw.ExAmPlE.cOm", 1).a(223).a(123);
    assert_eq!(fit, Fit::Whole);
    assert_eq!(reply, wanted.0);
}

#[test]
fn ttl_below_the_age_shows_as_zero() {
    let wire = Message::response("a", 1).a(5).a(300).0;
    let offsets = [25u16, 41].map(u16::to_le_bytes);
    let query = Message::query("a", 1);
    let asked = scanned(&query).asked;
    let mut out = Vec::new();
    let stored = Stored::new(&wire, &offsets);
    let fit = write_stored(&mut out, &stored, &asked, 6, &Terms::stream(None));
    assert_eq!(fit, Fit::Whole);
    let wanted = Message::new(0x1234, 0x8180).question("a", 1).a(0).a(294);
    assert_eq!(out, wanted.0);
}

#[test]
fn rd_and_cd_are_copied_and_aa_is_cleared() {
    let answer = Message::response("a", 1).flags(0x8580).a(60);
    for (sent, wanted) in [(0x0000, 0x8080), (0x0100, 0x8180), (0x0110, 0x8190)] {
        let query = Message::query("a", 1).flags(sent);
        let (reply, _) = stored_reply(&answer, &query, 0, 1232);
        assert_eq!(be16(&reply, 2), Some(wanted));
        let (reply, _) = fresh_reply(&answer, &query, &Terms::stream(None));
        assert_eq!(be16(&reply, 2), Some(wanted));
    }
}

#[test]
fn ad_goes_to_those_who_asked_with_ad_or_do() {
    let answer = Message::response("a", 1).flags(0x81a0).a(60);
    let ad = |query: &Message| {
        let (stored, _) = stored_reply(&answer, query, 0, 1232);
        let (fresh, _) = fresh_reply(&answer, query, &Terms::stream(None));
        assert_eq!(stored, fresh);
        be16(&stored, 2).unwrap() & flag::AD != 0
    };
    assert!(!ad(&Message::query("a", 1)));
    assert!(!ad(&Message::query("a", 1).opt(1232, 0, &[])));
    assert!(ad(&Message::query("a", 1).flags(0x0120)));
    assert!(ad(&Message::query("a", 1).opt(1232, DO, &[])));
    let unsigned = Message::response("a", 1).a(60);
    let query = Message::query("a", 1).flags(0x0120);
    let (reply, _) = stored_reply(&unsigned, &query, 0, 1232);
    assert_eq!(be16(&reply, 2), Some(0x8180));
}

#[test]
fn opt_is_there_exactly_when_the_client_sent_one_and_it_is_ours() {
    let answer = Message::response("a", 1).a(60).opt(4096, DO, &[0, 10, 0, 1, 7]);
    let plain = Message::new(0x1234, 0x8180).question("a", 1).a(50);
    let (reply, _) = stored_reply(&answer, &Message::query("a", 1), 10, 1232);
    assert_eq!(reply, plain.0);
    for (dnssec, wanted) in [(0, 0), (DO, DO)] {
        let query = Message::query("a", 1).opt(700, dnssec, &[0, 10, 0, 1, 7]);
        let (reply, _) = stored_reply(&answer, &query, 10, 1232);
        assert_eq!(reply, plain.clone().opt(1232, wanted, &[]).0);
    }
}

#[test]
fn reply_too_long_for_the_client_is_truncated_to_question_and_opt() {
    let mut answer = Message::response("big.example", rtype::TXT);
    for _ in 0..4 {
        answer = answer.record(0, rtype::TXT, 60, &[[200].as_slice(), &[b'x'; 200]].concat());
    }
    let plain = Message::query("Big.example", rtype::TXT);
    let truncated = Message::new(0x1234, 0x8380).question("Big.example", rtype::TXT);
    let small = plain.clone().opt(512, 0, &[]);
    let big = plain.clone().opt(4096, 0, &[]);

    let (reply, fit) = stored_reply(&answer, &plain, 0, 1232);
    assert_eq!((reply, fit), (truncated.0.clone(), Fit::Truncated));
    let (reply, fit) = stored_reply(&answer, &small, 0, 1232);
    let with_opt = truncated.clone().opt(1232, 0, &[]);
    assert_eq!((reply, fit), (with_opt.0.clone(), Fit::Truncated));
    let (reply, fit) = stored_reply(&answer, &big, 0, 1232);
    assert_eq!((reply.len(), fit), (answer.0.len() + 11, Fit::Whole));
    // The cap counts, not only what the client takes.
    let (reply, fit) = stored_reply(&answer, &big, 0, 600);
    assert_eq!((reply, fit), (with_opt.0.clone(), Fit::Truncated));
    let terms = Terms::udp(&scanned(&small).asked, 1232);
    let (reply, fit) = fresh_reply(&answer, &small, &terms);
    assert_eq!((reply, fit), (with_opt.0, Fit::Truncated));
}

#[test]
fn reply_fits_to_the_byte() {
    let answer = Message::response("a", 1).record(0, rtype::TXT, 60, &[0; 400]);
    let answer = answer.a(60);
    let query = Message::query("a", 1).opt(4096, 0, &[]);
    let whole = answer.0.len() + 11;
    let (reply, fit) = stored_reply(&answer, &query, 0, whole as u16);
    assert_eq!((reply.len(), fit), (whole, Fit::Whole));
    let (_, fit) = stored_reply(&answer, &query, 0, whole as u16 - 1);
    assert_eq!(fit, Fit::Truncated);
}

#[test]
fn additional_records_are_left_out_before_anything_is_truncated() {
    let kept = Message::response("mail.example", rtype::MX).record(0, rtype::MX, 60, &[0, 10, 0xc0, 0x0c]);
    let mut answer = kept.clone();
    for _ in 0..40 {
        answer = answer.record(2, rtype::A, 60, &[192, 0, 2, 1]);
    }
    let query = Message::query("mail.example", rtype::MX);
    let (stored, fit) = stored_reply(&answer, &query, 0, 1232);
    assert_eq!(fit, Fit::Whole);
    assert_eq!(stored[2..], kept.0[2..]);
    let terms = Terms::udp(&scanned(&query).asked, 1232);
    let (fresh, fit) = fresh_reply(&answer, &query, &terms);
    assert_eq!((fresh, fit), (stored, Fit::Whole));
}

#[test]
fn answer_that_came_truncated_goes_out_truncated_and_unauthentic() {
    let answer = Message::response("a", 1).flags(0x83a0).a(60);
    let query = Message::query("A", 1).opt(1232, DO, &[]);
    let (reply, fit) = fresh_reply(&answer, &query, &Terms::stream(None));
    let wanted = Message::new(0x1234, 0x8380).question("A", 1).opt(1232, DO, &[]);
    assert_eq!((reply, fit), (wanted.0, Fit::Truncated));
}

#[test]
fn fresh_reply_passes_the_extended_error_on_if_it_fits() {
    let ede = [0, 15, 0, 6, 0, 22, b'n', b'o', b'p', b'e'];
    let answer = Message::response("a", 1).flags(0x8182).opt(1232, 0, &ede);
    let query = Message::query("a", 1).opt(1232, 0, &[]);
    let wanted = Message::new(0x1234, 0x8182).question("a", 1);
    let (reply, _) = fresh_reply(&answer, &query, &Terms::stream(None));
    assert_eq!(reply, wanted.clone().opt(1232, 0, &ede).0);
    // Without EDNS there is no place for it.
    let (reply, _) = fresh_reply(&answer, &Message::query("a", 1), &Terms::stream(None));
    assert_eq!(reply, wanted.0);
    // First its text goes, then all of it.
    let len_max = wanted.0.len() + 11 + 6;
    for (len_max, options) in [(len_max, &[0, 15, 0, 2, 0, 22][..]), (len_max - 1, &[])] {
        let terms = Terms { len_max, ..Terms::stream(None) };
        let (reply, fit) = fresh_reply(&answer, &query, &terms);
        assert_eq!(fit, Fit::Whole);
        assert_eq!(reply, wanted.clone().opt(1232, 0, options).0);
    }
}

#[test]
fn keepalive_is_granted_on_streams_to_those_who_speak_edns() {
    let answer = Message::response("a", 1).a(60);
    let query = Message::query("a", 1).opt(1232, 0, &[0, 11, 0, 0]);
    let wanted = Message::new(0x1234, 0x8180).question("a", 1).a(60);
    let terms = Terms::stream(Some(300));
    let (reply, _) = fresh_reply(&answer, &query, &terms);
    let option = [0, 11, 0, 2, 1, 44];
    assert_eq!(reply, wanted.clone().opt(1232, 0, &option).0);
    let (reply, _) = fresh_reply(&answer, &Message::query("a", 1), &terms);
    assert_eq!(reply, wanted.0);
}

#[test]
fn answer_to_another_question_is_never_given() {
    let answer = Message::response("b", 1).a(60);
    let (reply, fit) = fresh_reply(&answer, &Message::query("a", 1), &Terms::stream(None));
    assert_eq!(fit, Fit::Failed);
    assert_eq!(reply, Message::new(0x1234, 0x8182).question("a", 1).0);
}

#[test]
fn error_without_question_gets_the_clients_own() {
    let answer = Message::new(9, 0x8185);
    let (reply, fit) = fresh_reply(&answer, &Message::query("a", 1), &Terms::stream(None));
    assert_eq!(fit, Fit::Whole);
    assert_eq!(reply, Message::new(0x1234, 0x8185).question("a", 1).0);
}

#[test]
fn extended_rcodes_of_the_upstream_become_servfail() {
    // BADVERS: the upstream does not like our EDNS, which is no business of the client's.
    let answer = Message::response("a", 1).opt(1232, 0x0100_0000, &[]);
    let query = Message::query("a", 1).opt(1232, 0, &[]);
    let (reply, fit) = fresh_reply(&answer, &query, &Terms::stream(None));
    assert_eq!(fit, Fit::Failed);
    let wanted = Message::new(0x1234, 0x8182).question("a", 1);
    assert_eq!(reply, wanted.opt(1232, 0, &[]).0);
}

fn error_reply(query: &Message, error: Option<ExtendedError<'_>>, len_max: usize) -> Vec<u8> {
    let fault: FaultAnswer<'_> = match scan_query(&query.0) {
        Ok(query) => {
            let mut out = Vec::new();
            let terms = Terms { len_max, ..Terms::stream(None) };
            write_error(&mut out, &query.asked, rcode::SERVFAIL, error, &terms);
            return out;
        }
        Err(QueryFault::Answer(fault)) => fault,
        Err(QueryFault::Ignore(cause)) => panic!("{cause:?}"),
    };
    let mut out = Vec::new();
    let terms = Terms::udp(&fault.asked, 1232);
    write_error(&mut out, &fault.asked, fault.rcode, error, &terms);
    out
}

#[test]
fn servfail_carries_an_extended_error_for_those_who_speak_edns() {
    let error = Some(ExtendedError { code: 22, text: b"no upstream answered" });
    let query = Message::query("a.Example", 1).opt(1232, DO, &[]);
    let plain = Message::new(0x1234, 0x8182).question("a.Example", 1);
    let options = [&[0, 15, 0, 22, 0, 22][..], b"no upstream answered"].concat();
    assert_eq!(error_reply(&query, error, 1232), plain.clone().opt(1232, DO, &options).0);
    assert_eq!(error_reply(&Message::query("a.Example", 1), error, 1232), plain.0);
}

#[test]
fn extended_error_text_is_cut_to_what_fits() {
    let text = [b'x'; 600];
    let error = Some(ExtendedError { code: 22, text: &text });
    let query = Message::query("a", 1).opt(512, 0, &[]);
    let wanted = Message::new(0x1234, 0x8182).question("a", 1).opt(1232, 0, &[0, 15, 0, 2, 0, 22]);
    assert_eq!(error_reply(&query, error, 512), wanted.0);
}

#[test]
fn badvers_has_its_upper_bits_in_opt() {
    let query = Message::query("a", 1).opt(1232, 0x0001_0000, &[]);
    let wanted = Message::new(0x1234, 0x8180).question("a", 1).opt(1232, 0x0100_0000, &[]);
    assert_eq!(error_reply(&query, None, 512), wanted.0);
}

#[test]
fn formerr_without_readable_question_is_a_bare_header() {
    let query = Message::new(0x1234, 0x0100);
    assert_eq!(error_reply(&query, None, 512), Message::new(0x1234, 0x8181).0);
}

#[test]
fn notimp_gives_the_opcode_back() {
    let query = Message::query("a", 6).flags(0x2000);
    assert_eq!(error_reply(&query, None, 512), Message::new(0x1234, 0xa084).question("a", 6).0);
}

#[test]
fn every_stored_reply_scans_again_as_the_same_answer() {
    let answer = Message::response("a.example", 1)
        .record(0, rtype::CNAME, 30, &name("b.example"))
        .record_at(0, &name("b.example"), 1, 20, &[1, 2, 3, 4])
        .record(1, rtype::NS, 90, &[0xc0, 0x0c]);
    let query = Message::query("A.EXAMPLE", 1).opt(1232, 0, &[]);
    let (reply, _) = stored_reply(&answer, &query, 7, 1232);
    let mut scan = Scan::new();
    let again = scan.scan_answer(&reply).expect("a good reply");
    assert_eq!(again.question, scanned(&query).asked.question);
    assert_eq!(again.counts, [2, 1, 1]);
    assert_eq!(again.ttl_min, Some(13));
    let ttls: Vec<_> = again.ttl_offsets().iter().map(|&at| be32(&reply, at.into()).unwrap()).collect();
    assert_eq!(ttls, [23, 13, 83]);
}

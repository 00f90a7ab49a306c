mod model;

use std::collections::{HashMap, HashSet};

use hickory_proto::op::{Message as Theirs, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, SOA, SRV};
use hickory_proto::rr::{Name as TheirName, RData, Record as TheirRecord, RecordType};
use proptest::prelude::*;

use super::*;
use crate::cache::CachePolicy;
use crate::testing::{DO, Message, key_of, name, scanned, seed};

/// A cache and what takes apart and joins.
struct Known {
    cache: MessageCache,
    sets: Sets,
    now: Instant,
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

impl Known {
    fn new() -> Self {
        Self::with(CachePolicy::default())
    }

    fn with(policy: CachePolicy) -> Self {
        Self { cache: MessageCache::new(1 << 20, policy).unwrap(), sets: Sets::new(), now: at(10_000) }
    }

    /// An answer to a question comes, and is kept with all that it says.
    fn learn(&mut self, key: &QuestionKey, bytes: &[u8]) -> u32 {
        let mut scan = Scan::new();
        let answer = scan.scan_answer(bytes).unwrap();
        let _ = self.cache.insert(key, &answer, self.now);
        let mut store = Store { cache: &mut self.cache, seed: &seed(), now: self.now };
        self.sets.learn(&mut store, key, &answer, |_, _| true)
    }

    fn join(&mut self, key: &QuestionKey) -> Option<Shown> {
        self.join_if(key, |_| true)
    }

    fn join_if(&mut self, key: &QuestionKey, is_ours: impl Fn(&[u8]) -> bool) -> Option<Shown> {
        let store = Store { cache: &self.cache, seed: &seed(), now: self.now };
        let joined = self.sets.join(&store, key, is_ours)?;
        self.cache.insert_joined(key, &joined, self.now);
        Some(shown(joined.bytes()))
    }

    /// What the cache itself says.
    fn found(&mut self, key: &QuestionKey) -> Option<Shown> {
        let hit = self.cache.lookup(key, self.now)?;
        let mut shown = shown(hit.stored.wire());
        for record in shown.answers.iter_mut().chain(&mut shown.authorities) {
            record.1 -= hit.age_secs;
        }
        Some(shown)
    }
}

/// A message as hickory reads it: owner, TTL, data; names in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    code: u16,
    authentic: bool,
    answers: Vec<(String, u32, String)>,
    authorities: Vec<(String, u32, String)>,
}

fn shown(bytes: &[u8]) -> Shown {
    let message = Theirs::from_vec(bytes).expect("hickory reads it");
    let show = |records: &[TheirRecord]| {
        let show = |record: &TheirRecord| {
            let text = |text: String| text.to_lowercase();
            let data = format!("{} {}", record.record_type(), record.data);
            (text(record.name.to_string()), record.ttl, text(data))
        };
        records.iter().map(show).collect()
    };
    assert!(message.additionals.is_empty());
    Shown {
        code: message.metadata.response_code.into(),
        authentic: message.metadata.authentic_data,
        answers: show(&message.answers),
        authorities: show(&message.authorities),
    }
}

fn key(dotted: &str, qtype: u16) -> QuestionKey {
    key_of(&scanned(&Message::query(dotted, qtype)))
}

fn key_with(dotted: &str, qtype: u16, flags: u16, is_signed: bool) -> QuestionKey {
    let query = Message::query(dotted, qtype).flags(flags);
    let query = if is_signed { query.opt(1232, DO, &[]) } else { query };
    key_of(&scanned(&query))
}

fn their(dotted: &str) -> TheirName {
    TheirName::from_ascii(dotted).unwrap()
}

/// An answer of records; a SOA record goes to the authority section.
fn answer(dotted: &str, qtype: u16, code: ResponseCode, records: Vec<(&str, u32, RData)>) -> Theirs {
    let mut message = Theirs::response(7, OpCode::Query);
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_query(Query::query(their(dotted), RecordType::from(qtype)));
    for (owner, ttl, data) in records {
        let record = TheirRecord::from_rdata(their(owner), ttl, data);
        if matches!(record.data, RData::SOA(_)) {
            message.insert_authorities(vec![record]);
        } else {
            message.answers.push(record);
        }
    }
    message
}

fn alias(to: &str) -> RData {
    RData::CNAME(CNAME(their(to)))
}

fn a(last: u8) -> RData {
    RData::A(A::new(192, 0, 2, last))
}

fn soa(minimum: u32) -> RData {
    RData::SOA(SOA::new(their("ns.test."), their("host.test."), 1, 2, 3, 4, minimum))
}

/// `www.test A`: an alias of `cdn.test` for 300 s, which has an address for 60 s.
fn www() -> Vec<u8> {
    let records = vec![("www.test.", 300, alias("cdn.test.")), ("cdn.test.", 60, a(1))];
    answer("www.test.", 1, ResponseCode::NoError, records).to_vec().unwrap()
}

#[test]
fn an_answer_by_way_of_an_alias_answers_the_questions_on_its_way() {
    let mut known = Known::new();
    assert_eq!(known.learn(&key("www.test", 1), &www()), 2);
    let found = known.found(&key("cdn.test", 1)).unwrap();
    assert_eq!(found.answers, [("cdn.test.".to_owned(), 60, "a 192.0.2.1".to_owned())]);
    let found = known.found(&key("www.test", 5)).unwrap();
    assert_eq!(found.answers, [("www.test.".to_owned(), 300, "cname cdn.test.".to_owned())]);
    assert_eq!((known.cache.counters().sets, known.cache.counters().entries), (2, 3));
}

#[test]
fn aliases_that_are_known_lead_to_an_answer_that_is_known() {
    let mut known = Known::new();
    known.learn(&key("www.test", 1), &www());
    let mail = vec![
        ("mail.test.", 600, alias("www.test.")),
        ("www.test.", 300, alias("cdn.test.")),
        ("cdn.test.", 30, RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
    ];
    let mail = answer("mail.test.", 28, ResponseCode::NoError, mail).to_vec().unwrap();
    assert_eq!(known.learn(&key("mail.test", 28), &mail), 3);
    known.now = at(20_000);
    let joined = known.join(&key("mail.test", 1)).unwrap();
    let wanted = [
        ("mail.test.", 590, "cname www.test."),
        ("www.test.", 290, "cname cdn.test."),
        ("cdn.test.", 50, "a 192.0.2.1"),
    ];
    assert_eq!(joined.answers, wanted.map(|(owner, ttl, data)| (owner.to_owned(), ttl, data.to_owned())));
    assert_eq!((joined.code, joined.authorities), (0, vec![]));
    // The next time it is found at once, for as long as its shortest part lasts.
    known.now = at(69_000);
    assert_eq!(known.found(&key("mail.test", 1)).unwrap().answers[2].1, 1);
    known.now = at(70_000);
    assert_eq!(known.found(&key("mail.test", 1)), None);
    assert_eq!(known.join(&key("mail.test", 1)), None, "its address is not known any more");
}

#[test]
fn an_alias_of_an_alias_that_was_answered_whole_goes_on_from_there() {
    let mut known = Known::new();
    known.learn(&key("www.test", 1), &www());
    let alias_only = answer("m.test.", 5, ResponseCode::NoError, vec![("m.test.", 100, alias("www.test."))]);
    known.learn(&key("m.test", 5), &alias_only.to_vec().unwrap());
    let joined = known.join(&key("m.test", 1)).unwrap();
    let owners: Vec<&str> = joined.answers.iter().map(|(owner, ..)| owner.as_str()).collect();
    assert_eq!(owners, ["m.test.", "www.test.", "cdn.test."]);
}

#[test]
fn negative_ends_are_known_with_their_soa() {
    for (code, records) in [(ResponseCode::NoError, 0), (ResponseCode::NXDomain, 3)] {
        let mut known = Known::new();
        let negative = vec![("w.test.", 300, alias("gone.test.")), ("test.", 900, soa(40))];
        let bytes = answer("w.test.", 1, code, negative).to_vec().unwrap();
        assert_eq!(known.learn(&key("w.test", 1), &bytes), 2);
        let found = known.found(&key("gone.test", 1)).unwrap();
        assert_eq!((found.code, found.answers.len(), found.authorities[0].1), (records, 0, 40));
        let other = answer("v.test.", 5, ResponseCode::NoError, vec![("v.test.", 80, alias("gone.test."))]);
        known.learn(&key("v.test", 5), &other.to_vec().unwrap());
        let joined = known.join(&key("v.test", 1)).unwrap();
        assert_eq!((joined.code, joined.answers.len(), joined.authorities.len()), (records, 1, 1));
        known.now = at(50_000);
        assert_eq!(known.found(&key("gone.test", 1)), None);
    }
}

#[test]
fn a_name_that_does_not_exist_has_no_other_type_either() {
    let mut known = Known::new();
    let gone = |code| answer("gone.test.", 1, code, vec![("test.", 60, soa(60))]).to_vec().unwrap();
    known.learn(&key("gone.test", 1), &gone(ResponseCode::NXDomain));
    let joined = known.join(&key("gone.test", 28)).unwrap();
    assert_eq!((joined.code, joined.answers.len(), joined.authorities[0].1), (3, 0, 60));
    assert!(known.join(&key("gone.test", 15)).is_some());
    let mut known = Known::new();
    known.learn(&key("gone.test", 1), &gone(ResponseCode::NoError));
    assert_eq!(known.join(&key("gone.test", 28)), None, "that it has no A says nothing of AAAA");
    // RFC 4074 §4.2: some servers deny a name when they are asked for AAAA.
    let mut known = Known::new();
    let denied = answer("gone.test.", 28, ResponseCode::NXDomain, vec![("test.", 60, soa(60))]);
    known.learn(&key("gone.test", 28), &denied.to_vec().unwrap());
    assert_eq!(known.join(&key("gone.test", 1)), None);
    // An alias of a name that does not exist does exist.
    let mut known = Known::new();
    let way = vec![("w.test.", 300, alias("gone.test.")), ("test.", 900, soa(40))];
    let bytes = answer("w.test.", 1, ResponseCode::NXDomain, way).to_vec().unwrap();
    known.learn(&key("w.test", 1), &bytes);
    let joined = known.join(&key("w.test", 28)).unwrap();
    assert_eq!((joined.code, joined.answers.len()), (3, 1));
}

#[test]
fn a_set_never_replaces_an_answer_that_is_still_good() {
    let mut known = Known::new();
    let own = answer("cdn.test.", 1, ResponseCode::NoError, vec![("cdn.test.", 20, a(9))]);
    known.learn(&key("cdn.test", 1), &own.to_vec().unwrap());
    assert_eq!(known.learn(&key("www.test", 1), &www()), 1);
    assert_eq!(known.found(&key("cdn.test", 1)).unwrap().answers[0].2, "a 192.0.2.9");
    known.now = at(30_000);
    assert_eq!(known.learn(&key("www.test", 1), &www()), 2, "its time is over");
    assert_eq!(known.found(&key("cdn.test", 1)).unwrap().answers[0].2, "a 192.0.2.1");
    known.learn(&key("cdn.test", 1), &own.to_vec().unwrap());
    assert_eq!(known.found(&key("cdn.test", 1)).unwrap().answers[0].2, "a 192.0.2.9");
    assert_eq!(known.cache.counters().sets, 1);
}

#[test]
fn flags_do_not_mix() {
    let mut known = Known::new();
    known.learn(&key("www.test", 1), &www());
    for other in [
        key_with("cdn.test", 1, 0x0110, false),
        key_with("cdn.test", 1, 0x0000, false),
        key_with("cdn.test", 1, 0x0100, true),
    ] {
        assert_eq!(known.found(&other), None);
        assert_eq!(known.join(&other), None);
    }
}

#[test]
fn a_joined_answer_is_authentic_when_every_part_is() {
    for (first, second) in [(true, true), (true, false), (false, true)] {
        let mut known = Known::new();
        let part = |dotted: &str, qtype, record, authentic| {
            let mut message = answer(dotted, qtype, ResponseCode::NoError, vec![record]);
            message.metadata.authentic_data = authentic;
            message.to_vec().unwrap()
        };
        known.learn(&key("w.test", 5), &part("w.test.", 5, ("w.test.", 60, alias("c.test.")), first));
        known.learn(&key("c.test", 1), &part("c.test.", 1, ("c.test.", 60, a(1)), second));
        assert_eq!(known.join(&key("w.test", 1)).unwrap().authentic, first && second);
    }
}

#[test]
fn only_the_chain_is_believed() {
    let mut known = Known::new();
    let records = vec![
        ("www.test.", 300, alias("cdn.test.")),
        ("bank.test.", 300, a(66)),
        ("mail.test.", 300, alias("cdn.test.")),
        ("cdn.test.", 60, a(1)),
    ];
    let mut message = answer("www.test.", 1, ResponseCode::NoError, records);
    message.insert_authorities(vec![TheirRecord::from_rdata(
        their("test."),
        60,
        RData::NS(NS(their("ns.test."))),
    )]);
    message.insert_additionals(vec![TheirRecord::from_rdata(their("ns.test."), 60, a(53))]);
    assert_eq!(known.learn(&key("www.test", 1), &message.to_vec().unwrap()), 2);
    for (dotted, qtype) in [("bank.test", 1), ("mail.test", 5), ("mail.test", 1), ("ns.test", 1), ("test", 2)]
    {
        assert_eq!(known.found(&key(dotted, qtype)), None, "{dotted}");
        assert_eq!(known.join(&key(dotted, qtype)), None, "{dotted}");
    }
}

#[test]
fn an_upstream_says_nothing_of_names_that_others_are_asked_about() {
    let mut known = Known::new();
    let mut scan = Scan::new();
    let bytes = www();
    let answer = scan.scan_answer(&bytes).unwrap();
    let mut store = Store { cache: &mut known.cache, seed: &seed(), now: known.now };
    let is_www = |name: &[u8]| name.starts_with(b"\x03www");
    assert_eq!(known.sets.learn(&mut store, &key("www.test", 1), &answer, |name, _| is_www(name)), 1);
    assert_eq!(known.found(&key("cdn.test", 1)), None);
    // Nor is it given what others said.
    let own = self::answer("cdn.test.", 1, ResponseCode::NoError, vec![("cdn.test.", 20, a(9))]);
    known.learn(&key("cdn.test", 1), &own.to_vec().unwrap());
    assert_eq!(known.join_if(&key("www.test", 1), is_www), None);
    assert!(known.join(&key("www.test", 1)).is_some());
}

#[test]
fn aliases_that_lead_round_or_on_and_on_give_nothing() {
    let mut known = Known::new();
    let put = |known: &mut Known, from: String, to: String| {
        let records = vec![(from.as_str(), 60, alias(&to))];
        let bytes = answer(&from, 5, ResponseCode::NoError, records).to_vec().unwrap();
        known.learn(&key(from.trim_end_matches('.'), 5), &bytes);
    };
    put(&mut known, "self.test.".to_owned(), "self.test.".to_owned());
    put(&mut known, "a.test.".to_owned(), "b.test.".to_owned());
    put(&mut known, "b.test.".to_owned(), "A.test.".to_owned());
    assert_eq!(known.join(&key("self.test", 1)), None);
    assert_eq!(known.join(&key("a.test", 1)), None);
    for n in 0..20 {
        put(&mut known, format!("n{n}.test."), format!("n{}.test.", n + 1));
    }
    let end = answer("n20.test.", 1, ResponseCode::NoError, vec![("n20.test.", 60, a(1))]);
    known.learn(&key("n20.test", 1), &end.to_vec().unwrap());
    assert_eq!(known.join(&key("n4.test", 1)).unwrap().answers.len(), ALIASES_MAX + 1);
    assert_eq!(known.join(&key("n2.test", 1)), None);
    // What is known at the end leads back.
    let mut known = Known::new();
    let way = vec![("b.test.", 60, alias("a.test.")), ("a.test.", 60, a(1))];
    known.learn(&key("b.test", 1), &answer("b.test.", 1, ResponseCode::NoError, way).to_vec().unwrap());
    known.cache.remove(&key("a.test", 1));
    put(&mut known, "a.test.".to_owned(), "b.test.".to_owned());
    assert_eq!(known.join(&key("a.test", 1)), None);
}

#[test]
fn answers_that_cannot_be_taken_apart_are_not() {
    let mut known = Known::new();
    let mut refused = |qtype: u16, change: &dyn Fn(&mut Theirs)| {
        let records = vec![("www.test.", 300, alias("cdn.test.")), ("cdn.test.", 60, a(1))];
        let mut message = answer("www.test.", qtype, ResponseCode::NoError, records);
        change(&mut message);
        assert_eq!(known.learn(&key("www.test", qtype), &message.to_vec().unwrap()), 0);
    };
    refused(255, &|_| {});
    refused(5, &|_| {});
    refused(43, &|_| {});
    refused(1, &|message| message.metadata.truncation = true);
    refused(1, &|message| message.metadata.response_code = ResponseCode::ServFail);
    refused(1, &|message| {
        message.answers.push(TheirRecord::from_rdata(their("www.test."), 1, alias("other.test.")));
    });
    // A DNAME record speaks for every name below it.
    let bytes = Message::response("www.test", 1)
        .record_at(0, &name("test"), 39, 60, &name("example"))
        .record(0, 5, 60, &name("www.example"))
        .record_at(0, &name("www.example"), 1, 60, &[192, 0, 2, 1]);
    assert_eq!(known.learn(&key("www.test", 1), &bytes.0), 0);
}

/// A signature that covers a type, of a name of so many labels.
fn signature_of(covered: u16, labels: u8) -> Vec<u8> {
    let mut data = covered.to_be_bytes().to_vec();
    data.extend([13, labels]);
    data.extend([0; 12]);
    data.extend([1, 2]);
    data.extend(name("test"));
    data.extend([0xab; 64]);
    data
}

#[test]
fn signatures_go_with_what_they_cover_and_a_wildcards_stay_away() {
    let signed = |labels: u8| {
        Message::response("www.test", 1)
            .record(0, 5, 300, &name("cdn.test"))
            .record(0, 46, 300, &signature_of(5, 2))
            .record_at(0, &name("cdn.test"), 1, 60, &[192, 0, 2, 1])
            .record_at(0, &name("cdn.test"), 46, 50, &signature_of(1, labels))
            .record_at(0, &name("cdn.test"), 46, 50, &signature_of(28, labels))
            .flags(0x81a0)
            .0
    };
    let (www, cdn) = (key_with("www.test", 1, 0x0100, true), key_with("cdn.test", 1, 0x0100, true));
    let mut known = Known::new();
    assert_eq!(known.learn(&www, &signed(2)), 2);
    let found = known.found(&cdn).unwrap();
    assert!(found.authentic);
    assert_eq!(found.answers.iter().map(|record| record.1).collect::<Vec<_>>(), [60, 50]);
    known.cache.remove(&www);
    let joined = known.join(&www).unwrap();
    assert_eq!(joined.answers.len(), 4);
    // "*.test" was signed: that "cdn.test" does not exist itself stands in the authority section.
    let mut known = Known::new();
    assert_eq!(known.learn(&www, &signed(1)), 1);
    assert_eq!(known.found(&cdn), None);
    assert_eq!(known.learn(&www, &signed(9)), 1);
}

#[test]
fn sets_obey_the_policy_of_the_cache() {
    let secs = std::time::Duration::from_secs;
    let policy = CachePolicy { ttl_min: secs(100), ttl_max: secs(200), ..CachePolicy::default() };
    let mut known = Known::with(policy);
    known.learn(&key("www.test", 1), &www());
    assert_eq!(known.found(&key("cdn.test", 1)).unwrap().answers[0].1, 100);
    assert_eq!(known.found(&key("www.test", 5)).unwrap().answers[0].1, 200);
    known.cache.remove(&key("www.test", 1));
    known.now = at(105_000);
    // What is left is not lifted to ttl_min again.
    assert_eq!(known.join(&key("www.test", 1)).unwrap().answers[1].1, 5);
    known.now = at(110_000);
    assert_eq!(known.found(&key("www.test", 1)), None);
}

#[test]
fn sets_with_no_time_are_for_once_only() {
    let mut known = Known::new();
    let records = vec![("www.test.", 0, alias("cdn.test.")), ("cdn.test.", 60, a(1))];
    let bytes = answer("www.test.", 1, ResponseCode::NoError, records).to_vec().unwrap();
    assert_eq!(known.learn(&key("www.test", 1), &bytes), 1);
    assert_eq!(known.found(&key("www.test", 5)), None);
    assert!(known.found(&key("cdn.test", 1)).is_some());
}

//! Our scan and our replies beside those of hickory-proto, on random messages.

use forebay_core::Instant;
use forebay_dns_core::cache::{CachePolicy, Insert, MessageCache};
use forebay_dns_core::reply::{Fit, Terms, write_error, write_fresh, write_stored};
use forebay_dns_core::wire::{
    Answer, AnswerKind, HashSeed, QuestionKey, Scan, UpstreamQuery, rcode, scan_query, write_query,
};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;

fn name() -> impl Strategy<Value = Name> {
    // Few labels to choose from, so that names share their ends and get compressed.
    let label = prop_oneof![
        Just("www".to_owned()),
        Just("MAIL".to_owned()),
        Just("Example".to_owned()),
        Just("com".to_owned()),
        "[a-zA-Z0-9-]{1,20}",
        "[a-z]{50,63}",
    ];
    prop::collection::vec(label, 0..4).prop_map(|labels| {
        Name::from_labels(labels.iter().map(|label| label.as_bytes())).expect("a short name")
    })
}

fn rdata() -> impl Strategy<Value = RData> {
    prop_oneof![
        4 => any::<[u8; 4]>().prop_map(|octets| RData::A(A(octets.into()))),
        2 => any::<[u8; 16]>().prop_map(|octets| RData::AAAA(AAAA(octets.into()))),
        2 => name().prop_map(|name| RData::CNAME(CNAME(name))),
        1 => name().prop_map(|name| RData::NS(NS(name))),
        1 => name().prop_map(|name| RData::PTR(PTR(name))),
        1 => (any::<u16>(), name()).prop_map(|(rank, name)| RData::MX(MX::new(rank, name))),
        1 => (any::<[u16; 3]>(), name())
            .prop_map(|([a, b, c], name)| RData::SRV(SRV::new(a, b, c, name))),
        1 => "[ -~]{0,255}".prop_map(|text| RData::TXT(TXT::new(vec![text]))),
        1 => (name(), name(), any::<u32>(), any::<u32>()).prop_map(|(mname, rname, serial, minimum)| {
            RData::SOA(SOA::new(mname, rname, serial, 1, 2, 3, minimum))
        }),
    ]
}

fn records(count: usize) -> impl Strategy<Value = Vec<Record>> {
    let ttl = prop_oneof![0u32..100, 0u32..=i32::MAX as u32];
    let record = (name(), ttl, rdata()).prop_map(|(name, ttl, rdata)| Record::from_rdata(name, ttl, rdata));
    prop::collection::vec(record, 0..count)
}

fn edns() -> impl Strategy<Value = Option<Edns>> {
    prop::option::of((any::<u16>(), any::<bool>()).prop_map(|(size, dnssec_ok)| {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_dnssec_ok(dnssec_ok);
        edns
    }))
}

/// Types that a random answer may or may not have.
fn qtype() -> impl Strategy<Value = RecordType> {
    prop::sample::select(vec![
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::MX,
        RecordType::TXT,
        RecordType::ANY,
    ])
}

prop_compose! {
    fn response()(
        id in any::<u16>(),
        bits in any::<[bool; 5]>(),
        code in prop::sample::select(vec![
            ResponseCode::NoError, ResponseCode::NoError, ResponseCode::NXDomain,
            ResponseCode::ServFail, ResponseCode::Refused,
        ]),
        question in (name(), qtype()),
        answers in records(6),
        authorities in records(4),
        additionals in records(4),
        edns in edns(),
    ) -> Message {
        let mut message = Message::response(id, OpCode::Query);
        let [aa, tc, ra, ad, cd] = bits;
        message.metadata.authoritative = aa;
        message.metadata.truncation = tc;
        message.metadata.recursion_available = ra;
        message.metadata.authentic_data = ad;
        message.metadata.checking_disabled = cd;
        message.metadata.response_code = code;
        message.add_query(Query::query(question.0, question.1));
        message.insert_answers(answers);
        message.insert_authorities(authorities);
        message.insert_additionals(additionals);
        message.edns = edns;
        message
    }
}

/// A client's query for the question of `answer`, its letters in a case of its own.
fn query_for(answer: &Message, id: u16, bits: [bool; 3], case: u64, edns: Option<Edns>) -> Message {
    let asked = &answer.queries[0];
    let mut nth = 0;
    let mut flip = |octet: &u8| {
        nth += 1;
        if case >> (nth % 64) & 1 == 1 { octet.to_ascii_uppercase() } else { octet.to_ascii_lowercase() }
    };
    let labels: Vec<Vec<u8>> =
        asked.name().iter().map(|label| label.iter().map(&mut flip).collect()).collect();
    let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("the same name");
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    [
        message.metadata.recursion_desired,
        message.metadata.authentic_data,
        message.metadata.checking_disabled,
    ] = bits;
    message.add_query(Query::query(name, asked.query_type()));
    message.edns = edns;
    message
}

/// What a client must see of `answer`, and nothing else, `age` seconds later.
fn check_reply(
    reply: &[u8],
    query: &Message,
    answer: &Message,
    ttl: impl Fn(u32) -> u32,
) -> Result<(), TestCaseError> {
    let reply = Message::from_vec(reply).expect("hickory reads our reply");
    let meta = &reply.metadata;
    prop_assert_eq!(meta.id, query.metadata.id);
    prop_assert_eq!(meta.message_type, MessageType::Response);
    prop_assert_eq!(meta.response_code, answer.metadata.response_code);
    prop_assert!(meta.recursion_available && !meta.authoritative);
    prop_assert_eq!(meta.recursion_desired, query.metadata.recursion_desired);
    prop_assert_eq!(meta.checking_disabled, query.metadata.checking_disabled);
    prop_assert_eq!(reply.queries.len(), 1);
    prop_assert!(reply.queries[0].name().eq_case(query.queries[0].name()));
    prop_assert_eq!(reply.queries[0].query_type(), query.queries[0].query_type());
    prop_assert_eq!(reply.edns.is_some(), query.edns.is_some());
    if let (Some(ours), Some(theirs)) = (&reply.edns, &query.edns) {
        prop_assert_eq!(ours.flags().dnssec_ok, theirs.flags().dnssec_ok);
        prop_assert_eq!(ours.max_payload(), 1232);
    }
    if meta.truncation {
        prop_assert!(reply.all_sections().next().is_none());
        return Ok(());
    }
    let dnssec_ok = query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
    let may_see_ad = query.metadata.authentic_data || dnssec_ok;
    prop_assert_eq!(meta.authentic_data, answer.metadata.authentic_data && may_see_ad);
    let aged = |records: &[Record]| {
        let mut records = records.to_vec();
        for record in &mut records {
            record.ttl = ttl(record.ttl);
        }
        records
    };
    prop_assert_eq!(&reply.answers, &aged(&answer.answers));
    prop_assert_eq!(&reply.authorities, &aged(&answer.authorities));
    if !reply.additionals.is_empty() {
        prop_assert_eq!(&reply.additionals, &aged(&answer.additionals));
    }
    Ok(())
}

fn check_scan(ours: &Answer<'_>, theirs: &Message) -> Result<(), TestCaseError> {
    let meta = &theirs.metadata;
    prop_assert_eq!(ours.id, meta.id);
    prop_assert_eq!(ours.rcode, u16::from(meta.response_code));
    prop_assert_eq!(ours.is_truncated(), meta.truncation);
    prop_assert_eq!(ours.is_authoritative(), meta.authoritative);
    prop_assert_eq!(ours.is_authentic(), meta.authentic_data);
    let ttls: Vec<u32> = theirs.all_sections().map(|record| record.ttl).collect();
    let bytes = ours.bytes();
    let scanned: Vec<u32> = ours
        .ttl_offsets()
        .iter()
        .map(|&at| u32::from_be_bytes(*bytes[at.into()..].first_chunk().unwrap()))
        .collect();
    prop_assert_eq!(&scanned, &ttls);
    prop_assert_eq!(ours.ttl_min, ttls.iter().copied().min());
    prop_assert_eq!(ours.answer_ttl_min, theirs.answers.iter().map(|record| record.ttl).min());
    let negative = theirs.authorities.iter().filter_map(|record| match &record.data {
        RData::SOA(soa) if soa.minimum > i32::MAX as u32 => Some(0),
        RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
        _ => None,
    });
    prop_assert_eq!(ours.negative_ttl, negative.min());
    prop_assert_eq!(ours.opt.is_some(), theirs.edns.is_some());
    let qtype = theirs.queries[0].query_type();
    let answered =
        theirs.answers.iter().any(|record| record.record_type() == qtype || qtype == RecordType::ANY);
    let kind_fits = match ours.kind {
        AnswerKind::Positive => meta.response_code == ResponseCode::NoError && answered,
        AnswerKind::NxDomain => meta.response_code == ResponseCode::NXDomain,
        AnswerKind::NoData => meta.response_code == ResponseCode::NoError && !answered,
        AnswerKind::Referral => theirs.answers.is_empty() && ours.negative_ttl.is_none(),
        AnswerKind::Error => ours.rcode > rcode::NXDOMAIN || ours.rcode == rcode::SERVFAIL,
    };
    prop_assert!(kind_fits, "{:?}", ours.kind);
    Ok(())
}

/// Everything hickory writes is well-formed, so that no fault is excused.
fn must_scan<'a>(scan: &'a mut Scan, bytes: &'a [u8]) -> Answer<'a> {
    scan.scan_answer(bytes).expect("we read what hickory writes")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn answers_and_replies_agree_with_hickory(
        answer in response(),
        id in any::<u16>(),
        bits in any::<[bool; 3]>(),
        case in any::<u64>(),
        client_edns in edns(),
        age in 0u32..200,
        cap in 512u16..4096,
    ) {
        let answer_bytes = answer.to_vec().expect("hickory writes");
        let mut scan = Scan::new();
        let scanned = must_scan(&mut scan, &answer_bytes);
        check_scan(&scanned, &answer)?;

        let query = query_for(&answer, id, bits, case, client_edns);
        let query_bytes = query.to_vec().expect("hickory writes");
        let ours = scan_query(&query_bytes).expect("we read what hickory writes");
        prop_assert_eq!(ours.asked.id, id);
        prop_assert_eq!([ours.asked.rd, ours.asked.ad, ours.asked.cd], bits);
        prop_assert_eq!(ours.qtype, u16::from(query.queries[0].query_type()));
        prop_assert_eq!(ours.edns.map(|edns| edns.udp_size), query.edns.as_ref().map(|edns| edns.max_payload().max(512)));

        // Fresh, over UDP and over a stream.
        for terms in [Terms::udp(&ours.asked, cap), Terms::stream(None)] {
            let mut out = Vec::new();
            let fit = write_fresh(&mut out, &scanned, &ours.asked, &terms);
            prop_assert!(out.len() <= terms.len_max);
            let truncated = out[2] & 2 != 0;
            prop_assert_eq!(truncated, fit == Fit::Truncated);
            check_reply(&out, &query, &answer, |ttl| ttl)?;
        }

        // From the cache.
        let policy = CachePolicy::default();
        let mut cache = MessageCache::new(1 << 20, policy).expect("a cache");
        let mut key = QuestionKey::empty();
        ours.fill_key(&mut key, &HashSeed::from_bytes([1; 16]));
        let Insert::Kept { ttl_secs } = cache.insert(&key, &scanned, Instant::ZERO) else {
            return Ok(());
        };
        let now = Instant::from_nanos(u64::from(age) * 1_000_000_000);
        let Some(hit) = cache.lookup(&key, now) else {
            prop_assert!(age >= ttl_secs);
            return Ok(());
        };
        prop_assert!(age < ttl_secs);
        let most = if scanned.kind == AnswerKind::Positive { 86_400 } else { ttl_secs };
        for terms in [Terms::udp(&ours.asked, cap), Terms::stream(None)] {
            let mut out = Vec::new();
            let fit = write_stored(&mut out, &hit.stored, &ours.asked, hit.age_secs, &terms);
            prop_assert!(out.len() <= terms.len_max);
            prop_assert_eq!(out[2] & 2 != 0, fit == Fit::Truncated);
            check_reply(&out, &query, &answer, |ttl| ttl.min(most).saturating_sub(age))?;
        }
    }

    #[test]
    fn our_queries_and_errors_are_read_by_hickory(
        answer in response(),
        id in any::<u16>(),
        bits in any::<[bool; 3]>(),
        client_edns in edns(),
        code in prop::sample::select(vec![rcode::FORMERR, rcode::SERVFAIL, rcode::REFUSED]),
    ) {
        let query = query_for(&answer, id, bits, 0, client_edns);
        let query_bytes = query.to_vec().expect("hickory writes");
        let ours = scan_query(&query_bytes).expect("we read what hickory writes");
        let mut out = Vec::new();
        write_query(&mut out, &UpstreamQuery {
            id: !id,
            question: ours.asked.question,
            rd: ours.asked.rd,
            cd: ours.asked.cd,
            dnssec_ok: ours.asked.dnssec_ok(),
            udp_size: Some(1232), options: &[]
        });
        let sent = Message::from_vec(&out).expect("hickory reads our query");
        prop_assert_eq!(sent.metadata.id, !id);
        prop_assert_eq!(&sent.queries, &query.queries);
        prop_assert_eq!(sent.metadata.recursion_desired, bits[0]);
        prop_assert!(sent.metadata.authentic_data);
        prop_assert_eq!(sent.metadata.checking_disabled, bits[2]);
        prop_assert_eq!(sent.edns.map(|edns| edns.max_payload()), Some(1232));

        out.clear();
        write_error(&mut out, &ours.asked, code, None, &Terms::stream(None));
        let reply = Message::from_vec(&out).expect("hickory reads our error");
        prop_assert_eq!(u16::from(reply.metadata.response_code), code);
        prop_assert_eq!(reply.metadata.id, id);
        prop_assert_eq!(&reply.queries, &query.queries);
        prop_assert_eq!(reply.edns.is_some(), query.edns.is_some());
    }

    #[test]
    fn every_cut_of_a_message_is_a_fault_or_consistent(answer in response()) {
        let bytes = answer.to_vec().expect("hickory writes");
        let mut scan = Scan::new();
        for len in 0..bytes.len() {
            prop_assert!(scan.scan_answer(&bytes[..len]).is_err());
        }
    }
}

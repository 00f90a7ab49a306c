use proptest::prelude::*;

use super::name::{NameFault, plain_name_end, skip_name};
use super::*;
use crate::testing::{DO, Message, key_of, name, scanned, seed};

fn fault_of(bytes: &[u8]) -> (u16, FaultCause) {
    match scan_query(bytes) {
        Err(QueryFault::Answer(answer)) => (answer.rcode, answer.cause),
        other => panic!("expected an error reply, got {other:?}"),
    }
}

fn ignored(bytes: &[u8]) -> IgnoreCause {
    match scan_query(bytes) {
        Err(QueryFault::Ignore(cause)) => cause,
        other => panic!("expected silence, got {other:?}"),
    }
}

// Queries

#[test]
fn plain_query_is_read() {
    let message = Message::query("WwW.Example.com", rtype::AAAA);
    let query = scanned(&message);
    assert_eq!(query.asked.id, 0x1234);
    assert_eq!(query.name(), name("WwW.Example.com"));
    assert_eq!((query.qtype, query.qclass), (rtype::AAAA, class::IN));
    assert!(query.asked.rd && !query.asked.ad && !query.asked.cd);
    assert_eq!(query.edns, None);
    assert_eq!(query.asked.udp_len_max(1232), 512);
}

#[test]
fn header_flags_are_read_each_for_itself() {
    for (flags, wanted) in
        [(0x0100, (true, false, false)), (0x0020, (false, true, false)), (0x0010, (false, false, true))]
    {
        let message = Message::query("a", 1).flags(flags);
        let asked = scanned(&message).asked;
        assert_eq!((asked.rd, asked.ad, asked.cd), wanted);
    }
}

#[test]
fn edns_is_read_with_its_options() {
    let options = [
        0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8, // cookie
        0, 11, 0, 0, // keep-alive
        0, 12, 0, 2, 0, 0, // padding
        0, 8, 0, 4, 0, 1, 0, 0, // client subnet
    ];
    let message = Message::query("a.example", 1).opt(4096, DO, &options);
    let query = scanned(&message);
    let edns = query.edns.expect("EDNS");
    assert_eq!(edns.udp_size, 4096);
    assert!(edns.dnssec_ok && query.asked.dnssec_ok());
    assert_eq!(edns.options.cookie(), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
    assert_eq!(edns.options.client_subnet(), Some(&[0, 1, 0, 0][..]));
    assert!(edns.options.has_keepalive() && edns.options.has_padding());
    assert_eq!(edns.options.keepalive(), None);
    assert_eq!(query.asked.udp_len_max(1232), 1232);
    assert_eq!(query.asked.udp_len_max(9000), 4096);
}

#[test]
fn udp_size_below_512_means_512() {
    let message = Message::query("a", 1).opt(100, 0, &[]);
    assert_eq!(scanned(&message).asked.udp_len_max(1232), 512);
}

#[test]
fn opt_is_found_behind_and_before_other_records() {
    for message in [
        Message::query("a", 1).record(2, rtype::TSIG, 0, &[1, 2]).opt(1400, 0, &[]),
        Message::query("a", 1).opt(1400, 0, &[]).record(2, rtype::TSIG, 0, &[1, 2]),
    ] {
        assert_eq!(scanned(&message).asked.udp_len_max(4096), 1400);
    }
}

#[test]
fn responses_and_stumps_get_no_reply() {
    assert_eq!(ignored(&[]), IgnoreCause::TooShort);
    assert_eq!(ignored(&[0; 11]), IgnoreCause::TooShort);
    assert_eq!(ignored(&Message::response("a", 1).0), IgnoreCause::Response);
    assert_eq!(ignored(&vec![0; 65_536]), IgnoreCause::TooLong);
}

#[test]
fn question_count_other_than_one_is_formerr() {
    let none = Message::new(7, 0x0100);
    assert_eq!(fault_of(&none.0), (rcode::FORMERR, FaultCause::QuestionCount));
    let two = Message::query("a", 1).question("b", 1);
    assert_eq!(fault_of(&two.0), (rcode::FORMERR, FaultCause::QuestionCount));
}

#[test]
fn compressed_or_oversized_question_is_formerr() {
    let mut pointer = Message::new(7, 0x0100);
    pointer.0[5] = 1;
    pointer.0.extend([0xc0, 0x0c, 0, 1, 0, 1]);
    assert_eq!(fault_of(&pointer.0), (rcode::FORMERR, FaultCause::Question));

    let label = "x".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "y".repeat(61));
    assert_eq!(name(&longest).len(), 255);
    assert_eq!(scanned(&Message::query(&longest, 1)).name().len(), 255);
    let too_long = format!("{label}.{label}.{label}.{}", "y".repeat(62));
    let message = Message::query(&too_long, 1);
    assert_eq!(fault_of(&message.0), (rcode::FORMERR, FaultCause::Question));
}

#[test]
fn other_operations_are_notimp_with_their_opcode_given_back() {
    let notify = Message::query("a.example", 6).flags(0x2000);
    let Err(QueryFault::Answer(answer)) = scan_query(&notify.0) else {
        panic!("NOTIFY was taken for a query");
    };
    assert_eq!(answer.rcode, rcode::NOTIMP);
    assert_eq!(answer.asked.opcode, 4);
    assert_eq!(answer.asked.name(), name("a.example"));
}

#[test]
fn unknown_edns_version_is_badvers_and_keeps_edns_for_the_reply() {
    let message = Message::query("a", 1).opt(1232, 0x0001_0000, &[]);
    let Err(QueryFault::Answer(answer)) = scan_query(&message.0) else {
        panic!("version 1 was accepted");
    };
    assert_eq!(answer.rcode, rcode::BADVERS);
    assert!(answer.asked.edns.is_some());
}

#[test]
fn two_opts_or_a_misplaced_one_are_formerr() {
    let two = Message::query("a", 1).opt(1232, 0, &[]).opt(1232, 0, &[]);
    assert_eq!(fault_of(&two.0), (rcode::FORMERR, FaultCause::Opt));
    let owned = Message::query("a", 1).opt_at(&name("b"), 1232, 0, &[]);
    assert_eq!(fault_of(&owned.0), (rcode::FORMERR, FaultCause::Opt));
}

#[test]
fn options_that_overrun_their_record_are_formerr() {
    let message = Message::query("a", 1).opt(1232, 0, &[0, 10, 0, 9, 1]);
    assert_eq!(fault_of(&message.0), (rcode::FORMERR, FaultCause::OptOptions));
}

#[test]
fn transfers_and_unknown_classes_are_refused() {
    for qtype in [rtype::AXFR, rtype::IXFR] {
        let message = Message::query("a", qtype);
        assert_eq!(fault_of(&message.0), (rcode::REFUSED, FaultCause::Transfer));
    }
    // IXFR brings a SOA record along (RFC 1995 §3): still a transfer.
    let ixfr = Message::query("a", rtype::IXFR).soa(1, 1);
    assert_eq!(fault_of(&ixfr.0), (rcode::REFUSED, FaultCause::Transfer));
    let mut none = Message::query("a", 1);
    *none.0.last_mut().unwrap() = 254;
    assert_eq!(fault_of(&none.0), (rcode::REFUSED, FaultCause::Class));
    let mut chaos = Message::query("version.bind", rtype::TXT);
    *chaos.0.last_mut().unwrap() = 3;
    assert_eq!(scanned(&chaos).qclass, class::CH);
}

#[test]
fn pseudo_types_as_questions_are_formerr() {
    for qtype in [rtype::OPT, rtype::TSIG, rtype::TKEY] {
        let message = Message::query("a", qtype);
        assert_eq!(fault_of(&message.0), (rcode::FORMERR, FaultCause::MetaType));
    }
}

#[test]
fn answer_records_in_a_query_are_formerr() {
    let message = Message::query("a", 1).a(60);
    assert_eq!(fault_of(&message.0), (rcode::FORMERR, FaultCause::ExtraRecords));
}

#[test]
fn bytes_behind_a_query_are_ignored() {
    let mut message = Message::query("a", 1).opt(1232, 0, &[]);
    message.0.extend(b"and more");
    assert!(scanned(&message).edns.is_some());
}

#[test]
fn query_cut_anywhere_is_a_fault() {
    let message = Message::query("www.example.com", 1).opt(1232, DO, &[0, 10, 0, 1, 7]);
    for len in 0..message.0.len() {
        match scan_query(&message.0[..len]) {
            Err(QueryFault::Ignore(cause)) => {
                assert_eq!((cause, len < 12), (IgnoreCause::TooShort, true));
            }
            Err(QueryFault::Answer(answer)) => assert_eq!(answer.rcode, rcode::FORMERR),
            Ok(query) => panic!("cut to {len} it became {query:?}"),
        }
    }
}

// Upstream queries

#[test]
fn upstream_query_has_our_opt_and_nothing_of_the_client() {
    let client = Message::query("Www.example", 28).opt(4096, DO, &[0, 10, 0, 1, 7]);
    let query = scanned(&client);
    let key = key_of(&query);
    let mut out = vec![0xee];
    write_query(
        &mut out,
        &UpstreamQuery {
            id: 0xbeef,
            question: key.question(),
            rd: query.asked.rd,
            cd: false,
            dnssec_ok: query.asked.dnssec_ok(),
            udp_size: Some(UDP_LEN_DEFAULT),
            options: &[],
        },
    );
    let wanted = Message::new(0xbeef, 0x0120).question("www.example", 28).opt(1232, DO, &[]);
    assert_eq!(out[1..], wanted.0);
}

#[test]
fn upstream_query_without_edns_has_no_opt() {
    let mut out = Vec::new();
    let question = [name("a"), vec![0, 1, 0, 1]].concat();
    let query = UpstreamQuery {
        id: 1,
        question: &question,
        rd: false,
        cd: true,
        dnssec_ok: true,
        udp_size: None,
        options: &[],
    };
    write_query(&mut out, &query);
    assert_eq!(out, Message::new(1, 0x0030).question("a", 1).0);
}

// Keys

#[test]
fn key_ignores_letter_case_and_nothing_else() {
    let base = key_of(&scanned(&Message::query("www.example.com", 1)));
    let same = key_of(&scanned(&Message::query("wWw.EXAMPLE.com", 1)));
    assert_eq!(base, same);
    assert_eq!(base.hash(), same.hash());
    for other in [
        Message::query("www.example.com", 65),
        Message::query("www.example.co", 1),
        Message::query("wwwxexample.com", 1),
        Message::query("www.example.com", 1).flags(0x0000),
        Message::query("www.example.com", 1).flags(0x0110),
        Message::query("www.example.com", 1).opt(1232, DO, &[]),
    ] {
        let other = key_of(&scanned(&other));
        assert_ne!(base, other);
        assert_ne!(base.hash(), other.hash());
    }
    // EDNS alone changes nothing in the answer, nor does AD in the query.
    for same in [
        Message::query("www.example.com", 1).opt(1232, 0, &[]),
        Message::query("www.example.com", 1).flags(0x0120),
    ] {
        assert_eq!(base, key_of(&scanned(&same)));
    }
}

#[test]
fn key_keeps_type_65_though_it_looks_like_a_letter() {
    let key = key_of(&scanned(&Message::query("A.b", 65)));
    assert_eq!((key.qtype(), key.qclass()), (65, 1));
    assert_eq!(key.name(), name("a.b"));
    assert_eq!(key.flags(), QuestionKey::RD);
}

#[test]
fn key_forgets_the_longer_question_it_held_before() {
    let long = Message::query(&"abcdefgh.".repeat(20), 1);
    let short = Message::query("x.example", 1);
    let mut reused = key_of(&scanned(&long));
    scanned(&short).fill_key(&mut reused, &seed());
    assert_eq!(reused, key_of(&scanned(&short)));
    assert_eq!(reused.hash(), key_of(&scanned(&short)).hash());
}

#[test]
fn another_seed_gives_another_hash() {
    let message = Message::query("www.example.com", 1);
    let mut key = QuestionKey::empty();
    scanned(&message).fill_key(&mut key, &HashSeed::from_bytes([7; 16]));
    assert_ne!(key.hash(), key_of(&scanned(&message)).hash());
}

#[test]
fn hashes_of_similar_names_spread_over_both_halves() {
    let mut upper = std::collections::HashSet::new();
    let mut lower = std::collections::HashSet::new();
    for number in 0..20_000 {
        let message = Message::query(&format!("host{number}.example.com"), 1);
        let hash = key_of(&scanned(&message)).hash();
        upper.insert(hash >> 32);
        lower.insert(hash as u32);
    }
    // 20,000 of 2^32 collide 0.05 times on average.
    assert!(upper.len() >= 19_998 && lower.len() >= 19_998);
}

// Answers

#[test]
fn positive_answer_is_read() {
    let message = Message::response("www.example.com", 1)
        .record(0, rtype::CNAME, 300, &[0xc0, 0x10])
        .a(60)
        .a(90)
        .record(1, rtype::NS, 50, &[0xc0, 0x10])
        .opt(1400, DO, &[]);
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    assert_eq!(answer.kind, AnswerKind::Positive);
    assert_eq!((answer.id, answer.rcode), (0x5678, rcode::NOERROR));
    assert_eq!(answer.counts, [3, 1, 1]);
    assert_eq!(answer.answer_ttl_min, Some(60));
    assert_eq!(answer.ttl_min, Some(50));
    assert_eq!(answer.ttl_offsets().len(), 4);
    for (&at, ttl) in answer.ttl_offsets().iter().zip([300, 60, 90, 50]) {
        assert_eq!(be32(&message.0, at.into()), Some(ttl));
    }
    let opt = answer.opt.as_ref().expect("OPT");
    assert_eq!(opt.range, message.0.len() - 11..message.0.len());
    assert_eq!(opt.edns.udp_size, 1400);
    assert_eq!(answer.end, message.0.len());
}

#[test]
fn negative_ttl_is_the_smaller_of_soa_ttl_and_minimum() {
    for (ttl, minimum, wanted) in [(300, 60, 60), (60, 300, 60), (0x8000_0000, 9, 0)] {
        let message = Message::response("no.example", 1).flags(0x8183).soa(ttl, minimum);
        let mut scan = Scan::new();
        let answer = scan.scan_answer(&message.0).expect("an answer");
        assert_eq!(answer.kind, AnswerKind::NxDomain);
        assert_eq!(answer.negative_ttl, Some(wanted));
    }
}

#[test]
fn no_data_referral_and_error_are_told_apart() {
    let mut scan = Scan::new();
    let mut kind = |message: &Message| scan.scan_answer(&message.0).expect("an answer").kind;
    let base = || Message::response("a.example", 28);
    assert_eq!(kind(&base().soa(60, 60)), AnswerKind::NoData);
    assert_eq!(kind(&base()), AnswerKind::NoData);
    let ns = [0xc0, 0x0c];
    assert_eq!(kind(&base().record(1, rtype::NS, 60, &ns)), AnswerKind::Referral);
    // An alias without what it leads to.
    let alias = base().record(0, rtype::CNAME, 60, &ns);
    assert_eq!(kind(&alias), AnswerKind::NoData);
    assert_eq!(kind(&base().flags(0x8182)), AnswerKind::Error);
    let any = Message::response("a.example", rtype::ANY).a(60);
    assert_eq!(kind(&any), AnswerKind::Positive);
}

#[test]
fn extended_rcode_joins_both_halves() {
    let message = Message::response("a", 1).flags(0x8187).opt(1232, 0x0100_0000, &[]);
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    assert_eq!((answer.rcode, answer.kind), (23, AnswerKind::Error));
}

#[test]
fn keepalive_and_extended_error_are_found() {
    let options = [0, 11, 0, 2, 0, 100, 0, 15, 0, 5, 0, 23, b'o', b'o', b'h'];
    let message = Message::response("a", 1).a(1).opt(1232, 0, &options);
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    let options = answer.opt.expect("OPT").edns.options;
    assert_eq!(options.keepalive(), Some(100));
    let error = options.extended_error().expect("EDE");
    assert_eq!((error.code, error.text), (23, &b"ooh"[..]));
}

#[test]
fn ttl_with_top_bit_counts_as_zero() {
    let message = Message::response("a", 1).a(60).a(0x8000_0001);
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    assert_eq!(answer.answer_ttl_min, Some(0));
}

#[test]
fn faults_of_answers_are_told_by_cause() {
    let fault = |message: &Message| Scan::new().scan_answer(&message.0).expect_err("a faulty answer");
    let base = || Message::response("a.example", 1);
    assert_eq!(fault(&Message::query("a", 1)), AnswerFault::NotAResponse);
    assert_eq!(fault(&base().question("b", 1)), AnswerFault::QuestionCount);
    let two = base().opt(512, 0, &[]).opt(512, 0, &[]);
    assert_eq!(fault(&two), AnswerFault::TwoOpts);
    let owned = base().opt_at(&[0xc0, 0x0c], 512, 0, &[]);
    assert_eq!(fault(&owned), AnswerFault::MisplacedOpt);
    for section in [0, 1] {
        let misplaced = base().record_at(section, &[0], rtype::OPT, 0, &[]);
        assert_eq!(fault(&misplaced), AnswerFault::MisplacedOpt);
    }
    let short_a = base().record(0, rtype::A, 1, &[1, 2, 3]);
    assert_eq!(fault(&short_a), AnswerFault::BadRdata);
    let loose_cname = base().record(0, rtype::CNAME, 1, &[0xc0, 0x0c, 0]);
    assert_eq!(fault(&loose_cname), AnswerFault::BadRdata);
    let name_beyond = base().record(0, rtype::CNAME, 1, &[9, b'x']).a(1);
    assert_eq!(fault(&name_beyond), AnswerFault::BadRdata);
    let label = base().record_at(0, &[0x40, 0], rtype::A, 1, &[1, 2, 3, 4]);
    assert_eq!(fault(&label), AnswerFault::BadName);
}

#[test]
fn loops_forward_and_header_pointers_are_refused() {
    for target in [0u16, 11, 27, 28, 30, 0x3fff] {
        // The record starts at 27, behind the question for a.example.
        let owner = (0xc000 | target).to_be_bytes();
        let message = Message::response("a.example", 1).record_at(0, &owner, 1, 1, &[1, 2, 3, 4]);
        assert_eq!(message.0[27..29], owner);
        let fault = Scan::new().scan_answer(&message.0).expect_err("a bad pointer");
        assert_eq!(fault, AnswerFault::BadPointer, "target {target}");
    }
    // A label, then a pointer back to that label.
    let mut bytes = vec![0; 12];
    bytes.extend([1, b'a', 0xc0, 12]);
    assert_eq!(skip_name(&bytes, 12).unwrap_err(), NameFault::Pointer);
}

#[test]
fn pointer_to_labels_that_run_on_past_it_is_refused() {
    // Found by fuzzing: led into the middle of a label, the name took in what stands behind
    // itself, up to the OPT record, and was another one when that was taken away.
    let mut bytes = vec![0; 12];
    bytes.extend([3, b'a', 2, b'b', 0]); // "a\x02b"; from 14 on it is a label of two octets
    let at = bytes.len();
    bytes.extend([0xc0, 14, b'c', 0]);
    assert_eq!(skip_name(&bytes, at).unwrap_err(), NameFault::Pointer);
    // Ended in time, the middle of a label is as good as any place.
    let mut bytes = vec![0; 12];
    bytes.extend([3, b'a', 1, b'b', 0]);
    bytes.extend([0xc0, 14]);
    let span = skip_name(&bytes, 17).expect("a name");
    assert_eq!((span.end, span.reach), (19, 17));
}

#[test]
fn chain_of_more_pointers_than_a_name_has_labels_is_refused() {
    let mut bytes = vec![0; 13]; // the root name at 12
    for hop in 0..130u16 {
        let target = if hop == 0 { 12 } else { 13 + 2 * (hop - 1) };
        bytes.extend((0xc000 | target).to_be_bytes());
    }
    // The name at the n-th pointer takes n hops, counted from one.
    let at = |hops: usize| 13 + 2 * (hops - 1);
    assert_eq!(skip_name(&bytes, at(127)).expect("a name").end, at(128));
    assert_eq!(skip_name(&bytes, at(128)).unwrap_err(), NameFault::Pointer);
}

#[test]
fn reach_is_the_end_of_what_the_first_pointer_leads_to() {
    let mut bytes = vec![0; 12];
    bytes.extend([1, b'a', 0]); // 12..15
    bytes.extend([1, b'b', 0xc0, 12]); // 15..19
    bytes.extend([1, b'c', 0xc0, 15]); // 19..23
    let reach = |at| skip_name(&bytes, at).expect("a name").reach;
    assert_eq!([reach(12), reach(15), reach(19)], [0, 15, 19]);
}

#[test]
fn name_that_grows_beyond_255_octets_through_pointers_is_refused() {
    let mut bytes = vec![0; 12];
    let label: Vec<u8> = [&[63][..], &[b'x'; 63]].concat();
    bytes.extend([&label[..], &label, &label, &[0]].concat());
    assert_eq!(plain_name_end(&bytes, 12), Some(bytes.len()));
    let at = bytes.len();
    bytes.extend([&label[..], &[0xc0, 12]].concat());
    assert_eq!(skip_name(&bytes, at).unwrap_err(), NameFault::Bad);
    let at = bytes.len();
    bytes.extend([&[60][..], &[b'y'; 60], &[0xc0, 12]].concat());
    assert_eq!(skip_name(&bytes, at).unwrap().end, bytes.len());
}

#[test]
fn answer_cut_anywhere_is_a_fault() {
    let message =
        Message::response("www.example.com", 1).a(60).soa(60, 60).opt(1232, 0, &[0, 15, 0, 2, 0, 1]);
    let mut scan = Scan::new();
    for len in 0..message.0.len() {
        let fault = scan.scan_answer(&message.0[..len]).expect_err("a cut answer");
        assert!(matches!(fault, AnswerFault::TooShort | AnswerFault::Question | AnswerFault::Cut));
    }
    assert!(scan.scan_answer(&message.0).is_ok());
}

#[test]
fn bytes_behind_an_answer_are_left_out() {
    let mut message = Message::response("a", 1).a(60);
    let end = message.0.len();
    message.0.extend(b"rubbish");
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    assert_eq!(answer.end, end);
    assert_eq!(answer.without_opt().head.len(), end);
}

#[test]
fn records_behind_opt_move_to_its_place() {
    let message = Message::response("a", 1).a(60).opt(1232, 0, &[0, 15, 0, 2, 0, 1]).record(
        2,
        rtype::AAAA,
        77,
        &[1; 16],
    );
    let wanted = Message::response("a", 1).a(60).record(2, rtype::AAAA, 77, &[1; 16]);
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&message.0).expect("an answer");
    let parts = answer.without_opt();
    let joined = [parts.head, parts.tail].concat();
    assert_eq!(joined[12..], wanted.0[12..]);
    assert_eq!(parts.counts, [1, 0, 1]);
    let ttls: Vec<_> = parts.ttl_offsets().map(|at| be32(&joined, at.into())).collect();
    assert_eq!(ttls, [Some(60), Some(77)]);
}

#[test]
fn records_behind_opt_that_cannot_move_are_left_out() {
    let base = Message::response("a", 1).a(60).opt(1232, 0, &[]);
    let end = base.0.len();
    let late = 0xc000 | end as u16;
    for message in [
        // The second record's owner points at the first's, which would move.
        base.clone().record_at(2, &name("ns.b"), rtype::A, 60, &[1, 2, 3, 4]).record_at(
            2,
            &late.to_be_bytes(),
            rtype::A,
            60,
            &[1, 2, 3, 5],
        ),
        // RDATA that may hold a pointer.
        base.clone().record(2, rtype::NS, 60, &[0xc0, 0x0c]),
    ] {
        let mut scan = Scan::new();
        let answer = scan.scan_answer(&message.0).expect("an answer");
        let parts = answer.without_opt();
        assert_eq!(parts.head, &message.0[..end - 11]);
        assert!(parts.tail.is_empty());
        assert_eq!(parts.counts, [1, 0, 0]);
        assert_eq!(parts.record_count(), 1);
    }
}

#[test]
fn echoed_question_is_compared() {
    let sent = [name("wWw.example"), vec![0, 1, 0, 1]].concat();
    let echo = |message: &Message, case| answer_matches(&message.0, &sent, case);
    let exact = Message::response("wWw.example", 1);
    let folded = Message::response("www.EXAMPLE", 1);
    assert_eq!(echo(&exact, LetterCase::Exact), QuestionEcho::Same);
    assert_eq!(echo(&folded, LetterCase::Exact), QuestionEcho::Different);
    assert_eq!(echo(&folded, LetterCase::Ignored), QuestionEcho::Same);
    for other in [
        Message::response("wWw.example", 28),
        Message::response("wWw.exampl", 1),
        Message::response("wWw.example.x", 1),
        Message::response("wWw.example", 1).question("b", 1),
    ] {
        assert_eq!(echo(&other, LetterCase::Ignored), QuestionEcho::Different);
    }
    let empty = Message::new(1, 0x8185);
    assert_eq!(echo(&empty, LetterCase::Exact), QuestionEcho::Missing);
    assert_eq!(answer_matches(&empty.0[..11], &sent, LetterCase::Exact), QuestionEcho::Different);
}

/// Bytes that look enough like a message to get past its beginning.
fn nearly_a_message() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<u16>(),
        any::<[u8; 2]>(),
        prop::array::uniform4(0u16..4),
        prop::collection::vec(
            prop_oneof![
                Just(vec![0xc0, 0x0c]),
                Just(vec![0]),
                Just(vec![0, 41, 4, 0, 0, 0, 0, 0]),
                Just(vec![0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 2, 3, 4]),
                Just(name("a.example")),
                prop::collection::vec(any::<u8>(), 0..20),
            ],
            0..12,
        ),
    )
        .prop_map(|(id, flags, counts, chunks)| {
            let message = Message::new(id, u16::from_be_bytes(flags));
            let mut bytes = message.0;
            bytes.truncate(4);
            bytes.extend(counts.map(u16::to_be_bytes).as_flattened());
            bytes.extend(chunks.concat());
            bytes
        })
}

proptest! {
    #[test]
    fn no_bytes_make_the_scans_panic(
        bytes in prop_oneof![prop::collection::vec(any::<u8>(), 0..200), nearly_a_message()],
    ) {
        let _ = scan_query(&bytes);
        let mut scan = Scan::new();
        if let Ok(answer) = scan.scan_answer(&bytes) {
            let parts = answer.without_opt();
            prop_assert_eq!(parts.ttl_offsets().count(), parts.record_count());
            prop_assert_eq!(
                parts.record_count(),
                parts.counts.iter().map(|&count| usize::from(count)).sum::<usize>()
            );
        }
        let _ = answer_matches(&bytes, &bytes, LetterCase::Ignored);
    }

    #[test]
    fn lower_casing_by_words_is_lower_casing_by_bytes(
        label in prop::collection::vec(any::<u8>(), 1..64),
    ) {
        let question = [&[label.len() as u8][..], &label, &[0, 0, 65, 0, 1]].concat();
        let mut key = QuestionKey::empty();
        key.fill(&question, 5, &seed());
        let end = question.len() - 4;
        prop_assert_eq!(key.name(), question[..end].to_ascii_lowercase());
        prop_assert_eq!(&key.as_bytes()[end..], [0, 65, 0, 1, 5]);
    }
}

//! Any bytes as a client's query: scanned, keyed, sent on, refused. What we write must be
//! readable by our own scan of answers.

#![no_main]

use forebay_dns_core::reply::{Terms, write_error};
use forebay_dns_core::wire::{
    ExtendedError, HashSeed, LetterCase, QueryFault, QuestionEcho, QuestionKey, Scan, UpstreamQuery,
    answer_matches, rcode, scan_query, write_query,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let (asked, code) = match scan_query(bytes) {
        Ok(query) => {
            let mut key = QuestionKey::empty();
            query.fill_key(&mut key, &HashSeed::from_bytes([7; 16]));
            assert_eq!(key.name(), query.name().to_ascii_lowercase());
            assert_eq!((key.qtype(), key.qclass()), (query.qtype, query.qclass));
            if let Some(edns) = query.edns {
                let options = edns.options;
                let _ = (options.cookie(), options.client_subnet(), options.keepalive());
                let _ = (options.extended_error(), options.has_padding());
            }
            let mut sent = Vec::new();
            let upstream = UpstreamQuery {
                id: !query.asked.id,
                question: key.question(),
                rd: query.asked.rd,
                cd: query.asked.cd,
                dnssec_ok: query.asked.dnssec_ok(),
                udp_size: Some(1232),
                options: &[],
            };
            write_query(&mut sent, &upstream);
            let again = scan_query(&sent).expect("our own query");
            assert_eq!(again.name(), key.name());
            assert_eq!(again.key_flags(), query.key_flags());
            (query.asked, rcode::SERVFAIL)
        }
        Err(QueryFault::Ignore(_)) => return,
        Err(QueryFault::Answer(fault)) => (fault.asked, fault.rcode),
    };
    let error = Some(ExtendedError { code: 22, text: b"no reachable authority" });
    for terms in [Terms::udp(&asked, 1232), Terms::stream(Some(300))] {
        let mut out = Vec::new();
        write_error(&mut out, &asked, code, error, &terms);
        assert!(out.len() <= terms.len_max);
        let mut scan = Scan::new();
        let reply = scan.scan_answer(&out).expect("our own reply");
        assert_eq!((reply.id, reply.question), (asked.id, asked.question));
        assert_eq!(reply.opt.is_some(), asked.edns.is_some());
        assert_eq!(reply.rcode, code);
        if !asked.question.is_empty() {
            let echo = answer_matches(&out, asked.question, LetterCase::Exact);
            assert_eq!(echo, QuestionEcho::Same);
        }
    }
});

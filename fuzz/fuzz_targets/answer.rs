//! Any bytes as an upstream's answer: scanned, handed to a client, kept, and handed out aged.
//! The first two bytes make the client and the age, the rest is the answer.

#![no_main]

use forebay_core::Instant;
use forebay_dns_core::cache::{CachePolicy, Insert, MessageCache};
use forebay_dns_core::reply::{Fit, Terms, write_fresh, write_stored};
use forebay_dns_core::wire::{
    Asked, AskedEdns, HashSeed, LetterCase, QuestionEcho, QuestionKey, Scan, answer_matches,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(([client, age], bytes)) = input.split_first_chunk::<2>() else {
        return;
    };
    let mut scan = Scan::new();
    let Ok(answer) = scan.scan_answer(bytes) else {
        return;
    };
    let parts = answer.without_opt();
    assert_eq!(parts.ttl_offsets().count(), parts.record_count());
    assert!(parts.ttl_offsets().all(|at| usize::from(at) + 6 <= parts.len()));

    let question = answer.question.to_ascii_uppercase();
    let asked = Asked {
        id: 0xbeef,
        opcode: 0,
        rd: client & 1 != 0,
        ad: client & 2 != 0,
        cd: client & 4 != 0,
        // Upper-casing the type and class would make it another question.
        question: match answer.question.len().checked_sub(4) {
            Some(end) if question[end..] == answer.question[end..] => &question,
            _ => answer.question,
        },
        edns: (client & 8 != 0).then_some(AskedEdns {
            udp_size: 512 + 16 * u16::from(*client),
            dnssec_ok: client & 16 != 0,
            padding: client & 8 != 0,
            keepalive: client & 4 != 0,
            cookie: (client & 2 != 0).then_some([*client; 24]),
        }),
    };
    for terms in [Terms::udp(&asked, 1232), Terms::stream(Some(1))] {
        let mut out = Vec::new();
        let fit = write_fresh(&mut out, &answer, &asked, &terms);
        if asked.question.is_empty() {
            continue;
        }
        // An answer of 65,535 bytes has no room for our OPT record; nor must it exceed that.
        assert!(out.len() <= terms.len_max);
        let mut again = Scan::new();
        let reply = again.scan_answer(&out).expect("our own reply");
        assert_eq!((reply.id, reply.question), (asked.id, asked.question));
        assert_eq!(reply.opt.is_some(), asked.edns.is_some());
        assert_eq!(reply.is_truncated(), fit == Fit::Truncated);
        if fit == Fit::Whole && answer.rcode < 16 {
            assert_eq!((reply.rcode, reply.counts[0]), (answer.rcode, answer.counts[0]));
            assert_eq!(reply.counts[1], answer.counts[1]);
        }
    }

    let mut key = QuestionKey::empty();
    key.fill(asked.question, asked.key_flags(), &HashSeed::from_bytes([7; 16]));
    let mut cache = MessageCache::new(300_000, CachePolicy::default()).expect("a cache");
    let Insert::Kept { ttl_secs } = cache.insert(&key, &answer, Instant::ZERO) else {
        return;
    };
    let now = Instant::from_nanos(u64::from(*age) * 1_000_000_000);
    let Some(hit) = cache.lookup(&key, now) else {
        assert!(u32::from(*age) >= ttl_secs);
        return;
    };
    assert_eq!(hit.age_secs, u32::from(*age));
    for terms in [Terms::udp(&asked, 1232), Terms::stream(None)] {
        let mut out = Vec::new();
        let _ = write_stored(&mut out, &hit.stored, &asked, hit.age_secs, &terms);
        assert!(out.len() <= terms.len_max);
        let echo = answer_matches(&out, asked.question, LetterCase::Exact);
        assert_eq!(echo, QuestionEcho::Same);
        // Names may be made of TTL bytes by way of pointers; then ageing may spoil them, which is
        // the upstream's own doing. Everything else must still be read.
        let mut again = Scan::new();
        if let Ok(reply) = again.scan_answer(&out) {
            assert_eq!(reply.rcode, answer.rcode);
            assert_eq!(reply.opt.is_some(), asked.edns.is_some());
        }
    }
});

//! What a cache hit costs, in parts and as a whole: `cargo bench -p forebay-dns-core`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_core::Instant;
use forebay_dns_core::cache::{CachePolicy, MessageCache};
use forebay_dns_core::reply::{Terms, write_fresh, write_stored};
use forebay_dns_core::wire::{HashSeed, QuestionKey, Scan, scan_query};

/// A query for `host-NNNNNN.example.com A` with EDNS, or the answer to it with one record.
fn message(number: u32, answer: bool) -> Vec<u8> {
    let flags: [u8; 2] = if answer { [0x81, 0x80] } else { [0x01, 0x20] };
    let mut bytes = vec![0x12, 0x34, flags[0], flags[1], 0, 1, 0, answer.into(), 0, 0, 0, 1];
    let host = format!("host-{number:06}");
    for label in [host.as_str(), "Example", "com"] {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    if answer {
        bytes.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 1]);
    }
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn hit(criterion: &mut Criterion) {
    let seed = HashSeed::from_bytes(*b"sixteen bytes ok");
    let mut scan = Scan::new();
    let mut key = QuestionKey::empty();
    let now = Instant::from_nanos(10_000_000_000);
    let filled = |names: u32| {
        let mut cache = MessageCache::new(64 << 20, CachePolicy::default()).expect("a cache");
        let mut scan = Scan::new();
        let mut key = QuestionKey::empty();
        for number in 0..names {
            let query = message(number, false);
            scan_query(&query).expect("a query").fill_key(&mut key, &seed);
            let answer = message(number, true);
            let answer = scan.scan_answer(&answer).expect("an answer");
            let _ = cache.insert(&key, &answer, Instant::ZERO);
        }
        cache
    };
    let query_bytes = message(7, false);
    let answer_bytes = message(7, true);
    let query = scan_query(&query_bytes).expect("a query");
    let terms = Terms::udp(&query.asked, 1232);
    let mut arena = Vec::with_capacity(64 * 1232);
    let mut small = filled(1_000);

    let mut group = criterion.benchmark_group("hit");
    group.bench_function("scan_query", |bench| {
        bench.iter(|| scan_query(black_box(&query_bytes)).is_ok());
    });
    group.bench_function("fill_key", |bench| {
        bench.iter(|| {
            black_box(&query).fill_key(&mut key, &seed);
            key.hash()
        });
    });
    query.fill_key(&mut key, &seed);
    group.bench_function("lookup", |bench| {
        bench.iter(|| small.lookup(black_box(&key), now).is_some());
    });
    let hit = small.lookup(&key, now).expect("a hit");
    group.bench_function("write_stored", |bench| {
        bench.iter(|| {
            arena.clear();
            write_stored(&mut arena, black_box(&hit.stored), &query.asked, hit.age_secs, &terms)
        });
    });
    for (label, names) in [("whole_1k_names", 1_000), ("whole_500k_names", 500_000)] {
        let mut cache = filled(names);
        let queries: Vec<_> = (0..16_384)
            .map(|number: u32| message(number.wrapping_mul(2_654_435_761) % names, false))
            .collect();
        let mut next = 0;
        group.bench_function(label, |bench| {
            bench.iter(|| {
                next = (next + 1) % queries.len();
                let query = scan_query(&queries[next]).expect("a query");
                query.fill_key(&mut key, &seed);
                let hit = cache.lookup(&key, now).expect("a hit");
                arena.clear();
                let terms = Terms::udp(&query.asked, 1232);
                write_stored(&mut arena, &hit.stored, &query.asked, hit.age_secs, &terms)
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("miss");
    group.bench_function("scan_answer", |bench| {
        bench.iter(|| scan.scan_answer(black_box(&answer_bytes)).is_ok());
    });
    group.bench_function("write_fresh", |bench| {
        let answer = scan.scan_answer(&answer_bytes).expect("an answer");
        bench.iter(|| {
            arena.clear();
            write_fresh(&mut arena, black_box(&answer), &query.asked, &terms)
        });
    });
    let mut full = filled(1_000_000);
    let mut number = 1_000_000;
    group.bench_function("insert_with_eviction", |bench| {
        let mut answers = Scan::new();
        bench.iter_batched(
            || {
                number += 1;
                (message(number % 1_000_000, false), message(number % 1_000_000, true))
            },
            |(query, answer)| {
                let query = scan_query(&query).expect("a query");
                query.fill_key(&mut key, &seed);
                let answer = answers.scan_answer(&answer).expect("an answer");
                full.insert(&key, &answer, now)
            },
            criterion::BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, hit);
criterion_main!(benches);

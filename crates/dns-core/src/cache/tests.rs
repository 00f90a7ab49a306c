mod kept;
mod model;

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::reply::{Fit, Terms, write_stored};
use crate::testing::{DO, Message, key_of, scanned, seed};
use crate::wire::{HashSeed, Scan, be32, rtype};

fn at(secs: u64) -> Instant {
    Instant::from_nanos(secs * 1_000_000_000)
}

fn cache(bytes_max: usize) -> MessageCache {
    MessageCache::new(bytes_max, CachePolicy::default()).expect("a cache")
}

fn with_policy(policy: CachePolicy) -> MessageCache {
    MessageCache::new(1 << 20, policy).expect("a cache")
}

fn key(dotted: &str, qtype: u16) -> QuestionKey {
    key_of(&scanned(&Message::query(dotted, qtype)))
}

fn insert(cache: &mut MessageCache, key: &QuestionKey, answer: &Message, now: Instant) -> Insert {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&answer.0).expect("an answer");
    cache.insert(key, &answer, now)
}

/// The TTLs that a client would see at `now`.
fn ttls(cache: &mut MessageCache, key: &QuestionKey, now: Instant) -> Option<Vec<u32>> {
    let hit = cache.lookup(key, now)?;
    let left = |at| be32(hit.stored.wire(), at).unwrap().saturating_sub(hit.age_secs);
    Some(hit.stored.ttl_offsets().map(left).collect())
}

fn kept(ttl_secs: u32) -> Insert {
    Insert::Kept { ttl_secs }
}

#[test]
fn answer_is_found_until_its_ttl_is_over() {
    let mut cache = cache(1 << 20);
    let key = key("www.example", 1);
    let answer = Message::response("WWW.example", 1).a(30).a(90);
    assert!(cache.lookup(&key, at(100)).is_none());
    assert_eq!(insert(&mut cache, &key, &answer, at(100)), kept(30));
    assert_eq!(ttls(&mut cache, &key, at(100)), Some(vec![30, 90]));
    assert_eq!(ttls(&mut cache, &key, at(129)), Some(vec![1, 61]));
    assert_eq!(ttls(&mut cache, &key, at(130)), None);
    let counters = cache.counters();
    assert_eq!((counters.hits, counters.misses, counters.expired), (2, 2, 1));
    assert_eq!((counters.inserts, counters.entries), (1, 1));
}

#[test]
fn age_is_counted_in_whole_seconds() {
    let mut cache = cache(1 << 20);
    let key = key("a", 1);
    let start = Instant::from_nanos(500_000_000);
    insert(&mut cache, &key, &Message::response("a", 1).a(30), start);
    let mut age = |nanos| cache.lookup(&key, Instant::from_nanos(nanos)).unwrap().age_secs;
    assert_eq!(age(500_000_000), 0);
    assert_eq!(age(1_400_000_000), 0);
    assert_eq!(age(1_500_000_000), 1);
    assert_eq!(age(10_500_000_000), 10);
}

#[test]
fn clock_that_has_run_for_decades_changes_nothing() {
    let mut cache = cache(1 << 20);
    let key = key("a", 1);
    let start = at(60 * 366 * 86_400);
    insert(&mut cache, &key, &Message::response("a", 1).a(30), start);
    assert_eq!(ttls(&mut cache, &key, start + Duration::from_secs(29)), Some(vec![1]));
    assert_eq!(ttls(&mut cache, &key, start + Duration::from_secs(30)), None);
}

#[test]
fn name_type_and_flags_each_make_another_question() {
    let mut cache = cache(1 << 20);
    let plain = key("a.example", 1);
    insert(&mut cache, &plain, &Message::response("a.example", 1).a(30), at(0));
    for other in [
        Message::query("a.example", 28),
        Message::query("b.example", 1),
        Message::query("a.exampl", 1),
        Message::query("a.example.x", 1),
        Message::query("a.example", 1).flags(0),
        Message::query("a.example", 1).flags(0x0110),
        Message::query("a.example", 1).opt(1232, DO, &[]),
    ] {
        let other = key_of(&scanned(&other));
        assert!(cache.lookup(&other, at(0)).is_none(), "{other:?}");
    }
    assert!(cache.lookup(&plain, at(0)).is_some());
}

#[test]
fn equal_hashes_do_not_make_questions_equal() {
    // Without the full comparison, a table of one tag would answer everything with anything.
    let ring_full_of = |names: &[&str]| {
        let mut cache = cache(1 << 20);
        for name in names {
            insert(&mut cache, &key(name, 1), &Message::response(name, 1).a(30), at(0));
        }
        cache
    };
    let cache = ring_full_of(&["a.example", "b.example"]);
    let (wanted, other) = (key("a.example", 1), key("b.example", 1));
    let (_, position) = cache.find(&wanted).expect("an entry");
    assert!(cache.ring.answers(position, wanted.question(), wanted.flags()));
    assert!(!cache.ring.answers(position, other.question(), other.flags()));
    assert!(!cache.ring.answers(position, wanted.question(), wanted.flags() | QuestionKey::DO));
}

#[test]
fn answer_to_another_question_is_not_kept() {
    let mut cache = cache(1 << 20);
    let key = key("a", 1);
    for answer in [Message::response("b", 1).a(30), Message::response("a", 28).a(30), Message::new(1, 0x8180)]
    {
        assert_eq!(insert(&mut cache, &key, &answer, at(0)), Insert::NotKept(NotKept::OtherQuestion));
    }
    assert_eq!(cache.counters().entries, 0);
}

#[test]
fn smallest_ttl_of_all_records_is_the_answers() {
    let mut cache = cache(1 << 20);
    let answer = Message::response("a", 1).a(60).record(2, rtype::AAAA, 20, &[1; 16]);
    assert_eq!(insert(&mut cache, &key("a", 1), &answer, at(0)), kept(20));
}

#[test]
fn negative_answers_are_kept_as_long_as_their_soa_says() {
    let mut cache = cache(1 << 20);
    let key = key("no.example", 1);
    let nxdomain = |ttl, minimum| Message::response("no.example", 1).flags(0x8183).soa(ttl, minimum);
    assert_eq!(insert(&mut cache, &key, &nxdomain(900, 300), at(0)), kept(300));
    // The SOA's TTL shows no more than that, and ages.
    assert_eq!(ttls(&mut cache, &key, at(100)), Some(vec![200]));
    assert_eq!(cache.lookup(&key, at(100)).unwrap().stored.rcode(), 3);
    assert_eq!(insert(&mut cache, &key, &nxdomain(120, 300), at(0)), kept(120));
    let no_data = Message::response("no.example", 1).soa(60, 60);
    assert_eq!(insert(&mut cache, &key, &no_data, at(0)), kept(60));
    let without_soa = Message::response("no.example", 1).flags(0x8183);
    assert_eq!(insert(&mut cache, &key, &without_soa, at(0)), Insert::NotKept(NotKept::NoSoa));
}

#[test]
fn what_must_not_be_kept_is_not() {
    let mut cache = cache(1 << 20);
    let key = key("a", 1);
    let base = || Message::response("a", 1);
    for (answer, cause) in [
        (base().flags(0x8380).a(60), NotKept::Truncated),
        (base().flags(0x8182), NotKept::Rcode),
        (base().flags(0x8185).soa(60, 60), NotKept::Rcode),
        (base().a(60).a(0), NotKept::ZeroTtl),
        (base().a(0x8000_0000), NotKept::ZeroTtl),
        (base().soa(60, 0), NotKept::ZeroTtl),
        (base().record(1, 2, 60, &[0]), NotKept::Referral),
    ] {
        assert_eq!(insert(&mut cache, &key, &answer, at(0)), Insert::NotKept(cause));
    }
    assert_eq!(cache.counters().inserts, 0);
}

#[test]
fn policy_bounds_time_to_live_and_shown_ttls() {
    let secs = Duration::from_secs;
    let mut cache = with_policy(CachePolicy {
        ttl_min: secs(10),
        ttl_max: secs(100),
        negative_ttl_max: secs(50),
        ..CachePolicy::default()
    });
    let key = key("a", 1);
    let low = Message::response("a", 1).a(3).a(40);
    assert_eq!(insert(&mut cache, &key, &low, at(0)), kept(10));
    assert_eq!(ttls(&mut cache, &key, at(1)), Some(vec![9, 39]));
    let high = Message::response("a", 1).a(1000).a(500);
    assert_eq!(insert(&mut cache, &key, &high, at(0)), kept(100));
    assert_eq!(ttls(&mut cache, &key, at(1)), Some(vec![99, 99]));
    let negative = Message::response("a", 1).soa(300, 300);
    assert_eq!(insert(&mut cache, &key, &negative, at(0)), kept(50));
    assert_eq!(ttls(&mut cache, &key, at(1)), Some(vec![49]));

    let mut cache = with_policy(CachePolicy::default());
    let days = Message::response("a", 1).a(999_999);
    assert_eq!(insert(&mut cache, &key, &days, at(0)), kept(86_400));
    let negative = Message::response("a", 1).soa(9_999, 9_999);
    assert_eq!(insert(&mut cache, &key, &negative, at(0)), kept(3_600));
}

#[test]
fn impossible_settings_are_refused_with_field_and_value() {
    let refused =
        |bytes_max, policy| MessageCache::new(bytes_max, policy).expect_err("must be refused").to_string();
    let default = CachePolicy::default();
    assert!(refused(1, default).contains("cache size of 1 bytes"));
    assert!(refused(16_383, default).contains("16384"));
    assert!(refused(usize::MAX, default).contains("cache size"));
    let fraction = CachePolicy { ttl_min: Duration::from_millis(1500), ..default };
    assert_eq!(refused(0, fraction), "ttl_min of 1.5s: it must be whole seconds, 7 days at most");
    let weeks = CachePolicy { ttl_max: Duration::from_secs(7 * 86_400 + 1), ..default };
    assert!(refused(0, weeks).starts_with("ttl_max of 604801s"));
    let crossed = CachePolicy { ttl_min: Duration::from_secs(3_601), ..default };
    assert_eq!(refused(0, crossed), "negative_ttl_max of 3600s is below ttl_min of 3601s");
}

#[test]
fn cache_of_no_bytes_keeps_nothing() {
    let mut cache = cache(0);
    let key = key("a", 1);
    let answer = Message::response("a", 1).a(60);
    assert_eq!(insert(&mut cache, &key, &answer, at(0)), Insert::NotKept(NotKept::NoCache));
    assert!(cache.lookup(&key, at(0)).is_none());
    assert!(!cache.remove(&key));
    assert_eq!((cache.counters().misses, cache.bytes_bound()), (1, 0));
}

#[test]
fn refreshed_answer_of_the_same_length_takes_no_more_room() {
    let mut cache = cache(1 << 20);
    let key = key("a", 1);
    insert(&mut cache, &key, &Message::response("a", 1).a(30), at(0));
    let bytes = cache.counters().bytes;
    for round in 1..100 {
        let answer = Message::response("a", 1).a(30);
        insert(&mut cache, &key, &answer, at(round * 31));
        assert!(cache.lookup(&key, at(round * 31 + 29)).is_some());
    }
    assert_eq!(cache.counters().bytes, bytes);
    // A longer one is found just so.
    let longer = Message::response("a", 1).a(60).a(60);
    insert(&mut cache, &key, &longer, at(9_000));
    assert_eq!(ttls(&mut cache, &key, at(9_000)), Some(vec![60, 60]));
    assert_eq!(cache.counters().entries, 1);
}

#[test]
fn removed_and_cleared_answers_are_gone() {
    let mut cache = cache(1 << 20);
    let (a, b) = (key("a", 1), key("b", 1));
    insert(&mut cache, &a, &Message::response("a", 1).a(30), at(0));
    insert(&mut cache, &b, &Message::response("b", 1).a(30), at(0));
    assert!(cache.remove(&a) && !cache.remove(&a));
    assert!(cache.lookup(&a, at(0)).is_none() && cache.lookup(&b, at(0)).is_some());
    cache.clear();
    assert!(cache.lookup(&b, at(0)).is_none());
    assert_eq!(cache.counters().entries, 0);
    insert(&mut cache, &b, &Message::response("b", 1).a(30), at(0));
    assert!(cache.lookup(&b, at(0)).is_some());
}

#[test]
fn answers_in_use_outlive_a_scan_of_others() {
    let mut cache = cache(32 * 1024);
    let hot: Vec<_> = (0..20).map(|n| format!("hot{n}.example")).collect();
    for name in &hot {
        let answer = Message::response(name, 1).a(3_600);
        insert(&mut cache, &key(name, 1), &answer, at(0));
    }
    for number in 0..5_000 {
        let name = format!("once{number}.example");
        let answer = Message::response(&name, 1).a(3_600);
        insert(&mut cache, &key(&name, 1), &answer, at(1));
        let name = &hot[number % hot.len()];
        assert!(cache.lookup(&key(name, 1), at(1)).is_some(), "{name} gone");
    }
    assert!(cache.counters().evictions > 4_000);
}

#[test]
fn cache_whose_every_answer_is_in_use_still_takes_new_ones() {
    let mut cache = cache(MessageCache::BYTES_MIN);
    for number in 0..2_000 {
        let name = format!("n{number}.example");
        let answer = Message::response(&name, 1).a(3_600);
        insert(&mut cache, &key(&name, 1), &answer, at(0));
        for back in 0..=number.min(300) {
            let name = format!("n{}.example", number - back);
            let _ = cache.lookup(&key(&name, 1), at(0));
        }
        assert!(cache.lookup(&key(&name, 1), at(0)).is_some());
    }
}

#[test]
fn one_insert_renews_a_bounded_number_of_answers() {
    let mut cache = cache(MessageCache::BYTES_MIN);
    let put = |cache: &mut MessageCache, number: u64| {
        let name = format!("n{number:04}.example");
        let answer = Message::response(&name, 1).a(3_600);
        insert(cache, &key(&name, 1), &answer, at(0));
    };
    let is_there = |cache: &mut MessageCache, number: u64| {
        let name = format!("n{number:04}.example");
        cache.lookup(&key(&name, 1), at(0)).is_some()
    };
    let mut full = 0;
    while cache.counters().evictions == 0 {
        put(&mut cache, full);
        full += 1;
    }
    // The first has gone for the last; all others are of use now.
    assert!((1..full).all(|number| is_there(&mut cache, number)));
    put(&mut cache, full);
    assert_eq!(cache.counters().evictions, 2);
    // The 64 oldest were renewed, the next one had to go.
    assert!(is_there(&mut cache, 64));
    assert!(!is_there(&mut cache, 65));
    assert!((66..=full).all(|number| is_there(&mut cache, number)));
}

#[test]
fn answer_as_large_as_the_cache_is_not_kept() {
    let mut cache = cache(MessageCache::BYTES_MIN);
    let name = "large.example";
    let mut answer = Message::response(name, 16);
    for _ in 0..20 {
        answer = answer.record(0, 16, 60, &[0; 250]);
    }
    assert_eq!(insert(&mut cache, &key(name, 16), &answer, at(0)), Insert::NotKept(NotKept::TooLarge));
}

#[test]
fn small_answers_take_about_85_bytes_each() {
    let mut cache = cache(1 << 20);
    let mut longest = 0;
    for number in 0..20_000 {
        let name = format!("host-{number:05}.example.com");
        let answer = Message::response(&name, 1).a(3_600);
        longest = longest.max(answer.0.len());
        insert(&mut cache, &key(&name, 1), &answer, at(0));
    }
    assert_eq!(longest, 56);
    let per_entry = (1 << 20) as f64 / cache.counters().entries as f64;
    assert!((75.0..88.0).contains(&per_entry), "{per_entry} bytes each");
    assert!(cache.bytes_bound() <= 1 << 20);
}

#[test]
fn table_survives_crowded_neighbourhoods() {
    // Tags chosen so that all live in the last slots and wrap around to the first.
    let mut table = Table::new(16);
    let tags: Vec<u32> = (0..13).map(|n| u32::MAX - n).collect();
    for (position, &tag) in (0..).zip(&tags) {
        table.insert(tag, position);
    }
    assert!(table.is_full());
    for (removed, &tag) in tags.iter().enumerate().step_by(3) {
        let (index, position) = table.find(tag, |_| true).expect("an entry");
        assert_eq!(position as usize, removed);
        table.remove(index);
        assert!(table.find(tag, |_| true).is_none());
    }
    for (position, &tag) in tags.iter().enumerate() {
        let found = table.find(tag, |_| true).map(|(_, position)| position);
        let wanted = (position % 3 != 0).then_some(position as u32);
        assert_eq!(found, wanted);
    }
}

#[test]
fn seed_of_the_tests_is_not_printed() {
    assert_eq!(format!("{:?}", seed()), "HashSeed(secret)");
}

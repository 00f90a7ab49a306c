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

fn stale_cache(stale_max: u64) -> MessageCache {
    with_policy(CachePolicy { stale_max: Duration::from_secs(stale_max), ..CachePolicy::default() })
}

#[test]
fn stale_answers_are_found_for_as_long_as_the_policy_says() {
    let mut cache = stale_cache(100);
    let key = key("a", 1);
    insert(&mut cache, &key, &Message::response("a", 1).a(30), at(0));
    let found = |cache: &mut MessageCache, secs| cache.find_stale(&key, at(secs)).map(|found| found.is_over);
    assert_eq!(found(&mut cache, 29), Some(false));
    assert_eq!(found(&mut cache, 30), Some(true));
    assert!(cache.lookup(&key, at(30)).is_none() && cache.peek(&key, at(30)).is_none());
    assert_eq!(found(&mut cache, 129), Some(true));
    assert_eq!(found(&mut cache, 130), None);
    let mut without = stale_cache(0);
    insert(&mut without, &key, &Message::response("a", 1).a(30), at(0));
    assert_eq!(found(&mut without, 30), None);
}

#[test]
fn stale_answers_in_use_outlive_a_scan_of_others_until_they_are_too_old() {
    let policy = CachePolicy { stale_max: Duration::from_secs(100), ..CachePolicy::default() };
    let mut cache = MessageCache::new(MessageCache::BYTES_MIN, policy).unwrap();
    let old = key("old", 1);
    insert(&mut cache, &old, &Message::response("old", 1).a(1), at(0));
    let crowd = |cache: &mut MessageCache, secs: u64, is_used: bool| {
        for number in 0..1_000 {
            let name = format!("n{number}.x{secs}");
            insert(cache, &key(&name, 1), &Message::response(&name, 1).a(3_600), at(secs));
            if is_used {
                let _ = cache.find_stale(&old, at(secs));
            }
        }
        cache.find_stale(&old, at(secs)).is_some()
    };
    assert!(crowd(&mut cache, 50, true));
    assert!(!crowd(&mut cache, 101, true));
    insert(&mut cache, &old, &Message::response("old", 1).a(1), at(200));
    assert!(!crowd(&mut cache, 210, false));
}

#[test]
fn uses_are_counted_up_to_as_many_as_are_asked_for() {
    let mut cache = with_policy(CachePolicy { uses_counted: 3, ..CachePolicy::default() });
    let key = key("a", 1);
    let answer = Message::response("a", 1).a(604_800);
    insert(&mut cache, &key, &answer, at(0));
    let uses: Vec<u8> = (0..5).map(|secs| cache.lookup(&key, at(secs)).unwrap().uses).collect();
    assert_eq!(uses, [1, 2, 3, 3, 3]);
    insert(&mut cache, &key, &answer, at(9));
    assert_eq!(cache.lookup(&key, at(9)).unwrap().uses, 1);
    assert_eq!(cache.lookup(&key, at(9)).unwrap().ttl_secs, 86_400, "the count is not in the time to live");
    let too_many = MessageCache::new(0, CachePolicy { uses_counted: 16, ..CachePolicy::default() });
    assert!(too_many.unwrap_err().to_string().contains("at most 15"));
}

fn save(cache: &MessageCache, saved_at: u64, now: Instant) -> Vec<u8> {
    let mut file = Vec::new();
    let mut saver = Saver::begin(saved_at, &mut file);
    while !saver.save(cache, now, &mut file) {}
    saver.end(&mut file);
    file
}

fn filled(names: u64) -> MessageCache {
    let mut cache = stale_cache(50);
    for number in 0..names {
        let name = format!("n{number}.test");
        let answer = Message::response(&name, 1).a(10 + number as u32);
        insert(&mut cache, &key(&name, 1), &answer, at(number % 7));
    }
    cache
}

#[test]
fn a_loaded_cache_says_what_the_saved_one_would_say_then() {
    let mut cache = filled(300);
    let file = save(&cache, 5_000, at(10));
    let saved = SavedFile::read(&file, 5_020).unwrap();
    assert_eq!((saved.count, saved.saved_at), (300, 5_000));
    let mut loaded = stale_cache(50);
    let other_seed = HashSeed::from_bytes([3; 16]);
    // The other process has run for one second only.
    let report = loaded.load(&saved, 20, &other_seed, at(1), |_, _| true);
    assert_eq!(report, Loaded { kept: 300, over: 0, left_out: 0 });
    for number in 0..300 {
        let query = Message::query(&format!("n{number}.test"), 1);
        let query = scanned(&query);
        let mut key = QuestionKey::empty();
        query.fill_key(&mut key, &other_seed);
        let before = ttls(&mut cache, &key_of(&query), at(30));
        assert_eq!(ttls(&mut loaded, &key, at(1)), before, "{number}");
    }
    // What is too old even to be stale is left out.
    let too_old = (0..300).filter(|number| number + number % 7 <= 50).count() as u64;
    let report = stale_cache(50).load(&saved, 100, &seed(), at(1), |_, _| true);
    assert_eq!((report.kept + report.over, report.over), (300, too_old));
    let report = stale_cache(0).load(&saved, u64::MAX, &seed(), at(1), |_, _| true);
    assert_eq!(report.over, 300);
}

#[test]
fn of_two_that_were_saved_the_longer_lasting_is_loaded() {
    let answer = |ttl| Message::response("a", 1).a(ttl);
    for (first, second) in [(50, 80), (80, 50)] {
        let mut file = Vec::new();
        let mut saver = Saver::begin(0, &mut file);
        for ttl in [first, second] {
            let mut cache = stale_cache(0);
            insert(&mut cache, &key("a", 1), &answer(ttl), at(0));
            while !saver.save(&cache, at(0), &mut file) {}
        }
        saver.end(&mut file);
        let mut cache = stale_cache(0);
        cache.load(&SavedFile::read(&file, 0).unwrap(), 0, &seed(), at(0), |_, _| true);
        assert_eq!(ttls(&mut cache, &key("a", 1), at(0)), Some(vec![80]));
    }
}

#[test]
fn a_file_larger_than_the_cache_leaves_its_newest_entries() {
    let file = save(&filled(2_000), 0, at(10));
    let mut small = MessageCache::new(MessageCache::BYTES_MIN, CachePolicy::default()).unwrap();
    small.load(&SavedFile::read(&file, 0).unwrap(), 0, &seed(), at(0), |_, _| true);
    assert!(small.lookup(&key("n1999.test", 1), at(0)).is_some());
    assert!(small.counters().bytes <= MessageCache::BYTES_MIN as u64);
    let mut none = cache(0);
    assert_eq!(none.load(&SavedFile::read(&file, 0).unwrap(), 0, &seed(), at(0), |_, _| true).kept, 0);
}

#[test]
fn a_loaded_entry_obeys_the_policy_of_now() {
    let file = save(&filled(300), 0, at(10));
    let policy = CachePolicy { ttl_max: Duration::from_secs(60), ..CachePolicy::default() };
    let mut cache = with_policy(policy);
    cache.load(&SavedFile::read(&file, 0).unwrap(), 0, &seed(), at(10), |_, _| true);
    assert_eq!(ttls(&mut cache, &key("n294.test", 1), at(10)), Some(vec![50]));
}

#[test]
fn files_that_are_none_are_refused_with_what_they_are() {
    let file = save(&filled(3), 1_000, at(10));
    let refused = |bytes: &[u8]| SavedFile::read(bytes, 2_000).unwrap_err();
    assert_eq!(refused(b""), FileError::Foreign);
    assert_eq!(refused(b"#!/bin/sh\nexit 0 # a longer line of text"), FileError::Foreign);
    assert_eq!(refused(&file[..5]), FileError::Length);
    assert_eq!(refused(&file[..file.len() - 1]), FileError::Length);
    assert_eq!(refused(&[&file[..], &[0]].concat()), FileError::Length);
    let mut other = file.clone();
    other[8] = 2;
    assert_eq!(refused(&other), FileError::Version { found: 2 });
    let mut damaged = file.clone();
    damaged[40] ^= 1;
    assert_eq!(refused(&damaged), FileError::Checksum);
    assert_eq!(SavedFile::read(&file, 999).unwrap_err(), FileError::Future { saved_at: 1_000 });
    assert!(SavedFile::read(&save(&cache(0), 0, at(0)), 0).is_ok_and(|saved| saved.count == 0));
    for error in [FileError::Foreign, FileError::Length, FileError::Checksum, FileError::Version { found: 9 }]
    {
        assert!(error.to_string().len() > 10);
    }
}

#[test]
fn a_flush_finds_what_was_there_however_the_cache_changes_between() {
    let mut cache = MessageCache::new(32 * 1024, CachePolicy::default()).unwrap();
    let mut next = 0;
    let mut put = |cache: &mut MessageCache, zone: &str| {
        next += 1;
        let name = format!("n{next}.{zone}");
        let answer = Message::response(&name, 1).a(3_600);
        insert(cache, &key(&name, 1), &answer, at(0));
        key(&name, 1)
    };
    for _ in 0..50 {
        let gone: Vec<_> = (0..40).map(|_| put(&mut cache, "gone.test")).collect();
        for _ in 0..200 {
            put(&mut cache, "stays.test");
        }
        // In use: as room is made they move to the head, in front of the walk.
        for key in &gone {
            let _ = cache.lookup(key, at(0));
        }
        let mut flush = Flush::subtree(&crate::testing::name("Gone.test"));
        while !cache.flush_some(&mut flush, 7) {
            put(&mut cache, "other.test");
        }
        assert!(gone.iter().all(|key| cache.lookup(key, at(0)).is_none()));
    }
    assert!(cache.counters().evictions > 1_000);
}

#[test]
fn a_flush_takes_answers_along_that_lead_to_the_name() {
    let mut cache = cache(1 << 20);
    let www = Message::response("www.test", 1)
        .record(0, 5, 60, &crate::testing::name("cdn.example"))
        .record_at(0, &crate::testing::name("cdn.example"), 1, 60, &[192, 0, 2, 1]);
    insert(&mut cache, &key("www.test", 1), &www, at(0));
    insert(&mut cache, &key("other.test", 1), &Message::response("other.test", 1).a(60), at(0));
    for (name, flushed) in [("example", 0), ("cdn.exampl", 0), ("CDN.example", 1), ("cdn.example", 0)] {
        let mut flush = Flush::name(&crate::testing::name(name));
        assert!(!cache.flush_some(&mut flush, 1) && cache.flush_some(&mut flush, 100));
        assert_eq!(flush.flushed(), flushed, "{name}");
    }
    let mut all = Flush::subtree(&[0]);
    assert!(cache.flush_some(&mut all, 100));
    assert_eq!((all.flushed(), cache.counters().entries), (1, 0));
}

/// What a test does to a cache and its model.
#[derive(Debug, Clone)]
enum Step {
    Insert { name: u16, records: u8, ttl: u16 },
    Lookup { name: u16 },
    Remove { name: u16 },
    Wait { secs: u16 },
    Clear,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (0u16..400, 1u8..12, 1u16..300)
            .prop_map(|(name, records, ttl)| Step::Insert { name, records, ttl }),
        10 => (0u16..400).prop_map(|name| Step::Lookup { name }),
        1 => (0u16..400).prop_map(|name| Step::Remove { name }),
        2 => (0u16..20).prop_map(|secs| Step::Wait { secs }),
        1 => (0u8..20).prop_map(|dice| if dice == 0 { Step::Clear } else { Step::Wait { secs: 1 } }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Beside a map that forgets nothing: what is found is what was last put in, at the right
    /// age; nothing is found that is not there; and the bytes stay within the bound.
    #[test]
    fn cache_never_contradicts_a_naive_map(
        steps in prop::collection::vec(step(), 1..2_000),
        bytes_max in 16_384usize..40_000,
    ) {
        let mut cache = cache(bytes_max);
        let mut model: HashMap<u16, (u64, u32, Vec<u8>)> = HashMap::new();
        let mut now = 1_000;
        let mut found = 0u64;
        for step in steps {
            match step {
                Step::Insert { name, records, ttl } => {
                    let dotted = name_of(name);
                    let mut answer = Message::response(&dotted, 1);
                    for record in 0..records {
                        answer = answer.record(0, 1, u32::from(ttl), &[record, 0, 0, 1]);
                    }
                    let inserted = insert(&mut cache, &key(&dotted, 1), &answer, at(now));
                    prop_assert_eq!(inserted, kept(u32::from(ttl)));
                    model.insert(name, (now, u32::from(ttl), answer.0));
                }
                Step::Lookup { name } => {
                    let dotted = name_of(name).to_uppercase();
                    let message = Message::query(&dotted, 1);
                    let query = scanned(&message);
                    if let Some(hit) = cache.lookup(&key_of(&query), at(now)) {
                        found += 1;
                        let (since, ttl, wanted) = &model[&name];
                        prop_assert_eq!(u64::from(hit.age_secs), now - since);
                        prop_assert!(hit.age_secs < hit.ttl_secs && hit.ttl_secs == *ttl);
                        let mut out = Vec::new();
                        let terms = Terms::stream(None);
                        let fit =
                            write_stored(&mut out, &hit.stored, &query.asked, hit.age_secs, &terms);
                        prop_assert_eq!(fit, Fit::Whole);
                        // Apart from id and letter case only the TTLs differ, by the age.
                        let mut scan = Scan::new();
                        let reply = scan.scan_answer(&out).expect("a good reply");
                        prop_assert_eq!(reply.answer_ttl_min, Some(ttl - hit.age_secs));
                        let start = 12 + query.asked.question.len();
                        prop_assert_eq!(&out[12..start], query.asked.question);
                        prop_assert_eq!(out.len(), wanted.len());
                        for (mine, theirs) in out[start..].chunks(16).zip(wanted[start..].chunks(16)) {
                            prop_assert_eq!(&mine[..6], &theirs[..6]);
                            prop_assert_eq!(&mine[10..], &theirs[10..]);
                        }
                    }
                }
                Step::Remove { name } => {
                    let key = key(&name_of(name), 1);
                    cache.remove(&key);
                    prop_assert!(cache.lookup(&key, at(now)).is_none());
                    model.remove(&name);
                }
                Step::Wait { secs } => now += u64::from(secs),
                Step::Clear => {
                    cache.clear();
                    model.clear();
                }
            }
            let counters = cache.counters();
            prop_assert!(counters.bytes <= bytes_max as u64);
            prop_assert!(counters.entries <= model.len() as u64);
            prop_assert!(cache.bytes_bound() <= bytes_max);
        }
        prop_assert!(cache.counters().hits == found);
    }

    /// Whatever is done to a file, it is refused, or what is read of it are messages that can be given to clients.
    #[test]
    fn damaged_files_are_refused(
        names in 0u64..20,
        flips in prop::collection::vec((any::<usize>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        is_cut in any::<bool>(),
    ) {
        let whole = save(&filled(names), 77, at(10));
        let mut file = whole.clone();
        for (at, value) in flips {
            let at = at % file.len();
            file[at] ^= value;
        }
        if is_cut {
            file.truncate(cut.index(file.len()));
        }
        let read = SavedFile::read(&file, 100);
        prop_assert_eq!(read.is_ok(), file == whole, "damage is found");
    }

    /// The checksum keeps nobody from writing a file; what is in it is read as if it came from the network.
    #[test]
    fn entries_that_are_no_messages_are_left_out(
        entries in prop::collection::vec(
            (prop::collection::vec(any::<u8>(), 1..80), any::<bool>(), any::<u8>(), any::<u32>(), any::<u32>()),
            0..30,
        ),
        away in any::<u64>(),
        now in 0u64..1_000_000,
    ) {
        let mut cache = stale_cache(1_000);
        let mut file = Vec::new();
        let saver = Saver::begin(0, &mut file);
        let entries: Vec<_> = entries
            .into_iter()
            .map(|(bytes, is_message, marks, ttl, age)| {
                let bytes = if is_message { Message::response("a.test", 1).a(ttl % 50).0 } else { bytes };
                (bytes, marks, ttl % 100, age % 2_000)
            })
            .collect();
        saver.end_with(&entries, &mut file);
        let saved = SavedFile::read(&file, 0).expect("a good file");
        prop_assert_eq!(saved.count, entries.len() as u64);
        let report = cache.load(&saved, away % 50, &seed(), at(now), |_, _| true);
        prop_assert_eq!(report.kept + report.over + report.left_out, saved.count);
        cache.load(&saved, away, &seed(), at(now), |_, _| true);
        prop_assert!(cache.counters().entries <= 8);
        let mut key = QuestionKey::empty();
        let query = Message::query("a.test", 1);
        for flags in 0..8 {
            key.fill(scanned(&query).asked.question, flags, &seed());
            if let Some(hit) = cache.lookup(&key, at(now)) {
                let mut out = Vec::new();
                let terms = Terms::stream(None);
                let fit = write_stored(&mut out, &hit.stored, &scanned(&query).asked, hit.age_secs, &terms);
                prop_assert_eq!(fit, Fit::Whole);
                prop_assert!(Scan::new().scan_answer(&out).is_ok());
            }
        }
    }

    /// A bad seed makes the cache slow at most, never wrong.
    #[test]
    fn weak_seeds_change_no_answer(names in prop::collection::vec(0u16..200, 1..300)) {
        for bytes in [[0; 16], [0xff; 16]] {
            let weak = HashSeed::from_bytes(bytes);
            let mut cache = cache(64 * 1024);
            let mut key = QuestionKey::empty();
            for name in &names {
                let dotted = name_of(*name);
                let message = Message::query(&dotted, 1);
                scanned(&message).fill_key(&mut key, &weak);
                let answer = Message::response(&dotted, 1).a(60);
                insert(&mut cache, &key, &answer, at(0));
                let hit = cache.lookup(&key, at(0)).expect("what was just put in");
                prop_assert_eq!(&hit.stored.wire()[12..12 + key.question().len()], key.question());
            }
        }
    }
}

fn name_of(number: u16) -> String {
    // Lengths differ, so that entries do.
    format!("n{number}{}.example", "x".repeat(usize::from(number % 30)))
}

#[test]
fn seed_of_the_tests_is_not_printed() {
    assert_eq!(format!("{:?}", seed()), "HashSeed(secret)");
}

//! What is kept beyond an answer's time, saved in a file, and flushed.

use super::*;

pub(super) fn stale_cache(stale_max: u64) -> MessageCache {
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

pub(super) fn save(cache: &MessageCache, saved_at: u64, now: Instant) -> Vec<u8> {
    let mut file = Vec::new();
    let mut saver = Saver::begin(saved_at, &mut file);
    while !saver.save(cache, now, &mut file) {}
    saver.end(&mut file);
    file
}

pub(super) fn filled(names: u64) -> MessageCache {
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

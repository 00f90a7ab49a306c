//! The cache beside a map that forgets nothing.

use super::kept::{filled, save, stale_cache};
use super::*;

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

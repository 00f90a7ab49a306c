//! What is joined beside a model that follows the definition.

use super::*;

/// What the model knows: as an entry of the cache.
#[derive(Debug, Clone)]
struct Entry {
    is_set: bool,
    code: u16,
    since: u64,
    ttl: u32,
    answers: Vec<Line>,
    soa: bool,
}

/// Owner, type, TTL, data.
type Line = (u8, u16, u32, u8);

/// A world in which names are numbers, and nothing is forgotten.
#[derive(Default)]
struct Model(HashMap<(u8, u16), Entry>);

/// Sixteenths of a second.
type Ticks = u64;

impl Model {
    fn put(&mut self, question: (u8, u16), entry: Entry) {
        let is_held = self.0.get(&question).is_some_and(|held| {
            entry.is_set && !held.is_set && (entry.since - held.since) / 16 < u64::from(held.ttl)
        });
        if !is_held && entry.ttl > 0 {
            self.0.insert(question, entry);
        }
    }

    fn learn(&mut self, now: Ticks, question: (u8, u16), chain: &[(u8, u32, u8)], end: &End) {
        let mut answers: Vec<_> = chain.iter().map(|&(from, ttl, to)| (from, 5, ttl, to)).collect();
        let last = chain.last().map_or(question.0, |alias| alias.2);
        let (code, soa) = match *end {
            End::Address(ttl, data) => {
                answers.push((last, question.1, ttl, data));
                (0, None)
            }
            End::NoData(ttl) => (0, Some(ttl)),
            End::NxDomain(ttl) => (3, Some(ttl)),
        };
        let least = answers.iter().map(|record| record.2).chain(soa).min().unwrap_or(0);
        // Nothing in a negative answer shows more than it holds.
        let shown = |records: &[Line], most: u32| {
            records.iter().map(|&(owner, kind, ttl, data)| (owner, kind, ttl.min(most), data)).collect()
        };
        let most = if soa.is_some() { least } else { u32::MAX };
        let whole = Entry {
            is_set: false,
            code,
            since: now,
            ttl: least,
            answers: shown(&answers, most),
            soa: soa.is_some(),
        };
        self.put(question, whole);
        if chain.is_empty() {
            return;
        }
        for record in answers.iter().filter(|record| record.1 == 5) {
            let answers = vec![*record];
            let set = Entry { is_set: true, code: 0, since: now, ttl: record.2, answers, soa: false };
            self.put((record.0, 5), set);
        }
        let answers: Vec<_> = answers.into_iter().filter(|record| record.1 != 5).collect();
        let ttl = soa.unwrap_or_else(|| answers[0].2);
        let set = Entry { is_set: true, code, since: now, ttl, answers, soa: soa.is_some() };
        self.put((last, question.1), set);
    }

    /// Whole seconds that are left of an entry's records; none when one of its own is over or about to be.
    fn left(&self, now: Ticks, question: (u8, u16)) -> Option<(&Entry, u32)> {
        let entry = self.0.get(&question)?;
        let age = (now - entry.since).div_ceil(16) as u32;
        (age < entry.ttl).then_some((entry, age))
    }

    /// The answer by definition: code, records with their TTLs, whether there is a SOA record.
    fn join(&self, now: Ticks, question: (u8, u16)) -> Option<(u16, Vec<Line>, bool)> {
        let mut records = Vec::new();
        let mut name = question.0;
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(name) {
                return None;
            }
            if name != question.0
                && let Some((end, age)) = self.left(now, (name, question.1))
            {
                if end.answers.iter().any(|record| record.0 != name && seen.contains(&record.0)) {
                    return None;
                }
                records.extend(end.answers.iter().map(|&(o, t, ttl, d)| (o, t, ttl - age, d)));
                return Some((end.code, records, end.soa));
            }
            if question.1 != 1
                && let Some((end, _)) = self.left(now, (name, 1))
                && end.code == 3
                && end.answers.is_empty()
            {
                return Some((3, records, true));
            }
            let (alias, age) = self.left(now, (name, 5))?;
            let (_, _, ttl, to) = alias.answers[0];
            records.push((name, 5, ttl - age, to));
            name = to;
        }
    }
}

#[derive(Debug, Clone)]
enum End {
    Address(u32, u8),
    NoData(u32),
    NxDomain(u32),
}

#[derive(Debug, Clone)]
enum Step {
    Learn { question: (u8, u16), chain: Vec<(u8, u32)>, end: End },
    Ask { question: (u8, u16) },
    Wait { ticks: u64 },
}

fn question() -> impl Strategy<Value = (u8, u16)> {
    (0u8..7, prop::sample::select(vec![1u16, 28]))
}

fn step() -> impl Strategy<Value = Step> {
    let ttl = || 0u32..30;
    let end = prop_oneof![
        3 => (ttl(), any::<u8>()).prop_map(|(ttl, data)| End::Address(ttl, data)),
        1 => ttl().prop_map(End::NoData),
        1 => ttl().prop_map(End::NxDomain),
    ];
    prop_oneof![
        3 => (question(), prop::collection::vec((0u8..7, ttl()), 0..4), end)
            .prop_map(|(question, chain, end)| Step::Learn { question, chain, end }),
        5 => question().prop_map(|question| Step::Ask { question }),
        2 => (0u64..100).prop_map(|ticks| Step::Wait { ticks }),
    ]
}

fn dotted(name: u8) -> String {
    format!("n{name}.Test.")
}

fn data_of(kind: u16, data: u8) -> RData {
    match kind {
        1 => a(data),
        5 => alias(&dotted(data)),
        _ => RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, data.into())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// What is joined, and what is not, is what the live sets say by definition, and for no longer than they do.
    #[test]
    fn what_is_joined_is_what_the_live_sets_say(steps in prop::collection::vec(step(), 1..120)) {
        let mut known = Known::new();
        let mut model = Model::default();
        let mut now: Ticks = 160;
        for step in steps {
            known.now = Instant::from_nanos(now * 62_500_000);
            match step {
                Step::Learn { question, chain, end } => {
                    let mut from = question.0;
                    let mut way = Vec::new();
                    for (to, ttl) in chain {
                        // An upstream's chains end somewhere.
                        if to == question.0 || way.iter().any(|&(_, _, before)| before == to) {
                            continue;
                        }
                        way.push((from, ttl, to));
                        from = to;
                    }
                    let names: Vec<String> = (0..7).map(dotted).collect();
                    let name = |n: u8| names[usize::from(n)].as_str();
                    let mut records: Vec<_> =
                        way.iter().map(|&(from, ttl, to)| (name(from), ttl, alias(name(to)))).collect();
                    let code = match end {
                        End::Address(ttl, data) => {
                            records.push((name(from), ttl, data_of(question.1, data)));
                            ResponseCode::NoError
                        }
                        End::NoData(ttl) => {
                            records.push(("Test.", ttl, soa(1000)));
                            ResponseCode::NoError
                        }
                        End::NxDomain(ttl) => {
                            records.push(("Test.", ttl, soa(1000)));
                            ResponseCode::NXDomain
                        }
                    };
                    let bytes = answer(name(question.0), question.1, code, records).to_vec().unwrap();
                    known.learn(&key(name(question.0).trim_end_matches('.'), question.1), &bytes);
                    model.learn(now, question, &way, &end);
                }
                Step::Ask { question } => {
                    let key = key(dotted(question.0).trim_end_matches('.'), question.1);
                    if known.cache.lookup(&key, known.now).is_some() {
                        continue;
                    }
                    let joined = known.join(&key);
                    let wanted = model.join(now, question);
                    prop_assert_eq!(joined.is_some(), wanted.is_some(), "{:?} {:?}", joined, wanted);
                    let (Some(joined), Some((code, records, has_soa))) = (joined, wanted) else { continue };
                    let text = |(owner, kind, ttl, data): Line| {
                        let record = TheirRecord::from_rdata(their(&dotted(owner)), ttl, data_of(kind, data));
                        let text = format!("{} {}", record.record_type(), record.data);
                        (record.name.to_string().to_lowercase(), ttl, text.to_lowercase())
                    };
                    let wanted: Vec<_> = records.iter().copied().map(text).collect();
                    prop_assert_eq!(&joined.answers, &wanted);
                    prop_assert_eq!(joined.code, code);
                    prop_assert_eq!(joined.authorities.len(), usize::from(has_soa));
                    // It is kept as what it is now.
                    let mut all = joined.answers.iter().chain(&joined.authorities);
                    let ttl = all.clone().map(|record| record.1).min().unwrap();
                    prop_assert!(all.all(|record| record.1 > 0));
                    let entry = Entry {
                        is_set: true, code, since: now, ttl, answers: records, soa: has_soa,
                    };
                    model.0.insert(question, entry);
                }
                Step::Wait { ticks } => now += ticks,
            }
        }
    }

    /// Whatever an answer says, each set taken from it has the very records of its chain, and none is made up.
    #[test]
    fn sets_have_the_records_of_the_answer_whatever_their_types(
        target in prop::sample::select(vec!["cdn.test.", "WWW.Example.Test.", "a.b.c.d.example."]),
        kind in prop::sample::select(vec![2u16, 6, 12, 15, 16, 33, 35, 65, 99]),
        raw in prop::collection::vec(any::<u8>(), 1..40),
        swap in any::<bool>(),
    ) {
        let host = "Host.cdn.test.";
        let data = match kind {
            2 => RData::NS(NS(their(host))),
            6 => soa(60),
            12 => RData::PTR(hickory_proto::rr::rdata::PTR(their(host))),
            15 => RData::MX(MX::new(10, their(host))),
            33 => RData::SRV(SRV::new(1, 2, 3, their(host))),
            35 => RData::NAPTR(hickory_proto::rr::rdata::NAPTR::new(
                1, 2, b"u".to_vec().into(), b"E2U+sip".to_vec().into(), b"!^.*$!x!".to_vec().into(), their(host),
            )),
            _ => RData::Unknown {
                code: RecordType::from(kind),
                rdata: hickory_proto::rr::rdata::NULL::with(raw),
            },
        };
        let mut message = Theirs::response(7, OpCode::Query);
        message.add_query(Query::query(their("www.test."), RecordType::from(kind)));
        message.answers.push(TheirRecord::from_rdata(their("www.test."), 60, alias(target)));
        message.answers.push(TheirRecord::from_rdata(their(target), 60, data));
        if swap {
            message.answers.swap(0, 1);
        }
        let bytes = message.to_vec().unwrap();
        let Ok(whole) = Theirs::from_vec(&bytes) else { return Ok(()) };
        let mut known = Known::new();
        prop_assert_eq!(known.learn(&key("www.test", kind), &bytes), 2);
        let found = known.found(&key(target.trim_end_matches('.'), kind)).expect("the set");
        let said = &whole.answers[usize::from(!swap)];
        let text = format!("{} {}", said.record_type(), said.data).to_lowercase();
        prop_assert_eq!(&found.answers, &[(target.to_lowercase(), 60, text)]);
        known.cache.remove(&key("www.test", kind));
        let joined = known.join(&key("www.test", kind)).expect("both parts");
        prop_assert_eq!(&joined.answers[1], &found.answers[0]);
    }

    /// No bytes that a scan accepts make it panic, or keep what cannot be read.
    #[test]
    fn damaged_answers_do_no_harm(flips in prop::collection::vec((0usize..200, any::<u8>()), 1..8)) {
        let mut bytes = www();
        for (at, value) in flips {
            let at = at % bytes.len();
            bytes[at] ^= value;
        }
        let mut scan = Scan::new();
        let Ok(answer) = scan.scan_answer(&bytes) else { return Ok(()) };
        let mut known = Known::new();
        let mut store = Store { cache: &mut known.cache, seed: &seed(), now: known.now };
        let mut key = QuestionKey::empty();
        key.fill(answer.question, 1, &seed());
        known.sets.learn(&mut store, &key, &answer, |_, _| true);
        known.join(&key);
        for dotted in ["www.test", "cdn.test"] {
            known.found(&self::key(dotted, 1));
            known.found(&self::key(dotted, 5));
        }
    }
}

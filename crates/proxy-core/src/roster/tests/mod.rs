mod sim;

use std::time::Duration;

use super::*;

const MS: Duration = Duration::from_millis(1);
const SEC: Duration = Duration::from_secs(1);

type Key = &'static str;

fn at(ms: u64) -> Instant {
    // The clock of a machine that has run for a while.
    Instant::from_nanos((3_600_000 + ms) * 1_000_000)
}

fn roster(config: RosterConfig, keys: &[Key]) -> Roster<Key> {
    let mut roster = Roster::new(config, 1).unwrap();
    roster.replace(at(0), keys.iter().map(|key| (*key, 1))).unwrap();
    roster
}

fn checked() -> RosterConfig {
    RosterConfig { checks: Some(CheckConfig::default()), ..RosterConfig::default() }
}

fn unhurried() -> RosterConfig {
    RosterConfig { slow_start: Duration::ZERO, ..RosterConfig::default() }
}

impl Roster<Key> {
    fn find(&self, key: Key) -> Arc<Backend<Key>> {
        Arc::clone(self.list().iter().find(|backend| *backend.key() == key).unwrap())
    }

    fn standing(&self, key: Key) -> Standing {
        self.find(key).standing()
    }

    fn fail(&mut self, now: Instant, key: Key, times: u32, cause: Cause) {
        let id = self.find(key).id();
        (0..times).for_each(|_| self.handle_failed(now, id, cause));
    }

    /// Everything that is to be done now; checks only by key.
    fn due(&mut self, now: Instant) -> (Vec<Key>, Vec<(Key, Active, Parting)>) {
        self.handle_timeout(now);
        let (mut checks, mut purges) = (Vec::new(), Vec::new());
        while let Some(action) = self.poll_action() {
            match action {
                Action::Check(backend) => checks.push(*backend.key()),
                Action::Purge { backend, active, why } => purges.push((*backend.key(), active, why)),
            }
        }
        (checks, purges)
    }

    /// Lives until `end`; every check has the given result, at once.
    fn live(&mut self, end: Instant, result: impl Fn(Key) -> Result<(), Cause>) -> Vec<(Instant, Key)> {
        let mut checks = Vec::new();
        loop {
            let now = self.next_timeout();
            if now > end {
                return checks;
            }
            for key in self.due(now).0 {
                checks.push((now, key));
                let id = self.find(key).id();
                self.handle_checked(now, id, result(key));
            }
        }
    }

    fn picks(&self, balance: Balance, n: usize) -> HashMap<Key, usize> {
        let (mut picker, list) = (Picker::new(balance, 7), self.list());
        let mut counts = HashMap::new();
        for hash in 0..n {
            let hash = Rng::new(hash as u64).next_u64();
            let place = picker.pick(at(0), &list, hash, &Tried::new()).unwrap();
            *counts.entry(*list[place].key()).or_insert(0) += 1;
        }
        counts
    }

    fn events(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.poll_event()).map(|event| event.to_string()).collect()
    }
}

#[test]
fn a_list_replaces_the_one_before_and_keeps_what_is_known_of_those_who_stay() {
    let mut roster = roster(unhurried(), &["a", "b", "c"]);
    let (a, version) = (roster.find("a").id(), roster.version());
    roster.fail(at(0), "b", 5, Cause::Reset);
    let _ = roster.due(at(0));

    let changes = roster.replace(at(1), [("d", 1), ("b", 1), ("a", 1), ("d", 3)]).unwrap();
    assert_eq!(changes, Changes { added: 1, removed: 1, merged: 1 });
    assert!(roster.version() > version);
    let keys: Vec<_> = roster.list().iter().map(|backend| *backend.key()).collect();
    assert_eq!(keys, ["d", "b", "a"]);
    assert_eq!(roster.find("a").id(), a);
    assert_eq!(roster.standing("b"), Standing::Ejected);
    assert_eq!(roster.find("d").weight(), 300);
    assert_eq!(roster.due(at(1)).1, [("c", Active::Close, Parting::Removed)]);
}

#[test]
fn an_unchanged_list_is_no_new_version() {
    let mut roster = roster(checked(), &["a", "b"]);
    let version = roster.version();
    assert_eq!(roster.replace(at(9), [("a", 1), ("b", 1)]).unwrap(), Changes::default());
    assert_eq!(roster.version(), version);
    roster.replace(at(9), [("b", 1), ("a", 1)]).unwrap();
    assert_eq!(roster.version(), version + 1);
}

#[test]
fn an_empty_list_is_refused_unless_it_is_allowed() {
    let mut careful = roster(checked(), &["a"]);
    assert_eq!(careful.replace(at(1), []), Err(EmptyList));
    assert_eq!(careful.list().len(), 1);
    assert_eq!(careful.counters().empty_lists, 1);

    let mut roster = roster(RosterConfig { allow_empty: true, ..checked() }, &["a"]);
    assert_eq!(roster.replace(at(1), []).unwrap().removed, 1);
    assert!(roster.list().is_empty() && !roster.is_panicking());
    assert_eq!(Picker::new(Balance::P2c, 1).pick(at(1), &roster.list(), 0, &Tried::new()), None);
    assert_eq!(roster.next_timeout(), Instant::MAX);
}

#[test]
fn a_backend_that_comes_back_is_another_one() {
    let config = RosterConfig { on_removed: Active::Keep, ..unhurried() };
    let mut roster = roster(config, &["a", "b"]);
    let gone = roster.find("b");
    roster.replace(at(1), [("a", 1)]).unwrap();
    assert_eq!(gone.standing(), Standing::Removed);
    assert_eq!(gone.weight(), 0);
    assert_eq!(roster.due(at(1)).1, [("b", Active::Keep, Parting::Removed)]);
    roster.replace(at(2), [("a", 1), ("b", 1)]).unwrap();
    assert_ne!(roster.find("b").id(), gone.id());
    // News of the old one are not news of the new one.
    (0..9).for_each(|_| roster.handle_failed(at(3), gone.id(), Cause::Refused));
    roster.handle_checked(at(3), gone.id(), Err(Cause::Refused));
    assert_eq!(roster.standing("b"), Standing::Usable);
}

#[test]
fn checks_of_all_backends_run_side_by_side_at_a_jittered_interval() {
    let keys = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let mut roster = roster(checked(), &keys);
    let checks = roster.live(at(60_000), |_| Ok(()));
    for key in keys {
        let times: Vec<_> = checks.iter().filter(|(_, k)| *k == key).map(|(now, _)| *now).collect();
        assert!(times[0] <= at(1000), "the first comes soon");
        assert!((10..=15).contains(&times.len()), "{} checks of {key} in a minute", times.len());
        for pair in times.windows(2) {
            let gap = pair[1].saturating_duration_since(pair[0]);
            assert!((SEC * 4..=SEC * 6).contains(&gap), "{gap:?}");
        }
    }
    let firsts: std::collections::HashSet<_> = checks[..8].iter().map(|(now, _)| *now).collect();
    assert_eq!(firsts.len(), 8, "they are spread out");
}

#[test]
fn a_check_that_hangs_delays_neither_the_others_nor_itself_twice() {
    let mut roster = roster(checked(), &["hangs", "b"]);
    let mut seen = HashMap::new();
    while roster.next_timeout() < at(30_000) {
        let now = roster.next_timeout();
        for key in roster.due(now).0 {
            *seen.entry(key).or_insert(0) += 1;
            if key != "hangs" {
                let id = roster.find(key).id();
                roster.handle_checked(now, id, Ok(()));
            }
        }
    }
    assert_eq!(seen["hangs"], 1);
    assert!(seen["b"] >= 5);
}

#[test]
fn two_failed_checks_make_a_backend_unhealthy_and_one_good_one_healthy() {
    let mut roster = roster(checked(), &["a", "b"]);
    let sick = |key: Key| if key == "a" { Err(Cause::Timeout) } else { Ok(()) };
    let checks = roster.live(at(10_000), sick);
    let of_a: Vec<_> = checks.iter().filter(|(_, key)| *key == "a").map(|(now, _)| *now).collect();
    assert_eq!(of_a[1].saturating_duration_since(of_a[0]), SEC / 2, "a doubt is settled soon");
    assert!(of_a[2].saturating_duration_since(of_a[1]) >= SEC * 4, "what is settled is not asked more often");
    assert_eq!(roster.standing("a"), Standing::Unhealthy);
    assert_eq!(roster.picks(Balance::RoundRobin, 10), HashMap::from([("b", 10)]));

    roster.live(at(17_000), |_| Ok(()));
    assert_ne!(roster.standing("a"), Standing::Unhealthy);
    let events = roster.events();
    assert_eq!(events[2], "backend a is unhealthy: its checks failed (timeout)");
    assert_eq!(events[3], "backend a is healthy again");
}

#[test]
fn an_unhealthy_backends_connections_end_as_the_setting_says() {
    for active in [Active::Keep, Active::Close] {
        let mut roster = roster(RosterConfig { on_unhealthy: active, ..checked() }, &["a", "b"]);
        let id = roster.find("a").id();
        let mut purges = Vec::new();
        for _ in 0..3 {
            let now = roster.next_timeout().max(at(1000));
            let due = roster.due(now);
            purges.extend(due.1);
            if due.0.contains(&"a") {
                roster.handle_checked(now, id, Err(Cause::Refused));
            }
        }
        assert_eq!(purges, [("a", active, Parting::Unhealthy)]);
    }
}

#[test]
fn a_refused_client_has_its_backend_checked_at_once_and_found_dead_within_two_seconds() {
    let mut roster = roster(checked(), &["a", "b", "c"]);
    roster.live(at(20_000), |_| Ok(()));
    let death = at(20_001);
    roster.fail(death, "a", 1, Cause::Refused);
    assert_eq!(roster.next_timeout(), death);
    roster.live(death + SEC * 2, |key| if key == "a" { Err(Cause::Refused) } else { Ok(()) });
    assert_eq!(roster.standing("a"), Standing::Unhealthy);

    // A storm of failures is no storm of checks.
    let mut checks = 0;
    for ms in 0..1000 {
        roster.fail(at(23_000 + ms), "b", 1, Cause::Refused);
        roster.find("b").note_good();
        for key in roster.due(at(23_000 + ms)).0 {
            let id = roster.find(key).id();
            roster.handle_checked(at(23_000 + ms), id, Ok(()));
            checks += u32::from(key == "b");
        }
    }
    assert!((1..=3).contains(&checks), "{checks}");
}

#[test]
fn faults_of_this_machine_or_of_the_client_move_nothing() {
    let mut roster = roster(checked(), &["a", "b"]);
    for cause in Cause::ALL.iter().filter(|cause| cause.blame() != Blame::Upstream) {
        roster.fail(at(0), "a", 100, *cause);
        roster.live(roster.next_timeout() + SEC * 20, |_| Err(*cause));
    }
    assert_eq!(roster.standing("a"), Standing::Usable);
    assert_eq!(roster.find("a").failures(), 0);
    assert_eq!(roster.counters().failures, 0);
    assert!(roster.counters().checks_local > 0);
    assert_eq!((roster.counters().checks_bad, roster.counters().ejections), (0, 0));
}

#[test]
fn five_failures_in_a_row_eject_and_a_success_between_them_does_not() {
    let mut roster = roster(unhurried(), &["a", "b", "c"]);
    for _ in 0..10 {
        roster.fail(at(0), "a", 4, Cause::Reset);
        roster.find("a").note_good();
    }
    assert_eq!(roster.standing("a"), Standing::Usable);
    roster.fail(at(0), "a", 5, Cause::Reset);
    assert_eq!(roster.standing("a"), Standing::Ejected);
    assert_eq!(roster.next_timeout(), at(30_000));
    assert_eq!(roster.due(at(29_999)).1, [("a", Active::Keep, Parting::Ejected)]);
    assert_eq!(roster.standing("a"), Standing::Ejected);
    roster.handle_timeout(at(30_000));
    assert_eq!(roster.standing("a"), Standing::Usable);
}

#[test]
fn ejections_in_a_row_last_longer_up_to_five_minutes_and_good_conduct_ends_the_row() {
    let mut roster = roster(unhurried(), &["a", "b", "c"]);
    let mut now = at(0);
    let lasting = |roster: &mut Roster<Key>, now, failures| {
        roster.fail(now, "a", failures, Cause::Reset);
        assert_eq!(roster.standing("a"), Standing::Ejected);
        let end = roster.next_timeout();
        roster.handle_timeout(end);
        (end, end.saturating_duration_since(now).as_secs())
    };
    let mut seen = Vec::new();
    for i in 0..12 {
        // What comes back unproved is thrown out by its first failure.
        let (end, secs) = lasting(&mut roster, now, if i == 0 { 5 } else { 1 });
        seen.push(secs);
        now = end + SEC;
    }
    assert_eq!(seen, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300]);
    roster.find("a").note_good();
    assert_eq!(lasting(&mut roster, now + SEC * 301, 5).1, 30);
}

#[test]
fn at_most_half_are_ejected_and_never_the_last() {
    let keys = ["a", "b", "c", "d", "e"];
    for (n, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)] {
        let mut roster = roster(unhurried(), &keys[..n]);
        for key in &keys[..n] {
            roster.fail(at(0), key, 50, Cause::Reset);
        }
        assert_eq!(roster.counters().ejections, most, "of {n}");
        assert_eq!(roster.counters().ejections_refused, n as u64 - most, "of {n}");
    }
    let events = {
        let mut roster = roster(unhurried(), &["a"]);
        roster.fail(at(0), "a", 50, Cause::Reset);
        roster.events()
    };
    assert_eq!(events.len(), 2, "it is told once: {events:?}");
    assert!(events[1].starts_with("backend a failed 5 times in a row (reset), but stays"));
}

#[test]
fn whoever_is_ejected_comes_back_when_the_rest_is_found_dead_or_removed() {
    let mut one = roster(checked(), &["a", "b", "c"]);
    one.fail(at(0), "a", 5, Cause::Reset);
    let two_dead = |key: Key| if key == "a" { Err(Cause::Internal) } else { Err(Cause::Refused) };
    one.live(at(7000), two_dead);
    assert_eq!((one.standing("a"), one.standing("b")), (Standing::Warming, Standing::Unhealthy));

    let mut roster = roster(unhurried(), &["a", "b", "c", "d"]);
    roster.fail(at(0), "a", 5, Cause::Reset);
    roster.fail(at(1), "b", 5, Cause::Reset);
    roster.replace(at(2), [("a", 1), ("b", 1)]).unwrap();
    assert_eq!((roster.standing("a"), roster.standing("b")), (Standing::Usable, Standing::Ejected));
    roster.replace(at(3), [("b", 1)]).unwrap();
    assert_eq!(roster.standing("b"), Standing::Usable);
}

#[test]
fn a_good_check_ends_an_ejection_but_not_one_that_had_begun_before_it() {
    let mut roster = roster(checked(), &["a", "b", "c"]);
    let id = roster.find("a").id();
    assert!(roster.due(at(1000)).0.contains(&"a"));
    roster.fail(at(1001), "a", 5, Cause::Reset);
    roster.handle_checked(at(1002), id, Ok(()));
    assert_eq!(roster.standing("a"), Standing::Ejected);
    let _ = roster.events();
    roster.live(at(8000), |_| Ok(()));
    assert_eq!(roster.standing("a"), Standing::Warming);
    assert_eq!(roster.events(), ["backend a is back: a check succeeded"]);
    assert_eq!(roster.find("a").failures(), 0, "it has proved itself");
}

#[test]
fn when_nobody_is_usable_all_are() {
    let mut roster = roster(checked(), &["a", "b", "c"]);
    roster.live(at(10_000), |_| Err(Cause::Refused));
    assert!(roster.is_panicking());
    let turns = roster.picks(Balance::RoundRobin, 9);
    assert!(["a", "b", "c"].iter().all(|key| turns[key] == 3), "{turns:?}");
    roster.live(at(20_000), |key| if key == "b" { Ok(()) } else { Err(Cause::Refused) });
    assert!(!roster.is_panicking());
    assert_eq!(roster.picks(Balance::Random, 9), HashMap::from([("b", 9)]));
    let events = roster.events();
    assert!(
        events.contains(&"none of 3 backends is usable: all are tried, whatever their health".to_owned())
    );
    assert!(events.contains(&"a backend is usable again: health counts".to_owned()));
    assert_eq!(roster.counters().panics, 1);
}

#[test]
fn a_newcomer_gets_a_tenth_at_first_and_all_after_ten_seconds() {
    let mut roster = roster(RosterConfig::default(), &["a", "b"]);
    assert!(roster.list().iter().all(|backend| backend.weight() == 100), "not at the process's start");
    roster.replace(at(0), [("a", 1), ("b", 1), ("c", 1)]).unwrap();
    let c = roster.find("c");
    let (mut before, mut steps) = (0, 0);
    loop {
        let due = 10.0
            + 90.0
                * (roster.next_timeout().min(at(10_000)) - Duration::ZERO)
                    .saturating_duration_since(at(0))
                    .as_secs_f64()
                / 10.0;
        assert!(c.weight() > before, "it grows with each step");
        assert!(f64::from(c.weight()) <= due && f64::from(c.weight()) >= due - 5.1, "{} {due}", c.weight());
        before = c.weight();
        let next = roster.next_timeout();
        if next == Instant::MAX {
            break;
        }
        steps += 1;
        roster.handle_timeout(next);
    }
    assert_eq!((before, steps, c.standing()), (100, 18, Standing::Usable));
}

#[test]
fn the_only_backend_starts_at_once() {
    let mut roster = roster(checked(), &["a"]);
    roster.live(at(10_000), |_| Err(Cause::Refused));
    roster.live(at(20_000), |_| Ok(()));
    assert_eq!(roster.find("a").weight(), 100);
    roster.replace(at(20_000), [("b", 1)]).unwrap();
    assert_eq!(roster.find("b").weight(), 100);
}

#[test]
fn a_policy_without_checks_forgets_their_verdicts() {
    let mut roster = roster(checked(), &["a", "b"]);
    roster.live(at(10_000), |_| Err(Cause::Refused));
    roster.configure(at(10_000), unhurried()).unwrap();
    assert!(roster.list().iter().all(|backend| backend.standing() == Standing::Usable));
    assert_eq!(roster.next_timeout(), Instant::MAX);
    roster.configure(at(10_000), checked()).unwrap();
    assert!(roster.next_timeout() <= at(11_000));
}

#[test]
fn an_impossible_policy_is_refused_with_its_name() {
    let checks = CheckConfig::default();
    let eject = EjectionConfig::default();
    let with = |checks| RosterConfig { checks: Some(checks), ..RosterConfig::default() };
    let ejecting = |ejection| RosterConfig { ejection, ..RosterConfig::default() };
    for (field, config) in [
        ("health.interval", with(CheckConfig { interval: MS, ..checks })),
        ("health.timeout", with(CheckConfig { timeout: Duration::ZERO, ..checks })),
        ("health.fall", with(CheckConfig { fall: 0, ..checks })),
        ("health.rise", with(CheckConfig { rise: 0, ..checks })),
        ("health.ejection", ejecting(EjectionConfig { base: Duration::ZERO, ..eject })),
        ("health.ejection_max", ejecting(EjectionConfig { max: SEC, ..eject })),
        ("health.max_ejection_percent", ejecting(EjectionConfig { max_percent: 101, ..eject })),
    ] {
        let error = Roster::<Key>::new(config, 1).unwrap_err();
        assert_eq!(error.field, field);
        assert_eq!(roster(checked(), &["a"]).configure(at(0), config), Err(error));
    }
}

#[test]
fn turns_are_exact_whoever_is_missing() {
    let mut roster = roster(checked(), &["a", "b", "c", "d"]);
    roster.live(at(10_000), |key| if key == "b" { Err(Cause::Refused) } else { Ok(()) });
    let turns = roster.picks(Balance::RoundRobin, 300);
    assert_eq!(turns, HashMap::from([("a", 100), ("c", 100), ("d", 100)]));
}

#[test]
fn shares_are_kept_by_every_balance_that_heeds_them() {
    let mut roster = Roster::new(unhurried(), 1).unwrap();
    roster.replace(at(0), [("a", 1), ("b", 3), ("c", 6)]).unwrap();
    let turns = roster.picks(Balance::RoundRobin, 1000);
    assert_eq!(turns, HashMap::from([("a", 100), ("b", 300), ("c", 600)]));
    for balance in [Balance::Random, Balance::SourceHash] {
        let counts = roster.picks(balance, 10_000);
        for (key, wanted) in [("a", 1000_i64), ("b", 3000), ("c", 6000)] {
            assert!((counts[key] as i64 - wanted).abs() < 300, "{balance:?} {counts:?}");
        }
    }
    // Held connections: each has as many, compared with its share.
    let list = roster.list();
    let mut picker = Picker::new(Balance::LeastConnections, 1);
    let visits: Vec<_> =
        (0..1000).map(|_| list[picker.pick(at(0), &list, 0, &Tried::new()).unwrap()].enter()).collect();
    let held: Vec<_> = list.iter().map(|backend| backend.in_use()).collect();
    assert_eq!(held.iter().sum::<u32>(), 1000);
    assert!(held.iter().zip([100, 300, 600]).all(|(a, b)| a.abs_diff(b) <= 2), "{held:?}");
    drop(visits);
    assert!(list.iter().all(|backend| backend.in_use() == 0));
}

#[test]
fn equally_idle_backends_take_turns() {
    let roster = roster(unhurried(), &["a", "b", "c"]);
    let counts = roster.picks(Balance::LeastConnections, 30);
    assert!(counts.values().all(|n| *n == 10), "{counts:?}");
}

#[test]
fn a_slow_backend_gets_little_by_latency_until_that_is_long_ago() {
    let roster = roster(unhurried(), &["slow", "b", "c"]);
    for (i, backend) in roster.list().iter().enumerate() {
        backend.note_latency(at(0), if i == 0 { MS * 100 } else { MS });
    }
    assert_eq!(roster.picks(Balance::P2c, 3000).get("slow"), None);
    let slow = roster.find("slow");
    assert!(slow.latency(at(10_000)) < MS * 37 && slow.latency(at(10_000)) > MS * 36);
    assert!(slow.latency(at(100_000)) < MS / 100);
    // A peak counts at once, good times bit by bit.
    slow.note_latency(at(100_000), MS * 200);
    assert_eq!(slow.latency(at(100_000)), MS * 200);
    for ms in 1..=10_000 {
        slow.note_latency(at(100_000 + ms), MS);
    }
    let settled = slow.latency(at(110_000));
    assert!((MS * 70..MS * 80).contains(&settled), "{settled:?}");
}

#[test]
fn a_backend_of_which_nothing_is_known_gets_one_client_to_find_out() {
    let roster = roster(unhurried(), &["new", "b"]);
    roster.find("b").note_latency(at(0), MS);
    let (list, mut picker) = (roster.list(), Picker::new(Balance::P2c, 1));
    let first = &list[picker.pick(at(0), &list, 0, &Tried::new()).unwrap()];
    assert_eq!(*first.key(), "new");
    let _visit = first.enter();
    assert_eq!(*list[picker.pick(at(0), &list, 0, &Tried::new()).unwrap()].key(), "b");
}

#[test]
fn a_clients_backend_stays_when_others_leave_or_come() {
    let mut roster = roster(unhurried(), &["a", "b", "c", "d"]);
    let places = |roster: &Roster<Key>| -> Vec<Key> {
        let (list, mut picker) = (roster.list(), Picker::new(Balance::SourceHash, 1));
        (0..1000)
            .map(|i| Rng::new(i).next_u64())
            .map(|hash| *list[picker.pick(at(0), &list, hash, &Tried::new()).unwrap()].key())
            .collect()
    };
    let before = places(&roster);
    for key in ["a", "b", "c", "d"] {
        let share = before.iter().filter(|k| **k == key).count();
        assert!((200..=300).contains(&share), "{key} {share}");
    }
    roster.replace(at(0), [("d", 1), ("a", 1), ("b", 1)]).unwrap();
    for (old, new) in before.iter().zip(places(&roster)) {
        assert!(*old == new || *old == "c");
    }
    roster.replace(at(0), [("c", 1), ("d", 1), ("a", 1), ("b", 1)]).unwrap();
    assert_eq!(places(&roster), before, "in any order of the list");
    // With shares, more of one only draws clients to it.
    roster.replace(at(0), [("c", 2), ("d", 1), ("a", 1), ("b", 1)]).unwrap();
    for (old, new) in before.iter().zip(places(&roster)) {
        assert!(*old == new || new == "c");
    }
}

#[test]
fn the_first_healthy_one_serves_all() {
    let mut roster = roster(checked(), &["a", "b", "c"]);
    assert_eq!(roster.picks(Balance::FirstHealthy, 5), HashMap::from([("a", 5)]));
    roster.live(at(10_000), |key| if key == "a" { Err(Cause::Tls) } else { Ok(()) });
    assert_eq!(roster.picks(Balance::FirstHealthy, 5), HashMap::from([("b", 5)]));
}

#[test]
fn events_that_nobody_takes_are_bounded_and_counted() {
    let mut roster = roster(unhurried(), &["a"]);
    for i in 0..EVENTS_MAX as u64 {
        roster.replace(at(i), [(if i % 2 == 0 { "b" } else { "a" }, 1)]).unwrap();
        while roster.poll_action().is_some() {}
    }
    assert_eq!(roster.events().len(), EVENTS_MAX);
    assert_eq!(roster.counters().events_lost, EVENTS_MAX as u64 + 1);
}

//! Seeded worlds: backends that die and recover, lists that change, clients that try until nobody is left. After each
//! step the rules hold. A failure prints its seed.

use std::collections::HashSet;
use std::time::Duration;

use super::super::*;

const KEYS: u32 = 12;

struct World {
    seed: u64,
    rng: Rng,
    now: Instant,
    config: RosterConfig,
    roster: Roster<u32>,
    pickers: Vec<Picker>,
    keys: Vec<(u32, u32)>,
    running: HashMap<BackendId, Instant>,
    gone: HashSet<BackendId>,
    is_dead: [bool; KEYS as usize],
    seen: Seen,
}

/// What the worlds reached: a rule that was never put to the test proves nothing.
#[derive(Default)]
struct Seen {
    counters: Vec<Counters>,
    last_resorts: u64,
    warming: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let config = RosterConfig {
            checks: rng.percent(75).then(|| CheckConfig {
                interval: rng.between(Duration::from_millis(10), Duration::from_secs(10)),
                rise: 1 + rng.below(3),
                fall: 1 + rng.below(3),
                ..CheckConfig::default()
            }),
            ejection: EjectionConfig {
                failures: rng.below(6),
                base: Duration::from_secs(1) + rng.up_to(Duration::from_secs(30)),
                max: Duration::from_secs(60),
                max_percent: [0, 10, 50, 100][rng.below(4) as usize],
            },
            slow_start: if rng.percent(50) { rng.up_to(Duration::from_secs(10)) } else { Duration::ZERO },
            on_unhealthy: Active::Keep,
            on_removed: Active::Close,
            allow_empty: rng.percent(30),
        };
        let pickers = Balance::ALL.iter().map(|balance| Picker::new(*balance, rng.next_u64())).collect();
        Self {
            seed,
            now: Instant::from_nanos(rng.next_u64() >> 16),
            config,
            roster: Roster::new(config, rng.next_u64()).unwrap(),
            pickers,
            keys: Vec::new(),
            running: HashMap::new(),
            gone: HashSet::new(),
            is_dead: [false; KEYS as usize],
            rng,
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.rng.below(100) {
            0..2 => self.change_list(),
            2..6 => {
                let key = self.rng.below(KEYS) as usize;
                self.is_dead[key] = self.rng.percent(40);
            }
            6..40 => self.serve_client(),
            40..70 => self.finish_a_check(),
            70..71 => {
                let mut config = self.config;
                config.ejection.max_percent = self.rng.below(101);
                if self.rng.percent(10) {
                    config.checks = None;
                    self.running.clear();
                }
                self.config = config;
                self.roster.configure(self.now, config).unwrap();
            }
            _ => self.pass_time(),
        }
        self.act();
        self.audit();
    }

    fn change_list(&mut self) {
        let n = self.rng.below(10);
        let entries: Vec<_> = (0..n).map(|_| (self.rng.below(KEYS), self.rng.below(4))).collect();
        let before = self.roster.version();
        match self.roster.replace(self.now, entries.iter().copied()) {
            Err(EmptyList) => {
                assert!(entries.is_empty() && !self.config.allow_empty);
                assert_eq!(self.roster.version(), before);
            }
            Ok(changes) => {
                self.keys.clear();
                for (key, share) in entries {
                    let share = share.max(1);
                    match self.keys.iter_mut().find(|(k, _)| *k == key) {
                        Some((_, known)) => *known = share.max(*known),
                        None => self.keys.push((key, share)),
                    }
                }
                assert_eq!(changes.merged, n as usize - self.keys.len());
            }
        }
    }

    /// A client tries until somebody serves it or all were tried.
    fn serve_client(&mut self) {
        let list = self.roster.list();
        let mut tried = Tried::new();
        let which = self.rng.below(self.pickers.len() as u32) as usize;
        let hash = self.rng.next_u64();
        let usable: HashSet<_> = list.iter().filter(|b| b.weight() > 0).map(|b| b.id()).collect();
        let mut asked_unusable = false;
        while let Some(place) = self.pickers[which].pick(self.now, &list, hash, &tried) {
            let backend = &list[place];
            assert!(!tried.contains(backend.id()), "nobody is tried twice");
            assert!(!self.gone.contains(&backend.id()), "nobody is picked who is gone");
            // Verdicts may change by the failures of this very client: what counts is how it was in the beginning.
            if !usable.contains(&backend.id()) && backend.weight() == 0 {
                let left = usable.iter().filter(|id| !tried.contains(**id));
                let left = left.filter(|id| list.iter().any(|b| b.id() == **id && b.weight() > 0)).count();
                assert_eq!(left, 0, "who is not usable is the last resort");
                asked_unusable = true;
            }
            self.seen.warming += u64::from(backend.standing() == Standing::Warming);
            let _visit = backend.enter();
            tried.insert(backend.id());
            if !self.is_dead[*backend.key() as usize] {
                backend.note_good();
                backend.note_latency(self.now, self.rng.up_to(Duration::from_millis(50)));
                break;
            }
            let cause = Cause::ALL[self.rng.below(Cause::ALL.len() as u32) as usize];
            let before = backend.failures();
            self.roster.handle_failed(self.now, backend.id(), cause);
            if cause.blame() != Blame::Upstream {
                assert_eq!(backend.failures(), before);
            }
        }
        self.seen.last_resorts += u64::from(asked_unusable);
        let is_served = list.iter().any(|b| tried.contains(b.id()) && !self.is_dead[*b.key() as usize]);
        assert!(is_served || tried.len() == list.len(), "all are tried before a client is refused");
    }

    fn finish_a_check(&mut self) {
        let Some(id) = self.running.keys().min().copied() else { return };
        self.running.remove(&id);
        let key = self.roster.list().iter().find(|b| b.id() == id).map_or(0, |b| *b.key() as usize);
        let result = match self.rng.below(10) {
            0 => Err(Cause::Descriptors),
            _ if self.is_dead[key] => Err(Cause::Refused),
            _ => Ok(()),
        };
        self.roster.handle_checked(self.now, id, result);
    }

    fn pass_time(&mut self) {
        let due = self.roster.next_timeout();
        if due != Instant::MAX && self.rng.percent(70) {
            self.now = self.now.max(due);
        } else {
            self.now = self.now + self.rng.up_to(Duration::from_secs(20));
        }
        self.roster.handle_timeout(self.now);
        assert!(self.roster.next_timeout() > self.now, "what was due has been done");
    }

    fn act(&mut self) {
        while let Some(action) = self.roster.poll_action() {
            match action {
                Action::Check(backend) => {
                    assert!(self.config.checks.is_some());
                    let before = self.running.insert(backend.id(), self.now);
                    assert!(before.is_none(), "one check of a backend at a time");
                }
                Action::Purge { backend, active, why } => {
                    assert_eq!(active == Active::Close, why == Parting::Removed);
                    if why == Parting::Removed {
                        assert!(self.gone.insert(backend.id()), "nobody is removed twice");
                        assert_eq!(backend.standing(), Standing::Removed);
                        self.running.remove(&backend.id());
                    }
                }
            }
        }
        while self.roster.poll_event().is_some() {}
    }

    fn audit(&mut self) {
        let list = self.roster.list();
        let keys: Vec<_> = list.iter().map(|b| *b.key()).collect();
        assert_eq!(keys, self.keys.iter().map(|(key, _)| *key).collect::<Vec<_>>());
        let count = |standing| list.iter().filter(|b| b.standing() == standing).count();
        let ejected = self.roster.rows.iter().filter(|row| row.is_ejected()).count();
        let percent = self.config.ejection.max_percent as usize;
        let bound = (list.len() * percent / 100).max(usize::from(percent > 0));
        assert!(ejected <= bound.min(list.len().saturating_sub(1)), "{ejected} of {}", list.len());
        let usable = count(Standing::Usable) + count(Standing::Warming);
        assert!(usable > 0 || count(Standing::Ejected) == 0, "the last one is never ejected");
        assert_eq!(self.roster.is_panicking(), usable == 0 && !list.is_empty());
        assert_eq!(count(Standing::Removed), 0);
        for (backend, (_, share)) in list.iter().zip(&self.keys) {
            let weight = backend.weight();
            match backend.standing() {
                Standing::Usable => assert_eq!(weight, share * 100),
                Standing::Warming => assert!(weight >= share * 10 && weight < share * 100),
                _ => assert_eq!(weight, 0),
            }
            assert!(
                list.len() > 1 || backend.standing() != Standing::Warming,
                "the only one needs no warming"
            );
            assert_eq!(backend.in_use(), 0);
        }
    }
}

#[test]
fn the_rules_hold_in_thousands_of_worlds() {
    let only = std::env::var("FOREBAY_SIM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let mut all = Seen::default();
    for seed in only.map_or(0..4000, |seed| seed..seed + 1) {
        let mut world = World::new(seed);
        let steps = 100 + world.rng.below(400);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.change_list();
            (0..steps).for_each(|_| world.step());
        }));
        assert!(
            outcome.is_ok(),
            "seed {}: live through it again with FOREBAY_SIM_SEED={}",
            world.seed,
            world.seed
        );
        all.counters.push(*world.roster.counters());
        all.last_resorts += world.seen.last_resorts;
        all.warming += world.seen.warming;
    }
    if only.is_some() {
        return;
    }
    let sum = |figure: fn(&Counters) -> u64| all.counters.iter().map(figure).sum::<u64>();
    for (what, n) in [
        ("checks", sum(|c| c.checks_begun)),
        ("good checks", sum(|c| c.checks_good)),
        ("bad checks", sum(|c| c.checks_bad)),
        ("checks that failed here", sum(|c| c.checks_local)),
        ("unhealthy", sum(|c| c.failures_of_health)),
        ("healthy again", sum(|c| c.recoveries)),
        ("ejections", sum(|c| c.ejections)),
        ("ejections refused", sum(|c| c.ejections_refused)),
        ("returns", sum(|c| c.returns)),
        ("panics", sum(|c| c.panics)),
        ("empty lists", sum(|c| c.empty_lists)),
        ("last resorts", all.last_resorts),
        ("clients of warming backends", all.warming),
    ] {
        assert!(n > 100, "only {n} times: {what}");
    }
}

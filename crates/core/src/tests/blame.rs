use super::*;

/// A policy in which one failure of the upstream would show everywhere.
fn touchy() -> Config {
    let breaker = BreakerConfig { failures: 1, ..BreakerConfig::default() };
    Config { breaker, health: Some(HealthConfig { fall: 1, ..HealthConfig::default() }), ..small(4) }
}

fn blamed(blame: Blame) -> impl Iterator<Item = Cause> {
    Cause::ALL.iter().copied().filter(move |cause| cause.blame() == blame)
}

#[test]
fn local_and_client_failures_move_no_breaker_no_health_and_no_back_off() {
    for cause in blamed(Blame::Local).chain(blamed(Blame::Client)) {
        let mut rig = Rig::new(touchy());
        for _ in 0..20 {
            if let Acquired::Wait(ticket) = rig.acquire(60_000) {
                rig.dialed(Err(cause));
                rig.cancel(ticket);
            }
            assert!(rig.engine.is_available(rig.now, rig.endpoint), "{cause}: no back-off");
            while rig.dials.pop_front().is_some_and(|slot| {
                rig.engine.handle_dialed(rig.now, slot, Err(cause));
                rig.settle();
                true
            }) {}
            rig.pass(20_000);
        }
        rig.connect(1);
        for outcome in [Outcome::Failed(cause), Outcome::Broken(cause)] {
            let lease = match rig.acquire(1_000) {
                Acquired::Lease(lease) => lease,
                _ => {
                    rig.dialed(Ok(ANY));
                    rig.granted()
                }
            };
            rig.release(lease, outcome);
        }
        rig.engine.handle_probed(rig.now, rig.endpoint, Err(cause));
        let snapshot = rig.snapshot();
        assert_eq!((snapshot.breaker, snapshot.health), (BreakerState::Closed, Health::Healthy), "{cause}");
        assert_eq!((snapshot.counters.failures, snapshot.counters.breaker_opened), (0, 0), "{cause}");
        assert!(snapshot.counters.dial_failures(cause) > 0);
    }
}

#[test]
fn upstream_failures_move_breaker_and_back_off() {
    for cause in blamed(Blame::Upstream) {
        let mut rig = Rig::new(touchy());
        rig.ticket(1_000);
        rig.dialed(Err(cause));
        assert!(matches!(rig.snapshot().breaker, BreakerState::Open(_)), "{cause}: a dial");

        for outcome in [Outcome::Failed(cause), Outcome::Broken(cause)] {
            let mut rig = Rig::connected(touchy(), 1);
            rig.serve(outcome);
            assert!(matches!(rig.snapshot().breaker, BreakerState::Open(_)), "{outcome:?}");
            assert_eq!(rig.snapshot().last_failure, Some(cause));
        }

        let mut rig = Rig::new(small(4));
        rig.ticket(1_000);
        rig.dialed(Err(cause));
        assert!(!rig.engine.is_available(rig.now, rig.endpoint), "{cause}: back-off");
    }
}

#[test]
fn a_local_failure_pauses_dials_and_is_counted_as_exhaustion() {
    let mut rig = Rig::connected(small(4), 1);
    let _held = rig.lease();
    rig.ticket(60_000);
    rig.dialed(Err(Cause::Ports));
    assert!(rig.dials.is_empty(), "a storm would not help this machine");
    assert_eq!(rig.snapshot().counters.local_exhaustions, 1);
    rig.pass(50);
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn what_hinders_this_machine_is_told_while_it_pauses_and_nothing_could_serve() {
    let mut rig = Rig::new(small(4));
    assert_eq!(rig.engine.hindrance(rig.now, rig.endpoint), None);
    rig.ticket(60_000);
    rig.dialed(Err(Cause::Route));
    assert_eq!(rig.engine.hindrance(rig.now, rig.endpoint), Some(Cause::Route));
    rig.pass(500);
    assert_eq!(rig.engine.hindrance(rig.now, rig.endpoint), None, "the pause is over");
    rig.ticket(60_000);
    rig.dialed(Err(Cause::Refused));
    assert_eq!(rig.engine.hindrance(rig.now, rig.endpoint), None, "not this machine's fault");

    let mut rig = Rig::connected(small(4), 1);
    let _held = rig.lease();
    rig.ticket(60_000);
    rig.dialed(Err(Cause::Route));
    assert_eq!(rig.engine.hindrance(rig.now, rig.endpoint), None, "a lease may come back");
}

#[test]
fn a_storm_of_local_failures_recovers_by_itself() {
    let mut rig = Rig::new(touchy());
    for _ in 0..10 {
        let _ = rig.acquire(60_000);
        while !rig.dials.is_empty() {
            rig.dialed(Err(Cause::Ports));
        }
        rig.pass(500);
    }
    rig.pass(10_000);
    let _ = rig.acquire(60_000);
    rig.dialed(Ok(ANY));
    assert!(!rig.grants.is_empty());
    assert_eq!(rig.snapshot().counters.breaker_opened, 0);
}

/// The pause after the next failed dial.
fn pause(rig: &mut Rig) -> Duration {
    let _ = rig.acquire(600_000);
    rig.dialed(Err(Cause::Refused));
    let begun = rig.now;
    let ticket = rig.ticket(600_000);
    while rig.dials.is_empty() {
        rig.now = rig.engine.next_timeout().unwrap();
        rig.engine.handle_timeout(rig.now);
        rig.settle();
    }
    rig.cancel(ticket);
    let paused = rig.now.saturating_duration_since(begun);
    rig.dialed(Err(Cause::Cancelled));
    paused
}

#[test]
fn pauses_between_failed_dials_grow_to_their_maximum() {
    for (base, max) in [(10, 640), (100, 6_400)] {
        let backoff = BackoffConfig { base: ms(base), max: ms(max) };
        let breaker = BreakerConfig { failures: 0, ..BreakerConfig::default() };
        let mut rig = Rig::new(Config { backoff, breaker, ..small(4) });
        assert!(pause(&mut rig) <= ms(base));
        let longest = (0..40).map(|_| pause(&mut rig)).max().unwrap();
        assert!(longest > ms(max / 2) && longest <= ms(max), "{longest:?}");
    }
}

#[test]
fn a_connection_made_does_not_end_the_back_off_but_a_useful_lease_does() {
    let backoff = BackoffConfig { base: ms(10), max: ms(100_000) };
    let breaker = BreakerConfig { failures: 0, ..BreakerConfig::default() };
    for (outcome, forgotten) in [(Outcome::Good, true), (Outcome::Broken(Cause::Reset), false)] {
        let mut rig = Rig::new(Config { backoff, breaker, ..small(4) });
        for _ in 0..10 {
            pause(&mut rig);
        }
        rig.ticket(600_000);
        rig.pass(100_000);
        rig.dialed(Ok(ANY));
        let lease = rig.granted();
        rig.release(lease, outcome);
        let _held = (outcome == Outcome::Good).then(|| rig.lease());
        let next = pause(&mut rig);
        assert_eq!(next <= ms(10), forgotten, "{outcome:?}: {next:?}");
    }
}

#[test]
fn no_connection_and_a_pause_longer_than_the_deadline_is_said_at_once() {
    let backoff = BackoffConfig { base: ms(1_000), max: ms(1_000) };
    let mut rig = Rig::new(Config { backoff, ..small(4) });
    rig.ticket(1_000);
    rig.dialed(Err(Cause::Refused));
    assert!(matches!(rig.refused(1), Refusal::Backoff { last: Some(Cause::Refused), .. }));
    rig.ticket(2_000);
}

#[test]
fn a_good_lease_ends_the_pause_for_those_who_wait() {
    let backoff = BackoffConfig { base: ms(10_000), max: ms(10_000) };
    let mut rig = Rig::connected(Config { backoff, ..shared(4, 2) }, 1);
    let (one, _two) = (rig.lease(), rig.lease());
    rig.ticket(60_000);
    rig.ticket(60_000);
    rig.dialed(Err(Cause::Reset));
    assert!(rig.dials.is_empty());
    rig.release(one, Outcome::Good);
    assert_eq!(rig.dials.len(), 1);
}

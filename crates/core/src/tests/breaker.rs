use super::*;

fn fragile(failures: u32) -> Config {
    let breaker = BreakerConfig { failures, open_base: ms(100), open_max: ms(1_000) };
    Config { breaker, backoff: BackoffConfig { base: ms(1), max: ms(1) }, ..small(4) }
}

#[test]
fn so_many_failures_in_a_row_open_the_breaker() {
    for failures in [1, 4] {
        let mut rig = Rig::connected(fragile(failures), 1);
        for _ in 1..failures {
            rig.serve(Outcome::Failed(Cause::Timeout));
        }
        assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
        rig.serve(Outcome::Good);
        for _ in 1..failures {
            rig.serve(Outcome::Failed(Cause::Timeout));
        }
        assert_eq!(rig.snapshot().breaker, BreakerState::Closed, "a success starts the count anew");
        rig.serve(Outcome::Failed(Cause::Timeout));
        assert!(matches!(rig.refused(1_000), Refusal::BreakerOpen { last: Some(Cause::Timeout), .. }));
        assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_none());
    }
}

#[test]
fn a_threshold_of_zero_never_opens() {
    let mut rig = Rig::connected(fragile(0), 1);
    (0..100).for_each(|_| rig.serve(Outcome::Failed(Cause::Timeout)));
    assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
}

#[test]
fn one_probe_passes_and_its_success_closes_the_breaker() {
    let mut rig = Rig::connected(fragile(2), 2);
    let until = rig.open_breaker(Cause::Timeout);
    assert!(until <= rig.now + ms(100));
    rig.pass_until(until);
    let probe = rig.lease();
    assert!(probe.is_probe());
    assert!(matches!(rig.refused(1_000), Refusal::BreakerOpen { .. }), "one at a time");
    rig.release(probe, Outcome::Good);
    assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
    assert!(!rig.lease().is_probe());
    assert!(rig.events.contains(&Event::BreakerClosed { endpoint: rig.endpoint }));
}

#[test]
fn the_probe_s_failure_opens_the_breaker_again_for_longer_up_to_a_maximum() {
    let mut rig = Rig::connected(fragile(1), 1);
    let mut longest = ms(0);
    let mut until = rig.open_breaker(Cause::Timeout);
    for _ in 0..40 {
        rig.pass_until(until);
        rig.serve(Outcome::Failed(Cause::Timeout));
        let BreakerState::Open(next) = rig.snapshot().breaker else { panic!() };
        longest = longest.max(next.saturating_duration_since(rig.now));
        until = next;
    }
    assert!(longest > ms(500) && longest <= ms(1_000), "{longest:?}");
    assert_eq!(rig.snapshot().counters.breaker_opened, 41);
}

#[test]
fn a_probe_that_learnt_nothing_makes_room_for_the_next() {
    for outcome in [Outcome::Unused, Outcome::Failed(Cause::Cancelled), Outcome::Failed(Cause::Memory)] {
        let mut rig = Rig::connected(fragile(1), 1);
        let until = rig.open_breaker(Cause::Timeout);
        rig.pass_until(until);
        rig.serve(outcome);
        assert_eq!(rig.snapshot().breaker, BreakerState::HalfOpen);
        assert!(rig.lease().is_probe(), "after {outcome:?}");
    }
}

#[test]
fn a_probe_that_gives_up_waiting_makes_room_for_the_next() {
    let mut rig = Rig::new(fragile(1));
    let until = rig.open_breaker(Cause::Refused);
    rig.pass_until(until);
    let probe = rig.ticket(1_000);
    assert!(matches!(rig.refused(1_000), Refusal::BreakerOpen { .. }));
    rig.cancel(probe);
    let next = rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let (ticket, lease) = rig.grants.pop_front().unwrap();
    assert!(ticket == next && lease.is_probe());
}

#[test]
fn a_probe_whose_deadline_passes_makes_room_for_the_next() {
    let mut rig = Rig::new(fragile(1));
    let until = rig.open_breaker(Cause::Refused);
    rig.pass_until(until);
    rig.ticket(20);
    rig.pass(20);
    assert_eq!(rig.failures.len(), 2, "the one that opened it, and this");
    rig.ticket(1_000);
}

#[test]
fn the_probe_s_failed_dial_opens_the_breaker_again() {
    let mut rig = Rig::new(fragile(1));
    let until = rig.open_breaker(Cause::Refused);
    rig.pass_until(until);
    let probe = rig.ticket(1_000);
    rig.dialed(Err(Cause::Refused));
    assert!(matches!(rig.snapshot().breaker, BreakerState::Open(next) if next > until));
    assert_eq!(rig.failures.pop_back(), Some((probe, TicketError::Dial(Cause::Refused))));
}

#[test]
fn while_half_open_one_dial_is_under_way() {
    let mut rig = Rig::new(Config { connections_min: 4, ..fragile(1) });
    rig.dialed_all(Err(Cause::Refused));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!() };
    rig.pass_until(until);
    rig.pass(1_000);
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn connections_min_probes_without_a_caller() {
    let mut rig = Rig::new(Config { connections_min: 2, ..fragile(1) });
    rig.dialed(Err(Cause::Refused));
    rig.dialed(Err(Cause::Refused));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!() };
    rig.pass_until(until);
    assert_eq!(rig.snapshot().breaker, BreakerState::HalfOpen);
    rig.dialed(Ok(ANY));
    assert_eq!(
        rig.snapshot().breaker,
        BreakerState::Closed,
        "nobody waits, so the connection itself is the proof"
    );
    assert_eq!(rig.dials.len(), 1, "and the rest follows");
}

#[test]
fn a_probe_that_finds_the_line_full_is_left_to_those_in_line() {
    // It was abandoned with nobody dialling, and who stood in line waited for the next timer (sim seed 637370).
    let mut rig = Rig::connected(Config { connections_max: 2, waiters_max: 1, ..fragile(1) }, 2);
    let (failing, held) = (rig.lease(), rig.lease());
    let older = rig.ticket(10_000);
    rig.release(failing, Outcome::Broken(Cause::Timeout));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!("a failure opens it") };
    rig.now = until;
    assert!(matches!(rig.refused(10_000), Refusal::LineFull { waiters: 1, .. }));
    rig.dialed(Ok(ANY));
    let (ticket, lease) = rig.grants.pop_front().expect("the dial was for who waits");
    assert!(ticket == older && lease.is_probe());
    rig.release(held, Outcome::Good);
}

#[test]
fn a_dial_after_an_abandoned_probe_is_the_next_probe() {
    let mut rig = Rig::new(Config { connections_min: 1, ..fragile(1) });
    rig.dialed(Err(Cause::Refused));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!() };
    rig.pass_until(until);
    rig.dialed(Err(Cause::Memory));
    assert_eq!(rig.snapshot().breaker, BreakerState::HalfOpen, "that was this machine");
    rig.pass(1_000);
    assert!(matches!(rig.refused(1_000), Refusal::BreakerOpen { .. }), "the dial probes");
    rig.dialed(Ok(ANY));
    assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
}

#[test]
fn a_dial_that_was_the_probe_of_an_earlier_opening_takes_nobody_s_place() {
    // It marked the waiting probe with its own old name, and the endpoint stayed half open for good.
    let mut rig = Rig::new(Config { connections_min: 2, ..fragile(1) });
    rig.dialed(Err(Cause::Refused));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!() };
    rig.pass_until(until);
    assert_eq!(rig.dials.len(), 2, "one of before, and the probe");
    rig.dialed(Err(Cause::Timeout));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!("late, but the upstream failed") };
    rig.now = until;
    let probe = rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let (ticket, lease) = rig.grants.pop_front().unwrap();
    assert!(ticket == probe && lease.is_probe());
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
}

#[test]
fn old_tickets_are_served_while_the_breaker_is_open() {
    let mut rig = Rig::connected(fragile(1), 1);
    let held = rig.lease();
    let ticket = rig.ticket(60_000);
    rig.dialed(Err(Cause::Refused));
    assert!(matches!(rig.snapshot().breaker, BreakerState::Open(_)));
    rig.release(held, Outcome::Unused);
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn health_falls_and_rises_by_streaks() {
    for (rise, fall) in [(1, 1), (2, 3)] {
        let health = Some(HealthConfig { interval: ms(100), rise, fall });
        let mut rig = Rig::new(Config { health, ..small(1) });
        for n in 1..=fall {
            assert_eq!(rig.snapshot().health, Health::Healthy, "{n}");
            rig.engine.handle_probed(rig.now, rig.endpoint, Err(Cause::Timeout));
        }
        assert_eq!(rig.snapshot().health, Health::Unhealthy);
        assert!(!rig.engine.is_available(rig.now, rig.endpoint));
        for n in 1..=rise {
            assert_eq!(rig.snapshot().health, Health::Unhealthy, "{n}");
            rig.engine.handle_probed(rig.now, rig.endpoint, Ok(()));
        }
        rig.settle();
        assert_eq!(rig.snapshot().health, Health::Healthy);
        let changes = rig.events.iter().filter(|event| matches!(event, Event::HealthChanged { .. })).count();
        assert_eq!(changes, 2);
    }
}

#[test]
fn checks_come_at_their_interval() {
    for interval in [100, 400] {
        let health = Some(HealthConfig { interval: ms(interval), ..HealthConfig::default() });
        let mut rig = Rig::new(Config { health, ..small(1) });
        rig.pass(interval * 100);
        assert!((90..=112).contains(&rig.probes), "{} checks", rig.probes);
    }
    let mut rig = Rig::new(small(1));
    rig.pass(100_000);
    assert_eq!(rig.probes, 0);
}

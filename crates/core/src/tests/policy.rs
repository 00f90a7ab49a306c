//! A policy changed while the engine runs: each field, on what is there already.

use super::*;

#[test]
fn a_raised_connections_max_serves_those_who_wait() {
    let mut rig = Rig::connected(small(1), 1);
    let _held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.configure(|config| config.connections_max = 2);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn a_lowered_connections_max_closes_idle_ones_and_lets_leases_finish() {
    let mut rig = Rig::connected(small(6), 6);
    let held: Vec<_> = (0..4).map(|_| rig.lease()).collect();
    rig.configure(|config| config.connections_max = 3);
    assert_eq!(rig.closed(), [CloseReason::Surplus; 2]);
    assert_eq!((rig.snapshot().draining, rig.snapshot().busy), (1, 3));
    held.into_iter().for_each(|lease| rig.release(lease, Outcome::Good));
    assert_eq!(rig.snapshot().connections(), 3);
}

#[test]
fn engines_that_share_a_lowered_limit_each_give_their_part() {
    let permits = Permits::alone(8, 0);
    let mut rigs =
        [Rig::with_permits(small(8), permits.clone()), Rig::with_permits(small(8), permits.clone())];
    rigs.iter_mut().for_each(|rig| rig.connect(4));
    rigs.iter_mut().for_each(|rig| rig.closes_at_once = false);
    rigs.iter_mut().for_each(|rig| rig.configure(|config| config.connections_max = 4));
    for rig in &mut rigs {
        assert_eq!(rig.closes.len(), 2);
        while let Some((slot, _)) = rig.closes.pop_front() {
            rig.peer_closes(slot);
        }
    }
    assert_eq!(permits.connections.used(), 4);
}

#[test]
fn a_raised_connections_min_dials() {
    let mut rig = Rig::new(small(4));
    rig.configure(|config| config.connections_min = 2);
    assert_eq!(rig.dials.len(), 2);
}

#[test]
fn a_lowered_idle_max_closes_what_stands_idle_beyond_it() {
    let mut rig = Rig::connected(small(4), 4);
    rig.configure(|config| config.idle_max = 1);
    assert_eq!(rig.closed(), [CloseReason::IdleMax; 3]);
}

#[test]
fn temporary_connections_may_be_allowed_later() {
    let mut rig = Rig::connected(small(1), 1);
    let _held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.configure(|config| (config.overflow, config.temporary_max) = (Overflow::Temporary, 1));
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn a_raised_capacity_serves_those_who_wait_on_connections_that_are_there() {
    let mut rig = Rig::connected(shared(1, 1), 1);
    let held = rig.lease();
    rig.ticket(1_000);
    rig.ticket(1_000);
    rig.configure(|config| config.capacity = 2);
    assert_eq!(rig.grants.len(), 1);
    assert_eq!(rig.granted().slot(), held.slot());
}

#[test]
fn a_lowered_capacity_takes_no_lease_away() {
    let mut rig = Rig::connected(shared(1, 3), 1);
    let mut held = vec![rig.lease(), rig.lease(), rig.lease()];
    rig.configure(|config| config.capacity = 1);
    rig.ticket(1_000);
    rig.release(held.pop().unwrap(), Outcome::Good);
    rig.release(held.pop().unwrap(), Outcome::Good);
    assert!(rig.grants.is_empty());
    rig.release(held.pop().unwrap(), Outcome::Good);
    assert_eq!(rig.grants.len(), 1);
}

#[test]
fn a_lowered_waiters_max_sends_nobody_away_who_waits() {
    let mut rig = Rig::connected(small(1), 1);
    let held = rig.lease();
    let first = rig.ticket(1_000);
    rig.ticket(1_000);
    rig.configure(|config| config.waiters_max = 1);
    assert!(matches!(rig.refused(1_000), Refusal::LineFull { waiters: 2, .. }));
    rig.release(held, Outcome::Good);
    assert_eq!(rig.grants.pop_front().unwrap().0, first);
}

#[test]
fn a_raised_dials_max_opens_the_window_as_dials_succeed() {
    let mut rig = Rig::new(Config { dials_max: 1, ..small(100) });
    rig.tickets(10);
    rig.configure(|config| config.dials_max = 3);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.dials.len(), 2);
    rig.configure(|config| config.dials_max = 1);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn a_changed_order_holds_for_the_slots_that_are_free() {
    let mut rig = Rig::connected(Config { order: IdleOrder::Lifo, ..small(3) }, 3);
    rig.configure(|config| config.order = IdleOrder::Fifo);
    let leases: Vec<_> = (0..3).map(|_| rig.lease()).collect();
    let order: Vec<_> = leases.iter().map(|lease| lease.slot()).collect();
    leases.into_iter().for_each(|lease| rig.release(lease, Outcome::Good));
    let again: Vec<_> = (0..3).map(|_| rig.lease().slot()).collect();
    assert_eq!(order, again);
}

#[test]
fn an_order_that_keeps_all_warm_shrinks_from_then_on() {
    let mut rig = Rig::connected(Config { idle_timeout: Some(ms(60_000)), ..small(8) }, 8);
    rig.configure(|config| (config.order, config.idle_timeout) = (IdleOrder::Fifo, Some(ms(1_000))));
    for _ in 0..500 {
        rig.pass(10);
        rig.serve(Outcome::Good);
    }
    assert!(rig.snapshot().counters.closes(CloseReason::Surplus) > 0);
}

#[test]
fn a_raised_headroom_grows_at_the_next_look() {
    let mut rig = Rig::connected(shared(10, 4), 1);
    let _held: Vec<_> = (0..4).map(|_| rig.lease()).collect();
    rig.configure(|config| config.headroom_percent = 300);
    assert_eq!(rig.dials.len(), 2);
}

#[test]
fn a_shorter_idle_timeout_holds_for_what_stands_idle() {
    let mut rig = Rig::connected(Config { idle_timeout: Some(ms(60_000)), ..small(2) }, 1);
    rig.pass(500);
    rig.configure(|config| config.idle_timeout = Some(ms(400)));
    assert_eq!(rig.closed(), [CloseReason::Idle]);
}

#[test]
fn a_new_age_max_holds_for_connections_that_are_there() {
    let mut rig = Rig::connected(small(1), 1);
    rig.pass(5_000);
    rig.configure(|config| config.age_max = Some(ms(10_000)));
    rig.pass(4_900);
    assert!(rig.closed().is_empty());
    rig.pass(200);
    assert_eq!(rig.closed(), [CloseReason::Age]);

    let mut rig = Rig::connected(Config { age_max: Some(ms(10_000)), ..small(1) }, 1);
    rig.configure(|config| config.age_max = None);
    rig.pass(100_000);
    assert!(rig.closed().is_empty());
}

#[test]
fn a_lowered_uses_max_retires_what_is_worn_out_by_it() {
    let mut rig = Rig::connected(small(2), 1);
    (0..5).for_each(|_| rig.serve(Outcome::Good));
    let held = rig.lease();
    rig.configure(|config| config.uses_max = Some(3));
    assert_eq!(rig.snapshot().draining, 1);
    rig.release(held, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Uses]);
}

#[test]
fn a_shorter_back_off_ends_a_pause_that_is_now_too_long() {
    let backoff = BackoffConfig { base: ms(100_000), max: ms(100_000) };
    let mut rig = Rig::connected(Config { backoff, ..small(2) }, 1);
    let _held = rig.lease();
    rig.ticket(600_000);
    rig.dialed(Err(Cause::Refused));
    rig.pass(50);
    assert!(rig.dials.is_empty());
    rig.configure(|config| config.backoff = BackoffConfig { base: ms(1), max: ms(10) });
    rig.pass(10);
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn a_changed_breaker_counts_by_the_new_threshold() {
    let mut rig = Rig::connected(small(1), 1);
    (0..3).for_each(|_| rig.serve(Outcome::Failed(Cause::Timeout)));
    rig.configure(|config| config.breaker = BreakerConfig { failures: 4, open_base: ms(1), open_max: ms(2) });
    assert_eq!(rig.snapshot().breaker, BreakerState::Closed);
    rig.serve(Outcome::Failed(Cause::Timeout));
    let BreakerState::Open(until) = rig.snapshot().breaker else { panic!() };
    assert!(until <= rig.now + ms(1));
}

#[test]
fn health_checks_may_begin_change_and_end() {
    let mut rig = Rig::new(small(1));
    rig.configure(|config| config.health = Some(HealthConfig { interval: ms(100), rise: 1, fall: 1 }));
    rig.pass(1_000);
    assert!(rig.probes >= 8, "{}", rig.probes);
    rig.engine.handle_probed(rig.now, rig.endpoint, Err(Cause::Timeout));
    assert_eq!(rig.snapshot().health, Health::Unhealthy);
    rig.configure(|config| config.health = Some(HealthConfig { interval: ms(100), rise: 2, fall: 1 }));
    rig.engine.handle_probed(rig.now, rig.endpoint, Ok(()));
    assert_eq!(rig.snapshot().health, Health::Unhealthy, "the verdict stays, and needs two now");
    rig.configure(|config| config.health = None);
    assert_eq!(rig.snapshot().health, Health::Healthy, "nobody says otherwise any more");
    let before = rig.probes;
    rig.pass(1_000);
    assert_eq!(rig.probes, before);
}

#[test]
fn a_policy_that_cannot_be_changes_nothing() {
    let mut rig = Rig::new(small(2));
    let wrong = Config { capacity: 0, connections_max: 9, ..small(2) };
    assert_eq!(rig.engine.handle_config(rig.now, rig.endpoint, wrong).unwrap_err().field, "capacity");
    assert_eq!(rig.snapshot().config, small(2));
}

use super::*;

#[test]
fn a_burst_on_a_cold_endpoint_dials_as_many_connections_as_it_needs() {
    for (calls, capacity, dials) in [(5, 1, 5), (64, 10, 7), (100, 100, 1), (101, 100, 2), (1, 100, 1)] {
        let mut rig = Rig::new(shared(100, capacity));
        for _ in 0..calls {
            rig.ticket(1_000);
        }
        assert_eq!(rig.dials.len(), dials, "{calls} calls, {capacity} at once");
        for _ in 0..dials {
            rig.dialed(Ok(ANY));
        }
        assert_eq!((rig.grants.len(), rig.dials.len()), (calls, 0));
    }
}

#[test]
fn where_the_peer_allows_less_than_hoped_more_is_dialled() {
    let mut rig = Rig::new(shared(100, 100));
    for _ in 0..8 {
        rig.ticket(1_000);
    }
    assert_eq!(rig.dials.len(), 1);
    rig.dialed(Ok(2));
    assert_eq!((rig.grants.len(), rig.dials.len()), (2, 3), "six wait, and each connection carries two");
}

#[test]
fn nothing_is_dialled_while_a_slot_is_free() {
    let mut rig = Rig::connected(small(10), 3);
    let _held = [rig.lease(), rig.lease(), rig.lease()];
    assert!(rig.dials.is_empty());
    rig.ticket(1_000);
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn the_dial_window_grows_on_success_and_halves_on_failure() {
    let mut rig = Rig::new(small(1_000));
    for _ in 0..200 {
        rig.ticket(600_000);
    }
    assert_eq!(rig.dials.len(), 8);
    for _ in 0..4 {
        rig.dialed(Ok(ANY));
    }
    assert_eq!(rig.dials.len(), 12, "four more than before");
    rig.dialed(Err(Cause::Refused));
    rig.pass(50);
    assert_eq!(rig.dials.len(), 11, "eleven are under way, and six may be");
    for _ in 0..6 {
        rig.engine.handle_dialed(rig.now, rig.dials.pop_front().unwrap(), Err(Cause::Cancelled));
    }
    rig.settle();
    assert_eq!(rig.dials.len(), 6);
}

#[test]
fn dials_max_bounds_dials_under_way() {
    for dials_max in [1, 3] {
        let mut rig = Rig::new(Config { dials_max, ..small(100) });
        for _ in 0..20 {
            rig.ticket(1_000);
        }
        for _ in 0..5 {
            assert_eq!(rig.dials.len() as u32, dials_max);
            rig.dialed(Ok(ANY));
        }
    }
}

#[test]
fn connections_max_bounds_all_that_exists() {
    let mut rig = Rig::new(small(3));
    rig.closes_at_once = false;
    for _ in 0..9 {
        rig.ticket(1_000);
    }
    assert_eq!(rig.dials.len(), 3, "connecting counts");
    rig.dialed_all(Ok(ANY));
    assert!(rig.dials.is_empty(), "busy counts");
    let lease = rig.granted();
    let slot = lease.slot();
    rig.release(lease, Outcome::Abandoned);
    assert_eq!(rig.engine.slot_state(slot), State::Closed);
    rig.pass(100);
    assert!(rig.dials.is_empty(), "what is being closed counts");
    rig.peer_closes(slot);
    assert_eq!(rig.dials.len(), 1);
}

#[test]
fn a_draining_connection_counts() {
    let mut rig = Rig::connected(shared(1, 2), 1);
    let (one, two) = (rig.lease(), rig.lease());
    let slot = one.slot();
    rig.engine.handle_goodbye(rig.now, slot);
    rig.release(one, Outcome::Good);
    rig.ticket(1_000);
    rig.pass(100);
    assert!(rig.dials.is_empty());
    rig.release(two, Outcome::Good);
    assert_eq!((rig.closed(), rig.dials.len()), (vec![CloseReason::Goodbye], 1));
}

#[test]
fn connections_min_is_kept_warm_without_demand() {
    let mut rig = Rig::new(Config { connections_min: 2, ..small(5) });
    assert_eq!(rig.dials.len(), 2);
    let slot = rig.dialed(Ok(ANY));
    rig.dialed(Ok(ANY));
    rig.peer_closes(slot);
    assert_eq!(rig.dials.len(), 1, "one was lost, and one is dialled");
}

#[test]
fn connections_min_is_restored_after_failures() {
    let mut rig = Rig::new(Config { connections_min: 1, ..small(5) });
    for _ in 0..4 {
        rig.dialed(Err(Cause::Refused));
        assert!(rig.dials.is_empty());
        rig.pass(1_000);
        assert_eq!(rig.dials.len(), 1);
    }
    rig.dialed(Ok(ANY));
    assert_eq!(rig.snapshot().idle, 1);
}

#[test]
fn connections_min_is_restored_when_uses_wear_one_out_in_use() {
    let mut rig = Rig::new(Config { connections_min: 1, uses_max: Some(1), ..small(5) });
    rig.dialed(Ok(ANY));
    let _last = rig.lease();
    assert_eq!(rig.dials.len(), 1, "the lease was its last; the next connection need not wait for its end");
}

#[test]
fn headroom_grows_before_saturation() {
    let mut rig = Rig::connected(shared(10, 4), 1);
    let leases: Vec<_> = (0..4).map(|_| rig.lease()).collect();
    assert!(rig.dials.is_empty(), "at 100 percent nobody dials before somebody waits");
    leases.into_iter().for_each(|lease| rig.release(lease, Outcome::Good));

    let mut rig = Rig::connected(shared(10, 4), 1);
    rig.configure(|config| config.headroom_percent = 200);
    let mut leases = vec![rig.lease(), rig.lease()];
    assert!(rig.dials.is_empty());
    leases.push(rig.lease());
    assert_eq!(rig.dials.len(), 1, "three in use want six");
}

#[test]
fn dial_timeout_is_told_with_the_dial() {
    for timeout in [ms(70), ms(900)] {
        let mut engine = Engine::new(Balance::default(), 1);
        let config = Config { dial_timeout: timeout, ..small(1) };
        let id = engine.add_endpoint(Instant::ZERO, config, Permits::alone(1, 0)).unwrap();
        let Acquired::Wait(_) = engine.acquire(Instant::ZERO, id, Instant::ZERO + ms(1)) else { panic!() };
        assert!(matches!(engine.poll_action(), Some(Action::Dial { timeout: told, .. }) if told == timeout));
    }
}

#[test]
fn a_dial_outlives_the_caller_who_asked_for_it() {
    let mut rig = Rig::new(small(1));
    rig.ticket(5);
    rig.pass(10);
    assert_eq!(rig.failures.len(), 1);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.snapshot().idle, 1);
}

#[test]
fn engines_that_share_a_ledger_share_the_limit_and_find_out_when_there_is_room() {
    let permits = Permits::alone(1, 0);
    let mut one = Rig::with_permits(small(1), permits.clone());
    let mut other = Rig::with_permits(small(1), permits);
    one.connect(1);
    let ticket = other.ticket(1_000);
    assert!(other.dials.is_empty());
    let slot = one.lease();
    one.release(slot, Outcome::Abandoned);
    other.now = one.now;
    other.pass(10);
    other.dialed(Ok(ANY));
    assert_eq!(other.grants.pop_front().unwrap().0, ticket);
}

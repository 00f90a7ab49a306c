use super::*;

/// Takes the lease of every free slot once, in the order of the policy, and gives all back.
fn order_of(rig: &mut Rig, n: usize) -> Vec<usize> {
    let mut leases: Vec<_> = (0..n).map(|_| rig.lease()).collect();
    let order = leases.iter().map(|lease| lease.slot().index()).collect();
    leases.drain(..).for_each(|lease| rig.release(lease, Outcome::Good));
    order
}

#[test]
fn lifo_takes_the_one_returned_last() {
    let mut rig = Rig::connected(Config { order: IdleOrder::Lifo, ..small(3) }, 3);
    assert_eq!(order_of(&mut rig, 3), [2, 1, 0]);
    assert_eq!(order_of(&mut rig, 3), [0, 1, 2]);
}

#[test]
fn fifo_takes_the_one_returned_first() {
    let mut rig = Rig::connected(Config { order: IdleOrder::Fifo, ..small(3) }, 3);
    assert_eq!(order_of(&mut rig, 3), [0, 1, 2]);
    let lease = rig.lease();
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.lease().slot().index(), 1);
}

#[test]
fn fifo_spreads_requests_over_shared_connections() {
    let mut rig = Rig::connected(Config { order: IdleOrder::Fifo, ..shared(2, 10) }, 2);
    let leases: Vec<_> = (0..6).map(|_| rig.lease()).collect();
    let on_first = leases.iter().filter(|lease| lease.slot().index() == 0).count();
    assert_eq!(on_first, 3);
}

#[test]
fn random_takes_any() {
    let mut rig = Rig::connected(Config { order: IdleOrder::Random, ..small(4) }, 4);
    let mut taken = [0; 4];
    for _ in 0..400 {
        let lease = rig.lease();
        taken[lease.slot().index()] += 1;
        rig.release(lease, Outcome::Good);
    }
    assert!(taken.iter().all(|n| (60..140).contains(n)), "{taken:?}");
}

#[test]
fn least_loaded_evens_out_what_connections_carry() {
    let mut rig = Rig::connected(Config { order: IdleOrder::LeastLoaded, ..shared(4, 100) }, 4);
    let mut leases: Vec<_> = (0..200).map(|_| rig.lease()).collect();
    let carried = |leases: &[Lease]| {
        let mut carried = [0; 4];
        leases.iter().for_each(|lease| carried[lease.slot().index()] += 1);
        carried
    };
    assert!(carried(&leases).iter().all(|n| (40..=60).contains(n)), "{:?}", carried(&leases));
    // What one has lost, it gets back before the others get more.
    let (first, others): (Vec<_>, Vec<_>) = leases.drain(..).partition(|lease| lease.slot().index() == 0);
    let gone = first.len();
    first.into_iter().for_each(|lease| rig.release(lease, Outcome::Good));
    leases = others;
    leases.extend((0..gone).map(|_| rig.lease()));
    assert!(carried(&leases)[0] > gone as u32 / 3, "{:?}", carried(&leases));
}

#[test]
fn fifo_order_survives_a_slot_that_is_given_more_room_while_somebody_waits() {
    // It was put in the line of free slots while it was full, and a second time when it was not.
    let mut rig = Rig::connected(Config { order: IdleOrder::Fifo, ..shared(1, 9) }, 1);
    let lease = rig.lease();
    let slot = lease.slot();
    rig.engine.handle_capacity(rig.now, slot, 1);
    rig.settle();
    rig.ticket(1_000);
    rig.engine.handle_capacity(rig.now, slot, 9);
    rig.settle();
    assert_eq!(rig.grants.len(), 1);
    let more = rig.lease();
    assert_eq!(more.slot(), slot);
}

#[test]
fn idle_timeout_closes_what_stands_idle_and_nothing_earlier() {
    for idle in [30, 90] {
        let mut rig = Rig::connected(Config { idle_timeout: Some(ms(idle)), ..small(3) }, 1);
        rig.pass(idle - 1);
        rig.serve(Outcome::Good);
        rig.pass(idle - 1);
        assert!(rig.closed().is_empty(), "it was used in between");
        rig.pass(1);
        assert_eq!(rig.closed(), [CloseReason::Idle]);
    }
    let mut rig = Rig::connected(Config { idle_timeout: None, ..small(3) }, 1);
    rig.pass(100_000_000);
    assert!(rig.closed().is_empty());
}

#[test]
fn idle_timeout_leaves_connections_min() {
    let mut rig = Rig::new(Config { connections_min: 1, idle_timeout: Some(ms(50)), ..small(3) });
    rig.dialed(Ok(ANY));
    let held = rig.lease();
    rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let other = rig.granted();
    rig.release(held, Outcome::Good);
    rig.release(other, Outcome::Good);
    rig.pass(1_000);
    assert_eq!(rig.closed(), [CloseReason::Idle]);
    assert_eq!(rig.snapshot().idle, 1);
}

#[test]
fn idle_max_closes_the_longest_idle_when_one_too_many_comes_back() {
    let mut rig = Rig::connected(Config { idle_max: 2, ..small(4) }, 2);
    let (a, b) = (rig.lease(), rig.lease());
    rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let c = rig.granted();
    let first = a.slot();
    rig.release(a, Outcome::Good);
    rig.release(b, Outcome::Good);
    assert!(rig.closes.is_empty());
    rig.release(c, Outcome::Good);
    assert_eq!(rig.closes.pop_front(), Some((first, CloseReason::IdleMax)));
}

#[test]
fn an_idle_max_of_zero_keeps_nothing() {
    let mut rig = Rig::new(Config { idle_max: 0, ..small(4) });
    rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let lease = rig.granted();
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::IdleMax]);
}

#[test]
fn an_announced_idle_timeout_is_undercut_and_believed_for_ten_minutes() {
    let mut rig = Rig::connected(Config { idle_timeout: Some(ms(3_600_000)), ..small(2) }, 1);
    rig.engine.handle_idle_timeout(rig.now, rig.endpoint, ms(2_000));
    assert_eq!(rig.snapshot().idle_timeout, Some(ms(1_500)));
    rig.pass(1_498);
    assert!(rig.closed().is_empty());
    rig.pass(2);
    assert_eq!(rig.closed(), [CloseReason::Idle]);
    rig.pass(600_000);
    assert_eq!(rig.snapshot().idle_timeout, Some(ms(3_600_000)));
}

#[test]
fn a_peer_that_closes_idle_connections_teaches_how_long_it_lets_them_stand() {
    let mut rig = Rig::connected(small(2), 1);
    rig.serve(Outcome::Good);
    let slot = rig.lease();
    let id = slot.slot();
    rig.release(slot, Outcome::Good);
    rig.pass(8_000);
    rig.peer_closes(id);
    assert_eq!(rig.snapshot().idle_timeout, Some(ms(6_000)));
    assert_eq!(rig.snapshot().counters.closes(CloseReason::Peer), 1);
}

#[test]
fn a_peer_that_resets_busy_or_new_connections_teaches_nothing() {
    let mut rig = Rig::connected(small(2), 2);
    let held = rig.lease();
    rig.pass(8_000);
    rig.peer_closes(held.slot());
    assert_eq!(rig.snapshot().idle_timeout, None);
    let lease = rig.lease();
    let id = lease.slot();
    rig.release(lease, Outcome::Good);
    rig.pass(499);
    rig.peer_closes(id);
    assert_eq!(rig.snapshot().idle_timeout, None, "that was too soon to be a time-out");
}

#[test]
fn age_max_is_replaced_before_it_is_retired() {
    let config = Config { age_max: Some(ms(1_000)), ..small(2) };
    let mut rig = Rig::connected(config, 1);
    let old = rig.lease();
    rig.pass(790);
    assert!(rig.dials.is_empty());
    rig.pass(160);
    assert_eq!(rig.dials.len(), 1, "at 80 to 95 percent of its age");
    assert!(rig.closed().is_empty());
    rig.dialed(Ok(ANY));
    assert_eq!(rig.snapshot().draining, 1, "the old one takes no more");
    assert_ne!(rig.lease().slot(), old.slot());
    rig.release(old, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Age]);
}

#[test]
fn an_idle_connection_of_age_goes_without_replacement_where_another_is_free() {
    let mut rig = Rig::connected(Config { age_max: Some(ms(1_000)), ..small(4) }, 2);
    rig.pass(960);
    assert_eq!(rig.closed(), [CloseReason::Age]);
    assert_eq!(rig.dials.len(), 1, "for the last one");
}

#[test]
fn age_max_retires_even_where_the_replacement_fails() {
    let mut rig = Rig::connected(Config { age_max: Some(ms(10_000)), ..small(2) }, 1);
    rig.pass(9_500);
    rig.dialed(Err(Cause::Refused));
    rig.pass(300);
    assert!(rig.closed().is_empty());
    rig.pass(300);
    assert_eq!(rig.closed(), [CloseReason::Age]);
}

#[test]
fn a_failed_replacement_is_tried_again_in_time() {
    let mut rig = Rig::connected(Config { age_max: Some(ms(60_000)), ..small(2) }, 1);
    rig.pass(57_000);
    rig.dialed(Err(Cause::Refused));
    rig.pass(1_500);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.closed(), [CloseReason::Age]);
    assert_eq!(rig.snapshot().idle, 1);
}

#[test]
fn age_max_holds_for_the_only_connection_there_may_be() {
    let mut rig = Rig::connected(Config { age_max: Some(ms(1_000)), ..small(1) }, 1);
    rig.pass(990);
    assert_eq!((rig.closed().len(), rig.dials.len()), (0, 0), "there is no room for another");
    rig.pass(10);
    assert_eq!(rig.closed(), [CloseReason::Age]);
}

#[test]
fn a_full_pool_of_one_age_does_not_retire_all_at_once() {
    let mut rig = Rig::new(Config { age_max: Some(ms(10_000)), ..small(8) });
    rig.tickets(8);
    rig.dialed_all(Ok(ANY));
    let mut leases: Vec<_> = (0..8).map(|_| rig.granted()).collect();
    rig.pass(9_500);
    assert_eq!(rig.snapshot().draining, 7, "spread over a seventh of the age");
    assert_eq!(rig.snapshot().busy, 1);
    leases.drain(..).for_each(|lease| rig.release(lease, Outcome::Good));
    assert_eq!(rig.closed(), [CloseReason::Age; 7]);
}

#[test]
fn busy_fifo_traffic_still_reaches_age_max() {
    for capacity in [1, 10] {
        let config = Config { order: IdleOrder::Fifo, age_max: Some(ms(1_000)), ..shared(4, capacity) };
        let mut rig = Rig::connected(config, 2);
        let mut held = VecDeque::new();
        for _ in 0..200 {
            rig.pass(10);
            while !rig.dials.is_empty() {
                rig.dialed(Ok(ANY));
            }
            held.push_back(rig.lease());
            if held.len() > 1 {
                rig.release(held.pop_front().unwrap(), Outcome::Good);
            }
        }
        let old = rig.snapshot().counters.closes(CloseReason::Age);
        assert!(old >= 2, "{old} retired at capacity {capacity}");
    }
}

#[test]
fn busy_fifo_traffic_still_shrinks() {
    for (order, capacity) in [(IdleOrder::Fifo, 1), (IdleOrder::Fifo, 10), (IdleOrder::Random, 10)] {
        let config = Config { order, idle_timeout: Some(ms(1_000)), ..shared(16, capacity) };
        let mut rig = Rig::connected(config, 16);
        let mut held = VecDeque::new();
        for _ in 0..2_000 {
            rig.pass(5);
            held.push_back(rig.lease());
            if held.len() > 8 {
                rig.release(held.pop_front().unwrap(), Outcome::Good);
            }
        }
        let needed = 9_u32.div_ceil(capacity);
        let left = rig.snapshot().ready + rig.snapshot().busy;
        assert!((needed..=needed + 1).contains(&left), "{left} left, {order:?}, capacity {capacity}");
        assert!(rig.snapshot().counters.closes(CloseReason::Surplus) > 0);
    }
}

#[test]
fn shrinking_keeps_the_headroom() {
    let config = Config { order: IdleOrder::Fifo, idle_timeout: Some(ms(1_000)), ..shared(16, 10) };
    let mut rig = Rig::connected(config, 8);
    rig.configure(|config| config.headroom_percent = 400);
    let _held: Vec<_> = (0..20).map(|_| rig.lease()).collect();
    rig.pass(10_000);
    assert_eq!((rig.snapshot().counters.closes(CloseReason::Surplus), rig.dials.len()), (0, 0));
}

#[test]
fn uses_max_ends_a_connection_after_so_many_leases() {
    for uses_max in [1, 3] {
        let mut rig = Rig::new(Config { uses_max: Some(uses_max), ..small(1) });
        rig.ticket(1_000);
        rig.dialed(Ok(ANY));
        let lease = rig.granted();
        rig.release(lease, Outcome::Good);
        for _ in 1..uses_max {
            assert!(rig.closed().is_empty());
            rig.serve(Outcome::Good);
        }
        assert_eq!(rig.closed(), [CloseReason::Uses]);
    }
}

#[test]
fn uses_of_a_lease_that_was_lent_on_count() {
    let mut rig = Rig::connected(Config { uses_max: Some(10), ..shared(1, 2) }, 1);
    let before = rig.snapshot();
    assert_eq!(before.connections(), 1);
    let (lease, other) = (rig.lease(), rig.lease());
    let (until, uses) = rig.engine.terms(&lease);
    assert_eq!((until, uses), (Instant::MAX, 6), "two to connect, two now");
    rig.engine.note_uses(lease.slot(), 6);
    rig.release(other, Outcome::Good);
    assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_none(), "it has served all that it may");
    assert_eq!(rig.engine.terms(&lease), (Instant::ZERO, 0));
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Uses]);
}

#[test]
fn terms_never_outlive_age_and_are_nothing_on_a_connection_that_goes() {
    let mut rig = Rig::connected(Config { age_max: Some(ms(500)), ..small(1) }, 1);
    let lease = rig.lease();
    let (until, uses) = rig.engine.terms(&lease);
    assert!(until <= rig.now + ms(500) && uses == u64::MAX);
    rig.engine.handle_goodbye(rig.now, lease.slot());
    assert_eq!(rig.engine.terms(&lease), (Instant::ZERO, 0));
}

#[test]
fn goodbye_lets_leases_finish_and_gives_no_more() {
    let mut rig = Rig::connected(shared(2, 2), 1);
    let lease = rig.lease();
    rig.engine.handle_goodbye(rig.now, lease.slot());
    rig.settle();
    let ticket = rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let (granted, new) = rig.grants.pop_front().unwrap();
    assert!(granted == ticket && new.slot() != lease.slot());
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Goodbye]);
}

#[test]
fn goodbye_to_an_idle_connection_closes_it() {
    let mut rig = Rig::connected(small(2), 1);
    let lease = rig.lease();
    let slot = lease.slot();
    rig.release(lease, Outcome::Good);
    rig.engine.handle_goodbye(rig.now, slot);
    rig.settle();
    assert_eq!(rig.closed(), [CloseReason::Goodbye]);
}

#[test]
fn outcomes_keep_or_end_the_connection() {
    let upstream = Cause::Timeout;
    for (outcome, ends) in [
        (Outcome::Good, None),
        (Outcome::Unused, None),
        (Outcome::Failed(upstream), None),
        (Outcome::GoodLast, Some(CloseReason::Goodbye)),
        (Outcome::Broken(upstream), Some(CloseReason::Broken)),
        (Outcome::Abandoned, Some(CloseReason::Abandoned)),
    ] {
        let mut rig = Rig::connected(small(1), 1);
        rig.serve(outcome);
        assert_eq!(rig.closed(), ends.into_iter().collect::<Vec<_>>(), "{outcome:?}");
    }
}

#[test]
fn the_peer_may_lower_and_raise_the_capacity_of_a_connection() {
    let mut rig = Rig::connected(shared(1, 4), 1);
    let first = rig.lease();
    rig.engine.handle_capacity(rig.now, first.slot(), 2);
    let _second = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.engine.handle_capacity(rig.now, first.slot(), 3);
    rig.settle();
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
    rig.engine.handle_capacity(rig.now, first.slot(), 100);
    let _fourth = rig.lease();
    rig.ticket(1_000);
    assert!(rig.grants.is_empty(), "the policy says four");
}

use super::*;

#[test]
fn a_removed_endpoint_drains_or_closes() {
    for (removal, left) in [(Removal::Drain, 1), (Removal::Close, 0)] {
        let mut rig = Rig::connected(small(3), 2);
        let held = rig.lease();
        rig.engine.remove_endpoint(rig.now, rig.endpoint, removal);
        rig.settle();
        let snapshot = rig.engine.snapshot(rig.now, rig.endpoint);
        assert_eq!(
            snapshot.map_or(0, |s| s.connections()),
            left,
            "{removal:?}: an idle one is closed at once"
        );
        assert!(matches!(rig.refused(1_000), Refusal::Leaving | Refusal::NoEndpoint));
        rig.release(held, Outcome::Good);
        assert_eq!(rig.closed(), [CloseReason::Drain; 2]);
        assert_eq!(rig.engine.endpoint_ids().count(), 0);
        assert_eq!(rig.refused(1_000), Refusal::NoEndpoint);
    }
}

#[test]
fn a_renewed_endpoint_lets_go_of_its_connections_and_counts_on() {
    let mut rig = Rig::connected(small(3), 2);
    let held = rig.lease();
    rig.engine.renew_endpoint(rig.now, rig.endpoint);
    rig.settle();
    assert_eq!(rig.closed(), [CloseReason::Drain], "an idle one is closed at once");
    rig.release(held, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Drain], "another one when it is given back");
    assert_eq!((rig.snapshot().connections(), rig.snapshot().counters.dials_succeeded), (0, 2));
    let ticket = rig.ticket(1_000);
    rig.engine.renew_endpoint(rig.now, rig.endpoint);
    rig.settle();
    assert_eq!(rig.failures.pop_front(), Some((ticket, TicketError::Leaving)));
    rig.dialed(Ok(ANY));
    let lease = rig.lease();
    assert_eq!(rig.snapshot().counters.dials_succeeded, 3);
    rig.release(lease, Outcome::Good);
}

#[test]
fn tickets_of_a_removed_endpoint_are_told() {
    let mut rig = Rig::new(small(1));
    let ticket = rig.ticket(1_000);
    rig.engine.remove_endpoint(rig.now, rig.endpoint, Removal::Drain);
    rig.settle();
    assert_eq!(rig.failures.pop_front(), Some((ticket, TicketError::Leaving)));
    rig.dialed(Ok(ANY));
    assert_eq!(rig.closed(), [CloseReason::Drain], "a dial that ends late is closed");
    assert!(rig.engine.endpoint_ids().next().is_none());
}

#[test]
fn a_drain_closes_idle_ones_and_waits_for_the_others() {
    let mut rig = Rig::connected(shared(3, 2), 2);
    let (one, two) = (rig.lease(), rig.lease());
    rig.engine.drain(rig.now);
    rig.settle();
    assert_eq!((rig.closed().len(), rig.snapshot().draining), (1, 1));
    assert_eq!(rig.refused(1_000), Refusal::Leaving);
    rig.release(one, Outcome::Good);
    assert!(!rig.engine.is_empty());
    rig.release(two, Outcome::Good);
    assert!(rig.engine.is_empty());
}

#[test]
fn close_all_ends_a_drain_and_late_leases_change_nothing() {
    let permits = Permits::alone(3, 0);
    let mut rig = Rig::with_permits(small(3), permits.clone());
    rig.connect(2);
    let held = rig.lease();
    rig.engine.drain(rig.now);
    rig.settle();
    rig.engine.close_all(rig.now);
    rig.settle();
    assert_eq!(rig.closed(), [CloseReason::Drain; 2]);
    rig.release(held, Outcome::Broken(Cause::Reset));
    assert!(rig.engine.is_empty() && rig.engine.endpoint_ids().next().is_none());
    assert_eq!(permits.connections.used(), 0);
}

#[test]
fn an_endpoint_added_to_a_draining_engine_goes_as_it_came() {
    let mut rig = Rig::new(small(1));
    rig.engine.drain(rig.now);
    rig.settle();
    let config = Config { connections_min: 1, ..small(1) };
    let late = rig.engine.add_endpoint(rig.now, config, Permits::alone(1, 0)).unwrap();
    rig.settle();
    assert!(rig.dials.is_empty() && rig.engine.endpoint_ids().next().is_none());
    assert_eq!(rig.engine.acquire(rig.now, late, rig.now), Acquired::Refused(Refusal::NoEndpoint));
}

#[test]
fn churn_never_confuses_names() {
    let mut rig = Rig::connected(small(2), 1);
    let (old, lease) = (rig.endpoint, rig.lease());
    let slot = lease.slot();
    rig.engine.remove_endpoint(rig.now, old, Removal::Close);
    rig.settle();
    let new = rig.engine.add_endpoint(rig.now, small(2), Permits::alone(2, 0)).unwrap();
    assert!(new != old && new.index() == old.index());
    rig.endpoint = new;
    rig.connect(1);
    let before = rig.snapshot();

    rig.release(lease, Outcome::Broken(Cause::Reset));
    rig.engine.handle_closed(rig.now, slot);
    rig.engine.handle_goodbye(rig.now, slot);
    rig.engine.handle_capacity(rig.now, slot, 9);
    rig.engine.handle_dialed(rig.now, slot, Err(Cause::Refused));
    rig.engine.note_uses(slot, 9);
    rig.engine.handle_probed(rig.now, old, Err(Cause::Timeout));
    rig.engine.handle_idle_timeout(rig.now, old, ms(1));
    rig.engine.remove_endpoint(rig.now, old, Removal::Close);
    rig.settle();
    let after = rig.snapshot();
    assert_eq!(
        (after.connections(), after.idle, after.in_use, after.last_failure, after.idle_timeout),
        (before.connections(), before.idle, before.in_use, before.last_failure, before.idle_timeout)
    );
}

#[test]
fn news_of_a_slot_s_past_changes_nothing() {
    let mut rig = Rig::connected(small(1), 1);
    let lease = rig.lease();
    let old = lease.slot();
    rig.release(lease, Outcome::Abandoned);
    rig.connect(1);
    let lease = rig.lease();
    assert_eq!((lease.slot().index(), lease.slot().generation()), (old.index(), old.generation() + 1));
    rig.peer_closes(old);
    rig.engine.handle_goodbye(rig.now, old);
    rig.engine.handle_dialed(rig.now, lease.slot(), Err(Cause::Refused));
    rig.settle();
    assert_eq!((rig.snapshot().busy, rig.snapshot().in_use), (1, 1));
}

#[test]
fn a_connection_closed_twice_counts_once() {
    let permits = Permits::alone(2, 0);
    let mut rig = Rig::with_permits(small(2), permits.clone());
    rig.connect(1);
    let lease = rig.lease();
    let slot = lease.slot();
    rig.closes_at_once = false;
    rig.release(lease, Outcome::Abandoned);
    rig.peer_closes(slot);
    rig.peer_closes(slot);
    assert_eq!((permits.connections.used(), rig.closed().len()), (0, 1));
}

#[test]
fn a_replacement_that_finds_its_old_one_closed_by_idle_max_closes_nothing_twice() {
    // idle_max closed the old one to make room for the new, and then it was retired by age as well.
    let config = Config { age_max: Some(ms(1_000)), idle_max: 1, ..small(3) };
    let mut rig = Rig::connected(config, 1);
    rig.closes_at_once = false;
    rig.pass(960);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.closed().len(), 1);
    assert_eq!((rig.snapshot().idle, rig.snapshot().closed), (1, 1));
}

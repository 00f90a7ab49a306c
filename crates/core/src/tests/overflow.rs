use super::*;

fn full(overflow: Overflow, temporary_max: u32) -> (Rig, Lease) {
    let mut rig = Rig::connected(Config { overflow, temporary_max, ..small(1) }, 1);
    let lease = rig.lease();
    (rig, lease)
}

#[test]
fn a_full_pool_waits_by_default() {
    let (mut rig, _held) = full(Overflow::Wait, 0);
    rig.ticket(1_000);
    assert!(rig.dials.is_empty());
}

#[test]
fn a_full_pool_refuses_where_the_policy_says_so() {
    let (mut rig, held) = full(Overflow::Reject, 0);
    assert_eq!(rig.refused(1_000), Refusal::Full { in_use: 1, denied: Denied::Connections });
    assert_eq!(rig.count(AcquireOutcome::Rejected), 1);
    rig.release(held, Outcome::Good);
    rig.serve(Outcome::Good);
}

#[test]
fn refusing_waits_for_dials_that_have_room_and_no_longer() {
    let mut rig = Rig::new(Config { overflow: Overflow::Reject, ..shared(1, 2) });
    rig.ticket(1_000);
    rig.ticket(1_000);
    assert!(matches!(rig.refused(1_000), Refusal::Full { .. }));
}

#[test]
fn a_full_pool_dials_a_temporary_connection_where_the_policy_says_so() {
    let (mut rig, _held) = full(Overflow::Temporary, 1);
    rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    let lease = rig.granted();
    assert!(lease.is_temporary());
    assert_eq!((rig.snapshot().temporary, rig.count(AcquireOutcome::Temporary)), (1, 1));
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.closed(), [CloseReason::Temporary]);
}

#[test]
fn temporary_max_bounds_temporary_connections_and_then_one_waits() {
    let (mut rig, _held) = full(Overflow::Temporary, 2);
    let tickets = [rig.ticket(1_000), rig.ticket(1_000), rig.ticket(1_000)];
    assert_eq!(rig.dials.len(), 2);
    rig.dialed(Ok(ANY));
    rig.dialed(Ok(ANY));
    assert_eq!((rig.grants.len(), rig.snapshot().waiting), (2, 1));
    let (first, lease) = rig.grants.pop_front().unwrap();
    assert_eq!(first, tickets[0]);
    rig.grants.clear();
    // Nobody dialled for it when the first one ended, and it starved while the pool was busy.
    rig.release(lease, Outcome::Good);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, tickets[2]);
}

#[test]
fn a_temporary_connection_that_failed_is_dialled_again() {
    let (mut rig, _held) = full(Overflow::Temporary, 1);
    let ticket = rig.ticket(60_000);
    rig.dialed(Err(Cause::Refused));
    rig.pass(1_000);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn a_temporary_connection_that_nobody_wants_any_more_is_closed() {
    let (mut rig, _held) = full(Overflow::Temporary, 1);
    let ticket = rig.ticket(1_000);
    rig.cancel(ticket);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.closed(), [CloseReason::Temporary]);
    assert_eq!(rig.snapshot().connections(), 1);
}

#[test]
fn temporary_connections_take_permits_of_their_own_and_of_the_machine() {
    let mut permits = Permits::alone(1, 2);
    let descriptors = std::sync::Arc::new(Ledger::resource(100));
    permits.budget.descriptors = Some(descriptors.clone());
    let config = Config { overflow: Overflow::Temporary, temporary_max: 2, ..small(1) };
    let mut rig = Rig::with_permits(config, permits.clone());
    rig.connect(1);
    let _held = rig.lease();
    rig.ticket(1_000);
    assert_eq!((permits.connections.used(), permits.temporary.used(), descriptors.used()), (1, 1, 2));
    rig.dialed(Ok(ANY));
    let lease = rig.granted();
    rig.release(lease, Outcome::Good);
    assert_eq!((permits.connections.used(), permits.temporary.used(), descriptors.used()), (1, 0, 1));
}

#[test]
fn a_temporary_connection_carries_one_request_whatever_the_peer_allows() {
    let config = Config { overflow: Overflow::Temporary, temporary_max: 1, ..shared(1, 2) };
    let mut rig = Rig::connected(config, 1);
    let _held = [rig.lease(), rig.lease()];
    rig.ticket(1_000);
    rig.ticket(1_000);
    let slot = rig.dialed(Ok(100));
    assert_eq!(rig.grants.len(), 1);
    rig.engine.handle_capacity(rig.now, slot, 50);
    rig.settle();
    assert_eq!(rig.grants.len(), 1, "more streams would make it serve more than once");
}

use super::*;

#[test]
fn returned_connection_goes_to_the_oldest_waiter() {
    let mut rig = Rig::connected(small(1), 1);
    let held = rig.lease();
    let (first, second) = (rig.ticket(1_000), rig.ticket(1_000));
    rig.release(held, Outcome::Good);
    let (ticket, lease) = rig.grants.pop_front().unwrap();
    assert_eq!(ticket, first);
    assert!(rig.grants.is_empty());
    rig.release(lease, Outcome::Good);
    assert_eq!(rig.grants.pop_front().unwrap().0, second);
    assert_eq!(rig.count(AcquireOutcome::Waited), 2);
}

#[test]
fn nobody_barges_in_while_somebody_waits() {
    let mut rig = Rig::connected(shared(1, 2), 1);
    let (one, two) = (rig.lease(), rig.lease());
    let ticket = rig.ticket(1_000);
    assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_none());
    let late = rig.ticket(1_000);
    rig.release(one, Outcome::Good);
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
    rig.release(two, Outcome::Good);
    assert_eq!(rig.grants.pop_front().unwrap().0, late);
}

#[test]
fn a_discarded_connection_is_replaced_for_those_who_wait() {
    let mut rig = Rig::connected(small(1), 1);
    let held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.release(held, Outcome::Broken(Cause::Reset));
    assert_eq!(rig.closed(), [CloseReason::Broken]);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn a_connection_closed_by_the_peer_is_replaced_for_those_who_wait() {
    let mut rig = Rig::connected(small(1), 1);
    let held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.peer_closes(held.slot());
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
    rig.release(held, Outcome::Good);
    assert_eq!(rig.snapshot().in_use, 1, "a lease on what is gone gives nothing back");
}

#[test]
fn a_failed_dial_is_tried_again_for_those_who_wait() {
    let mut rig = Rig::connected(small(2), 1);
    let _held = rig.lease();
    let ticket = rig.ticket(60_000);
    rig.dialed(Err(Cause::Refused));
    assert!(rig.dials.is_empty(), "after a failure comes a pause");
    rig.pass(50);
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn when_no_connection_is_left_to_wait_for_all_tickets_hear_why() {
    let mut rig = Rig::new(small(1));
    let tickets = [rig.ticket(60_000), rig.ticket(60_000)];
    rig.dialed(Err(Cause::Refused));
    for ticket in tickets {
        assert_eq!(rig.failures.pop_front(), Some((ticket, TicketError::Dial(Cause::Refused))));
    }
}

#[test]
fn a_dial_that_somebody_called_off_fails_nobody() {
    let mut rig = Rig::new(small(1));
    let ticket = rig.ticket(60_000);
    rig.dialed(Err(Cause::Cancelled));
    assert!(rig.failures.is_empty());
    rig.dialed(Ok(ANY));
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn waiters_max_bounds_the_line() {
    for waiters_max in [1, 3] {
        let mut rig = Rig::connected(Config { waiters_max, ..small(1) }, 1);
        let _held = rig.lease();
        for _ in 0..waiters_max {
            rig.ticket(1_000);
        }
        assert_eq!(rig.refused(1_000), Refusal::LineFull { waiters: waiters_max, in_use: 1 });
    }
}

#[test]
fn a_deadline_says_who_was_in_the_way() {
    let mut rig = Rig::connected(small(2), 1);
    let _held = rig.lease();
    let impatient = rig.ticket(20);
    rig.ticket(1_000);
    rig.dialed(Err(Cause::Reset));
    rig.pass(19);
    assert!(rig.failures.is_empty());
    let connecting = rig.dials.len() as u32;
    rig.pass(1);
    let (ticket, error) = rig.failures.pop_front().unwrap();
    assert_eq!(ticket, impatient);
    assert_eq!(error, TicketError::Timeout { waiters: 1, in_use: 1, connecting, last: Some(Cause::Reset) });
    assert_eq!(rig.count(AcquireOutcome::Timeout), 1);
}

#[test]
fn no_time_left_is_said_at_once_unless_a_slot_is_free() {
    let mut rig = Rig::connected(small(1), 1);
    let Acquired::Lease(_held) = rig.acquire(0) else { panic!("a free slot takes no time") };
    assert_eq!(rig.refused(0), Refusal::Deadline { in_use: 1 });
}

#[test]
fn a_ticket_cancelled_before_its_dial_ends_leaves_the_connection_to_the_next() {
    let mut rig = Rig::new(small(1));
    let ticket = rig.ticket(1_000);
    assert!(rig.cancel(ticket));
    assert!(!rig.cancel(ticket), "a cancelled ticket waits no more");
    rig.dialed(Ok(ANY));
    assert!(rig.grants.is_empty());
    assert!(rig.lease().is_fresh());
    assert_eq!(rig.count(AcquireOutcome::Cancelled), 1);
}

#[test]
fn a_ticket_cancelled_after_its_failed_dial_leaves_nothing_behind() {
    let mut rig = Rig::connected(small(2), 1);
    let held = rig.lease();
    let ticket = rig.ticket(1_000);
    rig.dialed(Err(Cause::Refused));
    assert!(rig.cancel(ticket));
    rig.pass(10_000);
    assert!(rig.dials.is_empty(), "nobody wants it any more");
    rig.release(held, Outcome::Good);
    assert_eq!((rig.snapshot().connections(), rig.snapshot().idle), (1, 1));
}

#[test]
fn a_ticket_cancelled_after_its_grant_gives_the_lease_back_unused() {
    let mut rig = Rig::new(small(1));
    let (ticket, next) = (rig.ticket(1_000), rig.ticket(1_000));
    rig.dialed(Ok(ANY));
    assert!(!rig.cancel(ticket), "it was granted already");
    let (granted, lease) = rig.grants.pop_front().unwrap();
    assert_eq!(granted, ticket);
    rig.release(lease, Outcome::Unused);
    assert_eq!(rig.grants.pop_front().unwrap().0, next);
    assert!(rig.closed().is_empty());
}

#[test]
fn the_middle_of_the_line_may_leave() {
    let mut rig = Rig::connected(small(1), 1);
    let held = rig.lease();
    let (a, b, c) = (rig.ticket(1_000), rig.ticket(1_000), rig.ticket(1_000));
    assert!(rig.cancel(b));
    rig.release(held, Outcome::Good);
    let (first, lease) = rig.grants.pop_front().unwrap();
    rig.release(lease, Outcome::Good);
    assert_eq!((first, rig.grants.pop_front().unwrap().0), (a, c));
}

#[test]
fn a_released_unit_of_a_shared_connection_serves_one_waiter() {
    let mut rig = Rig::connected(shared(1, 3), 1);
    let mut leases: Vec<_> = (0..3).map(|_| rig.lease()).collect();
    let ticket = rig.ticket(1_000);
    rig.release(leases.pop().unwrap(), Outcome::Good);
    assert_eq!(rig.grants.pop_front().unwrap().0, ticket);
    assert_eq!(rig.snapshot().in_use, 3);
}

#[test]
fn a_lease_is_fresh_on_a_connection_that_never_carried_one() {
    let mut rig = Rig::new(shared(1, 2));
    rig.ticket(1_000);
    rig.ticket(1_000);
    rig.dialed(Ok(ANY));
    assert!(rig.granted().is_fresh());
    assert!(!rig.granted().is_fresh());
    assert_eq!((rig.count(AcquireOutcome::Fresh), rig.count(AcquireOutcome::Waited)), (1, 1));
}

#[test]
fn try_acquire_never_waits_and_never_dials() {
    let mut rig = Rig::new(small(2));
    assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_none());
    rig.settle();
    assert!(rig.dials.is_empty());
    rig.connect(1);
    assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_some());
    assert!(rig.engine.try_acquire(rig.now, rig.endpoint).is_none());
}

#[test]
fn a_full_pool_says_so_once_a_second_while_more_is_wanted() {
    let mut rig = Rig::connected(small(2), 2);
    let held = [rig.lease(), rig.lease()];
    let told = |rig: &Rig| {
        rig.events.iter().filter(|event| matches!(event, Event::Full { connections: 2, .. })).count()
    };
    assert_eq!(told(&rig), 0, "nobody wanted more");
    rig.tickets(5);
    assert_eq!(told(&rig), 1);
    rig.pass(3_000);
    rig.tickets(5);
    assert_eq!(told(&rig), 2);
    held.into_iter().for_each(|lease| rig.release(lease, Outcome::Good));
}

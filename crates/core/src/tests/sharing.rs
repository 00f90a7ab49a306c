//! Several engines, one limit: what stands idle at one goes to who waits at another.

use std::sync::Arc;

use super::*;

/// Two workers that share the limit of one endpoint.
struct Pair {
    a: Rig,
    b: Rig,
    connections: Arc<Ledger>,
}

impl Pair {
    fn new(config: Config) -> Self {
        let permits = Permits::alone(config.connections_max, config.temporary_max);
        let connections = Arc::clone(&permits.connections);
        let (a, b) = (Rig::with_permits(config, permits.clone()), Rig::with_permits(config, permits));
        Self { a, b, connections }
    }

    /// Lets a millisecond pass at both, again and again.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis {
            self.a.pass(1);
            self.b.pass(1);
        }
    }
}

#[test]
fn who_waits_here_gets_what_stands_idle_there() {
    let mut pair = Pair::new(small(4));
    pair.a.connect(4);
    pair.b.tickets(2);
    assert!(pair.b.dials.is_empty(), "four of four are taken");
    pair.pass(60);
    assert_eq!(pair.a.closed(), [CloseReason::Reclaimed; 2], "as many as are wanted, and no more");
    assert_eq!(pair.b.dials.len(), 2);
    pair.b.dialed_all(Ok(ANY));
    assert_eq!((pair.b.grants.len(), pair.connections.used()), (2, 4));
    pair.pass(2_000);
    assert!(pair.a.closed().is_empty() && pair.b.closed().is_empty(), "nobody waits any more");
}

#[test]
fn a_connection_that_comes_back_goes_to_who_waits_there() {
    let mut pair = Pair::new(small(1));
    pair.a.connect(1);
    let lease = pair.a.lease();
    let ticket = pair.b.ticket(1_000);
    pair.pass(20);
    assert!(pair.b.dials.is_empty());
    pair.a.release(lease, Outcome::Good);
    assert_eq!(pair.a.closed(), [CloseReason::Reclaimed], "at once");
    pair.pass(6);
    pair.b.dialed(Ok(ANY));
    assert_eq!(pair.b.grants.pop_front().unwrap().0, ticket);
}

#[test]
fn warm_connections_give_way_and_come_back_later() {
    let mut pair = Pair::new(Config { connections_min: 2, ..small(2) });
    pair.a.dialed_all(Ok(ANY));
    assert_eq!(pair.a.snapshot().idle, 2);
    let ticket = pair.b.ticket(1_000);
    pair.pass(60);
    assert_eq!(pair.a.closed(), [CloseReason::Reclaimed]);
    assert!(pair.a.dials.is_empty(), "who keeps warm takes nothing from who waits");
    pair.b.dialed(Ok(ANY));
    let (granted, lease) = pair.b.grants.pop_front().unwrap();
    assert_eq!(granted, ticket);
    pair.b.release(lease, Outcome::Broken(Cause::Reset));
    pair.pass(2_500);
    assert_eq!(pair.a.dials.len() + pair.b.dials.len(), 1, "when nobody waits, one of them is warm again");
}

#[test]
fn who_gives_up_wants_nothing_any_more() {
    let mut pair = Pair::new(small(1));
    let lease = {
        pair.a.connect(1);
        pair.a.lease()
    };
    let ticket = pair.b.ticket(10_000);
    pair.pass(10);
    pair.b.cancel(ticket);
    pair.pass(10);
    pair.a.release(lease, Outcome::Good);
    pair.pass(100);
    assert!(pair.a.closed().is_empty());
    // Nor does an engine that is gone.
    let lease = pair.a.lease();
    pair.b.ticket(10_000);
    pair.pass(10);
    pair.b.engine.drain(pair.b.now);
    pair.b.settle();
    pair.a.release(lease, Outcome::Good);
    pair.a.pass(100);
    assert!(pair.a.closed().is_empty());
}

#[test]
fn who_shares_a_limit_looks_seldom_while_it_is_far() {
    let mut pair = Pair::new(small(100));
    pair.a.connect(2);
    let mut wakes = 0;
    let end = pair.a.now + ms(10_000);
    while let Some(due) = pair.a.engine.next_timeout().filter(|due| *due < end) {
        pair.a.now = due;
        pair.a.engine.handle_timeout(due);
        pair.a.settle();
        wakes += 1;
    }
    assert!(wakes <= 11, "{wakes} times in ten seconds");
    drop(pair.b);
}

#[test]
fn who_is_alone_never_looks() {
    let mut rig = Rig::connected(small(2), 2);
    rig.pass(2_000);
    assert_eq!(rig.engine.next_timeout(), None);
}

//! Connections with a stream for each query.

use std::time::Duration;

use forebay_core::{BreakerState, Cause, SlotId};

use super::world::{OK, World, answer_to, config, id, rcode, udp};
use crate::testing::Message;

/// So many endpoints that are spoken to over streams alone.
fn world(endpoints: usize) -> World {
    let mut settings = config(endpoints);
    settings.upstreams[0].endpoints.iter_mut().for_each(|endpoint| endpoint.datagram = None);
    World::new(settings)
}

fn ask(world: &mut World, n: u16) {
    world.ask(udp(n), &Message::query(&format!("n{n}.test"), 1));
}

fn unanswered(world: &mut World, slot: SlotId, query: &[u8], cause: Option<Cause>) {
    let World { forwarder, mail, now, .. } = world;
    forwarder.handle_unanswered(*now, slot, id(query), cause, mail);
    world.settle();
}

#[test]
fn a_stream_that_failed_is_asked_at_the_next_endpoint_and_its_connection_stays() {
    let mut world = world(2);
    ask(&mut world, 1);
    ask(&mut world, 2);
    let (slot, second) = world.mail.sent.pop().unwrap();
    let (_, first) = world.mail.sent.pop().unwrap();
    unanswered(&mut world, slot, &first, Some(Cause::Refused));
    let (other, again) = world.one_sent();
    assert_eq!(world.links[&other].0, 1);
    world.answer(other, &answer_to(&again, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    world.answer(slot, &answer_to(&second, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0, "the other query on the connection is not harmed");
    let failures = world.forwarder.pools(world.now).map(|(_, _, pool)| pool.last_failure).collect::<Vec<_>>();
    assert_eq!(failures[0], Some(Cause::Refused));
}

#[test]
fn a_stream_that_the_peer_never_looked_at_is_asked_anew_and_nobody_is_to_blame() {
    let mut world = world(2);
    ask(&mut world, 1);
    let (slot, query) = world.one_sent();
    let World { forwarder, mail, now, .. } = &mut world;
    forwarder.handle_goodbye(*now, slot, mail);
    unanswered(&mut world, slot, &query, None);
    let (fresh, again) = world.one_sent();
    assert_ne!(fresh, slot, "a connection that said goodbye takes no more");
    assert_eq!(world.links[&fresh].0, 0, "the endpoint is as good as it was");
    assert!(!world.links.contains_key(&slot), "nothing is out on it any more: it is closed");
    world.answer(fresh, &answer_to(&again, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    assert_eq!(world.forwarder.counters().replays, 1);
    let (_, _, pool) = world.forwarder.pools(world.now).next().unwrap();
    assert_eq!((pool.last_failure, pool.breaker), (None, BreakerState::Closed));
}

#[test]
fn peers_that_never_look_are_not_asked_for_ever() {
    let mut world = world(1);
    ask(&mut world, 1);
    for _ in 0..20 {
        let Some((slot, query)) = world.mail.sent.pop() else { break };
        unanswered(&mut world, slot, &query, None);
    }
    assert_eq!(rcode(&world.one_reply().1), 2);
    assert!(world.forwarder.is_idle());
}

#[test]
fn an_end_of_a_query_that_nobody_waits_for_changes_nothing() {
    let mut world = world(1);
    ask(&mut world, 1);
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    world.one_reply();
    unanswered(&mut world, slot, &query, Some(Cause::Reset));
    unanswered(&mut world, slot, &[0, 0], None);
    assert!(world.mail.sent.is_empty() && world.mail.replies.is_empty());
    assert_eq!(world.forwarder.counters().retries + world.forwarder.counters().replays, 0);
}

#[test]
fn a_connection_carries_no_more_than_its_peer_allows() {
    let mut world = world(1);
    ask(&mut world, 0);
    let (slot, query) = world.one_sent();
    let World { forwarder, mail, now, .. } = &mut world;
    forwarder.handle_capacity(*now, slot, 2, mail);
    (1..6).for_each(|n| ask(&mut world, n));
    let on_it = 1 + world.mail.sent.iter().filter(|(other, _)| *other == slot).count();
    assert_eq!(on_it, 2, "the rest goes to other connections or waits");
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    while let Some((slot, query)) = world.mail.sent.pop() {
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    world.pass(Duration::from_millis(10));
    assert_eq!(world.mail.replies.len(), 6);
}

#[test]
fn it_is_told_whether_a_message_answers_anything() {
    let mut world = world(1);
    ask(&mut world, 1);
    let (slot, query) = world.one_sent();
    let World { forwarder, mail, now, .. } = &mut world;
    let mut other = answer_to(&query, OK).a(60).0;
    other[14] ^= 1;
    assert!(!forwarder.handle_answer(*now, slot, &other, mail), "another's question");
    assert!(forwarder.handle_answer(*now, slot, &answer_to(&query, OK).a(60).0, mail));
}

#[test]
fn a_reset_of_many_at_once_counts_against_none_of_them() {
    let mut world = world(1);
    ask(&mut world, 1);
    ask(&mut world, 2);
    for round in 0..4 {
        // The pause after a failure is over.
        world.pass(Duration::from_millis(300));
        let slot = world.mail.sent[0].0;
        assert!(world.mail.sent.iter().all(|sent| sent.0 == slot), "{round}: both on one connection");
        assert_eq!(std::mem::take(&mut world.mail.sent).len(), 2, "{round}");
        world.close(slot, Some(Cause::Reset));
    }
    world.pass(Duration::from_millis(300));
    let (slot, first) = world.mail.sent.remove(0);
    let (_, second) = world.one_sent();
    world.answer(slot, &answer_to(&first, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    // Alone, it is struck, which is once and no more.
    world.close(slot, Some(Cause::Reset));
    world.pass(Duration::from_millis(300));
    let (slot, again) = world.one_sent();
    assert_eq!(again[12..], second[12..]);
    world.answer(slot, &answer_to(&again, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

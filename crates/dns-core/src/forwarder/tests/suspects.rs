//! Streams that die in silence, answer little, or close early.

use std::collections::HashMap;
use std::time::Duration;

use forebay_core::{Permits, SlotId};

use super::world::{OK, World, answer_to, config, rcode, udp};
use crate::forwarder::{ForwarderConfig, Notice};
use crate::testing::Message;
use crate::wire::option;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn stream_config() -> ForwarderConfig {
    let mut settings = config(1);
    settings.upstreams[0].endpoints[0].datagram = None;
    settings.cache_bytes = 0;
    settings
}

fn good(query: &[u8]) -> Vec<u8> {
    answer_to(query, OK).a(60).0
}

/// Asks one question, and answers it at once. Returns on which connection it went.
fn exchange(world: &mut World, name: &str) -> SlotId {
    world.ask(udp(1), &Message::query(name, 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &good(&query));
    assert_eq!(rcode(&world.one_reply().1), 0);
    slot
}

#[test]
fn a_stream_that_lost_its_other_half_costs_one_attempt_and_a_dial() {
    let mut world = World::new(stream_config());
    let dead = exchange(&mut world, "a.test");
    let began = world.now;
    world.ask(udp(1), &Message::query("b.test", 1));
    assert_eq!(world.one_sent().0, dead);
    world.pass(ms(1005));
    let (fresh, query) = world.one_sent();
    assert_ne!(fresh, dead);
    world.ask(udp(2), &Message::query("c.test", 1));
    assert_eq!(world.one_sent().0, fresh, "the suspect takes nothing new");
    world.answer(fresh, &good(&query));
    assert_eq!(rcode(&world.one_reply().1), 0);
    assert!(world.now.saturating_duration_since(began) < ms(1010));
    assert!(!world.links.contains_key(&dead), "and it is closed");
    assert_eq!(world.dialed, 2);
}

#[test]
fn what_waits_on_a_dead_stream_is_asked_again_as_soon_as_it_is_known_to_be_dead() {
    let mut world = World::new(stream_config());
    exchange(&mut world, "a.test");
    world.ask(udp(1), &Message::query("b.test", 1));
    world.mail.sent.clear();
    world.pass(ms(900));
    world.ask(udp(2), &Message::query("c.test", 1));
    world.mail.sent.clear();
    world.pass(ms(105));
    let (fresh, query) = world.one_sent();
    world.answer(fresh, &good(&query));
    let (slot, query) = world.one_sent();
    assert_eq!(slot, fresh, "c.test does not wait for its own time-out");
    world.answer(fresh, &good(&query));
    assert_eq!(world.mail.replies.len(), 2);
}

#[test]
fn a_suspect_that_answers_is_trusted_again() {
    let mut world = World::new(stream_config());
    let slow = exchange(&mut world, "a.test");
    world.ask(udp(1), &Message::query("b.test", 1));
    let (_, query) = world.one_sent();
    world.pass(ms(1005));
    world.mail.sent.clear();
    world.answer(slow, &good(&query));
    assert_eq!(rcode(&world.one_reply().1), 0);
    world.pass(ms(100));
    assert!(world.links.contains_key(&slow));
    let counters = world.forwarder.counters();
    assert_eq!((counters.suspects, counters.condemned), (1, 0));
    // Two connections with room for sixteen each, and both are used again.
    for n in 0..32 {
        world.ask(udp(n), &Message::query(&format!("c{n}.test"), 1));
    }
    assert!(world.mail.sent.iter().any(|(slot, _)| *slot == slow));
    assert_eq!(world.dialed, 2);
}

#[test]
fn idle_streams_as_old_as_a_suspect_are_not_tried_one_after_the_other() {
    let mut world = World::new(stream_config());
    for n in 0..48 {
        world.ask(udp(n), &Message::query(&format!("a{n}.test"), 1));
    }
    for (slot, query) in std::mem::take(&mut world.mail.sent) {
        world.answer(slot, &good(&query));
    }
    assert_eq!((world.links.len(), world.mail.replies.len()), (3, 48));
    world.mail.replies.clear();
    world.ask(udp(1), &Message::query("b.test", 1));
    let (dead, _) = world.one_sent();
    world.pass(ms(1005));
    let (fresh, query) = world.one_sent();
    assert_eq!(world.dialed, 4, "a fresh one, none of those that have stood");
    world.answer(fresh, &good(&query));
    world.one_reply();
    assert!(!world.links.contains_key(&dead));
    assert_eq!(world.links.len(), 1);
}

#[test]
fn a_slow_name_costs_one_dial_and_no_more() {
    let mut world = World::new(stream_config());
    exchange(&mut world, "a.test");
    world.ask(udp(1), &Message::query("slow.test", 1));
    world.pass(ms(4100));
    assert_eq!(rcode(&world.mail.replies.pop().unwrap().1), 2);
    assert_eq!(world.dialed, 2);
    world.mail.sent.clear();
    exchange(&mut world, "b.test");
    assert!(world.dialed <= 3, "the second was given up too: it had answered nothing for three seconds");
}

#[test]
fn when_there_is_no_room_for_another_the_dead_one_makes_room() {
    let mut settings = stream_config();
    let link = &mut settings.upstreams[0].endpoints[0].stream;
    link.config.connections_max = 1;
    link.permits = Permits::alone(1, 0);
    let mut world = World::new(settings);
    let dead = exchange(&mut world, "a.test");
    for n in 0..3 {
        world.ask(udp(n), &Message::query(&format!("b{n}.test"), 1));
    }
    world.mail.sent.clear();
    world.pass(ms(1020));
    assert!(!world.links.contains_key(&dead));
    assert_eq!(world.mail.sent.len(), 3);
    for (slot, query) in std::mem::take(&mut world.mail.sent) {
        world.answer(slot, &good(&query));
    }
    assert_eq!(world.mail.replies.len(), 3);
}

/// An upstream that answers so many queries on a connection, and then nothing, or closes.
struct Stingy {
    answers: u32,
    closes: bool,
    given: HashMap<SlotId, u32>,
}

impl Stingy {
    fn new(answers: u32, closes: bool) -> Self {
        Self { answers, closes, given: HashMap::new() }
    }

    /// Does what it does with everything that was sent, until nothing more is.
    fn serve(&mut self, world: &mut World) {
        while !world.mail.sent.is_empty() {
            for (slot, query) in std::mem::take(&mut world.mail.sent) {
                let given = self.given.entry(slot).or_default();
                if *given == self.answers || !world.links.contains_key(&slot) {
                    continue;
                }
                *given += 1;
                let last = *given == self.answers;
                world.answer(slot, &good(&query));
                if last && self.closes && world.links.contains_key(&slot) {
                    world.close(slot, None);
                }
            }
        }
    }
}

/// A burst, and then one query after the other, each of which must be answered at once.
fn meet(mut stingy: Stingy, burst: u16) -> World {
    let mut world = World::new(stream_config());
    for n in 0..burst {
        world.ask(udp(n), &Message::query(&format!("a{n}.test"), 1));
    }
    for _ in 0..390 {
        stingy.serve(&mut world);
        world.pass(ms(10));
    }
    let replies = std::mem::take(&mut world.mail.replies);
    assert_eq!(replies.len(), usize::from(burst));
    assert!(replies.iter().all(|(_, reply)| rcode(reply) == 0), "nobody fails");
    for n in 0..20 {
        world.ask(udp(n), &Message::query(&format!("b{n}.test"), 1));
        stingy.serve(&mut world);
        assert_eq!(world.mail.replies.len(), 1, "query {n} is answered at once");
        world.mail.replies.clear();
        world.pass(ms(1));
    }
    world
}

#[test]
fn an_upstream_that_answers_the_first_query_of_a_stream_only_is_learnt() {
    let mut world = meet(Stingy::new(1, false), 40);
    assert_eq!(world.forwarder.poll_notice(), Some((Notice::FewAnswers { answers: 1 }, "upstream 0")));
    assert!(world.dialed <= 40 + 20 + 8, "one for each query, and few to learn it: {}", world.dialed);
}

#[test]
fn an_upstream_that_closes_after_few_answers_is_learnt() {
    for answers in [1, 3] {
        let world = meet(Stingy::new(answers, true), 60);
        let least = 80 / answers;
        assert!((least..=least + 16).contains(&world.dialed), "{answers}: {} dials", world.dialed);
    }
}

#[test]
fn one_query_after_the_other_two_are_late_until_it_is_learnt_and_it_is_forgotten_after_ten_minutes() {
    let mut stingy = Stingy::new(1, false);
    let mut world = World::new(stream_config());
    let ask = |world: &mut World, stingy: &mut Stingy, n: u32| {
        let began = world.now;
        world.ask(udp(1), &Message::query(&format!("a{n}.test"), 1));
        stingy.serve(world);
        while world.mail.replies.is_empty() {
            world.pass(ms(5));
            stingy.serve(world);
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
        let took = world.now.saturating_duration_since(began);
        world.pass(ms(100));
        took
    };
    let late = |world: &mut World, stingy: &mut Stingy, from: u32| {
        (from..from + 20).filter(|n| ask(world, stingy, *n) >= ms(1000)).count()
    };
    assert_eq!(late(&mut world, &mut stingy, 0), 2);
    world.pass(Duration::from_secs(601));
    assert_eq!(late(&mut world, &mut stingy, 100), 1, "it is tried again, and learnt from one");
    world.pass(Duration::from_secs(601));
    let before = world.dialed;
    let mut healed = Stingy::new(1000, false);
    assert_eq!(late(&mut world, &mut healed, 200), 0);
    assert!(world.dialed - before <= 2, "it is used as any other");
}

#[test]
fn a_stream_that_was_closed_when_it_was_used_after_standing_teaches_how_long_it_may_stand() {
    let mut world = World::new(stream_config());
    let first = exchange(&mut world, "a.test");
    world.pass(ms(2000));
    world.ask(udp(1), &Message::query("b.test", 1));
    assert_eq!(world.one_sent().0, first);
    world.close(first, None);
    let (second, query) = world.one_sent();
    world.answer(second, &good(&query));
    world.one_reply();
    world.pass(ms(1600));
    assert!(!world.links.contains_key(&second), "it is closed before the upstream would");
}

#[test]
fn queries_on_streams_ask_for_the_keepalive_and_what_is_granted_is_undercut() {
    let mut world = World::new(stream_config());
    let keepalive = |query: &[u8], units: u16| {
        let options = [0, option::TCP_KEEPALIVE, 2, units];
        let bytes: Vec<u8> = options[1..].iter().flat_map(|word| word.to_be_bytes()).collect();
        answer_to(query, OK).a(60).opt(1232, 0, &bytes).0
    };
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    assert!(query.ends_with(&[0, 4, 0, 11, 0, 0]), "an OPT record with the empty option: {query:?}");
    world.answer(slot, &keepalive(&query, 20));
    world.one_reply();
    world.pass(ms(1400));
    assert!(world.links.contains_key(&slot));
    world.pass(ms(200));
    assert!(!world.links.contains_key(&slot), "two seconds are granted, one and a half used");
    world.ask(udp(1), &Message::query("b.test", 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &keepalive(&query, 0));
    world.one_reply();
    assert!(!world.links.contains_key(&slot), "zero is a request to close");
}

//! What is given from the cache beside its plain answers: sets, stale answers, answers fetched ahead.

use std::time::Duration;

use forebay_core::{Cause, Instant, SlotId};

use super::world::{OK, World, answer_to, config, id, rcode, udp};
use crate::cache::{Flush, SavedFile, Saver};
use crate::forwarder::{Carrier, PrefetchConfig, Route, StaleConfig};
use crate::testing::{Message, name};
use crate::wire::{Scan, be32};

fn ask(world: &mut World, dotted: &str) {
    world.ask(udp(1), &Message::query(dotted, 1).opt(1232, 0, &[]));
}

/// Asks for a name that an upstream is asked for then, and once.
fn sent_for(world: &mut World, dotted: &str) -> (SlotId, Vec<u8>) {
    ask(world, dotted);
    world.one_sent()
}

/// Asks for a name, and lets the upstream answer with so long a TTL.
fn learn(world: &mut World, dotted: &str, ttl: u32) {
    let (slot, query) = sent_for(world, dotted);
    world.answer(slot, &answer_to(&query, OK).a(ttl).0);
    assert_eq!(ttl_of(&world.one_reply().1), ttl);
}

/// So many seconds after `a.test` was learned with so long a TTL.
fn after(ttl: u32, passed: u64) -> World {
    let mut world = World::new(config(1));
    learn(&mut world, "a.test", ttl);
    world.pass(secs(passed));
    world
}

/// The TTL of the first record.
fn ttl_of(reply: &[u8]) -> u32 {
    let mut scan = Scan::new();
    let at = scan.scan_answer(reply).unwrap().ttl_offsets()[0];
    be32(reply, at.into()).unwrap()
}

fn error_of(reply: &[u8]) -> Option<u16> {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(reply).unwrap();
    answer.opt?.edns.options.extended_error().map(|error| error.code)
}

/// The next reply is stale: an answer with the TTL of such.
fn assert_stale(world: &mut World) {
    let (_, reply) = world.one_reply();
    assert_eq!((rcode(&reply), ttl_of(&reply), error_of(&reply)), (0, 30, Some(3)));
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// `www.test`, an alias of `cdn.test`.
fn alias_answer(query: &[u8]) -> Vec<u8> {
    answer_to(query, OK)
        .record(0, 5, 300, &name("cdn.test"))
        .record_at(0, &name("cdn.test"), 1, 60, &[192, 0, 2, 7])
        .0
}

#[test]
fn what_an_answer_says_of_other_names_answers_for_them() {
    let mut world = World::new(config(1));
    let (slot, query) = sent_for(&mut world, "www.test");
    world.answer(slot, &alias_answer(&query));
    world.mail.replies.clear();
    ask(&mut world, "cdn.test");
    assert_eq!(world.one_reply().1[36..38], [0, 4], "an address of four octets");
    world.ask(udp(1), &Message::query("Mail.Test", 5));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).record(0, 5, 100, &name("WWW.test")).0);
    world.mail.replies.clear();
    world.ask(udp(9), &Message::query("MAIL.test", 1));
    let (client, reply) = world.one_reply();
    assert_eq!((client, rcode(&reply), reply[7]), (udp(9), 0, 3));
    assert_eq!(&reply[12..22], &name("MAIL.test")[..10], "the client's letter case comes back");
    let counters = *world.forwarder.counters();
    assert_eq!((counters.known, counters.hits, counters.misses), (2, 2, 2));
    // Joined once, it is in the cache.
    world.ask(udp(9), &Message::query("mail.test", 1));
    assert_eq!(world.one_reply().1[7], 3);
    assert!(world.mail.sent.is_empty());
}

#[test]
fn without_rrsets_every_question_is_asked() {
    let mut settings = config(1);
    settings.rrsets = false;
    let mut world = World::new(settings);
    let (slot, query) = sent_for(&mut world, "www.test");
    world.answer(slot, &alias_answer(&query));
    sent_for(&mut world, "cdn.test");
    assert_eq!((world.forwarder.counters().known, world.forwarder.cache_counters().sets), (0, 0));
}

#[test]
fn an_upstream_is_not_believed_about_names_of_another() {
    let mut settings = config(1);
    let mut routed = settings.upstreams[0].clone();
    routed.endpoints[0].name = "routed".to_owned();
    settings.upstreams.push(routed);
    settings.routes.push(Route { suffix: name("www.test"), upstream: 1 });
    let mut world = World::new(settings);
    let (slot, query) = sent_for(&mut world, "www.test");
    world.answer(slot, &alias_answer(&query));
    world.mail.replies.clear();
    let (slot, _) = sent_for(&mut world, "cdn.test");
    assert_eq!(world.links[&slot].0, 0, "it is asked of the one it is routed to");
    world.ask(udp(1), &Message::query("www.test", 5));
    assert_eq!(rcode(&world.one_reply().1), 0, "its own name is its own");
}

#[test]
fn a_stale_answer_is_given_when_the_upstream_takes_too_long() {
    let mut world = after(60, 100);
    let (slot, query) = sent_for(&mut world, "a.test");
    world.pass(ms(1790));
    assert!(world.mail.replies.is_empty());
    world.mail.sent.clear();
    world.pass(ms(15));
    assert_stale(&mut world);
    // Who comes now has waited long enough already.
    ask(&mut world, "a.test");
    assert_stale(&mut world);
    // The upstream's answer is welcome still, and nobody is answered twice.
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert!(world.mail.replies.is_empty());
    ask(&mut world, "a.test");
    let (_, reply) = world.one_reply();
    assert_eq!((ttl_of(&reply), error_of(&reply)), (60, None));
    let counters = world.forwarder.counters();
    assert_eq!((counters.stale, counters.refresh_failures, counters.replies), (2, 0, 4));
}

#[test]
fn an_answer_in_time_is_given_as_it_is() {
    let mut world = after(60, 61);
    let (slot, query) = sent_for(&mut world, "a.test");
    world.pass(ms(900));
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    let (_, reply) = world.one_reply();
    assert_eq!((ttl_of(&reply), error_of(&reply)), (60, None));
    world.pass(secs(5));
    assert!(world.mail.replies.is_empty());
    assert_eq!(world.forwarder.counters().stale, 0);
}

#[test]
fn after_a_failure_what_is_stale_is_given_at_once_for_a_while() {
    let mut world = after(60, 61);
    let (slot, query) = sent_for(&mut world, "a.test");
    world.answer(slot, &answer_to(&query, 0x8182).0);
    assert_stale(&mut world);
    assert_eq!(world.forwarder.counters().refresh_failures, 1);
    world.pass(secs(29));
    ask(&mut world, "a.test");
    assert_stale(&mut world);
    assert!(world.mail.sent.is_empty());
    world.pass(secs(1));
    ask(&mut world, "a.test");
    assert!(world.mail.replies.is_empty());
    world.one_sent();
    world.pass(secs(5));
    assert_eq!(world.forwarder.counters().refresh_failures, 2, "nobody answered");
    assert_eq!(world.mail.replies.len(), 1);
    assert_eq!(world.forwarder.in_flight(), (0, 0));
}

#[test]
fn stale_is_better_than_an_error_whatever_failed() {
    for failure in [Cause::Refused, Cause::Ports] {
        let mut world = World::new(config(1));
        learn(&mut world, "a.test", 60);
        let open: Vec<_> = world.links.keys().copied().collect();
        world.dials.insert((0, Carrier::Datagram), Err(failure));
        open.into_iter().for_each(|slot| world.close(slot, Some(Cause::Refused)));
        world.pass(secs(61));
        ask(&mut world, "a.test");
        world.pass(ms(1810));
        assert_stale(&mut world);
        world.pass(secs(4));
        assert!(world.mail.replies.is_empty());
    }
    let mut settings = config(1);
    settings.waiting_max = 1;
    let mut world = World::new(settings);
    learn(&mut world, "a.test", 60);
    world.pass(secs(61));
    ask(&mut world, "b.test");
    ask(&mut world, "a.test");
    assert_stale(&mut world);
    world.forwarder.drain();
    ask(&mut world, "a.test");
    assert_stale(&mut world);
}

#[test]
fn a_failure_that_is_remembered_leaves_what_is_stale() {
    let stale = Some(StaleConfig { recheck: Duration::ZERO, ..StaleConfig::default() });
    let mut world = World::new(crate::forwarder::ForwarderConfig { stale, ..config(1) });
    learn(&mut world, "a.test", 60);
    world.pass(secs(61));
    let (slot, query) = sent_for(&mut world, "a.test");
    world.answer(slot, &answer_to(&query, 0x8182).0);
    assert_stale(&mut world);
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "RFC 9520: it is not asked again");
    assert_stale(&mut world);
}

#[test]
fn a_stale_nxdomain_says_that_it_is_one() {
    let mut world = World::new(config(1));
    let (slot, query) = sent_for(&mut world, "no.test");
    world.answer(slot, &answer_to(&query, 0x8183).soa(60, 60).0);
    world.mail.replies.clear();
    world.pass(secs(70));
    ask(&mut world, "no.test");
    world.pass(ms(1805));
    let (_, reply) = world.one_reply();
    assert_eq!((rcode(&reply), ttl_of(&reply), error_of(&reply)), (3, 30, Some(19)));
}

#[test]
fn the_times_of_stale_answers_are_settings() {
    let mut settings = config(1);
    let stale = StaleConfig { max: secs(20), ttl: secs(7), answer_after: ms(300), recheck: secs(3) };
    settings.stale = Some(stale);
    // Else the silence of the upstream would be remembered for longer than `recheck`.
    settings.failure_ttl = Duration::ZERO;
    let mut world = World::new(settings);
    learn(&mut world, "a.test", 60);
    world.pass(secs(70));
    ask(&mut world, "a.test");
    world.pass(ms(290));
    assert!(world.mail.replies.is_empty());
    world.pass(ms(15));
    assert_eq!(ttl_of(&world.one_reply().1), 7);
    world.pass(secs(4));
    ask(&mut world, "a.test");
    assert_eq!(ttl_of(&world.one_reply().1), 7, "it has just failed");
    world.pass(secs(3));
    ask(&mut world, "a.test");
    assert!(world.mail.replies.is_empty(), "and is tried again");
    world.pass(secs(10));
    world.mail.replies.clear();
    ask(&mut world, "a.test");
    world.pass(secs(5));
    assert_eq!(rcode(&world.one_reply().1), 2, "too old to be given");

    let at_once = StaleConfig { answer_after: Duration::ZERO, ..StaleConfig::default() };
    let mut world = World::new(crate::forwarder::ForwarderConfig { stale: Some(at_once), ..config(1) });
    learn(&mut world, "a.test", 60);
    world.pass(secs(70));
    ask(&mut world, "a.test");
    assert_stale(&mut world);
    world.one_sent();

    let mut world = World::new(crate::forwarder::ForwarderConfig { stale: None, ..config(1) });
    learn(&mut world, "a.test", 60);
    world.pass(secs(70));
    ask(&mut world, "a.test");
    world.pass(secs(5));
    assert_eq!(rcode(&world.one_reply().1), 2);
}

#[test]
fn a_name_that_is_asked_again_near_its_end_is_fetched_ahead() {
    let mut world = after(100, 89);
    ask(&mut world, "a.test");
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "there is time");
    world.pass(secs(1));
    let (slot, query) = sent_for(&mut world, "a.test");
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "one refresh is enough");
    assert_eq!(world.mail.replies.len(), 4, "and no client waits for it");
    world.mail.replies.clear();
    world.answer(slot, &answer_to(&query, OK).a(100).0);
    assert!(world.mail.replies.is_empty());
    ask(&mut world, "a.test");
    assert_eq!(ttl_of(&world.one_reply().1), 100);
    let counters = world.forwarder.counters();
    assert_eq!((counters.prefetches, counters.misses), (1, 1));
}

#[test]
fn a_name_that_is_not_asked_again_is_not_fetched_ahead() {
    let mut world = after(100, 95);
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "once is not often enough");
    let (slot, query) = sent_for(&mut world, "a.test");
    world.answer(slot, &answer_to(&query, OK).a(100).0);
    world.pass(secs(95));
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "the new one has not been used twice");
}

#[test]
fn fetching_ahead_has_its_settings_and_its_limits() {
    let mut settings = config(1);
    settings.prefetch = Some(PrefetchConfig { uses: 1, below_percent: 50, running_max: 2 });
    let mut world = World::new(settings.clone());
    for dotted in ["a.test", "b.test", "c.test"] {
        learn(&mut world, dotted, 100);
    }
    world.pass(secs(49));
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty());
    world.pass(secs(1));
    for dotted in ["a.test", "b.test", "c.test"] {
        ask(&mut world, dotted);
    }
    assert_eq!(world.mail.sent.len(), 2);
    let (slot, query) = world.mail.sent.pop().unwrap();
    world.answer(slot, &answer_to(&query, OK).a(100).0);
    world.mail.sent.clear();
    sent_for(&mut world, "c.test");
    settings.prefetch = None;
    let mut world = World::new(settings);
    learn(&mut world, "a.test", 100);
    world.pass(secs(99));
    (0..20).for_each(|_| ask(&mut world, "a.test"));
    assert!(world.mail.sent.is_empty());
}

#[test]
fn a_refresh_that_failed_is_not_begun_again_at_once() {
    let mut world = after(1000, 920);
    ask(&mut world, "a.test");
    let (slot, query) = sent_for(&mut world, "a.test");
    world.answer(slot, &answer_to(&query, 0x8182).0);
    assert_eq!(world.forwarder.counters().refresh_failures, 1);
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty());
    assert_eq!(ttl_of(&world.mail.replies.pop().unwrap().1), 80, "what is there is still good");
    world.pass(secs(30));
    sent_for(&mut world, "a.test");
}

#[test]
fn a_refresh_whose_answer_is_not_kept_is_not_begun_again_at_once() {
    let mut world = after(1000, 920);
    ask(&mut world, "a.test");
    let (slot, query) = sent_for(&mut world, "a.test");
    world.answer(slot, &answer_to(&query, OK).a(0).0);
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty());
    world.pass(secs(30));
    sent_for(&mut world, "a.test");
}

#[test]
fn who_comes_after_the_end_waits_for_the_refresh_that_is_on_its_way() {
    let mut world = after(100, 99);
    ask(&mut world, "a.test");
    ask(&mut world, "a.test");
    world.mail.replies.clear();
    let (slot, query) = world.one_sent();
    world.pass(ms(1001));
    world.mail.sent.clear();
    ask(&mut world, "a.test");
    assert!(world.mail.replies.is_empty() && world.mail.sent.is_empty());
    world.answer(slot, &answer_to(&query, OK).a(100).0);
    assert_eq!(ttl_of(&world.one_reply().1), 100);
    assert!(world.forwarder.is_idle());
}

#[test]
fn a_drain_does_not_wait_for_refreshes() {
    let mut world = after(100, 95);
    ask(&mut world, "a.test");
    sent_for(&mut world, "a.test");
    world.forwarder.drain();
    assert!(world.forwarder.is_idle());
    ask(&mut world, "a.test");
    assert!(world.mail.sent.is_empty(), "and begins none");
}

#[test]
fn what_is_flushed_is_asked_again() {
    let mut world = World::new(config(1));
    for dotted in ["a.test", "b.a.test", "ba.test", "c.example"] {
        learn(&mut world, dotted, 100);
    }
    let mut flush = |flush: &mut Flush| while !world.forwarder.flush_some(flush, 1) {};
    let mut one = Flush::name(&name("A.Test"));
    flush(&mut one);
    assert_eq!(one.flushed(), 1);
    let mut below = Flush::subtree(&name("a.test"));
    flush(&mut below);
    assert_eq!(below.flushed(), 1);
    ask(&mut world, "ba.test");
    assert!(world.mail.sent.is_empty());
    sent_for(&mut world, "b.a.test");
    assert_eq!(world.forwarder.counters().flushed, 2);
    let mut all = Flush::subtree(&[0]);
    while !world.forwarder.flush_some(&mut all, 100) {}
    assert_eq!(all.flushed(), 2);
}

#[test]
fn a_saved_cache_goes_on_where_it_was_but_for_the_time_between() {
    let mut world = World::new(config(1));
    learn(&mut world, "a.test", 100);
    learn(&mut world, "b.test", 40);
    world.pass(secs(10));
    let mut file = Vec::new();
    let mut saver = Saver::begin(1_000, &mut file);
    while !world.forwarder.save(world.now, &mut saver, &mut file) {}
    assert_eq!(saver.end(&mut file), 2);
    // Another process, whose clock begins anew and whose hashes are others.
    let mut settings = config(1);
    settings.hash_seed = crate::wire::HashSeed::from_bytes([9; 16]);
    let mut world = World::new(settings);
    world.now = Instant::from_nanos(2_000_000_000);
    let saved = SavedFile::read(&file, 1_050).unwrap();
    let loaded = world.forwarder.load(world.now, &saved, 50);
    assert_eq!((loaded.kept, loaded.over, loaded.left_out), (2, 0, 0));
    ask(&mut world, "a.test");
    let (_, reply) = world.one_reply();
    assert_eq!((id(&reply), ttl_of(&reply)), (0x1234, 40));
    sent_for(&mut world, "b.test");
    world.pass(ms(1805));
    assert_stale(&mut world);
}

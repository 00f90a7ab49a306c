//! Active checks: what is asked, what counts as alive, and what the verdict changes.

use std::time::Duration;

use forebay_core::{BreakerConfig, BreakerState, Cause, Health, HealthConfig, SlotId};

use super::world::{OK, World, answer_to, config, rcode, udp};
use crate::forwarder::{Carrier, ForwarderConfig, HealthCheck, parse_question};
use crate::testing::Message;

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Checks every second, give or take a fifth: two failures make unhealthy, two answers healthy.
fn settings(endpoints: usize, carrier: Carrier) -> ForwarderConfig {
    let mut settings = config(endpoints);
    settings.health = Some(HealthCheck { question: parse_question(". NS").unwrap(), timeout: 500 * MS });
    let health = Some(HealthConfig { interval: S, rise: 2, fall: 2 });
    for endpoint in &mut settings.upstreams[0].endpoints {
        match carrier {
            Carrier::Datagram => endpoint.datagram.as_mut().unwrap().config.health = health,
            Carrier::Stream => (endpoint.datagram, endpoint.stream.config.health) = (None, health),
        }
    }
    settings
}

/// Lets time pass; endpoints answer every query that is sent to them as `how` says, `None` being silence. Returns how
/// many checks were asked of each.
fn live(world: &mut World, span: Duration, how: impl Fn(u16) -> Option<u16>) -> [u32; 3] {
    let end = world.now + span;
    let mut asked = [0; 3];
    while world.now < end {
        world.pass(10 * MS);
        for (slot, query) in std::mem::take(&mut world.mail.sent) {
            let Some((endpoint, _)) = world.links.get(&slot).copied() else { continue };
            asked[usize::from(endpoint)] += u32::from(query[12..17] == [0, 0, 2, 0, 1]);
            if let Some(flags) = how(endpoint) {
                world.answer(slot, &answer_to(&query, flags).0);
            }
        }
    }
    asked
}

fn health(world: &World, endpoint: u16) -> Health {
    let mut pools = world.forwarder.pools(world.now);
    pools.find(|(at, ..)| *at == endpoint).unwrap().2.health
}

fn asks_first(world: &mut World, n: u32) -> (u16, SlotId, Vec<u8>) {
    world.ask(udp(1), &Message::query(&format!("n{n}.test"), 1));
    let (slot, query) = world.mail.sent.pop().unwrap();
    (world.links[&slot].0, slot, query)
}

#[test]
fn each_endpoint_is_asked_the_question_at_its_interval_and_any_answer_will_do() {
    for carrier in [Carrier::Datagram, Carrier::Stream] {
        let mut world = World::new(settings(2, carrier));
        let asked = live(&mut world, S * 20, |endpoint| Some(if endpoint == 0 { 0x8182 } else { 0x8185 }));
        assert!(asked[..2].iter().all(|n| (16..=26).contains(n)), "{asked:?}");
        assert_eq!((health(&world, 0), health(&world, 1)), (Health::Healthy, Health::Healthy));
        let counters = world.forwarder.counters();
        assert_eq!((counters.checks_failed, counters.misses, counters.replies), (0, 0, 0));
        assert!(counters.checks >= 32 && world.mail.replies.is_empty());
        assert!(world.forwarder.is_idle(), "a check keeps nobody waiting");
    }
}

#[test]
fn who_is_silent_becomes_unhealthy_is_asked_last_and_returns() {
    for carrier in [Carrier::Datagram, Carrier::Stream] {
        let mut world = World::new(settings(2, carrier));
        live(&mut world, S * 2, |_| Some(OK));
        assert_eq!(asks_first(&mut world, 1).0, 0);
        live(&mut world, S * 5, |endpoint| (endpoint == 1).then_some(OK));
        assert_eq!((health(&world, 0), health(&world, 1)), (Health::Unhealthy, Health::Healthy));
        assert!(world.forwarder.counters().checks_failed >= 2);
        let (endpoint, slot, query) = asks_first(&mut world, 2);
        assert_eq!(endpoint, 1, "no client has to find out");
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        live(&mut world, S * 5, |_| Some(OK));
        assert_eq!(health(&world, 0), Health::Healthy);
        assert_eq!(asks_first(&mut world, 3).0, 0);
    }
}

#[test]
fn when_all_are_unhealthy_health_is_ignored() {
    let mut world = World::new(settings(2, Carrier::Datagram));
    live(&mut world, S * 6, |_| None);
    assert_eq!((health(&world, 0), health(&world, 1)), (Health::Unhealthy, Health::Unhealthy));
    let (endpoint, slot, query) = asks_first(&mut world, 1);
    assert_eq!(endpoint, 0);
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

#[test]
fn a_fault_of_this_machine_makes_nobody_unhealthy() {
    let mut world = World::new(settings(1, Carrier::Datagram));
    world.dials.insert((0, Carrier::Datagram), Err(Cause::Ports));
    live(&mut world, S * 10, |_| None);
    assert_eq!(health(&world, 0), Health::Healthy);
    assert_eq!(world.forwarder.counters().checks_failed, 0);
    assert!(world.forwarder.counters().checks > 5);
    world.dials.insert((0, Carrier::Datagram), Err(Cause::Refused));
    live(&mut world, S * 10, |_| None);
    assert_eq!(health(&world, 0), Health::Unhealthy, "and one that refuses is");
}

#[test]
fn a_check_is_answered_only_from_its_connection_under_its_id_with_its_question() {
    let mut world = World::new(settings(1, Carrier::Datagram));
    for _ in 0..100 {
        world.pass(100 * MS);
        for (slot, query) in std::mem::take(&mut world.mail.sent) {
            let mut wrong = answer_to(&query, OK).0;
            wrong[0] ^= 1;
            world.answer(slot, &wrong);
            let mut wrong = answer_to(&query, OK).0;
            wrong[14] ^= 1;
            world.answer(slot, &wrong);
            let mut cut = answer_to(&query, OK).a(60).0;
            cut.pop();
            world.answer(slot, &cut);
        }
    }
    assert_eq!(health(&world, 0), Health::Unhealthy);
}

#[test]
fn a_client_that_asks_the_same_question_gets_an_answer_of_its_own() {
    let mut world = World::new(settings(2, Carrier::Datagram));
    while world.mail.sent.len() < 2 {
        world.pass(MS);
    }
    world.mail.sent.clear();
    world.ask(udp(7), &Message::query(".", 2));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).0);
    assert_eq!(world.one_reply().0, udp(7));
    assert_eq!(world.forwarder.counters().coalesced, 0);
}

#[test]
fn a_check_closes_the_breaker_so_that_no_client_is_the_probe() {
    let mut settings = settings(1, Carrier::Datagram);
    settings.upstreams[0].endpoints[0].datagram.as_mut().unwrap().config.breaker =
        BreakerConfig { failures: 4, open_base: 200 * MS, open_max: 400 * MS };
    let mut world = World::new(settings);
    live(&mut world, S * 20, |_| None);
    let pool = |world: &World| world.forwarder.pools(world.now).next().unwrap().2;
    assert_ne!(pool(&world).breaker, BreakerState::Closed, "checks are exchanges like others");
    live(&mut world, S * 2, |_| Some(OK));
    assert_eq!(pool(&world).breaker, BreakerState::Closed);
}

#[test]
fn checks_end_with_the_forwarder() {
    for carrier in [Carrier::Datagram, Carrier::Stream] {
        let mut world = World::new(settings(3, carrier));
        live(&mut world, S * 3, |_| None);
        world.forwarder.drain();
        let asked = live(&mut world, S * 5, |_| None);
        assert_eq!(asked, [0; 3], "none is begun while it drains");
        world.forwarder.close(world.now, &mut world.mail);
        world.settle();
        assert!(world.links.is_empty());
        let now = world.now;
        assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.in_use == 0 && pool.waiting == 0));
    }
}

#[test]
fn a_check_over_a_closed_connection_says_nothing_and_over_a_refused_one_it_does() {
    let mut world = World::new(settings(1, Carrier::Stream));
    for _ in 0..20 {
        live(&mut world, 100 * MS, |_| None);
        // Each time the peer closes what had answered before.
        while world.mail.sent.is_empty() {
            world.pass(MS);
        }
        let (slot, query) = world.one_sent();
        world.answer(slot, &answer_to(&query, OK).0);
        world.close(slot, None);
    }
    assert_eq!(health(&world, 0), Health::Healthy);
    world.dials.insert((0, Carrier::Stream), Err(Cause::Refused));
    let open: Vec<SlotId> = world.links.keys().copied().collect();
    open.into_iter().for_each(|slot| world.close(slot, None));
    live(&mut world, S * 8, |_| None);
    assert_eq!(health(&world, 0), Health::Unhealthy);
}

#[test]
fn a_burst_of_late_answers_is_no_broken_upstream() {
    let mut settings = config(1);
    settings.upstreams[0].endpoints[0].datagram.as_mut().unwrap().config.breaker =
        BreakerConfig { failures: 8, open_base: S, open_max: S };
    let mut world = World::new(settings);
    for n in 0..100 {
        world.ask(udp(n), &Message::query(&format!("n{n}.test"), 1));
    }
    let sent = std::mem::take(&mut world.mail.sent);
    world.pass(1200 * MS);
    assert_eq!(world.mail.sent.len(), 100, "each is asked again after a second");
    world.mail.sent.clear();
    for (slot, query) in sent {
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    assert!(world.mail.replies.iter().all(|(_, reply)| rcode(reply) == 0));
    let pool = world.forwarder.pools(world.now).next().unwrap().2;
    assert_eq!((world.mail.replies.len(), pool.counters.breaker_opened), (100, 0));
}

#[test]
fn a_probe_that_nobody_answers_is_followed_by_the_next_within_two_seconds() {
    let mut settings = config(1);
    settings.failure_ttl = Duration::ZERO;
    settings.upstreams[0].endpoints[0].datagram.as_mut().unwrap().config.breaker =
        BreakerConfig { failures: 4, open_base: 100 * MS, open_max: 800 * MS };
    let mut world = World::new(settings);
    let mut probes = Vec::new();
    for n in 0..6000 {
        world.ask(udp(n), &Message::query(&format!("n{n}.test"), 1));
        world.pass(5 * MS);
        // Some seconds on, nothing is sent but probes.
        if world.now > forebay_core::Instant::ZERO + S * 10 {
            probes.extend(world.mail.sent.iter().map(|_| world.now));
        }
        world.mail.sent.clear();
    }
    let gaps = probes.windows(2).map(|pair| pair[1].saturating_duration_since(pair[0]));
    assert!(probes.len() >= 10 && probes.len() < 60, "{}", probes.len());
    assert!(gaps.max().unwrap() < 1900 * MS, "a second for the answer, and the pause");
}

#[test]
fn when_an_upstream_is_back_traffic_returns_without_a_storm_of_dials() {
    let mut settings = config(1);
    settings.failure_ttl = Duration::ZERO;
    let endpoint = &mut settings.upstreams[0].endpoints[0];
    endpoint.datagram = None;
    // As the server has it.
    endpoint.stream.config.backoff.max = 800 * MS;
    endpoint.stream.config.breaker = BreakerConfig { failures: 32, open_base: 200 * MS, open_max: 800 * MS };
    let mut world = World::new(settings);
    world.dials.insert((0, Carrier::Stream), Err(Cause::Refused));
    for n in 0..1000 {
        world.ask(udp(n), &Message::query(&format!("n{n}.test"), 1));
        world.pass(10 * MS);
    }
    let down = world.dialed;
    world.dials.clear();
    let mut first = None;
    for n in 0..500 {
        // Ten at once, every 10 ms; each connection carries sixteen.
        for i in 0..10 {
            world.ask(udp(i), &Message::query(&format!("b{n}x{i}.test"), 1));
        }
        world.pass(10 * MS);
        for (slot, query) in std::mem::take(&mut world.mail.sent) {
            first.get_or_insert(n);
            world.answer(slot, &answer_to(&query, OK).a(60).0);
        }
    }
    let up = world.dialed - down;
    println!("dials while it was down for 10 s under 100 queries a second: {down}; when it was back: {up}");
    assert!(first.is_some_and(|n| n < 90), "back within a second: {first:?}");
    assert!(down < 60 && up <= 64, "{down} and {up}");
}

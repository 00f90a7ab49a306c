//! Whom each strategy asks, when, and what it makes of the answers.

use std::time::Duration;

use forebay_core::{BreakerState, Cause, SlotId};

use super::world::{OK, World, answer_to, config, rcode, udp};
use crate::forwarder::{Carrier, ForwarderConfig, Strategy, StrategyConfig};
use crate::testing::Message;
use crate::wire::Scan;

const SERVFAIL: u16 = 0x8182;
const MS: Duration = Duration::from_millis(1);

fn settings(strategy: Strategy, endpoints: usize) -> ForwarderConfig {
    let mut settings = config(endpoints);
    settings.upstreams[0].strategy = strategy;
    if strategy == Strategy::Racing {
        settings.strategies.probing_percent = 0;
    }
    settings
}

fn world(strategy: Strategy, endpoints: usize) -> World {
    World::new(settings(strategy, endpoints))
}

/// The queries sent since the last look: which endpoint, on which connection, and the query.
fn sent(world: &mut World) -> Vec<(u16, SlotId, Vec<u8>)> {
    let sent = std::mem::take(&mut world.mail.sent);
    sent.into_iter().map(|(slot, query)| (world.links[&slot].0, slot, query)).collect()
}

fn endpoints(sent: &[(u16, SlotId, Vec<u8>)]) -> Vec<u16> {
    let mut endpoints: Vec<u16> = sent.iter().map(|(endpoint, ..)| *endpoint).collect();
    endpoints.sort_unstable();
    endpoints
}

fn ask(world: &mut World, n: u32) {
    world.ask(udp(1), &Message::query(&format!("n{n}.test"), 1));
}

/// Asks so many questions, each endpoint answering after its own time. Returns whom each question asked first, and how
/// many endpoints in all.
fn run(world: &mut World, questions: std::ops::Range<u32>, takes: &[Duration]) -> Vec<(u16, usize)> {
    let mut asked = Vec::new();
    for n in questions {
        ask(world, n);
        let began = world.now;
        let mut out = Vec::new();
        let (mut first, mut count) = (None, 0);
        // Until the last answer is in: losers answer too.
        let end = began + *takes.iter().max().unwrap() + 5 * MS;
        while world.now < end {
            for (endpoint, slot, query) in sent(world) {
                first.get_or_insert(endpoint);
                count += 1;
                out.push((world.now + takes[usize::from(endpoint)], slot, query));
            }
            out.retain(|(at, slot, query)| {
                let due = *at <= world.now;
                if due {
                    world.answer(*slot, &answer_to(query, OK).a(60).0);
                }
                !due
            });
            world.pass(MS);
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
        asked.push((first.unwrap(), count));
    }
    asked
}

#[test]
fn parallel_asks_several_at_once_and_the_first_good_answer_wins() {
    let mut world = world(Strategy::Parallel, 4);
    ask(&mut world, 1);
    let out = sent(&mut world);
    assert_eq!(endpoints(&out), [0, 1, 2], "parallel_max is 3");
    world.pass(5 * MS);
    world.answer(out[1].1, &answer_to(&out[1].2, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    let before = world.links.len();
    for (_, slot, query) in [&out[0], &out[2]] {
        world.answer(*slot, &answer_to(query, OK).a(60).0);
    }
    assert!(world.mail.replies.is_empty());
    let counters = *world.forwarder.counters();
    assert_eq!(
        (counters.late, counters.unexpected, counters.raced),
        (2, 0, 2),
        "known, and not taken for forged"
    );
    assert_eq!(world.links.len(), before, "their connections stay");
    let now = world.now;
    assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.counters.failures == 0), "no loser is blamed");
    // An answer that comes twice is for nobody.
    world.answer(out[0].1, &answer_to(&out[0].2, OK).a(60).0);
    let counters = world.forwarder.counters();
    assert_eq!((counters.late, counters.unexpected), (3, 0));
}

#[test]
fn parallel_max_is_how_many_are_asked_and_the_quickest_are_chosen() {
    let mut settings = settings(Strategy::Parallel, 4);
    settings.strategies = StrategyConfig { parallel_max: 2, ..StrategyConfig::default() };
    let mut world = World::new(settings);
    let takes = [40, 5, 30, 6].map(|n| MS * n);
    assert!(run(&mut world, 0..200, &takes).iter().all(|(_, n)| *n == 2));
    let mut quickest = 0;
    for n in 1000..1100 {
        ask(&mut world, n);
        quickest += u32::from(endpoints(&sent(&mut world)) == [1, 3]);
    }
    assert!(quickest > 80, "now and then another is measured: {quickest}");
}

#[test]
fn an_error_wins_no_race_and_the_next_endpoint_is_asked_in_its_place() {
    let mut world = world(Strategy::Parallel, 4);
    ask(&mut world, 1);
    let out = sent(&mut world);
    world.answer(out[0].1, &answer_to(&out[0].2, SERVFAIL).0);
    assert!(world.mail.replies.is_empty());
    assert_eq!(endpoints(&sent(&mut world)), [3]);
    world.answer(out[1].1, &answer_to(&out[1].2, 0x8183).soa(60, 60).0);
    assert_eq!(rcode(&world.one_reply().1), 3, "NXDOMAIN is an answer");
}

#[test]
fn racing_waits_for_the_usual_latency_before_it_asks_the_next() {
    let mut world = world(Strategy::Racing, 2);
    ask(&mut world, 0);
    assert_eq!(endpoints(&sent(&mut world)), [0]);
    world.pass(249 * MS);
    assert!(sent(&mut world).is_empty(), "nothing is known: the longest head start");
    world.pass(4 * MS);
    let out = sent(&mut world);
    assert_eq!(endpoints(&out), [1]);
    world.answer(out[0].1, &answer_to(&out[0].2, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);

    // The second answered at once and the first not within a quarter of a second: now the second is first.
    let asked = run(&mut world, 1..100, &[20 * MS, 20 * MS]);
    assert!(asked[10..].iter().all(|asked| *asked == (1, 1)), "{asked:?}");
    // It answers in 20 ms, always: 20 ms and a little later the other is asked too.
    ask(&mut world, 1000);
    assert_eq!(endpoints(&sent(&mut world)), [1]);
    world.pass(18 * MS);
    assert!(sent(&mut world).is_empty());
    world.pass(10 * MS);
    assert_eq!(endpoints(&sent(&mut world)), [0]);
}

#[test]
fn head_start_bounds_are_settings() {
    let mut settings = settings(Strategy::Racing, 2);
    settings.strategies =
        StrategyConfig { head_start_min: 100 * MS, head_start_max: 150 * MS, ..settings.strategies };
    let mut world = World::new(settings);
    ask(&mut world, 0);
    world.pass(149 * MS);
    assert_eq!(sent(&mut world).len(), 1);
    world.pass(5 * MS);
    let out = sent(&mut world);
    assert_eq!(endpoints(&out), [1]);
    world.answer(out[0].1, &answer_to(&out[0].2, OK).a(60).0);
    world.mail.replies.clear();
    run(&mut world, 1..50, &[2 * MS, 2 * MS]);
    ask(&mut world, 1000);
    sent(&mut world);
    world.pass(98 * MS);
    assert!(sent(&mut world).is_empty(), "though it takes 2 ms as a rule");
    world.pass(6 * MS);
    assert_eq!(sent(&mut world).len(), 1);
}

#[test]
fn in_a_race_an_error_of_the_network_or_the_server_starts_the_next_at_once() {
    let mut world = world(Strategy::Racing, 3);
    ask(&mut world, 0);
    let out = sent(&mut world);
    world.close(out[0].1, Some(Cause::Refused));
    let out = sent(&mut world);
    assert_eq!(out.len(), 1);
    assert_ne!(out[0].0, 0);
    world.answer(out[0].1, &answer_to(&out[0].2, SERVFAIL).0);
    let out = sent(&mut world);
    assert_eq!(out.len(), 1);
    world.answer(out[0].1, &answer_to(&out[0].2, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

#[test]
fn a_racer_that_falls_silent_stops_being_first_without_blame() {
    let mut world = world(Strategy::Racing, 2);
    run(&mut world, 0..50, &[5 * MS, 15 * MS]);
    // Now it answers nothing at all.
    let mut firsts = Vec::new();
    for n in 100..130 {
        ask(&mut world, n);
        let mut out = sent(&mut world);
        firsts.push(out[0].0);
        while out[0].0 == 0 {
            world.pass(2 * MS);
            out.splice(..usize::from(!world.mail.sent.is_empty()), sent(&mut world));
        }
        world.pass(15 * MS);
        world.answer(out[0].1, &answer_to(&out[0].2, OK).a(60).0);
        assert_eq!(rcode(&world.one_reply().1), 0);
    }
    assert_eq!(firsts[0], 0);
    assert!(firsts[10..].iter().all(|first| *first == 1), "{firsts:?}");
    let now = world.now;
    assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.breaker == BreakerState::Closed));
}

#[test]
fn a_race_measures_another_now_and_then() {
    let mut settings = settings(Strategy::Racing, 2);
    settings.strategies.probing_percent = 20;
    let mut world = World::new(settings);
    let asked = run(&mut world, 0..100, &[20 * MS, 5 * MS]);
    assert_eq!(asked[0].0, 0);
    assert!(asked[50..].iter().all(|(first, _)| *first == 1), "the quicker one was found");
}

#[test]
fn fastest_asks_the_quickest_and_now_and_then_another_too() {
    let mut world = world(Strategy::Fastest, 3);
    let takes = [30 * MS, 8 * MS, 60 * MS];
    run(&mut world, 0..200, &takes);
    let asked = run(&mut world, 200..600, &takes);
    let probed = asked.iter().filter(|(_, n)| *n == 2).count();
    assert!(asked.iter().all(|(first, _)| *first == 1), "the second is the quickest");
    assert!((8..40).contains(&probed), "about one in twenty: {probed} of 400");
    // The quickest becomes the slowest, and that is noticed.
    let asked = run(&mut world, 600..700, &[30 * MS, 100 * MS, 60 * MS]);
    assert!(asked[20..].iter().all(|(first, _)| *first == 0), "{asked:?}");
}

#[test]
fn the_share_of_probing_is_a_setting_and_equals_share_the_load() {
    let probed = |percent| {
        let mut settings = settings(Strategy::Fastest, 2);
        settings.strategies = StrategyConfig { probing_percent: percent, ..StrategyConfig::default() };
        let mut world = World::new(settings);
        let asked = run(&mut world, 0..100, &[10 * MS, 10 * MS]);
        let firsts = asked.iter().filter(|(first, _)| *first == 0).count();
        assert!(percent == 0 || (20..80).contains(&firsts), "as quick as the other: {firsts} of 100");
        asked.iter().filter(|(_, n)| *n == 2).count()
    };
    assert_eq!(probed(0), 0);
    assert_eq!(probed(100), 100);
}

#[test]
fn what_fails_is_not_the_fastest() {
    let mut world = world(Strategy::Fastest, 2);
    run(&mut world, 0..40, &[5 * MS, 20 * MS]);
    let mut firsts = Vec::new();
    for n in 100..140 {
        ask(&mut world, n);
        let mut out = sent(&mut world);
        firsts.push(out[0].0);
        while let Some((endpoint, slot, query)) = out.pop() {
            let flags = if endpoint == 0 { SERVFAIL } else { OK };
            world.answer(slot, &answer_to(&query, flags).0);
            out.extend(sent(&mut world));
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
    }
    assert!(firsts[10..].iter().all(|first| *first == 1), "quick errors are no service: {firsts:?}");
}

#[test]
fn when_all_answer_with_errors_the_client_hears_at_once_whatever_the_strategy() {
    for strategy in Strategy::ALL {
        let mut world = world(strategy, 3);
        ask(&mut world, 0);
        let began = world.now;
        let mut asked = 0;
        while world.mail.replies.is_empty() {
            let out = sent(&mut world);
            if out.is_empty() {
                world.pass(10 * MS);
            }
            for (_, slot, query) in out {
                asked += 1;
                world.answer(slot, &answer_to(&query, SERVFAIL).0);
            }
        }
        assert_eq!(rcode(&world.one_reply().1), 2, "{strategy:?}");
        assert_eq!((asked, world.now), (3, began), "{strategy:?}: each was asked once, and nobody waited");
    }
}

#[test]
fn when_no_connection_can_be_made_the_client_hears_at_once_whatever_the_strategy() {
    for strategy in Strategy::ALL {
        for carrier in [Carrier::Datagram, Carrier::Stream] {
            let mut settings = settings(strategy, 3);
            if carrier == Carrier::Stream {
                settings.upstreams[0].endpoints.iter_mut().for_each(|endpoint| endpoint.datagram = None);
            }
            let mut world = World::new(settings);
            world.dials.extend((0..3).map(|n| ((n, carrier), Err(Cause::Refused))));
            ask(&mut world, 0);
            assert_eq!(rcode(&world.one_reply().1), 2, "{strategy:?} {carrier:?}");
            assert_eq!(world.dialed, 3, "{strategy:?} {carrier:?}: each was dialled once");
            // Those who come next wait for the next dial, not for their deadlines.
            ask(&mut world, 1);
            world.pass(100 * MS);
            assert_eq!(world.mail.replies.len(), 1, "{strategy:?} {carrier:?}");
            assert_eq!(world.forwarder.in_flight(), (0, 0));
        }
    }
}

#[test]
fn one_that_refuses_is_passed_over_by_every_strategy() {
    for strategy in Strategy::ALL {
        let mut world = world(strategy, 2);
        world.dials.insert((0, Carrier::Datagram), Err(Cause::Refused));
        for n in 0..50 {
            ask(&mut world, n);
            for (endpoint, slot, query) in sent(&mut world) {
                assert_eq!(endpoint, 1);
                world.answer(slot, &answer_to(&query, OK).a(60).0);
            }
            assert_eq!(rcode(&world.one_reply().1), 0, "{strategy:?}");
        }
    }
}

fn error(bytes: &[u8]) -> u16 {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(bytes).unwrap();
    answer.opt.and_then(|opt| opt.edns.options.extended_error()).map_or(0, |error| error.code)
}

fn ask_with_edns(world: &mut World, n: u32) {
    world.ask(udp(1), &Message::query(&format!("n{n}.test"), 1).opt(1232, 0, &[]));
}

/// Answers whatever is asked with an error until the client is told. Returns whom it was asked of.
fn fail_all(world: &mut World) -> Vec<u16> {
    let mut asked = Vec::new();
    while world.mail.replies.is_empty() {
        for (endpoint, slot, query) in sent(world) {
            asked.push(endpoint);
            world.answer(slot, &answer_to(&query, SERVFAIL).0);
        }
    }
    assert_eq!(rcode(&world.one_reply().1), 2);
    asked
}

#[test]
fn a_question_that_all_have_failed_is_not_asked_again_for_a_while() {
    for strategy in Strategy::ALL {
        let mut world = world(strategy, 2);
        let second = Duration::from_secs(1);
        ask_with_edns(&mut world, 1);
        assert_eq!(fail_all(&mut world).len(), 2, "{strategy:?}");
        world.pass(second * 4);
        ask_with_edns(&mut world, 1);
        let (_, reply) = world.one_reply();
        assert_eq!((rcode(&reply), error(&reply)), (2, 13), "{strategy:?}: a cached error");
        ask(&mut world, 2);
        let out = sent(&mut world);
        assert!(!out.is_empty(), "another question is asked");
        out.iter().for_each(|(_, slot, query)| world.answer(*slot, &answer_to(query, OK).a(60).0));
        world.mail.replies.clear();
        world.pass(second);
        ask_with_edns(&mut world, 1);
        assert_eq!(fail_all(&mut world).len(), 2, "{strategy:?}: five seconds are over");
        world.pass(second * 9);
        ask_with_edns(&mut world, 1);
        assert!(world.mail.replies.iter().any(|(_, reply)| error(reply) == 13), "the second time is longer");
        assert_eq!(world.forwarder.counters().remembered, 2);
    }
}

#[test]
fn an_endpoint_that_failed_a_question_is_not_asked_it_while_there_are_others() {
    let mut world = world(Strategy::Sequential, 2);
    ask(&mut world, 7);
    let out = sent(&mut world);
    world.answer(out[0].1, &answer_to(&out[0].2, SERVFAIL).0);
    let out = sent(&mut world);
    assert_eq!(endpoints(&out), [1]);
    // It answers, but so that nobody may keep it: the question comes again.
    world.answer(out[0].1, &answer_to(&out[0].2, OK).a(0).0);
    world.mail.replies.clear();
    ask(&mut world, 7);
    // The second says nothing, and the client is told in the end.
    world.pass(4010 * MS);
    assert_eq!(endpoints(&sent(&mut world)), [1, 1, 1, 1], "only who has not failed is asked again");
    assert_eq!(rcode(&world.one_reply().1), 2);
}

#[test]
fn after_its_time_the_endpoint_is_asked_again_and_an_answer_ends_the_memory() {
    let mut world = world(Strategy::Sequential, 2);
    let round = |world: &mut World, flags| {
        ask(world, 1);
        let out = sent(world);
        let first = out[0].0;
        world.answer(out[0].1, &answer_to(&out[0].2, flags).a(0).0);
        for (_, slot, query) in sent(world) {
            world.answer(slot, &answer_to(&query, OK).a(0).0);
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
        first
    };
    assert_eq!(round(&mut world, SERVFAIL), 0);
    assert_eq!(round(&mut world, OK), 1);
    world.pass(5000 * MS);
    assert_eq!(round(&mut world, OK), 0);
    assert_eq!(round(&mut world, OK), 0, "and it stays so");
}

#[test]
fn silence_of_all_is_remembered_and_a_fault_of_this_machine_is_not() {
    let mut world = world(Strategy::Sequential, 1);
    ask_with_edns(&mut world, 1);
    world.pass(4010 * MS);
    assert_eq!(error(&world.one_reply().1), 22);
    ask_with_edns(&mut world, 1);
    assert_eq!(error(&world.one_reply().1), 13);

    for cause in [Cause::Route, Cause::Ports, Cause::Refused] {
        let mut world = World::new(settings(Strategy::Sequential, 1));
        world.dials.insert((0, Carrier::Datagram), Err(cause));
        ask_with_edns(&mut world, 1);
        world.pass(5000 * MS);
        assert_eq!(rcode(&world.one_reply().1), 2);
        world.dials.clear();
        ask_with_edns(&mut world, 1);
        assert_eq!(sent(&mut world).len(), 1, "{cause}: it says nothing of the question");
    }
}

#[test]
fn how_long_failures_are_remembered_is_a_setting() {
    let asked_after = |ttl: u64, after: u64| {
        let mut settings = settings(Strategy::Sequential, 1);
        settings.failure_ttl = Duration::from_secs(ttl);
        let mut world = World::new(settings);
        ask(&mut world, 1);
        fail_all(&mut world);
        world.pass(Duration::from_secs(after));
        ask(&mut world, 1);
        !sent(&mut world).is_empty()
    };
    assert!(asked_after(0, 0));
    assert!(!asked_after(2, 1));
    assert!(asked_after(2, 3));
}

#[test]
fn attempts_are_bounded_whatever_the_strategy() {
    for strategy in Strategy::ALL {
        let mut settings = settings(strategy, 4);
        settings.attempts_max = 5;
        settings.strategies.probing_percent = 100;
        let mut world = World::new(settings);
        ask(&mut world, 0);
        world.pass(5000 * MS);
        assert_eq!(rcode(&world.one_reply().1), 2);
        let n = world.mail.sent.len();
        assert!((4..=5).contains(&n), "{strategy:?}: {n}");
    }
}

//! One behaviour a test.

use std::time::Duration;

use forebay_core::{BreakerState, Cause, Config, Permits};

use super::world::{OK, World, answer_to, config, id, rcode, tcp, udp};
use crate::forwarder::{Carrier, Handled, Route, Strategy};
use crate::testing::{DO, Message, name};
use crate::wire::Scan;

fn extended_error(bytes: &[u8]) -> Option<(u16, String)> {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(bytes).unwrap();
    let error = answer.opt?.edns.options.extended_error()?;
    Some((error.code, String::from_utf8_lossy(error.text).into_owned()))
}

fn with_edns(message: Message) -> Message {
    message.opt(1232, 0, &[])
}

#[test]
fn a_miss_is_asked_and_its_answer_given_then_served_from_the_cache() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("Www.Example", 1));
    let (slot, query) = world.one_sent();
    assert_eq!(&query[12..], &[name("www.example"), vec![0, 1, 0, 1], opt(1232, 0)].concat()[..]);
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    let (client, reply) = world.one_reply();
    assert_eq!(client, udp(1));
    assert_eq!(id(&reply), 0x1234);
    assert_eq!(&reply[12..25], &name("Www.Example")[..], "the client's letter case comes back");
    world.pass(Duration::from_secs(10));
    world.ask(udp(2), &Message::query("wwW.eXample", 1));
    let (_, reply) = world.one_reply();
    assert_eq!(&reply[12..25], &name("wwW.eXample")[..]);
    assert_eq!(&reply[35..39], &50u32.to_be_bytes(), "TTLs age");
    assert!(world.mail.sent.is_empty());
    assert_eq!(world.forwarder.counters().hits, 1);
}

fn opt(size: u16, ttl: u32) -> Vec<u8> {
    let bytes = Message::new(0, 0).opt(size, ttl, &[]).0;
    bytes[12..].to_vec()
}

#[test]
fn the_same_question_in_flight_is_asked_once_and_each_waiter_gets_its_own_back() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let mut second = Message::query("A.TEST", 1);
    second.0[0] = 0x77;
    world.ask(tcp(5), &second);
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(world.mail.replies.len(), 2);
    let (first, second) = (&world.mail.replies[0], &world.mail.replies[1]);
    assert_eq!((first.0, id(&first.1), &first.1[13..14]), (udp(1), 0x1234, &b"a"[..]));
    assert_eq!((second.0, id(&second.1)), (tcp(5), 0x7734));
    assert_eq!(&second.1[13..14], b"A");
    assert_eq!(world.forwarder.counters().coalesced, 1);
}

#[test]
fn flags_that_change_the_answer_make_another_question() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    world.ask(udp(2), &Message::query("a.test", 1).flags(0x0110));
    world.ask(udp(3), &Message::query("a.test", 1).opt(1232, DO, &[]));
    world.ask(udp(4), &Message::query("a.test", 28));
    assert_eq!(world.mail.sent.len(), 4);
    let flags: Vec<u8> = world.mail.sent.iter().map(|(_, query)| query[3] & 0x10).collect();
    assert_eq!(flags, [0, 0x10, 0, 0], "CD goes upstream");
    assert_eq!(world.mail.sent[2].1[world.mail.sent[2].1.len() - 4] & 0x80, 0x80, "DO goes upstream");
}

#[test]
fn bytes_that_are_no_query_get_an_error_or_silence() {
    let mut world = World::new(config(1));
    assert_eq!(world.ask(udp(1), &Message(vec![1, 2, 3])), Handled::Ignored);
    assert_eq!(world.ask(udp(1), &Message::response("a.test", 1)), Handled::Ignored);
    assert!(world.mail.replies.is_empty());
    assert_eq!(world.ask(udp(1), &Message::new(9, 0x0100)), Handled::Taken);
    assert_eq!(rcode(&world.one_reply().1), 1);
    assert_eq!(world.forwarder.counters().ignored, 2);
    assert_eq!(world.forwarder.counters().faulty, 1);
}

#[test]
fn an_answer_with_another_id_question_or_connection_is_not_taken() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let good = answer_to(&query, OK).a(60).0;
    let mut wrong_id = good.clone();
    wrong_id[1] ^= 1;
    world.answer(slot, &wrong_id);
    let mut wrong_question = good.clone();
    wrong_question[13] = b'b';
    world.answer(slot, &wrong_question);
    let mut not_a_response = good.clone();
    not_a_response[2] = 1;
    world.answer(slot, &not_a_response);
    // The next attempt goes to another upstream, so that there is another connection.
    world.pass(Duration::from_millis(1005));
    let (other, _) = world.one_sent();
    assert_ne!(other, slot);
    world.answer(other, &good);
    assert!(world.mail.replies.is_empty());
    assert_eq!(world.forwarder.counters().unexpected, 4);
    world.answer(slot, &good);
    assert_eq!(rcode(&world.one_reply().1), 0);
    world.answer(slot, &good);
    assert!(world.mail.replies.is_empty(), "a duplicate is for nobody");
}

#[test]
fn a_burst_of_answers_that_fit_nothing_changes_the_socket() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let mut guess = answer_to(&query, OK).a(60).0;
    guess[1] ^= 1;
    for _ in 0..16 {
        world.answer(slot, &guess);
    }
    assert_eq!(world.forwarder.counters().rotated, 1);
    world.ask(udp(2), &Message::query("b.test", 1));
    assert_ne!(world.one_sent().0, slot);
}

#[test]
fn a_silent_upstream_is_asked_again_and_its_late_answer_is_welcome() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    world.pass(Duration::from_millis(1005));
    let (_, second) = world.one_sent();
    assert_ne!(id(&query), id(&second), "a new id for each attempt");
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    assert_eq!(world.forwarder.counters().retries, 1);
}

#[test]
fn when_nobody_answers_the_client_is_told_in_time_and_why() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &with_edns(Message::query("a.test", 1)));
    world.pass(Duration::from_millis(3990));
    assert!(world.mail.replies.is_empty());
    world.pass(Duration::from_millis(20));
    let (_, reply) = world.one_reply();
    assert_eq!(rcode(&reply), 2);
    assert_eq!(extended_error(&reply).unwrap().0, 22);
    assert_eq!(world.forwarder.counters().failed_timeout, 1);
    assert_eq!(world.forwarder.in_flight(), (0, 0));
}

#[test]
fn the_two_timeouts_and_the_number_of_attempts_are_settings() {
    let mut settings = config(1);
    settings.attempt_timeout = Duration::from_millis(100);
    settings.query_timeout = Duration::from_millis(900);
    settings.attempts_max = 3;
    let mut world = World::new(settings);
    world.ask(udp(1), &Message::query("a.test", 1));
    world.pass(Duration::from_millis(890));
    assert_eq!(world.mail.sent.len(), 3);
    assert!(world.mail.replies.is_empty());
    world.pass(Duration::from_millis(20));
    assert_eq!(rcode(&world.one_reply().1), 2);
}

#[test]
fn a_refused_upstream_is_left_for_the_next_at_once() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, _) = world.one_sent();
    world.close(slot, Some(Cause::Refused));
    let (second, query) = world.one_sent();
    assert_eq!(world.links[&second].0, 1);
    world.answer(second, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

#[test]
fn when_all_refuse_the_client_hears_at_once() {
    let mut world = World::new(config(1));
    world.dials.insert((0, Carrier::Datagram), Err(Cause::Refused));
    world.ask(udp(1), &with_edns(Message::query("a.test", 1)));
    world.pass(Duration::from_millis(1500));
    let (_, reply) = world.one_reply();
    assert_eq!((rcode(&reply), extended_error(&reply).unwrap().0), (2, 23));
    assert_eq!(world.forwarder.counters().failed_upstream, 1);
}

#[test]
fn a_machine_out_of_ports_says_so_and_blames_no_upstream() {
    let mut world = World::new(config(1));
    world.dials.insert((0, Carrier::Datagram), Err(Cause::Ports));
    for n in 0..100 {
        world.ask(udp(n), &with_edns(Message::query(&format!("a{n}.test"), 1)));
        world.pass(Duration::from_millis(1));
    }
    world.pass(Duration::from_secs(5));
    assert_eq!(world.mail.replies.len(), 100);
    let (code, text) = extended_error(&world.mail.replies[0].1).unwrap();
    assert_eq!(code, 0);
    assert!(text.contains("local port"), "{text}");
    assert_eq!(world.forwarder.counters().failed_local, 100);
    let now = world.now;
    assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.breaker == BreakerState::Closed));
    world.dials.clear();
    world.pass(Duration::from_secs(11));
    world.mail.replies.clear();
    world.ask(udp(1), &Message::query("again.test", 1));
    assert_eq!(world.mail.sent.len(), 1, "it recovers by itself");
}

#[test]
fn a_machine_without_a_way_says_so_at_once_and_looks_again_when_its_pause_is_over() {
    for cause in [Cause::Route, Cause::Permission] {
        let mut world = World::new(config(3));
        let began = world.now;
        for endpoint in 0..3 {
            world.dials.insert((endpoint, Carrier::Datagram), Err(cause));
        }
        let mut told = 0;
        while world.now.saturating_duration_since(began) < Duration::from_secs(4) {
            world.ask(udp(told), &with_edns(Message::query(&format!("a{told}.test"), 1)));
            let reply = world.one_reply().1;
            assert_eq!((rcode(&reply), extended_error(&reply).unwrap().0), (2, 23), "{cause}, at once");
            told += 1;
            world.pass(Duration::from_millis(10));
        }
        assert!((24..200).contains(&world.dialed), "{cause}: {}", world.dialed);
        assert_eq!(world.forwarder.counters().failed_local, u64::from(told));
        let now = world.now;
        assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.breaker == BreakerState::Closed));
        world.dials.clear();
        while world.mail.sent.is_empty() {
            world.ask(udp(told), &Message::query(&format!("a{told}.test"), 1));
            told += 1;
            world.pass(Duration::from_millis(10));
        }
        assert!(world.now.saturating_duration_since(now) <= Duration::from_millis(520), "{cause}");
    }
}

#[test]
fn a_truncated_answer_is_asked_for_over_a_stream_of_the_same_upstream() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &with_edns(Message::query("big.test", 16)));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK | 0x0200).0);
    let (stream, query) = world.one_sent();
    assert_eq!(world.links[&stream], (0, Carrier::Stream));
    let long = [&[255][..], &[b'x'; 255]].concat().repeat(4);
    world.answer(stream, &answer_to(&query, OK).record(0, 16, 60, &long).0);
    let (_, reply) = world.one_reply();
    assert_eq!(reply[2] & 2, 0, "it fits into what the client takes");
    assert!(reply.len() > 1000);
    world.ask(udp(2), &Message::query("big.test", 16));
    let (_, reply) = world.one_reply();
    assert_eq!(reply[2] & 2, 2, "it does not fit into 512 bytes: the client is to come over TCP");
    world.ask(tcp(1), &Message::query("big.test", 16));
    assert_eq!(world.one_reply().1[2] & 2, 0);
    assert_eq!(world.forwarder.counters().truncated, 1);
}

#[test]
fn servfail_goes_to_the_next_upstream_and_is_the_answer_if_all_say_so() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, 0x8182).0);
    let (slot, query) = world.one_sent();
    assert_eq!(world.links[&slot].0, 1);
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);

    world.ask(udp(1), &Message::query("b.test", 1));
    for flags in [0x8182, 0x8185] {
        let (slot, query) = world.one_sent();
        world.answer(slot, &answer_to(&query, flags).0);
    }
    assert_eq!(rcode(&world.one_reply().1), 5, "what the last one said");
}

#[test]
fn nxdomain_is_an_answer_and_is_kept_as_long_as_its_soa_says() {
    let mut world = World::new(config(2));
    world.ask(udp(1), &Message::query("no.test", 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, 0x8183).soa(300, 60).0);
    assert_eq!(rcode(&world.one_reply().1), 3);
    world.pass(Duration::from_secs(59));
    world.ask(udp(1), &Message::query("no.test", 1));
    assert_eq!(rcode(&world.one_reply().1), 3);
    world.pass(Duration::from_secs(2));
    world.ask(udp(1), &Message::query("no.test", 1));
    assert_eq!(world.mail.sent.len(), 1);
}

#[test]
fn an_upstream_that_does_not_know_edns_is_asked_without() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    assert_eq!(query[11], 1);
    world.answer(slot, &answer_to(&query, 0x8181).0);
    let (slot, query) = world.one_sent();
    assert_eq!(query[11], 0, "no OPT record");
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

fn stream_only(upstreams: usize) -> World {
    let mut settings = config(upstreams);
    settings.upstreams[0].endpoints.iter_mut().for_each(|endpoint| endpoint.datagram = None);
    World::new(settings)
}

#[test]
fn a_used_stream_that_was_closed_costs_nobody_anything() {
    let mut world = stream_only(1);
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    world.mail.replies.clear();
    for n in 0..8 {
        world.ask(udp(n), &Message::query(&format!("b{n}.test"), 1));
    }
    world.mail.sent.clear();
    world.close(slot, None);
    assert_eq!(world.mail.sent.len(), 8, "all are asked again on a new one");
    for (slot, query) in std::mem::take(&mut world.mail.sent) {
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    assert_eq!(world.mail.replies.len(), 8);
    let now = world.now;
    assert!(world.forwarder.pools(now).all(|(_, _, pool)| pool.counters.failures == 0), "nobody is blamed");
}

#[test]
fn a_stream_that_answers_nothing_is_given_up() {
    let mut world = stream_only(1);
    for n in 0..3 {
        world.ask(udp(n), &Message::query(&format!("a{n}.test"), 1));
    }
    let slot = world.mail.sent[0].0;
    world.mail.sent.clear();
    world.pass(Duration::from_millis(1010));
    assert!(world.mail.sent.iter().any(|(other, _)| *other != slot), "a new connection is tried");
    world.pass(Duration::from_secs(4));
    assert!(!world.links.contains_key(&slot), "and the dead one closed");
}

#[test]
fn strategies_choose_who_is_asked_first() {
    let first = |strategy, questions: u32| {
        let mut settings = config(3);
        settings.upstreams[0].strategy = strategy;
        let mut world = World::new(settings);
        let mut asked = [0u32; 3];
        for n in 0..questions {
            world.ask(udp(1), &Message::query(&format!("a{n}.test"), 1));
            let (slot, _) = world.one_sent();
            asked[usize::from(world.links[&slot].0)] += 1;
        }
        asked
    };
    assert_eq!(first(Strategy::Sequential, 12), [12, 0, 0]);
    assert_eq!(first(Strategy::RoundRobin, 12), [4, 4, 4]);
    assert_eq!(first(Strategy::LeastInflight, 12), [4, 4, 4]);
    assert!(first(Strategy::Random, 60).iter().all(|n| (8..40).contains(n)));
}

#[test]
fn too_many_who_wait_are_told_so() {
    let mut settings = config(1);
    settings.waiting_max = 2;
    let mut world = World::new(settings);
    for n in 0..3 {
        world.ask(udp(n), &with_edns(Message::query("a.test", 1)));
    }
    let (client, reply) = world.one_reply();
    assert_eq!((client, rcode(&reply), extended_error(&reply).unwrap().0), (udp(2), 2, 14));
    assert_eq!(world.forwarder.counters().failed_overload, 1);
}

#[test]
fn the_udp_size_is_asked_of_upstreams_and_caps_replies() {
    let mut settings = config(1);
    settings.udp_size = 600;
    let mut world = World::new(settings);
    world.ask(udp(1), &Message::query("a.test", 16).opt(4096, 0, &[]));
    let (slot, query) = world.one_sent();
    assert!(query.ends_with(&opt(600, 0)));
    let long = [&[255][..], &[b'x'; 255]].concat().repeat(3);
    world.answer(slot, &answer_to(&query, OK).record(0, 16, 60, &long).0);
    let (_, reply) = world.one_reply();
    assert!(reply.len() <= 600 && reply[2] & 2 == 2);
}

#[test]
fn without_a_pool_each_query_has_its_own_socket() {
    let mut settings = config(1);
    if let Some(link) = &mut settings.upstreams[0].endpoints[0].datagram {
        link.config = Config { capacity: 1, uses_max: Some(1), ..Config::default() };
        link.permits = Permits::alone(64, 0);
    }
    settings.cache_bytes = 0;
    let mut world = World::new(settings);
    for n in 0..20 {
        world.ask(udp(1), &Message::query(&format!("a{n}.test"), 1));
        let (slot, query) = world.one_sent();
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        assert!(world.links.is_empty());
    }
    assert_eq!(world.dialed, 20);
}

#[test]
fn without_a_cache_everything_is_asked() {
    let mut settings = config(1);
    settings.cache_bytes = 0;
    let mut world = World::new(settings);
    for _ in 0..2 {
        world.ask(udp(1), &Message::query("a.test", 1));
        let (slot, query) = world.one_sent();
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    assert_eq!(world.forwarder.counters().misses, 2);
}

#[test]
fn an_answer_that_cannot_be_read_is_not_passed_on() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let mut cut = answer_to(&query, OK).a(60).0;
    cut.pop();
    world.answer(slot, &cut);
    assert!(world.mail.replies.is_empty());
    assert_eq!(world.forwarder.counters().malformed, 1);
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
}

#[test]
fn a_draining_forwarder_answers_what_is_in_flight_and_takes_nothing_new() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    world.forwarder.drain();
    world.ask(udp(2), &Message::query("b.test", 1));
    assert_eq!(rcode(&world.one_reply().1), 2);
    assert!(!world.forwarder.is_idle());
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    assert!(world.forwarder.is_idle());
}

#[test]
fn each_impossible_setting_is_named() {
    let field = |change: fn(&mut crate::forwarder::ForwarderConfig)| {
        let mut settings = config(1);
        change(&mut settings);
        settings.validate().unwrap_err().to_string()
    };
    assert!(field(|c| c.upstreams.clear()).contains("upstreams"));
    assert!(field(|c| c.attempt_timeout = Duration::ZERO).contains("attempt_timeout"));
    assert!(field(|c| c.query_timeout = Duration::from_millis(1)).contains("query_timeout"));
    assert!(field(|c| c.query_timeout = Duration::from_secs(61)).contains("query_timeout"));
    assert!(field(|c| c.attempts_max = 0).contains("attempts_max"));
    assert!(field(|c| c.waiting_max = 0).contains("waiting_max"));
    assert!(field(|c| c.udp_size = 511).contains("udp_size"));
    assert!(field(|c| c.upstreams[0].endpoints[0].stream.config.capacity = 20_000).contains("capacity"));
}

#[test]
fn the_longest_route_that_fits_says_which_upstream_is_asked() {
    let mut settings = config(1);
    for (n, suffix) in
        [&b"\x04corp\x07example\0"[..], b"\x02eu\x04corp\x07example\0", b"\x03arp\0"].iter().enumerate()
    {
        let mut upstream = settings.upstreams[0].clone();
        upstream.endpoints[0].name = format!("routed {n}");
        settings.upstreams.push(upstream);
        settings.routes.push(Route { suffix: suffix.to_vec(), upstream: n as u16 + 1 });
    }
    let mut world = World::new(settings);
    for (name, endpoint) in [
        ("example", 0),
        ("corp.example", 1),
        ("a.Corp.EXAMPLE", 1),
        ("acorp.example", 0),
        ("eu.corp.example", 2),
        ("www.eu.corp.example", 2),
        ("aeu.corp.example", 1),
        ("arp", 3),
        ("4.arp", 3),
        ("corp.example.org", 0),
    ] {
        world.ask(udp(1), &Message::query(name, 1));
        let (slot, _) = world.one_sent();
        assert_eq!(world.links[&slot].0, endpoint, "{name}");
    }
}

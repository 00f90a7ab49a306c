//! Forged, late and doubled answers.

use std::time::Duration;

use forebay_core::{Cause, SlotId};

use super::world::{OK, World, answer_to, config, id, rcode, udp};
use crate::forwarder::{Carrier, Notice};
use crate::testing::Message;

fn sockets(world: &World) -> Vec<SlotId> {
    let datagram =
        |(slot, (_, carrier)): (&SlotId, &(u16, Carrier))| (*carrier == Carrier::Datagram).then_some(*slot);
    let mut all: Vec<SlotId> = world.links.iter().filter_map(datagram).collect();
    all.sort_unstable_by_key(|slot| slot.index());
    all
}

fn guesses(world: &mut World, slot: SlotId, query: &[u8], n: u16) {
    for turn in 1..=n {
        let mut guess = answer_to(query, OK).record(0, 1, 60, &[6, 6, 6, 6]).0;
        let other = id(query) ^ turn;
        guess[..2].copy_from_slice(&other.to_be_bytes());
        world.answer(slot, &guess);
    }
}

fn warm(sockets: u32) -> World {
    let mut settings = config(1);
    if let Some(link) = &mut settings.upstreams[0].endpoints[0].datagram {
        link.config.connections_min = sockets;
    }
    World::new(settings)
}

#[test]
fn a_burst_of_guesses_replaces_every_socket_and_is_told_of_once() {
    let mut world = warm(4);
    let before = sockets(&world);
    assert_eq!(before.len(), 4);
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    guesses(&mut world, slot, &query, 3);
    assert_eq!(world.forwarder.counters().bursts, 0, "three may be an accident");
    guesses(&mut world, slot, &query, 60);
    let counters = *world.forwarder.counters();
    assert_eq!((counters.bursts, counters.rotated, counters.unexpected), (1, 4, 63));
    let (notice, name) = world.forwarder.poll_notice().unwrap();
    assert_eq!((notice, name), (Notice::Guessing { guesses: 4 }, "upstream 0"));
    assert!(world.forwarder.poll_notice().is_none(), "one burst, one notice");
    let after = sockets(&world);
    assert_eq!(
        after.iter().filter(|slot| before.contains(slot)).collect::<Vec<_>>(),
        [&slot],
        "it has a query"
    );
    assert_eq!(after.len(), 5, "four new ones");
}

#[test]
fn an_answer_after_guesses_is_asked_for_again_over_a_stream() {
    let mut world = warm(2);
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    guesses(&mut world, slot, &query, 4);
    // One guess in 65,536 has the right id: it must not win.
    world.answer(slot, &answer_to(&query, OK).record(0, 1, 60, &[6, 6, 6, 6]).0);
    assert!(world.mail.replies.is_empty());
    let (stream, query) = world.one_sent();
    assert_eq!(world.links[&stream].1, Carrier::Stream);
    world.answer(stream, &answer_to(&query, OK).a(60).0);
    assert!(world.one_reply().1.ends_with(&[192, 0, 2, 1]));
    assert_eq!(world.forwarder.counters().distrusted, 1);
}

#[test]
fn an_endpoint_under_fire_is_asked_over_streams_until_it_is_quiet() {
    let mut world = warm(2);
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    guesses(&mut world, slot, &query, 4);
    let carrier = |world: &mut World, name: &str| {
        world.ask(udp(1), &Message::query(name, 1));
        let (slot, query) = world.one_sent();
        let carrier = world.links[&slot].1;
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        carrier
    };
    assert_eq!(carrier(&mut world, "b.test"), Carrier::Stream);
    world.pass(Duration::from_millis(9_900));
    world.mail.sent.clear();
    assert_eq!(carrier(&mut world, "c.test"), Carrier::Stream);
    world.pass(Duration::from_millis(200));
    assert_eq!(carrier(&mut world, "d.test"), Carrier::Datagram);
}

#[test]
fn a_guarded_endpoint_without_streams_is_asked_over_datagrams() {
    let mut world = warm(2);
    world.dials.insert((0, Carrier::Stream), Err(Cause::Refused));
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    guesses(&mut world, slot, &query, 4);
    for n in 0..20 {
        world.ask(udp(2), &Message::query(&format!("b{n}.test"), 1));
        world.pass(Duration::from_millis(10));
    }
    let sent = std::mem::take(&mut world.mail.sent);
    assert!(
        sent.len() >= 15,
        "only while its dials are not yet known to fail does anybody wait: {}",
        sent.len()
    );
    for (slot, query) in sent {
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    assert!(world.mail.replies.iter().filter(|(_, reply)| rcode(reply) == 0).count() >= 15);
}

#[test]
fn sockets_are_not_replaced_without_end_however_fast_the_guesses() {
    let mut world = warm(4);
    for round in 0..200u32 {
        let slots = sockets(&world);
        for slot in slots {
            let query = Message::query(&format!("n{round}.test"), 1).0;
            guesses(&mut world, slot, &query, 8);
        }
        world.pass(Duration::from_millis(10));
    }
    // Two seconds, four sockets, once a second; and the four that were there.
    assert!(world.dialed <= 4 * 4, "{} sockets in two seconds", world.dialed);
    let notices = std::iter::from_fn(|| world.forwarder.poll_notice().map(drop)).count();
    assert_eq!(notices, 1);
}

#[test]
fn zero_near_misses_suspects_nobody() {
    let mut settings = config(1);
    settings.safety.near_misses_max = 0;
    let mut world = World::new(settings);
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    guesses(&mut world, slot, &query, 1000);
    world.answer(slot, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    let counters = world.forwarder.counters();
    assert_eq!((counters.bursts, counters.rotated, counters.unexpected), (0, 0, 1000));
}

#[test]
fn late_and_doubled_answers_are_no_guesses() {
    let mut world = World::new(config(1));
    for n in 0..50 {
        world.ask(udp(1), &Message::query(&format!("a{n}.test"), 1));
        let (slot, query) = world.one_sent();
        let answer = answer_to(&query, OK).a(60).0;
        for _ in 0..3 {
            world.answer(slot, &answer);
        }
    }
    let counters = world.forwarder.counters();
    assert_eq!((counters.answers, counters.late, counters.unexpected), (50, 100, 0));
}

#[test]
fn no_id_is_used_twice_on_one_socket_and_a_worn_out_one_is_replaced() {
    let mut settings = config(1);
    settings.cache_bytes = 0;
    let mut world = World::new(settings);
    let mut used: std::collections::HashSet<(SlotId, u16)> = std::collections::HashSet::new();
    for _ in 0..40_000 {
        world.ask(udp(1), &Message::query("a.test", 1));
        let (slot, query) = world.one_sent();
        assert!(used.insert((slot, id(&query))), "used before");
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        world.mail.replies.clear();
    }
    assert_eq!(world.dialed, 2, "after 32,768 ids a socket is replaced");
}

#[test]
fn the_entropy_is_that_of_sockets_and_unused_ids() {
    let bits = |world: &World| world.forwarder.entropy().next().unwrap();
    let mut world = warm(8);
    assert_eq!(bits(&world), (0, 19.0));
    assert_eq!(bits(&warm(1)), (0, 16.0));
    world.ask(udp(1), &Message::query("a.test", 1));
    assert!(bits(&world).1 < 19.0 && bits(&world).1 > 18.999);
}

/// Over many queries, with answers that come late, twice and in any order, each reply is one that was made for a query of
/// its own question: `FOREBAY_LATE_QUERIES` says how many, 100,000 unless given.
#[test]
fn no_late_or_doubled_answer_ever_reaches_a_later_query() {
    let queries =
        std::env::var("FOREBAY_LATE_QUERIES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000u32);
    let mut settings = config(2);
    settings.cache_bytes = 0;
    settings.attempt_timeout = Duration::from_millis(50);
    settings.query_timeout = Duration::from_millis(200);
    for endpoint in &mut settings.upstreams[0].endpoints {
        if let Some(link) = &mut endpoint.datagram {
            (link.config.connections_min, link.config.capacity) = (4, 64);
            link.config.uses_max = Some(20_000);
        }
    }
    let mut world = World::new(settings);
    let mut rng = forebay_core::Rng::new(5);
    // Each answer carries the number of the flight that it was made for; few names, so that they come again and again.
    let mut post: std::collections::BTreeMap<(u64, u32), (SlotId, Vec<u8>)> =
        std::collections::BTreeMap::new();
    let mut flight_of: Vec<u32> = vec![0; 64];
    let mut open: Vec<Option<u16>> = vec![None; 64];
    let (mut asked, mut posted, mut replied, mut failed) = (0u32, 0u32, 0u32, 0u32);
    while asked < queries || open.iter().any(Option::is_some) {
        for name in 0..64usize {
            if asked < queries && open[name].is_none() && rng.percent(30) {
                asked += 1;
                flight_of[name] = asked;
                open[name] = Some(asked as u16);
                let mut query = Message::query(&format!("n{name}.test"), 1);
                query.0[..2].copy_from_slice(&(asked as u16).to_be_bytes());
                world.ask(udp(name as u16), &query);
            }
        }
        for (slot, query) in std::mem::take(&mut world.mail.sent) {
            let name: usize =
                std::str::from_utf8(&query[14..13 + usize::from(query[12])]).unwrap().parse().unwrap();
            let answer = answer_to(&query, OK).record(0, 1, 60, &flight_of[name].to_be_bytes()).0;
            let copies = 1 + rng.below(3);
            for _ in 0..copies {
                // Most come in time; one in ten after its attempt's time, or even the question's.
                let delay = u64::from(if rng.percent(10) { rng.below(600) } else { rng.below(20) });
                posted += 1;
                post.insert((world.now.as_nanos() / 1_000_000 + delay, posted), (slot, answer.clone()));
            }
        }
        world.pass(Duration::from_millis(1));
        let now = world.now.as_nanos() / 1_000_000;
        while post.first_key_value().is_some_and(|((at, _), _)| *at <= now) {
            if let Some((_, (slot, bytes))) = post.pop_first()
                && world.links.contains_key(&slot)
            {
                world.answer(slot, &bytes);
            }
        }
        for (client, reply) in std::mem::take(&mut world.mail.replies) {
            let crate::forwarder::Client::Udp { peer, .. } = client else { panic!("all ask over UDP") };
            let name = usize::from(peer.port());
            assert_eq!(open[name].take(), Some(id(&reply)), "a reply to a question that is not open");
            replied += 1;
            if rcode(&reply) != 0 {
                failed += 1;
                continue;
            }
            assert_eq!(reply[reply.len() - 4..], flight_of[name].to_be_bytes(), "an old answer for n{name}");
        }
    }
    let counters = world.forwarder.counters();
    println!(
        "{replied} queries, {posted} answers sent, {} taken, {} late or doubled, {} unexpected, {failed} failed",
        counters.answers, counters.late, counters.unexpected
    );
    assert_eq!(replied, queries);
    assert!(counters.late > u64::from(queries) / 2 && failed < queries / 20);
    assert_eq!((counters.unexpected, counters.bursts), (0, 0));
}

fn with_case() -> World {
    let mut settings = config(1);
    settings.safety.randomize_case = true;
    settings.cache_bytes = 0;
    World::new(settings)
}

fn lower(query: &[u8]) -> Vec<u8> {
    let mut bytes = query.to_vec();
    bytes[12..].make_ascii_lowercase();
    bytes
}

#[test]
fn names_are_spelled_at_random_and_the_client_gets_its_own_letters_back() {
    let mut world = with_case();
    let mut upper = 0;
    for n in 0..100 {
        world.ask(udp(1), &Message::query(&format!("Some-Name-Of-Letters{n}.Test"), 1));
        let (slot, query) = world.one_sent();
        upper += query.iter().filter(|byte| byte.is_ascii_uppercase()).count();
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        let reply = world.one_reply().1;
        assert_eq!(&reply[13..22], b"Some-Name");
        assert_eq!(rcode(&reply), 0);
    }
    // Twenty-one letters each.
    assert!((900..1200).contains(&upper), "half of 2100: {upper}");
    let bits = world.forwarder.entropy().next().unwrap().1;
    assert!((36.0..38.0).contains(&bits), "sixteen bits of one socket, and twenty-one letters: {bits}");
    assert_eq!(world.forwarder.counters().case_mismatches, 0);
}

#[test]
fn an_answer_in_another_case_is_asked_for_again_over_a_stream() {
    let mut world = with_case();
    world.ask(udp(1), &Message::query("some-name-of-letters.test", 1));
    let (slot, query) = world.one_sent();
    let other: Vec<u8> = lower(&query);
    world.answer(slot, &answer_to(&other, OK).record(0, 1, 60, &[6, 6, 6, 6]).0);
    assert!(world.mail.replies.is_empty());
    let (stream, query) = world.one_sent();
    assert_eq!(world.links[&stream].1, Carrier::Stream);
    assert_eq!(query, lower(&query), "over a stream nothing is spelled at random");
    world.answer(stream, &answer_to(&query, OK).a(60).0);
    assert!(world.one_reply().1.ends_with(&[192, 0, 2, 1]));
    assert_eq!(world.forwarder.counters().case_mismatches, 1);
}

#[test]
fn an_upstream_that_does_not_keep_letter_case_is_spared_for_ten_minutes_and_one_slip_is_not_enough() {
    let mut world = with_case();
    let ask = |world: &mut World, n: u32, keeps: bool| {
        world.ask(udp(1), &Message::query(&format!("some-name-of-letters{n}.test"), 1));
        let (slot, query) = world.one_sent();
        let random = query != lower(&query);
        world.answer(slot, &answer_to(&if keeps { query } else { lower(&query) }, OK).a(60).0);
        if let Some((stream, query)) = world.mail.sent.pop() {
            world.answer(stream, &answer_to(&query, OK).a(60).0);
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
        random
    };
    for n in 0..40 {
        assert!(ask(&mut world, n, n % 8 == 7), "seven in a row are not enough");
    }
    assert!(world.forwarder.poll_notice().is_none());
    for n in 40..48 {
        assert!(ask(&mut world, n, false));
    }
    assert_eq!(world.forwarder.poll_notice().unwrap().0, Notice::CaseNotKept);
    assert!((50..70).all(|n| !ask(&mut world, n, false)), "it is asked in lower case");
    world.pass(Duration::from_secs(601));
    assert!(ask(&mut world, 80, true));
}

fn with_cookies() -> World {
    let mut settings = config(1);
    settings.safety.cookies = true;
    settings.cache_bytes = 0;
    World::new(settings)
}

/// The cookie in a query: it is the last option.
fn cookie(query: &[u8]) -> Option<&[u8]> {
    let at = query.windows(2).rposition(|pair| pair == [0, 10])?;
    let len = usize::from(query[at + 3]);
    query.get(at + 4..at + 4 + len).filter(|_| query[at + 2] == 0 && query.len() == at + 4 + len)
}

fn answer_with_cookie(query: &[u8], rcode: u16, client: &[u8], server: &[u8]) -> Vec<u8> {
    let mut option = vec![0, 10, 0, (client.len() + server.len()) as u8];
    option.extend_from_slice(client);
    option.extend_from_slice(server);
    let message = answer_to(query, OK | rcode & 15);
    let message = if rcode == 0 { message.a(60) } else { message };
    message.opt(1232, u32::from(rcode >> 4) << 24, &option).0
}

#[test]
fn a_cookie_goes_out_and_comes_back_with_the_upstreams_own() {
    let mut world = with_cookies();
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let client = cookie(&query).unwrap().to_vec();
    assert_eq!(client.len(), 8);
    world.answer(slot, &answer_with_cookie(&query, 0, &client, b"serverxx"));
    assert_eq!(rcode(&world.one_reply().1), 0);
    world.ask(udp(1), &Message::query("b.test", 1));
    let (slot, query) = world.one_sent();
    assert_eq!(cookie(&query).unwrap(), [&client[..], b"serverxx"].concat());
    world.answer(slot, &answer_with_cookie(&query, 0, &client, b"another-server-cookie"));
    world.one_reply();
    world.ask(udp(1), &Message::query("c.test", 1));
    assert_eq!(cookie(&world.one_sent().1).unwrap()[8..], *b"another-server-cookie");
    assert!(world.forwarder.entropy().next().unwrap().1 > 79.0, "64 bits more");
}

#[test]
fn an_answer_with_a_wrong_cookie_is_not_taken_and_one_without_is_asked_for_again() {
    let mut world = with_cookies();
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let client = cookie(&query).unwrap().to_vec();
    world.answer(slot, &answer_with_cookie(&query, 0, b"guessed!", b"serverxx"));
    assert!(world.mail.replies.is_empty() && world.mail.sent.is_empty(), "the right one may still come");
    world.answer(slot, &answer_with_cookie(&query, 0, &client, b"serverxx"));
    assert_eq!(rcode(&world.one_reply().1), 0);

    world.ask(udp(1), &Message::query("b.test", 1));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).record(0, 1, 60, &[6, 6, 6, 6]).0);
    assert!(world.mail.replies.is_empty());
    let (stream, query) = world.one_sent();
    assert_eq!((world.links[&stream].1, cookie(&query)), (Carrier::Stream, None));
    world.answer(stream, &answer_to(&query, OK).a(60).0);
    assert!(world.one_reply().1.ends_with(&[192, 0, 2, 1]));
    let counters = world.forwarder.counters();
    assert_eq!((counters.cookies_wrong, counters.cookies_missing), (1, 1));
}

#[test]
fn an_upstream_without_cookies_is_asked_as_any_other_and_one_that_stops_is_let_go() {
    let mut world = with_cookies();
    let ask = |world: &mut World, n: u32, server: Option<&[u8]>| {
        world.ask(udp(1), &Message::query(&format!("a{n}.test"), 1));
        let (slot, query) = world.one_sent();
        let client = cookie(&query).unwrap()[..8].to_vec();
        match server {
            Some(server) => world.answer(slot, &answer_with_cookie(&query, 0, &client, server)),
            None => world.answer(slot, &answer_to(&query, OK).a(60).0),
        }
        let over_stream = world.mail.sent.pop();
        if let Some((stream, query)) = &over_stream {
            world.answer(*stream, &answer_to(query, OK).a(60).0);
        }
        assert_eq!(rcode(&world.one_reply().1), 0);
        over_stream.is_some()
    };
    assert!((0..10).all(|n| !ask(&mut world, n, None)));
    assert!(!ask(&mut world, 20, Some(b"serverxx")));
    assert_eq!((30..50).filter(|n| ask(&mut world, *n, None)).count(), 8, "eight in a row, and it is let go");
    assert_eq!(world.forwarder.poll_notice().unwrap().0, Notice::CookiesLost);
}

#[test]
fn an_old_cookie_is_replaced_once_and_then_it_is_asked_over_a_stream() {
    let mut world = with_cookies();
    world.ask(udp(1), &Message::query("a.test", 1));
    let (slot, query) = world.one_sent();
    let client = cookie(&query).unwrap().to_vec();
    world.answer(slot, &answer_with_cookie(&query, 23, &client, b"serverxx"));
    let (slot, query) = world.one_sent();
    assert_eq!(world.links[&slot].1, Carrier::Datagram);
    assert_eq!(cookie(&query).unwrap()[8..], *b"serverxx");
    world.answer(slot, &answer_with_cookie(&query, 23, &client, b"serveryy"));
    let (stream, query) = world.one_sent();
    assert_eq!(world.links[&stream].1, Carrier::Stream);
    world.answer(stream, &answer_to(&query, OK).a(60).0);
    assert_eq!(rcode(&world.one_reply().1), 0);
    assert_eq!(world.forwarder.counters().cookies_refused, 2);
}

#[test]
fn another_address_of_ours_has_another_cookie() {
    let mut world = with_cookies();
    let mut seen = Vec::new();
    for local in [None, Some([192, 0, 2, 1]), Some([192, 0, 2, 2])] {
        if let Some(slot) = sockets(&world).first().copied() {
            world.close(slot, None);
        }
        let query = Message::query("a.test", 1);
        world.forwarder.handle_query(world.now, udp(1), &query.0, &mut world.mail);
        while let Some(action) = world.forwarder.poll_link() {
            if let crate::forwarder::LinkAction::Dial { slot, .. } = action {
                if let Some(local) = local {
                    world.forwarder.note_local(slot, local.into());
                }
                world.links.insert(slot, (0, Carrier::Datagram));
                world.forwarder.handle_dialed(world.now, slot, Ok(u32::MAX), &mut world.mail);
            }
        }
        let (slot, query) = world.mail.sent.pop().unwrap();
        seen.push(cookie(&query).unwrap().to_vec());
        world.answer(slot, &answer_to(&query, OK).a(60).0);
        world.mail.replies.clear();
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2] && seen[0] != seen[2], "{seen:?}");
}

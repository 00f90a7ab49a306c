//! Streams' manners: what clients are told of idle time, and how long messages look where nobody can read them.

use super::world::{OK, World, answer_to, config, tcp, udp};
use crate::forwarder::{Client, StreamKind};
use crate::testing::{Message, scanned};
use crate::wire::Scan;

const PADDING: [u8; 8] = [0, 12, 0, 4, 0, 0, 0, 0];
const KEEPALIVE: [u8; 4] = [0, 11, 0, 0];

fn over(kind: StreamKind) -> Client {
    Client::Stream { connection: 1, peer: [192, 0, 2, 9].into(), kind, idle: 100 }
}

/// The length of a reply, and the idle time that it tells.
fn told(world: &mut World, client: Client, options: &[u8]) -> (usize, Option<u16>) {
    world.ask(client, &Message::query("a.test", 1).opt(1232, 0, options));
    if !world.mail.sent.is_empty() {
        let (slot, query) = world.one_sent();
        world.answer(slot, &answer_to(&query, OK).a(60).0);
    }
    let (_, reply) = world.one_reply();
    let mut scan = Scan::new();
    let answer = scan.scan_answer(&reply).unwrap();
    (reply.len(), answer.opt.unwrap().edns.options.keepalive())
}

#[test]
fn a_client_on_a_stream_that_asks_is_told_how_long_it_may_be_idle() {
    let mut world = World::new(config(1));
    for (client, options, expected) in [
        (tcp(1), &KEEPALIVE[..], Some(100)),
        (over(StreamKind::Tls), &KEEPALIVE, Some(100)),
        (over(StreamKind::Https), &KEEPALIVE, None),
        (udp(1), &KEEPALIVE, None),
        (tcp(1), &[], None),
        (tcp(1), &PADDING, None),
    ] {
        assert_eq!(told(&mut world, client, options).1, expected, "{client:?} {options:?}");
    }
}

#[test]
fn answers_to_padded_queries_are_padded_where_nobody_can_read_them() {
    let mut world = World::new(config(1));
    let both = [PADDING.as_slice(), &KEEPALIVE].concat();
    for (client, options, is_padded) in [
        (over(StreamKind::Tls), &PADDING[..], true),
        (over(StreamKind::Https), &PADDING, true),
        (over(StreamKind::Tls), &both, true),
        (over(StreamKind::Tls), &KEEPALIVE, false),
        (tcp(1), &PADDING, false),
        (udp(1), &PADDING, false),
    ] {
        let (len, _) = told(&mut world, client, options);
        assert_eq!(len == 468, is_padded, "{client:?} {options:?}: {len}");
    }
}

#[test]
fn errors_are_padded_too() {
    let mut world = World::new(config(1));
    world.ask(over(StreamKind::Tls), &Message::query("a.test", 252).opt(1232, 0, &PADDING));
    let (_, reply) = world.one_reply();
    assert_eq!((reply.len(), reply[3] & 15), (468, 5), "transfers are refused");
}

#[test]
fn queries_are_padded_on_streams_to_encrypted_upstreams_alone() {
    for (is_encrypted, is_stream) in [(true, true), (false, true), (true, false)] {
        let mut settings = config(1);
        let endpoint = &mut settings.upstreams[0].endpoints[0];
        endpoint.is_encrypted = is_encrypted;
        if is_stream {
            endpoint.datagram = None;
        }
        let mut world = World::new(settings);
        for name in ["a.test", "a.much.longer.name.that.tells.what.somebody.does.all.day.long.test"] {
            world.ask(udp(1), &Message::query(name, 1));
            let (slot, query) = world.one_sent();
            let is_padded = is_encrypted && is_stream;
            assert_eq!(query.len() == 128, is_padded, "{name}: {}", query.len());
            let message = Message(query.clone());
            assert_eq!(scanned(&message).edns.unwrap().options.has_padding(), is_padded);
            world.answer(slot, &answer_to(&query, OK).a(60).0);
            world.one_reply();
        }
    }
}

//! Who may ask, and what is answered without asking anybody.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::world::{OK, World, answer_to, config, rcode, tcp, udp};
use crate::cache::{SavedFile, Saver};
use crate::forwarder::{AnyPolicy, Client, ForwarderConfig, FrontConfig, Handled, Route, StreamKind};
use crate::guard::{PrefixSet, RateConfig, RateLimit, RebindConfig};
use crate::local::{BlockAnswer, BlockList, BlockListBuilder, LocalData, LocalDataBuilder, LocalRecord};
use crate::testing::{Message, name, seed};
use crate::wire::{AnswerKind, Scan, class};

fn world(front: FrontConfig) -> World {
    World::new(ForwarderConfig { front, ..config(1) })
}

fn local(records: &[&str]) -> Arc<LocalData> {
    let mut builder = LocalDataBuilder::new(seed(), 60);
    records.iter().for_each(|record| builder.add_record(&LocalRecord::parse(record).unwrap()));
    Arc::new(builder.finish(|problem| panic!("{problem}")))
}

fn block(lines: &[&str]) -> Arc<BlockList> {
    let mut builder = BlockListBuilder::new(seed());
    lines.iter().for_each(|line| builder.add_line(line.as_bytes()).unwrap());
    Arc::new(builder.finish())
}

fn from(address: &str) -> Client {
    let ip: IpAddr = address.parse().unwrap();
    Client::Udp { listener: 0, peer: (ip, 4000).into(), local: None }
}

fn edns(dotted: &str, qtype: u16) -> Message {
    Message::query(dotted, qtype).opt(1232, 0, &[])
}

/// What a reply says: response code, kind, addresses of the answer, extended error.
#[derive(Debug, PartialEq)]
struct Said {
    rcode: u8,
    kind: AnswerKind,
    rdata: Vec<u8>,
    negative_ttl: Option<u32>,
    error: Option<u16>,
}

fn said(reply: &[u8]) -> Said {
    let mut scan = Scan::new();
    let answer = scan.scan_answer(reply).unwrap();
    let records = answer.counts[0] > 0;
    let at = 12 + answer.question.len() + 12;
    Said {
        rcode: rcode(reply),
        kind: answer.kind,
        rdata: if records { reply[at..at + usize::from(reply[at - 1])].to_vec() } else { Vec::new() },
        negative_ttl: answer.negative_ttl,
        error: answer.opt.and_then(|opt| opt.edns.options.extended_error()).map(|error| error.code),
    }
}

impl World {
    /// Asks, and takes the reply that must come without anybody being asked.
    fn told(&mut self, message: &Message) -> Said {
        self.ask(udp(1), message);
        assert!(self.mail.sent.is_empty(), "nobody is asked");
        said(&self.one_reply().1)
    }

    /// Asks, and sees that somebody else is asked.
    fn is_forwarded(&mut self, message: &Message) -> bool {
        let sent = self.mail.sent.len();
        self.ask(udp(1), message);
        self.mail.sent.len() > sent
    }

    /// Asks, and lets the upstream answer with this address.
    fn learn(&mut self, dotted: &str, address: [u8; 4]) -> Said {
        self.ask(udp(1), &edns(dotted, 1));
        let (slot, query) = self.one_sent();
        self.answer(slot, &answer_to(&query, OK).record(0, 1, 300, &address).0);
        said(&self.one_reply().1)
    }
}

#[test]
fn clients_outside_the_allow_list_are_refused_and_told_why() {
    let allow = Some(PrefixSet::new(&["192.0.2.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()]));
    let mut world = world(FrontConfig { allow, ..FrontConfig::default() });
    let stream = Client::Stream { connection: 1, peer: [8; 4].into(), kind: StreamKind::Tcp, idle: 0 };
    for outsider in [from("198.51.100.1"), from("2001:db8::1"), stream] {
        world.ask(outsider, &edns("a.test", 1));
        let (client, reply) = world.one_reply();
        assert_eq!((client, rcode(&reply), said(&reply).error), (outsider, 5, Some(18)));
    }
    assert!(world.mail.sent.is_empty());
    assert_eq!(world.ask(from("198.51.100.1"), &Message(vec![0; 5])), Handled::Ignored);
    assert_eq!(world.forwarder.counters().refused_client, 3);
    assert_eq!(world.forwarder.counters().queries, 0);
    for friend in [udp(1), tcp(2), from("fd00::1"), from("::ffff:192.0.2.9")] {
        world.mail.replies.clear();
        world.ask(friend, &edns("a.test", 1));
        assert!(world.mail.replies.is_empty(), "it waits for the answer");
    }
    assert!(world.forwarder.serves([192, 0, 2, 1].into()) && !world.forwarder.serves([8; 4].into()));
}

#[test]
fn a_network_over_its_limit_is_dropped_slipped_or_refused() {
    let limit = RateConfig { per_second: 10, burst: 10, v4_len: 32, v6_len: 56 };
    for (slip, expected) in [(0, 0..=0), (1, 1000..=1000), (4, 180..=320)] {
        let rate = Some(Arc::new(RateLimit::new(limit, seed()).unwrap()));
        let mut world =
            world(FrontConfig { rate, rate_slip: slip, special_names: true, ..FrontConfig::default() });
        for _ in 0..1010 {
            world.ask(udp(1), &edns("x.local", 1));
        }
        let slipped = world.mail.replies.iter().filter(|(_, reply)| reply[2] & 2 != 0).count() as u64;
        assert!(expected.contains(&slipped), "{slip}: {slipped}");
        assert_eq!(world.mail.replies.len() as u64, 10 + slipped);
        let counters = world.forwarder.counters();
        assert_eq!((counters.limited_truncated, counters.limited_dropped), (slipped, 1000 - slipped));
        let reply = world.mail.replies.iter().find(|(_, reply)| reply[2] & 2 != 0);
        assert!(reply.is_none_or(|(_, reply)| reply.len() == edns("x.local", 1).0.len()), "no amplification");
        world.mail.replies.clear();
        world.ask(tcp(1), &edns("x.local", 1));
        let (_, reply) = world.one_reply();
        assert_eq!((rcode(&reply), said(&reply).error), (5, Some(18)), "a stream is refused");
        world.now = world.now + Duration::from_millis(100);
        assert_eq!(world.told(&edns("x.local", 1)).rcode, 3, "later it is served again");
    }
}

#[test]
fn any_is_answered_with_one_record_that_says_so_or_forwarded() {
    let mut world = world(FrontConfig { any: AnyPolicy::Minimal, ..FrontConfig::default() });
    let said = world.told(&edns("a.test", 255));
    assert_eq!((said.rcode, &*said.rdata), (0, &b"\x07RFC8482\0"[..]));
    assert_eq!(world.forwarder.counters().any_minimal, 1);
    assert!(World::new(config(1)).is_forwarded(&edns("a.test", 255)));
}

#[test]
fn classes_other_than_in_are_refused() {
    let mut world = World::new(config(1));
    for other in [class::CH, class::HS, class::ANY] {
        let mut query = Message::query("version.bind", 16);
        let end = query.0.len();
        query.0[end - 2..].copy_from_slice(&other.to_be_bytes());
        let said = world.told(&query.opt(1232, 0, &[]));
        assert_eq!((said.rcode, said.error), (5, Some(21)));
    }
    assert_eq!(world.forwarder.counters().refused_class, 3);
}

#[test]
fn transfers_updates_and_notifications_are_refused() {
    let mut world = World::new(config(1));
    for (qtype, flags, code) in
        [(252, 0x0000, 5), (251, 0x0000, 5), (6, 0x2800, 4), (6, 0x2000, 4), (1, 0x1000, 4)]
    {
        assert_eq!(
            world.told(&Message::query("a.test", qtype).flags(flags)).rcode,
            code,
            "{qtype} {flags:x}"
        );
    }
}

#[test]
fn a_query_without_rd_is_forwarded_and_learns_nothing_of_others() {
    let mut world = World::new(config(1));
    world.learn("a.test", [192, 0, 2, 1]);
    assert!(world.is_forwarded(&Message::query("a.test", 1).flags(0)), "not from the cache");
    let (_, query) = world.one_sent();
    assert_eq!(query[2] & 1, 0, "RD stays as it was");
}

#[test]
fn special_names_are_answered_here_unless_a_route_says_otherwise() {
    let front = FrontConfig { special_names: true, ..FrontConfig::default() };
    let mut other = ForwarderConfig { front, ..config(1) };
    let mut far = other.upstreams[0].clone();
    "far".clone_into(&mut far.name);
    other.upstreams.push(far);
    other.routes = vec![
        Route { suffix: name("office.local"), upstream: 1 },
        Route { suffix: name("10.in-addr.arpa"), upstream: 1 },
    ];
    let mut world = World::new(other);
    let printer = world.told(&edns("Printer.LOCAL", 1));
    assert_eq!((printer.rcode, printer.negative_ttl), (3, Some(10_800)));
    assert_eq!(world.told(&edns("localhost", 1)).rdata, [127, 0, 0, 1]);
    assert_eq!(world.told(&edns("localhost", 15)).kind, AnswerKind::NoData);
    assert_eq!(world.told(&edns("1.1.168.192.in-addr.arpa", 12)).rcode, 3);
    assert_eq!(world.forwarder.counters().special, 4);
    assert!(world.is_forwarded(&edns("nas.office.local", 1)));
    assert!(world.is_forwarded(&edns("1.0.0.10.in-addr.arpa", 12)));
    assert!(world.is_forwarded(&edns("a.test", 1)));
    assert!(World::new(config(1)).is_forwarded(&edns("printer.local", 1)), "only if it is on");
}

#[test]
fn the_soa_record_of_a_special_name_is_owned_by_its_zone() {
    let mut world = world(FrontConfig { special_names: true, ..FrontConfig::default() });
    world.ask(udp(1), &Message::query("a.b.local", 1));
    let (_, reply) = world.one_reply();
    let end = 12 + name("a.b.local").len() + 4;
    assert_eq!(reply[end..end + 2], [0xc0, 12 + 4], "a pointer to `local` in the question");
}

#[test]
fn local_data_comes_before_the_block_list_and_that_before_routes() {
    let front = FrontConfig {
        local: Some(local(&["a.corp.test A 10.0.0.1"])),
        block: Some(block(&["corp.test"])),
        block_ttl: 30,
        special_names: true,
        ..FrontConfig::default()
    };
    let routes = vec![Route { suffix: name("corp.test"), upstream: 0 }];
    let mut world = World::new(ForwarderConfig { front, routes, ..config(1) });
    assert_eq!(world.told(&edns("A.corp.test", 1)).rdata, [10, 0, 0, 1]);
    assert_eq!(world.told(&edns("a.corp.test", 28)).kind, AnswerKind::NoData);
    let blocked = world.told(&edns("b.corp.test", 1));
    assert_eq!((blocked.rcode, blocked.error, blocked.negative_ttl), (3, Some(15), Some(30)));
    let counters = world.forwarder.counters();
    assert_eq!((counters.local, counters.blocked, counters.replies), (2, 1, 3));
}

#[test]
fn local_data_may_make_a_special_name_known() {
    let front = FrontConfig {
        local: Some(local(&["nas.local A 10.0.0.1"])),
        special_names: true,
        ..FrontConfig::default()
    };
    let mut world = world(front);
    assert_eq!(world.told(&edns("nas.local", 1)).rdata, [10, 0, 0, 1]);
    assert_eq!(world.told(&edns("tv.local", 1)).rcode, 3);
}

#[test]
fn blocked_names_may_have_the_address_of_nothing() {
    let front = FrontConfig {
        block: Some(block(&["ads.test"])),
        block_answer: BlockAnswer::Zero,
        block_ttl: 10,
        ..FrontConfig::default()
    };
    let mut world = world(front);
    let v4 = world.told(&edns("ads.test", 1));
    assert_eq!((v4.rcode, &*v4.rdata, v4.error), (0, &[0; 4][..], Some(15)));
    assert_eq!(world.told(&edns("x.ads.test", 28)).rdata, [0; 16]);
    assert_eq!(world.told(&edns("ads.test", 65)).kind, AnswerKind::NoData);
    assert!(world.is_forwarded(&edns("test", 1)));
}

#[test]
fn what_was_learnt_before_a_list_changed_no_longer_counts() {
    let mut world = World::new(config(1));
    for dotted in ["blocked.test", "free.test", "known.test"] {
        world.learn(dotted, [192, 0, 2, 7]);
    }
    world.forwarder.handle_block(world.now, Some(block(&["free.test"])));
    assert_eq!(world.told(&edns("free.test", 1)).error, Some(15), "at once");
    world.pass(Duration::from_secs(5));
    world.forwarder.handle_block(world.now, Some(block(&["blocked.test"])));
    world.forwarder.handle_local(world.now, Some(local(&["known.test A 10.0.0.1"])));
    assert_eq!(world.told(&edns("blocked.test", 1)).error, Some(15));
    assert_eq!(world.told(&edns("known.test", 1)).rdata, [10, 0, 0, 1]);
    assert_eq!(world.told(&edns("free.test", 1)).rdata, [192, 0, 2, 7], "the rest is still there");
    world.pass(Duration::from_secs(20));
    world.learn("new.test", [192, 0, 2, 8]);
    world.pass(Duration::from_secs(1));
    assert_eq!(world.told(&edns("new.test", 1)).rdata, [192, 0, 2, 8]);
    world.forwarder.handle_block(world.now, None);
    world.forwarder.handle_local(world.now, None);
    assert_eq!(world.told(&edns("blocked.test", 1)).rdata, [192, 0, 2, 7]);
}

#[test]
fn an_answer_on_its_way_while_a_list_changed_is_looked_at_again() {
    let mut world = World::new(config(1));
    world.ask(udp(1), &edns("blocked.test", 1));
    world.forwarder.handle_block(world.now, Some(block(&["blocked.test"])));
    world.pass(Duration::from_millis(500));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).a(300).0);
    world.mail.replies.clear();
    world.pass(Duration::from_secs(60));
    assert_eq!(world.told(&edns("blocked.test", 1)).error, Some(15));
}

#[test]
fn a_public_name_with_a_private_address_is_kept_back_if_asked_for() {
    let rebind = Some(RebindConfig { allow: vec![name("plex.test")] });
    let mut other = ForwarderConfig { front: FrontConfig { rebind, ..FrontConfig::default() }, ..config(1) };
    other.upstreams.push(other.upstreams[0].clone());
    other.routes = vec![Route { suffix: name("corp.test"), upstream: 1 }];
    let mut world = World::new(other);
    let evil = world.learn("evil.test", [192, 168, 1, 1]);
    assert_eq!((evil.rcode, evil.error, evil.rdata.len()), (3, Some(15), 0));
    assert!(world.is_forwarded(&edns("evil.test", 1)), "and it is not kept");
    world.mail.sent.clear();
    assert_eq!(world.learn("good.test", [192, 0, 2, 1]).rdata, [192, 0, 2, 1]);
    assert_eq!(world.learn("a.plex.test", [192, 168, 1, 1]).rdata, [192, 168, 1, 1]);
    assert_eq!(world.learn("a.corp.test", [192, 168, 1, 1]).rdata, [192, 168, 1, 1]);
    assert_eq!(world.forwarder.counters().rebind, 1);
    assert_eq!(World::new(config(1)).learn("evil.test", [192, 168, 1, 1]).rcode, 0, "off by default");
}

#[test]
fn the_longest_of_many_routes_holds() {
    let mut other = config(1);
    for n in 1..=200 {
        let mut far = other.upstreams[0].clone();
        far.name = format!("far {n}");
        other.upstreams.push(far);
    }
    other.routes = (1..=199).map(|n| Route { suffix: name(&format!("n{n}.test")), upstream: n }).collect();
    other.routes.push(Route { suffix: name("deep.n7.test"), upstream: 200 });
    let mut world = World::new(other);
    for (dotted, upstream) in
        [("n9.test", 9), ("a.N9.test", 9), ("x.deep.n7.test", 200), ("n7.test", 7), ("n0.test", 0)]
    {
        world.mail.sent.clear();
        assert!(world.is_forwarded(&edns(dotted, 1)));
        let (slot, _) = world.one_sent();
        assert_eq!(world.links[&slot].0, upstream, "{dotted}");
    }
}

/// Lets the upstream say that `dotted` is an alias of `target`, which has this address.
fn learn_alias(world: &mut World, dotted: &str, target: &str, address: [u8; 4]) {
    world.ask(udp(1), &edns(dotted, 1));
    let (slot, query) = world.one_sent();
    let answer =
        answer_to(&query, OK).record(0, 5, 300, &name(target)).record_at(0, &name(target), 1, 300, &address);
    world.answer(slot, &answer.0);
    world.mail.replies.clear();
}

#[test]
fn what_answers_say_of_names_that_are_answered_here_is_not_kept() {
    let mut world = world(FrontConfig {
        local: Some(local(&["cdn.test. 60 A 10.9.9.9"])),
        block: Some(block(&["ads.test"])),
        special_names: true,
        ..FrontConfig::default()
    });
    for target in ["cdn.test", "x.ads.test", "host.onion"] {
        learn_alias(&mut world, &format!("www.{target}.example"), target, [192, 0, 2, 1]);
    }
    assert_eq!(world.told(&edns("cdn.test", 1)).rdata, [10, 9, 9, 9]);
    assert_eq!(world.told(&edns("x.ads.test", 1)).error, Some(15));
    assert_eq!(world.told(&edns("host.onion", 1)).rcode, 3);
    assert_eq!(world.forwarder.counters().known, 0);
    // Nor is an answer joined that would lead there.
    assert!(world.is_forwarded(&edns("www.cdn.test.example", 28)));
}

#[test]
fn no_way_round_the_rebind_protection_leads_through_what_is_known() {
    let rebind = RebindConfig { allow: vec![name("inside.test")] };
    let mut world = world(FrontConfig { rebind: Some(rebind), ..FrontConfig::default() });
    // A name that may have private addresses, by way of one that may not.
    learn_alias(&mut world, "a.inside.test", "b.public.test", [10, 0, 0, 1]);
    assert!(world.is_forwarded(&edns("b.public.test", 1)));
    world.mail.sent.clear();
    // And the other way round.
    learn_alias(&mut world, "c.inside.test", "d.inside.test", [10, 0, 0, 2]);
    assert_eq!(world.told(&edns("d.inside.test", 1)).rdata, [10, 0, 0, 2]);
    world.ask(udp(1), &edns("e.public.test", 5));
    let (slot, query) = world.one_sent();
    world.answer(slot, &answer_to(&query, OK).record(0, 5, 300, &name("d.inside.test")).0);
    world.mail.replies.clear();
    assert!(world.is_forwarded(&edns("e.public.test", 1)));
}

#[test]
fn a_name_that_is_blocked_since_is_not_given_stale() {
    let mut world = world(FrontConfig::default());
    world.learn("a.test", [192, 0, 2, 1]);
    world.pass(Duration::from_secs(90_000 - 86_400));
    let now = world.now;
    world.forwarder.handle_block(now, Some(block(&["a.test"])));
    assert_eq!(world.told(&edns("a.test", 1)).error, Some(15));
}

#[test]
fn what_was_saved_of_names_that_are_answered_here_now_is_left_out() {
    let mut before = world(FrontConfig::default());
    before.learn("host.onion", [192, 0, 2, 1]);
    before.learn("a.test", [10, 0, 0, 1]);
    before.learn("b.test", [192, 0, 2, 2]);
    let mut file = Vec::new();
    let mut saver = Saver::begin(0, &mut file);
    while !before.forwarder.save(before.now, &mut saver, &mut file) {}
    saver.end(&mut file);
    let rebind = Some(RebindConfig { allow: Vec::new() });
    let mut after = world(FrontConfig { special_names: true, rebind, ..FrontConfig::default() });
    let loaded = after.forwarder.load(after.now, &SavedFile::read(&file, 0).unwrap(), 0);
    assert_eq!((loaded.kept, loaded.left_out), (1, 2));
    assert_eq!(after.told(&edns("host.onion", 1)).rcode, 3);
    assert_eq!(after.told(&edns("b.test", 1)).rdata, [192, 0, 2, 2]);
}

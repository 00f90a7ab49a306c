//! A client's and an upstream's side of a forwarder, in virtual time; and seeded lives of it.

use std::collections::HashMap;
use std::time::Duration;

use forebay_core::{Cause, Config, HealthConfig, IdleOrder, Instant, Permits, Rng, SlotId};

use crate::forwarder::{
    Carrier, Client, Endpoint, Forwarder, ForwarderConfig, Handled, HealthCheck, Link, LinkAction, Outbox,
    Strategy, StreamKind, Upstream, parse_question, wheel,
};
use crate::testing::{Message, seed};

/// What came out.
#[derive(Default)]
pub(super) struct Mailbox {
    pub(super) replies: Vec<(Client, Vec<u8>)>,
    pub(super) sent: Vec<(SlotId, Vec<u8>)>,
}

impl Outbox for Mailbox {
    fn reply(&mut self, client: &Client, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.replies.push((*client, bytes));
    }

    fn transmit(&mut self, slot: SlotId, write: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.sent.push((slot, bytes));
    }
}

/// A forwarder and what it is connected to.
pub(super) struct World {
    pub(super) now: Instant,
    pub(super) forwarder: Forwarder,
    pub(super) mail: Mailbox,
    /// Which upstream and carrier each open connection goes to.
    pub(super) links: HashMap<SlotId, (u16, Carrier)>,
    /// How dials to an upstream end.
    pub(super) dials: HashMap<(u16, Carrier), Result<(), Cause>>,
    pub(super) dialed: u32,
}

pub(super) fn config(upstreams: usize) -> ForwarderConfig {
    let link = |capacity, order| Link {
        config: Config { capacity, order, ..Config::default() },
        permits: Permits::alone(64, 0),
    };
    let endpoint = |n| Endpoint {
        name: format!("upstream {n}"),
        datagram: Some(link(16, IdleOrder::Random)),
        stream: link(16, IdleOrder::Lifo),
        is_encrypted: false,
    };
    let endpoints = (0..upstreams).map(endpoint).collect();
    let all = Upstream { name: "default".to_owned(), endpoints, strategy: Strategy::default() };
    ForwarderConfig { cache_bytes: 1 << 20, ..ForwarderConfig::new(vec![all], seed(), [7; 32]) }
}

pub(super) fn udp(port: u16) -> Client {
    Client::Udp { listener: 0, peer: ([192, 0, 2, 9], port).into(), local: None }
}

pub(super) fn tcp(connection: u64) -> Client {
    Client::Stream { connection, peer: [192, 0, 2, 9].into(), kind: StreamKind::Tcp, idle: 100 }
}

impl World {
    pub(super) fn new(config: ForwarderConfig) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let mut world = Self {
            now,
            forwarder: Forwarder::new(now, config).unwrap(),
            mail: Mailbox::default(),
            links: HashMap::new(),
            dials: HashMap::new(),
            dialed: 0,
        };
        world.settle();
        world
    }

    /// Makes and closes connections as asked.
    pub(super) fn settle(&mut self) {
        while let Some(action) = self.forwarder.poll_link() {
            match action {
                LinkAction::Dial { slot, endpoint: upstream, carrier, .. } => {
                    self.dialed += 1;
                    let result = self.dials.get(&(upstream, carrier)).copied().unwrap_or(Ok(()));
                    if result.is_ok() {
                        self.links.insert(slot, (upstream, carrier));
                    }
                    self.forwarder.handle_dialed(self.now, slot, result.map(|()| u32::MAX), &mut self.mail);
                }
                LinkAction::Close { slot } => {
                    assert!(self.links.remove(&slot).is_some(), "closed what is not open");
                    self.forwarder.handle_closed(self.now, slot, None, &mut self.mail);
                }
            }
        }
        while self.forwarder.poll_event().is_some() {}
    }

    pub(super) fn ask(&mut self, client: Client, message: &Message) -> Handled {
        let handled = self.forwarder.handle_query(self.now, client, &message.0, &mut self.mail);
        self.settle();
        handled
    }

    pub(super) fn answer(&mut self, slot: SlotId, bytes: &[u8]) {
        self.forwarder.handle_answer(self.now, slot, bytes, &mut self.mail);
        self.settle();
    }

    /// Lets time pass, firing what is due on the way.
    pub(super) fn pass(&mut self, span: Duration) {
        let end = self.now + span;
        while let Some(due) = self.forwarder.next_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.forwarder.handle_timeout(self.now, &mut self.mail);
            self.settle();
        }
        self.now = end;
        self.forwarder.handle_timeout(self.now, &mut self.mail);
        self.settle();
    }

    pub(super) fn close(&mut self, slot: SlotId, cause: Option<Cause>) {
        self.links.remove(&slot);
        self.forwarder.handle_closed(self.now, slot, cause, &mut self.mail);
        self.settle();
    }

    /// The only query sent since the last look.
    pub(super) fn one_sent(&mut self) -> (SlotId, Vec<u8>) {
        assert_eq!(self.mail.sent.len(), 1);
        self.mail.sent.pop().unwrap()
    }

    /// The only reply since the last look.
    pub(super) fn one_reply(&mut self) -> (Client, Vec<u8>) {
        assert_eq!(self.mail.replies.len(), 1);
        self.mail.replies.pop().unwrap()
    }
}

/// Makes an answer to a query that was sent: its id and question, and these flags.
pub(super) fn answer_to(query: &[u8], flags: u16) -> Message {
    let mut end = 12;
    while query[end] != 0 {
        end += usize::from(query[end]) + 1;
    }
    let mut bytes = query[..end + 5].to_vec();
    bytes[6..12].fill(0);
    Message(bytes).flags(flags)
}

pub(super) const OK: u16 = 0x8180;

pub(super) fn rcode(bytes: &[u8]) -> u8 {
    bytes[3] & 0x0f
}

pub(super) fn id(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// One life: clients ask, upstreams answer, lie, stall and break as the seed says.
fn live(seed: u64) {
    let mut rng = Rng::new(seed);
    let upstreams = 1 + rng.below(3) as usize;
    let mut settings = config(upstreams);
    settings.upstreams[0].strategy = Strategy::ALL[rng.below(7) as usize];
    settings.strategies.parallel_max = 1 + rng.below(4);
    settings.strategies.probing_percent = rng.below(101);
    settings.failure_ttl = Duration::from_secs(u64::from(rng.below(6)));
    let checked = rng.percent(50).then(|| HealthConfig {
        interval: Duration::from_millis(u64::from(100 + rng.below(900))),
        rise: 1 + rng.below(2),
        fall: 1 + rng.below(3),
    });
    let question = parse_question("name7.test A").unwrap();
    settings.health = checked
        .map(|_| HealthCheck { question, timeout: Duration::from_millis(u64::from(50 + rng.below(500))) });
    settings.cache_bytes = if rng.percent(30) { 0 } else { 64 << 10 };
    for upstream in &mut settings.upstreams[0].endpoints {
        for link in upstream.datagram.iter_mut().chain([&mut upstream.stream]) {
            link.config.capacity = 1 + rng.below(8);
            link.config.uses_max = rng.percent(30).then_some(1 + u64::from(rng.below(5)));
            link.permits = Permits::alone(1 + rng.below(6), 0);
        }
        if rng.percent(20) {
            upstream.datagram = None;
        }
        upstream.datagram.as_mut().unwrap_or(&mut upstream.stream).config.health = checked;
    }
    let limit = settings.query_timeout + Duration::from_nanos(2 * wheel::PRECISION.as_nanos() as u64);
    let mut world = World::new(settings);
    let mut waiting: HashMap<(u16, u16), (u32, Instant)> = HashMap::new();
    let mut post: Vec<(Instant, SlotId, Vec<u8>)> = Vec::new();
    let mut next_id = 0u16;
    for step in 0..200 {
        match rng.below(10) {
            0..=4 => {
                let name = rng.below(20);
                next_id += 1;
                let port = 1000 + (rng.below(3) as u16);
                let letters = if rng.percent(50) { "Name" } else { "nAMe" };
                let mut query = Message::query(&format!("{letters}{name}.test"), 1);
                query.0[..2].copy_from_slice(&next_id.to_be_bytes());
                waiting.insert((port, next_id), (name, world.now));
                assert_eq!(world.ask(udp(port), &query), Handled::Taken);
            }
            5 => {
                let open: Vec<SlotId> = world.links.keys().copied().collect();
                if !open.is_empty() && rng.percent(30) {
                    let slot = open[rng.below(open.len() as u32) as usize];
                    let cause = rng.percent(50).then_some(Cause::Refused);
                    world.close(slot, cause);
                }
            }
            6 => {
                let carrier = if rng.percent(50) { Carrier::Datagram } else { Carrier::Stream };
                let upstream = rng.below(upstreams as u32) as u16;
                let result = match rng.below(4) {
                    0 => Err(Cause::Refused),
                    1 => Err(Cause::Ports),
                    _ => Ok(()),
                };
                world.dials.insert((upstream, carrier), result);
            }
            _ => world.pass(Duration::from_millis(u64::from(rng.below(400)))),
        }
        for (slot, query) in world.mail.sent.drain(..) {
            let name = number(&query);
            let stream = world.links.get(&slot).is_some_and(|(_, carrier)| *carrier == Carrier::Stream);
            let reply = match rng.below(12) {
                0 => continue,
                1 => answer_to(&query, 0x8182),
                2 => answer_to(&query, 0x8183).soa(60, 60),
                3 if !stream => answer_to(&query, 0x8380),
                4 => {
                    let mut wrong = answer_to(&query, OK).record(0, 1, 60, &[9, 9, 9, 9]);
                    wrong.0[0] ^= 0x55;
                    wrong
                }
                5 => {
                    let mut wrong = answer_to(&query, OK).record(0, 1, 60, &[9, 9, 9, 9]);
                    wrong.0[14] ^= 1;
                    wrong
                }
                _ => answer_to(&query, OK).record(0, 1, rng.below(3), &[10, 0, 0, name as u8]),
            };
            let delay = Duration::from_millis(u64::from(rng.below(1500)));
            post.push((world.now + delay, slot, reply.0.clone()));
            if rng.percent(10) {
                post.push((world.now + delay * 2, slot, reply.0));
            }
        }
        post.sort_by_key(|(at, ..)| *at);
        while post.first().is_some_and(|(at, ..)| *at <= world.now) {
            let (_, slot, bytes) = post.remove(0);
            if world.links.contains_key(&slot) {
                world.answer(slot, &bytes);
            }
        }
        check_replies(seed, step, &mut world, &mut waiting);
        for ((port, id), (_, since)) in &waiting {
            assert!(world.now <= *since + limit, "seed {seed} step {step}: {port} {id} was forgotten");
        }
    }
    world.forwarder.close(world.now, &mut world.mail);
    world.settle();
    check_replies(seed, 200, &mut world, &mut waiting);
    assert!(waiting.is_empty(), "seed {seed}: {} clients were told nothing", waiting.len());
    assert!(world.links.is_empty(), "seed {seed}: {} connections are left", world.links.len());
    assert_eq!(world.forwarder.in_flight(), (0, 0));
    let counters = world.forwarder.counters();
    assert_eq!(counters.replies, counters.queries, "seed {seed}: {counters:?}");
}

/// Each reply goes to somebody who waits, once, with the answer to what was asked.
fn check_replies(seed: u64, step: u32, world: &mut World, waiting: &mut HashMap<(u16, u16), (u32, Instant)>) {
    for (client, bytes) in world.mail.replies.drain(..) {
        let Client::Udp { peer, .. } = client else { panic!() };
        let asked = waiting.remove(&(peer.port(), id(&bytes)));
        let Some((name, _)) = asked else { panic!("seed {seed} step {step}: a reply for nobody") };
        assert_eq!(number(&bytes), name, "seed {seed} step {step}: another's question");
        if rcode(&bytes) == 0 && bytes[7] > 0 {
            let address = &bytes[bytes.len() - 4..];
            assert_eq!(address, [10, 0, 0, name as u8], "seed {seed} step {step}: another's answer");
        }
    }
}

/// The number in the name asked for.
fn number(message: &[u8]) -> u32 {
    let label = &message[13..13 + usize::from(message[12])];
    std::str::from_utf8(&label[4..]).unwrap().parse().unwrap()
}

#[test]
fn every_client_gets_one_reply_to_its_own_question_whatever_upstreams_do() {
    let first = std::env::var("FOREBAY_SIM_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    let seeds = std::env::var("FOREBAY_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(500);
    (first..first + seeds).for_each(live);
}

//! What protection and names of one's own cost: `cargo bench -p forebay-dns-core --bench front`.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use forebay_core::{Config, Instant, Permits, SlotId};
use forebay_dns_core::forwarder::{
    Client, Endpoint, Forwarder, ForwarderConfig, FrontConfig, Link, Outbox, Strategy, Upstream,
};
use forebay_dns_core::guard::{PrefixSet, RateConfig, RateLimit};
use forebay_dns_core::local::{BlockList, BlockListBuilder};
use forebay_dns_core::wire::HashSeed;

const NAMES: u32 = 1_000_000;

fn seed() -> HashSeed {
    HashSeed::from_bytes(*b"sixteen bytes ok")
}

fn home() -> PrefixSet {
    const NETWORKS: [&str; 9] = [
        "127.0.0.0/8",
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "::1",
        "fc00::/7",
        "fe80::/10",
    ];
    PrefixSet::new(&NETWORKS.map(|text| text.parse().expect("a network")))
}

fn lines() -> Vec<String> {
    (0..NAMES).map(|n| format!("host-{n}.ads{}.example", n % 9973)).collect()
}

fn load(lines: &[String]) -> BlockList {
    let mut builder = BlockListBuilder::new(seed());
    lines.iter().for_each(|line| builder.add_line(line.as_bytes()).expect("a name"));
    builder.finish()
}

/// A reply written over the one before.
struct Arena(Vec<u8>);

impl Outbox for Arena {
    fn reply(&mut self, _: &Client, write: impl FnOnce(&mut Vec<u8>)) {
        self.0.clear();
        write(&mut self.0);
    }

    fn transmit(&mut self, _: SlotId, _: impl FnOnce(&mut Vec<u8>)) {}
}

fn query(name: &str) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.') {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn forwarder(front: FrontConfig) -> Forwarder {
    let link = Link { config: Config::default(), permits: Permits::alone(1, 0) };
    let endpoint =
        Endpoint { name: "one".to_owned(), datagram: Some(link.clone()), stream: link, is_encrypted: false };
    let upstream =
        Upstream { name: "default".to_owned(), endpoints: vec![endpoint], strategy: Strategy::Sequential };
    let config = ForwarderConfig { front, ..ForwarderConfig::new(vec![upstream], seed(), [7; 32]) };
    Forwarder::new(Instant::from_nanos(1), config).expect("a forwarder")
}

fn front(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("front");
    let (allow, client) = (home(), IpAddr::from([192, 168, 1, 7]));
    group.bench_function("allow", |bench| bench.iter(|| allow.contains(black_box(client))));
    let rate = RateConfig { per_second: 1_000_000, burst: 1_000_000, v4_len: 32, v6_len: 56 };
    let rate = RateLimit::new(rate, seed()).expect("a limit");
    let mut now = Instant::from_nanos(1_000_000_000);
    group.bench_function("rate", |bench| {
        bench.iter(|| {
            now = now + Duration::from_micros(2);
            rate.admit(now, black_box(client))
        });
    });

    let lines = lines();
    let list = Arc::new(load(&lines));
    println!("block list: {} names, {} bytes", list.names(), list.bytes());
    let peer = Client::Udp { listener: 0, peer: (client, 4000).into(), local: None };
    let mut out = Arena(Vec::with_capacity(512));
    let blocked: Vec<Vec<u8>> = (0..16_384u32)
        .map(|n| n.wrapping_mul(2_654_435_761) % NAMES)
        .map(|n| query(&format!("host-{n}.ads{}.example", n % 9973)))
        .collect();
    let mut next = 0;
    let mut one = forwarder(FrontConfig { block: Some(Arc::clone(&list)), ..FrontConfig::default() });
    group.bench_function("blocked_of_1m_whole", |bench| {
        bench.iter(|| {
            next = (next + 1) % blocked.len();
            one.handle_query(now, peer, &blocked[next], &mut out)
        });
    });
    // The same path without the list: what is left is the list's.
    let special = query("host-1.ads1.local");
    let mut other = forwarder(FrontConfig { special_names: true, ..FrontConfig::default() });
    group.bench_function("special_whole", |bench| {
        bench.iter(|| other.handle_query(now, peer, &special, &mut out));
    });
    group.sample_size(10);
    group.bench_function("load_1m_names", |bench| bench.iter(|| load(&lines).names()));
    group.finish();
}

criterion_group!(benches, front);
criterion_main!(benches);

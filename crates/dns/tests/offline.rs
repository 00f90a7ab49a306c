//! A machine that loses its route to every upstream: nobody but the machine is blamed, and it is back at once.

mod support;

use std::time::{Duration, Instant};

use forebay::sys::netns::NetNamespace;
use forebay_bench::responder::{Responder, Script};
use forebay_dns::Settings;
use support::{Udp, ip, query, rcode, run, settings};

const ADDRESS: &str = "10.53.53.53";

/// Asks something new every 10 ms, until `end` says so. Returns how many replies were good, and how many were not.
fn load(client: &Udp, next: &mut u16, mut end: impl FnMut(u32) -> bool) -> (u32, u32) {
    let (mut good, mut failed) = (0, 0);
    while !end(good) {
        *next += 1;
        client.send(&query(*next, &format!("n{next}.test"), 1, None));
        let pause = Instant::now() + Duration::from_millis(10);
        while let Some(left) = pause.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            client.0.set_read_timeout(Some(left)).expect("a time-out");
            let mut reply = [0; 512];
            if client.0.recv(&mut reply).is_ok() {
                match rcode(&reply) {
                    0 => good += 1,
                    _ => failed += 1,
                }
            }
        }
    }
    (good, failed)
}

fn goes_offline(scheme: &str) {
    let Some(namespace) = NetNamespace::for_test(30_000..=40_000) else { return };
    if !support::has("ip") {
        return;
    }
    namespace.run(|| {
        ip(&format!("address add {ADDRESS}/32 dev lo"));
        let upstream = Responder::builder()
            .listen(format!("{ADDRESS}:5301").parse().expect("an address"))
            .script(Script { delay: Duration::from_millis(5), ..Script::default() })
            .spawn()
            .expect("a port");
        let server = run(&Settings {
            listen: vec!["127.0.0.1:5300".to_owned()],
            upstreams: vec![format!("{scheme}://{}", upstream.addr())],
            ..settings(&[])
        });
        let client = Udp::to(server.address);
        let mut next = 0;
        let (good, _) = load(&client, &mut next, |good| good >= 20);
        assert!(good >= 20);

        let route = format!("table local local {ADDRESS} dev lo");
        ip(&format!("route del {route}"));
        let gone = Instant::now();
        let (_, failed) = load(&client, &mut next, |_| gone.elapsed() > Duration::from_secs(4));
        ip(&format!("route add {route}"));
        let back = Instant::now();
        let patience = Duration::from_secs(10);
        load(&client, &mut next, |good| good > 0 || back.elapsed() > patience);
        let took = back.elapsed();
        let stats = server.stats();
        let counters = stats.pool_counters();
        println!(
            "{scheme}: {failed} told in 4 s off-line; back {took:?} after the route; dials {} begun, {} made; \
             failures blamed on the upstream: {}, breaker opened: {}, local: {}",
            counters.dials_started,
            counters.dials_succeeded,
            counters.failures,
            counters.breaker_opened,
            counters.local_exhaustions,
        );
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(counters.breaker_opened, 0);
        assert!(counters.local_exhaustions > 0, "and this machine's trouble was noticed");
        assert!(counters.dials_started < 2000, "no storm of dials: {}", counters.dials_started);
    });
}

#[test]
fn without_a_route_nobody_is_blamed_and_service_over_udp_is_back_within_a_second() {
    goes_offline("udp");
}

#[test]
fn without_a_route_nobody_is_blamed_and_service_over_tcp_is_back_within_a_second() {
    goes_offline("tcp");
}

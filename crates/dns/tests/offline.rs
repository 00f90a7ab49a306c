//! A machine that loses its route to every upstream: nobody but the machine is blamed, and it is back at once.

mod support;

use std::time::{Duration, Instant};

use forebay::sys::netns::NetNamespace;
use forebay_bench::responder::{Responder, Script};
use forebay_dns::Settings;
use support::{Udp, id, ip, query, rcode, run, settings};

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

/// How a machine loses its way to an upstream, and whether that is taken for the upstream's fault.
#[derive(Clone, Copy)]
struct Loss {
    /// The type of the route that is there meanwhile; none at all without.
    route: Option<&'static str>,
    is_local: bool,
}

const NO_ROUTE: Loss = Loss { route: None, is_local: true };

/// Asks something new every 20 ms for a second, each time waiting for the reply. Returns the longest wait.
fn longest_wait(client: &Udp, next: &mut u16) -> Duration {
    client.0.set_read_timeout(Some(support::PATIENCE)).expect("a time-out");
    let mut longest = Duration::ZERO;
    for _ in 0..50 {
        *next += 1;
        client.send(&query(*next, &format!("n{next}.test"), 1, Some(1232)));
        let began = Instant::now();
        // What was asked before may be answered only now.
        let reply = loop {
            let reply = client.recv();
            if id(&reply) == *next {
                break reply;
            }
        };
        longest = longest.max(began.elapsed());
        assert_eq!(rcode(&reply), 2);
        let at = reply.windows(2).rposition(|option| option == [0, 15]).expect("an extended error");
        assert_eq!(reply[at + 4..at + 6], [0, 23], "a network error");
        std::thread::sleep(Duration::from_millis(20));
    }
    longest
}

fn goes_offline(scheme: &str, loss: Loss) {
    let Some(namespace) = NetNamespace::for_test(30_000..=40_000) else { return };
    if !support::has("ip") {
        return;
    }
    namespace.run(|| {
        ip(&format!("address add {ADDRESS}/32 dev lo"));
        let upstream = Responder::builder()
            .listen(format!("{ADDRESS}:5301").parse().expect("an address"))
            .script(Script { delay: Duration::from_millis(5), ttl: 1, ..Script::default() })
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
        let known = format!("n{next}.test");

        let route = format!("table local local {ADDRESS} dev lo");
        ip(&format!("route del {route}"));
        if let Some(kind) = loss.route {
            ip(&format!("route add {kind} {ADDRESS}/32"));
        }
        let gone = Instant::now();
        let (_, failed) = load(&client, &mut next, |_| gone.elapsed() > Duration::from_secs(6));
        let waited = longest_wait(&client, &mut next);
        let began = Instant::now();
        assert_eq!(rcode(&client.ask(&known)), 0, "what was known is given as stale");
        let waited = waited.max(began.elapsed());
        if let Some(kind) = loss.route {
            ip(&format!("route del {kind} {ADDRESS}/32"));
        }
        ip(&format!("route add {route}"));
        let back = Instant::now();
        let patience = Duration::from_secs(10);
        load(&client, &mut next, |good| good > 0 || back.elapsed() > patience);
        let took = back.elapsed();
        let stats = server.stats();
        let counters = stats.pool_counters();
        println!(
            "{scheme}, {:?}: {failed} told in 6 s off-line, {waited:?} the longest wait after; back {took:?} after the \
             route; dials {} begun, {} made; failures blamed on the upstream: {}, breaker opened: {}, local: {}",
            loss.route,
            counters.dials_started,
            counters.dials_succeeded,
            counters.failures,
            counters.breaker_opened,
            counters.local_exhaustions,
        );
        // An upstream's fault pauses for up to 0.8 s, and one query in each pause waits for it.
        let bound = Duration::from_millis(if loss.is_local { 400 } else { 1300 });
        assert!(waited < bound, "nobody waits for a way that is not there: {waited:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        if loss.is_local {
            assert_eq!(counters.breaker_opened, 0);
            assert!(counters.local_exhaustions > 0, "and this machine's trouble was noticed");
        }
        assert!(counters.dials_started < 2000, "no storm of dials: {}", counters.dials_started);
    });
}

#[test]
fn without_a_route_nobody_is_blamed_and_service_over_udp_is_back_within_a_second() {
    goes_offline("udp", NO_ROUTE);
}

#[test]
fn without_a_route_nobody_is_blamed_and_service_over_tcp_is_back_within_a_second() {
    goes_offline("tcp", NO_ROUTE);
}

#[test]
fn routes_that_lead_nowhere_are_like_none() {
    for route in ["prohibit", "blackhole"] {
        goes_offline("udp", Loss { route: Some(route), is_local: true });
    }
}

#[test]
fn a_host_that_cannot_be_reached_is_told_at_once_and_service_is_back_within_a_second() {
    for scheme in ["udp", "tcp"] {
        // EHOSTUNREACH: taken for what the network says of the upstream.
        goes_offline(scheme, Loss { route: Some("unreachable"), is_local: false });
    }
}

//! A machine with few local ports: the kernel says no, and nobody but the machine is blamed.

mod support;

use std::time::Duration;

use forebay::sys::netns::NetNamespace;
use forebay_bench::responder::{Responder, Script, expected_a};
use forebay_core::{Blame, BreakerState, Cause};
use forebay_dns::{PoolMode, Settings};
use support::{Udp, address, id, query, rcode, run, settings};

const STORM: u16 = 200;

/// Asks many things at once. Returns how many were answered rightly, and how many with SERVFAIL.
fn storm(server: std::net::SocketAddr, prefix: &str) -> (u16, u16) {
    let client = Udp::to(server);
    for n in 0..STORM {
        client.send(&query(n, &format!("{prefix}{n}.test"), 1, Some(1232)));
    }
    let (mut good, mut failed) = (0, 0);
    for _ in 0..STORM {
        let reply = client.recv();
        match rcode(&reply) {
            0 => {
                assert_eq!(address(&reply), expected_a(&format!("{prefix}{}.test", id(&reply))));
                good += 1;
            }
            2 => failed += 1,
            other => panic!("rcode {other}"),
        }
    }
    (good, failed)
}

#[test]
fn with_fifty_ports_a_storm_blames_no_upstream_and_with_a_pool_nothing_fails() {
    let Some(namespace) = NetNamespace::for_test(40_000..=40_049) else { return };
    namespace.run(|| {
        // Fixed ports, outside the range that is to run out.
        let upstream = Responder::builder()
            .listen("127.0.0.1:5301".parse().expect("an address"))
            .script(Script { delay: Duration::from_millis(100), ..Script::default() })
            .spawn()
            .expect("a port");
        let listening = |pool| Settings {
            listen: vec!["127.0.0.1:5300".to_owned()],
            pool,
            query_timeout: forebay::units::Span(Duration::from_secs(2)),
            ..settings(&[&upstream])
        };

        let server = run(&listening(PoolMode::Off));
        let (good, failed) = storm(server.address, "off");
        println!("pool off: {good} answered, {failed} failed");
        let stats = server.stats();
        let pool = &stats.pools[0].snapshot;
        assert_eq!(pool.breaker, BreakerState::Closed);
        assert_eq!(pool.counters.breaker_opened, 0);
        assert_eq!(pool.counters.failures, 0, "no failure is the upstream's");
        assert_eq!(stats.counters.failed_upstream + stats.counters.failed_timeout, 0);
        assert!(pool.counters.local_exhaustions > 0, "and this machine's shortage was noticed");
        let upstream_blamed: u64 = Cause::ALL
            .iter()
            .filter(|cause| cause.blame() == Blame::Upstream)
            .map(|cause| pool.counters.dial_failures(*cause))
            .sum();
        assert_eq!(upstream_blamed, 0);
        assert!(pool.connections() <= 50);
        // It recovers by itself.
        server.until("all is quiet", |stats| stats.questions == 0);
        assert_eq!(rcode(&Udp::to(server.address).ask("after.test")), 0);
        drop(server);

        let server = run(&listening(PoolMode::On));
        assert_eq!(storm(server.address, "on"), (STORM, 0));
    });
}

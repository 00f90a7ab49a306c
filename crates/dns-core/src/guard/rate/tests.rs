use std::time::Duration;

use super::*;
use crate::testing::seed;

fn limit(per_second: u32, burst: u32) -> RateLimit {
    RateLimit::new(RateConfig { per_second, burst, v4_len: 32, v6_len: 56 }, seed()).unwrap()
}

fn admitted(limit: &RateLimit, now: Instant, address: &str, tries: u32) -> u32 {
    let address = address.parse().unwrap();
    (0..tries).map(|_| u32::from(limit.admit(now, address))).sum()
}

const START: Instant = Instant::from_nanos(5_000_000_000);

#[test]
fn a_burst_passes_and_then_the_rate() {
    let limit = limit(10, 5);
    assert_eq!(admitted(&limit, START, "192.0.2.1", 20), 5);
    assert_eq!(admitted(&limit, START + Duration::from_millis(99), "192.0.2.1", 20), 0);
    assert_eq!(admitted(&limit, START + Duration::from_millis(100), "192.0.2.1", 20), 1);
    assert_eq!(admitted(&limit, START + Duration::from_secs(60), "192.0.2.1", 20), 5, "it saves up no more");
}

#[test]
fn over_a_long_time_exactly_the_rate_passes() {
    let limit = limit(100, 1);
    let passed: u32 =
        (0..10_000).map(|ms| admitted(&limit, START + Duration::from_millis(ms), "192.0.2.1", 1)).sum();
    assert_eq!(passed, 1000);
}

#[test]
fn networks_do_not_share_and_addresses_of_one_network_do() {
    let limit = limit(10, 5);
    assert_eq!(admitted(&limit, START, "192.0.2.1", 9), 5);
    assert_eq!(admitted(&limit, START, "192.0.2.2", 9), 5);
    assert_eq!(admitted(&limit, START, "::ffff:192.0.2.1", 9), 0, "the same address");
    assert_eq!(admitted(&limit, START, "2001:db8:0:1::1", 3), 3);
    assert_eq!(admitted(&limit, START, "2001:db8:0:2::9", 9), 2, "the same /56");
    assert_eq!(admitted(&limit, START, "2001:db8:0:100::", 9), 5, "another /56");
}

#[test]
fn a_flood_of_addresses_forgets_nobody_who_is_over_the_limit() {
    let limit = limit(1, 100);
    assert_eq!(admitted(&limit, START, "198.51.100.7", 1000), 100);
    for n in 0..200_000u32 {
        limit.admit(START, IpAddr::from((0x0a00_0000 + n).to_be_bytes()));
    }
    assert_eq!(admitted(&limit, START, "198.51.100.7", 1000), 0);
}

#[test]
fn a_rate_or_burst_of_zero_is_no_limit_to_be_made() {
    for (per_second, burst) in [(0, 1), (1, 0)] {
        assert!(RateLimit::new(RateConfig { per_second, burst, v4_len: 32, v6_len: 56 }, seed()).is_none());
    }
}

#[test]
fn the_extremes_of_time_and_rate_do_not_panic() {
    let fast = limit(u32::MAX, u32::MAX);
    let slow = limit(1, u32::MAX);
    for now in [Instant::from_nanos(0), Instant::MAX] {
        for address in ["0.0.0.0", "255.255.255.255", "::", "ffff::"] {
            assert!(admitted(&fast, now, address, 3) > 0);
            assert!(admitted(&slow, now, address, 3) > 0);
        }
    }
}

#[test]
fn workers_share_one_count() {
    let limit = limit(1, 1000);
    let passed: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| admitted(&limit, START, "192.0.2.1", 1000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(passed, 1000);
}

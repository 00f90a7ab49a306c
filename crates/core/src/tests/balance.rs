use super::*;

struct Many {
    engine: Engine,
    ids: Vec<EndpointId>,
    now: Instant,
}

impl Many {
    /// So many endpoints, each with one connection that carries a hundred requests.
    fn new(balance: Balance, n: usize) -> Self {
        let breaker = BreakerConfig { failures: 1, ..BreakerConfig::default() };
        let config = Config { breaker, ..shared(1, 100) };
        let mut many = Self { engine: Engine::new(balance, 3), ids: Vec::new(), now: Instant::ZERO + ms(1) };
        for _ in 0..n {
            let id = many.engine.add_endpoint(many.now, config, Permits::alone(1, 0)).unwrap();
            many.ids.push(id);
            let Acquired::Wait(_) = many.engine.acquire(many.now, id, many.now + ms(1)) else { panic!() };
            let Some(Action::Dial { slot, .. }) = many.engine.poll_action() else { panic!() };
            many.engine.handle_dialed(many.now, slot, Ok(ANY));
            let Some(Action::Grant { lease, .. }) = many.engine.poll_action() else { panic!() };
            many.engine.release(many.now, lease, Outcome::Good);
        }
        many
    }

    fn pick(&mut self, hash: u64) -> usize {
        let picked = self.engine.pick(self.now, hash).unwrap();
        self.ids.iter().position(|id| *id == picked).unwrap()
    }

    /// How often each is chosen.
    fn picks(&mut self, n: u64) -> Vec<u32> {
        let mut picks = vec![0; self.ids.len()];
        (0..n).for_each(|hash| picks[self.pick(hash)] += 1);
        picks
    }

    fn hold(&mut self, endpoint: usize, n: usize) -> Vec<Lease> {
        let id = self.ids[endpoint];
        (0..n).map(|_| self.engine.try_acquire(self.now, id).unwrap()).collect()
    }

    /// Breaks an endpoint: its breaker opens.
    fn fail(&mut self, endpoint: usize) {
        let lease = self.hold(endpoint, 1).remove(0);
        self.engine.release(self.now, lease, Outcome::Failed(Cause::Timeout));
    }
}

#[test]
fn round_robin_takes_one_after_the_other() {
    let mut many = Many::new(Balance::RoundRobin { turn: 0 }, 3);
    let turns: Vec<_> = (0..6).map(|_| many.pick(0)).collect();
    assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
}

#[test]
fn random_takes_all_about_equally() {
    let picks = Many::new(Balance::Random, 4).picks(4_000);
    assert!(picks.iter().all(|n| (850..1_150).contains(n)), "{picks:?}");
}

#[test]
fn least_in_use_takes_the_one_with_the_fewest_leases() {
    let mut many = Many::new(Balance::LeastInUse, 3);
    let _held = (many.hold(0, 3), many.hold(1, 1), many.hold(2, 2));
    assert_eq!(many.pick(0), 1);
}

#[test]
fn p2c_prefers_the_faster() {
    let mut many = Many::new(Balance::P2c, 3);
    for (i, latency) in [50, 5, 50].into_iter().enumerate() {
        many.engine.observe_latency(many.ids[i], ms(latency));
    }
    let picks = many.picks(3_000);
    assert!(picks[1] > 1_800, "{picks:?}: it wins each time that it is one of the two");
}

#[test]
fn p2c_prefers_the_less_busy_of_two_that_are_equally_fast_or_unknown() {
    for latency in [None, Some(ms(5))] {
        let mut many = Many::new(Balance::P2c, 2);
        if let Some(latency) = latency {
            many.ids.clone().into_iter().for_each(|id| many.engine.observe_latency(id, latency));
        }
        let _held = many.hold(0, 10);
        assert_eq!(many.picks(100), [0, 100], "latency {latency:?}");
    }
}

#[test]
fn a_peak_of_latency_counts_at_once_and_fades() {
    let mut many = Many::new(Balance::P2c, 1);
    let id = many.ids[0];
    let latency = |many: &Many| many.engine.snapshot(many.now, id).unwrap().latency;
    assert_eq!(latency(&many), None);
    many.engine.observe_latency(id, ms(1));
    many.engine.observe_latency(id, ms(80));
    assert_eq!(latency(&many), Some(ms(80)));
    (0..50).for_each(|_| many.engine.observe_latency(id, ms(1)));
    assert!(latency(&many).unwrap() < ms(2));
}

#[test]
fn first_healthy_takes_the_first_that_is() {
    let mut many = Many::new(Balance::FirstHealthy, 3);
    assert_eq!(many.pick(0), 0);
    many.fail(0);
    assert_eq!(many.pick(0), 1);
}

#[test]
fn source_hash_keeps_each_client_where_it_is_and_moves_only_those_of_who_leaves() {
    let mut many = Many::new(Balance::SourceHash, 5);
    let before: Vec<_> = (0..1_000).map(|client| many.pick(client)).collect();
    for endpoint in 0..5 {
        let n = before.iter().filter(|e| **e == endpoint).count();
        assert!((120..280).contains(&n), "{n} of a thousand clients");
    }
    let gone = many.ids[2];
    many.engine.remove_endpoint(many.now, gone, Removal::Drain);
    for (client, old) in before.iter().enumerate() {
        let new = many.pick(client as u64);
        assert!(new != 2 && (*old == 2 || new == *old));
    }
}

#[test]
fn the_unavailable_are_passed_over_unless_all_are() {
    let strategies = [
        Balance::RoundRobin { turn: 0 },
        Balance::Random,
        Balance::LeastInUse,
        Balance::P2c,
        Balance::FirstHealthy,
        Balance::SourceHash,
    ];
    for balance in strategies {
        let mut many = Many::new(balance, 3);
        many.fail(0);
        many.fail(1);
        assert_eq!(many.picks(60), [0, 0, 60], "{balance:?}");
        many.fail(2);
        assert_eq!(many.picks(60).iter().sum::<u32>(), 60, "{balance:?}: better than nobody");
    }
}

#[test]
fn where_there_is_no_endpoint_none_is_chosen() {
    assert_eq!(Engine::new(Balance::P2c, 1).pick(Instant::ZERO, 0), None);
}

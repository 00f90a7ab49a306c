//! What a seed decides before and during a run: policies, upstream behaviour, callers.

use std::time::Duration;

use forebay_core::{
    BackoffConfig, Balance, BreakerConfig, Cause, Config, HealthConfig, IdleOrder, Outcome, Overflow, Rng,
};

/// Draws from a seed.
#[derive(Debug)]
pub(crate) struct Draw(Rng);

impl Draw {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(Rng::new(seed))
    }

    pub(crate) const fn seed(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) const fn chance(&mut self, percent: u32) -> bool {
        self.0.percent(percent)
    }

    /// A number from `low` to `high`, both included.
    pub(crate) const fn number(&mut self, low: u32, high: u32) -> u32 {
        low + self.0.below(high - low + 1)
    }

    pub(crate) const fn index(&mut self, len: usize) -> usize {
        self.0.below(len as u32) as usize
    }

    pub(crate) fn micros(&mut self, low: u64, high: u64) -> Duration {
        self.0.between(Duration::from_micros(low), Duration::from_micros(high))
    }

    pub(crate) fn millis(&mut self, low: u64, high: u64) -> Duration {
        self.micros(low * 1000, high * 1000)
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }
}

pub(crate) fn balance(draw: &mut Draw) -> Balance {
    draw.of(&[
        Balance::RoundRobin { turn: 0 },
        Balance::Random,
        Balance::LeastInUse,
        Balance::P2c,
        Balance::FirstHealthy,
        Balance::SourceHash,
    ])
}

pub(crate) fn config(draw: &mut Draw) -> Config {
    let connections_max = if draw.chance(50) { draw.number(1, 4) } else { draw.number(5, 32) };
    let overflow = match draw.number(0, 9) {
        0..6 => Overflow::Wait,
        6..8 => Overflow::Temporary,
        _ => Overflow::Reject,
    };
    let connections_min = if draw.chance(65) { 0 } else { draw.number(1, connections_max.min(3)) };
    let config = Config {
        connections_max,
        connections_min,
        idle_max: if draw.chance(25) { draw.number(connections_min, connections_min + 4) } else { 1024 },
        temporary_max: if overflow == Overflow::Temporary { draw.number(1, 4) } else { 0 },
        capacity: match draw.number(0, 9) {
            0..5 => 1,
            5..8 => draw.number(2, 10),
            _ => draw.number(11, 100),
        },
        waiters_max: if draw.chance(25) { draw.number(1, 8) } else { 1024 },
        dials_max: draw.number(1, 16),
        overflow,
        order: draw.of(&[IdleOrder::Lifo, IdleOrder::Fifo, IdleOrder::Random, IdleOrder::LeastLoaded]),
        headroom_percent: draw.of(&[100, 100, 100, 125, 200, 1000]),
        dial_timeout: draw.millis(20, 400),
        idle_timeout: (!draw.chance(15)).then(|| draw.millis(20, 1500)),
        age_max: draw.chance(40).then(|| draw.millis(50, 1500)),
        uses_max: draw.chance(35).then(|| u64::from(draw.number(1, 20))),
        backoff: backoff(draw),
        breaker: breaker(draw),
        health: draw.chance(50).then(|| HealthConfig {
            interval: draw.millis(20, 300),
            rise: draw.number(1, 3),
            fall: draw.number(1, 3),
        }),
    };
    debug_assert_eq!(config.validate(), Ok(()));
    config
}

fn backoff(draw: &mut Draw) -> BackoffConfig {
    let base = draw.millis(1, 30);
    BackoffConfig { base, max: base + draw.millis(0, 300) }
}

/// The policy of an upstream that is rarely well: the breaker opens at once and not for long, so that there are many
/// probes, and dials that outlast the opening in which they began.
pub(crate) fn stormy(draw: &mut Draw) -> Config {
    let mut config = config(draw);
    config.connections_max = config.connections_max.max(4);
    config.dials_max = config.dials_max.max(4);
    config.connections_min = draw.number(0, 3).min(config.idle_max);
    config.capacity = 1;
    config.dial_timeout = draw.millis(100, 400);
    let open_base = draw.millis(2, 30);
    config.breaker = BreakerConfig { failures: draw.number(1, 3), open_base, open_max: open_base * 3 };
    let base = draw.millis(1, 3);
    config.backoff = BackoffConfig { base, max: base * 4 };
    config
}

fn breaker(draw: &mut Draw) -> BreakerConfig {
    let open_base = draw.millis(5, 100);
    BreakerConfig {
        failures: if draw.chance(15) { 0 } else { draw.number(1, 8) },
        open_base,
        open_max: open_base + draw.millis(0, 400),
    }
}

/// A policy near the old one: somebody edited a few lines of the file.
pub(crate) fn edited(draw: &mut Draw, old: Config) -> Config {
    let new = config(draw);
    let mut edited = old;
    for _ in 0..draw.number(1, 4) {
        match draw.number(0, 13) {
            0 => edited.connections_max = new.connections_max,
            1 => edited.connections_min = new.connections_min,
            2 => edited.idle_max = new.idle_max,
            3 => {
                edited.overflow = new.overflow;
                edited.temporary_max = new.temporary_max;
            }
            4 => edited.capacity = new.capacity,
            5 => edited.waiters_max = new.waiters_max,
            6 => edited.dials_max = new.dials_max,
            7 => edited.order = new.order,
            8 => edited.headroom_percent = new.headroom_percent,
            9 => edited.idle_timeout = new.idle_timeout,
            10 => edited.age_max = new.age_max,
            11 => edited.uses_max = new.uses_max,
            12 => {
                edited.backoff = new.backoff;
                edited.breaker = new.breaker;
            }
            _ => edited.health = new.health,
        }
    }
    edited.connections_min = edited.connections_min.min(edited.connections_max).min(edited.idle_max);
    edited
}

/// How an upstream, or the way to it, behaves for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// Accepts at once.
    Fine,
    /// Accepts late, sometimes too late.
    Slow,
    /// Refuses every dial.
    Refusing,
    /// Says nothing to a dial.
    Hanging,
    /// Any of these, from dial to dial.
    Flaky,
    /// This machine cannot dial at all, for this cause.
    Local(Cause),
}

/// What is at the other end of an endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    pub(crate) mood: Mood,
    /// It is rarely well: slow dials of one outage end in the next.
    stormy: bool,
    /// Requests per connection that it allows.
    pub(crate) capacity: u32,
    /// How long it lets a connection stand idle.
    pub(crate) idle_close: Option<Duration>,
    /// Whether it says so.
    pub(crate) announces: bool,
    /// In so many of a hundred connections, each of these befalls it some time.
    pub(crate) reset_percent: u32,
    pub(crate) goodbye_percent: u32,
    pub(crate) capacity_percent: u32,
    /// Local ports that the kernel really has for this destination.
    pub(crate) kernel_ports: u32,
}

impl Upstream {
    pub(crate) fn new(draw: &mut Draw, stormy: bool) -> Self {
        Self {
            mood: mood(draw, stormy),
            stormy,
            capacity: if draw.chance(60) { 1000 } else { draw.number(1, 20) },
            idle_close: draw.chance(35).then(|| draw.millis(300, 1200)),
            announces: draw.chance(30),
            reset_percent: draw.of(&[0, 0, 5, 40]),
            goodbye_percent: draw.of(&[0, 0, 5, 30]),
            capacity_percent: draw.of(&[0, 0, 30]),
            kernel_ports: if draw.chance(15) { draw.number(1, 12) } else { u32::MAX },
        }
    }

    /// How a dial that begins now will end, and when; `None` is never.
    pub(crate) fn answer(&self, draw: &mut Draw) -> (Duration, Option<Result<u32, Cause>>) {
        let quick = draw.micros(100, 3_000);
        let mood = if self.mood == Mood::Flaky { mood(draw, self.stormy) } else { self.mood };
        match mood {
            Mood::Fine | Mood::Flaky if draw.chance(1) => (quick, Some(Err(Cause::Cancelled))),
            Mood::Fine | Mood::Flaky => (quick, Some(Ok(self.capacity))),
            Mood::Slow => (draw.millis(5, 300), Some(Ok(self.capacity))),
            Mood::Refusing => (quick, Some(Err(draw.of(&[Cause::Refused, Cause::Tls, Cause::Unreachable])))),
            Mood::Hanging => (Duration::ZERO, None),
            Mood::Local(cause) => (draw.micros(0, 50), Some(Err(cause))),
        }
    }

    /// What a request that ends now ends with.
    pub(crate) fn outcome(&self, draw: &mut Draw) -> Outcome {
        let bad = matches!(self.mood, Mood::Refusing | Mood::Hanging | Mood::Flaky) && draw.chance(60);
        if bad {
            let cause = draw.of(&[Cause::Timeout, Cause::Reset, Cause::Protocol]);
            return draw.of(&[Outcome::Failed(cause), Outcome::Broken(cause)]);
        }
        let mine = draw.of(&[Cause::Memory, Cause::Limit, Cause::Cancelled, Cause::Internal]);
        match draw.number(0, 99) {
            0..88 => Outcome::Good,
            88..90 => Outcome::GoodLast,
            90..92 => Outcome::Unused,
            92 => Outcome::Failed(Cause::Timeout),
            93 => Outcome::Broken(Cause::Reset),
            94..96 => Outcome::Failed(mine),
            96..98 => Outcome::Broken(mine),
            _ => Outcome::Abandoned,
        }
    }

    /// What a health check finds.
    pub(crate) fn check(&self, draw: &mut Draw) -> Result<(), Cause> {
        match self.mood {
            Mood::Fine | Mood::Slow if draw.chance(95) => Ok(()),
            Mood::Local(cause) => Err(cause),
            Mood::Flaky if draw.chance(50) => Ok(()),
            _ => Err(draw.of(&[Cause::Timeout, Cause::Refused, Cause::Timeout, Cause::Cancelled])),
        }
    }

    /// Something changes.
    pub(crate) fn change(&mut self, draw: &mut Draw) {
        self.mood = mood(draw, self.stormy);
    }

    /// The weather clears, to the end of the run.
    pub(crate) fn calm(&mut self) {
        self.mood = Mood::Fine;
        self.kernel_ports = u32::MAX;
    }
}

fn mood(draw: &mut Draw, stormy: bool) -> Mood {
    if stormy && draw.chance(80) {
        return draw.of(&[Mood::Flaky, Mood::Flaky, Mood::Slow, Mood::Hanging, Mood::Refusing]);
    }
    match draw.number(0, 19) {
        0..10 => Mood::Fine,
        10..12 => Mood::Slow,
        12..14 => Mood::Refusing,
        14 => Mood::Hanging,
        15..17 => Mood::Flaky,
        _ => Mood::Local(draw.of(&[Cause::Ports, Cause::Descriptors, Cause::Memory, Cause::Route])),
    }
}

/// A stream of callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Callers {
    /// How many come at once.
    pub(crate) burst: u32,
    /// The time between two bursts, on average.
    pub(crate) every: Duration,
    /// How long they hold a lease, at most.
    pub(crate) hold: Duration,
    /// How long they are ready to wait, at most.
    pub(crate) patience: Duration,
    /// How many of a hundred give up earlier than they said.
    pub(crate) fickle_percent: u32,
}

impl Callers {
    pub(crate) fn new(draw: &mut Draw) -> Self {
        let burst = if draw.chance(50) { 1 } else { draw.number(2, 40) };
        let pause = draw.millis(2, 30);
        Self {
            burst,
            every: pause * burst.div_ceil(2) + pause,
            hold: draw.of(&[
                Duration::from_micros(200),
                Duration::from_millis(2),
                Duration::from_millis(20),
                Duration::from_millis(120),
            ]),
            patience: draw.of(&[
                Duration::from_millis(3),
                Duration::from_millis(50),
                Duration::from_millis(400),
                Duration::from_secs(3),
            ]),
            fickle_percent: draw.of(&[0, 5, 30]),
        }
    }
}

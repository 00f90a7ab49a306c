//! How long a connection lives, and how it ends. A decision: time is an argument.
//!
//! ```text
//! Serving ──idle, age, drain──▶ Leaving (GOAWAY; what is in flight may end) ──time is up──▶ cut
//!    └──silent after a ping, takes nothing, too many pings or resets──▶ cut
//! ```

use std::time::Duration;

use forebay_core::Instant;

/// How long a client that was idle is given to close after GOAWAY.
const IDLE_GRACE: Duration = Duration::from_secs(5);

/// Limits of one connection. `None`: there is none.
#[derive(Clone, Copy, Debug)]
pub(super) struct LifeConfig {
    /// How long no call may be in flight.
    pub(super) idle_timeout: Option<Duration>,
    /// Its age, jittered already.
    pub(super) age_max: Option<Duration>,
    /// How long calls may go on after that.
    pub(super) age_grace: Duration,
    /// How long it may be silent before it is asked for a sign of life.
    pub(super) keepalive_interval: Option<Duration>,
    /// How long that sign may take.
    pub(super) keepalive_timeout: Duration,
    /// How long it may take nothing of what waits for it.
    pub(super) stall_timeout: Duration,
}

/// Why a connection is ended by this side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// No call for too long.
    Idle,
    /// It is old enough.
    Age,
    /// The server takes no more.
    Drain,
    /// It gave no sign of life.
    Silent,
    /// It takes nothing of what is sent.
    Stalled,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Ask for a sign of life.
    Ping,
    /// Say goodbye, and let calls end.
    Leave(Why),
    /// End it now.
    Cut(Why),
}

/// What a connection looks like when it is looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pulse {
    /// Whether calls are in flight.
    pub(super) is_busy: bool,
    /// Whether something waits that the socket does not take.
    pub(super) is_stuck: bool,
    /// Bytes that have come.
    pub(super) read: u64,
    /// Bytes that the socket has taken.
    pub(super) taken: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Serving,
    Leaving { why: Why, until: Instant },
}

/// One connection's life.
#[derive(Debug)]
pub(super) struct Life {
    config: LifeConfig,
    state: State,
    born: Instant,
    /// When a call began or ended last.
    active: Instant,
    /// When bytes came last, as far as known, and how many there were.
    heard: (Instant, u64),
    /// When the socket took bytes last or had nothing to take, as far as known, and how many.
    took: (Instant, u64),
    /// When a sign of life was asked for.
    pinged: Option<Instant>,
}

impl Life {
    /// Begins one.
    pub(super) const fn new(config: LifeConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Serving,
            born: now,
            active: now,
            heard: (now, 0),
            took: (now, 0),
            pinged: None,
        }
    }

    /// Takes note that a call began or ended.
    pub(super) const fn handle_call(&mut self, now: Instant) {
        self.active = now;
    }

    /// Takes note of how many bytes have come so far.
    pub(super) const fn handle_read(&mut self, now: Instant, read: u64) {
        self.heard = (now, read);
        self.pinged = None;
    }

    /// Takes note that the server takes no more, and when it ends. Returns whether goodbye is to be said.
    pub(super) fn handle_drain(&mut self, until: Instant) -> bool {
        let (is_new, until) = match self.state {
            State::Serving => (true, until),
            State::Leaving { until: sooner, .. } => (false, until.min(sooner)),
        };
        self.state = State::Leaving { why: Why::Drain, until };
        is_new
    }

    /// Looks at a connection, and says what is to be done; to be asked until it says nothing.
    pub(super) fn poll_step(&mut self, now: Instant, pulse: &Pulse) -> Option<Step> {
        if pulse.read != self.heard.1 {
            self.handle_read(now, pulse.read);
        }
        if pulse.taken != self.took.1 || !pulse.is_stuck {
            self.took = (now, pulse.taken);
        }
        if pulse.is_stuck && now >= self.took.0 + self.config.stall_timeout {
            return Some(Step::Cut(Why::Stalled));
        }
        match (self.pinged, self.config.keepalive_interval) {
            (Some(pinged), _) if now >= pinged + self.config.keepalive_timeout => {
                return Some(Step::Cut(Why::Silent));
            }
            (None, Some(interval)) if now >= self.heard.0 + interval => {
                self.pinged = Some(now);
                return Some(Step::Ping);
            }
            _ => {}
        }
        match self.state {
            State::Leaving { why, until } => (now >= until).then_some(Step::Cut(why)),
            State::Serving => {
                let (why, grace) = if self.config.age_max.is_some_and(|age| now >= self.born + age) {
                    (Why::Age, self.config.age_grace)
                } else if self.is_idle(now, pulse) {
                    (Why::Idle, IDLE_GRACE)
                } else {
                    return None;
                };
                self.state = State::Leaving { why, until: now + grace };
                Some(Step::Leave(why))
            }
        }
    }

    fn is_idle(&self, now: Instant, pulse: &Pulse) -> bool {
        !pulse.is_busy && self.config.idle_timeout.is_some_and(|idle| now >= self.active + idle)
    }

    /// Returns when to look again, at the latest.
    pub(super) fn next_timeout(&self, pulse: &Pulse) -> Option<Instant> {
        let config = &self.config;
        let state = match self.state {
            State::Leaving { until, .. } => [Some(until), None],
            State::Serving => [
                config.age_max.map(|age| self.born + age),
                config.idle_timeout.filter(|_| !pulse.is_busy).map(|idle| self.active + idle),
            ],
        };
        let alive = match self.pinged {
            Some(pinged) => Some(pinged + config.keepalive_timeout),
            None => config.keepalive_interval.map(|interval| self.heard.0 + interval),
        };
        // A socket may get stuck at any time: nobody says so.
        let stalled = Some(self.took.0 + config.stall_timeout);
        state.into_iter().chain([alive, stalled]).flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: LifeConfig = LifeConfig {
        idle_timeout: Some(Duration::from_secs(60)),
        age_max: Some(Duration::from_secs(1000)),
        age_grace: Duration::from_secs(30),
        keepalive_interval: None,
        keepalive_timeout: Duration::from_secs(20),
        stall_timeout: Duration::from_secs(15),
    };

    fn at(secs: u64) -> Instant {
        Instant::from_nanos(secs * 1_000_000_000)
    }

    /// Asks as a driver does: only when it is due.
    fn steps(
        life: &mut Life,
        until: u64,
        mut pulse: impl FnMut(u64, &mut Life) -> Pulse,
    ) -> Vec<(u64, Step)> {
        let mut all = Vec::new();
        for second in 0..=until {
            let now = at(second);
            let pulse = pulse(second, life);
            if life.next_timeout(&pulse).is_some_and(|due| due <= now)
                && let Some(step) = life.poll_step(now, &pulse)
            {
                all.push((second, step));
                if matches!(step, Step::Cut(_)) {
                    break;
                }
            }
        }
        all
    }

    #[test]
    fn an_idle_connection_is_told_and_then_cut() {
        let mut life = Life::new(CONFIG, at(0));
        life.handle_call(at(10));
        let steps = steps(&mut life, 200, |_, _| Pulse::default());
        assert_eq!(steps, [(70, Step::Leave(Why::Idle)), (75, Step::Cut(Why::Idle))]);
    }

    #[test]
    fn a_long_call_is_not_idle_but_grows_old() {
        let mut life = Life::new(CONFIG, at(0));
        let busy = Pulse { is_busy: true, ..Pulse::default() };
        let steps = steps(&mut life, 2000, |_, _| busy);
        assert_eq!(steps, [(1000, Step::Leave(Why::Age)), (1030, Step::Cut(Why::Age))]);
    }

    #[test]
    fn a_drain_ends_by_its_own_time_and_never_later_than_an_age_would() {
        let mut life = Life::new(CONFIG, at(0));
        assert!(life.handle_drain(at(7)));
        let busy = Pulse { is_busy: true, ..Pulse::default() };
        assert_eq!(steps(&mut life, 99, |_, _| busy), [(7, Step::Cut(Why::Drain))]);
        let mut old = Life::new(LifeConfig { age_max: Some(Duration::from_secs(1)), ..CONFIG }, at(0));
        assert_eq!(old.poll_step(at(1), &busy), Some(Step::Leave(Why::Age)));
        assert!(!old.handle_drain(at(500)), "goodbye was said already");
        assert_eq!(old.poll_step(at(31), &busy), Some(Step::Cut(Why::Drain)));
    }

    #[test]
    fn a_silent_client_is_asked_and_then_cut_and_one_that_answers_is_not() {
        let config = LifeConfig { keepalive_interval: Some(Duration::from_secs(30)), ..CONFIG };
        let busy = Pulse { is_busy: true, ..Pulse::default() };
        let mut silent = Life::new(config, at(0));
        assert_eq!(steps(&mut silent, 99, |_, _| busy), [(30, Step::Ping), (50, Step::Cut(Why::Silent))]);
        let mut alive = Life::new(config, at(0));
        let mut read = 0;
        let steps = steps(&mut alive, 99, |_, life| {
            // It answers when it was asked.
            read += u64::from(life.pinged.is_some());
            Pulse { read, ..busy }
        });
        assert!(steps.len() >= 2 && steps.iter().all(|(_, step)| *step == Step::Ping), "{steps:?}");
    }

    #[test]
    fn who_takes_nothing_for_too_long_is_cut_and_who_takes_slowly_is_not() {
        let stuck = Pulse { is_busy: true, is_stuck: true, ..Pulse::default() };
        let mut life = Life::new(CONFIG, at(0));
        assert_eq!(steps(&mut life, 99, |_, _| stuck), [(15, Step::Cut(Why::Stalled))]);
        let mut slow = Life::new(CONFIG, at(0));
        assert_eq!(steps(&mut slow, 99, |second, _| Pulse { taken: second / 10, ..stuck }), []);
    }
}

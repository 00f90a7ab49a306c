//! Streams that may be dead, and what upstreams let a stream do: noticed in time, so that no query waits for them twice.
//!
//! ```text
//!            a query's time is up                     all its queries end unanswered, or another
//!   trusted ──────────────────────▶ suspect ────────────────────────────────────────────────────▶ closed
//!      ▲                              │  takes no new queries                  stream answers them
//!      └──────── an answer ───────────┘
//! ```
//!
//! A query whose time is up on a stream that had worked is asked again on another, which is made if there is none that
//! was heard of since: a connection that lost its other half costs nobody more than one `attempt_timeout` and a dial.
//! Streams that end early teach what the upstream allows: how long they may stand idle, and how many answers they give.

use std::time::Duration;

use forebay_core::{Cause, Config, EndpointId, Instant, Outcome, SlotId};

use super::exchange::Exchange;
use super::flight::AttemptState;
use super::notices::Notice;
use super::{Carrier, Forwarder, Outbox};
use crate::wire::Answer;

/// A stream that ends after standing idle for at least so long ended because of that.
const IDLE_MIN: Duration = Duration::from_millis(500);
/// Streams that give more answers than this are not taken for limited: one dial for so many costs little.
const ANSWERS_MAX: u64 = 16;
/// Streams that must have ended early, one after the other, before that is taken for a rule.
const EARLY_MIN: u32 = 2;
/// How long it is taken for a rule: servers are replaced.
const LEARNT_FOR: Duration = Duration::from_secs(600);
/// How often the same keep-alive time-out is told to the pool again.
const KEEPALIVE_AGAIN: Duration = Duration::from_secs(60);

/// What is known of the streams of one of the engine's endpoints.
#[derive(Debug)]
pub(super) struct Habits {
    /// The policy of the pool as configured.
    base: Config,
    /// Streams in a row that ended early, and the fewest answers that one of them gave.
    early: u32,
    answers: u64,
    /// Until when no stream is used for more than `answers`.
    until: Option<Instant>,
    /// The last time-out that was announced (RFC 7828), in units of 100 ms, and when.
    keepalive: Option<(u16, Instant)>,
}

impl Habits {
    pub(super) const fn new(base: Config) -> Self {
        Self { base, early: 0, answers: u64::MAX, until: None, keepalive: None }
    }
}

impl Exchange {
    /// Since when nothing was heard of it: its last answer, or its beginning.
    fn silent_since(&self) -> Instant {
        self.heard.max(self.opened)
    }
}

impl Forwarder {
    /// A query that was sent at `began` has not been answered on this stream in time.
    pub(super) fn suspect(&mut self, now: Instant, slot: SlotId, began: Instant) {
        let young = self.query_timeout;
        let Some(exchange) = self.exchanges.get_mut(slot) else { return };
        // What was just made lives: then it is the name, or the upstream, that is slow.
        if exchange.answers == 0 && exchange.opened + young > began {
            return;
        }
        let silent = exchange.silent_since() <= began;
        self.hold_back(now, slot);
        if !silent {
            return;
        }
        // It may be dead. What nobody has heard of since, on the same way, may be as dead.
        let endpoint = slot.endpoint();
        let older = |(other, exchange): (SlotId, &Exchange)| {
            (other != slot && exchange.silent_since() <= began).then_some((other, exchange.is_idle()))
        };
        let others: Vec<(SlotId, bool)> = self.exchanges.open_at(endpoint).filter_map(older).collect();
        for (other, is_idle) in others {
            if is_idle {
                self.engine.handle_goodbye(now, other);
            } else {
                self.hold_back(now, other);
            }
        }
        if self.engine.is_full(endpoint) {
            // There is no room for another beside it.
            self.condemned.push(slot);
        }
    }

    fn hold_back(&mut self, now: Instant, slot: SlotId) {
        if let Some(exchange) = self.exchanges.get_mut(slot)
            && !std::mem::replace(&mut exchange.suspect, true)
        {
            self.counters.suspects += 1;
            self.engine.hold(now, slot, true);
        }
    }

    /// An answer came on a stream: it lives.
    pub(super) fn note_heard(&mut self, now: Instant, slot: SlotId) {
        let Some(exchange) = self.exchanges.get_mut(slot) else { return };
        exchange.answers += 1;
        exchange.silent = 0;
        exchange.heard = now;
        let answers = exchange.answers;
        if std::mem::take(&mut exchange.suspect) {
            self.engine.hold(now, slot, false);
        }
        if answers == ANSWERS_MAX + 1 && self.carrier(slot) == Carrier::Stream {
            let habits = &mut self.habits[slot.endpoint().index()];
            (habits.early, habits.answers) = (0, u64::MAX);
        }
    }

    /// A stream has answered a question. Suspects that were asked it before, and did not, are dead.
    pub(super) fn convict(&mut self, now: Instant, slot: SlotId, flight: u32) {
        let is_first = self.exchanges.get_mut(slot).is_some_and(|exchange| exchange.answers == 1);
        let mut next = self.flights.first_attempt(flight);
        while let Some(at) = next {
            next = self.flights.next_attempt(at);
            let attempt = self.flights.attempt(at);
            let (AttemptState::Sent { lease, .. }, began) = (&attempt.state, attempt.began) else { continue };
            let other = lease.slot();
            if other == slot || other.endpoint() != slot.endpoint() || !attempt.late {
                continue;
            }
            let Some(exchange) = self.exchanges.get_mut(other).filter(|exchange| exchange.suspect) else {
                continue;
            };
            let (answers, heard) = (exchange.answers, exchange.heard);
            self.condemned.push(other);
            if answers > 0 && is_first {
                self.note_early_end(now, other.endpoint(), answers, began.saturating_duration_since(heard));
            }
        }
    }

    /// The upstream closed or reset a stream on which queries were out: what that teaches.
    pub(super) fn learn_from_closing(&mut self, now: Instant, slot: SlotId, cause: Option<Cause>) {
        if self.carrier(slot) != Carrier::Stream || !matches!(cause, None | Some(Cause::Reset)) {
            return;
        }
        let Some(exchange) = self.exchanges.get_mut(slot).filter(|exchange| exchange.answers > 0) else {
            return;
        };
        let (answers, heard) = (exchange.answers, exchange.heard);
        let began = exchange.attempts().map(|attempt| self.flights.attempt(attempt).began).min();
        if let Some(began) = began {
            self.note_early_end(now, slot.endpoint(), answers, began.saturating_duration_since(heard));
        }
    }

    /// A stream ended with queries on it, after so many answers, having stood idle for so long before.
    fn note_early_end(&mut self, now: Instant, endpoint: EndpointId, answers: u64, stood: Duration) {
        if stood >= IDLE_MIN {
            self.engine.handle_idle_timeout(now, endpoint, stood);
            return;
        }
        if answers > ANSWERS_MAX {
            return;
        }
        let habits = &mut self.habits[endpoint.index()];
        habits.early += 1;
        habits.answers = habits.answers.min(answers);
        if habits.early < EARLY_MIN || habits.until.is_some() {
            return;
        }
        habits.until = Some(now + LEARNT_FOR);
        self.habits_learnt += 1;
        let (base, answers) = (habits.base, habits.answers);
        let config = Config {
            uses_max: Some(base.uses_max.unwrap_or(u64::MAX).min(answers)),
            capacity: base.capacity.min(answers as u32),
            ..base
        };
        self.configure(now, endpoint, config);
        let (address, _) = self.roles[endpoint.index()];
        self.notices.push(address, Notice::FewAnswers { answers });
        // What waits on streams that have given that many waits in vain.
        let spent = |(slot, exchange): (SlotId, &Exchange)| {
            (exchange.answers >= answers && !exchange.is_idle()).then_some(slot)
        };
        self.condemned.extend(self.exchanges.open_at(endpoint).filter_map(spent));
    }

    /// Forgets what was learnt long ago; if it still holds, one stream is enough to learn it again.
    pub(super) fn forget_habits(&mut self, now: Instant) {
        for index in 0..self.habits.len() {
            let habits = &mut self.habits[index];
            if habits.until.is_none_or(|until| now < until) {
                continue;
            }
            habits.until = None;
            habits.early = EARLY_MIN - 1;
            self.habits_learnt -= 1;
            let base = habits.base;
            let (address, carrier) = self.roles[index];
            let address = &self.endpoints[usize::from(address)];
            let endpoint = match address.datagram {
                Some(datagram) if carrier == Carrier::Datagram => datagram,
                _ => address.stream,
            };
            self.configure(now, endpoint, base);
        }
    }

    fn configure(&mut self, now: Instant, endpoint: EndpointId, config: Config) {
        let valid = self.engine.handle_config(now, endpoint, config);
        debug_assert!(valid.is_ok(), "{valid:?}");
    }

    /// Takes note of the time-out that the upstream grants (RFC 7828 §3.4); it is undercut.
    pub(super) fn learn_keepalive(&mut self, now: Instant, slot: SlotId, answer: &Answer<'_>) {
        let Some(granted) = answer.opt.as_ref().and_then(|opt| opt.edns.options.keepalive()) else { return };
        if granted == 0 {
            // RFC 7828 §3.4: close it once what is out has been answered.
            self.engine.handle_goodbye(now, slot);
            return;
        }
        let habits = &mut self.habits[slot.endpoint().index()];
        if habits.keepalive.is_some_and(|(last, at)| last == granted && now < at + KEEPALIVE_AGAIN) {
            return;
        }
        habits.keepalive = Some((granted, now));
        self.engine.handle_idle_timeout(
            now,
            slot.endpoint(),
            Duration::from_millis(u64::from(granted) * 100),
        );
    }

    /// Closes the streams that are known to be dead; what was out on them is asked again.
    pub(super) fn close_condemned(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(slot) = self.condemned.pop() {
            let mut stranded = Vec::new();
            while let Some(at) = self.exchanges.first(slot) {
                let attempt = self.flights.attempt(at);
                let (flight, endpoint, late) = (attempt.flight, attempt.endpoint, attempt.late);
                self.drop_attempt(now, at, Outcome::Abandoned);
                self.forget_asked(flight, endpoint);
                stranded.push((flight, late));
            }
            self.counters.condemned += u64::from(!stranded.is_empty());
            for (flight, late) in stranded {
                // For those whose time was up, the next attempt has begun already.
                if self.flights.is_in_use(flight) && (!late || !self.flights.has_attempts(flight)) {
                    self.counters.replays += 1;
                    self.flights.flight_mut(flight).replays += 1;
                    self.try_again(now, flight, out);
                }
            }
        }
    }
}

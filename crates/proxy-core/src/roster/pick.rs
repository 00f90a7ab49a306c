//! Who serves the next client or request.

use std::sync::Arc;

use forebay_core::{Instant, Rng};

use super::backend::{Backend, BackendId};

/// How backends are chosen. All but `first_healthy` heed shares and slow starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// The one that serves the fewest.
    LeastConnections,
    /// The better of two chosen at random, by smoothed peak latency times those it serves.
    P2c,
    /// The one that a hash of the client points to; when a backend leaves, only its clients move (rendezvous).
    SourceHash,
    /// The first in the order of the list.
    FirstHealthy,
}

impl Balance {
    /// Every value, in the order in which tables show them.
    pub const ALL: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastConnections,
        Self::P2c,
        Self::SourceHash,
        Self::FirstHealthy,
    ];

    /// Returns the word used in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RoundRobin => "round_robin",
            Self::Random => "random",
            Self::LeastConnections => "least_connections",
            Self::P2c => "p2c",
            Self::SourceHash => "source_hash",
            Self::FirstHealthy => "first_healthy",
        }
    }
}

/// The backends at which a client or request has failed. Making one costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    ids: Vec<BackendId>,
}

impl Tried {
    /// Makes an empty set.
    pub const fn new() -> Self {
        Self { ids: Vec::new() }
    }

    /// Notes a backend.
    pub fn insert(&mut self, id: BackendId) {
        if !self.contains(id) {
            self.ids.push(id);
        }
    }

    /// Returns whether a backend was noted.
    pub fn contains(&self, id: BackendId) -> bool {
        self.ids.contains(&id)
    }

    /// Returns how many were noted.
    pub const fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether none was noted.
    pub const fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// One worker's turn in choosing.
#[derive(Clone, Debug)]
pub struct Picker {
    balance: Balance,
    rng: Rng,
    /// The place that was chosen last; of no list in the beginning, so that workers do not all begin with the first.
    last: usize,
    /// What each place is owed, while shares differ.
    owed: Vec<i64>,
}

/// Who may be chosen.
#[derive(Clone, Copy)]
struct Field<'a, E> {
    list: &'a [Arc<Backend<E>>],
    tried: &'a Tried,
    /// Whether those that are not usable may be chosen too; then all have the same weight.
    is_last_resort: bool,
    /// How many may be chosen.
    count: usize,
    is_even: bool,
}

impl<E> Field<'_, E> {
    /// The weight of a backend in this choice; zero if it may not be chosen.
    fn weight(&self, backend: &Backend<E>) -> u32 {
        if self.tried.contains(backend.id()) {
            0
        } else if self.is_last_resort {
            1
        } else {
            backend.weight()
        }
    }

    fn places(&self) -> impl Iterator<Item = (usize, &Backend<E>, u32)> {
        self.list
            .iter()
            .enumerate()
            .map(|(i, backend)| (i, &**backend, self.weight(backend)))
            .filter(|(_, _, weight)| *weight > 0)
    }
}

impl Picker {
    /// Makes a picker. Each worker gets a seed of its own, so that they do not all begin with the same backend.
    pub const fn new(balance: Balance, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let last = rng.below(1 << 16) as usize;
        Self { balance, rng, last, owed: Vec::new() }
    }

    /// Chooses a backend that was not tried: a usable one as the balance says, or, if there is none, any of the rest.
    /// `None` if all were tried. `hash` stands for the client, and only [`Balance::SourceHash`] looks at it; `now`
    /// only [`Balance::P2c`].
    pub fn pick<E>(
        &mut self,
        now: Instant,
        list: &[Arc<Backend<E>>],
        hash: u64,
        tried: &Tried,
    ) -> Option<usize> {
        let field = Self::survey(list, tried)?;
        let place = if field.count == 1 {
            field.places().map(|(i, ..)| i).next()
        } else {
            match self.balance {
                Balance::RoundRobin if field.is_even => self.next_in_turn(&field),
                Balance::RoundRobin => self.next_owed(&field),
                Balance::Random => self.any(&field),
                Balance::LeastConnections => self.least_busy(&field),
                Balance::P2c => self.better_of_two(now, &field),
                Balance::SourceHash => highest_score(&field, hash),
                Balance::FirstHealthy => field.places().map(|(i, ..)| i).next(),
            }
        }?;
        self.last = place;
        Some(place)
    }

    fn survey<'a, E>(list: &'a [Arc<Backend<E>>], tried: &'a Tried) -> Option<Field<'a, E>> {
        let (mut usable, mut left, mut some, mut is_even) = (0, 0, 0, true);
        for backend in list {
            if !tried.is_empty() && tried.contains(backend.id()) {
                continue;
            }
            left += 1;
            let weight = backend.weight();
            if weight > 0 {
                usable += 1;
                is_even &= some == 0 || some == weight;
                some = weight;
            }
        }
        match (usable, left) {
            (_, 0) => None,
            (0, count) => Some(Field { list, tried, is_last_resort: true, count, is_even: true }),
            (count, _) => Some(Field { list, tried, is_last_resort: false, count, is_even }),
        }
    }

    fn next_in_turn<E>(&self, field: &Field<'_, E>) -> Option<usize> {
        let after = field.places().map(|(i, ..)| i).find(|i| *i > self.last);
        after.or_else(|| field.places().map(|(i, ..)| i).next())
    }

    /// Smooth weighted turns: each is owed its weight in every round, the one owed most is chosen and pays for all.
    fn next_owed<E>(&mut self, field: &Field<'_, E>) -> Option<usize> {
        self.owed.resize(field.list.len(), 0);
        let (mut best, mut total) = (None, 0);
        for (i, _, weight) in field.places() {
            // Weights change, backends come and go: nobody is owed more than a few rounds.
            let weight = i64::from(weight);
            let owed = (self.owed[i] + weight).min(weight * 4);
            self.owed[i] = owed;
            total += weight;
            if best.is_none_or(|(_, most)| owed > most) {
                best = Some((i, owed));
            }
        }
        let (place, _) = best?;
        self.owed[place] = (self.owed[place] - total).max(-total * 4);
        Some(place)
    }

    fn any<E>(&mut self, field: &Field<'_, E>) -> Option<usize> {
        if field.is_even {
            let n = self.rng.below(field.count as u32) as usize;
            return field.places().map(|(i, ..)| i).nth(n);
        }
        let total: u64 = field.places().map(|(_, _, weight)| u64::from(weight)).sum();
        let mut at = ((u128::from(self.rng.next_u64()) * u128::from(total)) >> 64) as u64;
        let mut last = None;
        for (i, _, weight) in field.places() {
            last = Some(i);
            match at.checked_sub(u64::from(weight)) {
                Some(rest) => at = rest,
                None => break,
            }
        }
        last
    }

    /// Of those that are equally busy, the next in turn.
    fn least_busy<E>(&self, field: &Field<'_, E>) -> Option<usize> {
        let mut best: Option<(usize, u64, u64, bool)> = None;
        for (i, backend, weight) in field.places() {
            // One more than now, so that weights tell among the idle ones.
            let (busy, weight) = (u64::from(backend.in_use()) + 1, u64::from(weight));
            let is_ahead = i > self.last;
            let is_better = best.is_none_or(|(_, best_busy, best_weight, best_ahead)| {
                // busy / weight, without a division.
                let (mine, other) = (busy * best_weight, best_busy * weight);
                mine < other || mine == other && is_ahead && !best_ahead
            });
            if is_better {
                best = Some((i, busy, weight, is_ahead));
            }
        }
        best.map(|(i, ..)| i)
    }

    fn better_of_two<E>(&mut self, now: Instant, field: &Field<'_, E>) -> Option<usize> {
        let n = field.count as u32;
        let one = self.rng.below(n);
        let other = (one + 1 + self.rng.below(n - 1)) % n;
        let mut two = field
            .places()
            .enumerate()
            .filter(|(k, _)| *k == one as usize || *k == other as usize)
            .map(|(_, (i, backend, weight))| (i, backend.cost(now) / f64::from(weight), weight));
        let a = two.next()?;
        // Weights may have changed meanwhile: then there may be only one.
        let Some(b) = two.next() else { return Some(a.0) };
        let is_even = a.1 == b.1;
        let b_is_better = if !is_even {
            b.1 < a.1
        } else if a.2 != b.2 {
            self.rng.below(a.2.saturating_add(b.2)) < b.2
        } else {
            self.rng.percent(50)
        };
        Some(if b_is_better { b.0 } else { a.0 })
    }
}

/// Rendezvous: each backend has a score for each client, and the highest wins. Where weights differ, scores are such
/// that a backend wins in proportion to its weight, and a change of one weight moves clients only from or to it.
fn highest_score<E>(field: &Field<'_, E>, hash: u64) -> Option<usize> {
    if field.is_even {
        return field.places().max_by_key(|(_, backend, _)| backend.score(hash)).map(|(i, ..)| i);
    }
    field
        .places()
        .map(|(i, backend, weight)| {
            // In (0, 1), never its ends: their logarithm is negative and finite.
            let uniform = (backend.score(hash) >> 12) as f64 / (1_u64 << 52) as f64 + f64::EPSILON / 4.0;
            (i, f64::from(weight) / -uniform.ln())
        })
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(i, _)| i)
}

//! One backend as workers see it: its key, and numbers that are read and written without a lock.

use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay_core::{Instant, Rng};

/// The largest share: with a hundred per cent of slow start it still fits 32 bits.
pub(super) const SHARE_MAX: u32 = 1_000_000;

/// Names a backend for as long as its roster lives. A backend that leaves and comes back has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendId(pub(super) u64);

impl BackendId {
    /// Returns the number.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// How a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Standing {
    /// It gets its share. Left by failed checks, failures in a row, or removal.
    Usable = 0,
    /// It gets less than its share, because it came a moment ago. Left by time, to `Usable`, and as `Usable` is.
    Warming = 1,
    /// Too many failures in a row. Left by time or a good check.
    Ejected = 2,
    /// Its checks fail. Left by good checks.
    Unhealthy = 3,
    /// It is no longer on the list. Never left.
    Removed = 4,
}

impl Standing {
    /// Every value, in the order in which tables show them.
    pub const ALL: [Self; 5] = [Self::Usable, Self::Warming, Self::Ejected, Self::Unhealthy, Self::Removed];

    /// Returns the word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Usable => "usable",
            Self::Warming => "warming",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
            Self::Removed => "removed",
        }
    }
}

/// A backend. Its roster writes what it thinks of it, workers what they see of it.
#[derive(Debug)]
pub struct Backend<E> {
    id: BackendId,
    key: E,
    hash: u64,
    share: AtomicU32,
    /// Share times per cent; zero while it is not usable.
    weight: AtomicU32,
    standing: AtomicU8,
    in_use: AtomicU32,
    failures: AtomicU32,
    /// When it was last measured, in ms, above; µs of smoothed peak latency as a float, below. One word, so that they agree.
    latency: AtomicU64,
}

impl<E> Backend<E> {
    pub(super) fn new(id: BackendId, key: E) -> Self
    where
        E: Hash,
    {
        let mut hasher = KeyHasher::default();
        key.hash(&mut hasher);
        Self {
            id,
            key,
            hash: hasher.finish(),
            share: AtomicU32::new(1),
            weight: AtomicU32::new(0),
            standing: AtomicU8::new(Standing::Usable as u8),
            in_use: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            latency: AtomicU64::new(0),
        }
    }

    /// Returns its name within the roster.
    pub const fn id(&self) -> BackendId {
        self.id
    }

    /// Returns what shapes a connection to it.
    pub const fn key(&self) -> &E {
        &self.key
    }

    /// Returns a hash of the key that is the same in every process of this build.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// Returns how much traffic it is to get now, compared with others; zero while it is not usable.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    /// Returns how it is.
    pub fn standing(&self) -> Standing {
        let at = usize::from(self.standing.load(Relaxed));
        Standing::ALL.get(at).copied().unwrap_or(Standing::Usable)
    }

    /// Returns how many clients or requests it serves now, over all workers.
    pub fn in_use(&self) -> u32 {
        self.in_use.load(Relaxed)
    }

    /// Returns how many failures there were since the last success.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    /// Notes one more client or request there, until the visit is dropped.
    pub fn enter(&self) -> Visit<'_> {
        self.in_use.fetch_add(1, Relaxed);
        Visit { in_use: &self.in_use }
    }

    /// Notes that a client or request was served well: failures are counted in a row.
    pub fn note_good(&self) {
        // A look is cheaper than a write to a line that all workers share.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Notes how long a connect or a response took, for [`Balance::P2c`](super::Balance::P2c). A longer time counts at
    /// once, a shorter one bit by bit (peak EWMA over ten seconds). When two workers write at once, one is lost.
    pub fn note_latency(&self, now: Instant, took: Duration) {
        let word = self.latency.load(Relaxed);
        let (age, took) = (age(now, word), took.as_secs_f32() * 1e6);
        let old = f32::from_bits(word as u32) * decay(age);
        let new = if took >= old {
            took
        } else if age < LATENCY_PAUSE_MS {
            return;
        } else {
            // `old` has decayed by its age already; what it lost is filled with the new one.
            old + took * (1.0 - decay(age))
        };
        self.latency.store(u64::from(stamp(now)) << 32 | u64::from(new.to_bits()), Relaxed);
    }

    /// Returns the smoothed peak latency, less what it lost since it was measured; zero if nothing is known.
    pub fn latency(&self, now: Instant) -> Duration {
        Duration::from_nanos((self.smoothed(now) * 1000.0) as u64)
    }

    fn smoothed(&self, now: Instant) -> f64 {
        let word = self.latency.load(Relaxed);
        f64::from(f32::from_bits(word as u32) * decay(age(now, word)))
    }

    /// What it would cost to go there now: latency times who is there already. One of which nothing is known costs
    /// nothing while nobody is there, and much as soon as somebody finds out.
    pub(super) fn cost(&self, now: Instant) -> f64 {
        let in_use = f64::from(self.in_use());
        match self.smoothed(now) {
            0.0 if in_use == 0.0 => 0.0,
            0.0 => 1e6 + in_use,
            micros => micros * (in_use + 1.0),
        }
    }

    pub(super) fn note_bad(&self) -> u32 {
        self.failures.fetch_add(1, Relaxed).saturating_add(1)
    }

    pub(super) fn clear_failures(&self) {
        self.failures.store(0, Relaxed);
    }

    pub(super) fn set_failures(&self, failures: u32) {
        self.failures.store(failures, Relaxed);
    }

    pub(super) fn set_share(&self, share: u32) {
        self.share.store(share, Relaxed);
    }

    pub(super) fn publish(&self, standing: Standing, percent: u32) {
        self.weight.store(self.share.load(Relaxed) * percent, Relaxed);
        self.standing.store(standing as u8, Relaxed);
    }

    pub(super) fn leave(&self) {
        self.publish(Standing::Removed, 0);
    }

    pub(super) fn score(&self, hash: u64) -> u64 {
        Rng::new(self.hash ^ hash).next_u64()
    }
}

/// A client or request at a backend; dropped, it is there no longer.
#[derive(Debug)]
#[must_use = "who does not keep it has left already"]
pub struct Visit<'a> {
    in_use: &'a AtomicU32,
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.in_use.fetch_sub(1, Relaxed);
    }
}

/// How long a latency takes to lose two thirds of its weight, in ms.
const DECAY_MS: f32 = 10_000.0;

/// How old a latency is at least before a lower one changes it, in ms: workers write less often to what they share.
const LATENCY_PAUSE_MS: u32 = 10;

fn decay(age_ms: u32) -> f32 {
    if age_ms == 0 { 1.0 } else { (-(age_ms as f32) / DECAY_MS).exp() }
}

/// Milliseconds, which go round after 49 days: a latency that old has the weight of a newer one for a moment.
const fn stamp(now: Instant) -> u32 {
    (now.as_nanos() / 1_000_000) as u32
}

const fn age(now: Instant, word: u64) -> u32 {
    let age = stamp(now).wrapping_sub((word >> 32) as u32);
    // Another worker's clock may have been read a moment later than this one.
    if age > u32::MAX / 2 { 0 } else { age }
}

/// FNV-1a: not for tables, but equal in every process, so that a client's backend is the same on each of several
/// proxies and after a restart.
struct KeyHasher(u64);

impl Default for KeyHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        Rng::new(self.0).next_u64()
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

//! Questions in flight: who waits for each, and what has been sent upstream for it.
//!
//! ```text
//! Flight (one question) ──▶ Waiter ─▶ Waiter …    the clients that asked it, each with its own id and letter case
//!        └──▶ Attempt ─▶ Attempt …                each in line for a connection, or sent on one under its own id
//! ```
//!
//! Three tables with reused places: nothing is allocated per question once they have grown.

use std::net::{IpAddr, SocketAddr};

use forebay_core::{EndpointId, Instant, Lease, TicketId};
use hashbrown::HashTable;

use super::refresh::StaleState;
use crate::wire::{Asked, AskedEdns, Query, QuestionKey};

pub(crate) const NONE: u32 = u32::MAX;

/// To whom a reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// A datagram's sender.
    Udp {
        /// Which of the listeners it came to.
        listener: u16,
        /// Its address.
        peer: SocketAddr,
        /// The address it was sent to, where a listener has several.
        local: Option<IpAddr>,
    },
    /// A connection of the shell, by a number that is never used twice.
    Stream {
        /// That number.
        connection: u64,
        /// The address at its other end.
        peer: IpAddr,
        /// What it carries messages in.
        kind: StreamKind,
        /// How long it may stand idle, in units of 100 ms: what clients that ask are told (RFC 7828 §3.1).
        idle: u16,
    },
}

/// What a client's stream carries messages in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// TCP alone.
    Tcp,
    /// TLS (RFC 7858).
    Tls,
    /// HTTPS (RFC 8484).
    Https,
}

impl StreamKind {
    /// Returns the word used in logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }
}

impl Client {
    /// The address that it asks from.
    pub const fn address(&self) -> IpAddr {
        match self {
            Self::Udp { peer, .. } => peer.ip(),
            Self::Stream { peer, .. } => *peer,
        }
    }
}

/// A client that waits. Keeps of its query what the reply gives back.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) client: Client,
    next: u32,
    id: u16,
    opcode: u8,
    rd: bool,
    ad: bool,
    cd: bool,
    edns: Option<AskedEdns>,
    question: Vec<u8>,
}

impl Waiter {
    pub(crate) fn asked(&self) -> Asked<'_> {
        Asked {
            id: self.id,
            opcode: self.opcode,
            rd: self.rd,
            ad: self.ad,
            cd: self.cd,
            question: &self.question,
            edns: self.edns,
        }
    }
}

/// One try to get an answer.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) flight: u32,
    next: u32,
    /// Which endpoint, by its place among all.
    pub(crate) endpoint: u16,
    /// When it got in line, or was sent.
    pub(crate) began: Instant,
    /// Its time is up: the next attempt has begun, and its answer is still welcome.
    pub(crate) late: bool,
    /// How its name is spelled; 0 is in lower case.
    pub(crate) letters: u64,
    pub(crate) state: AttemptState,
}

#[derive(Debug)]
pub(crate) enum AttemptState {
    /// No attempt. Left by a new one, to `Line` or `Sent`.
    Vacant,
    /// Waits for a connection. Left by the engine's grant, to `Sent`; by its failure or the flight's end, to `Vacant`.
    Line(TicketId),
    /// On its way. Left by an answer, a failed connection or the flight's end, to `Vacant`.
    Sent { lease: Lease, id: u16 },
}

/// One question on its way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) key: QuestionKey,
    in_use: bool,
    /// Whose health it checks, if nobody asked it.
    pub(crate) probe: Option<EndpointId>,
    waiters: u32,
    waiters_tail: u32,
    attempts: u32,
    /// When its clients are told that it failed.
    pub(crate) deadline: Instant,
    /// How many attempts have begun.
    pub(crate) tries: u32,
    /// How many attempts were begun anew because a used connection turned out dead.
    pub(crate) replays: u32,
    /// Which upstream its name goes to.
    pub(crate) upstream: u16,
    /// Where in the order of that upstream's endpoints it begins.
    pub(crate) cursor: u32,
    /// Endpoints of that upstream, as bits: those that were asked in this round.
    pub(crate) asked: u64,
    /// Those on whose connections something went wrong: they are asked again if nobody else is left.
    pub(crate) struck: u64,
    /// Those that are not asked again: they answered with an error, or no connection could be made.
    pub(crate) failed: u64,
    /// When the next endpoint is asked beside those that are being asked; never, unless they race.
    pub(crate) next_start: Instant,
    /// Whether it was begun for nobody, to have the answer when it is asked for.
    pub(crate) is_background: bool,
    pub(crate) stale: StaleState,
    /// Whether queries carry an OPT record: not after an upstream took one for an error.
    pub(crate) edns: bool,
    /// Whether queries go over a stream: after a truncated answer.
    pub(crate) stream: bool,
    /// Whether an upstream has refused a cookie of ours.
    pub(crate) cookie_refused: bool,
    /// The error that an upstream answered, told to the clients if nobody knows better.
    pub(crate) rcode: Option<u16>,
    /// The last failure of an attempt.
    pub(crate) failure: Option<forebay_core::Cause>,
}

/// Everything in flight.
#[derive(Debug)]
pub(crate) struct Flights {
    flights: Vec<Flight>,
    flights_free: Vec<u32>,
    by_question: HashTable<u32>,
    waiters: Vec<Waiter>,
    waiters_free: Vec<u32>,
    attempts: Vec<Attempt>,
    attempts_free: Vec<u32>,
}

impl Flights {
    pub(crate) fn new() -> Self {
        Self {
            flights: Vec::new(),
            flights_free: Vec::new(),
            by_question: HashTable::new(),
            waiters: Vec::new(),
            waiters_free: Vec::new(),
            attempts: Vec::new(),
            attempts_free: Vec::new(),
        }
    }

    /// How many questions are in flight.
    pub(crate) fn len(&self) -> usize {
        self.by_question.len()
    }

    /// How many clients wait.
    pub(crate) const fn waiting(&self) -> usize {
        self.waiters.len() - self.waiters_free.len()
    }

    pub(crate) fn find(&self, key: &QuestionKey) -> Option<u32> {
        self.by_question.find(key.hash(), |&flight| self.flights[flight as usize].key == *key).copied()
    }

    pub(crate) fn begin(&mut self, key: &QuestionKey, upstream: u16, deadline: Instant) -> u32 {
        let index = self.add(key, upstream, deadline, None);
        let flights = &self.flights;
        self.by_question.insert_unique(key.hash(), index, |&other| flights[other as usize].key.hash());
        index
    }

    /// Begins a flight that is not found by its question.
    pub(crate) fn begin_probe(
        &mut self,
        key: &QuestionKey,
        upstream: u16,
        deadline: Instant,
        endpoint: EndpointId,
    ) -> u32 {
        self.add(key, upstream, deadline, Some(endpoint))
    }

    fn add(&mut self, key: &QuestionKey, upstream: u16, deadline: Instant, probe: Option<EndpointId>) -> u32 {
        let fresh = Flight {
            key: key.clone(),
            in_use: true,
            probe,
            waiters: NONE,
            waiters_tail: NONE,
            attempts: NONE,
            deadline,
            tries: 0,
            replays: 0,
            upstream,
            cursor: 0,
            asked: 0,
            struck: 0,
            failed: 0,
            next_start: Instant::MAX,
            is_background: false,
            stale: StaleState::Unknown,
            edns: true,
            stream: false,
            cookie_refused: false,
            rcode: None,
            failure: None,
        };
        match self.flights_free.pop() {
            Some(index) => {
                self.flights[index as usize] = fresh;
                index
            }
            None => {
                self.flights.push(fresh);
                self.flights.len() as u32 - 1
            }
        }
    }

    /// Ends a flight. Its waiters and attempts must have been taken out.
    pub(crate) fn end(&mut self, flight: u32) {
        let this = &mut self.flights[flight as usize];
        debug_assert!(this.in_use && this.waiters == NONE && this.attempts == NONE);
        this.in_use = false;
        let hash = this.key.hash();
        if let Ok(entry) = self.by_question.find_entry(hash, |&other| other == flight) {
            entry.remove();
        }
        self.flights_free.push(flight);
    }

    pub(crate) fn flight(&self, flight: u32) -> &Flight {
        &self.flights[flight as usize]
    }

    pub(crate) fn flight_mut(&mut self, flight: u32) -> &mut Flight {
        &mut self.flights[flight as usize]
    }

    pub(crate) fn is_in_use(&self, flight: u32) -> bool {
        self.flights.get(flight as usize).is_some_and(|flight| flight.in_use)
    }

    /// The next check that is out, of those that began at or after this place.
    pub(crate) fn next_probe(&self, from: u32) -> Option<u32> {
        (from..self.flights.len() as u32).find(|at| {
            let flight = &self.flights[*at as usize];
            flight.in_use && flight.probe.is_some()
        })
    }

    /// Iterates over the flights that clients wait for.
    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.by_question.iter().copied()
    }

    pub(crate) fn add_waiter(&mut self, flight: u32, client: Client, query: &Query<'_>) {
        let Asked { id, opcode, rd, ad, cd, question, edns } = query.asked;
        let index = match self.waiters_free.pop() {
            Some(index) => index,
            None => {
                let question = Vec::with_capacity(question.len().max(64));
                self.waiters.push(Waiter { client, next: NONE, id, opcode, rd, ad, cd, edns, question });
                self.waiters.len() as u32 - 1
            }
        };
        let waiter = &mut self.waiters[index as usize];
        let mut kept = std::mem::take(&mut waiter.question);
        kept.clear();
        kept.extend_from_slice(question);
        *waiter = Waiter { client, next: NONE, id, opcode, rd, ad, cd, edns, question: kept };
        let this = &mut self.flights[flight as usize];
        match std::mem::replace(&mut this.waiters_tail, index) {
            NONE => this.waiters = index,
            tail => self.waiters[tail as usize].next = index,
        }
    }

    /// Takes out the waiter that came first. Valid until the next one is added.
    pub(crate) fn pop_waiter(&mut self, flight: u32) -> Option<&Waiter> {
        let this = &mut self.flights[flight as usize];
        let index = this.waiters;
        if index == NONE {
            return None;
        }
        this.waiters = self.waiters[index as usize].next;
        if this.waiters == NONE {
            this.waiters_tail = NONE;
        }
        self.waiters_free.push(index);
        Some(&self.waiters[index as usize])
    }

    pub(crate) fn add_attempt(
        &mut self,
        now: Instant,
        flight: u32,
        endpoint: u16,
        state: AttemptState,
    ) -> u32 {
        let next = self.flights[flight as usize].attempts;
        let attempt = Attempt { flight, next, endpoint, began: now, late: false, letters: 0, state };
        let index = match self.attempts_free.pop() {
            Some(index) => {
                self.attempts[index as usize] = attempt;
                index
            }
            None => {
                self.attempts.push(attempt);
                self.attempts.len() as u32 - 1
            }
        };
        self.flights[flight as usize].attempts = index;
        index
    }

    pub(crate) fn attempt(&self, attempt: u32) -> &Attempt {
        &self.attempts[attempt as usize]
    }

    pub(crate) fn attempt_mut(&mut self, attempt: u32) -> &mut Attempt {
        &mut self.attempts[attempt as usize]
    }

    pub(crate) fn has_attempts(&self, flight: u32) -> bool {
        self.flights[flight as usize].attempts != NONE
    }

    /// Takes out one attempt of its flight. Returns its state.
    pub(crate) fn remove_attempt(&mut self, attempt: u32) -> AttemptState {
        let Attempt { flight, next, .. } = self.attempts[attempt as usize];
        let this = &mut self.flights[flight as usize];
        if this.attempts == attempt {
            this.attempts = next;
        } else {
            let mut before = this.attempts;
            while self.attempts[before as usize].next != attempt {
                before = self.attempts[before as usize].next;
            }
            self.attempts[before as usize].next = next;
        }
        self.attempts_free.push(attempt);
        std::mem::replace(&mut self.attempts[attempt as usize].state, AttemptState::Vacant)
    }

    /// The attempt of a flight that began last.
    pub(crate) fn first_attempt(&self, flight: u32) -> Option<u32> {
        let first = self.flights[flight as usize].attempts;
        (first != NONE).then_some(first)
    }

    /// The attempt of the same flight that began before this one.
    pub(crate) fn next_attempt(&self, attempt: u32) -> Option<u32> {
        let next = self.attempts[attempt as usize].next;
        (next != NONE).then_some(next)
    }

    /// Iterates over the attempts of a flight, the newest first.
    pub(crate) fn attempts(&self, flight: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.first_attempt(flight), |at| self.next_attempt(*at))
    }

    /// The endpoints, as bits from `first` on, that have not answered in time.
    pub(crate) fn silent(&self, flight: u32, first: u16) -> u64 {
        let attempts = self.attempts(flight).map(|at| &self.attempts[at as usize]);
        let silent =
            attempts.filter(|attempt| attempt.late && matches!(attempt.state, AttemptState::Sent { .. }));
        silent.fold(0, |set, attempt| set | 1 << (attempt.endpoint - first))
    }

    /// The endpoints, as bits from `first` on, that need no other attempt: one is on its way in time, or in line.
    pub(crate) fn busy(&self, flight: u32, first: u16) -> u64 {
        let attempts = self.attempts(flight).map(|at| &self.attempts[at as usize]);
        let busy = attempts.filter(|attempt| !attempt.late || matches!(attempt.state, AttemptState::Line(_)));
        busy.fold(0, |set, attempt| set | 1 << (attempt.endpoint - first))
    }
}

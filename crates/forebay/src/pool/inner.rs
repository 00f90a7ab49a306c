//! The heart that all handles, leases and tasks of one pool share: it asks the exchange, and does what is to be done.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::Waker;
use std::time::Duration;

use forebay_core::{Blame, Cause, Config, ConfigError, EndpointId, Instant, Outcome, Permits, SlotId};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};

use super::connector::{Connector, Dial, News, Report, Reporter};
use super::error::DialError;
use super::exchange::{self, Exchange, Given, Mode, Waiting};
use super::limits::Limits;
use super::{driver, log};
use crate::dial::Machine;
use crate::sys;

/// What the shell remembers of an endpoint.
#[derive(Debug)]
pub(super) struct Site<E> {
    pub(super) endpoint: E,
    pub(super) name: Box<str>,
    /// Why dialling failed last.
    pub(super) dial_error: Mutex<Option<DialError>>,
}

impl<E> Site<E> {
    pub(super) fn last_dial_error(&self) -> Option<DialError> {
        self.dial_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub(super) type SiteOf<C> = Arc<Site<<C as Connector>::Endpoint>>;
pub(super) type ExchangeOf<C, M> = Exchange<<C as Connector>::Conn, M, SiteOf<C>>;
type Rest<C, M> = exchange::Rest<<C as Connector>::Conn, M, SiteOf<C>>;
pub(super) type Work<C, M> = exchange::Work<<C as Connector>::Conn, M, SiteOf<C>>;

pub(super) struct Inner<C: Connector, M: Mode<C::Conn>> {
    pub(super) exchange: ExchangeOf<C, M>,
    pub(super) me: Weak<Self>,
    pub(super) connector: Arc<C>,
    pub(super) upstream: Arc<str>,
    pub(super) acquire_timeout: Duration,
    pub(super) machine: Option<Arc<Machine>>,
    pub(super) limits: Option<Arc<Limits<C::Endpoint>>>,
    pub(super) runtime: Handle,
    /// One less than the number of shards, which is a power of two.
    pub(super) shard_mask: usize,
    /// Endpoints by value. Taken before the hub's lock, never inside.
    pub(super) endpoints: Mutex<HashMap<C::Endpoint, EndpointId>>,
    /// Wakes the driver.
    pub(super) rouse: Notify,
    /// Some stash has begun to be used.
    pub(super) stashes_used: AtomicBool,
    /// Somebody stands in some shard's line.
    pub(super) lines_used: AtomicBool,
    /// How often stashes and idle connections are looked after, in nanoseconds.
    pub(super) visit_interval: AtomicU64,
    /// A drain has ended.
    pub(super) drained: Notify,
    /// The last handle is gone: nobody can acquire any more.
    pub(super) gone: watch::Sender<bool>,
    pub(super) log: log::Log,
}

impl<C: Connector, M: Mode<C::Conn>> Inner<C, M> {
    /// Takes a connection out of the stash of this thread, if one is there that lives.
    pub(super) fn take_stashed(self: &Arc<Self>) -> Option<M::Held> {
        loop {
            let held = self.exchange.take(self.shard())?;
            if let Some(held) = self.check(held) {
                return Some(held);
            }
        }
    }

    /// Waits in the line of this thread's shard, if that is possible now.
    pub(super) fn line_up(
        &self,
        now: Instant,
        deadline: Instant,
        waker: &Waker,
    ) -> Option<Waiting<M::Held, SiteOf<C>>> {
        let (waiting, first) = self.exchange.line_up(self.shard(), now, deadline, waker)?;
        if first {
            self.lines_used.store(true, Ordering::Relaxed);
            self.rouse.notify_one();
        }
        Some(waiting)
    }

    /// Gives back what a lease held.
    pub(super) fn give(self: &Arc<Self>, held: M::Held, outcome: Outcome) {
        match self.exchange.give(self.shard(), held, outcome, sys::now) {
            Given::Kept => {}
            Given::KeptFirst => {
                self.stashes_used.store(true, Ordering::Relaxed);
                self.rouse.notify_one();
            }
            Given::Handed(waker) => waker.into_iter().for_each(Waker::wake),
            Given::Hub(work) => self.act(work),
        }
    }

    /// Looks whether a connection that is to be lent lives. If not, it is dropped, and the pool told.
    pub(super) fn check(self: &Arc<Self>, mut held: M::Held) -> Option<M::Held> {
        if M::token(&held).is_fresh()
            || M::conn_mut(&mut held).is_none_or(|conn| self.connector.is_alive(conn))
        {
            return Some(held);
        }
        let (token, _, place) = M::unlend(held);
        drop(place);
        self.act(self.exchange.handle_lost(sys::now(), token));
        None
    }

    /// Does what is to be done. No lock is held here.
    pub(super) fn act(self: &Arc<Self>, mut work: Work<C, M>) {
        if let Some(waker) = work.wake.take() {
            waker.wake();
        }
        if work.rouse {
            self.rouse.notify_one();
        }
        if let Some(rest) = work.rest {
            self.act_rest(*rest);
        }
        if work.drained {
            self.drained.notify_waiters();
        }
    }

    fn act_rest(self: &Arc<Self>, rest: Rest<C, M>) {
        rest.wake.into_iter().for_each(Waker::wake);
        for (site, event) in rest.events {
            self.log.event(&self.upstream, &site.name, &event);
        }
        for order in rest.dials {
            self.runtime.spawn(driver::dial(Arc::clone(self), order));
        }
        for (endpoint, site) in rest.probes {
            self.runtime.spawn(driver::probe(Arc::clone(self), endpoint, site));
        }
        drop(rest.dropped);
        for closing in rest.closing {
            drop(closing.place);
            // The engine counts a connection until it is closed; now it is.
            self.act(self.exchange.handle_closed(sys::now(), closing.slot));
        }
    }

    /// A dial ended.
    pub(super) fn dialed(
        self: &Arc<Self>,
        slot: SlotId,
        site: &SiteOf<C>,
        result: Result<C::Conn, DialError>,
    ) {
        let result = match result {
            Ok(conn) => {
                let capacity = self.connector.capacity(&conn);
                Ok((conn, capacity))
            }
            Err(error) => {
                let cause = error.cause();
                if cause.blame() != Blame::Client {
                    *site.dial_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                Err(cause)
            }
        };
        let made = result.is_ok();
        self.act(self.exchange.handle_dialed(sys::now(), slot, result));
        if made && self.connector.watches() {
            self.rouse.notify_one();
        }
    }

    pub(super) fn add_endpoint(
        self: &Arc<Self>,
        endpoint: C::Endpoint,
        config: Config,
    ) -> Result<(), ConfigError> {
        validate::<C, M>(&config)?;
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if endpoints.contains_key(&endpoint) {
            return Ok(());
        }
        let mut permits = match &self.limits {
            Some(limits) => limits.permits(&endpoint, &config),
            None => Permits::alone(config.connections_max, config.temporary_max),
        };
        if let Some(machine) = &self.machine {
            permits.budget = machine.budget(self.connector.route(&endpoint).as_ref());
        }
        let site = Arc::new(Site {
            endpoint: endpoint.clone(),
            name: endpoint.to_string().into(),
            dial_error: Mutex::new(None),
        });
        let (id, work) = self.exchange.add_endpoint(sys::now(), config, permits, site)?;
        endpoints.insert(endpoint, id);
        drop(endpoints);
        self.plan_visits(&config);
        self.act(work);
        Ok(())
    }

    pub(super) fn set_config(self: &Arc<Self>, id: EndpointId, config: Config) -> Result<(), ConfigError> {
        validate::<C, M>(&config)?;
        let work = self.exchange.set_config(sys::now(), id, config)?;
        self.plan_visits(&config);
        self.act(work);
        Ok(())
    }

    pub(super) fn endpoint_id(&self, endpoint: &C::Endpoint) -> Option<EndpointId> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).get(endpoint).copied()
    }

    pub(super) fn dial_of(
        self: &Arc<Self>,
        slot: Option<SlotId>,
        site: &SiteOf<C>,
        timeout: Duration,
    ) -> Dial<C::Endpoint> {
        Dial { endpoint: site.endpoint.clone(), timeout, reporter: Reporter::new(slot, self.me.clone()) }
    }

    fn plan_visits(&self, config: &Config) {
        let interval = exchange::visit_interval(config).as_nanos() as u64;
        self.visit_interval.store(interval, Ordering::Relaxed);
    }

    fn shard(&self) -> usize {
        thread_index() & self.shard_mask
    }
}

/// Checks what the mode adds to [`Config::validate`].
pub(super) fn validate<C: Connector, M: Mode<C::Conn>>(config: &Config) -> Result<(), ConfigError> {
    config.validate()?;
    if M::EXCLUSIVE && config.capacity != 1 {
        return Err(ConfigError {
            field: "capacity",
            value: config.capacity.to_string(),
            allowed: "1 in a pool of exclusive connections",
        });
    }
    Ok(())
}

impl<C: Connector, M: Mode<C::Conn>> Report for Inner<C, M> {
    fn report(&self, slot: SlotId, news: News) {
        let now = sys::now();
        let work = match news {
            News::Closed => self.exchange.handle_closed(now, slot),
            News::Goodbye => self.exchange.handle(now, |engine| engine.handle_goodbye(now, slot)).1,
            News::Capacity(n) => self.exchange.handle(now, |engine| engine.handle_capacity(now, slot, n)).1,
            News::IdleTimeout(announced) => {
                self.exchange
                    .handle(now, |engine| engine.handle_idle_timeout(now, slot.endpoint(), announced))
                    .1
            }
        };
        if let Some(me) = self.me.upgrade() {
            me.act(work);
        }
    }
}

impl<C: Connector, M: Mode<C::Conn>> fmt::Debug for Inner<C, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// Reads the clock in which the caller's deadline is told, as the engine's.
pub(super) fn instant_of(deadline: std::time::Instant) -> Instant {
    sys::now() + deadline.saturating_duration_since(std::time::Instant::now())
}

/// The failure of a dial whose task was ended before it had a result.
pub(super) const fn dial_ended() -> DialError {
    DialError::new(Cause::Internal, "dial (its task was ended)")
}

/// A small number for each thread, so that threads use different stashes.
pub(super) fn thread_index() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static INDEX: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    // A lease may be dropped while its thread ends, when its variables are gone.
    INDEX
        .try_with(|index| {
            if index.get() == usize::MAX {
                index.set(NEXT.fetch_add(1, Ordering::Relaxed));
            }
            index.get()
        })
        .unwrap_or(0)
}

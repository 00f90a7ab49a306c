//! The tasks of a pool: one per dial, one that keeps time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use forebay_core::{Cause, EndpointId, Instant, SlotId};
use tokio::sync::Notify;

use super::connector::Connector;
use super::error::DialError;
use super::exchange::{DialOrder, LINE_VISIT, Mode};
use super::inner::{Inner, SiteOf, dial_ended};
use crate::sys;

/// Idle connections that are asked for their state with the lock held once.
const WATCH_BATCH: usize = 64;

/// Makes one connection. It ends with its time, or with the pool; who asked for it does not matter.
pub(super) async fn dial<C: Connector, M: Mode<C::Conn>>(
    inner: Arc<Inner<C, M>>,
    order: DialOrder<SiteOf<C>>,
) {
    let DialOrder { slot, timeout, data: site } = order;
    let mut ending = Ending { inner: Some(inner), slot, site };
    let result = {
        let Some(inner) = &ending.inner else { return };
        let dial = inner.dial_of(Some(slot), &ending.site, timeout);
        let mut gone = inner.gone.subscribe();
        tokio::select! {
            biased;
            result = tokio::time::timeout(timeout, inner.connector.connect(dial)) => {
                result.unwrap_or_else(|_| Err(too_slow(timeout)))
            }
            _ = gone.wait_for(|gone| *gone) => Err(DialError::new(Cause::Cancelled, "dial (its pool has ended)")),
        }
    };
    ending.tell(result);
}

/// Checks the health of one endpoint.
pub(super) async fn probe<C: Connector, M: Mode<C::Conn>>(
    inner: Arc<Inner<C, M>>,
    endpoint: EndpointId,
    site: SiteOf<C>,
) {
    let snapshot = inner.exchange.inspect(|hub| hub.engine.snapshot(sys::now(), endpoint));
    let Some(timeout) = snapshot.map(|snapshot| snapshot.config.dial_timeout) else { return };
    let dial = inner.dial_of(None, &site, timeout);
    let mut gone = inner.gone.subscribe();
    let result = tokio::select! {
        biased;
        result = tokio::time::timeout(timeout, inner.connector.probe(dial)) => {
            result.unwrap_or_else(|_| Err(too_slow(timeout)))
        }
        _ = gone.wait_for(|gone| *gone) => return,
    };
    let (now, result) = (sys::now(), result.map_err(|error| error.cause()));
    let ((), work) = inner.exchange.handle(now, |engine| engine.handle_probed(now, endpoint, result));
    inner.act(work);
}

/// Keeps time: lets the engine do what is due, looks after stashes, and learns which idle connections were closed.
pub(super) async fn drive<C: Connector, M: Mode<C::Conn>>(inner: Arc<Inner<C, M>>) {
    let mut gone = inner.gone.subscribe();
    let calls = Arc::new(Calls::default());
    let (mut visit_at, mut lines_at) = (None, None);
    loop {
        let now = sys::now();
        inner.act(inner.exchange.handle_timeout(now));
        visit(&inner, now, &mut visit_at);
        visit_lines(&inner, now, &mut lines_at);
        let busy = watch(&inner, now, &calls, &mut visit_at);
        let due = inner.exchange.inspect(|hub| hub.plan_driver());
        let due = [due, visit_at, lines_at].into_iter().flatten().min();
        tokio::select! {
            biased;
            _ = gone.wait_for(|gone| *gone) => return,
            () = inner.rouse.notified() => {}
            () = calls.roused.notified() => {}
            () = sleep_until(due) => {}
            () = tokio::task::yield_now(), if busy => {}
        }
    }
}

/// Visits the stashes, if it is time.
fn visit<C: Connector, M: Mode<C::Conn>>(
    inner: &Arc<Inner<C, M>>,
    now: Instant,
    visit_at: &mut Option<Instant>,
) {
    let next = now + Duration::from_nanos(inner.visit_interval.load(Ordering::Relaxed));
    if inner.stashes_used.swap(false, Ordering::Relaxed) {
        *visit_at = Some(visit_at.map_or(next, |at| at.min(next)));
    }
    if visit_at.is_some_and(|at| at <= now) {
        let (again, work) = inner.exchange.visit_links(now);
        inner.act(work);
        *visit_at = again.then_some(next);
    }
}

/// Visits the lines, if it is time.
fn visit_lines<C: Connector, M: Mode<C::Conn>>(
    inner: &Arc<Inner<C, M>>,
    now: Instant,
    lines_at: &mut Option<Instant>,
) {
    if inner.lines_used.swap(false, Ordering::Relaxed) && lines_at.is_none() {
        *lines_at = Some(now + LINE_VISIT);
    }
    if lines_at.is_some_and(|at| at <= now) {
        let (again, work) = inner.exchange.visit_lines(now);
        inner.act(work);
        *lines_at = again.then_some(now + LINE_VISIT);
    }
}

/// Begins to watch connections that became idle, and looks at those that called. Returns whether more are to be seen.
fn watch<C: Connector, M: Mode<C::Conn>>(
    inner: &Arc<Inner<C, M>>,
    now: Instant,
    calls: &Arc<Calls>,
    visit_at: &mut Option<Instant>,
) -> bool {
    if !M::EXCLUSIVE || !inner.connector.watches() {
        return false;
    }
    let called = calls.take();
    let (left, work) = inner.exchange.watch(now, &called, WATCH_BATCH, |slot, conn| {
        let waker = Waker::from(Arc::new(Call { slot, calls: Arc::clone(calls) }));
        inner.connector.poll_closed(conn, &mut Context::from_waker(&waker)).is_ready()
    });
    inner.act(work);
    // While there are connections, some may have become idle.
    if visit_at.is_none() && inner.exchange.inspect(|hub| !hub.engine.is_empty()) {
        *visit_at = Some(now + Duration::from_nanos(inner.visit_interval.load(Ordering::Relaxed)));
    }
    left
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep(due.saturating_duration_since(sys::now()).max(SLEEP_MIN)).await,
        None => std::future::pending().await,
    }
}

/// The driver never spins, whatever is due.
const SLEEP_MIN: Duration = Duration::from_micros(500);

fn too_slow(timeout: Duration) -> DialError {
    DialError::new(Cause::Timeout, "dial").with_source(format!("no connection within {timeout:?}"))
}

/// Tells the pool how a dial ended, even if the dial's task is ended or panics.
struct Ending<C: Connector, M: Mode<C::Conn>> {
    inner: Option<Arc<Inner<C, M>>>,
    slot: SlotId,
    site: SiteOf<C>,
}

impl<C: Connector, M: Mode<C::Conn>> Ending<C, M> {
    fn tell(&mut self, result: Result<C::Conn, DialError>) {
        if let Some(inner) = self.inner.take() {
            inner.dialed(self.slot, &self.site, result);
        }
    }
}

impl<C: Connector, M: Mode<C::Conn>> Drop for Ending<C, M> {
    fn drop(&mut self) {
        self.tell(Err(dial_ended()));
    }
}

/// Idle connections whose wakers were woken.
#[derive(Debug, Default)]
struct Calls {
    slots: Mutex<Vec<SlotId>>,
    roused: Notify,
}

impl Calls {
    fn take(&self) -> Vec<SlotId> {
        std::mem::take(&mut *self.slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Call {
    slot: SlotId,
    calls: Arc<Calls>,
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.calls.slots.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        self.calls.roused.notify_one();
    }
}

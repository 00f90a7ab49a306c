//! A connector whose connections are numbers, and whose dials do what they are told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use forebay::{Cause, Connector, Dial, DialError, Reporter};

/// What one dial does.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Plan {
    Succeed,
    Fail(Cause),
    /// Succeeds after this time.
    After(Duration),
    Hang,
    Panic,
}

/// What the world sees of the connector.
#[derive(Debug, Default)]
pub(crate) struct World {
    /// For the next dials; then they succeed.
    pub(crate) plans: Mutex<VecDeque<Plan>>,
    pub(crate) dials: AtomicU32,
    /// Connections that exist.
    pub(crate) open: AtomicU32,
    /// The most that ever existed.
    pub(crate) open_max: AtomicU32,
    pub(crate) capacity: AtomicU32,
    pub(crate) reuse_on_drop: AtomicBool,
    pub(crate) reporters: Mutex<Vec<Reporter>>,
}

impl World {
    pub(crate) fn plan(&self, plans: impl IntoIterator<Item = Plan>) {
        self.plans.lock().unwrap().extend(plans);
    }

    pub(crate) fn dials(&self) -> u32 {
        self.dials.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self) -> u32 {
        self.open.load(Ordering::SeqCst)
    }
}

#[derive(Debug)]
pub(crate) struct Fake {
    pub(crate) world: Arc<World>,
}

impl Fake {
    pub(crate) fn new() -> (Self, Arc<World>) {
        let world = Arc::new(World::default());
        world.capacity.store(u32::MAX, Ordering::SeqCst);
        (Self { world: Arc::clone(&world) }, world)
    }
}

/// A connection. It says that it is dead when the world says so.
#[derive(Debug)]
pub(crate) struct Conn {
    pub(crate) number: u32,
    pub(crate) dead: Arc<AtomicBool>,
    /// How often it was used, for tests that look for two users at once.
    pub(crate) uses: u64,
    world: Arc<World>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.world.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Connector for Fake {
    type Conn = Conn;
    type Endpoint = &'static str;

    async fn connect(&self, dial: Dial<&'static str>) -> Result<Conn, DialError> {
        let number = self.world.dials.fetch_add(1, Ordering::SeqCst);
        let plan = self.world.plans.lock().unwrap().pop_front().unwrap_or(Plan::Succeed);
        match plan {
            Plan::Succeed => {}
            Plan::Fail(cause) => return Err(DialError::new(cause, "fake dial")),
            Plan::After(time) => tokio::time::sleep(time).await,
            Plan::Hang => std::future::pending().await,
            Plan::Panic => panic!("a connector that panics"),
        }
        let open = self.world.open.fetch_add(1, Ordering::SeqCst) + 1;
        self.world.open_max.fetch_max(open, Ordering::SeqCst);
        self.world.reporters.lock().unwrap().push(dial.reporter);
        Ok(Conn { number, dead: Arc::default(), uses: 0, world: Arc::clone(&self.world) })
    }

    fn is_alive(&self, conn: &mut Conn) -> bool {
        !conn.dead.load(Ordering::SeqCst)
    }

    fn capacity(&self, _: &Conn) -> u32 {
        self.world.capacity.load(Ordering::SeqCst)
    }

    fn reuse_on_drop(&self) -> bool {
        self.world.reuse_on_drop.load(Ordering::SeqCst)
    }
}

//! Names become addresses, again and again: servers move.

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use forebay::Removal;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};

use super::Shared;
use super::origin::{Origin, Peer};

/// Names are not looked up more often than this, whatever is lost.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// How long one look may take.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Looks up names.
pub trait Resolve: Send + Sync + 'static {
    /// Returns the addresses of a host.
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>>;
}

/// Looks names up as this machine does.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'a>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// Whether there is anybody to call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// Names are being looked up for the first time.
    Pending,
    /// There are addresses.
    Known,
    /// There never were any, and this is why.
    Unknown(String),
}

/// Looks names up, for as long as the channel is there.
pub(super) struct Keeper {
    pub(super) shared: Weak<Shared>,
    pub(super) origins: Vec<Arc<Origin>>,
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) interval: Duration,
    pub(super) lost: Arc<Notify>,
    pub(super) resolution: watch::Sender<Resolution>,
}

impl Keeper {
    pub(super) async fn run(self) {
        let mut known: Vec<HashSet<SocketAddr>> = vec![HashSet::new(); self.origins.len()];
        loop {
            let mut why = String::new();
            for (origin, known) in self.origins.iter().zip(&mut known) {
                let look = self.resolver.resolve(origin.host(), origin.port());
                let found = match timeout(LOOK_MAX, look).await {
                    Ok(Ok(found)) if !found.is_empty() => found,
                    // What was known stays: a resolver that fails says nothing of the servers.
                    Ok(Ok(_)) => {
                        why = format!("{:?} has no address", origin.host());
                        continue;
                    }
                    Ok(Err(error)) => {
                        why = format!("{:?} cannot be looked up: {error}", origin.host());
                        continue;
                    }
                    Err(_) => {
                        why = format!("{:?} cannot be looked up: no answer", origin.host());
                        continue;
                    }
                };
                let Some(shared) = self.shared.upgrade() else { return };
                let found: HashSet<SocketAddr> = found.into_iter().collect();
                let peer = |address: &SocketAddr| Peer { address: *address, origin: Arc::clone(origin) };
                found.difference(known).for_each(|address| shared.pool.add_endpoint(peer(address)));
                for address in known.difference(&found) {
                    shared.pool.remove_endpoint(&peer(address), Removal::Drain);
                }
                *known = found;
                self.resolution.send_replace(Resolution::Known);
            }
            let has_any = known.iter().any(|known| !known.is_empty());
            if !has_any {
                tracing::warn!(%why, "no server to call");
                self.resolution.send_replace(Resolution::Unknown(why));
            }
            if let Some(shared) = self.shared.upgrade() {
                shared.note_endpoints();
            }
            let pause = if has_any { self.interval } else { PAUSE_MIN };
            let soonest = Instant::now() + PAUSE_MIN;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.lost.notified() => tokio::time::sleep_until(soonest).await,
            }
            if self.shared.strong_count() == 0 {
                return;
            }
        }
    }
}

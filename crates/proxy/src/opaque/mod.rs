//! Bytes that are not understood: a connection to a backend is one client's, from its first byte to its last.

mod connector;
mod relay;
mod spares;

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use forebay::blame::cause_of;
use forebay::dial::Machine;
use forebay::{AcquireError, Exclusive, Lease, Limits, Pool, Removal, sys};
use forebay_core::Cause;
use forebay_proxy_core::roster::Tried;
use tokio::net::TcpStream;

use self::connector::BackendConnector;
pub(crate) use self::relay::Buffers;
use self::relay::{End, Relay};
use self::spares::{Dialled, Spares};
use crate::access_log::Entry;
use crate::backends::Known;
use crate::introduce::{Client, introduce_to};
use crate::settings::{BackendAddress, ProxyConfig};
use crate::worker::{Figured, Shell, refuse};

/// Notes a connection that has ended in the access log, if there is one.
fn note(
    shell: &Shell,
    began: Option<forebay_core::Instant>,
    client: SocketAddr,
    backend: Option<SocketAddr>,
    (up, down): (u64, u64),
    end: &'static str,
) {
    let (Some(log), Some(began)) = (&shell.log, began) else { return };
    let at = sys::now();
    let took = at.saturating_duration_since(began);
    log.note(Entry { at, took, client, backend, up, down, end });
}

/// What one worker needs to pass bytes on.
pub(crate) struct Opaque {
    pool: Pool<BackendConnector>,
    spares: Option<Spares>,
}

impl Opaque {
    pub(crate) fn new(
        config: &ProxyConfig,
        machine: Arc<Machine>,
        limits: Arc<Limits<BackendAddress>>,
        seed: u64,
    ) -> io::Result<Self> {
        let dialled = Dialled::default();
        let told = config.spares.map(|_| Arc::clone(&dialled));
        let pool = Pool::builder(BackendConnector::new(config, told))
            .name(&*config.name)
            .config(config.pool)
            .budget(machine)
            .limits(limits)
            .shards(1)
            .seed(seed)
            .build()
            .map_err(io::Error::other)?;
        let spares = config.spares.map(|settings| Spares::new(settings, config.workers, dialled));
        Ok(Self { pool, spares })
    }

    /// Begins to dial ahead, if that is to be done.
    pub(crate) fn start(&self, shell: &Rc<Shell>) {
        if let Some(spares) = &self.spares {
            spares.start(self.pool.clone(), shell.config.pool);
        }
    }

    /// Makes room for connections to a backend.
    pub(crate) fn adopt(&self, backend: &BackendAddress) {
        self.pool.add_endpoint(backend.clone());
    }

    /// Forgets a backend: its spares are closed, and clients keep what they have.
    pub(crate) fn remove(&self, backend: &BackendAddress) {
        self.pool.remove_endpoint(backend, Removal::Drain);
        self.forget_spares(backend);
    }

    /// Closes the spares to a backend that stays.
    pub(crate) fn purge(&self, shell: &Shell, backend: &BackendAddress) {
        // Else as many would be dialled anew.
        if let Err(error) = self.pool.set_config_at(backend, shell.config.pool) {
            tracing::error!(%backend, %error, "spares: a policy that was checked is refused");
        }
        self.pool.renew_endpoint(backend);
        self.forget_spares(backend);
    }

    fn forget_spares(&self, backend: &BackendAddress) {
        if let Some(spares) = &self.spares {
            spares.forget(backend);
        }
    }

    /// Returns what tells the figures of the connections.
    pub(crate) fn figured(&self) -> Figured {
        let pool = self.pool.clone();
        Arc::new(move || pool.snapshot().endpoints)
    }

    /// Serves one client from its first byte to its last.
    pub(crate) async fn serve(&self, shell: &Rc<Shell>, client: TcpStream, who: Client) {
        let began = shell.log.as_ref().map(|_| sys::now());
        let peer = who.peer;
        // Boxed: what it takes to connect is not held while bytes are passed on.
        let Some((backend, mut lease)) = Box::pin(self.connect(shell, who)).await else {
            shell.figures.refused_unreachable.add(1);
            note(shell, began, peer, None, (0, 0), "unreachable");
            return refuse(&client);
        };
        let _visit = backend.enter();
        let mut relay = Relay::new(shell, shell.enter(&backend), client, &mut lease, &backend);
        let end = relay.run().await;
        let bytes = relay.bytes();
        note(shell, began, peer, Some(backend.key().address), bytes, end.as_str());
        drop(relay);
        match end {
            // One that takes all and says nothing does its work.
            End::Whole if bytes.0 > 0 => backend.note_good(),
            End::Whole => {}
            End::Cut => {}
            End::Idle => shell.figures.ended_idle.add(1),
            End::Client => shell.figures.failed_client.add(1),
            End::Backend(cause) => {
                shell.figures.failed_backend.add(1);
                // A reset after the first byte may be an answer; that nobody is there any more never is.
                if bytes.1 == 0 || matches!(cause, Cause::Timeout | Cause::Unreachable) {
                    shell.backends.note_failed(backend.id(), cause);
                }
            }
        }
        // It has carried a client's bytes: the pool's policy of one use closes it.
        lease.complete();
    }

    /// Gets a connection to a backend: every one is tried before the client is refused.
    async fn connect(
        &self,
        shell: &Rc<Shell>,
        who: Client,
    ) -> Option<(Known, Lease<BackendConnector, Exclusive>)> {
        let (settings, peer) = (&shell.config.connections, who.peer);
        let began = Instant::now();
        let deadline = began + settings.connect_budget.0;
        let mut tried = Tried::new();
        while let Some(backend) = shell.pick(peer.ip(), &tried) {
            let now = Instant::now();
            if now >= deadline {
                break;
            }
            let until = deadline.min(now + settings.connect_timeout.0);
            match self.acquire(shell, backend.key(), until).await {
                Ok(lease) => match introduce_to(&lease, &who, shell.config.proxy_protocol.send) {
                    Ok(()) => return Some((backend, lease)),
                    Err(error) => {
                        shell.figures.tried_in_vain.add(1);
                        let cause = cause_of(&error);
                        tracing::debug!(proxy = &*shell.config.name, %peer, backend = %backend.key(), %error, "takes no PROXY header");
                        shell.backends.note_failed(backend.id(), cause);
                        lease.discard(cause);
                    }
                },
                Err(error) => {
                    shell.figures.tried_in_vain.add(1);
                    tracing::debug!(proxy = &*shell.config.name, %peer, backend = %backend.key(), %error, "cannot be reached");
                    shell.backends.note_unreached(backend.id(), &error);
                }
            }
            tried.insert(backend.id());
        }
        let (proxy, tried, took) = (&*shell.config.name, tried.len(), began.elapsed());
        tracing::warn!(proxy, %peer, tried, ?took, "a client is refused: no backend can be reached");
        None
    }

    /// Takes a spare, or waits for a connection.
    async fn acquire(
        &self,
        shell: &Shell,
        backend: &BackendAddress,
        until: Instant,
    ) -> Result<Lease<BackendConnector, Exclusive>, AcquireError> {
        let mut acquiring = pin!(self.pool.acquire_at_until(backend, until));
        let mut waited = false;
        let acquired = poll_fn(|cx| {
            let acquired = acquiring.as_mut().poll(cx);
            waited |= acquired.is_pending();
            acquired
        })
        .await;
        if let Some(spares) = &self.spares {
            let found = !waited && acquired.is_ok();
            match found {
                true => shell.figures.spares_used.add(1),
                false => shell.figures.spares_missed.add(1),
            }
            spares.note_arrival(&self.pool, shell.config.pool, backend, found);
        }
        acquired
    }
}

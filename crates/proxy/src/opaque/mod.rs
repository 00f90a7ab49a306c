//! Bytes that are not understood: a connection to a backend is one client's, from its first byte to its last.

mod connector;
mod relay;

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use forebay::dial::Machine;
use forebay::{Exclusive, Lease, Pool};
use tokio::net::TcpStream;

use self::connector::BackendConnector;
use self::relay::{End, Relay};
use crate::backends::{self, Backends};
use crate::settings::ProxyConfig;
use crate::worker::{Figured, Shell, refuse};

/// What one worker needs to pass bytes on.
pub(crate) struct Opaque {
    pool: Pool<BackendConnector>,
}

impl Opaque {
    pub(crate) fn new(
        config: &ProxyConfig,
        backends: &Backends,
        machine: Arc<Machine>,
        seed: u64,
    ) -> io::Result<Self> {
        let pool = Pool::builder(BackendConnector::new(config))
            .name(&*config.name)
            .config(config.pool)
            .budget(machine)
            .shards(1)
            .seed(seed)
            .build()
            .map_err(io::Error::other)?;
        tokio::task::spawn_local(backends::follow(pool.clone(), backends.list()));
        Ok(Self { pool })
    }

    /// Returns what tells the figures of the connections.
    pub(crate) fn figured(&self) -> Figured {
        let pool = self.pool.clone();
        Arc::new(move || pool.snapshot().endpoints)
    }

    /// Serves one client from its first byte to its last.
    pub(crate) async fn serve(&self, shell: &Rc<Shell>, client: TcpStream, peer: SocketAddr) {
        let Some(mut lease) = self.connect(shell, peer).await else {
            shell.figures.refused_unreachable.add(1);
            return refuse(&client);
        };
        let relay = Relay::new(shell, client, &mut lease);
        match relay.run().await {
            End::Whole => {}
            End::Idle => shell.figures.ended_idle.add(1),
            End::Client => shell.figures.failed_client.add(1),
            End::Backend => shell.figures.failed_backend.add(1),
        }
        // It has carried a client's bytes: the pool's policy of one use closes it.
        lease.complete();
    }

    /// Gets a connection to a backend: every one is tried before the client is refused.
    async fn connect(
        &self,
        shell: &Rc<Shell>,
        peer: SocketAddr,
    ) -> Option<Lease<BackendConnector, Exclusive>> {
        let settings = &shell.config.connections;
        let deadline = Instant::now() + settings.connect_budget.0;
        let mut tried = Vec::new();
        while let Some(backend) = shell.backends.pick(&tried) {
            let until = deadline.min(Instant::now() + settings.connect_timeout.0);
            match backends::acquire_at(&self.pool, &backend, until).await {
                Ok(lease) => {
                    return Some(lease);
                }
                Err(error) => {
                    shell.figures.tried_in_vain.add(1);
                    tracing::debug!(proxy = &*shell.config.name, %peer, %backend, %error, "cannot be reached");
                }
            }
            if Instant::now() >= deadline {
                break;
            }
            tried.push(backend);
        }
        let (proxy, tried) = (&*shell.config.name, tried.len());
        tracing::warn!(proxy, %peer, tried, "a client is refused: no backend can be reached");
        None
    }
}

//! The thread that looks after the backends of a proxy: checks, ejections that end.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;

use forebay_core::Cause;
use tokio::runtime::LocalOptions;
use tokio::sync::{oneshot, watch};

use crate::StartError;
use crate::backends::{Backends, Known};
use crate::checks::Checker;
use crate::discover::Discovered;
use crate::settings::{BalanceName, ProxyConfig};

/// The thread. Ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Keeper {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(crate) fn start(
        backends: Arc<Backends>,
        list: watch::Receiver<Discovered>,
        config: &Arc<ProxyConfig>,
    ) -> Result<Self, StartError> {
        let failed = |error| StartError::Thread { error };
        let (stop, stopped) = oneshot::channel::<()>();
        let checker = Checker::new(config.health.clone(), config.connections.tcp());
        let checker = checker.map_err(|error| failed(io::Error::other(error)))?;
        let balance = config.balance;
        let thread = std::thread::Builder::new().name("proxy-keeper".to_owned()).spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = match runtime.enable_all().build_local(LocalOptions::default()) {
                Ok(runtime) => runtime,
                Err(error) => return tracing::error!(%error, "backends are not looked after"),
            };
            let checker = Rc::new(checker);
            runtime.block_on(async move {
                tokio::task::spawn_local(follow(Arc::clone(&backends), list, balance));
                tokio::select! {
                    () = backends.keep(move |backend| check(Rc::clone(&checker), backend)) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(failed)?) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was told when it happened.
            let _ = thread.join();
        }
    }
}

/// Tells the roster what discovery finds.
async fn follow(backends: Arc<Backends>, mut list: watch::Receiver<Discovered>, balance: BalanceName) {
    // An error means that nobody is left who could change it.
    while list.changed().await.is_ok() {
        let shares = list.borrow_and_update().shares(balance);
        // Discovery decides whether an empty list is to be believed.
        let _ = backends.replace(&shares);
    }
}

/// Checks one backend.
async fn check(checker: Rc<Checker>, backend: Known) -> Result<(), Cause> {
    checker.check(backend.key()).await.map_err(|error| {
        tracing::debug!(backend = %backend.key(), %error, "a check has failed");
        error.cause
    })
}

//! A server from its start to its end by a signal.
//!
//! ```text
//! bind admin ─▶ start workers ─▶ ready ──SIGTERM, SIGINT──▶ not ready, drain (5 s) ─▶ end
//!                                                                  └── a second signal ─▶ end at once
//! ```

use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use forebay::sys::process;
use forebay_dns::{Handle, StartError};
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin::{Admin, Phase, Source};
use crate::config::{AdminConfig, Config, listed};
use crate::failure::Failure;
use crate::logs;

/// How long queries in flight are waited for when the process ends: longer than any client waits for its answer.
const DRAIN_MAX: Duration = Duration::from_secs(5);

/// How often it is looked after whether all workers live.
const WORKERS_WATCHED_EVERY: Duration = Duration::from_secs(5);

/// Runs the servers of `config` until a signal ends them.
pub(crate) fn run(config: Config) -> Result<(), Failure> {
    logs::init(config.log);
    if let Err(error) = process::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(until_signal(config))
}

async fn until_signal(config: Config) -> Result<(), Failure> {
    let mut ends = Ends::new()?;
    let admin_listener = bind_admin(&config.admin)?;
    let workers = config.dns.workers();
    let upstreams = listed(config.dns.upstreams());
    let server = forebay_dns::start(config.dns).map_err(start_failure)?;
    let handle = server.handle();
    let admin = start_admin(&config.admin, admin_listener, handle.clone())?;
    tracing::info!(
        listen = listed(server.local_addrs()),
        upstreams,
        workers,
        admin = admin.as_ref().map_or("none".to_owned(), Admin::url),
        "dns is ready",
    );
    let signal = tokio::select! {
        signal = ends.next() => signal,
        failure = lost_worker(&handle, workers) => return Err(failure),
    };
    tracing::info!(signal, "draining: queries in flight are answered");
    if let Some(admin) = &admin {
        admin.set_phase(Phase::Draining);
    }
    // Not dropped before the process ends: that would wait for the workers.
    let drain = pin!(server.drain(DRAIN_MAX));
    tokio::select! {
        () = drain => tracing::info!("ended"),
        signal = ends.next() => end_at_once(signal),
    }
    Ok(())
}

/// Ends the process without waiting for anything, not even for a worker that is stuck: somebody asked twice.
#[expect(clippy::disallowed_methods, reason = "destructors would wait for the workers")]
pub(crate) fn end_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "ended at once: queries in flight stay without an answer");
    std::process::exit(1)
}

/// Starts the admin endpoint on what was bound for it.
pub(crate) fn start_admin(
    config: &AdminConfig,
    listener: Option<TcpListener>,
    dns: Handle,
) -> Result<Option<Admin>, Failure> {
    let Some(listener) = listener else { return Ok(None) };
    Admin::start(listener, Source { dns }, config.token.clone())
        .map(Some)
        .map_err(|error| Failure::failed(format!("cannot start the admin endpoint: {error}")))
}

/// Binds the admin endpoint. That the default address is taken is no reason not to serve: another forebay may run here.
pub(crate) fn bind_admin(config: &AdminConfig) -> Result<Option<TcpListener>, Failure> {
    let Some(address) = config.listen else { return Ok(None) };
    match TcpListener::bind(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !config.is_explicit => {
            tracing::warn!(%address, %error, "runs without the admin endpoint: name another address with --admin");
            Ok(None)
        }
        Err(error) => {
            let failure = StartError::Bind { address, protocol: "TCP", error };
            Err(Failure::wrong(format!("--admin: {failure}")))
        }
    }
}

/// Says what a failed start means: an address that cannot be had is a matter of configuration.
pub(crate) fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Bind { .. } | StartError::File { .. } => Failure::wrong(error.to_string()),
        StartError::Thread { .. } | StartError::Tls { .. } | StartError::Random => {
            Failure::failed(error.to_string())
        }
    }
}

/// Ends when fewer workers answer than were started.
async fn lost_worker(handle: &Handle, workers: usize) -> Failure {
    let mut tick = tokio::time::interval(WORKERS_WATCHED_EVERY);
    loop {
        tick.tick().await;
        let alive = handle.stats().await.workers;
        if alive < workers {
            return Failure::failed(format!(
                "{} of {workers} workers have ended, which is a bug: see the panic above",
                workers - alive
            ));
        }
    }
}

/// The signals that end a process.
pub(crate) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

impl Ends {
    /// Takes the signals over from the system.
    pub(crate) fn new() -> Result<Self, Failure> {
        let take =
            |kind| signal(kind).map_err(|error| Failure::failed(format!("cannot take signals: {error}")));
        Ok(Self { terminate: take(SignalKind::terminate())?, interrupt: take(SignalKind::interrupt())? })
    }

    /// Waits for the next signal, and returns its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

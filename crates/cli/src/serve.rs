//! A server from its start to its end by a signal.
//!
//! ```text
//! bind admin ─▶ start workers ─▶ ready ──SIGTERM, SIGINT──▶ not ready, drain ─▶ end
//!                                                                  └── a second signal ─▶ end at once
//! ```

use std::net::TcpListener;
use std::pin::{Pin, pin};
use std::time::Duration;

use forebay::sys::process;
use forebay_dns::{DnsConfig, StartError};
use forebay_proxy::ProxyConfig;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
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

/// The servers of a process.
struct Servers {
    dns: Option<forebay_dns::Server>,
    proxies: Vec<(forebay_proxy::Server, Duration)>,
}

impl Servers {
    /// Starts what a configuration says, and tells the log of each.
    fn start(dns: Option<DnsConfig>, proxies: Vec<ProxyConfig>, admin: &str) -> Result<Self, Failure> {
        let dns = dns.map(|config| start_dns(config, admin)).transpose()?;
        let proxies =
            proxies.into_iter().map(|config| start_proxy(config, admin)).collect::<Result<_, _>>()?;
        Ok(Self { dns, proxies })
    }

    fn source(&self) -> Source {
        Source {
            dns: self.dns.as_ref().map(forebay_dns::Server::handle),
            proxies: self.proxies.iter().map(|(server, _)| server.handle()).collect(),
            grpc: None,
        }
    }

    /// Lets all finish, each for as long as it may take.
    async fn drain(self) {
        let mut all: FuturesUnordered<Pin<Box<dyn Future<Output = ()>>>> = FuturesUnordered::new();
        if let Some(dns) = self.dns {
            all.push(Box::pin(dns.drain(DRAIN_MAX)));
        }
        for (proxy, limit) in self.proxies {
            all.push(Box::pin(proxy.drain(limit)));
        }
        while all.next().await.is_some() {}
    }
}

fn start_dns(config: DnsConfig, admin: &str) -> Result<forebay_dns::Server, Failure> {
    let (workers, upstreams) = (config.workers(), listed(config.upstreams()));
    let server = forebay_dns::start(config).map_err(start_failure)?;
    tracing::info!(listen = listed(server.local_addrs()), upstreams, workers, admin, "dns is ready");
    Ok(server)
}

fn start_proxy(config: ProxyConfig, admin: &str) -> Result<(forebay_proxy::Server, Duration), Failure> {
    let (workers, backends) = (config.workers(), listed(config.backends()));
    let (name, mode, limit) = (config.name().to_owned(), config.mode().as_str(), config.drain_timeout());
    let server = forebay_proxy::start(config).map_err(|error| match error {
        forebay_proxy::StartError::Bind { .. } | forebay_proxy::StartError::Discovery(_) => {
            Failure::wrong(error.to_string())
        }
        _ => Failure::failed(error.to_string()),
    })?;
    tracing::info!(
        proxy = name,
        listen = listed(server.local_addrs()),
        mode,
        backends,
        workers,
        admin,
        "proxy is ready"
    );
    if let Some(endpoints) = server.handle().discovered() {
        tracing::info!(proxy = name, endpoints = listed(&endpoints), "ready to proxy client requests to");
    }
    Ok((server, limit))
}

async fn until_signal(config: Config) -> Result<(), Failure> {
    let mut ends = Ends::new()?;
    let admin_listener = bind_admin(&config.admin)?;
    let admin_address = admin_listener.as_ref().and_then(|listener| listener.local_addr().ok());
    let admin_url = admin_address.map_or("none".to_owned(), |address| format!("http://{address}"));
    let servers = Servers::start(config.dns, config.proxies, &admin_url)?;
    let source = servers.source();
    let admin = start_admin(&config.admin, admin_listener, source.clone())?;
    let signal = tokio::select! {
        signal = ends.next() => signal,
        failure = lost_worker(&source) => return Err(failure),
    };
    tracing::info!(signal, "draining: what is in flight may finish");
    if let Some(admin) = &admin {
        admin.set_phase(Phase::Draining);
    }
    // Not dropped before the process ends: that would wait for the workers.
    let drain = pin!(servers.drain());
    tokio::select! {
        () = drain => tracing::info!("ended"),
        signal = ends.next() => end_at_once(signal),
    }
    Ok(())
}

/// Ends the process without waiting for anything, not even for a worker that is stuck: somebody asked twice.
#[expect(clippy::disallowed_methods, reason = "destructors would wait for the workers")]
pub(crate) fn end_at_once(signal: &str) -> ! {
    tracing::warn!(signal, "ended at once: what was in flight is lost");
    std::process::exit(1)
}

/// Starts the admin endpoint on what was bound for it.
pub(crate) fn start_admin(
    config: &AdminConfig,
    listener: Option<TcpListener>,
    source: Source,
) -> Result<Option<Admin>, Failure> {
    let Some(listener) = listener else { return Ok(None) };
    Admin::start(listener, source, config.token.clone())
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
pub(crate) async fn lost_worker(source: &Source) -> Failure {
    let mut tick = tokio::time::interval(WORKERS_WATCHED_EVERY);
    loop {
        tick.tick().await;
        let mut counts = Vec::new();
        if let Some(dns) = &source.dns {
            counts.push((dns.stats().await.workers, dns.workers()));
        }
        counts.extend(source.proxies.iter().map(|proxy| (proxy.workers(), proxy.config().workers())));
        counts.extend(source.grpc.iter().map(|grpc| (grpc.workers(), grpc.workers_expected())));
        if let Some((alive, workers)) = counts.into_iter().find(|(alive, workers)| alive < workers) {
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

//! The demo's other half: two web servers, a proxy before them, and clients that come and go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_bench::backend::{Backend, Serve};
use forebay_bench::http::{self, HttpLoad};
use forebay_core::Counters;
use forebay_proxy::{Handle, Mode, ProxyConfig, ProxyFigures, Server, Settings};

use super::figures::{PoolFigures, reuse};
use crate::failure::Failure;

/// Where the proxy listens, if nobody else does.
const LISTEN: &str = "127.0.0.1:8080";
/// What is asked for.
const PATH: &str = "/size/2000";
/// Clients at once.
const CLIENTS: usize = 4;
/// How long a client stays before another comes: connections to the proxy are made all the time.
const VISIT: Duration = Duration::from_millis(250);

/// The proxy, its backends and its clients.
pub(super) struct Web {
    backends: [Backend; 2],
    pub(super) server: Server,
}

impl Web {
    /// Starts backends and the proxy.
    pub(super) fn set() -> Result<Self, Failure> {
        let backend = || {
            Backend::builder()
                .serve(Serve::Http)
                .spawn()
                .map_err(|error| Failure::failed(format!("cannot start an embedded web server: {error}")))
        };
        let backends = [backend()?, backend()?];
        let settings = Settings {
            name: Some("web".to_owned()),
            listen: vec![super::free_address(LISTEN)],
            mode: Mode::Http,
            backends: backends.iter().map(|backend| backend.addr().to_string()).collect(),
            workers: 1,
            ..Settings::default()
        };
        let config = ProxyConfig::new(&settings, 1).map_err(|error| Failure::failed(error.to_string()))?;
        let server = forebay_proxy::start(config).map_err(|error| Failure::failed(error.to_string()))?;
        Ok(Self { backends, server })
    }

    /// Where the proxy listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.server.local_addrs()[0].address
    }

    /// Where its backends are.
    pub(super) fn backends(&self) -> impl Iterator<Item = String> {
        self.backends.iter().map(|backend| backend.addr().to_string())
    }

    /// What somebody can try.
    pub(super) fn curl(&self) -> String {
        format!("curl http://{}/head", self.address())
    }
}

/// How the proxy stands at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct WebSample {
    figures: ProxyFigures,
    counters: Counters,
    pools: Vec<PoolFigures>,
}

impl WebSample {
    pub(super) fn take(handle: &Handle) -> Self {
        let (mut counters, mut pools) = (Counters::default(), Vec::new());
        for one in handle.backends() {
            counters.merge(&one.snapshot.counters);
            pools.push(PoolFigures::of(format!("http://{}", one.backend), &one.snapshot));
        }
        Self { figures: handle.figures(), counters, pools }
    }

    /// Connections that were made to backends.
    pub(super) fn sockets(&self) -> u64 {
        self.counters.dials_succeeded
    }
}

/// What happened between two samples.
#[derive(Clone, Debug, Default)]
pub(super) struct WebFigures {
    /// Requests per second.
    pub(super) rate: f64,
    /// Requests that failed since the start.
    pub(super) failed: u64,
    pub(super) reuse: Option<f64>,
    pub(super) pools: Vec<PoolFigures>,
}

impl WebFigures {
    pub(super) fn between(before: &WebSample, after: &WebSample, seconds: f64) -> Self {
        Self {
            rate: after.figures.requests.saturating_sub(before.figures.requests) as f64 / seconds,
            failed: after.figures.requests_failed,
            reuse: reuse(&after.counters),
            pools: after.pools.clone(),
        }
    }
}

/// Clients in a thread of their own, until it is dropped.
pub(super) struct WebLoad {
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
    opened: AtomicU64,
}

/// What the clients have met.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WebReport {
    pub(super) answered: u64,
    pub(super) failed: u64,
    /// Connections that they made to the proxy.
    pub(super) opened: u64,
}

impl WebLoad {
    /// Makes `rate` requests a second.
    pub(super) fn start(target: SocketAddr, rate: f64) -> Result<Self, Failure> {
        let url = format!("http://{target}{PATH}");
        let url = url.parse().map_err(|error| Failure::failed(format!("{url}: {error}")))?;
        let load = HttpLoad {
            rate: Some(rate),
            clients: CLIENTS,
            pool: Some(CLIENTS as u32),
            duration: Some(VISIT),
            ..HttpLoad::new(url)
        };
        let shared = Arc::<Shared>::default();
        let counts = Arc::clone(&shared);
        let work = move || {
            while !counts.stop.load(Relaxed) {
                match http::run(&load) {
                    Ok(report) => {
                        counts.answered.fetch_add(report.figures.answered, Relaxed);
                        counts.failed.fetch_add(report.figures.failed, Relaxed);
                        counts.opened.fetch_add(report.figures.connections_opened, Relaxed);
                    }
                    Err(error) => return tracing::error!(%error, "the demo's web clients have ended"),
                }
            }
        };
        let thread = thread::Builder::new()
            .name("demo-web".to_owned())
            .spawn(work)
            .map_err(|error| Failure::failed(format!("cannot start the load: {error}")))?;
        Ok(Self { thread: Some(thread), shared })
    }

    /// Stops asking, waits for what is on its way, and reports.
    ///
    /// # Cancel safety
    ///
    /// Cancelled, the load ends by itself, and nobody hears its report.
    pub(super) async fn finish(&mut self) -> Result<WebReport, Failure> {
        self.shared.stop.store(true, Relaxed);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            tokio::time::sleep(super::load::LOOKED_EVERY).await;
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            return Err(Failure::failed("the load has panicked, which is a bug"));
        }
        let Shared { answered, failed, opened, .. } = &*self.shared;
        Ok(WebReport {
            answered: answered.load(Relaxed),
            failed: failed.load(Relaxed),
            opened: opened.load(Relaxed),
        })
    }
}

impl Drop for WebLoad {
    fn drop(&mut self) {
        self.shared.stop.store(true, Relaxed);
    }
}

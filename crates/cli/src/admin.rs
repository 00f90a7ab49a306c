//! The admin endpoint: figures and health over HTTP, on a thread of its own.
//!
//! | path | what |
//! |---|---|
//! | `/metrics` | every metric, in the text format of Prometheus |
//! | `/pools` | every pool as JSON: counts, limits, percentiles, breaker, last failure and whose it was |
//! | `POST /dns/flush?name=…` | forgets cached answers: of a name, or with `&subtree=true` of all below it too |
//! | `/debug/pprof/profile?seconds=&hz=` | where CPU time goes, for `go tool pprof`; `flamegraph` for a browser |
//! | `/debug/pprof/heap` | who holds memory, once a POST with `?active=true` has asked for it to be noted |
//! | `/healthz` | 200 while the process lives |
//! | `/readyz` | 200 while it serves; 503 while it drains, and while a proxy has no backend |
//!
//! Beyond loopback it needs a token; [`crate::config::AdminConfig`] sees to that. With one, every path but the two of
//! health wants it as `Authorization: Bearer …`.

mod flush;
mod limit;
pub mod metrics;
mod pools;
mod profiling;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use forebay_dns::{Handle, Stats};
use tokio::sync::oneshot;
use tokio::time::timeout;

use self::limit::Limited;
use self::metrics::ProxyStats;

/// The servers whose figures are shown.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// The DNS forwarder, if it runs.
    pub dns: Option<Handle>,
    /// The proxies that run.
    pub proxies: Vec<forebay_proxy::Handle>,
    /// The server of gRPC, if it runs.
    pub grpc: Option<forebay_grpc::server::Handle>,
}

/// Whether new work is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It is.
    Serving,
    /// What is in flight is finished, and nothing new is taken.
    Draining,
}

/// A running admin endpoint. Dropping it ends it.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    draining: Arc<AtomicBool>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    source: Source,
    draining: Arc<AtomicBool>,
    token: Option<Arc<str>>,
    started: Instant,
    /// Whether a profile is being taken.
    is_profiling: Arc<AtomicBool>,
}

/// How long figures are waited for: workers answer within microseconds unless they are stuck.
const STATS_MAX: Duration = Duration::from_secs(2);

impl Admin {
    /// Serves on `listener` from a thread of its own. `token` is what clients must show, if anything.
    ///
    /// # Errors
    ///
    /// When the listener cannot be read, or no thread can be started.
    pub fn start(listener: TcpListener, source: Source, token: Option<String>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let draining = Arc::new(AtomicBool::new(false));
        let (token, started) = (token.map(Into::into), Instant::now());
        let is_profiling = Arc::default();
        let shared = Shared { source, draining: Arc::clone(&draining), token, started, is_profiling };
        let (stop, stopped) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = thread::Builder::new().name("admin".to_owned()).spawn(move || {
            runtime.block_on(async {
                let listener = match tokio::net::TcpListener::from_std(listener) {
                    Ok(listener) => Limited::new(listener),
                    Err(error) => return tracing::error!(%error, "the admin endpoint has failed"),
                };
                tokio::select! {
                    // `serve` has no end of its own.
                    _ = axum::serve(listener, router(shared)) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { address, draining, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns where it listens, as a browser takes it.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Tells what `/readyz` is to say.
    pub fn set_phase(&self, phase: Phase) {
        self.draining.store(phase == Phase::Draining, Ordering::Relaxed);
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the admin endpoint had panicked");
        }
    }
}

/// The paths, and what each is for: shown to whoever asks for another.
const PATHS: &str = "\
/metrics  metrics, in the text format of Prometheus
/pools    every pool as JSON
/dns/flush  POST with ?name=example.org: forgets it; with &subtree=true all below it too
/debug/pprof/profile     where CPU time goes, for go tool pprof; ?seconds=10&hz=99
/debug/pprof/flamegraph  the same for a browser
/debug/pprof/heap        who holds memory, for go tool pprof; POST ?active=true before
/healthz  200 while the process lives
/readyz   200 while it serves; 503 while it drains, and while a proxy has no backend
";

fn router(shared: Shared) -> Router {
    let guarded = Router::new()
        .route("/metrics", get(metrics))
        .route("/pools", get(pools))
        .route("/dns/flush", post(flush::flush))
        .route("/debug/pprof/profile", get(profiling::profile))
        .route("/debug/pprof/flamegraph", get(profiling::flame_graph))
        .route("/debug/pprof/heap", get(profiling::heap).post(profiling::note_heap))
        .fallback(async || (StatusCode::NOT_FOUND, PATHS))
        .layer(middleware::from_fn_with_state(shared.clone(), guard));
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .merge(guarded)
        .layer(middleware::map_response(close))
        .with_state(shared)
}

async fn metrics(State(shared): State<Shared>) -> Response {
    match shared.figures().await {
        Some((dns, proxies)) => {
            let grpc = shared.source.grpc.as_ref().map(forebay_grpc::server::Handle::figures);
            let scrape = metrics::Scrape::new(shared.uptime(), dns.as_ref(), &proxies).with_grpc(grpc);
            let text = metrics::exposition(&scrape);
            ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        None => stuck(),
    }
}

async fn pools(State(shared): State<Shared>) -> Response {
    match shared.figures().await {
        Some((dns, proxies)) => {
            let scrape = metrics::Scrape::new(shared.uptime(), dns.as_ref(), &proxies);
            axum::Json(pools::Report::new(&scrape)).into_response()
        }
        None => stuck(),
    }
}

async fn ready(State(shared): State<Shared>) -> Response {
    if shared.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    match shared.source.proxies.iter().find(|proxy| !proxy.is_ready()) {
        Some(proxy) => {
            let text = format!("proxy {}: no backend\n", proxy.name());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
        None => "ready\n".into_response(),
    }
}

impl Shared {
    fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Asks the servers. `None` when a worker does not answer.
    async fn figures(&self) -> Option<(Option<Stats>, Vec<ProxyStats>)> {
        let dns = match &self.source.dns {
            Some(dns) => Some(timeout(STATS_MAX, dns.stats()).await.ok()?),
            None => None,
        };
        let proxies = self.source.proxies.iter().map(|proxy| ProxyStats {
            name: proxy.name().to_owned(),
            figures: proxy.figures(),
            backends: proxy.backends(),
            discovery: proxy.discovery(),
        });
        Some((dns, proxies.collect()))
    }
}

fn stuck() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, "a worker does not answer\n").into_response()
}

/// Lets nobody through who lacks the token.
async fn guard(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let shown =
        request.headers().get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match &shared.token {
        Some(token) if !shown.is_some_and(|shown| is_same(shown, token.as_bytes())) => {
            let challenge = [(WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge, "send Authorization: Bearer and the token\n")
                .into_response()
        }
        _ => next.run(request).await,
    }
}

/// Compares in a time that tells nothing of where a wrong token differs.
fn is_same(shown: &[u8], token: &[u8]) -> bool {
    shown.len() == token.len() && shown.iter().zip(token).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

/// Ends each connection with its answer: scrapes are rare, and no connection is to stand idle.
async fn close(mut response: Response) -> Response {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests;

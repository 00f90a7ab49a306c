//! A list in Kubernetes: the EndpointSlices of a service, or its Endpoints where there are none.
//!
//! Known backends are asked, each directly and one after the other until one answers: the proxy itself is the last that
//! could be asked how to reach them. One that answers is asked again, and is watched in between.
//!
//! ```text
//! list (10 s at most) ─▶ Feed ─▶ watch: added, changed, gone ─▶ Feed … ─▶ after refresh_interval: list again
//!   │ fails                        │ ends, 410 Gone: list again   │ fails
//!   └──────── the next backend ◀───┴─────────────────────────────┘
//! ```

mod service;

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use forebay_core::Rng;
use futures_util::TryStreamExt;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use self::service::{EndpointSlice, Endpoints, Service};
use super::{Feed, Found, Source};
use crate::settings::{BackendAddress, KubeConfig};

/// How long one API server may take for the whole list.
const LIST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long one API server may take to be connected to: a dead node must not eat the time of the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long at most a watch is asked for; as long as API servers are asked by everybody.
const WATCH_MAX: Duration = Duration::from_secs(290);

/// The least time between two lists: a server that ends each watch at once is not stormed.
const LIST_EVERY_MIN: Duration = Duration::from_secs(1);

/// The longest pause when nobody answers.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Follows Kubernetes for ever. `seeds` are asked too, whatever the list says by then: a list that has gone stale must
/// not be all that is asked for a new one.
pub(super) async fn follow(config: &KubeConfig, feed: &Feed, seeds: &[Found]) {
    let mut rng = Rng::new(forebay::sys::now().as_nanos());
    let mut last: Option<SocketAddr> = None;
    let mut failed = 0;
    loop {
        let began = Instant::now();
        match round(config, feed, seeds, &mut last, &mut rng).await {
            Ok(()) => failed = 0,
            Err(problem) => {
                failed += 1;
                feed.failed(Source::Kubernetes, &problem);
                let longest = Duration::from_millis(500 << failed.min(6)).min(PAUSE_MAX);
                sleep(rng.between(longest / 2, longest)).await;
            }
        }
        sleep_until(began + LIST_EVERY_MIN).await;
    }
}

/// Asks one server after the other until one has given the list, and watches that one until its time is up.
async fn round(
    config: &KubeConfig,
    feed: &Feed,
    seeds: &[Found],
    last: &mut Option<SocketAddr>,
    rng: &mut Rng,
) -> Result<(), String> {
    let access = Access::read(&config.kubeconfig).await?;
    let mut servers: Vec<SocketAddr> = Vec::new();
    let known = feed.current();
    for found in last.iter().copied().chain(addresses(&known)).chain(addresses(seeds)) {
        if !servers.contains(&found) && !feed.is_own(found) {
            servers.push(found);
        }
    }
    // One that is no longer listed is asked only after those that are.
    if let Some(address) = *last
        && !addresses(&known).any(|one| one == address)
        && servers.len() > 1
    {
        servers.rotate_left(1);
    }
    if servers.is_empty() {
        servers.extend(access.server().await.filter(|address| !feed.is_own(*address)));
    }
    let mut problem = format!(
        "no API server is known: name one as backend, or as `server` in {} (this proxy's own address is of no use there)",
        config.kubeconfig.display()
    );
    for server in servers {
        let until =
            Instant::now() + rng.between(config.refresh_interval * 9 / 10, config.refresh_interval * 11 / 10);
        match access.session(server, config, feed, until).await {
            Ok(Ended::InTime) => {
                *last = Some(server);
                return Ok(());
            }
            Ok(Ended::Early(reason)) => {
                tracing::debug!(%server, reason, "a watch has ended; another server is asked");
                *last = None;
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(%server, error, "an API server gives no list of endpoints");
                problem = format!("{server}: {error}");
            }
        }
    }
    Err(problem)
}

fn addresses(list: &[Found]) -> impl Iterator<Item = SocketAddr> + '_ {
    list.iter().map(|found| found.backend.address)
}

/// How a session ended in which there was a list.
enum Ended {
    /// Its time was up, or the list has to be asked for again.
    InTime,
    /// The connection broke, or the server did not let it be watched: the next one may know more.
    Early(String),
}

/// What the kubeconfig file gives.
struct Access {
    config: Config,
}

impl Access {
    /// Reads the file anew: certificates and tokens are replaced while the proxy runs.
    async fn read(path: &Path) -> Result<Self, String> {
        let wrong = |problem: String| format!("{}: {problem}", path.display());
        let file = Kubeconfig::read_from(path).map_err(|error| wrong(causes(&error)))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
            .await
            .map_err(|error| wrong(causes(&error)))?;
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            let problem = "its user gets credentials from another program, which this proxy does not run: use a \
                           client certificate or a token";
            return Err(wrong(problem.to_owned()));
        }
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // Servers are asked directly, whatever the environment says.
        config.proxy_url = None;
        // What fails is asked of the next server instead.
        config.default_retry = false;
        Ok(Self { config })
    }

    /// Returns where the file's own server is.
    async fn server(&self) -> Option<SocketAddr> {
        let url = &self.config.cluster_url;
        let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
        let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
        tokio::net::lookup_host((host, port)).await.ok()?.next()
    }

    /// Asks one server for the list, and watches it until `until`.
    async fn session(
        &self,
        server: SocketAddr,
        config: &KubeConfig,
        feed: &Feed,
        until: Instant,
    ) -> Result<Ended, String> {
        let scheme = self.config.cluster_url.scheme_str().unwrap_or("https");
        let mut at = self.config.clone();
        at.cluster_url = format!("{scheme}://{server}").parse().map_err(|error| format!("{error}"))?;
        let client = Client::try_from(at).map_err(|error| causes(&error))?;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), &config.namespace);
        match self.follow(&slices, config, feed, until).await {
            Err(Fault::Absent(absent)) => {
                tracing::debug!(%server, absent, "there are no EndpointSlices to be had: Endpoints are asked for");
                let endpoints = Api::<Endpoints>::namespaced(client, &config.namespace);
                self.follow(&endpoints, config, feed, until).await.map_err(Fault::text)
            }
            other => other.map_err(Fault::text),
        }
    }

    async fn follow<K>(
        &self,
        api: &Api<K>,
        config: &KubeConfig,
        feed: &Feed,
        until: Instant,
    ) -> Result<Ended, Fault>
    where
        K: Service + Resource + Clone + DeserializeOwned + Debug,
    {
        let (labels, fields) = K::selectors(&config.service);
        let params = ListParams {
            label_selector: labels.clone(),
            field_selector: fields.clone(),
            ..ListParams::default()
        };
        let list = timeout(LIST_TIMEOUT, api.list(&params))
            .await
            .map_err(|_| Fault::Failed(format!("does not give the list within {LIST_TIMEOUT:?}")))?
            .map_err(Fault::from)?;
        let mut version = list.metadata.resource_version.clone().unwrap_or_default();
        let mut objects: BTreeMap<String, Vec<BackendAddress>> =
            list.items.iter().map(|object| (name(object), object.backends(&config.port))).collect();
        feed.offer(Source::Kubernetes, union(&objects));

        while Instant::now() < until {
            let left = (until - Instant::now()).min(WATCH_MAX);
            let params = WatchParams {
                label_selector: labels.clone(),
                field_selector: fields.clone(),
                timeout: Some(left.as_secs().max(1) as u32),
                ..WatchParams::default()
            };
            let began = Instant::now();
            let watch = match timeout(LIST_TIMEOUT, api.watch(&params, &version)).await {
                Ok(Ok(watch)) => watch,
                Ok(Err(error)) => return Ok(Ended::Early(Fault::from(error).text())),
                Err(_) => return Ok(Ended::Early("does not begin to watch".to_owned())),
            };
            let mut watch = std::pin::pin!(watch);
            loop {
                let event = match timeout_at(until, watch.try_next()).await {
                    Err(_) => return Ok(Ended::InTime),
                    Ok(Ok(Some(event))) => event,
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => return Ok(Ended::Early(Fault::from(error).text())),
                };
                match event {
                    WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                        note(&mut version, object.meta().resource_version.as_deref());
                        objects.insert(name(&object), object.backends(&config.port));
                    }
                    WatchEvent::Deleted(object) => {
                        note(&mut version, object.meta().resource_version.as_deref());
                        objects.remove(&name(&object));
                    }
                    WatchEvent::Bookmark(bookmark) => {
                        note(&mut version, Some(&bookmark.metadata.resource_version));
                        continue;
                    }
                    // What is asked for lies too far back: only the whole list helps.
                    WatchEvent::Error(status) if status.code == GONE => return Ok(Ended::InTime),
                    WatchEvent::Error(status) => return Ok(Ended::Early(status.message.clone())),
                }
                feed.offer(Source::Kubernetes, union(&objects));
            }
            sleep_until((began + LIST_EVERY_MIN).min(until)).await;
        }
        Ok(Ended::InTime)
    }
}

/// The status of a version that is no longer known.
const GONE: u16 = 410;

fn note(version: &mut String, seen: Option<&str>) {
    if let Some(seen) = seen {
        seen.clone_into(version);
    }
}

fn name<K: Resource>(object: &K) -> String {
    object.meta().name.clone().unwrap_or_default()
}

fn union(objects: &BTreeMap<String, Vec<BackendAddress>>) -> Vec<Found> {
    objects.values().flatten().cloned().map(Found::plain).collect()
}

/// Why a server gives no list.
enum Fault {
    /// It does not have, or does not show, what was asked for.
    Absent(String),
    /// Anything else.
    Failed(String),
}

impl Fault {
    fn text(self) -> String {
        match self {
            Self::Absent(text) | Self::Failed(text) => text,
        }
    }
}

impl From<kube::Error> for Fault {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let text = format!("says {}: {}", status.code, status.message);
                match status.code {
                    401 => {
                        Self::Failed(format!("{text}; the credentials of the kubeconfig are not accepted"))
                    }
                    // An old server, or a role that was made for the old kind.
                    403 | 404 => Self::Absent(text),
                    _ => Self::Failed(text),
                }
            }
            error => Self::Failed(causes(&error)),
        }
    }
}

/// Writes an error with what caused it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        // Many repeat what they were caused by.
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = next.source();
    }
    text
}

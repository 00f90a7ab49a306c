//! Backends that a Kubernetes API says: API servers of our own, and `kubectl` through the proxy.

#![cfg(feature = "kubernetes")]

#[path = "support/api_server.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
mod api_server;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use api_server::{ApiServer, Cluster, has, list};
use forebay_proxy::{DiscoverySettings, ProxyConfig, Server, Settings, Source, start};
use serde_json::json;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(kubeconfig: &Path, backends: &[SocketAddr]) -> Settings {
    Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 1,
        discovery: DiscoverySettings {
            kubeconfig: kubeconfig.to_owned(),
            refresh_interval: "1s".parse().unwrap(),
            ..DiscoverySettings::default()
        },
        ..Settings::default()
    }
}

/// As `settings`, but nothing is asked for twice while the test runs.
fn watching(kubeconfig: &Path, backends: &[SocketAddr]) -> Settings {
    let mut settings = settings(kubeconfig, backends);
    settings.discovery.refresh_interval = "1h".parse().unwrap();
    settings
}

fn run(settings: &Settings) -> Server {
    start(ProxyConfig::new(settings, 1).unwrap()).unwrap()
}

fn known(server: &Server) -> usize {
    server.handle().discovery().unwrap().backends
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn all(servers: &[&ApiServer]) -> Vec<(SocketAddr, bool)> {
    servers.iter().map(|server| (server.address, true)).collect()
}

#[test]
fn a_change_is_followed_within_a_second_by_the_watch() {
    let cluster = Cluster::new();
    let servers = [ApiServer::start(&cluster), ApiServer::start(&cluster)];
    let [a, b] = &servers;
    cluster.set(&all(&[a]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let proxy = run(&watching(&kubeconfig, &[a.address]));
    until("the watch", || cluster.watches() == 1);
    let began = Instant::now();
    cluster.set(&all(&[a, b]));
    until("two", || known(&proxy) == 2);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    cluster.set(&[(a.address, true), (b.address, false)]);
    until("one, since the other is not ready", || known(&proxy) == 1);
    cluster.set(&all(&[a, b]));
    until("two again", || known(&proxy) == 2);
    cluster.set(&all(&[b]));
    until("the first is gone", || known(&proxy) == 1);
    assert_eq!(a.count("endpointslices"), 2, "a list and a watch: {:?}", a.asked());
    assert!(a.asked().iter().all(|line| line.ends_with("as cert")), "{:?}", a.asked());
    let stats = proxy.handle().discovery().unwrap();
    assert_eq!((stats.source, stats.failures, stats.is_fresh), (Source::Kubernetes, 0, true));
}

#[test]
fn a_list_of_which_none_is_ready_keeps_the_last_good_one() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", false);
    let proxy = run(&watching(&kubeconfig, &[server.address]));
    until("the watch", || cluster.watches() == 1);
    cluster.set(&[(server.address, false)]);
    until("not believed", || proxy.handle().discovery().unwrap().empty == 1);
    cluster.set(&[]);
    until("nor this", || proxy.handle().discovery().unwrap().empty == 2);
    assert_eq!(known(&proxy), 1);
    assert!(server.asked().iter().all(|line| line.ends_with("as token")), "{:?}", server.asked());
}

#[test]
fn a_watch_that_is_too_old_is_followed_by_a_list() {
    let cluster = Cluster::new();
    let servers = [ApiServer::start(&cluster), ApiServer::start(&cluster)];
    let [a, b] = &servers;
    cluster.set(&all(&[a]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let proxy = run(&watching(&kubeconfig, &[a.address]));
    until("the watch", || cluster.watches() == 1);
    cluster.compact();
    until("another list", || a.count("endpointslices?") >= 3);
    until("another watch", || cluster.watches() == 1);
    cluster.set(&all(&[a, b]));
    until("two", || known(&proxy) == 2);
    assert_eq!(proxy.handle().discovery().unwrap().failures, 0);
}

#[test]
fn endpoints_are_asked_for_where_there_are_no_slices() {
    let cluster = Cluster::new();
    let servers = [ApiServer::start(&cluster), ApiServer::start(&cluster)];
    let [a, b] = &servers;
    cluster.forget_slices();
    cluster.set(&all(&[a]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let proxy = run(&watching(&kubeconfig, &[a.address]));
    until("the watch", || cluster.watches() == 1);
    cluster.set(&all(&[a, b]));
    until("two", || known(&proxy) == 2);
    assert!(a.count("/api/v1/namespaces/default/endpoints?") >= 2, "{:?}", a.asked());
}

#[test]
fn another_server_is_asked_when_one_dies_and_the_file_follows() {
    let cluster = Cluster::new();
    let a = ApiServer::start(&cluster);
    let b = ApiServer::start(&cluster);
    let c = ApiServer::start(&cluster);
    let file = cluster.folder.path().join("endpoints.json");
    list(&file, &[a.address, b.address]);
    cluster.set(&all(&[&a, &b]));
    // The server that it names is the proxy itself, or nobody: it is not asked.
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let mut settings = watching(&kubeconfig, &[]);
    settings.discovery.file = file.clone();
    let proxy = run(&settings);
    until("the watch", || cluster.watches() == 1);
    let (watched, other) = if a.count("watch") == 1 { (a, b) } else { (b, a) };
    let died = watched.address;
    drop(watched);
    until("the other is watched", || other.count("watch") == 1);
    cluster.set(&all(&[&other, &c]));
    let mut wanted = [other.address.to_string(), c.address.to_string()];
    wanted.sort();
    let wanted = json!({ "endpoints": wanted }).to_string();
    until("the file", || fs::read_to_string(&file).unwrap() == wanted);
    until("the pools follow", || known(&proxy) == 2);
    assert!(!fs::read_to_string(&file).unwrap().contains(&died.to_string()));
}

#[test]
fn named_backends_are_asked_too_when_the_saved_list_is_stale() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    let dead = SocketAddr::from(([127, 0, 0, 1], forebay_bench::ports::free_port()));
    let saved = cluster.folder.path().join("saved.json");
    list(&saved, &[dead]);
    cluster.set(&all(&[&server]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let mut settings = settings(&kubeconfig, &[server.address]);
    settings.discovery.save = saved.clone();
    let proxy = run(&settings);
    until("the true list", || known(&proxy) == 1);
    until("is saved", || fs::read_to_string(&saved).unwrap().contains(&server.address.to_string()));
    assert!(!fs::read_to_string(&saved).unwrap().contains(&dead.to_string()));
}

#[test]
fn the_server_of_the_kubeconfig_is_asked_if_no_other_is_known() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let url = format!("https://localhost:{}", server.address.port());
    let kubeconfig = cluster.kubeconfig("kubelet.conf", &url, true);
    let proxy = run(&settings(&kubeconfig, &[]));
    until("it is found", || proxy.handle().is_ready());
}

#[test]
fn credentials_that_are_replaced_are_used_without_a_restart() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let user = json!({"token": "an-old-one"});
    let kubeconfig = cluster.kubeconfig_of("kubelet.conf", "https://127.0.0.1:1", &user);
    let proxy = run(&settings(&kubeconfig, &[server.address]));
    until("a refusal", || proxy.handle().discovery().unwrap().failures > 0);
    cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", false);
    until("a list", || {
        proxy.handle().discovery().unwrap().is_fresh && proxy.handle().discovery().unwrap().lists > 0
    });
}

#[test]
fn a_server_that_another_authority_vouches_for_is_not_believed() {
    let (cluster, other) = (Cluster::new(), Cluster::new());
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let kubeconfig = other.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let proxy = run(&settings(&kubeconfig, &[server.address]));
    until("refusals", || proxy.handle().discovery().unwrap().failures > 1);
    assert_eq!((server.asked(), proxy.handle().discovery().unwrap().lists), (Vec::new(), 0));
}

fn kubectl(kubeconfig: &Path, args: &[&str], input: &str) -> String {
    use std::io::Write;
    let home = tempfile::tempdir().unwrap();
    let mut child = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .env("HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn kubectl_gets_and_execs_through_opaque_bytes() {
    if !has("kubectl") {
        return;
    }
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let own = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let proxy = run(&settings(&own, &[server.address]));
    // One that shows a certificate, and one that shows a token: the proxy sees neither.
    let url = format!("https://{}", proxy.local_addrs()[0].address);
    for has_certificate in [true, false] {
        let kubeconfig = cluster.kubeconfig("admin.conf", &url, has_certificate);
        let raw = kubectl(&kubeconfig, &["get", "--raw", "/readyz"], "");
        assert_eq!(raw, "ok");
        let name = format!("kubernetes-{}", server.address.port());
        let slices = kubectl(&kubeconfig, &["get", "endpointslices", "-o", "name"], "");
        assert_eq!(slices.trim(), format!("endpointslice.discovery.k8s.io/{name}"));
        let text = "over a WebSocket, there and back\n".repeat(100);
        let echo = kubectl(&kubeconfig, &["exec", "-i", "cat", "--", "cat"], &text);
        assert_eq!(echo, text);
    }
    assert!(server.count("pods/cat/exec") >= 2);
}

#[test]
fn the_service_of_the_settings_is_asked_for_as_often_as_they_say() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    cluster.set(&all(&[&server]));
    let kubeconfig = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:1", true);
    let lists = || server.asked().iter().filter(|line| !line.contains("watch")).count();
    let listed_in_three_seconds = |settings: &Settings| {
        let proxy = run(settings);
        until("the watch", || cluster.watches() == 1);
        let before = lists();
        thread::sleep(Duration::from_secs(3));
        drop(proxy);
        until("it has gone", || cluster.watches() == 0);
        lists() - before
    };
    let often = listed_in_three_seconds(&settings(&kubeconfig, &[server.address]));
    let seldom = listed_in_three_seconds(&watching(&kubeconfig, &[server.address]));
    assert!((2..=4).contains(&often) && seldom == 0, "{often} {seldom}");
    let mut other = watching(&kubeconfig, &[server.address]);
    other.discovery.service = "apps/web".to_owned();
    let _proxy = run(&other);
    until("another service", || server.count("/namespaces/apps/endpointslices") > 0);
    assert!(server.asked().iter().any(|line| line.contains("service-name") && line.contains("web")));
}

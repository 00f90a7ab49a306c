//! Backends that a Kubernetes API says: API servers of our own, and `kubectl` through the proxy.

#![cfg(feature = "kubernetes")]

#[path = "support/api_server.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
mod api_server;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use api_server::{ApiServer, Cluster, TOKEN, has, list};
use forebay_proxy::{CheckKind, DiscoverySettings, Mode, ProxyConfig, Server, Settings, Source, start};
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

/// A proxy of requests that ends TLS and begins it anew, with the cluster's own authority on both sides.
fn terminating(cluster: &Cluster, servers: &[&ApiServer], listen: &str) -> Server {
    let (certificate, key) = cluster.certificate("proxy", &["127.0.0.1"]);
    let ca = cluster.ca();
    let backends = servers.iter().map(|server| format!("https://{}?ca={}", server.address, ca.display()));
    let mut settings = Settings {
        mode: Mode::Http,
        listen: vec![listen.to_owned()],
        backends: backends.collect(),
        workers: 1,
        ..Settings::default()
    };
    settings.tls.certificate = certificate;
    settings.tls.key = key;
    settings.health.check = CheckKind::Https;
    settings.health.path = "/readyz".to_owned();
    run(&settings)
}

#[test]
fn kubectl_gets_watches_and_execs_through_requests_of_http() {
    if !has("kubectl") {
        return;
    }
    let cluster = Cluster::new();
    let servers = [ApiServer::start(&cluster), ApiServer::start(&cluster)];
    let [a, b] = &servers;
    cluster.set(&all(&[a]));
    let proxy = terminating(&cluster, &[a, b], "https://127.0.0.1:0");
    let url = format!("https://{}", proxy.local_addrs()[0].address);
    let kubeconfig = cluster.kubeconfig("admin.conf", &url, false);
    for _ in 0..3 {
        assert_eq!(kubectl(&kubeconfig, &["get", "--raw", "/readyz"], ""), "ok");
        let slices = kubectl(&kubeconfig, &["get", "endpointslices", "-o", "name"], "");
        assert_eq!(slices.trim(), format!("endpointslice.discovery.k8s.io/kubernetes-{}", a.address.port()));
    }
    let text = "over a WebSocket, there and back\n".repeat(100);
    assert_eq!(kubectl(&kubeconfig, &["exec", "-i", "cat", "--", "cat"], &text), text);
    // A watch streams: news come while it goes on.
    let home = tempfile::tempdir().unwrap();
    let mut watch = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["get", "endpointslices", "--watch", "-o", "name"])
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (sender, seen) = std::sync::mpsc::channel();
    let output = BufReader::new(watch.stdout.take().unwrap());
    thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    until("the watch", || cluster.watches() == 1);
    cluster.set(&all(&[a, b]));
    let began = Instant::now();
    let wanted = format!("kubernetes-{}", b.address.port());
    until("its news", || seen.try_iter().any(|line| line.ends_with(&wanted)));
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let _ = watch.kill();
    let _ = watch.wait();
    until("a watch whose client is gone ends", || cluster.watches() == 0);
    // Both have served, and nobody but the client was who asked: the proxy has no credentials of its own.
    let asked: Vec<_> = [a.asked(), b.asked()].concat();
    assert!(asked.iter().all(|line| line.ends_with("as token") || line.contains("/readyz")), "{asked:?}");
    assert!(a.count("endpointslices") > 0 && b.count("endpointslices") > 0, "{asked:?}");
    let figures = proxy.handle().figures();
    assert_eq!((figures.requests_failed, figures.failed_backend), (0, 0), "{figures:?}");
}

#[test]
fn who_a_client_is_by_its_certificate_is_not_passed_on_by_who_ends_its_tls() {
    if !has("kubectl") {
        return;
    }
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    let proxy = terminating(&cluster, &[&server], "https://127.0.0.1:0");
    let url = format!("https://{}", proxy.local_addrs()[0].address);
    let kubeconfig = cluster.kubeconfig("admin.conf", &url, true);
    let home = tempfile::tempdir().unwrap();
    let output = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["get", "--raw", "/apis"])
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(server.count("/apis as nobody") > 0, "{:?}", server.asked());
}

#[test]
fn an_exec_of_older_clients_goes_through_requests_of_http() {
    let cluster = Cluster::new();
    let server = ApiServer::start(&cluster);
    // kubectl before 1.31 asks for SPDY: POST, with an empty body that says so.
    let proxy = terminating(&cluster, &[&server], "127.0.0.1:0");
    let mut stream = TcpStream::connect(proxy.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = format!(
        "POST /api/v1/namespaces/default/pods/cat/exec?command=cat&stdin=true&stdout=true HTTP/1.1\r\nHost: a\r\n\
         Authorization: Bearer {TOKEN}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\
         X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(asked.as_bytes()).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 ") && head.to_lowercase().contains("upgrade: spdy/3.1"), "{head}");
    for n in 0..10 {
        let sent = format!("frame {n}").repeat(1000);
        stream.write_all(sent.as_bytes()).unwrap();
        let mut came = vec![0; sent.len()];
        reader.read_exact(&mut came).unwrap();
        assert!(came == sent.as_bytes(), "{n}");
    }
    drop((stream, reader));
    until("it ends", || proxy.handle().figures().clients == 0);
    if !has("kubectl") {
        return;
    }
    // A new one that is told to be old. The pod ends it after its first frame.
    let tls = terminating(&cluster, &[&server], "https://127.0.0.1:0");
    let url = format!("https://{}", tls.local_addrs()[0].address);
    let kubeconfig = cluster.kubeconfig("admin.conf", &url, false);
    let home = tempfile::tempdir().unwrap();
    let _ = Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .args(["exec", "-i", "cat", "--", "cat"])
        .env("HOME", home.path())
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(server.count("a frame of SPDY"), 1, "{:?}", server.asked());
}

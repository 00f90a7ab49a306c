//! `forebay apiserver-proxy` as a node has it: the file, API servers of our own, `kubectl`, etcd.

#[path = "../../proxy/tests/support/api_server.rs"]
#[allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
mod api_server;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use api_server::{ApiServer, Cluster, has, list};
use serde_json::{Value, json};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running proxy.
struct Proxy {
    _process: Killed,
    address: SocketAddr,
    admin: SocketAddr,
    lines: Receiver<Value>,
}

impl Proxy {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(args)
            .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "json"])
            .args(["--workers", "1"])
            .env_remove("FOREBAY_ADMIN_TOKEN")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if sender.send(serde_json::from_str(&line).unwrap_or(Value::String(line))).is_err() {
                    return;
                }
            }
        });
        let none = ([0, 0, 0, 0], 0).into();
        let mut proxy = Self { _process: Killed(child), address: none, admin: none, lines };
        let ready = proxy.line("proxy is ready");
        proxy.address = ready["listen"].as_str().unwrap().parse().unwrap();
        proxy.admin = ready["admin"].as_str().unwrap().strip_prefix("http://").unwrap().parse().unwrap();
        proxy
    }

    /// As a node starts it.
    fn on_node(file: &Path, kubeconfig: &Path) -> Self {
        let (file, kubeconfig) = (file.display().to_string(), kubeconfig.display().to_string());
        Self::start(&["apiserver-proxy", "--endpoints", &file, "--kubeconfig", &kubeconfig])
    }

    /// Waits for a line of the log.
    #[track_caller]
    fn line(&self, message: &str) -> Value {
        let end = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if line["message"].as_str().is_some_and(|text| text.contains(message)) {
                return line;
            }
            seen.push(line.to_string());
        }
        panic!("`{message}` was not logged, but:\n{}", seen.join("\n"));
    }

    fn admin(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.admin).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.admin("/metrics");
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok())
            .unwrap_or_else(|| panic!("{name}: {text}"))
    }
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn kubectl(kubeconfig: &Path, args: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .env("HOME", home.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[track_caller]
fn gets(kubeconfig: &Path) {
    let output = kubectl(kubeconfig, &["get", "endpointslices", "-o", "name"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("endpointslice.discovery.k8s.io/kubernetes-"));
}

fn endpoints(file: &Path) -> Vec<String> {
    let list: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap_or_default();
    serde_json::from_value(list["endpoints"].clone()).unwrap_or_default()
}

#[test]
fn a_node_keeps_its_api_servers_while_they_come_and_go() {
    if !has("kubectl") {
        return;
    }
    let cluster = Cluster::new();
    let (a, b) = (ApiServer::start(&cluster), ApiServer::start(&cluster));
    let file = cluster.folder.path().join("k8s-apiserver-proxy.json");
    list(&file, &[a.address]);
    cluster.set(&[(a.address, true)]);
    let own = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:6443", true);
    let proxy = Proxy::on_node(&file, &own);
    let ready = proxy.line("ready to proxy client requests to");
    assert_eq!(ready["endpoints"], a.address.to_string());
    assert!(proxy.admin("/readyz").starts_with("HTTP/1.1 200"));
    let kubeconfig = cluster.kubeconfig("admin.conf", &format!("https://{}", proxy.address), true);
    gets(&kubeconfig);

    // Another control plane joins: the watch tells, and the file follows.
    until("the watch", || cluster.watches() > 0);
    cluster.set(&[(a.address, true), (b.address, true)]);
    let mut both = [a.address.to_string(), b.address.to_string()];
    both.sort();
    until("the file has both", || endpoints(&file) == both);
    proxy.line("updating endpoints");

    // The first one leaves; who asked through the proxy itself would be stuck now.
    let first = a.address;
    drop(a);
    cluster.set(&[(b.address, true)]);
    until("the file has the second", || endpoints(&file) == [b.address.to_string()]);
    for _ in 0..5 {
        gets(&kubeconfig);
    }

    // Somebody empties the file: the list stays.
    fs::write(&file, "").unwrap();
    until("it was noticed", || proxy.metric("forebay_proxy_discovery_empty_total") > 0);
    gets(&kubeconfig);
    fs::write(&file, r#"{"endpoints":"#).unwrap();
    proxy.line("no new list of endpoints");
    gets(&kubeconfig);
    assert_eq!(proxy.metric("forebay_proxy_discovery_backends"), 1);

    // The first one is back in the file: it serves within seconds.
    let a = ApiServer::start_at(&cluster, first);
    list(&file, &[a.address]);
    let began = Instant::now();
    until("it serves", || {
        gets(&kubeconfig);
        a.count("endpointslices") > 0
    });
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn an_api_server_that_is_back_serves_within_seconds() {
    if !has("kubectl") {
        return;
    }
    let cluster = Cluster::new();
    let (a, b) = (ApiServer::start(&cluster), ApiServer::start(&cluster));
    let file = cluster.folder.path().join("endpoints.json");
    list(&file, &[a.address, b.address]);
    cluster.set(&[(a.address, true), (b.address, true)]);
    let own = cluster.kubeconfig("kubelet.conf", "https://127.0.0.1:6443", true);
    let proxy = Proxy::on_node(&file, &own);
    let kubeconfig = cluster.kubeconfig("admin.conf", &format!("https://{}", proxy.address), false);
    let address = a.address;
    drop(a);
    for _ in 0..6 {
        gets(&kubeconfig);
    }
    let a = ApiServer::start_at(&cluster, address);
    let began = Instant::now();
    until("it serves again", || {
        gets(&kubeconfig);
        a.asked().iter().any(|line| line.contains("endpointslices") && line.ends_with("as token"))
    });
    // The program that it replaces waits for a minute.
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

#[test]
fn a_missing_file_and_a_wrong_one_are_told_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.json");
    let run = || {
        let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args([
                "apiserver-proxy",
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "none",
                "--refresh-interval",
                "0",
            ])
            .args(["--endpoints", file.to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        String::from_utf8(output.stderr).unwrap()
    };
    let missing = run();
    assert!(missing.contains("endpoints.json: there is no such file: write {\"endpoints\""), "{missing}");
    fs::write(&file, json!({"endpoints": ["192.0.2.1"]}).to_string()).unwrap();
    let wrong = run();
    assert!(wrong.contains("endpoints.json: endpoint 1 of 1: `192.0.2.1`"), "{wrong}");
}

/// How long the watch of etcd is idle: `FOREBAY_WATCH_SECS` makes it longer, as ten minutes for a thorough look.
fn watch_idle() -> Duration {
    let secs = std::env::var("FOREBAY_WATCH_SECS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    Duration::from_secs(secs)
}

fn free_port() -> u16 {
    forebay_bench::ports::free_port()
}

fn etcd(folder: &Path) -> (Killed, SocketAddr) {
    let (client, peer) = (free_port(), free_port());
    let (client_url, peer_url) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
    let process = Command::new("etcd")
        .args(["--name", "one", "--data-dir", folder.join("etcd").to_str().unwrap()])
        .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
        .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
        .args(["--initial-cluster", &format!("one={peer_url}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let address = ([127, 0, 0, 1], client).into();
    until("etcd listens", || TcpStream::connect(address).is_ok());
    (Killed(process), address)
}

fn etcdctl(address: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{address}")).args(args);
    command.stdin(Stdio::null());
    command
}

#[test]
fn a_watch_of_etcd_survives_idle_time_and_the_loss_of_another_backend() {
    if !has("etcd") || !has("etcdctl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (_etcd, etcd) = etcd(folder.path());
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let file = folder.path().join("endpoints.json");
    list(&file, &[etcd]);
    let none = folder.path().join("none.conf");
    let proxy = Proxy::start(&[
        "apiserver-proxy",
        "--endpoints",
        file.to_str().unwrap(),
        "--kubeconfig",
        none.to_str().unwrap(),
        "--refresh-interval",
        "0",
    ]);
    let mut watch = etcdctl(proxy.address, &["watch", "key"]);
    let mut watch = Killed(watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap());
    let output = BufReader::new(watch.0.stdout.take().unwrap());
    let (sender, seen) = channel();
    thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    let put = |value: &str| {
        let put = etcdctl(etcd, &["put", "key", value]).output().unwrap();
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
    };
    // The watch may not be there yet at the first.
    until("the watch tells", || {
        put("first");
        seen.try_iter().any(|line| line == "first")
    });

    // Another backend joins, dies, and leaves the list.
    list(&file, &[etcd, other.local_addr().unwrap()]);
    until("two", || proxy.metric("forebay_proxy_discovery_backends") == 2);
    drop(other);
    thread::sleep(watch_idle());
    list(&file, &[etcd]);
    until("one", || proxy.metric("forebay_proxy_discovery_backends") == 1);
    put("second");
    until("the same watch tells", || seen.try_iter().any(|line| line == "second"));
    assert_eq!(watch.0.try_wait().unwrap(), None, "it still runs");
}

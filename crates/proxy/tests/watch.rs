//! A watch of etcd, which is a stream of gRPC that nothing moves on for long, through `http` and `opaque`.
//!
//! `FOREBAY_WATCH_SECS` says how long it idles: 5 by itself, 600 for a thorough look.

#[path = "support/peers.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod peers;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use forebay_proxy::{BalanceName, CheckKind, Mode, ProxyConfig, Server, Settings, start};
use peers::{Peer, free_address, has};

const PATIENCE: Duration = Duration::from_secs(20);

fn idle() -> Duration {
    let secs = std::env::var("FOREBAY_WATCH_SECS").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    Duration::from_secs(secs)
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A member of no cluster but its own.
fn etcd(folder: &Path, name: &str) -> Peer {
    let (client, peer) = (free_address(), free_address());
    let (client_url, peer_url) = (format!("http://{client}"), format!("http://{peer}"));
    let data = folder.join(name);
    let cluster = format!("{name}={peer_url}");
    let arguments = [
        ["--name", name],
        ["--data-dir", data.to_str().unwrap()],
        ["--listen-client-urls", &client_url],
        ["--advertise-client-urls", &client_url],
        ["--listen-peer-urls", &peer_url],
        ["--initial-advertise-peer-urls", &peer_url],
        ["--initial-cluster", &cluster],
    ]
    .concat();
    Peer::start("etcd", &arguments, client)
}

fn etcdctl(address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://{address}")).args(arguments);
    command.stdin(Stdio::null());
    command
}

fn put(address: SocketAddr, value: &str) {
    let output = etcdctl(address, &["put", "key", value]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program that watches, and the lines that it says.
struct Watch {
    child: Child,
    lines: Receiver<String>,
}

impl Watch {
    fn start(address: SocketAddr) -> Self {
        let mut command = etcdctl(address, &["watch", "key"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        Self { child, lines }
    }

    fn says(&self, value: &str) -> bool {
        self.lines.try_iter().any(|line| line == value)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn proxy(mode: Mode, backends: &[SocketAddr]) -> Server {
    let scheme = if mode == Mode::Http { "h2c://" } else { "" };
    let mut settings = Settings {
        mode,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(|backend| format!("{scheme}{backend}")).collect(),
        workers: 2,
        balance: BalanceName::RoundRobin,
        ..Settings::default()
    };
    settings.health.check = CheckKind::Tcp;
    settings.health.interval = "500ms".parse().unwrap();
    // A watch is no body that stands still: this is not for it.
    settings.http.body_timeout = "1s".parse().unwrap();
    settings.http.response_timeout = "2s".parse().unwrap();
    settings.http.idle_timeout = "1s".parse().unwrap();
    settings.http.ping_interval = "500ms".parse().unwrap();
    start(ProxyConfig::new(&settings, 2).unwrap()).unwrap()
}

fn survives(mode: Mode) {
    if !has(&["etcd", "etcdctl"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut members = vec![etcd(folder.path(), "a"), etcd(folder.path(), "b")];
    let server = proxy(mode, &[members[0].address, members[1].address]);
    let address = server.local_addrs()[0].address;
    let watch = Watch::start(address);
    // Whose watch it is shows by whose news comes. It may not be there yet at the first.
    let mut watched = None;
    until("the watch tells", || {
        for (n, member) in members.iter().enumerate() {
            put(member.address, &format!("from {n}"));
        }
        let line = watch.lines.try_iter().find_map(|line| line.strip_prefix("from ")?.parse::<usize>().ok());
        watched = watched.or(line);
        watched.is_some()
    });
    let watched = members.swap_remove(watched.unwrap());
    // The other one dies, and clients hear nothing of it.
    drop(members);
    for n in 0..6 {
        let output = etcdctl(address, &["get", "key"]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{mode:?}: {n}: {errors}");
    }
    thread::sleep(idle());
    put(watched.address, "after a long time");
    until("the same watch tells", || watch.says("after a long time"));
    let mut watch = watch;
    assert_eq!(watch.child.try_wait().unwrap(), None, "it still runs");
    assert!(!watch.says("error"));
}

#[test]
fn a_watch_survives_idle_time_and_the_loss_of_another_backend_as_requests() {
    survives(Mode::Http);
}

#[test]
fn a_watch_survives_idle_time_and_the_loss_of_another_backend_as_bytes() {
    survives(Mode::Opaque);
}

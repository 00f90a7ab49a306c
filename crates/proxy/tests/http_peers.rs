//! HTTP/1.1 with the programs of others: curl as a client, nginx as a backend, HAProxy on either side.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{Mode, ProxyConfig, Server, Settings, start};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether these programs are there; if they must be, they are.
fn has(programs: &[&str]) -> bool {
    let folders = ["/usr/bin", "/usr/sbin", "/usr/local/bin"];
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| !folders.iter().any(|folder| Path::new(folder).join(program).exists()))
        .collect();
    let must = std::env::var_os("FOREBAY_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(missing.is_empty() || !must, "not installed: {missing:?}");
    if !missing.is_empty() {
        println!("skipped: {missing:?} not installed");
    }
    missing.is_empty()
}

fn proxy(backends: &[SocketAddr]) -> Server {
    let settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 1,
        ..Settings::default()
    };
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

/// A program that ends with its test.
struct Peer {
    child: Child,
    address: SocketAddr,
}

impl Peer {
    /// Starts a program that listens at this address, and waits until it does.
    fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Self {
        let child = Command::new(program)
            // Debian keeps servers where only root's path looks.
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let peer = Self { child, address };
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < until, "{program} does not listen on {address}");
            thread::sleep(Duration::from_millis(20));
        }
        peer
    }

    fn nginx(folder: &Path) -> Self {
        let address = free_address();
        let page = "x".repeat(100_000);
        fs::write(folder.join("page"), &page).unwrap();
        let at = folder.display();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
             uwsgi_temp_path {at}; scgi_temp_path {at};\n\
             server {{ listen {address}; root {at}; client_max_body_size 10m; dav_methods PUT;\n\
             location /small {{ return 200 small; }} }} }}"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, config).unwrap();
        Self::start("nginx", &["-c", file.to_str().unwrap()], address)
    }

    fn haproxy(folder: &Path, backend: SocketAddr) -> Self {
        let address = free_address();
        let config = format!(
            "defaults\n mode http\n timeout client 10s\n timeout server 10s\n timeout connect 2s\n\
             frontend f\n bind {address}\n default_backend b\nbackend b\n http-reuse always\n server s {backend}\n"
        );
        let file = folder.join("haproxy.cfg");
        fs::write(&file, config).unwrap();
        Self::start("haproxy", &["-db", "-f", file.to_str().unwrap()], address)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address for a peer. Not one of those that the kernel gives to sockets that ask for any: between the look and the
/// peer's own bind, another test's socket could be given it.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 11_000 + (std::process::id().wrapping_mul(37).wrapping_add(next) % 20_000) as u16;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
        assert!(next < 10_000, "no free port");
    }
}

fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "10"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

#[test]
fn curl_gets_posts_and_uploads_through_the_proxy() {
    if !has(&["curl"]) {
        return;
    }
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr()]);
    let at = |path| url(server.local_addrs()[0].address, path);
    assert_eq!(curl(&[&at("/")]), "ok");
    assert_eq!(curl(&["--http1.0", &at("/chunked/10000/99")]).len(), 10_000);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    fs::write(&file, "y".repeat(3_000_000)).unwrap();
    let body = format!("@{}", file.display());
    // Long enough that curl expects 100-continue.
    assert_eq!(curl(&["--data-binary", &body, &at("/echo")]).len(), 3_000_000);
    assert_eq!(
        curl(&["-H", "Transfer-Encoding: chunked", "--data-binary", &body, &at("/echo")]).len(),
        3_000_000
    );
    assert_eq!(curl(&["-X", "POST", "-d", "abc", "-H", "Expect: 100-continue", &at("/continue")]), "ok");
    assert!(curl(&["-I", &at("/size/7")]).contains("200 OK"));
    // Three requests on one connection.
    assert_eq!(curl(&[&at("/"), &at("/"), &at("/")]), "okokok");
    // A proxy is asked by absolute targets.
    assert_eq!(curl(&["-x", &at(""), "http://example.invalid/size/5"]).len(), 5);
    assert_eq!(server.handle().figures().requests_failed, 0);
}

#[test]
fn nginx_serves_behind_the_proxy() {
    if !has(&["curl", "nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let nginx = Peer::nginx(folder.path());
    let server = proxy(&[nginx.address]);
    let at = |path| url(server.local_addrs()[0].address, path);
    for _ in 0..10 {
        assert_eq!(curl(&[&at("/small"), &at("/page"), &at("/small")]).len(), 100_010);
    }
    let part = curl(&["-r", "10-19", "-D", "-", &at("/page")]);
    assert!(part.contains("206") && part.ends_with(&"x".repeat(10)));
    let file = folder.path().join("page");
    curl(&["-T", file.to_str().unwrap(), &at("/new")]);
    assert_eq!(fs::read(folder.path().join("new")).unwrap().len(), 100_000);
    assert!(curl(&["-D", "-", &at("/none")]).contains("404"));
    let figures = server.handle().figures();
    assert_eq!((figures.requests_failed, figures.retries), (0, 0));
    let counters = server.handle().backends().swap_remove(0).snapshot.counters;
    assert!(counters.dials_succeeded <= 2, "{counters:?}");
}

#[test]
fn haproxy_stands_before_and_behind_the_proxy() {
    if !has(&["curl", "haproxy"]) {
        return;
    }
    let backend = Backend::spawn(Serve::Http);
    let folder = tempfile::tempdir().unwrap();
    let behind = Peer::haproxy(folder.path(), backend.addr());
    let server = proxy(&[behind.address]);
    let before_folder = tempfile::tempdir().unwrap();
    let before = Peer::haproxy(before_folder.path(), server.local_addrs()[0].address);
    let at = |path| url(before.address, path);
    for path in ["/size/100000", "/chunked/100000/999", "/close-delimited/100000"] {
        assert_eq!(curl(&[&at(path), &at(path)]).len(), 200_000, "{path}");
    }
    assert_eq!(curl(&["-d", "hello", &at("/echo")]), "hello");
    assert_eq!(server.handle().figures().requests_failed, 0);
}

//! HTTP/1.1 with the programs of others: curl as a client, nginx as a backend, HAProxy on either side.

#[path = "support/peers.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod peers;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{Mode, ProxyConfig, Server, Settings, start};
use peers::{Peer, curl, free_address, has, url};

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

fn nginx(folder: &Path) -> Peer {
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
    Peer::start("nginx", &["-c", file.to_str().unwrap()], address)
}

fn haproxy(folder: &Path, backend: SocketAddr) -> Peer {
    let address = free_address();
    let config = format!(
        "defaults\n mode http\n timeout client 10s\n timeout server 10s\n timeout connect 2s\n\
         frontend f\n bind {address}\n default_backend b\nbackend b\n http-reuse always\n server s {backend}\n"
    );
    let file = folder.join("haproxy.cfg");
    fs::write(&file, config).unwrap();
    Peer::start("haproxy", &["-db", "-f", file.to_str().unwrap()], address)
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
    let peer = nginx(folder.path());
    let server = proxy(&[peer.address]);
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
    let behind = haproxy(folder.path(), backend.addr());
    let server = proxy(&[behind.address]);
    let before_folder = tempfile::tempdir().unwrap();
    let before = haproxy(before_folder.path(), server.local_addrs()[0].address);
    let at = |path| url(before.address, path);
    for path in ["/size/100000", "/chunked/100000/999", "/close-delimited/100000"] {
        assert_eq!(curl(&[&at(path), &at(path)]).len(), 200_000, "{path}");
    }
    assert_eq!(curl(&["-d", "hello", &at("/echo")]), "hello");
    assert_eq!(server.handle().figures().requests_failed, 0);
}

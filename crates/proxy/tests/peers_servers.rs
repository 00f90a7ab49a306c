//! Servers of others behind and before the proxy: Apache, lighttpd, and nginx with HTTP/2 and TLS.

#[path = "support/peers.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod peers;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{CheckKind, Mode, ProxyConfig, Server, Settings, start};
use peers::{Peer, curl, free_address, has, url};
use rcgen::generate_simple_self_signed;

const MIB: usize = 1 << 20;

fn proxy(backends: &[String], change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.to_vec(),
        workers: 1,
        ..Settings::default()
    };
    settings.health.check = CheckKind::None;
    change(&mut settings);
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

/// Writes what servers serve: `page`, a megabyte, and `small`.
fn pages(folder: &Path) {
    let www = folder.join("www");
    fs::create_dir(&www).unwrap();
    fs::write(www.join("page"), "x".repeat(MIB)).unwrap();
    fs::write(www.join("small"), "small").unwrap();
    // What cannot be packed into little.
    let noise: String =
        (0..MIB as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40).to_string()).collect();
    fs::write(www.join("noise"), noise).unwrap();
    // Apache's workers are not root.
    for path in [folder, &www] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A certificate for 127.0.0.1 that signs itself, and its key.
fn certificate(folder: &Path) -> (String, String) {
    let pair = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(&cert, pair.cert.pem()).unwrap();
    fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    (cert.display().to_string(), key.display().to_string())
}

fn apache(folder: &Path) -> Peer {
    let (address, at) = (free_address(), folder.display());
    let modules: String = ["mpm_event", "authz_core", "deflate", "filter"]
        .iter()
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .collect();
    let config = format!(
        "{modules}ServerName test\nServerRoot {at}\nDefaultRuntimeDir {at}\nMutex posixsem default\nPidFile {at}/pid\n\
         Listen {address}\nUser www-data\nGroup www-data\nErrorLog {at}/error.log\nDocumentRoot {at}/www\n\
         KeepAlive On\nMaxKeepAliveRequests 0\nSetOutputFilter DEFLATE\n"
    );
    let file = folder.join("apache.conf");
    fs::write(&file, config).unwrap();
    Peer::start("apache2", &["-X", "-f", file.to_str().unwrap()], address)
}

fn lighttpd(folder: &Path) -> Peer {
    let (address, at) = (free_address(), folder.display());
    let config = format!(
        "server.document-root = \"{at}/www\"\nserver.bind = \"127.0.0.1\"\nserver.port = {}\n\
         server.errorlog = \"{at}/error.log\"\nserver.upload-dirs = ( \"{at}\" )\n\
         server.max-keep-alive-requests = 1000\nmimetype.assign = ( \"\" => \"text/plain\" )\n",
        address.port()
    );
    let file = folder.join("lighttpd.conf");
    fs::write(&file, config).unwrap();
    Peer::start("lighttpd", &["-D", "-f", file.to_str().unwrap()], address)
}

/// nginx as a server of HTTP/2 over TLS.
fn nginx(folder: &Path, cert: &str, key: &str, more: &str) -> Peer {
    let (address, at) = (free_address(), folder.display());
    let config = format!(
        "daemon off; master_process off; pid {at}/pid; error_log {at}/error.log; events {{}}\n\
         http {{ access_log off; client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at};\n\
         uwsgi_temp_path {at}; scgi_temp_path {at}; client_max_body_size 10m;\n\
         server {{ listen {address} ssl http2; ssl_certificate {cert}; ssl_certificate_key {key};\n\
         root {at}/www; location /version {{ return 200 $server_protocol; }} {more} }} }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config).unwrap();
    Peer::start("nginx", &["-c", file.to_str().unwrap()], address)
}

/// What every server of files does, through the proxy; on few connections.
fn serves_files(server: &Server, folder: &Path, name: &str) {
    let at = |path| url(server.local_addrs()[0].address, path);
    for _ in 0..3 {
        assert_eq!(curl(&[&at("/small"), &at("/page"), &at("/small")]).len(), MIB + 10, "{name}");
    }
    let head = curl(&["-I", &at("/page")]);
    assert!(
        head.contains(" 200 ") && head.to_lowercase().contains("content-length: 1048576"),
        "{name}: {head}"
    );
    let etag = head
        .lines()
        .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("etag")));
    let (_, etag) = etag.expect("a tag");
    let known = curl(&["-D", "-", "-H", &format!("If-None-Match: {}", etag.trim()), &at("/page")]);
    assert!(known.contains(" 304 ") && !known.contains("xxx"), "{name}: {known:.500}");
    let part = curl(&["-r", "10-19", "-D", "-", &at("/page")]);
    assert!(part.contains(" 206 ") && part.ends_with("\r\n\r\nxxxxxxxxxx"), "{name}: {part:.500}");
    // A megabyte up, by length and in chunks, with and without asking first.
    let page = format!("@{}", folder.join("www/page").display());
    for fields in [&[][..], &["-H", "Transfer-Encoding: chunked"], &["-H", "Expect:"]] {
        let asked =
            [&["-s", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", &page], fields].concat();
        let status = curl(&[&asked[..], &[&at("/small")]].concat());
        // To a file: some say that it is one, some that it takes nothing. Both have read it.
        assert!(["200", "405", "403"].contains(&&*status), "{name} {fields:?}: {status}");
    }
    assert!(curl(&["-D", "-", &at("/none")]).contains(" 404 "), "{name}");
    assert_eq!(curl(&["--compressed", &at("/page")]).len(), MIB, "{name}");
    let figures = server.handle().figures();
    assert_eq!((figures.requests_failed, figures.failed_backend), (0, 0), "{name}");
    let counters =
        server.handle().backends().iter().map(|one| one.snapshot.counters.dials_succeeded).sum::<u64>();
    assert!(counters <= 6, "{name}: {counters} connections for {} requests", figures.requests);
}

#[test]
fn apache_serves_behind_the_proxy() {
    if !has(&["curl", "apache2"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path());
    let peer = apache(folder.path());
    let server = proxy(&[peer.address.to_string()], |_| {});
    serves_files(&server, folder.path(), "apache");
    // Packed as it is sent, and so of no known length.
    let at = url(server.local_addrs()[0].address, "/noise");
    let packed = curl(&["-I", "-X", "GET", "-H", "Accept-Encoding: gzip", "-o", "/dev/null", "-D", "-", &at]);
    assert!(packed.contains("Transfer-Encoding: chunked"), "{packed}");
}

#[test]
fn lighttpd_serves_behind_the_proxy() {
    if !has(&["curl", "lighttpd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path());
    let peer = lighttpd(folder.path());
    let server = proxy(&[peer.address.to_string()], |_| {});
    serves_files(&server, folder.path(), "lighttpd");
}

#[test]
fn nginx_serves_behind_the_proxy_by_http2_and_tls() {
    if !has(&["curl", "nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path());
    let (cert, key) = certificate(folder.path());
    let peer = nginx(folder.path(), &cert, &key, "");
    for (protocol, version) in
        [("", "HTTP/2.0"), ("&protocol=http2", "HTTP/2.0"), ("&protocol=http1", "HTTP/1.1")]
    {
        let server = proxy(&[format!("https://{}?ca={cert}{protocol}", peer.address)], |_| {});
        let at = |path| url(server.local_addrs()[0].address, path);
        assert_eq!(curl(&[&at("/version")]), version, "{protocol}");
        serves_files(&server, folder.path(), version);
    }
}

#[test]
fn nginx_stands_before_the_proxy_with_http2_and_tls() {
    if !has(&["curl", "nginx"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    pages(folder.path());
    let (cert, key) = certificate(folder.path());
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr().to_string()], |_| {});
    let next = server.local_addrs()[0].address;
    let location = format!(
        "location /b/ {{ proxy_pass http://{next}/; proxy_http_version 1.1; proxy_set_header Connection \"\"; }}"
    );
    let peer = nginx(folder.path(), &cert, &key, &location);
    let at = |path: &str| format!("https://{}/b{path}", peer.address);
    let asks = |more: &[&str]| curl(&[&["--cacert", &cert, "--http2"], more].concat());
    for _ in 0..3 {
        for path in ["/size/100000", "/chunked/100000/999", "/close-delimited/100000"] {
            assert_eq!(asks(&[&at(path), &at(path)]).len(), 200_000, "{path}");
        }
        assert_eq!(asks(&["-d", "hello", &at("/echo")]), "hello");
    }
    assert_eq!(server.handle().figures().requests_failed, 0);
}

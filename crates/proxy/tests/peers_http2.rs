//! HTTP/2 with clients of others: curl and h2load, with and without TLS.

#[path = "support/peers.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod peers;
#[path = "support/http2.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod support;

use std::process::{Command, Stdio};

use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{Server, Settings};
use peers::{curl, has, url};
use support::{Authority, proxy};

const MIB: usize = 1 << 20;

/// A proxy that speaks TLS to its clients, before a backend of HTTP/1.1 or HTTP/2.
fn encrypted(backend: &str, authority: &Authority) -> Server {
    proxy(&[backend.to_owned()], |settings: &mut Settings| {
        let pair = authority.write("front.test");
        settings.listen = vec!["https://127.0.0.1:0".to_owned()];
        settings.tls.certificate = pair.certificate;
        settings.tls.key = pair.key;
    })
}

#[test]
fn curl_speaks_http2_with_and_without_tls() {
    if !has(&["curl"]) {
        return;
    }
    let authority = Authority::new();
    let ca = authority.ca().display().to_string();
    let one = Backend::spawn(Serve::Http);
    let two = Backend::spawn(Serve::Http2);
    for backend in [one.addr().to_string(), format!("h2c://{}", two.addr())] {
        let plain = proxy(std::slice::from_ref(&backend), |_| {});
        let tls = encrypted(&backend, &authority);
        let port = tls.local_addrs()[0].address.port();
        let resolve = format!("front.test:{port}:127.0.0.1");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("body");
        std::fs::write(&file, "y".repeat(MIB)).unwrap();
        let body = format!("@{}", file.display());
        for (options, base) in [
            (vec!["--http2-prior-knowledge"], url(plain.local_addrs()[0].address, "")),
            (vec!["--http2", "--cacert", &ca, "--resolve", &resolve], format!("https://front.test:{port}")),
            // Who knows no better gets HTTP/1.1 on the same port.
            (vec!["--http1.1", "--cacert", &ca, "--resolve", &resolve], format!("https://front.test:{port}")),
        ] {
            let version = if options[0] == "--http1.1" { "1.1" } else { "2" };
            let at = |path: &str| format!("{base}{path}");
            let run = |more: &[&str]| curl(&[&options[..], more].concat());
            assert_eq!(
                run(&["-o", "/dev/null", "-w", "%{http_version}", &at("/size/9")]),
                version,
                "{backend}"
            );
            assert_eq!(run(&[&at("/size/1048576")]).len(), MIB, "{backend} {version}");
            // curl 7.88 fails at a second request on a connection without TLS, whoever serves it.
            if options[0] != "--http2-prior-knowledge" {
                assert_eq!(
                    run(&[&at("/size/1048576"), &at("/size/100")]).len(),
                    MIB + 100,
                    "{backend} {version}"
                );
                let many = at("/size/1000?[1-20]");
                assert_eq!(run(&["--parallel", &many]).len(), 20_000, "{backend} {version}");
            }
            assert_eq!(run(&["--data-binary", &body, &at("/echo")]).len(), MIB, "{backend} {version}");
            // The scripted backend of HTTP/2 knows no HEAD.
            if backend.starts_with("127.") {
                let head = run(&["-I", &at("/size/7")]).to_lowercase();
                assert!(head.contains("content-length: 7"), "{head}");
            }
            assert_eq!(run(&["-o", "/dev/null", "-w", "%{http_code}", &at("/status/404")]), "404");
        }
        for server in [&plain, &tls] {
            assert_eq!(server.handle().figures().requests_failed, 0);
        }
    }
}

#[test]
fn h2load_fails_in_nothing() {
    if !has(&["h2load"]) {
        return;
    }
    let authority = Authority::new();
    let one = Backend::spawn(Serve::Http);
    let two = Backend::spawn(Serve::Http2);
    for backend in [one.addr().to_string(), format!("h2c://{}", two.addr())] {
        let (plain, tls) = (proxy(std::slice::from_ref(&backend), |_| {}), encrypted(&backend, &authority));
        for (server, scheme) in [(&plain, "http"), (&tls, "https")] {
            for (clients, streams) in [("1", "1"), ("10", "10"), ("4", "100")] {
                let target = format!("{scheme}://{}/size/1000", server.local_addrs()[0].address);
                let output = Command::new("h2load")
                    .args(["-n", "2000", "-c", clients, "-m", streams, &target])
                    .stdin(Stdio::null())
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let wanted = "2000 succeeded, 0 failed, 0 errored, 0 timeout";
                assert!(text.contains(wanted), "{backend} {scheme} -c {clients} -m {streams}: {text}");
            }
            assert_eq!(server.handle().figures().requests, 6000);
        }
    }
    assert!(two.stats().connections < 60, "{:?}: connections carry many requests", two.stats());
}

//! Backends that come and go while clients are served.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use forebay_proxy::{
    DiscoverySettings, HealthSettings, OnRemoved, ProxyConfig, Server, Settings, Source, StartError, start,
};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(20);

/// A backend that says its name, then sends back what it gets.
fn backend(name: u8) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                let _ = stream.write_all(&[name]);
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// Replaces the list, as careful programs do.
fn list(path: &Path, backends: &[SocketAddr]) {
    let all: Vec<_> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let beside = path.with_extension("new");
    fs::write(&beside, format!("{{\"endpoints\":[{}]}}", all.join(","))).unwrap();
    fs::rename(beside, path).unwrap();
}

fn proxy(file: &Path) -> Result<Server, StartError> {
    with(OnRemoved::Drain, |discovery| file.clone_into(&mut discovery.file))
}

fn with(on_removed: OnRemoved, change: impl FnOnce(&mut DiscoverySettings)) -> Result<Server, StartError> {
    let mut settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        workers: 1,
        health: HealthSettings { on_removed, ..HealthSettings::default() },
        ..Settings::default()
    };
    change(&mut settings.discovery);
    start(ProxyConfig::new(&settings, 1).unwrap())
}

/// Connects, and returns which backend it came to.
fn client(server: &Server) -> (TcpStream, u8) {
    let mut stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut name = [0];
    stream.read_exact(&mut name).unwrap();
    (stream, name[0])
}

fn echoes(stream: &mut TcpStream) {
    stream.write_all(b"hello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_new_list_serves_new_clients_and_leaves_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.json");
    let (a, b) = (backend(b'a'), backend(b'b'));
    list(&path, &[a]);
    let server = proxy(&path).unwrap();
    assert!(server.handle().is_ready());
    assert_eq!(server.handle().discovery().unwrap().source, Source::File);
    let (mut old, name) = client(&server);
    assert_eq!(name, b'a');
    for (backends, name) in [([b], b'b'), ([a], b'a'), ([b], b'b')] {
        list(&path, &backends);
        // No client fails meanwhile: the listener stays, and the backends of both lists are there.
        until("the new backend", || client(&server).1 == name);
        assert_eq!(client(&server).1, name);
    }
    echoes(&mut old);
    let stats = server.handle().discovery().unwrap();
    assert_eq!((stats.changes, stats.backends, stats.failures), (3, 1, 0));
}

#[test]
fn a_proxy_without_its_list_does_not_start_and_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.json");
    let problem = proxy(&path).unwrap_err().to_string();
    assert!(problem.contains("endpoints.json: there is no such file: write"), "{problem}");
}

#[test]
fn connections_to_a_backend_that_is_removed_end_or_stay_as_the_setting_says() {
    for (setting, stays) in [(OnRemoved::Close, false), (OnRemoved::Drain, true)] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints.json");
        let (a, b) = (backend(b'a'), backend(b'b'));
        list(&path, &[a, b]);
        let server = with(setting, |discovery| discovery.file.clone_from(&path)).unwrap();
        let mut held: Vec<_> = (0..4).map(|_| client(&server)).collect();
        list(&path, &[b]);
        until("the new list", || server.handle().discovery().unwrap().changes == 1);
        until("who is cut is gone", || server.handle().figures().clients == if stays { 4 } else { 2 });
        assert_eq!(server.handle().figures().cut, if stays { 0 } else { 2 });
        for (stream, name) in &mut held {
            match *name == b'b' || stays {
                true => echoes(stream),
                false => assert!(stream.read(&mut [0; 1]).is_err(), "it ends with a reset"),
            }
        }
    }
}

#[test]
fn an_empty_list_leaves_clients_nobody_only_if_that_is_allowed() {
    for allow_empty in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("endpoints.json");
        list(&path, &[backend(b'a')]);
        let server = with(OnRemoved::Close, |discovery| {
            discovery.file.clone_from(&path);
            discovery.allow_empty = allow_empty;
        })
        .unwrap();
        assert_eq!(client(&server).1, b'a');
        list(&path, &[]);
        until("the empty list is seen", || server.handle().discovery().unwrap().empty == 1);
        let is_served = || {
            let mut stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_exact(&mut [0]).is_ok()
        };
        match allow_empty {
            false => assert!(is_served()),
            true => until("nobody is served", || !is_served()),
        }
    }
}

//! Backends that die, vanish from the network or are replaced while clients are served, in both modes.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use forebay::sys::netns::{NetNamespace, REQUIRE};
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{CheckKind, Mode, OnRemoved, ProxyConfig, Server, Settings, start};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(15);

fn proxy(backends: &[SocketAddr], mode: Mode, change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        mode,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: backends.iter().map(ToString::to_string).collect(),
        workers: 2,
        ..Settings::default()
    };
    change(&mut settings);
    start(ProxyConfig::new(&settings, 2).unwrap()).unwrap()
}

fn backend(mode: Mode) -> Backend {
    Backend::spawn(serve(mode))
}

fn serve(mode: Mode) -> Serve {
    if mode == Mode::Http { Serve::Http } else { Serve::Stamp }
}

/// Ends a load when it is dropped: a failed assertion must not wait for ever for those who load.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// A client, which asks again and again on its own connection.
struct Client {
    stream: TcpStream,
    mode: Mode,
}

impl Client {
    fn connect(address: SocketAddr, mode: Mode) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, mode })
    }

    /// Asks, and waits for the whole answer.
    fn ask(&mut self) -> io::Result<()> {
        let request: &[u8] = match self.mode {
            Mode::Http => b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
            _ => b"hello\n",
        };
        self.stream.write_all(request)?;
        let mut answer = Vec::new();
        loop {
            let mut buffer = [0; 1024];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => answer.extend_from_slice(&buffer[..n]),
            }
            let is_whole = match self.mode {
                Mode::Http => answer.ends_with(b"\r\n\r\nok"),
                _ => answer.ends_with(b"\n"),
            };
            if is_whole {
                return match self.mode == Mode::Http && !answer.starts_with(b"HTTP/1.1 200 ") {
                    true => Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())),
                    false => Ok(()),
                };
            }
            if answer.starts_with(b"HTTP/1.1 5") {
                return Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned()));
            }
        }
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not so: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Clients that keep coming: each asks a few times on one connection. Returns when each began, and what came of it.
fn load(server: &Server, mode: Mode, over: &AtomicBool) -> Vec<(Instant, io::Result<()>)> {
    let address = server.local_addrs()[0].address;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(move || {
                    let mut all = Vec::new();
                    while !over.load(SeqCst) {
                        let began = Instant::now();
                        let result = Client::connect(address, mode).and_then(|mut client| {
                            // A connection of opaque bytes cannot outlive its backend.
                            (0..if mode == Mode::Http { 5 } else { 1 }).try_for_each(|_| client.ask())
                        });
                        all.push((began, result));
                        thread::sleep(Duration::from_millis(2));
                    }
                    all
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn the_death_of_one_of_three_under_load_of_requests_fails_none_and_is_known_within_two_seconds() {
    let mut backends = vec![backend(Mode::Http), backend(Mode::Http), backend(Mode::Http)];
    let addresses: Vec<_> = backends.iter().map(Backend::addr).collect();
    // The defaults: checks each five seconds.
    let server = proxy(&addresses, Mode::Http, |_| {});
    let over = AtomicBool::new(false);
    let (results, death) = thread::scope(|scope| {
        let loading = scope.spawn(|| load(&server, Mode::Http, &over));
        let ends = Ends(&over);
        thread::sleep(Duration::from_millis(500));
        let death = Instant::now();
        let dead = backends.remove(1);
        let served = dead.stats().requests;
        drop(dead);
        thread::sleep(Duration::from_secs(2));
        let vain = server.handle().figures().tried_in_vain;
        thread::sleep(Duration::from_secs(1));
        assert_eq!(server.handle().figures().tried_in_vain, vain, "the dead one is still tried");
        assert!(served > 50, "it had served {served}");
        drop(ends);
        (loading.join().unwrap(), death)
    });
    let after = results.iter().filter(|(began, _)| *began > death + Duration::from_millis(50));
    let failed: Vec<_> = after.clone().filter(|(_, result)| result.is_err()).collect();
    assert!(after.count() > 200);
    assert!(failed.is_empty(), "{failed:?}");
}

/// Replaces the list, as careful programs do.
fn list(path: &Path, backends: &[SocketAddr]) {
    let beside = path.with_extension("new");
    let all: Vec<_> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    std::fs::write(&beside, format!("{{\"endpoints\":[{}]}}", all.join(","))).unwrap();
    std::fs::rename(beside, path).unwrap();
}

const RELOADS: u64 = 100;

fn reloads_fail_nobody(mode: Mode) {
    let backends: Vec<_> = (0..4).map(|_| backend(mode)).collect();
    let all: Vec<_> = backends.iter().map(Backend::addr).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("endpoints.json");
    list(&path, &all[..1]);
    let server = proxy(&[], mode, |settings| {
        settings.discovery.file.clone_from(&path);
        settings.health.on_removed = OnRemoved::Drain;
    });
    // It comes to the one backend that stays on every list.
    let mut held = Client::connect(server.local_addrs()[0].address, mode).unwrap();
    held.ask().unwrap();
    let over = AtomicBool::new(false);
    let results = thread::scope(|scope| {
        let loading = scope.spawn(|| load(&server, mode, &over));
        let ends = Ends(&over);
        for n in 1..=RELOADS {
            // Three of four, others each time, in an order that differs.
            let other = |k: u64| all[1 + ((n + k) % 3) as usize];
            list(&path, &[other(0), all[0], other(1)]);
            until("the new list is taken", || server.handle().discovery().unwrap().changes >= n);
            let now = server.handle().discovered().unwrap();
            assert!(now.len() == 3 && !now.iter().any(|one| one.address == other(2)), "{now:?}");
        }
        drop(ends);
        loading.join().unwrap()
    });
    let failed: Vec<_> = results.iter().filter(|(_, result)| result.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), results.len());
    assert!(results.len() > 1000, "{}", results.len());
    held.ask().unwrap();
    let stats = server.handle().discovery().unwrap();
    assert_eq!((stats.changes, stats.failures, stats.empty), (RELOADS, 0, 0));
    assert!(backends.iter().all(|backend| backend.stats().requests > 50), "each was used");
}

#[test]
fn a_hundred_new_lists_under_load_of_connections_fail_nobody() {
    reloads_fail_nobody(Mode::Opaque);
}

#[test]
fn a_hundred_new_lists_under_load_of_requests_fail_nobody() {
    reloads_fail_nobody(Mode::Http);
}

/// Two networks, joined by a cable: this thread's, and the other's.
struct Cable {
    far: NetNamespace,
}

const HERE: &str = "10.77.0.1";
const THERE: &str = "10.77.0.2";

impl Cable {
    /// Joins the network of this thread with a new one.
    fn lay() -> Option<Self> {
        let far = NetNamespace::for_test(30_000..=40_000)?;
        // The name of a network is a thread in it: one that waits until the cable is laid.
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        thread::scope(|scope| {
            let far = &far;
            scope.spawn(move || {
                far.run(move || {
                    tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
                    let _ = ended.recv();
                });
            });
            let place = Path::new("/proc").join(told.recv().unwrap()).join("ns/net");
            ip("link add near type veth peer name far");
            ip(&format!("link set far netns {}", place.display()));
            drop(end);
        });
        ip(&format!("address add {HERE}/24 dev near"));
        ip("link set near up");
        far.run(|| {
            ip(&format!("address add {THERE}/24 dev far"));
            ip("link set far up");
        });
        Some(Self { far })
    }

    /// Pulls the plug: what is sent there from now on is lost.
    fn cut(&self) {
        self.far.run(|| ip("link set far down"));
    }
}

/// Runs `ip` (Debian: iproute2), inside the namespace of the calling thread.
fn ip(arguments: &str) {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let status = Command::new("ip").args(arguments.split(' ')).env("PATH", path).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Whether `ip` is there. Says why a test is skipped if not; in CI that is a failure.
fn has_ip() -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v ip"])
        .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
    assert!(found || !required, "{REQUIRE}=1, but ip is not installed");
    if !found {
        eprintln!("skipped: ip is not installed");
    }
    found
}

/// Runs a test in a network of its own, joined with another one.
fn with_cable(test: impl FnOnce(&Cable) + Send) {
    let Some(near) = NetNamespace::for_test(30_000..=40_000) else { return };
    if !has_ip() {
        return;
    }
    near.run(|| test(&Cable::lay().expect("a second namespace after the first")));
}

fn far_backend(cable: &Cable, mode: Mode) -> Backend {
    let address = format!("{THERE}:5301").parse().unwrap();
    cable.far.run(|| Backend::builder().serve(serve(mode)).listen(address).spawn().unwrap())
}

const USER_TIMEOUT: Duration = Duration::from_millis(1500);

fn a_backend_vanishes(mode: Mode) {
    with_cable(|cable| {
        let (far, near) = (far_backend(cable, mode), backend(mode));
        let server = proxy(&[far.addr(), near.addr()], mode, |settings| {
            settings.workers = 1;
            settings.connections.user_timeout.0 = USER_TIMEOUT;
            settings.connections.connect_timeout.0 = Duration::from_millis(300);
            settings.spares.max = 0;
            // Clients alone find out.
            settings.health.check = CheckKind::None;
            settings.health.failures = 2;
        });
        let address = server.local_addrs()[0].address;
        let mut clients: Vec<_> = (0..2).map(|_| Client::connect(address, mode).unwrap()).collect();
        clients.iter_mut().for_each(|client| client.ask().unwrap());
        assert_eq!((far.stats().requests, near.stats().requests), (1, 1), "each has one of the connections");
        cable.cut();
        let heard: Vec<_> = thread::scope(|scope| {
            let asking = clients.iter_mut().map(|client| {
                scope.spawn(move || {
                    let began = Instant::now();
                    (client.ask(), began.elapsed())
                })
            });
            asking.collect::<Vec<_>>().into_iter().map(|one| one.join().unwrap()).collect()
        });
        let limit = USER_TIMEOUT + Duration::from_secs(1);
        assert!(heard.iter().all(|(_, took)| *took < limit), "{heard:?}");
        assert!(heard.iter().any(|(result, _)| result.is_ok()), "who is elsewhere is served: {heard:?}");
        if mode == Mode::Opaque {
            let lost = heard.iter().filter(|(result, _)| result.is_err());
            assert!(lost.clone().count() == 1 && lost.into_iter().all(|(_, took)| *took > USER_TIMEOUT / 2));
        }
        // New ones go elsewhere: at first after a try, soon at once.
        for _ in 0..6 {
            let began = Instant::now();
            Client::connect(address, mode).unwrap().ask().unwrap();
            assert!(began.elapsed() < Duration::from_millis(800), "{:?}", began.elapsed());
        }
        for _ in 0..6 {
            let began = Instant::now();
            Client::connect(address, mode).unwrap().ask().unwrap();
            assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
        }
    });
}

#[test]
fn a_connection_to_a_backend_that_vanishes_ends_within_the_user_timeout() {
    a_backend_vanishes(Mode::Opaque);
}

#[test]
fn a_request_to_a_backend_that_vanishes_is_answered_within_the_user_timeout() {
    a_backend_vanishes(Mode::Http);
}

/// Who only listens hears of it by keepalive, as soon as that setting says.
#[test]
fn who_only_listens_to_a_backend_that_vanishes_hears_of_it_by_keepalive() {
    with_cable(|cable| {
        let far = far_backend(cable, Mode::Opaque);
        let with = |seconds| {
            let server = proxy(&[far.addr()], Mode::Opaque, |settings| {
                settings.connections.keepalive.0 = Duration::from_secs(seconds);
                settings.connections.user_timeout.0 = USER_TIMEOUT;
                settings.spares.max = 0;
                settings.health.check = CheckKind::None;
            });
            let mut client = Client::connect(server.local_addrs()[0].address, Mode::Opaque).unwrap();
            client.ask().unwrap();
            (server, client)
        };
        let (soon, mut by_soon) = with(3);
        let (late, by_late) = with(60);
        cable.cut();
        let began = Instant::now();
        assert!(by_soon.stream.read(&mut [0; 1]).is_err());
        let took = began.elapsed();
        assert!(took > Duration::from_secs(2) && took < Duration::from_secs(8), "{took:?}");
        until("it is counted", || soon.handle().figures().failed_backend == 1);
        assert_eq!((late.handle().figures().failed_backend, late.handle().figures().clients), (0, 1));
        drop(by_late);
    });
}

/// A client that vanishes: one that is sent something by `user_timeout`, one that is not by `keepalive`.
#[test]
fn a_client_that_vanishes_is_given_up_as_its_settings_say() {
    with_cable(|cable| {
        let hang = Backend::spawn(Serve::Hang);
        let (ticker, silent) = (ticker(), hang.addr());
        let with = |backend: SocketAddr, user_timeout: Duration, keepalive: u64| {
            let server = proxy(&[backend], Mode::Opaque, |settings| {
                settings.listen = vec![format!("{HERE}:0")];
                settings.clients.user_timeout.0 = user_timeout;
                settings.clients.keepalive.0 = Duration::from_secs(keepalive);
                settings.spares.max = 0;
            });
            let address = server.local_addrs()[0].address;
            let client = cable.far.run(|| Client::connect(address, Mode::Opaque).unwrap());
            until("it is there", || server.handle().figures().clients == 1);
            (server, client)
        };
        let minute = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        let (talking, patient) = (with(ticker, second, 60), with(ticker, minute, 60));
        let (asking, waiting) = (with(silent, second, 3), with(silent, second, 60));
        thread::sleep(Duration::from_millis(200));
        cable.cut();
        let began = Instant::now();
        until("who is sent something is given up", || clients(&talking) == 0);
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        until("who is silent is given up", || clients(&asking) == 0);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        assert_eq!((clients(&patient), clients(&waiting)), (1, 1), "others have more patience");
    });
}

fn clients(server: &(Server, Client)) -> u64 {
    server.0.handle().figures().clients
}

/// A backend that says something all the time.
fn ticker() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                while stream.write_all(b"x").is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            });
        }
    });
    address
}

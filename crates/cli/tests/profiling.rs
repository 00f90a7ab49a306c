//! Profiles of the running command: what they say, and that they disturb nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use forebay_bench::dns::{self, DnsLoad, DnsReport, Verify};
use forebay_bench::responder::Responder;
use prost::Message;

/// As much of profile.proto as is looked at here, read by other types than those that wrote it.
#[derive(Clone, PartialEq, Message)]
struct Pprof {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<Pair>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(message, repeated, tag = "4")]
    location: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    function: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Pair {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    value: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    label: Vec<Pair>,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, repeated, tag = "4")]
    line: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
}

impl Pprof {
    fn read(packed: &[u8]) -> Self {
        let mut bytes = Vec::new();
        GzDecoder::new(packed).read_to_end(&mut bytes).expect("gzip");
        Self::decode(&*bytes).expect("a profile")
    }

    fn text(&self, number: i64) -> &str {
        &self.string_table[number as usize]
    }

    /// The sum of the first value of each function, with what it called.
    fn by_function(&self) -> BTreeMap<&str, i64> {
        let names: BTreeMap<u64, &str> =
            self.function.iter().map(|one| (one.id, self.text(one.name))).collect();
        let places: BTreeMap<u64, &Location> = self.location.iter().map(|one| (one.id, one)).collect();
        let mut sums = BTreeMap::new();
        for sample in &self.sample {
            let lines = sample.location.iter().flat_map(|id| &places[id].line);
            let functions: BTreeSet<&str> = lines.map(|line| names[&line.function]).collect();
            for function in functions {
                *sums.entry(function).or_default() += sample.value[0];
            }
        }
        sums
    }

    fn threads(&self) -> BTreeSet<&str> {
        self.sample.iter().flat_map(|sample| &sample.label).map(|label| self.text(label.value)).collect()
    }

    fn samples(&self) -> i64 {
        self.sample.iter().map(|sample| sample.value[0]).sum()
    }
}

/// A forwarder with its upstream; killed when dropped.
struct Running {
    child: Child,
    listen: SocketAddr,
    admin: String,
    _upstream: Responder,
}

impl Running {
    fn start(admin: &str, variables: &[(&str, &str)]) -> Self {
        let upstream = Responder::builder().spawn().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args([
                "dns",
                "--listen",
                "127.0.0.1:0",
                "--workers",
                "1",
                "--admin",
                admin,
                "--log-format",
                "json",
            ])
            .args(["--upstream", &upstream.addr().to_string()])
            .env_remove("FOREBAY_ADMIN_TOKEN")
            .env_remove("_RJEM_MALLOC_CONF")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let ready = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "it ended before it was ready");
            let event: serde_json::Value = serde_json::from_str(&line).expect("a line of the log is JSON");
            if event["message"] == "dns is ready" {
                break event;
            }
        };
        let listen = ready["listen"].as_str().unwrap().parse().unwrap();
        let admin = ready["admin"].as_str().unwrap().trim_start_matches("http://").to_owned();
        Self { child, listen, admin, _upstream: upstream }
    }

    fn ask(&self, method: &str, path: &str) -> (u16, Vec<u8>) {
        ask(&self.admin, method, path)
    }

    fn refused(&self, method: &str, path: &str) -> (u16, String) {
        let (status, body) = self.ask(method, path);
        (status, String::from_utf8(body).unwrap())
    }

    /// Puts on it what one thread can, until told to stop.
    fn load(&self, stop: &Arc<AtomicBool>) -> thread::JoinHandle<DnsReport> {
        let load = DnsLoad {
            duration: Some(Duration::from_secs(120)),
            in_flight: 32,
            clients: 16,
            timeout: Duration::from_secs(5),
            verify: Verify::Derived,
            ..DnsLoad::new(self.listen)
        };
        let stop = Arc::clone(stop);
        thread::spawn(move || {
            let go_on = |_: &_| match stop.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            dns::run(&load, go_on).unwrap()
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ask(admin: &str, method: &str, path: &str) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(admin).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(100))).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: admin\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(at + 4))
}

#[test]
fn twenty_profiles_under_full_load_name_our_functions_and_lose_no_query() {
    let running = Running::start("127.0.0.1:0", &[]);
    let stop = Arc::new(AtomicBool::new(false));
    let load = running.load(&stop);
    let (mut samples, mut names, mut threads) = (0, BTreeSet::new(), BTreeSet::new());
    for turn in 0..20 {
        if turn % 5 == 4 {
            let (status, svg) = running.ask("GET", "/debug/pprof/flamegraph?seconds=1&hz=999");
            let svg = String::from_utf8(svg).unwrap();
            assert!(
                status == 200 && svg.starts_with("<svg ") && svg.contains("forebay_dns"),
                "{status}: {svg}"
            );
            continue;
        }
        let hz = if turn % 2 == 0 { 99 } else { 999 };
        let (status, body) = running.ask("GET", &format!("/debug/pprof/profile?seconds=1&hz={hz}"));
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let profile = Pprof::read(&body);
        samples += profile.samples();
        names.extend(profile.by_function().keys().map(|name| (*name).to_owned()));
        threads.extend(profile.threads().iter().map(|name| (*name).to_owned()));
    }
    stop.store(true, Ordering::Relaxed);
    let report = load.join().unwrap();
    assert_eq!((report.lost, report.wrong), (0, 0), "{report}");
    assert!(report.answered > 1000, "{report}");
    assert!(samples >= 200, "{samples} samples in twenty seconds of load");
    for name in ["forebay_dns::worker", "forebay_dns_core::"] {
        assert!(names.iter().any(|one| one.contains(name)), "{name} is not among {names:?}");
    }
    assert!(threads.iter().any(|name| name.starts_with("dns")), "{threads:?}");
    assert!(!threads.contains("profiler"), "{threads:?}");
    // What took the samples is gone.
    if let Ok(timers) = fs::read_to_string(format!("/proc/{}/timers", running.child.id())) {
        assert_eq!(timers, "");
    }
}

#[test]
fn one_profile_is_taken_at_a_time_and_ends_when_whoever_asked_leaves() {
    let running = Running::start("127.0.0.1:0", &[]);
    let mut first = TcpStream::connect(&running.admin).unwrap();
    write!(first, "GET /debug/pprof/profile?seconds=60 HTTP/1.1\r\nHost: admin\r\n\r\n").unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    // The first may not have begun yet.
    let (mut status, mut body) = (200, String::new());
    while status == 200 && Instant::now() < deadline {
        (status, body) = match running.ask("GET", "/debug/pprof/flamegraph?seconds=1") {
            (200, _) => (200, String::new()),
            (status, body) => (status, String::from_utf8(body).unwrap()),
        };
    }
    assert_eq!((status, body.as_str()), (409, "a profile is being taken: ask again when it is done\n"));
    drop(first);
    while running.ask("GET", "/debug/pprof/profile?seconds=1").0 != 200 {
        assert!(Instant::now() < deadline, "the first goes on");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn nothing_is_sampled_until_somebody_asks() {
    let running = Running::start("127.0.0.1:0", &[]);
    let catches_sigprof = || {
        let status = fs::read_to_string(format!("/proc/{}/status", running.child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        u64::from_str_radix(caught, 16).unwrap() & 1 << (27 - 1) != 0
    };
    assert!(!catches_sigprof());
    assert_eq!(running.ask("GET", "/debug/pprof/profile?seconds=1").0, 200);
    assert!(catches_sigprof(), "it was by that signal");
}

#[test]
fn without_an_admin_endpoint_nothing_listens_for_profiles() {
    let running = Running::start("none", &[]);
    assert_eq!(running.admin, "none");
    // Sockets of this process that listen for TCP: the forwarder's one.
    let sockets: BTreeSet<String> = fs::read_dir(format!("/proc/{}/fd", running.child.id()))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
        .collect();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let listening = table.lines().skip(1).map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let ours: Vec<_> = listening
        .filter(|fields| fields[3] == "0A" && sockets.contains(fields[9]))
        .map(|f| f[1].to_owned())
        .collect();
    let port = format!("0100007F:{:04X}", running.listen.port());
    assert_eq!(ours, [port]);
}

#[test]
fn the_heap_is_shown_once_it_is_noted() {
    let running = Running::start("127.0.0.1:0", &[]);
    let heap = "/debug/pprof/heap";
    let (status, remedy) = running.refused("GET", heap);
    assert!(status == 403 && remedy.contains("POST /debug/pprof/heap?active=true"), "{status}: {remedy}");
    let (status, problem) = running.refused("POST", &format!("{heap}?active=yes"));
    assert!(status == 400 && problem.contains("`active=yes` is neither"), "{status}: {problem}");
    assert_eq!(running.refused("POST", &format!("{heap}?active=true")).0, 200);
    let (status, problem) = running.refused("GET", &format!("{heap}?seconds=1"));
    assert!(status == 400 && problem.contains("`seconds=1`"), "{status}: {problem}");
    // Sockets of clients and their buffers are memory that stays.
    let streams: Vec<_> = (0..400).map(|_| TcpStream::connect(running.listen).unwrap()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let load = running.load(&stop);
    let deadline = Instant::now() + Duration::from_secs(20);
    let profile = loop {
        thread::sleep(Duration::from_millis(100));
        let (status, body) = running.ask("GET", heap);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        let profile = Pprof::read(&body);
        if profile.by_function().keys().any(|name| name.contains("forebay")) {
            break profile;
        }
        assert!(Instant::now() < deadline, "{:?}", profile.by_function());
    };
    stop.store(true, Ordering::Relaxed);
    load.join().unwrap();
    drop(streams);
    let types: Vec<_> =
        profile.sample_type.iter().map(|one| (profile.text(one.key), profile.text(one.value))).collect();
    assert_eq!(types, [("inuse_objects", "count"), ("inuse_space", "bytes")]);
    assert!(
        profile.sample.iter().all(|sample| sample.value.len() == 2 && sample.value[1] >= sample.value[0])
    );
    assert_eq!(running.refused("POST", &format!("{heap}?active=false")).0, 200);
    assert_eq!(running.ask("GET", heap).0, 403);
}

#[test]
fn an_allocator_without_profiles_says_how_to_start_it_with_them() {
    let running = Running::start("127.0.0.1:0", &[("_RJEM_MALLOC_CONF", "prof:false")]);
    for method in ["GET", "POST"] {
        let path = if method == "GET" { "/debug/pprof/heap" } else { "/debug/pprof/heap?active=true" };
        let (status, remedy) = running.refused(method, path);
        assert!(status == 403 && remedy.contains("_RJEM_MALLOC_CONF=prof:true"), "{status}: {remedy}");
    }
}

//! Servers that end in the middle of a load: what was measured by then is kept, and marked.

use std::ops::ControlFlow;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use forebay_bench::backend::{Backend, Serve};
use forebay_bench::dns::{self, DnsLoad, Transport};
use forebay_bench::http::{self, HttpLoad};
use forebay_bench::responder::Responder;
use forebay_bench::tcp::{self, Pattern, TcpLoad};

/// How long a server lives.
const LIFE: Duration = Duration::from_millis(500);

/// How long there is load.
const LOAD: Option<Duration> = Some(Duration::from_millis(1500));

/// When a request has failed.
const TIMEOUT: Duration = Duration::from_millis(200);

/// Runs a load while `server` ends in the middle of it.
fn while_dying<S: Send, R>(server: S, load: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(LIFE);
            drop(server);
        });
        load()
    })
}

#[track_caller]
fn assert_half(what: &str, partial: Option<&str>, answered: u64, has_latency: bool) {
    let partial = partial.unwrap_or_else(|| panic!("{what}: not marked"));
    assert!(
        partial.starts_with("no answer after 0.") && partial.contains("/s until then"),
        "{what}: {partial}"
    );
    assert!(answered > 0 && has_latency, "{what}: what was measured is gone");
}

#[test]
fn a_dns_server_that_ends_leaves_half_a_report_over_both_transports() {
    for (transport, rate) in
        [(Transport::Udp, None), (Transport::Udp, Some(2000.0)), (Transport::Tcp, Some(2000.0))]
    {
        let server = Responder::builder().spawn().unwrap();
        let load =
            DnsLoad { transport, rate, duration: LOAD, timeout: TIMEOUT, ..DnsLoad::new(server.addr()) };
        let report = while_dying(server, || dns::run(&load, |_| ControlFlow::Continue(())).unwrap());
        let what = format!("{transport:?}");
        assert_half(&what, report.partial.as_deref(), report.answered, report.latency.is_some());
        assert!(report.to_string().contains("\npartial     no answer after 0."), "{report}");
    }
}

#[test]
fn an_http_server_that_ends_leaves_half_a_report_by_both_protocols() {
    for (serve, http2) in [(Serve::Http, false), (Serve::Http2, true)] {
        let server = Backend::spawn(serve);
        let load = HttpLoad {
            http2,
            clients: 4,
            pool: Some(4),
            rate: Some(500.0),
            duration: LOAD,
            timeout: TIMEOUT,
            ..HttpLoad::new(format!("http://{}/size/10", server.addr()).parse().unwrap())
        };
        let report = while_dying(server, || http::run(&load).unwrap());
        let figures = &report.figures;
        assert_half(report.protocol, figures.partial.as_deref(), figures.answered, figures.latency.is_some());
        assert!(report.to_string().contains("\npartial     no answer after 0."), "{report}");
    }
}

#[test]
fn a_tcp_server_that_ends_leaves_half_a_report_in_every_pattern() {
    for (pattern, pool) in [(Pattern::Kept, None), (Pattern::Connect, None), (Pattern::Connect, Some(2))] {
        let server = Backend::spawn(Serve::Echo);
        let load = TcpLoad {
            pattern,
            pool,
            clients: 4,
            rate: Some(500.0),
            duration: LOAD,
            timeout: TIMEOUT,
            ..TcpLoad::new(server.addr())
        };
        let report = while_dying(server, || tcp::run(&load).unwrap());
        let figures = &report.figures;
        let what = format!("{pattern:?} {pool:?}");
        assert_half(&what, figures.partial.as_deref(), figures.answered, figures.latency.is_some());
    }
}

/// A process that may be called a server's, since only its CPU time is looked at.
fn process() -> Child {
    Command::new("sleep").arg("100").stdin(Stdio::null()).spawn().expect("sleep runs")
}

/// Ends it while there is load.
fn end(mut process: Child) {
    thread::sleep(Duration::from_millis(200));
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn a_process_that_ends_costs_its_cpu_time_and_no_more() {
    let duration = Some(Duration::from_millis(500));
    let is_told = |partial: &Option<String>| {
        partial
            .as_deref()
            .is_some_and(|why| why.starts_with("the server's process ended: cannot read the CPU"))
    };
    let (server, child) = (Responder::builder().spawn().unwrap(), process());
    let server_pid = Some(child.id() as i32);
    let load = DnsLoad { rate: Some(500.0), duration, server_pid, ..DnsLoad::new(server.addr()) };
    let report = thread::scope(|scope| {
        scope.spawn(move || end(child));
        dns::run(&load, |_| ControlFlow::Continue(())).unwrap()
    });
    assert!(is_told(&report.partial), "{report}");
    assert_eq!((report.server, report.lost), (None, 0), "{report}");

    let (server, child) = (Backend::spawn(Serve::Http), process());
    let server_pid = Some(child.id() as i32);
    let url = format!("http://{}/size/10", server.addr()).parse().unwrap();
    let load = HttpLoad { rate: Some(500.0), duration, server_pid, ..HttpLoad::new(url) };
    let report = thread::scope(|scope| {
        scope.spawn(move || end(child));
        http::run(&load).unwrap()
    });
    assert!(is_told(&report.figures.partial), "{report}");
    assert_eq!((report.figures.server_cpu_seconds, report.figures.failed), (None, 0), "{report}");
}

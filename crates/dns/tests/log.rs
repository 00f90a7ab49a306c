//! What the log says of connections.

mod support;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_bench::responder::{Responder, Script};
use forebay_dns::{Settings, StreamSettings};
use support::{Udp, query, run, settings};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn wait_for(&self, what: &str) {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let text =
                String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned();
            if text.contains(what) {
                return;
            }
            assert!(Instant::now() < end, "`{what}` is not in\n{text}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn connections_made_reused_when_full_cleaned_up_and_closed_are_told_at_debug_level() {
    let lines = Lines::default();
    let writer = lines.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .init();
    let script = Script { delay: Duration::from_millis(50), ..Script::default() };
    let upstream = Responder::builder().script(script).spawn().expect("a free port");
    let stream = StreamSettings {
        connections_max: 1,
        capacity: 1,
        idle_timeout: Span(Duration::from_millis(200)),
        ..StreamSettings::default()
    };
    let upstreams = vec![format!("tcp://{}", upstream.addr())];
    let server = run(&Settings { upstreams, stream, ..settings(&[&upstream]) });
    let client = Udp::to(server.address);
    for n in 0..3 {
        client.send(&query(n, &format!("n{n}.test"), 1, None));
    }
    for _ in 0..3 {
        client.recv();
    }
    lines.wait_for("connection made");
    lines.wait_for("pool full: its connections are reused");
    lines.wait_for("idle connection cleaned up");
    assert_eq!(support::rcode(&client.ask("another.test")), 0);
    drop(server);
    lines.wait_for("connection closed");
    lines.wait_for(&format!("endpoint=\"tcp://{}\"", upstream.addr()));
}

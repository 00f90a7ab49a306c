//! Programs of others that run beside a test and end with it.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Whether these programs are there; if they must be, they are.
pub(crate) fn has(programs: &[&str]) -> bool {
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

/// A program that ends with its test.
pub(crate) struct Peer {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Peer {
    /// Starts a program that listens at this address, and waits until it does.
    pub(crate) fn start(program: &str, arguments: &[&str], address: SocketAddr) -> Self {
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
pub(crate) fn free_address() -> SocketAddr {
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

pub(crate) fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl").args(["-sS", "--max-time", "10"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

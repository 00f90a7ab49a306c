//! A network of one's own for tests: a namespace with loopback up and few local ports.
//!
//! Nothing is left behind: the namespace has no name, and ends with the last thread, process or handle in it.

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::thread;

/// Environment variable that turns a test that cannot run into one that fails, where it is `1`.
pub const REQUIRE: &str = "FOREBAY_REQUIRE_PEERS";

/// A network namespace.
#[derive(Debug)]
pub struct NetNamespace {
    handle: File,
}

impl NetNamespace {
    /// Makes a namespace whose loopback is up, with `ports` as `ip_local_port_range`.
    ///
    /// # Errors
    ///
    /// `EPERM` without root (`CAP_SYS_ADMIN`); those of `unshare(2)` and of writing to `/proc`.
    pub fn new(ports: RangeInclusive<u16>) -> io::Result<Self> {
        let make = move || {
            // SAFETY: takes no pointer; it concerns the calling thread only, which was started for this.
            super::check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
            loopback_up()?;
            fs::write(
                "/proc/sys/net/ipv4/ip_local_port_range",
                format!("{} {}", ports.start(), ports.end()),
            )?;
            File::open("/proc/thread-self/ns/net")
        };
        let handle = thread::Builder::new().spawn(make)?.join().expect("the thread does not panic")?;
        Ok(Self { handle })
    }

    /// Makes a namespace for a test, or says on standard error why it is skipped and returns `None`.
    ///
    /// # Panics
    ///
    /// Instead of skipping, when the environment variable [`REQUIRE`] is `1`.
    pub fn for_test(ports: RangeInclusive<u16>) -> Option<Self> {
        match Self::new(ports) {
            Ok(namespace) => Some(namespace),
            Err(error) => {
                let required = std::env::var_os(REQUIRE).is_some_and(|value| value == "1");
                assert!(!required, "{REQUIRE}=1, but no network namespace can be made: {error}");
                eprintln!("skipped: no network namespace can be made (root is needed): {error}");
                None
            }
        }
    }

    /// Runs `work` on a thread inside the namespace. Threads and processes that it starts are inside too.
    ///
    /// # Panics
    ///
    /// When the namespace cannot be entered, and when `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            // SAFETY: takes no pointer; the descriptor is open, and only the calling thread moves.
            super::check(unsafe { libc::setns(self.handle.as_raw_fd(), libc::CLONE_NEWNET) })
                .expect("a namespace of ours can be entered");
            work()
        };
        thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: `ifreq` is plain integers and a union of such, for which zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = *byte as libc::c_char;
    }
    // SAFETY: `request` is a valid `ifreq` with a name that ends in zero; the kernel fills in its flags.
    super::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: the call before has written this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: `request` is a valid `ifreq`, only read.
    super::check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) }).map(drop)
}

//! Waiting for many descriptors without a runtime, with time-outs finer than a millisecond.
//!
//! The servers wait with tokio; this is for what must not share their code or their jitter: load generators and
//! scripted upstreams.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Bytes to read, a connection to accept, or an end.
    Read,
    /// Also room to write.
    ReadWrite,
}

impl Interest {
    fn bits(self) -> u32 {
        match self {
            Self::Read => libc::EPOLLIN as u32,
            Self::ReadWrite => (libc::EPOLLIN | libc::EPOLLOUT) as u32,
        }
    }
}

/// What has happened to one descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The number that the descriptor was added with.
    pub token: u64,
    /// A read will not block: there are bytes, an end or an error.
    pub readable: bool,
    /// A write will not block.
    pub writable: bool,
}

/// A set of descriptors to wait for (level-triggered).
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
    raw: Vec<libc::epoll_event>,
}

impl Epoll {
    /// Makes an empty set that reports at most `events_max` descriptors at once.
    ///
    /// # Errors
    ///
    /// Those of `epoll_create1(2)`: no descriptor or memory left.
    pub fn new(events_max: usize) -> io::Result<Self> {
        // SAFETY: the call takes no pointer.
        let fd = super::check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` is open, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd, raw: vec![libc::epoll_event { events: 0, u64: 0 }; events_max.max(1)] })
    }

    /// Adds `fd`; `token` will name it in events. A descriptor that is closed leaves the set by itself.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: added already, or no memory.
    pub fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, &fd, token, interest)
    }

    /// Changes what is waited for.
    ///
    /// # Errors
    ///
    /// Those of `epoll_ctl(2)`: not in the set.
    pub fn modify(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, &fd, token, interest)
    }

    /// Waits until something happens or `timeout` has passed (`None` waits for ever), and returns what happened.
    ///
    /// # Errors
    ///
    /// Those of `epoll_pwait2(2)`, which needs Linux 5.11. A signal counts as a time-out.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<impl Iterator<Item = Event> + '_> {
        let time = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as libc::time_t,
            tv_nsec: timeout.subsec_nanos() as libc::c_long,
        });
        let time = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `raw` has room for the number of events given; `time` is null or a valid timespec that outlives the
        // call; no signal mask is given, so that its size is not looked at.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.fd.as_raw_fd(),
                self.raw.as_mut_ptr(),
                self.raw.len() as libc::c_int,
                time,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            )
        };
        let count = match super::check(count as libc::c_int) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        Ok(self.raw[..count].iter().map(|raw| {
            let (events, token) = (raw.events, raw.u64);
            let ended = events & (libc::EPOLLERR | libc::EPOLLHUP) as u32 != 0;
            Event {
                token,
                readable: ended || events & libc::EPOLLIN as u32 != 0,
                writable: ended || events & libc::EPOLLOUT as u32 != 0,
            }
        }))
    }

    fn control(
        &self,
        operation: libc::c_int,
        fd: &impl AsFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token };
        // SAFETY: both descriptors are open as long as they are borrowed; `event` is only read during the call.
        super::check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_fd().as_raw_fd(), &mut event)
        })
        .map(drop)
    }
}

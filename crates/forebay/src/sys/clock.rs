//! The monotonic clock as [`Instant`], and CPU time.
//!
//! [`now`] and [`coarse_now`] share their origin, so that their instants may be compared. The coarse clock only moves
//! with the kernel's tick (1 to 10 ms): it is for time-outs and ages, never for latencies.

use std::io;
use std::time::Duration;

use forebay_core::Instant;

/// Reads `CLOCK_MONOTONIC`: exact to the nanosecond, about 30 ns.
pub fn now() -> Instant {
    Instant::from_nanos(read(libc::CLOCK_MONOTONIC).as_nanos() as u64)
}

/// Reads `CLOCK_MONOTONIC_COARSE`: never ahead of [`now`], at most one tick behind it, about 7 ns.
pub fn coarse_now() -> Instant {
    Instant::from_nanos(read(libc::CLOCK_MONOTONIC_COARSE).as_nanos() as u64)
}

/// Returns the CPU time, user and system, that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Returns the CPU time, user and system, that all threads of this process have used.
pub fn process_cpu_time() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Returns the CPU time, user and system, that all threads of the process `pid` have used.
///
/// # Errors
///
/// `ESRCH` when there is no such process.
pub fn cpu_time_of(pid: i32) -> io::Result<Duration> {
    // The clock's number is made of the process's, which Linux keeps below 2^22; beyond, it would name another.
    if !(1..=1 << 22).contains(&pid) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for the answer, and the call keeps no pointer to it.
    let errno = unsafe { libc::clock_getcpuclockid(pid, &mut clock) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    try_read(clock)
}

/// Whether somebody (NTP, PTP, the host of a virtual machine) keeps the time of day right, as the kernel was told.
///
/// # Errors
///
/// Those of `adjtimex(2)`, as where a filter of system calls forbids it.
pub fn is_synchronised() -> io::Result<bool> {
    // SAFETY: `timex` is plain numbers, for which zero is a valid value; `modes` of zero changes nothing.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `state` is a valid place for the answer, and the call keeps no pointer to it.
    let answer = super::check(unsafe { libc::adjtimex(&mut state) })?;
    Ok(answer != libc::TIME_ERROR && state.status & libc::STA_UNSYNC == 0)
}

/// Returns the CPU time, user and system, that the thread `tid` of this process has used.
///
/// # Errors
///
/// `ESRCH` or `EINVAL` when this process has no such thread.
pub fn cpu_time_of_thread(tid: i32) -> io::Result<Duration> {
    // As for processes: no thread has a higher number.
    if !(1..=1 << 22).contains(&tid) {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    // How the kernel names such a clock: the complement of the thread's number, "of one thread" (4), "as scheduled" (2).
    try_read((!tid << 3) | 6)
}

/// Makes timers of the calling thread fire as exactly as the machine can, instead of up to 50 µs late.
///
/// # Errors
///
/// Those of `prctl(2)`; none is known on Linux.
pub fn exact_timers() -> io::Result<()> {
    // SAFETY: PR_SET_TIMERSLACK takes one integer and touches no memory of ours.
    super::check(unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) }).map(drop)
}

fn read(clock: libc::clockid_t) -> Duration {
    try_read(clock).expect("a clock that every Linux has")
}

fn try_read(clock: libc::clockid_t) -> io::Result<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer, and the call keeps no pointer to it.
    super::check(unsafe { libc::clock_gettime(clock, &mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

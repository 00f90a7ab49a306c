//! Samples of what threads do with their CPU time: registers and a copy of the stack, taken by a signal.
//!
//! Each thread has a timer on its own CPU clock, so that a thread which waits is never woken. The handler of the signal
//! does three things that a handler may do: it takes a free place, has the kernel copy the stack into it
//! (`process_vm_readv(2)`, which fails where plain reading would crash), and marks the place as full. Who called whom is
//! found out afterwards, by whoever drains the places, outside of any handler.
//!
//! ```text
//! place: free ──handler──▶ being written ──handler──▶ full ──drain──▶ free
//! ```
//!
//! Without a [`Sampler`] there is no timer, and no signal comes.

use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use super::check;

/// How much of a stack is copied, in bytes: servers need a tenth of it, builds that are not optimised half.
pub const STACK_MAX: usize = 64 * 1024;

/// Samples that wait to be drained at most: at 999 a second on eight cores, those of 16 ms; at 99, of 160 ms.
const PLACES: usize = 128;

/// The smallest page there is; the copy is cut where pages may end, since one that is missing ends it.
const PAGE: usize = 4096;

const FREE: u32 = 0;
const WRITING: u32 = 1;
const FULL: u32 = 2;

/// The places that the handler writes to, while there is a sampler.
static CURRENT: AtomicPtr<Places> = AtomicPtr::new(ptr::null_mut());

/// How many threads are inside the handler.
static INSIDE: AtomicUsize = AtomicUsize::new(0);

/// What one thread was doing.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// The thread, as the kernel numbers it.
    pub thread: i32,
    /// How many periods of CPU time the sample stands for: one, and those whose signals came too late for their own.
    pub ticks: u32,
    /// What the processor was working with.
    pub registers: Registers,
    /// The stack from the stack pointer upwards: at most [`STACK_MAX`] bytes, and empty if it could not be read.
    pub stack: &'a [u8],
}

/// What is needed to walk a stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The next instruction.
    pub instruction: u64,
    /// The stack pointer.
    pub stack: u64,
    /// The frame pointer, or whatever the code keeps in its place.
    pub frame: u64,
    /// The return address that some processors keep in a register; 0 on others.
    pub link: u64,
}

/// Takes samples of the threads that it was told to watch. There is one in a process at most.
#[derive(Debug)]
pub struct Sampler {
    places: Arc<Places>,
    timers: HashMap<i32, Timer>,
    period_ns: i64,
}

impl Sampler {
    /// Prepares to sample each thread `hz` times (1 to 1000) per second of its CPU time. Nothing is sampled before
    /// [`watch_threads`](Self::watch_threads).
    ///
    /// # Errors
    ///
    /// [`ResourceBusy`](io::ErrorKind::ResourceBusy) while there is another sampler, or a stranger's handler of
    /// `SIGPROF`; [`Unsupported`](io::ErrorKind::Unsupported) on a processor whose registers are not known here; what
    /// `process_vm_readv(2)` fails with where a filter of system calls forbids it.
    pub fn start(hz: u32) -> io::Result<Self> {
        if !(1..=1000).contains(&hz) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{hz} Hz: 1 to 1000 are possible"),
            ));
        }
        if cfg!(not(all(target_pointer_width = "64", any(target_arch = "x86_64", target_arch = "aarch64")))) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let places = Arc::new(Places::new());
        places.prove_readable()?;
        let new = Arc::as_ptr(&places).cast_mut();
        CURRENT
            .compare_exchange(ptr::null_mut(), new, Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| io::Error::new(io::ErrorKind::ResourceBusy, "samples are being taken already"))?;
        // From here on its drop gives the place of the only one back.
        let sampler = Self { places, timers: HashMap::new(), period_ns: 1_000_000_000 / i64::from(hz) };
        install()?;
        Ok(sampler)
    }

    /// Begins to sample those threads of the process, but the calling one, that are not sampled yet, and returns how
    /// many there were.
    ///
    /// # Errors
    ///
    /// When `/proc` cannot be read, or the kernel gives no more timers (`RLIMIT_SIGPENDING`).
    pub fn watch_threads(&mut self) -> io::Result<usize> {
        // SAFETY: the call has no arguments and always succeeds.
        let own = unsafe { libc::gettid() };
        let before = self.timers.len();
        for entry in fs::read_dir("/proc/self/task")? {
            let Some(thread) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if thread == own || self.timers.contains_key(&thread) {
                continue;
            }
            match Timer::start(thread, self.period_ns) {
                Ok(timer) => drop(self.timers.insert(thread, timer)),
                // It has ended since it was listed.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ESRCH)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.timers.len() - before)
    }

    /// Hands what was sampled since the last call to `take`, in no particular order.
    pub fn drain(&mut self, mut take: impl FnMut(Sample<'_>)) {
        for (number, place) in self.places.all.iter().enumerate() {
            if place.state.load(Ordering::Acquire) != FULL {
                continue;
            }
            // SAFETY: a full place is nobody's but the drainer's, who is one, as `self` is borrowed exclusively.
            let (body, stack) = unsafe { (&*place.body.get(), self.places.stack(number)) };
            take(Sample {
                thread: body.thread,
                ticks: body.ticks,
                registers: body.registers,
                stack: &stack[..body.length],
            });
            place.state.store(FREE, Ordering::Release);
        }
    }

    /// Returns how many periods found no free place: the drain came too late.
    pub fn lost(&self) -> u64 {
        self.places.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.timers.clear();
        let own = Arc::as_ptr(&self.places).cast_mut();
        // Signals that are still under way find nothing to write to.
        let _ = CURRENT.compare_exchange(own, ptr::null_mut(), Ordering::SeqCst, Ordering::SeqCst);
        while INSIDE.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
    }
}

/// Where samples wait.
struct Places {
    all: Box<[Place]>,
    /// [`STACK_MAX`] bytes for each place; pages that nobody has written to take no memory.
    stacks: Box<[UnsafeCell<u8>]>,
    next: AtomicUsize,
    lost: AtomicU64,
    process: i32,
}

// SAFETY: a place and its stack are touched by whoever has moved its state from free to being written, until it is full,
// and then by the drainer alone; everything else is atomic or never changes.
unsafe impl Sync for Places {}

// SAFETY: nothing in it belongs to a thread.
unsafe impl Send for Places {}

#[derive(Default)]
struct Place {
    state: AtomicU32,
    body: UnsafeCell<Body>,
}

#[derive(Default)]
struct Body {
    thread: i32,
    ticks: u32,
    registers: Registers,
    length: usize,
}

impl Places {
    fn new() -> Self {
        let zeros = vec![0_u8; PLACES * STACK_MAX].into_boxed_slice();
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`, and the box is the only owner of its bytes.
        let stacks = unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [UnsafeCell<u8>]) };
        Self {
            all: (0..PLACES).map(|_| Place::default()).collect(),
            stacks,
            next: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            // SAFETY: the call has no arguments and always succeeds.
            process: unsafe { libc::getpid() },
        }
    }

    /// The bytes of place `number`.
    ///
    /// # Safety
    ///
    /// The place is full, and nobody else drains.
    unsafe fn stack(&self, number: usize) -> &[u8] {
        let cells = &self.stacks[number * STACK_MAX..][..STACK_MAX];
        // SAFETY: the caller says that nobody writes to them; `UnsafeCell<u8>` has the layout of `u8`.
        unsafe { &*(ptr::from_ref(cells) as *const [u8]) }
    }

    /// Copies some of the caller's own stack the way that the handler will.
    fn prove_readable(&self) -> io::Result<()> {
        let here = 0_u64;
        match self.copy_stack(0, ptr::from_ref(&here) as usize) {
            0 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }

    /// Has the kernel copy what is on the stack from `pointer` upwards to place `number`, and returns how many bytes
    /// that was; 0 when it refuses, with `errno` saying why. Allocates nothing and takes no lock: for a handler.
    fn copy_stack(&self, number: usize, pointer: usize) -> usize {
        let to = libc::iovec { iov_base: self.stacks[number * STACK_MAX].get().cast(), iov_len: STACK_MAX };
        let mut from = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; STACK_MAX / PAGE + 1];
        let (mut at, end) = (pointer, pointer.saturating_add(STACK_MAX));
        let mut pieces = 0;
        for piece in &mut from {
            let next = ((at / PAGE + 1) * PAGE).min(end);
            if at >= next {
                break;
            }
            *piece = libc::iovec { iov_base: at as *mut c_void, iov_len: next - at };
            (at, pieces) = (next, pieces + 1);
        }
        // SAFETY: `to` is the place's own memory and `from` is looked at by the kernel, which copies up to the first
        // page that is not there.
        let copied = unsafe {
            libc::process_vm_readv(self.process, &to, 1, from.as_ptr(), pieces as libc::c_ulong, 0)
        };
        usize::try_from(copied).unwrap_or(0)
    }

    /// Fills a place. Runs inside a handler: it allocates nothing, takes no lock and does not panic.
    fn record(&self, thread: i32, ticks: u32, registers: Registers) {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for turn in 0..4 {
            let number = first.wrapping_add(turn) % PLACES;
            let Some(place) = self.all.get(number) else { return };
            if place.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err() {
                continue;
            }
            let length = self.copy_stack(number, registers.stack as usize);
            // SAFETY: whoever moves a place from free to being written is alone with it.
            unsafe { *place.body.get() = Body { thread, ticks, registers, length } };
            place.state.store(FULL, Ordering::Release);
            return;
        }
        self.lost.fetch_add(ticks.into(), Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// A timer on the CPU clock of one thread, whose signal goes to that thread. Deleted when dropped.
#[derive(Debug)]
struct Timer(libc::timer_t);

// SAFETY: what names a timer may be used by any thread of the process.
unsafe impl Send for Timer {}

impl Timer {
    fn start(thread: i32, period_ns: i64) -> io::Result<Self> {
        // SAFETY: zero is a valid value of every field.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGPROF;
        event.sigev_notify_thread_id = thread;
        event.sigev_value.sival_ptr = thread as usize as *mut c_void;
        let mut timer: libc::timer_t = ptr::null_mut();
        // The kernel's name of a thread's clock, `MAKE_THREAD_CPUCLOCK(thread, CPUCLOCK_SCHED)`.
        let clock = (!thread << 3) | 6;
        // SAFETY: both places are valid, and the call keeps no pointer to them.
        check(unsafe { libc::timer_create(clock, &mut event, &mut timer) })?;
        let timer = Self(timer);
        let period = libc::timespec {
            tv_sec: (period_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (period_ns % 1_000_000_000) as libc::c_long,
        };
        let times = libc::itimerspec { it_interval: period, it_value: period };
        // SAFETY: the timer was made above; `times` is valid and not kept.
        check(unsafe { libc::timer_settime(timer.0, 0, &times, ptr::null_mut()) })?;
        Ok(timer)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `start`, and nobody else deletes it.
        let _ = unsafe { libc::timer_delete(self.0) };
    }
}

/// The beginning of `siginfo_t` as the kernel fills it for a timer, on machines with 64 bits.
#[repr(C)]
struct TimerInfo {
    signal: c_int,
    errno: c_int,
    code: c_int,
    _padding: c_int,
    timer: c_int,
    overrun: c_int,
    value: usize,
}

/// Makes [`handle`] the handler of `SIGPROF`. It stays: what a signal does by itself is to end the process, and one may be
/// under way when the sampler is gone.
fn install() -> io::Result<()> {
    let handler = handle as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
    // SAFETY: zero is a valid value of every field: an empty mask, no flags.
    let mut before: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: with no new action, the call only writes the old one to `before`.
    check(unsafe { libc::sigaction(libc::SIGPROF, ptr::null(), &mut before) })?;
    if before.sa_sigaction == handler {
        return Ok(());
    }
    if before.sa_sigaction != libc::SIG_DFL && before.sa_sigaction != libc::SIG_IGN {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, "SIGPROF has another handler"));
    }
    // SAFETY: as above.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is valid and copied; the handler does only what handlers may do.
    check(unsafe { libc::sigaction(libc::SIGPROF, &action, ptr::null_mut()) }).map(drop)
}

extern "C" fn handle(_: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the place of this thread's `errno` is always valid.
    let errno = unsafe { *libc::__errno_location() };
    INSIDE.fetch_add(1, Ordering::SeqCst);
    let places = CURRENT.load(Ordering::SeqCst);
    // SAFETY: a sampler takes the pointer away and waits until nobody is inside before it frees what is behind it.
    if let Some(places) = unsafe { places.as_ref() } {
        // SAFETY: the kernel hands both pointers to a handler with SA_SIGINFO, valid until it returns; the beginning of
        // `siginfo_t` is laid out like that for timers, which the code says it is.
        let (info, registers) = unsafe { (&*info.cast::<TimerInfo>(), registers(&*context.cast())) };
        if info.code == libc::SI_TIMER {
            let ticks = 1 + u32::try_from(info.overrun).unwrap_or(0);
            places.record(info.value as i32, ticks, registers);
        }
    }
    INSIDE.fetch_sub(1, Ordering::SeqCst);
    // SAFETY: as above; what was interrupted may be about to read it.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let register = |number: c_int| context.uc_mcontext.gregs[number as usize] as u64;
    Registers {
        instruction: register(libc::REG_RIP),
        stack: register(libc::REG_RSP),
        frame: register(libc::REG_RBP),
        link: 0,
    }
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let machine = &context.uc_mcontext;
    Registers { instruction: machine.pc, stack: machine.sp, frame: machine.regs[29], link: machine.regs[30] }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn registers(_: &libc::ucontext_t) -> Registers {
    Registers::default()
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::atomic::AtomicBool;
    use std::sync::{Mutex, PoisonError};
    use std::time::{Duration, Instant};

    use super::*;

    /// There is one sampler in a process, and tests run in one.
    static ONE: Mutex<()> = Mutex::new(());

    /// Computes until told to stop.
    fn spin(stop: &AtomicBool) -> u64 {
        let mut sum = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            sum = black_box(sum.wrapping_mul(31).wrapping_add(7));
        }
        sum
    }

    /// Runs a thread that computes beside `work`, which gets the thread's number.
    fn beside_a_busy_thread(work: impl FnOnce(i32)) {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, number) = std::sync::mpsc::channel();
        let busy = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                // SAFETY: the call has no arguments and always succeeds.
                told.send(unsafe { libc::gettid() }).unwrap();
                spin(&stop)
            }
        });
        work(number.recv().unwrap());
        stop.store(true, Ordering::Relaxed);
        busy.join().unwrap();
    }

    #[test]
    fn a_busy_thread_is_sampled_with_its_stack_and_an_idle_one_is_not() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        beside_a_busy_thread(|busy| {
            let mut sampler = Sampler::start(200).unwrap();
            assert!(sampler.watch_threads().unwrap() >= 1);
            assert_eq!(sampler.watch_threads().unwrap(), 0, "each is watched once");
            // SAFETY: the call has no arguments and always succeeds.
            let own = unsafe { libc::gettid() };
            let (mut ticks, mut spent) = (0, 0);
            let deadline = Instant::now() + Duration::from_secs(10);
            while ticks < 40 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
                sampler.drain(|sample| {
                    assert_ne!(sample.thread, own, "who samples is not sampled");
                    assert!(sample.stack.len() <= STACK_MAX && sample.stack.len() >= 64, "{sample:?}");
                    assert_ne!((sample.registers.instruction, sample.registers.stack), (0, 0));
                    if sample.thread == busy {
                        ticks += sample.ticks;
                        spent += 1;
                    }
                });
            }
            assert!(ticks >= 40 && spent >= 10, "{ticks} periods in {spent} samples");
            assert_eq!(sampler.lost(), 0);
        });
    }

    #[test]
    fn there_is_one_sampler_at_a_time() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let first = Sampler::start(99).unwrap();
        assert_eq!(Sampler::start(99).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(first);
        drop(Sampler::start(99).unwrap());
        assert_eq!(Sampler::start(0).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn what_nobody_drains_is_counted_as_lost() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let sampler = Sampler::start(99).unwrap();
        for _ in 0..PLACES + 3 {
            let here = 0_u64;
            let stack = ptr::from_ref(&here) as u64;
            sampler.places.record(7, 2, Registers { stack, ..Registers::default() });
        }
        assert_eq!(sampler.lost(), 6, "three of two periods each");
    }

    #[test]
    fn a_stack_that_is_not_there_is_copied_as_far_as_it_goes() {
        let places = Places::new();
        assert_eq!(places.copy_stack(0, 8), 0);
        // SAFETY: an anonymous mapping of two pages, of which the second is made unreadable; unmapped below.
        let base = unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                2 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(base.byte_add(PAGE), PAGE, libc::PROT_NONE), 0);
            base
        };
        assert_eq!(places.copy_stack(1, base as usize + PAGE - 24), 24);
        // SAFETY: the mapping made above, which nobody refers to.
        assert_eq!(unsafe { libc::munmap(base, 2 * PAGE) }, 0);
    }

    #[test]
    fn samplers_that_come_and_go_under_load_disturb_nobody() {
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        beside_a_busy_thread(|_| {
            let end = Instant::now() + Duration::from_millis(500);
            while Instant::now() < end {
                let mut sampler = Sampler::start(1000).unwrap();
                sampler.watch_threads().unwrap();
                thread::sleep(Duration::from_millis(5));
                sampler.drain(|_| {});
            }
        });
    }
}

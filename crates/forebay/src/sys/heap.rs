//! Profiles of the heap, which jemalloc keeps when it is told to (feature `jemalloc`).
//!
//! It notes who asked for memory about once in every 512 KiB that are asked for, and forgets it when that is given back.

use std::ffi::{CString, c_char};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tikv_jemalloc_ctl::raw;

/// Returns whether the allocator of this process was started so that it can note who asks for memory.
pub fn can_profile() -> bool {
    // SAFETY: the name is that of a `bool`, or unknown to an allocator without profiles, which is an error.
    unsafe { raw::read::<bool>(b"opt.prof\0") }.unwrap_or(false)
}

/// Returns whether it does so now.
///
/// # Errors
///
/// When it cannot.
pub fn is_profiled() -> io::Result<bool> {
    // SAFETY: the name is that of a `bool`.
    unsafe { raw::read(b"prof.active\0") }.map_err(named)
}

/// Lets it begin or end. What was noted stays until its memory is given back.
///
/// # Errors
///
/// When it cannot.
pub fn set_profiled(is_profiled: bool) -> io::Result<()> {
    // SAFETY: the name is that of a `bool`.
    unsafe { raw::write(b"prof.active\0", is_profiled) }.map_err(named)
}

/// Returns after how many bytes asked for one request is noted, on average.
///
/// # Errors
///
/// When it cannot profile.
pub fn sample_bytes() -> io::Result<u64> {
    // SAFETY: the name is that of a `size_t`.
    let log2: usize = unsafe { raw::read(b"prof.lg_sample\0") }.map_err(named)?;
    Ok(1 << log2.min(62))
}

/// Writes what is noted to a new file, in the allocator's own form of text.
///
/// # Errors
///
/// When it cannot profile, or the file cannot be written.
pub fn dump(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let name: *const c_char = path.as_ptr();
    // SAFETY: the name is that of a pointer to a text that ends with a zero, which is read before the call returns.
    unsafe { raw::write(b"prof.dump\0", name) }.map_err(named)
}

fn named(error: tikv_jemalloc_ctl::Error) -> io::Error {
    io::Error::other(format!("jemalloc: {error}"))
}

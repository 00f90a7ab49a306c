//! The binary: an allocator, and [`forebay_cli::main`].

use std::process::ExitCode;

/// Fast with many threads, and gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    forebay_cli::main()
}

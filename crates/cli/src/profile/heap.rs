//! Who holds this process's memory: what jemalloc has noted, as a message of profile.proto.

use std::fs;
use std::io;

use forebay::sys::heap;

use super::modules::Modules;
use super::pprof::{Builder, nanoseconds};
use super::wall_clock;

pub(crate) use heap::{can_profile, is_profiled, set_profiled};

/// A stack, and what it holds.
#[derive(Debug, PartialEq)]
struct Holder {
    /// Addresses, innermost first, inside of the calls.
    addresses: Vec<u64>,
    objects: i64,
    bytes: i64,
}

/// Returns what has been noted, for `go tool pprof`.
///
/// # Errors
///
/// When the allocator cannot say, there is no room for a temporary file, or our code cannot be read.
pub(crate) fn pprof() -> io::Result<Vec<u8>> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("heap");
    heap::dump(&file)?;
    let text = fs::read_to_string(&file)?;
    let rate = heap::sample_bytes()?;
    let modules = Modules::of_this_process()?;
    let mut builder = Builder::new(&modules);
    let objects = builder.value_type("inuse_objects", "count");
    let space = builder.value_type("inuse_space", "bytes");
    builder.message.sample_type = vec![objects, space];
    builder.message.default_sample_type = space.kind;
    (builder.message.period_type, builder.message.period) = (Some(space), rate as i64);
    builder.message.time_nanos = nanoseconds(wall_clock());
    for holder in holders(&text, rate as f64) {
        builder.sample(&holder.addresses, vec![holder.objects, holder.bytes], None);
    }
    Ok(builder.finish())
}

/// Reads jemalloc's text: after each line of addresses, counts by thread, of which the first line is their sum.
fn holders(text: &str, rate: f64) -> Vec<Holder> {
    let mut holders = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(addresses) = line.strip_prefix("@ ") else { continue };
        let addresses = addresses
            .split_ascii_whitespace()
            .filter_map(|address| u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?.checked_sub(1))
            .collect();
        let Some((objects, bytes)) = lines.next().and_then(counts) else { continue };
        if objects == 0.0 || bytes == 0.0 {
            continue;
        }
        // Small requests are noted less often than large ones; this is what all of them come to.
        let noted = 1.0 - (-(bytes / objects) / rate).exp();
        holders.push(Holder {
            addresses,
            objects: (objects / noted).round() as i64,
            bytes: (bytes / noted).round() as i64,
        });
    }
    holders
}

/// Reads objects and bytes in use of `  t*: 1: 655360 [0: 0]`.
fn counts(line: &str) -> Option<(f64, f64)> {
    let (objects, rest) = line.trim_start().strip_prefix("t*: ")?.split_once(": ")?;
    let bytes = rest.split(' ').next()?;
    Some((objects.parse().ok()?, bytes.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jemallocs_text_is_read_and_scaled_to_what_was_not_noted() {
        let text = "heap_v2/524288\n  t*: 3: 1048608 [0: 0]\n  t0: 3: 1048608 [0: 0]\n\
                    @ 0x11 0x22\n  t*: 1: 1048576 [0: 0]\n  t0: 1: 1048576 [0: 0]\n\
                    @ 0x33\n  t*: 2: 32 [0: 0]\n\
                    @ 0x44\n  t*: 0: 0 [9: 9]\n\
                    @ 0x55\n\nMAPPED_LIBRARIES:\n00400000-00401000 r-xp @ x\n";
        let holders = holders(text, 524_288.0);
        assert_eq!(holders.len(), 2, "{holders:?}");
        assert_eq!(holders[0].addresses, [0x10, 0x21]);
        assert!((1_048_576..1_250_000).contains(&holders[0].bytes), "{holders:?}");
        assert!(
            (1_000_000..1_100_000).contains(&holders[1].bytes),
            "two of 16 bytes stand for many: {holders:?}"
        );
        assert_eq!(holders[1].bytes, holders[1].objects * 16);
    }
}

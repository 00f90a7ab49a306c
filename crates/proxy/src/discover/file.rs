//! A list in a file, read again when it changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Feed, Source, list};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// For so many looks a file that was written to has to stand still before it is read: whoever writes it in place may
/// not be done, and a part of a list of lines looks like a list.
const LOOKS_STILL: u32 = 4;

/// The same for a file that has come to the place of another one: by a rename, as a rule, and then it is whole.
const LOOKS_STILL_NEW: u32 = 1;

/// How a file looks: enough to see that it was replaced or written to. `None`: it is not there.
pub(super) type Stamp = Option<(u64, u64, i64, i64)>;

/// Looks at the file. A rename of another one over it shows as another inode.
pub(super) fn look(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}

/// Follows the file for ever. `read` is how it looked before it was read for the first time.
pub(super) async fn follow(path: &Path, read: Stamp, feed: &Feed) {
    let (mut seen, mut done, mut still) = (read, read, 0);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let stamp = look(path);
        let before = std::mem::replace(&mut seen, stamp);
        if stamp == done {
            continue;
        }
        still = if stamp == before { still + 1 } else { 0 };
        let is_new_file = matches!((stamp, done), (Some(now), Some(then)) if now.0 != then.0);
        if still < if is_new_file { LOOKS_STILL_NEW } else { LOOKS_STILL } {
            continue;
        }
        (done, still) = (stamp, 0);
        match list::read(path) {
            Ok(list) => feed.offer(Source::File, list),
            Err(problem) => feed.failed(Source::File, &problem),
        }
    }
}

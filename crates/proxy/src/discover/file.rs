//! A list in a file, read again when it changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use super::{Feed, Source, list};

/// How often the file is looked at. It is read when it has changed and then stood still for as long: whoever writes it
/// in place may not be done, and a part of a list of lines looks like a list.
const LOOK_EVERY: Duration = Duration::from_millis(400);

/// How a file looks: enough to see that it was replaced or written to. `None`: it is not there.
pub(super) type Stamp = Option<(u64, u64, i64, i64)>;

/// Looks at the file. A rename of another one over it shows as another inode.
pub(super) fn look(path: &Path) -> Stamp {
    let data = fs::metadata(path).ok()?;
    Some((data.ino(), data.size(), data.mtime(), data.mtime_nsec()))
}

/// Follows the file for ever. `read` is how it looked before it was read for the first time.
pub(super) async fn follow(path: &Path, read: Stamp, feed: &Feed) {
    let (mut seen, mut done) = (read, read);
    let mut tick = tokio::time::interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let stamp = look(path);
        let is_settled = std::mem::replace(&mut seen, stamp) == stamp;
        if !is_settled || stamp == done {
            continue;
        }
        done = stamp;
        match list::read(path) {
            Ok(list) => feed.offer(Source::File, list),
            Err(problem) => feed.failed(Source::File, &problem),
        }
    }
}

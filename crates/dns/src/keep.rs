//! The file in which the cache outlives the process: read at start, written at exit.
//!
//! Each worker writes what it has, one behind the other, and each reads all of it, as far as its own cache has room:
//! clients come to another worker after a restart. What two workers had is read once, from whoever had it for longer.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::SystemTime;

use forebay_core::Instant;
use forebay_dns_core::cache::{Loaded, SavedFile, Saver};
use forebay_dns_core::forwarder::Forwarder;

/// A file is read if it is no larger than so many times the cache. It is never written larger than once: the cache may
/// have been made smaller since.
const SIZE_MAX_FACTOR: u64 = 4;

/// A file's bytes, and when they were read.
#[derive(Debug)]
pub(crate) struct SavedCache {
    bytes: Vec<u8>,
    now: u64,
}

/// Writes the file anew: beside the old one, which it takes the place of when it is whole.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// Nobody has written yet. Left by the first worker, to `Writing` or `Failed`.
    Untouched,
    /// Begun. Left when all have written, or when something fails.
    Writing { file: File, saver: Saver },
    /// It cannot be written, which has been said.
    Failed,
    /// The file is whole, and in its place.
    Done,
}

impl SavedCache {
    /// Reads the file, if it is there and one of ours. Says why if not: a cache that begins empty is no reason not to
    /// serve.
    pub(crate) fn read(path: &Path, cache_bytes: u64) -> Option<Self> {
        match Self::try_read(path, cache_bytes) {
            Ok(found) => found,
            Err(problem) => {
                let path = path.display();
                tracing::warn!("{path}: {problem}: the cache begins empty, and the file is replaced at exit");
                None
            }
        }
    }

    fn try_read(path: &Path, cache_bytes: u64) -> Result<Option<Self>, String> {
        let len = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err("is no file".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        if len > cache_bytes.saturating_mul(SIZE_MAX_FACTOR) {
            return Err(format!("its {len} bytes are more than {SIZE_MAX_FACTOR} times dns.cache.size"));
        }
        let saved = Self { bytes: fs::read(path).map_err(|error| error.to_string())?, now: unix_now() };
        SavedFile::read(&saved.bytes, saved.now).map_err(|error| error.to_string())?;
        Ok(Some(saved))
    }

    /// Puts what was saved into a worker's cache.
    pub(crate) fn load(&self, now: Instant, forwarder: &mut Forwarder) -> Loaded {
        match SavedFile::read(&self.bytes, self.now) {
            Ok(file) => forwarder.load(now, &file, self.now - file.saved_at),
            // It has been looked at before.
            Err(_) => Loaded::default(),
        }
    }
}

impl Keeper {
    /// Is to write this file. Says now if that cannot be, rather than at exit.
    pub(crate) fn new(path: PathBuf) -> Self {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            tracing::warn!("{}: its folder is not there: make it, or the cache is not saved", path.display());
        }
        Self { path, state: Mutex::new(State::Untouched) }
    }

    /// Appends a worker's cache.
    pub(crate) fn save(&self, now: Instant, forwarder: &Forwarder) {
        let mut state = self.lock();
        if let Err(error) = self.try_save(&mut state, now, forwarder) {
            self.give_up(&mut state, &error);
        }
    }

    fn try_save(&self, state: &mut State, now: Instant, forwarder: &Forwarder) -> io::Result<()> {
        let mut piece = Vec::new();
        if matches!(state, State::Untouched) {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                // What people ask for is nobody else's business.
                .mode(0o600)
                .open(self.part())?;
            *state = State::Writing { file, saver: Saver::begin(unix_now(), &mut piece) };
        }
        let State::Writing { file, saver } = state else { return Ok(()) };
        loop {
            let is_all = forwarder.save(now, saver, &mut piece);
            file.write_all(&piece)?;
            piece.clear();
            if is_all {
                return Ok(());
            }
        }
    }

    /// All workers have written: puts the file into its place.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        let State::Writing { file, saver } = std::mem::replace(&mut *state, State::Done) else { return };
        match self.try_finish(file, saver) {
            Ok(entries) => tracing::info!(entries, path = %self.path.display(), "cache saved"),
            Err(error) => self.give_up(&mut state, &error),
        }
    }

    fn try_finish(&self, mut file: File, saver: Saver) -> io::Result<u64> {
        let mut end = Vec::new();
        let entries = saver.end(&mut end);
        file.write_all(&end)?;
        file.sync_all()?;
        fs::rename(self.part(), &self.path)?;
        Ok(entries)
    }

    fn give_up(&self, state: &mut State, error: &io::Error) {
        tracing::warn!("{}: {error}: the cache is not saved", self.path.display());
        *state = State::Failed;
        self.remove_part();
    }

    fn remove_part(&self) {
        // It may never have come to be.
        let _ = fs::remove_file(self.part());
    }

    /// Where it is written until it is whole.
    fn part(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        name.into()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A worker that panicked in the middle of writing leaves a file that its checksum will tell.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        if matches!(*self.lock(), State::Writing { .. }) {
            self.remove_part();
        }
    }
}

/// Seconds since 1970: the only clock that goes on while the machine is off.
#[expect(clippy::disallowed_methods, reason = "what was saved ages while no monotonic clock runs")]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

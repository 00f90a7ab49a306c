//! Hosts file and block lists: read at the start, looked at now and then, and read again when they have changed.
//!
//! Reading is done by a thread of its own; workers get the result whole, and answer from what they had until then.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use forebay::sys;
use forebay_core::Instant;
use forebay_dns_core::local::{BlockList, BlockListBuilder, LocalData, LocalDataBuilder};
use forebay_dns_core::wire::HashSeed;
use tokio::sync::mpsc;

use crate::settings::{BlockConfig, DnsConfig, LocalConfig};
use crate::stats::NameStats;
use crate::worker::Command;

/// Bad lines of one file that are logged one by one; how many there are in all is told after them.
const FAULTS_SHOWN: usize = 5;

/// A line longer than this is none of these files', and is not kept in memory whole.
const LINE_BYTES_MAX: u64 = 64 << 10;

/// A file that cannot be read.
#[derive(Debug)]
pub(crate) struct FileError {
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
}

/// What was read, in figures. Shared with whoever asks for them.
#[derive(Debug, Default)]
pub(crate) struct NameFigures {
    local: AtomicU64,
    blocked: AtomicU64,
    blocked_bytes: AtomicU64,
    local_bad: AtomicU64,
    block_bad: AtomicU64,
    reloads: AtomicU64,
    reloads_failed: AtomicU64,
}

impl NameFigures {
    pub(crate) fn stats(&self) -> NameStats {
        NameStats {
            local: self.local.load(Relaxed),
            blocked: self.blocked.load(Relaxed),
            blocked_bytes: self.blocked_bytes.load(Relaxed),
            bad_lines: self.local_bad.load(Relaxed) + self.block_bad.load(Relaxed),
            reloads: self.reloads.load(Relaxed),
            reloads_failed: self.reloads_failed.load(Relaxed),
        }
    }
}

/// Reads local data: the records of the configuration, and the hosts file.
pub(crate) fn read_local(
    config: &LocalConfig,
    seed: HashSeed,
    figures: &NameFigures,
) -> Result<LocalData, FileError> {
    let mut builder = LocalDataBuilder::new(seed, config.ttl);
    for record in &config.records {
        builder.add_record(record);
    }
    let mut bad = 0;
    if let Some(path) = &config.hosts {
        let text = std::fs::read(path).map_err(|error| FileError { path: path.clone(), error })?;
        builder.add_hosts(&text, |line, fault| {
            bad += 1;
            if bad <= FAULTS_SHOWN {
                tracing::warn!(file = %path.display(), line, "a line is left out: {fault}");
            }
        });
        tell_rest(path, bad);
    }
    let data = builder.finish(|problem| tracing::warn!("local data: {problem}"));
    figures.local.store(data.names() as u64, Relaxed);
    figures.local_bad.store(bad as u64, Relaxed);
    Ok(data)
}

/// Reads the block lists.
pub(crate) fn read_block(
    config: &BlockConfig,
    seed: HashSeed,
    figures: &NameFigures,
) -> Result<BlockList, FileError> {
    let mut builder = BlockListBuilder::new(seed);
    let mut bad_lines = 0;
    for path in &config.lists {
        let bad = read_list(path, &mut builder).map_err(|error| FileError { path: path.clone(), error })?;
        tell_rest(path, bad);
        bad_lines += bad;
    }
    config.allow.iter().for_each(|name| builder.allow(name));
    let list = builder.finish();
    figures.blocked.store(list.names() as u64, Relaxed);
    figures.blocked_bytes.store(list.bytes() as u64, Relaxed);
    figures.block_bad.store(bad_lines as u64, Relaxed);
    Ok(list)
}

/// Adds a file to a list. Returns how many of its lines could not be read.
fn read_list(path: &Path, builder: &mut BlockListBuilder) -> io::Result<usize> {
    let mut reader = BufReader::with_capacity(256 << 10, File::open(path)?);
    let (mut line, mut number, mut bad) = (Vec::new(), 0, 0);
    loop {
        line.clear();
        if io::Read::take(&mut reader, LINE_BYTES_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(bad);
        }
        number += 1;
        if let Err(fault) = builder.add_line(&line) {
            bad += 1;
            if bad <= FAULTS_SHOWN {
                tracing::warn!(file = %path.display(), line = number, "a line is left out: {fault}");
            }
        }
    }
}

fn tell_rest(path: &Path, bad: usize) {
    if bad > FAULTS_SHOWN {
        tracing::warn!(file = %path.display(), lines = bad, "so many lines are left out in all");
    }
}

/// What the files look like before they are read for the first time.
pub(crate) struct Looked {
    local: Option<Files>,
    block: Option<Files>,
}

impl Looked {
    /// Looks at the files that are to be read again when they change.
    pub(crate) fn at(config: &DnsConfig) -> Self {
        let local = config
            .local
            .as_ref()
            .and_then(|local| Some(Files::new(local.reload_interval?, vec![local.hosts.clone()?])));
        let block = config
            .block
            .as_ref()
            .and_then(|block| Some(Files::new(block.reload_interval?, block.lists.clone())));
        Self { local, block }
    }
}

/// The thread that looks at the files. Dropped, it ends after what it is doing.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Nothing is ever sent: that it is gone says all.
    _running: Sender<()>,
}

impl Watch {
    /// Begins to look, if there is anything to look at.
    pub(crate) fn start(
        looked: Looked,
        config: Arc<DnsConfig>,
        seed: HashSeed,
        figures: Arc<NameFigures>,
        workers: Vec<mpsc::UnboundedSender<Command>>,
    ) -> io::Result<Option<Self>> {
        let Looked { local, block } = looked;
        if local.is_none() && block.is_none() {
            return Ok(None);
        }
        let (running, stopped) = channel();
        let watcher = Watcher { config, seed, figures, workers, local, block };
        std::thread::Builder::new().name("dns-files".to_owned()).spawn(move || watcher.run(&stopped))?;
        Ok(Some(Self { _running: running }))
    }
}

struct Watcher {
    config: Arc<DnsConfig>,
    seed: HashSeed,
    figures: Arc<NameFigures>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    local: Option<Files>,
    block: Option<Files>,
}

impl Watcher {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let due = self.local.iter().chain(&self.block).map(|files| files.due).min();
            let pause = due.map_or(Duration::MAX, |due| due.saturating_duration_since(sys::now()));
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = sys::now();
            if self.local.as_mut().is_some_and(|files| files.have_changed(now))
                && let Some(config) = &self.config.local
            {
                let read = read_local(config, self.seed, &self.figures).map(Arc::new);
                self.tell("local data", read, Command::Local);
            }
            if self.block.as_mut().is_some_and(|files| files.have_changed(now))
                && let Some(config) = &self.config.block
            {
                let read = read_block(config, self.seed, &self.figures).map(Arc::new);
                self.tell("the block list", read, Command::Block);
            }
        }
    }

    fn tell<T>(&self, what: &str, read: Result<Arc<T>, FileError>, command: impl Fn(Arc<T>) -> Command) {
        match read {
            Ok(data) => {
                self.figures.reloads.fetch_add(1, Relaxed);
                tracing::info!("{what} has changed and was read again");
                for worker in &self.workers {
                    // A worker that has ended needs no names.
                    let _ = worker.send(command(Arc::clone(&data)));
                }
            }
            Err(FileError { path, error }) => {
                self.figures.reloads_failed.fetch_add(1, Relaxed);
                tracing::error!(
                    file = %path.display(),
                    %error,
                    "{what} cannot be read again: what was there before still holds"
                );
            }
        }
    }
}

/// Some files, and what they looked like.
struct Files {
    interval: Duration,
    due: Instant,
    seen: Vec<(PathBuf, Option<Stamp>)>,
}

/// By what a change of a file is known: where it is, how long, and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Files {
    fn new(interval: Duration, paths: Vec<PathBuf>) -> Self {
        let seen = paths.into_iter().map(|path| (stamp(&path), path)).map(|(stamp, path)| (path, stamp));
        Self { interval, due: sys::now() + interval, seen: seen.collect() }
    }

    /// Looks, if it is time, and says whether any file has changed since the last look.
    fn have_changed(&mut self, now: Instant) -> bool {
        if now < self.due {
            return false;
        }
        self.due = now + self.interval;
        let mut changed = false;
        for (path, seen) in &mut self.seen {
            let stamp = stamp(path);
            changed |= *seen != stamp;
            *seen = stamp;
        }
        changed
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: meta.dev(),
        inode: meta.ino(),
        len: meta.len(),
        modified: (meta.mtime(), meta.mtime_nsec()),
    })
}

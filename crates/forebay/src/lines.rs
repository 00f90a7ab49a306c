//! Lines of a log that busy threads write: a thread of its own puts them into a file.
//!
//! Who has a line puts what it says into a queue of fixed length; where that is full, the line is lost and counted.
//! What it looks like is made of it by the thread that writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use forebay_core::Instant;

use crate::sys;

/// How long the writer rests after it has written what there was: it is woken so much less often.
const REST: Duration = Duration::from_millis(10);

/// How often the writer looks whether its file was moved away.
const LOOK: Duration = Duration::from_secs(1);

/// Lines that are written at once.
const BATCH_BYTES: usize = 64 << 10;

/// One end of the queue; each thread that has lines holds one.
#[derive(Debug)]
pub struct Lines<L> {
    queue: SyncSender<L>,
    figures: Arc<Figures>,
}

impl<L> Clone for Lines<L> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), figures: Arc::clone(&self.figures) }
    }
}

impl<L> Lines<L> {
    /// Gives a line to the writer. Never waits: when the queue is full, the line is lost and counted.
    pub fn push(&self, line: L) {
        if self.queue.try_send(line).is_err() {
            self.figures.dropped.fetch_add(1, Relaxed);
        }
    }
}

#[derive(Debug, Default)]
struct Figures {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// How many lines there were, for whoever asks.
#[derive(Clone, Debug)]
pub struct LineFigures(Arc<Figures>);

impl LineFigures {
    /// Returns how many lines were written.
    pub fn written(&self) -> u64 {
        self.0.written.load(Relaxed)
    }

    /// Returns how many were lost: the queue was full, or the file could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }
}

/// What a log is.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// What it is called in messages: `the query log`.
    pub name: &'static str,
    /// The name of the thread that writes it; at most 15 bytes.
    pub thread: &'static str,
    /// The file, which is appended to, and made anew when it has been moved away; `None` is the standard output.
    pub path: Option<PathBuf>,
    /// Lines that may wait to be written.
    pub queue_len: usize,
}

/// The thread that writes. It ends when every [`Lines`] is gone.
#[derive(Debug)]
pub struct LineWriter {
    name: &'static str,
    figures: Arc<Figures>,
    thread: Option<JoinHandle<()>>,
}

impl LineWriter {
    /// Opens the log and begins to write. `format` appends what a line looks like, with its end.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or there is no thread.
    pub fn start<L: Send + 'static>(
        log: LogFile,
        format: impl Fn(&L, &WallClock, &mut String) + Send + 'static,
    ) -> io::Result<(Self, Lines<L>)> {
        let target = Target::open(log.name, log.path)?;
        let (queue, lines) = sync_channel(log.queue_len);
        let figures = Arc::new(Figures::default());
        let mut writer =
            Writer { format, target, figures: Arc::clone(&figures), text: String::new(), held: 0 };
        let thread =
            std::thread::Builder::new().name(log.thread.to_owned()).spawn(move || writer.run(&lines))?;
        let lines = Lines { queue, figures: Arc::clone(&figures) };
        Ok((Self { name: log.name, figures, thread: Some(thread) }, lines))
    }

    /// Returns what tells how many lines there were.
    pub fn figures(&self) -> LineFigures {
        LineFigures(Arc::clone(&self.figures))
    }

    /// Waits until everything is written. Every [`Lines`] must have gone.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of {} had panicked", self.name);
        }
    }
}

struct Writer<F> {
    format: F,
    target: Target,
    figures: Arc<Figures>,
    text: String,
    /// Lines in `text`.
    held: u64,
}

impl<F> Writer<F> {
    fn run<L>(&mut self, lines: &Receiver<L>)
    where
        F: Fn(&L, &WallClock, &mut String),
    {
        let mut next_look = sys::now() + LOOK;
        loop {
            match lines.recv_timeout(LOOK) {
                Ok(line) => self.take(&line, lines),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = sys::now();
            if now >= next_look {
                next_look = now + LOOK;
                self.target.look();
            }
            std::thread::sleep(REST);
        }
    }

    /// Writes a line, and all that wait.
    fn take<L>(&mut self, first: &L, lines: &Receiver<L>)
    where
        F: Fn(&L, &WallClock, &mut String),
    {
        let wall = WallClock::read();
        self.push(first, &wall);
        while let Ok(line) = lines.try_recv() {
            self.push(&line, &wall);
            if self.text.len() >= BATCH_BYTES {
                self.flush();
            }
        }
        self.flush();
    }

    fn push<L>(&mut self, line: &L, wall: &WallClock)
    where
        F: Fn(&L, &WallClock, &mut String),
    {
        (self.format)(line, wall, &mut self.text);
        self.held += 1;
    }

    fn flush(&mut self) {
        let count = std::mem::take(&mut self.held);
        let figure = if self.target.write(self.text.as_bytes()) {
            &self.figures.written
        } else {
            &self.figures.dropped
        };
        figure.fetch_add(count, Relaxed);
        self.text.clear();
    }
}

/// The time of day, and the process's clock at that moment.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    wall: SystemTime,
    at: Instant,
}

impl WallClock {
    /// Takes `wall` as the time of day at `at`.
    pub const fn new(wall: SystemTime, at: Instant) -> Self {
        Self { wall, at }
    }

    #[expect(clippy::disallowed_methods, reason = "a log tells the time of day")]
    fn read() -> Self {
        Self { wall: SystemTime::now(), at: sys::now() }
    }

    /// Returns the time of day at an earlier moment, as it is written: `2026-01-31T12:00:00.000Z`.
    pub fn text(&self, at: Instant) -> impl std::fmt::Display {
        let ago = self.at.saturating_duration_since(at);
        humantime::format_rfc3339_millis(self.wall.checked_sub(ago).unwrap_or(self.wall))
    }
}

/// Appends a text in quotes, as JSON has it (RFC 8259 §7).
pub fn push_quoted(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_control() => {
                // Nothing fails that writes into memory.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Where lines go.
struct Target {
    name: &'static str,
    /// `None` is the standard output.
    path: Option<PathBuf>,
    file: Option<File>,
    /// Whether the last write failed: it is said once.
    has_failed: bool,
}

impl Target {
    fn open(name: &'static str, path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_deref().map(append).transpose()?;
        Ok(Self { name, path, file, has_failed: false })
    }

    /// Writes, all of it or what the disk takes. Returns whether it was all.
    fn write(&mut self, bytes: &[u8]) -> bool {
        let result = match (&mut self.file, &self.path) {
            (Some(file), _) => file.write_all(bytes),
            (None, None) => io::stdout().lock().write_all(bytes),
            (None, Some(_)) => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        if let Err(error) = &result
            && !std::mem::replace(&mut self.has_failed, true)
        {
            tracing::error!(%error, "{} cannot be written: lines are lost", self.name);
        }
        self.has_failed &= result.is_err();
        result.is_ok()
    }

    /// Opens the file anew if another one, or none, stands in its place: it was moved away to be kept.
    fn look(&mut self) {
        let Some(path) = &self.path else { return };
        let id = |meta: std::fs::Metadata| (meta.dev(), meta.ino());
        let there = std::fs::metadata(path).ok().map(id);
        let open = self.file.as_ref().and_then(|file| file.metadata().ok()).map(id);
        if there.is_some() && there == open {
            return;
        }
        match append(path) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.file = None;
                tracing::error!(file = %path.display(), %error, "{} cannot be opened", self.name);
            }
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_one_json_string_on_one_line() {
        let mut out = String::new();
        push_quoted(&mut out, "a\"b\\c\n\x1b\u{7f}\u{9b}é");
        assert_eq!(out, "\"a\\\"b\\\\c\\u000a\\u001b\\u007f\\u009bé\"");
    }

    #[test]
    fn every_line_is_written_or_counted_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let log = LogFile { name: "the log", thread: "log", path: Some(path.clone()), queue_len: 8 };
        let (mut writer, lines) = LineWriter::start(log, |n: &u32, _, out| {
            out.push_str(&format!("{n}\n"));
        })
        .unwrap();
        let figures = writer.figures();
        (0..1000).for_each(|n| lines.push(n));
        drop(lines);
        writer.join();
        let text = std::fs::read_to_string(path).unwrap();
        let written = text.lines().count() as u64;
        assert!(written >= 8 && text.starts_with("0\n1\n"));
        assert_eq!((figures.written(), figures.dropped()), (written, 1000 - written));
        assert!(figures.dropped() > 0, "a queue of eight is no place for a thousand");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_said_at_once() {
        let path = Some(PathBuf::from("/nonexistent/log"));
        let log = LogFile { name: "the log", thread: "log", path, queue_len: 8 };
        assert!(LineWriter::start(log, |_: &u32, _, _| {}).is_err());
    }
}

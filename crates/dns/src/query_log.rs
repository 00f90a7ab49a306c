//! The query log: a JSON object a line, written by a thread of its own.
//!
//! A worker copies what the line needs into a queue of fixed length; where that is full, the line is lost and counted.
//! With the log off, a reply costs one look at whether it is on.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use forebay::sys;
use forebay_core::{Instant, Rng};
use forebay_dns_core::forwarder::How;
use forebay_dns_core::wire::{NAME_LEN_MAX, NameText};

use crate::settings::{DnsConfig, QueryLogConfig};
use crate::stats::QueryLogStats;

/// Lines that wait to be written: at 100,000 a second, 80 ms of them, in 2.5 MiB.
const QUEUE_LEN: usize = 8192;

/// How long the writer rests after it has written what there was: it is woken so much less often.
const REST: Duration = Duration::from_millis(10);

/// How often the writer looks whether its file was moved away.
const LOOK: Duration = Duration::from_secs(1);

/// Lines that are written at once.
const BATCH_BYTES: usize = 64 << 10;

/// One worker's end of the log.
pub(crate) struct QueryLog {
    queue: SyncSender<Line>,
    sample: u32,
    chance: Rng,
    figures: Arc<Figures>,
    told: Option<(How, Duration)>,
}

#[derive(Debug, Default)]
struct Figures {
    written: AtomicU64,
    dropped: AtomicU64,
}

/// What a line says.
struct Line {
    at: Instant,
    client: SocketAddr,
    protocol: &'static str,
    how: Option<How>,
    took: Duration,
    rcode: u8,
    /// Name, type and class; as much as there is.
    question: [u8; NAME_LEN_MAX + 4],
    question_len: u16,
}

impl QueryLog {
    /// Another worker's end.
    pub(crate) fn another(&self, seed: u64) -> Self {
        Self {
            queue: self.queue.clone(),
            sample: self.sample,
            chance: Rng::new(seed),
            figures: Arc::clone(&self.figures),
            told: None,
        }
    }

    /// Notes how the next reply was found.
    pub(crate) const fn tell(&mut self, how: How, took: Duration) {
        self.told = Some((how, took));
    }

    /// Notes a reply that was written.
    pub(crate) fn note(&mut self, client: SocketAddr, protocol: &'static str, reply: &[u8]) {
        let told = self.told.take();
        if self.sample > 1 && self.chance.below(self.sample) != 0 {
            return;
        }
        let mut line = Line {
            at: sys::now(),
            client,
            protocol,
            how: told.map(|(how, _)| how),
            took: told.map_or(Duration::ZERO, |(_, took)| took),
            rcode: reply.get(3).map_or(0, |flags| flags & 0x0f),
            question: [0; NAME_LEN_MAX + 4],
            question_len: 0,
        };
        let question = question(reply);
        line.question.iter_mut().zip(question).for_each(|(to, from)| *to = *from);
        line.question_len = question.len() as u16;
        if self.queue.try_send(line).is_err() {
            self.figures.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// The question of a reply that we wrote; nothing if it has none.
fn question(reply: &[u8]) -> &[u8] {
    let rest = reply.get(12..).unwrap_or_default();
    let mut at = 0;
    while let Some(&len) = rest.get(at).filter(|_| reply[5] == 1) {
        at += 1 + usize::from(len);
        if len == 0 {
            return rest.get(..(at + 4).min(NAME_LEN_MAX + 4)).unwrap_or_default();
        }
    }
    &[]
}

/// The thread that writes. It ends when every worker's end is gone.
#[derive(Debug)]
pub(crate) struct QueryLogWriter {
    figures: Arc<Figures>,
    thread: Option<JoinHandle<()>>,
}

impl QueryLogWriter {
    /// Opens the log and begins to write.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or there is no thread.
    pub(crate) fn start(
        config: Arc<DnsConfig>,
        log: &QueryLogConfig,
        seed: u64,
    ) -> io::Result<(Self, QueryLog)> {
        let target = Target::open(log.path.clone())?;
        let (queue, lines) = sync_channel(QUEUE_LEN);
        let figures = Arc::new(Figures::default());
        let mut writer =
            Writer { config, target, figures: Arc::clone(&figures), text: String::new(), held: 0 };
        let thread =
            std::thread::Builder::new().name("dns-query-log".to_owned()).spawn(move || writer.run(&lines))?;
        let log = QueryLog {
            queue,
            sample: log.sample,
            chance: Rng::new(seed),
            figures: Arc::clone(&figures),
            told: None,
        };
        Ok((Self { figures, thread: Some(thread) }, log))
    }

    pub(crate) fn figures(&self) -> QueryLogFigures {
        QueryLogFigures(Arc::clone(&self.figures))
    }

    /// Waits until everything is written. Every worker must have ended.
    pub(crate) fn join(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of the query log had panicked");
        }
    }
}

/// The log's figures, for whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct QueryLogFigures(Arc<Figures>);

impl QueryLogFigures {
    pub(crate) fn stats(&self) -> QueryLogStats {
        QueryLogStats { written: self.0.written.load(Relaxed), dropped: self.0.dropped.load(Relaxed) }
    }
}

struct Writer {
    config: Arc<DnsConfig>,
    target: Target,
    figures: Arc<Figures>,
    text: String,
    /// Lines in `text`.
    held: u64,
}

impl Writer {
    fn run(&mut self, lines: &Receiver<Line>) {
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
    fn take(&mut self, first: &Line, lines: &Receiver<Line>) {
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

    fn push(&mut self, line: &Line, wall: &WallClock) {
        line.write(&mut self.text, wall, &self.config);
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
struct WallClock {
    wall: SystemTime,
    at: Instant,
}

impl WallClock {
    #[expect(clippy::disallowed_methods, reason = "a log tells the time of day")]
    fn read() -> Self {
        Self { wall: SystemTime::now(), at: sys::now() }
    }

    fn of(&self, at: Instant) -> SystemTime {
        let ago = self.at.saturating_duration_since(at);
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }
}

impl Line {
    fn write(&self, out: &mut String, wall: &WallClock, config: &DnsConfig) {
        let question = &self.question[..usize::from(self.question_len)];
        let (name, kind) = question.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
        let time = humantime::format_rfc3339_millis(wall.of(self.at));
        // Nothing fails that writes into memory.
        let _ = write!(
            out,
            r#"{{"time":"{time}","client":"{}","port":{},"protocol":"{}","name":"#,
            self.client.ip().to_canonical(),
            self.client.port(),
            self.protocol
        );
        if question.is_empty() {
            out.push_str("null");
        } else {
            push_quoted(out, &NameText(name).to_string());
        }
        let rtype = u16::from_be_bytes([kind[0], kind[1]]);
        let _ = write!(out, r#","type":"{}","rcode":"{}","#, Type(rtype), Code(self.rcode));
        match self.how {
            Some(How::Upstream(upstream)) => {
                out.push_str(r#""how":"upstream","upstream":"#);
                push_quoted(out, config.upstream_name(usize::from(upstream)));
            }
            how => {
                let _ = write!(out, r#""how":"{}""#, how.map_or("error", how_text));
            }
        }
        let _ = writeln!(out, r#","took_us":{}}}"#, self.took.as_micros());
    }
}

const fn how_text(how: How) -> &'static str {
    match how {
        How::Cached => "cache",
        How::Stale => "stale",
        How::Upstream(_) => "upstream",
        How::Local => "local",
        How::Special => "special",
        How::Blocked => "blocked",
        How::Rebind => "rebind",
        How::Refused => "refused",
    }
}

/// Appends a text in quotes; a name as it is shown has nothing but visible ASCII (RFC 8259 §7).
fn push_quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// A type by its name, or as RFC 3597 §5 writes those without.
struct Type(u16);

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            12 => "PTR",
            13 => "HINFO",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            39 => "DNAME",
            43 => "DS",
            46 => "RRSIG",
            47 => "NSEC",
            48 => "DNSKEY",
            52 => "TLSA",
            64 => "SVCB",
            65 => "HTTPS",
            251 => "IXFR",
            252 => "AXFR",
            255 => "ANY",
            257 => "CAA",
            other => return write!(f, "TYPE{other}"),
        };
        f.write_str(name)
    }
}

/// A response code by its name.
struct Code(u8);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const NAMES: [&str; 6] = ["NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "RCODE{}", self.0),
        }
    }
}

/// Where lines go.
struct Target {
    /// `None` is the standard output.
    path: Option<PathBuf>,
    file: Option<File>,
    /// Whether the last write failed: it is said once.
    has_failed: bool,
}

impl Target {
    fn open(path: Option<PathBuf>) -> io::Result<Self> {
        let file = path.as_deref().map(append).transpose()?;
        Ok(Self { path, file, has_failed: false })
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
            tracing::error!(%error, "the query log cannot be written: lines are lost");
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
                tracing::error!(file = %path.display(), %error, "the query log cannot be opened");
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

    fn config() -> DnsConfig {
        let settings = crate::Settings {
            upstreams: vec!["192.0.2.53".to_owned()],
            routes: vec![crate::RouteSettings {
                suffix: "Corp.example".to_owned(),
                upstreams: vec!["192.0.2.54".to_owned()],
                ..crate::RouteSettings::default()
            }],
            ..crate::Settings::default()
        };
        DnsConfig::new(&settings, &[], 1).unwrap()
    }

    fn line(reply: &[u8], how: Option<How>) -> String {
        let wall =
            WallClock { wall: SystemTime::UNIX_EPOCH + Duration::from_secs(3), at: Instant::from_nanos(9) };
        let mut line = Line {
            at: Instant::from_nanos(9),
            client: ([192, 0, 2, 7], 4000).into(),
            protocol: "udp",
            how,
            took: Duration::from_micros(1234),
            rcode: reply[3] & 15,
            question: [0; NAME_LEN_MAX + 4],
            question_len: 0,
        };
        let question = question(reply);
        line.question[..question.len()].copy_from_slice(question);
        line.question_len = question.len() as u16;
        let mut out = String::new();
        line.write(&mut out, &wall, &config());
        out
    }

    #[test]
    fn a_line_is_one_json_object_whatever_the_name_is() {
        let reply = b"\0\0\x81\x83\0\x01\0\0\0\0\0\0\x05a\"\\\n\xff\x01b\0\0\x1c\0\x01";
        assert_eq!(
            line(reply, Some(How::Blocked)),
            concat!(
                r#"{"time":"1970-01-01T00:00:03.000Z","client":"192.0.2.7","port":4000,"protocol":"udp","#,
                r#""name":"a\"\\\\\\010\\255.b","type":"AAAA","rcode":"NXDOMAIN","how":"blocked","took_us":1234}"#,
                "\n"
            )
        );
    }

    #[test]
    fn an_upstream_is_told_by_its_name_and_a_reply_without_question_has_no_name() {
        let reply = b"\0\0\x81\x81\0\0\0\0\0\0\0\0";
        assert!(line(reply, None).contains(r#""name":null,"type":"TYPE0","rcode":"FORMERR","how":"error""#));
        let reply = b"\0\0\x81\x80\0\x01\0\0\0\0\0\0\0\0\x02\0\x01";
        assert!(line(reply, Some(How::Upstream(0))).contains(r#""name":".","type":"NS""#));
        assert!(line(reply, Some(How::Upstream(0))).contains(r#""how":"upstream","upstream":"default","#));
        assert!(line(reply, Some(How::Upstream(1))).contains(r#""upstream":"corp.example","#));
    }
}

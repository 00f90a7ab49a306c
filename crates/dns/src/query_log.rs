//! The query log: a JSON object a line, written by a thread of its own.
//!
//! A worker copies what the line needs into a queue of fixed length; where that is full, the line is lost and counted.
//! With the log off, a reply costs one look at whether it is on.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay::lines::{LineFigures, LineWriter, Lines, LogFile, WallClock, push_quoted};
use forebay::sys;
use forebay_core::{Instant, Rng};
use forebay_dns_core::forwarder::How;
use forebay_dns_core::wire::{NAME_LEN_MAX, NameText};

use crate::settings::{DnsConfig, QueryLogConfig};
use crate::stats::QueryLogStats;

/// Lines that wait to be written: at 100,000 a second, 80 ms of them, in 2.5 MiB.
const QUEUE_LEN: usize = 8192;

/// One worker's end of the log.
pub(crate) struct QueryLog {
    lines: Lines<Line>,
    sample: u32,
    chance: Rng,
    told: Option<(How, Duration)>,
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
        Self { lines: self.lines.clone(), sample: self.sample, chance: Rng::new(seed), told: None }
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
        self.lines.push(line);
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
pub(crate) struct QueryLogWriter(LineWriter);

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
        let file = LogFile {
            name: "the query log",
            thread: "dns-query-log",
            path: log.path.clone(),
            queue_len: QUEUE_LEN,
        };
        let format = move |line: &Line, wall: &WallClock, out: &mut String| line.write(out, wall, &config);
        let (writer, lines) = LineWriter::start(file, format)?;
        Ok((Self(writer), QueryLog { lines, sample: log.sample, chance: Rng::new(seed), told: None }))
    }

    pub(crate) fn figures(&self) -> QueryLogFigures {
        QueryLogFigures(self.0.figures())
    }

    /// Waits until everything is written. Every worker must have ended.
    pub(crate) fn join(&mut self) {
        self.0.join();
    }
}

/// The log's figures, for whoever asks.
#[derive(Clone, Debug)]
pub(crate) struct QueryLogFigures(LineFigures);

impl QueryLogFigures {
    pub(crate) fn stats(&self) -> QueryLogStats {
        QueryLogStats { written: self.0.written(), dropped: self.0.dropped() }
    }
}

impl Line {
    fn write(&self, out: &mut String, wall: &WallClock, config: &DnsConfig) {
        let question = &self.question[..usize::from(self.question_len)];
        let (name, kind) = question.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
        let time = wall.text(self.at);
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

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

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
        let wall = WallClock::new(UNIX_EPOCH + Duration::from_secs(3), Instant::from_nanos(9));
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

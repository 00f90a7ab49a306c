//! The access log: a line for each connection or request, written by a thread of its own.
//!
//! With the log off, a connection costs one look at whether it is on.

mod request;

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use forebay::lines::{LineFigures, LineWriter, Lines, LogFile, WallClock, push_quoted};
use forebay_core::Instant;

pub(crate) use self::request::{Came, End, Trail};
use crate::settings::{AccessLogConfig, AccessLogFormat};

/// Lines that wait to be written: at 50,000 a second, 160 ms of them.
const QUEUE_LEN: usize = 8192;

/// What a line is of.
#[derive(Debug)]
enum Line {
    Connection(Entry),
    Request(Box<request::Request>),
}

/// What a line says of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// When it ended.
    pub(crate) at: Instant,
    /// How long it took.
    pub(crate) took: Duration,
    pub(crate) client: SocketAddr,
    /// The backend that served it, if one did.
    pub(crate) backend: Option<SocketAddr>,
    /// Bytes from the client and to it.
    pub(crate) up: u64,
    pub(crate) down: u64,
    /// How it ended: one word.
    pub(crate) end: &'static str,
}

/// One worker's end of the log.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Lines<Line>);

impl AccessLog {
    /// Opens the log of the proxy of this name, and begins to write.
    ///
    /// # Errors
    ///
    /// The file cannot be opened, or there is no thread.
    pub(crate) fn start(proxy: &str, config: &AccessLogConfig) -> io::Result<(AccessLogWriter, Self)> {
        let file = LogFile {
            name: "the access log",
            thread: "proxy-access",
            path: config.path.clone(),
            queue_len: QUEUE_LEN,
        };
        let (proxy, format) = (proxy.to_owned(), config.format);
        let (writer, lines) = LineWriter::start(file, move |line: &Line, wall, out| match (line, format) {
            (Line::Connection(entry), AccessLogFormat::Json) => entry.write_json(&proxy, wall, out),
            (Line::Connection(entry), AccessLogFormat::Text) => entry.write_text(wall, out),
            (Line::Request(request), AccessLogFormat::Json) => request.write_json(&proxy, wall, out),
            (Line::Request(request), AccessLogFormat::Text) => request.write_text(wall, out),
        })?;
        Ok((AccessLogWriter(writer), Self(lines)))
    }

    /// Gives the line of a connection to the writer.
    pub(crate) fn note(&self, entry: Entry) {
        self.0.push(Line::Connection(entry));
    }
}

/// The thread that writes. It ends when every worker's end is gone.
#[derive(Debug)]
pub(crate) struct AccessLogWriter(LineWriter);

impl AccessLogWriter {
    pub(crate) fn figures(&self) -> LineFigures {
        self.0.figures()
    }

    /// Waits until everything is written. Every worker must have ended.
    pub(crate) fn join(&mut self) {
        self.0.join();
    }
}

impl Entry {
    fn write_json(&self, proxy: &str, wall: &WallClock, out: &mut String) {
        // Nothing fails that writes into memory.
        let _ = write!(out, r#"{{"time":"{}","proxy":"#, wall.text(self.at));
        push_quoted(out, proxy);
        let (ip, port) = (self.client.ip().to_canonical(), self.client.port());
        let _ = write!(out, r#","client":"{ip}","port":{port},"#);
        match self.backend {
            Some(backend) => {
                let _ = write!(out, r#""backend":"{backend}","#);
            }
            None => out.push_str(r#""backend":null,"#),
        }
        let (up, down, took, end) = (self.up, self.down, self.took.as_micros(), self.end);
        let _ = writeln!(out, r#""bytes_up":{up},"bytes_down":{down},"took_us":{took},"end":"{end}"}}"#);
    }

    fn write_text(&self, wall: &WallClock, out: &mut String) {
        let _ = write!(out, "{} {} -> ", wall.text(self.at), self.client);
        match self.backend {
            Some(backend) => {
                let _ = write!(out, "{backend} ");
            }
            None => out.push_str("nobody "),
        }
        let (up, down, took, end) = (self.up, self.down, self.took, self.end);
        let _ = writeln!(out, "up {up} down {down} took {took:.1?} {end}");
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn entry() -> Entry {
        Entry {
            at: Instant::from_nanos(9),
            took: Duration::from_micros(1234),
            client: "[::ffff:192.0.2.7]:4000".parse().unwrap(),
            backend: Some("192.0.2.9:443".parse().unwrap()),
            up: 5,
            down: 7,
            end: "whole",
        }
    }

    fn wall() -> WallClock {
        WallClock::new(UNIX_EPOCH + Duration::from_secs(3), Instant::from_nanos(9))
    }

    #[test]
    fn a_connection_is_one_json_object() {
        let mut out = String::new();
        entry().write_json("a\"b", &wall(), &mut out);
        assert_eq!(
            out,
            concat!(
                r#"{"time":"1970-01-01T00:00:03.000Z","proxy":"a\"b","client":"192.0.2.7","port":4000,"#,
                r#""backend":"192.0.2.9:443","bytes_up":5,"bytes_down":7,"took_us":1234,"end":"whole"}"#,
                "\n"
            )
        );
    }

    #[test]
    fn a_client_that_nobody_served_is_told_as_such() {
        let entry = Entry { backend: None, end: "unreachable", ..entry() };
        let (mut json, mut text) = (String::new(), String::new());
        entry.write_json("web", &wall(), &mut json);
        entry.write_text(&wall(), &mut text);
        assert!(json.contains(r#""backend":null,"bytes_up""#), "{json}");
        assert!(text.contains("-> nobody up 5 down 7 took 1.2ms unreachable"), "{text}");
    }
}

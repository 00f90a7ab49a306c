//! HTTP/1.1: requests written as they are, answers read to their end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use forebay::dial::SocketEndpoint;
use forebay::{Cause, Connector, Dial, DialError, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::HttpLoad;
use super::io::{Io, Target};
use crate::load::{BenchError, Client, Tally, Trouble};

/// The longest head of an answer, in bytes.
const HEAD_MAX: usize = 256 * 1024;

/// Where clients get their connections.
#[derive(Clone)]
pub(super) enum Source {
    Pool(Pool<Opener>),
    Target(Arc<Target>),
}

/// Opens connections for a pool.
pub(super) struct Opener(Arc<Target>);

/// One connection.
pub(super) struct Connection {
    io: Io,
    /// Bytes that have been read and not been used.
    input: Vec<u8>,
    at: usize,
}

impl Source {
    pub(super) fn new(
        load: &HttpLoad,
        target: Arc<Target>,
        connections: Option<u32>,
    ) -> Result<Self, BenchError> {
        let Some(connections) = connections else { return Ok(Self::Target(target)) };
        Pool::builder(Opener(Arc::clone(&target)))
            .name("bench")
            .endpoint(target.endpoint())
            .config(load.config(connections))
            .acquire_timeout(load.timeout)
            .build()
            .map(Self::Pool)
            .map_err(|error| BenchError::setting("pool", connections, error.to_string()))
    }

    /// How many connections its pool has opened.
    pub(super) fn opened(&self) -> u64 {
        match self {
            Self::Pool(pool) => pool.snapshot().counters().dials_succeeded,
            Self::Target(_) => 0,
        }
    }
}

impl Connector for Opener {
    type Conn = Connection;
    type Endpoint = SocketEndpoint;

    async fn connect(&self, _: Dial<SocketEndpoint>) -> Result<Connection, DialError> {
        self.0.open().await.map(Connection::new)
    }

    fn is_alive(&self, connection: &mut Connection) -> bool {
        connection.at == connection.input.len() && connection.io.is_alive()
    }
}

/// Who makes requests.
pub(super) struct Requester {
    source: Source,
    requests: Vec<u8>,
    pipeline: usize,
    is_head: bool,
    limit: Duration,
}

impl Requester {
    pub(super) fn new(load: &HttpLoad, source: Source) -> Self {
        let mut request =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\n", load.method, load.url.path(), load.url.authority());
        for (name, value) in &load.fields {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if load.body > 0 || ["POST", "PUT", "PATCH"].contains(&load.method.as_str()) {
            request.push_str(&format!("Content-Length: {}\r\n", load.body));
        }
        if matches!(source, Source::Target(_)) {
            request.push_str("Connection: close\r\n");
        }
        request.push_str("\r\n");
        let mut one = request.into_bytes();
        one.resize(one.len() + load.body, b'x');
        Self {
            source,
            requests: one.repeat(load.pipeline),
            pipeline: load.pipeline,
            is_head: load.method == "HEAD",
            limit: load.timeout,
        }
    }

    /// Makes the requests on this connection; returns whether it can be used again.
    async fn exchange(&self, connection: &mut Connection, tally: &mut Tally) -> Result<bool, Trouble> {
        connection.io.write_all(&self.requests).await?;
        connection.io.flush().await?;
        tally.bytes_sent += self.requests.len() as u64;
        let mut stays = true;
        for turn in 0..self.pipeline {
            if !stays {
                let text =
                    format!("the connection ended after {turn} of {} pipelined answers", self.pipeline);
                return Err(Trouble::closed(&text));
            }
            let (status, last) = connection.answer(self.is_head, tally).await?;
            *tally.statuses.entry(status).or_default() += 1;
            stays = !last;
        }
        if connection.at < connection.input.len() {
            return Err(Trouble::new("protocol", "bytes after the answer that nobody asked for"));
        }
        Ok(stays)
    }
}

impl Client for Requester {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        match &self.source {
            Source::Target(target) => {
                let io = target.open().await.map_err(|error| Trouble::dial(&error))?;
                tally.opened += 1;
                self.exchange(&mut Connection::new(io), tally).await?;
            }
            Source::Pool(pool) => {
                let mut lease = pool.acquire().await?;
                match self.exchange(&mut lease, tally).await {
                    Ok(true) => lease.complete(),
                    Ok(false) => lease.complete_last(),
                    Err(trouble) => {
                        lease.discard(Cause::Reset);
                        return Err(trouble);
                    }
                }
            }
        }
        Ok(self.batch())
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn batch(&self) -> u64 {
        self.pipeline as u64
    }
}

/// How an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Length(u64),
    Chunked,
    UntilClose,
}

/// What an answer's head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) body: Body,
    /// The connection ends with this answer.
    pub(super) last: bool,
}

impl Connection {
    fn new(io: Io) -> Self {
        Self { io, input: Vec::with_capacity(4096), at: 0 }
    }

    /// Reads an answer to its end; returns its status, and whether it was the connection's last.
    async fn answer(&mut self, is_head: bool, tally: &mut Tally) -> Result<(u16, bool), Trouble> {
        loop {
            let length = self.head_length(tally).await?;
            let head = Head::read(&self.input[self.at..self.at + length], is_head)
                .ok_or_else(|| Trouble::new("protocol", "an answer whose head is not HTTP/1.1"))?;
            self.at += length;
            // RFC 9110 §15.2: interim answers come before the final one.
            if head.status < 200 && head.status != 101 {
                continue;
            }
            match head.body {
                Body::Length(bytes) => self.skip(bytes, tally).await?,
                Body::Chunked => self.skip_chunks(tally).await?,
                Body::UntilClose => {
                    self.at = self.input.len();
                    while self.more(tally).await? {
                        self.at = self.input.len();
                    }
                }
            }
            return Ok((head.status, head.last));
        }
    }

    /// Reads until a head is whole, and returns its length.
    async fn head_length(&mut self, tally: &mut Tally) -> Result<usize, Trouble> {
        let mut seen = 0;
        loop {
            let input = &self.input[self.at..];
            if let Some(end) = input[seen..].windows(4).position(|window| window == b"\r\n\r\n") {
                return Ok(seen + end + 4);
            }
            seen = input.len().saturating_sub(3);
            if input.len() > HEAD_MAX {
                return Err(Trouble::new("protocol", "an answer whose head has no end"));
            }
            self.need(tally).await?;
        }
    }

    async fn skip(&mut self, bytes: u64, tally: &mut Tally) -> Result<(), Trouble> {
        let mut left = bytes;
        loop {
            let here = left.min((self.input.len() - self.at) as u64);
            self.at += here as usize;
            left -= here;
            if left == 0 {
                return Ok(());
            }
            self.need(tally).await?;
        }
    }

    /// RFC 9112 §7.1.
    async fn skip_chunks(&mut self, tally: &mut Tally) -> Result<(), Trouble> {
        loop {
            let line = self.line(tally).await?;
            let size = std::str::from_utf8(&self.input[line.0..line.1])
                .ok()
                .and_then(|text| u64::from_str_radix(text.split(';').next()?.trim(), 16).ok())
                .ok_or_else(|| Trouble::new("protocol", "a chunk without a size"))?;
            if size == 0 {
                loop {
                    let (start, end) = self.line(tally).await?;
                    if start == end {
                        return Ok(());
                    }
                }
            }
            self.skip(size, tally).await?;
            let (start, end) = self.line(tally).await?;
            if start != end {
                return Err(Trouble::new("protocol", "a chunk that is longer than its size"));
            }
        }
    }

    /// Reads a line, and returns where it stands in the input, without its end.
    async fn line(&mut self, tally: &mut Tally) -> Result<(usize, usize), Trouble> {
        loop {
            if let Some(end) = self.input[self.at..].windows(2).position(|window| window == b"\r\n") {
                let start = self.at;
                self.at = start + end + 2;
                return Ok((start, start + end));
            }
            if self.input.len() - self.at > HEAD_MAX {
                return Err(Trouble::new("protocol", "a line without an end"));
            }
            self.need(tally).await?;
        }
    }

    /// Reads more; it is an error if there is no more.
    async fn need(&mut self, tally: &mut Tally) -> Result<(), Trouble> {
        if self.more(tally).await? {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        }
    }

    async fn more(&mut self, tally: &mut Tally) -> io::Result<bool> {
        if self.at == self.input.len() {
            self.input.clear();
            self.at = 0;
        } else if self.at > HEAD_MAX {
            self.input.drain(..self.at);
            self.at = 0;
        }
        if self.input.len() == self.input.capacity() {
            self.input.reserve(64 * 1024);
        }
        let count = self.io.read_buf(&mut self.input).await?;
        tally.bytes_received += count as u64;
        Ok(count > 0)
    }
}

impl Head {
    /// Reads a head; `None` when it is none.
    pub(super) fn read(head: &[u8], is_head: bool) -> Option<Self> {
        let mut lines =
            head.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let start = lines.next()?;
        let minor = start.strip_prefix(b"HTTP/1.")?.first().filter(|minor| minor.is_ascii_digit())?;
        let status = std::str::from_utf8(start.get(9..12)?).ok()?.parse().ok()?;
        let mut body = Body::UntilClose;
        let mut last = *minor == b'0';
        for line in lines {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
            let has = |word: &[u8]| {
                value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(word))
            };
            if is(b"content-length") {
                body = Body::Length(std::str::from_utf8(value).ok()?.parse().ok()?);
            } else if is(b"transfer-encoding") && has(b"chunked") {
                body = Body::Chunked;
            } else if is(b"connection") {
                last = has(b"close") || last && !has(b"keep-alive");
            }
        }
        // RFC 9112 §6.3: some answers have no body, whatever their fields say.
        if is_head || (100..200).contains(&status) || status == 204 || status == 304 {
            body = Body::Length(0);
        }
        Some(Self { status, body, last: last || body == Body::UntilClose })
    }
}

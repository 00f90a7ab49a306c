//! An HTTP/1.1 backend that does what the path says.
//!
//! Each answer that is one carries `Backend-Connection: C` and `Backend-Request: R`: the connection's number, and which
//! request on it this was. The body of a request is read before the answer is sent, but where it says otherwise.
//!
//! | path | answer |
//! |---|---|
//! | `/` and any other | 200, `ok` |
//! | `/size/N` | 200 with a body of N bytes, by length |
//! | `/chunked/N/EACH` | 200 with N bytes in chunks of EACH |
//! | `/trailers/N` | 200, chunked, then the trailers `Backend-Bytes: N` and `Backend-Note: end` |
//! | `/close-delimited/N` | 200 with N bytes and no length: the end is the connection's |
//! | `/status/CODE` | that status, `ok` |
//! | `/head` | 200, and the request's head as it came, as a body |
//! | `/echo` | 200, chunked: the request's body, piece by piece as it comes |
//! | `/delay/MS` | 200 after so many milliseconds |
//! | `/drip/N/MS` | 200 with N bytes, one every so many milliseconds |
//! | `/hints` | 103, then 200 |
//! | `/continue` | 100 when the client expects it, then reads the body, then 200 |
//! | `/early` | 413 at once, the body not read before; the connection stays |
//! | `/early-close` | 413 at once with `Connection: close`, the body never read |
//! | `/upgrade` | 101 and all bytes back from then on, if asked for an upgrade; else 426 |
//! | `/close` | 200 with `Connection: close`, and closes |
//! | `/close-silently` | 200 as if the connection stayed, and closes |
//! | `/http10` | 200 as HTTP/1.0, and closes |
//! | `/http10-keep` | 200 as HTTP/1.0 with `Connection: keep-alive` |
//! | `/keep-alive/SECONDS` | 200 with `Keep-Alive: timeout=SECONDS`, which it doesn't obey |
//! | `/negotiate`, `/ntlm` | 401 that asks for Negotiate or NTLM |
//! | `/hang` | nothing, ever |
//! | `/hang-up` | nothing, and closes |
//! | `/reset` | nothing, and resets |
//! | `/short/N` | 200 that promises N bytes, sends half of them, and closes |
//! | `/short-chunked/N` | 200, one chunk of N bytes and no last one, and closes |
//! | `/short-reset/N` | as `/short`, with a reset |
//! | `/extra` | 200, and with it bytes that nobody asked for |
//! | `/extra/MS` | 200, and so many milliseconds later bytes that nobody asked for |
//! | `/wrong/KIND` | an answer against RFC 9112: one of [`WRONG`] |
//!
//! With `?first=K` a path does this for the first K requests for it, with `?reused` on a connection that has carried a
//! request before, and is `/` otherwise. `CONNECT` is answered with 200 and a tunnel that sends all bytes back; to an
//! authority that begins with `refuse`, with 403. What is on no list is made of [`Step`]s by
//! [`Builder::answer`](super::Builder::answer).

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::fill::fill;
use super::{Connection, End};

/// Answers whose framing is wrong, by the name under which `/wrong/` has them.
pub const WRONG: &[(&str, &str)] = &[
    ("no-http", "SSH-2.0-nobody\r\n\r\n"),
    ("no-status", "HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n"),
    (
        "length-and-chunked",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    ("two-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!"),
    ("length-list", "HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok!"),
    ("length-sign", "HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok"),
    ("length-overflow", "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nok"),
    ("chunked-not-last", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    ("chunk-size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nok\r\n0\r\n\r\n"),
    ("chunk-end", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok!\r\n0\r\n\r\n"),
    ("bare-lf", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    ("bare-cr", "HTTP/1.1 200 OK\r\nA: b\rc\r\nContent-Length: 2\r\n\r\nok"),
    ("fold", "HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok"),
    ("nul", "HTTP/1.1 200 OK\r\nA: b\0c\r\nContent-Length: 2\r\n\r\nok"),
    ("space-before-colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok"),
    ("switching-unasked", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nok"),
];

/// The longest head that is read, in bytes.
const HEAD_MAX: usize = 256 * 1024;

/// What is done to answer one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reads the request's body to its end.
    ReadBody,
    /// Writes these bytes.
    Write(Vec<u8>),
    /// Writes so many bytes of no meaning.
    Fill(u64),
    /// Sends the request's body back in chunks, piece by piece as it comes, and the last chunk.
    EchoBody,
    /// Does nothing for so long; rounded up to whole milliseconds.
    Wait(Duration),
    /// From here on sends back what comes, until the client ends; the last step.
    Tunnel,
    /// Never does anything again.
    Hang,
    /// Ends the connection.
    Close,
    /// Ends the connection with a reset.
    Reset,
}

impl Step {
    /// Writes text.
    pub fn write(text: impl Into<String>) -> Self {
        Self::Write(text.into().into_bytes())
    }
}

/// A request's head.
struct Request {
    head: Vec<u8>,
    method: String,
    path: String,
    query: String,
    framing: Framing,
    /// The client waits for 100 before it sends the body.
    expects: bool,
    /// The protocol that it wants to upgrade to.
    upgrade: Option<String>,
    /// The client wants the connection closed.
    last: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
}

/// What is left to be read of a body.
enum Left {
    Bytes(u64),
    /// So many bytes of this chunk.
    Chunk(u64),
    ChunkHead,
    None,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    pub(super) async fn http(&mut self) -> io::Result<End> {
        // Requests that come together are read together: a close with bytes unread would be a reset.
        let mut input = Vec::with_capacity(4096);
        loop {
            let Some(request) = self.read_head(&mut input).await? else { return Ok(End::Close) };
            let turn = self.shared.count_request(self.number);
            let steps = self.steps(&request, turn);
            let mut body = match request.framing {
                Framing::Length(0) => Left::None,
                Framing::Length(bytes) => Left::Bytes(bytes),
                Framing::Chunked => Left::ChunkHead,
            };
            for step in steps {
                match step {
                    Step::ReadBody => while self.body_piece(&mut input, &mut body).await?.is_some() {},
                    Step::Write(bytes) => self.stream.write_all(&bytes).await?,
                    Step::Fill(bytes) => fill(&mut self.stream, bytes).await?,
                    Step::EchoBody => {
                        while let Some(piece) = self.body_piece(&mut input, &mut body).await? {
                            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
                            chunk.extend_from_slice(&piece);
                            chunk.extend_from_slice(b"\r\n");
                            self.stream.write_all(&chunk).await?;
                        }
                        self.stream.write_all(b"0\r\n\r\n").await?;
                    }
                    Step::Wait(span) => tokio::time::sleep(span).await,
                    Step::Tunnel => {
                        let early = std::mem::take(&mut input);
                        return self.echo(&early).await;
                    }
                    Step::Hang => std::future::pending().await,
                    Step::Close => return Ok(End::Close),
                    Step::Reset => return Ok(End::Reset),
                }
            }
            // What an early answer left unread is still in the way of the next request.
            while self.body_piece(&mut input, &mut body).await?.is_some() {}
            if request.last {
                return Ok(End::Close);
            }
        }
    }

    /// Reads until a head is whole; `None` at the connection's end.
    async fn read_head(&mut self, input: &mut Vec<u8>) -> io::Result<Option<Request>> {
        let mut seen = 0;
        loop {
            if let Some(end) = find(&input[seen..], b"\r\n\r\n") {
                let head: Vec<u8> = input.drain(..seen + end + 4).collect();
                self.count_bytes(head.len());
                return Request::read(head).map(Some);
            }
            seen = input.len().saturating_sub(3);
            if input.len() > HEAD_MAX {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a head without an end"));
            }
            if self.stream.read_buf(input).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Reads the next piece of a body; `None` at its end.
    async fn body_piece(&mut self, input: &mut Vec<u8>, left: &mut Left) -> io::Result<Option<Vec<u8>>> {
        loop {
            match left {
                Left::None => return Ok(None),
                Left::Bytes(0) => *left = Left::None,
                Left::Chunk(0) => {
                    self.line(input).await?;
                    *left = Left::ChunkHead;
                }
                Left::ChunkHead => {
                    let line = self.line(input).await?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    let size = u64::from_str_radix(size, 16)
                        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                    *left = Left::Chunk(size);
                    if size == 0 {
                        while !self.line(input).await?.is_empty() {}
                        *left = Left::None;
                    }
                }
                Left::Bytes(bytes) | Left::Chunk(bytes) => {
                    if input.is_empty() && self.stream.read_buf(input).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                    let count = (*bytes).min(input.len() as u64);
                    *bytes -= count;
                    let piece: Vec<u8> = input.drain(..count as usize).collect();
                    self.count_bytes(piece.len());
                    return Ok(Some(piece));
                }
            }
        }
    }

    /// Reads a line, and returns it without its end.
    async fn line(&mut self, input: &mut Vec<u8>) -> io::Result<String> {
        loop {
            if let Some(end) = find(input, b"\r\n") {
                let line: Vec<u8> = input.drain(..end + 2).take(end).collect();
                self.count_bytes(end + 2);
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.stream.read_buf(input).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Decides what a request is answered with; it is the `turn`th on its connection.
    fn steps(&self, request: &Request, turn: u64) -> Vec<Step> {
        let answer = Answer { stamp: (self.number, turn), is_head: request.method == "HEAD", request };
        if let Some(steps) = self.shared.answers.get(&request.path) {
            return steps.clone();
        }
        if request.method == "CONNECT" {
            let refuses = request.path.starts_with("refuse");
            return if refuses { answer.plain("403 Forbidden", "") } else { answer.tunnel("200 OK", "") };
        }
        if request.query == "reused" && turn == 1 {
            return answer.ok();
        }
        if let Some(first) = request.query.strip_prefix("first=")
            && self.shared.count_path(&request.path) > first.parse().unwrap_or(0)
        {
            return answer.ok();
        }
        answer.of_path().unwrap_or_else(|| answer.ok())
    }
}

/// What one request is answered with.
struct Answer<'a> {
    request: &'a Request,
    stamp: (u64, u64),
    is_head: bool,
}

impl Answer<'_> {
    fn of_path(&self) -> Option<Vec<Step>> {
        let mut parts = self.request.path.strip_prefix('/')?.split('/');
        let name = parts.next()?;
        let word = parts.next();
        let number = |part: Option<&str>| part.and_then(|part| part.parse::<u64>().ok());
        let n = number(word);
        let m = number(parts.next());
        let close = "Connection: close\r\n";
        let steps = match name {
            "size" => self.sized("200 OK", "", n?),
            "chunked" => self.chunked(n?, m?.max(1), ""),
            "trailers" => {
                let n = n?;
                self.chunked(n, 1000, &format!("Backend-Bytes: {n}\r\nBackend-Note: end\r\n"))
            }
            "close-delimited" => {
                let fill = if self.is_head { Step::Fill(0) } else { Step::Fill(n?) };
                vec![Step::ReadBody, self.head("1.1", "200 OK", close), fill, Step::Close]
            }
            "status" => {
                let code = n.filter(|code| (200..600).contains(code))?;
                match code {
                    // RFC 9110 §15.3.5 and §15.4.5: neither has a body.
                    204 | 304 => vec![Step::ReadBody, self.head("1.1", &format!("{code} Asked"), "")],
                    _ => self.plain(&format!("{code} Asked"), ""),
                }
            }
            "head" => {
                let head = &self.request.head;
                let mut steps = vec![
                    Step::ReadBody,
                    self.head("1.1", "200 OK", &format!("Content-Length: {}\r\n", head.len())),
                ];
                if !self.is_head {
                    steps.push(Step::Write(head.clone()));
                }
                steps
            }
            "echo" => {
                vec![self.head("1.1", "200 OK", "Transfer-Encoding: chunked\r\n"), Step::EchoBody]
            }
            "delay" => after(vec![Step::ReadBody, Step::Wait(Duration::from_millis(n?))], self.ok()),
            "drip" => {
                let (bytes, pause) = (n?, Duration::from_millis(m?));
                let mut steps =
                    vec![Step::ReadBody, self.head("1.1", "200 OK", &format!("Content-Length: {bytes}\r\n"))];
                if !self.is_head {
                    steps.extend((0..bytes).flat_map(|_| [Step::Wait(pause), Step::write(".")]));
                }
                steps
            }
            "hints" => {
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
                after(vec![Step::ReadBody, Step::write(hints)], self.ok())
            }
            "continue" if self.request.expects => {
                after(vec![Step::write("HTTP/1.1 100 Continue\r\n\r\n")], self.ok())
            }
            "early" => self.ok_with("413 Content Too Large", "").split_off(1),
            "early-close" => {
                after(self.ok_with("413 Content Too Large", close).split_off(1), vec![Step::Close])
            }
            "upgrade" => match &self.request.upgrade {
                Some(protocol) => self.tunnel(
                    "101 Switching Protocols",
                    &format!("Connection: upgrade\r\nUpgrade: {protocol}\r\n"),
                ),
                None => self.plain("426 Upgrade Required", "Upgrade: echo\r\nConnection: upgrade\r\n"),
            },
            "close" => after(self.plain("200 OK", close), vec![Step::Close]),
            "close-silently" => after(self.ok(), vec![Step::Close]),
            "http10" => vec![
                Step::ReadBody,
                self.head("1.0", "200 OK", ""),
                Step::write(if self.is_head { "" } else { "ok" }),
                Step::Close,
            ],
            "http10-keep" => {
                let fields = "Connection: keep-alive\r\nContent-Length: 2\r\n";
                let body = Step::write(if self.is_head { "" } else { "ok" });
                vec![Step::ReadBody, self.head("1.0", "200 OK", fields), body]
            }
            "keep-alive" => self.plain("200 OK", &format!("Keep-Alive: timeout={}\r\n", n?)),
            "negotiate" => self.plain("401 Unauthorized", "WWW-Authenticate: Negotiate\r\n"),
            "ntlm" => self.plain("401 Unauthorized", "WWW-Authenticate: NTLM\r\n"),
            "hang" => vec![Step::Hang],
            "hang-up" => vec![Step::Close],
            "reset" => vec![Step::Reset],
            "short" | "short-reset" => {
                let end = if name == "short" { Step::Close } else { Step::Reset };
                let head = self.head("1.1", "200 OK", &format!("Content-Length: {}\r\n", n?));
                vec![Step::ReadBody, head, Step::Fill(n? / 2), end]
            }
            "short-chunked" => vec![
                Step::ReadBody,
                self.head("1.1", "200 OK", "Transfer-Encoding: chunked\r\n"),
                Step::write(format!("{:x}\r\n", n?)),
                Step::Fill(n?),
                Step::write("\r\n"),
                Step::Close,
            ],
            "extra" => {
                let stray = Step::write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray");
                match n {
                    // In one write with the answer, so that it comes with it.
                    None => {
                        let mut steps = self.ok();
                        if let (Some(Step::Write(last)), Step::Write(stray)) = (steps.last_mut(), &stray) {
                            last.extend_from_slice(stray);
                        }
                        steps
                    }
                    Some(after_ms) => {
                        after(self.ok(), vec![Step::Wait(Duration::from_millis(after_ms)), stray])
                    }
                }
            }
            "wrong" => {
                let (_, answer) = WRONG.iter().find(|(kind, _)| Some(*kind) == word)?;
                vec![Step::ReadBody, Step::write(*answer)]
            }
            _ => return None,
        };
        Some(steps)
    }

    fn ok(&self) -> Vec<Step> {
        self.plain("200 OK", "")
    }

    /// Reads the body, and answers `ok` in one write.
    fn plain(&self, status: &str, fields: &str) -> Vec<Step> {
        self.ok_with(status, fields)
    }

    fn ok_with(&self, status: &str, fields: &str) -> Vec<Step> {
        let Step::Write(mut bytes) = self.head("1.1", status, &format!("{fields}Content-Length: 2\r\n"))
        else {
            unreachable!("a head is written")
        };
        if !self.is_head {
            bytes.extend_from_slice(b"ok");
        }
        vec![Step::ReadBody, Step::Write(bytes)]
    }

    fn sized(&self, status: &str, fields: &str, bytes: u64) -> Vec<Step> {
        let head = self.head("1.1", status, &format!("{fields}Content-Length: {bytes}\r\n"));
        let bytes = if self.is_head { 0 } else { bytes };
        vec![Step::ReadBody, head, Step::Fill(bytes)]
    }

    fn chunked(&self, bytes: u64, each: u64, trailers: &str) -> Vec<Step> {
        let announced = if trailers.is_empty() { "" } else { "Trailer: Backend-Bytes, Backend-Note\r\n" };
        let fields = format!("Transfer-Encoding: chunked\r\n{announced}");
        let mut steps = vec![Step::ReadBody, self.head("1.1", "200 OK", &fields)];
        if self.is_head {
            return steps;
        }
        let mut left = bytes;
        while left > 0 {
            let size = left.min(each);
            steps.extend([Step::write(format!("{size:x}\r\n")), Step::Fill(size), Step::write("\r\n")]);
            left -= size;
        }
        steps.push(Step::write(format!("0\r\n{trailers}\r\n")));
        steps
    }

    fn tunnel(&self, status: &str, fields: &str) -> Vec<Step> {
        vec![Step::ReadBody, self.head("1.1", status, fields), Step::Tunnel]
    }

    fn head(&self, version: &str, status: &str, fields: &str) -> Step {
        let (connection, request) = self.stamp;
        Step::write(format!(
            "HTTP/{version} {status}\r\nServer: scripted\r\nBackend-Connection: {connection}\r\n\
             Backend-Request: {request}\r\n{fields}\r\n"
        ))
    }
}

fn after(mut first: Vec<Step>, then: Vec<Step>) -> Vec<Step> {
    first.extend(then);
    first
}

impl Request {
    fn read(head: Vec<u8>) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target), Some(version)) = (words.next(), words.next(), words.next()) else {
            return Err(wrong("no request line"));
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut request = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            framing: Framing::Length(0),
            expects: false,
            upgrade: None,
            last: version == "HTTP/1.0",
            head,
        };
        for line in lines {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    request.framing =
                        Framing::Length(value.parse().map_err(|_| wrong("a length that is no number"))?);
                }
                "transfer-encoding" => request.framing = Framing::Chunked,
                "expect" => request.expects = value.eq_ignore_ascii_case("100-continue"),
                "upgrade" => request.upgrade = Some(value.to_owned()),
                "connection" => {
                    let has =
                        |option: &str| value.split(',').any(|word| word.trim().eq_ignore_ascii_case(option));
                    request.last = has("close") || request.last && !has("keep-alive");
                }
                _ => {}
            }
        }
        Ok(request)
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

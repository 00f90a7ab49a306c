//! The admin endpoint of a running forebay, asked from outside.

use std::env;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::config::TOKEN_VARIABLE;

/// Where an admin endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Remote {
    /// Host and port.
    authority: String,
}

/// How long an answer is waited for: the endpoint itself gives its workers two seconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// More than any scrape has.
const ANSWER_MAX: u64 = 16 << 20;
/// Where servers have it unless they are told otherwise.
const PORT: u16 = 9053;

impl Remote {
    /// Reads `http://127.0.0.1:9053`, with or without the scheme and the port.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is not the address of an admin endpoint, like http://127.0.0.1:{PORT}");
        if text.starts_with("https://") {
            return Err(format!("`{text}`: admin endpoints speak http, not https"));
        }
        let rest = text.strip_prefix("http://").unwrap_or(text);
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let is_bare = !authority.contains([' ', '@', '?', '#']) && !authority.contains('/');
        if authority.is_empty() || !is_bare {
            return Err(wrong());
        }
        let has_port = match authority.rsplit_once(':') {
            // What is left of an address of IPv6 in brackets ends with one.
            Some((host, port)) if !host.is_empty() && (!host.contains(':') || host.ends_with(']')) => {
                port.parse::<u16>().map_err(|_| wrong()).map(|_| true)?
            }
            Some(_) if !authority.ends_with(']') => return Err(wrong()),
            _ => false,
        };
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{PORT}") };
        Ok(Self { authority })
    }

    /// Asks for a path, and returns the body of the answer.
    ///
    /// # Errors
    ///
    /// When nobody answers there, or with anything else than 200 and text.
    pub(crate) fn get(&self, path: &str) -> Result<String, String> {
        let answer = self.exchange(path).map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                format!("{self}: nobody listens there; is forebay running, with --admin {}?", self.authority)
            }
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("{self}: no answer in {PATIENCE:?}")
            }
            _ => format!("{self}: {error}"),
        })?;
        body(&answer).map_err(|problem| format!("{self}{path}: {problem}"))
    }

    fn exchange(&self, path: &str) -> io::Result<Vec<u8>> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in self.authority.to_socket_addrs()? {
            let mut stream = match TcpStream::connect_timeout(&address, PATIENCE) {
                Ok(stream) => stream,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let token = env::var(TOKEN_VARIABLE).ok().filter(|token| !token.is_empty());
            let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
            // HTTP/1.0: the answer ends with its connection, and comes in no chunks.
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{token}\r\n", self.authority);
            // Whoever speaks first, and leaves, has said what it is: that is an answer too.
            let written = stream.write_all(request.as_bytes());
            let mut answer = Vec::new();
            let read = stream.take(ANSWER_MAX).read_to_end(&mut answer);
            if answer.is_empty() {
                written?;
                read?;
            }
            return Ok(answer);
        }
        Err(last)
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// Takes the body out of an answer.
fn body(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let foreign = "what answers there is no forebay's admin endpoint";
    let (head, body) = text.split_once("\r\n\r\n").ok_or(foreign)?;
    let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)).ok_or(foreign)?;
    match status {
        "200" => Ok(body.to_owned()),
        "401" => Err(format!("it wants a token: set {TOKEN_VARIABLE} to it")),
        "404" => Err(format!("404: {foreign}")),
        _ => Err(format!("answered {status}: {}", body.lines().next().unwrap_or_default())),
    }
}

/// One line of the text format of Prometheus.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sample {
    /// The name.
    pub(crate) name: String,
    /// Labels and their values.
    pub(crate) labels: Vec<(String, String)>,
    /// The value.
    pub(crate) value: f64,
}

impl Sample {
    /// Returns the value of a label; nothing if it has none.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// Reads the text format of Prometheus. Lines that are none are passed over.
pub(crate) fn samples(text: &str) -> Vec<Sample> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

fn sample(line: &str) -> Option<Sample> {
    let end = line.find(['{', ' '])?;
    let name = line[..end].to_owned();
    let (mut rest, mut labels) = (&line[end..], Vec::new());
    if let Some(mut inside) = rest.strip_prefix('{') {
        loop {
            inside = inside.trim_start_matches(',');
            if let Some(after) = inside.strip_prefix('}') {
                rest = after;
                break;
            }
            let (key, after) = inside.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.push((key.to_owned(), value));
            inside = after;
        }
    }
    let value = rest.split_ascii_whitespace().next()?;
    let value = if value == "+Inf" { f64::INFINITY } else { value.parse().ok()? };
    Some(Sample { name, labels, value })
}

/// Reads up to the closing quotation mark, and returns what comes after it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn scheme_and_port_may_be_left_out() {
        for (text, whole) in [
            ("http://127.0.0.1:9053", "http://127.0.0.1:9053"),
            ("http://127.0.0.1:9053/", "http://127.0.0.1:9053"),
            ("127.0.0.1", "http://127.0.0.1:9053"),
            ("localhost:1", "http://localhost:1"),
            ("[::1]", "http://[::1]:9053"),
            ("http://[::1]:7", "http://[::1]:7"),
        ] {
            assert_eq!(Remote::new(text).unwrap().to_string(), whole);
        }
        for wrong in ["", "http://", "https://x", "http://x/pools", "x:y", "::1", "a b", ":9053", "x:70000"] {
            assert!(Remote::new(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_200_has_a_body() {
        assert_eq!(body(b"HTTP/1.0 200 OK\r\nx: y\r\n\r\n{}"), Ok("{}".to_owned()));
        assert!(body(b"HTTP/1.1 401 Unauthorized\r\n\r\n").unwrap_err().contains("FOREBAY_ADMIN_TOKEN"));
        assert!(body(b"HTTP/1.1 503 No\r\n\r\na worker\n").unwrap_err().contains("503: a worker"));
        for foreign in
            [&b"SSH-2.0-OpenSSH"[..], b"", b"\r\n\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n", &[0xff; 99]]
        {
            assert!(body(foreign).unwrap_err().contains("no forebay"), "{foreign:?}");
        }
    }

    #[test]
    fn samples_are_read_with_their_labels() {
        let text = "# HELP a b\n# TYPE a counter\na 1\nb{x=\"1\",y=\"a\\\"b,}\"} 2.5\nc{le=\"+Inf\"} +Inf\nbroken{x=\"\nalso";
        let read = samples(text);
        assert_eq!(read.len(), 3, "{read:?}");
        assert_eq!((read[0].name.as_str(), read[0].value), ("a", 1.0));
        assert_eq!((read[1].label("x"), read[1].label("y"), read[1].label("z")), ("1", "a\"b,}", ""));
        assert!(read[2].value.is_infinite());
    }

    proptest! {
        #[test]
        fn nothing_that_is_read_panics(text in "\\PC{0,80}") {
            let _ = (samples(&text), Remote::new(&text), body(text.as_bytes()));
        }
    }
}

//! The admin endpoint of a running forebay, asked from outside.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::config::TOKEN_VARIABLE;
use crate::failure::Failure;

/// How long an answer may take once there is a connection, and how long making one may: the endpoint itself gives its
/// workers two seconds.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes: some tens of thousands of pools.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// The port of an address that has none.
const PORT: u16 = 9053;

/// Where an admin endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Host and port, as they are connected to.
    authority: String,
}

impl FromStr for Remote {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |remedy: &str| Err(format!("`{text}` is no admin endpoint: {remedy}"));
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(_) => return wrong("it speaks plain HTTP, so write http://HOST:PORT"),
            None => text,
        };
        let (authority, path) =
            rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
        if !matches!(path, "" | "pools" | "metrics") || authority.contains('@') {
            return wrong("write http://HOST:PORT, and nothing after it");
        }
        let authority = match authority.strip_prefix(':') {
            Some(port) => format!("127.0.0.1:{port}"),
            None => authority.to_owned(),
        };
        let after_host = authority.rfind(']').unwrap_or_default();
        let authority = match authority[after_host..].split_once(':') {
            Some((_, port)) if port.parse().is_ok_and(|port: u16| port > 0) => authority,
            Some(_) => return wrong("a port is a number from 1 to 65535 (and an IPv6 address stands in [])"),
            None => format!("{authority}:{PORT}"),
        };
        if authority.starts_with(':') || authority.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return wrong("write a host, like http://127.0.0.1:9053");
        }
        Ok(Self { authority })
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// Why an endpoint has not said what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error(
        "cannot be reached: {0}: nobody listens there; is forebay running, with this address as --admin?"
    )]
    Refused(io::Error),
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("does not answer in {} s", ANSWER_MAX.as_secs())]
    Silent,
    #[error("wants a token: set FOREBAY_ADMIN_TOKEN")]
    NoToken,
    #[error("refuses the token")]
    WrongToken,
    #[error("is no forebay: {0}")]
    Foreign(String),
    #[error("cannot say: {0}")]
    Stuck(String),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(error),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
            _ => Self::Unreachable(error),
        }
    }
}

/// Reads the token that endpoints beyond loopback want: from a file, or else from the environment.
pub(crate) fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let token = match file {
        None => std::env::var(TOKEN_VARIABLE).ok(),
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|error| {
                Failure::wrong(format!("--token-file: cannot read {}: {error}", file.display()))
            })?;
            Some(text.trim().to_owned())
        }
    };
    let token = token.filter(|token| !token.is_empty());
    match &token {
        Some(token) if token.bytes().any(|byte| !byte.is_ascii_graphic()) => {
            let place = if file.is_some() { "--token-file" } else { TOKEN_VARIABLE };
            Err(Failure::wrong(format!("{place}: a token is one word of letters, digits and signs")))
        }
        _ => Ok(token),
    }
}

impl Remote {
    /// Asks for a path, and returns the body of the answer.
    pub(crate) fn get(&self, path: &str, token: Option<&str>) -> Result<String, Trouble> {
        Answer::read(&self.exchange(path, token, ANSWER_MAX)?)?.checked(path, token)
    }

    /// Makes a request and reads all of the answer. By HTTP/1.0, whose answers end with their connection and have no chunks.
    fn exchange(&self, path: &str, token: Option<&str>, longest: Duration) -> Result<Vec<u8>, Trouble> {
        let mut stream = self.connect()?;
        let end = Instant::now() + longest;
        let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let request =
            format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{token}Connection: close\r\n\r\n", self.authority);
        stream.set_write_timeout(Some(longest))?;
        // Whoever speaks first, and leaves, has said what it is: that is an answer, too.
        let written = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let mut chunk = [0; 16384];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Trouble::Silent);
            }
            stream.set_read_timeout(Some(left))?;
            match stream.read(&mut chunk) {
                Ok(0) if answer.is_empty() => return written.map(|()| answer).map_err(Trouble::from),
                Ok(0) => return Ok(answer),
                Ok(count) => answer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset && !answer.is_empty() => {
                    return Ok(answer);
                }
                Err(error) => return Err(error.into()),
            }
            if answer.len() > ANSWER_BYTES_MAX {
                return Err(Trouble::Foreign("its answer has no end".to_owned()));
            }
        }
    }

    /// Tries the addresses of the host one after the other.
    fn connect(&self) -> io::Result<TcpStream> {
        let mut last = io::Error::other("the name has no address");
        for address in self.authority.to_socket_addrs()? {
            match TcpStream::connect_timeout(&address, ANSWER_MAX) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// An answer of HTTP.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Result<Self, Trouble> {
        let foreign = || Trouble::Foreign("it does not speak HTTP".to_owned());
        let text = String::from_utf8_lossy(bytes);
        let (head, body) = text.split_once("\r\n\r\n").ok_or_else(foreign)?;
        let mut words = head.lines().next().unwrap_or_default().split(' ');
        let is_http = words.next().is_some_and(|version| version.starts_with("HTTP/1."));
        let status =
            words.next().and_then(|word| word.parse().ok()).filter(|_| is_http).ok_or_else(foreign)?;
        Ok(Self { status, body: body.to_owned() })
    }

    /// Returns the body of a good answer.
    fn checked(self, path: &str, token: Option<&str>) -> Result<String, Trouble> {
        match (self.status, token) {
            (200, _) => Ok(self.body),
            (401, None) => Err(Trouble::NoToken),
            (401, Some(_)) => Err(Trouble::WrongToken),
            (503, _) => Err(Trouble::Stuck(self.body.lines().next().unwrap_or("503").to_owned())),
            (status, _) => Err(Trouble::Foreign(format!("it answers {status} to {path}"))),
        }
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
    use std::net::TcpListener;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_endpoint_is_written_with_or_without_scheme_and_port() {
        for (text, expected) in [
            ("127.0.0.1:9054", "http://127.0.0.1:9054"),
            ("http://127.0.0.1:9054", "http://127.0.0.1:9054"),
            ("http://127.0.0.1:9054/pools", "http://127.0.0.1:9054"),
            ("http://127.0.0.1:9054/", "http://127.0.0.1:9054"),
            (":9054", "http://127.0.0.1:9054"),
            ("node7", "http://node7:9053"),
            ("[::1]", "http://[::1]:9053"),
            ("[::1]:80", "http://[::1]:80"),
        ] {
            assert_eq!(text.parse::<Remote>().unwrap().to_string(), expected, "{text}");
        }
        for (text, expected) in [
            ("https://x:1", "plain HTTP"),
            ("http://x:1/other", "nothing after it"),
            ("x:y", "1 to 65535"),
            ("x:0", "1 to 65535"),
            ("::1", "in []"),
            ("", "write a host"),
            ("a b", "write a host"),
        ] {
            let error = text.parse::<Remote>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// What is said of a server that gives this answer to everything.
    fn told(answer: &'static [u8], token: Option<&str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Remote { authority: listener.local_addr().unwrap().to_string() };
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer).unwrap();
        });
        let told = target.get("/pools", token).unwrap_err().to_string();
        server.join().unwrap();
        told
    }

    #[test]
    fn what_is_no_forebay_is_told_from_one_that_wants_a_token() {
        for (answer, token, expected) in [
            (&b"SSH-2.0-OpenSSH\r\n"[..], None, "is no forebay: it does not speak HTTP"),
            (b"HTTP/1.0 404 Not Found\r\n\r\n", None, "is no forebay: it answers 404 to /pools"),
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n", None, "wants a token: set FOREBAY_ADMIN_TOKEN"),
            (b"HTTP/1.1 401 Unauthorized\r\n\r\n", Some("x"), "refuses the token"),
            (
                b"HTTP/1.1 503 No\r\n\r\na worker does not answer\n",
                None,
                "cannot say: a worker does not answer",
            ),
        ] {
            let told = told(answer, token);
            assert!(told.starts_with(expected), "{told}");
        }
    }

    #[test]
    fn an_address_without_a_listener_cannot_be_reached() {
        let target = Remote { authority: format!("127.0.0.1:{}", forebay_bench::ports::free_port()) };
        let told = target.get("/pools", None).unwrap_err().to_string();
        assert!(told.starts_with("cannot be reached: Connection refused"), "{told}");
    }

    #[test]
    fn who_sends_a_byte_now_and_then_holds_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Remote { authority: listener.local_addr().unwrap().to_string() };
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Until nobody listens any more, and for some seconds at most.
            for _ in 0..200 {
                if stream.write_all(b"H").is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(20));
            }
            panic!("it was listened to all the time");
        });
        let told = target.exchange("/pools", None, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(told, Trouble::Silent), "{told}");
        server.join().unwrap();
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
            let _ = (samples(&text), text.parse::<Remote>(), Answer::read(text.as_bytes()));
        }
    }
}

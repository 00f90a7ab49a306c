//! Asks an admin endpoint over HTTP, and says clearly when there is none.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::report::{Metrics, Pools};

/// How long an answer may take, connecting included.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The longest answer that is read, in bytes: some tens of thousands of pools.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// The port of an address that has none.
const PORT: u16 = 9053;

/// Where an admin endpoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port, as they are connected to.
    authority: String,
}

impl FromStr for Target {
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

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority)
    }
}

/// Why nothing is known of what is watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    #[error("does not answer in {} s", ANSWER_MAX.as_secs())]
    Silent,
    #[error("wants a token: set FOREBAY_ADMIN_TOKEN, or --token-file")]
    NoToken,
    #[error("refuses the token of FOREBAY_ADMIN_TOKEN or --token-file")]
    WrongToken,
    #[error("is no forebay: {0}")]
    Foreign(String),
    #[error("cannot say: {0}")]
    Stuck(String),
}

/// What was said at one look.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Look {
    pub(super) pools: Pools,
    pub(super) metrics: Metrics,
}

/// Asks for everything that is shown.
pub(super) fn look(target: &Target, token: Option<&str>) -> Result<Look, Trouble> {
    let pools = Answer::read(&get(target, "/pools", token)?)?.checked("/pools", token)?;
    let pools = serde_json::from_str(&pools)
        .map_err(|error| Trouble::Foreign(format!("its /pools is not that of one ({error})")))?;
    let metrics = Answer::read(&get(target, "/metrics", token)?)?.checked("/metrics", token)?;
    Ok(Look { pools, metrics: Metrics::parse(&metrics) })
}

/// Makes a request and reads all of the answer. By HTTP/1.0, whose answers end with their connection and have no chunks.
fn get(target: &Target, path: &str, token: Option<&str>) -> Result<Vec<u8>, Trouble> {
    let end = Instant::now() + ANSWER_MAX;
    let mut stream = connect(&target.authority).map_err(Trouble::Unreachable)?;
    let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {}\r\n{token}Connection: close\r\n\r\n", target.authority);
    stream.set_write_timeout(Some(ANSWER_MAX)).map_err(Trouble::Unreachable)?;
    stream.write_all(request.as_bytes()).map_err(Trouble::Unreachable)?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16384];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Trouble::Silent);
        }
        stream.set_read_timeout(Some(left)).map_err(Trouble::Unreachable)?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(answer),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                return Err(Trouble::Silent);
            }
            Err(error) => return Err(Trouble::Unreachable(error)),
        }
        if answer.len() as u64 > ANSWER_BYTES_MAX {
            return Err(Trouble::Foreign("its answer has no end".to_owned()));
        }
    }
}

/// Tries the addresses of a host one after the other.
fn connect(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the name has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ANSWER_MAX) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

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
            assert_eq!(text.parse::<Target>().unwrap().to_string(), expected, "{text}");
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
            let error = text.parse::<Target>().unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// What is said of a server that gives this answer to everything.
    fn told(answer: &'static [u8], token: Option<&str>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = Target { authority: listener.local_addr().unwrap().to_string() };
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
        let told = look(&target, token).unwrap_err().to_string();
        server.join().unwrap();
        told
    }

    #[test]
    fn what_is_no_forebay_is_told_from_one_that_wants_a_token() {
        for (answer, token, expected) in [
            (&b"SSH-2.0-OpenSSH\r\n"[..], None, "is no forebay: it does not speak HTTP"),
            (b"HTTP/1.0 404 Not Found\r\n\r\n", None, "is no forebay: it answers 404 to /pools"),
            (b"HTTP/1.1 200 OK\r\n\r\n<html>", None, "is no forebay: its /pools is not that of one"),
            (b"HTTP/1.1 200 OK\r\n\r\n{\"pools\": 3}", None, "is no forebay: its /pools is not that of one"),
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
        let target = Target { authority: format!("127.0.0.1:{}", forebay_bench::ports::free_port()) };
        let told = look(&target, None).unwrap_err().to_string();
        assert!(told.starts_with("cannot be reached: Connection refused"), "{told}");
    }
}

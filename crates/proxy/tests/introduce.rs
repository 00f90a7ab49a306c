//! Who clients are, and what is written of them, from end to end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use forebay_proxy::{AccessLogFormat, ProxyConfig, SendHeader, Server, Settings, start};

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(10);

/// A backend that says back what it hears.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn proxy(change: impl FnOnce(&mut Settings)) -> Server {
    let mut settings = Settings {
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: vec![echo().to_string()],
        workers: 1,
        ..Settings::default()
    };
    change(&mut settings);
    start(ProxyConfig::new(&settings, 1).unwrap()).unwrap()
}

/// Says something, ends, and returns what comes back.
fn ask(server: &Server, what: &[u8]) -> io::Result<(SocketAddr, String)> {
    let mut stream = TcpStream::connect(server.local_addrs()[0].address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(what)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok((stream.local_addr()?, answer))
}

#[test]
fn a_backend_is_told_who_its_client_is_before_the_first_byte() {
    let server = proxy(|settings| settings.proxy_protocol.send = SendHeader::V1);
    for _ in 0..3 {
        let (own, answer) = ask(&server, b"hello").unwrap();
        let to = server.local_addrs()[0].address;
        assert_eq!(answer, format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nhello", own.port(), to.port()));
    }
}

#[test]
fn the_second_version_of_the_header_is_sent_where_that_is_asked_for() {
    for (send, begin) in [
        (SendHeader::V2, &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x7f\0\0\x01\x7f\0\0\x01"[..]),
        (SendHeader::Off, b"hello"),
    ] {
        let server = proxy(|settings| settings.proxy_protocol.send = send);
        let mut stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
        stream.write_all(b"hello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(begin) && answer.ends_with(b"hello"), "{answer:?}");
    }
}

#[test]
fn a_header_may_take_as_long_to_come_as_the_setting_says() {
    for (timeout, is_refused) in [(200, true), (5000, false)] {
        let server = proxy(|settings| {
            settings.proxy_protocol.accept = true;
            settings.proxy_protocol.timeout.0 = Duration::from_millis(timeout);
        });
        let mut stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(1000))).unwrap();
        let ended = stream.read(&mut [0; 1]);
        let still_waits = matches!(&ended, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        assert_eq!(still_waits, !is_refused, "{timeout} ms: {ended:?}");
        assert_eq!(server.handle().figures().refused_strangers, u64::from(is_refused));
    }
}

#[test]
fn who_is_introduced_is_passed_on_as_who_was_told() {
    let server = proxy(|settings| {
        settings.proxy_protocol.accept = true;
        settings.proxy_protocol.send = SendHeader::V1;
    });
    let (_, answer) = ask(&server, b"PROXY TCP6 2001:db8::1 2001:db8::2 7 8\r\nhello").unwrap();
    assert_eq!(answer, "PROXY TCP6 2001:db8::1 2001:db8::2 7 8\r\nhello");
}

#[test]
fn who_is_not_introduced_where_that_is_asked_for_reaches_nobody() {
    let server = proxy(|settings| settings.proxy_protocol.accept = true);
    assert!(ask(&server, b"GET / HTTP/1.1\r\n\r\n").map_or(true, |(_, answer)| answer.is_empty()));
    assert_eq!(server.handle().figures().refused_strangers, 1);
    let server = proxy(|settings| {
        settings.proxy_protocol.accept = true;
        settings.proxy_protocol.trusted = vec!["192.0.2.0/24".to_owned()];
    });
    assert!(ask(&server, b"PROXY UNKNOWN\r\nhello").map_or(true, |(_, answer)| answer.is_empty()));
    assert_eq!(server.handle().figures().refused_strangers, 1);
}

#[test]
fn each_connection_is_a_line_of_the_access_log() {
    let dir = tempfile::tempdir().unwrap();
    for (format, wanted) in [
        (AccessLogFormat::Json, r#""bytes_up":5,"bytes_down":5,"#),
        (AccessLogFormat::Text, " up 5 down 5 took "),
    ] {
        let path = dir.path().join(format!("{format:?}"));
        let server = proxy(|settings| {
            settings.access_log.path = path.display().to_string();
            settings.access_log.format = format;
        });
        let clients: Vec<_> = (0..10).map(|_| ask(&server, b"hello").unwrap().0).collect();
        drop(server);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 10);
        assert!(text.lines().all(|line| line.contains(wanted) && line.contains("whole")), "{text}");
        for client in clients {
            assert!(text.contains(&client.port().to_string()));
        }
    }
}

#[test]
fn who_comes_while_there_are_too_many_waits_a_second_for_a_place_and_is_then_refused() {
    let server = proxy(|settings| settings.clients.connections_max = 1);
    let address = server.local_addrs()[0].address;
    let speak = |stream: &mut TcpStream| -> io::Result<usize> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"x")?;
        stream.read(&mut [0; 8])
    };
    let mut first = TcpStream::connect(address).unwrap();
    assert_eq!(speak(&mut first).unwrap(), 1);
    // A place becomes free in time.
    let mut second = TcpStream::connect(address).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(server.handle().figures().refused_full, 0);
    drop(first);
    assert_eq!(speak(&mut second).unwrap(), 1);
    // None does.
    let began = Instant::now();
    let mut third = TcpStream::connect(address).unwrap();
    assert!(speak(&mut third).is_err());
    assert!(began.elapsed() > Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(server.handle().figures().refused_full, 1);
}

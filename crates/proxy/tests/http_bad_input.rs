//! Peers that end early, stall, lie or flood: each gets its status or its end within a bound, no connection to a backend
//! is left spoilt, and other clients notice nothing.

#[path = "support/http1.rs"]
#[allow(dead_code, reason = "each test binary uses its own part")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use forebay::units::Span;
use forebay_bench::backend::{Backend, Serve};
use forebay_proxy::{CheckKind, ReuseName, Server, Settings};
use forebay_proxy_core::http1::Method;
use support::{Client, PATIENCE, eventually, figures, proxy};

const SHORT: Span = Span(Duration::from_millis(300));

/// Short patience, and connections that are shared as much as can be.
fn short(settings: &mut Settings) {
    settings.health.check = CheckKind::None;
    settings.health.failures = 0;
    settings.http.reuse = ReuseName::Always;
    settings.http.head_timeout = SHORT;
    settings.http.body_timeout = SHORT;
    settings.http.response_timeout = SHORT;
    settings.http.idle_timeout = SHORT;
}

/// Runs an attack while another client goes on asking. It gets all its answers, none late and none another's.
fn unharmed(what: &str, server: &Server, attack: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let mut times = thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut times, mut n) = (Vec::new(), 0);
            while !over.load(Ordering::SeqCst) || times.len() < 20 {
                let mut client = Client::new(server);
                for _ in 0..5 {
                    n = (n + 7) % 1000;
                    let began = Instant::now();
                    let answer = client.get(&format!("/size/{n}"));
                    assert_eq!((answer.status, answer.body.len()), (200, n), "{what}: {answer:?}");
                    times.push(began.elapsed());
                    thread::sleep(Duration::from_millis(2));
                }
            }
            times
        });
        let attacked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(attack));
        over.store(true, Ordering::SeqCst);
        let times = other.join().unwrap();
        attacked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        times
    });
    times.sort_unstable();
    let p99 = times[times.len() * 99 / 100];
    assert!(p99 < Duration::from_millis(500), "{what}: {p99:?} of {}", times.len());
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Whether it ends, by an end or a reset, whatever comes before.
fn ends(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 16 << 10];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_client_that_ends_in_any_phase_spoils_nothing() {
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr()], short);
    for resets in [false, true] {
        for (phase, text, reads) in [
            ("before the head", "", false),
            ("in the head", "GET /siz", false),
            ("in the body", "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nbegin", false),
            (
                "in a chunk",
                "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nbeg",
                false,
            ),
            ("before the response", "GET /delay/200 HTTP/1.1\r\nHost: a\r\n\r\n", false),
            ("in the response", "GET /drip/100/20 HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("in a long response", "GET /size/50000000 HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ] {
            let what = format!("{phase}, by {}", if resets { "a reset" } else { "an end" });
            unharmed(&what, &server, || {
                for _ in 0..10 {
                    let mut client = connect(&server);
                    client.write_all(text.as_bytes()).unwrap();
                    if reads {
                        assert!(client.read(&mut [0; 100]).unwrap() > 0);
                    }
                    if resets {
                        forebay::sys::socket::reset_on_close(&client).unwrap();
                    }
                }
            });
            eventually(&what, || figures(&server).clients == 0);
        }
    }
    // Those that are kept are whole, and idle out.
    eventually("no connection is left", || backend.stats().connections_open == 0);
}

/// A backend that answers the first request of each connection so and then ends.
fn ending(answer: Option<&'static str>, resets: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if let Some(answer) = answer {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
                // What was written is to arrive before the reset.
                thread::sleep(Duration::from_millis(20));
            }
            if resets {
                let _ = forebay::sys::socket::reset_on_close(&stream);
            }
        }
    });
    address
}

#[test]
fn a_backend_that_ends_in_any_phase_is_a_bad_gateway_or_a_response_that_does_not_look_whole() {
    for resets in [false, true] {
        for (phase, answer, is_begun) in [
            ("when it has accepted", None, false),
            ("before the head", Some(""), false),
            ("in the head", Some("HTTP/1.1 200 OK\r\nContent-Le"), false),
            ("after the head", Some("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), true),
            ("in the body", Some("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"), true),
            ("in a chunk", Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhalf"), true),
            (
                "before the last chunk",
                Some("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
                true,
            ),
        ] {
            let server = proxy(&[ending(answer, resets)], short);
            for request in [
                "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi",
            ] {
                let mut client = Client::new(&server);
                client.send(request);
                let mut first = [0; 12];
                let came = client.stream.peek(&mut first).unwrap_or(0);
                if came == 0 {
                    // It was broken off before anything of it was written out.
                    assert!(is_begun, "{phase}: no answer at all");
                    continue;
                }
                let answer = client.answer(Method::Get);
                let is_broken =
                    if is_begun { answer.status == 502 || !answer.is_whole } else { answer.status == 502 };
                assert!(is_broken || !is_begun && answer.status == 503, "{phase}, {resets}: {answer:?}");
            }
        }
    }
}

#[test]
fn half_open_peers_are_bounded() {
    // A backend that ends its half and never says more.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming().flatten() {
            let _ = stream.shutdown(Shutdown::Write);
            kept.push(stream);
        }
    });
    let server = proxy(&[address], short);
    let answer = Client::new(&server).get("/");
    assert!(answer.status == 502 || answer.status == 503, "{answer:?}");
    // One that takes everything and says nothing.
    let backend = Backend::spawn(Serve::Swallow);
    let server = proxy(&[backend.addr()], short);
    let began = Instant::now();
    assert_eq!(Client::new(&server).get("/").status, 504);
    assert!(began.elapsed() < Duration::from_secs(2));
    eventually("its connection is not kept", || backend.stats().connections_open == 0);
    // A client that ends its half has left.
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr()], short);
    let mut client = connect(&server);
    client.write_all(b"GET /hang HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(ends(&mut client));
    // One that takes no response, and one that sends no more of its request: each has its time.
    let mut still = connect(&server);
    still.write_all(b"GET /size/50000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut silent = Client::new(&server);
    silent.send("POST /echo-not HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf");
    assert_eq!(silent.answer(Method::Post).status, 408);
    eventually("they are given up", || figures(&server).clients <= 1);
    eventually("and their connections are closed", || backend.stats().connections_open <= 1);
    drop((still, silent));
}

#[test]
fn slow_heads_are_told_so_in_time_however_many_there_are() {
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr()], short);
    unharmed("slow heads", &server, || {
        let began = Instant::now();
        let mut clients: Vec<_> = (0..100).map(|_| connect(&server)).collect();
        // A letter now and then, so that something always comes.
        for letter in b"GET / HTTP" {
            clients.iter_mut().for_each(|client| drop(client.write(&[*letter])));
            thread::sleep(Duration::from_millis(50));
        }
        for client in &mut clients {
            let mut answer = Vec::new();
            let _ = client.read_to_end(&mut answer);
            assert!(answer.starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer));
        }
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    });
}

#[test]
fn a_head_that_never_ends_is_cut_at_its_limit() {
    let backend = Backend::spawn(Serve::Http);
    let server = proxy(&[backend.addr()], |settings| settings.http.head_size_max.bytes = 4096);
    unharmed("endless heads", &server, || {
        for piece in ["A: b\r\n", "A", "\r\n", "GET "] {
            let mut client = connect(&server);
            let _ = client.write_all(b"GET / HTTP/1.1\r\n");
            let many = piece.repeat(64 << 10);
            let mut sent = 0;
            while sent < 64 << 20 && client.write_all(many.as_bytes()).is_ok() {
                sent += many.len();
            }
            assert!(sent < 64 << 20, "{piece:?}: it is still read");
        }
    });
}

mod by_http2 {
    use super::*;

    fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend_from_slice(&[kind, flags]);
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn opening(settings: &[u8]) -> Vec<u8> {
        [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(4, 0, 0, settings)].concat()
    }

    /// `:method: GET`, `:scheme: http`, this path, `:authority: test` (RFC 7541).
    fn head(path: &str) -> Vec<u8> {
        [&[0x82, 0x86, 0x04, path.len() as u8][..], path.as_bytes(), &[0x01, 4], b"test"].concat()
    }

    /// Reads frames until the end. Returns their kinds, and the codes of GOAWAY and RST_STREAM.
    fn frames(stream: &mut TcpStream) -> (Vec<u8>, Vec<u32>) {
        let (mut all, mut buffer) = (Vec::new(), [0; 16 << 10]);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            all.extend_from_slice(&buffer[..n]);
        }
        let (mut kinds, mut codes, mut rest) = (Vec::new(), Vec::new(), &all[..]);
        while let Some((head, after)) = rest.split_at_checked(9) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let Some((payload, after)) = after.split_at_checked(length) else { break };
            kinds.push(head[3]);
            match head[3] {
                3 => codes.push(u32::from_be_bytes(*payload.first_chunk().unwrap())),
                7 => codes.push(u32::from_be_bytes(*payload[4..].first_chunk().unwrap())),
                _ => {}
            }
            rest = after;
        }
        (kinds, codes)
    }

    #[test]
    fn who_breaks_the_rules_of_windows_is_sent_away() {
        // RFC 9113 §6.5.2 and §6.9.1 want FLOW_CONTROL_ERROR; the library says PROTOCOL_ERROR of settings.
        const ERRORS: [u32; 2] = [1, 3];
        let backend = Backend::spawn(Serve::Http);
        let server = proxy(&[backend.addr()], short);
        let most = (u32::MAX >> 1).to_be_bytes();
        for (what, settings, frames_sent) in [
            ("a window that overflows", &[][..], [frame(8, 0, 0, &most), frame(8, 0, 0, &most)].concat()),
            ("a first window that is too large", &[0, 4, 0xff, 0xff, 0xff, 0xff][..], Vec::new()),
            (
                "a stream's window that overflows",
                &[][..],
                [frame(1, 5, 1, &head("/hang")), frame(8, 0, 1, &most), frame(8, 0, 1, &most)].concat(),
            ),
        ] {
            unharmed(what, &server, || {
                let mut client = connect(&server);
                client.write_all(&opening(settings)).unwrap();
                let _ = client.write_all(&frames_sent);
                client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                let (kinds, codes) = frames(&mut client);
                assert!(codes.iter().any(|code| ERRORS.contains(code)), "{what}: {kinds:?} {codes:?}");
            });
        }
    }

    #[test]
    fn who_gives_no_room_for_a_response_has_its_time_and_costs_no_memory() {
        let backend = Backend::spawn(Serve::Http);
        let server = proxy(&[backend.addr()], short);
        unharmed("no room", &server, || {
            let mut client = connect(&server);
            client.write_all(&opening(&[0, 4, 0, 0, 0, 0])).unwrap();
            for n in 0..50 {
                client.write_all(&frame(1, 5, 1 + 2 * n, &head("/size/50000000"))).unwrap();
            }
            thread::sleep(Duration::from_millis(100));
            eventually("all are given up", || figures(&server).failed_client >= 50);
            eventually("and hold no backend", || backend.stats().connections_open <= 2);
        });
    }

    #[test]
    fn a_head_in_endless_pieces_is_an_end() {
        let backend = Backend::spawn(Serve::Http);
        let server = proxy(&[backend.addr()], short);
        unharmed("continuation", &server, || {
            let mut client = connect(&server);
            client.write_all(&opening(&[])).unwrap();
            client.write_all(&frame(1, 0, 1, &head("/"))).unwrap();
            let piece = frame(9, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(1000));
            let mut sent = 0;
            while sent < 64 << 20 && client.write_all(&piece).is_ok() {
                sent += piece.len();
            }
            assert!(sent < 64 << 20, "it is still read");
        });
        assert_eq!(backend.stats().errors, 0);
    }

    #[test]
    fn who_asks_and_breaks_off_at_once_does_not_make_backends_work_for_nothing() {
        let backend = Backend::spawn(Serve::Http);
        let server = proxy(&[backend.addr()], short);
        let before = backend.stats().requests;
        let asked = std::cell::Cell::new(0);
        unharmed("rapid reset", &server, || {
            let mut client = connect(&server);
            client.write_all(&opening(&[])).unwrap();
            for n in 0..20_000 {
                let id = 1 + 2 * n;
                let both = [frame(1, 5, id, &head("/hang")), frame(3, 0, id, &8_u32.to_be_bytes())].concat();
                if client.write_all(&both).is_err() {
                    break;
                }
                asked.set(n);
            }
            client.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
            assert!(ends(&mut client));
        });
        let hung = backend.requests_per_connection().iter().filter(|count| **count == 1).count();
        assert!(hung < 400, "{hung} connections for {} requests; {before} before", asked.get());
    }

    #[test]
    fn pings_and_settings_without_end_slow_nobody() {
        let backend = Backend::spawn(Serve::Http);
        let server = proxy(&[backend.addr()], short);
        for (what, one) in
            [("ping", frame(6, 0, 0, &[7; 8])), ("settings", frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]))]
        {
            unharmed(what, &server, || {
                let mut client = connect(&server);
                client.write_all(&opening(&[])).unwrap();
                // It reads none of the answers, so that they would have to be kept.
                client.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
                let (many, began) = (one.repeat(1000), Instant::now());
                while began.elapsed() < Duration::from_secs(1) && client.write_all(&many).is_ok() {}
            });
        }
    }
}

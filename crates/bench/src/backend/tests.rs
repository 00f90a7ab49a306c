//! The backends as a client sees them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::*;

fn connect(backend: &Backend) -> TcpStream {
    let stream = TcpStream::connect(backend.addr()).expect("a listener");
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

fn say(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).unwrap();
}

fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("an end");
    String::from_utf8(bytes).unwrap()
}

/// Everything that one connection has to say to these requests.
fn exchange(backend: &Backend, requests: &str) -> String {
    let mut stream = connect(backend);
    say(&mut stream, requests);
    stream.shutdown(Shutdown::Write).unwrap();
    rest(&mut stream)
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

#[test]
fn a_stamp_names_its_connection_before_and_after_each_line() {
    let backend = Backend::spawn(Serve::StampFirst);
    for number in 1..=3 {
        let expected = format!("{number}\n{number} a {number}\n{number} b c {number}\n");
        assert_eq!(exchange(&backend, "a\nb c\n"), expected);
    }
    assert_eq!(backend.requests_per_connection(), [2, 2, 2]);
    assert_eq!((backend.stats().connections, backend.stats().requests), (3, 6));
}

#[test]
fn an_echo_ends_when_its_client_has_ended() {
    let backend = Backend::spawn(Serve::Greet(b"220 hello\r\n".to_vec()));
    let long = "x".repeat(300_000);
    let mut stream = connect(&backend);
    let mut writer = stream.try_clone().unwrap();
    let text = long.clone();
    let sender = std::thread::spawn(move || {
        say(&mut writer, &text);
        writer.shutdown(Shutdown::Write).unwrap();
    });
    assert_eq!(rest(&mut stream), format!("220 hello\r\n{long}"));
    sender.join().unwrap();
    assert_eq!(backend.stats().bytes_read, 300_000);
}

#[test]
fn a_source_sends_what_was_asked_of_it_and_a_swallower_takes_it() {
    let backend = Backend::spawn(Serve::Source(1_000_001));
    assert_eq!(exchange(&backend, "").len(), 1_000_001);
    let backend = Backend::spawn(Serve::Swallow);
    assert_eq!(exchange(&backend, "gone"), "");
    assert_eq!(backend.stats().bytes_read, 4);
}

#[test]
fn a_far_backend_answers_only_when_its_connection_is_old_enough() {
    let far = Duration::from_millis(50);
    let backend = Backend::builder().serve(Serve::Stamp).first_byte_after(far).spawn().unwrap();
    let mut stream = connect(&backend);
    let began = Instant::now();
    say(&mut stream, "x\n");
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    assert!(began.elapsed() >= far - Duration::from_millis(5), "{:?}", began.elapsed());
}

#[test]
fn a_reset_is_told_from_a_close() {
    let backend = Backend::spawn(Serve::Reset);
    let error = connect(&backend).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    let backend = Backend::spawn(Serve::Http);
    let mut stream = connect(&backend);
    say(&mut stream, &get("/reset"));
    assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(exchange(&backend, &get("/hang-up")), "");
}

#[test]
fn connections_are_cut_and_listeners_go_deaf_when_told_so() {
    let backend = Backend::spawn(Serve::Stamp);
    let mut stream = connect(&backend);
    say(&mut stream, "x\n");
    stream.read_exact(&mut [0; 6]).unwrap();
    backend.close_connections();
    assert_eq!(rest(&mut stream), "");
    backend.accept(false);
    let mut stream = connect(&backend);
    say(&mut stream, "x\n");
    stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    assert!(stream.read(&mut [0]).is_err());
    backend.accept(true);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.read_exact(&mut [0; 6]).unwrap();
}

#[test]
fn requests_on_one_connection_are_numbered() {
    let backend = Backend::spawn(Serve::Http);
    let answers = exchange(&backend, &format!("{}{}{}", get("/"), get("/size/3"), get("/chunked/5/2")));
    let ends: Vec<_> =
        answers.lines().filter(|line| line.starts_with("Backend-")).map(str::to_owned).collect();
    let expected: Vec<_> =
        (1..=3).flat_map(|n| ["Backend-Connection: 1".to_owned(), format!("Backend-Request: {n}")]).collect();
    assert_eq!(ends, expected);
    assert!(answers.ends_with("\r\n\r\n2\r\nab\r\n2\r\nab\r\n1\r\na\r\n0\r\n\r\n"), "{answers}");
    assert_eq!(backend.requests_per_connection(), [3]);
}

#[test]
fn bodies_of_requests_are_read_by_length_and_by_chunks() {
    let backend = Backend::spawn(Serve::Http);
    let chunked = "POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
                   3;note=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n";
    let sized = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nvwxyz";
    let answers = exchange(&backend, &format!("{chunked}{sized}{}", get("/")));
    assert!(answers.contains("abc") && answers.contains("vwxyz") && answers.ends_with("ok"), "{answers}");
    assert_eq!(backend.requests_per_connection(), [3]);
}

#[test]
fn a_path_says_how_its_answer_ends() {
    let backend = Backend::spawn(Serve::Http);
    let once = |path: &str| exchange(&backend, &get(path));
    assert_eq!(body(&once("/close-delimited/9")).len(), 9);
    assert_eq!(body(&once("/short/100")).len(), 50);
    assert!(once("/short-chunked/4").ends_with("\r\n\r\n4\r\nabcd\r\n"));
    assert!(once("/trailers/2").ends_with("0\r\nBackend-Bytes: 2\r\nBackend-Note: end\r\n\r\n"));
    assert!(once("/http10").starts_with("HTTP/1.0 200 OK\r\n"));
    assert!(once("/extra").ends_with("stray"));
    assert!(once("/status/503").starts_with("HTTP/1.1 503 Asked\r\n"));
    assert_eq!(body(&once("/status/304")), "");
    assert!(once("/negotiate").contains("\r\nWWW-Authenticate: Negotiate\r\n"));
    assert_eq!(body(&once("/head")), get("/head"));
    assert_eq!(body(&exchange(&backend, "HEAD /size/10 HTTP/1.1\r\nHost: x\r\n\r\n")), "");
    for path in ["/close", "/close-silently", "/early-close"] {
        let answers = once(&format!("{path} HTTP/1.1\r\nHost: x\r\n\r\nGET /"));
        assert_eq!(answers.matches("HTTP/1.1 ").count(), 1, "{path}: {answers}");
    }
    for (kind, answer) in http::WRONG {
        assert_eq!(once(&format!("/wrong/{kind}")), *answer);
    }
}

#[test]
fn what_a_path_does_can_be_for_the_first_requests_or_for_reused_connections_only() {
    let backend = Backend::spawn(Serve::Http);
    for expected in ["", "", "ok"] {
        let answer = exchange(&backend, &get("/hang-up?first=2"));
        assert!(answer.ends_with(expected) && (expected.is_empty() == answer.is_empty()), "{answer}");
    }
    assert!(exchange(&backend, &get("/hang-up?reused")).ends_with("ok"));
    let twice = exchange(&backend, &format!("{}{}", get("/"), get("/hang-up?reused")));
    assert_eq!(twice.matches("HTTP/1.1 200").count(), 1, "{twice}");
}

#[test]
fn upgrades_tunnels_and_interim_answers() {
    let backend = Backend::spawn(Serve::Http);
    let ask = "GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nbytes";
    let answer = exchange(&backend, ask);
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\n\r\nbytes"), "{answer}");
    assert!(exchange(&backend, &get("/upgrade")).starts_with("HTTP/1.1 426 "));
    let tunnel = exchange(&backend, "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nbytes");
    assert!(tunnel.starts_with("HTTP/1.1 200 ") && tunnel.ends_with("\r\n\r\nbytes"), "{tunnel}");
    let refused = exchange(&backend, "CONNECT refuse.test:1 HTTP/1.1\r\nHost: refuse.test:1\r\n\r\n");
    assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
    let expecting =
        "POST /continue HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab";
    assert!(exchange(&backend, expecting).starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
    assert!(exchange(&backend, &get("/hints")).starts_with("HTTP/1.1 103 "));
}

#[test]
fn an_early_answer_does_not_wait_for_the_body() {
    let backend = Backend::spawn(Serve::Http);
    let mut stream = connect(&backend);
    say(&mut stream, "POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n");
    let mut start = [0; 13];
    stream.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"HTTP/1.1 413 ");
    say(&mut stream, &format!("body{}", get("/status/299")));
    stream.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut stream).contains("HTTP/1.1 299 "));
}

#[test]
fn steps_of_ones_own_come_before_known_paths() {
    let steps = vec![Step::ReadBody, Step::write("HTTP/1.1 299 Mine\r\n\r\n"), Step::Fill(3), Step::Close];
    let backend = Backend::builder().serve(Serve::Http).answer("/early", steps).spawn().unwrap();
    assert_eq!(exchange(&backend, &get("/early")), "HTTP/1.1 299 Mine\r\n\r\nabc");
}

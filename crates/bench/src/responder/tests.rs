//! Each line of a script, told apart from outside.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use super::*;
use crate::message::{HEADER, QueryType, next_record, u16_at};

fn query(id: u16, name: &str, qtype: QueryType, edns: Option<u16>) -> Vec<u8> {
    let mut out = id.to_be_bytes().to_vec();
    out.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
    message::encode_name(name, &mut out).expect("name");
    out.extend_from_slice(&qtype.0.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
    if let Some(size) = edns {
        out.extend_from_slice(&[0, 0, 41]);
        out.extend_from_slice(&size.to_be_bytes());
        out.extend_from_slice(&[0, 0, 0x80, 0, 0, 0]);
    }
    out
}

fn spawn(script: Script) -> Responder {
    Responder::builder().script(script).spawn().expect("spawn")
}

fn socket(responder: &Responder) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.connect(responder.addr()).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    socket
}

fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 65535];
    let length = socket.recv(&mut buffer).expect("an answer within 5 s");
    buffer[..length].to_vec()
}

/// Asks, and returns the answer.
fn ask(responder: &Responder, name: &str, qtype: QueryType, edns: Option<u16>) -> Vec<u8> {
    let socket = socket(responder);
    socket.send(&query(77, name, qtype, edns)).expect("send");
    receive(&socket)
}

#[track_caller]
fn assert_silent(socket: &UdpSocket) {
    socket.set_read_timeout(Some(Duration::from_millis(30))).expect("time-out");
    assert_eq!(socket.recv(&mut [0; 512]).expect_err("silence").kind(), ErrorKind::WouldBlock);
}

fn rcode(answer: &[u8]) -> u8 {
    answer[3] & 0x0f
}

/// Returns type, time to live and data of all records, OPT included.
fn records(answer: &[u8]) -> Vec<(QueryType, u32, Vec<u8>)> {
    let mut at = message::skip_name(answer, HEADER).expect("question") + 4;
    let count: u16 = [6, 8, 10].iter().map(|&at| u16_at(answer, at).expect("header")).sum();
    let records = (0..count)
        .map(|_| {
            let record = next_record(answer, &mut at).expect("as many records as the header says");
            (record.rtype, record.ttl, record.data.to_vec())
        })
        .collect();
    assert_eq!(at, answer.len(), "nothing behind the last record");
    records
}

fn tcp(responder: &Responder) -> TcpStream {
    let stream = TcpStream::connect(responder.addr()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    stream
}

fn send_framed(stream: &mut TcpStream, message: &[u8]) {
    let mut framed = (message.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).expect("write");
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

#[test]
fn address_is_derived_from_the_name_in_any_case() {
    let responder = spawn(Script { ttl: 123, ..Script::default() });
    for name in ["www.example", "WWW.Example.", "a.b.c.d", "."] {
        let answer = ask(&responder, name, QueryType::A, None);
        assert_eq!((u16_at(&answer, 0), rcode(&answer)), (Some(77), 0));
        assert_eq!(records(&answer), [(QueryType::A, 123, expected_a(name).octets().to_vec())]);
    }
    assert_eq!(expected_a("www.example"), expected_a("WWW.EXAMPLE."));
    assert_ne!(expected_a("www.example"), expected_a("wwx.example"));
    assert!(expected_a("www.example").is_private());
    let stats = responder.stats();
    assert_eq!((stats.udp_queries, stats.answers, stats.udp_ports), (4, 4, 4));
}

#[test]
fn other_types_are_answered_too() {
    let responder = spawn(Script::default());
    let aaaa = records(&ask(&responder, "x.test", QueryType::AAAA, None));
    assert_eq!((aaaa[0].0, aaaa[0].2.len()), (QueryType::AAAA, 16));
    assert_eq!(aaaa[0].2[12..], expected_a("x.test").octets());
    let txt = records(&ask(&responder, "x.test", QueryType::TXT, None));
    assert_eq!((txt[0].0, txt[0].2.len()), (QueryType::TXT, 9));
    let none = ask(&responder, "x.test", QueryType(65), None);
    assert_eq!((rcode(&none), records(&none)[0].0), (0, QueryType::SOA));
}

#[test]
fn edns_is_answered_with_edns() {
    let responder = spawn(Script::default());
    let answer = ask(&responder, "x.test", QueryType::A, Some(4096));
    let opt = records(&answer).pop().expect("records");
    assert_eq!((opt.0, opt.1), (QueryType::OPT, 0x8000), "DO is repeated");
    assert!(
        records(&ask(&responder, "x.test", QueryType::A, None))
            .iter()
            .all(|record| record.0 != QueryType::OPT)
    );
}

#[test]
fn long_answers_are_cut_to_what_the_client_takes() {
    let is_cut = |script: Script, edns| {
        let responder = spawn(script);
        let answer = ask(&responder, "x.test", QueryType::A, edns);
        let cut = answer[2] & 2 != 0;
        assert_eq!(cut, records(&answer).iter().all(|record| record.0 == QueryType::OPT));
        cut
    };
    let many = Script { records: 50, ..Script::default() };
    assert!(is_cut(many.clone(), None));
    assert!(!is_cut(many.clone(), Some(1232)));
    assert!(is_cut(Script { truncate: Truncate::Above(800), ..many.clone() }, Some(1232)));
    assert!(!is_cut(Script { truncate: Truncate::Never, ..many }, None));
    assert!(is_cut(Script { truncate: Truncate::Always, ..Script::default() }, None));
    assert!(!is_cut(Script::default(), None));
}

#[test]
fn aliases_lead_to_the_records() {
    let responder = spawn(Script { cnames: 3, records: 2, ..Script::default() });
    let answer = ask(&responder, "x.test", QueryType::A, None);
    let types: Vec<_> = records(&answer).iter().map(|record| record.0).collect();
    assert_eq!(types, [QueryType::CNAME, QueryType::CNAME, QueryType::CNAME, QueryType::A, QueryType::A]);
    assert_eq!(records(&answer)[3].2, expected_a("x.test").octets());
    // Each owner is the target of the alias before.
    let mut at = message::skip_name(&answer, HEADER).expect("question") + 4;
    let mut target = HEADER;
    for _ in 0..5 {
        let record = next_record(&answer, &mut at).expect("record");
        let owner = usize::from(u16_at(&answer, record.owner_at).expect("pointer") & 0x3fff);
        assert_eq!(owner, target);
        if record.rtype == QueryType::CNAME {
            target = at - record.data.len();
        }
    }
}

#[test]
fn verdicts_hold_for_names_under_their_suffix() {
    let verdicts = [
        ("nx.test", Verdict::NxDomain),
        ("empty.test", Verdict::NoData),
        ("broken.test", Verdict::ServFail),
        ("closed.test", Verdict::Refused),
        ("mute.test", Verdict::Silence),
    ];
    let responder = spawn(Script {
        verdicts: verdicts.map(|(suffix, verdict)| (suffix.to_owned(), verdict)).to_vec(),
        ttl: 9,
        ..Script::default()
    });
    for (name, code, soa) in [
        ("a.nx.test", 3, true),
        ("NX.test", 3, true),
        ("empty.test", 0, true),
        ("a.b.broken.test", 2, false),
        ("closed.test", 5, false),
    ] {
        let answer = ask(&responder, name, QueryType::A, None);
        assert_eq!(rcode(&answer), code, "{name}");
        let found = records(&answer);
        assert_eq!(found.len(), usize::from(soa), "{name}");
        if soa {
            assert_eq!((found[0].0, found[0].1, &found[0].2[18..]), (QueryType::SOA, 9, &[0, 0, 0, 9][..]));
        }
    }
    for name in ["anx.test", "test", "nx.test.other"] {
        let answer = ask(&responder, name, QueryType::A, None);
        assert_eq!(records(&answer)[0].0, QueryType::A, "{name} is not under any suffix");
    }
    let socket = socket(&responder);
    socket.send(&query(1, "mute.test", QueryType::A, None)).expect("send");
    assert_silent(&socket);
}

#[test]
fn delayed_answers_come_on_time() {
    let delay = Duration::from_micros(780);
    let responder = Responder::builder().delay(delay).spawn().expect("spawn");
    let socket = socket(&responder);
    let mut times: Vec<_> = (0..200)
        .map(|id| {
            let asked = Instant::now();
            socket.send(&query(id, "x.test", QueryType::A, None)).expect("send");
            assert_eq!(u16_at(&receive(&socket), 0), Some(id));
            asked.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[0] >= delay, "{:?}", times[0]);
    // Both ways through the kernel, and wherever the machine has other work, are in this.
    assert!(times[100] < delay + Duration::from_micros(400), "{:?}", times[100]);
}

#[test]
fn equal_delays_keep_the_order_and_jitter_breaks_it() {
    let order = |jitter| {
        let responder = spawn(Script { delay: Duration::from_millis(2), jitter, ..Script::default() });
        let socket = socket(&responder);
        for id in 0..100 {
            socket.send(&query(id, "x.test", QueryType::A, None)).expect("send");
        }
        (0..100).map(|_| u16_at(&receive(&socket), 0).expect("id")).collect::<Vec<_>>()
    };
    assert!(order(Duration::ZERO).is_sorted());
    assert!(!order(Duration::from_millis(5)).is_sorted());
}

#[test]
fn late_answers_are_late_by_their_share() {
    let late = Late { share: 0.5, by: Duration::from_millis(60) };
    let responder = spawn(Script { late: Some(late), ..Script::default() });
    let socket = socket(&responder);
    let asked = Instant::now();
    for id in 0..100 {
        socket.send(&query(id, "x.test", QueryType::A, None)).expect("send");
    }
    let late =
        (0..100).filter(|_| !receive(&socket).is_empty() && asked.elapsed() >= Duration::from_millis(60));
    let late = late.count();
    assert!((20..=80).contains(&late), "{late} of 100");
}

#[test]
fn dropped_queries_stay_unanswered() {
    let responder = spawn(Script { drop: 0.5, ..Script::default() });
    let socket = socket(&responder);
    for id in 0..200 {
        socket.send(&query(id, "x.test", QueryType::A, None)).expect("send");
    }
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("time-out");
    let answered = std::iter::from_fn(|| socket.recv(&mut [0; 512]).ok()).count();
    assert!((50..=150).contains(&answered), "{answered} of 200");
    assert_eq!(responder.stats().udp_queries, 200);
    responder.set_script(Script { drop: 1.0, ..Script::default() });
    socket.send(&query(1, "x.test", QueryType::A, None)).expect("send");
    assert_silent(&socket);
}

#[test]
fn lies_are_told_as_scripted() {
    let responder = spawn(Script { wrong_id: 1.0, ..Script::default() });
    let answer = ask(&responder, "x.test", QueryType::A, None);
    assert_ne!(u16_at(&answer, 0), Some(77));

    responder.set_script(Script { wrong_question: 1.0, ..Script::default() });
    let answer = ask(&responder, "x.test", QueryType::A, None);
    assert_eq!(u16_at(&answer, 0), Some(77));
    assert_ne!(answer[HEADER..HEADER + 8], query(77, "x.test", QueryType::A, None)[HEADER..HEADER + 8]);

    responder.set_script(Script { duplicate: true, ..Script::default() });
    let socket = socket(&responder);
    socket.send(&query(5, "x.test", QueryType::A, None)).expect("send");
    assert_eq!(receive(&socket), receive(&socket));
    assert_silent(&socket);

    responder.set_script(Script { decoys: 2, ..Script::default() });
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    socket.send(&query(6, "x.test", QueryType::A, None)).expect("send");
    let answers = [receive(&socket), receive(&socket), receive(&socket)];
    let right = expected_a("x.test").octets();
    assert_eq!(answers.each_ref().map(|answer| u16_at(answer, 0) == Some(6)), [false, false, true]);
    assert_eq!(answers.each_ref().map(|answer| records(answer)[0].2 == right), [false, false, true]);
}

#[test]
fn queries_on_one_connection_are_all_answered() {
    let responder = spawn(Script { records: 1000, ..Script::default() });
    let mut stream = tcp(&responder);
    for id in 0..50 {
        send_framed(&mut stream, &query(id, "x.test", QueryType::A, None));
    }
    for id in 0..50 {
        let answer = read_framed(&mut stream).expect("answer");
        assert_eq!((u16_at(&answer, 0), answer[2] & 2), (Some(id), 0), "whole, in order");
        assert_eq!(records(&answer).len(), 1000);
    }
    let stats = responder.stats();
    assert_eq!((stats.tcp_queries, stats.udp_queries, stats.connections), (50, 0, 1));
    assert_eq!(stats.connections_open, 1);
}

#[test]
fn query_in_pieces_is_one_query() {
    let responder = spawn(Script { delay: Duration::from_millis(1), ..Script::default() });
    let mut stream = tcp(&responder);
    stream.set_nodelay(true).expect("no delay");
    let message = query(4, "x.test", QueryType::A, None);
    stream.write_all(&[0]).expect("write");
    stream.write_all(&[message.len() as u8]).expect("write");
    for byte in &message {
        stream.write_all(&[*byte]).expect("write");
    }
    assert_eq!(u16_at(&read_framed(&mut stream).expect("answer"), 0), Some(4));
}

#[test]
fn connections_end_as_scripted() {
    let answers_until_end = |close| {
        let responder = spawn(Script { close, ..Script::default() });
        let mut stream = tcp(&responder);
        let mut answers = 0;
        for id in 0..3 {
            let mut framed = vec![0, 24];
            framed.extend_from_slice(&query(id, "x.test", QueryType::A, None));
            if let Err(error) = stream.write_all(&framed) {
                return (answers, error.kind());
            }
            match read_framed(&mut stream) {
                Ok(_) => answers += 1,
                Err(error) => return (answers, error.kind()),
            }
        }
        (answers, ErrorKind::Other)
    };
    assert_eq!(answers_until_end(Close::Never), (3, ErrorKind::Other));
    let (answers, end) = answers_until_end(Close::AtOnce);
    assert_eq!(answers, 0);
    assert!(
        matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{end}"
    );
    let (answers, end) = answers_until_end(Close::After(2));
    assert_eq!(answers, 2);
    assert!(
        matches!(end, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{end}"
    );
    assert_eq!(answers_until_end(Close::ResetAfter(0)), (0, ErrorKind::ConnectionReset));
    let (answers, end) = answers_until_end(Close::ResetAfter(1));
    assert_eq!(answers, 1);
    assert!(matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{end}");
}

#[test]
fn only_the_first_query_of_a_connection_is_answered_when_told_so() {
    let responder = spawn(Script { first_only: true, ..Script::default() });
    let mut stream = tcp(&responder);
    send_framed(&mut stream, &query(1, "x.test", QueryType::A, None));
    send_framed(&mut stream, &query(2, "x.test", QueryType::A, None));
    assert_eq!(u16_at(&read_framed(&mut stream).expect("answer"), 0), Some(1));
    stream.set_read_timeout(Some(Duration::from_millis(30))).expect("time-out");
    assert_eq!(read_framed(&mut stream).expect_err("silence").kind(), ErrorKind::WouldBlock);
    let mut second = tcp(&responder);
    send_framed(&mut second, &query(3, "x.test", QueryType::A, None));
    assert_eq!(u16_at(&read_framed(&mut second).expect("answer"), 0), Some(3));
}

#[test]
fn what_is_no_query_is_counted_and_refused() {
    let responder = spawn(Script::default());
    let socket = socket(&responder);
    let good = query(9, "x.test", QueryType::A, None);
    let mut notify = good.clone();
    notify[2] = 0x20;
    let mut answer = good.clone();
    answer[2] = 0x80;
    for (message, expected) in [
        (&good[..20], Some(1)),
        (&notify, Some(4)),
        (&answer[..], None),
        (&good[..5], None),
        (&good, Some(0)),
    ] {
        socket.send(message).expect("send");
        if let Some(code) = expected {
            let answer = receive(&socket);
            assert_eq!((u16_at(&answer, 0), rcode(&answer)), (Some(9), code));
        }
    }
    assert_eq!(responder.stats().malformed, 4);
}

#[test]
fn dropped_responder_frees_its_port() {
    let responder = spawn(Script::default());
    let address = responder.addr();
    drop(responder);
    let again = Responder::builder().listen(address).spawn().expect("the port is free again");
    assert_eq!(again.addr(), address);
    let taken = Responder::builder().listen(address).spawn();
    assert_eq!(taken.expect_err("one at a time").kind(), ErrorKind::AddrInUse);
    assert!(Responder::builder().pin(1023).spawn().is_err(), "no such core");
}

#[test]
fn wildcard_responder_answers_from_the_address_that_was_asked() {
    let responder =
        Responder::builder().listen("0.0.0.0:0".parse().expect("address")).spawn().expect("spawn");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bind");
    socket.connect(("127.0.0.44", responder.addr().port())).expect("connect");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("time-out");
    socket.send(&query(1, "x.test", QueryType::A, None)).expect("send");
    receive(&socket);
}

//! Answers that are cut, twisted, wrongly counted, too long or followed by garbage: each client gets the right answer or is
//! told that there is none, and memory stays as it is.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use forebay::units::{Size, Span};
use forebay_bench::responder::expected_a;
use forebay_dns::{CacheSettings, Settings};
use support::{Tcp, Udp, id, query, rcode, run, settings};

/// What is sent for one query, in order. Over TCP each is a message with its length.
type Answers = Vec<Vec<u8>>;
/// Makes answers of a query, and of the number of queries before it.
type Recipe = Box<dyn Fn(&[u8], usize) -> Answers + Send>;

/// An upstream, over UDP and TCP, that sends whatever bytes it is told.
struct Upstream {
    address: std::net::SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    recipe: Arc<Mutex<Recipe>>,
}

impl Upstream {
    fn new(recipe: Recipe) -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").expect("a port");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("bound")) {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("bound");
        udp.set_read_timeout(Some(Duration::from_millis(20))).expect("a time-out");
        tcp.set_nonblocking(true).expect("non-blocking");
        let (stop, recipe) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(recipe)));
        let over_udp = {
            let (stop, recipe) = (Arc::clone(&stop), Arc::clone(&recipe));
            std::thread::spawn(move || {
                let (mut buffer, mut seen) = ([0; 4096], 0);
                while !stop.load(Relaxed) {
                    let Ok((length, peer)) = udp.recv_from(&mut buffer) else { continue };
                    for answer in recipe.lock().expect("no panic")(&buffer[..length], seen) {
                        // A datagram that is too long for the kernel is none.
                        let _ = udp.send_to(&answer, peer);
                    }
                    seen += 1;
                }
            })
        };
        let over_tcp = {
            let (stop, recipe) = (Arc::clone(&stop), Arc::clone(&recipe));
            std::thread::spawn(move || {
                let mut open: Vec<TcpStream> = Vec::new();
                let mut seen = 0;
                while !stop.load(Relaxed) {
                    if let Ok((stream, _)) = tcp.accept() {
                        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a time-out");
                        open.push(stream);
                    }
                    if open.is_empty() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    open.retain_mut(|stream| serve(stream, &recipe, &mut seen));
                }
            })
        };
        Self { address, stop, threads: vec![over_udp, over_tcp], recipe }
    }

    fn set(&self, recipe: Recipe) {
        *self.recipe.lock().expect("no panic") = recipe;
    }
}

/// Answers one query of a connection if there is one. Returns whether it is still open.
fn serve(stream: &mut TcpStream, recipe: &Mutex<Recipe>, seen: &mut usize) -> bool {
    let mut length = [0; 2];
    match stream.read(&mut length) {
        Ok(2) => {}
        Ok(_) => return false,
        Err(error) => {
            return matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
        }
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    if stream.read_exact(&mut message).is_err() {
        return false;
    }
    let mut bytes = Vec::new();
    for answer in recipe.lock().expect("no panic")(&message, *seen) {
        bytes.extend_from_slice(&(answer.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&answer);
    }
    *seen += 1;
    stream.write_all(&bytes).is_ok()
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been printed.
            let _ = thread.join();
        }
    }
}

/// The end of the question.
fn question_end(query: &[u8]) -> usize {
    let mut at = 12;
    while query[at] != 0 {
        at += usize::from(query[at]) + 1;
    }
    at + 5
}

fn dotted(query: &[u8]) -> String {
    let (mut at, mut name) = (12, String::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name.push_str(std::str::from_utf8(&query[at + 1..end]).expect("letters"));
        name.push('.');
        at = end;
    }
    name
}

/// A whole answer: an alias, the address of the name, an authority, and additional data with an OPT record.
fn whole(query: &[u8]) -> Vec<u8> {
    let end = question_end(query);
    let mut bytes = query[..end].to_vec();
    bytes[2..4].copy_from_slice(&[0x81, 0x80]);
    bytes[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 1, 0, 2]);
    let address = expected_a(&dotted(query)).octets();
    record(&mut bytes, &[0xc0, 12], 1, &address);
    record(&mut bytes, &[0xc0, 12], 2, &[2, b'n', b's', 0xc0, 12]);
    record(&mut bytes, &[2, b'n', b's', 0xc0, 12], 1, &[10, 1, 1, 1]);
    bytes.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    bytes
}

fn record(bytes: &mut Vec<u8>, owner: &[u8], rtype: u16, data: &[u8]) {
    bytes.extend_from_slice(owner);
    bytes.extend_from_slice(&rtype.to_be_bytes());
    bytes.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
    bytes.extend_from_slice(&(data.len() as u16).to_be_bytes());
    bytes.extend_from_slice(data);
}

/// Ways to spoil an answer; `at` goes through its bytes.
fn spoiled(query: &[u8], way: usize, at: usize) -> Option<Vec<u8>> {
    let mut bytes = whole(query);
    let end = question_end(query);
    match way {
        // Cut.
        0 => bytes.truncate((at < bytes.len()).then_some(at)?),
        // A pointer wherever a byte is: loops, and pointers to nowhere.
        1 => {
            let place = bytes.get_mut(end + at..end + at + 2)?;
            place.copy_from_slice(&(0xc000 | (end + at) as u16).to_be_bytes());
        }
        // Wrong counts.
        2 => *bytes.get_mut(4 + at).filter(|_| at < 8)? ^= 3,
        // Any other byte behind the question.
        3 => *bytes.get_mut(end + at)? ^= 0xff,
        _ => return None,
    }
    Some(bytes)
}

fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a figure");
    line.trim().trim_end_matches(" kB").trim().parse().expect("a number")
}

fn uncached(address: String) -> Settings {
    Settings {
        upstreams: vec![address],
        cache: CacheSettings { size: Size { bytes: 0 }, ..CacheSettings::default() },
        attempt_timeout: Span(Duration::from_millis(50)),
        query_timeout: Span(Duration::from_millis(1500)),
        ..settings(&[])
    }
}

/// The address in a reply, wherever it stands; `None` if there is none.
fn told(reply: &[u8], query: &[u8]) -> Option<[u8; 4]> {
    let end = question_end(query);
    (rcode(reply) == 0 && reply[7] > 0).then(|| reply[end + 12..end + 16].try_into().expect("four bytes"))
}

/// Asks for a name whose first answer is spoiled in each way at each byte. The second answer is right.
fn survive(scheme: &str) {
    let upstream = Upstream::new(Box::new(|query, _| vec![whole(query)]));
    let server = run(&uncached(format!("{scheme}://{}", upstream.address)));
    let client = Udp::to(server.address);
    let ask = |n: u16, name: &str| {
        let asked = query(n, name, 1, Some(1232));
        client.send(&asked);
        let reply = client.recv();
        assert_eq!(id(&reply), n);
        (told(&reply, &asked), rcode(&reply))
    };
    assert_eq!(ask(1, "fine.test").0, Some(expected_a("fine.test").octets()));
    let (mut cases, mut right, mut none) = (0u16, 0, 0);
    let mut before = 0;
    for way in 0..4 {
        for at in 0..120 {
            let name = format!("w{way}at{at}.test");
            if spoiled(&query(0, &name, 1, Some(1232)), way, at).is_none() {
                break;
            }
            cases += 1;
            // Over UDP the right one follows; over TCP it comes when asked again.
            let follows = scheme == "udp";
            let first = Arc::new(AtomicBool::new(true));
            upstream.set(Box::new(move |query, _| {
                let is_first = first.swap(false, Relaxed);
                let bad = spoiled(query, way, at).filter(|_| is_first);
                match bad {
                    Some(bad) if follows => vec![bad, whole(query)],
                    Some(bad) => vec![bad],
                    None => vec![whole(query)],
                }
            }));
            let expected = expected_a(&name).octets();
            let (answer, code) = ask(cases, &name);
            match answer {
                Some(address) if address == expected => right += 1,
                // Data that were changed on the way cannot be told from others: only where the address itself was.
                Some(_) => assert!(way == 3 || way == 1, "{name}: another's address"),
                None => {
                    none += 1;
                    assert!(code <= 5, "{name}: {code}");
                }
            }
            if cases == 100 {
                before = resident_kib();
            }
        }
    }
    upstream.set(Box::new(|query, _| vec![whole(query)]));
    assert_eq!(ask(1, "still.test").0, Some(expected_a("still.test").octets()), "it still answers");
    let grown = resident_kib().saturating_sub(before);
    println!(
        "{scheme}: {cases} spoiled answers: {right} right in the end, {none} without records; memory grew by {grown} KiB"
    );
    assert!(grown < 16 << 10, "memory grew by {grown} KiB");
    assert!(right > cases / 2);
    let stats = server.stats();
    assert_eq!((stats.questions, stats.waiting), (0, 0), "nothing is left");
    assert_eq!(stats.counters.replies, stats.counters.queries);
}

#[test]
fn no_spoiled_datagram_harms_anybody() {
    survive("udp");
}

#[test]
fn no_spoiled_message_on_a_stream_harms_anybody() {
    survive("tcp");
}

#[test]
fn garbage_behind_a_message_and_messages_of_no_length_are_passed_over() {
    let garbage = |query: &[u8]| {
        let mut bytes = whole(query);
        bytes.extend_from_slice(&[0xff; 200]);
        bytes
    };
    for scheme in ["udp", "tcp"] {
        let upstream =
            Upstream::new(Box::new(move |query, _| vec![Vec::new(), vec![0], garbage(query), Vec::new()]));
        let server = run(&uncached(format!("{scheme}://{}", upstream.address)));
        let client = Udp::to(server.address);
        for n in 0..20 {
            let name = format!("n{n}.test");
            let asked = query(n, &name, 1, Some(1232));
            client.send(&asked);
            let reply = client.recv();
            assert_eq!(told(&reply, &asked), Some(expected_a(&name).octets()), "{scheme}");
            assert!(!reply.windows(8).any(|bytes| bytes == [0xff; 8]), "the garbage is not passed on");
        }
    }
}

#[test]
fn an_answer_of_sixty_four_kilobytes_goes_through_and_is_cut_for_those_who_take_less() {
    let upstream = Upstream::new(Box::new(|query, _| {
        let end = question_end(query);
        let mut bytes = query[..end].to_vec();
        bytes[2..4].copy_from_slice(&[0x81, 0x80]);
        bytes[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
        let text = [&[255][..], &[b'x'; 255]].concat().repeat(254);
        record(&mut bytes, &[0xc0, 12], 16, &text);
        vec![bytes]
    }));
    let server = run(&uncached(format!("tcp://{}", upstream.address)));
    let mut stream = Tcp::to(server.address);
    let before = resident_kib();
    for n in 0..50 {
        stream.send(&query(n, "giant.test", 16, Some(1232)));
        let reply = stream.recv().expect("a reply");
        assert!(reply.len() > 65_000 && rcode(&reply) == 0, "{} bytes", reply.len());
    }
    let client = Udp::to(server.address);
    client.send(&query(7, "giant.test", 16, Some(1232)));
    let reply = client.recv();
    assert!(support::truncated(&reply) && reply.len() <= 1232);
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "memory grew by {grown} KiB");
}

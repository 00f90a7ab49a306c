//! Neither a hit nor a miss allocates, once it is warm: not in the forwarder, not in the tasks and the buffers around it. A
//! test binary of its own, as it counts allocations of the whole process.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay::sys::counting::CountingAllocator;
use forebay_dns::{DnsConfig, Settings, start};

#[global_allocator]
static COUNTING: CountingAllocator = CountingAllocator::new();

/// Queries that are counted.
const COUNTED: u64 = 20_000;
/// What timers, the clock and others may allocate meanwhile; not one for a thousand queries.
const OTHERS: u64 = COUNTED / 1000;

/// Answers every query with one address, and allocates nothing.
fn answer(socket: &UdpSocket, is_over: &AtomicBool) {
    let mut buffer = [0; 512];
    while !is_over.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        // The question alone, then a pointer to its name, A, IN, an hour, four bytes (RFC 1035 §4.1).
        let end = 12 + buffer[12..len].iter().position(|byte| *byte == 0).unwrap() + 5;
        buffer[2..4].copy_from_slice(&[0x81, 0x80]);
        buffer[6..12].copy_from_slice(&[0, 1, 0, 0, 0, 0]);
        let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 192, 0, 2, 1];
        buffer[end..end + record.len()].copy_from_slice(&record);
        socket.send_to(&buffer[..end + record.len()], from).unwrap();
    }
}

/// Asks for the name of a number, and waits for the answer; allocates nothing.
fn ask(client: &UdpSocket, number: u64) {
    let mut query = *b"\0\0\x01\0\0\x01\0\0\0\0\0\0\x08n0000000\x05bench\x04test\0\0\x01\0\x01";
    query[..2].copy_from_slice(&(number as u16).to_be_bytes());
    let mut rest = number;
    for digit in query[14..21].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    client.send(&query).unwrap();
    let mut answer = [0; 512];
    let len = client.recv(&mut answer).expect("an answer");
    assert_eq!((&answer[..2], answer[7]), (&query[..2], 1), "{:?}", &answer[..len]);
}

fn allocated(work: impl FnOnce()) -> u64 {
    let before = COUNTING.allocations();
    work();
    COUNTING.allocations() - before
}

/// One test, so that nothing else runs and is counted.
#[test]
fn neither_a_hit_nor_a_miss_allocates() {
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    upstream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let at = upstream.local_addr().unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let responder = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || answer(&upstream, &is_over))
    };
    let settings = Settings {
        workers: 1,
        listen: vec!["127.0.0.1:0".to_owned()],
        upstreams: vec![at.to_string()],
        ..Settings::default()
    };
    let server = start(DnsConfig::new(&settings, &[], 1).unwrap()).unwrap();
    let address: SocketAddr = server.local_addrs()[0].address;
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.connect(address).unwrap();
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();

    // Sockets to the upstream are made as they are needed, tables grow as they fill.
    (0..COUNTED).for_each(|number| ask(&client, number));
    let hits = allocated(|| (0..COUNTED).for_each(|number| ask(&client, number % 1000)));
    assert!(hits <= OTHERS, "{COUNTED} hits allocated {hits} times");
    let misses = allocated(|| (0..COUNTED).for_each(|number| ask(&client, 1_000_000 + number)));
    assert!(misses <= OTHERS, "{COUNTED} misses allocated {misses} times");
    println!("{COUNTED} hits allocated {hits} times, {COUNTED} misses {misses} times");
    is_over.store(true, Ordering::Relaxed);
    responder.join().unwrap();
    drop(server);
}

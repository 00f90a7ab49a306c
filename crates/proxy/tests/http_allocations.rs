//! One more request on kept connections allocates nothing. A test binary of its own, as it counts allocations of the
//! whole process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use forebay::sys::counting::CountingAllocator;
use forebay_proxy::{Mode, ProxyConfig, Settings, start};

#[global_allocator]
static COUNTING: CountingAllocator = CountingAllocator::new();

const REQUEST: &[u8] = b"GET /a HTTP/1.1\r\nHost: a\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n";
const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: 2\r\n\r\nok";
const REQUESTS: u64 = 2000;

/// One test, so that nothing else runs and is counted.
#[test]
fn one_more_request_on_kept_connections_allocates_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings {
        mode: Mode::Http,
        listen: vec!["127.0.0.1:0".to_owned()],
        backends: vec![listener.local_addr().unwrap().to_string()],
        workers: 1,
        ..Settings::default()
    };
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 1024];
        // A request comes at once, and ends with an empty line.
        while let Ok(1..) = stream.read(&mut buffer) {
            stream.write_all(RESPONSE).unwrap();
        }
    });
    let server = start(ProxyConfig::new(&settings, 1).unwrap()).unwrap();
    let mut client = TcpStream::connect(server.local_addrs()[0].address).unwrap();
    let mut buffer = [0; 1024];
    let mut ask = || {
        client.write_all(REQUEST).unwrap();
        assert!(client.read(&mut buffer).unwrap() > RESPONSE.len() - 10);
    };
    (0..100).for_each(|_| ask());
    let before = COUNTING.allocations();
    (0..REQUESTS).for_each(|_| ask());
    let allocations = COUNTING.allocations() - before;
    // The pool looks after itself now and then.
    assert!(allocations < REQUESTS / 50, "{allocations} allocations for {REQUESTS} requests");
}

//! The least that a server of datagrams can cost: each query goes back as its own answer, with two system calls.
//! `raw_echo ADDRESS`.

use std::error::Error;
use std::net::UdpSocket;

/// A response, recursion available (RFC 1035 §4.1.1).
const IS_RESPONSE: u8 = 0x80;

fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).ok_or("raw_echo ADDRESS")?;
    let socket = UdpSocket::bind(address)?;
    let mut buffer = [0; 4096];
    loop {
        let (len, from) = socket.recv_from(&mut buffer)?;
        buffer[2] |= IS_RESPONSE;
        // Whoever has gone needs no answer.
        let _ = socket.send_to(&buffer[..len], from);
    }
}

//! A DNS upstream that answers after a while: `cargo run --release -p forebay-bench --example responder -- 127.0.0.1:5301 780us`.

use std::time::Duration;

use forebay::units::Span;
use forebay_bench::responder::{Responder, Script};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), delay) = (arguments.next(), arguments.next()) else {
        return Err("usage: responder ADDRESS [DELAY]".into());
    };
    let delay = delay.map_or(Ok(Span(Duration::ZERO)), |delay| delay.parse())?.0;
    let upstream = Responder::builder()
        .listen(address.parse()?)
        .script(Script { delay, ..Script::default() })
        .spawn()?;
    println!("answering on {} after {delay:?}; Ctrl-C ends it", upstream.addr());
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

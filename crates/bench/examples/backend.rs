//! A scripted backend on the command line: `backend [echo|stamp|swallow|http|http2] [ADDR [FIRST_BYTE_AFTER_MS]]`; runs until
//! it is killed. Without arguments it echoes on 127.0.0.1:7700.

use std::error::Error;
use std::time::Duration;

use forebay_bench::backend::{Backend, Serve};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let serve = match args.next().as_deref() {
        None | Some("echo") => Serve::Echo,
        Some("stamp") => Serve::Stamp,
        Some("swallow") => Serve::Swallow,
        Some("http") => Serve::Http,
        Some("http2") => Serve::Http2,
        Some(other) => return Err(format!("{other} is not echo, stamp, swallow, http or http2").into()),
    };
    let listen = args.next().unwrap_or_else(|| "127.0.0.1:7700".to_owned()).parse()?;
    let far = Duration::from_millis(args.next().map_or(Ok(0), |text| text.parse())?);
    let backend = Backend::builder().serve(serve).listen(listen).first_byte_after(far).spawn()?;
    eprintln!("{} as {:?}", backend.addr(), std::env::args().nth(1).unwrap_or_default());
    loop {
        std::thread::park();
    }
}

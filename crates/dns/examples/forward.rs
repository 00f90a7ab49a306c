//! A forwarder in a few lines: `cargo run --release --example forward -- 127.0.0.1:5300 127.0.0.1:5301`.

use std::time::Duration;

use forebay_dns::{DnsConfig, Settings, start};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), upstreams) = (arguments.next(), arguments.collect::<Vec<_>>()) else {
        return Err("usage: forward LISTEN UPSTREAM…".into());
    };
    let settings = Settings { listen: vec![listen], upstreams, workers: 1, ..Settings::default() };
    let server = start(DnsConfig::new(&settings, &[], 1)?)?;
    println!("listening on {:?}; Ctrl-C ends it", server.local_addrs());
    tokio::signal::ctrl_c().await?;
    let stats = server.handle().stats().await;
    println!("{:#?}", stats.counters);
    for pool in &stats.pools {
        let made = pool.snapshot.counters.dials_succeeded;
        println!(
            "{} over {}: {made} connections made, reuse {:?}",
            pool.upstream,
            pool.transport,
            pool.snapshot.reuse_rate()
        );
    }
    server.drain(Duration::from_secs(2)).await;
    Ok(())
}

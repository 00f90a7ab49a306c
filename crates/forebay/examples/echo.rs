//! A thousand requests from a hundred tasks over ten connections: `cargo run -p forebay --example echo`.

use std::time::Instant;

use forebay::dial::Tcp;
use forebay::{AcquireOutcome, Config, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });

    let pool = Pool::builder(Tcp::default())
        .name("echo")
        .endpoint(address.into())
        .config(Config { connections_max: 10, ..Config::default() })
        .build()?;

    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let pool = pool.clone();
        tasks.spawn(async move {
            for _ in 0..10 {
                let mut stream = pool.acquire().await?;
                stream.write_all(b"hello").await?;
                let mut answer = [0; 5];
                stream.read_exact(&mut answer).await?;
                stream.complete();
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task?.map_err(|error| error.to_string())?;
    }

    let counters = pool.snapshot().counters();
    println!("1000 requests in {:.1?} over {} connections", start.elapsed(), counters.dials_succeeded);
    println!(
        "{} found one free, {} waited",
        counters.acquires(AcquireOutcome::Reused),
        counters.acquires(AcquireOutcome::Waited)
    );
    Ok(())
}

//! Calls a greeter through one pooled channel, or through so many channels of tonic, and says what a call costs:
//! `channels ADDRESS pooled|tonic[:N] IN_FLIGHT SECONDS [THREADS]`.
//!
//! Prints one line: who, calls per second, CPU of this process per call in µs, p50 and p99 in µs, failed calls, and all
//! calls, those before and after the measurement included.

use std::error::Error;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use forebay::sys::clock::process_cpu_time;
use forebay_grpc::PooledChannel;
use forebay_grpc::greet::HelloRequest;
use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
use tonic::Status;
use tonic::transport::Channel;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const WARM_UP: Duration = Duration::from_millis(500);

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [address, who, in_flight, seconds, rest @ ..] = &args[..] else {
        return Err("channels ADDRESS pooled|tonic[:N] IN_FLIGHT SECONDS [THREADS]".into());
    };
    let (in_flight, seconds) = (in_flight.parse::<usize>()?, seconds.parse::<u64>()?);
    let threads = rest.first().map_or(Ok(1), |threads| threads.parse::<usize>())?;
    let runtime = match threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build()?,
    };
    runtime.block_on(run(address, who, in_flight, Duration::from_secs(seconds)))
}

async fn run(address: &str, who: &str, in_flight: usize, span: Duration) -> Result<(), Box<dyn Error>> {
    let url = format!("http://{address}");
    let tally = Arc::new(Tally::default());
    let mut tasks = Vec::new();
    if let Some(count) = who.strip_prefix("tonic") {
        let count = count.strip_prefix(':').map_or(Ok(1), str::parse::<usize>)?;
        let mut channels = Vec::new();
        for _ in 0..count {
            channels.push(Channel::from_shared(url.clone())?.tcp_nodelay(true).connect().await?);
        }
        for n in 0..in_flight {
            let client = GreeterServiceClient::new(channels[n % count].clone());
            tasks.push(tokio::spawn(caller(Arc::clone(&tally), move || {
                let mut client = client.clone();
                async move { client.say_hello(request()).await.map(drop) }
            })));
        }
    } else {
        let channel = PooledChannel::new(url)?;
        for _ in 0..in_flight {
            let client = GreeterServiceClient::new(channel.clone());
            tasks.push(tokio::spawn(caller(Arc::clone(&tally), move || {
                let mut client = client.clone();
                async move { client.say_hello(request()).await.map(drop) }
            })));
        }
    }
    tokio::time::sleep(WARM_UP).await;
    let (cpu, began) = (process_cpu_time(), Instant::now());
    tally.counts.store(true, Ordering::Relaxed);
    tokio::time::sleep(span).await;
    tally.counts.store(false, Ordering::Relaxed);
    let (took, spent) = (began.elapsed(), process_cpu_time() - cpu);
    tally.ends.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await?);
    }
    all.sort_unstable();
    let at = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or_default().as_micros();
    let calls = all.len().max(1) as f64;
    println!(
        "{who:<10} {:>9.0} {:>8.2} {:>8} {:>8} {:>6} {:>9}",
        calls / took.as_secs_f64(),
        spent.as_secs_f64() * 1e6 / calls,
        at(50),
        at(99),
        tally.failed.load(Ordering::Relaxed),
        tally.all.load(Ordering::Relaxed)
    );
    Ok(())
}

fn request() -> HelloRequest {
    HelloRequest { name: "forebay".to_owned() }
}

#[derive(Default)]
struct Tally {
    counts: AtomicBool,
    ends: AtomicBool,
    failed: AtomicU64,
    all: AtomicU64,
}

async fn caller<F: Future<Output = Result<(), Status>>>(
    tally: Arc<Tally>,
    call: impl Fn() -> F,
) -> Vec<Duration> {
    let mut took = Vec::new();
    while !tally.ends.load(Ordering::Relaxed) {
        let began = Instant::now();
        let result = call().await;
        tally.all.fetch_add(1, Ordering::Relaxed);
        if tally.counts.load(Ordering::Relaxed) {
            took.push(began.elapsed());
            tally.failed.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
        }
    }
    took
}

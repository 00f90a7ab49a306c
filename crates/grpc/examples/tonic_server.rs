//! A stock server of tonic with the settings of a profile: the peer that Forebay's server is measured beside.
//!
//! `tonic_server ADDRESS [main|pprof]`; the same allocator as the command `forebay`.

use std::error::Error;

use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::{Greeter, Profile};
use tonic::transport::Server;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:50052".to_owned()).parse()?;
    let settings = args.next().unwrap_or_else(|| "main".to_owned()).parse::<Profile>()?.settings();
    let mut server = Server::builder()
        .tcp_nodelay(settings.tcp_nodelay)
        .tcp_keepalive(settings.tcp_keepalive)
        .concurrency_limit_per_connection(settings.calls_per_connection as usize)
        .load_shed(true)
        .initial_stream_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_concurrent_streams(settings.streams_max);
    if let Some(timeout) = settings.call_timeout {
        server = server.timeout(timeout);
    }
    server.add_service(GreeterServiceServer::new(Greeter::default())).serve(address).await?;
    Ok(())
}

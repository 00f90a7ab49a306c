//! Forebay's server with the greeter: `greeter ADDRESS [main|pprof]`.

use std::error::Error;

use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::{Greeter, Profile, Server, greet};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let profile: Profile = args.next().unwrap_or_else(|| "main".to_owned()).parse()?;
    let server = Server::builder()
        .profile(profile)
        .with(|settings| settings.workers = 1)
        .add_service(GreeterServiceServer::new(Greeter::default()))
        .health()
        .reflection(greet::FILE_DESCRIPTOR_SET)
        .listen(address)
        .build()?;
    println!("listening on {:?}; Ctrl-C ends it", server.local_addrs());
    loop {
        std::thread::park();
    }
}

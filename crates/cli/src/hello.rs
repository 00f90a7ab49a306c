//! `forebay grpc hello`: greets a greeter, to see that it is there.

use std::path::PathBuf;

use forebay::dial::Roots;
use forebay::units::Span;
use forebay_bench::grpc::told;
use forebay_grpc::PooledChannel;
use forebay_grpc::greet::HelloRequest;
use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
use tokio::runtime;
use tokio::time::timeout;
use tonic::Status;

use crate::args::refused_options;
use crate::failure::{Failure, say};

/// The options of `grpc hello`.
#[derive(Debug, clap::Args)]
#[command(args = refused_options())]
pub struct HelloArgs {
    /// Where the greeter is; http or https.
    #[arg(value_name = "URL")]
    pub url: String,
    /// Who is greeted.
    #[arg(long, value_name = "NAME", default_value = "world")]
    pub name: String,
    /// Ask for several answers (SayHelloStream).
    #[arg(long)]
    pub streaming: bool,
    /// PEM file of the certificates to trust [default: those that this machine trusts].
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// When to give up.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub timeout: Span,
}

/// Calls the greeter, and says what it says.
pub(crate) fn run(args: &HelloArgs) -> Result<(), Failure> {
    let limit = args.timeout.0;
    let mut builder = PooledChannel::builder(&args.url).connect_timeout(limit);
    if let Some(file) = &args.ca {
        let roots = Roots::from_pem_file(file).map_err(|error| Failure::wrong(format!("--ca: {error}")))?;
        builder = builder.roots(roots);
    }
    let failed = |status: &Status| Failure::failed(format!("{}: {}", args.url, told(status)));
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let channel = builder.build().map_err(|error| Failure::wrong(format!("URL: {error}")))?;
        let mut greeter = GreeterServiceClient::new(channel);
        let call = async {
            let request = HelloRequest { name: args.name.clone() };
            if !args.streaming {
                say(&greeter.say_hello(request).await?.into_inner().message);
                return Ok(());
            }
            let mut replies = greeter.say_hello_stream(request).await?.into_inner();
            while let Some(reply) = replies.message().await? {
                say(&reply.message);
            }
            Ok(())
        };
        let late = || Err(Status::deadline_exceeded(format!("no answer in {limit:?}")));
        timeout(limit, call).await.unwrap_or_else(|_| late()).map_err(|status| failed(&status))
    })
}

//! `forebay grpc`: the greeter as a server of gRPC.

use std::path::PathBuf;
use std::pin::pin;

use clap::Subcommand;
use forebay::sys::process;
use forebay::units::Span;
use forebay_grpc::greet::greeter_service_server::GreeterServiceServer;
use forebay_grpc::server::{BuildError, Profile, Running, Server};
use forebay_grpc::{Greeter, greet};
use tokio::runtime;

use crate::admin::{Phase, Source};
use crate::args::ServeArgs;
use crate::config::listed;
use crate::failure::Failure;
use crate::hello::HelloArgs;
use crate::serve::{Ends, bind_admin, end_at_once, lost_worker, start_admin};
use crate::{hello, logs, machine};

/// The options of `grpc`.
#[derive(Debug, clap::Args)]
pub struct GrpcArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: GrpcCommand,
}

/// What `grpc` does.
#[derive(Debug, Subcommand)]
pub enum GrpcCommand {
    /// Serve the greeter (greet.GreeterService), with health and reflection.
    #[command(after_help = "\
Examples:
  forebay grpc serve
  forebay grpc serve --listen :50051 --profile pprof --workers 4
  forebay grpc serve --tls-cert cert.pem --tls-key key.pem --age-max 30m

SIGTERM or Ctrl-C: calls in flight may finish, for at most --drain-timeout; a second one ends at once, with 1.")]
    Serve(Box<GrpcServeArgs>),
    /// Greet a greeter, and show its answer.
    #[command(after_help = "\
Examples:
  forebay grpc hello http://127.0.0.1:50051
  forebay grpc hello https://localhost:50051 --ca ca.pem --name you --streaming")]
    Hello(HelloArgs),
}

/// The options of `grpc serve`.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct GrpcServeArgs {
    /// Address to listen on; repeat for more [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Settings that go together: `main` (256 calls in flight on each connection, windows of 1 MiB, 1000 streams) or
    /// `pprof` (512, 2 MiB, 2000).
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = profile)]
    pub profile: Profile,
    /// Worker threads; 0 is one for each core [default: 0].
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Certificate, in PEM, followed by those between it and its root; read again when it changes.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Its key, in PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// How long a call may take until its response begins, or `none` [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub call_timeout: Option<Limit>,
    /// A connection that is so old, give or take a tenth, is told to go, or `none` [default: none].
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub age_max: Option<Limit>,
    /// A connection without calls for so long is told to go, or `none` [default: 30m].
    #[arg(long, value_name = "TIME", value_parser = limit)]
    pub idle_timeout: Option<Limit>,
    /// How long calls in flight may go on after SIGTERM.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub drain_timeout: Span,
    /// How long the greeter waits between the five greetings of a stream.
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    pub interval: Span,
}

/// A time, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(Option<Span>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        _ => text.parse().map(|span| Limit(Some(span))).map_err(|error| format!("{error}, or `none`")),
    }
}

fn profile(text: &str) -> Result<Profile, String> {
    text.parse().map_err(|error: forebay::settings::SettingsError| error.problem)
}

impl Limit {
    fn over(this: Option<Self>, default: Option<std::time::Duration>) -> Option<std::time::Duration> {
        this.map_or(default, |limit| limit.0.map(|span| span.0))
    }
}

impl GrpcServeArgs {
    /// Starts the server.
    fn start(&self) -> Result<Running, Failure> {
        let settings = self.profile.settings();
        let mut builder = Server::builder()
            .profile(self.profile)
            .with(|changed| {
                changed.workers = self.workers.unwrap_or(settings.workers);
                changed.call_timeout = Limit::over(self.call_timeout, settings.call_timeout);
                changed.age_max = Limit::over(self.age_max, settings.age_max);
                changed.idle_timeout = Limit::over(self.idle_timeout, settings.idle_timeout);
            })
            .add_service(GreeterServiceServer::new(Greeter { interval: self.interval.0 }))
            .health()
            .reflection(greet::FILE_DESCRIPTOR_SET);
        if let (Some(certificate), Some(key)) = (&self.tls_cert, &self.tls_key) {
            builder = builder.tls(certificate, key);
        }
        for listen in &self.listen {
            builder = builder.listen(listen);
        }
        builder.build().map_err(|error| match &error {
            BuildError::Settings(wrong) => {
                let flag = match wrong.key.as_str() {
                    "tls.certificate" => "--tls-cert".to_owned(),
                    "tls.key" => "--tls-key".to_owned(),
                    key => format!("--{}", key.replace('_', "-")),
                };
                Failure::wrong(format!("{flag}: {}", wrong.problem))
            }
            BuildError::Bind { .. } => Failure::wrong(format!("--listen: {error}")),
            _ => Failure::failed(error.to_string()),
        })
    }
}

/// Runs `grpc`.
pub(crate) fn run(args: &GrpcArgs, serve: &ServeArgs) -> Result<(), Failure> {
    match &args.command {
        GrpcCommand::Serve(args) => run_server(args, serve),
        GrpcCommand::Hello(args) => hello::run(args),
    }
}

/// Serves until a signal ends it.
fn run_server(args: &GrpcServeArgs, serve: &ServeArgs) -> Result<(), Failure> {
    let machine = machine::read(std::path::Path::new("/dev/null"));
    let (admin, log) = serve.resolve(machine.token.as_deref())?;
    logs::init(log);
    if let Err(error) = process::raise_descriptor_limit() {
        tracing::warn!(%error, "the limit of descriptors stays as it is");
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let mut ends = Ends::new()?;
        let listener = bind_admin(&admin)?;
        let url = listener
            .as_ref()
            .and_then(|listener| listener.local_addr().ok())
            .map_or("none".to_owned(), |address| format!("http://{address}"));
        let server = args.start()?;
        let source = Source { grpc: Some(server.handle()), ..Source::default() };
        tracing::info!(
            listen = listed(server.local_addrs()),
            profile = %args.profile,
            workers = server.handle().workers(),
            tls = args.tls_cert.is_some(),
            admin = url,
            "grpc is ready"
        );
        let admin = start_admin(&admin, listener, source.clone())?;
        let signal = tokio::select! {
            signal = ends.next() => signal,
            failure = lost_worker(&source) => return Err(failure),
        };
        tracing::info!(signal, "draining: what is in flight may finish");
        if let Some(admin) = &admin {
            admin.set_phase(Phase::Draining);
        }
        // Not dropped before the process ends: that would wait for the workers.
        let drain = pin!(server.drain(args.drain_timeout.0));
        tokio::select! {
            () = drain => tracing::info!("ended"),
            signal = ends.next() => end_at_once(signal),
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn parse(line: &str) -> Result<GrpcServeArgs, String> {
        let args = Args::try_parse_from(line.split_ascii_whitespace()).map_err(|error| error.to_string())?;
        let Some(Command::Grpc(GrpcArgs { command: GrpcCommand::Serve(args) })) = args.command else {
            panic!("it was asked for");
        };
        Ok(*args)
    }

    #[test]
    fn options_of_grpc_serve_are_read() {
        let none = parse("forebay grpc serve").unwrap();
        assert_eq!((none.profile, none.drain_timeout), (Profile::Main, Span(Duration::from_secs(30))));
        assert_eq!(Limit::over(none.call_timeout, Some(Duration::ZERO)), Some(Duration::ZERO));
        let all = parse(
            "forebay grpc serve --listen :1 --profile pprof --workers 2 --call-timeout none --age-max 5m \
             --idle-timeout 1m --interval 0s --tls-cert c --tls-key k",
        )
        .unwrap();
        assert_eq!(all.profile, Profile::Pprof);
        assert_eq!(Limit::over(all.call_timeout, Some(Duration::ZERO)), None);
        assert_eq!(Limit::over(all.age_max, None), Some(Duration::from_secs(300)));
    }

    #[test]
    fn what_cannot_be_names_its_option() {
        for (line, word) in [
            ("forebay grpc serve --profile fast", "main, pprof"),
            ("forebay grpc serve --age-max often", "none"),
            ("forebay grpc serve --tls-cert c", "--tls-key"),
            ("forebay grpc", "serve"),
        ] {
            assert!(parse(line).unwrap_err().contains(word), "{line}");
        }
        for (line, flag) in [
            ("forebay grpc serve --listen nowhere", "error: --listen: "),
            ("forebay grpc serve --workers 100000", "error: --workers: "),
            ("forebay grpc serve --call-timeout 0s", "error: --call-timeout: "),
            ("forebay grpc serve --tls-cert /nowhere --tls-key /nowhere", "error: --tls-cert: "),
        ] {
            let failure = parse(line).unwrap().start().map(drop).unwrap_err().to_string();
            assert!(failure.starts_with(flag), "{line}: {failure}");
        }
    }
}

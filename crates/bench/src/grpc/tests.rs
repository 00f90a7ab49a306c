use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicU64;
use std::thread;

use forebay_grpc::greet::greeter_service_server::{GreeterService, GreeterServiceServer};
use forebay_grpc::greet::{FILE_DESCRIPTOR_SET, HelloReply, HelloRequest};
use futures_util::{Stream, stream};
use tokio::sync::oneshot;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;

/// What a greeter was asked, and how it answers.
#[derive(Debug, Default)]
struct Seen {
    calls: AtomicU64,
    longest_name: AtomicU64,
}

/// A greeter of tonic's own server, which knows nothing of ours.
#[derive(Clone, Debug, Default)]
struct Greeter {
    seen: Arc<Seen>,
    /// Whom it greets, if not who asks.
    greets: Option<&'static str>,
    delay: Duration,
}

impl Greeter {
    async fn answer(&self, request: Request<HelloRequest>) -> HelloReply {
        let name = request.into_inner().name;
        self.seen.calls.fetch_add(1, Relaxed);
        self.seen.longest_name.fetch_max(name.len() as u64, Relaxed);
        tokio::time::sleep(self.delay).await;
        HelloReply { message: format!("Hello {}!", self.greets.unwrap_or(&name)) }
    }
}

#[tonic::async_trait]
impl GreeterService for Greeter {
    type SayHelloStreamStream = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        if request.get_ref().name == "nobody" {
            return Err(Status::not_found("nobody is here"));
        }
        Ok(Response::new(self.answer(request).await))
    }

    async fn say_hello_stream(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<Self::SayHelloStreamStream>, Status> {
        let reply = self.answer(request).await;
        Ok(Response::new(Box::pin(stream::iter([reply.clone(), reply.clone(), reply].map(Ok)))))
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Reflection {
    V1,
    V1Alpha,
}

/// A running server; ends when dropped.
struct Running {
    address: SocketAddr,
    seen: Arc<Seen>,
    _stop: oneshot::Sender<()>,
}

impl Running {
    /// Greets on connections with so many streams, and describes itself by those.
    fn start(greeter: Greeter, streams: u32, reflection: &[Reflection]) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, address) = std::sync::mpsc::channel();
        let seen = Arc::clone(&greeter.seen);
        let reflection = reflection.to_vec();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
                told.send(incoming.local_addr().unwrap()).unwrap();
                let builder = || {
                    tonic_reflection::server::Builder::configure()
                        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
                };
                let has = |version| reflection.contains(&version);
                let newer = has(Reflection::V1).then(|| builder().build_v1().unwrap());
                let older = has(Reflection::V1Alpha).then(|| builder().build_v1alpha().unwrap());
                let server = Server::builder()
                    .max_concurrent_streams(streams)
                    .add_service(GreeterServiceServer::new(greeter))
                    .add_optional_service(newer)
                    .add_optional_service(older)
                    .serve_with_incoming(incoming);
                tokio::select! {
                    result = server => result.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        Self { address: address.recv().unwrap(), seen, _stop: stop }
    }

    fn greeter() -> Self {
        Self::start(Greeter::default(), 200, &[Reflection::V1])
    }

    /// A short load on it.
    fn load(&self) -> GrpcLoad {
        GrpcLoad {
            clients: 4,
            requests: Some(25),
            duration: None,
            ..GrpcLoad::new(format!("http://{}", self.address))
        }
    }

    fn calls(&self) -> u64 {
        self.seen.calls.load(Relaxed)
    }
}

fn described(name: &str, json: &str) -> Method {
    Method::Described { name: name.to_owned(), json: json.to_owned() }
}

fn refused(load: &GrpcLoad) -> String {
    run(load).unwrap_err().to_string()
}

#[test]
fn each_client_makes_its_calls_and_all_are_counted() {
    let server = Running::greeter();
    let report = run(&server.load()).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed, server.calls()), (100, 0, 100), "{report}");
    assert_eq!((report.messages_received, report.is_streaming), (100, false));
    assert_eq!(report.method, "greet.GreeterService/SayHello");
    // A name of 5 bytes, and 2 that say so; an answer has "Hello " and "!" more.
    assert_eq!((report.message_bytes, report.figures.bytes_sent), (7, 100 * 12));
    assert_eq!(report.figures.bytes_received, 100 * 19);
    assert!(report.figures.rate > 0.0 && report.figures.latency.is_some());
    let text = report.to_string();
    for expected in
        ["4 clients, 25 calls each", "answered    100 of 100", "p99.9", "connections", "generator"]
    {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

#[test]
fn one_connection_is_one_and_a_pool_grows_with_the_servers_limit() {
    let greeter = Greeter { delay: Duration::from_millis(5), ..Greeter::default() };
    let server = Running::start(greeter, 4, &[]);
    let load = GrpcLoad { clients: 16, ..server.load() };
    let pooled = run(&load).unwrap();
    assert_eq!(pooled.figures.failed, 0, "{pooled}");
    assert!(pooled.figures.connections_opened >= 2, "four calls fit on a connection: {pooled}");
    assert!(pooled.figures.reuse_rate.unwrap() > 0.5, "{pooled}");
    let single = run(&GrpcLoad { connections: Some(1), ..load }).unwrap();
    assert_eq!((single.figures.failed, single.figures.connections_opened), (0, 1), "{single}");
    assert!(single.to_string().contains("1 connection\n"), "{single}");
}

#[test]
fn streams_count_once_with_all_their_messages() {
    let server = Running::greeter();
    let method = Method::Hello { payload: 5, is_streaming: true };
    let report = run(&GrpcLoad { method, ..server.load() }).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (100, 0), "{report}");
    assert_eq!((report.messages_received, report.is_streaming), (300, true));
    assert!(report.to_string().contains("300 messages received, 3.0 per call"), "{report}");
}

#[test]
fn names_are_as_long_as_asked_for() {
    let server = Running::greeter();
    let method = Method::Hello { payload: 100_000, is_streaming: false };
    let report = run(&GrpcLoad { method, requests: Some(2), ..server.load() }).unwrap();
    assert_eq!((report.figures.failed, server.seen.longest_name.load(Relaxed)), (0, 100_000), "{report}");
    let method = Method::Hello { payload: PAYLOAD_MAX + 1, is_streaming: false };
    assert!(refused(&GrpcLoad { method, ..server.load() }).contains("payload is 4000001"));
}

#[test]
fn an_open_loop_keeps_its_rate_and_a_duration_its_end() {
    let server = Running::greeter();
    let load = GrpcLoad {
        rate: Some(200.0),
        requests: None,
        duration: Some(Duration::from_secs(1)),
        server_pid: Some(std::process::id() as i32),
        ..server.load()
    };
    let report = run(&load).unwrap();
    assert!((150..=201).contains(&report.figures.answered), "{report}");
    assert_eq!((report.figures.failed, report.target_rate), (0, Some(200.0)), "{report}");
    assert!(report.figures.elapsed_seconds > 0.5 && report.figures.elapsed_seconds < 10.0, "{report}");
    assert!(report.figures.server_cpu_us_per_request.unwrap() > 0.0, "{report}");
}

#[test]
fn threads_share_clients_and_connections() {
    let server = Running::greeter();
    let report = run(&GrpcLoad { threads: 2, connections: Some(2), ..server.load() }).unwrap();
    assert_eq!((report.figures.answered, report.figures.connections_opened), (100, 2), "{report}");
    let error = refused(&GrpcLoad { threads: 2, connections: Some(1), ..server.load() });
    assert!(error.contains("connections is 1: each thread needs one"), "{error}");
}

#[test]
fn any_method_that_the_server_describes_can_be_called() {
    let server = Running::greeter();
    let method = described("greet.GreeterService/SayHello", r#"{"name": "you and me"}"#);
    let report = run(&GrpcLoad { method, ..server.load() }).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (100, 0), "{report}");
    assert_eq!((server.calls(), server.seen.longest_name.load(Relaxed)), (100, 10));
    let method = described("greet.GreeterService/SayHelloStream", "{}");
    let report = run(&GrpcLoad { method, ..server.load() }).unwrap();
    assert_eq!((report.figures.answered, report.messages_received, report.message_bytes), (100, 300, 0));
}

#[test]
fn what_a_server_refuses_is_counted_by_its_code() {
    let server = Running::greeter();
    let method = described("greet.GreeterService/SayHello", r#"{"name": "nobody"}"#);
    let report = run(&GrpcLoad { method, ..server.load() }).unwrap();
    assert_eq!((report.figures.answered, report.figures.errors["NOT_FOUND"]), (0, 100), "{report}");
    assert_eq!(report.figures.last_error.unwrap(), "NOT_FOUND: nobody is here");
}

#[test]
fn a_method_that_cannot_be_called_is_told_with_what_can() {
    let server = Running::greeter();
    for (name, json, problem) in [
        ("SayHello", "{}", "method is SayHello: write package.Service/Method"),
        ("greet.GreeterService/", "{}", "write package.Service/Method"),
        ("greet.GreeterService/Say Hello", "{}", "write package.Service/Method"),
        ("greet.Nobody/SayHello", "{}", "the server has no such service; it has: "),
        ("greet.GreeterService/SayBye", "{}", "no such method; it has: SayHello, SayHelloStream"),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "{}", "it takes a stream of messages"),
        ("greet.GreeterService/SayHello", r#"{"nam": "x"}"#, "whose fields are: name"),
        ("greet.GreeterService/SayHello", r#"{"name": 7}"#, "data is {\"name\": 7}: "),
        ("greet.GreeterService/SayHello", "{} {}", "trailing characters"),
        ("greet.GreeterService/SayHello", "", "EOF while parsing"),
    ] {
        let error = refused(&GrpcLoad { method: described(name, json), ..server.load() });
        assert!(error.contains(problem), "{name} {json}: {error}");
    }
    assert_eq!(server.calls(), 0);
}

#[test]
fn a_server_that_knows_the_older_reflection_is_asked_by_that() {
    let server = Running::start(Greeter::default(), 200, &[Reflection::V1Alpha]);
    let method = described("greet.GreeterService/SayHello", r#"{"name": "Ada"}"#);
    let load = GrpcLoad { method, ..server.load() };
    let report = run(&load).unwrap();
    assert_eq!((report.figures.answered, server.calls()), (100, 100));
    let error = refused(&GrpcLoad { method: described("greet.Nobody/SayHello", "{}"), ..load });
    assert!(error.contains("no such service; it has: greet.GreeterService"), "{error}");
}

#[test]
fn a_server_that_describes_nothing_says_so() {
    let server = Running::start(Greeter::default(), 200, &[]);
    let method = described("greet.GreeterService/SayHello", "{}");
    let error = refused(&GrpcLoad { method, ..server.load() });
    assert!(
        error.contains("has no reflection (grpc.reflection.v1 or v1alpha)")
            && error.contains("leave --method out"),
        "{error}"
    );
}

#[test]
fn a_server_that_is_down_is_unavailable() {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let load = GrpcLoad {
        requests: Some(2),
        clients: 2,
        duration: None,
        timeout: Duration::from_secs(2),
        ..GrpcLoad::new(format!("http://{address}"))
    };
    let report = run(&load).unwrap();
    assert_eq!((report.figures.answered, report.figures.failed), (0, 4), "{report}");
    assert!(report.figures.last_error.is_some(), "{report}");
    let error = refused(&GrpcLoad { method: described("a.B/C", "{}"), ..load });
    assert!(error.contains(&format!("http://{address} does not say what its methods are")), "{error}");
}

#[test]
fn a_server_that_ends_leaves_half_a_report() {
    let server = Running::greeter();
    let load = GrpcLoad {
        requests: None,
        duration: Some(Duration::from_millis(1500)),
        rate: Some(500.0),
        timeout: Duration::from_millis(200),
        ..server.load()
    };
    let ends = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        drop(server);
    });
    let report = run(&load).unwrap();
    ends.join().unwrap();
    let partial = report.figures.partial.as_deref().expect("marked");
    assert!(partial.starts_with("no answer after 0.") && report.figures.answered > 50, "{report}");
}

#[test]
fn wrong_answers_and_late_ones_are_no_answers() {
    let server = Running::start(Greeter { greets: Some("you"), ..Greeter::default() }, 200, &[]);
    let report = run(&server.load()).unwrap();
    assert_eq!((report.figures.answered, report.figures.errors["DATA_LOSS"]), (0, 100), "{report}");
    let late = Greeter { delay: Duration::from_secs(30), ..Greeter::default() };
    let server = Running::start(late, 200, &[]);
    let load = GrpcLoad { timeout: Duration::from_millis(50), requests: Some(1), ..server.load() };
    let report = run(&load).unwrap();
    assert_eq!((report.figures.answered, report.figures.errors["timeout"]), (0, 4), "{report}");
}

#[test]
fn a_setting_that_cannot_be_is_named() {
    let load = GrpcLoad::new("http://127.0.0.1:1");
    let ca = Some(Roots::from_pem(b"").unwrap_or_else(|_| Roots::native().unwrap()));
    for (load, setting) in [
        (GrpcLoad::new("ftp://x"), "URL is ftp://x: "),
        (GrpcLoad::new("http://x/path"), "URL is http://x/path: "),
        (GrpcLoad { clients: 0, ..load.clone() }, "clients is 0"),
        (GrpcLoad { connections: Some(0), ..load.clone() }, "connections is 0"),
        (GrpcLoad { duration: None, ..load.clone() }, "duration is none"),
        (GrpcLoad { requests: Some(0), ..load.clone() }, "requests is 0"),
        (GrpcLoad { rate: Some(-1.0), ..load.clone() }, "rate is -1"),
        (GrpcLoad { timeout: Duration::ZERO, ..load.clone() }, "timeout is 0 s"),
        (GrpcLoad { roots: ca, ..load.clone() }, "ca is set: only https"),
    ] {
        let error = refused(&load);
        assert!(error.starts_with(setting), "{setting}: {error}");
    }
}

//! A service that does what it is told, and clients that do what they should not.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_grpc::greet::greeter_service_server::{GreeterService, GreeterServiceServer};
use forebay_grpc::greet::{HelloReply, HelloRequest};
use forebay_grpc::server::{Builder, Peer};
use forebay_grpc::{Running, Server, ServerFigures, ServerSettings, greet};
use futures_util::stream::{self, Stream, StreamExt};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

pub(crate) const SAY_HELLO: &str = "/greet.GreeterService/SayHello";
pub(crate) const SAY_HELLO_STREAM: &str = "/greet.GreeterService/SayHelloStream";

/// Longer than anything here takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Does what the name says: `wait` (for ever), `wait:MS`, `panic`, `big:BYTES`, `fail`, `peer`; as a stream also `flood`
/// (messages without end), `wait` (one, then none).
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// Messages that were asked of floods.
    pub(crate) flooded: Arc<AtomicU64>,
}

type Replies = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

fn reply(message: String) -> HelloReply {
    HelloReply { message }
}

#[tonic::async_trait]
impl GreeterService for Told {
    async fn say_hello(
        &self,
        request: tonic::Request<HelloRequest>,
    ) -> Result<tonic::Response<HelloReply>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        let echo = request.metadata().get("x-echo").cloned();
        let name = request.into_inner().name;
        let (word, number) = name.split_once(':').unwrap_or((&name, ""));
        let message = match word {
            "wait" if number.is_empty() => std::future::pending().await,
            "wait" => {
                tokio::time::sleep(Duration::from_millis(number.parse().unwrap())).await;
                "waited".to_owned()
            }
            "panic" => panic!("as it was told"),
            "big" => "x".repeat(number.parse().unwrap()),
            "fail" => return Err(Status::failed_precondition("as it was told: ünd so")),
            "peer" => format!("{peer:?}"),
            _ => format!("Hello {name}!"),
        };
        let mut response = tonic::Response::new(reply(message));
        if let Some(echo) = echo {
            response.metadata_mut().insert("x-echo", echo);
        }
        Ok(response)
    }

    type SayHelloStreamStream = Replies;

    async fn say_hello_stream(
        &self,
        request: tonic::Request<HelloRequest>,
    ) -> Result<tonic::Response<Replies>, Status> {
        let name = request.into_inner().name;
        let (word, number) = name.split_once(':').unwrap_or((&name, ""));
        let replies: Replies = match word {
            "wait" => Box::pin(stream::iter([Ok(reply("one".into()))]).chain(stream::pending())),
            "flood" => {
                let (flooded, bytes) = (Arc::clone(&self.flooded), number.parse().unwrap());
                Box::pin(stream::repeat_with(move || {
                    flooded.fetch_add(1, Ordering::Relaxed);
                    Ok(reply("x".repeat(bytes)))
                }))
            }
            "panic" => Box::pin(stream::iter(0..2).map(|n| match n {
                0 => Ok(reply("one".into())),
                _ => panic!("as it was told"),
            })),
            "fail" => {
                Box::pin(stream::iter([Ok(reply("one".into())), Err(Status::aborted("as it was told"))]))
            }
            _ => Box::pin(stream::iter((0..5).map(move |n| Ok(reply(format!("{name} {n}")))))),
        };
        Ok(tonic::Response::new(replies))
    }
}

/// A server with the service that does what it is told, on one worker.
pub(crate) fn builder(change: impl FnOnce(&mut ServerSettings)) -> Builder {
    told(Told::default(), change)
}

pub(crate) fn told(service: Told, change: impl FnOnce(&mut ServerSettings)) -> Builder {
    Server::builder()
        .with(|settings| {
            settings.workers = 1;
            change(settings);
        })
        .add_service(GreeterServiceServer::new(service))
        .health()
        .reflection(greet::FILE_DESCRIPTOR_SET)
        .listen("127.0.0.1:0")
}

pub(crate) fn server(change: impl FnOnce(&mut ServerSettings)) -> Running {
    builder(change).build().unwrap()
}

pub(crate) fn address(server: &Running) -> SocketAddr {
    server.local_addrs()[0]
}

/// Waits until the figures are so.
pub(crate) async fn until(server: &Running, what: &str, so: impl Fn(&ServerFigures) -> bool) {
    let handle = server.handle();
    let seen = async {
        while !so(&handle.figures()) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, seen).await.is_err() {
        panic!("{what} does not come: {:?}", handle.figures());
    }
}

/// Puts the prefix before a message.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    let body = message.encode_to_vec();
    let mut bytes = BytesMut::from(&[0][..]);
    bytes.extend_from_slice(&(body.len() as u32).to_be_bytes());
    bytes.extend_from_slice(&body);
    bytes.freeze()
}

pub(crate) fn hello(name: &str) -> Bytes {
    framed(&HelloRequest { name: name.to_owned() })
}

/// What came of a call.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) code: Option<Code>,
    pub(crate) message: String,
    pub(crate) body: Vec<u8>,
    /// What broke the stream, if anything did.
    pub(crate) broken: Option<Reason>,
}

/// A connection of HTTP/2 that knows nothing of gRPC.
pub(crate) struct Wire {
    pub(crate) send: SendRequest<Bytes>,
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
}

impl Wire {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), h2::client::Builder::new()).await
    }

    pub(crate) async fn over(
        stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
        builder: h2::client::Builder,
    ) -> Self {
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Self { send, connection: tokio::spawn(connection) }
    }

    pub(crate) fn request(path: &str) -> http::request::Builder {
        Request::post(format!("http://test{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    }

    /// Begins a call.
    pub(crate) async fn begin(
        &mut self,
        request: Request<()>,
        end: bool,
    ) -> (ResponseFuture, SendStream<Bytes>) {
        std::future::poll_fn(|cx| self.send.poll_ready(cx)).await.unwrap();
        self.send.send_request(request, end).unwrap()
    }

    /// Calls with one message.
    pub(crate) async fn call(&mut self, path: &str, body: Bytes) -> Answer {
        self.ask(Self::request(path).body(()).unwrap(), body).await
    }

    pub(crate) async fn ask(&mut self, request: Request<()>, body: Bytes) -> Answer {
        let (response, mut stream) = self.begin(request, false).await;
        stream.send_data(body, true).unwrap();
        answer(response).await
    }

    /// Waits for the end of the connection.
    pub(crate) async fn end(self) -> Result<(), h2::Error> {
        drop(self.send);
        tokio::time::timeout(PATIENCE, self.connection).await.expect("it ends").unwrap()
    }
}

/// Reads a response to its end.
pub(crate) async fn answer(response: ResponseFuture) -> Answer {
    tokio::time::timeout(PATIENCE, read(response)).await.expect("an answer comes")
}

async fn read(response: ResponseFuture) -> Answer {
    let mut answer =
        Answer { status: StatusCode::OK, code: None, message: String::new(), body: Vec::new(), broken: None };
    let response: Response<_> = match response.await {
        Ok(response) => response,
        Err(error) => return Answer { broken: error.reason(), ..answer },
    };
    let (head, mut body) = response.into_parts();
    answer.status = head.status;
    answer.note(&head.headers);
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                answer.body.extend_from_slice(&data);
            }
            Err(error) => return Answer { broken: error.reason(), ..answer },
        }
    }
    if let Ok(Some(trailers)) = body.trailers().await {
        answer.note(&trailers);
    }
    answer
}

impl Answer {
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            (self.code, self.message) = (Some(status.code()), status.message().to_owned());
        }
    }
}

/// Kinds of frames (RFC 9113 §6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Numbers of settings (RFC 9113 §6.5.2).
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
pub(crate) const MAX_FRAME_SIZE: u16 = 5;
pub(crate) const MAX_HEADER_LIST_SIZE: u16 = 6;

/// A frame as it is written.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The head of a call, written without compression (RFC 7541 §6.2.2).
pub(crate) fn head(stream: u32, path: &str, more: &[(&str, &str)], end: bool) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields.iter().chain(more) {
        assert!(name.len() < 127 && value.len() < 127);
        block.extend([0, name.len() as u8]);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    frame(HEADERS, END_HEADERS | if end { END_STREAM } else { 0 }, stream, &block)
}

/// A whole call.
pub(crate) fn whole(stream: u32, name: &str) -> Vec<u8> {
    [head(stream, SAY_HELLO, &[], false), frame(DATA, END_STREAM, stream, &hello(name))].concat()
}

/// A frame that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// A client that writes what it likes.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    pub(crate) async fn new(address: SocketAddr) -> Self {
        let mut raw = Self(TcpStream::connect(address).await.unwrap());
        raw.write(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(SETTINGS, 0, 0, &[])].concat()).await;
        raw
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        // The server may have had enough already.
        let _ = self.0.write_all(bytes).await;
    }

    /// Reads a frame; `None` at the end. Settings are acknowledged, pings are not answered.
    pub(crate) async fn read(&mut self) -> Option<Read> {
        let frame = tokio::time::timeout(PATIENCE, self.read_frame()).await.expect("a frame comes").ok()?;
        if frame.kind == SETTINGS && frame.flags & ACK == 0 {
            self.write(&self::frame(SETTINGS, ACK, 0, &[])).await;
        }
        Some(frame)
    }

    async fn read_frame(&mut self) -> io::Result<Read> {
        let mut header = [0; 9];
        self.0.read_exact(&mut header).await?;
        let [a, b, c, kind, flags, stream @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok(Read { kind, flags, stream: u32::from_be_bytes(stream), payload })
    }

    /// Reads up to a frame of this kind; `None` if there is none before the end.
    pub(crate) async fn find(&mut self, kind: u8) -> Option<Read> {
        loop {
            match self.read().await {
                Some(read) if read.kind == kind => return Some(read),
                Some(_) => {}
                None => return None,
            }
        }
    }

    /// Reads up to the end. Returns the reason of the last GOAWAY.
    pub(crate) async fn goodbye(&mut self) -> Option<Reason> {
        let mut reason = None;
        while let Some(read) = self.read().await {
            if read.kind == GOAWAY {
                reason = Some(Reason::from(u32::from_be_bytes(read.payload[4..8].try_into().unwrap())));
            }
        }
        reason
    }
}

//! Servers to call: tonic's own with a greeter, and one by HTTP/2 that does what a script says.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use forebay_grpc::PooledChannel;
use forebay_grpc::channel::Builder;
use forebay_grpc::greet::greeter_service_client::GreeterServiceClient;
use forebay_grpc::greet::greeter_service_server::{GreeterService, GreeterServiceServer};
use forebay_grpc::greet::{HelloReply, HelloRequest};
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::server::TcpIncoming;

/// Says hello; names that begin with a word in it have it done.
#[derive(Clone, Default)]
pub struct Greeter {
    pub calls: Arc<AtomicU64>,
    pub seen: Arc<Mutex<Vec<HeaderMap>>>,
    /// Messages of streams that the server could give away.
    pub sent: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl GreeterService for Greeter {
    type SayHelloStreamStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<HelloReply, Status>> + Send>>;

    async fn say_hello(
        &self,
        request: tonic::Request<HelloRequest>,
    ) -> Result<tonic::Response<HelloReply>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.seen.lock().unwrap().push(request.metadata().clone().into_headers());
        let name = request.into_inner().name;
        if let Some(pause) = name.strip_prefix("slow ") {
            tokio::time::sleep(Duration::from_millis(pause.parse().unwrap())).await;
        }
        match name.as_str() {
            "denied" => Err(Status::permission_denied("not you")),
            "large" => Ok(tonic::Response::new(HelloReply { message: "x".repeat(3 << 20) })),
            _ => Ok(tonic::Response::new(HelloReply { message: format!("Hello {name}") })),
        }
    }

    async fn say_hello_stream(
        &self,
        request: tonic::Request<HelloRequest>,
    ) -> Result<tonic::Response<Self::SayHelloStreamStream>, Status> {
        let name = request.into_inner().name;
        let (sender, receiver) = mpsc::channel(1);
        let sent = Arc::clone(&self.sent);
        tokio::spawn(async move {
            let (count, size) = match name.as_str() {
                "endless" => (u64::MAX, 16 << 10),
                _ => (5, 0),
            };
            for n in 0..count {
                let message = format!("Hello {name} {n}{}", "x".repeat(size));
                if sender.send(Ok(HelloReply { message })).await.is_err() {
                    return;
                }
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        Ok(tonic::Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A server that ends when it is dropped.
pub struct Running {
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Running {
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// tonic's server with a greeter.
pub async fn tonic_server(greeter: Greeter) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = GreeterServiceServer::new(greeter);
    let server = tonic::transport::Server::builder().add_service(service);
    let serve = server.serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let task = tokio::spawn(async { serve.await.unwrap() }).abort_handle();
    Running { address, task }
}

pub fn client(channel: &PooledChannel) -> GreeterServiceClient<PooledChannel> {
    GreeterServiceClient::new(channel.clone())
}

pub fn builder(server: &Running) -> Builder {
    PooledChannel::builder(server.url())
}

pub async fn hello(channel: &PooledChannel, name: &str) -> Result<String, Status> {
    let request = HelloRequest { name: name.to_owned() };
    client(channel).say_hello(request).await.map(|reply| reply.into_inner().message)
}

/// What a scripted server does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Script {
    /// The stream limit that it announces.
    pub streams_max: Option<u32>,
    /// Says goodbye after so many streams of a connection.
    pub goaway_every: Option<u32>,
    /// How long each answer takes.
    pub delay: Duration,
    /// Resets every stream with this reason.
    pub reset: Option<Reason>,
    /// Never answers.
    pub deaf: bool,
    /// Refuses what is above so many at once, without having announced it.
    pub refuses_above: Option<u32>,
    /// Closes a connection on which nothing is in flight for so long.
    pub idle_close: Option<Duration>,
    /// Sends this instead of a message.
    pub garbage: bool,
}

/// What a scripted server has seen.
#[derive(Debug, Default)]
pub struct Seen {
    pub connections: AtomicU64,
    pub streams: AtomicU64,
    pub refused: AtomicU64,
    pub goaways: AtomicU64,
    pub open: AtomicU32,
    /// What the last client said in its first SETTINGS (RFC 9113 §6.5.2).
    pub settings: Mutex<HashMap<u16, u32>>,
    /// Which connection asked for a sign of life, and when.
    pub pings: Mutex<Vec<(u64, Instant)>>,
}

/// What a server written by hand does.
#[derive(Clone, Copy, Debug)]
pub struct Raw {
    /// The stream limit that it announces.
    pub first: u32,
    /// The one that it announces after fifty streams.
    pub then: u32,
    /// Never answers a ping.
    pub mute: bool,
    /// After so many pings, it sends the client away: ENHANCE_YOUR_CALM.
    pub calm_after: Option<usize>,
}

impl Default for Raw {
    fn default() -> Self {
        Self { first: 100, then: 100, mute: false, calm_after: None }
    }
}

impl Seen {
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub fn streams(&self) -> u64 {
        self.streams.load(Ordering::Relaxed)
    }
}

/// A server by HTTP/2 that does what a script says.
pub async fn scripted(script: Script) -> (Running, Arc<Seen>) {
    scripted_at("127.0.0.1:0".parse().unwrap(), script).await
}

pub async fn scripted_at(address: SocketAddr, script: Script) -> (Running, Arc<Seen>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let told = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        // Ends with this task.
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            told.connections.fetch_add(1, Ordering::Relaxed);
            connections.spawn(serve(stream, script, Arc::clone(&told)));
        }
    })
    .abort_handle();
    (Running { address, task }, seen)
}

async fn serve(stream: TcpStream, script: Script, seen: Arc<Seen>) {
    let mut builder = h2::server::Builder::new();
    if let Some(streams) = script.streams_max {
        builder.max_concurrent_streams(streams);
    }
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    seen.open.fetch_add(1, Ordering::Relaxed);
    let in_flight = Arc::new(AtomicU32::new(0));
    let mut streams = 0;
    loop {
        let idle = script.idle_close.unwrap_or(Duration::from_secs(3600));
        let accepted = match tokio::time::timeout(idle, connection.accept()).await {
            Ok(accepted) => accepted,
            Err(_) if in_flight.load(Ordering::Relaxed) == 0 && script.idle_close.is_some() => break,
            Err(_) => continue,
        };
        let Some(Ok((request, mut respond))) = accepted else { break };
        seen.streams.fetch_add(1, Ordering::Relaxed);
        streams += 1;
        if script.goaway_every == Some(streams) {
            seen.goaways.fetch_add(1, Ordering::Relaxed);
            connection.graceful_shutdown();
        }
        if let Some(reason) = script.reset {
            respond.send_reset(reason);
            continue;
        }
        if script.refuses_above.is_some_and(|most| in_flight.load(Ordering::Relaxed) >= most) {
            seen.refused.fetch_add(1, Ordering::Relaxed);
            respond.send_reset(Reason::REFUSED_STREAM);
            continue;
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        let in_flight = Arc::clone(&in_flight);
        tokio::spawn(async move {
            answer(request, respond, script).await;
            in_flight.fetch_sub(1, Ordering::Relaxed);
        });
    }
    seen.open.fetch_sub(1, Ordering::Relaxed);
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    script: Script,
) -> Option<()> {
    let mut body = request.into_body();
    let mut came = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        came.extend_from_slice(&data);
    }
    if script.deaf {
        std::future::poll_fn(|cx| respond.poll_reset(cx)).await.ok()?;
        return None;
    }
    if !script.delay.is_zero() {
        tokio::time::sleep(script.delay).await;
    }
    let name = HelloRequest::decode(came.get(5..)?).ok()?.name;
    let head = Response::builder().header("content-type", "application/grpc").body(()).ok()?;
    let mut stream = respond.send_response(head, false).ok()?;
    let message = HelloReply { message: format!("Hello {name}") };
    let mut data = BytesMut::new();
    data.put_u8(0);
    data.put_u32(if script.garbage { 1000 } else { message.encoded_len() as u32 });
    data.extend_from_slice(&message.encode_to_vec());
    stream.send_data(data.freeze(), false).ok()?;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers).ok()
}

/// Waits until this holds, for ten seconds at most.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Runs so many calls, `at_once` at a time; returns how many failed, and the first failure.
pub async fn storm<F: Future<Output = Result<(), Status>> + Send + 'static>(
    calls: u64,
    at_once: u64,
    call: impl Fn(u64) -> F + Clone + Send + 'static,
) -> (u64, Option<Status>) {
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        let (next, call) = (Arc::clone(&next), call.clone());
        tasks.spawn(async move {
            let (mut failed, mut first) = (0, None);
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= calls {
                    return (failed, first);
                }
                if let Err(status) = call(n).await {
                    failed += 1;
                    first.get_or_insert(status);
                }
            }
        });
    }
    let (mut failed, mut first) = (0, None);
    while let Some(result) = tasks.join_next().await {
        let (more, status) = result.unwrap();
        failed += more;
        first = first.or(status);
    }
    (failed, first)
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// SETTINGS with a stream limit.
fn streams_max(streams: u32) -> Vec<u8> {
    let mut payload = vec![0, 3];
    payload.extend_from_slice(&streams.to_be_bytes());
    frame(4, 0, 0, &payload)
}

/// A whole answer: head, message, trailers.
fn whole_answer(stream: u32) -> Vec<u8> {
    let mut head = vec![0x88, 0x0f, 0x10, 16];
    head.extend_from_slice(b"application/grpc");
    let mut trailers = vec![0, 11];
    trailers.extend_from_slice(b"grpc-status");
    trailers.extend_from_slice(&[1, b'0']);
    let message = [0, 0, 0, 0, 4, 0x0a, 2, b'h', b'i'];
    [frame(1, 4, stream, &head), frame(0, 0, stream, &message), frame(1, 5, stream, &trailers)].concat()
}

/// A server that is written by hand: libraries set their limit once, and answer pings by themselves. Counts as refused what
/// a client sends beyond the limit that it has acknowledged.
pub async fn raw(script: Raw) -> (Running, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Seen::default());
    let told = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            told.connections.fetch_add(1, Ordering::Relaxed);
            connections.spawn(serve_raw(stream, script, Arc::clone(&told)));
        }
    })
    .abort_handle();
    (Running { address, task }, seen)
}

async fn serve_raw(stream: TcpStream, script: Raw, seen: Arc<Seen>) -> io::Result<()> {
    let Raw { first, then, mute, calm_after } = script;
    let number = seen.connections();
    let mut pings = 0;
    let (mut read, mut write) = stream.into_split();
    let (out, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let in_flight = Arc::new(AtomicU32::new(0));
    let writer = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            write.write_all(&bytes).await?;
        }
        io::Result::Ok(())
    });
    let send = |bytes| drop(out.send(bytes));
    send(streams_max(first));
    read.read_exact(&mut [0; 24]).await?;
    let (mut limit, mut streams, mut acks) = (first, 0, 0);
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            drop(out);
            return writer.await?;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        read.read_exact(&mut payload).await?;
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        match kind {
            0 => {
                let len = (payload.len() as u32).to_be_bytes();
                send(frame(8, 0, 0, &len));
                if flags & 1 != 0 {
                    let (out, in_flight) = (out.clone(), Arc::clone(&in_flight));
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        in_flight.fetch_sub(1, Ordering::Relaxed);
                        drop(out.send(whole_answer(stream)));
                    });
                }
            }
            1 => {
                streams += 1;
                seen.streams.fetch_add(1, Ordering::Relaxed);
                if in_flight.fetch_add(1, Ordering::Relaxed) >= limit {
                    seen.refused.fetch_add(1, Ordering::Relaxed);
                }
                if streams == 50 {
                    send(streams_max(then));
                }
            }
            4 if flags & 1 != 0 => {
                acks += 1;
                // From now on; those that are out may be more.
                if acks == 2 {
                    limit = then;
                }
            }
            4 => {
                for (name, value) in payload.chunks_exact(6).map(|pair| pair.split_at(2)) {
                    let name = u16::from_be_bytes([name[0], name[1]]);
                    let value = u32::from_be_bytes([value[0], value[1], value[2], value[3]]);
                    seen.settings.lock().unwrap().insert(name, value);
                }
                send(frame(4, 1, 0, &[]));
            }
            6 if flags & 1 == 0 => {
                seen.pings.lock().unwrap().push((number, Instant::now()));
                pings += 1;
                if !mute {
                    send(frame(6, 1, 0, &payload));
                }
                if calm_after == Some(pings) {
                    send(frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xb]));
                    drop(out);
                    return writer.await?;
                }
            }
            _ => {}
        }
    }
}

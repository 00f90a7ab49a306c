//! Those who make requests, by how they get their connections.

use std::net::SocketAddr;
use std::time::Duration;

use forebay::dial::Tcp;
use forebay::sys::{self, TcpOptions};
use forebay::{Cause, Config, Exclusive, Pool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::TcpLoad;
use crate::load::{BenchError, Client, Tally, Trouble};

/// Bytes that bulk writes and reads at once.
const BLOCK: usize = 256 * 1024;

/// Opens a connection as the pool does, so that the two differ by the pool alone.
pub(super) async fn connect(target: SocketAddr) -> Result<TcpStream, Trouble> {
    let socket = sys::tcp_socket(target, None, &TcpOptions::default())?;
    Ok(TcpSocket::from_std_stream(socket).connect(target).await?)
}

/// Makes a pool for so many clients.
pub(super) fn pool(load: &TcpLoad, connections: u32, clients: usize) -> Result<Pool<Tcp>, BenchError> {
    let default = Config::default();
    let config = Config {
        connections_max: connections,
        idle_max: connections,
        waiters_max: default.waiters_max.max(clients as u32),
        ..default
    };
    Pool::<_, Exclusive>::builder(Tcp::default())
        .name("bench")
        .endpoint(load.target.into())
        .config(config)
        .acquire_timeout(load.timeout)
        .build()
        .map_err(|error| BenchError::setting("pool", connections, error.to_string()))
}

/// A request and room for its answer.
struct Exchange {
    request: Vec<u8>,
    answer: Vec<u8>,
    turn: u64,
}

impl Exchange {
    fn new(size: usize) -> Self {
        Self { request: (0..size).map(|at| at as u8).collect(), answer: vec![0; size], turn: 0 }
    }

    /// Sends the request, and reads its answer, which must be the same.
    async fn run(&mut self, stream: &mut TcpStream, tally: &mut Tally) -> Result<u64, Trouble> {
        // No two requests of a client are alike, so that a late answer is not taken for this one's.
        self.turn += 1;
        let length = self.request.len().min(8);
        self.request[..length].copy_from_slice(&self.turn.to_le_bytes()[..length]);
        stream.write_all(&self.request).await?;
        tally.bytes_sent += self.request.len() as u64;
        stream.read_exact(&mut self.answer).await?;
        tally.bytes_received += self.answer.len() as u64;
        if self.answer == self.request {
            Ok(1)
        } else {
            Err(Trouble::new("wrong", "the answer is not what was sent: the server does not echo"))
        }
    }
}

/// Opens and closes a connection for each request.
pub(super) struct One {
    target: SocketAddr,
    limit: Duration,
    exchange: Exchange,
}

impl One {
    pub(super) fn new(load: &TcpLoad) -> Self {
        Self { target: load.target, limit: load.timeout, exchange: Exchange::new(load.size) }
    }
}

impl Client for One {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        let mut stream = connect(self.target).await?;
        tally.opened += 1;
        self.exchange.run(&mut stream, tally).await
    }

    fn limit(&self) -> Duration {
        self.limit
    }
}

/// Borrows a connection for each request.
pub(super) struct Pooled {
    pool: Pool<Tcp>,
    limit: Duration,
    exchange: Exchange,
}

impl Pooled {
    pub(super) fn new(load: &TcpLoad, pool: Pool<Tcp>) -> Self {
        Self { pool, limit: load.timeout, exchange: Exchange::new(load.size) }
    }
}

impl Client for Pooled {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        let mut stream = self.pool.acquire().await?;
        match self.exchange.run(&mut stream, tally).await {
            Ok(answers) => {
                stream.complete();
                Ok(answers)
            }
            Err(trouble) => {
                stream.discard(Cause::Reset);
                Err(trouble)
            }
        }
    }

    fn limit(&self) -> Duration {
        self.limit
    }
}

/// Keeps its connection, and opens another when that has failed.
pub(super) struct Kept {
    target: SocketAddr,
    limit: Duration,
    exchange: Exchange,
    stream: Option<TcpStream>,
}

impl Kept {
    pub(super) fn new(load: &TcpLoad) -> Self {
        let exchange = Exchange::new(load.size);
        Self { target: load.target, limit: load.timeout, exchange, stream: None }
    }
}

impl Client for Kept {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                tally.opened += 1;
                none.insert(connect(self.target).await?)
            }
        };
        self.exchange.run(stream, tally).await
    }

    fn limit(&self) -> Duration {
        self.limit
    }

    fn broke(&mut self) {
        self.stream = None;
    }
}

/// Sends as much as goes for the duration, reads all of it back, and counts as one request.
pub(super) struct Bulk {
    target: SocketAddr,
    duration: Duration,
    limit: Duration,
}

impl Bulk {
    pub(super) fn new(load: &TcpLoad) -> Self {
        Self { target: load.target, duration: load.duration.unwrap_or_default(), limit: load.timeout }
    }
}

impl Client for Bulk {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        let stream = connect(self.target).await?;
        tally.opened += 1;
        let (mut read, mut write) = stream.into_split();
        let until = tokio::time::Instant::now() + self.duration;
        let sender = async {
            let block: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
            let mut sent = 0;
            while tokio::time::Instant::now() < until {
                write.write_all(&block).await?;
                sent += block.len() as u64;
            }
            write.shutdown().await?;
            Ok(sent)
        };
        let receiver = async {
            let mut buffer = vec![0; BLOCK];
            let mut received = 0;
            loop {
                match read.read(&mut buffer).await? {
                    0 => return Ok(received),
                    count => received += count as u64,
                }
            }
        };
        let (sent, received): (std::io::Result<u64>, std::io::Result<u64>) = tokio::join!(sender, receiver);
        let (sent, received) = (sent?, received?);
        tally.bytes_sent += sent;
        tally.bytes_received += received;
        if sent == received {
            Ok(1)
        } else {
            Err(Trouble::new("wrong", format!("{sent} bytes were sent, and {received} came back")))
        }
    }

    fn limit(&self) -> Duration {
        // When all is sent, what is on its way has the time of a request to come back.
        self.duration + self.limit
    }
}

//! HTTP/2: many requests at once on each connection.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use forebay::dial::SocketEndpoint;
use forebay::{Cause, Connector, Dial, DialError, Pool, Reporter, Shared};
use h2::client::SendRequest;
use http::{HeaderName, HeaderValue, Method, Request};

use super::HttpLoad;
use super::io::{Target, cause_of_h2};
use crate::load::{BenchError, Client, Tally, Trouble};

/// Bytes of answers that a connection takes ahead, and one stream of it: enough not to be what is measured.
const WINDOW_BYTES: u32 = 1 << 20;

/// Where clients get their connections.
#[derive(Clone)]
pub(super) enum Source {
    Pool(Pool<Opener, Shared>),
    Target(Arc<Target>),
}

/// Opens connections for a pool.
pub(super) struct Opener(Arc<Target>);

/// One connection; a task carries it.
pub(super) struct Connection(SendRequest<Bytes>);

impl Source {
    pub(super) fn new(
        load: &HttpLoad,
        target: Arc<Target>,
        connections: Option<u32>,
    ) -> Result<Self, BenchError> {
        let Some(connections) = connections else { return Ok(Self::Target(target)) };
        Pool::shared(Opener(Arc::clone(&target)))
            .name("bench")
            .endpoint(target.endpoint())
            .config(load.config(connections))
            .acquire_timeout(load.timeout)
            .build()
            .map(Self::Pool)
            .map_err(|error| BenchError::setting("pool", connections, error.to_string()))
    }

    /// How many connections its pool has opened.
    pub(super) fn opened(&self) -> u64 {
        match self {
            Self::Pool(pool) => pool.snapshot().counters().dials_succeeded,
            Self::Target(_) => 0,
        }
    }
}

/// Opens a connection, and lets a task carry it to its end, of which `reporter` hears.
async fn open(target: &Target, reporter: Option<Reporter>) -> Result<Connection, DialError> {
    const PREFACE: &str = "HTTP/2 preface";
    let io = target.open().await?;
    let (send, connection) = h2::client::Builder::new()
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES * 4)
        .handshake(io)
        .await
        .map_err(|error| DialError::new(cause_of_h2(&error), PREFACE).with_source(error))?;
    tokio::spawn(carry(connection, reporter));
    Ok(Connection(send))
}

async fn carry(connection: impl Future<Output = Result<(), h2::Error>>, reporter: Option<Reporter>) {
    // Requests hear of the error themselves.
    let _ = connection.await;
    if let Some(reporter) = reporter {
        reporter.closed();
    }
}

impl Connector for Opener {
    type Conn = Connection;
    type Endpoint = SocketEndpoint;

    async fn connect(&self, dial: Dial<SocketEndpoint>) -> Result<Connection, DialError> {
        open(&self.0, Some(dial.reporter)).await
    }

    fn capacity(&self, connection: &Connection) -> u32 {
        connection.0.current_max_send_streams().try_into().unwrap_or(u32::MAX)
    }
}

/// Who makes requests.
pub(super) struct Requester {
    source: Source,
    request: Request<()>,
    body: Bytes,
    limit: Duration,
}

impl Requester {
    pub(super) fn new(load: &HttpLoad, source: Source) -> Self {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(load.method.as_bytes()).unwrap_or_default();
        *request.uri_mut() = load.url.to_string().parse().unwrap_or_default();
        *request.version_mut() = http::Version::HTTP_2;
        for (name, value) in &load.fields {
            // RFC 9113 §8.2: names are in lower case, and `HeaderName` makes them so.
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                request.headers_mut().append(name, value);
            }
        }
        Self { source, request, body: Bytes::from(vec![b'x'; load.body]), limit: load.timeout }
    }

    async fn exchange(&self, connection: &Connection, tally: &mut Tally) -> Result<(), Trouble> {
        let mut send = connection.0.clone().ready().await.map_err(trouble)?;
        let (answer, mut body) =
            send.send_request(self.request.clone(), self.body.is_empty()).map_err(trouble)?;
        if !self.body.is_empty() {
            // h2 keeps what the windows do not let through yet.
            body.send_data(self.body.clone(), true).map_err(trouble)?;
            tally.bytes_sent += self.body.len() as u64;
        }
        let mut answer = answer.await.map_err(trouble)?;
        let status = answer.status().as_u16();
        while let Some(data) = answer.body_mut().data().await {
            let length = data.map_err(trouble)?.len();
            tally.bytes_received += length as u64;
            answer.body_mut().flow_control().release_capacity(length).map_err(trouble)?;
        }
        answer.body_mut().trailers().await.map_err(trouble)?;
        *tally.statuses.entry(status).or_default() += 1;
        Ok(())
    }
}

impl Client for Requester {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        match &self.source {
            Source::Target(target) => {
                let connection = open(target, None).await.map_err(|error| Trouble::dial(&error))?;
                tally.opened += 1;
                self.exchange(&connection, tally).await?;
            }
            Source::Pool(pool) => {
                let lease = pool.acquire().await?;
                match self.exchange(&lease, tally).await {
                    Ok(()) => lease.complete(),
                    Err(trouble) => {
                        // The task that carries the connection tells the pool if it is the connection that ended.
                        lease.fail(Cause::Reset);
                        return Err(trouble);
                    }
                }
            }
        }
        Ok(1)
    }

    fn limit(&self) -> Duration {
        self.limit
    }
}

fn trouble(error: h2::Error) -> Trouble {
    let kind = match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => "refused stream",
        Some(_) if error.is_go_away() => "goaway",
        Some(_) => "stream reset",
        None => cause_of_h2(&error).as_str(),
    };
    Trouble::new(kind, error.to_string())
}

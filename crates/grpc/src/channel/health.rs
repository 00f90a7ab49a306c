//! What the health services of servers say (grpc.health.v1): each is asked once, and tells of changes.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use forebay::{Cause, Dial, DialError};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use prost::Message;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::connect::{Conn, GrpcConnector};
use super::origin::Peer;

const DOING: &str = "health check";
const PATH: &str = "/grpc.health.v1.Health/Watch";
/// A message of the health service is a few bytes.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The last word of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Nothing,
    Serving,
    NotServing,
    /// It has no health service: then it counts as healthy, as gRPC's health checking has it.
    NoService,
    /// The watch has ended.
    Over,
}

/// Watches of all servers.
#[derive(Debug)]
pub(super) struct Watches {
    service: String,
    watches: Mutex<HashMap<Peer, Watch>>,
}

#[derive(Debug)]
struct Watch {
    word: watch::Receiver<Word>,
    task: AbortHandle,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watches {
    pub(super) fn new(service: String) -> Self {
        Self { service, watches: Mutex::default() }
    }

    /// Says whether a server is healthy, by its last word; begins to listen if there is none.
    pub(super) async fn look(&self, connector: &GrpcConnector, dial: Dial<Peer>) -> Result<(), DialError> {
        let peer = dial.endpoint.clone();
        let known = {
            let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
            watches.get(&peer).map(|watch| watch.word.clone())
        };
        let mut word = match known.filter(|word| *word.borrow() != Word::Over) {
            Some(word) => word,
            None => {
                let limit = dial.timeout;
                let conn = connector.dial(&dial, false).await?;
                let (sender, word) = watch::channel(Word::Nothing);
                let task = tokio::spawn(listen(conn, self.service.clone(), sender, limit)).abort_handle();
                let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
                watches.insert(peer, Watch { word: word.clone(), task });
                word
            }
        };
        let said = tokio::time::timeout(dial.timeout, word.wait_for(|word| *word != Word::Nothing)).await;
        let said = said.map_or(Word::Nothing, |said| said.map_or(Word::Over, |said| *said));
        let failed = |cause, why: &str| Err(DialError::new(cause, DOING).with_source(why.to_owned()));
        match said {
            Word::Serving | Word::NoService => Ok(()),
            Word::NotServing => failed(Cause::Refused, "it says that it is not serving"),
            Word::Nothing => failed(Cause::Timeout, "its health service says nothing"),
            Word::Over => failed(Cause::Reset, "its health service has ended the watch"),
        }
    }

    /// Forgets servers that are not there any more.
    pub(super) fn keep(&self, is_there: impl Fn(&Peer) -> bool) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).retain(|peer, _| is_there(peer));
    }
}

async fn listen(conn: Conn, service: String, word: watch::Sender<Word>, limit: Duration) {
    let end = hear(&conn, service, &word, limit).await.unwrap_or(Word::Over);
    word.send_replace(end);
    if end == Word::NoService {
        // It will not change its mind on this connection.
        std::future::pending::<()>().await;
    }
}

async fn hear(conn: &Conn, service: String, word: &watch::Sender<Word>, limit: Duration) -> Option<Word> {
    let origin = conn.origin();
    let uri = Uri::builder().scheme(origin.scheme.clone()).authority(origin.authority.clone());
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri.path_and_query(PATH).build().ok()?;
    let headers = request.headers_mut();
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    let (response, mut stream) = conn.requests().send_request(request, false).ok()?;
    stream.send_data(framed(&HealthCheckRequest { service }), true).ok()?;
    let response = tokio::time::timeout(limit, response).await.ok()?.ok()?;
    if response.status() != StatusCode::OK {
        return None;
    }
    if let Some(end) = end_of(response.headers()) {
        return Some(end);
    }
    let mut body = response.into_body();
    let mut buffer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        let _ = body.flow_control().release_capacity(data.len());
        buffer.extend_from_slice(&data);
        while let Some(message) = take_message(&mut buffer)? {
            let said = HealthCheckResponse::decode(message).ok()?;
            word.send_replace(match said.status() {
                ServingStatus::Serving => Word::Serving,
                _ => Word::NotServing,
            });
        }
    }
    body.trailers().await.ok()?.as_ref().and_then(end_of)
}

fn framed(message: &impl Message) -> Bytes {
    let mut buffer = BytesMut::new();
    buffer.put_u8(0);
    buffer.put_u32(message.encoded_len() as u32);
    buffer.extend_from_slice(&message.encode_to_vec());
    buffer.freeze()
}

/// Takes a whole message off the front; `None` if what stands there can be none.
#[expect(clippy::option_option, reason = "a message, not yet a message, never a message")]
fn take_message(buffer: &mut BytesMut) -> Option<Option<Bytes>> {
    let Some(head) = buffer.first_chunk::<5>() else { return Some(None) };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if head[0] != 0 || len > MESSAGE_BYTES_MAX {
        return None;
    }
    if buffer.len() < 5 + len {
        return Some(None);
    }
    buffer.advance(5);
    Some(Some(buffer.split_to(len).freeze()))
}

/// What the end of a watch says.
fn end_of(headers: &HeaderMap) -> Option<Word> {
    let status = tonic::Status::from_header_map(headers)?;
    Some(if status.code() == tonic::Code::Unimplemented { Word::NoService } else { Word::Over })
}

//! A client's connection that speaks HTTP/1.1 (RFC 9112): for those who know no better, one query after the other.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use forebay::sys;
use forebay_dns_core::forwarder::{Client, Handled, StreamKind};
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

use super::MESSAGE_BYTES_MAX;
use super::reply::{Waiting, refusal};
use super::request::{Asked, Fault, read};
use crate::worker::{Shell, State};

/// The longest head of a request, in bytes: a query in a URI has some hundred.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long to wait before looking again at a client whose query is still being answered.
const MOMENT: Duration = Duration::from_millis(100);

/// Serves a connection on which the client speaks HTTP/1.1, until it ends.
pub(crate) async fn http1(
    shell: &Rc<Shell>,
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    path: &str,
) {
    let idle_timeout = shell.config.clients.idle_timeout.0;
    // When something was last asked or answered, and whether it has to be answered by us.
    let (progress, asked) = (Cell::new(sys::now()), Cell::new(false));
    let service = service_fn(|request| {
        let (progress, asked) = (&progress, &asked);
        async move {
            let response = match query_of(path, request).await {
                Ok(query) => {
                    progress.set(sys::now());
                    asked.set(true);
                    ask(shell, peer, &query).await
                }
                Err(fault) => refusal(&fault),
            };
            asked.set(false);
            progress.set(sys::now());
            Ok::<_, Infallible>(response.map(Full::new))
        }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let alarm = tokio::time::sleep(idle_timeout);
    tokio::pin!(alarm);
    let mut leaving = false;
    loop {
        if shell.is_draining() && !leaving {
            leaving = true;
            serving.as_mut().graceful_shutdown();
        }
        tokio::select! {
            // What went wrong is between the client and its network.
            _ = &mut serving => return,
            () = shell.stop.notified(), if !leaving => {}
            () = &mut alarm => {
                let (now, due) = (sys::now(), progress.get() + idle_timeout);
                if now >= due && !asked.get() {
                    return;
                }
                let pause = due.saturating_duration_since(now).max(MOMENT);
                alarm.as_mut().reset(tokio::time::Instant::now() + pause);
            }
        }
    }
}

async fn query_of(path: &str, request: Request<Incoming>) -> Result<Bytes, Fault> {
    let (head, body) = request.into_parts();
    match read(path, &head.method, &head.uri, &head.headers)? {
        Asked::Query(query) => Ok(query.into()),
        Asked::Body => match Limited::new(body, MESSAGE_BYTES_MAX).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Fault::too_large()),
            Err(_) => Err(Fault::no_query()),
        },
    }
}

async fn ask(shell: &Rc<Shell>, peer: SocketAddr, query: &[u8]) -> Response<Bytes> {
    let number = shell.next_connection();
    let (sender, answer) = oneshot::channel();
    {
        let State { forwarder, mail, .. } = &mut *shell.state.borrow_mut();
        mail.requests.insert(number, peer, Waiting::Task(sender));
        let client = Client::Stream { connection: number, peer: peer.ip(), kind: StreamKind::Https, idle: 0 };
        if forwarder.handle_query(sys::now(), client, query, mail) == Handled::Ignored {
            mail.requests.refuse(number, &Fault::no_query());
        }
    }
    shell.settle();
    // Every query is answered before its worker ends.
    answer.await.unwrap_or_else(|_| refusal(&Fault::ended()))
}

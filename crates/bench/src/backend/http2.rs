//! A small HTTP/2 backend: what a path means is listed at [`Serve::Http2`](super::Serve::Http2).

use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

use super::{Connection, End};

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    pub(super) async fn http2(&mut self) -> io::Result<End> {
        let number = self.number;
        let mut connection = h2::server::Builder::new()
            .max_concurrent_streams(100)
            .handshake::<_, Bytes>(&mut self.stream)
            .await
            .map_err(io::Error::other)?;
        let mut answers = JoinSet::new();
        while let Some(request) = connection.accept().await {
            let (request, respond) = request.map_err(io::Error::other)?;
            let turn = self.shared.count_request(number);
            if request.uri().path() == "/goaway" {
                connection.graceful_shutdown();
            }
            answers.spawn(async move {
                // A client that has gone, or has reset its stream, hears no more.
                let _ = answer(request, respond, (number, turn)).await;
            });
        }
        Ok(End::Close)
    }
}

async fn answer(
    mut request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    (connection, turn): (u64, u64),
) -> Result<(), h2::Error> {
    let path = request.uri().path().to_owned();
    let mut parts = path.trim_start_matches('/').split('/');
    let name = parts.next().unwrap_or_default();
    let n: u64 = parts.next().and_then(|part| part.parse().ok()).unwrap_or_default();
    let head = |status: u64| {
        Response::builder()
            .status(status as u16)
            .header("backend-connection", connection)
            .header("backend-request", turn)
            .body(())
            .expect("a status from 200 to 599")
    };
    match name {
        "reset" => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        "refuse" => {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Ok(());
        }
        "hang" => return std::future::pending().await,
        "echo" => {
            let mut out = respond.send_response(head(200), false)?;
            while let Some(piece) = request.body_mut().data().await {
                let piece = piece?;
                request.body_mut().flow_control().release_capacity(piece.len())?;
                send(&mut out, piece).await?;
            }
            return match request.body_mut().trailers().await? {
                Some(trailers) => out.send_trailers(trailers),
                None => out.send_data(Bytes::new(), true),
            };
        }
        "delay" => tokio::time::sleep(Duration::from_millis(n)).await,
        _ => {}
    }
    while let Some(piece) = request.body_mut().data().await {
        let length = piece?.len();
        request.body_mut().flow_control().release_capacity(length)?;
    }
    match name {
        "size" | "trailers" | "short" => {
            let mut out = respond.send_response(head(200), false)?;
            let mut left = if name == "short" { n / 2 } else { n };
            while left > 0 {
                let piece = left.min(16 * 1024);
                send(&mut out, Bytes::from(vec![b'x'; piece as usize])).await?;
                left -= piece;
            }
            match name {
                "size" => out.send_data(Bytes::new(), true)?,
                "short" => out.send_reset(Reason::INTERNAL_ERROR),
                _ => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("backend-bytes", n.into());
                    out.send_trailers(trailers)?;
                }
            }
        }
        _ => {
            let status = if name == "status" && (200..600).contains(&n) { n } else { 200 };
            respond.send_response(head(status), false)?.send_data(Bytes::from_static(b"ok"), true)?;
        }
    }
    Ok(())
}

/// Sends a piece as soon as the windows let it through: a client that reads slowly is not read for ahead.
async fn send(out: &mut h2::SendStream<Bytes>, mut piece: Bytes) -> Result<(), h2::Error> {
    while !piece.is_empty() {
        out.reserve_capacity(piece.len());
        let room = match std::future::poll_fn(|cx| out.poll_capacity(cx)).await {
            Some(room) => room?,
            None => return Ok(()),
        };
        out.send_data(piece.split_to(room.min(piece.len())), false)?;
    }
    Ok(())
}

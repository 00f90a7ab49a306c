//! One call after the other.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use forebay_grpc::PooledChannel;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

use super::method::Plan;
use crate::load::{Client, Tally, Trouble};

/// What stands before each message: whether it is compressed, and its length.
const PREFIX: u64 = 5;

/// One of many that make calls.
pub(super) struct Caller {
    grpc: Grpc<PooledChannel>,
    plan: Arc<Plan>,
    limit: Duration,
}

impl Caller {
    pub(super) fn new(channel: PooledChannel, plan: Arc<Plan>, limit: Duration) -> Self {
        // Whatever the server sends is what is measured.
        Self { grpc: Grpc::new(channel).max_decoding_message_size(usize::MAX), plan, limit }
    }

    async fn call(&mut self, tally: &mut Tally) -> Result<(), Status> {
        self.grpc.ready().await?;
        let plan = &*self.plan;
        let request = Request::new(plan.message.clone());
        tally.bytes_sent += PREFIX + plan.message.len() as u64;
        let mut take = |message: Bytes| {
            tally.bytes_received += PREFIX + message.len() as u64;
            plan.check(message)
        };
        if !plan.is_streaming {
            let reply = self.grpc.unary(request, plan.path.clone(), Raw).await?;
            plan.messages.fetch_add(1, Relaxed);
            return take(reply.into_inner());
        }
        let mut replies = self.grpc.server_streaming(request, plan.path.clone(), Raw).await?.into_inner();
        while let Some(reply) = replies.message().await? {
            plan.messages.fetch_add(1, Relaxed);
            take(reply)?;
        }
        Ok(())
    }
}

impl Client for Caller {
    async fn attempt(&mut self, tally: &mut Tally) -> Result<u64, Trouble> {
        match self.call(tally).await {
            Ok(()) => Ok(1),
            Err(status) => Err(Trouble::new(code_name(status.code()), told(&status))),
        }
    }

    fn limit(&self) -> Duration {
        self.limit
    }
}

/// Returns a status as it is told: its code's name, what the server said, and what lies behind it here.
pub fn told(status: &Status) -> String {
    let mut text = code_name(status.code()).to_owned();
    if !status.message().is_empty() {
        text = format!("{text}: {}", status.message());
    }
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// The name of a code as the specification of gRPC writes it.
const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Messages as bytes: what they mean was settled before the first call.
#[derive(Clone, Copy, Debug)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

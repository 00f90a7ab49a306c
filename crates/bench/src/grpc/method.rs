//! What is called: the greeter, or a method that the server describes by reflection.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll};

use bytes::Bytes;
use forebay_grpc::PooledChannel;
use forebay_grpc::greet::{HelloReply, HelloRequest};
use futures_util::stream;
use http::uri::PathAndQuery;
use http::{Request, Uri};
use prost::Message;
use prost_reflect::prost_types::FileDescriptorProto;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::GrpcLoad;
use super::call::told;
use crate::load::BenchError;

/// Files that a description may be made of: those of large services are hundreds.
const FILES_MAX: usize = 10_000;

/// What is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Method {
    /// The greeter, whose answers are checked.
    Hello {
        /// Bytes in the name that is greeted.
        payload: usize,
        /// `SayHelloStream` rather than `SayHello`.
        is_streaming: bool,
    },
    /// A method that the server describes by reflection (`grpc.reflection.v1`, or `v1alpha` if it has none).
    Described {
        /// Its name, as `package.Service/Method`.
        name: String,
        /// The message of each call, as JSON.
        json: String,
    },
}

/// A call that is ready to be made.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) path: PathAndQuery,
    pub(super) message: Bytes,
    pub(super) is_streaming: bool,
    /// Messages that came in answer.
    pub(super) messages: AtomicU64,
    /// Whether answers are a greeter's, and name this.
    name: Option<String>,
}

impl Plan {
    /// Makes calls of what `load` says, asking the server if need be.
    pub(super) fn of(load: &GrpcLoad) -> Result<Self, BenchError> {
        match &load.method {
            Method::Hello { payload, is_streaming } => Ok(Self::hello(*payload, *is_streaming)),
            Method::Described { name, json } => Self::described(load, name, json),
        }
    }

    fn hello(payload: usize, is_streaming: bool) -> Self {
        let name = "x".repeat(payload);
        let method = if is_streaming { "SayHelloStream" } else { "SayHello" };
        Self {
            path: path("greet.GreeterService", method).expect("a path"),
            message: HelloRequest { name: name.clone() }.encode_to_vec().into(),
            is_streaming,
            messages: AtomicU64::new(0),
            name: Some(name),
        }
    }

    fn described(load: &GrpcLoad, name: &str, json: &str) -> Result<Self, BenchError> {
        let wrong = |remedy: String| BenchError::setting("method", name, remedy);
        let (service, short) = name
            .trim_start_matches('/')
            .rsplit_once('/')
            .filter(|(service, short)| {
                !service.is_empty() && !short.is_empty() && path(service, short).is_some()
            })
            .ok_or_else(|| wrong("write package.Service/Method".to_owned()))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| BenchError::io("the load cannot begin", error))?;
        let method = runtime.block_on(async {
            let asking = ask(load.channel(Some(1))?, load, service, short, name);
            tokio::time::timeout(load.timeout, asking).await.unwrap_or_else(|_| {
                let why = Status::deadline_exceeded(format!("no description in {:?}", load.timeout));
                Err(unreachable_server(load, &why))
            })
        })?;
        if method.is_client_streaming() {
            return Err(wrong(
                "it takes a stream of messages: unary and server-streaming methods can be called".to_owned(),
            ));
        }
        let input = method.input();
        let mut reader = serde_json::Deserializer::from_str(json);
        let message = DynamicMessage::deserialize(input.clone(), &mut reader)
            .and_then(|message| reader.end().map(|()| message))
            .map_err(|error| {
                let fields: Vec<_> = input.fields().map(|field| field.json_name().to_owned()).collect();
                let fields = if fields.is_empty() { "none".to_owned() } else { fields.join(", ") };
                BenchError::setting(
                    "data",
                    json,
                    format!("{error}; it is a {} in JSON, whose fields are: {fields}", input.full_name()),
                )
            })?;
        Ok(Self {
            path: path(service, short).expect("it was one above"),
            message: message.encode_to_vec().into(),
            is_streaming: method.is_server_streaming(),
            messages: AtomicU64::new(0),
            name: None,
        })
    }

    /// Sees whether an answer is one to what was asked.
    pub(super) fn check(&self, answer: Bytes) -> Result<(), Status> {
        let Some(name) = &self.name else { return Ok(()) };
        let reply = HelloReply::decode(answer)
            .map_err(|error| Status::data_loss(format!("the answer is no HelloReply: {error}")))?;
        if !reply.message.contains(name.as_str()) {
            return Err(Status::data_loss("the answer greets somebody else"));
        }
        Ok(())
    }
}

fn path(service: &str, method: &str) -> Option<PathAndQuery> {
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte));
    if !is_name(service) || !is_name(method) {
        return None;
    }
    PathAndQuery::from_str(&format!("/{service}/{method}")).ok()
}

fn unreachable_server(load: &GrpcLoad, status: &Status) -> BenchError {
    let what = format!("{} does not say what its methods are", load.url);
    BenchError::io(what, std::io::Error::other(told(status)))
}

/// Asks the server for the description of a method: that of its service's file, and of all files which that one needs.
async fn ask(
    channel: PooledChannel,
    load: &GrpcLoad,
    service: &str,
    short: &str,
    name: &str,
) -> Result<MethodDescriptor, BenchError> {
    let wrong = |remedy: String| BenchError::setting("method", name, remedy);
    let at = |path| {
        ServerReflectionClient::new(At { channel: channel.clone(), path })
            .max_decoding_message_size(usize::MAX)
    };
    let mut client = at(None);
    let mut has_older = true;
    let first = MessageRequest::FileContainingSymbol(service.to_owned());
    let mut wanted = vec![first];
    let mut files = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(request) = wanted.pop() {
        let found = match files_of(&mut client, request.clone()).await {
            Ok(found) => found,
            Err(status) if files.is_empty() && status.code() == Code::NotFound => {
                let services = services_of(&mut client).await.unwrap_or_default();
                return Err(wrong(format!(
                    "the server has no such service; it has: {}",
                    services.join(", ")
                )));
            }
            Err(status) if status.code() == Code::Unimplemented && std::mem::take(&mut has_older) => {
                client = at(Some(OLDER));
                wanted.push(request);
                continue;
            }
            Err(status) if status.code() == Code::Unimplemented => {
                let what = format!("{} has no reflection (grpc.reflection.v1 or v1alpha)", load.url);
                let remedy = "only the greeter can be called without it: leave --method out";
                return Err(BenchError::io(what, std::io::Error::other(remedy)));
            }
            // Servers need not know the files that come with every protobuf library.
            Err(status) => match well_known(&request) {
                Some(file) => vec![file],
                None => return Err(unreachable_server(load, &status)),
            },
        };
        for file in found {
            if !seen.insert(file.name().to_owned()) {
                continue;
            }
            if seen.len() > FILES_MAX {
                return Err(wrong(format!("its description is more than {FILES_MAX} files")));
            }
            wanted.extend(file.dependency.iter().cloned().map(MessageRequest::FileByFilename));
            files.push(file);
        }
        wanted.retain(
            |request| !matches!(request, MessageRequest::FileByFilename(name) if seen.contains(name)),
        );
    }
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files)
        .map_err(|error| wrong(format!("the server's description of it does not fit together: {error}")))?;
    let service = pool
        .get_service_by_name(service)
        .ok_or_else(|| wrong("the server's description of it has no such service".to_owned()))?;
    let method = service.methods().find(|method| method.name() == short);
    method.ok_or_else(|| {
        let methods: Vec<_> = service.methods().map(|method| method.name().to_owned()).collect();
        wrong(format!("the service has no such method; it has: {}", methods.join(", ")))
    })
}

fn well_known(request: &MessageRequest) -> Option<FileDescriptorProto> {
    let MessageRequest::FileByFilename(name) = request else { return None };
    Some(DescriptorPool::global().get_file_by_name(name)?.file_descriptor_proto().clone())
}

/// Reflection as it was called before its first version, with the same messages.
const OLDER: &str = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo";

/// A channel all of whose calls may go to one method, whatever they were made for.
#[derive(Clone)]
struct At {
    channel: PooledChannel,
    path: Option<&'static str>,
}

impl Service<Request<Body>> for At {
    type Response = <PooledChannel as Service<Request<Body>>>::Response;
    type Error = <PooledChannel as Service<Request<Body>>>::Error;
    type Future = <PooledChannel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<Request<Body>>::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Some(path) = self.path {
            *request.uri_mut() = Uri::from_static(path);
        }
        self.channel.call(request)
    }
}

type Client = ServerReflectionClient<At>;

async fn answer(client: &mut Client, request: MessageRequest) -> Result<MessageResponse, Status> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut answers = client.server_reflection_info(stream::iter([request])).await?.into_inner();
    match answers.message().await? {
        Some(ServerReflectionResponse {
            message_response: Some(MessageResponse::ErrorResponse(error)),
            ..
        }) => Err(Status::new(Code::from(error.error_code), error.error_message)),
        Some(ServerReflectionResponse { message_response: Some(response), .. }) => Ok(response),
        _ => Err(Status::data_loss("an empty answer")),
    }
}

async fn files_of(client: &mut Client, request: MessageRequest) -> Result<Vec<FileDescriptorProto>, Status> {
    let MessageResponse::FileDescriptorResponse(files) = answer(client, request).await? else {
        return Err(Status::data_loss("an answer to another question"));
    };
    let files = files.file_descriptor_proto.into_iter();
    files
        .map(|file| FileDescriptorProto::decode(&*file))
        .collect::<Result<_, _>>()
        .map_err(|error| Status::data_loss(format!("a description that cannot be read: {error}")))
}

async fn services_of(client: &mut Client) -> Result<Vec<String>, Status> {
    match answer(client, MessageRequest::ListServices(String::new())).await? {
        MessageResponse::ListServicesResponse(list) => {
            Ok(list.service.into_iter().map(|service| service.name).collect())
        }
        _ => Err(Status::data_loss("an answer to another question")),
    }
}

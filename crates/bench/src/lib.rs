//! Measures what pooling does: load generators, scripted upstreams, and reports that can be compared.
//!
//! | module | what |
//! |---|---|
//! | [`dns`] | DNS load over UDP and TCP, closed or open loop, every answer checked |
//! | [`compare`] | whether one side's reports are really better than another's, and by how much |
//! | [`backend`] | scripted TCP and HTTP/1.1 backends: stamping, late, cut off, wrongly framed |
//! | [`grpc`] | gRPC load: unary and streaming calls of any method through a pooled channel |
//! | [`http`] | HTTP load by HTTP/1.1 and HTTP/2, plain or TLS, over kept, pooled or single-use connections |
//! | [`tcp`] | TCP load: a connection per request, kept or pooled connections, bulk |
//! | [`responder`] | a scripted DNS upstream: late, lossy, lying, refusing, or just fast |
//!
//! Both have their own small reader of DNS messages, so that they can disagree with the forwarder's.

pub mod backend;
pub mod compare;
pub mod dns;
pub mod grpc;
pub mod http;
pub mod load;
pub mod message;
mod partial;
pub mod pool;
pub mod ports;
pub mod responder;
pub mod tcp;

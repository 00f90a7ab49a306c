//! The greeter: a service to try clients and servers with.

use std::pin::Pin;
use std::time::Duration;

use futures_util::stream::{self, Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::greet::greeter_service_server::GreeterService;
use crate::greet::{HelloReply, HelloRequest};

/// Greets once, or five times in a row.
#[derive(Clone, Debug)]
pub struct Greeter {
    /// How long it waits before each greeting of a row but the first. Default 100 ms.
    pub interval: Duration,
}

impl Default for Greeter {
    fn default() -> Self {
        Self { interval: Duration::from_millis(100) }
    }
}

/// Greetings of a row.
const GREETINGS: u32 = 5;

#[tonic::async_trait]
impl GreeterService for Greeter {
    async fn say_hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloReply>, Status> {
        let name = request.into_inner().name;
        Ok(Response::new(HelloReply { message: format!("Hello {name}!") }))
    }

    type SayHelloStreamStream = Pin<Box<dyn Stream<Item = Result<HelloReply, Status>> + Send>>;

    async fn say_hello_stream(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<Self::SayHelloStreamStream>, Status> {
        let (name, interval) = (request.into_inner().name, self.interval);
        let greetings = stream::iter(1..=GREETINGS).then(move |n| {
            let message = format!("Hello {name}! ({n} of {GREETINGS})");
            async move {
                if n > 1 && !interval.is_zero() {
                    tokio::time::sleep(interval).await;
                }
                Ok(HelloReply { message })
            }
        });
        Ok(Response::new(Box::pin(greetings)))
    }
}

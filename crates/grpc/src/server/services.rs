//! Which service a call is for.

use std::any::Any;
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower_service::Service;

use super::body::RequestBody;

/// What generated servers return.
pub(super) type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// The services of one worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Services {
    all: Vec<(&'static str, Box<dyn Handler>)>,
    fallback: Option<Box<dyn Handler>>,
}

impl Services {
    /// Adds a service, in the place of one that has the same name.
    pub(super) fn add(&mut self, name: &'static str, service: Box<dyn Handler>) {
        self.all.retain(|(other, _)| *other != name);
        self.all.push((name, service));
    }

    /// Sets what is asked for services that are not here.
    pub(super) fn set_fallback(&mut self, service: Box<dyn Handler>) {
        self.fallback = Some(service);
    }

    /// Returns what they are called.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.all.iter().map(|(name, _)| *name)
    }

    /// Begins a call.
    ///
    /// # Errors
    ///
    /// UNIMPLEMENTED when no such service is here.
    pub(super) fn call(&mut self, request: Request<RequestBody>) -> Result<Answer, Status> {
        let name = service_of(request.uri().path());
        match self.all.iter_mut().find(|(known, _)| *known == name) {
            Some((_, service)) => Ok(service.call(request)),
            None => match &mut self.fallback {
                Some(fallback) => Ok(fallback.call(request)),
                None => Err(Status::unimplemented(format!("no service `{name}` is here"))),
            },
        }
    }
}

/// Returns the service of `/service/method`.
pub(super) fn service_of(path: &str) -> &str {
    let name = path.strip_prefix('/').unwrap_or(path);
    name.split_once('/').map_or(name, |(service, _)| service)
}

/// A service, whatever its type.
pub(super) trait Handler: Send {
    /// Begins a call.
    fn call(&mut self, request: Request<RequestBody>) -> Answer;
    /// Makes one for another worker.
    fn boxed_clone(&self) -> Box<dyn Handler>;
}

impl Clone for Box<dyn Handler> {
    fn clone(&self) -> Self {
        (**self).boxed_clone()
    }
}

impl fmt::Debug for dyn Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Handler")
    }
}

/// A service of tonic, or of tower.
pub(super) struct Tower<S>(pub(super) S);

impl<S> Handler for Tower<S>
where
    S: Service<Request<RequestBody>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    fn call(&mut self, request: Request<RequestBody>) -> Answer {
        // Generated servers always are.
        match self.0.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => boxed(self.0.call(request)),
            Poll::Ready(Err(never)) => match never {},
            Poll::Pending => {
                let mut service = self.0.clone();
                Box::pin(async move {
                    match poll_fn(|cx| service.poll_ready(cx)).await {
                        Ok(()) => service.call(request).await,
                        Err(never) => match never {},
                    }
                })
            }
        }
    }

    fn boxed_clone(&self) -> Box<dyn Handler> {
        Box::new(Self(self.0.clone()))
    }
}

/// Boxes a future; not one that is boxed already, as those of generated servers are.
fn boxed<F>(future: F) -> Answer
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let mut future = Some(future);
    let answer = (&mut future as &mut dyn Any).downcast_mut::<Option<Answer>>().and_then(Option::take);
    answer.unwrap_or_else(|| Box::pin(future.expect("it is taken only if it is an answer")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_found_in_its_path() {
        assert_eq!(service_of("/greet.GreeterService/SayHello"), "greet.GreeterService");
        assert_eq!(service_of("/greet.GreeterService"), "greet.GreeterService");
        assert_eq!(service_of("/"), "");
        assert_eq!(service_of("*"), "*");
        assert_eq!(service_of("/a/b/c"), "a");
    }

    #[test]
    fn what_is_boxed_is_not_boxed_again() {
        let answer: Answer = Box::pin(async { Ok(Response::new(Body::empty())) });
        let place = (&raw const *answer).cast::<()>();
        assert_eq!((&raw const *boxed(answer)).cast::<()>(), place);
    }
}

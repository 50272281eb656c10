//! The gate before all services: decides by path, caller and state. Shell.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};

use crate::auth::allow;
use crate::daemon::Daemon;
use crate::pki::Caller;

/// Who calls, for the record.
#[derive(Clone, Debug)]
pub(crate) struct Actor(pub(crate) String);

/// Makes gates.
pub(crate) struct Gate<D>(pub(crate) Arc<D>);

impl<D> Clone for Gate<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<D, S> Layer<S> for Gate<D> {
    type Service = Gatekeeper<D, S>;

    fn layer(&self, inner: S) -> Self::Service {
        Gatekeeper { daemon: self.0.clone(), inner }
    }
}

/// A service behind a gate.
pub struct Gatekeeper<D, S> {
    daemon: Arc<D>,
    inner: S,
}

impl<D, S: Clone> Clone for Gatekeeper<D, S> {
    fn clone(&self) -> Self {
        Self { daemon: self.daemon.clone(), inner: self.inner.clone() }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<Response<Body>, E>> + Send>>;

impl<D, S> Service<Request<Body>> for Gatekeeper<D, S>
where
    D: Daemon,
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let daemon = self.daemon.clone();
        // The clone takes the place of the service that was polled ready.
        let fresh = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, fresh);
        Box::pin(async move {
            let caller = request.extensions().get::<Caller>().cloned().unwrap_or(Caller::Anonymous);
            // Not kept while the call runs: a state that is looked at has to be copied when it changes.
            let decided = {
                let state = daemon.state();
                allow(request.uri().path(), &caller, &state, |uuid| daemon.quorum_needs(uuid))
            };
            match decided {
                Ok(actor) => {
                    request.extensions_mut().insert(Actor(actor));
                    inner.call(request).await
                }
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

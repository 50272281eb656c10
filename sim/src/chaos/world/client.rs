//! Callers of the API: people at keyboards and machines that want to join, over the simulated network. Shell.

use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use api::pki::Caller;
use futures::future::BoxFuture;
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};

use super::World;

/// A client waits no longer for an answer.
pub const CALL_MAX: Duration = Duration::from_secs(12);

/// A channel for the API's generated clients.
#[derive(Clone)]
pub struct SimChannel {
    world: World,
    /// The machine from which it is called.
    from: usize,
    to: usize,
    caller: Caller,
}

impl SimChannel {
    /// Calls the daemon of this very machine.
    pub fn local(world: &World, machine: usize) -> Self {
        Self::to(world, machine, machine, Caller::Local)
    }

    /// Calls whoever listens at an address, as nobody known.
    pub fn anonymous(world: &World, from: usize, address: SocketAddr) -> Option<Self> {
        let to = world.net().owner(address.ip())?;
        Some(Self::to(world, from, to, Caller::Anonymous))
    }

    fn to(world: &World, from: usize, to: usize, caller: Caller) -> Self {
        Self { world: world.clone(), from, to, caller }
    }

    async fn exchange(self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (mut parts, body) = request.into_parts();
        let bytes = body.collect().await.map_err(|e| Status::internal(e.to_string()))?.to_bytes();
        parts.extensions.insert(self.caller.clone());
        let world = &self.world;
        let number = world.next_exchange();
        let numbers = [number, self.from as u64, self.to as u64];
        let path = parts.uri.path().to_owned();
        world.recorder().note("ask", &numbers, &[path.as_bytes(), &bytes].concat());
        let gone = || Status::unavailable("the daemon does not answer");
        self.travel(self.from, self.to).await?;
        let machine = world.machine(self.to).filter(|m| m.is_on()).ok_or_else(gone)?;
        let life = machine.life().ok_or_else(gone)?;
        let served = life.served().ok_or_else(gone)?;
        let request = Request::from_parts(parts, Body::new(http_body_util::Full::new(bytes)));
        let (tx, rx) = oneshot::channel();
        life.scope.spawn("inbound call", async move {
            let (parts, body) = served.call(request).await.into_parts();
            // A client that gave up is no concern of the daemon.
            let _ = tx.send(body.collect().await.map(|body| (parts, body)));
        });
        let answer =
            timeout(CALL_MAX, rx).await.map_err(|_| Status::deadline_exceeded("no answer"));
        let answer = answer?.map_err(|_| Status::unavailable("connection reset"))?;
        let (parts, body) = answer.map_err(|e| Status::internal(e.to_string()))?;
        self.travel(self.to, self.from).await?;
        let trailers = body.trailers().cloned();
        let bytes = body.to_bytes();
        let status = trailers.as_ref().unwrap_or(&parts.headers).get("grpc-status");
        let status = status.map_or(Vec::new(), |s| s.as_bytes().to_vec());
        world.recorder().note("told", &[number], &[status, bytes.to_vec()].concat());
        let body = http_body_util::Full::new(bytes).with_trailers(async { trailers.map(Ok) });
        Ok(Response::from_parts(parts, Body::new(body)))
    }

    async fn travel(&self, from: usize, to: usize) -> Result<(), Status> {
        if from == to {
            return Ok(());
        }
        match self.world.net().fate(from, to, self.world.now_us()).first() {
            Some(takes) => {
                sleep(*takes).await;
                Ok(())
            }
            None => {
                sleep(CALL_MAX).await;
                Err(Status::deadline_exceeded("no answer"))
            }
        }
    }
}

impl tower::Service<Request<Body>> for SimChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().exchange(request))
    }
}

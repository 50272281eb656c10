//! The services, each over the [`Daemon`] port, behind one gate that decides who may call. Shell.

mod clusters;
mod fleet;
mod gate;
mod join;
mod networks;
mod nodes;

use std::sync::Arc;

use bytes::Bytes;
use raft_store::apply::{Change, Command};
use raft_store::model::{Name, RequestId};
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::{Router, Server};
use tower::Layer as _;
use uuid::Uuid;

use crate::auth::{PEER_CALL, allow};
use crate::daemon::{Daemon, FleetView, Snapshot};
use crate::pki::Caller;
use crate::proto;
use crate::proto::clusters_server::ClustersServer;
use crate::proto::fleet_server::FleetServer;
use crate::proto::join_server::JoinServer;
use crate::proto::networks_server::NetworksServer;
use crate::proto::nodes_server::NodesServer;
use crate::proto::peer_server::PeerServer;
use crate::proto::vips_server::VipsServer;
use crate::status::{from_call, invalid};
use crate::transport::FRAME_MAX;
use crate::view::Scene;

pub(crate) use gate::{Actor, Gate};

/// The largest request of a client.
const REQUEST_MAX: usize = 1 << 20;

/// All services of one daemon.
pub(crate) struct Api<D> {
    daemon: Arc<D>,
}

impl<D> Clone for Api<D> {
    fn clone(&self) -> Self {
        Self { daemon: self.daemon.clone() }
    }
}

pub(crate) type Gated<D> = Router<tower::layer::util::Stack<Gate<D>, tower::layer::util::Identity>>;

/// All services behind the gate, to be called within this process: the connection's part is played by a
/// [`Caller`] among a request's extensions.
pub type InProcess<D> = gate::Gatekeeper<D, Routes>;

/// Makes the services of a daemon, to be called within this process.
pub fn in_process<D: Daemon>(daemon: Arc<D>) -> InProcess<D> {
    Gate(daemon.clone()).layer(routes(daemon))
}

/// Serves a frame from the daemon of `from`, as the service between daemons does.
///
/// # Errors
/// When that one may not call, or the frame is not served.
pub async fn peer_frame<D: Daemon>(
    daemon: &Arc<D>,
    from: Uuid,
    kind: u32,
    body: Bytes,
) -> Result<(u32, Bytes), Status> {
    {
        let (caller, state) = (Caller::Node(from), daemon.state());
        allow(PEER_CALL, &caller, &state, |uuid| daemon.quorum_needs(uuid))?;
    }
    join::frame(&**daemon, from, kind, body).await
}

/// Puts all services behind the gate.
pub(crate) fn register<D: Daemon>(builder: Server, daemon: Arc<D>) -> Gated<D> {
    builder.layer(Gate(daemon.clone())).add_routes(about(routes(daemon)))
}

/// What tools ask a server about itself. Costly to make, and of use on a socket only.
fn about(routes: Routes) -> Routes {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let v1 = reflection().build_v1().expect("the compiled descriptors are valid");
    let v1alpha = reflection().build_v1alpha().expect("the compiled descriptors are valid");
    let (_, health) = tonic_health::server::health_reporter();
    routes.add_service(health).add_service(v1).add_service(v1alpha)
}

fn routes<D: Daemon>(daemon: Arc<D>) -> Routes {
    let api = Api { daemon };
    let peer = PeerServer::new(api.clone())
        .max_decoding_message_size(FRAME_MAX)
        .max_encoding_message_size(FRAME_MAX);
    Routes::new(FleetServer::new(api.clone()).max_decoding_message_size(REQUEST_MAX))
        .add_service(NodesServer::new(api.clone()).max_decoding_message_size(REQUEST_MAX))
        .add_service(NetworksServer::new(api.clone()).max_decoding_message_size(REQUEST_MAX))
        .add_service(ClustersServer::new(api.clone()).max_decoding_message_size(REQUEST_MAX))
        .add_service(VipsServer::new(api.clone()).max_decoding_message_size(REQUEST_MAX))
        .add_service(JoinServer::new(api).max_decoding_message_size(REQUEST_MAX))
        .add_service(peer)
}

/// What was read for one answer.
pub(crate) struct Read {
    snapshot: Snapshot,
    view: FleetView,
    now: raft_store::model::UnixMillis,
}

impl Read {
    pub(crate) fn scene(&self) -> Scene<'_> {
        let applied = self.applied();
        Scene { state: &self.snapshot.state, view: &self.view, applied, now: self.now }
    }

    pub(crate) fn applied(&self) -> u64 {
        self.snapshot.applied
    }

    pub(crate) fn state(&self) -> &raft_store::model::State {
        &self.snapshot.state
    }
}

impl<D: Daemon> Api<D> {
    async fn propose<T>(
        &self,
        request: &tonic::Request<T>,
        id: &str,
        command: Command,
    ) -> Result<Change, Status> {
        let request_id = parse_request_id(id)?;
        let by = request.extensions().get::<Actor>().map_or("unknown", |a| a.0.as_str());
        self.daemon.propose(request_id, by, command).await.map_err(from_call)
    }

    /// Reads state and, beside it, what the leader sees.
    async fn scene(&self, read: Option<&proto::Read>) -> Result<Read, Status> {
        let stale = read.is_some_and(|read| read.stale);
        let mut snapshot = self.daemon.read(stale).await.map_err(from_call)?;
        let view = self.daemon.view().await;
        if stale {
            // What this node knows by now: sight of a new leader may have been waited for.
            snapshot = self.daemon.read(true).await.map_err(from_call)?;
        }
        Ok(Read { snapshot, view, now: self.daemon.wall() })
    }
}

fn parse_request_id(id: &str) -> Result<Option<RequestId>, Status> {
    if id.is_empty() {
        return Ok(None);
    }
    let uuid = id.parse().map_err(|_| invalid("the call was refused", "request_id is no UUID"))?;
    Ok(Some(RequestId(uuid)))
}

/// Reads a name that a caller typed.
fn name(text: &str) -> Result<Name, Status> {
    text.parse()
        .map_err(|e: raft_store::model::InvalidName| invalid("the call was refused", e.to_string()))
}

/// Reads a name that may be left out.
fn optional_name(text: &str) -> Result<Option<Name>, Status> {
    if text.is_empty() { Ok(None) } else { name(text).map(Some) }
}

fn names(texts: &[String]) -> Result<Vec<Name>, Status> {
    texts.iter().map(|t| name(t)).collect()
}

fn list<'a>(names: impl Iterator<Item = &'a Name>) -> Vec<String> {
    names.map(ToString::to_string).collect()
}

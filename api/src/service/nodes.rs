//! Nodes: list, show, roles, drain, removal. Shell.

use raft_store::apply::{Command, departure_guard, drain_guard, unassign_guard};
use raft_store::model::{Node, Role};
use tonic::{Request, Response, Status};

use super::{Api, Read, list, name, optional_name};
use crate::daemon::Daemon;
use crate::proto;
use crate::proto::nodes_server::Nodes;
use crate::status::{from_rejection, invalid, not_found};

type Answer<T> = Result<Response<T>, Status>;

const DRAIN_S: u64 = 600;

/// Finds a node that a caller named.
pub(super) fn find<'a>(read: &'a Read, text: &str) -> Result<&'a Node, Status> {
    let state = read.state();
    let found = text.parse().ok().and_then(|name| state.node_named(&name));
    found.ok_or_else(|| not_found("node", text, &list(state.nodes.values().map(|n| &n.name))))
}

/// The state machine judges by what is agreed; who answers is known only to whom the leader told it.
fn check_unassign(read: &Read, node: &str) -> Result<(), Status> {
    let node = find(read, node)?;
    unassign_guard(read.state(), node.id, &|id| read.scene().serves(id)).map_err(from_rejection)
}

/// As above: a fleet whose last living node is removed has nobody left to take over.
fn check_departure(read: &Read, node: &str, how: &str) -> Result<(), Status> {
    let node = find(read, node)?;
    departure_guard(read.state(), node.id, how, &|id| !read.scene().lost(id))
        .map_err(from_rejection)
}

#[tonic::async_trait]
impl<D: Daemon> Nodes for Api<D> {
    async fn list(
        &self,
        request: Request<proto::ListNodesRequest>,
    ) -> Answer<proto::ListNodesResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let scene = read.scene();
        let nodes = read.state().nodes.values().map(|n| scene.node_status(n)).collect();
        Ok(Response::new(proto::ListNodesResponse { nodes, applied: read.applied() }))
    }

    async fn get(&self, request: Request<proto::GetNodeRequest>) -> Answer<proto::Node> {
        let r = request.get_ref();
        let read = self.scene(r.read.as_ref()).await?;
        let node = find(&read, &r.name)?;
        let at = self.daemon.whereabouts().into_iter().filter(|w| w.uuid == node.uuid);
        let endpoints = at.flat_map(|w| w.addresses).map(|a| a.to_string()).collect();
        Ok(Response::new(read.scene().node(node, endpoints)))
    }

    async fn remove(
        &self,
        request: Request<proto::RemoveNodeRequest>,
    ) -> Answer<proto::RemoveNodeResponse> {
        let r = request.get_ref();
        check_departure(&self.scene(None).await?, &r.name, "removed")?;
        let command = Command::RemoveNode { name: name(&r.name)?, force: r.force };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::RemoveNodeResponse {}))
    }

    async fn terminate(
        &self,
        request: Request<proto::TerminateNodeRequest>,
    ) -> Answer<proto::TerminateNodeResponse> {
        let r = request.get_ref();
        let read = self.scene(None).await?;
        check_departure(&read, &r.name, "terminated")?;
        check_unassign(&read, &r.name)?;
        self.propose(&request, "", Command::TerminateNode { name: name(&r.name)? }).await?;
        Ok(Response::new(proto::TerminateNodeResponse {}))
    }

    async fn assign_role(
        &self,
        request: Request<proto::AssignRoleRequest>,
    ) -> Answer<proto::AssignRoleResponse> {
        let r = request.get_ref();
        let role = match r.role.as_str() {
            "k3s-server" => Role::K3sServer,
            "k3s-agent" => Role::K3sAgent,
            other => {
                let why = format!("{other:?} is no role: roles are k3s-server and k3s-agent");
                return Err(invalid(format!("{} got no role", r.node), why));
            }
        };
        let command =
            Command::AssignRole { node: name(&r.node)?, role, cluster: optional_name(&r.cluster)? };
        self.propose(&request, &r.request_id, command).await?;
        Ok(Response::new(proto::AssignRoleResponse {}))
    }

    async fn unassign_role(
        &self,
        request: Request<proto::UnassignRoleRequest>,
    ) -> Answer<proto::UnassignRoleResponse> {
        let r = request.get_ref();
        if !r.force {
            check_unassign(&self.scene(None).await?, &r.node)?;
        }
        let command = Command::UnassignRole { node: name(&r.node)?, force: r.force };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::UnassignRoleResponse {}))
    }

    async fn drain(&self, request: Request<proto::DrainRequest>) -> Answer<proto::DrainResponse> {
        let r = request.get_ref();
        let read = self.scene(None).await?;
        let node = find(&read, &r.node)?;
        let more = node.drain.as_ref().is_none_or(|running| r.stop && !running.stop);
        if !r.force && more {
            // The state machine judges by what is agreed; who answers is known only here.
            let serves = |id| read.scene().serves(id);
            drain_guard(read.state(), node.id, r.stop, &serves).map_err(from_rejection)?;
        }
        let timeout_s = if r.timeout_s == 0 { DRAIN_S } else { r.timeout_s };
        let command = Command::Drain {
            node: node.name.clone(),
            stop: r.stop,
            timeout_ms: timeout_s.saturating_mul(1000),
            force: r.force,
        };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::DrainResponse {}))
    }

    async fn undrain(
        &self,
        request: Request<proto::UndrainRequest>,
    ) -> Answer<proto::UndrainResponse> {
        let command = Command::Undrain { node: name(&request.get_ref().node)? };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::UndrainResponse {}))
    }
}

//! Admission of machines, and frames between daemons. Shell.

use bytes::Bytes;
use raft_store::apply::{Change, Command, NewNode, redeemable};
use raft_store::model::{Digest, PublicKey, TicketId};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Api, name, optional_name};
use crate::auth::removed;
use crate::daemon::Daemon;
use crate::pki::Caller;
use crate::proto;
use crate::proto::join_server::Join;
use crate::proto::peer_server::Peer;
use crate::status::{detail, from_call, from_rejection, invalid, status};

fn key(text: &str, which: &str) -> Result<PublicKey, Status> {
    text.parse().map_err(|e: raft_store::model::InvalidKey| {
        invalid("the machine was not admitted", format!("its {which} key is {e}"))
    })
}

impl<D: Daemon> Api<D> {
    /// Refuses guesses here: what anybody may send must not reach the log, nor push others' outcomes out of it.
    async fn check_ticket(&self, id: TicketId, digest: &Digest, uuid: Uuid) -> Result<(), Status> {
        let at = self.daemon.wall();
        if redeemable(&self.daemon.state(), id, digest, uuid, at).is_ok() {
            return Ok(());
        }
        // This node may be behind.
        let fresh = self.daemon.read(false).await.map_err(from_call)?.state;
        redeemable(&fresh, id, digest, uuid, at).map_err(from_rejection)
    }
}

#[tonic::async_trait]
impl<D: Daemon> Join for Api<D> {
    async fn redeem(
        &self,
        request: Request<proto::RedeemRequest>,
    ) -> Result<Response<proto::RedeemResponse>, Status> {
        let r = request.get_ref();
        let uuid: Uuid = r
            .uuid
            .parse()
            .map_err(|_| invalid("the machine was not admitted", "its uuid is malformed"))?;
        let node = NewNode {
            uuid,
            name: name(&r.name)?,
            wireguard: key(&r.wireguard_key, "WireGuard")?,
            sealing: key(&r.sealing_key, "sealing")?,
        };
        let (ticket, digest) = (TicketId(r.ticket), Digest::of(&r.secret));
        self.check_ticket(ticket, &digest, uuid).await?;
        let state = self.daemon.state();
        let authority = self.authority(&state)?;
        let fleet = state.fleet.as_ref().ok_or_else(|| Status::unavailable("no fleet"))?;
        // Signed before the admission and handed out only after it: an answer that is lost can be repeated.
        let certificate_pem = authority
            .sign_node(&r.csr_pem, fleet.id, uuid, self.daemon.wall().0 / 1000)
            .map_err(|e| invalid("the machine was not admitted", e.to_string()))?;
        let command = Command::AdmitNode {
            ticket,
            digest,
            node: node.clone(),
            replaces: optional_name(&r.replaces)?,
        };
        let id = match self.propose(&request, &r.request_id, command).await? {
            Change::Node { id } => id,
            _ => return Err(Status::internal("the machine was admitted, but not named")),
        };
        // A repeated request id is answered with what was decided first, whatever it asks for now.
        let admitted = self.daemon.read(false).await.map_err(from_call)?.state;
        let same = admitted.nodes.get(&id).is_some_and(|n| {
            n.uuid == uuid && n.wireguard == node.wireguard && n.sealing == node.sealing
        });
        if !same {
            let why = "its request id belongs to another machine, or it was removed since";
            let next = "join with a new ticket: skein ticket create";
            let detail = detail("conflict", "the machine was not admitted", why, next);
            return Err(status(Code::FailedPrecondition, detail));
        }
        let members = self.daemon.whereabouts().into_iter().map(|w| proto::Whereabouts {
            uuid: w.uuid.to_string(),
            node: w.node,
            incarnation: w.incarnation,
            seq: w.seq,
            addresses: w.addresses.iter().map(ToString::to_string).collect(),
        });
        Ok(Response::new(proto::RedeemResponse {
            certificate_pem,
            ca_pem: fleet.ca_cert.clone(),
            fleet_id: fleet.id.to_string(),
            node_id: id.0,
            members: members.collect(),
            ipv4_pool: fleet.ipv4_pool.to_string(),
        }))
    }
}

#[tonic::async_trait]
impl<D: Daemon> Peer for Api<D> {
    async fn call(&self, request: Request<proto::Frame>) -> Result<Response<proto::Frame>, Status> {
        let from = match request.extensions().get::<Caller>() {
            Some(Caller::Node(uuid)) => *uuid,
            _ => {
                return Err(Status::permission_denied("only daemons of the fleet call this"));
            }
        };
        let asked = request.into_inner();
        let answered = frame(&*self.daemon, from, asked.kind, asked.body.into()).await?;
        Ok(Response::new(proto::Frame { kind: answered.0, body: answered.1.to_vec() }))
    }
}

/// Serves a frame from a caller that the gate let in.
pub(super) async fn frame<D: Daemon>(
    daemon: &D,
    from: Uuid,
    kind: u32,
    body: Bytes,
) -> Result<(u32, Bytes), Status> {
    // Whose vote is still needed is let in; the daemon hears no more of it than ends that vote.
    let retired = kind > raft_store::raft::kind::LAST && daemon.state().is_retired(from);
    if retired && !daemon.quorum_needs(from) {
        return Err(removed());
    }
    daemon.frame(from, kind, body).await.map_err(from_call)
}

//! Admission of machines, and frames between daemons. Shell.

use raft_store::apply::{Change, Command, NewNode};
use raft_store::model::{Digest, PublicKey, TicketId};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Api, name, optional_name};
use crate::daemon::Daemon;
use crate::pki::Caller;
use crate::proto;
use crate::proto::join_server::Join;
use crate::proto::peer_server::Peer;
use crate::status::{detail, from_call, invalid, status};

fn key(text: &str, which: &str) -> Result<PublicKey, Status> {
    text.parse().map_err(|e: raft_store::model::InvalidKey| {
        invalid("the machine was not admitted", format!("its {which} key is {e}"))
    })
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
        let state = self.daemon.state();
        let authority = self.authority(&state)?;
        let fleet = state.fleet.as_ref().ok_or_else(|| Status::unavailable("no fleet"))?;
        // Signed before the admission and handed out only after it: an answer that is lost can be repeated.
        let certificate_pem = authority
            .sign_node(&r.csr_pem, fleet.id, uuid, self.daemon.wall().0 / 1000)
            .map_err(|e| invalid("the machine was not admitted", e.to_string()))?;
        let command = Command::AdmitNode {
            ticket: TicketId(r.ticket),
            digest: Digest::of(&r.secret),
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
        let frame = request.into_inner();
        let answered =
            self.daemon.frame(from, frame.kind, frame.body.into()).await.map_err(from_call)?;
        Ok(Response::new(proto::Frame { kind: answered.0, body: answered.1.to_vec() }))
    }
}

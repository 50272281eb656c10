//! Admission of machines, and frames between daemons. Shell.

use raft_store::apply::{Change, Command, NewNode};
use raft_store::model::{Digest, PublicKey, TicketId};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{Api, name, optional_name};
use crate::daemon::Daemon;
use crate::pki::Caller;
use crate::proto;
use crate::proto::join_server::Join;
use crate::proto::peer_server::Peer;
use crate::status::{from_call, invalid};

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
            node,
            replaces: optional_name(&r.replaces)?,
        };
        let node_id = match self.propose(&request, &r.request_id, command).await? {
            Change::Node { id } => id.0,
            _ => return Err(Status::internal("the machine was admitted, but not named")),
        };
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
            node_id,
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

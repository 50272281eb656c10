//! Status, tickets, operators, events. Shell.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use raft_store::apply::{Change, Command};
use raft_store::model::{self, Digest, TicketId, TicketRole};
use tonic::{Code, Request, Response, Status};
use uuid::Uuid;

use super::{Api, name, optional_name};
use crate::daemon::{CallError, Daemon};
use crate::pki::{Signer, fingerprint};
use crate::proto::fleet_server::Fleet;
use crate::proto::{self, AddEndpointResponse, ListEventsResponse};
use crate::secrets::CA_KEY;
use crate::status::{detail, from_call, invalid, status};
use crate::ticket::{ENDPOINTS_MAX, JoinTicket};

type Answer<T> = Result<Response<T>, Status>;

const HOUR_S: u64 = 3_600;

impl<D: Daemon> Api<D> {
    /// Opens the fleet's authority, which any member with the fleet's key can do.
    pub(super) fn authority(&self, state: &model::State) -> Result<Box<dyn Signer>, Status> {
        let not_ready = |why: &str| from_call(CallError::NotReady(why.to_owned()));
        let fleet =
            state.fleet.as_ref().ok_or_else(|| not_ready("the fleet is not founded yet"))?;
        let key = self
            .daemon
            .fleet_key()
            .ok_or_else(|| not_ready("this node has not been handed the fleet's key yet"))?;
        let pem = key
            .open(CA_KEY, &fleet.ca_key)
            .map_err(|e| not_ready(&format!("the authority's key cannot be opened: {e}")))?;
        let pem = String::from_utf8_lossy(pem.expose()).into_owned();
        let pem = zeroize::Zeroizing::new(pem);
        let opened = self.daemon.pki().authority(&fleet.ca_cert, &pem);
        opened.map_err(|e| not_ready(&e.to_string()))
    }

    fn endpoints(&self) -> Vec<std::net::SocketAddr> {
        let all = self.daemon.whereabouts();
        let rounds = all.iter().map(|w| w.addresses.len()).max().unwrap_or(0);
        // One address of each node first: a dead node must not fill the list.
        let by_round = (0..rounds).flat_map(|r| all.iter().filter_map(move |w| w.addresses.get(r)));
        by_round.copied().take(ENDPOINTS_MAX).collect()
    }
}

fn event(e: &model::Event) -> proto::Event {
    proto::Event {
        index: e.index,
        at: e.at.0,
        kind: e.kind.clone(),
        severity: e.severity.as_str().into(),
        node: e.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        cluster: e.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
        payload: e.payload.to_string(),
    }
}

#[tonic::async_trait]
impl<D: Daemon> Fleet for Api<D> {
    async fn get_status(&self, _: Request<proto::GetStatusRequest>) -> Answer<proto::Status> {
        // What this node has applied: the status must come also without quorum.
        let read = self.scene(Some(&proto::Read { stale: true })).await?;
        Ok(Response::new(read.scene().status(self.daemon.me())))
    }

    async fn create_ticket(
        &self,
        request: Request<proto::CreateTicketRequest>,
    ) -> Answer<proto::CreateTicketResponse> {
        let r = request.get_ref();
        let role = match r.role.as_str() {
            "" | "any" => TicketRole::Any,
            "voter" => TicketRole::Voter,
            other => {
                return Err(invalid(
                    "the ticket was not made",
                    format!("--role is {other:?}, but must be voter or any"),
                ));
            }
        };
        let secret = self.daemon.random();
        let life = if r.expires_s == 0 { HOUR_S } else { r.expires_s };
        let expires = self.daemon.wall().plus(life.saturating_mul(1000));
        let command = Command::CreateTicket {
            digest: Digest::of(&secret),
            role,
            network: optional_name(&r.network)?,
            expires,
            uses: if r.uses == 0 { 1 } else { r.uses },
        };
        let id = match self.propose(&request, &r.request_id, command).await? {
            Change::Ticket { id } => id,
            _ => return Err(Status::internal("a ticket was made, but not named")),
        };
        let state = self.daemon.state();
        let not_ready = || from_call(CallError::NotReady("the fleet is not founded yet".into()));
        let fleet = state.fleet.as_ref().ok_or_else(not_ready)?;
        // A repeated request was answered from memory: the secret that counts was handed out then.
        let ours = Digest::of(&secret);
        if state.tickets.get(&id).is_some_and(|t| t.digest != ours) {
            let detail = detail(
                "conflict",
                "the ticket cannot be shown again",
                format!("this request was carried out before, as ticket {id}"),
                format!("skein ticket revoke {id}, and make another: skein ticket create"),
            );
            return Err(status(Code::FailedPrecondition, detail));
        }
        let ticket = JoinTicket {
            fleet: fleet.id,
            id: id.0,
            secret,
            fingerprint: fingerprint(&fleet.ca_cert)
                .map_err(|e| Status::internal(e.to_string()))?,
            endpoints: self.endpoints(),
        };
        Ok(Response::new(proto::CreateTicketResponse {
            ticket: ticket.to_string(),
            id: id.0,
            expires_at: expires.0,
        }))
    }

    async fn list_tickets(
        &self,
        request: Request<proto::ListTicketsRequest>,
    ) -> Answer<proto::ListTicketsResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let network = |id| read.state().networks.get(&id).map(|n| n.name.to_string());
        let tickets = read.state().tickets.values().map(|t| proto::Ticket {
            id: t.id.0,
            role: match t.role {
                TicketRole::Voter => "voter".into(),
                TicketRole::Any => "any".into(),
            },
            network: network(t.network).unwrap_or_default(),
            uses_left: t.uses_left,
            uses: t.uses,
            expires_at: t.expires.0,
            standing: t.standing(read.now).into(),
            by: t.by.clone(),
        });
        let tickets = tickets.collect();
        Ok(Response::new(proto::ListTicketsResponse { tickets, applied: read.applied() }))
    }

    async fn revoke_ticket(
        &self,
        request: Request<proto::RevokeTicketRequest>,
    ) -> Answer<proto::RevokeTicketResponse> {
        let command = Command::RevokeTicket { id: TicketId(request.get_ref().id) };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::RevokeTicketResponse {}))
    }

    async fn admit_operator(
        &self,
        request: Request<proto::AdmitOperatorRequest>,
    ) -> Answer<proto::AdmitOperatorResponse> {
        let r = request.get_ref();
        let who = name(&r.name)?;
        let state = self.daemon.state();
        let authority = self.authority(&state)?;
        let serial = Uuid::from_slice(&self.daemon.random()[..16]).unwrap_or_default();
        let now = self.daemon.wall().0 / 1000;
        let certificate_pem = authority
            .sign_operator(&r.csr_pem, who.as_str(), serial, now)
            .map_err(|e| invalid("the operator was not admitted", e.to_string()))?;
        self.propose(&request, "", Command::AdmitOperator { name: who, serial }).await?;
        let fleet = state.fleet.as_ref();
        Ok(Response::new(proto::AdmitOperatorResponse {
            certificate_pem,
            ca_pem: fleet.map(|f| f.ca_cert.clone()).unwrap_or_default(),
            fleet_id: fleet.map(|f| f.id.to_string()).unwrap_or_default(),
            endpoints: self.endpoints().iter().map(ToString::to_string).collect(),
        }))
    }

    async fn list_operators(
        &self,
        request: Request<proto::ListOperatorsRequest>,
    ) -> Answer<proto::ListOperatorsResponse> {
        let read = self.scene(request.get_ref().read.as_ref()).await?;
        let operators = read.state().operators.values();
        let operators = operators
            .map(|o| proto::Operator { name: o.name.to_string(), admitted_at: o.at.0 })
            .collect();
        Ok(Response::new(proto::ListOperatorsResponse { operators, applied: read.applied() }))
    }

    async fn remove_operator(
        &self,
        request: Request<proto::RemoveOperatorRequest>,
    ) -> Answer<proto::RemoveOperatorResponse> {
        let command = Command::RemoveOperator { name: name(&request.get_ref().name)? };
        self.propose(&request, "", command).await?;
        Ok(Response::new(proto::RemoveOperatorResponse {}))
    }

    async fn add_endpoint(
        &self,
        request: Request<proto::AddEndpointRequest>,
    ) -> Answer<AddEndpointResponse> {
        let text = &request.get_ref().address;
        let address = text.parse().map_err(|_| {
            invalid(
                "the endpoint was not added",
                format!("{text:?} is no address like 10.0.0.1:7443 or [fd00::1]:7443"),
            )
        })?;
        self.daemon.add_endpoint(address);
        Ok(Response::new(AddEndpointResponse {}))
    }

    async fn list_events(
        &self,
        request: Request<proto::ListEventsRequest>,
    ) -> Answer<ListEventsResponse> {
        let r = request.get_ref();
        let read = self.daemon.read(r.read.is_some_and(|r| r.stale)).await.map_err(from_call)?;
        let limit = if r.limit == 0 { 100 } else { r.limit as usize };
        let events = read.state.events.after(0).rev();
        let events = events.filter(|e| e.kind.starts_with(&r.kind_prefix)).take(limit);
        let events = events.map(event).collect();
        Ok(Response::new(ListEventsResponse { events, applied: read.applied }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<proto::WatchEventsRequest>,
    ) -> Answer<Self::WatchEventsStream> {
        let r = request.into_inner();
        let daemon: Arc<D> = self.daemon.clone();
        let stream =
            futures::stream::unfold((daemon, r.after, 0u64), move |(daemon, after, seen)| {
                let prefix = r.kind_prefix.clone();
                async move {
                    let mut seen = seen;
                    loop {
                        let read = daemon.read(true).await.ok()?;
                        let fresh: Vec<_> = read.state.events.after(after).map(event).collect();
                        if let Some(last) = fresh.last() {
                            let last = last.index;
                            let matching =
                                fresh.into_iter().filter(|e| e.kind.starts_with(&prefix));
                            let batch = futures::stream::iter(matching.map(Ok).collect::<Vec<_>>());
                            return Some((batch, (daemon, last, read.applied)));
                        }
                        seen = seen.max(read.applied);
                        daemon.changed(seen).await;
                    }
                }
            });
        Ok(Response::new(Box::pin(futures::StreamExt::flatten(stream))))
    }
}

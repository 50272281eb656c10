//! The one function that changes replicated state: total, deterministic, without clock, randomness or I/O. Pure.

mod clusters;
pub mod codec;
mod command;
mod drains;
mod ending;
mod networks;
mod nodes;
mod phases;
mod pods;
mod reject;
mod tickets;
mod vips;

pub use command::{
    Change, Command, CreateCluster, FoundFleet, NewNode, Outcome, Proposal, ReportPhase,
};
pub use drains::{drain_guard, unassign_guard};
pub use ending::departure_guard;
pub use pods::pods_guard;
pub use reject::{RejectCode, Rejection};
pub use tickets::redeemable;

use serde_json::Value;

use crate::model::{ClusterId, Event, NodeId, Remembered, Severity, State, UnixMillis};

/// What a handler of one command works with.
struct Context<'a> {
    state: &'a mut State,
    index: u64,
    at: UnixMillis,
    by: &'a str,
}

type Applied = Result<Change, Rejection>;

/// Applies a proposal at its log index.
///
/// A retry of a request is answered with the first outcome. A refusal changes nothing but may leave
/// an event behind.
pub fn apply(state: &mut State, index: u64, proposal: &Proposal) -> Outcome {
    if let Some(earlier) = state.requests.get(&proposal.request) {
        return match &earlier.outcome {
            Outcome::Done { change } | Outcome::Duplicate { change } => {
                Outcome::Duplicate { change: change.clone() }
            }
            Outcome::Rejected { rejection } => Outcome::Rejected { rejection: rejection.clone() },
        };
    }
    let mut cx = Context { state, index, at: proposal.at, by: &proposal.by };
    let outcome = match cx.run(&proposal.command) {
        Ok(change) => Outcome::Done { change },
        Err(rejection) => Outcome::Rejected { rejection },
    };
    remember(state, index, proposal, &outcome);
    outcome
}

/// Applies an encoded proposal and encodes what came of it; bytes that are no proposal are refused.
pub fn apply_bytes(state: &mut State, index: u64, bytes: &[u8]) -> Vec<u8> {
    let outcome = match codec::decode_proposal(bytes) {
        Ok(proposal) => apply(state, index, &proposal),
        Err(e) => {
            let next = "upgrade all nodes to one version of skein";
            let what = "the command was not carried out";
            let rejection = Rejection::new(RejectCode::Invalid, what, e.to_string(), next);
            Outcome::Rejected { rejection }
        }
    };
    codec::encode_outcome(&outcome)
}

fn remember(state: &mut State, index: u64, proposal: &Proposal, outcome: &Outcome) {
    state.requests.remember(proposal.request, Remembered { index, outcome: outcome.clone() });
}

impl Context<'_> {
    fn run(&mut self, command: &Command) -> Applied {
        if self.state.fleet.is_none() && !matches!(command, Command::FoundFleet(_)) {
            return Err(Rejection::new(
                RejectCode::Fleet,
                "the command was not carried out",
                "this fleet is not founded yet",
                "run `skein init` on the first machine",
            ));
        }
        match command {
            Command::FoundFleet(c) => self.found_fleet(c),
            Command::CreateTicket { digest, role, network, expires, uses } => {
                self.create_ticket(digest, *role, network.as_ref(), *expires, *uses)
            }
            Command::RevokeTicket { id } => self.revoke_ticket(*id),
            Command::AdmitNode { ticket, digest, node, replaces } => {
                self.admit_node(*ticket, digest, node, replaces.as_ref())
            }
            Command::HandKey { node, key_box } => self.hand_key(*node, key_box),
            Command::RemoveNode { name, force } => self.remove_node(name, *force),
            Command::AdmitOperator { name, serial } => self.admit_operator(name, *serial),
            Command::RemoveOperator { name } => self.remove_operator(name),
            Command::CreateNetwork { name, v4, mtu } => self.create_network(name, *v4, *mtu),
            Command::AttachNode { node, network } => self.attach_node(node, network),
            Command::AddDevice { network, name, key } => self.add_device(network, name, key),
            Command::RemoveDevice { network, name } => self.remove_device(network, name),
            Command::CreateCluster(c) => self.create_cluster(c),
            Command::AssignRole { node, role, cluster } => {
                self.assign_role(node, *role, cluster.as_ref())
            }
            Command::DecommissionCluster { name } => self.decommission(name),
            Command::TerminateNode { name } => self.terminate(name),
            Command::UnassignRole { node, force } => self.unassign_role(node, *force),
            Command::ReportPhase(r) => self.report_phase(r),
            Command::ReportPods { node, expect, cidrs } => self.report_pods(*node, *expect, cidrs),
            Command::Drain { node, stop, timeout_ms, force } => {
                self.drain(node, *stop, *timeout_ms, *force)
            }
            Command::ReportDrain { node, epoch, step, done, message } => {
                self.report_drain(*node, *epoch, *step, *done, message.as_deref())
            }
            Command::Undrain { node } => self.undrain(node),
            Command::PrepareVip { vip, expect, to, reason } => {
                self.prepare_vip(*vip, *expect, *to, *reason)
            }
            Command::MoveVip { vip, expect, to, reason } => {
                self.move_vip(*vip, *expect, *to, *reason)
            }
            Command::SetEtcdTimers { cluster, timers } => self.set_etcd_timers(*cluster, *timers),
            Command::ForgetGhost { cluster, name } => self.forget_ghost(*cluster, name),
            Command::Note { kind, severity, node, cluster, payload } => {
                if nesting(payload) > NESTING_MAX {
                    return Err(Rejection::new(
                        RejectCode::Invalid,
                        format!("event {kind} was not recorded"),
                        format!("its payload is nested more than {NESTING_MAX} deep"),
                        "report this as a bug",
                    ));
                }
                self.emit(kind, *severity, *node, *cluster, payload.clone());
                Ok(Change::Nothing)
            }
        }
    }

    /// Adds an event to the ring.
    fn emit(
        &mut self,
        kind: &str,
        severity: Severity,
        node: Option<NodeId>,
        cluster: Option<ClusterId>,
        payload: Value,
    ) {
        let node = node.and_then(|id| self.state.nodes.get(&id)).map(|n| n.name.clone());
        let cluster = cluster.and_then(|id| self.state.clusters.get(&id)).map(|c| c.name.clone());
        let kind = kind.to_owned();
        self.state.events.push(Event {
            index: 0,
            at: self.at,
            kind,
            severity,
            node,
            cluster,
            payload,
        });
    }
}

/// Event payloads nest no deeper, so that a state that holds them can always be read back.
const NESTING_MAX: usize = 32;

fn nesting(value: &Value) -> usize {
    let inner = match value {
        Value::Array(items) => items.iter().map(nesting).max(),
        Value::Object(fields) => fields.values().map(nesting).max(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return 0,
    };
    1 + inner.unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests;
